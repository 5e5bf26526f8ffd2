//! A sidecar's start, in the order things happen: who we are, traffic by what we know of ourselves, what the control plane has
//! for us, what was seen. Behind the back of a process that serves, if there is one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use phalanx_client::channel::Control;
use phalanx_client::limits::Lessee;
use phalanx_client::observe::{Reporter, Source};
use phalanx_client::registry::{Registration, State};
use phalanx_model::instance::Protocol;
use phalanx_model::{ClusterName, Instance, InstanceId, InstancePort};
use phalanx_pki::clock::SystemClock;
use phalanx_pki::identity::Identity;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{Running, ServeError, hint, upgrade};
use crate::accesslog::AccessLog;
use crate::account::Account;
use crate::admin::{self, View};
use crate::config::{Config, takes_family};
use crate::discovery::{self, Discovery};
use crate::drive::{DriveConfig, Workers};
use crate::edge::{Edge, TlsDir, tls_dir};
use crate::health::HealthChecks;
use crate::identity::{self, Certificates, IdentityError};
use crate::intercept::{self, Interception, Redirected};
use crate::lasting::Lasting;
use crate::lease;
use crate::plan::{AppPort, Bootstrap, Plan, Resources};
use crate::register::Register;
use crate::report::{Reporting, Reports};
use crate::takeover::{Estate, Inherited, OfHolder, TakeoverError};

/// Starts a sidecar; when this returns, its listeners are open. The control plane need not be there, unless a process that
/// serves is to be replaced: that goes on until this one is ready.
///
/// # Errors
/// [`ServeError`]; nothing is left running then.
pub async fn start(config: Config) -> Result<Running, ServeError> {
    begin(config, &AtomicBool::new(false)).await
}

/// `is_decided` once a process that serves may leave it all to us.
pub(super) async fn begin(config: Config, is_decided: &AtomicBool) -> Result<Running, ServeError> {
    config.check()?;
    if config.intercept.is_some() {
        phalanx_client::mark::set(intercept::MARK); // before anything of ours connects
    }
    let lasting = Lasting::default();
    let (mut heir, mut inherited) = upgrade::ask(&config).await?.unzip();
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
    let (listener, admin) = listen_admin(&config, &mut inherited)
        .await
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
    let advertised = config.advertised(inbound).await?;
    if config.gateway.is_none() && !takes_family(inbound, advertised) {
        warn!(%advertised, %inbound, "nobody reaches this sidecar: it advertises an address of the other family than it listens on (--inbound [::]:15006 takes both)");
    }
    let instance = instance(&config, advertised, admin);
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
    if heir.is_some() {
        workers.datagrams().defer(); // which it has, it tells with its last word
    }
    let discovery = Discovery::spawn(
        control.clone(),
        node.clone(),
        bootstrap,
        plan.clone(),
        account.clone(),
        config.unused,
        edge,
        workers.datagrams().clone(),
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
        match upgrade::succeed(one, complete, certificate, discovery.known(), upgrade).await? {
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
        let datagrams = workers.datagrams().clone();
        if let Some(legacy) = legacy {
            datagrams.wait();
            let inheriting = upgrade::inherit(legacy, datagrams);
            tasks.spawn(lasting.guard("sessions of the one before", inheriting));
        } else {
            datagrams.settle();
        }
        interception =
            upgrade::succeed_rules(&config, &own_ports, was_redirected, lock, &mut tasks);
    }
    workers.open();
    let bundles = workers.bundles();
    let registration = register
        .as_ref()
        .map(|register| register.registration().clone());
    let hold = |upgrade| {
        let pages = upgrade::admin_bundle(&listener, admin)?;
        let lock = interception.as_ref().and_then(upgrade::lock_bundle);
        let bundles = bundles.into_iter().chain([pages]).chain(lock);
        let estate = Estate {
            release: upgrade::RELEASE,
            service: upgrade::called(&config),
            instance: instance.id.to_string(),
            lender: config.gateway.as_ref().map(|_| workers.lender()),
            bundles: bundles.collect(),
            registration: registration.clone(),
            testator: Some(workers.datagrams().clone()),
        };
        upgrade::hold(upgrade, upgrades, estate, &lasting)
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
    let node = &view.instance.id;
    match config.gateway.is_some() {
        true => info!(%node, %admin, control = view.control, "edge started"),
        false => {
            info!(%node, %inbound, %outbound, %admin, control = view.control, "sidecar started");
        }
    }
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

/// The pages' listener, and where it is.
async fn listen_admin(
    config: &Config,
    inherited: &mut Inherited,
) -> io::Result<(TcpListener, SocketAddr)> {
    let sockets = inherited.take("admin", config.admin);
    let listener = match sockets.and_then(|(_, sockets)| sockets.into_iter().next()) {
        Some(listener) => TcpListener::from_std(listener),
        None => TcpListener::bind(config.admin).await,
    }?;
    let address = listener.local_addr()?;
    Ok((listener, address))
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
        let refused = |source| refused(what, flag, address, source);
        open.push(socket.map_err(refused)?);
    }
    // Which of them a process before has is known when it leaves them.
    let udp = config.udp.iter().filter(|_| inherited.is_none());
    for (address, ..) in udp {
        let socket = std::net::UdpSocket::bind(address);
        drop(socket.map_err(|source| refused("datagrams", "--udp", *address, source))?);
    }
    Ok(())
}

fn refused(
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
    source: io::Error,
) -> ServeError {
    ServeError::Listen {
        what,
        flag,
        address,
        hint: hint(&source),
        source,
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

/// How long the control plane may take to acknowledge that the instance is ours.
const REGISTER_MAX: Duration = Duration::from_secs(10);
