//! Make before break, across kinds, over delta.

use super::*;

#[test]
fn adding_moving_and_removing_take_three_acknowledged_steps() {
    let mut delta = Delta::settled(mesh(1, &["old"], &["old"]), &["old", "new"]);
    assert_eq!(
        delta.rounds(mesh(2, &["new"], &["new"])),
        [
            "CDS +new | EDS +new",
            "RDS +outbound",
            "CDS -old",
            "EDS -old"
        ]
    );
    assert_eq!(delta.acked(), 2);
}

#[test]
fn each_step_waits_for_the_ack_of_the_one_before() {
    let mut delta = Delta::settled(mesh(1, &["old"], &["old"]), &["old", "new"]);
    let add = delta.push(mesh(2, &["new"], &["new"]));
    assert!(delta.batch().is_empty());
    delta.ack(&add[0]);
    assert!(delta.batch().is_empty(), "endpoints are not there yet");
    delta.ack(&add[1]);
    let shift = delta.one();
    assert_eq!(delta.acked(), 1);
    delta.ack(&shift);
    assert_eq!(told_one(&delta.one()), "CDS -old");
}

#[test]
fn routes_wait_for_the_endpoints_that_the_client_has_yet_to_ask_for() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a"]);
    let add = delta.push(mesh(2, &["a", "b"], &["a", "b"]));
    assert_eq!(told(&add), "CDS +b");
    delta.ack_all(&add);
    assert!(delta.batch().is_empty());
    delta.send(ask(Kind::Endpoints, &["b"]));
    assert_eq!(delta.settle(), ["EDS +b", "RDS +outbound"]);
}

#[test]
fn routes_wait_for_a_changed_cluster_they_name_and_for_no_other() {
    let mut delta = Delta::settled(mesh(1, &["a", "b"], &["a"]), &["a", "b"]);
    let with = |revision: u64, changed: &str, more: Encoded| {
        let mut all = services(&["a", "b"]);
        all.extend([cluster(changed, &revision.to_string()), listener("1"), more]);
        snapshot(revision, all)
    };
    let table = |body| resource(Kind::Routes, "outbound", body, &["a"]);
    assert_eq!(
        delta.rounds(with(2, "a", table("x"))),
        ["CDS +a | EDS +a", "RDS +outbound"]
    );
    let other = delta.rounds(with(3, "b", table("y")));
    assert_eq!(other, ["CDS +a +b | EDS +a +b", "RDS +outbound"]);
    let alone = delta.rounds(with(4, "b", table("z")));
    assert_eq!(alone, ["CDS +b | EDS +b | RDS +outbound"]);
}

#[test]
fn listeners_wait_for_their_clusters_too() {
    let tcp = |cluster: &str| resource(Kind::Listener, "tcp", cluster, &[cluster]);
    let world = |revision, name: &str| {
        let mut all = services(&[name]);
        all.push(tcp(name));
        snapshot(revision, all)
    };
    let mut delta = Delta::settled(world(1, "old"), &["old", "new"]);
    assert_eq!(
        delta.rounds(world(2, "new")),
        ["CDS +new | EDS +new", "LDS +tcp", "CDS -old", "EDS -old"]
    );
}

#[test]
fn the_first_answer_of_a_kind_waits_rather_than_claim_there_is_nothing() {
    let tcp = resource(Kind::Listener, "tcp", "1", &["a"]);
    let mut delta = Delta::new(snapshot(1, [cluster("a", "1"), tcp]));
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Listener, &["*"]));
    assert_eq!(delta.settle(), ["CDS +a", "LDS +tcp"]);
}

#[test]
fn a_client_that_asks_for_no_clusters_does_not_wait_for_them() {
    let mut delta = Delta::new(mesh(1, &["a"], &["a"]));
    delta.send(ask(Kind::Routes, &["outbound"]));
    assert_eq!(delta.settle(), ["RDS +outbound"]);
    // Nor one that asks for others: proxyless gRPC learns from the routes which clusters to ask for.
    let mut delta = Delta::new(mesh(1, &["a", "b"], &["a", "b"]));
    delta.send(ask(Kind::Cluster, &["a"]));
    delta.send(ask(Kind::Routes, &["outbound"]));
    assert_eq!(delta.settle(), ["CDS +a", "RDS +outbound"]);
}

#[test]
fn removals_do_not_wait_for_routes_that_nobody_asked_for() {
    let mut delta = Delta::new(mesh(1, &["a", "b"], &["a", "b"]));
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.settle();
    assert_eq!(delta.rounds(mesh(2, &["a"], &["a"])), ["CDS -b"]);
}

#[test]
fn a_newer_snapshot_replaces_the_one_half_delivered() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a", "b", "c"]);
    let add = delta.push(mesh(2, &["b"], &["b"]));
    assert_eq!(told(&add), "CDS +b | EDS +b");
    assert!(delta.push(mesh(3, &["c"], &["c"])).is_empty());
    delta.ack_all(&add);
    // `b` came and goes without any route ever naming it; `a` goes only when the routes have moved to `c`.
    assert_eq!(
        delta.settle(),
        [
            "CDS +c -b | EDS +c",
            "EDS -b | RDS +outbound",
            "CDS -a",
            "EDS -a"
        ]
    );
    assert_eq!(delta.acked(), 3);
}

#[test]
fn a_cluster_wanted_again_while_its_removal_is_under_way_comes_back_before_its_route() {
    let mut delta = Delta::settled(mesh(1, &["a", "b"], &["a"]), &["a", "b"]);
    let gone = delta.push(mesh(2, &["a"], &["a"]));
    assert_eq!(told(&gone), "CDS -b");
    assert!(delta.push(mesh(3, &["a", "b"], &["a", "b"])).is_empty());
    delta.ack_all(&gone);
    assert_eq!(delta.settle(), ["CDS +b | EDS +b", "RDS +outbound"]);
}

#[test]
fn routes_do_not_wait_forever_for_clusters_that_keep_changing() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a"]);
    let next = |revision: u64| {
        let table = resource(Kind::Routes, "outbound", "new", &["a"]);
        let all = [
            cluster("a", &revision.to_string()),
            endpoints("a", "1"),
            listener("1"),
            table,
        ];
        snapshot(revision, all)
    };
    let mut routed = None;
    let mut under_way = delta.push(next(2));
    for revision in 3..30 {
        delta.now_ms += PATIENCE_MS / 10;
        let acks = std::mem::take(&mut under_way);
        under_way = delta.push(next(revision));
        delta.ack_all(&acks);
        under_way.extend(delta.batch());
        if told(&under_way).contains("RDS") {
            routed.get_or_insert(delta.now_ms);
        }
    }
    assert_eq!(routed, Some(PATIENCE_MS));
}

#[test]
fn a_client_that_does_not_answer_holds_nothing_back_for_longer_than_patience() {
    let mut delta = Delta::settled(mesh(1, &["old"], &["old"]), &["old", "new"]);
    assert_eq!(
        told(&delta.push(mesh(2, &["new"], &["new"]))),
        "CDS +new | EDS +new"
    );
    assert_eq!(delta.session.deadline_ms(), Some(PATIENCE_MS));
    delta.now_ms = PATIENCE_MS - 1;
    assert!(delta.batch().is_empty());
    delta.now_ms = PATIENCE_MS;
    assert_eq!(told(&delta.batch()), "RDS +outbound");
    assert_eq!(delta.session.deadline_ms(), None);
    assert_eq!(delta.acked(), 1);
}

#[test]
fn a_route_waits_for_as_long_as_its_cluster_can_not_even_be_sent() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a", "b", "c"]);
    let clusters = delta.push(mesh(2, &["a", "b"], &["a"]));
    assert_eq!(told(&clusters), "CDS +b | EDS +b");
    // Behind the answer that is owed.
    assert_eq!(told(&delta.push(mesh(3, &["a", "b", "c"], &["c"]))), "");
    delta.now_ms = 100 * PATIENCE_MS;
    assert_eq!(told(&delta.batch()), "");
    delta.ack_all(&clusters);
    assert_eq!(delta.settle(), ["CDS +c | EDS +c", "RDS +outbound"]);
}

#[test]
fn a_route_waits_for_as_long_as_the_removal_of_its_cluster_is_unanswered() {
    let mut delta = Delta::settled(mesh(1, &["a", "b"], &["a"]), &["a", "b"]);
    let removal = delta.push(mesh(2, &["a"], &["a"]));
    assert!(told(&removal).contains("CDS -b"));
    // It comes back before the client said that it is gone.
    let back = delta.push(mesh(3, &["a", "b"], &["a", "b"]));
    delta.now_ms = 100 * PATIENCE_MS;
    assert!(!told(&delta.batch()).contains("RDS") && !told(&back).contains("RDS"));
    delta.ack_all(&removal);
    delta.ack_all(&back);
    let rounds = delta.settle();
    let position = |what: &str| rounds.iter().position(|round| round.contains(what));
    assert!(position("CDS +b") < position("RDS +outbound"), "{rounds:?}");
    assert!(position("CDS +b").is_some(), "{rounds:?}");
}

#[test]
fn removals_wait_for_as_long_as_a_route_that_is_under_way_is_unanswered() {
    let mut delta = Delta::settled(mesh(1, &["a", "b"], &["a", "b"]), &["a", "b"]);
    let routes = delta.push(mesh(2, &["a"], &["a"]));
    assert_eq!(told(&routes), "RDS +outbound");
    delta.now_ms = 100 * PATIENCE_MS;
    assert_eq!(told(&delta.batch()), "");
    delta.ack_all(&routes);
    assert_eq!(delta.settle(), ["CDS -b", "EDS -b"]);
}

#[test]
fn a_route_waits_with_patience_for_endpoints_that_do_not_exist_yet() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a", "b"]);
    let mut next = services(&["a"]);
    next.extend([cluster("b", "1"), listener("1"), routes(&["a", "b"])]);
    assert_eq!(delta.rounds(snapshot(2, next)), ["CDS +b"]);
    assert!(delta.batch().is_empty());
    assert_eq!(
        delta.rounds(mesh(3, &["a", "b"], &["a", "b"])),
        ["EDS +b", "RDS +outbound"]
    );
}

#[test]
fn the_first_routes_of_a_client_do_not_wait_for_endpoints_that_do_not_exist() {
    let mut delta = Delta::new(snapshot(
        1,
        [cluster("a", "1"), listener("1"), routes(&["a"])],
    ));
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Endpoints, &["a"]));
    delta.send(ask(Kind::Routes, &["outbound"]));
    assert_eq!(delta.settle(), ["CDS +a", "RDS +outbound"]);
}

#[test]
fn a_cluster_that_comes_back_while_it_is_under_way_still_gets_its_endpoints() {
    let mut delta = Delta::settled(mesh(1, &["a"], &[]), &["a"]);
    let changed = snapshot(2, [cluster("a", "2"), endpoints("a", "1")]);
    delta.session.set_snapshot(Arc::clone(&changed));
    let first = delta
        .session
        .poll(0)
        .and_then(Response::into_delta)
        .unwrap();
    assert_eq!(told_one(&first), "CDS +a");
    // Gone and back before its endpoints went out: the client is warming it all the same.
    delta.session.set_snapshot(snapshot(3, []));
    delta
        .session
        .set_snapshot(snapshot(4, changed_again(&changed)));
    assert_eq!(told(&delta.batch()), "EDS +a | LDS -outbound");
}

fn changed_again(snapshot: &Snapshot) -> Vec<Encoded> {
    let kinds = [Kind::Cluster, Kind::Endpoints].into_iter();
    let all = kinds.flat_map(|kind| snapshot.iter(kind));
    all.map(|resource| (**resource).clone()).collect()
}
