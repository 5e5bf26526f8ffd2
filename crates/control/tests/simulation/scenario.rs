//! One seed: what it may do to the world, the steps, and the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use phalanx_client::api::{ApplyRequest, File};
use phalanx_control::admit::Around;
use phalanx_control::world::follow::Follower;
use phalanx_store::embedded::faulty::FaultyDisk;
use phalanx_store::{Config, Store};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::Told;
use crate::client::Sidecar;
use crate::network::Network;
use crate::oracle::{self, Oracle};
use crate::plane::Plane;

const SERVICES: [&str; 3] = ["battle", "match", "rank"];
const RULES: [&str; 4] = ["r0", "r1", "r2", "r3"];
/// After healing: expiry, guard and reconnects take some multiples of the TTL.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Control planes over the one store.
    pub planes: usize,
    pub sidecars: usize,
    pub steps: usize,
    /// Of a step, in percent each.
    /// The machine of the store loses power, and with it every control plane.
    pub crash: u8,
    /// One control plane dies.
    pub kill: u8,
    pub full: u8,
    pub cut: u8,
    pub jump: u8,
    pub death: u8,
}

impl Options {
    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            planes: rng.usize(1..4),
            sidecars: rng.usize(2..7),
            steps: rng.usize(20..60),
            crash: rng.u8(..10),
            kill: rng.u8(..10),
            full: rng.u8(..8),
            cut: rng.u8(..20),
            jump: rng.u8(..5),
            death: rng.u8(..15),
        }
    }
}

pub struct Scenario {
    rng: Rng,
    options: Options,
    network: Network,
    oracle: Oracle,
    disk: Arc<FaultyDisk>,
    store: Option<Store>,
    planes: Vec<Plane>,
    /// Of this life of the store.
    watchers: Vec<JoinHandle<()>>,
    sidecars: Vec<Sidecar>,
    born: u64,
    numbers: BTreeMap<&'static str, u64>,
    pending: Vec<JoinHandle<()>>,
    told: Told,
}

impl Scenario {
    pub fn new(seed: u64, options: Options) -> Self {
        Self {
            rng: Rng::with_seed(seed ^ 0x5eed),
            options,
            network: Network::default(),
            oracle: Oracle::default(),
            disk: FaultyDisk::with(Vec::new()),
            store: None,
            planes: Vec::new(),
            watchers: Vec::new(),
            sidecars: Vec::new(),
            born: 0,
            numbers: BTreeMap::new(),
            pending: Vec::new(),
            told: Told::default(),
        }
    }

    pub async fn run(mut self) -> Told {
        self.boot().await;
        for _ in 0..self.options.sidecars {
            self.birth();
        }
        for _ in 0..self.options.steps {
            self.step().await;
            let pause = self.rng.u64(..1500);
            sleep(Duration::from_millis(pause)).await;
            self.check();
        }
        self.heal().await;
        self.arrive().await;
        let responses = |sidecar: &Sidecar| sidecar.held.lock().unwrap().responses;
        self.told.responses = self.sidecars.iter().map(responses).sum();
        (self.told.expired, self.told.refused) = self.oracle.counts();
        self.told
    }

    async fn step(&mut self) {
        let Options {
            crash,
            kill,
            full,
            cut,
            jump,
            death,
            ..
        } = self.options;
        let mut dice = self.rng.u8(..100);
        let mut falls = |percent: u8| {
            let falls = dice < percent;
            dice = dice.saturating_sub(percent);
            falls
        };
        if falls(crash) {
            self.crash().await;
        } else if falls(kill) {
            self.kill().await;
        } else if falls(full) {
            let writes = self.rng.u64(..6);
            let is_full = self.disk.set(|state| state.fit.is_some());
            self.disk
                .set(|state| state.fit = (!is_full).then_some(writes));
            self.told.full_disks += u64::from(!is_full);
        } else if falls(cut) {
            self.cut();
        } else if falls(jump) {
            self.jump().await;
        } else if falls(death) {
            self.death().await;
        } else {
            self.apply();
        }
    }

    async fn boot(&mut self) {
        let store = Store::embedded(Config::disk(self.disk.clone())).await;
        let store = store.unwrap_or_else(|error| panic!("the store does not start: {error}"));
        // An onlooker of its own, so that it sees every world whoever dies.
        let follower = Follower::load(store.clone()).await.unwrap();
        let (mut worlds, oracle) = (follower.worlds(), self.oracle.clone());
        let world = worlds.borrow_and_update().clone();
        self.oracle.booted(&world);
        let mut before = world.clone();
        self.watchers
            .push(tokio::spawn(follower.run(CancellationToken::new())));
        self.watchers.push(tokio::spawn(async move {
            while worlds.changed().await.is_ok() {
                let world = worlds.borrow_and_update().clone();
                oracle.moved(&before, &world);
                before = world;
            }
        }));
        let watch = store.watch("", world.revision).await.unwrap();
        let watcher = tokio::spawn(oracle::no_gap(watch, world.revision));
        self.watchers.push(watcher);
        self.store = Some(store);
        self.staff().await;
    }

    /// Starts the control planes that are missing.
    async fn staff(&mut self) {
        let Some(store) = self.store.clone() else {
            return;
        };
        for number in 0..self.options.planes {
            let name = format!("plane-{number}");
            if self.planes.iter().all(|plane| plane.name != name) {
                let plane = Plane::boot(&store, &name, &self.network).await;
                self.planes.push(plane.unwrap());
            }
        }
    }

    /// One control plane dies; it or all that are missing come back now or later.
    async fn kill(&mut self) {
        self.told.kills += 1;
        if !self.planes.is_empty() {
            let gone = self.rng.usize(..self.planes.len());
            self.planes.swap_remove(gone).kill();
        }
        if self.planes.is_empty() || self.rng.bool() {
            let dark = self.rng.u64(..8000);
            sleep(Duration::from_millis(dark)).await;
            self.staff().await;
        }
    }

    /// The power goes, and comes back after a while. What was not synced is torn.
    async fn crash(&mut self) {
        self.told.crashes += 1;
        if self.rng.u8(..3) > 0 {
            self.power_fails_while_writing().await;
        }
        self.pending.drain(..).for_each(|apply| apply.abort());
        for watcher in self.watchers.drain(..) {
            // A claim that failed in there must fail here.
            if watcher.is_finished() {
                watcher.await.unwrap();
            } else {
                watcher.abort();
            }
        }
        let seed = self.rng.u64(..);
        let image = self.disk.set(|state| {
            state.random = seed;
            let torn = state.crashed.take().map(|(image, _)| image);
            torn.unwrap_or_else(|| state.crash_image())
        });
        self.planes.drain(..).for_each(Plane::kill);
        self.store = None;
        self.disk = FaultyDisk::with(image);
        let dark = self.rng.u64(..6000);
        sleep(Duration::from_millis(dark)).await;
        self.boot().await;
    }

    /// At some call to the disk, in the middle of some transaction.
    async fn power_fails_while_writing(&mut self) {
        let (calls, seed) = (self.rng.u64(1..12), self.rng.u64(..));
        self.disk.set(|state| {
            (state.crash_at, state.dies, state.random) = (Some(state.calls + calls), true, seed);
        });
        for _ in 0..3 {
            self.apply();
        }
        for _ in 0..20 {
            if self.disk.set(|state| state.crashed.is_some()) {
                self.told.torn += 1;
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn birth(&mut self) {
        self.born += 1;
        let id = format!("i{}", self.born);
        let service = SERVICES[self.rng.usize(..SERVICES.len())];
        self.sidecars.push(Sidecar::start(
            &self.network,
            &self.oracle,
            service,
            &id,
            (self.rng.u64(..1 << 32) << 8) | (self.born % 250),
        ));
    }

    /// One dies, with or without a word, and another one is born.
    async fn death(&mut self) {
        self.told.deaths += 1;
        let gone = self.rng.usize(..self.sidecars.len());
        self.check();
        let sidecar = self.sidecars.swap_remove(gone);
        if self.rng.bool() {
            self.oracle.leaves(&sidecar.id);
            sidecar
                .registration
                .deregister(Duration::from_secs(2))
                .await;
        }
        sidecar.kill(&self.oracle);
        self.birth();
    }

    fn cut(&mut self) {
        self.told.partitions += 1;
        let link = &self.sidecars[self.rng.usize(..self.sidecars.len())].link;
        if self.rng.u8(..3) > 0 {
            link.forth.send_replace(false);
        }
        if self.rng.u8(..3) > 0 {
            link.back.send_replace(false);
        }
        let healed = self.rng.usize(..self.sidecars.len());
        if self.rng.bool() {
            self.sidecars[healed].link.heal();
        }
    }

    /// The machine sleeps for an hour.
    async fn jump(&mut self) {
        self.told.jumps += 1;
        let hour = Duration::from_secs(3600);
        self.oracle.jumped(hour);
        tokio::time::advance(hour).await;
    }

    /// A rule gets its next number; whether that is stored is known when the answer comes.
    fn apply(&mut self) {
        let Some(plane) = self.rng.choice(&self.planes) else {
            return;
        };
        self.pending.retain(|apply| !apply.is_finished());
        if self.pending.len() > 3 {
            return;
        }
        let rule = RULES[self.rng.usize(..RULES.len())];
        let number = self.numbers.entry(rule).or_default();
        *number += 1;
        let number = *number;
        let (from, to) = (
            SERVICES[self.rng.usize(..SERVICES.len())],
            SERVICES[self.rng.usize(..SERVICES.len())],
        );
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {rule}}}\nspec:\n  parentRefs: [{{kind: Service, name: {from}}}]\n  rules:\n  - name: n{number}\n    backendRefs: [{{name: {to}, port: 9000}}]\n"
        );
        let request = ApplyRequest {
            files: vec![File {
                name: "r.yaml".into(),
                text,
            }],
            author: "sim".into(),
            ..ApplyRequest::default()
        };
        let (admission, oracle) = (plane.admission.clone(), self.oracle.clone());
        self.oracle.tried(rule, number);
        self.told.applied += 1;
        self.pending.push(tokio::spawn(async move {
            match admission.apply(request, Around::default()).await {
                Ok(answer) => oracle.acknowledged(rule, number, answer.revision),
                Err(_) => oracle.refused(),
            }
        }));
    }

    fn check(&mut self) {
        for watcher in &self.watchers {
            assert!(!watcher.is_finished(), "an oracle ended");
        }
        for sidecar in &self.sidecars {
            assert!(!sidecar.is_broken(), "{} ended", sidecar.id);
        }
        for plane in &self.planes {
            self.oracle.rules_hold(&plane.worlds.borrow());
        }
    }

    async fn heal(&mut self) {
        self.disk.set(|state| state.fit = None);
        self.staff().await;
        self.sidecars.iter().for_each(|sidecar| sidecar.link.heal());
        sleep(Duration::from_secs(20)).await;
    }

    /// Everybody who lives is registered, who died is gone or held, and everybody has the same configuration.
    async fn arrive(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check();
            match self.missing() {
                None => return,
                Some(missing) if Instant::now() >= deadline => panic!("not healed: {missing}"),
                Some(_) => sleep(Duration::from_millis(500)).await,
            }
        }
    }

    fn missing(&self) -> Option<String> {
        let alive: BTreeSet<String> = self.sidecars.iter().map(|s| s.id.clone()).collect();
        let held: BTreeSet<String> = self
            .planes
            .iter()
            .flat_map(|plane| plane.registry.held())
            .map(|held| held.id.id)
            .collect();
        let mut proxies = 0;
        for plane in &self.planes {
            let world = plane.worlds.borrow().clone();
            let present = oracle::present(&world);
            if let Some(absent) = alive.difference(&present).next() {
                return Some(format!("{absent} lives and is not registered"));
            }
            if let Some(left) = present.difference(&alive).find(|id| !held.contains(*id)) {
                return Some(format!("{left} is dead and registered"));
            }
            let published = plane.published.borrow().clone();
            if published.revision != world.revision {
                return Some("the newest world is not compiled".into());
            }
            let reach = plane.fleet.reach(published.revision);
            if !reach.waiting.is_empty() {
                return Some(format!("{}: {reach:?}", plane.name));
            }
            proxies += reach.proxies;
            let expected: Vec<String> = published
                .mesh
                .clusters
                .keys()
                .map(ToString::to_string)
                .collect();
            if let Some(behind) = self.sidecars.iter().find(|s| !s.holds(&expected)) {
                return Some(format!("{} does not hold the configuration", behind.id));
            }
        }
        if proxies != self.sidecars.len() {
            return Some(format!(
                "{proxies} of {} are connected",
                self.sidecars.len()
            ));
        }
        // The same of everything, whoever holds it and from wherever it came.
        let same: BTreeSet<_> = self.sidecars.iter().map(Sidecar::shared).collect();
        (same.len() != 1).then(|| "sidecars hold different configurations".into())
    }
}
