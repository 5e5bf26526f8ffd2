//! What proxies report, kept for a minute per edge and as totals since start. In memory only, bounded; a report of an edge
//! beyond the bound is dropped and counted.

mod compared;
mod counts;
mod edges;
mod lanes;
mod nodes;

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_client::api;
use phalanx_client::observe::Lane;
use phalanx_model::name::check_label;
use phalanx_model::{ClusterName, ServiceName};
use phalanx_proto::phalanx::observe::v1 as wire;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

pub use self::compared::Compared;
use self::compared::ComparedSums;
pub use self::counts::{BUCKETS, Counts};
use self::edges::{EdgeKey, Edges, Sums};
use self::lanes::LaneSums;
use self::nodes::Nodes;
pub use self::nodes::{ByDestination, Traffic};
use crate::access::Who;
use crate::registry::Registry;

/// Shared by the gRPC service and the admin API; cheap to clone.
#[derive(Clone)]
pub struct Observe {
    inner: Arc<Inner>,
}

struct Inner {
    started: Instant,
    life: u64,
    /// One short critical section per report.
    state: Mutex<State>,
    reports: AtomicU64,
    dropped: AtomicU64,
    /// Hears of callers that were refused.
    registry: Option<Registry>,
}

#[derive(Default)]
struct State {
    edges: Edges,
    /// By node: resident memory, and the second of the report.
    memory: HashMap<String, (u64, u64)>,
    nodes: Nodes,
    lanes: LaneSums,
    compared: ComparedSums,
}

impl Default for Observe {
    fn default() -> Self {
        Self::with(None)
    }
}

impl Observe {
    /// Passes on to the registry what callers say of its instances.
    pub fn telling(registry: Registry) -> Self {
        Self::with(Some(registry))
    }

    fn with(registry: Option<Registry>) -> Self {
        let inner = Inner {
            started: Instant::now(),
            life: RandomState::new().hash_one("life"),
            state: Mutex::default(),
            reports: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            registry,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Edges of the last `window`, busiest first, and their totals.
    pub fn edges(&self, window: Duration) -> api::Edges {
        let window_s = window.as_secs().clamp(1, edges::SECONDS_MAX);
        let now = self.second();
        let state = self.state();
        api::Edges {
            window_s,
            edges: state.edges.window(now, window_s),
            totals: state.edges.totals(),
        }
    }

    /// Of the proxy's last report, in bytes; 0 when unknown.
    pub fn memory(&self, node: &str) -> u64 {
        self.state().memory.get(node).map_or(0, |(bytes, _)| *bytes)
    }

    /// What a node that makes load reports sent to a cluster since the last one.
    pub fn load(&self, node: &str, cluster: &ClusterName, traffic: Traffic) {
        let service = &cluster.service;
        if traffic.requests > 0 {
            let name = nodes::destination(&service.namespace, &service.name);
            let second = self.second();
            let counts = Counts {
                requests: traffic.requests,
                failures: traffic.failures,
                latency: Vec::new(),
            };
            let mut state = self.state();
            if cluster.lane.is_none() {
                state.edges.count(service.clone(), &counts);
            }
            state.nodes.count(node, [(name, traffic)], second);
        }
    }

    /// What a node saw since its first report.
    pub fn totals(&self, node: &str) -> ByDestination {
        self.state().nodes.totals(node)
    }

    /// What a node saw in the last 30 to 60 seconds.
    pub fn recent(&self, node: &str) -> ByDestination {
        self.state().nodes.recent(node)
    }

    /// What all nodes saw but `except`.
    pub fn others(&self, except: impl Fn(&str) -> bool) -> ByDestination {
        self.state().nodes.others(except)
    }

    /// What all callers that report here saw of a service since start.
    pub fn service(&self, service: &ServiceName) -> Counts {
        self.state().edges.service(service)
    }

    /// Tells this process from one that took its place: what that one counts began at nothing.
    pub fn life(&self) -> u64 {
        self.inner.life
    }

    /// Who took the requests that a lane of a service is for, since start.
    pub fn lane(&self, colour: &str, service: &ServiceName) -> Lane {
        self.state().lanes.of(colour, service)
    }

    /// Which services call which, since start.
    pub fn callers(&self) -> BTreeSet<(ServiceName, ServiceName)> {
        self.state().edges.callers()
    }

    /// What this mirror of a route answered, by the route's id.
    pub fn compared(&self, route: &str, mirror: &ServiceName) -> Compared {
        self.state().compared.of(route, mirror)
    }

    /// The same with samples, for people.
    pub fn comparisons(&self, route: Option<&str>) -> api::Comparisons {
        api::Comparisons {
            items: self.state().compared.show(route),
        }
    }

    pub fn reports(&self) -> u64 {
        self.inner.reports.load(Ordering::Relaxed)
    }

    /// Edges that were not taken because there are too many.
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.load(Ordering::Relaxed)
    }

    fn take(&self, report: wire::ReportRequest) -> Result<(), Status> {
        check(&report)?;
        if let Some(registry) = &self.inner.registry {
            let addresses = |texts: &[String]| -> Vec<SocketAddr> {
                texts.iter().filter_map(|text| text.parse().ok()).collect()
            };
            registry.refused(&addresses(&report.refused));
            registry.reached(&addresses(&report.reached));
        }
        let second = self.second();
        // What piled up while nobody could be told belongs to the totals: as one second it would be a false peak.
        let live = report.interval_ms <= INTERVAL_MAX_MS;
        let mut state = self.state();
        self.inner.reports.fetch_add(1, Ordering::Relaxed);
        remember(&mut state.memory, &report.node, report.memory_bytes, second);
        state.nodes.add(&report, second);
        for comparison in report.comparisons {
            if !state.compared.add(comparison) {
                self.inner.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        for lane in &report.lanes {
            if !state.lanes.add(lane) {
                self.inner.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Requests that no cluster was found for are known by node only.
        let routed = |edge: &wire::Edge| !edge.destination_service.is_empty();
        for edge in report.edges.into_iter().filter(routed) {
            let key = EdgeKey {
                source_namespace: report.namespace.clone(),
                source: report.service.clone(),
                destination_namespace: edge.destination_namespace.clone(),
                destination: edge.destination_service.clone(),
                destination_version: edge.destination_version.clone(),
                protocol: edge.protocol.clone(),
            };
            let sums = Sums::of(&edge);
            // A developer's build stands for itself, not for the version that it was made from.
            if !edge.in_lane {
                let service = ServiceName::new(&key.destination_namespace, &key.destination);
                state.edges.count(service, &sums.counts());
            }
            if !state.edges.add(key, live.then_some(second), sums) {
                self.inner.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn second(&self) -> u64 {
        self.inner.started.elapsed().as_secs()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl wire::observe_server::Observe for Observe {
    async fn report(
        &self,
        request: Request<wire::ReportRequest>,
    ) -> Result<Response<wire::ReportResponse>, Status> {
        let who = Who::of(request.extensions());
        let report = request.into_inner();
        who.owns(&ServiceName::new(&report.namespace, &report.service))?;
        who.owns_node(&report.node)?;
        self.take(report)?;
        Ok(Response::new(wire::ReportResponse {
            bounds_us: edges::BOUNDS_US.to_vec(),
        }))
    }
}

fn check(report: &wire::ReportRequest) -> Result<(), Status> {
    let refuse = |what: &str| Err(Status::invalid_argument(what.to_owned()));
    if report.node.is_empty() || !is_plain(&report.node) {
        return refuse("`node` is empty, too long or has control characters");
    }
    for name in [&report.namespace, &report.service] {
        check_label(name).map_err(|e| Status::invalid_argument(e.to_string()))?;
    }
    if report.refused.len() + report.reached.len() > ADDRESSES_PER_REPORT_MAX {
        return refuse("more addresses than a report may have");
    }
    if report.edges.len() > EDGES_PER_REPORT_MAX {
        return refuse("more edges than a report may have");
    }
    let comparisons = &report.comparisons;
    if comparisons.len() > compared::PER_REPORT_MAX || !comparisons.iter().all(compared::is_sound) {
        return refuse("more comparisons than a report may have, or one that is too large");
    }
    let is_sound = report.lanes.iter().all(lanes::is_sound);
    if report.lanes.len() > lanes::PER_REPORT_MAX || !is_sound {
        return refuse("more lanes than a report may have, or one that is none");
    }
    for edge in &report.edges {
        if [
            &edge.destination_namespace,
            &edge.destination_service,
            &edge.destination_version,
            &edge.protocol,
        ]
        .iter()
        .any(|text| !is_plain(text))
        {
            return refuse("an edge has a text that is too long or has control characters");
        }
        // None: the reporter has not been told the bounds yet.
        if !matches!(edge.latency_buckets.len(), 0 | edges::BUCKETS) {
            return refuse("`latency_buckets` does not fit the bounds of the last answer");
        }
    }
    Ok(())
}

fn is_plain(text: &str) -> bool {
    text.len() <= TEXT_MAX && !text.chars().any(char::is_control)
}

fn remember(memory: &mut HashMap<String, (u64, u64)>, node: &str, bytes: u64, second: u64) {
    if memory.len() >= NODES_MAX && !memory.contains_key(node) {
        memory.retain(|_, (_, seen)| *seen + edges::SECONDS_MAX > second);
    }
    if memory.len() < NODES_MAX || memory.contains_key(node) {
        memory.insert(node.to_owned(), (bytes, second));
    }
}

/// A report that covers more is no picture of the last second.
const INTERVAL_MAX_MS: u64 = 2_500;
const TEXT_MAX: usize = 253;
const EDGES_PER_REPORT_MAX: usize = 4096;
const ADDRESSES_PER_REPORT_MAX: usize = 1024;
const NODES_MAX: usize = 20_000;

#[cfg(test)]
mod tests;
