//! Requests over `interop.yaml`: who must answer each ("" for the proxy itself), and with which status.

use hyper::Method;
use phalanx_testkit::http::Call;

/// All of them.
pub fn all() -> impl Iterator<Item = (Call, &'static str, u16)> {
    [table(), matches(), filters(), calls(), lanes()]
        .into_iter()
        .flatten()
}

/// A colour leads to its lane where there is one, whatever else decides.
fn lanes() -> Vec<(Call, &'static str, u16)> {
    let coloured = |authority, path, colour| Call::get(authority, path).header("x-env", colour);
    vec![
        (coloured("shop", "/", "dev-li"), "shop-li", 200),
        (coloured("shop", "/", "dev-wu"), "shop", 200),
        (coloured("shop", "/cart", "dev-li"), "cart", 200),
        (coloured("shop", "/header", "dev-li"), "shop-li", 200),
        (coloured("shop", "/header", "staging"), "cart", 200),
        (coloured("glass", "/", "dev-li"), "glass", 200),
        // A lane that refuses, and has nobody there.
        (coloured("glass", "/", "dev-wu"), "", 503),
        (coloured("glass", "/", "prod"), "glass", 200),
    ]
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
