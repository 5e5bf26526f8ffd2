//! The plan: everything that can be decided before a request comes, compiled once per configuration and then only read.
//!
//! Resources enter as discovery keeps them; the workers take the whole plan by one swap. What was learnt of an endpoint
//! (ejection, breaker counts) and what was counted lives on by name and address.

pub mod cluster;
pub mod table;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, Direction, ServiceName};
use phalanx_model::resource::{Assignment, Cluster, Listener, ListenerProtocol};

use self::cluster::ClusterPlan;
pub use self::table::{Table, compile_table};
use crate::account::{Account, Edge, EdgeKey, Traffic};

/// What discovery holds, accepted and complete.
#[derive(Clone, Default)]
pub struct Resources {
    pub listeners: BTreeMap<String, Listener>,
    /// Route tables, compiled where they were accepted.
    pub tables: BTreeMap<String, Arc<Table>>,
    pub clusters: BTreeMap<ClusterName, Cluster>,
    pub assignments: BTreeMap<ClusterName, Assignment>,
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
    pub outbound: Option<Outbound>,
    pub inbound: Inbound,
    /// By place in [`Bootstrap::tcp`]; none while the cluster is not known.
    pub tcp: Box<[Option<usize>]>,
    /// Outbound ones in the order of names, then one per application port.
    pub clusters: Box<[Arc<ClusterPlan>]>,
    pub edges: OwnEdges,
}

/// Edges for requests that ended before a cluster was chosen.
pub struct OwnEdges {
    pub outbound: Arc<Edge>,
    pub inbound: Arc<Edge>,
}

/// A route table and where its clusters are in this plan.
pub struct Outbound {
    pub table: Arc<Table>,
    /// By the table's own numbers; none for a cluster that has not come.
    pub clusters: Box<[Option<usize>]>,
}

/// The application's ports.
pub struct Inbound {
    pub apps: Box<[App]>,
    pub rule: table::RulePlan,
}

pub struct App {
    pub number: u16,
    pub tcp: bool,
    /// In [`Plan::clusters`].
    pub cluster: usize,
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
            })
        };
        Plan {
            outbound: None,
            inbound: Inbound {
                apps: Box::default(),
                rule: table::RulePlan::inbound(),
            },
            tcp: bootstrap.tcp.iter().map(|_| None).collect(),
            clusters: Box::default(),
            edges: OwnEdges {
                outbound: edge(Direction::Outbound, None),
                inbound: edge(Direction::Inbound, None),
            },
        }
    }

    /// Cannot fail: what could be wrong with a resource was refused when it came.
    pub fn assemble(
        resources: &Resources,
        bootstrap: &Bootstrap,
        previous: &Plan,
        account: &Account,
    ) -> Plan {
        let mut plan = Self::bare(bootstrap, account);
        let mut clusters = Vec::with_capacity(resources.clusters.len() + bootstrap.inbound.len());
        let mut places = BTreeMap::new();
        for (name, cluster) in &resources.clusters {
            let endpoints = resources
                .assignments
                .get(name)
                .map_or(&[][..], |assignment| &assignment.endpoints);
            places.insert(name, clusters.len());
            clusters.push(Arc::new(ClusterPlan::outbound(
                cluster,
                endpoints,
                previous.cluster(name),
                account,
            )));
        }
        let mut apps = Vec::with_capacity(bootstrap.inbound.len());
        for port in &bootstrap.inbound {
            let name = ClusterName {
                direction: Direction::Inbound,
                port: port.number,
                service: bootstrap.service.clone(),
            };
            let before = previous.cluster(&name);
            apps.push(App {
                number: port.number,
                tcp: port.protocol == Protocol::Tcp,
                cluster: clusters.len(),
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
        plan.tcp = bootstrap
            .tcp
            .iter()
            .map(|(_, name)| places.get(name).copied())
            .collect();
        plan.outbound = outbound_table(resources).map(|table| {
            let place = |name: &ClusterName| places.get(name).copied();
            Outbound {
                clusters: table.clusters().iter().map(place).collect(),
                table: table.clone(),
            }
        });
        plan.clusters = clusters.into();
        plan
    }

    pub fn cluster(&self, name: &ClusterName) -> Option<&Arc<ClusterPlan>> {
        self.clusters.iter().find(|cluster| cluster.name == *name)
    }
}

/// The table of the one outbound HTTP listener. Where listeners are still to come, a table of the agreed name will do.
fn outbound_table(resources: &Resources) -> Option<&Arc<Table>> {
    let named = resources
        .listeners
        .values()
        .find_map(|listener| match &listener.protocol {
            ListenerProtocol::Http { route_table } if listener.direction == Direction::Outbound => {
                Some(route_table.as_str())
            }
            _ => None,
        });
    resources.tables.get(named.unwrap_or(OUTBOUND_TABLE))
}

const OUTBOUND_TABLE: &str = "outbound";

#[cfg(test)]
mod tests;
