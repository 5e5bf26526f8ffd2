//! One to three whole control planes and their clients under simulated time: the shipped store, registry, world, compiler, discovery and
//! clients, in one thread; clock, network, disk and randomness are handed in.
//!
//! Each seed mixes crashes that tear what was not synced, full disks, one-way partitions, jumps of the clock, instances
//! that die and rules that change. While that lasts, nothing acknowledged may get lost ([`oracle`]); then everything is
//! healed, and everybody has to arrive at the same state. `PHALANX_SOAK` sets the number of seeds; a failing one is
//! printed with its options, `PHALANX_SEED` runs it alone. A seed fixes all faults and their times; events of the same
//! instant may fall in another order.

mod client;
mod network;
mod oracle;
mod plane;
mod scenario;

use std::cell::Cell;

use fastrand::Rng;

use crate::scenario::{Options, Scenario};

/// In the test run.
const SEEDS: u64 = 30;

#[test]
fn nothing_acknowledged_is_lost_and_everybody_arrives() {
    let seeds = seeds();
    let count = seeds.end - seeds.start;
    let mut told = Told::default();
    for seed in seeds {
        let options = Options::draw(&mut Rng::with_seed(seed));
        let _context = Context::of(seed, &options);
        fastrand::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let scenario = Scenario::new(seed, options);
        told.add(&runtime.block_on(scenario.run()));
    }
    println!("{count} seeds: {told:?}");
    if count >= SEEDS {
        told.everything_happened();
    }
}

/// What happened in all seeds: a simulation in which nothing happens proves nothing.
#[derive(Debug, Default)]
struct Told {
    applied: u64,
    refused: u64,
    crashes: u64,
    kills: u64,
    /// Of the crashes, in the middle of a transaction.
    torn: u64,
    full_disks: u64,
    partitions: u64,
    jumps: u64,
    deaths: u64,
    expired: u64,
    responses: u64,
}

impl Told {
    fn add(&mut self, other: &Told) {
        self.applied += other.applied;
        self.refused += other.refused;
        self.crashes += other.crashes;
        self.torn += other.torn;
        self.kills += other.kills;
        self.full_disks += other.full_disks;
        self.partitions += other.partitions;
        self.jumps += other.jumps;
        self.deaths += other.deaths;
        self.expired += other.expired;
        self.responses += other.responses;
    }

    fn everything_happened(&self) {
        for count in [
            self.applied,
            self.refused,
            self.crashes,
            self.torn,
            self.kills,
            self.full_disks,
            self.partitions,
            self.jumps,
            self.deaths,
            self.expired,
            self.responses,
        ] {
            assert!(count > 0, "something never happened: {self:?}");
        }
    }
}

/// Says on a panic which seed it was.
struct Context {
    text: Cell<Option<String>>,
}

impl Context {
    fn of(seed: u64, options: &Options) -> Self {
        let text = format!("PHALANX_SEED={seed} repeats it: {options:?}");
        Self {
            text: Cell::new(Some(text)),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.text.take().unwrap_or_default());
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|value| value.parse::<u64>().expect("a number"))
    };
    match number("PHALANX_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PHALANX_SOAK").unwrap_or(SEEDS),
    }
}
