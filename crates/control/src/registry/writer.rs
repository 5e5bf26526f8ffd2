//! The registry's writes: what shall be stored of each instance, only the newest, several in one transaction.
//!
//! A want is left under the lock of the leases, so that both agree about who came last. Every transaction expects this
//! control plane's own key unchanged (the fence), and what is another's as it was seen. What could not be deleted for want
//! of room is owed and tried again; what could not be put is for its owner to assert again.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_model::InstanceId;
use phalanx_store::{Error, Revision, Store, Txn};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::instance_key;
use crate::planes::Planes;

/// Where wants are left.
pub struct Writer {
    wants: Arc<Wants>,
}

/// What shall be stored of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// In the place of what another control plane stored at this revision, or of our own.
    Put {
        value: Vec<u8>,
        over: Option<Revision>,
    },
    /// What was stored at this revision; none: whatever it is.
    Delete { at: Option<Revision> },
}

/// Room for one want; dropping it gives it back.
pub struct Place {
    _room: OwnedSemaphorePermit,
}

/// Resolves when the want is stored.
pub struct Stored(oneshot::Receiver<Result<Revision, Error>>);

/// The other end.
pub struct Queue {
    store: Store,
    planes: Planes,
    wants: Arc<Wants>,
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
    /// What is to be deleted and still stored: wanted, on its way or owed.
    going: HashSet<InstanceId>,
    /// Deletions that the store did not take.
    owed: BTreeMap<InstanceId, Option<Revision>>,
}

struct Want {
    wish: Wish,
    waiting: Vec<Waiting>,
}

struct Waiting {
    done: oneshot::Sender<Result<Revision, Error>>,
    _place: Place,
}

impl Writer {
    pub fn new(store: Store, planes: Planes) -> (Self, Queue) {
        let wants = Arc::new(Wants {
            state: Mutex::default(),
            room: Arc::new(Semaphore::new(QUEUE_MAX)),
            news: Notify::new(),
        });
        let queue = Queue {
            store,
            planes,
            wants: wants.clone(),
        };
        (Self { wants }, queue)
    }

    /// Waits for room.
    pub async fn reserve(&self) -> Result<Place, Status> {
        let room = self.wants.room.clone().acquire_owned().await;
        room.map(|room| Place { _room: room })
            .map_err(|_| stopping())
    }

    pub fn want(&self, place: Place, id: InstanceId, wish: Wish) -> Stored {
        let (done, outcome) = oneshot::channel();
        let waiting = Waiting {
            done,
            _place: place,
        };
        self.wants.add(id, wish, Some(waiting));
        Stored(outcome)
    }

    /// Deletes what was stored at this revision, without an answer, and without a place: there are no more of them than
    /// instances.
    pub fn forget(&self, id: InstanceId, at: Revision) {
        self.wants.add(id, Wish::Delete { at: Some(at) }, None);
    }

    /// Whether it is about to be deleted: still stored, and let go already.
    pub fn is_going(&self, id: &InstanceId) -> bool {
        self.wants.state().going.contains(id)
    }
}

impl Stored {
    /// # Errors
    /// The store's; [`Error::Closed`] when the control plane is stopping.
    pub async fn wait(self) -> Result<Revision, Error> {
        self.0.await.unwrap_or(Err(Error::Closed))
    }
}

impl Wants {
    fn add(&self, id: InstanceId, wish: Wish, waiting: Option<Waiting>) {
        let mut state = self.state();
        // After the last transaction: dropping `waiting` says that the control plane is stopping.
        if self.room.is_closed() {
            return;
        }
        let State {
            order,
            wanted,
            going,
            owed,
        } = &mut *state;
        match wish {
            Wish::Put { .. } => {
                going.remove(&id);
                owed.remove(&id);
            }
            Wish::Delete { .. } => {
                going.insert(id.clone());
            }
        }
        match wanted.get_mut(&id) {
            Some(want) => {
                want.wish = wish;
                want.waiting.extend(waiting);
            }
            None => {
                order.push_back(id.clone());
                let waiting = waiting.into_iter().collect();
                wanted.insert(id, Want { wish, waiting });
            }
        }
        drop(state);
        self.news.notify_one();
    }

    fn take(&self, most: usize) -> Vec<(InstanceId, Want)> {
        let State { order, wanted, .. } = &mut *self.state();
        let count = order.len().min(most);
        let ids = order.drain(..count);
        ids.filter_map(|id| wanted.remove_entry(&id)).collect()
    }

    fn is_owing(&self) -> bool {
        !self.state().owed.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Writes until `stop`, then what is wanted by then. `failed` hears of each put that is not stored.
    pub async fn run(self, stop: CancellationToken, failed: impl Fn(&InstanceId)) {
        // One for the fence, two for each instance.
        let most = BATCH_MAX.min((self.store.limits().txn_ops_max - 1) / 2);
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
                () = tokio::time::sleep(OWED_PAUSE), if self.wants.is_owing() => self.remind(),
            }
        }
    }

    /// One transaction; what stands in its way because somebody else wrote it is left out, and told so.
    async fn commit(&self, mut batch: Vec<(InstanceId, Want)>, failed: &impl Fn(&InstanceId)) {
        while !batch.is_empty() {
            let outcome = match self.planes.held() {
                Some(held) => self.store.commit(self.txn(held.fence, &batch)).await,
                None => Err(fenced()),
            };
            let outcome = match outcome {
                Err(Error::Conflict { key, .. }) if key == self.planes.key() => Err(fenced()),
                Err(conflict @ Error::Conflict { .. }) => {
                    let in_the_way = |(id, _): &(InstanceId, Want)| matches!(&conflict, Error::Conflict { key, .. } if *key == instance_key(id));
                    if let Some(at) = batch.iter().position(in_the_way) {
                        let (id, want) = batch.swap_remove(at);
                        self.settle(id, want, &Err(conflict), failed);
                        continue;
                    }
                    Err(conflict)
                }
                outcome => outcome,
            };
            if let Err(error) = &outcome {
                tracing::error!(%error, writes = batch.len(), "instances could not be stored");
            }
            for (id, want) in batch.drain(..) {
                self.settle(id, want, &outcome, failed);
            }
        }
    }

    fn txn(&self, fence: Revision, batch: &[(InstanceId, Want)]) -> Txn {
        let mut txn = Txn::new().expect_modified(self.planes.key(), fence);
        for (id, want) in batch {
            let key = instance_key(id);
            if let Wish::Put { over: Some(at), .. } | Wish::Delete { at: Some(at) } = want.wish {
                txn = txn.expect_modified(key.clone(), at);
            }
            txn = match &want.wish {
                Wish::Put { value, .. } => txn.put(key, value.clone()),
                Wish::Delete { .. } => txn.delete(key),
            };
        }
        txn
    }

    fn settle(
        &self,
        id: InstanceId,
        want: Want,
        outcome: &Result<Revision, Error>,
        failed: &impl Fn(&InstanceId),
    ) {
        match (outcome, &want.wish) {
            (Ok(_), Wish::Put { .. }) => {}
            (Err(_), Wish::Put { .. }) => failed(&id),
            (_, Wish::Delete { at }) => self.deleted(&id, *at, outcome),
        }
        for waiting in want.waiting {
            // The caller may be gone.
            let _ = waiting.done.send(outcome.clone());
        }
    }

    fn deleted(&self, id: &InstanceId, at: Option<Revision>, outcome: &Result<Revision, Error>) {
        let mut state = self.wants.state();
        if state.wanted.contains_key(id) {
            // Something newer is wanted, which decides.
            return;
        }
        match outcome {
            // In conflict it is another's now, or will be looked at anew when this plane holds its lease again.
            Ok(_) | Err(Error::Conflict { .. }) => {
                state.going.remove(id);
            }
            Err(_) => {
                state.owed.insert(id.clone(), at);
            }
        }
    }

    /// Wants what is owed again, but for instances of which something newer is wanted.
    fn remind(&self) {
        if self.planes.held().is_none() {
            return;
        }
        let mut state = self.wants.state();
        for (id, at) in std::mem::take(&mut state.owed) {
            if !state.wanted.contains_key(&id) {
                state.order.push_back(id.clone());
                let want = Want {
                    wish: Wish::Delete { at },
                    waiting: Vec::new(),
                };
                state.wanted.insert(id, want);
            }
        }
    }

    fn close(&self) {
        self.wants.room.close();
        let mut state = self.wants.state();
        *state = State::default();
    }
}

/// What a caller is told whose want was not stored.
pub fn refusal(error: &Error) -> Status {
    match error {
        Error::Closed => stopping(),
        Error::Conflict { .. } => {
            Status::aborted("another control plane wrote this instance at the same time, try again")
        }
        error => Status::unavailable(error.to_string()),
    }
}

fn stopping() -> Status {
    Status::unavailable("the control plane is stopping")
}

fn fenced() -> Error {
    Error::Unreachable {
        reason: "this control plane lost its lease on the store, and may not write until it has it again".to_owned(),
    }
}

/// Registrations that may wait for the store; more wait in their callers.
const QUEUE_MAX: usize = 4096;
/// Instances of one transaction, at most 40 KiB each.
const BATCH_MAX: usize = 256;
/// Between two attempts to delete what is owed.
const OWED_PAUSE: Duration = Duration::from_secs(1);
