//! gRPC's own interop cases, by gRPC Go's server and the functions of its client: straight through one sidecar in plain text,
//! through two in plain text, and through two with mutual TLS between them.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::http::{self, Call};
use phalanx_testkit::mesh::Mesh;
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};

/// Debug builds on two busy cores.
const LIMIT: Duration = Duration::from_secs(30);

/// All that need no cloud and no list of servers.
const CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
];

/// `cargo xtask setup` puts it there.
fn tool(name: &str) -> anyhow::Result<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let path = tools.join(name);
    anyhow::ensure!(
        path.is_file(),
        "no {}; run `cargo xtask setup`",
        path.display()
    );
    Ok(path)
}

/// gRPC's own server. It listens on every address, whatever it is told.
fn server(folder: &Path) -> anyhow::Result<(Process, SocketAddr)> {
    let port = address::port()?;
    let mut command = Command::new(tool("grpc-interop-server")?);
    command.args(["-port", &port.to_string()]);
    let process = Process::spawn(command, &folder.join("interop-server.log"))?;
    Ok((process, SocketAddr::new(address::fresh(), port)))
}

/// Passes the cases one after the other, over one connection to `address`.
async fn pass(folder: &Path, address: SocketAddr, cases: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(tool("grpc-interop-caller")?);
    command.args([&address.to_string(), "battle"]).args(cases);
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        command.env_remove(name);
    }
    let mut process = Process::spawn(command, &folder.join("interop-caller.log"))?;
    let ended = eventually("the cases to be passed", LIMIT * 2, async || {
        process.has_ended().then_some(())
    });
    let said = ended.await.map(|()| process.log());
    said.with_context(|| process.log())
}

/// The first may come before the mesh is ready for it; what fails later fails.
async fn passes_all(folder: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let is_through = |said: &str, cases: &[&str]| {
        let passed = |case: &&str| said.contains(&format!("{case} ok"));
        cases.iter().all(passed)
    };
    let first = &CASES[..1];
    eventually("a first call to come through", LIMIT, async || {
        let said = pass(folder, address, first).await.ok()?;
        is_through(&said, first).then_some(())
    })
    .await?;
    let said = pass(folder, address, &CASES).await?;
    anyhow::ensure!(is_through(&said, &CASES), "through {address}:\n{said}");
    Ok(())
}

#[tokio::test]
async fn grpcs_own_cases_pass_one_and_two_sidecars_in_plain_text() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let (_server, app) = server(mesh.folder())?;
    let shop = mesh.instance("shop", "v1", "shop").await?;
    let ip = address::fresh();
    let extra = ["--app", &app.to_string()];
    let _battle = mesh.sidecar("battle", "v1", ip, &extra)?;
    let inbound = SocketAddr::new(ip, 15006);
    mesh.registered("battle", inbound).await?;
    mesh.ready(SocketAddr::new(ip, 15000)).await?;
    let folder = mesh.folder();
    passes_all(folder, inbound).await.context("one sidecar")?;
    passes_all(folder, shop.outbound)
        .await
        .context("two sidecars")
}

fn sidecar(plane: &Guarded, service: &str, ip: IpAddr, app: SocketAddr) -> anyhow::Result<Process> {
    let at = |port| SocketAddr::new(ip, port).to_string();
    let file = |name: &str| plane.folder().join(name).display().to_string();
    let (token, kept) = (file(&format!("{service}.token")), file(service));
    plane.does(&["cert", "token", "--service", service, "--out", &token])?;
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--service", service, "--workers", "1"])
        .args(["--app", &app.to_string()])
        .args(["--control", &plane.xds.to_string()])
        .args(["--inbound", &at(15006), "--outbound", &at(15001)])
        .args(["--admin", &at(15000)])
        .args(["--token-file", &token, "--identity-dir", &kept]);
    Process::spawn(command, &plane.folder().join(format!("{service}.log")))
}

async fn page(admin: SocketAddr, path: &str) -> Option<String> {
    let page = http::call(admin, &Call::get("localhost", path))
        .await
        .ok()?;
    (page.status == 200).then(|| String::from_utf8_lossy(&page.body).into_owned())
}

#[tokio::test]
async fn grpcs_own_cases_pass_two_sidecars_with_mutual_tls() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let (_server, app) = server(plane.folder())?;
    let (battle, shop) = (address::fresh(), address::fresh());
    let _battle = sidecar(&plane, "battle", battle, app)?;
    let _shop = sidecar(&plane, "shop", shop, SocketAddr::new(shop, 8080))?;
    // The caller serves nothing, so it is never ready; its outbound side is.
    let ready = eventually("the called sidecar to be ready", LIMIT, async || {
        page(SocketAddr::new(battle, 15000), "/readyz").await
    });
    ready.await?;
    passes_all(plane.folder(), SocketAddr::new(shop, 15001)).await?;
    let metrics = page(SocketAddr::new(battle, 15000), "/metrics").await;
    let metrics = metrics.context("no metrics")?;
    let secured = "phalanx_tls_connections_open ";
    let line = metrics.lines().find(|line| line.starts_with(secured));
    anyhow::ensure!(
        line.is_some_and(|line| !line.ends_with(" 0")),
        "no secured connection came in: {line:?}"
    );
    Ok(())
}
