use std::time::Duration;

use phalanx_model::resource::{
    Action, Backend, Endpoint, Forward, HeaderEdit, Health, PathRewrite, Retry, Rewrite,
    RouteTable, Rule, RuleMatch, VirtualHost,
};

use super::*;
use crate::balance::Evidence;

fn cluster_name(service: &str) -> ClusterName {
    ClusterName::outbound(ServiceName::new("default", service), 80)
}

fn backend(service: &str, weight: u32) -> Backend {
    Backend {
        cluster: Some(cluster_name(service)),
        weight,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    }
}

fn table(backends: Vec<Backend>, edit: HeaderEdit) -> RouteTable {
    let forward = Forward {
        backends,
        rewrite: Rewrite::default(),
        request_timeout: Some(Duration::ZERO),
        attempt_timeout: None,
        retry: Retry::default(),
        hash_on: None,
        ..Forward::default()
    };
    let rule = Rule {
        name: "HTTPRoute/default/r/0".into(),
        matches: RuleMatch::default(),
        request_headers: edit,
        response_headers: HeaderEdit::default(),
        action: Action::Forward(forward),
    };
    let host = VirtualHost {
        name: "h".into(),
        domains: vec!["battle".into()],
        rules: vec![rule],
    };
    RouteTable {
        name: "outbound".into(),
        hosts: vec![host],
    }
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        weight: 1,
        zone: String::new(),
        is_far: false,
        health: Health::Healthy,
        version: "v1".into(),
        instance: "i".into(),
        target: 0,
        mutual_tls: false,
        datagrams: false,
        token: String::new(),
    }
}

fn resources(addresses: &[&str]) -> Resources {
    let name = cluster_name("battle");
    let mut resources = Resources::default();
    let compiled = compile_table(&table(
        vec![backend("battle", 1), backend("absent", 1)],
        HeaderEdit::default(),
    ))
    .unwrap();
    resources
        .tables
        .insert("outbound".into(), Arc::new(compiled));
    resources.clusters.insert(
        name.clone(),
        Arc::new(Cluster::new(name.clone(), Protocol::Auto)),
    );
    let endpoints = addresses.iter().map(|address| endpoint(address)).collect();
    resources.assignments.insert(
        name.clone(),
        Arc::new(Assignment {
            cluster: name,
            endpoints,
            overprovision: None,
        }),
    );
    resources
}

fn bootstrap() -> Bootstrap {
    let port = AppPort {
        name: String::new(),
        number: 8080,
        address: "127.0.0.1:8080".parse().unwrap(),
        protocol: Protocol::Auto,
    };
    Bootstrap {
        service: ServiceName::new("default", "match"),
        version: "v1".into(),
        inbound: vec![port],
        tcp: vec![
            ("127.0.0.1:1".parse().unwrap(), cluster_name("absent")),
            ("127.0.0.1:2".parse().unwrap(), cluster_name("battle")),
        ],
    }
}

#[test]
fn clusters_are_found_by_place() {
    let account = Account::new(1);
    let plan = Plan::assemble(
        &resources(&["10.0.0.1:1"]),
        &bootstrap(),
        &Plan::empty(),
        &account,
    );
    let Outbound::All(routes) = &plan.outbound else {
        panic!("there is a table of all hosts");
    };
    assert_eq!(*routes.clusters, [Some(0), None]);
    assert_eq!(*plan.tcp, [None, Some(0)]);
    assert_eq!(plan.inbound.apps[0].cluster, 1);
    assert_eq!(
        plan.clusters[1].name.to_string(),
        "inbound|8080|match.default.svc.mesh"
    );
}

#[test]
fn ejection_outlives_a_change_of_the_plan() {
    let account = Account::new(1);
    let first = Plan::assemble(
        &resources(&["10.0.0.1:1", "10.0.0.2:1"]),
        &bootstrap(),
        &Plan::empty(),
        &account,
    );
    assert!(first.clusters[0].group.report(1, Evidence::Refused, 10));
    let second = Plan::assemble(
        &resources(&["10.0.0.0:1", "10.0.0.2:1"]),
        &bootstrap(),
        &first,
        &account,
    );
    let group = &second.clusters[0].group;
    let ejected = |member: usize| group.member(member).unwrap().outlier.is_ejected(11);
    assert_eq!((ejected(0), ejected(1)), (false, true));
}

#[test]
fn weights_are_shares() {
    let compiled = compile_table(&table(
        vec![backend("a", 90), backend("b", 10), backend("c", 0)],
        HeaderEdit::default(),
    ))
    .unwrap();
    let rule = &compiled.rules().hosts()[0].rules()[0].attachment;
    let table::ActionPlan::Forward(forward) = &rule.action else {
        panic!("forwards")
    };
    assert_eq!(
        (forward.request_timeout_ms, forward.default_timeout),
        (None, false),
        "0s is no limit"
    );
    let (mut rng, mut hits) = (fastrand::Rng::with_seed(3), [0; 3]);
    for _ in 0..10_000 {
        hits[forward.choose(&mut rng).unwrap().cluster.unwrap()] += 1;
    }
    assert!(
        (hits[0] as f64 - 9_000.0).abs() < 4.0 * 30.0 && hits[2] == 0,
        "{hits:?}"
    );
}

#[test]
fn tables_that_cannot_be_honoured_are_refused_by_rule() {
    let check = |table: RouteTable| compile_table(&table).err().unwrap();
    let edit = |name: &str, value: &str| HeaderEdit {
        set: vec![(name.into(), value.into())],
        ..HeaderEdit::default()
    };
    for (name, value) in [
        ("content-length", "1"),
        ("x-phalanx-reason", "x"),
        ("a b", "x"),
        ("a", "x\r\ny"),
    ] {
        let problem = check(table(vec![backend("a", 1)], edit(name, value)));
        assert!(problem.contains("HTTPRoute/default/r/0"), "{problem}");
    }
    assert!(check(table(vec![backend("a", 0)], HeaderEdit::default())).contains("weights"));
}

#[test]
fn prefixes_are_replaced_by_whole_segments() {
    let prefix = |new: &str, path: &str, len| {
        table::rewritten(&PathRewrite::Prefix(new.into()), path, Some(len)).unwrap()
    };
    // The table of the Gateway API's HTTPPathModifier.
    assert_eq!(prefix("/xyz", "/foo/bar", 4), "/xyz/bar");
    assert_eq!(prefix("/xyz/", "/foo/bar", 4), "/xyz/bar");
    assert_eq!(prefix("/xyz", "/foo", 4), "/xyz");
    assert_eq!(prefix("/xyz", "/foo/", 4), "/xyz/");
    assert_eq!(prefix("/", "/foo/bar", 4), "/bar");
    assert_eq!(prefix("/", "/foo", 4), "/");
    assert_eq!(prefix("/xyz", "/foo", 1), "/xyz/foo");
    assert_eq!(
        table::rewritten(&PathRewrite::Full("/a".into()), "/foo", None).unwrap(),
        "/a"
    );
    assert_eq!(
        table::rewritten(&PathRewrite::Prefix("/a".into()), "/foo", None),
        None
    );
}

/// Two hosts on demand, `battle` over the cluster of that name and `none` that does not exist.
fn on_demand() -> Resources {
    let mut resources = resources(&["10.0.0.1:1"]);
    resources.desk = Some(Desk::new().0);
    let protocol = ListenerProtocol::Http {
        route_table: "outbound/".into(),
    };
    let listener = Listener {
        name: "outbound".into(),
        address: "127.0.0.1:15001".parse().unwrap(),
        direction: Direction::Outbound,
        protocol,
    };
    resources.listeners.insert("outbound".into(), listener);
    let battle = table(vec![backend("battle", 1)], HeaderEdit::default());
    let none = RouteTable {
        name: "outbound/none".into(),
        hosts: Vec::new(),
    };
    for (name, table) in [("outbound/battle", battle), ("outbound/none", none)] {
        let compiled = compile_table(&table).unwrap();
        resources.tables.insert(name.into(), Arc::new(compiled));
    }
    resources
}

fn hosts(plan: &Plan) -> &Arc<Hosts> {
    match &plan.outbound {
        Outbound::Demand { hosts, .. } => hosts,
        _ => panic!("hosts are held on demand"),
    }
}

#[test]
fn on_demand_a_host_is_held_by_its_own_table_alone() {
    let plan = Plan::assemble(&on_demand(), &bootstrap(), &Plan::empty(), &Account::new(1));
    let hosts = hosts(&plan);
    assert_eq!(hosts.len(), 2, "the table of all hosts is none of them");
    assert_eq!(*hosts.find("battle").unwrap().clusters, [Some(0)]);
    assert!(hosts.find("none").unwrap().table.rules().hosts().is_empty());
    assert!(hosts.find("other").is_none() && !hosts.contains("other"));
}

#[test]
fn a_use_is_noted_once_and_a_look_takes_the_note() {
    let resources = on_demand();
    let plan = Plan::assemble(&resources, &bootstrap(), &Plan::empty(), &Account::new(1));
    let used = |name: &str| resources.tables[name].take_used();
    assert!(!used("outbound/battle"));
    hosts(&plan).find("battle");
    hosts(&plan).find("battle");
    assert!(used("outbound/battle") && !used("outbound/battle") && !used("outbound/none"));
}

#[test]
fn a_new_host_leaves_everything_else_as_it_was() {
    let account = Account::new(1);
    let assemble = |resources: &Resources, before: &Plan| {
        Plan::assemble(resources, &bootstrap(), before, &account)
    };
    let mut resources = on_demand();
    let first = assemble(&resources, &Plan::empty());
    let again = assemble(&resources, &first);
    assert!(Arc::ptr_eq(hosts(&first), hosts(&again)));
    assert!(Arc::ptr_eq(&first.clusters[0], &again.clusters[0]));

    // A cluster that sorts before the others moves them by a place.
    let name = cluster_name("armour");
    let cluster = Cluster::new(name.clone(), Protocol::Auto);
    resources.clusters.insert(name.clone(), Arc::new(cluster));
    let armour = table(vec![backend("armour", 1)], HeaderEdit::default());
    let armour = Arc::new(compile_table(&armour).unwrap());
    resources.tables.insert("outbound/armour".into(), armour);
    let second = assemble(&resources, &again);
    assert_eq!(*hosts(&second).find("armour").unwrap().clusters, [Some(0)]);
    assert_eq!(*hosts(&second).find("battle").unwrap().clusters, [Some(1)]);
    assert!(Arc::ptr_eq(&first.clusters[0], &second.clusters[1]));
    let of = |plan: &Plan| {
        hosts(plan)
            .find("battle")
            .map(|routes| routes.table.clone())
    };
    assert!(Arc::ptr_eq(&of(&first).unwrap(), &of(&second).unwrap()));
    assert!(second.cluster(&name).is_some() && first.cluster(&name).is_none());

    // Other endpoints are another cluster plan, and nothing more.
    let battle = cluster_name("battle");
    let assignment = Assignment {
        cluster: battle.clone(),
        endpoints: vec![endpoint("10.0.0.2:1")],
        overprovision: None,
    };
    resources.assignments.insert(battle, Arc::new(assignment));
    let third = assemble(&resources, &second);
    assert!(!Arc::ptr_eq(&second.clusters[1], &third.clusters[1]));
    assert!(Arc::ptr_eq(hosts(&second), hosts(&third)));
}
