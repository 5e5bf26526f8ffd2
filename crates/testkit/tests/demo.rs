//! The demo as a newcomer runs it, on a shorter clock; and with somebody who kills parts of it.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use phalanx_testkit::eventually;
use phalanx_testkit::http::{Answer, Call, call};
use phalanx_testkit::mesh::READY_MAX;
use phalanx_testkit::process::{Process, executable};

const PORTS: [[&str; 2]; 3] = [
    ["--xds", "127.0.0.1:25010"],
    ["--admin", "127.0.0.1:25080"],
    ["--dns", "127.0.0.1:25053"],
];
const GATEWAY: &str = "127.0.1.1:15006";
/// The two that hold the queue.
const MATCHMAKERS: [&str; 2] = ["127.0.1.2:8080", "127.0.1.11:8080"];

/// Two demos would want the same addresses.
fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn the_demo_plays_without_a_failure_and_leaves_nothing_behind() -> anyhow::Result<()> {
    let _alone = alone();
    // A debug build on two busy cores: fewer actions than a user's demo.
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["demo", "--duration", "7s", "--rate", "60"])
        .args(PORTS.as_flattened());
    let output = command.output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("battle-v2") && said.contains("0 failed"),
        "{said}"
    );
    assert!(said.contains("leaderboard in its process: "), "{said}");
    for address in [
        "127.0.0.1:25010",
        "127.0.0.1:25080",
        "127.0.0.1:25053",
        "127.0.1.1:15006",
        "127.0.1.3:8080",
    ] {
        TcpListener::bind(address).unwrap_or_else(|e| panic!("{address} is still taken: {e}"));
    }
    Ok(())
}

#[test]
fn a_taken_port_is_said_before_anything_starts() -> anyhow::Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let output = Command::new(executable("phalanx")?)
        .args(["demo", "--duration", "1s", "--admin", &address])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&address) && said.contains("--admin"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_redis_that_is_not_installed_is_said_before_anything_starts() -> anyhow::Result<()> {
    let _alone = alone();
    let output = Command::new(executable("phalanx")?)
        .args(["demo", "--redis", "--duration", "1s"])
        .args(PORTS.as_flattened())
        .env("PATH", "/nonexistent")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot run `redis-server`") && said.contains("hint: install Redis"),
        "{said}"
    );
    Ok(())
}

#[test]
fn who_kills_matchmaker_and_redis_costs_no_player_anything() -> anyhow::Result<()> {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(killed())
}

async fn killed() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["demo", "--redis", "--duration", "10m", "--rate", "40"])
        .args(PORTS.as_flattened())
        .arg("--keep")
        .arg(folder.path().join("kept"));
    let mut demo = Process::spawn(command, &folder.path().join("demo.log"))?;
    // Asked before, the mesh would have failures that are nobody's.
    eventually("the demo to play", READY_MAX, async || {
        assert!(!demo.has_ended(), "{}", demo.log());
        demo.log().contains("console  http://").then_some(())
    })
    .await?;
    eventually("a board with players", READY_MAX, async || {
        let answer = board().await.ok()?;
        (answer.status == 200 && is_filled(&answer)).then_some(())
    })
    .await?;

    kill(demo.id(), "redis-server")?;
    // At once: it is away for some seconds only.
    board_is("STALE").await?;
    let owner = owner_with_standby().await?;
    kill(demo.id(), MATCHMAKERS[owner])?;
    eventually(
        "the other matchmaker to own the queue",
        READY_MAX,
        async || {
            let owned = metric(MATCHMAKERS[1 - owner], "phalanx_match_owner").await?;
            (owned == 1.0).then_some(())
        },
    )
    .await?;
    board_is("HIT").await?;
    owner_with_standby().await?;
    eventually("all results to arrive", READY_MAX, async || {
        let kept = ask("127.0.1.7:8080", "leaderboard", "/kept").await.ok()?;
        let kept = kept.json();
        (kept["pending"] == 0 && kept["up"] == true).then_some(())
    })
    .await?;

    let status = demo.terminate(READY_MAX).await?;
    let said = demo.log();
    assert_eq!(status.code(), Some(0), "{said}");
    let line = |what: &str| {
        let mut found = said.lines().filter(|line| line.contains(what));
        found
            .next()
            .unwrap_or_else(|| panic!("no {what:?} in\n{said}"))
    };
    assert!(line("players: ").contains(" 0 failed"), "{said}");
    let kept = line("leaderboard in Redis at 127.0.0.1:");
    assert!(
        kept.contains("STALE") && kept.contains(" 0 refused; away"),
        "{kept}"
    );
    for process in ["note  match-v1-", "note  redis "] {
        assert!(line(process).contains("was started again"), "{said}");
    }
    Ok(())
}

async fn ask(address: &str, authority: &str, path: &str) -> anyhow::Result<Answer> {
    let address: SocketAddr = address.parse()?;
    call(address, &Call::get(authority, path)).await
}

async fn board() -> anyhow::Result<Answer> {
    ask(GATEWAY, "gateway", "/leaderboard?n=3").await
}

async fn board_is(state: &str) -> anyhow::Result<()> {
    let what = format!("a board that is a {state}");
    eventually(&what, READY_MAX, async || {
        let answer = board().await.expect("an answer");
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        assert!(is_filled(&answer), "{:?}", answer.body);
        (answer.header("x-cache") == state).then_some(())
    })
    .await
}

fn is_filled(board: &Answer) -> bool {
    let board = board.json();
    board["top"].as_array().is_some_and(|top| !top.is_empty())
}

async fn metric(address: &str, family: &str) -> Option<f64> {
    let answer = ask(address, "match", "/metrics").await.ok()?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let mut lines = text.lines().filter(|line| line.starts_with(family));
    lines.next()?.rsplit(' ').next()?.parse().ok()
}

async fn owner_with_standby() -> anyhow::Result<usize> {
    eventually(
        "an owner whose standby has everything",
        READY_MAX,
        async || {
            for (at, address) in MATCHMAKERS.iter().enumerate() {
                if metric(address, "phalanx_match_standby_in_sync").await == Some(1.0) {
                    return Some(at);
                }
            }
            None
        },
    )
    .await
}

/// Kills the demo's child in whose command line `word` stands, and that is no sidecar.
fn kill(demo: u32, word: &str) -> anyhow::Result<()> {
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let Some(pid) = child_of(demo, &folder) else {
            continue;
        };
        let line = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(word) && !line.contains(" proxy ") {
            // SAFETY: kill takes two integers; the process is a child of the demo, which reaps it a second later at most
            // and starts nothing meanwhile.
            #[allow(unsafe_code)]
            let result = unsafe { libc::kill(pid, libc::SIGKILL) };
            anyhow::ensure!(result == 0, "cannot kill {line}");
            return Ok(());
        }
    }
    anyhow::bail!("the demo has no {word}")
}

/// Its id, if it is one.
fn child_of(parent: u32, folder: &Path) -> Option<i32> {
    let pid = folder.file_name()?.to_str()?.parse().ok()?;
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    // `12 (name) S 7 …`: a name may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let of: u32 = rest.split_whitespace().nth(1)?.parse().ok()?;
    (of == parent).then_some(pid)
}
