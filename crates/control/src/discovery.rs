//! Discovery over gRPC, aggregated and of single kinds: one task per stream carries bytes between a peer and its
//! [`Session`]. Beside it what data planes report ([`Loads`]) and what others may ask about them (client status).
//!
//! What is sent when is decided in `xds::server`; what a node receives in [`crate::snapshot`]. Here live sockets, the clock,
//! and [`Fleet`], the truth about who has what. A slow peer holds one response and one snapshot, never a queue.

mod canary;
mod clients;
mod fleet;
mod frames;
mod handoff;
mod hds;
mod isolate;
mod loads;
mod lost;
mod memory;
mod message;
mod secrets;
mod separate;
mod stream;
#[cfg(test)]
mod tests;
mod wishes;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use phalanx_model::identity::TrustDomain;
use phalanx_proto::envoy::service::cluster::v3::cluster_discovery_service_server::ClusterDiscoveryServiceServer;
use phalanx_proto::envoy::service::discovery::v3 as wire;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use phalanx_proto::envoy::service::endpoint::v3::endpoint_discovery_service_server::EndpointDiscoveryServiceServer;
use phalanx_proto::envoy::service::listener::v3::listener_discovery_service_server::ListenerDiscoveryServiceServer;
use phalanx_proto::envoy::service::load_stats::v3::load_reporting_service_server::LoadReportingServiceServer;
use phalanx_proto::envoy::service::route::v3::route_discovery_service_server::RouteDiscoveryServiceServer;
use phalanx_proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use phalanx_proto::envoy::service::status::v3::client_status_discovery_service_server::ClientStatusDiscoveryServiceServer;
use phalanx_xds::server::Session;
use tokio::sync::mpsc;
use tokio::sync::watch::{self, Receiver};
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

pub use canary::{AUTHOR, Canaries, others};
pub use fleet::{Counts, Fleet, PUSH_BOUNDS_MS, ProxyState, Refused};
pub use hds::Hds;
pub use loads::{INTERVAL as LOAD_INTERVAL, Load, Loads, Place, Summary};

use crate::access::Who;
use crate::ca::Ca;
use crate::sessions::Sessions;
use crate::snapshot::{Compiler, Published};
use crate::world::World;

use self::handoff::handoff;
use self::stream::{Driver, Rooms};

/// All discovery services; cheap to clone.
#[derive(Clone)]
pub struct Discovery {
    rooms: Rooms,
    loads: Loads,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Discovery {
    pub fn new(
        published: Receiver<Arc<Published>>,
        fleet: Fleet,
        loads: Loads,
        stop: CancellationToken,
    ) -> Self {
        let rooms = Rooms {
            published,
            fleet,
            memory: memory::Memory::default(),
            clients: clients::Clients::default(),
            rewrites: separate::Rewrites::default(),
            ca: None,
            sessions: None,
        };
        Self {
            rooms,
            loads,
            stop,
            tasks: TaskTracker::new(),
        }
    }

    /// Stock proxies that prove who they are get certificates from here, over secret discovery.
    #[must_use]
    pub fn issuing(mut self, ca: Ca) -> Self {
        self.rooms.ca = Some(ca);
        self
    }

    /// Sidecars may follow the session directory, beside their configuration.
    #[must_use]
    pub fn telling(mut self, sessions: Sessions) -> Self {
        self.rooms.sessions = Some(sessions);
        self
    }

    /// For a gRPC server. Messages are bounded by tonic's 4 MiB.
    pub fn services(&self) -> Routes {
        let clients = self.rooms.clients.clone();
        Routes::new(frames::Aggregated(self.clone()))
            .add_service(ClusterDiscoveryServiceServer::new(self.clone()))
            .add_service(EndpointDiscoveryServiceServer::new(self.clone()))
            .add_service(ListenerDiscoveryServiceServer::new(self.clone()))
            .add_service(RouteDiscoveryServiceServer::new(self.clone()))
            .add_service(SecretDiscoveryServiceServer::new(self.clone()))
            .add_service(LoadReportingServiceServer::new(self.loads.clone()))
            .add_service(ClientStatusDiscoveryServiceServer::new(clients))
    }

    /// Ends when every stream has ended, after `stop`.
    pub async fn closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn serve<M: message::Message>(
        &self,
        request: Request<Streaming<M>>,
        session: Session,
    ) -> Result<Answers<M::Response>, Status> {
        if self.rooms.fleet.len() >= STREAMS_MAX {
            return Err(Status::resource_exhausted(format!(
                "{STREAMS_MAX} streams are open, no more are taken"
            )));
        }
        let who = Who::of(request.extensions());
        let peer = request
            .remote_addr()
            .map(|a| a.to_string())
            .unwrap_or_default();
        let (answers, stream) = handoff();
        // Boxed, for a task keeps a place of its own for each time that something is handed on.
        let driver = Box::new(Driver::new(session, self.rooms.clone(), peer, who));
        let (inbound, stop) = (Box::new(request.into_inner()), self.stop.clone());
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                () = stop.cancelled() => Err(Status::unavailable("the control plane is stopping")),
                ended = driver.run(inbound, &answers) => ended,
            };
            // As in a farewell.
            if let Err(status) = ended
                && let Ok(Ok(())) = timeout(FAREWELL_MAX, answers.free()).await
            {
                answers.give(Err(status));
            }
        });
        Ok(Box::pin(stream.map(|answer| answer.map(|answer| *answer))))
    }
}

/// Tells a peer why its stream ends. A response may still wait for the socket, and the peer may be gone, or not reading.
async fn farewell<T>(answers: &mpsc::Sender<Result<T, Status>>, status: Status) {
    let _ = timeout(FAREWELL_MAX, answers.send(Err(status))).await;
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = Answers<wire::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<wire::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<wire::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.serve(request, Session::sotw()).map(Response::new)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<wire::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.serve(request, Session::delta()).map(Response::new)
    }
}

/// Compiles each world that comes; worlds that come while one is compiled are skipped, but the newest.
pub struct Publisher {
    worlds: Receiver<Arc<World>>,
    compiler: Compiler,
    published: watch::Sender<Arc<Published>>,
    fleet: Fleet,
}

impl Publisher {
    /// Compiles the present world before it returns, so that no stream is ever answered from nothing.
    pub fn new(worlds: Receiver<Arc<World>>, fleet: Fleet) -> Self {
        Self::in_domain(worlds, fleet, TrustDomain::default())
    }

    /// The same in a mesh whose identities are of this trust domain.
    pub fn in_domain(
        mut worlds: Receiver<Arc<World>>,
        fleet: Fleet,
        trust_domain: TrustDomain,
    ) -> Self {
        let mut compiler = Compiler::new(trust_domain);
        let world = worlds.borrow_and_update().clone();
        let (published, _) = watch::channel(Arc::new(compiler.compile(world)));
        Self {
            worlds,
            compiler,
            published,
            fleet,
        }
    }

    pub fn published(&self) -> Receiver<Arc<Published>> {
        self.published.subscribe()
    }

    /// Runs until `stop` or until nobody makes worlds any more.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.worlds.changed() => if changed.is_err() { return },
            }
            let world = self.worlds.borrow_and_update().clone();
            self.fleet.stored(&world.recent);
            let mut compiler = std::mem::take(&mut self.compiler);
            // Off the runtime: a large world must not keep streams waiting.
            let compiled =
                tokio::task::spawn_blocking(move || (compiler.compile(world), compiler)).await;
            match compiled {
                Ok((published, compiler)) => {
                    self.compiler = compiler;
                    self.published.send_replace(Arc::new(published));
                    self.fleet.touch();
                }
                Err(error) => {
                    tracing::error!(%error, "a world could not be compiled, the last one stays")
                }
            }
        }
    }
}

/// Streams at once.
pub const STREAMS_MAX: usize = 20_000;
/// How long the word that a stream ends may wait for its socket.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
