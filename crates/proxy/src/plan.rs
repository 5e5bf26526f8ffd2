//! The plan: everything that can be decided before a request comes, compiled once per configuration and then only read.
//!
//! Resources enter as discovery keeps them; the workers take the whole plan by one swap. What was learnt of an endpoint
//! (ejection, breaker counts) and what was counted lives on by name and address.

pub mod cluster;
pub mod cors;
pub mod directory;
pub mod entry;
pub mod gateway;
pub mod hosts;
pub mod key;
pub mod peer;
pub mod session;
pub mod table;
pub mod udp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, Direction, ServiceName};
use phalanx_model::resource::colour::EdgeColours;
use phalanx_model::resource::{Assignment, Cluster, Listener, ListenerProtocol};

use self::cluster::ClusterPlan;
pub use self::entry::{Entries, Entry};
use self::gateway::Gates;
pub use self::hosts::{Hosts, Routes};
pub use self::peer::{Alpn, PeerPlan};
pub use self::table::{Table, compile_table};
pub use self::udp::{UdpPortPlan, UdpTarget};
use crate::account::{Account, Colours, Edge, EdgeKey, Security, Traffic};
use crate::desk::Desk;
use crate::directory::Directory;
use crate::edge;
use crate::quota::Standing;
use crate::quota::leases::Leases;

/// What discovery holds, accepted and complete.
#[derive(Clone, Default)]
pub struct Resources {
    /// Where requests wait for hosts, if they may.
    pub desk: Option<Arc<Desk>>,
    /// Where sessions are.
    pub directory: Arc<Directory>,
    pub listeners: BTreeMap<String, Listener>,
    /// Route tables, compiled where they were accepted.
    pub tables: BTreeMap<String, Arc<Table>>,
    pub clusters: BTreeMap<ClusterName, Arc<Cluster>>,
    pub assignments: BTreeMap<ClusterName, Arc<Assignment>>,
    /// What callers of the application are asked for, compiled where it was accepted; none until it has come.
    pub inbound: Option<Arc<Entries>>,
    /// For one that runs a Gateway.
    pub edge: Option<Arc<edge::Edge>>,
}

impl Resources {
    /// The route table of the outbound HTTP listener; where that ends with `/`, there is one for each authority under this
    /// prefix. None while no listener has come.
    pub fn outbound_table(&self) -> Option<&str> {
        let of = |listener: &'_ Listener| match &listener.protocol {
            ListenerProtocol::Http { .. } => listener.direction == Direction::Outbound,
            ListenerProtocol::Tcp { .. }
            | ListenerProtocol::Inbound { .. }
            | ListenerProtocol::Gateway(_)
            | ListenerProtocol::Udp(_) => false,
        };
        let listener = self.listeners.values().find(|listener| of(listener))?;
        match &listener.protocol {
            ListenerProtocol::Http { route_table } => Some(route_table),
            ListenerProtocol::Tcp { .. }
            | ListenerProtocol::Inbound { .. }
            | ListenerProtocol::Gateway(_)
            | ListenerProtocol::Udp(_) => None,
        }
    }

    /// Services whose sessions clusters go by, or tokens of datagrams.
    pub fn directories(&self) -> BTreeSet<ServiceName> {
        let clusters = self.clusters.values();
        let asked = clusters.filter_map(|cluster| cluster.directory.as_ref());
        let asked = asked.map(|directory| directory.service.clone());
        let listeners = self.listeners.values().map(|l| &l.protocol);
        let shares = listeners.flat_map(|protocol| match protocol {
            ListenerProtocol::Udp(port) if port.rules.token.is_some() => {
                let of_sources = port.by_source.iter().flat_map(|(_, shares)| shares);
                port.backends.iter().chain(of_sources).collect()
            }
            _ => Vec::new(),
        });
        let of_tokens = shares.filter_map(|share| Some(share.cluster.as_ref()?.service.clone()));
        asked.chain(of_tokens).collect()
    }

    /// What comes before the authority in the names of tables, if there is one for each.
    pub fn demand_prefix(&self) -> Option<&str> {
        self.outbound_table().filter(|name| name.ends_with('/'))
    }
}

/// What the sidecar knows of itself without a control plane: enough to serve inbound traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    pub service: ServiceName,
    /// The `version` label of this instance.
    pub version: String,
    /// One per `--app`.
    pub inbound: Vec<AppPort>,
    /// One per `--tcp`, in the order of [`crate::drive::DriveConfig::tcp`].
    pub tcp: Vec<(SocketAddr, ClusterName)>,
}

/// One port of the application beside this sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppPort {
    /// Empty when given without a name.
    pub name: String,
    /// What callers ask for: the port the application listens on.
    pub number: u16,
    pub address: SocketAddr,
    /// `Tcp`: its traffic is passed on unread. `H2c` and `Grpc`: spoken to in HTTP/2, `Http1`: in HTTP/1.1, else in
    /// whatever the caller speaks.
    pub protocol: Protocol,
}

/// One immutable configuration.
pub struct Plan {
    pub outbound: Outbound,
    pub inbound: Inbound,
    /// By place in [`Bootstrap::tcp`]; none while the cluster is not known.
    pub tcp: Box<[Option<usize>]>,
    /// Outbound ones in the order of names, then one per application port.
    pub clusters: Box<[Arc<ClusterPlan>]>,
    inbound_from: usize,
    pub edges: OwnEdges,
    /// Where sessions are; changes by itself, without another plan.
    pub directory: Arc<Directory>,
    /// Whose sessions are asked for.
    pub directories: Box<[ServiceName]>,
    /// What is taken from outside the mesh.
    pub gates: Gates,
    /// Numbers of those that configuration names.
    pub colours: Arc<Colours>,
    /// Sockets for datagrams, by address: what is there is to be open, and nothing else.
    pub udp: Vec<UdpPortPlan>,
}

/// Edges for requests that ended before a cluster was chosen.
pub struct OwnEdges {
    pub outbound: Arc<Edge>,
    pub inbound: Arc<Edge>,
}

/// Where requests of the application are looked up.
pub enum Outbound {
    /// Nothing has come yet.
    Unknown,
    /// One table has all hosts.
    All(Routes),
    /// Hosts in use; for others a request waits at the desk.
    Demand { hosts: Arc<Hosts>, desk: Arc<Desk> },
}

/// The application's ports.
pub struct Inbound {
    pub apps: Box<[App]>,
    pub rule: table::RulePlan,
    /// What callers are asked for; none until that is known.
    entries: Option<Arc<Entries>>,
}

impl Inbound {
    /// What callers of this port are asked for, whether it is one of the application's or not.
    pub fn entry(&self, port: u16) -> Option<&Arc<Entry>> {
        self.entries.as_ref().map(|entries| entries.of(port))
    }
}

pub struct App {
    pub number: u16,
    pub tcp: bool,
    /// In [`Plan::clusters`].
    pub cluster: usize,
    /// What its callers are asked for; none until that is known.
    pub entry: Option<Arc<Entry>>,
}

impl Plan {
    /// Serves nothing: every request is answered with 503 `no_healthy_upstream`.
    pub fn empty() -> Plan {
        let own = Arc::new(Account::new(1));
        let nowhere = ServiceName::new("", "");
        Self::bare(
            &Bootstrap {
                service: nowhere,
                version: String::new(),
                inbound: Vec::new(),
                tcp: Vec::new(),
            },
            &own,
        )
    }

    fn bare(bootstrap: &Bootstrap, account: &Account) -> Plan {
        let edge = |direction, cluster| {
            account.edge(EdgeKey {
                direction,
                cluster,
                version: String::new(),
                traffic: Traffic::Http,
                security: Security::Plain,
                in_lane: false,
            })
        };
        Plan {
            outbound: Outbound::Unknown,
            directory: Arc::default(),
            directories: Box::default(),
            gates: Gates::default(),
            colours: account.colours().clone(),
            udp: Vec::new(),
            inbound: Inbound {
                apps: Box::default(),
                rule: table::RulePlan::inbound(),
                entries: None,
            },
            tcp: bootstrap.tcp.iter().map(|_| None).collect(),
            clusters: Box::default(),
            inbound_from: 0,
            edges: OwnEdges {
                outbound: edge(Direction::Outbound, None),
                inbound: edge(Direction::Inbound, None),
            },
        }
    }

    /// Cannot fail: what could be wrong with a resource was refused when it came. What is made of the same as in `previous`
    /// is the same.
    pub fn assemble(
        resources: &Resources,
        bootstrap: &Bootstrap,
        previous: &Plan,
        account: &Account,
    ) -> Plan {
        let mut plan = Self::bare(bootstrap, account);
        plan.directory = resources.directory.clone();
        plan.directories = resources.directories().into_iter().collect();
        let mut clusters = Vec::with_capacity(resources.clusters.len() + bootstrap.inbound.len());
        for (name, cluster) in &resources.clusters {
            let assignment = resources.assignments.get(name);
            let before = previous.cluster(name);
            let same = before.filter(|before| before.is_made_of(cluster, assignment));
            let renew = || Arc::new(ClusterPlan::outbound(cluster, assignment, before, account));
            clusters.push(same.cloned().unwrap_or_else(renew));
        }
        plan.inbound_from = clusters.len();
        let mut apps = Vec::with_capacity(bootstrap.inbound.len());
        for port in &bootstrap.inbound {
            let name = ClusterName {
                direction: Direction::Inbound,
                port: port.number,
                service: bootstrap.service.clone(),
                lane: None,
            };
            let before = previous.cluster(&name);
            apps.push(App {
                number: port.number,
                tcp: port.protocol == Protocol::Tcp,
                cluster: clusters.len(),
                entry: resources
                    .inbound
                    .as_ref()
                    .map(|entries| entries.of(port.number).clone()),
            });
            clusters.push(Arc::new(ClusterPlan::inbound(
                name,
                port,
                &bootstrap.version,
                before,
                account,
            )));
        }
        plan.inbound.apps = apps.into();
        plan.inbound.entries = resources.inbound.clone();
        plan.clusters = clusters.into();
        plan.tcp = bootstrap
            .tcp
            .iter()
            .map(|(_, name)| plan.place(name))
            .collect();
        plan.outbound = outbound(resources, |name| plan.place(name), previous);
        plan.udp = udp::ports(resources.listeners.values(), |name| plan.place(name));
        if let Some(edge) = &resources.edge {
            let listeners = resources.listeners.values();
            let certificates = edge.certificates();
            let place = |name: &ClusterName| plan.place(name);
            plan.gates = Gates::new(listeners, &resources.tables, certificates, place);
        }
        plan.name_colours();
        plan
    }

    fn name_colours(&self) {
        let clusters = self.clusters.iter();
        let lanes = clusters.filter_map(|cluster| cluster.name.lane.as_deref());
        let entries = self
            .inbound
            .apps
            .iter()
            .filter_map(|app| app.entry.as_ref());
        let edges = entries
            .map(|entry| &*entry.colours)
            .chain([&self.gates.colours]);
        let edges = edges.flat_map(EdgeColours::named);
        self.colours.keep(lanes.chain(edges));
    }

    /// Whether all sessions that are asked for have come once.
    pub fn is_seated(&self) -> bool {
        let mut services = self.directories.iter();
        services.all(|service| self.directory.is_filled(service))
    }

    /// Each policy with limits that holds for some port.
    pub fn limits(&self) -> Vec<Arc<Standing>> {
        let entries = self
            .inbound
            .apps
            .iter()
            .filter_map(|app| app.entry.as_ref());
        let standings = entries.flat_map(|entry| entry.limits.standings());
        let by_name: BTreeMap<_, _> = standings.map(|one| (&one.policy, one)).collect();
        by_name.into_values().cloned().collect()
    }

    /// Those that other sidecars share.
    pub fn leases(&self) -> Vec<Arc<Leases>> {
        let limits = self.limits();
        let leases = limits.iter().filter_map(|standing| standing.leases.clone());
        leases.collect()
    }

    pub fn cluster(&self, name: &ClusterName) -> Option<&Arc<ClusterPlan>> {
        let inbound = || self.clusters.get(self.inbound_from..);
        match self.place(name) {
            Some(place) => self.clusters.get(place),
            None => inbound()?.iter().find(|cluster| cluster.name == *name),
        }
    }

    /// Of an outbound cluster.
    fn place(&self, name: &ClusterName) -> Option<usize> {
        let outbound = self.clusters.get(..self.inbound_from)?;
        outbound.binary_search_by(|probe| probe.name.cmp(name)).ok()
    }
}

/// Where listeners are still to come, a table of the agreed name will do.
fn outbound(
    resources: &Resources,
    place: impl Fn(&ClusterName) -> Option<usize>,
    previous: &Plan,
) -> Outbound {
    if let (Some(prefix), Some(desk)) = (resources.demand_prefix(), &resources.desk) {
        let before = match &previous.outbound {
            Outbound::Demand { hosts, .. } => Some(hosts),
            _ => None,
        };
        let tables = resources.tables.iter();
        let hosts = tables.filter_map(|(name, table)| Some((name.strip_prefix(prefix)?, table)));
        return Outbound::Demand {
            hosts: Hosts::renewed(hosts, place, before),
            desk: desk.clone(),
        };
    }
    let name = resources.outbound_table().unwrap_or(OUTBOUND_TABLE);
    match resources.tables.get(name) {
        Some(table) => Outbound::All(Routes::new(table, place)),
        None => Outbound::Unknown,
    }
}

const OUTBOUND_TABLE: &str = "outbound";

#[cfg(test)]
mod tests;
