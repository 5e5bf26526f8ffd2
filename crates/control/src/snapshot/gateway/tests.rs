//! Which route is attached where, and what that comes to: a line per chain and per host.

use phalanx_model::resource::Action;

use super::*;
use crate::snapshot::Edge;
use crate::world::fixture::Fixture;

const EDGE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: phalanx
  listeners:
  - {name: any, port: 80, protocol: HTTP}
  - {name: own, port: 80, protocol: HTTP, hostname: own.example.com}
  - {name: secure, port: 443, protocol: HTTPS, hostname: '*.example.com', tls: {certificateRefs: [{name: web}]}}
  - {name: through, port: 443, protocol: TLS, hostname: pass.example.com, tls: {mode: Passthrough}}
  - {name: raw, port: 9000, protocol: TCP}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: tcp}
spec: {ports: [{port: 1, appProtocol: tcp}]}
";

fn route(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "TCPRoute" => "v1alpha2",
        _ => "v1",
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn mesh(routes: &[String]) -> Mesh {
    let fixture = Fixture::yaml(EDGE);
    let fixture = routes
        .iter()
        .fold(fixture, |fixture, text| fixture.and_yaml(text));
    Mesh::compile(&fixture.world())
}

fn compiled(mesh: &Mesh) -> &Compiled {
    &mesh.gateways.0[&ServiceName::new("default", "edge")]
}

/// `table host: rule rule`
fn hosts(mesh: &Mesh) -> Vec<String> {
    let tables = compiled(mesh).tables.iter();
    let line = |table: &str, host: &VirtualHost| {
        let rules: Vec<&str> = host.rules.iter().map(|rule| &*rule.name).collect();
        let table = table.strip_prefix("gateway/default/edge/").unwrap();
        format!("{table} {}: {}", host.name, rules.join(" "))
    };
    tables
        .flat_map(|table| table.hosts.iter().map(|host| line(&table.name, host)))
        .collect()
}

fn messages(mesh: &Mesh) -> Vec<String> {
    let findings = mesh.findings.iter();
    findings
        .map(|finding| format!("{}: {}", finding.document.name, finding.message))
        .collect()
}

const TO_WEB: &str = "rules: [{backendRefs: [{name: web, port: 80}]}]";

#[test]
fn a_name_is_the_narrowest_listeners_and_rules_of_narrower_names_come_first() {
    let mesh = mesh(&[
        route(
            "HTTPRoute",
            "wide",
            &format!("{{parentRefs: [{{name: edge, sectionName: secure}}], {TO_WEB}}}"),
        ),
        route(
            "HTTPRoute",
            "play",
            &format!(
                "{{parentRefs: [{{name: edge}}], hostnames: [play.example.com, own.example.com], {TO_WEB}}}"
            ),
        ),
    ]);
    assert_eq!(
        hosts(&mesh),
        [
            "80 own.example.com: HTTPRoute/default/play/0",
            "80 play.example.com: HTTPRoute/default/play/0",
            "443/secure *.example.com: HTTPRoute/default/wide/0",
            "443/secure own.example.com: HTTPRoute/default/play/0 HTTPRoute/default/wide/0",
            "443/secure play.example.com: HTTPRoute/default/play/0 HTTPRoute/default/wide/0",
        ]
    );
    assert_eq!(messages(&mesh), Vec::<String>::new());
}

#[test]
fn a_route_that_is_not_attached_is_told_why() {
    let foreign = route(
        "HTTPRoute",
        "foreign",
        &format!("{{parentRefs: [{{name: edge, namespace: default}}], {TO_WEB}}}"),
    );
    let foreign = foreign.replace("{name: foreign}", "{name: foreign, namespace: other}");
    let mesh = mesh(&[
        route(
            "HTTPRoute",
            "section",
            &format!("{{parentRefs: [{{name: edge, sectionName: nope}}], {TO_WEB}}}"),
        ),
        route(
            "HTTPRoute",
            "kind",
            &format!("{{parentRefs: [{{name: edge, port: 9000}}], {TO_WEB}}}"),
        ),
        route(
            "HTTPRoute",
            "host",
            &format!(
                "{{parentRefs: [{{name: edge, sectionName: own}}], hostnames: [a.org], {TO_WEB}}}"
            ),
        ),
        route(
            "HTTPRoute",
            "nobody",
            &format!("{{parentRefs: [{{name: nobody}}], {TO_WEB}}}"),
        ),
        foreign,
    ]);
    let told = messages(&mesh);
    let has = |text: &str| {
        assert!(
            told.iter().any(|one| one.contains(text)),
            "{text}: {told:#?}"
        )
    };
    has("section: unattached: Gateway default/edge has no listener `nope`");
    has(
        "kind: unattached: Gateway default/edge takes no HTTPRoute of namespace default at listener on port 9000",
    );
    has("host: unattached: Gateway default/edge has no listener for its hostnames");
    has("nobody: unattached: its parent Gateway default/nobody does not exist");
    has("foreign: unattached: Gateway default/edge takes no HTTPRoute of namespace other");
    assert_eq!(told.len(), 5);
}

#[test]
fn a_grpc_route_outranks_and_of_streams_the_oldest_holds() {
    let stream = |name: &str, kind: &str, section: &str, rest: &str| {
        let spec = format!("{{parentRefs: [{{name: edge, sectionName: {section}}}], {rest}}}");
        route(kind, name, &spec)
    };
    let to = "rules: [{backendRefs: [{name: tcp, port: 1}, {name: web, port: 80}]}]";
    let mesh = mesh(&[
        stream("one", "TCPRoute", "raw", to),
        stream("two", "TCPRoute", "raw", to),
        stream(
            "pass",
            "TLSRoute",
            "through",
            "rules: [{backendRefs: [{name: tcp, port: 1}]}]",
        ),
        route(
            "HTTPRoute",
            "web",
            &format!("{{parentRefs: [{{name: edge, sectionName: own}}], {TO_WEB}}}"),
        ),
        route(
            "GRPCRoute",
            "rpc",
            &format!("{{parentRefs: [{{name: edge, sectionName: own}}], {TO_WEB}}}"),
        ),
    ]);
    let told = messages(&mesh);
    let has = |text: &str| {
        assert!(
            told.iter().any(|one| one.contains(text)),
            "{text}: {told:#?}"
        )
    };
    has("two: conflicted: TCPRoute/default/one is older and has listener `raw`");
    has("one: backend Service default/web speaks HTTP on port 80");
    has("web: conflicted: GRPCRoute/default/rpc outranks it at listener `own`");
    let compiled = compiled(&mesh);
    let tcp = ClusterName::outbound(ServiceName::new("default", "tcp"), 1);
    let share = |cluster| Share { cluster, weight: 1 };
    let target = &compiled.ports[&9000][0].target;
    assert_eq!(
        *target,
        ChainTarget::Stream(vec![share(Some(tcp.clone())), share(None)])
    );
    let chains = &compiled.ports[&443];
    assert_eq!(chains[1].names, ["pass.example.com"]);
    assert_eq!(
        chains[1].target,
        ChainTarget::Stream(vec![share(Some(tcp))])
    );
}

#[test]
fn what_no_route_is_for_is_closed_and_a_port_of_tcp_without_one_is_not_opened() {
    let mesh = mesh(&[]);
    let compiled = compiled(&mesh);
    assert_eq!(
        compiled.ports.keys().copied().collect::<Vec<_>>(),
        [80, 443]
    );
    let chains = &compiled.ports[&443];
    assert_eq!(chains[1].target, ChainTarget::Stream(Vec::new()));
}

#[test]
fn a_backend_that_changes_changes_the_gateway_as_a_whole_compilation_would() {
    let spec = format!(
        "{{parentRefs: [{{name: edge}}], {}}}",
        TO_WEB.replace("web", "later")
    );
    let fixture = Fixture::yaml(EDGE).and_yaml(&route("HTTPRoute", "play", &spec));
    let before = fixture.world();
    let old = Mesh::compile(&before);
    let service = EDGE
        .split("---")
        .nth(1)
        .unwrap()
        .replace("{name: web}", "{name: later}");
    let after = fixture.and_yaml(&service).world();
    let new = old.advance(&before, &after);
    assert_eq!(new.gateways, Mesh::compile(&after).gateways);
    assert_ne!(new.gateways, old.gateways);
    let rule = &compiled(&new).tables[0].hosts[0].rules[0];
    let Action::Forward(forward) = &rule.action else {
        panic!("{rule:?}")
    };
    assert!(forward.backends[0].cluster.is_some());
}

#[test]
fn a_data_plane_listens_where_it_was_told() {
    let mesh = mesh(&[]);
    let mut node = Node::known(
        "default/edge/1".into(),
        ServiceName::new("default", "edge"),
        String::new(),
        "1".into(),
        "phalanx".into(),
    );
    let at = |node: &Node| -> Vec<String> {
        let listeners = compiled(&mesh).listeners(node).into_iter();
        listeners.map(|listener| listener.name).collect()
    };
    node.edge = Some(Edge::default());
    assert_eq!(at(&node)[0], "gateway/default/edge/0.0.0.0:80");
    node.edge = Some(Edge {
        bind: Some([127, 0, 0, 1].into()),
        ..Edge::default()
    });
    assert_eq!(at(&node)[0], "gateway/default/edge/127.0.0.1:80");
}
