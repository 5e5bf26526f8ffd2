//! Histograms of bounded size and the ranking of those who come.

use crate::matchmaking::rules::MILLI;

/// Parts of each power of two.
const PARTS_LOG: u32 = 4;
const PARTS: usize = 1 << PARTS_LOG;
/// Powers of two up to 2^36 ms (two years), more is counted there.
const POWERS: usize = 37;

/// Numbers by size: a percentile is at most 1/16 too high.
#[derive(Clone, Debug)]
pub(super) struct Buckets {
    counts: Vec<u32>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Buckets {
    pub fn new() -> Self {
        Self {
            counts: vec![0; (POWERS - PARTS_LOG as usize + 1) * PARTS],
            count: 0,
            sum: 0,
            max: 0,
        }
    }

    pub fn record(&mut self, value: u64) {
        let at = place(value).min(self.counts.len() - 1);
        self.counts[at] = self.counts[at].saturating_add(1);
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn sum(&self) -> u64 {
        self.sum
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    pub fn percentile(&self, part: f64) -> u64 {
        let wanted = ((self.count as f64 * part / 100.0).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return highest(at).min(self.max);
            }
        }
        self.max
    }
}

fn place(value: u64) -> usize {
    if value < PARTS as u64 {
        return value as usize;
    }
    let power = value.ilog2();
    let part = (value >> (power - PARTS_LOG)) as usize - PARTS;
    (power - PARTS_LOG + 1) as usize * PARTS + part
}

/// The largest value of a bucket.
fn highest(at: usize) -> u64 {
    if at < PARTS {
        return at as u64;
    }
    let power = (at / PARTS - 1) as u32;
    (((at % PARTS + PARTS + 1) as u64) << power) - 1
}

const CELLS: usize = 1_024;
/// Values counted before the past counts half.
const MEMORY: u32 = 1_000_000;
/// Values between two looks at where the bands are.
const LOOK: u32 = 512;
/// Ends of the bands, in thousandths of those who come.
const ENDS: [u64; 6] = [10, 50, 250, 750, 950, 990];

/// The ranking of those who come, which forgets slowly.
#[derive(Debug)]
pub(super) struct Ranks {
    floor: f64,
    width: f64,
    counts: Vec<u32>,
    total: u32,
    /// Cells in which the bands end.
    ends: [usize; ENDS.len()],
    until_look: u32,
}

impl Ranks {
    pub fn new(floor: f64, ceiling: f64) -> Self {
        let mut ranks = Self {
            floor: floor * MILLI,
            width: ((ceiling - floor) * MILLI / CELLS as f64).max(1.0),
            counts: vec![0; CELLS],
            total: 0,
            ends: [0; ENDS.len()],
            until_look: 0,
        };
        // Until somebody came, everybody is in the middle.
        ranks.ends[3..].fill(CELLS);
        ranks
    }

    pub fn observe(&mut self, value: i32) {
        let cell = self.cell(value);
        self.counts[cell] += 1;
        self.total += 1;
        if self.total >= MEMORY {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
        self.until_look = self.until_look.saturating_sub(1);
        if self.until_look == 0 {
            // Often while few have come.
            self.until_look = LOOK.min(self.total);
            self.look();
        }
    }

    /// The band of a value: 0 holds the weakest hundredth, 6 the strongest.
    pub fn band(&self, value: i32) -> usize {
        let cell = self.cell(value);
        self.ends.partition_point(|end| *end <= cell)
    }

    fn cell(&self, value: i32) -> usize {
        (((f64::from(value) - self.floor) / self.width) as usize).min(CELLS - 1)
    }

    fn look(&mut self) {
        let mut seen = 0;
        let mut band = 0;
        for (cell, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            while band < ENDS.len() && seen * 1_000 > u64::from(self.total) * ENDS[band] {
                // The cell itself belongs to the middle's side: below it for weak bands, above it for strong ones.
                self.ends[band] = if band < 3 { cell } else { cell + 1 };
                band += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_at_most_a_sixteenth_too_high() {
        let mut buckets = Buckets::new();
        for value in 0..100_000 {
            buckets.record(value);
        }
        for (part, exact) in [(50.0, 49_999.0), (95.0, 94_999.0), (99.0, 98_999.0)] {
            let told = buckets.percentile(part) as f64;
            assert!(told >= exact && told <= exact * 1.0625, "{part}: {told}");
        }
        assert_eq!((buckets.count(), buckets.max()), (100_000, 99_999));
        assert_eq!(Buckets::new().percentile(99.0), 0);
        for value in [0, 1, 15, 16, 17, 31, 32, 1_000, 123_456_789] {
            assert!(highest(place(value)) >= value);
            assert!(place(highest(place(value))) == place(value));
        }
        let mut extreme = Buckets::new();
        extreme.record(u64::MAX);
        assert_eq!(extreme.max(), u64::MAX);
    }

    #[test]
    fn a_crowd_of_equals_is_the_middle() {
        let mut ranks = Ranks::new(-25.0, 75.0);
        assert_eq!(ranks.band(0), 3);
        for _ in 0..10_000 {
            ranks.observe(0);
        }
        assert_eq!(ranks.band(0), 3);
        assert_eq!(ranks.band(-20_000), 0);
        assert_eq!(ranks.band(50_000), 6);
    }
}
