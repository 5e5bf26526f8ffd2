//! A client that trusts the order of the stream, and asks on demand.

use super::*;

fn table(name: &str, refs: &[&str]) -> Encoded {
    resource(Kind::Routes, name, &refs.join(","), refs)
}

/// Everything that follows from these tables, each over the clusters given.
fn closure(revision: u64, tables: &[(&str, &[&str])]) -> Arc<Snapshot> {
    let mut all = vec![listener("1")];
    for (name, refs) in tables {
        all.push(table(name, refs));
        all.extend(services(refs));
    }
    snapshot(revision, all)
}

/// Connected, with the listener and nothing else.
fn idle() -> Delta {
    let mut delta = Delta::new(closure(1, &[]));
    delta.session.trust_order();
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Endpoints, &["*"]));
    delta.send(ask(Kind::Listener, &["*"]));
    delta.send(ask(Kind::Routes, &[]));
    assert_eq!(delta.settle(), ["CDS | EDS | LDS +outbound"]);
    delta
}

/// Asks for a table, whereupon the snapshot has all that it names.
fn want(delta: &mut Delta, name: &str, snapshot: Arc<Snapshot>) -> Vec<DeltaDiscoveryResponse> {
    delta.send(ask(Kind::Routes, &[name]));
    delta.push(snapshot)
}

#[test]
fn first_use_is_one_round_trip() {
    let mut delta = idle();
    let answer = want(&mut delta, "t/a", closure(1, &[("t/a", &["x", "y"])]));
    assert_eq!(told(&answer), "CDS +x +y | EDS +x +y | RDS +t/a");
    delta.ack_all(&answer);
    assert_eq!(told(&delta.batch()), "");
    let shared = closure(1, &[("t/a", &["x", "y"]), ("t/b", &["x"])]);
    let answer = want(&mut delta, "t/b", shared);
    assert_eq!(told(&answer), "RDS +t/b");
}

#[test]
fn what_does_not_exist_is_an_answer_and_comes_later_by_itself() {
    let mut delta = idle();
    let answer = want(&mut delta, "t/a", closure(1, &[("t/a", &[])]));
    assert_eq!(told(&answer), "RDS +t/a");
    delta.ack_all(&answer);
    let born = delta.rounds(closure(2, &[("t/a", &["x"])]));
    assert_eq!(born, ["CDS +x | EDS +x | RDS +t/a"]);
}

#[test]
fn what_is_left_goes_without_its_tables_being_waited_for() {
    let mut delta = idle();
    let two: [(&str, &[&str]); 2] = [("t/a", &["x"]), ("t/b", &["y"])];
    delta.send(ask(Kind::Routes, &["t/a", "t/b"]));
    delta.rounds(closure(1, &two));
    delta.send(leave(Kind::Routes, &["t/b"]));
    let gone = delta.rounds(closure(1, &two[..1]));
    assert_eq!(gone, ["CDS -y", "EDS -y"]);
}

#[test]
fn a_cluster_that_waits_for_its_turn_is_waited_for() {
    let mut delta = idle();
    let first = want(&mut delta, "t/a", closure(1, &[("t/a", &["x"])]));
    // Nothing is acknowledged yet, so no other cluster may go out, nor what names it.
    let both = closure(1, &[("t/a", &["x"]), ("t/b", &["y"])]);
    assert_eq!(told(&want(&mut delta, "t/b", both)), "");
    delta.ack_all(&first);
    assert_eq!(delta.settle(), ["CDS +y | EDS +y | RDS +t/b"]);
}

#[test]
fn a_moved_route_is_told_in_order_and_what_it_left_goes_when_the_move_is_acknowledged() {
    let mut delta = idle();
    delta.send(ask(Kind::Routes, &["t/a"]));
    delta.rounds(closure(1, &[("t/a", &["x"])]));
    let moved = delta.rounds(closure(2, &[("t/a", &["y"])]));
    assert_eq!(moved, ["CDS +y | EDS +y | RDS +t/a", "CDS -x", "EDS -x"]);
    assert_eq!(delta.acked(), 2);
}

#[test]
fn asking_for_more_does_not_take_back_a_revision() {
    let mut delta = idle();
    assert_eq!(delta.acked(), 1);
    let answer = want(&mut delta, "t/a", closure(1, &[("t/a", &["x"])]));
    assert_eq!(delta.acked(), 1);
    delta.ack_all(&answer);
    // A revision that concerns nothing of it is reached at once.
    let other = delta.session.target.as_ref().map(|target| target.at(7));
    assert_eq!(told(&delta.push(Arc::new(other.unwrap()))), "");
    assert_eq!(delta.acked(), 7);
}

#[test]
fn a_client_that_comes_back_keeps_what_it_holds_until_all_is_told() {
    let full = closure(1, &[("t/a", &["x"])]);
    let held = |kind| {
        full.iter(kind)
            .map(|r| Encoded::clone(r))
            .collect::<Vec<_>>()
    };
    let mut delta = Delta::new(closure(1, &[]));
    delta.session.trust_order();
    for kind in [Kind::Cluster, Kind::Endpoints, Kind::Listener] {
        let held = held(kind);
        delta.send(claim(kind, &["*"], &held.iter().collect::<Vec<_>>()));
        let batch = delta.batch();
        assert!(!told(&batch).contains('-'), "{kind}");
        delta.ack_all(&batch);
    }
    let tables = held(Kind::Routes);
    delta.send(claim(
        Kind::Routes,
        &["t/a"],
        &tables.iter().collect::<Vec<_>>(),
    ));
    let rest = delta.rounds(full.clone());
    assert!(
        rest.iter().all(|round| !round.contains(['+', '-'])),
        "{rest:?}"
    );
    assert_eq!(delta.acked(), 1);
}

#[test]
fn a_stream_of_others_has_neither_the_order_nor_the_wildcard() {
    let mut delta = Delta::new(closure(1, &[("t/a", &["x"])]));
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Endpoints, &["*"]));
    delta.send(ask(Kind::Routes, &["t/a"]));
    assert_eq!(told(&delta.batch()), "CDS +x");
}

#[test]
fn a_table_that_was_asked_for_later_and_is_refused_takes_back_that_the_revision_was_reached() {
    let mut delta = Delta::new(mesh(2, &["a"], &["a"]));
    delta.session.trust_order();
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Endpoints, &["*"]));
    delta.send(ask(Kind::Routes, &["other"]));
    delta.settle();
    assert_eq!(delta.acked(), 2);
    delta.send(ask(Kind::Routes, &["outbound"]));
    assert_eq!(delta.acked(), 2);
    let table = delta.one();
    delta.nack(&table, "no such filter");
    assert!(delta.batch().is_empty());
    assert_eq!(delta.acked(), 1);
    delta.send(leave(Kind::Routes, &["outbound"]));
    assert!(delta.batch().is_empty());
    assert_eq!(delta.acked(), 2);
}
