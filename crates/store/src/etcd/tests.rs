//! Against a real etcd, one for each claim, because a compaction is for everybody in it.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use phalanx_proto::etcdserverpb::{
    AlarmRequest, AlarmType, AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, DefragmentRequest, PutRequest, RequestOp, TxnRequest,
    alarm_request::AlarmAction, auth_client::AuthClient, kv_client::KvClient,
    maintenance_client::MaintenanceClient, request_op::Request,
};
use tokio::time::{sleep, timeout};

mod kill;
mod large;
mod migrate;
mod tls;

use phalanx_testkit::{
    address,
    etcd::{Etcd as Server, START_MAX},
};

use super::{Credentials, EtcdConfig};
use crate::{Batch, Error, Event, Reason, Result, Revision, Store, Txn, Watch};

crate::conformance!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    crate::etcd::tests::Fixture::start().await.store
);

const PATIENCE: Duration = Duration::from_secs(30);

/// A store over a server of its own, which ends with it.
struct Fixture {
    store: Store,
    server: Server,
}

impl Fixture {
    async fn start() -> Fixture {
        Fixture::with(&[]).await
    }

    async fn with(options: &[&str]) -> Fixture {
        let server = Server::start(options).await.unwrap();
        let store = Store::etcd(config(&server)).await.unwrap();
        Fixture { store, server }
    }
}

fn config(server: &Server) -> EtcdConfig {
    let mut config = EtcdConfig::new([server.endpoint()]);
    config.patience = START_MAX;
    config
}

/// Where nobody listens.
fn nowhere() -> String {
    std::net::SocketAddr::from((address::fresh(), 2379)).to_string()
}

async fn next(watch: &mut Watch) -> Result<Batch> {
    let next = timeout(PATIENCE, watch.next()).await;
    next.expect("the watch says something").expect("it goes on")
}

/// Deletions of `keys`, all for one reason.
fn deletions(keys: &[&str], reason: Reason) -> Vec<Event> {
    let deletion = |&key: &&str| Event::delete(key, reason);
    keys.iter().map(deletion).collect()
}

#[tokio::test]
async fn why_a_key_went_is_told_even_long_after() {
    let Fixture {
        store,
        server: _etcd,
    } = Fixture::start().await;
    let put = |key: &'static str, lease| Txn::new().put_leased(key, "", lease);
    let [deleted, expired, revoked] = {
        let long = Duration::from_secs(60);
        let short = Duration::from_secs(2);
        let leases = [
            store.grant(long).await,
            store.grant(short).await,
            store.grant(long).await,
        ];
        leases.map(Result::unwrap)
    };
    let from = store.commit(put("d/1", deleted)).await.unwrap();
    store.commit(put("d/2", deleted)).await.unwrap();
    store.commit(put("e", expired)).await.unwrap();
    store
        .commit(put("r/1", revoked).put_leased("r/2", "", revoked))
        .await
        .unwrap();

    store
        .commit(Txn::new().delete("d/1").delete("d/2"))
        .await
        .unwrap();
    store.revoke(revoked).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while store.get("e").await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "the lease does not expire");
        sleep(Duration::from_millis(50)).await;
    }
    // Its lease is gone, too, by the time that somebody asks why its keys went.
    store.revoke(deleted).await.unwrap();

    let mut watch = store.watch("", from).await.unwrap();
    for _ in 0..3 {
        next(&mut watch).await.unwrap();
    }
    let explained = [
        deletions(&["d/1", "d/2"], Reason::Deleted),
        deletions(&["r/1", "r/2"], Reason::Deleted),
        deletions(&["e"], Reason::Expired),
    ];
    for events in explained {
        assert_eq!(next(&mut watch).await.unwrap().events, events);
    }
    assert_eq!(store.list("").await.unwrap().entries, []);
}

#[tokio::test]
async fn stores_over_one_etcd_see_each_other_and_nothing_beside_their_prefix() {
    let etcd = Server::start(&[]).await.unwrap();
    let first = Store::etcd(config(&etcd)).await.unwrap();
    let second = Store::etcd(config(&etcd)).await.unwrap();
    let mut config = config(&etcd);
    config.prefix = "/phalanx/of/others/".into();
    let other = Store::etcd(config).await.unwrap();

    let mut watch = second.watch("", 0).await.unwrap();
    other.commit(Txn::new().put("a", "not ours")).await.unwrap();
    foreign(&etcd, b"/phalany", b"not ours").await;
    foreign(&etcd, b"/phalanx/\xff\xfe", b"no text").await;
    let at = first
        .commit(Txn::new().expect_absent("a").put("a", "1"))
        .await
        .unwrap();
    let conflict = second
        .commit(Txn::new().expect_absent("a").put("a", "2"))
        .await;
    assert!(matches!(conflict, Err(Error::Conflict { found, .. }) if found == Some(at)));

    // A prefix inside of a prefix is not kept apart.
    assert_eq!(
        next(&mut watch).await.unwrap().events[0].key(),
        "of/others/a"
    );
    assert_eq!(next(&mut watch).await.unwrap().revision, at);
    let keys = |store: Store| async move {
        let page = store.list("").await.unwrap();
        page.entries
            .into_iter()
            .map(|entry| entry.key)
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(first.clone()).await, ["a", "of/others/a"]);
    assert_eq!(keys(other.clone()).await, ["a"]);

    first.close().await;
    assert!(matches!(first.get("a").await, Err(Error::Closed)));
    assert!(second.get("a").await.unwrap().is_some());
}

/// Puts a key past the store.
async fn foreign(etcd: &Server, key: &[u8], value: &[u8]) {
    let put = PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    };
    let txn = TxnRequest {
        success: vec![RequestOp {
            request: Some(Request::RequestPut(put)),
        }],
        ..Default::default()
    };
    let mut client = KvClient::connect(etcd.url()).await.unwrap();
    client.txn(txn).await.unwrap();
}

#[tokio::test]
async fn the_stores_own_keys_are_neither_shown_nor_taken() {
    let Fixture {
        store,
        server: _etcd,
    } = Fixture::start().await;
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let at = store.commit(Txn::new().put("a", "")).await.unwrap();
    assert_eq!(store.list("").await.unwrap().entries.len(), 1);
    let mut watch = store.watch("", 0).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, at);
    let own = format!("!leases/{:016x}", lease.0);
    let refused = store.commit(Txn::new().delete(own)).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_is_larger_than_a_message_is_read_in_parts() {
    const COUNT: usize = 20;
    let Fixture {
        store,
        server: _etcd,
    } = Fixture::start().await;
    let mut revisions = Vec::new();
    for i in 0..COUNT {
        let put = Txn::new().put(format!("{i:02}"), vec![i as u8; 1 << 20]);
        revisions.push(store.commit(put).await.unwrap());
    }
    let page = store.list("").await.unwrap();
    let first_bytes: Vec<usize> = page.entries.iter().map(|e| e.value[0].into()).collect();
    assert_eq!(first_bytes, (0..COUNT).collect::<Vec<_>>());
    let mut watch = store.watch("", 0).await.unwrap();
    for revision in revisions {
        assert_eq!(next(&mut watch).await.unwrap().revision, revision);
    }
    let many = (0..100).fold(Txn::new(), |txn, i| {
        txn.put(format!("m/{i:03}"), vec![1; 13_000])
    });
    let revision = store.commit(many).await.unwrap();
    let batch = next(&mut watch).await.unwrap();
    assert_eq!((batch.revision, batch.events.len()), (revision, 100));
}

#[tokio::test]
async fn an_endpoint_that_is_dead_is_passed_by() {
    let etcd = Server::start(&[]).await.unwrap();
    let (dead, mute) = (nowhere(), TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let mute = mute.local_addr().unwrap().to_string();
    for endpoints in [
        [dead.clone(), etcd.endpoint()],
        [etcd.endpoint(), dead],
        [mute, etcd.endpoint()],
    ] {
        let mut config = EtcdConfig::new(endpoints);
        config.patience = PATIENCE;
        let store = Store::etcd(config).await.unwrap();
        let at = store.list("").await.unwrap().revision;
        let mut watch = store.watch("", at).await.unwrap();
        let revision = store.commit(Txn::new().put("a", "")).await.unwrap();
        assert_eq!(next(&mut watch).await.unwrap().revision, revision);
        assert_eq!(store.status().read_only, None);
    }
}

#[tokio::test]
async fn nobody_there_is_said_when_patience_ends() {
    let mut config = EtcdConfig::new([nowhere()]);
    config.patience = Duration::from_millis(300);
    let error = Store::etcd(config.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&config.endpoints[0]), "{error}");

    config.endpoints = vec!["etcd.invalid:2379".into()];
    let error = Store::etcd(config).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_watch_that_was_away_during_a_compaction_is_told_the_oldest() {
    let Fixture { store, mut server } = Fixture::start().await;
    let from = store.commit(Txn::new().put("a", "")).await.unwrap();
    let mut watch = store.watch("", from).await.unwrap();
    let first = store.commit(Txn::new().put("a", "")).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, first);

    server.restart().await.unwrap();
    let mut last = 0;
    for _ in 0..10 {
        last = settled(&store, Txn::new().put("a", "")).await;
    }
    store.compact(last).await.unwrap();
    // What the first connection had received before it broke may come first.
    let error = loop {
        match next(&mut watch).await {
            Ok(batch) => assert!(batch.revision < last, "it skips to {}", batch.revision),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, Error::Compacted { oldest, .. } if oldest == last - 1),
        "{error:?}"
    );
    assert!(watch.next().await.is_none());
    let mut watch = store.watch("", last - 1).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_lost_its_data_is_not_taken_for_the_one_before() {
    let Fixture { store, mut server } = Fixture::start().await;
    for value in ["1", "2", "3"] {
        store.commit(Txn::new().put("a", value)).await.unwrap();
    }
    let mut watch = store.watch("", store.revision()).await.unwrap();
    server.lose_data().await.unwrap();
    let said = |error: Error| match error {
        Error::Refused { reason } => reason.contains("lost its data"),
        _ => false,
    };
    assert!(said(next(&mut watch).await.unwrap_err()));
    assert!(said(store.list("").await.unwrap_err()));
    assert!(said(
        store.commit(Txn::new().put("b", "1")).await.unwrap_err()
    ));
    // However far it comes: between the two nobody knows what is missing.
    let other = Store::etcd(config(&server)).await.unwrap();
    for _ in 0..5 {
        other.commit(Txn::new().put("c", "1")).await.unwrap();
    }
    assert!(said(store.watch("", 1).await.unwrap_err()));
    let read_only = store.status().read_only.unwrap();
    assert!(read_only.contains("lost its data"), "{read_only}");
    assert_eq!(other.list("").await.unwrap().entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_lags_behind_a_compaction_is_told_and_never_skips() {
    const WRITERS: usize = 16;
    const WRITES: usize = 150;
    let Fixture {
        store,
        server: _etcd,
    } = Fixture::start().await;
    let mut last = store.commit(Txn::new().put("a", "")).await.unwrap();
    let mut watch = store.watch("", last).await.unwrap();
    last = store.commit(Txn::new().put("a", "")).await.unwrap();
    // From here on it is connected.
    assert_eq!(next(&mut watch).await.unwrap().revision, last);

    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..WRITES {
                let put = Txn::new().put(format!("{writer}"), vec![0; 8 << 10]);
                store.commit(put).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let head = store.revision();
    store.compact(head).await.unwrap();
    while last < head {
        match next(&mut watch).await {
            // Nobody else writes here, so each revision is one of ours.
            Ok(batch) => assert_eq!(batch.revision, last + 1),
            Err(Error::Compacted { oldest, .. }) => {
                assert_eq!(oldest, head - 1);
                return;
            }
            Err(error) => panic!("{error}"),
        }
        last += 1;
    }
}

#[tokio::test]
async fn a_user_is_asked_for_and_stays_known_over_a_restart() {
    let mut etcd = Server::start(&[]).await.unwrap();
    protect(&etcd).await;
    let of = |user: &str, password: &str| {
        let mut config = config(&etcd);
        config.credentials = Some(Credentials {
            user: user.into(),
            password: password.into(),
        });
        config
    };
    let (root, wrong) = (of("root", "right"), of("root", "wrong"));
    let nobody = of("nobody", "right");
    for config in [config(&etcd), wrong, nobody] {
        let error = Store::etcd(config).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    }
    let store = Store::etcd(root).await.unwrap();
    let from = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let mut watch = store.watch("", from).await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let first = store
        .commit(Txn::new().put_leased("a", "2", lease))
        .await
        .unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, first);

    // Tokens are in memory. The watch comes back by itself, and often first.
    let watching = async { next(&mut watch).await.unwrap().revision };
    let writing = async {
        etcd.restart().await.unwrap();
        sleep(Duration::from_millis(500)).await;
        settled(&store, Txn::new().put("a", "3")).await
    };
    let (seen, second) = tokio::join!(watching, writing);
    assert_eq!(seen, second);
    assert_eq!(store.keep_alive(lease).await.unwrap().as_secs(), 60);
    store.revoke(lease).await.unwrap();
}

/// With a user `root` that may all, and a user `nobody` that may nothing.
async fn protect(etcd: &Server) {
    let mut auth = AuthClient::connect(etcd.url()).await.unwrap();
    for user in ["root", "nobody"] {
        let (name, password) = (user.into(), "right".into());
        let user = AuthUserAddRequest { name, password };
        auth.user_add(user).await.unwrap();
    }
    let role = || "root".to_owned();
    let add = AuthRoleAddRequest { name: role() };
    auth.role_add(add).await.unwrap();
    let grant = AuthUserGrantRoleRequest {
        user: role(),
        role: role(),
    };
    auth.user_grant_role(grant).await.unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_full_etcd_is_read_only_and_heals() {
    let Fixture { store, server } = Fixture::with(&["--quota-backend-bytes", "8388608"]).await;
    let from = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let mut watch = store.watch("a", from).await.unwrap();
    let mut last = store.commit(Txn::new().put("a", "2")).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, last);
    let full = loop {
        match store.commit(Txn::new().put("big", vec![1; 1 << 20])).await {
            Ok(revision) => last = revision,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, Error::ReadOnly { .. }), "{full:?}");
    // etcd applies the change that fills it, and refuses it at the same time.
    let modified = store.get("big").await.unwrap().unwrap().modified;
    assert!((last..=last + 1).contains(&modified), "{modified} {last}");
    until(|| store.status().read_only.is_some()).await;

    store.compact(last + 1).await.unwrap();
    let mut operator = MaintenanceClient::connect(server.url()).await.unwrap();
    operator.defragment(DefragmentRequest {}).await.unwrap();
    let disarm = AlarmRequest {
        action: AlarmAction::Deactivate.into(),
        alarm: AlarmType::Nospace.into(),
        member_id: 0,
    };
    let alarms = operator.alarm(AlarmRequest::default()).await.unwrap();
    for alarm in alarms.into_inner().alarms {
        let member_id = alarm.member_id;
        let disarm = AlarmRequest {
            member_id,
            ..disarm
        };
        operator.alarm(disarm).await.unwrap();
    }
    let revision = store.commit(Txn::new().put("a", "3")).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, revision);
    until(|| store.status().read_only.is_none()).await;
}

#[tokio::test]
async fn what_an_etcd_that_stands_still_was_asked_happens_at_most_once() {
    const COUNT: usize = 8;
    let Fixture { store, server } = Fixture::start().await;
    let from = store.commit(Txn::new().put("start", "")).await.unwrap();
    let mut watch = store.watch("", from).await.unwrap();
    let process = server.process().unwrap();
    process.pause().unwrap();
    let commits: Vec<_> = (0..COUNT)
        .map(|i| {
            let (store, key) = (store.clone(), format!("{i}"));
            let is_fenced = i.is_multiple_of(2);
            tokio::spawn(async move {
                let txn = Txn::new().put(&key, "");
                let txn = if is_fenced {
                    txn.expect_absent(&key)
                } else {
                    txn
                };
                (key, store.commit(txn).await)
            })
        })
        .collect();
    // Longer than an attempt waits: the plain ones are given up, the fenced ones handed in again.
    sleep(Duration::from_secs(7)).await;
    process.resume().unwrap();
    let mut done = Vec::new();
    for commit in commits {
        done.push(commit.await.unwrap());
    }
    let end = settled(&store, Txn::new().put("end", "")).await;
    for (key, outcome) in done {
        let entry = store.get(&key).await.unwrap();
        match outcome {
            Ok(revision) => assert_eq!(entry.map(|e| (e.modified, e.version)), Some((revision, 1))),
            Err(Error::Unknown { .. }) => assert!(entry.is_none_or(|entry| entry.version == 1)),
            Err(error) => panic!("{error}"),
        }
    }
    while next(&mut watch).await.unwrap().revision < end {}
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never comes to that");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Commits what may be done twice, until it is known to be done.
async fn settled(store: &Store, txn: Txn) -> Revision {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match store.commit(txn.clone()).await {
            Ok(revision) => return revision,
            Err(Error::Unknown { .. } | Error::Unreachable { .. }) if Instant::now() < deadline => {
            }
            Err(error) => panic!("{error}"),
        }
    }
}
