//! What dies may cost at most the requests in flight on it; what is told to go costs nothing.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::Method;
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};

const CONNECTIONS: usize = 8;
const PAUSE: Duration = Duration::from_millis(5);

const BATTLE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: battle}\nspec:\n  selector: {app: battle}\n  ports: [{name: http, port: 80, appProtocol: http}]\n";

/// Two battles, a caller, and both battles answering.
async fn two_battles() -> anyhow::Result<(Mesh, Vec<Instance>, Instance)> {
    let mut mesh = Mesh::start().await?;
    let battles = vec![
        mesh.instance("battle", "v1", "one").await?,
        mesh.instance("battle", "v1", "two").await?,
    ];
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply(BATTLE).await?;
    for name in ["one", "two"] {
        answered_by(caller.outbound, name).await?;
    }
    Ok((mesh, battles, caller))
}

async fn answered_by(outbound: SocketAddr, name: &str) -> anyhow::Result<()> {
    let request = Call::get("battle", "/");
    eventually(&format!("an answer of {name}"), READY_MAX, async || {
        call(outbound, &request)
            .await
            .ok()
            .filter(|a| a.header("x-echo") == name)
            .map(drop)
    })
    .await
}

fn get_load(caller: &Instance) -> Load {
    Load::start(
        caller.outbound,
        &Call::get("battle", "/"),
        CONNECTIONS,
        PAUSE,
    )
}

fn post_load(caller: &Instance) -> Load {
    Load::start(
        caller.outbound,
        &Call::get("battle", "/").method(Method::POST).body("x"),
        CONNECTIONS,
        PAUSE,
    )
}

#[tokio::test]
async fn a_control_plane_killed_and_restarted_costs_no_request() -> anyhow::Result<()> {
    let (mut mesh, _battles, caller) = two_battles().await?;
    let load = get_load(&caller);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        mesh.restart_control().await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // Everyone comes back by itself, and a change still reaches all.
    let client = mesh.client();
    eventually("all proxies to be back", READY_MAX, async || {
        client
            .status(None)
            .await
            .ok()
            .filter(|s| s.proxies == 3 && s.complete())
            .map(drop)
    })
    .await?;
    let instances = client.instances(Some("battle"), None).await?;
    assert_eq!(instances.items.len(), 2, "nobody was forgotten");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert!(report.sent > 100);
    Ok(())
}

#[tokio::test]
async fn a_killed_application_is_withdrawn_at_once_and_safe_requests_succeed_elsewhere()
-> anyhow::Result<()> {
    let (mesh, mut battles, caller) = two_battles().await?;
    let load = get_load(&caller);
    tokio::time::sleep(Duration::from_millis(500)).await;
    battles[0].app.kill();
    mesh.withdrawn("battle", battles[0].inbound).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    Ok(())
}

#[tokio::test]
async fn an_instance_killed_whole_costs_at_most_what_was_in_flight() -> anyhow::Result<()> {
    let (_mesh, mut battles, caller) = two_battles().await?;
    let (safe, unsafe_) = (get_load(&caller), post_load(&caller));
    tokio::time::sleep(Duration::from_millis(500)).await;
    battles[0].sidecar.kill();
    battles[0].app.kill();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let (safe, unsafe_) = (safe.stop().await, unsafe_.stop().await);
    assert_eq!(
        safe.failed(),
        0,
        "safe requests are tried elsewhere: {:?}",
        safe.failures
    );
    assert!(
        unsafe_.failed() <= CONNECTIONS as u64,
        "{:?}",
        unsafe_.failures
    );
    Ok(())
}

#[tokio::test]
async fn a_drained_sidecar_costs_no_request() -> anyhow::Result<()> {
    let (mesh, mut battles, caller) = two_battles().await?;
    let (safe, unsafe_) = (get_load(&caller), post_load(&caller));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let status = battles[0]
        .sidecar
        .terminate(Duration::from_secs(15))
        .await?;
    assert!(status.success(), "{status}");
    mesh.withdrawn("battle", battles[0].inbound).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (safe, unsafe_) = (safe.stop().await, unsafe_.stop().await);
    assert_eq!(
        (safe.failed(), unsafe_.failed()),
        (0, 0),
        "{:?} {:?}",
        safe.failures,
        unsafe_.failures
    );
    Ok(())
}

#[tokio::test]
async fn a_sidecar_keeps_serving_while_the_control_plane_is_gone() -> anyhow::Result<()> {
    let (mut mesh, _battles, caller) = two_battles().await?;
    mesh.control.kill();
    let load = get_load(&caller);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert_eq!(report.answered_by.len(), 2, "{:?}", report.answered_by);
    Ok(())
}

#[tokio::test]
async fn a_lost_data_directory_costs_no_request_and_everyone_is_registered_again()
-> anyhow::Result<()> {
    let (mut mesh, _battles, caller) = two_battles().await?;
    let load = get_load(&caller);
    mesh.control.kill();
    std::fs::remove_dir_all(mesh.data())?;
    mesh.restart_control().await?;
    let client = mesh.client();
    eventually("all to be registered again", READY_MAX, async || {
        let found = client.instances(None, None).await.ok()?;
        let is_live = found.items.iter().all(|i| i.state == "live");
        (found.items.len() == 3 && is_live).then_some(())
    })
    .await?;
    // What the new store doesn't know it can't have deleted: the caller goes on by what it has, and that is said.
    eventually("the loss to be told", READY_MAX, async || {
        let status = client.status(None).await.ok()?;
        assert!(status.held.is_empty(), "{:?}", status.held);
        let mut refused = status.refused.iter();
        let is_told = |r: &phalanx_client::api::Refusal| {
            r.node.contains("/gateway/") && r.message.contains("restore a backup")
        };
        refused.any(is_told).then_some(())
    })
    .await?;
    assert_eq!(
        call(caller.outbound, &Call::get("battle", "/"))
            .await?
            .status,
        200
    );
    // Who is new gets what there is.
    let late = mesh.instance("late", "v1", "late").await?;
    eventually("what there is not", READY_MAX, async || {
        let answer = call(late.outbound, &Call::get("battle:80", "/"))
            .await
            .ok()?;
        assert_ne!(answer.status, 200);
        (answer.status == 404).then_some(())
    })
    .await?;
    // Told again what is wanted, it is the truth.
    mesh.apply(BATTLE).await?;
    eventually("everybody to have it", READY_MAX, async || {
        let status = client.status(None).await.ok()?;
        (status.refused.is_empty() && status.proxies == 4).then_some(())
    })
    .await?;
    eventually("the way for who is new", READY_MAX, async || {
        let answer = call(late.outbound, &Call::get("battle", "/")).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert_eq!(report.answered_by.len(), 2, "{:?}", report.answered_by);
    Ok(())
}

#[tokio::test]
async fn a_sidecar_that_stood_still_is_let_go_and_comes_back_by_itself() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let mut battles = Vec::new();
    for name in ["one", "two", "three"] {
        battles.push(
            mesh.instance_with("battle", "v1", name, &["--ttl", "1s"])
                .await?,
        );
    }
    battles[0].sidecar.pause()?;
    mesh.withdrawn("battle", battles[0].inbound).await?;
    battles[0].sidecar.resume()?;
    mesh.registered("battle", battles[0].inbound).await?;
    let found = mesh.client().instances(Some("battle"), None).await?;
    assert_eq!(found.items.len(), 3);
    Ok(())
}
