//! The rule of two thresholds that is often used, to be compared: one on the queue, one on latency, ×1.2 and ×0.85.
//! It oscillates, ratchets and reacts late (docs/game/workers.md shows each); [`Staffing`](super::Staffing) is the default.

use std::time::Duration;

use super::policy::{Bounds, Policy, Reason, Sample, Wanted};

/// The rule acts this often,
pub const ACTS_EVERY: Duration = Duration::from_secs(10);
/// on a queue length that it reads this often.
pub const MEASURES_EVERY: Duration = Duration::from_secs(5);
const QUEUE_HIGH: u64 = 500;
const QUEUE_LOW: u64 = 100;
const LATENCY_HIGH_MS: f64 = 200.0;
const LATENCY_LOW_MS: f64 = 80.0;

/// Every 10 s: queue > 500 and latency > 200 ms → `int(size × 1.2)`, at most 200; queue < 100 and latency < 80 ms →
/// `int(size × 0.85)`, at least 10; else nothing. `int()` drops the fraction: below 5 workers growth sticks (4 × 1.2 is
/// 4), and 0.85 of 11 is 9, which becomes 10.
///
/// The queue is read every 5 s, and again before it is acted on when both fall together, which favours the rule. Latency
/// is the P95 of the last 10 s (waiting plus service); a latency that is not a number is neither high nor low.
#[derive(Clone, Debug)]
pub struct Thresholds {
    bounds: Bounds,
    queue: u64,
    measures_at: Option<Duration>,
    acts_at: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl Thresholds {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            queue: 0,
            measures_at: None,
            acts_at: Duration::ZERO,
        }
    }

    fn acts(&mut self, sample: &Sample, now: Duration) -> bool {
        let Some(measures_at) = self.measures_at else {
            self.queue = sample.queue;
            self.measures_at = Some(now.saturating_add(MEASURES_EVERY));
            self.acts_at = now.saturating_add(ACTS_EVERY);
            return false;
        };
        if now >= measures_at {
            self.queue = sample.queue;
            self.measures_at = Some(after(measures_at, MEASURES_EVERY, now));
        }
        let acts = now >= self.acts_at;
        if acts {
            self.acts_at = after(self.acts_at, ACTS_EVERY, now);
        }
        acts
    }
}

impl Policy for Thresholds {
    fn wanted(&mut self, sample: &Sample, now: Duration) -> Wanted {
        let acts = self.acts(sample, now);
        let size = sample.size;
        let inside = self.bounds.clamp(size);
        if inside != size {
            return Wanted {
                size: inside,
                reason: Reason::Bounds,
            };
        }
        if !acts {
            return Wanted {
                size,
                reason: Reason::NotYet,
            };
        }
        let latency = sample.latency_p95_ms;
        let (to, reason) = if self.queue > QUEUE_HIGH && latency > LATENCY_HIGH_MS {
            (u64::from(size) * 12 / 10, Reason::Overload)
        } else if self.queue < QUEUE_LOW && latency < LATENCY_LOW_MS {
            (u64::from(size) * 85 / 100, Reason::Idle)
        } else {
            (u64::from(size), Reason::Steady)
        };
        let to = u32::try_from(to).unwrap_or(u32::MAX);
        let wanted = self.bounds.clamp(to);
        let reason = match reason {
            _ if wanted != size => reason,
            Reason::Overload if to > size => Reason::Capped,
            Reason::Overload => Reason::Rounded,
            _ => Reason::Steady,
        };
        Wanted {
            size: wanted,
            reason,
        }
    }

    fn bounds(&self) -> Bounds {
        self.bounds
    }

    fn every(&self) -> Duration {
        ACTS_EVERY
    }
}

/// The first `at + n × every` past `now`: a pool that stood still doesn't act several times at once.
fn after(at: Duration, every: Duration, now: Duration) -> Duration {
    let late = now.saturating_sub(at).as_nanos() / every.as_nanos();
    let steps = u32::try_from(late).unwrap_or(u32::MAX).saturating_add(1);
    at.saturating_add(every.saturating_mul(steps))
}

#[cfg(test)]
mod tests;
