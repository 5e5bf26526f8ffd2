//! What is known of the directory, in memory: what is stored, where the instances are, and a log of what changed, by which
//! followers go on. Pure but for the time at which something was seen.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::{Instance, InstanceId, ServiceName};
use phalanx_store::{Page, Revision};
use tokio::time::Instant;

use super::record::{SESSIONS, SessionId, SessionRecord};
use crate::world::{Instances, Registered};

/// Who has a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub instance: Arc<str>,
    pub epoch: u64,
    /// In the store.
    pub modified: Revision,
    pub ttl: Option<Duration>,
    /// By when it has to be claimed again, or is looked at once more.
    pub due: Option<Instant>,
}

/// A key as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    pub held: Held,
    /// None: the instance is not registered.
    pub addresses: Option<Arc<[SocketAddr]>>,
}

pub struct Board {
    /// Tells positions of this process from those of another.
    pub token: u64,
    shelves: HashMap<ServiceName, Shelf>,
    len: usize,
    /// Let go here, which the store's stream has yet to say.
    gone: HashMap<SessionId, Revision>,
    /// Each of those with a time to live, once: by when it has to be claimed again.
    due: BTreeSet<(Instant, SessionId)>,
    instances: Instances,
}

#[derive(Default)]
struct Shelf {
    keys: BTreeMap<Arc<str>, Held>,
    places: HashMap<Arc<str>, Place>,
    /// Keys that changed, oldest first.
    log: VecDeque<Arc<str>>,
    /// The position of the first.
    first: u64,
}

/// An instance that has keys.
struct Place {
    keys: BTreeSet<Arc<str>>,
    addresses: Option<Arc<[SocketAddr]>>,
    away_since: Option<Instant>,
}

/// What changed behind a position; keys that are not held any more stand with none.
pub struct News {
    pub changes: Vec<(Arc<str>, Option<Session>)>,
    /// Where to go on.
    pub position: u64,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            token: RandomState::new().hash_one(SESSIONS),
            shelves: HashMap::new(),
            len: 0,
            gone: HashMap::new(),
            due: BTreeSet::new(),
            instances: Instances::default(),
        }
    }
}

impl Board {
    /// Keys of all services.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn count(&self, service: &ServiceName) -> usize {
        self.shelves
            .get(service)
            .map_or(0, |shelf| shelf.keys.len())
    }

    pub fn has(&self, service: &ServiceName) -> bool {
        self.shelves.contains_key(service)
    }

    pub fn held(&self, id: &SessionId) -> Option<&Held> {
        self.shelves.get(&id.service)?.keys.get(&id.key)
    }

    pub fn session(&self, id: &SessionId) -> Option<Session> {
        self.shelves.get(&id.service)?.session(&id.service, &id.key)
    }

    /// Up to `most` sessions of a service behind a key, and whether there are more.
    pub fn page(
        &self,
        service: &ServiceName,
        after: Option<&str>,
        most: usize,
    ) -> (Vec<Session>, bool) {
        let Some(shelf) = self.shelves.get(service) else {
            return (Vec::new(), false);
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = shelf.keys.range::<str, _>((from, Bound::Unbounded));
        let page = rest.by_ref().take(most);
        let page = page.filter_map(|(key, _)| shelf.session(service, key));
        let page = page.collect();
        (page, rest.next().is_some())
    }

    pub fn services(&self) -> Vec<ServiceName> {
        let mut services: Vec<_> = self.shelves.keys().cloned().collect();
        services.sort_unstable();
        services
    }

    pub fn count_of(&self, id: &InstanceId) -> usize {
        self.place(id).map_or(0, |place| place.keys.len())
    }

    /// Up to `most` keys of an instance, behind one.
    pub fn keys_of(&self, id: &InstanceId, after: Option<&str>, most: usize) -> Vec<SessionId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let keys = self.place(id).into_iter();
        let keys = keys.flat_map(|place| place.keys.range::<str, _>((from, Bound::Unbounded)));
        let of = |key: &Arc<str>| SessionId {
            service: id.service.clone(),
            key: key.clone(),
        };
        keys.take(most).map(of).collect()
    }

    fn place(&self, id: &InstanceId) -> Option<&Place> {
        self.shelves.get(&id.service)?.places.get(id.id.as_str())
    }

    /// The position of what comes next; of a service without keys too.
    pub fn position(&self, service: &ServiceName) -> u64 {
        self.shelves.get(service).map_or(0, Shelf::position)
    }

    /// None: the log does not go back so far.
    pub fn news(&self, service: &ServiceName, from: u64, most: usize) -> Option<News> {
        let Some(shelf) = self.shelves.get(service) else {
            let none = News {
                changes: Vec::new(),
                position: 0,
            };
            return (from == 0).then_some(none);
        };
        let skip = usize::try_from(from.checked_sub(shelf.first)?).ok()?;
        if skip > shelf.log.len() {
            return None;
        }
        let passed = shelf.log.range(skip..).take(most);
        let position = from + passed.len() as u64;
        let keys: BTreeSet<&Arc<str>> = passed.collect();
        let told = |key: &Arc<str>| (key.clone(), shelf.session(service, key));
        Some(News {
            changes: keys.into_iter().map(told).collect(),
            position,
        })
    }

    /// What is stored under a key, as of a revision. What is older than what is known already is no news.
    pub fn put(&mut self, id: SessionId, value: &[u8], modified: Revision, now: Instant) {
        let newer = |known: Revision| known >= modified;
        if self.gone.get(&id).is_some_and(|gone| newer(*gone))
            || self.held(&id).is_some_and(|held| newer(held.modified))
        {
            return;
        }
        let Some(record) = SessionRecord::read(value) else {
            tracing::warn!(session = %id.path(), "its record is damaged and left alone");
            return;
        };
        self.gone.remove(&id);
        let held = Held {
            instance: record.instance.as_str().into(),
            epoch: record.epoch.unwrap_or(modified),
            modified,
            ttl: record.ttl(),
            due: record.ttl().map(|ttl| now + ttl),
        };
        if let Some(due) = held.due {
            self.due.insert((due, id.clone()));
        }
        let instance = InstanceId {
            service: id.service.clone(),
            id: record.instance,
        };
        let registered = self.instances.get(&instance);
        let addresses = registered.map(|registered| addresses(&registered.instance));
        let shelf = self.shelves.entry(id.service.clone()).or_default();
        let before = shelf.keys.insert(id.key.clone(), held.clone());
        let was_due = before.as_ref().and_then(|before| before.due);
        if let Some(was_due) = was_due.filter(|was_due| Some(*was_due) != held.due) {
            self.due.remove(&(was_due, id.clone()));
        }
        match &before {
            None => self.len += 1,
            Some(before) if before.instance != held.instance => {
                shelf.leave(&before.instance, &id.key);
            }
            Some(_) => {}
        }
        let place = shelf.places.entry(held.instance.clone());
        let place = place.or_insert_with(|| Place {
            keys: BTreeSet::new(),
            away_since: addresses.is_none().then_some(now),
            addresses,
        });
        place.keys.insert(id.key.clone());
        let is_same = before
            .is_some_and(|before| before.instance == held.instance && before.epoch == held.epoch);
        if !is_same {
            shelf.note(id.key);
        }
    }

    /// It is not stored any more, as of a revision.
    pub fn delete(&mut self, id: &SessionId, at: Revision) {
        if self.held(id).is_some_and(|held| held.modified > at) {
            return;
        }
        self.gone.insert(id.clone(), at);
        let Some(shelf) = self.shelves.get_mut(&id.service) else {
            return;
        };
        if let Some(held) = shelf.keys.remove(&id.key) {
            self.len -= 1;
            if let Some(due) = held.due {
                self.due.remove(&(due, id.clone()));
            }
            shelf.leave(&held.instance, &id.key);
            shelf.note(id.key.clone());
        }
    }

    /// All that the store has told of up to this revision has been taken in.
    pub fn followed(&mut self, revision: Revision) {
        if !self.gone.is_empty() {
            self.gone.retain(|_, at| *at > revision);
        }
    }

    /// Everything that is stored, at once.
    pub fn read(&mut self, page: Page, now: Instant) {
        let mut stored = BTreeSet::new();
        for entry in page.entries {
            if let Some(id) = SessionId::stored(&entry.key) {
                stored.insert(id.clone());
                self.put(id, &entry.value, entry.modified, now);
            }
        }
        let known = self.shelves.iter().flat_map(|(service, shelf)| {
            shelf.keys.keys().map(|key| SessionId {
                service: service.clone(),
                key: key.clone(),
            })
        });
        let lost: Vec<_> = known.filter(|id| !stored.contains(id)).collect();
        for id in lost {
            self.delete(&id, page.revision);
        }
        self.followed(page.revision);
    }

    /// The instances as they are registered now. Keys of those that are elsewhere, came or went are news.
    pub fn move_in(&mut self, instances: &Instances, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.instances, instances.clone());
        let (shelves, mut any) = (&mut self.shelves, false);
        instances.each_difference(&before, |old, new| {
            let Some(Registered { instance, .. }) = new.or(old) else {
                return;
            };
            let shelf = shelves.get_mut(&instance.id.service);
            let Some(shelf) = shelf else { return };
            let Some(place) = shelf.places.get_mut(instance.id.id.as_str()) else {
                return;
            };
            let addresses = new.map(|new| addresses(&new.instance));
            if place.addresses == addresses {
                return;
            }
            place.away_since = addresses.is_none().then_some(now);
            place.addresses = addresses;
            let keys: Vec<_> = place.keys.iter().cloned().collect();
            keys.into_iter().for_each(|key| shelf.note(key));
            any = true;
        });
        any
    }

    /// Keys of instances that have been away for longer than `grace`, as they are stored.
    pub fn abandoned(
        &self,
        grace: Duration,
        now: Instant,
        most: usize,
    ) -> Vec<(SessionId, Revision)> {
        let mut found = Vec::new();
        for (service, shelf) in &self.shelves {
            let is_over = |place: &&Place| {
                place
                    .away_since
                    .is_some_and(|since| now.duration_since(since) >= grace)
            };
            for key in shelf
                .places
                .values()
                .filter(is_over)
                .flat_map(|place| &place.keys)
            {
                if found.len() >= most {
                    return found;
                }
                if let Some(held) = shelf.keys.get(key) {
                    let id = SessionId {
                        service: service.clone(),
                        key: key.clone(),
                    };
                    found.push((id, held.modified));
                }
            }
        }
        found
    }

    /// Up to `most` keys whose time to live is over; each is told once more at `again`, as long as it is there.
    pub fn expired(
        &mut self,
        now: Instant,
        again: Instant,
        most: usize,
    ) -> Vec<(SessionId, Revision)> {
        let mut found = Vec::new();
        while found.len() < most
            && let Some(first) = self.due.first()
            && first.0 <= now
            && let Some((_, id)) = self.due.pop_first()
        {
            let shelf = self.shelves.get_mut(&id.service);
            if let Some(held) = shelf.and_then(|shelf| shelf.keys.get_mut(&id.key)) {
                held.due = Some(again);
                found.push((id, held.modified));
            }
        }
        let later = found.iter().map(|(id, _)| (again, id.clone()));
        self.due.extend(later);
        found
    }

    /// Deadlines that are remembered.
    #[cfg(test)]
    pub fn due_len(&self) -> usize {
        self.due.len()
    }

    /// Up to `most` keys of an instance, each with the revision at which it is this one's.
    pub fn stored_of(&self, id: &InstanceId, most: usize) -> Vec<(SessionId, Revision)> {
        let keys = self.keys_of(id, None, most).into_iter();
        let stored = |id: SessionId| {
            let modified = self.held(&id)?.modified;
            Some((id, modified))
        };
        keys.filter_map(stored).collect()
    }
}

impl Shelf {
    fn position(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    fn session(&self, service: &ServiceName, key: &Arc<str>) -> Option<Session> {
        let held = self.keys.get(key)?.clone();
        let place = self.places.get(&held.instance);
        Some(Session {
            id: SessionId {
                service: service.clone(),
                key: key.clone(),
            },
            addresses: place.and_then(|place| place.addresses.clone()),
            held,
        })
    }

    fn leave(&mut self, instance: &Arc<str>, key: &Arc<str>) {
        if let Some(place) = self.places.get_mut(instance) {
            place.keys.remove(key);
            if place.keys.is_empty() {
                self.places.remove(instance);
            }
        }
    }

    fn note(&mut self, key: Arc<str>) {
        if self.log.len() >= LOG_MAX {
            self.log.pop_front();
            self.first += 1;
        }
        self.log.push_back(key);
    }
}

/// Each once: where its sidecar takes traffic, then the ports that take datagrams themselves.
fn addresses(instance: &Instance) -> Arc<[SocketAddr]> {
    let (datagrams, others): (Vec<_>, Vec<_>) = instance
        .ports
        .iter()
        .partition(|port| port.protocol == Protocol::Udp);
    let mut found: Vec<SocketAddr> = Vec::new();
    for port in others.into_iter().chain(datagrams) {
        if !found.contains(&port.address) {
            found.push(port.address);
        }
    }
    found.into()
}

/// Changes of a service that are remembered: who is further behind is told everything again.
const LOG_MAX: usize = 16_384;
