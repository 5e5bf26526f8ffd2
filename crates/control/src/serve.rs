//! Composition root: store, world, registry, discovery and API, in the order in which they depend on each other.
//!
//! Sockets are bound first, so that a taken port is said before anything is touched; nothing is answered on them until the
//! world has been loaded and compiled.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use phalanx_model::name::{NameError, check_label};
use phalanx_proto::phalanx::observe::v1::observe_server::ObserveServer;
use phalanx_proto::phalanx::registry::v1::registry_server::RegistryServer;
use phalanx_store::{EtcdConfig, Store};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::admit::Admission;
use crate::api::{self, Api};
use crate::discovery::{Canaries, Discovery, Fleet, Hds, LOAD_INTERVAL, Loads, Publisher};
use crate::dns::{Dns, Sockets};
use crate::health::Health;
use crate::import::Import;
use crate::listen::{ADMIN_MAX, Connections, XDS_MAX, within_descriptors};
use crate::observe::Observe;
use crate::planes::{self, Identity};
use crate::registry::Registry;
use crate::registry::leases::TtlBounds;
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
    /// Take plain-text clients that do not prove who they are. The only ones there are yet, so it has to be said.
    pub open: bool,
    pub ttl: TtlBounds,
    /// An etcd in which services register by themselves, with the prefix of their keys.
    pub services: Option<EtcdConfig>,
    /// Its name among the control planes over one store; none: made of the host's name and the port, or the same for ever
    /// over a store of its own.
    pub plane: Option<String>,
    /// How often stock data planes are asked to report their load.
    pub load_interval: Duration,
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
            open: false,
            ttl: TtlBounds::default(),
            services: None,
            plane: None,
            load_interval: LOAD_INTERVAL,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "without `--open` nobody could connect: this version has no identities yet, so clients come in plain text and unproven (start with --open to take them, on loopback only)"
    )]
    NotOpen,
    #[error("{flag} {address} is no loopback address: without identities, whoever reaches it would control the mesh (use 127.0.0.1:{})", address.port())]
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
    #[error("a task of the control plane ended by itself: {task}")]
    TaskEnded { task: &'static str },
}

/// A control plane that serves. Dropping it stops it, less gently than [`Running::shutdown`].
pub struct Running {
    xds: SocketAddr,
    admin: SocketAddr,
    dns: Option<SocketAddr>,
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
    if !config.open {
        return Err(ServeError::NotOpen);
    }
    if let Some(name) = &config.plane {
        check_label(name).map_err(ServeError::Plane)?;
    }
    let xds = bind("--xds", config.xds).await?;
    let admin = bind("--admin", config.admin).await?;
    let (xds_address, admin_address) = (local("--xds", &xds)?, local("--admin", &admin)?);
    let dns = match config.dns {
        Some(address) => Some(bind_dns(address).await?),
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
    let publisher = Publisher::new(worlds.clone(), fleet.clone());
    let published = publisher.published();
    let plane = identity.name.clone();
    let (registry, writes) = Registry::among(
        store.clone(),
        worlds.clone(),
        config.ttl,
        identity,
        stop.clone(),
    );
    let loads = Loads::new(config.load_interval, published.clone());
    let discovery = Discovery::new(
        published.clone(),
        fleet.clone(),
        loads.clone(),
        stop.clone(),
    );
    let dns = dns.map(|sockets| Dns::new(sockets, published.clone(), stop.clone()));
    let dns_address = dns.as_ref().map(Dns::address);
    let health = Health::default();
    let hds = Hds::new(health.clone(), stop.clone());
    let checks = health.clone().run(
        store.clone(),
        plane.clone(),
        published.clone(),
        stop.clone(),
    );
    let observe = Observe::telling(registry.clone());
    loads.tell(observe.clone());
    let admission = Admission::new(store.clone(), worlds.clone());
    let admission = Arc::new(admission.compiling_from(published.clone()));
    let canaries = Canaries::new(
        worlds.clone(),
        admission.clone(),
        fleet.clone(),
        observe.clone(),
        (registry.planes().name().to_owned(), admin_address),
    );
    let api = Api::new(
        admission,
        canaries.clone(),
        store.clone(),
        worlds,
        published,
        registry.clone(),
        observe.clone(),
        fleet,
        loads,
        health,
        dns.as_ref().map(Dns::counts),
        admin_address,
        stop.clone(),
    );

    let grpc = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_routes(discovery.services())
        .add_service(hds.into_service())
        .add_service(RegistryServer::new(registry.clone()))
        .add_service(ObserveServer::new(observe))
        .serve_with_incoming_shutdown(
            Connections::new(xds, within_descriptors(XDS_MAX), stop.clone()).greeted(),
            stop.clone().cancelled_owned(),
        );
    let http =
        Connections::new(admin, ADMIN_MAX, stop.clone()).serve_http(api::router(api.clone()));

    let import = config.services.map(|etcd| {
        let (import, imports) = Import::new(etcd, store.clone(), follower.worlds(), stop.clone());
        api.tell_imports(imports);
        import
    });

    let mut tasks = Tasks(Vec::new());
    tasks.spawn("world", follower.run(stop.clone()));
    tasks.spawn("canary", canaries.run(stop.clone()));
    tasks.spawn("publisher", publisher.run(stop.clone()));
    if let Some(import) = import {
        tasks.spawn("import", import.run());
    }
    tasks.spawn("registry", registry.run(writes));
    tasks.spawn("health", checks);
    tasks.spawn("xds", async move {
        if let Err(error) = grpc.await {
            tracing::error!(%error, "the gRPC server failed");
        }
        discovery.closed().await;
    });
    tasks.spawn("admin", http);
    if let Some(dns) = dns {
        tasks.spawn("dns", dns.run());
    }
    tracing::warn!("open: plain-text clients are taken without proof of who they are");
    tracing::info!(plane, xds = %xds_address, admin = %admin_address, dns = dns_address.map(tracing::field::display), "control plane serves");
    Ok(Running {
        xds: xds_address,
        admin: admin_address,
        dns: dns_address,
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
            admin: admin.to_string(),
            xds: xds.to_string(),
        }
    }
}

/// What a name can have of it.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
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

async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    check_loopback(flag, address)?;
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

async fn bind_dns(address: SocketAddr) -> Result<Sockets, ServeError> {
    check_loopback("--dns", address)?;
    Sockets::bind(address)
        .await
        .map_err(|source| not_bound("--dns", address, source))
}

fn check_loopback(flag: &'static str, address: SocketAddr) -> Result<(), ServeError> {
    if address.ip().is_loopback() {
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

/// Characters of a host's name in that of a control plane.
const HOST_MAX: usize = 48;
/// A peer that vanished without a word is found out within both.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// One proxy needs a handful; a registry client that shares its connection some more.
const STREAMS_PER_CONNECTION: u32 = 256;
/// Connections that wait to be taken: a whole fleet comes back at once. The kernel has a bound of its own (somaxconn).
const BACKLOG: u32 = 16_384;
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);
const CHECK: Duration = Duration::from_millis(500);
