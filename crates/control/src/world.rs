//! The world: everything stored, parsed, as one immutable value per revision.
//!
//! [`Fold`] is pure: stored entries and changes go in, an `Arc<World>` comes out; [`follow`] feeds it from the store's
//! change stream and publishes. What doesn't parse is quarantined with its reason and never stops a start; the last good
//! version of a document stays in force. Nothing is written from here.

mod canary;
#[cfg(test)]
pub(crate) mod fixture;
mod fold;
pub mod follow;
mod health;
pub mod record;
pub mod rollout;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::document::{Document, DocumentId, Kind, Service};
use phalanx_model::instance::State;
use phalanx_model::{Instance, InstanceId, ServiceName, SharedMap};
use serde_json::Value;
use tokio::time::Instant;

pub use canary::{Canary, Staged};
pub use fold::{Fold, Stored};
pub use health::{Health, ServiceHealth, Verdict, VerdictState};
use record::DrainRecord;

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
    /// What health checks found out; nothing about an endpoint means nothing is wrong with it.
    pub health: Health,
    /// By `<Kind>/<namespace>/<name>` or the store's key.
    pub quarantined: Arc<BTreeMap<String, Quarantine>>,
    /// The sequence number of the newest history record, 0 before the first.
    pub sequence: u64,
    /// By sequence number: how many bytes each record of the history has.
    pub history: Arc<BTreeMap<u64, usize>>,
    /// A change that only some nodes have yet; none of it is in `documents`.
    pub canary: Option<Arc<Canary>>,
    pub last_canary: Option<Arc<record::CanaryLast>>,
    /// How far each Rollout is, by its document.
    pub rollouts: Rollouts,
    /// Control planes that are alive, by name.
    pub planes: Arc<Planes>,
    /// What operators want of instances, which need not be registered.
    pub drains: Arc<Drains>,
    /// When operators last let held instances go, as revisions.
    pub releases: Arc<BTreeMap<ServiceName, u64>>,
}

pub type Rollouts = SharedMap<DocumentId, Arc<rollout::Progress>>;
pub type Planes = BTreeMap<String, Plane>;
pub type Drains = BTreeMap<InstanceId, Arc<DrainRecord>>;

/// A control plane over this store that is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane {
    /// `HOST:PORT` of its admin API.
    pub admin: String,
    /// `HOST:PORT` for data planes.
    pub xds: String,
    /// Unix milliseconds.
    pub started_ms: u64,
    /// Tells two processes of one name apart.
    pub token: u64,
    /// Of its key.
    pub revision: u64,
}

pub type Documents = SharedMap<DocumentId, Arc<DocumentEntry>>;

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
    /// The control plane that keeps its lease; empty: nobody yet.
    pub plane: String,
    /// As the instance says.
    pub asserted: State,
    /// In force: what the instance says or an operator wants, whichever is less.
    pub state: State,
}

impl Registered {
    /// Found in an etcd and not registered: `import` watches over it, the registry does not.
    pub fn is_imported(&self) -> bool {
        self.plane == record::IMPORTED
    }
}

pub type ServiceInstances = SharedMap<String, Arc<Registered>>;
pub type NamespaceInstances = SharedMap<String, Arc<ServiceInstances>>;

/// Instances by namespace, service and id; each level is shared while it does not change, so that two worlds are compared
/// by pointer.
#[derive(Clone, Debug, Default)]
pub struct Instances(SharedMap<String, Arc<NamespaceInstances>>);

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
        self.0.same(&other.0)
    }

    /// Calls with each instance that is another one than before: how it was and how it is. Costs what differs.
    pub fn each_difference(
        &self,
        before: &Self,
        mut call: impl FnMut(Option<&Registered>, Option<&Registered>),
    ) {
        let (no_service, no_instance) = (SharedMap::default(), SharedMap::default());
        for namespace in self.0.differences(&before.0, Arc::ptr_eq) {
            let old = namespace.before.map_or(&no_service, |services| services);
            let new = namespace.after.map_or(&no_service, |services| services);
            for service in new.differences(old, Arc::ptr_eq) {
                let old = service.before.map_or(&no_instance, |instances| instances);
                let new = service.after.map_or(&no_instance, |instances| instances);
                for instance in new.differences(old, Arc::ptr_eq) {
                    let (old, new) = (instance.before, instance.after);
                    call(old.map(|old| &**old), new.map(|new| &**new));
                }
            }
        }
    }

    fn insert(&mut self, registered: Registered) {
        let InstanceId { service, id } = registered.instance.id.clone();
        let services = Arc::make_mut(entry(&mut self.0, service.namespace));
        let instances = Arc::make_mut(entry(services, service.name));
        instances.insert(id, Arc::new(registered));
    }

    fn remove(&mut self, id: &InstanceId) {
        if self.get(id).is_none() {
            return;
        }
        let namespaces = &mut self.0;
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

/// The value of a key, made if it isn't there.
fn entry<V: Default>(map: &mut SharedMap<String, Arc<V>>, key: String) -> &mut Arc<V> {
    if !map.contains_key(&key) {
        map.insert(key.clone(), Arc::default());
    }
    map.get_mut(&key).expect("it is there by now")
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
            health: Health::default(),
            quarantined: Arc::default(),
            sequence: 0,
            history: Arc::default(),
            canary: None,
            last_canary: None,
            rollouts: Rollouts::default(),
            planes: Arc::default(),
            drains: Arc::default(),
            releases: Arc::default(),
        }
    }

    /// Nobody ever changed anything in this store: it is new, or what it was is lost.
    pub fn knows_nothing(&self) -> bool {
        self.sequence == 0 && self.documents.is_empty()
    }

    /// The Service of this name that is in force.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        let key = (Kind::Service, &*name.namespace, &*name.name);
        let (_, entry) = self
            .documents
            .find(|id| (id.kind, &*id.namespace, &*id.name).cmp(&key))?;
        match entry.document.as_deref()? {
            Document::Service(service) => Some(service),
            _ => None,
        }
    }

    /// What is in force under this name.
    pub fn document(&self, id: &DocumentId) -> Option<&Document> {
        self.documents.get(id)?.document.as_deref()
    }

    /// What was found out about an endpoint of a service.
    pub fn verdict(&self, service: &ServiceName, address: &SocketAddr) -> Option<&Verdict> {
        self.health.get(service)?.get(address)
    }

    /// The application behind a name: the `app` its Service selects, else the name itself.
    pub fn app<'a>(&'a self, service: &'a ServiceName) -> &'a str {
        self.service(service)
            .and_then(|document| document.selector.get("app"))
            .unwrap_or(&service.name)
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
