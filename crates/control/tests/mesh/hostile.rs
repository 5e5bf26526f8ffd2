//! Bad input on every port: refused or bounded, told, and others are served meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use phalanx_client::registry::to_wire;
use phalanx_proto::phalanx::observe::v1::observe_client::ObserveClient;
use phalanx_proto::phalanx::observe::v1::{Edge, ReportRequest};
use phalanx_proto::phalanx::registry::v1::registry_client::RegistryClient;
use phalanx_proto::phalanx::registry::v1::{Instance, RegisterRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::{Control, battle_instance, control};

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{port: 80}]\n";

/// What comes back until the other end closes, or nothing more comes.
async fn heard(address: SocketAddr, words: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may be closed before all is said.
    let _ = stream.write_all(words).await;
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut heard)).await;
    String::from_utf8_lossy(&heard).into_owned()
}

fn post(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /api/v1/apply HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn bodies_that_are_no_requests_are_told_so_and_change_nothing() {
    let control = control().await;
    let admin = control.running.admin_address();
    let deep = |inner: &str| {
        let depth = 100_000;
        format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth))
    };
    let aliases = "a: &a [x, x]\nb: *a\n";
    let yaml = |text: &str| {
        let file = serde_json::json!({"name": "a.yaml", "text": text});
        serde_json::json!({ "files": [file] }).to_string()
    };
    for (what, body, status) in [
        ("nothing", Vec::new(), 400),
        ("no JSON", b"kind: Service".to_vec(), 400),
        ("no UTF-8", b"{\"files\":[{\"name\":\"\xff\"".to_vec(), 400),
        ("deep JSON", deep("").into_bytes(), 400),
        ("deep YAML", yaml(&deep("")).into_bytes(), 422),
        ("aliases", yaml(aliases).into_bytes(), 422),
        ("NUL", yaml("a: \u{0}").into_bytes(), 422),
        ("2 MiB", yaml(&"#".repeat(2 << 20)).into_bytes(), 422),
    ] {
        let answer = heard(admin, &post(&body)).await;
        let told = answer.contains(&format!(" {status} ")) && answer.contains("\"error\"");
        assert!(told, "{what}: {answer}");
    }
    // What begins as TLS is answered as TLS: an alert, if anything.
    let answer = heard(admin, b"\x16\x03\x01\x00\x02\r\n\r\n").await;
    assert!(!answer.contains("HTTP/"), "{answer}");
    assert!(heard(admin, b"\x01\x02\r\n\r\n").await.contains(" 400 "));
    let fields: String = (0..500).map(|n| format!("x-{n}: y\r\n")).collect();
    let crowded = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n");
    assert!(heard(admin, crowded.as_bytes()).await.contains(" 431 "));
    let documents = control.admin.documents(None, None).await.unwrap();
    assert!(documents.items.is_empty());
    control.apply(WEB).await;
}

#[tokio::test]
async fn crowds_that_say_nothing_or_garbage_keep_nobody_out() {
    let control = control().await;
    let (admin, xds) = (
        control.running.admin_address(),
        control.running.xds_address(),
    );
    let mut crowd = Vec::new();
    for n in 0..crowd_max() {
        let mut stream = TcpStream::connect(xds).await.unwrap();
        let words: &[u8] = if n % 2 == 0 {
            b""
        } else {
            b"GET / HTTP/1.1\r\n\r\n"
        };
        let _ = stream.write_all(words).await;
        crowd.push(stream);
    }
    for _ in 0..100 {
        let mut stream = TcpStream::connect(admin).await.unwrap();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nx")
            .await
            .unwrap();
        crowd.push(stream);
    }
    control.apply(WEB).await;
    let mut registry = RegistryClient::connect(control.url()).await.unwrap();
    registry
        .register(request(to_wire(&battle_instance("b1"))))
        .await
        .unwrap();
    drop(crowd);
}

/// Each takes two descriptors of this process.
fn crowd_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok());
    (soft.unwrap_or(usize::MAX) / 4).min(2_000)
}

fn request(instance: Instance) -> RegisterRequest {
    RegisterRequest {
        instance: Some(instance),
        epoch: 1,
        ttl_ms: 30_000,
    }
}

async fn refused(control: &Control, what: &str, instance: Instance) {
    let mut registry = RegistryClient::connect(control.url()).await.unwrap();
    let answer = registry.register(request(instance)).await;
    let error = answer.expect_err(what);
    let codes = [
        Code::InvalidArgument,
        Code::OutOfRange,
        Code::ResourceExhausted,
    ];
    assert!(
        codes.contains(&error.code()) && !error.message().is_empty(),
        "{what}: {error}"
    );
    let visible = |c: char| !c.is_control();
    assert!(
        error.message().chars().all(visible),
        "{what}: {:?}",
        error.message()
    );
    assert!(
        error.message().len() < 1000,
        "{what}: {} bytes",
        error.message().len()
    );
}

#[tokio::test]
async fn instances_that_can_not_be_are_refused_with_a_reason_and_others_stay() {
    let control = control().await;
    let mut registry = RegistryClient::connect(control.url()).await.unwrap();
    registry
        .register(request(to_wire(&battle_instance("b1"))))
        .await
        .unwrap();
    let good = || to_wire(&battle_instance("b2"));
    let at = |address: &str| {
        let mut instance = good();
        instance.ports[0].address = address.to_owned();
        instance
    };
    for address in [
        "0.0.0.0:80",
        "[::]:80",
        "127.0.0.1:0",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "host:80",
        "",
    ] {
        refused(&control, address, at(address)).await;
    }
    for name in ["", "a/b", "a\nb", "A", "\u{202e}x", &"x".repeat(300)] {
        let id = Instance {
            id: name.to_owned(),
            ..good()
        };
        if !["A", "\u{202e}x"].contains(&name) {
            refused(&control, &format!("id {name:?}"), id).await;
        }
        let service = Instance {
            service: name.to_owned(),
            ..good()
        };
        refused(&control, &format!("service {name:?}"), service).await;
        let namespace = Instance {
            namespace: name.to_owned(),
            ..good()
        };
        refused(&control, &format!("namespace {name:?}"), namespace).await;
    }
    let label = |key: &str, value: &str| {
        let mut instance = good();
        instance.labels.insert(key.to_owned(), value.to_owned());
        instance
    };
    for (key, value) in [
        ("", "x"),
        ("version", "v1\n"),
        ("version", "\u{1b}[2J"),
        ("a\0", "x"),
        ("service", "other"),
        ("x", &"y".repeat(1 << 20)),
    ] {
        refused(&control, &format!("label {key:?}"), label(key, value)).await;
    }
    let mut many = good();
    many.labels
        .extend((0..10_000).map(|n| (format!("l{n}"), String::new())));
    refused(&control, "labels", many).await;
    let mut many = good();
    many.ports = vec![many.ports[0].clone(); 10_000];
    refused(&control, "ports", many).await;
    refused(
        &control,
        "weight",
        Instance {
            weight: u32::MAX,
            ..good()
        },
    )
    .await;
    refused(&control, "5 MiB", label("x", &"y".repeat(5 << 20))).await;
    let instances = control.admin.instances(None, None).await.unwrap().items;
    assert_eq!(
        instances.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(),
        ["b1"]
    );
}

#[tokio::test]
async fn reports_that_make_no_sense_are_refused_and_hurt_no_metric() {
    let control = control().await;
    let mut observe = ObserveClient::connect(control.url()).await.unwrap();
    let report = || ReportRequest {
        node: "default/match/m1".into(),
        namespace: "default".into(),
        service: "match".into(),
        ..ReportRequest::default()
    };
    let edge = |service: &str| Edge {
        destination_namespace: "default".into(),
        destination_service: service.to_owned(),
        requests: 1,
        ..Edge::default()
    };
    for (what, wrong) in [
        (
            "nobody",
            ReportRequest {
                node: String::new(),
                ..report()
            },
        ),
        (
            "a long node",
            ReportRequest {
                node: "x".repeat(1000),
                ..report()
            },
        ),
        (
            "a node with a line",
            ReportRequest {
                node: "a\nb".into(),
                ..report()
            },
        ),
        (
            "a service with a line",
            ReportRequest {
                service: "a\n".into(),
                ..report()
            },
        ),
        (
            "a destination with a line",
            ReportRequest {
                edges: vec![edge("a\nb")],
                ..report()
            },
        ),
        (
            "edges",
            ReportRequest {
                edges: vec![edge("a"); 5000],
                ..report()
            },
        ),
        (
            "buckets",
            ReportRequest {
                edges: vec![Edge {
                    latency_buckets: vec![1; 3],
                    ..edge("a")
                }],
                ..report()
            },
        ),
        (
            "5 MiB",
            ReportRequest {
                edges: vec![edge(&"x".repeat(5 << 20))],
                ..report()
            },
        ),
    ] {
        let error = observe.report(wrong).await.expect_err(what);
        let codes = [
            Code::InvalidArgument,
            Code::OutOfRange,
            Code::ResourceExhausted,
        ];
        assert!(codes.contains(&error.code()), "{what}: {error}");
    }
    let most = Edge {
        requests: u64::MAX,
        failures: u64::MAX,
        ..edge("web")
    };
    for _ in 0..2 {
        let sum = ReportRequest {
            edges: vec![most.clone()],
            ..report()
        };
        observe.report(sum).await.unwrap();
    }
    let edges = control.admin.edges(None).await.unwrap();
    assert_eq!(edges.totals.len(), 1, "{edges:?}");
    let metrics = control.admin.text("/metrics").await.unwrap();
    assert_eq!(metrics.status, 200);
}
