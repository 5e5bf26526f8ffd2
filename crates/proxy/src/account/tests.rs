use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;

use super::*;

fn key(version: &str) -> EdgeKey {
    EdgeKey {
        direction: Direction::Outbound,
        cluster: None,
        version: version.into(),
        traffic: Traffic::Http,
        security: Default::default(),
        in_lane: false,
    }
}

fn ending(status: u16, duration_us: u64) -> Ending {
    Ending {
        status,
        grpc_status: None,
        reason: None,
        duration_us,
    }
}

#[test]
fn cells_of_all_cores_are_summed() {
    let account = Account::new(2);
    let edge = account.edge(key("v1"));
    for core in [0, 1, 1] {
        edge.cell(core).attempt(false);
        edge.cell(core).leave();
        edge.cell(core).end(&ending(200, 700));
    }
    edge.cell(0).end(&Ending {
        reason: Some(Reason::Timeout),
        ..ending(504, 1_000_000)
    });
    edge.cell(1).attempt(true);
    let [totals] = &account.collect()[..] else {
        panic!("one edge")
    };
    assert_eq!(totals.codes, [(200, 3), (504, 1)]);
    assert_eq!(totals.reasons, [(Reason::Timeout, 1)]);
    assert_eq!(
        (totals.active, totals.attempts, totals.failures()),
        (1, 4, 1)
    );
    assert_eq!(totals.durations.at_most(1_000), 3);
    assert_eq!(totals.durations.at_most(1_000_000), 4);
}

#[test]
fn edge_that_comes_back_goes_on_counting() {
    let account = Account::new(1);
    for _ in 0..2 {
        account.edge(key("v1")).cell(0).attempt(true);
    }
    assert_eq!(account.collect()[0].retries, 2);
}

#[test]
fn unused_edges_are_not_listed() {
    let account = Account::new(1);
    let _edge = account.edge(key("v1"));
    assert!(account.collect().is_empty());
}

#[test]
fn histogram_holds_every_bound_of_istio() {
    let istio_ms = [
        0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5,
        6e5, 1.8e6, 3.6e6,
    ];
    for bound in istio_ms {
        assert!(BOUNDS_US.contains(&((bound * 1000.0) as u64)), "{bound}");
    }
    assert!(BOUNDS_US.is_sorted());
}

#[test]
fn events_are_counted_per_core_and_summed() {
    let account = Account::new(2);
    account.count(0, Event::Accepted);
    account.count(1, Event::Accepted);
    account.count(9, Event::Accepted);
    assert!(account.events().contains(&(Event::Accepted, 2)));
}
