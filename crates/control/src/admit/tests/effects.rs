//! What a dry run tells.

use phalanx_model::ServiceName;

use super::*;
use crate::snapshot::Node;

pub fn node(service: &str, version: &str, id: &str) -> Node {
    Node::known(
        format!("default/{service}/{id}"),
        ServiceName::new("default", service),
        version.to_owned(),
        id.to_owned(),
        "phalanx".to_owned(),
    )
}

fn split(a: u32, b: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{{kind: Service, name: web}}]\n  rules:\n  - backendRefs: [{{name: v1, port: 80, weight: {a}}}, {{name: v2, port: 80, weight: {b}}}]\n---\n"
    )
}

async fn looked(door: &Door, text: &str, nodes: Vec<Node>) -> ApplyResponse {
    let request = ApplyRequest {
        dry_run: true,
        ..request(text)
    };
    let around = Around {
        nodes,
        ..Around::default()
    };
    door.admission.0.apply(request, around).await.unwrap()
}

#[tokio::test]
async fn a_dry_run_tells_rules_and_who_would_receive_them() {
    let door = door().await;
    let services: String = ["web", "v1", "v2"].map(|name| service(name, 80)).concat();
    door.apply(&(services + &split(90, 10))).await;
    let nodes = vec![node("match", "v1", "m1"), node("lobby", "v1", "l1")];
    let answer = looked(&door, &split(50, 50), nodes).await;
    let effect = answer.effect.unwrap();
    let [rule] = effect.rules.as_slice() else {
        panic!("{effect:#?}")
    };
    assert_eq!(
        (rule.service.as_str(), rule.details.as_slice(), rule.proxies),
        (
            "web.default.svc.mesh:80",
            ["weights 90/10 → 50/50 (v1:80, v2:80)".to_owned()].as_slice(),
            2
        )
    );
    assert_eq!((effect.concerned, effect.proxies), (2, 2));
    assert_eq!(effect.nodes[0].resources, ["RDS outbound"]);
    assert_eq!(effect.resources.len(), 1, "{:#?}", effect.resources);
}

#[tokio::test]
async fn a_policy_shows_the_field_of_the_cluster_it_changes() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    let policy = "apiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {name: web}\nspec:\n  targetRefs: [{kind: Service, name: web}]\n  circuitBreaker: {maxRequests: 10}\n";
    let answer = looked(&door, policy, vec![node("match", "v1", "m1")]).await;
    let effect = answer.effect.unwrap();
    let [cluster] = effect.resources.as_slice() else {
        panic!("{effect:#?}")
    };
    assert_eq!(
        (
            cluster.kind.as_str(),
            cluster.action.as_str(),
            cluster.proxies
        ),
        ("CDS", "changed", 1)
    );
    assert!(
        cluster
            .details
            .iter()
            .any(|d| d == "circuit_breaker.max_requests: 1024 → 10"),
        "{cluster:#?}"
    );
}

#[tokio::test]
async fn findings_that_would_arise_are_told_before_they_do() {
    let door = door().await;
    door.apply(&format!("{}{}", service("web", 80), route(1)))
        .await;
    let request = DeleteRequest {
        files: vec![file("a.yaml", &service("web", 80))],
        dry_run: true,
        ..DeleteRequest::default()
    };
    let effect = door
        .admission
        .delete(request)
        .await
        .unwrap()
        .effect
        .unwrap();
    let [arising] = effect.arising.as_slice() else {
        panic!("{effect:#?}")
    };
    assert_eq!(
        (arising.id.as_str(), arising.state.as_str()),
        ("HTTPRoute/default/r", "unattached")
    );
    assert!(effect.resources.iter().any(|r| r.action == "removed"));
}

#[tokio::test]
async fn what_changes_nothing_has_no_effect() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    let answer = looked(&door, &service("web", 80), vec![node("match", "v1", "m1")]).await;
    let effect = answer.effect.unwrap();
    assert_eq!(
        (effect.concerned, effect.rules.len(), effect.resources.len()),
        (0, 0, 0)
    );
}
