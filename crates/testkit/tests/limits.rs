//! Rate limits, faults and deadlines, end to end: our sidecar and a stock Envoy under the same policy, sidecars that share a
//! limit, a control plane that goes, and a real Redis.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use phalanx_testkit::envoy::{self, Envoy, Protocol};
use phalanx_testkit::http::{Answer, Call, Connection, call};
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};
use phalanx_testkit::process::Process;
use phalanx_testkit::{address, eventually};

fn policy(targets: &str, rest: &str) -> String {
    format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: p}}\nspec:\n  targetRefs: {targets}\n{rest}"
    )
}

const BATTLE: &str = "[{kind: Service, name: battle}]";

/// Answers to `count` calls, one after the other over one connection.
async fn calls(at: SocketAddr, call: &Call, count: usize) -> anyhow::Result<Vec<Answer>> {
    let mut connection = Connection::open(at, call.http2).await?;
    let mut answers = Vec::with_capacity(count);
    for _ in 0..count {
        answers.push(connection.send(call).await?);
    }
    Ok(answers)
}

fn with_status(answers: &[Answer], status: u16) -> usize {
    answers.iter().filter(|a| a.status == status).count()
}

/// A stock Envoy in front of an application of its own, as the sidecar of `lobby`; where others call it.
async fn lobby(mesh: &mut Mesh) -> anyhow::Result<(Envoy, Process, SocketAddr)> {
    let ip = address::fresh();
    let app = SocketAddr::new(ip, 8080);
    let echo = mesh.echo(app, "lobby")?;
    let xds = mesh.xds;
    let inbound = SocketAddr::new(ip, 15006);
    let text = |own| {
        envoy::bootstrap("lobby", own, xds, Protocol::Delta).replacen(
            "namespace: default,",
            &format!("namespace: default, inbound: \"{inbound}\", app: \"{app}\","),
            1,
        )
    };
    let envoy = Envoy::start_from(mesh, text).await?;
    eventually("envoy's inbound listener", READY_MAX, async || {
        let answer = call(inbound, &Call::get("lobby", "/")).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    Ok((envoy, echo, inbound))
}

#[tokio::test]
async fn our_sidecar_and_envoy_limit_and_injure_alike() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let battle = mesh.instance("battle", "v1", "battle").await?;
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: lobby}\nspec:\n  selector: {app: lobby}\n  ports: [{name: http, port: 80, appProtocol: http}]\n").await?;
    let (_envoy, _echo, lobby) = lobby(&mut mesh).await?;
    let both = "[{kind: Service, name: battle}, {kind: Service, name: lobby}]";
    mesh.apply(&policy(
        both,
        "  rateLimit: {local: {requests: 100, per: 1h, burst: 400}}
  faults:
  - {delay: 300ms, percent: 100, when: {headers: [{name: x-slow, value: \"1\"}]}}
  - {abort: {status: 503}, percent: 50, when: {headers: [{name: x-chaos, value: \"1\"}]}}
  - {abort: {grpc: 7}, percent: 100, when: {headers: [{name: x-deny, value: \"1\"}]}}
",
    ))
    .await?;
    for (name, at) in [("battle", battle.inbound), ("lobby", lobby)] {
        let get = || Call::get(name, "/");
        let chaos = calls(at, &get().header("x-chaos", "1"), 200).await?;
        let aborted = with_status(&chaos, 503);
        assert!((60..=140).contains(&aborted), "{name}: {aborted}");
        let begun = Instant::now();
        assert_eq!(call(at, &get().header("x-slow", "1")).await?.status, 200);
        assert!(begun.elapsed() >= Duration::from_millis(290), "{name}");
        let denied = Call::grpc(name, "/arena.Battle/Join").header("x-deny", "1");
        assert_eq!(call(at, &denied).await?.grpc_status(), Some("7"), "{name}");
        // The code is gRPC's; other requests are not meant.
        assert_eq!(call(at, &get().header("x-deny", "1")).await?.status, 200);
        // 203 of 400 are gone by now, and the wait for the listener was before the policy.
        let rest = calls(at, &get(), 300).await?;
        let passed = with_status(&rest, 200);
        assert_eq!((passed, with_status(&rest, 429)), (197, 103), "{name}");
        let limited = Call::grpc(name, "/arena.Battle/Join");
        assert_eq!(call(at, &limited).await?.grpc_status(), Some("8"), "{name}");
    }
    let refused = call(battle.inbound, &Call::get("battle", "/")).await?;
    assert_eq!(refused.header("x-phalanx-reason"), "rate_limited");
    let metrics = call(battle.admin, &Call::get("localhost", "/metrics")).await?;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let counted =
        "phalanx_rate_limited_total{policy=\"BackendPolicy/default/p\",scope=\"local\"} 105";
    assert!(metrics.contains(counted), "{metrics}");
    Ok(())
}

async fn two_battles(mesh: &mut Mesh) -> anyhow::Result<[Instance; 2]> {
    Ok([
        mesh.instance("battle", "v1", "one").await?,
        mesh.instance("battle", "v1", "two").await?,
    ])
}

/// How many of 30 calls to each pass.
async fn passed(battles: &[Instance], player: &str) -> anyhow::Result<usize> {
    let get = Call::get("battle", "/").header("x-player", player);
    let mut passed = 0;
    for battle in battles {
        passed += with_status(&calls(battle.inbound, &get, 30).await?, 200);
    }
    Ok(passed)
}

/// Calls until nothing passes any more; how much did.
async fn exhausted(battles: &[Instance], player: &str) -> anyhow::Result<usize> {
    let (mut total, mut quiet) = (0, 0);
    let until = Instant::now() + READY_MAX;
    while quiet < 6 {
        anyhow::ensure!(Instant::now() < until, "{total} passed, and there are more");
        let now = passed(battles, player).await?;
        quiet = if now == 0 { quiet + 1 } else { 0 };
        total += now;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(total)
}

const GLOBAL: &str = "  rateLimit: {global: {requests: 100, per: 24h, by: {header: x-player}}}\n";

#[tokio::test]
async fn sidecars_share_a_limit_by_key_and_keep_it_alone_while_nobody_answers() -> anyhow::Result<()>
{
    let mut mesh = Mesh::start().await?;
    let battles = two_battles(&mut mesh).await?;
    mesh.apply(&policy(BATTLE, GLOBAL)).await?;
    // 100, and at most what each lets through before it has asked: a tenth.
    let total = exhausted(&battles, "a").await?;
    assert!((95..=120).contains(&total), "{total}");
    assert!(passed(&battles, "b").await? > 0, "another key has its own");
    // Killed: what was refused stays refused, a new key has the whole limit at each sidecar.
    mesh.control.kill();
    assert_eq!(passed(&battles, "a").await?, 0);
    let total = exhausted(&battles, "c").await?;
    assert!((200..=220).contains(&total), "{total}");
    // Back: at most one burst more, since its buckets were in memory.
    mesh.restart_control().await?;
    let client = mesh.client();
    eventually("all proxies to be back", READY_MAX, async || {
        let status = client.status(None).await.ok()?;
        (status.proxies == 2 && status.complete()).then_some(())
    })
    .await?;
    eventually("tokens to be leased again", READY_MAX, async || {
        let metrics = call(battles[0].admin, &Call::get("localhost", "/metrics"))
            .await
            .ok()?;
        passed(&battles[..1], "d").await.ok()?;
        let alone = "phalanx_limit_alone{policy=\"BackendPolicy/default/p\"} 0";
        String::from_utf8_lossy(&metrics.body)
            .contains(alone)
            .then_some(())
    })
    .await?;
    let total = exhausted(&battles, "c").await?;
    assert!(total <= 120, "{total}");
    Ok(())
}

#[tokio::test]
async fn closed_limit_lets_nothing_in_while_nobody_answers() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let battles = two_battles(&mut mesh).await?;
    let closed = "  rateLimit: {global: {requests: 100, per: 24h, onFailure: Deny}}\n";
    mesh.apply(&policy(BATTLE, closed)).await?;
    assert!(passed(&battles, "").await? > 0);
    mesh.control.kill();
    eventually("everything to be refused", READY_MAX, async || {
        let passed = passed(&battles, "").await.ok()?;
        (passed == 0).then_some(())
    })
    .await
}

#[tokio::test]
async fn buckets_in_a_redis_outlive_the_control_plane_and_are_envoys_too() -> anyhow::Result<()> {
    let ip = address::fresh();
    let port = address::port()?;
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", &ip.to_string(), "--port", &port.to_string()])
        .args([
            "--save",
            "",
            "--appendonly",
            "no",
            "--requirepass",
            "secret",
        ])
        .arg("--dir")
        .arg(folder.path());
    let _redis = Process::spawn(command, &folder.path().join("redis.log"))?;
    let store = format!("redis://:secret@{ip}:{port}/1");
    let mut mesh = Mesh::start_with(&["--rate-limit-store", &store]).await?;
    let battles = two_battles(&mut mesh).await?;
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: lobby}\nspec:\n  selector: {app: lobby}\n  ports: [{name: http, port: 80, appProtocol: http}]\n").await?;
    let (_envoy, _echo, lobby) = lobby(&mut mesh).await?;
    let both = "[{kind: Service, name: battle}, {kind: Service, name: lobby}]";
    mesh.apply(&policy(both, GLOBAL)).await?;
    let total = exhausted(&battles, "a").await?;
    assert!((95..=120).contains(&total), "{total}");
    let get = Call::get("lobby", "/").header("x-player", "a");
    assert_eq!(with_status(&calls(lobby, &get, 20).await?, 429), 20);
    let get = Call::get("lobby", "/").header("x-player", "b");
    assert_eq!(with_status(&calls(lobby, &get, 20).await?, 200), 20);
    mesh.restart_control().await?;
    let client = mesh.client();
    eventually("all proxies to be back", READY_MAX, async || {
        let status = client.status(None).await.ok()?;
        (status.proxies == 3 && status.complete()).then_some(())
    })
    .await?;
    let total = exhausted(&battles, "a").await?;
    assert!(total <= 20, "not a burst more: {total}");
    Ok(())
}

/// An application that is slow, and more calls than its sidecar thinks it bears: at a limit of 10, 7 may be under way for
/// what is of low priority, and 10 for what is of high one.
#[tokio::test]
async fn overloaded_sidecar_sheds_what_is_of_low_priority_before_what_is_of_high()
-> anyhow::Result<()> {
    const FLOOD: usize = 9;
    let mut mesh = Mesh::start().await?;
    let battle = mesh.instance("battle", "v1", "battle").await?;
    mesh.apply(&policy(
        BATTLE,
        "  overload:
    minInFlight: 10
    maxInFlight: 10
    queueDelay: 1s
    priorities:
    - {priority: Low, when: {headers: [{name: x-job, value: sweep}]}}
    - {priority: High, when: {headers: [{name: x-job, value: fight}]}}
",
    ))
    .await?;
    let of = |job: &str, path: &str| Call::get("battle", path).header("x-job", job);
    // Nine fights that the application takes its time for: under way together, none is shed.
    let flood = || {
        let fight = of("fight", "/slow/1500");
        let at = battle.inbound;
        let calls = (0..FLOOD).map(|_| {
            let fight = fight.clone();
            tokio::spawn(async move { call(at, &fight).await })
        });
        calls.collect::<Vec<_>>()
    };
    let flooded = async |job: &str| -> anyhow::Result<(Vec<Answer>, bool)> {
        let slow = flood();
        let mut shed = false;
        while !shed && !slow.iter().all(|one| one.is_finished()) {
            let answer = call(battle.inbound, &of(job, "/")).await?;
            shed = answer.status == 503 && answer.header("x-phalanx-reason") == "overload";
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut answers = Vec::new();
        for one in slow {
            answers.push(one.await??);
        }
        Ok((answers, shed))
    };
    eventually("what is low to be shed", READY_MAX, async || {
        let (fights, shed) = flooded("sweep").await.ok()?;
        assert_eq!(with_status(&fights, 200), FLOOD, "none of them is shed");
        shed.then_some(())
    })
    .await?;
    let (fights, shed) = flooded("fight").await?;
    assert_eq!((with_status(&fights, 200), shed), (FLOOD, false));
    let metrics = call(battle.admin, &Call::get("localhost", "/metrics")).await?;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let shed = |priority: &str| {
        let of = format!(
            "phalanx_shed_total{{policy=\"BackendPolicy/default/p\",priority=\"{priority}\"}} "
        );
        let line = metrics.lines().find_map(|line| line.strip_prefix(&of));
        line.and_then(|count| count.parse::<u64>().ok())
            .unwrap_or(0)
    };
    assert!(shed("Low") > 0, "{metrics}");
    assert_eq!(shed("High"), 0);
    // Over, everything is let in again.
    eventually("what is low to be let in", READY_MAX, async || {
        let answer = call(battle.inbound, &of("sweep", "/")).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
}

#[tokio::test]
async fn deadline_of_grpc_is_shrunk_and_what_has_passed_is_not_sent() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let battle = mesh.instance("battle", "v1", "battle").await?;
    let caller = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply(&policy(
        BATTLE,
        "  faults: [{delay: 5s, percent: 100, when: {headers: [{name: x-slow, value: \"1\"}]}}]\n",
    ))
    .await?;
    eventually("battle to be known", READY_MAX, async || {
        let answer = call(caller.outbound, &Call::get("battle:8080", "/"))
            .await
            .ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    let join = || Call::grpc("battle:8080", "/arena.Battle/Join");
    let slow = join().header("grpc-timeout", "400m").header("x-slow", "1");
    let begun = Instant::now();
    let answer = call(caller.outbound, &slow).await?;
    assert_eq!(answer.grpc_status(), Some("4"));
    assert!(begun.elapsed() < Duration::from_secs(4));
    let answer = call(caller.outbound, &join().header("grpc-timeout", "0m")).await?;
    assert_eq!(answer.grpc_status(), Some("4"));
    assert_eq!(answer.header("x-phalanx-reason"), "timeout");
    drop(battle);
    Ok(())
}
