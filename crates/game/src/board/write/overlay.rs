//! What this process has accepted and the snapshot doesn't show yet, by player; and standings that it happens to know. Both
//! are bounded: what doesn't fit is still in the log and comes to the board, its player only sees it later.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::record::{Record, Write};
use crate::board::kind::{Kind, PlayerId};
use crate::board::order::{Law, Order};

/// See the module.
#[derive(Debug)]
pub(in crate::board) struct Pending {
    law: Law,
    /// By player; each lock is held for a few instructions.
    shards: [Mutex<Shard>; SHARDS],
    /// Which records the snapshots of late have: (as of, last number in it). Oldest first.
    reflected: Mutex<VecDeque<(u64, u64)>>,
    records: AtomicUsize,
    hidden: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    players: HashMap<PlayerId, VecDeque<Noted>>,
    /// What the store was seen to say, in two generations: when the younger is full, the older goes.
    known: HashMap<PlayerId, Known>,
    known_before: HashMap<PlayerId, Known>,
}

#[derive(Clone, Copy, Debug)]
struct Noted {
    number: u64,
    epoch: u32,
    points: i64,
    at_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    epoch: u32,
    order: Order,
    /// Records of this log up to here are in it.
    number: u64,
}

impl Pending {
    pub(in crate::board) fn new(law: Law) -> Self {
        Self {
            law,
            shards: Default::default(),
            reflected: Mutex::default(),
            records: AtomicUsize::new(0),
            hidden: AtomicU64::new(0),
        }
    }

    /// Record `number` is in the log.
    pub(in crate::board) fn note(&self, number: u64, write: &Write) {
        let Record::Points { points, at_ms } = write.record else {
            return;
        };
        if self.records.load(Ordering::Relaxed) >= RECORDS_MAX {
            self.hidden.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut shard = self.shard(write.player.as_str());
        if !shard.players.contains_key(&write.player) {
            shard.players.insert(write.player.clone(), VecDeque::new());
        }
        let Some(results) = shard.players.get_mut(write.player.as_str()) else {
            return;
        };
        // Appends of one player may hear of their numbers in any order.
        let at = results.partition_point(|result| result.number < number);
        results.insert(
            at,
            Noted {
                number,
                epoch: write.epoch,
                points,
                at_ms,
            },
        );
        self.records.fetch_add(1, Ordering::Relaxed);
        if results.len() > RESULTS_MAX && self.fold(results) {
            self.records.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Makes one result of the two oldest. Of sums, both count as pending until the later has arrived.
    fn fold(&self, results: &mut VecDeque<Noted>) -> bool {
        let (Some(first), Some(second)) = (results.pop_front(), results.pop_front()) else {
            return false;
        };
        let folded = match self.law.kind() {
            // What was meant for an earlier epoch comes too late.
            _ if !first.counts(second.epoch) => second,
            Kind::Best(_) => {
                let order = |result: &Noted| self.law.order(result.points, result.at_ms).ok();
                let better = match (order(&first), order(&second)) {
                    (Some(a), Some(b)) if a <= b => first,
                    _ => second,
                };
                Noted {
                    number: second.number,
                    ..better
                }
            }
            Kind::Sum(_) | Kind::Decayed { .. } => Noted {
                points: first.points.saturating_add(second.points),
                at_ms: match (first.points, second.points) {
                    (_, 0) => first.at_ms,
                    (0, _) => second.at_ms,
                    _ => first.at_ms.max(second.at_ms),
                },
                ..second
            },
        };
        results.push_front(folded);
        true
    }

    /// The snapshot of `as_of_ms` has everything of this log up to `number`.
    pub(in crate::board) fn reflects(&self, as_of_ms: u64, number: u64) {
        let done = {
            let mut reflected = lock(&self.reflected);
            match reflected.iter_mut().find(|(of, _)| *of == as_of_ms) {
                Some((_, last)) => *last = number.max(*last),
                None => reflected.push_back((as_of_ms, number)),
            }
            while reflected.len() > REFLECTED_MAX {
                reflected.pop_front();
            }
            reflected.iter().map(|(_, number)| *number).min()
        };
        if let Some(done) = done {
            self.forget(done);
        }
    }

    /// Nobody reads a snapshot without these any more.
    fn forget(&self, done: u64) {
        if self.records.load(Ordering::Relaxed) == 0 {
            return;
        }
        for shard in &self.shards {
            let mut gone = 0;
            lock(shard).players.retain(|_, results| {
                while results.front().is_some_and(|result| result.number <= done) {
                    results.pop_front();
                    gone += 1;
                }
                !results.is_empty()
            });
            self.records.fetch_sub(gone, Ordering::Relaxed);
        }
    }

    /// The store said that she stands at `order` in `epoch`, with all of this log up to `number`.
    pub(in crate::board) fn remember(
        &self,
        player: PlayerId,
        order: Order,
        number: u64,
        epoch: u32,
    ) {
        let mut shard = self.shard(player.as_str());
        if shard.known.len() >= KNOWN_MAX / SHARDS / 2 {
            shard.known_before = std::mem::take(&mut shard.known);
        }
        let known = Known {
            epoch,
            order,
            number,
        };
        shard.known.insert(player, known);
    }

    pub(in crate::board) fn remembered(&self, player: &str, epoch: u32) -> Option<Order> {
        let shard = self.shard(player);
        shard.known(player, epoch).map(|known| known.order)
    }

    pub(in crate::board) fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    pub(in crate::board) fn hidden(&self) -> u64 {
        self.hidden.load(Ordering::Relaxed)
    }

    fn shard(&self, player: &str) -> MutexGuard<'_, Shard> {
        let hash = xxhash_rust::xxh3::xxh3_64(player.as_bytes());
        lock(&self.shards[hash as usize % SHARDS])
    }

    /// The last number that the snapshot of that time has; of a snapshot of another process, none is known.
    fn reflected(&self, as_of_ms: u64) -> Option<u64> {
        let reflected = lock(&self.reflected);
        let found = reflected.iter().rev().find(|(of, _)| *of == as_of_ms);
        found.map(|(_, number)| *number)
    }
}

impl Shard {
    /// Of another epoch nothing is known: it began with an empty board.
    fn known(&self, player: &str, epoch: u32) -> Option<Known> {
        let known = self.known.get(player);
        let known = known.or_else(|| self.known_before.get(player)).copied();
        known.filter(|known| known.epoch == epoch)
    }
}

impl Noted {
    /// Whether it is for that epoch; 0: not known.
    fn counts(&self, epoch: u32) -> bool {
        self.epoch == epoch || self.epoch == 0 || epoch == 0
    }
}

impl Pending {
    /// As [`Overlay::pending`](crate::board::Overlay::pending), of a board in `epoch` (0 while it isn't known).
    pub(in crate::board) fn pending(
        &self,
        player: &str,
        base: Option<Order>,
        as_of_ms: u64,
        epoch: u32,
    ) -> Option<Order> {
        if self.records.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let shard = self.shard(player);
        let results = shard.players.get(player)?;
        // Of another process's snapshot nothing is known: then all that may be missing is.
        let mut done = self.reflected(as_of_ms).unwrap_or(0);
        let mut order = base;
        if base.is_none() && !matches!(self.law.kind(), Kind::Best(_)) {
            // Without what she had, a sum says nothing.
            let known = shard.known(player, epoch)?;
            (order, done) = (Some(known.order), known.number);
        }
        let mut any = false;
        let left = results.iter().filter(|result| result.number > done);
        for result in left.filter(|result| result.counts(epoch)) {
            if let Ok(new) = self.law.apply(order, result.points, result.at_ms) {
                order = Some(new);
                any = true;
            }
        }
        order.filter(|_| any)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

const SHARDS: usize = 16;
/// Results that readers are shown before the store has them.
const RECORDS_MAX: usize = 1 << 18;
/// Of one player; more are folded.
const RESULTS_MAX: usize = 32;
/// Snapshots that may still be read.
const REFLECTED_MAX: usize = 4;
/// Standings that are remembered.
const KNOWN_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests;
