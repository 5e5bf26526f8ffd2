//! Streams of one kind: nothing is known of the others, so time stands in for their ACKs.

use super::*;

fn alone(kind: Kind, snapshot: Arc<Snapshot>) -> Delta {
    let mut session = Session::delta_of(kind);
    session.set_snapshot(snapshot);
    Delta { session, now_ms: 0 }
}

#[test]
fn the_type_may_be_left_out_and_another_is_refused() {
    let mut delta = alone(Kind::Cluster, mesh(1, &["a"], &["a"]));
    delta.send(DeltaDiscoveryRequest::default());
    assert_eq!(told_one(&delta.one()), "CDS +a");
    let error = delta
        .session
        .on_request(ask(Kind::Routes, &["outbound"]))
        .unwrap_err();
    let (served, asked) = (Kind::Cluster, Kind::Routes);
    assert_eq!(error, SessionError::OtherKind { served, asked });
    let unknown = DeltaDiscoveryRequest {
        type_url: "x".into(),
        ..Default::default()
    };
    assert!(delta.session.on_request(unknown).is_err());
    let mut sotw = Session::sotw_of(Kind::Endpoints);
    sotw.set_snapshot(mesh(1, &["a"], &["a"]));
    let request = DiscoveryRequest {
        resource_names: list(&["a"]),
        ..Default::default()
    };
    sotw.on_request(request).unwrap();
    let response = sotw.poll(0).and_then(Response::into_sotw).unwrap();
    assert_eq!(whole_one(&response), "EDS a");
}

#[test]
fn the_first_routes_come_at_once_and_those_to_new_clusters_settle() {
    let mut delta = alone(Kind::Routes, mesh(1, &["a"], &["a"]));
    delta.send(ask(Kind::Routes, &["outbound"]));
    assert_eq!(delta.settle(), ["RDS +outbound"]);
    assert!(delta.rounds(mesh(2, &["a", "b"], &["a", "b"])).is_empty());
    assert_eq!(delta.session.deadline_ms(), Some(SETTLE_MS));
    delta.now_ms = SETTLE_MS - 1;
    assert!(delta.batch().is_empty());
    delta.now_ms = SETTLE_MS;
    assert_eq!(delta.settle(), ["RDS +outbound"]);
    assert_eq!(delta.acked(), 2);
    // Nothing new is named: at once.
    assert_eq!(
        delta.rounds(mesh(3, &["a", "b"], &["b"])),
        ["RDS +outbound"]
    );
}

#[test]
fn a_cluster_outlives_the_routes_that_moved_away_from_it() {
    let mut clusters = alone(Kind::Cluster, mesh(1, &["old"], &["old"]));
    clusters.send(ask(Kind::Cluster, &["*"]));
    clusters.settle();
    assert_eq!(clusters.rounds(mesh(2, &["new"], &["new"])), ["CDS +new"]);
    clusters.now_ms = SETTLE_MS;
    assert!(clusters.batch().is_empty());
    clusters.now_ms = PATIENCE_MS;
    assert_eq!(clusters.settle(), ["CDS -old"]);
    assert_eq!(clusters.acked(), 2);
}

#[test]
fn what_is_still_named_is_not_removed_however_long_it_takes() {
    let mut endpoints = alone(Kind::Endpoints, mesh(1, &["a"], &["a"]));
    endpoints.send(ask(Kind::Endpoints, &["a"]));
    endpoints.settle();
    let without = snapshot(2, [cluster("a", "1"), listener("1"), routes(&["a"])]);
    endpoints.session.set_snapshot(without);
    endpoints.now_ms = 100 * PATIENCE_MS;
    assert!(endpoints.batch().is_empty());
}

#[test]
fn who_reconnects_with_an_older_cluster_loses_it_only_after_the_routes_had_time() {
    let mut clusters = alone(Kind::Cluster, mesh(2, &["new"], &["new"]));
    clusters.send(claim(Kind::Cluster, &["*"], &[&cluster("old", "1")]));
    assert_eq!(clusters.settle(), ["CDS +new"]);
    clusters.now_ms = PATIENCE_MS;
    assert_eq!(clusters.settle(), ["CDS -old"]);
}

#[test]
fn state_of_the_world_keeps_a_removed_cluster_until_the_routes_had_time() {
    let mut session = Session::sotw_of(Kind::Cluster);
    session.set_snapshot(mesh(1, &["old"], &["old"]));
    let mut sotw = Sotw { session, now_ms: 0 };
    sotw.ask(Kind::Cluster, &[], "");
    sotw.settle(&[]);
    assert_eq!(
        sotw.rounds(mesh(2, &["new"], &["new"]), &[]),
        ["CDS new old"]
    );
    sotw.now_ms = PATIENCE_MS;
    assert_eq!(sotw.settle(&[]), ["CDS new"]);
}
