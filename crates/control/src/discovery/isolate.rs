//! When a route table is refused, one document must not freeze the rest: whatever changed since the node last accepted a
//! table goes back to how it was then, for this node, until it changes again.
//!
//! Other kinds need none of this: a refused cluster or endpoint set is a resource of its own, and the session isolates it.

use std::collections::BTreeMap;
use std::sync::Arc;

use phalanx_model::document::{Document, DocumentId};
use phalanx_xds::server::{Nack, Progress};
use phalanx_xds::{Kind, Snapshot};

use super::fleet::Refused;
use crate::snapshot::{Mesh, Node, Published, Resources, encode_table};
use crate::world::{DocumentEntry, Documents, World};

/// What one node refuses.
#[derive(Debug, Default)]
pub struct Isolation {
    /// What the node was offered last: its revision and the documents in it.
    offered: Option<(u64, Arc<Documents>)>,
    /// What it has accepted last.
    accepted: Option<Arc<Documents>>,
    /// Documents as of a revision that it refused.
    blamed: BTreeMap<DocumentId, Blame>,
}

#[derive(Clone, Debug)]
struct Blame {
    /// Of the refused version of the document; a later one gets another chance.
    revision: u64,
    /// In force instead.
    last_good: Option<Arc<DocumentEntry>>,
    message: String,
    since_revision: u64,
}

impl Isolation {
    /// Looks for news about route tables; true if the node needs another snapshot.
    pub fn learn(&mut self, progress: &Progress, published: &Published, node: &Node) -> bool {
        let Some(nack) = progress.nacks.iter().find(|nack| nack.kind == Kind::Routes) else {
            if let Some((_, documents)) = self.offered.take_if(|(revision, _)| progress.acked >= *revision) {
                self.accepted = Some(documents);
            }
            return false;
        };
        let mut learned = false;
        for entry in self.suspects(nack, published) {
            let last_good = self.accepted.as_ref().and_then(|documents| documents.get(&entry.id)).cloned();
            let blame = Blame { revision: entry.revision, last_good, message: nack.message.clone(), since_revision: nack.since_revision };
            tracing::warn!(node = %node.id, document = %entry.id, message = %nack.message, "refused, its last good version stays for this node");
            self.blamed.insert(entry.id.clone(), blame);
            learned = true;
        }
        learned
    }

    /// The node's part of what is published, with what it refuses as it was before.
    pub fn snapshot(&mut self, published: &Published, node: &Node, listeners: &Resources) -> Snapshot {
        let current = |id: &DocumentId| published.world.documents.get(id).map(|entry| entry.revision);
        self.blamed.retain(|id, blame| current(id) == Some(blame.revision));
        if self.blamed.is_empty() {
            self.offered = Some((published.revision, published.world.documents.clone()));
            return published.snapshot(node, listeners, None);
        }
        let documents = Arc::new(self.documents(&published.world));
        self.offered = Some((published.revision, documents.clone()));
        let mesh = Mesh::compile(&World { documents, ..(*published.world).clone() });
        let table = encode_table(&mesh.rules.table(&node.service.namespace, &mesh.catalog));
        published.snapshot(node, listeners, Some(&table))
    }

    /// What the node refuses now, for status pages.
    pub fn refused(&self, progress: &Progress, published: &Published) -> Vec<Refused> {
        let isolated = self.blamed.iter().map(|(id, blame)| Refused {
            resource: format!("{} outbound", Kind::Routes),
            rule: id.to_string(),
            message: blame.message.clone(),
            since_revision: blame.since_revision,
        });
        let open = progress.nacks.iter().map(|nack| Refused {
            resource: format!("{} {}", nack.kind, nack.name.as_deref().unwrap_or("(one of several)")),
            rule: self.rule(nack, published),
            message: nack.message.clone(),
            since_revision: nack.since_revision,
        });
        isolated.chain(open).collect()
    }

    /// All documents, the blamed as they were.
    fn documents(&self, world: &World) -> Documents {
        let mut documents = (*world.documents).clone();
        for (id, blame) in &self.blamed {
            match &blame.last_good {
                Some(entry) => documents.insert(id.clone(), entry.clone()),
                None => documents.remove(id),
            };
        }
        documents
    }

    /// Routes that the peer names, else all that changed since it accepted a table.
    fn suspects<'a>(&self, nack: &Nack, published: &'a Published) -> Vec<&'a DocumentEntry> {
        let routes = published.world.in_force().filter(|(_, document)| matches!(document, Document::Route(_))).map(|(entry, _)| entry);
        let fresh = routes.filter(|entry| !self.blamed.contains_key(&entry.id) && self.changed(entry));
        let (named, others): (Vec<_>, Vec<_>) = fresh.partition(|entry| nack.message.contains(&entry.id.to_string()));
        if named.is_empty() { others } else { named }
    }

    fn changed(&self, entry: &DocumentEntry) -> bool {
        let accepted = self.accepted.as_ref().and_then(|documents| documents.get(&entry.id));
        accepted.is_none_or(|accepted| accepted.revision != entry.revision)
    }

    /// The documents that a refused resource can come from.
    fn rule(&self, nack: &Nack, published: &Published) -> String {
        let ids: Vec<String> = match nack.kind {
            Kind::Routes => self.suspects(nack, published).into_iter().map(|entry| entry.id.to_string()).collect(),
            _ => nack.name.iter().flat_map(|name| published.sources(name)).map(|id| id.to_string()).collect(),
        };
        ids.join(", ")
    }
}
