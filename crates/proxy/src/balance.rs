//! Which endpoint gets the next attempt. A [`Group`] is one cluster's endpoints as the plan has them; what a core has
//! measured of them ([`Load`]) is that core's own; who is ejected ([`outlier`]) is known to all cores.
//!
//! No socket and no clock: times come in.

pub mod load;
pub mod outlier;

use std::sync::{Arc, Mutex};

use fastrand::Rng;
use phalanx_model::resource::{Health, LoadBalancer, OutlierDetection};

pub use self::load::Load;
pub use self::outlier::{Evidence, Outlier};

/// The endpoints of one cluster, in the plan's order.
pub struct Group {
    policy: LoadBalancer,
    outlier_policy: OutlierDetection,
    members: Box<[Member]>,
    healthy: Tier,
    draining: Tier,
    unhealthy: Tier,
    /// Guards the rare decision to eject, so that all cores together keep to the limit; never taken for a pick.
    ejecting: Mutex<()>,
}

pub struct Member {
    /// 1 to 128.
    pub weight: u32,
    pub health: Health,
    pub outlier: Arc<Outlier>,
}

/// Members of one health.
#[derive(Default)]
struct Tier {
    members: Box<[u32]>,
    /// Sums of weights, where these differ.
    cumulative: Box<[u32]>,
    total: u32,
}

/// Members that an earlier attempt of the same request was sent to.
#[derive(Clone, Copy, Default)]
pub struct Tried {
    members: [u32; TRIED_MAX],
    count: usize,
}

/// Earlier endpoints remembered by one request; of more attempts the oldest may be met again.
pub const TRIED_MAX: usize = 8;

impl Tried {
    pub fn add(&mut self, member: usize) {
        if let Some(place) = self.members.get_mut(self.count % TRIED_MAX) {
            *place = u32::try_from(member).unwrap_or(u32::MAX);
        }
        self.count += 1;
    }

    fn contains(&self, member: u32) -> bool {
        self.members
            .iter()
            .take(self.count)
            .any(|tried| *tried == member)
    }
}

/// What a core brings to a pick.
pub struct Pick<'a, L> {
    /// By member.
    pub load: L,
    pub tried: &'a Tried,
    pub rng: &'a mut Rng,
    /// Since the account's start.
    pub now_us: u64,
    /// Counts picks, for round robin; one per core and cluster.
    pub turn: &'a mut u32,
}

impl Group {
    pub fn new(
        policy: LoadBalancer,
        outlier_policy: OutlierDetection,
        members: Vec<Member>,
    ) -> Self {
        let tier = |health| Tier::new(&members, health);
        Self {
            policy,
            outlier_policy,
            healthy: tier(Health::Healthy),
            draining: tier(Health::Draining),
            unhealthy: tier(Health::Unhealthy),
            members: members.into(),
            ejecting: Mutex::new(()),
        }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn member(&self, index: usize) -> Option<&Member> {
        self.members.get(index)
    }

    /// The member for the next attempt, none only when there are no members at all.
    ///
    /// Healthy ones first, without those tried or ejected. When nothing is left, ejection is ignored (if everything is
    /// bad, spreading the load over all is better than refusing it), then what was tried; after that draining ones and
    /// last unhealthy ones: a wrong health report shall not make a service unreachable.
    pub fn pick<'l>(
        &self,
        mut pick: Pick<'_, impl Fn(usize) -> Option<&'l Load>>,
    ) -> Option<usize> {
        if let [only] = *self.healthy.members {
            return Some(only as usize); // alone: nobody else to try, and never ejected
        }
        for tier in [&self.healthy, &self.draining, &self.unhealthy] {
            if tier.members.is_empty() {
                continue;
            }
            let now_ms = pick.now_us / 1000;
            let tried = *pick.tried;
            let fresh = |m: u32| !tried.contains(m);
            let in_use = |m: u32| {
                self.member(m as usize)
                    .is_some_and(|member| !member.outlier.is_ejected(now_ms))
            };
            let picked = self
                .choose(tier, &mut pick, |m| fresh(m) && in_use(m))
                .or_else(|| self.choose(tier, &mut pick, fresh))
                .or_else(|| self.choose(tier, &mut pick, in_use))
                .or_else(|| self.choose(tier, &mut pick, |_| true));
            return picked.map(|m| m as usize);
        }
        None
    }

    fn choose<'l>(
        &self,
        tier: &Tier,
        pick: &mut Pick<'_, impl Fn(usize) -> Option<&'l Load>>,
        eligible: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        match self.policy {
            LoadBalancer::P2c => {
                let (a, b) = tier.draw_two(pick.rng, &eligible)?;
                let (cost_a, cost_b) = (self.cost(a, pick), self.cost(b, pick));
                Some(if cost_b < cost_a { b } else { a })
            }
            LoadBalancer::LeastRequest => {
                let (a, b) = tier.draw_two(pick.rng, &eligible)?;
                let outstanding = |m: u32| (pick.load)(m as usize).map_or(0, Load::outstanding);
                // a/weight(a) against b/weight(b) without dividing
                let (left, right) = (
                    outstanding(a) * self.weight(b),
                    outstanding(b) * self.weight(a),
                );
                Some(if right < left { b } else { a })
            }
            LoadBalancer::RoundRobin => {
                let tries = tier.members.len().min(DRAWS_MAX);
                let drawn = (0..tries)
                    .map(|_| tier.turn(pick.turn))
                    .find(|m| m.is_some_and(&eligible))
                    .flatten();
                drawn.or_else(|| tier.scan(pick.rng, &eligible))
            }
            LoadBalancer::Random => tier.draw(pick.rng, &eligible),
        }
    }

    fn cost<'l>(&self, member: u32, pick: &Pick<'_, impl Fn(usize) -> Option<&'l Load>>) -> f64 {
        (pick.load)(member as usize).map_or(0.0, |load| load.cost(pick.now_us, self.weight(member)))
    }

    fn weight(&self, member: u32) -> u32 {
        self.member(member as usize).map_or(1, |m| m.weight.max(1))
    }

    /// Learns from an attempt; true when that ejected the member just now.
    pub fn report(&self, member: usize, evidence: Evidence, now_ms: u64) -> bool {
        let Some(outlier) = self.member(member).map(|m| &m.outlier) else {
            return false;
        };
        if !outlier.is_due(evidence, &self.outlier_policy) {
            return false;
        }
        let _guard = self
            .ejecting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let of = self.healthy.members.len();
        let ejected = self
            .members
            .iter()
            .filter(|m| m.health == Health::Healthy && m.outlier.is_ejected(now_ms))
            .count();
        let limit = (of * self.outlier_policy.max_ejection_percent as usize / 100).max(1);
        if of < 2 || ejected >= limit || outlier.is_ejected(now_ms) {
            return false;
        }
        outlier.eject(now_ms, &self.outlier_policy);
        true
    }
}

impl Tier {
    fn new(members: &[Member], health: Health) -> Self {
        let chosen: Vec<(u32, u32)> = (0u32..)
            .zip(members)
            .filter(|(_, m)| m.health == health)
            .map(|(index, m)| (index, m.weight.max(1)))
            .collect();
        let even = chosen
            .iter()
            .all(|(_, weight)| Some(*weight) == chosen.first().map(|(_, w)| *w));
        let mut total = 0u32;
        let cumulative = chosen.iter().map(|(_, weight)| {
            total = total.saturating_add(*weight);
            total
        });
        let cumulative: Box<[u32]> = if even {
            Box::default()
        } else {
            cumulative.collect()
        };
        let members: Box<[u32]> = chosen.iter().map(|(index, _)| *index).collect();
        let total = if even { members.len() as u32 } else { total };
        Self {
            members,
            cumulative,
            total,
        }
    }

    /// The member that `ticket` (below `total`) belongs to.
    fn at(&self, ticket: u32) -> Option<u32> {
        let place = if self.cumulative.is_empty() {
            ticket as usize
        } else {
            self.cumulative.partition_point(|sum| *sum <= ticket)
        };
        self.members.get(place).copied()
    }

    /// Each member as often as its weight says, evenly interleaved: steps of about the golden section visit every ticket
    /// of a round once.
    fn turn(&self, turn: &mut u32) -> Option<u32> {
        let step = golden_step(self.total);
        *turn = turn.wrapping_add(1);
        self.at((u64::from(*turn) * u64::from(step) % u64::from(self.total.max(1))) as u32)
    }

    fn draw(&self, rng: &mut Rng, eligible: impl Fn(u32) -> bool) -> Option<u32> {
        for _ in 0..DRAWS_MAX {
            let member = self.at(rng.u32(0..self.total.max(1)))?;
            if eligible(member) {
                return Some(member);
            }
        }
        self.scan(rng, eligible)
    }

    /// Two by weight, different ones if their weights are even; the same twice when only one is eligible.
    fn draw_two(&self, rng: &mut Rng, eligible: impl Fn(u32) -> bool) -> Option<(u32, u32)> {
        let first = self.draw(rng, &eligible)?;
        if self.cumulative.is_empty() {
            let second = self.draw(rng, |m| m != first && eligible(m));
            return Some((first, second.unwrap_or(first)));
        }
        Some((first, self.draw(rng, &eligible)?))
    }

    /// The first eligible one from a random start.
    fn scan(&self, rng: &mut Rng, eligible: impl Fn(u32) -> bool) -> Option<u32> {
        let start = rng.usize(0..self.members.len().max(1));
        let (before, after) = self.members.split_at_checked(start)?;
        after
            .iter()
            .chain(before)
            .copied()
            .find(|member| eligible(*member))
    }
}

/// A number near 0.618 × `total` that shares no factor with it.
fn golden_step(total: u32) -> u32 {
    let near = (f64::from(total) * 0.618) as u32;
    (near.max(1)..=total.max(1))
        .find(|step| gcd(*step, total) == 1)
        .unwrap_or(1)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Random draws before looking at members one by one.
const DRAWS_MAX: usize = 6;

#[cfg(test)]
mod tests;
