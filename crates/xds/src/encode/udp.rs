//! Sockets for datagrams: a UDP proxy whose sessions stay where they are. Backends are chosen by a hash of the source's port,
//! once per session, for Envoy has no weights there.
//!
//! What a stock Envoy can't be told (tokens, limits by source) stands in metadata that it passes over, with the backends in
//! one piece.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use listener_v3::listener_filter::ConfigType as ListenerFilterConfig;
use phalanx_model::name::INVALID_BACKEND;
use phalanx_model::resource::MILLION;
use phalanx_model::resource::colour::Network;
use phalanx_model::resource::gateway::Share;
use phalanx_model::resource::udp::{TokenAt, UdpPort};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::extensions::filters::udp::udp_proxy::v3 as udp_v3;
use phalanx_proto::envoy::extensions::matching::common_inputs::network::v3::{
    SourceIpInput, SourcePortInput,
};
use phalanx_proto::envoy::extensions::matching::input_matchers::runtime_fraction::v3::RuntimeFraction;
use phalanx_proto::envoy::r#type::v3 as type_v3;
use phalanx_proto::xds::core::v3::TypedExtensionConfig;
use phalanx_proto::xds::r#type::matcher::v3 as matcher_v3;
use prost::Message;
use prost_types::Any;

use super::{any, duration, metadata, udp_address};

/// Under [`super::METADATA`]: where it came from, which is always said.
pub(crate) const UDP: &str = "udp";
/// `<weight>=<cluster>`, with spaces between; without a name where there is no such backend.
pub(crate) const BACKENDS: &str = "backends";
/// Instead of them, `<network> <backends>` with semicolons between.
pub(crate) const BY_SOURCE: &str = "by_source";
/// `prefix <bytes>` or `suffix <bytes>`.
pub(crate) const TOKEN: &str = "token";
pub(crate) const STRIP: &str = "strip";
pub(crate) const REQUIRED: &str = "required";
pub(crate) const SESSIONS: &str = "sessions";
pub(crate) const SESSIONS_PER_SOURCE: &str = "sessions_per_source";
pub(crate) const PACKETS: &str = "packets_per_second_per_source";
pub(crate) const BYTES: &str = "bytes_per_second_per_source";

pub(crate) const UDP_FILTER: &str = "envoy.filters.udp_listener.udp_proxy";

pub(crate) fn message(name: &str, socket: SocketAddr, port: &UdpPort) -> listener_v3::Listener {
    let (limits, token) = (port.rules.limits, port.rules.token);
    let said = |flag: bool| if flag { "true" } else { "" };
    let place = token.map(|token| match token.at {
        TokenAt::Prefix => format!("prefix {}", token.len),
        TokenAt::Suffix => format!("suffix {}", token.len),
    });
    let backend = |share: &Share| {
        let cluster = share.cluster.as_ref().map(ToString::to_string);
        format!("{}={}", share.weight, cluster.unwrap_or_default())
    };
    let shares = |shares: &[Share]| shares.iter().map(backend).collect::<Vec<_>>().join(" ");
    let of_source =
        |(network, of_network): &(Network, Vec<Share>)| format!("{network} {}", shares(of_network));
    let by_source: Vec<String> = port.by_source.iter().map(of_source).collect();
    let words = [
        (UDP, port.name.as_str()),
        (BACKENDS, &*shares(&port.backends)),
        (BY_SOURCE, &*by_source.join(";")),
        (TOKEN, place.as_deref().unwrap_or_default()),
        (STRIP, said(token.is_some_and(|token| token.strip))),
        (REQUIRED, said(token.is_some_and(|token| token.required))),
        (SESSIONS, &*limits.sessions.to_string()),
        (
            SESSIONS_PER_SOURCE,
            &*limits.sessions_per_source.to_string(),
        ),
        (PACKETS, &*limits.packets_per_second_per_source.to_string()),
        (BYTES, &*limits.bytes_per_second_per_source.to_string()),
    ];
    let filter = listener_v3::ListenerFilter {
        name: UDP_FILTER.to_owned(),
        config_type: Some(ListenerFilterConfig::TypedConfig(any(&proxy(name, port)))),
        ..Default::default()
    };
    listener_v3::Listener {
        name: name.to_owned(),
        address: Some(udp_address(socket)),
        udp_listener_config: Some(listener_v3::UdpListenerConfig::default()),
        listener_filters: vec![filter],
        traffic_direction: core_v3::TrafficDirection::Outbound.into(),
        metadata: metadata(&words),
        ..Default::default()
    }
}

/// The clusters that it names.
pub(crate) fn refs(port: &UdpPort) -> Vec<String> {
    let of_sources = port.by_source.iter().flat_map(|(_, shares)| shares);
    let shares = port.backends.iter().chain(of_sources);
    let clusters = shares.filter_map(|share| share.cluster.as_ref());
    let clusters: BTreeSet<String> = clusters.map(ToString::to_string).collect();
    clusters.into_iter().collect()
}

fn proxy(name: &str, port: &UdpPort) -> udp_v3::UdpProxyConfig {
    use udp_v3::udp_proxy_config::hash_policy::PolicySpecifier;
    use udp_v3::udp_proxy_config::{HashPolicy, RouteSpecifier};
    udp_v3::UdpProxyConfig {
        stat_prefix: name.to_owned(),
        idle_timeout: Some(duration(port.rules.idle_timeout)),
        // Counts only with a balancer that goes by keys.
        hash_policies: vec![HashPolicy {
            policy_specifier: Some(PolicySpecifier::SourceIp(true)),
        }],
        route_specifier: Some(RouteSpecifier::Matcher(by_source(port))),
        ..Default::default()
    }
}

/// The narrowest network that holds a source decides, else the backends of all.
fn by_source(port: &UdpPort) -> matcher_v3::Matcher {
    use matcher_v3::ip_matcher::{CidrRange, IpRangeMatcher};
    use matcher_v3::matcher::on_match::OnMatch as Then;
    use matcher_v3::matcher::{MatcherTree, MatcherType, OnMatch, matcher_tree::TreeType};
    if port.by_source.is_empty() {
        return matcher(&port.backends);
    }
    let then = |shares: &[Share]| OnMatch {
        on_match: Some(Then::Matcher(Box::new(matcher(shares)))),
        ..Default::default()
    };
    let range = |(network, shares): &(Network, Vec<Share>)| IpRangeMatcher {
        ranges: vec![CidrRange {
            address_prefix: network.address.to_string(),
            prefix_len: Some(u32::from(network.prefix)),
        }],
        on_match: then(shares).encode_to_vec(),
        ..Default::default()
    };
    let ranges = matcher_v3::IpMatcher {
        range_matchers: port.by_source.iter().map(range).collect(),
    };
    let tree = MatcherTree {
        input: Some(extension("source_ip", any(&SourceIpInput {}))),
        tree_type: Some(TreeType::CustomMatch(extension("networks", any(&ranges)))),
    };
    matcher_v3::Matcher {
        on_no_match: Some(Box::new(then(&port.backends))),
        matcher_type: Some(MatcherType::MatcherTree(tree)),
    }
}

fn extension(name: &str, config: Any) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(config),
    }
}

/// Each takes its part of what those before it left; the last takes the rest.
fn matcher(shares: &[Share]) -> matcher_v3::Matcher {
    use matcher_v3::matcher::{MatcherList, MatcherType, matcher_list::FieldMatcher};
    let mut left: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
    let (last, others) = match shares.split_last() {
        Some((last, others)) => (last.cluster.as_ref().map(ToString::to_string), others),
        None => (None, shares),
    };
    let mut matchers = Vec::with_capacity(others.len());
    for (seed, share) in (1..).zip(others) {
        let weight = u64::from(share.weight);
        let part = u64::from(MILLION) * weight / left.max(1);
        left -= weight;
        let cluster = share.cluster.as_ref().map(ToString::to_string);
        matchers.push(FieldMatcher {
            predicate: Some(fraction(seed, part as u32)),
            on_match: Some(route(cluster)),
        });
    }
    let list = MatcherList { matchers };
    matcher_v3::Matcher {
        on_no_match: Some(Box::new(route(last))),
        matcher_type: (!list.matchers.is_empty()).then_some(MatcherType::MatcherList(list)),
    }
}

/// To a cluster; none: to one that there is not, where datagrams are dropped.
fn route(cluster: Option<String>) -> matcher_v3::matcher::OnMatch {
    let route = udp_v3::Route {
        cluster: cluster.unwrap_or_else(|| INVALID_BACKEND.to_owned()),
    };
    let action = extension("route", any(&route));
    matcher_v3::matcher::OnMatch {
        on_match: Some(matcher_v3::matcher::on_match::OnMatch::Action(action)),
        ..Default::default()
    }
}

/// That of a million ports of sources this many are met; other ones for each seed.
fn fraction(seed: u64, numerator: u32) -> matcher_v3::matcher::matcher_list::Predicate {
    use matcher_v3::matcher::matcher_list::Predicate;
    use matcher_v3::matcher::matcher_list::predicate::single_predicate::Matcher;
    use matcher_v3::matcher::matcher_list::predicate::{MatchType, SinglePredicate};
    use type_v3::fractional_percent::DenominatorType;
    let part = RuntimeFraction {
        runtime_fraction: Some(core_v3::RuntimeFractionalPercent {
            default_value: Some(type_v3::FractionalPercent {
                numerator,
                denominator: DenominatorType::Million.into(),
            }),
            runtime_key: String::new(),
        }),
        seed,
    };
    let single = SinglePredicate {
        input: Some(extension("source_port", any(&SourcePortInput {}))),
        matcher: Some(Matcher::CustomMatch(extension("share", any(&part)))),
    };
    Predicate {
        match_type: Some(MatchType::SinglePredicate(single)),
    }
}
