//! A registration against a registry that follows a script: forgets, disappears, comes back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx_client::channel::channel;
use phalanx_client::registry::{Registration, State, Watch, from_wire, older};
use phalanx_model::instance::Protocol;
use phalanx_model::{Instance, InstanceId, InstancePort, ServiceName};
use phalanx_proto::phalanx::registry::v1::registry_server::{Registry, RegistryServer};
use phalanx_proto::phalanx::registry::v1::{
    DeregisterRequest, DeregisterResponse, HeartbeatBatch, HeartbeatBatchAnswer, HeartbeatRequest,
    HeartbeatResponse, InstanceKey, RegisterRequest, RegisterResponse, WatchRequest, WatchResponse,
};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

const TTL: Duration = Duration::from_millis(600);
const DEADLINE: Duration = Duration::from_secs(20);

/// What the registry holds: id → epoch.
#[derive(Clone, Default)]
struct Book {
    held: Arc<Mutex<BTreeMap<String, u64>>>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Book {
    fn epoch(&self) -> Option<u64> {
        self.held.lock().unwrap().get("one").copied()
    }

    fn forget(&self) {
        self.held.lock().unwrap().clear();
    }

    fn log(&self, call: &str, epoch: u64) {
        self.calls.lock().unwrap().push(format!("{call} {epoch}"));
    }

    fn calls(&self, name: &str) -> usize {
        self.calls
            .lock()
            .unwrap()
            .iter()
            .filter(|call| call.starts_with(name))
            .count()
    }
}

#[tonic::async_trait]
impl Registry for Book {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let request = request.into_inner();
        let instance = from_wire(request.instance.unwrap_or_default())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.log("register", request.epoch);
        let mut held = self.held.lock().unwrap();
        if let Some(current) = held.get("one").filter(|held| **held > request.epoch) {
            return Err(older("older".into(), *current));
        }
        held.insert(instance.id.id, request.epoch);
        Ok(Response::new(RegisterResponse {
            ttl_ms: request.ttl_ms,
            revision: 1,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let request = request.into_inner();
        self.log("heartbeat", request.epoch);
        let unknown = self.held.lock().unwrap().get(&request.id) != Some(&request.epoch);
        Ok(Response::new(HeartbeatResponse {
            unknown,
            ttl_ms: TTL.as_millis() as u32,
        }))
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        let request = request.into_inner();
        self.log("deregister", request.epoch);
        let mut held = self.held.lock().unwrap();
        let is_older = held
            .get(&request.id)
            .is_some_and(|held| *held <= request.epoch);
        let removed = is_older && held.remove(&request.id).is_some();
        Ok(Response::new(DeregisterResponse {
            removed,
            revision: 2,
        }))
    }

    type HeartbeatsStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<HeartbeatBatchAnswer, Status>> + Send>>;

    async fn heartbeats(
        &self,
        _: Request<Streaming<HeartbeatBatch>>,
    ) -> Result<Response<Self::HeartbeatsStream>, Status> {
        Err(Status::unimplemented("a registration beats for itself"))
    }

    type WatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        assert_eq!(request.into_inner().service, "battle");
        let other = Instance {
            id: InstanceId {
                id: "two".into(),
                ..instance().id
            },
            ..instance()
        };
        let key = InstanceKey {
            namespace: "default".into(),
            service: "battle".into(),
            id: "one".into(),
        };
        let wire = phalanx_client::registry::to_wire;
        let full = WatchResponse {
            revision: 4,
            full: true,
            upserted: vec![wire(&instance())],
            removed: Vec::new(),
        };
        let delta = WatchResponse {
            revision: 5,
            full: false,
            upserted: vec![wire(&other)],
            removed: vec![key],
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([
            Ok(full),
            Ok(delta),
        ]))))
    }
}

/// A registry in a runtime of its own, so that it can die with all of its connections.
struct Server {
    runtime: Option<Runtime>,
    address: SocketAddr,
}

impl Server {
    fn start(book: &Book, address: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let inside = runtime.enter();
        let listener = TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        let service = RegistryServer::new(book.clone());
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        drop(inside);
        Self {
            runtime: Some(runtime),
            address,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // On a thread that may wait: when this returns, every socket is closed.
            let ended =
                std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10)));
            ended.join().unwrap();
        }
    }
}

fn instance() -> Instance {
    let service = ServiceName::new("default", "battle");
    let labels = [
        ("app", "battle"),
        ("namespace", "default"),
        ("service", "battle"),
    ];
    Instance {
        id: InstanceId {
            service,
            id: "one".into(),
        },
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ports: vec![InstancePort {
            name: String::new(),
            number: 9000,
            address: "127.0.0.7:15006".parse().unwrap(),
            protocol: Protocol::Auto,
        }],
        zone: String::new(),
        weight: 1,
        proxy_admin: String::new(),
        mutual_tls: false,
    }
}

/// A loopback address of its own, so that a port that was given up is not somebody else's before it is taken again.
fn any_port() -> SocketAddr {
    static TAKEN: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    SocketAddr::from((
        [
            127,
            1 + high % 200,
            low,
            TAKEN.fetch_add(1, Ordering::Relaxed),
        ],
        0,
    ))
}

fn register_with(server: &Server) -> Registration {
    Registration::spawn(
        channel(&server.address.to_string()).unwrap(),
        instance(),
        TTL,
    )
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn nothing_is_registered_before_the_application_is_ready() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let registration = register_with(&server);
    until("withdrawn", || {
        matches!(registration.state(), State::Withdrawn { .. })
    })
    .await;
    assert_eq!(
        (
            book.calls("register"),
            book.calls("heartbeat"),
            book.epoch()
        ),
        (0, 0, None)
    );
    registration.set_ready(true);
    until("registered", || registration.state().is_registered()).await;
    assert!(book.epoch().is_some());
}

#[tokio::test]
async fn a_registration_beats_within_its_ttl() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let registration = register_with(&server);
    registration.set_ready(true);
    until("three beats", || book.calls("heartbeat") >= 3).await;
    assert_eq!(book.calls("register"), 1);
    assert!(registration.counts().heartbeats() >= 2 && registration.counts().failures() == 0);
}

#[tokio::test]
async fn an_instance_whose_clock_went_back_an_hour_is_registered_at_once_and_leaves_properly() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let now = 1_800_000_000_000;
    let at = |epoch| {
        let control = channel(&server.address.to_string()).unwrap();
        Registration::spawn_at(control, instance(), TTL, epoch)
    };
    let first = at(now);
    first.set_ready(true);
    until("registered", || first.state().is_registered()).await;
    let left = book.epoch().unwrap();
    // Killed, and the clock was set.
    drop(first);
    let second = at(now - 3_600_000);
    second.set_ready(true);
    until("registered", || second.state().is_registered()).await;
    assert_eq!(book.epoch(), Some(left + 1));
    until("a beat", || second.counts().heartbeats() > 0).await;
    assert_eq!(second.counts().failures(), 0);
    second.set_traffic(phalanx_model::instance::State::Draining);
    assert!(second.settled(DEADLINE).await && book.epoch() > Some(left + 1));
    assert!(second.deregister(DEADLINE).await);
    assert_eq!(book.epoch(), None);
}

#[tokio::test]
async fn who_was_registered_yields_to_a_newer_life() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let registration = register_with(&server);
    registration.set_ready(true);
    until("registered", || registration.state().is_registered()).await;
    let newer = book.epoch().unwrap() + 1_000;
    book.held.lock().unwrap().insert("one".into(), newer);
    until("refused", || registration.counts().failures() > 1).await;
    assert_eq!(book.epoch(), Some(newer));
}

#[tokio::test]
async fn a_forgetful_registry_is_told_again() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let registration = register_with(&server);
    registration.set_ready(true);
    until("registered", || book.epoch().is_some()).await;
    let epoch = book.epoch();
    book.forget();
    until("registered again", || book.epoch().is_some()).await;
    assert_eq!(book.epoch(), epoch, "nothing changed, so the epoch stays");
}

#[tokio::test]
async fn a_restarted_registry_is_told_again() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let address = server.address;
    let registration = register_with(&server);
    registration.set_ready(true);
    until("registered", || registration.state().is_registered()).await;
    drop(server);
    registration.assert_now();
    until("known to be gone", || {
        registration.state() == State::Unknown
    })
    .await;
    book.forget();
    let server = Server::start(&book, address);
    until("registered again", || {
        registration.state().is_registered() && book.epoch().is_some()
    })
    .await;
    drop(server);
}

#[tokio::test]
async fn readiness_is_followed_at_once_with_growing_epochs() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let registration = register_with(&server);
    let mut last = 0;
    for ready in [true, false, true, false, true] {
        registration.set_ready(ready);
        until("followed", || book.epoch().is_some() == ready).await;
        if let Some(epoch) = book.epoch() {
            assert!(epoch > last);
            last = epoch;
        }
    }
    let calls = book.calls.lock().unwrap().clone();
    let epochs: Vec<u64> = calls
        .iter()
        .map(|call| call.split_once(' ').unwrap().1.parse().unwrap())
        .collect();
    assert!(epochs.is_sorted(), "{calls:?}");
}

#[tokio::test]
async fn a_change_of_the_instance_is_asserted_at_once() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let registration = register_with(&server);
    registration.set_ready(true);
    until("registered", || book.calls("register") == 1).await;
    registration.set_instance(Instance {
        zone: "az2".into(),
        ..instance()
    });
    until("registered anew", || book.calls("register") == 2).await;
    registration.set_instance(Instance {
        zone: "az2".into(),
        ..instance()
    });
    until("another beat", || book.calls("heartbeat") >= 1).await;
    assert_eq!(book.calls("register"), 2);
}

#[tokio::test]
async fn deregistering_is_acknowledged_or_bounded() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let registration = register_with(&server);
    registration.set_ready(true);
    until("registered", || book.epoch().is_some()).await;
    assert!(registration.deregister(DEADLINE).await);
    assert_eq!(book.epoch(), None);

    let registration = register_with(&server);
    registration.set_ready(true);
    until("registered", || book.epoch().is_some()).await;
    drop(server);
    assert!(!registration.deregister(Duration::from_millis(200)).await);
}

#[tokio::test]
async fn a_watch_folds_the_full_state_and_changes() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let control = channel(&server.address.to_string()).unwrap();
    let mut watch = Watch::open(control, "default", "battle").await.unwrap();
    let mut known = BTreeMap::new();
    watch.next().await.unwrap().unwrap().apply(&mut known);
    assert_eq!(
        known.keys().map(|id| id.id.as_str()).collect::<Vec<_>>(),
        ["one"]
    );
    let update = watch.next().await.unwrap().unwrap();
    assert_eq!((update.revision, update.full), (5, false));
    update.apply(&mut known);
    assert_eq!(
        known.keys().map(|id| id.id.as_str()).collect::<Vec<_>>(),
        ["two"]
    );
    assert_eq!(watch.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_successor_holds_the_instance_without_a_gap_and_gives_it_back_when_it_fails() {
    let book = Book::default();
    let server = Server::start(&book, any_port());
    let first = register_with(&server);
    first.set_ready(true);
    until("registered", || first.state().is_registered()).await;
    let withdrawals = book.calls("deregister");
    let given = first.suspend();
    assert!(given.ready && Some(given.epoch) > book.epoch());
    let control = channel(&server.address.to_string()).unwrap();
    let second = Registration::succeed(control, instance(), TTL, given);
    until("registered", || second.state().is_registered()).await;
    assert_eq!(book.epoch(), Some(given.epoch));
    // What changes at the first meanwhile is asserted only when it holds the instance again.
    first.set_traffic(phalanx_model::instance::State::NotReady);
    until("a beat", || second.counts().heartbeats() > 1).await;
    assert_eq!(
        (book.epoch(), first.counts().failures()),
        (Some(given.epoch), 0)
    );
    drop(second);
    first.resume(given);
    assert!(first.settled(DEADLINE).await && book.epoch() > Some(given.epoch));
    assert_eq!(book.calls("deregister"), withdrawals);
}
