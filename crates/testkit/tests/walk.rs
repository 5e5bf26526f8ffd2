//! The walk of configuration and of a request, through real processes: apply → store → xDS → sidecar → answer.

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, Connection, call, first_call};
use phalanx_testkit::mesh::{Mesh, READY_MAX};

const BATTLE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: battle}
spec:
  selector: {app: battle}
  ports: [{name: http, port: 80, appProtocol: http}]
---
apiVersion: v1
kind: Service
metadata: {name: battle-v1}
spec:
  selector: {app: battle, version: v1}
  ports: [{name: http, port: 80, appProtocol: http}]
---
apiVersion: v1
kind: Service
metadata: {name: battle-v2}
spec:
  selector: {app: battle, version: v2}
  ports: [{name: http, port: 80, appProtocol: http}]
"#;

fn split(one: u32, two: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: battle}}\nspec:\n  parentRefs: [{{kind: Service, name: battle, port: 80}}]\n  rules:\n  - backendRefs:\n    - {{name: battle-v1, port: 80, weight: {one}}}\n    - {{name: battle-v2, port: 80, weight: {two}}}\n"
    )
}

async fn count(
    connection: &mut Connection,
    requests: usize,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut seen = BTreeMap::new();
    for _ in 0..requests {
        let answer = connection.send(&Call::get("battle", "/")).await?;
        anyhow::ensure!(
            answer.status == 200,
            "{} {}",
            answer.status,
            answer.header("x-phalanx-reason")
        );
        *seen.entry(answer.header("x-echo").to_owned()).or_default() += 1;
    }
    Ok(seen)
}

#[tokio::test]
async fn weights_split_traffic_and_a_new_weight_moves_it_at_once() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _v1 = mesh.instance("battle", "v1", "battle-v1").await?;
    let _v2 = mesh.instance("battle", "v2", "battle-v2").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply(&format!("{BATTLE}---\n{}", split(90, 10)))
        .await?;

    first_call(caller.outbound, &Call::get("battle", "/")).await?;
    let mut connection = Connection::open(caller.outbound, false).await?;
    let requests = 2000;
    let seen = count(&mut connection, requests).await?;
    let share = *seen.get("battle-v2").unwrap_or(&0) as f64;
    let (expected, sigma) = (requests as f64 * 0.1, (requests as f64 * 0.09).sqrt());
    assert!((share - expected).abs() <= 6.0 * sigma, "{seen:?}");

    let changed = mesh.apply(&split(0, 1)).await?;
    assert_eq!(
        count(&mut connection, 200).await?,
        BTreeMap::from([("battle-v2".to_owned(), 200)])
    );
    let status = mesh.applied(changed.revision).await?;
    assert_eq!((status.applied, status.proxies), (3, 3));
    assert!(
        status.elapsed_ms.is_some(),
        "the time to the last acknowledgement is told"
    );
    Ok(())
}

#[tokio::test]
async fn a_registered_service_is_reachable_by_name_without_any_manifest() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _echo = mesh.instance("leaderboard", "v1", "leaderboard").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    for name in [
        "leaderboard:8080",
        "leaderboard",
        "leaderboard.default.svc.mesh",
    ] {
        let found = eventually(name, READY_MAX, async || {
            call(caller.outbound, &Call::get(name, "/top?n=3"))
                .await
                .ok()
                .filter(|a| a.status == 200)
        })
        .await?;
        assert_eq!(
            (found.header("x-echo"), found.json()["query"].as_str()),
            ("leaderboard", Some("n=3"))
        );
    }
    let unknown = first_call(caller.outbound, &Call::get("nobody", "/")).await?;
    assert_eq!(
        (unknown.status, unknown.header("x-phalanx-reason")),
        (404, "no_route")
    );
    Ok(())
}

#[tokio::test]
async fn ports_of_a_service_reach_the_target_ports_of_one_sidecar() -> anyhow::Result<()> {
    use std::net::SocketAddr;
    let mut mesh = Mesh::start().await?;
    let ip = phalanx_testkit::address::fresh();
    let (game, admin) = (SocketAddr::new(ip, 8080), SocketAddr::new(ip, 8081));
    let _game = mesh.echo(game, "game")?;
    let _admin = mesh.echo(admin, "admin")?;
    let apps = [format!("game={game}"), format!("admin={admin}")];
    let _sidecar = mesh.sidecar("battle", "v1", ip, &["--app", &apps[0], "--app", &apps[1]])?;
    mesh.registered("battle", SocketAddr::new(ip, 15006))
        .await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: battle}\nspec:\n  selector: {app: battle}\n  ports:\n  - {name: http, port: 80, targetPort: 8081}\n  - {name: http-game, port: 8081, targetPort: game}\n").await?;
    for (authority, served_by) in [("battle", "admin"), ("battle:8081", "game")] {
        let answer = first_call(caller.outbound, &Call::get(authority, "/")).await?;
        assert_eq!(
            (answer.status, answer.header("x-echo")),
            (200, served_by),
            "{authority}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn trace_context_and_request_id_cross_the_mesh() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _echo = mesh.instance("leaderboard", "v1", "leaderboard").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = Call::get("leaderboard:8080", "/")
        .header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"));
    let answer = eventually("the leaderboard", READY_MAX, async || {
        call(caller.outbound, &request)
            .await
            .ok()
            .filter(|a| a.status == 200)
    })
    .await?;
    let headers = &answer.json()["headers"];
    let traceparent = headers["traceparent"].as_str().unwrap_or_default();
    assert_eq!(traceparent.get(3..35), Some(trace), "the trace id stays");
    assert_ne!(
        traceparent.get(36..52),
        Some("00f067aa0ba902b7"),
        "each hop is a span of its own"
    );
    assert!(
        headers["x-request-id"]
            .as_str()
            .is_some_and(|id| !id.is_empty())
    );
    Ok(())
}

#[tokio::test]
async fn grpc_passes_with_its_trailers_and_errors_are_grpc_errors() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _echo = mesh.instance_with("battle", "v1", "battle", &[]).await?;
    let caller = mesh.instance("match", "v1", "match").await?;
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: battle}\nspec:\n  selector: {app: battle}\n  ports: [{name: grpc, port: 80, appProtocol: grpc}]\n").await?;
    let answer = first_call(
        caller.outbound,
        &Call::grpc("battle", "/arena.v1.Battle/Fight"),
    )
    .await?;
    assert_eq!(
        (answer.status, answer.grpc_status(), answer.header("x-echo")),
        (200, Some("0"), "battle")
    );
    let unknown = first_call(
        caller.outbound,
        &Call::grpc("nobody", "/arena.v1.Battle/Fight"),
    )
    .await?;
    assert_eq!((unknown.status, unknown.grpc_status()), (200, Some("12")));
    Ok(())
}

#[tokio::test]
async fn raw_tcp_reaches_a_service_by_its_listener() -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut mesh = Mesh::start().await?;
    // The application speaks first, as databases do.
    let app = std::net::SocketAddr::new(phalanx_testkit::address::fresh(), 6000);
    let listener = tokio::net::TcpListener::bind(app).await?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut line = [0; 5];
                let _ = stream.write_all(b"hello ").await;
                if stream.read_exact(&mut line).await.is_ok() {
                    let _ = stream.write_all(&line).await;
                }
            });
        }
    });
    let server = phalanx_testkit::address::fresh();
    let _server = mesh.sidecar("store", "v1", server, &["--app", &format!("tcp={app}")])?;
    mesh.registered("store", std::net::SocketAddr::new(server, 15006))
        .await?;
    let local = std::net::SocketAddr::new(phalanx_testkit::address::fresh(), 7000);
    let _caller = mesh
        .instance_with(
            "gateway",
            "v1",
            "gateway",
            &["--tcp", &format!("{local}=store:6000")],
        )
        .await?;

    let said = eventually("an answer over TCP", READY_MAX, async || {
        let mut stream = tokio::net::TcpStream::connect(local).await.ok()?;
        stream.write_all(b"world").await.ok()?;
        let mut said = [0; 11];
        tokio::time::timeout(Duration::from_secs(2), stream.read_exact(&mut said))
            .await
            .ok()?
            .ok()?;
        Some(said)
    })
    .await?;
    assert_eq!(&said, b"hello world");
    Ok(())
}

#[tokio::test]
async fn metrics_have_istio_names_on_both_sides() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let echo = mesh.instance("leaderboard", "v1", "leaderboard").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    let request = Call::get("leaderboard:8080", "/");
    eventually("the leaderboard", READY_MAX, async || {
        call(caller.outbound, &request)
            .await
            .ok()
            .filter(|a| a.status == 200)
    })
    .await?;
    for (admin, reporter) in [(caller.admin, "source"), (echo.admin, "destination")] {
        let text = call(admin, &Call::get("localhost", "/metrics")).await?;
        let text = String::from_utf8_lossy(&text.body).into_owned();
        let line = text.lines().find(|l| {
            l.starts_with("istio_requests_total{")
                && l.contains(&format!("reporter=\"{reporter}\""))
        });
        assert!(
            line.is_some_and(|l| l.contains("response_code=\"200\"")),
            "{reporter}:\n{text}"
        );
    }
    Ok(())
}
