//! What a match is and how patience widens it: teams, roles, regions, rating window, parties, and what the search may
//! spend. [`RulesSpec`] is what a designer writes; [`MatchRules`] is the same, checked once, with its ladder of steps worked
//! out. The search asks only the latter; [`MatchRules::admit`] is the door for tickets.
//!
//! A ticket stands on a step of the [ladder](MatchRules::ladder), by its waiting time alone, and a match obeys the step of
//! its youngest ticket: nobody plays in a match that is wider than what he himself has waited for.

mod seats;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use self::seats::{ANY_TEAM, Seating};
use super::rating::RATING_MAX;
use super::ticket::{
    self, Backfill, PARTY_MAX, Problems, REGIONS_MAX, ROLES_MAX, RegionIndex, Ticket,
};

/// Steps of a ladder at most, the first included.
pub const STEPS_MAX: usize = 16;
/// Teams of a match at most.
pub const TEAMS_MAX: u8 = 32;
/// Players of a team at most.
pub const TEAM_SIZE_MAX: u8 = 16;
/// Players of a match at most.
pub const MATCH_PLAYERS_MAX: usize = 128;
/// Letters of a role's or region's name at most.
pub const NAME_MAX: usize = 32;
/// Thousandths per unit of rating: the search reckons in whole thousandths, so that every machine gets the same result.
pub const MILLI: f64 = 1_000.0;

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

/// How much has given way; each level includes those before it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Brownout {
    #[default]
    Off,
    /// Rating windows are wider.
    Widened,
    /// No swaps between matches.
    Unimproved,
    /// Longer between ticks.
    Slowed,
}

impl Brownout {
    pub const ALL: [Brownout; 4] = [
        Brownout::Off,
        Brownout::Widened,
        Brownout::Unimproved,
        Brownout::Slowed,
    ];

    pub fn more(self) -> Self {
        match self {
            Brownout::Off => Brownout::Widened,
            Brownout::Widened => Brownout::Unimproved,
            _ => Brownout::Slowed,
        }
    }

    pub fn less(self) -> Self {
        match self {
            Brownout::Slowed => Brownout::Unimproved,
            Brownout::Unimproved => Brownout::Widened,
            _ => Brownout::Off,
        }
    }
}

/// What one tick may spend, see [`MatchRules::budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub operations: u64,
    pub brownout: Brownout,
}

/// What a ticket may take part in, from a waiting time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub after_ms: u64,
    /// The largest difference of ratings, in thousandths.
    pub window: i32,
    /// Added to every region's `latency_ms_max`.
    pub latency_ms: u16,
    /// The largest difference between the teams' largest parties, in players.
    pub gap: u8,
}

/// Checked rules with what follows from them. Cheap to share, never changed: a new version is a new shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RulesSpec", into = "RulesSpec")]
pub struct MatchRules {
    spec: RulesSpec,
    ladder: Vec<Step>,
    widened: Vec<Step>,
    /// Role of each seat of a team, [`ROLES_MAX`] where everybody fits.
    seats: Vec<u8>,
    party_max: usize,
}

impl TryFrom<RulesSpec> for MatchRules {
    type Error = Problems;

    fn try_from(spec: RulesSpec) -> Result<Self, Problems> {
        spec.check()
    }
}

impl From<MatchRules> for RulesSpec {
    fn from(rules: MatchRules) -> Self {
        rules.spec
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

impl MatchRules {
    pub fn spec(&self) -> &RulesSpec {
        &self.spec
    }

    pub fn teams(&self) -> usize {
        usize::from(self.spec.teams)
    }

    pub fn team_size(&self) -> usize {
        usize::from(self.spec.team_size)
    }

    /// Of one match.
    pub fn players(&self) -> usize {
        self.teams() * self.team_size()
    }

    /// Of one party at most.
    pub fn party_max(&self) -> usize {
        self.party_max
    }

    pub fn region_name(&self, region: RegionIndex) -> Option<&str> {
        self.spec
            .regions
            .get(usize::from(region.0))
            .map(|region| region.name.as_str())
    }

    pub fn region(&self, name: &str) -> Option<RegionIndex> {
        let at = self
            .spec
            .regions
            .iter()
            .position(|region| region.name == name)?;
        Some(RegionIndex(at as u8))
    }

    /// The place of a role in a [`ticket::Roles`].
    pub fn role(&self, name: &str) -> Option<usize> {
        self.spec.roles.iter().position(|role| role.name == name)
    }

    /// Role of each seat of a team, [`ROLES_MAX`] where everybody fits.
    pub(crate) fn seats(&self) -> &[u8] {
        &self.seats
    }

    /// What patience allows, step by step; the last step lasts.
    pub fn ladder(&self, brownout: Brownout) -> &[Step] {
        if brownout == Brownout::Off {
            &self.ladder
        } else {
            &self.widened
        }
    }

    /// The place on the ladder of one who has waited so long.
    pub fn step(&self, waited_ms: u64) -> usize {
        ((waited_ms / self.spec.step_ms) as usize).min(self.ladder.len() - 1)
    }

    pub fn budget(&self, brownout: Brownout) -> Budget {
        Budget {
            operations: self.spec.tick.operations,
            brownout,
        }
    }

    /// Between two ticks.
    pub fn period(&self, brownout: Brownout) -> Duration {
        let factor = match brownout {
            Brownout::Slowed => u64::from(self.spec.brownout.period_factor),
            _ => 1,
        };
        Duration::from_millis(self.spec.tick.period_ms * factor)
    }

    /// Where a ticket stands among the others, in thousandths of a rating.
    pub fn value(&self, ticket: &Ticket) -> i32 {
        let values = ticket
            .players
            .iter()
            .map(|player| player.rating.conservative(self.spec.rating.conservative));
        let value = match self.spec.party.value {
            PartyValue::Mean => values.sum::<f64>() / ticket.players.len().max(1) as f64,
            PartyValue::Highest => values.fold(f64::NEG_INFINITY, f64::max),
        };
        (value * MILLI).round() as i32
    }

    /// The longest round trip of the party's players to each region; 65,535 where one of them didn't measure.
    pub(crate) fn latency(&self, ticket: &Ticket) -> [u16; REGIONS_MAX] {
        let mut worst = [0; REGIONS_MAX];
        for player in &ticket.players {
            for (worst, own) in worst.iter_mut().zip(player.latency_ms.raw()) {
                *worst = (*worst).max(*own);
            }
        }
        worst
    }

    /// The regions that are near enough on a step of the (normal) ladder, one bit each.
    pub(crate) fn near(&self, latency: &[u16; REGIONS_MAX], step: usize) -> u16 {
        let extra = self.ladder[step.min(self.ladder.len() - 1)].latency_ms;
        let mut near = 0;
        for (at, (region, own)) in self.spec.regions.iter().zip(latency).enumerate() {
            let most = region.latency_ms_max.saturating_add(extra);
            if *own != u16::MAX && *own <= most {
                near |= 1 << at;
            }
        }
        near
    }

    /// The door: everything that keeps a ticket from ever being matched under these rules.
    pub fn admit(&self, ticket: &Ticket) -> Result<(), Problems> {
        let mut problems = Problems::default();
        ticket::check_players(ticket, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        if ticket.players.len() > self.party_max {
            problems.add(format!(
                "players: {} are more than the {} of a party here",
                ticket.players.len(),
                self.party_max
            ));
            return Err(problems);
        }
        self.admit_roles(ticket, &mut problems);
        self.admit_regions(ticket, &mut problems);
        self.admit_spread(ticket, &mut problems);
        problems.or(())
    }

    fn admit_roles(&self, ticket: &Ticket, problems: &mut Problems) {
        let known = (1_u16 << self.spec.roles.len()) - 1;
        for (at, player) in ticket.players.iter().enumerate() {
            if u16::from(player.roles.0) & !known != 0 {
                problems.add(format!(
                    "players[{at}].roles: {:?} isn't all within the {} roles of these rules",
                    player.roles.iter().collect::<Vec<_>>(),
                    self.spec.roles.len()
                ));
            }
        }
        let mut team = Seating::team(&self.seats);
        let seated = ticket
            .players
            .iter()
            .all(|player| team.add(player.roles.0, ANY_TEAM));
        if problems.is_empty() && !seated {
            problems.add("players: their roles don't fit into one team together");
        }
    }

    fn admit_regions(&self, ticket: &Ticket, problems: &mut Problems) {
        for (at, player) in ticket.players.iter().enumerate() {
            let beyond = (self.spec.regions.len()..REGIONS_MAX)
                .find(|region| player.latency_ms.to(RegionIndex(*region as u8)).is_some());
            if let Some(region) = beyond {
                problems.add(format!(
                    "players[{at}].latency_ms[{region}]: these rules have {} regions",
                    self.spec.regions.len()
                ));
            }
        }
        if self.near(&self.latency(ticket), self.ladder.len() - 1) == 0 {
            problems.add("players: no region is ever near enough to all of them");
        }
    }

    fn admit_spread(&self, ticket: &Ticket, problems: &mut Problems) {
        let Some(most) = self.spec.party.spread_max else {
            return;
        };
        let values = ticket
            .players
            .iter()
            .map(|player| player.rating.conservative(self.spec.rating.conservative));
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        if high - low > most {
            problems.add(format!(
                "players: their ratings differ by {:.1}, {most} is allowed in a party",
                high - low
            ));
        }
    }

    /// The door for open seats.
    pub fn admit_backfill(&self, backfill: &Backfill) -> Result<(), Problems> {
        let mut problems = Problems::default();
        if usize::from(backfill.region.0) >= self.spec.regions.len() {
            problems.add(format!(
                "region: {} of {}",
                backfill.region.0,
                self.spec.regions.len()
            ));
        }
        if backfill.rating.is_nan() || backfill.rating.abs() > RATING_MAX {
            problems.add(format!(
                "rating: {} is out of bounds (±{RATING_MAX})",
                backfill.rating
            ));
        }
        if backfill.open.len() != self.teams() {
            problems.add(format!(
                "open: {} teams of {}",
                backfill.open.len(),
                self.teams()
            ));
        }
        let mut total = 0;
        for (at, team) in backfill.open.iter().enumerate() {
            if team.roles.len() > self.spec.roles.len() {
                problems.add(format!(
                    "open[{at}].roles: {} of {}",
                    team.roles.len(),
                    self.spec.roles.len()
                ));
            }
            if team.total() > self.team_size() {
                problems.add(format!(
                    "open[{at}]: {} seats in a team of {}",
                    team.total(),
                    self.team_size()
                ));
            }
            total += team.total();
        }
        if total == 0 {
            problems.add("open: no seat is open");
        }
        problems.or(())
    }

    pub fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }
}

const _: () = assert!(PARTY_MAX >= TEAM_SIZE_MAX as usize);

#[cfg(test)]
mod tests;
