use std::path::Path;
use std::time::Duration;

use phalanx_game::board::redis::{BreakerState, RedisBoard};
use phalanx_game::board::{Better, Kind, Own, Rank, now_ms};

use crate::oracle::{KINDS, Oracle, board, player};
use crate::server::{Redis, config, until};

/// How long an outage lasts and how many results per second it sees: ten minutes in a soak.
fn outage() -> (Duration, u64) {
    match std::env::var_os("PHALANX_SOAK") {
        Some(_) => (Duration::from_secs(600), 1000),
        None => (Duration::from_millis(700), 1000),
    }
}

#[derive(Clone, Copy)]
enum Trouble {
    Killed,
    Frozen,
    /// Comes back with nothing.
    Emptied,
    /// Comes back as it was before some of what it had acknowledged.
    SetBack,
}

async fn outage_with_writes(trouble: Trouble) {
    let mut redis = match trouble {
        Trouble::Killed | Trouble::Frozen => Redis::durable(),
        Trouble::Emptied | Trouble::SetBack => Redis::start(),
    };
    let directory = tempfile::tempdir().unwrap();
    let mut lives = Vec::new();
    for (name, kind) in KINDS {
        let board = board(name, kind);
        let oracle = Oracle::new(&board);
        let config = config(redis.url(), Some(&directory.path().join(name)));
        let live = RedisBoard::start(board, config).await.unwrap();
        lives.push((live, oracle));
    }
    for (live, oracle) in &mut lives {
        let results = (0..300).map(|number| (player(number % 250), (number % 70) as i64 + 1));
        oracle.submit_all(live, results.collect()).await;
        oracle.check(live, &redis).await;
    }
    if matches!(trouble, Trouble::SetBack) {
        assert!(redis.ask(&["SAVE"]).starts_with("+OK"));
        for (live, oracle) in &mut lives {
            let results = (0..100).map(|number| (player(number * 3), 90));
            oracle.submit_all(live, results.collect()).await;
            oracle.check(live, &redis).await;
        }
    }

    match trouble {
        Trouble::Frozen => redis.freeze(),
        Trouble::Killed | Trouble::Emptied | Trouble::SetBack => redis.kill(),
    }
    if matches!(trouble, Trouble::Emptied) {
        redis.lose_disk();
    }
    let before: Vec<_> = lives
        .iter()
        .map(|(live, _)| live.board().snapshot().unwrap().version())
        .collect();
    let (lasts, per_second) = outage();
    let began = std::time::Instant::now();
    let mut submitted = 0_u64;
    while began.elapsed() < lasts {
        let numbers = submitted..submitted + 10;
        for (at, (live, oracle)) in lives.iter_mut().enumerate() {
            let results = numbers.clone().map(|number| {
                (
                    player((number as usize * 7 + at) % 400),
                    (number % 97) as i64 + 1,
                )
            });
            oracle.submit_all(live, results.collect()).await;
        }
        submitted += 10;
        let due = Duration::from_micros(submitted * 1_000_000 / per_second);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
    }
    for (live, _) in &lives {
        until("the breaker opened", async || {
            (live.metrics().breaker != BreakerState::Closed).then_some(())
        })
        .await;
        let writes = live.metrics().writes;
        assert!(
            writes.pending >= submitted && writes.pending_age_ms > 0,
            "{writes:?}"
        );
    }

    match trouble {
        Trouble::Frozen => redis.thaw(),
        Trouble::Killed | Trouble::Emptied | Trouble::SetBack => redis.restart(),
    }
    for ((live, oracle), before) in lives.iter().zip(before) {
        oracle.check(live, &redis).await;
        let writes = live.metrics().writes;
        assert_eq!(
            (writes.lost_total, writes.fenced_total, writes.skipped_total),
            (0, 0, 0)
        );
        assert_eq!(
            writes.shipped_total - writes.rewound_total,
            writes.accepted_total
        );
        // Readers never go back, whatever Redis forgot.
        assert!(live.board().snapshot().unwrap().version() > before);
        if matches!(trouble, Trouble::Emptied | Trouble::SetBack) {
            assert!(writes.rewound_total > 0, "{writes:?}");
        }
    }
    for (live, _) in lives {
        live.shutdown().await;
    }
}

#[tokio::test]
async fn after_an_outage_with_writes_the_board_equals_an_oracle() {
    outage_with_writes(Trouble::Killed).await;
}

#[tokio::test]
async fn after_a_freeze_with_writes_nothing_counts_twice() {
    outage_with_writes(Trouble::Frozen).await;
}

#[tokio::test]
async fn what_an_emptied_redis_lost_is_replayed_from_the_log() {
    outage_with_writes(Trouble::Emptied).await;
}

#[tokio::test]
async fn what_a_redis_with_older_data_lost_is_replayed_from_the_log() {
    outage_with_writes(Trouble::SetBack).await;
}

#[tokio::test]
async fn a_player_sees_her_own_result_while_redis_is_away_and_after_a_restart_of_the_process() {
    let mut redis = Redis::durable();
    let directory = tempfile::tempdir().unwrap();
    for (name, kind) in [
        ("best", Kind::Best(Better::Higher)),
        ("sum", Kind::Sum(Better::Higher)),
    ] {
        let home = directory.path().join(name);
        let live = RedisBoard::start(board(name, kind), config(redis.url(), Some(&home)))
            .await
            .unwrap();
        let mut oracle = Oracle::new(live.board());
        let results = (0..50).map(|number| (player(number), 100 + number as i64));
        oracle.submit_all(&live, results.collect()).await;
        oracle.check(&live, &redis).await;
        redis.kill();
        oracle.submit(&live, &player(3), 1000).await;
        let expected = oracle.members[&player(3)].0;
        let own = Own::new("player-3").unwrap();
        let place = live.board().rank(&own, now_ms()).await.unwrap();
        assert_eq!(
            place.rank,
            Rank::Top {
                place: 1,
                order: expected,
                pending: true
            }
        );
        live.shutdown().await;

        // Cold, without Redis: from the snapshot and the log on disk.
        let live = RedisBoard::start(board(name, kind), config(redis.url(), Some(&home)))
            .await
            .unwrap();
        let place = live.board().rank(&own, now_ms()).await.unwrap();
        assert_eq!(
            place.rank,
            Rank::Top {
                place: 1,
                order: expected,
                pending: true
            }
        );
        redis.restart();
        oracle.check(&live, &redis).await;
        let place = live.board().rank(&own, now_ms()).await.unwrap();
        assert_eq!(
            place.rank,
            Rank::Top {
                place: 1,
                order: expected,
                pending: false
            }
        );
        live.shutdown().await;
    }
}

#[tokio::test]
async fn a_directory_of_an_older_time_goes_on_under_a_new_name() {
    let redis = Redis::durable();
    let homes = tempfile::tempdir().unwrap();
    let [home, copy] = ["home", "copy"].map(|name| homes.path().join(name));
    let kind = Kind::Sum(Better::Higher);
    let start = async |home: &Path| {
        let config = config(redis.url(), Some(home));
        RedisBoard::start(board("copy", kind), config)
            .await
            .unwrap()
    };
    let live = start(&home).await;
    let mut oracle = Oracle::new(live.board());
    let results = |count: usize| (0..count).map(|number| (player(number % 20), 1)).collect();
    oracle.submit_all(&live, results(50)).await;
    oracle.check(&live, &redis).await;
    live.shutdown().await;
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(&home).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let live = start(&home).await;
    oracle.submit_all(&live, results(30)).await;
    oracle.check(&live, &redis).await;
    live.shutdown().await;

    // Its next numbers have been used; some results come before it can know, and more than Redis has.
    let live = start(&copy).await;
    oracle.submit_all(&live, results(45)).await;
    oracle.check(&live, &redis).await;
    live.shutdown().await;
    let live = start(&copy).await;
    oracle.submit_all(&live, results(5)).await;
    oracle.check(&live, &redis).await;
    live.shutdown().await;
}

#[tokio::test]
async fn a_process_that_writes_no_more_sends_again_what_redis_lost_of_it_be_it_all() {
    let mut redis = Redis::start();
    let homes = tempfile::tempdir().unwrap();
    let start = async |home: &str| {
        let config = config(redis.url(), Some(&homes.path().join(home)));
        let board = board("idle", Kind::Sum(Better::Higher));
        RedisBoard::start(board, config).await.unwrap()
    };
    let first = start("first").await;
    let second = start("second").await;
    let mut oracle = Oracle::new(first.board());
    let results = |players: std::ops::Range<usize>| players.map(|of| (player(of), 5)).collect();
    oracle.submit_all(&first, results(0..20)).await;
    oracle.check(&first, &redis).await;
    assert!(redis.ask(&["SAVE"]).starts_with("+OK"));
    oracle.submit_all(&first, results(0..20)).await;
    oracle.check(&first, &redis).await;
    // Of this one, the saved data know nothing.
    oracle.submit_all(&second, results(20..40)).await;
    oracle.check(&second, &redis).await;
    redis.restart();
    for live in [&first, &second] {
        until("it is sent again", async || {
            let writes = live.metrics().writes;
            (writes.rewound_total > 0 && writes.pending == 0).then_some(())
        })
        .await;
    }
    for live in [first, second] {
        oracle.check(&live, &redis).await;
        let writes = live.metrics().writes;
        assert_eq!((writes.rewound_total, writes.lost_total), (20, 0));
        live.shutdown().await;
    }
}
