//! What is kept of a request's body so that another attempt can send it again.

use bytes::Bytes;

/// Chunks in order, by reference count: keeping them copies nothing.
pub struct Replay {
    chunks: Vec<Bytes>,
    kept: usize,
    limit: usize,
    overflowed: bool,
    ended: bool,
}

impl Replay {
    /// Keeps at most `limit` bytes; a body that turns out longer is not kept at all.
    pub fn new(limit: usize) -> Self {
        Self {
            chunks: Vec::new(),
            kept: 0,
            limit,
            overflowed: false,
            ended: false,
        }
    }

    /// A chunk came from the caller.
    pub fn keep(&mut self, chunk: &Bytes) {
        if self.overflowed {
            return;
        }
        self.kept += chunk.len();
        if self.kept > self.limit || self.chunks.len() >= CHUNKS_MAX {
            self.overflowed = true;
            self.chunks = Vec::new();
        } else {
            self.chunks.push(chunk.clone());
        }
    }

    /// The caller's body ended.
    pub fn end(&mut self) {
        self.ended = true;
    }

    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether an attempt that starts now would send all that was sent before.
    pub fn is_complete(&self) -> bool {
        !self.overflowed
    }

    /// Nothing will be sent again, but for what the attempt under way has not sent yet.
    pub fn release(&mut self) {
        self.overflowed = true;
    }

    /// The attempt under way has sent what was kept: after [`Replay::release`] nobody needs it any more.
    pub fn forget(&mut self) {
        if self.overflowed && !self.chunks.is_empty() {
            self.chunks = Vec::new();
        }
    }

    /// The chunk at `place`, of those kept.
    pub fn chunk(&self, place: usize) -> Option<&Bytes> {
        self.chunks.get(place)
    }

    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// Many tiny chunks would hold more than their bytes.
const CHUNKS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_body_is_not_kept() {
        let mut replay = Replay::new(4);
        replay.keep(&Bytes::from_static(b"abc"));
        assert!(replay.is_complete());
        replay.keep(&Bytes::from_static(b"de"));
        assert!(!replay.is_complete() && replay.is_empty());
    }
}
