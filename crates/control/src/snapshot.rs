//! What data planes receive: a world compiled to resources, and those encoded once for everybody.
//!
//! [`Mesh::compile`] is pure: documents and instances in, clusters, endpoint sets and rules out, with a [`Finding`] per
//! document that is (partly) not in force. [`Compiler`] encodes what changed and hands out a [`Published`], from which each
//! stream takes its node's [`Snapshot`] by sharing. No I/O, no clock.

mod asks;
mod catalog;
mod demand;
mod gateway;
mod inbound;
mod index;
mod lanes;
mod node;
mod overlay;
mod own;
mod proxyless;
mod publish;
mod routes;
mod table;
mod transcode;
mod udp;

use std::sync::Arc;

use phalanx_model::document::DocumentId;
use phalanx_model::identity::{SYSTEM_NAMESPACE, TrustDomain};
use phalanx_model::name::Direction;
use phalanx_model::resource::{Assignment, Cluster, Listener, ListenerProtocol, RouteTable};
use phalanx_model::{ClusterName, ServiceName, SharedMap};

use index::{Index, Touched};

pub use asks::{Asks, host};
pub use catalog::{Catalog, CatalogPort, Ports};
pub use demand::{DEMAND, Demand};
pub use gateway::{AtGateway, Gateways};
pub use lanes::{KnownLane, Lanes};
pub use node::{Edge, Node, NodeError, NodeTls};
pub use own::Own;
pub use proxyless::{Proxyless, SERVER_LISTENER, Unmet};
pub use publish::{Changes, Compiler, Published, Resources, encode_table};
pub use routes::{OUTBOUND, Rules};
pub use udp::UdpPorts;

use crate::world::World;

/// A document that is stored but not, or not wholly, in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub document: DocumentId,
    pub message: String,
    /// Of the document's last change.
    pub since_revision: u64,
}

impl Finding {
    /// How it stands: `unattached`, `conflicted` or `not in force`.
    pub fn state(&self) -> &'static str {
        let states = ["unattached", "conflicted"];
        let told = |state: &&str| {
            self.message
                .strip_prefix(*state)
                .is_some_and(|rest| rest.starts_with(':'))
        };
        states.into_iter().find(told).unwrap_or("not in force")
    }
}

/// A world, compiled; what all nodes share, and from which a node's own part is taken.
///
/// Parts that did not change are shared with the mesh before, so that two are compared by pointer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mesh {
    /// Of all identities in it.
    pub trust_domain: TrustDomain,
    pub catalog: Catalog,
    pub lanes: Lanes,
    pub clusters: SharedMap<ClusterName, Arc<Cluster>>,
    pub assignments: SharedMap<ClusterName, Arc<Assignment>>,
    pub rules: Rules,
    pub udp: UdpPorts,
    pub gateways: Gateways,
    /// Sorted, each once.
    pub findings: Arc<Vec<Finding>>,
    index: Index,
    notes: Notes,
}

/// The findings, by the service they were made at.
#[derive(Clone, Debug, Default, PartialEq)]
struct Notes {
    of_service: Noted,
    /// By namespace, with an empty name.
    of_namespace: Noted,
    of_rules: Noted,
    /// By the Rollout.
    of_rollouts: Noted,
    /// By the Gateway.
    of_gateways: Noted,
    /// At the service without a name.
    of_colours: Noted,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Noted(SharedMap<ServiceName, Arc<Vec<Finding>>>);

impl Noted {
    fn set(&mut self, service: &ServiceName, findings: Vec<Finding>) {
        match findings.is_empty() {
            true => drop(self.0.remove(service)),
            false => catalog::replace(&mut self.0, service.clone(), findings),
        }
    }
}

/// The resources of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    pub listeners: Vec<Listener>,
    pub tables: Vec<RouteTable>,
    pub clusters: Vec<Cluster>,
    pub assignments: Vec<Assignment>,
}

impl Mesh {
    pub fn compile(world: &World) -> Self {
        Self::default().advance(&World::empty(), world)
    }

    /// The mesh of `world`, where this is the one of `before`; costs what differs between the two.
    #[must_use]
    pub fn advance(&self, before: &World, world: &World) -> Self {
        let mut mesh = self.clone();
        let Touched {
            mut services,
            mut rules,
            mut gateways,
            rollouts,
            governed: _,
            namespaces,
            everything,
            colours,
        } = mesh.index.follow(before, world);
        if colours {
            let mut findings = Vec::new();
            mesh.lanes = Lanes::compile(world, mesh.index.colours.iter(), &mut findings);
            mesh.notes
                .of_colours
                .set(&ServiceName::new("", ""), findings);
            gateways.extend(self.gateways.names());
        }
        let spoken_of =
            |service: &&ServiceName| everything || namespaces.contains(&service.namespace);
        if everything || !namespaces.is_empty() {
            services.extend(self.catalog.services.keys().filter(spoken_of).cloned());
        }
        for namespace in namespaces {
            let (about, ids) = match namespace.as_str() {
                SYSTEM_NAMESPACE => ("the mesh".to_owned(), mesh.index.peers_of_mesh().collect()),
                _ => {
                    let ids = mesh.index.peers_of_namespace(&namespace).collect();
                    (format!("namespace {namespace}"), ids)
                }
            };
            let conflicts = inbound::conflicts(world, ids, &about);
            let key = ServiceName::new(namespace, "");
            mesh.notes.of_namespace.set(&key, conflicts);
        }
        for service in catalog::compile(&mut mesh, world, services) {
            // A backend that comes or goes changes the rules that name it.
            rules.extend(mesh.index.parents_of_users(world, &service));
            gateways.extend(mesh.index.gateways_of_users(world, &service));
            rules.insert(service);
        }
        overlay::note(&mut mesh, world, rollouts);
        routes::compile(&mut mesh, world, rules);
        gateway::compile(&mut mesh, world, gateways);
        let (was, is) = (&self.notes, &mesh.notes);
        let pairs = [
            (&was.of_service, &is.of_service),
            (&was.of_namespace, &is.of_namespace),
            (&was.of_rules, &is.of_rules),
            (&was.of_rollouts, &is.of_rollouts),
            (&was.of_gateways, &is.of_gateways),
            (&was.of_colours, &is.of_colours),
        ];
        if !pairs.iter().all(|(was, is)| was.0.same(&is.0)) {
            mesh.findings = Arc::new(mesh.notes.collect());
        }
        mesh
    }

    /// EndpointSlices, BackendPolicies and PeerAuthentications of a service.
    fn sources(&self, service: &ServiceName) -> impl Iterator<Item = &DocumentId> {
        self.index
            .slices
            .of(service)
            .chain(self.index.policies.of(service))
            .chain(self.index.peers.of(service))
    }

    /// Everything one node receives.
    pub fn resources(&self, node: &Node) -> Compiled {
        Compiled {
            listeners: listener(node).into_iter().collect(),
            tables: vec![self.rules.table(&node.service.namespace, &self.catalog)],
            clusters: self.clusters.values().map(|c| (**c).clone()).collect(),
            assignments: self.assignments.values().map(|a| (**a).clone()).collect(),
        }
    }
}

impl Notes {
    fn collect(&self) -> Vec<Finding> {
        let all = [
            &self.of_service,
            &self.of_namespace,
            &self.of_rules,
            &self.of_rollouts,
            &self.of_gateways,
            &self.of_colours,
        ];
        let notes = all.into_iter().flat_map(|noted| noted.0.values());
        let mut findings: Vec<_> = notes.flat_map(|of_one| of_one.iter()).cloned().collect();
        findings.sort_unstable();
        findings.dedup();
        findings
    }
}

/// The outbound listener of a node that told its address.
pub fn listener(node: &Node) -> Option<Listener> {
    let protocol = ListenerProtocol::Http {
        route_table: OUTBOUND.to_owned(),
    };
    let address = node.outbound?;
    Some(Listener {
        name: OUTBOUND.to_owned(),
        address,
        direction: Direction::Outbound,
        protocol,
    })
}

/// A service by the ways a caller in `namespace` may name it.
fn hosts(service: &ServiceName, namespace: Option<&str>) -> Vec<String> {
    let short = (namespace == Some(service.namespace.as_str())).then(|| service.name.clone());
    let full = [
        format!("{}.{}", service.name, service.namespace),
        service.host(),
    ];
    short.into_iter().chain(full).collect()
}

#[cfg(test)]
pub(crate) mod tests;
