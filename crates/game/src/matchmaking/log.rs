//! The ordered log of a shard on disk: records appended one at a time, each written and synced before the next, so that a
//! crash tears at most the last. A checkpoint is the whole state at one place; with it the records before it go.
//! Errors of the disk are final: a log that could not sync is not written again by this process.
//!
//! ```text
//! identity                     who this directory is: a random number, made once
//! lock                         held while the log is open
//! 0000000000000007.checkpoint  the state at which segment 7 begins (none for segment 1)
//! 0000000000000007.segment     position at its start, then records
//! ```

mod checkpoint;
mod files;
mod record;

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

pub use checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint};
pub use record::{BODY_BYTES_MAX, HEADER_BYTES, Position, Record};

pub(super) use files::Lock;

use files::Segment;

/// A segment that grew to this many bytes is waiting for a checkpoint that never came; the log refuses to go on.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Names a data directory, so that one that was emptied can't pass for the one that was in sync.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct ReplicaId(pub u64);

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("can't {attempt} {}", path.display())]
    Io {
        attempt: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Something was lost that had been synced: bit rot, a file removed, a foreign file.
    #[error("the log {} is damaged: {problem} (let the standby take over, or restore the directory)", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("the log {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    /// Of an owner that was replaced and doesn't know it yet.
    #[error("a record of epoch {found}, the log is at {epoch}")]
    Fenced { found: u64, epoch: u64 },
    #[error("record {found} doesn't follow {seq}")]
    Gap { found: u64, seq: u64 },
    #[error("the log failed before and takes nothing more until it is opened again")]
    Broken,
    #[error("{bytes} bytes without a checkpoint, at most {SEGMENT_BYTES_MAX} are kept")]
    Full { bytes: u64 },
}

/// An open log. One thread has it; it blocks while the disk does.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    replica: ReplicaId,
    position: Position,
    segment: Segment,
    /// A checkpoint on its way to disk, beside the appending.
    writing: Option<JoinHandle<Result<(), LogError>>>,
    broken: bool,
    sync: fn(&File) -> io::Result<()>,
    _lock: Lock,
}

/// What a log held when it was opened: the newest checkpoint and every whole record after it.
#[derive(Debug)]
pub struct Recovered {
    pub checkpoint: Option<Checkpoint>,
    pub records: Vec<Record>,
    /// Bytes of a torn last record, which were never acknowledged and were cut off.
    pub cut_bytes: u64,
}

impl Log {
    /// Opens the log in `directory`, or makes both.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when anything but the last record is not whole; [`LogError::InUse`].
    pub fn open(directory: &Path) -> Result<(Log, Recovered), LogError> {
        files::make(directory)?;
        let lock = files::lock(directory)?;
        let replica = files::identity(directory)?;
        let (recovered, segment, position) = files::recover(directory)?;
        let log = Log {
            directory: directory.into(),
            replica,
            position,
            segment,
            writing: None,
            broken: false,
            sync: File::sync_data,
            _lock: lock,
        };
        Ok((log, recovered))
    }

    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    pub fn position(&self) -> Position {
        self.position
    }

    /// Bytes since the newest checkpoint.
    pub fn segment_bytes(&self) -> u64 {
        self.segment.bytes
    }

    /// Writes and syncs one record; it is durable when this returns.
    ///
    /// # Errors
    /// [`LogError::Fenced`] and [`LogError::Gap`] change nothing; everything else is final.
    pub fn append(&mut self, record: &Record) -> Result<(), LogError> {
        self.usable()?;
        if record.epoch < self.position.epoch {
            let epoch = self.position.epoch;
            return Err(LogError::Fenced {
                found: record.epoch,
                epoch,
            });
        }
        if !record.follows(&self.position) {
            return Err(LogError::Gap {
                found: record.first,
                seq: self.position.seq,
            });
        }
        let bytes = self.segment.bytes + record.bytes().len() as u64;
        if bytes > SEGMENT_BYTES_MAX {
            self.broken = true;
            return Err(LogError::Full { bytes });
        }
        let written = self.segment.file.write_all(record.bytes());
        if let Err(source) = written.and_then(|()| (self.sync)(&self.segment.file)) {
            return Err(self.failed("append to", source));
        }
        self.segment.bytes = bytes;
        self.position = record.position();
        Ok(())
    }

    /// Starts a new segment at the log's position, and writes `state`, which is what the records so far come to, on a
    /// thread of its own. Until that is done the old segment is kept. Answers false, doing nothing, while an earlier
    /// checkpoint is still being written.
    ///
    /// # Errors
    /// All are final, also that of the checkpoint before.
    pub fn checkpoint(&mut self, state: Vec<u8>) -> Result<bool, LogError> {
        self.usable()?;
        match self.writing.take() {
            Some(writing) if !writing.is_finished() => {
                self.writing = Some(writing);
                return Ok(false);
            }
            Some(writing) => self.written(writing)?,
            None => {}
        }
        let generation = self.segment.generation + 1;
        self.begin(generation)?;
        let checkpoint = Checkpoint {
            position: self.position,
            state,
        };
        let directory = self.directory.clone();
        let write = move || {
            checkpoint.write(&directory, generation)?;
            files::remove_before(&directory, generation)
        };
        let thread = std::thread::Builder::new().name("match checkpoint".into());
        let spawned = thread.spawn(write);
        self.writing =
            Some(spawned.map_err(|source| self.failed("write a checkpoint in", source))?);
        Ok(true)
    }

    /// Forgets everything and goes on from `checkpoint`, another history's.
    ///
    /// # Errors
    /// All are final.
    pub fn install(&mut self, checkpoint: &Checkpoint) -> Result<(), LogError> {
        self.usable()?;
        if let Some(writing) = self.writing.take() {
            self.written(writing)?;
        }
        if checkpoint.position.epoch < self.position.epoch {
            return Err(LogError::Fenced {
                found: checkpoint.position.epoch,
                epoch: self.position.epoch,
            });
        }
        // The checkpoint comes first: from its name on, the segments before its generation count no more.
        let generation = self.segment.generation + 1;
        let installed = checkpoint.write(&self.directory, generation);
        let installed = installed.and_then(|()| {
            self.position = checkpoint.position;
            self.begin(generation)?;
            files::remove_before(&self.directory, generation)
        });
        self.broken |= installed.is_err();
        installed
    }

    fn begin(&mut self, generation: u64) -> Result<(), LogError> {
        match Segment::make(&self.directory, generation, &self.position) {
            Ok(segment) => {
                self.segment = segment;
                Ok(())
            }
            Err(error) => {
                self.broken = true;
                Err(error)
            }
        }
    }

    fn written(&mut self, writing: JoinHandle<Result<(), LogError>>) -> Result<(), LogError> {
        let result = writing.join().unwrap_or(Err(LogError::Broken));
        self.broken |= result.is_err();
        result
    }

    fn usable(&self) -> Result<(), LogError> {
        if self.broken {
            return Err(LogError::Broken);
        }
        Ok(())
    }

    fn failed(&mut self, attempt: &'static str, source: io::Error) -> LogError {
        self.broken = true;
        LogError::Io {
            attempt,
            path: self.directory.clone(),
            source,
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // The thread would outlive the lock.
        if let Some(writing) = self.writing.take() {
            let _ = writing.join();
        }
    }
}
