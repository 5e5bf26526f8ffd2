//! Values in parts: nothing stays of those that are replaced, or whose writer died.

use phalanx_proto::etcdserverpb::{DeleteRangeRequest, RangeRequest};

use super::*;

/// Beyond one request.
fn large(byte: u8) -> Vec<u8> {
    vec![byte; 3 << 20]
}

async fn parts(store: &Store) -> usize {
    let shared = etcd(store);
    let (key, range_end) = shared.keys.parts();
    shared.count((key, range_end)).await.unwrap()
}

fn etcd(store: &Store) -> std::sync::Arc<crate::etcd::Shared> {
    store.as_etcd().shared.clone()
}

#[tokio::test]
async fn parts_of_what_was_replaced_are_swept_and_those_in_use_stay() {
    let Fixture {
        store,
        server: _etcd,
    } = Fixture::start().await;
    let from = store.commit(Txn::new().put("a", large(1))).await.unwrap();
    let kept = store.commit(Txn::new().put("b", large(2))).await.unwrap();
    assert_eq!(parts(&store).await, 6);
    assert_eq!(etcd(&store).sweep().await.unwrap(), 0);
    let mut watch = store.watch("", from - 1).await.unwrap();

    store.commit(Txn::new().put("a", large(3))).await.unwrap();
    store.commit(Txn::new().delete("a")).await.unwrap();
    assert_eq!(parts(&store).await, 9);
    assert_eq!(etcd(&store).sweep().await.unwrap(), 2);
    assert_eq!(parts(&store).await, 3);
    let entry = store.get("b").await.unwrap().unwrap();
    assert_eq!((entry.modified, entry.value), (kept, large(2).into()));
    // A watch that lags sees what was, also of what is swept.
    for byte in [1, 2, 3] {
        let batch = next(&mut watch).await.unwrap();
        let crate::EventKind::Put(entry) = &batch.events[0].kind else {
            panic!("{batch:?}");
        };
        assert_eq!(entry.value, large(byte));
    }
    assert_eq!(
        next(&mut watch).await.unwrap().events,
        deletions(&["a"], Reason::Deleted)
    );
}

#[tokio::test]
async fn parts_whose_writer_died_are_under_a_lease_and_are_not_swept_before() {
    let Fixture {
        store,
        server: _etcd,
    } = Fixture::start().await;
    let txn = Txn::new().put("a", large(1));
    let (_, lease) = etcd(&store).stage(&txn).await.unwrap();
    assert_eq!(parts(&store).await, 3);
    assert_eq!(etcd(&store).sweep().await.unwrap(), 0);
    assert_eq!(store.list("").await.unwrap().entries, []);
    store.revoke(lease.unwrap()).await.unwrap();
    assert_eq!(parts(&store).await, 0);
}

#[tokio::test]
async fn a_transaction_whose_parts_are_gone_is_not_done() {
    let Fixture {
        store,
        server: _etcd,
    } = Fixture::start().await;
    let txn = Txn::new().put("a", large(1)).put("b", "small");
    let shared = etcd(&store);
    let (request, lease) = shared.stage(&txn).await.unwrap();
    store.revoke(lease.unwrap()).await.unwrap();
    let error = shared.commit(&txn, request).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(store.list("").await.unwrap().entries, []);
}

#[tokio::test]
async fn a_value_that_looks_like_a_note_is_a_value() {
    let Fixture {
        store,
        server: _etcd,
    } = Fixture::start().await;
    let forged = b"\0phalanx parts 0000000000000001 1 1".to_vec();
    store
        .commit(Txn::new().put("a", forged.clone()))
        .await
        .unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().value, forged);
    foreign(&_etcd, b"/phalanx/b", &forged).await;
    // Of somebody who wrote past the store: nothing can be found, and nothing stops.
    assert_eq!(store.list("").await.unwrap().entries.len(), 2);
}

#[tokio::test]
async fn a_value_whose_parts_are_partly_gone_stops_no_start_but_a_backup() {
    let Fixture { store, server } = Fixture::start().await;
    store.commit(Txn::new().put("a", large(1))).await.unwrap();
    store.commit(Txn::new().put("b", "small")).await.unwrap();
    assert_eq!(store.backup().await.unwrap().entries.len(), 2);
    let (key, range_end) = etcd(&store).keys.parts();
    let some = RangeRequest {
        key,
        range_end,
        limit: 1,
        keys_only: true,
        ..Default::default()
    };
    let mut client = KvClient::connect(server.url()).await.unwrap();
    let part = client.range(some).await.unwrap().into_inner().kvs.remove(0);
    let gone = Request::RequestDeleteRange(DeleteRangeRequest {
        key: part.key,
        ..Default::default()
    });
    let gone = TxnRequest {
        success: vec![RequestOp {
            request: Some(gone),
        }],
        ..Default::default()
    };
    client.txn(gone).await.unwrap();
    let page = store.list("").await.unwrap();
    assert_eq!(page.entries[1].value, "small");
    let refused = store.backup().await.unwrap_err().to_string();
    assert!(refused.contains("value of a are missing"), "{refused}");
    store.commit(Txn::new().put("a", large(2))).await.unwrap();
    assert_eq!(store.backup().await.unwrap().entries.len(), 2);
}
