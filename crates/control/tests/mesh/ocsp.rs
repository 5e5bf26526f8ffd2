//! The OCSP port as strangers meet it: what is no request, what is too much, who is too slow.

use std::net::SocketAddr;
use std::time::Duration;

use phalanx_control::ocsp::CONNECTIONS_MAX;
use phalanx_control::{Config, Running, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config;

const REQUEST: &str = "application/ocsp-request";
const REQUEST_MAX: usize = 4 * 1024;
/// `OCSPResponse { malformedRequest }`
const MALFORMED: &[u8] = &[0x30, 0x03, 0x0a, 0x01, 0x01];

struct Served {
    address: SocketAddr,
    _running: Running,
    _data: tempfile::TempDir,
}

async fn serve() -> Served {
    let data = tempfile::tempdir().unwrap();
    let config = Config {
        ocsp: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        ..config(data.path())
    };
    let running = start(config).await.unwrap();
    Served {
        address: running.ocsp_address().unwrap(),
        _running: running,
        _data: data,
    }
}

impl Served {
    /// Sends bytes, and reads all that comes back until the end of the connection.
    async fn ask(&self, bytes: &[u8]) -> (String, Vec<u8>) {
        let mut peer = TcpStream::connect(self.address).await.unwrap();
        let _ = peer.write_all(bytes).await;
        let mut heard = Vec::new();
        let _ = timeout(Duration::from_secs(30), peer.read_to_end(&mut heard)).await;
        let end = heard.windows(4).position(|w| w == b"\r\n\r\n");
        let end = end.unwrap_or(heard.len());
        let head = String::from_utf8_lossy(&heard[..end]).into_owned();
        (head, heard.split_off((end + 4).min(heard.len())))
    }

    async fn get(&self, path: &str) -> (String, Vec<u8>) {
        let text = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        self.ask(text.as_bytes()).await
    }

    async fn post(&self, kind: &str, body: &[u8]) -> (String, Vec<u8>) {
        let head = format!(
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.ask(&[head.as_bytes(), body].concat()).await
    }
}

fn is(head: &str, status: u16) -> bool {
    head.starts_with(&format!("HTTP/1.1 {status} "))
}

#[tokio::test]
async fn what_is_no_request_is_answered_as_malformed_by_both_methods() {
    let served = serve().await;
    let ocsp = |head: &str| is(head, 200) && head.contains("application/ocsp-response");
    for body in [&b""[..], b"garbage", &[0x30; 4096], &[0xff; 17]] {
        let (head, body) = served.post(REQUEST, body).await;
        assert!(ocsp(&head) && body == MALFORMED, "{head}");
        assert!(head.contains("no-store"), "{head}");
    }
    for path in [
        "/MEI",
        "/%",
        "/%zz",
        "/%4",
        "/MEI=%3D%3D",
        "/a/b/c",
        "//",
        "/MA==?x",
        "/%00",
        "/MAA=",
        "/healthzz",
        "/MA%3d%3D",
    ] {
        let (head, body) = served.get(path).await;
        assert!(ocsp(&head) && body == MALFORMED, "{path}\n{head}");
    }
}

#[tokio::test]
async fn other_methods_kinds_and_paths_are_refused_in_words() {
    let served = serve().await;
    for method in ["PUT", "DELETE", "OPTIONS", "HEAD"] {
        let text = format!("{method} /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let (head, _) = served.ask(text.as_bytes()).await;
        assert!(is(&head, 405), "{head}");
        assert!(head.to_lowercase().contains("allow: get, post"), "{head}");
    }
    assert!(is(&served.post("text/plain", b"x").await.0, 415));
    assert!(is(
        &served.post("application/OCSP-request; x=y", b"x").await.0,
        200
    ));
    assert!(is(&served.get("/").await.0, 404));
    assert!(is(&served.get("/crl/cd34.crl").await.0, 404));
    assert!(is(&served.get("/healthz").await.0, 200));
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_unread() {
    let served = serve().await;
    let (head, _) = served.post(REQUEST, &[0x30; REQUEST_MAX + 1]).await;
    assert!(is(&head, 413), "{head}");
    // A length that nobody sends, and one that never ends.
    let huge = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n".to_owned();
    let endless = format!(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{}",
        "400\r\n".to_owned() + &"x".repeat(0x400) + "\r\n"
    );
    let chunk = "400\r\n".to_owned() + &"x".repeat(0x400) + "\r\n";
    let endless = endless + &chunk.repeat(8);
    for text in [huge, endless] {
        let (head, _) = served.ask(text.as_bytes()).await;
        assert!(is(&head, 413), "{head}");
    }
    let path = "A".repeat(40_000);
    assert!(is(&served.get(&format!("/{path}")).await.0, 200));
    assert!(!is(
        &served.get(&format!("/{}", path.repeat(4))).await.0,
        200
    ));
}

#[tokio::test]
async fn a_slow_sender_is_let_go_and_holds_nobody_up() {
    let served = serve().await;
    let mut slow = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut peer = TcpStream::connect(served.address).await.unwrap();
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n12";
        peer.write_all(head).await.unwrap();
        slow.push(peer);
    }
    // There is no seat left; this one gets the first that is free again.
    let (head, _) = served.get("/healthz").await;
    assert!(is(&head, 200), "{head}");
    let mut heard = Vec::new();
    slow[0].read_to_end(&mut heard).await.unwrap();
    let heard = String::from_utf8_lossy(&heard).into_owned();
    assert!(is(&heard, 408), "{heard}");
}
