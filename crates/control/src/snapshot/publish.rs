//! Encoding, once per resource and change: equal resources keep their bytes, maps that did not change are shared by every
//! node's snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use phalanx_model::ClusterName;
use phalanx_model::document::{Document, DocumentId};
use phalanx_model::resource::RouteTable;
use phalanx_xds::{Encoded, Kind, Snapshot, encode};

use super::{Finding, Mesh, Node, listener};
use crate::world::World;

/// Encoded resources of one kind, by name.
pub type Resources = Arc<BTreeMap<String, Arc<Encoded>>>;

/// A compiled and encoded world.
#[derive(Clone, Debug)]
pub struct Published {
    pub revision: u64,
    pub findings: Arc<Vec<Finding>>,
    pub world: Arc<World>,
    pub mesh: Arc<Mesh>,
    clusters: Resources,
    endpoints: Resources,
    /// By calling namespace.
    tables: BTreeMap<String, Resources>,
    /// For namespaces without services.
    table: Resources,
}

impl Published {
    /// A stream's own listeners, encoded; they stay the same as long as its node does.
    pub fn listeners(node: &Node) -> Resources {
        let listeners = listener(node).into_iter().map(|l| encode::listener(&l));
        Arc::new(
            listeners
                .map(|encoded| (encoded.name.clone(), Arc::new(encoded)))
                .collect(),
        )
    }

    /// What a node receives, by sharing; `table` instead of its namespace's, if given.
    pub fn snapshot(
        &self,
        node: &Node,
        listeners: &Resources,
        table: Option<&Resources>,
    ) -> Snapshot {
        let of_namespace = || {
            self.tables
                .get(&node.service.namespace)
                .unwrap_or(&self.table)
        };
        let tables = table.unwrap_or_else(of_namespace);
        // They come with identities; until then whoever asks for one waits.
        let secrets = Resources::default();
        let of = |kind| match kind {
            Kind::Secret => &secrets,
            Kind::Cluster => &self.clusters,
            Kind::Endpoints => &self.endpoints,
            Kind::Listener => listeners,
            Kind::Routes => tables,
        };
        Snapshot::from_kinds(self.revision, Kind::ALL.map(|kind| of(kind).clone()))
    }

    /// The documents that a cluster or an endpoint set of this name is made of.
    pub fn sources(&self, name: &str) -> Vec<DocumentId> {
        let Ok(cluster) = name.parse::<ClusterName>() else {
            return Vec::new();
        };
        let made_of = |document: &Document| match document {
            Document::Service(service) => service.service_name() == cluster.service,
            Document::EndpointSlice(slice) => slice.service == cluster.service,
            Document::BackendPolicy(policy) => policy.targets.contains(&cluster.service),
            Document::Route(_) | Document::AuthorizationPolicy(_) => false,
        };
        self.world
            .in_force()
            .filter(|(_, document)| made_of(document))
            .map(|(entry, _)| entry.id.clone())
            .collect()
    }
}

/// Remembers the last compilation, so that the next one encodes only what changed.
#[derive(Debug, Default)]
pub struct Compiler {
    last: Option<Published>,
}

impl Compiler {
    /// Compiles and encodes a world.
    pub fn compile(&mut self, world: Arc<World>) -> Published {
        let mesh = Arc::new(Mesh::compile(&world));
        let last = self
            .last
            .as_ref()
            .map(|published| (&published.mesh, published));
        let old = |kind: fn(&Published) -> &Resources| last.map(|(_, published)| kind(published));
        let clusters = reuse(
            mesh.clusters.iter().map(|(name, cluster)| {
                (
                    name,
                    cluster,
                    last.and_then(|(mesh, _)| mesh.clusters.get(name)),
                )
            }),
            old(|p| &p.clusters),
            encode::cluster,
        );
        let endpoints = reuse(
            mesh.assignments.iter().map(|(name, set)| {
                (
                    name,
                    set,
                    last.and_then(|(mesh, _)| mesh.assignments.get(name)),
                )
            }),
            old(|p| &p.endpoints),
            encode::endpoints,
        );
        let (tables, table) = match last {
            Some((before, published))
                if before.rules == mesh.rules && before.catalog == mesh.catalog =>
            {
                (published.tables.clone(), published.table.clone())
            }
            _ => tables(&mesh),
        };
        let published = Published {
            revision: world.revision,
            findings: Arc::new(mesh.findings.clone()),
            world,
            mesh,
            clusters,
            endpoints,
            tables,
            table,
        };
        self.last = Some(published.clone());
        published
    }
}

/// Encodes what differs from before; the whole old map if nothing does.
fn reuse<'a, N: ToString + 'a, R: PartialEq + 'a>(
    resources: impl Iterator<Item = (&'a N, &'a R, Option<&'a R>)>,
    old: Option<&Resources>,
    encode: fn(&R) -> Encoded,
) -> Resources {
    let mut fresh = BTreeMap::new();
    let mut all_reused = true;
    for (name, resource, before) in resources {
        let name = name.to_string();
        let kept = old
            .filter(|_| before == Some(resource))
            .and_then(|old| old.get(&name))
            .cloned();
        all_reused &= kept.is_some();
        let encoded = kept.unwrap_or_else(|| Arc::new(encode(resource)));
        fresh.insert(name, encoded);
    }
    match old {
        Some(old) if all_reused && old.len() == fresh.len() => old.clone(),
        _ => Arc::new(fresh),
    }
}

fn tables(mesh: &Mesh) -> (BTreeMap<String, Resources>, Resources) {
    let mut tables = BTreeMap::new();
    for service in mesh.catalog.services.keys() {
        if !tables.contains_key(&service.namespace) {
            tables.insert(
                service.namespace.clone(),
                encode_table(&mesh.rules.table(&service.namespace, &mesh.catalog)),
            );
        }
    }
    (
        tables,
        encode_table(&mesh.rules.generic_table(&mesh.catalog)),
    )
}

/// A node's only table, encoded.
pub fn encode_table(table: &RouteTable) -> Resources {
    let encoded = encode::routes(table);
    Arc::new(BTreeMap::from([(encoded.name.clone(), Arc::new(encoded))]))
}
