//! Datagrams: UDPRoute, ports for them, and how a policy has them taken.

use super::*;
use crate::document::{Kind, ParentRef};
use crate::instance::Protocol;
use crate::resource::udp::{Token, TokenAt, UdpRules};

fn document(text: &str) -> Document {
    let manifest = parse("f", text, "default");
    let mut documents = manifest.into_result().unwrap_or_else(|p| panic!("{p:#?}"));
    documents.remove(0).document
}

fn udp_route(parents: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: UDPRoute\nmetadata: {{name: room}}\nspec:\n  parentRefs: [{parents}]\n  rules: {rules}\n"
    )
}

fn policy(udp: &str) -> String {
    format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: room}}\nspec:\n  targetRefs: [{{kind: Service, name: room}}]\n  udp: {udp}\n"
    )
}

fn port(port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: room}}\nspec:\n  ports: [{{name: a, port: 1, {port}}}, {{name: b, port: 2}}]\n"
    )
}

const RULES: &str =
    "[{backendRefs: [{name: room, port: 7000, weight: 3}, {name: next, port: 7000}]}]";

fn refused(text: &str, path: &str, words: &str) {
    let told = problems(text);
    let is_it = |told: &&String| told.contains(&format!(" {path}: ")) && told.contains(words);
    assert!(told.iter().any(|told| is_it(&told)), "{text}{told:#?}");
}

#[test]
fn a_udp_route_has_gateways_and_services_for_parents_and_weighted_backends() {
    let text = udp_route(
        "{name: edge, sectionName: play}, {kind: Service, group: '', name: room, port: 7000}",
        RULES,
    );
    let Document::StreamRoute(route) = document(&text) else {
        panic!("it is a route");
    };
    assert_eq!(route.kind, Kind::UdpRoute);
    assert_eq!(route.gateways[0].section.as_deref(), Some("play"));
    let room = ServiceName::new("default", "room");
    let parent = ParentRef {
        service: room.clone(),
        port: Some(7000),
        section: None,
    };
    assert_eq!(route.parents, [parent]);
    let backend = &route.backends[0];
    assert_eq!(
        (&backend.service, backend.port, backend.weight),
        (&room, 7000, 3)
    );
}

#[test]
fn a_udp_route_is_refused_where_nothing_could_follow_from_it() {
    let one = "{name: edge}";
    refused(
        &udp_route("", RULES),
        "spec.parentRefs",
        "at least one parent",
    );
    refused(&udp_route(one, "[]"), "spec.rules", "has one rule");
    let twice = "{kind: Service, group: '', name: a}, {kind: Service, group: '', name: a}";
    refused(
        &udp_route(twice, RULES),
        "spec.parentRefs[1]",
        "stands twice",
    );
    let tcp =
        udp_route("{kind: Service, group: '', name: a}", RULES).replace("UDPRoute", "TCPRoute");
    refused(&tcp, "spec.parentRefs[0]", "not supported by this version");
    let named = udp_route(one, RULES) + "  hostnames: [a.org]\n";
    refused(&named, "spec.hostnames", "unknown field");
}

#[test]
fn a_port_takes_datagrams_by_its_protocol_or_by_what_it_speaks() {
    for said in [
        "protocol: UDP",
        "appProtocol: udp",
        "protocol: UDP, appProtocol: udp",
    ] {
        let Document::Service(service) = document(&port(said)) else {
            panic!("it is a Service");
        };
        assert_eq!(service.ports[0].protocol, Protocol::Udp, "{said}");
        assert_eq!(service.ports[1].protocol, Protocol::Auto);
    }
    let ports = "spec.ports[0].appProtocol";
    refused(
        &port("protocol: UDP, appProtocol: http"),
        ports,
        "not spoken over UDP",
    );
    refused(
        &port("protocol: TCP, appProtocol: udp"),
        ports,
        "not spoken over TCP",
    );
    refused(
        &port("protocol: SCTP"),
        "spec.ports[0].protocol",
        "not supported",
    );
    let both = port("protocol: UDP").replace("port: 2", "port: 1");
    refused(&both, "spec.ports[1]", "over TCP and UDP together");
}

#[test]
fn a_policy_says_how_datagrams_are_taken() {
    let udp = |text: &str| match document(&policy(text)) {
        Document::BackendPolicy(policy) => policy.udp.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(udp("{}"), UdpRules::default());
    let said = udp(
        "{idleTimeout: 10s, token: {suffix: 16, strip: true, required: true}, maxSessions: 9, maxSessionsPerSource: 8, packetsPerSecondPerSource: 7, bytesPerSecondPerSource: 6}",
    );
    let token = Token {
        at: TokenAt::Suffix,
        len: 16,
        strip: true,
        required: true,
    };
    assert_eq!((said.idle_timeout.as_secs(), said.token), (10, Some(token)));
    let limits = said.limits;
    assert_eq!((limits.sessions, limits.sessions_per_source), (9, 8));
    let rates = (
        limits.packets_per_second_per_source,
        limits.bytes_per_second_per_source,
    );
    assert_eq!(rates, (7, 6));
    for (text, path, words) in [
        ("{idleTimeout: 0s}", "idleTimeout", "1s"),
        ("{token: {}}", "token", "where the token is"),
        ("{token: {prefix: 1, suffix: 1}}", "token", "exclude"),
        ("{token: {prefix: 65}}", "token.prefix", "64"),
        ("{token: {prefix: 0}}", "token.prefix", "1"),
        ("{maxSessions: 0}", "maxSessions", "1"),
        ("{maxSession: 1}", "maxSession", "maxSessions"),
    ] {
        refused(&policy(text), &format!("spec.udp.{path}"), words);
    }
}
