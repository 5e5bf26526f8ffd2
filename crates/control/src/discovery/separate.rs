//! Discovery services of one kind each, beside the aggregated one, for data planes that open a stream per kind (or, as Envoy
//! does for endpoints, per resource).
//!
//! Across streams no ACK can be waited for: what names something new follows a second later, removals five seconds, so that
//! the others have time ([`phalanx_xds::server::SETTLE_MS`], [`phalanx_xds::server::PATIENCE_MS`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use phalanx_proto::envoy::service::cluster::v3::cluster_discovery_service_server::ClusterDiscoveryService;
use phalanx_proto::envoy::service::discovery::v3 as wire;
use phalanx_proto::envoy::service::endpoint::v3::endpoint_discovery_service_server::EndpointDiscoveryService;
use phalanx_proto::envoy::service::listener::v3::listener_discovery_service_server::ListenerDiscoveryService;
use phalanx_proto::envoy::service::route::v3::route_discovery_service_server::RouteDiscoveryService;
use phalanx_proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use phalanx_xds::separate::{self, Source};
use phalanx_xds::server::Session;
use phalanx_xds::{Encoded, Kind, Snapshot};
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, Discovery};
use crate::snapshot::Resources;

/// `StreamX`, `DeltaX` and a refused `FetchX` of one kind.
macro_rules! serve {
    ($service:ident, $kind:expr, $stream:ident: $Stream:ident, $delta:ident: $Delta:ident, $fetch:ident: $name:literal) => {
        #[tonic::async_trait]
        impl $service for Discovery {
            type $Stream = Answers<wire::DiscoveryResponse>;
            type $Delta = Answers<wire::DeltaDiscoveryResponse>;

            async fn $stream(
                &self,
                request: Request<Streaming<wire::DiscoveryRequest>>,
            ) -> Result<Response<Self::$Stream>, Status> {
                self.serve(request, Session::sotw_of($kind))
                    .map(Response::new)
            }

            async fn $delta(
                &self,
                request: Request<Streaming<wire::DeltaDiscoveryRequest>>,
            ) -> Result<Response<Self::$Delta>, Status> {
                self.serve(request, Session::delta_of($kind))
                    .map(Response::new)
            }

            async fn $fetch(
                &self,
                _: Request<wire::DiscoveryRequest>,
            ) -> Result<Response<wire::DiscoveryResponse>, Status> {
                Err(Status::unimplemented(concat!(
                    "Fetch",
                    $name,
                    " is not served: nothing is to be had by polling (use Stream",
                    $name,
                    " or Delta",
                    $name,
                    ")"
                )))
            }
        }
    };
}

serve!(ClusterDiscoveryService, Kind::Cluster, stream_clusters: StreamClustersStream, delta_clusters: DeltaClustersStream, fetch_clusters: "Clusters");
serve!(EndpointDiscoveryService, Kind::Endpoints, stream_endpoints: StreamEndpointsStream, delta_endpoints: DeltaEndpointsStream, fetch_endpoints: "Endpoints");
serve!(ListenerDiscoveryService, Kind::Listener, stream_listeners: StreamListenersStream, delta_listeners: DeltaListenersStream, fetch_listeners: "Listeners");
serve!(RouteDiscoveryService, Kind::Routes, stream_routes: StreamRoutesStream, delta_routes: DeltaRoutesStream, fetch_routes: "Routes");
serve!(SecretDiscoveryService, Kind::Secret, stream_secrets: StreamSecretsStream, delta_secrets: DeltaSecretsStream, fetch_secrets: "Secrets");

/// By where from, and version.
type Made = HashMap<(Arc<Source>, String), Weak<Encoded>>;

/// Resources as data planes with separate streams need them, each made once for all who need the same; cheap to clone.
#[derive(Clone, Default)]
pub struct Rewrites {
    /// Short critical sections, never across an await.
    made: Arc<Mutex<Made>>,
}

impl Rewrites {
    pub fn to(&self, source: Source) -> Rewrite {
        Rewrite {
            source: Arc::new(source),
            rewrites: self.clone(),
            last: [Pair::default(), Pair::default()],
        }
    }

    fn resource(&self, source: &Arc<Source>, resource: &Arc<Encoded>) -> Arc<Encoded> {
        let key = (source.clone(), resource.version.clone());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let fresh = separate::rewrite(resource, source).map_or_else(|| resource.clone(), Arc::new);
        if made.len() == made.capacity() {
            made.retain(|_, known| known.strong_count() > 0);
        }
        made.insert(key, Arc::downgrade(&fresh));
        fresh
    }
}

/// Of one stream.
pub struct Rewrite {
    source: Arc<Source>,
    rewrites: Rewrites,
    /// Of clusters and of listeners.
    last: [Pair; 2],
}

/// What came and what was made of it, so that what does not change stays shared.
#[derive(Default)]
struct Pair {
    given: Resources,
    made: Resources,
}

impl Rewrite {
    pub fn apply(&mut self, snapshot: &Snapshot) -> Snapshot {
        let Self {
            source,
            rewrites,
            last: [clusters, listeners],
        } = self;
        let mut renew = |kind: Kind| {
            let given = snapshot.resources(kind);
            let pair = match kind {
                Kind::Cluster => &mut *clusters,
                Kind::Listener => &mut *listeners,
                _ => return given.clone(),
            };
            if !pair.given.same(given) {
                pair.made = given
                    .iter()
                    .map(|(name, resource)| (name.clone(), rewrites.resource(source, resource)))
                    .collect();
                pair.given = given.clone();
            }
            pair.made.clone()
        };
        Snapshot::from_kinds(snapshot.revision, Kind::ALL.map(&mut renew))
    }
}
