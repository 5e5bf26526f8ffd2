//! The same rules over state of the world, and what is different there.

use super::*;

#[test]
fn clusters_and_listeners_are_told_in_full_endpoints_and_routes_as_asked() {
    let mut sotw = Sotw::new(mesh(1, &["a", "b"], &["a"]));
    sotw.ask(Kind::Cluster, &[], "");
    sotw.ask(Kind::Endpoints, &["b", "ghost"], "");
    assert_eq!(sotw.settle(&["b", "ghost"]), ["CDS a b | EDS b"]);
    let next = snapshot(2, services(&["b", "c"]));
    assert_eq!(sotw.rounds(next, &["b", "ghost"]), ["CDS b c"]);
}

#[test]
fn version_info_is_a_hash_over_the_content() {
    let first = |revision, body| {
        let mut sotw = Sotw::new(snapshot(revision, [cluster("a", body)]));
        sotw.ask(Kind::Cluster, &[], "");
        sotw.one()
    };
    let one = first(1, "1");
    assert_eq!(one.version_info, first(2, "1").version_info);
    assert_ne!(one.version_info, first(1, "2").version_info);
    assert_eq!(one.version_info.len(), 16);
}

#[test]
fn the_first_request_of_a_wildcard_is_answered_even_when_empty() {
    let mut sotw = Sotw::new(snapshot(1, []));
    sotw.ask(Kind::Cluster, &[], "");
    sotw.ask(Kind::Listener, &[], "");
    sotw.ask(Kind::Routes, &["r"], "");
    assert_eq!(sotw.settle(&[]), ["CDS | LDS"]);
}

#[test]
fn an_empty_nonce_is_not_a_new_stream() {
    let mut sotw = Sotw::new(snapshot(1, services(&["a", "b"])));
    sotw.ask(Kind::Endpoints, &["a"], "");
    let first = sotw.one();
    sotw.ask(Kind::Endpoints, &["a"], "");
    sotw.ask(Kind::Endpoints, &["a", "b"], "");
    assert!(sotw.batch().is_empty());
    sotw.ask(Kind::Endpoints, &["a", "b"], &first.nonce);
    assert_eq!(sotw.settle(&["a", "b"]), ["EDS a b"]);
}

#[test]
fn stale_requests_are_ignored_as_a_whole() {
    let mut sotw = Sotw::new(snapshot(1, services(&["a", "b"])));
    sotw.ask(Kind::Endpoints, &["a"], "");
    let first = sotw.one();
    sotw.ack(&first, &["a"]);
    sotw.session
        .set_snapshot(snapshot(2, [endpoints("a", "2"), endpoints("b", "1")]));
    let second = sotw.one();
    sotw.nack(&first, &["a", "b"], "a: bad");
    assert!(sotw.session.progress().nacks.is_empty() && sotw.batch().is_empty());
    sotw.ack(&second, &["a"]);
    assert_eq!(sotw.session.progress().acked, 2);
    // A change of names carries the nonce that was answered already.
    sotw.ack(&second, &["a", "b"]);
    assert_eq!(sotw.settle(&["a", "b"]), ["EDS a b"]);
}

#[test]
fn no_names_after_names_mean_none() {
    let mut sotw = Sotw::new(snapshot(1, services(&["a", "b"])));
    sotw.ask(Kind::Cluster, &["a"], "");
    let first = sotw.one();
    assert_eq!(whole_one(&first), "CDS a");
    sotw.ask(Kind::Cluster, &[], &first.nonce);
    assert!(sotw.batch().is_empty());
    sotw.session.set_snapshot(snapshot(2, [cluster("a", "2")]));
    assert!(sotw.batch().is_empty());
}

#[test]
fn adding_moving_and_removing_take_three_acknowledged_steps() {
    let names = ["old", "new"];
    let mut sotw = Sotw::settled(mesh(1, &["old"], &["old"]), &names);
    assert_eq!(
        sotw.rounds(mesh(2, &["new"], &["new"]), &names),
        ["CDS new old | EDS new old", "RDS outbound", "CDS new"]
    );
    assert_eq!(sotw.session.progress().acked, 2);
}

#[test]
fn a_changed_cluster_brings_its_endpoints_along_and_the_duplicate_request_adds_nothing() {
    let names = ["a", "b"];
    let mut sotw = Sotw::settled(mesh(1, &names, &["a"]), &names);
    let held = sotw.session.nonce.to_string();
    let mut next = services(&names);
    next.extend([cluster("a", "2"), listener("1"), routes(&["a"])]);
    sotw.session.set_snapshot(snapshot(2, next));
    let batch = sotw.batch();
    assert_eq!(whole(&batch), "CDS a b | EDS a b");
    // Envoy's request for endpoints on the changed cluster, sent before it saw ours: same names, an older nonce.
    sotw.ask(Kind::Endpoints, &names, &held);
    assert!(sotw.batch().is_empty());
    batch.iter().for_each(|response| sotw.ack(response, &names));
    assert!(sotw.batch().is_empty());
}

#[test]
fn the_request_that_looks_like_a_duplicate_ack_is_answered_after_a_cluster_changed() {
    let names = ["a"];
    let mut sotw = Sotw::settled(mesh(1, &names, &names), &names);
    let moved = |revision, body| {
        let all = [
            cluster("a", body),
            endpoints("a", "2"),
            listener("1"),
            routes(&["a"]),
        ];
        snapshot(revision, all)
    };
    sotw.session.set_snapshot(moved(2, "1"));
    let before = sotw.one();
    sotw.session.set_snapshot(moved(3, "2"));
    assert_eq!(whole_one(&sotw.one()), "CDS a");
    sotw.ack(&before, &names);
    sotw.ack(&before, &names);
    assert_eq!(whole_one(&sotw.one()), "EDS a");
}

#[test]
fn missing_endpoints_are_kept_and_come_back_quietly() {
    let names = ["a", "b"];
    let mut sotw = Sotw::settled(mesh(1, &names, &["a"]), &names);
    let mut without = services(&["a"]);
    without.extend([cluster("b", "1"), listener("1"), routes(&["a"])]);
    assert!(sotw.rounds(snapshot(2, without), &names).is_empty());
    assert!(sotw.rounds(mesh(3, &names, &["a"]), &names).is_empty());
    assert_eq!(sotw.session.progress().acked, 3);
}

#[test]
fn a_refused_resource_is_told_in_its_last_good_version() {
    let mut sotw = Sotw::new(snapshot(1, services(&["a", "b"])));
    sotw.ask(Kind::Cluster, &[], "");
    sotw.settle(&[]);
    sotw.session.set_snapshot(snapshot(
        2,
        [cluster("a", "bad"), cluster("b", "2"), cluster("c", "bad")],
    ));
    let response = sotw.one();
    sotw.nack(&response, &[], "cluster(s) a: bad, c: bad");
    let again = sotw.one();
    let bodies: Vec<_> = again
        .resources
        .iter()
        .map(|any| any.value.as_slice())
        .collect();
    assert_eq!(bodies, [&b"a=1"[..], b"b=2"]);
    sotw.ack(&again, &[]);
    assert!(sotw.batch().is_empty());
    let progress = sotw.session.progress();
    assert_eq!((progress.acked, progress.nacks.len()), (1, 2));
}

#[test]
fn an_offender_without_name_is_found_by_halving() {
    let names = ["a", "b", "c", "d"];
    let mut sotw = Sotw::new(snapshot(1, names.map(|name| cluster(name, "1"))));
    sotw.ask(Kind::Cluster, &[], "");
    sotw.settle(&[]);
    sotw.session
        .set_snapshot(snapshot(2, names.map(|name| cluster(name, "2"))));
    let mut rounds = 0;
    while let Some(response) = sotw.batch().pop() {
        rounds += 1;
        assert_eq!(response.resources.len(), 4);
        match response.resources.iter().any(|any| any.value == b"c=2") {
            true => sotw.nack(&response, &[], "no"),
            false => sotw.ack(&response, &[]),
        }
    }
    assert_eq!(rounds, 5);
    assert_eq!(sotw.session.progress().nacks[0].name.as_deref(), Some("c"));
}

#[test]
fn a_reconnecting_client_does_not_lose_listeners_that_wait_for_clusters() {
    let tcp = resource(Kind::Listener, "tcp", "1", &["a"]);
    let plain = resource(Kind::Listener, "plain", "1", &[]);
    let mut sotw = Sotw::new(snapshot(1, [cluster("a", "1"), tcp, plain]));
    sotw.ask(Kind::Cluster, &[], "");
    sotw.ask(Kind::Listener, &[], "");
    assert_eq!(sotw.settle(&[]), ["CDS a", "LDS plain tcp"]);
}

#[test]
fn a_first_answer_comes_when_patience_ends() {
    let tcp = resource(Kind::Listener, "tcp", "1", &["a"]);
    let mut sotw = Sotw::new(snapshot(1, [cluster("a", "1"), tcp]));
    sotw.ask(Kind::Cluster, &[], "");
    sotw.ask(Kind::Listener, &[], "");
    assert_eq!(whole(&sotw.batch()), "CDS a");
    sotw.now_ms = sotw.session.deadline_ms().unwrap();
    assert_eq!(whole(&sotw.batch()), "LDS tcp");
}

#[test]
fn a_name_unsubscribed_while_under_way_stays_a_suspect() {
    let mut sotw = Sotw::new(snapshot(1, services(&["a", "bad"])));
    sotw.ask(Kind::Endpoints, &["a", "bad"], "");
    let both = sotw.one();
    sotw.ask(Kind::Endpoints, &["a"], "");
    sotw.nack(&both, &["a"], "no");
    assert_eq!(sotw.settle(&["a"]), ["EDS a"]);
    assert!(sotw.session.progress().nacks.is_empty());
}
