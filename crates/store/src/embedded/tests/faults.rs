//! What the store does on a disk that fails.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::sleep;

use super::{check_log, image};
use crate::{
    Config, Error, Store, Txn,
    conformance::{State, applied},
    embedded::faulty::{Change, FaultyDisk},
};

async fn open(disk: &Arc<FaultyDisk>) -> Store {
    let config = Config {
        log_revisions_max: 12,
        ..Config::disk(disk.clone())
    };
    Store::embedded(config)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

async fn put(store: &Store, i: u64) -> Result<u64, Error> {
    store
        .commit(Txn::new().put(
            format!("{}", i % 7),
            vec![i as u8; (i as usize * 97) % 3000],
        ))
        .await
}

/// Random transactions, the power goes at a random call to the disk, and what comes back is exactly the state of a revision
/// that is at least the acknowledged one.
#[tokio::test(start_paused = true)]
async fn a_power_failure_loses_nothing_that_was_acknowledged() {
    let seeds = std::env::var("PHALANX_SOAK").map_or(100, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        power_failure(seed).await;
    }
}

async fn power_failure(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = FaultyDisk::with(Vec::new());
    let mut states = BTreeMap::from([(0, State::new())]);
    let store = open(&disk).await;
    disk.set(|state| {
        state.random = seed;
        state.crash_at = Some(state.calls + random.u64(1..250));
    });
    for step in 0..30u64 {
        let mut txn = Txn::new();
        for key in 0..random.u64(1..6) {
            txn = match random.u8(0..4) {
                0 => txn.delete(format!("{key}")),
                _ => txn.put(format!("{key}"), vec![step as u8; random.usize(0..2000)]),
            };
        }
        let state = states.last_entry().unwrap().get().clone();
        let after = applied(&state, &txn, store.revision() + 1).unwrap();
        let revision = store.commit(txn).await.unwrap();
        if states.contains_key(&revision) {
            continue;
        }
        states.insert(revision, after);
        disk.acknowledged.store(revision, Ordering::SeqCst);
    }
    let (image, acknowledged) = disk.set(|state| {
        let unreached = (
            state.crash_image(),
            disk.acknowledged.load(Ordering::SeqCst),
        );
        state.crashed.take().unwrap_or(unreached)
    });

    let disk = FaultyDisk::with(image);
    let store = open(&disk).await;
    let page = store.list("").await.unwrap();
    assert!(
        page.revision >= acknowledged,
        "seed {seed}: {} after {acknowledged}",
        page.revision
    );
    let expected: Vec<_> = states[&page.revision].values().cloned().collect();
    assert_eq!(page.entries, expected, "seed {seed}");
    check_log(&store).await;
    assert_eq!(
        put(&store, 1).await.unwrap(),
        page.revision + 1,
        "seed {seed}"
    );
    store.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_at_any_write_is_read_only_until_there_is_space() {
    for fit in 0.. {
        let disk = FaultyDisk::with(Vec::new());
        let store = open(&disk).await;
        for i in 0..20 {
            put(&store, i).await.unwrap();
        }
        let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
        let before = image(&store).await;
        let mut watch = store.watch("", before.2).await.unwrap();
        disk.set(|state| state.fit = Some(fit));
        let big = Txn::new().put("big", vec![1; 300_000]).put("3", "x");
        match store.commit(big).await {
            Ok(_) => {
                assert!(fit > 3, "the disk was asked for more");
                return;
            }
            Err(Error::ReadOnly { reason }) => assert!(!reason.is_empty()),
            Err(error) => panic!("with {fit} writes: {error}"),
        }
        assert!(store.status().read_only.is_some());
        assert!(matches!(put(&store, 1).await, Err(Error::ReadOnly { .. })));
        assert_eq!(image(&store).await, before);
        for revision in before.2 + 1..=before.1 {
            assert_eq!(watch.next().await.unwrap().unwrap().revision, revision);
        }
        store.keep_alive(lease).await.unwrap();

        sleep(Duration::from_secs(60)).await;
        assert!(store.status().read_only.is_some());
        disk.set(|state| state.fit = None);
        sleep(Duration::from_secs(20)).await;
        assert_eq!(store.status().read_only, None);
        let revision = put(&store, 1).await.unwrap();
        assert_eq!(revision, before.1 + 1);
        assert_eq!(watch.next().await.unwrap().unwrap().revision, revision);
        let after = image(&store).await;
        store.close().await;
        let durable = disk.set(|state| state.durable.clone());
        let store = open(&FaultyDisk::with(durable)).await;
        assert_eq!(image(&store).await, after, "with {fit} writes");
        check_log(&store).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_on_a_full_disk_opens_and_reads() {
    let disk = FaultyDisk::with(Vec::new());
    let store = open(&disk).await;
    let lease = store.grant(Duration::from_secs(5)).await.unwrap();
    store
        .commit(Txn::new().put_leased("leased", "", lease))
        .await
        .unwrap();
    for i in 0..20 {
        put(&store, i).await.unwrap();
    }
    let before = image(&store).await;
    // Without closing it, as after a crash, so that opening has something to repair.
    let crashed = disk.set(|state| state.durable.clone());

    let disk = FaultyDisk::with(crashed);
    disk.set(|state| state.fit = Some(0));
    let store = open(&disk).await;
    assert_eq!(image(&store).await, before);
    check_log(&store).await;
    assert!(matches!(put(&store, 1).await, Err(Error::ReadOnly { .. })));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(
        image(&store).await,
        before,
        "nothing expires while nothing can be written"
    );

    disk.set(|state| state.fit = None);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(store.status().read_only, None);
    assert_eq!(store.get("leased").await.unwrap(), None);
    put(&store, 1).await.unwrap();
}

#[tokio::test]
async fn a_failed_sync_is_final() {
    let disk = FaultyDisk::with(Vec::new());
    let store = open(&disk).await;
    for i in 0..20 {
        put(&store, i).await.unwrap();
    }
    let before = image(&store).await;
    let fatal = tokio::spawn({
        let store = store.clone();
        async move { store.fatal().await }
    });
    disk.set(|state| state.sync_fails = true);
    let refused = put(&store, 1).await;
    assert!(
        matches!(&refused, Err(Error::Fatal { reason }) if reason.contains("sync")),
        "{refused:?}"
    );
    assert!(fatal.await.unwrap().contains("the disk is gone"));

    // The disk works again, and is not trusted again.
    disk.set(|state| state.sync_fails = false);
    assert!(matches!(put(&store, 1).await, Err(Error::Fatal { .. })));
    assert!(matches!(
        store.grant(Duration::from_secs(1)).await,
        Err(Error::Fatal { .. })
    ));
    assert_eq!(image(&store).await, before);
    assert!(store.status().fatal.is_some());
    store.close().await;

    let durable = disk.set(|state| state.durable.clone());
    let store = open(&FaultyDisk::with(durable)).await;
    assert_eq!(image(&store).await, before);
}

#[tokio::test]
async fn a_panic_under_the_writer_is_final_and_reads_go_on() {
    let disk = FaultyDisk::with(Vec::new());
    let store = open(&disk).await;
    put(&store, 1).await.unwrap();
    let before = image(&store).await;
    let mut watch = store.watch("", 0).await.unwrap();
    disk.set(|state| state.sync_panics = true);
    assert!(matches!(put(&store, 2).await, Err(Error::Fatal { .. })));
    assert!(matches!(put(&store, 3).await, Err(Error::Fatal { .. })));
    assert!(!store.fatal().await.is_empty());
    assert_eq!(image(&store).await, before);
    assert_eq!(watch.next().await.unwrap().unwrap().revision, 1);
    disk.set(|state| state.sync_panics = false);
    store.close().await;
    assert!(matches!(store.get("1").await, Err(Error::Closed)));
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_broken_write_is_final() {
    let disk = FaultyDisk::with(Vec::new());
    let store = open(&disk).await;
    put(&store, 1).await.unwrap();
    disk.set(|state| state.write_fails = true);
    let refused = put(&store, 2).await;
    assert!(
        matches!(&refused, Err(Error::Fatal { reason }) if reason.contains("a broken sector")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_acknowledgement_comes_after_a_sync_and_heartbeats_write_nothing() {
    let disk = FaultyDisk::with(Vec::new());
    let store = open(&disk).await;
    let lease = store.grant(Duration::from_secs(30)).await.unwrap();
    for i in 0..5 {
        let syncs = disk.set(|state| state.syncs);
        put(&store, i).await.unwrap();
        disk.set(|state| {
            assert!(state.syncs > syncs);
            // The engine gives back free space after the sync; that may get lost.
            assert!(
                state
                    .unsynced
                    .iter()
                    .all(|change| matches!(change, Change::Size(_)))
            );
        });
    }
    let calls = disk.set(|state| state.calls);
    for _ in 0..1000 {
        store.keep_alive(lease).await.unwrap();
    }
    assert_eq!(disk.set(|state| state.calls), calls);
}
