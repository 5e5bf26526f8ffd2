//! A board whose store is this process: for games of one server, for tests, for a first day. Results go in by
//! [`Memory::submit`], snapshots come out as from any other store, so that readers see no difference; what is lost with the
//! process is everything since the snapshot that was last persisted.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::kind::{BadPlayer, PlayerId};
use super::order::{Order, Refused};
use super::sketch::{Pivot, Sketch};
use super::snapshot::{BuildError, Builder, Snapshot, Version};
use super::{
    Board, Neighbours, Overlay, PublishError, Reply, Standing, StoreReader, StoreState,
    Unavailable, now_ms,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Beyond these the last place is dropped. 100,000.
    pub players_max: usize,
    /// Between two snapshots, at least. A result after a pause is published at once. 100 ms.
    pub period: Duration,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            players_max: 100_000,
            period: Duration::from_millis(100),
        }
    }
}

/// Why a result was not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Nobody can be called so.
    #[error(transparent)]
    Player(#[from] BadPlayer),
    /// Out of the board's range: trying again is no use.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The season is over: nothing changes the board any more.
    #[error("the board is final")]
    Final,
}

/// All standings of one board, and who publishes them.
pub struct Memory {
    board: Arc<Board>,
    options: MemoryOptions,
    store: Arc<Store>,
}

/// What the board asks. Doesn't know the board, so that both go when nobody has them any more.
struct Store {
    /// Results change several tables at once; held for microseconds, and while a snapshot is built.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    orders: HashMap<PlayerId, Order>,
    /// The same, best first.
    ranks: BTreeSet<(Order, PlayerId)>,
    version: Version,
    dirty: bool,
    published_ms: u64,
}

impl Memory {
    /// Puts a store behind `board`, which begins with what the board's newest snapshot has (a persisted one, say), and
    /// publishes its first snapshot.
    pub fn attach(board: Arc<Board>, options: MemoryOptions) -> Arc<Self> {
        let mut state = State::default();
        if let Some(known) = board.snapshot() {
            for entry in known.entries() {
                if let Ok(player) = PlayerId::parse(entry.player) {
                    state.ranks.insert((entry.order, player.clone()));
                    state.orders.insert(player, entry.order);
                }
            }
            state.version = known.version();
        }
        state.version = Version::new(state.version.epoch() + 1, 0);
        state.dirty = true;
        let store = Arc::new(Store {
            state: Mutex::new(state),
        });
        board.attach_reader(store.clone());
        board.attach_overlay(store.clone());
        board.set_store(StoreState::Up);
        let memory = Arc::new(Self {
            board,
            options,
            store,
        });
        memory.tick(now_ms());
        memory
    }

    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Counts a result of `points` at `at_ms` (Unix). Her standing by it.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing has changed then.
    pub fn submit(&self, player: &str, points: i64, at_ms: u64) -> Result<Order, MemoryError> {
        let player = PlayerId::parse(player)?;
        let mut state = self.store.lock();
        if (self.board.snapshot()).is_some_and(|newest| newest.is_final()) {
            return Err(MemoryError::Final);
        }
        let current = state.orders.get(&player).copied();
        let order = self.board.law().apply(current, points, at_ms)?;
        state.stand(player, current, order, self.options.players_max);
        let now_ms = now_ms();
        let period = self.options.period.as_millis() as u64;
        if now_ms.saturating_sub(state.published_ms) >= period {
            self.publish(&mut state, now_ms);
        }
        Ok(order)
    }

    /// Her standing as of her last result.
    pub fn order(&self, player: &str) -> Option<Order> {
        self.store.order(player)
    }

    pub fn len(&self) -> usize {
        self.store.lock().orders.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Publishes what has changed, or says that nothing has.
    pub fn tick(&self, now_ms: u64) {
        let mut state = self.store.lock();
        if state.dirty {
            self.publish(&mut state, now_ms);
            return;
        }
        self.board.confirm(state.version, now_ms);
        if self.board.has_faded(now_ms)
            && let Ok(picture) = self.picture(&state, state.version, now_ms)
        {
            self.board.resketch(picture);
        }
    }

    /// Ticks for ever; spawn it beside what serves the board.
    pub async fn run(self: Arc<Self>) {
        let mut every = tokio::time::interval(self.options.period);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.tick(now_ms());
        }
    }

    fn publish(&self, state: &mut State, now_ms: u64) {
        let version = state.version.next();
        let picture = self.picture(state, version, now_ms);
        match picture.map(|picture| self.board.publish(picture)) {
            Ok(Ok(_)) => {
                state.version = version;
                state.published_ms = now_ms;
                state.dirty = false;
            }
            // A newer one came from elsewhere, or the season is over: nothing of it will be.
            Ok(Err(error)) => {
                state.dirty &= !matches!(error, PublishError::Final(_));
                tracing::warn!(board = self.board.spec().name, %error, "not published")
            }
            Err(error) => tracing::error!(board = self.board.spec().name, %error, "no snapshot"),
        }
    }

    fn picture(
        &self,
        state: &State,
        version: Version,
        now_ms: u64,
    ) -> Result<Snapshot, BuildError> {
        let mut builder = Builder::new(self.board.spec(), self.board.law(), version, now_ms);
        for (order, player) in &state.ranks {
            // No room for more: the sketch stands for the others.
            if !builder.push(player.as_str(), *order).unwrap_or(false) {
                break;
            }
        }
        let (top, total) = (builder.len() as u64, state.ranks.len() as u64);
        builder
            .total(total)
            .sketch(state.sketch(top, now_ms))
            .build()
    }
}

impl Store {
    fn order(&self, player: &str) -> Option<Order> {
        self.lock().orders.get(player).copied()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn stand(&mut self, player: PlayerId, before: Option<Order>, order: Order, players_max: usize) {
        self.dirty = true;
        if let Some(before) = before {
            self.ranks.remove(&(before, player.clone()));
        }
        self.ranks.insert((order, player.clone()));
        self.orders.insert(player, order);
        while self.orders.len() > players_max.max(1) {
            let Some((_, last)) = self.ranks.pop_last() else {
                return;
            };
            self.orders.remove(&last);
        }
    }

    /// One walk over everybody; nothing where all are in the top.
    fn sketch(&self, top: u64, now_ms: u64) -> Sketch {
        let places = Sketch::ladder(top, self.ranks.len() as u64);
        let mut wanted = places.into_iter().peekable();
        if wanted.peek().is_none() {
            return Sketch::default();
        }
        let numbered = (1_u64..).zip(&self.ranks);
        let pivots = numbered.filter_map(|(place, (order, _))| {
            wanted.next_if_eq(&place)?;
            Some(Pivot {
                place,
                order: *order,
            })
        });
        let pivots: Vec<Pivot> = pivots.collect();
        Sketch::new(pivots, now_ms)
    }

    /// From 1. A walk over all who are better.
    fn place(&self, order: Order, player: &PlayerId) -> u64 {
        let better = (Bound::Unbounded, Bound::Excluded((order, player.clone())));
        self.ranks.range(better).count() as u64 + 1
    }
}

impl StoreReader for Store {
    fn standing<'a>(&'a self, player: &'a str) -> Reply<'a, Result<Standing, Unavailable>> {
        let standing = {
            let state = self.lock();
            match state.orders.get_key_value(player) {
                Some((player, order)) => Standing::At {
                    place: state.place(*order, player),
                    order: *order,
                },
                None => Standing::Absent,
            }
        };
        Box::pin(std::future::ready(Ok(standing)))
    }

    fn around<'a>(
        &'a self,
        player: &'a str,
        radius: usize,
    ) -> Reply<'a, Result<Option<Neighbours>, Unavailable>> {
        let neighbours = {
            let state = self.lock();
            state.orders.get_key_value(player).map(|(player, order)| {
                let own = (*order, player.clone());
                let before = state.ranks.range(..&own).rev().take(radius);
                let mut members: Vec<_> = before.collect();
                members.reverse();
                let first = state.place(*order, player) - members.len() as u64;
                members.extend(state.ranks.range(&own..).take(radius + 1));
                let members = members.into_iter();
                Neighbours {
                    first,
                    members: members.map(|(order, who)| (who.clone(), *order)).collect(),
                }
            })
        };
        Box::pin(std::future::ready(Ok(neighbours)))
    }

    fn orders<'a>(
        &'a self,
        players: &'a [PlayerId],
    ) -> Reply<'a, Result<Vec<Option<Order>>, Unavailable>> {
        let state = self.lock();
        let orders = players.iter().map(|who| state.orders.get(who).copied());
        let orders = orders.collect();
        drop(state);
        Box::pin(std::future::ready(Ok(orders)))
    }

    fn remembered(&self, player: &str) -> Option<Order> {
        self.order(player)
    }
}

impl Overlay for Store {
    fn pending(&self, player: &str, base: Option<Order>, _as_of_ms: u64) -> Option<Order> {
        let state = self.lock();
        if !state.dirty {
            return None;
        }
        let order = state.orders.get(player).copied();
        order.filter(|order| Some(*order) != base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::{Better, BoardSpec, Kind, Own, PageQuery, Rank};

    const NOW: u64 = 1_800_000_000_000;

    fn memory(kind: Kind, top: usize, options: MemoryOptions) -> Arc<Memory> {
        let spec = BoardSpec {
            top,
            ..BoardSpec::new("test", kind)
        };
        Memory::attach(Arc::new(Board::try_new(spec).unwrap()), options)
    }

    fn names(memory: &Memory) -> Vec<String> {
        let page = memory
            .board()
            .page(&PageQuery::default(), now_ms())
            .unwrap();
        page.rows().map(|row| row.player.to_owned()).collect()
    }

    #[test]
    fn results_are_ranked_and_published() {
        let memory = memory(Kind::Sum(Better::Higher), 10, MemoryOptions::default());
        memory.submit("ann", 10, NOW).unwrap();
        memory.submit("bob", 12, NOW).unwrap();
        memory.submit("ann", 5, NOW).unwrap();
        memory.tick(now_ms());
        assert_eq!(names(&memory), ["ann", "bob"]);
        assert!(memory.submit("", 1, NOW).is_err());
    }

    #[test]
    fn her_own_result_is_seen_before_it_is_published() {
        let options = MemoryOptions {
            period: Duration::from_secs(3600),
            ..MemoryOptions::default()
        };
        let memory = memory(Kind::Best(Better::Higher), 10, options);
        memory.submit("ann", 10, NOW).unwrap();
        assert!(names(&memory).is_empty());
        let query = PageQuery {
            viewer: Some(PlayerId::parse("ann").unwrap()),
            ..PageQuery::default()
        };
        let page = memory.board().page(&query, now_ms()).unwrap();
        assert!(page.rows().any(|row| row.player == "ann" && row.pending));
    }

    #[tokio::test]
    async fn who_is_outside_the_top_has_an_exact_place_and_neighbours() {
        let memory = memory(Kind::Best(Better::Higher), 3, MemoryOptions::default());
        for number in 0..20_i64 {
            memory
                .submit(&format!("p{number:02}"), 100 - number, NOW)
                .unwrap();
        }
        memory.tick(now_ms());
        let own = Own::new("p10").unwrap();
        let place = memory.board().rank(&own, now_ms()).await.unwrap();
        assert!(
            matches!(place.rank, Rank::Store { place: 11, .. }),
            "{:?}",
            place.rank
        );
        let neighbours = memory.store.around("p10", 2).await.unwrap().unwrap();
        let members: Vec<_> = neighbours
            .members
            .iter()
            .map(|(who, _)| who.as_str())
            .collect();
        assert_eq!(
            (neighbours.first, members),
            (9, vec!["p08", "p09", "p10", "p11", "p12"])
        );
        let snapshot = memory.board().snapshot().unwrap();
        assert_eq!((snapshot.len(), snapshot.total()), (3, 20));
        assert!(!snapshot.sketch().pivots().is_empty());
    }

    #[test]
    fn a_board_and_its_store_go_when_nobody_has_them() {
        let memory = memory(Kind::Best(Better::Higher), 10, MemoryOptions::default());
        let board = Arc::downgrade(memory.board());
        drop(memory);
        assert!(board.upgrade().is_none());
    }

    #[test]
    fn nothing_is_pending_on_a_board_whose_season_is_over() {
        let memory = memory(Kind::Best(Better::Higher), 10, MemoryOptions::default());
        memory.submit("ann", 10, NOW).unwrap();
        let board = memory.board();
        let version = board.snapshot().unwrap().version().next();
        let last = Builder::new(board.spec(), board.law(), version, NOW);
        board.publish(last.last(true).build().unwrap()).unwrap();
        assert_eq!(memory.submit("bob", 12, NOW), Err(MemoryError::Final));
        memory.tick(now_ms());
        assert_eq!(memory.store.pending("bob", None, NOW), None);
        assert_eq!(memory.order("bob"), None);
    }

    #[test]
    fn scores_go_on_fading_while_nobody_plays() {
        let half_life_ms = 3_600_000;
        let memory = memory(Kind::Decayed { half_life_ms }, 10, MemoryOptions::default());
        let now = now_ms();
        memory.submit("ann", 100, now).unwrap();
        memory.tick(now);
        let seen = |at: u64| {
            memory.tick(at);
            let page = memory.board().page(&PageQuery::default(), at).unwrap();
            let score = page.rows().next().unwrap().score;
            (page.version(), page.as_of_ms(), score)
        };
        let first = seen(now);
        assert_eq!(seen(first.1 + 1_000), first, "a thousandth is not yet told");
        let later = seen(first.1 + half_life_ms);
        assert_eq!((later.0, later.1), (first.0, first.1 + half_life_ms));
        assert!(
            (later.2 - first.2 / 2.0).abs() < 1e-6,
            "{later:?} {first:?}"
        );
    }

    #[test]
    fn players_are_bounded_and_a_snapshot_is_where_the_next_process_begins() {
        let options = MemoryOptions {
            players_max: 5,
            ..MemoryOptions::default()
        };
        let memory = memory(Kind::Best(Better::Higher), 10, options);
        for number in 0..8_i64 {
            memory.submit(&format!("p{number}"), number, NOW).unwrap();
        }
        assert_eq!(memory.len(), 5);
        memory.tick(now_ms());
        let before = memory.board().snapshot().unwrap().version();
        let again = Memory::attach(memory.board().clone(), options);
        assert_eq!(again.len(), 5);
        assert!(again.board().snapshot().unwrap().version() > before);
        assert_eq!(names(&again)[0], "p7");
    }
}
