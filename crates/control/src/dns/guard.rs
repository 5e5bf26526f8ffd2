//! Who may ask how often over UDP, where a source is only a claim.
//!
//! Fixed tables, indexed by a keyed hash: whoever forges sources can neither grow them nor choose whom he meets there.
//! Times come from the caller.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// What to do with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Answer {
        is_proven: bool,
    },
    /// Answer with nothing but "ask over TCP".
    Slip,
    Drop,
}

#[derive(Debug)]
pub struct Guard {
    hash: RandomState,
    buckets: Vec<Bucket>,
    /// Who connected by TCP lately; a whole hash and when.
    proven: Vec<(u64, u64)>,
    limited: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: u32,
    /// When tokens were last added.
    at_ms: u64,
}

impl Default for Guard {
    fn default() -> Self {
        let full = Bucket {
            tokens: BURST,
            at_ms: 0,
        };
        Self {
            hash: RandomState::new(),
            buckets: vec![full; BUCKETS],
            proven: vec![(0, 0); PROVEN],
            limited: 0,
        }
    }
}

impl Guard {
    /// For a question by UDP; `now_ms` never goes back.
    pub fn judge(&mut self, source: IpAddr, now_ms: u64) -> Verdict {
        let source = source.to_canonical();
        // Nobody else's packets come from there.
        if source.is_loopback() {
            return Verdict::Answer { is_proven: true };
        }
        let slot = self.hash.hash_one(network(source)) as usize % BUCKETS;
        if self.buckets.get_mut(slot).is_some_and(|b| b.take(now_ms)) {
            let is_proven = self.is_proven(source, now_ms);
            return Verdict::Answer { is_proven };
        }
        self.limited += 1;
        if self.limited.is_multiple_of(SLIP_EVERY) {
            Verdict::Slip
        } else {
            Verdict::Drop
        }
    }

    /// The source has completed a TCP handshake.
    pub fn prove(&mut self, source: IpAddr, now_ms: u64) {
        let tag = self.hash.hash_one(source.to_canonical());
        if let Some(slot) = self.proven.get_mut(tag as usize % PROVEN) {
            *slot = (tag, now_ms + PROVEN_MS);
        }
    }

    fn is_proven(&self, source: IpAddr, now_ms: u64) -> bool {
        let tag = self.hash.hash_one(source);
        self.proven
            .get(tag as usize % PROVEN)
            .is_some_and(|(of, until)| *of == tag && now_ms < *until)
    }
}

impl Bucket {
    fn take(&mut self, now_ms: u64) -> bool {
        let earned = now_ms.saturating_sub(self.at_ms) * RATE / 1000;
        if earned > 0 {
            let tokens = u64::from(self.tokens).saturating_add(earned);
            self.tokens = tokens.min(u64::from(BURST)) as u32;
            self.at_ms = now_ms;
        }
        let has_one = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        has_one
    }
}

/// A forger has a whole network to choose from: /24, or /56.
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) & !0xff).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & !((1 << 72) - 1)).into()),
    }
}

/// Questions per second and network, and how many at once.
const RATE: u64 = 500;
const BURST: u32 = 1000;
const BUCKETS: usize = 16_384;
const PROVEN: usize = 4096;
/// How long a handshake proves a source.
const PROVEN_MS: u64 = 60_000;
/// Of the questions over the rate, every second is told to come by TCP.
const SLIP_EVERY: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "192.0.2.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn answered(guard: &mut Guard, source: &str, count: usize, now_ms: u64) -> usize {
        let verdicts = (0..count).map(|_| guard.judge(ip(source), now_ms));
        verdicts
            .filter(|v| matches!(v, Verdict::Answer { .. }))
            .count()
    }

    #[test]
    fn a_flood_gets_its_burst_then_its_rate() {
        let mut guard = Guard::default();
        assert_eq!(answered(&mut guard, SOURCE, 5000, 0), BURST as usize);
        assert_eq!(answered(&mut guard, SOURCE, 5000, 1000), RATE as usize);
        assert_eq!(answered(&mut guard, SOURCE, 5000, 60_000), BURST as usize);
    }

    #[test]
    fn a_flood_of_a_network_is_one_flood_and_others_are_served() {
        let mut guard = Guard::default();
        let network: usize = (0..=255)
            .map(|host| answered(&mut guard, &format!("192.0.2.{host}"), 20, 0))
            .sum();
        assert_eq!(network, BURST as usize);
        // By chance one of them may share the flood's bucket.
        let others = ["198.51.100.1", "203.0.113.9", "2001:db8::1"];
        let served = others.map(|other| answered(&mut guard, other, 10, 0));
        assert!(served.iter().sum::<usize>() >= 20, "{served:?}");
    }

    #[test]
    fn over_the_rate_every_second_question_is_sent_to_tcp() {
        let mut guard = Guard::default();
        answered(&mut guard, SOURCE, BURST as usize, 0);
        let verdicts: Vec<_> = (0..4).map(|_| guard.judge(ip(SOURCE), 0)).collect();
        use Verdict::{Drop, Slip};
        assert_eq!(verdicts, [Drop, Slip, Drop, Slip]);
    }

    #[test]
    fn a_handshake_proves_a_source_for_a_while() {
        let mut guard = Guard::default();
        let proven = |guard: &mut Guard, source, now_ms| {
            guard.judge(ip(source), now_ms) == Verdict::Answer { is_proven: true }
        };
        assert!(!proven(&mut guard, SOURCE, 1));
        guard.prove(ip(SOURCE), 1);
        assert!(proven(&mut guard, SOURCE, 2));
        assert!(!proven(&mut guard, "192.0.2.2", 2), "only itself");
        assert!(!proven(&mut guard, SOURCE, 2 + PROVEN_MS));
    }

    #[test]
    fn loopback_is_never_limited() {
        let mut guard = Guard::default();
        for source in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(answered(&mut guard, source, 5000, 0), 5000);
        }
    }
}
