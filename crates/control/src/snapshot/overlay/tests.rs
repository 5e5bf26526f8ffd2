//! What a route does while it is led: one claim per rule, written as in `snapshot::tests`.

use std::sync::Arc;

use phalanx_model::resource::Rule;
use phalanx_model::resource::{Action, ValueMatch};

use super::super::{Compiler, Mesh};
use super::*;
use crate::world::fixture::Fixture;
use crate::world::rollout::{MirrorShare, RolloutRecord, rollout_key};

const SERVICES: &str = "
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
apiVersion: v1
kind: Service
metadata: {name: shadow}
spec: {selector: {app: shadow}, ports: [{port: 80, appProtocol: http}]}
---
";

const BOTH: &str =
    "{name: battle-v1, port: 80, weight: 90}, {name: battle-v2, port: 80, weight: 10}";

fn route(backends: &str, more: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: battle}}\nspec:\n  parentRefs: [{{kind: Service, name: battle}}]\n  rules: [{{backendRefs: [{backends}]{more}}}]\n---\n"
    )
}

fn rollout(name: &str, more: &str) -> String {
    format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: Rollout\nmetadata: {{name: {name}}}\nspec:\n  targetRef: {{kind: HTTPRoute, name: battle}}\n  stable: battle-v1\n  canary: battle-v2\n  steps: [{{weight: 5, for: 1s}}]\n{more}---\n"
    )
}

fn fixture(backends: &str, more: &str) -> Fixture {
    Fixture::yaml(&format!(
        "{SERVICES}{}{}",
        route(backends, ""),
        rollout("battle", more)
    ))
}

/// With the Rollout led so.
fn led(mut fixture: Fixture, overlay: Overlay) -> Fixture {
    let record = RolloutRecord {
        subject: "HTTPRoute/default/battle default/battle-v1 default/battle-v2".to_owned(),
        overlay,
        ..RolloutRecord::default()
    };
    let key = rollout_key("default", "battle");
    fixture.put(key, serde_json::to_vec(&record).unwrap());
    fixture
}

fn weight(weight: u32) -> Overlay {
    Overlay {
        weight,
        ..Overlay::default()
    }
}

fn rules(fixture: &Fixture) -> Vec<String> {
    of_mesh(&Mesh::compile(&fixture.world()))
}

fn of_mesh(mesh: &Mesh) -> Vec<String> {
    let table = mesh.rules.table("default", &mesh.catalog);
    let mut hosts = table.hosts.iter();
    let host = hosts.find(|host| host.name == "battle.default.svc.mesh:80");
    host.unwrap().rules.iter().map(line).collect()
}

fn line(rule: &Rule) -> String {
    let headers = rule
        .matches
        .headers
        .iter()
        .map(|header| match &header.value {
            ValueMatch::Exact(value) => format!("[{}={value}] ", header.name),
            ValueMatch::Regex(value) => format!("[{}~{value}] ", header.name),
        });
    let headers: String = headers.collect();
    let Action::Forward(forward) = &rule.action else {
        return format!("{headers}answered");
    };
    let backends = forward.backends.iter().map(|backend| {
        let cluster = backend.cluster.as_ref().unwrap();
        format!("{}@{}", cluster.service.name, backend.weight)
    });
    let mirrors = forward.mirrors.iter().map(|mirror| {
        let name = &mirror.cluster.service.name;
        format!("+{name}@{}", mirror.per_million)
    });
    let all: Vec<_> = backends.chain(mirrors).collect();
    format!("{headers}{}", all.join(" "))
}

fn findings(fixture: &Fixture) -> Vec<String> {
    let mesh = Mesh::compile(&fixture.world());
    let findings = mesh.findings.iter();
    findings
        .map(|finding| format!("{}: {}", finding.document, finding.message))
        .collect()
}

#[test]
fn the_new_version_gets_nothing_before_somebody_leads_it_and_then_what_its_step_says() {
    let fixture = fixture(BOTH, "  boundary: none\n");
    assert_eq!(rules(&fixture), ["battle-v1@100"]);
    assert_eq!(
        rules(&led(fixture.clone(), weight(5))),
        ["battle-v1@95 battle-v2@5"]
    );
    assert_eq!(rules(&led(fixture, weight(100))), ["battle-v2@100"]);
}

#[test]
fn at_match_boundaries_both_stay_among_the_backends_for_the_sessions_that_they_have() {
    let session = ", sessionPersistence: {type: Header, sessionName: x-s}";
    let text = format!(
        "{SERVICES}{}{}",
        route(BOTH, session),
        rollout("battle", "  boundary: match\n")
    );
    let fixture = Fixture::yaml(&text);
    assert!(findings(&fixture).is_empty(), "{:?}", findings(&fixture));
    assert_eq!(rules(&fixture), ["battle-v1@100 battle-v2@0"]);
    let promoted = led(fixture, weight(100));
    assert_eq!(rules(&promoted), ["battle-v1@0 battle-v2@100"]);
}

#[test]
fn the_share_of_other_backends_stays_what_it_is() {
    let backends = "{name: battle-v1, port: 80, weight: 30}, {name: shadow, port: 80, weight: 60}, {name: battle-v2, port: 80, weight: 10}";
    let fixture = led(fixture(backends, ""), weight(25));
    // 40 of 100 for both, 60 for the other.
    assert_eq!(
        rules(&fixture),
        ["battle-v1@3000 shadow@6000 battle-v2@1000"]
    );
}

#[test]
fn copies_and_lanes_are_for_the_new_version_and_everybody_else_stays() {
    let session = ", sessionPersistence: {}";
    let text = format!(
        "{SERVICES}{}{}",
        route(BOTH, session),
        rollout("battle", "  boundary: match\n")
    );
    let mirror = Overlay {
        mirror: Some(MirrorShare {
            per_million: 100_000,
            compare: true,
        }),
        ..Overlay::default()
    };
    let compared = Mesh::compile(&led(Fixture::yaml(&text), mirror.clone()).world());
    let table = compared.rules.table("default", &compared.catalog);
    let mut all = table.hosts.iter().flat_map(|host| &host.rules);
    let compares = |rule: &Rule| matches!(&rule.action, Action::Forward(f) if f.compare.is_some());
    assert!(all.any(compares));
    assert_eq!(
        rules(&led(Fixture::yaml(&text), mirror)),
        ["battle-v1@100 battle-v2@0 +battle-v2@100000"]
    );
    let lane = Overlay {
        lane: Some("dev-li".to_owned()),
        ..Overlay::default()
    };
    assert_eq!(
        rules(&led(Fixture::yaml(&text), lane)),
        [
            "[x-env=dev-li] battle-v1@0 battle-v2@100",
            "battle-v1@100 battle-v2@0"
        ]
    );
}

#[test]
fn a_lane_gives_requests_of_other_colours_to_nobody_else() {
    let matches = ", matches: [{path: {type: PathPrefix, value: /plain}}, {headers: [{name: x-env, value: staging}]}, {headers: [{name: x-env, value: dev-li}]}, {headers: [{name: x-env, type: RegularExpression, value: 'dev-.*'}]}]";
    let lane = |colour: &str| Overlay {
        lane: Some(colour.to_owned()),
        ..Overlay::default()
    };
    let text = |matches: &str| {
        let route = route(BOTH, matches);
        Fixture::yaml(&format!("{SERVICES}{route}{}", rollout("battle", "")))
    };
    let mut led_by = rules(&led(text(matches), lane("dev-li")));
    led_by.sort();
    assert_eq!(
        led_by,
        [
            "[x-env=dev-li] battle-v1@100",
            "[x-env=dev-li] battle-v2@100",
            "[x-env=dev-li] battle-v2@100",
            "[x-env=staging] battle-v1@100",
            "[x-env~dev-.*] battle-v1@100",
            "battle-v1@100",
        ]
    );
    let others = ", matches: [{headers: [{name: x-env, value: staging}]}]";
    assert_eq!(
        rules(&led(text(others), lane("dev-li"))),
        ["[x-env=staging] battle-v1@100"]
    );
}

#[test]
fn a_version_without_weight_stays_for_its_directory_and_its_lanes() {
    let directory = "
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: rooms}
spec: {targetRefs: [{kind: Service, name: battle-v2}], sessionDirectory: {header: x-match}}
---
";
    let kept = fixture(BOTH, "").and_yaml(directory);
    assert_eq!(rules(&kept), ["battle-v1@100 battle-v2@0"]);
    assert_eq!(rules(&led(kept, weight(100))), ["battle-v2@100"]);
    let lanes = "
apiVersion: phalanx.dev/v1alpha1
kind: ColourPolicy
metadata: {name: lanes}
spec: {lanes: [{colour: dev-li, selector: {lane: dev-li}, fallback: Refuse, services: [battle-v2]}]}
---
";
    let kept = fixture(BOTH, "").and_yaml(lanes);
    assert_eq!(
        rules(&kept),
        ["[x-env=dev-li] battle-v2@1", "battle-v1@100 battle-v2@0"]
    );
}

#[test]
fn without_the_rollout_the_documents_count_again() {
    let text = format!("{SERVICES}{}", route(BOTH, ""));
    let fixture = led(Fixture::yaml(&text), weight(50));
    assert_eq!(rules(&fixture), ["battle-v1@90 battle-v2@10"]);
}

#[test]
fn a_record_that_cannot_be_read_leaves_the_route_to_its_documents() {
    let mut fixture = led(fixture(BOTH, ""), weight(50));
    assert_eq!(rules(&fixture), ["battle-v1@50 battle-v2@50"]);
    let before = fixture.world();
    fixture.put(rollout_key("default", "battle"), b"{".to_vec());
    assert_eq!(rules(&fixture), ["battle-v1@90 battle-v2@10"]);
    let mut compiler = Compiler::default();
    let documents = before.documents.clone();
    compiler.compile(Arc::new(before));
    let damaged = crate::world::World {
        documents,
        ..fixture.world()
    };
    let after = compiler.compile(Arc::new(damaged));
    assert_eq!(of_mesh(&after.mesh), ["battle-v1@90 battle-v2@10"]);
}

#[test]
fn what_was_led_for_other_services_says_nothing_about_these() {
    let mut fixture = fixture(BOTH, "");
    let record = RolloutRecord {
        subject: "HTTPRoute/default/battle default/battle-v0 default/battle-v1".to_owned(),
        overlay: weight(100),
        ..RolloutRecord::default()
    };
    let key = rollout_key("default", "battle");
    fixture.put(key, serde_json::to_vec(&record).unwrap());
    assert_eq!(rules(&fixture), ["battle-v1@100"]);
}

#[test]
fn a_rollout_that_leads_nothing_says_why() {
    let told = |text: String| findings(&Fixture::yaml(&text)).join("\n");
    let none = told(format!("{SERVICES}{}", rollout("battle", "")));
    assert!(
        none.contains("HTTPRoute/default/battle does not exist"),
        "{none}"
    );
    let single = "{name: battle-v1, port: 80}";
    let one = told(format!(
        "{SERVICES}{}{}",
        route(single, ""),
        rollout("battle", "")
    ));
    assert!(
        one.contains("no rule of HTTPRoute/default/battle has both"),
        "{one}"
    );
    let bound = told(format!(
        "{SERVICES}{}{}",
        route(BOTH, ""),
        rollout("battle", "  boundary: match\n")
    ));
    assert!(bound.contains("boundary `match` needs sessions"), "{bound}");
    let two = fixture(BOTH, "").and_yaml(&rollout("second", ""));
    let two = findings(&two);
    assert_eq!(two.len(), 1);
    assert!(
        two[0].starts_with("Rollout/default/second: conflicted"),
        "{two:?}"
    );
}

#[test]
fn how_far_it_is_compiles_nothing_unless_it_leads_otherwise() {
    let before = led(fixture(BOTH, ""), weight(5));
    let mut compiler = Compiler::default();
    let first = compiler.compile(Arc::new(before.world()));
    let mut measured = before.clone();
    let record = RolloutRecord {
        subject: "HTTPRoute/default/battle default/battle-v1 default/battle-v2".to_owned(),
        overlay: weight(5),
        good: 7,
        ..RolloutRecord::default()
    };
    let key = rollout_key("default", "battle");
    measured.put(key, serde_json::to_vec(&record).unwrap());
    let world = crate::world::World {
        documents: first.world.documents.clone(),
        ..measured.world()
    };
    let second = compiler.compile(Arc::new(world.clone()));
    assert_eq!(compiler.changes().encoded, 0);
    assert!(first.mesh.rules.ports().same(second.mesh.rules.ports()));
    let moved = crate::world::World {
        documents: world.documents.clone(),
        ..led(before, weight(50)).world()
    };
    let third = compiler.compile(Arc::new(moved));
    assert_eq!(of_mesh(&third.mesh), ["battle-v1@50 battle-v2@50"]);
    assert!(compiler.changes().encoded > 0);
}
