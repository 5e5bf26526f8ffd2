//! Where sessions are: a key (player, room, guild) within a service, the instance that has it, and the epoch that fences
//! whoever had it before. Filled by discovery with small changes; read by requests and datagrams without a lock.
//!
//! An entry never changes: a move puts another in its place and tells whoever holds the old one.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use phalanx_model::name::ServiceName;
use tokio::sync::Notify;

/// Shared by all cores, one per sidecar. Cheap to read: a hash of the key and two loads.
#[derive(Default)]
pub struct Directory {
    services: ArcSwap<HashMap<ServiceName, Arc<Seats>>>,
    changes: AtomicU64,
}

/// Where a session is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub address: SocketAddr,
    /// Grows with every change of the key, however long it was gone in between.
    pub epoch: u64,
}

/// One key's place. Whoever serves something long for it may hold it, and hears when it is replaced or gone.
pub struct Entry {
    pub key: Box<[u8]>,
    pub epoch: u64,
    /// The id of the instance within the service.
    pub instance: Arc<str>,
    /// Where that takes traffic: its sidecar first, then the ports that take datagrams themselves. None while it is away:
    /// then the session is nowhere else either.
    pub addresses: Arc<[SocketAddr]>,
    replaced: AtomicBool,
    told: Notify,
}

impl Directory {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The session's place: the sidecar's address of the instance that has it.
    pub fn find(&self, service: &ServiceName, key: &[u8]) -> Option<Seat> {
        self.find_at(service, key, |_| true)
    }

    /// The first of that instance's addresses that `is_meant`, such as being among the endpoints of a cluster. None when
    /// nobody has the key, or who has it is at none of these.
    pub fn find_at(
        &self,
        service: &ServiceName,
        key: &[u8],
        is_meant: impl Fn(SocketAddr) -> bool,
    ) -> Option<Seat> {
        let services = self.services.load();
        let shard = services.get(service)?.shard(key)?.load();
        let Keyed(entry) = shard.get(key)?;
        let mut addresses = entry.addresses.iter().copied();
        let address = addresses.find(|address| is_meant(*address))?;
        Some(Seat {
            address,
            epoch: entry.epoch,
        })
    }

    /// The entry itself, for who wants to hear of its end.
    pub fn hold(&self, service: &ServiceName, key: &[u8]) -> Option<Arc<Entry>> {
        let services = self.services.load();
        let shard = services.get(service)?.shard(key)?.load();
        shard.get(key).map(|Keyed(entry)| entry.clone())
    }

    /// Whether all keys of a service are here: until they are, a key that is not found may have a place.
    pub fn is_filled(&self, service: &ServiceName) -> bool {
        self.services.load().contains_key(service)
    }

    /// Grows after entries were replaced, and whoever holds them was told: until then, who was looked at need not be again.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Keys held, of all services.
    pub fn len(&self) -> usize {
        let services = self.services.load();
        services.values().map(|seats| seats.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All keys of a service, in place of what was held of it. One that is the same stays, and nobody is told; so does one
    /// that is newer than what is told by who lags behind.
    pub fn fill(&self, service: &ServiceName, entries: Vec<Entry>) {
        let before = self.services.load().get(service).cloned();
        let seats = Arc::new(Seats::new());
        let kept = |entry: Entry| match before.as_ref().and_then(|before| before.get(&entry.key)) {
            Some(held) if held.epoch > entry.epoch || held.is_same(&entry) => held,
            _ => Arc::new(entry),
        };
        seats.change(entries.into_iter().map(kept).collect(), &[]);
        self.put(service, Some(seats.clone()));
        let gone = before.iter().flat_map(|before| before.all());
        gone.filter(|entry| {
            !seats
                .get(&entry.key)
                .is_some_and(|now| Arc::ptr_eq(&now, entry))
        })
        .for_each(|entry| entry.end());
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// A few keys of a service that is filled already; of another, nothing.
    pub fn change(&self, service: &ServiceName, upserts: Vec<Entry>, removed: &[Box<[u8]>]) {
        let seats = self.services.load().get(service).cloned();
        if let Some(seats) = seats {
            let upserts = upserts.into_iter().map(Arc::new).collect();
            seats.change(upserts, removed);
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Nobody asks for this service any more.
    pub fn forget(&self, service: &ServiceName) {
        self.put(service, None);
    }

    fn put(&self, service: &ServiceName, seats: Option<Arc<Seats>>) {
        self.services.rcu(|services| {
            let mut next = HashMap::clone(services);
            match &seats {
                Some(seats) => next.insert(service.clone(), seats.clone()),
                None => next.remove(service),
            };
            next
        });
    }
}

impl Entry {
    pub fn new(key: &[u8], epoch: u64, instance: Arc<str>, addresses: Arc<[SocketAddr]>) -> Self {
        Self {
            key: key.into(),
            epoch,
            instance,
            addresses,
            replaced: AtomicBool::new(false),
            told: Notify::new(),
        }
    }

    /// The key is elsewhere by now, or gone.
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    /// Ends when the key's place is another.
    pub async fn replaced(&self) {
        loop {
            let told = self.told.notified();
            if self.is_replaced() {
                return;
            }
            told.await;
        }
    }

    fn is_same(&self, other: &Entry) -> bool {
        self.epoch == other.epoch && self.addresses == other.addresses
    }

    fn end(&self) {
        self.replaced.store(true, Ordering::Release);
        self.told.notify_waiters();
    }
}

/// The keys of one service, in shards that are replaced one at a time.
struct Seats {
    hasher: RandomState,
    shards: Box<[ArcSwap<Shard>]>,
    len: AtomicUsize,
}

type Shard = HashSet<Keyed>;

impl Seats {
    fn new() -> Self {
        let empty = Arc::new(Shard::default());
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| ArcSwap::new(empty.clone())).collect(),
            len: AtomicUsize::new(0),
        }
    }

    fn place(&self, key: &[u8]) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }

    fn shard(&self, key: &[u8]) -> Option<&ArcSwap<Shard>> {
        self.shards.get(self.place(key))
    }

    fn get(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let shard = self.shard(key)?.load();
        shard.get(key).map(|Keyed(entry)| entry.clone())
    }

    fn all(&self) -> Vec<Arc<Entry>> {
        let shards = self.shards.iter().map(|shard| shard.load_full());
        let entries =
            shards.flat_map(|shard| shard.iter().map(|k| k.0.clone()).collect::<Vec<_>>());
        entries.collect()
    }

    fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Copies the shards that are concerned, each once. Called by discovery only.
    #[allow(
        clippy::mutable_key_type,
        reason = "entries are equal by key, which never changes"
    )]
    fn change(&self, upserts: Vec<Arc<Entry>>, removed: &[Box<[u8]>]) {
        type Changes<'k> = (Vec<Arc<Entry>>, Vec<&'k [u8]>);
        let mut by_shard: HashMap<usize, Changes<'_>> = HashMap::new();
        for entry in upserts {
            let place = self.place(&entry.key);
            by_shard.entry(place).or_default().0.push(entry);
        }
        for key in removed {
            by_shard.entry(self.place(key)).or_default().1.push(key);
        }
        for (place, (upserts, removed)) in by_shard {
            let Some(slot) = self.shards.get(place) else {
                continue;
            };
            let before = slot.load_full();
            let mut next = Shard::clone(&before);
            let mut ended = Vec::new();
            for key in removed {
                ended.extend(next.take(key));
            }
            for entry in upserts {
                match next.get(&*entry.key) {
                    // Late news: whoever moved the key since has a higher epoch.
                    Some(Keyed(held)) if held.epoch > entry.epoch => continue,
                    Some(Keyed(held)) if held.is_same(&entry) => continue,
                    _ => ended.extend(next.replace(Keyed(entry))),
                }
            }
            self.len.fetch_add(next.len(), Ordering::Relaxed);
            self.len.fetch_sub(before.len(), Ordering::Relaxed);
            slot.store(Arc::new(next));
            ended.iter().for_each(|Keyed(entry)| entry.end());
        }
    }
}

/// An entry by its key.
#[derive(Clone)]
struct Keyed(Arc<Entry>);

impl Borrow<[u8]> for Keyed {
    fn borrow(&self) -> &[u8] {
        &self.0.key
    }
}

impl Hash for Keyed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Keyed {}

/// Of a service: at 200,000 keys a change copies some 800 pointers.
const SHARDS: usize = 256;

#[cfg(test)]
mod tests;
