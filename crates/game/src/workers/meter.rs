//! What a policy's sample is made of: counts since the sample before, and latencies over a sliding window of ten
//! seconds. Synchronous and without a clock, so that the simulator measures as the live pool does.

use std::time::Duration;

use super::policy::Sample;

/// What quantiles and means look back.
pub const WINDOW: Duration = Duration::from_secs(10);
/// The window slides in steps of half a second.
const SLOTS: usize = 20;
/// Buckets per doubling: a quantile is off by at most 1.6 %.
const PER_DOUBLING: u32 = 32;
const DOUBLINGS: u32 = 28;
/// Of microseconds: exact below 32 µs, then 32 buckets per doubling up to 71 minutes.
const BUCKETS: usize = (PER_DOUBLING * DOUBLINGS) as usize;

/// 80 KiB, whatever is put in.
#[derive(Clone, Debug)]
pub struct Window {
    slots: Vec<Slot>,
    /// Sums over the slots.
    totals: Box<[u64; BUCKETS]>,
    /// Which half second since the start the newest slot is for.
    newest: u64,
}

#[derive(Clone, Debug)]
struct Slot {
    counts: Box<[u32; BUCKETS]>,
    count: u64,
    sum_us: u64,
}

impl Default for Window {
    fn default() -> Self {
        let slot = Slot {
            counts: Box::new([0; BUCKETS]),
            count: 0,
            sum_us: 0,
        };
        Self {
            slots: vec![slot; SLOTS],
            totals: Box::new([0; BUCKETS]),
            newest: 0,
        }
    }
}

impl Window {
    pub fn put(&mut self, value: Duration, now: Duration) {
        self.slide(now);
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let slot = &mut self.slots[(self.newest % SLOTS as u64) as usize];
        let bucket = bucket_of(us);
        slot.counts[bucket] += 1;
        self.totals[bucket] += 1;
        slot.count += 1;
        slot.sum_us = slot.sum_us.saturating_add(us);
    }

    /// The value that `part` (0 to 1) of the window's values don't exceed, in ms; 0 of an empty window.
    pub fn quantile_ms(&mut self, part: f64, now: Duration) -> f64 {
        self.slide(now);
        let count: u64 = self.slots.iter().map(|slot| slot.count).sum();
        if count == 0 {
            return 0.0;
        }
        let rank = ((count as f64 * part).ceil() as u64).clamp(1, count);
        let mut below = 0;
        for (bucket, &here) in self.totals.iter().enumerate() {
            if below + here >= rank {
                let (from, to) = range_us(bucket);
                // As if the bucket's values lay evenly in it.
                let inside = ((rank - below) as f64 - 0.5) / here as f64;
                return (from as f64 + (to - from) as f64 * inside) / 1e3;
            }
            below += here;
        }
        0.0
    }

    /// The average of the window's values in ms; 0 of an empty window.
    pub fn mean_ms(&mut self, now: Duration) -> f64 {
        self.slide(now);
        let count: u64 = self.slots.iter().map(|slot| slot.count).sum();
        let sum = self
            .slots
            .iter()
            .fold(0_u64, |sum, slot| sum.saturating_add(slot.sum_us));
        if count == 0 {
            0.0
        } else {
            sum as f64 / count as f64 / 1e3
        }
    }

    fn slide(&mut self, now: Duration) {
        let slot = WINDOW / SLOTS as u32;
        let current = u64::try_from(now.as_nanos() / slot.as_nanos()).unwrap_or(u64::MAX);
        let passed = current.saturating_sub(self.newest).min(SLOTS as u64);
        for step in 0..passed {
            let slot = &mut self.slots[((current - step) % SLOTS as u64) as usize];
            if slot.count > 0 {
                for (total, count) in self.totals.iter_mut().zip(slot.counts.iter_mut()) {
                    *total -= u64::from(std::mem::take(count));
                }
                slot.count = 0;
                slot.sum_us = 0;
            }
        }
        self.newest = self.newest.max(current);
    }
}

fn bucket_of(us: u64) -> usize {
    if us < u64::from(PER_DOUBLING) {
        return us as usize;
    }
    let shift = us.ilog2() - PER_DOUBLING.ilog2();
    let within = (us >> shift) as u32 - PER_DOUBLING;
    (((shift + 1) * PER_DOUBLING + within) as usize).min(BUCKETS - 1)
}

fn range_us(bucket: usize) -> (u64, u64) {
    let bucket = bucket as u64;
    let per = u64::from(PER_DOUBLING);
    if bucket < per {
        return (bucket, bucket + 1);
    }
    let shift = bucket / per - 1;
    let from = (per + bucket % per) << shift;
    (from, from + (1 << shift))
}

/// Counts what happens to jobs and makes samples of it.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    /// Waiting plus service.
    pub latency: Window,
    /// Waiting alone.
    pub wait: Window,
    arrived: u64,
    ended: u64,
    service: Duration,
    sampled_at: Duration,
}

impl Meter {
    pub fn arrived(&mut self) {
        self.arrived += 1;
    }

    pub fn ended(&mut self, wait: Duration, service: Duration, now: Duration) {
        self.ended += 1;
        self.service = self.service.saturating_add(service);
        self.wait.put(wait, now);
        self.latency.put(wait.saturating_add(service), now);
    }

    /// Closes the interval since the sample before.
    pub fn sample(&mut self, queue: u64, busy: u32, size: u32, now: Duration) -> Sample {
        let seconds = now.saturating_sub(self.sampled_at).as_secs_f64();
        let arrived = std::mem::take(&mut self.arrived);
        let ended = std::mem::take(&mut self.ended);
        let service = std::mem::take(&mut self.service);
        self.sampled_at = now;
        Sample {
            queue,
            latency_p95_ms: self.latency.quantile_ms(0.95, now),
            arrival_rate: if seconds > 0.0 {
                arrived as f64 / seconds
            } else {
                0.0
            },
            ended,
            service_s: if ended > 0 {
                service.as_secs_f64() / ended as f64
            } else {
                0.0
            },
            busy,
            size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn quantiles_are_within_a_bucket_of_the_exact_ones() {
        let mut window = Window::default();
        for ms in 1..=1000 {
            window.put(MS * ms, Duration::ZERO);
        }
        for (part, exact) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (1.0, 1000.0)] {
            let value = window.quantile_ms(part, Duration::ZERO);
            assert!((value / exact - 1.0).abs() < 0.032, "{part}: {value}");
        }
        assert!((window.mean_ms(Duration::ZERO) - 500.5).abs() < 1e-9);
    }

    #[test]
    fn a_value_counts_for_ten_seconds() {
        let mut window = Window::default();
        window.put(MS * 300, Duration::from_secs(100));
        window.put(MS, Duration::from_secs(105));
        assert!(window.quantile_ms(1.0, Duration::from_millis(109_400)) > 290.0);
        assert!(window.quantile_ms(1.0, Duration::from_millis(110_000)) < 2.0);
        assert_eq!(window.quantile_ms(1.0, Duration::from_secs(115)), 0.0);
        assert_eq!(window.mean_ms(Duration::from_secs(500)), 0.0);
        window.put(MS, Duration::MAX);
        assert!(window.quantile_ms(0.95, Duration::MAX) > 0.0);
    }

    #[test]
    fn buckets_cover_every_value_once() {
        let mut bound = 0;
        for bucket in 0..BUCKETS {
            let (from, to) = range_us(bucket);
            assert_eq!(from, bound, "bucket {bucket}");
            assert_eq!((bucket_of(from), bucket_of(to - 1)), (bucket, bucket));
            bound = to;
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_sample_is_of_the_interval_since_the_one_before() {
        let mut meter = Meter::default();
        for _ in 0..50 {
            meter.arrived();
        }
        meter.ended(MS * 30, MS * 50, MS * 400);
        let sample = meter.sample(3, 2, 4, MS * 500);
        assert_eq!((sample.queue, sample.busy, sample.size), (3, 2, 4));
        assert!((sample.arrival_rate - 100.0).abs() < 1e-9);
        assert!((sample.service_s - 0.05).abs() < 1e-9);
        assert!((sample.latency_p95_ms - 80.0).abs() < 2.0);
        let next = meter.sample(0, 0, 4, MS * 1000);
        assert_eq!((next.arrival_rate, next.ended), (0.0, 0));
        assert!((next.latency_p95_ms - 80.0).abs() < 2.0);
        assert_eq!(meter.sample(0, 0, 4, MS * 1000).arrival_rate, 0.0);
    }
}
