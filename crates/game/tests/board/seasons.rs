use std::path::Path;

use phalanx_game::board::redis::{LiveConfig, RedisBoard, TurnError, WriteError};
use phalanx_game::board::{Better, Kind};

use crate::oracle::{Oracle, board, player};
use crate::server::{DEADLINE, Redis, config, until};

const KIND: Kind = Kind::Best(Better::Higher);

/// A turn that gets no answer may have happened: here each gets one.
fn patient(redis: &Redis, home: Option<&Path>) -> LiveConfig {
    let mut config = config(redis.url(), home);
    config.redis.call_max = DEADLINE;
    config.redis.connect_max = DEADLINE;
    config
}

#[tokio::test]
async fn a_reset_empties_the_board_and_fences_late_results() {
    let mut redis = Redis::durable();
    let directory = tempfile::tempdir().unwrap();
    let live = RedisBoard::start(
        board("season", KIND),
        patient(&redis, Some(directory.path())),
    )
    .await
    .unwrap();
    let mut oracle = Oracle::new(live.board());
    let results = (0..20).map(|number| (player(number), 10 + number as i64));
    oracle.submit_all(&live, results.collect()).await;
    oracle.check(&live, &redis).await;
    let before = live.board().snapshot().unwrap().version();

    // Accepted for the first epoch, still on the way when the second begins.
    redis.kill();
    live.submit(&player(3), 999).await.unwrap();
    live.ban(&player(4)).await.unwrap();
    redis.restart();
    assert_eq!(live.reset(1).await.unwrap().epoch(), 2);
    let again = live.reset(1).await.unwrap_err();
    assert!(
        matches!(
            again,
            TurnError::Fenced {
                expected: 1,
                found: 2
            }
        ),
        "{again}"
    );
    until("an empty board of the second epoch", async || {
        let snapshot = live.board().snapshot()?;
        (snapshot.version().epoch() == 2 && snapshot.total() == 0).then_some(())
    })
    .await;
    assert!(live.board().snapshot().unwrap().version() > before);
    until("all has arrived", async || {
        (live.metrics().writes.pending == 0).then_some(())
    })
    .await;

    let mut oracle = Oracle::new(live.board());
    oracle.submit(&live, &player(1), 5).await;
    // Bans outlive epochs.
    live.submit(&player(4), 500).await.unwrap();
    oracle.check(&live, &redis).await;
    assert_eq!(live.metrics().writes.barred_total, 1);
    live.unban(&player(4)).await.unwrap();
    oracle.submit(&live, &player(4), 7).await;
    live.remove(&player(1)).await.unwrap();
    oracle.members.remove(&player(1));
    oracle.check(&live, &redis).await;
    // The old epoch's board is still there, without what came too late.
    let old = redis.ask(&["ZCARD", "phalanx:{board:season}:e1"]);
    let fenced = live.metrics().writes.fenced_total;
    assert!(old == ":20\r\n" || old == ":19\r\n", "{old}");
    assert!(fenced <= 1, "{fenced}");
    live.shutdown().await;
}

#[tokio::test]
async fn a_closed_board_is_final_for_everybody() {
    let redis = Redis::start();
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = RedisBoard::start(board("final", KIND), patient(&redis, Some(homes[0].path())))
        .await
        .unwrap();
    let second = RedisBoard::start(board("final", KIND), patient(&redis, Some(homes[1].path())))
        .await
        .unwrap();
    let mut oracle = Oracle::new(first.board());
    oracle.submit(&first, &player(1), 5).await;
    oracle.check(&first, &redis).await;
    let version = first.close(1).await.unwrap();
    for live in [&first, &second] {
        until("the final snapshot", async || {
            live.board()
                .snapshot()
                .filter(|snapshot| snapshot.is_final())
        })
        .await;
        assert_eq!(live.board().snapshot().unwrap().version(), version);
        assert_eq!(live.submit(&player(2), 9).await, Err(WriteError::Final));
    }
    assert!(matches!(first.reset(1).await, Err(TurnError::Final)));
    assert!(matches!(second.close(1).await, Err(TurnError::Final)));
    first.shutdown().await;
    second.shutdown().await;

    // A process that comes later, with a result from before it knew.
    let late = tempfile::tempdir().unwrap();
    let third = RedisBoard::start(board("final", KIND), patient(&redis, Some(late.path())))
        .await
        .unwrap();
    let accepted = third.submit(&player(9), 99).await;
    until("the final snapshot", async || {
        third
            .board()
            .snapshot()
            .filter(|snapshot| snapshot.is_final())
    })
    .await;
    if accepted.is_ok() {
        until("it was fenced", async || {
            (third.metrics().writes.fenced_total == 1).then_some(())
        })
        .await;
    }
    assert_eq!(third.board().snapshot().unwrap().total(), 1);
    third.shutdown().await;
}

#[tokio::test]
async fn a_result_from_before_the_epoch_was_known_counts_in_the_one_it_came_to_and_never_in_a_later_one()
 {
    let mut redis = Redis::start();
    redis.kill();
    let home = tempfile::tempdir().unwrap();
    let board = board("early", Kind::Sum(Better::Higher));
    let live = RedisBoard::start(board, patient(&redis, Some(home.path())))
        .await
        .unwrap();
    let mut oracle = Oracle::new(live.board());
    oracle.submit(&live, &player(1), 5).await;
    redis.restart();
    oracle.check(&live, &redis).await;
    live.reset(1).await.unwrap();
    let mut oracle = Oracle::new(live.board());
    oracle.submit(&live, &player(2), 7).await;
    oracle.check(&live, &redis).await;

    // With nothing: the log offers all that it has.
    redis.restart();
    until("it is sent again", async || {
        let writes = live.metrics().writes;
        (writes.rewound_total == 2 && writes.pending == 0).then_some(())
    })
    .await;
    oracle.check(&live, &redis).await;
    assert_eq!(live.metrics().writes.fenced_total, 1);
    live.shutdown().await;
}
