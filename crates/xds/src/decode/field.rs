//! Field paths, and the few checks that all resources share.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use phalanx_model::name::ClusterName;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use prost::{Message, Name};
use prost_types::value::Kind as ValueKind;

use super::DecodeError;
use crate::encode;

/// Bytes of a reason.
const TEXT_MAX: usize = 400;

/// Where a message stands, as `RouteConfiguration.virtual_hosts[2].routes[0].match`. Costs nothing until it is printed.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    Root(&'static str),
    Field(&'a At<'a>, &'static str),
    Item(&'a At<'a>, &'static str, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Generated names of fields that are keywords begin with `r#`.
        let bare = |name: &'static str| name.strip_prefix("r#").unwrap_or(name);
        match self {
            Self::Root(name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{}", bare(name)),
            Self::Item(parent, name, index) => write!(f, "{parent}.{}[{index}]", bare(name)),
        }
    }
}

impl At<'_> {
    pub(super) fn field<'a>(&'a self, name: &'static str) -> At<'a> {
        At::Field(self, name)
    }

    pub(super) fn item<'a>(&'a self, name: &'static str, index: usize) -> At<'a> {
        At::Item(self, name, index)
    }

    pub(super) fn unsupported(&self) -> DecodeError {
        DecodeError::Unsupported {
            at: self.to_string(),
        }
    }

    pub(super) fn invalid(&self, why: impl Into<String>) -> DecodeError {
        DecodeError::Invalid {
            at: self.to_string(),
            why: short(why.into()),
        }
    }

    pub(super) fn missing(&self) -> DecodeError {
        self.invalid("is required")
    }
}

/// Refuses the named fields, unless they are unset.
macro_rules! refuse {
    ($at:expr; $($name:ident),* $(,)?) => {
        $($crate::decode::field::unset(&$at.field(stringify!($name)), &$name)?;)*
    };
}

/// Refuses the named fields, unless they are unset or as in the message that we would send.
macro_rules! fixed {
    ($at:expr, $ours:expr; $($name:ident),* $(,)?) => {
        $($crate::decode::field::ours(&$at.field(stringify!($name)), &$name, &$ours.$name)?;)*
    };
}

pub(super) use {fixed, refuse};

pub(super) fn unset<T: Default + PartialEq>(at: &At<'_>, value: &T) -> Result<(), DecodeError> {
    if *value == T::default() {
        Ok(())
    } else {
        Err(at.unsupported())
    }
}

pub(super) fn ours<T: Default + PartialEq + fmt::Debug>(
    at: &At<'_>,
    value: &T,
    ours: &T,
) -> Result<(), DecodeError> {
    if value == ours || *value == T::default() {
        return Ok(());
    }
    Err(at.invalid(format!("this sidecar has only {ours:?}")))
}

/// Foreign text and long values end up in NACKs, which are bounded.
pub(super) fn short(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        text.push('…');
    }
    text
}

/// All items through one function, each with its path.
pub(super) fn each<T, U>(
    at: &At<'_>,
    name: &'static str,
    items: Vec<T>,
    mut take: impl FnMut(At<'_>, T) -> Result<U, DecodeError>,
) -> Result<Vec<U>, DecodeError> {
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| take(at.item(name, index), item))
        .collect()
}

/// The only one there may be.
pub(super) fn single<T>(at: &At<'_>, items: Vec<T>) -> Result<T, DecodeError> {
    let mut items = items.into_iter();
    match (items.next(), items.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(at.missing()),
        (Some(_), Some(_)) => Err(at.invalid("more than one is not supported by this sidecar")),
    }
}

pub(super) fn unpack<M: Message + Default + Name>(
    at: &At<'_>,
    any: &prost_types::Any,
) -> Result<M, DecodeError> {
    if any.type_url.rsplit('/').next() != Some(M::full_name().as_str()) {
        return Err(at.invalid(format!(
            "`{}` is not supported by this sidecar, only {}",
            any.type_url,
            M::full_name()
        )));
    }
    M::decode(any.value.as_slice()).map_err(|source| DecodeError::Malformed {
        at: at.to_string(),
        source,
    })
}

pub(super) fn nonempty(at: &At<'_>, text: String) -> Result<String, DecodeError> {
    if text.is_empty() {
        Err(at.missing())
    } else {
        Ok(text)
    }
}

pub(super) fn cluster_name(at: &At<'_>, text: &str) -> Result<ClusterName, DecodeError> {
    text.parse().map_err(|error| at.invalid(format!("{error}")))
}

pub(super) fn duration(at: &At<'_>, value: prost_types::Duration) -> Result<Duration, DecodeError> {
    Duration::try_from(value).map_err(|_| at.invalid("is no positive duration"))
}

/// Of more than nothing.
pub(super) fn positive(at: &At<'_>, value: prost_types::Duration) -> Result<Duration, DecodeError> {
    let duration = duration(at, value)?;
    if duration.is_zero() {
        Err(at.invalid("must be more than 0s"))
    } else {
        Ok(duration)
    }
}

pub(super) fn ads(at: &At<'_>, source: Option<core_v3::ConfigSource>) -> Result<(), DecodeError> {
    if source == Some(encode::ads()) {
        Ok(())
    } else {
        Err(at.invalid("must be `{ads: {}, resource_api_version: V3}`"))
    }
}

pub(super) fn address(
    at: &At<'_>,
    address: Option<core_v3::Address>,
) -> Result<SocketAddr, DecodeError> {
    let (socket, is_udp) = either_address(at, address)?;
    match is_udp {
        true => Err(at.field("socket_address").field("protocol").unsupported()),
        false => Ok(socket),
    }
}

/// And whether it is one for datagrams.
pub(super) fn either_address(
    at: &At<'_>,
    address: Option<core_v3::Address>,
) -> Result<(SocketAddr, bool), DecodeError> {
    use core_v3::address::Address;
    use core_v3::socket_address::PortSpecifier;
    let Address::SocketAddress(socket) = address
        .and_then(|a| a.address)
        .ok_or_else(|| at.missing())?
    else {
        return Err(at.invalid("only a socket_address is supported by this sidecar"));
    };
    let at = at.field("socket_address");
    let core_v3::SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = socket;
    refuse!(at; resolver_name, ipv4_compat, network_namespace_filepath);
    let Some(PortSpecifier::PortValue(port)) = port_specifier else {
        return Err(at.invalid("port_value is required"));
    };
    let ip: IpAddr = address.parse().map_err(|_| {
        at.field("address")
            .invalid(format!("`{address}` is no IP address"))
    })?;
    let port = u16::try_from(port)
        .map_err(|_| at.field("port_value").invalid(format!("{port} is no port")))?;
    let is_udp = match core_v3::socket_address::Protocol::try_from(protocol) {
        Ok(core_v3::socket_address::Protocol::Tcp) => false,
        Ok(core_v3::socket_address::Protocol::Udp) => true,
        Err(_) => return Err(at.field("protocol").unsupported()),
    };
    Ok((SocketAddr::new(ip, port), is_udp))
}

/// The values of `keys` among our own words, each empty when it is not said. Words of others have no meaning here.
pub(super) fn metadata<const N: usize>(
    at: &At<'_>,
    metadata: Option<core_v3::Metadata>,
    keys: [&str; N],
) -> Result<[String; N], DecodeError> {
    let mut words = [const { String::new() }; N];
    let ours = metadata.and_then(|mut metadata| metadata.filter_metadata.remove(encode::METADATA));
    for (key, value) in ours.unwrap_or_default().fields {
        let Some(index) = keys.iter().position(|known| *known == key) else {
            return Err(at.invalid(format!("{} has no word `{key}`", encode::METADATA)));
        };
        let Some(ValueKind::StringValue(text)) = value.kind else {
            return Err(at.invalid(format!("`{key}` must be a string")));
        };
        words[index] = text;
    }
    Ok(words)
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A header's name, in lower case.
pub(super) fn header_name(at: &At<'_>, name: &str) -> Result<String, DecodeError> {
    if is_token(name) {
        Ok(name.to_ascii_lowercase())
    } else {
        Err(at.invalid(format!("`{name}` is no header name")))
    }
}
