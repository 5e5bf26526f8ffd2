//! Members of one zone distance, by health; and the packed word that says how requests are shared between two of them.

use phalanx_model::resource::Health;

use super::levels::{Census, shares};
use super::tier::Tier;
use super::{Member, PANIC_NEVER, Policy};

pub(super) struct Level {
    pub healthy: Tier,
    draining: Tier,
    unhealthy: Tier,
    /// Healthy and unhealthy ones, where a panic may come.
    pub all: Tier,
}

impl Level {
    pub fn new(members: &[Member], policy: &Policy, is_in: impl Fn(&Member) -> bool) -> Self {
        let of = |health| Tier::new(members, policy.balancer, |m| m.health == health && is_in(m));
        let all = |m: &Member| m.health != Health::Draining && is_in(m);
        Self {
            healthy: of(Health::Healthy),
            draining: of(Health::Draining),
            unhealthy: of(Health::Unhealthy),
            all: match policy.panic_percent > PANIC_NEVER {
                true => Tier::new(members, policy.balancer, all),
                false => Tier::default(),
            },
        }
    }

    /// In the order in which they are used.
    pub fn tiers(&self) -> [&Tier; 3] {
        [&self.healthy, &self.draining, &self.unhealthy]
    }
}

/// From the top: 48 bits for how long it holds (ms since the account's start, all ones: until the next ejection), a bit
/// for each level in panic, 8 bits for the share of the first.
#[derive(Clone, Copy)]
pub(super) struct State(pub u64);

impl State {
    pub fn new(levels: &[Level], members: &[Member], policy: &Policy, now_ms: u64) -> Self {
        if levels.len() < 2 && policy.panic_percent <= PANIC_NEVER {
            return Self(FOREVER << 16 | 100); // nothing to share, and nothing to count
        }
        let mut census = [Census::default(); 2];
        let mut until = FOREVER;
        for member in members.iter().filter(|m| m.health != Health::Draining) {
            let Some(level) = census.get_mut(usize::from(member.is_far)) else {
                continue;
            };
            let ejected_until = member.outlier.ejected_until_ms();
            level.total += 1;
            if now_ms < ejected_until {
                until = until.min(ejected_until);
            } else if member.health == Health::Healthy {
                level.healthy += 1;
            }
        }
        let shares = shares(census, policy.overprovision, policy.panic_percent);
        // Where nobody asked for it, a panic is what is done when nothing else is left.
        let is_asked = policy.panic_percent > PANIC_NEVER;
        let [near, far] = shares.panic.map(|panic| u64::from(panic && is_asked));
        Self(until.min(FOREVER) << 16 | near << 8 | far << 9 | u64::from(shares.first))
    }

    #[inline]
    pub fn holds(self, now_ms: u64) -> bool {
        let until = self.0 >> 16;
        until == FOREVER || now_ms < until
    }

    /// Of 100.
    pub fn first(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    #[inline]
    pub fn panics(self, level: usize) -> bool {
        self.0 & 1 << (8 + level.min(1)) != 0
    }
}

const FOREVER: u64 = (1 << 48) - 1;
