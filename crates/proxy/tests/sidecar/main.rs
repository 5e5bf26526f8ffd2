//! A whole sidecar, in this process, between a scripted control plane and a small application.

mod app;
mod control;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::udp::{UdpPort, UdpRules};
use phalanx_model::resource::{
    Action, Assignment, Backend, Cluster, Endpoint, Forward, HeaderEdit, Health, Listener,
    ListenerProtocol, Retry, Rewrite, RouteTable, Rule, RuleMatch, VirtualHost,
};
use phalanx_model::{ClusterName, ServiceName};
use phalanx_proxy::Config;
use phalanx_proxy::serve::{Running, ServeError, start};
use phalanx_xds::{Encoded, Kind, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use app::App;
use control::{Control, Script};

const DEADLINE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_millis(1200);

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

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One exchange on a connection of its own: status and body.
async fn get(address: SocketAddr, host: &str, path: &str) -> (u16, String) {
    exchange(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"),
    )
    .await
}

async fn exchange(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    let status = answer
        .get(9..12)
        .and_then(|code| code.parse().ok())
        .unwrap_or_default();
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    (status, body)
}

fn cluster_name(service: &str) -> ClusterName {
    ClusterName::outbound(ServiceName::new("default", service), 80)
}

fn cluster(service: &str) -> Encoded {
    encode::cluster(&Cluster::new(cluster_name(service), Protocol::Auto))
}

fn endpoints(service: &str, version: &str, address: SocketAddr) -> Encoded {
    let endpoint = Endpoint {
        address,
        weight: 1,
        zone: String::new(),
        is_far: false,
        health: Health::Healthy,
        version: version.into(),
        instance: "one".into(),
        target: 0,
        mutual_tls: false,
        datagrams: false,
        token: String::new(),
    };
    encode::endpoints(&Assignment {
        cluster: cluster_name(service),
        endpoints: vec![endpoint],
        overprovision: None,
    })
}

fn listener(address: SocketAddr) -> Encoded {
    let protocol = ListenerProtocol::Http {
        route_table: "outbound".into(),
    };
    encode::listener(&Listener {
        name: "outbound".into(),
        address,
        direction: Direction::Outbound,
        protocol,
    })
}

fn datagrams(address: SocketAddr) -> Encoded {
    let port = UdpPort {
        name: "UDPRoute/default/echo".into(),
        backends: Vec::new(),
        by_source: Vec::new(),
        rules: UdpRules::default(),
    };
    encode::listener(&Listener {
        name: format!("udp/{address}"),
        address,
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Udp(port),
    })
}

fn routes(host: &str, service: &str) -> Encoded {
    let backend = Backend {
        cluster: Some(cluster_name(service)),
        weight: 1,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    };
    let forward = Forward {
        backends: vec![backend],
        rewrite: Rewrite::default(),
        request_timeout: None,
        attempt_timeout: None,
        retry: Retry::default(),
        hash_on: None,
        ..Forward::default()
    };
    let rule = Rule {
        name: "HTTPRoute/default/echo/0".into(),
        matches: RuleMatch::default(),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        action: Action::Forward(forward),
    };
    let host = VirtualHost {
        name: host.into(),
        domains: vec![host.into(), format!("{host}:80")],
        rules: vec![rule],
    };
    encode::routes(&RouteTable {
        name: "outbound".into(),
        hosts: vec![host],
    })
}

fn broken(kind: Kind, name: &str) -> Encoded {
    Encoded::new(
        kind,
        name,
        Bytes::from_static(b"\xff\xffno protobuf"),
        Vec::new(),
    )
}

/// A sidecar of service `caller`, whose calls to `echo` reach `app`.
async fn sidecar(control: &Control, apps: &[SocketAddr]) -> Running {
    start(config(control, apps)).await.unwrap()
}

fn config(control: &Control, apps: &[SocketAddr]) -> Config {
    let named = apps.iter().enumerate().map(|(at, app)| {
        (
            if apps.len() > 1 {
                format!("p{at}")
            } else {
                String::new()
            },
            *app,
        )
    });
    Config {
        labels: [("version".to_owned(), "v1".to_owned())].into(),
        inbound: any_port(),
        outbound: any_port(),
        admin: any_port(),
        control: control.address.to_string(),
        workers: 1,
        drain: Duration::from_secs(10),
        ttl: TTL,
        ..Config::new(ServiceName::new("default", "caller"), named.collect())
    }
}

/// What makes `echo` reachable.
fn push_echo(script: &Script, running: &Running, app: SocketAddr) {
    script.push(vec![
        cluster("echo"),
        endpoints("echo", "v2", app),
        listener(running.outbound()),
        routes("echo", "echo"),
    ]);
}

async fn until_ready(running: &Running) {
    until("ready", async || {
        get(running.admin(), "localhost", "/readyz").await.0 == 200
    })
    .await;
}

#[tokio::test]
async fn what_the_control_plane_sends_is_acknowledged_and_served() {
    let (script, app) = (Script::default(), App::start(any_port()));
    let control = Control::start(&script, any_port());
    let running = sidecar(&control, &[]).await;
    push_echo(&script, &running, app.address);
    until_ready(&running).await;
    let (status, body) = get(running.outbound(), "echo", "/").await;
    assert_eq!((status, body.as_str()), (200, "hello traced=true"));
    until("every answer", async || script.answers() >= 4).await;
    assert!(script.nacks().is_empty());
    let node = script.see().requests[0].node.clone().unwrap();
    assert!(node.id.starts_with("default/caller/"), "{}", node.id);
    let (_, dump) = get(running.admin(), "localhost", "/config_dump").await;
    assert!(
        dump.contains("outbound|80|echo.default.svc.mesh")
            && dump.contains(&cluster("echo").version),
        "{dump}"
    );
    running.shutdown().await;
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_the_old_one_stays() {
    let (script, app) = (Script::default(), App::start(any_port()));
    let control = Control::start(&script, any_port());
    let running = sidecar(&control, &[]).await;
    push_echo(&script, &running, app.address);
    until_ready(&running).await;

    script.push(vec![broken(Kind::Routes, "outbound")]);
    until("a refusal", async || script.nacks().len() == 1).await;
    assert!(
        script.nacks()[0].starts_with("outbound: "),
        "{:?}",
        script.nacks()
    );
    assert_eq!(get(running.outbound(), "echo", "/").await.0, 200);

    let bad = cluster_name("bad").to_string();
    script.push(vec![broken(Kind::Cluster, &bad), cluster("good")]);
    until("another refusal", async || script.nacks().len() == 2).await;
    assert!(
        script.nacks()[1].contains(&bad) && !script.nacks()[1].contains("good"),
        "{:?}",
        script.nacks()
    );
    let (_, dump) = get(running.admin(), "localhost", "/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let held = |name: &str| {
        dump["resources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["name"] == name)
    };
    assert!(held(&cluster_name("good").to_string()) && held("outbound") && !held(&bad));
    assert_eq!(dump["refused"].as_array().unwrap().len(), 2);

    script.push(vec![routes("other", "echo")]);
    until("the mended table", async || {
        get(running.outbound(), "other", "/").await.0 == 200
    })
    .await;
    let (_, metrics) = get(running.admin(), "localhost", "/metrics").await;
    assert!(
        metrics.contains("phalanx_xds_refused_total{kind=\"RDS\"} 1"),
        "{metrics}"
    );
    running.shutdown().await;
}

#[tokio::test]
async fn a_port_that_becomes_free_is_taken_though_updates_never_pause() {
    let script = Script::default();
    let control = Control::start(&script, any_port());
    let running = sidecar(&control, &[]).await;
    let stranger = UdpSocket::bind(any_port()).unwrap();
    let address = stranger.local_addr().unwrap();
    script.push(vec![datagrams(address)]);
    until("a refusal", async || !script.nacks().is_empty()).await;
    drop(stranger);
    let updates = AtomicU16::new(0);
    until("the port to be taken", async || {
        let port = 1 + updates.fetch_add(1, Ordering::Relaxed);
        let next = SocketAddr::new(address.ip(), port);
        script.push(vec![endpoints("echo", "v2", next)]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        UdpSocket::bind(address).is_err()
    })
    .await;
    running.shutdown().await;
}

#[tokio::test]
async fn without_a_control_plane_the_last_configuration_serves_on() {
    let (script, app) = (Script::default(), App::start(any_port()));
    let control = Control::start(&script, any_port());
    let address = control.address;
    let running = sidecar(&control, &[]).await;
    push_echo(&script, &running, app.address);
    until_ready(&running).await;

    drop(control);
    until("the loss", async || {
        get(running.admin(), "localhost", "/metrics")
            .await
            .1
            .contains("\nphalanx_xds_connected 0\n")
    })
    .await;
    assert_eq!(get(running.outbound(), "echo", "/").await.0, 200);
    assert_eq!(get(running.admin(), "localhost", "/readyz").await.0, 200);

    script.see().requests.clear();
    script.push(vec![routes("other", "echo")]);
    let control = Control::start(&script, address);
    until("the new table", async || {
        get(running.outbound(), "other", "/").await.0 == 200
    })
    .await;
    let requests = script.see().requests.clone();
    let resumed = requests
        .iter()
        .find(|r| r.type_url == Kind::Cluster.type_url())
        .unwrap();
    assert_eq!(
        resumed.initial_resource_versions.get(&cluster("echo").name),
        Some(&cluster("echo").version)
    );
    running.shutdown().await;
    drop(control);
}

#[tokio::test]
async fn a_sidecar_starts_without_a_control_plane_and_finds_it_later() {
    let (script, app) = (Script::default(), App::start(any_port()));
    let control = Control::start(&script, any_port());
    let address = control.address;
    let config = config(&control, &[app.address]);
    drop(control);
    let running = start(config).await.unwrap();
    assert_eq!(
        get(running.admin(), "localhost", "/healthz").await,
        (200, "{\"ok\":true}".into())
    );
    assert_eq!(get(running.admin(), "localhost", "/readyz").await.0, 503);
    let control = Control::start(&script, address);
    push_echo(&script, &running, app.address);
    until_ready(&running).await;
    until("registered", async || script.registered().is_some()).await;
    running.shutdown().await;
    drop(control);
}

#[tokio::test]
async fn removed_resources_are_no_longer_served() {
    let (script, app) = (Script::default(), App::start(any_port()));
    let control = Control::start(&script, any_port());
    let running = sidecar(&control, &[]).await;
    push_echo(&script, &running, app.address);
    until_ready(&running).await;
    assert_eq!(get(running.outbound(), "echo", "/").await.0, 200);
    script.remove(Kind::Cluster, &cluster("echo").name);
    until("gone", async || {
        get(running.outbound(), "echo", "/").await.0 >= 500
    })
    .await;
    running.shutdown().await;
}

#[tokio::test]
async fn only_an_application_that_accepts_is_registered() {
    let script = Script::default();
    let control = Control::start(&script, any_port());
    let app = App::start(any_port());
    let app_address = app.address;
    drop(app);
    let running = sidecar(&control, &[app_address]).await;
    push_echo(&script, &running, app_address);
    until_ready(&running).await;
    until("withdrawal of an earlier life", async || {
        script.registry_calls("deregister") > 0
    })
    .await;
    assert_eq!(script.registry_calls("register"), 0);

    let app = App::start(app_address);
    until("registered", async || script.registered().is_some()).await;
    let instance = script.registered().unwrap();
    assert_eq!(instance.ports[0].address, running.inbound());
    assert_eq!(instance.ports[0].number, app_address.port());
    assert_eq!(
        (
            instance.labels["app"].as_str(),
            instance.labels["version"].as_str()
        ),
        ("caller", "v1")
    );
    assert_eq!(instance.proxy_admin, running.admin().to_string());
    assert_eq!(get(running.inbound(), "caller", "/").await.0, 200);

    drop(app);
    until("withdrawn", async || script.registered().is_none()).await;
    let app = App::start(app_address);
    until("registered again", async || script.registered().is_some()).await;
    running.shutdown().await;
    drop(app);
}

#[tokio::test]
async fn every_port_of_an_application_must_accept() {
    let script = Script::default();
    let control = Control::start(&script, any_port());
    let (one, two) = (App::start(any_port()), App::start(any_port()));
    let running = sidecar(&control, &[one.address, two.address]).await;
    push_echo(&script, &running, one.address);
    until("registered", async || {
        script
            .registered()
            .is_some_and(|instance| instance.ports.len() == 2)
    })
    .await;
    drop(two);
    until("withdrawn", async || script.registered().is_none()).await;
    running.shutdown().await;
    drop(one);
}

#[tokio::test]
async fn a_restarted_control_plane_is_told_of_the_instance_again() {
    let (script, app) = (Script::default(), App::start(any_port()));
    let control = Control::start(&script, any_port());
    let address = control.address;
    let mut config = config(&control, &[app.address]);
    config.ttl = Duration::from_secs(600);
    let running = start(config).await.unwrap();
    push_echo(&script, &running, app.address);
    until("registered", async || script.registered().is_some()).await;
    drop(control);
    until("the loss", async || {
        get(running.admin(), "localhost", "/metrics")
            .await
            .1
            .contains("\nphalanx_registered 0\n")
    })
    .await;
    script.see().registered.clear();
    let control = Control::start(&script, address);
    // No heartbeat is due for minutes: the lost stream alone makes it assert.
    until("registered again", async || script.registered().is_some()).await;
    running.shutdown().await;
    drop(control);
}

#[tokio::test]
async fn a_drain_says_so_deregisters_and_loses_no_request() {
    let (script, app) = (Script::default(), App::start(any_port()));
    let control = Control::start(&script, any_port());
    let running = sidecar(&control, &[app.address]).await;
    push_echo(&script, &running, app.address);
    until_ready(&running).await;
    until("registered", async || script.registered().is_some()).await;
    let (inbound, admin) = (running.inbound(), running.admin());
    let slow = tokio::spawn(async move { get(inbound, "caller", "/slow").await });
    until("the request to arrive", async || {
        app.waiting.try_acquire().is_ok()
    })
    .await;

    let shutdown = tokio::spawn(running.shutdown());
    until("deregistered", async || script.registered().is_none()).await;
    assert_eq!(get(admin, "localhost", "/readyz").await.0, 503);
    assert!(!slow.is_finished() && !shutdown.is_finished());
    app.slow.add_permits(1);
    assert_eq!(slow.await.unwrap().0, 200);
    tokio::time::timeout(DEADLINE, shutdown)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        script.registry_calls("register"),
        2,
        "once accepting, once draining"
    );
}

#[tokio::test]
async fn counts_reach_the_control_plane_even_over_an_outage() {
    let (script, app) = (Script::default(), App::start(any_port()));
    let control = Control::start(&script, any_port());
    let address = control.address;
    let running = sidecar(&control, &[]).await;
    push_echo(&script, &running, app.address);
    until_ready(&running).await;
    let reported = || -> u64 {
        let inner = script.see();
        let edges = inner.reports.iter().flat_map(|report| &report.edges);
        edges
            .filter(|edge| edge.destination_service == "echo")
            .map(|edge| edge.requests)
            .sum()
    };
    for _ in 0..3 {
        assert_eq!(get(running.outbound(), "echo", "/").await.0, 200);
    }
    until("three requests", async || reported() == 3).await;
    drop(control);
    for _ in 0..2 {
        assert_eq!(get(running.outbound(), "echo", "/").await.0, 200);
    }
    let control = Control::start(&script, address);
    until("five requests", async || reported() == 5).await;
    {
        let inner = script.see();
        let edge = inner
            .reports
            .iter()
            .flat_map(|report| &report.edges)
            .next()
            .unwrap();
        assert_eq!(
            (
                edge.destination_version.as_str(),
                edge.protocol.as_str(),
                edge.destination_port
            ),
            ("v2", "http", 80)
        );
        assert_eq!(edge.latency_buckets.len(), 3);
        let last = inner.reports.last().unwrap();
        assert!(last.memory_bytes > 1_000_000 && last.node.starts_with("default/caller/"));
    }
    running.shutdown().await;
    drop(control);
}

#[tokio::test]
async fn metrics_carry_istio_names() {
    let (script, app) = (Script::default(), App::start(any_port()));
    let control = Control::start(&script, any_port());
    let running = sidecar(&control, &[app.address]).await;
    push_echo(&script, &running, app.address);
    until_ready(&running).await;
    get(running.outbound(), "echo", "/").await;
    get(running.outbound(), "nobody", "/").await;
    get(running.inbound(), "caller", "/").await;
    let wanted = [
        &[
            "istio_requests_total",
            "reporter=\"source\"",
            "destination_service=\"echo.default.svc.mesh\"",
            "destination_version=\"v2\"",
            "response_code=\"200\"",
            "response_flags=\"-\"",
            "} 1",
        ][..],
        &[
            "istio_requests_total",
            "reporter=\"source\"",
            "response_code=\"404\"",
            "response_flags=\"NR\"",
            "} 1",
        ],
        &[
            "istio_requests_total",
            "reporter=\"destination\"",
            "destination_service=\"caller.default.svc.mesh\"",
            "} 1",
        ],
        &[
            "istio_request_duration_milliseconds_bucket",
            "le=\"+Inf\"",
            "} 1",
        ],
        &["phalanx_xds_connected 1"],
        &["process_resident_memory_bytes "],
    ];
    let mut text = String::new();
    for line in wanted {
        let mut tries = 0;
        while !text
            .lines()
            .any(|l| line.iter().all(|part| l.contains(part)))
        {
            tries += 1;
            assert!(tries < 500, "no line with {line:?} in\n{text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
            text = get(running.admin(), "localhost", "/metrics").await.1;
        }
    }
    if std::env::var_os("SHOW_METRICS").is_some() {
        println!("{text}");
    }
    running.shutdown().await;
}

#[tokio::test]
async fn pages_are_read_by_their_own_name_only() {
    let script = Script::default();
    let control = Control::start(&script, any_port());
    let running = sidecar(&control, &[]).await;
    let admin = running.admin();
    assert_eq!(get(admin, "127.0.0.1:15000", "/healthz").await.0, 200);
    assert_eq!(get(admin, "[::1]:15000", "/healthz").await.0, 200);
    assert_eq!(get(admin, "evil.example", "/config_dump").await.0, 403);
    assert_eq!(get(admin, "localhost", "/nothing").await.0, 404);
    assert_eq!(
        exchange(
            admin,
            "POST /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
        .await
        .0,
        405
    );
    running.shutdown().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_with_its_flag() {
    let script = Script::default();
    let control = Control::start(&script, any_port());
    let taken = std::net::TcpListener::bind(any_port()).unwrap();
    let address = taken.local_addr().unwrap();
    type Change = fn(&mut Config, SocketAddr);
    let cases: [(&str, Change); 4] = [
        ("--inbound", |config, address| config.inbound = address),
        ("--outbound", |config, address| config.outbound = address),
        ("--admin", |config, address| config.admin = address),
        ("--tcp", |config, address| {
            config.tcp = vec![(address, ServiceName::new("default", "redis"), 6379)]
        }),
    ];
    for (flag, change) in cases {
        let mut config = config(&control, &[]);
        change(&mut config, address);
        let error = start(config).await.err().unwrap();
        assert!(matches!(error, ServeError::Listen { .. }));
        let text = error.to_string();
        assert!(
            text.contains(flag) && text.contains(&address.to_string()),
            "{text}"
        );
    }
}
