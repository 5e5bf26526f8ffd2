//! The registry: instances announce themselves over gRPC, beat, leave, and are followed by others.
//!
//! Heartbeats touch only [`leases`] in memory; a transaction is written when content changes. Readers are served from the
//! world, so what a watcher sees is what is stored. How an instance travels is `client::registry`'s business.

mod beats;
pub mod leases;
mod watch;
mod writer;

use std::hash::{DefaultHasher, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_client::registry::{from_wire, id_from_wire};
use phalanx_model::InstanceId;
use phalanx_proto::phalanx::registry::v1 as wire;
use phalanx_store::Store;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::leases::{LeaseError, LeaseState, Leases, Registered, TICK_MS, TtlBounds};
use self::writer::Writer;
use crate::world::World;
use crate::world::record::{InstanceRecord, instance_key};

/// Shared by the gRPC service, the admin API and the expiry task; cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    /// A short critical section per call, never across an await.
    leases: Mutex<Leases>,
    started: Instant,
    /// Of the time since then, how long the process stood still.
    stood_ms: AtomicU64,
    writer: Writer,
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
}

/// A held instance, for status pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldInstance {
    pub id: InstanceId,
    pub age: Duration,
}

impl Registry {
    /// Everyone whom the world knows gets one TTL of grace. The caller runs [`Registry::run`].
    pub fn new(
        store: Store,
        worlds: Receiver<Arc<World>>,
        bounds: TtlBounds,
        stop: CancellationToken,
    ) -> (Self, Writes) {
        let (writer, writes) = Writer::new(store);
        let mut leases = Leases::new(bounds);
        for registered in worlds.borrow().instances.iter() {
            let record =
                InstanceRecord::new(&registered.instance, registered.epoch, registered.ttl_ms);
            leases.recall(
                registered.instance.id.clone(),
                registered.epoch,
                registered.ttl_ms,
                content(&serde_json::to_vec(&record).unwrap_or_default()),
                0,
            );
        }
        let inner = Inner {
            leases: Mutex::new(leases),
            started: Instant::now(),
            stood_ms: AtomicU64::new(0),
            writer,
            worlds,
            watchers: AtomicUsize::new(0),
            beaters: AtomicUsize::new(0),
            counts: Counts::default(),
            stop,
        };
        (
            Self {
                inner: Arc::new(inner),
            },
            Writes(writes),
        )
    }

    /// Expires and writes until the token is cancelled; what was accepted by then is still written.
    pub async fn run(self, writes: Writes) {
        let stop = self.inner.stop.clone();
        let expiry = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MS));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut last = Instant::now();
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                self.pardon(last.elapsed());
                last = Instant::now();
                self.expire();
            }
        };
        tokio::join!(
            expiry,
            writes
                .0
                .run(self.inner.stop.clone(), |id| self.leases().unstored(id))
        );
    }

    pub fn counts(&self) -> &Counts {
        &self.inner.counts
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

    /// Registers, and answers when it is stored: the granted TTL and the store's revision.
    async fn assert(
        &self,
        request: wire::RegisterRequest,
    ) -> Result<wire::RegisterResponse, Status> {
        let instance = request
            .instance
            .ok_or_else(|| Status::invalid_argument("`instance` is missing"))?;
        let instance = from_wire(instance).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let (id, epoch) = (instance.id.clone(), request.epoch);
        let ttl_ms = self.leases().bounds().grant(request.ttl_ms);
        let value = serde_json::to_vec(&InstanceRecord::new(&instance, epoch, ttl_ms))
            .map_err(|e| Status::internal(e.to_string()))?;
        let place = self.inner.writer.reserve().await?;
        self.inner
            .counts
            .registrations
            .fetch_add(1, Ordering::Relaxed);
        let now = self.now_ms();
        // Decided and queued under one lock: writes come in the order of decisions.
        let stored = {
            let mut leases = self.leases();
            match leases.register(id.clone(), epoch, request.ttl_ms, content(&value), now) {
                Ok(Registered::Unchanged) => None,
                Ok(Registered::Write) => Some(self.inner.writer.put(place, id, value)),
                Err(error @ LeaseError::Older { .. }) => {
                    return Err(Status::failed_precondition(error.to_string()));
                }
                Err(error @ LeaseError::Full { .. }) => {
                    return Err(Status::resource_exhausted(error.to_string()));
                }
            }
        };
        let revision = match stored {
            Some(stored) => stored.wait().await?,
            None => self.inner.worlds.borrow().revision,
        };
        Ok(wire::RegisterResponse { ttl_ms, revision })
    }

    async fn withdraw(
        &self,
        request: wire::DeregisterRequest,
    ) -> Result<wire::DeregisterResponse, Status> {
        let id = key(&request.namespace, &request.service, &request.id)?;
        let place = self.inner.writer.reserve().await?;
        let now = self.now_ms();
        let stored = {
            let mut leases = self.leases();
            let removed = leases.deregister(&id, request.epoch, now);
            removed.then(|| self.inner.writer.delete(place, id.clone()))
        };
        let Some(stored) = stored else {
            return Ok(wire::DeregisterResponse {
                removed: false,
                revision: self.inner.worlds.borrow().revision,
            });
        };
        tracing::info!(instance = %id, epoch = request.epoch, reason = request.reason.get(..64).unwrap_or(&request.reason), "deregistered");
        self.inner
            .counts
            .deregistrations
            .fetch_add(1, Ordering::Relaxed);
        Ok(wire::DeregisterResponse {
            removed: true,
            revision: stored.wait().await?,
        })
    }

    fn expire(&self) {
        let now = self.now_ms();
        let (held, expired) = {
            let mut leases = self.leases();
            let before = leases.held_len();
            let expired = leases.expire(now);
            for id in &expired {
                // Not waited for: whoever comes back from now on is written after it.
                self.inner.writer.forget(id.clone());
            }
            (leases.held_len().saturating_sub(before), expired)
        };
        if held > 0 {
            tracing::error!(
                held,
                "too much of a service expired at once: still serving it, see status"
            );
        }
        for id in &expired {
            tracing::warn!(instance = %id, "expired");
        }
        self.inner
            .counts
            .expirations
            .fetch_add(expired.len() as u64, Ordering::Relaxed);
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.inner
            .leases
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
pub struct Writes(writer::Queue);

fn key(namespace: &str, service: &str, id: &str) -> Result<InstanceId, Status> {
    id_from_wire(namespace, service, id).map_err(|e| Status::invalid_argument(e.to_string()))
}

/// Of a record as it is stored.
fn content(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    hasher.finish()
}

/// A tick that comes later than this was held up by more than load.
const STALL_MIN: Duration = Duration::from_secs(1);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl wire::registry_server::Registry for Registry {
    type WatchStream = Answers<wire::WatchResponse>;
    type HeartbeatsStream = Answers<wire::HeartbeatBatchAnswer>;

    async fn heartbeats(
        &self,
        request: Request<Streaming<wire::HeartbeatBatch>>,
    ) -> Result<Response<Self::HeartbeatsStream>, Status> {
        let stream = beats::stream(self, request.into_inner())?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        self.assert(request.into_inner()).await.map(Response::new)
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        let wire::HeartbeatRequest {
            namespace,
            service,
            id,
            epoch,
        } = request.into_inner();
        let id = key(&namespace, &service, &id)?;
        self.inner.counts.heartbeats.fetch_add(1, Ordering::Relaxed);
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
        self.withdraw(request.into_inner()).await.map(Response::new)
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
