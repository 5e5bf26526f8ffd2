//! A [`Board`] with its Redis: [`RedisBoard::start`] wires up the refresher that publishes, the reader of single players, and,
//! where there is a directory for the log, the writes. Redis 7, alone or a cluster. What is in Redis is described in `script`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub(super) mod link;
mod metrics;
pub(super) mod script;

pub use link::{Failure, StoreError};
pub use metrics::{RedisMetrics, WriteMetrics, write as write_metrics};

pub use super::breaker::{BreakerConfig, State as BreakerState};
pub use super::outbox::{AppendError, OutboxConfig, OutboxError};
pub use super::refresh::RefreshConfig;
pub use super::write::{Receipt, WriteConfig, WriteError};

use super::breaker::Circuit;
use super::kind::PlayerId;
use super::order::Order;
use super::outbox::Outbox;
use super::rank::{Ranks, Reader};
use super::refresh::{Progress, Refresher, SNAPSHOT_FILE};
use super::snapshot::Version;
use super::write::{self, Log, Record, Shipper, Write};
use super::{Board, Overlay, now_ms};
use link::Link;
use script::{Head, Keys, Turn, Turned};

/// Where Redis is, and how long it may take.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`: one, or some nodes of a cluster.
    pub addresses: Vec<String>,
    pub cluster: bool,
    /// Begins every key, so that several games share a Redis. Default `phalanx:`.
    pub prefix: String,
    /// Default 1 s.
    pub connect_max: Duration,
    /// Every call of the refresher and of the log. Default 500 ms.
    pub call_max: Duration,
}

impl RedisConfig {
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            addresses: vec![address.into()],
            cluster: false,
            prefix: "phalanx:".to_owned(),
            connect_max: Duration::from_secs(1),
            call_max: Duration::from_millis(500),
        }
    }

    pub fn cluster(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            cluster: true,
            ..Self::new("")
        }
    }
}

/// Without the addresses, which may hold passwords.
impl std::fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisConfig")
            .field("addresses", &self.addresses.len())
            .field("cluster", &self.cluster)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Everything about one board's Redis side; the defaults serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveConfig {
    pub redis: RedisConfig,
    /// The board's own directory: its log, and a copy of the newest snapshot. Without one, this process writes nothing and
    /// begins empty. Belongs to one process at a time, and should outlive it.
    pub directory: Option<PathBuf>,
    pub outbox: OutboxConfig,
    pub refresh: RefreshConfig,
    pub write: WriteConfig,
    pub breaker: BreakerConfig,
}

impl LiveConfig {
    pub fn new(redis: RedisConfig, directory: Option<PathBuf>) -> Self {
        Self {
            redis,
            directory,
            outbox: OutboxConfig::default(),
            refresh: RefreshConfig::default(),
            write: WriteConfig::default(),
            breaker: BreakerConfig::default(),
        }
    }
}

/// Why a board was not started. That Redis doesn't answer is none of it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// None, or too many.
    #[error("redis: one address, or 1 to 64 of a cluster")]
    Addresses,
    /// Not such an address.
    #[error("redis: expected redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]")]
    Address,
    /// Put a tunnel in front of it.
    #[error("redis: TLS (`rediss://`) is not supported by this version")]
    Tls,
    /// Leave it out.
    #[error("redis: `protocol=` is not supported, the board speaks RESP2")]
    Protocol,
    /// The log on disk can't be opened: in use, damaged, or the disk refused.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The runtime is being shut down.
    #[error("the start of the log was interrupted")]
    Interrupted,
}

/// Why an epoch was not turned. Nothing has changed then, unless the store gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// After a timeout it may have happened all the same: the board's version tells.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else was first, or the caller is mistaken.
    #[error("the board is in epoch {found}, not {expected}: somebody else was first")]
    Fenced { expected: u32, found: u32 },
    /// It was closed: no epoch comes after.
    #[error("the board is final")]
    Final,
    /// After 2^24.
    #[error("there are no more epochs")]
    Last,
}

/// What the tasks of a board and its readers have in common.
pub(super) struct Shared {
    pub(super) board: Arc<Board>,
    pub(super) keys: Keys,
    pub(super) circuit: Arc<Circuit>,
    pub(super) ranks: Ranks,
    pub(super) progress: Progress,
    pub(super) refresh: RefreshConfig,
    pub(super) directory: Option<PathBuf>,
    log: Option<Arc<Log>>,
    failures: [AtomicU64; Failure::ALL.len()],
}

impl Shared {
    pub(super) fn failed(&self, what: &'static str, error: &StoreError) {
        let at = Failure::ALL
            .iter()
            .position(|failure| *failure == error.failure);
        if let Some(count) = at.and_then(|at| self.failures.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let source = error.source.as_ref().map(ToString::to_string);
        tracing::debug!(what, failure = error.failure.name(), source, "redis failed");
    }

    pub(super) fn source(&self) -> Option<u64> {
        self.log.as_ref().map(|log| log.outbox.source().0)
    }

    /// The snapshot of `as_of_ms` has this process' records up to `applied`.
    pub(super) fn reflects(&self, as_of_ms: u64, applied: Option<u64>) {
        if let Some(log) = &self.log {
            log.pending.reflects(as_of_ms, applied.unwrap_or(0));
        }
    }

    /// Records of this process up to here are in whatever Redis says from now on.
    pub(super) fn arrived(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.outbox.acknowledged())
    }

    /// The store was asked after that, and answered `head`.
    pub(super) fn compare(&self, head: &Head, arrived: u64) {
        if let Some(log) = &self.log {
            log.compare(head.born, head.applied, arrived);
        }
    }

    pub(super) fn remember(&self, player: PlayerId, order: Order, arrived: u64, epoch: u32) {
        if let Some(log) = &self.log {
            log.pending.remember(player, order, arrived, epoch);
        }
    }

    pub(super) fn remembered(&self, player: &str) -> Option<Order> {
        let epoch = self.progress.epoch.load(Ordering::Relaxed);
        self.log.as_ref()?.pending.remembered(player, epoch)
    }
}

struct Tasks {
    end: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// A board that is kept in step with Redis, and takes results. Dropping it ends its tasks at once; [`RedisBoard::shutdown`]
/// lets them finish what they are at.
pub struct RedisBoard {
    shared: Arc<Shared>,
    config: LiveConfig,
    tasks: Tasks,
}

/// For readers of pending results.
struct Seen(Weak<Shared>);

impl Overlay for Seen {
    fn pending(&self, player: &str, base: Option<Order>, as_of_ms: u64) -> Option<Order> {
        let shared = self.0.upgrade()?;
        let epoch = shared.progress.epoch.load(Ordering::Relaxed);
        let pending = &shared.log.as_ref()?.pending;
        pending.pending(player, base, as_of_ms, epoch)
    }
}

impl RedisBoard {
    /// Opens the directory, makes its snapshot readable, and begins to talk to Redis; doesn't wait for it. A board is
    /// started once.
    pub async fn start(board: Arc<Board>, config: LiveConfig) -> Result<Self, StartError> {
        let link = Link::try_new(&config.redis)?;
        let log = match &config.directory {
            Some(directory) => Some(open(&board, directory.clone(), config.outbox).await?),
            None => None,
        };
        let shared = Arc::new(Shared {
            keys: Keys::new(&config.redis.prefix, &board.spec().name),
            circuit: Circuit::new(config.breaker),
            ranks: Ranks::new(Duration::from_millis(board.spec().store_wait_ms)),
            progress: Progress::default(),
            refresh: config.refresh.clone(),
            directory: config.directory.clone(),
            log: log.clone(),
            failures: Default::default(),
            board,
        });
        let epoch = shared
            .board
            .snapshot()
            .map_or(0, |newest| newest.version().epoch());
        shared.progress.reached(epoch);
        shared
            .board
            .attach_reader(Arc::new(Reader(Arc::downgrade(&shared))));
        let (end, ended) = watch::channel(false);
        let refresh = {
            let (shared, link, ended) = (shared.clone(), link.another(), ended.clone());
            move || {
                let (refresh_link, rank_link) = (link.another(), link.another());
                Refresher::new(shared.clone(), refresh_link, rank_link).run(ended.clone())
            }
        };
        let mut tasks = vec![tokio::spawn(kept(refresh))];
        if let Some(log) = log {
            shared
                .board
                .attach_overlay(Arc::new(Seen(Arc::downgrade(&shared))));
            let (shared, write) = (shared.clone(), config.write.clone());
            tasks.push(tokio::spawn(kept(move || {
                let (shared, log) = (shared.clone(), log.clone());
                Shipper::new(shared, log, link.another(), write.clone()).run(ended.clone())
            })));
        }
        let tasks = Tasks { end, tasks };
        Ok(Self {
            shared,
            config,
            tasks,
        })
    }

    pub fn board(&self) -> &Arc<Board> {
        &self.shared.board
    }

    /// Accepts a result of now. It is in the log on disk when this returns.
    pub async fn submit(&self, player: &PlayerId, points: i64) -> Result<Receipt, WriteError> {
        self.submit_at(player, points, now_ms()).await
    }

    /// Accepts a result of the time `at_ms` (Unix), by which ties are told apart and points fade.
    pub async fn submit_at(
        &self,
        player: &PlayerId,
        points: i64,
        at_ms: u64,
    ) -> Result<Receipt, WriteError> {
        write::check(self.shared.board.law(), points, at_ms)?;
        let epoch = self.epoch().unwrap_or(0);
        let write = write::points(player.clone(), points, at_ms, epoch, now_ms());
        self.accept(write).await
    }

    /// Takes a player off the board; her next result puts her there again.
    pub async fn remove(&self, player: &PlayerId) -> Result<Receipt, WriteError> {
        self.decree(Record::Remove, player).await
    }

    /// Takes a player off the board and keeps her off, in later epochs too. In order with the results, also through an
    /// outage; readers see it with the next snapshot.
    pub async fn ban(&self, player: &PlayerId) -> Result<Receipt, WriteError> {
        self.decree(Record::Ban, player).await
    }

    /// Her results count again from now on.
    pub async fn unban(&self, player: &PlayerId) -> Result<Receipt, WriteError> {
        self.decree(Record::Unban, player).await
    }

    async fn decree(&self, record: Record, player: &PlayerId) -> Result<Receipt, WriteError> {
        let epoch = self.epoch().unwrap_or(0);
        let (player, written_ms) = (player.clone(), now_ms());
        self.accept(Write {
            record,
            epoch,
            player,
            written_ms,
        })
        .await
    }

    async fn accept(&self, write: Write) -> Result<Receipt, WriteError> {
        let log = self.shared.log.as_ref().ok_or(WriteError::ReadOnly)?;
        if self
            .shared
            .board
            .snapshot()
            .is_some_and(|newest| newest.is_final())
        {
            return Err(WriteError::Final);
        }
        log.accept(write).await
    }

    /// The board's epoch as Redis last said, or as the snapshot on disk did.
    pub fn epoch(&self) -> Option<u32> {
        let epoch = self.shared.progress.epoch.load(Ordering::Relaxed);
        (epoch > 0).then_some(epoch)
    }

    /// Begins the next epoch, `expected + 1`, with an empty board, if the board is in `expected`: of several who call it one
    /// succeeds. Results accepted for the old epoch that arrive later change nothing and are counted (`fenced`). Asks Redis.
    pub async fn reset(&self, expected: u32) -> Result<Version, TurnError> {
        let keep_s = self.config.write.keep_old.as_secs();
        self.turn(expected, Turn::Reset { keep_s }).await
    }

    /// Ends the board: nothing changes it any more, its last snapshot is final and doesn't grow old. Asks Redis.
    pub async fn close(&self, expected: u32) -> Result<Version, TurnError> {
        self.turn(expected, Turn::Close).await
    }

    async fn turn(&self, expected: u32, turn: Turn) -> Result<Version, TurnError> {
        // Rare enough for a connection of its own.
        let mut link =
            Link::try_new(&self.config.redis).map_err(|_| StoreError::from(Failure::Connect))?;
        let law = self.shared.board.law().fingerprint();
        let call = script::turn(&self.shared.keys, expected, law, turn);
        let turned = script::turned(&link.call(&call).await?)?;
        self.shared.progress.wake.notify_one();
        match turned {
            Turned::Done { epoch, seq } => {
                self.shared.progress.reached(epoch);
                Ok(Version::new(epoch, seq))
            }
            Turned::Epoch(found) => Err(TurnError::Fenced { expected, found }),
            Turned::Closed => Err(TurnError::Final),
            Turned::Last => Err(TurnError::Last),
        }
    }

    /// Refreshes now instead of when it is time.
    pub fn refresh_now(&self) {
        self.shared.progress.wake.notify_one();
    }

    pub fn metrics(&self) -> RedisMetrics {
        RedisMetrics::of(&self.shared)
    }

    /// Ends the tasks after what they are at, with the newest snapshot on disk. What is in the log is shipped by the next
    /// process with this directory.
    pub async fn shutdown(mut self) {
        let _ = self.tasks.end.send(true);
        for task in std::mem::take(&mut self.tasks.tasks) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the board ended badly");
            }
        }
    }
}

impl std::fmt::Debug for RedisBoard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisBoard")
            .field("board", &self.shared.board)
            .finish_non_exhaustive()
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Runs a task to its end; one that panics begins again.
async fn kept<F: Future<Output = ()> + Send + 'static>(mut task: impl FnMut() -> F) {
    loop {
        // Dropped with this one, and aborted then.
        let mut one = JoinSet::new();
        one.spawn(task());
        match one.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(%error, "a task of the board panicked: it begins again");
                tokio::time::sleep(AFTER_PANIC).await;
            }
            _ => return,
        }
    }
}

/// The log of a directory, after its snapshot has been made readable.
async fn open(
    board: &Arc<Board>,
    directory: PathBuf,
    config: OutboxConfig,
) -> Result<Arc<Log>, StartError> {
    let board = board.clone();
    let opened = tokio::task::spawn_blocking(move || -> Result<_, OutboxError> {
        let outbox = Outbox::open(&directory, config)?;
        let path = directory.join(SNAPSHOT_FILE);
        if let Err(error) = board.restore(&path, now_ms()) {
            tracing::warn!(%error, path = %path.display(), "the copy of the board on disk is of no use");
        }
        Ok(Arc::new(Log::new(outbox, *board.law())?))
    });
    Ok(opened.await.map_err(|_| StartError::Interrupted)??)
}

const AFTER_PANIC: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_again_and_one_that_ends_does_not() {
        let begun = Arc::new(AtomicU64::new(0));
        let count = begun.clone();
        kept(move || {
            let count = count.clone();
            async move { assert!(count.fetch_add(1, Ordering::Relaxed) > 1) }
        })
        .await;
        assert_eq!(begun.load(Ordering::Relaxed), 3);
    }
}
