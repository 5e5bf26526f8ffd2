//! A change for few proxies first: what the command line shows, who has it meanwhile, and how it ends.

use std::process::{Command, Output, Stdio};

use phalanx_client::api::{CanaryStatus, History};
use phalanx_testkit::etcd::Etcd;
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};
use phalanx_testkit::process::executable;

fn command(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(executable("phalanx")?);
    command
        .env("PHALANX_ADMIN", mesh.admin.to_string())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

fn phalanx(mesh: &Mesh, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
    use std::io::Write;
    let mut child = command(mesh, arguments)?.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    Ok(child.wait_with_output()?)
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

fn ends_of(history: &History) -> usize {
    let entries = history.entries.iter();
    let promoted = entries.filter(|e| e.canary.as_deref() == Some("promoted"));
    promoted.count()
}

const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec:\n  selector: {app: shop}\n  ports: [{port: 80, appProtocol: http}]\n---\napiVersion: v1\nkind: Service\nmetadata: {name: next}\nspec:\n  selector: {app: next}\n  ports: [{port: 80, appProtocol: http}]\n";

/// Where the traffic of `shop` goes.
fn route(backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop}}\nspec:\n  parentRefs: [{{kind: Service, name: shop}}]\n  rules:\n  - backendRefs: [{{name: {backend}, port: 80}}]\n"
    )
}

struct Town {
    mesh: Mesh,
    /// Callers of `shop`.
    callers: Vec<Instance>,
    _backends: Vec<Instance>,
}

async fn town() -> anyhow::Result<Town> {
    let mut mesh = Mesh::start().await?;
    let mut backends = Vec::new();
    for service in ["shop", "next"] {
        backends.push(mesh.instance(service, "v1", service).await?);
    }
    let mut callers = Vec::new();
    for _ in 0..2 {
        callers.push(mesh.instance("gate", "v1", "gate").await?);
    }
    mesh.apply(&format!("{SERVICES}---\n{}", route("shop")))
        .await?;
    let town = Town {
        mesh,
        callers,
        _backends: backends,
    };
    // Who has called nobody asks for nothing, and no change concerns it.
    let called = async || (town.answers().await == ["shop", "shop"]).then_some(());
    eventually("the callers to call", READY_MAX, called).await?;
    Ok(town)
}

impl Town {
    /// What each caller gets of `shop`: the name of who answers, or the status.
    async fn answers(&self) -> Vec<String> {
        let mut answers = Vec::new();
        for caller in &self.callers {
            let answer = call(caller.outbound, &Call::get("shop", "/")).await;
            answers.push(match answer {
                Ok(answer) if answer.status == 200 => answer.header("x-echo").to_owned(),
                Ok(answer) => answer.status.to_string(),
                Err(error) => error.to_string(),
            });
        }
        answers
    }

    async fn status(&self) -> anyhow::Result<CanaryStatus> {
        Ok(self.mesh.client().canary().await?)
    }

    /// Callers that are among the first.
    async fn until_applied(&self) -> anyhow::Result<usize> {
        let all_have = async || {
            let current = self.status().await.ok()?.current?;
            (current.applied == current.nodes.len()).then_some(current)
        };
        let current = eventually("the first to have it", READY_MAX, all_have).await?;
        let of_callers = |node: &&phalanx_client::api::CanaryNode| node.node.contains("/gate/");
        Ok(current.nodes.iter().filter(of_callers).count())
    }

    async fn until_ended(&self) -> anyhow::Result<phalanx_client::api::CanaryEnd> {
        eventually("the canary to be decided", READY_MAX, async || {
            let status = self.status().await.ok()?;
            status.last.filter(|_| status.current.is_none())
        })
        .await
    }
}

#[tokio::test]
async fn few_have_it_first_then_all_and_the_command_line_says_so() -> anyhow::Result<()> {
    let town = town().await?;
    // Who calls what is known after a report, so one of the callers comes first.
    let known = async || {
        town.answers().await;
        let edges = town.mesh.client().edges(None).await.ok()?;
        edges
            .totals
            .iter()
            .any(|e| e.source == "gate")
            .then_some(())
    };
    eventually("a report", READY_MAX, known).await?;
    let dry = phalanx(
        &town.mesh,
        &["apply", "-f", "-", "--dry-run"],
        &route("next"),
    )?;
    assert!(
        said(&dry).contains("shop.default.svc.mesh: backends shop:80=1 → next:80=1 for 2 proxies"),
        "{}",
        said(&dry)
    );

    let staged = phalanx(
        &town.mesh,
        &[
            "apply", "-f", "-", "--canary", "1", "--watch", "1m", "-m", "try next",
        ],
        &route("next"),
    )?;
    assert_eq!(staged.status.code(), Some(0), "{}", said(&staged));
    assert_eq!(town.until_applied().await?, 1, "a caller comes first");
    let mut answers = town.answers().await;
    answers.sort();
    assert_eq!(answers, ["next", "shop"], "one of two has it");
    let status = phalanx(&town.mesh, &["status"], "")?;
    assert!(
        said(&status).contains("on 1 of 1 proxies first (2 concerned), watched for"),
        "{}",
        said(&status)
    );
    let another = phalanx(
        &town.mesh,
        &["apply", "-f", "-", "--canary", "1", "-o", "json"],
        &route("next"),
    )?;
    let error: serde_json::Value = serde_json::from_slice(&another.stderr)?;
    assert_eq!(another.status.code(), Some(1));
    assert!(
        error["error"]
            .as_str()
            .is_some_and(|e| e.contains("on trial at 1 of 2 proxies"))
            && error["hint"].is_string(),
        "{error}"
    );

    let promoted = phalanx(&town.mesh, &["canary", "promote", "-m", "looks good"], "")?;
    assert_eq!(promoted.status.code(), Some(0), "{}", said(&promoted));
    let waited = phalanx(&town.mesh, &["status", "--wait"], "")?;
    assert_eq!(waited.status.code(), Some(0), "{}", said(&waited));
    assert_eq!(town.answers().await, ["next", "next"]);
    let history = said(&phalanx(&town.mesh, &["history"], "")?);
    assert!(
        history.contains("promoted by hand: looks good")
            && history.contains("canary of ~HTTPRoute/default/shop"),
        "{history}"
    );
    Ok(())
}

#[tokio::test]
async fn what_is_borne_is_promoted_by_itself() -> anyhow::Result<()> {
    let town = town().await?;
    let applied = phalanx(
        &town.mesh,
        &[
            "apply", "-f", "-", "--canary", "100%", "--watch", "2s", "--wait",
        ],
        &route("next"),
    )?;
    assert_eq!(applied.status.code(), Some(0), "{}", said(&applied));
    assert!(
        said(&applied).contains("promoted: 2 proxies of 2 had it for 2s"),
        "{}",
        said(&applied)
    );
    assert_eq!(town.answers().await, ["next", "next"]);
    Ok(())
}

#[tokio::test]
async fn requests_that_fail_take_it_back_by_themselves() -> anyhow::Result<()> {
    let town = town().await?;
    let arguments = [
        "apply", "-f", "-", "--canary", "100%", "--watch", "1m", "--wait",
    ];
    let mut child = command(&town.mesh, &arguments)?.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        use std::io::Write;
        stdin.write_all(route("nowhere").as_bytes())?;
    }
    let applied = std::thread::spawn(move || child.wait_with_output());
    let failing = async || {
        let answers = town.answers().await;
        let status = town.status().await.ok()?;
        let has_ended = status.current.is_none() && status.last.is_some();
        assert!(
            has_ended || answers.iter().all(|a| a == "shop" || a == "500"),
            "{answers:?}"
        );
        has_ended.then_some(())
    };
    eventually("the canary to go back", READY_MAX, failing).await?;
    let applied = applied.join().map_err(|_| anyhow::anyhow!("no output"))??;
    assert_eq!(applied.status.code(), Some(1), "{}", said(&applied));
    assert!(
        said(&applied).contains("the change went back"),
        "{}",
        said(&applied)
    );
    let back = async || (town.answers().await == ["shop", "shop"]).then_some(());
    eventually("all to have the old one", READY_MAX, back).await?;
    let history = town.mesh.client().history(Some(1)).await?;
    assert_eq!(history.entries[0].author, "phalanx");
    assert!(
        history.entries[0].message.contains("failed at its proxies"),
        "{history:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_control_plane_killed_in_the_middle_goes_on_where_it_was() -> anyhow::Result<()> {
    let mut town = town().await?;
    let staged = phalanx(
        &town.mesh,
        &["apply", "-f", "-", "--canary", "50%", "--watch", "5s"],
        &route("next"),
    )?;
    assert_eq!(staged.status.code(), Some(0), "{}", said(&staged));
    town.until_applied().await?;
    town.mesh.restart_control().await?;
    assert!(
        town.status().await?.current.is_some(),
        "it is under way still"
    );
    let before: Vec<_> = town
        .mesh
        .client()
        .document("HTTPRoute", "default", "shop")
        .await
        .into_iter()
        .collect();
    let backend = &before[0].document["spec"]["rules"][0]["backendRefs"][0]["name"];
    assert_eq!(backend, "shop", "the document is as it was");
    let end = town.until_ended().await?;
    assert_eq!(end.stage, "promoted", "{end:?}");
    let all = async || (town.answers().await == ["next", "next"]).then_some(());
    eventually("all to have it", READY_MAX, all).await?;
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_vanishes_takes_it_back() -> anyhow::Result<()> {
    let mut town = town().await?;
    let staged = phalanx(
        &town.mesh,
        &["apply", "-f", "-", "--canary", "100%", "--watch", "5m"],
        &route("next"),
    )?;
    assert_eq!(staged.status.code(), Some(0), "{}", said(&staged));
    town.until_applied().await?;
    town.callers[0].sidecar.kill();
    let end = town.until_ended().await?;
    assert!(
        end.stage == "back" && end.reason.contains("went away"),
        "{end:?}"
    );
    Ok(())
}

#[tokio::test]
async fn it_can_be_aborted_by_hand() -> anyhow::Result<()> {
    let town = town().await?;
    phalanx(
        &town.mesh,
        &["apply", "-f", "-", "--canary", "2", "--watch", "5m"],
        &route("next"),
    )?;
    town.until_applied().await?;
    let aborted = phalanx(&town.mesh, &["status", "--abort"], "")?;
    assert!(said(&aborted).contains("last canary"), "{}", said(&aborted));
    let back = async || (town.answers().await == ["shop", "shop"]).then_some(());
    eventually("all to have the old one", READY_MAX, back).await?;
    let again = phalanx(&town.mesh, &["canary", "abort"], "")?;
    assert_eq!(again.status.code(), Some(1), "{}", said(&again));
    Ok(())
}

#[tokio::test]
async fn two_control_planes_over_one_store_speak_for_all_proxies_and_decide_once()
-> anyhow::Result<()> {
    let etcd = Etcd::start(&[]).await?;
    let store = format!("etcd://{}", etcd.endpoint());
    let mut first = Mesh::start_with(&["--store", &store, "--plane", "one"]).await?;
    let mut second = Mesh::start_with(&["--store", &store, "--plane", "two"]).await?;
    let mut instances = Vec::new();
    for service in ["shop", "next"] {
        instances.push(first.instance(service, "v1", service).await?);
    }
    instances.push(second.instance("gate", "v1", "gate").await?);
    let far = instances[2].outbound;
    first
        .apply(&format!("{SERVICES}---\n{}", route("shop")))
        .await?;
    for mesh in [&first, &second] {
        let all = async || {
            let status = mesh.client().status(None).await.ok()?;
            ((status.proxies, status.applied) == (3, 3)).then_some(status)
        };
        let status = eventually("all to have it", READY_MAX, all).await?;
        let shares: Vec<_> = status.planes.iter().map(|p| p.proxies).collect();
        assert_eq!(shares.iter().sum::<usize>(), 3, "{:?}", status.planes);
    }
    // It asks the second for what the first is asked to change.
    eventually("an answer of the shop", READY_MAX, async || {
        let answer = call(far, &Call::get("shop", "/")).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    let dry = phalanx(&first, &["apply", "-f", "-", "--dry-run"], &route("next"))?;
    assert!(
        said(&dry).contains("effect on 1 of 3 proxies"),
        "{}",
        said(&dry)
    );

    let arguments = [
        "apply", "-f", "-", "--canary", "100%", "--watch", "2s", "--wait",
    ];
    let applied = phalanx(&first, &arguments, &route("next"))?;
    assert_eq!(applied.status.code(), Some(0), "{}", said(&applied));
    assert!(
        said(&applied).contains("1 proxy of 1 had it"),
        "{}",
        said(&applied)
    );
    let answer = call(far, &Call::get("shop", "/")).await?;
    assert_eq!((answer.status, answer.header("x-echo")), (200, "next"));
    // The other follows the store, a moment behind.
    let history = eventually("the end in the other's history", READY_MAX, async || {
        let history = second.client().history(None).await.ok()?;
        (ends_of(&history) > 0).then_some(history)
    });
    let history = history.await?;
    assert_eq!(ends_of(&history), 1, "{history:?}");

    second.control.pause()?;
    let status = first.client().status(None).await?;
    let unasked: Vec<_> = status.planes.iter().filter(|p| p.error.is_some()).collect();
    assert!(
        unasked.len() == 1 && unasked[0].name == "two" && !status.complete(),
        "{status:?}"
    );
    second.control.resume()?;
    Ok(())
}
