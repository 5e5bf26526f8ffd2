//! Model → Envoy v3, as a stock Envoy and our sidecar are to honour it; infallible, since the model is checked.
//!
//! The bytes are canonical: equal values have equal bytes and so equal versions. What the model leaves out and the mesh
//! has one answer for (limits, deadlines, path normalisation) is said explicitly, as the table in [`listener`] has it.

pub(crate) mod access;
pub(crate) mod cluster;
pub(crate) mod endpoints;
pub(crate) mod gateway;
pub mod grpc;
pub(crate) mod hds;
pub(crate) mod inbound;
pub(crate) mod limits;
pub(crate) mod listener;
pub(crate) mod routes;
pub mod secret;
pub(crate) mod tls;
pub(crate) mod udp;

use std::net::SocketAddr;
use std::time::Duration;

use phalanx_model::resource::{
    Assignment, Cluster, Listener, ListenerProtocol, RouteTable, VirtualHost,
};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use prost::{Message, Name};
use prost_types::value::Kind as ValueKind;

pub use self::inbound::NAME as INBOUND;
pub use self::tls::{OWN, ROOTS};
use crate::kind::Kind;
use crate::snapshot::Encoded;

/// The key of our own words in `filter_metadata`.
pub(crate) const METADATA: &str = "phalanx.dev";

/// Protobuf's greatest `Duration`, ten thousand years.
const DURATION_SECONDS_MAX: u64 = 315_576_000_000;

pub fn listener(listener: &Listener) -> Encoded {
    encoded(
        Kind::Listener,
        &listener.name,
        &listener::message(listener),
        listener::refs(listener),
    )
    .with_secrets(listener::secrets(listener))
}

/// The inbound listener as a stock Envoy is to run it.
pub fn envoy_inbound(told: &Listener) -> Encoded {
    inbound_of(told, inbound::Spoken::HttpOfEnvoy)
}

/// The inbound listener for an application that speaks raw TCP; any other listener as [`listener`] has it.
pub fn tcp_inbound(told: &Listener) -> Encoded {
    inbound_of(told, inbound::Spoken::Tcp)
}

fn inbound_of(told: &Listener, spoken: inbound::Spoken) -> Encoded {
    let ListenerProtocol::Inbound {
        trust_domain,
        rules,
    } = &told.protocol
    else {
        return listener(told);
    };
    let (name, socket) = (&told.name, told.address);
    let message = inbound::message(name, socket, trust_domain, rules, spoken);
    encoded(Kind::Listener, name, &message, listener::refs(told))
        .with_secrets(listener::secrets(told))
}

/// The cluster behind an inbound listener: the application there.
pub fn application(at: SocketAddr) -> Encoded {
    let message = inbound::application(at);
    encoded(Kind::Cluster, inbound::NAME, &message, Vec::new())
}

pub fn routes(table: &RouteTable) -> Encoded {
    encoded(
        Kind::Routes,
        &table.name,
        &routes::message(table),
        routes::refs(table),
    )
}

/// One host of a route table, encoded, so that tables with the same hosts need not encode them again.
#[derive(Clone, Debug)]
pub struct EncodedHost {
    /// The field of the table's message.
    field: Vec<u8>,
    /// The clusters it forwards to, sorted, each once.
    pub refs: Vec<String>,
}

pub fn host(host: &VirtualHost) -> EncodedHost {
    let table = RouteTable {
        name: String::new(),
        hosts: vec![host.clone()],
    };
    let mut refs = routes::refs(&table);
    refs.sort_unstable();
    refs.dedup();
    EncodedHost {
        field: routes::message(&table).encode_to_vec(),
        refs,
    }
}

/// The same as [`routes`] of these hosts, in this order; `refs` are the clusters that they forward to.
pub fn table<'a>(
    name: &str,
    hosts: impl Iterator<Item = &'a EncodedHost> + Clone,
    refs: Vec<String>,
) -> Encoded {
    let empty = RouteTable {
        name: name.to_owned(),
        hosts: Vec::new(),
    };
    // The hosts are the field after the name: the bytes of both, one after the other, are those of the whole.
    let mut body = routes::message(&empty).encode_to_vec();
    body.reserve_exact(hosts.clone().map(|host| host.field.len()).sum());
    hosts.for_each(|host| body.extend_from_slice(&host.field));
    Encoded::new(Kind::Routes, name, body.into(), refs)
}

pub fn cluster(cluster: &Cluster) -> Encoded {
    encoded(
        Kind::Cluster,
        &cluster.name.to_string(),
        &cluster::message(cluster),
        Vec::new(),
    )
    .with_secrets(cluster.tls.iter().flat_map(|_| tls::secrets()).collect())
}

pub fn endpoints(assignment: &Assignment) -> Encoded {
    encoded(
        Kind::Endpoints,
        &assignment.cluster.to_string(),
        &endpoints::message(assignment),
        Vec::new(),
    )
}

fn encoded(kind: Kind, name: &str, message: &impl Message, refs: Vec<String>) -> Encoded {
    Encoded::new(kind, name, message.encode_to_vec().into(), refs)
}

/// "From the stream you are on." Said as `ads`, never as `self`: Envoy refuses `self` where it is not on a file.
pub(crate) fn ads() -> core_v3::ConfigSource {
    use core_v3::config_source::ConfigSourceSpecifier;
    core_v3::ConfigSource {
        resource_api_version: core_v3::ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(
            core_v3::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}

pub(crate) fn any<M: Name>(message: &M) -> prost_types::Any {
    prost_types::Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: duration.as_secs().min(DURATION_SECONDS_MAX) as i64,
        nanos: duration.subsec_nanos() as i32,
    }
}

pub(crate) fn address(address: SocketAddr) -> core_v3::Address {
    use core_v3::socket_address::PortSpecifier;
    let socket = core_v3::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..Default::default()
    };
    core_v3::Address {
        address: Some(core_v3::address::Address::SocketAddress(socket)),
    }
}

/// Of a socket for datagrams.
pub(crate) fn udp_address(socket: SocketAddr) -> core_v3::Address {
    let mut address = address(socket);
    if let Some(core_v3::address::Address::SocketAddress(socket)) = &mut address.address {
        socket.protocol = core_v3::socket_address::Protocol::Udp.into();
    }
    address
}

/// Our own words; empty ones are left out, none at all give no metadata.
pub(crate) fn metadata(words: &[(&str, &str)]) -> Option<core_v3::Metadata> {
    let said = words.iter().filter(|(_, text)| !text.is_empty());
    let fields: std::collections::BTreeMap<_, _> = said
        .map(|(key, text)| (key.to_string(), string(text)))
        .collect();
    let ours =
        (!fields.is_empty()).then(|| (METADATA.to_owned(), prost_types::Struct { fields }))?;
    Some(core_v3::Metadata {
        filter_metadata: [ours].into(),
        ..Default::default()
    })
}

pub(crate) fn string(text: &str) -> prost_types::Value {
    prost_types::Value {
        kind: Some(ValueKind::StringValue(text.to_owned())),
    }
}

#[cfg(test)]
mod tests;
