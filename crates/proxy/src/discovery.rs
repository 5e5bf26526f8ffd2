//! Where configuration comes in: one delta ADS stream drives the state machine of room `xds`; what can be taken becomes
//! the next plan, swapped in as a whole before it is acknowledged. When the control plane is gone, the last plan stays.

mod configuration;
mod node;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use phalanx_client::backoff::Backoff;
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use phalanx_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use phalanx_telemetry::metrics::{Counter, Exposition, Family, Gauge};
use phalanx_xds::Kind;
use phalanx_xds::client::Client;
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::account::Account;
use crate::plan::{Bootstrap, Plan};

pub use configuration::{Configuration, Held, Refused};
pub use node::node;

/// Waits between attempts to open the stream.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(5);
/// A stream that lasted this long starts the waits over; one that breaks at once, again and again, does not.
const STABLE: Duration = Duration::from_secs(1);
/// Until the control plane answers the call at all.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Until it takes a request off our hands; after that the stream is no good.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests on their way out.
const REQUESTS_MAX: usize = 64;
/// Of one response; a larger one ends the stream.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The stream's task and what it learnt. Dropping it ends the task.
pub struct Discovery {
    known: Arc<Known>,
    connected: Receiver<bool>,
    complete: Receiver<bool>,
    retry: Arc<Notify>,
    task: JoinHandle<()>,
}

/// What others may look at: pages and reports.
pub struct Known {
    /// Written by the stream's task, read by admin pages; held for a few lines, never across an await.
    configuration: Mutex<Configuration>,
    /// The `system_version_info` of the last response, when that is a number: the store's revision.
    revision: AtomicU64,
    connected: Gauge,
    connects: Counter,
    losses: Counter,
    updates: [AtomicU64; Kind::ALL.len()],
    refusals: [AtomicU64; Kind::ALL.len()],
}

const UPDATES: Family = Family::counter(
    "phalanx_xds_updates_total",
    "Responses taken from the control plane, by kind.",
);
const REFUSALS: Family = Family::counter(
    "phalanx_xds_refused_total",
    "Resources refused (NACK), by kind.",
);
const RESOURCES: Family = Family::gauge("phalanx_xds_resources", "Resources in use, by kind.");
const REVISION: Family = Family::gauge(
    "phalanx_config_revision",
    "Revision of the store that the last response came from.",
);

impl Discovery {
    /// Connects and goes on until dropped; every configuration lands in `plan`.
    pub fn spawn(
        control: Channel,
        node: Node,
        bootstrap: Bootstrap,
        plan: Arc<ArcSwap<Plan>>,
        account: Arc<Account>,
    ) -> Self {
        let known = Arc::new(Known::default());
        let retry = Arc::new(Notify::new());
        let (connected_sender, connected) = channel(false);
        let (complete_sender, complete) = channel(false);
        let ads = AggregatedDiscoveryServiceClient::new(control)
            .max_decoding_message_size(RESPONSE_BYTES_MAX);
        let stream = Stream {
            ads,
            client: Client::new(node),
            bootstrap,
            plan,
            account,
            known: known.clone(),
            connected: connected_sender,
            complete: complete_sender,
            backoff: Backoff::new(RECONNECT_MIN, RECONNECT_MAX),
        };
        let task = tokio::spawn(stream.run(retry.clone()));
        Self {
            known,
            connected,
            complete,
            retry,
            task,
        }
    }

    pub fn known(&self) -> &Arc<Known> {
        &self.known
    }

    /// Whether a stream is open.
    pub fn connected(&self) -> Receiver<bool> {
        self.connected.clone()
    }

    /// Whether there is a configuration to serve by; once true, it stays so.
    pub fn complete(&self) -> Receiver<bool> {
        self.complete.clone()
    }

    /// Cuts the wait between attempts short, by whoever notifies it: someone heard from the control plane.
    pub fn retry(&self) -> Arc<Notify> {
        self.retry.clone()
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Default for Known {
    fn default() -> Self {
        Self {
            configuration: Mutex::default(),
            revision: AtomicU64::new(0),
            connected: Gauge::new(
                "phalanx_xds_connected",
                "Whether a discovery stream is open.",
            ),
            connects: Counter::new("phalanx_xds_connects_total", "Discovery streams opened."),
            losses: Counter::new(
                "phalanx_xds_losses_total",
                "Discovery streams that ended or could not be opened.",
            ),
            updates: Default::default(),
            refusals: Default::default(),
        }
    }
}

impl Known {
    pub fn configuration(&self) -> MutexGuard<'_, Configuration> {
        self.configuration
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// 0 when not known.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    pub fn is_connected(&self) -> bool {
        self.connected.value() == 1
    }

    pub fn write(&self, out: &mut Exposition) {
        self.connected.write(out);
        self.connects.write(out);
        self.losses.write(out);
        for (family, counts) in [(UPDATES, &self.updates), (REFUSALS, &self.refusals)] {
            let mut samples = out.family(&family);
            for (kind, count) in Kind::ALL.iter().zip(counts) {
                samples.sample(&[("kind", kind.as_str())], count.load(Ordering::Relaxed));
            }
        }
        let configuration = self.configuration();
        let mut samples = out.family(&RESOURCES);
        for kind in Kind::ALL {
            let count = configuration
                .held()
                .keys()
                .filter(|(of, _)| *of == kind)
                .count();
            samples.sample(&[("kind", kind.as_str())], count as u64);
        }
        out.family(&REVISION).sample(&[], self.revision());
    }
}

struct Stream {
    ads: AggregatedDiscoveryServiceClient<Channel>,
    client: Client,
    bootstrap: Bootstrap,
    plan: Arc<ArcSwap<Plan>>,
    account: Arc<Account>,
    known: Arc<Known>,
    connected: Sender<bool>,
    complete: Sender<bool>,
    backoff: Backoff,
}

impl Stream {
    async fn run(mut self, retry: Arc<Notify>) {
        let mut warned = false;
        loop {
            let start = Instant::now();
            let outcome = self.session().await;
            let was_open = self.set_connected(false);
            if was_open && start.elapsed() >= STABLE {
                self.backoff.reset();
            }
            self.known.losses.add(1);
            let error = match &outcome {
                Ok(()) => "the control plane ended it",
                Err(error) => error.message(),
            };
            if was_open {
                info!(
                    error,
                    "discovery stream lost, serving by the last configuration"
                );
            } else if !warned {
                warn!(error, "the control plane can't be reached, trying again");
            }
            warned = !was_open;
            tokio::select! {
                () = sleep(self.backoff.wait()) => {}
                () = retry.notified() => self.backoff.reset(),
            }
        }
    }

    /// One stream from its opening to its end.
    async fn session(&mut self) -> Result<(), Status> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let opening = self.client.connect();
        send(&requests, opening).await?;
        let call = self
            .ads
            .delta_aggregated_resources(ReceiverStream::new(outgoing));
        let mut responses = timeout(OPEN_TIMEOUT, call)
            .await
            .map_err(late)??
            .into_inner();
        self.set_connected(true);
        self.known.connects.add(1);
        info!("discovery stream open");
        while let Some(response) = responses.message().await? {
            let answers = self.take(response)?;
            send(&requests, answers).await?;
        }
        Ok(())
    }

    /// Takes what can be taken, swaps the plan, and only then says so.
    fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Result<Vec<DeltaDiscoveryRequest>, Status> {
        let revision = response.system_version_info.parse().ok();
        let update = self
            .client
            .on_response(response)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let kind = update.kind;
        let (refusals, tables) = {
            let mut configuration = self.known.configuration();
            let refusals = configuration.apply(kind, update.upserts, &update.removed);
            let next = Plan::assemble(
                configuration.resources(),
                &self.bootstrap,
                &self.plan.load(),
                &self.account,
            );
            self.plan.store(Arc::new(next));
            if configuration.is_complete() {
                self.complete
                    .send_if_modified(|complete| !std::mem::replace(complete, true));
            }
            (refusals, configuration.tables_named())
        };
        if let Some(revision) = revision {
            self.known.revision.store(revision, Ordering::Relaxed);
        }
        count(&self.known.updates, kind, 1);
        count(&self.known.refusals, kind, refusals.len() as u64);
        for (name, message) in &refusals {
            warn!(%kind, name, message, "resource refused, the last good one stays in use");
        }
        let applied = if refusals.is_empty() {
            Ok(())
        } else {
            Err(refusals)
        };
        let mut requests = self.client.finish(update.token, applied);
        requests.extend(self.client.subscribe(Kind::Routes, tables));
        Ok(requests)
    }

    /// Returns what it was.
    fn set_connected(&self, connected: bool) -> bool {
        self.known.connected.set(connected.into());
        self.connected.send_replace(connected)
    }
}

fn count(counts: &[AtomicU64; Kind::ALL.len()], kind: Kind, more: u64) {
    if let Some(count) = counts.get(kind.index()) {
        count.fetch_add(more, Ordering::Relaxed);
    }
}

async fn send(
    requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    all: Vec<DeltaDiscoveryRequest>,
) -> Result<(), Status> {
    for request in all {
        let sent = timeout(SEND_TIMEOUT, requests.send(request))
            .await
            .map_err(late)?;
        sent.map_err(|_| Status::unavailable("the stream takes no more requests"))?;
    }
    Ok(())
}

fn late(_: tokio::time::error::Elapsed) -> Status {
    Status::deadline_exceeded("the control plane did not answer in time")
}
