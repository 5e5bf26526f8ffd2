//! A thread's memory for one fight after the other: nothing is freed during a fight, everything after it, and what one
//! large battle left behind is given back when no other needed as much for a while.

use bumpalo::Bump;

/// At the least, in bytes.
const START: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) struct Arena {
    bump: Bump,
    limit: usize,
    /// Calls after which the high water is looked at.
    every: u32,
    calls: u32,
    high_water: usize,
    pub trims: u64,
}

impl Arena {
    /// A fight gets `limit` bytes beyond what fights before it left behind, so that these take nothing away from it: half of
    /// the limit is there in any case (blocks double). One that wants more panics, which ends that fight only.
    pub fn new(limit: usize, every: u32) -> Self {
        let limit = limit.max(2 * START);
        Self {
            bump: bump(START, limit),
            limit,
            every: every.max(1),
            calls: 0,
            high_water: 0,
            trims: 0,
        }
    }

    pub fn bump(&self) -> &Bump {
        &self.bump
    }

    /// Bytes held between two fights.
    pub fn bytes(&self) -> usize {
        self.bump.allocated_bytes()
    }

    /// After each fight.
    pub fn reset(&mut self) {
        let held = self.bump.allocated_bytes();
        let used = held.saturating_sub(self.bump.chunk_capacity());
        self.high_water = self.high_water.max(used);
        self.bump.reset();
        allow(&self.bump, self.limit);
        self.calls += 1;
        if self.calls < self.every {
            return;
        }
        let wanted = self.high_water.max(START).next_power_of_two();
        if self.bump.allocated_bytes() > 2 * wanted {
            self.bump = bump(wanted.min(self.limit), self.limit);
            self.trims += 1;
        }
        self.calls = 0;
        self.high_water = 0;
    }
}

fn bump(capacity: usize, limit: usize) -> Bump {
    let bump = Bump::with_capacity(capacity);
    allow(&bump, limit);
    bump
}

fn allow(bump: &Bump, limit: usize) {
    bump.set_allocation_limit(Some(bump.allocated_bytes().saturating_add(limit)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_one_large_fight_is_given_back_when_no_other_needs_it() {
        let mut arena = Arena::new(16 << 20, 100);
        arena.bump().alloc_slice_fill_copy(4 << 20, 1_u8);
        arena.reset();
        assert!(arena.bytes() >= 4 << 20, "kept for the next one");
        for _ in 0..200 {
            arena.bump().alloc_slice_fill_copy(1_000, 1_u8);
            arena.reset();
        }
        assert!(arena.bytes() < 64 * 1024, "{} bytes", arena.bytes());
        assert_eq!(arena.trims, 1);
    }

    #[test]
    fn memory_that_every_fight_needs_is_kept() {
        let mut arena = Arena::new(16 << 20, 10);
        for _ in 0..100 {
            arena.bump().alloc_slice_fill_copy(1 << 20, 1_u8);
            arena.reset();
        }
        assert_eq!(arena.trims, 0);
    }

    #[test]
    fn what_a_fight_left_behind_takes_nothing_from_the_next_one() {
        for before in (1..10).map(|tenth| tenth * (1 << 20) / 10) {
            let mut arena = Arena::new(1 << 20, 1_000);
            arena.bump().alloc_slice_fill_copy(before, 1_u8);
            arena.reset();
            assert!(arena.bytes() <= 1 << 20);
            arena.bump().alloc_slice_fill_copy(500_000, 1_u8);
            assert!(arena.bytes() <= 2 << 20);
        }
    }

    #[test]
    #[should_panic(expected = "out of memory")]
    fn a_fight_can_not_take_more_than_the_limit() {
        let arena = Arena::new(1 << 20, 10);
        arena.bump().alloc_slice_fill_copy(2 << 20, 1_u8);
    }
}
