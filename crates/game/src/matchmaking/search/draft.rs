//! A match being put together: who is in which team, and how good that is. Teams are evened out here; what may be in a
//! match at all is decided before.

use std::sync::Arc;

use super::{Proposal, Quality, Search};
use crate::matchmaking::rules::{ANY_TEAM, Brownout, MILLI, MatchRules, Seating};
use crate::matchmaking::ticket::{BackfillId, RegionIndex, Ticket};

/// Swaps that even out teams, per match.
const ROUNDS_MAX: usize = 16;
/// Seats looked at to see whether swapped players fit, per match.
const LOOKS_MAX: u64 = 20_000;
/// So many of them are one operation.
const LOOKS_PER_OPERATION: u64 = 8;
/// Parts of the penalty: a score of 0 is this much.
const WORST: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub region: u8,
    pub teams: Vec<Vec<Member>>,
    pub quality: Quality,
    /// What the score rounds: 0 (best) to [`WORST`].
    pub penalty: u64,
    pub open: Option<Open>,
}

/// Seats of a running match.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub id: BackfillId,
    /// What the players of each team play.
    pub roles: Vec<Vec<Option<u8>>>,
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub slot: u32,
    pub value: i32,
    pub step: u8,
    pub latency: u16,
    /// Sum of the players' means, in thousandths.
    pub strength: i64,
    pub ticket: Arc<Ticket>,
}

impl Member {
    pub fn size(&self) -> usize {
        self.ticket.players.len()
    }
}

impl Draft {
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.teams.iter().flatten()
    }

    pub fn spread(&self) -> i32 {
        let values = self.members().map(|member| member.value);
        let (low, high) = values.fold((i32::MAX, i32::MIN), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        high.saturating_sub(low)
    }

    /// Of the youngest, who decides what the match may be.
    pub fn step(&self) -> u8 {
        self.members().map(|member| member.step).min().unwrap_or(0)
    }

    pub fn imbalance(&self, rules: &MatchRules) -> i64 {
        let sums = self
            .teams
            .iter()
            .map(|team| team.iter().map(|member| member.strength).sum::<i64>());
        let (low, high) = sums.fold((i64::MAX, i64::MIN), |(low, high), sum| {
            (low.min(sum), high.max(sum))
        });
        high.saturating_sub(low).max(0) / rules.team_size().max(1) as i64
    }

    /// Works out quality and penalty anew; `spread` is the match's, or of open seats the largest distance from it.
    pub fn judge(&mut self, rules: &MatchRules, now_ms: u64, spread: i32, imbalance: i64) {
        let spec = rules.spec();
        let latency = self
            .members()
            .map(|member| member.latency)
            .max()
            .unwrap_or(0);
        let oldest = self.members().map(|member| member.ticket.enqueued_ms).min();
        let widest = (spec.rating.window.cap * MILLI).max(1.0) as u64;
        let slowest = spec
            .regions
            .get(usize::from(self.region))
            .map_or(1.0, |region| {
                f64::from(region.latency_ms_max) + spec.latency.cap
            })
            .max(1.0) as u64;
        let weights = spec.quality;
        let parts = [
            (weights.rating, spread.max(0) as u64, widest),
            (weights.balance, imbalance.max(0) as u64, widest),
            (weights.latency, u64::from(latency), slowest),
        ];
        let total: u64 = parts.iter().map(|(weight, _, _)| u64::from(*weight)).sum();
        let bad: u64 = parts
            .iter()
            .map(|(weight, value, most)| u64::from(*weight) * (value * WORST / most).min(WORST))
            .sum();
        self.penalty = bad.checked_div(total).unwrap_or(0);
        self.quality = Quality {
            score: (1_000 - self.penalty * 1_000 / WORST) as u16,
            spread_milli: spread.max(0) as u32,
            imbalance_milli: imbalance.clamp(0, i64::from(u32::MAX)) as u32,
            latency_ms: latency,
            waited_ms: oldest.map_or(0, |oldest| now_ms.saturating_sub(oldest)),
        };
    }

    pub fn judge_match(&mut self, rules: &MatchRules, now_ms: u64) {
        let (spread, imbalance) = (self.spread(), self.imbalance(rules));
        self.judge(rules, now_ms, spread, imbalance);
    }

    /// Swaps parties of the same size between the strongest and the weakest team while that evens them out. Gives what
    /// was looked at.
    pub fn even_out(&mut self, rules: &MatchRules) -> u64 {
        let (mut looked, mut looks) = (0, 0);
        if self.teams.len() < 2 || rules.team_size() == 1 {
            return looked;
        }
        for _ in 0..ROUNDS_MAX {
            let sum = |team: usize| -> i64 { self.teams[team].iter().map(|m| m.strength).sum() };
            let weakest = (0..self.teams.len()).min_by_key(|team| (sum(*team), *team));
            let strongest = (0..self.teams.len()).max_by_key(|team| (sum(*team), *team));
            let (Some(one), Some(two)) = (strongest, weakest) else {
                break;
            };
            let apart = sum(one) - sum(two);
            let swaps = self.swaps(one, two, apart);
            looked += (self.teams[one].len() * self.teams[two].len() + self.teams.len()) as u64;
            let is_done = !swaps.iter().any(|(_, i, j)| {
                if looks > LOOKS_MAX {
                    return false;
                }
                self.swap(one, *i, two, *j);
                let fits = self.is_seated(rules, one, &mut looks)
                    && self.is_seated(rules, two, &mut looks);
                if !fits {
                    self.swap(one, *i, two, *j);
                }
                fits
            });
            if is_done {
                break;
            }
        }
        looked + looks / LOOKS_PER_OPERATION
    }

    /// Swaps that bring two teams nearer to each other than `apart`, the best first.
    fn swaps(&self, one: usize, two: usize, apart: i64) -> Vec<(i64, usize, usize)> {
        let mut swaps = Vec::new();
        for (i, a) in self.teams[one].iter().enumerate() {
            for (j, b) in self.teams[two].iter().enumerate() {
                let then = (apart - 2 * (a.strength - b.strength)).abs();
                if a.size() == b.size() && then < apart {
                    swaps.push((then, i, j));
                }
            }
        }
        swaps.sort_unstable();
        swaps
    }

    fn swap(&mut self, one: usize, i: usize, two: usize, j: usize) {
        let (low, high) = (one.min(two), one.max(two));
        let (i, j) = if one < two { (i, j) } else { (j, i) };
        let (front, back) = self.teams.split_at_mut(high);
        std::mem::swap(&mut front[low][i], &mut back[0][j]);
    }

    /// True if the team's players fit its seats; `looks` grows by the seats looked at.
    pub fn is_seated(&self, rules: &MatchRules, team: usize, looks: &mut u64) -> bool {
        rules.spec().roles.is_empty() || seat(rules, &self.teams[team], looks).is_some()
    }

    /// True if the teams' largest parties differ by no more than `gap`.
    pub fn is_fair(&self, gap: u8) -> bool {
        let largest = |team: &Vec<Member>| team.iter().map(Member::size).max().unwrap_or(0);
        let sizes = self.teams.iter().map(largest);
        let (low, high) = sizes.fold((usize::MAX, 0), |(low, high), size| {
            (low.min(size), high.max(size))
        });
        high.saturating_sub(low) <= usize::from(gap)
    }

    /// True if everybody's windows, and everybody's patience with parties, allow this.
    pub fn is_allowed(&self, rules: &MatchRules, brownout: Brownout) -> bool {
        let step = rules.ladder(brownout)[usize::from(self.step())];
        self.spread() <= step.window && self.is_fair(step.gap)
    }
}

/// The role of each player of a team, or none if they don't fit.
fn seat(rules: &MatchRules, team: &[Member], looks: &mut u64) -> Option<Vec<Option<u8>>> {
    let mut seating = Seating::team(rules.seats());
    let mut players = team.iter().flat_map(|member| &member.ticket.players);
    let fits = players.all(|player| seating.add(player.roles.0, ANY_TEAM));
    *looks += seating.looked;
    if !fits {
        return None;
    }
    Some(seating.places().into_iter().map(|(_, role)| role).collect())
}

impl Search {
    pub(super) fn member(&self, slot: u32, region: u8) -> Option<Member> {
        let (hot, cold) = (&self.hot[slot as usize], &self.cold[slot as usize]);
        Some(Member {
            slot,
            value: hot.value,
            step: hot.step,
            latency: hot.latency[usize::from(region)],
            strength: cold.strength,
            ticket: Arc::clone(cold.ticket.as_ref()?),
        })
    }

    pub(super) fn propose(&self, draft: Draft) -> Proposal {
        let has_roles = !self.rules.spec().roles.is_empty();
        let (backfill, roles) = match draft.open {
            Some(open) => (Some(open.id), open.roles),
            None if has_roles => {
                let seats =
                    |team: &Vec<Member>| seat(&self.rules, team, &mut 0).unwrap_or_default();
                (None, draft.teams.iter().map(seats).collect())
            }
            None => (None, Vec::new()),
        };
        Proposal {
            teams: draft
                .teams
                .iter()
                .map(|team| team.iter().map(|member| member.ticket.id).collect())
                .collect(),
            roles: if has_roles { roles } else { Vec::new() },
            region: RegionIndex(draft.region),
            quality: draft.quality,
            backfill,
        }
    }
}
