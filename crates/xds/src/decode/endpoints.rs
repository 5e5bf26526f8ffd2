//! Endpoint sets. Zones are told apart, and two priorities; not locality weights: an endpoint's own weight decides.

use phalanx_model::resource::{Assignment, Endpoint, Health, udp};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;

use super::field::{At, cluster_name, either_address, metadata, refuse};
use super::{DecodeError, tls};
use crate::encode::endpoints::{INSTANCE, PORT, TOKEN, VERSION};

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
    refuse!(at; named_endpoints);
    let overprovision = overprovision(at.field("policy"), policy)?;
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
        overprovision,
    })
}

/// None where nothing is said: then there is no other priority that it would matter to.
fn overprovision(
    at: At<'_>,
    policy: Option<endpoint_v3::cluster_load_assignment::Policy>,
) -> Result<Option<u32>, DecodeError> {
    let Some(policy) = policy else {
        return Ok(None);
    };
    let endpoint_v3::cluster_load_assignment::Policy {
        drop_overloads,
        overprovisioning_factor,
        endpoint_stale_after,
        weighted_priority_health,
    } = policy;
    refuse!(at; drop_overloads, endpoint_stale_after, weighted_priority_health);
    if overprovisioning_factor == Some(0) {
        return Err(at.field("overprovisioning_factor").invalid("must be more"));
    }
    Ok(overprovisioning_factor)
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
    refuse!(at; proximity, lb_config);
    let is_far = match priority {
        0 => false,
        1 => true,
        _ => return Err(at.field("priority").invalid("is more than 1")),
    };
    let core_v3::Locality {
        region,
        zone,
        sub_zone,
    } = locality.unwrap_or_default();
    let locality_at = at.field("locality");
    refuse!(locality_at; region, sub_zone);
    for (index, message) in lb_endpoints.into_iter().enumerate() {
        let found = endpoint(at.item("lb_endpoints", index), message, &zone)?;
        endpoints.push(Endpoint { is_far, ..found });
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
    let words = metadata(&words_at, words, [VERSION, INSTANCE, PORT, TOKEN])?;
    let [version, instance, port, token] = words;
    let is_token =
        || udp::token(&token).is_some() && !token.bytes().any(|b| b.is_ascii_uppercase());
    if !token.is_empty() && !is_token() {
        return Err(words_at.invalid(format!("`{TOKEN}` is no lower-case hex: {token}")));
    }
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
    let (address, datagrams) = either_address(&at.field("address"), socket)?;
    Ok(Endpoint {
        address,
        weight,
        zone: zone.to_owned(),
        is_far: false,
        health,
        version,
        instance,
        target,
        mutual_tls,
        datagrams,
        token,
    })
}
