//! Reading the log in order, while it is written and trimmed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{OutboxError, RECORD_BYTES_MAX, Shared, failed, segment};

/// A place in the log. Blocks while it reads, which is from memory mostly: what was just written.
#[derive(Debug)]
pub struct Cursor {
    shared: Arc<Shared>,
    next: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    first: u64,
    /// Where `next` begins.
    offset: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub number: u64,
    pub payload: Vec<u8>,
}

impl Cursor {
    pub(super) fn new(shared: Arc<Shared>, next: u64) -> Self {
        Self {
            shared,
            next,
            open: None,
        }
    }

    /// The number that is read next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Up to `records_max` records that are safely on disk, none if there are no more yet. If records were trimmed that had
    /// not been read, it goes on with the oldest.
    pub fn read(&mut self, records_max: usize) -> Result<Vec<Record>, OutboxError> {
        let durable = self.shared.durable.load(Ordering::Acquire);
        let mut records = Vec::new();
        while records.len() < records_max && self.next <= durable {
            if !self.stand()? {
                break;
            }
            let wanted = records_max - records.len();
            let read = self.chunk(wanted, durable)?;
            if read.is_empty() {
                // The end of this segment; the next one begins here.
                let ended = self.open.take();
                let path = ended.map(|open| self.shared.path(open.first));
                if self.segment()?.is_none_or(|(first, _)| first != self.next) {
                    return Err(OutboxError::Damaged(path.unwrap_or_default()));
                }
                continue;
            }
            records.extend(read);
        }
        Ok(records)
    }

    /// Opens the segment that `next` is in; false if there is none.
    fn stand(&mut self) -> Result<bool, OutboxError> {
        if self.open.is_some() {
            return Ok(true);
        }
        loop {
            let Some((first, skip_to)) = self.segment()? else {
                return Ok(false);
            };
            let path = self.shared.path(first);
            let file = match File::open(&path) {
                Ok(file) => file,
                // Trimmed since.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let oldest = self.shared.segments().front().map(|oldest| oldest.first);
                    if oldest.is_none_or(|oldest| oldest <= first) {
                        return Err(failed("open", &path)(error));
                    }
                    continue;
                }
                Err(error) => return Err(failed("open", &path)(error)),
            };
            self.next = skip_to;
            let mut open = Open {
                file,
                first,
                offset: segment::HEAD_BYTES as u64,
            };
            for number in first..skip_to {
                let read =
                    read_at(&open.file, open.offset, ONE_BYTES).map_err(failed("read", &path))?;
                let Some((_, taken)) = segment::decode(&read, number) else {
                    return Err(OutboxError::Damaged(path));
                };
                open.offset += taken as u64;
            }
            self.open = Some(open);
            return Ok(true);
        }
    }

    /// The segment that `next` is in, or the oldest if that begins later: its first number, and where to read on.
    fn segment(&self) -> Result<Option<(u64, u64)>, OutboxError> {
        let segments = self.shared.segments();
        let found = segments.iter().find(|segment| self.next < segment.end());
        Ok(found.map(|segment| (segment.first, self.next.max(segment.first))))
    }

    fn chunk(&mut self, records_max: usize, durable: u64) -> Result<Vec<Record>, OutboxError> {
        let Some(open) = self.open.as_mut() else {
            return Ok(Vec::new());
        };
        let path = self.shared.path(open.first);
        let bytes = read_at(&open.file, open.offset, CHUNK_BYTES).map_err(failed("read", &path))?;
        let mut rest = bytes.as_slice();
        let mut records = Vec::new();
        while records.len() < records_max && self.next <= durable {
            let Some((payload, taken)) = segment::decode(rest, self.next) else {
                break;
            };
            records.push(Record {
                number: self.next,
                payload: payload.to_vec(),
            });
            rest = &rest[taken..];
            open.offset += taken as u64;
            self.next += 1;
        }
        Ok(records)
    }
}

/// Fewer bytes only at the end of the file.
fn read_at(file: &File, offset: u64, bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut read = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match file.read_at(&mut read[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    read.truncate(filled);
    Ok(read)
}

const CHUNK_BYTES: usize = 64 << 10;
const ONE_BYTES: usize = segment::RECORD_HEAD_BYTES + RECORD_BYTES_MAX;
