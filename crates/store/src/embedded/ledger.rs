//! The state in memory: live entries, and the newest batches for watches. It shows only what is on disk: the writer
//! prepares a [`Stage`] beside it, makes that durable, then applies it here.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::Arc,
};

use super::{
    engine::Delta,
    record::{self, Place},
};
use crate::{Batch, Entry, Error, Event, EventKind, LeaseId, Op, Reason, Result, Revision, Txn};

/// Batches kept in memory for watches, whichever is reached first. A watch that lags further reads from disk.
const TAIL_BATCHES_MAX: usize = 1024;
const TAIL_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<String, Slot>,
    by_lease: BTreeMap<LeaseId, BTreeSet<String>>,
    pub head: Revision,
    /// A watch can start here: every event after this revision is kept, of earlier ones only what is still live.
    pub floor: Revision,
    /// Bytes of the records after the floor.
    pub log_bytes: u64,
    /// Records up to the floor that have been replaced since; the next trim takes them.
    stale: Vec<Place>,
    tail: VecDeque<(Arc<Batch>, usize)>,
    tail_bytes: usize,
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    position: u32,
}

/// What a watch at some revision gets from memory.
pub enum Tail {
    UpToDate,
    Batches(Vec<Arc<Batch>>),
    /// The batches are on disk only.
    Behind,
}

impl Ledger {
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key).map(|slot| &slot.entry)
    }

    pub fn under(&self, prefix: &str) -> impl Iterator<Item = &Entry> {
        self.entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(_, slot)| &slot.entry)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The records that a trim may drop whatever its floor.
    pub fn stale(&self) -> &[Place] {
        &self.stale
    }

    pub fn after(&self, revision: Revision, most: usize) -> Tail {
        if revision >= self.head {
            return Tail::UpToDate;
        }
        let Some((oldest, _)) = self.tail.front() else {
            return Tail::Behind;
        };
        if revision + 1 < oldest.revision {
            return Tail::Behind;
        }
        let start = self
            .tail
            .partition_point(|(batch, _)| batch.revision <= revision);
        Tail::Batches(
            self.tail
                .range(start..)
                .take(most)
                .map(|(batch, _)| batch.clone())
                .collect(),
        )
    }

    /// Takes one event over, which is on disk at `place` with `bytes`.
    pub fn apply(&mut self, place: Place, event: Event, bytes: usize) {
        let (revision, position) = place;
        self.head = self.head.max(revision);
        if revision > self.floor {
            self.log_bytes += bytes as u64;
        }
        let replaced = match event.kind {
            EventKind::Put(entry) => {
                if let Some(lease) = entry.lease {
                    self.by_lease
                        .entry(lease)
                        .or_default()
                        .insert(entry.key.clone());
                }
                let lease = entry.lease;
                let replaced = self
                    .entries
                    .insert(entry.key.clone(), Slot { entry, position });
                replaced.map(|slot| (slot, lease))
            }
            EventKind::Delete { key, .. } => {
                if revision <= self.floor {
                    self.stale.push(place);
                }
                self.entries.remove(&key).map(|slot| (slot, None))
            }
        };
        let Some((slot, lease_now)) = replaced else {
            return;
        };
        if slot.entry.modified <= self.floor {
            self.stale.push((slot.entry.modified, slot.position));
        }
        if let Some(lease) = slot.entry.lease
            && lease_now != Some(lease)
            && let Some(keys) = self.by_lease.get_mut(&lease)
        {
            keys.remove(&slot.entry.key);
            if keys.is_empty() {
                self.by_lease.remove(&lease);
            }
        }
    }

    /// Takes over what a stage prepared, after it is on disk.
    pub fn publish(&mut self, batches: Vec<(Batch, Vec<usize>)>, trim: Option<&Trim>) {
        for (batch, sizes) in batches {
            for (position, (event, bytes)) in batch.events.iter().zip(&sizes).enumerate() {
                self.apply((batch.revision, position as u32), event.clone(), *bytes);
            }
            let bytes = sizes.iter().sum();
            self.tail_bytes += bytes;
            self.tail.push_back((Arc::new(batch), bytes));
        }
        if let Some(trim) = trim {
            self.floor = trim.floor;
            self.log_bytes -= trim.bytes;
            self.stale.drain(..trim.stale);
        }
        while self.tail.len() > TAIL_BATCHES_MAX
            || self.tail_bytes > TAIL_BYTES_MAX
            || self
                .tail
                .front()
                .is_some_and(|(batch, _)| batch.revision <= self.floor)
        {
            let Some((_, bytes)) = self.tail.pop_front() else {
                break;
            };
            self.tail_bytes -= bytes;
        }
    }
}

/// How far a commit moves the floor, and what that removes from the log.
#[derive(Debug)]
pub struct Trim {
    pub floor: Revision,
    pub bytes: u64,
    /// How many of the ledger's stale records are erased.
    pub stale: usize,
}

/// A group of transactions on top of the ledger, each seeing what the ones before it did.
pub struct Stage<'a> {
    ledger: &'a Ledger,
    changed: BTreeMap<String, Option<(Entry, u32)>>,
    ended: BTreeSet<LeaseId>,
    head: Revision,
    batches: Vec<(Batch, Vec<usize>)>,
    delta: Delta,
}

impl<'a> Stage<'a> {
    pub fn on(ledger: &'a Ledger) -> Stage<'a> {
        Stage {
            ledger,
            changed: BTreeMap::new(),
            ended: BTreeSet::new(),
            head: ledger.head,
            batches: Vec::new(),
            delta: Delta::default(),
        }
    }

    /// `alive` says whether a lease can take keys.
    pub fn commit(&mut self, txn: Txn, alive: impl Fn(LeaseId) -> bool) -> Result<Revision> {
        for expect in txn.expect {
            let found = self.get(expect.key()).map(|entry| entry.modified);
            if !expect.holds(found) {
                return Err(Error::Conflict {
                    key: expect.key().into(),
                    expected: expect,
                    found,
                });
            }
        }
        let leases = txn.ops.iter().filter_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        });
        if let Some(lease) = leases
            .into_iter()
            .find(|lease| self.ended.contains(lease) || !alive(*lease))
        {
            return Err(Error::LeaseNotFound { lease });
        }
        let revision = self.head + 1;
        let mut events = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    let (created, version) = match self.get(&key) {
                        Some(entry) => (entry.created, entry.version + 1),
                        None => (revision, 1),
                    };
                    events.push(Event::put(Entry {
                        key,
                        value,
                        created,
                        modified: revision,
                        version,
                        lease,
                    }));
                }
                Op::Delete { key } if self.get(&key).is_some() => {
                    events.push(Event::delete(key, Reason::Deleted))
                }
                Op::Delete { .. } => {}
            }
        }
        Ok(self.push(events))
    }

    pub fn grant(&mut self, lease: LeaseId, ttl: std::time::Duration) {
        self.delta.granted.push((lease, ttl));
        self.delta.lease_next = Some(lease.0 + 1);
    }

    /// Deletes a lease with its keys.
    pub fn end(&mut self, lease: LeaseId, reason: Reason) -> Revision {
        let before = self.ledger.by_lease.get(&lease).into_iter().flatten();
        let keys: BTreeSet<&String> = before.chain(self.changed.keys()).collect();
        let held = |key: &&&String| {
            self.get(key)
                .is_some_and(|entry| entry.lease == Some(lease))
        };
        let events = keys
            .iter()
            .filter(held)
            .map(|key| Event::delete((*key).clone(), reason))
            .collect();
        self.ended.insert(lease);
        self.delta.ended.push(lease);
        self.push(events)
    }

    pub fn head(&self) -> Revision {
        self.head
    }

    pub fn ended(&self, lease: LeaseId) -> bool {
        self.ended.contains(&lease)
    }

    pub fn bytes(&self) -> u64 {
        self.delta
            .records
            .iter()
            .map(|(_, record)| record.len() as u64)
            .sum()
    }

    /// Whether the record at `place` is the newest of its key.
    pub fn is_live(&self, key: &str, place: Place) -> bool {
        match self.changed.get(key) {
            Some(_) => false,
            None => self
                .ledger
                .entries
                .get(key)
                .is_some_and(|slot| (slot.entry.modified, slot.position) == place),
        }
    }

    pub fn finish(self) -> (Delta, Vec<(Batch, Vec<usize>)>) {
        (self.delta, self.batches)
    }

    fn get(&self, key: &str) -> Option<&Entry> {
        match self.changed.get(key) {
            Some(changed) => changed.as_ref().map(|(entry, _)| entry),
            None => self.ledger.get(key),
        }
    }

    fn push(&mut self, mut events: Vec<Event>) -> Revision {
        if events.is_empty() {
            return self.head;
        }
        self.head += 1;
        let mut sizes = Vec::with_capacity(events.len());
        for (position, event) in events.iter_mut().enumerate() {
            let record = record::encode(event);
            sizes.push(record.len());
            let position = position as u32;
            let key = event.key().to_owned();
            let after = match &mut event.kind {
                EventKind::Put(entry) => {
                    // The caller's value may be a small part of a large buffer, which would stay alive with it.
                    entry.value = record.slice(record.len() - entry.value.len()..);
                    Some((entry.clone(), position))
                }
                EventKind::Delete { .. } => None,
            };
            self.changed.insert(key, after);
            self.delta.records.push(((self.head, position), record));
        }
        self.batches.push((
            Batch {
                revision: self.head,
                events,
            },
            sizes,
        ));
        self.head
    }
}
