//! HTTP/1.1 through one sidecar: what arrives, what comes back, what is refused.

use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::reason::Reason;
use phalanx_model::resource::*;
use phalanx_proxy::account::Event;
use phalanx_proxy::upstream::Share;

use crate::support::*;

#[test]
fn request_arrives_and_answer_returns() {
    let upstream = Upstream::start(|_, _| ok("hello"));
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    for _ in 0..3 {
        let answer = client.get("battle", "/a/../b?x=1");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"));
    }
    let seen = upstream.last();
    assert_eq!(seen.line, "GET /b?x=1 HTTP/1.1");
    assert_eq!(seen.header("host"), Some("battle"));
    assert_eq!(seen.header("traceparent").unwrap().len(), 55);
    assert_eq!(seen.header("x-request-id").unwrap().len(), 36);
    assert_eq!(upstream.connections(), 1, "the connection is used again");
    assert_eq!(sidecar.sum(|edge| edge.requests()), 3);
    assert_eq!(sidecar.sum(|edge| edge.attempts), 3);
    eventually("nothing is active", || sidecar.sum(|edge| edge.active) == 0);
}

#[test]
fn trace_goes_on_with_a_new_parent() {
    let upstream = Upstream::start(|_, _| ok(""));
    let sidecar = Setup::battle(&[upstream.address]).start();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ask = format!(
        "GET / HTTP/1.1\r\nhost: battle\r\ntraceparent: {parent}\r\ntracestate: a=b\r\nx-request-id: mine\r\n\r\n"
    );
    Client::connect(sidecar.outbound).ask(&ask);
    let seen = upstream.last();
    let sent = seen.header("traceparent").unwrap();
    assert_eq!((&sent[..36], &sent[52..]), (&parent[..36], "-01"));
    assert_ne!(sent, parent);
    assert_eq!(
        (seen.header("tracestate"), seen.header("x-request-id")),
        (Some("a=b"), Some("mine"))
    );
    let broken = "GET / HTTP/1.1\r\nhost: battle\r\ntraceparent: 00-zz\r\ntracestate: a=b\r\n\r\n";
    Client::connect(sidecar.outbound).ask(broken);
    assert_eq!(upstream.last().header("tracestate"), None);
}

#[test]
fn bodies_pass_in_both_framings() {
    let upstream = Upstream::start(|request, _| {
        let text = request.text();
        if request.path() == "/chunked" {
            return Act::Say(format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\n\r\n",
                text.len()
            ));
        }
        ok(&text)
    });
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    let large = "x".repeat(300_000);
    assert_eq!(client.post("battle", "/plain", &large).text(), large);
    assert_eq!(upstream.last().header("content-length"), Some("300000"));
    assert_eq!(client.post("battle", "/chunked", "abc").text(), "abc");
    let chunked = "POST /plain HTTP/1.1\r\nhost: battle\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
    assert_eq!(client.ask(chunked).text(), "abcde");
    assert_eq!(upstream.last().header("content-length"), None);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn head_and_empty_answers_keep_their_headers() {
    let upstream = Upstream::start(|request, _| match request.path() {
        "/204" => Act::Say("HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n".into()),
        _ => Act::Say("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n".into()),
    });
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    client
        .send(b"HEAD /x HTTP/1.1\r\nhost: battle\r\n\r\nGET /204 HTTP/1.1\r\nhost: battle\r\n\r\n");
    let mut raw = String::new();
    while !raw.contains("204") {
        raw.push_str(&String::from_utf8(client.exactly(1).unwrap()).unwrap());
    }
    assert!(raw.contains("content-length: 1234"), "{raw}");
}

#[test]
fn old_callers_are_served_and_closed() {
    let upstream = Upstream::start(|_, _| {
        Act::Say(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(),
        )
    });
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    let answer = client.ask("GET / HTTP/1.0\r\nhost: battle\r\n\r\n");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(client.exactly(3).unwrap(), b"abc");
    assert!(client.is_closed());
    assert_eq!(upstream.last().line, "GET / HTTP/1.1");
}

#[test]
fn inbound_goes_to_the_application_and_is_an_edge() {
    let app = Upstream::start(|_, _| {
        Act::Say("HTTP/1.1 200 OK\r\nx-phalanx-reason: overflow\r\nx-mine: 1\r\ncontent-length: 0\r\n\r\n".into())
    });
    let sidecar = Setup::default()
        .app(8080, app.address, Protocol::Auto)
        .start();
    let mut client = Client::connect(sidecar.inbound);
    let answer = client.ask("GET /p HTTP/1.1\r\nhost: anything:1\r\nx-phalanx-port: 7\r\nx-phalanx-secret: 1\r\nx-forwarded-client-cert: me\r\nx-kept: 1\r\n\r\n");
    assert_eq!(
        (answer.status(), answer.header("x-mine"), answer.reason()),
        (200, Some("1"), "")
    );
    let seen = app.last();
    assert_eq!(
        (seen.header("host"), seen.header("x-kept")),
        (Some("anything:1"), Some("1"))
    );
    assert_eq!(
        (
            seen.header("x-phalanx-port"),
            seen.header("x-phalanx-secret")
        ),
        (None, None)
    );
    assert_eq!(seen.header("x-forwarded-client-cert"), None);
}

#[test]
fn several_applications_are_told_apart_by_port() {
    let (first, second) = (
        Upstream::start(|_, _| ok("first")),
        Upstream::start(|_, _| ok("second")),
    );
    let app = Setup::default()
        .app(8080, first.address, Protocol::Auto)
        .app(80, second.address, Protocol::Auto)
        .start();
    // The caller's sidecar says which port it means, because the endpoint is one of the mesh.
    let mut setup = Setup::battle(&[app.inbound]);
    setup.clusters[0].1[0].instance = "battle-1".into();
    let caller = setup.start();
    assert_eq!(caller.get("/").text(), "second");
    assert_eq!(second.last().header("x-phalanx-port"), None);
    // The Service's port is another than the application's: the endpoint says which.
    let mut setup = Setup::battle(&[app.inbound]);
    setup.clusters[0].1[0].instance = "battle-1".into();
    setup.clusters[0].1[0].target = 8080;
    assert_eq!(setup.start().get("/").text(), "first");
    let answer = Client::connect(app.inbound).get("x", "/");
    assert_eq!(
        (answer.status(), answer.reason()),
        (404, "no_route"),
        "no port asked for, and two to choose from"
    );
}

#[test]
fn dead_application_is_reported_as_such_and_not_by_the_application() {
    let sidecar = Setup::default()
        .app(8080, dead_end(), Protocol::Auto)
        .start();
    let answer = Client::connect(sidecar.inbound).get("x", "/");
    assert_eq!((answer.status(), answer.reason()), (503, "connect_failed"));
}

#[test]
fn one_to_one_for_two_workers() {
    let upstream = Upstream::start(|_, _| ok("x"));
    let sidecar = Setup {
        workers: 2,
        ..Setup::battle(&[upstream.address])
    }
    .start();
    for _ in 0..40 {
        assert_eq!(sidecar.get("/").status(), 200);
    }
    assert_eq!(sidecar.sum(|edge| edge.requests()), 40);
    assert_eq!(sidecar.event(Event::Accepted), 40);
}

#[test]
fn upstream_that_speaks_in_two_ways_is_not_believed() {
    for (answer, status) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
            502,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", 502),
        (
            "HTTP/1.1 200 OK\r\nx y: 1\r\ncontent-length: 0\r\n\r\n",
            502,
        ),
        ("nonsense\r\n\r\n", 502),
        (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            502,
        ),
    ] {
        let upstream = Upstream::start(move |_, _| Act::SayAndClose(answer.into()));
        let sidecar = Setup::battle(&[upstream.address])
            .with_forward(|f| f.retry.attempts = 0)
            .start();
        let got = sidecar.get("/");
        assert_eq!(
            (got.status(), got.reason()),
            (status, "upstream_reset"),
            "{answer:?}"
        );
    }
}

#[test]
fn leftover_bytes_poison_no_later_request() {
    let upstream = Upstream::start(|_, number| {
        match number {
        0 => Act::Say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil".into()),
        _ => ok("good"),
    }
    });
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    assert_eq!(client.get("battle", "/").text(), "ok");
    assert_eq!(client.get("battle", "/").text(), "good");
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn answer_before_the_end_of_the_request_is_passed_on_and_the_connection_is_not_used_again() {
    let early = std::net::TcpListener::bind(any_port()).unwrap();
    let address = early.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in early.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut head = [0; 64];
                let _ = std::io::Read::read(&mut stream, &mut head);
                let _ = std::io::Write::write_all(
                    &mut stream,
                    b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n",
                );
                echo(stream);
            });
        }
    });
    let sidecar = Setup::battle(&[address]).start();
    let mut client = Client::connect(sidecar.outbound);
    client.send(b"POST / HTTP/1.1\r\nhost: battle\r\ncontent-length: 1000\r\n\r\nabc");
    assert_eq!(client.message().unwrap().status(), 413);
    assert_eq!(sidecar.get("/").status(), 413);
    assert_eq!(sidecar.event(Event::PoolReused), 0);
}

#[test]
fn limits_of_a_cluster_answer_overflow() {
    let upstream = Upstream::start(|_, _| Act::Wait(Duration::from_millis(600)));
    let one = |cluster: &mut Cluster| cluster.circuit_breaker.max_requests = 1;
    let sidecar = Setup::battle(&[upstream.address]).with_cluster(one).start();
    let outbound = sidecar.outbound;
    let first = std::thread::spawn(move || Client::connect(outbound).get("battle", "/"));
    eventually("the first is under way", || upstream.requests() == 1);
    let second = sidecar.get("/");
    assert_eq!((second.status(), second.reason()), (503, "overflow"));
    assert_eq!(first.join().unwrap().status(), 200);
    assert_eq!(sidecar.get("/").status(), 200, "the share came back");
    let counted = sidecar.sum(|edge| {
        edge.reasons
            .iter()
            .filter(|(reason, _)| *reason == Reason::Overflow)
            .map(|(_, n)| n)
            .sum()
    });
    assert_eq!(counted, 1);
}

#[test]
fn requests_wait_for_a_connection_within_the_limit() {
    // Not when the sweep comes, which makes room for who waits.
    let upstream = Upstream::start(|_, _| Act::Wait(Duration::from_millis(1_500)));
    let narrow = |cluster: &mut Cluster| {
        cluster.circuit_breaker.max_connections = 1;
        cluster.circuit_breaker.max_pending_requests = 1;
    };
    let sidecar = Setup::battle(&[upstream.address])
        .with_cluster(narrow)
        .start();
    let outbound = sidecar.outbound;
    let ask = move || std::thread::spawn(move || Client::connect(outbound).get("battle", "/"));
    let first = ask();
    eventually("the first is under way", || upstream.requests() == 1);
    let second = ask();
    eventually("the second waits", || {
        sidecar.plan.load().clusters[0]
            .breaker
            .count(Share::Pending)
            == 1
    });
    let third = ask().join().unwrap();
    assert_eq!((third.status(), third.reason()), (503, "overflow"));
    assert_eq!(
        (
            first.join().unwrap().status(),
            second.join().unwrap().status()
        ),
        (200, 200)
    );
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn upstream_connection_ends_after_its_requests() {
    let upstream = Upstream::start(|_, _| ok(""));
    let sidecar = Setup::battle(&[upstream.address])
        .with_cluster(|c| c.connection_pool.max_requests_per_connection = 2)
        .start();
    let mut client = Client::connect(sidecar.outbound);
    for _ in 0..4 {
        client.get("battle", "/");
    }
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn endpoint_that_leaves_loses_its_connections() {
    let (first, second) = (
        Upstream::start(|_, _| ok("first")),
        Upstream::start(|_, _| ok("second")),
    );
    let mut sidecar = Setup::battle(&[first.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    assert_eq!(client.get("battle", "/").text(), "first");
    let next = endpoint(second.address);
    sidecar.change(|setup| setup.clusters[0].1 = vec![next]);
    assert_eq!(client.get("battle", "/").text(), "second");
}
