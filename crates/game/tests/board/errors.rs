use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use phalanx_game::board::redis::{Failure, LiveConfig, RedisBoard, RedisConfig, StartError};
use phalanx_game::board::{Better, Kind, PageQuery, StoreState, now_ms};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::oracle::{Oracle, board, player};
use crate::server::{Redis, config, until};

const KIND: Kind = Kind::Sum(Better::Higher);

fn failures(live: &RedisBoard, kind: Failure) -> u64 {
    let all = live.metrics().failures_total;
    all.iter().find(|(of, _)| *of == kind).unwrap().1
}

async fn failed(live: &RedisBoard, kind: Failure) {
    until(kind.name(), async || {
        (failures(live, kind) > 0).then_some(())
    })
    .await;
}

/// A Redis that answers the handshake, and everything else with one line.
async fn says(line: &'static str) -> (String, Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                let mut read = BufReader::new(read);
                let mut text = String::new();
                loop {
                    text.clear();
                    read.read_line(&mut text)
                        .await
                        .ok()
                        .filter(|read| *read > 0)?;
                    let parts: usize = text.trim().strip_prefix('*')?.parse().ok()?;
                    let mut command = Vec::new();
                    for _ in 0..parts {
                        text.clear();
                        read.read_line(&mut text).await.ok()?;
                        let bytes: usize = text.trim().strip_prefix('$')?.parse().ok()?;
                        let mut part = vec![0; bytes + 2];
                        read.read_exact(&mut part).await.ok()?;
                        command.push(part);
                    }
                    let is_handshake = command[0].starts_with(b"CLIENT");
                    let answer = if is_handshake { "+OK" } else { line };
                    count.fetch_add(u64::from(!is_handshake), Ordering::Relaxed);
                    write
                        .write_all(format!("{answer}\r\n").as_bytes())
                        .await
                        .ok()?;
                }
                #[allow(unreachable_code)]
                Some(())
            });
        }
    });
    (url, asked)
}

/// What a server may say instead of an answer: it is counted by its name, the log keeps everything, nothing panics, and a
/// store that is out of order is left alone.
#[tokio::test]
async fn refusals_of_redis_have_names() {
    for (line, kind, outage) in [
        (
            "-LOADING Redis is loading the dataset in memory",
            Failure::Loading,
            true,
        ),
        (
            "-CLUSTERDOWN Hash slot not served",
            Failure::ClusterDown,
            true,
        ),
        (
            "-MASTERDOWN Link with MASTER is down",
            Failure::ClusterDown,
            true,
        ),
        ("-BUSY Redis is busy running a script", Failure::Busy, true),
        ("-MOVED 3999 127.0.0.1:1", Failure::Redirected, false),
        ("-NOAUTH Authentication required.", Failure::Denied, false),
        (
            "-NOPERM this user has no permissions",
            Failure::Denied,
            false,
        ),
        ("-OOM command not allowed", Failure::OutOfMemory, false),
        (
            "-MISCONF Redis is configured to save RDB snapshots",
            Failure::ReadOnly,
            false,
        ),
        ("-ERR unknown command", Failure::Other, false),
        ("+OK", Failure::Protocol, true),
        ("*1\r\n:7", Failure::Protocol, true),
        ("hello", Failure::Broken, true),
    ] {
        let (url, asked) = says(line).await;
        let directory = tempfile::tempdir().unwrap();
        let live = RedisBoard::start(board("says", KIND), config(url, Some(directory.path())))
            .await
            .unwrap();
        live.submit(&player(1), 5).await.unwrap();
        let what = format!("a failure after {line:?}");
        until(&what, async || {
            let all = live.metrics().failures_total;
            let protocol = kind == Failure::Broken && failures(&live, Failure::Protocol) > 0;
            assert!(
                protocol || all.iter().all(|(of, count)| *of == kind || *count == 0),
                "{line:?}: {all:?}"
            );
            (failures(&live, kind) > 2 || protocol).then_some(())
        })
        .await;
        if outage {
            until("open", async || {
                (live.metrics().openings_total > 0).then_some(())
            })
            .await;
        }
        assert!(asked.load(Ordering::Relaxed) > 0);
        assert_eq!(live.metrics().writes.pending, 1);
        live.shutdown().await;
    }
}

#[tokio::test]
async fn a_full_redis_is_read_and_gets_the_results_later() {
    let redis = Redis::start();
    let directory = tempfile::tempdir().unwrap();
    let live = RedisBoard::start(
        board("oom", KIND),
        config(redis.url(), Some(directory.path())),
    )
    .await
    .unwrap();
    let mut oracle = Oracle::new(live.board());
    let results = (0..50).map(|number| (player(number), 10));
    oracle.submit_all(&live, results.collect()).await;
    oracle.check(&live, &redis).await;
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let results = (0..50).map(|number| (player(number), number as i64));
    oracle.submit_all(&live, results.collect()).await;
    failed(&live, Failure::OutOfMemory).await;
    let refreshes = live.metrics().refreshes_total;
    until("refreshes go on", async || {
        (live.metrics().refreshes_total > refreshes + 3).then_some(())
    })
    .await;
    assert_eq!(live.board().store(), StoreState::Up);
    assert_eq!(live.metrics().writes.pending, 50);
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    oracle.check(&live, &redis).await;
    live.shutdown().await;
}

#[tokio::test]
async fn a_master_that_became_a_replica_is_read_and_gets_the_results_later() {
    let redis = Redis::start();
    let directory = tempfile::tempdir().unwrap();
    let live = RedisBoard::start(
        board("replica", KIND),
        config(redis.url(), Some(directory.path())),
    )
    .await
    .unwrap();
    let mut oracle = Oracle::new(live.board());
    let results = (0..50).map(|number| (player(number), 10));
    oracle.submit_all(&live, results.collect()).await;
    oracle.check(&live, &redis).await;
    // Of nobody: its data stay.
    redis.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    oracle.submit(&live, &player(7), 3).await;
    failed(&live, Failure::ReadOnly).await;
    assert!(live.board().page(&PageQuery::default(), now_ms()).is_ok());
    redis.ask(&["REPLICAOF", "NO", "ONE"]);
    oracle.check(&live, &redis).await;
    live.shutdown().await;
}

#[tokio::test]
async fn a_board_of_another_rule_is_not_touched() {
    let redis = Redis::start();
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = RedisBoard::start(
        board("rule", KIND),
        config(redis.url(), Some(homes[0].path())),
    )
    .await
    .unwrap();
    let mut oracle = Oracle::new(first.board());
    oracle.submit(&first, &player(1), 3).await;
    oracle.check(&first, &redis).await;
    let other = board("rule", Kind::Best(Better::Higher));
    let second = RedisBoard::start(other, config(redis.url(), Some(homes[1].path())))
        .await
        .unwrap();
    second.submit(&player(1), 1000).await.unwrap();
    failed(&second, Failure::Foreign).await;
    assert!(second.board().snapshot().is_none());
    assert_eq!(second.metrics().writes.pending, 1);
    oracle.check(&first, &redis).await;
    first.shutdown().await;
    second.shutdown().await;
}

#[tokio::test]
async fn members_that_others_wrote_are_left_out_or_found_by_the_next_full_read() {
    let redis = Redis::start();
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(redis.url(), Some(directory.path()));
    config.refresh.full_every = std::time::Duration::from_millis(50);
    let live = RedisBoard::start(board("foreign", KIND), config)
        .await
        .unwrap();
    let mut oracle = Oracle::new(live.board());
    oracle.submit(&live, &player(1), 3).await;
    oracle.check(&live, &redis).await;
    let key = "phalanx:{board:foreign}:e1";
    let order = live
        .board()
        .law()
        .order(50, now_ms())
        .unwrap()
        .bits()
        .to_string();
    redis.ask(&[
        "ZADD", key, "1.5", "fraction", "-7", "negative", "inf", "endless", "3", "\u{1}", &order,
        "proper",
    ]);
    until("the proper one alone", async || {
        let snapshot = live.board().snapshot()?;
        let found: Vec<&str> = snapshot.entries().map(|entry| entry.player).collect();
        (found == ["proper", "player-1"]).then_some(())
    })
    .await;
    assert!(live.metrics().foreign_total > 0);
    live.shutdown().await;
}

#[tokio::test]
async fn addresses_that_cannot_be_served_are_refused_by_name() {
    let start = async |redis: RedisConfig| {
        let started = RedisBoard::start(board("address", KIND), LiveConfig::new(redis, None)).await;
        started.expect_err("refused")
    };
    assert!(matches!(
        start(RedisConfig::new("rediss://127.0.0.1:1")).await,
        StartError::Tls
    ));
    assert!(matches!(
        start(RedisConfig::new("127.0.0.1:1")).await,
        StartError::Address
    ));
    assert!(matches!(
        start(RedisConfig::new("redis://127.0.0.1:1/?protocol=resp3")).await,
        StartError::Protocol
    ));
    let none: [&str; 0] = [];
    assert!(matches!(
        start(RedisConfig::cluster(none)).await,
        StartError::Addresses
    ));
    let mut two = RedisConfig::cluster(["redis://127.0.0.1:1", "redis://127.0.0.1:2"]);
    two.cluster = false;
    assert!(matches!(start(two).await, StartError::Addresses));
}

#[tokio::test]
async fn a_process_without_a_directory_reads_and_says_that_it_writes_nothing() {
    let redis = Redis::start();
    let live = RedisBoard::start(board("reader", KIND), config(redis.url(), None))
        .await
        .unwrap();
    until("an empty board", async || live.board().snapshot()).await;
    let refused = live.submit(&player(1), 1).await.unwrap_err();
    assert_eq!(refused, phalanx_game::board::redis::WriteError::ReadOnly);
    live.shutdown().await;
}
