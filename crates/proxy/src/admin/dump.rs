//! `/config_dump`: the resources in use as JSON, as this sidecar understood them. Fields are named as in room `model`;
//! what is at its default or absent is left out where that reads better.

mod beside;
mod udp;

use phalanx_model::resource::gateway::{Chain, ChainTarget, ChainTls, GatewayPort};
use phalanx_model::resource::{
    Action, Assignment, Backend, Cluster, Endpoint, Forward, HeaderEdit, Health, Inbound,
    InboundRule, Listener, ListenerProtocol, LoadBalancer, PathMatch, PathRewrite, Redirect,
    Rewrite, RouteTable, Rule, RuleMatch, VirtualHost,
};
use phalanx_xds::decode::Resource;
use serde_json::{Map, Value, json};

pub fn resource(resource: &Resource) -> Value {
    match resource {
        Resource::Listener(listener) => self::listener(listener),
        Resource::Routes(table) => routes(table),
        Resource::Cluster(cluster) => self::cluster(cluster),
        Resource::Endpoints(assignment) => endpoints(assignment),
    }
}

fn listener(listener: &Listener) -> Value {
    let (protocol, key, target) = match &listener.protocol {
        ListenerProtocol::Http { route_table } => ("http", "route_table", route_table.clone()),
        ListenerProtocol::Tcp { cluster } => ("tcp", "cluster", cluster.to_string()),
        ListenerProtocol::Inbound {
            trust_domain,
            rules,
        } => return inbound(listener, trust_domain.as_str(), rules),
        ListenerProtocol::Gateway(port) => return gateway(listener, port),
        ListenerProtocol::Udp(port) => return udp::listener(listener.address, port),
    };
    json!({
        "address": listener.address.to_string(),
        "direction": listener.direction.as_str(),
        "protocol": protocol,
        key: target,
    })
}

fn gateway(listener: &Listener, port: &GatewayPort) -> Value {
    let chain = |chain: &Chain| {
        let target = match &chain.target {
            ChainTarget::Http(table) => json!({ "route_table": table }),
            ChainTarget::Stream(shares) => shares
                .iter()
                .map(|share| {
                    let cluster = share.cluster.as_ref().map(ToString::to_string);
                    json!({ "cluster": cluster, "weight": share.weight })
                })
                .collect(),
        };
        let (tls, certificates) = match &chain.tls {
            ChainTls::Off => ("off", &[][..]),
            ChainTls::Passthrough => ("passthrough", &[][..]),
            ChainTls::Terminate(certificates) => ("terminate", &certificates[..]),
        };
        json!({ "names": chain.names, "tls": tls, "certificates": certificates, "target": target })
    };
    json!({
        "address": listener.address.to_string(),
        "protocol": "gateway",
        "gateway": port.gateway.to_string(),
        "chains": port.chains.iter().map(chain).collect::<Vec<_>>(),
    })
}

/// The policies by name: what they say stands in the documents.
fn inbound(listener: &Listener, trust_domain: &str, rules: &Inbound) -> Value {
    let rule = |rule: &InboundRule| {
        let policies = rule.access.policies.iter();
        let policies: Vec<_> = policies
            .map(|policy| json!({ "name": policy.name, "effect": format!("{:?}", policy.effect), "rules": policy.rules.len() }))
            .collect();
        let limits: Vec<Value> = rule.limits.iter().map(beside::limits).collect();
        json!({ "mode": format!("{:?}", rule.mode), "policies": policies, "limits": limits })
    };
    let ports = rules.ports.iter();
    let ports: Map<_, _> = ports
        .map(|(port, of_port)| (port.to_string(), rule(of_port)))
        .collect();
    json!({
        "direction": listener.direction.as_str(),
        "protocol": "inbound",
        "trust_domain": trust_domain,
        "default": rule(&rules.default),
        "ports": ports,
    })
}

fn routes(table: &RouteTable) -> Value {
    json!({ "hosts": table.hosts.iter().map(host).collect::<Vec<_>>() })
}

fn host(host: &VirtualHost) -> Value {
    let rules: Vec<Value> = host.rules.iter().map(rule).collect();
    json!({ "name": host.name, "domains": host.domains, "rules": rules })
}

/// A rule in the words of this page.
pub fn rule(rule: &Rule) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), json!(rule.name));
    out.insert("matches".into(), matches(&rule.matches));
    put_edit(&mut out, "request_headers", &rule.request_headers);
    put_edit(&mut out, "response_headers", &rule.response_headers);
    let (key, action) = match &rule.action {
        Action::Forward(forward) => ("forward", self::forward(forward)),
        Action::Redirect(redirect) => ("redirect", self::redirect(redirect)),
        Action::Respond(reason) => ("respond", json!(reason.as_str())),
    };
    out.insert(key.into(), action);
    Value::Object(out)
}

fn matches(matches: &RuleMatch) -> Value {
    let path = match &matches.path {
        PathMatch::Exact(path) => json!({ "exact": path }),
        PathMatch::Prefix(path) => json!({ "prefix": path }),
        PathMatch::Regex(regex) => json!({ "regex": regex }),
    };
    let mut out = Map::new();
    out.insert("path".into(), path);
    if let Some(method) = &matches.method {
        out.insert("method".into(), json!(method));
    }
    if !matches.headers.is_empty() {
        out.insert("headers".into(), beside::headers(&matches.headers));
    }
    if !matches.query.is_empty() {
        let query: Vec<Value> = matches
            .query
            .iter()
            .map(|q| beside::named(&q.name, &q.value))
            .collect();
        out.insert("query".into(), json!(query));
    }
    if matches.grpc {
        out.insert("grpc".into(), json!(true));
    }
    Value::Object(out)
}

fn forward(forward: &Forward) -> Value {
    // By name, so that what is added is missed here.
    let Forward {
        backends,
        rewrite: Rewrite { authority, path },
        request_timeout,
        attempt_timeout,
        retry,
        hash_on,
        mirrors,
        compare,
        session,
        cors,
        hedging,
        priority,
        transcoding,
    } = forward;
    let mut out = Map::new();
    if let Some(compare) = compare {
        out.insert("compare_mirrors_but".into(), json!(compare.ignored()));
    }
    out.insert("backends".into(), backends.iter().map(backend).collect());
    if let Some(authority) = authority {
        out.insert("rewrite_authority".into(), json!(authority));
    }
    if let Some(path) = path {
        out.insert("rewrite_path".into(), rewrite(path));
    }
    for (key, timeout) in [
        ("request_timeout", *request_timeout),
        ("attempt_timeout", *attempt_timeout),
    ] {
        if let Some(timeout) = timeout {
            out.insert(key.into(), json!(format!("{timeout:?}")));
        }
    }
    let backoff = format!("{:?}", retry.backoff);
    out.insert(
        "retry".into(),
        json!({ "attempts": retry.attempts, "codes": retry.codes, "backoff": backoff }),
    );
    if !mirrors.is_empty() {
        let mirrors = mirrors.iter().map(beside::mirror).collect();
        out.insert("mirrors".into(), mirrors);
    }
    let beside = [
        ("hash_on", hash_on.as_ref().map(beside::hash_on)),
        ("session", session.as_ref().map(beside::session)),
        ("cors", cors.as_ref().map(beside::cors)),
        ("hedging", hedging.as_ref().map(beside::hedging)),
        ("priority", priority.map(|p| json!(p.as_str()))),
        (
            "transcoding",
            transcoding.as_deref().map(beside::transcoding),
        ),
    ];
    let said = beside
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    out.extend(said);
    Value::Object(out)
}

fn backend(backend: &Backend) -> Value {
    let mut out = Map::new();
    out.insert(
        "cluster".into(),
        json!(backend.cluster.as_ref().map(ToString::to_string)),
    );
    out.insert("weight".into(), json!(backend.weight));
    put_edit(&mut out, "request_headers", &backend.request_headers);
    put_edit(&mut out, "response_headers", &backend.response_headers);
    Value::Object(out)
}

fn rewrite(path: &PathRewrite) -> Value {
    match path {
        PathRewrite::Full(path) => json!({ "full": path }),
        PathRewrite::Prefix(prefix) => json!({ "prefix": prefix }),
    }
}

fn redirect(redirect: &Redirect) -> Value {
    json!({
        "scheme": redirect.scheme,
        "hostname": redirect.hostname,
        "port": redirect.port,
        "path": redirect.path.as_ref().map(rewrite),
        "status": redirect.status,
    })
}

fn put_edit(out: &mut Map<String, Value>, key: &str, edit: &HeaderEdit) {
    if !edit.is_empty() {
        out.insert(
            key.into(),
            json!({ "set": edit.set, "add": edit.add, "remove": edit.remove }),
        );
    }
}

fn cluster(cluster: &Cluster) -> Value {
    let load_balancer = match cluster.load_balancer {
        LoadBalancer::P2c => "P2C",
        LoadBalancer::LeastRequest => "LeastRequest",
        LoadBalancer::RoundRobin => "RoundRobin",
        LoadBalancer::Random => "Random",
        LoadBalancer::RingHash => "RingHash",
        LoadBalancer::Maglev => "Maglev",
    };
    let start = cluster.slow_start.map(|start| {
        json!({ "window": format!("{:?}", start.window), "min_weight_percent": start.min_weight_percent })
    });
    let ids = cluster.tls.as_ref().map(|tls| {
        let ids = tls.ids.iter().map(ToString::to_string);
        ids.collect::<Vec<_>>()
    });
    let (pool, breaker) = (&cluster.connection_pool, &cluster.circuit_breaker);
    let (outlier, budget) = (&cluster.outlier_detection, &cluster.retry_budget);
    json!({
        "protocol": cluster.protocol.as_str(),
        "load_balancer": load_balancer,
        "slow_start": start,
        "panic_percent": cluster.panic_percent,
        "tls_ids": ids,
        "connection_pool": {
            "max_requests_per_connection": pool.max_requests_per_connection,
            "connect_timeout": format!("{:?}", pool.connect_timeout),
            "idle_timeout": format!("{:?}", pool.idle_timeout),
        },
        "circuit_breaker": {
            "max_connections": breaker.max_connections,
            "max_pending_requests": breaker.max_pending_requests,
            "max_requests": breaker.max_requests,
            "max_retries": breaker.max_retries,
        },
        "outlier_detection": {
            "consecutive_5xx": outlier.consecutive_5xx,
            "consecutive_gateway": outlier.consecutive_gateway,
            "interval": format!("{:?}", outlier.interval),
            "base_ejection": format!("{:?}", outlier.base_ejection),
            "max_ejection_percent": outlier.max_ejection_percent,
            "success_rate_stdev": outlier.success_rate_stdev,
            "latency_factor": outlier.latency_factor,
        },
        "retry_budget": { "percent": budget.percent, "min_concurrency": budget.min_concurrency },
    })
}

fn endpoints(assignment: &Assignment) -> Value {
    let endpoints: Vec<Value> = assignment.endpoints.iter().map(endpoint).collect();
    json!({ "endpoints": endpoints, "overprovision": assignment.overprovision })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let health = match endpoint.health {
        Health::Healthy => "healthy",
        Health::Draining => "draining",
        Health::Unhealthy => "unhealthy",
    };
    json!({
        "address": endpoint.address.to_string(),
        "weight": endpoint.weight,
        "zone": endpoint.zone,
        "is_far": endpoint.is_far,
        "mutual_tls": endpoint.mutual_tls,
        "health": health,
        "version": endpoint.version,
        "instance": endpoint.instance,
    })
}

#[cfg(test)]
mod tests;
