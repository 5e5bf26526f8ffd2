//! A process that writes without pause is killed with SIGKILL again and again. What it had acknowledged must be there, the
//! revision must not go back, and a watch must find every revision. `PHALANX_SOAK=1000` kills a thousand times.
//!
//! The process is this test binary, run once more with `CHILD` set.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use phalanx_store::{Config, Entry, Error, EventKind, Revision, Store, Txn};

const CHILD: &str = "PHALANX_STORE_KILLED_IN";
const KILLS: usize = 100;
const WRITERS: u64 = 6;
const SLOTS: u64 = 20;
/// Small, so that trims and kills meet.
const LOG_REVISIONS: u64 = 1500;

/// One line of the child's: writer, count of its transactions, revision.
type Ack = (u64, u64, Revision);

fn config(directory: &Path) -> Config {
    let mut config = Config::at(directory);
    config.log_revisions_max = LOG_REVISIONS;
    config
}

fn value(writer: u64, count: u64) -> Vec<u8> {
    vec![(writer * 31 + count) as u8; (count * 131 % 3000) as usize]
}

/// A writer's `count`th transaction: every seventh deletes its slot, the others fill it.
fn txn(writer: u64, count: u64) -> Txn {
    let slot = format!("/{writer}/slot/{:02}", count % SLOTS);
    let txn = Txn::new().put(format!("/{writer}/count"), count.to_string());
    if count.is_multiple_of(7) {
        txn.delete(slot)
    } else {
        txn.put(slot, value(writer, count))
    }
}

fn main_of_child(directory: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::embedded(config(directory)).await.unwrap();
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let store = store.clone();
            writers.push(tokio::spawn(async move {
                let counted = store.get(&format!("/{writer}/count")).await.unwrap();
                let mut count = counted.map_or(0, |entry| number(&entry));
                loop {
                    count += 1;
                    let revision = store.commit(txn(writer, count)).await.unwrap();
                    // One write, so that a kill leaves whole lines but for the last.
                    let line = format!("ack {writer} {count} {revision}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            }));
        }
        // Expiries of leases are transactions, too.
        loop {
            let lease = store.grant(Duration::from_millis(15)).await.unwrap();
            let put = Txn::new().put_leased(format!("/lease/{lease}"), "x", lease);
            match store.commit(put).await {
                // On a busy machine the lease is over before the put.
                Ok(_) | Err(Error::LeaseNotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn an_acknowledged_write_survives_any_kill() {
    if let Some(directory) = env::var_os(CHILD) {
        return main_of_child(Path::new(&directory));
    }
    let kills = env::var("PHALANX_SOAK").map_or(KILLS, |kills| {
        kills.parse().expect("PHALANX_SOAK is a number")
    });
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut witness = Witness::default();
    for kill in 0..kills {
        // Some kills hit the start and the making of the file, most the writing.
        let (after_ack, delay) = match random.u8(0..4) {
            0 => (false, random.u64(0..60)),
            _ => (true, random.u64(0..70)),
        };
        let acks = run_and_kill(directory.path(), after_ack, Duration::from_millis(delay));
        witness.acknowledged(&acks);
        runtime.block_on(witness.check(directory.path(), kill));
    }
    let Witness {
        revisions, head, ..
    } = &witness;
    println!(
        "{kills} kills, {} acknowledged transactions, revision {head}",
        revisions.len()
    );
    assert!(
        revisions.len() > kills,
        "only {} writes in {kills} kills",
        revisions.len()
    );
}

fn run_and_kill(directory: &Path, after_ack: bool, delay: Duration) -> Vec<Ack> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "an_acknowledged_write_survives_any_kill",
            "--nocapture",
        ])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let (first, first_seen) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut acks = Vec::new();
        let mut lines = BufReader::new(output);
        let mut line = String::new();
        while lines.read_line(&mut line).unwrap_or(0) > 0 {
            acks.extend(parse(&line));
            if acks.len() == 1 {
                let _ = first.send(());
            }
            line.clear();
        }
        acks
    });
    if after_ack && first_seen.recv_timeout(Duration::from_secs(60)).is_err() {
        panic!("the child acknowledges nothing: {}", complaint(child));
    }
    thread::sleep(delay);
    let ended = child.try_wait().unwrap();
    assert!(
        ended.is_none(),
        "the child ended by itself ({ended:?}): {}",
        complaint(child)
    );
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

fn complaint(mut child: Child) -> String {
    let _ = child.kill();
    let mut text = String::new();
    let _ = child.stderr.take().unwrap().read_to_string(&mut text);
    let _ = child.wait();
    text
}

fn parse(line: &str) -> Option<Ack> {
    let mut words = line
        .strip_suffix('\n')?
        .strip_prefix("ack ")?
        .split(' ')
        .map(|word| word.parse().ok());
    Some((words.next()??, words.next()??, words.next()??))
}

fn number(entry: &Entry) -> u64 {
    std::str::from_utf8(&entry.value).unwrap().parse().unwrap()
}

/// What was seen from outside, over all kills.
#[derive(Default)]
struct Witness {
    counts: HashMap<u64, u64>,
    revisions: HashMap<Revision, (u64, u64)>,
    state: BTreeMap<String, Entry>,
    head: Revision,
    checked: Revision,
}

impl Witness {
    fn acknowledged(&mut self, acks: &[Ack]) {
        for &(writer, count, revision) in acks {
            let count_before = self.counts.insert(writer, count).unwrap_or(0);
            assert!(
                count > count_before,
                "writer {writer} counted {count} after {count_before}"
            );
            let other = self.revisions.insert(revision, (writer, count));
            assert_eq!(other, None, "revision {revision} was given twice");
            self.head = self.head.max(revision);
        }
    }

    async fn check(&mut self, directory: &Path, kill: usize) {
        let store = Store::embedded(config(directory)).await.unwrap();
        let page = store.list("").await.unwrap();
        assert!(
            page.revision >= self.head,
            "kill {kill}: back to {} from {}",
            page.revision,
            self.head
        );
        let listed: BTreeMap<String, Entry> = page
            .entries
            .into_iter()
            .map(|entry| (entry.key.clone(), entry))
            .collect();
        for writer in 0..WRITERS {
            self.check_writer(writer, &listed, kill);
        }

        let oldest = store.status().oldest;
        assert!(
            oldest <= self.checked,
            "more than {LOG_REVISIONS} revisions between two kills"
        );
        let mut watch = store.watch("", oldest).await.unwrap();
        for revision in oldest + 1..=page.revision {
            let batch = watch.next().await.unwrap().unwrap();
            assert_eq!(batch.revision, revision, "kill {kill}: a gap in the watch");
            if revision <= self.checked {
                continue;
            }
            for event in batch.events {
                match event.kind {
                    EventKind::Put(entry) => drop(self.state.insert(entry.key.clone(), entry)),
                    EventKind::Delete { key, .. } => drop(
                        self.state
                            .remove(&key)
                            .expect("only what is there is deleted"),
                    ),
                }
            }
        }
        assert_eq!(
            self.state, listed,
            "kill {kill}: the watch tells something else than the list"
        );
        (self.head, self.checked) = (page.revision, page.revision);
        store.close().await;
    }

    /// A writer waits for each acknowledgement, so it is exactly at the last of them or one further.
    fn check_writer(&mut self, writer: u64, listed: &BTreeMap<String, Entry>, kill: usize) {
        let acknowledged = self.counts.get(&writer).copied().unwrap_or(0);
        let count = listed.get(&format!("/{writer}/count")).map_or(0, number);
        assert!(
            count == acknowledged || count == acknowledged + 1,
            "kill {kill}: writer {writer} is at {count}, acknowledged was {acknowledged}"
        );
        self.counts.insert(writer, count);
        for last in (count + 1).saturating_sub(SLOTS).max(1)..=count {
            let entry = listed.get(&format!("/{writer}/slot/{:02}", last % SLOTS));
            let expected = (!last.is_multiple_of(7)).then(|| value(writer, last));
            assert_eq!(
                entry.map(|entry| entry.value.to_vec()),
                expected,
                "kill {kill}: writer {writer}, {last}"
            );
            if let Some(entry) = entry
                && let Some(told) = self.revisions.get(&entry.modified)
            {
                assert_eq!(
                    *told,
                    (writer, last),
                    "kill {kill}: revision {}",
                    entry.modified
                );
            }
        }
    }
}
