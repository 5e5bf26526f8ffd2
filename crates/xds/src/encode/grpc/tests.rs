use std::time::Duration;

use phalanx_model::identity::TrustDomain;
use phalanx_model::resource::{
    Access, AccessPolicy, AccessRule, Action, Backend, Effect, Forward, HeaderEdit, HeaderMatch,
    Health, PathMatch, QueryMatch, Retry, Rewrite, Rule, RuleMatch, ValueMatch, VirtualHost,
};
use phalanx_model::{ClusterName, Reason, ServiceName};
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::extensions::filters::http::rbac::v3 as filter_v3;
use prost::Message;
use route_v3::route::Action as Sent;
use route_v3::route_action::ClusterSpecifier;
use route_v3::route_match::PathSpecifier;

use super::*;

fn battle(port: u16) -> ClusterName {
    ClusterName::outbound(ServiceName::new("default", "battle"), port)
}

fn backend(port: Option<u16>, weight: u32) -> Backend {
    Backend {
        cluster: port.map(battle),
        weight,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    }
}

fn forward() -> Forward {
    Forward {
        backends: vec![backend(Some(9000), 1)],
        rewrite: Rewrite::default(),
        request_timeout: None,
        attempt_timeout: None,
        retry: Retry::default(),
        hash_on: None,
        ..Forward::default()
    }
}

fn rule(matches: RuleMatch, to: Forward) -> Rule {
    Rule {
        name: "HTTPRoute/default/r/0".into(),
        matches,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        action: Action::Forward(to),
    }
}

/// The routes of one rule.
fn sent(rule: Rule) -> Vec<route_v3::Route> {
    let table = RouteTable {
        name: "battle.default.svc.mesh:9000".into(),
        hosts: vec![VirtualHost {
            name: "h".into(),
            domains: vec!["*".into()],
            rules: vec![rule],
        }],
    };
    let encoded = routes(&table);
    let table = route_v3::RouteConfiguration::decode(&*encoded.body).unwrap();
    table.virtual_hosts.into_iter().next().unwrap().routes
}

fn action(route: &route_v3::Route) -> &route_v3::RouteAction {
    match &route.action {
        Some(Sent::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

fn cluster_of(route: &route_v3::Route) -> Option<&str> {
    match &action(route).cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Some(name),
        _ => None,
    }
}

#[test]
fn a_segment_prefix_becomes_forms_that_every_client_knows() {
    let matches = RuleMatch {
        path: PathMatch::Prefix("/arena.v1.Battle".into()),
        grpc: true,
        ..RuleMatch::default()
    };
    let paths: Vec<_> = sent(rule(matches, forward()))
        .into_iter()
        .map(|r| r.r#match.unwrap().path_specifier.unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            PathSpecifier::Path("/arena.v1.Battle".into()),
            PathSpecifier::Prefix("/arena.v1.Battle/".into())
        ]
    );
}

#[test]
fn what_no_call_can_meet_is_left_out_and_what_every_call_meets_is_not_asked() {
    let post = |method: &str| RuleMatch {
        method: Some(method.into()),
        ..RuleMatch::default()
    };
    // A host with no rule left leads nowhere.
    let is_nowhere = |routes: Vec<route_v3::Route>| {
        let names: Vec<_> = routes.iter().map(cluster_of).collect();
        names == [Some("invalid_backend")]
    };
    assert!(is_nowhere(sent(rule(post("GET"), forward()))));
    let query = RuleMatch {
        query: vec![QueryMatch {
            name: "a".into(),
            value: ValueMatch::Exact("b".into()),
        }],
        ..RuleMatch::default()
    };
    assert!(is_nowhere(sent(rule(query, forward()))));
    let always = sent(rule(post("POST"), forward()));
    assert_eq!(always.len(), 1);
    assert!(always[0].r#match.as_ref().unwrap().headers.is_empty());
}

#[test]
fn a_rule_that_a_client_would_misread_leads_nowhere() {
    let mut edited = rule(RuleMatch::default(), forward());
    edited
        .request_headers
        .set
        .push(("x-env".into(), "a".into()));
    let mut to = forward();
    to.rewrite.authority = Some("elsewhere".into());
    let rewritten = rule(RuleMatch::default(), to);
    let hidden = RuleMatch {
        headers: vec![HeaderMatch {
            name: "user-agent".into(),
            value: ValueMatch::Exact("bot".into()),
        }],
        ..RuleMatch::default()
    };
    let hidden = rule(hidden, forward());
    for (rule, why) in [
        (edited, Refusal::HeaderEdit),
        (rewritten, Refusal::Rewrite),
        (hidden, Refusal::HiddenHeader),
    ] {
        assert_eq!(refusal(&rule), Some(why));
        let routes = sent(rule);
        assert_eq!(cluster_of(&routes[0]), Some("invalid_backend"));
        assert!(routes[0].r#match.as_ref().unwrap().headers.is_empty());
    }
    let mut respond = rule(RuleMatch::default(), forward());
    respond.action = Action::Respond(Reason::InvalidBackend);
    assert_eq!(cluster_of(&sent(respond)[0]), Some("invalid_backend"));
}

#[test]
fn weights_have_no_zeroes_and_no_cluster_twice() {
    let mut to = forward();
    to.backends = vec![
        backend(Some(1), 2),
        backend(Some(2), 0),
        backend(Some(1), 3),
        backend(None, 4),
    ];
    let routes = sent(rule(RuleMatch::default(), to));
    let Some(ClusterSpecifier::WeightedClusters(split)) = &action(&routes[0]).cluster_specifier
    else {
        panic!("no split")
    };
    let shares: Vec<_> = split
        .clusters
        .iter()
        .map(|c| (c.name.as_str(), c.weight))
        .collect();
    assert_eq!(
        shares,
        [
            ("invalid_backend", Some(4)),
            ("outbound|1|battle.default.svc.mesh", Some(5))
        ]
    );
}

#[test]
fn retries_name_statuses_and_are_never_zero() {
    let with = |retry| {
        let to = Forward {
            retry,
            request_timeout: Some(Duration::from_secs(2)),
            ..forward()
        };
        let routes = sent(rule(RuleMatch::default(), to));
        let action = action(&routes[0]);
        assert!(action.max_stream_duration.is_some());
        action.retry_policy.clone()
    };
    assert_eq!(with(Retry::default()), None);
    let retry = |attempts, codes: &[u16]| Retry {
        attempts,
        codes: codes.to_vec(),
        backoff: Duration::ZERO,
    };
    assert_eq!(with(retry(0, &[503])), None);
    assert_eq!(with(retry(2, &[418])), None);
    let policy = with(retry(2, &[503, 504])).unwrap();
    assert_eq!(
        (policy.retry_on.as_str(), policy.num_retries),
        ("deadline-exceeded,unavailable", Some(2))
    );
    let base = policy.retry_back_off.unwrap().base_interval.unwrap();
    assert_eq!(base.nanos, 1_000_000);
}

#[test]
fn endpoints_are_grouped_so_that_round_robin_keeps_their_weights() {
    let endpoint = |port: u16, zone: &str, weight, health| Endpoint {
        address: ([127, 0, 0, 1], port).into(),
        weight,
        zone: zone.into(),
        is_far: false,
        health,
        version: String::new(),
        instance: String::new(),
        target: 0,
        mutual_tls: false,
        datagrams: false,
        token: String::new(),
    };
    let encoded = endpoints(&Assignment {
        cluster: battle(9000),
        endpoints: vec![
            endpoint(1, "a", 1, Health::Healthy),
            endpoint(2, "a", 3, Health::Healthy),
            endpoint(3, "a", 3, Health::Healthy),
            endpoint(4, "a", 1, Health::Draining),
            endpoint(5, "b", 2, Health::Healthy),
            endpoint(6, "c", 2, Health::Unhealthy),
        ],
        overprovision: None,
    });
    let set = endpoint_v3::ClusterLoadAssignment::decode(&*encoded.body).unwrap();
    let seen: Vec<_> = set
        .endpoints
        .iter()
        .map(|l| {
            let place = l.locality.as_ref().unwrap();
            (
                format!("{}/{}", place.zone, place.sub_zone),
                l.load_balancing_weight,
                l.lb_endpoints.len(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("a/weight-1".into(), Some(1), 1),
            ("a/weight-3".into(), Some(6), 2),
            ("b/".into(), Some(2), 1)
        ]
    );
    // gRPC knows no panic; it is told what others would use then.
    for health in [Health::Draining, Health::Unhealthy] {
        let encoded = endpoints(&Assignment {
            cluster: battle(9000),
            endpoints: vec![
                endpoint(1, "a", 1, health),
                endpoint(2, "a", 1, Health::Unhealthy),
            ],
            overprovision: None,
        });
        let set = endpoint_v3::ClusterLoadAssignment::decode(&*encoded.body).unwrap();
        let usable = if health == Health::Draining { 1 } else { 2 };
        assert_eq!(set.endpoints[0].lb_endpoints.len(), usable);
    }
}

#[test]
fn who_is_denied_is_asked_first_and_an_empty_allowance_lets_nobody_in() {
    let policy = |effect, rules| AccessPolicy {
        name: "AuthorizationPolicy/default/p".into(),
        effect,
        rules,
    };
    let seen = |policies| {
        let filters = access::filters(&Access { policies }, &TrustDomain::default());
        let config = |filter: &hcm_v3::HttpFilter| match &filter.config_type {
            Some(hcm_v3::http_filter::ConfigType::TypedConfig(any)) => {
                let rules = filter_v3::Rbac::decode(&*any.value).unwrap().rules.unwrap();
                (rules.action, rules.policies.len())
            }
            other => panic!("{other:?}"),
        };
        filters.iter().map(config).collect::<Vec<_>>()
    };
    assert!(seen(Vec::new()).is_empty());
    // One policy, which matches nothing.
    assert_eq!(seen(vec![policy(Effect::Allow, Vec::new())]), [(0, 1)]);
    let any = || vec![AccessRule::default()];
    assert_eq!(
        seen(vec![
            policy(Effect::Allow, any()),
            policy(Effect::Deny, any())
        ]),
        [(1, 1), (0, 1)]
    );
}
