use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use phalanx_game::board::redis::{BreakerState, RedisBoard};
use phalanx_game::board::{
    Better, Board, Kind, Own, PageQuery, Rank, Request, StoreState, now_ms, persist,
};

use crate::oracle::{Oracle, board, player, spec};
use crate::server::{Redis, SlowProxy, config, until};

const KIND: Kind = Kind::Best(Better::Higher);

/// A thread that reads pages without pause: none fails, each is in order and of one version.
struct Reading {
    reads: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Reading {
    fn of(board: &Arc<Board>) -> Self {
        let (reads, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let thread = {
            let (board, reads, over) = (board.clone(), reads.clone(), over.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let page = board.page(&PageQuery::default(), now_ms()).expect("a page");
                    let places: Vec<_> = page.rows().map(|row| row.order).collect();
                    assert!(places.is_sorted() && !places.is_empty());
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        Self {
            reads,
            over,
            thread: Some(thread),
        }
    }

    /// Reads have gone on since.
    async fn goes_on(&self) {
        let before = self.reads.load(Ordering::Relaxed);
        until("reads go on", async || {
            (self.reads.load(Ordering::Relaxed) > before + 10).then_some(())
        })
        .await;
    }

    fn end(mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("no read failed");
    }
}

async fn state(board: &Board, wanted: StoreState) {
    until("the store's state", async || {
        (board.store() == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_on_while_redis_is_killed_frozen_slow_and_back() {
    let mut redis = Redis::durable();
    let proxy = SlowProxy::to(redis.port).await;
    let directory = tempfile::tempdir().unwrap();
    let live = RedisBoard::start(
        board("reads", KIND),
        config(proxy.url(), Some(directory.path())),
    )
    .await
    .unwrap();
    let board = live.board().clone();
    let mut oracle = Oracle::new(&board);
    let results = (0..300).map(|number| (player(number), number as i64));
    oracle.submit_all(&live, results.collect()).await;
    oracle.check(&live, &redis).await;
    let reading = Reading::of(&board);

    for trouble in 0..4 {
        match trouble {
            0 => redis.kill(),
            1 => redis.freeze(),
            2 => proxy.delay_ms.store(2_000, Ordering::Relaxed),
            _ => drop(redis.ask(&["DEBUG", "SLEEP", "0.5"])),
        }
        if trouble < 3 {
            state(&board, StoreState::Open).await;
            reading.goes_on().await;
            let answer = board
                .answer(
                    Request {
                        path: "top",
                        ..Request::default()
                    },
                    now_ms(),
                )
                .await;
            assert_eq!(answer.status, 200);
            assert!(
                answer.header("cache-status").unwrap().contains("redis-"),
                "{answer:?}"
            );
        }
        oracle
            .submit(&live, &player(trouble), 10_000 + trouble as i64)
            .await;
        match trouble {
            0 => redis.restart(),
            1 => redis.thaw(),
            _ => proxy.delay_ms.store(0, Ordering::Relaxed),
        }
        state(&board, StoreState::Up).await;
        oracle.check(&live, &redis).await;
        reading.goes_on().await;
    }
    let metrics = live.metrics();
    assert!(
        metrics.openings_total >= 3 && metrics.probes_total >= 3,
        "{metrics:?}"
    );
    reading.end();
    let failed: u64 = metrics.failures_total.iter().map(|(_, count)| count).sum();
    assert!(failed > 0);
    let mut out = phalanx_telemetry::metrics::Exposition::new();
    phalanx_game::board::redis::write_metrics([&live], &mut out);
    phalanx_game::board::write([board.as_ref()], &mut out);
    let text = out.finish();
    assert!(
        text.contains("board_redis_failures_total{board=\"reads\",kind=\"timeout\"}"),
        "{text}"
    );
    live.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_own_place_outside_the_top_is_exact_with_redis_and_estimated_without() {
    let redis = Redis::durable();
    let directory = tempfile::tempdir().unwrap();
    let mut spec = spec("ranks", KIND);
    spec.top = 50;
    let board = Arc::new(Board::try_new(spec).unwrap());
    let live = RedisBoard::start(board.clone(), config(redis.url(), Some(directory.path())))
        .await
        .unwrap();
    let mut oracle = Oracle::new(&board);
    // Player n has place 1000 - n.
    let results = (0..1000).map(|number| (player(number), number as i64));
    oracle.submit_all(&live, results.collect()).await;
    until("the snapshot is whole", async || {
        board.snapshot().filter(|snapshot| snapshot.total() == 1000)
    })
    .await;
    let own = Own::new("player-300").unwrap();
    let expected = oracle.members[&player(300)].0;
    until("an exact place", async || {
        let place = board.rank(&own, now_ms()).await.unwrap();
        (place.rank
            == Rank::Store {
                place: 700,
                order: expected,
            })
        .then_some(())
    })
    .await;
    until("the run around her", async || {
        let around = board.around(&own, 2, now_ms()).await.unwrap();
        match around {
            phalanx_game::board::Around::Store { neighbours, .. } => {
                assert_eq!((neighbours.first, neighbours.members.len()), (698, 5));
                Some(())
            }
            _ => None,
        }
    })
    .await;
    let absent = Own::new("nobody").unwrap();
    until("an absent player is known to be", async || {
        (board.rank(&absent, now_ms()).await.unwrap().rank == Rank::Absent).then_some(())
    })
    .await;

    until("estimates of the whole board", async || {
        let snapshot = board.snapshot()?;
        (snapshot.sketch().pivots().last()?.place == 1000).then_some(())
    })
    .await;

    redis.freeze();
    // Many at once, before and after the breakers found out: every one is answered, none with an error.
    let mut tasks = Vec::new();
    for number in 0..400 {
        let board = board.clone();
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(number)).await;
            let own = Own::new("player-300").unwrap();
            board.rank(&own, now_ms()).await.unwrap().rank
        }));
    }
    for task in tasks {
        match task.await.unwrap() {
            Rank::About {
                order,
                estimate: Some(estimate),
                ..
            } => {
                assert_eq!(order, expected);
                assert!(
                    (estimate.low..=estimate.high).contains(&700),
                    "{estimate:?}"
                );
                assert!(estimate.error() <= 7, "{estimate:?}");
            }
            rank => assert!(matches!(rank, Rank::Store { place: 700, .. }), "{rank:?}"),
        }
    }
    state(&board, StoreState::Open).await;
    redis.thaw();
    until("exact again", async || {
        let place = board.rank(&own, now_ms()).await.unwrap();
        matches!(place.rank, Rank::Store { place: 700, .. }).then_some(())
    })
    .await;
    until("the readers' breaker closed", async || {
        (live.metrics().ranks_breaker == BreakerState::Closed).then_some(())
    })
    .await;
    live.shutdown().await;
}

#[tokio::test]
async fn a_cold_start_without_redis_answers_from_disk() {
    let mut redis = Redis::start();
    let directory = tempfile::tempdir().unwrap();
    let first = RedisBoard::start(
        board("cold", KIND),
        config(redis.url(), Some(directory.path())),
    )
    .await
    .unwrap();
    let mut oracle = Oracle::new(first.board());
    let results = (0..100).map(|number| (player(number), number as i64));
    oracle.submit_all(&first, results.collect()).await;
    oracle.check(&first, &redis).await;
    let before = first.board().snapshot().unwrap().version();
    first.shutdown().await;
    redis.kill();

    let second = RedisBoard::start(
        board("cold", KIND),
        config(redis.url(), Some(directory.path())),
    )
    .await
    .unwrap();
    let snapshot = second.board().snapshot().expect("from disk");
    assert_eq!((snapshot.version(), snapshot.len()), (before, 100));
    let answer = second
        .board()
        .answer(
            Request {
                path: "top",
                ..Request::default()
            },
            now_ms(),
        )
        .await;
    assert_eq!(answer.status, 200);
    let status = answer.header("cache-status").unwrap();
    assert!(
        status.contains("cold-start") || status.contains("redis-"),
        "{status}"
    );
    second.shutdown().await;
}

#[tokio::test]
async fn the_copy_on_disk_of_a_board_that_does_not_change_says_when_it_was_last_confirmed() {
    let redis = Redis::start();
    let directory = tempfile::tempdir().unwrap();
    let live = RedisBoard::start(
        board("still", KIND),
        config(redis.url(), Some(directory.path())),
    )
    .await
    .unwrap();
    let mut oracle = Oracle::new(live.board());
    oracle.submit(&live, &player(1), 5).await;
    oracle.check(&live, &redis).await;
    let board = live.board();
    let on_disk = || {
        let path = directory.path().join("snapshot");
        let found = persist::load(&path, board.spec(), board.law(), now_ms()).unwrap();
        found.filter(|found| found.total() == 1)
    };
    let first = until("a copy", async || on_disk()).await;
    let later = until("a younger copy", async || {
        on_disk().filter(|found| found.confirmed_ms() > first.confirmed_ms() + 500)
    })
    .await;
    assert_eq!(
        (later.version(), later.as_of_ms()),
        (first.version(), first.as_of_ms())
    );
    live.shutdown().await;
}

#[tokio::test]
async fn scores_of_a_decayed_board_go_on_fading_under_one_version_while_nobody_plays() {
    let redis = Redis::start();
    let directory = tempfile::tempdir().unwrap();
    let half_life_ms = 60_000;
    let live = RedisBoard::start(
        board("faded", Kind::Decayed { half_life_ms }),
        config(redis.url(), Some(directory.path())),
    )
    .await
    .unwrap();
    let board = live.board();
    live.submit(&player(1), 1_000).await.unwrap();
    let shown = || {
        let page = board.page(&PageQuery::default(), now_ms()).ok()?;
        let score = page.rows().next()?.score;
        Some((page.version(), page.as_of_ms(), score))
    };
    let first = until("her score", async || shown()).await;
    let later = until("a faded score", async || {
        shown().filter(|(_, as_of_ms, _)| *as_of_ms > first.1)
    })
    .await;
    assert_eq!(later.0, first.0);
    let halves = (later.1 - first.1) as f64 / half_life_ms as f64;
    assert!(
        (later.2 / (first.2 * (-halves).exp2()) - 1.0).abs() < 1e-6,
        "{first:?} {later:?}"
    );
    live.shutdown().await;
}

#[tokio::test]
async fn processes_of_one_board_have_the_same_versions() {
    let redis = Redis::start();
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut lives = Vec::new();
    for home in &homes {
        let config = config(redis.url(), Some(home.path()));
        lives.push(
            RedisBoard::start(board("two", Kind::Sum(Better::Higher)), config)
                .await
                .unwrap(),
        );
    }
    let mut oracle = Oracle::new(lives[0].board());
    for number in 0..200 {
        let live = &lives[number % 2];
        // A player's results through both processes: in whatever order they arrive, she comes to stand at the same place.
        oracle.submit(live, &player(number / 2 % 10), 1).await;
    }
    for live in &lives {
        until("all has arrived", async || {
            (live.metrics().writes.pending == 0).then_some(())
        })
        .await;
    }
    for live in &lives {
        oracle.check(live, &redis).await;
    }
    until("the same version with the same rows", async || {
        let [one, other] = [0, 1].map(|at: usize| lives[at].board().snapshot().unwrap());
        if one.version() != other.version() {
            return None;
        }
        assert!(one.entries().eq(other.entries()));
        Some(())
    })
    .await;
    for live in lives {
        live.shutdown().await;
    }
}
