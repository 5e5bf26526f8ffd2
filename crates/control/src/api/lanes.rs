//! Lanes: what ColourPolicies say, who has instances in them, and how often somebody else had to stand in.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{RawQuery, State};
use phalanx_client::api;
use phalanx_model::document::Fallback;
use phalanx_model::identity::SYSTEM_NAMESPACE;
use phalanx_model::resource::Health;
use phalanx_model::{ClusterName, ServiceName};

use super::Api;
use super::answer::{Failure, Params};
use crate::snapshot::Mesh;

pub async fn lanes(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<api::LaneViews>, Failure> {
    let params = Params::parse(query, &["colour"])?;
    let published = api.published();
    let mesh = &published.mesh;
    let wanted = |colour: &str| params.text("colour").is_none_or(|text| text == colour);
    let found = mesh
        .lanes
        .all()
        .filter(|(_, known)| wanted(&known.lane.colour));
    let items = found.map(|(namespace, known)| {
        let colour = &known.lane.colour;
        let services = services(mesh, namespace, colour).into_iter();
        api::LaneView {
            colour: colour.clone(),
            namespace: namespace.to_owned(),
            policy: known.policy.to_string(),
            fallback: match known.lane.fallback {
                Fallback::Baseline => "Baseline",
                Fallback::Refuse => "Refuse",
            }
            .to_owned(),
            services: services
                .map(|(service, (endpoints, healthy))| {
                    let seen = api.inner.observe.lane(colour, &service);
                    api::LaneService {
                        namespace: service.namespace,
                        service: service.name,
                        endpoints,
                        healthy,
                        requests: seen.lane,
                        fallbacks: seen.baseline,
                        refused: seen.nobody,
                    }
                })
                .collect(),
        }
    });
    let mut items: Vec<_> = items.collect();
    items.sort_by(|a, b| (&a.colour, &a.namespace).cmp(&(&b.colour, &b.namespace)));
    Ok(Json(api::LaneViews {
        revision: published.revision,
        items,
    }))
}

/// Those that have this very lane, with the most endpoints that one of their ports has, and how many of them are healthy.
fn services(mesh: &Mesh, namespace: &str, colour: &str) -> BTreeMap<ServiceName, (usize, usize)> {
    let is_meant = |service: &ServiceName| {
        let mut lanes = mesh.lanes.of(&service.namespace);
        let own = |known: &crate::snapshot::KnownLane| known.policy.namespace == namespace;
        (namespace == SYSTEM_NAMESPACE || service.namespace == namespace)
            && lanes.any(|known| known.lane.colour == colour && own(known))
    };
    let mut found = BTreeMap::new();
    for (service, ports) in mesh.catalog.services.iter() {
        let having = ports
            .iter()
            .filter(|(_, of)| of.lanes.iter().any(|lane| lane == colour));
        let names =
            having.map(|(port, _)| ClusterName::outbound(service.clone(), *port).lane(colour));
        let sets = names.filter_map(|name| mesh.assignments.get(&name));
        let counts = sets.map(|set| {
            let own = set.endpoints.iter().filter(|endpoint| !endpoint.is_far);
            let healthy = own
                .clone()
                .filter(|endpoint| endpoint.health == Health::Healthy);
            (own.count(), healthy.count())
        });
        if let Some(counts) = counts.max().filter(|_| is_meant(service)) {
            found.insert(service.clone(), counts);
        }
    }
    found
}
