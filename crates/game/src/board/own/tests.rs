use super::*;
use crate::board::kind::BoardSpec;
use crate::board::sketch::Sketch;
use crate::board::tests::{self, NOW, Pending, best, of, score};
use std::sync::Mutex;
use tokio::time::Instant;

/// A store of the same players as [`of`], which answers after `delay`, or never.
struct Store {
    board: Arc<Board>,
    players: u64,
    delay: Option<Duration>,
    memory: Mutex<Vec<String>>,
}

impl Store {
    fn order(&self, player: &str) -> Option<Order> {
        let at: u64 = player.strip_prefix('p')?.parse().ok()?;
        let order = self.board.law().order(score(at), NOW).unwrap();
        (at < self.players).then_some(order)
    }

    fn reply<'a, T: Send + 'a>(&self, answer: T) -> Reply<'a, Result<T, Unavailable>> {
        let delay = self.delay;
        Box::pin(async move {
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
            Ok(answer)
        })
    }
}

impl StoreReader for Store {
    fn standing<'a>(&'a self, player: &'a str) -> Reply<'a, Result<Standing, Unavailable>> {
        self.reply(match self.order(player) {
            Some(order) => Standing::At {
                place: player[1..].parse::<u64>().unwrap() + 1,
                order,
            },
            None => Standing::Absent,
        })
    }

    fn around<'a>(
        &'a self,
        player: &'a str,
        radius: usize,
    ) -> Reply<'a, Result<Option<Neighbours>, Unavailable>> {
        self.reply(self.order(player).map(|_| {
            let at: u64 = player[1..].parse().unwrap();
            let from = at.saturating_sub(radius as u64);
            let to = (at + radius as u64 + 1).min(self.players);
            let member = |at| {
                let player = format!("p{at}");
                let order = self.order(&player).unwrap();
                (PlayerId::parse(&player).unwrap(), order)
            };
            Neighbours {
                first: from + 1,
                members: (from..to).map(member).collect(),
            }
        }))
    }

    fn orders<'a>(
        &'a self,
        players: &'a [PlayerId],
    ) -> Reply<'a, Result<Vec<Option<Order>>, Unavailable>> {
        self.reply(
            players
                .iter()
                .map(|player| self.order(player.as_str()))
                .collect(),
        )
    }

    fn remembered(&self, player: &str) -> Option<Order> {
        let known = self
            .memory
            .lock()
            .unwrap()
            .iter()
            .any(|known| known == player);
        self.order(player).filter(|_| known)
    }
}

/// 5,000 players, of whom 100 are in the top; a store that takes `delay`.
fn wired(delay: Option<Duration>) -> (Arc<Board>, Arc<Store>) {
    let board = Arc::new(of(5_000, BoardSpec { top: 100, ..best() }));
    let store = Arc::new(Store {
        board: Arc::clone(&board),
        players: 5_000,
        delay,
        memory: Mutex::default(),
    });
    board.attach_reader(Arc::clone(&store) as Arc<dyn StoreReader>);
    (board, store)
}

fn own(player: &str) -> Own {
    Own::new(player).unwrap()
}

async fn rank(board: &Board, player: &str) -> Rank {
    board.rank(&own(player), NOW).await.unwrap().rank
}

#[tokio::test(start_paused = true)]
async fn who_is_in_the_top_is_told_without_the_store() {
    let (board, _store) = wired(None);
    let began = Instant::now();
    let told = rank(&board, "p41").await;
    let order = board.law().order(score(41), NOW).unwrap();
    assert_eq!(
        told,
        Rank::Top {
            place: 42,
            order,
            pending: false
        }
    );
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn who_is_outside_is_told_exactly_while_the_store_is_quick() {
    let (board, _store) = wired(Some(Duration::from_millis(1)));
    let order = board.law().order(score(4_321), NOW).unwrap();
    assert_eq!(
        rank(&board, "p4321").await,
        Rank::Store {
            place: 4_322,
            order
        }
    );
    assert_eq!(rank(&board, "nobody").await, Rank::Absent);
    assert_eq!(board.metrics().rank_store, 1);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_store_costs_the_wait_and_no_more() {
    let (board, store) = wired(None);
    store.memory.lock().unwrap().push("p4321".into());
    let began = Instant::now();
    let Rank::About {
        estimate: Some(estimate),
        pending: false,
        ..
    } = rank(&board, "p4321").await
    else {
        panic!("an estimate");
    };
    assert!(
        (estimate.low..=estimate.high).contains(&4_322),
        "{estimate:?}"
    );
    let bound = Sketch::ladder_error(100, 5_000);
    assert!(estimate.error() as f64 <= bound * 4_322.0 + 1.0);
    assert!(began.elapsed() <= Duration::from_millis(4));
    // Nobody knows her score: that is said, and not a place.
    assert_eq!(rank(&board, "p4322").await, Rank::Unknown);
    // Known to be away, it isn't even asked.
    board.set_store(StoreState::Open);
    let began = Instant::now();
    assert!(matches!(rank(&board, "p4321").await, Rank::About { .. }));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_score_that_the_caller_knows_makes_an_estimate() {
    let board = of(5_000, BoardSpec { top: 100, ..best() });
    let asked = Own {
        hint: Some(score(777)),
        ..own("p777")
    };
    let place = board.rank(&asked, NOW).await.unwrap();
    let Rank::About {
        estimate: Some(estimate),
        ..
    } = place.rank
    else {
        panic!("an estimate");
    };
    assert!((estimate.low..=estimate.high).contains(&778));
}

#[tokio::test(start_paused = true)]
async fn own_writes_are_read_before_the_store_has_them() {
    let (board, _store) = wired(Some(Duration::from_millis(1)));
    let pending = Pending::on(&board);
    let law = *board.law();
    // Into the top.
    let order = law.order(score(10), NOW - 3_600_000).unwrap();
    pending.write("p4000", order);
    assert_eq!(
        rank(&board, "p4000").await,
        Rank::Top {
            place: 11,
            order,
            pending: true
        }
    );
    // Better, but outside: an estimate from the new score, not the store's place of the old one.
    let better = law.order(score(2_000), NOW).unwrap();
    pending.write("p4001", better);
    let Rank::About {
        order,
        estimate: Some(estimate),
        pending: true,
    } = rank(&board, "p4001").await
    else {
        panic!("an estimate");
    };
    assert_eq!(order, better);
    assert!((estimate.low..=estimate.high).contains(&2_001));
    // The store has it by now: exact again.
    pending.write("p4002", law.order(score(4_002), NOW).unwrap());
    assert!(matches!(
        rank(&board, "p4002").await,
        Rank::Store { place: 4_003, .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn around_a_player_are_her_neighbours() {
    let (board, _store) = wired(Some(Duration::from_millis(1)));
    let Around::Top(page) = board.around(&own("p41"), 2, NOW).await.unwrap() else {
        panic!("in the top");
    };
    let rows: Vec<_> = page
        .rows()
        .map(|row| (row.place, row.player.to_owned()))
        .collect();
    let expected: Vec<_> = (39..44).map(|at| (at + 1, format!("p{at}"))).collect();
    assert_eq!(rows, expected);
    let Around::Top(page) = board.around(&own("p0"), 2, NOW).await.unwrap() else {
        panic!("in the top");
    };
    assert_eq!(page.rows().len(), 3);
    let Around::Store { neighbours, place } = board.around(&own("p3000"), 3, NOW).await.unwrap()
    else {
        panic!("from the store");
    };
    assert_eq!((neighbours.first, neighbours.members.len()), (2_998, 7));
    assert_eq!(place.rank.place(), Some(3_001));
    let refused = board.around(&own("p1"), RADIUS_MAX + 1, NOW).await;
    assert!(matches!(refused, Err(ReadError::TooMany { .. })));
}

#[tokio::test(start_paused = true)]
async fn around_a_player_outside_is_herself_while_the_store_is_away() {
    let (board, store) = wired(None);
    store.memory.lock().unwrap().push("p3000".into());
    let began = Instant::now();
    let Around::Alone(place) = board.around(&own("p3000"), 3, NOW).await.unwrap() else {
        panic!("alone");
    };
    assert!(matches!(place.rank, Rank::About { .. }));
    assert!(began.elapsed() <= Duration::from_millis(4));
}

#[tokio::test(start_paused = true)]
async fn friends_come_best_first_and_once() {
    let (board, store) = wired(Some(Duration::from_millis(1)));
    let pending = Pending::on(&board);
    pending.write(
        "p4500",
        board.law().order(score(50), NOW - 3_600_000).unwrap(),
    );
    let list = |names: &[&str]| -> Vec<PlayerId> {
        names
            .iter()
            .map(|name| PlayerId::parse(name).unwrap())
            .collect()
    };
    let asked = list(&["p3000", "nobody", "p7", "p4500", "p99", "p7"]);
    let told = board.friends(&asked, None, NOW).await.unwrap();
    let names: Vec<_> = told
        .friends
        .iter()
        .map(|friend| friend.player.as_str())
        .collect();
    assert_eq!(names, ["p7", "p4500", "p99", "p3000", "nobody"]);
    assert!(matches!(
        told.friends[1].rank,
        Rank::Top {
            place: 51,
            pending: true,
            ..
        }
    ));
    assert!(matches!(
        told.friends[3].rank,
        Rank::About {
            estimate: Some(_),
            ..
        }
    ));
    assert_eq!(told.friends[4].rank, Rank::Absent);
    let many = vec![PlayerId::parse("p1").unwrap(); FRIENDS_MAX + 1];
    assert!(matches!(
        board.friends(&many, None, NOW).await,
        Err(ReadError::TooMany { .. })
    ));
    // Away: who is known is estimated, who isn't is said to be unknown.
    board.set_store(StoreState::Open);
    store.memory.lock().unwrap().push("p3000".into());
    let told = board
        .friends(&list(&["p3001", "p3000", "p5"]), None, NOW)
        .await
        .unwrap();
    let ranks: Vec<_> = told.friends.iter().map(|friend| friend.rank).collect();
    assert!(matches!(
        ranks[..],
        [Rank::Top { .. }, Rank::About { .. }, Rank::Unknown]
    ));
}

#[tokio::test(start_paused = true)]
async fn every_read_obeys_the_limit_of_age() {
    let board = of(10, best());
    let old = Own {
        max_age_ms: Some(10),
        ..own("p1")
    };
    assert!(matches!(
        board.rank(&old, NOW + 11).await,
        Err(ReadError::Stale { .. })
    ));
    assert!(matches!(
        board.around(&old, 1, NOW + 11).await,
        Err(ReadError::Stale { .. })
    ));
    assert!(matches!(
        board.friends(&[], Some(10), NOW + 11).await,
        Err(ReadError::Stale { .. })
    ));
    assert_eq!(board.metrics().refused_stale, 3);
}

#[tokio::test(start_paused = true)]
async fn her_own_result_is_not_taken_back_by_what_the_store_says_of_before_it() {
    let (board, _store) = wired(Some(Duration::from_millis(1)));
    let better = board.law().order(score(2_000), NOW).unwrap();
    Pending::on(&board).write("p3000", better);
    let Around::Alone(place) = board.around(&own("p3000"), 3, NOW).await.unwrap() else {
        panic!("the store's neighbours are those of her former place");
    };
    assert_eq!(place.rank.order(), Some(better));
    let Around::Alone(place) = board.around(&own("nobody"), 3, NOW).await.unwrap() else {
        panic!("the store doesn't know her");
    };
    assert_eq!(place.rank, Rank::Absent);
    // A loss that the store doesn't have yet.
    let sums = BoardSpec {
        top: 100,
        ..tests::spec(Kind::Sum(crate::board::Better::Higher))
    };
    let board = Arc::new(of(5_000, sums));
    let store = Store {
        board: Arc::clone(&board),
        players: 5_000,
        delay: Some(Duration::from_millis(1)),
        memory: Mutex::default(),
    };
    board.attach_reader(Arc::new(store));
    let worse = board.law().order(score(4_000), NOW).unwrap();
    Pending::on(&board).write("p50", worse);
    assert!(matches!(
        rank(&board, "p50").await,
        Rank::About { order, pending: true, .. } if order == worse
    ));
}

/// Everybody moves once to anywhere: her true place is within the bounds, which count her where she was.
#[tokio::test(start_paused = true)]
async fn who_moves_is_within_the_bounds_that_count_her_where_she_was() {
    let (players, top) = (1_500, 20);
    let board = of(players, BoardSpec { top, ..best() });
    let pending = Pending::on(&board);
    let order = |at: u64| board.law().order(score(at), NOW).unwrap().bits();
    for from in [0, 5, 400, 1_005, 1_400] {
        for to in (990..1_030).chain([from, top as u64, players - 1]) {
            for beside in [-1, 1] {
                let player = format!("p{from}");
                let moved = Order::from_bits(order(to).saturating_add_signed(beside)).unwrap();
                pending.write(&player, moved);
                let others = (0..players).filter(|at| *at != from);
                let place = 1 + others.filter(|at| order(*at) < moved.bits()).count() as u64;
                let told = match board.rank(&own(&player), NOW).await.unwrap().rank {
                    Rank::About {
                        estimate: Some(told),
                        ..
                    } => told.low..=told.high,
                    rank => rank.place().unwrap()..=rank.place().unwrap(),
                };
                assert!(told.contains(&place), "{place} in {told:?}: {from} to {to}");
            }
        }
    }
}
