use phalanx_model::identity::TrustDomain;
use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, Direction, ServiceName};
use phalanx_model::resource::{
    Access, AccessPolicy, AccessRule, Action, Assignment, Backend, Caller, Cluster, Effect,
    Endpoint, Forward, HeaderEdit, Health, Inbound, InboundRule, Listener, ListenerProtocol,
    LoadBalancer, OutlierDetection, PathMatch, PeerTls, Retry, RetryBudget, Rewrite, RouteTable,
    Rule, RuleMatch, VirtualHost,
};
use phalanx_proto::envoy::config::cluster::v3 as cluster_v3;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use prost::Message;

use crate::decode::{self, Resource};
use crate::{Kind, encode};

fn battle() -> ClusterName {
    ClusterName::outbound(ServiceName::new("default", "battle"), 80)
}

/// A table with one forwarding rule for the prefix `/a`, changed by `change`; the refusal's text.
fn routes(change: impl FnOnce(&mut route_v3::RouteConfiguration)) -> String {
    let backend = Backend {
        cluster: Some(battle()),
        weight: 1,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    };
    let forward = Forward {
        backends: vec![backend],
        rewrite: Rewrite::default(),
        request_timeout: None,
        attempt_timeout: None,
        retry: Retry::default(),
        hash_on: None,
        ..Forward::default()
    };
    let rule = Rule {
        name: "r".into(),
        matches: RuleMatch {
            path: PathMatch::Prefix("/a".into()),
            ..RuleMatch::default()
        },
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        action: Action::Forward(forward),
    };
    let host = VirtualHost {
        name: "h".into(),
        domains: vec!["battle".into()],
        rules: vec![rule],
    };
    let table = RouteTable {
        name: "outbound".into(),
        hosts: vec![host],
    };
    let mut message = route_v3::RouteConfiguration::decode(encode::routes(&table).body).unwrap();
    change(&mut message);
    decode::decode(Kind::Routes, &message.encode_to_vec())
        .unwrap_err()
        .to_string()
}

fn route(change: impl FnOnce(&mut route_v3::Route)) -> String {
    routes(|table| change(&mut table.virtual_hosts[0].routes[0]))
}

fn action(change: impl FnOnce(&mut route_v3::RouteAction)) -> String {
    route(|route| match &mut route.action {
        Some(route_v3::route::Action::Route(action)) => change(action),
        other => panic!("{other:?}"),
    })
}

fn cluster(change: impl FnOnce(&mut cluster_v3::Cluster)) -> Result<Resource, String> {
    let sent = encode::cluster(&Cluster::new(battle(), Protocol::Auto));
    let mut message = cluster_v3::Cluster::decode(sent.body).unwrap();
    change(&mut message);
    decode::decode(Kind::Cluster, &message.encode_to_vec()).map_err(|error| error.to_string())
}

/// What an endpoint set is refused for after the change.
fn endpoints(change: impl FnOnce(&mut endpoint_v3::ClusterLoadAssignment)) -> String {
    let endpoint = Endpoint {
        address: ([127, 0, 0, 1], 80).into(),
        weight: 1,
        zone: String::new(),
        is_far: false,
        health: Health::Healthy,
        version: String::new(),
        instance: String::new(),
        target: 0,
        mutual_tls: false,
        datagrams: false,
        token: String::new(),
    };
    let sent = encode::endpoints(&Assignment {
        cluster: battle(),
        endpoints: vec![endpoint],
        overprovision: None,
    });
    let mut message = endpoint_v3::ClusterLoadAssignment::decode(sent.body).unwrap();
    change(&mut message);
    decode::decode(Kind::Endpoints, &message.encode_to_vec())
        .unwrap_err()
        .to_string()
}

fn manager(change: impl FnOnce(&mut hcm_v3::HttpConnectionManager)) -> Result<Resource, String> {
    let listener = Listener {
        name: "outbound".into(),
        address: "127.0.0.1:15001".parse().unwrap(),
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Http {
            route_table: "outbound".into(),
        },
    };
    let mut message = listener_v3::Listener::decode(encode::listener(&listener).body).unwrap();
    let Some(listener_v3::filter::ConfigType::TypedConfig(any)) =
        &mut message.filter_chains[0].filters[0].config_type
    else {
        panic!("no manager");
    };
    let mut manager = hcm_v3::HttpConnectionManager::decode(any.value.as_slice()).unwrap();
    change(&mut manager);
    any.value = manager.encode_to_vec();
    decode::decode(Kind::Listener, &message.encode_to_vec()).map_err(|error| error.to_string())
}

#[test]
#[allow(deprecated)] // by Envoy; it takes them still
fn a_refusal_names_the_field() {
    assert_eq!(
        action(|action| action.cors = Some(Default::default())),
        "RouteConfiguration.virtual_hosts[0].routes[0].route.cors: not supported by this sidecar",
    );
    let refused = route(|route| {
        route
            .r#match
            .as_mut()
            .unwrap()
            .cookies
            .push(Default::default())
    });
    assert!(
        refused.starts_with("RouteConfiguration.virtual_hosts[0].routes[0].match.cookies:"),
        "{refused}"
    );
    let refused =
        cluster(|cluster| cluster.transport_socket = Some(Default::default())).unwrap_err();
    assert_eq!(
        refused,
        "Cluster.transport_socket: not supported by this sidecar"
    );
}

#[test]
fn copies_sessions_and_cors_that_we_do_not_have_are_refused_not_ignored() {
    use phalanx_proto::envoy::extensions::filters::http::cors::v3::CorsPolicy;
    use phalanx_proto::envoy::extensions::filters::http::stateful_session::v3 as session_v3;
    use phalanx_proto::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
    use session_v3::stateful_session_per_route::Override;
    let mirror = route_v3::route_action::RequestMirrorPolicy {
        cluster_header: "x-shadow".into(),
        ..Default::default()
    };
    let refused = action(|action| action.request_mirror_policies.push(mirror));
    assert!(refused.contains("request_mirror_policies[0].cluster_header: not supported"));
    let config = |name: &str, config| {
        let name = name.to_owned();
        route(|route| drop(route.typed_per_filter_config.insert(name, config)))
    };
    let shadow = CorsPolicy {
        shadow_enabled: Some(Default::default()),
        ..Default::default()
    };
    let refused = config("envoy.filters.http.cors", encode::any(&shadow));
    assert!(
        refused.contains("shadow_enabled: not supported"),
        "{refused}"
    );
    let cookie = CookieBasedSessionState {
        cookie: Some(phalanx_proto::envoy::r#type::http::v3::Cookie {
            name: "room".into(),
            path: "/rooms".into(),
            ..Default::default()
        }),
    };
    let session = |strict| session_v3::StatefulSessionPerRoute {
        r#override: Some(Override::StatefulSession(session_v3::StatefulSession {
            session_state: Some(core_v3::TypedExtensionConfig {
                name: "cookie".into(),
                typed_config: Some(encode::any(&cookie)),
            }),
            strict,
            ..Default::default()
        })),
    };
    for (strict, why) in [(true, "strict: not supported"), (false, "for the path `/`")] {
        let sent = encode::any(&session(strict));
        let refused = config("envoy.filters.http.stateful_session", sent);
        assert!(refused.contains(why), "{refused}");
    }
    let refused = config("envoy.filters.http.lua", encode::any(&shadow));
    assert!(
        refused.contains("`envoy.filters.http.lua` is not supported"),
        "{refused}"
    );
}

#[test]
fn keys_that_we_do_not_have_are_refused_not_ignored() {
    let policy = cluster_v3::cluster::LbPolicy::ClusterProvided;
    let refused = cluster(|cluster| cluster.lb_policy = policy.into()).unwrap_err();
    assert_eq!(refused, "Cluster.lb_policy: not supported by this sidecar");
    let other_table = cluster_v3::cluster::MaglevLbConfig {
        table_size: Some(65_539),
    };
    let refused = cluster(|cluster| {
        cluster.lb_policy = cluster_v3::cluster::LbPolicy::Maglev.into();
        cluster.lb_config = Some(cluster_v3::cluster::LbConfig::MaglevLbConfig(other_table));
    });
    assert!(
        refused
            .unwrap_err()
            .starts_with("Cluster.maglev_lb_config: this sidecar has only")
    );
    assert!(
        action(|action| action.hash_policy.push(Default::default()))
            .ends_with("hash_policy: only header, cookie and source_ip are supported")
    );
}

#[test]
fn rewrites_that_would_break_segments_are_refused() {
    assert!(action(|action| action.prefix_rewrite = "/".into()).ends_with("would double a slash"));
    assert!(
        action(|action| action.prefix_rewrite = "/b/".into()).ends_with("would double a slash")
    );
    let refused = routes(|table| {
        let route = &mut table.virtual_hosts[0].routes[0];
        let root = route_v3::route_match::PathSpecifier::Prefix("/".into());
        route.r#match.as_mut().unwrap().path_specifier = Some(root);
        let Some(route_v3::route::Action::Route(action)) = &mut route.action else {
            panic!()
        };
        action.prefix_rewrite = "/b".into();
    });
    assert!(refused.contains("must end with `/`"), "{refused}");
}

#[test]
fn prefixes_within_a_segment_are_refused() {
    let refused = route(|route| {
        let prefix = route_v3::route_match::PathSpecifier::Prefix("/a".into());
        route.r#match.as_mut().unwrap().path_specifier = Some(prefix);
    });
    assert!(
        refused.contains("match.prefix: `/a` would match within a segment"),
        "{refused}"
    );
}

#[test]
fn formatting_commands_in_headers_are_refused() {
    let refused = route(|route| {
        let mut option = encode::routes::set_header("x-host", "a");
        option.header.as_mut().unwrap().value = "%REQ(:authority)%".into();
        route.request_headers_to_add.push(option);
    });
    assert!(
        refused.contains("request_headers_to_add[0].header.value: formatting commands"),
        "{refused}"
    );
}

#[test]
fn a_header_that_smuggles_a_line_is_refused() {
    let refused = route(|route| {
        route
            .response_headers_to_add
            .push(encode::routes::set_header("x-a", "b\r\nx-c: d"))
    });
    assert!(
        refused.contains("header.value: holds a line break"),
        "{refused}"
    );
    let refused = route(|route| {
        route
            .request_headers_to_add
            .push(encode::routes::set_header("x a", "b"))
    });
    assert!(
        refused.contains("header.key: `x a` is no header name"),
        "{refused}"
    );
    let refused = route(|route| route.request_headers_to_remove.push("Host".into()));
    assert!(
        refused.contains("request_headers_to_remove[0]: `host` can't be edited"),
        "{refused}"
    );
}

#[test]
fn retries_of_another_kind_are_refused() {
    let refused = action(|action| action.retry_policy.as_mut().unwrap().retry_on = "5xx".into());
    assert!(
        refused.contains("retry_policy.retry_on: this sidecar has only"),
        "{refused}"
    );
}

#[test]
fn a_missing_route_timeout_is_fifteen_seconds_as_in_envoy() {
    let sent = |timeout| {
        let cluster = route_v3::route_action::ClusterSpecifier::Cluster(battle().to_string());
        let action = route_v3::RouteAction {
            timeout,
            cluster_specifier: Some(cluster),
            ..Default::default()
        };
        let root = route_v3::route_match::PathSpecifier::Prefix("/".into());
        let route = route_v3::Route {
            r#match: Some(route_v3::RouteMatch {
                path_specifier: Some(root),
                ..Default::default()
            }),
            action: Some(route_v3::route::Action::Route(action)),
            ..Default::default()
        };
        let host = route_v3::VirtualHost {
            name: "h".into(),
            domains: vec!["*".into()],
            routes: vec![route],
            ..Default::default()
        };
        let table = route_v3::RouteConfiguration {
            name: "t".into(),
            virtual_hosts: vec![host],
            ..Default::default()
        };
        let mut table = decode::routes("t", &table.encode_to_vec()).unwrap();
        match table.hosts.remove(0).rules.remove(0).action {
            Action::Forward(forward) => (
                forward.request_timeout.map(|t| t.as_secs()),
                forward.retry.attempts,
            ),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(sent(None), (Some(15), 0));
    assert_eq!(sent(Some(prost_types::Duration::default())), (None, 0));
}

#[test]
fn an_envoy_without_our_words_is_understood() {
    let sent = cluster(|cluster| {
        cluster.metadata = None;
        cluster.circuit_breakers = None;
        cluster.outlier_detection = None;
        cluster.common_lb_config = None;
    });
    let Ok(Resource::Cluster(read)) = sent else {
        panic!("{sent:?}")
    };
    assert_eq!(read.load_balancer, LoadBalancer::LeastRequest);
    assert_eq!(read.protocol, Protocol::Auto);
    assert_eq!(
        read.retry_budget,
        RetryBudget {
            percent: 0,
            min_concurrency: 3
        }
    );
    assert_eq!(
        (
            read.outlier_detection.consecutive_5xx,
            read.outlier_detection.consecutive_gateway
        ),
        (0, 0)
    );
    assert_eq!(
        read.outlier_detection.interval,
        OutlierDetection::default().interval
    );
}

#[test]
fn our_words_must_not_contradict_envoys() {
    let refused =
        cluster(|cluster| cluster.metadata = encode::metadata(&[("lb", "Random")])).unwrap_err();
    assert_eq!(
        refused,
        "Cluster.metadata: `lb: Random` contradicts lb_policy"
    );
    let refused = cluster(|cluster| cluster.metadata = encode::metadata(&[("protocol", "grpc")]))
        .unwrap_err();
    assert!(
        refused.contains("contradicts upstream_protocol_options"),
        "{refused}"
    );
    let refused =
        cluster(|cluster| cluster.metadata = encode::metadata(&[("colour", "red")])).unwrap_err();
    assert_eq!(
        refused,
        "Cluster.metadata: phalanx.dev has no word `colour`"
    );
}

#[test]
fn sources_other_than_ads_are_refused() {
    use core_v3::config_source::ConfigSourceSpecifier;
    let refused = cluster(|cluster| {
        let source = cluster
            .eds_cluster_config
            .as_mut()
            .unwrap()
            .eds_config
            .as_mut()
            .unwrap();
        source.config_source_specifier = Some(ConfigSourceSpecifier::Self_(Default::default()));
    });
    assert!(
        refused
            .unwrap_err()
            .starts_with("Cluster.eds_cluster_config.eds_config: must be")
    );
}

#[test]
fn detectors_that_we_do_not_have_are_refused() {
    let refused = cluster(|cluster| {
        cluster
            .outlier_detection
            .as_mut()
            .unwrap()
            .enforcing_success_rate = Some(50)
    });
    assert!(
        refused
            .unwrap_err()
            .contains("enforcing_success_rate: must be 0 or 100")
    );
}

#[test]
fn a_listener_needs_the_router_and_only_the_router() {
    assert!(
        manager(|manager| manager.http_filters.clear())
            .unwrap_err()
            .contains("the router filter is required")
    );
    let refused = manager(|manager| {
        let fault = hcm_v3::HttpFilter {
            name: "envoy.filters.http.fault".into(),
            ..Default::default()
        };
        manager.http_filters.insert(0, fault);
    });
    assert!(
        refused
            .unwrap_err()
            .ends_with("typed_config.http_filters[0]: not supported by this sidecar")
    );
}

#[test]
fn inline_routes_are_refused_by_name() {
    use hcm_v3::http_connection_manager::RouteSpecifier;
    let refused = manager(|manager| {
        manager.route_specifier = Some(RouteSpecifier::RouteConfig(Default::default()))
    });
    assert!(
        refused
            .unwrap_err()
            .ends_with("typed_config.route_config: not supported by this sidecar")
    );
}

#[test]
fn what_is_fixed_may_be_left_out_but_not_changed() {
    let silent = manager(|manager| {
        manager.http2_protocol_options = None;
        manager.local_reply_config = None;
        manager.normalize_path = None;
    });
    assert!(silent.is_ok(), "{silent:?}");
    let refused = manager(|manager| manager.max_request_headers_kb = Some(8192)).unwrap_err();
    assert!(
        refused.ends_with("max_request_headers_kb: this sidecar has only Some(64)"),
        "{refused}"
    );
}

#[test]
fn endpoints_of_a_third_priority_or_by_name_are_refused() {
    assert!(
        endpoints(|sent| sent.endpoints[0].priority = 2)
            .ends_with("endpoints[0].priority: is more than 1")
    );
    let twice = endpoints(|sent| sent.endpoints.push(sent.endpoints[0].clone()));
    assert!(
        twice.ends_with("127.0.0.1:80 stands there twice"),
        "{twice}"
    );
    let heavy =
        endpoints(|sent| sent.endpoints[0].lb_endpoints[0].load_balancing_weight = Some(129));
    assert!(heavy.ends_with("129 is not from 1 to 128"), "{heavy}");
    let portless = endpoints(|sent| {
        sent.endpoints[0].lb_endpoints[0].metadata =
            crate::encode::metadata(&[(crate::encode::endpoints::PORT, "70000")]);
    });
    assert!(portless.ends_with("`port` is no port: 70000"), "{portless}");
}

#[test]
fn foreign_text_is_cut_before_it_is_quoted() {
    let refused = routes(|table| table.virtual_hosts[0].domains = vec!["*".repeat(100_000)]);
    assert!(refused.len() < 1_000, "{}", refused.len());
}

/// What the inbound listener of one rule is refused for after the change.
fn inbound(change: impl FnOnce(&mut listener_v3::Listener)) -> String {
    let rule = AccessRule {
        callers: vec![Caller::Namespace("arena".into())],
        ..AccessRule::default()
    };
    let policy = AccessPolicy {
        name: "AuthorizationPolicy/arena/p".into(),
        effect: Effect::Allow,
        rules: vec![rule],
    };
    let rule = InboundRule {
        access: Access {
            policies: vec![policy],
        },
        ..InboundRule::default()
    };
    let listener = Listener {
        name: "inbound".into(),
        address: "0.0.0.0:15006".parse().unwrap(),
        direction: Direction::Inbound,
        protocol: ListenerProtocol::Inbound {
            trust_domain: TrustDomain::default(),
            rules: Inbound {
                default: rule,
                ..Inbound::default()
            },
        },
    };
    let mut message = listener_v3::Listener::decode(encode::listener(&listener).body).unwrap();
    change(&mut message);
    match decode::decode(Kind::Listener, &message.encode_to_vec()) {
        Ok(taken) => panic!("taken: {taken:?}"),
        Err(error) => error.to_string(),
    }
}

/// Replaces a text of the same length wherever it stands in the chain's filters.
fn reworded(chain: &mut listener_v3::FilterChain, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let Some(listener_v3::filter::ConfigType::TypedConfig(any)) = &mut chain.filters[0].config_type
    else {
        panic!("no manager");
    };
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let mut at = 0;
    while let Some(found) = any.value[at..].windows(from.len()).position(|w| w == from) {
        at += found;
        any.value[at..at + to.len()].copy_from_slice(to);
    }
}

#[test]
fn nothing_in_an_inbound_listener_is_passed_over() {
    let refused = inbound(|l| l.filter_chains.clear());
    assert!(
        refused.contains("none is for ports that are not named"),
        "{refused}"
    );
    // A chain that asks nobody for a certificate.
    let refused = inbound(|l| l.filter_chains[0].transport_socket = None);
    assert_eq!(
        refused,
        "Listener.filter_chains[0]: holds something that this sidecar can't honour"
    );
    // The same rule, said otherwise for who comes in plain text.
    let refused = inbound(|l| reworded(&mut l.filter_chains[1], "arena/sa", "evils/sa"));
    assert!(
        refused.contains("is not one of two chains of one rule"),
        "{refused}"
    );
    let refused = inbound(|l| {
        let twice = l.filter_chains[0].clone();
        l.filter_chains.push(twice);
    });
    assert_eq!(
        refused,
        "Listener: holds something that this sidecar can't honour"
    );
    let refused = inbound(|l| l.listener_filters.clear());
    assert_eq!(
        refused,
        "Listener: holds something that this sidecar can't honour"
    );
    let refused = inbound(|l| {
        for chain in &mut l.filter_chains {
            reworded(chain, "phalanx.local/ns", "phalanx.lokal/ns");
        }
    });
    assert!(
        refused.contains("only whole ids and whole namespaces"),
        "{refused}"
    );
    let refused = inbound(|l| {
        let matched = l.filter_chains[0].filter_chain_match.as_mut();
        matched.unwrap().transport_protocol = "quic".into();
    });
    assert!(
        refused.contains("transport_protocol: must be `tls` or `raw_buffer`"),
        "{refused}"
    );
}

#[test]
fn a_cluster_with_other_tls_than_the_meshs_is_refused() {
    let tls = |change: fn(&mut cluster_v3::Cluster)| {
        let ids = vec!["spiffe://phalanx.local/ns/a/sa/b".parse().unwrap()];
        let sent = encode::cluster(&Cluster {
            tls: Some(PeerTls { ids }),
            ..Cluster::new(battle(), Protocol::Auto)
        });
        let mut message = cluster_v3::Cluster::decode(sent.body).unwrap();
        change(&mut message);
        decode::decode(Kind::Cluster, &message.encode_to_vec()).map_err(|error| error.to_string())
    };
    assert!(tls(|_| {}).is_ok());
    let changes: [fn(&mut cluster_v3::Cluster); 4] = [
        // In plain text to whoever is not matched, and to nobody.
        |c| drop(c.transport_socket_matches.pop()),
        |c| drop(c.transport_socket_matches.remove(0)),
        |c| c.transport_socket_matches[0].r#match = None,
        |c| c.transport_socket_matches[1].transport_socket = None,
    ];
    for change in changes {
        let refused = tls(change).unwrap_err();
        assert!(
            refused.starts_with("Cluster.transport_socket_matches"),
            "{refused}"
        );
    }
}
