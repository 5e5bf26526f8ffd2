//! Several control planes over one etcd: one that is killed, an etcd that stands still. Sidecars go over, nobody is lost, and
//! sessions are the same at all of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use phalanx_client::admin::Admin;
use phalanx_client::api::{ApplyRequest, File, SessionRequest};
use phalanx_testkit::etcd::Etcd;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};

/// Of every registration here: a wrong expiry would show within seconds.
const TTL: &[&str] = &["--ttl", "3s"];
/// Longer than the lease of a control plane and the TTL together.
const AWAY: Duration = Duration::from_secs(12);
const AWAY_SOAK: Duration = Duration::from_secs(60);

/// One control plane beside the mesh's own.
struct Plane {
    process: Process,
    xds: SocketAddr,
    client: Admin,
}

impl Plane {
    async fn start(mesh: &Mesh, etcd: &Etcd, name: &str) -> anyhow::Result<Self> {
        let ip = address::fresh();
        let at = |port| SocketAddr::new(ip, port);
        let (xds, admin) = (at(15010), at(15080));
        let mut command = Command::new(executable("phalanx")?);
        command
            .args(["control", "--open", "--plane", name, "--store"])
            .arg(format!("etcd://{}", etcd.endpoint()))
            .args(["--xds", &xds.to_string(), "--admin", &admin.to_string()])
            .args(["--dns", &at(15053).to_string(), "--ocsp", "none"])
            .arg("--data")
            .arg(mesh.folder().join(format!("data-{name}")));
        let process = Process::spawn(command, &mesh.folder().join(format!("plane-{name}.log")))?;
        let client = Admin::new(&admin.to_string());
        eventually("the other control plane", READY_MAX, async || {
            client.status(None).await.ok().map(drop)
        })
        .await?;
        Ok(Self {
            process,
            xds,
            client,
        })
    }
}

fn service(port: u16) -> ApplyRequest {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: battle}}\nspec:\n  selector: {{app: battle}}\n  ports: [{{name: http, port: {port}, appProtocol: http}}, {{name: other, port: 80, appProtocol: http}}]\n"
    );
    ApplyRequest {
        files: vec![File {
            name: "test.yaml".into(),
            text,
        }],
        author: "test".into(),
        ..ApplyRequest::default()
    }
}

/// A port that only the newest configuration has.
async fn reaches(caller: &Instance, port: u16) -> anyhow::Result<()> {
    let request = Call::get(&format!("battle:{port}"), "/");
    eventually("the new port to answer", READY_MAX, async || {
        let answer = call(caller.outbound, &request).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
}

/// Applied as a person would who tries again.
async fn change(client: &Admin, port: u16, callers: &[&Instance]) -> anyhow::Result<()> {
    eventually("the change to be taken", READY_MAX, async || {
        client.apply(&service(port)).await.ok()
    })
    .await?;
    for caller in callers {
        reaches(caller, port).await?;
    }
    Ok(())
}

/// Ids of all instances, and the control planes that keep them.
async fn instances(client: &Admin) -> anyhow::Result<(BTreeSet<String>, BTreeSet<String>)> {
    let found = client.instances(None, None).await?;
    let ids = found.items.iter().map(|i| i.id.clone()).collect();
    Ok((ids, found.items.into_iter().map(|i| i.plane).collect()))
}

/// Waits until every proxy of every control plane has everything.
async fn complete(client: &Admin) -> anyhow::Result<()> {
    eventually("everything to be everywhere", READY_MAX, async || {
        let status = client.status(None).await.ok()?;
        status.complete().then_some(())
    })
    .await
}

/// A mesh over an etcd with control planes `a` (its own) and `b`, that every sidecar knows.
async fn mesh(etcd: &Etcd) -> anyhow::Result<(Mesh, Plane)> {
    let url = format!("etcd://{}", etcd.endpoint());
    let mut mesh = Mesh::start_with(&["--store", &url, "--plane", "a"]).await?;
    let b = Plane::start(&mesh, etcd, "b").await?;
    mesh.others.push(b.xds);
    Ok((mesh, b))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_is_killed_under_load_costs_no_request_and_no_instance()
-> anyhow::Result<()> {
    let etcd = Etcd::start(&[]).await?;
    let (mut mesh, b) = mesh(&etcd).await?;
    let c = Plane::start(&mesh, &etcd, "c").await?;
    mesh.others.push(c.xds);
    let mut battles = Vec::new();
    for n in 0..3 {
        let name = format!("battle-{n}");
        battles.push(mesh.instance_with("battle", "v1", &name, TTL).await?);
    }
    let gateway = mesh.instance_with("gateway", "v1", "gateway", TTL).await?;
    change(&b.client, 8000, &[&gateway]).await?;
    // They registered with any of the three.
    let all = eventually("all to be seen", READY_MAX, async || {
        let (all, _) = instances(&b.client).await.ok()?;
        (all.len() == 4).then_some(all)
    })
    .await?;
    complete(&b.client).await?;
    let load = Load::start(
        gateway.outbound,
        &Call::get("battle", "/"),
        4,
        Duration::from_millis(5),
    );

    // One after the other is killed; what is left takes changes and instances.
    mesh.control.kill();
    for (n, survivor) in [&b, &c].into_iter().enumerate() {
        change(&survivor.client, 8001 + n as u16, &[&gateway]).await?;
    }
    for _ in 0..70 {
        let (now, _) = instances(&c.client).await?;
        assert_eq!(now, all, "a wrong expiry");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut b = b;
    b.process.kill();
    eventually("all to be with the last", READY_MAX, async || {
        let (now, planes) = instances(&c.client).await.ok()?;
        assert_eq!(now, all, "a wrong expiry");
        (planes == BTreeSet::from(["c".to_owned()])).then_some(())
    })
    .await?;
    change(&c.client, 8010, &[&gateway]).await?;

    // The first comes back; a change through it reaches everybody.
    mesh.restart_control().await?;
    change(&mesh.client(), 8020, &[&gateway]).await?;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{report:?}");
    let (now, _) = instances(&mesh.client()).await?;
    assert_eq!(now, all);

    // Who dies together with its control plane goes, too.
    let mut dead = battles.remove(0);
    let mut c = c;
    c.process.kill();
    dead.sidecar.kill();
    eventually("the dead one to be gone", READY_MAX, async || {
        let (now, _) = instances(&mesh.client()).await.ok()?;
        (now.len() == 3 && now.is_subset(&all)).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_etcd_stands_still_nothing_is_lost_and_afterwards_all_heals() -> anyhow::Result<()> {
    let etcd = Etcd::start(&[]).await?;
    let (mut mesh, b) = mesh(&etcd).await?;
    let _battles = [
        mesh.instance_with("battle", "v1", "one", TTL).await?,
        mesh.instance_with("battle", "v1", "two", TTL).await?,
    ];
    let gateway = mesh.instance_with("gateway", "v1", "gateway", TTL).await?;
    change(&b.client, 8000, &[&gateway]).await?;
    let (all, _) = instances(&b.client).await?;
    let load = Load::start(
        gateway.outbound,
        &Call::get("battle", "/"),
        4,
        Duration::from_millis(5),
    );
    let is_soak = std::env::var_os("PHALANX_SOAK").is_some();
    let process = etcd.process().expect("it runs");
    process.pause()?;
    tokio::time::sleep(if is_soak { AWAY_SOAK } else { AWAY }).await;
    for client in [&mesh.client(), &b.client] {
        let (now, _) = instances(client).await?;
        assert_eq!(now, all, "served from what is known");
        let client = client.clone().with_timeout(Duration::from_secs(15));
        let refused = client.apply(&service(8001)).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    process.resume()?;
    for _ in 0..60 {
        for client in [&mesh.client(), &b.client] {
            let (now, _) = instances(client).await?;
            assert_eq!(now, all, "a wrong expiry");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    change(&b.client, 8002, &[&gateway]).await?;
    change(&mesh.client(), 8003, &[&gateway]).await?;
    eventually("every lease to be kept again", READY_MAX, async || {
        let found = mesh.client().instances(None, None).await.ok()?;
        let is_kept = |i: &phalanx_client::api::InstanceView| {
            i.state == "live" && ["a", "b"].contains(&i.plane.as_str())
        };
        found.items.iter().all(is_kept).then_some(())
    })
    .await?;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{report:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_of_another_control_plane_tells_silence_from_death() -> anyhow::Result<()> {
    let etcd = Etcd::start(&[]).await?;
    let (mut mesh, b) = mesh(&etcd).await?;
    let ttl = ["--ttl", "1s"];
    let (xds, others) = (mesh.xds, std::mem::take(&mut mesh.others));
    // Both are kept by `a`; the caller knows `b` alone.
    let mut called = mesh.instance_with("called", "v1", "called", &ttl).await?;
    let mut lone = mesh.instance_with("lone", "v1", "lone", &ttl).await?;
    mesh.xds = b.xds;
    let gateway = mesh.instance("gateway", "v1", "gateway").await?;
    (mesh.xds, mesh.others) = (xds, others);
    let found = mesh.client().instances(None, None).await?;
    let planes: Vec<_> = found
        .items
        .iter()
        .map(|i| (&*i.service, &*i.plane))
        .collect();
    assert_eq!(planes, [("called", "a"), ("gateway", "b"), ("lone", "a")]);
    let request = Call::get("called:8080", "/");
    eventually("the caller to know", READY_MAX, async || {
        let answer = call(gateway.outbound, &request).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    lone.sidecar.kill();
    called.sidecar.kill();
    let load = Load::start(gateway.outbound, &request, 1, Duration::from_millis(50));
    mesh.withdrawn("called", called.inbound).await?;
    load.stop().await;
    eventually(
        "the other to be held, only silent as it is",
        READY_MAX,
        async || {
            let status = mesh.client().status(None).await.ok()?;
            let held: Vec<_> = status.held.iter().map(|held| &*held.service).collect();
            (held == ["lone"]).then_some(())
        },
    )
    .await
}

const ROOMS: &str = "
apiVersion: v1
kind: Service
metadata: {name: battle}
spec: {selector: {app: battle}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: battle}
spec:
  targetRefs: [{kind: Service, name: battle}]
  sessionDirectory: {header: x-game-session, missing: Refuse}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: phalanx
  listeners: [{name: web, port: 8080, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: battle}
spec:
  parentRefs: [{name: edge}]
  hostnames: [battle]
  rules:
  - backendRefs: [{name: battle, port: 80}]
";

/// Waits until the room's requests are answered by `name`, who is told this epoch.
async fn is_at(to: SocketAddr, room: &Call, name: &str, epoch: u64) -> anyhow::Result<()> {
    let what = format!("{to} to find the room at {name}, epoch {epoch}");
    eventually(&what, READY_MAX, async || {
        let answer = call(to, room).await.ok()?;
        let told = &answer.json()["headers"]["x-session-epoch"];
        let is_it = answer.status == 200 && answer.header("x-echo") == name;
        (is_it && told.as_str()? == epoch.to_string()).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_moved_at_one_control_plane_moves_for_the_edge_of_the_other() -> anyhow::Result<()>
{
    let etcd = Etcd::start(&[]).await?;
    let (mut mesh, b) = mesh(&etcd).await?;
    let one = mesh.instance("battle", "v1", "one").await?;
    let two = mesh.instance("battle", "v1", "two").await?;
    mesh.others.clear();
    let caller = mesh.instance("caller", "v1", "caller").await?; // knows `a` alone
    mesh.apply(ROOMS).await?;
    let ip = address::fresh();
    let _edge = mesh.edge(ip, b.xds)?;
    let web = SocketAddr::new(ip, 8080);
    let a = mesh.client();
    let id = |instance: &Instance| instance.inbound.to_string().replace(['.', ':'], "-");
    let ids = [id(&one), id(&two)];
    let request = |instance: &str, expect| SessionRequest {
        namespace: "default".into(),
        service: "battle".into(),
        key: "room".into(),
        instance: instance.into(),
        expect,
        ..SessionRequest::default()
    };
    let room = Call::get("battle", "/").header("x-game-session", "room");

    eventually(
        "both instances to be known to both",
        READY_MAX,
        async || {
            let (known, _) = instances(&b.client).await.ok()?;
            ids.iter().all(|id| known.contains(id)).then_some(())
        },
    )
    .await?;
    let claimed = b.client.session("claim", &request(&ids[0], 0)).await?;
    let mut epoch = claimed.session.expect("it is claimed").epoch;
    for to in [caller.outbound, web] {
        is_at(to, &room, "one", epoch).await?;
    }
    let load = Load::start(web, &room, 2, Duration::from_millis(5));
    for turn in 0..6 {
        let to = (turn + 1) % 2;
        let (by, other) = [(&a, &b.client), (&b.client, &a)][to];
        let moved = by.session("move", &request(&ids[to], epoch)).await?;
        let moved = moved.session.map(|session| session.epoch);
        let late = other.session("move", &request(&ids[to], epoch)).await;
        let moved = moved.filter(|moved| *moved > epoch).expect("a later epoch");
        let late = late.unwrap_err().to_string();
        assert!(late.contains(&format!("epoch {moved}")), "{late}");
        epoch = moved;
        for at in [web, caller.outbound] {
            is_at(at, &room, ["one", "two"][to], epoch).await?;
        }
    }
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{report:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_control_plane_of_one_name_does_not_start() -> anyhow::Result<()> {
    let etcd = Etcd::start(&[]).await?;
    let (mesh, _b) = mesh(&etcd).await?;
    let ip = address::fresh();
    let at = |port| SocketAddr::new(ip, port).to_string();
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["control", "--open", "--plane", "a", "--store"])
        .arg(format!("etcd://{}", etcd.endpoint()))
        .args([
            "--xds",
            &at(15010),
            "--admin",
            &at(15080),
            "--dns",
            &at(15053),
            "--ocsp",
            "none",
        ]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let names = [mesh.admin.to_string(), "choose another --plane".to_owned()];
    assert!(names.iter().all(|name| said.contains(name)), "{said}");
    complete(&mesh.client()).await
}
