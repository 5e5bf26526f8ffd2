//! Datagrams from end to end: two rooms, an edge of ours and a stock Envoy with the same snapshot, a sidecar that sends, and an
//! instance that goes away.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, envoy, eventually};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

const ROOMS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: room}
spec: {selector: {app: room}, ports: [{name: play, port: 7000, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: room-next}
spec: {selector: {app: room-next}, ports: [{name: play, port: 7000, appProtocol: udp}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: play}
spec:
  gatewayClassName: phalanx
  listeners: [{name: room, port: 7100, protocol: UDP}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: UDPRoute
metadata: {name: room}
spec:
  parentRefs: [{name: play, sectionName: room}]
  rules: [{backendRefs: [{name: room, port: 7000, weight: 3}, {name: room-next, port: 7000, weight: 1}]}]
---
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: room}
spec:
  targetRefs: [{kind: Service, name: room}]
  udp: {token: {suffix: 2, strip: true}}
"#;

/// An application that says its name, and what it got.
async fn echo(address: SocketAddr, name: &'static str) -> anyhow::Result<JoinHandle<()>> {
    let socket = UdpSocket::bind(address).await?;
    Ok(tokio::spawn(async move {
        let mut datagram = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
            let answer = [name.as_bytes(), b" ", &datagram[..len]].concat();
            socket.send_to(&answer, from).await.ok();
        }
    }))
}

/// What comes back for a datagram; sent again until something does.
async fn ask(socket: &UdpSocket, to: SocketAddr, datagram: &[u8]) -> anyhow::Result<String> {
    eventually(&format!("an answer from {to}"), READY_MAX, async || {
        socket.send_to(datagram, to).await.ok()?;
        let mut answer = [0; 2048];
        let wait = Duration::from_millis(500);
        let got = tokio::time::timeout(wait, socket.recv(&mut answer)).await;
        let len = got.ok()?.ok()?;
        Some(String::from_utf8_lossy(&answer[..len]).into_owned())
    })
    .await
}

async fn client(ip: IpAddr) -> anyhow::Result<UdpSocket> {
    Ok(UdpSocket::bind((ip, 0)).await?)
}

fn edge(mesh: &Mesh, ip: IpAddr) -> anyhow::Result<Process> {
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--gateway", "play", "--bind", &ip.to_string()])
        .args(["--admin", &SocketAddr::new(ip, 15000).to_string()])
        .args(["--control", &mesh.xds.to_string(), "--workers", "2"]);
    Process::spawn(command, &mesh.folder().join("edge.log"))
}

fn stock(mesh: &Mesh, ip: IpAddr) -> anyhow::Result<Process> {
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["bootstrap", "--gateway", "play"])
        .args(["--bind", &ip.to_string()])
        .args(["--admin", &SocketAddr::new(ip, 15000).to_string()])
        .args(["--control", &mesh.xds.to_string()]);
    let printed = command.output()?;
    let why = String::from_utf8_lossy(&printed.stderr);
    anyhow::ensure!(printed.status.success(), "{why}");
    let config = mesh.folder().join("envoy.yaml");
    std::fs::write(&config, printed.stdout)?;
    let mut command = Command::new(envoy::binary()?);
    command.arg("-c").arg(&config);
    command.args(["--concurrency", "1", "-l", "warning"]);
    command.arg("--use-dynamic-base-id");
    Process::spawn(command, &mesh.folder().join("envoy.log"))
}

/// Of so many sessions, how many each room has; none of them changes its mind.
async fn sessions(edge: SocketAddr, count: usize) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut rooms = BTreeMap::new();
    for _ in 0..count {
        let socket = client(edge.ip()).await?;
        let room = |answer: String| answer.split(' ').next().unwrap_or_default().to_owned();
        let first = room(ask(&socket, edge, b"hello!").await?);
        let again = room(ask(&socket, edge, b"hello!").await?);
        anyhow::ensure!(first == again, "{first} became {again}");
        *rooms.entry(first).or_default() += 1;
    }
    Ok(rooms)
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_go_by_weight_and_token_through_our_edge_a_stock_envoy_and_a_sidecar()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    mesh.apply(ROOMS).await?;
    let (room, next, ours, theirs) = (
        address::fresh(),
        address::fresh(),
        address::fresh(),
        address::fresh(),
    );
    let at = |ip| SocketAddr::new(ip, 7000);
    let (app, app_next) = (echo(at(room), "room").await?, echo(at(next), "next").await?);
    let of_room = [
        &*format!("play=udp://{}", at(room)),
        "--labels",
        "phalanx.dev/token=aa01",
    ];
    let of_next = format!("play=udp://{}", at(next));
    let sender = SocketAddr::new(next, 7200);
    let to_room = format!("{sender}=room:7000");
    let _room = mesh.sidecar("room", "v1", room, &[&["--app"], &of_room[..]].concat())?;
    let _next = mesh.sidecar(
        "room-next",
        "v2",
        next,
        &["--app", &of_next, "--udp", &to_room],
    )?;
    mesh.registered("room", at(room)).await?;
    mesh.registered("room-next", at(next)).await?;

    let (_edge, _envoy) = (edge(&mesh, ours)?, stock(&mesh, theirs)?);
    for ip in [ours, theirs] {
        let edge = SocketAddr::new(ip, 7100);
        ask(&client(ip).await?, edge, b"are you there").await?;
        // 3 to 1, of 60: less than one of ten million times not within these.
        let rooms = sessions(edge, 60).await?;
        let count = |name: &str| rooms.get(name).copied().unwrap_or_default();
        assert_eq!(count("room") + count("next"), 60, "{rooms:?}");
        assert!((28..60).contains(&count("room")), "{rooms:?}");
    }

    // A token leads from wherever it comes, and is cut off; to Envoy it is part of the datagram.
    let edge = SocketAddr::new(ours, 7100);
    for _ in 0..8 {
        let answer = ask(&client(ours).await?, edge, b"shoot\xaa\x01").await?;
        assert_eq!(answer, "room shoot");
    }
    let answer = ask(&client(next).await?, sender, b"from inside\xaa\x01").await?;
    assert_eq!(answer, "room from inside");

    let explain = |words: &[&str]| {
        let mut command = Command::new(executable("phalanx")?);
        command.args(["explain", "udp", "7100"]).args(words);
        command.args(["--proxy", &SocketAddr::new(ours, 15000).to_string()]);
        command.args(["--admin", &mesh.admin.to_string()]);
        let output = command.output()?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let told = explain(&[])?;
    for expected in [
        "UDPRoute/default/room",
        "outbound|7000|room.default.svc.mesh  weight 3 (75%)",
        "(25% of such requests)",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    let told = explain(&["-H", "token:aa01"])?;
    assert!(
        told.contains(&format!("the token leads to {}", at(room))),
        "{told}"
    );

    // Nobody has the port any more, so nobody is sent there.
    app.abort();
    mesh.withdrawn("room", at(room)).await?;
    app_next.abort();
    Ok(())
}
