//! Against a real etcd, one for each claim, because a compaction is for everybody in it.

mod server;

crate::conformance!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    crate::etcd::tests::server::Fixture::start().await.store
);
