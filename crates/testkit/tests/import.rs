//! A service in Go that has never heard of a mesh: it puts a leased key into etcd with the official client, and is called by
//! its name.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use phalanx_testkit::etcd::Etcd;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::Process;
use phalanx_testkit::{address, eventually};

fn program(mesh: &Mesh, etcd: &Etcd, at: SocketAddr, value: &str) -> anyhow::Result<Process> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/etcd-service");
    anyhow::ensure!(
        program.is_file(),
        "`cargo xtask setup` builds {}",
        program.display()
    );
    let mut command = Command::new(program);
    command.args([&etcd.endpoint(), "battle", &at.to_string(), value]);
    Process::spawn(command, &mesh.folder().join(format!("go-{}.log", at.ip())))
}

fn fresh() -> SocketAddr {
    SocketAddr::new(address::fresh(), 8080)
}

async fn until_known(mesh: &Mesh, wanted: &[SocketAddr]) -> anyhow::Result<()> {
    let client = mesh.client();
    let mut wanted: Vec<String> = wanted.iter().map(SocketAddr::to_string).collect();
    wanted.sort();
    eventually(&format!("instances {wanted:?}"), READY_MAX, async || {
        let items = client.instances(Some("battle"), None).await.ok()?.items;
        let found: Vec<String> = items.iter().map(|i| i.ports[0].address.clone()).collect();
        let is_etcd = items
            .iter()
            .all(|i| i.source == "etcd" && i.state == "live");
        (found == wanted && is_etcd).then_some(())
    })
    .await
}

async fn resolved(mesh: &Mesh) -> anyhow::Result<String> {
    let mut dig = Command::new("dig");
    dig.args([
        &format!("@{}", mesh.dns.ip()),
        "-p",
        &mesh.dns.port().to_string(),
    ]);
    let output = dig
        .args(["+short", "battle.default.svc.mesh", "A"])
        .output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Registers, is called by name and resolved, and is gone after its lease when it is killed.
async fn lives_and_dies(mesh: &mut Mesh, etcd: &Etcd) -> anyhow::Result<Process> {
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    let (one_at, two_at) = (fresh(), fresh());
    let mut one = program(mesh, etcd, one_at, r#"{"version":"v1","weight":1}"#)?;
    until_known(mesh, &[one_at]).await?;
    let request = Call::get("battle", "/fight");
    eventually("an answer by name", READY_MAX, async || {
        let answer = call(caller.outbound, &request).await.ok()?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        (answer.status == 200 && text.contains(&one_at.to_string()) && text.contains("/fight"))
            .then_some(())
    })
    .await?;
    eventually("its address by DNS", READY_MAX, async || {
        resolved(mesh)
            .await
            .ok()
            .filter(|said| said.trim() == one_at.ip().to_string())
    })
    .await?;

    let mut two = program(mesh, etcd, two_at, "")?;
    until_known(mesh, &[one_at, two_at]).await?;
    // Killed, its key goes with its lease, and it with its key: it refuses, so nobody has to guess.
    one.kill();
    until_known(mesh, &[two_at]).await?;
    two.kill();
    until_known(mesh, &[]).await?;
    eventually("no address by DNS", READY_MAX, async || {
        resolved(mesh)
            .await
            .ok()
            .filter(|said| said.trim().is_empty())
    })
    .await?;

    // And again, under the same address.
    let again = program(mesh, etcd, one_at, "")?;
    until_known(mesh, &[one_at]).await?;
    Ok(again)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_service_that_registers_in_the_meshs_own_etcd_is_found() -> anyhow::Result<()> {
    let etcd = Etcd::start(&[]).await?;
    let mut mesh = Mesh::start_with(&["--store", &format!("etcd://{}", etcd.endpoint())]).await?;
    lives_and_dies(&mut mesh, &etcd).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_service_that_registers_in_another_etcd_is_found_and_stays_when_that_is_lost()
-> anyhow::Result<()> {
    let mut etcd = Etcd::start(&[]).await?;
    let url = format!("etcd://{}", etcd.endpoint());
    let mut mesh = Mesh::start_with(&["--services", &url]).await?;
    let _again = lives_and_dies(&mut mesh, &etcd).await?;

    // Its etcd goes, with all that it knew; the service serves on.
    let caller = mesh.instance("front", "v1", "front").await?;
    let client = mesh.client();
    let request = Call::get("battle", "/");
    eventually("an answer by name", READY_MAX, async || {
        let answer = call(caller.outbound, &request).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    let load = Load::start(caller.outbound, &request, 2, Duration::from_millis(5));
    etcd.kill();
    eventually("the status to say it", READY_MAX, async || {
        let found = client.status(None).await.ok()?.services?;
        (found.trouble.is_some() && found.instances == 1).then_some(())
    })
    .await?;
    mesh.restart_control().await?;
    let found = client.instances(Some("battle"), None).await?.items;
    anyhow::ensure!(found.len() == 1, "{found:?}");
    let report = load.stop().await;
    anyhow::ensure!(report.failed() == 0, "{report:?}");
    Ok(())
}
