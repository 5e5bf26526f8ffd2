//! One control plane and the same manifests, a real Envoy and our sidecar: a table of requests goes the same way.

use phalanx_testkit::envoy::{Envoy, Protocol};
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Answer, Call, call};
use phalanx_testkit::mesh::{Mesh, READY_MAX};

use hyper::Method;

const MANIFESTS: &str = include_str!("interop.yaml");

/// What both must agree on.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    by: String,
    /// Method, path, query and the headers the table is about, as the application got them.
    received: serde_json::Value,
    location: String,
    marked: String,
    grpc: Option<String>,
}

fn seen(answer: &Answer) -> Seen {
    let told = answer.json();
    let header = |name: &str| told["headers"][name].clone();
    Seen {
        status: answer.status,
        by: answer.header("x-echo").to_owned(),
        received: serde_json::json!([
            told["method"],
            told["path"],
            told["query"],
            header("x-added"),
            header("x-set"),
            header("x-gone")
        ]),
        location: answer.header("location").to_owned(),
        marked: answer.header("x-marked").to_owned(),
        grpc: answer.grpc_status().map(str::to_owned),
    }
}

/// The request, who must answer it ("" for the proxy itself), and with which status.
fn table() -> Vec<(Call, &'static str, u16)> {
    let get = Call::get;
    vec![
        (get("shop", "/"), "shop", 200),
        (get("shop:80", "/anything?a=1"), "shop", 200),
        (get("shop.default.svc.mesh", "/x"), "shop", 200),
        (get("SHOP", "/"), "shop", 200),
        (get("nobody", "/"), "", 404),
        (get("shop", "/exact"), "cart", 200),
        (get("shop", "/exact/"), "shop", 200),
        (get("shop", "/cart"), "cart", 200),
        (get("shop", "/cart/items?n=2"), "cart", 200),
        (get("shop", "/carts"), "shop", 200),
        (get("shop", "/cart/../x"), "shop", 200),
        (get("shop", "/./cart//items"), "cart", 200),
        (get("shop", "/a%2fb"), "", 400),
        (get("shop", "/v1/users/42"), "cart", 200),
        (get("shop", "/v1/users/x"), "shop", 200),
        (
            get("shop", "/method").method(Method::POST).body("b"),
            "cart",
            200,
        ),
        (get("shop", "/method"), "shop", 200),
        (
            get("shop", "/header").header("x-env", "staging"),
            "cart",
            200,
        ),
        (get("shop", "/header").header("x-env", "prod"), "shop", 200),
        (
            get("shop", "/header").header("x-build", "build-17"),
            "cart",
            200,
        ),
        (
            get("shop", "/header").header("x-build", "build-x"),
            "shop",
            200,
        ),
        (get("shop", "/query?beta=yes"), "cart", 200),
        (get("shop", "/query?beta=no"), "shop", 200),
        (get("shop", "/query?a=b&beta=yes"), "cart", 200),
        (
            get("shop", "/edit")
                .header("x-gone", "1")
                .header("x-set", "old"),
            "cart",
            200,
        ),
        (get("shop", "/rewrite/a/b?q=1"), "cart", 200),
        (get("shop", "/rewrite"), "cart", 200),
        (get("shop", "/strip/a"), "cart", 200),
        (get("shop", "/strip"), "cart", 200),
        (get("shop", "/strip/"), "cart", 200),
        (get("shop", "/rewrite/"), "cart", 200),
        (get("shop", "/rewrite/a/"), "cart", 200),
        (get("shop", "/full/a"), "cart", 200),
        (get("shop", "/moved?x=1"), "", 302),
        (get("shop", "/elsewhere/deep"), "", 301),
        (get("shop", "/missing-backend"), "", 500),
        (get("shop", "/no-weight"), "", 500),
        (get("shop", "/status/503"), "shop", 503),
        (get("shop", "/impatient/slow/900"), "", 504),
        (get("idle", "/"), "", 503),
        (Call::grpc("game", "/arena.v1.Battle/Fight"), "cart", 200),
        (Call::grpc("game", "/arena.v1.Battle/Watch"), "shop", 200),
        (Call::grpc("game", "/arena.v1.Other/Any"), "cart", 200),
        (Call::grpc("nobody", "/arena.v1.Battle/Fight"), "", 200),
    ]
}

async fn agree(protocol: Protocol) -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _shop = mesh.instance("shop", "v1", "shop").await?;
    let _cart = mesh.instance("cart", "v1", "cart").await?;
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
    for (request, by, status) in table() {
        let (mine, theirs) = (
            seen(&call(ours.outbound, &request).await?),
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
