//! What Redis says about single players, for [`Board`](super::Board)'s reads beyond the snapshot: one script each, over a
//! connection that the refresher made, never a second try. Those who ask are bounded, and have a breaker of their own: three
//! milliseconds are a bound that a healthy Redis misses now and then, which says nothing about refreshes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::breaker::{BreakerConfig, Circuit, Outcome, Permit, State};
use super::kind::PlayerId;
use super::order::Order;
use super::redis::Shared;
use super::redis::link::{Connection, StoreError};
use super::redis::script::{self, Stands};
use super::{Neighbours, Reply, Standing, StoreReader, Unavailable};

/// What readers of single players share.
pub(super) struct Ranks {
    connection: ArcSwapOption<Connection>,
    pub(super) circuit: Arc<Circuit>,
    asking: Semaphore,
    /// How long a caller waits.
    pub(super) wait: Duration,
    pub(super) asked: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) crowded: AtomicU64,
}

impl Ranks {
    pub(super) fn new(wait: Duration) -> Self {
        Self {
            connection: ArcSwapOption::empty(),
            circuit: Circuit::new(BREAKER),
            asking: Semaphore::new(ASKING_MAX),
            wait,
            asked: AtomicU64::new(0),
            late: AtomicU64::new(0),
            crowded: AtomicU64::new(0),
        }
    }

    /// Whether a question may be asked; otherwise the refresher finds out when it may.
    pub(super) fn is_open(&self) -> bool {
        self.circuit.state() == State::Closed && self.connection.load().is_some()
    }

    pub(super) fn connect(&self, connection: Connection) {
        self.connection.store(Some(Arc::new(connection)));
    }

    pub(super) fn disconnect(&self) {
        self.connection.store(None);
    }
}

/// The hook that a board asks. Weak: what it asks owns the board.
pub(super) struct Reader(pub(super) Weak<Shared>);

/// One question that is under way. Its caller drops it when the time is up, which is how a slow store shows.
struct Asking<'a> {
    shared: &'a Shared,
    connection: Connection,
    epoch: u32,
    permit: Option<Permit>,
    _place: SemaphorePermit<'a>,
    began: Instant,
}

impl<'a> Asking<'a> {
    fn begin(shared: &'a Shared) -> Result<Self, Unavailable> {
        let ranks = &shared.ranks;
        let connection = ranks.connection.load_full().ok_or(Unavailable)?;
        let permit = ranks.circuit.allow().ok_or(Unavailable)?;
        let Ok(place) = ranks.asking.try_acquire() else {
            ranks.crowded.fetch_add(1, Ordering::Relaxed);
            return Err(Unavailable);
        };
        ranks.asked.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            shared,
            connection: Connection::clone(&connection),
            epoch: shared.progress.epoch.load(Ordering::Relaxed),
            permit: Some(permit),
            _place: place,
            began: Instant::now(),
        })
    }

    fn end<T>(mut self, answer: Result<T, StoreError>) -> Result<T, Unavailable> {
        let mut outcome = Outcome::Succeeded;
        if let Err(error) = &answer {
            self.shared.failed("rank", error);
            if error.failure.is_outage() {
                outcome = Outcome::Failed;
                self.shared.ranks.disconnect();
            }
        }
        if let Some(permit) = self.permit.take() {
            permit.settle(outcome);
        }
        answer.map_err(|_| Unavailable)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        // The caller's timer is a coarse one.
        let ranks = &self.shared.ranks;
        if self.began.elapsed() + TIMER < ranks.wait {
            return;
        }
        ranks.late.fetch_add(1, Ordering::Relaxed);
        permit.settle(Outcome::Failed);
    }
}

impl Reader {
    fn shared(&self) -> Result<Arc<Shared>, Unavailable> {
        self.0.upgrade().ok_or(Unavailable)
    }
}

impl StoreReader for Reader {
    fn standing<'a>(&'a self, player: &'a str) -> Reply<'a, Result<Standing, Unavailable>> {
        Box::pin(async move {
            let shared = self.shared()?;
            let arrived = shared.arrived();
            let mut asking = Asking::begin(&shared)?;
            let call = script::standing(&shared.keys, asking.epoch, player);
            let answer = asking.connection.call(&call).await;
            let asking_epoch = asking.epoch;
            match asking.end(answer.and_then(|answer| script::stands(&answer)))? {
                Stands::At(place, order) => {
                    if let Ok(player) = PlayerId::parse(player) {
                        shared.remember(player, order, arrived, asking_epoch);
                    }
                    Ok(Standing::At { place, order })
                }
                Stands::Absent => Ok(Standing::Absent),
                Stands::OtherEpoch => Err(Unavailable),
            }
        })
    }

    fn around<'a>(
        &'a self,
        player: &'a str,
        radius: usize,
    ) -> Reply<'a, Result<Option<Neighbours>, Unavailable>> {
        Box::pin(async move {
            let shared = self.shared()?;
            let mut asking = Asking::begin(&shared)?;
            let call = script::around(&shared.keys, asking.epoch, player, radius);
            let answer = asking.connection.call(&call).await;
            let run = asking.end(answer.and_then(|answer| script::run(&answer)))?;
            let run = run.ok_or(Unavailable)?;
            Ok(run.map(|(first, members)| Neighbours { first, members }))
        })
    }

    fn orders<'a>(
        &'a self,
        players: &'a [PlayerId],
    ) -> Reply<'a, Result<Vec<Option<Order>>, Unavailable>> {
        Box::pin(async move {
            let shared = self.shared()?;
            let mut asking = Asking::begin(&shared)?;
            let command = script::orders_of(&shared.keys, asking.epoch, players);
            let answer = asking.connection.answer(&command).await;
            let answer = answer.map_err(StoreError::from);
            asking.end(answer.and_then(|answer| script::orders(&answer)))
        })
    }

    fn remembered(&self, player: &str) -> Option<Order> {
        self.0.upgrade()?.remembered(player)
    }
}

/// Questions under way at once: beyond it, the estimate.
const ASKING_MAX: usize = 64;
const TIMER: Duration = Duration::from_micros(500);
const BREAKER: BreakerConfig = BreakerConfig {
    window: Duration::from_millis(250),
    volume_min: 16,
    failures_percent: 50,
    open_min: Duration::from_millis(100),
    open_max: Duration::from_secs(1),
    probe_max: Duration::from_secs(2),
};
