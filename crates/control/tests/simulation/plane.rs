//! One life of a control plane: what `serve` starts for configuration and instances.

use std::sync::Arc;
use std::time::Duration;

use phalanx_control::access::Who;
use phalanx_control::admit::Admission;
use phalanx_control::discovery::{Discovery, Fleet, Loads, Publisher};
use phalanx_control::planes::Identity;
use phalanx_control::registry::Registry;
use phalanx_control::registry::leases::TtlBounds;
use phalanx_control::snapshot::Published;
use phalanx_control::world::World;
use phalanx_control::world::follow::Follower;
use phalanx_proto::phalanx::registry::v1::registry_server::RegistryServer;
use phalanx_store::Store;
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;

use crate::network::Network;

pub struct Plane {
    pub name: String,
    pub admission: Arc<Admission>,
    pub registry: Registry,
    pub worlds: Receiver<Arc<World>>,
    pub published: Receiver<Arc<Published>>,
    pub fleet: Fleet,
    network: Network,
    tasks: Vec<JoinHandle<()>>,
}

impl Plane {
    /// # Errors
    /// The store's, when it can't be read.
    pub async fn boot(store: &Store, name: &str, network: &Network) -> phalanx_store::Result<Self> {
        let follower = Follower::load(store.clone()).await?;
        let worlds = follower.worlds();
        // Never cancelled: a process that is killed says nothing to anybody.
        let stop = CancellationToken::new();
        let fleet = Fleet::default();
        let publisher = Publisher::new(worlds.clone(), fleet.clone());
        let published = publisher.published();
        let identity = Identity {
            name: name.to_owned(),
            ..Identity::default()
        };
        let bounds = TtlBounds::default();
        let (registry, writes) = Registry::among(
            store.clone(),
            worlds.clone(),
            bounds,
            identity,
            stop.clone(),
        );
        let loads = Loads::new(Duration::from_secs(10), published.clone());
        let discovery = Discovery::new(published.clone(), fleet.clone(), loads, stop.clone());
        let incoming = ReceiverStream::new(network.listen(name));
        // As `control --open` takes them.
        let open = InterceptorLayer::new(|mut request: tonic::Request<()>| {
            request.extensions_mut().insert(Who::Open);
            Ok(request)
        });
        let grpc = Server::builder()
            .layer(open)
            .add_routes(discovery.services())
            .add_service(RegistryServer::new(registry.clone()))
            .serve_with_incoming(incoming);
        let tasks = vec![
            tokio::spawn(follower.run(stop.clone())),
            tokio::spawn(publisher.run(stop.clone())),
            tokio::spawn(registry.clone().run(writes)),
            tokio::spawn(async move {
                let _ = grpc.await;
            }),
        ];
        Ok(Self {
            name: name.to_owned(),
            admission: Arc::new(Admission::new(store.clone(), worlds.clone())),
            registry,
            worlds,
            published,
            fleet,
            network: network.clone(),
            tasks,
        })
    }

    /// Whatever ran stops where it stands, connections break.
    pub fn kill(self) {
        self.network.close(&self.name);
        for task in self.tasks {
            task.abort();
        }
    }
}
