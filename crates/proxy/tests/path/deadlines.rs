//! Every deadline ends what it is for.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use phalanx_proxy::account::Event;
use phalanx_relay::Deadlines;

use crate::support::*;

/// What has to be done within it is done on a busy machine, too.
const SHORT: Duration = Duration::from_millis(500);

fn slow() -> Upstream {
    Upstream::start(|_, number| {
        if number == 0 {
            Act::Wait(Duration::from_secs(3))
        } else {
            ok("quick")
        }
    })
}

#[test]
fn route_timeout_answers_504() {
    let upstream = slow();
    let sidecar = Setup::battle(&[upstream.address])
        .with_forward(|f| f.request_timeout = Some(SHORT))
        .start();
    let answer = sidecar.get("/");
    assert_eq!((answer.status(), answer.reason()), (504, "timeout"));
    assert_eq!(
        (upstream.requests(), sidecar.event(Event::RouteDeadline)),
        (1, 1)
    );
}

#[test]
fn default_route_deadline_holds_where_nothing_is_said() {
    let upstream = slow();
    let deadlines = Deadlines {
        route: SHORT,
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    }
    .start();
    assert_eq!(sidecar.get("/").status(), 504);
}

#[test]
fn attempt_timeout_is_repeated() {
    let upstream = slow();
    let sidecar = Setup::battle(&[upstream.address])
        .with_forward(|f| f.attempt_timeout = Some(SHORT))
        .start();
    assert_eq!(sidecar.get("/").text(), "quick");
    assert_eq!(
        (upstream.requests(), sidecar.event(Event::AttemptDeadline)),
        (2, 1)
    );
}

#[test]
fn request_timeout_cuts_an_answer_that_does_not_end() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut client = Client::over(stream);
                client.message();
                client.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc");
                thread::sleep(Duration::from_secs(5));
            });
        }
    });
    let sidecar = Setup::battle(&[address])
        .with_forward(|f| f.request_timeout = Some(SHORT))
        .start();
    let mut client = Client::connect(sidecar.outbound);
    client.send(b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n");
    assert_eq!(
        client.message().map(|answer| answer.status()),
        None,
        "cut before its end"
    );
}

#[test]
fn slow_head_is_not_waited_for() {
    let deadlines = Deadlines {
        head: SHORT,
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[dead_end()])
    }
    .start();
    let mut client = Client::connect(sidecar.outbound);
    let start = Instant::now();
    client.send(b"GET / HTTP/1.1\r\nhos");
    assert!(client.is_closed());
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(sidecar.event(Event::HeadDeadline), 1);
}

#[test]
fn head_deadline_holds_for_the_second_request_too() {
    let upstream = Upstream::start(|_, _| ok(""));
    let deadlines = Deadlines {
        head: SHORT,
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    }
    .start();
    let mut client = Client::connect(sidecar.outbound);
    assert_eq!(client.get("battle", "/").status(), 200);
    for byte in b"GET / HTTP/1.1\r\nhost: battle\r\nx-slow: 1234567890" {
        if std::io::Write::write_all(&mut client.stream, &[*byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(client.is_closed());
    assert_eq!(sidecar.event(Event::HeadDeadline), 1);
}

#[test]
fn idle_connections_are_closed() {
    let upstream = Upstream::start(|_, _| ok(""));
    let deadlines = Deadlines {
        idle: SHORT,
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    }
    .start();
    let mut fresh = Client::connect(sidecar.outbound);
    let mut used = Client::connect(sidecar.outbound);
    assert_eq!(used.get("battle", "/").status(), 200);
    assert!(used.is_closed() && fresh.is_closed());
    assert_eq!(sidecar.event(Event::IdleDeadline), 2);
}

#[test]
fn body_of_a_few_bytes_a_second_ends() {
    let upstream = Upstream::start(|_, _| ok(""));
    let deadlines = Deadlines {
        body: SHORT,
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    }
    .start();
    let mut client = Client::connect(sidecar.outbound);
    client.send(b"POST / HTTP/1.1\r\nhost: battle\r\ncontent-length: 1000\r\n\r\nabc");
    let answer = client.message().unwrap();
    assert_eq!((answer.status(), answer.reason()), (408, "timeout"));
    assert_eq!(sidecar.event(Event::BodyDeadline), 1);
}

#[test]
fn slow_body_above_the_rate_is_taken() {
    let upstream = Upstream::start(|request, _| ok(&request.text()));
    let deadlines = Deadlines {
        body: SHORT,
        body_rate: 100,
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    }
    .start();
    let mut client = Client::connect(sidecar.outbound);
    client.send(b"POST / HTTP/1.1\r\nhost: battle\r\ncontent-length: 200\r\n\r\n");
    for _ in 0..10 {
        client.send(&[b'x'; 20]);
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(client.message().unwrap().body.len(), 200);
}

#[test]
fn caller_that_reads_nothing_is_dropped() {
    let upstream = Upstream::start(|_, _| ok(&"x".repeat(20_000_000)));
    let deadlines = Deadlines {
        stalled_write: Duration::from_millis(400),
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    }
    .start();
    let mut client = Client::connect(sidecar.outbound);
    client.send(b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n");
    eventually("the connection is given up", || {
        sidecar.event(Event::WriteDeadline) == 1
    });
    eventually("the request ended", || sidecar.sum(|edge| edge.active) == 0);
}

#[test]
fn caller_that_leaves_takes_its_request_with_it() {
    let upstream = slow();
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    client.send(b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n");
    eventually("the request is under way", || upstream.requests() == 1);
    drop(client);
    eventually("the request ended", || {
        sidecar.sum(|edge| edge.active) == 0 && sidecar.event(Event::DownstreamAborted) == 1
    });
    // It waited for an answer in vain: no failure that anybody told, and no success.
    eventually("it is counted", || sidecar.sum(|edge| edge.requests()) == 1);
    assert_eq!(sidecar.sum(|edge| edge.failures()), 0);
    assert_eq!(sidecar.sum(|edge| edge.abandoned), 1);
}

#[test]
fn connect_timeout_counts_as_a_failed_connection() {
    // A full backlog: nobody accepts, and the kernel drops what comes after.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&any_port().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _taken: Vec<_> = (0..4)
        .filter_map(|_| std::net::TcpStream::connect_timeout(&address, SHORT).ok())
        .collect();
    let sidecar = Setup::battle(&[address])
        .with_cluster(|cluster| cluster.connection_pool.connect_timeout = SHORT)
        .with_forward(|forward| forward.retry.attempts = 0)
        .start();
    let answer = sidecar.get("/");
    assert_eq!((answer.status(), answer.reason()), (503, "connect_failed"));
}

#[test]
fn half_a_preface_is_not_waited_for() {
    let deadlines = Deadlines {
        handshake: SHORT,
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[dead_end()])
    }
    .start();
    let mut client = Client::connect(sidecar.outbound);
    client.send(b"PR");
    assert!(client.is_closed());
    assert_eq!(sidecar.event(Event::HandshakeDeadline), 1);
}

#[test]
fn body_that_nobody_reads_yet_is_not_late() {
    let busy = Upstream::start(|_, number| {
        if number == 0 {
            Act::Wait(3 * SHORT)
        } else {
            ok("at last")
        }
    });
    let mut setup = Setup::battle(&[busy.address])
        .with_cluster(|cluster| cluster.circuit_breaker.max_connections = 1);
    setup.deadlines.body = SHORT;
    let sidecar = setup.start();
    let mut first = Client::connect(sidecar.outbound);
    first.send(b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n");
    eventually("the first", || busy.requests() == 1);
    let answer = Client::connect(sidecar.outbound).post("battle", "/", "x");
    assert_eq!((answer.status(), &*answer.text()), (200, "at last"));
    assert_eq!(sidecar.event(Event::BodyDeadline), 0);
}
