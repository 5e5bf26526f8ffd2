//! etcd is killed with SIGKILL again and again under writers and a watch. What was acknowledged must be there, the watch
//! must find every revision of it in order, and what was said to be unknown is one of the two.
//! `PHALANX_SOAK=100` kills a hundred times.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinHandle, time::sleep};

use super::{Fixture, next, settled};
use crate::{
    Error, EventKind, Revision, Store, Txn,
    conformance::{State, fold},
};

const KILLS: usize = 3;
const WRITERS: u64 = 6;
/// Acknowledged before each kill, so that there is something to lose.
const WRITES: usize = 20;

#[derive(Default)]
struct Written {
    /// The count that each acknowledged revision stored.
    acknowledged: BTreeMap<Revision, u64>,
    unknown: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_etcd_loses_nothing_acknowledged_and_no_watch_skips() {
    let kills = std::env::var("PHALANX_SOAK").map_or(KILLS, |kills| {
        kills.parse().expect("PHALANX_SOAK is a number")
    });
    let Fixture { store, mut server } = Fixture::start().await;
    let from = store.commit(Txn::new().put("start", "")).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let writers: Vec<JoinHandle<Written>> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(store.clone(), writer, stop.clone(), done.clone())))
        .collect();
    let follower = tokio::spawn(follow(store.clone(), from));

    for _ in 0..kills {
        let enough = done.load(Ordering::Relaxed) + WRITES;
        tokio::time::timeout(Duration::from_secs(120), async {
            while done.load(Ordering::Relaxed) < enough {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("writes go on");
        sleep(Duration::from_millis(fastrand::u64(0..300))).await;
        server.kill();
        sleep(Duration::from_millis(fastrand::u64(0..300))).await;
        server.restart().await.unwrap();
    }
    sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let mut written = Vec::new();
    for writer in writers {
        written.push(writer.await.unwrap());
    }
    settled(&store, Txn::new().put("end", "")).await;
    let (state, stored) = follower.await.unwrap();

    let page = store.list("").await.unwrap();
    assert_eq!(state.into_values().collect::<Vec<_>>(), page.entries);
    let (mut acknowledged, mut unknown) = (0, 0);
    for (writer, written) in written.into_iter().enumerate() {
        for (revision, count) in &written.acknowledged {
            let told = stored.get(revision).copied();
            assert_eq!(told, Some((writer as u64, *count)), "revision {revision}");
        }
        acknowledged += written.acknowledged.len();
        unknown += written.unknown;
    }
    println!("{kills} kills, {acknowledged} acknowledged, {unknown} unknown");
    assert!(acknowledged >= kills * WRITES, "only {acknowledged} writes");
}

/// Counts up. The even ones compare, the odd ones just put.
async fn write(
    store: Store,
    writer: u64,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
) -> Written {
    let key = format!("w/{writer}");
    let mut written = Written::default();
    let (mut count, mut at) = (0, None);
    while !stop.load(Ordering::Relaxed) {
        let txn = Txn::new().put(&key, (count + 1).to_string());
        let txn = match at {
            Some(at) if writer.is_multiple_of(2) => txn.expect_modified(&key, at),
            None if writer.is_multiple_of(2) => txn.expect_absent(&key),
            _ => txn,
        };
        match store.commit(txn).await {
            Ok(revision) => {
                count += 1;
                done.fetch_add(1, Ordering::Relaxed);
                at = Some(revision);
                let twice = written.acknowledged.insert(revision, count);
                assert_eq!(twice, None, "revision {revision} was given twice");
            }
            // Nobody else writes the key, so nothing but itself can be in the way.
            Err(Error::Conflict { found, .. }) => {
                panic!("writer {writer} at {at:?} found {found:?}")
            }
            Err(Error::Unreachable { .. }) => {}
            Err(Error::Unknown { .. }) => {
                written.unknown += 1;
                let Ok(entry) = store.get(&key).await else {
                    continue;
                };
                let is = entry.as_ref().map_or(0, |entry| number(&entry.value));
                assert!(is == count || is == count + 1, "{is} after {count}");
                (count, at) = (is, entry.map(|entry| entry.modified));
            }
            Err(error) => panic!("{error}"),
        }
    }
    written
}

/// What a watch tells until the end: the state, and which count of which writer each revision stored.
async fn follow(store: Store, from: Revision) -> (State, BTreeMap<Revision, (u64, u64)>) {
    let start = store.get("start").await.unwrap().unwrap();
    let (mut state, mut stored) = (State::from([(start.key.clone(), start)]), BTreeMap::new());
    let mut watch = store.watch("", from).await.unwrap();
    let mut at = from;
    loop {
        let batch = next(&mut watch).await.unwrap();
        assert!(batch.revision > at, "{} came after {at}", batch.revision);
        at = batch.revision;
        for event in &batch.events {
            let EventKind::Put(entry) = &event.kind else {
                continue;
            };
            if let Some(writer) = entry.key.strip_prefix("w/") {
                // Each put of a key is told: versions have no gap.
                let before = state.get(&entry.key).map_or(0, |before| before.version);
                assert_eq!(entry.version, before + 1);
                stored.insert(at, (writer.parse().unwrap(), number(&entry.value)));
            }
        }
        let is_end = batch.events.iter().any(|event| event.key() == "end");
        fold(&mut state, batch);
        if is_end {
            return (state, stored);
        }
    }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}
