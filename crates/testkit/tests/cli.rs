//! The command line as scripts use it: exit codes, places of mistakes, nothing changed by what is refused.

use std::process::{Command, Output, Stdio};

use phalanx_testkit::mesh::Mesh;
use phalanx_testkit::process::executable;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec:\n  selector: {app: shop}\n  ports: [{port: 80, appProtocol: http}]\n";

/// An unknown field, a port out of range, a path without slash, a weight that is no number, an unknown load balancer.
const FIVE_MISTAKES: &str = r#"apiVersion: v1
kind: Service
metadata: {name: shop}
spec:
  selectr: {app: shop}
  ports: [{port: 99999}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{kind: Service, name: shop}]
  rules:
  - matches: [{path: {type: PathPrefix, value: cart}}]
    backendRefs: [{name: shop, port: 80, weight: many}]
---
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: shop}
spec:
  targetRefs: [{kind: Service, name: shop}]
  loadBalancer: {type: P3C}
"#;

fn phalanx(mesh: &Mesh, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
    use std::io::Write;
    let mut command = Command::new(executable("phalanx")?);
    command
        .env("PHALANX_ADMIN", mesh.admin.to_string())
        .args(arguments);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    Ok(child.wait_with_output()?)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn five_mistakes_are_all_told_with_their_places_and_nothing_changes() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    let before = mesh.client().status(None).await?.config_revision;
    let output = phalanx(&mesh, &["apply", "-f", "-"], FIVE_MISTAKES)?;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for place in [
        "stdin:5:3: spec.selectr",
        "stdin:6:18: spec.ports[0].port",
        "stdin:14:48: spec.rules[0].matches[0].path.value",
        "stdin:15:50: spec.rules[0].backendRefs[0].weight",
        "stdin:22:24: spec.loadBalancer.type",
    ] {
        assert!(said.contains(place), "{place} is missing in:\n{said}");
    }
    assert!(
        said.contains("selector"),
        "the nearest known key is named:\n{said}"
    );
    assert_eq!(mesh.client().status(None).await?.config_revision, before);
    assert!(mesh.client().documents(None, None).await?.items.is_empty());
    Ok(())
}

#[tokio::test]
async fn lint_finds_the_same_without_a_control_plane() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    let output = phalanx(&mesh, &["lint", "-f", "-"], FIVE_MISTAKES)?;
    assert_eq!(
        (output.status.code(), stdout(&output).lines().count()),
        (Some(1), 5),
        "{}",
        stdout(&output)
    );
    assert_eq!(
        phalanx(&mesh, &["lint", "-f", "-"], SERVICE)?.status.code(),
        Some(0)
    );
    let doubtful = concat!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\n",
        "spec: {parentRefs: [{name: nowhere}], rules: [{backendRefs: [{name: none, port: 80}]}]}\n",
    );
    let output = phalanx(&mesh, &["lint", "-f", "-"], doubtful)?;
    assert_eq!(output.status.code(), Some(0));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    for words in ["spec.parentRefs[0]: ", "spec.rules[0].backendRefs[0]: "] {
        assert!(told.contains(words), "{told}");
    }
    Ok(())
}

#[tokio::test]
async fn what_get_prints_applies_unchanged() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    assert_eq!(
        phalanx(&mesh, &["apply", "-f", "-"], SERVICE)?
            .status
            .code(),
        Some(0)
    );
    for format in ["yaml", "json"] {
        let printed = phalanx(&mesh, &["get", "service", "shop", "-o", format], "")?;
        let applied = phalanx(&mesh, &["apply", "-f", "-"], &stdout(&printed))?;
        assert!(
            stdout(&applied).contains("Service/default/shop unchanged"),
            "{}{}",
            stdout(&applied),
            stderr(&applied)
        );
    }
    Ok(())
}

#[tokio::test]
async fn history_tells_and_rollback_restores() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    phalanx(&mesh, &["apply", "-f", "-"], SERVICE)?;
    let first = mesh.client().status(None).await?.config_revision;
    let changed = SERVICE.replace("port: 80", "port: 81");
    assert_eq!(
        phalanx(&mesh, &["diff", "-f", "-"], &changed)?
            .status
            .code(),
        Some(1),
        "diff tells that something would change"
    );
    phalanx(&mesh, &["apply", "-f", "-", "-m", "another port"], &changed)?;
    let history = stdout(&phalanx(&mesh, &["history"], "")?);
    assert!(
        history.contains("another port") && history.contains("~Service/default/shop"),
        "{history}"
    );
    let rolled = phalanx(&mesh, &["rollback", "--to", &first.to_string()], "")?;
    assert_eq!(rolled.status.code(), Some(0), "{}", stderr(&rolled));
    assert_eq!(
        phalanx(&mesh, &["diff", "-f", "-"], SERVICE)?.status.code(),
        Some(0),
        "it is as it was"
    );
    Ok(())
}

#[tokio::test]
async fn an_unexpected_revision_refuses_the_change() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    phalanx(&mesh, &["apply", "-f", "-"], SERVICE)?;
    let output = phalanx(
        &mesh,
        &["delete", "service", "shop", "--expect", "999999"],
        "",
    )?;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(mesh.client().documents(None, None).await?.items.len(), 1);
    assert_eq!(
        phalanx(&mesh, &["delete", "svc", "shop"], "")?
            .status
            .code(),
        Some(0)
    );
    assert!(mesh.client().documents(None, None).await?.items.is_empty());
    Ok(())
}

#[tokio::test]
async fn exit_codes_tell_what_kind_of_failure_it_was() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    assert_eq!(
        phalanx(&mesh, &["aply"], "")?.status.code(),
        Some(2),
        "wrong usage"
    );
    assert_eq!(
        phalanx(&mesh, &["get", "nonsense"], "")?.status.code(),
        Some(2),
        "unknown kind"
    );
    assert_eq!(
        phalanx(&mesh, &["apply", "-f", "/nonexistent.yaml"], "")?
            .status
            .code(),
        Some(3),
        "no file"
    );
    let nobody = std::net::SocketAddr::new(phalanx_testkit::address::fresh(), 1);
    let output = phalanx(&mesh, &["status", "--admin", &nobody.to_string()], "")?;
    assert_eq!(output.status.code(), Some(4), "not reachable");
    assert!(stderr(&output).contains("hint"), "{}", stderr(&output));
    Ok(())
}

#[tokio::test]
async fn a_taken_port_is_said_with_its_flag() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    let data = mesh.folder().join("other");
    let output = phalanx(
        &mesh,
        &[
            "control",
            "--open",
            "--data",
            &data.display().to_string(),
            "--xds",
            &mesh.xds.to_string(),
            "--admin",
            "127.0.0.1:0",
        ],
        "",
    )?;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&mesh.xds.to_string()) && said.contains("--xds"),
        "{said}"
    );
    Ok(())
}

#[tokio::test]
async fn errors_are_json_for_those_who_ask_for_json() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    let error = |output: &Output| -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_slice(&output.stderr)?)
    };
    let mistakes = phalanx(&mesh, &["apply", "-f", "-", "-o", "json"], FIVE_MISTAKES)?;
    let told = error(&mistakes)?;
    assert_eq!(told["problems"].as_array().map(Vec::len), Some(5), "{told}");
    assert_eq!(told["problems"][0]["line"], 5);
    let arguments = ["delete", "svc", "nothing", "-o", "json"];
    assert!(error(&phalanx(&mesh, &arguments, "")?)?["error"].is_string());
    phalanx(&mesh, &["apply", "-f", "-"], SERVICE)?;
    let arguments = ["delete", "svc", "shop", "--expect", "999999", "-o", "json"];
    let conflict = error(&phalanx(&mesh, &arguments, "")?)?;
    assert!(
        conflict["hint"].is_string() && conflict["revision"].is_u64(),
        "{conflict}"
    );
    let usage = phalanx(&mesh, &["get", "-o", "json"], "")?;
    assert_eq!(
        (usage.status.code(), error(&usage)?["code"].clone()),
        (Some(2), 2.into())
    );
    let syntax = phalanx(&mesh, &["apply", "-f", "-", "-o", "json"], "a: [")?;
    assert_eq!(syntax.status.code(), Some(3));
    assert!(error(&syntax)?["problems"][0]["line"].is_u64());
    Ok(())
}

#[tokio::test]
async fn the_control_plane_may_be_named_before_the_verb_and_never_as_garbage() -> anyhow::Result<()>
{
    let mesh = Mesh::start().await?;
    let run = |arguments: &[&str], admin: &str| -> anyhow::Result<Output> {
        let mut command = Command::new(executable("phalanx")?);
        Ok(command
            .env("PHALANX_ADMIN", admin)
            .args(arguments)
            .output()?)
    };
    let admin = mesh.admin.to_string();
    let output = run(&["--admin", &admin, "status"], "127.0.0.1:1")?;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = run(&["status"], "garbage")?;
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("HOST:PORT"), "{}", stderr(&output));
    Ok(())
}

#[tokio::test]
async fn what_is_sound_but_has_no_effect_is_told_as_that() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: shop}\nspec:\n  parentRefs: [{kind: Service, name: shop}]\n  rules:\n  - backendRefs: [{name: shop, port: 80}]\n";
    let applied = phalanx(&mesh, &["apply", "-f", "-"], route)?;
    assert!(
        stderr(&applied).contains("stdin:7:19: spec.rules[0].backendRefs[0]: HTTPRoute/default/shop: backend Service default/shop does not exist (yet)"),
        "{}",
        stderr(&applied)
    );
    let status = phalanx(&mesh, &["status"], "")?;
    let said = stdout(&status);
    assert_eq!(status.status.code(), Some(1), "{said}");
    assert!(
        said.contains("unattached HTTPRoute/default/shop: its parent")
            && !said.contains("quarantined"),
        "{said}"
    );
    phalanx(&mesh, &["apply", "-f", "-"], SERVICE)?;
    assert_eq!(phalanx(&mesh, &["status"], "")?.status.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn the_history_shows_documents_line_by_line_and_why() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    phalanx(&mesh, &["apply", "-f", "-"], SERVICE)?;
    let first = mesh.client().status(None).await?.config_revision;
    phalanx(
        &mesh,
        &["apply", "-f", "-"],
        &SERVICE.replace("port: 80", "port: 81"),
    )?;
    let second = mesh.client().status(None).await?.config_revision;
    let shown = phalanx(&mesh, &["history", "--diff", &second.to_string()], "")?;
    let said = stdout(&shown);
    assert!(
        said.contains("-     port: 80") && said.contains("+     port: 81"),
        "{said}"
    );
    assert!(
        said.contains(&format!("revision {second} by"))
            && !said.contains(&format!("revision {first} by")),
        "{said}"
    );
    let arguments = [
        "rollback",
        "--to",
        &first.to_string(),
        "-m",
        "port 81 is taken",
        "--wait",
    ];
    assert_eq!(phalanx(&mesh, &arguments, "")?.status.code(), Some(0));
    let history = stdout(&phalanx(&mesh, &["history"], "")?);
    assert!(
        history.contains(&format!("rollback to revision {first}: port 81 is taken")),
        "{history}"
    );
    let unknown = phalanx(&mesh, &["history", "--diff", "999999"], "")?;
    assert_eq!(unknown.status.code(), Some(1), "{}", stderr(&unknown));
    Ok(())
}

#[tokio::test]
async fn a_sidecar_that_is_registered_but_has_no_stream_is_not_forgotten() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let shop = mesh.instance("shop", "v1", "shop").await?;
    phalanx(&mesh, &["apply", "-f", "-"], SERVICE)?;
    // Its heartbeats are fresh for a while yet.
    shop.sidecar.pause()?;
    mesh.restart_control().await?;
    let status = mesh.client().status(None).await?;
    assert_eq!((status.proxies, status.applied), (1, 0), "{status:?}");
    assert_eq!(status.waiting.len(), 1, "{status:?}");
    let told = async || {
        let status = mesh.client().status(None).await.ok()?;
        (status.not_connected.len() == 1).then_some(status)
    };
    let limit = phalanx_testkit::mesh::READY_MAX;
    let status = phalanx_testkit::eventually("it to be told", limit, told).await?;
    assert_eq!((status.proxies, status.waiting.len()), (1, 0), "{status:?}");
    shop.sidecar.resume()?;
    let back = async || {
        let status = mesh.client().status(None).await.ok()?;
        (status.applied == 1 && status.not_connected.is_empty()).then_some(())
    };
    phalanx_testkit::eventually("it to be back", limit, back).await
}

#[tokio::test]
async fn who_stops_reading_changes_no_exit_code() -> anyhow::Result<()> {
    use std::io::Write;
    let mesh = Mesh::start().await?;
    let run = |arguments: &[&str], input: &str| -> anyhow::Result<Option<i32>> {
        let mut child = Command::new(executable("phalanx")?)
            .env("PHALANX_ADMIN", mesh.admin.to_string())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // As `| head` and `2>&1 | head` do when they have seen enough.
        drop((child.stdout.take(), child.stderr.take()));
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        Ok(child.wait()?.code())
    };
    assert_eq!(run(&["lint", "-f", "-"], FIVE_MISTAKES)?, Some(1));
    assert_eq!(run(&["apply", "-f", "-"], FIVE_MISTAKES)?, Some(1));
    let arguments = ["apply", "-f", "-", "-o", "json"];
    assert_eq!(run(&arguments, FIVE_MISTAKES)?, Some(1));
    assert_eq!(run(&["apply", "-f", "-"], SERVICE)?, Some(0));
    assert_eq!(run(&["history"], "")?, Some(0));
    Ok(())
}

#[tokio::test]
async fn an_apply_that_changes_nothing_waits_for_nobody_elses_canary() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let shop = mesh.instance("shop", "v1", "shop").await?;
    let other = SERVICE.replace("shop", "other");
    phalanx(
        &mesh,
        &["apply", "-f", "-"],
        &format!("{SERVICE}---\n{other}"),
    )?;
    let call = phalanx_testkit::http::Call::get("shop", "/");
    let called = async || {
        let answer = phalanx_testkit::http::call(shop.outbound, &call)
            .await
            .ok()?;
        (answer.status == 200).then_some(())
    };
    let limit = phalanx_testkit::mesh::READY_MAX;
    phalanx_testkit::eventually("a call", limit, called).await?;
    let changed = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: shop}\nspec:\n  parentRefs: [{kind: Service, name: shop}]\n  rules:\n  - backendRefs: [{name: shop, port: 80}]\n    timeouts: {request: 9s}\n";
    let arguments = [
        "apply", "-f", "-", "--canary", "1", "--watch", "5m", "--wait",
    ];
    let staged = phalanx(&mesh, &arguments[..7], changed)?;
    assert_eq!(staged.status.code(), Some(0), "{}", stderr(&staged));
    let idle = phalanx(&mesh, &arguments, &other)?;
    assert_eq!(idle.status.code(), Some(0), "{}", stderr(&idle));
    assert!(!stdout(&idle).contains("canary"), "{}", stdout(&idle));
    assert!(mesh.client().canary().await?.current.is_some());
    Ok(())
}
