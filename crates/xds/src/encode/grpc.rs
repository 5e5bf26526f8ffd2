//! Model → Envoy v3 in the dialect of proxyless gRPC clients and servers, who understand less than Envoy, refuse what they
//! do not know in some places and pass over it in others. What can't be said to them fails closed: a rule with something
//! they would pass over ([`refusal`]) leads to a cluster without endpoints, so its calls end with UNAVAILABLE.
//!
//! Sources: gRFC A27, A28, A31, A32, A36, A41, A42, A44; tried with C-core, grpc-js-xds and gRPC Go.

mod routes;

use std::collections::BTreeMap;

use phalanx_model::name::INVALID_BACKEND;
use phalanx_model::resource::{
    ApiListener, Assignment, Cluster, Endpoint, LoadBalancer, RouteTable, ServerListener,
};
use phalanx_proto::envoy::config::cluster::v3 as cluster_v3;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use phalanx_proto::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use phalanx_proto::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
use prost::Name;

pub use self::routes::{Refusal, losses, refusal};
use super::listener::{HTTP_FILTER, router};
use super::{access, address, ads, any, encoded, tls};
use crate::kind::Kind;
use crate::snapshot::Encoded;

/// A name to dial: no socket, only where its routes come from.
pub fn api_listener(listener: &ApiListener) -> Encoded {
    use hcm_v3::http_connection_manager::RouteSpecifier;
    let rds = hcm_v3::Rds {
        config_source: Some(ads()),
        route_config_name: listener.route_table.clone(),
    };
    let manager = manager(RouteSpecifier::Rds(rds), vec![router()]);
    let message = listener_v3::Listener {
        name: listener.name.clone(),
        api_listener: Some(listener_v3::ApiListener {
            api_listener: Some(any(&manager)),
        }),
        ..Default::default()
    };
    let refs = vec![listener.route_table.clone()];
    encoded(Kind::Listener, &listener.name, &message, refs)
}

/// The socket of a server: who may call is checked by filters, everything else is the server's own.
pub fn server_listener(listener: &ServerListener) -> Encoded {
    use hcm_v3::http_connection_manager::RouteSpecifier;
    let filters = access::filters(&listener.access, &listener.trust_domain)
        .into_iter()
        .chain([router()])
        .collect();
    let manager = manager(
        RouteSpecifier::RouteConfig(routes::own(&listener.name)),
        filters,
    );
    let filter = listener_v3::Filter {
        name: HTTP_FILTER.to_owned(),
        config_type: Some(listener_v3::filter::ConfigType::TypedConfig(any(&manager))),
    };
    let message = listener_v3::Listener {
        name: listener.name.clone(),
        address: Some(address(listener.address)),
        filter_chains: vec![listener_v3::FilterChain {
            filters: vec![filter],
            transport_socket: listener.tls.and_then(tls::provided_downstream),
            ..Default::default()
        }],
        traffic_direction: core_v3::TrafficDirection::Inbound.into(),
        ..Default::default()
    };
    encoded(Kind::Listener, &listener.name, &message, Vec::new())
}

/// A table that only one name leads to, so its hosts hold for whatever authority the client dials with.
pub fn routes(table: &RouteTable) -> Encoded {
    encoded(
        Kind::Routes,
        &table.name,
        &routes::message(table),
        routes::refs(table),
    )
}

/// Refused by clients: `LEAST_REQUEST` and `RANDOM` as `lb_policy`. Of a list they take the first policy they know.
pub fn cluster(cluster: &Cluster) -> Encoded {
    let mut message = eds_cluster(&cluster.name.to_string());
    message.transport_socket = cluster.tls.as_ref().map(tls::provided_upstream);
    message.load_balancing_policy = policies(cluster.load_balancer);
    message.circuit_breakers = Some(max_requests(cluster.circuit_breaker.max_requests));
    encoded(
        Kind::Cluster,
        &cluster.name.to_string(),
        &message,
        Vec::new(),
    )
}

/// Only endpoints that may get new calls (a client of gRPC's knows no panic: where none is healthy it is told so of all that
/// there are), by zone and weight: gRPC's round robin knows no weights, but those of localities.
pub fn endpoints(assignment: &Assignment) -> Encoded {
    let mut groups = BTreeMap::<&str, BTreeMap<u32, Vec<&Endpoint>>>::new();
    for endpoint in assignment.serving() {
        let zone = groups.entry(&endpoint.zone).or_default();
        zone.entry(endpoint.weight).or_default().push(endpoint);
    }
    let localities = groups.iter().flat_map(|(zone, weights)| {
        let is_uniform = weights.len() == 1;
        weights
            .iter()
            .map(move |(weight, endpoints)| locality(zone, is_uniform, *weight, endpoints))
    });
    let name = assignment.cluster.to_string();
    let message = endpoint_v3::ClusterLoadAssignment {
        cluster_name: name.clone(),
        endpoints: localities.collect(),
        ..Default::default()
    };
    encoded(Kind::Endpoints, &name, &message, Vec::new())
}

/// The cluster of what can't be served: it has no endpoint, so calls to it end with UNAVAILABLE at once. One that does
/// not exist would keep a client from using the whole table for 15 s.
pub fn nowhere() -> [Encoded; 2] {
    let set = endpoint_v3::ClusterLoadAssignment {
        cluster_name: INVALID_BACKEND.to_owned(),
        ..Default::default()
    };
    [
        encoded(
            Kind::Cluster,
            INVALID_BACKEND,
            &eds_cluster(INVALID_BACKEND),
            Vec::new(),
        ),
        encoded(Kind::Endpoints, INVALID_BACKEND, &set, Vec::new()),
    ]
}

/// Only what gRPC reads; Envoy demands the prefix. The router comes last, or clients refuse the listener.
fn manager(
    routes: hcm_v3::http_connection_manager::RouteSpecifier,
    http_filters: Vec<hcm_v3::HttpFilter>,
) -> hcm_v3::HttpConnectionManager {
    hcm_v3::HttpConnectionManager {
        stat_prefix: "grpc".to_owned(),
        route_specifier: Some(routes),
        http_filters,
        ..Default::default()
    }
}

fn eds_cluster(name: &str) -> cluster_v3::Cluster {
    use cluster_v3::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
    cluster_v3::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: name.to_owned(),
        }),
        ..Default::default()
    }
}

/// Zones by weight; within one what the client has of what was asked for.
fn policies(load_balancer: LoadBalancer) -> Option<cluster_v3::LoadBalancingPolicy> {
    let two_choices = LeastRequest {
        choice_count: Some(2),
        ..Default::default()
    };
    let preferred = match load_balancer {
        LoadBalancer::P2c | LoadBalancer::LeastRequest => Some(policy(&two_choices)),
        LoadBalancer::RoundRobin
        | LoadBalancer::Random
        | LoadBalancer::RingHash
        | LoadBalancer::Maglev => None,
    };
    let within = preferred
        .into_iter()
        .chain([policy(&RoundRobin::default())])
        .collect();
    let zones = WrrLocality {
        endpoint_picking_policy: Some(cluster_v3::LoadBalancingPolicy { policies: within }),
    };
    Some(cluster_v3::LoadBalancingPolicy {
        policies: vec![policy(&zones)],
    })
}

fn policy<M: Name>(config: &M) -> cluster_v3::load_balancing_policy::Policy {
    cluster_v3::load_balancing_policy::Policy {
        typed_extension_config: Some(core_v3::TypedExtensionConfig {
            name: M::NAME.to_owned(),
            typed_config: Some(any(config)),
        }),
    }
}

fn max_requests(max: u32) -> cluster_v3::CircuitBreakers {
    use cluster_v3::circuit_breakers::Thresholds;
    cluster_v3::CircuitBreakers {
        thresholds: vec![Thresholds {
            priority: core_v3::RoutingPriority::Default.into(),
            max_requests: Some(max),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Without a weight of its own a locality is silently passed over.
fn locality(
    zone: &str,
    is_uniform: bool,
    weight: u32,
    endpoints: &[&Endpoint],
) -> endpoint_v3::LocalityLbEndpoints {
    let sub_zone = match is_uniform {
        true => String::new(),
        false => format!("weight-{weight}"),
    };
    let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
    endpoint_v3::LocalityLbEndpoints {
        locality: Some(core_v3::Locality {
            zone: zone.to_owned(),
            sub_zone,
            ..Default::default()
        }),
        lb_endpoints: endpoints.iter().map(|e| lb_endpoint(e)).collect(),
        load_balancing_weight: Some(weight.saturating_mul(count)),
        ..Default::default()
    }
}

fn lb_endpoint(endpoint: &Endpoint) -> endpoint_v3::LbEndpoint {
    use endpoint_v3::lb_endpoint::HostIdentifier;
    let host = endpoint_v3::Endpoint {
        address: Some(address(endpoint.address)),
        ..Default::default()
    };
    endpoint_v3::LbEndpoint {
        health_status: core_v3::HealthStatus::Healthy.into(),
        load_balancing_weight: Some(endpoint.weight),
        host_identifier: Some(HostIdentifier::Endpoint(host)),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
