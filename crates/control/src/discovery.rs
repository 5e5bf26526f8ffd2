//! Aggregated discovery over gRPC: one task per stream carries bytes between a peer and its [`Session`].
//!
//! What is sent when is decided in `xds::server`; what a node receives in [`crate::snapshot`]. Here live sockets, the clock,
//! and [`Fleet`], the truth about who has what. A slow peer holds one response and one snapshot, never a queue.

mod fleet;
mod isolate;
mod stream;

use std::pin::Pin;
use std::sync::Arc;

use phalanx_proto::envoy::service::discovery::v3 as wire;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use phalanx_xds::server::Session;
use tokio::sync::mpsc;
use tokio::sync::watch::{self, Receiver};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

pub use fleet::{Counts, Fleet, PUSH_BOUNDS_MS, ProxyState, Refused};

use crate::snapshot::{Compiler, Published};
use crate::world::World;

/// The ADS service; cheap to clone.
#[derive(Clone)]
pub struct Discovery {
    published: Receiver<Arc<Published>>,
    fleet: Fleet,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Discovery {
    pub fn new(published: Receiver<Arc<Published>>, fleet: Fleet, stop: CancellationToken) -> Self {
        Self {
            published,
            fleet,
            stop,
            tasks: TaskTracker::new(),
        }
    }

    /// Ends when every stream has ended, after `stop`.
    pub async fn closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn serve<M: stream::Message>(
        &self,
        request: Request<Streaming<M>>,
        session: Session,
    ) -> Result<Answers<M::Response>, Status> {
        if self.fleet.len() >= STREAMS_MAX {
            return Err(Status::resource_exhausted(format!(
                "{STREAMS_MAX} streams are open, no more are taken"
            )));
        }
        let peer = request
            .remote_addr()
            .map(|a| a.to_string())
            .unwrap_or_default();
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let driver = stream::Driver::new(session, self.published.clone(), self.fleet.clone(), peer);
        let (inbound, stop) = (request.into_inner(), self.stop.clone());
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                () = stop.cancelled() => Err(Status::unavailable("the control plane is stopping")),
                ended = driver.run(inbound, &answers) => ended,
            };
            if let Err(status) = ended {
                // The peer may be gone, or not reading.
                let _ = answers.try_send(Err(status));
            }
        });
        Ok(Box::pin(ReceiverStream::new(stream)))
    }
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
    pub fn new(mut worlds: Receiver<Arc<World>>, fleet: Fleet) -> Self {
        let mut compiler = Compiler::default();
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
/// Responses of a stream that wait for its socket.
const ANSWERS_MAX: usize = 1;
