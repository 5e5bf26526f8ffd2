//! How a shard is, as numbers: a value for programs, families for Prometheus. Labels are shards' names, which come from
//! configuration.

use std::time::Duration;

use phalanx_telemetry::metrics::{Exposition, Family};

use super::{owner::OwnerMetrics, shard::Role, shard::Shard};
use crate::matchmaking::{
    fairness::{self, Fairness},
    rules::Brownout,
};

/// Of the search's thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SearchMetrics {
    pub ticks: u64,
    pub proposals: u64,
    /// Ticks whose operations ran out.
    pub exhausted: u64,
    /// Tickets in the search after the last tick.
    pub waiting: u64,
    /// Those that the last tick should have looked at, and didn't.
    pub pending: u64,
    pub brownout: Brownout,
    /// Of all ticks.
    pub spent: Duration,
    pub last: Duration,
    pub longest: Duration,
}

/// What [`Shard::metrics`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardMetrics {
    pub role: Role,
    /// Requests that wait to be looked at.
    pub queued: u64,
    /// Requests turned away because too many waited.
    pub busy: u64,
    /// All zero on a standby.
    pub owner: OwnerMetrics,
    pub search: SearchMetrics,
    /// Syncs of the own disk: how many, how long all and the longest took.
    pub syncs: u64,
    pub syncing: Duration,
    pub longest_sync: Duration,
    /// Times that this process became the owner.
    pub takeovers: u64,
}

type Value = fn(&ShardMetrics) -> f64;

const FAMILIES: &[(Family, Value)] = &[
    (
        Family::gauge("phalanx_match_owner", "1 where this process owns the shard"),
        |shard| f64::from(u8::from(matches!(shard.role, Role::Owner { .. }))),
    ),
    (
        Family::gauge(
            "phalanx_match_standby_in_sync",
            "1 where a standby may take over",
        ),
        |shard| f64::from(u8::from(shard.owner.standby_in_sync)),
    ),
    (
        Family::counter(
            "phalanx_match_takeovers_total",
            "Times this process became the owner",
        ),
        |shard| shard.takeovers as f64,
    ),
    (
        Family::gauge(
            "phalanx_match_requests_queued",
            "Requests that wait to be looked at",
        ),
        |shard| shard.queued as f64,
    ),
    (
        Family::counter(
            "phalanx_match_requests_busy_total",
            "Requests turned away unseen",
        ),
        |shard| shard.busy as f64,
    ),
    (
        Family::counter("phalanx_match_tickets_entered_total", "Tickets taken in"),
        |shard| shard.owner.counts.entered as f64,
    ),
    (
        Family::counter(
            "phalanx_match_tickets_matched_total",
            "Tickets that got a match",
        ),
        |shard| shard.owner.counts.matched as f64,
    ),
    (
        Family::counter(
            "phalanx_match_tickets_cancelled_total",
            "Tickets that were cancelled",
        ),
        |shard| shard.owner.counts.cancelled as f64,
    ),
    (
        Family::counter(
            "phalanx_match_tickets_expired_total",
            "Tickets that waited too long",
        ),
        |shard| shard.owner.counts.expired as f64,
    ),
    (
        Family::counter(
            "phalanx_match_tickets_refused_total",
            "Tickets whose player refused",
        ),
        |shard| shard.owner.counts.refused as f64,
    ),
    (
        Family::counter(
            "phalanx_match_tickets_silent_total",
            "Tickets whose player said nothing",
        ),
        |shard| shard.owner.counts.unconfirmed as f64,
    ),
    (
        Family::counter(
            "phalanx_match_tickets_returned_total",
            "Tickets that went back to wait",
        ),
        |shard| shard.owner.counts.returned as f64,
    ),
    (
        Family::counter(
            "phalanx_match_tickets_turned_away_total",
            "Tickets never taken in",
        ),
        |shard| {
            let refused = &shard.owner.refused;
            (refused.unfit + refused.queued + refused.full + refused.draining) as f64
        },
    ),
    (
        Family::counter("phalanx_match_matches_total", "Matches that got a room"),
        |shard| shard.owner.counts.matches as f64,
    ),
    (
        Family::counter("phalanx_match_proposals_total", "Matches proposed"),
        |shard| shard.owner.counts.proposals as f64,
    ),
    (
        Family::gauge(
            "phalanx_match_tickets_inside",
            "Tickets in search and proposals",
        ),
        |shard| shard.owner.inside as f64,
    ),
    (
        Family::gauge(
            "phalanx_match_tickets_outside",
            "Tickets in the waiting room",
        ),
        |shard| shard.owner.outside as f64,
    ),
    (
        Family::gauge("phalanx_match_backfills", "Running matches with open seats"),
        |shard| shard.owner.backfills as f64,
    ),
    (
        Family::counter("phalanx_match_ticks_total", "Ticks of the search"),
        |shard| shard.search.ticks as f64,
    ),
    (
        Family::counter("phalanx_match_tick_seconds_total", "Time that ticks took"),
        |shard| shard.search.spent.as_secs_f64(),
    ),
    (
        Family::gauge("phalanx_match_tick_longest_seconds", "The longest tick"),
        |shard| shard.search.longest.as_secs_f64(),
    ),
    (
        Family::gauge(
            "phalanx_match_brownout",
            "0 to 3: how much of the rules gives way",
        ),
        |shard| shard.search.brownout as u8 as f64,
    ),
    (
        Family::counter("phalanx_match_log_records_total", "Records written"),
        |shard| shard.owner.records as f64,
    ),
    (
        Family::counter("phalanx_match_log_entries_total", "Entries written"),
        |shard| shard.owner.entries as f64,
    ),
    (
        Family::counter("phalanx_match_log_bytes_total", "Bytes written"),
        |shard| shard.owner.bytes as f64,
    ),
    (
        Family::counter(
            "phalanx_match_log_sync_seconds_total",
            "Time that syncs took",
        ),
        |shard| shard.syncing.as_secs_f64(),
    ),
    (
        Family::gauge("phalanx_match_log_sync_longest_seconds", "The longest sync"),
        |shard| shard.longest_sync.as_secs_f64(),
    ),
];

/// Writes the families of all shards of a process, those of fairness among them.
pub fn write(shards: &[Shard], out: &mut Exposition) {
    let all: Vec<(String, ShardMetrics)> = shards
        .iter()
        .map(|shard| (shard.key().to_string(), shard.metrics()))
        .collect();
    for (family, value) in FAMILIES {
        let mut samples = out.family(family);
        for (key, metrics) in &all {
            samples.sample(&[("shard", key.as_str())], value(metrics));
        }
    }
    let figures: Vec<_> = shards
        .iter()
        .map(|shard| (shard, shard.figures()))
        .collect();
    let figures: Vec<(String, &Fairness)> = figures
        .iter()
        .map(|(shard, figures)| (shard.key().to_string(), &**figures))
        .collect();
    fairness::write(&figures, out);
}
