//! The listeners of an edge: a filter chain for each name in the handshake, which ends TLS or passes it through. Towards the
//! world outside, headers of the mesh are taken away before anything is matched, and the caller's address is told.

use std::net::SocketAddr;

use hcm_v3::http_connection_manager::ForwardClientCertDetails;
use listener_v3::listener_filter::ConfigType as ListenerFilterConfig;
use matcher_v3::string_matcher::MatchPattern;
use phalanx_model::ServiceName;
use phalanx_model::name::{Direction, INVALID_BACKEND};
use phalanx_model::resource::colour::{CANARY_HEADER, COLOUR_HEADER};
use phalanx_model::resource::gateway::{
    Chain, ChainTarget, ChainTls, GatewayPort, STRIPPED, STRIPPED_PREFIXES, Share,
};
use phalanx_proto::envoy::config::common::mutation_rules::v3 as mutation_v3;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_v3;
use phalanx_proto::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation;
use phalanx_proto::envoy::extensions::transport_sockets::tls::v3 as tls_v3;
use phalanx_proto::envoy::r#type::matcher::v3 as matcher_v3;
use prost::Name;

use super::inbound::{INSPECTOR, OVER_TLS};
use super::listener::{self, HTTP_FILTER, TCP_FILTER};
use super::{address, any, metadata, tls};

/// Under [`super::METADATA`].
pub(crate) const GATEWAY: &str = "gateway";
pub(crate) const CERTIFICATES_IN: &str = "certificates_in";
/// Also of inbound listeners.
pub(crate) const COLOURS: &str = "colours";

const STRIP: &str = "envoy.http.early_header_mutation.header_mutation";

pub(crate) fn message(name: &str, socket: SocketAddr, port: &GatewayPort) -> listener_v3::Listener {
    let reads_names = port.chains.iter().any(|chain| chain.tls != ChainTls::Off);
    let inspector = || listener_v3::ListenerFilter {
        name: INSPECTOR.to_owned(),
        config_type: Some(ListenerFilterConfig::TypedConfig(any(
            &TlsInspector::default(),
        ))),
        ..Default::default()
    };
    let words = [
        (GATEWAY, &*of(&port.gateway)),
        (CERTIFICATES_IN, &*port.certificates_in),
        (COLOURS, &*port.colours.to_string()),
    ];
    listener_v3::Listener {
        name: name.to_owned(),
        address: Some(address(socket)),
        filter_chains: port
            .chains
            .iter()
            .flat_map(|each| coloured(name, each, port))
            .collect(),
        listener_filters: reads_names.then(inspector).into_iter().collect(),
        traffic_direction: core_v3::TrafficDirection::Outbound.into(),
        metadata: metadata(&words),
        ..Default::default()
    }
}

/// The word that says whose it is.
fn of(gateway: &ServiceName) -> String {
    gateway.to_string()
}

/// The route tables and clusters that its chains name.
pub(crate) fn refs(port: &GatewayPort) -> Vec<String> {
    let of = |chain: &Chain| match &chain.target {
        ChainTarget::Http(table) => vec![table.clone()],
        ChainTarget::Stream(shares) => {
            let clusters = shares.iter().filter_map(|share| share.cluster.as_ref());
            clusters.map(ToString::to_string).collect()
        }
    };
    port.chains.iter().flat_map(of).collect()
}

/// A chain, and where it ends in HTTP one more for each network that has a colour of its own.
fn coloured(name: &str, each: &Chain, port: &GatewayPort) -> Vec<listener_v3::FilterChain> {
    let colours = &port.colours;
    let folder = &port.certificates_in;
    let mut chains = vec![chain(name, each, folder, colours.default.as_deref())];
    if matches!(each.target, ChainTarget::Http(_)) {
        chains.extend(colours.networks.iter().map(|(network, colour)| {
            let mut of_network = chain(name, each, folder, Some(colour));
            let matched = of_network.filter_chain_match.get_or_insert_default();
            matched.source_prefix_ranges = vec![core_v3::CidrRange {
                address_prefix: network.address.to_string(),
                prefix_len: Some(network.prefix.into()),
            }];
            of_network
        }));
    }
    chains
}

fn chain(
    name: &str,
    chain: &Chain,
    folder: &str,
    colour: Option<&str>,
) -> listener_v3::FilterChain {
    let over_tls = || listener_v3::FilterChainMatch {
        server_names: chain.names.clone(),
        transport_protocol: OVER_TLS.to_owned(),
        ..Default::default()
    };
    let (matched, socket) = match &chain.tls {
        ChainTls::Off => (None, None),
        ChainTls::Passthrough => (Some(over_tls()), None),
        ChainTls::Terminate(certificates) => {
            (Some(over_tls()), Some(terminate(certificates, folder)))
        }
    };
    let filter = match &chain.target {
        ChainTarget::Http(table) => filter(HTTP_FILTER, &http(name, table, colour)),
        ChainTarget::Stream(shares) => filter(TCP_FILTER, &stream(name, shares)),
    };
    listener_v3::FilterChain {
        filter_chain_match: matched,
        filters: vec![filter],
        transport_socket: socket,
        ..Default::default()
    }
}

fn filter<M: Name>(name: &str, config: &M) -> listener_v3::Filter {
    listener_v3::Filter {
        name: name.to_owned(),
        config_type: Some(listener_v3::filter::ConfigType::TypedConfig(any(config))),
    }
}

/// As everywhere, and besides: whoever calls is nobody, and the address is that of the connection.
fn http(name: &str, table: &str, colour: Option<&str>) -> hcm_v3::HttpConnectionManager {
    hcm_v3::HttpConnectionManager {
        use_remote_address: Some(true),
        preserve_external_request_id: true,
        forward_client_cert_details: ForwardClientCertDetails::Sanitize.into(),
        early_header_mutation_extensions: vec![strip(colour)],
        // Its routes are those of callers.
        http_filters: listener::route_filters(),
        ..listener::connection_manager(name, Direction::Inbound, table)
    }
}

/// Of the mesh's own headers, but for the colour that is given.
fn strip(colour: Option<&str>) -> core_v3::TypedExtensionConfig {
    let prefixes = STRIPPED_PREFIXES.map(|prefix| MatchPattern::Prefix(prefix.to_owned()));
    let names = STRIPPED.map(|name| MatchPattern::Exact(name.to_owned()));
    mutation(prefixes.into_iter().chain(names), colour)
}

/// The two headers of colours replaced by the one that is given.
pub(super) fn recolour(colour: Option<&str>) -> core_v3::TypedExtensionConfig {
    let names = [CANARY_HEADER, COLOUR_HEADER];
    let names = names.map(|name| MatchPattern::Exact(name.to_owned()));
    mutation(names.into_iter(), colour)
}

fn mutation(
    removed: impl Iterator<Item = MatchPattern>,
    colour: Option<&str>,
) -> core_v3::TypedExtensionConfig {
    use core_v3::header_value_option::HeaderAppendAction;
    use mutation_v3::header_mutation::{Action, RemoveOnMatch};
    let removal = |pattern| mutation_v3::HeaderMutation {
        action: Some(Action::RemoveOnMatch(RemoveOnMatch {
            key_matcher: Some(matcher_v3::StringMatcher {
                match_pattern: Some(pattern),
                ..Default::default()
            }),
        })),
    };
    let given = colour.map(|colour| mutation_v3::HeaderMutation {
        action: Some(Action::Append(core_v3::HeaderValueOption {
            header: Some(core_v3::HeaderValue {
                key: COLOUR_HEADER.to_owned(),
                value: colour.to_owned(),
                ..Default::default()
            }),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
            ..Default::default()
        })),
    });
    let mutations = HeaderMutation {
        mutations: removed.map(removal).chain(given).collect(),
    };
    core_v3::TypedExtensionConfig {
        name: STRIP.to_owned(),
        typed_config: Some(any(&mutations)),
    }
}

fn stream(name: &str, shares: &[Share]) -> tcp_v3::TcpProxy {
    use tcp_v3::tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight};
    let cluster = |share: &Share| {
        let name = share.cluster.as_ref().map(ToString::to_string);
        name.unwrap_or_else(|| INVALID_BACKEND.to_owned())
    };
    let weighted = |share: &Share| ClusterWeight {
        name: cluster(share),
        weight: share.weight,
        ..Default::default()
    };
    let clusters = match shares {
        [] => ClusterSpecifier::Cluster(INVALID_BACKEND.to_owned()),
        shares => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: shares.iter().map(weighted).collect(),
        }),
    };
    tcp_v3::TcpProxy {
        stat_prefix: name.to_owned(),
        cluster_specifier: Some(clusters),
        ..Default::default()
    }
}

/// Certificates are files of the data plane's own machine, each described by one beside it that it watches.
fn terminate(certificates: &[String], folder: &str) -> core_v3::TransportSocket {
    use core_v3::config_source::ConfigSourceSpecifier;
    let source = |name: &String| tls_v3::SdsSecretConfig {
        name: name.clone(),
        sds_config: Some(core_v3::ConfigSource {
            resource_api_version: core_v3::ApiVersion::V3.into(),
            config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(
                core_v3::PathConfigSource {
                    path: description(folder, name),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
    };
    let common = tls_v3::CommonTlsContext {
        tls_params: Some(tls::params()),
        tls_certificate_sds_secret_configs: certificates.iter().map(source).collect(),
        alpn_protocols: tls::ALPN_HTTP.map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let context = tls_v3::DownstreamTlsContext {
        common_tls_context: Some(common),
        ..Default::default()
    };
    tls::socket(tls::TLS_SOCKET, &context)
}

/// A stock Envoy finds the certificate by this file.
fn description(folder: &str, name: &str) -> String {
    match folder {
        "" => format!("{name}.yaml"),
        folder => format!("{folder}/{name}.yaml"),
    }
}
