//! What all callers saw of one service, growing for as long as this process lives.

/// Ended requests of a service, whoever called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub failures: u64,
    /// By the bounds of reports; empty, or [`BUCKETS`] of them. A stock Envoy tells none.
    pub latency: Vec<u64>,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        let sum = |a: &mut u64, b: u64| *a = a.saturating_add(b);
        sum(&mut self.requests, other.requests);
        sum(&mut self.failures, other.failures);
        if self.latency.len() < other.latency.len() {
            self.latency.resize(other.latency.len().min(BUCKETS), 0);
        }
        for (mine, theirs) in self.latency.iter_mut().zip(&other.latency) {
            sum(mine, *theirs);
        }
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let earlier = before.latency.iter().copied().chain(std::iter::repeat(0));
        let latency = self.latency.iter().zip(earlier);
        Self {
            requests: self.requests.saturating_sub(before.requests),
            failures: self.failures.saturating_sub(before.failures),
            latency: latency
                .map(|(now, then)| now.saturating_sub(then))
                .collect(),
        }
    }

    /// Of how many requests the latency is known.
    pub fn measured(&self) -> u64 {
        self.latency
            .iter()
            .fold(0, |sum: u64, count| sum.saturating_add(*count))
    }

    /// None without a latency.
    pub fn p99_us(&self) -> Option<u64> {
        quantile_ms(&self.latency, 0.99).map(|ms| (ms * 1000.0).round() as u64)
    }
}

/// The `q`-quantile in milliseconds, interpolated within its bucket; none without a count.
pub fn quantile_ms(latency: &[u64], q: f64) -> Option<f64> {
    // Not as integers: the counts are a peer's, and could overflow together.
    let all: f64 = latency.iter().map(|count| *count as f64).sum();
    if all == 0.0 {
        return None;
    }
    let rank = q * all;
    let mut below = 0.0;
    for (bucket, count) in latency.iter().enumerate() {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            let lower = bucket
                .checked_sub(1)
                .and_then(|b| BOUNDS_US.get(b))
                .copied()
                .unwrap_or(0) as f64;
            // Above the last bound nothing is known but that.
            let upper = BOUNDS_US.get(bucket).map_or(lower, |bound| *bound as f64);
            return Some((lower + (upper - lower) * ((rank - below) / count)) / 1000.0);
        }
        below += count;
    }
    None
}

/// Upper bounds of the latency buckets, in microseconds: about 25 % apart where games live.
pub const BOUNDS_US: [u64; 40] = [
    100, 150, 200, 250, 300, 400, 500, 600, 800, 1_000, 1_250, 1_500, 2_000, 2_500, 3_000, 4_000,
    5_000, 6_000, 8_000, 10_000, 12_500, 15_000, 20_000, 25_000, 30_000, 40_000, 50_000, 75_000,
    100_000, 150_000, 200_000, 300_000, 500_000, 750_000, 1_000_000, 1_500_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000,
];
/// One more for what lies above.
pub const BUCKETS: usize = BOUNDS_US.len() + 1;
