//! When a route table is refused, one document must not freeze the rest: what changed since the node last accepted a table
//! goes back to how it was then, for this node, and is tried again one document at a time, until the guilty are left.
//!
//! Other kinds need none of this: a refused cluster or endpoint set is a resource of its own, and the session isolates it.

use std::collections::BTreeMap;
use std::sync::Arc;

use phalanx_model::document::{Document, DocumentId};
use phalanx_xds::server::{Nack, Progress};
use phalanx_xds::{Kind, Snapshot};

use super::fleet::Refused;
use crate::snapshot::{Mesh, Node, OUTBOUND, Published, Resources, encode_table};
use crate::world::{DocumentEntry, Documents, World};

/// What one node refuses. A document is on probation from being blamed until it is tried alone.
#[derive(Debug, Default)]
pub struct Isolation {
    /// What the present target is made of.
    offered: Arc<Documents>,
    /// The last table sent: its nonce, and what it was made of.
    sent: Option<(String, Arc<Documents>)>,
    accepted: Option<Arc<Documents>>,
    blamed: BTreeMap<DocumentId, Blame>,
    /// The blamed document that is offered again.
    trial: Option<DocumentId>,
}

#[derive(Clone, Debug)]
struct Blame {
    /// Of the refused version; a later one is innocent.
    revision: u64,
    /// In force instead.
    last_good: Option<Arc<DocumentEntry>>,
    message: String,
    since_revision: u64,
    is_proven: bool,
}

impl Isolation {
    /// A route table goes out.
    pub fn sent(&mut self, nonce: &str) {
        self.sent = Some((nonce.to_owned(), self.offered.clone()));
    }

    /// The node answered a response about routes; true if it needs another snapshot.
    pub fn answered(&mut self, nonce: &str, error: Option<&str>, published: &Published) -> bool {
        let Some((_, documents)) = self.sent.take_if(|(sent, _)| sent == nonce) else {
            return false;
        };
        match error {
            None => self.accept(documents),
            Some(message) => self.refuse(message, &documents, published),
        }
    }

    /// The node's part of what is published, with what it refuses as it was before.
    pub fn snapshot(
        &mut self,
        published: &Published,
        node: &Node,
        listeners: &Resources,
    ) -> Snapshot {
        let Some(mesh) = self.mesh(published) else {
            return published.snapshot(node, listeners, None);
        };
        let table = encode_table(&mesh.rules.table(&node.service.namespace, &mesh.catalog));
        published.snapshot(node, listeners, Some(&table))
    }

    /// What is published, with what the node refuses as it was before; none while that is the same.
    pub fn mesh(&mut self, published: &Published) -> Option<Mesh> {
        let current = |id: &DocumentId| {
            published
                .world
                .documents
                .get(id)
                .map(|entry| entry.revision)
        };
        self.blamed
            .retain(|id, blame| current(id) == Some(blame.revision));
        self.trial = self.trial.take().filter(|id| self.blamed.contains_key(id));
        let is_whole = self.blamed.keys().all(|id| self.trial.as_ref() == Some(id));
        if is_whole {
            self.offered = published.world.documents.clone();
            return None;
        }
        self.offered = Arc::new(self.replaced(&published.world));
        let world = World {
            documents: self.offered.clone(),
            ..(*published.world).clone()
        };
        Some(published.mesh.advance(&published.world, &world))
    }

    /// Whether the node is kept from something.
    pub fn is_blaming(&self) -> bool {
        !self.blamed.is_empty()
    }

    /// What a later stream of the node should know.
    pub fn remembered(&self) -> Self {
        Self {
            accepted: self.accepted.clone(),
            blamed: self.blamed.clone(),
            ..Self::default()
        }
    }

    /// What the node refuses now, for status pages.
    pub fn refused(&self, progress: &Progress, published: &Published) -> Vec<Refused> {
        let isolated = self.blamed.iter().map(|(id, blame)| Refused {
            resource: format!("{} {OUTBOUND}", Kind::Routes),
            rule: id.to_string(),
            message: blame.message.clone(),
            since_revision: blame.since_revision,
        });
        let open = progress
            .nacks
            .iter()
            .filter(|nack| nack.kind != Kind::Routes || self.blamed.is_empty())
            .map(|nack| Refused {
                resource: format!(
                    "{} {}",
                    nack.kind,
                    nack.name.as_deref().unwrap_or("(one of several)")
                ),
                rule: rule(nack, published),
                message: nack.message.clone(),
                since_revision: nack.since_revision,
            });
        isolated.chain(open).collect()
    }

    fn accept(&mut self, documents: Arc<Documents>) -> bool {
        self.accepted = Some(documents);
        if let Some(innocent) = self.trial.take() {
            self.blamed.remove(&innocent);
        }
        self.next_trial()
    }

    fn refuse(&mut self, message: &str, documents: &Documents, published: &Published) -> bool {
        if let Some(blame) = self.trial.take().and_then(|id| self.blamed.get_mut(&id)) {
            blame.is_proven = true;
            message.clone_into(&mut blame.message);
            self.next_trial();
            return true;
        }
        let suspects: Vec<_> = self
            .suspects(message, documents)
            .into_iter()
            .cloned()
            .collect();
        for entry in &suspects {
            let last_good = self
                .accepted
                .as_ref()
                .and_then(|documents| documents.get(&entry.id))
                .filter(|accepted| accepted.revision != entry.revision)
                .cloned();
            let blame = Blame {
                revision: entry.revision,
                last_good,
                message: message.to_owned(),
                since_revision: published.revision,
                is_proven: suspects.len() == 1 && self.accepted.is_some(),
            };
            tracing::warn!(document = %entry.id, message, "refused by a node, its last good version stays there");
            self.blamed.insert(entry.id.clone(), blame);
        }
        !suspects.is_empty()
    }

    /// Offers one document on probation again; true if there is one. The last one of all is guilty without a trial:
    /// the table with it is the one that was refused.
    fn next_trial(&mut self) -> bool {
        let alone = self.blamed.len() == 1;
        let Some((id, blame)) = self.blamed.iter_mut().find(|(_, blame)| !blame.is_proven) else {
            return false;
        };
        if alone {
            blame.is_proven = true;
            return false;
        }
        self.trial = Some(id.clone());
        true
    }

    /// All documents, the blamed as they were, but for the one on trial.
    fn replaced(&self, world: &World) -> Documents {
        let mut documents = (*world.documents).clone();
        for (id, blame) in self
            .blamed
            .iter()
            .filter(|(id, _)| self.trial.as_ref() != Some(id))
        {
            match &blame.last_good {
                Some(entry) => documents.insert(id.clone(), entry.clone()),
                None => documents.remove(id),
            };
        }
        documents
    }

    /// Routes that the node names; else all that changed since it accepted a table; else, when it never did, those that
    /// changed last.
    fn suspects<'a>(&self, message: &str, documents: &'a Documents) -> Vec<&'a DocumentEntry> {
        let changed = |entry: &DocumentEntry| {
            let accepted = self
                .accepted
                .as_ref()
                .and_then(|documents| documents.get(&entry.id));
            accepted.is_none_or(|accepted| accepted.revision != entry.revision)
        };
        let free = routes(documents).filter(|entry| !self.blamed.contains_key(&entry.id));
        let (mut named, mut others): (Vec<_>, Vec<_>) =
            free.partition(|entry| names(message, &entry.id));
        // On demand a table may be new to the node, though its documents are not new.
        if named.iter().any(|entry| changed(entry)) {
            named.retain(|entry| changed(entry));
        }
        if !named.is_empty() {
            return named;
        }
        others.retain(|entry| changed(entry));
        if self.accepted.is_none() {
            let newest = others.iter().map(|entry| entry.revision).max();
            others.retain(|entry| Some(entry.revision) == newest);
        }
        others
    }
}

/// The documents that a refused resource can come from.
fn rule(nack: &Nack, published: &Published) -> String {
    let ids: Vec<String> = match nack.kind {
        Kind::Routes => routes(&published.world.documents)
            .filter(|entry| names(&nack.message, &entry.id))
            .map(|entry| entry.id.to_string())
            .collect(),
        _ => nack
            .name
            .iter()
            .flat_map(|name| published.sources(name))
            .map(|id| id.to_string())
            .collect(),
    };
    ids.join(", ")
}

fn routes(documents: &Documents) -> impl Iterator<Item = &DocumentEntry> {
    documents
        .values()
        .map(|entry| &**entry)
        .filter(|entry| matches!(entry.document.as_deref(), Some(Document::Route(_))))
}

/// Whether a rule of the document is mentioned (rules are called `<Kind>/<namespace>/<name>/<rule>`).
fn names(message: &str, id: &DocumentId) -> bool {
    message.contains(&format!("{id}/"))
}

#[cfg(test)]
mod tests;
