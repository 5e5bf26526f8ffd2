use std::process::Command;

use phalanx_game::board::redis::{RedisBoard, RedisConfig, TurnError};
use phalanx_game::board::{Better, Kind, Own, Rank, StoreState, now_ms};

use crate::oracle::{Oracle, board, player};
use crate::server::{Redis, quick, until};

fn node() -> Redis {
    Redis::with(&[
        "--save",
        "",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "60000",
        // A frozen node must not take the others' slots away.
        "--cluster-require-full-coverage",
        "no",
    ])
}

/// Three masters, no replicas.
async fn cluster() -> Vec<Redis> {
    // The port of the bus is 10,000 above, which must be a port.
    let nodes: Vec<Redis> = (0..3).map(|_| node_below(55_000)).collect();
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]);
    for node in &nodes {
        create.arg(format!("127.0.0.1:{}", node.port));
    }
    let created = create
        .args(["--cluster-replicas", "0", "--cluster-yes"])
        .output()
        .unwrap();
    assert!(
        created.status.success(),
        "{}",
        String::from_utf8_lossy(&created.stdout)
    );
    until("the cluster is whole", async || {
        let whole = |node: &Redis| node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
        nodes.iter().all(whole).then_some(())
    })
    .await;
    nodes
}

fn node_below(port: u16) -> Redis {
    for _ in 0..200 {
        let node = node();
        if node.port < port {
            return node;
        }
    }
    panic!("no port below {port}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boards_in_a_cluster_are_each_on_one_node_and_survive_its_absence() {
    let nodes = cluster().await;
    let addresses: Vec<String> = nodes.iter().map(Redis::url).collect();
    let directory = tempfile::tempdir().unwrap();
    let mut lives = Vec::new();
    // Some boards, so that they are on different nodes.
    for name in ["c-one", "c-two", "c-three", "c-four"] {
        let config = quick(
            RedisConfig::cluster(addresses.clone()),
            Some(&directory.path().join(name)),
        );
        let live = RedisBoard::start(board(name, Kind::Sum(Better::Higher)), config)
            .await
            .unwrap();
        let oracle = Oracle::new(live.board());
        lives.push((name, live, oracle));
    }
    let home = |name: &str| {
        let key = format!("phalanx:{{board:{name}}}:e1");
        let mut found = nodes
            .iter()
            .filter(|node| node.ask(&["EXISTS", &key]).starts_with(":1"));
        let node = found.next().expect("on a node");
        assert!(found.next().is_none());
        node
    };
    for (name, live, oracle) in &mut lives {
        let results = (0..300).map(|number| (player(number), number as i64));
        oracle.submit_all(live, results.collect()).await;
        until("it has arrived", async || {
            (live.metrics().writes.pending == 0).then_some(())
        })
        .await;
        oracle.check(live, home(name)).await;
        // Outside the 200 that the snapshot has.
        let own = Own::new("player-10").unwrap();
        until("an exact place", async || {
            let place = live.board().rank(&own, now_ms()).await.unwrap();
            matches!(place.rank, Rank::Store { place: 290, .. }).then_some(())
        })
        .await;
    }
    let away = home("c-one");
    let without: Vec<&str> = ["c-one", "c-two", "c-three", "c-four"]
        .into_iter()
        .filter(|name| home(name).port == away.port)
        .collect();
    away.freeze();
    for (name, live, oracle) in &mut lives {
        if without.contains(name) {
            until("open", async || {
                (live.board().store() == StoreState::Open).then_some(())
            })
            .await;
        }
        let results = (0..300).map(|number| (player(number), 5));
        oracle.submit_all(live, results.collect()).await;
    }
    away.thaw();
    for (name, live, oracle) in &lives {
        until("it has arrived", async || {
            (live.metrics().writes.pending == 0).then_some(())
        })
        .await;
        oracle.check(live, home(name)).await;
    }
    until("the next epoch", async || {
        match lives[0].1.reset(1).await {
            Ok(version) => {
                assert_eq!(version.epoch(), 2);
                Some(())
            }
            // The one before had no answer in time, and happened.
            Err(TurnError::Fenced { found: 2, .. }) => Some(()),
            Err(TurnError::Store(_)) => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    until("the second epoch", async || {
        let snapshot = lives[0].1.board().snapshot()?;
        (snapshot.version().epoch() == 2 && snapshot.is_empty()).then_some(())
    })
    .await;
    for (_, live, _) in lives {
        live.shutdown().await;
    }
}
