//! What a board's Redis side counts.

use std::sync::atomic::{AtomicU64, Ordering};

use phalanx_telemetry::metrics::{Exposition, Family};

use super::{Failure, RedisBoard, Shared};
use crate::board::breaker::State;
use crate::board::now_ms;

/// Counts and levels at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisMetrics {
    pub breaker: State,
    pub openings_total: u64,
    pub probes_total: u64,
    pub refreshes_total: u64,
    /// Refreshes that read the top from the beginning.
    pub refreshes_full_total: u64,
    /// The last refresh that succeeded, and the slowest of all, µs.
    pub refresh_us: u64,
    pub refresh_us_max: u64,
    /// Since Redis last confirmed the snapshot, ms; `None` without one.
    pub snapshot_age_ms: Option<u64>,
    /// How often Redis was found to have lost data.
    pub healed_total: u64,
    /// Members of the board that no writer of ours made.
    pub foreign_total: u64,
    /// By kind, in the order of [`Failure::ALL`].
    pub failures_total: Vec<(Failure, u64)>,
    /// Questions about single players: asked, without an answer in time, not asked because too many were under way.
    pub ranks_asked_total: u64,
    pub ranks_late_total: u64,
    pub ranks_crowded_total: u64,
    pub ranks_breaker: State,
    pub writes: WriteMetrics,
}

/// Noughts without a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteMetrics {
    pub accepted_total: u64,
    /// Not accepted: the log is full, or its disk failed.
    pub refused_total: u64,
    pub shipped_total: u64,
    /// In the log, not yet in Redis.
    pub pending: u64,
    /// Since the oldest of them was accepted, ms.
    pub pending_age_ms: u64,
    pub log_bytes: u64,
    pub log_syncs_total: u64,
    /// Arrived for an epoch that was over, of players who are banned, or not readable by this version or rule.
    pub fenced_total: u64,
    pub barred_total: u64,
    pub skipped_total: u64,
    /// Records that Redis had and lost: sent again, or gone.
    pub rewound_total: u64,
    pub lost_total: u64,
    /// Accepted, but not shown to their player before Redis has them.
    pub hidden_total: u64,
    /// Results that readers are shown before Redis has them.
    pub shown: u64,
    pub log_unreadable: bool,
}

impl RedisMetrics {
    pub(super) fn of(shared: &Shared) -> Self {
        let level = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let progress = &shared.progress;
        let failures = Failure::ALL.iter().zip(&shared.failures);
        Self {
            breaker: shared.circuit.state(),
            openings_total: shared.circuit.openings(),
            probes_total: level(&progress.probes),
            refreshes_total: level(&progress.refreshes),
            refreshes_full_total: level(&progress.full),
            refresh_us: level(&progress.took_us),
            refresh_us_max: level(&progress.took_us_max),
            snapshot_age_ms: shared.board.age_ms(now_ms()),
            healed_total: level(&progress.healed),
            foreign_total: level(&progress.foreign),
            failures_total: failures
                .map(|(failure, count)| (*failure, level(count)))
                .collect(),
            ranks_asked_total: level(&shared.ranks.asked),
            ranks_late_total: level(&shared.ranks.late),
            ranks_crowded_total: level(&shared.ranks.crowded),
            ranks_breaker: shared.ranks.circuit.state(),
            writes: WriteMetrics::of(shared),
        }
    }
}

impl WriteMetrics {
    fn of(shared: &Shared) -> Self {
        let Some(log) = &shared.log else {
            return Self::default();
        };
        let level = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (counts, outbox) = (&log.counts, log.outbox.metrics());
        let oldest_ms = level(&counts.oldest_ms);
        let waits = outbox.pending > 0 && oldest_ms > 0;
        Self {
            accepted_total: level(&counts.accepted),
            refused_total: outbox.refused_total,
            shipped_total: level(&counts.shipped),
            pending: outbox.pending,
            pending_age_ms: if waits {
                now_ms().saturating_sub(oldest_ms)
            } else {
                0
            },
            log_bytes: outbox.bytes,
            log_syncs_total: outbox.syncs_total,
            fenced_total: level(&counts.fenced),
            barred_total: level(&counts.barred),
            skipped_total: level(&counts.skipped),
            rewound_total: level(&counts.rewound),
            lost_total: level(&counts.lost),
            hidden_total: log.pending.hidden(),
            shown: log.pending.records() as u64,
            log_unreadable: counts.stuck.load(Ordering::Relaxed),
        }
    }
}

const BREAKER: Family = Family::gauge(
    "board_breaker_open",
    "1 while Redis is left alone but for probes",
);
const PENDING: Family = Family::gauge(
    "board_writes_pending",
    "Results in the log that Redis doesn't have yet",
);
const PENDING_AGE: Family = Family::gauge(
    "board_writes_pending_age_seconds",
    "Since the oldest of the pending results was accepted",
);
const LOG_BYTES: Family = Family::gauge("board_log_bytes", "Files of the log");
const REFRESH: Family = Family::gauge("board_refresh_seconds", "How long the last refresh took");
const REFRESHES: Family = Family::counter("board_refreshes_total", "Refreshes that succeeded");
const FAILURES: Family = Family::counter(
    "board_redis_failures_total",
    "Calls of Redis that failed, by what went wrong",
);
const WRITES: Family = Family::counter("board_writes_total", "Results, by what became of them");
const RANKS: Family = Family::counter(
    "board_rank_questions_total",
    "Questions about single players outside the top, by whether Redis was asked",
);

type Level = fn(&RedisMetrics) -> f64;

/// Writes the metrics of the Redis side of these boards; [`board::write`](fn@crate::board::write) has those of readers.
pub fn write<'a>(boards: impl IntoIterator<Item = &'a RedisBoard>, out: &mut Exposition) {
    let boards: Vec<(&str, RedisMetrics)> = boards
        .into_iter()
        .map(|board| (board.board().spec().name.as_str(), board.metrics()))
        .collect();
    let levels: [(&Family, Level); 6] = [
        (&BREAKER, |metrics| {
            f64::from(u8::from(metrics.breaker != State::Closed))
        }),
        (&PENDING, |metrics| metrics.writes.pending as f64),
        (&PENDING_AGE, |metrics| {
            metrics.writes.pending_age_ms as f64 / 1e3
        }),
        (&LOG_BYTES, |metrics| metrics.writes.log_bytes as f64),
        (&REFRESH, |metrics| metrics.refresh_us as f64 / 1e6),
        (&REFRESHES, |metrics| metrics.refreshes_total as f64),
    ];
    for (family, level) in levels {
        let mut samples = out.family(family);
        for (name, metrics) in &boards {
            samples.sample(&[("board", name)], level(metrics));
        }
    }
    let mut failures = out.family(&FAILURES);
    for (name, metrics) in &boards {
        for (failure, count) in &metrics.failures_total {
            failures.sample(&[("board", name), ("kind", failure.name())], *count);
        }
    }
    let mut writes = out.family(&WRITES);
    for (name, metrics) in &boards {
        let of = &metrics.writes;
        for (result, count) in [
            ("accepted", of.accepted_total),
            ("refused", of.refused_total),
            ("shipped", of.shipped_total),
            ("fenced", of.fenced_total),
            ("barred", of.barred_total),
            ("skipped", of.skipped_total),
            ("rewound", of.rewound_total),
            ("lost", of.lost_total),
        ] {
            writes.sample(&[("board", name), ("result", result)], count);
        }
    }
    let mut ranks = out.family(&RANKS);
    for (name, metrics) in &boards {
        for (result, count) in [
            ("asked", metrics.ranks_asked_total),
            ("late", metrics.ranks_late_total),
            ("crowded", metrics.ranks_crowded_total),
        ] {
            ranks.sample(&[("board", name), ("result", result)], count);
        }
    }
}
