//! Active health checks by whoever asks: the control plane, our sidecar and a real Envoy; of real backends that are killed,
//! stand still, or say by themselves that they do not serve.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use phalanx_client::api::EndpointHealth;
use phalanx_testkit::envoy::{Envoy, HEALTH_DISCOVERY, Protocol};
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::Process;
use phalanx_testkit::{address, eventually};

/// An application without a sidecar.
struct Backend {
    app: Process,
    address: SocketAddr,
    name: String,
}

fn backends(mesh: &mut Mesh, names: &[&str]) -> anyhow::Result<Vec<Backend>> {
    let backend = |name: &&str| {
        let address = SocketAddr::new(address::fresh(), 8080);
        Ok(Backend {
            app: mesh.echo(address, name)?,
            address,
            name: (*name).to_owned(),
        })
    };
    names.iter().map(backend).collect()
}

/// A service of these addresses and how it is checked.
fn service(name: &str, addresses: &[SocketAddr], check: &str) -> String {
    let addresses: Vec<String> = addresses.iter().map(|a| a.ip().to_string()).collect();
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{{addresses: [{}]}}]
---
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{{kind: Service, name: {name}}}]
  healthCheck: {{{check}, interval: 200ms, timeout: 500ms, unhealthyThreshold: 2}}
---
",
        addresses.join("]}, {addresses: [")
    )
}

async fn view(mesh: &Mesh, service: &str, address: SocketAddr) -> Option<EndpointHealth> {
    let found = mesh.client().health(Some(service), None).await.ok()?;
    let mut items = found.items.into_iter();
    items.find(|item| item.address == address.to_string())
}

/// Waits until the verdict is this, and somebody asks.
async fn until(
    mesh: &Mesh,
    service: &str,
    address: SocketAddr,
    state: &str,
) -> anyhow::Result<EndpointHealth> {
    let what = format!("{service} at {address} to be {state}");
    eventually(&what, READY_MAX, async || {
        let found = view(mesh, service, address).await?;
        (found.state == state && !found.checkers.is_empty()).then_some(found)
    })
    .await
}

/// Waits until those who ask about an endpoint are these, and all have answered.
async fn until_asked_by(
    mesh: &Mesh,
    service: &str,
    address: SocketAddr,
    who: &str,
) -> anyhow::Result<EndpointHealth> {
    let what = format!("{who} to ask {service} at {address}");
    eventually(&what, READY_MAX, async || {
        let found = view(mesh, service, address).await?;
        let is_settled = found.state != "unknown"
            && !found.checkers.is_empty()
            && found
                .checkers
                .iter()
                .all(|c| c.checker.contains(who) && c.state != "unknown");
        is_settled.then_some(found)
    })
    .await
}

/// Waits until so many calls in a row are answered by exactly these, each with 200.
async fn until_served_by(outbound: SocketAddr, host: &str, names: &[&str]) -> anyhow::Result<()> {
    let what = format!("{host} to be served by {names:?}");
    eventually(&what, READY_MAX, async || {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let answer = call(outbound, &Call::get(host, "/")).await.ok()?;
            if answer.status != 200 {
                return None;
            }
            seen.insert(answer.header("x-echo").to_owned());
        }
        seen.iter()
            .map(String::as_str)
            .eq(names.iter().copied())
            .then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_finds_what_stands_still_refuses_or_says_it_does_not_serve()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let mut shop = backends(&mut mesh, &["a", "b"])?;
    let at: Vec<SocketAddr> = shop.iter().map(|b| b.address).collect();
    let (flag, game) = (
        mesh.folder().join("flag"),
        SocketAddr::new(address::fresh(), 8080),
    );
    let mut command = Command::new(grpc_health()?);
    command.arg(game.to_string()).arg(&flag);
    let _game = Process::spawn(command, &mesh.folder().join("game.log"))?;
    let yaml = [
        service("shop", &at, "path: /healthz"),
        service("game", &[game], "grpc: {service: arena.v1.Battle}"),
        service("raw", &at, "tcp: true"),
    ];
    mesh.apply(&yaml.concat()).await?;
    for (service, address) in [
        ("shop", at[0]),
        ("shop", at[1]),
        ("game", game),
        ("raw", at[0]),
    ] {
        let found = until(&mesh, service, address, "healthy").await?;
        assert_eq!(found.checkers[0].checker, "control plane");
    }

    // The kernel takes its connections, but nobody answers.
    shop[0].app.pause()?;
    let found = until(&mesh, "shop", at[0], "unhealthy").await?;
    assert!(found.reason.contains("no answer within 500ms"), "{found:?}");
    assert_eq!(
        view(&mesh, "raw", at[0]).await.map(|v| v.state).as_deref(),
        Some("healthy")
    );
    shop[0].app.resume()?;
    until(&mesh, "shop", at[0], "healthy").await?;

    shop[1].app.kill();
    let found = until(&mesh, "shop", at[1], "unhealthy").await?;
    assert_eq!(found.reason, "connection refused");
    until(&mesh, "raw", at[1], "unhealthy").await?;
    assert_eq!(mesh.client().status(None).await?.unhealthy, 2);
    shop[1].app = mesh.echo(at[1], "b")?;
    until(&mesh, "shop", at[1], "healthy").await?;

    std::fs::write(&flag, "")?;
    let found = until(&mesh, "game", game, "unhealthy").await?;
    assert_eq!(found.reason, "answered NOT_SERVING");
    std::fs::remove_file(&flag)?;
    until(&mesh, "game", game, "healthy").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_was_told_to_checks_and_sends_nothing_to_what_stands_still()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let shop = backends(&mut mesh, &["a", "b"])?;
    let at: Vec<SocketAddr> = shop.iter().map(|b| b.address).collect();
    let gateway = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply(&service("shop", &at, "path: /healthz")).await?;
    for address in &at {
        until_asked_by(&mesh, "shop", *address, "default/gateway/").await?;
    }
    until_served_by(gateway.outbound, "shop", &["a", "b"]).await?;

    shop[0].app.pause()?;
    let found = until(&mesh, "shop", at[0], "unhealthy").await?;
    assert!(found.by.starts_with("default/gateway/"), "{found:?}");
    assert!(found.reason.contains("no answer within 500ms"), "{found:?}");
    until_served_by(gateway.outbound, "shop", &["b"]).await?;
    shop[0].app.resume()?;
    until(&mesh, "shop", at[0], "healthy").await?;
    until_served_by(gateway.outbound, "shop", &["a", "b"]).await?;

    // When none works, callers try all of them rather than none.
    for backend in &shop {
        backend.app.pause()?;
        until(&mesh, "shop", backend.address, "unhealthy").await?;
    }
    for backend in &shop {
        backend.app.resume()?;
    }
    until_served_by(gateway.outbound, "shop", &["a", "b"]).await?;
    assert_eq!(shop[1].name, "b");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_behind_a_sidecar_is_asked_through_it_by_another() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let first = mesh.instance("shop", "v1", "first").await?;
    let second = mesh.instance("shop", "v1", "second").await?;
    let policy = "{apiVersion: phalanx.dev/v1alpha1, kind: BackendPolicy, metadata: {name: shop}, spec: {targetRefs: [{name: shop}], healthCheck: {path: /healthz, interval: 200ms, timeout: 500ms, unhealthyThreshold: 2}}}";
    mesh.apply(policy).await?;
    let mut judges = Vec::new();
    for instance in [&first, &second] {
        let found = until_asked_by(&mesh, "shop", instance.inbound, "default/shop/").await?;
        assert_eq!(
            (found.state.as_str(), found.checkers.len()),
            ("healthy", 1),
            "{found:?}"
        );
        judges.push(found.checkers[0].checker.clone());
        assert!(
            !found.checkers[0].checker.ends_with(&found.instance),
            "{found:?}"
        );
    }
    assert_ne!(judges[0], judges[1]);
    // Its sidecar sees that it accepts connections; that it does not answer is seen by the other only.
    first.app.pause()?;
    until(&mesh, "shop", first.inbound, "unhealthy").await?;
    eventually("what it is to be shown", READY_MAX, async || {
        let instances = mesh.client().instances(Some("shop"), None).await.ok()?;
        let shown = |inbound: SocketAddr| {
            let inbound = inbound.to_string();
            let mut items = instances.items.iter();
            let found = items.find(|i| i.ports.iter().any(|p| p.address == inbound));
            found.map(|i| (i.health.clone(), !i.health_reason.is_empty()))
        };
        let told = (shown(first.inbound), shown(second.inbound));
        let is = |health: &str, why| Some((health.to_owned(), why));
        (told == (is("unhealthy", true), is("healthy", false))).then_some(())
    })
    .await?;
    first.app.resume()?;
    until(&mesh, "shop", first.inbound, "healthy").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_checks_over_health_discovery_and_avoids_what_it_found() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let mut shop = backends(&mut mesh, &["a", "b"])?;
    let at: Vec<SocketAddr> = shop.iter().map(|b| b.address).collect();
    let yaml = [
        service("shop", &at, "path: /healthz"),
        service("raw", &at, "tcp: true"),
    ];
    mesh.apply(&yaml.concat()).await?;
    let envoy = Envoy::start_with(&mut mesh, "gateway", Protocol::Delta, HEALTH_DISCOVERY).await?;
    for service in ["shop", "raw"] {
        for address in &at {
            until_asked_by(&mesh, service, *address, "default/gateway/envoy-").await?;
            until(&mesh, service, *address, "healthy").await?;
        }
    }
    until_served_by(envoy.outbound, "shop", &["a", "b"]).await?;
    anyhow::ensure!(envoy.stat("hds_delegate.requests").await? > 0);

    shop[0].app.pause()?;
    let found = until(&mesh, "shop", at[0], "unhealthy").await?;
    assert_eq!(found.reason, "no answer in time");
    until_served_by(envoy.outbound, "shop", &["b"]).await?;
    shop[0].app.resume()?;
    until(&mesh, "shop", at[0], "healthy").await?;

    shop[1].app.kill();
    until(&mesh, "shop", at[1], "unhealthy").await?;
    until(&mesh, "raw", at[1], "unhealthy").await?;
    until_served_by(envoy.outbound, "shop", &["a"]).await?;
    until_served_by(envoy.outbound, "raw", &["a"]).await?;
    shop[1].app = mesh.echo(at[1], "b")?;
    until_served_by(envoy.outbound, "shop", &["a", "b"]).await?;
    anyhow::ensure!(envoy.stat("hds_delegate.errors").await? == 0);
    Ok(())
}

/// `cargo xtask setup` puts it there.
fn grpc_health() -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../target/tools/grpc-go-health"
    ));
    anyhow::ensure!(
        path.is_file(),
        "no gRPC health server at {}; run `cargo xtask setup`",
        path.display()
    );
    Ok(path)
}
