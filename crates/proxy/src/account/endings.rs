//! How requests ended, counted once each by everything that tells endings apart, so that sums by status, by
//! `grpc-status` and by reason agree at any time, and each only grows.

use std::sync::atomic::{AtomicU64, Ordering};

use phalanx_model::reason::Reason;

use super::bump;

/// Endings told apart on one edge and core; what comes on top is counted as status 0.
pub const ENDINGS_MAX: usize = 48;

/// `grpc-status` beyond those gRPC defines.
pub const GRPC_OTHER: u8 = 17;

/// UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS, and what is none.
const GRPC_FAILURES: [u8; 8] = [2, 4, 8, 12, 13, 14, 15, GRPC_OTHER];

/// Written by one core; a slot's key is set once, before its first count.
pub(super) struct Endings {
    slots: [Slot; ENDINGS_MAX],
    other: AtomicU64,
}

#[derive(Default)]
struct Slot {
    /// [`Key::pack`]; 0: free, and so are all behind it.
    key: AtomicU64,
    count: AtomicU64,
}

impl Default for Endings {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::default()),
            other: AtomicU64::new(0),
        }
    }
}

/// What tells endings apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// 0: the caller went away before the answer's end.
    pub status: u16,
    /// 0 to 16, or [`GRPC_OTHER`].
    pub grpc_status: Option<u8>,
    pub reason: Option<Reason>,
}

impl Key {
    pub(super) fn new(status: u16, grpc_status: Option<u8>, reason: Option<Reason>) -> Self {
        Self {
            status,
            grpc_status: grpc_status.map(|status| status.min(GRPC_OTHER)),
            reason,
        }
    }

    /// What the one who answers has to answer for: a status of 500 or more, a `grpc-status` that says the same (a caller
    /// that asks for what is not there, or may not, is none), or an answer that broke off after its head.
    pub fn is_failure(&self) -> bool {
        let of_grpc = |status: u8| GRPC_FAILURES.contains(&status);
        match self.status {
            0 => false,
            500.. => true,
            _ => {
                self.reason == Some(Reason::UpstreamReset) || self.grpc_status.is_some_and(of_grpc)
            }
        }
    }

    /// Never 0.
    fn pack(self) -> u64 {
        let option = |value: Option<u8>| u64::from(value.map_or(0, |value| value + 1));
        1 << 48
            | u64::from(self.status) << 16
            | option(self.grpc_status) << 8
            | option(self.reason.map(|reason| reason as u8))
    }

    fn unpack(packed: u64) -> Self {
        let option = |byte: u64| (byte as u8).checked_sub(1);
        Self {
            status: (packed >> 16) as u16,
            grpc_status: option(packed >> 8),
            reason: option(packed).and_then(|index| Reason::ALL.get(usize::from(index)).copied()),
        }
    }
}

impl Endings {
    /// The most frequent endings come first, because they were seen first: a short search.
    #[inline]
    pub(super) fn count(&self, key: Key) {
        let packed = key.pack();
        for slot in &self.slots {
            let known = slot.key.load(Ordering::Relaxed);
            if known == 0 {
                slot.key.store(packed, Ordering::Release);
            }
            if known == 0 || known == packed {
                return bump(&slot.count, 1);
            }
        }
        bump(&self.other, 1);
    }

    pub(super) fn add_to(&self, totals: &mut Vec<(Key, u64)>) {
        let taken = self
            .slots
            .iter()
            .map(|slot| (slot.key.load(Ordering::Acquire), &slot.count))
            .take_while(|(key, _)| *key != 0);
        for (key, count) in taken {
            super::edge::add(totals, Key::unpack(key), count.load(Ordering::Relaxed));
        }
        super::edge::add(
            totals,
            Key::new(0, None, None),
            self.other.load(Ordering::Relaxed),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_packing() {
        for status in [0, 200, 999] {
            for grpc in [None, Some(0), Some(16), Some(200)] {
                for reason in [None]
                    .into_iter()
                    .chain(Reason::ALL.iter().copied().map(Some))
                {
                    let key = Key::new(status, grpc, reason);
                    assert_eq!(Key::unpack(key.pack()), key);
                }
            }
        }
    }

    #[test]
    fn each_ending_fails_once_and_only_for_what_the_called_answers_for() {
        let is = |status, grpc, reason| Key::new(status, grpc, reason).is_failure();
        assert!(is(500, None, None) && is(503, Some(14), Some(Reason::Timeout)));
        assert!(is(200, None, Some(Reason::UpstreamReset)), "it broke off");
        assert!(!is(0, None, None) && !is(404, None, Some(Reason::NoRoute)));
        let failing = (0..=20).filter(|status| is(200, Some(*status), None));
        let failing: Vec<u8> = failing.collect();
        assert_eq!(failing, [2, 4, 8, 12, 13, 14, 15, 17, 18, 19, 20]);
    }

    #[test]
    fn too_many_endings_are_counted_together() {
        let endings = Endings::default();
        for status in 100..200 {
            endings.count(Key::new(status, None, None));
        }
        let mut totals = Vec::new();
        endings.add_to(&mut totals);
        assert_eq!(totals.len(), ENDINGS_MAX + 1);
        assert_eq!(totals.iter().map(|(_, count)| count).sum::<u64>(), 100);
    }
}
