//! Which colour has the request that was given this trace or this id, as far as a core remembers. What it had no room to
//! remember is told too: then nobody is found where it would have been.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::colour::{Read, Text, WORDS};
use super::span::{Span, is_recent};
use super::trace::Stamp;

pub(super) struct Index {
    buckets: Box<[Bucket]>,
    /// Way by way; made with the first `x-canary-id`.
    canaries: OnceLock<Box<[Canary]>>,
}

/// As [`Text`]; the length is [`UNKNOWN`] where it says nothing that can be written.
type Canary = [AtomicU64; WORDS];
const UNKNOWN: u64 = u64::MAX;

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
    /// Key of its `x-env`.
    env: AtomicU64,
}

/// A request by its colour, on one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Key of its `x-env`, and the row.
    pub(super) env: u64,
    pub(super) row: u8,
    pub(super) canary: Option<Text>,
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
        Self {
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
            canaries: OnceLock::new(),
        }
    }
}

fn bucket_of(id: u64) -> u16 {
    ((id >> 32) % BUCKETS as u64) as u16
}

impl Index {
    fn bucket(&self, bucket: u16) -> Option<&Bucket> {
        self.buckets.get(usize::from(bucket))
    }

    fn canary(&self, bucket: u16, way: usize) -> Option<&Canary> {
        let canaries = self.canaries.get()?;
        canaries.get(usize::from(bucket) * WAYS + way)
    }

    /// A request begins that has the id (0: none), an `x-env` by its key and row, and this `x-canary-id`.
    pub(super) fn begin(
        &self,
        id: u64,
        (env, row): (u64, u8),
        canary: &Read,
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
            way.env.store(env, Ordering::Relaxed);
            self.keep(canary, number, at);
        });
        Place::At {
            bucket: number,
            way: at as u8,
        }
    }

    fn keep(&self, canary: &Read, bucket: u16, way: usize) {
        if !matches!(canary, Read::Nothing) {
            let none = || Canary::default();
            let made = || (0..BUCKETS * WAYS).map(|_| none()).collect();
            self.canaries.get_or_init(made);
        }
        let Some(place) = self.canary(bucket, way) else {
            return;
        };
        let mut text = [0; WORDS];
        match canary {
            Read::Nothing => {}
            Read::Of(said) => text = *said,
            Read::Unreadable => text[0] = UNKNOWN,
        }
        for (place, word) in place.iter().zip(text) {
            place.store(word, Ordering::Relaxed);
        }
    }

    fn kept(&self, bucket: u16, way: usize) -> Option<Text> {
        let mut text = [0; WORDS];
        for (word, place) in text.iter_mut().zip(self.canary(bucket, way)?) {
            *word = place.load(Ordering::Relaxed);
        }
        (!matches!(text.first(), Some(&(0 | UNKNOWN)))).then_some(text)
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

    /// Tells all candidates that have the id, until one is not `same`. False then, and where there may be others.
    pub(super) fn find(
        &self,
        id: u64,
        now_ms: u64,
        linger_ms: u64,
        mut same: impl FnMut(Known) -> bool,
    ) -> bool {
        let number = bucket_of(id);
        let Some(bucket) = self.bucket(number) else {
            return false;
        };
        for (at, way) in bucket.ways.iter().enumerate() {
            let read = || {
                let found = way.id.load(Ordering::Relaxed) == id;
                found.then(|| (way.env.load(Ordering::Relaxed), self.kept(number, at)))
            };
            if let Some((row, Some((env, canary)))) = way.stamp.read(now_ms, linger_ms, read)
                && !same(Known { env, row, canary })
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
