//! One immutable picture of a board: the best places in order, an index from player to place, a sketch of everybody else.
//! A [`Builder`] makes it within a number of bytes that it counts, and keeps fewer places rather than take more.
//! Everything that a reader can learn from a board comes from one of these, so that it all fits together.

mod build;

pub use build::{BuildError, Builder};

use super::order::Order;
use super::sketch::Sketch;
use bytes::Bytes;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bodies of pages that a version may keep once they were written for somebody.
pub const BODIES_KEPT: usize = 16;
/// What those bodies may take, of the snapshot's bytes.
pub const BODIES_BYTES: usize = 96 << 10;
/// Beside a body's own bytes: its slot and what `Bytes` allocates to share it.
const BODY_OVERHEAD: usize = 64;
/// The counts of the shared pointer around a snapshot.
const ARC_OVERHEAD: usize = 16;
const FREE_SLOT: u16 = u16::MAX;

/// `epoch << 40 | seq`: the epoch of whoever may publish (24 bits), and his count (40 bits). Higher is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(u64);

impl Version {
    pub const SEQ_BITS: u32 = 40;

    /// Bits above 24 of `epoch` and above 40 of `seq` are cut off.
    pub fn new(epoch: u32, seq: u64) -> Self {
        let seq = seq & ((1 << Self::SEQ_BITS) - 1);
        Self(u64::from(epoch) << Self::SEQ_BITS | seq)
    }

    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    pub fn epoch(self) -> u32 {
        (self.0 >> Self::SEQ_BITS) as u32
    }

    pub fn seq(self) -> u64 {
        self.0 & ((1 << Self::SEQ_BITS) - 1)
    }

    /// The version after this one, of the same epoch.
    pub fn next(self) -> Self {
        Self::new(self.epoch(), self.seq() + 1)
    }
}

/// `epoch.seq`, as in bodies and `ETag`s.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch(), self.seq())
    }
}

/// One member of the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// From 1.
    pub place: u64,
    pub player: &'a str,
    pub order: Order,
}

/// See the module. At most [`BoardSpec::bytes_max`](super::BoardSpec) bytes of memory, everything included.
pub struct Snapshot {
    board: Box<str>,
    law: u64,
    version: Version,
    as_of_ms: u64,
    confirmed_ms: AtomicU64,
    tag: u64,
    total: u64,
    last: bool,
    orders: Box<[Order]>,
    /// Where each name begins in `names`; one more than there are entries.
    starts: Box<[u32]>,
    names: Box<str>,
    /// Open addressing by hash of the name: places from 0, or [`FREE_SLOT`].
    slots: Box<[u16]>,
    seed: u64,
    sketch: Sketch,
    bodies: [OnceLock<Body>; BODIES_KEPT],
    bodies_left: AtomicU64,
}

struct Body {
    from: u16,
    to: u16,
    bytes: Bytes,
}

impl Snapshot {
    pub fn board(&self) -> &str {
        &self.board
    }

    /// [`Law::fingerprint`](super::Law::fingerprint) of the rule by which its orders were made.
    pub fn law(&self) -> u64 {
        self.law
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// A hash of members, orders and total, the same on every machine: two processes that gave one version number to two
    /// pictures are told apart by it, and tokens of one hold at the other where the pictures agree.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// `"version-tag-as_of"`, with the quotes of an `ETag`: bodies tell `as_of`, and faded scores as of it.
    pub fn etag(&self) -> String {
        format!("\"{}-{:016x}-{:x}\"", self.version, self.tag, self.as_of_ms)
    }

    /// The board looked like this at that time (Unix ms, begin of the read).
    pub fn as_of_ms(&self) -> u64 {
        self.as_of_ms
    }

    /// Since the store last said so: at [`Self::as_of_ms`], or when it was confirmed later.
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.confirmed_ms())
    }

    pub fn confirmed_ms(&self) -> u64 {
        self.confirmed_ms.load(Ordering::Relaxed)
    }

    pub(super) fn confirm(&self, now_ms: u64) {
        self.confirmed_ms.fetch_max(now_ms, Ordering::Relaxed);
    }

    /// Members of the whole board.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Places in this snapshot: `k_effective`.
    pub fn len(&self) -> usize {
        self.orders.len()
    }

    pub fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// The season is over: no later snapshot replaces this one, and it doesn't grow old.
    pub fn is_final(&self) -> bool {
        self.last
    }

    pub fn sketch(&self) -> &Sketch {
        &self.sketch
    }

    /// `index` from 0.
    pub fn entry(&self, index: usize) -> Option<Entry<'_>> {
        let order = *self.orders.get(index)?;
        let (from, to) = (*self.starts.get(index)?, *self.starts.get(index + 1)?);
        Some(Entry {
            place: index as u64 + 1,
            player: self.names.get(from as usize..to as usize)?,
            order,
        })
    }

    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry<'_>> {
        (0..self.len()).map(|index| Entry {
            place: index as u64 + 1,
            player: &self.names[self.starts[index] as usize..self.starts[index + 1] as usize],
            order: self.orders[index],
        })
    }

    /// Her index from 0, if she is in the top.
    pub fn index(&self, player: &str) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash(player, self.seed) as usize & mask;
        // Slots are never all taken, so that this ends.
        loop {
            let slot = *self.slots.get(at)?;
            if slot == FREE_SLOT {
                return None;
            }
            if self.entry(slot.into())?.player == player {
                return Some(slot.into());
            }
            at = (at + 1) & mask;
        }
    }

    /// How many of the top are better than (`order`, `player`): the index that she would have.
    pub fn index_of(&self, order: Order, player: &str) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let better = self
                .entry(middle)
                .is_some_and(|entry| (entry.order, entry.player) < (order, player));
            if better {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Bytes of memory, everything included: the struct, what it points to, what its bodies may come to.
    pub fn bytes(&self) -> usize {
        let shape = Shape {
            entries: self.len(),
            names: self.names.len(),
            board: self.board.len(),
        };
        shape.bytes(self.sketch.bytes())
    }

    /// The body of the page of these indices, written by `write` if nobody asked before. At most [`BODIES_KEPT`] of them,
    /// and [`BODIES_BYTES`], are kept with the version; they go with it.
    pub(super) fn body(&self, from: usize, to: usize, write: impl FnOnce() -> Vec<u8>) -> Bytes {
        let (Ok(from), Ok(to)) = (u16::try_from(from), u16::try_from(to)) else {
            return write().into();
        };
        for slot in &self.bodies {
            match slot.get() {
                Some(body) if (body.from, body.to) == (from, to) => return body.bytes.clone(),
                Some(_) => {}
                None => return self.keep_body(slot, from, to, write()),
            }
        }
        write().into()
    }

    fn keep_body(&self, slot: &OnceLock<Body>, from: u16, to: u16, text: Vec<u8>) -> Bytes {
        let bytes = Bytes::from(text.into_boxed_slice());
        let cost = (bytes.len() + BODY_OVERHEAD) as u64;
        let left = &self.bodies_left;
        let took = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(cost)
        });
        if took.is_ok() {
            let body = Body {
                from,
                to,
                bytes: bytes.clone(),
            };
            if slot.set(body).is_err() {
                left.fetch_add(cost, Ordering::Relaxed);
            }
        }
        bytes
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("board", &self.board)
            .field("version", &self.version)
            .field("as_of_ms", &self.as_of_ms)
            .field("total", &self.total)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// What decides how many bytes a snapshot takes.
struct Shape {
    entries: usize,
    names: usize,
    board: usize,
}

impl Shape {
    fn bytes(&self, sketch: usize) -> usize {
        ARC_OVERHEAD
            + size_of::<Snapshot>()
            + self.entries * size_of::<Order>()
            + (self.entries + 1) * size_of::<u32>()
            + slots(self.entries) * size_of::<u16>()
            + self.names
            + self.board
            + sketch
            + BODIES_BYTES
    }
}

/// A power of two of which at least a fifth stays free.
fn slots(entries: usize) -> usize {
    if entries == 0 {
        return 0;
    }
    (entries + entries / 4 + 1).next_power_of_two()
}

fn hash(player: &str, seed: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(player.as_bytes(), seed)
}

#[cfg(test)]
mod tests;
