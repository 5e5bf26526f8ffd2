//! Stored entries and changes in, worlds out. Pure, apart from the clock that stamps a change.

use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::document::{Document, DocumentId};
use phalanx_model::instance::State;
use phalanx_model::{InstanceId, ServiceName, manifest};
use tokio::time::Instant;

use super::record::{
    self, DocumentRecord, DrainRecord, HistoryRecord, InstanceRecord, Key, PlaneRecord,
};
use super::rollout::Progress;
use super::{Canary, DocumentEntry, Plane, Quarantine, Registered, Verdict, World, health};

/// One key of the store as it is now, or one change of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub key: String,
    /// None: deleted.
    pub value: Option<Vec<u8>>,
    /// Of this change.
    pub revision: u64,
}

/// The one place where stored bytes become a [`World`].
#[derive(Debug)]
pub struct Fold {
    world: World,
}

impl Fold {
    /// From everything that is stored, as of `revision`.
    pub fn boot(stored: Vec<Stored>, revision: u64) -> Self {
        let mut fold = Self {
            world: World::empty(),
        };
        let mut history = Vec::new();
        for entry in stored {
            if let (Key::History(_), Some(value)) = (Key::parse(&entry.key), &entry.value) {
                history.push(value.clone());
            }
            fold.apply(entry);
        }
        fold.world.revision = revision;
        fold.world.recent.clear();
        fold.recall(&history);
        fold
    }

    /// Takes one change; changes come in the order of their revisions.
    pub fn apply(&mut self, change: Stored) {
        let world = &mut self.world;
        if change.revision > world.revision {
            world.revision = change.revision;
            if world.recent.len() >= RECENT_MAX {
                world.recent.pop_front();
            }
            world.recent.push_back((change.revision, Instant::now()));
        }
        match Key::parse(&change.key) {
            Key::Document(id) => {
                world.config_revision = world.config_revision.max(change.revision);
                self.document(id, change.value.as_deref(), change.revision);
            }
            Key::Instance(id) => {
                self.instance(&change.key, id, change.value.as_deref(), change.revision)
            }
            Key::History(sequence) => {
                let history = Arc::make_mut(&mut world.history);
                match change.value {
                    Some(record) => {
                        history.insert(sequence, record.len());
                        world.config_revision = world.config_revision.max(change.revision);
                        world.sequence = world.sequence.max(sequence);
                    }
                    // A pruned record is no change of the configuration.
                    None => drop(history.remove(&sequence)),
                }
            }
            Key::Release(service) => {
                let releases = Arc::make_mut(&mut self.world.releases);
                match change.value {
                    Some(_) => drop(releases.insert(service, change.revision)),
                    None => drop(releases.remove(&service)),
                }
            }
            Key::Plane(id) => self.plane(&change.key, id, change.value.as_deref(), change.revision),
            Key::Drain(id) => self.drain(&change.key, id, change.value.as_deref(), change.revision),
            Key::Canary => self.canary(&change),
            Key::Rollout(id) => self.rollout(id, &change),
            Key::CanaryLast => {
                let last = change.value.as_deref().map(serde_json::from_slice);
                self.world.last_canary = last.and_then(Result::ok).map(Arc::new);
            }
            Key::Health(service, address) => {
                self.health(
                    &change.key,
                    service,
                    address,
                    change.value.as_deref(),
                    change.revision,
                );
            }
            Key::Other => {}
        }
    }

    fn canary(&mut self, change: &Stored) {
        let read = |value| Arc::new(Canary::read(value, change.revision));
        self.world.canary = change.value.as_deref().map(read);
        match self.world.canary.as_ref().and_then(|c| c.problem.clone()) {
            Some(problem) => self.quarantine(change.key.clone(), problem, change.revision),
            None => self.release(&change.key),
        }
    }

    /// What can't be read leads nothing, and stays to be deleted or written over.
    fn rollout(&mut self, id: DocumentId, change: &Stored) {
        let rollouts = &mut self.world.rollouts;
        let Some(value) = change.value.as_deref() else {
            rollouts.remove(&id);
            return self.release(&change.key);
        };
        let progress = Progress::read(value, change.revision);
        let damage = progress.damage.clone();
        rollouts.insert(id, Arc::new(progress));
        if let Some(message) = damage {
            return self.quarantine(change.key.clone(), message, change.revision);
        }
        self.release(&change.key);
    }

    fn health(
        &mut self,
        key: &str,
        service: ServiceName,
        address: SocketAddr,
        value: Option<&[u8]>,
        revision: u64,
    ) {
        let verdict = value.map(serde_json::from_slice::<Verdict>).transpose();
        match verdict {
            Ok(verdict) => {
                health::set(&mut self.world.health, service, address, verdict);
                self.release(key);
            }
            Err(e) => self.quarantine(key.to_owned(), format!("it is damaged: {e}"), revision),
        }
    }

    pub fn revision(&self) -> u64 {
        self.world.revision
    }

    pub fn world(&self) -> Arc<World> {
        Arc::new(self.world.clone())
    }

    fn document(&mut self, id: DocumentId, value: Option<&[u8]>, revision: u64) {
        let name = id.to_string();
        let documents = Arc::make_mut(&mut self.world.documents);
        let Some(value) = value else {
            documents.remove(&id);
            return self.release(&name);
        };
        let before = documents.get(&id).and_then(|entry| entry.document.clone());
        let (record, parsed) = match serde_json::from_slice::<DocumentRecord>(value) {
            Ok(record) => {
                let parsed = parse_stored(&id, &record.document);
                (record, parsed)
            }
            Err(e) => (
                unreadable(value),
                Err(format!("its record is damaged: {e}")),
            ),
        };
        let (document, problem) = match parsed {
            Ok(document) => (Some(Arc::new(document)), None),
            Err(message) => (before, Some(message)),
        };
        let entry = DocumentEntry {
            id: id.clone(),
            created_ms: record.created,
            updated_ms: record.updated,
            generation: record.generation,
            revision,
            json: record.document,
            document,
        };
        documents.insert(id, Arc::new(entry));
        match problem {
            Some(message) => self.quarantine(name, message, revision),
            None => self.release(&name),
        }
    }

    fn instance(&mut self, key: &str, id: InstanceId, value: Option<&[u8]>, revision: u64) {
        let Some(value) = value else {
            self.world.instances.remove(&id);
            return self.release(key);
        };
        let parsed = serde_json::from_slice::<InstanceRecord>(value)
            .map_err(|e| format!("its record is damaged: {e}"));
        let registered = parsed.and_then(|record| {
            let (epoch, ttl_ms) = (record.epoch, record.ttl_ms);
            let (plane, asserted) = (record.plane.clone(), record.state());
            let state = self.state(&id, asserted);
            record.instance(id).map(|instance| Registered {
                instance,
                epoch,
                ttl_ms,
                revision,
                plane,
                asserted,
                state,
            })
        });
        match registered {
            Ok(registered) => {
                self.world.instances.insert(registered);
                self.release(key);
            }
            Err(message) => self.quarantine(key.to_owned(), message, revision),
        }
    }

    /// What an instance says or an operator wants of it, whichever is less.
    fn state(&self, id: &InstanceId, asserted: State) -> State {
        let wanted = self.world.drains.get(id).map(|drain| drain.state());
        wanted.map_or(asserted, |wanted| wanted.max(asserted))
    }

    fn drain(&mut self, key: &str, id: InstanceId, value: Option<&[u8]>, revision: u64) {
        let drains = Arc::make_mut(&mut self.world.drains);
        match value.map(serde_json::from_slice::<DrainRecord>) {
            None => drop(drains.remove(&id)),
            Some(Ok(record)) => drop(drains.insert(id.clone(), Arc::new(record))),
            Some(Err(e)) => {
                let message = format!("its record is damaged: {e}");
                return self.quarantine(key.to_owned(), message, revision);
            }
        }
        self.release(key);
        let Some(registered) = self.world.instances.get(&id) else {
            return;
        };
        let state = self.state(&id, registered.asserted);
        if state != registered.state {
            let changed = Registered {
                state,
                ..Registered::clone(registered)
            };
            self.world.instances.insert(changed);
        }
    }

    fn plane(&mut self, key: &str, id: String, value: Option<&[u8]>, revision: u64) {
        let planes = Arc::make_mut(&mut self.world.planes);
        match value.map(serde_json::from_slice::<PlaneRecord>) {
            None => drop(planes.remove(&id)),
            Some(Ok(record)) => {
                let plane = Plane {
                    admin: record.admin,
                    xds: record.xds,
                    started_ms: record.started,
                    token: record.token,
                    revision,
                };
                planes.insert(id, plane);
            }
            Some(Err(e)) => {
                let message = format!("its record is damaged: {e}");
                return self.quarantine(key.to_owned(), message, revision);
            }
        }
        self.release(key);
    }

    /// Documents that don't parse get the newest version in the history that does.
    fn recall(&mut self, history: &[Vec<u8>]) {
        let missing: Vec<_> = self
            .world
            .documents
            .values()
            .filter(|entry| entry.document.is_none())
            .cloned()
            .collect();
        if missing.is_empty() {
            return;
        }
        let records: Vec<HistoryRecord> = history
            .iter()
            .rev()
            .filter_map(|value| serde_json::from_slice(value).ok())
            .collect();
        for entry in missing {
            let name = entry.id.to_string();
            let changes = || {
                records
                    .iter()
                    .flat_map(|record| &record.changes)
                    .filter(|change| change.id == name)
            };
            let versions = changes()
                .flat_map(|change| [&change.after, &change.before])
                .flatten();
            let good = versions
                .filter_map(|version| parse_stored(&entry.id, version).ok())
                .next();
            if let Some(document) = good {
                let entry = DocumentEntry {
                    document: Some(Arc::new(document)),
                    ..(*entry).clone()
                };
                Arc::make_mut(&mut self.world.documents).insert(entry.id.clone(), Arc::new(entry));
            }
        }
    }

    fn quarantine(&mut self, id: String, message: String, since_revision: u64) {
        tracing::warn!(%id, %message, since_revision, "quarantined");
        Arc::make_mut(&mut self.world.quarantined).insert(
            id,
            Quarantine {
                message,
                since_revision,
            },
        );
    }

    fn release(&mut self, id: &str) {
        if self.world.quarantined.contains_key(id) {
            Arc::make_mut(&mut self.world.quarantined).remove(id);
        }
    }
}

/// What the store has was checked by another build, or by nobody.
pub(super) fn parse_stored(id: &DocumentId, json: &serde_json::Value) -> Result<Document, String> {
    let parsed = manifest::parse(&id.to_string(), &json.to_string(), &id.namespace);
    let documents = parsed.into_result().map_err(|problems| {
        let texts: Vec<_> = problems
            .iter()
            .map(|p| {
                if p.path.is_empty() {
                    p.message.clone()
                } else {
                    format!("{}: {}", p.path, p.message)
                }
            })
            .collect();
        texts.join("; ")
    })?;
    match <[_; 1]>::try_from(documents) {
        Ok([parsed]) if parsed.document.id() == *id => Ok(parsed.document),
        Ok([parsed]) => Err(format!(
            "it is stored as {id} but says it is {}",
            parsed.document.id()
        )),
        Err(documents) => Err(format!(
            "{} documents are stored in its place",
            documents.len()
        )),
    }
}

/// A record that is no JSON: kept as text, so that it can be looked at and deleted.
fn unreadable(value: &[u8]) -> DocumentRecord {
    let text: String = String::from_utf8_lossy(value)
        .chars()
        .take(record::UNREADABLE_MAX)
        .collect();
    DocumentRecord {
        created: 0,
        updated: 0,
        generation: 0,
        document: serde_json::Value::String(text),
    }
}

/// Revisions whose time is kept.
const RECENT_MAX: usize = 256;

#[cfg(test)]
mod tests;
