//! Whoever comes from outside is held to the bounds that hold inside: heads and handshakes that never end, names that are never
//! said, too many handshakes at once, requests that are two. Each is counted, and a good client next to them is served.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::peers::{Tls, hello};
use crate::certificate;

const DOCUMENTS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: phalanx
  listeners:
  - {name: web, port: 8080, protocol: HTTP}
  - {name: secure, port: 8443, protocol: HTTPS, hostname: play.example.com, tls: {certificateRefs: [{name: web}]}}
  - {name: through, port: 8443, protocol: TLS, hostname: pass.example.com, tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: play}
spec:
  parentRefs: [{name: edge}]
  hostnames: [play.example.com]
  rules: [{backendRefs: [{name: web, port: 8080}]}]
"#;

/// Longer than any of the bounds that are waited for.
const END_MAX: Duration = Duration::from_secs(30);
/// More than the handshakes that one worker has under way.
const HELLOS: usize = 1100;

/// What is answered until the end, or until nothing comes for long.
async fn told(to: SocketAddr, said: &[u8]) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(said).await?;
    let mut answer = Vec::new();
    // An end by a reset is one too.
    let ended = timeout(END_MAX, stream.read_to_end(&mut answer)).await;
    ended.map(drop).context("it was never ended")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn sample(admin: SocketAddr, series: &str) -> Option<u64> {
    let page = call(admin, &Call::get("localhost", "/metrics"))
        .await
        .ok()?;
    let text = String::from_utf8_lossy(&page.body).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(series))?;
    line.trim().parse().ok()
}

/// Waits until it was counted so often.
async fn counted(admin: SocketAddr, series: &str, least: u64) -> anyhow::Result<()> {
    let mut last = None;
    let met = eventually(series, READY_MAX, async || {
        last = sample(admin, series).await;
        (last? >= least).then_some(())
    });
    let met = met.await;
    met.with_context(|| format!("{last:?}, not {least}"))
}

fn event(name: &str) -> String {
    format!("phalanx_events_total{{event=\"{name}\"}}")
}

fn refused(reason: &str) -> String {
    format!("phalanx_tls_refused_total{{direction=\"inbound\",reason=\"{reason}\"}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_hold_for_those_who_come_from_outside() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let tls_dir = mesh.folder().join("tls");
    let web = Tls::trusting(&certificate(&tls_dir, "web", "play.example.com")?)?;
    let _web = mesh.instance("web", "v1", "web").await?;
    mesh.apply(DOCUMENTS).await?;
    let ip = address::fresh();
    let at = |port| SocketAddr::new(ip, port);
    let (plain, secure, admin) = (at(8080), at(8443), at(15000));
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--gateway", "edge", "--bind", &ip.to_string()])
        .arg("--tls-dir")
        .arg(&tls_dir)
        .args(["--admin", &admin.to_string(), "--workers", "1"])
        .args(["--control", &mesh.xds.to_string(), "--drain", "1s"]);
    let edge = Process::spawn(command, &mesh.folder().join("edge.log"))?;
    let get = Call::get("play.example.com", "/");
    let serves = async || Some(call(plain, &get).await.ok()?.status == 200).filter(|is| *is);
    let served = eventually("the edge to serve", READY_MAX, serves).await;
    served.with_context(|| edge.log())?;

    // Requests that somebody behind could take for others.
    for (head, status) in [
        ("content-length: 3\r\ntransfer-encoding: chunked\r\n", "400"),
        ("transfer-encoding: chunked, identity\r\n", "400"),
        ("content-length: 1\r\ncontent-length: 2\r\n", "400"),
        ("host: other.example.com\r\n", "400"),
        ("bad name: 1\r\n", "400"),
        (&format!("x-large: {}\r\n", "a".repeat(200_000)), "431"),
    ] {
        let said = format!("POST / HTTP/1.1\r\nhost: play.example.com\r\n{head}\r\nabc");
        let answer = told(plain, said.as_bytes()).await?;
        let begin = format!("HTTP/1.1 {status}");
        ensure!(answer.starts_with(&begin), "{status}: {answer}");
        let second = answer.matches("HTTP/1.1 ").count();
        ensure!(second == 1, "{answer}");
    }

    // Who begins and does not go on, all at the same time.
    let play = hello(ServerName::try_from("play.example.com")?)?;
    let half = play[..play.len() / 2].to_vec();
    let mut begun = JoinSet::new();
    for (to, said) in [
        (plain, b"GET / HTTP/1.1\r\nhost: play".to_vec()),
        (plain, b"PRI * HTTP/2".to_vec()),
        (secure, vec![0x16]),
        (secure, half.clone()),
        (secure, play.clone()),
    ] {
        begun.spawn(async move { told(to, &said).await });
    }
    // Who speaks plain text, and who names what nobody listens for, is let go at once.
    told(secure, b"GET / HTTP/1.1\r\nhost: play.example.com\r\n\r\n").await?;
    counted(admin, &refused("plain_text"), 1).await?;
    let stranger = hello(ServerName::try_from("stranger.example.com")?)?;
    told(secure, &stranger).await?;
    counted(admin, &refused("name"), 1).await?;
    while let Some(ended) = begun.join_next().await {
        ended??;
    }
    counted(admin, &event("deadline_handshake"), 3).await?;
    counted(admin, &event("deadline_head"), 1).await?;
    ensure!(serves().await.is_some(), "{}", edge.log());

    // More unfinished handshakes than there may be: the first ones end, who comes now is served.
    let mut held = Vec::new();
    for _ in 0..HELLOS {
        let mut stream = TcpStream::connect(secure).await?;
        stream.write_all(&half).await?;
        held.push(stream);
    }
    counted(admin, &refused("busy"), 1).await?;
    let good = web.connect(secure, "play.example.com", &[]).await;
    good.map(drop).with_context(|| edge.log())?;
    ensure!(serves().await.is_some(), "{}", edge.log());
    Ok(())
}
