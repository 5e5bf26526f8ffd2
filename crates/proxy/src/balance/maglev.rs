//! Maglev (Eisenbud et al., NSDI 2016): every member fills the table's slots in an order of its own, as often as its weight
//! says. Table, orders and hashes are Envoy's, so that it sends a key where we do.

use xxhash_rust::xxh64::xxh64;

/// Envoy's default; a prime.
pub const TABLE_SIZE: usize = 65_537;
/// Further hashes of a key before slots are looked at one by one.
const REHASHES: u64 = 16;

pub struct Maglev {
    /// Places in `members`.
    slots: Box<[u16]>,
    members: Box<[u32]>,
}

struct Filling {
    offset: u64,
    skip: u64,
    next: u64,
    weight: f64,
    target: f64,
}

impl Maglev {
    /// Of members with the text that each is known by everywhere, and its weight. Only the first 65,535 get slots.
    pub fn new(members: &[(u32, String, u32)]) -> Self {
        let mut sorted: Vec<_> = members.iter().take(usize::from(u16::MAX)).collect();
        sorted.sort_by(|(_, a, _), (_, b, _)| a.cmp(b));
        let total: f64 = sorted.iter().map(|(.., weight)| f64::from(*weight)).sum();
        let size = TABLE_SIZE as u64;
        let filling = |(_, key, weight): &&(u32, String, u32)| Filling {
            offset: xxh64(key.as_bytes(), 0) % size,
            skip: xxh64(key.as_bytes(), 1) % (size - 1) + 1,
            next: 0,
            weight: f64::from(*weight) / total,
            target: 0.0,
        };
        let mut fillings: Vec<Filling> = sorted.iter().map(filling).collect();
        let most = fillings
            .iter()
            .fold(0.0, |most, f| f64::max(most, f.weight));
        let mut slots = vec![EMPTY; if fillings.is_empty() { 0 } else { TABLE_SIZE }];
        let mut filled = 0;
        for iteration in 1u32.. {
            if filled >= slots.len() {
                break;
            }
            for (place, filling) in (0u16..).zip(&mut fillings) {
                if filled >= slots.len() {
                    break;
                }
                // One whose weight is a third of the greatest has its turn in every third iteration.
                if f64::from(iteration) * filling.weight < filling.target {
                    continue;
                }
                filling.target += most;
                while let Some(slot) = slots.get_mut(filling.slot()) {
                    filling.next += 1;
                    if *slot == EMPTY {
                        *slot = place;
                        filled += 1;
                        break;
                    }
                }
            }
        }
        Self {
            slots: slots.into(),
            members: sorted.iter().map(|(member, ..)| *member).collect(),
        }
    }

    /// The member of `hash`; while that is not eligible, the one of another hash made of it.
    #[inline]
    pub fn find(&self, hash: u64, eligible: impl Fn(u32) -> bool) -> Option<u32> {
        let at = |hash: u64| {
            let place = *self.slots.get((hash % TABLE_SIZE as u64) as usize)?;
            self.members.get(usize::from(place)).copied()
        };
        let first = at(hash)?;
        if eligible(first) {
            return Some(first);
        }
        // Envoy's way to other hosts for later attempts.
        let others = (1..=REHASHES).filter_map(|attempt| at(hash ^ (u64::MAX - attempt + 1)));
        let found = others.into_iter().find(|member| eligible(*member));
        found.or_else(|| {
            let start = (hash % self.members.len().max(1) as u64) as usize;
            let (before, after) = self.members.split_at_checked(start)?;
            let mut round = after.iter().chain(before).copied();
            round.find(|member| eligible(*member))
        })
    }
}

impl Filling {
    fn slot(&self) -> usize {
        ((self.offset + self.next * self.skip) % TABLE_SIZE as u64) as usize
    }
}

const EMPTY: u16 = u16::MAX;
