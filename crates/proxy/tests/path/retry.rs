//! Misbehaving upstreams: what is tried again, what is not, who is ejected.

use std::net::SocketAddr;
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::resource::*;
use phalanx_proxy::account::Event;
use phalanx_relay::Deadlines;

use crate::support::*;

fn codes(answers: &[Answer]) -> Vec<u16> {
    answers.iter().map(Answer::status).collect()
}

fn get_many(address: SocketAddr, count: usize) -> Vec<Answer> {
    let mut client = Client::connect(address);
    (0..count).map(|_| client.get("battle", "/")).collect()
}

#[test]
fn refused_endpoint_is_ejected_at_once_and_nobody_notices() {
    let upstream = Upstream::start(|_, _| ok(""));
    let sidecar = Setup::battle(&[dead_end(), upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    for _ in 0..30 {
        assert_eq!(
            client.post("battle", "/", "x").status(),
            200,
            "never sent, so even a POST is repeated"
        );
    }
    assert_eq!(sidecar.sum(|edge| edge.connect_failures), 1);
    assert_eq!(sidecar.sum(|edge| edge.ejections), 1);
    assert_eq!(sidecar.sum(|edge| edge.retries), 1);
}

#[test]
fn connection_failure_without_another_endpoint_says_so() {
    let sidecar = Setup::battle(&[dead_end()]).start();
    let answer = sidecar.get("/");
    assert_eq!((answer.status(), answer.reason()), (503, "connect_failed"));
    assert_eq!(sidecar.sum(|edge| edge.attempts), 3);
}

#[test]
fn reset_is_repeated_for_idempotent_methods_only() {
    let resets = || {
        Upstream::start(|_, number| {
            if number == 0 {
                Act::Reset
            } else {
                ok("second")
            }
        })
    };
    let upstream = resets();
    let sidecar = Setup::battle(&[upstream.address]).start();
    assert_eq!(sidecar.get("/").text(), "second");
    let upstream = resets();
    let sidecar = Setup::battle(&[upstream.address]).start();
    let answer = Client::connect(sidecar.outbound).post("battle", "/", "x");
    assert_eq!((answer.status(), answer.reason()), (503, "upstream_reset"));
    assert_eq!(upstream.requests(), 1);
}

#[test]
fn gateway_errors_are_repeated_and_the_last_answer_passes() {
    let upstream = Upstream::start(|_, number| if number < 2 { status(503) } else { ok("") });
    let sidecar = Setup::battle(&[upstream.address]).start();
    assert_eq!(sidecar.get("/").status(), 200);
    assert_eq!(
        (upstream.requests(), sidecar.sum(|edge| edge.retries)),
        (3, 2)
    );
    let upstream = Upstream::start(|_, _| {
        Act::Say("HTTP/1.1 503 No\r\nx-mine: 1\r\ncontent-length: 3\r\n\r\nno!".into())
    });
    let sidecar = Setup::battle(&[upstream.address]).start();
    let answer = sidecar.get("/");
    assert_eq!(
        (
            answer.status(),
            answer.header("x-mine"),
            answer.text().as_str()
        ),
        (503, Some("1"), "no!")
    );
    assert_eq!(upstream.requests(), 3);
    assert_eq!(sidecar.sum(|edge| edge.requests()), 1);
}

#[test]
fn server_errors_are_repeated_only_where_a_document_says_so() {
    let upstream = Upstream::start(|_, number| if number == 0 { status(500) } else { ok("") });
    let sidecar = Setup::battle(&[upstream.address]).start();
    assert_eq!(sidecar.get("/").status(), 500);
    let upstream = Upstream::start(|_, number| if number == 0 { status(500) } else { ok("") });
    let sidecar = Setup::battle(&[upstream.address])
        .with_forward(|f| f.retry.codes = vec![500])
        .start();
    assert_eq!(
        Client::connect(sidecar.outbound)
            .post("battle", "/", "body")
            .status(),
        200
    );
    assert_eq!(
        upstream.last().text(),
        "body",
        "the body was kept and sent again"
    );
}

#[test]
fn body_too_large_to_keep_is_not_repeated() {
    let upstream = Upstream::start(|_, _| status(503));
    let sidecar = Setup::battle(&[upstream.address])
        .with_forward(|f| f.retry.codes = vec![503])
        .start();
    let answer = Client::connect(sidecar.outbound).post("battle", "/", &"x".repeat(200_000));
    assert_eq!((answer.status(), upstream.requests()), (503, 1));
    assert_eq!(sidecar.event(Event::RetryUnreplayable), 1);
}

#[test]
fn retries_can_be_switched_off() {
    let upstream = Upstream::start(|_, _| status(503));
    let sidecar = Setup::battle(&[upstream.address])
        .with_forward(|f| f.retry.attempts = 0)
        .start();
    assert_eq!((sidecar.get("/").status(), upstream.requests()), (503, 1));
}

#[test]
fn another_endpoint_is_tried_before_the_same() {
    let (bad, good) = (
        Upstream::start(|_, _| status(503)),
        Upstream::start(|_, _| ok("good")),
    );
    let keep = |cluster: &mut Cluster| cluster.outlier_detection.consecutive_gateway = 0;
    let keep_all = |cluster: &mut Cluster| {
        keep(cluster);
        cluster.outlier_detection.consecutive_5xx = 0;
    };
    let sidecar = Setup::battle(&[bad.address, good.address])
        .with_cluster(keep_all)
        .start();
    assert!(
        get_many(sidecar.outbound, 20)
            .iter()
            .all(|answer| answer.text() == "good")
    );
}

#[test]
fn endpoint_of_errors_is_ejected_and_comes_back() {
    let (bad, good) = (
        Upstream::start(|_, number| {
            if number < 5 {
                status(500)
            } else {
                ok("healed")
            }
        }),
        Upstream::start(|_, _| ok("good")),
    );
    let quick = |cluster: &mut Cluster| {
        cluster.load_balancer = LoadBalancer::RoundRobin;
        cluster.outlier_detection.base_ejection = Duration::from_millis(300);
    };
    let sidecar = Setup::battle(&[bad.address, good.address])
        .with_cluster(quick)
        .start();
    let answers = get_many(sidecar.outbound, 40);
    assert_eq!(
        codes(&answers).iter().filter(|code| **code == 500).count(),
        5
    );
    assert_eq!(sidecar.sum(|edge| edge.ejections), 1);
    eventually("the endpoint is used again", || {
        sidecar.get("/").text() == "healed"
    });
}

#[test]
fn word_of_the_peers_sidecar_counts_as_a_refused_connection() {
    let dead = Setup::default()
        .app(8080, dead_end(), Protocol::Auto)
        .start();
    let alive_app = Upstream::start(|_, _| ok("alive"));
    let alive = Setup::default()
        .app(8080, alive_app.address, Protocol::Auto)
        .start();
    let caller = Setup::battle(&[dead.inbound, alive.inbound])
        .meshed()
        .start();
    let mut client = Client::connect(caller.outbound);
    for _ in 0..20 {
        assert_eq!(client.post("battle", "/", "x").text(), "alive");
    }
    assert_eq!(caller.sum(|edge| edge.ejections), 1);
}

#[test]
fn application_cannot_speak_for_its_sidecar() {
    let liar = Upstream::start(|_, _| {
        Act::Say(
            "HTTP/1.1 503 No\r\nx-phalanx-reason: connect_failed\r\ncontent-length: 0\r\n\r\n"
                .into(),
        )
    });
    let sidecar = Setup::default()
        .app(8080, liar.address, Protocol::Auto)
        .start();
    // Neither behind one, nor where there is none.
    for (requests, caller) in [
        (1, Setup::battle(&[sidecar.inbound]).meshed()),
        (2, Setup::battle(&[liar.address])),
    ] {
        let answer = Client::connect(caller.start().outbound).post("battle", "/", "x");
        assert_eq!((answer.status(), liar.requests()), (503, requests));
    }
}

#[test]
fn stale_connection_costs_nobody_a_request() {
    let upstream = Upstream::start(|_, _| {
        Act::SayAndClose("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".into())
    });
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    for number in 0..20 {
        let answer = if number % 2 == 0 {
            client.get("battle", "/")
        } else {
            client.post("battle", "/", "x")
        };
        assert_eq!(answer.status(), 200);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(sidecar.sum(|edge| edge.ejections), 0);
}

#[test]
fn retry_budget_bounds_a_storm() {
    let upstream = Upstream::start(|_, _| {
        std::thread::sleep(Duration::from_millis(20));
        status(503)
    });
    let sidecar = Setup::battle(&[upstream.address])
        .with_cluster(|cluster| {
            cluster.retry_budget = RetryBudget {
                percent: 0,
                min_concurrency: 1,
            }
        })
        .with_forward(|forward| forward.retry.backoff = Duration::from_millis(1))
        .start();
    let outbound = sidecar.outbound;
    let askers: Vec<_> = (0..20)
        .map(|_| std::thread::spawn(move || get_many(outbound, 3)))
        .collect();
    let answers: Vec<Answer> = askers
        .into_iter()
        .flat_map(|asker| asker.join().unwrap())
        .collect();
    assert!(
        answers
            .iter()
            .all(|answer| answer.status() == 503 && answer.reason().is_empty()),
        "the backend's own word"
    );
    assert!(sidecar.event(Event::RetryBudget) > 0);
    assert!(
        sidecar.sum(|edge| edge.retries) < 60,
        "fewer than one retry per request"
    );
}

#[test]
fn backoff_is_a_minimum() {
    let upstream = Upstream::start(|_, number| if number == 0 { status(503) } else { ok("") });
    let sidecar = Setup::battle(&[upstream.address])
        .with_forward(|f| f.retry.backoff = Duration::from_millis(150))
        .start();
    let start = std::time::Instant::now();
    assert_eq!(sidecar.get("/").status(), 200);
    assert!(start.elapsed() >= Duration::from_millis(150));
}

#[test]
fn deadline_holds_for_the_attempt_after_a_backoff() {
    let upstream = Upstream::start(|_, number| match number {
        0 => status(503),
        _ => Act::Wait(Duration::from_secs(20)),
    });
    let deadlines = Deadlines {
        route: Duration::from_millis(800),
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    }
    .start();
    let answer = sidecar.get("/");
    assert_eq!((answer.status(), answer.reason()), (504, "timeout"));
    assert_eq!(upstream.requests(), 2);
}
