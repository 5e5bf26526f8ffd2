//! Who waits, and for what quality: figures by region, by rank (the tails apart), by party size and for newcomers, of
//! bounded size whatever comes. Fed by whoever runs the search; exported with labels from the rules alone.

mod figures;

use std::sync::Arc;

use phalanx_telemetry::metrics::{Exposition, Family};
use serde::Serialize;

use self::figures::{Buckets, Ranks};
use super::rules::MatchRules;
use super::search::Quality;
use super::ticket::{REGIONS_MAX, RegionIndex, Ticket};

/// Who has waited for longer counts as left alone, unless told otherwise.
pub const ALONE_MS: u64 = 120_000;

/// Upper bounds of the exported waiting times, in seconds.
const WAIT_BOUNDS: [f64; 11] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0,
];
/// Upper bounds of the exported quality: 1 is perfect.
const QUALITY_BOUNDS: [f64; 6] = [0.5, 0.7, 0.8, 0.9, 0.95, 0.99];

const WAIT: Family = Family::histogram(
    "phalanx_match_wait_seconds",
    "Waiting of matched tickets, by one side of a cohort at a time",
);
const QUALITY: Family = Family::histogram(
    "phalanx_match_quality",
    "Quality of the matches that tickets got, 1 is perfect",
);
const LEFT: Family = Family::counter(
    "phalanx_match_left_total",
    "Tickets that left without a match",
);
const ALONE: Family = Family::gauge(
    "phalanx_match_alone",
    "Tickets that wait for longer than the alarm allows, at the last look",
);

/// A side from which fairness is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    Region,
    Rank,
    Party,
    Experience,
}

impl By {
    pub const ALL: [By; 4] = [By::Region, By::Rank, By::Party, By::Experience];

    pub fn as_str(self) -> &'static str {
        match self {
            By::Region => "region",
            By::Rank => "rank",
            By::Party => "party",
            By::Experience => "experience",
        }
    }
}

/// Bands of rank, by the tickets that arrived: the weakest first.
pub const RANKS: [&str; 7] = [
    "bottom_1", "bottom_5", "lower", "middle", "upper", "top_5", "top_1",
];

/// What one cohort got.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cohort {
    pub by: By,
    pub name: String,
    pub matched: u64,
    /// Without a match: cancelled or expired.
    pub left: u64,
    /// Waiting for longer than the alarm allows, at the last look.
    pub alone: u64,
    /// Waiting of the matched, milliseconds (within 7 %).
    pub wait_ms: Percentiles,
    /// Score of the matches they got, 0 to 1,000: mean, and what all but the worst 5 % exceed (within 1 %).
    pub quality_mean: u64,
    pub quality_p5: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    pub p50: u64,
    pub p95: u64,
    pub p99: u64,
    pub max: u64,
}

/// The figures of one shard: some hundred kilobytes.
#[derive(Debug)]
pub struct Fairness {
    rules: Arc<MatchRules>,
    alone_ms: u64,
    ranks: Ranks,
    /// By [`By`] and the cohort's place there.
    cells: [Vec<Cell>; 4],
}

#[derive(Clone, Debug)]
struct Cell {
    wait: Buckets,
    wait_export: [u64; WAIT_BOUNDS.len() + 1],
    quality: Vec<u32>,
    quality_export: [u64; QUALITY_BOUNDS.len() + 1],
    quality_sum: u64,
    left: u64,
    alone: u64,
}

impl Cell {
    fn new() -> Self {
        Self {
            wait: Buckets::new(),
            wait_export: [0; WAIT_BOUNDS.len() + 1],
            quality: vec![0; 101],
            quality_export: [0; QUALITY_BOUNDS.len() + 1],
            quality_sum: 0,
            left: 0,
            alone: 0,
        }
    }

    fn matched(&mut self, waited_ms: u64, score: u16) {
        self.wait.record(waited_ms);
        self.wait_export[bucket(&WAIT_BOUNDS, waited_ms as f64 / 1_000.0)] += 1;
        let score = score.min(1_000);
        let fine = &mut self.quality[usize::from(score / 10)];
        *fine = fine.saturating_add(1);
        self.quality_export[bucket(&QUALITY_BOUNDS, f64::from(score) / 1_000.0)] += 1;
        self.quality_sum += u64::from(score);
    }

    /// The score that `part` of a hundred don't exceed.
    fn quality_at(&self, part: u64) -> u64 {
        let total: u64 = self.quality.iter().map(|count| u64::from(*count)).sum();
        let mut left = total * part / 100;
        for (at, count) in self.quality.iter().enumerate() {
            if u64::from(*count) > left {
                return at as u64 * 10;
            }
            left -= u64::from(*count);
        }
        0
    }
}

fn bucket(bounds: &[f64], value: f64) -> usize {
    bounds.partition_point(|bound| *bound < value)
}

impl Fairness {
    pub fn new(rules: Arc<MatchRules>) -> Self {
        let count = |by: By| match by {
            By::Region => rules.spec().regions.len(),
            By::Rank => RANKS.len(),
            By::Party => rules.party_max(),
            By::Experience => 2,
        };
        let cells = By::ALL.map(|by| vec![Cell::new(); count(by)]);
        let rating = &rules.spec().rating;
        Self {
            ranks: Ranks::new(rating.floor, rating.ceiling),
            alone_ms: ALONE_MS,
            cells,
            rules,
        }
    }

    /// From when on somebody counts as left alone.
    pub fn set_alone(&mut self, alone_ms: u64) {
        self.alone_ms = alone_ms;
    }

    /// A ticket came for the first time: rank is a place among those who come.
    pub fn arrived(&mut self, ticket: &Ticket) {
        self.ranks.observe(self.rules.value(ticket));
    }

    /// A ticket is part of a proposal (if that fails and it comes back, it is counted again with the next).
    pub fn matched(&mut self, ticket: &Ticket, quality: &Quality, now_ms: u64) {
        let waited = now_ms.saturating_sub(ticket.enqueued_ms);
        self.each(ticket, |cell| cell.matched(waited, quality.score));
    }

    /// A ticket went without a match.
    pub fn left(&mut self, ticket: &Ticket) {
        self.each(ticket, |cell| cell.left += 1);
    }

    /// Counts anew who is left alone; `waiting` are all who wait, oldest first (it stops at the first who isn't).
    pub fn look<'a>(&mut self, waiting: impl Iterator<Item = &'a Ticket>, now_ms: u64) {
        for cell in self.cells.iter_mut().flatten() {
            cell.alone = 0;
        }
        let alone_ms = self.alone_ms;
        for ticket in waiting {
            if now_ms.saturating_sub(ticket.enqueued_ms) <= alone_ms {
                break;
            }
            self.each(ticket, |cell| cell.alone += 1);
        }
    }

    /// Cohorts that have anything to tell.
    pub fn cohorts(&self) -> Vec<Cohort> {
        let mut all = Vec::new();
        for by in By::ALL {
            for (at, cell) in self.cells[by as usize].iter().enumerate() {
                let matched = cell.wait.count();
                if matched + cell.left + cell.alone == 0 {
                    continue;
                }
                all.push(Cohort {
                    by,
                    name: self.name(by, at),
                    matched,
                    left: cell.left,
                    alone: cell.alone,
                    wait_ms: Percentiles {
                        p50: cell.wait.percentile(50.0),
                        p95: cell.wait.percentile(95.0),
                        p99: cell.wait.percentile(99.0),
                        max: cell.wait.max(),
                    },
                    quality_mean: cell.quality_sum.checked_div(matched).unwrap_or(0),
                    quality_p5: cell.quality_at(5),
                });
            }
        }
        all
    }

    fn name(&self, by: By, at: usize) -> String {
        match by {
            By::Region => self
                .rules
                .region_name(RegionIndex(at as u8))
                .unwrap_or_default()
                .to_owned(),
            By::Rank => RANKS[at].to_owned(),
            By::Party => (at + 1).to_string(),
            By::Experience => ["newcomer", "known"][at].to_owned(),
        }
    }

    /// The region is the nearest, not the one where a match was found: it is where a player lives that fairness is about.
    /// A party with a newcomer is one.
    fn each(&mut self, ticket: &Ticket, mut change: impl FnMut(&mut Cell)) {
        let latency = self.rules.latency(ticket);
        let home = (0..self.rules.spec().regions.len().min(REGIONS_MAX))
            .min_by_key(|at| latency[*at])
            .unwrap_or(0);
        let newest = self.rules.spec().rating.newcomer_sigma;
        let is_new = ticket
            .players
            .iter()
            .any(|player| player.rating.sigma >= newest);
        let rank = self.ranks.band(self.rules.value(ticket));
        let size = ticket.players.len().saturating_sub(1);
        let places = [home, rank, size, usize::from(!is_new)];
        for (cells, at) in self.cells.iter_mut().zip(places) {
            if let Some(cell) = cells.get_mut(at) {
                change(cell);
            }
        }
    }
}

/// Writes the families of all shards of a process, by name. Labels are `shard`, `by` and `cohort`: region names of the
/// rules, bands, sizes.
pub fn write(shards: &[(String, &Fairness)], out: &mut Exposition) {
    let all: Vec<(&str, &'static str, String, &Cell)> = shards
        .iter()
        .flat_map(|(shard, fairness)| By::ALL.map(|by| (shard, fairness, by)))
        .flat_map(|(shard, fairness, by)| {
            let cells = fairness.cells[by as usize].iter().enumerate();
            cells.map(move |(at, cell)| (shard.as_str(), by.as_str(), fairness.name(by, at), cell))
        })
        .collect();
    let mut samples = out.family(&WAIT);
    for (shard, by, name, cell) in &all {
        let sum = cell.wait.sum() as f64 / 1_000.0;
        let labels = [("shard", *shard), ("by", *by), ("cohort", name.as_str())];
        samples.histogram(&labels, &WAIT_BOUNDS, &cell.wait_export, sum);
    }
    let mut samples = out.family(&QUALITY);
    for (shard, by, name, cell) in &all {
        let sum = cell.quality_sum as f64 / 1_000.0;
        let labels = [("shard", *shard), ("by", *by), ("cohort", name.as_str())];
        samples.histogram(&labels, &QUALITY_BOUNDS, &cell.quality_export, sum);
    }
    for family in [&LEFT, &ALONE] {
        let mut samples = out.family(family);
        for (shard, by, name, cell) in &all {
            let labels = [("shard", *shard), ("by", *by), ("cohort", name.as_str())];
            let is_left = family.name == LEFT.name;
            samples.sample(&labels, if is_left { cell.left } else { cell.alone });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matchmaking::rating::Rating;
    use crate::matchmaking::rules::RulesSpec;
    use crate::matchmaking::ticket::{Latency, Player, Roles, TicketId};

    fn ticket(id: u64, mu: f64, enqueued_ms: u64) -> Ticket {
        Ticket {
            id: TicketId(id),
            players: vec![Player {
                id,
                rating: Rating::new(mu, 1.0),
                roles: Roles::default(),
                latency_ms: Latency::of(&[20]),
            }],
            enqueued_ms,
        }
    }

    fn fairness() -> Fairness {
        Fairness::new(RulesSpec::simple(2, 1, "eu", 100).check().unwrap().shared())
    }

    #[test]
    fn tails_of_the_ranking_are_told_apart_from_the_middle() {
        let mut fairness = fairness();
        for at in 0..10_000 {
            let at = at * 7_919 % 10_000;
            fairness.arrived(&ticket(at, at as f64 / 200.0, 0));
        }
        let quality = Quality {
            score: 900,
            ..Quality::default()
        };
        for at in 0..10_000 {
            let waited = if at >= 9_900 { 60_000 } else { 1_000 };
            fairness.matched(&ticket(at, at as f64 / 200.0, 0), &quality, waited);
        }
        let cohorts = fairness.cohorts();
        let find = |name: &str| cohorts.iter().find(|cohort| cohort.name == name).unwrap();
        assert!(find("top_1").wait_ms.p50 > 55_000, "{:?}", find("top_1"));
        assert!(find("middle").wait_ms.p99 < 1_100);
        assert!((4_800..5_200).contains(&find("middle").matched));
        assert_eq!(find("eu").matched, 10_000);
        assert_eq!(find("eu").quality_mean, 900);
        assert_eq!(find("eu").quality_p5, 900);
        assert_eq!(find("known").matched, 10_000);
    }

    #[test]
    fn those_left_alone_are_counted_at_each_look() {
        let mut fairness = fairness();
        let waiting = [
            ticket(1, 25.0, 0),
            ticket(2, 25.0, 100_000),
            ticket(3, 25.0, 190_000),
        ];
        fairness.look(waiting.iter(), 230_000);
        assert_eq!(fairness.cohorts()[0].alone, 2);
        fairness.look(waiting[1..].iter(), 200_000);
        assert!(fairness.cohorts().is_empty());
        fairness.left(&waiting[0]);
        assert_eq!(fairness.cohorts()[0].left, 1);
    }

    #[test]
    fn exported_labels_come_from_the_rules() {
        let mut fairness = fairness();
        fairness.matched(&ticket(1, 25.0, 0), &Quality::default(), 2_500);
        let mut out = Exposition::new();
        let other = self::fairness();
        write(
            &[("duel".to_owned(), &fairness), ("other".to_owned(), &other)],
            &mut out,
        );
        let text = out.finish();
        let line = "phalanx_match_wait_seconds_bucket{shard=\"duel\",by=\"region\",cohort=\"eu\",le=\"5\"} 1";
        assert!(text.contains(line), "{text}");
        let cohorts = 1 + RANKS.len() + 1 + 2;
        assert_eq!(text.matches("phalanx_match_alone{").count(), 2 * cohorts);
    }
}
