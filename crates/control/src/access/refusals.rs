//! Who was not let in, and why: counted by port and reason, logged so that a flood can't fill a disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Refusals(Arc<Mutex<Inner>>);

/// Touched when somebody is refused; short critical sections.
#[derive(Default)]
struct Inner {
    tls: BTreeMap<(&'static str, &'static str), u64>,
    denied: BTreeMap<&'static str, u64>,
    /// Lines told within the period, and when that began.
    told: u32,
    since: Option<Instant>,
}

impl Refusals {
    /// A connection that ended before a word of it was heard. Whether it should be logged.
    pub fn tls(&self, port: &'static str, reason: &'static str) -> bool {
        let mut inner = self.inner();
        *inner.tls.entry((port, reason)).or_default() += 1;
        inner.may_tell()
    }

    /// A request that was turned down.
    pub fn denied(&self, reason: &'static str) {
        *self.inner().denied.entry(reason).or_default() += 1;
    }

    /// Whether one that was turned down should be logged.
    pub fn may_tell(&self) -> bool {
        self.inner().may_tell()
    }

    /// By port and reason.
    pub fn of_tls(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.inner().tls.clone()
    }

    /// By reason.
    pub fn of_requests(&self) -> BTreeMap<&'static str, u64> {
        self.inner().denied.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn may_tell(&mut self) -> bool {
        let now = Instant::now();
        if self.since.is_none_or(|since| now - since >= TOLD_PERIOD) {
            (self.told, self.since) = (0, Some(now));
        }
        self.told += 1;
        self.told <= TOLD_MAX
    }
}

const TOLD_MAX: u32 = 50;
const TOLD_PERIOD: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_counted_whole_and_told_in_part() {
        let refusals = Refusals::default();
        let told = (0..10_000).filter(|_| {
            refusals.denied("no_token");
            refusals.may_tell()
        });
        assert_eq!(told.count(), TOLD_MAX as usize);
        assert_eq!(refusals.of_requests()["no_token"], 10_000);
        tokio::time::advance(TOLD_PERIOD).await;
        assert!(refusals.may_tell());
    }
}
