//! Encoding, once per resource and change: equal resources keep their bytes, maps that did not change are shared by every
//! node's snapshot.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use phalanx_model::document::{DocumentId, Kind as DocumentKind};
use phalanx_model::identity::TrustDomain;
use phalanx_model::resource::{Cluster, RouteTable};
use phalanx_model::{ClusterName, ServiceName, SharedMap};
use phalanx_xds::{Encoded, Kind, Snapshot, encode};

use super::demand::Hosts;
use super::own::Inbounds;
use super::proxyless::Dialect;
use super::table::Tables;
use super::{Finding, Mesh, Node, gateway, listener};
use crate::world::World;

pub use phalanx_xds::Resources;

/// A compiled and encoded world.
#[derive(Clone, Debug)]
pub struct Published {
    pub revision: u64,
    pub findings: Arc<Vec<Finding>>,
    pub world: Arc<World>,
    pub mesh: Arc<Mesh>,
    clusters: Resources,
    /// The same for who has an identity; made when the first of them comes.
    secure: Arc<OnceLock<Resources>>,
    endpoints: Resources,
    /// The same for who prefers a zone, by zone; made when the first from there comes.
    zones: Arc<Mutex<BTreeMap<String, Resources>>>,
    tables: Arc<Tables>,
    pub(super) inbounds: Inbounds,
    /// For sidecars that ask on demand.
    pub(super) hosts: Hosts,
    /// For proxyless gRPC.
    pub(super) dialect: Dialect,
    /// The world with a canary's change, for the nodes that come first.
    staged: Option<Arc<Published>>,
}

impl Published {
    /// Before the first world.
    fn nothing(trust_domain: TrustDomain) -> Self {
        Self {
            revision: 0,
            findings: Arc::default(),
            world: Arc::new(World::empty()),
            mesh: Arc::new(Mesh {
                trust_domain,
                ..Mesh::default()
            }),
            clusters: Resources::default(),
            secure: Arc::default(),
            inbounds: Inbounds::default(),
            endpoints: Resources::default(),
            zones: Arc::default(),
            tables: Arc::default(),
            hosts: Hosts::default(),
            dialect: Dialect::default(),
            staged: None,
        }
    }

    /// What is published for this node: the staged world if it is one of a canary's.
    pub fn of(self: &Arc<Self>, node: &str) -> Arc<Self> {
        match &self.staged {
            Some(staged) if self.is_first(node) => staged.clone(),
            _ => self.clone(),
        }
    }

    /// Whether this node is one of a canary's.
    pub fn is_first(&self, node: &str) -> bool {
        let canary = self.world.canary.as_ref();
        self.staged.is_some() && canary.is_some_and(|canary| canary.nodes.contains(node))
    }

    /// A stream's listener for the calls of its application, encoded; it stays the same as long as its node does.
    pub fn listeners(node: &Node) -> Resources {
        let listeners = listener(node).into_iter().map(|l| encode::listener(&l));
        listeners
            .map(|encoded| (encoded.name.clone(), Arc::new(encoded)))
            .collect()
    }

    /// What a node receives, by sharing; `table` instead of its namespace's, if given.
    pub fn snapshot(
        &self,
        node: &Node,
        listeners: &Resources,
        table: Option<&Resources>,
    ) -> Snapshot {
        let of_namespace = || self.tables.table(&node.service.namespace);
        let tables = &table.cloned().unwrap_or_else(of_namespace);
        // They are each stream's own; whoever asks for one and may have none waits.
        let secrets = Resources::default();
        let endpoints = self.endpoints(node);
        let of = |kind| match kind {
            Kind::Secret => &secrets,
            Kind::Cluster => self.clusters(node),
            Kind::Endpoints => &endpoints,
            Kind::Listener => listeners,
            Kind::Routes => tables,
        };
        Snapshot::from_kinds(self.revision, Kind::ALL.map(|kind| of(kind).clone()))
    }

    /// With mutual TLS only for who has a certificate to show.
    fn clusters(&self, node: &Node) -> &Resources {
        let encoded = |cluster: &Arc<Cluster>| {
            let encoded = encode::cluster(cluster);
            (encoded.name.clone(), Arc::new(encoded))
        };
        match node.tls.has_identity {
            true => self
                .secure
                .get_or_init(|| self.mesh.clusters.values().map(encoded).collect()),
            false => &self.clusters,
        }
    }

    /// As seen from the node's zone, where zones count.
    fn endpoints(&self, node: &Node) -> Resources {
        let zoned = || {
            let sets = self.mesh.assignments.values();
            sets.filter(|set| set.overprovision.is_some() && set.cluster.lane.is_none())
        };
        if node.zone.is_empty() || zoned().next().is_none() {
            return self.endpoints.clone();
        }
        // Held for a look-up, or for encoding what one zone sees.
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = zones.get(&node.zone) {
            return known.clone();
        }
        let mut seen = self.endpoints.clone();
        for set in zoned() {
            let encoded = encode::endpoints(&set.seen_from(&node.zone));
            seen.insert(encoded.name.clone(), Arc::new(encoded));
        }
        if zones.len() < ZONES_MAX {
            zones.insert(node.zone.clone(), seen.clone());
        }
        seen
    }

    /// A cluster or an endpoint set: those are the same for all nodes of a zone that have an identity, and for all that
    /// have none.
    pub(super) fn shared(&self, kind: Kind, name: &str, node: &Node) -> Option<Arc<Encoded>> {
        match kind {
            Kind::Cluster => self.clusters(node).get(name).cloned(),
            Kind::Endpoints => self.endpoints(node).get(name).cloned(),
            _ => None,
        }
    }

    /// The documents that a cluster or an endpoint set of this name is made of.
    pub fn sources(&self, name: &str) -> Vec<DocumentId> {
        let Ok(cluster) = name.parse::<ClusterName>() else {
            return gateway::source(name).into_iter().collect();
        };
        let ServiceName { namespace, name } = cluster.service.clone();
        let service = DocumentId {
            kind: DocumentKind::Service,
            namespace,
            name,
        };
        let service = Some(service).filter(|_| self.world.service(&cluster.service).is_some());
        let others = self.mesh.sources(&cluster.service);
        service.into_iter().chain(others.cloned()).collect()
    }
}

/// What it took to come from one world to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Resources, hosts of route tables and tables that were encoded.
    pub encoded: usize,
}

/// Remembers the last compilation, so that the next one compiles and encodes only what changed.
#[derive(Debug, Default)]
pub struct Compiler {
    last: Option<Published>,
    changes: Changes,
    /// Of a canary's world.
    staged: Option<Box<Compiler>>,
    trust_domain: TrustDomain,
}

impl Compiler {
    /// For a mesh of this trust domain.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            ..Self::default()
        }
    }

    /// Compiles and encodes a world.
    pub fn compile(&mut self, world: Arc<World>) -> Published {
        let nothing = || Published::nothing(self.trust_domain.clone());
        let last = self.last.take().unwrap_or_else(nothing);
        let before = &last.mesh;
        let mesh = Arc::new(before.advance(&last.world, &world));
        let mut changes = Changes::default();
        let clusters = renew(
            &last.clusters,
            (&before.clusters, &mesh.clusters),
            in_plain,
            &mut changes,
        );
        let secure = last.secure.get().map(|secure| {
            let clusters = (&before.clusters, &mesh.clusters);
            renew(secure, clusters, encode::cluster, &mut changes)
        });
        let endpoints = renew(
            &last.endpoints,
            (&before.assignments, &mesh.assignments),
            encode::endpoints,
            &mut changes,
        );
        let rules = (before.rules.ports(), mesh.rules.ports());
        let tables = if rules.0.same(rules.1) {
            last.tables
        } else {
            Arc::new(
                last.tables
                    .advance(&before.rules, &mesh.rules, &mut changes),
            )
        };
        let mut published = Published {
            revision: world.revision,
            findings: mesh.findings.clone(),
            world,
            mesh,
            clusters,
            secure: Arc::new(secure.map_or_else(OnceLock::new, OnceLock::from)),
            inbounds: last.inbounds,
            endpoints,
            zones: Arc::default(),
            tables,
            hosts: last.hosts,
            dialect: last.dialect,
            staged: None,
        };
        self.changes = changes;
        self.last = Some(published.clone());
        published.staged = self.stage(&published);
        published
    }

    /// Compiles from there on.
    pub fn resume(published: &Published) -> Self {
        Self {
            last: Some(Published {
                staged: None,
                ..published.clone()
            }),
            trust_domain: published.mesh.trust_domain.clone(),
            ..Self::default()
        }
    }

    /// The same with the canary's change, if there is one.
    fn stage(&mut self, published: &Published) -> Option<Arc<Published>> {
        let world = published.world.staged().map(|staged| World {
            canary: None,
            ..staged
        });
        let Some(world) = world else {
            self.staged = None;
            return None;
        };
        let resume = || Box::new(Self::resume(published));
        let compiler = self.staged.get_or_insert_with(resume);
        Some(Arc::new(compiler.compile(Arc::new(world))))
    }

    /// Of the last compilation.
    pub fn changes(&self) -> Changes {
        self.changes
    }
}

type Compiled<N, R> = SharedMap<N, Arc<R>>;

/// Encodes what differs between two versions of a map.
fn renew<N: Ord + ToString, R>(
    resources: &Resources,
    (before, after): (&Compiled<N, R>, &Compiled<N, R>),
    encode: fn(&R) -> Encoded,
    changes: &mut Changes,
) -> Resources {
    let mut resources = resources.clone();
    for change in after.differences(before, Arc::ptr_eq) {
        let name = change.key.to_string();
        match change.after {
            Some(resource) => {
                changes.encoded += 1;
                let encoded = encode(resource);
                let known = resources.get(&name);
                if known.is_none_or(|known| known.version != encoded.version) {
                    resources.insert(name, Arc::new(encoded));
                }
            }
            None => drop(resources.remove(&name)),
        }
    }
    resources
}

/// Zones whose view is kept; nodes name them.
const ZONES_MAX: usize = 256;

/// For who has no certificate to show.
fn in_plain(cluster: &Cluster) -> Encoded {
    encode::cluster(&Cluster {
        tls: None,
        ..cluster.clone()
    })
}

/// A node's only table, encoded.
pub fn encode_table(table: &RouteTable) -> Resources {
    let encoded = encode::routes(table);
    Resources::from([(encoded.name.clone(), Arc::new(encoded))])
}
