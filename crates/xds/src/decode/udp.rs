//! Sockets for datagrams. What they say is read out of our words; then they have to be what that makes, to the byte, so that
//! nothing in them is passed over.

use std::str::FromStr;

use phalanx_model::name::Direction;
use phalanx_model::resource::gateway::Share;
use phalanx_model::resource::udp::{TOKEN_MAX, Token, TokenAt, UdpLimits, UdpPort, UdpRules};
use phalanx_model::resource::{Listener, ListenerProtocol};
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::extensions::filters::udp::udp_proxy::v3::UdpProxyConfig;

use super::DecodeError;
use super::field::{
    At, cluster_name, either_address, metadata, nonempty, positive, single, unpack,
};
use crate::encode;
use crate::encode::udp::{
    BACKENDS, BY_SOURCE, BYTES, PACKETS, REQUIRED, SESSIONS, SESSIONS_PER_SOURCE, STRIP, TOKEN, UDP,
};

/// Whether it is for datagrams, and ours.
pub(super) fn is_ours(message: &listener_v3::Listener) -> bool {
    let words = message.metadata.as_ref();
    let words = words.and_then(|metadata| metadata.filter_metadata.get(encode::METADATA));
    words.is_some_and(|words| words.fields.contains_key(UDP))
}

pub(super) fn resource(message: listener_v3::Listener) -> Result<Listener, DecodeError> {
    let at = At::Root("Listener");
    let name = nonempty(&at.field("name"), message.name.clone())?;
    let (socket, is_udp) = either_address(&at.field("address"), message.address.clone())?;
    if !is_udp {
        return Err(at.field("address").invalid("must be one for datagrams"));
    }
    let words_at = at.field("metadata");
    let keys = [
        UDP,
        BACKENDS,
        BY_SOURCE,
        TOKEN,
        STRIP,
        REQUIRED,
        SESSIONS,
        SESSIONS_PER_SOURCE,
        PACKETS,
        BYTES,
    ];
    let words = metadata(&words_at, message.metadata.clone(), keys)?;
    let [
        origin,
        backends,
        by_source,
        place,
        strip,
        required,
        sessions,
        of_source,
        packets,
        bytes,
    ] = words;
    let flag = |text: &str| match text {
        "" => Ok(false),
        "true" => Ok(true),
        _ => Err(words_at.invalid("a word of yes and no must be `true` or left out")),
    };
    let token = match place.as_str() {
        "" => None,
        place => Some(token(&words_at, place, (flag(&strip)?, flag(&required)?))?),
    };
    let limits = UdpLimits {
        sessions: number(&words_at, SESSIONS, &sessions)?,
        sessions_per_source: number(&words_at, SESSIONS_PER_SOURCE, &of_source)?,
        packets_per_second_per_source: number(&words_at, PACKETS, &packets)?,
        bytes_per_second_per_source: number(&words_at, BYTES, &bytes)?,
    };
    if limits.sessions == 0 || limits.sessions_per_source == 0 {
        return Err(words_at.invalid("there is at least one session"));
    }
    let of_sources = by_source.split(';').filter(|text| !text.is_empty());
    let of_sources = of_sources.map(|text| {
        let wrong = || words_at.invalid(format!("`{BY_SOURCE}` has no network: {text}"));
        let (network, backends) = text.split_once(' ').ok_or_else(wrong)?;
        let network = network.parse().map_err(|_| wrong())?;
        Ok((network, shares(&words_at, backends)?))
    });
    let port = UdpPort {
        name: nonempty(&words_at, origin)?,
        backends: shares(&words_at, &backends)?,
        by_source: of_sources.collect::<Result<_, _>>()?,
        rules: UdpRules {
            idle_timeout: idle_timeout(at, &message)?,
            token,
            limits,
        },
    };
    if encode::udp::message(&name, socket, &port) != message {
        return Err(at.invalid("holds something that this sidecar can't honour"));
    }
    Ok(Listener {
        name,
        address: socket,
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Udp(port),
    })
}

fn idle_timeout(
    at: At<'_>,
    message: &listener_v3::Listener,
) -> Result<std::time::Duration, DecodeError> {
    use listener_v3::listener_filter::ConfigType;
    let filter = single(
        &at.field("listener_filters"),
        message.listener_filters.clone(),
    )?;
    let at = at.item("listener_filters", 0);
    let Some(ConfigType::TypedConfig(config)) = filter.config_type else {
        return Err(at.field("typed_config").missing());
    };
    let at = at.field("typed_config");
    let proxy: UdpProxyConfig = unpack(&at, &config)?;
    let at = at.field("idle_timeout");
    positive(&at, proxy.idle_timeout.ok_or_else(|| at.missing())?)
}

fn number<N: FromStr>(at: &At<'_>, key: &str, text: &str) -> Result<N, DecodeError> {
    let number = text.parse().ok();
    number.ok_or_else(|| at.invalid(format!("`{key}` is no number: {text}")))
}

fn token(at: &At<'_>, text: &str, (strip, required): (bool, bool)) -> Result<Token, DecodeError> {
    let wrong = || at.invalid(format!("`{TOKEN}` is no place of a token: {text}"));
    let (place, len) = text.split_once(' ').ok_or_else(wrong)?;
    let place = match place {
        "prefix" => TokenAt::Prefix,
        "suffix" => TokenAt::Suffix,
        _ => return Err(wrong()),
    };
    let len = len.parse().ok().filter(|len| (1..=TOKEN_MAX).contains(len));
    Ok(Token {
        at: place,
        len: len.ok_or_else(wrong)?,
        strip,
        required,
    })
}

fn shares(at: &At<'_>, text: &str) -> Result<Vec<Share>, DecodeError> {
    let each = text.split_whitespace();
    each.map(|text| share(at, text)).collect()
}

fn share(at: &At<'_>, text: &str) -> Result<Share, DecodeError> {
    let wrong = || at.invalid(format!("`{BACKENDS}` has no <weight>=<cluster>: {text}"));
    let (weight, cluster) = text.split_once('=').ok_or_else(wrong)?;
    let weight = weight.parse().ok().filter(|weight| *weight > 0);
    let cluster = match cluster {
        "" => None,
        name => Some(cluster_name(at, name)?),
    };
    Ok(Share {
        cluster,
        weight: weight.ok_or_else(wrong)?,
    })
}
