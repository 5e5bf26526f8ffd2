//! UDP sockets of the plan: for each the clusters that its datagrams may go to, and by what rules.
//!
//! The engine (`crate::udp`) opens a socket for each port of the plan, and looks endpoints up here: by token, else by weight.
//! What a session has found it keeps by address; `ClusterPlan::find` says whether that address is still an endpoint.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use phalanx_model::name::{ClusterName, ServiceName};
use phalanx_model::resource::colour::Network;
use phalanx_model::resource::gateway::Share;
use phalanx_model::resource::udp::{UdpPort, UdpRules};
use phalanx_model::resource::{Listener, ListenerProtocol};

use super::Plan;
use super::cluster::ClusterPlan;
use crate::directory::Entry;

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpPortPlan {
    pub address: SocketAddr,
    /// `UDPRoute/<namespace>/<name>` or `Service/<namespace>/<name>`: for logs and metrics.
    pub name: Arc<str>,
    pub rules: UdpRules,
    /// In the order of the document.
    pub backends: Box<[UdpBackend]>,
    /// Instead of them, for sources in a network: the narrowest first.
    pub by_source: Box<[(Network, Box<[UdpBackend]>)]>,
    /// Whoever they are for, each once.
    pub all: Box<[UdpBackend]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpBackend {
    /// Up to and with this one.
    weights: u64,
    /// In [`Plan::clusters`]; none for one that does not exist or has not come: its share is dropped.
    pub cluster: Option<usize>,
    /// Where sessions of the directory are looked for.
    pub service: Option<ServiceName>,
}

/// An endpoint in a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpTarget {
    /// In [`Plan::clusters`].
    pub cluster: usize,
    /// In [`ClusterPlan::endpoints`].
    pub endpoint: usize,
}

/// Where a key has its session.
pub enum Placed {
    /// At this endpoint.
    At(SocketAddr, Arc<Entry>),
    /// At nobody of this plan; none: that is to come, and may say so.
    Elsewhere(Option<Arc<Entry>>),
    Nobody,
}

/// Sorted by address, each once.
pub(super) fn ports<'r>(
    listeners: impl Iterator<Item = &'r Listener>,
    place: impl Fn(&ClusterName) -> Option<usize>,
) -> Vec<UdpPortPlan> {
    let port = |listener: &'r Listener| match &listener.protocol {
        ListenerProtocol::Udp(port) => Some(UdpPortPlan::new(listener.address, port, &place)),
        _ => None,
    };
    let mut ports: Vec<_> = listeners.filter_map(port).collect();
    ports.sort_by_key(|port| port.address);
    ports.dedup_by_key(|port| port.address);
    ports
}

impl UdpPortPlan {
    fn new(
        address: SocketAddr,
        port: &UdpPort,
        place: &impl Fn(&ClusterName) -> Option<usize>,
    ) -> Self {
        let of_source =
            |(network, shares): &(Network, Vec<Share>)| (*network, backends(shares, place));
        let mut by_source: Vec<_> = port.by_source.iter().map(of_source).collect();
        by_source.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix));
        let backends = backends(&port.backends, place);
        let mut all: Vec<UdpBackend> = Vec::new();
        let of_sources = by_source.iter().flat_map(|(_, of_source)| of_source);
        for backend in backends.iter().chain(of_sources) {
            let is_known = |known: &UdpBackend| {
                (known.cluster, &known.service) == (backend.cluster, &backend.service)
            };
            if !all.iter().any(is_known) {
                all.push(backend.clone());
            }
        }
        Self {
            address,
            name: port.name.as_str().into(),
            rules: port.rules,
            backends,
            by_source: by_source.into(),
            all: all.into(),
        }
    }

    /// For a datagram that belongs to no session and has no token: a backend by weight. None: it is dropped.
    #[inline]
    pub fn choose(&self, from: IpAddr, rng: &mut fastrand::Rng) -> Option<&UdpBackend> {
        let mut of_sources = self.by_source.iter();
        let of_source = of_sources.find(|(network, _)| network.holds(from));
        let backends = of_source.map_or(&self.backends, |(_, backends)| backends);
        let ticket = rng.u64(0..backends.last()?.weights.max(1));
        let chosen = backends.partition_point(|backend| backend.weights <= ticket);
        backends.get(chosen)
    }

    /// Of each backend.
    pub fn weights(backends: &[UdpBackend]) -> Vec<u64> {
        let mut before = 0;
        let weight = |backend: &UdpBackend| {
            let weight = backend.weights - before;
            before = backend.weights;
            weight
        };
        backends.iter().map(weight).collect()
    }

    /// The endpoint whose label has this token, of whichever backend; one that drains still counts.
    #[inline]
    pub fn by_token(&self, plan: &Plan, token: &[u8]) -> Option<UdpTarget> {
        self.first(plan, |cluster| cluster.by_token(token))
    }

    /// What the session directory says of a key: of the backends' Services, one after the other.
    pub fn placed(&self, plan: &Plan, key: &[u8]) -> Placed {
        let mut placed = Placed::Nobody;
        for service in self.all.iter().filter_map(|b| b.service.as_ref()) {
            let Some(held) = plan.directory.hold(service, key) else {
                // Until all of its keys are here, it may have this one.
                if plan.directories.contains(service) && !plan.directory.is_filled(service) {
                    placed = Placed::Elsewhere(None);
                }
                continue;
            };
            let is_endpoint = |at: &&SocketAddr| self.at(plan, **at).is_some();
            match held.addresses.iter().find(is_endpoint).copied() {
                Some(address) => return Placed::At(address, held),
                None => placed = Placed::Elsewhere(Some(held)),
            }
        }
        placed
    }

    /// The endpoint at this address, of whichever backend: what a session goes on with under a new plan, and what an
    /// answer of the session directory means.
    #[inline]
    pub fn at(&self, plan: &Plan, address: SocketAddr) -> Option<UdpTarget> {
        self.first(plan, |cluster| cluster.find(address))
    }

    #[inline]
    fn first(
        &self,
        plan: &Plan,
        find: impl Fn(&ClusterPlan) -> Option<usize>,
    ) -> Option<UdpTarget> {
        self.all.iter().find_map(|backend| {
            let cluster = backend.cluster?;
            let endpoint = find(plan.clusters.get(cluster)?)?;
            Some(UdpTarget { cluster, endpoint })
        })
    }
}

fn backends(shares: &[Share], place: &impl Fn(&ClusterName) -> Option<usize>) -> Box<[UdpBackend]> {
    let mut weights = 0;
    let backend = |share: &Share| {
        weights += u64::from(share.weight);
        UdpBackend {
            weights,
            cluster: share.cluster.as_ref().and_then(place),
            service: share.cluster.as_ref().map(|name| name.service.clone()),
        }
    };
    shares.iter().map(backend).collect()
}

#[cfg(test)]
mod tests;
