//! What a dry run tells.

use std::collections::BTreeSet;

use phalanx_client::api::CanaryTerms;
use phalanx_model::ServiceName;
use phalanx_xds::Kind;

use super::*;
use crate::snapshot::{Asks, Node};

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

fn asking(nodes: &[&Node], names: &[(Kind, &str)]) -> BTreeMap<String, Arc<Asks>> {
    let names = names.iter().map(|(kind, name)| (*kind, (*name).to_owned()));
    let asks: Arc<Asks> = Arc::new(names.collect());
    let ids = nodes.iter().map(|node| (node.id.clone(), asks.clone()));
    ids.collect()
}

#[tokio::test]
async fn who_asks_on_demand_is_concerned_by_what_it_asks_for() {
    let door = door().await;
    let services: String = ["web", "v1", "v2"].map(|name| service(name, 80)).concat();
    door.apply(&(services + &split(90, 10))).await;
    let nodes = ["m1", "m2", "l1"].map(|id| node("match", "v1", id));
    let [caller, idle, envoy] = &nodes;
    let mut asks = asking(&[caller], &[(Kind::Routes, "outbound/web")]);
    asks.extend(asking(&[idle], &[(Kind::Routes, "outbound/v1")]));
    let around = Around {
        nodes: nodes.to_vec(),
        asks,
        ..Around::default()
    };
    let request = ApplyRequest {
        dry_run: true,
        ..request(&split(50, 50))
    };
    let answer = door.admission.0.apply(request, around).await.unwrap();
    let effect = answer.effect.unwrap();
    assert_eq!((effect.concerned, effect.rules[0].proxies), (2, 2));
    let told: Vec<_> = effect
        .nodes
        .iter()
        .map(|n| (n.node.as_str(), n.resources[0].as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (caller.id.as_str(), "RDS outbound/web"),
            (envoy.id.as_str(), "RDS outbound")
        ]
    );
}

#[tokio::test]
async fn planes_that_could_not_be_asked_are_told_with_the_effect() {
    let door = door().await;
    let around = Around {
        unknown: vec!["control plane two can't be asked".into()],
        ..Around::default()
    };
    let request = ApplyRequest {
        dry_run: true,
        ..request(&service("web", 80))
    };
    let answer = door.admission.0.apply(request, around).await.unwrap();
    assert!(answer.warnings[0].message.contains("two"), "{answer:?}");
}

/// What each of the nodes has of what is stored, by the plain way.
fn has(world: &Arc<World>, around: &Around) -> BTreeMap<String, BTreeMap<String, String>> {
    let published = Arc::new(Compiler::default().compile(world.clone()));
    let resources = |node: &Node| {
        let published = published.of(&node.id);
        let snapshot = match around.asks.get(&node.id) {
            Some(asks) => asks.snapshot(&published, node),
            None => published.snapshot(node, &Published::listeners(node), None),
        };
        let all = Kind::ALL.into_iter().flat_map(|kind| {
            let named = snapshot.iter(kind);
            let told = named.map(move |r| (format!("{kind} {}", r.name), r.version.clone()));
            told.collect::<Vec<_>>()
        });
        all.collect()
    };
    let of = |node: &Node| (node.id.clone(), resources(node));
    around.nodes.iter().map(of).collect()
}

/// A Service, a route or a policy of one of five names, or none of them any more.
fn change(random: &mut fastrand::Rng) -> (String, bool) {
    let mut name = || format!("s{}", random.u8(0..5));
    let (name, other) = (name(), name());
    let text = match random.u8(0..4) {
        0 => service(&name, random.u16(80..83)),
        1 => format!(
            "apiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: {name}}}\nspec:\n  targetRefs: [{{kind: Service, name: {name}}}]\n  circuitBreaker: {{maxRequests: {}}}\n",
            random.u8(1..9)
        ),
        _ => split(random.u32(0..3), random.u32(0..3))
            .replace("{name: r}", &format!("{{name: {name}}}"))
            .replace("name: web", &format!("name: {name}"))
            .replace("{name: v1,", &format!("{{name: {other},"))
            .replace("{name: v2,", "{name: s0,"),
    };
    (text, random.u8(0..4) == 0)
}

/// Random changes, each looked at first; also while a canary is under way.
#[tokio::test]
async fn what_a_dry_run_tells_is_what_happens() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let door = door().await;
        let nodes = ["e1", "d1", "d2", "f1"].map(|id| node("match", "v1", id));
        let [_, one, two, _] = &nodes;
        let names = [
            (Kind::Routes, "outbound/s0"),
            (Kind::Routes, "outbound/s1.default.svc.mesh:81"),
        ];
        let mut asks = asking(&[one], &names);
        asks.extend(asking(&[two], &[(Kind::Routes, "outbound/s2")]));
        let around = Around {
            nodes: nodes.to_vec(),
            asks,
            ..Around::default()
        };
        let door = &door.admission.0;
        for step in 0..14 {
            let (text, deletes) = change(&mut random);
            let world = || door.worlds.borrow().clone();
            let before = has(&world(), &around);
            let act = async |dry_run| {
                if deletes {
                    let files = vec![file("a.yaml", &text)];
                    let request = DeleteRequest {
                        files,
                        dry_run,
                        ..DeleteRequest::default()
                    };
                    return door.delete(request, around.clone()).await;
                }
                let canary = (step % 5 == 4).then(CanaryTerms::default);
                let request = ApplyRequest {
                    dry_run,
                    canary: canary.filter(|_| !dry_run),
                    ..request(&text)
                };
                door.apply(request, around.clone()).await
            };
            let Ok(looked) = act(true).await else {
                continue;
            };
            let Ok(_) = act(false).await else { continue };
            let now = world();
            let is_staged = now
                .canary
                .as_ref()
                .is_some_and(|c| c.revision == now.revision);
            let after = has(&now, &around);
            let mut changed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (node, new) in &after {
                let old = &before[node];
                let names = old.keys().chain(new.keys());
                let differ = names.filter(|name| old.get(*name) != new.get(*name));
                let names: BTreeSet<String> = differ.cloned().collect();
                if !names.is_empty() {
                    changed.insert(node.clone(), names);
                }
            }
            let told = looked.effect.unwrap().nodes.into_iter();
            let told: BTreeMap<_, BTreeSet<_>> = told
                .map(|n| (n.node, n.resources.into_iter().collect()))
                .collect();
            if is_staged {
                let first = &now.canary.as_ref().unwrap().nodes;
                assert!(changed.keys().all(|node| first.contains(node)));
                for (node, names) in &changed {
                    assert_eq!(told.get(node), Some(names), "seed {seed}: {text}");
                }
            } else {
                assert_eq!(told, changed, "seed {seed}: {text}");
            }
        }
    }
}
