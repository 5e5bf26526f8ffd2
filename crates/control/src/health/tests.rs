use std::time::Duration;

use phalanx_model::ClusterName;
use phalanx_model::resource::{Health as EndpointState, Probe};
use phalanx_store::Txn;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::snapshot::Compiler;
use crate::world::fixture::Fixture;
use crate::world::follow::Follower;
use crate::world::record::health_key;

/// A store, the world of it, and a control plane's checks.
struct Plane {
    store: Store,
    health: Health,
    published: watch::Receiver<Arc<Published>>,
    checks: JoinHandle<()>,
    stop: CancellationToken,
}

impl Plane {
    async fn new(yaml: &str) -> Self {
        let store = Store::memory().await.unwrap();
        for stored in Fixture::yaml(yaml).stored() {
            let put = Txn::new().put(stored.key, stored.value.unwrap());
            store.commit(put).await.unwrap();
        }
        Self::over(store).await
    }

    async fn over(store: Store) -> Self {
        Self::over_as(store, "a").await
    }

    async fn over_as(store: Store, name: &str) -> Self {
        let stop = CancellationToken::new();
        let follower = Follower::load(store.clone()).await.unwrap();
        let (mut worlds, mut compiler) = (follower.worlds(), Compiler::default());
        let first = compiler.compile(worlds.borrow_and_update().clone());
        let (publish, published) = watch::channel(Arc::new(first));
        tokio::spawn(follower.run(stop.clone()));
        tokio::spawn(async move {
            while worlds.changed().await.is_ok() {
                let world = worlds.borrow_and_update().clone();
                publish.send_replace(Arc::new(compiler.compile(world)));
            }
        });
        let health = Health::default();
        let checks = health.clone().run(
            store.clone(),
            name.into(),
            None,
            published.clone(),
            stop.clone(),
        );
        Self {
            checks: tokio::spawn(checks),
            store,
            health,
            published,
            stop,
        }
    }

    /// As a data plane gets the endpoint.
    fn endpoint(&self, address: SocketAddr) -> Option<EndpointState> {
        let mesh = self.published.borrow().mesh.clone();
        let assignment = mesh.assignments.get(&ClusterName::outbound(shop(), 80))?;
        let mut endpoints = assignment.endpoints.iter();
        let found = endpoints.find(|endpoint| endpoint.address == address);
        found.map(|endpoint| endpoint.health)
    }

    async fn until_endpoint(&self, address: SocketAddr, state: EndpointState) {
        until(async || self.endpoint(address) == Some(state)).await;
    }

    async fn stored(&self, address: SocketAddr) -> Option<crate::world::Verdict> {
        let entry = self
            .store
            .get(&health_key(&shop(), &address))
            .await
            .unwrap()?;
        assert!(entry.lease.is_some(), "a verdict goes with who gave it");
        serde_json::from_slice(&entry.value).ok()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop.cancel();
        self.checks.abort();
    }
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came");
}

fn shop() -> ServiceName {
    ServiceName::new("default", "shop")
}

/// A service whose endpoints are these, and a policy.
fn manifests(addresses: &[SocketAddr], check: &str) -> String {
    let mut text = "\
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: shop}
spec:
  targetRefs: [{kind: Service, name: shop}]
  healthCheck: {CHECK, interval: 100ms, timeout: 400ms, unhealthyThreshold: 2}
"
    .replace("CHECK", check);
    for (index, address) in addresses.iter().enumerate() {
        text += &format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: shop-{index}, labels: {{kubernetes.io/service-name: shop}}}}
addressType: IPv4
endpoints: [{{addresses: [{}]}}]
ports: [{{name: http, port: {}}}]
",
            address.ip(),
            address.port()
        );
    }
    text
}

/// On a host of its own, so that a port that was given up is nobody else's before it is asked or taken again.
async fn listen() -> (TcpListener, SocketAddr) {
    static HOSTS: AtomicU64 = AtomicU64::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let host = [
        127,
        1 + high % 31,
        low,
        HOSTS.fetch_add(1, Ordering::Relaxed) as u8,
    ];
    let listener = TcpListener::bind((std::net::Ipv4Addr::from(host), 0))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn checker(name: &str) -> CheckerInfo {
    CheckerInfo {
        name: name.to_owned(),
        zone: String::new(),
        instance: InstanceId {
            service: ServiceName::new("default", "gateway"),
            id: name.to_owned(),
        },
        grpc: true,
        secure: false,
    }
}

/// What a checker would report of everything it was given.
fn report(work: &Work, is_healthy: bool) -> Vec<Reported> {
    let lines = work.groups.iter().flat_map(|group| {
        group.endpoints.iter().map(move |(address, _)| Reported {
            name: group.name.clone(),
            address: *address,
            is_healthy,
            reason: if is_healthy {
                String::new()
            } else {
                "answered 503".into()
            },
        })
    });
    lines.collect()
}

#[tokio::test]
async fn the_control_plane_asks_where_nobody_else_can_and_stores_what_changes() {
    let (listener, address) = listen().await;
    let plane = Plane::new(&manifests(&[address], "tcp: true")).await;
    until(async || plane.health.counts().probes.load(Ordering::Relaxed) > 2).await;
    assert_eq!(plane.stored(address).await, None, "nothing follows from it");
    drop(listener);
    plane
        .until_endpoint(address, EndpointState::Unhealthy)
        .await;
    let verdict = plane.stored(address).await.unwrap();
    assert!(verdict.is_unhealthy());
    assert_eq!(
        (verdict.reason.as_str(), verdict.by.as_str()),
        ("connection refused", "control plane")
    );
    let revision = plane.store.revision();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        plane.store.revision(),
        revision,
        "what stays is not written again"
    );
    let _listener = TcpListener::bind(address).await.unwrap();
    plane.until_endpoint(address, EndpointState::Healthy).await;
    assert_eq!(plane.stored(address).await, None);
}

#[tokio::test]
async fn a_verdict_goes_with_its_policy_and_with_its_endpoint() {
    let gone: Vec<SocketAddr> = {
        let (first, second) = (listen().await, listen().await);
        vec![first.1, second.1]
    };
    let plane = Plane::new(&manifests(&gone, "tcp: true")).await;
    for address in &gone {
        plane
            .until_endpoint(*address, EndpointState::Unhealthy)
            .await;
    }
    let slice = Txn::new().delete("config/EndpointSlice/default/shop-0");
    plane.store.commit(slice).await.unwrap();
    until(async || plane.stored(gone[0]).await.is_none()).await;
    assert!(plane.stored(gone[1]).await.is_some());
    let policy = Txn::new().delete("config/BackendPolicy/default/shop");
    plane.store.commit(policy).await.unwrap();
    plane.until_endpoint(gone[1], EndpointState::Healthy).await;
    assert_eq!(plane.stored(gone[1]).await, None);
}

#[tokio::test]
async fn data_planes_check_when_there_are_any_and_the_control_plane_takes_over_when_they_go() {
    let (_listener, address) = listen().await;
    let plane = Plane::new(&manifests(&[address], "path: /healthz")).await;
    let mut seats = Vec::new();
    for name in ["one", "two", "three"] {
        seats.push(plane.health.join(checker(name)).unwrap());
    }
    until(async || plane.health.gauges().probed == 0 && plane.health.gauges().targets == 1).await;
    let work: Vec<_> = seats.iter_mut().map(Seat::work).collect();
    let busy: Vec<usize> = (0..3).filter(|i| !work[*i].groups.is_empty()).collect();
    assert_eq!(busy.len(), 2, "two are enough");
    let group = &work[busy[0]].groups[0];
    assert_eq!(
        group.check.probe,
        Probe::Http {
            path: "/healthz".into()
        }
    );
    assert_eq!(group.authority, "shop.default.svc.mesh");
    // That nobody answers over HTTP is what the control plane knew by itself; the others know better.
    for is_healthy in [true, false, true] {
        for index in &busy {
            seats[*index].report(report(&work[*index], is_healthy).into_iter());
        }
        let state = match is_healthy {
            true => EndpointState::Healthy,
            false => EndpointState::Unhealthy,
        };
        plane.until_endpoint(address, state).await;
    }
    drop(seats);
    until(async || plane.health.gauges().probed == 1).await;
    plane
        .until_endpoint(address, EndpointState::Unhealthy)
        .await;
    assert_eq!(plane.stored(address).await.unwrap().by, "control plane");
}

#[tokio::test]
async fn what_a_checker_was_not_asked_about_is_ignored_and_counted() {
    let (_listener, address) = listen().await;
    let plane = Plane::new(&manifests(&[address], "tcp: true")).await;
    let mut seats: Vec<Seat> = ["one", "two", "three"]
        .map(|name| plane.health.join(checker(name)).unwrap())
        .into();
    until(async || plane.health.gauges().targets == 1 && plane.health.gauges().probed == 0).await;
    let work: Vec<_> = seats.iter_mut().map(Seat::work).collect();
    let busy = (0..3).find(|i| !work[*i].groups.is_empty()).unwrap();
    let idle = (0..3).find(|i| work[*i].groups.is_empty()).unwrap();
    let mut lines = report(&work[busy], true);
    seats[busy].report(lines.clone().into_iter());
    plane.until_endpoint(address, EndpointState::Healthy).await;
    // Of another's endpoint, of an endpoint that does not exist, of a group that does not.
    seats[idle].report(report(&work[busy], false).into_iter());
    lines[0].is_healthy = false;
    lines[0].address = ([10, 0, 0, 1], 1).into();
    seats[busy].report(lines.clone().into_iter());
    lines[0].address = address;
    lines[0].name = "default/other|0|h1".into();
    seats[busy].report(lines.into_iter());
    assert_eq!(plane.health.counts().ignored.load(Ordering::Relaxed), 3);
    let endless = std::iter::repeat_with(|| Reported {
        name: "x".into(),
        address,
        is_healthy: false,
        reason: String::new(),
    });
    seats[busy].report(endless);
    assert_eq!(
        plane.health.counts().ignored.load(Ordering::Relaxed),
        3 + LINES_MAX as u64
    );
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(plane.endpoint(address), Some(EndpointState::Healthy));
}

#[tokio::test]
async fn more_checkers_than_are_needed_are_sent_away() {
    let health = Health::default();
    let seats: Vec<_> = (0..CHECKERS_MAX)
        .map(|i| health.join(checker(&format!("c{i}"))).unwrap())
        .collect();
    assert!(health.join(checker("one more")).is_err());
    drop(seats);
    assert!(health.join(checker("one more")).is_ok());
}

#[tokio::test]
async fn a_restarted_control_plane_goes_on_from_what_was_found() {
    let (listener, address) = listen().await;
    drop(listener);
    let plane = Plane::new(&manifests(&[address], "tcp: true")).await;
    plane
        .until_endpoint(address, EndpointState::Unhealthy)
        .await;
    let before = plane.stored(address).await.unwrap();
    let (store, lease) = {
        let store = plane.store.clone();
        let entry = store.get(&health_key(&shop(), &address)).await.unwrap();
        (store, entry.unwrap().lease)
    };
    drop(plane);
    let plane = Plane::over(store.clone()).await;
    until(async || {
        let entry = store.get(&health_key(&shop(), &address)).await.unwrap();
        entry.is_some_and(|entry| entry.lease != lease)
    })
    .await;
    assert_eq!(
        plane.stored(address).await,
        Some(before),
        "since then, and for that reason"
    );
    assert_eq!(plane.endpoint(address), Some(EndpointState::Unhealthy));
}

#[tokio::test]
async fn how_many_are_unhealthy_is_told_as_soon_as_which() {
    let (listener, address) = listen().await;
    drop(listener);
    let plane = Plane::new(&manifests(&[address], "tcp: true")).await;
    let before = plane.published.borrow().world.clone();
    assert_eq!(plane.health.unhealthy(&before), 0);
    until(async || {
        let views = plane.health.views();
        views.iter().any(super::board::View::is_unhealthy)
    })
    .await;
    assert_eq!(plane.health.unhealthy(&before), 1, "of a world without it");
}

#[tokio::test]
async fn of_two_control_planes_over_a_store_each_endpoint_is_one_s() {
    let mut gone = Vec::new();
    for _ in 0..12 {
        gone.push(listen().await.1);
    }
    let one = Plane::new(&manifests(&gone, "tcp: true")).await;
    let two = Plane::over_as(one.store.clone(), "b").await;
    for name in ["a", "b"] {
        let record = serde_json::json!({ "admin": "", "xds": "", "started": 1, "token": 1 });
        let put = Txn::new().put(format!("planes/{name}"), record.to_string());
        one.store.commit(put).await.unwrap();
    }
    let shares = || [&one, &two].map(|plane| plane.health.gauges().targets);
    until(async || shares().iter().sum::<usize>() == gone.len()).await;
    for address in &gone {
        for plane in [&one, &two] {
            plane
                .until_endpoint(*address, EndpointState::Unhealthy)
                .await;
        }
    }
    for plane in [&one, &two] {
        let world = plane.published.borrow().world.clone();
        assert_eq!(plane.health.unhealthy(&world), gone.len());
    }
    let revision = one.store.revision();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        one.store.revision(),
        revision,
        "they don't write against each other"
    );

    // What one saw to, the other sees to when it is gone.
    drop(one);
    let store = two.store.clone();
    store.commit(Txn::new().delete("planes/a")).await.unwrap();
    until(async || two.health.gauges().targets == gone.len()).await;
    let _back = TcpListener::bind(gone[0]).await.unwrap();
    two.until_endpoint(gone[0], EndpointState::Healthy).await;
}

#[tokio::test]
async fn a_verdict_that_somebody_else_took_back_is_given_again() {
    let (listener, address) = listen().await;
    drop(listener);
    let plane = Plane::new(&manifests(&[address], "tcp: true")).await;
    plane
        .until_endpoint(address, EndpointState::Unhealthy)
        .await;
    let first = plane.store.get(&health_key(&shop(), &address)).await;
    let first = first.unwrap().unwrap();
    let deletion = Txn::new().delete(health_key(&shop(), &address));
    plane.store.commit(deletion).await.unwrap();
    until(async || plane.stored(address).await.is_some()).await;
    let again = plane.store.get(&health_key(&shop(), &address)).await;
    let again = again.unwrap().unwrap();
    assert!(again.created > first.created && again.value == first.value);
}
