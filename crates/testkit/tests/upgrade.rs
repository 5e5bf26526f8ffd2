//! Sidecars are replaced by others while they serve: nobody is refused, nothing fails, and whatever goes wrong with the new
//! one leaves the old one at work.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::Process;
use phalanx_testkit::{address, eventually};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

const PAUSE: Duration = Duration::from_millis(10);

/// A sidecar of which there may be several processes, one that serves and some that drain.
struct Side {
    service: &'static str,
    ip: IpAddr,
    extra: Vec<String>,
    socket: PathBuf,
    serving: Process,
    before: Vec<Process>,
}

impl Side {
    async fn start(
        mesh: &mut Mesh,
        service: &'static str,
        ip: IpAddr,
        app: SocketAddr,
        extra: &[&str],
    ) -> anyhow::Result<Self> {
        let socket = mesh.folder().join(format!("{service}.sock"));
        let (app, path) = (app.to_string(), socket.to_string_lossy().into_owned());
        let given = ["--app", &app, "--upgrade-socket", &path, "--drain", "1s"];
        let extra: Vec<String> = given.iter().chain(extra).map(|&e| e.to_owned()).collect();
        let serving = sidecar(mesh, service, ip, &extra)?;
        let side = Self {
            service,
            ip,
            extra,
            socket,
            serving,
            before: Vec::new(),
        };
        mesh.registered(service, side.at(15006)).await?;
        mesh.ready(side.at(15000)).await?;
        Ok(side)
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// Another process, which may replace the one that serves.
    fn heir(&self, mesh: &mut Mesh, more: &[&str]) -> anyhow::Result<Process> {
        let more = more.iter().map(|&e| e.to_owned());
        let extra: Vec<String> = self.extra.iter().cloned().chain(more).collect();
        sidecar(mesh, self.service, self.ip, &extra)
    }

    async fn upgrade(&mut self, mesh: &mut Mesh) -> anyhow::Result<()> {
        let heir = self.heir(mesh, &[])?;
        said(&heir, "took over").await?;
        self.before.push(std::mem::replace(&mut self.serving, heir));
        Ok(())
    }

    async fn answers(&self) -> anyhow::Result<()> {
        let answer = call(self.at(15006), &Call::get(self.service, "/")).await?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    }
}

fn sidecar(
    mesh: &mut Mesh,
    service: &str,
    ip: IpAddr,
    extra: &[String],
) -> anyhow::Result<Process> {
    let extra: Vec<&str> = extra.iter().map(String::as_str).collect();
    mesh.sidecar(service, "v1", ip, &extra)
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
    done: Arc<AtomicU64>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Clients {
    fn pace(&self) -> Pace {
        Pace {
            stop: Arc::clone(&self.stop),
            done: Arc::clone(&self.done),
        }
    }

    fn add(&mut self, client: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(client);
    }

    /// How often they did what they do.
    async fn finish(mut self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(client) = self.tasks.join_next().await {
            client??;
        }
        Ok(self.done.load(Ordering::Relaxed))
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
async fn fresh(pace: Pace, to: SocketAddr, host: &'static str) -> anyhow::Result<()> {
    let get = Call::get(host, "/");
    while pace.goes_on().await {
        let answer = call(to, &get).await.context("a connection of its own")?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    Ok(())
}

async fn http2(to: SocketAddr) -> anyhow::Result<SendRequest<BodyOf>> {
    let io = TokioIo::new(TcpStream::connect(to).await?);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    Ok(sender)
}

type BodyOf = http_body_util::Either<Full<Bytes>, Channel<Bytes>>;

fn grpc(body: BodyOf) -> anyhow::Result<Request<BodyOf>> {
    Ok(Request::post("http://battle-grpc/battle.Battle/Play")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)?)
}

/// One HTTP/2 connection until it says that it takes no more, then the next.
async fn unary(pace: Pace, to: SocketAddr) -> anyhow::Result<()> {
    let mut sender = http2(to).await?;
    while pace.goes_on().await {
        let body = || BodyOf::Left(Full::new(Bytes::from_static(&[0, 0, 0, 0, 0])));
        let answer = loop {
            if sender.ready().await.is_err() {
                sender = http2(to).await?;
                continue;
            }
            match sender.try_send_request(grpc(body())?).await {
                Ok(answer) => break answer,
                Err(mut error) => {
                    // Such a one never left.
                    if error.take_message().is_none() {
                        return Err(error.into_error()).context("a call");
                    }
                }
            }
        };
        ensure!(answer.status() == 200, "{answer:?}");
        let trailers = answer.into_body().collect().await?.trailers().cloned();
        let status = trailers.as_ref().and_then(|t| t.get("grpc-status"));
        ensure!(status.is_some_and(|s| s == "0"), "{trailers:?}");
    }
    Ok(())
}

/// One stream from the beginning to the end of the test.
async fn stream(pace: Pace, to: SocketAddr) -> anyhow::Result<()> {
    let mut sender = http2(to).await?;
    let (mut messages, body) = Channel::<Bytes>::new(8);
    let answer = tokio::spawn(sender.send_request(grpc(BodyOf::Right(body))?));
    while pace.goes_on().await {
        let message = Bytes::from_static(&[0, 0, 0, 0, 3, b'a', b'b', b'c']);
        let sent = messages.send_data(message).await;
        sent.map_err(|_| anyhow::anyhow!("the stream broke"))?;
    }
    drop(messages);
    let collected = answer.await??.into_body().collect().await?;
    let status = collected.trailers().and_then(|t| t.get("grpc-status"));
    ensure!(status.is_some_and(|s| s == "0"));
    Ok(())
}

/// One WebSocket likewise.
async fn websocket(pace: Pace, to: SocketAddr) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(to).await?;
    let ask = "GET /talk HTTP/1.1\r\nhost: lobby\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
               sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(ask.as_bytes()).await?;
    let head = head(&mut socket).await?;
    ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
    while pace.goes_on().await {
        // Binary, 4 bytes, masked with zeros.
        socket
            .write_all(&[0x82, 0x84, 0, 0, 0, 0, 1, 2, 3, 4])
            .await?;
        let mut echo = [0; 6];
        socket.read_exact(&mut echo).await.context("a WebSocket")?;
        ensure!(echo == [0x82, 4, 1, 2, 3, 4], "{echo:?}");
    }
    Ok(())
}

/// Raw TCP: more than a pipe holds, there and back.
async fn tunnel(pace: Pace, to: SocketAddr) -> anyhow::Result<()> {
    let (mut read, mut write) = TcpStream::connect(to).await?.into_split();
    let sent: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
    while pace.goes_on().await {
        let mut received = vec![0; sent.len()];
        let (written, came) = tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
        written.and(came.map(drop)).context("a tunnel")?;
        ensure!(sent == received, "bytes changed on their way");
    }
    Ok(())
}

async fn head(stream: &mut TcpStream) -> anyhow::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}

/// An application that speaks WebSocket: small messages come back.
async fn lobby(at: SocketAddr) -> anyhow::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(at).await?;
    let talk = async |stream: &mut TcpStream| -> anyhow::Result<()> {
        head(stream).await?;
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                      sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        stream.write_all(answer.as_bytes()).await?;
        loop {
            let mut frame = [0; 10];
            stream.read_exact(&mut frame).await?;
            stream.write_all(&[0x82, 4]).await?;
            stream.write_all(&frame[6..]).await?;
        }
    };
    Ok(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move { drop(talk(&mut stream).await) });
        }
    }))
}

/// An application that echoes bytes.
async fn parrot(at: SocketAddr) -> anyhow::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(at).await?;
    Ok(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    }))
}

/// Whether an instance of each service is there at every look.
async fn is_registered(pace: Pace, admin: phalanx_client::admin::Admin) -> anyhow::Result<()> {
    while pace.goes_on().await {
        for service in ["battle", "match"] {
            let found = admin.instances(Some(service), None).await?;
            ensure!(found.items.len() == 1, "{service}: {:?}", found.items);
        }
    }
    Ok(())
}

fn manifest(parrot: SocketAddr) -> String {
    let service = |name: &str, app: &str, protocol: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {app}}}, ports: [{{port: 80, appProtocol: {protocol}}}]}}\n---\n"
        )
    };
    [
        service("battle", "battle", "http"),
        service("battle-grpc", "battle", "grpc"),
        service("match", "match", "http"),
        service("lobby", "lobby", "http"),
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: parrot}}\nspec: {{ports: [{{name: raw, port: 7, appProtocol: tcp}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: parrot-1, labels: {{kubernetes.io/service-name: parrot}}}}\n\
             addressType: IPv4\nports: [{{name: raw, port: {}}}]\nendpoints: [{{addresses: [\"{}\"]}}]\n",
            parrot.port(),
            parrot.ip()
        ),
    ]
    .concat()
}

/// On one thread: hyper asks whether its connection takes more and then sends, and on two threads a GOAWAY comes between.
#[tokio::test]
async fn three_upgrades_under_every_kind_of_traffic_lose_nothing() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let parrot_at = SocketAddr::new(address::fresh(), 7000);
    let _parrot = parrot(parrot_at).await?;
    mesh.apply(&manifest(parrot_at)).await?;
    let ips = [address::fresh(), address::fresh(), address::fresh()];
    let [battle_app, match_app, lobby_app] = ips.map(|ip| SocketAddr::new(ip, 8080));
    let _battle_app = mesh.echo(battle_app, "battle")?;
    let _match_app = mesh.echo(match_app, "match")?;
    let _lobby_app = lobby(lobby_app).await?;
    let mut battle = Side::start(&mut mesh, "battle", ips[0], battle_app, &[]).await?;
    let raw = SocketAddr::new(ips[1], 7001);
    let tcp = format!("{raw}=parrot:7");
    let mut caller = Side::start(&mut mesh, "match", ips[1], match_app, &["--tcp", &tcp]).await?;
    let mut lobby = Side::start(&mut mesh, "lobby", ips[2], lobby_app, &[]).await?;
    let out = caller.at(15001);
    eventually("the way there", READY_MAX, async || {
        let there = call(out, &Call::get("battle", "/")).await.ok()?;
        (there.status == 200).then_some(())
    })
    .await?;
    let withdrawals = mesh.control.log().matches("deregistered").count();

    let load = Load::start(out, &Call::get("battle", "/"), 4, PAUSE);
    let mut clients = Clients::default();
    for _ in 0..2 {
        clients.add(fresh(clients.pace(), out, "battle"));
        clients.add(fresh(clients.pace(), battle.at(15006), "battle"));
        clients.add(unary(clients.pace(), out));
    }
    clients.add(stream(clients.pace(), out));
    clients.add(websocket(clients.pace(), out));
    clients.add(tunnel(clients.pace(), raw));
    clients.add(is_registered(clients.pace(), mesh.client()));
    for _ in 0..3 {
        battle.upgrade(&mut mesh).await?;
        caller.upgrade(&mut mesh).await?;
        // Of each round's streams some begin with the process that serves now.
        clients.add(stream(clients.pace(), out));
        clients.add(websocket(clients.pace(), out));
        clients.add(tunnel(clients.pace(), raw));
        tokio::time::sleep(PAUSE * 30).await;
    }
    lobby.upgrade(&mut mesh).await?;
    let report = load.stop().await;
    let done = clients.finish().await?;
    assert_eq!(report.failures, Default::default(), "{report:?}");
    assert!(done > 500 && report.sent > 100, "{done} {report:?}");
    assert_eq!(
        mesh.control.log().matches("deregistered").count(),
        withdrawals,
        "the instances stayed"
    );
    for side in [&mut battle, &mut caller, &mut lobby] {
        for process in &mut side.before {
            ended(process).await?;
            assert!(process.log().contains("drained"), "{}", process.log());
        }
        assert!(!side.serving.has_ended());
    }
    battle.answers().await?;
    let socket = battle.socket.clone();
    assert!(battle.serving.terminate(READY_MAX).await?.success());
    assert!(
        !socket.exists(),
        "who leaves for good takes the socket along"
    );
    mesh.withdrawn("battle", battle.at(15006)).await
}

/// Speaks the protocol by hand.
struct Peer(UnixStream);

impl Peer {
    async fn say(&mut self, message: Value) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec(&message)?;
        self.0.write_u32(u32::try_from(bytes.len())?).await?;
        Ok(self.0.write_all(&bytes).await?)
    }

    async fn hear(&mut self) -> anyhow::Result<Value> {
        let mut bytes = vec![0; self.0.read_u32().await? as usize];
        self.0.read_exact(&mut bytes).await?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    async fn greet(socket: &Path, hello: Value) -> anyhow::Result<(Self, Value)> {
        let mut peer = Self(UnixStream::connect(socket).await?);
        peer.say(json!({ "hello": hello })).await?;
        let answer = peer.hear().await?;
        Ok((peer, answer))
    }
}

fn hello() -> Value {
    json!({"protocols": [1], "release": "test", "service": "default/battle"})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_heir_that_fails_leaves_the_old_one_serving() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    mesh.apply(&manifest("127.0.0.1:7".parse()?)).await?;
    let ip = address::fresh();
    let app = SocketAddr::new(ip, 8080);
    let _app = mesh.echo(app, "battle")?;
    let mut battle = Side::start(&mut mesh, "battle", ip, app, &["--ttl", "2s"]).await?;
    let mut clients = Clients::default();
    clients.add(fresh(clients.pace(), battle.at(15006), "battle"));
    let withdrawals = mesh.control.log().matches("deregistered").count();

    // It would be elsewhere.
    let mut heir = sidecar(&mut mesh, "battle", address::fresh(), &battle.extra)?;
    ended(&mut heir).await?;
    assert!(
        heir.log().contains("an upgrade keeps addresses"),
        "{}",
        heir.log()
    );

    // It gets no configuration: it gives up, or is killed while it waits.
    mesh.control.pause()?;
    let mut heir = battle.heir(&mut mesh, &["--upgrade-wait", "300ms"])?;
    ended(&mut heir).await?;
    assert!(heir.log().contains("no configuration"), "{}", heir.log());
    let mut heir = battle.heir(&mut mesh, &[])?;
    said(&heir, "taking over").await?;
    heir.kill();
    mesh.control.resume()?;
    battle.answers().await?;

    // It is killed when it has the registration already.
    let (mut peer, offer) = Peer::greet(&battle.socket, hello()).await?;
    let listeners = offer["offer"]["listeners"].as_array().context("no offer")?;
    for listener in listeners {
        let sockets = listener["sockets"].as_u64().unwrap_or_default();
        let mut marks = vec![0; sockets.div_ceil(64) as usize];
        peer.0.read_exact(&mut marks).await?;
    }
    peer.say(json!("ready")).await?;
    let yielded = peer.hear().await?;
    assert_eq!(yielded["yielded"]["registered"], true, "{yielded}");
    drop(peer);
    said(&battle.serving, "nobody took over").await?;

    // It speaks otherwise, or is for somebody else.
    for (hello, reason) in [
        (
            json!({"protocols": [99], "release": "9.9", "service": "default/battle"}),
            "takeover protocol",
        ),
        (
            json!({"protocols": [1], "release": "test", "service": "default/match"}),
            "sidecar of default/battle",
        ),
        (json!({"protocols": "all"}), "no hello"),
    ] {
        let (_, answer) = Peer::greet(&battle.socket, hello).await?;
        let told = answer["refused"]["reason"].as_str().unwrap_or_default();
        assert!(told.contains(reason), "{answer}");
    }

    // It is another user's: neither reaches the socket, nor would it be heard.
    let mode = std::fs::metadata(&battle.socket)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(stranger(&battle.socket)?.contains("Permission denied"));
    for (path, mode) in [(mesh.folder(), 0o755), (&battle.socket, 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    let told = stranger(&battle.socket)?;
    assert!(
        told.contains("refused") && told.contains("user 65534"),
        "{told}"
    );
    std::fs::set_permissions(&battle.socket, std::fs::Permissions::from_mode(0o600))?;

    // After more than a lease it is still registered, by the old one.
    tokio::time::sleep(Duration::from_secs(3)).await;
    mesh.registered("battle", battle.at(15006)).await?;
    clients.finish().await?;
    assert_eq!(
        mesh.control.log().matches("deregistered").count(),
        withdrawals
    );
    assert!(!mesh.control.log().contains("expired"));

    // The old one is killed while an heir waits: that goes on alone.
    mesh.control.pause()?;
    let heir = battle.heir(&mut mesh, &[])?;
    said(&heir, "taking over").await?;
    battle.serving.kill();
    said(&heir, "going on alone").await?;
    mesh.control.resume()?;
    battle.serving = heir;
    mesh.ready(battle.at(15000)).await?;
    battle.answers().await?;
    battle.upgrade(&mut mesh).await?;
    battle.answers().await
}

/// What another user gets who asks.
fn stranger(socket: &Path) -> anyhow::Result<String> {
    let ask = "import socket, sys\n\
               s = socket.socket(socket.AF_UNIX)\n\
               s.connect(sys.argv[1])\n\
               print(s.recv(4096)[4:].decode())\n";
    let output = Command::new("python3")
        .args(["-c", ask])
        .arg(socket)
        .uid(65534)
        .output()
        .context("tests run as root")?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn the_replaced_one_ends_at_its_deadline() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    mesh.apply(&manifest("127.0.0.1:7".parse()?)).await?;
    let ip = address::fresh();
    let app = SocketAddr::new(ip, 8080);
    let _app = mesh.echo(app, "battle")?;
    let extra = ["--upgrade-drain", "500ms"];
    let mut battle = Side::start(&mut mesh, "battle", ip, app, &extra).await?;
    let mut sender = http2(battle.at(15006)).await?;
    let (mut messages, body) = Channel::<Bytes>::new(1);
    let answer = tokio::spawn(sender.send_request(grpc(BodyOf::Right(body))?));
    messages
        .send_data(Bytes::from_static(&[0, 0, 0, 0, 0]))
        .await
        .map_err(|_| anyhow::anyhow!("no stream"))?;
    // A request that ended after it went the same way: the stream is there.
    let mut other = sender.clone();
    let whole = BodyOf::Left(Full::new(Bytes::from_static(&[0, 0, 0, 0, 0])));
    assert_eq!(other.send_request(grpc(whole)?).await?.status(), 200);
    battle.upgrade(&mut mesh).await?;
    let [old] = battle.before.as_mut_slice() else {
        anyhow::bail!("one was replaced");
    };
    ended(old).await?;
    assert!(answer.await?.is_err(), "the stream ended with it");
    battle.answers().await
}

#[tokio::test]
async fn whoever_else_listens_there_is_not_taken_for_a_sidecar() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let path = mesh.folder().join("other.sock");
    let text = path.to_string_lossy().into_owned();
    let extra = ["--app", "127.0.0.1:9", "--upgrade-socket", &text].map(str::to_owned);
    // Notes.
    std::fs::write(&path, "not a socket")?;
    let mut sidecar = sidecar(&mut mesh, "battle", address::fresh(), &extra)?;
    ended(&mut sidecar).await?;
    assert!(sidecar.log().contains("is no socket"), "{}", sidecar.log());
    assert_eq!(std::fs::read_to_string(&path)?, "not a socket");
    // A later release that shares no protocol with us.
    std::fs::remove_file(&path)?;
    let listener = UnixListener::bind(&path)?;
    let newer = tokio::spawn(async move {
        let mut peer = Peer(listener.accept().await?.0);
        peer.hear().await?;
        peer.say(
            json!({"offer": {"protocol": 2, "release": "9.9", "instance": "x", "listeners": []}}),
        )
        .await?;
        peer.hear().await
    });
    let mut sidecar = self::sidecar(&mut mesh, "battle", address::fresh(), &extra)?;
    ended(&mut sidecar).await?;
    let log = sidecar.log();
    assert!(log.contains("takeover protocol"), "{log}");
    assert!(newer.await?.is_err(), "it heard no more");
    Ok(())
}
