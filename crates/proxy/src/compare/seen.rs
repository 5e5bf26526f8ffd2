//! What is remembered of one answer: head, the beginning of its body, and of the rest its length and hash.

use phalanx_relay::{HeaderList, ResponseHead};
use xxhash_rust::xxh3::Xxh3;

#[derive(Default)]
pub struct Seen {
    pub(super) status: u16,
    pub(super) grpc_status: Option<u8>,
    pub(super) headers: HeaderList,
    /// The whole body, unless it is longer than [`BODY_MAX`].
    pub(super) body: Vec<u8>,
    pub(super) length: u64,
    hash: Option<Box<Xxh3>>,
    /// It came from the backend, and to its end.
    pub(super) is_whole: bool,
    has_head: bool,
    duration_us: u64,
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
    /// As it came from the backend.
    pub fn head(&mut self, head: &ResponseHead) {
        self.status = head.status;
        self.headers = head.headers.clone();
        self.has_head = true;
    }

    pub fn body(&mut self, data: &[u8]) {
        self.length = self.length.saturating_add(data.len() as u64);
        self.hash.get_or_insert_default().update(data);
        let room = BODY_MAX.saturating_sub(self.body.len());
        if let Some(kept) = data.get(..room.min(data.len())) {
            self.body.extend_from_slice(kept);
        }
    }

    pub(super) fn end(&mut self, end: End) {
        self.grpc_status = end.grpc_status;
        self.is_whole = self.has_head && end.is_whole;
        self.duration_us = end.duration_us;
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
