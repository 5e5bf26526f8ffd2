//! What a board counts about its readers and its snapshots.

use super::own::Rank;
use super::{Board, ReadError, StoreState, now_ms};
use phalanx_telemetry::metrics::{Exposition, Family};
use std::sync::atomic::{AtomicU64, Ordering};

/// A board's counts and levels at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Reads that were answered.
    pub answered: u64,
    /// Reads refused because the snapshot was too old, or there was none.
    pub refused_stale: u64,
    /// Reads with a token of a version that is gone.
    pub gone: u64,
    /// Reads that asked for something that isn't allowed.
    pub bad: u64,
    /// Own places: in the top, exact from the store, estimated, absent or unknown.
    pub rank_top: u64,
    pub rank_store: u64,
    pub rank_estimated: u64,
    pub rank_none: u64,
    pub published: u64,
    /// Of the newest snapshot; `None` without one.
    pub age_ms: Option<u64>,
    pub bytes: u64,
    /// `k_effective`.
    pub places: u64,
    pub wanted: u64,
    pub members: u64,
    /// Age is past [`BoardSpec::alarm_ms`](super::BoardSpec), or there is no snapshot.
    pub alarm: bool,
    pub store_up: bool,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    answered: AtomicU64,
    refused_stale: AtomicU64,
    gone: AtomicU64,
    bad: AtomicU64,
    rank_top: AtomicU64,
    rank_store: AtomicU64,
    rank_estimated: AtomicU64,
    rank_none: AtomicU64,
    published: AtomicU64,
}

impl Counts {
    pub fn published(&self) {
        add(&self.published);
    }

    pub fn ranked(&self, rank: &Rank) {
        add(match rank {
            Rank::Top { .. } => &self.rank_top,
            Rank::Store { .. } => &self.rank_store,
            Rank::About { .. } => &self.rank_estimated,
            Rank::Absent | Rank::Unknown => &self.rank_none,
        });
    }

    pub fn read(&self, board: &Board) -> Metrics {
        let newest = board.snapshot();
        let newest = newest.as_deref();
        let age_ms = newest.map(|newest| newest.age_ms(now_ms()));
        let last = newest.is_some_and(|newest| newest.is_final());
        let level = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Metrics {
            answered: level(&self.answered),
            refused_stale: level(&self.refused_stale),
            gone: level(&self.gone),
            bad: level(&self.bad),
            rank_top: level(&self.rank_top),
            rank_store: level(&self.rank_store),
            rank_estimated: level(&self.rank_estimated),
            rank_none: level(&self.rank_none),
            published: level(&self.published),
            age_ms,
            bytes: newest.map_or(0, |newest| newest.bytes() as u64),
            places: newest.map_or(0, |newest| newest.len() as u64),
            wanted: board.spec().top as u64,
            members: newest.map_or(0, |newest| newest.total()),
            alarm: !last && age_ms.is_none_or(|age| age >= board.spec().alarm_ms),
            store_up: board.store() == StoreState::Up,
        }
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl Board {
    /// Counts how a read ended.
    pub(super) fn count<T>(&self, read: Result<T, ReadError>) -> Result<T, ReadError> {
        add(match &read {
            Ok(_) => &self.counts.answered,
            Err(ReadError::Empty { .. } | ReadError::Stale { .. }) => &self.counts.refused_stale,
            Err(ReadError::Gone { .. }) => &self.counts.gone,
            Err(ReadError::Token(_) | ReadError::TooMany { .. } | ReadError::Player(_)) => {
                &self.counts.bad
            }
        });
        read
    }
}

const READS: Family = Family::counter("board_reads_total", "Reads of a board, by how they ended");
const RANKS: Family = Family::counter(
    "board_ranks_total",
    "Own places asked for, by where the answer came from",
);
const PUBLISHED: Family = Family::counter("board_published_total", "Snapshots published");
const AGE: Family = Family::gauge(
    "board_snapshot_age_seconds",
    "Since the store last confirmed the snapshot",
);
const BYTES: Family = Family::gauge("board_snapshot_bytes", "Memory of the newest snapshot");
const PLACES: Family = Family::gauge(
    "board_snapshot_places",
    "Places in the newest snapshot (k_effective)",
);
const WANTED: Family = Family::gauge(
    "board_snapshot_places_wanted",
    "Places that the specification asks for",
);
const MEMBERS: Family = Family::gauge("board_members", "Members of the whole board");
const ALARM: Family = Family::gauge(
    "board_alarm",
    "1 while the snapshot is older than alarm_ms, or missing",
);
const STORE: Family = Family::gauge(
    "board_store_up",
    "0 before the first refresh that succeeds, and while the breaker is open",
);

type Level = fn(&Metrics) -> u64;

/// Writes the metrics of these boards; the label `board` is the name in the specification.
pub fn write<'a>(boards: impl IntoIterator<Item = &'a Board>, out: &mut Exposition) {
    let boards: Vec<(&str, Metrics)> = boards
        .into_iter()
        .map(|board| (board.spec().name.as_str(), board.metrics()))
        .collect();
    let mut reads = out.family(&READS);
    for (name, metrics) in &boards {
        for (result, count) in [
            ("answered", metrics.answered),
            ("refused_stale", metrics.refused_stale),
            ("gone", metrics.gone),
            ("bad", metrics.bad),
        ] {
            reads.sample(&[("board", name), ("result", result)], count);
        }
    }
    let mut ranks = out.family(&RANKS);
    for (name, metrics) in &boards {
        for (source, count) in [
            ("top", metrics.rank_top),
            ("store", metrics.rank_store),
            ("estimated", metrics.rank_estimated),
            ("none", metrics.rank_none),
        ] {
            ranks.sample(&[("board", name), ("source", source)], count);
        }
    }
    let mut age = out.family(&AGE);
    for (name, metrics) in &boards {
        if let Some(age_ms) = metrics.age_ms {
            age.sample(&[("board", name)], age_ms as f64 / 1_000.0);
        }
    }
    let levels: [(&Family, Level); 7] = [
        (&PUBLISHED, |metrics| metrics.published),
        (&BYTES, |metrics| metrics.bytes),
        (&PLACES, |metrics| metrics.places),
        (&WANTED, |metrics| metrics.wanted),
        (&MEMBERS, |metrics| metrics.members),
        (&ALARM, |metrics| metrics.alarm.into()),
        (&STORE, |metrics| metrics.store_up.into()),
    ];
    for (family, level) in levels {
        let mut samples = out.family(family);
        for (name, metrics) in &boards {
            samples.sample(&[("board", name)], level(metrics));
        }
    }
}
