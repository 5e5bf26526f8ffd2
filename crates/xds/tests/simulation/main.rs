//! The ADS server against clients over a link that delays and breaks, from a seed.
//!
//! Safety is checked at every step while snapshots change at random; then the world heals, and progress is demanded.
//! `PHALANX_SOAK` sets the number of seeds; a failing one is printed, `PHALANX_SEED` runs it alone.

mod delta;
mod sotw;
mod world;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use phalanx_xds::Kind;
use phalanx_xds::server::{Request, Response, Session};

use world::World;

const SEEDS: u64 = 300;
/// Of chaos; a step takes a millisecond, so that no patience ends.
const STEPS: usize = 400;
const STEPS_TO_HEAL: usize = 3_000;

/// How a client refuses.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Temper {
    /// Applies what is good and names what is not.
    Precise,
    /// The same, without naming.
    Vague,
    /// Applies nothing of a response with anything bad in it, without naming.
    Strict,
}

/// A client on one end of the link.
trait Peer {
    fn session() -> Session;
    /// The stream was opened (again): what to send first.
    fn open(&mut self) -> Vec<Request>;
    fn receive(&mut self, response: Response);
    /// Finishes one of the responses received, if there is any.
    fn work(&mut self, rng: &mut Rng, world: &World) -> Vec<Request>;
    fn is_idle(&self) -> bool;
    /// Name → version.
    fn held(&self, kind: Kind) -> BTreeMap<String, String>;
    fn wants(&self, kind: Kind, name: &str) -> bool;
    /// Clusters that were ever refused.
    fn refused(&self) -> &BTreeSet<String>;
}

struct Simulation<P> {
    rng: Rng,
    world: World,
    session: Session,
    peer: P,
    up: VecDeque<Request>,
    down: VecDeque<Response>,
    now_ms: u64,
    nonce: u64,
    outstanding: BTreeMap<Kind, u64>,
    /// In the latest request of each kind.
    names: BTreeMap<Kind, BTreeSet<String>>,
    /// By kind: the last content, whether it was refused, and under which revision it was sent.
    last: BTreeMap<Kind, (Response, bool, u64)>,
}

impl<P: Peer> Simulation<P> {
    fn new(mut rng: Rng, peer: P) -> Self {
        let world = World::new(&mut rng);
        let mut simulation = Self {
            rng,
            world,
            session: P::session(),
            peer,
            up: VecDeque::new(),
            down: VecDeque::new(),
            now_ms: 1_000,
            nonce: 0,
            outstanding: BTreeMap::new(),
            names: BTreeMap::new(),
            last: BTreeMap::new(),
        };
        simulation.reconnect();
        simulation
    }

    /// What happens is told when one seed runs alone.
    fn tell(&self, what: &str, message: &dyn std::fmt::Debug) {
        if std::env::var_os("PHALANX_SEED").is_some() {
            eprintln!("{} ms: {what} {message:?}", self.now_ms);
        }
    }

    fn reconnect(&mut self) {
        self.tell("reconnect", &());
        self.up.clear();
        self.down.clear();
        self.outstanding.clear();
        self.last.clear();
        self.nonce = 0;
        self.session = P::session();
        self.session.set_snapshot(self.world.snapshot());
        self.up.extend(self.peer.open());
    }

    fn chaos(&mut self) {
        for _ in 0..STEPS {
            match self.rng.u8(..100) {
                0..15 => {
                    self.world.mutate(&mut self.rng);
                    self.session.set_snapshot(self.world.snapshot());
                    self.tell("snapshot", &self.world.snapshot());
                }
                15 if self.rng.u8(..3) == 0 => self.reconnect(),
                _ => self.step(),
            }
            self.check_safety();
        }
    }

    /// One of: a request arrives, a response arrives, the client finishes something; and the server polls.
    fn step(&mut self) {
        self.now_ms += 1;
        match self.rng.u8(..3) {
            0 => {
                if let Some(request) = self.up.pop_front() {
                    self.tell("server gets", &request);
                    self.note_answer(&request);
                    self.session.on_request(request).expect("within bounds");
                }
            }
            1 => {
                if let Some(response) = self.down.pop_front() {
                    self.peer.receive(response);
                }
            }
            _ => {
                let requests = self.peer.work(&mut self.rng, &self.world);
                if !requests.is_empty() {
                    self.tell("client finishes", &requests);
                }
                self.up.extend(requests);
            }
        }
        while let Some(response) = self.session.poll(self.now_ms) {
            self.tell("server sends", &response);
            self.check_response(&response);
            self.down.push_back(response);
        }
    }

    fn heal(&mut self) {
        self.session.set_snapshot(self.world.snapshot());
        let from = self.now_ms;
        for _ in 0..STEPS_TO_HEAL {
            self.step();
            self.check_safety();
            if self.up.is_empty()
                && self.down.is_empty()
                && self.peer.is_idle()
                && self.now_ms > from + 20
            {
                match self.session.deadline_ms() {
                    // A client that asked for nothing that could name what it must lose keeps the session waiting.
                    Some(deadline) => self.now_ms = self.now_ms.max(deadline),
                    None => break,
                }
            }
        }
        assert!(
            self.up.is_empty() && self.down.is_empty() && self.peer.is_idle(),
            "no end of messages"
        );
        self.check_convergence();
    }

    fn note_answer(&mut self, request: &Request) {
        let (type_url, nonce, refused, names) = match request {
            Request::Delta(r) => {
                let names = [&r.resource_names_subscribe, &r.resource_names_unsubscribe];
                let names = names.into_iter().flatten().cloned().collect();
                (
                    &r.type_url,
                    &r.response_nonce,
                    r.error_detail.is_some(),
                    names,
                )
            }
            Request::Sotw(r) => {
                let names = r.resource_names.iter().cloned().collect();
                (
                    &r.type_url,
                    &r.response_nonce,
                    r.error_detail.is_some(),
                    names,
                )
            }
        };
        let kind = Kind::parse(type_url).expect("a kind");
        let answers = |out: &u64| out.to_string() == *nonce;
        if self.outstanding.get(&kind).is_some_and(answers) {
            self.outstanding.remove(&kind);
            if let Some(last) = self.last.get_mut(&kind) {
                last.1 = refused;
            }
        }
        // Who leaves names and asks for them again may get the same again.
        let before = self.names.insert(kind, names);
        if before != self.names.get(&kind).cloned() {
            self.last.remove(&kind);
        }
    }

    fn check_response(&mut self, response: &Response) {
        let target = self.world.snapshot();
        let kind = response.kind().expect("a kind");
        let mut content = response.clone();
        let nonce = match &mut content {
            Response::Delta(r) => {
                for name in &r.removed_resources {
                    assert!(
                        target.get(kind, name).is_none(),
                        "{kind} {name} is removed though it is there"
                    );
                    let needed =
                        kind == Kind::Endpoints && target.get(Kind::Cluster, name).is_some();
                    assert!(
                        !needed,
                        "endpoints of {name} are removed though the cluster is there"
                    );
                }
                r.system_version_info.clear();
                std::mem::take(&mut r.nonce)
            }
            Response::Sotw(r) => std::mem::take(&mut r.nonce),
        };
        let nonce: u64 = nonce.parse().expect("a number");
        assert!(nonce > self.nonce, "nonces must rise");
        self.nonce = nonce;
        let before = self.outstanding.insert(kind, nonce);
        assert!(before.is_none(), "{kind}: two responses are outstanding");
        if let Some((last, refused, revision)) = self.last.get(&kind) {
            let again = *refused && *last == content && *revision == target.revision;
            assert!(!again, "{kind}: refused and sent again: {content:?}");
        }
        self.last.insert(kind, (content, false, target.revision));
    }

    fn check_safety(&self) {
        let clusters = self.peer.held(Kind::Cluster);
        for kind in [Kind::Listener, Kind::Routes] {
            for (name, version) in self.peer.held(kind) {
                for cluster in self.world.clusters_of(&version) {
                    let excused = self.peer.refused().contains(&cluster);
                    assert!(
                        excused || clusters.contains_key(&cluster),
                        "{kind} {name} is held and names cluster {cluster}, which is not"
                    );
                }
            }
        }
        let target = self.world.snapshot();
        let progress = self.session.progress();
        assert_eq!(progress.target, target.revision);
        assert!(progress.acked <= progress.target);
        if progress.acked == progress.target {
            for kind in Kind::ALL {
                self.check_equal(kind, false);
            }
        }
    }

    /// The client holds exactly what the snapshot has of a kind. `all`: of every name asked for, else of those held.
    fn check_equal(&self, kind: Kind, all: bool) {
        let target = self.world.snapshot();
        let held = self.peer.held(kind);
        let by_name = matches!(kind, Kind::Endpoints | Kind::Routes);
        for resource in target.iter(kind) {
            let version = held.get(&resource.name);
            let asked = self.peer.wants(kind, &resource.name);
            if asked && (version.is_some() || all || !by_name) {
                assert_eq!(version, Some(&resource.version), "{kind} {}", resource.name);
            }
        }
        for name in held.keys() {
            let kept = kind == Kind::Endpoints && target.get(Kind::Cluster, name).is_some() && !all;
            assert!(
                kept || target.get(kind, name).is_some(),
                "{kind} {name} is still held"
            );
        }
    }

    fn check_convergence(&self) {
        let target = self.world.snapshot();
        let progress = self.session.progress();
        let refused: BTreeSet<(Kind, String)> = progress
            .nacks
            .iter()
            .map(|nack| (nack.kind, nack.name.clone().expect("an offender was found")))
            .collect();
        if !self.world.has_bad() {
            assert_eq!(progress.acked, target.revision, "{progress:?}");
            assert!(
                refused.is_empty() && progress.pending.is_empty(),
                "{progress:?}"
            );
            Kind::ALL
                .into_iter()
                .for_each(|kind| self.check_equal(kind, true));
            return;
        }
        for kind in Kind::ALL {
            let held = self.peer.held(kind);
            for resource in target.iter(kind).filter(|r| self.peer.wants(kind, &r.name)) {
                let bad = self.world.is_bad(&resource.version);
                let version = held.get(&resource.name);
                assert_eq!(
                    bad,
                    refused.contains(&(kind, resource.name.clone())),
                    "{kind} {}",
                    resource.name
                );
                assert_eq!(
                    bad,
                    version != Some(&resource.version),
                    "{kind} {}",
                    resource.name
                );
            }
        }
        assert_eq!(
            refused.is_empty(),
            progress.acked == target.revision,
            "{progress:?}"
        );
    }
}

fn run<P: Peer>(seed: u64, peer: impl Fn(Temper) -> P) {
    let mut rng = Rng::with_seed(seed);
    let temper = [Temper::Precise, Temper::Vague, Temper::Strict][rng.usize(..3)];
    let bad_percent = [0, 0, 5, 20][rng.usize(..4)];
    let stays_bad = rng.bool();
    let options =
        format!("seed {seed}: {temper:?}, {bad_percent} % bad, some stay bad: {stays_bad}");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut simulation = Simulation::new(rng, peer(temper));
        simulation.world.bad_percent = bad_percent;
        for _ in 0..2 {
            simulation.chaos();
            simulation.world.heal(stays_bad);
            simulation.heal();
        }
    }));
    if let Err(panic) = outcome {
        eprintln!("failed with {options}");
        resume_unwind(panic);
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

#[test]
fn our_delta_client_converges_and_never_routes_to_a_cluster_it_lacks() {
    seeds().for_each(|seed| run(seed, delta::Sidecar::new));
}

#[test]
fn a_state_of_the_world_client_converges_and_never_routes_to_a_cluster_it_lacks() {
    seeds().for_each(|seed| run(seed, sotw::Stock::new));
}
