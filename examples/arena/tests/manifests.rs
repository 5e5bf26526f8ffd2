//! The demo's manifests are read as `phalanx apply` reads them, and agree with the processes that the demo starts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use phalanx_model::document::{Document, Kind};
use phalanx_model::manifest;

/// Documents by `kind/name`, of a file or of all in a folder.
fn read(place: &str) -> BTreeMap<String, Document> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join(place);
    let paths: Vec<_> = match place.is_dir() {
        true => std::fs::read_dir(place)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect(),
        false => vec![place],
    };
    let mut documents = BTreeMap::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_str().unwrap();
        for parsed in manifest::parse(file, &text, "default")
            .into_result()
            .unwrap()
        {
            let id = parsed.document.id();
            assert!(
                documents.insert(id.to_string(), parsed.document).is_none(),
                "{id} stands twice"
            );
        }
    }
    documents
}

#[test]
fn every_process_is_in_a_service_and_every_service_has_a_process() {
    let documents = read("mesh");
    let labels = |spec: &arena::ProcessSpec| {
        BTreeMap::from([
            ("app".to_string(), spec.service.to_string()),
            ("version".into(), spec.version.into()),
        ])
    };
    let instances: Vec<_> = arena::processes().iter().map(labels).collect();
    let mut selected = BTreeSet::new();
    for document in documents.values() {
        let Document::Service(service) = document else {
            continue;
        };
        let has = |instance: &BTreeMap<_, _>| {
            service
                .selector
                .iter()
                .all(|(key, value)| instance.get(key) == Some(value))
        };
        let chosen: Vec<_> = instances.iter().filter(|instance| has(instance)).collect();
        assert!(!chosen.is_empty(), "{}", service.meta.name);
        selected.extend(chosen);
    }
    assert_eq!(selected, instances.iter().collect());
}

#[test]
fn routes_and_policies_name_services_that_exist() {
    let documents = read("mesh");
    let services: BTreeSet<_> = documents
        .values()
        .filter_map(|document| match document {
            Document::Service(service) => Some(service.service_name()),
            _ => None,
        })
        .collect();
    for document in documents.values() {
        let named: Vec<_> = match document {
            Document::Route(route) => {
                let backends = route
                    .rules
                    .iter()
                    .flat_map(|rule| &rule.backends)
                    .map(|backend| &backend.service);
                route
                    .parents
                    .iter()
                    .map(|parent| &parent.service)
                    .chain(backends)
                    .collect()
            }
            Document::BackendPolicy(policy) => policy.targets.iter().collect(),
            _ => continue,
        };
        for name in named {
            assert!(services.contains(name), "{} names {name}", document.id());
        }
    }
}

#[test]
fn the_variant_changes_nothing_but_the_weights() {
    let weights = |place: &str| {
        let documents = read(place);
        let battle = documents
            .into_values()
            .find(|document| document.id().kind == Kind::GrpcRoute);
        let Some(Document::Route(mut route)) = battle else {
            panic!("no GRPCRoute in {place}")
        };
        let backends = route.rules.iter_mut().flat_map(|rule| &mut rule.backends);
        let weights: Vec<_> = backends
            .map(|backend| std::mem::take(&mut backend.weight))
            .collect();
        (route, weights)
    };
    let (one, ninety) = weights("mesh");
    let (two, fifty) = weights("mesh-variants/battle-50-50.yaml");
    assert_eq!(one, two);
    assert_eq!((ninety, fifty), (vec![90, 10], vec![50, 50]));
}

#[test]
fn the_rollout_leads_the_route_that_the_demo_has() {
    let documents = read("mesh-variants/battle-rollout.yaml");
    let rollout = documents.values().find_map(|document| match document {
        Document::Rollout(rollout) => Some(rollout),
        _ => None,
    });
    let (rollout, mesh) = (rollout.unwrap(), read("mesh"));
    let target = rollout.target.to_string();
    assert!(
        mesh.contains_key(&target) && documents.contains_key(&target),
        "{target}"
    );
}
