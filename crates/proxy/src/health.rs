//! Checking other endpoints on behalf of the control plane: over health discovery it tells a few of us which, and hears what
//! we found, once per interval and whenever something changed. Our own application is not checked here but in
//! [`crate::register`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_client::backoff::Backoff;
use phalanx_client::health::{Checker, Finding, State, Target};
use phalanx_pki::identity::Identity;
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::health::v3 as wire;
use phalanx_proto::envoy::service::health::v3::health_discovery_service_client::HealthDiscoveryServiceClient;
use phalanx_telemetry::metrics::{Counter, Exposition, Family};
use phalanx_xds::hds::{self, Group};
use tokio::sync::watch::Receiver;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{debug, warn};

use crate::lasting::Lasting;

/// Name of the group and address.
type Key = (String, SocketAddr);

/// How the checks go; for the metrics.
#[derive(Debug)]
pub struct Checks {
    state: Mutex<Known>,
    news: Notify,
    asked: Counter,
    refused: Counter,
}

#[derive(Debug, Default)]
struct Known {
    /// What we were told to check.
    targets: BTreeMap<Key, Target>,
    /// Of each target that was asked often enough.
    found: BTreeMap<Key, Finding>,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            news: Notify::new(),
            asked: Counter::new(
                "phalanx_health_questions_total",
                "Health questions to endpoints of others that were answered, or not in time.",
            ),
            refused: Counter::new(
                "phalanx_health_refusals_total",
                "Specifiers of the control plane that ask for something we can't check.",
            ),
        }
    }
}

const TARGETS: Family = Family::gauge(
    "phalanx_health_targets",
    "Endpoints of others that the control plane told us to check.",
);
const UNHEALTHY: Family = Family::gauge(
    "phalanx_health_unhealthy",
    "Of them, those that are unhealthy as we see it.",
);

impl Checks {
    pub fn write(&self, out: &mut Exposition) {
        let (targets, unhealthy) = {
            let known = self.state();
            let unhealthy = known.found.values().filter(|f| f.state == State::Unhealthy);
            (known.targets.len(), unhealthy.count())
        };
        out.family(&TARGETS).sample(&[], targets as u64);
        out.family(&UNHEALTHY).sample(&[], unhealthy as u64);
        self.asked.write(out);
        self.refused.write(out);
    }

    fn found(&self, key: &Key, finding: Finding) {
        self.asked.add(1);
        if finding.state == State::Unknown {
            return;
        }
        let is_transition = finding.is_transition;
        let mut known = self.state();
        if known.targets.contains_key(key) {
            known.found.insert(key.clone(), finding);
        }
        drop(known);
        if is_transition {
            self.news.notify_one();
        }
    }

    /// Takes what we are told now; what stays keeps what was found.
    fn set(&self, groups: Vec<Group>) -> BTreeMap<Key, Target> {
        let targets: BTreeMap<Key, Target> = groups.into_iter().flat_map(targets).collect();
        let mut known = self.state();
        let Known {
            targets: before,
            found,
        } = &mut *known;
        found.retain(|key, _| targets.contains_key(key) && before.get(key) == targets.get(key));
        *before = targets.clone();
        targets
    }

    fn is_busy(&self) -> bool {
        !self.state().targets.is_empty()
    }

    /// What there is to say, none while there is nothing.
    fn report(&self) -> Option<wire::HealthCheckRequestOrEndpointHealthResponse> {
        let known = self.state();
        let lines = known.found.iter().map(|((name, address), finding)| {
            let state = match finding.state {
                State::Unhealthy => Err(finding.reason.as_str()),
                State::Healthy | State::Unknown => Ok(()),
            };
            (name.as_str(), *address, state)
        });
        (!known.found.is_empty()).then(|| hds::report(lines))
    }

    fn state(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn targets(group: Group) -> impl Iterator<Item = (Key, Target)> {
    let Group {
        name,
        check,
        authority,
        port,
        http2,
        tls,
        endpoints,
    } = group;
    endpoints.into_iter().map(move |(address, _)| {
        let target = Target {
            address,
            check: check.clone(),
            authority: authority.clone(),
            port,
            http2,
            tls: tls.clone(),
            before: State::Unknown,
        };
        ((name.clone(), address), target)
    })
}

/// Offers to check, until dropped.
#[derive(Debug)]
pub struct HealthChecks {
    checks: Arc<Checks>,
    task: JoinHandle<()>,
}

impl HealthChecks {
    /// Begins once `complete` says that there is a configuration: what an application needs comes first. `identity` is
    /// shown to endpoints that are asked over mutual TLS.
    pub fn spawn(
        control: Channel,
        node: Node,
        identity: Option<Arc<Identity>>,
        complete: Receiver<bool>,
        lasting: &Lasting,
    ) -> Self {
        let checks = Arc::new(Checks::default());
        let offering = offer(control, node, identity, complete, checks.clone());
        let task = tokio::spawn(lasting.guard("health checks", offering));
        Self { checks, task }
    }

    pub fn checks(&self) -> &Arc<Checks> {
        &self.checks
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn offer(
    control: Channel,
    node: Node,
    identity: Option<Arc<Identity>>,
    mut complete: Receiver<bool>,
    checks: Arc<Checks>,
) {
    if complete.wait_for(|complete| *complete).await.is_err() {
        return;
    }
    let found = checks.clone();
    let checker = Checker::spawn(QUESTIONS_MAX, identity, move |key: &Key, finding| {
        found.found(key, finding)
    });
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    loop {
        let ended = stream(&control, &node, &checks, &checker).await;
        // Without a stream nobody wants to know.
        checker.set(checks.set(Vec::new()));
        match ended {
            Ok(()) => backoff.reset(),
            Err(status)
                if matches!(status.code(), Code::Unimplemented | Code::ResourceExhausted) =>
            {
                debug!(%status, "the control plane wants no health checks of us");
                sleep(UNWANTED_PAUSE).await;
            }
            Err(status) => debug!(%status, "no stream for health checks"),
        }
        sleep(backoff.wait()).await;
    }
}

/// One stream, until it ends.
async fn stream(
    control: &Channel,
    node: &Node,
    checks: &Checks,
    checker: &Checker<Key>,
) -> Result<(), Status> {
    let (reports, outbound) = mpsc::channel(REPORTS_MAX);
    // There is room for the first.
    let _ = reports.try_send(hds::introduction(node.clone()));
    let mut client = HealthDiscoveryServiceClient::new(control.clone());
    let answer = client
        .stream_health_check(ReceiverStream::new(outbound))
        .await?;
    let mut inbound = answer.into_inner();
    let mut ticks = every(REPORT_INTERVAL);
    let mut next = Instant::now();
    loop {
        let is_due = tokio::select! {
            message = inbound.message() => {
                let Some(specifier) = message? else {
                    return Ok(());
                };
                match hds::groups(specifier) {
                    Ok((groups, interval)) => {
                        ticks = every(interval.max(REPORT_INTERVAL_MIN));
                        checker.set(checks.set(groups));
                    }
                    Err(error) => {
                        checks.refused.add(1);
                        warn!(%error, "told to check something that can't be checked; checking as before");
                    }
                }
                false
            }
            // Where everything fails at once, news come faster than anybody wants to hear of them.
            () = async { sleep_until(next).await; checks.news.notified().await } => true,
            // An idle sidecar does not wake for it.
            _ = ticks.tick(), if checks.is_busy() => true,
        };
        if let Some(report) = is_due.then(|| checks.report()).flatten() {
            next = Instant::now() + REPORT_INTERVAL_MIN;
            // Where the last is not gone yet, the next says the same or newer.
            let _ = reports.try_send(report);
        }
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Questions at once.
const QUESTIONS_MAX: usize = 16;
/// Reports that wait for the socket.
const REPORTS_MAX: usize = 1;
/// Until the control plane says another.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
const REPORT_INTERVAL_MIN: Duration = Duration::from_millis(100);
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// After the control plane said that it has enough of us, or knows nothing of it.
const UNWANTED_PAUSE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests;
