//! Answers of a mirror compared with the originals', as the command line shows them.

use std::process::Command;

use phalanx_client::api::{Comparison, Comparisons};
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call, first_call};
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::executable;

/// What the original is asked for and the copy is not makes their answers differ, in rule `edited` only.
const ROUTES: &str = "
apiVersion: v1
kind: Service
metadata: {name: board}
spec: {selector: {app: board}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: board-next}
spec: {selector: {app: board-next}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: board
  annotations:
    phalanx.dev/compare-mirrors: 'true'
    phalanx.dev/compare-ignore: $.headers
spec:
  parentRefs: [{kind: Service, name: board}]
  rules:
  - name: edited
    matches: [{path: {type: PathPrefix, value: /edited}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: board-next, port: 80}}}]
    backendRefs:
    - name: board
      port: 80
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: {set: [{name: x-answer, value: x-new=secret}]}
  - name: plain
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: board-next, port: 80}}}]
    backendRefs: [{name: board, port: 80}]
";

async fn compared(
    mesh: &Mesh,
    rule: &str,
    until: impl Fn(&Comparison) -> bool,
) -> anyhow::Result<Comparison> {
    let client = mesh.client();
    eventually("comparisons", READY_MAX, async || {
        let found = client.comparisons(Some("board")).await.ok()?;
        let found = found.items.into_iter().find(|item| item.rule == rule);
        found.filter(&until)
    })
    .await
}

#[tokio::test]
async fn answers_of_a_mirror_are_compared_and_cost_the_original_nothing() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let _board = mesh.instance("board", "v1", "board").await?;
    let next = mesh.instance("board-next", "v1", "next").await?;
    let caller = mesh.instance("caller", "v1", "caller").await?;
    mesh.apply(ROUTES).await?;
    let answer = first_call(caller.outbound, &Call::get("board", "/plain")).await?;
    assert_eq!((answer.status, answer.header("x-echo")), (200, "board"));
    for number in 0..20 {
        for rule in ["plain", "edited"] {
            let request = Call::get("board", &format!("/{rule}/{number}?token=secret"));
            let answer = call(caller.outbound, &request).await?;
            assert_eq!((answer.status, answer.header("x-echo")), (200, "board"));
        }
    }
    let plain = compared(&mesh, "plain", |found| found.compared >= 20).await?;
    assert_eq!((plain.different, plain.samples.len()), (0, 0), "{plain:?}");
    assert_eq!(plain.route, "HTTPRoute/default/board");
    let edited = compared(&mesh, "edited", |found| found.compared >= 20).await?;
    assert_eq!(edited.different, edited.compared, "{edited:?}");
    assert_eq!(
        (edited.header, edited.status, edited.body),
        (edited.compared, 0, 0)
    );
    let sample = edited.samples.last().expect("what differs is shown");
    let shown = format!("{sample:?}");
    assert!(
        shown.contains("x-new") && !shown.contains("secret"),
        "{shown}"
    );

    // Whoever mirrors to somebody that does not answer waits for nothing.
    next.app.pause()?;
    for _ in 0..10 {
        let answer = call(caller.outbound, &Call::get("board", "/plain")).await?;
        assert_eq!((answer.status, answer.header("x-echo")), (200, "board"));
    }
    next.app.resume()?;
    let later = compared(&mesh, "plain", |found| {
        found.compared + found.unanswered >= 30
    })
    .await?;
    assert_eq!(later.different, 0, "{later:?}");

    let told = Command::new(executable("phalanx")?)
        .args([
            "compare",
            "board",
            "-o",
            "json",
            "--admin",
            &mesh.admin.to_string(),
        ])
        .output()?;
    let told: Comparisons = serde_json::from_slice(&told.stdout)?;
    assert_eq!(told.items.len(), 2);
    let page = call(caller.admin, &Call::get("localhost", "/metrics")).await?;
    let page = String::from_utf8(page.body.to_vec())?;
    let line = "phalanx_mirror_compared_total{route=\"HTTPRoute/default/board/edited\",";
    assert!(page.contains(line), "{page}");
    Ok(())
}
