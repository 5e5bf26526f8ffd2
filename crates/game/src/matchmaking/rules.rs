//! What a match is and how patience widens it: teams, roles, regions, rating window, parties, and what the search may
//! spend. [`RulesSpec`] is what a designer writes; [`MatchRules`] is the same, checked once, with its ladder of steps worked
//! out. The search asks only the latter; [`MatchRules::admit`] is the door for tickets.
//!
//! A ticket stands on a step of the [ladder](MatchRules::ladder), by its waiting time alone, and a match obeys the step of
//! its youngest ticket: nobody plays in a match that is wider than what he himself has waited for.

mod seats;
mod spec;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use self::seats::{ANY_TEAM, Seating};
pub use self::spec::{
    BrownoutRules, PartyRules, PartyValue, RatingRules, RegionRules, RoleSeats, RulesSpec,
    TickRules, Weights, Widening,
};
use super::rating::RATING_MAX;
use super::ticket::{self, Backfill, PARTY_MAX, Problems, REGIONS_MAX, RegionIndex, Ticket};

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
    /// Role of each seat of a team, [`ticket::ROLES_MAX`] where everybody fits.
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

    /// Role of each seat of a team, [`ticket::ROLES_MAX`] where everybody fits.
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
        ticket::check(ticket, &mut problems);
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
