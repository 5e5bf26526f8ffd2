//! Resources that expire at a client that hears nothing any more, and are confirmed for one that does.

use phalanx_proto::envoy::service::discovery::v3::Resource;
use prost::{Message, Name};

use super::*;

const TTL_MS: u64 = 30_000;

fn seconds(resource: &Resource) -> Option<i64> {
    resource.ttl.as_ref().map(|ttl| ttl.seconds)
}

#[test]
fn endpoints_carry_it_and_clusters_do_not() {
    let mut delta = Delta::new(mesh(1, &["a"], &["a"]));
    delta.session.set_ttl(Kind::Endpoints, TTL_MS);
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Endpoints, &["a"]));
    let batch = delta.batch();
    let ttls: Vec<_> = batch.iter().map(|r| seconds(&r.resources[0])).collect();
    assert_eq!(ttls, [None, Some(30)]);
}

#[test]
fn a_heartbeat_names_version_and_time_without_the_body() {
    let mut delta = Delta::new(mesh(1, &["a", "b"], &["a"]));
    delta.session.set_ttl(Kind::Endpoints, TTL_MS);
    delta.send(ask(Kind::Endpoints, &["a", "b"]));
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
            assert_eq!(resource.version, endpoints(&resource.name, "1").version);
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
    let mut delta = Delta::new(mesh(1, &["a"], &["a"]));
    delta.session.set_ttl(Kind::Endpoints, TTL_MS);
    delta.send(ask(Kind::Endpoints, &["a", "b"]));
    delta.settle();
    delta.now_ms = TTL_MS / 4;
    let more = delta.push(mesh(2, &["a", "b"], &["a"]));
    assert_eq!(super::told(&more), "EDS +b");
    delta.ack_all(&more);
    // `a` was confirmed last at 0, so the next heartbeat may not move for the sake of `b`.
    delta.now_ms = TTL_MS / 3;
    assert_eq!(delta.one().resources.len(), 2);
}

#[test]
fn over_state_of_the_world_it_stands_in_an_envelope_under_the_accepted_version() {
    let mut sotw = Sotw::new(mesh(1, &["a"], &["a"]));
    sotw.session.set_ttl(Kind::Endpoints, TTL_MS);
    sotw.ask(Kind::Endpoints, &["a"], "");
    let first = sotw.one();
    let unwrap = |response: &DiscoveryResponse| {
        let any = &response.resources[0];
        assert_eq!(any.type_url, Resource::type_url());
        Resource::decode(any.value.as_slice()).unwrap()
    };
    assert_eq!(seconds(&unwrap(&first)), Some(30));
    assert_eq!(
        unwrap(&first).resource.map(|any| any.type_url).as_deref(),
        Some(Kind::Endpoints.type_url())
    );
    sotw.ack(&first, &["a"]);
    sotw.now_ms = TTL_MS / 3;
    let beat = sotw.one();
    assert_eq!(beat.version_info, first.version_info);
    assert_eq!(
        (unwrap(&beat).resource, seconds(&unwrap(&beat))),
        (None, Some(30))
    );
}
