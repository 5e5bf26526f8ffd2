//! Records that wait for a store: appended to files (one fsync for all that came meanwhile), numbered without gaps, read back
//! in order until somebody says that they have arrived, and kept a while longer for a store that forgets. The log knows
//! nothing of what is in a record. One process per directory.

use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use tokio::sync::{mpsc, oneshot};

mod cursor;
mod segment;
mod state;
mod writer;

pub use cursor::{Cursor, Record};
pub use state::Source;
use writer::Writer;

/// Sizes in bytes of files on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxConfig {
    /// All segments together: what would go beyond it is refused.
    pub bytes_max: u64,
    /// How much of what has arrived is kept, for a store that loses its newest data.
    pub retained_bytes: u64,
    /// At most half of `bytes_max`.
    pub segment_bytes: u64,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self {
            bytes_max: 256 << 20,
            retained_bytes: 32 << 20,
            segment_bytes: 4 << 20,
        }
    }
}

/// Why a log on disk was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The system refused.
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// One process per directory.
    #[error("{} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// Its end may be torn, which is mended; this is not the end.
    #[error("{} is damaged before its end: move it away to go on without its records", .0.display())]
    Damaged(PathBuf),
    /// A segment was taken away.
    #[error("records between {} and the segment before it are missing", .0.display())]
    Gap(PathBuf),
}

/// Why a record was not taken. It is not in the log then, and may be tried again; only after [`AppendError::Disk`] can it
/// turn up when the log is opened anew, if the disk could not even take back what it had not made safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// [`OutboxConfig::bytes_max`]: the store has been away for long.
    #[error("the log is full: {bytes_max} bytes wait for the store")]
    Full { bytes_max: u64 },
    /// Come again in some milliseconds.
    #[error("too many appends wait for the disk")]
    Busy,
    /// No player's id is so long.
    #[error("a record of {bytes} bytes, {RECORD_BYTES_MAX} are allowed")]
    TooLarge { bytes: usize },
    /// Until it takes something again.
    #[error("the disk refused ({0})")]
    Disk(io::ErrorKind),
    /// The board is being shut down.
    #[error("the log has been closed")]
    Closed,
}

/// The log. Dropping it ends its thread after what was appended is on disk.
#[derive(Debug)]
pub struct Outbox {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    _lock: File,
}

/// What the writer, the readers and those who count have in common.
#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    config: OutboxConfig,
    /// The highest number that is safely on disk.
    durable: AtomicU64,
    /// The highest number that has arrived.
    acknowledged: AtomicU64,
    bytes: AtomicU64,
    syncs: AtomicU64,
    refused: AtomicU64,
    failed: AtomicBool,
    /// Oldest first; held for a few instructions.
    segments: Mutex<VecDeque<Segment>>,
    state: Mutex<state::State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    /// Number of its first record.
    first: u64,
    records: u64,
    bytes: u64,
}

impl Segment {
    /// Number after its last record.
    fn end(&self) -> u64 {
        self.first + self.records
    }
}

#[derive(Debug)]
enum Request {
    Append {
        payload: Vec<u8>,
        reply: oneshot::Sender<Result<u64, AppendError>>,
    },
    /// Something has arrived: files may go.
    Trim,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxMetrics {
    /// Records that have not arrived yet.
    pub pending: u64,
    /// Files, with what has arrived and is kept.
    pub bytes: u64,
    pub syncs_total: u64,
    /// Appends refused because the log or its queue was full, or its disk failed.
    pub refused_total: u64,
}

impl Outbox {
    /// Opens the log of `directory`, which is made if it isn't there, and cuts off what was being written when the last
    /// process died. Blocks.
    pub fn open(directory: &Path, config: OutboxConfig) -> Result<Self, OutboxError> {
        std::fs::create_dir_all(directory).map_err(failed("make", directory))?;
        let lock = lock(directory)?;
        let segments = segment::scan(directory)?;
        let last = segments.back().map_or(0, |last| last.end() - 1);
        let state = state::State::open(directory, last)?;
        // A log of one file could not be trimmed.
        let segment_bytes = config.segment_bytes.min(config.bytes_max / 2);
        let config = OutboxConfig {
            segment_bytes,
            ..config
        };
        // Files that somebody removed must not make numbers come again.
        let last = last.max(state.base).max(state.acknowledged);
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            config,
            durable: AtomicU64::new(last),
            acknowledged: AtomicU64::new(state.base.max(state.acknowledged)),
            bytes: AtomicU64::new(segments.iter().map(|segment| segment.bytes).sum()),
            syncs: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            segments: Mutex::new(segments),
            state: Mutex::new(state),
        });
        let (requests, incoming) = mpsc::channel(APPENDS_MAX);
        let writer = Writer::open(shared.clone(), last + 1)?;
        let writer = thread::Builder::new()
            .name("board-outbox".to_owned())
            .spawn(move || writer.run(incoming))
            .map_err(failed("start the writer of", directory))?;
        Ok(Self {
            shared,
            requests: Some(requests),
            writer: Some(writer),
            _lock: lock,
        })
    }

    /// Ready when the record is on disk; its number then. Cancelling leaves open whether it is.
    pub async fn append(&self, payload: Vec<u8>) -> Result<u64, AppendError> {
        let bytes = payload.len();
        if bytes > RECORD_BYTES_MAX {
            return Err(AppendError::TooLarge { bytes });
        }
        let requests = self.requests.as_ref().ok_or(AppendError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let sent = requests.try_send(Request::Append { payload, reply });
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                AppendError::Busy
            }
            mpsc::error::TrySendError::Closed(_) => AppendError::Closed,
        })?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Who numbers these records: a store that remembers the last number of each source applies nothing twice.
    pub fn source(&self) -> Source {
        self.shared.state().source
    }

    /// Everything up to `number` has arrived in the store `store`.
    pub fn acknowledge(&self, number: u64, store: u64) {
        let number = number.min(self.durable());
        self.shared
            .acknowledged
            .fetch_max(number, Ordering::Relaxed);
        self.shared.state().acknowledge(number, store);
        if let Some(requests) = &self.requests {
            // A full queue trims without being told.
            let _ = requests.try_send(Request::Trim);
        }
    }

    /// When the store last took records of this log, Unix s; 0 if it never did.
    pub fn arrived_s(&self) -> u64 {
        self.shared.state().arrived_s
    }

    /// Records will be offered for `epoch` of the store. The highest number that arrived in an earlier one.
    pub fn entered(&self, epoch: u32) -> u64 {
        self.shared.state().entered(epoch)
    }

    /// What arrived is gone again, down to `number`: the store has lost it.
    pub fn rewind(&self, number: u64) {
        let number = number.min(self.durable());
        self.shared.acknowledged.store(number, Ordering::Relaxed);
        self.shared.state().rewind(number);
    }

    /// The store knows more of this source than the log does: the directory is a copy of an older time. From here on the
    /// records appended since [`Outbox::open`] (they begin after `number`) have another source.
    pub fn disown(&self, number: u64) -> Result<Source, OutboxError> {
        let mut state = self.shared.state();
        state.disown(number)?;
        self.shared.acknowledged.store(number, Ordering::Relaxed);
        Ok(state.source)
    }

    /// The store that the acknowledged records arrived in, if any did.
    pub fn arrived_in(&self) -> Option<u64> {
        self.shared.state().store
    }

    pub fn durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// The oldest number that can be read, or the next one that will be given.
    pub fn oldest(&self) -> u64 {
        let oldest = self.shared.segments().front().map(|segment| segment.first);
        let oldest = oldest.unwrap_or(self.durable() + 1);
        oldest.max(self.shared.state().base + 1)
    }

    /// A place to read from, at `number` or the oldest record after it.
    pub fn cursor(&self, number: u64) -> Cursor {
        Cursor::new(self.shared.clone(), number.max(self.oldest()))
    }

    pub fn metrics(&self) -> OutboxMetrics {
        OutboxMetrics {
            pending: self.durable().saturating_sub(self.acknowledged()),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            syncs_total: self.shared.syncs.load(Ordering::Relaxed),
            refused_total: self.shared.refused.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // A panic in it has been printed; appends have been told.
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn segments(&self) -> MutexGuard<'_, VecDeque<Segment>> {
        self.segments
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    fn state(&self) -> MutexGuard<'_, state::State> {
        self.state
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    fn path(&self, first: u64) -> PathBuf {
        self.directory.join(segment::name(first))
    }
}

fn lock(directory: &Path) -> Result<File, OutboxError> {
    let path = directory.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OutboxError::Locked(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OutboxError {
    let path = path.to_owned();
    move |source| OutboxError::Io { what, path, source }
}

/// Appends that wait for the disk.
const APPENDS_MAX: usize = 16_384;
pub const RECORD_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests;
