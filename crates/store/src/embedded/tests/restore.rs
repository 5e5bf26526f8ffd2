//! From a backup to a directory and back.

use std::{fs, path::Path};

use super::*;
use crate::{Backup, backup::REVISIONS_SKIPPED};

async fn open(directory: &Path) -> Store {
    Store::embedded(Config::at(directory)).await.unwrap()
}

/// Of a store with a past, as it comes out of its file.
async fn backup() -> Backup {
    let store = Store::memory().await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    for i in 0..9 {
        let txn = Txn::new()
            .put(format!("{}", i % 4), format!("{i}"))
            .put(format!("twin {}", i % 4), vec![i; 3 << 20]);
        store.commit(txn).await.unwrap();
    }
    let txn = Txn::new().put_leased("leased", "", lease).delete("0");
    store.commit(txn).await.unwrap();
    let taken = store.backup().await.unwrap();
    let file: Vec<u8> = taken.clone().encode().flatten().collect();
    let read = Backup::read(&mut &file[..], |_, _| {}).unwrap();
    assert_eq!((read.entries.len(), &read), (7, &taken));
    read
}

#[tokio::test]
async fn a_restored_store_has_its_entries_with_their_revisions_and_goes_on_far_above() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("data");
    let backup = backup().await;
    let restored = crate::restore(&directory, &backup, false).unwrap();
    let head = backup.revision + REVISIONS_SKIPPED;
    assert_eq!((restored.revision, restored.aside), (head, None));
    for _ in 0..2 {
        let store = open(&directory).await;
        let page = store.list("").await.unwrap();
        assert_eq!(page.entries, backup.entries);
        assert!(page.revision >= head);
        let of_before = store.watch("", backup.revision).await.unwrap_err();
        assert!(matches!(of_before, Error::Compacted { oldest, .. } if oldest == head));
        store.close().await;
    }
    let store = open(&directory).await;
    let mut watch = store.watch("", head).await.unwrap();
    let expected = backup.entries[0].clone();
    let txn = Txn::new()
        .expect_modified(&expected.key, expected.modified)
        .put(&expected.key, "new");
    let revision = store.commit(txn).await.unwrap();
    assert_eq!(revision, head + 1);
    assert_eq!(watch.next().await.unwrap().unwrap().revision, revision);
    let changed = store.get(&expected.key).await.unwrap().unwrap();
    assert_eq!(
        (changed.created, changed.version),
        (expected.created, expected.version + 1)
    );
    // No lease of before can be taken for one of now.
    assert!(store.grant(Duration::from_secs(1)).await.unwrap().0 >= head);
}

#[tokio::test]
async fn a_directory_with_something_in_it_is_left_alone_unless_forced() {
    let folder = tempfile::tempdir().unwrap();
    let backup = backup().await;
    let store = open(folder.path()).await;
    store.commit(Txn::new().put("old", "1")).await.unwrap();

    let in_use = crate::restore(folder.path(), &backup, true).unwrap_err();
    assert!(matches!(in_use, Error::InUse { .. }), "{in_use:?}");
    store.close().await;
    drop(store);
    let refused = crate::restore(folder.path(), &backup, false).unwrap_err();
    assert!(
        matches!(&refused, Error::NotEmpty { found, .. } if found == "store.redb"),
        "{refused:?}"
    );

    let aside = crate::restore(folder.path(), &backup, true)
        .unwrap()
        .aside
        .unwrap();
    let store = open(folder.path()).await;
    assert_eq!(store.list("").await.unwrap().entries, backup.entries);
    store.close().await;
    drop(store);
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(aside, elsewhere.path().join("store.redb")).unwrap();
    let old = open(elsewhere.path()).await;
    assert!(old.get("old").await.unwrap().is_some());

    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("thesis.txt"), "").unwrap();
    let refused = crate::restore(other.path(), &backup, false).unwrap_err();
    assert!(matches!(&refused, Error::NotEmpty { found, .. } if found == "thesis.txt"));
}

#[tokio::test]
async fn what_an_interrupted_restore_left_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("store.redb.new"), "half of a file").unwrap();
    let backup = backup().await;
    crate::restore(folder.path(), &backup, false).unwrap();
    let store = open(folder.path()).await;
    assert_eq!(store.list("").await.unwrap().entries, backup.entries);
}
