//! Services that register themselves: leased keys `/services/<name>/<ip:port>` in an etcd become instances like any other.
//!
//! They are written to the store with a mark, so everything behind the world works unchanged, a restart knows them before
//! etcd answers, and several control planes agree. What the keys say is compared with what the world has, again and again;
//! nothing depends on having seen every event. A key that expires is not believed alone, see [`guard`].

mod found;
mod guard;
mod probe;
mod served;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_model::instance::State;
use phalanx_model::{Instance, InstanceId, ServiceName};
use phalanx_store::{Batch, Entry, Error, EtcdConfig, EventKind, Reason, Store, Txn};
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub use self::found::read as read_key;
use self::guard::Guard;
use self::served::Served;
use crate::world::World;
use crate::world::record::{IMPORTED, InstanceRecord, instance_key};

/// Where such keys are when nobody says otherwise, and the namespace that they belong to.
pub const PREFIX: &str = "/services/";
pub const NAMESPACE: &str = "default";

/// What was found, for status pages; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Imports {
    /// A short critical section.
    view: Arc<Mutex<View>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub url: String,
    pub prefix: String,
    /// Why nothing new is heard; what is known stays.
    pub trouble: Option<String>,
    pub services: usize,
    pub instances: usize,
    /// Keys that are no instance, and why the first of them are not.
    pub ignored: usize,
    pub problems: Vec<(String, String)>,
    pub held: Vec<(InstanceId, Duration)>,
}

/// The task.
pub struct Import {
    etcd: EtcdConfig,
    store: Store,
    worlds: Receiver<Arc<World>>,
    imports: Imports,
    stop: CancellationToken,
    started: Instant,
    keys: Keys,
    served: Served,
    guards: BTreeMap<String, Guard>,
    /// Stored, and no key seen for it yet: since when.
    unseen: BTreeMap<(String, String), u64>,
    /// Deleted from the store by somebody who may have heard of it first: since when.
    removed: BTreeMap<(String, String), u64>,
    /// Services to compare again.
    dirty: BTreeSet<String>,
    /// Services to compare again at the next look.
    later: BTreeSet<String>,
    /// Why the last write failed.
    unwritten: Option<String>,
    /// Asks those that are held, one round at a time; of silent ones a round takes long.
    asking: JoinSet<Vec<(String, String)>>,
}

/// What etcd has, as last heard.
#[derive(Default)]
struct Keys {
    /// Nothing is compared before the first list.
    is_known: bool,
    /// By the key without its prefix.
    found: BTreeMap<String, Arc<Instance>>,
    ignored: BTreeMap<String, String>,
    /// Keys beyond what is taken.
    too_many: usize,
    /// By service and id: how many keys say so, and the last that did.
    wanted: BTreeMap<String, BTreeMap<String, (usize, Arc<Instance>)>>,
    /// By service and id: why its last key went, and no new one came since.
    gone: HashMap<String, BTreeMap<String, Reason>>,
}

impl Imports {
    pub fn view(&self) -> View {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Import {
    /// `etcd` names the prefix. The caller runs [`Import::run`].
    pub fn new(
        mut etcd: EtcdConfig,
        store: Store,
        worlds: Receiver<Arc<World>>,
        stop: CancellationToken,
    ) -> (Import, Imports) {
        etcd.list_bytes_max = LIST_BYTES_MAX;
        let imports = Imports::default();
        *imports.lock() = View {
            url: etcd.url(),
            prefix: etcd.prefix.clone(),
            ..View::default()
        };
        let import = Import {
            etcd,
            store,
            worlds,
            imports: imports.clone(),
            stop,
            started: Instant::now(),
            keys: Keys::default(),
            served: Served::default(),
            guards: BTreeMap::new(),
            unseen: BTreeMap::new(),
            removed: BTreeMap::new(),
            dirty: BTreeSet::new(),
            later: BTreeSet::new(),
            unwritten: None,
            asking: JoinSet::new(),
        };
        (import, imports)
    }

    /// Until `stop`. An etcd that is not there is waited for.
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow() => ended,
            };
            if let Err(error) = ended {
                tracing::warn!(%error, etcd = %self.etcd.url(), "services in etcd can't be read, what is known stays");
                self.imports.lock().trouble = Some(error.to_string());
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn follow(&mut self) -> Result<(), Error> {
        let etcd = Store::etcd(self.etcd.clone()).await?;
        let page = etcd.list("").await?;
        self.take_all(page.entries);
        let mut watch = etcd.watch("", page.revision).await?;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut worlds = self.worlds.clone();
        let mut next = Instant::now();
        loop {
            let mut is_look = false;
            tokio::select! {
                batch = watch.next() => match batch {
                    Some(batch) => self.take(batch?),
                    None => return Ok(()),
                },
                _ = looks.tick() => {
                    self.ask_held();
                    self.dirty.append(&mut self.later);
                    self.dirty.extend(self.guards.keys().cloned());
                    is_look = true;
                }
                Some(asked) = self.asking.join_next() => self.believe(asked.unwrap_or_default()),
                changed = worlds.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(next), if !self.dirty.is_empty() => {}
            }
            let world = worlds.borrow_and_update().clone();
            self.see(&world);
            // However fast keys change, they are compared so often and no oftener.
            if Instant::now() < next && !is_look {
                continue;
            }
            self.reconcile(&world).await;
            self.tell(etcd.status().read_only);
            next = Instant::now() + PACE;
            if self.keys.has_room_again() {
                return Ok(());
            }
        }
    }

    /// Everything that is there; what was and is not counts as expired.
    fn take_all(&mut self, entries: Vec<Entry>) {
        let old = std::mem::replace(
            &mut self.keys,
            Keys {
                is_known: true,
                ..Keys::default()
            },
        );
        self.keys.gone = old.gone;
        for (service, ids) in old.wanted {
            let gone = self.keys.gone.entry(service.clone()).or_default();
            gone.extend(ids.into_keys().map(|id| (id, Reason::Expired)));
            self.dirty.insert(service);
        }
        for entry in entries {
            self.put(&entry.key, &entry.value);
        }
        self.dirty.extend(self.served.services());
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        let services = self.keys.put(key, value);
        if let Some(instance) = self.keys.found.get(key) {
            let InstanceId { service, id } = &instance.id;
            self.removed.remove(&(service.name.clone(), id.clone()));
        }
        self.dirty.extend(services);
    }

    /// Takes over what the world has.
    fn see(&mut self, world: &World) {
        let now = self.now_ms();
        let news = self.served.follow(world);
        self.dirty.extend(news.changed);
        self.removed
            .extend(news.removed.into_iter().map(|which| (which, now)));
        self.removed.retain(|_, since| *since + REMOVED_MS > now);
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn take(&mut self, batch: Batch) {
        for event in batch.events {
            match event.kind {
                EventKind::Put(entry) => self.put(&entry.key, &entry.value),
                EventKind::Delete { key, reason } => {
                    let services = self.keys.forget(&key, reason);
                    self.dirty.extend(services);
                }
            }
        }
    }

    async fn reconcile(&mut self, world: &World) {
        if !self.keys.is_known {
            return;
        }
        for service in std::mem::take(&mut self.dirty) {
            if let Err(error) = self.reconcile_one(&service, world).await {
                tracing::debug!(%error, service, "services found in etcd are not stored yet");
                // Somebody else did it, or it is tried again at the next look.
                let is_race = matches!(error, Error::Conflict { .. });
                self.unwritten = (!is_race).then(|| error.to_string());
                self.later.insert(service);
            }
        }
    }

    async fn reconcile_one(&mut self, service: &str, world: &World) -> Result<(), Error> {
        let name = ServiceName::new(NAMESPACE, service);
        let now = self.now_ms();
        let none = BTreeMap::new();
        let wanted = self.keys.wanted.get(service).unwrap_or(&none);
        let served = self.served.of(service);
        let mut changes = Vec::new();
        for (id, (_, instance)) in wanted {
            let known = served.get(id);
            // Whoever registers under the same id speaks for itself.
            let is_taken = known.is_none() && world.instances.get(&instance.id).is_some();
            if is_taken || known.is_some_and(|known| known.instance == **instance) {
                continue;
            }
            if self.removed.contains_key(&(service.to_owned(), id.clone())) {
                self.later.insert(service.to_owned());
                continue;
            }
            changes.push((
                id.clone(),
                known.map(|k| k.revision),
                Some(instance.clone()),
            ));
        }
        let gone = self.keys.gone.get(service);
        let (mut go, mut missing) = (Vec::new(), Vec::new());
        for id in served.keys() {
            let which = (service.to_owned(), id.clone());
            if wanted.contains_key(id) {
                self.unseen.remove(&which);
                continue;
            }
            match gone.and_then(|gone| gone.get(id)) {
                Some(Reason::Deleted) => go.push(id.clone()),
                Some(Reason::Expired) => missing.push(id.clone()),
                // Another control plane may have heard of it first, and we shall in a moment.
                None if now < *self.unseen.entry(which).or_insert(now) + UNSEEN_MS => {
                    self.later.insert(service.to_owned());
                }
                None => missing.push(id.clone()),
            }
        }
        let guard = self.guards.entry(service.to_owned()).or_default();
        let verdict = guard.judge(missing, wanted.len(), now, world.revision);
        go.extend(verdict.go);
        let released = world.releases.get(&name).copied().unwrap_or(0);
        for id in verdict.held {
            if guard
                .held()
                .get(&id)
                .is_some_and(|held| released > held.revision)
            {
                guard.release(&id);
                go.push(id);
            }
        }
        for id in go {
            let at = served.get(&id).map(|known| known.revision);
            changes.push((id, at, None));
        }
        self.write(&name, changes).await?;
        let served = self.served.of(service);
        if let Some(gone) = self.keys.gone.get_mut(service) {
            gone.retain(|id, _| served.contains_key(id));
            if gone.is_empty() {
                self.keys.gone.remove(service);
            }
        }
        self.unseen
            .retain(|(of, id), _| of != service || served.contains_key(id));
        Ok(())
    }

    /// Of instances as they are known to be stored, so that of several control planes one writes.
    async fn write(
        &mut self,
        service: &ServiceName,
        changes: Vec<(String, Option<u64>, Option<Arc<Instance>>)>,
    ) -> Result<(), Error> {
        for some in changes.chunks(WRITES_MAX) {
            let mut txn = Txn::new();
            for (id, at, instance) in some {
                let key = instance_key(&InstanceId {
                    service: service.clone(),
                    id: id.clone(),
                });
                txn = match at {
                    Some(at) => txn.expect_modified(&key, *at),
                    None => txn.expect_absent(&key),
                };
                txn = match instance {
                    None => txn.delete(key),
                    Some(instance) => {
                        let record =
                            InstanceRecord::new(instance, 0, 0).of(IMPORTED, State::default());
                        let value =
                            serde_json::to_vec(&record).map_err(|error| Error::Invalid {
                                problem: error.to_string(),
                            })?;
                        txn.put(key, value)
                    }
                };
                let is_there = instance.is_some();
                tracing::debug!(%service, id, is_there, "found in etcd");
            }
            let revision = self.store.commit(txn).await?;
            self.unwritten = None;
            let mut worlds = self.worlds.clone();
            let seen = worlds.wait_for(|world| world.revision >= revision);
            if let Ok(Ok(world)) = tokio::time::timeout(CATCH_UP, seen).await {
                let world = world.clone();
                self.see(&world);
                self.dirty.remove(&service.name);
            }
        }
        Ok(())
    }

    /// Evidence about the held: who refuses connections is dead. Who takes them lives, whatever etcd thinks.
    fn ask_held(&mut self) {
        if !self.asking.is_empty() {
            return;
        }
        let mut asked = Vec::new();
        for (service, guard) in &self.guards {
            let served = self.served.of(service);
            let held = guard
                .held()
                .keys()
                .filter_map(|id| Some((id, served.get(id)?)));
            asked.extend(held.filter_map(|(id, known)| {
                let address = known.instance.ports.first()?.address;
                Some(((service.clone(), id.clone()), address))
            }));
        }
        if !asked.is_empty() {
            self.asking.spawn(probe::refusing(asked));
        }
    }

    fn believe(&mut self, refusing: Vec<(String, String)>) {
        for (service, id) in refusing {
            // Its key may have come back meanwhile.
            let Some(guard) = self.guards.get_mut(&service) else {
                continue;
            };
            if !guard.held().contains_key(&id) {
                continue;
            }
            tracing::info!(
                service,
                id,
                "its key in etcd expired, and it refuses connections"
            );
            guard.release(&id);
            let gone = self.keys.gone.entry(service.clone()).or_default();
            gone.insert(id, Reason::Deleted);
            self.dirty.insert(service);
        }
    }

    fn tell(&mut self, trouble: Option<String>) {
        let now = self.now_ms();
        let mut held = Vec::new();
        self.guards.retain(|_, guard| !guard.is_idle());
        for (service, guard) in &self.guards {
            for (id, of) in guard.held() {
                let service = ServiceName::new(NAMESPACE, service);
                let age = Duration::from_millis(now.saturating_sub(of.since_ms));
                held.push((
                    InstanceId {
                        service,
                        id: id.clone(),
                    },
                    age,
                ));
            }
        }
        let view = &mut *self.imports.lock();
        let known: BTreeSet<&InstanceId> = view.held.iter().map(|(id, _)| id).collect();
        let mut news: BTreeMap<&ServiceName, usize> = BTreeMap::new();
        for (id, _) in held.iter().filter(|(id, _)| !known.contains(id)) {
            *news.entry(&id.service).or_default() += 1;
        }
        for (service, instances) in news {
            tracing::warn!(%service, instances, "their keys in etcd expired with most of the service: held until there is evidence");
        }
        view.trouble = trouble.or_else(|| self.unwritten.clone());
        view.services = self.served.services().count();
        view.instances = self.served.len();
        view.ignored = self.keys.ignored.len() + self.keys.too_many;
        let problems = self.keys.ignored.iter().take(PROBLEMS_MAX);
        view.problems = problems
            .map(|(key, why)| (shown(key), why.clone()))
            .collect();
        view.held = held;
    }
}

impl Keys {
    /// Keys were left out, and by now there is room for some: only a new list tells which.
    fn has_room_again(&self) -> bool {
        self.too_many > 0 && self.found.len() + self.ignored.len() < KEYS_MAX / 8 * 7
    }

    /// The services that are concerned.
    fn put(&mut self, key: &str, value: &[u8]) -> Vec<String> {
        let mut services = self.forget(key, Reason::Deleted);
        if self.found.len() + self.ignored.len() >= KEYS_MAX {
            self.too_many += 1;
            return services;
        }
        match found::read(key, value, NAMESPACE) {
            Ok(instance) => {
                let instance = Arc::new(instance);
                let InstanceId { service, id } = instance.id.clone();
                if let Some(gone) = self.gone.get_mut(&service.name) {
                    gone.remove(&id);
                }
                let of_service = self.wanted.entry(service.name.clone()).or_default();
                let slot = of_service
                    .entry(id)
                    .or_insert_with(|| (0, instance.clone()));
                *slot = (slot.0 + 1, instance.clone());
                self.found.insert(key.to_owned(), instance);
                services.push(service.name);
            }
            Err(why) => {
                self.ignored.insert(key.to_owned(), why);
            }
        }
        services
    }

    fn forget(&mut self, key: &str, reason: Reason) -> Vec<String> {
        self.ignored.remove(key);
        let Some(instance) = self.found.remove(key) else {
            return Vec::new();
        };
        let InstanceId { service, id } = &instance.id;
        if let Some(of_service) = self.wanted.get_mut(&service.name) {
            let is_last = of_service.get_mut(id).is_none_or(|slot| {
                slot.0 -= 1;
                slot.0 == 0
            });
            if is_last {
                of_service.remove(id);
                let gone = self.gone.entry(service.name.clone()).or_default();
                gone.insert(id.clone(), reason);
            }
            if of_service.is_empty() {
                self.wanted.remove(&service.name);
            }
        }
        vec![service.name.clone()]
    }
}

/// Of a key that somebody else chose.
fn shown(key: &str) -> String {
    key.chars().take(KEY_CHARS_MAX).collect()
}

/// Between two attempts to read etcd.
const RETRY: Duration = Duration::from_secs(3);
/// Between two looks at what is held, and at what could not be written.
const LOOK: Duration = Duration::from_secs(1);
/// Between two comparisons of what changes all the time.
const PACE: Duration = Duration::from_millis(50);
/// How long a stored instance may be without a key before that means something.
const UNSEEN_MS: u64 = 10_000;
/// How long somebody else's deletion is not answered with a new write.
const REMOVED_MS: u64 = 2_000;
/// How long a write waits for the world to have read it.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Instances of one transaction.
const WRITES_MAX: usize = 32;
/// Keys that are taken under the prefix.
const KEYS_MAX: usize = 65_536;
/// Of all keys and values under the prefix; with more, nothing is read.
const LIST_BYTES_MAX: usize = 256 << 20;
/// Keys that are no instances, in the status.
const PROBLEMS_MAX: usize = 16;
const KEY_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests;
