//! The registry: instances announce themselves over gRPC, beat, leave, and are followed by others.
//!
//! Heartbeats touch only [`leases`] in memory; a transaction is written when content changes. Readers are served from the
//! world, so what a watcher sees is what is stored. How an instance travels is `client::registry`'s business.

mod agree;
mod beats;
mod evidence;
mod inquire;
pub mod leases;
mod operate;
mod revoked;
mod watch;
mod writer;

use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_client::registry::{from_wire, id_from_wire, state_from_wire};
use phalanx_model::instance::State;
use phalanx_model::{InstanceId, ServiceName};
use phalanx_proto::phalanx::registry::v1 as wire;
use phalanx_store::{Error, Revision, Store};
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::agree::Agreed;
use self::evidence::Evidence;
use self::leases::{LeaseError, LeaseState, Leases, TICK_MS, TtlBounds};
use self::revoked::Revoked;
use self::writer::{Wish, Writer, refusal};
use crate::access::Who;
use crate::planes::{Held, Identity, Keeper, Planes};
use crate::world::record::{InstanceRecord, instance_key};
use crate::world::{Registered, World};

pub use operate::{Drain, OperateError};

/// Shared by the gRPC service, the admin API and the expiry task; cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    /// A short critical section per call, never across an await.
    leases: Mutex<Leases>,
    /// Likewise; touched when a caller was refused, and by the expiry task.
    evidence: Mutex<Evidence>,
    revoked: Revoked,
    started: Instant,
    /// Of the time since then, how long the process stood still.
    stood_ms: AtomicU64,
    writer: Writer,
    store: Store,
    planes: Planes,
    /// The term in which the leases are in step with the world.
    agreed: Sender<u64>,
    worlds: Receiver<Arc<World>>,
    watchers: AtomicUsize,
    beaters: AtomicUsize,
    counts: Counts,
    /// Ends watches at shutdown.
    stop: CancellationToken,
}

/// Since start.
#[derive(Debug, Default)]
pub struct Counts {
    pub registrations: AtomicU64,
    pub heartbeats: AtomicU64,
    pub deregistrations: AtomicU64,
    pub expirations: AtomicU64,
    /// Of the expired, those of whom there was other evidence than silence.
    pub buried: AtomicU64,
    /// Held instances that an operator let go.
    pub released: AtomicU64,
    /// Reports that a caller was refused.
    pub evidence: AtomicU64,
    /// Instances that came here from another control plane.
    pub takeovers: AtomicU64,
    /// Instances whose control plane is gone, and who are this one's to watch.
    pub adopted: AtomicU64,
    /// Instances that another control plane took.
    pub handed_over: AtomicU64,
}

/// A held instance, for status pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldInstance {
    pub id: InstanceId,
    pub age: Duration,
}

impl Registry {
    /// Of the only control plane over this store.
    pub fn new(
        store: Store,
        worlds: Receiver<Arc<World>>,
        bounds: TtlBounds,
        stop: CancellationToken,
    ) -> (Self, Writes) {
        Self::among(store, worlds, bounds, Identity::alone(), stop)
    }

    /// Of one control plane among others. Everyone whom the world knows gets one TTL of grace. The caller runs
    /// [`Registry::run`].
    pub fn among(
        store: Store,
        worlds: Receiver<Arc<World>>,
        bounds: TtlBounds,
        identity: Identity,
        stop: CancellationToken,
    ) -> (Self, Writes) {
        let (planes, keeper) = Planes::new(store.clone(), worlds.clone(), identity, stop.clone());
        let (writer, queue) = Writer::new(store.clone(), planes.clone());
        let inner = Inner {
            leases: Mutex::new(Leases::new(bounds)),
            evidence: Mutex::default(),
            revoked: Revoked::default(),
            started: Instant::now(),
            stood_ms: AtomicU64::new(0),
            writer,
            store,
            planes,
            agreed: Sender::new(0),
            worlds,
            watchers: AtomicUsize::new(0),
            beaters: AtomicUsize::new(0),
            counts: Counts::default(),
            stop,
        };
        let inner = Arc::new(inner);
        (Self { inner }, Writes { queue, keeper })
    }

    /// Holds this plane's lease, expires and writes until the token is cancelled; what was accepted by then is still
    /// written.
    pub async fn run(self, writes: Writes) {
        let stop = self.inner.stop.clone();
        let written = async {
            let failed = |id: &InstanceId| self.leases().unstored(id);
            writes.queue.run(stop.clone(), failed).await;
        };
        let (written_out, last) = tokio::sync::oneshot::channel::<()>();
        let written = async move {
            written.await;
            drop(written_out);
        };
        tokio::join!(
            self.watch_over(),
            self.inquire(),
            written,
            writes.keeper.run(last)
        );
    }

    async fn watch_over(&self) {
        let stop = &self.inner.stop;
        let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MS));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut terms = self.inner.planes.terms();
        let mut graces = operate::Graces::default();
        let mut agreed: Option<Agreed> = None;
        let mut last = Instant::now();
        loop {
            let is_tick = tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => true,
                _ = terms.changed() => false,
            };
            self.pardon(last.elapsed());
            last = Instant::now();
            let Some(held) = self.inner.planes.held() else {
                continue;
            };
            let world = self.inner.worlds.borrow().clone();
            let now_agreed = self.agree(agreed.take(), held, world);
            if is_tick {
                self.expire(&now_agreed.world);
                self.end_graces(&mut graces, &now_agreed.world).await;
            }
            agreed = Some(now_agreed);
        }
    }

    pub fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    pub fn planes(&self) -> &Planes {
        &self.inner.planes
    }

    pub fn len(&self) -> usize {
        self.leases().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn watchers(&self) -> usize {
        self.inner.watchers.load(Ordering::Relaxed)
    }

    pub fn held(&self) -> Vec<HeldInstance> {
        let now = self.now_ms();
        let held = self.leases().held();
        held.into_iter()
            .map(|(id, since)| HeldInstance {
                id,
                age: Duration::from_millis(now.saturating_sub(since)),
            })
            .collect()
    }

    pub fn state(&self, id: &InstanceId) -> Option<LeaseState> {
        let now = self.now_ms();
        self.leases().state(id, now)
    }

    /// Whether this plane keeps the instance's lease, and knows by now how it is.
    pub fn watches(&self, world: &World, registered: &Registered) -> bool {
        let held = self.inner.planes.held();
        held.is_some_and(|held| *self.inner.agreed.borrow() == held.term)
            && self.inner.planes.duty(world).has(registered)
    }

    /// A revocation is a sign of death too: whoever is revoked can't beat any more.
    pub fn heed(&self, ca: &crate::ca::Ca) {
        self.inner.revoked.heed(ca);
    }

    /// A caller was refused there. Whoever is silent, too, is dead.
    pub fn refused(&self, addresses: &[SocketAddr]) {
        if addresses.is_empty() {
            return;
        }
        bump(&self.inner.counts.evidence, addresses.len() as u64);
        let now = self.now_ms();
        let mut evidence = self.evidence();
        for address in addresses {
            evidence.refused(*address, now);
        }
    }

    /// A caller that was refused there got through again.
    pub fn reached(&self, addresses: &[SocketAddr]) {
        if !addresses.is_empty() {
            let mut evidence = self.evidence();
            addresses.iter().for_each(|at| evidence.reached(at));
        }
    }

    /// Registers, and answers when it is stored: the granted TTL and the store's revision.
    async fn assert(
        &self,
        request: wire::RegisterRequest,
    ) -> Result<wire::RegisterResponse, Status> {
        let instance = request
            .instance
            .ok_or_else(|| Status::invalid_argument("`instance` is missing"))?;
        let state = state_from_wire(instance.state);
        let instance = from_wire(instance).map_err(|e| unfit(&e))?;
        let (id, epoch) = (instance.id.clone(), request.epoch);
        let ttl_ms = self.leases().bounds().grant(request.ttl_ms);
        let record =
            InstanceRecord::new(&instance, epoch, ttl_ms).of(self.inner.planes.name(), state);
        let value = serde_json::to_vec(&record).map_err(|e| Status::internal(e.to_string()))?;
        self.admitted().await?;
        let place = self.inner.writer.reserve().await?;
        bump(&self.inner.counts.registrations, 1);
        let now = self.now_ms();
        // Decided and queued under one lock: writes come in the order of decisions.
        let stored = {
            let mut leases = self.leases();
            let world = self.inner.worlds.borrow().clone();
            let elsewhere = self.elsewhere(&world, &id);
            if let Some(other) = elsewhere
                && other.epoch > epoch
                && !leases.contains(&id)
            {
                let current = other.epoch;
                return Err(older(LeaseError::Older { id, epoch, current }));
            }
            let registered = leases
                .register(id.clone(), epoch, request.ttl_ms, content(&value), now)
                .map_err(older)?;
            let wanted = world.drains.get(&id).map_or(state, |drain| drain.state());
            leases.guard(&id, state.max(wanted) == State::Accepting);
            match registered {
                leases::Registered::Unchanged => None,
                leases::Registered::Write => {
                    let over = elsewhere.map(|other| other.revision);
                    if over.is_some() {
                        bump(&self.inner.counts.takeovers, 1);
                    }
                    let wish = Wish::Put { value, over };
                    Some(self.inner.writer.want(place, id, wish))
                }
            }
        };
        let revision = match stored {
            Some(stored) => stored.wait().await.map_err(|e| refusal(&e))?,
            None => self.inner.worlds.borrow().revision,
        };
        Ok(wire::RegisterResponse { ttl_ms, revision })
    }

    async fn withdraw(
        &self,
        request: wire::DeregisterRequest,
    ) -> Result<wire::DeregisterResponse, Status> {
        let id = key(&request.namespace, &request.service, &request.id)?;
        let reason = request.reason.chars().take(64).collect::<String>();
        self.admitted().await?;
        for _ in 0..WITHDRAW_TRIES {
            let place = self.inner.writer.reserve().await?;
            let now = self.now_ms();
            let stored = {
                let mut leases = self.leases();
                let was_here = leases.deregister(&id, request.epoch, now);
                let world = self.inner.worlds.borrow().clone();
                let older = |known: &&Arc<Registered>| known.epoch <= request.epoch;
                let at = world.instances.get(&id).filter(older).map(|r| r.revision);
                let elsewhere = self.elsewhere(&world, &id);
                // Our own writes come in order; the world may not have seen the last of them.
                let at = at.filter(|_| elsewhere.is_some() || !was_here);
                let is_there = was_here || at.is_some();
                let wish = Wish::Delete { at };
                is_there.then(|| self.inner.writer.want(place, id.clone(), wish))
            };
            let Some(stored) = stored else {
                return Ok(wire::DeregisterResponse {
                    removed: false,
                    revision: self.inner.worlds.borrow().revision,
                });
            };
            match stored.wait().await {
                Ok(revision) => {
                    tracing::info!(instance = %id, epoch = request.epoch, reason, "deregistered");
                    bump(&self.inner.counts.deregistrations, 1);
                    return Ok(wire::DeregisterResponse {
                        removed: true,
                        revision,
                    });
                }
                Err(Error::Conflict { found, .. }) => self.catch_up(found).await,
                Err(error) => return Err(refusal(&error)),
            }
        }
        Err(Status::aborted(
            "the instance changes all the time, try again",
        ))
    }

    /// What another control plane, or nobody that is alive, keeps of an instance.
    fn elsewhere<'a>(&self, world: &'a World, id: &InstanceId) -> Option<&'a Arc<Registered>> {
        let registered = world.instances.get(id);
        registered.filter(|known| known.plane != self.inner.planes.name())
    }

    async fn catch_up(&self, revision: Option<Revision>) {
        let mut worlds = self.inner.worlds.clone();
        let there = worlds.wait_for(|world| revision.is_none_or(|r| world.revision >= r));
        let _ = tokio::time::timeout(PATIENCE, there).await;
    }

    /// Waits until this plane may act for instances and knows those that are its own.
    async fn admitted(&self) -> Result<Held, Status> {
        let agreed = |held: Held| *self.inner.agreed.borrow() == held.term;
        if let Some(held) = self.inner.planes.held().filter(|held| agreed(*held)) {
            return Ok(held);
        }
        let mut terms = self.inner.agreed.subscribe();
        let wait = async {
            loop {
                if let Some(held) = self.inner.planes.held().filter(|held| agreed(*held)) {
                    return held;
                }
                tokio::select! {
                    _ = terms.changed() => {}
                    () = tokio::time::sleep(Duration::from_millis(TICK_MS)) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.map_err(|_| {
            Status::unavailable(
                "this control plane has no lease on the store at the moment, so it can't answer for instances: ask another, or again",
            )
        })
    }

    fn expire(&self, world: &World) {
        let now = self.now_ms();
        let evidence = self.evidence();
        let buried = std::cell::Cell::new(0);
        let is_dead = |id: &InstanceId, since_ms: u64| {
            let Some(known) = world.instances.get(id) else {
                return false;
            };
            let addresses = || known.instance.ports.iter().map(|port| port.address);
            let dead = addresses().any(|address| evidence.is_refused(&address, since_ms))
                || addresses().any(|address| {
                    let verdict = world.verdict(&id.service, &address);
                    verdict.is_some_and(|verdict| verdict.is_unhealthy())
                })
                || self.inner.revoked.is_dead(known);
            buried.set(buried.get() + u64::from(dead));
            dead
        };
        let (held, expired) = {
            let mut leases = self.leases();
            let before = leases.held_len();
            let expired = leases.expire(now, is_dead);
            self.delete(&expired, world);
            (leases.held_len().saturating_sub(before), expired)
        };
        drop(evidence);
        if held > 0 {
            tracing::error!(
                held,
                "too much of a service expired at once: still serving it, see status (`phalanx release` lets it go)"
            );
        }
        for id in &expired {
            tracing::warn!(instance = %id, "expired");
            self.inner.revoked.forget(id);
        }
        bump(&self.inner.counts.expirations, expired.len() as u64);
        bump(&self.inner.counts.buried, buried.get());
    }

    /// Of those that went, what is stored as this plane saw it. Not waited for: whoever comes back from now on is written
    /// after it. What the world does not show yet, or shows as another's, is looked at again when it changes there.
    fn delete(&self, gone: &[InstanceId], world: &World) {
        let duty = self.inner.planes.duty(world);
        for id in gone {
            if let Some(known) = world.instances.get(id).filter(|known| duty.has(known)) {
                self.inner.writer.forget(id.clone(), known.revision);
            }
        }
    }

    fn let_held_go(&self, service: &ServiceName, world: &World) {
        let now = self.now_ms();
        let gone = {
            let mut leases = self.leases();
            let gone = leases.release(service, now);
            self.delete(&gone, world);
            gone
        };
        for id in &gone {
            tracing::warn!(instance = %id, "released by an operator");
        }
        bump(&self.inner.counts.released, gone.len() as u64);
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.inner
            .leases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn evidence(&self) -> MutexGuard<'_, Evidence> {
        self.inner
            .evidence
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// While this process stood still (a paused machine, a stopped process), nobody could beat: that time does not count.
    fn pardon(&self, since_last_tick: Duration) {
        if since_last_tick < STALL_MIN {
            return;
        }
        let stood = since_last_tick.saturating_sub(Duration::from_millis(TICK_MS));
        tracing::warn!(
            ?stood,
            "this process stood still, no lease runs on for that time"
        );
        self.inner
            .stood_ms
            .fetch_add(stood.as_millis() as u64, Ordering::Relaxed);
    }

    /// The time of leases.
    fn now_ms(&self) -> u64 {
        let stood_ms = self.inner.stood_ms.load(Ordering::Relaxed);
        (self.inner.started.elapsed().as_millis() as u64).saturating_sub(stood_ms)
    }
}

/// The receiving end of the registry's writes, to be given to [`Registry::run`].
pub struct Writes {
    queue: writer::Queue,
    keeper: Keeper,
}

fn older(error: LeaseError) -> Status {
    match error {
        LeaseError::Older { current, .. } => {
            phalanx_client::registry::older(error.to_string(), current)
        }
        LeaseError::Full { .. } => Status::resource_exhausted(error.to_string()),
    }
}

fn bump(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

fn key(namespace: &str, service: &str, id: &str) -> Result<InstanceId, Status> {
    id_from_wire(namespace, service, id).map_err(|e| unfit(&e))
}

/// As the peer says; no name is nobody's.
fn named(namespace: &str, service: &str) -> ServiceName {
    ServiceName::new(namespace, service)
}

/// Names what the peer sent, which may be anything: it is shown, on its terminal and in logs, not obeyed.
fn unfit(error: &dyn std::fmt::Display) -> Status {
    let mut shown = String::new();
    for c in error.to_string().chars() {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Status::invalid_argument(shown)
}

/// Of a record as it is stored.
fn content(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    hasher.finish()
}

/// A tick that comes later than this was held up by more than load.
const STALL_MIN: Duration = Duration::from_secs(1);

/// How long a call waits for this plane's lease, or for the world to catch up.
const PATIENCE: Duration = Duration::from_millis(800);
const WITHDRAW_TRIES: usize = 3;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Services select by the label `app`: where identities are proven, it is the proven service's, or it would lead another's
/// calls here.
fn own_label(instance: &wire::Instance) -> Result<(), Status> {
    match instance.labels.get("app") {
        Some(app) if *app != instance.service => Err(Status::permission_denied(format!(
            "the label app={} is not its own: the certificate is of service `{}` (leave the label out, or join as that service)",
            app.escape_debug(),
            instance.service
        ))),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl wire::registry_server::Registry for Registry {
    type WatchStream = Answers<wire::WatchResponse>;
    type HeartbeatsStream = Answers<wire::HeartbeatBatchAnswer>;

    async fn heartbeats(
        &self,
        request: Request<Streaming<wire::HeartbeatBatch>>,
    ) -> Result<Response<Self::HeartbeatsStream>, Status> {
        let who = Who::of(request.extensions());
        let stream = beats::stream(self, who, request.into_inner())?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        let who = Who::of(request.extensions());
        let mut request = request.into_inner();
        if let Some(instance) = &mut request.instance {
            who.owns(&named(&instance.namespace, &instance.service))?;
            // Others would shake hands with somebody who can't.
            instance.mutual_tls &= who.is_workload();
            if who.is_workload() {
                own_label(instance)?;
            }
        }
        let id = request
            .instance
            .as_ref()
            .map(|i| key(&i.namespace, &i.service, &i.id));
        let answer = self.assert(request).await?;
        if let Some(Ok(id)) = id {
            self.inner.revoked.shows(id, &who);
        }
        Ok(Response::new(answer))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        let who = Who::of(request.extensions());
        let wire::HeartbeatRequest {
            namespace,
            service,
            id,
            epoch,
        } = request.into_inner();
        let id = key(&namespace, &service, &id)?;
        who.owns(&id.service)?;
        self.admitted().await?;
        bump(&self.inner.counts.heartbeats, 1);
        let now = self.now_ms();
        let ttl_ms = self.leases().heartbeat(&id, epoch, now);
        Ok(Response::new(wire::HeartbeatResponse {
            unknown: ttl_ms.is_none(),
            ttl_ms: ttl_ms.unwrap_or(0),
        }))
    }

    async fn deregister(
        &self,
        request: Request<wire::DeregisterRequest>,
    ) -> Result<Response<wire::DeregisterResponse>, Status> {
        let who = Who::of(request.extensions());
        let request = request.into_inner();
        who.owns(&named(&request.namespace, &request.service))?;
        if let Ok(id) = key(&request.namespace, &request.service, &request.id) {
            self.inner.revoked.forget(&id);
        }
        self.withdraw(request).await.map(Response::new)
    }

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let stream = watch::stream(self, request.into_inner())?;
        Ok(Response::new(Box::pin(stream)))
    }
}

#[cfg(test)]
mod tests;
