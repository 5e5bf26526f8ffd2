//! Nothing that is in force is left out of the page.

use std::time::Duration;

use phalanx_model::name::{ClusterName, Direction, ServiceName};
use phalanx_model::resource::gateway::Share;
use phalanx_model::resource::limit::{
    Fault, FaultEffect, GlobalLimit, LimitKey, Limits, Overload, Priority, PriorityRule, Rate,
};
use phalanx_model::resource::{
    Access, Carrier, Cors, HashOn, HeaderMatch, Hedging, Mirror, MtlsMode, Retry, Session,
    ValueMatch,
};

use super::*;

fn cluster(name: &str) -> ClusterName {
    ClusterName::outbound(ServiceName::new("default", name), 80)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn a_rule_is_shown_with_all_that_stands_beside_its_backends() {
    let action = Action::Forward(Forward {
        backends: Vec::new(),
        rewrite: Rewrite::default(),
        request_timeout: Some(seconds(2)),
        attempt_timeout: None,
        retry: Retry {
            attempts: 2,
            codes: vec![503],
            backoff: Duration::ZERO,
        },
        hash_on: Some(HashOn::Header("x-room".into())),
        mirrors: vec![Mirror {
            cluster: cluster("shadow"),
            per_million: 420_000,
        }],
        session: Some(Session {
            name: "seat".into(),
            carrier: Carrier::PermanentCookie,
            absolute: Some(seconds(3600)),
            idle: None,
        }),
        cors: Some(Cors {
            origins: vec![ValueMatch::Regex("https://[^/]+".into())],
            credentials: true,
            methods: vec!["GET".into()],
            headers: vec!["x-a".into()],
            exposed: vec!["x-b".into()],
            max_age: 5,
        }),
        hedging: Some(Hedging {
            delay: Duration::from_millis(30),
            extra_max: 1,
            grpc: vec!["/a.B/".into()],
        }),
        priority: Some(Priority::Critical),
        compare: Some(phalanx_model::resource::Compare {
            headers: vec!["x-version".into()],
            paths: vec!["$.now".into()],
        }),
        transcoding: None,
    });
    let shown = rule(&Rule {
        name: "r".into(),
        matches: RuleMatch::default(),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        action,
    });
    let expected = json!({
        "backends": [],
        "compare_mirrors_but": "x-version,$.now",
        "request_timeout": "2s",
        "retry": { "attempts": 2, "codes": [503], "backoff": "0ns" },
        "hash_on": { "header": "x-room" },
        "mirrors": [{ "cluster": "outbound|80|shadow.default.svc.mesh", "per_million": 420_000 }],
        "session": { "name": "seat", "carrier": "permanent_cookie", "absolute": "3600s", "idle": null },
        "cors": {
            "origins": [{ "regex": "https://[^/]+" }], "credentials": true, "methods": ["GET"],
            "headers": ["x-a"], "exposed": ["x-b"], "max_age": 5,
        },
        "hedging": { "delay": "30ms", "extra_max": 1, "grpc": ["/a.B/"] },
        "priority": Priority::Critical.as_str(),
    });
    assert_eq!(shown["forward"], expected);
}

#[test]
fn who_is_called_shows_limits_faults_and_shedding() {
    let header = HeaderMatch {
        name: "x-test".into(),
        value: ValueMatch::Exact("1".into()),
    };
    let rate = Rate {
        requests: 10,
        per: seconds(1),
        burst: 20,
    };
    let fault = |effect| Fault {
        effect,
        share: 50_000,
        headers: vec![header.clone()],
    };
    let limits = Limits {
        policy: "BackendPolicy/default/battle".into(),
        local: Some(rate),
        global: Some(GlobalLimit {
            rate,
            by: LimitKey::Header("x-player".into()),
            closed: true,
        }),
        faults: vec![
            fault(FaultEffect::Delay(seconds(3))),
            fault(FaultEffect::Status(503)),
            fault(FaultEffect::Grpc(14)),
        ],
        overload: Some(Overload {
            min_in_flight: 1,
            max_in_flight: 9,
            queue_delay: Duration::from_millis(5),
            priorities: vec![PriorityRule {
                priority: Priority::Low,
                headers: vec![header.clone()],
            }],
            default: Priority::Normal,
        }),
        probe: Some("/healthz".into()),
    };
    let of_inbound = InboundRule {
        mode: MtlsMode::Strict,
        access: Access::default(),
        limits: vec![limits],
    };
    let shown = resource(&Resource::Listener(Listener {
        name: "inbound".into(),
        address: ([127, 0, 0, 1], 15006).into(),
        direction: Direction::Inbound,
        protocol: ListenerProtocol::Inbound {
            trust_domain: Default::default(),
            rules: Inbound {
                default: of_inbound,
                ports: Default::default(),
                colours: Default::default(),
            },
        },
    }));
    let headers = json!([{ "name": "x-test", "exact": "1" }]);
    let rate = json!({ "requests": 10, "per": "1s", "burst": 20 });
    let expected = json!([{
        "policy": "BackendPolicy/default/battle",
        "local": rate,
        "global": { "rate": rate, "by": { "header": "x-player" }, "closed": true },
        "faults": [
            { "delay": "3s", "per_100000": 50_000, "headers": headers },
            { "status": 503, "per_100000": 50_000, "headers": headers },
            { "grpc_status": 14, "per_100000": 50_000, "headers": headers },
        ],
        "overload": {
            "min_in_flight": 1, "max_in_flight": 9, "queue_delay": "5ms",
            "priorities": [{ "priority": Priority::Low.as_str(), "headers": headers }],
            "default": Priority::Normal.as_str(),
        },
        "probe": "/healthz",
    }]);
    assert_eq!(shown["default"]["limits"], expected);
}

#[test]
fn an_edges_listener_is_shown_chain_by_chain() {
    let chain = |names: &[&str], tls, target| Chain {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        tls,
        target,
    };
    let shares = [Some("tls"), None].map(|name| Share {
        cluster: name.map(cluster),
        weight: 3,
    });
    let port = GatewayPort {
        gateway: ServiceName::new("default", "edge"),
        certificates_in: "/etc/tls".into(),
        colours: Default::default(),
        chains: vec![
            chain(
                &["*.a.org"],
                ChainTls::Terminate(vec!["web".into()]),
                ChainTarget::Http("gateway/default/edge/443/secure".into()),
            ),
            chain(
                &["b.org"],
                ChainTls::Passthrough,
                ChainTarget::Stream(shares.to_vec()),
            ),
        ],
    };
    let shown = resource(&Resource::Listener(Listener {
        name: "gateway/default/edge/127.0.0.1:443".into(),
        address: ([127, 0, 0, 1], 443).into(),
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Gateway(port),
    }));
    let expected = json!({
        "address": "127.0.0.1:443",
        "protocol": "gateway",
        "gateway": "default/edge",
        "chains": [
            {
                "names": ["*.a.org"], "tls": "terminate", "certificates": ["web"],
                "target": { "route_table": "gateway/default/edge/443/secure" },
            },
            {
                "names": ["b.org"], "tls": "passthrough", "certificates": [],
                "target": [
                    { "cluster": "outbound|80|tls.default.svc.mesh", "weight": 3 },
                    { "cluster": null, "weight": 3 },
                ],
            },
        ],
    });
    assert_eq!(shown, expected);
}
