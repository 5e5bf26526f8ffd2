//! A mesh that is backed up, lost, restored and moved to etcd, as an operator does it, while its data planes serve.

use std::process::{Command, Output};
use std::time::Duration;

use phalanx_client::api::{ApplyRequest, File};
use phalanx_testkit::etcd::Etcd;
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::executable;

fn phalanx(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(executable("phalanx")?);
    command.env("PHALANX_ADMIN", mesh.admin.to_string());
    Ok(command.args(arguments).output()?)
}

fn done(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<String> {
    let output = phalanx(mesh, arguments)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "{arguments:?}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

fn refused(mesh: &Mesh, arguments: &[&str], reason: &str) -> anyhow::Result<()> {
    let output = phalanx(mesh, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(
        !output.status.success() && said.contains(reason),
        "{arguments:?}: {said}"
    );
    Ok(())
}

fn service(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: battle}}\nspec:\n  selector: {{app: battle}}\n  ports: [{{name: http, port: {port}, appProtocol: http}}, {{name: other, port: 80, appProtocol: http}}]\n"
    )
}

async fn reaches(outbound: std::net::SocketAddr, port: u16, wanted: bool) -> anyhow::Result<()> {
    let request = Call::get(&format!("battle:{port}"), "/");
    eventually(
        &format!("port {port} to answer: {wanted}"),
        READY_MAX,
        async || {
            let answer = call(outbound, &request).await.ok()?;
            ((answer.status == 200) == wanted).then_some(())
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_is_backed_up_restored_and_moved_to_etcd_without_a_failed_request()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _battle = mesh.instance("battle", "v1", "battle").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    let first = mesh.apply(&service(8001)).await?.revision;
    let second = mesh.apply(&service(8002)).await?.revision;
    reaches(caller.outbound, 8002, true).await?;
    let load = Load::start(
        caller.outbound,
        &Call::get("battle", "/"),
        4,
        Duration::from_millis(5),
    );

    // While it runs.
    let file = mesh.folder().join("mesh.backup").display().to_string();
    let data = mesh.data().display().to_string();
    let said = done(&mesh, &["backup", &file])?;
    anyhow::ensure!(said.contains("revision"), "{said}");
    refused(&mesh, &["backup", "--data", &data, &file], "already in use")?;
    refused(
        &mesh,
        &["restore", "--force", &file, "--data", &data],
        "already in use",
    )?;
    let lost = mesh.apply(&service(8003)).await?.revision;
    reaches(caller.outbound, 8003, true).await?;

    // A damaged one touches nothing.
    mesh.control.kill();
    refused(
        &mesh,
        &["backup", &format!("{file}.never")],
        "no control plane answers",
    )?;
    anyhow::ensure!(!std::path::Path::new(&format!("{file}.never")).exists());
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = format!("{file}.damaged");
    std::fs::write(&damaged, bytes)?;
    refused(
        &mesh,
        &["restore", "--force", &damaged, "--data", &data],
        "checksum",
    )?;
    refused(&mesh, &["restore", &file, "--data", &data], "is not empty")?;
    done(&mesh, &["restore", "--force", &file, "--data", &data])?;
    mesh.restart_control().await?;
    reaches(caller.outbound, 8002, true).await?;
    reaches(caller.outbound, 8003, false).await?;
    let client = mesh.client();
    let restored = client.documents(None, None).await?.revision;
    anyhow::ensure!(
        restored == second,
        "{restored}: the configuration is as of the backup"
    );
    let stale = ApplyRequest {
        files: vec![File {
            name: "x.yaml".into(),
            text: service(8004),
        }],
        author: "test".into(),
        expect: Some(lost),
        ..ApplyRequest::default()
    };
    anyhow::ensure!(client.apply(&stale).await.is_err(), "that revision is lost");
    let third = mesh.apply(&service(8004)).await?.revision;
    anyhow::ensure!(third > lost + 1000, "{third}");

    // To an etcd, with its history.
    let etcd = Etcd::start(&[]).await?;
    let url = format!("etcd://{}", etcd.endpoint());
    refused(
        &mesh,
        &["migrate", "--to", &url, "--data", &data],
        "already in use",
    )?;
    mesh.control.kill();
    let said = done(&mesh, &["migrate", "--to", &url, "--data", &data])?;
    anyhow::ensure!(
        said.contains(&format!("next: phalanx control --store {url}")),
        "{said}"
    );
    refused(
        &mesh,
        &["migrate", "--to", &url, "--data", &data],
        "is not empty",
    )?;
    mesh.restart_control_with(&["--store", &url]).await?;
    reaches(caller.outbound, 8004, true).await?;
    let fourth = mesh.apply(&service(8005)).await?.revision;
    anyhow::ensure!(fourth > third, "{fourth} after {third}");
    let history: Vec<u64> = mesh
        .client()
        .history(None)
        .await?
        .entries
        .iter()
        .map(|e| e.revision)
        .collect();
    anyhow::ensure!(history == [fourth, third, second, first], "{history:?}");
    done(&mesh, &["rollback", "--to", &first.to_string()])?;
    reaches(caller.outbound, 8001, true).await?;
    let report = load.stop().await;
    anyhow::ensure!(report.failed() == 0, "{report:?}");

    // A backup of an etcd, back into a folder.
    let elsewhere = mesh.folder().join("elsewhere").display().to_string();
    done(&mesh, &["backup", &file])?;
    mesh.control.kill();
    done(&mesh, &["restore", &file, "--data", &elsewhere])?;
    done(&mesh, &["backup", "--data", &elsewhere, &file])?;
    // What is there and is no backup stays, and a link goes on being one.
    let store = format!("{elsewhere}/store.redb");
    refused(
        &mesh,
        &["backup", "--data", &elsewhere, &store],
        "is no backup",
    )?;
    refused(
        &mesh,
        &["backup", "--data", &elsewhere, "/dev/full"],
        "is no backup",
    )?;
    let link = mesh.folder().join("newest.backup");
    std::os::unix::fs::symlink(&file, &link)?;
    let named = link.display().to_string();
    done(&mesh, &["backup", "--data", &elsewhere, &named])?;
    anyhow::ensure!(link.is_symlink() && !std::path::Path::new(&file).is_symlink());
    mesh.restart_control_with(&["--data", &elsewhere]).await?;
    reaches(caller.outbound, 8001, true).await?;
    let revision = mesh.apply(&service(8006)).await?.revision;
    anyhow::ensure!(revision > fourth);
    Ok(())
}
