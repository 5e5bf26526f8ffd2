//! Certificates and the root are replaced under load: two sidecars with an application each, mutual TLS between them, HTTP/1.1,
//! gRPC and long streams all the while. Nobody notices.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::http::{self, Call};
use phalanx_testkit::load::Load;
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const LIMIT: Duration = Duration::from_secs(60);
/// Of one message there and back.
const ECHO_MAX: Duration = Duration::from_secs(20);
/// A leaf lives 5 s and is renewed when 3 s are left.
const LIFE: [&str; 2] = ["--leaf-ttl", "5s"];
const RENEWAL: [&str; 4] = ["--renew-before", "3s", "--cert-check", "100ms"];
const STREAMS: usize = 4;
/// Strict, so that nothing goes in plain text; and few requests per connection, so that there are handshakes all the time.
const POLICY: &str = "
apiVersion: phalanx.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: everybody, namespace: phalanx-system}
spec: {mtls: {mode: Strict}}
---
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: back}
spec:
  targetRefs: [{kind: Service, name: back}]
  connectionPool: {maxRequestsPerConnection: 50}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_and_the_root_are_replaced_without_a_failed_request() -> anyhow::Result<()> {
    // A minute, or as many seconds as are asked for.
    let soak = std::env::var("PHALANX_SOAK").ok();
    let seconds = soak.map_or(8, |text| text.parse().unwrap_or(0).max(60));
    let lasts = Duration::from_secs(seconds);
    let plane = Guarded::start_with(&LIFE).await?;
    fs::write(plane.folder().join("policy.yaml"), POLICY)?;
    let app = App::start().await?;
    let back = Sidecar::start(&plane, "back", app.address).await?;
    let front = Sidecar::start(&plane, "front", app.address).await?;
    plane.does(&["apply", "-f", "policy.yaml", "--wait"])?;
    eventually("the way to back", LIMIT, async || {
        let answer = http::call(front.outbound, &Call::get("back", "/")).await;
        answer.ok().filter(|a| a.status == 200)
    })
    .await
    .with_context(|| front.process.log())?;
    // What comes from now on counts.
    app.seen.lock().map(|mut seen| seen.clear()).ok();

    let started = Instant::now();
    let pause = Duration::from_millis(4);
    let plain = Load::start(front.outbound, &Call::get("back", "/a"), 3, pause);
    let unary = Load::start(front.outbound, &Call::grpc("back", "/a.B/C"), 3, pause);
    let streams = Streams::start(front.outbound);
    let serials = Arc::new(Mutex::new(BTreeSet::new()));
    let watcher = tokio::spawn(collect(front.admin, Arc::clone(&serials)));

    sleep(Duration::from_secs(2)).await;
    plane.does(&["cert", "rotate-root", "--begin"])?;
    let (mut phases, rotated) = (Vec::new(), Instant::now() + LIMIT);
    loop {
        let status = plane.does(&["cert", "rotate-root", "-o", "json"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let phase = status["phase"].as_str().unwrap_or_default().to_owned();
        if phases.last() != Some(&phase) {
            phases.push(phase.clone());
        }
        if phase == "steady" {
            break;
        }
        anyhow::ensure!(Instant::now() < rotated, "stuck:\n{status:#}");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(phases.last().map(String::as_str), Some("steady"));
    let took = started.elapsed();
    sleep(lasts.saturating_sub(took).max(Duration::from_secs(2))).await;

    let (plain, unary) = (plain.stop().await, unary.stop().await);
    let (echoes, broken) = streams.stop().await;
    watcher.abort();
    let leaves = serials.lock().map(|s| s.len()).unwrap_or_default();
    let seen = app.seen.lock().map(|seen| seen.clone()).unwrap_or_default();
    println!(
        "{:?}: {} over HTTP/1.1, {} over gRPC, {echoes} messages on {STREAMS} streams; {leaves} leaves of the caller, {} of them in handshakes; phases {phases:?}",
        started.elapsed(),
        plain.sent,
        unary.sent,
        seen.len(),
    );
    let logs = || format!("{}\n{}", front.process.log(), back.process.log());
    assert_eq!(plain.failures, Default::default(), "{}", logs());
    assert_eq!(unary.failures, Default::default(), "{}", logs());
    assert_eq!(broken, Vec::<String>::new(), "{}", logs());
    assert!(plain.sent > 100 && unary.sent > 100 && echoes > 100);
    // It did happen: leaf after leaf was shown in handshakes, always by the same caller.
    assert!(leaves >= 3 && seen.len() >= 2, "{seen:?}");
    for header in &seen {
        assert!(
            header.contains("URI=spiffe://phalanx.local/ns/default/sa/front"),
            "{header}"
        );
    }
    // And the new root is all that is trusted.
    fs::write(
        plane.folder().join("roots.pem"),
        plane.does(&["cert", "roots"])?,
    )?;
    for service in ["front", "back"] {
        let dir = format!("{service}.d");
        plane.agrees(&format!(
            "verify -CAfile roots.pem -untrusted {dir}/cert.pem {dir}/cert.pem"
        ))?;
        let roots = fs::read_to_string(plane.folder().join(dir).join("roots.pem"))?;
        assert_eq!(roots.matches("BEGIN CERTIFICATE").count(), 1);
    }
    Ok(())
}

/// The serials that a sidecar has had.
async fn collect(admin: SocketAddr, serials: Arc<Mutex<BTreeSet<String>>>) {
    loop {
        if let Ok(answer) = http::call(admin, &Call::get("localhost", "/certs")).await
            && let Some(serial) = answer.json()["certificate"]["serial"].as_str()
            && let Ok(mut serials) = serials.lock()
        {
            serials.insert(serial.to_owned());
        }
        sleep(Duration::from_millis(200)).await;
    }
}

struct Sidecar {
    process: Process,
    outbound: SocketAddr,
    admin: SocketAddr,
}

impl Sidecar {
    /// Joins with a token, and is ready.
    async fn start(plane: &Guarded, service: &str, app: SocketAddr) -> anyhow::Result<Self> {
        let ip: IpAddr = address::fresh();
        let at = |port| SocketAddr::new(ip, port);
        let token = format!("{service}.token");
        plane.does(&["cert", "token", "--service", service, "--out", &token])?;
        let mut command = Command::new(executable("phalanx")?);
        command
            .args(["proxy", "--service", service, "--workers", "1"])
            .args(["--app", &app.to_string()])
            .args(["--control", &plane.xds.to_string()])
            .args(["--inbound", &at(15006).to_string()])
            .args(["--outbound", &at(15001).to_string()])
            .args(["--admin", &at(15000).to_string()])
            .args(["--token-file", &token])
            .args(["--identity-dir", &format!("{service}.d")])
            .args(RENEWAL)
            .current_dir(plane.folder());
        let log = plane.folder().join(format!("{service}.log"));
        let sidecar = Self {
            process: Process::spawn(command, &log)?,
            outbound: at(15001),
            admin: at(15000),
        };
        let ready = eventually("the sidecar to be ready", LIMIT, async || {
            let answer = http::call(sidecar.admin, &Call::get("localhost", "/readyz")).await;
            answer.ok().filter(|a| a.status == 200)
        });
        ready.await.with_context(|| sidecar.process.log())?;
        Ok(sidecar)
    }
}

/// An application that answers, or sends a stream back as it comes, and notes who called.
struct App {
    address: SocketAddr,
    /// `x-forwarded-client-cert` of every request.
    seen: Arc<Mutex<BTreeSet<String>>>,
    _server: JoinSet<()>,
}

impl App {
    async fn start() -> anyhow::Result<Self> {
        let address = SocketAddr::new(address::fresh(), 8080);
        let listener = TcpListener::bind(address).await?;
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let mut server = JoinSet::new();
        let notes = Arc::clone(&seen);
        server.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&notes)));
            }
        });
        Ok(Self {
            address,
            seen,
            _server: server,
        })
    }
}

async fn serve(stream: TcpStream, seen: Arc<Mutex<BTreeSet<String>>>) {
    let _ = stream.set_nodelay(true);
    let mut start = [0; 3];
    let is_http2 = stream.peek(&mut start).await.is_ok() && &start == b"PRI";
    let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
    let io = TokioIo::new(stream);
    let ended = match is_http2 {
        true => {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, service)
                .await
        }
        false => {
            hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await
        }
    };
    if let Err(error) = ended {
        println!("the application's connection ended: {error:?}");
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<BTreeSet<String>>>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let header = |name: &str| {
        let value = request.headers().get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let is_grpc = header("content-type").starts_with("application/grpc");
    if let Ok(mut seen) = seen.lock() {
        seen.insert(header("x-forwarded-client-cert"));
    }
    let body = match request.uri().path() {
        "/flow.Flow/Echo" => request.into_body().boxed(),
        _ if is_grpc => {
            // Read to its end: what is not is reset.
            let _ = request.into_body().collect().await;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
            let body = Full::new(Bytes::from_static(&[0, 0, 0, 0, 0]));
            let body = body.with_trailers(async move { Some(Ok(trailers)) });
            body.map_err(|never| match never {}).boxed()
        }
        _ => Full::new(Bytes::from_static(b"ok"))
            .map_err(|never| match never {})
            .boxed(),
    };
    let mut response = Response::new(body);
    if is_grpc {
        let kind = hyper::header::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert("content-type", kind);
    }
    Ok(response)
}

/// Streams that are open all the time; each message has to come back before the next is sent.
struct Streams {
    echoes: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Streams {
    fn start(outbound: SocketAddr) -> Self {
        let (stop, stopped) = watch::channel(false);
        let echoes = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..STREAMS {
            let (echoes, stopped) = (Arc::clone(&echoes), stopped.clone());
            tasks.spawn(async move {
                let begun = Instant::now();
                let ended = stream(outbound, echoes, stopped).await;
                ended.with_context(|| format!("after {:?}", begun.elapsed()))
            });
        }
        Self {
            echoes,
            stop,
            tasks,
        }
    }

    /// How many messages came back, and what broke.
    async fn stop(mut self) -> (u64, Vec<String>) {
        let _ = self.stop.send(true);
        let mut broken = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => broken.push(format!("{error:#}")),
                Err(error) => broken.push(error.to_string()),
            }
        }
        (self.echoes.load(Ordering::Relaxed), broken)
    }
}

async fn stream(
    outbound: SocketAddr,
    echoes: Arc<AtomicU64>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let socket = TcpStream::connect(outbound).await?;
    socket.set_nodelay(true)?;
    let (client, connection) = h2::client::handshake(socket).await?;
    tokio::spawn(connection);
    let mut client = client.ready().await?;
    let request = ::http::Request::post("http://back/flow.Flow/Echo")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut sender) = client.send_request(request, false)?;
    let (mut response, mut body, mut received) = (Some(response), None, BytesMut::new());
    let mut number = 0u64;
    while !*stopped.borrow() {
        number += 1;
        let mut message = BytesMut::from(&[0, 0, 0, 0, 8][..]);
        message.extend_from_slice(&number.to_be_bytes());
        let wanted = message.freeze();
        sender.send_data(wanted.clone(), false)?;
        if let Some(response) = response.take() {
            let answer = timeout(ECHO_MAX, response).await.context("no head")??;
            anyhow::ensure!(answer.status() == 200, "{answer:?}");
            body = Some(answer.into_body());
        }
        let body = body.as_mut().context("no body")?;
        while received.len() < wanted.len() {
            let data = timeout(ECHO_MAX, body.data()).await;
            let data = data.with_context(|| format!("message {number} did not come back"))?;
            let data = data.with_context(|| format!("the stream ended at message {number}"))??;
            body.flow_control().release_capacity(data.len())?;
            received.extend_from_slice(&data);
        }
        let came = received.split_to(wanted.len());
        anyhow::ensure!(
            came == wanted,
            "message {number} came back as {:?}",
            came.chunk()
        );
        echoes.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(20)).await;
    }
    sender.send_data(Bytes::new(), true)?;
    Ok(())
}
