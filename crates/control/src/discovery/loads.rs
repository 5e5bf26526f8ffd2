//! Load reports (LRS): what stock data planes say they sent to each cluster and locality, added up.
//!
//! They are asked for all clusters. What they name is theirs, so it is bounded, and forgotten when nobody reports it any
//! more.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use phalanx_model::ClusterName;
use phalanx_proto::envoy::config::core::v3::{Locality as WireLocality, Node};
use phalanx_proto::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use phalanx_proto::envoy::service::load_stats::v3 as wire;
use phalanx_proto::envoy::service::load_stats::v3::load_reporting_service_server::LoadReportingService;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::access::Who;
use crate::observe::{Observe, Traffic};
use crate::snapshot::Published;

/// All reports; cheap to clone.
#[derive(Clone)]
pub struct Loads {
    inner: Arc<Inner>,
}

struct Inner {
    interval: Duration,
    published: watch::Receiver<Arc<Published>>,
    streams: AtomicUsize,
    reports: AtomicU64,
    /// Beyond the bounds.
    dropped: AtomicU64,
    /// Told of each node's requests, for canaries.
    observe: OnceLock<Observe>,
    /// Short critical sections, never across an await.
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    rows: BTreeMap<Place, Row>,
    /// Of clusters.
    refused: BTreeMap<String, Row>,
    /// When it was searched for what is too old.
    swept: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub cluster: String,
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    load: Load,
    at: Instant,
}

/// Requests since the place was first reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub issued: u64,
    pub succeeded: u64,
    pub failed: u64,
    /// Now, over all who report.
    pub in_progress: u64,
    /// Those who reported any.
    pub reporters: u64,
}

/// What is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub interval: Duration,
    pub streams: usize,
    pub reports: u64,
    /// Rows of reports beyond the bounds.
    pub dropped: u64,
    /// With the time since the last report of each.
    pub places: Vec<(Place, Load, Duration)>,
    /// By cluster: requests that data planes themselves turned away (circuit breakers, drop policies).
    pub refused: Vec<(String, u64)>,
}

impl Loads {
    /// Data planes are asked to report every `interval`.
    pub fn new(interval: Duration, published: watch::Receiver<Arc<Published>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                interval: interval.max(INTERVAL_MIN),
                published,
                streams: AtomicUsize::new(0),
                reports: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
                observe: OnceLock::new(),
                table: Mutex::default(),
            }),
        }
    }

    /// From now on requests are told there too, by node and destination.
    pub fn tell(&self, observe: Observe) {
        // Only the first counts; there is one composition root.
        let _ = self.inner.observe.set(observe);
    }

    pub fn summary(&self) -> Summary {
        let now = Instant::now();
        let mut table = self.table();
        table.forget(now);
        let place =
            |(place, row): (&Place, &Row)| (place.clone(), row.load, now.duration_since(row.at));
        Summary {
            interval: self.inner.interval,
            streams: self.inner.streams.load(Ordering::Relaxed),
            reports: self.inner.reports.load(Ordering::Relaxed),
            dropped: self.inner.dropped.load(Ordering::Relaxed),
            places: table.rows.iter().map(place).collect(),
            refused: table
                .refused
                .iter()
                .map(|(cluster, row)| (cluster.clone(), row.load.failed))
                .collect(),
        }
    }

    /// What a data plane is asked for: everything, or by name if it can't be asked so.
    fn request(&self, node: &Node) -> wire::LoadStatsResponse {
        let takes_all = node.client_features.iter().any(|f| f == SEND_ALL);
        let clusters = match takes_all {
            true => Vec::new(),
            false => {
                let mesh = self.inner.published.borrow().mesh.clone();
                mesh.clusters
                    .keys()
                    .take(CLUSTERS_MAX)
                    .map(ToString::to_string)
                    .collect()
            }
        };
        wire::LoadStatsResponse {
            clusters,
            send_all_clusters: takes_all,
            load_reporting_interval: Some(prost_types::Duration {
                seconds: self.inner.interval.as_secs() as i64,
                nanos: self.inner.interval.subsec_nanos() as i32,
            }),
            report_endpoint_granularity: false,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn forget(&mut self, now: Instant) {
        let is_due = |swept: Instant| now.duration_since(swept) >= SWEEP_EVERY;
        if !self.swept.is_none_or(is_due) {
            return;
        }
        self.swept = Some(now);
        let is_fresh = |row: &Row| now.duration_since(row.at) < AGE_MAX || row.load.in_progress > 0;
        self.rows.retain(|_, row| is_fresh(row));
        self.refused.retain(|_, row| is_fresh(row));
    }

    fn row<K: Ord>(rows: &mut BTreeMap<K, Row>, key: K, now: Instant) -> Option<&mut Row> {
        if rows.len() >= ROWS_MAX && !rows.contains_key(&key) {
            return None;
        }
        let row = rows.entry(key).or_insert(Row {
            load: Load::default(),
            at: now,
        });
        row.at = now;
        Some(row)
    }
}

/// One stream of reports; dropping it takes back what it said to be in progress.
struct Reporter {
    loads: Loads,
    node: String,
    /// Requests in progress, by place that it ever reported.
    places: BTreeMap<Place, u64>,
}

impl Reporter {
    fn new(loads: Loads) -> Self {
        loads.inner.streams.fetch_add(1, Ordering::Relaxed);
        Self {
            loads,
            node: String::new(),
            places: BTreeMap::new(),
        }
    }

    fn tell(&self, cluster: &ClusterStats) {
        let (Some(observe), Ok(name)) = (
            self.loads.inner.observe.get(),
            cluster.cluster_name.parse::<ClusterName>(),
        ) else {
            return;
        };
        let stats = &cluster.upstream_locality_stats;
        let sum = |count: fn(&UpstreamLocalityStats) -> u64| {
            stats.iter().map(count).fold(0, u64::saturating_add)
        };
        let failures = sum(|s| s.total_error_requests);
        let requests = failures.saturating_add(sum(|s| s.total_successful_requests));
        observe.load(&self.node, &name, Traffic { requests, failures });
    }

    fn take(&mut self, request: wire::LoadStatsRequest) -> Result<(), Status> {
        let loads = self.loads.clone();
        if !request.cluster_stats.is_empty() {
            loads.inner.reports.fetch_add(1, Ordering::Relaxed);
        }
        let now = Instant::now();
        let mut table = loads.table();
        table.forget(now);
        let mut dropped = 0;
        for cluster in request.cluster_stats {
            check(&cluster)?;
            self.tell(&cluster);
            if cluster.total_dropped_requests > 0 {
                let name = cluster.cluster_name.clone();
                match Table::row(&mut table.refused, name, now) {
                    Some(row) => {
                        let more = cluster.total_dropped_requests;
                        row.load.failed = row.load.failed.saturating_add(more);
                    }
                    None => dropped += 1,
                }
            }
            for stats in &cluster.upstream_locality_stats {
                let place = place(&cluster, stats.locality.as_ref());
                dropped += u64::from(!self.add(&mut table, place, stats, now));
            }
        }
        loads.inner.dropped.fetch_add(dropped, Ordering::Relaxed);
        Ok(())
    }

    /// False beyond the bounds.
    fn add(
        &mut self,
        table: &mut Table,
        place: Place,
        stats: &UpstreamLocalityStats,
        now: Instant,
    ) -> bool {
        let is_idle = stats.total_issued_requests == 0 && stats.total_requests_in_progress == 0;
        if is_idle && !table.rows.contains_key(&place) {
            return true;
        }
        if self.places.len() >= ROWS_MAX && !self.places.contains_key(&place) {
            return false;
        }
        let Some(row) = Table::row(&mut table.rows, place.clone(), now) else {
            return false;
        };
        let load = &mut row.load;
        let before = self.places.insert(place, stats.total_requests_in_progress);
        load.reporters += u64::from(before.is_none());
        load.in_progress = (load.in_progress.saturating_sub(before.unwrap_or(0)))
            .saturating_add(stats.total_requests_in_progress);
        load.issued = load.issued.saturating_add(stats.total_issued_requests);
        load.succeeded = load
            .succeeded
            .saturating_add(stats.total_successful_requests);
        load.failed = load.failed.saturating_add(stats.total_error_requests);
        true
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.loads.inner.streams.fetch_sub(1, Ordering::Relaxed);
        let mut table = self.loads.table();
        for (place, in_progress) in &self.places {
            if let Some(row) = table.rows.get_mut(place) {
                row.load.in_progress = row.load.in_progress.saturating_sub(*in_progress);
                row.load.reporters = row.load.reporters.saturating_sub(1);
            }
        }
    }
}

fn place(cluster: &ClusterStats, locality: Option<&WireLocality>) -> Place {
    let part = |part: fn(&WireLocality) -> &String| locality.map(part).cloned().unwrap_or_default();
    Place {
        cluster: cluster.cluster_name.clone(),
        region: part(|l| &l.region),
        zone: part(|l| &l.zone),
        sub_zone: part(|l| &l.sub_zone),
    }
}

fn check(cluster: &ClusterStats) -> Result<(), Status> {
    let localities = cluster.upstream_locality_stats.iter();
    let parts = localities
        .flat_map(|stats| &stats.locality)
        .flat_map(|l| [&l.region, &l.zone, &l.sub_zone]);
    let too_long = parts
        .chain([&cluster.cluster_name])
        .any(|text| text.len() > NAME_MAX || text.chars().any(char::is_control));
    match too_long {
        true => Err(Status::invalid_argument(format!(
            "a cluster or locality has a name of more than {NAME_MAX} bytes, or control characters in it"
        ))),
        false => Ok(()),
    }
}

#[tonic::async_trait]
impl LoadReportingService for Loads {
    type StreamLoadStatsStream =
        Pin<Box<dyn Stream<Item = Result<wire::LoadStatsResponse, Status>> + Send>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<wire::LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        if self.inner.streams.load(Ordering::Relaxed) >= STREAMS_MAX {
            return Err(Status::resource_exhausted(format!(
                "{STREAMS_MAX} streams of load reports are open, no more are taken"
            )));
        }
        let (answers, stream) = mpsc::channel(1);
        let who = Who::of(request.extensions());
        let mut inbound = request.into_inner();
        let mut reporter = Reporter::new(self.clone());
        tokio::spawn(async move {
            // A stream ends with its peer, or with the connection when the control plane stops.
            let ended = tokio::select! {
                () = answers.closed() => Ok(()),
                ended = reporter.run(&who, &mut inbound, &answers) => ended,
            };
            if let Err(status) = ended {
                super::farewell(&answers, status).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

impl Reporter {
    async fn run(
        &mut self,
        who: &Who,
        inbound: &mut Streaming<wire::LoadStatsRequest>,
        answers: &mpsc::Sender<Result<wire::LoadStatsResponse, Status>>,
    ) -> Result<(), Status> {
        let first = timeout(FIRST_MAX, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no request came"))??;
        let Some(first) = first else { return Ok(()) };
        let Some(node) = &first.node else {
            return Err(Status::invalid_argument(
                "the first load report of a stream must carry `node`",
            ));
        };
        if who.is_workload() {
            let named = crate::snapshot::Node::parse(Some(node))
                .map_err(|e| Status::invalid_argument(e.to_string()))?;
            who.owns(&named.service)?;
            who.owns_node(&named.id)?;
        }
        self.node = node.id.chars().take(NAME_MAX).collect();
        // The channel is empty.
        let _ = answers.try_send(Ok(self.loads.request(node)));
        self.take(first)?;
        while let Some(request) = inbound.message().await? {
            self.take(request)?;
        }
        Ok(())
    }
}

/// Among the client's features.
const SEND_ALL: &str = "envoy.lrs.supports_send_all_clusters";
/// How often data planes report.
pub const INTERVAL: Duration = Duration::from_secs(10);
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Between the opening of a stream and its first request.
const FIRST_MAX: Duration = Duration::from_secs(10);
const STREAMS_MAX: usize = 20_000;
/// Places that are kept, and that one stream may report.
const ROWS_MAX: usize = 10_000;
/// Clusters asked for by name.
const CLUSTERS_MAX: usize = 10_000;
/// Bytes in the name of a cluster, region, zone or sub-zone.
const NAME_MAX: usize = 512;
/// Without a report.
const AGE_MAX: Duration = Duration::from_secs(600);
/// Thousands report, and each search looks at every row.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
