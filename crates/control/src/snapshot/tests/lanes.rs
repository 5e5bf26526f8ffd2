//! Lanes: whose instances take which requests, written as `instance` or `(instance)` where it only stands in.

use phalanx_model::resource::ValueMatch;

use super::*;
use crate::world::record::{InstanceRecord, instance_key};

const POLICY: &str = "
apiVersion: phalanx.dev/v1alpha1
kind: ColourPolicy
metadata: {name: lanes}
spec:
  lanes: [{colour: dev-li, selector: {lane: dev-li}}]
---
";

fn in_lane(service: &str, id: &str, address: &str, lane: &str) -> phalanx_model::Instance {
    let mut made = instance(service, id, address, &[("", 9000)]);
    made.labels.insert("lane".into(), lane.into());
    made
}

/// Two of the baseline, one of the lane.
fn battle(policy: &str) -> Fixture {
    Fixture::yaml(&[BATTLE, policy].concat())
        .with(instance("battle", "b1", "10.0.0.1:15006", &[("", 9000)]))
        .with(instance("battle", "b2", "10.0.0.2:15006", &[("", 9000)]))
        .with(in_lane("battle", "li", "10.0.0.9:15006", "dev-li"))
}

/// Of an endpoint set.
fn taking(mesh: &Mesh, cluster: &str) -> Option<Vec<String>> {
    let name: ClusterName = cluster.parse().unwrap();
    let shown = |endpoint: &phalanx_model::resource::Endpoint| match endpoint.is_far {
        true => format!("({})", endpoint.instance),
        false => endpoint.instance.clone(),
    };
    assert_eq!(
        mesh.clusters.contains_key(&name),
        mesh.assignments.contains_key(&name)
    );
    let set = mesh.assignments.get(&name)?;
    Some(set.endpoints.iter().map(shown).collect())
}

/// Where requests of a colour go, by the first rule that only looks at that; none: without a colour.
fn clusters(mesh: &Mesh, service: &str, colour: Option<&str>) -> Vec<String> {
    let name = format!("{service}.default.svc.mesh:80");
    let table = mesh.rules.table("default", &mesh.catalog);
    let host = table.hosts.iter().find(|host| host.name == name).unwrap();
    let meets = |rule: &&Rule| {
        rule.matches.headers.iter().all(|header| {
            assert_eq!(header.name, "x-env");
            matches!((&header.value, colour), (ValueMatch::Exact(value), Some(colour)) if value == colour)
        })
    };
    let Action::Forward(forward) = &host.rules.iter().find(meets).unwrap().action else {
        panic!("it forwards")
    };
    let named = forward
        .backends
        .iter()
        .map(|backend| backend.cluster.as_ref());
    named.map(|name| name.unwrap().to_string()).collect()
}

const BASE: &str = "outbound|80|battle.default.svc.mesh";
const LANE: &str = "outbound|80|dev-li|battle.default.svc.mesh";

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn a_lane_takes_its_colour_and_falls_back_and_the_baseline_leaves_its_instances_out() {
    let mesh = mesh(&battle(POLICY));
    assert_eq!(taking(&mesh, BASE).unwrap(), ["b1", "b2"]);
    assert_eq!(taking(&mesh, LANE).unwrap(), ["(b1)", "(b2)", "li"]);
    assert_eq!(clusters(&mesh, "battle", Some("dev-li")), [LANE]);
    assert_eq!(clusters(&mesh, "battle", Some("dev-wu")), [BASE]);
    assert_eq!(clusters(&mesh, "battle", None), [BASE]);
    assert!(messages(&mesh).is_empty(), "{:?}", messages(&mesh));
}

#[test]
fn without_an_instance_of_the_lane_there_is_neither_rule_nor_cluster() {
    let fixture = Fixture::yaml(&[BATTLE, POLICY].concat());
    let mesh = mesh(&fixture.with(instance("battle", "b1", "10.0.0.1:15006", &[("", 9000)])));
    assert_eq!(rules(&mesh, "battle", 80), ["/* => battle:80@1"]);
    assert_eq!(taking(&mesh, LANE), None);
}

#[test]
fn a_lane_that_refuses_has_nobody_to_fall_back_to_even_where_it_has_no_instance() {
    let refusing = POLICY.replace(
        "{lane: dev-li}}",
        "{lane: dev-li}, fallback: Refuse, services: [battle, lobby]}",
    );
    let fixture = battle(&refusing).and_yaml(&service("lobby", 80));
    let mesh = mesh(&fixture);
    assert_eq!(taking(&mesh, LANE).unwrap(), ["li"]);
    let lobby = LANE.replace("battle", "lobby");
    assert_eq!(taking(&mesh, &lobby).unwrap(), none());
    assert_eq!(clusters(&mesh, "lobby", Some("dev-li")), [lobby]);
}

#[test]
fn a_lane_that_refuses_keeps_its_colour_while_its_instance_takes_nothing() {
    use phalanx_model::instance::State;

    let refusing = POLICY.replace("{lane: dev-li}}", "{lane: dev-li}, fallback: Refuse}");
    let services = BATTLE.to_owned();
    for (policy, manifest) in [
        (&refusing, &services),
        (&POLICY.to_owned(), &services),
        (&refusing, &String::new()),
    ] {
        for state in State::ALL {
            let b1 = instance("battle", "b1", "10.0.0.1:80", &[("", 80)]);
            let mut fixture = Fixture::yaml(&[manifest.as_str(), policy].concat()).with(b1);
            let mut li = in_lane("battle", "li", "10.0.0.9:80", "dev-li");
            li.ports[0].number = 80;
            let mut record = InstanceRecord::new(&li, 1, 30_000);
            record.state = Some(state.as_str().to_owned());
            fixture.put(instance_key(&li.id), serde_json::to_vec(&record).unwrap());
            let mesh = mesh(&fixture);
            let takes = matches!(state, State::Accepting | State::Draining);
            let kept = match (policy == &refusing, takes) {
                (true, true) => Some(vec!["li".to_owned()]),
                (true, false) => Some(none()),
                (false, true) => Some(vec!["(b1)".to_owned(), "li".to_owned()]),
                (false, false) => None,
            };
            assert_eq!(taking(&mesh, LANE), kept, "{state:?}");
            let led = if kept.is_some() { LANE } else { BASE };
            assert_eq!(clusters(&mesh, "battle", Some("dev-li")), [led]);
        }
    }
}

#[test]
fn an_unhealthy_lane_instance_stays_in_front_for_data_planes_to_judge() {
    let fixture = battle(POLICY);
    let mesh = mesh(&fixture);
    let set = &mesh.assignments[&LANE.parse().unwrap()];
    // One of a hundred that works takes everything: so Envoy's own arithmetic says, and ours.
    assert_eq!(set.overprovision, Some(10_000));
    let serving: Vec<_> = set.serving().map(|e| e.instance.as_str()).collect();
    assert_eq!(serving, ["li"]);
    let mut broken = (**set).clone();
    broken.endpoints[2].health = phalanx_model::resource::Health::Unhealthy;
    let serving: Vec<_> = broken.serving().map(|e| e.instance.as_str()).collect();
    assert_eq!(serving, ["b1", "b2"]);
}

#[test]
fn each_rule_that_leads_to_a_lane_has_a_twin_in_front_and_the_lane_gets_all_of_a_split() {
    let route = http_route(
        "r",
        "lobby",
        "  - matches: [{path: {value: /fight}}]\n    backendRefs: [{name: battle, port: 80, weight: 10}, {name: lobby, port: 80, weight: 90}]\n  - matches: [{headers: [{name: x-env, value: staging}]}]\n    backendRefs: [{name: battle, port: 80}]\n  - backendRefs: [{name: lobby, port: 80}]",
    );
    let fixture = battle(POLICY)
        .and_yaml(&service("lobby", 80))
        .and_yaml(&route);
    let mesh = mesh(&fixture);
    assert_eq!(
        rules(&mesh, "lobby", 80),
        [
            "/fight*[x-env] => battle:80@10",
            "/fight* => battle:80@10 lobby:80@90",
            "/*[x-env] => battle:80@1", // for another colour: no twin
            "/* => lobby:80@1",
        ]
    );
}

#[test]
fn a_lane_outlives_the_weight_of_the_version_that_it_was_made_from() {
    let rule = |head: &str| {
        format!(
            "  - {head}backendRefs: [{{name: battle, port: 80, weight: 0}}, {{name: lobby, port: 80, weight: 1}}]"
        )
    };
    let of_colour = rule("matches: [{headers: [{name: x-env, value: dev-li}]}]\n    ");
    let route = http_route("r", "lobby", &[of_colour, rule("")].join("\n"));
    let fixture = battle(POLICY)
        .and_yaml(&service("lobby", 80))
        .and_yaml(&route);
    assert_eq!(
        rules(&mesh(&fixture), "lobby", 80),
        [
            "/*[x-env] => battle:80@0 lobby:80@1", // says itself what that colour gets
            "/*[x-env] => battle:80@1",
            "/* => battle:80@0 lobby:80@1",
        ]
    );
}

#[test]
fn lanes_of_a_namespace_are_its_own_and_those_of_the_mesh_hold_everywhere() {
    let elsewhere = POLICY.replace("name: lanes", "name: lanes, namespace: other");
    assert_eq!(taking(&mesh(&battle(&elsewhere)), LANE), None);
    let of_mesh = POLICY.replace("name: lanes", "name: lanes, namespace: phalanx-system");
    assert!(taking(&mesh(&battle(&of_mesh)), LANE).is_some());
}

#[test]
fn of_two_lanes_of_one_colour_the_older_holds_and_the_65th_colour_has_none() {
    let second = POLICY
        .replace("name: lanes", "name: zz")
        .replace("{lane: dev-li}}", "{x: y}}");
    let found = messages(&mesh(&battle(&[POLICY, &second].concat())));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with(
            "ColourPolicy/default/zz: conflicted: ColourPolicy/default/lanes is older"
        )
    );
    let many: String = (0..65)
        .map(|n| {
            let lane = format!("c{n:02}");
            POLICY
                .replace("dev-li", &lane)
                .replace("name: lanes", &format!("name: {lane}"))
        })
        .collect();
    let found = messages(&mesh(&battle(&many)));
    assert_eq!(
        found,
        ["ColourPolicy/default/c64: lane c64: a mesh has lanes for 64 colours at most"]
    );
}

#[test]
fn raw_tcp_knows_no_lane_and_never_reaches_its_instances() {
    let tcp = BATTLE.replace("grpc}", "tcp}");
    let fixture = Fixture::yaml(&[&tcp, POLICY].concat())
        .with(instance("battle", "b1", "10.0.0.1:15006", &[("", 9000)]))
        .with(in_lane("battle", "li", "10.0.0.9:15006", "dev-li"));
    let mesh = mesh(&fixture);
    assert_eq!(taking(&mesh, BASE).unwrap(), ["b1"]);
    assert_eq!(taking(&mesh, LANE), None);
}

#[test]
fn a_lanes_first_instance_costs_its_service_and_the_next_its_endpoints() {
    let baseline = instance("battle", "b1", "10.0.0.1:15006", &[("", 9000)]);
    let fixture = Fixture::yaml(&[BATTLE, POLICY].concat()).with(baseline);
    let fixture = (0..50).fold(fixture, |fixture, n| {
        fixture.and_yaml(&service(&format!("s{n}"), 80))
    });
    let mut fold = crate::world::Fold::boot(fixture.stored(), 900);
    let mut compiler = Compiler::default();
    compiler.compile(fold.world());
    let mut joins = |id: &str, address: &str, revision| {
        let stored = Fixture::default()
            .with(in_lane("battle", id, address, "dev-li"))
            .stored();
        fold.apply(crate::world::Stored {
            revision,
            ..stored[0].clone()
        });
        compiler.compile(fold.world());
        compiler.changes().encoded
    };
    assert_eq!(
        joins("li1", "10.0.0.8:15006", 901),
        3,
        "cluster, endpoints and host"
    );
    assert_eq!(joins("li2", "10.0.0.9:15006", 902), 1, "endpoints");
}

#[test]
fn a_gateway_gives_what_the_nearest_policy_says() {
    let edges = |mesh: &Mesh, gateway: &str| {
        let colours = mesh.lanes.at_gateway(&ServiceName::new("default", gateway));
        colours.map_or("nothing".to_owned(), ToString::to_string)
    };
    let policy = |namespace: &str, name: &str, spec: &str| {
        format!(
            "apiVersion: phalanx.dev/v1alpha1\nkind: ColourPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n---\n"
        )
    };
    let mesh_wide = policy("phalanx-system", "m", "env: {default: prod}");
    let near = policy(
        "default",
        "n",
        "env: {default: staging}, canaryId: {generate: true}",
    );
    let own = policy(
        "default",
        "g",
        "targetRefs: [{kind: Gateway, name: edge}], env: {header: {trusted: true, allow: [dev-*]}}",
    );
    let one = mesh(&Fixture::yaml(&mesh_wide));
    assert_eq!(edges(&one, "edge"), "default=prod");
    let all = mesh(&Fixture::yaml(&[mesh_wide, near, own].concat()));
    assert_eq!(edges(&all, "edge"), "take=dev-*");
    assert_eq!(edges(&all, "other"), "default=staging id-made");
    assert_eq!(edges(&mesh(&Fixture::default()), "edge"), "nothing");
}
