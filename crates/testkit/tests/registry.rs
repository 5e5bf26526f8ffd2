//! The registry as operators and applications meet it: who is not ready, who drains, who is held and who is dead.

use std::process::Command;
use std::time::Duration;

use phalanx_client::api::InstanceView;
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::executable;

async fn seen(mesh: &Mesh, service: &str, address: &str) -> Option<InstanceView> {
    let found = mesh.client().instances(Some(service), None).await.ok()?;
    let is_it = |i: &InstanceView| i.ports.iter().any(|port| port.address == address);
    found.items.into_iter().find(is_it)
}

fn phalanx(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
    let output = Command::new(executable("phalanx")?)
        .args(arguments)
        .args(["--admin", &mesh.admin.to_string()])
        .env("USER", "ann")
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((output.status.code().unwrap_or(-1), text))
}

#[tokio::test]
async fn who_is_not_ready_is_registered_and_gets_nothing() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let ready = mesh
        .instance_with("shop", "v1", "ready", &["--ready", "/status/200"])
        .await?;
    let other = mesh
        .instance_with("shop", "v1", "other", &["--ready", "/status/503"])
        .await?;
    let gateway = mesh.instance("gateway", "v1", "gateway").await?;
    let (ready, other) = (ready.inbound.to_string(), other.inbound.to_string());
    eventually("one to be ready", READY_MAX, async || {
        let ready = seen(&mesh, "shop", &ready).await?;
        (ready.traffic == "accepting").then_some(())
    })
    .await?;
    let found = seen(&mesh, "shop", &other).await;
    let found = found.ok_or_else(|| anyhow::anyhow!("it is registered"))?;
    assert_eq!(
        (found.state.as_str(), found.traffic.as_str()),
        ("live", "not ready")
    );
    let request = Call::get("shop:8080", "/");
    eventually("the caller to know", READY_MAX, async || {
        let answer = call(gateway.outbound, &request).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    for _ in 0..20 {
        let answer = call(gateway.outbound, &request).await?;
        assert_eq!((answer.status, answer.header("x-echo")), (200, "ready"));
    }
    Ok(())
}

#[tokio::test]
async fn an_operator_drains_an_instance_and_takes_it_back() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let one = mesh.instance("shop", "v1", "one").await?;
    let _two = mesh.instance("shop", "v1", "two").await?;
    let gateway = mesh.instance("gateway", "v1", "gateway").await?;
    let address = one.inbound.to_string();
    let id = seen(&mesh, "shop", &address).await.map(|i| i.id);
    let id = id.ok_or_else(|| anyhow::anyhow!("it is registered"))?;
    let request = Call::get("shop:8080", "/");
    eventually("both to answer", READY_MAX, async || {
        let answer = call(gateway.outbound, &request).await.ok()?;
        (answer.status == 200 && answer.header("x-echo") == "one").then_some(())
    })
    .await?;
    let load = Load::start(gateway.outbound, &request, 2, Duration::from_millis(5));

    let (code, text) = phalanx(&mesh, &["drain", &id, "--wait"])?;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("is draining"), "{text}");
    for _ in 0..20 {
        let answer = call(gateway.outbound, &request).await?;
        assert_eq!(answer.header("x-echo"), "two");
    }
    let drained = seen(&mesh, "shop", &address).await;
    assert!(drained.is_some_and(|i| i.traffic == "draining" && i.drained_by == "ann"));
    mesh.restart_control().await?;
    let (code, text) = phalanx(&mesh, &["drain", &id, "--grace", "0s", "--wait"])?;
    assert!(code == 0 && text.contains("is drained"), "{text}");
    let (_, text) = phalanx(&mesh, &["instances"])?;
    assert!(text.contains("drained (by ann)"), "{text}");

    let (code, text) = phalanx(&mesh, &["drain", &id, "--undo", "--wait"])?;
    assert!(code == 0 && text.contains("is accepting"), "{text}");
    eventually("it to answer again", READY_MAX, async || {
        let answer = call(gateway.outbound, &request).await.ok()?;
        (answer.header("x-echo") == "one").then_some(())
    })
    .await?;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{report:?}");
    let (_, text) = phalanx(&mesh, &["history"])?;
    assert!(text.contains("undrain default/shop/"), "{text}");
    assert_eq!(phalanx(&mesh, &["drain", "nobody"])?.0, 1);
    Ok(())
}

#[tokio::test]
async fn silence_alone_is_held_until_released_and_a_refused_caller_makes_it_death()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let ttl = ["--ttl", "1s"];
    let mut lone = mesh.instance_with("lone", "v1", "lone", &ttl).await?;
    let mut called = mesh.instance_with("called", "v1", "called", &ttl).await?;
    let gateway = mesh.instance("gateway", "v1", "gateway").await?;
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
    eventually("the silent one to be held", READY_MAX, async || {
        let status = mesh.client().status(None).await.ok()?;
        let is_it = |held: &phalanx_client::api::Held| held.service == "lone";
        (status.held.iter().any(is_it) && status.held.len() == 1).then_some(())
    })
    .await?;
    let (_, text) = phalanx(&mesh, &["status"])?;
    assert!(
        text.contains("held") && text.contains("phalanx release"),
        "{text}"
    );
    let metrics = mesh.client().text("/metrics").await?.body;
    assert!(metrics.contains("\nphalanx_registry_held 1\n"), "{metrics}");
    let (code, text) = phalanx(&mesh, &["release", "lone"])?;
    assert!(
        code == 0 && text.contains("released default/lone"),
        "{text}"
    );
    mesh.withdrawn("lone", lone.inbound).await?;
    let (code, text) = phalanx(&mesh, &["release", "lone"])?;
    assert!(
        code == 1 && text.contains("nothing of default/lone is held"),
        "{text}"
    );
    let (_, text) = phalanx(&mesh, &["history"])?;
    assert!(
        text.contains("release default/lone") && text.contains("ann"),
        "{text}"
    );
    Ok(())
}
