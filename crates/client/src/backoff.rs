//! Waiting longer from failure to failure, with jitter, up to a bound: so that a control plane that comes back is not
//! met by all of its clients in the same instant, and by each of them soon.

use std::time::Duration;

/// Each wait is drawn from the upper half of a span that doubles up to `max`.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            next: min,
        }
    }

    /// How long to wait now; at most `max`, and from the first call on at least half of `min`.
    pub fn wait(&mut self) -> Duration {
        let span = self.next;
        self.next = (span * 2).min(self.max);
        jitter(span)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

/// Between a half of `span` and the whole.
fn jitter(span: Duration) -> Duration {
    span.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_over() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(min, max);
        for span in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.wait().as_millis();
            assert!((span / 2..=span).contains(&wait), "{wait} of {span}");
        }
        backoff.reset();
        assert!(backoff.wait() <= min);
    }
}
