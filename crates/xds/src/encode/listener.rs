//! Listeners: an HTTP connection manager that takes its routes over RDS, or a TCP proxy.
//!
//! Everything fixed about a listener is here, so that the mesh's table of limits and deadlines holds in a stock Envoy too.

use std::time::Duration;

use phalanx_model::name::Direction;
use phalanx_model::reason::{REASON_HEADER, Reason};
use phalanx_model::resource::{Listener, ListenerProtocol};
use phalanx_proto::envoy::config::accesslog::v3 as accesslog_v3;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::extensions::filters::http::router::v3::Router;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_v3;

use super::inbound::{self, Spoken};
use super::routes::{beside, set_header};
use super::{address, ads, any, duration, gateway, tls, udp};

pub(crate) const HTTP_FILTER: &str = "envoy.filters.network.http_connection_manager";
pub(crate) const TCP_FILTER: &str = "envoy.filters.network.tcp_proxy";
pub(crate) const ROUTER_FILTER: &str = "envoy.filters.http.router";

/// The mesh's table of limits: request head, header fields, concurrent streams, HTTP/2 windows.
const HEAD_KIB_MAX: u32 = 64;
const FIELDS_MAX: u32 = 100;
const STREAMS_MAX: u32 = 100;
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// The mesh's table of deadlines: a whole head, a connection without a stream, a stream without a byte, draining.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
const STREAM_IDLE_DEADLINE: Duration = Duration::from_secs(300);
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Which of our reasons an answer of Envoy's own has, by its response flags.
const LOCAL_REPLIES: [(Reason, &[&str]); 8] = [
    (Reason::NoRoute, &["NR"]),
    (Reason::InvalidBackend, &["NC"]),
    (Reason::NoHealthyUpstream, &["UH"]),
    (Reason::ConnectFailed, &["UF"]),
    (Reason::UpstreamReset, &["UC", "UR", "LR", "UPE"]),
    (Reason::Timeout, &["UT", "SI", "UMSDR"]),
    (Reason::Overflow, &["UO"]),
    (Reason::Overload, &["OM"]),
];

pub(crate) fn message(listener: &Listener) -> listener_v3::Listener {
    let (name, config) = match &listener.protocol {
        ListenerProtocol::Http { route_table } => (
            HTTP_FILTER,
            any(&connection_manager(
                &listener.name,
                listener.direction,
                route_table,
            )),
        ),
        ListenerProtocol::Tcp { cluster } => (
            TCP_FILTER,
            any(&tcp_proxy(&listener.name, cluster.to_string())),
        ),
        ListenerProtocol::Inbound {
            trust_domain,
            rules,
        } => {
            let (name, socket) = (&listener.name, listener.address);
            return inbound::message(name, socket, trust_domain, rules, Spoken::Http);
        }
        ListenerProtocol::Gateway(port) => {
            return gateway::message(&listener.name, listener.address, port);
        }
        ListenerProtocol::Udp(port) => {
            return udp::message(&listener.name, listener.address, port);
        }
    };
    let config_type = Some(listener_v3::filter::ConfigType::TypedConfig(config));
    let filters = vec![listener_v3::Filter {
        name: name.to_owned(),
        config_type,
    }];
    listener_v3::Listener {
        name: listener.name.clone(),
        address: Some(address(listener.address)),
        filter_chains: vec![listener_v3::FilterChain {
            filters,
            ..Default::default()
        }],
        traffic_direction: traffic_direction(listener.direction).into(),
        ..Default::default()
    }
}

/// The route table or cluster it names.
pub(crate) fn refs(listener: &Listener) -> Vec<String> {
    match &listener.protocol {
        ListenerProtocol::Http { route_table } => vec![route_table.clone()],
        ListenerProtocol::Tcp { cluster } => vec![cluster.to_string()],
        ListenerProtocol::Inbound { .. } => vec![inbound::NAME.to_owned()],
        ListenerProtocol::Gateway(port) => gateway::refs(port),
        ListenerProtocol::Udp(port) => udp::refs(port),
    }
}

/// Those it takes over SDS.
pub(crate) fn secrets(listener: &Listener) -> Vec<String> {
    match &listener.protocol {
        ListenerProtocol::Inbound { rules, .. } if inbound::takes_tls(rules) => tls::secrets(),
        _ => Vec::new(),
    }
}

fn traffic_direction(direction: Direction) -> core_v3::TrafficDirection {
    match direction {
        Direction::Inbound => core_v3::TrafficDirection::Inbound,
        Direction::Outbound => core_v3::TrafficDirection::Outbound,
    }
}

fn tcp_proxy(name: &str, cluster: String) -> tcp_v3::TcpProxy {
    tcp_v3::TcpProxy {
        stat_prefix: name.to_owned(),
        cluster_specifier: Some(tcp_v3::tcp_proxy::ClusterSpecifier::Cluster(cluster)),
        ..Default::default()
    }
}

/// `strip_any_host_port` stays off: domains carry ports.
pub(crate) fn connection_manager(
    name: &str,
    direction: Direction,
    route_table: &str,
) -> hcm_v3::HttpConnectionManager {
    use hcm_v3::http_connection_manager::{
        CodecType, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
        UpgradeConfig,
    };
    let rds = hcm_v3::Rds {
        config_source: Some(ads()),
        route_config_name: route_table.to_owned(),
    };
    // What routes can ask for, they ask of callers' sidecars.
    let http_filters = match direction {
        Direction::Inbound => vec![router()],
        Direction::Outbound => route_filters(),
    };
    hcm_v3::HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters,
        common_http_protocol_options: Some(common_options(direction)),
        http2_protocol_options: Some(http2_options()),
        // As our sidecar: an answer's `server` is the application's.
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        max_request_headers_kb: Some(HEAD_KIB_MAX),
        stream_idle_timeout: Some(duration(STREAM_IDLE_DEADLINE)),
        request_headers_timeout: Some(duration(HEAD_DEADLINE)),
        drain_timeout: Some(duration(DRAIN_DEADLINE)),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        normalize_path: Some(true),
        merge_slashes: true,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::RejectRequest.into(),
        local_reply_config: Some(local_replies()),
        strip_trailing_host_dot: true,
        ..Default::default()
    }
}

/// What routes can ask for, and the router.
pub(super) fn route_filters() -> Vec<hcm_v3::HttpFilter> {
    let mut filters = beside::filters();
    filters.push(router());
    filters
}

/// The last filter. Envoy takes a connection manager without it and then lets requests hang.
pub(super) fn router() -> hcm_v3::HttpFilter {
    let router = Router {
        suppress_envoy_headers: true,
        ..Default::default()
    };
    hcm_v3::HttpFilter {
        name: ROUTER_FILTER.to_owned(),
        config_type: Some(hcm_v3::http_filter::ConfigType::TypedConfig(any(&router))),
        ..Default::default()
    }
}

/// Inbound is an edge, where an underscore could disguise an internal header; the application's own calls are not.
fn common_options(direction: Direction) -> core_v3::HttpProtocolOptions {
    use core_v3::http_protocol_options::HeadersWithUnderscoresAction;
    let underscores = match direction {
        Direction::Inbound => HeadersWithUnderscoresAction::DropHeader,
        Direction::Outbound => HeadersWithUnderscoresAction::Allow,
    };
    core_v3::HttpProtocolOptions {
        idle_timeout: Some(duration(IDLE_DEADLINE)),
        max_headers_count: Some(FIELDS_MAX),
        headers_with_underscores_action: underscores.into(),
        ..Default::default()
    }
}

fn http2_options() -> core_v3::Http2ProtocolOptions {
    core_v3::Http2ProtocolOptions {
        max_concurrent_streams: Some(STREAMS_MAX),
        initial_stream_window_size: Some(STREAM_WINDOW),
        initial_connection_window_size: Some(CONNECTION_WINDOW),
        ..Default::default()
    }
}

fn local_replies() -> hcm_v3::LocalReplyConfig {
    use accesslog_v3::access_log_filter::FilterSpecifier;
    let mapper = |(reason, flags): &(Reason, &[&str])| {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let filter =
            FilterSpecifier::ResponseFlagFilter(accesslog_v3::ResponseFlagFilter { flags });
        hcm_v3::ResponseMapper {
            filter: Some(accesslog_v3::AccessLogFilter {
                filter_specifier: Some(filter),
            }),
            headers_to_add: vec![set_header(REASON_HEADER, reason.as_str())],
            ..Default::default()
        }
    };
    hcm_v3::LocalReplyConfig {
        mappers: LOCAL_REPLIES.iter().map(mapper).collect(),
        ..Default::default()
    }
}
