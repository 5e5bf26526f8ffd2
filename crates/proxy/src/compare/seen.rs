//! What is remembered of one answer: head, length and hash of its body, and of short JSON the body.

use phalanx_relay::{HeaderList, ResponseHead};
use xxhash_rust::xxh3::Xxh3;

use super::judge::is_json;
use super::room::Room;

#[derive(Default)]
pub struct Seen {
    pub(super) status: u16,
    pub(super) grpc_status: Option<u8>,
    pub(super) headers: HeaderList,
    /// All of it, if it is JSON and no longer than [`BODY_MAX`].
    pub(super) body: Vec<u8>,
    pub(super) length: u64,
    hash: Option<Box<Xxh3>>,
    /// It came from the backend, and to its end.
    pub(super) is_whole: bool,
    has_head: bool,
    /// The body is wanted, so far.
    keeps: bool,
    duration_us: u64,
    /// For all of that.
    room: Option<Room>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub grpc_status: Option<u8>,
    /// All of it came.
    pub is_whole: bool,
    pub duration_us: u64,
}

impl Seen {
    pub(super) fn within(room: Room) -> Self {
        Self {
            room: Some(room),
            ..Self::default()
        }
    }

    /// As it came from the backend.
    pub fn head(&mut self, head: &ResponseHead) {
        self.status = head.status;
        self.headers = head.headers.clone();
        self.has_head = true;
        self.keeps = is_json(&self.headers);
        if !self.keeps {
            self.shrink();
        }
    }

    pub fn body(&mut self, data: &[u8]) {
        self.length = self.length.saturating_add(data.len() as u64);
        self.hash.get_or_insert_default().update(data);
        if !self.keeps {
            return;
        }
        if self.length > BODY_MAX as u64 {
            self.keeps = false;
            return self.shrink();
        }
        let (length, capacity) = (self.body.len() + data.len(), self.body.capacity());
        if length > capacity {
            // Never beyond what was taken for it.
            let wanted = length.max((2 * capacity).min(BODY_MAX));
            self.body.reserve_exact(wanted - self.body.len());
        }
        self.body.extend_from_slice(data);
    }

    /// Its body is not kept, or there is no more of it.
    fn shrink(&mut self) {
        if self.body.len() as u64 != self.length {
            self.body = Vec::new();
        }
        if let Some(room) = &mut self.room {
            room.shrink(HEAD_SHARE + self.body.len());
        }
    }

    pub(super) fn end(&mut self, end: End) {
        self.grpc_status = end.grpc_status;
        self.is_whole = self.has_head && end.is_whole;
        self.duration_us = end.duration_us;
        self.body.shrink_to_fit();
        self.shrink();
    }

    pub(super) fn duration_us(&self) -> u64 {
        self.duration_us
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash.as_ref().map_or(0, |hash| hash.digest())
    }

    pub(super) fn is_kept(&self) -> bool {
        self.body.len() as u64 == self.length
    }
}

/// Of one body: what is longer is compared by length and hash.
const BODY_MAX: usize = 64 << 10;
/// What is reckoned for the rest.
const HEAD_SHARE: usize = 8 << 10;
/// What one answer takes of the room until it is known.
pub(super) const SHARE: usize = HEAD_SHARE + BODY_MAX;
