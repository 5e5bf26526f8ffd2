use std::sync::Arc;

use phalanx_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::*;
use crate::snapshot::Compiler;
use crate::world::fixture::{Fixture, instance};

fn claimed(held: &Snapshot) -> DeltaDiscoveryRequest {
    let versions = held.iter(Kind::Cluster);
    let versions = versions.map(|known| (known.name.clone(), known.version.clone()));
    DeltaDiscoveryRequest {
        type_url: Kind::Cluster.type_url().to_owned(),
        initial_resource_versions: versions.collect(),
        ..Default::default()
    }
}

fn compiled(fixture: &Fixture) -> (Published, Snapshot) {
    let published = Compiler::default().compile(Arc::new(fixture.world()));
    let node = crate::snapshot::Node::known(
        "default/gateway/g1".into(),
        phalanx_model::ServiceName::new("default", "gateway"),
        String::new(),
        "g1".into(),
        "envoy".into(),
    );
    let snapshot = published.snapshot(&node, &crate::snapshot::Resources::default(), None);
    (published, snapshot)
}

fn battle() -> Fixture {
    let battle = instance("battle", "b1", "10.0.0.1:15006", &[("http", 8080)]);
    Fixture::default().with(battle)
}

async fn over<M: Message>(message: &M, published: &Published, snapshot: &Snapshot) -> bool {
    let mut lost = Lost::default();
    lost.hear(published, None, message);
    let held = lost.holds(published, snapshot);
    tokio::time::advance(QUIET).await;
    assert!(lost.look_at().is_some() == held);
    !lost.holds(published, snapshot)
}

#[tokio::test(start_paused = true)]
async fn an_empty_store_takes_nothing_away_until_it_knows_as_much() {
    let (_, before) = compiled(&battle());
    let (nothing, empty) = compiled(&Fixture::default());
    assert!(nothing.world.knows_nothing());
    assert!(!over(&claimed(&before), &nothing, &empty).await);
    // The instance is registered again, and nobody applied anything: it is as it was.
    let (again, full) = compiled(&battle());
    assert!(over(&claimed(&before), &again, &full).await);
    // A new peer has nothing to lose.
    assert!(over(&claimed(&empty), &nothing, &empty).await);
}

#[tokio::test(start_paused = true)]
async fn the_state_of_the_world_is_known_by_its_version() {
    let (_, before) = compiled(&battle());
    let (nothing, empty) = compiled(&Fixture::default());
    let request = DiscoveryRequest {
        type_url: Kind::Cluster.type_url().to_owned(),
        version_info: sotw_version(before.iter(Kind::Cluster)),
        ..Default::default()
    };
    assert!(!over(&request, &nothing, &empty).await);
    let (again, full) = compiled(&battle());
    assert!(over(&request, &again, &full).await);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_somebody_changed_is_the_truth() {
    let (_, before) = compiled(&battle());
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec:\n  ports: [{name: http, port: 80}]\n";
    let (changed, snapshot) = compiled(&Fixture::default().and_yaml(yaml));
    let mut lost = Lost::default();
    lost.hear(&changed, None, &claimed(&before));
    assert!(!lost.holds(&changed, &snapshot));
}

#[tokio::test(start_paused = true)]
async fn who_was_told_something_is_told_everything_from_then_on() {
    let (again, full) = compiled(&battle());
    let (nothing, empty) = compiled(&Fixture::default());
    let mut lost = Lost::default();
    lost.hear(&again, None, &claimed(&full));
    assert!(lost.holds(&again, &full), "other kinds may follow");
    tokio::time::advance(QUIET).await;
    assert!(!lost.holds(&again, &full));
    // The last instance went: that is a removal, not a loss.
    assert!(!lost.holds(&nothing, &empty));
    assert!(!lost.is_stuck() && lost.look_at().is_none());
}
