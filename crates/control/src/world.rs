//! The world: everything stored, parsed, as one immutable value per revision.
//!
//! [`Fold`] is pure: stored entries and changes go in, an `Arc<World>` comes out; [`follow`] feeds it from the store's
//! change stream and publishes. What doesn't parse is quarantined with its reason and never stops a start; the last good
//! version of a document stays in force. Nothing is written from here.

#[cfg(test)]
pub(crate) mod fixture;
mod fold;
pub mod follow;
pub mod record;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use phalanx_model::document::{Document, DocumentId, Kind};
use phalanx_model::{Instance, InstanceId, ServiceName};
use serde_json::Value;
use tokio::time::Instant;

pub use fold::{Fold, Stored};

/// Cheap to clone: parts that did not change are shared with the world before.
#[derive(Clone, Debug)]
pub struct World {
    /// Of the store.
    pub revision: u64,
    /// Of the last change under `config/` or `history/`.
    pub config_revision: u64,
    /// The last revisions and when each was stored, as this process saw it; oldest first.
    pub recent: VecDeque<(u64, Instant)>,
    pub documents: Arc<Documents>,
    pub instances: Instances,
    /// By `<Kind>/<namespace>/<name>` or the store's key.
    pub quarantined: Arc<BTreeMap<String, Quarantine>>,
    /// The sequence number of the newest history record, 0 before the first.
    pub sequence: u64,
}

pub type Documents = BTreeMap<DocumentId, Arc<DocumentEntry>>;

/// A stored document and what of it is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentEntry {
    pub id: DocumentId,
    pub created_ms: u64,
    pub updated_ms: u64,
    pub generation: u64,
    /// Of its last change.
    pub revision: u64,
    /// As stored.
    pub json: Value,
    /// In force: `json` parsed, else its last good version, else none.
    pub document: Option<Arc<Document>>,
}

/// Stored, but not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    pub message: String,
    pub since_revision: u64,
}

/// A stored instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    pub instance: Instance,
    /// Grows with each start of the instance.
    pub epoch: u64,
    pub ttl_ms: u32,
    /// Of its last change.
    pub revision: u64,
}

pub type ServiceInstances = BTreeMap<String, Arc<Registered>>;
pub type NamespaceInstances = BTreeMap<String, Arc<ServiceInstances>>;

/// Instances by namespace, service and id; each level is shared while it does not change, so that two worlds are compared
/// by pointer.
#[derive(Clone, Debug, Default)]
pub struct Instances(Arc<BTreeMap<String, Arc<NamespaceInstances>>>);

impl Instances {
    pub fn namespaces(&self) -> impl Iterator<Item = (&String, &Arc<NamespaceInstances>)> {
        self.0.iter()
    }

    pub fn namespace(&self, namespace: &str) -> Option<&Arc<NamespaceInstances>> {
        self.0.get(namespace)
    }

    pub fn service(&self, service: &ServiceName) -> Option<&Arc<ServiceInstances>> {
        self.0.get(&service.namespace)?.get(&service.name)
    }

    pub fn get(&self, id: &InstanceId) -> Option<&Arc<Registered>> {
        self.service(&id.service)?.get(&id.id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Registered>> {
        self.0
            .values()
            .flat_map(|services| services.values())
            .flat_map(|instances| instances.values())
    }

    pub fn len(&self) -> usize {
        self.0
            .values()
            .flat_map(|services| services.values())
            .map(|instances| instances.len())
            .sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both are the very same value; false says nothing.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn insert(&mut self, registered: Registered) {
        let InstanceId { service, id } = registered.instance.id.clone();
        let services = Arc::make_mut(
            Arc::make_mut(&mut self.0)
                .entry(service.namespace)
                .or_default(),
        );
        let instances = Arc::make_mut(services.entry(service.name).or_default());
        instances.insert(id, Arc::new(registered));
    }

    fn remove(&mut self, id: &InstanceId) {
        if self.get(id).is_none() {
            return;
        }
        let namespaces = Arc::make_mut(&mut self.0);
        let Some(services) = namespaces.get_mut(&id.service.namespace).map(Arc::make_mut) else {
            return;
        };
        let Some(instances) = services.get_mut(&id.service.name).map(Arc::make_mut) else {
            return;
        };
        instances.remove(&id.id);
        if instances.is_empty() {
            services.remove(&id.service.name);
        }
        if services.is_empty() {
            namespaces.remove(&id.service.namespace);
        }
    }
}

impl World {
    /// Of an empty store.
    pub fn empty() -> Self {
        Self {
            revision: 0,
            config_revision: 0,
            recent: VecDeque::new(),
            documents: Arc::default(),
            instances: Instances::default(),
            quarantined: Arc::default(),
            sequence: 0,
        }
    }

    /// The application behind a name: the `app` its Service selects, else the name itself.
    pub fn app<'a>(&'a self, service: &'a ServiceName) -> &'a str {
        let id = DocumentId {
            kind: Kind::Service,
            namespace: service.namespace.clone(),
            name: service.name.clone(),
        };
        let document = self
            .documents
            .get(&id)
            .and_then(|entry| entry.document.as_deref());
        match document {
            Some(Document::Service(document)) => {
                document.selector.get("app").unwrap_or(&service.name)
            }
            _ => &service.name,
        }
    }

    /// Documents in force, in the order of their ids.
    pub fn in_force(&self) -> impl Iterator<Item = (&DocumentEntry, &Document)> {
        self.documents.values().filter_map(|entry| {
            entry
                .document
                .as_deref()
                .map(|document| (&**entry, document))
        })
    }
}
