//! The ports of an edge: for a connection the chain that is for the name in its handshake, and where that leads.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::matching::hostname::{covers, rank};
use phalanx_model::name::ClusterName;
use phalanx_model::resource::colour::EdgeColours;
use phalanx_model::resource::gateway::{ChainTarget, ChainTls, GATEWAY, GatewayPort, Share};
use phalanx_model::resource::{Listener, ListenerProtocol};
use rustls::ServerConfig;

use super::hosts::Routes;
use super::table::Table;
use crate::edge::TlsDir;

/// All ports, and the route tables that they share.
#[derive(Default)]
pub struct Gates {
    ports: BTreeMap<SocketAddr, Gate>,
    tables: HashMap<Arc<str>, Routes>,
    /// What requests are given: one Gateway says it of all its ports.
    pub colours: EdgeColours,
}

/// One port.
pub struct Gate {
    /// The narrowest name first.
    chains: Box<[GateChain]>,
    /// Nothing is known of a connection before its handshake was read.
    pub reads_names: bool,
}

pub struct GateChain {
    /// Any, where there is none.
    name: Option<Box<str>>,
    pub tls: GateTls,
    pub target: GateTarget,
}

#[derive(Clone)]
pub enum GateTls {
    Off,
    Passthrough,
    Terminate(Arc<ServerConfig>),
    /// There is no certificate, which was no reason not to listen while there was one.
    Closed,
}

#[derive(Clone)]
pub enum GateTarget {
    /// By the name of the table.
    Http(Arc<str>),
    Stream(Arc<Shares>),
}

/// Clusters in the plan by the sums of their weights; none for one that is not there.
pub struct Shares(Box<[(u64, Option<usize>)]>);

impl Gates {
    pub(super) fn new<'r>(
        listeners: impl Iterator<Item = &'r Listener>,
        tables: &BTreeMap<String, Arc<Table>>,
        certificates: &TlsDir,
        place: impl Fn(&ClusterName) -> Option<usize>,
    ) -> Self {
        let is_gate = |(name, _): &(&String, &Arc<Table>)| name.starts_with(GATEWAY);
        let tables = tables.iter().filter(is_gate);
        let tables = tables.map(|(name, table)| (name.as_str().into(), Routes::new(table, &place)));
        let mut ports = BTreeMap::new();
        let mut colours = EdgeColours::default();
        for listener in listeners {
            let ListenerProtocol::Gateway(port) = &listener.protocol else {
                continue;
            };
            ports.insert(listener.address, Gate::new(port, certificates, &place));
            colours.clone_from(&port.colours);
        }
        Self {
            ports,
            tables: tables.collect(),
            colours,
        }
    }

    pub fn at(&self, address: &SocketAddr) -> Option<&Gate> {
        self.ports.get(address)
    }

    pub fn all(&self) -> impl Iterator<Item = (&SocketAddr, &Gate)> {
        self.ports.iter()
    }

    pub fn routes(&self, table: &str) -> Option<&Routes> {
        self.tables.get(table)
    }
}

impl Gate {
    fn new(
        port: &GatewayPort,
        certificates: &TlsDir,
        place: &impl Fn(&ClusterName) -> Option<usize>,
    ) -> Self {
        let mut chains = Vec::new();
        for chain in &port.chains {
            let tls = match &chain.tls {
                ChainTls::Off => GateTls::Off,
                ChainTls::Passthrough => GateTls::Passthrough,
                ChainTls::Terminate(names) => match certificates.server(names) {
                    Ok(server) => GateTls::Terminate(server),
                    Err(_) => GateTls::Closed,
                },
            };
            let target = match &chain.target {
                ChainTarget::Http(table) => GateTarget::Http(table.as_str().into()),
                ChainTarget::Stream(shares) => {
                    GateTarget::Stream(Arc::new(Shares::new(shares, place)))
                }
            };
            let named = chain.names.iter().map(|name| Some(name.as_str().into()));
            let any = chain.names.is_empty().then_some(None);
            chains.extend(named.chain(any).map(|name| GateChain {
                name,
                tls: tls.clone(),
                target: target.clone(),
            }));
        }
        chains.sort_by_key(|chain| rank(chain.name.as_deref()));
        Self {
            reads_names: port.chains.iter().any(|chain| chain.tls != ChainTls::Off),
            chains: chains.into(),
        }
    }
}

impl Gate {
    /// The chain with the narrowest name that is for this one; none: nobody here is called so.
    pub fn chain(&self, name: Option<&str>) -> Option<&GateChain> {
        let is_for = |chain: &&GateChain| match (&chain.name, name) {
            (None, _) => true,
            (Some(own), Some(name)) => covers(Some(own), name),
            (Some(_), None) => false,
        };
        self.chains.iter().find(is_for)
    }
}

impl Shares {
    fn new(shares: &[Share], place: &impl Fn(&ClusterName) -> Option<usize>) -> Self {
        let mut sum = 0;
        let share = |share: &Share| {
            sum += u64::from(share.weight);
            (sum, share.cluster.as_ref().and_then(place))
        };
        Self(shares.iter().map(share).collect())
    }

    /// In [`super::Plan::clusters`].
    pub fn choose(&self, rng: &mut fastrand::Rng) -> Option<usize> {
        let (total, _) = self.0.last()?;
        let ticket = rng.u64(0..*total);
        let chosen = self.0.partition_point(|(sum, _)| *sum <= ticket);
        self.0.get(chosen).and_then(|(_, cluster)| *cluster)
    }
}
