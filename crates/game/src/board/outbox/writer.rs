//! The thread that writes: takes what waits, one write, one fsync, answers all. After a failed fsync nobody knows what is on
//! disk, so that nothing more is taken until the log is opened anew.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot};

use super::{AppendError, OutboxError, Request, Segment, Shared, failed, segment};

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// The last segment, open for appending.
    file: Option<File>,
    /// The number of the next record.
    next: u64,
}

type Waiting = (Vec<u8>, oneshot::Sender<Result<u64, AppendError>>);

impl Writer {
    pub(super) fn open(shared: Arc<Shared>, next: u64) -> Result<Self, OutboxError> {
        let last = shared.segments().back().copied();
        // A last segment that ends before `next` is complete: numbers were used that it doesn't have.
        let file = match last.filter(|last| last.end() == next) {
            Some(last) => {
                let path = shared.path(last.first);
                let open = File::options().append(true).open(&path);
                Some(open.map_err(failed("open", &path))?)
            }
            None => {
                // What is left is of numbers that have all arrived.
                let gone = std::mem::take(&mut *shared.segments());
                for segment in gone {
                    let path = shared.path(segment.first);
                    fs::remove_file(&path).map_err(failed("remove", &path))?;
                }
                shared.bytes.store(0, Ordering::Relaxed);
                None
            }
        };
        Ok(Self { shared, file, next })
    }

    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch: Vec<Waiting> = Vec::new();
        while let Some(first) = requests.blocking_recv() {
            let mut request = Some(first);
            while let Some(taken) = request {
                if let Request::Append { payload, reply } = taken {
                    batch.push((payload, reply));
                }
                request = (batch.len() < BATCH_MAX)
                    .then(|| requests.try_recv().ok())
                    .flatten();
            }
            self.trim();
            self.commit(&mut batch);
        }
    }

    fn commit(&mut self, batch: &mut Vec<Waiting>) {
        if batch.is_empty() {
            return;
        }
        if self.shared.failed.load(Ordering::Relaxed) {
            self.refuse(batch.drain(..), AppendError::Disk(io::ErrorKind::Other));
            return;
        }
        let room = self.shared.config.bytes_max;
        let room = room.saturating_sub(self.shared.bytes.load(Ordering::Relaxed));
        let mut bytes = Vec::new();
        let mut taken = 0;
        for (payload, _) in batch.iter() {
            let before = bytes.len();
            segment::encode(&mut bytes, self.next + taken as u64, payload);
            if (bytes.len() + segment::HEAD_BYTES) as u64 > room {
                bytes.truncate(before);
                break;
            }
            taken += 1;
        }
        let full = AppendError::Full {
            bytes_max: self.shared.config.bytes_max,
        };
        let over = batch.split_off(taken);
        self.refuse(over.into_iter(), full);
        if taken == 0 {
            return;
        }
        match self.write(&bytes, taken as u64) {
            Ok(()) => {
                let first = self.next;
                self.next += taken as u64;
                self.shared.durable.store(self.next - 1, Ordering::Release);
                for (number, (_, reply)) in (first..).zip(batch.drain(..)) {
                    // Who asked may have gone.
                    let _ = reply.send(Ok(number));
                }
            }
            Err(error) => {
                tracing::error!(%error, directory = %self.shared.directory.display(), "the outbox's disk refused");
                self.refuse(batch.drain(..), AppendError::Disk(error.kind()));
            }
        }
    }

    fn refuse(&self, batch: impl Iterator<Item = Waiting>, error: AppendError) {
        for (_, reply) in batch {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            let _ = reply.send(Err(error));
        }
    }

    /// All of it is on disk, or nothing is in the log.
    fn write(&mut self, bytes: &[u8], records: u64) -> io::Result<()> {
        let last = self.shared.segments().back().copied();
        let full = last.is_none_or(|last| last.bytes >= self.shared.config.segment_bytes);
        if self.file.is_none() || full {
            self.begin()?;
        }
        let Some(file) = self.file.as_mut() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let length = file.metadata()?.len();
        if let Err(error) = file.write_all(bytes) {
            // The disk is full, say: half a record must not stay before the next one.
            if file.set_len(length).is_err() {
                self.shared.failed.store(true, Ordering::Relaxed);
            }
            return Err(error);
        }
        if let Err(error) = file.sync_data() {
            self.shared.failed.store(true, Ordering::Relaxed);
            // Who asked is told no: it should not be there after all when the log is opened anew.
            let _ = file.set_len(length);
            return Err(error);
        }
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        let written = bytes.len() as u64;
        self.shared.bytes.fetch_add(written, Ordering::Relaxed);
        if let Some(last) = self.shared.segments().back_mut() {
            last.records += records;
            last.bytes += written;
        }
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        let path = self.shared.path(self.next);
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)?;
        file.write_all(&segment::head(self.next))?;
        file.sync_all()?;
        File::open(&self.shared.directory)?.sync_all()?;
        self.file = Some(File::options().append(true).open(&path)?);
        let bytes = segment::HEAD_BYTES as u64;
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.segments().push_back(Segment {
            first: self.next,
            records: 0,
            bytes,
        });
        Ok(())
    }

    /// Removes whole segments that have arrived, the oldest first, while more is kept than is wanted; the last one, which
    /// knows the next number, stays, and makes room for an empty one when it is full.
    fn trim(&mut self) {
        let acknowledged = self.shared.acknowledged.load(Ordering::Relaxed);
        let config = self.shared.config;
        let room = config.bytes_max.saturating_sub(config.segment_bytes);
        let wanted = config.retained_bytes.min(room);
        let last = self.shared.segments().back().copied();
        let full = last.is_some_and(|last| {
            last.bytes >= config.segment_bytes && last.records > 0 && last.end() <= acknowledged + 1
        });
        if full
            && self.shared.bytes.load(Ordering::Relaxed) > wanted
            && let Err(error) = self.begin()
        {
            tracing::warn!(%error, "cannot begin a segment");
        }
        loop {
            let gone = {
                let mut segments = self.shared.segments();
                let kept = self.shared.bytes.load(Ordering::Relaxed);
                let oldest = segments.front().copied();
                let oldest = oldest.filter(|oldest| {
                    segments.len() > 1 && kept > wanted && oldest.end() <= acknowledged + 1
                });
                let Some(oldest) = oldest else {
                    return;
                };
                segments.pop_front();
                oldest
            };
            self.shared.bytes.fetch_sub(gone.bytes, Ordering::Relaxed);
            let path = self.shared.path(gone.first);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, segment = %path.display(), "cannot remove an old segment");
            }
        }
    }
}

/// Appends that share an fsync.
const BATCH_MAX: usize = 4096;
