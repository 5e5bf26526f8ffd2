//! The directory as data: seats, their ends, who has how many, and a short log of what changed. The time is handed in;
//! counts are counted, never added up from what others report.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::directory::{DirectoryError, Seat, Update};
use super::name::{Instance, Key};

/// Seats at once, unless said otherwise; what the mesh's directory has for a service.
pub const SEATS_MAX: usize = 200_000;
/// Instances that take nothing new, at once.
pub const CLOSED_MAX: usize = 10_000;
/// Changes that a follower may be behind before it is told everything again.
pub const LOG_MAX: usize = 4_096;
/// The shortest and the longest time to live.
pub const TTL_MIN: Duration = Duration::from_secs(5);
pub const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Debug)]
struct Held {
    instance: Instance,
    epoch: u64,
    ttl: Option<Duration>,
    ends: Option<Duration>,
}

/// A directory without clock, task or lock.
#[derive(Clone, Debug)]
pub struct Table {
    seats: HashMap<Key, Held>,
    of: BTreeMap<Instance, BTreeSet<Key>>,
    ends: BTreeSet<(Duration, Key)>,
    closed: BTreeSet<Instance>,
    /// Of the last change of hands.
    epoch: u64,
    seats_max: usize,
    /// Keys that changed, and how many came before the first of them.
    log: VecDeque<Key>,
    before: u64,
}

impl Table {
    /// `epoch`: later than any that an earlier life of the directory gave.
    pub fn new(epoch: u64, seats_max: usize) -> Self {
        Self {
            seats: HashMap::new(),
            of: BTreeMap::new(),
            ends: BTreeSet::new(),
            closed: BTreeSet::new(),
            epoch,
            seats_max,
            log: VecDeque::new(),
            before: 0,
        }
    }

    /// See [`Directory::claim`](super::Directory::claim).
    ///
    /// # Errors
    /// [`DirectoryError`]
    pub fn claim(
        &mut self,
        now: Duration,
        key: &Key,
        instance: &Instance,
        over: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<Seat, DirectoryError> {
        if ttl.is_some_and(|ttl| !(TTL_MIN..=TTL_MAX).contains(&ttl)) {
            return Err(DirectoryError::Invalid);
        }
        self.sweep(now);
        let epoch = match (self.seats.get(key), over) {
            // Again: its own epoch, or none said.
            (Some(held), over) if held.instance == *instance => match over {
                None => held.epoch,
                Some(over) if over == held.epoch => held.epoch,
                Some(_) => return Err(self.conflict(key)),
            },
            (Some(held), Some(over)) if held.epoch == over => self.takes(instance, true)?,
            (None, None) => self.takes(instance, false)?,
            _ => return Err(self.conflict(key)),
        };
        Ok(self.put(now, key, instance, epoch, ttl))
    }

    /// See [`Directory::move_to`](super::Directory::move_to).
    ///
    /// # Errors
    /// [`DirectoryError`]
    pub fn move_to(
        &mut self,
        now: Duration,
        key: &Key,
        to: &Instance,
        epoch: u64,
    ) -> Result<Seat, DirectoryError> {
        self.sweep(now);
        let Some(held) = self.seats.get(key).filter(|held| held.epoch == epoch) else {
            return Err(self.conflict(key));
        };
        if held.instance == *to {
            return Ok(seat(key, held));
        }
        let ttl = held.ttl;
        let epoch = self.takes(to, true)?;
        Ok(self.put(now, key, to, epoch, ttl))
    }

    /// See [`Directory::release`](super::Directory::release).
    ///
    /// # Errors
    /// [`DirectoryError`]
    pub fn release(
        &mut self,
        now: Duration,
        key: &Key,
        epoch: u64,
    ) -> Result<Option<Seat>, DirectoryError> {
        self.sweep(now);
        let Some(seat) = self.show(now, key) else {
            return Ok(None);
        };
        if seat.epoch != epoch {
            return Err(self.conflict(key));
        }
        self.remove(key);
        Ok(Some(seat))
    }

    pub fn show(&self, now: Duration, key: &Key) -> Option<Seat> {
        let held = self.seats.get(key)?;
        let over = held.ends.is_some_and(|ends| ends <= now);
        (!over).then(|| seat(key, held))
    }

    /// An instance takes nothing new, or does again. Where [`CLOSED_MAX`] are closed, those without a seat are forgotten: most
    /// of them are long gone.
    ///
    /// # Errors
    /// [`DirectoryError::Full`]
    pub fn close(&mut self, instance: &Instance, closed: bool) -> Result<(), DirectoryError> {
        if !closed {
            self.closed.remove(instance);
            return Ok(());
        }
        if self.closed.len() >= CLOSED_MAX && !self.closed.contains(instance) {
            self.closed.retain(|closed| self.of.contains_key(closed));
            if self.closed.len() >= CLOSED_MAX {
                return Err(DirectoryError::Full);
            }
        }
        self.closed.insert(instance.clone());
        Ok(())
    }

    /// Lets go what is over by `now`.
    pub fn sweep(&mut self, now: Duration) {
        while let Some((ends, key)) = self.ends.first()
            && *ends <= now
        {
            let key = key.clone();
            self.remove(&key);
        }
    }

    /// When the next seat ends, unless it is claimed again.
    pub fn next_end(&self) -> Option<Duration> {
        self.ends.first().map(|(ends, _)| *ends)
    }

    /// How many seats an instance has.
    pub fn count_of(&self, instance: &Instance) -> usize {
        self.of.get(instance).map_or(0, BTreeSet::len)
    }

    pub fn len(&self) -> usize {
        self.seats.len()
    }

    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// What happened since `at`, and where to go on; with none, or behind the log: everything. No update: nothing.
    pub fn since(&self, at: Option<u64>) -> (Option<Update>, u64) {
        let end = self.before + self.log.len() as u64;
        let Some(at) = at.filter(|at| (self.before..=end).contains(at)) else {
            let seats = self.seats.iter().map(|(key, held)| seat(key, held));
            let update = Update {
                begins: true,
                complete: true,
                changed: seats.collect(),
                removed: Vec::new(),
            };
            return (Some(update), end);
        };
        if at == end {
            return (None, end);
        }
        let skipped = (at - self.before) as usize;
        let keys: BTreeSet<&Key> = self.log.iter().skip(skipped).collect();
        let mut update = Update {
            complete: true,
            ..Update::default()
        };
        for key in keys {
            match self.seats.get(key) {
                Some(held) => update.changed.push(seat(key, held)),
                None => update.removed.push(key.clone()),
            }
        }
        (Some(update), end)
    }

    /// The epoch of a change of hands to `instance`, if it may have the key.
    fn takes(&mut self, instance: &Instance, exists: bool) -> Result<u64, DirectoryError> {
        if self.closed.contains(instance) {
            return Err(DirectoryError::Closed(instance.clone()));
        }
        if !exists && self.seats.len() >= self.seats_max {
            return Err(DirectoryError::Full);
        }
        self.epoch += 1;
        Ok(self.epoch)
    }

    fn put(
        &mut self,
        now: Duration,
        key: &Key,
        instance: &Instance,
        epoch: u64,
        ttl: Option<Duration>,
    ) -> Seat {
        let ends = ttl.map(|ttl| now + ttl);
        let held = Held {
            instance: instance.clone(),
            epoch,
            ttl,
            ends,
        };
        let seat = seat(key, &held);
        let before = self.seats.insert(key.clone(), held);
        if let Some(before) = &before {
            self.forget(key, before);
        }
        if let Some(ends) = ends {
            self.ends.insert((ends, key.clone()));
        }
        let keys = self.of.entry(instance.clone()).or_default();
        keys.insert(key.clone());
        // A seat that is only held for longer is no news.
        if before.is_none_or(|before| before.epoch != epoch || before.ttl != ttl) {
            self.note(key);
        }
        seat
    }

    fn remove(&mut self, key: &Key) {
        if let Some(held) = self.seats.remove(key) {
            self.forget(key, &held);
            self.note(key);
        }
    }

    fn forget(&mut self, key: &Key, held: &Held) {
        if let Some(ends) = held.ends {
            self.ends.remove(&(ends, key.clone()));
        }
        if let Some(keys) = self.of.get_mut(&held.instance) {
            keys.remove(key);
            if keys.is_empty() {
                self.of.remove(&held.instance);
            }
        }
    }

    fn note(&mut self, key: &Key) {
        if self.log.len() >= LOG_MAX {
            self.log.pop_front();
            self.before += 1;
        }
        self.log.push_back(key.clone());
    }

    fn conflict(&self, key: &Key) -> DirectoryError {
        let held = self.seats.get(key);
        DirectoryError::Conflict(held.map(|held| Box::new(seat(key, held))))
    }
}

fn seat(key: &Key, held: &Held) -> Seat {
    Seat {
        key: key.clone(),
        instance: held.instance.clone(),
        epoch: held.epoch,
        ttl: held.ttl,
        away: false,
    }
}
