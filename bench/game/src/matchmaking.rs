//! Tickets taken in per second, durably, by one shard with and without a standby, while its search runs; and how long the
//! shard is without an owner when that is killed with SIGKILL. Beside it Redis, into which matchmakers write their tickets
//! otherwise: one stream or sorted set, synced with every write or every second, on the same disk.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use phalanx_game::matchmaking::{
    AllocateError, Allocates, Allocation, Allocator, Latency, LocalLease, Node, NodeConfig, Player,
    Rating, Request, Role, Roles, RulesSpec, Seal, Shard, ShardConfig, ShardKey, Ticket, TicketId,
};
use tempfile::TempDir;

use crate::{Options, Row};

/// What the shard of the other process gets, and says where.
const CHILD: &str = "PHALANX_BENCH_SHARD";
/// As many as a shard takes with its default limits: half into the search, half into the waiting room.
const TICKETS: u64 = 200_000;
const LIVE: u64 = 100_000;
const CLIENTS: u64 = 16;
const BATCH: u64 = 128;
const SINGLE_CLIENTS: u64 = 512;
/// Parties per millisecond of the open loop.
const EACH_MS: u64 = 60;
const SETTLED_MAX: Duration = Duration::from_secs(60);

pub fn run(options: &Options) -> anyhow::Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if let Some(folder) = std::env::var_os(CHILD) {
        return runtime.block_on(child(Path::new(&folder)));
    }
    let mut alone = row(
        "intake, batches of 128",
        "phalanx, owner alone",
        "tickets/s",
    );
    let mut paired = row(
        "intake, batches of 128",
        "phalanx, owner and standby",
        "tickets/s",
    );
    let mut single = row(
        "intake, one by one",
        "phalanx, owner and standby",
        "tickets/s",
    );
    alone.bar = Some("≥ 50,000/s".into());
    paired.bar = Some("≥ 50,000/s".into());
    single.note = format!("{SINGLE_CLIENTS} clients, each waits for its answer");
    let mut steady = row(
        "acknowledged at 60,000 tickets/s",
        "phalanx, owner and standby",
        "ms, p99",
    );
    let mut takeover = row("takeover after kill -9", "phalanx", "s");
    takeover.bar = Some("≤ 3 s".into());
    takeover.note = format!("until the successor acknowledged a ticket, over {LIVE} live ones");
    let mut redis: Vec<(Peer, Row)> = Peer::ALL
        .into_iter()
        .map(|peer| (peer, peer.row()))
        .collect();
    for _ in 0..options.rounds {
        let (rate, note) = runtime.block_on(intake(false, CLIENTS, BATCH))?;
        alone.samples.push(rate);
        alone.note = note;
        for (peer, row) in &mut redis {
            row.samples.push(peer.measure()?);
        }
        let (rate, note) = runtime.block_on(intake(true, CLIENTS, BATCH))?;
        paired.samples.push(rate);
        paired.note = note;
        let (rate, _) = runtime.block_on(intake(true, SINGLE_CLIENTS, 1))?;
        single.samples.push(rate);
        let (p99, note) = runtime.block_on(hold(options.seconds))?;
        steady.samples.push(p99);
        steady.note = note;
        takeover
            .samples
            .push(runtime.block_on(take_over())?.as_secs_f64());
    }
    let mut rows = vec![alone, paired, single, steady];
    rows.extend(redis.into_iter().map(|(_, row)| row));
    rows.push(takeover);
    Ok(rows)
}

fn row(case: &'static str, who: &'static str, unit: &'static str) -> Row {
    Row {
        case,
        who,
        unit,
        samples: Vec::new(),
        bar: None,
        note: String::new(),
    }
}

/// Rooms that are there at once.
struct Rooms;

impl Allocator for Rooms {
    fn allocate<'a>(
        &'a self,
        wanted: &'a Allocation,
    ) -> Allocates<'a, Result<String, AllocateError>> {
        let room = wanted.id.to_string();
        Box::pin(std::future::ready(Ok(room)))
    }
}

/// A pair of replicas' place.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> anyhow::Result<Place> {
        // Beside the build, not in a /tmp that may be memory.
        let folder = tempfile::Builder::new().tempdir_in(std::env::current_dir()?)?;
        Ok(Place { folder })
    }
}

/// Five against five, asked: what is proposed stays reserved while it is measured.
async fn open(folder: &Path, replica: &str) -> anyhow::Result<(Node, Shard)> {
    let node = Node::start(NodeConfig {
        listen: "127.0.0.1:0".parse()?,
        advertise: None,
        seal: Seal::none(),
    });
    let node = node.await?;
    let config = ShardConfig::new(
        ShardKey::try_new("ranked", "eu", "v1")?,
        folder.join(replica),
        LocalLease::try_new(folder.join("lease"))?,
        Arc::new(RulesSpec::simple(2, 5, "eu", 100).check()?),
    );
    let shard = node.open(config, Rooms)?;
    Ok((node, shard))
}

fn ticket(id: u64) -> Ticket {
    // Spread like a ladder is; which follows from the id alone.
    let mu = 10.0 + (id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / (1 << 24) as f64 * 30.0;
    Ticket {
        id: TicketId(id),
        players: vec![Player {
            id,
            rating: Rating::new(mu, 2.0),
            roles: Roles::default(),
            latency_ms: Latency::of(&[20]),
        }],
        enqueued_ms: 0,
    }
}

fn enqueue(id: u64) -> Request {
    Request::Enqueue {
        ticket: ticket(id),
        class: 3,
    }
}

/// Takes tickets in until `count` are acknowledged.
async fn fill(
    shard: &Shard,
    first: u64,
    count: u64,
    clients: u64,
    batch: u64,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(first));
    let end = first + count;
    let clients = (0..clients).map(|_| {
        let (shard, next) = (shard.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let from = next.fetch_add(batch, Ordering::Relaxed);
                if from >= end {
                    return Ok::<(), anyhow::Error>(());
                }
                let requests = (from..end.min(from + batch)).map(enqueue).collect();
                for answer in shard.ask_all(requests).await {
                    answer.context("a ticket was not taken in")?;
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await??;
    }
    Ok(())
}

async fn until(what: &str, settled: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLED_MAX;
    while !settled() {
        ensure!(Instant::now() < deadline, "not in {SETTLED_MAX:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

async fn intake(paired: bool, clients: u64, batch: u64) -> anyhow::Result<(f64, String)> {
    let place = Place::new()?;
    let (_node, owner) = open(place.folder.path(), "one").await?;
    owner.owned().await;
    let mut standby = None;
    if paired {
        standby = Some(open(place.folder.path(), "two").await?);
        until("a standby in sync", || {
            owner.metrics().owner.standby_in_sync
        })
        .await?;
    }
    // Warm: files, threads, allocator.
    fill(&owner, 1 << 40, 2_000, clients, batch).await?;
    let before = owner.metrics();
    let begun = Instant::now();
    fill(&owner, 1, TICKETS - 2_000, clients, batch).await?;
    let took = begun.elapsed();
    let after = owner.metrics();
    if paired {
        ensure!(after.owner.standby_in_sync, "the standby fell out of sync");
    }
    let records = after.owner.records - before.owner.records;
    let (syncs, syncing) = (after.syncs - before.syncs, after.syncing - before.syncing);
    let note = format!(
        "{:.0} tickets per sync of {:.2} ms; longest tick {:.0} ms",
        (TICKETS - 2_000) as f64 / records.max(1) as f64,
        syncing.as_secs_f64() * 1e3 / syncs.max(1) as f64,
        after.search.longest.as_secs_f64() * 1e3,
    );
    owner.close().await;
    if let Some((_, standby)) = standby {
        standby.close().await;
    }
    Ok(((TICKETS - 2_000) as f64 / took.as_secs_f64(), note))
}

/// Open loop: every millisecond 60 parties come and the 60 of a second ago cancel, whatever the answers do. Latency is
/// from when a request should have been sent.
async fn hold(seconds: u64) -> anyhow::Result<(f64, String)> {
    let place = Place::new()?;
    let (_node, owner) = open(place.folder.path(), "one").await?;
    owner.owned().await;
    let (_other, standby) = open(place.folder.path(), "two").await?;
    until("a standby in sync", || {
        owner.metrics().owner.standby_in_sync
    })
    .await?;
    let begun = tokio::time::Instant::now();
    let (sender, mut answered) = tokio::sync::mpsc::unbounded_channel();
    for ms in 0..seconds * 1_000 {
        let intended = begun + Duration::from_millis(ms);
        tokio::time::sleep_until(intended).await;
        let mut requests: Vec<Request> = (0..EACH_MS)
            .map(|at| enqueue(1 + ms * EACH_MS + at))
            .collect();
        if let Some(past) = ms.checked_sub(1_000) {
            requests.extend((0..EACH_MS).map(|at| Request::Cancel {
                ticket: TicketId(1 + past * EACH_MS + at),
            }));
        }
        let (owner, sender) = (owner.clone(), sender.clone());
        tokio::spawn(async move {
            let answers = owner.ask_all(requests).await;
            let taken = answers.iter().take(EACH_MS as usize).all(Result::is_ok);
            let _ = sender.send((taken, intended.elapsed().as_secs_f64() * 1e3));
        });
    }
    drop(sender);
    let mut latencies = Vec::new();
    while let Some((taken, latency)) = answered.recv().await {
        ensure!(taken, "a ticket was refused");
        latencies.push(latency);
    }
    ensure!(
        owner.metrics().owner.standby_in_sync,
        "the standby fell out of sync"
    );
    latencies.sort_by(f64::total_cmp);
    let part = |part: usize| latencies[(latencies.len() * part / 1_000).min(latencies.len() - 1)];
    let metrics = owner.metrics();
    let note = format!(
        "p50 {:.1} ms, p99.9 {:.1} ms; as many cancel; {} MiB of log; longest sync {:.0} ms, longest tick {:.0} ms",
        part(500),
        part(999),
        metrics.owner.bytes >> 20,
        metrics.longest_sync.as_secs_f64() * 1e3,
        metrics.search.longest.as_secs_f64() * 1e3,
    );
    owner.close().await;
    standby.close().await;
    Ok((part(990), note))
}

/// The owner that will be killed: fills its shard, says so, and goes on taking tickets in.
async fn child(folder: &Path) -> anyhow::Result<Vec<Row>> {
    let (_node, shard) = open(folder, "one").await?;
    shard.owned().await;
    fill(&shard, 1, LIVE, CLIENTS, BATCH).await?;
    until("a standby in sync", || {
        shard.metrics().owner.standby_in_sync
    })
    .await?;
    println!("filled");
    let mut next = 1 << 32;
    loop {
        fill(&shard, next, 256, 2, 128).await?;
        next += 256;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends with whoever has it.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn take_over() -> anyhow::Result<Duration> {
    let place = Place::new()?;
    let spawned = Command::new(std::env::current_exe()?)
        .args(["--case", "matchmaking", "--rounds", "1"])
        .env(CHILD, place.folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut owner = Killed(spawned);
    // Only when the other is the owner may this one come.
    let roll = place.folder.path().join("lease/roll.json");
    until("an owner", || roll.exists()).await?;
    let (_node, standby) = open(place.folder.path(), "two").await?;
    let output = owner.0.stdout.take().context("no output")?;
    let filled = tokio::task::spawn_blocking(move || {
        let mut lines = BufReader::new(output).lines();
        lines.any(|line| line.is_ok_and(|line| line == "filled"))
    });
    ensure!(filled.await?, "the owner ended by itself");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let killed = Instant::now();
    owner.0.kill()?;
    let role = standby.owned().await;
    ensure!(
        matches!(role, Role::Owner { .. }),
        "the standby is {role:?}"
    );
    let probe = ticket(1 << 50);
    standby
        .enqueue(probe)
        .await
        .context("the successor takes no ticket")?;
    let took = killed.elapsed();
    // Every ticket of the first is known to the second.
    for first in (1..=LIVE).step_by(1_000) {
        let look = |id| Request::Look {
            ticket: TicketId(id),
        };
        let last = LIVE.min(first + 999);
        let answers = standby.ask_all((first..=last).map(look).collect()).await;
        ensure!(answers.iter().all(Result::is_ok), "a ticket is lost");
    }
    standby.close().await;
    Ok(took)
}

/// How Redis is asked to keep tickets.
#[derive(Clone, Copy)]
enum Peer {
    StreamAlways,
    StreamEverySecond,
    SetAlways,
    SetEverySecond,
}

impl Peer {
    const ALL: [Peer; 4] = [
        Peer::StreamAlways,
        Peer::StreamEverySecond,
        Peer::SetAlways,
        Peer::SetEverySecond,
    ];

    fn row(self) -> Row {
        let who = match self {
            Peer::StreamAlways => "redis XADD, appendfsync always",
            Peer::StreamEverySecond => "redis XADD, appendfsync everysec",
            Peer::SetAlways => "redis ZADD, appendfsync always",
            Peer::SetEverySecond => "redis ZADD, appendfsync everysec",
        };
        let mut row = row("intake, batches of 128", who, "tickets/s");
        row.note = "one process, no replica, nothing but the write; a crash loses up to".into();
        row.note += match self {
            Peer::StreamAlways | Peer::SetAlways => " nothing",
            Peer::StreamEverySecond | Peer::SetEverySecond => " a second",
        };
        row
    }

    fn measure(self) -> anyhow::Result<f64> {
        let place = Place::new()?;
        let port = TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port()
            .to_string();
        let sync = match self {
            Peer::StreamAlways | Peer::SetAlways => "always",
            Peer::StreamEverySecond | Peer::SetEverySecond => "everysec",
        };
        let spawned = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", sync, "--dir"])
            .arg(place.folder.path())
            .stdout(Stdio::null())
            .spawn()
            .context("redis-server is not installed")?;
        let _server = Killed(spawned);
        let deadline = Instant::now() + SETTLED_MAX;
        while std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
            ensure!(Instant::now() < deadline, "redis does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        // About what an entry of ours comes to.
        let payload = "x".repeat(60);
        let mut command = vec![
            "XADD",
            "tickets",
            "*",
            "ticket",
            "__rand_int__",
            "body",
            &payload,
        ];
        if let Peer::SetAlways | Peer::SetEverySecond = self {
            command = vec!["ZADD", "tickets", "25", "__rand_int__"];
        }
        let output = Command::new("redis-benchmark")
            .args([
                "-p",
                &port,
                "-c",
                &CLIENTS.to_string(),
                "-P",
                &BATCH.to_string(),
            ])
            .args(["-n", &TICKETS.to_string(), "-r", "1000000000", "--csv"])
            .args(command)
            .output()
            .context("redis-benchmark is not installed")?;
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines().rev() {
            let mut cells = line.split(',').map(|cell| cell.trim_matches('"'));
            if let Some(rate) = cells.nth(1).and_then(|rate| rate.parse().ok()) {
                return Ok(rate);
            }
        }
        bail!("redis-benchmark said: {text}")
    }
}
