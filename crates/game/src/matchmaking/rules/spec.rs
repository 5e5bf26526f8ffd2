//! What a designer writes, its defaults and its checks: every problem at once, each with its path. The ladder of steps is
//! worked out here, too.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    MATCH_PLAYERS_MAX, MILLI, MatchRules, NAME_MAX, STEPS_MAX, Step, TEAM_SIZE_MAX, TEAMS_MAX,
};
use crate::matchmaking::rating::RATING_MAX;
use crate::matchmaking::ticket::{Problems, REGIONS_MAX, ROLES_MAX};

const OPERATIONS: std::ops::RangeInclusive<u64> = 10_000..=1_000_000_000;
const PERIOD_MS: std::ops::RangeInclusive<u64> = 10..=10_000;

/// What a designer writes (JSON or YAML; unknown keys are refused). Checked by [`RulesSpec::check`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RulesSpec {
    /// Of one match: 1 (together against the game) to [`TEAMS_MAX`].
    pub teams: u8,
    /// Players per team: 1 to [`TEAM_SIZE_MAX`]; a match has 2 to [`MATCH_PLAYERS_MAX`] players.
    pub team_size: u8,
    /// Seats of each team that ask for a role; the seats left over take everybody. Empty: no roles.
    #[serde(default)]
    pub roles: Vec<RoleSeats>,
    /// Where this shard's matches run: 1 to [`REGIONS_MAX`].
    pub regions: Vec<RegionRules>,
    #[serde(default)]
    pub rating: RatingRules,
    /// Milliseconds that patience adds to every region's `latency_ms_max`.
    #[serde(default = "Widening::none")]
    pub latency: Widening,
    #[serde(default)]
    pub party: PartyRules,
    /// How long a step of the ladder lasts. Default 5,000 ms. Every widening must reach its cap within
    /// [`STEPS_MAX`] steps.
    #[serde(default = "step_ms")]
    pub step_ms: u64,
    #[serde(default)]
    pub quality: Weights,
    #[serde(default)]
    pub tick: TickRules,
    #[serde(default)]
    pub brownout: BrownoutRules,
}

fn step_ms() -> u64 {
    5_000
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSeats {
    pub name: String,
    /// Per team, at least 1.
    pub seats: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionRules {
    pub name: String,
    /// Round trip that every player of a match must be within, before patience adds to it.
    pub latency_ms_max: u16,
}

/// A bound that grows with waiting: `min(cap, start + per_s × seconds waited)`, taken at the start of each step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Widening {
    pub start: f64,
    #[serde(default)]
    pub per_s: f64,
    pub cap: f64,
}

impl Widening {
    pub const fn fixed(value: f64) -> Self {
        Self {
            start: value,
            per_s: 0.0,
            cap: value,
        }
    }

    fn none() -> Self {
        Self::fixed(0.0)
    }

    fn at(&self, waited: Duration) -> f64 {
        (self.start + self.per_s * waited.as_secs_f64()).min(self.cap)
    }

    /// Steps until the cap, the first included.
    fn steps(&self, step_ms: u64) -> usize {
        if self.per_s <= 0.0 || self.cap <= self.start {
            return 1;
        }
        let seconds = (self.cap - self.start) / self.per_s;
        ((seconds * 1_000.0 / step_ms as f64).ceil() as usize).saturating_add(1)
    }

    fn check(&self, path: &str, most: f64, problems: &mut Problems) {
        let all = [
            ("start", self.start),
            ("per_s", self.per_s),
            ("cap", self.cap),
        ];
        for (name, value) in all {
            if !(0.0..=most).contains(&value) {
                problems.add(format!(
                    "{path}.{name}: {value} is out of bounds (0 to {most})"
                ));
            }
        }
        if self.cap < self.start {
            problems.add(format!(
                "{path}.cap: {} is below start {}",
                self.cap, self.start
            ));
        }
        if self.per_s == 0.0 && self.cap > self.start {
            problems.add(format!(
                "{path}.per_s: with 0 the cap {} is never reached",
                self.cap
            ));
        }
    }
}

/// How strengths are compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RatingRules {
    /// Windows compare `mu - conservative × sigma`. Default 3.
    pub conservative: f64,
    /// The largest difference between any two parties of a match. Default 3 to 30 at 0.5 per second.
    pub window: Widening,
    /// Where nearly all values lie: the search's cells and the rank bands divide this range (values outside are counted in
    /// the outermost cell, and are matched like all others). Default -25 to 75, for the scale of Weng-Lin.
    pub floor: f64,
    pub ceiling: f64,
    /// Players with a sigma of at least this are newcomers in the fairness figures. Default 7.
    pub newcomer_sigma: f64,
}

impl Default for RatingRules {
    fn default() -> Self {
        Self {
            conservative: 3.0,
            window: Widening {
                start: 3.0,
                per_s: 0.5,
                cap: 30.0,
            },
            floor: -25.0,
            ceiling: 75.0,
            newcomer_sigma: 7.0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartyRules {
    /// Players of a party at most; 0 (default): as many as a team has.
    pub players_max: u8,
    /// The largest difference of conservative values within one party; none (default): any.
    pub spread_max: Option<f64>,
    /// The value that stands for a party. Default mean.
    pub value: PartyValue,
    /// Of each team take the size of its largest party: by how much may teams differ? Default 1 at first, then one more
    /// each 5 s up to any: a party of five meets parties of four and five first.
    pub gap: Widening,
}

impl Default for PartyRules {
    fn default() -> Self {
        Self {
            players_max: 0,
            spread_max: None,
            value: PartyValue::Mean,
            gap: Widening {
                start: 1.0,
                per_s: 0.2,
                cap: f64::from(TEAM_SIZE_MAX),
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartyValue {
    /// Of the players' conservative values.
    Mean,
    /// The strongest player's: friends can't pull someone down to easier matches.
    Highest,
}

/// What a good match is: parts of a thousand, relative to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Weights {
    pub rating: u16,
    pub balance: u16,
    pub latency: u16,
    /// How much a candidate's waiting counts against its distance. Oldest seeds go first whatever this says.
    pub waiting: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            rating: 500,
            balance: 200,
            latency: 200,
            waiting: 100,
        }
    }
}

/// What the search may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TickRules {
    /// Between two ticks. Default 100 ms.
    pub period_ms: u64,
    /// Candidates and seats looked at per tick: counted, not timed, so that a replay does the same. Default 2,000,000
    /// (a few nanoseconds each).
    pub operations: u64,
}

impl Default for TickRules {
    fn default() -> Self {
        Self {
            period_ms: 100,
            operations: 2_000_000,
        }
    }
}

/// What gives way before anybody is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrownoutRules {
    /// How much wider than normal rating windows are, in percent. Default 50.
    pub widen_percent: u16,
    /// How much longer the period is when slowed. Default 2.
    pub period_factor: u8,
}

impl Default for BrownoutRules {
    fn default() -> Self {
        Self {
            widen_percent: 50,
            period_factor: 2,
        }
    }
}

impl RulesSpec {
    /// Teams of `team_size` in one region with the defaults of everything else.
    pub fn simple(teams: u8, team_size: u8, region: &str, latency_ms_max: u16) -> Self {
        Self {
            teams,
            team_size,
            roles: Vec::new(),
            regions: vec![RegionRules {
                name: region.to_owned(),
                latency_ms_max,
            }],
            rating: RatingRules::default(),
            latency: Widening::none(),
            party: PartyRules::default(),
            step_ms: step_ms(),
            quality: Weights::default(),
            tick: TickRules::default(),
            brownout: BrownoutRules::default(),
        }
    }

    /// The rules, or everything that is wrong with them.
    pub fn check(self) -> Result<MatchRules, Problems> {
        let mut problems = Problems::default();
        self.check_shape(&mut problems);
        self.check_names(&mut problems);
        self.check_numbers(&mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let ladder = self.ladder(100, &mut problems);
        let widened = self.ladder(100 + u32::from(self.brownout.widen_percent), &mut problems);
        let mut seats = vec![ROLES_MAX as u8; usize::from(self.team_size)];
        let asked =
            self.roles.iter().enumerate().flat_map(|(place, role)| {
                std::iter::repeat_n(place as u8, usize::from(role.seats))
            });
        for (seat, role) in seats.iter_mut().zip(asked) {
            *seat = role;
        }
        let party_max = match self.party.players_max {
            0 => usize::from(self.team_size),
            most => usize::from(most),
        };
        problems.or(MatchRules {
            spec: self,
            ladder,
            widened,
            seats,
            party_max,
        })
    }

    fn check_shape(&self, problems: &mut Problems) {
        if !(1..=TEAMS_MAX).contains(&self.teams) {
            problems.add(format!(
                "teams: {} is out of bounds (1 to {TEAMS_MAX})",
                self.teams
            ));
        }
        if !(1..=TEAM_SIZE_MAX).contains(&self.team_size) {
            problems.add(format!(
                "team_size: {} is out of bounds (1 to {TEAM_SIZE_MAX})",
                self.team_size
            ));
        }
        let players = usize::from(self.teams) * usize::from(self.team_size);
        if !(2..=MATCH_PLAYERS_MAX).contains(&players) {
            problems.add(format!(
                "teams × team_size: {players} players are out of bounds (2 to {MATCH_PLAYERS_MAX})"
            ));
        }
        if self.party.players_max > self.team_size {
            problems.add(format!(
                "party.players_max: {} players don't fit into a team of {}",
                self.party.players_max, self.team_size
            ));
        }
    }

    fn check_names(&self, problems: &mut Problems) {
        if self.roles.len() > ROLES_MAX {
            problems.add(format!(
                "roles: {} are more than {ROLES_MAX}",
                self.roles.len()
            ));
        }
        let seats: usize = self.roles.iter().map(|role| usize::from(role.seats)).sum();
        if seats > usize::from(self.team_size) {
            problems.add(format!(
                "roles: {seats} seats in a team of {}",
                self.team_size
            ));
        }
        for (at, role) in self.roles.iter().enumerate() {
            check_name(&format!("roles[{at}].name"), &role.name, problems);
            if role.seats == 0 {
                problems.add(format!("roles[{at}].seats: a role has at least one"));
            }
            if self.roles[..at].iter().any(|other| other.name == role.name) {
                problems.add(format!("roles[{at}].name: {:?} is there twice", role.name));
            }
        }
        if !(1..=REGIONS_MAX).contains(&self.regions.len()) {
            problems.add(format!(
                "regions: {} are out of bounds (1 to {REGIONS_MAX})",
                self.regions.len()
            ));
        }
        for (at, region) in self.regions.iter().enumerate() {
            check_name(&format!("regions[{at}].name"), &region.name, problems);
            if region.latency_ms_max == 0 {
                problems.add(format!("regions[{at}].latency_ms_max: 0 lets nobody in"));
            }
            if self.regions[..at]
                .iter()
                .any(|other| other.name == region.name)
            {
                problems.add(format!(
                    "regions[{at}].name: {:?} is there twice",
                    region.name
                ));
            }
        }
    }

    fn check_numbers(&self, problems: &mut Problems) {
        let rating = &self.rating;
        if !(0.0..=10.0).contains(&rating.conservative) {
            problems.add(format!(
                "rating.conservative: {} is out of bounds (0 to 10)",
                rating.conservative
            ));
        }
        rating.window.check("rating.window", RATING_MAX, problems);
        let range = -RATING_MAX..=RATING_MAX;
        let sound = range.contains(&rating.floor)
            && range.contains(&rating.ceiling)
            && rating.ceiling - rating.floor >= 1.0;
        if !sound {
            problems.add(format!(
                "rating.floor, rating.ceiling: {} to {} is no range (within ±{RATING_MAX}, at least 1 wide)",
                rating.floor, rating.ceiling
            ));
        }
        if !(0.0..=RATING_MAX).contains(&rating.newcomer_sigma) {
            problems.add(format!(
                "rating.newcomer_sigma: {} is out of bounds (0 to {RATING_MAX})",
                rating.newcomer_sigma
            ));
        }
        self.latency.check("latency", 10_000.0, problems);
        self.party
            .gap
            .check("party.gap", f64::from(TEAM_SIZE_MAX), problems);
        if let Some(most) = self
            .party
            .spread_max
            .filter(|most| !(0.0..=RATING_MAX).contains(most))
        {
            problems.add(format!(
                "party.spread_max: {most} is out of bounds (0 to {RATING_MAX})"
            ));
        }
        if !(100..=600_000).contains(&self.step_ms) {
            problems.add(format!(
                "step_ms: {} is out of bounds (100 to 600000)",
                self.step_ms
            ));
        }
        if !PERIOD_MS.contains(&self.tick.period_ms) {
            problems.add(format!(
                "tick.period_ms: {} is out of bounds ({PERIOD_MS:?})",
                self.tick.period_ms
            ));
        }
        if !OPERATIONS.contains(&self.tick.operations) {
            problems.add(format!(
                "tick.operations: {} is out of bounds ({OPERATIONS:?})",
                self.tick.operations
            ));
        }
        if self.brownout.widen_percent > 1_000 {
            problems.add(format!(
                "brownout.widen_percent: {} is above 1000",
                self.brownout.widen_percent
            ));
        }
        if !(1..=20).contains(&self.brownout.period_factor) {
            problems.add(format!(
                "brownout.period_factor: {} is out of bounds (1 to 20)",
                self.brownout.period_factor
            ));
        }
    }

    /// The gap can't exceed a team, so that patience needn't reach further than that.
    fn gap(&self) -> Widening {
        let most = f64::from(self.team_size.saturating_sub(1));
        let gap = self.party.gap;
        Widening {
            start: gap.start.min(most),
            cap: gap.cap.min(most),
            ..gap
        }
    }

    fn ladder(&self, percent: u32, problems: &mut Problems) -> Vec<Step> {
        let gap = self.gap();
        let all = [
            ("rating.window", self.rating.window),
            ("latency", self.latency),
            ("party.gap", gap),
        ];
        let mut count = 1;
        for (path, widening) in all {
            let steps = widening.steps(self.step_ms);
            if steps > STEPS_MAX && percent == 100 {
                let least = (widening.cap - widening.start) / widening.per_s * 1_000.0
                    / (STEPS_MAX - 1) as f64;
                problems.add(format!(
                    "{path}: reaches its cap after {steps} steps, {STEPS_MAX} are allowed; raise step_ms to {:.0} or per_s",
                    least.ceil()
                ));
            }
            count = count.max(steps.min(STEPS_MAX));
        }
        let mut ladder: Vec<Step> = Vec::with_capacity(count);
        for at in 0..count as u64 {
            let waited = Duration::from_millis(at * self.step_ms);
            let window = self.rating.window.at(waited) * f64::from(percent) / 100.0;
            let step = Step {
                after_ms: at * self.step_ms,
                window: (window * MILLI).round() as i32,
                latency_ms: self.latency.at(waited) as u16,
                gap: gap.at(waited) as u8,
            };
            ladder.push(step);
        }
        ladder
    }
}

fn check_name(path: &str, name: &str, problems: &mut Problems) {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(letter) {
        problems.add(format!(
            "{path}: {name:?} isn't 1 to {NAME_MAX} letters, digits, dots, dashes or underscores"
        ));
    }
}
