//! What lasts of a session that moves, through a sidecar and through an edge: it ends with the word that a new request would get,
//! what belongs to another session goes on, and who comes again is where the session is.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use phalanx_testkit::http::{Call, Next, Stream, call};
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::{address, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{POLICY, at, change, id_of};

/// Two seconds are promised; a machine may have better things to do.
const ENDS_MAX: Duration = Duration::from_secs(90);

/// At `calls` those in JSON become calls of gRPC, to the same instances and in the sessions of the same directory.
fn edge(descriptors: &[u8]) -> String {
    let set = STANDARD.encode(descriptors);
    format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: phalanx
  listeners: [{{name: web, port: 8080, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: battle}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [battle]
  rules:
  - backendRefs: [{{name: battle, port: 80}}]
---
apiVersion: v1
kind: Service
metadata: {{name: calls}}
spec: {{selector: {{app: battle}}, ports: [{{port: 80, targetPort: 8080, appProtocol: grpc}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: calls}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [calls]
  rules:
  - backendRefs: [{{name: calls, port: 80}}]
---
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {{name: calls}}
spec:
  targetRefs: [{{kind: Service, name: calls}}]
  sessionDirectory: {{header: x-game-session, missing: Refuse, service: battle}}
---
apiVersion: phalanx.dev/v1alpha1
kind: TranscodingPolicy
metadata: {{name: calls}}
spec:
  targetRefs: [{{kind: Service, name: calls}}]
  descriptorSet: {{inline: "{set}"}}
  services: [battle.v1.Battle]
"#
    )
}

fn descriptors() -> anyhow::Result<Vec<u8>> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../transcode/tests/protos");
    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_imports(true);
    compiler.open_file("battle/v1/battle.proto")?;
    Ok(compiler.encode_file_descriptor_set())
}

/// An answer that never ends by itself.
fn endless(call: Call, key: &str) -> Call {
    call.header("x-game-session", key).header("x-stream", "200")
}

async fn open(to: SocketAddr, call: &Call, at: &str) -> anyhow::Result<Stream> {
    let mut stream = Stream::open(to, call).await?;
    let head = &stream.head;
    let by = head.headers.get("x-echo").map(|by| by.as_bytes());
    ensure!(by == Some(at.as_bytes()), "{head:?}, not {at}");
    let first = stream.next().await?;
    ensure!(matches!(first, Next::Piece(_)), "{first:?}");
    Ok(stream)
}

/// All that still comes, and how it ends.
async fn rest(stream: &mut Stream) -> anyhow::Result<(Vec<Bytes>, Next)> {
    let ending = async {
        let mut pieces = Vec::new();
        loop {
            match stream.next().await? {
                Next::Piece(piece) => pieces.push(piece),
                end => return Ok((pieces, end)),
            }
        }
    };
    timeout(READY_MAX, ending)
        .await
        .context("it does not end")?
}

/// A connection that is the application's from now on.
async fn upgraded(to: SocketAddr, key: &str) -> anyhow::Result<TcpStream> {
    let mut socket = TcpStream::connect(to).await?;
    let ask = format!(
        "GET /talk HTTP/1.1\r\nhost: battle\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-game-session: {key}\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(ask.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(READY_MAX, socket.read_u8()).await??);
    }
    let head = String::from_utf8(head)?;
    ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
    answers(&mut socket).await?;
    Ok(socket)
}

/// A message comes back: binary, 4 bytes, masked with zeros.
async fn answers(socket: &mut TcpStream) -> anyhow::Result<()> {
    let sent = [0x82, 0x84, 0, 0, 0, 0, 1, 2, 3, 4];
    socket.write_all(&sent).await?;
    let mut back = [0; 10];
    timeout(READY_MAX, socket.read_exact(&mut back)).await??;
    ensure!(back == sent, "{back:?}");
    Ok(())
}

async fn ends(socket: &mut TcpStream) -> anyhow::Result<()> {
    let mut more = [0; 16];
    // Closed, or reset: in no case goes on.
    match timeout(ENDS_MAX, socket.read(&mut more)).await? {
        Ok(0) | Err(_) => Ok(()),
        Ok(len) => anyhow::bail!("{len} bytes"),
    }
}

/// How many streams a data plane has ended because their sessions moved.
async fn moved(admin: SocketAddr) -> Option<u64> {
    let answer = call(admin, &Call::get("localhost", "/metrics"))
        .await
        .ok()?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let mut lines = text.lines();
    let line = lines.find(|line| line.contains(r#"event="session_moved""#))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lasts_ends_when_its_session_moves_and_who_comes_again_is_where_it_went()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let caller = mesh.instance("caller", "v1", "caller").await?;
    let one = mesh.instance("battle", "v1", "one").await?;
    let two = mesh.instance("battle", "v1", "two").await?;
    mesh.apply(POLICY).await?;
    mesh.apply(&edge(&descriptors()?)).await?;
    let ip = address::fresh();
    let _edge = mesh.edge(ip, mesh.xds)?;
    let (web, admin) = (SocketAddr::new(ip, 8080), SocketAddr::new(ip, 15000));
    let ids = [
        id_of(&mesh, "battle", &one).await?,
        id_of(&mesh, "battle", &two).await?,
    ];
    for key in ["room", "other"] {
        change(&mesh, "claim", key, &ids[0]).await?;
        at(caller.outbound, key, "one").await?;
        at(web, key, "one").await?;
    }

    let stream = |key| endless(Call::grpc("battle", "/battle.v1.Battle/Watch"), key);
    let lines = |key| endless(Call::get("battle", "/lines"), key);
    let json = |key| endless(Call::get("calls", "/v1/rooms/1/events"), key);
    let events = json("room").header("accept", "text/event-stream");
    let mut grpc = Vec::new();
    let mut chunked = Vec::new();
    let mut sockets = Vec::new();
    let mut stays = Vec::new();
    for to in [caller.outbound, web] {
        grpc.push(open(to, &stream("room"), "one").await?);
        chunked.push(open(to, &lines("room"), "one").await?);
        sockets.push(upgraded(to, "room").await?);
        stays.push(open(to, &stream("other"), "one").await?);
    }
    let mut told = [
        open(web, &json("room"), "one").await?,
        open(web, &events, "one").await?,
    ];
    let mut talks = upgraded(web, "other").await?;

    change(&mesh, "move", "room", &ids[1]).await?;
    for mut stream in grpc {
        let (_, end) = rest(&mut stream).await?;
        let Next::End(trailers) = &end else {
            anyhow::bail!("{end:?}");
        };
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "draining");
    }
    for mut stream in chunked {
        let (_, end) = rest(&mut stream).await?;
        assert!(matches!(end, Next::BrokenOff), "{end:?}");
    }
    for mut socket in sockets {
        ends(&mut socket).await?;
    }
    let words = [
        "{\"error\":{\"code\":14,\"message\":\"draining\"}}\n",
        "event: error\ndata: {\"code\":14,\"message\":\"draining\"}\n\n",
    ];
    for (stream, word) in told.iter_mut().zip(words) {
        let (pieces, end) = rest(stream).await?;
        let text = String::from_utf8(pieces.concat())?;
        assert!(
            matches!(end, Next::End(_)) && text.ends_with(word),
            "{text} {end:?}"
        );
    }
    for (counting, ended) in [(caller.admin, 3), (admin, 5)] {
        eventually("it is counted", READY_MAX, async || {
            (moved(counting).await? == ended).then_some(())
        })
        .await?;
    }
    // Another session's go on.
    for stream in &mut stays {
        for _ in 0..5 {
            let next = stream.next().await?;
            ensure!(matches!(next, Next::Piece(_)), "{next:?}");
        }
    }
    answers(&mut talks).await?;
    for to in [caller.outbound, web] {
        open(to, &stream("room"), "two").await?;
        open(to, &lines("room"), "two").await?;
        upgraded(to, "room").await?;
        at(to, "other", "one").await?;
    }
    Ok(())
}
