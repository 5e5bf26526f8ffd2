//! A sidecar holds what its application calls, and nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call, first_call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};

const SERVICES: usize = 1_000;

fn service(name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {app}}}\n  ports: [{{name: http, port: 80, appProtocol: http}}]\n---\n"
    )
}

fn route(backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: battle}}\nspec:\n  parentRefs: [{{kind: Service, name: battle}}]\n  rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]\n"
    )
}

/// A thousand services, `battle` among them, and a caller that has called none.
async fn thousand() -> anyhow::Result<(Mesh, Instance, Instance)> {
    let mut mesh = Mesh::start().await?;
    let battle = mesh.instance("battle", "v1", "one").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply(&service("battle", "battle")).await?;
    let others: Vec<String> = (1..SERVICES)
        .map(|number| service(&format!("service-{number}"), "nobody"))
        .collect();
    for some in others.chunks(100) {
        mesh.apply(&some.concat()).await?;
    }
    Ok((mesh, battle, caller))
}

/// Values of a metric by the value of its only label, or by "".
async fn metric(sidecar: &Instance, name: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let answer = call(sidecar.admin, &Call::get("localhost", "/metrics")).await?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let mut values = BTreeMap::new();
    for line in text.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let (family, labels) = series.split_once('{').unwrap_or((series, ""));
        if family == name {
            let label = labels.split('"').nth(1).unwrap_or_default();
            values.insert(label.to_owned(), value.parse()?);
        }
    }
    anyhow::ensure!(!values.is_empty(), "no metric {name} in\n{text}");
    Ok(values)
}

/// Resources in use, as `CDS 1 EDS 1 LDS 2 RDS 1`; kinds without any are left out.
async fn held(sidecar: &Instance) -> anyhow::Result<String> {
    let mut text = String::new();
    for (kind, count) in metric(sidecar, "phalanx_xds_resources").await? {
        if count > 0 {
            write!(text, "{kind} {count} ")?;
        }
    }
    Ok(text.trim_end().to_owned())
}

/// Responses taken so far, by kind.
async fn taken(sidecar: &Instance) -> anyhow::Result<BTreeMap<String, u64>> {
    metric(sidecar, "phalanx_xds_updates_total").await
}

async fn one(sidecar: &Instance, name: &str) -> anyhow::Result<u64> {
    Ok(metric(sidecar, name).await?.values().sum())
}

#[tokio::test]
async fn of_a_thousand_services_a_sidecar_holds_those_it_calls() -> anyhow::Result<()> {
    let (mesh, _battle, caller) = thousand().await?;
    assert_eq!(
        held(&caller).await?,
        "LDS 2",
        "the listeners of both directions, and nothing that grows with the mesh"
    );

    let before = taken(&caller).await?;
    let answer = call(caller.outbound, &Call::get("battle", "/")).await?;
    assert_eq!((answer.status, answer.header("x-echo")), (200, "one"));
    assert_eq!(held(&caller).await?, "CDS 1 EDS 1 LDS 2 RDS 1");
    let after = taken(&caller).await?;
    for (kind, more) in [("CDS", 1), ("EDS", 1), ("LDS", 0), ("RDS", 1)] {
        assert_eq!(
            after[kind] - before[kind],
            more,
            "one flight of three: {kind}"
        );
    }

    // Again, and what has the same cluster under another name.
    for name in ["battle", "BATTLE", "battle:80", "battle.default.svc.mesh"] {
        assert_eq!(
            call(caller.outbound, &Call::get(name, "/")).await?.status,
            200,
            "{name}"
        );
    }
    assert_eq!(held(&caller).await?, "CDS 1 EDS 1 LDS 2 RDS 3");
    assert_eq!(one(&caller, "phalanx_demand_misses_total").await?, 3);
    assert_eq!(taken(&caller).await?["CDS"], after["CDS"]);

    // A revision that concerns nothing it holds is applied without a word.
    let before = taken(&caller).await?;
    let changed = mesh.apply(&service("another", "nobody")).await?;
    let status = mesh.applied(changed.revision).await?;
    assert_eq!((status.applied, status.proxies), (2, 2));
    assert_eq!(taken(&caller).await?, before);
    Ok(())
}

#[tokio::test]
async fn many_first_uses_at_once_cost_a_few_responses_and_all_succeed() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _battle = mesh.instance("battle", "v1", "one").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    let names: Vec<String> = (0..100).map(|number| format!("battle-{number}")).collect();
    let all: String = names.iter().map(|name| service(name, "battle")).collect();
    mesh.apply(&all).await?;
    let before = taken(&caller).await?;
    let mut calls = tokio::task::JoinSet::new();
    for name in names.clone() {
        let outbound = caller.outbound;
        // HTTP/1, HTTP/2 and gRPC, three of each host.
        for kind in 0..3 {
            let request = match kind {
                0 => Call::get(&name, "/"),
                _ => Call::grpc(&name, "/arena.v1.Battle/Fight"),
            };
            calls.spawn(async move { call(outbound, &request).await });
        }
    }
    while let Some(answer) = calls.join_next().await {
        let answer = answer??;
        assert_eq!((answer.status, answer.header("x-echo")), (200, "one"));
    }
    assert_eq!(held(&caller).await?, "CDS 100 EDS 100 LDS 2 RDS 100");
    let responses = taken(&caller).await?["RDS"] - before["RDS"];
    assert!(responses <= 100, "{responses}");
    assert_eq!(one(&caller, "phalanx_demand_parked").await?, 0);
    assert_eq!(one(&caller, "phalanx_demand_refused_total").await?, 0);
    Ok(())
}

#[tokio::test]
async fn an_unknown_host_is_404_at_once_and_works_when_it_comes_to_be() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _battle = mesh.instance("battle", "v1", "one").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    let request = Call::get("late", "/");
    for _ in 0..50 {
        let answer = first_call(caller.outbound, &request).await?;
        assert_eq!(
            (answer.status, answer.header("x-phalanx-reason")),
            (404, "no_route")
        );
    }
    let grpc = call(caller.outbound, &Call::grpc("late", "/a.B/C")).await?;
    assert_eq!((grpc.status, grpc.grpc_status()), (200, Some("12")));
    assert_eq!(
        one(&caller, "phalanx_demand_misses_total").await?,
        1,
        "asked once, told of changes"
    );
    let before = taken(&caller).await?;
    mesh.apply(&service("late", "battle")).await?;
    assert_eq!(call(caller.outbound, &request).await?.status, 200);
    let after = taken(&caller).await?;
    assert_eq!(
        after["RDS"] - before["RDS"],
        1,
        "pushed, not asked for again"
    );
    assert_eq!(one(&caller, "phalanx_demand_misses_total").await?, 1);
    Ok(())
}

#[tokio::test]
async fn changes_of_a_host_in_use_cost_no_request() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _one = mesh.instance("battle", "v1", "one").await?;
    let _two = mesh.instance("arena", "v1", "two").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply(&service("battle", "battle")).await?;
    let load = Load::start(
        caller.outbound,
        &Call::get("battle", "/"),
        4,
        Duration::from_millis(2),
    );
    for round in 0..10 {
        // A service that nobody held takes all traffic, and goes again.
        let name = format!("extra-{round}");
        mesh.apply(&format!("{}{}", service(&name, "arena"), route(&name)))
            .await?;
        mesh.apply(&route("battle")).await?;
        let gone = phalanx_client::api::DocumentRef {
            kind: "Service".into(),
            namespace: "default".into(),
            name,
        };
        let request = phalanx_client::api::DeleteRequest {
            ids: vec![gone],
            ..Default::default()
        };
        let deleted = mesh.client().delete(&request).await?;
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
    assert_eq!(report.answered_by.len(), 2, "{:?}", report.answered_by);
    // It is applied when the host goes another way; what that leaves behind goes with the next answers.
    eventually("what was left to be gone", READY_MAX, async || {
        let held = held(&caller).await.ok()?;
        (held == "CDS 1 EDS 1 LDS 2 RDS 1").then_some(())
    })
    .await
}

#[tokio::test]
async fn what_is_not_called_any_more_is_let_go_and_what_is_stays() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _battle = mesh.instance("battle", "v1", "one").await?;
    let caller = mesh
        .instance_with("gateway", "v1", "gateway", &["--unused", "5s"])
        .await?;
    let both = service("battle", "battle") + &service("arena", "battle");
    mesh.apply(&both).await?;
    let load = Load::start(
        caller.outbound,
        &Call::get("battle", "/"),
        1,
        Duration::from_millis(20),
    );
    for name in ["arena", "nobody"] {
        first_call(caller.outbound, &Call::get(name, "/")).await?;
    }
    assert_eq!(held(&caller).await?, "CDS 2 EDS 2 LDS 2 RDS 3");
    eventually("arena to be let go", READY_MAX, async || {
        let held = held(&caller).await.ok()?;
        (held == "CDS 1 EDS 1 LDS 2 RDS 1").then_some(())
    })
    .await?;
    assert_eq!(one(&caller, "phalanx_demand_unused_total").await?, 2);
    let answer = first_call(caller.outbound, &Call::get("arena", "/")).await?;
    assert_eq!(answer.status, 200, "it comes back when it is called");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    Ok(())
}

#[tokio::test]
async fn without_a_control_plane_what_is_held_works_and_what_is_not_is_told_soon()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _battle = mesh.instance("battle", "v1", "one").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    let both = service("battle", "battle") + &service("arena", "battle");
    mesh.apply(&both).await?;
    let battle = Call::get("battle", "/");
    assert_eq!(call(caller.outbound, &battle).await?.status, 200);
    let load = Load::start(caller.outbound, &battle, 2, Duration::from_millis(5));
    mesh.control.kill();
    // At first it may be back in a moment; after that there is nobody to ask.
    for _ in 0..5 {
        let answer = call(caller.outbound, &Call::get("arena", "/")).await?;
        let told = (answer.status, answer.header("x-phalanx-reason").to_owned());
        assert_eq!(told, (503, "no_healthy_upstream".to_owned()));
    }
    let refused = metric(&caller, "phalanx_demand_refused_total").await?;
    assert_eq!(refused["late"] + refused["lost"], 5);
    assert!(refused["lost"] > 0, "{refused:?}");

    mesh.restart_control().await?;
    eventually("arena", READY_MAX, async || {
        let answer = call(caller.outbound, &Call::get("arena", "/")).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert_eq!(held(&caller).await?, "CDS 2 EDS 2 LDS 2 RDS 2");
    // What it came back with was current, so only the new host was told.
    let moved = mesh.apply(&route("arena")).await?;
    mesh.applied(moved.revision).await?;
    assert_eq!(call(caller.outbound, &battle).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn an_application_that_makes_up_names_is_bounded_and_harms_no_host_in_use()
-> anyhow::Result<()> {
    const AT_ONCE: usize = 32;
    // More than are held, where there is time for it: each name costs a round trip.
    let names = match std::env::var_os("PHALANX_SOAK") {
        Some(_) => 10_000,
        None => 1_000,
    };
    let mut mesh = Mesh::start().await?;
    let _battle = mesh.instance("battle", "v1", "one").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply(&service("battle", "battle")).await?;
    let load = Load::start(
        caller.outbound,
        &Call::get("battle", "/"),
        1,
        Duration::from_millis(10),
    );
    let mut floods = tokio::task::JoinSet::new();
    for part in 0..AT_ONCE {
        let outbound = caller.outbound;
        floods.spawn(async move {
            let mut connection = phalanx_testkit::http::Connection::open(outbound, false).await?;
            let mut known = 0;
            for number in 0..names / AT_ONCE {
                let request = Call::get(&format!("made-up-{part}-{number}"), "/");
                let answer = connection.send(&request).await?;
                // On a busy machine the control plane's word may be late: said so, and it harms nobody else.
                match (answer.status, answer.header("x-phalanx-reason")) {
                    (404, "no_route") => known += 1,
                    (503, "no_healthy_upstream" | "overload") => {}
                    other => anyhow::bail!("{other:?}"),
                }
            }
            anyhow::Ok(known)
        });
    }
    let mut known = 0;
    while let Some(flood) = floods.join_next().await {
        known += flood??;
    }
    assert!(
        known > names / 2,
        "{known} of {names} were answered by the control plane"
    );
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    let hosts = metric(&caller, "phalanx_demand_held").await?;
    assert_eq!(hosts["yes"], 1);
    assert!(hosts["no"] <= 8_192, "{hosts:?}");
    let crowded_out = one(&caller, "phalanx_demand_crowded_out_total").await?;
    assert_eq!(crowded_out > 0, names > 8_192, "{crowded_out}");
    let battle = call(caller.outbound, &Call::get("battle", "/")).await?;
    assert_eq!(battle.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_first_use_over_http2_succeeds() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _battle = mesh.instance("battle", "v1", "one").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    let both = service("battle", "battle") + &service("arena", "battle");
    mesh.apply(&both).await?;
    let mut connection = phalanx_testkit::http::Connection::open(caller.outbound, true).await?;
    for (host, status) in [("battle", 200), ("nobody", 404), ("arena", 200)] {
        assert_eq!(
            connection.send(&Call::get(host, "/")).await?.status,
            status,
            "{host}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn callers_that_go_away_while_they_wait_leave_nothing_behind() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _battle = mesh.instance("battle", "v1", "one").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply(&service("arena", "battle")).await?;
    mesh.control.pause()?;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let outbound = caller.outbound;
        calls.spawn(async move { call(outbound, &Call::get("arena", "/")).await });
    }
    eventually("some to wait", READY_MAX, async || {
        let parked = one(&caller, "phalanx_demand_parked").await.ok()?;
        (parked > 0).then_some(())
    })
    .await?;
    calls.shutdown().await;
    eventually("none to wait", READY_MAX, async || {
        let parked = one(&caller, "phalanx_demand_parked").await.ok()?;
        (parked == 0).then_some(())
    })
    .await?;
    mesh.control.resume()?;
    eventually("the host", READY_MAX, async || {
        let answer = call(caller.outbound, &Call::get("arena", "/")).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
}
