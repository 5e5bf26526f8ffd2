//! Buckets in this process. A restart finds them full again, so that it costs at most one burst more per key.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Given, OVERDRAFT, Take};

#[derive(Debug)]
pub(super) struct Memory {
    /// One short critical section per call.
    state: Mutex<State>,
    buckets_max: usize,
}

#[derive(Debug, Default)]
struct State {
    policies: HashMap<String, HashMap<u64, Bucket>>,
    count: usize,
    sweep_at: usize,
    /// Whoever asks waits for a sweep: however many ask, there is one in [`SWEEP_EVERY`].
    swept_at: Option<Instant>,
    /// Buckets that sweeps have looked at.
    #[cfg(test)]
    visited: usize,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Below zero: overdrawn.
    tokens: f64,
    at: Instant,
    /// When it will be full again.
    full_at: Instant,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            buckets_max: BUCKETS_MAX,
        }
    }
}

impl Memory {
    pub(super) fn len(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.count
    }

    pub(super) fn take(&self, takes: &[Take]) -> Vec<Given> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let take = |take| state.take(take, now, self.buckets_max);
        takes.iter().map(take).collect()
    }
}

impl State {
    fn take(&mut self, take: &Take, now: Instant, most: usize) -> Given {
        let is_due = |at: Instant| now.saturating_duration_since(at) >= SWEEP_EVERY;
        if self.count >= self.sweep_at.max(SWEEP_MIN).min(most) && self.swept_at.is_none_or(is_due)
        {
            self.sweep(now);
        }
        let is_full = self.count >= most;
        if !self.policies.contains_key(&take.policy) {
            self.policies.insert(take.policy.clone(), HashMap::new());
        }
        let Some(buckets) = self.policies.get_mut(&take.policy) else {
            return Given {
                tokens: 0,
                dry_ns: 0,
            };
        };
        let key = match is_full && !buckets.contains_key(&take.key) {
            true => KEY_OTHERS,
            false => take.key,
        };
        let bucket = buckets.entry(key).or_insert_with(|| {
            self.count += 1;
            Bucket {
                tokens: f64::from(take.rate.burst),
                at: now,
                full_at: now,
            }
        });
        bucket.take(take, now)
    }

    /// A full one is as good as none.
    fn sweep(&mut self, now: Instant) {
        self.swept_at = Some(now);
        #[cfg(test)]
        {
            self.visited += self.count;
        }
        for buckets in self.policies.values_mut() {
            buckets.retain(|_, bucket| bucket.full_at > now);
        }
        self.policies.retain(|_, buckets| !buckets.is_empty());
        self.count = self.policies.values().map(HashMap::len).sum();
        self.sweep_at = self.count * 2;
    }
}

impl Bucket {
    /// Half of what is there at most, so that nobody takes all from others who ask in the next moment.
    fn take(&mut self, take: &Take, now: Instant) -> Given {
        let burst = f64::from(take.rate.burst);
        let every_ns = take.rate.interval_ns() as f64;
        let passed_ns = now.saturating_duration_since(self.at).as_nanos() as f64;
        self.at = now;
        let filled = self.tokens + passed_ns / every_ns + f64::from(take.returned);
        self.tokens = filled.min(burst) - f64::from(take.spent);
        self.tokens = self.tokens.max(-burst * f64::from(OVERDRAFT));
        let mut tokens = 0;
        if take.wanted > 0 && self.tokens >= 1.0 {
            tokens = take.wanted.min((self.tokens / 2.0) as u32).max(1);
            self.tokens -= f64::from(tokens);
        }
        let missing = Duration::from_nanos(((burst - self.tokens) * every_ns) as u64);
        self.full_at = now.checked_add(missing).unwrap_or(now);
        let dry_ns = match self.tokens < 1.0 {
            true => ((1.0 - self.tokens) * every_ns).ceil() as u64,
            false => 0,
        };
        Given { tokens, dry_ns }
    }
}

/// Shared by keys beyond the bound, as sidecars share one.
const KEY_OTHERS: u64 = 1;
const BUCKETS_MAX: usize = 1_000_000;
const SWEEP_MIN: usize = 10_000;
const SWEEP_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use phalanx_model::resource::limit::Rate;

    use super::*;

    fn take(key: u64, spent: u32, wanted: u32) -> Take {
        Take {
            policy: "arena/p".into(),
            key,
            rate: Rate {
                requests: 10,
                per: Duration::from_secs(1),
                burst: 20,
            },
            spent,
            wanted,
            returned: 0,
        }
    }

    fn given(tokens: u32, dry_ms: u64) -> Given {
        Given {
            tokens,
            dry_ns: dry_ms * 1_000_000,
        }
    }

    async fn later(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_given_than_there_is() {
        let memory = Memory::default();
        let ask = |take: Take| memory.take(&[take])[0];
        let all: u32 = (0..10).map(|_| ask(take(7, 0, 100)).tokens).sum();
        assert_eq!(all, 20);
        assert_eq!(ask(take(7, 0, 5)), given(0, 100));
        assert_eq!(ask(take(8, 0, 5)), given(5, 0), "another key has its own");
        later(250).await;
        assert_eq!(ask(take(7, 0, 5)).tokens, 1);
        assert_eq!(ask(take(7, 0, 5)).tokens, 1);
        assert_eq!(ask(take(7, 0, 5)), given(0, 50));
        let returned = Take {
            returned: 3,
            ..take(7, 0, 0)
        };
        assert_eq!(ask(returned), given(0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn credit_is_paid_back() {
        let memory = Memory::default();
        let ask = |take: Take| memory.take(&[take])[0];
        assert_eq!(ask(take(7, 30, 10)), given(0, 1_100));
        later(1_000).await;
        assert_eq!(ask(take(7, 0, 10)), given(0, 100));
        later(100).await;
        assert_eq!(ask(take(7, 0, 10)), given(1, 100));
        // What nobody could ever pay back is forgiven.
        assert_eq!(ask(take(7, 1_000_000, 10)), given(0, 16_100));
    }

    #[tokio::test(start_paused = true)]
    async fn full_buckets_are_forgotten_and_there_are_no_more_than_so_many() {
        let memory = Memory {
            buckets_max: 100,
            ..Memory::default()
        };
        let ask = |key| memory.take(&[take(key, 20, 0)])[0];
        (2..102).for_each(|key| assert_eq!(ask(key), given(0, 100)));
        assert_eq!(ask(1_000), given(0, 100));
        assert_eq!(
            ask(1_001),
            given(0, 2_100),
            "beyond the bound they share one"
        );
        assert_eq!(memory.len(), 101);
        later(10_000).await;
        assert_eq!(ask(1_001), given(0, 100));
        assert_eq!(memory.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_is_not_searched_for_every_question() {
        let memory = Memory {
            buckets_max: 100,
            ..Memory::default()
        };
        // Overdrawn: none of them is full again for seconds.
        let asked = |keys: std::ops::Range<u64>| -> Vec<Take> {
            keys.map(|key| take(key, 1_000, 0)).collect()
        };
        memory.take(&asked(2..102));
        let visited = || memory.state.lock().unwrap().visited;
        for round in 0..10 {
            memory.take(&asked(1_000..2_000));
            later(100).await;
            assert!(visited() <= 202, "{} in round {round}", visited());
        }
        memory.take(&asked(1_000..2_000));
        assert_eq!(visited(), 201, "a second later it is looked at again");
        assert_eq!(memory.len(), 101);
    }
}
