//! The task that takes the log to Redis: where it stands is what Redis says, never what this process believes. One batch is
//! under way at a time; a batch without an answer is sent again, and what Redis has of it is not applied twice.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::record::{self, Write};
use super::{Log, WriteConfig};
use crate::board::breaker::Outcome;
use crate::board::kind::{Kind, PlayerId};
use crate::board::order::{Law, Order};
use crate::board::outbox::{self, Cursor, OutboxError};
use crate::board::redis::Shared;
use crate::board::redis::link::{Link, StoreError};
use crate::board::redis::script::{self, Applied, Batch, Change, Constants};
use crate::board::refresh::over;

pub(in crate::board) struct Shipper {
    shared: Arc<Shared>,
    log: Arc<Log>,
    link: Link,
    config: WriteConfig,
    constants: Constants,
    /// `None`: ask Redis.
    place: Option<Place>,
    batch: Vec<outbox::Record>,
    backoff: Duration,
}

struct Place {
    cursor: Cursor,
    /// What Redis said it has, while the next batch doesn't follow it.
    gap: Option<Option<u64>>,
}

#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] OutboxError),
    #[error("the reader of the log ended")]
    Reader,
}

impl Shipper {
    pub(in crate::board) fn new(
        shared: Arc<Shared>,
        log: Arc<Log>,
        link: Link,
        config: WriteConfig,
    ) -> Self {
        let constants = constants(shared.board.law());
        Self {
            shared,
            log,
            link,
            config,
            constants,
            place: None,
            batch: Vec::new(),
            backoff: BACKOFF_MIN,
        }
    }

    /// Runs until `ended` says so. What is in the log then is shipped by the next process.
    pub(in crate::board) async fn run(mut self, mut ended: watch::Receiver<bool>) {
        loop {
            let wait = tokio::select! {
                () = over(&mut ended) => return,
                wait = self.turn() => wait,
            };
            tokio::select! {
                () = over(&mut ended) => return,
                () = tokio::time::sleep(wait) => {}
                () = self.log.wake.notified(), if wait > BACKOFF_MAX => {}
            }
        }
    }

    /// Ships a batch; how long to wait for the next.
    async fn turn(&mut self) -> Duration {
        if self.log.doubted.swap(false, Ordering::Relaxed) {
            self.place = None;
            self.batch.clear();
        }
        let outbox = &self.log.outbox;
        if self.place.is_some()
            && self.batch.is_empty()
            && outbox.acknowledged() >= outbox.durable()
        {
            self.log.counts.oldest_ms.store(0, Ordering::Relaxed);
            // What was appended between the two looks has set it again, or will be read now.
            if outbox.acknowledged() >= outbox.durable() {
                return IDLE;
            }
        }
        let Some(permit) = self.shared.circuit.allow() else {
            return CLOSED_POLL;
        };
        let began = Instant::now();
        match self.ship().await {
            Ok(shipped) => {
                permit.settle(Outcome::Succeeded);
                self.backoff = BACKOFF_MIN;
                self.log.counts.stuck.store(false, Ordering::Relaxed);
                if shipped == 0 {
                    // Redis said something that must be thought over: an earlier epoch, say, is the refresher's to mend.
                    return BACKOFF_MIN;
                }
                let rate = f64::from(self.config.ship_rate_max.max(1));
                Duration::from_secs_f64(shipped as f64 / rate).saturating_sub(began.elapsed())
            }
            Err(error) => {
                permit.settle(self.judge(&error));
                let wait = self.backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                wait
            }
        }
    }

    fn judge(&mut self, error: &ShipError) -> Outcome {
        match error {
            ShipError::Store(error) => {
                self.shared.failed("ship", error);
                match error.failure.is_outage() {
                    true => Outcome::Failed,
                    // It answers, and takes nothing: reads go on.
                    false => Outcome::Abandoned,
                }
            }
            ShipError::Log(error) => {
                tracing::error!(%error, "the board's log can't be read");
                self.log.counts.stuck.store(true, Ordering::Relaxed);
                self.place = None;
                self.batch.clear();
                Outcome::Abandoned
            }
            ShipError::Reader => {
                self.place = None;
                self.batch.clear();
                Outcome::Abandoned
            }
        }
    }

    /// One batch, if there is one; how many records.
    async fn ship(&mut self) -> Result<usize, ShipError> {
        if self.place.is_none() {
            self.find_place().await?;
        }
        if self.batch.is_empty() {
            self.read().await?;
        }
        let Some(first) = self.batch.first().map(|record| record.number) else {
            return Ok(0);
        };
        let law = self.shared.board.law();
        let epoch = self.shared.progress.epoch.load(Ordering::Relaxed).max(1);
        let before = self.log.outbox.entered(epoch);
        let (mut changes, mut players) = (Vec::new(), Vec::new());
        for record in &self.batch {
            let mut write = Write::decode(&record.payload);
            // Meant for whatever epoch there was, which an earlier one has been already.
            if let Some(write) = write.as_mut().filter(|write| write.epoch == 0)
                && record.number <= before
            {
                write.epoch = epoch - 1;
            }
            players.push(write.as_ref().map(|write| write.player.clone()));
            changes.push(record::change(law, write));
        }
        match self.send(epoch, first, &changes).await? {
            Applied::Done {
                last,
                born,
                fenced,
                barred,
                orders,
            } => {
                self.arrived(&changes, players, last, &orders, epoch);
                let counts = &self.log.counts;
                counts.fenced.fetch_add(fenced, Ordering::Relaxed);
                counts.barred.fetch_add(barred, Ordering::Relaxed);
                self.log.outbox.acknowledge(last, born);
                if let Some(place) = &mut self.place {
                    place.gap = None;
                }
                // Redis may have had more than was sent: go on where it is.
                if self.batch.last().is_some_and(|record| record.number < last) {
                    self.place = None;
                }
                self.batch.clear();
                Ok(changes.len())
            }
            Applied::Epoch(epoch) => {
                self.shared.progress.reached(epoch);
                Ok(0)
            }
            Applied::Behind => {
                self.place = None;
                self.batch.clear();
                Ok(0)
            }
        }
    }

    async fn send(
        &mut self,
        epoch: u32,
        first: u64,
        changes: &[Change],
    ) -> Result<Applied, StoreError> {
        let batch = Batch {
            epoch,
            law: self.shared.board.law().fingerprint(),
            source: self.log.outbox.source().0,
            from: first - 1,
            gap: self.place.as_ref().and_then(|place| place.gap),
            constants: &self.constants,
            changes,
        };
        let call = script::apply(&self.shared.keys, &batch);
        self.log.sent.store(true, Ordering::Relaxed);
        script::applied(&self.link.call(&call).await?)
    }

    /// The last `orders.len()` of the batch were applied just now, the others before.
    fn arrived(
        &self,
        changes: &[Change],
        players: Vec<Option<PlayerId>>,
        last: u64,
        orders: &[Option<Order>],
        epoch: u32,
    ) {
        let skipped = changes
            .iter()
            .filter(|change| change.operation == script::Operation::Skip);
        let counts = &self.log.counts;
        counts
            .skipped
            .fetch_add(skipped.count() as u64, Ordering::Relaxed);
        counts
            .shipped
            .fetch_add(changes.len() as u64, Ordering::Relaxed);
        let before = players.len().saturating_sub(orders.len());
        for (player, order) in players.into_iter().skip(before).zip(orders) {
            if let (Some(player), Some(order)) = (player, order) {
                self.log.pending.remember(player, *order, last, epoch);
            }
        }
    }

    async fn read(&mut self) -> Result<(), ShipError> {
        let Some(mut place) = self.place.take() else {
            return Ok(());
        };
        let batch_max = self.config.batch_max.clamp(1, BATCH_MAX);
        let read = tokio::task::spawn_blocking(move || {
            let read = place.cursor.read(batch_max);
            (place, read)
        });
        let (place, read) = read.await.map_err(|_| ShipError::Reader)?;
        self.batch = read?;
        self.place = Some(place);
        if let Some(oldest) = self
            .batch
            .first()
            .and_then(|record| Write::decode(&record.payload))
        {
            self.log
                .counts
                .oldest_ms
                .store(oldest.written_ms, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Asks Redis what it has of this log, and goes on after that.
    async fn find_place(&mut self) -> Result<(), ShipError> {
        let outbox = self.log.outbox.clone();
        let source = outbox.source();
        let epoch = self.shared.progress.epoch.load(Ordering::Relaxed).max(1);
        let call = script::read(&self.shared.keys, epoch, Some(source.0), None, &[]);
        let head = script::reading(&self.link.call(&call).await?)?.head;
        self.shared.progress.reached(head.epoch);
        let (oldest, acknowledged) = (outbox.oldest(), outbox.acknowledged());
        // Numbers that were given since the start may be some that Redis has of another future of this log.
        let log = if self.log.sent.load(Ordering::Relaxed) {
            outbox.durable()
        } else {
            self.log.opened_at
        };
        let next = match head.applied {
            Some(applied) if applied > log => {
                tracing::error!(
                    applied,
                    log,
                    "redis knows more of this log than the log itself: its directory is a copy of an older time"
                );
                outbox.disown(self.log.opened_at)?;
                return Ok(());
            }
            Some(applied) => applied + 1,
            // What arrived has arrived.
            None if self.log.is_forgotten(head.born) => acknowledged + 1,
            None => oldest,
        };
        if next <= acknowledged {
            let lost = acknowledged + 1 - next;
            tracing::warn!(
                records = lost,
                "redis has lost what had arrived: it is sent again"
            );
            self.log.counts.rewound.fetch_add(lost, Ordering::Relaxed);
            outbox.rewind(next - 1);
        }
        if next < oldest {
            let lost = oldest - next;
            tracing::error!(records = lost, "redis has lost what the log no longer has");
            self.log.counts.lost.fetch_add(lost, Ordering::Relaxed);
        }
        if head.applied.is_some_and(|applied| applied > acknowledged) {
            outbox.acknowledge(next - 1, head.born);
        }
        let cursor = outbox.cursor(next);
        if cursor.next() > outbox.durable() {
            outbox.acknowledge(outbox.durable(), head.born);
        }
        let follows = head
            .applied
            .is_some_and(|applied| applied + 1 == cursor.next());
        self.place = Some(Place {
            cursor,
            gap: (!follows).then_some(head.applied),
        });
        Ok(())
    }
}

fn constants(law: &Law) -> Constants {
    match law.kind() {
        Kind::Best(_) => ["0".into(), "0".into(), "0".into()],
        Kind::Sum(_) => {
            let step = law.sum_step(0, 0);
            [step.scale, step.range, step.origin].map(|number| number.to_string())
        }
        Kind::Decayed { .. } => match law.decay_step(1, 0) {
            Ok(step) => [
                step.ceiling.to_string(),
                step.steps.to_string(),
                format!("{:?}", std::f64::consts::LN_2),
            ],
            // One point at the season's begin is always allowed.
            Err(_) => ["0".into(), "1".into(), "1".into()],
        },
    }
}

/// Without anything to ship, an append wakes the task.
const IDLE: Duration = Duration::from_secs(3600);
const CLOSED_POLL: Duration = Duration::from_millis(25);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Records per script that Redis should take at once, whatever is configured.
const BATCH_MAX: usize = 1000;
