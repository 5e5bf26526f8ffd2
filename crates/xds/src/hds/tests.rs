use std::time::Duration;

use phalanx_model::resource::{HealthCheck, PeerTls, Probe};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::core::v3::health_check::HealthChecker;
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;
use phalanx_proto::envoy::service::health::v3::health_check_request_or_endpoint_health_response::RequestType;

use super::*;
use crate::encode::address;

fn group(name: &str, probe: Probe) -> Group {
    let is_http = matches!(probe, Probe::Http { .. });
    let is_tcp = probe == Probe::Tcp;
    let is_grpc = matches!(probe, Probe::Grpc { .. });
    Group {
        name: name.into(),
        check: HealthCheck {
            interval: Duration::from_millis(1500),
            healthy_threshold: 2,
            ..HealthCheck::new(probe)
        },
        authority: if is_tcp { "" } else { "shop.default.svc.mesh" }.into(),
        port: if is_http { 8080 } else { 0 },
        http2: is_grpc,
        tls: None,
        endpoints: [
            ("10.0.0.1:80", "az1"),
            ("10.0.0.2:80", "az2"),
            ("[::1]:80", "az2"),
        ]
        .map(|(address, zone)| (address.parse().unwrap(), zone.to_owned()))
        .into(),
    }
}

fn all() -> Vec<Group> {
    vec![
        group(
            "a",
            Probe::Http {
                path: "/healthz".into(),
            },
        ),
        group(
            "b",
            Probe::Grpc {
                service: "game.Battle".into(),
            },
        ),
        group("c", Probe::Tcp),
    ]
}

#[test]
fn whom_to_expect_over_mutual_tls_is_told_too_and_nothing_by_halves() {
    let mut secured = all();
    for group in &mut secured {
        let id = "spiffe://phalanx.local/ns/default/sa/shop".parse().unwrap();
        group.tls = Some(PeerTls { ids: vec![id] });
    }
    let interval = Duration::from_secs(2);
    let told = specifier(&secured, interval);
    assert_eq!(groups(told.clone()).unwrap(), (secured, interval));
    // A criterion without sockets, and sockets that no criterion asks for.
    let mut half = told.clone();
    half.cluster_health_checks[0]
        .transport_socket_matches
        .clear();
    assert!(groups(half).is_err());
    let mut half = told;
    half.cluster_health_checks[0].health_checks[0].transport_socket_match_criteria = None;
    assert!(groups(half).is_err());
}

#[test]
fn what_is_told_is_what_is_checked() {
    let interval = Duration::from_secs(2);
    assert_eq!(
        groups(specifier(&all(), interval)).unwrap(),
        (all(), interval)
    );
}

#[test]
fn what_our_sidecar_cannot_ask_is_refused_by_its_path() {
    let refusal = |edit: fn(&mut core_v3::HealthCheck)| {
        let mut message = specifier(&all(), Duration::from_secs(1));
        edit(&mut message.cluster_health_checks[0].health_checks[0]);
        groups(message).unwrap_err().to_string()
    };
    let path = "HealthCheckSpecifier.cluster_health_checks[0].health_checks";
    for (edit, expected) in [
        (
            (|c| c.alt_port = Some(1)) as fn(&mut core_v3::HealthCheck),
            ".alt_port: not supported",
        ),
        (|c| c.health_checker = None, ".health_checker: is required"),
        (|c| c.interval = None, ".interval: is required"),
        (
            |c| c.timeout = Some(Default::default()),
            ".timeout: must be more than 0s",
        ),
        (
            |c| {
                if let Some(HealthChecker::HttpHealthCheck(http)) = &mut c.health_checker {
                    http.expected_statuses[0].end = 500;
                }
            },
            ".http_health_check.expected_statuses: this sidecar has only",
        ),
        (
            |c| {
                if let Some(HealthChecker::HttpHealthCheck(http)) = &mut c.health_checker {
                    http.request_headers_to_add[0].header.as_mut().unwrap().key = "host".into();
                }
            },
            ".http_health_check.request_headers_to_add: only `x-phalanx-port`",
        ),
    ] {
        let refused = refusal(edit);
        assert!(
            refused.starts_with(&format!("{path}{expected}")),
            "{refused}"
        );
    }
}

#[test]
fn a_report_is_read_line_by_line() {
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let lines = [
        ("a", at("10.0.0.1:80"), Ok(())),
        ("a", at("[::1]:80"), Err("answered 503")),
        ("b", at("10.0.0.1:80"), Err("no answer")),
    ];
    let Some(RequestType::EndpointHealthResponse(response)) = report(lines).request_type else {
        panic!()
    };
    let read: Vec<_> = reported(response)
        .map(|r| (r.name, r.address, r.is_healthy, r.reason))
        .collect();
    let said = lines.map(|(name, address, state)| {
        let reason = state.err().unwrap_or_default().to_owned();
        (name.to_owned(), address, state.is_ok(), reason)
    });
    assert_eq!(read, said);
}

#[test]
fn lines_that_say_nothing_or_make_no_sense_are_left_out() {
    let line = |address: Option<core_v3::Address>, status: i32| wire::EndpointHealth {
        endpoint: Some(endpoint_v3::Endpoint {
            address,
            ..Default::default()
        }),
        health_status: status,
        ..Default::default()
    };
    let good = || Some(address("10.0.0.1:80".parse().unwrap()));
    let mut named = good();
    if let Some(core_v3::address::Address::SocketAddress(socket)) =
        &mut named.as_mut().unwrap().address
    {
        socket.address = "example.com".into();
    }
    let lines = vec![
        line(None, 1),
        line(named, 1),
        line(good(), 0),
        line(good(), 99),
        line(good(), 4),
        wire::EndpointHealth::default(),
    ];
    let response = wire::EndpointHealthResponse {
        cluster_endpoints_health: vec![wire::ClusterEndpointsHealth {
            cluster_name: "a".into(),
            locality_endpoints_health: vec![wire::LocalityEndpointsHealth {
                endpoints_health: lines,
                ..Default::default()
            }],
        }],
        ..Default::default()
    };
    let read: Vec<_> = reported(response).collect();
    assert_eq!(read.len(), 1);
    assert_eq!(
        (read[0].is_healthy, read[0].reason.as_str()),
        (false, "no answer in time")
    );
}
