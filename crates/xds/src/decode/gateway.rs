//! The listeners of an edge. What they say is read out of their chains; then they have to be what that makes, to the byte, so
//! that nothing in them is passed over.

use phalanx_model::ServiceName;
use phalanx_model::name::{Direction, INVALID_BACKEND};
use phalanx_model::resource::colour::EdgeColours;
use phalanx_model::resource::gateway::{Chain, ChainTarget, ChainTls, GatewayPort, Share};
use phalanx_model::resource::{Listener, ListenerProtocol};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_v3;
use phalanx_proto::envoy::extensions::transport_sockets::tls::v3 as tls_v3;
use prost::Name;

use super::DecodeError;
use super::field::{At, address, cluster_name, metadata, nonempty, single, unpack};
use crate::encode;
use crate::encode::gateway::{CERTIFICATES_IN, COLOURS, GATEWAY};

/// Whether it is an edge's.
pub(super) fn is_ours(message: &listener_v3::Listener) -> bool {
    let words = message.metadata.as_ref();
    let words = words.and_then(|metadata| metadata.filter_metadata.get(encode::METADATA));
    words.is_some_and(|words| words.fields.contains_key(GATEWAY))
}

pub(super) fn resource(message: listener_v3::Listener) -> Result<Listener, DecodeError> {
    let at = At::Root("Listener");
    let name = nonempty(&at.field("name"), message.name.clone())?;
    let socket = address(&at.field("address"), message.address.clone())?;
    let words_at = at.field("metadata");
    let words = metadata(
        &words_at,
        message.metadata.clone(),
        [GATEWAY, CERTIFICATES_IN, COLOURS],
    )?;
    let [gateway, certificates_in, colours] = words;
    let colours = colours.parse::<EdgeColours>();
    let colours = colours.map_err(|error| words_at.invalid(error.to_string()))?;
    let (namespace, service) = gateway
        .split_once('/')
        .ok_or_else(|| words_at.invalid("must name a gateway as <namespace>/<name>"))?;
    let gateway = ServiceName::parse(namespace, service);
    let gateway = gateway.map_err(|error| words_at.invalid(error.to_string()))?;
    let mut chains = Vec::with_capacity(message.filter_chains.len());
    let all = message.filter_chains.iter().enumerate();
    for (index, sent) in all.filter(|(_, sent)| !is_of_network(sent)) {
        chains.push(chain(at.item("filter_chains", index), sent)?);
    }
    let port = GatewayPort {
        gateway,
        certificates_in,
        colours,
        chains,
    };
    let ours = encode::gateway::message(&name, socket, &port);
    if ours != message {
        let mut pairs = message.filter_chains.iter().zip(&ours.filter_chains);
        let why = "holds something that this sidecar can't honour";
        return Err(match pairs.position(|(theirs, ours)| theirs != ours) {
            Some(index) => at.item("filter_chains", index).invalid(why),
            None => at.invalid(why),
        });
    }
    Ok(Listener {
        name,
        address: socket,
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Gateway(port),
    })
}

/// The same again for one network, which a stock Envoy needs to tell its colour.
fn is_of_network(sent: &listener_v3::FilterChain) -> bool {
    let matched = sent.filter_chain_match.as_ref();
    matched.is_some_and(|matched| !matched.source_prefix_ranges.is_empty())
}

fn chain(at: At<'_>, sent: &listener_v3::FilterChain) -> Result<Chain, DecodeError> {
    let matched = sent.filter_chain_match.as_ref();
    let tls = match (matched, &sent.transport_socket) {
        (None, _) => ChainTls::Off,
        (Some(_), None) => ChainTls::Passthrough,
        (Some(_), Some(socket)) => {
            ChainTls::Terminate(certificates(at.field("transport_socket"), socket)?)
        }
    };
    let filter = single(&at.field("filters"), sent.filters.clone())?;
    let at = at.item("filters", 0);
    let Some(listener_v3::filter::ConfigType::TypedConfig(config)) = filter.config_type else {
        return Err(at.field("typed_config").missing());
    };
    let at = at.field("typed_config");
    let is_tcp = config.type_url.ends_with(&tcp_v3::TcpProxy::full_name());
    let target = match is_tcp {
        true => ChainTarget::Stream(shares(at, unpack(&at, &config)?)?),
        false => ChainTarget::Http(table(at, unpack(&at, &config)?)?),
    };
    Ok(Chain {
        names: matched.map_or_else(Vec::new, |matched| matched.server_names.clone()),
        tls,
        target,
    })
}

fn certificates(at: At<'_>, socket: &core_v3::TransportSocket) -> Result<Vec<String>, DecodeError> {
    let Some(core_v3::transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type
    else {
        return Err(at.field("typed_config").missing());
    };
    let context: tls_v3::DownstreamTlsContext = unpack(&at, config)?;
    let sources = context.common_tls_context.unwrap_or_default();
    let sources = sources.tls_certificate_sds_secret_configs.into_iter();
    Ok(sources.map(|source| source.name).collect())
}

fn table(at: At<'_>, manager: hcm_v3::HttpConnectionManager) -> Result<String, DecodeError> {
    use hcm_v3::http_connection_manager::RouteSpecifier;
    match manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => nonempty(&at.field("rds"), rds.route_config_name),
        _ => Err(at.field("rds").missing()),
    }
}

fn shares(at: At<'_>, proxy: tcp_v3::TcpProxy) -> Result<Vec<Share>, DecodeError> {
    use tcp_v3::tcp_proxy::ClusterSpecifier;
    let weighted = match proxy.cluster_specifier {
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted.clusters,
        Some(ClusterSpecifier::Cluster(_)) => Vec::new(), // the comparison finds any but the one meant
        None => return Err(at.field("cluster").missing()),
    };
    let at = at.field("weighted_clusters");
    let share = |share: tcp_v3::tcp_proxy::weighted_cluster::ClusterWeight| {
        let cluster = match share.name.as_str() {
            INVALID_BACKEND => None,
            name => Some(cluster_name(&at, name)?),
        };
        match share.weight {
            0 => Err(at.invalid("a weight is at least 1")),
            weight => Ok(Share { cluster, weight }),
        }
    };
    weighted.into_iter().map(share).collect()
}
