//! A token bucket in one word: the generic cell rate algorithm (ITU-T I.371). Exact over all cores.

use std::sync::atomic::{AtomicU64, Ordering};

use phalanx_model::resource::limit::Rate;

/// Full at first.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When all tokens will be there again.
    full_ns: AtomicU64,
}

/// A [`Rate`] as a bucket needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    interval_ns: u64,
    /// How far ahead of an even flow requests may come.
    ahead_ns: u64,
}

impl Pace {
    pub fn new(rate: &Rate) -> Self {
        let interval_ns = rate.interval_ns();
        let more = u64::from(rate.burst.saturating_sub(1));
        Self {
            interval_ns,
            ahead_ns: interval_ns.saturating_mul(more),
        }
    }
}

impl Bucket {
    /// Takes one token, if there is one.
    #[inline]
    pub fn take(&self, pace: Pace, now_ns: u64) -> bool {
        let mut seen = self.full_ns.load(Ordering::Relaxed);
        loop {
            let from = seen.max(now_ns);
            if from - now_ns > pace.ahead_ns {
                return false;
            }
            let next = from.saturating_add(pace.interval_ns);
            let swapped = self.full_ns.compare_exchange_weak(
                seen,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match swapped {
                Ok(_) => return true,
                Err(other) => seen = other,
            }
        }
    }

    pub fn refill(&self) {
        self.full_ns.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::clock::{MILLISECOND, SECOND};
    use super::*;

    fn pace(requests: u32, per: Duration, burst: u32) -> Pace {
        Pace::new(&Rate {
            requests,
            per,
            burst,
        })
    }

    #[test]
    fn burst_passes_at_once_and_then_the_rate() {
        let (bucket, pace) = (Bucket::default(), pace(10, Duration::from_secs(1), 3));
        let at = |ns| bucket.take(pace, ns);
        assert_eq!([at(0), at(0), at(0), at(0)], [true, true, true, false]);
        assert!(!at(99 * MILLISECOND));
        assert!(at(100 * MILLISECOND));
        assert!(!at(100 * MILLISECOND));
        let taken = (0..5_000)
            .filter(|ms| at(SECOND + ms * MILLISECOND))
            .count();
        assert_eq!(taken, 3 + 49);
    }

    #[test]
    fn cores_share_one_bucket_exactly() {
        let bucket = Bucket::default();
        let pace = pace(1, Duration::from_secs(3600), 1_000);
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1_000).filter(|_| bucket.take(pace, SECOND)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(taken, 1_000);
    }
}
