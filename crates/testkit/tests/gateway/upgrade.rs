//! An edge is replaced by another process while it serves: HTTP, HTTPS, TLS that a backend ends and raw TCP lose nothing, and
//! an heir that can't serve all of it leaves the old one at work.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::peers::{Tls, parrot, tls_parrot};
use crate::certificate;

const PAUSE: Duration = Duration::from_millis(10);

const DOCUMENTS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: play}
spec:
  parentRefs: [{name: edge, sectionName: web}, {name: edge, sectionName: secure}]
  hostnames: [play.example.com]
  rules:
  - matches: [{path: {value: /battle.Battle/}}]
    backendRefs: [{name: web-grpc, port: 80}]
  - backendRefs: [{name: web, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: through}
spec:
  parentRefs: [{name: edge, sectionName: through}]
  rules: [{backendRefs: [{name: tls, port: 443}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: raw}
spec:
  parentRefs: [{name: edge, sectionName: raw}]
  rules: [{backendRefs: [{name: raw, port: 9000}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-grpc}
spec: {selector: {app: web}, ports: [{port: 80, appProtocol: grpc}]}
---
apiVersion: v1
kind: Service
metadata: {name: tls}
spec: {selector: {app: tls}, ports: [{port: 443, appProtocol: tcp}]}
---
apiVersion: v1
kind: Service
metadata: {name: raw}
spec: {selector: {app: raw}, ports: [{port: 9000, appProtocol: tcp}]}
"#;

/// The Gateway, with further listeners.
fn gateway(more: &str) -> String {
    format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: phalanx
  listeners:
  - {{name: web, port: 8080, protocol: HTTP}}
  - {{name: secure, port: 8443, protocol: HTTPS, hostname: play.example.com, tls: {{certificateRefs: [{{name: web}}]}}}}
  - {{name: through, port: 8443, protocol: TLS, hostname: pass.example.com, tls: {{mode: Passthrough}}}}
  - {{name: raw, port: 9000, protocol: TCP}}
{more}"#
    )
}

/// An edge of which there may be several processes.
struct Edge {
    ip: IpAddr,
    folder: PathBuf,
    control: SocketAddr,
    socket: PathBuf,
    started: usize,
    serving: Process,
    before: Vec<Process>,
}

impl Edge {
    fn start(mesh: &Mesh, ip: IpAddr) -> anyhow::Result<Self> {
        let (folder, control) = (mesh.folder().to_owned(), mesh.xds);
        let socket = folder.join("edge.sock");
        let serving = process(&folder, control, ip, 0, &["--workers", "2"])?;
        Ok(Self {
            ip,
            folder,
            control,
            socket,
            started: 1,
            serving,
            before: Vec::new(),
        })
    }

    fn heir(&mut self, extra: &[&str]) -> anyhow::Result<Process> {
        self.started += 1;
        process(&self.folder, self.control, self.ip, self.started, extra)
    }

    async fn upgrade(&mut self, workers: &str) -> anyhow::Result<()> {
        let heir = self.heir(&["--workers", workers])?;
        said(&heir, "took over").await?;
        self.before.push(std::mem::replace(&mut self.serving, heir));
        Ok(())
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }
}

fn process(
    folder: &Path,
    control: SocketAddr,
    ip: IpAddr,
    number: usize,
    extra: &[&str],
) -> anyhow::Result<Process> {
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--gateway", "edge", "--bind", &ip.to_string()])
        .arg("--tls-dir")
        .arg(folder.join("tls"))
        .arg("--upgrade-socket")
        .arg(folder.join("edge.sock"))
        .args(["--admin", &SocketAddr::new(ip, 15000).to_string()])
        .args(["--control", &control.to_string(), "--drain", "1s"])
        .args(extra);
    Process::spawn(command, &folder.join(format!("edge-{number}.log")))
}

async fn said(process: &Process, words: &str) -> anyhow::Result<()> {
    eventually(&format!("`{words}`"), READY_MAX, async || {
        process.log().contains(words).then_some(())
    })
    .await
    .with_context(|| process.log())
}

async fn ended(process: &mut Process) -> anyhow::Result<()> {
    eventually("a process to end", READY_MAX, async || {
        process.has_ended().then_some(())
    })
    .await
    .with_context(|| process.log())
}

/// Clients that go on until told to stop. Whatever fails of theirs fails the test.
#[derive(Default)]
struct Clients {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<anyhow::Result<u64>>,
}

impl Clients {
    fn add<F>(&mut self, what: &'static str, client: impl FnOnce(Pace) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let done = Arc::<AtomicU64>::default();
        let pace = Pace {
            stop: Arc::clone(&self.stop),
            done: Arc::clone(&done),
        };
        let client = client(pace);
        self.tasks.spawn(async move {
            client.await.context(what)?;
            Ok(done.load(Ordering::Relaxed))
        });
    }

    /// How often the one that did least did what it does.
    async fn finish(mut self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut least = u64::MAX;
        while let Some(done) = self.tasks.join_next().await {
            least = least.min(done??);
        }
        Ok(least)
    }
}

struct Pace {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Pace {
    async fn goes_on(&self) -> bool {
        self.done.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
        !self.stop.load(Ordering::Relaxed)
    }
}

/// A connection for each request.
async fn fresh_http(pace: Pace, to: SocketAddr) -> anyhow::Result<()> {
    let get = Call::get("play.example.com", "/");
    while pace.goes_on().await {
        let answer = call(to, &get).await?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    Ok(())
}

/// A handshake for each request.
async fn fresh_https(pace: Pace, to: SocketAddr, tls: Tls) -> anyhow::Result<()> {
    while pace.goes_on().await {
        let mut stream = tls.connect(to, "play.example.com", &[b"http/1.1"]).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: play.example.com\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    }
    Ok(())
}

/// One gRPC stream in TLS from the beginning to the end of the test.
async fn secure_stream(pace: Pace, to: SocketAddr, tls: Tls) -> anyhow::Result<()> {
    let stream = tls.connect(to, "play.example.com", &[b"h2"]).await?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await?;
    tokio::spawn(connection);
    let (mut messages, body) = Channel::<Bytes>::new(8);
    let request = Request::post("https://play.example.com/battle.Battle/Play")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)?;
    let answer = tokio::spawn(sender.send_request(request));
    while pace.goes_on().await {
        let message = Bytes::from_static(&[0, 0, 0, 0, 3, b'a', b'b', b'c']);
        let sent = messages.send_data(message).await;
        sent.map_err(|_| anyhow::anyhow!("the stream broke"))?;
    }
    drop(messages);
    let collected = answer.await??.into_body().collect().await?;
    let status = collected.trailers().and_then(|t| t.get("grpc-status"));
    ensure!(status.is_some_and(|s| s == "0"), "{status:?}");
    Ok(())
}

/// Bytes there and back, over one connection or over one each.
async fn echoes(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    sent: &[u8],
    received: &mut [u8],
) -> anyhow::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let written = async {
        write.write_all(sent).await?;
        write.flush().await
    };
    let (written, came) = tokio::join!(written, read.read_exact(received));
    written.and(came.map(drop))?;
    ensure!(*sent == *received, "bytes changed on their way");
    Ok(())
}

async fn tunnel(pace: Pace, to: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    let sent = vec![7; 200_000];
    while pace.goes_on().await {
        echoes(&mut stream, &sent, &mut vec![0; sent.len()]).await?;
    }
    Ok(())
}

async fn fresh_tcp(pace: Pace, to: SocketAddr) -> anyhow::Result<()> {
    while pace.goes_on().await {
        echoes(TcpStream::connect(to).await?, b"hello", &mut [0; 5]).await?;
    }
    Ok(())
}

async fn passed_on(pace: Pace, to: SocketAddr, tls: Tls) -> anyhow::Result<()> {
    let mut stream = tls.connect(to, "pass.example.com", &[]).await?;
    while pace.goes_on().await {
        echoes(&mut stream, &[1; 30_000], &mut [0; 30_000]).await?;
    }
    Ok(())
}

async fn fresh_passed_on(pace: Pace, to: SocketAddr, tls: Tls) -> anyhow::Result<()> {
    while pace.goes_on().await {
        let stream = tls.connect(to, "pass.example.com", &[]).await?;
        echoes(stream, b"hello", &mut [0; 5]).await?;
    }
    Ok(())
}

/// Whatever lasts; some begin with each process.
fn lasting(clients: &mut Clients, edge: &Edge, web: &Tls, own: &Tls) {
    let (secure, raw) = (edge.at(8443), edge.at(9000));
    clients.add("a gRPC stream in TLS", |pace| {
        secure_stream(pace, secure, web.clone())
    });
    clients.add("a connection passed on", |pace| {
        passed_on(pace, secure, own.clone())
    });
    clients.add("a tunnel", |pace| tunnel(pace, raw));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_is_replaced_under_traffic_and_nothing_is_lost() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let tls_dir = mesh.folder().join("tls");
    let web_cert = certificate(&tls_dir, "web", "play.example.com")?;
    let own_cert = certificate(&tls_dir, "own", "pass.example.com")?;
    let (web, own) = (Tls::trusting(&web_cert)?, Tls::trusting(&own_cert)?);
    let (raw_ip, tls_ip) = (address::fresh(), address::fresh());
    let (raw_at, tls_at) = (SocketAddr::new(raw_ip, 9000), SocketAddr::new(tls_ip, 8443));
    let _raw_app = parrot(raw_at).await?;
    let _tls_app = tls_parrot(tls_at, &own_cert).await?;
    mesh.apply(DOCUMENTS).await?;
    let _web = mesh.instance("web", "v1", "web").await?;
    let raw_app = format!("tcp={raw_at}");
    let tls_app = format!("tcp={tls_at}");
    let _raw = mesh.sidecar("raw", "v1", raw_ip, &["--app", &raw_app])?;
    let _tls = mesh.sidecar("tls", "v1", tls_ip, &["--app", &tls_app])?;
    for (service, ip) in [("raw", raw_ip), ("tls", tls_ip)] {
        mesh.registered(service, SocketAddr::new(ip, 15006)).await?;
    }
    mesh.apply(&gateway("")).await?;
    let mut edge = Edge::start(&mesh, address::fresh())?;
    let (plain, secure, raw) = (edge.at(8080), edge.at(8443), edge.at(9000));
    eventually("the edge to serve", READY_MAX, async || {
        let get = Call::get("play.example.com", "/");
        let http = call(plain, &get).await.ok()?;
        let stream = TcpStream::connect(raw).await.ok()?;
        echoes(stream, b"hello", &mut [0; 5]).await.ok()?;
        let stream = own.connect(secure, "pass.example.com", &[]).await.ok()?;
        echoes(stream, b"hello", &mut [0; 5]).await.ok()?;
        (http.status == 200).then_some(())
    })
    .await
    .with_context(|| edge.serving.log())?;

    let load = Load::start(plain, &Call::get("play.example.com", "/"), 4, PAUSE);
    let mut clients = Clients::default();
    clients.add("HTTP", |pace| fresh_http(pace, plain));
    clients.add("HTTPS", |pace| fresh_https(pace, secure, web.clone()));
    clients.add("TCP", |pace| fresh_tcp(pace, raw));
    clients.add("TLS passed on", |pace| {
        fresh_passed_on(pace, secure, own.clone())
    });
    lasting(&mut clients, &edge, &web, &own);
    for workers in ["3", "1"] {
        edge.upgrade(workers).await?;
        lasting(&mut clients, &edge, &web, &own);
        let before = load.report().sent;
        eventually("traffic after the upgrade", READY_MAX, async || {
            (load.report().sent > before + 40).then_some(())
        })
        .await?;
    }
    let report = load.stop().await;
    let least = clients.finish().await?;
    assert_eq!(report.failures, Default::default(), "{report:?}");
    assert!(least > 0, "{report:?}");
    for process in &mut edge.before {
        ended(process).await?;
        let log = process.log();
        assert!(log.contains("drained") && !log.contains("WARN"), "{log}");
    }

    // A listener that came after an upgrade goes along with the next one, and one that goes closes.
    mesh.apply(&gateway("  - {name: more, port: 8081, protocol: HTTP}\n"))
        .await?;
    let more = edge.at(8081);
    let get = Call::get("play.example.com", "/");
    let unrouted = async || Some(call(more, &get).await.ok()?.status == 404).filter(|is| *is);
    eventually("the new port", READY_MAX, unrouted).await?;
    edge.upgrade("2").await?;
    ensure!(unrouted().await.is_some(), "{}", edge.serving.log());
    mesh.apply(&gateway("")).await?;
    eventually("it to close", READY_MAX, async || {
        TcpStream::connect(more).await.is_err().then_some(())
    })
    .await?;

    // An heir that lacks a certificate of what is served leaves it to the one that has it.
    let (kept, away) = (tls_dir.join("web"), tls_dir.join("away"));
    std::fs::rename(&kept, &away)?;
    let mut heir = edge.heir(&["--upgrade-wait", "1s"])?;
    ended(&mut heir).await?;
    let log = heir.log();
    assert!(log.contains("can't be served here"), "{log}");
    assert!(log.contains("web/tls.crt"), "{log}");
    let stream = web.connect(secure, "play.example.com", &[]).await;
    ensure!(stream.is_ok(), "{}", edge.serving.log());
    std::fs::rename(&away, &kept)?;

    // Nor does a sidecar of that name become an edge, though its identity is the same.
    let path = edge.socket.display().to_string();
    let app = SocketAddr::new(address::fresh(), 8080).to_string();
    let extra = ["--app", &app, "--upgrade-socket", &path];
    let mut sidecar = mesh.sidecar("edge", "v1", address::fresh(), &extra)?;
    ended(&mut sidecar).await?;
    let log = sidecar.log();
    assert!(log.contains("gateway default/edge"), "{log}");

    edge.upgrade("1").await?;
    let answer = call(plain, &get).await?;
    ensure!(answer.status == 200, "{answer:?}");
    let stream = web.connect(secure, "play.example.com", &[]).await;
    ensure!(stream.is_ok(), "{}", edge.serving.log());
    assert!(edge.serving.terminate(READY_MAX).await?.success());
    assert!(TcpStream::connect(plain).await.is_err());
    assert!(!edge.socket.exists());
    Ok(())
}
