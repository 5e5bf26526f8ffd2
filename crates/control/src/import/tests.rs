//! Against a real etcd, whose keys a test puts as foreign programs do: with a lease of their own, past our store.

use std::net::SocketAddr;

use phalanx_testkit::etcd::Etcd as Server;
use tokio::net::TcpListener;

use super::*;
use crate::world::follow::Follower;

const PATIENCE: Duration = Duration::from_secs(20);

/// A mesh's store and world, and an etcd beside it.
struct Fixture {
    server: Server,
    /// What a foreign program has: the same keys, leases that nobody here granted.
    program: Store,
    store: Store,
    worlds: Receiver<Arc<World>>,
    imports: Imports,
    stop: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn at(server: &Server) -> EtcdConfig {
    let mut config = EtcdConfig::new([server.endpoint()]);
    config.prefix = PREFIX.into();
    config
}

impl Fixture {
    async fn start() -> Fixture {
        let server = Server::start(&[]).await.unwrap();
        Fixture::over(server, Store::memory().await.unwrap()).await
    }

    async fn over(server: Server, store: Store) -> Fixture {
        let program = Store::etcd(at(&server)).await.unwrap();
        let stop = CancellationToken::new();
        let follower = Follower::load(store.clone()).await.unwrap();
        let worlds = follower.worlds();
        let (import, imports) =
            Import::new(at(&server), store.clone(), worlds.clone(), stop.clone());
        tokio::spawn(follower.run(stop.clone()));
        tokio::spawn(import.run());
        Fixture {
            server,
            program,
            store,
            worlds,
            imports,
            stop,
        }
    }

    fn addresses(&self, service: &str) -> Vec<String> {
        let world = self.worlds.borrow().clone();
        let of = world
            .instances
            .service(&ServiceName::new(NAMESPACE, service));
        let ids = of.map(|of| {
            of.values()
                .filter(|r| r.is_imported())
                .map(|r| r.instance.id.id.clone())
                .collect()
        });
        ids.unwrap_or_default()
    }

    async fn until(&self, what: &str, mut is_so: impl FnMut(&Fixture) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(
                Instant::now() < deadline,
                "{what}: {:?}",
                self.imports.view()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn put(&self, key: &str, value: &str) {
        let put = Txn::new().put(key, value.to_owned());
        self.program.commit(put).await.unwrap();
    }

    /// Keys under one lease that ends after two seconds, unless somebody keeps it.
    async fn leased(&self, keys: &[String]) -> phalanx_store::LeaseId {
        let lease = self.program.grant(Duration::from_secs(2)).await.unwrap();
        let txn = keys
            .iter()
            .fold(Txn::new(), |txn, key| txn.put_leased(key, "", lease));
        self.program.commit(txn).await.unwrap();
        lease
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn a_key_becomes_an_instance_and_its_deletion_takes_it_away() {
    let fixture = Fixture::start().await;
    fixture
        .put("battle/10.0.0.1:8080", r#"{"weight":5,"version":"v2"}"#)
        .await;
    fixture.put("battle/10.0.0.2:8080", "").await;
    fixture.put("rubbish", "").await;
    fixture.put("battle/host:80", "").await;
    fixture
        .until("two", |f| f.addresses("battle").len() == 2)
        .await;
    let world = fixture.worlds.borrow().clone();
    let found = world.instances.iter().next().unwrap();
    assert_eq!(
        (
            found.instance.weight,
            found.instance.version(),
            found.ttl_ms
        ),
        (5, "v2", 0)
    );
    fixture
        .until("the rest is told", |f| f.imports.view().ignored == 2)
        .await;
    let view = fixture.imports.view();
    assert_eq!((view.instances, view.services, view.trouble), (2, 1, None));
    assert!(
        view.problems[0].1.contains("only IP addresses"),
        "{:?}",
        view.problems
    );

    fixture.put("battle/10.0.0.1:8080", r#"{"weight":9}"#).await;
    let weight = |f: &Fixture| {
        f.worlds
            .borrow()
            .instances
            .iter()
            .next()
            .map(|r| r.instance.weight)
    };
    fixture.until("changed", |f| weight(f) == Some(9)).await;

    // Said by their owner, even the last one goes at once.
    for key in ["battle/10.0.0.1:8080", "battle/10.0.0.2:8080"] {
        fixture
            .program
            .commit(Txn::new().delete(key))
            .await
            .unwrap();
    }
    fixture
        .until("none", |f| f.addresses("battle").is_empty())
        .await;
    assert!(fixture.imports.view().held.is_empty());
}

#[tokio::test]
async fn of_a_service_whose_keys_expire_at_once_who_listens_is_held_and_who_refuses_is_gone() {
    let fixture = Fixture::start().await;
    let (alive, alive_at) = listener().await;
    let (dead, dead_at) = listener().await;
    drop(dead);
    fixture
        .leased(&[format!("battle/{alive_at}"), format!("battle/{dead_at}")])
        .await;
    fixture
        .until("both", |f| f.addresses("battle").len() == 2)
        .await;
    fixture
        .until("expired", |f| {
            f.addresses("battle") == [alive_at.to_string()]
        })
        .await;
    fixture
        .until("held", |f| f.imports.view().held.len() == 1)
        .await;

    // It comes back, and nothing is held.
    fixture.put(&format!("battle/{alive_at}"), "").await;
    fixture
        .until("back", |f| f.imports.view().held.is_empty())
        .await;
    assert_eq!(fixture.addresses("battle"), [alive_at.to_string()]);
    drop(alive);
}

#[tokio::test]
async fn one_of_many_that_expires_is_gone_although_it_listens() {
    let fixture = Fixture::start().await;
    let (_listens, address) = listener().await;
    for i in 1..4 {
        fixture.put(&format!("battle/10.0.0.{i}:80"), "").await;
    }
    fixture.leased(&[format!("battle/{address}")]).await;
    fixture
        .until("four", |f| f.addresses("battle").len() == 4)
        .await;
    fixture
        .until("three", |f| f.addresses("battle").len() == 3)
        .await;
    assert!(fixture.imports.view().held.is_empty());
}

#[tokio::test]
async fn an_operators_release_lets_the_held_go() {
    let fixture = Fixture::start().await;
    let (_listens, address) = listener().await;
    fixture.leased(&[format!("battle/{address}")]).await;
    fixture
        .until("held", |f| f.imports.view().held.len() == 1)
        .await;
    let key = crate::world::record::release_key(&ServiceName::new(NAMESPACE, "battle"));
    fixture
        .store
        .commit(Txn::new().put(key, "{}"))
        .await
        .unwrap();
    fixture
        .until("gone", |f| f.addresses("battle").is_empty())
        .await;
}

#[tokio::test]
async fn what_is_known_stays_while_etcd_is_away_also_over_a_restart_and_goes_on_after_it() {
    let mut fixture = Fixture::start().await;
    fixture.put("battle/10.0.0.1:80", "").await;
    fixture
        .until("one", |f| f.addresses("battle").len() == 1)
        .await;
    fixture.server.kill();
    fixture
        .until("it is said", |f| f.imports.view().trouble.is_some())
        .await;
    assert_eq!(fixture.addresses("battle"), ["10.0.0.1:80"]);

    // Another life of the control plane, which never reached etcd.
    let stop = CancellationToken::new();
    let follower = Follower::load(fixture.store.clone()).await.unwrap();
    let worlds = follower.worlds();
    let mut config = at(&fixture.server);
    config.patience = Duration::from_millis(200);
    let (import, imports) =
        Import::new(config, fixture.store.clone(), worlds.clone(), stop.clone());
    let run = tokio::spawn(import.run());
    fixture
        .until("its trouble", |_| imports.view().trouble.is_some())
        .await;
    assert_eq!(worlds.borrow().instances.len(), 1);
    stop.cancel();
    run.await.unwrap();

    fixture.server.restart().await.unwrap();
    fixture
        .until("healed", |f| f.imports.view().trouble.is_none())
        .await;
    fixture.put("battle/10.0.0.2:80", "").await;
    fixture
        .until("two", |f| f.addresses("battle").len() == 2)
        .await;
}

#[tokio::test]
async fn several_control_planes_over_one_store_agree_and_write_once() {
    let first = Fixture::start().await;
    let (import, _imports) = Import::new(
        at(&first.server),
        first.store.clone(),
        first.worlds.clone(),
        first.stop.clone(),
    );
    tokio::spawn(import.run());
    for i in 0..40 {
        first.put(&format!("battle/10.0.0.{i}:80"), "").await;
    }
    first
        .until("all", |f| f.addresses("battle").len() == 40)
        .await;
    let revision = first.store.revision();
    assert!(revision <= 40, "{revision}");
    for i in 0..10 {
        first
            .program
            .commit(Txn::new().delete(format!("battle/10.0.0.{i}:80")))
            .await
            .unwrap();
    }
    first
        .until("thirty", |f| f.addresses("battle").len() == 30)
        .await;
    tokio::time::sleep(LOOK * 3).await;
    assert_eq!(first.addresses("battle").len(), 30);
    assert!(
        first.store.revision() <= revision + 10,
        "{}",
        first.store.revision()
    );
}

#[tokio::test]
async fn who_registers_under_the_same_id_speaks_for_itself() {
    let fixture = Fixture::start().await;
    let id = InstanceId {
        service: ServiceName::new(NAMESPACE, "battle"),
        id: "10.0.0.1:80".into(),
    };
    let instance = found::read("battle/10.0.0.1:80", b"", NAMESPACE).unwrap();
    let record = InstanceRecord::new(&instance, 1, 5000);
    let at = fixture
        .store
        .commit(Txn::new().put(instance_key(&id), serde_json::to_vec(&record).unwrap()))
        .await
        .unwrap();
    fixture.put("battle/10.0.0.1:80", r#"{"weight":9}"#).await;
    fixture.put("battle/10.0.0.2:80", "").await;
    fixture
        .until("the other", |f| f.addresses("battle").len() == 1)
        .await;
    let world = fixture.worlds.borrow().clone();
    assert_eq!(world.instances.get(&id).unwrap().revision, at);
}

/// Whoever connects to any 127.x address at this port hears nothing, not even a refusal.
async fn silence() -> (u16, Vec<tokio::net::TcpStream>, TcpListener) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut waiting = Vec::new();
    let connect = || {
        let connecting = tokio::net::TcpStream::connect(("127.0.0.1", port));
        tokio::time::timeout(Duration::from_millis(300), connecting)
    };
    while let Ok(Ok(stream)) = connect().await {
        waiting.push(stream);
    }
    (port, waiting, listener)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_lost_its_data_takes_nobody_away_and_is_read_again() {
    let mut fixture = Fixture::start().await;
    let (port, _waiting, _listener) = silence().await;
    let address = |i: usize| format!("127.9.{}.{}:{port}", i / 200, i % 200 + 1);
    let all: Vec<String> = (0..COUNT).map(address).collect();
    for some in all.chunks(1000) {
        let put = |txn: Txn, at| txn.put(format!("battle/{at}"), "");
        let txn = some.iter().fold(Txn::new(), put);
        fixture.program.commit(txn).await.unwrap();
    }
    fixture
        .until("all", |f| f.addresses("battle").len() == COUNT)
        .await;
    fixture.server.lose_data().await.unwrap();
    // Asking so many that are silent takes longer than this test has.
    fixture
        .until("held", |f| f.imports.view().held.len() == COUNT)
        .await;
    assert_eq!(fixture.addresses("battle").len(), COUNT);
    fixture.program = Store::etcd(at(&fixture.server)).await.unwrap();
    fixture.put("shop/10.0.0.1:80", "").await;
    fixture
        .until("another service", |f| f.addresses("shop").len() == 1)
        .await;
    fixture.put(&format!("battle/{}", address(0)), "").await;
    fixture
        .until("one is back", |f| f.imports.view().held.len() == COUNT - 1)
        .await;
    assert_eq!(fixture.addresses("battle").len(), COUNT);
}

/// Together they need longer to be asked than [`PATIENCE`].
const COUNT: usize = 3000;
