//! What stays open for long: under rules that change, and past the end of the certificate that opened it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::*;
use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::issuer::{Attestation, Issuer, Order};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::verifier::SKEW;
use phalanx_proxy::account::Event;

use crate::pki::*;
use crate::smuggling::*;
use crate::support::*;

fn websocket(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: battle\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

fn opened(pair: &Pair, path: &str) -> Client {
    let mut client = Client::connect(pair.caller.outbound);
    assert_eq!(client.ask(&websocket(path)).status(), 101);
    assert!(echoes(&mut client));
    client
}

fn echoes(client: &mut Client) -> bool {
    client.stream.write_all(b"ping").is_ok() && client.exactly(4).is_some_and(|got| got == b"ping")
}

#[test]
fn websockets_that_new_rules_would_not_let_in_are_closed_and_no_others() {
    let app = Upstream::start(|_, _| Act::Echo);
    let mut pair = Pair::start(app.address, MtlsMode::Strict);
    let (mut admin, mut game) = (opened(&pair, "/admin/log"), opened(&pair, "/game"));
    let deny = AccessPolicy {
        name: "AuthorizationPolicy/arena/test".into(),
        effect: Effect::Deny,
        rules: vec![AccessRule {
            callers: vec![Caller::Id(id("gateway"))],
            paths: vec![PathMatch::Prefix("/admin".into())],
            ..AccessRule::default()
        }],
    };
    let policies = vec![deny];
    pair.called.change(|setup| {
        setup.inbound = Some(inbound(MtlsMode::Strict, Access { policies }));
    });
    assert!(admin.is_closed(), "denied by now");
    assert!(echoes(&mut game), "nobody denied that");
    assert_eq!(pair.called.event(Event::AccessDenied), 1);
    let mut again = Client::connect(pair.caller.outbound);
    assert_eq!(again.ask(&websocket("/admin/log")).status(), 403);
}

#[test]
fn websockets_of_a_revoked_caller_are_closed() {
    let app = Upstream::start(|_, _| Act::Echo);
    let pair = Pair::start(app.address, MtlsMode::Strict);
    let mut open = opened(&pair, "/game");
    revoke(&pair.battle, &pair.issuer, &[serial(&pair.gateway)], 1);
    assert!(open.is_closed());
}

/// A certificate that ends so soon.
fn brief(issuer: &Issuer, service: &str, life: Duration) -> Credentials {
    let (key, workload) = (
        Key::generate(KeyKind::default()).unwrap(),
        workload(service),
    );
    let by = Attestation::Operator {
        name: "test".into(),
    };
    let issued = issuer
        .issue_to(key.spki(), &Order::new(&workload, life, by), now())
        .unwrap();
    let parts = Parts {
        chain: issued.chain,
        key,
        staple: None,
        roots: issuer.roots().clone(),
    };
    Credentials::try_new(parts, &workload, now()).unwrap()
}

/// As Envoy and linkerd have it, and RFC 5280 leaves it: dates are checked when somebody comes in, and nobody is thrown out.
#[test]
fn an_expired_certificate_opens_nothing_from_its_second_on_and_closes_nothing() {
    let app = Upstream::start(|_, _| ok("in"));
    let pair = Pair::start(app.address, MtlsMode::Strict);
    pair.gateway
        .publish(brief(&pair.issuer, "gateway", Duration::from_secs(3)));
    let end = pair.gateway.credentials().unwrap().not_after();
    let config = Shown::of(&pair.gateway).config();
    let mut open = dial(&config, pair.called.inbound);
    let head = b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n";
    let asked = |open: &mut Tls| {
        open.write_all(head).unwrap();
        let mut answer = [0; 1000];
        let count = open.read(&mut answer).unwrap();
        answer[..count].starts_with(b"HTTP/1.1 200")
    };
    assert!(asked(&mut open));
    // Sessions are resumed all the while, to the end and not beyond.
    let refused_at = loop {
        let begun = now();
        match ask(&config, pair.called.inbound, "GET / HTTP/1.1") {
            Ok(answer) => {
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                assert!(begun <= end.plus(SKEW), "taken at {begun}, ended at {end}");
            }
            Err(_) => break now(),
        }
        thread::sleep(Duration::from_millis(50));
    };
    assert!(refused_at >= end, "refused at {refused_at}, before {end}");
    let taken = pair.called.event(Event::SecuredResumed);
    assert!(taken > 1, "sessions were resumed");
    assert!(ask(&config, pair.called.inbound, "GET / HTTP/1.1").is_err());
    is_refused(&pair.called, Direction::Inbound, "expired", 2);
    assert_eq!(pair.called.event(Event::SecuredResumed), taken);
    assert!(asked(&mut open), "what was open stays so");
}

/// 100 MB there and back, read in small pieces at first.
#[test]
fn a_hundred_megabytes_pass_both_ways_to_a_reader_who_is_slow() {
    const SIZE: usize = 100_000_000;
    let listener = TcpListener::bind(any_port()).unwrap();
    let app = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
        stream.write_all(answer.as_bytes()).unwrap();
        // Echoed as it comes.
        let (mut buffer, mut left) = (vec![0; 64 << 10], SIZE);
        while left > 0 {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0);
            stream.write_all(&buffer[..count]).unwrap();
            left -= count;
        }
    });
    let rules = inbound(MtlsMode::Strict, Access::default());
    let pair = Pair::with(app, Protocol::Http1, rules, |s| s);
    let mut stream = TcpStream::connect(pair.caller.outbound).unwrap();
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit).unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: battle\r\ncontent-length: {SIZE}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let piece: Vec<u8> = (0..1 << 20_u32).map(|i| (i % 251) as u8).collect();
    let sent = piece.clone();
    let writing = thread::spawn(move || {
        let mut left = SIZE;
        while left > 0 {
            let count = left.min(sent.len());
            writer.write_all(&sent[..count]).unwrap();
            left -= count;
        }
    });
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200"));
    let (mut buffer, mut got) = (vec![0; 256 << 10], 0);
    while got < SIZE {
        let most = if got < 1 << 20 { 16 << 10 } else { 256 << 10 };
        if got < 1 << 20 {
            thread::sleep(Duration::from_millis(10));
        }
        let count = stream.read(&mut buffer[..most]).unwrap();
        assert!(count > 0, "cut after {got}");
        let from = got % piece.len();
        let until = (from + count).min(piece.len());
        assert!(buffer[..until - from] == piece[from..until]);
        assert!(buffer[until - from..count] == piece[..count - (until - from)]);
        got += count;
    }
    writing.join().unwrap();
    let _ = stream.shutdown(Shutdown::Both);
}

/// Whoever may call sends what others might read in another way: what the application sees of it is counted.
#[test]
fn nothing_is_smuggled_through_a_pair() {
    for protocol in [Protocol::Http1, Protocol::Auto] {
        let app = RawApp::start();
        let rules = inbound(MtlsMode::Strict, Access::default());
        let mut pair = Pair::with(app.address, protocol, rules, |s| s);
        let forms = forms();
        let answers = say_all(&forms, pair.caller.outbound);
        pair.caller.drain(Duration::from_secs(1));
        pair.called.drain(Duration::from_secs(1));
        judge(&forms, &answers, &app.got());
    }
}

/// Handshakes that begin, as fast as they can, and are never gone on with, while somebody good comes in again and again.
#[test]
fn a_flood_of_handshakes_keeps_nobody_out() {
    let app = Upstream::start(|_, _| ok("in"));
    let pair = Pair::start(app.address, MtlsMode::Strict);
    let config = Shown::of(&pair.gateway).config();
    let name = rustls::pki_types::ServerName::IpAddress(pair.called.inbound.ip().into());
    let mut hello = Vec::new();
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    client.write_tls(&mut hello).unwrap();
    let (over, at) = (Arc::new(AtomicBool::new(false)), pair.called.inbound);
    let flood = thread::spawn({
        let over = over.clone();
        move || {
            let (mut open, mut count) = (std::collections::VecDeque::new(), 0);
            while !over.load(Ordering::Relaxed) {
                if let Ok(mut stream) = TcpStream::connect(at) {
                    let _ = stream.write_all(&hello);
                    open.push_back(stream);
                    count += 1;
                }
                if open.len() > 400 {
                    open.pop_front();
                }
            }
            count
        }
    });
    for number in 0..40 {
        // Each comes with a handshake of its own, and resumes nothing.
        let config = Shown::of(&pair.gateway).config();
        let answer = ask(&config, at, "GET / HTTP/1.1").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{number}: {answer}");
    }
    over.store(true, Ordering::Relaxed);
    println!("{} handshakes were begun", flood.join().unwrap());
}
