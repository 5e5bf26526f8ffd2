//! Endpoint sets. Zones are told apart, but neither priorities nor locality weights: an endpoint's own weight decides.

use phalanx_model::resource::{Assignment, Endpoint, Health};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;

use super::field::{At, address, cluster_name, metadata, refuse};
use super::{DecodeError, tls};
use crate::encode::endpoints::{INSTANCE, PORT, VERSION};

/// Of one endpoint, relative to the others.
const WEIGHT_MAX: u32 = 128;

pub(super) fn resource(
    message: endpoint_v3::ClusterLoadAssignment,
) -> Result<Assignment, DecodeError> {
    let at = At::Root("ClusterLoadAssignment");
    let endpoint_v3::ClusterLoadAssignment {
        cluster_name: name,
        endpoints: localities,
        named_endpoints,
        policy,
    } = message;
    refuse!(at; named_endpoints, policy);
    let mut endpoints = Vec::new();
    for (index, message) in localities.into_iter().enumerate() {
        locality(at.item("endpoints", index), message, &mut endpoints)?;
    }
    endpoints.sort_by_key(|endpoint| endpoint.address);
    if let Some(twice) = endpoints
        .array_windows()
        .find(|[a, b]| a.address == b.address)
    {
        return Err(at
            .field("endpoints")
            .invalid(format!("{} stands there twice", twice[0].address)));
    }
    Ok(Assignment {
        cluster: cluster_name(&at.field("cluster_name"), &name)?,
        endpoints,
    })
}

fn locality(
    at: At<'_>,
    message: endpoint_v3::LocalityLbEndpoints,
    endpoints: &mut Vec<Endpoint>,
) -> Result<(), DecodeError> {
    let endpoint_v3::LocalityLbEndpoints {
        locality,
        metadata: _,
        lb_endpoints,
        load_balancing_weight: _, // holds for clients that pick a locality first
        priority,
        proximity,
        lb_config,
    } = message;
    refuse!(at; priority, proximity, lb_config);
    let core_v3::Locality {
        region,
        zone,
        sub_zone,
    } = locality.unwrap_or_default();
    let locality_at = at.field("locality");
    refuse!(locality_at; region, sub_zone);
    for (index, message) in lb_endpoints.into_iter().enumerate() {
        endpoints.push(endpoint(at.item("lb_endpoints", index), message, &zone)?);
    }
    Ok(())
}

fn endpoint(
    at: At<'_>,
    message: endpoint_v3::LbEndpoint,
    zone: &str,
) -> Result<Endpoint, DecodeError> {
    use core_v3::HealthStatus;
    use endpoint_v3::lb_endpoint::HostIdentifier;
    let endpoint_v3::LbEndpoint {
        health_status,
        metadata: words,
        load_balancing_weight,
        host_identifier,
    } = message;
    let health = match HealthStatus::try_from(health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Health::Healthy,
        Ok(HealthStatus::Draining) => Health::Draining,
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => Health::Unhealthy,
        Ok(HealthStatus::Degraded) | Err(_) => return Err(at.field("health_status").unsupported()),
    };
    let weight = load_balancing_weight.unwrap_or(1);
    if !(1..=WEIGHT_MAX).contains(&weight) {
        return Err(at
            .field("load_balancing_weight")
            .invalid(format!("{weight} is not from 1 to {WEIGHT_MAX}")));
    }
    let host = match host_identifier {
        Some(HostIdentifier::Endpoint(host)) => host,
        Some(HostIdentifier::EndpointName(_)) => {
            return Err(at.field("endpoint_name").unsupported());
        }
        None => return Err(at.field("endpoint").missing()),
    };
    let words_at = at.field("metadata");
    let mutual_tls = tls::is_mutual(words.as_ref());
    let [version, instance, port] = metadata(&words_at, words, [VERSION, INSTANCE, PORT])?;
    let target = match port.as_str() {
        "" => 0,
        text => text
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| words_at.invalid(format!("`{PORT}` is no port: {text}")))?,
    };
    let at = at.field("endpoint");
    let endpoint_v3::Endpoint {
        address: socket,
        health_check_config,
        hostname,
        additional_addresses,
        observability_name: _,
    } = host;
    refuse!(at; health_check_config, hostname, additional_addresses);
    let address = address(&at.field("address"), socket)?;
    Ok(Endpoint {
        address,
        weight,
        zone: zone.to_owned(),
        health,
        version,
        instance,
        target,
        mutual_tls,
    })
}
