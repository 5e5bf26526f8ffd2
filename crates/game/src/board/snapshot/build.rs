//! Makes snapshots: members come best first, are checked, counted in bytes, and kept while they fit.

use super::{BODIES_BYTES, BODIES_KEPT, FREE_SLOT, Shape, Snapshot, Version, hash, slots};
use crate::board::kind::{BadPlayer, BoardSpec, PlayerId, TOP_MAX};
use crate::board::order::{Law, Order};
use crate::board::sketch::{SKETCH_BYTES_MAX, Sketch};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("entry {index}: {source}")]
    Player {
        index: usize,
        #[source]
        source: BadPlayer,
    },
    /// Entries come best first: ascending by order, then by the player's id.
    #[error("entry {index} is not after the one before it")]
    OutOfOrder { index: usize },
    #[error("player {0} is on the board twice")]
    Twice(PlayerId),
    #[error("{entries} entries, but the board has {total} members")]
    Total { entries: usize, total: u64 },
}

/// Collects the top, best first, and makes a [`Snapshot`] of as many places as fit.
#[derive(Debug)]
pub struct Builder {
    board: Box<str>,
    law: u64,
    version: Version,
    as_of_ms: u64,
    wanted: usize,
    bytes_max: usize,
    total: Option<u64>,
    last: bool,
    orders: Vec<Order>,
    starts: Vec<u32>,
    names: String,
    full: bool,
    offered: usize,
    sketch: Sketch,
}

impl Builder {
    /// `as_of_ms`: Unix ms when the read of the store began.
    pub fn new(spec: &BoardSpec, law: &Law, version: Version, as_of_ms: u64) -> Self {
        Self {
            board: spec.name.as_str().into(),
            law: law.fingerprint(),
            version,
            as_of_ms,
            wanted: spec.top.min(TOP_MAX),
            bytes_max: spec.bytes_max,
            total: None,
            last: false,
            orders: Vec::new(),
            starts: vec![0],
            names: String::new(),
            full: false,
            offered: 0,
            sketch: Sketch::default(),
        }
    }

    /// The next member. False: there is no room for more (the specification's places or bytes are used up), and what comes
    /// after it isn't needed.
    pub fn push(&mut self, player: &str, order: Order) -> Result<bool, BuildError> {
        let index = self.offered;
        PlayerId::check(player).map_err(|source| BuildError::Player { index, source })?;
        if let Some(&previous) = self.orders.last()
            && !self.full
        {
            let start = self.starts[self.starts.len() - 2] as usize;
            if (previous, &self.names[start..]) >= (order, player) {
                return Err(BuildError::OutOfOrder { index });
            }
        }
        self.offered += 1;
        let shape = Shape {
            entries: self.orders.len() + 1,
            names: self.names.len() + player.len(),
            board: self.board.len(),
        };
        // The sketch is counted at its greatest: it may come later.
        self.full |=
            self.orders.len() >= self.wanted || shape.bytes(SKETCH_BYTES_MAX) > self.bytes_max;
        if self.full {
            return Ok(false);
        }
        self.orders.push(order);
        self.names.push_str(player);
        self.starts.push(self.names.len() as u32);
        Ok(true)
    }

    /// Places that were kept so far.
    pub fn len(&self) -> usize {
        self.orders.len()
    }

    pub fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// Members of the whole board; without it, those that were pushed.
    pub fn total(mut self, total: u64) -> Self {
        self.total = Some(total);
        self
    }

    /// Everybody else: for estimates of places outside the top.
    pub fn sketch(mut self, sketch: Sketch) -> Self {
        self.sketch = sketch;
        self
    }

    /// The last snapshot of a season: see [`Snapshot::is_final`].
    pub fn last(mut self, last: bool) -> Self {
        self.last = last;
        self
    }

    pub fn build(self) -> Result<Snapshot, BuildError> {
        let total = self.total.unwrap_or(self.offered as u64);
        if total < self.orders.len() as u64 {
            return Err(BuildError::Total {
                entries: self.orders.len(),
                total,
            });
        }
        let mut snapshot = Snapshot {
            board: self.board,
            law: self.law,
            version: self.version,
            as_of_ms: self.as_of_ms,
            tag: 0,
            confirmed_ms: AtomicU64::new(self.as_of_ms),
            total,
            last: self.last,
            slots: vec![FREE_SLOT; slots(self.orders.len())].into(),
            orders: self.orders.into(),
            starts: self.starts.into(),
            names: self.names.into(),
            // Names are chosen by players: nobody shall be able to make them collide.
            seed: fastrand::u64(..),
            sketch: self.sketch,
            bodies: [const { OnceLock::new() }; BODIES_KEPT],
            bodies_left: AtomicU64::new(BODIES_BYTES as u64),
        };
        snapshot.fill()?;
        snapshot.tag = snapshot.content();
        Ok(snapshot)
    }
}

impl Snapshot {
    fn content(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for word in [self.law, self.total, u64::from(self.last)] {
            hasher.update(&word.to_le_bytes());
        }
        for order in &self.orders {
            hasher.update(&order.bits().to_le_bytes());
        }
        for start in &self.starts {
            hasher.update(&start.to_le_bytes());
        }
        hasher.update(self.names.as_bytes());
        hasher.digest()
    }

    fn fill(&mut self) -> Result<(), BuildError> {
        let mask = self.slots.len().wrapping_sub(1);
        for index in 0..self.orders.len() {
            let player = &self.names[self.starts[index] as usize..self.starts[index + 1] as usize];
            let mut at = hash(player, self.seed) as usize & mask;
            while self.slots[at] != FREE_SLOT {
                let other = usize::from(self.slots[at]);
                let (from, to) = (self.starts[other], self.starts[other + 1]);
                if &self.names[from as usize..to as usize] == player {
                    let twice = PlayerId::parse(player);
                    return Err(twice.map_or_else(
                        |source| BuildError::Player { index, source },
                        BuildError::Twice,
                    ));
                }
                at = (at + 1) & mask;
            }
            self.slots[at] = index as u16;
        }
        Ok(())
    }
}
