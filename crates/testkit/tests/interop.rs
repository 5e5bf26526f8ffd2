//! One control plane and the same manifests, a real Envoy and our sidecar: a table of requests goes the same way.

use phalanx_testkit::envoy::{self, Envoy, Protocol};
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Answer, Call, Connection, call, first_call};
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};

use std::net::SocketAddr;

#[path = "interop/table.rs"]
mod table;

const MANIFESTS: &str = include_str!("interop.yaml");

/// What both must agree on.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    by: String,
    /// Method, path, query and the headers the table is about, as the application got them.
    received: serde_json::Value,
    location: String,
    /// Those of the answer that the table is about.
    marked: Vec<String>,
    grpc: Option<String>,
}

/// Of requests as the application got them, and of answers.
const RECEIVED: [&str; 5] = ["x-added", "x-set", "x-gone", "x-backend", "host"];
const MARKED: [&str; 10] = [
    "x-marked",
    "x-app",
    "x-gone",
    "x-phalanx-reason",
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-expose-headers",
    "access-control-max-age",
];

fn seen(answer: &Answer) -> Seen {
    let told = answer.json();
    let mut received = vec![
        told["method"].clone(),
        told["path"].clone(),
        told["query"].clone(),
    ];
    received.extend(RECEIVED.map(|name| told["headers"][name].clone()));
    // Of what it takes for no request at all, Envoy tells no reason.
    let told_by_both = |name: &&&str| answer.status != 400 || **name != "x-phalanx-reason";
    let all = |name: &&str| {
        let values = answer.headers.get_all(*name).iter();
        values
            .map(|value| format!("{name}: {}", value.to_str().unwrap_or_default()))
            .collect::<Vec<_>>()
    };
    Seen {
        status: answer.status,
        by: answer.header("x-echo").to_owned(),
        received: received.into(),
        location: answer.header("location").to_owned(),
        marked: MARKED.iter().filter(told_by_both).flat_map(all).collect(),
        grpc: answer.grpc_status().map(str::to_owned),
    }
}

async fn agree(protocol: Protocol) -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _shop = mesh.instance("shop", "v1", "shop").await?;
    let _cart = mesh.instance("cart", "v1", "cart").await?;
    let _glass = mesh.instance("glass", "v1", "glass").await?;
    let lane = ["--labels", "lane=dev-li"];
    let _lane = mesh.instance_with("shop", "v1", "shop-li", &lane).await?;
    let ours = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply(MANIFESTS).await?;
    let envoy = Envoy::start(&mut mesh, "gateway", protocol).await?;
    let ready = Call::get("shop", "/cart");
    eventually("envoy's routes", READY_MAX, async || {
        call(envoy.outbound, &ready)
            .await
            .ok()
            .filter(|a| a.status == 200)
            .map(drop)
    })
    .await?;

    let mut differences = Vec::new();
    for (request, by, status) in table::all() {
        let (mine, theirs) = (
            seen(&first_call(ours.outbound, &request).await?),
            seen(&call(envoy.outbound, &request).await?),
        );
        let name = format!(
            "{} {}{} {:?}",
            request.method, request.authority, request.path, request.headers
        );
        if mine != theirs {
            differences.push(format!("{name}\n   ours {mine:?}\n  envoy {theirs:?}"));
        }
        if (mine.by.as_str(), mine.status) != (by, status) {
            differences.push(format!(
                "{name}\n   ours {mine:?}\n  wanted {status} by `{by}`"
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    for outbound in [ours.outbound, envoy.outbound] {
        shares(outbound).await?;
    }
    for sender in [envoy.outbound, ours.outbound] {
        copies(sender, &ours).await?;
    }
    for stat in [
        "cluster_manager.cds.update_rejected",
        "listener_manager.lds.update_rejected",
        "http.outbound.rds.outbound.update_rejected",
    ] {
        assert_eq!(envoy.stat(stat).await?, 0, "{stat}");
    }
    let complete = eventually("both to have everything", READY_MAX, async || {
        mesh.client()
            .status(None)
            .await
            .ok()
            .filter(|s| s.complete())
    });
    let status = complete.await?;
    assert!(status.refused.is_empty(), "{status:?}");
    Ok(())
}

/// A backend's part of 200 requests, and what is answered where there is none.
async fn shares(outbound: SocketAddr) -> anyhow::Result<()> {
    let mut connection = Connection::open(outbound, false).await?;
    let mut part = async |path: &str, by: &str, status: u16| -> anyhow::Result<usize> {
        let mut count = 0;
        for _ in 0..200 {
            let answer = connection.send(&Call::get("filter", path)).await?;
            let is_other = answer.header("x-echo") != by || answer.status != status;
            count += usize::from(!is_other);
        }
        Ok(count)
    };
    assert_eq!(part("/zero", "cart", 200).await?, 200);
    // Seven standard deviations.
    let half = part("/half", "", 500).await?;
    assert!((50..=150).contains(&half), "{half} of 200 had no backend");
    let tenth = part("/tenth", "cart", 200).await?;
    assert!(
        (1..=50).contains(&tenth),
        "{tenth} of 200 went to the tenth"
    );
    Ok(())
}

/// Copies arrive: all at one, a quarter at another; whoever calls hears only its own answer.
async fn copies(sender: SocketAddr, ours: &Instance) -> anyhow::Result<()> {
    let seen = async |by: &str| -> anyhow::Result<u64> {
        let answer = first_call(ours.outbound, &Call::get(by, "/seen")).await?;
        Ok(answer.json()["seen"].as_u64().unwrap_or_default())
    };
    let before = [seen("shop").await?, seen("glass").await?];
    let mut connection = Connection::open(sender, false).await?;
    for _ in 0..200 {
        let answer = connection.send(&Call::get("filter", "/copy")).await?;
        assert_eq!(answer.header("x-echo"), "cart");
    }
    eventually("all copies", READY_MAX, async || {
        let all = seen("shop").await.ok()? - before[0];
        (all >= 200).then_some(())
    })
    .await?;
    let quarter = seen("glass").await? - before[1];
    assert!((10..=100).contains(&quarter), "{quarter} of 200");
    Ok(())
}

/// Of two Envoys only the one of the route's namespace follows a consumer route, which our sidecar there follows too.
#[tokio::test]
async fn consumer_route_holds_for_callers_of_its_namespace_only() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _shop = mesh.instance("shop", "v1", "shop").await?;
    let _cart = mesh.instance("cart", "v1", "cart").await?;
    mesh.apply(CONSUMER).await?;
    let near = Envoy::start(&mut mesh, "gateway", Protocol::Delta).await?;
    let xds = mesh.xds;
    let far = Envoy::start_from(&mut mesh, |own| {
        let text = envoy::bootstrap("gateway", own, xds, Protocol::Delta);
        text.replace("namespace: default", "namespace: eu")
            .replace("default/gateway", "eu/gateway")
    })
    .await?;
    let shop = Call::get("shop.default.svc.mesh", "/");
    for (envoy, by) in [(&near, "shop"), (&far, "cart")] {
        let led = async || {
            let answer = call(envoy.outbound, &shop).await.ok()?;
            (answer.status == 200 && answer.header("x-echo") == by).then_some(())
        };
        eventually("envoy to go where its namespace says", READY_MAX, led).await?;
    }
    Ok(())
}

const CONSUMER: &str = "
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: shop}, ports: [{name: http, port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: eu}
spec:
  parentRefs: [{kind: Service, name: shop, namespace: default}]
  rules: [{backendRefs: [{name: cart, namespace: default, port: 80}]}]
";

#[tokio::test]
async fn envoy_over_delta_routes_as_our_sidecar_does() -> anyhow::Result<()> {
    agree(Protocol::Delta).await
}

#[tokio::test]
async fn envoy_over_state_of_the_world_routes_as_our_sidecar_does() -> anyhow::Result<()> {
    agree(Protocol::StateOfTheWorld).await
}

#[tokio::test]
async fn envoy_loses_no_request_while_weights_and_backends_change() -> anyhow::Result<()> {
    use phalanx_testkit::load::Load;
    let mut mesh = Mesh::start().await?;
    let _shop = mesh.instance("shop", "v1", "shop").await?;
    let _cart = mesh.instance("cart", "v1", "cart").await?;
    mesh.apply(MANIFESTS).await?;
    let envoy = Envoy::start(&mut mesh, "gateway", Protocol::Delta).await?;
    let request = Call::get("shop", "/");
    eventually("envoy's routes", READY_MAX, async || {
        call(envoy.outbound, &request)
            .await
            .ok()
            .filter(|a| a.status == 200)
            .map(drop)
    })
    .await?;
    let load = Load::start(
        envoy.outbound,
        &request,
        4,
        std::time::Duration::from_millis(2),
    );
    for round in 0..10 {
        // A service that comes, takes all traffic, and goes again: make before break or lose requests.
        let name = format!("extra-{round}");
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: cart}}\n  ports: [{{port: 80, appProtocol: http}}]\n"
        );
        let route = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop-all}}\nspec:\n  parentRefs: [{{kind: Service, name: shop}}]\n  rules: [{{backendRefs: [{{name: {name}, port: 80}}]}}]\n"
        );
        mesh.apply(&format!("{service}---\n{route}")).await?;
        let back = route.replace(&name, "shop");
        mesh.apply(&back).await?;
        let gone = phalanx_client::api::DocumentRef {
            kind: "Service".into(),
            namespace: "default".into(),
            name,
        };
        let deleted = mesh
            .client()
            .delete(&phalanx_client::api::DeleteRequest {
                ids: vec![gone],
                ..Default::default()
            })
            .await?;
        mesh.applied(deleted.revision).await?;
    }
    let report = load.stop().await;
    assert_eq!(
        report.failed(),
        0,
        "{:?} of {}",
        report.failures,
        report.sent
    );
    assert!(report.sent > 200, "{}", report.sent);
    Ok(())
}
