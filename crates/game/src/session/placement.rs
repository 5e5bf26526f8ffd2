//! Where new rooms go. Each instance reports how many it has: absolute counts, of its own, numbered. Nothing is added up
//! from others' differences, so a count that was late or lost is put right by the next one. A place is reserved before it is
//! answered, and whoever does not report is given nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::name::Instance;

/// Instances at once.
pub const INSTANCES_MAX: usize = 10_000;
/// Reservations at once, of all instances.
pub const RESERVED_MAX: usize = 100_000;

/// How long words are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementOptions {
    /// After so long without a report, an instance is given nothing; 5 s.
    pub report_life: Duration,
    /// How long a place is kept for a room that is yet to be opened; 15 s.
    pub reserved_for: Duration,
}

impl Default for PlacementOptions {
    fn default() -> Self {
        Self {
            report_life: Duration::from_secs(5),
            reserved_for: Duration::from_secs(15),
        }
    }
}

/// What an instance says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    pub instance: Instance,
    /// Of its life: a start later than another has a later one.
    pub life: u64,
    /// Grows with each report of a life.
    pub sequence: u64,
    /// That it has now.
    pub rooms: u32,
    /// At most; 0 while it drains.
    pub capacity: u32,
    /// Of earlier [`Reservation`]s, the last up to which each is a room in `rooms` by now, or never will be.
    pub settled: u64,
}

/// A place that is kept. Its room is opened there, or the place is free again after a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Grows.
    pub number: u64,
    pub instance: Instance,
    pub until: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// All that report are full: it may help to wait.
    #[error("no instance has room")]
    Full,
    /// Nobody is there: it does not help to wait a little.
    #[error("no instance reports")]
    Nobody,
    #[error("an earlier report came late, it is not taken")]
    Stale,
    #[error("no more instances, or reservations, are taken")]
    TooMany,
}

#[derive(Clone, Debug)]
struct Known {
    life: u64,
    sequence: u64,
    rooms: u32,
    capacity: u32,
    heard: Duration,
    /// Numbers of reservations that are not settled.
    reserved: BTreeSet<u64>,
}

impl Known {
    fn taken(&self) -> u64 {
        u64::from(self.rooms) + self.reserved.len() as u64
    }
}

/// Chooses instances for rooms. Pure: reports and the time are handed in.
#[derive(Clone, Debug)]
pub struct Placement {
    options: PlacementOptions,
    known: BTreeMap<Instance, Known>,
    ends: BTreeMap<u64, Reservation>,
    number: u64,
}

impl Placement {
    pub fn new(options: PlacementOptions) -> Self {
        Self {
            options,
            known: BTreeMap::new(),
            ends: BTreeMap::new(),
            number: 0,
        }
    }

    /// # Errors
    /// [`PlaceError::Stale`], [`PlaceError::TooMany`]
    pub fn report(&mut self, now: Duration, load: &Load) -> Result<(), PlaceError> {
        if let Some(known) = self.known.get(&load.instance) {
            if (load.life, load.sequence) <= (known.life, known.sequence) {
                return Err(PlaceError::Stale);
            }
        } else {
            let life = self.options.report_life;
            if self.known.len() >= INSTANCES_MAX {
                self.known.retain(|_, known| now < known.heard + life);
            }
            if self.known.len() >= INSTANCES_MAX {
                return Err(PlaceError::TooMany);
            }
        }
        let known = self.known.entry(load.instance.clone());
        let known = known.or_insert_with(|| Known {
            life: load.life,
            sequence: load.sequence,
            rooms: 0,
            capacity: 0,
            heard: now,
            reserved: BTreeSet::new(),
        });
        (known.life, known.sequence) = (load.life, load.sequence);
        (known.rooms, known.capacity) = (load.rooms, load.capacity);
        known.heard = now;
        let settled: Vec<u64> = known.reserved.range(..=load.settled).copied().collect();
        for number in settled {
            known.reserved.remove(&number);
            self.ends.remove(&number);
        }
        Ok(())
    }

    /// Keeps a place at the fullest instance that has room: those that are nearly empty can be let go.
    ///
    /// # Errors
    /// [`PlaceError::Full`], [`PlaceError::Nobody`], [`PlaceError::TooMany`]
    pub fn place(&mut self, now: Duration) -> Result<Reservation, PlaceError> {
        self.expire(now);
        if self.ends.len() >= RESERVED_MAX {
            return Err(PlaceError::TooMany);
        }
        let life = self.options.report_life;
        let mut is_anybody = false;
        let mut best: Option<(&Instance, &mut Known)> = None;
        for (instance, known) in &mut self.known {
            if now >= known.heard + life {
                continue;
            }
            is_anybody = true;
            let has_room = known.taken() < u64::from(known.capacity);
            let is_better = |best: &Known| known.taken() > best.taken();
            if has_room && best.as_ref().is_none_or(|(_, best)| is_better(best)) {
                best = Some((instance, known));
            }
        }
        let Some((instance, known)) = best else {
            return Err(match is_anybody {
                true => PlaceError::Full,
                false => PlaceError::Nobody,
            });
        };
        self.number += 1;
        known.reserved.insert(self.number);
        let reservation = Reservation {
            number: self.number,
            instance: instance.clone(),
            until: now + self.options.reserved_for,
        };
        self.ends.insert(self.number, reservation.clone());
        Ok(reservation)
    }

    /// The room will not be opened. False: it was settled, or over.
    pub fn cancel(&mut self, number: u64) -> bool {
        let Some(reservation) = self.ends.remove(&number) else {
            return false;
        };
        if let Some(known) = self.known.get_mut(&reservation.instance) {
            known.reserved.remove(&number);
        }
        true
    }

    /// Rooms and reservations of an instance.
    pub fn taken(&self, instance: &Instance) -> Option<u64> {
        self.known.get(instance).map(Known::taken)
    }

    pub fn reserved(&self) -> usize {
        self.ends.len()
    }

    fn expire(&mut self, now: Duration) {
        // All are kept equally long: the first to come is the first to go.
        while let Some((number, first)) = self.ends.first_key_value()
            && first.until <= now
        {
            let number = *number;
            self.cancel(number);
        }
    }
}
