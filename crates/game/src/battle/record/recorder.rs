//! Writes records to a file that is bounded: when half of the bytes are used up the file is put aside, and the one that was
//! aside before is gone. A thread writes; cores hand it what it has room for and count the rest.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::super::lock;
use super::{BODY_BYTES_MAX, FRAME_BYTES, HEADER_BYTES, Record, RecordError, header};

/// Records on their way to the thread.
const QUEUE_MAX: usize = 4_096;
/// The least that a recorder can work with: two files of a record each.
const BYTES_MIN: u64 = 2 * (HEADER_BYTES + FRAME_BYTES + BODY_BYTES_MAX) as u64;

/// More than any record.
const BUFFER_BYTES: usize = FRAME_BYTES + BODY_BYTES_MAX + 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecorderOptions {
    /// Of both files together. 64 MiB
    pub bytes_max: u64,
    /// Of records on their way to the file. 8 MiB
    pub queue_bytes_max: usize,
}

impl Default for RecorderOptions {
    fn default() -> Self {
        Self {
            bytes_max: 64 << 20,
            queue_bytes_max: 8 << 20,
        }
    }
}

/// What became of the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecorderState {
    pub written: u64,
    /// Not taken: too large, or more than the file keeps up with.
    pub dropped: u64,
    /// Lost to errors of the file.
    pub failed: u64,
}

/// A handle of a recorder; see [`super::super::Kind::record`]. The thread ends with the last handle.
#[derive(Clone)]
pub struct Recorder(Arc<Desk>);

struct Desk {
    sender: SyncSender<Message>,
    tally: Arc<Counts>,
    queue_bytes_max: usize,
    path: PathBuf,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Counts {
    queued_bytes: AtomicUsize,
    written: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

enum Message {
    Record(Vec<u8>),
    Close,
}

impl Recorder {
    /// Begins a file at `path`; one that is there is put aside as `<path>.1`.
    pub fn create(path: &Path, options: RecorderOptions) -> Result<Self, RecordError> {
        if options.bytes_max < BYTES_MIN {
            return Err(RecordError::TooSmall {
                found: options.bytes_max,
                needed: BYTES_MIN,
            });
        }
        let log = Log::begin(path, options.bytes_max / 2)?;
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let tally = Arc::<Counts>::default();
        let thread = {
            let tally = tally.clone();
            let builder = thread::Builder::new().name("battle-recorder".to_owned());
            builder.spawn(move || write(log, &receiver, &tally))?
        };
        Ok(Self(Arc::new(Desk {
            sender,
            tally,
            queue_bytes_max: options.queue_bytes_max,
            path: path.to_owned(),
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Hands a record over; never waits.
    pub fn write(&self, record: &Record) {
        let tally = &self.0.tally;
        let taken = record.encode().is_some_and(|bytes| {
            let length = bytes.len();
            let before = tally.queued_bytes.fetch_add(length, Ordering::Relaxed);
            let fits = before + length <= self.0.queue_bytes_max;
            let taken = fits && self.0.sender.try_send(Message::Record(bytes)).is_ok();
            if !taken {
                tally.queued_bytes.fetch_sub(length, Ordering::Relaxed);
            }
            taken
        });
        if !taken {
            tally.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn state(&self) -> RecorderState {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RecorderState {
            written: load(&self.0.tally.written),
            dropped: load(&self.0.tally.dropped),
            failed: load(&self.0.tally.failed),
        }
    }

    /// Writes what was handed over and ends the thread; what comes later is dropped. Blocks.
    pub fn close(&self) -> RecorderState {
        let thread = lock(&self.0.thread).take();
        if let Some(thread) = thread {
            // Blocks while the queue is full, which the thread empties.
            let _ = self.0.sender.send(Message::Close);
            if thread.join().is_err() {
                tracing::error!("the recorder's thread panicked");
            }
        }
        self.state()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorder({})", self.0.path.display())
    }
}

fn write(mut log: Log, records: &Receiver<Message>, tally: &Counts) {
    let mut failing = false;
    loop {
        let message = match records.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Disconnected) => break,
            // Nothing to do: what was written is for everybody to see.
            Err(TryRecvError::Empty) => {
                if let Err(error) = log.file.flush()
                    && !std::mem::replace(&mut failing, true)
                {
                    tracing::warn!(%error, "recorded battles were not written");
                }
                match records.recv() {
                    Ok(message) => message,
                    Err(_) => break,
                }
            }
        };
        let Message::Record(bytes) = message else {
            break;
        };
        tally.queued_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
        match log.append(&bytes) {
            Ok(()) => {
                failing = false;
                tally.written.fetch_add(1, Ordering::Relaxed)
            }
            Err(error) => {
                // A full disk fails them all: said once.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "battles are not recorded");
                }
                tally.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
    if let Err(error) = log.file.flush() {
        tracing::warn!(%error, "recorded battles were not written");
    }
}

struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    bytes_max: u64,
}

impl Log {
    fn begin(path: &Path, bytes_max: u64) -> io::Result<Self> {
        if path.exists() {
            fs::rename(path, aside(path))?;
        }
        // A record is buffered whole, so that a write that fails leaves none that is torn before others.
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
        file.write_all(&header())?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes: HEADER_BYTES as u64,
            bytes_max,
        })
    }

    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        if self.bytes + record.len() as u64 > self.bytes_max {
            self.file.flush()?;
            *self = Self::begin(&self.path, self.bytes_max)?;
        }
        self.file.write_all(record)?;
        self.bytes += record.len() as u64;
        Ok(())
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}
