//! Claims about the search against oracles that try everything, on small pools and random courses. More rounds with
//! `PHALANX_SOAK` set to their number.

mod groups;
mod open;
mod pairs;

use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::dice::Dice;
use crate::matchmaking::rating::Rating;
use crate::matchmaking::rules::{RegionRules, RulesSpec, Widening};
use crate::matchmaking::ticket::{Latency, OpenSeats, Player, Roles};

const START: u64 = 1_700_000_000_000;

fn rounds(short: u64) -> u64 {
    std::env::var("PHALANX_SOAK")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .map_or(short, |rounds: u64| short * rounds.clamp(1, 40))
}

/// Three regions; a window from 1 to 8 within 35 s, latency from 60 to 120 ms.
fn spec(teams: u8, team_size: u8) -> RulesSpec {
    let mut spec = RulesSpec::simple(teams, team_size, "eu", 60);
    for name in ["us", "asia"] {
        spec.regions.push(RegionRules {
            name: name.to_owned(),
            latency_ms_max: 60,
        });
    }
    spec.rating.conservative = 0.0;
    spec.rating.window = Widening {
        start: 1.0,
        per_s: 0.2,
        cap: 8.0,
    };
    spec.latency = Widening {
        start: 0.0,
        per_s: 2.0,
        cap: 60.0,
    };
    spec
}

fn player(id: u64, mu: f64, roles: Roles, latency: &[u16]) -> Player {
    Player {
        id,
        rating: Rating::new(mu, 1.0),
        roles,
        latency_ms: Latency::of(latency),
    }
}

fn alone(id: u64, mu: f64, enqueued_ms: u64) -> Ticket {
    party(id, &[mu], enqueued_ms)
}

fn party(id: u64, mus: &[f64], enqueued_ms: u64) -> Ticket {
    let players = (0..).zip(mus);
    Ticket {
        id: TicketId(id),
        players: players
            .map(|(at, mu)| player(id * 100 + at, *mu, Roles::default(), &[20]))
            .collect(),
        enqueued_ms,
    }
}

fn random(rules: &MatchRules, id: u64, now: u64, width: u64, dice: &mut Dice) -> Ticket {
    let size = match dice.below(4) {
        0 => 1 + dice.below(rules.party_max() as u64),
        _ => 1,
    };
    let mu = dice.below(width * 1_000) as f64 / 1_000.0;
    let roles = rules.spec().roles.len() as u64;
    let players = (0..size)
        .map(|at| {
            let latency = [0; 3].map(|_: u16| 10 + dice.below(160) as u16);
            let wish = Roles(dice.below(1 << roles) as u8);
            player(id * 100 + at, mu, wish, &latency)
        })
        .collect();
    Ticket {
        id: TicketId(id),
        players,
        enqueued_ms: now - dice.below(3_000),
    }
}

/// A search whose every step is checked: proposals by [`verify`], and that nobody is lost or doubled.
struct World {
    search: Search,
    rules: Arc<MatchRules>,
    waiting: BTreeMap<TicketId, Ticket>,
    now: u64,
    brownout: Brownout,
    next: u64,
}

impl World {
    fn new(spec: RulesSpec) -> Self {
        let rules = spec.check().unwrap().shared();
        Self {
            search: Search::new(Arc::clone(&rules)),
            rules,
            waiting: BTreeMap::new(),
            now: START,
            brownout: Brownout::Off,
            next: 1,
        }
    }

    fn insert(&mut self, ticket: Ticket) {
        if self.rules.admit(&ticket).is_err() {
            assert!(matches!(
                self.search.insert(ticket),
                Err(Refused::Invalid(_))
            ));
            return;
        }
        self.search.insert(ticket.clone()).unwrap();
        assert_eq!(
            self.search.insert(ticket.clone()),
            Err(Refused::Waiting(ticket.id))
        );
        self.waiting.insert(ticket.id, ticket);
    }

    fn insert_random(&mut self, width: u64, dice: &mut Dice) {
        let ticket = random(&self.rules, self.next, self.now, width, dice);
        self.next += 1;
        self.insert(ticket);
    }

    fn remove(&mut self, id: TicketId) {
        let known = self.waiting.remove(&id);
        assert_eq!(self.search.remove(id).as_deref(), known.as_ref());
    }

    fn tick(&mut self, budget: Option<u64>) -> (Vec<Proposal>, TickReport) {
        let mut out = Vec::new();
        let mut allowed = self.rules.budget(self.brownout);
        allowed.operations = budget.unwrap_or(u64::MAX / 8);
        let report = self.search.tick(self.now, allowed, &mut out);
        assert_eq!(report.proposals, out.len());
        for proposal in &out {
            if proposal.backfill.is_none() {
                let find = |id| self.waiting.get(&id);
                verify::verify(&self.rules, self.brownout, self.now, proposal, find, None).unwrap();
            }
        }
        for id in out.iter().flat_map(Proposal::tickets) {
            self.waiting.remove(&id).unwrap();
        }
        self.check_nobody_is_lost();
        (out, report)
    }

    fn check_nobody_is_lost(&self) {
        assert_eq!(self.search.len(), self.waiting.len());
        let mut listed: Vec<_> = self
            .search
            .iter()
            .map(|ticket| (**ticket).clone())
            .collect();
        assert!(listed.is_sorted_by_key(|ticket| (ticket.enqueued_ms, ticket.id)));
        listed.sort_by_key(|ticket| ticket.id);
        assert!(listed.iter().eq(self.waiting.values()));
    }

    fn step(&self, ticket: &Ticket) -> usize {
        self.rules.step(self.now.saturating_sub(ticket.enqueued_ms))
    }

    /// The oracle: may these meet, as far as ratings and regions go?
    fn suit(&self, tickets: &[&Ticket]) -> bool {
        let step = tickets
            .iter()
            .map(|ticket| self.step(ticket))
            .min()
            .unwrap();
        let values = || tickets.iter().map(|ticket| self.rules.value(ticket));
        let spread = values().max().unwrap() - values().min().unwrap();
        let near = |ticket: &&Ticket| {
            let latency = self.rules.latency(ticket);
            self.rules.near(&latency, self.step(ticket))
        };
        let common = tickets
            .iter()
            .map(near)
            .fold(u16::MAX, |all, one| all & one);
        spread <= self.rules.ladder(self.brownout)[step].window && common != 0
    }
}

#[test]
fn the_same_course_gives_the_same_proposals() {
    let course = |seed: u64| {
        let mut dice = Dice::new(seed);
        let mut world = World::new(spec(2, 3));
        let mut all = Vec::new();
        for _ in 0..60 {
            for _ in 0..dice.below(8) {
                world.insert_random(20, &mut dice);
            }
            world.now += dice.below(2_000);
            all.extend(world.tick(Some(2_000)).0);
        }
        all
    };
    assert_eq!(course(4), course(4));
    assert!(!course(4).is_empty());
    assert_ne!(course(4), course(5));
}

#[test]
fn a_ticket_that_cant_be_admitted_is_told_all_reasons() {
    let mut search = Search::new(spec(2, 2).check().unwrap().shared());
    let mut ticket = party(1, &[20.0, 20.0, 20.0], START);
    assert!(matches!(
        search.insert(ticket.clone()),
        Err(Refused::Invalid(_))
    ));
    ticket.players.truncate(2);
    ticket.players[0].roles = Roles::of(&[1]);
    ticket.players[1].latency_ms = Latency::of(&[500, 500]);
    let Err(Refused::Invalid(problems)) = search.insert(ticket) else {
        panic!("taken");
    };
    assert_eq!(problems.list().len(), 2, "{problems}");
    assert!(search.is_empty());
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    let mut world = World::new(spec(2, 1));
    world.insert(alone(1, 20.0, START - 60_000));
    world.insert(alone(2, 27.0, START - 60_000));
    world.now = START - 59_000;
    assert!(
        world
            .search
            .tick(START, world.rules.budget(Brownout::Off), &mut Vec::new())
            .proposals
            == 1
    );
    let mut search = Search::new(Arc::clone(&world.rules));
    let budget = world.rules.budget(Brownout::Off);
    search.insert(alone(1, 20.0, START - 60_000)).unwrap();
    search.tick(START, budget, &mut Vec::new());
    search.insert(alone(2, 27.0, START - 60_000)).unwrap();
    assert_eq!(
        search
            .tick(START - 60_000, budget, &mut Vec::new())
            .proposals,
        1
    );
}

#[test]
fn a_waiting_ticket_costs_less_than_five_hundred_bytes() {
    let mut dice = Dice::new(2);
    let rules = spec(2, 1).check().unwrap().shared();
    let mut search = Search::new(Arc::clone(&rules));
    let empty = search.bytes();
    for id in 0..20_000 {
        search
            .insert(alone(id, dice.below(1_000_000) as f64 / 20.0, START))
            .unwrap();
    }
    search.tick(START, rules.budget(Brownout::Off), &mut Vec::new());
    let each = (search.bytes() - empty) / search.len().max(1);
    assert!(
        search.len() > 5_000 && each < 500 * 20_000 / search.len(),
        "{each}"
    );
}

#[test]
fn who_comes_and_goes_between_two_ticks_leaves_nothing_behind() {
    let rules = spec(2, 1).check().unwrap().shared();
    let mut search = Search::new(rules);
    let come_and_go = |search: &mut Search, times: u64| {
        for at in 0..times {
            search.insert(alone(at, 20.0, START)).unwrap();
            search.remove(TicketId(at)).unwrap();
        }
        search.bytes()
    };
    let once = come_and_go(&mut search, 10);
    assert_eq!(come_and_go(&mut search, 5_000), once);
}

#[test]
fn with_few_operations_everybody_is_looked_at_all_the_same() {
    for seed in 0..rounds(5) {
        let mut dice = Dice::new(seed);
        let mut world = World::new(spec(2, 1));
        for _ in 0..200 {
            world.insert_random(400, &mut dice);
        }
        let mut ticks = 0;
        loop {
            let (_, report) = world.tick(Some(60));
            ticks += 1;
            if !report.exhausted && report.pending == 0 {
                break;
            }
            assert!(ticks < 400, "{report:?}");
        }
        assert!(ticks > 3);
        pairs::assert_no_pair_is_left(&world);
    }
}

#[test]
fn a_crowd_that_widens_at_once_doesnt_keep_a_small_budget_from_seeking() {
    let mut world = World::new(spec(2, 1));
    for id in 0..300 {
        world.insert(alone(id, id as f64 * 1.5, START));
    }
    assert!(world.tick(Some(2_000)).0.is_empty());
    world.now = START + 5_000;
    let mut matches = 0;
    for _ in 0..100 {
        matches += world.tick(Some(2_000)).0.len();
    }
    assert_eq!(matches, 150);
}

#[test]
fn swaps_keep_the_members_and_make_matches_better() {
    let (mut plain_sum, mut improved_sum) = (0, 0);
    for seed in 0..rounds(10) {
        let scores = |brownout: Brownout| {
            let mut dice = Dice::new(seed);
            let mut spec = spec(2, 2);
            spec.brownout.widen_percent = 0;
            let mut world = World::new(spec);
            world.brownout = brownout;
            for _ in 0..60 {
                world.insert_random(10, &mut dice);
            }
            world.now += 30_000;
            let (proposals, _) = world.tick(None);
            let mut members: Vec<_> = proposals.iter().flat_map(Proposal::tickets).collect();
            members.sort();
            let score: u64 = proposals.iter().map(|p| u64::from(p.quality.score)).sum();
            (members, score)
        };
        let (plain, improved) = (scores(Brownout::Unimproved), scores(Brownout::Off));
        assert_eq!(plain.0, improved.0);
        // Scores are rounded down, one thousandth per match.
        assert!(improved.1 + 60 >= plain.1);
        plain_sum += plain.1;
        improved_sum += improved.1;
    }
    assert!(improved_sum > plain_sum, "{improved_sum} {plain_sum}");
}
