//! gRPC for callers who speak JSON: the same requests through our edge and through a stock Envoy's `grpc_json_transcoder`
//! under the same snapshot, to a service of gRPC's own library. What differs stands in `docs/transcoding.md`.

mod transcoding {
    pub mod table;
}

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use phalanx_testkit::http::{Answer, Call, Connection, Next, Stream, call};
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, envoy, eventually};

use self::transcoding::table::{CASES, Case, GATEWAY_DIFFERS};

const HOST: &str = "play.example.com";

/// `source`: of the descriptors, in YAML.
fn manifests(source: &str, backend: SocketAddr) -> String {
    let (ip, port) = (backend.ip(), backend.port());
    format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: phalanx
  listeners: [{{name: web, port: 8080, protocol: HTTP}}]
---
apiVersion: v1
kind: Service
metadata: {{name: battle}}
spec: {{ports: [{{port: 9000, appProtocol: grpc}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: battle, labels: {{kubernetes.io/service-name: battle}}}}
addressType: IPv4
endpoints: [{{addresses: ["{ip}"]}}]
ports: [{{port: {port}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: battle}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [{HOST}]
  rules:
  - backendRefs: [{{name: battle, port: 9000}}]
---
apiVersion: phalanx.dev/v1alpha1
kind: TranscodingPolicy
metadata: {{name: battle}}
spec:
  targetRefs: [{{kind: Service, name: battle}}]
  descriptorSet: {{{source}}}
  services: [battle.v1.Battle]
  autoMapping: true
  ignoredQueryParameters: [key]
"#
    )
}

/// The service, its descriptors, and both edges in front of it.
struct Stage {
    _mesh: Mesh,
    _processes: Vec<Process>,
    ours: SocketAddr,
    envoys: SocketAddr,
}

impl Stage {
    async fn start() -> anyhow::Result<Self> {
        let mut mesh = Mesh::start().await?;
        let (service, backend, set) = service(&mesh)?;
        let inline = format!("inline: \"{}\"", STANDARD.encode(set));
        mesh.apply(&manifests(&inline, backend)).await?;
        let (ours, envoys) = (address::fresh(), address::fresh());
        let processes = vec![service, mesh.edge(ours, mesh.xds)?, stock(&mesh, envoys)?];
        let stage = Self {
            _mesh: mesh,
            _processes: processes,
            ours: SocketAddr::new(ours, 8080),
            envoys: SocketAddr::new(envoys, 8080),
        };
        for address in [stage.ours, stage.envoys] {
            answered(address).await?;
        }
        Ok(stage)
    }
}

/// And its address, and its descriptors.
fn service(mesh: &Mesh) -> anyhow::Result<(Process, SocketAddr, Vec<u8>)> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../transcode/tests/protos");
    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_imports(true);
    compiler.open_file("battle/v1/battle.proto")?;
    let set = compiler.encode_file_descriptor_set();
    let path = mesh.folder().join("battle.pb");
    fs::write(&path, &set)?;
    let backend = SocketAddr::new(address::fresh(), 9000);
    let clients = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/python/transcoded.py");
    let mut command = Command::new(envoy::binary()?.with_file_name("python"));
    command.arg(clients).arg(&path).arg(backend.to_string());
    let service = Process::spawn(command, &mesh.folder().join("service.log"))?;
    Ok((service, backend, set))
}

async fn answered(edge: SocketAddr) -> anyhow::Result<()> {
    let first = Call::get(HOST, "/v1/rooms/1");
    let mut last = None;
    let answered = eventually("the service behind an edge", READY_MAX, async || {
        let answer = call(edge, &first).await.ok()?;
        let is_good = answer.status == 200;
        last = Some(answer);
        is_good.then_some(())
    });
    let answered = answered.await;
    answered.with_context(|| format!("{edge}: last: {last:?}"))
}

fn stock(mesh: &Mesh, ip: IpAddr) -> anyhow::Result<Process> {
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["bootstrap", "--gateway", "edge", "--instance", "envoy"])
        .args(["--bind", &ip.to_string()])
        .args(["--admin", &SocketAddr::new(ip, 15000).to_string()])
        .args(["--control", &mesh.xds.to_string()]);
    let printed = command.output()?;
    let why = String::from_utf8_lossy(&printed.stderr);
    anyhow::ensure!(printed.status.success(), "{why}");
    let config = mesh.folder().join("envoy.yaml");
    fs::write(&config, printed.stdout)?;
    let mut command = Command::new(envoy::binary()?);
    command.arg("-c").arg(&config);
    command.args([
        "--concurrency",
        "1",
        "-l",
        "warning",
        "--use-dynamic-base-id",
    ]);
    Process::spawn(command, &mesh.folder().join("envoy.log"))
}

fn asked(case: &Case, http2: bool) -> Call {
    let mut call = Call::get(HOST, case.target);
    call.method = case.method.parse().expect("a method");
    call.http2 = http2;
    for (name, value) in case.headers {
        call = call.header(name, value);
    }
    call.body(case.body)
}

/// What counts of an answer: its status, its type, and what it says. JSON is compared as such.
fn told(answer: &Answer, case: &Case) -> String {
    let content_type = answer.header("content-type").split(';').next();
    let content_type = content_type.unwrap_or_default();
    // Errors before the call are words of each proxy's own.
    if case.own_words {
        return answer.status.to_string();
    }
    let json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).ok();
    let body = match json(&answer.body) {
        Some(json) => plain(json).to_string(),
        None => {
            let lines = answer.body.split(|byte| *byte == b'\n');
            let read = |line: &[u8]| match json(line) {
                Some(json) => plain(json).to_string(),
                None => String::from_utf8_lossy(line).into_owned(),
            };
            lines.map(read).collect::<Vec<_>>().join("\n")
        }
    };
    match case.any_type {
        true => format!("{} {body}", answer.status),
        false => format!("{} {content_type} {body}", answer.status),
    }
}

/// `1` and `1.0` are one number.
fn plain(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (key, plain(value)));
            Value::Object(fields.collect())
        }
        other => other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_envoys_transcoder() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let mut wrong = Vec::new();
    for case in CASES {
        let name = format!("{} {} {}", case.method, case.target, case.body);
        let envoys = call(stage.envoys, &asked(case, false)).await;
        let envoys = told(&envoys.with_context(|| name.clone())?, case);
        for http2 in [false, true] {
            let ours = call(stage.ours, &asked(case, http2)).await;
            let ours = told(&ours.with_context(|| name.clone())?, case);
            if ours != envoys {
                wrong.push(format!(
                    "{name}\n  ours (HTTP/2: {http2}): {ours}\n  envoys: {envoys}"
                ));
            }
        }
    }
    ours_alone(stage.ours).await?;
    anyhow::ensure!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_come_from_a_server_that_tells_them() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let (_service, backend, _) = service(&mesh)?;
    let path = mesh.folder().join("battle.yaml");
    fs::write(&path, manifests(&format!("reflection: {backend}"), backend))?;
    let applied = || {
        let mut command = Command::new(executable("phalanx").ok()?);
        command.arg("apply").arg("-f").arg(&path);
        command.args(["--admin", &mesh.admin.to_string()]);
        let output = command.output().ok()?;
        output.status.success().then_some(())
    };
    eventually("the server's descriptors", READY_MAX, async || applied()).await?;
    let ours = address::fresh();
    let _edge = mesh.edge(ours, mesh.xds)?;
    answered(SocketAddr::new(ours, 8080)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_service_dies_ends_with_a_word() -> anyhow::Result<()> {
    for (accept, ending) in [
        (
            "*/*",
            "\n{\"error\":{\"code\":14,\"message\":\"upstream_reset\"}}\n",
        ),
        (
            "text/event-stream",
            "\n\nevent: error\ndata: {\"code\":14,\"message\":\"upstream_reset\"}\n\n",
        ),
    ] {
        let mut mesh = Mesh::start().await?;
        let (mut service, backend, set) = service(&mesh)?;
        let inline = format!("inline: \"{}\"", STANDARD.encode(set));
        mesh.apply(&manifests(&inline, backend)).await?;
        let ours = address::fresh();
        let _edge = mesh.edge(ours, mesh.xds)?;
        let edge = SocketAddr::new(ours, 8080);
        answered(edge).await?;
        let endless = Call::get(HOST, "/v1/rooms/1/events?count=1000000");
        let mut stream = Stream::open(edge, &endless.header("accept", accept)).await?;
        let mut text = String::new();
        loop {
            match stream.next().await? {
                Next::Piece(piece) => {
                    text.push_str(&String::from_utf8_lossy(&piece));
                    service.kill();
                }
                Next::End(_) => break,
                Next::BrokenOff => anyhow::bail!("broken off after {} bytes", text.len()),
            }
        }
        let at = text.floor_char_boundary(text.len().saturating_sub(ending.len()));
        assert_eq!(&text[at..], ending, "{accept}");
    }
    Ok(())
}

/// grpc-gateway is made for one service at build time; what it makes of the same annotations is the measure for the rest.
#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_grpc_gateway_but_for_what_is_listed() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let (_service, backend, set) = service(&mesh)?;
    let inline = format!("inline: \"{}\"", STANDARD.encode(set));
    mesh.apply(&manifests(&inline, backend)).await?;
    let (ours, theirs) = (address::fresh(), address::fresh());
    let (ours_at, theirs) = (SocketAddr::new(ours, 8080), SocketAddr::new(theirs, 8080));
    let _edge = mesh.edge(ours, mesh.xds)?;
    let tools = envoy::binary()?;
    let tools = tools.ancestors().nth(3).context("no folder of tools")?;
    let mut command = Command::new(tools.join("grpc-gateway"));
    command.arg(theirs.to_string()).arg(backend.to_string());
    let _gateway = Process::spawn(command, &mesh.folder().join("gateway.log"))?;
    answered(ours_at).await?;
    answered(theirs).await?;
    let mut wrong = Vec::new();
    for case in CASES {
        let name = format!("{} {} {}", case.method, case.target, case.body);
        let listed = GATEWAY_DIFFERS
            .iter()
            .any(|differs| name.starts_with(differs));
        let gateways = call(theirs, &asked(case, false)).await;
        let gateways = told(&gateways.with_context(|| name.clone())?, case);
        let ours = call(ours_at, &asked(case, false)).await;
        let ours = told(&ours.with_context(|| name.clone())?, case);
        if (ours == gateways) == listed {
            wrong.push(format!(
                "{name}\n  ours:     {ours}\n  gateways: {gateways}"
            ));
        }
    }
    anyhow::ensure!(
        wrong.is_empty(),
        "{} are not as listed:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}

/// What Envoy has no word for, or says in other words.
async fn ours_alone(edge: SocketAddr) -> anyhow::Result<()> {
    let text = |answer: &Answer| String::from_utf8_lossy(&answer.body).into_owned();
    let events = Call::get(HOST, "/v1/rooms/1/events?count=3&fail_after=1");
    let events = events.header("accept", "text/event-stream");
    let answer = call(edge, &events).await?;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(
        text(&answer),
        "data: {\"number\":1,\"text\":\"rooms/1\"}\n\nevent: error\ndata: {\"code\":14,\"message\":\"the room is gone\"}\n\n"
    );
    let lines = Call::get(HOST, "/v1/rooms/1/events?count=2&fail_after=1");
    let answer = call(edge, &lines).await?;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    assert!(
        text(&answer).ends_with("{\"error\":{\"code\":14,\"message\":\"the room is gone\"}}\n")
    );
    // The deadline goes along; whoever ends it first, service or edge, it is told alike.
    let slow = Call::get(HOST, "/v1/rooms/1?view=slow").header("grpc-timeout", "100m");
    let answer = call(edge, &slow).await?;
    assert_eq!(
        (answer.status, answer.json()["code"].as_u64()),
        (504, Some(4))
    );
    let answer = call(
        edge,
        &Call::get(HOST, "/v1/fail/5?details=foreign&message=gone"),
    )
    .await?;
    assert_eq!(answer.status, 404);
    assert_eq!(
        text(&answer),
        r#"{"code":5,"message":"gone","details":[{"@type":"type.googleapis.com/other.Thing","value":"CAE="}]}"#
    );
    // Native calls go on as they came.
    let answer = call(edge, &Call::grpc(HOST, "/battle.v1.Battle/GetRoom")).await?;
    assert_eq!((answer.status, answer.grpc_status()), (200, Some("0")));
    // HEAD is answered by a head alone, whatever the answer, and its connection goes on.
    for http2 in [false, true] {
        let mut connection = Connection::open(edge, http2).await?;
        for (path, status) in [
            ("/v1/report/x", 200),
            ("/v1/rooms/1/events?count=3", 200),
            ("/v1/rooms/1/events?fail_after=-1", 404),
            ("/v1/rooms/1", 404),
        ] {
            let mut head = Call::get(HOST, path).method("HEAD".parse()?);
            head.http2 = http2;
            let answer = connection.send(&head).await;
            let answer = answer.with_context(|| format!("HEAD {path}, HTTP/2: {http2}"))?;
            assert_eq!((answer.status, text(&answer)), (status, String::new()));
            assert!(!answer.header("content-type").is_empty(), "{answer:?}");
        }
    }
    let large = vec![b' '; (4 << 20) + 1];
    let post = Call::get(HOST, "/v1/rooms")
        .method("POST".parse()?)
        .body(large);
    let answer = call(edge, &post).await?;
    assert_eq!(
        (answer.status, answer.json()["code"].as_u64()),
        (413, Some(8))
    );
    Ok(())
}
