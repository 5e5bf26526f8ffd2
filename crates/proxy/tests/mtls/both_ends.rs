//! A call between two sidecars, seen from both ends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::*;
use phalanx_proxy::account::{Event, Security};

use crate::pki::*;
use crate::support::*;

#[test]
fn caller_is_named_to_the_application_and_to_those_who_count() {
    let app = Upstream::start(|_, _| ok("fight"));
    let pair = Pair::start(app.address, MtlsMode::Strict);
    let answer = pair.get("/x");
    assert_eq!((answer.status(), answer.text()), (200, "fight".into()));
    let leaf = pair.gateway.credentials().unwrap().peer().clone();
    let hash: String = leaf
        .fingerprint
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let expected = format!("By={};Hash={hash};URI={}", id("battle"), id("gateway"));
    assert_eq!(
        app.last().header("x-forwarded-client-cert"),
        Some(expected.as_str())
    );

    for (sidecar, direction, peer, address) in [
        (&pair.called, Direction::Inbound, &pair.gateway, None),
        (
            &pair.caller,
            Direction::Outbound,
            &pair.battle,
            Some(pair.called.inbound),
        ),
    ] {
        let (count, open) = sidecar.account.secured().open(10);
        let [connection] = &open[..] else {
            panic!("{count} connections")
        };
        let own = peer.credentials().unwrap().peer().clone();
        let known = connection.peer.clone().unwrap();
        assert_eq!(
            (known.fingerprint, &known.serial),
            (own.fingerprint, &own.serial)
        );
        assert_eq!(connection.direction, direction);
        assert_eq!(
            (&*connection.protocol, connection.version),
            ("phalanx-h2", "1.3")
        );
        assert!(address.is_none_or(|address| address == connection.address));
        let security = Security::Mutual(Some(Box::new(own.id.clone())));
        let edges = sidecar.account.collect();
        let edge = edges.iter().find(|edge| edge.requests() == 1).unwrap();
        assert_eq!(
            (&edge.key.security, edge.key.direction),
            (&security, direction)
        );
    }
}

#[test]
fn caller_header_can_not_be_forged() {
    let app = Upstream::start(|_, _| ok(""));
    let pair = Pair::start(app.address, MtlsMode::Permissive);
    let forged = "x-forwarded-client-cert: By=x;URI=spiffe://phalanx.local/ns/arena/sa/admin\r\n\
X-Forwarded-Client-Cert: URI=spiffe://phalanx.local/ns/arena/sa/admin\r\n";
    for twin in ["x_forwarded_client_cert", "X_Forwarded-Client_Cert"] {
        let text = format!("GET / HTTP/1.1\r\nhost: battle\r\n{twin}: x\r\n\r\n");
        for address in [pair.called.inbound, pair.caller.outbound] {
            assert_eq!(Client::connect(address).ask(&text).status(), 400);
        }
        let config = Shown::of(&pair.gateway).config();
        let head = format!("GET / HTTP/1.1\r\n{twin}: x");
        let answer = ask(&config, pair.called.inbound, &head).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert_eq!(app.requests(), 0);
    let text = format!("GET / HTTP/1.1\r\nhost: battle\r\n{forged}\r\n");
    let seen = || {
        let headers = app.last().headers;
        let twins = headers
            .into_iter()
            .filter(|(name, _)| name.to_lowercase().replace('_', "-") == "x-forwarded-client-cert");
        twins.collect::<Vec<_>>()
    };
    // In plain text, past the caller's sidecar.
    assert_eq!(
        Client::connect(pair.called.inbound).ask(&text).status(),
        200
    );
    assert_eq!(seen(), []);
    // The application of a caller, through both sidecars.
    assert_eq!(
        Client::connect(pair.caller.outbound).ask(&text).status(),
        200
    );
    let [(_, value)] = &seen()[..] else {
        panic!("one header: {:?}", seen())
    };
    assert!(value.ends_with(&format!("URI={}", id("gateway"))) && !value.contains("admin"));
    // A peer of the mesh that is no sidecar of ours, and says it is somebody else.
    let config = Shown::of(&pair.gateway).config();
    let head = format!("GET / HTTP/1.1\r\n{}", forged.trim_end());
    assert!(
        ask(&config, pair.called.inbound, &head)
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
    let [(_, value)] = &seen()[..] else {
        panic!("one header: {:?}", seen())
    };
    assert!(value.ends_with(&format!("URI={}", id("gateway"))) && !value.contains("admin"));
}

#[test]
fn sessions_are_resumed_and_checked_again() {
    let app = Upstream::start(|_, _| {
        Act::SayAndClose("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".into())
    });
    let pair = Pair::with(
        app.address,
        Protocol::Auto,
        inbound(MtlsMode::Strict, Access::default()),
        // Each request on a connection of its own.
        |setup| {
            setup.with_cluster(|cluster| cluster.connection_pool.max_requests_per_connection = 1)
        },
    );
    for _ in 0..4 {
        assert_eq!(pair.get("/").status(), 200);
    }
    assert_eq!(pair.called.event(Event::SecuredOpened), 4);
    assert_eq!(pair.called.event(Event::SecuredResumed), 3);
    assert!(app.last().header("x-forwarded-client-cert").is_some());
}

#[test]
fn without_credentials_nothing_is_sent_in_plain_text() {
    let seen = Upstream::start(|_, _| ok("plain"));
    for (identity, reason) in [(Some(nobody()), "no_credentials"), (None, "no_credentials")] {
        let gateway = identity.clone().unwrap_or_else(nobody);
        let mut setup = caller(&gateway, &[seen.address], &["battle"], Protocol::Auto);
        setup.identity = identity;
        let sidecar = setup.start();
        let answer = sidecar.get("/");
        assert_eq!((answer.status(), answer.reason()), (503, "connect_failed"));
        assert!(refused(&sidecar, Direction::Outbound, reason) > 0);
    }
    assert_eq!((seen.connections(), seen.requests()), (0, 0));
}

#[test]
fn endpoints_without_mutual_tls_are_called_in_plain_text_and_kept_apart() {
    let (plain, app) = (
        Upstream::start(|_, _| ok("plain")),
        Upstream::start(|_, _| ok("secured")),
    );
    let issuer = issuer();
    let (gateway, battle) = (identity(&issuer, "gateway"), identity(&issuer, "battle"));
    let rules = inbound(MtlsMode::Permissive, Access::default());
    let called = called(&battle, rules)
        .app(8080, app.address, Protocol::Auto)
        .start();
    let addresses = [called.inbound, plain.address];
    let mut setup = caller(&gateway, &addresses, &["battle"], Protocol::Auto);
    setup.clusters[0].1[1].mutual_tls = false;
    let mut sidecar = setup.start();
    let both: std::collections::BTreeSet<String> =
        (0..40).map(|_| sidecar.get("/").text()).collect();
    assert_eq!(both.len(), 2, "{both:?}");
    assert!(plain.last().header("x-forwarded-client-cert").is_none());
    assert!(sidecar.account.secured().open(9).0 > 0);
    // The endpoint takes no mutual TLS any more: its connections serve no longer.
    sidecar.change(|setup| {
        setup.clusters[0].1.remove(1);
        setup.clusters[0].1[0].mutual_tls = false;
    });
    let before = called.event(Event::SecuredOpened);
    for _ in 0..5 {
        assert_eq!(sidecar.get("/").text(), "secured");
        assert!(app.last().header("x-forwarded-client-cert").is_none());
    }
    assert_eq!(called.event(Event::SecuredOpened), before);
    eventually("the secured ones are closed", || {
        called.account.secured().open(0).0 == 0
    });
}

#[test]
fn pooled_connection_serves_nobody_who_expects_somebody_else() {
    let app = Upstream::start(|_, _| ok("in"));
    let mut pair = Pair::start(app.address, MtlsMode::Strict);
    assert_eq!(pair.get("/").status(), 200);
    let expect = |services: &[&str]| {
        let ids = services.iter().map(|service| id(service)).collect();
        move |setup: &mut Setup| setup.clusters[0].0.tls = Some(PeerTls { ids })
    };
    // Nothing else is expected: neither a handshake nor a session is lost.
    pair.caller.change(|setup| {
        setup.clusters[0].0.connection_pool.connect_timeout = Duration::from_millis(900);
    });
    assert_eq!(pair.get("/").status(), 200);
    assert_eq!(pair.called.event(Event::SecuredOpened), 1);
    for strangers in [&["admin"][..], &[]] {
        pair.caller.change(expect(strangers));
        assert_eq!(pair.get("/").reason(), "connect_failed", "{strangers:?}");
    }
    assert_eq!(app.requests(), 2);
    pair.caller.change(expect(&["admin", "battle"]));
    assert_eq!(pair.get("/").status(), 200);
}

#[test]
fn websocket_passes_both_sidecars_over_mutual_tls() {
    let app = Upstream::start(|_, _| Act::Echo);
    let pair = Pair::start(app.address, MtlsMode::Strict);
    let mut client = Client::connect(pair.caller.outbound);
    let answer = client.ask(
        "GET /ws HTTP/1.1\r\nhost: battle\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert_eq!(answer.status(), 101);
    for size in [1, 1000, 300_000] {
        let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let sent = bytes.clone();
        let mut writer = client.stream.try_clone().unwrap();
        let writing = thread::spawn(move || writer.write_all(&sent).unwrap());
        assert_eq!(client.exactly(size).unwrap(), bytes);
        writing.join().unwrap();
    }
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_closed());
    let (count, open) = pair.called.account.secured().open(9);
    assert!(count <= 1, "{open:?}");
}

#[test]
fn large_bodies_pass_both_ways() {
    let app = Upstream::start(|message, _| {
        Act::Say(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}",
            message.body.len(),
            message.text()
        ))
    });
    for protocol in [Protocol::Http1, Protocol::Auto] {
        let rules = inbound(MtlsMode::Strict, Access::default());
        let pair = Pair::with(app.address, protocol, rules, |s| s);
        let body = "0123456789abcdef".repeat(200_000);
        let mut client = Client::connect(pair.caller.outbound);
        for _ in 0..2 {
            let answer = client.post("battle", "/", &body);
            assert_eq!((answer.status(), answer.body.len()), (200, body.len()));
            assert!(answer.body == body.as_bytes());
        }
    }
}

#[test]
fn connection_opens_though_no_request_waits_so_long() {
    let app = Upstream::start(|_, _| ok("there"));
    let issuer = issuer();
    let (gateway, battle) = (identity(&issuer, "gateway"), identity(&issuer, "battle"));
    let called = called(&battle, inbound(MtlsMode::Strict, Access::default()))
        .app(8080, app.address, Protocol::Http1)
        .start();
    let far = late(called.inbound, Duration::from_millis(600));
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let caller = caller(&gateway, &[far], &["battle"], protocol)
            .with_forward(|forward| forward.request_timeout = Some(Duration::from_millis(300)))
            .start();
        assert_eq!(caller.get("/").status(), 504, "{protocol:?}");
        eventually("an answer", || caller.get("/").status() == 200);
    }
}

/// Passes connections on to `address`, each only after a while.
fn late(address: SocketAddr, after: Duration) -> SocketAddr {
    let listener = TcpListener::bind(any_port()).unwrap();
    let far = listener.local_addr().unwrap();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            thread::spawn(move || {
                thread::sleep(after);
                let far = TcpStream::connect(address).unwrap();
                let (mut near_read, mut far_write) =
                    (near.try_clone().unwrap(), far.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut near_read, &mut far_write));
                let _ = std::io::copy(&mut &far, &mut &near);
            });
        }
    });
    far
}

#[test]
fn handshake_that_never_ends_is_ended() {
    let app = Upstream::start(|_, _| ok(""));
    let issuer = issuer();
    let battle = identity(&issuer, "battle");
    let mut setup = called(&battle, inbound(MtlsMode::Permissive, Access::default())).app(
        8080,
        app.address,
        Protocol::Auto,
    );
    setup.deadlines.handshake = Duration::from_millis(200);
    let sidecar = setup.start();
    let mut stream = TcpStream::connect(sidecar.inbound).unwrap();
    stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    is_refused(&sidecar, Direction::Inbound, "deadline", 1);
    assert_eq!(sidecar.event(Event::HandshakeDeadline), 1);
}

#[test]
fn many_streams_share_one_connection() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    type Body = Empty<bytes::Bytes>;
    let app = Upstream::start(|message, _| ok(message.path()));
    let issuer = issuer();
    let (gateway, battle) = (identity(&issuer, "gateway"), identity(&issuer, "battle"));
    // HTTP/2 between the sidecars, HTTP/1 to the application.
    let called = called(&battle, inbound(MtlsMode::Strict, Access::default()))
        .app(8080, app.address, Protocol::Http1)
        .start();
    let sidecar = caller(&gateway, &[called.inbound], &["battle"], Protocol::H2c).start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(sidecar.outbound)
            .await
            .unwrap();
        let (sender, connection) = hyper::client::conn::http2::handshake::<_, _, Body>(
            TokioExecutor::new(),
            TokioIo::new(stream),
        )
        .await
        .unwrap();
        tokio::spawn(connection);
        let mut asked = tokio::task::JoinSet::new();
        for number in 0..300 {
            let (mut sender, seen) = (sender.clone(), seen.clone());
            asked.spawn(async move {
                let request = http::Request::get(format!("http://battle/{number}"));
                sender.ready().await.unwrap();
                let answer = sender.send_request(request.body(Empty::new()).unwrap());
                let answer = answer.await.unwrap();
                assert_eq!(answer.status(), 200);
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, format!("/{number}"));
                seen.lock().unwrap().push(number);
            });
        }
        while let Some(done) = asked.join_next().await {
            done.unwrap();
        }
    });
    assert_eq!(seen.lock().unwrap().len(), 300);
    let (count, open) = called.account.secured().open(9);
    assert_eq!((count, &*open[0].protocol), (1, "phalanx-h2"));
}
