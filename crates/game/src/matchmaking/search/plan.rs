//! Which party sizes fill the teams of a match: partitions of a team, and plans (one partition per team) that a supply of
//! parties allows. Answers are remembered: a pool asks the same few questions all day.

use std::collections::HashMap;
use std::sync::Arc;

use crate::matchmaking::rules::{MATCH_PLAYERS_MAX, MatchRules};
use crate::matchmaking::ticket::PARTY_MAX;

/// Plans that one question is answered with at most.
const PLANS_MAX: usize = 64;
/// Partitions tried per question at most; all of them for up to 4 teams of 5.
const TRIES_MAX: usize = 20_000;
/// Partitions tried per tick for the question whether anything is possible; from there on the answer is "perhaps".
const TRIES_PER_TICK: usize = 100_000;
/// Answers that are remembered at most.
const MEMORY_MAX: usize = 4_096;

/// How many tickets of each size (1, 2, …) there are or are needed.
pub(super) type Counts = [u32; PARTY_MAX];

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Tickets of each size, without the seed.
    pub needed: Counts,
    /// Size and team of each party of two and more, without the seed; largest first.
    pub parties: Vec<(u8, u8)>,
}

#[derive(Debug)]
pub(super) struct PlanBook {
    teams: usize,
    partitions: Vec<Partition>,
    /// No more than so many of each size can be part of one match.
    most: Counts,
    tries_left: usize,
    /// Partitions tried for plans since that was last asked.
    tried: u64,
    possible: HashMap<u128, bool>,
    plans: HashMap<(u128, u8, u8), Arc<[Plan]>>,
}

#[derive(Debug)]
struct Partition {
    counts: Counts,
    largest: u8,
}

impl PlanBook {
    pub fn new(rules: &MatchRules) -> Self {
        let mut partitions = Vec::new();
        split(
            rules.team_size(),
            rules.party_max(),
            &mut [0; PARTY_MAX],
            &mut partitions,
        );
        // Large parties first: those who came alone fit everywhere and are spent last, so that a plan is found early.
        partitions.sort_by_key(|partition| std::cmp::Reverse(partition.largest));
        let mut most = [0; PARTY_MAX];
        for (at, most) in most.iter_mut().enumerate() {
            *most = (rules.players() / (at + 1)) as u32;
        }
        Self {
            teams: rules.teams(),
            partitions,
            most,
            tries_left: TRIES_PER_TICK,
            tried: 0,
            possible: HashMap::new(),
            plans: HashMap::new(),
        }
    }

    /// To be said at the start of a tick.
    pub fn begin(&mut self) {
        self.tries_left = TRIES_PER_TICK;
    }

    /// Partitions tried for plans since this was last asked.
    pub fn take_tried(&mut self) -> u64 {
        std::mem::take(&mut self.tried)
    }

    /// False only if no plan at all can be made from these.
    pub fn is_possible(&mut self, counts: &Counts) -> bool {
        let counts = self.cut(counts);
        let key = pack(&counts);
        if let Some(known) = self.possible.get(&key) {
            return *known;
        }
        if self.tries_left == 0 {
            return true;
        }
        let mut tries = 0;
        let possible = self.fill(0, 0, &mut counts.clone(), &mut tries) || tries > TRIES_MAX;
        self.tries_left = self.tries_left.saturating_sub(tries);
        if self.possible.len() >= MEMORY_MAX {
            self.possible.clear();
        }
        self.possible.insert(key, possible);
        possible
    }

    /// Plans with a seed of `seed` players in team 0, in which the teams' largest parties differ by `gap` at most.
    pub fn plans(&mut self, counts: &Counts, seed: u8, gap: u8) -> Arc<[Plan]> {
        let counts = self.cut(counts);
        let key = (pack(&counts), seed, gap);
        if let Some(known) = self.plans.get(&key) {
            return Arc::clone(known);
        }
        let mut search = Enumerate {
            book: self,
            seed,
            gap,
            left: counts,
            chosen: Vec::with_capacity(self.teams),
            found: Vec::new(),
            tries: 0,
        };
        search.first();
        search.alone();
        let tried = search.tries as u64;
        let plans: Arc<[Plan]> = search.found.into();
        self.tried += tried;
        if self.plans.len() >= MEMORY_MAX {
            self.plans.clear();
        }
        self.plans.insert(key, Arc::clone(&plans));
        plans
    }

    fn cut(&self, counts: &Counts) -> Counts {
        let mut cut = *counts;
        for (count, most) in cut.iter_mut().zip(&self.most) {
            *count = (*count).min(*most);
        }
        cut
    }

    fn fill(&self, team: usize, from: usize, left: &mut Counts, tries: &mut usize) -> bool {
        if team == self.teams {
            return true;
        }
        for at in from..self.partitions.len() {
            *tries += 1;
            if *tries > TRIES_MAX {
                return false;
            }
            let partition = &self.partitions[at].counts;
            if !take(left, partition) {
                continue;
            }
            if self.fill(team + 1, at, left, tries) {
                return true;
            }
            give(left, partition);
        }
        false
    }
}

struct Enumerate<'a> {
    book: &'a PlanBook,
    seed: u8,
    gap: u8,
    left: Counts,
    chosen: Vec<usize>,
    found: Vec<Plan>,
    tries: usize,
}

impl Enumerate<'_> {
    /// The seed's team: any partition with a part of its size, which needs no ticket for that part.
    fn first(&mut self) {
        let book = self.book;
        let own = usize::from(self.seed) - 1;
        for (at, partition) in book.partitions.iter().enumerate() {
            if partition.counts[own] == 0 {
                continue;
            }
            self.left[own] += 1;
            if take(&mut self.left, &partition.counts) {
                self.chosen.push(at);
                self.others(0);
                self.chosen.pop();
                give(&mut self.left, &partition.counts);
            }
            self.left[own] -= 1;
        }
    }

    /// The other teams, in one order only.
    fn others(&mut self, from: usize) {
        let book = self.book;
        if self.chosen.len() == book.teams {
            self.keep();
            return;
        }
        for at in from..book.partitions.len() {
            self.tries += 1;
            if self.tries > TRIES_MAX || self.found.len() >= PLANS_MAX {
                return;
            }
            let partition = &book.partitions[at];
            if !self.is_fair(partition.largest) || !take(&mut self.left, &partition.counts) {
                continue;
            }
            self.chosen.push(at);
            self.others(at);
            self.chosen.pop();
            give(&mut self.left, &partition.counts);
        }
    }

    /// Where so many plans exist that not all were found: the one with nobody but the seed and those who came alone.
    fn alone(&mut self) {
        let needed = self.book.most[0] - u32::from(self.seed);
        let is_fair = self.book.teams == 1 || self.seed - 1 <= self.gap;
        let is_known = self.found.iter().any(|plan| plan.parties.is_empty());
        if is_known || !is_fair || self.left[0] < needed {
            return;
        }
        let mut counts = [0; PARTY_MAX];
        counts[0] = needed;
        self.found.push(Plan {
            needed: counts,
            parties: Vec::new(),
        });
    }

    fn is_fair(&self, largest: u8) -> bool {
        self.chosen
            .iter()
            .all(|at| self.book.partitions[*at].largest.abs_diff(largest) <= self.gap)
    }

    fn keep(&mut self) {
        let mut needed = [0; PARTY_MAX];
        let mut parties = Vec::new();
        for (team, at) in self.chosen.iter().enumerate() {
            let mut counts = self.book.partitions[*at].counts;
            if team == 0 {
                counts[usize::from(self.seed) - 1] -= 1;
            }
            for (at, count) in counts.iter().enumerate() {
                needed[at] += count;
                if at > 0 {
                    let party = (at as u8 + 1, team as u8);
                    parties.extend(std::iter::repeat_n(party, *count as usize));
                }
            }
        }
        parties.sort_by_key(|(size, team)| (std::cmp::Reverse(*size), *team));
        self.found.push(Plan { needed, parties });
    }
}

fn split(left: usize, most: usize, counts: &mut Counts, out: &mut Vec<Partition>) {
    if left == 0 {
        let largest = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
        out.push(Partition {
            counts: *counts,
            largest: largest as u8 + 1,
        });
        return;
    }
    for part in 1..=most.min(left) {
        counts[part - 1] += 1;
        split(left - part, part, counts, out);
        counts[part - 1] -= 1;
    }
}

fn take(left: &mut Counts, wanted: &Counts) -> bool {
    if left.iter().zip(wanted).any(|(left, wanted)| left < wanted) {
        return false;
    }
    for (left, wanted) in left.iter_mut().zip(wanted) {
        *left -= wanted;
    }
    true
}

fn give(left: &mut Counts, back: &Counts) {
    for (left, back) in left.iter_mut().zip(back) {
        *left += back;
    }
}

/// Eight bits each: no count exceeds [`MATCH_PLAYERS_MAX`].
fn pack(counts: &Counts) -> u128 {
    counts
        .iter()
        .fold(0, |packed, count| packed << 8 | u128::from(*count))
}

const _: () = assert!(MATCH_PLAYERS_MAX < 256 && PARTY_MAX <= 16);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matchmaking::rules::RulesSpec;

    fn book(teams: u8, size: u8) -> PlanBook {
        PlanBook::new(&RulesSpec::simple(teams, size, "eu", 100).check().unwrap())
    }

    fn counts(of: &[u32]) -> Counts {
        let mut counts = [0; PARTY_MAX];
        counts[..of.len()].copy_from_slice(of);
        counts
    }

    #[test]
    fn three_and_three_never_fill_teams_of_five() {
        let mut book = book(2, 5);
        assert!(!book.is_possible(&counts(&[0, 0, 100])));
        assert!(!book.is_possible(&counts(&[1, 1, 100])));
        assert!(book.is_possible(&counts(&[0, 2, 2])));
        assert!(book.is_possible(&counts(&[2, 1, 2])));
        assert!(book.is_possible(&counts(&[10])));
    }

    #[test]
    fn the_gap_keeps_five_friends_from_five_who_came_alone() {
        let mut book = book(2, 5);
        let supply = counts(&[9]);
        assert!(book.plans(&supply, 5, 3).is_empty());
        let plans = book.plans(&supply, 5, 4);
        assert_eq!(plans.len(), 1);
        assert_eq!(plans[0].needed, counts(&[5]));
        let plans = book.plans(&counts(&[9, 0, 0, 1]), 5, 1);
        assert_eq!(plans.len(), 1);
        assert_eq!(plans[0].parties, [(4, 1)]);
    }

    #[test]
    fn every_plan_fills_every_team_and_uses_no_more_than_there_is() {
        let mut dice = crate::dice::Dice::new(9);
        for _ in 0..200 {
            let mut book = book(2 + dice.below(2) as u8, 4);
            let supply = counts(&std::array::from_fn::<u32, 4, _>(|_| dice.below(5) as u32));
            let seed = 1 + dice.below(4) as u8;
            for plan in book.plans(&supply, seed, 3).iter() {
                let players: u32 = (1..).zip(plan.needed).map(|(size, n)| size * n).sum();
                assert_eq!(players + u32::from(seed), book.teams as u32 * 4);
                assert!(plan.needed.iter().zip(supply).all(|(n, have)| *n <= have));
            }
        }
    }

    #[test]
    fn a_plan_is_found_for_many_teams() {
        let mut book = book(25, 4);
        assert_eq!(
            book.plans(&counts(&[100]), 1, 3).first().unwrap().needed[0],
            99
        );
        assert!(!book.plans(&counts(&[0, 50]), 2, 3).is_empty());
        assert!(book.is_possible(&counts(&[5, 1, 10, 20])));
        assert!(!book.is_possible(&counts(&[2, 1, 10, 20])));
    }
}
