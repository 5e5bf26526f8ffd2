//! Arrivals: recorded as JSON lines, one ticket each, or made up from a seed.

use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize};

use super::SPAN_MAX_MS;
use crate::dice::Dice;
use crate::matchmaking::rating::Rating;
use crate::matchmaking::rules::MatchRules;
use crate::matchmaking::ticket::{Latency, Player, RegionIndex, Roles, Ticket, TicketId};

/// Arrivals of one run at most.
pub const ARRIVALS_MAX: usize = 5_000_000;
/// Bytes of a recorded line at most.
pub const LINE_MAX: usize = 64 * 1_024;

/// A ticket that comes at its `enqueued_ms`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    pub ticket: Ticket,
    /// When the party gives up, on the clock of `enqueued_ms`; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_ms: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    #[error("line {line} of the recording can't be read")]
    Read {
        line: usize,
        #[source]
        source: io::Error,
    },
    #[error("line {line} of the recording isn't an arrival")]
    Parse {
        line: usize,
        #[source]
        source: serde_json::Error,
    },
    #[error("line {line} of the recording is longer than {LINE_MAX} bytes")]
    Long { line: usize },
    #[error("the recording has more than {ARRIVALS_MAX} arrivals")]
    Many,
    #[error("the recording spans {0} ms, at most {SPAN_MAX_MS} are run")]
    Span(u64),
}

/// Recorded arrivals, one JSON object per line (empty lines are passed over), sorted by time.
pub fn read(mut from: impl BufRead) -> Result<Vec<Arrival>, TwinError> {
    let mut arrivals = Vec::new();
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let count = from
            .by_ref()
            .take(LINE_MAX as u64 + 1)
            .read_until(b'\n', &mut text)
            .map_err(|source| TwinError::Read { line, source })?;
        if count == 0 {
            break;
        }
        if count > LINE_MAX {
            return Err(TwinError::Long { line });
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        if arrivals.len() == ARRIVALS_MAX {
            return Err(TwinError::Many);
        }
        let arrival: Arrival =
            serde_json::from_slice(&text).map_err(|source| TwinError::Parse { line, source })?;
        arrivals.push(arrival);
    }
    arrivals.sort_by_key(|arrival| (arrival.ticket.enqueued_ms, arrival.ticket.id));
    let at = |arrival: Option<&Arrival>| arrival.map_or(0, |arrival| arrival.ticket.enqueued_ms);
    let span = at(arrivals.last()) - at(arrivals.first());
    if span > SPAN_MAX_MS {
        return Err(TwinError::Span(span));
    }
    Ok(arrivals)
}

pub fn write<'a>(
    arrivals: impl IntoIterator<Item = &'a Arrival>,
    mut to: impl Write,
) -> io::Result<()> {
    for arrival in arrivals {
        serde_json::to_writer(&mut to, arrival)?;
        to.write_all(b"\n")?;
    }
    to.flush()
}

/// Players that nobody has met: what they are like, on average.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Synthetic {
    pub seed: u64,
    /// Unix milliseconds of the first.
    pub start_ms: u64,
    pub seconds: u64,
    /// Tickets per second.
    pub per_s: f64,
    /// Mean and deviation of `mu`.
    pub mu: (f64, f64),
    /// In percent; they have the deviation of [`Rating::NEWCOMER`], the others 1 to 3.
    pub newcomers: u8,
    /// Weights of the party sizes 1, 2, …
    pub parties: Vec<u32>,
    /// Weights of the regions in which players live, by the rules' list; missing ones count as 1.
    pub homes: Vec<u32>,
    /// Weights of the roles that players prefer, by the rules' list; missing ones count as 1. Every other player names a
    /// second role too.
    pub roles: Vec<u32>,
    /// Seconds until a party gives up: from half to one and a half times this. 0: never.
    pub patience_s: u64,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self {
            seed: 1,
            start_ms: 1_700_000_000_000,
            seconds: 300,
            per_s: 50.0,
            mu: (25.0, 6.0),
            newcomers: 10,
            parties: vec![1],
            homes: Vec::new(),
            roles: Vec::new(),
            patience_s: 0,
        }
    }
}

impl Synthetic {
    /// Arrivals for these rules, by time; at most [`ARRIVALS_MAX`].
    pub fn arrivals(&self, rules: &MatchRules) -> Vec<Arrival> {
        let mut dice = Dice::new(self.seed);
        let count = (self.per_s.max(0.0) * self.seconds as f64) as usize;
        let count = count.min(ARRIVALS_MAX);
        let span = self.seconds.saturating_mul(1_000).clamp(1, SPAN_MAX_MS);
        let mut times: Vec<u64> = (0..count).map(|_| dice.below(span)).collect();
        times.sort_unstable();
        times
            .into_iter()
            .zip(1..)
            .map(|(at, id)| self.arrival(rules, self.start_ms.saturating_add(at), id, &mut dice))
            .collect()
    }

    /// One party; `id` gives its ticket's and its players' ids (no two parties' players are the same).
    pub fn arrival(&self, rules: &MatchRules, at_ms: u64, id: u64, dice: &mut Dice) -> Arrival {
        let size = 1 + pick(&self.parties, self.parties.len().max(1), dice);
        let size = size.min(rules.party_max());
        let home = pick(&self.homes, rules.spec().regions.len(), dice);
        let own = self.mu.0 + self.mu.1 * normal(dice);
        let is_new = dice.chance(u64::from(self.newcomers), 100);
        let players = (0..size as u64)
            .map(|at| {
                // Friends are about as good as each other.
                let mu = own + normal(dice);
                let sigma = 1_000 + dice.below(2_000);
                let rating = match is_new {
                    true => Rating::NEWCOMER,
                    // Short numbers come back from JSON as they were.
                    false => Rating::new((mu * 1e3).round() / 1e3, sigma as f64 / 1e3),
                };
                Player {
                    id: id.wrapping_mul(32) + at,
                    rating,
                    roles: self.roles(rules, at as usize, dice),
                    latency_ms: latency(rules, home, dice),
                }
            })
            .collect();
        let most = self.patience_s.saturating_mul(1_000).min(SPAN_MAX_MS);
        let patience = most / 2 + dice.below(most + 1);
        Arrival {
            ticket: Ticket {
                id: TicketId(id),
                players,
                enqueued_ms: at_ms,
            },
            leaves_ms: (self.patience_s > 0).then_some(at_ms.saturating_add(patience)),
        }
    }

    /// Friends agree on who plays what, so that a party fits: the first by preference, the others what is left over.
    fn roles(&self, rules: &MatchRules, at: usize, dice: &mut Dice) -> Roles {
        let count = rules.spec().roles.len();
        if count == 0 || at > 0 {
            return Roles::default();
        }
        let first = pick(&self.roles, count, dice);
        let second = dice.below(count as u64) as usize;
        if dice.chance(1, 2) {
            Roles::of(&[first, second])
        } else {
            Roles::of(&[first])
        }
    }
}

/// 10 to 50 ms to the own region, 60 ms more for each step around the ring of regions.
fn latency(rules: &MatchRules, home: usize, dice: &mut Dice) -> Latency {
    let count = rules.spec().regions.len();
    let base = 10 + dice.below(40) as u16;
    let mut latency = Latency::NONE;
    for at in 0..count {
        let apart = home.abs_diff(at);
        let steps = apart.min(count - apart) as u16;
        let measured = base + steps * 60 + dice.below(10) as u16;
        latency.set(RegionIndex(at as u8), Some(measured));
    }
    latency
}

/// A place among `count`, by weights (1 where none is given).
fn pick(weights: &[u32], count: usize, dice: &mut Dice) -> usize {
    let weight = |at: usize| u64::from(weights.get(at).copied().unwrap_or(1));
    let total: u64 = (0..count).map(weight).sum();
    let mut drawn = dice.below(total);
    for at in 0..count {
        if drawn < weight(at) {
            return at;
        }
        drawn -= weight(at);
    }
    0
}

/// Nearly normal, by twelve draws: no logarithm, whose last digit differs between machines.
fn normal(dice: &mut Dice) -> f64 {
    let sum: f64 = (0..12).map(|_| dice.below(1 << 20) as f64).sum();
    sum / f64::from(1 << 20) - 6.0
}
