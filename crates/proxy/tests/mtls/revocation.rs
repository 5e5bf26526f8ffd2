//! A peer that is revoked while connections are open: they end, at both ends, and none takes their place.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::*;
use phalanx_proxy::account::Event;

use crate::pki::*;
use crate::support::*;

#[test]
fn open_connections_of_a_revoked_caller_are_closed_and_new_ones_refused() {
    let app = Upstream::start(|_, _| ok("in"));
    let pair = Pair::start(app.address, MtlsMode::Strict);
    // One connection idles, one is in the middle of a request, one stranger to it all.
    assert_eq!(pair.get("/").status(), 200);
    let mut half = Client::connect(pair.caller.outbound);
    half.send(b"POST / HTTP/1.1\r\nhost: battle\r\ncontent-length: 100\r\n\r\nhalf");
    let other = identity(&pair.issuer, "stranger");
    let config = Shown::of(&other).config();
    let mut stranger = dial(&config, pair.called.inbound);
    let ask = b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n";
    stranger.write_all(ask).unwrap();
    assert!(stranger.read(&mut [0; 1000]).unwrap() > 0);
    eventually("three connections", || {
        pair.called.account.secured().open(0).0 >= 3 || pair.called.event(Event::SecuredOpened) >= 2
    });
    let open = pair.called.account.secured().open(0).0;

    revoke(&pair.battle, &pair.issuer, &[serial(&pair.gateway)], 1);
    eventually("they are closed", || {
        pair.called.account.secured().open(0).0 == 1
    });
    assert_eq!(pair.called.event(Event::SecuredRevoked), open as u64 - 1);
    assert!(half.message().is_none_or(|answer| answer.status() == 503));
    stranger.write_all(ask).unwrap();
    assert!(
        stranger.read(&mut [0; 1000]).unwrap() > 0,
        "nobody else is touched"
    );

    let before = app.requests();
    let answer = pair.get("/");
    assert_eq!((answer.status(), answer.reason()), (503, "connect_failed"));
    assert!(refused(&pair.called, Direction::Inbound, "revoked") > 0);
    assert_eq!(app.requests(), before);
}

#[test]
fn session_of_a_revoked_caller_is_not_resumed() {
    let app = Upstream::start(|_, _| ok("in"));
    let pair = Pair::start(app.address, MtlsMode::Strict);
    let config = Shown::of(&pair.gateway).config();
    let get = || ask(&config, pair.called.inbound, "GET / HTTP/1.1");
    assert!(get().unwrap().starts_with("HTTP/1.1 200"));
    assert!(get().unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(
        pair.called.event(Event::SecuredResumed),
        1,
        "a session was there"
    );
    revoke(&pair.battle, &pair.issuer, &[serial(&pair.gateway)], 1);
    for _ in 0..2 {
        assert!(get().is_err());
    }
    assert_eq!(pair.called.event(Event::SecuredResumed), 1);
    eventually("both are counted", || {
        refused(&pair.called, Direction::Inbound, "revoked") >= 2
    });
}

#[test]
fn pooled_connections_to_a_revoked_server_are_closed() {
    let app = Upstream::start(|_, _| ok("in"));
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let rules = inbound(MtlsMode::Strict, Access::default());
        let issuer = issuer();
        let (gateway, battle) = (identity(&issuer, "gateway"), identity(&issuer, "battle"));
        let called = called(&battle, rules)
            .app(8080, app.address, Protocol::Http1)
            .start();
        let sidecar = caller(&gateway, &[called.inbound], &["battle"], protocol).start();
        assert_eq!(sidecar.get("/").status(), 200);
        assert_eq!(sidecar.account.secured().open(0).0, 1);
        revoke(&gateway, &issuer, &[serial(&battle)], 1);
        eventually("the pool is empty", || {
            sidecar.account.secured().open(0).0 == 0
        });
        eventually("the other end knows", || {
            called.account.secured().open(0).0 == 0
        });
        assert_eq!(sidecar.get("/").reason(), "connect_failed", "{protocol:?}");
        assert!(refused(&sidecar, Direction::Outbound, "revoked") > 1);
    }
}

#[test]
fn tunnels_of_a_revoked_peer_are_cut() {
    for revoked_end in [Direction::Inbound, Direction::Outbound] {
        let rules = inbound(MtlsMode::Strict, Access::default());
        let pair = Pair::with(echo_server(), Protocol::Tcp, rules, |mut setup| {
            setup.tcp.push(cluster_name("battle"));
            setup
        });
        let mut stream = TcpStream::connect(pair.caller.tcp[0]).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.write_all(b"ping").unwrap();
        let mut got = [0; 4];
        stream.read_exact(&mut got).unwrap();
        match revoked_end {
            Direction::Inbound => revoke(&pair.battle, &pair.issuer, &[serial(&pair.gateway)], 1),
            Direction::Outbound => revoke(&pair.gateway, &pair.issuer, &[serial(&pair.battle)], 1),
        }
        let ended = stream.read(&mut got);
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        if let Err(error) = ended {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it idles on");
        }
    }
}
