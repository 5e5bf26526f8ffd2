//! Changes on their way to the store: decided against the newest that is known, many in one transaction, each under the
//! condition that its key is still as it was seen. Whoever was faster elsewhere wins; who lost is told what is there now.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use phalanx_store::{Error, Expect, Op, Revision, Store, Txn};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::board::{Board, Held, Session};
use super::record::{SessionId, SessionRecord};
use super::{Shared, lock};

/// What shall be of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Claim {
        instance: Arc<str>,
        /// 0: nobody has it.
        expected: u64,
        ttl: Option<Duration>,
    },
    Move {
        to: Arc<str>,
        /// 0: whatever it is.
        expected: u64,
        /// Only as long as this one has it.
        from: Option<Arc<str>>,
    },
    Release {
        /// 0: whatever it is.
        expected: u64,
        /// Only as it is stored at this revision.
        at: Option<Revision>,
    },
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Else it was not as expected.
    pub done: bool,
    /// As it is now; of what was let go, as it was.
    pub session: Option<Session>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("a service has at most {KEYS_PER_SERVICE_MAX} sessions, a mesh {KEYS_MAX}")]
    Full,
    #[error("too many changes at once")]
    TooMany,
    #[error("it could not be stored")]
    Store(#[source] Error),
}

pub struct Job {
    pub id: SessionId,
    pub ask: Ask,
    pub done: oneshot::Sender<Result<Done, ChangeError>>,
    tries: u32,
}

impl Job {
    pub fn new(id: SessionId, ask: Ask) -> (Self, oneshot::Receiver<Result<Done, ChangeError>>) {
        let (done, outcome) = oneshot::channel();
        let job = Self {
            id,
            ask,
            done,
            tries: 0,
        };
        (job, outcome)
    }
}

/// What is to be done about a key as it is known.
enum Step {
    /// Nothing.
    Answer(Result<Done, ChangeError>),
    Put {
        record: SessionRecord,
        over: Option<Revision>,
    },
    Delete {
        at: Revision,
    },
    /// Nothing, if it is still as it is known: who was cut off knows what is over.
    Confirm {
        over: Option<Revision>,
    },
}

pub struct Writer {
    store: Store,
    shared: Arc<Shared>,
    jobs: mpsc::Receiver<Job>,
    /// To be done again, or after another of the same key.
    waiting: VecDeque<Job>,
}

impl Writer {
    pub fn new(store: Store, shared: Arc<Shared>, jobs: mpsc::Receiver<Job>) -> Self {
        Self {
            store,
            shared,
            jobs,
            waiting: VecDeque::new(),
        }
    }

    /// Writes until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            if self.waiting.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    job = self.jobs.recv() => match job {
                        Some(job) => self.waiting.push_back(job),
                        None => return,
                    },
                }
            }
            while self.waiting.len() < WAITING_MAX
                && let Ok(job) = self.jobs.try_recv()
            {
                self.waiting.push_back(job);
            }
            self.round().await;
        }
    }

    /// One transaction of what waits.
    async fn round(&mut self) {
        let limits = self.store.limits();
        let most = BATCH_MAX
            .min(limits.txn_ops_max / 2)
            .min(limits.txn_expects_max);
        let (mut batch, mut later) = (Vec::new(), VecDeque::new());
        let mut keys = BTreeSet::new();
        let mut fresh = 0;
        {
            let board = lock(&self.shared.board);
            while let Some(job) = self.waiting.pop_front() {
                if batch.len() >= most || !keys.insert(job.id.clone()) {
                    later.push_back(job);
                    continue;
                }
                match decide(&board, &job, fresh) {
                    Step::Answer(answer) => {
                        keys.remove(&job.id);
                        drop(job.done.send(answer));
                    }
                    step => {
                        fresh += usize::from(matches!(step, Step::Put { over: None, .. }));
                        batch.push((job, step));
                    }
                }
            }
        }
        self.waiting = later;
        if batch.is_empty() {
            return;
        }
        match self.store.commit(txn(&batch)).await {
            Ok(revision) => self.stored(batch, revision),
            Err(Error::Conflict { key, .. }) => self.overtaken(batch, &key).await,
            Err(error) => {
                // It may have happened; whoever asks again is told how it is by then.
                tracing::warn!(%error, changes = batch.len(), "sessions could not be stored");
                let failed = |job: Job| drop(job.done.send(Err(ChangeError::Store(error.clone()))));
                batch.into_iter().for_each(|(job, _)| failed(job));
                sleep(PAUSE).await;
            }
        }
    }

    fn stored(&self, batch: Vec<(Job, Step)>, revision: Revision) {
        let now = Instant::now();
        let mut answers = Vec::with_capacity(batch.len());
        {
            let mut board = lock(&self.shared.board);
            for (job, step) in batch {
                let session = match step {
                    Step::Put { record, .. } => {
                        board.put(job.id.clone(), &record.value(), revision, now);
                        board.session(&job.id)
                    }
                    Step::Delete { .. } => {
                        let session = board.session(&job.id);
                        board.delete(&job.id, revision);
                        session
                    }
                    Step::Confirm { .. } => board.session(&job.id),
                    Step::Answer(_) => None,
                };
                answers.push((job.done, session));
            }
        }
        // Told before it is answered: what follows an answer finds the news on their way.
        self.shared.tick();
        self.shared.counts.changes(answers.len());
        for (done, session) in answers {
            drop(done.send(Ok(Done {
                done: true,
                session,
            })));
        }
    }

    /// Looks at the key that is another than was known, and does everything again.
    async fn overtaken(&mut self, batch: Vec<(Job, Step)>, key: &str) {
        self.shared.counts.conflict();
        let seen = self.store.get(key).await;
        if let (Some(id), Ok(entry)) = (SessionId::stored(key), seen) {
            let mut board = lock(&self.shared.board);
            match entry {
                Some(entry) => board.put(id, &entry.value, entry.modified, Instant::now()),
                // Nobody has it: what was known of it ended at some time since.
                None => {
                    if let Some(known) = board.held(&id).map(|held| held.modified) {
                        board.delete(&id, known);
                    }
                }
            }
        }
        for (mut job, _) in batch.into_iter().rev() {
            job.tries += u32::from(job.id.store_key() == key);
            if job.tries > TRIES_MAX {
                drop(job.done.send(Err(ChangeError::TooMany)));
                continue;
            }
            self.waiting.push_front(job);
        }
        self.shared.tick();
    }
}

/// `fresh`: keys that this transaction adds already.
fn decide(board: &Board, job: &Job, fresh: usize) -> Step {
    let held = board.held(&job.id);
    let refuse = || {
        Step::Answer(Ok(Done {
            done: false,
            session: board.session(&job.id),
        }))
    };
    let confirm = |held: &Held| Step::Confirm {
        over: Some(held.modified),
    };
    let put = |instance: &str, ttl: Option<Duration>, over: Option<Revision>, epoch| Step::Put {
        record: SessionRecord {
            instance: instance.to_owned(),
            epoch,
            ttl_ms: ttl.map(|ttl| ttl.as_millis() as u64),
        },
        over,
    };
    match (&job.ask, held) {
        (
            Ask::Claim {
                expected: 0,
                instance,
                ttl,
            },
            None,
        ) => {
            let is_full = board.count(&job.id.service) + fresh >= KEYS_PER_SERVICE_MAX
                || board.len() + fresh >= KEYS_MAX;
            match is_full {
                true => Step::Answer(Err(ChangeError::Full)),
                false => put(instance, *ttl, None, None),
            }
        }
        (
            Ask::Claim {
                instance,
                expected,
                ttl,
            },
            Some(held),
        ) if held.instance == *instance => match *expected == 0 || *expected == held.epoch {
            true if held.ttl.is_none() && ttl.is_none() => confirm(held),
            true => put(instance, *ttl, Some(held.modified), Some(held.epoch)),
            false => refuse(),
        },
        (
            Ask::Claim {
                instance,
                expected,
                ttl,
            },
            Some(held),
        ) if *expected == held.epoch => put(instance, *ttl, Some(held.modified), None),
        (Ask::Claim { .. }, _) | (Ask::Move { .. }, None) => refuse(),
        (Ask::Move { to, expected, from }, Some(held)) => {
            let is_meant = is_expected(*expected, held)
                && from.as_ref().is_none_or(|from| *from == held.instance);
            match is_meant {
                true if held.instance == *to => confirm(held),
                true => put(to, held.ttl, Some(held.modified), None),
                false => refuse(),
            }
        }
        (Ask::Release { .. }, None) => Step::Confirm { over: None },
        (Ask::Release { expected, at }, Some(held)) => {
            let is_meant = is_expected(*expected, held) && at.is_none_or(|at| at == held.modified);
            match is_meant {
                true => Step::Delete { at: held.modified },
                false => refuse(),
            }
        }
    }
}

fn is_expected(expected: u64, held: &Held) -> bool {
    expected == 0 || expected == held.epoch
}

fn txn(batch: &[(Job, Step)]) -> Txn {
    let mut txn = Txn::new();
    for (job, step) in batch {
        let key = job.id.store_key();
        match step {
            Step::Put { record, over } => {
                txn.expect.push(match over {
                    Some(at) => Expect::Modified {
                        key: key.clone(),
                        at: *at,
                    },
                    None => Expect::Absent { key: key.clone() },
                });
                txn.ops.push(Op::Put {
                    key,
                    value: record.value().into(),
                    lease: None,
                });
            }
            Step::Delete { at } => {
                txn.expect.push(Expect::Modified {
                    key: key.clone(),
                    at: *at,
                });
                txn.ops.push(Op::Delete { key });
            }
            Step::Confirm { over } => txn.expect.push(match over {
                Some(at) => Expect::Modified { key, at: *at },
                None => Expect::Absent { key },
            }),
            Step::Answer(_) => {}
        }
    }
    txn
}

pub const KEYS_PER_SERVICE_MAX: usize = 200_000;
pub const KEYS_MAX: usize = 500_000;
/// Changes in one transaction, where the store takes so many.
const BATCH_MAX: usize = 512;
/// Taken from the queue at once.
const WAITING_MAX: usize = 4_096;
/// How often somebody else may be faster.
const TRIES_MAX: u32 = 8;
/// After a store that takes nothing.
const PAUSE: Duration = Duration::from_millis(50);
