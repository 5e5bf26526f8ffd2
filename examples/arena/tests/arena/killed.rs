//! Two processes hold the queue, and the one that owns it is killed with SIGKILL. The processes are this test binary, run
//! once more with [`CHILD`] set.

use std::env;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use arena::bots::{self, BotConfig};
use arena::call::HttpClient;
use arena::leaderboard::{MatchScores, Score, Top};
use arena::{ServiceConfig, leaderboard, matchmaker};
use hyper::Method;

use crate::{Game, bind, call, is_serving, json, metric, play_as, start_at, until};

/// Where it finds everybody else, which replica it is, and its folder.
const CHILD: &str = "ARENA_TEST_MATCHMAKER";
const LISTENS: &str = "listening on ";

#[test]
fn the_process_of_a_matchmaker() {
    let Ok(told) = env::var(CHILD) else { return };
    let mut told = told.splitn(3, ' ');
    let (outbound, replica) = (told.next().unwrap(), told.next().unwrap());
    let folder = told.next().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = bind().await;
        let listen = listener.local_addr().unwrap();
        println!("{LISTENS}{listen}");
        let config = ServiceConfig {
            replica: replica.parse().unwrap(),
            folder: Some(folder.into()),
            ..ServiceConfig::new(listen, outbound.parse().unwrap(), "v1")
        };
        // Ends with whoever started it.
        let (orphaned, alone) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::stdin().lines().count();
            let _ = orphaned.send(());
        });
        let alone = async move { _ = alone.await };
        matchmaker::serve(listener, config, alone).await.unwrap();
    });
}

struct Matchmaker {
    child: Child,
    address: SocketAddr,
}

impl Matchmaker {
    fn spawn(outbound: SocketAddr, replica: u32, folder: &Path) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "killed::the_process_of_a_matchmaker"])
            .args(["--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{outbound} {replica} {}", folder.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut addresses = said.map_while(Result::ok).filter_map(|line| {
            // The test harness says something in front of it.
            let (_, address) = line.split_once(LISTENS)?;
            address.parse().ok()
        });
        let address = addresses.next().expect("an address");
        Self { child, address }
    }

    async fn is_in_sync(&self) -> bool {
        let client = HttpClient::new(self.address, matchmaker::NAME);
        let in_sync = metric(&client, "phalanx_match_standby_in_sync").await;
        is_serving(self.address).await && in_sync == Some(1.0)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Matchmaker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn owner_with_standby(pair: &[Matchmaker; 2]) -> usize {
    until("an owner whose standby has everything", async || {
        for (at, matchmaker) in pair.iter().enumerate() {
            if matchmaker.is_in_sync().await {
                return Some(at);
            }
        }
        None
    })
    .await
}

/// Results on the board, of all players but the one whose result shows that all before it are there.
async fn results(game: &Game, marker: &str) -> u64 {
    let board = HttpClient::new(game.outbound, leaderboard::NAME);
    let scores = MatchScores {
        match_id: marker.into(),
        scores: vec![Score {
            player: marker.into(),
            rating: 1,
            won: true,
        }],
    };
    let body = serde_json::to_vec(&scores).unwrap();
    let counted = board.send(call(Method::POST, "/scores", body, &[])).await;
    assert_eq!(counted.unwrap().status(), 200);
    until("the newest results to be published", async || {
        let asked = call(Method::GET, "/top?n=100", "", &[]);
        let top: Top = json(&board.send(asked).await.unwrap());
        let is_marker = |name: &str| name.starts_with("marker");
        top.top.iter().find(|rank| rank.player == marker)?;
        let players = top.top.iter().filter(|rank| !is_marker(&rank.player));
        Some(players.map(|rank| u64::from(rank.won + rank.lost)).sum())
    })
    .await
}

#[tokio::test]
async fn who_waits_when_the_matchmaker_is_killed_is_matched_by_the_other_and_nobody_twice() {
    let front = bind().await;
    let outbound = front.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_owned();
    let mut pair = [1, 2].map(|replica| Matchmaker::spawn(outbound, replica, &place));
    let addresses = pair.iter().map(|one| one.address).collect();
    let game = start_at(front, folder, None, Some(addresses)).await;

    // One who waits alone.
    let owner = owner_with_standby(&pair).await;
    let of_owner = HttpClient::new(pair[owner].address, matchmaker::NAME);
    let waiting_then_killed = async {
        until("ann to wait", async || {
            let waiting = metric(&of_owner, "phalanx_match_tickets_inside").await?;
            (waiting == 1.0).then_some(())
        })
        .await;
        pair[owner].kill();
        let other = pair[1 - owner].address;
        until("the other to take over", async || {
            is_serving(other).await.then_some(())
        })
        .await;
        let of_other = HttpClient::new(other, matchmaker::NAME);
        until("ann's ticket to be there", async || {
            let waiting = metric(&of_other, "phalanx_match_tickets_inside").await?;
            (waiting == 1.0).then_some(())
        })
        .await;
        play_as(&game, "bob").await
    };
    let (ann, bob) = tokio::join!(play_as(&game, "ann"), waiting_then_killed);
    assert_eq!(ann.match_id, bob.match_id);
    assert_eq!(
        (ann.opponent.as_str(), bob.opponent.as_str()),
        ("bob", "ann")
    );

    // Many, some of them in the middle of a match.
    pair[owner] = Matchmaker::spawn(outbound, owner as u32 + 1, &place);
    let addresses = pair.iter().map(|one| one.address).collect();
    game.names
        .lock()
        .unwrap()
        .insert(matchmaker::NAME, addresses);
    let before = results(&game, "marker-1").await;
    assert_eq!(before, 2, "of ann and bob");
    let owner = owner_with_standby(&pair).await;
    let asked = || game.paths(matchmaker::NAME).len();
    let killed = async {
        let begun = asked();
        until("some to play", async || {
            (asked() > begun + 30).then_some(())
        })
        .await;
        pair[owner].kill();
        let other = pair[1 - owner].address;
        until("the other to take over", async || {
            is_serving(other).await.then_some(())
        })
        .await;
        let fought = || game.paths("leaderboard").len();
        let begun = fought();
        until("matches after it", async || {
            (fought() > begun + 30).then_some(())
        })
        .await;
    };
    let config = BotConfig {
        gateway: vec![game.gateway],
        bots: 20,
        rate: 60.0,
        duration: None,
        edge: None,
    };
    let summary = bots::run(config, killed).await;
    // A machine that stands still is not the game's fault; whatever else fails, is.
    let late = |kind: &String| kind.contains("timeout") || kind.contains("504");
    assert!(summary.failures.keys().all(late), "{:?}", summary.failures);
    let counted = results(&game, "marker-2").await - before;
    let played = summary.plays..=summary.plays + summary.failed;
    assert!(
        played.contains(&counted),
        "{counted} results on the board of {summary:?}"
    );
}
