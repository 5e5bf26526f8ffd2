//! HTTPRoutes and GRPCRoutes become rules per service and port, and those a route table per calling namespace.
//!
//! Gateway API semantics for routes whose parent is a Service: the rules of all of them are merged and ordered by match
//! (`model::matching::order`), age, name, and their place in the document.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phalanx_model::document::{BackendRef, Document, Kind, Route, RouteRule};
use phalanx_model::instance::Protocol;
use phalanx_model::matching::order::precedence;
use phalanx_model::resource::{
    Action, Backend, Forward, HeaderEdit, Retry, Rewrite, RouteTable, Rule, RuleMatch, VirtualHost,
};
use phalanx_model::{ClusterName, Reason, ServiceName};

use super::catalog::finding;
use super::{Catalog, Finding, hosts};
use crate::world::{DocumentEntry, World};

/// The name of the outbound listener and of its route table.
pub const OUTBOUND: &str = "outbound";

type ServicePort = (ServiceName, u16);

/// The rules for each service port that speaks HTTP, in order of precedence; shared by the tables of all namespaces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules(BTreeMap<ServicePort, Arc<Vec<Rule>>>);

impl Rules {
    pub(super) fn compile(world: &World, catalog: &Catalog, findings: &mut Vec<Finding>) -> Self {
        let mut attached = attach(world, catalog, findings);
        let mut rules = BTreeMap::new();
        for (service, ports) in &catalog.services {
            for (port, of_port) in ports {
                let key = (service.clone(), *port);
                let routes = attached.remove(&key).unwrap_or_default();
                if of_port.protocol == Protocol::Tcp {
                    let ignored = |(entry, _): &(&DocumentEntry, &Route)| {
                        finding(
                            entry,
                            format!(
                                "port {port} of Service {service} is plain TCP, so no HTTP rule holds there"
                            ),
                        )
                    };
                    findings.extend(routes.iter().map(ignored));
                    continue;
                }
                let of_port = if routes.is_empty() {
                    vec![plain(service, *port)]
                } else {
                    merged(routes, catalog)
                };
                rules.insert(key, Arc::new(of_port));
            }
        }
        Self(rules)
    }

    /// What a caller in `namespace` can reach, and how it may name it.
    pub fn table(&self, namespace: &str, catalog: &Catalog) -> RouteTable {
        self.table_for(Some(namespace), catalog)
    }

    /// For callers of namespaces without services of their own: no short names.
    pub(super) fn generic_table(&self, catalog: &Catalog) -> RouteTable {
        self.table_for(None, catalog)
    }

    fn table_for(&self, namespace: Option<&str>, catalog: &Catalog) -> RouteTable {
        let host = |((service, port), rules): (&ServicePort, &Arc<Vec<Rule>>)| VirtualHost {
            name: format!("{}:{port}", service.host()),
            domains: domains(
                service,
                *port,
                namespace,
                catalog.default_port(service) == Some(*port),
            ),
            rules: rules.to_vec(),
        };
        RouteTable {
            name: OUTBOUND.to_owned(),
            hosts: self.0.iter().map(host).collect(),
        }
    }
}

fn domains(
    service: &ServiceName,
    port: u16,
    namespace: Option<&str>,
    is_default: bool,
) -> Vec<String> {
    let hosts = hosts(service, namespace);
    let bare = hosts.iter().filter(|_| is_default).cloned();
    bare.chain(hosts.iter().map(|host| format!("{host}:{port}")))
        .collect()
}

type Attached<'a> = BTreeMap<ServicePort, Vec<(&'a DocumentEntry, &'a Route)>>;

/// Routes by the service ports they are attached to; where GRPCRoutes are, HTTPRoutes are conflicted.
fn attach<'a>(world: &'a World, catalog: &Catalog, findings: &mut Vec<Finding>) -> Attached<'a> {
    let mut attached = Attached::new();
    for (entry, document) in world.in_force() {
        let Document::Route(route) = document else {
            continue;
        };
        for key in parents(entry, route, catalog, findings) {
            attached.entry(key).or_default().push((entry, route));
        }
    }
    for ((service, port), routes) in &mut attached {
        let Some(winner) = routes
            .iter()
            .find(|(_, route)| route.kind == Kind::GrpcRoute)
            .map(|(entry, _)| entry.id.clone())
        else {
            continue;
        };
        routes.retain(|(entry, route)| {
            let stays = route.kind == Kind::GrpcRoute;
            if !stays {
                findings.push(finding(
                    entry,
                    format!("conflicted: {winner} outranks it on port {port} of Service {service}"),
                ));
            }
            stays
        });
    }
    attached
}

/// The service ports a route is attached to, each once.
fn parents(
    entry: &DocumentEntry,
    route: &Route,
    catalog: &Catalog,
    findings: &mut Vec<Finding>,
) -> BTreeSet<ServicePort> {
    let mut keys = BTreeSet::new();
    for parent in &route.parents {
        let service = &parent.service;
        match (catalog.services.get(service), parent.port) {
            (None, _) => findings.push(finding(
                entry,
                format!(
                    "its parent Service {service} does not exist, so it has no effect there yet"
                ),
            )),
            (Some(ports), Some(port)) if !ports.contains_key(&port) => {
                findings.push(finding(entry, format!("its parent Service {service} has no port {port}, so it has no effect there yet")));
            }
            (Some(_), Some(port)) => {
                keys.insert((service.clone(), port));
            }
            (Some(ports), None) => keys.extend(ports.keys().map(|port| (service.clone(), *port))),
        }
    }
    keys
}

/// Without a route: everything goes to the service itself.
fn plain(service: &ServiceName, port: u16) -> Rule {
    let backend = Backend {
        cluster: Some(ClusterName::outbound(service.clone(), port)),
        weight: 1,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    };
    Rule {
        name: format!("{}/{service}/{port}", Kind::Service.as_str()),
        matches: RuleMatch::default(),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        action: Action::Forward(Forward {
            backends: vec![backend],
            rewrite: Rewrite::default(),
            request_timeout: None,
            attempt_timeout: None,
            retry: Retry::default(),
        }),
    }
}

/// One rule per match, ordered.
fn merged(mut routes: Vec<(&DocumentEntry, &Route)>, catalog: &Catalog) -> Vec<Rule> {
    routes.sort_by_key(|(entry, _)| {
        (
            entry.created_ms,
            &entry.id.namespace,
            &entry.id.name,
            entry.id.kind,
        )
    });
    let mut rules = Vec::new();
    for (entry, route) in routes {
        for (index, rule) in route.rules.iter().enumerate() {
            rules.extend(split(entry, index, rule, catalog));
        }
    }
    // Stable: what is equal by match keeps the order of age, name and place.
    rules.sort_by(|a, b| precedence(&a.matches, &b.matches));
    rules
}

fn split(entry: &DocumentEntry, index: usize, rule: &RouteRule, catalog: &Catalog) -> Vec<Rule> {
    let place = rule.name.clone().unwrap_or_else(|| index.to_string());
    let action = action(rule, catalog);
    let of_match = |matches: &RuleMatch| Rule {
        name: format!("{}/{place}", entry.id),
        matches: matches.clone(),
        request_headers: rule.request_headers.clone(),
        response_headers: rule.response_headers.clone(),
        action: action.clone(),
    };
    rule.matches.iter().map(of_match).collect()
}

fn action(rule: &RouteRule, catalog: &Catalog) -> Action {
    if let Some(redirect) = &rule.redirect {
        return Action::Redirect(redirect.clone());
    }
    if rule.backends.iter().all(|backend| backend.weight == 0) {
        return Action::Respond(Reason::InvalidBackend);
    }
    Action::Forward(Forward {
        backends: rule
            .backends
            .iter()
            .map(|reference| backend(reference, catalog))
            .collect(),
        rewrite: rule.rewrite.clone(),
        request_timeout: rule.request_timeout,
        attempt_timeout: rule.attempt_timeout,
        retry: rule.retry.clone().unwrap_or_default(),
    })
}

/// A backend that does not exist keeps its share, to be answered with an error.
fn backend(reference: &BackendRef, catalog: &Catalog) -> Backend {
    let exists = catalog
        .port(&reference.service, reference.port)
        .is_some_and(|port| port.protocol != Protocol::Tcp);
    Backend {
        cluster: exists.then(|| ClusterName::outbound(reference.service.clone(), reference.port)),
        weight: reference.weight,
        request_headers: reference.request_headers.clone(),
        response_headers: reference.response_headers.clone(),
    }
}
