//! One claim per rule; what a caller meets is written as `domains -> rule matches => action`.

mod envoy;
pub mod incremental;
mod lanes;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use phalanx_model::resource::{Action, PathMatch, Rule};
use phalanx_xds::Kind;

use super::*;
use crate::world::fixture::{Fixture, instance};

fn mesh(fixture: &Fixture) -> Mesh {
    Mesh::compile(&fixture.world())
}

/// The rules of one service port, a line each.
fn rules(mesh: &Mesh, service: &str, port: u16) -> Vec<String> {
    let table = mesh.rules.table("default", &mesh.catalog);
    let name = format!("{service}.default.svc.mesh:{port}");
    let host = table
        .hosts
        .iter()
        .find(|host| host.name == name)
        .unwrap_or_else(|| panic!("no host {name}"));
    host.rules.iter().map(rule).collect()
}

fn rule(rule: &Rule) -> String {
    let path = match &rule.matches.path {
        PathMatch::Exact(text) => format!("={text}"),
        PathMatch::Prefix(text) => format!("{text}*"),
        PathMatch::Regex(text) => format!("~{text}"),
    };
    let headers: String = rule
        .matches
        .headers
        .iter()
        .map(|h| format!("[{}]", h.name))
        .collect();
    let action = match &rule.action {
        Action::Respond(reason) => reason.to_string(),
        Action::Redirect(redirect) => format!("redirect {}", redirect.status),
        Action::Forward(forward) => {
            let backends = forward.backends.iter().map(|b| match &b.cluster {
                Some(cluster) => format!("{}:{}@{}", cluster.service.name, cluster.port, b.weight),
                None => format!("?@{}", b.weight),
            });
            backends.collect::<Vec<_>>().join(" ")
        }
    };
    format!("{path}{headers} => {action}")
}

fn endpoints(mesh: &Mesh, service: &str, port: u16) -> Vec<String> {
    let name = ClusterName::outbound(ServiceName::new("default", service), port);
    mesh.assignments[&name]
        .endpoints
        .iter()
        .map(|e| format!("{} {}", e.address, e.instance))
        .collect()
}

fn messages(mesh: &Mesh) -> Vec<String> {
    mesh.findings
        .iter()
        .map(|finding| format!("{}: {}", finding.document, finding.message))
        .collect()
}

const BATTLE: &str = "
apiVersion: v1
kind: Service
metadata: {name: battle}
spec:
  selector: {app: battle}
  ports: [{name: grpc, port: 80, targetPort: 9000, appProtocol: grpc}]
---
";

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports: [{{name: http, port: {port}}}]\n---\n"
    )
}

fn http_route(name: &str, parent: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: [{{kind: Service, name: {parent}}}]\n  rules:\n{rules}\n---\n"
    )
}

fn grpc_route(name: &str, parent: &str, rules: &str) -> String {
    http_route(name, parent, rules).replace("HTTPRoute", "GRPCRoute")
}

#[test]
fn a_service_without_routes_forwards_everything_to_itself() {
    let mesh = mesh(&Fixture::yaml(BATTLE));
    assert_eq!(rules(&mesh, "battle", 80), ["/* => battle:80@1"]);
    assert!(mesh.findings.is_empty());
}

/// Rules of `battle` in `default`, as callers in `namespace` see them.
fn seen_from(mesh: &Mesh, namespace: &str) -> Vec<String> {
    let table = mesh.rules.table(namespace, &mesh.catalog);
    let host = table
        .hosts
        .iter()
        .find(|host| host.name == "battle.default.svc.mesh:80");
    host.unwrap().rules.iter().map(rule).collect()
}

fn in_namespace(namespace: &str, route: &str) -> String {
    let meta = format!("namespace: {namespace}, name:");
    let route = route.replacen("name:", &meta, 1);
    route.replace(
        "{kind: Service, name: battle}",
        "{kind: Service, name: battle, namespace: default}",
    )
}

#[test]
fn consumer_routes_hold_for_callers_of_their_own_namespace_only_and_instead_of_the_producers() {
    let to = |path: &str| {
        format!(
            "  - matches: [{{path: {{type: Exact, value: {path}}}}}]\n    backendRefs: [{{name: battle, namespace: default, port: 80}}]\n"
        )
    };
    let producer = http_route("producer", "battle", &to("/produced"));
    let consumer = in_namespace("eu", &http_route("consumer", "battle", &to("/consumed")));
    let mesh = mesh(&Fixture::yaml(&[BATTLE, &producer, &consumer].concat()));
    assert!(mesh.findings.is_empty(), "{:?}", messages(&mesh));
    assert_eq!(seen_from(&mesh, "default"), ["=/produced => battle:80@1"]);
    assert_eq!(seen_from(&mesh, "us"), ["=/produced => battle:80@1"]);
    assert_eq!(seen_from(&mesh, "eu"), ["=/consumed => battle:80@1"]);
}

#[test]
fn a_consumer_route_alone_leaves_everybody_else_where_they_were() {
    let rules = "  - backendRefs: [{name: lobby, namespace: default, port: 80}]\n";
    let consumer = in_namespace("eu", &http_route("consumer", "battle", rules));
    let mesh = mesh(&Fixture::yaml(
        &[BATTLE, &service("lobby", 80), &consumer].concat(),
    ));
    assert_eq!(seen_from(&mesh, "default"), ["/* => battle:80@1"]);
    assert_eq!(seen_from(&mesh, "eu"), ["/* => lobby:80@1"]);
}

#[test]
fn a_consumers_http_route_is_not_outranked_by_the_producers_grpc_route() {
    let rules = "  - backendRefs: [{name: battle, namespace: default, port: 80}]\n";
    let producer = grpc_route("producer", "battle", rules);
    let consumer = in_namespace("eu", &http_route("consumer", "battle", rules));
    let mesh = mesh(&Fixture::yaml(&[BATTLE, &producer, &consumer].concat()));
    assert!(mesh.findings.is_empty(), "{:?}", messages(&mesh));
}

#[test]
fn callers_of_one_namespace_share_their_table_and_those_without_a_route_another() {
    let rules = "  - backendRefs: [{name: battle, namespace: default, port: 80}]\n";
    let consumer = in_namespace("eu", &http_route("consumer", "battle", rules));
    let fixture = Fixture::yaml(&[BATTLE, &consumer].concat());
    let published = Compiler::default().compile(Arc::new(fixture.world()));
    let table = |namespace: &str, service: &str| {
        let node = Node {
            service: ServiceName::new(namespace, service),
            ..node()
        };
        let snapshot = published.snapshot(&node, &Published::listeners(&node), None);
        snapshot.get(Kind::Routes, OUTBOUND).unwrap().clone()
    };
    assert!(Arc::ptr_eq(&table("eu", "a"), &table("eu", "b")));
    assert!(Arc::ptr_eq(&table("us", "a"), &table("asia", "a")));
    assert_ne!(table("eu", "a").version, table("us", "a").version);
}

#[test]
fn a_rule_is_hedged_only_where_all_of_its_backends_let_it() {
    let hedged = "apiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {name: p}\nspec: {targetRefs: [{kind: Service, name: battle}], hedging: {delay: 50ms}}\n---\n";
    let both = "  - backendRefs: [{name: battle, port: 80}, {name: lobby, port: 80}]\n";
    let one = "  - backendRefs: [{name: battle, port: 80}, {name: lobby, port: 80, weight: 0}]\n";
    for (rules, is_hedged) in [("", true), (both, false), (one, true)] {
        let route = match rules {
            "" => String::new(),
            rules => http_route("r", "battle", rules),
        };
        let mesh = mesh(&Fixture::yaml(
            &[BATTLE, &service("lobby", 80), hedged, &route].concat(),
        ));
        let table = mesh.rules.table("default", &mesh.catalog);
        let Action::Forward(forward) = &table.hosts[0].rules[0].action else {
            panic!("{table:?}");
        };
        assert_eq!(forward.hedging.is_some(), is_hedged, "{rules}");
    }
}

#[test]
fn a_host_is_named_short_only_within_its_namespace() {
    let mesh = mesh(&Fixture::yaml(BATTLE));
    let domains = |namespace: &str| {
        mesh.rules.table(namespace, &mesh.catalog).hosts[0]
            .domains
            .clone()
    };
    let full = [
        "battle.default",
        "battle.default.svc.mesh",
        "battle.default:80",
        "battle.default.svc.mesh:80",
    ];
    assert_eq!(
        domains("default"),
        ["battle", full[0], full[1], "battle:80", full[2], full[3]]
    );
    assert_eq!(domains("other"), full);
}

#[test]
fn without_a_port_80_or_the_only_one_is_meant() {
    let two = "apiVersion: v1\nkind: Service\nmetadata: {name: two}\nspec:\n  selector: {app: two}\n  ports: [{name: a, port: 80}, {name: b, port: 81}]\n---\n";
    let none = "apiVersion: v1\nkind: Service\nmetadata: {name: none}\nspec:\n  selector: {app: none}\n  ports: [{name: a, port: 8080}, {name: b, port: 8081}]\n---\n";
    let mesh = mesh(&Fixture::yaml(&format!(
        "{two}{none}{}",
        service("one", 9000)
    )));
    let bare: Vec<_> = mesh
        .rules
        .table("default", &mesh.catalog)
        .hosts
        .into_iter()
        .filter(|h| h.domains.iter().any(|d| !d.contains(':')))
        .map(|h| h.name)
        .collect();
    assert_eq!(
        bare,
        ["one.default.svc.mesh:9000", "two.default.svc.mesh:80"]
    );
}

#[test]
fn routes_of_one_port_are_merged_by_match_then_age_then_name() {
    let late = http_route(
        "a-late",
        "battle",
        "  - matches: [{path: {type: Exact, value: /x}}]\n    backendRefs: [{name: late, port: 80}]\n  - backendRefs: [{name: late, port: 80}]",
    );
    let early = http_route(
        "z-early",
        "battle",
        "  - backendRefs: [{name: early, port: 80}]\n  - matches: [{path: {type: PathPrefix, value: /long/er}}, {path: {type: PathPrefix, value: /long}}]\n    backendRefs: [{name: early, port: 80}]",
    );
    let services = format!("{BATTLE}{}{}", service("early", 80), service("late", 80));
    let fixture = Fixture::yaml(&services).and_yaml(&early).and_yaml(&late);
    assert_eq!(
        rules(&mesh(&fixture), "battle", 80),
        [
            "=/x => late:80@1",
            "/long/er* => early:80@1",
            "/long* => early:80@1",
            "/* => early:80@1",
            "/* => late:80@1"
        ]
    );
}

#[test]
fn equal_age_is_settled_by_name() {
    let text = format!(
        "{BATTLE}{}{}{}{}",
        service("b", 80),
        service("c", 80),
        http_route("y", "battle", "  - backendRefs: [{name: b, port: 80}]"),
        http_route("x", "battle", "  - backendRefs: [{name: c, port: 80}]")
    );
    assert_eq!(
        rules(&mesh(&Fixture::yaml(&text)), "battle", 80),
        ["/* => c:80@1", "/* => b:80@1"]
    );
}

#[test]
fn a_parent_port_limits_a_route_to_it() {
    let two = "apiVersion: v1\nkind: Service\nmetadata: {name: two}\nspec:\n  selector: {app: two}\n  ports: [{name: a, port: 80}, {name: b, port: 81}]\n---\n";
    let route = http_route("r", "two", "  - backendRefs: [{name: two, port: 80}]")
        .replace("name: two}]\n  rules", "name: two, port: 81}]\n  rules");
    let mesh = mesh(&Fixture::yaml(&format!("{two}{route}")));
    assert_eq!(rules(&mesh, "two", 80), ["/* => two:80@1"]);
    assert_eq!(rules(&mesh, "two", 81), ["/* => two:80@1"]);
    let table = mesh.rules.table("default", &mesh.catalog);
    assert_eq!(table.hosts[1].rules[0].name, "HTTPRoute/default/r/0");
}

#[test]
fn a_grpc_route_outranks_http_routes_which_are_reported() {
    let http = http_route("h", "battle", "  - backendRefs: [{name: battle, port: 80}]");
    let grpc = grpc_route(
        "g",
        "battle",
        "  - matches: [{method: {service: arena.Battle}}]\n    backendRefs: [{name: battle, port: 80}]",
    );
    let mesh = mesh(&Fixture::yaml(&format!("{BATTLE}{http}{grpc}")));
    assert_eq!(
        rules(&mesh, "battle", 80),
        ["/arena.Battle* => battle:80@1"]
    );
    assert_eq!(
        messages(&mesh),
        [
            "HTTPRoute/default/h: conflicted: GRPCRoute/default/g outranks it on port 80 of Service default/battle"
        ]
    );
}

#[test]
fn a_missing_backend_keeps_its_share() {
    let route = http_route(
        "r",
        "battle",
        "  - backendRefs: [{name: battle, port: 80, weight: 90}, {name: ghost, port: 80, weight: 10}, {name: battle, port: 99, weight: 1}]",
    );
    assert_eq!(
        rules(
            &mesh(&Fixture::yaml(&format!("{BATTLE}{route}"))),
            "battle",
            80
        ),
        ["/* => battle:80@90 ?@10 ?@1"]
    );
}

#[test]
fn no_weight_and_no_backend_are_answered_by_the_proxy() {
    let route = http_route(
        "r",
        "battle",
        "  - matches: [{path: {value: /zero}}]\n    backendRefs: [{name: battle, port: 80, weight: 0}]\n  - matches: [{path: {value: /none}}]",
    );
    assert_eq!(
        rules(
            &mesh(&Fixture::yaml(&format!("{BATTLE}{route}"))),
            "battle",
            80
        ),
        ["/zero* => invalid_backend", "/none* => invalid_backend"]
    );
}

#[test]
fn a_redirect_needs_no_backend() {
    let route = http_route(
        "r",
        "battle",
        "  - filters: [{type: RequestRedirect, requestRedirect: {hostname: example.com, statusCode: 301}}]",
    );
    assert_eq!(
        rules(
            &mesh(&Fixture::yaml(&format!("{BATTLE}{route}"))),
            "battle",
            80
        ),
        ["/* => redirect 301"]
    );
}

#[test]
fn a_registered_service_needs_no_manifest() {
    let fixture = Fixture::default()
        .with(instance("physics", "p1", "127.0.0.7:15006", &[("", 7000)]))
        .with(instance("physics", "p2", "127.0.0.8:15006", &[("", 7001)]));
    let mesh = mesh(&fixture);
    assert_eq!(rules(&mesh, "physics", 7000), ["/* => physics:7000@1"]);
    // A single port takes traffic for any.
    assert_eq!(
        endpoints(&mesh, "physics", 7000),
        ["127.0.0.7:15006 p1", "127.0.0.8:15006 p2"]
    );
    assert_eq!(
        endpoints(&mesh, "physics", 7001),
        endpoints(&mesh, "physics", 7000)
    );
}

#[test]
fn a_manifest_takes_the_place_of_what_is_registered() {
    let fixture =
        Fixture::yaml(BATTLE).with(instance("battle", "b1", "127.0.0.5:15006", &[("", 9000)]));
    let mesh = mesh(&fixture);
    let ports: Vec<_> = mesh.catalog.services[&ServiceName::new("default", "battle")]
        .keys()
        .collect();
    assert_eq!(ports, [&80]);
    assert_eq!(endpoints(&mesh, "battle", 80), ["127.0.0.5:15006 b1"]);
}

#[test]
fn a_selector_looks_at_labels_within_the_namespace() {
    let v2 = "apiVersion: v1\nkind: Service\nmetadata: {name: battle-v2}\nspec:\n  selector: {app: battle, version: v2}\n  ports: [{port: 80}]\n---\n";
    let zone = "apiVersion: v1\nkind: Service\nmetadata: {name: by-zone}\nspec:\n  selector: {zone: az1}\n  ports: [{port: 80}]\n---\n";
    let mut elsewhere = instance("battle", "b3", "127.0.0.7:1", &[("", 9000)]);
    elsewhere.id.service.namespace = "other".into();
    let mut canary = instance("battle", "b2", "127.0.0.6:1", &[("", 9000)]);
    canary.labels.extend([
        ("version".into(), "v2".into()),
        ("zone".into(), "az1".into()),
    ]);
    let fixture = Fixture::yaml(&format!("{BATTLE}{v2}{zone}"))
        .with(instance("battle", "b1", "127.0.0.5:1", &[("", 9000)]))
        .with(canary)
        .with(elsewhere);
    let mesh = mesh(&fixture);
    assert_eq!(
        endpoints(&mesh, "battle", 80),
        ["127.0.0.5:1 b1", "127.0.0.6:1 b2"]
    );
    assert_eq!(endpoints(&mesh, "battle-v2", 80), ["127.0.0.6:1 b2"]);
    assert_eq!(endpoints(&mesh, "by-zone", 80), ["127.0.0.6:1 b2"]);
    let name = ClusterName::outbound(ServiceName::new("default", "battle-v2"), 80);
    assert_eq!(mesh.assignments[&name].endpoints[0].version, "v2");
}

#[test]
fn a_target_port_picks_by_number_or_name() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 81, targetPort: admin}, {name: c, port: 82, targetPort: 1}]\n---\n";
    let mut two = instance(
        "web",
        "w1",
        "127.0.0.5:1",
        &[("http", 8080), ("admin", 9090)],
    );
    two.ports[1].address = "127.0.0.5:2".parse().unwrap();
    let mesh = mesh(&Fixture::yaml(text).with(two));
    assert_eq!(endpoints(&mesh, "web", 80), ["127.0.0.5:1 w1"]);
    assert_eq!(endpoints(&mesh, "web", 81), ["127.0.0.5:2 w1"]);
    assert!(endpoints(&mesh, "web", 82).is_empty());
    // Behind one sidecar they have one address: the endpoint says which of them is meant.
    let target = |port| {
        let name = ClusterName::outbound(ServiceName::new("default", "web"), port);
        mesh.assignments[&name].endpoints[0].target
    };
    assert_eq!((target(80), target(81)), (8080, 9090));
}

#[test]
fn endpoint_slices_add_endpoints_that_do_not_register() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: battle-1, labels: {kubernetes.io/service-name: battle}}\naddressType: IPv4\nports: [{name: grpc, port: 7777}]\nendpoints:\n- addresses: [127.0.0.3]\n- addresses: [127.0.0.4]\n  conditions: {ready: false}\n---\n";
    let lonely = slice
        .replace("battle-1", "x")
        .replace("service-name: battle", "service-name: ghost");
    let mesh = mesh(
        &Fixture::yaml(&format!("{BATTLE}{slice}{lonely}")).with(instance(
            "battle",
            "b1",
            "127.0.0.3:7777",
            &[("", 9000)],
        )),
    );
    assert_eq!(
        endpoints(&mesh, "battle", 80),
        ["127.0.0.3:7777 b1"],
        "one address once, as it registered"
    );
    assert!(messages(&mesh)[0].starts_with("EndpointSlice/default/x: unattached: no Service"));
}

#[test]
fn of_two_policies_the_older_wins_and_the_other_is_reported() {
    let policy = |name: &str, most: u32| {
        format!(
            "apiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: {name}}}\nspec:\n  targetRefs: [{{kind: Service, name: battle}}]\n  circuitBreaker: {{maxConnections: {most}}}\n---\n"
        )
    };
    let fixture = Fixture::yaml(BATTLE)
        .and_yaml(&policy("z-first", 7))
        .and_yaml(&policy("a-second", 9));
    let mesh = mesh(&fixture);
    let cluster = mesh.clusters.values().next().unwrap();
    assert_eq!(cluster.circuit_breaker.max_connections, 7);
    assert_eq!(
        messages(&mesh),
        [
            "BackendPolicy/default/a-second: conflicted: BackendPolicy/default/z-first is older and already sets the policy of Service default/battle"
        ]
    );
}

#[test]
fn a_protocol_is_told_by_service_then_instance_then_port_name() {
    use phalanx_model::instance::Protocol;
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{name: tcp-told, port: 1, appProtocol: http}, {name: grpc-x, port: 2}, {name: plain, port: 3}]\n---\n";
    let protocols = |fixture: Fixture| -> Vec<Protocol> {
        mesh(&fixture)
            .clusters
            .values()
            .map(|c| c.protocol)
            .collect()
    };
    assert_eq!(
        protocols(Fixture::yaml(text)),
        [Protocol::Http1, Protocol::Grpc, Protocol::Auto]
    );
    let mut told = instance("web", "w1", "127.0.0.5:1", &[("", 80)]);
    told.ports[0].protocol = Protocol::H2c;
    assert_eq!(
        protocols(Fixture::yaml(text).with(told)),
        [Protocol::Http1, Protocol::H2c, Protocol::H2c]
    );
}

#[test]
fn tcp_ports_have_clusters_and_no_routes() {
    let text = service("db", 5432).replace("name: http", "appProtocol: tcp, name: db");
    let route = http_route("r", "db", "  - backendRefs: [{name: db, port: 5432}]");
    let mesh = mesh(&Fixture::yaml(&format!("{text}{route}")));
    assert!(mesh.rules.table("default", &mesh.catalog).hosts.is_empty());
    assert_eq!(mesh.clusters.len(), 1);
    assert_eq!(
        messages(&mesh),
        [
            "HTTPRoute/default/r: port 5432 of Service default/db is plain TCP, so no HTTP rule holds there"
        ]
    );
}

#[test]
fn a_parent_that_does_not_exist_is_reported_and_harms_nobody() {
    let route = http_route("r", "ghost", "  - backendRefs: [{name: battle, port: 80}]");
    let mesh = mesh(&Fixture::yaml(&format!("{BATTLE}{route}")));
    assert_eq!(rules(&mesh, "battle", 80), ["/* => battle:80@1"]);
    assert!(messages(&mesh)[0].contains("its parent Service default/ghost does not exist"));
}

#[test]
fn a_world_compiles_alike_every_time() {
    let fixture = arena();
    assert_eq!(mesh(&fixture), mesh(&fixture));
}

#[test]
fn only_what_changed_is_encoded_anew() {
    use phalanx_xds::Kind;
    let mut compiler = Compiler::default();
    let node = node();
    let listeners = Published::listeners(&node);
    let before = compiler
        .compile(Arc::new(arena().world()))
        .snapshot(&node, &listeners, None);
    let more = arena().with(instance("battle", "b9", "127.0.0.9:15006", &[("", 9000)]));
    let after = compiler
        .compile(Arc::new(more.world()))
        .snapshot(&node, &listeners, None);
    for kind in [Kind::Cluster, Kind::Listener, Kind::Routes] {
        assert!(before.shares(kind, &after), "{kind}");
    }
    let kept = before
        .iter(Kind::Endpoints)
        .filter(|e| {
            after
                .get(Kind::Endpoints, &e.name)
                .is_some_and(|a| Arc::ptr_eq(a, e))
        })
        .count();
    assert_eq!(before.len(Kind::Endpoints) - kept, 1);
}

#[test]
fn encoding_is_the_same_in_another_process() {
    let versions = || {
        let node = node();
        let snapshot = Compiler::default()
            .compile(Arc::new(arena().world()))
            .snapshot(&node, &Published::listeners(&node), None);
        phalanx_xds::Kind::ALL
            .iter()
            .flat_map(|kind| {
                snapshot
                    .iter(*kind)
                    .map(|e| e.version.clone())
                    .collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(versions(), versions());
}

#[test]
fn the_arena_compiles_to_its_golden() {
    let mesh = mesh(&arena());
    let compiled = mesh.resources(&node());
    let mut text = String::new();
    for listener in &compiled.listeners {
        writeln!(text, "listener {} {}", listener.name, listener.address).unwrap();
    }
    for table in &compiled.tables {
        for host in &table.hosts {
            writeln!(text, "host {}\n  {}", host.name, host.domains.join(" ")).unwrap();
            host.rules
                .iter()
                .for_each(|r| writeln!(text, "  {} {}", r.name, rule(r)).unwrap());
        }
    }
    for cluster in &compiled.clusters {
        writeln!(
            text,
            "cluster {} {} {:?}",
            cluster.name,
            cluster.protocol.as_str(),
            cluster.load_balancer
        )
        .unwrap();
    }
    for set in &compiled.assignments {
        let endpoints: Vec<_> = set
            .endpoints
            .iter()
            .map(|e| format!("{}={}", e.address, e.version))
            .collect();
        writeln!(text, "endpoints {} {}", set.cluster, endpoints.join(" ")).unwrap();
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/arena.txt");
    let expected = std::fs::read_to_string(golden).unwrap_or_default();
    if text != expected {
        let seen = std::env::temp_dir().join("phalanx-arena-golden.txt");
        std::fs::write(&seen, &text).unwrap();
        panic!(
            "the compilation differs from {golden}; what it is now stands in {}",
            seen.display()
        );
    }
}

fn arena() -> Fixture {
    let v = |n: u32| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: battle-v{n}}}\nspec:\n  selector: {{app: battle, version: v{n}}}\n  ports: [{{name: grpc, port: 80, appProtocol: grpc}}]\n---\n"
        )
    };
    let split = grpc_route(
        "battle",
        "battle",
        "  - backendRefs: [{name: battle-v1, port: 80, weight: 90}, {name: battle-v2, port: 80, weight: 10}]",
    );
    let version = |n: &str, id: &str, address: &str| {
        let mut instance = instance("battle", id, address, &[("", 9000)]);
        instance.labels.insert("version".into(), n.into());
        instance
    };
    Fixture::yaml(&format!(
        "{BATTLE}{}{}{split}{}",
        v(1),
        v(2),
        service("gateway", 8080)
    ))
    .with(version("v1", "b1", "127.0.0.5:15006"))
    .with(version("v2", "b2", "127.0.0.6:15006"))
    .with(instance("physics", "p1", "127.0.0.7:15006", &[("", 7000)]))
}

pub(super) fn node() -> Node {
    Node {
        id: "default/match/m1".into(),
        service: ServiceName::new("default", "match"),
        version: String::new(),
        zone: String::new(),
        instance: "m1".into(),
        outbound: Some("127.0.0.4:15001".parse().unwrap()),
        agent: "phalanx".into(),
        tls: Default::default(),
        edge: None,
        udp: Vec::new(),
    }
}
