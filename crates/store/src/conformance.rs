//! What every backend promises, as claims to run against it. A claim gets a store, which others may use at the same time,
//! and a prefix of its own. [`conformance!`](crate::conformance) makes a test of each.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use crate::{
    Batch, Entry, Error, Event, EventKind, Expect, LeaseId, Reason, Revision, Store, Txn, Watch,
};

/// Longer than any backend needs, and no time at all where time is paused.
const PATIENCE: Duration = Duration::from_secs(20);
/// etcd counts leases in whole seconds.
const TTL: Duration = Duration::from_secs(2);

/// Tests of all claims, with the attribute that makes them tests and an expression that opens the store:
/// `conformance!(#[tokio::test] Store::memory().await.unwrap());`
#[macro_export]
macro_rules! conformance {
    (#[$test:meta] $open:expr) => {
        $crate::conformance!(@all [#[$test]] [$open]
            a_put_reads_back_with_its_revisions
            a_list_is_sorted_and_stays_under_its_prefix
            a_conflict_changes_nothing_and_says_what_was_found
            of_many_that_compare_and_set_one_wins_each_round
            a_transaction_is_one_revision_and_one_batch
            what_changes_nothing_makes_no_revision
            a_key_starts_anew_after_its_delete
            a_watch_from_a_page_continues_it
            a_watch_from_the_past_delivers_everything_since
            a_watch_sees_only_its_prefix
            a_watch_dropped_while_waiting_loses_nothing
            a_lagging_watch_reads_on_without_a_gap
            a_watch_from_before_the_compaction_is_told_the_oldest
            a_revision_that_is_not_reached_is_refused
            a_lease_takes_its_keys_along_in_one_batch
            a_lease_lasts_while_it_is_kept_alive
            a_revoked_lease_deletes_its_keys
            a_put_without_the_lease_keeps_the_key
            a_key_that_changes_its_lease_ends_with_the_new_one
            a_lease_that_is_not_there_is_refused
            what_breaks_the_limits_is_refused
            many_and_large_changes_are_one_revision
            a_large_change_that_conflicts_changes_nothing
            random_transactions_agree_with_a_model
        );
    };
    (@all $test:tt [$open:expr] $($claim:ident)*) => { $($crate::conformance!(@one $test [$open] $claim);)* };
    (@one [$($test:tt)*] [$open:expr] $claim:ident) => {
        $($test)*
        async fn $claim() {
            let root = $crate::conformance::root();
            $crate::conformance::$claim(&$open, &root).await;
        }
    };
}

/// A prefix that no other claim uses.
pub fn root() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(
        "/conformance/{}-{}/",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

pub async fn a_put_reads_back_with_its_revisions(store: &Store, root: &str) {
    let key = format!("{root}a");
    assert_eq!(store.get(&key).await.unwrap(), None);
    let created = store.commit(Txn::new().put(&key, "1")).await.unwrap();
    let expected = Entry {
        key: key.clone(),
        value: Bytes::from_static(b"1"),
        created,
        modified: created,
        version: 1,
        lease: None,
    };
    assert_eq!(store.get(&key).await.unwrap(), Some(expected.clone()));

    let modified = store.commit(Txn::new().put(&key, "2")).await.unwrap();
    assert!(modified > created);
    assert!(store.revision() >= modified);
    let expected = Entry {
        value: Bytes::from_static(b"2"),
        modified,
        version: 2,
        ..expected
    };
    assert_eq!(store.get(&key).await.unwrap(), Some(expected));
}

pub async fn a_list_is_sorted_and_stays_under_its_prefix(store: &Store, root: &str) {
    let mut revision = 0;
    for key in ["b/2", "a/1", "b/1", "b", "b0", "c/1", "b/ü", "b/10"] {
        revision = store
            .commit(Txn::new().put(format!("{root}{key}"), key))
            .await
            .unwrap();
    }
    let page = store.list(&format!("{root}b/")).await.unwrap();
    let keys: Vec<&str> = page
        .entries
        .iter()
        .map(|entry| &entry.key[root.len()..])
        .collect();
    assert_eq!(keys, ["b/1", "b/10", "b/2", "b/ü"]);
    assert!(page.revision >= revision);
    assert_eq!(
        store.list(&format!("{root}none")).await.unwrap().entries,
        []
    );
    assert_eq!(store.list(root).await.unwrap().entries.len(), 8);
}

pub async fn a_conflict_changes_nothing_and_says_what_was_found(store: &Store, root: &str) {
    let (there, missing, other) = (
        format!("{root}there"),
        format!("{root}missing"),
        format!("{root}other"),
    );
    let at = store.commit(Txn::new().put(&there, "1")).await.unwrap();
    let refused = [
        (
            Txn::new().expect_absent(&there),
            Expect::Absent { key: there.clone() },
            Some(at),
        ),
        (
            Txn::new().expect_modified(&there, at + 1),
            Expect::Modified {
                key: there.clone(),
                at: at + 1,
            },
            Some(at),
        ),
        (
            Txn::new().expect_modified(&missing, at),
            Expect::Modified {
                key: missing.clone(),
                at,
            },
            None,
        ),
        (
            Txn::new().expect_exists(&missing),
            Expect::Exists {
                key: missing.clone(),
            },
            None,
        ),
    ];
    for (txn, wanted, was) in refused {
        match store.commit(txn.put(&other, "x").delete(&there)).await {
            Err(Error::Conflict {
                key,
                expected,
                found,
            }) => {
                assert_eq!(
                    (key.as_str(), &expected, found),
                    (wanted.key(), &wanted, was)
                );
            }
            done => panic!("{wanted:?} gave {done:?}"),
        }
        assert_eq!(store.get(&other).await.unwrap(), None);
        assert!(store.get(&there).await.unwrap().is_some());
    }
    let fine = Txn::new()
        .expect_modified(&there, at)
        .expect_exists(&there)
        .expect_absent(&missing);
    store
        .commit(fine.put(&other, "x").delete(&there))
        .await
        .unwrap();
    assert_eq!(store.get(&there).await.unwrap(), None);
}

pub async fn of_many_that_compare_and_set_one_wins_each_round(store: &Store, root: &str) {
    const WRITERS: u64 = 8;
    const ROUNDS: u64 = 10;
    let key = format!("{root}counter");
    store.commit(Txn::new().put(&key, "0")).await.unwrap();
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let (store, key) = (store.clone(), key.clone());
        writers.push(tokio::spawn(async move {
            for _ in 0..ROUNDS {
                loop {
                    let entry = store.get(&key).await.unwrap().unwrap();
                    let count: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                    let next = Txn::new()
                        .expect_modified(&key, entry.modified)
                        .put(&key, (count + 1).to_string());
                    match store.commit(next).await {
                        Ok(_) => break,
                        Err(Error::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let entry = store.get(&key).await.unwrap().unwrap();
    assert_eq!(entry.value, (WRITERS * ROUNDS).to_string());
    assert_eq!(entry.version, WRITERS * ROUNDS + 1);
}

pub async fn a_transaction_is_one_revision_and_one_batch(store: &Store, root: &str) {
    let key = |name: &str| format!("{root}{name}");
    let from = store.commit(Txn::new().put(key("c"), "old")).await.unwrap();
    let mut watch = store.watch(root, from).await.unwrap();
    let txn = Txn::new()
        .put(key("z"), "1")
        .delete(key("c"))
        .delete(key("never"))
        .put(key("a"), "2");
    let revision = store.commit(txn).await.unwrap();
    let fresh = |name: &str, value: &'static str| Entry {
        key: key(name),
        value: Bytes::from_static(value.as_bytes()),
        created: revision,
        modified: revision,
        version: 1,
        lease: None,
    };
    let events = vec![
        Event::put(fresh("z", "1")),
        Event::delete(key("c"), Reason::Deleted),
        Event::put(fresh("a", "2")),
    ];
    assert_eq!(next(&mut watch).await, Batch { revision, events });
    let page = store.list(root).await.unwrap();
    assert_eq!(page.entries, [fresh("a", "2"), fresh("z", "1")]);
}

pub async fn what_changes_nothing_makes_no_revision(store: &Store, root: &str) {
    let key = format!("{root}a");
    let from = store.commit(Txn::new().put(&key, "1")).await.unwrap();
    let mut watch = store.watch(root, from).await.unwrap();
    store.commit(Txn::new()).await.unwrap();
    store
        .commit(Txn::new().expect_modified(&key, from))
        .await
        .unwrap();
    store
        .commit(Txn::new().delete(format!("{root}never")))
        .await
        .unwrap();
    let revision = store.commit(Txn::new().put(&key, "2")).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, revision);
}

pub async fn a_key_starts_anew_after_its_delete(store: &Store, root: &str) {
    let key = format!("{root}a");
    for value in ["1", "2", "3"] {
        store.commit(Txn::new().put(&key, value)).await.unwrap();
    }
    let deleted = store.commit(Txn::new().delete(&key)).await.unwrap();
    let created = store
        .commit(Txn::new().expect_absent(&key).put(&key, "4"))
        .await
        .unwrap();
    let entry = store.get(&key).await.unwrap().unwrap();
    assert!(created > deleted);
    assert_eq!(
        (entry.created, entry.modified, entry.version),
        (created, created, 1)
    );
}

pub async fn a_watch_from_a_page_continues_it(store: &Store, root: &str) {
    const WRITES: u64 = 200;
    let writer = {
        let (store, root) = (store.clone(), root.to_owned());
        tokio::spawn(async move {
            let mut last = 0;
            for i in 0..WRITES {
                let key = format!("{root}{:02}", i * 7 % 23);
                let txn = if i % 5 == 4 {
                    Txn::new().delete(key)
                } else {
                    Txn::new().put(key, i.to_string())
                };
                last = store
                    .commit(txn.put(format!("{root}last"), i.to_string()))
                    .await
                    .unwrap();
            }
            last
        })
    };
    // Pages at different times, each continued by a watch, all end in the same state.
    let mut followers = Vec::new();
    for _ in 0..5 {
        let page = store.list(root).await.unwrap();
        let watch = store.watch(root, page.revision).await.unwrap();
        let state: State = page
            .entries
            .into_iter()
            .map(|entry| (entry.key.clone(), entry))
            .collect();
        followers.push((state, page.revision, watch));
        store
            .commit(Txn::new().put(format!("{root}between"), "x"))
            .await
            .unwrap();
    }
    let last = writer.await.unwrap();
    let page = store.list(root).await.unwrap();
    let end = page
        .entries
        .iter()
        .map(|entry| entry.modified)
        .max()
        .unwrap_or(last)
        .max(last);
    for (mut state, mut at, mut watch) in followers {
        while at < end {
            let batch = next(&mut watch).await;
            assert!(batch.revision > at, "{} came after {at}", batch.revision);
            at = batch.revision;
            fold(&mut state, batch);
        }
        assert_eq!(state.into_values().collect::<Vec<_>>(), page.entries);
    }
}

pub async fn a_watch_from_the_past_delivers_everything_since(store: &Store, root: &str) {
    let key = format!("{root}a");
    let mut revisions = Vec::new();
    for i in 0..20 {
        revisions.push(
            store
                .commit(Txn::new().put(&key, i.to_string()))
                .await
                .unwrap(),
        );
    }
    for start in [0, 7, 18] {
        let mut watch = store.watch(root, revisions[start]).await.unwrap();
        for (i, revision) in revisions.iter().enumerate().skip(start + 1) {
            let batch = next(&mut watch).await;
            assert_eq!(batch.revision, *revision);
            assert!(
                matches!(&batch.events[0].kind, EventKind::Put(entry) if entry.value == i.to_string())
            );
        }
        // From there it goes on with what is new.
        let later = store
            .commit(Txn::new().put(&key, revisions.len().to_string()))
            .await
            .unwrap();
        assert_eq!(next(&mut watch).await.revision, later);
        revisions.push(later);
    }
}

pub async fn a_watch_sees_only_its_prefix(store: &Store, root: &str) {
    let from = store
        .commit(Txn::new().put(format!("{root}start"), ""))
        .await
        .unwrap();
    let mut watch = store.watch(&format!("{root}b/"), from).await.unwrap();
    for key in ["a/1", "b", "b0", "c"] {
        store
            .commit(Txn::new().put(format!("{root}{key}"), "x"))
            .await
            .unwrap();
    }
    let both = Txn::new()
        .put(format!("{root}a/1"), "y")
        .put(format!("{root}b/1"), "y");
    let revision = store.commit(both).await.unwrap();
    let batch = next(&mut watch).await;
    assert_eq!(batch.revision, revision);
    let keys: Vec<&str> = batch.events.iter().map(Event::key).collect();
    assert_eq!(keys, [format!("{root}b/1")]);
}

pub async fn a_watch_dropped_while_waiting_loses_nothing(store: &Store, root: &str) {
    let from = store
        .commit(Txn::new().put(format!("{root}a"), ""))
        .await
        .unwrap();
    let mut watch = store.watch(root, from).await.unwrap();
    for i in 0..20 {
        // Polled once or a few times, then dropped.
        let _ = tokio::time::timeout(Duration::from_micros(i * 10), watch.next())
            .await
            .map(|got| panic!("{got:?}"));
        let revision = store
            .commit(Txn::new().put(format!("{root}a"), i.to_string()))
            .await
            .unwrap();
        assert_eq!(next(&mut watch).await.revision, revision);
    }
}

pub async fn a_lagging_watch_reads_on_without_a_gap(store: &Store, root: &str) {
    const WRITERS: u64 = 8;
    const WRITES: u64 = 400;
    let from = store
        .commit(Txn::new().put(format!("{root}start"), ""))
        .await
        .unwrap();
    let mut watch = store.watch(root, from).await.unwrap();
    let mut writers = Vec::new();
    for w in 0..WRITERS {
        let (store, key) = (store.clone(), format!("{root}{w}"));
        writers.push(tokio::spawn(async move {
            for i in 0..WRITES {
                store
                    .commit(Txn::new().put(&key, i.to_string()))
                    .await
                    .unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let mut seen = BTreeMap::new();
    let mut at = from;
    for _ in 0..WRITERS * WRITES {
        let batch = next(&mut watch).await;
        assert!(batch.revision > at);
        at = batch.revision;
        let [
            Event {
                kind: EventKind::Put(entry),
            },
        ] = &batch.events[..]
        else {
            panic!("{batch:?}")
        };
        let count: &mut u64 = seen.entry(entry.key.clone()).or_default();
        assert_eq!(entry.value, count.to_string());
        *count += 1;
    }
    assert!(seen.values().all(|count| *count == WRITES));
}

pub async fn a_watch_from_before_the_compaction_is_told_the_oldest(store: &Store, root: &str) {
    let key = format!("{root}a");
    let kept = store
        .commit(Txn::new().put(format!("{root}kept"), "x"))
        .await
        .unwrap();
    let mut revisions = Vec::new();
    for i in 0..10 {
        revisions.push(
            store
                .commit(Txn::new().put(&key, i.to_string()))
                .await
                .unwrap(),
        );
    }
    let mut late = store.watch(root, kept).await.unwrap();
    store.compact(revisions[5]).await.unwrap();
    let oldest = revisions[5] - 1;
    match store.watch(root, kept).await {
        Err(Error::Compacted { from, oldest: told }) => assert_eq!((from, told), (kept, oldest)),
        done => panic!("{done:?}"),
    }
    // A watch that was there before may have read what it needs, or it is told; it never skips.
    let mut at = kept;
    loop {
        match tokio::time::timeout(PATIENCE, late.next())
            .await
            .expect("the watch says something")
        {
            Some(Ok(batch)) if batch.revision == revisions[9] => break,
            Some(Ok(batch)) => {
                assert_eq!(
                    Some(&batch.revision),
                    revisions.iter().find(|revision| **revision > at)
                );
                at = batch.revision;
            }
            Some(Err(Error::Compacted { .. })) => {
                assert!(late.next().await.is_none());
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let mut watch = store.watch(root, oldest).await.unwrap();
    for revision in &revisions[5..] {
        assert_eq!(next(&mut watch).await.revision, *revision);
    }
    assert_eq!(
        store
            .get(&format!("{root}kept"))
            .await
            .unwrap()
            .unwrap()
            .modified,
        kept
    );
    assert_eq!(store.get(&key).await.unwrap().unwrap().version, 10);
    // Asking for what is forgotten already is fine.
    store.compact(revisions[2]).await.unwrap();
}

pub async fn a_revision_that_is_not_reached_is_refused(store: &Store, root: &str) {
    let revision = store
        .commit(Txn::new().put(format!("{root}a"), ""))
        .await
        .unwrap();
    let asked = revision + 1_000_000;
    match store.watch(root, asked).await {
        Err(Error::Future { asked: told, head }) => assert!(told == asked && head >= revision),
        done => panic!("{done:?}"),
    }
    assert!(matches!(
        store.compact(asked).await,
        Err(Error::Future { .. })
    ));
}

pub async fn a_lease_takes_its_keys_along_in_one_batch(store: &Store, root: &str) {
    let lease = store.grant(TTL).await.unwrap();
    let (a, b) = (format!("{root}a"), format!("{root}b"));
    store
        .commit(Txn::new().put_leased(&b, "1", lease))
        .await
        .unwrap();
    let from = store
        .commit(
            Txn::new()
                .put_leased(&a, "1", lease)
                .put(format!("{root}c"), "stays"),
        )
        .await
        .unwrap();
    assert_eq!(store.get(&a).await.unwrap().unwrap().lease, Some(lease));
    let mut watch = store.watch(root, from).await.unwrap();
    let batch = next(&mut watch).await;
    assert_eq!(
        batch.events,
        [
            Event::delete(&a, Reason::Expired),
            Event::delete(&b, Reason::Expired)
        ]
    );
    assert_eq!(store.list(root).await.unwrap().entries.len(), 1);
    assert!(matches!(
        store.keep_alive(lease).await,
        Err(Error::LeaseNotFound { .. })
    ));
}

pub async fn a_lease_lasts_while_it_is_kept_alive(store: &Store, root: &str) {
    let lease = store.grant(TTL).await.unwrap();
    let key = format!("{root}a");
    let from = store
        .commit(Txn::new().put_leased(&key, "1", lease))
        .await
        .unwrap();
    let mut watch = store.watch(root, from).await.unwrap();
    for _ in 0..6 {
        tokio::time::sleep(TTL / 2).await;
        assert_eq!(store.keep_alive(lease).await.unwrap(), TTL);
        assert!(store.get(&key).await.unwrap().is_some());
    }
    assert_eq!(
        next(&mut watch).await.events,
        [Event::delete(&key, Reason::Expired)]
    );
}

pub async fn a_revoked_lease_deletes_its_keys(store: &Store, root: &str) {
    let lease = store.grant(PATIENCE * 10).await.unwrap();
    let (a, b) = (format!("{root}a"), format!("{root}b"));
    let from = store
        .commit(
            Txn::new()
                .put_leased(&a, "1", lease)
                .put_leased(&b, "1", lease),
        )
        .await
        .unwrap();
    let mut watch = store.watch(root, from).await.unwrap();
    let revision = store.revoke(lease).await.unwrap();
    let events = vec![
        Event::delete(&a, Reason::Deleted),
        Event::delete(&b, Reason::Deleted),
    ];
    assert_eq!(next(&mut watch).await, Batch { revision, events });
    assert!(
        matches!(store.revoke(lease).await, Err(Error::LeaseNotFound { lease: told }) if told == lease)
    );
}

pub async fn a_put_without_the_lease_keeps_the_key(store: &Store, root: &str) {
    let lease = store.grant(PATIENCE * 10).await.unwrap();
    let (a, b) = (format!("{root}a"), format!("{root}b"));
    store
        .commit(
            Txn::new()
                .put_leased(&a, "1", lease)
                .put_leased(&b, "1", lease),
        )
        .await
        .unwrap();
    store.commit(Txn::new().put(&a, "2")).await.unwrap();
    store.revoke(lease).await.unwrap();
    let entry = store.get(&a).await.unwrap().unwrap();
    assert_eq!((entry.version, entry.lease), (2, None));
    assert_eq!(store.get(&b).await.unwrap(), None);
}

pub async fn a_key_that_changes_its_lease_ends_with_the_new_one(store: &Store, root: &str) {
    let (first, second) = (
        store.grant(PATIENCE * 10).await.unwrap(),
        store.grant(PATIENCE * 10).await.unwrap(),
    );
    assert_ne!(first, second);
    let key = format!("{root}a");
    store
        .commit(Txn::new().put_leased(&key, "1", first))
        .await
        .unwrap();
    store
        .commit(Txn::new().put_leased(&key, "2", second))
        .await
        .unwrap();
    store.revoke(first).await.unwrap();
    assert!(store.get(&key).await.unwrap().is_some());
    store.revoke(second).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap(), None);
}

pub async fn a_lease_that_is_not_there_is_refused(store: &Store, root: &str) {
    let lease = LeaseId(0x0123_4567_89ab);
    let key = format!("{root}a");
    let txn = Txn::new()
        .put(format!("{root}b"), "1")
        .put_leased(&key, "1", lease);
    assert!(
        matches!(store.commit(txn).await, Err(Error::LeaseNotFound { lease: told }) if told == lease)
    );
    assert!(store.list(root).await.unwrap().entries.is_empty());
    assert!(matches!(
        store.keep_alive(lease).await,
        Err(Error::LeaseNotFound { .. })
    ));
    assert!(matches!(
        store.revoke(lease).await,
        Err(Error::LeaseNotFound { .. })
    ));
}

pub async fn what_breaks_the_limits_is_refused(store: &Store, root: &str) {
    let limits = store.limits();
    let key = format!("{root}a");
    let long = |length: usize| format!("{root}{}", "k".repeat(length - root.len()));
    let refused = [
        ("no key", Txn::new().put("", "1")),
        (
            "long key",
            Txn::new().put(long(limits.key_bytes_max + 1), "1"),
        ),
        (
            "long value",
            Txn::new().put(&key, vec![0; limits.value_bytes_max + 1]),
        ),
        ("same key twice", Txn::new().put(&key, "1").delete(&key)),
        (
            "many operations",
            (0..=limits.txn_ops_max).fold(Txn::new(), |txn, i| txn.put(format!("{root}{i}"), "")),
        ),
        (
            "many expectations",
            (0..=limits.txn_expects_max)
                .fold(Txn::new(), |txn, i| txn.expect_absent(format!("{root}{i}"))),
        ),
    ];
    for (what, txn) in refused {
        let done = store.commit(txn).await;
        assert!(
            matches!(done, Err(Error::Invalid { .. })),
            "{what}: {done:?}"
        );
    }
    assert!(matches!(
        store.grant(Duration::ZERO).await,
        Err(Error::Invalid { .. })
    ));
    assert!(store.list(root).await.unwrap().entries.is_empty());

    let value = Bytes::from(vec![7; limits.value_bytes_max]);
    store
        .commit(Txn::new().put(long(limits.key_bytes_max), value.clone()))
        .await
        .unwrap();
    assert_eq!(
        store
            .get(&long(limits.key_bytes_max))
            .await
            .unwrap()
            .unwrap()
            .value,
        value
    );
}

pub async fn many_and_large_changes_are_one_revision(store: &Store, root: &str) {
    let value = |i: usize| match i {
        0 => vec![1; 9 << 20],
        1..=4 => vec![i as u8; (1 << 20) + i],
        _ => vec![i as u8; 1 << 10],
    };
    let key = |i: usize| format!("{root}{i:04}");
    let gone = format!("{root}gone");
    let from = store.commit(Txn::new().put(&gone, "")).await.unwrap();
    let mut watch = store.watch(root, from).await.unwrap();
    let many = (0..600).fold(Txn::new().delete(&gone), |txn, i| txn.put(key(i), value(i)));
    let revision = store.commit(many).await.unwrap();

    let is_right = |i: usize, entry: &Entry| {
        (entry.key == key(i) && entry.value == value(i))
            && (entry.modified, entry.version) == (revision, 1)
    };
    let page = store.list(root).await.unwrap();
    assert_eq!(page.entries.len(), 600);
    assert!(
        page.entries
            .iter()
            .enumerate()
            .all(|(i, entry)| is_right(i, entry))
    );
    assert!(is_right(0, &store.get(&key(0)).await.unwrap().unwrap()));

    // Replaced, deleted, and put under a lease before the watch comes to them.
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let last = Txn::new()
        .put(key(0), "small")
        .delete(key(1))
        .put_leased(key(2), value(0), lease);
    let last = store.commit(last).await.unwrap();
    let batch = next(&mut watch).await;
    assert_eq!((batch.revision, batch.events.len()), (revision, 601));
    for event in &batch.events {
        match &event.kind {
            EventKind::Put(entry) => {
                let i = entry.key[root.len()..].parse().unwrap();
                assert!(is_right(i, entry), "{}", entry.key);
            }
            EventKind::Delete { key, reason } => {
                assert_eq!((key, *reason), (&gone, Reason::Deleted));
            }
        }
    }
    let batch = next(&mut watch).await;
    assert_eq!((batch.revision, batch.events.len()), (last, 3));
    let leased = store.get(&key(2)).await.unwrap().unwrap();
    assert_eq!((leased.lease, leased.value.len()), (Some(lease), 9 << 20));
    store.revoke(lease).await.unwrap();
    assert_eq!(
        next(&mut watch).await.events,
        [Event::delete(key(2), Reason::Deleted)]
    );
    assert_eq!(store.get(&key(0)).await.unwrap().unwrap().value, "small");
}

pub async fn a_large_change_that_conflicts_changes_nothing(store: &Store, root: &str) {
    let (fence, large) = (format!("{root}fence"), format!("{root}large"));
    let at = store.commit(Txn::new().put(&fence, "")).await.unwrap();
    let change = Txn::new()
        .expect_absent(&fence)
        .put(&large, vec![1; 5 << 20]);
    let conflict = store.commit(change).await;
    assert!(
        matches!(conflict, Err(Error::Conflict { found, .. }) if found == Some(at)),
        "{conflict:?}"
    );
    assert_eq!(store.list(root).await.unwrap().entries.len(), 1);
}

pub async fn random_transactions_agree_with_a_model(store: &Store, root: &str) {
    let mut random = Random(0x5eed);
    let mut model = State::new();
    let from = store
        .commit(
            Txn::new()
                .put(format!("{root}first"), "")
                .delete(format!("{root}x")),
        )
        .await
        .unwrap();
    model.insert(
        format!("{root}first"),
        store.get(&format!("{root}first")).await.unwrap().unwrap(),
    );
    let mut followed = model.clone();
    let mut watch = store.watch(root, from).await.unwrap();
    let mut head = from;
    for step in 0..300 {
        let mut txn = Txn::new();
        for key in (0..8).map(|i| format!("{root}{i}")) {
            let at = model.get(&key).map(|entry| entry.modified);
            txn = match (random.below(12), at) {
                (0, Some(at)) => txn.expect_modified(&key, at),
                (0, None) => txn.expect_absent(&key),
                // Some expectations that may well be wrong.
                (1, _) => txn.expect_exists(&key),
                (2, _) if random.below(4) == 0 => txn.expect_absent(&key),
                _ => txn,
            };
            txn = match random.below(4) {
                0 => txn.put(&key, format!("{step}").repeat(random.below(200) as usize)),
                1 => txn.delete(&key),
                _ => txn,
            };
        }
        let done = store.commit(txn.clone()).await;
        match applied(&model, &txn, head) {
            None => assert!(
                matches!(done, Err(Error::Conflict { .. })),
                "{txn:?} gave {done:?}"
            ),
            Some(_) => {
                let revision = done.unwrap_or_else(|error| panic!("{txn:?}: {error}"));
                let after = applied(&model, &txn, revision).unwrap();
                if after == model {
                    continue;
                }
                assert!(revision > head);
                head = revision;
                model = after;
                let batch = next(&mut watch).await;
                assert_eq!(batch.revision, revision);
                fold(&mut followed, batch);
                assert_eq!(followed, model);
            }
        }
    }
    let page = store.list(root).await.unwrap();
    assert_eq!(page.entries, model.into_values().collect::<Vec<_>>());
}

pub type State = BTreeMap<String, Entry>;

/// Applies what a watch delivered.
pub fn fold(state: &mut State, batch: Batch) {
    for event in batch.events {
        match event.kind {
            EventKind::Put(entry) => drop(state.insert(entry.key.clone(), entry)),
            EventKind::Delete { key, .. } => assert!(
                state.remove(&key).is_some(),
                "{key} was deleted but not there"
            ),
        }
    }
}

/// What the transaction, committed at `revision`, makes of the state; nothing, if it conflicts.
pub fn applied(state: &State, txn: &Txn, revision: Revision) -> Option<State> {
    use crate::Op;
    if !txn
        .expect
        .iter()
        .all(|expect| expect.holds(state.get(expect.key()).map(|entry| entry.modified)))
    {
        return None;
    }
    let mut after = state.clone();
    for op in &txn.ops {
        match op.clone() {
            Op::Delete { key } => drop(after.remove(&key)),
            Op::Put { key, value, lease } => {
                let before = after.get(&key);
                let created = before.map_or(revision, |entry| entry.created);
                let version = before.map_or(1, |entry| entry.version + 1);
                after.insert(
                    key.clone(),
                    Entry {
                        key,
                        value,
                        created,
                        modified: revision,
                        version,
                        lease,
                    },
                );
            }
        }
    }
    Some(after)
}

async fn next(watch: &mut Watch) -> Batch {
    let batch = tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("the watch delivers in time");
    batch
        .expect("the watch goes on")
        .expect("the watch has not failed")
}

/// xorshift, for claims that must run the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
