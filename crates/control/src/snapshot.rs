//! What data planes receive: a world compiled to resources, and those encoded once for everybody.
//!
//! [`Mesh::compile`] is pure: documents and instances in, clusters, endpoint sets and rules out, with a [`Finding`] per
//! document that is (partly) not in force. [`Compiler`] encodes what changed and hands out a [`Published`], from which each
//! stream takes its node's [`Snapshot`] by sharing. No I/O, no clock.

mod catalog;
mod node;
mod publish;
mod routes;

use std::collections::BTreeMap;

use phalanx_model::document::DocumentId;
use phalanx_model::name::Direction;
use phalanx_model::resource::{Assignment, Cluster, Listener, ListenerProtocol, RouteTable};
use phalanx_model::{ClusterName, ServiceName};

pub use catalog::{Catalog, CatalogPort};
pub use node::{Node, NodeError};
pub use publish::{Compiler, Published, Resources, encode_table};
pub use routes::{OUTBOUND, Rules};

use crate::world::World;

/// A document that is stored but not, or not wholly, in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub document: DocumentId,
    pub message: String,
    /// Of the document's last change.
    pub since_revision: u64,
}

/// A world, compiled; what all nodes share, and from which a node's own part is taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    pub catalog: Catalog,
    pub clusters: BTreeMap<ClusterName, Cluster>,
    pub assignments: BTreeMap<ClusterName, Assignment>,
    pub rules: Rules,
    /// Sorted, each once.
    pub findings: Vec<Finding>,
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
        let mut findings = Vec::new();
        let (catalog, assignments) = catalog::compile(world, &mut findings);
        let clusters = catalog::clusters(world, &catalog, &mut findings);
        let rules = Rules::compile(world, &catalog, &mut findings);
        findings.sort_unstable();
        findings.dedup();
        Self {
            catalog,
            clusters,
            assignments,
            rules,
            findings,
        }
    }

    /// Everything one node receives.
    pub fn resources(&self, node: &Node) -> Compiled {
        Compiled {
            listeners: listener(node).into_iter().collect(),
            tables: vec![self.rules.table(&node.service.namespace, &self.catalog)],
            clusters: self.clusters.values().cloned().collect(),
            assignments: self.assignments.values().cloned().collect(),
        }
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
mod tests;
