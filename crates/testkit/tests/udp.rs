//! Datagrams from end to end: two rooms, an edge of ours and a stock Envoy with the same snapshot, a sidecar that sends, and an
//! instance that goes away.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use phalanx_client::api::SessionRequest;
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, envoy, eventually};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

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

/// An application that says whom it hears, and what.
async fn tells(address: SocketAddr) -> anyhow::Result<JoinHandle<()>> {
    let socket = UdpSocket::bind(address).await?;
    Ok(tokio::spawn(async move {
        let mut datagram = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
            let heard = String::from_utf8_lossy(&datagram[..len]).into_owned();
            let answer = format!("{from} {heard}");
            socket.send_to(answer.as_bytes(), from).await.ok();
        }
    }))
}

/// A player who says one number after the other until told to stop: whom the room heard, and how many answers came of how
/// many.
async fn plays(
    socket: UdpSocket,
    edge: SocketAddr,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<(Vec<String>, u32, u32)> {
    let (mut heard, mut came, mut said) = (Vec::new(), 0, 0_u32);
    while !*stop.borrow() {
        said += 1;
        socket.send_to(said.to_string().as_bytes(), edge).await?;
        let mut answer = [0; 2048];
        loop {
            let wait = timeout(ANSWER_MAX, socket.recv(&mut answer)).await;
            let Ok(len) = wait else { break };
            let answer = String::from_utf8_lossy(&answer[..len?]).into_owned();
            let (whom, number) = answer.split_once(' ').context("no answer of the room")?;
            if heard.last().is_none_or(|last| last != whom) {
                heard.push(whom.to_owned());
            }
            if number == said.to_string() {
                came += 1;
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok((heard, came, said))
}

/// Far more than a machine that is busy with other tests takes.
const ANSWER_MAX: Duration = Duration::from_secs(10);

async fn client(ip: IpAddr) -> anyhow::Result<UdpSocket> {
    Ok(UdpSocket::bind((ip, 0)).await?)
}

fn edge(mesh: &Mesh, ip: IpAddr) -> anyhow::Result<Process> {
    edge_with(mesh, ip, "2", &[], "edge.log")
}

fn edge_with(
    mesh: &Mesh,
    ip: IpAddr,
    workers: &str,
    more: &[&str],
    log: &str,
) -> anyhow::Result<Process> {
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--gateway", "play", "--bind", &ip.to_string()])
        .args(["--admin", &SocketAddr::new(ip, 15000).to_string()])
        .args(["--control", &mesh.xds.to_string(), "--workers", workers])
        .args(more);
    Process::spawn(command, &mesh.folder().join(log))
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

    // Another token is the session directory's, of which no BackendPolicy has to speak.
    let instances = mesh.client().instances(Some("room-next"), None).await?;
    let claim = SessionRequest {
        namespace: "default".to_owned(),
        service: "room-next".to_owned(),
        key: "bb02".to_owned(),
        instance: instances.items.first().context("an instance")?.id.clone(),
        ..SessionRequest::default()
    };
    mesh.client().session("claim", &claim).await?;
    let leads = format!("the token leads to {}: the session directory", at(next));
    eventually("the claim at the edge", READY_MAX, async || {
        let told = explain(&["-H", "token:bb02"]).ok()?;
        told.contains(&leads).then_some(())
    })
    .await?;
    for _ in 0..8 {
        let answer = ask(&client(ours).await?, edge, b"shoot\xbb\x02").await?;
        assert_eq!(answer, "next shoot");
    }

    // Nobody has the port any more, so nobody is sent there.
    app.abort();
    mesh.withdrawn("room", at(room)).await?;
    app_next.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_is_replaced_keeps_every_session_at_its_room_and_loses_no_datagram()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    mesh.apply(ROOMS).await?;
    let (one, other, ip) = (address::fresh(), address::fresh(), address::fresh());
    let at = |ip| SocketAddr::new(ip, 7000);
    let apps = (tells(at(one)).await?, tells(at(other)).await?);
    let app = |ip| format!("play=udp://{}", at(ip));
    let _one = mesh.sidecar("room", "v1", one, &["--app", &app(one)])?;
    let _other = mesh.sidecar("room-next", "v2", other, &["--app", &app(other)])?;
    mesh.registered("room", at(one)).await?;
    mesh.registered("room-next", at(other)).await?;
    let path = mesh.folder().join("edge.sock").display().to_string();
    let upgrade = ["--upgrade-socket", &path];
    let mut before = edge_with(&mesh, ip, "2", &upgrade, "before.log")?;
    let edge = SocketAddr::new(ip, 7100);
    ask(&client(ip).await?, edge, b"are you there").await?;

    let (stop, stopped) = watch::channel(false);
    let mut players = Vec::new();
    for _ in 0..PLAYERS {
        let socket = client(ip).await?;
        ask(&socket, edge, b"first").await?;
        players.push(tokio::spawn(plays(socket, edge, stopped.clone())));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    // One worker more, then two less.
    for (number, workers) in ["3", "1"].into_iter().enumerate() {
        let log = format!("after{number}.log");
        let after = edge_with(&mesh, ip, workers, &upgrade, &log)?;
        eventually("an heir that has the sessions", READY_MAX, async || {
            after.log().contains("sessions taken over").then_some(())
        })
        .await
        .with_context(|| after.log())?;
        eventually("the end of the one before", READY_MAX, async || {
            before.has_ended().then_some(())
        })
        .await
        .with_context(|| before.log())?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        before = after;
    }
    stop.send_replace(true);
    for player in players {
        let (heard, came, said) = player.await??;
        assert_eq!(heard.len(), 1, "the room heard {heard:?}");
        // Of a socket that nobody reads any more, what waits in it may be lost.
        anyhow::ensure!(said > 10 && came + 2 >= said, "{came} of {said} came");
    }
    ask(&client(ip).await?, edge, b"and you").await?;
    apps.0.abort();
    apps.1.abort();
    Ok(())
}

const PLAYERS: usize = 24;

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_a_network_go_to_its_lane_through_our_edge_and_a_stock_envoy()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let (room, lane, ours, theirs) = (
        address::fresh(),
        address::fresh(),
        address::fresh(),
        address::fresh(),
    );
    let developer = address::fresh();
    let colours = format!(
        r#"
---
apiVersion: phalanx.dev/v1alpha1
kind: ColourPolicy
metadata: {{name: colours}}
spec:
  env: {{networks: [{{cidr: {developer}/32, value: dev-li}}], default: prod}}
  lanes: [{{colour: dev-li, selector: {{lane: dev-li}}}}]
"#
    );
    mesh.apply(&format!("{ROOMS}{colours}")).await?;
    let at = |ip| SocketAddr::new(ip, 7000);
    let (app, app_lane) = (echo(at(room), "room").await?, echo(at(lane), "lane").await?);
    let of = |ip| format!("play=udp://{}", at(ip));
    let _room = mesh.sidecar("room", "v1", room, &["--app", &of(room)])?;
    let labels = [
        "--app",
        &of(lane),
        "--labels",
        "lane=dev-li",
        "--drain",
        "1s",
    ];
    let mut in_lane = mesh.sidecar("room", "v1", lane, &labels)?;
    mesh.registered("room", at(room)).await?;
    mesh.registered("room", at(lane)).await?;
    let (_edge, _envoy) = (edge(&mesh, ours)?, stock(&mesh, theirs)?);
    for ip in [ours, theirs] {
        let edge = SocketAddr::new(ip, 7100);
        // A quarter of all belongs to a backend that nobody is behind.
        let says = async |from, name: &str| {
            eventually(
                &format!("{name} for {from} at {edge}"),
                READY_MAX,
                async || {
                    let socket = client(from).await.ok()?;
                    socket.send_to(b"hello!", edge).await.ok()?;
                    let mut answer = [0; 64];
                    let wait = Duration::from_millis(500);
                    let len = timeout(wait, socket.recv(&mut answer)).await.ok()?.ok()?;
                    answer[..len].starts_with(name.as_bytes()).then_some(())
                },
            )
            .await
        };
        says(developer, "lane ").await?;
        says(ip, "room ").await?;
        for _ in 0..8 {
            assert_eq!(
                ask(&client(developer).await?, edge, b"mine?").await?,
                "lane mine?"
            );
        }
    }
    // Of a Gateway by its name, and of where they come from.
    let explain = Command::new(executable("phalanx")?)
        .args(["explain", "udp", "7100", "--proxy", "play"])
        .args(["--from", &developer.to_string()])
        .args(["--admin", &mesh.admin.to_string()])
        .output()?;
    let told = String::from_utf8_lossy(&explain.stdout);
    assert!(
        told.contains("goes to outbound|7000|dev-li|room"),
        "{explain:?}"
    );
    // With nobody in the lane the baseline stands in.
    in_lane.terminate(READY_MAX).await?;
    app_lane.abort();
    mesh.withdrawn("room", at(lane)).await?;
    for ip in [ours, theirs] {
        let edge = SocketAddr::new(ip, 7100);
        eventually(&format!("the baseline at {edge}"), READY_MAX, async || {
            let socket = client(developer).await.ok()?;
            socket.send_to(b"hello!", edge).await.ok()?;
            let mut answer = [0; 64];
            let wait = Duration::from_millis(500);
            let len = timeout(wait, socket.recv(&mut answer)).await.ok()?.ok()?;
            answer[..len].starts_with(b"room ").then_some(())
        })
        .await?;
    }
    app.abort();
    Ok(())
}
