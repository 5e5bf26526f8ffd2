//! What all services share about serving: their configuration, a stop signal that lets work under way finish,
//! gRPC with health and metrics, HTTP. What a service answers is its own business.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use axum::serve::ListenerExt;
use phalanx_telemetry::metrics::{CONTENT_TYPE, Exposition};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::proto::grpc::health::v1::health_check_response::ServingStatus;
use crate::proto::grpc::health::v1::health_server::{Health, HealthServer};
use crate::proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};

/// How long work under way may go on after the stop signal.
const DRAIN: Duration = Duration::from_secs(10);

/// What a service is told.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its sidecar's outbound listener, the only address it calls.
    pub outbound: SocketAddr,
    /// `v1`, or `v2` of battle.
    pub version: String,
    /// From 1, within service and version.
    pub replica: u32,
    /// Where the services that keep something keep it, each below a name of its own; replicas share it.
    pub folder: Option<PathBuf>,
    /// Where the leaderboard is kept, `redis://…`. None: in the leaderboard's process.
    pub redis: Option<String>,
}

impl ServiceConfig {
    /// The only replica, which keeps nothing.
    pub fn new(listen: SocketAddr, outbound: SocketAddr, version: impl Into<String>) -> Self {
        Self {
            listen,
            outbound,
            version: version.into(),
            replica: 1,
            folder: None,
            redis: None,
        }
    }

    /// Binds `listen`; port 0 takes any.
    pub async fn bind(&self) -> anyhow::Result<TcpListener> {
        TcpListener::bind(self.listen)
            .await
            .with_context(|| format!("listening on {}", self.listen))
    }
}

/// Turns one shutdown future into a signal that any number of tasks can wait for.
pub struct Stop {
    signal: watch::Receiver<bool>,
    watcher: AbortHandle,
}

impl Stop {
    pub fn on(shutdown: impl Future<Output = ()> + Send + 'static) -> Self {
        let (send, signal) = watch::channel(false);
        let watcher = tokio::spawn(async move {
            shutdown.await;
            // Kept open, so that "stopped" stays readable.
            send.send_replace(true);
            send.closed().await;
        });
        Self {
            signal,
            watcher: watcher.abort_handle(),
        }
    }

    /// Ready once the service is to stop.
    pub fn wait(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut signal = self.signal.clone();
        async move {
            // An error means that the watcher is gone, which ends the service just as well.
            let _ = signal.wait_for(|stopped| *stopped).await;
        }
    }

    /// Waits for `server`, after the stop signal only until [`DRAIN`] is over.
    async fn drained<E>(
        &self,
        name: &str,
        server: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        let late = async {
            self.wait().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = server => served,
            () = late => {
                tracing::warn!(service = name, "stopped with work under way");
                Ok(())
            }
        }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// `GET /metrics` beside the services, over HTTP/1.1 or h2c, as Prometheus asks for it.
pub fn with_metrics(
    mut routes: Routes,
    write: impl Fn(&mut Exposition) + Clone + Send + Sync + 'static,
) -> Routes {
    let metrics = async move || {
        let mut out = Exposition::new();
        write(&mut out);
        ([("content-type", CONTENT_TYPE)], out.finish())
    };
    let router = routes.axum_router_mut();
    *router = std::mem::take(router).route("/metrics", get(metrics));
    routes
}

/// Serves gRPC and its health protocol, and what else is in the routes.
pub async fn grpc(
    name: &str,
    listener: TcpListener,
    routes: Routes,
    stop: &Stop,
) -> anyhow::Result<()> {
    let (_always, ready) = watch::channel(true);
    grpc_while(name, listener, routes, stop, ready).await
}

/// The same of one that says that it serves while it is `ready` only.
pub async fn grpc_while(
    name: &str,
    listener: TcpListener,
    routes: Routes,
    stop: &Stop,
    ready: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    tracing::info!(service = name, address = %listener.local_addr()?, "serving grpc");
    let health = HealthServer::new(Serving {
        stopped: stop.signal.clone(),
        ready,
    });
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .accept_http1(true)
        .add_routes(routes.add_service(health));
    let serving = server.serve_with_incoming_shutdown(incoming, stop.wait());
    stop.drained(name, serving)
        .await
        .with_context(|| format!("serving {name}"))
}

/// Serves HTTP/1.1 and h2c.
pub async fn http(
    name: &str,
    listener: TcpListener,
    router: Router,
    stop: &Stop,
) -> anyhow::Result<()> {
    tracing::info!(service = name, address = %listener.local_addr()?, "serving http");
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "nagle's algorithm stays on");
        }
    });
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop.wait());
    stop.drained(name, serving.into_future())
        .await
        .with_context(|| format!("serving {name}"))
}

/// Serving while ready and until told to stop, whichever service is asked for.
struct Serving {
    stopped: watch::Receiver<bool>,
    ready: watch::Receiver<bool>,
}

impl Serving {
    fn answer(&self) -> HealthCheckResponse {
        let serves = *self.ready.borrow() && !*self.stopped.borrow();
        let status = if serves {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        HealthCheckResponse {
            status: status.into(),
        }
    }
}

#[tonic::async_trait]
impl Health for Serving {
    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(self.answer()))
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    /// How it stands and what changes; not serving when the service stops, and then the stream ends, so that it doesn't
    /// hold up the stop.
    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (send, states) = mpsc::channel(2);
        let mut now = Self {
            stopped: self.stopped.clone(),
            ready: self.ready.clone(),
        };
        tokio::spawn(async move {
            loop {
                // Before it is told: a stop meanwhile is told, too.
                let is_last = *now.stopped.borrow_and_update();
                if send.send(Ok(now.answer())).await.is_err() || is_last {
                    return;
                }
                tokio::select! {
                    changed = now.stopped.changed() => if changed.is_err() { return },
                    Ok(()) = now.ready.changed() => {}
                    () = send.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(states)))
    }
}
