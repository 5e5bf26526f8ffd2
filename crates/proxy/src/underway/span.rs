//! How many are under way, and when the last one ended. One core writes.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Default)]
pub(super) struct Span {
    count: AtomicU64,
    /// One more than the millisecond; 0: never.
    ended: AtomicU64,
}

impl Span {
    #[inline]
    pub(super) fn begin(&self) {
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count.wrapping_add(1), Ordering::Release);
    }

    /// The end is told before the count: whoever sees it gone sees when.
    #[inline]
    pub(super) fn end(&self, now_ms: u64) {
        self.touch(now_ms);
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count.saturating_sub(1), Ordering::Release);
    }

    /// One ended then that is counted nowhere.
    #[inline]
    pub(super) fn touch(&self, now_ms: u64) {
        let ended = self.ended.load(Ordering::Relaxed);
        let ended = ended.max(now_ms.saturating_add(1));
        self.ended.store(ended, Ordering::Release);
    }

    /// Ended when `other` did last.
    #[inline]
    pub(super) fn ended_as(&self, other: &Self) {
        let ended = other.ended.load(Ordering::Relaxed);
        self.ended.store(ended, Ordering::Release);
    }

    /// Those under way, and one more where the last end is not `linger_ms` ago.
    #[inline]
    pub(super) fn recent(&self, now_ms: u64, linger_ms: u64) -> u64 {
        let count = self.count.load(Ordering::Acquire);
        let ended = self.ended.load(Ordering::Acquire);
        count.saturating_add(u64::from(
            ended != 0 && is_recent(ended - 1, now_ms, linger_ms),
        ))
    }

    #[inline]
    pub(super) fn is_recent(&self, now_ms: u64, linger_ms: u64) -> bool {
        self.recent(now_ms, linger_ms) > 0
    }
}

/// One more, with one writer: no locked instruction.
#[inline]
pub(super) fn bump(cell: &AtomicU64) {
    let count = cell.load(Ordering::Relaxed);
    cell.store(count.wrapping_add(1), Ordering::Relaxed);
}

/// Clocks of cores are read when their sockets are, so one may be behind.
#[inline]
pub(super) fn is_recent(ended_ms: u64, now_ms: u64, linger_ms: u64) -> bool {
    let slack_ms = if linger_ms > 0 { SLACK_MS } else { 0 };
    now_ms < ended_ms.saturating_add(linger_ms).saturating_add(slack_ms)
}

pub(super) const SLACK_MS: u64 = 10;
