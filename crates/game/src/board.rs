//! A leaderboard that never goes dark. Readers answer from one immutable [`Snapshot`], found by one atomic load, and never
//! touch the store; one refresher publishes the next snapshot by one atomic swap, so that an outage only makes a version
//! number older. A [`Board`] is the place where both meet; what asks the network lives behind [`StoreReader`] and
//! [`Overlay`].
//!
//! Reads: [`Board::page`], [`Board::around`], [`Board::rank`], [`Board::friends`]; over HTTP in any framework:
//! [`Board::answer`]. Publishing: [`snapshot::Builder`] → [`Board::publish`], or [`Board::confirm`] where nothing changed.

pub mod answer;
#[cfg(feature = "redis")]
mod breaker;
pub mod kind;
pub mod memory;
mod metrics;
pub mod order;
#[cfg(feature = "redis")]
mod outbox;
pub mod own;
pub mod page;
pub mod persist;
#[cfg(feature = "redis")]
mod rank;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
mod refresh;
pub mod sketch;
pub mod snapshot;
#[cfg(feature = "redis")]
mod write;

#[cfg(feature = "redis")]
pub use self::redis::{LiveConfig, Receipt, RedisBoard, RedisConfig, WriteError};
pub use answer::{Answer, Request};
pub use kind::{BadPlayer, Better, BoardSpec, Kind, PlayerId, SpecError};
pub use metrics::{Metrics, write};
pub use order::{Law, Order, Refused};
pub use own::{Around, Friend, Friends, Own, Place, Rank};
pub use page::{BadToken, Freshness, Page, PageQuery, Row};
pub use sketch::{Estimate, Sketch};
pub use snapshot::{BuildError, Builder, Snapshot, Version};

use arc_swap::ArcSwap;
use std::cmp;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

/// One leaderboard: the snapshots that are readable now, and hooks to what lies behind them. Share it as `Arc<Board>`.
pub struct Board {
    spec: BoardSpec,
    law: Law,
    shelf: ArcSwap<Shelf>,
    /// Publishers only (the refresher, a snapshot from disk or from a replica): readers never take it.
    publishing: Mutex<()>,
    store: AtomicU8,
    reader: OnceLock<Arc<dyn StoreReader>>,
    overlay: OnceLock<Arc<dyn Overlay>>,
    counts: metrics::Counts,
}

/// The readable versions, newest first; replaced as a whole.
#[derive(Debug, Default)]
struct Shelf(Vec<Arc<Snapshot>>);

/// What the refresher knows of the store. Readers only tell it (`Cache-Status: …; detail="redis-open"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StoreState {
    /// No refresh has succeeded since this process began: a snapshot, if any, came from disk or from a replica.
    Cold,
    /// The last refresh succeeded.
    Up,
    /// The breaker is open: the store is not asked.
    Open,
    /// The breaker lets a probe through.
    Probing,
}

impl StoreState {
    /// The word in `Cache-Status`; nothing where all is well.
    pub fn detail(self) -> Option<&'static str> {
        match self {
            Self::Cold => Some("cold-start"),
            Self::Up => None,
            Self::Open => Some("redis-open"),
            Self::Probing => Some("redis-probing"),
        }
    }
}

pub type Reply<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the store can say beyond the snapshot. The caller waits [`BoardSpec::store_wait_ms`] at most and drops the future
/// then; an implementation that knows that the store is out of order answers [`Unavailable`] at once.
pub trait StoreReader: Send + Sync {
    /// Her standing and place, as the store has them now.
    fn standing<'a>(&'a self, player: &'a str) -> Reply<'a, Result<Standing, Unavailable>>;

    /// The players from `radius` places before her to `radius` after, best first; `None` if the board doesn't know her.
    fn around<'a>(
        &'a self,
        player: &'a str,
        radius: usize,
    ) -> Reply<'a, Result<Option<Neighbours>, Unavailable>>;

    /// The standings of up to [`kind::FRIENDS_MAX`] players, in the order asked.
    fn orders<'a>(
        &'a self,
        players: &'a [PlayerId],
    ) -> Reply<'a, Result<Vec<Option<Order>>, Unavailable>>;

    /// Her last standing that this process happens to know (her own write, an earlier answer), without asking anyone. It
    /// makes an estimate possible while the store is away.
    fn remembered(&self, player: &str) -> Option<Order>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// `place` counts from 1.
    At { place: u64, order: Order },
    /// The store answered that she isn't on the board.
    Absent,
}

/// A run of members, best first; the first of them has place `first` (from 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbours {
    pub first: u64,
    pub members: Vec<(PlayerId, Order)>,
}

/// The store was not asked, or did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the board's store is not available")]
pub struct Unavailable;

/// Writes of this process that the snapshot doesn't have yet, for read-your-writes.
pub trait Overlay: Send + Sync {
    /// What her standing will be once they are in the store: `base` is what the snapshot of `as_of_ms` (Unix; what was in
    /// the store by then is in it) says, `None` if it doesn't have her. `None`: nothing of hers is pending, or nothing can
    /// be said (a sum whose base is unknown).
    fn pending(&self, player: &str, base: Option<Order>, as_of_ms: u64) -> Option<Order>;
}

/// Why a board does not answer a read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A cold start: nothing on disk, and no answer of the store yet.
    #[error("board {board} has no snapshot yet")]
    Empty { board: String },
    /// Past the reader's own limit, or `BoardSpec::refuse_after_ms`.
    #[error("board {board} is {age_ms} ms old, {allowed_ms} ms are allowed")]
    Stale {
        board: String,
        age_ms: u64,
        allowed_ms: u64,
    },
    /// Begin again without a token.
    #[error("version {asked} of board {board} is gone, the newest is {newest}")]
    Gone {
        board: String,
        asked: Version,
        newest: Version,
    },
    /// Not made by this board, or for another viewer.
    #[error("paging token: {0}")]
    Token(#[from] BadToken),
    /// More rows, neighbours or friends than allowed, or none.
    #[error("{what} of {asked} (at most {max})")]
    TooMany {
        what: &'static str,
        asked: usize,
        max: usize,
    },
    #[error(transparent)]
    Player(#[from] BadPlayer),
}

/// Why a snapshot was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Readers have this version or a later one.
    #[error("snapshot {offered} is not newer than {newest}")]
    Superseded { offered: Version, newest: Version },
    /// Another name or another [`Law`].
    #[error("the snapshot is of another board, or of another rule of ranking")]
    Foreign,
    /// The season is over.
    #[error("the board is final since version {0}")]
    Final(Version),
}

impl Board {
    pub fn try_new(spec: BoardSpec) -> Result<Self, SpecError> {
        let law = Law::try_new(&spec)?;
        Ok(Self {
            spec,
            law,
            shelf: ArcSwap::default(),
            publishing: Mutex::new(()),
            store: AtomicU8::new(StoreState::Cold as u8),
            reader: OnceLock::new(),
            overlay: OnceLock::new(),
            counts: metrics::Counts::default(),
        })
    }

    pub fn spec(&self) -> &BoardSpec {
        &self.spec
    }

    pub fn law(&self) -> &Law {
        &self.law
    }

    /// The newest snapshot, if there is one.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.shelf.load().0.first().cloned()
    }

    /// That version, while it is among the last [`BoardSpec::versions`].
    pub fn version(&self, version: Version) -> Option<Arc<Snapshot>> {
        let shelf = self.shelf.load();
        shelf
            .0
            .iter()
            .find(|held| held.version() == version)
            .cloned()
    }

    /// Makes `snapshot` the newest, by one swap. "The highest version wins": also for snapshots of other replicas and from
    /// disk; one that isn't newer changes nothing and is told so.
    pub fn publish(&self, snapshot: Snapshot) -> Result<Arc<Snapshot>, PublishError> {
        if snapshot.board() != self.spec.name || snapshot.law() != self.law.fingerprint() {
            return Err(PublishError::Foreign);
        }
        let _one = self
            .publishing
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let held = self.shelf.load_full();
        if let Some(newest) = held.0.first() {
            if newest.is_final() {
                return Err(PublishError::Final(newest.version()));
            }
            let (offered, newest) = (snapshot.version(), newest.version());
            if offered <= newest {
                return Err(PublishError::Superseded { offered, newest });
            }
        }
        let snapshot = Arc::new(snapshot);
        let older = held.0.iter().take(self.spec.versions - 1).cloned();
        let shelf = std::iter::once(Arc::clone(&snapshot))
            .chain(older)
            .collect();
        self.shelf.store(Arc::new(Shelf(shelf)));
        self.counts.published();
        Ok(snapshot)
    }

    /// Puts the same picture with a newer sketch, or of a later time, in the place of the newest: after the last of many
    /// changes, estimates catch up with it, and on a decayed board nothing changes and all scores fade. False if it isn't
    /// the same, or no newer.
    pub fn resketch(&self, snapshot: Snapshot) -> bool {
        let _one = self
            .publishing
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let held = self.shelf.load_full();
        let Some((newest, older)) = held.0.split_first() else {
            return false;
        };
        let same = newest.version() == snapshot.version()
            && newest.tag() == snapshot.tag()
            && newest.is_final() == snapshot.is_final();
        let sketched = snapshot.sketch().as_of_ms() > newest.sketch().as_of_ms();
        let newer = match snapshot.as_of_ms().cmp(&newest.as_of_ms()) {
            cmp::Ordering::Less => false,
            cmp::Ordering::Equal => sketched,
            cmp::Ordering::Greater => !newest.is_final(),
        };
        if !(same && newer) {
            return false;
        }
        snapshot.confirm(newest.confirmed_ms());
        let shelf = std::iter::once(Arc::new(snapshot))
            .chain(older.iter().cloned())
            .collect();
        self.shelf.store(Arc::new(Shelf(shelf)));
        true
    }

    /// The store said at `now_ms` that it still has what `version` says: the age starts again, the version stays. False if
    /// another version is the newest by now.
    pub fn confirm(&self, version: Version, now_ms: u64) -> bool {
        // Not while another takes the newest one's place, which would be as old as before.
        let _one = self
            .publishing
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let shelf = self.shelf.load();
        match shelf.0.first() {
            Some(newest) if newest.version() == version => {
                newest.confirm(now_ms);
                true
            }
            _ => false,
        }
    }

    /// The scores that the newest snapshot shows have faded since, noticeably.
    pub(crate) fn has_faded(&self, now_ms: u64) -> bool {
        let (Some(after), Some(newest)) = (self.law.fades_within_ms(), self.snapshot()) else {
            return false;
        };
        !newest.is_final() && now_ms.saturating_sub(newest.as_of_ms()) >= after
    }

    /// Told by the refresher alone.
    pub fn set_store(&self, state: StoreState) {
        self.store.store(state as u8, Ordering::Relaxed);
    }

    pub fn store(&self) -> StoreState {
        match self.store.load(Ordering::Relaxed) {
            1 => StoreState::Up,
            2 => StoreState::Open,
            3 => StoreState::Probing,
            _ => StoreState::Cold,
        }
    }

    /// Once, when the store is wired up; a second call changes nothing.
    pub fn attach_reader(&self, reader: Arc<dyn StoreReader>) {
        let _ = self.reader.set(reader);
    }

    /// Once, when the write side is wired up; a second call changes nothing.
    pub fn attach_overlay(&self, overlay: Arc<dyn Overlay>) {
        let _ = self.overlay.set(overlay);
    }

    /// How old the newest snapshot is, ms.
    pub fn age_ms(&self, now_ms: u64) -> Option<u64> {
        let shelf = self.shelf.load();
        shelf.0.first().map(|newest| newest.age_ms(now_ms))
    }

    pub fn metrics(&self) -> Metrics {
        self.counts.read(self)
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let newest = self.snapshot().map(|snapshot| snapshot.version());
        f.debug_struct("Board")
            .field("name", &self.spec.name)
            .field("newest", &newest)
            .field("store", &self.store())
            .finish_non_exhaustive()
    }
}

/// Unix milliseconds that never go back while the process lives: the wall clock when first asked, and the monotonic clock
/// since. A stepped clock would else make an old board look fresh.
pub fn now_ms() -> u64 {
    static START: OnceLock<(u64, Instant)> = OnceLock::new();
    let (unix_ms, since) = START.get_or_init(|| {
        let unix = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        (unix.as_millis() as u64, Instant::now())
    });
    unix_ms + since.elapsed().as_millis() as u64
}

#[cfg(test)]
mod tests;
