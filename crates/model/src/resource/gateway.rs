//! What an edge listens for: connections from outside the mesh, by the protocol and the name in the handshake.

use super::RouteTable;
use super::colour::EdgeColours;
use crate::name::{ClusterName, ServiceName};

/// Begins the names of an edge's listeners and route tables.
pub const GATEWAY: &str = "gateway/";

/// A port of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayPort {
    pub gateway: ServiceName,
    /// Where the data plane keeps its certificates, as it told; may be empty for one that knows.
    pub certificates_in: String,
    /// What requests are given; nothing: both headers are taken away.
    pub colours: EdgeColours,
    /// Tried by the narrowest name; where none is for a connection, it is closed. Without TLS there is one.
    pub chains: Vec<Chain>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Names in the handshake, exact or `*.suffix`, each in one chain only; none: whatever no other chain is for.
    pub names: Vec<String>,
    pub tls: ChainTls,
    pub target: ChainTarget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainTls {
    /// In plain text, or what nobody looks into.
    Off,
    /// Ended here with one of these certificates, by name.
    Terminate(Vec<String>),
    /// Read for its name, and passed on as it is.
    Passthrough,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainTarget {
    /// The [`RouteTable`] of this name.
    Http(String),
    /// By weight, none of which is 0; without one the connection is closed.
    Stream(Vec<Share>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// None: there is no such backend, connections that fall to it are closed.
    pub cluster: Option<ClusterName>,
    pub weight: u32,
}

impl RouteTable {
    /// Whether hosts are chosen without the authority's port: whoever calls an edge may have come through anything.
    pub fn ignores_ports(&self) -> bool {
        self.name.starts_with(GATEWAY)
    }
}

/// Headers that only the mesh may set: whoever sends one from outside has it taken away, before anything is matched.
pub const STRIPPED: [&str; 4] = [
    "x-canary-id",
    "x-env",
    "x-forwarded-client-cert",
    "x-session-epoch",
];
/// The same of names that begin so.
pub const STRIPPED_PREFIXES: [&str; 2] = ["x-envoy-", "x-phalanx-"];
