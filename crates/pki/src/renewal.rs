//! When to renew: pure decisions from dates, so that a test can rotate every two seconds and a fleet doesn't renew at once.

use std::time::Duration;

use crate::clock::UnixMillis;
use crate::x509::{self, Serial};

/// How long a failed renewal waits at first.
const BACKOFF_MIN: Duration = Duration::from_secs(1);

/// Intervals, all configurable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenewalPolicy {
    /// Renew when less than this is left. For a short life it is cut to two thirds of it.
    pub before: Duration,
    /// How often the remaining life is looked at.
    pub check: Duration,
    /// By how many percent of `before` a certificate may be renewed earlier; each one by its own share.
    pub jitter_percent: u32,
}

impl Default for RenewalPolicy {
    fn default() -> Self {
        Self {
            before: Duration::from_secs(24 * 3600),
            check: Duration::from_secs(30),
            jitter_percent: 10,
        }
    }
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing; look again after this.
    Keep {
        again: Duration,
    },
    Renew {
        remaining: Duration,
    },
    /// Too late: peers refuse it already.
    Expired,
}

impl RenewalPolicy {
    /// The jitter comes from the serial: it differs between workloads and stays the same from check to check.
    pub fn decide(
        &self,
        not_before: UnixMillis,
        not_after: UnixMillis,
        serial: &Serial,
        now: UnixMillis,
    ) -> Renewal {
        let remaining = now.until(not_after);
        if remaining.is_zero() {
            return Renewal::Expired;
        }
        let threshold = self.threshold(not_before.until(not_after), serial);
        if remaining <= threshold {
            return Renewal::Renew { remaining };
        }
        Renewal::Keep {
            again: self.check.min(remaining - threshold),
        }
    }

    fn threshold(&self, life: Duration, serial: &Serial) -> Duration {
        let base = self.before.min(life * 2 / 3);
        let [a, b, ..] = x509::sha256(serial.as_bytes());
        let share = f64::from(u16::from_be_bytes([a, b])) / f64::from(u16::MAX);
        let early = base.mul_f64(share * f64::from(self.jitter_percent.min(100)) / 100.0);
        (base + early).min(life * 9 / 10)
    }

    /// How long to wait after the `failures`th failure in a row: doubling from a second (or the check interval, if that is
    /// shorter) up to the check interval, and never so long that less than three more tries fit into what remains.
    pub fn retry(&self, failures: u32, remaining: Duration) -> Duration {
        let first = BACKOFF_MIN.min(self.check);
        let doubled = first.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(16)));
        doubled
            .min(self.check)
            .min(remaining / 4)
            .max(Duration::from_millis(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const START: UnixMillis = UnixMillis(1_795_000_000_000);

    fn serial(n: u8) -> Serial {
        Serial::of_bytes(&[n, 1]).unwrap()
    }

    #[test]
    fn a_leaf_of_72_hours_is_renewed_when_24_are_left() {
        let (policy, end) = (RenewalPolicy::default(), START.plus(72 * HOUR));
        let at =
            |hours: f64| policy.decide(START, end, &serial(1), START.plus(HOUR.mul_f64(hours)));
        assert_eq!(
            at(1.0),
            Renewal::Keep {
                again: Duration::from_secs(30)
            }
        );
        assert!(matches!(at(45.0), Renewal::Keep { .. }));
        assert!(matches!(at(48.1), Renewal::Renew { .. }));
        assert_eq!(at(72.0), Renewal::Expired);
    }

    #[test]
    fn jitter_spreads_a_fleet_and_never_delays() {
        let policy = RenewalPolicy::default();
        let spread: std::collections::BTreeSet<_> = (1..=100)
            .map(|n| policy.threshold(72 * HOUR, &serial(n)))
            .collect();
        assert!(spread.len() > 90);
        assert!(
            spread
                .iter()
                .all(|t| *t >= 24 * HOUR && *t <= 24 * HOUR + 24 * HOUR / 10)
        );
    }

    #[test]
    fn a_life_of_seconds_rotates_every_two() {
        let policy = RenewalPolicy {
            before: Duration::from_secs(4),
            check: Duration::from_millis(100),
            jitter_percent: 0,
        };
        let end = START.plus(Duration::from_secs(6));
        let at = |ms| {
            policy.decide(
                START,
                end,
                &serial(1),
                START.plus(Duration::from_millis(ms)),
            )
        };
        assert_eq!(
            at(1_950),
            Renewal::Keep {
                again: Duration::from_millis(50)
            }
        );
        assert!(matches!(at(2_000), Renewal::Renew { .. }));
        // A threshold longer than the life doesn't renew for ever.
        let short = RenewalPolicy {
            check: Duration::from_millis(100),
            ..RenewalPolicy::default()
        };
        assert!(matches!(
            short.decide(START, end, &serial(1), START),
            Renewal::Keep { .. }
        ));
    }

    #[test]
    fn retries_back_off_and_hurry_at_the_end() {
        let policy = RenewalPolicy::default();
        let waits: Vec<u64> = (1..8)
            .map(|n| policy.retry(n, 24 * HOUR).as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(
            policy.retry(9, Duration::from_secs(8)),
            Duration::from_secs(2)
        );
        assert_eq!(
            policy.retry(u32::MAX, Duration::ZERO),
            Duration::from_millis(100)
        );
    }
}
