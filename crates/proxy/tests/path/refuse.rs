//! What is refused at the door, and that nothing of it reaches the upstream.

use phalanx_relay::Limits;

use crate::support::*;

fn refused(head: &str) -> (u16, String, bool) {
    let upstream = Upstream::start(|_, _| ok(""));
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    let answer = client.ask(head);
    assert_eq!(upstream.requests(), 0, "{head:?} reached the upstream");
    (
        answer.status(),
        answer.reason().to_owned(),
        client.is_closed(),
    )
}

#[test]
fn doubtful_requests_are_answered_400_and_the_connection_closed() {
    for head in [
        "GET / HTTP/1.1\r\nhost: battle\r\nhost: battle\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: user@battle\r\n\r\n",
        "GET http://other/ HTTP/1.1\r\nhost: battle\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: battle\r\nx_phalanx_port: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: battle\r\nconnection: upgrade\r\nupgrade: tls/1.3\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: battle\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nhost: battle\r\ncontent-length: 3, 3\r\n\r\nabc",
    ] {
        let (status, reason, closed) = refused(head);
        // Some of it hyper refuses by itself, without our word for it.
        assert!(
            status == 400 && (reason == "bad_request" || reason.is_empty()) && closed,
            "{head:?}: {status} {reason}"
        );
    }
}

#[test]
fn bad_paths_are_answered_400_by_name() {
    for path in ["/a%2fb", "/a%5Cb", "/%00", "/../x"] {
        let (status, reason, closed) =
            refused(&format!("GET {path} HTTP/1.1\r\nhost: battle\r\n\r\n"));
        assert_eq!(
            (status, reason.as_str(), closed),
            (400, "bad_path", true),
            "{path}"
        );
    }
}

#[test]
fn connect_is_refused() {
    let (status, reason, closed) = refused("CONNECT battle:80 HTTP/1.1\r\nhost: battle:80\r\n\r\n");
    assert!(closed && reason == "bad_request", "{status} {reason}");
}

#[test]
fn two_lengths_leave_nothing_behind_for_a_second_reading() {
    let upstream = Upstream::start(|_, _| ok("one"));
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    client.send(
        b"POST /a HTTP/1.1\r\nhost: battle\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: battle\r\n\r\n",
    );
    client.message();
    assert_eq!(
        client.message().map(|answer| answer.status()),
        None,
        "the connection ends after the first answer"
    );
    assert!(
        upstream
            .seen
            .lock()
            .unwrap()
            .iter()
            .all(|request| request.path() != "/smuggled")
    );
}

#[test]
fn large_heads_are_answered_431() {
    let (status, _, _) = refused(&format!(
        "GET / HTTP/1.1\r\nhost: battle\r\n{}\r\n",
        "x: y\r\n".repeat(101)
    ));
    assert_eq!(status, 431);
    let upstream = Upstream::start(|_, _| ok(""));
    let limits = Limits {
        head_bytes: 16 << 10,
        ..Limits::default()
    };
    let sidecar = Setup {
        limits,
        ..Setup::battle(&[upstream.address])
    }
    .start();
    let answer = Client::connect(sidecar.outbound).ask(&format!(
        "GET / HTTP/1.1\r\nhost: battle\r\nx: {}\r\n\r\n",
        "y".repeat(17 << 10)
    ));
    assert_eq!(answer.status(), 431);
    assert_eq!(upstream.requests(), 0);
}

#[test]
fn connections_over_the_limit_are_closed_at_once() {
    let upstream = Upstream::start(|_, _| ok(""));
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let sidecar = Setup {
        limits,
        ..Setup::battle(&[upstream.address])
    }
    .start();
    let mut first = Client::connect(sidecar.outbound);
    let mut second = Client::connect(sidecar.outbound);
    assert_eq!(
        (
            first.get("battle", "/").status(),
            second.get("battle", "/").status()
        ),
        (200, 200)
    );
    assert!(Client::connect(sidecar.outbound).is_closed());
    drop(first);
    eventually("a place became free", || {
        let mut client = Client::connect(sidecar.outbound);
        client.send(b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n");
        client.message().is_some()
    });
}
