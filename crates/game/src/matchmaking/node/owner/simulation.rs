//! Two replicas of a shard, a lease service, clients and rooms in simulated time, with crashes, torn writes, partitions,
//! lost answers and clocks that run differently; all from one seed. `PHALANX_SOAK=N` runs N times as many seeds.
//!
//! What is claimed: whatever anybody outside learns comes from the owner of the newest epoch; nothing that was
//! acknowledged is lost; nobody is matched twice; and when all is well again, there is one owner with a standby in sync.

mod clients;
mod disk;
mod replica;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::*;
use crate::{
    dice::Dice,
    matchmaking::{
        lease::Roll,
        ledger::{How, tests::ticket},
        log::Record,
        node::{replica::apply, talk::Request},
        rules::RulesSpec,
        search::{Proposal, Quality},
        ticket::RegionIndex,
    },
};

use self::{
    clients::Witness,
    disk::{Disk, Service},
    replica::{Node, State},
    wire::{Connection, Frame},
};

const SEEDS: u64 = 24;
const STEP_MS: u64 = 10;
/// Trouble for so long, then peace for as long.
const TROUBLE_MS: u64 = 15_000;
const PEACE_MS: u64 = 15_000;
const TTL_MS: u64 = 2_000;
const RENEW_MS: u64 = 300;
const SILENCE_MS: u64 = 3_000;
const INVALID_MS: u64 = 3_000;

struct World {
    at: u64,
    dice: Dice,
    service: Service,
    nodes: [Node; 2],
    connection: Option<Connection>,
    /// Between the two.
    apart: bool,
    sessions: u64,
    next_ticket: u64,
    next_request: u64,
    witness: Witness,
    takeovers: u64,
    /// Steps in which a replaced owner lived on without knowing it.
    stale: u64,
    peace: bool,
    /// Whether players confirm.
    ask: bool,
    /// Few requests: then an owner who was replaced may have nothing unwritten that would hold its tongue.
    quiet: bool,
}

fn limits(ask: bool) -> Limits {
    Limits {
        ask,
        inside_max: 40,
        outside_max: 30,
        confirm_within: Duration::from_millis(900),
        allocate_within: Duration::from_millis(700),
        ticket_ttl: Duration::from_secs(6),
        keep_results: Duration::from_secs(3_600),
        ..Limits::default()
    }
}

fn rules() -> Arc<MatchRules> {
    let mut spec = RulesSpec::simple(2, 2, "eu", 200);
    spec.regions.push(crate::matchmaking::rules::RegionRules {
        name: "us".into(),
        latency_ms_max: 200,
    });
    Arc::new(spec.check().unwrap())
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice::new(seed);
        let nodes = [0, 1].map(|_| Node {
            disk: Disk::default(),
            state: State::Idle,
            ledger: Ledger::new(),
            speed: 970 + dice.below(61),
            reaches_service: true,
            cut_off_until: 0,
            looked: 0,
        });
        World {
            at: 1_000,
            dice,
            service: Service::default(),
            nodes,
            connection: None,
            apart: false,
            sessions: 0,
            next_ticket: 1,
            next_request: 1,
            witness: Witness::default(),
            takeovers: 0,
            stale: 0,
            peace: false,
            ask: !seed.is_multiple_of(3),
            quiet: seed.is_multiple_of(4),
        }
    }

    fn id(node: usize) -> ReplicaId {
        ReplicaId(node as u64 + 1)
    }

    fn now(&self, node: usize) -> Now {
        let mono = self.at * self.nodes[node].speed;
        Now {
            mono: Duration::from_micros(mono),
            ms: 1_700_000_000_000 + mono / 1_000 + node as u64 * 300,
        }
    }

    fn delay(&mut self) -> u64 {
        match self.dice.below(20) {
            0 if !self.peace => self.dice.below(400),
            _ => self.dice.below(20),
        }
    }

    fn step(&mut self) {
        self.at += STEP_MS;
        if self
            .service
            .holder
            .is_some_and(|(_, until)| until <= self.at)
        {
            self.service.holder = None;
        }
        if !self.peace {
            self.trouble();
        }
        for node in [0, 1] {
            self.live(node);
        }
        self.carry();
        self.clients();
    }

    fn trouble(&mut self) {
        // In quiet runs long cuts are what happens, so that leases run out under owners who live.
        let (rare, cut) = if self.quiet { (2_000, 300) } else { (150, 800) };
        for node in [0, 1] {
            if self.dice.chance(1, rare) {
                self.nodes[node].reaches_service = false;
            }
            // Whole again more often than apart.
            if self.dice.chance(1, 60) {
                self.nodes[node].reaches_service = true;
            }
            if self.dice.chance(1, cut) {
                self.nodes[node].cut_off_until = self.at + TTL_MS + self.dice.below(3_000);
            }
            if self.at < self.nodes[node].cut_off_until {
                self.nodes[node].reaches_service = false;
            }
            if self.dice.chance(1, 2 * rare) {
                self.crash(node);
            }
        }
        if self.dice.chance(1, rare) {
            self.apart = true;
        }
        if self.dice.chance(1, 60) {
            self.apart = false;
        }
        if self.dice.chance(1, 2 * rare) {
            self.disconnect();
        }
    }

    fn crash(&mut self, node: usize) {
        if matches!(self.nodes[node].state, State::Down { .. }) {
            return;
        }
        self.disconnect();
        self.nodes[node].disk.crash(&mut self.dice);
        let until = self.at + 50 + self.dice.below(3_000);
        self.nodes[node].state = State::Down { until };
    }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    while world.at < TROUBLE_MS {
        world.step();
    }
    world.peace = true;
    world.apart = false;
    for node in &mut world.nodes {
        node.reaches_service = true;
    }
    while world.at < TROUBLE_MS + PEACE_MS {
        world.step();
    }
    world.check_the_end();
    world
}

#[test]
fn nothing_acknowledged_is_lost_and_nobody_is_matched_twice_through_crashes_and_partitions() {
    let seeds = match std::env::var("PHALANX_SOAK_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        Some(seed) => seed..seed + 1,
        None => 0..SEEDS * soak(),
    };
    let (mut takeovers, mut stale, mut acknowledged, mut matches) = (0, 0, 0, 0);
    for seed in seeds {
        let run = std::panic::catch_unwind(|| run(seed));
        let world = run.unwrap_or_else(|_| panic!("seed {seed} (PHALANX_SOAK_SEED={seed})"));
        takeovers += world.takeovers;
        stale += world.stale;
        acknowledged += world.witness.acknowledged;
        matches += world.witness.matches.len();
    }
    println!(
        "{takeovers} takeovers, {stale} steps of stale owners, {acknowledged} answers, {matches} matches"
    );
    assert!(
        takeovers > SEEDS && stale > SEEDS && matches as u64 > SEEDS,
        "nothing happened"
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    let (one, other) = (run(7), run(7));
    assert_eq!(one.witness.known, other.witness.known);
    assert_eq!(one.takeovers, other.takeovers);
}

fn soak() -> u64 {
    let rounds = std::env::var("PHALANX_SOAK").ok();
    rounds
        .and_then(|rounds| rounds.parse().ok())
        .map_or(1, |rounds: u64| rounds.clamp(1, 1_000))
}
