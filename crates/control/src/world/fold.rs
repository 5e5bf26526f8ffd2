//! Stored entries and changes in, worlds out. Pure, apart from the clock that stamps a change.

use std::sync::Arc;

use phalanx_model::document::{Document, DocumentId};
use phalanx_model::{InstanceId, manifest};
use tokio::time::Instant;

use super::record::{self, DocumentRecord, HistoryRecord, InstanceRecord, Key};
use super::{DocumentEntry, Quarantine, Registered, World};

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
                // A pruned record is no change of the configuration.
                if change.value.is_some() {
                    world.config_revision = world.config_revision.max(change.revision);
                    world.sequence = world.sequence.max(sequence);
                }
            }
            Key::Other => {}
        }
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
            record.instance(id).map(|instance| Registered {
                instance,
                epoch,
                ttl_ms,
                revision,
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
fn parse_stored(id: &DocumentId, json: &serde_json::Value) -> Result<Document, String> {
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
