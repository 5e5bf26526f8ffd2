//! The composition root: a sidecar from its start to its end, in the order things happen. Workers carry traffic on
//! threads of their own; everything started here shares one runtime and one connection to the control plane.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use phalanx_client::channel::{ChannelError, Control};
use phalanx_client::observe::{Reporter, Source};
use phalanx_client::limits::Lessee;
use phalanx_client::registry::{Registration, State};
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::{ClusterName, Instance, InstanceId, InstancePort};
use phalanx_pki::clock::SystemClock;
use phalanx_pki::identity::Identity;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::accesslog::{AccessLog, AccessLogError};
use crate::account::{Account, EdgeTotals};
use crate::admin::{self, View};
use crate::config::{Config, ConfigError};
use crate::discovery::{self, Discovery};
use crate::drive::{DriveConfig, Workers};
use crate::edge::{Edge, TlsDir, tls_dir};
use crate::health::HealthChecks;
use crate::identity::{self, Certificates, IdentityError};
use crate::plan::{AppPort, Bootstrap, Plan, Resources};
use crate::lease;
use crate::register::Register;
use crate::report::{Reporting, Reports};

/// How long the first configuration may keep an instance from registering: without one its application can't call.
const CONFIGURATION_WAIT: Duration = Duration::from_secs(5);
/// How long the control plane may take to acknowledge that we are leaving.
const DEREGISTER_MAX: Duration = Duration::from_secs(1);
/// From there until peers have heard of it and send no more.
const PEERS_LEARN: Duration = Duration::from_millis(500);

/// Between two looks at what is in flight.
const QUIET_PAUSE: Duration = Duration::from_millis(20);

/// Runs a sidecar until `shutdown`, then drains it.
///
/// # Errors
/// [`ServeError`], before anything is served.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    let running = start(config).await?;
    shutdown.await;
    running.shutdown().await;
    Ok(())
}

/// Starts a sidecar; when this returns, its listeners are open. The control plane need not be there.
///
/// # Errors
/// [`ServeError`]; nothing is left running then.
pub async fn start(config: Config) -> Result<Running, ServeError> {
    config.check()?;
    // Who we are; without that everything is plain text, and with it nothing is.
    let certificates = certificates(&config)?;
    let identity = certificates.as_ref().map(|c| c.identity().clone());
    let planes = match &identity {
        Some(identity) => Control::secure_as_workload(&config.control, identity.clone())?,
        None => Control::parse(&config.control)?,
    };
    let control = planes.channel();
    probe(&config)?;
    let listener = TcpListener::bind(config.admin)
        .await
        .map_err(|source| ServeError::admin(config.admin, source))?;
    let admin = listener
        .local_addr()
        .map_err(|source| ServeError::admin(config.admin, source))?;

    // Traffic: what arrives for the application is served from now on, by what we know of ourselves.
    let account = Arc::new(Account::new(config.workers));
    let log = config.access_log.as_ref();
    let log = log.map(|log| AccessLog::open(log, &account)).transpose()?;
    let log = log.map(Arc::new);
    let bootstrap = bootstrap(&config);
    let first = Plan::assemble(&Resources::default(), &bootstrap, &Plan::empty(), &account);
    let plan = Arc::new(ArcSwap::from_pointee(first));
    let workers = Workers::spawn(
        &drive(&config, identity.clone()),
        plan.clone(),
        account.clone(),
    )
    .map_err(ServeError::Workers)?;
    let (inbound, outbound) = (workers.addresses().inbound, workers.addresses().outbound);

    // What the control plane has for us, as soon as it can know who we are.
    let certificates = certificates
        .map(|certificates| certificates.spawn(planes.clone(), &config.control))
        .transpose()?;
    let instance = instance(&config, config.advertised(inbound).await?, admin);
    let node = match &config.gateway {
        None => discovery::node(&instance, outbound),
        Some(gateway) => discovery::edge_node(&instance, gateway.bind),
    };
    let shown = config.gateway.as_ref().map(|gateway| TlsDir::new(gateway.tls_dir.clone()));
    let edge = shown.as_ref().map(|shown| Edge::new(workers.sockets(), shown.clone()));
    let discovery = Discovery::spawn(
        control.clone(),
        node.clone(),
        bootstrap,
        plan.clone(),
        account.clone(),
        config.unused,
        edge,
    );

    let checks = HealthChecks::spawn(control.clone(), node, identity, discovery.complete());

    let mut tasks = JoinSet::new();
    if let Some(shown) = shown {
        tasks.spawn(watch(shown));
    }
    if let Some(certificates) = &certificates {
        tasks.spawn(joined(certificates.ready(), discovery.retry()));
    }
    let register = (!config.apps.is_empty()).then(|| {
        let registration = Registration::spawn(planes, instance.clone(), config.ttl);
        tasks.spawn(pass_on(registration.states(), discovery.retry()));
        let apps: Vec<SocketAddr> = config.apps.iter().map(|(_, app)| *app).collect();
        Register::spawn(
            registration,
            &apps,
            config.ready.clone(),
            discovery.complete(),
            CONFIGURATION_WAIT,
            discovery.connected(),
        )
    });

    // What was seen.
    let reports = Arc::new(Reports::default());
    let source = Source {
        node: instance.id.to_string(),
        namespace: instance.id.service.namespace.clone(),
        service: instance.id.service.name.clone(),
        version: instance.version().to_owned(),
    };
    let reporting = Reporting::spawn(
        Reporter::new(control, source),
        account.clone(),
        discovery.known().clone(),
        reports.clone(),
    );
    let view = Arc::new(View {
        instance,
        control: config.control,
        inbound,
        outbound,
        account,
        plan,
        known: discovery.known().clone(),
        registration: register
            .as_ref()
            .map(|register| register.registration().clone()),
        reports,
        checks: checks.checks().clone(),
        certificates: certificates.as_ref().map(identity::Running::shown),
        draining: AtomicBool::new(false),
    });
    if let Some(log) = &log {
        tasks.spawn(reopen(log.clone()));
    }
    tasks.spawn(admin::serve(listener, view.clone()));
    info!(node = %view.instance.id, %inbound, %outbound, %admin, control = view.control, "sidecar started");
    Ok(Running {
        admin,
        drain: config.drain,
        view,
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

/// Files are looked at where nobody waits.
async fn watch(shown: Arc<TlsDir>) {
    loop {
        sleep(tls_dir::LOOK).await;
        let shown = shown.clone();
        if tokio::task::spawn_blocking(move || shown.look()).await.is_err() {
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
    admin: SocketAddr,
    drain: Duration,
    view: Arc<View>,
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

    /// Leaves the mesh without losing a request: says that it drains, while what is in flight and sessions that stay go on
    /// for at most half of the time; then deregisters, lets peers hear of it, ends the rest, tells the last counts.
    pub async fn shutdown(self) {
        let Self {
            drain,
            view,
            workers,
            discovery,
            checks,
            register,
            reporting,
            certificates,
    let lessee = Lessee::new(control.clone(), instance.id.to_string());
            log,
            mut tasks,
            ..
        } = self;
        view.draining.store(true, Ordering::Relaxed);
        info!("draining");
    let leasing = Arc::<lease::Counts>::default();
    tasks.spawn(lease::run(lessee, plan.clone(), leasing.clone()));
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
        reporting.finish().await;
        drop((discovery, checks, certificates));
        tasks.shutdown().await;
        drop(log);
        info!("drained");
    }
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
fn probe(config: &Config) -> Result<(), ServeError> {
    let tcp = config
        .tcp
        .iter()
        .map(|(listen, ..)| ("raw TCP", "--tcp", *listen));
    let listeners = [
        ("inbound traffic", "--inbound", config.inbound),
        ("the application's calls", "--outbound", config.outbound),
    ];
    let listeners = listeners.into_iter().filter(|_| config.gateway.is_none());
    let mut open = Vec::new();
    for (what, flag, address) in listeners
        .chain(tcp)
        .filter(|(.., address)| address.port() != 0)
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
        ports: config.apps.iter().map(port).collect(),
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
    #[error("cannot start the workers")]
    Workers(#[source] io::Error),
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
