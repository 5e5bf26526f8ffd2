//! One claim per rule; a rule is written as `mode deny:… allow:…`, policies by name, with a star where they allow nothing.

use std::sync::Arc;

use phalanx_xds::Kind;

use super::*;
use crate::snapshot::{Compiler, NodeTls, Own, Published};
use crate::world::fixture::{Fixture, instance};

const BATTLE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: battle}\nspec:\n  selector: {app: battle}\n  ports: [{name: grpc, port: 80, targetPort: 9000}]\n---\n";
const ADMIN: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: admin}\nspec:\n  selector: {app: battle}\n  ports: [{name: http, port: 80, targetPort: 9100}]\n---\n";

fn allow(name: &str, service: &str, rules: &str) -> String {
    format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {{targetRefs: [{{kind: Service, name: {service}}}], action: Allow, rules: [{rules}]}}\n---\n"
    )
}

fn deny(name: &str, service: &str, rules: &str) -> String {
    allow(name, service, rules).replace("Allow", "Deny")
}

/// `scope`: `mesh`, `namespace` or a service.
fn peers(name: &str, scope: &str, rest: &str) -> String {
    let (namespace, targets) = match scope {
        "mesh" => ("phalanx-system", String::new()),
        "namespace" => ("default", String::new()),
        service => (
            "default",
            format!("targetRefs: [{{kind: Service, name: {service}}}], "),
        ),
    };
    format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{targets}{rest}}}\n---\n"
    )
}

fn battle(ports: &[(&str, u16)]) -> Instance {
    let mut made = instance("battle", "b1", "127.0.0.5:15006", ports);
    made.mutual_tls = true;
    made
}

fn published(fixture: &Fixture) -> Arc<Published> {
    Arc::new(Compiler::default().compile(Arc::new(fixture.world())))
}

fn node(has_identity: bool) -> Node {
    Node {
        id: "default/battle/b1".into(),
        service: ServiceName::new("default", "battle"),
        version: String::new(),
        zone: String::new(),
        instance: "b1".into(),
        outbound: None,
        agent: "phalanx".into(),
        tls: NodeTls {
            has_identity,
            ..NodeTls::default()
        },
        edge: None,
        udp: Vec::new(),
    }
}

fn inbound(fixture: &Fixture) -> Inbound {
    let published = published(fixture);
    published.mesh.inbound(&published.world, &node(true))
}

fn written(rule: &InboundRule) -> String {
    let mut text = format!("{:?}", rule.mode);
    for policy in &rule.access.policies {
        let name = policy.name.rsplit('/').next().unwrap_or_default();
        let star = if policy.rules.is_empty() { "*" } else { "" };
        text.push_str(&format!(" {:?}:{name}{star}", policy.effect));
    }
    text
}

fn lines(rules: &Inbound) -> Vec<String> {
    let ports = rules
        .ports
        .iter()
        .map(|(port, rule)| format!("{port} {}", written(rule)));
    [written(&rules.default)].into_iter().chain(ports).collect()
}

#[test]
fn without_documents_everybody_may_call() {
    let fixture = Fixture::yaml(BATTLE).with(battle(&[("", 9000)]));
    assert_eq!(lines(&inbound(&fixture)), ["Permissive"]);
}

#[test]
fn a_policy_holds_for_the_ports_that_its_service_leads_to_and_the_others_are_closed() {
    let fixture = Fixture::yaml(&format!(
        "{BATTLE}{ADMIN}{}{}",
        allow("play", "battle", "{from: [{services: [gateway]}]}"),
        allow("ops", "admin", "{from: [{namespaces: [ops]}]}"),
    ));
    let fixture = fixture.with(battle(&[("grpc", 9000), ("http", 9100), ("debug", 9200)]));
    assert_eq!(
        lines(&inbound(&fixture)),
        [
            "Permissive Allow:ops* Allow:play*",
            "9000 Permissive Allow:play",
            "9100 Permissive Allow:ops"
        ]
    );
}

#[test]
fn a_denial_holds_at_ports_that_no_service_leads_to_as_well() {
    let policy = deny("no", "battle", "{methods: [DELETE]}");
    let fixture = Fixture::yaml(&format!("{BATTLE}{policy}"));
    let fixture = fixture.with(battle(&[("grpc", 9000), ("debug", 9200)]));
    assert_eq!(lines(&inbound(&fixture)), ["Permissive Deny:no"]);
}

#[test]
fn a_service_without_manifest_is_guarded_as_a_whole() {
    let policy = allow("play", "battle", "{from: [{anyone: true}]}");
    let fixture = Fixture::yaml(&policy).with(battle(&[("a", 9000), ("b", 9100)]));
    assert_eq!(lines(&inbound(&fixture)), ["Permissive Allow:play"]);
}

#[test]
fn who_is_not_registered_is_closed_where_anything_is_said() {
    let policy = allow("play", "other", "{}");
    assert_eq!(
        lines(&inbound(&Fixture::yaml(&policy))),
        ["Permissive Allow:play*"]
    );
    assert_eq!(lines(&inbound(&Fixture::yaml(BATTLE))), ["Permissive"]);
}

#[test]
fn the_narrower_word_about_peers_wins() {
    let all = format!(
        "{BATTLE}{}{}{}",
        peers("m", "mesh", "mtls: {mode: Strict}"),
        peers("n", "namespace", "mtls: {mode: \"Off\"}"),
        peers(
            "s",
            "battle",
            "mtls: {mode: Permissive}, ports: [{port: 9000, mode: Strict}]"
        ),
    );
    let with = |text: &str| {
        let fixture = Fixture::yaml(text).with(battle(&[("", 9000)]));
        lines(&inbound(&fixture))
    };
    let parts: Vec<&str> = all.split("---\n").collect();
    let first = |n: usize| parts[..n].join("---\n");
    assert_eq!(with(&first(1)), ["Permissive"]);
    assert_eq!(with(&first(2)), ["Strict"]);
    assert_eq!(with(&first(3)), ["Off"]);
    assert_eq!(with(&first(4)), ["Permissive", "9000 Strict"]);
}

#[test]
fn an_endpoint_is_called_with_mutual_tls_unless_that_is_off() {
    let mutual = |text: &str| {
        let fixture = Fixture::yaml(&format!("{BATTLE}{text}")).with(battle(&[("", 9000)]));
        let published = published(&fixture);
        let sets = published.mesh.assignments.values();
        let endpoints: Vec<_> = sets.flat_map(|set| &set.endpoints).collect();
        assert_eq!(endpoints.len(), 1);
        endpoints[0].mutual_tls
    };
    assert!(mutual("") && mutual(&peers("s", "battle", "mtls: {mode: Strict}")));
    assert!(!mutual(&peers("s", "battle", "mtls: {mode: \"Off\"}")));
    assert!(!mutual(&peers(
        "s",
        "battle",
        "ports: [{port: 9000, mode: \"Off\"}]"
    )));
    assert!(mutual(&peers(
        "s",
        "battle",
        "ports: [{port: 9001, mode: \"Off\"}]"
    )));
}

#[test]
fn a_slice_says_itself_whether_it_takes_mutual_tls() {
    let slice = |label: &str| {
        format!(
            "{BATTLE}apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: {{kubernetes.io/service-name: battle{label}}}}}\naddressType: IPv4\nports: [{{port: 50051}}]\nendpoints: [{{addresses: [127.0.0.9]}}]\n---\n"
        )
    };
    let mutual = |text: &str| {
        let published = published(&Fixture::yaml(text));
        let mut sets = published.mesh.assignments.values();
        sets.next().is_some_and(|set| set.endpoints[0].mutual_tls)
    };
    let labelled = slice(", phalanx.dev/tls: mutual");
    assert_eq!((mutual(&slice("")), mutual(&labelled)), (false, true));
    let off = peers("n", "namespace", "mtls: {mode: \"Off\"}");
    assert!(!mutual(&format!("{labelled}{off}")));
}

#[test]
fn a_cluster_expects_its_own_name_and_whoever_its_service_selects() {
    let mut other = instance("battle-blue", "x1", "127.0.0.6:15006", &[("", 9000)]);
    other.labels.insert("app".into(), "battle".into());
    let fixture = Fixture::yaml(BATTLE)
        .with(battle(&[("", 9000)]))
        .with(other);
    let published = published(&fixture);
    let cluster = published
        .mesh
        .clusters
        .values()
        .find(|c| c.name.service.name == "battle");
    let ids = &cluster.unwrap().tls.as_ref().unwrap().ids;
    let ids: Vec<_> = ids.iter().map(|id| id.service.name.as_str()).collect();
    assert_eq!(ids, ["battle", "battle-blue"]);
}

#[test]
fn only_who_has_an_identity_is_told_to_use_it() {
    let fixture = Fixture::yaml(BATTLE).with(battle(&[("", 9000)]));
    let published = published(&fixture);
    let secrets = |has_identity| {
        let node = node(has_identity);
        let snapshot = published.snapshot(&node, &Published::listeners(&node), None);
        let cluster = snapshot.iter(Kind::Cluster).next().unwrap().clone();
        cluster.secrets.len()
    };
    assert_eq!((secrets(true), secrets(false)), (2, 0));
}

#[test]
fn who_can_not_know_callers_denies_all_whom_it_should_deny_some_of() {
    let policies = [
        deny(
            "evil",
            "battle",
            "{from: [{services: [evil]}], methods: [POST]}",
        ),
        allow(
            "play",
            "battle",
            "{from: [{services: [gateway]}]}, {methods: [GET]}",
        ),
    ];
    let fixture = Fixture::yaml(&format!("{BATTLE}{}", policies.concat()));
    let rules = inbound(&fixture.with(battle(&[("", 9000)])));
    let known = without_callers(rules.clone(), true);
    assert_eq!(known, rules);
    let unknown = without_callers(rules, false);
    let [evil, play] = unknown.ports[&9000].access.policies.as_slice() else {
        panic!("{unknown:?}");
    };
    assert!(evil.rules[0].callers.is_empty() && evil.rules[0].methods == ["POST"]);
    assert!(play.rules.len() == 1 && play.rules[0].methods == ["GET"]);
}

#[test]
fn instances_without_identity_are_told_of_and_so_are_words_about_nobody() {
    let mut plain = battle(&[("", 9000)]);
    plain.mutual_tls = false;
    let told = |text: &str, instance: Option<Instance>| {
        let fixture = Fixture::yaml(text);
        let fixture = instance.into_iter().fold(fixture, Fixture::with);
        let findings = published(&fixture).findings.clone();
        findings
            .iter()
            .map(|f| f.message.clone())
            .collect::<Vec<_>>()
    };
    let policy = allow("play", "battle", "{from: [{services: [gateway]}]}");
    let both = format!("{BATTLE}{policy}");
    assert!(told(&both, Some(battle(&[("", 9000)]))).is_empty());
    let nameless = told(&both, Some(plain));
    assert!(
        nameless.len() == 1 && nameless[0].contains("have no identity"),
        "{nameless:?}"
    );
    let nobody = told(&peers("s", "nowhere", "mtls: {mode: Strict}"), None);
    assert_eq!(
        nobody,
        ["unattached: there is no Service default/nowhere (yet)"]
    );
    let twice = [
        peers("a", "namespace", "mtls: {mode: Strict}"),
        peers("b", "namespace", "mtls: {mode: \"Off\"}"),
    ];
    let twice = told(&twice.concat(), None);
    assert!(
        twice.len() == 1
            && twice[0].starts_with("conflicted: PeerAuthentication/default/a is older"),
        "{twice:?}"
    );
}

#[test]
fn a_sidecar_gets_its_own_listener_and_an_envoy_one_with_its_application() {
    let policy = allow("play", "battle", "{from: [{services: [gateway]}]}");
    let fixture = Fixture::yaml(&format!("{BATTLE}{policy}")).with(battle(&[("", 9000)]));
    let published = published(&fixture);
    let held = |node: &Node| {
        let snapshot = published.snapshot(node, &Published::listeners(node), None);
        let snapshot = Own::default().add(&snapshot, &published, node, None);
        let has = |kind| snapshot.get(kind, "inbound").is_some();
        (has(Kind::Listener), has(Kind::Cluster))
    };
    assert_eq!(held(&node(true)), (true, false));
    let mut envoy = node(true);
    envoy.agent = "envoy 1.40.0".into();
    assert_eq!(held(&envoy), (false, false), "it has not told where");
    envoy.tls.inbound = Some("0.0.0.0:15006".parse().unwrap());
    envoy.tls.app = Some("127.0.0.1:9000".parse().unwrap());
    assert_eq!(held(&envoy), (true, true));
    envoy.tls.has_identity = false;
    assert_eq!(held(&envoy), (true, true), "in plain text");
}

#[test]
fn a_strict_envoy_without_identity_takes_no_calls() {
    let strict = peers("n", "namespace", "mtls: {mode: Strict}");
    let published = published(&Fixture::yaml(&format!("{BATTLE}{strict}")));
    let mut envoy = node(false);
    envoy.agent = "envoy".into();
    assert_eq!(
        published.mesh.inbound_of_envoy(&published.world, &envoy),
        None
    );
}

#[test]
fn sidecars_with_the_same_rules_share_the_same_bytes() {
    let fixture = Fixture::yaml(BATTLE).with(battle(&[("", 9000)]));
    let published = published(&fixture);
    let other = Node {
        id: "default/match/m1".into(),
        service: ServiceName::new("default", "match"),
        instance: "m1".into(),
        ..node(true)
    };
    let (mut one, mut two) = (Own::default(), Own::default());
    let one = one.listener(&published, &node(true)).unwrap();
    let two = two.listener(&published, &other).unwrap();
    assert!(Arc::ptr_eq(one, two));
}
