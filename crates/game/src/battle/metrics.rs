//! What is counted: how fights ended, how long they waited and took, what the queues and the limit are like. Workers count
//! in cells of their own; a [`Metrics`] is the sum at one moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use phalanx_telemetry::metrics::{Exposition, Family, Samples};

use super::VersionView;
use super::call::{CLASSES, Class};

/// How a fight ended; each ends in exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    Result,
    Foul,
    /// Out of fuel.
    Exhausted,
    LateAtDoor,
    LateInQueue,
    LateInFight,
    Cancelled,
    /// The limit of fights in flight was reached.
    Limit,
    QueueFull,
    /// Waited longer than its class should while the core was overloaded.
    TooOld,
    Poison,
    Panicked,
    Draining,
}

impl End {
    pub const ALL: [Self; 13] = [
        Self::Result,
        Self::Foul,
        Self::Exhausted,
        Self::LateAtDoor,
        Self::LateInQueue,
        Self::LateInFight,
        Self::Cancelled,
        Self::Limit,
        Self::QueueFull,
        Self::TooOld,
        Self::Poison,
        Self::Panicked,
        Self::Draining,
    ];

    /// As in the label `end`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Foul => "foul",
            Self::Exhausted => "exhausted",
            Self::LateAtDoor => "late_at_door",
            Self::LateInQueue => "late_in_queue",
            Self::LateInFight => "late_in_fight",
            Self::Cancelled => "cancelled",
            Self::Limit => "limit",
            Self::QueueFull => "queue_full",
            Self::TooOld => "too_old",
            Self::Poison => "poison",
            Self::Panicked => "panicked",
            Self::Draining => "draining",
        }
    }
}

const ENDS: usize = End::ALL.len();
/// Upper bounds of the buckets of time, in microseconds.
const BOUNDS_US: [u64; 15] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    1_000_000,
];
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// One writer's cells. `count` and `took` are for a single writer; whoever shares a tally uses `count_shared`.
#[derive(Debug)]
pub(crate) struct Tally {
    ends: [[AtomicU64; ENDS]; CLASSES],
    waits: [Times; CLASSES],
    fights: Times,
    pub arena_bytes: AtomicU64,
    pub arena_trims: AtomicU64,
    pub stolen: AtomicU64,
    pub turned: AtomicU64,
}

#[derive(Debug)]
struct Times {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Times {
    const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
        }
    }

    fn add(&self, ns: u64) {
        let at = BOUNDS_US.partition_point(|bound| bound * 1_000 < ns);
        if let Some(bucket) = self.buckets.get(at) {
            add(bucket, 1);
        }
        add(&self.sum_ns, ns);
    }
}

/// Of a cell with one writer.
fn add(cell: &AtomicU64, more: u64) {
    cell.store(
        cell.load(Ordering::Relaxed).wrapping_add(more),
        Ordering::Relaxed,
    );
}

impl Tally {
    pub const fn new() -> Self {
        Self {
            ends: [const { [const { AtomicU64::new(0) }; ENDS] }; CLASSES],
            waits: [const { Times::new() }; CLASSES],
            fights: Times::new(),
            arena_bytes: AtomicU64::new(0),
            arena_trims: AtomicU64::new(0),
            stolen: AtomicU64::new(0),
            turned: AtomicU64::new(0),
        }
    }

    pub fn count(&self, class: Class, end: End) {
        add(&self.ends[class.index()][end as usize], 1);
    }

    pub fn count_shared(&self, class: Class, end: End) {
        self.ends[class.index()][end as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn waited(&self, class: Class, ns: u64) {
        self.waits[class.index()].add(ns);
    }

    pub fn fought(&self, ns: u64) {
        self.fights.add(ns);
    }
}

/// A distribution of times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper bound in seconds and count of each bucket (not cumulative); the last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// Seconds.
    pub sum: f64,
}

impl Histogram {
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    fn of<'a>(times: impl Iterator<Item = &'a Times>) -> Self {
        let (mut counts, mut sum) = ([0; BUCKETS], 0);
        for one in times {
            for (count, bucket) in counts.iter_mut().zip(&one.buckets) {
                *count += bucket.load(Ordering::Relaxed);
            }
            sum += one.sum_ns.load(Ordering::Relaxed);
        }
        let bounds = BOUNDS_US.iter().map(|&us| us as f64 / 1e6);
        Self {
            buckets: bounds.chain([f64::INFINITY]).zip(counts).collect(),
            sum: sum as f64 / 1e9,
        }
    }

    fn write(&self, labels: &[(&str, &str)], samples: &mut Samples<'_>) {
        let (bounds, counts): (Vec<f64>, Vec<u64>) = self.buckets.iter().copied().unzip();
        // The exposition adds the infinite one.
        if let Some((_, bounds)) = bounds.split_last() {
            samples.histogram(labels, bounds, &counts, self.sum);
        }
    }
}

/// Of one kind of battle.
#[derive(Clone, Debug, Default)]
pub struct KindMetrics {
    pub name: &'static str,
    /// Moving average of a fight's time.
    pub cost: Duration,
    pub versions: Vec<VersionView>,
    pub rollbacks: u64,
    /// Fights run on shadow rules, and those of them that ended differently.
    pub shadowed: u64,
    pub shadow_differs: u64,
}

/// Of an executor, since its start.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// By [`Class`], then by [`End`]; see [`Metrics::ended`].
    pub ends: [[u64; ENDS]; CLASSES],
    pub waits: [Histogram; CLASSES],
    pub fights: Histogram,
    pub in_flight: [u32; CLASSES],
    /// Of fights in flight, as admission has found it out.
    pub limit: u32,
    pub queued: u64,
    /// Estimated work that is queued or running.
    pub work: Duration,
    pub arena_bytes: u64,
    pub arena_trims: u64,
    /// Inputs that panicked of late.
    pub suspects: u64,
    /// Fights that a core took from another one's queue.
    pub stolen: u64,
    /// How often a queue turned to newest first.
    pub turned: u64,
    /// Cores whose fight doesn't end though its deadline has passed.
    pub stuck: u64,
    pub kinds: Vec<KindMetrics>,
}

impl Metrics {
    pub fn ended(&self, class: Class, end: End) -> u64 {
        self.ends[class.index()][end as usize]
    }

    /// Of all classes.
    pub fn ended_by(&self, end: End) -> u64 {
        self.ends.iter().map(|ends| ends[end as usize]).sum()
    }

    pub fn ended_in_all(&self) -> u64 {
        self.ends.iter().flatten().sum()
    }

    pub(crate) fn of_tallies<'a>(tallies: impl Iterator<Item = &'a Tally> + Clone) -> Self {
        let mut metrics = Self::default();
        for tally in tallies.clone() {
            for (sums, cells) in metrics.ends.iter_mut().zip(&tally.ends) {
                for (sum, cell) in sums.iter_mut().zip(cells) {
                    *sum += cell.load(Ordering::Relaxed);
                }
            }
            metrics.arena_bytes += tally.arena_bytes.load(Ordering::Relaxed);
            metrics.arena_trims += tally.arena_trims.load(Ordering::Relaxed);
            metrics.stolen += tally.stolen.load(Ordering::Relaxed);
            metrics.turned += tally.turned.load(Ordering::Relaxed);
        }
        metrics.waits = std::array::from_fn(|class| {
            Histogram::of(tallies.clone().map(|tally| &tally.waits[class]))
        });
        metrics.fights = Histogram::of(tallies.map(|tally| &tally.fights));
        metrics
    }

    /// Writes the families `phalanx_battle_*`. Labels are classes, ends, and names and versions from code.
    pub fn write(&self, out: &mut Exposition) {
        let classes = Class::ALL.map(Class::name);
        let mut samples = out.family(&ENDED);
        for (class, ends) in Class::ALL.into_iter().zip(&self.ends) {
            for (end, &count) in End::ALL
                .into_iter()
                .zip(ends)
                .filter(|(_, count)| **count > 0)
            {
                samples.sample(&[("class", class.name()), ("end", end.name())], count);
            }
        }
        let mut samples = out.family(&WAIT);
        for (class, waits) in classes.into_iter().zip(&self.waits) {
            waits.write(&[("class", class)], &mut samples);
        }
        self.fights.write(&[], &mut out.family(&FIGHT));
        let mut samples = out.family(&IN_FLIGHT);
        for (class, &count) in classes.into_iter().zip(&self.in_flight) {
            samples.sample(&[("class", class)], u64::from(count));
        }
        for (family, value) in [
            (&LIMIT, u64::from(self.limit)),
            (&QUEUED, self.queued),
            (&ARENA, self.arena_bytes),
            (&SUSPECTS, self.suspects),
            (&STOLEN, self.stolen),
            (&TURNED, self.turned),
            (&STUCK, self.stuck),
        ] {
            out.family(family).sample(&[], value);
        }
        self.write_kinds(out);
    }

    fn write_kinds(&self, out: &mut Exposition) {
        let mut samples = out.family(&COST);
        for kind in &self.kinds {
            samples.sample(&[("kind", kind.name)], kind.cost.as_secs_f64());
        }
        let mut samples = out.family(&PINS);
        for kind in &self.kinds {
            for version in &kind.versions {
                let number = version.version.to_string();
                let labels = [("kind", kind.name), ("version", number.as_str())];
                samples.sample(&labels, version.pins as u64);
            }
        }
        type Value = fn(&KindMetrics) -> u64;
        let families: [(&Family, Value); 3] = [
            (&ROLLBACKS, |kind| kind.rollbacks),
            (&SHADOWED, |kind| kind.shadowed),
            (&SHADOW_DIFFERS, |kind| kind.shadow_differs),
        ];
        for (family, value) in families {
            let mut samples = out.family(family);
            for kind in &self.kinds {
                samples.sample(&[("kind", kind.name)], value(kind));
            }
        }
    }
}

const ENDED: Family = Family::counter(
    "phalanx_battle_ended_total",
    "Fights by class and by how they ended.",
);
const WAIT: Family = Family::histogram(
    "phalanx_battle_wait_seconds",
    "Time from submission to the start of the fight.",
);
const FIGHT: Family =
    Family::histogram("phalanx_battle_fight_seconds", "Time of the fight itself.");
const IN_FLIGHT: Family = Family::gauge(
    "phalanx_battle_in_flight",
    "Fights that are queued or running.",
);
const LIMIT: Family = Family::gauge(
    "phalanx_battle_limit",
    "Fights that may be in flight, as admission has found it out.",
);
const QUEUED: Family = Family::gauge("phalanx_battle_queued", "Fights that wait for a core.");
const ARENA: Family = Family::gauge(
    "phalanx_battle_arena_bytes",
    "Memory that cores hold between fights.",
);
const SUSPECTS: Family = Family::gauge("phalanx_battle_suspects", "Inputs that panicked of late.");
const STOLEN: Family = Family::counter(
    "phalanx_battle_stolen_total",
    "Fights that a core took from another one's queue.",
);
const TURNED: Family = Family::counter(
    "phalanx_battle_turned_total",
    "Times that a queue turned to newest first.",
);
const STUCK: Family = Family::gauge(
    "phalanx_battle_stuck_cores",
    "Cores whose fight doesn't end though its deadline has passed.",
);
const COST: Family = Family::gauge(
    "phalanx_battle_cost_seconds",
    "Moving average of a fight's time.",
);
const PINS: Family = Family::gauge(
    "phalanx_battle_pins",
    "Battles that keep a version of the rules.",
);
const ROLLBACKS: Family = Family::counter(
    "phalanx_battle_rollbacks_total",
    "Versions taken back for their outcomes.",
);
const SHADOWED: Family = Family::counter(
    "phalanx_battle_shadowed_total",
    "Fights that were run again on shadow rules.",
);
const SHADOW_DIFFERS: Family = Family::counter(
    "phalanx_battle_shadow_differs_total",
    "Fights that ended differently on shadow rules.",
);
