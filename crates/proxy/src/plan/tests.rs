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
        health: Health::Healthy,
        version: "v1".into(),
        instance: "i".into(),
        target: 0,
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
    resources
        .clusters
        .insert(name.clone(), Cluster::new(name.clone(), Protocol::Auto));
    let endpoints = addresses.iter().map(|address| endpoint(address)).collect();
    resources.assignments.insert(
        name.clone(),
        Assignment {
            cluster: name,
            endpoints,
        },
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
    assert_eq!(*plan.outbound.as_ref().unwrap().clusters, [Some(0), None]);
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
    let rule = &compiled.rules().hosts()[0].rules[0].attachment;
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
