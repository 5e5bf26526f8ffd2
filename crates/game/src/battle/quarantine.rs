//! Inputs that made a battle panic. The second time puts an input away; time lets it out, and a new version of the rules
//! too, for the hash that names it includes both. Bounded: the one that has been quiet for longest makes room.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::lock;

/// Panics that put an input away.
const PANICS: u32 = 2;

#[derive(Debug)]
pub(crate) struct Quarantine {
    /// How many there are, to be read without the lock (which only panics and their aftermath take).
    len: AtomicUsize,
    seen: Mutex<HashMap<u64, Seen>>,
    max: usize,
    /// Nanoseconds.
    forget: u64,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    panics: u32,
    last: u64,
}

impl Quarantine {
    pub fn new(max: usize, forget: u64) -> Self {
        Self {
            len: AtomicUsize::new(0),
            seen: Mutex::default(),
            max: max.max(1),
            forget,
        }
    }

    /// Whether there is anything to look for.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub fn panicked(&self, hash: u64, now: u64) {
        let mut seen = lock(&self.seen);
        if !seen.contains_key(&hash) && seen.len() >= self.max {
            seen.retain(|_, seen| now.saturating_sub(seen.last) < self.forget);
            let quietest = seen.iter().min_by_key(|(_, seen)| seen.last);
            if let Some((&quietest, _)) = quietest.filter(|_| seen.len() >= self.max) {
                seen.remove(&quietest);
            }
        }
        let entry = seen.entry(hash).or_insert(Seen {
            panics: 0,
            last: now,
        });
        if now.saturating_sub(entry.last) >= self.forget {
            entry.panics = 0;
        }
        entry.panics = entry.panics.saturating_add(1);
        entry.last = now;
        self.len.store(seen.len(), Ordering::Relaxed);
    }

    /// Lets out who has been quiet for long enough.
    pub fn forget(&self, now: u64) {
        if self.is_empty() {
            return;
        }
        let mut seen = lock(&self.seen);
        seen.retain(|_, seen| now.saturating_sub(seen.last) < self.forget);
        self.len.store(seen.len(), Ordering::Relaxed);
    }

    pub fn holds(&self, hash: u64, now: u64) -> bool {
        if self.is_empty() {
            return false;
        }
        lock(&self.seen).get(&hash).is_some_and(|entry| {
            entry.panics >= PANICS && now.saturating_sub(entry.last) < self.forget
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_panic_puts_an_input_away_and_time_lets_it_out() {
        let ward = Quarantine::new(10, 1_000);
        ward.panicked(7, 0);
        assert!(!ward.holds(7, 1), "once may be chance");
        ward.panicked(7, 100);
        assert!(ward.holds(7, 101));
        assert!(!ward.holds(8, 101));
        assert!(!ward.holds(7, 1_100));
        ward.forget(1_099);
        assert!(ward.holds(7, 1_099));
        ward.forget(1_100);
        assert!(ward.is_empty(), "and nobody looks for it any more");
    }

    #[test]
    fn panics_far_apart_do_not_add_up() {
        let ward = Quarantine::new(10, 1_000);
        ward.panicked(7, 0);
        ward.panicked(7, 5_000);
        assert!(!ward.holds(7, 5_001));
    }

    #[test]
    fn the_table_is_bounded_and_the_quietest_leaves() {
        let ward = Quarantine::new(4, 1_000_000);
        for _ in 0..2 {
            for hash in 0..4 {
                ward.panicked(hash, 10 + hash);
            }
        }
        ward.panicked(99, 50);
        assert_eq!(ward.len(), 4);
        assert!(!ward.holds(0, 51));
        assert!(ward.holds(3, 51));
    }
}
