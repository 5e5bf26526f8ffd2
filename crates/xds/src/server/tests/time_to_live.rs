//! Resources that expire at a client that hears nothing any more, and are confirmed for one that does.

use phalanx_proto::envoy::service::discovery::v3::Resource;
use prost::{Message, Name};

use super::*;

const TTL_MS: u64 = 30_000;

fn seconds(resource: &Resource) -> Option<i64> {
    resource.ttl.as_ref().map(|ttl| ttl.seconds)
}

fn delta(names: &[&str]) -> Delta {
    let mut delta = Delta::new(mesh(1, names, &["a"]));
    delta.session.set_ttl(TTL_MS);
    delta
}

#[test]
fn clusters_carry_it_and_endpoints_whose_end_envoy_ignores_do_not() {
    let mut delta = delta(&["a"]);
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Endpoints, &["a"]));
    let batch = delta.batch();
    let ttls: Vec<_> = batch.iter().map(|r| seconds(&r.resources[0])).collect();
    assert_eq!(ttls, [Some(30), None]);
}

#[test]
fn a_heartbeat_names_version_and_time_without_the_body() {
    let mut delta = delta(&["a", "b"]);
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.settle();
    assert_eq!(delta.session.deadline_ms(), Some(TTL_MS / 3));
    delta.now_ms = TTL_MS / 3 - 1;
    assert!(delta.batch().is_empty());
    for beat in 1..4 {
        delta.now_ms = beat * TTL_MS / 3;
        let response = delta.one();
        assert_eq!(response.resources.len(), 2);
        for resource in &response.resources {
            assert_eq!(
                (resource.resource.is_none(), seconds(resource)),
                (true, Some(30))
            );
            assert_eq!(resource.version, cluster(&resource.name, "1").version);
        }
        // No second one is sent to who does not answer.
        delta.now_ms += 1;
        assert!(delta.batch().is_empty());
        delta.ack(&response);
        assert_eq!(delta.acked(), 1);
    }
}

#[test]
fn a_change_counts_as_a_heartbeat_only_for_the_session() {
    let mut delta = delta(&["a"]);
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.settle();
    delta.now_ms = TTL_MS / 4;
    let more = delta.push(mesh(2, &["a", "b"], &["a"]));
    assert_eq!(super::told(&more), "CDS +b");
    delta.ack_all(&more);
    // `a` was confirmed last at 0, so the next heartbeat may not move for the sake of `b`.
    delta.now_ms = TTL_MS / 3;
    assert_eq!(delta.one().resources.len(), 2);
}

#[test]
fn who_refuses_a_heartbeat_has_lost_it_all_and_gets_it_again() {
    let mut delta = delta(&["a", "b"]);
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.settle();
    delta.now_ms = 2 * TTL_MS;
    let beat = delta.one();
    delta.nack(&beat, "clusters without a name");
    assert_eq!(delta.acked(), 0);
    assert_eq!(delta.settle(), ["CDS +a +b"]);
    assert_eq!(delta.acked(), 1);
    assert!(delta.session.progress().nacks.is_empty());
}

#[test]
fn over_state_of_the_world_everything_comes_again_in_envelopes_under_the_same_version() {
    let mut sotw = Sotw::new(mesh(1, &["a"], &["a"]));
    sotw.session.set_ttl(TTL_MS);
    sotw.ask(Kind::Cluster, &[], "");
    let first = sotw.one();
    let unwrap = |response: &DiscoveryResponse| {
        let any = &response.resources[0];
        assert_eq!(any.type_url, Resource::type_url());
        Resource::decode(any.value.as_slice()).unwrap()
    };
    assert_eq!(seconds(&unwrap(&first)), Some(30));
    let body = unwrap(&first).resource.map(|any| any.type_url);
    assert_eq!(body.as_deref(), Some(Kind::Cluster.type_url()));
    sotw.ack(&first, &[]);
    sotw.now_ms = TTL_MS / 3;
    let beat = sotw.one();
    assert_eq!(beat.version_info, first.version_info);
    assert_eq!(beat.resources, first.resources);
}
