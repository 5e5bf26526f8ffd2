//! What came between two looks, from totals that only grow.

use phalanx_model::document::Document;
use phalanx_model::manifest;

use super::*;

fn rollout() -> Rollout {
    let text = "apiVersion: phalanx.dev/v1alpha1\nkind: Rollout\nmetadata: {name: battle}\nspec:\n  targetRef: {kind: HTTPRoute, name: battle}\n  stable: battle-v1\n  canary: battle-v2\n  steps: [{weight: 5, for: 1s}]\n";
    let parsed = manifest::parse("f", text, "default").into_result().unwrap();
    match parsed.into_iter().next().map(|parsed| parsed.document) {
        Some(Document::Rollout(rollout)) => rollout,
        other => panic!("{other:?}"),
    }
}

/// One control plane that was told so much of the new version.
fn told(services: &[&str], requests: u64) -> Told {
    let counts = api::ServiceCounts {
        requests,
        failures: requests,
        ..api::ServiceCounts::default()
    };
    let services = services
        .iter()
        .map(|name| ((*name).to_owned(), counts.clone()));
    let figures = api::RolloutFigures {
        life: 1,
        services: services.collect(),
        ..api::RolloutFigures::default()
    };
    let mut told = Told::default();
    told.take("a", Ok(figures));
    told
}

const BOTH: [&str; 2] = ["default/battle-v1", "default/battle-v2"];

#[test]
fn a_control_plane_that_was_not_asked_has_not_counted_nothing() {
    let (rollout, mut bases) = (rollout(), Bases::default());
    // Only others are under way, or one of both is missing.
    for services in [&[][..], &BOTH[..1]] {
        let sight = bases.since(&rollout, &told(services, 100));
        assert_eq!(sight, Sight::default());
    }
    let first = bases.since(&rollout, &told(&BOTH, 1000));
    assert_eq!(first, Sight::default(), "that was before anybody asked");
    assert_eq!(bases.since(&rollout, &told(&BOTH, 1007)).canary.requests, 7);
}

#[test]
fn what_is_asked_for_is_what_is_looked_for() {
    let asked = questions(&rollout());
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    let mut bases = Bases::default();
    bases.since(&rollout(), &told(&asked, 1));
    let came = bases.since(&rollout(), &told(&asked, 3));
    assert_eq!((came.stable.requests, came.canary.failures), (2, 2));
}
