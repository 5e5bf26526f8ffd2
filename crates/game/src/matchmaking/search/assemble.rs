//! A match from what is around a seed: which party sizes, which parties of them, who sits in which team. Complete for
//! those who came alone, and for parties without roles; parties with roles are arranged by trying, within bounds.

use super::look::{Candidate, Scratch, View};
use super::plan::{Counts, Plan};
use crate::matchmaking::rules::{ANY_TEAM, Seating};
use crate::matchmaking::ticket::{OpenSeats, PARTY_MAX, ROLES_MAX};

/// Arrangements of parties with roles that are tried for one plan.
pub const SEATINGS_MAX: usize = 64;
/// Plans tried for one set of candidates.
const PLANS_TRIED: usize = 8;

/// A ticket's slot and its team.
pub(super) type Seats = Vec<(u32, u8)>;

impl Scratch {
    /// A match around a seed from the candidates: first from those so near that any of them suit each other, then from
    /// each stretch of ratings that is as long as the window and holds the seed.
    pub fn assemble(&mut self, view: &View<'_>, slot: u32, window: i32, gap: u8) -> Option<Seats> {
        let seed = view.hot(slot).value;
        let needed = self.players - usize::from(view.hot(slot).size);
        let players: usize = self.candidates.iter().map(|c| usize::from(c.size)).sum();
        if players < needed {
            return None;
        }
        self.candidates.sort_unstable();
        let half = window / 2;
        let found = self.pack(view, slot, gap, seed - half..=seed - half + window);
        if found.is_some() || self.chosen.len() == self.candidates.len() {
            return found;
        }
        let mut anchors = std::mem::take(&mut self.anchors);
        anchors.clear();
        anchors.push(seed);
        anchors.extend(
            self.candidates
                .iter()
                .map(|c| c.value)
                .filter(|value| *value < seed),
        );
        anchors.sort_unstable_by_key(|low| ((low + half - seed).abs(), *low));
        anchors.dedup();
        let mut found = None;
        for low in &anchors {
            found = self.pack(view, slot, gap, *low..=low.saturating_add(window));
            if found.is_some() || self.is_cut() {
                break;
            }
        }
        self.anchors = anchors;
        found
    }

    /// A match from the candidates in a stretch of ratings, cheapest plan first.
    fn pack(
        &mut self,
        view: &View<'_>,
        slot: u32,
        gap: u8,
        stretch: std::ops::RangeInclusive<i32>,
    ) -> Option<Seats> {
        let seed = view.hot(slot).size;
        let needed = self.players - usize::from(seed);
        self.chosen.clear();
        let within = self
            .candidates
            .iter()
            .filter(|c| stretch.contains(&c.value));
        self.chosen.extend(within);
        self.spent += 4 + self.candidates.len() as u64 / 2;
        let mut counts: Counts = [0; PARTY_MAX];
        let mut players = 0;
        for candidate in &self.chosen {
            counts[usize::from(candidate.size) - 1] += 1;
            players += usize::from(candidate.size);
        }
        if players < needed {
            return None;
        }
        let plans = self.plans.plans(&counts, seed, gap);
        self.spent += 4 + self.plans.take_tried();
        if let [plan] = &*plans {
            return self.seat(view, slot, plan);
        }
        let mut order: Vec<(i64, usize)> = plans
            .iter()
            .enumerate()
            .map(|(at, plan)| (self.price(plan), at))
            .collect();
        order.sort_unstable();
        // Whoever came alone must not depend on how parties could be arranged.
        let alone = |at: &usize| plans[*at].parties.is_empty();
        let tried = order.iter().map(|(_, at)| *at).take(PLANS_TRIED);
        let rest = order
            .iter()
            .map(|(_, at)| *at)
            .skip(PLANS_TRIED)
            .filter(alone);
        for at in tried.chain(rest) {
            let seats = self.seat(view, slot, &plans[at]);
            if seats.is_some() || self.is_cut() {
                return seats;
            }
        }
        None
    }

    /// What the plan's tickets cost together, the cheapest of each size.
    fn price(&mut self, plan: &Plan) -> i64 {
        let mut left = plan.needed;
        let mut price = 0;
        for candidate in &self.chosen {
            let left = &mut left[usize::from(candidate.size) - 1];
            if *left > 0 {
                *left -= 1;
                price += candidate.cost;
            }
        }
        self.spent += self.chosen.len() as u64 / 2;
        price
    }

    /// Who sits in which team by a plan.
    fn seat(&mut self, view: &View<'_>, slot: u32, plan: &Plan) -> Option<Seats> {
        self.spent += 40 + self.chosen.len() as u64;
        if view.rules.spec().roles.is_empty() {
            return Some(self.seat_all(view, slot, plan));
        }
        self.seating.reset(view.rules.teams(), view.rules.seats());
        let team = if view.hot(slot).size == 1 {
            ANY_TEAM
        } else {
            0
        };
        let mut arrange = Arrange {
            view,
            plan,
            chosen: &self.chosen,
            used: vec![false; self.chosen.len()],
            seated: vec![(slot, 0)],
            tries: 0,
            seating: &mut self.seating,
        };
        let found = arrange.seating.add_party(view.roles(slot), team) && arrange.parties(0);
        let seated = arrange.seated;
        self.spent += std::mem::take(&mut self.seating.looked) / 2;
        if !found {
            return None;
        }
        let places = self.seating.places();
        Some(
            seated
                .into_iter()
                .map(|(slot, first)| (slot, places[first].0))
                .collect(),
        )
    }

    /// Without roles everybody fits: parties as planned, the others from the strongest on into the weakest team.
    fn seat_all(&self, view: &View<'_>, slot: u32, plan: &Plan) -> Seats {
        let strength = |slot: u32| view.cold[slot as usize].strength;
        let mut seats = vec![(slot, 0)];
        for (size, group) in group_by_size(&plan.parties) {
            let cheapest = self.chosen.iter().filter(|c| c.size == size);
            seats.extend(cheapest.zip(group).map(|(c, (_, team))| (c.slot, *team)));
        }
        // Strength and players of each team.
        let mut teams = vec![(0_i64, 0_usize); view.rules.teams()];
        for (slot, team) in &seats {
            let team = &mut teams[usize::from(*team)];
            team.0 += strength(*slot);
            team.1 += usize::from(view.hot(*slot).size);
        }
        let mut alone: Vec<u32> = self
            .chosen
            .iter()
            .filter(|c| c.size == 1)
            .take(plan.needed[0] as usize)
            .map(|c| c.slot)
            .collect();
        alone.sort_by_key(|slot| std::cmp::Reverse(strength(*slot)));
        for slot in alone {
            let open = (0..teams.len())
                .filter(|team| teams[*team].1 < view.rules.team_size())
                .min_by_key(|team| (teams[*team].0, *team));
            let Some(team) = open else { break };
            teams[team].0 += strength(slot);
            teams[team].1 += 1;
            seats.push((slot, team as u8));
        }
        seats
    }

    /// Candidates into open seats, cheapest first, as many as fit: slots and where their players begin.
    pub fn take_seats(&mut self, view: &View<'_>, open: &[OpenSeats]) -> Vec<(u32, usize)> {
        self.seating.clear();
        for (team, seats) in open.iter().enumerate() {
            for (role, count) in seats.roles.iter().enumerate() {
                for _ in 0..*count {
                    self.seating.open(team as u8, role as u8);
                }
            }
            for _ in 0..seats.any {
                self.seating.open(team as u8, ROLES_MAX as u8);
            }
        }
        let mut seated = Vec::new();
        for candidate in &self.candidates {
            if self.seating.is_full() {
                break;
            }
            let first = self.seating.len();
            let fits = match candidate.size {
                1 => self.seating.add_party(view.roles(candidate.slot), ANY_TEAM),
                _ => (0..open.len()).any(|team| {
                    self.seating
                        .add_party(view.roles(candidate.slot), team as u8)
                }),
            };
            if fits {
                seated.push((candidate.slot, first));
            }
        }
        self.spent += std::mem::take(&mut self.seating.looked) / 2;
        seated
    }
}

/// Parties of one size after the other (they are ordered so).
fn group_by_size(parties: &[(u8, u8)]) -> impl Iterator<Item = (u8, &[(u8, u8)])> {
    parties
        .chunk_by(|one, two| one.0 == two.0)
        .map(|group| (group[0].0, group))
}

/// Tickets with roles into seats, by trying.
struct Arrange<'a> {
    view: &'a View<'a>,
    plan: &'a Plan,
    chosen: &'a [Candidate],
    used: Vec<bool>,
    /// Slots, and where their players begin.
    seated: Vec<(u32, usize)>,
    tries: usize,
    seating: &'a mut Seating,
}

impl Arrange<'_> {
    fn parties(&mut self, at: usize) -> bool {
        let Some((size, team)) = self.plan.parties.get(at).copied() else {
            return self.alone();
        };
        for (place, candidate) in self.chosen.iter().enumerate() {
            if self.used[place] || candidate.size != size {
                continue;
            }
            if self.tries >= SEATINGS_MAX {
                return false;
            }
            let first = self.seating.len();
            if !self
                .seating
                .add_party(self.view.roles(candidate.slot), team)
            {
                self.tries += 1;
                continue;
            }
            self.used[place] = true;
            self.seated.push((candidate.slot, first));
            if self.parties(at + 1) {
                return true;
            }
            self.seated.pop();
            self.used[place] = false;
            self.seating.shrink(first);
        }
        false
    }

    /// All who came alone, cheapest first: each is taken who can be seated with those before.
    fn alone(&mut self) -> bool {
        let (players, tickets) = (self.seating.len(), self.seated.len());
        for candidate in self.chosen.iter().filter(|c| c.size == 1) {
            if self.seating.is_full() {
                break;
            }
            let first = self.seating.len();
            if self
                .seating
                .add_party(self.view.roles(candidate.slot), ANY_TEAM)
            {
                self.seated.push((candidate.slot, first));
            }
        }
        if self.seating.is_full() {
            return true;
        }
        self.tries += 1;
        self.seating.shrink(players);
        self.seated.truncate(tickets);
        false
    }
}
