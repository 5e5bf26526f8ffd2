//! What waits: a ticket is one party that wants one match, whole or not at all. In comes what a client or a log says;
//! `check` bounds it and names every problem at once. What the mode allows beyond that is `rules`' matter.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::rating::{RATING_MAX, Rating};

/// Regions that a shard's rules name at most.
pub const REGIONS_MAX: usize = 16;
/// Roles that a shard's rules name at most.
pub const ROLES_MAX: usize = 8;
/// Players of a party at most, whatever the rules say.
pub const PARTY_MAX: usize = 16;
/// Problems that one refusal lists; more are counted.
pub const PROBLEMS_MAX: usize = 16;

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct TicketId(pub u64);

impl fmt::Display for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A region by its place in the rules' list.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct RegionIndex(pub u8);

/// One party: matched into one team, whole or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    pub id: TicketId,
    /// 1 to [`PARTY_MAX`], no id twice.
    pub players: Vec<Player>,
    /// Since when this party waits, unix milliseconds; kept when a proposal fails.
    pub enqueued_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Player {
    pub id: u64,
    #[serde(default)]
    pub rating: Rating,
    /// What this player would play; without any, everything.
    #[serde(default)]
    pub roles: Roles,
    /// Round trip to each region.
    pub latency_ms: Latency,
}

/// A set of roles, by their places in the rules' list. In JSON a list of places: `[0, 2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Roles(pub u8);

impl Roles {
    /// The places must be below [`ROLES_MAX`]; others are left out (as the door sees no more than this set, parse foreign
    /// lists through serde, which refuses them).
    pub fn of(places: &[usize]) -> Self {
        Self(
            places
                .iter()
                .filter(|place| **place < ROLES_MAX)
                .fold(0, |set, place| set | 1 << place),
        )
    }

    pub fn contains(self, place: usize) -> bool {
        place < ROLES_MAX && self.0 & (1 << place) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..ROLES_MAX).filter(move |place| self.contains(*place))
    }
}

impl Serialize for Roles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.iter().collect::<Vec<_>>().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Roles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let places = Vec::<usize>::deserialize(deserializer)?;
        match places.iter().find(|place| **place >= ROLES_MAX) {
            None => Ok(Self::of(&places)),
            Some(place) => Err(serde::de::Error::custom(format_args!(
                "role {place}: there are at most {ROLES_MAX}"
            ))),
        }
    }
}

/// Round trips in milliseconds by region, in the rules' order; regions that weren't measured are never chosen.
/// In JSON a list, `null` for what wasn't measured: `[23, null, 140]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Latency([u16; REGIONS_MAX]);

impl Latency {
    const UNMEASURED: u16 = u16::MAX;
    /// Nothing measured.
    pub const NONE: Latency = Latency([Self::UNMEASURED; REGIONS_MAX]);
    /// The largest round trip that is told apart, in milliseconds.
    pub const MAX: u16 = u16::MAX - 1;

    /// Of the first regions, in order; entries beyond [`REGIONS_MAX`] are left out.
    pub fn of(measured: &[u16]) -> Self {
        let mut latency = Self::NONE;
        for (slot, value) in latency.0.iter_mut().zip(measured) {
            *slot = (*value).min(Self::MAX);
        }
        latency
    }

    pub fn set(&mut self, region: RegionIndex, measured: Option<u16>) {
        if let Some(slot) = self.0.get_mut(usize::from(region.0)) {
            *slot = measured.map_or(Self::UNMEASURED, |value| value.min(Self::MAX));
        }
    }

    pub fn to(&self, region: RegionIndex) -> Option<u16> {
        self.0
            .get(usize::from(region.0))
            .copied()
            .filter(|value| *value != Self::UNMEASURED)
    }

    /// As the search keeps it: 65,535 where nothing was measured.
    pub(crate) fn raw(&self) -> &[u16; REGIONS_MAX] {
        &self.0
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.known()).finish()
    }
}

impl Latency {
    /// Up to the last one that was measured.
    fn known(&self) -> Vec<Option<u16>> {
        let end = self
            .0
            .iter()
            .rposition(|value| *value != Self::UNMEASURED)
            .map_or(0, |at| at + 1);
        self.0[..end]
            .iter()
            .map(|value| (*value != Self::UNMEASURED).then_some(*value))
            .collect()
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.known().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = Vec::<Option<u16>>::deserialize(deserializer)?;
        if values.len() > REGIONS_MAX {
            return Err(serde::de::Error::custom(format_args!(
                "{} regions: there are at most {REGIONS_MAX}",
                values.len()
            )));
        }
        let mut latency = Self::NONE;
        for (slot, value) in latency.0.iter_mut().zip(values) {
            *slot = value.map_or(Self::UNMEASURED, |value| value.min(Self::MAX));
        }
        Ok(latency)
    }
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct BackfillId(pub u64);

impl fmt::Display for BackfillId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A running match that has open seats. Once it is part of a proposal it is no longer offered: its server offers again
/// what is still open then, with the same `since_ms`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backfill {
    pub id: BackfillId,
    /// Where the match runs.
    pub region: RegionIndex,
    /// The strength that plays there: the mean of the players' conservative values.
    pub rating: f64,
    /// Of each team, in the match's order (so long as the rules' number of teams).
    pub open: Vec<OpenSeats>,
    /// Since when seats are open, unix milliseconds: its window widens as a ticket's does.
    pub since_ms: u64,
}

/// The open seats of one team.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSeats {
    /// Seats of a role, by the role's place in the rules' list.
    #[serde(default)]
    pub roles: Vec<u8>,
    /// Seats that take whoever comes.
    #[serde(default)]
    pub any: u8,
}

impl OpenSeats {
    pub fn total(&self) -> usize {
        self.roles
            .iter()
            .map(|seats| usize::from(*seats))
            .sum::<usize>()
            + usize::from(self.any)
    }
}

/// All that is wrong with something, each with its path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    list: Vec<String>,
    more: usize,
}

impl Problems {
    pub fn add(&mut self, problem: impl Into<String>) {
        if self.list.len() < PROBLEMS_MAX {
            self.list.push(problem.into());
        } else {
            self.more += 1;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The first [`PROBLEMS_MAX`].
    pub fn list(&self) -> &[String] {
        &self.list
    }

    pub fn or<T>(self, value: T) -> Result<T, Problems> {
        if self.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.list.join("; "))?;
        if self.more > 0 {
            write!(f, "; and {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The bounds that hold for every mode: `MatchRules::admit` asks this first.
pub(crate) fn check(ticket: &Ticket, problems: &mut Problems) {
    let players = &ticket.players;
    if players.is_empty() {
        problems.add("players: a ticket has at least one");
    }
    if players.len() > PARTY_MAX {
        problems.add(format!(
            "players: {} are more than the {PARTY_MAX} of the largest party",
            players.len()
        ));
        return;
    }
    for (at, player) in players.iter().enumerate() {
        if !player.rating.is_sound() {
            problems.add(format!(
                "players[{at}].rating: {} ± {} is out of bounds (mu within ±{RATING_MAX}, sigma 0 to {RATING_MAX})",
                player.rating.mu, player.rating.sigma
            ));
        }
        if player.latency_ms == Latency::NONE {
            problems.add(format!("players[{at}].latency_ms: no region is measured"));
        }
        if players[..at].iter().any(|other| other.id == player.id) {
            problems.add(format!("players[{at}].id: {} is there twice", player.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_a_ticket_is_named_at_once() {
        let player = Player {
            id: 7,
            rating: Rating::new(f64::NAN, 1.0),
            roles: Roles::default(),
            latency_ms: Latency::NONE,
        };
        let ticket = Ticket {
            id: TicketId(1),
            players: vec![player.clone(), player],
            enqueued_ms: 0,
        };
        let check = |ticket: &Ticket| {
            let mut problems = Problems::default();
            super::check(ticket, &mut problems);
            problems.list().len()
        };
        assert_eq!(check(&ticket), 5);
        let empty = Ticket {
            players: vec![],
            ..ticket
        };
        assert_eq!(check(&empty), 1);
    }

    #[test]
    fn a_ticket_is_readable_as_json_and_comes_back() {
        let text = r#"{"id":9,"players":[{"id":1,"rating":{"mu":25.0,"sigma":2.0},"roles":[0,2],"latency_ms":[23,null,140]}],"enqueued_ms":5}"#;
        let ticket: Ticket = serde_json::from_str(text).unwrap();
        let player = &ticket.players[0];
        assert_eq!(player.roles, Roles::of(&[0, 2]));
        assert_eq!(player.latency_ms.to(RegionIndex(0)), Some(23));
        assert_eq!(player.latency_ms.to(RegionIndex(1)), None);
        assert_eq!(player.latency_ms.to(RegionIndex(200)), None);
        assert_eq!(serde_json::to_string(&ticket).unwrap(), text);
    }

    #[test]
    fn foreign_lists_that_are_too_long_are_refused() {
        assert!(serde_json::from_str::<Roles>("[8]").is_err());
        assert!(serde_json::from_str::<Latency>(&format!("[{}1]", "1,".repeat(16))).is_err());
        assert!(
            serde_json::from_str::<Ticket>(r#"{"id":1,"players":[],"enqueued_ms":0,"x":1}"#)
                .is_err()
        );
    }
}
