//! What a refresher asks Redis: the small step from what it knows, or all of the top again; and what it says to one that has
//! lost its past.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::mirror::Mirror;
use super::{CHUNK, Known, Refresher};
use crate::board::kind::PlayerId;
use crate::board::now_ms;
use crate::board::order::Order;
use crate::board::redis::link::{Failure, StoreError};
use crate::board::redis::script::{self, Head, Reading};
use crate::board::sketch::Sketch;
use crate::board::snapshot::Version;

impl Refresher {
    /// What one call says about the board; after a change of epoch, the second.
    pub(super) async fn head(&mut self) -> Result<Head, StoreError> {
        Ok(self.read(None, &[]).await?.head)
    }

    pub(super) async fn read(
        &mut self,
        since: Option<u64>,
        places: &[u64],
    ) -> Result<Reading, StoreError> {
        for _ in 0..EPOCHS_IN_A_ROW_MAX {
            let epoch = self.shared.progress.epoch.load(Ordering::Relaxed).max(1);
            let (source, arrived) = (self.shared.source(), self.shared.arrived());
            let call = script::read(&self.shared.keys, epoch, source, since, places);
            let reading = script::reading(&self.link.call(&call).await?)?;
            self.shared.progress.reached(reading.head.epoch);
            self.shared
                .progress
                .foreign
                .fetch_add(reading.foreign, Ordering::Relaxed);
            // An earlier epoch than readers have seen is for `heal`.
            if reading.head.epoch <= epoch {
                let law = self.board().law().fingerprint();
                if reading.head.law != 0 && reading.head.law != law {
                    return Err(Failure::Foreign.into());
                }
                self.shared.compare(&reading.head, arrived);
                return Ok(reading);
            }
        }
        Err(Failure::Other.into())
    }

    /// The `seq` that the mirror is of, while it is good for a small step.
    pub(super) fn since(&self) -> Option<u64> {
        let known = self.mirror.as_ref()?;
        let fresh = known.read_at.elapsed() < self.shared.refresh.full_every
            && known.connection == self.link.connections();
        fresh.then_some(known.seq)
    }

    /// What was read is the small step from the mirror.
    pub(super) fn follows(&self, reading: &Reading) -> bool {
        let head = &reading.head;
        let known = self.mirror.as_ref();
        known.is_some_and(|known| known.epoch == head.epoch && known.born == head.born)
            && self.since().is_some()
            && reading.changes.is_some()
    }

    /// The top in chunks, and then what changed while they were read: together one instant, the last call's.
    pub(super) async fn read_all(&mut self, mut head: Head) -> Result<(u64, Reading), StoreError> {
        self.shared.progress.full.fetch_add(1, Ordering::Relaxed);
        for _ in 0..EPOCHS_IN_A_ROW_MAX {
            let mirror = self.chunks(head.epoch).await?;
            let began_ms = now_ms();
            let connection = self.link.connections();
            let places = self.places(head.total);
            let reading = self.read(Some(head.seq), &places).await?;
            if reading.head.epoch == head.epoch
                && reading.head.born == head.born
                && reading.changes.is_some()
            {
                self.mirror = Some(Known {
                    mirror,
                    epoch: head.epoch,
                    seq: head.seq,
                    born: head.born,
                    connection,
                    read_at: Instant::now(),
                });
                return Ok((began_ms, reading));
            }
            head = reading.head;
        }
        Err(Failure::Other.into())
    }

    async fn chunks(&mut self, epoch: u32) -> Result<Mirror, StoreError> {
        let wanted = self.wanted();
        let mut members: Vec<(PlayerId, Order)> = Vec::new();
        let mut from: Option<Order> = None;
        let (mut most, mut known) = (wanted.min(CHUNK), 0);
        loop {
            let command = script::chunk(&self.shared.keys, epoch, from, most);
            let (read, sent) = script::members(&self.link.query(&command).await?)?;
            let whole = sent < most;
            let foreign = (sent - read.len()) as u64;
            self.shared
                .progress
                .foreign
                .fetch_add(foreign, Ordering::Relaxed);
            let new = read.iter().filter(|(player, order)| {
                members
                    .last()
                    .is_none_or(|(who, at)| (order, player) > (at, who))
            });
            let new = new.count();
            known += new;
            from = read.last().map(|(_, order)| *order).or(from);
            members.extend(read);
            if whole || known >= wanted {
                return Ok(Mirror::collect(members, whole));
            }
            if new == 0 {
                // A whole chunk of ties that are known, or of strangers: the next must reach beyond them.
                most *= 2;
                if most > CHUNK_MAX {
                    return Err(Failure::Protocol.into());
                }
            }
        }
    }

    /// Members that the mirror should have: some more than a snapshot takes, so that it can lose a few.
    pub(super) fn wanted(&self) -> usize {
        let top = self.fitted.unwrap_or(self.board().spec().top);
        top + top / 8 + 64
    }

    /// Whom to ask about for estimates; nobody while those that readers have are good.
    pub(super) fn places(&mut self, total: u64) -> Vec<u64> {
        let every = self.shared.refresh.sketch_every;
        if self.sketched_at.is_some_and(|at| at.elapsed() < every) {
            return Vec::new();
        }
        let top = self
            .board()
            .snapshot()
            .map_or(self.board().spec().top, |newest| newest.len().max(1));
        self.asked = (top as u64, total);
        Sketch::ladder(top as u64, total)
    }

    /// The latest that anybody here knows the store to have said.
    pub(super) fn seen(&self) -> Version {
        let newest = self.board().snapshot().map(|newest| newest.version());
        let reached = self.shared.progress.epoch.load(Ordering::Relaxed);
        newest.unwrap_or_default().max(Version::new(reached, 0))
    }

    /// Readers have seen more than the store knows: it lost its newest data. What it says next must have higher numbers.
    pub(super) async fn heal(&mut self, seen: Version, head: &Head) -> Result<bool, StoreError> {
        let found = Version::new(head.epoch, head.seq);
        if found >= seen {
            return Ok(false);
        }
        tracing::warn!(board = %self.board().spec().name, %seen, %found, "redis has lost data: versions go on after what readers saw");
        self.mend(seen).await?;
        Ok(true)
    }

    /// The board's next version comes after `seen`.
    pub(super) async fn mend(&mut self, seen: Version) -> Result<(), StoreError> {
        let call = script::heal(&self.shared.keys, seen.epoch(), seen.seq());
        self.link.call(&call).await?;
        self.mirror = None;
        self.shared.progress.healed.fetch_add(1, Ordering::Relaxed);
        self.shared.progress.wake.notify_one();
        Ok(())
    }
}

const CHUNK_MAX: usize = 1 << 19;
/// A board whose epoch changes again and again while it is read is left for the next round.
const EPOCHS_IN_A_ROW_MAX: usize = 3;
