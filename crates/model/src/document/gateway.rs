//! The edge: Gateways, and what is attached to them.

use std::net::IpAddr;

use super::{Kind, Meta, ParentRef};
use crate::name::ServiceName;

/// `gateway.networking.k8s.io/v1` Gateway: the sockets of an edge, and who may attach routes to them.
///
/// A data plane that runs it is an instance of the name: its identity is that of a service of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub meta: Meta,
    /// At least one. Those that share a port speak the same transport and have hostnames of their own.
    pub listeners: Vec<GatewayListener>,
    /// Where a data plane listens that was not told otherwise; none: on every address.
    pub addresses: Vec<IpAddr>,
}

impl Gateway {
    /// Its name, and who its data planes are.
    pub fn name(&self) -> ServiceName {
        ServiceName::new(&self.meta.namespace, &self.meta.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayListener {
    /// What a route's `sectionName` means.
    pub name: String,
    /// Exact or `*.suffix`, lower case; none: any. Of an HTTP listener the authority, of one with TLS the name in the
    /// handshake.
    pub hostname: Option<String>,
    pub port: u16,
    pub protocol: GatewayProtocol,
    pub namespaces: AllowedNamespaces,
    /// Kinds of routes; all that fit the protocol unless it says otherwise.
    pub kinds: Vec<Kind>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayProtocol {
    Http,
    /// Ended here, with one of these certificates, by name.
    Https {
        certificates: Vec<String>,
    },
    /// Passed through: the backend ends it.
    Tls,
    Tcp,
    Udp,
}

impl GatewayProtocol {
    /// As written in `protocol`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Https { .. } => "HTTPS",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// What is told apart on a port by hostname: never by the protocol itself.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Https { .. } | Self::Tls)
    }

    /// The kinds of routes that fit.
    pub fn kinds(&self) -> &'static [Kind] {
        match self {
            Self::Http | Self::Https { .. } => &[Kind::HttpRoute, Kind::GrpcRoute],
            Self::Tls => &[Kind::TlsRoute],
            Self::Tcp => &[Kind::TcpRoute],
            Self::Udp => &[Kind::UdpRoute],
        }
    }
}

/// Of the routes that may attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowedNamespaces {
    /// The Gateway's own.
    #[default]
    Same,
    All,
    None,
}

/// A parent of a route that is a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRef {
    pub gateway: ServiceName,
    /// The listener of this name; none: any.
    pub section: Option<String>,
    /// Listeners on this port; none: any.
    pub port: Option<u16>,
    /// Its place in `parentRefs`.
    pub index: usize,
}

/// TCPRoute, TLSRoute or UDPRoute; `kind` tells which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRoute {
    pub meta: Meta,
    pub kind: Kind,
    pub gateways: Vec<GatewayRef>,
    /// Of a UDPRoute: Services whose datagrams it leads.
    pub parents: Vec<ParentRef>,
    /// Of a TLSRoute: names in the handshake, exact or `*.suffix`; none: whatever its listeners take.
    pub hostnames: Vec<String>,
    /// By weight; none, or none with a weight: connections are closed, datagrams dropped.
    pub backends: Vec<StreamBackend>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamBackend {
    pub service: ServiceName,
    pub port: u16,
    pub weight: u32,
}
