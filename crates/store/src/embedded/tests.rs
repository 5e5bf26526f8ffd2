use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::MemoryDisk;
use crate::{
    Config, Entry, Error, LeaseId, Reason, Revision, Store, Txn,
    conformance::{State, fold},
};

mod faults;
mod files;
mod restore;

mod in_memory {
    crate::conformance!(
        #[tokio::test(start_paused = true)]
        crate::Store::memory().await.unwrap()
    );
}

mod in_a_file {
    use crate::{Config, Store};

    crate::conformance!(
        #[tokio::test(start_paused = true)]
        {
            let directory = tempfile::tempdir().unwrap();
            // Removed while in use, so that the test needs no end.
            Store::embedded(Config::at(directory.path())).await.unwrap()
        }
    );
}

/// Everything that outlives a restart.
pub async fn image(store: &Store) -> (Vec<Entry>, Revision, Revision, usize) {
    let page = store.list("").await.unwrap();
    let status = store.status();
    (page.entries, page.revision, status.oldest, status.leases)
}

/// Reads the whole kept log and checks that it is gap-free, for a store whose floor is 0 ends in what it lists.
pub async fn check_log(store: &Store) {
    let status = store.status();
    let mut watch = store.watch("", status.oldest).await.unwrap();
    let mut state = State::new();
    for revision in status.oldest + 1..=status.revision {
        let batch = watch.next().await.unwrap().unwrap();
        assert_eq!(batch.revision, revision);
        if status.oldest == 0 {
            fold(&mut state, batch);
        }
    }
    if status.oldest == 0 {
        assert_eq!(
            state.into_values().collect::<Vec<_>>(),
            store.list("").await.unwrap().entries
        );
    }
}

fn small_log(disk: &Arc<MemoryDisk>, revisions: u64) -> Config {
    Config {
        log_revisions_max: revisions,
        ..Config::disk(disk.clone())
    }
}

#[tokio::test]
async fn each_transaction_adds_one_to_the_revision() {
    let store = Store::memory().await.unwrap();
    assert_eq!(store.revision(), 0);
    for expected in 1..10 {
        assert_eq!(
            store
                .commit(Txn::new().put("a", "").put("b", ""))
                .await
                .unwrap(),
            expected
        );
        assert_eq!(
            store.commit(Txn::new().delete("c")).await.unwrap(),
            expected
        );
        assert_eq!(store.revision(), expected);
    }
}

#[tokio::test]
async fn writers_share_a_sync() {
    let store = Store::memory().await.unwrap();
    let writers: Vec<_> = (0..64)
        .map(|w| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    store
                        .commit(Txn::new().put(format!("{w}"), "x"))
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let status = store.status();
    assert_eq!((status.revision, status.written), (1280, 1280));
    assert!(status.groups < 1280 / 8, "{} groups", status.groups);
}

#[tokio::test(start_paused = true)]
async fn what_was_there_is_there_after_a_restart() {
    let disk = Arc::new(MemoryDisk::default());
    let store = Store::embedded(Config::disk(disk.clone())).await.unwrap();
    let lease = store.grant(Duration::from_secs(30)).await.unwrap();
    for i in 0..50 {
        let key = format!("{}", i % 20);
        let txn = if i % 7 == 6 {
            Txn::new().delete(key)
        } else {
            Txn::new().put(key, i.to_string())
        };
        store
            .commit(txn.put_leased(format!("leased {}", i % 3), "x", lease))
            .await
            .unwrap();
    }
    let before = image(&store).await;
    store.close().await;
    assert!(matches!(store.get("1").await, Err(Error::Closed)));
    assert!(matches!(store.commit(Txn::new()).await, Err(Error::Closed)));

    let store = Store::embedded(Config::disk(disk)).await.unwrap();
    assert_eq!(image(&store).await, before);
    check_log(&store).await;
    assert_eq!(store.revoke(lease).await.unwrap(), before.1 + 1);
    assert_eq!(store.list("leased").await.unwrap().entries, []);
}

#[tokio::test]
async fn a_compaction_of_everything_leaves_the_revision() {
    let disk = Arc::new(MemoryDisk::default());
    let store = Store::embedded(Config::disk(disk.clone())).await.unwrap();
    store.commit(Txn::new().put("kept", "x")).await.unwrap();
    store.commit(Txn::new().put("gone", "x")).await.unwrap();
    let head = store.commit(Txn::new().delete("gone")).await.unwrap();
    store.compact(head + 1).await.unwrap();
    assert_eq!(store.status().oldest, head);
    assert_eq!(store.status().log_bytes, 0);
    store.close().await;

    let store = Store::embedded(Config::disk(disk)).await.unwrap();
    assert_eq!((store.revision(), store.status().oldest), (head, head));
    assert_eq!(store.get("kept").await.unwrap().unwrap().modified, 1);
    assert_eq!(
        store.commit(Txn::new().put("a", "")).await.unwrap(),
        head + 1
    );
}

#[tokio::test]
async fn the_log_is_bounded_in_revisions_and_what_lives_stays() {
    let disk = Arc::new(MemoryDisk::default());
    let store = Store::embedded(small_log(&disk, 100)).await.unwrap();
    store.commit(Txn::new().put("first", "x")).await.unwrap();
    for i in 0..1000 {
        let key = format!("{}", i * 13 % 300);
        let txn = if i % 3 == 2 {
            Txn::new().delete(key)
        } else {
            Txn::new().put(key, i.to_string())
        };
        store.commit(txn.put("count", i.to_string())).await.unwrap();
        let status = store.status();
        assert!(
            status.revision - status.oldest <= 100 + 100 / 64 + 1,
            "{status:?}"
        );
    }
    let before = image(&store).await;
    let log_bytes = store.status().log_bytes;
    assert_eq!(store.get("first").await.unwrap().unwrap().modified, 1);
    check_log(&store).await;
    store.close().await;
    let store = Store::embedded(small_log(&disk, 100)).await.unwrap();
    assert_eq!(image(&store).await, before);
    assert_eq!(store.status().log_bytes, log_bytes);
    check_log(&store).await;

    // Records that were replaced after the floor had passed them go, too.
    let head = store.revision();
    for entry in before.0 {
        store.commit(Txn::new().delete(entry.key)).await.unwrap();
    }
    store.compact(store.revision() + 1).await.unwrap();
    assert!(store.revision() > head);
    store.close().await;
    let engine = super::Engine::open(disk).unwrap();
    let mut left = Vec::new();
    engine
        .walk(0, |place, key, _| {
            left.push(format!("{place:?} {key}"));
            true
        })
        .unwrap();
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn the_log_is_bounded_in_bytes() {
    let config = Config {
        log_bytes_max: 64 << 10,
        ..Config::memory()
    };
    let store = Store::embedded(config).await.unwrap();
    for i in 0..300 {
        store
            .commit(Txn::new().put(format!("{}", i % 5), vec![0; 4 << 10]))
            .await
            .unwrap();
        assert!(
            store.status().log_bytes <= (64 << 10) + (64 << 4),
            "{:?}",
            store.status()
        );
    }
    assert!(store.status().oldest > 250);
    check_log(&store).await;
}

#[tokio::test]
async fn a_watch_that_falls_out_of_the_log_is_told() {
    let store = Store::embedded(small_log(&Arc::default(), 100))
        .await
        .unwrap();
    store.commit(Txn::new().put("a", "")).await.unwrap();
    let mut watch = store.watch("", 0).await.unwrap();
    for i in 0..300 {
        store
            .commit(Txn::new().put("a", i.to_string()))
            .await
            .unwrap();
    }
    match watch.next().await {
        Some(Err(Error::Compacted { from: 0, oldest })) => {
            assert_eq!(oldest, store.status().oldest)
        }
        other => panic!("{other:?}"),
    }
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_watch_ends_after_the_last_batch_when_the_store_is_closed() {
    let store = Store::memory().await.unwrap();
    let mut watch = store.watch("", 0).await.unwrap();
    for _ in 0..5 {
        store.commit(Txn::new().put("a", "")).await.unwrap();
    }
    store.close().await;
    for revision in 1..=5 {
        assert_eq!(watch.next().await.unwrap().unwrap().revision, revision);
    }
    assert!(watch.next().await.is_none());
    store.close().await;
}

#[tokio::test]
async fn a_waiting_watch_ends_when_the_last_handle_goes() {
    let store = Store::memory().await.unwrap();
    let mut watch = store.watch("", 0).await.unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    drop(store);
    assert!(waiting.await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_restart_grants_leases_one_ttl_of_grace() {
    const TTL: Duration = Duration::from_secs(30);
    let disk = Arc::new(MemoryDisk::default());
    let store = Store::embedded(Config::disk(disk.clone())).await.unwrap();
    let lease = store.grant(TTL).await.unwrap();
    store
        .commit(Txn::new().put_leased("a", "", lease))
        .await
        .unwrap();
    sleep(Duration::from_secs(29)).await;
    store.close().await;
    sleep(Duration::from_secs(3600)).await;

    let store = Store::embedded(Config::disk(disk.clone())).await.unwrap();
    let restarted = Instant::now();
    sleep(Duration::from_secs(29)).await;
    assert!(store.get("a").await.unwrap().is_some());
    let mut watch = store.watch("", store.revision()).await.unwrap();
    let batch = watch.next().await.unwrap().unwrap();
    assert_eq!(batch.events, [crate::Event::delete("a", Reason::Expired)]);
    let late = restarted.elapsed() - TTL;
    assert!(late < Duration::from_millis(10), "{late:?}");
    store.close().await;

    // The dead lease's number is not given to another.
    let store = Store::embedded(Config::disk(disk)).await.unwrap();
    assert!(store.grant(TTL).await.unwrap() > lease);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_dead_at_its_deadline_to_the_moment() {
    let store = Store::memory().await.unwrap();
    let lease = store.grant(Duration::from_secs(5)).await.unwrap();
    sleep(Duration::from_millis(4990)).await;
    assert_eq!(
        store.keep_alive(lease).await.unwrap(),
        Duration::from_secs(5)
    );
    sleep(Duration::from_millis(5010)).await;
    assert!(matches!(
        store.keep_alive(lease).await,
        Err(Error::LeaseNotFound { .. })
    ));
    let late = store.commit(Txn::new().put_leased("a", "", lease)).await;
    assert!(matches!(late, Err(Error::LeaseNotFound { .. })));
    assert_eq!(store.status().leases, 0);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_leases_that_expire_together_all_go() {
    let store = Store::memory().await.unwrap();
    let mut leases: Vec<LeaseId> = Vec::new();
    for i in 0..1000 {
        let lease = store.grant(Duration::from_secs(10)).await.unwrap();
        store
            .commit(Txn::new().put_leased(format!("{i}"), "", lease))
            .await
            .unwrap();
        leases.push(lease);
    }
    sleep(Duration::from_secs(9)).await;
    store.keep_alive(leases[7]).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    let left = store.list("").await.unwrap().entries;
    assert_eq!(
        left.iter()
            .map(|entry| entry.key.as_str())
            .collect::<Vec<_>>(),
        ["7"]
    );
    assert_eq!(store.status().leases, 1);
}
