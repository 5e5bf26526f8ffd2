//! Gateway, TLSRoute and TCPRoute: what is refused, where, and what to write instead.

use super::*;

/// With this instead of the good listener.
fn gateway(listener: &str) -> String {
    spec(
        "v1",
        "Gateway",
        &format!("  gatewayClassName: phalanx\n  listeners:\n  - {listener}\n"),
    )
}

fn spec(version: &str, kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: edge}}\nspec:\n{spec}"
    )
}

/// One problem, with its line and column, path and words.
fn refused(text: &str, place: &str, path: &str, words: &str) {
    let told = problems(text);
    let [problem] = told.as_slice() else {
        panic!("{text}{told:#?}");
    };
    let begins = format!("f:{place}: {path}: ");
    assert!(problem.starts_with(&begins), "{text}{problem}\n{begins}");
    assert!(problem.contains(words), "{text}{problem}\n{words}");
}

const HTTPS: &str = "name: a, port: 1, protocol: HTTPS";

#[test]
fn a_listener_that_can_not_be_is_refused_at_its_place_with_a_hint() {
    assert!(problems(&gateway("{name: a, port: 1, protocol: HTTP}")).is_empty());
    for (listener, path, words) in [
        ("{port: 1, protocol: HTTP}", ".name", "the field is missing"),
        ("{name: a, protocol: HTTP}", ".port", "the field is missing"),
        ("{name: a, port: 1}", ".protocol", "the field is missing"),
        ("{name: A, port: 1, protocol: HTTP}", ".name", "`A`"),
        ("{name: a, port: 0, protocol: HTTP}", ".port", "65535"),
        (
            "{name: a, port: 1, protocol: UDP, hostname: a.org}",
            ".hostname",
            "nothing in UDP tells a hostname",
        ),
        (
            "{name: a, port: 1, protocol: UDP, tls: {mode: Passthrough}}",
            ".tls",
            "DTLS is not ended here",
        ),
        (
            "{name: a, port: 1, protocol: SCTP}",
            ".protocol",
            "unknown value `SCTP`",
        ),
        (
            "{name: a, port: 1, protocol: HTTP, hostname: 10.0.0.1}",
            ".hostname",
            "like `play.example.com`",
        ),
        (
            "{name: a, port: 1, protocol: HTTP, hostname: 'a.*.org'}",
            ".hostname",
            "is no hostname",
        ),
        (
            "{name: a, port: 1, protocol: HTTP, hostname: A.org}",
            ".hostname",
            "is no hostname",
        ),
        (
            "{name: a, port: 1, protocol: TCP, hostname: a.org}",
            ".hostname",
            "nothing in TCP tells a hostname",
        ),
        (
            "{name: a, port: 1, protocol: HTTP, tls: {certificateRefs: [{name: b}]}}",
            ".tls",
            "write HTTPS or TLS",
        ),
        (
            "{name: a, port: 1, protocol: TCP, tls: {mode: Passthrough}}",
            ".tls",
            "write HTTPS or TLS",
        ),
        (
            "{name: a, port: 1, protocol: HTTPS}",
            "",
            "certificateRefs: [{name: …}]",
        ),
        (
            "{name: a, port: 1, protocol: HTTPS, tls: {}}",
            ".tls",
            "write `certificateRefs",
        ),
        (
            "{name: a, port: 1, protocol: HTTPS, tls: {mode: Passthrough}}",
            ".tls",
            "for Passthrough write TLS",
        ),
        (
            "{name: a, port: 1, protocol: TLS}",
            "",
            "write `tls: {mode: Passthrough}`",
        ),
        (
            "{name: a, port: 1, protocol: TLS, tls: {certificateRefs: [{name: b}]}}",
            "",
            "for HTTPS only",
        ),
        (
            "{name: a, port: 1, protocol: TLS, tls: {mode: Passthrough, certificateRefs: [{name: b}]}}",
            ".tls",
            "needs no certificate",
        ),
        (
            "{name: a, port: 1, protocol: TLS, tls: {mode: Half}}",
            ".tls.mode",
            "unknown value `Half`",
        ),
        (
            "{name: a, port: 1, protocol: HTTP, nonsense: 1}",
            ".nonsense",
            "unknown field",
        ),
        (
            "{name: a, port: 1, protocol: HTTP, hostnam: a.org}",
            ".hostnam",
            "hostname",
        ),
    ] {
        let at = format!("spec.listeners[0]{path}");
        let text = gateway(listener);
        let told = problems(&text);
        let [problem] = told.as_slice() else {
            panic!("{listener}: {told:#?}");
        };
        assert!(problem.contains(&format!(" {at}: ")), "{problem}\n{at}");
        assert!(problem.starts_with("f:7:"), "{problem}");
        assert!(problem.contains(words), "{problem}\n{words}");
    }
}

#[test]
fn what_belongs_to_tls_is_refused_field_by_field() {
    for (inside, path, words) in [
        (
            "options: {a: b}, certificateRefs: [{name: b}]",
            ".options",
            "not supported by this version",
        ),
        (
            "frontendValidation: {}, certificateRefs: [{name: b}]",
            ".frontendValidation",
            "not supported by this version",
        ),
        (
            "certificateRefs: [{name: b, namespace: c}]",
            ".certificateRefs[0].namespace",
            "not supported by this version",
        ),
        (
            "certificateRefs: [{name: b, kind: ConfigMap}]",
            ".certificateRefs[0].kind",
            "Secret",
        ),
        (
            "certificateRefs: [{name: b, group: x.org}]",
            ".certificateRefs[0].group",
            "unknown value",
        ),
        (
            "certificateRefs: [{name: b}, {kind: Secret}]",
            ".certificateRefs[1].name",
            "the field is missing",
        ),
        (
            "certificateRefs: [{name: ../b}]",
            ".certificateRefs[0].name",
            "../b",
        ),
    ] {
        let text = gateway(&format!("{{{HTTPS}, tls: {{{inside}}}}}"));
        let told = problems(&text);
        let [problem] = told.as_slice() else {
            panic!("{inside}: {told:#?}");
        };
        let at = format!(" spec.listeners[0].tls{path}: ");
        assert!(
            problem.contains(&at) && problem.contains(words),
            "{problem}\n{at}{words}"
        );
    }
}

#[test]
fn what_may_be_attached_is_refused_where_it_can_not() {
    for (allowed, path, words) in [
        (
            "namespaces: {from: Selector}",
            ".namespaces.from",
            "not supported by this version",
        ),
        (
            "namespaces: {from: Some}",
            ".namespaces.from",
            "unknown value `Some`",
        ),
        (
            "namespaces: {from: All, selector: {}}",
            ".namespaces.selector",
            "not supported by this version",
        ),
        (
            "kinds: [{kind: TCPRoute}]",
            ".kinds[0]",
            "takes HTTPRoute and GRPCRoute",
        ),
        (
            "kinds: [{kind: UDPRoute}]",
            ".kinds[0]",
            "takes HTTPRoute and GRPCRoute",
        ),
        (
            "kinds: [{kind: Service}]",
            ".kinds[0].kind",
            "unknown value `Service`",
        ),
        (
            "kinds: [{kind: HTTPRoute, group: apps}]",
            ".kinds[0].group",
            "gateway.networking.k8s.io",
        ),
        (
            "kinds: [{group: gateway.networking.k8s.io}]",
            ".kinds[0].kind",
            "the field is missing",
        ),
    ] {
        let text = gateway(&format!(
            "{{name: a, port: 1, protocol: HTTP, allowedRoutes: {{{allowed}}}}}"
        ));
        let told = problems(&text);
        let [problem] = told.as_slice() else {
            panic!("{allowed}: {told:#?}");
        };
        let at = format!(" spec.listeners[0].allowedRoutes{path}: ");
        assert!(
            problem.contains(&at) && problem.contains(words),
            "{problem}\n{at}{words}"
        );
    }
}

#[test]
fn listeners_that_can_not_stand_together_are_refused_at_the_later_one() {
    let two = |one: &str, other: &str| {
        spec(
            "v1",
            "Gateway",
            &format!("  gatewayClassName: phalanx\n  listeners:\n  - {{{one}}}\n  - {{{other}}}\n"),
        )
    };
    let http = "name: a, port: 1, protocol: HTTP";
    for (one, other, words) in [
        (
            http,
            "name: a, port: 2, protocol: HTTP",
            "another listener is called `a`",
        ),
        (
            http,
            "name: b, port: 1, protocol: HTTP",
            "this port and hostname already",
        ),
        (
            http,
            "name: b, port: 1, protocol: TCP",
            "has port 1 already, and speaks HTTP",
        ),
        (
            http,
            "name: b, port: 1, protocol: TLS, tls: {mode: Passthrough}",
            "has port 1 already, and speaks HTTP",
        ),
        (
            "name: a, port: 1, protocol: HTTPS, hostname: a.org, tls: {certificateRefs: [{name: b}]}",
            "name: b, port: 1, protocol: TLS, hostname: a.org, tls: {mode: Passthrough}",
            "this port and hostname already",
        ),
        (
            "name: a, port: 1, protocol: TCP",
            "name: b, port: 1, protocol: TCP",
            "has port 1 already, and speaks TCP",
        ),
    ] {
        refused(&two(one, other), "8:5", "spec.listeners[1]", words);
    }
    let aside = two(http, "name: b, port: 1, protocol: HTTP, hostname: a.org");
    assert!(problems(&aside).is_empty());
}

#[test]
fn a_gateway_says_its_own_mistakes() {
    let of = |lines: &str| spec("v1", "Gateway", lines);
    let listeners = "  listeners: [{name: a, port: 1, protocol: HTTP}]\n";
    let class = "  gatewayClassName: phalanx\n";
    let with = |line: &str| of(&format!("{class}{listeners}  {line}\n"));
    refused(&of(listeners), "5:3", "spec.gatewayClassName", "missing");
    let other = of(&format!("  gatewayClassName: istio\n{listeners}"));
    refused(&other, "5:21", "spec.gatewayClassName", "write `phalanx`");
    refused(&of(class), "5:3", "spec.listeners", "missing");
    let none = of(&format!("{class}  listeners: []\n"));
    refused(&none, "6:14", "spec.listeners", "at least one listener");
    for field in [
        "allowedListeners",
        "backendTLS",
        "defaultScope",
        "infrastructure",
        "tls",
    ] {
        let path = format!("spec.{field}");
        refused(
            &with(&format!("{field}: {{}}")),
            "7:3",
            &path,
            "not supported by this version",
        );
    }
    for (addresses, path, words) in [
        (
            "{type: Hostname, value: a.org}",
            "spec.addresses[0].type",
            "not supported by this version",
        ),
        (
            "{type: NamedAddress, value: a}",
            "spec.addresses[0].type",
            "not supported by this version",
        ),
        (
            "{value: a.org}",
            "spec.addresses[0].value",
            "is no IP address",
        ),
        ("{type: IPAddress}", "spec.addresses[0].value", "missing"),
    ] {
        let text = with(&format!("addresses: [{addresses}]"));
        let told = problems(&text);
        assert!(
            told.iter()
                .any(|told| told.contains(&format!(" {path}: ")) && told.contains(words)),
            "{told:#?}"
        );
    }
    let many: String = (1..=65)
        .map(|n| format!("  - {{name: l{n}, port: {n}, protocol: HTTP}}\n"))
        .collect();
    let many = of(&format!("{class}  listeners:\n{many}"));
    let told = problems(&many);
    assert!(
        told.iter().any(|told| told.contains("at most 64")),
        "{told:?}"
    );
}

#[test]
fn routes_of_streams_say_where_they_are_wrong() {
    let parents = "  parentRefs: [{name: edge}]\n";
    let rules = "  rules: [{backendRefs: [{name: a, port: 1}]}]\n";
    for (kind, version) in [("TLSRoute", "v1"), ("TCPRoute", "v1alpha2")] {
        let of = |lines: &str| spec(version, kind, lines);
        assert!(problems(&of(&format!("{parents}{rules}"))).is_empty());
        refused(&of(rules), "5:3", "spec.parentRefs", "missing");
        refused(&of(parents), "5:3", "spec.rules", "missing");
        let none = of(&format!("  parentRefs: []\n{rules}"));
        refused(&none, "5:15", "spec.parentRefs", "at least one parent");
        let twice = of(&format!(
            "  parentRefs: [{{name: edge}}, {{name: edge}}]\n{rules}"
        ));
        refused(&twice, "5:30", "spec.parentRefs[1]", "twice in this list");
        let service = of(&format!(
            "  parentRefs: [{{kind: Service, group: '', name: a}}]\n{rules}"
        ));
        refused(
            &service,
            "5:16",
            "spec.parentRefs[0]",
            "write `kind: Gateway`; inside the mesh `--tcp",
        );
        for (rules, path, words) in [
            ("[]", "spec.rules", "has one rule"),
            (
                "[{backendRefs: []}, {backendRefs: []}]",
                "spec.rules",
                "has one rule",
            ),
            ("[{}]", "spec.rules[0].backendRefs", "missing"),
            (
                "[{filters: [], backendRefs: []}]",
                "spec.rules[0].filters",
                "not supported by this version",
            ),
            (
                "[{matches: [], backendRefs: []}]",
                "spec.rules[0].matches",
                "unknown field",
            ),
            (
                "[{backendRefs: [{name: a}]}]",
                "spec.rules[0].backendRefs[0].port",
                "missing",
            ),
            (
                "[{backendRefs: [{port: 1}]}]",
                "spec.rules[0].backendRefs[0].name",
                "missing",
            ),
            (
                "[{backendRefs: [{name: a, port: 1, weight: -1}]}]",
                "spec.rules[0].backendRefs[0].weight",
                "1000000",
            ),
            (
                "[{backendRefs: [{name: a, port: 1, weight: 1000001}]}]",
                "spec.rules[0].backendRefs[0].weight",
                "1000000",
            ),
            (
                "[{backendRefs: [{name: a, port: 1, kind: Pod}]}]",
                "spec.rules[0].backendRefs[0].kind",
                "Service",
            ),
            (
                "[{backendRefs: [{name: a, port: 1, filters: []}]}]",
                "spec.rules[0].backendRefs[0].filters",
                "unknown field",
            ),
        ] {
            let text = of(&format!("{parents}  rules: {rules}\n"));
            let told = problems(&text);
            let [problem] = told.as_slice() else {
                panic!("{rules}: {told:#?}");
            };
            assert!(problem.starts_with("f:6:"), "{problem}");
            assert!(problem.contains(&format!(" {path}: ")), "{problem}\n{path}");
            assert!(problem.contains(words), "{problem}\n{words}");
        }
        let default = of(&format!("{parents}{rules}  useDefaultGateways: All\n"));
        refused(
            &default,
            "7:3",
            "spec.useDefaultGateways",
            "not supported by this version",
        );
    }
    let named = |names: &str| format!("{parents}  hostnames: [{names}]\n{rules}");
    refused(
        &spec("v1alpha2", "TCPRoute", &named("a.org")),
        "6:3",
        "spec.hostnames",
        "unknown field",
    );
    let tls = |names: &str| spec("v1", "TLSRoute", &named(names));
    refused(
        &tls("a.org, a.org"),
        "6:22",
        "spec.hostnames[1]",
        "twice in this list",
    );
    refused(&tls("'*'"), "6:15", "spec.hostnames[0]", "`*.example.com`");
}

#[test]
fn kinds_of_the_gateway_api_that_are_not_ours_are_refused_by_name() {
    for kind in [
        "GatewayClass",
        "ReferenceGrant",
        "BackendTLSPolicy",
        "ListenerSet",
    ] {
        let told = problems(&spec("v1", kind, "  {}\n"));
        let [problem] = told.as_slice() else {
            panic!("{kind}: {told:#?}");
        };
        assert!(problem.starts_with("f:2:7: kind: "), "{problem}");
        assert!(problem.contains(kind), "{problem}");
    }
    for (kind, version) in [("Gateway", "v9"), ("TCPRoute", "v9"), ("TLSRoute", "v9")] {
        let told = problems(&spec(version, kind, "  {}\n"));
        assert!(
            told.iter().any(|told| told.contains("apiVersion")),
            "{told:#?}"
        );
    }
}
