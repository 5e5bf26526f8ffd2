//! Clients that come back with what they hold from an earlier stream. Each was seen with Envoy 1.40: it asks for its
//! clusters last when one of them was warming as the stream broke.

use super::*;

#[test]
fn endpoints_come_again_when_a_cluster_may_be_warming_for_them() {
    let mut delta = Delta::new(mesh(1, &["a"], &["a"]));
    delta.send(claim(Kind::Endpoints, &["a"], &[&endpoints("a", "1")]));
    assert_eq!(told(&delta.batch()), "EDS +a");
}

#[test]
fn endpoints_that_did_not_change_stay_unsaid_when_no_cluster_is_warming() {
    let mut delta = Delta::new(mesh(1, &["a"], &["a"]));
    delta.send(claim(Kind::Cluster, &[], &[&cluster("a", "1")]));
    delta.send(claim(Kind::Endpoints, &["a"], &[&endpoints("a", "1")]));
    assert_eq!(delta.settle(), ["CDS"]);
}

#[test]
fn routes_to_a_new_cluster_wait_until_the_client_asks_for_clusters() {
    let mut delta = Delta::new(mesh(2, &["a", "b"], &["a", "b"]));
    let (old, held) = (routes(&["a"]), endpoints("a", "1"));
    delta.send(claim(Kind::Endpoints, &["a"], &[&held]));
    delta.send(claim(Kind::Listener, &[], &[&listener("1")]));
    delta.send(claim(Kind::Routes, &["outbound"], &[&old]));
    assert_eq!(delta.settle(), ["EDS +a | LDS"]);
    delta.now_ms += WARMING_MS - 1;
    assert!(delta.batch().is_empty());
    delta.send(claim(Kind::Cluster, &[], &[&cluster("a", "1")]));
    delta.send(ask(Kind::Endpoints, &["b"]));
    assert_eq!(delta.settle(), ["CDS +b | EDS +b", "RDS +outbound"]);
}

#[test]
fn routes_over_clusters_that_the_client_has_do_not_wait_for_its_clusters() {
    let mut delta = Delta::new(mesh(2, &["a", "b"], &["a"]));
    let held = [endpoints("a", "1"), endpoints("b", "1")];
    delta.send(claim(Kind::Endpoints, &["a", "b"], &[&held[0], &held[1]]));
    delta.send(claim(Kind::Routes, &["outbound"], &[&routes(&["a", "b"])]));
    assert_eq!(delta.settle(), ["EDS +a +b | RDS +outbound"]);
}

fn came_back(sotw: &mut Sotw, kind: Kind, names: &[&str]) {
    sotw.session
        .on_request(DiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names: list(names),
            version_info: "of an earlier stream".into(),
            ..Default::default()
        })
        .unwrap();
}

#[test]
fn a_full_state_without_a_cluster_comes_after_the_routes_that_do_without_it() {
    let mut sotw = Sotw::new(mesh(2, &["a"], &["a"]));
    came_back(&mut sotw, Kind::Cluster, &[]);
    assert!(sotw.batch().is_empty());
    came_back(&mut sotw, Kind::Endpoints, &["a", "gone"]);
    came_back(&mut sotw, Kind::Listener, &[]);
    came_back(&mut sotw, Kind::Routes, &["outbound"]);
    assert_eq!(
        sotw.settle(&["a", "gone"]),
        ["EDS a | LDS outbound | RDS outbound", "CDS a | EDS a"]
    );
}

#[test]
fn a_full_state_comes_first_when_no_cluster_went() {
    let mut sotw = Sotw::new(mesh(2, &["a", "b"], &["a", "b"]));
    came_back(&mut sotw, Kind::Cluster, &[]);
    came_back(&mut sotw, Kind::Endpoints, &["a"]);
    came_back(&mut sotw, Kind::Listener, &[]);
    came_back(&mut sotw, Kind::Routes, &["outbound"]);
    let rounds = sotw.settle(&["a", "b"]);
    assert!(rounds[0].starts_with("CDS a b"), "{rounds:?}");
}

#[test]
fn a_client_without_endpoints_gets_its_first_clusters_as_soon_as_it_could_have_asked() {
    let mut sotw = Sotw::new(mesh(2, &["a"], &["a"]));
    came_back(&mut sotw, Kind::Cluster, &[]);
    assert!(sotw.batch().is_empty());
    sotw.now_ms = SETTLE_MS;
    assert_eq!(sotw.settle(&["a"]), ["CDS a"]);
}

#[test]
fn a_client_without_listeners_and_routes_loses_a_cluster_as_soon_as_it_could_have_asked() {
    let mut sotw = Sotw::new(mesh(2, &["a"], &["a"]));
    came_back(&mut sotw, Kind::Cluster, &[]);
    came_back(&mut sotw, Kind::Endpoints, &["a", "gone"]);
    assert_eq!(sotw.settle(&["a", "gone"]), ["EDS a"]);
    sotw.now_ms = SETTLE_MS;
    assert_eq!(sotw.settle(&["a", "gone"]), ["CDS a | EDS a"]);
}

#[test]
fn a_listener_over_a_new_cluster_and_clusters_of_which_one_went_do_not_wait_for_each_other() {
    let mut all = services(&["a", "new"]);
    all.extend([
        resource(Kind::Listener, "tcp", "2", &["new"]),
        routes(&["a"]),
    ]);
    let mut sotw = Sotw::new(snapshot(2, all));
    came_back(&mut sotw, Kind::Endpoints, &["a", "gone"]);
    came_back(&mut sotw, Kind::Listener, &[]);
    came_back(&mut sotw, Kind::Routes, &["outbound"]);
    came_back(&mut sotw, Kind::Cluster, &[]);
    let rounds = sotw.settle(&["a", "new"]);
    assert_eq!(
        rounds,
        ["EDS a | RDS outbound", "CDS a new | EDS a new", "LDS tcp"]
    );
}

/// One that has clusters of its own, in its bootstrap.
#[test]
fn routes_of_a_client_that_never_asks_for_clusters_wait_once_and_briefly() {
    let mut delta = Delta::new(mesh(2, &["a", "b"], &["a", "b"]));
    delta.send(claim(Kind::Routes, &["outbound"], &[&routes(&["a"])]));
    assert!(delta.batch().is_empty());
    delta.now_ms = SETTLE_MS;
    assert_eq!(delta.settle(), ["RDS +outbound"]);
    let next = delta.rounds(mesh(3, &["a", "b"], &["b"]));
    assert_eq!(next, ["RDS +outbound"]);
}

#[test]
fn a_client_that_asks_for_endpoints_and_never_for_clusters_waits_for_no_later_change() {
    let mut delta = Delta::new(mesh(2, &["a", "b"], &["a", "b"]));
    let held = endpoints("a", "1");
    delta.send(claim(Kind::Endpoints, &["a"], &[&held]));
    delta.send(claim(Kind::Routes, &["outbound"], &[&routes(&["a"])]));
    assert_eq!(delta.settle(), ["EDS +a"]);
    delta.now_ms = WARMING_MS;
    assert_eq!(delta.settle(), ["RDS +outbound"]);
    let next = delta.rounds(mesh(3, &["a", "b"], &["b"]));
    assert_eq!(next, ["RDS +outbound"]);
}
