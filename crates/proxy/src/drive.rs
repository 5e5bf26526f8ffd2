//! The drivers under the stages: worker threads with one runtime each, listeners, connections, deadlines, and the hyper
//! adapter, above which no type of the crates `http` and `hyper` appears.
//!
//! Module order (a module imports only later ones, but for the types of one connection, which know each other): accept,
//! hyper_in, request, encode, tunnel, body, tally, hyper_out, headers, exchange, secure, socket, stream, frames, core,
//! timer.

mod accept;
mod body;
mod core;
mod encode;
mod exchange;
mod frames;
mod gates;
mod headers;
mod hyper_in;
mod hyper_out;
mod request;
mod secure;
mod shut;
mod socket;
mod stream;
mod tally;
mod timer;
mod tunnel;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
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
use self::core::Core;
use self::gates::{Gates, Opened};
pub(crate) use self::request::walk;
use self::secure::Secure;
use crate::account::{Account, Event};
use crate::edge::Sockets;
use crate::plan::Plan;

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
    gates: Arc<Gates>,
    stage: watch::Sender<Stage>,
    /// Closed when the last worker has ended.
    ended: mpsc::Receiver<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Run,
    Drain { until: Instant },
    Stop,
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
        let cores = config.cores();
        let mut services = Vec::new();
        if !config.is_edge {
            let inbound = Bound::open("inbound", config.inbound, cores)?;
            let outbound = Bound::open("outbound", config.outbound, cores)?;
            services.push((Service::Http(Direction::Inbound), inbound));
            services.push((Service::Http(Direction::Outbound), outbound));
        }
        let at = |place: usize, told| services.get(place).map_or(told, |(_, bound)| bound.address);
        let (inbound, outbound) = (at(0, config.inbound), at(1, config.outbound));
        let tcp = config
            .tcp
            .iter()
            .map(|address| Bound::open("tcp", *address, cores))
            .collect::<io::Result<Vec<_>>>()?;
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
        let (stage, _) = watch::channel(Stage::Run);
        let (alive, ended) = mpsc::channel(1);
        let shared = Arc::<Shared>::default();
        let secure = config.identity.clone().map(Secure::new).map(Arc::new);
        let (gates, opened) = Gates::new(cores);
        for (index, opened) in opened.into_iter().enumerate() {
            let worker = Worker {
                index,
                config: config.clone(),
                plan: plan.clone(),
                account: account.clone(),
                listeners: services
                    .iter_mut()
                    .filter_map(|(service, bound)| Some((*service, bound.listeners.pop()?)))
                    .collect(),
                opened,
                shared: shared.clone(),
                secure: secure.clone(),
                stage: stage.subscribe(),
                _alive: alive.clone(),
            };
            thread::Builder::new()
                .name(format!("relay-{index}"))
                .spawn(move || worker.run())?;
        }
        Ok(Workers {
            addresses,
            gates,
            stage,
            ended,
        })
    }

    /// Opens more listeners, as an edge is told.
    pub fn sockets(&self) -> Arc<dyn Sockets> {
        self.gates.clone()
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Ends every connection after its request, takes new ones only for a moment more (so that none that is on its way
    /// is lost), and waits for the rest until `deadline`. When this returns, the workers have ended.
    pub async fn drain(mut self, deadline: Duration) {
        let _ = self.stage.send(Stage::Drain {
            until: Instant::now() + deadline,
        });
        let ended = async { while self.ended.recv().await.is_some() {} };
        let _ = tokio::time::timeout(deadline + STOP_GRACE, ended).await;
        let _ = self.stage.send(Stage::Stop);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let _ = self.stage.send(Stage::Stop);
    }
}

/// One address, bound once per worker (SO_REUSEPORT).
struct Bound {
    address: SocketAddr,
    listeners: Vec<TcpListener>,
}

impl Bound {
    fn open(role: &str, address: SocketAddr, count: usize) -> io::Result<Self> {
        if address.port() != 0 {
            // Alone first: shared with a stranger, half of the connections would be his.
            drop(Self::listen(address, false).map_err(|error| explain(role, address, &error))?);
        }
        let mut bound = Self {
            address,
            listeners: Vec::with_capacity(count),
        };
        for _ in 0..count {
            let listener = Self::listen(bound.address, true)
                .map_err(|error| explain(role, address, &error))?;
            bound.address = listener.local_addr()?;
            bound.listeners.push(listener);
        }
        Ok(bound)
    }

    fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.bind(&address.into())?;
        if shared {
            socket.set_nonblocking(true)?;
        }
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }
}

fn explain(role: &str, address: SocketAddr, error: &io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process listens there; end it, or choose another address with --{role}"
        ),
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => format!("choose another address with --{role}"),
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
    shared: Arc<Shared>,
    secure: Option<Arc<Secure>>,
    stage: watch::Receiver<Stage>,
    _alive: mpsc::Sender<()>,
}

impl Worker {
    fn run(self) {
        match Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
        {
            Ok(runtime) => runtime.block_on(self.work()),
            Err(error) => tracing::error!(%error, worker = self.index, "worker has no runtime"),
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
        let wheel = core.wheel.clone();
        tokio::task::spawn_local(async move { wheel.run().await });
        let swept = core.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP_INTERVAL).await;
                swept.sweep();
            }
        });
        if let Some(secure) = self.secure.clone() {
            tokio::task::spawn_local(follow(core.clone(), secure));
        }
        let (close, closing) = watch::channel(false);
        let opened = std::mem::replace(&mut self.opened, mpsc::channel(1).1);
        let following = gates::follow(core.clone(), self.shared.clone(), opened, closing.clone());
        tokio::task::spawn_local(following);
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
                    tokio::task::spawn_local(run);
                }
                Err(error) => tracing::error!(%error, "listener can't be used"),
            }
        }
        loop {
            let stage = *self.stage.borrow_and_update();
            match stage {
                Stage::Run => {}
                Stage::Drain { until } => return self.drain(&core, until, &close).await,
                Stage::Stop => return,
            }
            if self.stage.changed().await.is_err() {
                return;
            }
        }
    }

    async fn drain(&mut self, core: &Core, until: Instant, close: &watch::Sender<bool>) {
        core.drain();
        let linger = (until.saturating_duration_since(Instant::now()) / 2).min(LINGER_MAX);
        let lingers_until = Instant::now() + linger;
        while Instant::now() < lingers_until && !(core.live() == 0 && core.quiet_ms() >= QUIET_MS) {
            if !self.rest().await {
                return;
            }
        }
        let _ = close.send(true);
        while Instant::now() < until && (core.live() > 0 || close.receiver_count() > 1) {
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
const STOP_GRACE: Duration = Duration::from_secs(1);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long a draining worker goes on accepting, unless nobody comes for [`QUIET_MS`].
const LINGER_MAX: Duration = Duration::from_secs(1);
const QUIET_MS: u64 = 100;
const DRAIN_LOOK: Duration = Duration::from_millis(10);
        tokio::task::spawn_local(crate::quota::lag::watch());
