//! What a data plane is told to check. What our sidecar can't ask is refused by its path, as in a resource.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::resource::{HealthCheck, Probe};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;
use phalanx_proto::envoy::service::health::v3 as wire;
use phalanx_proto::envoy::r#type::v3::{CodecClientType, Int64Range};

use super::field::{At, address, each, nonempty, ours, positive, refuse, single};
use super::{DecodeError, tls};
use crate::encode::hds::{Group, PORT};
use crate::encode::tls::mutual_endpoint;

/// Of one specifier.
const ENDPOINTS_MAX: usize = 4096;
/// Envoy's own defaults.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Answers that are good.
const SUCCESS: Int64Range = Int64Range {
    start: 200,
    end: 300,
};

/// The groups and the interval of reports; the inverse of [`crate::hds::specifier`], for one of any control plane.
///
/// # Errors
/// The path of what our sidecar can't check.
pub fn specifier(
    message: wire::HealthCheckSpecifier,
) -> Result<(Vec<Group>, Duration), DecodeError> {
    let at = At::Root("HealthCheckSpecifier");
    let wire::HealthCheckSpecifier {
        cluster_health_checks,
        interval,
    } = message;
    let interval = interval.map_or(Ok(REPORT_INTERVAL), |interval| {
        positive(&at.field("interval"), interval)
    })?;
    let groups = each(&at, "cluster_health_checks", cluster_health_checks, group)?;
    let count: usize = groups.iter().map(|group| group.endpoints.len()).sum();
    if count > ENDPOINTS_MAX {
        return Err(at.invalid(format!(
            "{count} endpoints, at most {ENDPOINTS_MAX} are checked"
        )));
    }
    Ok((groups, interval))
}

fn group(at: At<'_>, message: wire::ClusterHealthCheck) -> Result<Group, DecodeError> {
    let wire::ClusterHealthCheck {
        cluster_name,
        health_checks,
        locality_endpoints,
        transport_socket_matches,
        upstream_bind_config,
    } = message;
    refuse!(at; upstream_bind_config);
    let sockets_at = at.field("transport_socket_matches");
    let tls = tls::peer(sockets_at, transport_socket_matches, Protocol::Auto)?;
    let check_at = at.field("health_checks");
    let asked = check(check_at, single(&check_at, health_checks)?, tls.is_some())?;
    let mut endpoints = Vec::new();
    for (index, locality) in locality_endpoints.into_iter().enumerate() {
        let at = at.item("locality_endpoints", index);
        let zone = locality.locality.unwrap_or_default().zone;
        for address in each(&at, "endpoints", locality.endpoints, endpoint)? {
            endpoints.push((address, zone.clone()));
        }
    }
    Ok(Group {
        name: nonempty(&at.field("cluster_name"), cluster_name)?,
        endpoints,
        tls,
        ..asked
    })
}

fn endpoint(at: At<'_>, message: endpoint_v3::Endpoint) -> Result<SocketAddr, DecodeError> {
    let endpoint_v3::Endpoint {
        address: of,
        health_check_config,
        hostname: _, // only where a host is taken from it
        additional_addresses,
        observability_name: _, // Envoy's own statistics
    } = message;
    refuse!(at; health_check_config, additional_addresses);
    address(&at.field("address"), of)
}

/// A group that has no name and no endpoints yet.
#[expect(deprecated, reason = "every field is named")]
fn check(at: At<'_>, message: core_v3::HealthCheck, is_mutual: bool) -> Result<Group, DecodeError> {
    let core_v3::HealthCheck {
        timeout,
        interval,
        initial_jitter: _, // when exactly a question is asked is ours to choose
        interval_jitter: _,
        interval_jitter_percent: _,
        unhealthy_threshold,
        healthy_threshold,
        alt_port,
        reuse_connection: _,
        no_traffic_interval: _, // every interval is the one
        no_traffic_healthy_interval: _,
        unhealthy_interval: _,
        unhealthy_edge_interval: _,
        healthy_edge_interval: _,
        event_log_path: _, // Envoy's own log
        event_logger: _,
        event_service,
        always_log_health_check_failures: _,
        always_log_health_check_success: _,
        tls_options,
        transport_socket_match_criteria,
        health_checker,
    } = message;
    refuse!(at; alt_port, event_service, tls_options);
    if transport_socket_match_criteria != is_mutual.then(|| mutual_endpoint().1) {
        let at = at.field("transport_socket_match_criteria");
        return Err(
            at.invalid("has to ask for mutual TLS where there is a socket for it, and only there")
        );
    }
    let span = |name, value: Option<prost_types::Duration>| {
        let at = at.field(name);
        positive(&at, value.ok_or_else(|| at.missing())?)
    };
    let mut group = match health_checker.ok_or_else(|| at.field("health_checker").missing())? {
        HealthChecker::HttpHealthCheck(check) => http(at.field("http_health_check"), check)?,
        HealthChecker::GrpcHealthCheck(check) => grpc(at.field("grpc_health_check"), check)?,
        HealthChecker::TcpHealthCheck(check) => tcp(at.field("tcp_health_check"), check)?,
        HealthChecker::CustomHealthCheck(_) => {
            return Err(at.field("custom_health_check").unsupported());
        }
    };
    group.check.interval = span("interval", interval)?;
    group.check.timeout = span("timeout", timeout)?;
    group.check.healthy_threshold = healthy_threshold.unwrap_or(1).max(1);
    group.check.unhealthy_threshold = unhealthy_threshold.unwrap_or(1).max(1);
    Ok(group)
}

fn http(at: At<'_>, message: HttpHealthCheck) -> Result<Group, DecodeError> {
    let HttpHealthCheck {
        host,
        path,
        send,
        receive,
        response_buffer_size: _, // bodies are not read
        request_headers_to_add,
        request_headers_to_remove: _, // ours has none of them
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = message;
    refuse!(at; send, receive, retriable_statuses, service_name_matcher);
    ours(
        &at.field("expected_statuses"),
        &expected_statuses,
        &vec![SUCCESS],
    )?;
    ours(
        &at.field("method"),
        &method,
        &core_v3::RequestMethod::Get.into(),
    )?;
    if !path.starts_with('/') {
        return Err(at.field("path").invalid("must start with /"));
    }
    let http2 = match CodecClientType::try_from(codec_client_type) {
        Ok(CodecClientType::Http1) => false,
        Ok(CodecClientType::Http2) => true,
        _ => return Err(at.field("codec_client_type").unsupported()),
    };
    let port = port(&at.field("request_headers_to_add"), request_headers_to_add)?;
    Ok(asked(Probe::Http { path }, host, port, http2))
}

fn grpc(at: At<'_>, message: GrpcHealthCheck) -> Result<Group, DecodeError> {
    let GrpcHealthCheck {
        service_name: service,
        authority,
        initial_metadata,
    } = message;
    let port = port(&at.field("initial_metadata"), initial_metadata)?;
    Ok(asked(Probe::Grpc { service }, authority, port, true))
}

fn tcp(at: At<'_>, message: TcpHealthCheck) -> Result<Group, DecodeError> {
    let TcpHealthCheck {
        send,
        receive,
        proxy_protocol_config,
    } = message;
    refuse!(at; send, receive, proxy_protocol_config);
    Ok(asked(Probe::Tcp, String::new(), 0, false))
}

fn asked(probe: Probe, authority: String, port: u16, http2: bool) -> Group {
    Group {
        name: String::new(),
        check: HealthCheck::new(probe),
        authority,
        port,
        http2,
        tls: None,
        endpoints: Vec::new(),
    }
}

/// Of all headers only the one that a sidecar in front of the endpoint reads.
fn port(at: &At<'_>, headers: Vec<core_v3::HeaderValueOption>) -> Result<u16, DecodeError> {
    let mut port = 0;
    for header in headers.into_iter().filter_map(|option| option.header) {
        if !header.key.eq_ignore_ascii_case(PORT) {
            return Err(at.invalid(format!("only `{PORT}` is supported by this sidecar")));
        }
        let number = header.value.parse();
        port = number.map_err(|_| at.invalid(format!("`{}` is no port", header.value)))?;
    }
    Ok(port)
}

/// Of a report: none where it is no IP address and port.
pub(crate) fn socket(address: &core_v3::Address) -> Option<SocketAddr> {
    use core_v3::address::Address;
    use core_v3::socket_address::PortSpecifier;
    let Some(Address::SocketAddress(socket)) = &address.address else {
        return None;
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
        return None;
    };
    let ip: IpAddr = socket.address.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}
