//! The newest records, kept in memory for a standby that was away for a moment.

use std::collections::VecDeque;

use crate::matchmaking::log::{Position, Record};

/// Bytes of records that are kept. A standby that lacks more gets the whole state.
pub const RECENT_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, Default)]
pub struct Recent {
    records: VecDeque<Record>,
    bytes: usize,
}

impl Recent {
    pub fn push(&mut self, record: Record) {
        self.bytes += record.bytes().len();
        self.records.push_back(record);
        while self.bytes > RECENT_BYTES_MAX
            && let Some(oldest) = self.records.pop_front()
        {
            self.bytes -= oldest.bytes().len();
        }
    }

    /// What follows `position` in the history that ends at `end`; `None` when that isn't known, or when `position` is
    /// part of another history.
    pub fn since(&self, position: &Position, end: &Position) -> Option<Vec<Record>> {
        if position == end {
            return Some(Vec::new());
        }
        let at = self
            .records
            .iter()
            .position(|record| record.follows(position))?;
        Some(self.records.range(at..).cloned().collect())
    }

    /// Records that aren't wholly within the first `seq` entries.
    pub fn after(&self, seq: u64) -> usize {
        let newest = self.records.iter().rev();
        newest.take_while(|record| record.last() > seq).count()
    }
}
