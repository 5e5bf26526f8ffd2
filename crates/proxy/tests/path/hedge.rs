//! Slow endpoints: which requests are sent once more, whose answer is taken, and what becomes of the others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use phalanx_model::resource::limit::Priority;
use phalanx_model::resource::*;
use phalanx_proxy::account::Event;

use crate::support::*;

/// Longer than anybody here waits.
const LONG: Duration = Duration::from_secs(20);

fn hedging() -> Hedging {
    Hedging {
        delay: Duration::from_millis(20),
        extra_max: 1,
        grpc: vec!["/arena.Board/Top".into()],
    }
}

fn hedged(addresses: &[SocketAddr]) -> Setup {
    Setup::battle(addresses).with_forward(|forward| forward.hedging = Some(hedging()))
}

/// Two endpoints, of which the first that is asked says nothing; the other one says `quick`.
fn first_is_slow() -> [Upstream; 2] {
    let asked = Arc::new(AtomicUsize::new(0));
    [(); 2].map(|()| {
        let asked = asked.clone();
        Upstream::start(move |_, _| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Act::Wait(LONG),
            _ => ok("quick"),
        })
    })
}

fn addresses(upstreams: &[Upstream]) -> Vec<SocketAddr> {
    upstreams.iter().map(|upstream| upstream.address).collect()
}

#[test]
fn another_endpoint_answers_for_the_slow_one_which_is_not_blamed() {
    let upstreams = first_is_slow();
    let sidecar = hedged(&addresses(&upstreams)).start();
    assert_eq!(sidecar.get("/").text(), "quick");
    assert_eq!(sidecar.event(Event::Hedged), 1);
    assert_eq!(sidecar.event(Event::HedgeWon), 1);
    assert_eq!(upstreams.each_ref().map(Upstream::requests), [1, 1]);
    assert_eq!(sidecar.sum(|edge| edge.attempts), 2);
    assert_eq!(sidecar.sum(|edge| edge.requests()), 1);
    assert_eq!(sidecar.sum(|edge| edge.ejections), 0);
    assert_eq!(sidecar.sum(|edge| edge.retries), 0);
    // Nothing is left under way.
    eventually("the slow attempt to be over", || {
        sidecar.sum(|edge| edge.active) == 0
    });
}

#[test]
fn body_goes_along_whole() {
    let upstreams = first_is_slow();
    let sidecar = hedged(&addresses(&upstreams)).start();
    let put = "PUT / HTTP/1.1\r\nhost: battle\r\ncontent-length: 5\r\n\r\nhello";
    let answer = Client::connect(sidecar.outbound).ask(put);
    assert_eq!(answer.text(), "quick");
    for upstream in &upstreams {
        assert_eq!(upstream.last().text(), "hello");
    }
}

#[test]
fn what_may_not_be_sent_twice_is_not() {
    let slow = Duration::from_millis(200);
    let upstreams = [(); 2].map(|()| Upstream::start(move |_, _| Act::Wait(slow)));
    let sidecar = hedged(&addresses(&upstreams)).start();
    let mut client = Client::connect(sidecar.outbound);
    assert_eq!(client.post("battle", "/", "x").status(), 200);
    assert_eq!(sidecar.event(Event::Hedged), 0);
    assert_eq!(sidecar.sum(|edge| edge.attempts), 1);
    // With one endpoint there is nowhere else to go.
    let sidecar = hedged(&addresses(&upstreams)[..1]).start();
    assert_eq!(sidecar.get("/").status(), 200);
    assert_eq!(sidecar.event(Event::Hedged), 0);
}

#[test]
fn grpc_methods_are_hedged_where_the_policy_names_them() {
    for (path, hedges) in [("/arena.Board/Top", 1), ("/arena.Board/Set", 0)] {
        let slow = Duration::from_millis(200);
        let upstreams = [(); 2].map(|()| Upstream::start(move |_, _| Act::Wait(slow)));
        let sidecar = hedged(&addresses(&upstreams)).start();
        let call = format!(
            "POST {path} HTTP/1.1\r\nhost: battle\r\ncontent-type: application/grpc\r\ncontent-length: 1\r\n\r\nx"
        );
        let answer = Client::connect(sidecar.outbound).ask(&call);
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(sidecar.event(Event::Hedged), hedges, "{path}");
    }
}

#[test]
fn spent_retry_budget_leaves_the_first_attempt_alone() {
    let slow = Duration::from_millis(200);
    let upstreams = [(); 2].map(|()| Upstream::start(move |_, _| Act::Wait(slow)));
    let none = RetryBudget {
        percent: 0,
        min_concurrency: 0,
    };
    let sidecar = hedged(&addresses(&upstreams))
        .with_cluster(|cluster| cluster.retry_budget = none)
        .start();
    assert_eq!(sidecar.get("/").status(), 200);
    assert_eq!(sidecar.event(Event::Hedged), 0);
    assert_eq!(sidecar.event(Event::HedgeBudget), 1);
}

#[test]
fn failure_does_not_win_while_another_attempt_is_awaited() {
    let asked = Arc::new(AtomicUsize::new(0));
    let upstreams = [(); 2].map(|()| {
        let asked = asked.clone();
        Upstream::start(move |_, _| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Act::Wait(Duration::from_millis(300)),
            _ => status(503),
        })
    });
    let sidecar = hedged(&addresses(&upstreams)).start();
    assert_eq!(sidecar.get("/").status(), 200);
    assert_eq!(
        (sidecar.event(Event::Hedged), sidecar.event(Event::HedgeWon)),
        (1, 0)
    );
}

#[test]
fn priority_of_a_rule_is_told_unless_the_application_tells_its_own() {
    let upstream = Upstream::start(|_, _| ok(""));
    let sidecar = Setup::battle(&[upstream.address])
        .with_forward(|forward| forward.priority = Some(Priority::Low))
        .start();
    sidecar.get("/");
    assert_eq!(upstream.last().header("x-phalanx-priority"), Some("low"));
    let own = "GET / HTTP/1.1\r\nhost: battle\r\nx-phalanx-priority: high\r\n\r\n";
    Client::connect(sidecar.outbound).ask(own);
    assert_eq!(upstream.last().header("x-phalanx-priority"), Some("high"));
}
