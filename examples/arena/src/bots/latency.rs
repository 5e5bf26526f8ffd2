//! A histogram of latencies in fixed memory: eight buckets for each power of two of a microsecond, so quantiles are
//! at most an eighth too high.

use std::time::Duration;

const STEPS: u32 = 8;
const BUCKETS: usize = 40 * STEPS as usize;

pub struct Latencies {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            total: 0,
        }
    }
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(micros).min(BUCKETS - 1)) {
            *count += 1;
        }
        self.total += 1;
    }

    /// The upper edge of the quantile's bucket in milliseconds, 0 when nothing was recorded.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let wanted = (self.total as f64 * quantile).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return upper(bucket) as f64 / 1000.0;
            }
        }
        0.0
    }
}

/// Values below [`STEPS`] have a bucket each, the others share one with their next three bits.
fn bucket(micros: u64) -> usize {
    if micros < u64::from(STEPS) {
        return micros as usize;
    }
    let power = micros.ilog2() - STEPS.ilog2();
    ((power + 1) * STEPS) as usize + ((micros >> power) as usize & (STEPS as usize - 1))
}

fn upper(bucket: usize) -> u64 {
    let (row, step) = (bucket as u32 / STEPS, bucket as u64 % u64::from(STEPS));
    match row.checked_sub(1) {
        None => step,
        Some(power) => ((u64::from(STEPS) + step + 1) << power) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_at_most_its_buckets_edge_and_an_eighth_below_it() {
        for micros in (0..5_000).chain([123_456, 9_999_999, u64::from(u32::MAX)]) {
            let edge = upper(bucket(micros));
            assert!(
                edge >= micros && edge as f64 <= micros as f64 * 1.125 + 1.0,
                "{micros} {edge}"
            );
        }
    }

    #[test]
    fn quantiles_of_a_row_of_numbers() {
        let mut latencies = Latencies::default();
        (1..=1000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        assert!((500.0..563.0).contains(&latencies.quantile_ms(0.5)));
        assert!((990.0..1115.0).contains(&latencies.quantile_ms(0.99)));
        assert_eq!(Latencies::default().quantile_ms(0.99), 0.0);
    }
}
