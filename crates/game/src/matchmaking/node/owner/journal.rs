//! The owner's end of the log: entries become batches, batches become records, and the newest records stay for a standby
//! that was away. How large a batch is and where the log stands is known here alone.

use super::recent::Recent;
use crate::matchmaking::{
    ledger::Entry,
    log::{Position, Record},
};

/// A batch that has grown to this many bytes takes no more requests until it is on its way.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Records that may be under way to a standby that is waited for.
const PIPELINE_MAX: usize = 8;

/// Of what was written: records, entries, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub records: u64,
    pub entries: u64,
    pub bytes: u64,
}

#[derive(Debug)]
pub struct Journal {
    /// Behind the newest record.
    position: Position,
    recent: Recent,
    /// Batches that were full, oldest first, and the one that is being filled.
    full: Vec<(Vec<u8>, u32)>,
    body: Vec<u8>,
    count: u32,
    since_checkpoint: u64,
    written: Written,
}

impl Journal {
    /// `log_bytes`: what the log has written since its newest checkpoint.
    pub fn new(position: Position, log_bytes: u64) -> Journal {
        Journal {
            position,
            recent: Recent::default(),
            full: Vec::new(),
            body: Vec::new(),
            count: 0,
            since_checkpoint: log_bytes,
            written: Written::default(),
        }
    }

    pub fn position(&self) -> Position {
        self.position
    }

    pub fn written(&self) -> Written {
        self.written
    }

    /// Whether a whole batch waits.
    pub fn is_full(&self) -> bool {
        !self.full.is_empty()
    }

    pub fn add(&mut self, entry: &Entry) {
        entry.encode(&mut self.body);
        self.count += 1;
        // Rooms and the search don't wait for the disk, but a record has to stay one that can be read.
        if self.body.len() >= BATCH_BYTES_MAX {
            let body = std::mem::take(&mut self.body);
            self.full.push((body, std::mem::take(&mut self.count)));
        }
    }

    /// Closes the batches: the records that they become, oldest first.
    pub fn seal(&mut self, epoch: u64) -> Vec<Record> {
        let mut batches = std::mem::take(&mut self.full);
        if self.count > 0 {
            batches.push((std::mem::take(&mut self.body), self.count));
            self.count = 0;
        }
        let mut records = Vec::with_capacity(batches.len());
        for (body, count) in batches {
            let record = Record::seal(epoch, &self.position, count, &body);
            self.position = record.position();
            let bytes = record.bytes().len() as u64;
            self.written.records += 1;
            self.written.entries += u64::from(count);
            self.written.bytes += bytes;
            self.since_checkpoint += bytes;
            self.recent.push(record.clone());
            records.push(record);
            // Its memory serves the next batch.
            self.body = body;
            self.body.clear();
        }
        records
    }

    /// True, once, when more than `bytes` were written since the newest checkpoint.
    pub fn is_checkpoint_due(&mut self, bytes: u64) -> bool {
        let is_due = self.since_checkpoint > bytes;
        if is_due {
            self.since_checkpoint = 0;
        }
        is_due
    }

    /// The records behind `position`, as far as they are still here.
    pub fn since(&self, position: &Position) -> Option<Vec<Record>> {
        self.recent.since(position, &self.position)
    }

    /// Whether somebody who has `acked` has enough to do; then batches grow.
    pub fn is_ahead_of(&self, acked: u64) -> bool {
        self.recent.after(acked) >= PIPELINE_MAX
    }
}
