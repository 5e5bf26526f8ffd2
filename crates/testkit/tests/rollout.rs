//! Rollouts of `battle` over real processes: matches stay on their version, nobody's request fails, a control plane that is
//! killed on the way goes on, and a version that fails is taken back.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use phalanx_client::api::{RolloutOrder, RolloutView};
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, Connection};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Instance, Mesh};
use phalanx_testkit::process::executable;

/// A rollout has to gather requests, on a machine that may be slow.
const MOVED_MAX: Duration = Duration::from_secs(120);
const MATCHES: usize = 200;

const DOCUMENTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: battle}
spec: {selector: {app: battle}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: battle-v1}
spec: {selector: {app: battle, version: v1}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: battle-v2}
spec: {selector: {app: battle, version: v2}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: battle}
spec:
  parentRefs: [{kind: Service, name: battle}]
  rules:
  - sessionPersistence: {type: Header, sessionName: x-game-session}
    backendRefs:
    - {name: battle-v1, port: 80, weight: 100}
    - {name: battle-v2, port: 80, weight: 0}
";

fn rollout(steps: &str) -> String {
    format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: Rollout\nmetadata: {{name: battle}}\nspec:\n  targetRef: {{kind: HTTPRoute, name: battle}}\n  stable: battle-v1\n  canary: battle-v2\n  boundary: match\n  steps: {steps}\n  analysis: {{interval: 1s, successRate: {{min: 99.5}}, minRequests: 20}}\n"
    )
}

/// 5 of 100 requests that reach the new version fail there.
const FAULT: &str = "
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: broken}
spec:
  targetRefs: [{kind: Service, name: battle-v2}]
  faults: [{abort: {status: 500}, percent: 5}]
";

struct Arena {
    mesh: Mesh,
    caller: Instance,
    _battles: Vec<Instance>,
}

async fn arena() -> anyhow::Result<Arena> {
    let mut mesh = Mesh::start().await?;
    let mut battles = Vec::new();
    for version in ["v1", "v2"] {
        battles.push(mesh.instance("battle", version, version).await?);
    }
    let caller = mesh.instance("match", "v1", "match").await?;
    mesh.apply(DOCUMENTS).await?;
    let arena = Arena {
        mesh,
        caller,
        _battles: battles,
    };
    let called = async || {
        let mut connection = Connection::open(arena.caller.outbound, false).await.ok()?;
        let by = Match::default().turn(&mut connection).await.ok()?;
        (by == "v1").then_some(())
    };
    eventually("battle to be called", MOVED_MAX, called).await?;
    Ok(arena)
}

impl Arena {
    async fn view(&self) -> anyhow::Result<RolloutView> {
        Ok(self.mesh.client().rollout("default", "battle").await?)
    }

    /// Polls through a control plane that is away.
    async fn until(
        &self,
        what: &str,
        done: impl Fn(&RolloutView) -> bool,
    ) -> anyhow::Result<RolloutView> {
        let waited = eventually(what, MOVED_MAX, async || {
            self.view().await.ok().filter(|view| done(view))
        });
        match waited.await {
            Ok(view) => Ok(view),
            Err(error) => Err(error.context(format!("{:#?}", self.view().await))),
        }
    }

    async fn order(&self, command: &str) -> anyhow::Result<RolloutView> {
        let order = RolloutOrder {
            command: command.to_owned(),
            author: "test".to_owned(),
            ..RolloutOrder::default()
        };
        let client = self.mesh.client();
        Ok(client.order_rollout("default", "battle", &order).await?)
    }

    fn phalanx(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(executable("phalanx")?);
        command
            .env("PHALANX_ADMIN", self.mesh.admin.to_string())
            .args(arguments);
        Ok(command.output()?)
    }

    /// Players who come anew again and again, so that there is something to weigh.
    fn newcomers(&self) -> Load {
        let call = Call::get("battle", "/join");
        Load::start(self.caller.outbound, &call, 4, Duration::from_millis(5))
    }

    async fn begun(&self, count: usize) -> anyhow::Result<Vec<Match>> {
        let mut connection = Connection::open(self.caller.outbound, false).await?;
        let mut matches = vec![Match::default(); count];
        for one in &mut matches {
            one.turn(&mut connection).await?;
        }
        Ok(matches)
    }

    /// Who answers those without a session, once all sidecars have what is in force.
    async fn until_newcomers(&self, version: &str) -> anyhow::Result<()> {
        let all = async || {
            let mut connection = Connection::open(self.caller.outbound, false).await.ok()?;
            for _ in 0..50 {
                let by = Match::default().turn(&mut connection).await.ok()?;
                if by != version {
                    return None;
                }
            }
            Some(())
        };
        eventually("newcomers to go there", MOVED_MAX, all).await
    }
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

/// A match that runs somewhere: its session, and who answered its turns.
#[derive(Clone, Debug, Default)]
struct Match {
    session: Option<String>,
    by: BTreeMap<String, u64>,
}

impl Match {
    /// One request of it; who answered.
    async fn turn(&mut self, connection: &mut Connection) -> anyhow::Result<String> {
        let mut call = Call::get("battle", "/turn");
        if let Some(session) = &self.session {
            call = call.header("x-game-session", session);
        }
        let answer = connection.send(&call).await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        let told = answer.header("x-game-session").to_owned();
        if !told.is_empty() {
            self.session = Some(told);
        }
        let by = answer.header("x-echo").to_owned();
        *self.by.entry(by.clone()).or_default() += 1;
        Ok(by)
    }
}

/// Runs matches until told to end; what each of them saw, and what failed.
fn play(
    at: std::net::SocketAddr,
    matches: Vec<Match>,
    over: tokio::sync::watch::Receiver<bool>,
) -> tokio::task::JoinHandle<(Vec<Match>, Vec<String>)> {
    tokio::spawn(async move {
        let (mut matches, mut failed) = (matches, Vec::new());
        let mut connection = None;
        while !*over.borrow() {
            for one in &mut matches {
                if connection.is_none() {
                    connection = Connection::open(at, false).await.ok();
                }
                let Some(open) = &mut connection else {
                    failed.push("no connection".to_owned());
                    continue;
                };
                if let Err(error) = one.turn(open).await {
                    connection = None;
                    // Nothing was asked: as every client does, over another connection.
                    if !phalanx_testkit::http::is_unsent(&error) {
                        failed.push(format!("{error:#}"));
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        (matches, failed)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matches_stay_on_their_version_and_no_request_fails_through_steps_a_kill_and_an_abort()
-> anyhow::Result<()> {
    let mut arena = arena().await?;
    let matches = arena.begun(MATCHES).await?;
    assert!(matches.iter().all(|one| one.by.contains_key("v1")));
    let (end, over) = tokio::sync::watch::channel(false);
    let playing = play(arena.caller.outbound, matches, over);
    let newcomers = arena.newcomers();
    let steps = "[{mirror: {percent: 50, compare: true, for: 1s}}, {weight: 20, for: 2s}, {pause: {}}, {weight: 60, for: 1s}]";
    arena.mesh.apply(&rollout(steps)).await?;

    // In the middle, without a word.
    arena
        .until("the first weight", |view| view.step == 2)
        .await?;
    arena.mesh.restart_control().await?;
    let paused = arena
        .until("the pause", |view| view.phase == "paused")
        .await?;
    assert_eq!((paused.step, paused.weight), (3, 20), "{paused:#?}");
    let explained = arena.phalanx(&[
        "explain",
        "GET",
        "http://battle/",
        "--proxy",
        &arena.caller.admin.to_string(),
    ])?;
    assert!(
        said(&explained).contains("battle-v2"),
        "{}",
        said(&explained)
    );

    // One that began on the new version meanwhile.
    let late = eventually("a match on the new version", MOVED_MAX, async || {
        let begun = arena.begun(20).await.ok()?;
        begun.into_iter().find(|one| one.by.contains_key("v2"))
    });
    let mut late = late.await?;

    let resumed = arena.phalanx(&["rollout", "resume", "battle"])?;
    assert!(resumed.status.success(), "{}", said(&resumed));
    let waited = arena.phalanx(&["rollout", "status", "battle", "--wait", "--timeout", "2m"])?;
    assert_eq!(waited.status.code(), Some(0), "{}", said(&waited));
    assert!(said(&waited).contains("promoted"), "{}", said(&waited));
    arena.until_newcomers("v2").await?;

    // And back: who came to the new version stays there, too.
    let aborted = arena.order("abort").await?;
    assert_eq!((aborted.phase.as_str(), aborted.weight), ("rolled-back", 0));
    arena.until_newcomers("v1").await?;
    let mut connection = Connection::open(arena.caller.outbound, false).await?;
    for _ in 0..10 {
        assert_eq!(late.turn(&mut connection).await?, "v2");
    }
    let waited = arena.phalanx(&["rollout", "status", "battle", "--wait"])?;
    assert_eq!(waited.status.code(), Some(1), "{}", said(&waited));

    let _ = end.send(true);
    let (matches, failed) = playing.await?;
    let report = newcomers.stop().await;
    let moved = matches
        .iter()
        .filter(|one| one.by.contains_key("v2"))
        .count();
    let turns: u64 = matches.iter().flat_map(|one| one.by.values()).sum();
    println!(
        "{} matches, {turns} turns, {moved} moved; {} newcomers, {} failed",
        matches.len(),
        report.sent,
        report.failed()
    );
    assert_eq!((matches.len(), moved), (MATCHES, 0));
    assert_eq!(failed, Vec::<String>::new());
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert!(report.answered_by.contains_key("v2"), "{report:?}");

    let history = arena.phalanx(&["rollout", "history", "battle", "-o", "json"])?;
    let events: serde_json::Value = serde_json::from_slice(&history.stdout)?;
    let events: Vec<&str> = events
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["event"].as_str())
        .collect();
    assert_eq!(
        events,
        [
            "started",
            "step",
            "step",
            "step",
            "paused",
            "resumed",
            "step",
            "promoted",
            "rolled-back"
        ]
    );
    let of_mesh = arena.phalanx(&["history", "-o", "json"])?;
    let of_mesh: serde_json::Value = serde_json::from_slice(&of_mesh.stdout)?;
    let told: Vec<&str> = of_mesh["entries"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["message"].as_str())
        .collect();
    for part in ["step 1: ", "promoted: "] {
        let is_told = told
            .iter()
            .any(|m| m.starts_with("rollout ") && m.contains(part));
        assert!(is_told, "{part}: {told:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_fails_is_taken_back_by_itself_and_the_documents_are_what_they_were()
-> anyhow::Result<()> {
    let arena = arena().await?;
    let newcomers = arena.newcomers();
    arena
        .mesh
        .apply(&rollout("[{weight: 50, for: 1h}]"))
        .await?;
    let good = |view: &RolloutView| {
        view.last
            .as_ref()
            .is_some_and(|last| last.good == Some(true))
    };
    arena.until("a good measurement", good).await?;
    arena.mesh.apply(FAULT).await?;
    let injected = Instant::now();
    let back = arena
        .until("a rollback", |view| view.phase == "rolled-back")
        .await?;
    println!("taken back after {:?}: {}", injected.elapsed(), back.reason);
    assert!(back.reason.contains("requests succeeded"), "{back:#?}");
    assert_eq!(back.weight, 0);
    arena.until_newcomers("v1").await?;
    let metrics = arena.mesh.client().text("/metrics").await?.body;
    for line in [
        "phalanx_rollout_phase{namespace=\"default\",rollout=\"battle\",phase=\"rolled-back\"} 1",
        "phalanx_rollout_ended_total{phase=\"rolled-back\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    newcomers.stop().await;

    // Two for one route are refused, and one of sessions that are not there.
    let second =
        rollout("[{weight: 1, for: 1s}]").replace("{name: battle}\nspec", "{name: second}\nspec");
    let refused = arena.mesh.apply(&second).await.unwrap_err().to_string();
    assert!(refused.contains("nothing was changed"), "{refused}");

    // Without it the documents count again, and nothing is left of it.
    let deleted = arena.phalanx(&["delete", "Rollout", "battle"])?;
    assert!(deleted.status.success(), "{}", said(&deleted));
    let gone = arena.phalanx(&["rollout", "list", "-o", "json"])?;
    let list: serde_json::Value = serde_json::from_slice(&gone.stdout)?;
    assert_eq!(list["rollouts"].as_array().map(Vec::len), Some(0));
    arena.until_newcomers("v1").await
}
