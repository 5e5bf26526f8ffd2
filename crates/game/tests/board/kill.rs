//! A process that submits without pause is killed with SIGKILL again and again, while its Redis is killed and comes back
//! with what it had, with older data, or with nothing. Every result that was accepted counts, once.
//!
//! The process is this test binary, run once more with `CHILD` set.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use phalanx_game::board::redis::RedisBoard;
use phalanx_game::board::{Better, Kind, PlayerId};

use crate::oracle::board;
use crate::server::{Redis, config, until};

const CHILD: &str = "PHALANX_BOARD_KILLED";
const NAME: &str = "kill::accepted_results_survive_any_kill_and_count_once";
const WRITERS: usize = 8;
const KIND: Kind = Kind::Sum(Better::Higher);

fn main_of_child(settings: &str) {
    let [url, directory, round] = settings.split('|').collect::<Vec<_>>()[..] else {
        panic!("{settings}");
    };
    let (url, directory, round) = (url.to_owned(), directory.to_owned(), round.to_owned());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async move {
        let config = config(url, Some(Path::new(&directory)));
        let live = RedisBoard::start(board("killed", KIND), config)
            .await
            .unwrap();
        let live = std::sync::Arc::new(live);
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let (live, player) = (live.clone(), format!("{round}-{writer}"));
            writers.push(tokio::spawn(async move {
                let player = PlayerId::parse(&player).unwrap();
                // Each result is worth another number, so that the sum tells which were counted.
                for points in 1.. {
                    live.submit(&player, points).await.unwrap();
                    // One write, so that a kill leaves whole lines but for the last.
                    let line = format!("accepted {player}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            }));
        }
        if let Some(writer) = writers.pop() {
            writer.await.unwrap();
        }
    });
}

/// Lets a process write until it has been heard of and `delay` is over, and kills it: what it said was accepted.
fn run_and_kill(settings: &str, delay: Duration, accepted: &mut BTreeMap<String, u64>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(CHILD, settings)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let (heard, first) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut players = Vec::new();
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line);
            if let Some((_, player)) = line.split_once("accepted ") {
                players.push(player.to_owned());
                let _ = heard.send(());
            }
        }
        players
    });
    let heard = first.recv_timeout(crate::server::DEADLINE);
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut players = reader.join().unwrap();
    heard.expect("the process accepts results");
    // The last line may have been cut short, and with it a name.
    players.pop();
    for player in players {
        *accepted.entry(player).or_default() += 1;
    }
}

#[test]
fn accepted_results_survive_any_kill_and_count_once() {
    if let Ok(settings) = env::var(CHILD) {
        return main_of_child(&settings);
    }
    let rounds = env::var("PHALANX_SOAK").map_or(6, |rounds| {
        rounds.parse().expect("PHALANX_SOAK is a number")
    });
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut redis = Redis::durable();
    let directory = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let mut accepted = BTreeMap::new();
    for round in 0..rounds {
        let settings = format!("{}|{}|{round}", redis.url(), directory.path().display());
        let delay = Duration::from_millis(random.u64(0..150));
        match random.u8(0..4) {
            0 => {
                redis.kill();
                run_and_kill(&settings, delay, &mut accepted);
                redis.restart();
            }
            1 => {
                redis.freeze();
                run_and_kill(&settings, delay, &mut accepted);
                redis.thaw();
            }
            2 => {
                run_and_kill(&settings, delay, &mut accepted);
                redis.restart();
            }
            _ => run_and_kill(&settings, delay, &mut accepted),
        }
    }
    println!(
        "{} results in {:?}",
        accepted.values().sum::<u64>(),
        began.elapsed()
    );

    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let live = RedisBoard::start(
            board("killed", KIND),
            config(redis.url(), Some(directory.path())),
        );
        let live = live.await.unwrap();
        until("everything has arrived", async || {
            let metrics = live.metrics();
            (metrics.writes.pending == 0 && metrics.refreshes_total > 0).then_some(())
        })
        .await;
        assert_eq!(live.metrics().writes.lost_total, 0);
        let client = redis::Client::open(redis.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        let found: Vec<(String, f64)> = redis::cmd("ZRANGE")
            .arg("phalanx:{board:killed}:e1")
            .arg(0)
            .arg(-1)
            .arg("WITHSCORES")
            .query(&mut connection)
            .unwrap();
        let law = *live.board().law();
        let found: BTreeMap<String, u64> = found
            .into_iter()
            .map(|(who, order)| {
                let order = phalanx_game::board::Order::from_redis(order).unwrap();
                (who, law.score(order, 0) as u64)
            })
            .collect();
        for (player, accepted) in &accepted {
            let found = found.get(player).copied().unwrap_or(0);
            // Those that were accepted, and perhaps the next one or two of which it could not tell any more: no other sum.
            let sums = (*accepted..=*accepted + 2).map(|results| results * (results + 1) / 2);
            assert!(
                sums.clone().any(|sum| sum == found),
                "{player}: {found} after {accepted} results, not one of {:?}",
                sums.collect::<Vec<_>>()
            );
        }
        live.shutdown().await;
    });
}
