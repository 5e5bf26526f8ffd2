//! What is asked for, held, reconnected to and told as progress, over delta.

use super::*;

#[test]
fn nothing_is_answered_before_there_is_a_snapshot() {
    let mut session = Session::delta();
    session.on_request(ask(Kind::Cluster, &[])).unwrap();
    assert_eq!(session.poll(0), None);
    session.set_snapshot(snapshot(1, []));
    assert!(session.poll(0).is_some());
}

#[test]
fn the_first_request_of_a_wildcard_is_answered_even_when_empty() {
    let mut delta = Delta::new(snapshot(7, []));
    for kind in [Kind::Cluster, Kind::Listener] {
        delta.send(ask(kind, &[]));
        let response = delta.one();
        assert_eq!(told_one(&response), kind.as_str());
        assert_eq!(response.system_version_info, "7");
        delta.ack(&response);
    }
    delta.send(ask(Kind::Endpoints, &["a"]));
    assert!(delta.batch().is_empty());
}

#[test]
fn empty_names_at_first_and_a_star_both_mean_everything() {
    for names in [&[][..], &["*"]] {
        let mut delta = Delta::new(snapshot(1, services(&["a", "b"])));
        delta.send(ask(Kind::Cluster, names));
        assert_eq!(delta.settle(), ["CDS +a +b"]);
        assert_eq!(delta.rounds(snapshot(2, services(&["b"]))), ["CDS -a"]);
    }
}

#[test]
fn names_limit_a_subscription_and_empty_ones_add_nothing() {
    let mut delta = Delta::new(snapshot(1, services(&["a", "b", "c"])));
    delta.send(ask(Kind::Cluster, &["a"]));
    assert_eq!(delta.settle(), ["CDS +a"]);
    delta.send(ask(Kind::Cluster, &[]));
    assert!(delta.settle().is_empty());
    delta.send(ask(Kind::Cluster, &["b"]));
    assert_eq!(delta.settle(), ["CDS +b"]);
}

#[test]
fn unsubscribed_names_are_forgotten_and_told_again_when_asked_for() {
    let mut delta = Delta::new(snapshot(1, services(&["a", "b"])));
    delta.send(ask(Kind::Endpoints, &["a", "b"]));
    delta.settle();
    delta.send(leave(Kind::Endpoints, &["a"]));
    assert!(delta.settle().is_empty());
    let mut next = services(&["a", "b"]);
    next.push(endpoints("a", "2"));
    assert!(delta.rounds(snapshot(2, next)).is_empty());
    delta.send(ask(Kind::Endpoints, &["a"]));
    assert_eq!(delta.settle(), ["EDS +a"]);
}

#[test]
fn unsubscribing_the_star_leaves_the_names() {
    let mut delta = Delta::new(snapshot(1, services(&["a", "b"])));
    delta.send(ask(Kind::Cluster, &["*", "a"]));
    delta.settle();
    delta.send(leave(Kind::Cluster, &["*"]));
    let next = [cluster("a", "2"), cluster("b", "2"), cluster("c", "1")];
    assert_eq!(delta.rounds(snapshot(2, next)), ["CDS +a"]);
}

#[test]
fn a_name_subscribed_again_is_sent_again() {
    let mut delta = Delta::new(snapshot(1, services(&["a", "b"])));
    delta.send(ask(Kind::Endpoints, &["a", "b"]));
    delta.settle();
    delta.send(ask(Kind::Endpoints, &["a"]));
    assert_eq!(delta.settle(), ["EDS +a"]);
}

#[test]
fn a_name_left_while_the_star_stays_is_sent_again() {
    let mut delta = Delta::new(snapshot(1, services(&["a", "b"])));
    delta.send(ask(Kind::Cluster, &["*", "a"]));
    delta.settle();
    delta.send(leave(Kind::Cluster, &["a"]));
    assert_eq!(delta.settle(), ["CDS +a"]);
}

#[test]
fn a_name_unsubscribed_while_under_way_does_not_count_as_held() {
    let mut delta = Delta::new(snapshot(1, services(&["a"])));
    delta.send(ask(Kind::Endpoints, &["a"]));
    let response = delta.one();
    delta.send(leave(Kind::Endpoints, &["a"]));
    delta.send(ask(Kind::Endpoints, &["a"]));
    delta.ack(&response);
    assert_eq!(delta.settle(), ["EDS +a"]);
}

#[test]
fn one_response_per_kind_is_outstanding_and_the_newest_snapshot_follows_its_ack() {
    let mut delta = Delta::new(snapshot(1, [cluster("a", "1")]));
    delta.send(ask(Kind::Cluster, &[]));
    let first = delta.one();
    assert!(delta.push(snapshot(2, [cluster("a", "2")])).is_empty());
    assert!(delta.push(snapshot(3, [cluster("a", "3")])).is_empty());
    delta.ack(&first);
    let second = delta.one();
    assert_eq!(second.resources[0].version, cluster("a", "3").version);
    assert!(second.nonce.parse::<u64>().unwrap() > first.nonce.parse().unwrap());
}

#[test]
fn stale_nonces_are_no_answers_but_their_subscriptions_count() {
    let mut delta = Delta::new(snapshot(1, services(&["a", "b"])));
    delta.send(ask(Kind::Endpoints, &["a"]));
    delta.settle();
    let response = delta.push(snapshot(
        2,
        [cluster("a", "1"), endpoints("a", "2"), endpoints("b", "1")],
    ));
    for nonce in ["0", "1", "999", "x"] {
        delta.send(DeltaDiscoveryRequest {
            response_nonce: nonce.into(),
            error_detail: error("a is bad"),
            ..ask(Kind::Endpoints, &["b"])
        });
        assert!(delta.batch().is_empty());
    }
    assert!(delta.session.progress().nacks.is_empty());
    delta.ack_all(&response);
    assert_eq!(delta.settle(), ["EDS +b"]);
}

#[test]
fn a_name_that_never_existed_is_met_with_silence() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a"]);
    delta.send(ask(Kind::Endpoints, &["ghost"]));
    delta.send(ask(Kind::Routes, &["ghost"]));
    delta.send(ask(Kind::Cluster, &["ghost"]));
    assert!(delta.batch().is_empty());
    assert!(delta.rounds(mesh(2, &["a"], &["a"])).is_empty());
    assert_eq!(delta.acked(), 2);
}

#[test]
fn endpoints_that_are_missing_while_their_cluster_stays_are_kept() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a"]);
    let without = snapshot(2, [cluster("a", "1"), listener("1"), routes(&["a"])]);
    assert!(delta.rounds(without).is_empty());
    delta.now_ms += 10 * PATIENCE_MS;
    assert!(delta.batch().is_empty());
    assert_eq!(delta.acked(), 2);
    // The same ones coming back are no news either.
    assert!(delta.rounds(mesh(3, &["a"], &["a"])).is_empty());
}

#[test]
fn a_route_table_that_is_missing_while_a_listener_names_it_is_kept() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a"]);
    let mut without = services(&["a"]);
    without.push(listener("1"));
    assert!(delta.rounds(snapshot(2, without)).is_empty());
}

#[test]
fn a_cluster_that_is_missing_while_a_route_names_it_is_kept() {
    let mut delta = Delta::settled(mesh(1, &["a", "b"], &["a", "b"]), &["a", "b"]);
    assert!(delta.rounds(mesh(2, &["a"], &["a", "b"])).is_empty());
    delta.now_ms += 10 * PATIENCE_MS;
    assert!(delta.batch().is_empty());
}

#[test]
fn what_a_reconnecting_client_holds_is_not_sent_again() {
    let snapshot = mesh(5, &["a", "b"], &["a"]);
    let mut delta = Delta::new(snapshot);
    delta.send(claim(
        Kind::Cluster,
        &["*"],
        &[&cluster("a", "1"), &cluster("b", "0")],
    ));
    delta.send(claim(Kind::Endpoints, &["a", "b"], &[&endpoints("a", "1")]));
    delta.send(claim(Kind::Listener, &["*"], &[&listener("1")]));
    delta.send(claim(Kind::Routes, &["outbound"], &[&routes(&["a"])]));
    assert_eq!(delta.settle(), ["CDS +b | EDS +b | LDS"]);
    assert_eq!(delta.acked(), 5);
}

#[test]
fn what_a_reconnecting_client_holds_in_vain_is_removed_after_its_routes_moved() {
    let mut delta = Delta::new(mesh(5, &["a"], &["a"]));
    delta.send(claim(
        Kind::Cluster,
        &[],
        &[&cluster("a", "1"), &cluster("old", "1")],
    ));
    delta.send(claim(
        Kind::Endpoints,
        &["a", "old"],
        &[&endpoints("a", "1"), &endpoints("old", "1")],
    ));
    delta.send(claim(Kind::Listener, &[], &[&listener("1")]));
    delta.send(claim(
        Kind::Routes,
        &["outbound"],
        &[&routes(&["a", "old"])],
    ));
    // What the old routes name isn't known any more, so every removal waits for the new ones.
    assert_eq!(
        delta.settle(),
        ["LDS | RDS +outbound", "CDS -old", "EDS -old"]
    );
    assert_eq!(delta.acked(), 5);
}

#[test]
fn what_a_reconnecting_client_holds_is_not_removed_before_it_spoke_of_its_routes() {
    let mut delta = Delta::new(mesh(5, &["a"], &["a"]));
    let clusters = [cluster("a", "1"), cluster("old", "1")];
    delta.send(claim(Kind::Cluster, &[], &clusters.each_ref()));
    assert!(delta.batch().is_empty());
    delta.send(claim(Kind::Listener, &[], &[&listener("1")]));
    assert_eq!(delta.settle(), ["LDS"]);
    delta.send(claim(Kind::Routes, &["outbound"], &[&routes(&["old"])]));
    assert_eq!(delta.settle(), ["RDS +outbound", "CDS -old"]);
    // One that never does has as long as its connection may stand without a sign of life.
    let mut delta = Delta::new(mesh(5, &["a"], &["a"]));
    delta.send(claim(Kind::Cluster, &[], &clusters.each_ref()));
    assert!(delta.batch().is_empty());
    delta.now_ms = WARMING_MS - 1;
    assert!(delta.batch().is_empty());
    delta.now_ms = WARMING_MS;
    assert_eq!(delta.settle(), ["CDS -old"]);
}

#[test]
fn a_changed_cluster_brings_its_endpoints_along() {
    let mut delta = Delta::settled(mesh(1, &["a", "b"], &["a"]), &["a", "b"]);
    let mut next = services(&["a", "b"]);
    next.extend([cluster("a", "2"), listener("1"), routes(&["a"])]);
    let next = snapshot(2, next);
    assert_eq!(delta.rounds(next), ["CDS +a | EDS +a"]);
}

#[test]
fn a_changed_cluster_brings_its_endpoints_along_after_a_reconnect() {
    let mut delta = Delta::new(mesh(2, &["a"], &["a"]));
    delta.send(claim(Kind::Cluster, &[], &[&cluster("a", "0")]));
    assert_eq!(told(&delta.batch()), "CDS +a");
    delta.send(claim(Kind::Endpoints, &["a"], &[&endpoints("a", "1")]));
    assert_eq!(told(&delta.batch()), "EDS +a");
}

#[test]
fn endpoints_under_way_follow_their_changed_cluster_once_acknowledged() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a"]);
    let moved = |revision, body| {
        let all = [
            cluster("a", body),
            endpoints("a", "2"),
            listener("1"),
            routes(&["a"]),
        ];
        snapshot(revision, all)
    };
    let before = delta.push(moved(2, "1"));
    assert_eq!(told(&before), "EDS +a");
    assert_eq!(told(&delta.push(moved(3, "2"))), "CDS +a");
    delta.ack_all(&before);
    assert_eq!(told(&delta.batch()), "EDS +a");
}

#[test]
fn acked_is_the_newest_revision_that_is_wholly_there() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a"]);
    assert_eq!(delta.acked(), 1);
    let mut next = services(&["a"]);
    next.extend([endpoints("a", "2"), listener("2"), routes(&["a"])]);
    let batch = delta.push(snapshot(2, next));
    assert_eq!(told(&batch), "EDS +a | LDS +outbound");
    let progress = delta.session.progress();
    assert_eq!(
        (progress.target, progress.acked, progress.pending.len()),
        (2, 1, 2)
    );
    assert_eq!(progress.pending[0].unacked_since_ms, Some(0));
    delta.ack(&batch[0]);
    assert_eq!(delta.acked(), 1);
    delta.ack(&batch[1]);
    assert_eq!(delta.acked(), 2);
    assert_eq!(delta.session.progress().pending, []);
}

#[test]
fn acked_does_not_wait_for_a_target_that_keeps_moving() {
    let mut delta = Delta::new(snapshot(1, [endpoints("a", "1")]));
    delta.send(ask(Kind::Endpoints, &["a"]));
    for revision in 2..20 {
        let under_way = delta.batch();
        delta.push(snapshot(revision, [endpoints("a", &revision.to_string())]));
        delta.ack_all(&under_way);
        assert_eq!(delta.acked(), revision - 1);
    }
}

#[test]
fn acked_falls_behind_for_new_names_until_they_are_acknowledged() {
    let mut delta = Delta::settled(mesh(9, &["a", "b"], &["a"]), &["a"]);
    assert_eq!(delta.acked(), 9);
    delta.send(ask(Kind::Endpoints, &["b"]));
    assert!(delta.acked() < 9);
    delta.settle();
    assert_eq!(delta.acked(), 9);
}

#[test]
fn a_revision_without_news_is_reached_without_a_word() {
    let first = mesh(1, &["a"], &["a"]);
    let mut delta = Delta::settled(Arc::clone(&first), &["a"]);
    assert!(delta.push(Arc::new(first.at(2))).is_empty());
    assert_eq!(delta.acked(), 2);
    assert!(delta.push(mesh(3, &["a"], &["a"])).is_empty());
    assert_eq!(delta.acked(), 3);
}

#[test]
fn nothing_is_compared_when_nothing_changed() {
    let first = mesh(1, &["a"], &["a"]);
    let mut delta = Delta::settled(Arc::clone(&first), &["a"]);
    assert!(delta.session.next_ready(0).is_none());
    delta.session.set_snapshot(Arc::new(first.at(2)));
    assert!(delta.session.next_ready(u64::MAX).is_none());
}
