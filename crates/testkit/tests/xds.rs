//! A real Envoy beyond the common case: a gRPC stream per kind, resources with a time to live, load reports.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use phalanx_testkit::envoy::{Envoy, Protocol, bootstrap};
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Mesh, READY_MAX};

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports: [{{name: http, port: 80, appProtocol: http}}]\n---\n"
    )
}

fn route(to: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop}}\nspec:\n  parentRefs: [{{kind: Service, group: '', name: shop}}]\n  rules:\n  - backendRefs: [{{name: {to}, port: 80}}]\n---\n"
    )
}

/// Clusters, listeners, routes and endpoints each on streams of their own; no aggregated stream at all.
fn separate(service: &str, ip: IpAddr, xds: SocketAddr, protocol: Protocol) -> String {
    let api_type = match protocol {
        Protocol::Delta => "DELTA_GRPC",
        Protocol::StateOfTheWorld => "GRPC",
    };
    let source = format!(
        "{{resource_api_version: V3, api_config_source: {{api_type: {api_type}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}}}"
    );
    let text = bootstrap(service, ip, xds, protocol);
    let (from, to) = (
        text.find("dynamic_resources:").unwrap(),
        text.find("static_resources:").unwrap(),
    );
    let own = format!("dynamic_resources:\n  cds_config: {source}\n  lds_config: {source}\n");
    let text = format!("{}{own}{}", &text[..from], &text[to..]);
    text.replacen(
        "namespace: default,",
        "namespace: default, xds_cluster: xds,",
        1,
    )
}

async fn answered_by(outbound: SocketAddr, name: &str) -> anyhow::Result<()> {
    let request = Call::get("shop", "/");
    eventually(&format!("an answer of {name}"), READY_MAX, async || {
        let answer = call(outbound, &request).await.ok()?;
        (answer.header("x-echo") == name).then_some(())
    })
    .await
}

async fn separate_streams_lose_nothing(protocol: Protocol) -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _old = mesh.instance("old", "v1", "old").await?;
    let _new = mesh.instance("new", "v1", "new").await?;
    mesh.apply(&(service("shop") + &service("old") + &route("old")))
        .await?;
    let xds = mesh.xds;
    let envoy = Envoy::start_from(&mut mesh, |ip| separate("gateway", ip, xds, protocol)).await?;
    answered_by(envoy.outbound, "old").await?;
    let proxies = mesh.client().proxies().await?.items;
    let envoys = proxies.iter().filter(|p| p.agent.starts_with("envoy"));
    assert_eq!(envoys.count(), 1, "{proxies:?}");

    let load = Load::start(
        envoy.outbound,
        &Call::get("shop", "/"),
        4,
        Duration::from_millis(5),
    );
    // A new cluster and the route to it in one change, then the old cluster goes; and back again.
    for _ in 0..2 {
        for (to, gone) in [("new", "old"), ("old", "new")] {
            mesh.apply(&(service(to) + &route(to))).await?;
            answered_by(envoy.outbound, to).await?;
            let ids = vec![phalanx_client::api::DocumentRef {
                kind: "Service".into(),
                namespace: "default".into(),
                name: gone.into(),
            }];
            let request = phalanx_client::api::DeleteRequest {
                ids,
                author: "test".into(),
                ..Default::default()
            };
            let deleted = mesh.client().delete(&request).await?;
            mesh.applied(deleted.revision).await?;
        }
    }
    let report = load.stop().await;
    assert_eq!(
        report.failed(),
        0,
        "{:?} of {}",
        report.failures,
        report.sent
    );
    assert!(report.sent > 100, "{}", report.sent);
    Ok(())
}

#[tokio::test]
async fn an_envoy_with_a_delta_stream_per_kind_loses_no_request() -> anyhow::Result<()> {
    separate_streams_lose_nothing(Protocol::Delta).await
}

#[tokio::test]
async fn an_envoy_with_a_state_of_the_world_stream_per_kind_loses_no_request() -> anyhow::Result<()>
{
    separate_streams_lose_nothing(Protocol::StateOfTheWorld).await
}

/// With a control plane it goes on beyond the time to live; without one it stops listening after it; and it comes back.
async fn time_to_live(protocol: Protocol) -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _shop = mesh.instance("shop", "v1", "shop").await?;
    mesh.apply(&service("shop")).await?;
    let xds = mesh.xds;
    let envoy = Envoy::start_from(&mut mesh, |ip| {
        let text = bootstrap("gateway", ip, xds, protocol);
        text.replacen(
            "namespace: default,",
            "namespace: default, resource_ttl: 6s,",
            1,
        )
    })
    .await?;
    answered_by(envoy.outbound, "shop").await?;
    let load = Load::start(
        envoy.outbound,
        &Call::get("shop", "/"),
        1,
        Duration::from_millis(20),
    );
    tokio::time::sleep(2 * TTL).await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.failures);

    mesh.control.kill();
    let killed = std::time::Instant::now();
    eventually(
        "an Envoy that has dropped its listener",
        4 * TTL,
        async || call(envoy.outbound, &Call::get("shop", "/")).await.err(),
    )
    .await?;
    assert!(
        killed.elapsed() >= TTL / 3,
        "it is confirmed three times in each"
    );
    // Each kind has a time to live of its own.
    eventually("its clusters to be dropped, too", 4 * TTL, async || {
        let left = envoy.stat("cluster_manager.active_clusters").await.ok()?;
        (left == 1).then_some(())
    })
    .await?;
    mesh.restart_control().await?;
    answered_by(envoy.outbound, "shop").await
}

const TTL: Duration = Duration::from_secs(6);

#[tokio::test]
async fn an_envoy_over_delta_drops_what_nobody_confirms_and_keeps_what_is_confirmed()
-> anyhow::Result<()> {
    time_to_live(Protocol::Delta).await
}

#[tokio::test]
async fn an_envoy_over_state_of_the_world_drops_what_nobody_confirms_and_keeps_what_is_confirmed()
-> anyhow::Result<()> {
    time_to_live(Protocol::StateOfTheWorld).await
}

#[tokio::test]
async fn an_envoy_reports_its_load_per_cluster() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _shop = mesh.instance("shop", "v1", "shop").await?;
    mesh.apply(&service("shop")).await?;
    let extra = "cluster_manager:\n  load_stats_config: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}\n";
    let envoy = Envoy::start_with(&mut mesh, "gateway", Protocol::Delta, extra).await?;
    answered_by(envoy.outbound, "shop").await?;
    let client = mesh.client();
    let cluster = "outbound|80|shop.default.svc.mesh";
    eventually("the load report", READY_MAX, async || {
        // Envoy counts from when it is asked to report.
        call(envoy.outbound, &Call::get("shop", "/")).await.ok()?;
        let loads = client.loads().await.ok()?;
        let load = loads
            .items
            .into_iter()
            .find(|load| load.cluster == cluster)?;
        (load.succeeded > 0 && load.failed == 0 && load.reporters == 1).then_some(())
    })
    .await
}
