//! What one worker owns: its view of the plan, what it measured of endpoints, its pools, its clock and its memory for
//! requests. Reference counts here are of one thread; nothing is locked.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use phalanx_model::name::{ClusterName, Direction};
use phalanx_relay::http2::Batch;
use phalanx_relay::{Deadlines, Field, Limits, names};
use slab::Slab;
use tokio::sync::Notify;

use super::client::{Http1, Http2Pool};
use super::deadline::Watch;
use super::exchange::Exchange;
use super::held::Budget;
use super::http2::{Configs, Inbox};
use super::secure::{Handshakes, Secure};
use super::server::Runner;
use super::stream::Links;
use super::timer::{Wheel, ms};
use crate::account::{Account, Event, TlsRefused};
use crate::balance::{Load, Pick, Picked, Tried};
use crate::intercept::Redirected;
use crate::plan::cluster::{ClusterPlan, Edges, EndpointPlan};
use crate::plan::{PeerPlan, Plan};
use crate::upstream::{Breaker, Pool, Share};

pub struct Core {
    pub index: usize,
    pub account: Arc<Account>,
    pub limits: Limits,
    pub deadlines: Rc<DeadlinesMs>,
    /// To HTTP/2 peers that are sidecars: how often, and how long for an answer.
    pub pings: Option<(Duration, Duration)>,
    pub wheel: Wheel,
    latest: RefCell<Cache<Arc<ArcSwap<Plan>>, Arc<Plan>>>,
    current: RefCell<Rc<CorePlan>>,
    rng: RefCell<fastrand::Rng>,
    pub memory: RefCell<Memory>,
    pub exchanges: RefCell<Vec<Rc<Exchange>>>,
    pub inboxes: RefCell<Vec<Rc<Inbox>>>,
    /// Tasks that wait for an HTTP/2 stream to serve.
    pub runners: RefCell<Vec<Rc<Runner>>>,
    pub http2: Configs,
    /// Tells another sidecar to go on over HTTP/1.
    pub began_as_http1: Field,
    pub connections: RefCell<Slab<Rc<Watch>>>,
    pub sources: RefCell<HashMap<IpAddr, u32>>,
    /// None for a sidecar that lives in plain text.
    pub secure: Option<Arc<Secure>>,
    pub links: Rc<Links>,
    /// From downstream, under way.
    pub handshakes: Handshakes,
    /// Another plan is in force; at most a sweep later than for whoever asks.
    pub renewed: Notify,
    /// For bodies that are held as a whole.
    pub bodies: Budget,
    /// What the kernel redirects here, if it does.
    pub redirected: OnceCell<Arc<Redirected>>,
    /// Of what passes the mesh by, inbound and outbound.
    passing: OnceCell<[Edges; 2]>,
    draining: Cell<bool>,
    accepted_ms: Cell<u64>,
}

/// What no connection needs right now, for the codecs.
#[derive(Default)]
pub struct Memory {
    pub pool: phalanx_relay::Pool,
    pub batch: Batch,
}

/// [`Deadlines`] in the wheel's unit.
#[derive(Clone, Debug)]
pub struct DeadlinesMs {
    pub handshake: u64,
    pub head: u64,
    pub idle: u64,
    pub stalled_write: u64,
    pub body: u64,
    /// Bytes per second.
    pub body_rate: u64,
    pub route: u64,
    pub stream_idle: u64,
    pub tunnel_idle: u64,
    /// How long an idle connection is left open when draining: its caller may be just about to use it.
    pub drain_idle: u64,
}

impl From<&Deadlines> for DeadlinesMs {
    fn from(deadlines: &Deadlines) -> Self {
        Self {
            handshake: ms(deadlines.handshake),
            head: ms(deadlines.head),
            idle: ms(deadlines.idle),
            stalled_write: ms(deadlines.stalled_write),
            body: ms(deadlines.body),
            body_rate: deadlines.body_rate.max(1),
            route: ms(deadlines.route),
            stream_idle: ms(deadlines.stream_idle),
            tunnel_idle: ms(deadlines.tunnel_idle),
            drain_idle: (ms(deadlines.drain) / 5).min(1_000),
        }
    }
}

/// A plan with this core's state beside each cluster.
pub struct CorePlan {
    pub plan: Arc<Plan>,
    clusters: Box<[Rc<Cluster>]>,
}

impl CorePlan {
    pub fn cluster(&self, place: usize) -> Option<&Rc<Cluster>> {
        self.clusters.get(place)
    }
}

/// A cluster as one core sees it.
pub struct Cluster {
    pub plan: Arc<ClusterPlan>,
    endpoints: Box<[Rc<Endpoint>]>,
    turn: Cell<u32>,
    /// When this core began to count for the next comparison of endpoints.
    judged_ms: Cell<u64>,
    /// A connection or stream of this cluster became free on this core.
    pub freed: Rc<Notify>,
}

/// What a core knows of an endpoint and holds to it. Survives changes of the plan.
pub struct Endpoint {
    pub address: SocketAddr,
    /// Its connections are secured so, all of them.
    pub tls: Option<Arc<PeerPlan>>,
    /// It was not whom we expected, and is not asked again before.
    pub barred_until_ms: Cell<u64>,
    /// Whether a sidecar of ours answered there last, over TLS.
    pub is_sidecar: Cell<Option<bool>>,
    pub load: Load,
    pub h1: Rc<Pool<Box<Http1>>>,
    pub h2: Rc<Http2Pool>,
}

impl Endpoint {
    fn new(address: SocketAddr, tls: Option<Arc<PeerPlan>>) -> Rc<Self> {
        Rc::new(Self {
            address,
            tls,
            barred_until_ms: Cell::new(0),
            is_sidecar: Cell::new(None),
            load: Load::default(),
            h1: Rc::default(),
            h2: Rc::default(),
        })
    }

    pub fn bar(&self, now_ms: u64) {
        self.barred_until_ms.set(now_ms.saturating_add(BARRED_MS));
    }

    /// Left the plan: what is idle closes, what is in use closes after its use.
    fn retire(&self) {
        self.h1.retire();
        self.h2.retire();
    }
}

/// A cluster as the holder of permits of its breaker.
#[derive(Clone)]
pub struct Holder(pub Rc<Cluster>);

impl AsRef<Breaker> for Holder {
    fn as_ref(&self) -> &Breaker {
        &self.0.plan.breaker
    }
}

impl Cluster {
    pub fn endpoint(&self, member: usize) -> Option<(&Rc<Endpoint>, &EndpointPlan)> {
        self.endpoints
            .get(member)
            .zip(self.plan.endpoints.get(member))
    }

    /// Nothing more is sent to it.
    pub fn retire(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.retire());
    }

    /// Closes one idle connection, to make room for one to another endpoint.
    pub fn evict_idle(&self) -> bool {
        self.endpoints
            .iter()
            .any(|endpoint| endpoint.h1.evict() || endpoint.h2.evict())
    }

    /// Counts an answer for the comparison of endpoints, and compares when it is time; tells who was ejected.
    #[inline]
    pub fn compare(
        &self,
        member: usize,
        good: bool,
        latency_us: u64,
        now_us: u64,
        ejected: impl FnMut(usize),
    ) {
        let group = &self.plan.group;
        if !group.compares() {
            return;
        }
        if let Some(endpoint) = self.endpoints.get(member) {
            endpoint.load.sample(good, latency_us);
        }
        let now_ms = now_us / 1000;
        if group.is_court_day(self.judged_ms.get(), now_ms) {
            self.judged_ms.set(now_ms);
            let load = |member: usize| self.endpoints.get(member).map(|endpoint| &endpoint.load);
            group.judge(load, now_ms, ejected);
        }
    }

    pub fn pick(
        &self,
        tried: &Tried,
        rng: &mut fastrand::Rng,
        hash: Option<u64>,
        now_us: u64,
    ) -> Option<Picked> {
        let mut turn = self.turn.get();
        let load = |member: usize| self.endpoints.get(member).map(|endpoint| &endpoint.load);
        let picked = self.plan.group.pick(Pick {
            load,
            tried,
            rng,
            now_us,
            turn: &mut turn,
            hash,
        });
        self.turn.set(turn);
        picked
    }
}

impl Core {
    pub fn new(
        index: usize,
        plan: Arc<ArcSwap<Plan>>,
        account: Arc<Account>,
        limits: Limits,
        deadlines: &Deadlines,
        secure: Option<Arc<Secure>>,
    ) -> Rc<Self> {
        let empty = CorePlan {
            plan: Arc::new(Plan::empty()),
            clusters: Box::default(),
        };
        Rc::new(Self {
            index,
            wheel: Wheel::new(account.started()),
            links: Links::new(index, account.clone()),
            secure,
            handshakes: Handshakes::default(),
            renewed: Notify::new(),
            account,
            http2: Configs::new(&limits),
            began_as_http1: Field::of(names::X_PHALANX_HTTP, "1"),
            limits,
            deadlines: Rc::new(deadlines.into()),
            pings: Some((deadlines.ping, deadlines.ping_answer))
                .filter(|(ping, _)| !ping.is_zero()),
            latest: RefCell::new(Cache::new(plan)),
            current: RefCell::new(Rc::new(empty)),
            rng: RefCell::new(fastrand::Rng::new()),
            memory: RefCell::default(),
            exchanges: RefCell::default(),
            inboxes: RefCell::default(),
            runners: RefCell::default(),
            connections: RefCell::default(),
            sources: RefCell::default(),
            bodies: Budget::default(),
            redirected: OnceCell::new(),
            passing: OnceCell::new(),
            draining: Cell::new(false),
            accepted_ms: Cell::new(0),
        })
    }

    /// The latest plan. While it is the one seen last, this is one load and a comparison.
    #[inline]
    pub fn plan(&self) -> Rc<CorePlan> {
        let mut latest = self.latest.borrow_mut();
        let latest = latest.load();
        if Arc::ptr_eq(latest, &self.current.borrow().plan) {
            return self.current.borrow().clone();
        }
        let next = Rc::new(self.take_over(latest.clone()));
        *self.current.borrow_mut() = next.clone();
        self.renewed.notify_waiters();
        next
    }

    /// Puts this core's state beside the new plan, and closes the pools of endpoints that left.
    fn take_over(&self, plan: Arc<Plan>) -> CorePlan {
        let previous = self.current.borrow().clone();
        let named = previous.clusters.iter().map(|c| (&c.plan.name, c));
        let mut before: HashMap<&ClusterName, &Rc<Cluster>> = named.collect();
        let clusters = plan
            .clusters
            .iter()
            .map(|cluster| match before.remove(&cluster.name) {
                Some(same) if Arc::ptr_eq(&same.plan, cluster) => same.clone(),
                known => self.renew(cluster, known),
            });
        let clusters = clusters.collect();
        let gone = before.values().flat_map(|cluster| &cluster.endpoints);
        gone.for_each(|endpoint| endpoint.retire());
        CorePlan {
            plan: plan.clone(),
            clusters,
        }
    }

    fn renew(&self, cluster: &Arc<ClusterPlan>, known: Option<&Rc<Cluster>>) -> Rc<Cluster> {
        let endpoints = known.into_iter().flat_map(|known| &known.endpoints);
        let mut before: HashMap<SocketAddr, &Rc<Endpoint>> =
            endpoints.map(|e| (e.address, e)).collect();
        let mut endpoint_of = |address, tls: &Option<Arc<PeerPlan>>| match before.remove(&address) {
            Some(endpoint) if is_same(&endpoint.tls, tls) => endpoint.clone(),
            // Connections that were secured in another way serve no more.
            known => {
                known.inspect(|known| known.retire());
                Endpoint::new(address, tls.clone())
            }
        };
        let endpoints = cluster.endpoints.iter();
        let endpoints = endpoints.map(|e| endpoint_of(e.address, &e.tls));
        let endpoints = endpoints.collect();
        before.values().for_each(|endpoint| endpoint.retire());
        Rc::new(Cluster {
            endpoints,
            turn: Cell::new(self.random().u32(..)),
            judged_ms: Cell::new(known.map_or_else(|| self.wheel.now_ms(), |k| k.judged_ms.get())),
            freed: known.map(|known| known.freed.clone()).unwrap_or_default(),
            plan: cluster.clone(),
        })
    }

    /// Where connections are counted that are passed on past the mesh.
    pub fn passing(&self, direction: Direction) -> &Edges {
        let both = || {
            [Direction::Inbound, Direction::Outbound]
                .map(|direction| Edges::passing(direction, &self.account))
        };
        let [inbound, outbound] = self.passing.get_or_init(both);
        match direction {
            Direction::Inbound => inbound,
            Direction::Outbound => outbound,
        }
    }

    /// A way past the mesh, to this address alone.
    pub fn passage(&self, address: SocketAddr) -> Rc<Cluster> {
        let edges = self.passing(Direction::Outbound).clone();
        let plan = Arc::new(ClusterPlan::passage(address, edges));
        self.renew(&plan, None)
    }

    /// A generator for one request.
    #[inline]
    pub fn random(&self) -> fastrand::Rng {
        self.rng.borrow_mut().fork()
    }

    /// Counts and logs a connection or request that was refused for want of mutual TLS.
    pub fn refuse_tls(&self, direction: Direction, reason: TlsRefused, peer: SocketAddr) {
        self.account.secured().refuse(direction, reason, peer);
    }

    pub fn count(&self, event: Event) {
        self.account.count(self.index, event);
    }

    /// Connections from downstream.
    pub fn live(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Somebody connected.
    pub fn accepted(&self) {
        self.accepted_ms.set(self.wheel.now_ms());
    }

    /// Since when nobody has connected.
    pub fn quiet_ms(&self) -> u64 {
        self.wheel.now_ms().saturating_sub(self.accepted_ms.get())
    }

    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Tells connections to come to end after their first request. Those that are there are told by whoever gets them.
    pub fn begin_drain(&self) -> Vec<Weak<Watch>> {
        self.draining.set(true);
        let connections = self.connections.borrow();
        connections
            .iter()
            .map(|(_, watch)| Rc::downgrade(watch))
            .collect()
    }

    /// Once in a while: takes a new plan though nobody asks, and closes upstream connections that idled too long.
    pub fn sweep(&self) {
        let plan = self.plan();
        let now_ms = self.wheel.now_ms();
        for cluster in &plan.clusters {
            // Somewhere in the sidecar a request waits for a connection: idle ones make room.
            let wanted = cluster.plan.breaker.count(Share::Pending) > 0;
            let timeout = if wanted {
                0
            } else {
                ms(cluster.plan.pool.idle_timeout)
            };
            for endpoint in &cluster.endpoints {
                let evicted = endpoint
                    .h1
                    .sweep(now_ms, timeout, |connection| connection.is_usable(self));
                endpoint.h2.sweep(now_ms, timeout);
                (0..evicted).for_each(|_| self.count(Event::PoolEvicted));
            }
        }
    }
}

fn is_same(one: &Option<Arc<PeerPlan>>, other: &Option<Arc<PeerPlan>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// How long an endpoint that was not whom we expected is left alone.
const BARRED_MS: u64 = 500;
