//! The session directory: which instance of a service has a key (player, room, guild), under an epoch that fences whoever
//! had it before. Games change it over gRPC, operators over HTTP; what is answered is stored. Data planes and watchers
//! follow a log of changes: a move compiles nothing and is one small message to each.
//!
//! The epoch is the store's revision at which the key changed hands, so it never repeats, whichever control plane writes.
//! Module order (a module imports only later ones): service, feed, tend, writer, board, record.

mod board;
mod feed;
mod record;
mod service;
mod tend;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_model::instance::State;
use phalanx_model::{InstanceId, ServiceName};
use phalanx_store::{EventKind, Revision, Store};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use self::board::Session;
pub use self::feed::Feed;
pub use self::record::{BadKey, SESSIONS, SessionId, service_of};
pub use self::writer::{ChangeError, Done};

use self::board::Board;
use self::writer::{Ask, Job, Writer};
use crate::world::World;

/// Shared by the services, the streams of data planes and the tasks; cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    worlds: watch::Receiver<Arc<World>>,
    store: Store,
    stop: CancellationToken,
}

struct Shared {
    /// Short critical sections, never across an await.
    board: Mutex<Board>,
    /// Ticks when something changed.
    ticks: watch::Sender<u64>,
    rates: Mutex<HashMap<ServiceName, Rate>>,
    watchers: AtomicUsize,
    counts: Counts,
}

/// What the composition root runs.
pub struct Work {
    writer: Writer,
    plane: String,
}

/// Since the start.
#[derive(Debug, Default)]
pub struct Counts {
    pub changes: AtomicU64,
    /// Another control plane was faster.
    pub conflicts: AtomicU64,
    /// The key was somebody else's.
    pub refused: AtomicU64,
    /// Over a bound.
    pub throttled: AtomicU64,
    /// Let go because the instance was away, or the time was over.
    pub dropped: AtomicU64,
    /// Moved or let go at the end of a drain.
    pub handed_over: AtomicU64,
    /// Messages to data planes.
    pub pushed: AtomicU64,
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("no instance {0} is registered")]
    Unknown(InstanceId),
    #[error("{id} is {}: it takes no new sessions", state.as_str())]
    Closed { id: InstanceId, state: State },
    #[error(
        "a session is held for at least {TTL_MIN:?} and at most {TTL_MAX:?}, or until it is released"
    )]
    Ttl,
    #[error("a service changes at most {RATE} sessions in a second")]
    Rate,
    #[error("the control plane is stopping")]
    Stopping,
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl Sessions {
    /// Reads what is stored. The caller runs [`Sessions::run`]. `plane`: this one's name.
    ///
    /// # Errors
    /// The store's.
    pub async fn load(
        store: Store,
        worlds: watch::Receiver<Arc<World>>,
        plane: &str,
        stop: CancellationToken,
    ) -> Result<(Self, Work), phalanx_store::Error> {
        let page = store.list(SESSIONS).await?;
        let mut board = Board::default();
        let now = Instant::now();
        board.move_in(&worlds.borrow().instances, now);
        board.read(page, now);
        let shared = Arc::new(Shared {
            board: Mutex::new(board),
            ticks: watch::Sender::new(0),
            rates: Mutex::default(),
            watchers: AtomicUsize::new(0),
            counts: Counts::default(),
        });
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let work = Work {
            writer: Writer::new(store.clone(), shared.clone(), queue),
            plane: plane.to_owned(),
        };
        let sessions = Self {
            shared,
            jobs,
            worlds,
            store,
            stop,
        };
        Ok((sessions, work))
    }

    /// Writes, follows the store and looks after what is over, until it is stopped.
    pub async fn run(self, work: Work) {
        let stop = self.stop.clone();
        let writer = work.writer.run(stop.clone());
        let tended = self.tend(&work.plane);
        tokio::select! {
            () = stop.cancelled() => {}
            () = async { tokio::join!(writer, self.follow(), tended); } => {}
        }
    }

    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Keys of all services.
    pub fn len(&self) -> usize {
        self.board().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sessions of an instance.
    pub fn count_of(&self, id: &InstanceId) -> usize {
        self.board().count_of(id)
    }

    pub fn session(&self, id: &SessionId) -> Option<Session> {
        self.board().session(id)
    }

    /// Up to `most` sessions of a service behind a key; of one instance, where it is said. And whether there are more.
    pub fn page(
        &self,
        service: &ServiceName,
        instance: Option<&str>,
        after: Option<&str>,
        most: usize,
    ) -> (Vec<Session>, bool) {
        let board = self.board();
        let Some(instance) = instance else {
            return board.page(service, after, most);
        };
        let id = InstanceId {
            service: service.clone(),
            id: instance.to_owned(),
        };
        let mut keys = board.keys_of(&id, after, most + 1);
        let more = keys.len() > most;
        keys.truncate(most);
        let sessions = keys.iter().filter_map(|key| board.session(key));
        (sessions.collect(), more)
    }

    pub fn services(&self) -> Vec<ServiceName> {
        self.board().services()
    }

    pub fn count(&self, service: &ServiceName) -> usize {
        self.board().count(service)
    }

    /// For the stream of a data plane.
    pub fn feed(&self) -> Feed {
        Feed::new(self.shared.clone())
    }

    /// An instance takes a key that nobody has, that it has already, or that is at the epoch `expected`.
    ///
    /// # Errors
    /// [`SessionError`]
    pub async fn claim(
        &self,
        id: SessionId,
        instance: &str,
        expected: u64,
        ttl: Option<Duration>,
    ) -> Result<Done, SessionError> {
        if ttl.is_some_and(|ttl| !(TTL_MIN..=TTL_MAX).contains(&ttl)) {
            return Err(SessionError::Ttl);
        }
        let is_its_own = self
            .session(&id)
            .is_some_and(|session| *session.held.instance == *instance);
        self.takes(&id.service, instance, is_its_own)?;
        self.throttle(&id.service)?;
        let instance = instance.into();
        let ask = Ask::Claim {
            instance,
            expected,
            ttl,
        };
        self.change(id, ask).await
    }

    /// Puts a key that somebody has at another instance; `expected` 0: whatever its epoch is.
    ///
    /// # Errors
    /// [`SessionError`]
    pub async fn move_to(
        &self,
        id: SessionId,
        to: &str,
        expected: u64,
    ) -> Result<Done, SessionError> {
        self.takes(&id.service, to, false)?;
        self.throttle(&id.service)?;
        let to = to.into();
        let ask = Ask::Move {
            to,
            expected,
            from: None,
        };
        self.change(id, ask).await
    }

    /// # Errors
    /// [`SessionError`]
    pub async fn release(&self, id: SessionId, expected: u64) -> Result<Done, SessionError> {
        self.throttle(&id.service)?;
        let ask = Ask::Release { expected, at: None };
        self.change(id, ask).await
    }

    async fn change(&self, id: SessionId, ask: Ask) -> Result<Done, SessionError> {
        let (job, outcome) = Job::new(id, ask);
        let queued = self.jobs.try_send(job);
        queued.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                bump(&self.shared.counts.throttled);
                SessionError::Change(ChangeError::TooMany)
            }
            mpsc::error::TrySendError::Closed(_) => SessionError::Stopping,
        })?;
        let done = outcome.await.map_err(|_| SessionError::Stopping)??;
        if !done.done {
            bump(&self.shared.counts.refused);
        }
        Ok(done)
    }

    /// Whether an instance is there, and takes sessions that it does not have yet.
    fn takes(
        &self,
        service: &ServiceName,
        instance: &str,
        is_its_own: bool,
    ) -> Result<(), SessionError> {
        let id = InstanceId {
            service: service.clone(),
            id: instance.to_owned(),
        };
        let state = self
            .worlds
            .borrow()
            .instances
            .get(&id)
            .map(|known| known.state);
        match state {
            None => Err(SessionError::Unknown(id)),
            // Registered, and not asked for traffic yet: that it claims says that it wants some.
            Some(State::Accepting | State::NotReady) => Ok(()),
            Some(_) if is_its_own => Ok(()),
            Some(state) => Err(SessionError::Closed { id, state }),
        }
    }

    fn throttle(&self, service: &ServiceName) -> Result<(), SessionError> {
        let mut rates = self
            .shared
            .rates
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if rates.len() >= RATES_MAX {
            rates.retain(|_, rate| now.duration_since(rate.at) < RATE_KEPT);
        }
        let rate = rates.entry(service.clone()).or_insert(Rate {
            left: BURST,
            at: now,
        });
        rate.left = BURST.min(rate.left + now.duration_since(rate.at).as_secs_f64() * RATE);
        rate.at = now;
        if rate.left < 1.0 {
            bump(&self.shared.counts.throttled);
            return Err(SessionError::Rate);
        }
        rate.left -= 1.0;
        Ok(())
    }

    /// What others write.
    async fn follow(&self) {
        let mut told = String::new();
        loop {
            if let Err(error) = self.follow_once().await
                && told != error.to_string()
            {
                tracing::warn!(%error, "the stream of sessions broke, reading them again");
                told = error.to_string();
            }
            sleep(PAUSE).await;
        }
    }

    /// Until the stream breaks.
    async fn follow_once(&self) -> Result<(), phalanx_store::Error> {
        let revision = self.read().await?;
        let mut watch = self.store.watch(SESSIONS, revision).await?;
        while let Some(batch) = watch.next().await {
            let batch = batch?;
            let now = Instant::now();
            let mut board = self.board();
            for event in batch.events {
                let Some(id) = SessionId::stored(event.key()) else {
                    continue;
                };
                match event.kind {
                    EventKind::Put(entry) => board.put(id, &entry.value, entry.modified, now),
                    EventKind::Delete { .. } => board.delete(&id, batch.revision),
                }
            }
            board.followed(batch.revision);
            drop(board);
            self.shared.tick();
        }
        Ok(())
    }

    /// Everything that is stored, as of this revision.
    async fn read(&self) -> Result<Revision, phalanx_store::Error> {
        let page = self.store.list(SESSIONS).await?;
        let revision = page.revision;
        self.board().read(page, Instant::now());
        self.shared.tick();
        Ok(revision)
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.shared.board)
    }
}

impl Shared {
    fn tick(&self) {
        self.ticks.send_modify(|tick| *tick = tick.wrapping_add(1));
    }
}

impl Counts {
    fn changes(&self, more: usize) {
        self.changes.fetch_add(more as u64, Ordering::Relaxed);
    }

    fn conflict(&self) {
        bump(&self.conflicts);
    }
}

/// What a service may change right now.
struct Rate {
    left: f64,
    at: Instant,
}

fn bump(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

pub const TTL_MIN: Duration = Duration::from_secs(5);
pub const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Changes of a service in a second, and at once.
const RATE: f64 = 5_000.0;
const BURST: f64 = 10_000.0;
/// Services whose rate is remembered; beyond, those that were quiet are forgotten.
const RATES_MAX: usize = 1_024;
const RATE_KEPT: Duration = Duration::from_secs(10);
/// Changes that wait to be written.
const QUEUE_MAX: usize = 8_192;
/// After a broken stream.
const PAUSE: Duration = Duration::from_millis(200);
