//! Which colour has the request that was given this trace or this id, as far as a core remembers. What it had no room to
//! remember is told too: then nobody is found where it would have been.

use std::sync::atomic::{AtomicU64, Ordering};

use super::span::{Span, is_recent};
use super::trace::Stamp;

pub(super) struct Index(Box<[Bucket]>);

#[derive(Default)]
struct Bucket {
    ways: [Way; WAYS],
    /// Those that found no room, or had to leave it early.
    lost: Span,
}

#[derive(Default)]
struct Way {
    stamp: Stamp,
    id: AtomicU64,
    /// Key of its colour.
    colour: AtomicU64,
}

/// Where one request is remembered by one of its ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Nowhere,
    At { bucket: u16, way: u8 },
    Lost { bucket: u16 },
}

impl Default for Index {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| Bucket::default()).collect())
    }
}

fn bucket_of(id: u64) -> u16 {
    ((id >> 32) % BUCKETS as u64) as u16
}

impl Index {
    fn bucket(&self, bucket: u16) -> Option<&Bucket> {
        self.0.get(usize::from(bucket))
    }

    /// A request begins that has the id (0: none), a colour by its key, and a row.
    pub(super) fn begin(
        &self,
        id: u64,
        colour: u64,
        row: u8,
        now_ms: u64,
        linger_ms: u64,
    ) -> Place {
        let number = bucket_of(id);
        let Some(bucket) = self.bucket(number).filter(|_| id != 0) else {
            return Place::Nowhere;
        };
        // The longest gone, if any is: one that has never been is gone since ever.
        let gone = bucket.ways.iter().enumerate();
        let gone = gone.filter_map(|(at, way)| Some((way.stamp.ended_ms(now_ms)?, at, way)));
        let Some((ended_ms, at, way)) = gone.min_by_key(|(ended_ms, ..)| *ended_ms) else {
            bucket.lost.begin();
            return Place::Lost { bucket: number };
        };
        if way.stamp.is_used() && is_recent(ended_ms, now_ms, linger_ms) {
            bucket.lost.touch(ended_ms);
        }
        way.stamp.write(row, || {
            way.id.store(id, Ordering::Relaxed);
            way.colour.store(colour, Ordering::Relaxed);
        });
        Place::At {
            bucket: number,
            way: at as u8,
        }
    }

    pub(super) fn end(&self, place: Place, now_ms: u64) {
        match place {
            Place::Nowhere => {}
            Place::At { bucket, way } => {
                let bucket = self.bucket(bucket);
                if let Some(way) = bucket.and_then(|bucket| bucket.ways.get(usize::from(way))) {
                    way.stamp.end(now_ms);
                }
            }
            Place::Lost { bucket } => {
                if let Some(bucket) = self.bucket(bucket) {
                    bucket.lost.end(now_ms);
                }
            }
        }
    }

    /// Tells the colours of all candidates that have the id, and their rows, until one is not `same`. False then, and
    /// where there may be others.
    pub(super) fn find(
        &self,
        id: u64,
        now_ms: u64,
        linger_ms: u64,
        mut same: impl FnMut(u64, u8) -> bool,
    ) -> bool {
        let Some(bucket) = self.bucket(bucket_of(id)) else {
            return false;
        };
        for way in &bucket.ways {
            let read = || {
                let found = way.id.load(Ordering::Relaxed);
                (found, way.colour.load(Ordering::Relaxed))
            };
            if let Some((row, (found, colour))) = way.stamp.read(now_ms, linger_ms, read)
                && found == id
                && !same(colour, row)
            {
                return false;
            }
        }
        !bucket.lost.is_recent(now_ms, linger_ms)
    }
}

const BUCKETS: usize = 512;
/// A thousand requests per second leave two of their ids in a bucket while they linger.
const WAYS: usize = 8;
