//! Results on their way to Redis. A result is accepted when it is in the log on disk ([`outbox`](super::outbox)); a task
//! ships the log in order, many records to a script, and the script remembers the last number of each log, so that whatever
//! is sent again after a silence counts once. Until the store has it, readers of this process see it through [`overlay`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::kind::{Kind, PlayerId};
use super::now_ms;
use super::order::{Law, Refused};
use super::outbox::{AppendError, Outbox};
use super::redis::script::SOURCE_IDLE_S;

pub(super) mod overlay;
mod record;
mod ship;

pub(super) use overlay::Pending;
pub(super) use record::{Record, Write};
pub(super) use ship::Shipper;

/// How results leave the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteConfig {
    /// Records per second at most, after an outage above all.
    pub ship_rate_max: u32,
    /// Records per script.
    pub batch_max: usize,
    /// The next epoch's board is empty; for how long the old one's stays in Redis, nought: for good.
    pub keep_old: Duration,
}

impl Default for WriteConfig {
    fn default() -> Self {
        Self {
            ship_rate_max: 20_000,
            batch_max: 256,
            keep_old: Duration::from_secs(90 * 24 * 3600),
        }
    }
}

/// A result that is in the log, and will be on the board whatever happens to Redis or to this process: unless its epoch is
/// over when it arrives there (`fenced`), or its player banned (`barred`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Numbers of one log have no gaps and follow the order of acceptance.
    pub number: u64,
}

/// Why a result was not accepted. It will not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The board doesn't take it: trying again is no use.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It isn't in the log.
    #[error(transparent)]
    NotAccepted(#[from] AppendError),
    /// This process was started without a directory for its log.
    #[error("this process only reads the board")]
    ReadOnly,
    /// The season is over.
    #[error("the board is final")]
    Final,
}

/// What readers, writers and the shipper have in common.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) outbox: Arc<Outbox>,
    pub(super) pending: Pending,
    /// What was in the log when it was opened ends here.
    pub(super) opened_at: u64,
    /// Something was appended, or is `doubted`.
    pub(super) wake: Notify,
    /// Redis may have something of this process.
    sent: AtomicBool,
    /// Redis lacks what had arrived: the shipper is to find its place anew.
    doubted: AtomicBool,
    pub(super) counts: Counts,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) accepted: AtomicU64,
    pub(super) shipped: AtomicU64,
    pub(super) fenced: AtomicU64,
    pub(super) barred: AtomicU64,
    /// Records that the rule refuses by now, or that can't be read.
    pub(super) skipped: AtomicU64,
    /// Records that the store lost and the log no longer has.
    pub(super) lost: AtomicU64,
    pub(super) rewound: AtomicU64,
    /// When the oldest pending record was written, Unix ms; nought if none is.
    pub(super) oldest_ms: AtomicU64,
    /// The log could not be read.
    pub(super) stuck: AtomicBool,
}

impl Log {
    /// With what was pending when the last process ended. Blocks.
    pub(super) fn new(outbox: Outbox, law: Law) -> Result<Self, super::outbox::OutboxError> {
        let pending = Pending::new(law);
        let opened_at = outbox.durable();
        let mut cursor = outbox.cursor(outbox.acknowledged() + 1);
        let counts = Counts::default();
        loop {
            let records = cursor.read(REPLAY_CHUNK)?;
            if records.is_empty() {
                break;
            }
            for record in records {
                if let Some(write) = Write::decode(&record.payload) {
                    let none = counts.oldest_ms.load(Ordering::Relaxed) == 0;
                    if none {
                        counts.oldest_ms.store(write.written_ms, Ordering::Relaxed);
                    }
                    pending.note(record.number, &write);
                }
            }
        }
        Ok(Self {
            outbox: Arc::new(outbox),
            pending,
            opened_at,
            wake: Notify::new(),
            sent: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            counts,
        })
    }

    /// Ready when it is on disk.
    pub(super) async fn accept(&self, write: Write) -> Result<Receipt, WriteError> {
        let number = self.outbox.append(write.encode()).await?;
        self.pending.note(number, &write);
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        let _ = self.counts.oldest_ms.compare_exchange(
            0,
            write.written_ms,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        self.wake.notify_one();
        Ok(Receipt { number })
    }
}

impl Log {
    /// The store said that it has `applied` of this log, when it should have had `arrived`.
    pub(super) fn compare(&self, born: u64, applied: Option<u64>, arrived: u64) {
        let lost = match applied {
            Some(applied) => applied < arrived,
            None => !self.is_forgotten(born),
        };
        if lost && self.outbox.oldest() <= arrived {
            self.doubted.store(true, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    /// A store that doesn't know this log may have made room for another one, if it was silent for long, and lost nothing.
    fn is_forgotten(&self, born: u64) -> bool {
        let silent_s = (now_ms() / 1000).saturating_sub(self.outbox.arrived_s());
        self.outbox.arrived_in() == Some(born) && silent_s >= SOURCE_IDLE_S - CLOCKS_APART_S
    }
}

/// Whether the board would take that result.
pub(super) fn check(law: &Law, points: i64, at_ms: u64) -> Result<(), Refused> {
    match law.kind() {
        Kind::Best(_) => law.order(points, at_ms).map(drop),
        Kind::Decayed { .. } => law.decay_step(points, at_ms).map(drop),
        Kind::Sum(_) if points.unsigned_abs() > POINTS_MAX => Err(Refused::OutOfRange {
            score: points,
            min: -(POINTS_MAX as i64),
            max: POINTS_MAX as i64,
        }),
        Kind::Sum(_) => Ok(()),
    }
}

/// A result of so many points.
pub(super) fn points(
    player: PlayerId,
    points: i64,
    at_ms: u64,
    epoch: u32,
    written_ms: u64,
) -> Write {
    Write {
        record: Record::Points { points, at_ms },
        epoch,
        player,
        written_ms,
    }
}

/// What a double counts without gaps.
const POINTS_MAX: u64 = 1 << 53;
const REPLAY_CHUNK: usize = 4096;
/// The store's clock and this one.
const CLOCKS_APART_S: u64 = 24 * 3600;
