//! A control plane that follows a script: sends what it is told to, remembers what it was asked and told, and dies with
//! all of its connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use phalanx_client::registry::from_wire;
use phalanx_model::Instance;
use phalanx_proto::envoy::service::discovery::v3 as xds;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use phalanx_proto::phalanx::observe::v1::observe_server::{Observe, ObserveServer};
use phalanx_proto::phalanx::observe::v1::{ReportRequest, ReportResponse};
use phalanx_proto::phalanx::registry::v1::registry_server::{Registry, RegistryServer};
use phalanx_proto::phalanx::registry::v1::{
    DeregisterRequest, DeregisterResponse, HeartbeatBatch, HeartbeatBatchAnswer, HeartbeatRequest,
    HeartbeatResponse, RegisterRequest, RegisterResponse, WatchRequest, WatchResponse,
};
use phalanx_xds::{Encoded, Kind};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Outlives its servers, as a store would.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<Inner>>);

#[derive(Default)]
pub struct Inner {
    pub resources: BTreeMap<(Kind, String), Encoded>,
    streams: Vec<mpsc::Sender<Result<xds::DeltaDiscoveryResponse, Status>>>,
    pushes: u64,
    /// Everything that came on any ADS stream.
    pub requests: Vec<xds::DeltaDiscoveryRequest>,
    pub registered: BTreeMap<String, (Instance, u64)>,
    pub registry_calls: Vec<&'static str>,
    pub reports: Vec<ReportRequest>,
}

impl Script {
    pub fn see(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Sends these resources, whether they can be decoded or not, on every open stream and on those to come.
    pub fn push(&self, resources: Vec<Encoded>) {
        let mut inner = self.see();
        for kind in Kind::ALL {
            let of_kind: Vec<Encoded> = resources
                .iter()
                .filter(|r| r.kind == kind)
                .cloned()
                .collect();
            if of_kind.is_empty() {
                continue;
            }
            let response = inner.response(kind, &of_kind, Vec::new());
            inner
                .streams
                .retain(|stream| stream.try_send(Ok(response.clone())).is_ok());
            inner
                .resources
                .extend(of_kind.into_iter().map(|r| ((kind, r.name.clone()), r)));
        }
    }

    /// Tells every open stream that the resource is gone.
    pub fn remove(&self, kind: Kind, name: &str) {
        let mut inner = self.see();
        inner.resources.remove(&(kind, name.to_owned()));
        let response = inner.response(kind, &[], vec![name.to_owned()]);
        inner
            .streams
            .retain(|stream| stream.try_send(Ok(response.clone())).is_ok());
    }

    /// The messages of all NACKs so far.
    pub fn nacks(&self) -> Vec<String> {
        self.see()
            .requests
            .iter()
            .filter_map(|r| r.error_detail.as_ref().map(|e| e.message.clone()))
            .collect()
    }

    /// Requests that acknowledge or refuse a response.
    pub fn answers(&self) -> usize {
        self.see()
            .requests
            .iter()
            .filter(|r| !r.response_nonce.is_empty())
            .count()
    }

    pub fn registered(&self) -> Option<Instance> {
        self.see()
            .registered
            .values()
            .next()
            .map(|(instance, _)| instance.clone())
    }

    pub fn registry_calls(&self, name: &str) -> usize {
        self.see()
            .registry_calls
            .iter()
            .filter(|call| **call == name)
            .count()
    }
}

impl Inner {
    fn response(
        &mut self,
        kind: Kind,
        resources: &[Encoded],
        removed: Vec<String>,
    ) -> xds::DeltaDiscoveryResponse {
        self.pushes += 1;
        let wrap = |r: &Encoded| xds::Resource {
            name: r.name.clone(),
            version: r.version.clone(),
            resource: Some(any(kind.type_url(), r.body.to_vec())),
            ..Default::default()
        };
        xds::DeltaDiscoveryResponse {
            system_version_info: self.pushes.to_string(),
            type_url: kind.type_url().to_owned(),
            resources: resources.iter().map(wrap).collect(),
            removed_resources: removed,
            nonce: format!("n{}", self.pushes),
            ..Default::default()
        }
    }
}

fn any(type_url: &str, value: Vec<u8>) -> prost_types::Any {
    prost_types::Any {
        type_url: type_url.to_owned(),
        value,
    }
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type StreamAggregatedResourcesStream = Boxed<xds::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Boxed<xds::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<xds::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<xds::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let mut requests = request.into_inner();
        let (stream, responses) = mpsc::channel(256);
        let script = self.clone();
        tokio::spawn(async move {
            let mut known = [false; Kind::ALL.len()];
            while let Ok(Some(request)) = requests.message().await {
                let mut inner = script.see();
                let kind = Kind::parse(&request.type_url).unwrap();
                // The first request of a kind, and every further subscription, gets all there is of it.
                let wanted = !known[kind.index()] || !request.resource_names_subscribe.is_empty();
                known[kind.index()] = true;
                let has = request.initial_resource_versions.clone();
                inner.requests.push(request);
                let all: Vec<Encoded> = inner
                    .resources
                    .range((kind, String::new())..)
                    .take_while(|((k, _), _)| *k == kind)
                    .map(|(_, r)| r.clone())
                    .collect();
                let fresh: Vec<Encoded> = all
                    .iter()
                    .filter(|r| has.get(&r.name) != Some(&r.version))
                    .cloned()
                    .collect();
                let named_only = matches!(kind, Kind::Endpoints | Kind::Routes);
                if wanted && !(named_only && fresh.is_empty()) {
                    let response = inner.response(kind, &fresh, Vec::new());
                    let _ = stream.try_send(Ok(response));
                }
                if !inner.streams.iter().any(|s| s.same_channel(&stream)) {
                    inner.streams.push(stream.clone());
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

#[tonic::async_trait]
impl Registry for Script {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let request = request.into_inner();
        let instance = from_wire(request.instance.unwrap_or_default())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let mut inner = self.see();
        inner.registry_calls.push("register");
        inner
            .registered
            .insert(instance.id.id.clone(), (instance, request.epoch));
        Ok(Response::new(RegisterResponse {
            ttl_ms: request.ttl_ms,
            revision: 1,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let request = request.into_inner();
        let mut inner = self.see();
        inner.registry_calls.push("heartbeat");
        Ok(Response::new(HeartbeatResponse {
            unknown: !inner.registered.contains_key(&request.id),
            ttl_ms: 0,
        }))
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        let mut inner = self.see();
        inner.registry_calls.push("deregister");
        let removed = inner.registered.remove(&request.into_inner().id).is_some();
        Ok(Response::new(DeregisterResponse {
            removed,
            revision: 2,
        }))
    }

    type HeartbeatsStream = Boxed<HeartbeatBatchAnswer>;

    async fn heartbeats(
        &self,
        _: Request<Streaming<HeartbeatBatch>>,
    ) -> Result<Response<Self::HeartbeatsStream>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    type WatchStream = Boxed<WatchResponse>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

#[tonic::async_trait]
impl Observe for Script {
    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        self.see().reports.push(request.into_inner());
        Ok(Response::new(ReportResponse {
            bounds_us: vec![1_000, 1_000_000],
        }))
    }
}

/// Serves a script from a runtime of its own.
pub struct Control {
    runtime: Option<Runtime>,
    pub address: SocketAddr,
}

impl Control {
    pub fn start(script: &Script, address: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let inside = runtime.enter();
        let listener = TcpListener::from_std(listener).unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(script.clone()))
            .add_service(RegistryServer::new(script.clone()))
            .add_service(ObserveServer::new(script.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        drop(inside);
        Self {
            runtime: Some(runtime),
            address,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // On a thread that may wait: when this returns, every socket is closed.
            let ended =
                std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10)));
            ended.join().unwrap();
        }
    }
}
