//! Bytes that were read from a socket and can't be used yet: a pipelined request, a body whose receiver is full.

use crate::pool::Pool;

/// Bounded by what one read brings, because a driver does not read again before this is empty. Holds no memory while it is.
#[derive(Debug, Default)]
pub struct Unread {
    buffer: Vec<u8>,
    at: usize,
}

impl Unread {
    pub fn is_empty(&self) -> bool {
        self.at >= self.buffer.len()
    }

    pub fn as_slice(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    /// Memory held; nothing while it is empty.
    pub fn held_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// Keeps `rest` behind what is here already.
    pub fn keep(&mut self, rest: &[u8], pool: &mut Pool) {
        if rest.is_empty() {
            return;
        }
        if self.buffer.capacity() == 0 {
            self.buffer = pool.buffer();
        }
        self.buffer.extend_from_slice(rest);
    }

    /// All but the last `left` bytes were used. Nothing is moved, so that many small requests cost no more than one large.
    pub fn advance_to(&mut self, left: usize, pool: &mut Pool) {
        self.at = self.buffer.len().saturating_sub(left).max(self.at);
        if self.is_empty() {
            self.at = 0;
            pool.put_buffer(std::mem::take(&mut self.buffer));
        }
    }
}
