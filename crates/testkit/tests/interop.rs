//! One control plane and the same manifests, a real Envoy and our sidecar: a table of requests goes the same way.

use phalanx_testkit::envoy::{Envoy, Protocol};
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Answer, Call, Connection, call};
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};

use std::net::SocketAddr;

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

/// Matches, one condition after the other and all together; which of several rules comes first.
fn matches() -> Vec<(Call, &'static str, u16)> {
    let at = |path: &str| Call::get("match", path);
    let all = |path: &str, a: &str, b: &str| {
        at(path)
            .method(Method::PUT)
            .header("X-A", a)
            .header("x-b", b)
    };
    let order = || at("/order/x");
    vec![
        (all("/all/x?q=a%20b&r=xx", "1", "42"), "cart", 200),
        (all("/all?r=x&z=1&q=a%20b", "1", "42"), "cart", 200),
        (
            all("/all?q=a%20b&r=xx", "1", "42").method(Method::GET),
            "",
            404,
        ),
        (all("/all?q=a%20b&r=xx", "2", "42"), "", 404),
        (all("/all?q=a%20b&r=xx", "1", "421"), "", 404),
        (all("/all?q=a&r=xx", "1", "42"), "", 404),
        (all("/all?q=a%20b&r=xy", "1", "42"), "", 404),
        (all("/all?q=a%20b", "1", "42"), "", 404),
        (all("/all?Q=a%20b&r=xx", "1", "42"), "", 404),
        // Twice: the first value counts.
        (all("/all?q=a%20b&q=c&r=xx", "1", "42"), "cart", 200),
        (all("/all?q=c&q=a%20b&r=xx", "1", "42"), "", 404),
        (order(), "shop", 200),
        (at("/order/exact"), "cart", 200),
        (at("/order/exact/"), "shop", 200),
        (at("/order/rab"), "cart", 200),
        (at("/order/rab1"), "shop", 200),
        (at("/order/long"), "cart", 200),
        (at("/order/long/x"), "cart", 200),
        (at("/order/longer"), "shop", 200),
        (order().method(Method::DELETE), "cart", 200),
        (order().header("x-one", "1"), "cart", 200),
        (
            order().header("x-one", "1").header("x-two", "2"),
            "shop",
            200,
        ),
        (at("/order/x?one=1"), "cart", 200),
        (at("/order/x?one=1").header("x-two", "2"), "cart", 200),
        (at("/tie"), "cart", 200),
        (at("/"), "", 404),
        (Call::get("duo", "/"), "shop", 200),
        (Call::get("duo:8080", "/"), "cart", 200),
    ]
}

/// What is done to requests and answers on their way.
fn filters() -> Vec<(Call, &'static str, u16)> {
    let at = |path: &str| Call::get("filter", path);
    let moved = |path: &str| Call::get("shop", path);
    let marked = |path: &str| {
        at(path)
            .header("x-answer", "x-marked=old")
            .header("x-answer", "x-app=app")
            .header("x-answer", "x-gone=app")
    };
    let of = |path: &str, origin: &str| at(path).header("origin", origin);
    let asks = |path: &str, origin: &str| {
        of(path, origin)
            .method(Method::OPTIONS)
            .header("access-control-request-method", "PUT")
    };
    vec![
        (moved("/moved-port/a?x=1"), "", 307),
        (moved("/moved-port"), "", 307),
        (moved("/moved-303/a/"), "", 303),
        (moved("/moved-308/a/b?q"), "", 308),
        (moved("/moved-308"), "", 308),
        (
            marked("/backend/x")
                .header("x-set", "old")
                .header("x-gone", "1"),
            "cart",
            200,
        ),
        (marked("/answer").header("x-added", "a"), "cart", 200),
        (at("/host/a"), "cart", 200),
        (at("/both/a/b?c"), "cart", 200),
        (at("/both"), "cart", 200),
        (at("/again/flaky/1"), "cart", 200),
        (at("/again/status/503"), "cart", 503),
        (at("/again/status/500"), "cart", 500),
        (at("/attempt/slow/900"), "", 504),
        (at("/attempt/slow/1"), "cart", 200),
        (at("/unlimited/slow/300"), "cart", 200),
        (of("/cors", "https://www.foo.test"), "cart", 200),
        (of("/cors", "https://a.b.bar.test"), "cart", 200),
        (of("/cors", "http://baz.test:8080"), "cart", 200),
        (of("/cors", "https://bar.test"), "cart", 200),
        (of("/cors", "http://www.foo.test"), "cart", 200),
        (of("/cors", "https://www.foo.test:8443"), "cart", 200),
        (at("/cors"), "cart", 200),
        (asks("/cors", "https://www.foo.test"), "", 200),
        (
            asks("/cors", "https://x.bar.test").header("access-control-request-headers", "x-z"),
            "",
            200,
        ),
        (asks("/cors", "https://evil.test"), "", 200),
        // No preflight: nothing is asked for.
        (
            of("/cors", "https://www.foo.test").method(Method::OPTIONS),
            "cart",
            200,
        ),
        (of("/open/x", "https://any.test"), "cart", 200),
        (
            asks("/open", "https://any.test").header("access-control-request-headers", "x-a, x-b"),
            "",
            200,
        ),
        // Pages may read errors too.
        (of("/open/slow/900", "https://any.test"), "", 504),
    ]
}

fn calls() -> Vec<(Call, &'static str, u16)> {
    let at = |path: &str| Call::grpc("calls", path);
    let fight = || at("/arena.v1.Battle/Fight");
    vec![
        (at("/any.Service/Only"), "cart", 200),
        (at("/any.Service/only"), "", 200),
        (at("/arena.v2.Chat/Say"), "cart", 200),
        (at("/arena.v2.Chat/Shout"), "cart", 200),
        (at("/arena.vx.Chat/Say"), "", 200),
        (at("/arena.v2.Chat/Whisper"), "", 200),
        (fight(), "shop", 200),
        (
            fight().header("x-env", "staging").header("x-build", "b7"),
            "cart",
            200,
        ),
        (
            fight().header("x-env", "staging").header("x-build", "b"),
            "shop",
            200,
        ),
        (at("/arena.v1.Battle"), "shop", 200),
        // Not gRPC: no rule of a GRPCRoute is meant for it.
        (Call::get("calls", "/arena.v1.Battle/Fight"), "", 404),
    ]
}

async fn agree(protocol: Protocol) -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _shop = mesh.instance("shop", "v1", "shop").await?;
    let _cart = mesh.instance("cart", "v1", "cart").await?;
    let _glass = mesh.instance("glass", "v1", "glass").await?;
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
    let tables = [table(), matches(), filters(), calls()];
    for (request, by, status) in tables.into_iter().flatten() {
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
    for outbound in [ours.outbound, envoy.outbound] {
        shares(outbound).await?;
    }
    copies(&envoy, &ours).await?;
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

/// Envoy's copies arrive: all at one, a quarter at another; whoever calls hears only its own answer.
async fn copies(envoy: &Envoy, ours: &Instance) -> anyhow::Result<()> {
    let seen = async |by: &str| -> anyhow::Result<u64> {
        let answer = call(ours.outbound, &Call::get(by, "/seen")).await?;
        Ok(answer.json()["seen"].as_u64().unwrap_or_default())
    };
    let before = [seen("shop").await?, seen("glass").await?];
    let mut connection = Connection::open(envoy.outbound, false).await?;
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
