use std::sync::Arc;

use phalanx_model::ClusterName;
use phalanx_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost_types::{Struct, Value};

use super::super::Compiler;
use super::*;
use crate::world::fixture::{Fixture, instance};

fn wire(metadata: &[(&str, ValueKind)]) -> core::Node {
    let words = [("service", "gateway"), ("namespace", "default")];
    let text = |text: &str| ValueKind::StringValue(text.to_owned());
    let words = words.map(|(key, value)| (key, text(value)));
    let outbound = ("outbound", text("127.0.0.1:15001"));
    let all = words.iter().chain([&outbound]).chain(metadata);
    let value = |kind: &ValueKind| Value {
        kind: Some(kind.clone()),
    };
    core::Node {
        id: "default/gateway/1".into(),
        metadata: Some(Struct {
            fields: all.map(|(k, v)| ((*k).to_owned(), value(v))).collect(),
        }),
        ..Default::default()
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports: [{{port: {port}, appProtocol: http}}]\n---\n"
    )
}

fn route(parent: &str, backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {parent}}}\nspec:\n  parentRefs: [{{kind: Service, name: {parent}}}]\n  rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]\n---\n"
    )
}

/// A sidecar on demand, between its session and a compiler.
struct Sidecar {
    demand: Demand,
    node: Node,
    session: Session,
    compiler: Compiler,
    published: Published,
}

impl Sidecar {
    fn of(fixture: &Fixture) -> Self {
        let wire = wire(&[("demand", ValueKind::BoolValue(true))]);
        let node = Node::parse(Some(&wire)).unwrap();
        let mut session = Session::delta();
        session.trust_order();
        let mut compiler = Compiler::default();
        Self {
            demand: Demand::asked(Some(&wire), &node).unwrap(),
            node,
            session,
            published: compiler.compile(Arc::new(fixture.world())),
            compiler,
        }
    }

    fn publish(&mut self, fixture: &Fixture) {
        self.published = self.compiler.compile(Arc::new(fixture.world()));
    }

    fn ask(&mut self, kind: Kind, more: &[&str], less: &[&str]) {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: own(more),
            resource_names_unsubscribe: own(less),
            ..Default::default()
        };
        self.session.on_request(request).unwrap();
    }

    fn snapshot(&mut self) -> Snapshot {
        self.demand
            .snapshot(&self.published, &self.node, &self.session)
    }

    /// `CDS a | EDS a | RDS a -> b`, ports and the suffix of names left out.
    fn told(&mut self) -> String {
        let snapshot = self.snapshot();
        let mut parts = Vec::new();
        for kind in [Kind::Cluster, Kind::Endpoints] {
            let names = snapshot.iter(kind).map(|r| short(&r.name));
            parts.push(format!("{kind} {}", names.collect::<Vec<_>>().join(" ")));
        }
        for table in snapshot.iter(Kind::Routes) {
            let refs: Vec<String> = table.refs.iter().map(|name| short(name)).collect();
            parts.push(format!("{} -> {}", table.name, refs.join(" ")));
        }
        parts.join(" | ")
    }
}

fn short(cluster: &str) -> String {
    let name: ClusterName = cluster.parse().unwrap();
    name.service.name
}

fn mesh() -> Fixture {
    let all = [
        service("shop", 80),
        service("cart", 80),
        service("game", 80),
    ]
    .concat();
    let cart = instance("cart", "c1", "10.0.0.1:15006", &[("http", 80)]);
    Fixture::yaml(&format!("{all}{}", route("shop", "cart"))).with(cart)
}

#[test]
fn only_who_says_so_gets_what_it_asks_for_and_no_more() {
    for told in [
        None,
        Some(ValueKind::BoolValue(false)),
        Some(ValueKind::StringValue("true".into())),
    ] {
        let words: Vec<_> = told.into_iter().map(|kind| ("demand", kind)).collect();
        let wire = wire(&words);
        let node = Node::parse(Some(&wire)).unwrap();
        assert!(Demand::asked(Some(&wire), &node).is_none(), "{words:?}");
    }
}

#[test]
fn a_sidecar_that_calls_nobody_holds_its_listener_alone() {
    let mut sidecar = Sidecar::of(&mesh());
    let snapshot = sidecar.snapshot();
    for kind in [Kind::Cluster, Kind::Endpoints, Kind::Routes] {
        assert_eq!(snapshot.len(kind), 0, "{kind}");
    }
    let listener = snapshot.get(Kind::Listener, OUTBOUND).unwrap();
    assert_eq!(listener.refs, [DEMAND]);
}

#[test]
fn a_host_brings_what_its_rules_name_and_takes_it_away() {
    let mut sidecar = Sidecar::of(&mesh());
    sidecar.ask(Kind::Routes, &["outbound/shop"], &[]);
    assert_eq!(
        sidecar.told(),
        "CDS cart | EDS cart | outbound/shop -> cart"
    );
    sidecar.ask(Kind::Routes, &["outbound/cart.default.svc.mesh:80"], &[]);
    assert_eq!(
        sidecar.told(),
        "CDS cart | EDS cart | outbound/cart.default.svc.mesh:80 -> cart | outbound/shop -> cart"
    );
    sidecar.ask(Kind::Routes, &[], &["outbound/shop"]);
    sidecar.ask(Kind::Routes, &[], &["outbound/cart.default.svc.mesh:80"]);
    assert_eq!(sidecar.told(), "CDS  | EDS ");
}

#[test]
fn a_cluster_asked_for_by_name_comes_without_a_host() {
    let mut sidecar = Sidecar::of(&mesh());
    sidecar.ask(
        Kind::Cluster,
        &["*", "outbound|80|cart.default.svc.mesh"],
        &[],
    );
    assert_eq!(sidecar.told(), "CDS cart | EDS cart");
}

#[test]
fn a_host_that_does_not_exist_is_an_answer_and_one_that_comes_to_be_another() {
    let fixture = mesh();
    let mut sidecar = Sidecar::of(&fixture);
    sidecar.ask(Kind::Routes, &["outbound/late", "other"], &[]);
    assert_eq!(sidecar.told(), "CDS  | EDS  | outbound/late -> ");
    let none = sidecar.snapshot();
    sidecar.publish(&fixture.and_yaml(&service("late", 80)));
    assert_eq!(
        sidecar.told(),
        "CDS late | EDS late | outbound/late -> late"
    );
    let there = sidecar.snapshot();
    assert!(!none.same_content(&there));
}

#[test]
fn names_mean_what_they_mean_in_the_table_of_all_hosts() {
    let fixture = Fixture::yaml(&[service("shop", 80), service("game", 9000)].concat());
    let published = Compiler::default().compile(Arc::new(fixture.world()));
    let catalog = &published.mesh.catalog;
    let names = |namespace: &str| -> BTreeSet<String> {
        let table = published.mesh.rules.table(namespace, catalog);
        let hosts = table.hosts.iter();
        hosts.flat_map(|host| host.domains.clone()).collect()
    };
    for namespace in ["default", "elsewhere"] {
        for name in [
            "shop",
            "shop:80",
            "shop:81",
            "shop.default",
            "shop.default:80",
            "shop.default.svc.mesh",
            "shop.default.svc.mesh:80",
            "shop.elsewhere",
            "shop.svc.mesh",
            "shop.default.svc",
            "shop.default.svc.mesh.",
            "game",
            "game:9000",
            "game:80",
            "game.default.svc.mesh:09000",
            "",
            ":",
            "[::1]:80",
            "nobody",
        ] {
            let table = format!("{DEMAND}{name}");
            let found = published.hosts.table(&table, namespace, &published.mesh);
            let exists = !found.unwrap().refs.is_empty();
            let wanted = names(namespace).contains(name);
            assert_eq!(exists, wanted, "`{name}` in {namespace}");
        }
    }
}

#[test]
fn what_does_not_concern_it_leaves_a_snapshot_shared() {
    let fixture = mesh();
    let mut sidecar = Sidecar::of(&fixture);
    sidecar.ask(Kind::Routes, &["outbound/shop"], &[]);
    let before = sidecar.snapshot();
    let game = instance("game", "g1", "10.0.0.2:15006", &[("http", 80)]);
    let fixture = fixture.and_yaml(&service("other", 80)).with(game);
    sidecar.publish(&fixture);
    let after = sidecar.snapshot();
    assert!(after.revision > before.revision);
    for kind in Kind::ALL {
        assert!(after.shares(kind, &before), "{kind}");
    }
    let cart = instance("cart", "c2", "10.0.0.3:15006", &[("http", 80)]);
    sidecar.publish(&fixture.with(cart));
    let moved = sidecar.snapshot();
    assert!(!moved.shares(Kind::Endpoints, &after) && moved.shares(Kind::Routes, &after));
}

#[test]
fn a_table_is_encoded_once_for_all_and_forgotten_with_the_last_who_asks() {
    let fixture = mesh();
    let published = Compiler::default().compile(Arc::new(fixture.world()));
    let table = |name: &str| {
        published
            .hosts
            .table(name, "default", &published.mesh)
            .unwrap()
    };
    let one = table("outbound/shop");
    assert!(Arc::ptr_eq(&one, &table("outbound/shop")));
    assert!(!Arc::ptr_eq(&one, &table("outbound/shop:80")));
    for number in 0..3 * SWEEP_MIN {
        table(&format!("outbound/no-{number}"));
    }
    let made = published.hosts.0.lock().unwrap();
    assert!(made.tables.len() <= SWEEP_MIN + 1, "{}", made.tables.len());
    assert!(made.tables.keys().any(|(name, ..)| name == "outbound/shop"));
}
