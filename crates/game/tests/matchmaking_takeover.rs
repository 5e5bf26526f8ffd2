//! Two processes hold a shard, under load; one of them is killed with SIGKILL again and again. Every ticket that was
//! acknowledged must be known to whoever owns the shard afterwards, and none may be in two matches. `PHALANX_SOAK=N`
//! kills N times; the time until the successor acknowledges is printed.
//!
//! The processes are this test binary, run once more with `CHILD` set.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use phalanx_game::matchmaking::{
    AllocateError, Allocates, Allocation, Allocator, Latency, Limits, LocalLease, MatchRules, Node,
    NodeConfig, Player, Rating, Refusal, Request, Role, Roles, RulesSpec, Seal, Shard, ShardConfig,
    ShardKey, Ticket, TicketId,
};

const CHILD: &str = "PHALANX_GAME_SHARD_IN";
const LEASE: &str = "PHALANX_GAME_LEASE";
const KILLS: usize = 4;
/// Each waits for a lease to run out.
#[cfg(feature = "etcd")]
const KILLS_WITH_ETCD: usize = 2;
/// Kills beyond those, should none before have been followed by a takeover.
const KILLS_MORE: usize = 20;
const DEADLINE: Duration = Duration::from_secs(120);
/// Tickets per request, and the pause after it.
const BATCH: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);
const WRITERS: u64 = 2;

/// Each line with one write, so that a kill leaves whole lines but for the last.
fn say(line: String) {
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}

/// Rooms that are there at once, and are written down before anybody may hear of them.
struct Rooms;

impl Allocator for Rooms {
    fn allocate<'a>(
        &'a self,
        wanted: &'a Allocation,
    ) -> Allocates<'a, Result<String, AllocateError>> {
        let tickets = wanted.teams.iter().flatten();
        let tickets: Vec<String> = tickets.map(|ticket| ticket.id.to_string()).collect();
        say(format!("room {} {}\n", wanted.id, tickets.join(" ")));
        let room = format!("room-{}", wanted.id);
        Box::pin(std::future::ready(Ok(room)))
    }
}

fn ticket(id: u64) -> Ticket {
    Ticket {
        id: TicketId(id),
        players: vec![Player {
            id,
            rating: Rating::new(25.0, 1.0),
            roles: Roles::default(),
            latency_ms: Latency::of(&[20]),
        }],
        enqueued_ms: 0,
    }
}

fn rules() -> Arc<MatchRules> {
    Arc::new(RulesSpec::simple(2, 1, "eu", 100).check().unwrap())
}

fn config(directory: &Path, lease: &str) -> ShardConfig {
    let key = ShardKey::try_new("duel", "eu", "v1").unwrap();
    let mut config = match lease.split_once(':').unwrap() {
        ("local", place) => {
            let lease = LocalLease::try_new(place).unwrap();
            ShardConfig::new(key, directory, lease, rules())
        }
        #[cfg(feature = "etcd")]
        ("etcd", endpoint) => {
            let etcd = phalanx_store::EtcdConfig::new([endpoint]);
            let store = tokio::task::block_in_place(|| {
                let store = phalanx_store::Store::etcd(etcd);
                tokio::runtime::Handle::current().block_on(store).unwrap()
            });
            let lease = phalanx_game::matchmaking::StoreLease::new(store, "duel/eu/v1");
            ShardConfig::new(key, directory, lease, rules())
        }
        other => panic!("no lease {other:?}"),
    };
    config.limits = Limits {
        ask: false,
        // On a busy machine it stays on the roll; when it is killed, its connection says so at once.
        standby_patience: DEADLINE,
        // Checkpoints and kills meet.
        checkpoint_bytes: 256 << 10,
        // Many wait at any time.
        inside_max: 5_000,
        ..Limits::default()
    };
    config
}

fn main_of_child(directory: &Path) {
    let lease = env::var(LEASE).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let node = Node::start(NodeConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            seal: Seal::none(),
        });
        let node = node.await.unwrap();
        let shard = node.open(config(directory, &lease), Rooms).unwrap();
        tokio::spawn(tell_roles(shard.clone()));
        for _ in 0..WRITERS {
            tokio::spawn(enqueue(shard.clone()));
        }
        // Ends with whoever started it.
        let (commands, mut heard) = tokio::sync::mpsc::unbounded_channel();
        thread::spawn(move || {
            for line in std::io::stdin().lines() {
                let _ = commands.send(line.unwrap());
            }
        });
        while let Some(path) = heard.recv().await {
            let answer = check(&shard, Path::new(&path)).await;
            say(answer);
        }
    });
}

async fn tell_roles(shard: Shard) {
    let mut before = (Role::Opening, false);
    let mut said = Instant::now();
    loop {
        let metrics = shard.metrics();
        let now = (metrics.role, metrics.owner.standby_in_sync);
        // Again and again: a standby that is back very soon was never seen to be gone.
        if now != before || said.elapsed() > Duration::from_millis(200) {
            said = Instant::now();
            match &now.0 {
                Role::Owner { epoch } => say(format!("owner {epoch} {}\n", u8::from(now.1))),
                Role::OutOfSync { roll } => say(format!("out {roll}\n")),
                Role::Failed { reason } => say(format!("failed {reason}\n")),
                _ => {}
            }
            before = now;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn enqueue(shard: Shard) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Ids of this life are its own.
    let life = u64::from(std::process::id()) << 32;
    loop {
        if shard.owned().await == Role::Stopped {
            return;
        }
        let first = NEXT.fetch_add(BATCH as u64, Ordering::Relaxed);
        let ids = (first..first + BATCH as u64).map(|id| life | id);
        let requests = ids.map(|id| Request::Enqueue {
            ticket: ticket(id),
            class: 3,
        });
        let answers = shard.ask_all(requests.collect()).await;
        let taken = answers
            .iter()
            .flatten()
            .map(|state| format!(" {}", state.ticket));
        let taken: String = taken.collect();
        if !taken.is_empty() {
            say(format!("ack{taken}\n"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks for every ticket that the file names. Says `moved` when the shard changed hands meanwhile.
async fn check(shard: &Shard, path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let ids: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    let (mut found, mut lost) = (0, Vec::new());
    for chunk in ids.chunks(1_000) {
        let look = |&id: &u64| Request::Look {
            ticket: TicketId(id),
        };
        let answers = shard.ask_all(chunk.iter().map(look).collect()).await;
        for (id, answer) in chunk.iter().zip(answers) {
            match answer {
                Ok(_) => found += 1,
                Err(Refusal::NotOwner { .. } | Refusal::Unknown) => return "moved on\n".into(),
                Err(refusal) => lost.push(format!("{id}: {refusal}")),
            }
        }
    }
    lost.truncate(5);
    format!("checked {found} {} {}\n", ids.len(), lost.join(", "))
}

/// What a child says.
#[derive(Debug)]
enum Said {
    Owner {
        epoch: u64,
        in_sync: bool,
    },
    Acked(Vec<u64>),
    Room(String, BTreeSet<u64>),
    Checked {
        found: usize,
        asked: usize,
        lost: String,
    },
    /// It doesn't own the shard any more.
    Moved,
    /// It may not take over: it was too slow to be waited for.
    Out,
    Failed(String),
}

fn parse(line: &str) -> Option<Said> {
    let (word, rest) = line.strip_suffix('\n')?.split_once(' ')?;
    let mut words = rest.split(' ');
    Some(match word {
        "owner" => Said::Owner {
            epoch: words.next()?.parse().ok()?,
            in_sync: words.next()? == "1",
        },
        "ack" => Said::Acked(words.map(|id| id.parse().unwrap()).collect()),
        "room" => {
            let id = words.next()?.to_owned();
            Said::Room(id, words.map(|id| id.parse().unwrap()).collect())
        }
        "checked" => Said::Checked {
            found: words.next()?.parse().ok()?,
            asked: words.next()?.parse().ok()?,
            lost: words.collect::<Vec<_>>().join(" "),
        },
        "moved" => Said::Moved,
        "out" => Said::Out,
        "failed" => Said::Failed(rest.to_owned()),
        _ => return None,
    })
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    reader: Option<thread::JoinHandle<()>>,
}

impl Process {
    /// When this returns, all that it said is in the channel.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Pair {
    test: &'static str,
    lease: String,
    folder: tempfile::TempDir,
    processes: HashMap<usize, Process>,
    said: mpsc::Receiver<(usize, Said)>,
    sender: mpsc::Sender<(usize, Said)>,
    owner: Option<(usize, u64)>,
    in_sync: bool,
    out: bool,
    acked: BTreeSet<u64>,
    rooms: BTreeMap<String, BTreeSet<u64>>,
    seats: HashMap<u64, String>,
    checked: Option<(usize, usize, String)>,
    moved: bool,
}

impl Pair {
    fn start(test: &'static str, lease: impl FnOnce(&Path) -> String) -> Pair {
        let folder = tempfile::tempdir().unwrap();
        let (sender, said) = mpsc::channel();
        let mut pair = Pair {
            test,
            lease: lease(folder.path()),
            folder,
            processes: HashMap::new(),
            said,
            sender,
            owner: None,
            in_sync: false,
            out: false,
            acked: BTreeSet::new(),
            rooms: BTreeMap::new(),
            seats: HashMap::new(),
            checked: None,
            moved: false,
        };
        pair.spawn(0);
        pair.spawn(1);
        pair.wait("both are in sync", |pair| pair.in_sync);
        pair
    }

    fn spawn(&mut self, which: usize) {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", self.test, "--nocapture"])
            .env(CHILD, self.directory(which))
            .env(LEASE, &self.lease)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let output = child.stdout.take().unwrap();
        let sender = self.sender.clone();
        let reader = thread::spawn(move || {
            let mut lines = BufReader::new(output);
            let mut line = String::new();
            while lines.read_line(&mut line).unwrap_or(0) > 0 {
                if let Some(said) = parse(&line) {
                    let _ = sender.send((which, said));
                }
                line.clear();
            }
        });
        let process = Process {
            child,
            stdin,
            reader: Some(reader),
        };
        self.processes.insert(which, process);
    }

    fn directory(&self, which: usize) -> PathBuf {
        self.folder.path().join(format!("replica-{which}"))
    }

    fn hear(&mut self, which: usize, said: Said) {
        match said {
            Said::Owner { epoch, in_sync } => {
                if self.owner.is_none_or(|(_, known)| epoch >= known) {
                    self.owner = Some((which, epoch));
                    self.in_sync = in_sync;
                }
            }
            Said::Acked(ids) => self.acked.extend(ids),
            Said::Room(id, tickets) => {
                for &ticket in &tickets {
                    let before = self.seats.insert(ticket, id.clone());
                    assert!(
                        before.as_ref().is_none_or(|before| *before == id),
                        "ticket {ticket} is in {before:?} and {id}"
                    );
                }
                let before = self.rooms.insert(id.clone(), tickets.clone());
                assert!(
                    before.is_none_or(|before| before == tickets),
                    "{id} is two matches"
                );
            }
            Said::Checked { found, asked, lost } => self.checked = Some((found, asked, lost)),
            Said::Moved => self.moved = true,
            Said::Out => self.out = true,
            Said::Failed(reason) => panic!("replica {which} failed: {reason}"),
        }
    }

    fn wait(&mut self, what: &str, until: impl Fn(&Pair) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !until(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((which, said)) = self.said.recv_timeout(left) else {
                panic!("not in {DEADLINE:?}: {what}");
            };
            self.hear(which, said);
        }
    }

    fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok((which, said)) = self
            .said
            .recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            self.hear(which, said);
        }
    }

    fn kill(&mut self, which: usize) {
        let mut process = self.processes.remove(&which).unwrap();
        process.kill();
    }

    fn acks_more(&mut self, than: usize) {
        self.wait("more is acknowledged", |pair| pair.acked.len() > than);
    }

    fn check(&mut self) {
        // What lies in the channel was said, by the dead one too.
        while let Ok((which, said)) = self.said.try_recv() {
            self.hear(which, said);
        }
        let path = self.folder.path().join("acknowledged");
        let lines: String = self.acked.iter().map(|id| format!("{id}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        let deadline = Instant::now() + DEADLINE;
        self.checked = None;
        while self.checked.is_none() {
            assert!(Instant::now() < deadline, "nobody keeps the shard");
            let (owner, _) = self.owner.unwrap();
            self.moved = false;
            let stdin = &mut self.processes.get_mut(&owner).unwrap().stdin;
            writeln!(stdin, "{}", path.display()).unwrap();
            self.wait("the owner looks for all", |pair| {
                pair.checked.is_some() || pair.moved
            });
            if self.moved {
                self.listen(Duration::from_millis(100));
            }
        }
        let (found, asked, lost) = self.checked.take().unwrap();
        assert_eq!(found, asked, "lost: {lost}");
    }
}

fn kills(short: usize) -> usize {
    let soak = env::var("PHALANX_SOAK").ok();
    soak.map_or(short, |kills| {
        kills.parse().expect("PHALANX_SOAK is a number")
    })
}

fn survive(mut pair: Pair, kills: usize) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut took = Vec::new();
    for kill in 0..kills + KILLS_MORE {
        if kill >= kills && !took.is_empty() {
            break;
        }
        pair.listen(Duration::from_millis(random.u64(50..500)));
        pair.wait("the standby is in sync", |pair| pair.in_sync);
        let (owner, epoch) = pair.owner.unwrap();
        let of_the_standby = kill % 4 == 3;
        let victim = if of_the_standby { 1 - owner } else { owner };
        let killed = Instant::now();
        pair.kill(victim);
        (pair.in_sync, pair.out) = (false, false);
        let took_over = |pair: &Pair| pair.owner.unwrap().1 > epoch;
        if !of_the_standby {
            pair.wait("the standby owns the shard", |pair| {
                took_over(pair) || pair.out
            });
        }
        // On a busy machine the standby may just have been taken off the roll. Then it may not take over.
        let out = !of_the_standby && !took_over(&pair);
        if out {
            pair.spawn(victim);
            pair.wait("the owner owns it again", took_over);
        }
        let acked = pair.acked.len();
        pair.acks_more(acked);
        if !of_the_standby && !out {
            took.push(killed.elapsed());
        }
        pair.check();
        if !out {
            pair.spawn(victim);
        }
        pair.in_sync = false;
        pair.wait("the one that was killed is in sync again", |pair| {
            pair.in_sync
        });
    }
    pair.check();
    assert!(!took.is_empty(), "a standby never took over");
    took.sort_unstable();
    println!(
        "{} takeovers, {:?} to {:?}; {} tickets acknowledged, {} rooms, epoch {}",
        took.len(),
        took.first(),
        took.last(),
        pair.acked.len(),
        pair.rooms.len(),
        pair.owner.unwrap().1
    );
    assert!(pair.rooms.len() > 10, "nothing happened");
}

#[test]
fn every_acknowledged_ticket_survives_the_kill_of_its_owner() {
    if let Some(directory) = env::var_os(CHILD) {
        return main_of_child(Path::new(&directory));
    }
    let name = "every_acknowledged_ticket_survives_the_kill_of_its_owner";
    let pair = Pair::start(name, |folder| {
        format!("local:{}", folder.join("lease").display())
    });
    survive(pair, kills(KILLS));
}

#[cfg(feature = "etcd")]
#[test]
fn and_so_it_does_when_the_lease_is_in_etcd() {
    if let Some(directory) = env::var_os(CHILD) {
        return main_of_child(Path::new(&directory));
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let etcd = runtime
        .block_on(phalanx_testkit::etcd::Etcd::start(&[]))
        .unwrap();
    let name = "and_so_it_does_when_the_lease_is_in_etcd";
    let pair = Pair::start(name, |_| format!("etcd:{}", etcd.endpoint()));
    survive(pair, kills(KILLS_WITH_ETCD));
}
