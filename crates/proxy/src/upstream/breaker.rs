//! Circuit breakers: counts of what is under way to one cluster, exact over all cores of the sidecar.

use std::sync::atomic::{AtomicU32, Ordering};

/// Kept by cluster name over changes of the plan. One per cluster, one cache line.
#[derive(Default)]
#[repr(align(64))]
pub struct Breaker {
    counts: [AtomicU32; 4],
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Connection,
    /// Waiting for a connection or stream.
    Pending,
    Request,
    Retry,
}

impl Breaker {
    pub fn count(&self, share: Share) -> u32 {
        self.cell(share).load(Ordering::Relaxed)
    }

    /// Takes one unless `limit` are out already.
    #[inline]
    fn enter(&self, share: Share, limit: u32) -> bool {
        let cell = self.cell(share);
        let before = cell.fetch_add(1, Ordering::Relaxed);
        if before < limit {
            return true;
        }
        cell.fetch_sub(1, Ordering::Relaxed);
        false
    }

    #[inline]
    fn cell(&self, share: Share) -> &AtomicU32 {
        let [connection, pending, request, retry] = &self.counts;
        match share {
            Share::Connection => connection,
            Share::Pending => pending,
            Share::Request => request,
            Share::Retry => retry,
        }
    }
}

/// One unit of a share, given back when dropped. `H` is whatever keeps the breaker alive.
pub struct Permit<H: AsRef<Breaker>> {
    holder: H,
    share: Share,
}

impl<H: AsRef<Breaker>> Permit<H> {
    /// None when `limit` are out already.
    #[inline]
    pub fn take(holder: H, share: Share, limit: u32) -> Option<Self> {
        if holder.as_ref().enter(share, limit) {
            Some(Self { holder, share })
        } else {
            None
        }
    }
}

impl<H: AsRef<Breaker>> Drop for Permit<H> {
    fn drop(&mut self) {
        self.holder
            .as_ref()
            .cell(self.share)
            .fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn permits_end_at_the_limit_and_come_back() {
        struct Holder(Arc<Breaker>);
        impl AsRef<Breaker> for Holder {
            fn as_ref(&self) -> &Breaker {
                &self.0
            }
        }
        let breaker = Arc::new(Breaker::default());
        let take = || Permit::take(Holder(breaker.clone()), Share::Request, 2);
        let (first, _second) = (take().unwrap(), take().unwrap());
        assert!(take().is_none());
        drop(first);
        assert!(take().is_some());
        assert_eq!(breaker.count(Share::Request), 1);
        assert!(Permit::take(Holder(breaker), Share::Retry, 0).is_none());
    }
}
