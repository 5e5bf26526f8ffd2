//! The composition root: a sidecar from its start to its end, in the order things happen. Workers carry traffic on
//! threads of their own; everything started here shares one runtime and one connection to the control plane.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use phalanx_client::channel::{ChannelError, Control};
use phalanx_client::limits::Lessee;
use phalanx_client::observe::{Reporter, Source};
use phalanx_client::registry::{Registration, State, Succession};
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::{ClusterName, Instance, InstanceId, InstancePort};
use phalanx_pki::clock::SystemClock;
use phalanx_pki::identity::Identity;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::sync::watch::Receiver;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{error, info, warn};

use crate::accesslog::{AccessLog, AccessLogError};
use crate::account::{Account, EdgeTotals};
use crate::admin::{self, View};
use crate::config::{Config, ConfigError, UpgradeConfig};
use crate::discovery::{self, Discovery, Known};
use crate::drive::{DriveConfig, Workers};
use crate::edge::{Edge, TlsDir, tls_dir};
use crate::health::HealthChecks;
use crate::identity::{self, Certificates, IdentityError};
use crate::intercept::{self, InterceptError, Interception, Redirected};
use crate::lasting::Lasting;
use crate::lease;
use crate::plan::{AppPort, Bootstrap, Plan, Resources};
use crate::register::Register;
use crate::report::{Reporting, Reports};
use crate::takeover::{
    self, Bundle, Committed, Estate, Heir, Holder, Inherited, Legacy, OfHolder, TakeoverError,
};
use crate::udp;

/// From our last word to the process before until we serve: its answer is waited for, the rest is done at once.
const DECIDED_MAX: Duration = Duration::from_secs(10);
/// How long the control plane may take to acknowledge that we are leaving.
const DEREGISTER_MAX: Duration = Duration::from_secs(1);
/// From there until peers have heard of it and send no more.
const PEERS_LEARN: Duration = Duration::from_millis(500);

/// How long the control plane may take to acknowledge that the instance is ours.
const REGISTER_MAX: Duration = Duration::from_secs(10);
/// Told to the other side of an upgrade, for people.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Between two looks at what is in flight.
const QUIET_PAUSE: Duration = Duration::from_millis(20);

/// Runs a sidecar until `shutdown`, or until another process took over, then drains it.
///
/// # Errors
/// [`ServeError`], before anything is served; [`ServeError::Fallen`] after that, and after it drained.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let is_decided = AtomicBool::new(false);
    match begun(begin(config, &is_decided), &is_decided, shutdown.as_mut()).await? {
        Begun::Serving(running) => serve(running, shutdown).await,
        Begun::Stopping(running) => {
            running.shutdown().await;
            Ok(())
        }
        Begun::Never => Ok(()),
    }
}

/// What a start came to.
#[derive(Debug, PartialEq, Eq)]
enum Begun<T> {
    Serving(T),
    /// It serves in the place of another, and was told to stop meanwhile.
    Stopping(T),
    /// Nothing is served yet, and a process that would be replaced goes on.
    Never,
}

/// Told to stop before `is_decided`, there is nothing to end; after that the process before drains, or is about to, so that
/// whoever connects is ours to serve until we have drained as well.
async fn begun<T>(
    starting: impl Future<Output = Result<T, ServeError>>,
    is_decided: &AtomicBool,
    shutdown: impl Future<Output = ()>,
) -> Result<Begun<T>, ServeError> {
    let mut starting = std::pin::pin!(starting);
    tokio::select! {
        started = &mut starting => return Ok(Begun::Serving(started?)),
        () = shutdown => {}
    }
    if !is_decided.load(Ordering::Relaxed) {
        return Ok(Begun::Never);
    }
    info!("told to stop while taking over, waiting for the sidecar before");
    match timeout(DECIDED_MAX, starting).await {
        Ok(started) => Ok(Begun::Stopping(started?)),
        Err(_) => Err(TakeoverError::Busy(DECIDED_MAX).into()),
    }
}

/// Until the one or the other: told to stop, replaced, or not whole any more.
async fn serve(
    mut running: Running,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), ServeError> {
    let lasting = running.lasting.clone();
    let drain = tokio::select! {
        Committed { drain } = running.succeeded() => drain,
        () = &mut shutdown => {
            running.shutdown().await;
            return Ok(());
        }
        fallen = lasting.fallen() => {
            error!(task = fallen, "draining, to end: whoever supervises starts another");
            running.shutdown().await;
            return Err(ServeError::Fallen(fallen));
        }
    };
    let own_drain = running.drain;
    tokio::select! {
        () = running.hand_over(drain) => {}
        () = async { shutdown.await; sleep(own_drain).await } => {}
    }
    Ok(())
}

/// Starts a sidecar; when this returns, its listeners are open. The control plane need not be there, unless a process that
/// serves is to be replaced: that goes on until this one is ready.
///
/// # Errors
/// [`ServeError`]; nothing is left running then.
pub async fn start(config: Config) -> Result<Running, ServeError> {
    begin(config, &AtomicBool::new(false)).await
}

/// `is_decided` once a process that serves may leave it all to us.
async fn begin(config: Config, is_decided: &AtomicBool) -> Result<Running, ServeError> {
    config.check()?;
    if config.intercept.is_some() {
        phalanx_client::mark::set(intercept::MARK); // before anything of ours connects
    }
    let lasting = Lasting::default();
    let (mut heir, mut inherited) = ask(&config).await?.unzip();
    let was_redirected = inherited.as_ref().is_some_and(|inherited| {
        let mut roles = Redirected::ROLES.into_iter();
        roles.any(|role| inherited.has_role(role))
    });
    // Who we are; without that everything is plain text, and with it nothing is.
    let certificates = certificates(&config)?;
    let identity = certificates.as_ref().map(|c| c.identity().clone());
    let planes = match &identity {
        Some(identity) => Control::secure_as_workload(&config.control, identity.clone())?,
        None => Control::parse(&config.control)?,
    };
    let control = planes.channel();
    probe(&config, inherited.as_ref())?;
    let mut inherited = inherited.take().unwrap_or_default();
    let listener = match inherited.take("admin", config.admin) {
        Some((_, sockets)) => sockets.into_iter().next(),
        None => None,
    };
    let listener = match listener {
        Some(listener) => TcpListener::from_std(listener),
        None => TcpListener::bind(config.admin).await,
    };
    let listener = listener.map_err(|source| ServeError::admin(config.admin, source))?;
    let admin = listener
        .local_addr()
        .map_err(|source| ServeError::admin(config.admin, source))?;

    // Traffic: what arrives for the application is served from now on, by what we know of ourselves.
    let account = Arc::new(Account::new(config.workers).correlating(config.correlate));
    account.blind(config.correlate.settle);
    let log = config.access_log.as_ref();
    let log = log.map(|log| AccessLog::open(log, &account)).transpose()?;
    let log = log.map(Arc::new);
    let bootstrap = bootstrap(&config);
    let first = Plan::assemble(&Resources::default(), &bootstrap, &Plan::empty(), &account);
    let plan = Arc::new(ArcSwap::from_pointee(first));
    let mut workers = Workers::prepare(
        &drive(&config, identity.clone()),
        plan.clone(),
        account.clone(),
        &mut inherited,
        config.upgrade.is_some(),
        &lasting,
    )
    .map_err(ServeError::Workers)?;
    // From here on what the application sends waits in our backlog.
    let own_ports = [workers.addresses().inbound.port(), admin.port()];
    let mut interception = match &config.intercept {
        Some(intercept) if heir.is_none() => Some(Interception::begin(intercept, &own_ports)?),
        _ => None,
    };
    let lock = inherited.take_lock();
    drop(inherited); // what the one before had beyond ours is nobody's when that ends
    let (inbound, outbound) = (workers.addresses().inbound, workers.addresses().outbound);

    // What the control plane has for us, as soon as it can know who we are.
    let certificates = certificates
        .map(|certificates| certificates.spawn(planes.clone(), &config.control, &lasting))
        .transpose()?;
    let instance = instance(&config, config.advertised(inbound).await?, admin);
    if let Some(heir) = heir
        .as_ref()
        .filter(|heir| heir.instance != instance.id.to_string())
    {
        return Err(ServeError::Takeover(TakeoverError::Instance {
            theirs: heir.instance.clone(),
            ours: instance.id.to_string(),
        }));
    }
    let node = match &config.gateway {
        None => discovery::with_udp(discovery::node(&instance, outbound), &config.udp),
        Some(gateway) => discovery::edge_node(&instance, gateway.bind),
    };
    let shown = config
        .gateway
        .as_ref()
        .map(|gateway| TlsDir::new(gateway.tls_dir.clone()));
    let edge = shown
        .as_ref()
        .map(|shown| Edge::new(workers.sockets(), shown.clone()));
    let discovery = Discovery::spawn(
        control.clone(),
        node.clone(),
        bootstrap,
        plan.clone(),
        account.clone(),
        config.unused,
        edge,
        &lasting,
    );

    let mut tasks = JoinSet::new();
    if let Some(shown) = shown {
        tasks.spawn(lasting.guard("certificates of the edge", watch(shown)));
    }
    if let Some(certificates) = &certificates {
        let joined = joined(certificates.ready(), discovery.retry());
        tasks.spawn(lasting.guard("first certificate", joined));
    }

    // Behind the back of the one that serves, everything but the last word.
    let mut before = None;
    if let (Some(one), Some(upgrade)) = (&mut heir, &config.upgrade) {
        let certificate = certificates.as_ref().map(identity::Running::ready);
        let complete = discovery.complete();
        match succeed(one, complete, certificate, discovery.known(), upgrade).await? {
            OfHolder::Said(succession) => before = succession,
            OfHolder::Gone => warn!("the sidecar before ended by itself, going on alone"),
        }
    }
    let register = match config.apps.is_empty() && config.udp_apps.is_empty() {
        true => None,
        false => {
            let (planes, instance) = (planes, instance.clone());
            let registration = match before {
                Some(before) => Registration::succeed(planes, instance, config.ttl, before),
                None => Registration::spawn(planes, instance, config.ttl),
            };
            if before.is_some() && !registration.settled(REGISTER_MAX).await {
                let what = "the control plane does not take the registration";
                return Err(TakeoverError::NotReady(REGISTER_MAX, what).into());
            }
            let passing = pass_on(registration.states(), discovery.retry());
            tasks.spawn(lasting.guard("news of the registry", passing));
            let apps: Vec<SocketAddr> = config.apps.iter().map(|(_, app)| *app).collect();
            let udp: Vec<SocketAddr> = config.udp_apps.iter().map(|(_, app)| *app).collect();
            Some(Register::spawn(
                registration,
                before,
                &apps,
                &udp,
                config.ready.clone(),
                discovery.complete(),
                discovery.connected(),
                &lasting,
            ))
        }
    };
    let (is_heir, mut upgrades) = (heir.is_some(), None);
    if let (Some(heir), Some(upgrade)) = (heir, &config.upgrade) {
        is_decided.store(true, Ordering::Relaxed);
        account.blind(upgrade.drain);
        let (socket, legacy) = heir.commit(upgrade.drain).await?;
        upgrades = socket;
        if let Some(legacy) = legacy {
            let datagrams = workers.datagrams().clone();
            datagrams.wait();
            let inheriting = inherit(legacy, datagrams);
            tasks.spawn(lasting.guard("sessions of the one before", inheriting));
        }
        interception = succeed_rules(&config, &own_ports, was_redirected, lock, &mut tasks);
    }
    workers.open();
    let bundles = workers.bundles();
    let registration = register
        .as_ref()
        .map(|register| register.registration().clone());
    let hold = |upgrade: &UpgradeConfig| {
        let bundle = admin_bundle(&listener, admin)
            .map_err(|source| ServeError::admin(config.admin, source))?;
        let lock = interception.as_ref().and_then(lock_bundle);
        let estate = Estate {
            release: RELEASE,
            service: called(&config),
            instance: instance.id.to_string(),
            lender: config.gateway.as_ref().map(|_| workers.lender()),
            bundles: bundles.into_iter().chain([bundle]).chain(lock).collect(),
            registration: registration.clone(),
            testator: Some(workers.datagrams().clone()),
        };
        let socket = match upgrades {
            Some(inherited) => inherited,
            None => takeover::listen(&upgrade.socket)?,
        };
        Holder::spawn(&upgrade.socket, socket, estate, &lasting).map_err(ServeError::Workers)
    };
    let holder = match config.upgrade.as_ref().map(hold).transpose() {
        Ok(holder) => holder,
        // The one before drains by now: whoever can't be replaced is better than nobody.
        Err(error) if is_heir => {
            let why: &dyn std::error::Error = &error;
            error!(why, "serving, but can't be replaced by an upgrade");
            None
        }
        Err(error) => return Err(error),
    };
    let complete = discovery.complete();
    let checks = HealthChecks::spawn(control.clone(), node, identity, complete, &lasting);

    // What was seen.
    let reports = Arc::new(Reports::default());
    let source = Source {
        node: instance.id.to_string(),
        namespace: instance.id.service.namespace.clone(),
        service: instance.id.service.name.clone(),
        version: instance.version().to_owned(),
    };
    let lessee = Lessee::new(control.clone(), instance.id.to_string());
    let reporting = Reporting::spawn(
        Reporter::new(control, source),
        account.clone(),
        discovery.known().clone(),
        reports.clone(),
        &lasting,
    );
    let leasing = Arc::<lease::Counts>::default();
    let asking = lease::run(lessee, plan.clone(), leasing.clone());
    tasks.spawn(lasting.guard("shared limits", asking));
    let comparing = account.comparisons().clone().run();
    tasks.spawn(lasting.guard("comparisons", comparing));
    let view = Arc::new(View {
        instance,
        control: config.control,
        inbound,
        outbound,
        account,
        plan,
        known: discovery.known().clone(),
        registration,
        reports,
        checks: checks.checks().clone(),
        leasing,
        certificates: certificates.as_ref().map(identity::Running::shown),
        draining: AtomicBool::new(false),
    });
    if let Some(log) = &log {
        tasks.spawn(lasting.guard("access log", reopen(log.clone())));
    }
    let pages = tasks.spawn(lasting.guard("admin pages", admin::serve(listener, view.clone())));
    info!(node = %view.instance.id, %inbound, %outbound, %admin, control = view.control, "sidecar started");
    Ok(Running {
        interception,
        admin,
        drain: config.drain,
        lasting,
        view,
        pages,
        holder,
        workers,
        discovery,
        checks,
        register,
        reporting,
        certificates,
        log,
        tasks,
    })
}

/// Sockets and sessions of the process before; if they don't come, it serves them until they end.
async fn inherit(legacy: Legacy, datagrams: Arc<udp::Ports>) {
    let left = legacy.take().await.unwrap_or_else(|error| {
        warn!(%error, "the sidecar before left no sessions of datagrams");
        Vec::new()
    });
    datagrams.inherit(left);
}

/// Files are looked at where nobody waits.
async fn watch(shown: Arc<TlsDir>) {
    loop {
        sleep(tls_dir::LOOK).await;
        let shown = shown.clone();
        if tokio::task::spawn_blocking(move || shown.look())
            .await
            .is_err()
        {
            warn!("the certificates could not be looked at");
        }
    }
}

/// On SIGHUP, as programs that rotate logs send it.
async fn reopen(log: Arc<AccessLog>) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else {
        return;
    };
    while hangups.recv().await.is_some() {
        log.reopen();
    }
}

/// A sidecar at work. Dropped, it stops at once.
pub struct Running {
    /// Ends as the first: whoever drops all of this leaves no rules that lead nowhere.
    interception: Option<Interception>,
    admin: SocketAddr,
    drain: Duration,
    lasting: Lasting,
    view: Arc<View>,
    pages: AbortHandle,
    /// None: it can't be replaced while it serves.
    holder: Option<Holder>,
    workers: Workers,
    discovery: Discovery,
    checks: HealthChecks,
    register: Option<Register>,
    reporting: Reporting,
    certificates: Option<identity::Running>,
    /// Written to its end when this is dropped.
    log: Option<Arc<AccessLog>>,
    tasks: JoinSet<()>,
}

impl Running {
    pub fn inbound(&self) -> SocketAddr {
        self.view.inbound
    }

    pub fn outbound(&self) -> SocketAddr {
        self.view.outbound
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Listeners for raw TCP, in the order of the configuration.
    pub fn tcp(&self) -> &[SocketAddr] {
        &self.workers.addresses().tcp
    }

    /// Resolves when another process has taken over; never where that is not possible.
    pub async fn succeeded(&mut self) -> Committed {
        match &mut self.holder {
            Some(holder) => holder.committed().await,
            None => std::future::pending().await,
        }
    }

    /// Leaves everything to the process that took over, and lets what is in flight end within `deadline`. The instance
    /// stays registered: it is the other's now.
    pub async fn hand_over(self, deadline: Duration) {
        let Self {
            interception,
            view,
            pages,
            holder,
            workers,
            discovery,
            checks,
            register,
            reporting,
            certificates,
            log,
            mut tasks,
            ..
        } = self;
        view.draining.store(true, Ordering::Relaxed);
        view.account.blind(deadline);
        pages.abort();
        drop((holder, register, checks));
        if let Some(interception) = interception {
            interception.leave();
        }
        info!(?deadline, "replaced, draining");
        workers.hand_over(deadline).await;
        reporting.finish().await;
        drop((discovery, certificates));
        tasks.shutdown().await;
        drop(log);
        info!("drained");
    }

    /// Leaves the mesh without losing a request: says that it drains, while what is in flight and sessions that stay go on
    /// for at most half of the time; then deregisters, lets peers hear of it, ends the rest, tells the last counts.
    pub async fn shutdown(self) {
        let Self {
            interception,
            drain,
            view,
            holder,
            workers,
            discovery,
            checks,
            register,
            reporting,
            certificates,
            log,
            mut tasks,
            ..
        } = self;
        view.draining.store(true, Ordering::Relaxed);
        drop(holder);
        info!("draining");
        let until = Instant::now() + drain;
        if let Some(mut register) = register {
            let is_heard = register.drain(DEREGISTER_MAX).await;
            if is_heard {
                sleep(PEERS_LEARN).await;
                quiet(&view.account, drain / 2).await;
            }
            match is_heard && register.deregister(DEREGISTER_MAX).await {
                true => sleep(PEERS_LEARN).await,
                false => warn!(
                    "the control plane did not take the deregistration, peers will notice by themselves"
                ),
            }
        }
        let rest = until.saturating_duration_since(Instant::now());
        workers.drain(rest.max(drain / 4)).await;
        drop(interception); // not before: what is redirected by now would go astray
        reporting.finish().await;
        drop((discovery, checks, certificates));
        tasks.shutdown().await;
        drop(log);
        info!("drained");
    }
}

/// What is taken over, if another process serves; `None` if nobody does.
async fn ask(config: &Config) -> Result<Option<(Heir, Inherited)>, ServeError> {
    let Some(upgrade) = &config.upgrade else {
        return Ok(None);
    };
    let asked = Heir::ask(&upgrade.socket, RELEASE, &called(config)).await?;
    if let Some((_, inherited)) = &asked {
        if config.gateway.is_none() {
            inherited.expect("inbound", config.inbound)?;
            inherited.expect("outbound", config.outbound)?;
        }
        inherited.expect("admin", config.admin)?;
    }
    Ok(asked)
}

/// What an heir has to be as well. An edge may have the name of a service.
fn called(config: &Config) -> String {
    match &config.gateway {
        None => config.service.to_string(),
        Some(_) => format!("gateway {}", config.service),
    }
}

/// Waits until there is all that it takes to serve, then asks for the registration.
async fn succeed(
    heir: &mut Heir,
    mut complete: Receiver<bool>,
    certificate: Option<Receiver<bool>>,
    known: &Known,
    upgrade: &UpgradeConfig,
) -> Result<OfHolder<Option<Succession>>, TakeoverError> {
    let until = Instant::now() + upgrade.wait;
    let mut missing = "there is no certificate";
    let ready = async {
        if let Some(mut certificate) = certificate {
            let _ = certificate.wait_for(|ready| *ready).await;
        }
        missing = "there is no configuration from the control plane";
        let _ = complete.wait_for(|complete| *complete).await;
    };
    let is_ready = tokio::select! {
        () = ready => true,
        parted = heir.parted() => return parted.map(|()| OfHolder::Gone),
        () = sleep_until(until) => false,
    };
    if !is_ready {
        if known.configuration().is_waiting() {
            missing = "of what the running one serves, something can't be served here (the log says what)";
        }
        return Err(TakeoverError::NotReady(upgrade.wait, missing));
    }
    heir.ready().await
}

/// The rules of the process before go on or go away. Nothing fails here any more: it drains by now.
fn succeed_rules(
    config: &Config,
    own_ports: &[u16],
    was_redirected: bool,
    lock: Option<OwnedFd>,
    tasks: &mut JoinSet<()>,
) -> Option<Interception> {
    let Some(intercept) = &config.intercept else {
        if was_redirected {
            intercept::clean_up_behind();
        }
        return None;
    };
    let begun = Interception::succeed(intercept, own_ports, lock);
    tasks.spawn(begun.hold());
    Some(begun)
}

/// The hold on the network namespace, as an heir takes it with the listeners.
fn lock_bundle(interception: &Interception) -> Option<Bundle> {
    Some(Bundle {
        role: Redirected::LOCK,
        address: (Ipv4Addr::UNSPECIFIED, 0).into(),
        sockets: [interception.share_lock()?].into(),
    })
}

fn admin_bundle(listener: &TcpListener, address: SocketAddr) -> io::Result<Bundle> {
    let socket = listener.as_fd().try_clone_to_owned()?;
    Bundle::of("admin", address, &[std::net::TcpListener::from(socket)])
}

/// Waits until no request for the application is in flight, at most `limit`.
async fn quiet(account: &Account, limit: Duration) {
    let until = Instant::now() + limit;
    let is_busy =
        |totals: &EdgeTotals| totals.key.direction == Direction::Inbound && totals.active > 0;
    while account.collect().iter().any(is_busy) && Instant::now() < until {
        sleep(QUIET_PAUSE).await;
    }
}

/// Whenever the registry is heard of again, discovery need not wait for its own next attempt.
async fn pass_on(mut states: Receiver<State>, retry: Arc<Notify>) {
    while states.changed().await.is_ok() {
        if *states.borrow_and_update() != State::Unknown {
            retry.notify_waiters();
        }
    }
}

/// With the first certificate, discovery need not wait for its own next attempt.
async fn joined(mut ready: Receiver<bool>, retry: Arc<Notify>) {
    if ready.wait_for(|ready| *ready).await.is_ok() {
        retry.notify_waiters();
    }
}

fn certificates(config: &Config) -> Result<Option<Certificates>, IdentityError> {
    let zone = config.labels.get("zone").map(String::as_str);
    let open =
        |identity| Certificates::open(identity, &config.service, zone, Arc::new(SystemClock));
    config.identity.as_ref().map(open).transpose()
}

/// Whether every listener can be opened. Workers share their ports with each other (SO_REUSEPORT), so a second sidecar
/// of the same user would silently share them too; a plain socket tells.
fn probe(config: &Config, inherited: Option<&Inherited>) -> Result<(), ServeError> {
    let tcp = config
        .tcp
        .iter()
        .map(|(listen, ..)| ("raw TCP", "--tcp", *listen));
    let listeners = [
        ("inbound traffic", "--inbound", config.inbound),
        ("the application's calls", "--outbound", config.outbound),
    ];
    let listeners = listeners.into_iter().filter(|_| config.gateway.is_none());
    let is_ours = |address: &SocketAddr| inherited.is_some_and(|all| all.has(*address));
    let mut open = Vec::new();
    for (what, flag, address) in listeners
        .chain(tcp)
        .filter(|(.., address)| address.port() != 0 && !is_ours(address))
    {
        let socket = std::net::TcpListener::bind(address);
        open.push(socket.map_err(|source| ServeError::Listen {
            what,
            flag,
            address,
            hint: hint(&source),
            source,
        })?);
    }
    Ok(())
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the port is taken, by another sidecar perhaps",
        io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege",
        _ => "the system refuses",
    }
}

fn bootstrap(config: &Config) -> Bootstrap {
    let app = |(name, address): &(String, SocketAddr)| AppPort {
        name: name.clone(),
        number: address.port(),
        address: *address,
        protocol: Protocol::guess(name),
    };
    let tcp = |(listen, service, port): &(SocketAddr, _, u16)| {
        (*listen, ClusterName::outbound(Clone::clone(service), *port))
    };
    Bootstrap {
        service: config.service.clone(),
        version: config.labels.get("version").cloned().unwrap_or_default(),
        inbound: config.apps.iter().map(app).collect(),
        tcp: config.tcp.iter().map(tcp).collect(),
    }
}

fn drive(config: &Config, identity: Option<Arc<Identity>>) -> DriveConfig {
    DriveConfig {
        inbound: config.inbound,
        outbound: config.outbound,
        tcp: config.tcp.iter().map(|(listen, ..)| *listen).collect(),
        workers: config.workers,
        limits: Default::default(),
        deadlines: Default::default(),
        identity,
        redirected: config.intercept.as_ref().map(Redirected::new),
        is_edge: config.gateway.is_some(),
    }
}

/// Without an id of its own, an instance is known by where it is reached, so that a restart is the same instance.
fn instance(config: &Config, advertised: SocketAddr, admin: SocketAddr) -> Instance {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let id = config
        .instance
        .clone()
        .unwrap_or_else(|| advertised.to_string().chars().map(plain).collect());
    let port = |(name, app): &(String, SocketAddr)| InstancePort {
        name: name.clone(),
        number: app.port(),
        address: advertised,
        protocol: Protocol::guess(name),
    };
    // Nothing of ours stands in front of it: others reach it where it is.
    let datagrams = |(name, app): &(String, SocketAddr)| {
        let is_hidden =
            app.ip().is_unspecified() || (app.ip().is_loopback() && !advertised.ip().is_loopback());
        let ip = if is_hidden { advertised.ip() } else { app.ip() };
        InstancePort {
            name: name.clone(),
            number: app.port(),
            address: SocketAddr::new(ip, app.port()),
            protocol: Protocol::Udp,
        }
    };
    let mut labels = config.labels.clone();
    labels.insert("service".into(), config.service.name.clone());
    labels.insert("namespace".into(), config.service.namespace.clone());
    labels
        .entry("app".into())
        .or_insert_with(|| config.service.name.clone());
    Instance {
        id: InstanceId {
            service: config.service.clone(),
            id,
        },
        zone: labels.get("zone").cloned().unwrap_or_default(),
        labels,
        ports: config
            .apps
            .iter()
            .map(port)
            .chain(config.udp_apps.iter().map(datagrams))
            .collect(),
        weight: 1,
        proxy_admin: admin.to_string(),
        // It registers over a connection that shows its certificate, so not before there is one.
        mutual_tls: config.identity.is_some(),
    }
}

/// Why a sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("cannot listen on {address} for {what}: {hint} ({flag} takes another address)")]
    Listen {
        what: &'static str,
        flag: &'static str,
        address: SocketAddr,
        hint: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot take over from the sidecar that runs")]
    Takeover(#[from] TakeoverError),
    #[error(transparent)]
    Intercept(#[from] InterceptError),
    #[error("cannot start the workers")]
    Workers(#[source] io::Error),
    #[error("a task that must last as long as the sidecar has panicked: {0}")]
    Fallen(&'static str),
}

impl ServeError {
    fn admin(address: SocketAddr, source: io::Error) -> Self {
        Self::Listen {
            what: "the admin pages",
            flag: "--admin",
            address,
            hint: hint(&source),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
