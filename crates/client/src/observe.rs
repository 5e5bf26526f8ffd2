//! Telling the control plane what a proxy saw: one report per second, the counts of the interval. What could not be
//! delivered is the caller's to add to the next.

use std::net::SocketAddr;
use std::time::Duration;

use phalanx_proto::phalanx::observe::v1 as wire;
use phalanx_proto::phalanx::observe::v1::observe_client::ObserveClient;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use crate::api::ComparedSample;

/// Of one call: a report that takes longer would run into the next.
const CALL_TIMEOUT: Duration = Duration::from_millis(900);
/// More bounds than this from the control plane are not taken.
const BOUNDS_MAX: usize = 256;

/// Who reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// `<namespace>/<service>/<instance>`, as in discovery.
    pub node: String,
    pub namespace: String,
    pub service: String,
    pub version: String,
}

/// What was seen in one interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub interval: Duration,
    pub edges: Vec<Edge>,
    /// Resident memory of the proxy; 0 when not known.
    pub memory_bytes: u64,
    /// Of the configuration in use; 0 when not known.
    pub config_revision: u64,
    /// Endpoints that refused a connection, and took none since.
    pub refused: Vec<SocketAddr>,
    /// Those that refused before and take connections again.
    pub reached: Vec<SocketAddr>,
    pub lanes: Vec<Lane>,
    pub comparisons: Vec<Compared>,
}

/// Answers of one mirror of one rule beside the original's; counts of the interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// `<kind>/<namespace>/<route>/<rule>`
    pub rule: String,
    pub mirror: String,
    pub compared: u64,
    pub different: u64,
    pub unanswered: u64,
    /// Of the different: how many in what.
    pub status: u64,
    pub header: u64,
    pub body: u64,
    /// Sums over those compared.
    pub original_us: u64,
    pub copy_us: u64,
    pub samples: Vec<ComparedSample>,
}

/// Requests that one lane of one service is for, by who got them; counts of the interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    pub colour: String,
    pub destination_namespace: String,
    pub destination_service: String,
    pub lane: u64,
    pub baseline: u64,
    pub nobody: u64,
}

/// The traffic to one destination; counts of the interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    pub destination_namespace: String,
    pub destination_service: String,
    pub destination_port: u16,
    /// Empty when not known.
    pub destination_version: String,
    /// `http`, `grpc` or `tcp`.
    pub protocol: String,
    pub requests: u64,
    pub failures: u64,
    /// Tries, the first included.
    pub attempts: u64,
    pub retries: u64,
    pub connect_failures: u64,
    pub ejections: u64,
    /// Answers the proxy made itself, by reason.
    pub reasons: Vec<(String, u64)>,
    pub tcp_bytes: u64,
    /// Requests whose callers left before an answer began; part of `requests`, not of `failures`.
    pub abandoned: u64,
    /// Of a lane's cluster, not of the service's own.
    pub in_lane: bool,
    /// Counts per bucket, of bounds the caller chose.
    pub latency: Buckets,
}

/// A histogram: `counts[i]` lie at or below `bounds_us[i]` and above the one before; the last entry is what lies above
/// all, so there is one more of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    pub bounds_us: Vec<u64>,
    pub counts: Vec<u64>,
}

impl Buckets {
    /// The same counts under other bounds, each going where the upper bound of its bucket lies: exact when the bounds
    /// are the same, never too low otherwise.
    pub fn fit(&self, bounds_us: &[u64]) -> Vec<u64> {
        let mut fitted = vec![0; bounds_us.len() + 1];
        for (at, count) in self.counts.iter().enumerate() {
            let upper = self.bounds_us.get(at).copied().unwrap_or(u64::MAX);
            fitted[bounds_us.partition_point(|bound| *bound < upper)] += count;
        }
        fitted
    }
}

/// Sends reports. The control plane says which latency bounds it wants, so the first call only asks for them.
#[derive(Debug)]
pub struct Reporter {
    client: ObserveClient<Channel>,
    source: Source,
    bounds_us: Option<Vec<u64>>,
}

impl Reporter {
    pub fn new(control: Channel, source: Source) -> Self {
        Self {
            client: ObserveClient::new(control),
            source,
            bounds_us: None,
        }
    }

    /// Delivers one report.
    ///
    /// # Errors
    /// [`ReportError`]: nothing of it may be counted as delivered.
    pub async fn send(&mut self, report: &Report) -> Result<(), ReportError> {
        if self.bounds_us.is_none() {
            let hello = Report {
                edges: Vec::new(),
                refused: Vec::new(),
                reached: Vec::new(),
                lanes: Vec::new(),
                comparisons: Vec::new(),
                interval: Duration::ZERO,
                ..report.clone()
            };
            self.call(&hello, &[]).await?;
        }
        let bounds = self.bounds_us.take().unwrap_or_default();
        self.call(report, &bounds).await
    }

    async fn call(&mut self, report: &Report, bounds_us: &[u64]) -> Result<(), ReportError> {
        let request = self.encode(report, bounds_us);
        let answer = timeout(CALL_TIMEOUT, self.client.report(request))
            .await
            .map_err(|_| ReportError::Timeout)??;
        let bounds = answer.into_inner().bounds_us;
        if bounds.len() > BOUNDS_MAX || !bounds.is_sorted() {
            return Err(ReportError::Bounds);
        }
        self.bounds_us = Some(bounds);
        Ok(())
    }

    fn encode(&self, report: &Report, bounds_us: &[u64]) -> wire::ReportRequest {
        let Source {
            node,
            namespace,
            service,
            version,
        } = self.source.clone();
        wire::ReportRequest {
            node,
            namespace,
            service,
            version,
            interval_ms: report.interval.as_millis() as u64,
            edges: report
                .edges
                .iter()
                .map(|edge| edge_to_wire(edge, bounds_us))
                .collect(),
            memory_bytes: report.memory_bytes,
            config_revision: report.config_revision,
            refused: texts(&report.refused),
            reached: texts(&report.reached),
            lanes: report.lanes.iter().map(lane_to_wire).collect(),
            comparisons: report.comparisons.iter().map(compared_to_wire).collect(),
        }
    }
}

fn compared_to_wire(compared: &Compared) -> wire::Comparison {
    let samples = compared.samples.iter().map(|sample| wire::ComparedSample {
        time_ms: sample.time_ms,
        path: sample.path.clone(),
        differences: sample
            .differences
            .iter()
            .map(|found| wire::ComparedDifference {
                kind: found.kind.clone(),
                at: found.at.clone(),
                original: found.original.clone(),
                copy: found.copy.clone(),
            })
            .collect(),
    });
    wire::Comparison {
        rule: compared.rule.clone(),
        mirror: compared.mirror.clone(),
        compared: compared.compared,
        different: compared.different,
        unanswered: compared.unanswered,
        status: compared.status,
        header: compared.header,
        body: compared.body,
        original_us: compared.original_us,
        copy_us: compared.copy_us,
        samples: samples.collect(),
    }
}

fn lane_to_wire(lane: &Lane) -> wire::Lane {
    wire::Lane {
        colour: lane.colour.clone(),
        destination_namespace: lane.destination_namespace.clone(),
        destination_service: lane.destination_service.clone(),
        lane: lane.lane,
        baseline: lane.baseline,
        nobody: lane.nobody,
    }
}

fn texts(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(SocketAddr::to_string).collect()
}

fn edge_to_wire(edge: &Edge, bounds_us: &[u64]) -> wire::Edge {
    let reasons = edge
        .reasons
        .iter()
        .map(|(reason, count)| wire::ReasonCount {
            reason: reason.clone(),
            count: *count,
        });
    wire::Edge {
        destination_namespace: edge.destination_namespace.clone(),
        destination_service: edge.destination_service.clone(),
        destination_port: edge.destination_port.into(),
        destination_version: edge.destination_version.clone(),
        protocol: edge.protocol.clone(),
        requests: edge.requests,
        failures: edge.failures,
        attempts: edge.attempts,
        connect_failures: edge.connect_failures,
        latency_buckets: edge.latency.fit(bounds_us),
        ejections: edge.ejections,
        retries: edge.retries,
        reasons: reasons.collect(),
        tcp_bytes: edge.tcp_bytes,
        abandoned: edge.abandoned,
        in_lane: edge.in_lane,
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("the control plane took no report")]
    Call(#[source] Box<Status>),
    #[error("the control plane did not answer a report in time")]
    Timeout,
    #[error(
        "the control plane asked for latency bounds that are unsorted or more than {BOUNDS_MAX}"
    )]
    Bounds,
}

impl From<Status> for ReportError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bounds_keep_counts() {
        let buckets = Buckets {
            bounds_us: vec![100, 200],
            counts: vec![1, 2, 3],
        };
        assert_eq!(buckets.fit(&[100, 200]), [1, 2, 3]);
    }

    #[test]
    fn other_bounds_never_make_latency_look_better() {
        let buckets = Buckets {
            bounds_us: vec![100, 200, 400],
            counts: vec![1, 2, 3, 4],
        };
        assert_eq!(buckets.fit(&[150, 400]), [1, 5, 4]);
        assert_eq!(buckets.fit(&[50]), [0, 10]);
        assert_eq!(buckets.fit(&[]), [10]);
        assert_eq!(Buckets::default().fit(&[1]), [0, 0]);
    }
}
