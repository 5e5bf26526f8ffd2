//! Durations in fixed buckets. They contain every bound of Istio's, so its histogram is a sum of ours, and finer ones
//! between them, so that percentiles mean something.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{bump, bump_at};

/// Upper bounds in µs, inclusive; one more bucket takes what is longer.
pub const BOUNDS_US: [u64; 45] = [
    100,
    200,
    300,
    400,
    500,
    650,
    800,
    1_000,
    1_250,
    1_500,
    2_000,
    2_500,
    3_000,
    4_000,
    5_000,
    6_500,
    8_000,
    10_000,
    12_500,
    15_000,
    20_000,
    25_000,
    35_000,
    50_000,
    75_000,
    100_000,
    150_000,
    200_000,
    250_000,
    350_000,
    500_000,
    750_000,
    1_000_000,
    1_500_000,
    2_500_000,
    5_000_000,
    7_500_000,
    10_000_000,
    20_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

const BUCKETS: usize = BOUNDS_US.len() + 1;

pub(super) struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            sum_us: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub(super) fn record(&self, duration_us: u64) {
        bump_at(
            &self.counts,
            BOUNDS_US.partition_point(|bound| *bound < duration_us),
        );
        bump(&self.sum_us, duration_us);
    }

    pub(super) fn add_to(&self, durations: &mut Durations) {
        for (sum, count) in durations.counts.iter_mut().zip(&self.counts) {
            *sum += count.load(Ordering::Relaxed);
        }
        durations.sum_us += self.sum_us.load(Ordering::Relaxed);
    }
}

/// A histogram over [`BOUNDS_US`]; the last count has no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durations {
    pub counts: Vec<u64>,
    pub sum_us: u64,
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            sum_us: 0,
        }
    }
}

impl Durations {
    pub(super) fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
        self.sum_us += other.sum_us;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How many took at most `bound_us`; exact when that is one of [`BOUNDS_US`].
    pub fn at_most(&self, bound_us: u64) -> u64 {
        self.counts
            .iter()
            .zip(&BOUNDS_US)
            .filter(|(_, bound)| **bound <= bound_us)
            .map(|(count, _)| count)
            .sum()
    }
}
