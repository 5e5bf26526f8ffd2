//! Composition root: store, world, registry, discovery and API, in the order in which they depend on each other.
//!
//! Sockets are bound first, so that a taken port is said before anything is touched; nothing is answered on them until the
//! world has been loaded and compiled.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use phalanx_client::secure::{Protocol, Secure};
use phalanx_model::identity::{SpiffeId, TrustDomain};
use phalanx_model::name::{NameError, check_label};
use phalanx_pki::issuer::ISSUER;
use phalanx_proto::envoy::service::ratelimit::v3::rate_limit_service_server::RateLimitServiceServer;
use phalanx_proto::phalanx::limits::v1::limits_server::LimitsServer;
use phalanx_proto::phalanx::observe::v1::observe_server::ObserveServer;
use phalanx_proto::phalanx::registry::v1::registry_server::RegistryServer;
use phalanx_proto::phalanx::sessions::v1::sessions_server::SessionsServer;
use phalanx_store::{EtcdConfig, Store};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Local, LocalError, Refusals, Role, Users, gated};
use crate::admit::Admission;
use crate::api::{self, Api};
use crate::ca::{Ca, CaConfig, CaError, JwksConfig};
use crate::discovery::{Canaries, Discovery, Fleet, Hds, LOAD_INTERVAL, Loads, Publisher};
use crate::dns::{Dns, Sockets};
use crate::grpc;
use crate::health::Health;
use crate::import::Import;
use crate::limits::{Limits, RedisAddress};
use crate::listen::{ADMIN, ADMIN_MAX, Connections, Door, OCSP, XDS, XDS_MAX, within_descriptors};
use crate::observe::Observe;
use crate::ocsp;
use crate::planes::{self, Identity};
use crate::registry::Registry;
use crate::registry::leases::TtlBounds;
use crate::rollout::Rollouts;
use crate::sessions::Sessions;
use crate::world::follow::Follower;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub store: Place,
    /// Of the embedded store; made when it isn't there.
    pub data: PathBuf,
    /// xDS, registry and reports, over gRPC.
    pub xds: SocketAddr,
    /// Admin API and status page.
    pub admin: SocketAddr,
    /// The mesh's names, over UDP and TCP.
    pub dns: Option<SocketAddr>,
    /// OCSP and revocation lists, over plain HTTP.
    pub ocsp: Option<SocketAddr>,
    /// Under which base address others find those, written into each certificate; none: `http://` and the address of `ocsp`,
    /// unless that is every address of the machine.
    pub ocsp_url: Option<String>,
    /// Take plain-text clients that do not prove who they are beside those that do, on loopback only.
    pub open: bool,
    pub trust: Trust,
    pub ttl: TtlBounds,
    /// An etcd in which services register by themselves, with the prefix of their keys.
    pub services: Option<EtcdConfig>,
    /// Its name among the control planes over one store; none: made of the host's name and the port, or the same for ever
    /// over a store of its own.
    pub plane: Option<String>,
    /// How often stock data planes are asked to report their load.
    pub load_interval: Duration,
    /// Where the buckets of global rate limits are; none: in this process.
    pub limits: Option<RedisAddress>,
}

/// Who is trusted, and by what certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pub domain: TrustDomain,
    /// An intermediate from outside; none: a root of its own, kept with the data.
    pub outside: Option<PathBuf>,
    /// How long a workload's certificate lives.
    pub leaf_ttl: Duration,
    /// Host names and addresses by which people's tools call this control plane, beside those that it finds out.
    pub names: Vec<String>,
    /// Users by their certificates.
    pub admins: BTreeMap<SpiffeId, Role>,
    /// Whose service-account tokens are taken for a proof.
    pub jwks: Option<JwksConfig>,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            domain: TrustDomain::default(),
            outside: None,
            leaf_ttl: LEAF_TTL,
            names: Vec::new(),
            admins: BTreeMap::new(),
            jwks: None,
        }
    }
}

/// Where documents and instances are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    #[default]
    Embedded,
    Etcd(Box<EtcdConfig>),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store: Place::default(),
            data: PathBuf::from("phalanx-data"),
            xds: SocketAddr::from(([127, 0, 0, 1], 15010)),
            admin: SocketAddr::from(([127, 0, 0, 1], 15080)),
            dns: Some(SocketAddr::from(([127, 0, 0, 1], 15053))),
            ocsp: None,
            ocsp_url: None,
            open: false,
            trust: Trust::default(),
            ttl: TtlBounds::default(),
            services: None,
            plane: None,
            load_interval: LOAD_INTERVAL,
            limits: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{flag} {address} is no loopback address: with --open, whoever reaches it would control the mesh (use 127.0.0.1:{}, or leave --open away)", address.port())]
    NotLoopback {
        flag: &'static str,
        address: SocketAddr,
    },
    #[error(
        "{flag} {address} is taken: another program listens there (is a control plane running already? else choose another port with {flag})"
    )]
    Taken {
        flag: &'static str,
        address: SocketAddr,
    },
    #[error("--plane takes a name")]
    Plane(#[source] NameError),
    #[error("two control planes can't have one name")]
    Claimed(#[source] planes::Claimed),
    #[error("cannot listen on {flag} {address}")]
    Bind {
        flag: &'static str,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the store in {} cannot be used", path.display())]
    Store {
        path: PathBuf,
        source: phalanx_store::Error,
    },
    #[error("the store at {url} cannot be used")]
    Etcd {
        url: String,
        source: phalanx_store::Error,
    },
    #[error("the store takes no writes any more: {reason}")]
    StoreFailed { reason: String },
    #[error("the control plane has no identity")]
    Ca(#[source] CaError),
    #[error("TLS can't be set up")]
    Tls(#[source] rustls::Error),
    #[error("what the operator of this machine needs can't be written")]
    Local(#[source] LocalError),
    #[error("a task of the control plane ended by itself: {task}")]
    TaskEnded { task: &'static str },
}

/// A control plane that serves. Dropping it stops it, less gently than [`Running::shutdown`].
pub struct Running {
    xds: SocketAddr,
    admin: SocketAddr,
    dns: Option<SocketAddr>,
    ocsp: Option<SocketAddr>,
    stop: CancellationToken,
    store: Store,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
}

/// Serves until `shutdown` resolves.
///
/// # Errors
/// [`ServeError`] when it can't start, or can't go on.
pub async fn run(config: Config, shutdown: impl Future) -> Result<(), ServeError> {
    let mut running = start(config).await?;
    let ended = tokio::select! {
        _ = shutdown => Ok(()),
        failure = running.failed() => Err(failure),
    };
    running.shutdown().await;
    ended
}

/// Starts; every address answers when this returns.
///
/// # Errors
/// [`ServeError`]
pub async fn start(config: Config) -> Result<Running, ServeError> {
    if let Some(name) = &config.plane {
        check_label(name).map_err(ServeError::Plane)?;
    }
    let xds = bind("--xds", config.xds, config.open).await?;
    let admin = bind("--admin", config.admin, config.open).await?;
    let (xds_address, admin_address) = (local("--xds", &xds)?, local("--admin", &admin)?);
    let dns = match config.dns {
        Some(address) => Some(bind_dns(address, config.open).await?),
        None => None,
    };
    let store_failed = |source| match &config.store {
        Place::Embedded => ServeError::Store {
            path: config.data.clone(),
            source,
        },
        Place::Etcd(etcd) => ServeError::Etcd {
            url: etcd.url(),
            source,
        },
    };
    let store = match &config.store {
        Place::Embedded => Store::embedded(phalanx_store::Config::at(&config.data)).await,
        Place::Etcd(etcd) => Store::etcd((**etcd).clone()).await,
    };
    let store = store.map_err(store_failed)?;
    let identity = config.identity(xds_address, admin_address);
    // An embedded store is nobody else's.
    if matches!(config.store, Place::Etcd(_)) {
        let claimed = planes::unclaimed(&store, &identity).await;
        claimed
            .map_err(store_failed)?
            .map_err(ServeError::Claimed)?;
    }
    let ocsp = match config.ocsp {
        // What is said there is signed, and nothing can be changed: it may face anybody.
        Some(address) => Some(bind("--ocsp", address, false).await?),
        None => None,
    };
    let ocsp_address = ocsp
        .as_ref()
        .map(|ocsp| local("--ocsp", ocsp))
        .transpose()?;
    let ca = config.authority(&store, &identity, ocsp_address).await?;
    let users = Users::load(store.clone()).await.map_err(store_failed)?;
    let refusals = Refusals::default();
    let access = Access::new(
        config.open,
        config.trust.admins.clone(),
        users.clone(),
        refusals.clone(),
    );
    let local = match &ca {
        Some(ca) => Some(config.local(ca, &users, &identity).await?),
        None => None,
    };
    let door = |port| {
        let own = ca.as_ref().map(|ca| (ca.own(), ca.trust_domain().clone()));
        Door::try_new(port, own, config.open, refusals.clone()).map_err(ServeError::Tls)
    };
    let (xds_door, admin_door) = (door(XDS)?, door(ADMIN)?);
    let follower = Follower::load(store.clone()).await.map_err(store_failed)?;
    let worlds = follower.worlds();
    tracing::info!(
        revision = worlds.borrow().revision,
        documents = worlds.borrow().documents.len(),
        instances = worlds.borrow().instances.len(),
        "world loaded"
    );

    let stop = CancellationToken::new();
    let fleet = Fleet::default();
    let trust_domain = ca.as_ref().map(|ca| ca.trust_domain().clone());
    let trust_domain = trust_domain.unwrap_or_default();
    let publisher = Publisher::in_domain(worlds.clone(), fleet.clone(), trust_domain);
    let published = publisher.published();
    let plane = identity.name.clone();
    let (registry, writes) = Registry::among(
        store.clone(),
        worlds.clone(),
        config.ttl,
        identity,
        stop.clone(),
    );
    if let Some(ca) = ca.as_ref().filter(|_| !config.open) {
        let secure = Secure::try_new(ca.own(), Protocol::Http1).map_err(ServeError::Tls)?;
        registry.planes().prove(secure);
    }
    if let Some(ca) = &ca {
        registry.heed(ca);
    }
    let sessions = Sessions::load(store.clone(), worlds.clone(), &plane, stop.clone());
    let (sessions, sessions_work) = sessions.await.map_err(store_failed)?;
    let loads = Loads::new(config.load_interval, published.clone());
    let discovery = Discovery::new(
        published.clone(),
        fleet.clone(),
        loads.clone(),
        stop.clone(),
    );
    let discovery = discovery.telling(sessions.clone());
    let discovery = match &ca {
        Some(ca) => discovery.issuing(ca.clone()),
        None => discovery,
    };
    let dns = dns.map(|sockets| Dns::new(sockets, published.clone(), stop.clone()));
    let dns_address = dns.as_ref().map(Dns::address);
    let health = Health::default();
    let hds = Hds::new(health.clone(), stop.clone());
    let checks = health.clone().run(
        store.clone(),
        plane.clone(),
        ca.as_ref().map(Ca::own),
        published.clone(),
        stop.clone(),
    );
    let observe = Observe::telling(registry.clone());
    loads.tell(observe.clone());
    let limits = Limits::new(worlds.clone(), config.limits.clone());
    let admission = Admission::new(store.clone(), worlds.clone());
    let admission = Arc::new(admission.compiling_from(published.clone()));
    let canaries = Canaries::new(
        worlds.clone(),
        admission.clone(),
        fleet.clone(),
        observe.clone(),
        registry.planes().clone(),
    );
    let rollouts = Rollouts::new(
        store.clone(),
        worlds.clone(),
        published.clone(),
        fleet.clone(),
        observe.clone(),
        registry.planes().clone(),
    );
    let api = Api::new(
        access.clone(),
        ca.clone(),
        admission,
        canaries.clone(),
        rollouts.clone(),
        store.clone(),
        worlds,
        published,
        registry.clone(),
        observe.clone(),
        fleet,
        loads,
        health,
        limits.clone(),
        sessions.clone(),
        dns.as_ref().map(Dns::counts),
        admin_address,
        stop.clone(),
    );

    let mut services = discovery
        .services()
        .add_service(hds.into_service())
        .add_service(RegistryServer::new(registry.clone()))
        .add_service(ObserveServer::new(observe))
        .add_service(LimitsServer::new(limits.clone()))
        .add_service(SessionsServer::new(sessions.clone()))
        .add_service(RateLimitServiceServer::new(limits));
    if let Some(ca) = &ca {
        services = services.add_service(ca.service());
    }
    let connections = Connections::new(xds, within_descriptors(XDS_MAX), xds_door, stop.clone());
    let services = gated(services, access);
    let grpc = grpc::serve(connections, services, refusals.clone(), stop.clone());
    let http = Connections::new(admin, ADMIN_MAX, admin_door, stop.clone())
        .serve_http(api::router(api.clone()));

    let import = config.services.map(|etcd| {
        let (import, imports) = Import::new(etcd, store.clone(), follower.worlds(), stop.clone());
        api.tell_imports(imports);
        import
    });

    let ocsp = match (&ca, ocsp) {
        (Some(ca), Some(listener)) => {
            let door =
                Door::try_new(OCSP, None, true, refusals.clone()).map_err(ServeError::Tls)?;
            let most = ocsp::CONNECTIONS_MAX;
            let connections = Connections::new(listener, most, door, stop.clone());
            Some(connections.serve_http(ocsp::router(ca.clone())))
        }
        _ => None,
    };

    let mut tasks = Tasks(Vec::new());
    tasks.spawn("users", users.run(stop.clone()));
    if let Some(ca) = ca.clone() {
        tasks.spawn("ca", ca.run(stop.clone()));
    }
    if let (Some(ca), Some(local)) = (ca, &local) {
        tasks.spawn("roots", follow_roots(ca, local.clone(), stop.clone()));
    }
    tasks.spawn("world", follower.run(stop.clone()));
    tasks.spawn("canary", canaries.run(stop.clone()));
    tasks.spawn("rollouts", rollouts.run(stop.clone()));
    tasks.spawn("publisher", publisher.run(stop.clone()));
    if let Some(import) = import {
        tasks.spawn("import", import.run());
    }
    tasks.spawn("registry", registry.run(writes));
    tasks.spawn("sessions", sessions.run(sessions_work));
    tasks.spawn("health", checks);
    tasks.spawn("xds", async move {
        grpc.await;
        discovery.closed().await;
    });
    tasks.spawn("admin", http);
    if let Some(dns) = dns {
        tasks.spawn("dns", dns.run());
    }
    if let Some(ocsp) = ocsp {
        tasks.spawn("ocsp", ocsp);
    }
    if config.open {
        tracing::warn!("open: plain-text clients are taken without proof of who they are");
    }
    if let Some(local) = &local {
        let (roots, token) = (local.roots(), local.token());
        tracing::info!(
            "to use it from this machine: export PHALANX_ROOTS={} PHALANX_TOKEN_FILE={}",
            roots.display(),
            token.display()
        );
        tracing::info!(
            "console: https://{admin_address}, with the token in {} at its log-in",
            token.display()
        );
    }
    tracing::info!(plane, xds = %xds_address, admin = %admin_address, dns = dns_address.map(tracing::field::display), ocsp = ocsp_address.map(tracing::field::display), "control plane serves");
    Ok(Running {
        xds: xds_address,
        admin: admin_address,
        dns: dns_address,
        ocsp: ocsp_address,
        stop,
        store,
        tasks: tasks.0,
    })
}

impl Config {
    /// Over an etcd, the host's name and the port for data planes: the same after a restart, another for every other.
    fn identity(&self, xds: SocketAddr, admin: SocketAddr) -> Identity {
        let named = || match self.store {
            Place::Embedded => Identity::alone().name,
            Place::Etcd(_) => format!("{}-{}", host(), xds.port()),
        };
        Identity {
            name: self.plane.clone().unwrap_or_else(named),
            admin: self.reachable(admin),
            xds: self.reachable(xds),
        }
    }

    /// Under what others find an address that was bound: every address of the machine is none that can be called.
    fn reachable(&self, bound: SocketAddr) -> String {
        if !bound.ip().is_unspecified() {
            return bound.to_string();
        }
        let name = self.trust.names.first().cloned();
        let name = name.unwrap_or_else(hostname);
        match name.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, bound.port()).to_string(),
            Err(_) => format!("{name}:{}", bound.port()),
        }
    }

    /// None: nobody can have an identity here, which only those put up with who are open anyway.
    async fn authority(
        &self,
        store: &Store,
        own: &Identity,
        ocsp: Option<SocketAddr>,
    ) -> Result<Option<Ca>, ServeError> {
        let here = ocsp.filter(|bound| !bound.ip().is_unspecified());
        let asked = self
            .ocsp_url
            .as_deref()
            .map(|url| url.trim_end_matches('/').to_owned());
        let ocsp_url = asked.or_else(|| here.map(|bound| format!("http://{bound}")));
        let crl_url = ocsp_url
            .as_ref()
            .map(|base| format!("{base}/crl/{ISSUER}.crl"));
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        let bound = [self.xds, self.admin].map(|bound| bound.ip());
        let bound = bound.iter().filter(|ip| !ip.is_unspecified());
        names.extend(bound.map(ToString::to_string));
        names.extend(Some(hostname()).filter(|name| is_host(name)));
        names.extend(self.trust.names.iter().cloned());
        names.sort_unstable();
        names.dedup();
        let config = CaConfig {
            dir: self.data.join("ca"),
            outside: self.trust.outside.clone(),
            trust_domain: self.trust.domain.clone(),
            leaf_ttl: self.trust.leaf_ttl,
            names,
            ocsp_url,
            crl_url,
            jwks: self.trust.jwks.clone(),
            plane: own.name.clone(),
        };
        match Ca::open(config, store.clone()).await {
            Ok(ca) => Ok(Some(ca)),
            Err(error) if self.open => {
                tracing::warn!(%error, "this control plane has no identity: no certificates, plain text only");
                Ok(None)
            }
            Err(error) => Err(ServeError::Ca(error)),
        }
    }

    async fn local(&self, ca: &Ca, users: &Users, own: &Identity) -> Result<Local, ServeError> {
        let install = async {
            let local = Local::at(self.data.join("admin"))?;
            local.write_roots(&ca.roots())?;
            let name: String = match self.store {
                Place::Embedded => "admin".to_owned(),
                Place::Etcd(_) => format!("admin-{}", own.name)
                    .chars()
                    .take(NAME_MAX)
                    .collect(),
            };
            local.install(users, name.trim_end_matches('-')).await?;
            Ok(local)
        };
        install.await.map_err(ServeError::Local)
    }
}

/// Keeps `roots.pem` as the mesh's roots are.
async fn follow_roots(ca: Ca, local: Local, stop: CancellationToken) {
    let mut changes = ca.changes();
    loop {
        if let Err(error) = local.write_roots(&ca.roots()) {
            tracing::warn!(%error, "the operator's roots can't be written");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return stop.cancelled().await },
        }
    }
}

/// Whether a name is fit for a certificate.
fn is_host(name: &str) -> bool {
    let plain = |label: &str| check_label(label).is_ok();
    name.split('.').all(plain)
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// What a name can have of it.
fn host() -> String {
    let name = hostname();
    let plain = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '-',
    };
    let name: String = name.trim().chars().take(HOST_MAX).map(plain).collect();
    match name.trim_matches('-') {
        "" => "host".to_owned(),
        name => name.to_owned(),
    }
}

impl Running {
    pub fn xds_address(&self) -> SocketAddr {
        self.xds
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    pub fn dns_address(&self) -> Option<SocketAddr> {
        self.dns
    }

    pub fn ocsp_address(&self) -> Option<SocketAddr> {
        self.ocsp
    }

    /// Waits until it can't go on, and says why. A store that failed is final: what it has acknowledged is safe, but
    /// nothing more can be.
    pub async fn failed(&mut self) -> ServeError {
        let store = self.store.clone();
        loop {
            tokio::select! {
                reason = store.fatal() => return ServeError::StoreFailed { reason },
                () = tokio::time::sleep(CHECK) => {
                    if let Some((task, _)) = self.tasks.iter().find(|(_, handle)| handle.is_finished()) {
                        return ServeError::TaskEnded { task };
                    }
                }
            }
        }
    }

    /// Ends streams and connections, writes what was accepted, closes the store.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let deadline = tokio::time::Instant::now() + SHUTDOWN_MAX;
        for (task, mut handle) in std::mem::take(&mut self.tasks) {
            if tokio::time::timeout_at(deadline, &mut handle)
                .await
                .is_err()
            {
                tracing::warn!(task, "did not end in time");
                handle.abort();
            }
        }
        self.store.close().await;
        tracing::info!("control plane stopped");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Tasks(Vec<(&'static str, JoinHandle<()>)>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push((name, tokio::spawn(task)));
    }
}

async fn bind(
    flag: &'static str,
    address: SocketAddr,
    open: bool,
) -> Result<TcpListener, ServeError> {
    check_loopback(flag, address, open)?;
    let listen = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| not_bound(flag, address, source))
}

async fn bind_dns(address: SocketAddr, open: bool) -> Result<Sockets, ServeError> {
    check_loopback("--dns", address, open)?;
    Sockets::bind(address)
        .await
        .map_err(|source| not_bound("--dns", address, source))
}

fn check_loopback(flag: &'static str, address: SocketAddr, open: bool) -> Result<(), ServeError> {
    if !open || address.ip().is_loopback() {
        Ok(())
    } else {
        Err(ServeError::NotLoopback { flag, address })
    }
}

fn not_bound(flag: &'static str, address: SocketAddr, source: io::Error) -> ServeError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::Taken { flag, address },
        _ => ServeError::Bind {
            flag,
            address,
            source,
        },
    }
}

fn local(flag: &'static str, listener: &TcpListener) -> Result<SocketAddr, ServeError> {
    listener.local_addr().map_err(|source| ServeError::Bind {
        flag,
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        source,
    })
}

pub const LEAF_TTL: Duration = Duration::from_secs(72 * 3600);
/// Of a user's name.
const NAME_MAX: usize = 63;
/// Characters of a host's name in that of a control plane.
const HOST_MAX: usize = 48;
/// Connections that wait to be taken: a whole fleet comes back at once. The kernel has a bound of its own (somaxconn).
const BACKLOG: u32 = 16_384;
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);
const CHECK: Duration = Duration::from_millis(500);
