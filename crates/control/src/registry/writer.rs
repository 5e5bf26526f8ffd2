//! The registry's writes: what shall be stored of each instance, only the newest, several in one transaction.
//!
//! A want is left under the lock of the leases, so that both agree about who came last. What could not be deleted is owed
//! and tried again; what could not be put is for its owner to assert again.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_model::InstanceId;
use phalanx_store::{Error, Revision, Store, Txn};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::instance_key;

/// Where wants are left.
pub struct Writer {
    wants: Arc<Wants>,
}

/// Room for one want; dropping it gives it back.
pub struct Place {
    _room: OwnedSemaphorePermit,
}

/// Resolves when the want is stored.
pub struct Stored(oneshot::Receiver<Result<Revision, phalanx_store::Error>>);

/// The other end.
pub struct Queue {
    store: Store,
    wants: Arc<Wants>,
    /// Deletions that the store did not take.
    owed: BTreeSet<InstanceId>,
}

struct Wants {
    /// A short critical section per want and per transaction.
    state: Mutex<State>,
    room: Arc<Semaphore>,
    news: Notify,
}

/// One want per instance, in the order in which they came.
#[derive(Default)]
struct State {
    order: VecDeque<InstanceId>,
    wanted: HashMap<InstanceId, Want>,
}

#[derive(Default)]
struct Want {
    /// None: delete.
    value: Option<Vec<u8>>,
    waiting: Vec<Waiting>,
}

struct Waiting {
    done: oneshot::Sender<Result<Revision, phalanx_store::Error>>,
    _place: Place,
}

impl Writer {
    pub fn new(store: Store) -> (Self, Queue) {
        let wants = Arc::new(Wants {
            state: Mutex::default(),
            room: Arc::new(Semaphore::new(QUEUE_MAX)),
            news: Notify::new(),
        });
        let queue = Queue {
            store,
            wants: wants.clone(),
            owed: BTreeSet::new(),
        };
        (Self { wants }, queue)
    }

    /// Waits for room.
    pub async fn reserve(&self) -> Result<Place, Status> {
        let room = self.wants.room.clone().acquire_owned().await;
        room.map(|room| Place { _room: room })
            .map_err(|_| stopping())
    }

    pub fn put(&self, place: Place, id: InstanceId, value: Vec<u8>) -> Stored {
        self.want(place, id, Some(value))
    }

    pub fn delete(&self, place: Place, id: InstanceId) -> Stored {
        self.want(place, id, None)
    }

    /// Deletes without an answer, and without a place: there are no more of them than instances.
    pub fn forget(&self, id: InstanceId) {
        self.wants.add(id, None, None);
    }

    fn want(&self, place: Place, id: InstanceId, value: Option<Vec<u8>>) -> Stored {
        let (done, outcome) = oneshot::channel();
        let waiting = Waiting {
            done,
            _place: place,
        };
        self.wants.add(id, value, Some(waiting));
        Stored(outcome)
    }
}

impl Stored {
    pub async fn wait(self) -> Result<Revision, Status> {
        match self.0.await {
            Ok(Ok(revision)) => Ok(revision),
            Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
            Err(_) => Err(stopping()),
        }
    }
}

impl Wants {
    fn add(&self, id: InstanceId, value: Option<Vec<u8>>, waiting: Option<Waiting>) {
        let mut state = self.state();
        // After the last transaction: dropping `waiting` says that the control plane is stopping.
        if self.room.is_closed() {
            return;
        }
        if !state.wanted.contains_key(&id) {
            state.order.push_back(id.clone());
        }
        let want = state.wanted.entry(id).or_default();
        want.value = value;
        want.waiting.extend(waiting);
        drop(state);
        self.news.notify_one();
    }

    fn take(&self, most: usize) -> Vec<(InstanceId, Want)> {
        let State { order, wanted } = &mut *self.state();
        let count = order.len().min(most);
        let ids = order.drain(..count);
        ids.filter_map(|id| wanted.remove_entry(&id)).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Writes until `stop`, then what is wanted by then. `failed` hears of each put that is not stored.
    pub async fn run(mut self, stop: CancellationToken, failed: impl Fn(&InstanceId)) {
        let most = BATCH_MAX.min(self.store.limits().txn_ops_max);
        loop {
            let batch = self.wants.take(most);
            if !batch.is_empty() {
                self.commit(batch, &failed).await;
                continue;
            }
            if stop.is_cancelled() {
                return self.close();
            }
            tokio::select! {
                () = self.wants.news.notified() => {}
                () = stop.cancelled() => {}
                () = tokio::time::sleep(OWED_PAUSE), if !self.owed.is_empty() => self.remind(),
            }
        }
    }

    async fn commit(&mut self, batch: Vec<(InstanceId, Want)>, failed: &impl Fn(&InstanceId)) {
        let mut txn = Txn::new();
        for (id, want) in &batch {
            let key = instance_key(id);
            txn = match &want.value {
                Some(value) => txn.put(key, value.clone()),
                None => txn.delete(key),
            };
        }
        let outcome = self.store.commit(txn).await;
        if let Err(error) = &outcome {
            tracing::error!(%error, writes = batch.len(), "instances could not be stored");
        }
        for (id, want) in batch {
            match (&outcome, &want.value) {
                // It may be stored without an owner: then it is to go, unless its owner asserts it again.
                (Err(Error::Unknown { .. }), Some(_)) => {
                    failed(&id);
                    self.owed.insert(id);
                }
                (Err(_), Some(_)) => failed(&id),
                (Err(_), None) => drop(self.owed.insert(id)),
                (Ok(_), _) => drop(self.owed.remove(&id)),
            }
            for waiting in want.waiting {
                // The caller may be gone.
                let _ = waiting.done.send(outcome.clone());
            }
        }
    }

    /// Wants what is owed again, but for instances of which something newer is wanted.
    fn remind(&mut self) {
        let mut state = self.wants.state();
        for id in std::mem::take(&mut self.owed) {
            if !state.wanted.contains_key(&id) {
                state.order.push_back(id.clone());
                state.wanted.insert(id, Want::default());
            }
        }
    }

    fn close(&self) {
        self.wants.room.close();
        let mut state = self.wants.state();
        *state = State::default();
    }
}

fn stopping() -> Status {
    Status::unavailable("the control plane is stopping")
}

/// Registrations that may wait for the store; more wait in their callers.
const QUEUE_MAX: usize = 4096;
/// Instances of one transaction, at most 40 KiB each.
const BATCH_MAX: usize = 256;
/// Between two attempts to delete what is owed.
const OWED_PAUSE: Duration = Duration::from_secs(1);
