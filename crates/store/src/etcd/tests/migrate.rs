//! From an embedded store to etcd: everything or nothing, and no revision that goes back.

use phalanx_testkit::etcd::Etcd as Server;

use super::*;
use crate::{
    Backup,
    backup::REVISIONS_SKIPPED,
    etcd::{Migrated, migrate},
};

/// Of a store that was in use: with a large value, many small ones, and a leased key.
async fn backup() -> Backup {
    let store = Store::memory().await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let leased = Txn::new().put_leased("leased", "", lease);
    store.commit(leased).await.unwrap();
    for i in 0..250 {
        let put = Txn::new().put(format!("k/{i:03}"), format!("{i}"));
        store.commit(put).await.unwrap();
    }
    let large = Txn::new().put("large", vec![7; 4 << 20]);
    store.commit(large.delete("k/000")).await.unwrap();
    store.backup().await.unwrap()
}

async fn run(backup: &Backup, server: &Server) -> Result<Migrated> {
    migrate(backup, config(server), |_, _| {}).await
}

fn content(entries: Vec<crate::Entry>) -> Vec<(String, bytes::Bytes)> {
    entries.into_iter().map(|e| (e.key, e.value)).collect()
}

mod as_every_store {
    use super::*;

    /// What has to do with revisions, on a store whose own are ahead of etcd's.
    async fn shifted() -> Fixture {
        let server = Server::start(&[]).await.unwrap();
        let none = Backup {
            revision: 77,
            ..Backup::default()
        };
        run(&none, &server).await.unwrap();
        let store = Store::etcd(config(&server)).await.unwrap();
        assert!(store.list("").await.unwrap().revision > REVISIONS_SKIPPED);
        Fixture { store, server }
    }

    crate::conformance!(@all
        [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]]
        [shifted().await.store]
        a_put_reads_back_with_its_revisions
        a_conflict_changes_nothing_and_says_what_was_found
        a_watch_from_a_page_continues_it
        a_watch_from_the_past_delivers_everything_since
        a_watch_from_before_the_compaction_is_told_the_oldest
        a_revision_that_is_not_reached_is_refused
        a_revoked_lease_deletes_its_keys
        many_and_large_changes_are_one_revision
        random_transactions_agree_with_a_model
    );
}

#[tokio::test]
async fn a_migrated_store_holds_everything_and_its_revisions_go_on() {
    let server = Server::start(&[]).await.unwrap();
    let backup = backup().await;
    let migrated = run(&backup, &server).await.unwrap();
    assert_eq!((migrated.entries, migrated.resumed), (250, 0));
    assert!(migrated.revision > backup.revision + REVISIONS_SKIPPED);

    let store = Store::etcd(config(&server)).await.unwrap();
    let page = store.list("").await.unwrap();
    assert_eq!(content(page.entries), content(backup.entries.clone()));
    let old = store.watch("", backup.revision).await.unwrap_err();
    assert!(
        matches!(old, Error::Compacted { from, oldest } if from == backup.revision && oldest > from),
        "{old:?}"
    );
    let entry = backup.entries.last().unwrap();
    let stale = Txn::new()
        .expect_modified(&entry.key, entry.modified)
        .put(&entry.key, "");
    assert!(
        matches!(store.commit(stale).await, Err(Error::Conflict { found: Some(at), .. }) if at > backup.revision)
    );
    let next = store.commit(Txn::new().put("next", "")).await.unwrap();
    assert!(next >= migrated.revision);

    // There is something now.
    let again = run(&backup, &server).await;
    assert!(matches!(again, Err(Error::NotEmpty { .. })), "{again:?}");
}

#[tokio::test]
async fn a_prefix_in_use_is_left_alone() {
    let Fixture { store, server } = Fixture::start().await;
    store.commit(Txn::new().put("mine", "1")).await.unwrap();
    let refused = run(&backup().await, &server).await;
    assert!(
        matches!(&refused, Err(Error::NotEmpty { found, .. }) if found == "mine"),
        "{refused:?}"
    );
    assert_eq!(store.list("").await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn an_interrupted_migration_is_used_by_nobody_and_can_be_gone_on_with() {
    let server = Server::start(&[]).await.unwrap();
    let mut backup = backup().await;
    let (progressed, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let interrupted = migrate(&backup, config(&server), move |done, _| {
        let _ = progressed.send(done);
    });
    tokio::select! {
        done = interrupted => panic!("it was too fast: {done:?}"),
        done = progress.recv() => assert!(done.is_some()),
    }
    let refused = Store::etcd(config(&server)).await.unwrap_err();
    assert!(refused.to_string().contains("phalanx migrate"), "{refused}");

    // What it brought and is no more is taken away again.
    backup.entries.remove(0);
    let migrated = run(&backup, &server).await.unwrap();
    assert!(migrated.resumed > 0, "{migrated:?}");
    let store = Store::etcd(config(&server)).await.unwrap();
    let page = store.list("").await.unwrap();
    assert_eq!(content(page.entries), content(backup.entries));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_migrations_at_once_the_first_writes_nothing_any_more() {
    let server = Server::start(&[]).await.unwrap();
    let backup = backup().await;
    let other = Backup {
        entries: backup.entries[..3].to_vec(),
        ..backup.clone()
    };
    let (progressed, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let first = {
        let (backup, config) = (backup.clone(), config(&server));
        tokio::spawn(async move {
            let mut is_first = true;
            migrate(&backup, config, move |_, _| {
                if std::mem::take(&mut is_first) {
                    let _ = progressed.send(());
                    let _ = tokio::task::block_in_place(|| held.recv());
                }
            })
            .await
        })
    };
    progress.recv().await.unwrap();
    let done = run(&other, &server).await.unwrap();
    assert_eq!(done.entries, 3);
    go_on.send(()).unwrap();
    let refused = first.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("somebody else"), "{refused}");
    let store = Store::etcd(config(&server)).await.unwrap();
    let page = store.list("").await.unwrap();
    assert_eq!(content(page.entries), content(other.entries));
}
