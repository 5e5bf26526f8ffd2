//! The drivers under the stages: worker threads with one runtime each, listeners, connections, deadlines, and the codecs of
//! the relay.
//!
//! Module order (a module imports only later ones, but for the types of one connection, which know each other): accept,
//! server, request, pump, mirror, tunnel, tally, client, exchange, http2, secure, wire, stream, core, held, deadline, timer.

mod accept;
mod client;
mod core;
mod deadline;
mod exchange;
mod gates;
mod held;
mod http2;
mod mirror;
mod pump;
mod request;
mod secure;
mod server;
mod shut;
mod stream;
mod tally;
mod timer;
mod tunnel;
mod wire;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use phalanx_model::name::Direction;
use phalanx_pki::identity::Identity;
use phalanx_relay::{Deadlines, Limits};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};

use self::accept::Service;
pub use self::accept::first_bytes;
use self::core::Core;
use self::deadline::Watch;
use self::gates::{Gates, Opened};
pub(crate) use self::request::walk;
use self::secure::Secure;
pub use self::secure::name_in_hello;
use crate::account::{Account, Event};
use crate::edge::Sockets;
use crate::intercept::Redirected;
use crate::lasting::Lasting;
use crate::plan::Plan;
use crate::takeover::{Bundle, Inherited, Lender};
use crate::udp;

/// Where to listen and with how many workers.
#[derive(Clone, Debug)]
pub struct DriveConfig {
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    /// Listeners for raw TCP to a service; by place the same as [`crate::plan::Bootstrap::tcp`].
    pub tcp: Vec<SocketAddr>,
    /// Worker threads; 0 means one per core.
    pub workers: usize,
    pub limits: Limits,
    pub deadlines: Deadlines,
    /// Who this sidecar is, as it stands; none for one that lives in plain text.
    pub identity: Option<Arc<Identity>>,
    /// What the kernel redirects to us; its listeners are bound beside the others.
    pub redirected: Option<Redirected>,
    /// There is no application: neither `inbound` nor `outbound` is bound, listeners come by [`Workers::sockets`].
    pub is_edge: bool,
}

impl DriveConfig {
    /// The number of workers that [`Workers::spawn`] starts; an [`Account`] is made for as many.
    pub fn cores(&self) -> usize {
        match self.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }
}

/// What the listeners are bound to: with the port the system chose where 0 was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    pub tcp: Vec<SocketAddr>,
}

/// The running workers. Dropped without [`Workers::drain`], they stop at once.
pub struct Workers {
    addresses: Addresses,
    bundles: Vec<Bundle>,
    gates: Arc<Gates>,
    datagrams: Arc<udp::Ports>,
    stage: watch::Sender<Stage>,
    /// Closed when the last worker has ended.
    ended: mpsc::Receiver<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Ready, and nobody is accepted yet.
    Hold,
    Run,
    Drain(Drain),
    Stop,
    #[cfg(test)]
    Panic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Drain {
    until: Instant,
    /// From the first connection that is told to the last, if they are many.
    spread: Duration,
    /// Another process accepts from our sockets.
    is_succeeded: bool,
}

/// Counted over all workers.
#[derive(Default)]
struct Shared {
    connections: AtomicU32,
}

impl Workers {
    /// Binds every listener, then starts the workers. `account` must have been made for [`DriveConfig::cores`].
    ///
    /// # Errors
    /// The first address that can't be bound, named, with what to do about it.
    pub fn spawn(
        config: &DriveConfig,
        plan: Arc<ArcSwap<Plan>>,
        account: Arc<Account>,
    ) -> io::Result<Workers> {
        let (mut none, lasting) = (Inherited::default(), Lasting::default());
        let workers = Self::prepare(config, plan, account, &mut none, false, &lasting)?;
        workers.open();
        Ok(workers)
    }

    /// The same, with sockets of the process before where there are such, and nobody is accepted before
    /// [`Workers::open`]. `keeps`: [`Workers::bundles`] will be asked for. A worker's own loops are `lasting`.
    ///
    /// # Errors
    /// As [`Workers::spawn`].
    pub fn prepare(
        config: &DriveConfig,
        plan: Arc<ArcSwap<Plan>>,
        account: Arc<Account>,
        inherited: &mut Inherited,
        keeps: bool,
        lasting: &Lasting,
    ) -> io::Result<Workers> {
        let cores = config.cores();
        let mut bind = |role, address| Bound::take(role, address, cores, inherited);
        let mut services = Vec::new();
        if !config.is_edge {
            let inbound = bind("inbound", config.inbound)?;
            let outbound = bind("outbound", config.outbound)?;
            services.push((Service::Http(Direction::Inbound), inbound));
            services.push((Service::Http(Direction::Outbound), outbound));
        }
        let at = |place: usize, told| services.get(place).map_or(told, |(_, bound)| bound.address);
        let (inbound, outbound) = (at(0, config.inbound), at(1, config.outbound));
        let tcp = config.tcp.iter().map(|address| bind("tcp", *address));
        let tcp = tcp.collect::<io::Result<Vec<_>>>()?;
        let addresses = Addresses {
            inbound,
            outbound,
            tcp: tcp.iter().map(|bound| bound.address).collect(),
        };
        services.extend(
            tcp.into_iter()
                .enumerate()
                .map(|(place, bound)| (Service::Tcp(place), bound)),
        );
        if let Some(redirected) = &config.redirected {
            for (direction, role, address) in redirected.listeners() {
                match bind(role, address) {
                    // Without IPv6 nothing of it is redirected either.
                    Err(error) if address.is_ipv6() && is_without(address, &error) => {}
                    bound => services.push((Service::Redirected(direction), bound?)),
                }
            }
        }
        let bundles = services.iter().filter(|_| keeps);
        let bundles = bundles.map(|(_, bound)| bound.bundle());
        let bundles = bundles.collect::<io::Result<Vec<_>>>()?;
        let (stage, _) = watch::channel(Stage::Hold);
        let (alive, ended) = mpsc::channel(1);
        let shared = Arc::<Shared>::default();
        let secure = config.identity.clone().map(Secure::new).map(Arc::new);
        let before = match config.is_edge {
            true => std::mem::take(inherited),
            false => Inherited::default(),
        };
        let (gates, opened) = Gates::new(cores, keeps, before);
        let (datagrams, own) = udp::Ports::new(cores);
        for (index, (opened, own)) in opened.into_iter().zip(own).enumerate() {
            let mut listeners = Vec::new();
            for (service, bound) in &mut services {
                let shared = bound.share(index, cores)?;
                listeners.extend(shared.into_iter().map(|listener| (*service, listener)));
            }
            let worker = Worker {
                index,
                config: config.clone(),
                plan: plan.clone(),
                account: account.clone(),
                listeners,
                opened,
                datagrams: Some(own),
                shared: shared.clone(),
                secure: secure.clone(),
                stage: stage.subscribe(),
                lasting: lasting.clone(),
                _alive: alive.clone(),
            };
            thread::Builder::new()
                .name(format!("relay-{index}"))
                .spawn(move || worker.run())?;
        }
        Ok(Workers {
            addresses,
            bundles,
            gates,
            datagrams,
            stage,
            ended,
        })
    }

    /// Whoever connects is served from now on.
    pub fn open(&self) {
        self.gates.settle();
        let _ = self.stage.send(Stage::Run);
    }

    #[cfg(test)]
    pub fn disturb(&self) {
        let _ = self.stage.send(Stage::Panic);
    }

    /// All listening sockets, for a process that takes over. While one lives here, its backlog is open.
    pub fn bundles(&mut self) -> Vec<Bundle> {
        std::mem::take(&mut self.bundles)
    }

    /// Opens more listeners, as an edge is told.
    pub fn sockets(&self) -> Arc<dyn Sockets> {
        self.gates.clone()
    }

    /// Of those, the ones that are open, for a process that takes over.
    pub fn lender(&self) -> Arc<dyn Lender> {
        self.gates.clone()
    }

    /// The listeners and sessions of datagrams, which are another process' when it takes over.
    pub fn datagrams(&self) -> &Arc<udp::Ports> {
        &self.datagrams
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Ends every connection after its request, one after the other, takes new ones only for a moment more (so that none
    /// that is on its way is lost), and waits for the rest until `deadline`. When this returns, the workers have ended.
    pub async fn drain(self, deadline: Duration) {
        self.end(deadline, false).await;
    }

    /// The same where another process accepts from our sockets: no new ones are taken at all.
    pub async fn hand_over(self, deadline: Duration) {
        self.end(deadline, true).await;
    }

    async fn end(mut self, deadline: Duration, is_succeeded: bool) {
        self.bundles.clear();
        self.gates.seal();
        self.datagrams.seal();
        let now = Instant::now();
        let _ = self.stage.send(Stage::Drain(Drain {
            until: now.checked_add(deadline).unwrap_or(now + DEADLINE_MAX),
            spread: (deadline / SPREAD_PART).min(SPREAD_MAX),
            is_succeeded,
        }));
        let ended = async { while self.ended.recv().await.is_some() {} };
        let _ = tokio::time::timeout(deadline.saturating_add(STOP_GRACE), ended).await;
        let _ = self.stage.send(Stage::Stop);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let _ = self.stage.send(Stage::Stop);
    }
}

/// One address, bound once per worker (SO_REUSEPORT), or as often as the process before had it.
struct Bound {
    role: &'static str,
    address: SocketAddr,
    listeners: Vec<TcpListener>,
}

impl Bound {
    fn take(
        role: &'static str,
        address: SocketAddr,
        count: usize,
        inherited: &mut Inherited,
    ) -> io::Result<Self> {
        match inherited.take(role, address) {
            Some((address, listeners)) => Ok(Self {
                role,
                address,
                listeners,
            }),
            None => Self::open(role, address, count),
        }
    }

    fn bundle(&self) -> io::Result<Bundle> {
        Bundle::of(self.role, self.address, &self.listeners)
    }

    /// What the worker at `index` of `workers` listens at: every socket is somebody's, and every worker has one.
    fn share(&self, index: usize, workers: usize) -> io::Result<Vec<TcpListener>> {
        let count = self.listeners.len().max(1);
        let is_own = |at: &usize| match count >= workers {
            true => at % workers == index,
            false => *at == index % count,
        };
        let own = (0..count).filter(is_own);
        own.filter_map(|at| self.listeners.get(at))
            .map(TcpListener::try_clone)
            .collect()
    }

    fn open(role: &'static str, address: SocketAddr, count: usize) -> io::Result<Self> {
        // Where a connection was going is asked for in its own family.
        let only_v6 = address.is_ipv6() && Redirected::ROLES.contains(&role);
        if address.port() != 0 {
            // Alone first: shared with a stranger, half of the connections would be his.
            drop(
                Self::listen(address, false, only_v6)
                    .map_err(|error| explain(role, address, &error))?,
            );
        }
        let mut bound = Self {
            role,
            address,
            listeners: Vec::with_capacity(count),
        };
        for _ in 0..count {
            let listener = Self::listen(bound.address, true, only_v6)
                .map_err(|error| explain(role, address, &error))?;
            bound.address = listener.local_addr()?;
            bound.listeners.push(listener);
        }
        Ok(bound)
    }

    fn listen(address: SocketAddr, shared: bool, only_v6: bool) -> io::Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        if only_v6 {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        if shared {
            socket.set_nonblocking(true)?;
        }
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }
}

fn is_without(address: SocketAddr, error: &io::Error) -> bool {
    let has_family = Socket::new(Domain::for_address(address), Type::STREAM, None).is_ok();
    !has_family || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn explain(role: &str, address: SocketAddr, error: &io::Error) -> io::Error {
    let other = match role {
        gates::ROLE => {
            "choose another port in the Gateway, or another address with --bind".to_owned()
        }
        _ => format!("choose another address with --{role}"),
    };
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => format!("another process listens there; end it, or {other}"),
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => other,
    };
    io::Error::new(
        error.kind(),
        format!("the {role} listener can't bind {address}: {error} ({advice})"),
    )
}

/// One thread.
struct Worker {
    index: usize,
    config: DriveConfig,
    plan: Arc<ArcSwap<Plan>>,
    account: Arc<Account>,
    listeners: Vec<(Service, TcpListener)>,
    opened: mpsc::Receiver<Opened>,
    datagrams: Option<udp::Own>,
    shared: Arc<Shared>,
    secure: Option<Arc<Secure>>,
    stage: watch::Receiver<Stage>,
    lasting: Lasting,
    _alive: mpsc::Sender<()>,
}

impl Worker {
    fn run(self) {
        match Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
        {
            Ok(runtime) => {
                let lasting = self.lasting.clone();
                runtime.block_on(lasting.guard("worker", self.work()));
            }
            Err(error) => {
                tracing::error!(%error, worker = self.index, "worker has no runtime");
                self.lasting.tell("worker");
            }
        }
    }

    async fn work(mut self) {
        let Self {
            index,
            plan,
            account,
            ..
        } = &self;
        let core = Core::new(
            *index,
            plan.clone(),
            account.clone(),
            self.config.limits.clone(),
            &self.config.deadlines,
            self.secure.clone(),
        );
        if let Some(redirected) = &self.config.redirected {
            let _ = core.redirected.set(Arc::new(redirected.clone()));
        }
        let (wheel, lasting) = (core.wheel.clone(), self.lasting.clone());
        let ticking = async move { wheel.run().await };
        tokio::task::spawn_local(lasting.guard("timers", ticking));
        tokio::task::spawn_local(lasting.guard("lag", crate::quota::lag::watch()));
        let swept = core.clone();
        let sweeping = async move {
            loop {
                tokio::time::sleep(SWEEP_INTERVAL).await;
                swept.sweep();
            }
        };
        tokio::task::spawn_local(lasting.guard("sweep", sweeping));
        if let Some(secure) = self.secure.clone() {
            let following = follow(core.clone(), secure);
            tokio::task::spawn_local(lasting.guard("revocations", following));
        }
        if !self.is_opened().await {
            return;
        }
        let (close, closing) = watch::channel(false);
        let mut accepting = Vec::new();
        let opened = std::mem::replace(&mut self.opened, mpsc::channel(1).1);
        let following = gates::follow(
            core.clone(),
            self.shared.clone(),
            opened,
            closing.clone(),
            self.lasting.clone(),
        );
        accepting.push(tokio::task::spawn_local(lasting.guard("gates", following)));
        // Not among those that end with a hand-over: its sessions are ours to the end, or until an heir has them.
        if let Some(own) = self.datagrams.take() {
            let (plan, account) = (self.plan.clone(), self.account.clone());
            let stage = self.stage.clone();
            let succeeds =
                move || matches!(*stage.borrow(), Stage::Drain(drain) if drain.is_succeeded);
            let serving = udp::run(own, plan, account, closing.clone(), succeeds);
            tokio::task::spawn_local(self.lasting.guard("datagrams", serving));
        }
        for (service, listener) in std::mem::take(&mut self.listeners) {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    let run = accept::run(
                        core.clone(),
                        listener,
                        service,
                        self.shared.clone(),
                        closing.clone(),
                    );
                    accepting.push(tokio::task::spawn_local(lasting.guard("listener", run)));
                }
                Err(error) => tracing::error!(%error, "listener can't be used"),
            }
        }
        loop {
            let stage = *self.stage.borrow_and_update();
            match stage {
                Stage::Hold | Stage::Run => {}
                Stage::Drain(drain) => {
                    if drain.is_succeeded {
                        // What waits in the backlog is the other's.
                        accepting.iter().for_each(|task| task.abort());
                    }
                    return self.drain(&core, drain, &close).await;
                }
                Stage::Stop => return,
                #[cfg(test)]
                Stage::Panic => panic!("injected"),
            }
            if self.stage.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until connections may be taken; false when there is nothing to wait for.
    async fn is_opened(&mut self) -> bool {
        let stage = self.stage.wait_for(|stage| *stage != Stage::Hold).await;
        stage.is_ok_and(|stage| *stage != Stage::Stop)
    }

    async fn drain(&mut self, core: &Core, drain: Drain, close: &watch::Sender<bool>) {
        let Drain { until, spread, .. } = drain;
        let mut rollout = Rollout::new(core, Instant::now(), spread);
        let linger = (until.saturating_duration_since(Instant::now()) / 2).min(LINGER_MAX);
        let lingers_until = Instant::now() + linger;
        while !drain.is_succeeded
            && Instant::now() < lingers_until
            && !(core.live() == 0 && core.quiet_ms() >= QUIET_MS)
        {
            rollout.tell(core, Instant::now());
            if !self.rest().await {
                return;
            }
        }
        let _ = close.send(true);
        while Instant::now() < until && (core.live() > 0 || close.receiver_count() > 1) {
            rollout.tell(core, Instant::now());
            if !self.rest().await {
                return;
            }
        }
        (0..core.live()).for_each(|_| core.count(Event::DrainDeadline));
    }

    /// False when told to stop at once.
    async fn rest(&mut self) -> bool {
        tokio::select! {
            () = tokio::time::sleep(DRAIN_LOOK) => true,
            changed = self.stage.changed() => changed.is_ok() && *self.stage.borrow() != Stage::Stop,
        }
    }
}

/// Which connection is told when that it ends after its request (GOAWAY, `connection: close`): told all at once, all their
/// callers would come back at once.
struct Rollout {
    /// The last one first.
    left: Vec<(Instant, Weak<Watch>)>,
}

impl Rollout {
    fn new(core: &Core, now: Instant, spread: Duration) -> Self {
        let mut rng = core.random();
        let watches = core.begin_drain();
        let count = u32::try_from(watches.len()).unwrap_or(u32::MAX);
        let spread = spread.min(PACE.saturating_mul(count));
        let mut left: Vec<_> = watches
            .into_iter()
            .map(|watch| (now + spread.mul_f64(rng.f64()), watch))
            .collect();
        left.sort_by_key(|(due, _)| std::cmp::Reverse(*due));
        Self { left }
    }

    fn tell(&mut self, core: &Core, now: Instant) {
        while let Some((_, watch)) = self.left.pop_if(|(due, _)| *due <= now) {
            if let Some(watch) = watch.upgrade() {
                watch.drain(core);
            }
        }
    }
}

/// After each change of the identity, ends connections whose peers are revoked by now; idle ones too.
async fn follow(core: Rc<Core>, secure: Arc<Secure>) {
    let mut changes = secure.identity.changes();
    while changes.changed().await.is_ok() {
        if core.links.recheck(&secure.identity).await > 0 {
            core.sweep();
        }
    }
}

/// Pending once.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

const BACKLOG: i32 = 1024;
/// Connections are told that we drain over this part of the time that they have, and no longer than that.
const SPREAD_PART: u32 = 3;
const SPREAD_MAX: Duration = Duration::from_secs(30);
/// Few connections need less time: so much for each, on average.
const PACE: Duration = Duration::from_millis(5);
/// Longer than any process lives.
const DEADLINE_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);
const STOP_GRACE: Duration = Duration::from_secs(1);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long a draining worker goes on accepting, unless nobody comes for [`QUIET_MS`].
const LINGER_MAX: Duration = Duration::from_secs(1);
const QUIET_MS: u64 = 100;
const DRAIN_LOOK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
