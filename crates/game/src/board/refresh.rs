//! One task per board that talks to Redis for all its readers: reads what changed, builds the next snapshot, publishes it by
//! one swap, keeps it on disk. It alone owns the breaker and sends the probes; readers learn what it found and never wait.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::breaker::{Outcome, State};
use super::redis::Shared;
use super::redis::link::{Failure, Link, StoreError};
use super::redis::script::{self, Head, Reading};
use super::sketch::{Pivot, Sketch};
use super::snapshot::{BuildError, Builder, Snapshot, Version};
use super::{Board, PublishError, StoreState, now_ms, persist};

mod mirror;
mod read;

use mirror::Mirror;

/// How often the board is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshConfig {
    /// Between two reads of a board that changes; from read to read it grows towards `period_max` while nothing does.
    pub period_min: Duration,
    pub period_max: Duration,
    /// The whole of one refresh, however many calls it takes.
    pub refresh_max: Duration,
    /// Between two reads of the board from the beginning: what is written past the scripts is seen by then.
    pub full_every: Duration,
    /// Between two estimates of places outside the top.
    pub sketch_every: Duration,
    /// Between two copies on disk, if there is a directory for them; fifteen times as long while only the board's age
    /// changes.
    pub persist_every: Duration,
}

impl Default for RefreshConfig {
    fn default() -> Self {
        Self {
            period_min: Duration::from_millis(100),
            period_max: Duration::from_millis(500),
            refresh_max: Duration::from_secs(5),
            full_every: Duration::from_secs(60),
            sketch_every: Duration::from_secs(1),
            persist_every: Duration::from_secs(2),
        }
    }
}

/// What the task tells others.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The board's epoch, 0 while it isn't known.
    pub(super) epoch: AtomicU32,
    pub(super) refreshes: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) probes: AtomicU64,
    /// Of the last refresh that succeeded.
    pub(super) took_us: AtomicU64,
    pub(super) took_us_max: AtomicU64,
    /// Members that no writer of ours made.
    pub(super) foreign: AtomicU64,
    pub(super) healed: AtomicU64,
    /// Wakes the task before its time.
    pub(super) wake: Notify,
}

impl Progress {
    /// The store is in this epoch. Epochs don't go back: a store that does has lost data.
    pub(super) fn reached(&self, epoch: u32) -> u32 {
        self.epoch.fetch_max(epoch, Ordering::Relaxed).max(epoch)
    }
}

pub(super) struct Refresher {
    shared: Arc<Shared>,
    link: Link,
    /// For readers of their own places: made here, so that no reader waits for a handshake.
    rank_link: Link,
    directory: Option<PathBuf>,
    mirror: Option<Known>,
    sketch: Sketch,
    sketched_at: Option<Instant>,
    /// Places in the top, and members, for which places were asked about last.
    asked: (u64, u64),
    /// Epoch and `seq` that the sketch is of, and what it was asked for.
    sketch_of: (u32, u64, (u64, u64)),
    /// Of the copy on disk: its version, the last confirmation in it, and when it was made.
    persisted: Option<(Version, u64, Instant)>,
    /// The copy that is being written.
    saving: Option<JoinHandle<()>>,
    period: Duration,
    /// Places that fitted into the last snapshot, if they were fewer than asked for.
    fitted: Option<usize>,
}

enum Published {
    Newer,
    Nothing,
    /// Readers have another picture under the same version.
    Unlike(Version),
}

/// The mirror and what it is of.
struct Known {
    mirror: Mirror,
    epoch: u32,
    seq: u64,
    born: u64,
    connection: u64,
    read_at: Instant,
}

impl Refresher {
    pub(super) fn new(shared: Arc<Shared>, link: Link, rank_link: Link) -> Self {
        let period = shared.refresh.period_min;
        let directory = shared.directory.clone();
        Self {
            shared,
            link,
            rank_link,
            directory,
            mirror: None,
            sketch: Sketch::default(),
            sketched_at: None,
            asked: (0, 0),
            sketch_of: (0, 0, (0, 0)),
            persisted: None,
            saving: None,
            period,
            fitted: None,
        }
    }

    /// Runs until `ended` says so; then the newest snapshot is on disk.
    pub(super) async fn run(mut self, mut ended: watch::Receiver<bool>) {
        loop {
            let wait = tokio::select! {
                () = over(&mut ended) => break,
                wait = self.turn() => wait,
            };
            tokio::select! {
                () = over(&mut ended) => break,
                () = tokio::time::sleep(wait) => {}
                () = self.shared.progress.wake.notified() => {}
            }
        }
        self.persist(true).await;
    }

    /// One round; how long to wait for the next.
    async fn turn(&mut self) -> Duration {
        let shared = self.shared.clone();
        let Some(permit) = shared.circuit.probe() else {
            self.tell(StoreState::Open);
            return shared.circuit.wait().unwrap_or(SHORT).max(SHORT);
        };
        if shared.circuit.state() == State::HalfOpen {
            // A word, not the whole board: all processes find Redis back at about the same time.
            shared.progress.probes.fetch_add(1, Ordering::Relaxed);
            self.tell(StoreState::Probing);
            let found = self.head().await.map(|_| ());
            permit.settle(self.judge(&found));
            return if found.is_ok() { Duration::ZERO } else { SHORT };
        }
        let began = Instant::now();
        let refreshed = tokio::time::timeout(shared.refresh.refresh_max, self.refresh()).await;
        let refreshed = refreshed.unwrap_or_else(|_| Err(Failure::Timeout.into()));
        permit.settle(self.judge(&refreshed));
        match refreshed {
            Ok(changed) => {
                let took = began.elapsed().as_micros() as u64;
                shared.progress.took_us.store(took, Ordering::Relaxed);
                shared
                    .progress
                    .took_us_max
                    .fetch_max(took, Ordering::Relaxed);
                shared.progress.refreshes.fetch_add(1, Ordering::Relaxed);
                self.tell(StoreState::Up);
                self.open_ranks().await;
                self.persist(false).await;
                self.next_period(changed)
            }
            Err(_) => {
                // An unfinished read may have lost its place.
                self.mirror = None;
                if shared.circuit.state() != State::Closed {
                    self.tell(StoreState::Open);
                }
                jittered(shared.refresh.period_max)
            }
        }
    }

    fn judge<T>(&mut self, outcome: &Result<T, StoreError>) -> Outcome {
        let Err(error) = outcome else {
            return Outcome::Succeeded;
        };
        self.shared.failed("refresh", error);
        if error.failure.is_outage() {
            self.link.drop_connection();
            // Readers needn't find out for themselves, each for some milliseconds.
            self.shared.ranks.disconnect();
            return Outcome::Failed;
        }
        // It answers, and says no: that must not keep others from asking.
        Outcome::Succeeded
    }

    fn tell(&self, state: StoreState) {
        let before = self.board().store();
        if before == state || (before == StoreState::Cold && state == StoreState::Probing) {
            return;
        }
        self.board().set_store(state);
        match state {
            StoreState::Open => {
                tracing::warn!(board = %self.board().spec().name, "the board's redis is out of order");
            }
            StoreState::Up => {
                tracing::info!(board = %self.board().spec().name, "the board's redis answers")
            }
            StoreState::Cold | StoreState::Probing => {}
        }
    }

    fn next_period(&mut self, changed: bool) -> Duration {
        let refresh = &self.shared.refresh;
        self.period = match changed {
            true => refresh.period_min,
            false => (self.period.saturating_mul(3) / 2).min(refresh.period_max),
        };
        jittered(self.period)
    }

    fn board(&self) -> &Board {
        &self.shared.board
    }

    /// Brings readers what is new; whether anything was.
    async fn refresh(&mut self) -> Result<bool, StoreError> {
        let mut began_ms = now_ms();
        // Before the store is asked: what readers see meanwhile, it may have said after that.
        let seen = self.seen();
        let mut reading = self.read(self.since(), &[]).await?;
        if self.heal(seen, &reading.head).await? {
            return Ok(true);
        }
        if self.unchanged(began_ms, &reading.head) {
            self.redraw(&reading.head).await?;
            return Ok(false);
        }
        let places = self.places(reading.head.total);
        if self.follows(&reading) && !places.is_empty() {
            // The sketch comes with what changed until then: one instant again.
            self.absorb(&mut reading);
            began_ms = now_ms();
            reading = self.read(self.since(), &places).await?;
        }
        if !self.follows(&reading) {
            (began_ms, reading) = self.read_all(reading.head).await?;
        }
        match self.publish(began_ms, reading).await {
            Published::Newer => Ok(true),
            Published::Nothing => Ok(false),
            Published::Unlike(version) => {
                // Somebody wrote past the scripts, or the store lost data and has come as far again on another way.
                self.mend(version).await?;
                Ok(true)
            }
        }
    }

    /// Readers have it already: it only gets younger.
    fn unchanged(&self, began_ms: u64, head: &Head) -> bool {
        let Some(newest) = self.board().snapshot() else {
            return false;
        };
        let version = Version::new(head.epoch, head.seq);
        let same = newest.version() == version && newest.is_final() == head.closed;
        if !same || self.since().is_none() {
            return false;
        }
        self.shared.reflects(newest.as_of_ms(), head.applied);
        self.board().confirm(version, began_ms)
    }

    /// After the last of some changes estimates are of before it, until it is time for others; and scores that fade are of
    /// then.
    async fn redraw(&mut self, head: &Head) -> Result<(), StoreError> {
        let places = self.places(head.total);
        let sketched = places.is_empty() || self.sketch_of == (head.epoch, head.seq, self.asked);
        let faded = self.board().has_faded(now_ms());
        if sketched && !faded {
            return Ok(());
        }
        let began_ms = now_ms();
        let reading = self.read(self.since(), &places).await?;
        let (Some(known), Some(newest)) = (self.mirror.take(), self.board().snapshot()) else {
            return Ok(());
        };
        // If it has changed just now, the next round has it.
        if (reading.head.epoch, reading.head.seq) == (head.epoch, head.seq) {
            if !places.is_empty() {
                self.keep_sketch(&reading, began_ms);
            }
            let as_of_ms = if faded { began_ms } else { newest.as_of_ms() };
            self.shared.reflects(as_of_ms, reading.head.applied);
            let built = self.build(known, reading, as_of_ms).await;
            if let Some((known, snapshot)) = built {
                self.board().resketch(snapshot);
                self.mirror = Some(known);
            }
            return Ok(());
        }
        self.mirror = Some(known);
        Ok(())
    }

    fn keep_sketch(&mut self, reading: &Reading, began_ms: u64) {
        let pivots = reading.pivots.iter();
        let pivots = pivots.map(|&(place, order)| Pivot { place, order });
        self.sketch = Sketch::new(pivots, began_ms);
        self.sketch_of = (reading.head.epoch, reading.head.seq, self.asked);
        self.sketched_at = Some(Instant::now());
    }

    fn absorb(&mut self, reading: &mut Reading) {
        if let Some(known) = &mut self.mirror {
            known
                .mirror
                .change(reading.changes.take().unwrap_or_default());
            known.seq = reading.head.seq;
        }
    }

    async fn publish(&mut self, began_ms: u64, reading: Reading) -> Published {
        let Some(known) = self.mirror.take() else {
            return Published::Nothing;
        };
        if !reading.pivots.is_empty() {
            self.keep_sketch(&reading, began_ms);
        }
        let applied = reading.head.applied;
        let Some((known, snapshot)) = self.build(known, reading, began_ms).await else {
            return Published::Nothing;
        };
        // If too many have left the top, those who follow are not known: this one is true, the next is read anew.
        let places = self.fitted.unwrap_or(self.board().spec().top);
        if known.mirror.is_whole() || known.mirror.len() >= places {
            self.mirror = Some(known);
        }
        let version = snapshot.version();
        if let Some(newest) = self.board().snapshot()
            && newest.version() == version
        {
            if !alike(&newest, &snapshot) {
                return Published::Unlike(version);
            }
            self.shared.reflects(newest.as_of_ms(), applied);
            self.board().confirm(version, began_ms);
            return Published::Nothing;
        }
        self.shared.reflects(began_ms, applied);
        match self.board().publish(snapshot) {
            Ok(_) => Published::Newer,
            // Another process' was handed in meanwhile, or the season's last is there.
            Err(PublishError::Superseded { .. } | PublishError::Final(_)) => Published::Nothing,
            Err(error @ PublishError::Foreign) => {
                tracing::error!(%error, "a snapshot was not published");
                Published::Nothing
            }
        }
    }

    /// The mirror with what changed, and the snapshot of it. Beside the runtime: tens of thousands of places take a while, in
    /// which its threads answer readers.
    async fn build(
        &mut self,
        mut known: Known,
        reading: Reading,
        as_of_ms: u64,
    ) -> Option<(Known, Snapshot)> {
        let (board, sketch) = (self.shared.board.clone(), self.sketch.clone());
        let wanted = self.wanted();
        let built = tokio::task::spawn_blocking(move || {
            known.mirror.change(reading.changes.unwrap_or_default());
            known.mirror.cut(wanted + wanted / 4 + CHUNK);
            known.seq = reading.head.seq;
            let built = build(&board, &known.mirror, &reading.head, sketch, as_of_ms);
            (known, built)
        });
        match built.await {
            Ok((known, Ok((snapshot, fitted)))) => {
                self.fitted = fitted;
                Some((known, snapshot))
            }
            Ok((_, Err(error))) => {
                tracing::error!(%error, "a board can't be built from what redis says");
                None
            }
            Err(error) => {
                tracing::error!(%error, "the building of a board was not finished");
                None
            }
        }
    }

    /// A connection for readers, and a word through it after their own breaker opened.
    async fn open_ranks(&mut self) {
        let ranks = &self.shared.ranks;
        if ranks.is_open() {
            return;
        }
        self.rank_link.drop_connection();
        let Some(permit) = ranks.circuit.probe() else {
            return;
        };
        let Ok(mut connection) = self.rank_link.connection().await else {
            permit.settle(Outcome::Failed);
            return;
        };
        let epoch = self.shared.progress.epoch.load(Ordering::Relaxed);
        let call = script::standing(&self.shared.keys, epoch, "-");
        // Twice: the first may have to send the script's text.
        for last in [false, true] {
            let answer = tokio::time::timeout(
                if last {
                    ranks.wait
                } else {
                    self.rank_link.call_max()
                },
                connection.call(&call),
            );
            if !matches!(answer.await, Ok(Ok(_))) {
                permit.settle(Outcome::Failed);
                return;
            }
        }
        permit.settle(Outcome::Succeeded);
        ranks.connect(connection);
    }

    /// A disk that stands still must not keep the board from being refreshed: only the last copy is waited for.
    async fn persist(&mut self, last: bool) {
        if let Some(saving) = self.saving.take_if(|saving| last || saving.is_finished())
            && saving.await.is_err()
        {
            tracing::warn!("the copy of a board on disk was not finished");
        }
        let Some(directory) = &self.directory else {
            return;
        };
        let Some(newest) = self.shared.board.snapshot() else {
            return;
        };
        let (version, confirmed_ms) = (newest.version(), newest.confirmed_ms());
        if let Some((kept, kept_ms, at)) = self.persisted {
            let every = self.shared.refresh.persist_every;
            let due = match kept == version {
                false => every,
                // It only got younger; the last of a season doesn't.
                true if kept_ms >= confirmed_ms || newest.is_final() => return,
                true => every.saturating_mul(CONFIRMED_EVERY),
            };
            if !(last || at.elapsed() >= due) {
                return;
            }
        }
        if self.saving.is_some() {
            return;
        }
        self.persisted = Some((version, confirmed_ms, Instant::now()));
        let path = directory.join(SNAPSHOT_FILE);
        let saving = tokio::task::spawn_blocking(move || save(&path, &newest));
        match last {
            true => drop(saving.await),
            false => self.saving = Some(saving),
        }
    }
}

/// A snapshot, and how many places fitted into it if that were fewer than asked for.
fn build(
    board: &Board,
    mirror: &Mirror,
    head: &Head,
    sketch: Sketch,
    as_of_ms: u64,
) -> Result<(Snapshot, Option<usize>), BuildError> {
    let spec = board.spec();
    let version = Version::new(head.epoch, head.seq);
    let mut builder = Builder::new(spec, board.law(), version, as_of_ms);
    for (player, order) in mirror.members() {
        if !builder.push(player.as_str(), order)? {
            break;
        }
    }
    let kept = builder.len();
    let room_ran_out = kept < spec.top && kept < mirror.len();
    let builder = builder.total(head.total.max(kept as u64));
    let snapshot = builder.sketch(sketch).last(head.closed).build()?;
    Ok((snapshot, room_ran_out.then_some(kept)))
}

/// Under one version readers find one picture.
fn alike(one: &Snapshot, other: &Snapshot) -> bool {
    one.tag() == other.tag()
}

fn save(path: &std::path::Path, snapshot: &Snapshot) {
    if let Err(error) = persist::save(path, snapshot) {
        tracing::warn!(%error, path = %path.display(), "cannot keep a copy of the board");
    }
}

/// Ready when the board is shut down, or nobody is left who could.
pub(super) async fn over(ended: &mut watch::Receiver<bool>) {
    let _ = ended.wait_for(|ended| *ended).await;
}

/// Give or take a tenth, so that processes don't ask in step.
fn jittered(period: Duration) -> Duration {
    period.min(PERIOD_MAX).mul_f64(0.9 + fastrand::f64() * 0.2)
}

/// The copy of the newest snapshot in a board's directory.
pub const SNAPSHOT_FILE: &str = "snapshot";
/// Of a board that doesn't change, so many times `persist_every` are between two copies on disk.
const CONFIRMED_EVERY: u32 = 15;
/// Members per call of a full read.
const CHUNK: usize = 2000;
const SHORT: Duration = Duration::from_millis(5);
/// Between two rounds, whatever is configured.
const PERIOD_MAX: Duration = Duration::from_secs(3600);
