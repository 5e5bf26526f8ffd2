//! The ADS server against clients over a link that delays and breaks, from a seed.
//!
//! Safety is checked at every step while snapshots change at random; then the world heals, and progress is demanded. Clients
//! have one stream for all kinds, or one for each; on reconnects some are remembered for what they refused.
//! `PHALANX_SOAK` sets the number of seeds; a failing one is printed, `PHALANX_SEED` runs it alone.

mod delta;
mod demand;
mod sotw;
mod world;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use fastrand::Rng;
use phalanx_xds::server::{Nack, Progress, Request, Response, Session};
use phalanx_xds::{Kind, Snapshot};

use world::World;

const SEEDS: u64 = 60;
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
    /// What it is sent depends on what it asks for.
    const ON_DEMAND: bool = false;

    /// One for all kinds, or one for each.
    fn sessions(&self) -> Vec<Session>;
    /// What it gets of a snapshot.
    fn part(world: &Snapshot, _: &Session) -> Arc<Snapshot> {
        Arc::new(world.clone())
    }
    /// Whether it leaves its subscriptions as they are from now on.
    fn settle(&mut self, _: bool) {}
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
    peer: P,
    lanes: Vec<Lane>,
    /// What was refused is handed to the sessions after a reconnect.
    remembers: bool,
    /// Remembered, and in force: must not be sent.
    known_bad: BTreeSet<(Kind, String, String)>,
    now_ms: u64,
    outstanding: BTreeMap<Kind, u64>,
    /// In the latest request of each kind.
    names: BTreeMap<Kind, BTreeSet<String>>,
    /// By kind: the last content, whether it was refused, and under which revision it was sent.
    last: BTreeMap<Kind, (Response, bool, u64)>,
}

/// One stream.
struct Lane {
    session: Session,
    up: VecDeque<Request>,
    down: VecDeque<Response>,
    nonce: u64,
}

impl<P: Peer> Simulation<P> {
    fn new(mut rng: Rng, peer: P, remembers: bool) -> Self {
        let world = World::new(&mut rng);
        let mut simulation = Self {
            rng,
            world,
            peer,
            lanes: Vec::new(),
            remembers,
            known_bad: BTreeSet::new(),
            now_ms: 1_000,
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
        let nacks: Vec<Nack> = self.progress().nacks;
        self.outstanding.clear();
        self.last.clear();
        self.known_bad.clear();
        self.lanes.clear();
        for mut session in self.peer.sessions() {
            if self.remembers {
                session.remember(nacks.clone());
            }
            self.lanes.push(Lane {
                session,
                up: VecDeque::new(),
                down: VecDeque::new(),
                nonce: 0,
            });
        }
        if self.remembers {
            let named = nacks.into_iter();
            self.known_bad = named
                .filter_map(|nack| Some((nack.kind, nack.name?, nack.version)))
                .collect();
        }
        self.retarget();
        let requests = self.peer.open();
        self.send_up(requests);
    }

    fn retarget(&mut self) {
        let target = self.target();
        for lane in &mut self.lanes {
            lane.session.set_snapshot(Arc::clone(&target));
        }
        self.known_bad.retain(|(kind, name, version)| {
            target.get(*kind, name).map_or("", |r| &r.version) == version
        });
    }

    fn lane(&mut self, kind: Kind) -> &mut Lane {
        let index = if self.lanes.len() > 1 {
            kind.index()
        } else {
            0
        };
        &mut self.lanes[index]
    }

    fn send_up(&mut self, requests: Vec<Request>) {
        for request in requests {
            let type_url = match &request {
                Request::Delta(request) => &request.type_url,
                Request::Sotw(request) => &request.type_url,
            };
            let kind = Kind::parse(type_url).expect("a kind");
            self.lane(kind).up.push_back(request);
        }
    }

    /// Of all streams together.
    fn progress(&self) -> Progress {
        let mut all = Progress {
            target: self.world.snapshot().revision,
            acked: u64::MAX,
            ..Progress::default()
        };
        for lane in &self.lanes {
            let progress = lane.session.progress();
            let is_asked = lane.session.only().is_none_or(|kind| {
                kind.has_wildcard() || lane.session.names(kind).next().is_some()
            });
            if is_asked {
                all.acked = all.acked.min(progress.acked);
            }
            all.nacks.extend(progress.nacks);
            all.pending.extend(progress.pending);
        }
        all
    }

    fn deadline_ms(&self) -> Option<u64> {
        let deadlines = self.lanes.iter();
        deadlines
            .filter_map(|lane| lane.session.deadline_ms())
            .min()
    }

    fn is_quiet(&self) -> bool {
        let quiet = |lane: &Lane| lane.up.is_empty() && lane.down.is_empty();
        self.lanes.iter().all(quiet) && self.peer.is_idle()
    }

    fn chaos(&mut self) {
        for _ in 0..STEPS {
            match self.rng.u8(..100) {
                0..15 => {
                    self.world.mutate(&mut self.rng);
                    self.retarget();
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
        let lane = self.rng.usize(..self.lanes.len());
        match self.rng.u8(..3) {
            0 => {
                if let Some(request) = self.lanes[lane].up.pop_front() {
                    self.tell("server gets", &request);
                    self.note_answer(&request);
                    let session = &mut self.lanes[lane].session;
                    session.on_request(request).expect("within bounds");
                    if P::ON_DEMAND {
                        self.retarget();
                    }
                }
            }
            1 => {
                if let Some(response) = self.lanes[lane].down.pop_front() {
                    self.peer.receive(response);
                }
            }
            _ => {
                let requests = self.peer.work(&mut self.rng, &self.world);
                if !requests.is_empty() {
                    self.tell("client finishes", &requests);
                }
                self.send_up(requests);
            }
        }
        for lane in 0..self.lanes.len() {
            while let Some(response) = self.lanes[lane].session.poll(self.now_ms) {
                self.tell("server sends", &response);
                self.check_response(&response);
                self.lanes[lane].down.push_back(response);
            }
        }
    }

    fn heal(&mut self) {
        self.retarget();
        self.peer.settle(true);
        let from = self.now_ms;
        for _ in 0..STEPS_TO_HEAL * self.lanes.len() {
            self.step();
            self.check_safety();
            if self.is_quiet() && self.now_ms > from + 20 {
                match self.deadline_ms() {
                    // A client that asked for nothing that could name what it must lose keeps the session waiting.
                    Some(deadline) => self.now_ms = self.now_ms.max(deadline),
                    None => break,
                }
            }
        }
        assert!(self.is_quiet(), "no end of messages");
        self.check_convergence();
        self.peer.settle(false);
    }

    /// This peer's part of the world as it is.
    fn target(&self) -> Arc<Snapshot> {
        P::part(&self.world.snapshot(), &self.lanes[0].session)
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
        let now = self.names.get(&kind).cloned();
        if P::ON_DEMAND && now.as_ref().is_some_and(|names| !names.is_empty()) {
            self.last.clear(); // what these tables name comes again too
        } else if before != now {
            self.last.remove(&kind);
        }
    }

    fn check_response(&mut self, response: &Response) {
        let target = self.target();
        let kind = response.kind().expect("a kind");
        let mut content = response.clone();
        let nonce = match &mut content {
            Response::Delta(r) => {
                assert!(
                    kind != Kind::Secret || r.removed_resources.is_empty(),
                    "a secret is removed"
                );
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
        let lane = self.lane(kind);
        assert!(nonce > lane.nonce, "nonces must rise");
        lane.nonce = nonce;
        self.check_known_bad(response);
        let before = self.outstanding.insert(kind, nonce);
        assert!(before.is_none(), "{kind}: two responses are outstanding");
        if let Some((last, refused, revision)) = self.last.get(&kind) {
            let again = *refused && *last == content && *revision == target.revision;
            assert!(!again, "{kind}: refused and sent again: {content:?}");
        }
        self.last.insert(kind, (content, false, target.revision));
    }

    /// What was refused on an earlier stream does not come first on this one.
    fn check_known_bad(&self, response: &Response) {
        let kind = response.kind().expect("a kind");
        let versions: Vec<String> = match response {
            Response::Delta(r) => r.resources.iter().map(|r| r.version.clone()).collect(),
            Response::Sotw(r) => {
                let bodies = r.resources.iter().map(|any| any.value.as_slice());
                bodies.map(phalanx_xds::snapshot::version).collect()
            }
        };
        for (bad_kind, name, version) in &self.known_bad {
            let comes = *bad_kind == kind && versions.contains(version);
            assert!(!comes, "{kind} {name} was refused and comes again");
        }
    }

    fn check_safety(&self) {
        if self.lanes.len() > 1 {
            return self.check_progress(); // no order across streams, only time
        }
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
        self.check_progress();
    }

    fn check_progress(&self) {
        let progress = self.progress();
        for lane in &self.lanes {
            assert_eq!(lane.session.progress().target, progress.target);
        }
        assert!(progress.acked <= progress.target);
        if progress.acked == progress.target {
            for kind in Kind::ALL {
                self.check_equal(kind, false);
            }
        }
    }

    /// The client holds exactly what the snapshot has of a kind. `all`: of every name asked for, else of those held.
    fn check_equal(&self, kind: Kind, all: bool) {
        let target = self.target();
        let held = self.peer.held(kind);
        // What was asked for since a revision was reached may be on its way.
        let by_name = P::ON_DEMAND || !kind.has_wildcard();
        for resource in target.iter(kind) {
            let version = held.get(&resource.name);
            let asked = self.peer.wants(kind, &resource.name);
            let in_use = || !P::ON_DEMAND || !self.is_left_over(kind, &resource.name);
            if asked && (all || !by_name || version.is_some() && in_use()) {
                assert_eq!(version, Some(&resource.version), "{kind} {}", resource.name);
            }
        }
        for name in held.keys() {
            let kept = kind == Kind::Secret
                || kind == Kind::Endpoints && target.get(Kind::Cluster, name).is_some()
                || P::ON_DEMAND && self.is_left_over(kind, name);
            let kept = kept && !all;
            assert!(
                kept || target.get(kind, name).is_some(),
                "{kind} {name} is still held"
            );
        }
    }

    /// On demand: a table whose leaving or asking is still under way, or what no other table in force leads to.
    fn is_left_over(&self, kind: Kind, name: &str) -> bool {
        let leads_here = |version: &str| self.world.clusters_of(version).iter().any(|n| n == name);
        match kind {
            Kind::Routes => self.is_changing(name),
            Kind::Cluster | Kind::Endpoints => {
                let tables = self.peer.held(Kind::Routes).into_iter();
                let referrers = tables.chain(self.peer.held(Kind::Listener));
                !referrers
                    .into_iter()
                    .any(|(n, v)| !self.is_changing(&n) && leads_here(&v))
            }
            Kind::Listener | Kind::Secret => false,
        }
    }

    /// The server has yet to hear that the client asks for `name`, or leaves it.
    fn is_changing(&self, name: &str) -> bool {
        let mut requests = self.lanes.iter().flat_map(|lane| &lane.up);
        requests.any(|request| match request {
            Request::Delta(r) => {
                let names = [&r.resource_names_subscribe, &r.resource_names_unsubscribe];
                names.into_iter().flatten().any(|n| n == name)
            }
            Request::Sotw(_) => false,
        })
    }

    fn has_bad(&self) -> bool {
        let target = self.target();
        let mut all = Kind::ALL.into_iter().flat_map(|kind| target.iter(kind));
        all.any(|resource| self.world.is_bad(&resource.version))
    }

    fn check_convergence(&self) {
        let target = self.target();
        let progress = self.progress();
        let refused: BTreeSet<(Kind, String)> = progress
            .nacks
            .iter()
            .map(|nack| (nack.kind, nack.name.clone().expect("an offender was found")))
            .collect();
        if !self.has_bad() {
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
    let (stays_bad, remembers) = (rng.bool(), rng.bool());
    let options = format!(
        "seed {seed}: {temper:?}, {bad_percent} % bad, some stay bad: {stays_bad}, remembered: {remembers}"
    );
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut simulation = Simulation::new(rng, peer(temper), remembers);
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

#[test]
fn our_client_on_demand_holds_what_it_asked_for_and_never_routes_to_a_cluster_it_lacks() {
    seeds().for_each(|seed| run(seed, demand::OnDemand::new));
}

#[test]
fn a_delta_client_with_a_stream_per_kind_converges() {
    seeds().for_each(|seed| run(seed, delta::Sidecar::separate));
}

#[test]
fn a_state_of_the_world_client_with_a_stream_per_kind_converges() {
    seeds().for_each(|seed| run(seed, sotw::Stock::separate));
}
