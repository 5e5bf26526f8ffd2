//! The listener for what others send to an application: mutual TLS, plain text or both, and who may call, as filter chains
//! that a stock Envoy runs. The chains of a rule differ only in who the caller can be.

use std::net::SocketAddr;
use std::time::Duration;

use phalanx_model::identity::TrustDomain;
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::{Access, Inbound, InboundRule, MtlsMode};
use phalanx_proto::envoy::config::cluster::v3 as cluster_v3;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_v3;
use phalanx_proto::envoy::extensions::upstreams::http::v3 as upstreams_v3;
use prost::Name;

use super::gateway::{self, COLOURS};
use super::listener::{self, HTTP_FILTER, TCP_FILTER};
use super::{access, address, any, cluster, duration, limits, metadata, tls};

/// The listener, its cluster and its routes.
pub const NAME: &str = "inbound";
/// Under [`super::METADATA`].
pub(crate) const TRUST_DOMAIN: &str = "trust_domain";

pub(crate) const INSPECTOR: &str = "envoy.filters.listener.tls_inspector";
const NETWORK_RBAC: &str = "envoy.filters.network.rbac";
/// What the inspector makes of the first bytes.
pub(crate) const OVER_TLS: &str = "tls";
pub(crate) const IN_PLAIN: &str = "raw_buffer";

/// What speaks on the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http,
    /// By a stock Envoy, which asks the control plane about global limits.
    HttpOfEnvoy,
    Tcp,
}

pub(crate) fn message(
    name: &str,
    socket: SocketAddr,
    trust_domain: &TrustDomain,
    rules: &Inbound,
    spoken: Spoken,
) -> listener_v3::Listener {
    let colour = rules.colours.default.as_deref();
    let of_ports = rules.ports.iter().map(|(port, rule)| (Some(*port), rule));
    let all = of_ports.chain([(None, &rules.default)]);
    let inspector = listener_v3::ListenerFilter {
        name: INSPECTOR.to_owned(),
        config_type: Some(listener_v3::listener_filter::ConfigType::TypedConfig(any(
            &TlsInspector::default(),
        ))),
        ..Default::default()
    };
    listener_v3::Listener {
        name: name.to_owned(),
        address: Some(address(socket)),
        filter_chains: all
            .flat_map(|(port, rule)| chains(port, rule, trust_domain, colour, spoken))
            .collect(),
        listener_filters: vec![inspector],
        traffic_direction: core_v3::TrafficDirection::Inbound.into(),
        metadata: metadata(&[
            (TRUST_DOMAIN, trust_domain.as_str()),
            (COLOURS, &rules.colours.to_string()),
        ]),
        ..Default::default()
    }
}

/// A connection that no chain matches is closed.
fn chains(
    port: Option<u16>,
    rule: &InboundRule,
    trust_domain: &TrustDomain,
    colour: Option<&str>,
    spoken: Spoken,
) -> impl Iterator<Item = listener_v3::FilterChain> + use<> {
    let transports: &[&str] = match rule.mode {
        MtlsMode::Permissive => &[OVER_TLS, IN_PLAIN],
        MtlsMode::Strict => &[OVER_TLS],
        MtlsMode::Off => &[IN_PLAIN],
    };
    let filters = |transport: &str| match spoken {
        Spoken::Http | Spoken::HttpOfEnvoy => {
            // Where others show who they are, a caller in plain text may be from anywhere.
            let is_edge = transport == IN_PLAIN && rule.mode == MtlsMode::Permissive;
            let recolour = is_edge.then(|| gateway::recolour(colour));
            vec![http(rule, trust_domain, recolour, spoken)]
        }
        Spoken::Tcp => tcp(&rule.access, trust_domain),
    };
    // Nothing is known of raw TCP that could be limited.
    let words = match spoken {
        Spoken::Http | Spoken::HttpOfEnvoy => limits::words(&rule.limits),
        Spoken::Tcp => None,
    };
    let chain = |transport: &str| listener_v3::FilterChain {
        filter_chain_match: Some(listener_v3::FilterChainMatch {
            destination_port: port.map(u32::from),
            transport_protocol: transport.to_owned(),
            ..Default::default()
        }),
        filters: filters(transport),
        transport_socket: Some(match transport {
            OVER_TLS => tls::downstream(trust_domain, spoken == Spoken::Tcp),
            _ => tls::plain(),
        }),
        metadata: words.clone(),
        name: match port {
            Some(port) => format!("{port} {transport}"),
            None => transport.to_owned(),
        },
        ..Default::default()
    };
    transports
        .iter()
        .map(|transport| chain(transport))
        .collect::<Vec<_>>()
        .into_iter()
}

/// The caller's id replaces whatever it says of itself; nobody's is taken away.
fn http(
    rule: &InboundRule,
    trust_domain: &TrustDomain,
    recolour: Option<core_v3::TypedExtensionConfig>,
    spoken: Spoken,
) -> listener_v3::Filter {
    use hcm_v3::http_connection_manager::{
        ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails,
    };
    let manager = listener::connection_manager(NAME, Direction::Inbound, "");
    let router = manager.http_filters.clone();
    let manager = hcm_v3::HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(routes())),
        http_filters: access::filters(&rule.access, trust_domain)
            .into_iter()
            .chain(limits::filters(&rule.limits, spoken == Spoken::HttpOfEnvoy))
            .chain(router)
            .collect(),
        early_header_mutation_extensions: recolour.into_iter().collect(),
        forward_client_cert_details: ForwardClientCertDetails::SanitizeSet.into(),
        set_current_client_cert_details: Some(SetCurrentClientCertDetails {
            uri: true,
            ..Default::default()
        }),
        ..manager
    };
    filter(HTTP_FILTER, &manager)
}

/// Deadlines are the caller's.
fn routes() -> route_v3::RouteConfiguration {
    use route_v3::route_action::ClusterSpecifier;
    use route_v3::route_match::PathSpecifier;
    let action = route_v3::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(NAME.to_owned())),
        timeout: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    let route = route_v3::Route {
        r#match: Some(route_v3::RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(route_v3::route::Action::Route(action)),
        ..Default::default()
    };
    let host = route_v3::VirtualHost {
        name: NAME.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..Default::default()
    };
    route_v3::RouteConfiguration {
        name: NAME.to_owned(),
        virtual_hosts: vec![host],
        validate_clusters: Some(false),
        ..Default::default()
    }
}

fn tcp(access: &Access, trust_domain: &TrustDomain) -> Vec<listener_v3::Filter> {
    let proxy = tcp_v3::TcpProxy {
        stat_prefix: NAME.to_owned(),
        cluster_specifier: Some(tcp_v3::tcp_proxy::ClusterSpecifier::Cluster(
            NAME.to_owned(),
        )),
        ..Default::default()
    };
    access::network(access, trust_domain)
        .iter()
        .map(|rbac| filter(NETWORK_RBAC, rbac))
        .chain([filter(TCP_FILTER, &proxy)])
        .collect()
}

fn filter<M: Name>(name: &str, config: &M) -> listener_v3::Filter {
    listener_v3::Filter {
        name: name.to_owned(),
        config_type: Some(listener_v3::filter::ConfigType::TypedConfig(any(config))),
    }
}

/// It is spoken to in the version of HTTP that the caller speaks.
pub(crate) fn application(at: SocketAddr) -> cluster_v3::Cluster {
    use cluster_v3::cluster::{ClusterDiscoveryType, DiscoveryType};
    use endpoint_v3::lb_endpoint::HostIdentifier;
    let host = endpoint_v3::Endpoint {
        address: Some(address(at)),
        ..Default::default()
    };
    let endpoint = endpoint_v3::LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(host)),
        ..Default::default()
    };
    let options = upstreams_v3::HttpProtocolOptions {
        upstream_protocol_options: Some(cluster::protocol_options(Protocol::Auto)),
        ..Default::default()
    };
    cluster_v3::Cluster {
        name: NAME.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: Some(duration(CONNECT)),
        load_assignment: Some(endpoint_v3::ClusterLoadAssignment {
            cluster_name: NAME.to_owned(),
            endpoints: vec![endpoint_v3::LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..Default::default()
            }],
            ..Default::default()
        }),
        typed_extension_protocol_options: [(cluster::HTTP_OPTIONS.to_owned(), any(&options))]
            .into(),
        ..Default::default()
    }
}

/// To an application on the same machine.
const CONNECT: Duration = Duration::from_secs(1);

/// Whether any caller is taken over TLS, for which the secrets are needed.
pub(crate) fn takes_tls(rules: &Inbound) -> bool {
    let mut all = rules.ports.values().chain([&rules.default]);
    all.any(|rule| rule.mode != MtlsMode::Off)
}
