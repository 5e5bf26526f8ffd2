//! The nouns of the store: entries, pages of them, and the events that changed them.

use std::fmt;

use bytes::Bytes;

/// Counts the transactions that changed something: 0 is before everything, each adds one, and it never goes back.
pub type Revision = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// The revision that made the key appear; it stays over updates and starts anew after a delete.
    pub created: Revision,
    pub modified: Revision,
    /// 1 for a new key, one more with each put.
    pub version: u64,
    pub lease: Option<LeaseId>,
}

/// All entries under a prefix as they were at one revision, sorted by key. A watch from `revision` continues the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<Entry>,
    pub revision: Revision,
}

/// What one transaction did to the keys that are watched, in the order of its operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub revision: Revision,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put(Entry),
    Delete { key: String, reason: Reason },
}

/// Why a key went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody said so: a delete, or a lease that was revoked.
    Deleted,
    /// Its lease was not kept alive. This alone is no evidence that the owner is gone for good.
    Expired,
}

impl Event {
    pub fn put(entry: Entry) -> Event {
        Event {
            kind: EventKind::Put(entry),
        }
    }

    pub fn delete(key: impl Into<String>, reason: Reason) -> Event {
        Event {
            kind: EventKind::Delete {
                key: key.into(),
                reason,
            },
        }
    }

    pub fn key(&self) -> &str {
        match &self.kind {
            EventKind::Put(entry) => &entry.key,
            EventKind::Delete { key, .. } => key,
        }
    }
}

impl Batch {
    /// The part of the batch that lies under `prefix`, or nothing.
    pub(crate) fn under(&self, prefix: &str) -> Option<Batch> {
        let events: Vec<Event> = self
            .events
            .iter()
            .filter(|event| event.key().starts_with(prefix))
            .cloned()
            .collect();
        (!events.is_empty()).then_some(Batch {
            revision: self.revision,
            events,
        })
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
