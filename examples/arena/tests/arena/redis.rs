//! The leaderboard with a real Redis behind it, which is killed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use arena::call::HttpClient;
use arena::leaderboard::{Kept, MatchScores, Recorded, Score, Top};
use arena::{ServiceConfig, leaderboard};
use hyper::Method;
use tokio::task::AbortHandle;

use crate::{bind, call, json, until};

struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    async fn start(folder: &Path) -> Self {
        loop {
            // Somebody else may take the port before Redis does: then it ends.
            let port = bind().await.local_addr().unwrap().port();
            let child = Command::new("redis-server")
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no"])
                .arg("--dir")
                .arg(folder)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("redis-server is installed (cargo xtask setup)");
            let mut redis = Self { child, port };
            let up = until("redis-server to begin or end", async || {
                if redis.child.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                let address: SocketAddr = ([127, 0, 0, 1], port).into();
                let taken = tokio::net::TcpStream::connect(address).await;
                taken.ok().map(|_| true)
            });
            if up.await {
                return redis;
            }
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Leaderboard {
    client: HttpClient,
    task: AbortHandle,
}

impl Drop for Leaderboard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Leaderboard {
    /// Answers once it has begun.
    async fn serve(redis: &Redis, folder: &Path) -> Self {
        let listener = bind().await;
        let listen = listener.local_addr().unwrap();
        let config = ServiceConfig {
            folder: Some(folder.to_owned()),
            redis: Some(format!("redis://127.0.0.1:{}", redis.port)),
            ..ServiceConfig::new(listen, listen, "v1")
        };
        let serving = leaderboard::serve(listener, config, std::future::pending());
        let task = tokio::spawn(async move { serving.await.unwrap() }).abort_handle();
        Self {
            client: HttpClient::new(listen, leaderboard::NAME),
            task,
        }
    }

    async fn score(&self, match_id: &str, player: &str, rating: u32) -> bool {
        let scores = MatchScores {
            match_id: match_id.into(),
            scores: vec![Score {
                player: player.into(),
                rating,
                won: true,
            }],
        };
        let body = serde_json::to_vec(&scores).unwrap();
        let answer = self.client.send(call(Method::POST, "/scores", body, &[]));
        json::<Recorded>(&answer.await.unwrap()).recorded
    }

    /// Names and ratings, and whether the answer was a `HIT`. Every read is answered.
    async fn top(&self) -> (Vec<(String, u32)>, bool) {
        let answer = self.client.send(call(Method::GET, "/top", "", &[]));
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        let hit = answer.headers()["x-cache"] == "HIT";
        let rows = json::<Top>(&answer).top.into_iter();
        (rows.map(|row| (row.player, row.rating)).collect(), hit)
    }

    async fn until_top(&self, wanted: &[(&str, u32)]) {
        until("the board to be as it should", async || {
            let (rows, _) = self.top().await;
            let rows = rows.iter().map(|(name, rating)| (name.as_str(), *rating));
            rows.eq(wanted.iter().copied()).then_some(())
        })
        .await;
    }

    async fn kept(&self) -> Kept {
        let answer = self.client.send(call(Method::GET, "/kept", "", &[]));
        json(&answer.await.unwrap())
    }
}

#[tokio::test]
async fn a_board_in_redis_answers_without_it_and_the_next_demo_begins_with_an_empty_one() {
    let (data, first, second) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let mut redis = Redis::start(data.path()).await;
    let board = Leaderboard::serve(&redis, first.path()).await;
    assert!(board.score("m1", "ann", 1016).await);
    assert!(board.score("m2", "bob", 1100).await);
    assert!(!board.score("m2", "bob", 1200).await, "counted before");
    assert!(board.score("m3", "ann", 1000).await);
    board.until_top(&[("bob", 1100), ("ann", 1000)]).await;

    until("all to have arrived", async || {
        (board.kept().await.pending == 0).then_some(())
    })
    .await;
    let other = Leaderboard::serve(&redis, second.path()).await;
    other.until_top(&[]).await;
    assert!(other.score("m1", "cat", 1016).await);
    other.until_top(&[("cat", 1016)]).await;

    redis.kill();
    until("a stale board", async || {
        let (rows, hit) = other.top().await;
        assert_eq!(rows, [("cat".to_owned(), 1016)]);
        (!hit).then_some(())
    })
    .await;
    assert!(other.score("m2", "dan", 984).await, "results go on");
    assert!(other.score("m3", "cat", 1030).await);
    let kept = other.kept().await;
    assert!(kept.in_redis && kept.pending >= 2, "{kept:?}");
    assert_eq!(kept.refused, 0);
}
