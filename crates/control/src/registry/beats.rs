//! Heartbeats in batches, from agents that beat for many instances: one lock and one answer per batch, no allocation per
//! beat. A stream waits for its next batch only after its last answer was taken, so a peer that doesn't read sends no more.

use std::sync::atomic::Ordering;

use phalanx_model::{InstanceId, ServiceName};
use phalanx_proto::phalanx::registry::v1 as wire;
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};

use super::Registry;
use crate::access::{NotOwn, Who};

pub fn stream(
    registry: &Registry,
    who: Who,
    batches: Streaming<wire::HeartbeatBatch>,
) -> Result<impl Stream<Item = Result<wire::HeartbeatBatchAnswer, Status>> + use<>, Status> {
    let seat = Seat::take(registry)?;
    Ok(futures_util::stream::unfold(
        Some((seat, who, batches)),
        |state| async move {
            let (seat, who, mut batches) = state?;
            let stop = seat.0.inner.stop.clone();
            let batch = tokio::select! {
                () = stop.cancelled() => return None,
                batch = batches.next() => batch?,
            };
            let answer = match batch {
                Ok(batch) => match own(&who, &batch) {
                    Ok(()) => seat.0.beat(batch).await,
                    Err(not_own) => Err(not_own.into()),
                },
                Err(status) => Err(status),
            };
            match answer {
                Ok(answer) => Some((Ok(answer), Some((seat, who, batches)))),
                Err(status) => Some((Err(status), None)),
            }
        },
    ))
}

/// Each beat is the peer's own. Where anybody may beat, none is looked at.
fn own(who: &Who, batch: &wire::HeartbeatBatch) -> Result<(), NotOwn> {
    if *who == Who::Open {
        return Ok(());
    }
    let names = batch.beats.iter().map(|b| (&b.namespace, &b.service));
    let mut names = names.map(|(namespace, service)| ServiceName::new(namespace, service));
    names.try_for_each(|service| who.owns(&service))
}

impl Registry {
    pub(super) async fn beat(
        &self,
        batch: wire::HeartbeatBatch,
    ) -> Result<wire::HeartbeatBatchAnswer, Status> {
        let count = batch.beats.len();
        if count > BEATS_MAX {
            let message = format!("{count} beats in a batch, at most {BEATS_MAX} are taken");
            return Err(Status::invalid_argument(message));
        }
        self.admitted().await?;
        let mut answer = wire::HeartbeatBatchAnswer {
            sequence: batch.sequence,
            ..wire::HeartbeatBatchAnswer::default()
        };
        let now = self.now_ms();
        let mut leases = self.leases();
        for (at, beat) in batch.beats.into_iter().enumerate() {
            // A name that is none is simply not found.
            let id = InstanceId {
                service: ServiceName {
                    namespace: beat.namespace,
                    name: beat.service,
                },
                id: beat.id,
            };
            let beat_at = at as u32;
            match leases.heartbeat(&id, beat.epoch, now) {
                None => answer.unknown.push(beat_at),
                Some(ttl_ms) if ttl_ms != beat.ttl_ms => {
                    let change = wire::TtlChange {
                        beat: beat_at,
                        ttl_ms,
                    };
                    answer.ttls.push(change);
                }
                Some(_) => {}
            }
        }
        drop(leases);
        let counts = &self.inner.counts;
        counts.heartbeats.fetch_add(count as u64, Ordering::Relaxed);
        Ok(answer)
    }
}

/// One of a bounded number.
struct Seat(Registry);

impl Seat {
    fn take(registry: &Registry) -> Result<Self, Status> {
        let taken = registry.inner.beaters.fetch_add(1, Ordering::Relaxed);
        let seat = Self(registry.clone());
        if taken >= BEATERS_MAX {
            return Err(Status::resource_exhausted(format!(
                "{BEATERS_MAX} streams of heartbeats are open, no more are taken"
            )));
        }
        Ok(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.inner.beaters.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Of one batch; with longer names a message is refused at 4 MiB before that.
const BEATS_MAX: usize = 16_384;
const BEATERS_MAX: usize = 4096;
