//! What a data plane is told to check, and the report of one that was told.

use std::net::SocketAddr;
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::resource::{HealthCheck, PeerTls, Probe};
use phalanx_proto::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;
use phalanx_proto::envoy::service::health::v3 as wire;
use phalanx_proto::envoy::service::health::v3::health_check_request_or_endpoint_health_response::RequestType;
use phalanx_proto::envoy::r#type::v3::{CodecClientType, Int64Range};

use super::{address, duration, string, tls};

/// Endpoints that are asked the same question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Unique within a specifier.
    pub name: String,
    pub check: HealthCheck,
    /// Of a question over HTTP.
    pub authority: String,
    /// The port of the application that a sidecar is asked for; 0 where nobody needs to be told.
    pub port: u16,
    /// Ask over HTTP/2; gRPC always does.
    pub http2: bool,
    /// Ask over mutual TLS, and whom to expect.
    pub tls: Option<PeerTls>,
    /// With their zones.
    pub endpoints: Vec<(SocketAddr, String)>,
}

/// What to check, and how often to report.
pub fn specifier(groups: &[Group], interval: Duration) -> wire::HealthCheckSpecifier {
    wire::HealthCheckSpecifier {
        cluster_health_checks: groups.iter().map(cluster).collect(),
        interval: Some(duration(interval)),
    }
}

fn cluster(group: &Group) -> wire::ClusterHealthCheck {
    let mut zones: Vec<&str> = group
        .endpoints
        .iter()
        .map(|(_, zone)| zone.as_str())
        .collect();
    zones.sort_unstable();
    zones.dedup();
    let locality = |zone: &str| wire::LocalityEndpoints {
        locality: Some(core_v3::Locality {
            zone: zone.to_owned(),
            ..Default::default()
        }),
        endpoints: group
            .endpoints
            .iter()
            .filter(|(_, of)| of == zone)
            .map(|(address, _)| endpoint(*address))
            .collect(),
    };
    wire::ClusterHealthCheck {
        cluster_name: group.name.clone(),
        health_checks: vec![health_check(group)],
        locality_endpoints: zones.into_iter().map(locality).collect(),
        transport_socket_matches: group.tls.as_ref().map_or_else(Vec::new, sockets),
        ..Default::default()
    }
}

/// As towards a cluster that speaks HTTP.
pub(crate) fn sockets(tls: &PeerTls) -> Vec<TransportSocketMatch> {
    tls::socket_matches(tls, Protocol::Auto)
}

fn endpoint(at: SocketAddr) -> endpoint_v3::Endpoint {
    endpoint_v3::Endpoint {
        address: Some(address(at)),
        ..Default::default()
    }
}

fn health_check(group: &Group) -> core_v3::HealthCheck {
    let check = &group.check;
    let jitter = check.interval / JITTER_PARTS;
    let headers = (group.port != 0).then(|| core_v3::HeaderValueOption {
        header: Some(core_v3::HeaderValue {
            key: PORT.to_owned(),
            value: group.port.to_string(),
            ..Default::default()
        }),
        ..Default::default()
    });
    let headers = headers.into_iter().collect();
    let checker = match &check.probe {
        Probe::Tcp => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
        Probe::Http { path } => HealthChecker::HttpHealthCheck(HttpHealthCheck {
            host: group.authority.clone(),
            path: path.clone(),
            request_headers_to_add: headers,
            // Envoy's own default is 200 alone.
            expected_statuses: vec![Int64Range {
                start: 200,
                end: 300,
            }],
            codec_client_type: match group.http2 {
                true => CodecClientType::Http2.into(),
                false => CodecClientType::Http1.into(),
            },
            ..Default::default()
        }),
        Probe::Grpc { service } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: service.clone(),
            authority: group.authority.clone(),
            initial_metadata: headers,
        }),
    };
    core_v3::HealthCheck {
        timeout: Some(duration(check.timeout)),
        interval: Some(duration(check.interval)),
        interval_jitter: Some(duration(jitter)),
        unhealthy_threshold: Some(check.unhealthy_threshold),
        healthy_threshold: Some(check.healthy_threshold),
        // Whether an endpoint takes connections is part of the answer.
        reuse_connection: Some(false),
        // Envoy would ask an endpoint without traffic once a minute only, and a checker never has any.
        no_traffic_interval: Some(duration(check.interval)),
        no_traffic_healthy_interval: Some(duration(check.interval)),
        // All endpoints of a group are asked the same way.
        transport_socket_match_criteria: group.tls.as_ref().map(|_| tls::mutual_endpoint().1),
        health_checker: Some(checker),
        ..Default::default()
    }
}

/// The report of a checker: endpoints by group, each healthy or not and why.
pub fn report<'a>(
    lines: impl IntoIterator<Item = (&'a str, SocketAddr, Result<(), &'a str>)>,
) -> wire::HealthCheckRequestOrEndpointHealthResponse {
    let mut clusters: Vec<wire::ClusterEndpointsHealth> = Vec::new();
    for (name, address, state) in lines {
        let (status, reason) = match state {
            Ok(()) => (core_v3::HealthStatus::Healthy, None),
            Err(reason) => (core_v3::HealthStatus::Unhealthy, Some(reason)),
        };
        let line = wire::EndpointHealth {
            endpoint: Some(endpoint(address)),
            health_status: status.into(),
            health_metadata: reason.map(|reason| prost_types::Struct {
                fields: [(REASON.to_owned(), string(reason))].into(),
            }),
        };
        if clusters.last().is_none_or(|last| last.cluster_name != name) {
            clusters.push(wire::ClusterEndpointsHealth {
                cluster_name: name.to_owned(),
                locality_endpoints_health: vec![Default::default()],
            });
        }
        let localities = clusters
            .last_mut()
            .map(|last| &mut last.locality_endpoints_health);
        if let Some(locality) = localities.and_then(|all| all.first_mut()) {
            locality.endpoints_health.push(line);
        }
    }
    let response = wire::EndpointHealthResponse {
        cluster_endpoints_health: clusters,
        ..Default::default()
    };
    wire::HealthCheckRequestOrEndpointHealthResponse {
        request_type: Some(RequestType::EndpointHealthResponse(response)),
    }
}

/// The first message of a checker: who it is and what it can ask.
pub fn introduction(node: core_v3::Node) -> wire::HealthCheckRequestOrEndpointHealthResponse {
    use wire::capability::Protocol;
    let request = wire::HealthCheckRequest {
        node: Some(node),
        capability: Some(wire::Capability {
            health_check_protocols: vec![Protocol::Http.into(), Protocol::Tcp.into()],
        }),
    };
    wire::HealthCheckRequestOrEndpointHealthResponse {
        request_type: Some(RequestType::HealthCheckRequest(request)),
    }
}

/// Of a check over HTTP or gRPC, the header that says which port of the application is meant.
pub(crate) const PORT: &str = "x-phalanx-port";
/// In the metadata of a line: why the endpoint is unhealthy.
pub(crate) const REASON: &str = "reason";
/// The jitter is the interval over this.
const JITTER_PARTS: u32 = 10;
