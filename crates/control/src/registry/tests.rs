//! The service over its own trait, on a store in memory and under paused time.

use phalanx_client::registry::to_wire;
use tokio_stream::StreamExt;
use wire::registry_server::Registry as _;

use super::*;
use crate::world::fixture::instance;
use crate::world::follow::Follower;

mod planes;

struct Mesh {
    registry: Registry,
    store: Store,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// As a control plane that is open takes it.
fn open<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Who::Open);
    request
}

async fn mesh() -> Mesh {
    on(Store::memory().await.unwrap()).await
}

async fn on(store: Store) -> Mesh {
    plane(store, Identity::alone()).await
}

/// One control plane's registry over a store that it may share.
async fn plane(store: Store, identity: Identity) -> Mesh {
    let stop = CancellationToken::new();
    let follower = Follower::load(store.clone()).await.unwrap();
    let worlds = follower.worlds();
    let bounds = TtlBounds::default();
    let (registry, writes) = Registry::among(store.clone(), worlds, bounds, identity, stop.clone());
    let tasks = vec![
        tokio::spawn(follower.run(stop.clone())),
        tokio::spawn(registry.clone().run(writes)),
    ];
    let mesh = Mesh {
        registry,
        store,
        stop,
        tasks,
    };
    mesh.registry.admitted().await.unwrap();
    mesh
}

fn wired(id: &str) -> wire::Instance {
    to_wire(&instance("battle", id, "127.0.0.5:15006", &[("", 9000)]))
}

impl Mesh {
    async fn register(
        &self,
        instance: wire::Instance,
        epoch: u64,
    ) -> Result<wire::RegisterResponse, Status> {
        let request = wire::RegisterRequest {
            instance: Some(instance),
            epoch,
            ttl_ms: 2_000,
        };
        self.registry
            .register(open(request))
            .await
            .map(Response::into_inner)
    }

    async fn beat(&self, id: &str, epoch: u64) -> bool {
        let request = wire::HeartbeatRequest {
            namespace: "default".into(),
            service: "battle".into(),
            id: id.into(),
            epoch,
        };
        !self
            .registry
            .heartbeat(open(request))
            .await
            .unwrap()
            .into_inner()
            .unknown
    }

    async fn deregister(&self, id: &str, epoch: u64) -> bool {
        let request = wire::DeregisterRequest {
            namespace: "default".into(),
            service: "battle".into(),
            id: id.into(),
            epoch,
            reason: "test".into(),
        };
        self.registry
            .deregister(open(request))
            .await
            .unwrap()
            .into_inner()
            .removed
    }

    async fn stored(&self) -> Vec<String> {
        let page = self.store.list("instances/").await.unwrap();
        page.entries
            .into_iter()
            .map(|entry| entry.key.rsplit('/').next().unwrap_or_default().to_owned())
            .collect()
    }
}

async fn pass(ms: u64) {
    // In steps, so that timers in between run.
    for _ in 0..ms / 100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeats_write_nothing_and_keep_the_instance() {
    let mesh = mesh().await;
    mesh.register(wired("b1"), 1).await.unwrap();
    let revision = mesh.store.revision();
    for _ in 0..20 {
        pass(1_000).await;
        assert!(mesh.beat("b1", 1).await);
        assert_eq!(
            mesh.register(wired("b1"), 1).await.unwrap().revision,
            revision,
            "an assertion of the same writes nothing either"
        );
    }
    assert_eq!(mesh.stored().await, ["b1"]);
    assert_eq!(mesh.store.revision(), revision);
}

#[tokio::test(start_paused = true)]
async fn silence_deletes_one_of_two_within_its_ttl() {
    let mesh = mesh().await;
    mesh.register(wired("b1"), 1).await.unwrap();
    mesh.register(wired("b2"), 1).await.unwrap();
    pass(1_500).await;
    assert!(mesh.beat("b1", 1).await);
    pass(600).await;
    assert_eq!(mesh.stored().await, ["b1"]);
    assert!(
        !mesh.beat("b2", 1).await,
        "whoever comes back late has to register"
    );
    mesh.register(wired("b2"), 1).await.unwrap();
    assert_eq!(mesh.stored().await, ["b1", "b2"]);
}

#[tokio::test(start_paused = true)]
async fn a_service_is_never_emptied_by_silence_alone() {
    let mesh = mesh().await;
    mesh.register(wired("b1"), 1).await.unwrap();
    mesh.register(wired("b2"), 1).await.unwrap();
    pass(60_000).await;
    assert_eq!(mesh.stored().await, ["b1", "b2"]);
    assert_eq!(mesh.registry.held().len(), 2);
    assert!(mesh.beat("b1", 1).await);
    assert!(mesh.deregister("b2", 1).await);
    assert!(mesh.registry.held().is_empty());
    assert_eq!(mesh.stored().await, ["b1"]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_knows_everyone_and_gives_them_one_ttl() {
    let first = mesh().await;
    for id in ["b1", "b2", "b3"] {
        first.register(wired(id), 7).await.unwrap();
    }
    first.stop.cancel();
    let second = on(first.store.clone()).await;
    pass(1_900).await;
    assert_eq!(second.stored().await.len(), 3);
    let revision = second.store.revision();
    assert!(
        second.beat("b1", 7).await && second.beat("b2", 7).await,
        "known without a registration"
    );
    assert_eq!(second.store.revision(), revision);
    pass(200).await;
    assert_eq!(second.stored().await, ["b1", "b2"]);
}

#[tokio::test(start_paused = true)]
async fn an_older_life_neither_overwrites_nor_deregisters_a_newer_one() {
    let mesh = mesh().await;
    mesh.register(wired("b1"), 2).await.unwrap();
    let error = mesh.register(wired("b1"), 1).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert!(!mesh.beat("b1", 1).await && !mesh.deregister("b1", 1).await);
    assert_eq!(mesh.stored().await, ["b1"]);
    assert!(mesh.deregister("b1", 3).await);
    assert!(mesh.stored().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_is_refused() {
    let mesh = mesh().await;
    let bad = wire::Instance {
        ports: Vec::new(),
        ..wired("b1")
    };
    assert_eq!(
        mesh.register(bad, 1).await.unwrap_err().code(),
        tonic::Code::InvalidArgument
    );
    assert_eq!(
        mesh.register(
            wire::Instance {
                id: "a/b".into(),
                ..wired("")
            },
            1
        )
        .await
        .unwrap_err()
        .code(),
        tonic::Code::InvalidArgument
    );
    assert!(mesh.stored().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_ttl_is_granted_within_bounds() {
    let mesh = mesh().await;
    for (asked, granted) in [(0, 30_000), (1, 1_000), (5_000, 5_000), (u32::MAX, 600_000)] {
        let request = wire::RegisterRequest {
            instance: Some(wired("b1")),
            epoch: 1,
            ttl_ms: asked,
        };
        assert_eq!(
            mesh.registry
                .register(open(request))
                .await
                .unwrap()
                .into_inner()
                .ttl_ms,
            granted
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_gives_everything_and_then_what_differs() {
    let mesh = mesh().await;
    mesh.register(wired("b1"), 1).await.unwrap();
    let scope = wire::WatchRequest {
        namespace: "default".into(),
        service: "battle".into(),
        id: String::new(),
    };
    // The world follows the store.
    let mut worlds = mesh.registry.inner.worlds.clone();
    worlds
        .wait_for(|world| !world.instances.is_empty())
        .await
        .unwrap();
    let mut watch = mesh.registry.watch(open(scope)).await.unwrap().into_inner();
    let first = watch.next().await.unwrap().unwrap();
    assert!(first.full);
    assert_eq!(
        first
            .upserted
            .iter()
            .map(|i| i.id.as_str())
            .collect::<Vec<_>>(),
        ["b1"]
    );

    let other = to_wire(&instance("match", "m1", "127.0.0.4:15006", &[("", 7000)]));
    mesh.register(other, 1).await.unwrap();
    mesh.register(wired("b2"), 1).await.unwrap();
    let second = watch.next().await.unwrap().unwrap();
    assert!(!second.full && second.removed.is_empty());
    assert_eq!(
        second
            .upserted
            .iter()
            .map(|i| i.id.as_str())
            .collect::<Vec<_>>(),
        ["b2"],
        "another service is not told"
    );

    mesh.deregister("b1", 1).await;
    let third = watch.next().await.unwrap().unwrap();
    assert_eq!(
        (third.upserted.len(), third.removed[0].id.as_str()),
        (0, "b1")
    );
    drop(watch);
    assert_eq!(mesh.registry.watchers(), 0);
}

#[tokio::test(start_paused = true)]
async fn many_at_once_share_transactions() {
    let mesh = mesh().await;
    let all = (0..500).map(|n| mesh.register(wired(&format!("b{n}")), 1));
    for outcome in futures_util::future::join_all(all).await {
        outcome.unwrap();
    }
    assert_eq!(mesh.stored().await.len(), 500);
    assert!(
        mesh.store.revision() < 250,
        "{} transactions for 500 instances",
        mesh.store.revision()
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_no_writes_is_said_and_asserted_again_later() {
    let mesh = mesh().await;
    mesh.store.close().await;
    assert_eq!(
        mesh.register(wired("b1"), 1).await.unwrap_err().code(),
        tonic::Code::Unavailable
    );
    assert!(
        !mesh.beat("b1", 1).await,
        "what is not stored is not registered"
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_back_while_many_expire_stays() {
    let mesh = mesh().await;
    let ids: Vec<String> = (0..1000).map(|n| format!("b{n:03}")).collect();
    futures_util::future::join_all(ids.iter().map(|id| mesh.register(wired(id), 1))).await;
    pass(1_000).await;
    for id in &ids[400..] {
        assert!(mesh.beat(id, 1).await);
    }
    // One after the other comes back, in all the moments around the expiry of all.
    for id in &ids[..400] {
        tokio::time::sleep(Duration::from_millis(5)).await;
        mesh.register(wired(id), 1).await.unwrap();
    }
    pass(300).await;
    let stored = mesh.stored().await;
    let lost = ids.iter().filter(|id| {
        mesh.registry
            .leases()
            .heartbeat(&battle(id), 1, 0)
            .is_some()
            && !stored.contains(id)
    });
    assert_eq!(
        lost.collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "alive, but not stored"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_last_is_what_is_stored() {
    let store = Store::memory().await.unwrap();
    let mesh = on(store.clone()).await;
    let (writer, queue) = writer::Writer::new(store.clone(), mesh.registry.planes().clone());
    let put = || Wish::Put {
        value: b"{}".to_vec(),
        over: None,
    };
    let place = async || writer.reserve().await.unwrap();
    writer.forget(battle("back"), 1);
    let first = writer.want(place().await, battle("back"), put());
    let second = writer.want(place().await, battle("gone"), put());
    let third = writer.want(place().await, battle("gone"), Wish::Delete { at: None });
    let stop = CancellationToken::new();
    stop.cancel();
    queue.run(stop, |_| ()).await;
    let revisions = (
        first.wait().await.unwrap(),
        second.wait().await.unwrap(),
        third.wait().await.unwrap(),
    );
    assert_eq!(revisions, (2, 2, 2), "after the plane's own key");
    let keys: Vec<_> = store
        .list("instances/")
        .await
        .unwrap()
        .entries
        .into_iter()
        .map(|e| e.key)
        .collect();
    assert_eq!(keys, [instance_key(&battle("back"))]);
    assert!(
        writer.reserve().await.is_err(),
        "nothing is taken that would not be written"
    );
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_a_full_disk_refuses_is_made_up_for() {
    let disk = Arc::new(FullDisk::default());
    let mesh = on(Store::embedded(phalanx_store::Config::disk(disk.clone()))
        .await
        .unwrap())
    .await;
    mesh.register(wired("b1"), 1).await.unwrap();
    disk.set_full(true);
    let request = wire::DeregisterRequest {
        namespace: "default".into(),
        service: "battle".into(),
        id: "b1".into(),
        epoch: 1,
        reason: String::new(),
    };
    let refused = mesh.registry.deregister(open(request)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert_eq!(mesh.stored().await, ["b1"]);
    disk.set_full(false);
    pass(60_000).await;
    assert!(
        mesh.stored().await.is_empty(),
        "nobody beats for it, and nobody would ever delete it"
    );
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_while_a_deletion_is_owed_stays() {
    let disk = Arc::new(FullDisk::default());
    let store = Store::embedded(phalanx_store::Config::disk(disk.clone()));
    let mesh = on(store.await.unwrap()).await;
    for id in ["b1", "b2", "b3"] {
        mesh.register(wired(id), 1).await.unwrap();
    }
    disk.set_full(true);
    for _ in 0..4 {
        pass(1_000).await;
        assert!(mesh.beat("b2", 1).await && mesh.beat("b3", 1).await);
    }
    assert!(!mesh.beat("b1", 1).await, "it was silent, and is let go");
    assert_eq!(mesh.stored().await, ["b1", "b2", "b3"]);
    // The plane's own lease ends meanwhile, so that it looks at everything anew.
    tokio::time::advance(Duration::from_secs(3_600)).await;
    disk.set_full(false);
    pass(100).await;
    while mesh.register(wired("b1"), 1).await.is_err() {
        pass(100).await;
    }
    for _ in 0..10 {
        pass(500).await;
        assert!(mesh.beat("b1", 1).await);
        assert_eq!(mesh.stored().await, ["b1", "b2", "b3"]);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_expires_for_the_time_that_the_control_plane_stood_still() {
    let mesh = mesh().await;
    for id in ["b1", "b2", "b3"] {
        mesh.register(wired(id), 1).await.unwrap();
    }
    pass(1_000).await;
    assert!(mesh.beat("b2", 1).await && mesh.beat("b3", 1).await);
    // At once, as when a machine is paused: b1's two seconds pass meanwhile.
    tokio::time::advance(Duration::from_millis(2_500)).await;
    pass(200).await;
    assert_eq!(mesh.stored().await, ["b1", "b2", "b3"]);
    assert!(mesh.registry.held().is_empty());
}

fn battle(id: &str) -> InstanceId {
    instance("battle", id, "127.0.0.5:15006", &[("", 9000)]).id
}

/// Memory that can be full.
#[derive(Debug, Default)]
struct FullDisk {
    memory: phalanx_store::embedded::MemoryDisk,
    full: std::sync::atomic::AtomicBool,
}

impl FullDisk {
    fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    fn check(&self) -> std::io::Result<()> {
        match self.full.load(Ordering::Relaxed) {
            true => Err(std::io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl phalanx_store::Disk for FullDisk {
    fn size(&self) -> std::io::Result<u64> {
        self.memory.size()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.memory.read(offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> std::io::Result<()> {
        self.check()?;
        self.memory.write(offset, from)
    }

    fn set_size(&self, size: u64) -> std::io::Result<()> {
        self.check()?;
        self.memory.set_size(size)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.memory.sync()
    }

    fn room(&self) -> std::io::Result<()> {
        self.check()
    }
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_is_too_old_is_told_which_one_it_has_to_follow() {
    let mesh = mesh().await;
    mesh.register(wired("b1"), 3_600_000).await.unwrap();
    let told = |refused: Status| {
        let epoch = refused.metadata().get("phalanx-epoch");
        epoch.and_then(|epoch| epoch.to_str().ok()?.parse::<u64>().ok())
    };
    let refused = mesh.register(wired("b1"), 1).await.unwrap_err();
    assert_eq!(told(refused), Some(3_600_000));
    mesh.deregister("b1", 3_600_001).await;
    let refused = mesh.register(wired("b1"), 1).await.unwrap_err();
    assert_eq!(told(refused), Some(3_600_001), "of one that left, too");
    mesh.register(wired("b1"), 3_600_002).await.unwrap();
}

#[test]
fn of_drains_those_of_instances_that_stayed_away_longest_make_room() {
    let drain = |n: u64| crate::world::record::DrainRecord {
        since: 100 - n,
        author: "ann".into(),
        state: "draining".into(),
        grace_ms: None,
        handover: None,
        reconnects_per_second: None,
    };
    let drains = (0..100).map(|n| (battle(&format!("b{n:02}")), Arc::new(drain(n))));
    let here = instance("battle", "b99", "127.0.0.1:1", &[("", 1)]);
    let world = World {
        drains: Arc::new(drains.collect()),
        ..crate::world::fixture::Fixture::default().with(here).world()
    };
    let gone = operate::longest_absent(&world);
    assert_eq!(gone.len(), 32);
    assert_eq!(gone.first(), Some(&battle("b98")), "b99 is here");
    assert!(gone.contains(&battle("b67")) && !gone.contains(&battle("b66")));
}
