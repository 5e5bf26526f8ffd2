//! The registry's writes: one queue, in order, several in one transaction.

use std::collections::HashSet;

use phalanx_model::InstanceId;
use phalanx_store::{Revision, Store, Txn};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::instance_key;

/// Where callers queue.
pub struct Writer {
    queue: mpsc::Sender<Write>,
}

/// A place in the queue; dropping it gives it back.
pub struct Place<'a>(mpsc::Permit<'a, Write>);

/// The other end.
pub struct Queue {
    store: Store,
    writes: mpsc::Receiver<Write>,
}

struct Write {
    id: InstanceId,
    /// None: delete.
    value: Option<Vec<u8>>,
    done: Option<oneshot::Sender<Result<Revision, phalanx_store::Error>>>,
}

impl Writer {
    pub fn new(store: Store) -> (Self, Queue) {
        let (queue, writes) = mpsc::channel(QUEUE_MAX);
        (Self { queue }, Queue { store, writes })
    }

    /// Waits for room.
    pub async fn reserve(&self) -> Result<Place<'_>, Status> {
        self.queue
            .reserve()
            .await
            .map(Place)
            .map_err(|_| stopping())
    }
}

impl Place<'_> {
    /// Answers when it is stored.
    pub async fn put(self, id: InstanceId, value: Vec<u8>) -> Result<Revision, Status> {
        self.write(id, Some(value)).await
    }

    pub async fn delete(self, id: InstanceId) -> Result<Revision, Status> {
        self.write(id, None).await
    }

    /// Deletes without an answer.
    pub fn forget(self, id: InstanceId) {
        self.0.send(Write {
            id,
            value: None,
            done: None,
        });
    }

    async fn write(self, id: InstanceId, value: Option<Vec<u8>>) -> Result<Revision, Status> {
        let (done, outcome) = oneshot::channel();
        self.0.send(Write {
            id,
            value,
            done: Some(done),
        });
        match outcome.await {
            Ok(Ok(revision)) => Ok(revision),
            Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
            Err(_) => Err(stopping()),
        }
    }
}

impl Queue {
    /// Writes until `stop`, then what is queued. `failed` hears of each put that is not stored.
    pub async fn run(mut self, stop: CancellationToken, failed: impl Fn(&InstanceId)) {
        let mut carried = None;
        loop {
            let first = match carried.take() {
                Some(write) => Some(write),
                None => tokio::select! {
                    biased;
                    write = self.writes.recv() => write,
                    () = stop.cancelled() => {
                        self.writes.close();
                        self.writes.recv().await
                    }
                },
            };
            let Some(first) = first else { return };
            let batch;
            (batch, carried) = self.batch(first);
            self.commit(batch, &failed).await;
        }
    }

    /// As many as are waiting; an instance once, because a transaction takes a key once.
    fn batch(&mut self, first: Write) -> (Vec<Write>, Option<Write>) {
        let mut keys = HashSet::from([first.id.clone()]);
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX {
            let Ok(write) = self.writes.try_recv() else {
                break;
            };
            if !keys.insert(write.id.clone()) {
                return (batch, Some(write));
            }
            batch.push(write);
        }
        (batch, None)
    }

    async fn commit(&self, batch: Vec<Write>, failed: &impl Fn(&InstanceId)) {
        let mut txn = Txn::new();
        for write in &batch {
            let key = instance_key(&write.id);
            txn = match &write.value {
                Some(value) => txn.put(key, value.clone()),
                None => txn.delete(key),
            };
        }
        let outcome = self.store.commit(txn).await;
        if let Err(error) = &outcome {
            tracing::error!(%error, writes = batch.len(), "instances could not be stored");
        }
        for write in batch {
            if outcome.is_err() && write.value.is_some() {
                failed(&write.id);
            }
            if let Some(done) = write.done {
                // The caller may be gone.
                let _ = done.send(outcome.clone());
            }
        }
    }
}

fn stopping() -> Status {
    Status::unavailable("the control plane is stopping")
}

/// Registrations that may wait for the store; more wait in their callers.
const QUEUE_MAX: usize = 4096;
/// Instances of one transaction, at most 40 KiB each.
const BATCH_MAX: usize = 256;
