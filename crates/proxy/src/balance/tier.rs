//! Members of one health: drawn by weight, in turn, or by a key's hash.

use fastrand::Rng;
use phalanx_model::resource::LoadBalancer;

use super::Member;
use super::maglev::Maglev;
use super::ring::Ring;

#[derive(Default)]
pub(super) struct Tier {
    pub members: Box<[u32]>,
    /// Sums of weights, where these differ.
    cumulative: Box<[u32]>,
    total: u32,
    table: Table,
}

/// Where keys lead, for those policies that have keys.
#[derive(Default)]
enum Table {
    #[default]
    None,
    Ring(Ring),
    Maglev(Maglev),
}

impl Tier {
    pub fn new(members: &[Member], policy: LoadBalancer, is_in: impl Fn(&Member) -> bool) -> Self {
        let chosen: Vec<(u32, u32)> = (0u32..)
            .zip(members)
            .filter(|(_, m)| is_in(m))
            .map(|(index, m)| (index, m.weight.max(1)))
            .collect();
        let table = Table::new(members, &chosen, policy);
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
            table,
        }
    }

    /// The eligible member that `hash` leads to; none too where the policy has no keys.
    #[inline]
    pub fn keyed(&self, hash: u64, eligible: impl Fn(u32) -> bool) -> Option<u32> {
        match &self.table {
            Table::None => None,
            Table::Ring(ring) => ring.find(hash, eligible),
            Table::Maglev(maglev) => maglev.find(hash, eligible),
        }
    }

    /// In turn, each as often as its weight says.
    pub fn next(
        &self,
        turn: &mut u32,
        rng: &mut Rng,
        eligible: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let tries = self.members.len().min(DRAWS_MAX);
        let drawn = (0..tries)
            .map(|_| self.turn(turn))
            .find(|m| m.is_some_and(&eligible))
            .flatten();
        drawn.or_else(|| self.scan(rng, &eligible))
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

    pub fn draw(&self, rng: &mut Rng, eligible: impl Fn(u32) -> bool) -> Option<u32> {
        for _ in 0..DRAWS_MAX {
            let member = self.at(rng.u32(0..self.total.max(1)))?;
            if eligible(member) {
                return Some(member);
            }
        }
        self.scan(rng, eligible)
    }

    /// Two by weight, different ones if their weights are even; the same twice when only one is eligible.
    pub fn draw_two(&self, rng: &mut Rng, eligible: impl Fn(u32) -> bool) -> Option<(u32, u32)> {
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

impl Table {
    fn new(members: &[Member], chosen: &[(u32, u32)], policy: LoadBalancer) -> Self {
        let keyed = || -> Vec<(u32, String, u32)> {
            let chosen = chosen.iter().filter_map(|(index, weight)| {
                let member = members.get(*index as usize)?;
                Some((*index, member.address.to_string(), *weight))
            });
            chosen.collect()
        };
        match policy {
            LoadBalancer::RingHash => Self::Ring(Ring::new(&keyed())),
            LoadBalancer::Maglev => Self::Maglev(Maglev::new(&keyed())),
            LoadBalancer::P2c
            | LoadBalancer::LeastRequest
            | LoadBalancer::RoundRobin
            | LoadBalancer::Random => Self::None,
        }
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
