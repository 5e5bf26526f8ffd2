use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, Direction, ServiceName};
use phalanx_model::reason::Reason;
use phalanx_model::resource::{
    Action, Backend, Endpoint, Forward, HeaderEdit, Health, ListenerProtocol, LoadBalancer,
    PathMatch, PathRewrite, QueryMatch, Redirect, Retry, Rewrite, Rule, RuleMatch, ValueMatch,
    VirtualHost,
};
use phalanx_proto::envoy::config::cluster::v3 as cluster_v3;
use phalanx_proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use phalanx_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier,
};
use phalanx_proto::envoy::config::route::v3::route_match::PathSpecifier;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::extensions::upstreams::http::v3 as upstreams_v3;

use super::*;

fn battle() -> ClusterName {
    ClusterName::outbound(ServiceName::new("default", "battle"), 80)
}

fn backend(cluster: Option<ClusterName>, weight: u32) -> Backend {
    Backend {
        cluster,
        weight,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    }
}

fn forward() -> Forward {
    Forward {
        backends: vec![backend(Some(battle()), 1)],
        rewrite: Rewrite::default(),
        request_timeout: None,
        attempt_timeout: None,
        retry: Retry::default(),
        hash_on: None,
        ..Forward::default()
    }
}

fn rule(action: Action) -> Rule {
    Rule {
        name: "HTTPRoute/default/battle/0".into(),
        matches: RuleMatch::default(),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        action,
    }
}

fn table(rules: Vec<Rule>) -> RouteTable {
    let hosts = vec![VirtualHost {
        name: "battle".into(),
        domains: vec!["battle".into()],
        rules,
    }];
    RouteTable {
        name: "outbound".into(),
        hosts,
    }
}

fn sent(rule: Rule) -> route_v3::Route {
    let body = routes(&table(vec![rule])).body;
    route_v3::RouteConfiguration::decode(body)
        .unwrap()
        .virtual_hosts
        .remove(0)
        .routes
        .remove(0)
}

fn sent_forward(matches: RuleMatch, to: Forward) -> route_v3::RouteAction {
    match sent(Rule {
        matches,
        ..rule(Action::Forward(to))
    })
    .action
    {
        Some(route_v3::route::Action::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

fn sent_cluster(cluster: &Cluster) -> cluster_v3::Cluster {
    cluster_v3::Cluster::decode(super::cluster(cluster).body).unwrap()
}

fn outbound() -> Listener {
    Listener {
        name: "outbound".into(),
        address: "127.0.0.1:15001".parse().unwrap(),
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Http {
            route_table: "outbound".into(),
        },
    }
}

fn manager(listener: &Listener) -> hcm_v3::HttpConnectionManager {
    let message = listener_v3::Listener::decode(super::listener(listener).body).unwrap();
    match &message.filter_chains[0].filters[0].config_type {
        Some(listener_v3::filter::ConfigType::TypedConfig(any)) => {
            hcm_v3::HttpConnectionManager::decode(any.value.as_slice()).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_router_is_the_last_filter() {
    let filters = manager(&outbound()).http_filters;
    assert_eq!(
        filters.last().map(|filter| filter.name.as_str()),
        Some("envoy.filters.http.router")
    );
}

#[test]
fn sources_are_said_as_ads_never_self() {
    let Some(hcm_v3::http_connection_manager::RouteSpecifier::Rds(rds)) =
        manager(&outbound()).route_specifier
    else {
        panic!("no rds");
    };
    let eds = sent_cluster(&Cluster::new(battle(), Protocol::Auto))
        .eds_cluster_config
        .unwrap();
    for source in [rds.config_source.unwrap(), eds.eds_config.unwrap()] {
        assert!(
            matches!(
                source.config_source_specifier,
                Some(ConfigSourceSpecifier::Ads(_))
            ),
            "{source:?}"
        );
        assert_eq!(source.resource_api_version, 2);
        assert_eq!(source.initial_fetch_timeout, None);
    }
    assert_eq!(eds.service_name, battle().to_string());
}

#[test]
fn a_listener_normalises_paths_and_keeps_ports_in_authorities() {
    let manager = manager(&outbound());
    assert_eq!(
        (manager.normalize_path, manager.merge_slashes),
        (Some(true), true)
    );
    assert_eq!(manager.path_with_escaped_slashes_action, 2);
    assert_eq!(manager.strip_port_mode, None);
    assert!(!manager.strip_matching_host_port);
    assert_eq!(
        manager
            .http2_protocol_options
            .unwrap()
            .max_concurrent_streams,
        Some(100)
    );
    assert_eq!(manager.upgrade_configs[0].upgrade_type, "websocket");
}

#[test]
fn underscores_are_dropped_at_the_edge_only() {
    let action = |direction| {
        manager(&Listener {
            direction,
            ..outbound()
        })
        .common_http_protocol_options
        .unwrap()
        .headers_with_underscores_action
    };
    assert_eq!(
        (action(Direction::Outbound), action(Direction::Inbound)),
        (0, 2)
    );
}

#[test]
fn resources_tell_what_they_name() {
    assert_eq!(super::listener(&outbound()).refs, ["outbound"]);
    let tcp = Listener {
        protocol: ListenerProtocol::Tcp { cluster: battle() },
        ..outbound()
    };
    assert_eq!(super::listener(&tcp).refs, [battle().to_string()]);
    let split = Forward {
        backends: vec![backend(Some(battle()), 9), backend(None, 1)],
        ..forward()
    };
    let rules = vec![
        rule(Action::Forward(split)),
        rule(Action::Forward(forward())),
        rule(Action::Respond(Reason::NoRoute)),
    ];
    assert_eq!(routes(&table(rules)).refs, [battle().to_string()]);
}

#[test]
fn prefixes_match_whole_segments_in_the_forms_that_envoy_takes() {
    let specifier = |prefix: &str| {
        let matches = RuleMatch {
            path: PathMatch::Prefix(prefix.into()),
            ..RuleMatch::default()
        };
        sent(Rule {
            matches,
            ..rule(Action::Forward(forward()))
        })
        .r#match
        .unwrap()
        .path_specifier
        .unwrap()
    };
    assert_eq!(specifier("/"), PathSpecifier::Prefix("/".into()));
    assert_eq!(
        specifier("/a"),
        PathSpecifier::PathSeparatedPrefix("/a".into())
    );
    assert_eq!(
        specifier("/a/"),
        PathSpecifier::PathSeparatedPrefix("/a".into())
    );
}

#[test]
fn prefixes_are_replaced_by_whole_segments() {
    let rewritten = |prefix: &str, to: &str| {
        let matches = RuleMatch {
            path: PathMatch::Prefix(prefix.into()),
            ..RuleMatch::default()
        };
        let rewrite = Rewrite {
            authority: None,
            path: Some(PathRewrite::Prefix(to.into())),
        };
        let action = sent_forward(
            matches,
            Forward {
                rewrite,
                ..forward()
            },
        );
        let regex = action
            .regex_rewrite
            .map(|regex| (regex.pattern.unwrap().regex, regex.substitution));
        (action.prefix_rewrite, regex)
    };
    assert_eq!(rewritten("/a", "/b"), ("/b".into(), None));
    assert_eq!(rewritten("/", "/b"), ("/b/".into(), None));
    assert_eq!(rewritten("/", "/"), ("/".into(), None));
    // Not `/`: that would make `//x` of `/a/x`.
    assert_eq!(
        rewritten("/a", "/"),
        (String::new(), Some(("^/a/?".into(), "/".into())))
    );
    assert_eq!(
        rewritten("/a.b+c", "/"),
        (String::new(), Some((r"^/a\.b\+c/?".into(), "/".into())))
    );
}

#[test]
fn a_redirect_removes_a_prefix_alike() {
    let to = Redirect {
        scheme: None,
        hostname: None,
        port: None,
        path: Some(PathRewrite::Prefix("/".into())),
        status: 302,
    };
    let matches = RuleMatch {
        path: PathMatch::Prefix("/a".into()),
        ..RuleMatch::default()
    };
    let Some(route_v3::route::Action::Redirect(sent)) = sent(Rule {
        matches,
        ..rule(Action::Redirect(to))
    })
    .action
    else {
        panic!("no redirect");
    };
    let Some(route_v3::redirect_action::PathRewriteSpecifier::RegexRewrite(regex)) =
        sent.path_rewrite_specifier
    else {
        panic!("{sent:?}");
    };
    assert_eq!(
        (
            regex.pattern.unwrap().regex.as_str(),
            regex.substitution.as_str()
        ),
        ("^/a/?", "/")
    );
}

#[test]
fn no_limit_is_said_because_silence_means_fifteen_seconds() {
    let timeout = sent_forward(RuleMatch::default(), forward()).timeout;
    assert_eq!(
        timeout,
        Some(prost_types::Duration {
            seconds: 0,
            nanos: 0
        })
    );
}

#[test]
fn only_a_missing_backend_makes_unknown_clusters_a_500() {
    let code = |to| sent_forward(RuleMatch::default(), to).cluster_not_found_response_code;
    assert_eq!(
        code(forward()),
        i32::from(ClusterNotFoundResponseCode::ServiceUnavailable)
    );
    let half = Forward {
        backends: vec![backend(Some(battle()), 1), backend(None, 1)],
        ..forward()
    };
    assert_eq!(
        code(half),
        i32::from(ClusterNotFoundResponseCode::InternalServerError)
    );
}

#[test]
fn one_plain_backend_takes_the_short_form() {
    let specifier = |to| {
        sent_forward(RuleMatch::default(), to)
            .cluster_specifier
            .unwrap()
    };
    assert_eq!(
        specifier(forward()),
        ClusterSpecifier::Cluster(battle().to_string())
    );
    let weighed = Forward {
        backends: vec![backend(Some(battle()), 7)],
        ..forward()
    };
    assert!(matches!(
        specifier(weighed),
        ClusterSpecifier::WeightedClusters(_)
    ));
}

#[test]
fn resets_are_retried_only_where_that_is_safe_or_asked_for() {
    let retry_on = |method: Option<&str>, codes: &[u16], attempts| {
        let matches = RuleMatch {
            method: method.map(Into::into),
            ..RuleMatch::default()
        };
        let retry = Retry {
            attempts,
            codes: codes.to_vec(),
            ..Retry::default()
        };
        sent_forward(matches, Forward { retry, ..forward() })
            .retry_policy
            .unwrap()
            .retry_on
    };
    let safe = "connect-failure,refused-stream,reset-before-request";
    assert_eq!(retry_on(None, &[], 2), safe);
    assert_eq!(retry_on(Some("POST"), &[], 2), safe);
    assert_eq!(retry_on(Some("GET"), &[], 2), format!("{safe},reset"));
    assert_eq!(
        retry_on(None, &[503], 2),
        format!("{safe},reset,retriable-status-codes")
    );
    assert_eq!(retry_on(Some("GET"), &[503], 0), "");
}

#[test]
fn percent_signs_in_header_values_are_no_formatting_commands() {
    let edit = HeaderEdit {
        set: vec![("x-share".into(), "%REQ(host)% 5%".into())],
        ..HeaderEdit::default()
    };
    let sent = sent(Rule {
        request_headers: edit,
        ..rule(Action::Forward(forward()))
    });
    assert_eq!(
        sent.request_headers_to_add[0]
            .header
            .as_ref()
            .unwrap()
            .value,
        "%%REQ(host)%% 5%%"
    );
}

#[test]
fn query_text_goes_out_as_a_client_sends_it() {
    let query = vec![QueryMatch {
        name: "käfig".into(),
        value: ValueMatch::Exact("a b+c/5%&".into()),
    }];
    let matches = RuleMatch {
        query,
        ..RuleMatch::default()
    };
    let sent = sent(Rule {
        matches,
        ..rule(Action::Forward(forward()))
    })
    .r#match
    .unwrap()
    .query_parameters
    .remove(0);
    assert_eq!(sent.name, "k%C3%A4fig");
    let route_v3::query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(value) =
        sent.query_parameter_match_specifier.unwrap()
    else {
        panic!("no string match");
    };
    let exact = phalanx_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern::Exact(
        "a%20b+c/5%25%26".into(),
    );
    assert_eq!(value.match_pattern, Some(exact));
}

#[test]
fn an_own_answer_carries_its_reason() {
    let sent = sent(rule(Action::Respond(Reason::InvalidBackend)));
    let header = sent.response_headers_to_add[0].header.clone().unwrap();
    assert_eq!(
        (header.key.as_str(), header.value.as_str()),
        ("x-phalanx-reason", "invalid_backend")
    );
    let Some(route_v3::route::Action::DirectResponse(response)) = sent.action else {
        panic!("no direct response")
    };
    assert_eq!(response.status, 500);
}

#[test]
fn every_locality_has_the_weight_of_its_endpoints() {
    let endpoint = |port, zone: &str, weight| Endpoint {
        address: ([127, 0, 0, 1], port).into(),
        weight,
        zone: zone.into(),
        is_far: false,
        health: Health::Healthy,
        version: "v1".into(),
        instance: String::new(),
        target: 0,
        mutual_tls: false,
        datagrams: false,
        token: String::new(),
    };
    let endpoints = vec![
        endpoint(1, "b", 2),
        endpoint(2, "a", 1),
        endpoint(3, "b", 5),
        endpoint(4, "", 1),
    ];
    let body = super::endpoints(&Assignment {
        cluster: battle(),
        endpoints,
        overprovision: None,
    })
    .body;
    let sent = ClusterLoadAssignment::decode(body).unwrap();
    let weights: Vec<_> = sent
        .endpoints
        .iter()
        .map(|l| {
            (
                l.locality.as_ref().unwrap().zone.as_str(),
                l.load_balancing_weight,
                l.lb_endpoints.len(),
            )
        })
        .collect();
    assert_eq!(
        weights,
        [("", Some(1), 1), ("a", Some(1), 1), ("b", Some(7), 2)]
    );
    assert_eq!(sent.policy, None);
}

/// The weights of the localities of these endpoints, by zone.
fn zone_weights(endpoints: &[(&str, u32, Health)]) -> Vec<(String, u32)> {
    let endpoint = |(port, (zone, weight, health)): (u16, &(&str, u32, Health))| Endpoint {
        address: ([127, 0, 0, 1], port).into(),
        weight: *weight,
        zone: (*zone).into(),
        is_far: false,
        health: *health,
        version: String::new(),
        instance: String::new(),
        target: 0,
        mutual_tls: false,
        datagrams: false,
        token: String::new(),
    };
    let assignment = Assignment {
        cluster: battle(),
        endpoints: (1..).zip(endpoints).map(endpoint).collect(),
        overprovision: None,
    };
    let sent = ClusterLoadAssignment::decode(super::endpoints(&assignment).body).unwrap();
    let zone = |l: &phalanx_proto::envoy::config::endpoint::v3::LocalityLbEndpoints| {
        let zone = l.locality.as_ref().unwrap().zone.clone();
        (zone, l.load_balancing_weight.unwrap())
    };
    sent.endpoints.iter().map(zone).collect()
}

#[test]
fn a_zone_weighs_what_takes_traffic_in_it() {
    use Health::{Draining, Healthy, Unhealthy};
    let weights = |endpoints: &[(&str, u32, Health)]| {
        let weights = zone_weights(endpoints);
        weights
            .into_iter()
            .map(|(_, weight)| weight)
            .collect::<Vec<_>>()
    };
    let all = [("a", 2, Healthy), ("a", 3, Healthy), ("b", 5, Healthy)];
    assert_eq!(weights(&all), [5, 5]);
    let [mut a, b, c] = all;
    for health in [Unhealthy, Draining] {
        a.2 = health;
        assert_eq!(weights(&[a, b, c]), [3, 5], "{health:?}");
    }
    // A zone with nothing healthy stays visible; where nothing is healthy at all, everything counts.
    let gone = |(zone, weight, _)| (zone, weight, Unhealthy);
    assert_eq!(weights(&[gone(a), gone(b), c]), [1, 5]);
    assert_eq!(weights(&[gone(a), gone(b), gone(c)]), [5, 5]);
}

#[test]
fn only_the_configured_detectors_enforce() {
    let mut cluster = Cluster::new(battle(), Protocol::Auto);
    cluster.outlier_detection.consecutive_5xx = 0;
    let sent = sent_cluster(&cluster).outlier_detection.unwrap();
    assert_eq!(sent.enforcing_consecutive_5xx, Some(0));
    assert_eq!(sent.enforcing_consecutive_gateway_failure, Some(100));
    assert_eq!(sent.enforcing_success_rate, Some(0));
    assert_eq!(sent.always_eject_one_host, Some(true));
}

#[test]
fn protocols_choose_the_http_version() {
    use upstreams_v3::http_protocol_options::UpstreamProtocolOptions as Options;
    use upstreams_v3::http_protocol_options::explicit_http_config::ProtocolConfig;
    let version = |protocol| {
        let sent = sent_cluster(&Cluster::new(battle(), protocol));
        let any = &sent.typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
        let options = upstreams_v3::HttpProtocolOptions::decode(any.value.as_slice()).unwrap();
        match options.upstream_protocol_options.unwrap() {
            Options::UseDownstreamProtocolConfig(both) => {
                assert!(
                    both.http_protocol_options.is_some() && both.http2_protocol_options.is_some()
                );
                "as the caller"
            }
            Options::ExplicitHttpConfig(explicit) => match explicit.protocol_config.unwrap() {
                ProtocolConfig::HttpProtocolOptions(_) => "1",
                ProtocolConfig::Http2ProtocolOptions(_) => "2",
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    };
    let all = [
        Protocol::Auto,
        Protocol::Http1,
        Protocol::H2c,
        Protocol::Grpc,
    ]
    .map(version);
    assert_eq!(all, ["as the caller", "1", "2", "2"]);
}

#[test]
fn load_balancers_that_are_one_to_envoy_stay_two_to_us() {
    let version = |load_balancer| {
        super::cluster(&Cluster {
            load_balancer,
            ..Cluster::new(battle(), Protocol::Auto)
        })
        .version
    };
    assert_ne!(
        version(LoadBalancer::P2c),
        version(LoadBalancer::LeastRequest)
    );
    let sent = sent_cluster(&Cluster::new(battle(), Protocol::Auto));
    assert_eq!(
        sent.lb_policy,
        i32::from(cluster_v3::cluster::LbPolicy::LeastRequest)
    );
}
