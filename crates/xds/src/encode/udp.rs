//! Sockets for datagrams. What a stock Envoy can't be told (tokens, limits by source) stands in metadata that it passes over.

use std::net::SocketAddr;

use phalanx_model::resource::udp::{TokenAt, UdpPort};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;

use super::{metadata, udp_address};

/// Under [`super::METADATA`]: where it came from, which is always said.
pub(crate) const UDP: &str = "udp";
/// `prefix <bytes>` or `suffix <bytes>`.
pub(crate) const TOKEN: &str = "token";
pub(crate) const STRIP: &str = "strip";
pub(crate) const REQUIRED: &str = "required";
pub(crate) const SESSIONS: &str = "sessions";
pub(crate) const SESSIONS_PER_SOURCE: &str = "sessions_per_source";
pub(crate) const PACKETS: &str = "packets_per_second_per_source";
pub(crate) const BYTES: &str = "bytes_per_second_per_source";

pub(crate) fn message(name: &str, socket: SocketAddr, port: &UdpPort) -> listener_v3::Listener {
    let limits = port.rules.limits;
    let token = port.rules.token.map(|token| {
        let at = match token.at {
            TokenAt::Prefix => "prefix",
            TokenAt::Suffix => "suffix",
        };
        format!("{at} {}", token.len)
    });
    let said = |flag: bool| if flag { "true" } else { "" };
    let words = [
        (UDP, port.name.as_str()),
        (TOKEN, token.as_deref().unwrap_or_default()),
        (
            STRIP,
            said(port.rules.token.is_some_and(|token| token.strip)),
        ),
        (
            REQUIRED,
            said(port.rules.token.is_some_and(|token| token.required)),
        ),
        (SESSIONS, &*limits.sessions.to_string()),
        (
            SESSIONS_PER_SOURCE,
            &*limits.sessions_per_source.to_string(),
        ),
        (PACKETS, &*limits.packets_per_second_per_source.to_string()),
        (BYTES, &*limits.bytes_per_second_per_source.to_string()),
    ];
    listener_v3::Listener {
        name: name.to_owned(),
        address: Some(udp_address(socket)),
        udp_listener_config: Some(listener_v3::UdpListenerConfig::default()),
        traffic_direction: core_v3::TrafficDirection::Outbound.into(),
        metadata: metadata(&words),
        ..Default::default()
    }
}

/// The clusters that it names.
pub(crate) fn refs(port: &UdpPort) -> Vec<String> {
    let clusters = port
        .backends
        .iter()
        .filter_map(|share| share.cluster.as_ref());
    clusters.map(ToString::to_string).collect()
}
