//! Directories, locks and files that are not what they were.

use std::{fs, path::Path};

use super::{check_log, image};
use crate::{Config, Error, Store, Txn};

async fn filled(directory: &Path) -> (Vec<crate::Entry>, u64) {
    let store = Store::embedded(Config::at(directory)).await.unwrap();
    for i in 0..200u64 {
        store
            .commit(Txn::new().put(format!("{:03}", i % 60), vec![i as u8; 300]))
            .await
            .unwrap();
    }
    let (entries, revision, ..) = image(&store).await;
    store.close().await;
    (entries, revision)
}

/// Opens what is left of a store. It refuses, or shows a state that once was.
async fn open_damaged(directory: &Path, what: &str) -> bool {
    match Store::embedded(Config::at(directory)).await {
        Err(Error::Damaged {
            path,
            problem,
            hint,
        }) => {
            assert!(path.ends_with("store.redb") && !problem.is_empty() && !hint.is_empty());
            false
        }
        Err(error) => panic!("{what}: {error}"),
        Ok(store) => {
            assert!(store.revision() <= 200, "{what}");
            for entry in store.list("").await.unwrap().entries {
                assert_eq!(entry.value, vec![(entry.modified - 1) as u8; 300], "{what}");
            }
            check_log(&store).await;
            store.close().await;
            true
        }
    }
}

#[tokio::test]
async fn a_second_process_is_told_who_is_first() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::embedded(Config::at(directory.path().join("a/b")))
        .await
        .unwrap();
    let second = Store::embedded(Config::at(directory.path().join("a/b"))).await;
    let error = second.err().unwrap();
    assert!(
        matches!(&error, Error::InUse { pid: Some(pid), .. } if *pid == std::process::id()),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains(&format!("already in use by pid {}", std::process::id()))
    );
    store.close().await;
    Store::embedded(Config::at(directory.path().join("a/b")))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_directory_that_is_a_file_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "").unwrap();
    let error = Store::embedded(Config::at(&path)).await.err().unwrap();
    assert!(matches!(error, Error::Open { .. }));
    assert!(error.to_string().contains("/file"), "{error}");
}

#[tokio::test]
async fn a_start_that_was_killed_while_it_made_the_file_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("store.redb.new"), "half").unwrap();
    filled(directory.path()).await;
    assert!(!directory.path().join("store.redb.new").exists());
}

#[tokio::test]
async fn a_file_that_is_empty_or_foreign_is_refused() {
    for content in [&b""[..], b"redb", b"hello", &[0; 8192], &[0xff; 100_000]] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("store.redb"), content).unwrap();
        assert!(!open_damaged(directory.path(), "foreign").await);
        assert_eq!(
            fs::read(directory.path().join("store.redb")).unwrap(),
            content,
            "left as it was"
        );
    }
}

#[tokio::test]
async fn a_cut_file_is_refused_or_shows_an_earlier_state() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path()).await;
    let path = directory.path().join("store.redb");
    let whole = fs::read(&path).unwrap();
    for part in 1..40 {
        let length = whole.len() * part / 40 - part % 3;
        fs::write(&path, &whole[..length]).unwrap();
        open_damaged(directory.path(), &format!("cut to {length}")).await;
    }
}

#[tokio::test]
async fn a_flipped_bit_is_refused_or_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let before = filled(directory.path()).await;
    let path = directory.path().join("store.redb");
    let whole = fs::read(&path).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut refused = 0;
    for round in 0..120 {
        let mut bytes = whole.clone();
        // The header deserves more than its share.
        let at = if round % 3 == 0 {
            random.usize(0..512)
        } else {
            random.usize(0..bytes.len())
        };
        bytes[at] ^= 1 << random.u8(0..8);
        fs::write(&path, &bytes).unwrap();
        refused += u32::from(!open_damaged(directory.path(), &format!("bit at {at}")).await);
    }
    assert!(refused > 0);
    fs::write(&path, &whole).unwrap();
    let store = Store::embedded(Config::at(directory.path())).await.unwrap();
    let (entries, revision, ..) = image(&store).await;
    assert_eq!((entries, revision), before);
}
