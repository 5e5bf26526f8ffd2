//! Raw TCP under mutual TLS, and TLS that is the application's own.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::*;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::pki::*;
use crate::support::*;

fn raw(app: SocketAddr, mode: MtlsMode) -> Pair {
    let rules = inbound(mode, Access::default());
    Pair::with(app, Protocol::Tcp, rules, |mut setup| {
        setup.tcp.push(cluster_name("battle"));
        setup
    })
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

#[test]
fn bytes_pass_both_ways_and_ends_are_passed_on() {
    let pair = raw(echo_server(), MtlsMode::Strict);
    let mut stream = connect(pair.caller.tcp[0]);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 249) as u8).collect();
    let (sent, mut writer) = (bytes.clone(), stream.try_clone().unwrap());
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == bytes, "{} of {}", got.len(), bytes.len());
    let (count, open) = pair.called.account.secured().open(9);
    assert!(count <= 1 && open.iter().all(|c| c.protocol == "phalanx-tcp"));
}

#[test]
fn server_may_speak_first_and_close_first() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let app = listener.local_addr().unwrap();
    let (told, heard) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello");
            let _ = stream.shutdown(Shutdown::Write);
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            let _ = told.send(rest);
        }
    });
    for mode in [MtlsMode::Strict, MtlsMode::Permissive] {
        let pair = raw(app, mode);
        let mut stream = connect(pair.caller.tcp[0]);
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"hello");
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)).unwrap(), b"bye");
    }
    // In plain text, past the caller's sidecar.
    let pair = raw(app, MtlsMode::Permissive);
    let mut got = [0; 5];
    connect(pair.called.inbound).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

#[test]
fn strict_passes_no_plain_text_on() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let app = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let pair = raw(app, MtlsMode::Strict);
    let mut stream = connect(pair.called.inbound);
    stream.write_all(b"anything").unwrap();
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert_eq!(got, b"");
    is_refused(&pair.called, Direction::Inbound, "plain_text", 1);
    assert!(listener.accept().is_err(), "nobody came to the application");
}

/// An application that speaks TLS by itself, with any certificate.
fn tls_app() -> SocketAddr {
    let own = identity(&issuer(), "app");
    let credentials = own.credentials().unwrap();
    let parts = credentials.parts();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(parts.chain.clone(), parts.key.to_der())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let mut got = [0; 4];
            if stream.read_exact(&mut got).is_ok() {
                let _ = stream.write_all(b"its own: ");
                let _ = stream.write_all(&got);
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    address
}

#[test]
fn tls_of_the_application_is_passed_on_where_plain_text_would_be() {
    let app = tls_app();
    let talk = |address| {
        let mut stream = dial(&Shown::default().config(), address);
        stream.write_all(b"ping").map_err(|e| e.to_string())?;
        let mut got = String::new();
        stream.read_to_string(&mut got).map_err(|e| e.to_string())?;
        Ok::<_, String>(got)
    };
    for mode in [MtlsMode::Permissive, MtlsMode::Off] {
        let pair = raw(app, mode);
        assert_eq!(
            talk(pair.called.inbound).as_deref(),
            Ok("its own: ping"),
            "{mode:?}"
        );
    }
    let pair = raw(app, MtlsMode::Permissive);
    // Its own TLS within ours: the caller's application speaks TLS, the sidecars add theirs around it.
    assert_eq!(talk(pair.caller.tcp[0]).as_deref(), Ok("its own: ping"));
    let pair = raw(app, MtlsMode::Strict);
    assert_eq!(talk(pair.caller.tcp[0]).as_deref(), Ok("its own: ping"));
    assert!(talk(pair.called.inbound).is_err());
    is_refused(&pair.called, Direction::Inbound, "plain_text", 1);
}

#[test]
fn raw_and_http_share_a_listener() {
    let (echo, app) = (echo_server(), Upstream::start(|_, _| ok("http")));
    let issuer = issuer();
    let (gateway, battle) = (identity(&issuer, "gateway"), identity(&issuer, "battle"));
    let sidecar = called(&battle, inbound(MtlsMode::Strict, Access::default()))
        .app(8080, app.address, Protocol::Auto)
        .app(9000, echo, Protocol::Tcp)
        .start();
    let config = Shown::of(&gateway).alpn("phalanx-tcp").config();
    let mut stream = dial(&config, sidecar.inbound);
    stream.write_all(b"ping").unwrap();
    let mut got = [0; 4];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
    let config = Shown::of(&gateway).alpn("http/1.1").config();
    let head = "GET / HTTP/1.1\r\nx-phalanx-port: 8080";
    let answer = ask(&config, sidecar.inbound, head).unwrap();
    assert!(answer.ends_with("http"), "{answer}");
}
