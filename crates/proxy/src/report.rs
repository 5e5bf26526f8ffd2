//! Telling the control plane once a second what was counted since it last heard of us. What could not be delivered is
//! part of the next report, so nothing is lost while the control plane is away, and nothing is queued either.

mod compared;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use phalanx_client::observe::{Buckets, Edge, Lane, Report, ReportError, Reporter};
use phalanx_model::name::{ClusterName, Direction};
use phalanx_telemetry::metrics::{Counter, Exposition};
use phalanx_telemetry::process;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::debug;

use crate::account::colours::LaneTotals;
use crate::account::{Account, BOUNDS_US, EdgeKey, EdgeTotals};
use crate::discovery::Known;
use crate::lasting::Lasting;

pub const INTERVAL: Duration = Duration::from_secs(1);

/// How reporting itself goes.
#[derive(Debug)]
pub struct Reports {
    delivered: Counter,
    failed: Counter,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            delivered: Counter::new("phalanx_reports_total", "Reports the control plane took."),
            failed: Counter::new(
                "phalanx_report_failures_total",
                "Reports it did not; their counts are in the next one.",
            ),
        }
    }
}

impl Reports {
    pub fn write(&self, out: &mut Exposition) {
        self.delivered.write(out);
        self.failed.write(out);
    }
}

/// Reports until dropped or told to [`Reporting::finish`].
#[derive(Debug)]
pub struct Reporting {
    finish: Arc<tokio::sync::Notify>,
    task: JoinHandle<()>,
}

impl Reporting {
    pub fn spawn(
        reporter: Reporter,
        account: Arc<Account>,
        known: Arc<Known>,
        reports: Arc<Reports>,
        lasting: &Lasting,
    ) -> Self {
        let finish = Arc::new(tokio::sync::Notify::new());
        let sender = Sender {
            reporter,
            account,
            known,
            reports,
            delivered: BTreeMap::new(),
            lanes: BTreeMap::new(),
            compared: compared::Delivered::new(),
            since: Instant::now(),
        };
        let task = tokio::spawn(lasting.guard("reports", sender.run(finish.clone())));
        Self { finish, task }
    }

    /// Sends one last report and ends; bounded by the reporter's own timeout.
    pub async fn finish(mut self) {
        self.finish.notify_one();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Sender {
    reporter: Reporter,
    account: Arc<Account>,
    known: Arc<Known>,
    reports: Arc<Reports>,
    /// The totals that the control plane has.
    delivered: BTreeMap<EdgeKey, EdgeTotals>,
    /// Of lanes, likewise.
    lanes: BTreeMap<ClusterName, LaneTotals>,
    /// Of answers compared, likewise.
    compared: compared::Delivered,
    /// When they were collected.
    since: Instant,
}

impl Sender {
    async fn run(mut self, finish: Arc<tokio::sync::Notify>) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                _ = ticks.tick() => false,
                () = finish.notified() => true,
            };
            match self.send().await {
                Ok(()) => self.reports.delivered.add(1),
                Err(error) => {
                    debug!(%error, "report not delivered");
                    self.reports.failed.add(1);
                }
            }
            if last {
                return;
            }
        }
    }

    async fn send(&mut self) -> Result<(), ReportError> {
        let now = Instant::now();
        // A caller counts: what comes in is told by the sidecars it comes from.
        let outbound = |totals: &EdgeTotals| totals.key.direction == Direction::Outbound;
        let totals: Vec<EdgeTotals> = self
            .account
            .collect_merged()
            .into_iter()
            .filter(outbound)
            .collect();
        let lanes: BTreeMap<_, _> = self.account.colours().lanes().into_iter().collect();
        let comparisons = self.account.comparisons().all();
        let (refused, reached) = self.account.witness().take();
        let report = Report {
            refused,
            reached,
            interval: now - self.since,
            edges: totals
                .iter()
                .filter_map(|totals| delta(totals, self.delivered.get(&totals.key)))
                .collect(),
            memory_bytes: process::resident_bytes().unwrap_or_default(),
            config_revision: self.known.revision(),
            lanes: lanes
                .iter()
                .filter_map(|(name, totals)| lane(name, *totals, self.lanes.get(name)))
                .collect(),
            comparisons: comparisons
                .iter()
                .filter_map(|all| compared::since(all, &self.compared))
                .collect(),
        };
        if let Err(error) = self.reporter.send(&report).await {
            let witness = self.account.witness();
            witness.put_back(&report.refused, &report.reached);
            return Err(error);
        }
        self.since = now;
        self.lanes = lanes;
        self.compared = compared::totals(&comparisons);
        self.delivered = totals
            .into_iter()
            .map(|totals| (totals.key.clone(), totals))
            .collect();
        Ok(())
    }
}

/// What was counted after `before`, of one lane; none when nothing was.
fn lane(name: &ClusterName, now: LaneTotals, before: Option<&LaneTotals>) -> Option<Lane> {
    let before = before.copied().unwrap_or_default();
    (now != before).then(|| Lane {
        colour: name.lane.clone().unwrap_or_default(),
        destination_namespace: name.service.namespace.clone(),
        destination_service: name.service.name.clone(),
        lane: now.lane.saturating_sub(before.lane),
        baseline: now.baseline.saturating_sub(before.baseline),
        nobody: now.nobody.saturating_sub(before.nobody),
    })
}

/// What was counted after `before`; none when nothing was.
fn delta(now: &EdgeTotals, before: Option<&EdgeTotals>) -> Option<Edge> {
    if before == Some(now) {
        return None;
    }
    let Some(cluster) = &now.key.cluster else {
        return unrouted(now, before);
    };
    let since = |count: fn(&EdgeTotals) -> u64| count(now).saturating_sub(before.map_or(0, count));
    let reasons = now.reasons.iter().map(|(reason, count)| {
        let earlier =
            before.and_then(|before| before.reasons.iter().find(|(other, _)| other == reason));
        (
            reason.as_str().to_owned(),
            count - earlier.map_or(0, |(_, count)| *count).min(*count),
        )
    });
    let earlier = |at: usize| {
        before
            .and_then(|before| before.durations.counts.get(at))
            .copied()
            .unwrap_or_default()
    };
    let counts = now
        .durations
        .counts
        .iter()
        .enumerate()
        .map(|(at, count)| count.saturating_sub(earlier(at)));
    Some(Edge {
        destination_namespace: cluster.service.namespace.clone(),
        destination_service: cluster.service.name.clone(),
        destination_port: cluster.port,
        destination_version: now.key.version.clone(),
        protocol: now.key.traffic.as_str().to_owned(),
        requests: since(|totals| totals.requests() + totals.tcp_opened),
        failures: since(EdgeTotals::failures),
        attempts: since(|totals| totals.attempts),
        retries: since(|totals| totals.retries),
        connect_failures: since(|totals| totals.connect_failures),
        ejections: since(|totals| totals.ejections),
        reasons: reasons.filter(|(_, count)| *count > 0).collect(),
        abandoned: since(|totals| totals.abandoned),
        in_lane: now.key.in_lane,
        tcp_bytes: since(|totals| totals.tcp_sent_bytes + totals.tcp_received_bytes),
        latency: Buckets {
            bounds_us: BOUNDS_US.to_vec(),
            counts: counts.collect(),
        },
    })
}

/// Requests that led nowhere: without a destination, and a failure when the proxy itself had to say why (no route, a
/// backend that does not exist), which a redirect is not.
fn unrouted(now: &EdgeTotals, before: Option<&EdgeTotals>) -> Option<Edge> {
    let refused = |totals: &EdgeTotals| totals.reasons.iter().map(|(_, count)| count).sum::<u64>();
    let since =
        |count: &dyn Fn(&EdgeTotals) -> u64| count(now).saturating_sub(before.map_or(0, count));
    let requests = since(&EdgeTotals::requests);
    (requests > 0).then(|| Edge {
        protocol: now.key.traffic.as_str().to_owned(),
        requests,
        failures: since(&refused).min(requests),
        ..Edge::default()
    })
}

#[cfg(test)]
mod tests {
    use phalanx_model::ServiceName;
    use phalanx_model::reason::Reason;

    use super::*;
    use crate::account::{Ending, Traffic};

    #[test]
    fn only_what_was_counted_since_is_reported() {
        let account = Account::new(1);
        let cluster = Some(ClusterName::outbound(
            ServiceName::new("default", "battle"),
            9000,
        ));
        let key = EdgeKey {
            direction: Direction::Outbound,
            cluster,
            version: "v2".into(),
            traffic: Traffic::Http,
            security: Default::default(),
            in_lane: false,
        };
        let edge = account.edge(key);
        let end = |status, reason, duration_us| {
            edge.cell(0).attempt(false);
            edge.cell(0).end(&Ending {
                status,
                grpc_status: None,
                reason,
                duration_us,
            });
        };
        end(200, None, 700);
        end(503, Some(Reason::ConnectFailed), 90);
        edge.cell(0).abandoned();
        let all = delta(&account.collect().remove(0), None).unwrap();
        assert_eq!((all.abandoned, all.in_lane), (1, false));
        assert_eq!(
            (
                all.destination_service.as_str(),
                all.destination_port,
                all.destination_version.as_str()
            ),
            ("battle", 9000, "v2")
        );
        assert_eq!((all.requests, all.failures, all.attempts), (2, 1, 2));
        assert_eq!(all.reasons, [("connect_failed".to_owned(), 1)]);
        let first = account.collect().remove(0);
        assert_eq!(delta(&first, Some(&first)), None);

        end(200, None, 70_000_000);
        let more = delta(&account.collect().remove(0), Some(&first)).unwrap();
        assert_eq!(
            (more.requests, more.failures, more.reasons.len()),
            (1, 0, 0)
        );
        assert_eq!(more.latency.fit(&[1_000, 1_000_000]), [0, 0, 1]);
    }
}
