//! Endpoint sets: one locality per zone, each with a weight, without which a gRPC client silently sees no locality.

use std::collections::BTreeMap;

use phalanx_model::resource::{Assignment, Endpoint, Health};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;

use super::{address, metadata, tls, udp_address};

/// Under [`super::METADATA`].
pub(crate) const VERSION: &str = "version";
pub(crate) const INSTANCE: &str = "instance";
/// The application's port behind the sidecar, in decimal.
pub(crate) const PORT: &str = "port";
/// Of its datagrams.
pub(crate) const TOKEN: &str = "token";

pub(crate) fn message(assignment: &Assignment) -> endpoint_v3::ClusterLoadAssignment {
    let mut zones = BTreeMap::<(bool, &str), Vec<&Endpoint>>::new();
    let takes_traffic = |endpoint: &Endpoint| endpoint.health == Health::Healthy;
    // Where nothing is healthy a client takes what there is.
    let is_panic = !assignment.endpoints.iter().any(takes_traffic);
    for endpoint in &assignment.endpoints {
        let zone = (endpoint.is_far, endpoint.zone.as_str());
        zones.entry(zone).or_default().push(endpoint);
    }
    endpoint_v3::ClusterLoadAssignment {
        cluster_name: assignment.cluster.to_string(),
        endpoints: zones
            .into_iter()
            .map(|(zone, endpoints)| locality(zone, &endpoints, is_panic))
            .collect(),
        policy: assignment.overprovision.map(|factor| {
            endpoint_v3::cluster_load_assignment::Policy {
                overprovisioning_factor: Some(factor),
                ..Default::default()
            }
        }),
        ..Default::default()
    }
}

/// Weighs what its endpoints that take traffic weigh together, so that a client that picks the zone first spreads alike;
/// at least 1, without which a gRPC client would not see those that are left for a panic.
fn locality(
    (is_far, zone): (bool, &str),
    endpoints: &[&Endpoint],
    is_panic: bool,
) -> endpoint_v3::LocalityLbEndpoints {
    let counted = endpoints
        .iter()
        .filter(|endpoint| is_panic || endpoint.health == Health::Healthy);
    let weight = counted
        .fold(0u32, |sum, endpoint| sum.saturating_add(endpoint.weight))
        .max(1);
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
        priority: is_far.into(),
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
    let mut words = metadata(&[
        (VERSION, &endpoint.version),
        (INSTANCE, &endpoint.instance),
        (PORT, &port),
        (TOKEN, &endpoint.token),
    ]);
    if endpoint.mutual_tls {
        let words = words.get_or_insert_default();
        words.filter_metadata.extend([tls::mutual_endpoint()]);
    }
    let host = endpoint_v3::Endpoint {
        address: Some(match endpoint.datagrams {
            true => udp_address(endpoint.address),
            false => address(endpoint.address),
        }),
        ..Default::default()
    };
    endpoint_v3::LbEndpoint {
        health_status: health.into(),
        metadata: words,
        load_balancing_weight: Some(endpoint.weight),
        host_identifier: Some(HostIdentifier::Endpoint(host)),
    }
}
