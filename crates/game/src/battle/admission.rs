//! The door: how many fights are in flight, by class, in one word. Together they stay below the limit; a class that has
//! less than its share of the limit gets in even so, for what others borrowed is owed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::call::CLASSES;

/// Bits per class in the word.
const BITS: u32 = 16;
/// Highest limit. Threads may overshoot by one each for a moment, and shares by as much as is lent.
pub(crate) const LIMIT_MAX: u32 = 16_384;

#[derive(Debug)]
pub(crate) struct Admission {
    word: AtomicU64,
    limit: AtomicU32,
    shares: [u64; CLASSES],
    whole: u64,
}

impl Admission {
    pub fn new(limit: u32, shares: [u32; CLASSES]) -> Self {
        let shares = shares.map(u64::from);
        Self {
            word: AtomicU64::new(0),
            limit: AtomicU32::new(limit.min(LIMIT_MAX)),
            shares,
            whole: shares.iter().sum::<u64>().max(1),
        }
    }

    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit.min(LIMIT_MAX), Ordering::Relaxed);
    }

    /// Whether one more of `class` gets in; then [`Admission::leave`] is owed.
    #[must_use]
    pub fn enter(&self, class: usize) -> bool {
        let one = 1 << (BITS * class as u32);
        let before = self.word.fetch_add(one, Ordering::Relaxed);
        let limit = u64::from(self.limit());
        let own = field(before, class);
        let owed = || own * self.whole < limit * self.shares.get(class).copied().unwrap_or(0);
        if total(before) < limit || owed() {
            return true;
        }
        self.word.fetch_sub(one, Ordering::Relaxed);
        false
    }

    pub fn leave(&self, class: usize) {
        (self.word).fetch_sub(1 << (BITS * class as u32), Ordering::Release);
    }

    pub fn in_flight(&self) -> [u32; CLASSES] {
        let word = self.word.load(Ordering::Acquire);
        std::array::from_fn(|class| field(word, class) as u32)
    }

    pub fn total(&self) -> u32 {
        total(self.word.load(Ordering::Acquire)) as u32
    }
}

fn field(word: u64, class: usize) -> u64 {
    word >> (BITS * class as u32) & (u64::MAX >> (64 - BITS))
}

fn total(word: u64) -> u64 {
    (0..CLASSES).map(|class| field(word, class)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_class_alone_may_use_all_and_no_more() {
        let door = Admission::new(100, [70, 20, 10]);
        assert_eq!((0..1_000).filter(|_| door.enter(2)).count(), 100);
        assert_eq!(door.in_flight(), [0, 0, 100]);
    }

    #[test]
    fn a_class_gets_its_share_though_others_have_borrowed_it() {
        let door = Admission::new(100, [70, 20, 10]);
        while door.enter(2) {}
        assert_eq!((0..1_000).filter(|_| door.enter(0)).count(), 70);
        assert_eq!((0..1_000).filter(|_| door.enter(1)).count(), 20);
        assert!(!door.enter(2), "what was borrowed is not lent again");
        assert_eq!(door.total(), 190);
    }

    #[test]
    fn who_leaves_makes_room() {
        let door = Admission::new(2, [1, 1, 1]);
        assert!(door.enter(0) && door.enter(0) && !door.enter(0));
        door.leave(0);
        assert!(door.enter(0) && !door.enter(0));
    }
}
