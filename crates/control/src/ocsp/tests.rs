use std::net::SocketAddr;

use phalanx_pki::clock::{Clock, SystemClock};
use phalanx_pki::issuer::{Issuer, RootCa};
use phalanx_pki::key::KeyKind;
use phalanx_pki::name::TrustDomain;
use phalanx_pki::ocsp::{Responder, Status};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::listen::{Connections, Door};

/// `OCSPResponse { malformedRequest }`
const MALFORMED: &[u8] = &[0x30, 0x03, 0x0a, 0x01, 0x01];

/// An issuer that everybody is good for.
struct Good(Responder);

impl Source for Good {
    fn respond(&self, request: &[u8]) -> Vec<u8> {
        let now = SystemClock.now();
        self.0.respond(request, now, |_, _| Status::Good)
    }

    fn list(&self, issuer_key: &str) -> Option<Vec<u8>> {
        (issuer_key == "ab12").then(|| vec![0x30, 0x00])
    }

    fn ailment(&self) -> Option<String> {
        None
    }
}

fn issuer() -> Issuer {
    let domain = TrustDomain::parse("phalanx.local").unwrap();
    let (now, kind) = (SystemClock.now(), KeyKind::EcdsaP256);
    let root = RootCa::create(&domain, kind, now, Duration::from_secs(36_000)).unwrap();
    root.intermediate(kind, now, Duration::from_secs(3600))
        .unwrap()
}

struct Served {
    address: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

async fn serve() -> Served {
    let responder = Responder::try_new([issuer().ca().clone()], VALID).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let connections = Connections::new(listener, CONNECTIONS_MAX, Door::plain(), stop.clone());
    tokio::spawn(connections.serve_http(router(Good(responder))));
    Served {
        address,
        _stop: stop.drop_guard(),
    }
}

const VALID: Duration = Duration::from_secs(600);

impl Served {
    /// Sends bytes, and reads all that comes back until the end of the connection.
    async fn ask(&self, bytes: &[u8]) -> (String, Vec<u8>) {
        let mut peer = TcpStream::connect(self.address).await.unwrap();
        let _ = peer.write_all(bytes).await;
        let mut heard = Vec::new();
        let _ = timeout(20 * BODY_MAX, peer.read_to_end(&mut heard)).await;
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
    assert!(is(&served.get("/crl/ab12").await.0, 404));
    let (head, body) = served.get("/crl/ab12.crl").await;
    assert!(is(&head, 200) && head.contains(CRL), "{head}");
    assert_eq!(body, [0x30, 0x00]);
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

#[tokio::test(start_paused = true)]
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_path_and_no_body_harms(path in "[ -~]{0,200}", body in prop::collection::vec(any::<u8>(), 0..600)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (get, post) = runtime.block_on(async {
            let responder = Responder::try_new([issuer().ca().clone()], VALID).unwrap();
            let router = router(Good(responder));
            let get = match axum::http::Uri::try_from(format!("/{path}")) {
                Ok(uri) => Some(send(&router, Request::get(uri).body(Body::empty()).unwrap()).await),
                Err(_) => None,
            };
            let post = Request::post("/").body(Body::from(body)).unwrap();
            (get, send(&router, post).await)
        });
        prop_assert!(get.is_none_or(|status| matches!(status.as_u16(), 200 | 404)));
        prop_assert_eq!(post, StatusCode::OK);
    }
}

async fn send(router: &Router, request: Request) -> StatusCode {
    use tower::ServiceExt;
    let answer = router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    status
}
