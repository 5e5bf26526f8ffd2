//! Peers that mean harm: whatever is not our mutual TLS at a strict port, and handshakes that never end.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::*;

use crate::pki::*;
use crate::support::*;

/// What comes back until the end, for at most some seconds.
fn talk(mut stream: TcpStream, parts: &[&[u8]]) -> Vec<u8> {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    for part in parts {
        if stream.write_all(part).is_err() {
            break; // closed already
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    heard
}

#[test]
fn nothing_but_our_mutual_tls_reaches_a_strict_application() {
    const H2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x09\x01\x05\0\0\0\x01\x82\x84\x86\x41\x04evil";
    let forms: &[(&str, &[&[u8]])] = &[
        ("http/1", &[b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n"]),
        ("http/1.0", &[b"GET / HTTP/1.0\r\n\r\n"]),
        ("http/0.9", &[b"GET /\r\n"]),
        ("h2 by prior knowledge", &[H2]),
        (
            "websocket",
            &[b"GET / HTTP/1.1\r\nhost: battle\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"],
        ),
        (
            "h2c",
            &[b"GET / HTTP/1.1\r\nhost: battle\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"],
        ),
        (
            "pipelined",
            &[b"GET / HTTP/1.1\r\nhost: battle\r\n\r\nGET /two HTTP/1.1\r\nhost: battle\r\n\r\n"],
        ),
        (
            "proxy protocol",
            &[b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nhost: battle\r\n\r\n"],
        ),
        (
            "proxy protocol 2",
            &[b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\0\x01\0\x02GET / HTTP/1.1\r\nhost: battle\r\n\r\n"],
        ),
        ("connect", &[b"CONNECT battle:8080 HTTP/1.1\r\nhost: battle:8080\r\n\r\n"]),
        ("a record that is no handshake", &[b"\x17\x03\x03\0\x10GET / HTTP/1.1\r\n"]),
        ("garbage in a handshake", &[b"\x16\x03\x01\0\x10GET / HTTP/1.1\r\nhost: battle\r\n\r\n"]),
        ("sslv2", &[b"\x80\x2e\x01\0\x02\0\x15\0\0\0\x10GET / HTTP/1.1\r\n\r\n"]),
        ("bytes", &[b"\0\x01\x02", b"\xff\xfe"]),
    ];
    for protocol in [Protocol::Auto, Protocol::Tcp] {
        let app = Upstream::start(|_, _| ok("in"));
        let pair = Pair::with(
            app.address,
            protocol,
            inbound(MtlsMode::Strict, Access::default()),
            |s| s,
        );
        for (form, parts) in forms {
            let stream = TcpStream::connect(pair.called.inbound).unwrap();
            let heard = talk(stream, parts);
            let heard = String::from_utf8_lossy(&heard);
            assert!(!heard.contains("200 OK"), "{protocol:?}, {form}: {heard}");
            assert_eq!(app.connections(), 0, "{protocol:?}, {form}");
        }
    }
}

/// A ClientHello of a client that shows what `identity` has.
fn hello(pair: &Pair, alpn: &'static str) -> Vec<u8> {
    let config = Shown::of(&pair.gateway).alpn(alpn).config();
    let name = rustls::pki_types::ServerName::IpAddress(pair.called.inbound.ip().into());
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn hello_may_come_byte_by_byte_and_a_handshake_within_another_opens_nothing() {
    struct Dribble(TcpStream);
    impl Read for Dribble {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buf)
        }
    }
    impl Write for Dribble {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(&bytes[..bytes.len().min(1)])
        }
        fn flush(&mut self) -> std::io::Result<()> {
            self.0.flush()
        }
    }
    let app = Upstream::start(|_, _| ok("in"));
    let pair = Pair::start(app.address, MtlsMode::Strict);
    let name = rustls::pki_types::ServerName::IpAddress(pair.called.inbound.ip().into());
    let config = Shown::of(&pair.gateway).alpn("http/1.1").config();
    let client = rustls::ClientConnection::new(config, name).unwrap();
    let stream = TcpStream::connect(pair.called.inbound).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut stream = rustls::StreamOwned::new(client, Dribble(stream));
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: battle\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(app.requests(), 1);

    // Within our TLS: no second handshake is taken, with or without a certificate in the first.
    for shown in [Shown::of(&pair.gateway), Shown::default()] {
        let mut outer = dial(&shown.alpn("http/1.1").config(), pair.called.inbound);
        let _ = outer.write_all(&hello(&pair, "http/1.1"));
        let mut heard = Vec::new();
        let _ = outer.read_to_end(&mut heard);
        assert!(!heard.starts_with(&[0x16]), "{heard:?}");
    }
    assert_eq!(app.requests(), 1);
}

#[test]
fn handshakes_that_never_end_keep_nobody_out_who_ends_his() {
    let app = Upstream::start(|_, _| ok("in"));
    let issuer = issuer();
    let (gateway, battle) = (identity(&issuer, "gateway"), identity(&issuer, "battle"));
    let mut setup = called(&battle, inbound(MtlsMode::Strict, Access::default())).app(
        8080,
        app.address,
        Protocol::Auto,
    );
    setup.deadlines.handshake = Duration::from_secs(120);
    let called = setup.start();
    let pair = Pair {
        caller: caller(&gateway, &[called.inbound], &["battle"], Protocol::Auto).start(),
        issuer,
        called,
        gateway,
        battle,
    };
    let whole = hello(&pair, "h2");
    let mut silent = Vec::new();
    for number in 0..1300 {
        let Ok(mut stream) = TcpStream::connect(pair.called.inbound) else {
            continue;
        };
        // Some stop within the hello, some after it.
        let part = if number % 2 == 0 { 100 } else { whole.len() };
        let _ = stream.write_all(&whole[..part]);
        silent.push(stream);
    }
    eventually("the first are let go", || {
        refused(&pair.called, Direction::Inbound, "busy") > 0
    });
    for _ in 0..5 {
        assert_eq!(pair.get("/").status(), 200);
    }
    let mut first = &silent[0];
    first
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let ended = first.read(&mut [0]);
    let is_timeout = |error: &std::io::Error| error.kind() == ErrorKind::WouldBlock;
    assert!(!ended.as_ref().is_err_and(is_timeout), "{ended:?}");
}

#[test]
fn endpoints_that_do_not_take_our_certificate_are_not_ejected() {
    let app = Upstream::start(|_, _| ok("in"));
    let (ours, theirs) = (issuer(), issuer());
    let (gateway, battle) = (identity(&ours, "gateway"), identity(&theirs, "battle"));
    let called = called(&battle, inbound(MtlsMode::Strict, Access::default()))
        .app(8080, app.address, Protocol::Http1)
        .start();
    let both = ours.roots().and(theirs.roots()).unwrap();
    gateway.publish_roots(both.clone()).unwrap();
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let sidecar = caller(&gateway, &[called.inbound], &["battle"], protocol).start();
        for _ in 0..20 {
            assert_eq!(sidecar.get("/").reason(), "connect_failed");
        }
        assert_eq!(sidecar.sum(|edge| edge.ejections), 0, "{protocol:?}");
        // As soon as it trusts us it serves us.
        battle.publish_roots(both.clone()).unwrap();
        eventually("the certificate is taken", || {
            sidecar.get("/").status() == 200
        });
        battle.publish_roots(theirs.roots().clone()).unwrap();
    }
}

#[test]
fn requests_under_load_never_meet_a_change_of_rules_halfway() {
    let app = Upstream::start(|_, _| ok("in"));
    let mut pair = Pair::start(app.address, MtlsMode::Permissive);
    let outbound = pair.caller.outbound;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let done = stop.clone();
    let load = std::thread::spawn(move || {
        let (mut good, mut bad) = (0, Vec::new());
        let mut client = Client::connect(outbound);
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            match client.get("battle", "/").status() {
                200 => good += 1,
                other => bad.push(other),
            }
        }
        (good, bad)
    });
    let allow = |service: &str| {
        let rule = AccessRule {
            callers: vec![Caller::Id(id(service))],
            ..AccessRule::default()
        };
        let policy = AccessPolicy {
            name: "AuthorizationPolicy/arena/test".into(),
            effect: Effect::Allow,
            rules: vec![rule],
        };
        Access {
            policies: vec![policy],
        }
    };
    for _ in 0..10 {
        for (mode, access, plain) in [
            (MtlsMode::Strict, Access::default(), 401),
            (MtlsMode::Strict, allow("gateway"), 401),
            (MtlsMode::Permissive, allow("gateway"), 403),
            (MtlsMode::Permissive, Access::default(), 200),
        ] {
            // An open connection in plain text, too, is asked anew with its next request.
            let mut open = Client::connect(pair.called.inbound);
            open.get("battle", "/");
            pair.called
                .change(|setup| setup.inbound = Some(inbound(mode, access.clone())));
            assert_eq!(
                Client::connect(pair.called.inbound)
                    .get("battle", "/")
                    .status(),
                plain
            );
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (good, bad) = load.join().unwrap();
    assert!(good > 0 && bad.is_empty(), "{good} good, {bad:?}");
    // Denied by name: none gets through once the rules are in force.
    pair.called
        .change(|setup| setup.inbound = Some(inbound(MtlsMode::Strict, allow("stranger"))));
    let before = app.requests();
    for _ in 0..20 {
        assert_eq!(pair.get("/").status(), 403);
    }
    assert_eq!(app.requests(), before);
}

#[test]
fn raw_connections_that_new_rules_would_not_let_in_are_closed() {
    let echo = echo_server();
    let mut pair = Pair::with(
        echo,
        Protocol::Tcp,
        inbound(MtlsMode::Permissive, Access::default()),
        |mut setup| {
            setup.tcp.push(cluster_name("battle"));
            setup
        },
    );
    let open = |address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.write_all(b"ping").unwrap();
        let mut got = [0; 4];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ping");
        stream
    };
    let is_closed = |mut stream: TcpStream| {
        let read = stream.read(&mut [0]);
        matches!(&read, Ok(0))
            || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    };
    let (plain, mutual) = (open(pair.called.inbound), open(pair.caller.tcp[0]));
    pair.called
        .change(|setup| setup.inbound = Some(inbound(MtlsMode::Strict, Access::default())));
    assert!(is_closed(plain), "in plain text, and strict by now");
    let mut still = &mutual;
    still.write_all(b"ping").unwrap();
    still.read_exact(&mut [0; 4]).unwrap();
    let deny = AccessPolicy {
        name: "AuthorizationPolicy/arena/test".into(),
        effect: Effect::Deny,
        rules: vec![AccessRule {
            callers: vec![Caller::Id(id("gateway"))],
            ..AccessRule::default()
        }],
    };
    pair.called.change(|setup| {
        setup.inbound = Some(inbound(
            MtlsMode::Strict,
            Access {
                policies: vec![deny],
            },
        ));
    });
    assert!(is_closed(mutual), "denied by now");
}
