//! Passive ejection: what answers tell of an endpoint, shared by all cores through a few atomics, and written only when
//! something changes.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use phalanx_model::resource::OutlierDetection;

/// What one attempt says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Any answer below 500.
    Success,
    /// An answer of 500 or more that no gateway made.
    ServerError,
    /// 502, 503, 504, a connection that failed in time or was reset, or a peer sidecar's word of one.
    GatewayError,
    /// Nobody listens there (ECONNREFUSED, or the peer sidecar says so of its application): enough by itself.
    Refused,
}

/// Counts and state of one endpoint, by address, over changes of the plan.
#[derive(Default)]
pub struct Outlier {
    server_errors: AtomicU32,
    gateway_errors: AtomicU32,
    /// ms since the account's start; 0 when never ejected.
    ejected_until_ms: AtomicU64,
    /// How often in a row; each time is longer.
    times: AtomicU32,
}

impl Outlier {
    #[inline]
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        now_ms < self.ejected_until_ms.load(Ordering::Relaxed)
    }

    /// ms since the account's start; 0 when never ejected.
    pub(super) fn ejected_until_ms(&self) -> u64 {
        self.ejected_until_ms.load(Ordering::Relaxed)
    }

    /// Counts; whether this is enough to eject.
    pub(super) fn is_due(&self, evidence: Evidence, policy: &OutlierDetection) -> bool {
        match evidence {
            Evidence::Success => {
                clear(&self.server_errors);
                clear(&self.gateway_errors);
                false
            }
            Evidence::ServerError => {
                clear(&self.gateway_errors);
                reached(&self.server_errors, policy.consecutive_5xx)
            }
            Evidence::GatewayError => {
                let server = reached(&self.server_errors, policy.consecutive_5xx);
                reached(&self.gateway_errors, policy.consecutive_gateway) || server
            }
            Evidence::Refused => policy.consecutive_gateway > 0 || policy.consecutive_5xx > 0,
        }
    }

    pub(super) fn eject(&self, now_ms: u64, policy: &OutlierDetection) {
        let times = self.times_left(now_ms, policy) + 1;
        let base = u64::try_from(policy.base_ejection.as_millis()).unwrap_or(u64::MAX);
        let length = base
            .saturating_mul(u64::from(times))
            .min(EJECTION_MAX_MS.max(base));
        self.times.store(times, Ordering::Relaxed);
        self.ejected_until_ms
            .store(now_ms.saturating_add(length).max(1), Ordering::Relaxed);
        clear(&self.server_errors);
        clear(&self.gateway_errors);
    }

    /// Ejections in a row; every interval without one since the last ended forgives one.
    fn times_left(&self, now_ms: u64, policy: &OutlierDetection) -> u32 {
        let ended = self.ejected_until_ms.load(Ordering::Relaxed);
        let interval = u64::try_from(policy.interval.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let forgiven = u32::try_from(now_ms.saturating_sub(ended) / interval).unwrap_or(u32::MAX);
        self.times.load(Ordering::Relaxed).saturating_sub(forgiven)
    }
}

/// Only writes when there is something to clear: a healthy endpoint's cache line stays shared.
#[inline]
fn clear(count: &AtomicU32) {
    if count.load(Ordering::Relaxed) != 0 {
        count.store(0, Ordering::Relaxed);
    }
}

/// Whether this makes `limit`; 0 switches the kind off.
fn reached(count: &AtomicU32, limit: u32) -> bool {
    limit > 0 && count.fetch_add(1, Ordering::Relaxed) + 1 >= limit
}

/// Envoy's default.
const EJECTION_MAX_MS: u64 = 300_000;
