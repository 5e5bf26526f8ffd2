//! Endpoint sets: one locality per zone, each with a weight, without which a gRPC client silently sees no locality.

use std::collections::BTreeMap;

use phalanx_model::resource::{Assignment, Endpoint, Health};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;

use super::{address, metadata};

/// Under [`super::METADATA`].
pub(crate) const VERSION: &str = "version";
pub(crate) const INSTANCE: &str = "instance";
/// The application's port behind the sidecar, in decimal.
pub(crate) const PORT: &str = "port";

pub(crate) fn message(assignment: &Assignment) -> endpoint_v3::ClusterLoadAssignment {
    let mut zones = BTreeMap::<&str, Vec<&Endpoint>>::new();
    for endpoint in &assignment.endpoints {
        zones.entry(&endpoint.zone).or_default().push(endpoint);
    }
    endpoint_v3::ClusterLoadAssignment {
        cluster_name: assignment.cluster.to_string(),
        endpoints: zones
            .into_iter()
            .map(|(zone, endpoints)| locality(zone, &endpoints))
            .collect(),
        ..Default::default()
    }
}

/// Weighs what its endpoints weigh together, so that a client that picks the zone first spreads alike.
fn locality(zone: &str, endpoints: &[&Endpoint]) -> endpoint_v3::LocalityLbEndpoints {
    let weight = endpoints
        .iter()
        .fold(0u32, |sum, endpoint| sum.saturating_add(endpoint.weight));
    endpoint_v3::LocalityLbEndpoints {
        locality: Some(core_v3::Locality {
            zone: zone.to_owned(),
            ..Default::default()
        }),
        lb_endpoints: endpoints
            .iter()
            .map(|endpoint| lb_endpoint(endpoint))
            .collect(),
        load_balancing_weight: Some(weight),
        ..Default::default()
    }
}

fn lb_endpoint(endpoint: &Endpoint) -> endpoint_v3::LbEndpoint {
    use endpoint_v3::lb_endpoint::HostIdentifier;
    let health = match endpoint.health {
        Health::Healthy => core_v3::HealthStatus::Healthy,
        Health::Draining => core_v3::HealthStatus::Draining,
        Health::Unhealthy => core_v3::HealthStatus::Unhealthy,
    };
    let port = match endpoint.target {
        0 => String::new(),
        port => port.to_string(),
    };
    let host = endpoint_v3::Endpoint {
        address: Some(address(endpoint.address)),
        ..Default::default()
    };
    endpoint_v3::LbEndpoint {
        health_status: health.into(),
        metadata: metadata(&[
            (VERSION, &endpoint.version),
            (INSTANCE, &endpoint.instance),
            (PORT, &port),
        ]),
        load_balancing_weight: Some(endpoint.weight),
        host_identifier: Some(HostIdentifier::Endpoint(host)),
    }
}
