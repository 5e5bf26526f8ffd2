//! Where configuration comes in: one delta ADS stream drives the state machine of room `xds`; what can be taken becomes
//! the next plan, swapped in as a whole before it is acknowledged. When the control plane is gone, the last plan stays.
//!
//! On demand, hosts are asked for when a request waits for one at the desk, and let go when none used them for long.

mod configuration;
mod node;
mod sessions;
mod usage;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use phalanx_client::backoff::Backoff;
use phalanx_client::session::SEAT_TYPE;
use phalanx_client::why::{is_joining, why};
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use phalanx_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use phalanx_telemetry::metrics::{Counter, Exposition, Family, Gauge};
use phalanx_xds::Kind;
use phalanx_xds::client::Client;
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;
use tracing::{info, warn};

use self::sessions::Followed;
use self::usage::Usage;
use crate::account::Account;
use crate::desk::Desk;
use crate::edge::Edge;
use crate::lasting::Lasting;
use crate::plan::{Bootstrap, Plan};
use crate::udp;

pub use configuration::{Again, Configuration, Held, Refused};
pub use node::{edge_node, node, with_udp};

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
/// Between attempts to serve what this machine could not.
const AGAIN: Duration = Duration::from_secs(1);
/// Hosts in one request.
const HOSTS_AT_ONCE: usize = 256;
/// Between looks for hosts that nobody uses, as a part of the time that they are kept; never longer than the second.
const LOOKS: u32 = 8;
const LOOK_MAX: Duration = Duration::from_secs(60);
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
    desk: Arc<Desk>,
    unused: Counter,
    crowded_out: Counter,
    /// The `system_version_info` of the last response, when that is a number: the store's revision.
    revision: AtomicU64,
    /// Why there is no stream; empty while there is one. Held for an instant.
    trouble: Mutex<String>,
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
const HELD: Family = Family::gauge(
    "phalanx_demand_held",
    "Hosts that are held because they were called, by whether there is such a host.",
);
const REVISION: Family = Family::gauge(
    "phalanx_config_revision",
    "Revision of the store that the last response came from.",
);

impl Discovery {
    /// Connects and goes on until dropped; every configuration lands in `plan`. Hosts that nobody called for `idle` are let
    /// go.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another's, and there is one caller"
    )]
    pub fn spawn(
        control: Channel,
        node: Node,
        bootstrap: Bootstrap,
        plan: Arc<ArcSwap<Plan>>,
        account: Arc<Account>,
        idle: Duration,
        edge: Option<Arc<Edge>>,
        datagrams: Arc<udp::Ports>,
        lasting: &Lasting,
    ) -> Self {
        let (desk, questions) = Desk::new();
        let known = Arc::new(Known {
            desk: desk.clone(),
            ..Known::default()
        });
        known.configuration().on_demand(desk);
        if let Some(edge) = edge {
            known.configuration().at_edge(edge);
        }
        known.configuration().with_datagrams(datagrams);
        let mut client = Client::new(node);
        // Raw TCP has no host to wait for: its clusters are wanted from the start.
        let tcp = bootstrap.tcp.iter().map(|(_, cluster)| cluster.to_string());
        client.change(Kind::Cluster, tcp.collect(), Vec::new());
        let retry = Arc::new(Notify::new());
        let (connected_sender, connected) = channel(false);
        let (complete_sender, complete) = channel(false);
        let ads = AggregatedDiscoveryServiceClient::new(control)
            .max_decoding_message_size(RESPONSE_BYTES_MAX);
        let stream = Stream {
            ads,
            client,
            questions,
            followed: Followed::new(known.configuration().resources().directory.clone()),
            usage: Usage::default(),
            prefix: None,
            idle,
            look_at: Instant::now() + look(idle),
            again_at: Instant::now() + AGAIN,
            bootstrap,
            plan,
            account,
            known: known.clone(),
            connected: connected_sender,
            complete: complete_sender,
            backoff: Backoff::new(RECONNECT_MIN, RECONNECT_MAX),
        };
        let task = tokio::spawn(lasting.guard("discovery", stream.run(retry.clone())));
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
            desk: Desk::new().0,
            unused: Counter::new(
                "phalanx_demand_unused_total",
                "Hosts let go because nobody used them.",
            ),
            crowded_out: Counter::new(
                "phalanx_demand_crowded_out_total",
                "Hosts let go because too many were called.",
            ),
            revision: AtomicU64::new(0),
            trouble: Mutex::default(),
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

    /// Why there is no stream; empty while there is one.
    pub fn trouble(&self) -> String {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lost(&self, why: &str) {
        let trouble = self.trouble.lock();
        why.clone_into(&mut trouble.unwrap_or_else(PoisonError::into_inner));
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
        self.desk.write(out);
        self.unused.write(out);
        self.crowded_out.write(out);
        let prefix = configuration.resources().demand_prefix();
        let tables = configuration.resources().tables.keys();
        let (none, found): (Vec<&String>, Vec<&String>) = tables
            .filter(|name| prefix.is_some_and(|prefix| name.starts_with(prefix)))
            .partition(|name| configuration.is_nothing(name));
        let mut samples = out.family(&HELD);
        samples.sample(&[("exists", "yes")], found.len() as u64);
        samples.sample(&[("exists", "no")], none.len() as u64);
        out.family(&REVISION).sample(&[], self.revision());
    }
}

struct Stream {
    ads: AggregatedDiscoveryServiceClient<Channel>,
    client: Client,
    /// Hosts that requests wait for.
    questions: mpsc::Receiver<Box<str>>,
    followed: Followed,
    /// By the names of their tables.
    usage: Usage,
    /// Before the authority in these names; none where the control plane sends everything.
    prefix: Option<String>,
    idle: Duration,
    /// When unused ones are looked for next.
    look_at: Instant,
    /// When what this machine could not serve is tried next, however much comes in meanwhile.
    again_at: Instant,
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
                Ok(()) => "the control plane ended it".to_owned(),
                Err(error) => why(error),
            };
            self.known.lost(&error);
            let joins = outcome.as_ref().is_err_and(is_joining);
            if was_open {
                info!(
                    error,
                    "discovery stream lost, serving by the last configuration"
                );
            } else if !warned && !joins {
                warn!(error, "the control plane can't be reached, trying again");
            }
            warned = !was_open && !joins;
            let until = Instant::now() + self.backoff.wait();
            loop {
                tokio::select! {
                    () = sleep_until(until) => break,
                    () = retry.notified() => {
                        self.backoff.reset();
                        break;
                    }
                    // Asked for with the next stream.
                    Some(host) = self.questions.recv() => drop(self.want(&host)),
                }
            }
        }
    }

    /// One stream from its opening to its end.
    async fn session(&mut self) -> Result<(), Status> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let mut opening = self.client.connect();
        opening.extend(self.followed.connect());
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
        self.known.lost("");
        info!("discovery stream open");
        loop {
            let more = tokio::select! {
                response = responses.message() => match response? {
                    Some(response) => self.take(response)?,
                    None => return Ok(()),
                },
                Some(host) = self.questions.recv() => self.want(&host).into_iter().collect(),
                () = sleep_until(self.look_at) => self.look().into_iter().collect(),
                () = sleep_until(self.again_at), if self.known.configuration().has_to_look() => {
                    self.again_at = Instant::now() + AGAIN;
                    self.again()?;
                    Vec::new()
                }
            };
            send(&requests, more).await?;
        }
    }

    /// Takes what can be taken, swaps the plan, and only then says so.
    fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Result<Vec<DeltaDiscoveryRequest>, Status> {
        if response.type_url == SEAT_TYPE {
            return self.seat(response);
        }
        let revision = response.system_version_info.parse().ok();
        let update = self
            .client
            .on_response(response)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let kind = update.kind;
        let refusals = {
            let mut configuration = self.known.configuration();
            let refusals = configuration.apply(kind, update.upserts, &update.removed);
            self.swap(&configuration);
            self.tell_complete(&configuration);
            refusals
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
        if kind == Kind::Listener {
            requests.extend(self.follow());
        }
        if matches!(kind, Kind::Cluster | Kind::Listener) {
            requests.extend(self.seats());
        }
        Ok(requests)
    }

    /// Asks for the sessions of the services that they are looked for in.
    fn seats(&mut self) -> Option<DeltaDiscoveryRequest> {
        let services = self.known.configuration().resources().directories();
        self.followed.want(&services)
    }

    /// Takes sessions, which are in force at once.
    fn seat(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Result<Vec<DeltaDiscoveryRequest>, Status> {
        let (answer, is_filled) = self
            .followed
            .on_response(response)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        if is_filled {
            self.known.desk.planned();
            self.tell_complete(&self.known.configuration());
        }
        Ok(vec![answer])
    }

    /// Tries what this machine could not serve. A control plane that was told so hears the contrary with a new stream only.
    fn again(&mut self) -> Result<(), Status> {
        let Again { taken, lost } = {
            let mut configuration = self.known.configuration();
            let again = configuration.again();
            if again != Again::default() {
                self.swap(&configuration);
                self.tell_complete(&configuration);
            }
            again
        };
        let told = match (taken.is_empty(), lost.is_empty()) {
            (true, true) => return Ok(()),
            (false, true) => "what was refused is in force now, to be told anew",
            (_, false) => "what was in force is refused now, to be told anew",
        };
        for (name, version) in taken {
            info!(name, "a listener that was refused is open now");
            self.client.took(Kind::Listener, name, version);
        }
        for (name, message) in lost {
            warn!(name, message, "a listener can't be served after all");
            self.client.lost(Kind::Listener, &name);
        }
        drop((self.follow(), self.seats())); // asked for with the next stream
        Err(Status::aborted(told))
    }

    fn tell_complete(&self, configuration: &Configuration) {
        if configuration.is_complete() && self.plan.load().is_seated() {
            self.complete
                .send_if_modified(|complete| !std::mem::replace(complete, true));
        }
    }

    fn swap(&self, configuration: &Configuration) {
        let next = Plan::assemble(
            configuration.resources(),
            &self.bootstrap,
            &self.plan.load(),
            &self.account,
        );
        let has_datagrams = !next.udp.is_empty() || !self.plan.load().udp.is_empty();
        self.plan.store(Arc::new(next));
        self.known.desk.planned();
        if has_datagrams {
            self.account.datagrams().planned();
        }
    }

    /// Asks for the tables that listeners name, or from now on for hosts, as the listener says.
    fn follow(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let (prefix, tables) = {
            let configuration = self.known.configuration();
            let prefix = configuration.resources().demand_prefix();
            (prefix.map(str::to_owned), configuration.tables_named())
        };
        let endpoints = self.client.set_demand(prefix.is_some());
        let routes = if prefix.is_none() || prefix != self.prefix {
            self.usage.clear();
            self.client.subscribe(Kind::Routes, tables)
        } else {
            None
        };
        self.prefix = prefix;
        endpoints.into_iter().chain(routes).collect()
    }

    /// Asks for a host, and for those that others wait for already.
    fn want(&mut self, host: &str) -> Option<DeltaDiscoveryRequest> {
        // None: there was another listener in the meantime, with a table of all hosts.
        let prefix = self.prefix.as_deref()?;
        let now = Instant::now();
        let mut added = Vec::new();
        let mut next = Some(format!("{prefix}{host}"));
        while let Some(table) = next.take() {
            if self.usage.want(&table, now) {
                added.push(table);
            }
            if added.len() < HOSTS_AT_ONCE {
                let more = self.questions.try_recv().ok();
                next = more.map(|host| format!("{prefix}{host}"));
            }
        }
        let gone = {
            let configuration = self.known.configuration();
            if self.usage.is_full() {
                self.usage.note(now, |table| configuration.take_used(table));
            }
            self.usage.shrink(|table| configuration.is_nothing(table))
        };
        self.known.crowded_out.add(gone.len() as u64);
        self.forget(&gone);
        self.client.change(Kind::Routes, added, gone)
    }

    /// Lets go of hosts that nobody uses.
    fn look(&mut self) -> Option<DeltaDiscoveryRequest> {
        let now = Instant::now();
        self.look_at = now + look(self.idle);
        let gone = {
            let configuration = self.known.configuration();
            self.usage.note(now, |table| configuration.take_used(table));
            self.usage.expire(now, self.idle)
        };
        self.known.unused.add(gone.len() as u64);
        self.forget(&gone);
        self.client.change(Kind::Routes, Vec::new(), gone)
    }

    fn forget(&mut self, tables: &[String]) {
        if !tables.is_empty() {
            let mut configuration = self.known.configuration();
            configuration.forget(tables);
            self.swap(&configuration);
        }
    }

    /// Returns what it was.
    fn set_connected(&self, connected: bool) -> bool {
        self.known.desk.set_connected(connected);
        self.known.connected.set(connected.into());
        self.connected.send_replace(connected)
    }
}

impl Drop for Stream {
    /// Whatever ended it, a defect included: nobody takes what is held for the latest.
    fn drop(&mut self) {
        self.set_connected(false);
        self.known.lost("discovery has ended");
    }
}

fn count(counts: &[AtomicU64; Kind::ALL.len()], kind: Kind, more: u64) {
    if let Some(count) = counts.get(kind.index()) {
        count.fetch_add(more, Ordering::Relaxed);
    }
}

fn look(idle: Duration) -> Duration {
    (idle / LOOKS).clamp(Duration::from_millis(10), LOOK_MAX)
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
