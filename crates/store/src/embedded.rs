//! The embedded backend: one file, one process. Reads come from an ordered map in memory, since the state is small and a
//! read must not wait for a disk; each write is evaluated by one writer, synced in a group, then shown and acknowledged.
//!
//! The writer is a task that sends one group at a time to the blocking pool. That is a thread with a queue, but one under
//! which paused time stands still while the disk works, so that tests of leases are exact.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{Entry, Error, LeaseId, Limits, Page, Result, Revision, Status, Txn};

mod restore;

mod writer;

mod feed;

mod engine;
mod lease;
mod ledger;
mod record;

mod disk;
#[cfg(any(test, feature = "conformance"))]
pub mod faulty;

#[cfg(test)]
mod tests;

pub use disk::{Disk, FileDisk, MemoryDisk};
pub use feed::Watch;
pub use restore::{Restored, restore};

use engine::{Engine, Fault, Reader};
use lease::Leases;
use ledger::Ledger;
use writer::{Ask, Request, Writer};

pub const LIMITS: Limits = Limits {
    key_bytes_max: 4 << 10,
    // A history record: what a change of 4 MiB replaced, and by what.
    value_bytes_max: 12 << 20,
    txn_ops_max: 1024,
    txn_expects_max: 64,
    txn_bytes_max: 16 << 20,
    lease_ttl_max: Duration::from_secs(30 * 24 * 3600),
    leases_max: 65_536,
};

/// Requests that may wait for the writer, and the memory that they may hold; more wait in their callers.
pub const QUEUE_MAX: usize = 1024;
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// How much of the past a watch can still read, whichever is reached first. The disk holds about twice as much.
pub const LOG_REVISIONS_MAX: u64 = 100_000;
pub const LOG_BYTES_MAX: u64 = 256 << 20;

#[derive(Clone, Debug)]
pub struct Config {
    place: Place,
    pub log_revisions_max: u64,
    pub log_bytes_max: u64,
}

#[derive(Clone, Debug)]
enum Place {
    Directory(PathBuf),
    Disk(Arc<dyn Disk>),
}

impl Config {
    /// Keeps the store in the directory, which is made when it isn't there.
    pub fn at(directory: impl Into<PathBuf>) -> Config {
        Config::on(Place::Directory(directory.into()))
    }

    /// Keeps the store on a disk that is handed in, for simulation and for tests of faults.
    pub fn disk(disk: Arc<dyn Disk>) -> Config {
        Config::on(Place::Disk(disk))
    }

    pub fn memory() -> Config {
        Config::disk(Arc::new(MemoryDisk::default()))
    }

    fn on(place: Place) -> Config {
        Config {
            place,
            log_revisions_max: LOG_REVISIONS_MAX,
            log_bytes_max: LOG_BYTES_MAX,
        }
    }
}

/// The handle's side; the other side is the writer's task, which ends when this is dropped or closed.
pub struct Embedded {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    head: watch::Receiver<Revision>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// What writer, readers and watches have in common. No reader waits here while a disk works, and no lock is
/// held across an await.
struct Shared {
    ledger: RwLock<Ledger>,
    /// Heartbeats change only this, so that they neither wait for the writer nor write.
    leases: Mutex<Leases>,
    /// Where watches find what is no longer in memory. Changes when the engine is opened anew.
    reader: RwLock<Option<Reader>>,
    condition: watch::Sender<Condition>,
    written: AtomicU64,
    groups: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Writable,
    ReadOnly(String),
    Fatal(String),
    Closed,
}

pub async fn open(config: Config) -> Result<Embedded> {
    let opening = tokio::task::spawn_blocking(move || load(config));
    let (writer, ledger, leases) = match opening.await {
        Ok(loaded) => loaded?,
        Err(_) => return Err(Error::Closed),
    };
    let (head_tx, head) = watch::channel(ledger.head);
    let condition = match writer.engine.blocked() {
        Some(reason) => Condition::ReadOnly(reason),
        None => Condition::Writable,
    };
    let shared = Arc::new(Shared {
        ledger: RwLock::new(ledger),
        leases: Mutex::new(leases),
        reader: RwLock::new(Some(writer.engine.reader())),
        condition: watch::Sender::new(condition),
        written: AtomicU64::new(0),
        groups: AtomicU64::new(0),
    });
    let (requests, queue) = mpsc::channel(QUEUE_MAX);
    let task = tokio::spawn(writer::run(writer, shared.clone(), queue, head_tx));
    Ok(Embedded {
        shared,
        requests,
        room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX / ROOM_UNIT)),
        head,
        task: tokio::sync::Mutex::new(Some(task)),
    })
}

/// The room in the queue is counted in these.
const ROOM_UNIT: usize = 1024;

fn load(config: Config) -> Result<(Writer, Ledger, Leases)> {
    let (disk, path): (Arc<dyn Disk>, PathBuf) = match config.place {
        Place::Directory(directory) => {
            let disk = disk::prepare(&directory, |disk| Engine::open(disk).map(drop))?;
            (Arc::new(disk), directory.join(disk::FILE))
        }
        Place::Disk(disk) => (disk, PathBuf::from("(a disk that was handed in)")),
    };
    let attempt = || -> Result<_, Fault> {
        let engine = Engine::open_or_peek(disk.clone())?;
        let (ledger, persisted) = engine.load()?;
        Ok((engine, ledger, persisted))
    };
    let (engine, ledger, persisted) = attempt().map_err(|fault| refused(&path, fault))?;
    tracing::info!(
        path = %path.display(),
        revision = ledger.head,
        oldest = ledger.floor,
        entries = ledger.len(),
        "store opened"
    );
    let leases = Leases::restored(persisted.leases);
    let writer = Writer::new(
        engine,
        disk,
        persisted.lease_next,
        config.log_revisions_max,
        config.log_bytes_max,
    );
    Ok((writer, ledger, leases))
}

fn refused(path: &Path, fault: Fault) -> Error {
    match fault {
        Fault::Full(problem) | Fault::Final(problem) => Error::Damaged {
            path: path.into(),
            problem,
            hint: "the disk refused; look at its free space, its permissions and the kernel's log",
        },
        Fault::Damaged(problem) => Error::Damaged {
            path: path.into(),
            problem,
            hint: "restore a backup, or move the file away to start empty; sidecars keep what they have meanwhile",
        },
    }
}

impl Embedded {
    pub fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.shared.open()?;
        Ok(self.shared.read().get(key).cloned())
    }

    pub fn list(&self, prefix: &str) -> Result<Page> {
        self.shared.open()?;
        let ledger = self.shared.read();
        Ok(Page {
            entries: ledger.under(prefix).cloned().collect(),
            revision: ledger.head,
        })
    }

    pub async fn commit(&self, txn: Txn) -> Result<Revision> {
        txn.check(&LIMITS)?;
        let bytes = txn.bytes();
        self.ask(Ask::Commit(txn), bytes).await
    }

    pub fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        self.shared.open()?;
        let ledger = self.shared.read();
        if from > ledger.head {
            return Err(Error::Future {
                asked: from,
                head: ledger.head,
            });
        }
        if from < ledger.floor {
            return Err(Error::Compacted {
                from,
                oldest: ledger.floor,
            });
        }
        drop(ledger);
        Ok(Watch::new(
            self.shared.clone(),
            prefix,
            from,
            self.head.clone(),
        ))
    }

    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        if ttl.is_zero() || ttl > LIMITS.lease_ttl_max {
            let most = LIMITS.lease_ttl_max;
            return Err(Error::Invalid {
                problem: format!("a lease of {ttl:?}, it has to be above 0 and at most {most:?}"),
            });
        }
        self.ask(Ask::Grant(ttl), 0).await.map(LeaseId)
    }

    pub fn keep_alive(&self, lease: LeaseId) -> Result<Duration> {
        self.shared.open()?;
        self.shared
            .leases()
            .keep_alive(lease)
            .ok_or(Error::LeaseNotFound { lease })
    }

    pub async fn revoke(&self, lease: LeaseId) -> Result<Revision> {
        self.ask(Ask::Revoke(lease), 0).await
    }

    pub async fn compact(&self, keep_from: Revision) -> Result<()> {
        self.ask(Ask::Compact(keep_from), 0).await.map(drop)
    }

    pub fn revision(&self) -> Revision {
        self.shared.read().head
    }

    pub fn status(&self) -> Status {
        let (read_only, fatal) = match &*self.shared.condition.borrow() {
            Condition::ReadOnly(reason) => (Some(reason.clone()), None),
            Condition::Fatal(reason) => (None, Some(reason.clone())),
            Condition::Writable | Condition::Closed => (None, None),
        };
        let leases = self.shared.leases().len();
        let ledger = self.shared.read();
        Status {
            revision: ledger.head,
            oldest: ledger.floor,
            entries: ledger.len(),
            leases,
            log_bytes: ledger.log_bytes,
            read_only,
            fatal,
            queued: self.requests.max_capacity() - self.requests.capacity(),
            written: self.shared.written.load(Ordering::Relaxed),
            groups: self.shared.groups.load(Ordering::Relaxed),
        }
    }

    pub async fn fatal(&self) -> String {
        let mut condition = self.shared.condition.subscribe();
        loop {
            if let Condition::Fatal(reason) = &*condition.borrow_and_update() {
                return reason.clone();
            }
            // `shared` holds the sender, so this does not fail while the caller holds a handle.
            if condition.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub async fn close(&self) {
        // An error means that the writer has ended already.
        let _ = self.ask(Ask::Close, 0).await;
        if let Some(task) = self.task.lock().await.take() {
            let _ = task.await;
        }
    }

    async fn ask(&self, ask: Ask, bytes: usize) -> Result<u64> {
        if !matches!(ask, Ask::Close) {
            self.shared.writable()?;
        }
        // LIMITS.txn_bytes_max is far below what the queue holds and below u32, so this can't wait for ever.
        let units = u32::try_from(bytes / ROOM_UNIT + 1).unwrap_or(u32::MAX);
        let room = self
            .room
            .clone()
            .acquire_many_owned(units)
            .await
            .map_err(|_| Error::Closed)?;
        let (answer, answered) = oneshot::channel();
        let request = Request {
            ask,
            answer,
            _room: room,
        };
        if self.requests.send(request).await.is_ok()
            && let Ok(answer) = answered.await
        {
            return answer;
        }
        Err(self.shared.gone().await)
    }
}

impl Shared {
    fn open(&self) -> Result<()> {
        match *self.condition.borrow() {
            Condition::Closed => Err(Error::Closed),
            _ => Ok(()),
        }
    }

    fn writable(&self) -> Result<()> {
        match &*self.condition.borrow() {
            Condition::Writable => Ok(()),
            Condition::ReadOnly(reason) => Err(Error::ReadOnly {
                reason: reason.clone(),
            }),
            Condition::Fatal(reason) => Err(Error::Fatal {
                reason: reason.clone(),
            }),
            Condition::Closed => Err(Error::Closed),
        }
    }

    /// Why a request got no answer: its writer is ending, and will say so.
    async fn gone(&self) -> Error {
        let mut condition = self.condition.subscribe();
        let ended = condition
            .wait_for(|condition| matches!(condition, Condition::Fatal(_) | Condition::Closed))
            .await;
        match ended.as_deref() {
            Ok(Condition::Fatal(reason)) => Error::Fatal {
                reason: reason.clone(),
            },
            _ => Error::Closed,
        }
    }

    // A panic under one of these locks leaves data that is old, not torn: the writer prepares outside and swaps inside.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Ledger> {
        self.ledger.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Ledger> {
        self.ledger.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> Option<Reader> {
        self.reader
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_reader(&self, reader: Option<Reader>) {
        *self.reader.write().unwrap_or_else(PoisonError::into_inner) = reader;
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("status", &self.status())
            .finish()
    }
}
