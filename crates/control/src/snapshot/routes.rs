//! HTTPRoutes and GRPCRoutes become rules per service and port, and those a route table per calling namespace.
//!
//! Gateway API semantics for routes whose parent is a Service: the rules of all of them are merged and ordered by match
//! (`model::matching::order`), age, name, and their place in the document. Those of a route in another namespace than its
//! parent hold for callers of the route's namespace only, and for those instead of all others (GEP-1426, consumer routes).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phalanx_model::document::{BackendRef, Document, Kind, ParentRef, Route, RouteRule};
use phalanx_model::instance::Protocol;
use phalanx_model::matching::order::precedence;
use phalanx_model::resource::{
    Action, Backend, Forward, HashOn, HeaderEdit, Hedging, Mirror, Retry, Rewrite, RouteTable,
    Rule, RuleMatch, Session, VirtualHost,
};
use phalanx_model::{ClusterName, Reason, ServiceName, SharedMap};

use super::catalog::{CatalogPort, finding, replace};
use super::lanes::with_twins;
use super::overlay::{Lead, compared, led};
use super::{Catalog, Finding, Mesh, hosts, transcode, udp};
use crate::world::{DocumentEntry, World};

/// The name of the outbound listener and of its route table.
pub const OUTBOUND: &str = "outbound";

pub(super) type ServicePort = (ServiceName, u16);

/// The rules for each service port that speaks HTTP; shared by the tables of all namespaces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules(SharedMap<ServicePort, Arc<Hosted>>);

/// What holds for one port of a service.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hosted {
    /// In order of precedence.
    rules: Arc<Vec<Rule>>,
    /// Instead of them, for callers of these namespaces.
    consumers: BTreeMap<String, Arc<Vec<Rule>>>,
    /// Meant by an authority without a port.
    is_default: bool,
}

/// Rules as some callers see them.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) rules: Arc<Vec<Rule>>,
    /// Only those of this namespace do.
    pub(super) consumer: Option<String>,
}

impl Hosted {
    /// Namespaces whose callers have rules of their own.
    pub(super) fn consumers(&self) -> impl Iterator<Item = &String> {
        self.consumers.keys()
    }

    fn seen_by(&self, namespace: &str) -> Seen {
        match self.consumers.get_key_value(namespace) {
            Some((namespace, rules)) => Seen {
                rules: rules.clone(),
                consumer: Some(namespace.clone()),
            },
            None => Seen {
                rules: self.rules.clone(),
                consumer: None,
            },
        }
    }
}

/// Compiles the rules of these services again.
pub(super) fn compile(mesh: &mut Mesh, world: &World, services: BTreeSet<ServiceName>) {
    for service in services {
        let mut findings = Vec::new();
        let found = find(world, mesh, &service, &mut findings);
        udp::compile(mesh, world, &service, &mut findings);
        mesh.notes.of_rules.set(&service, findings);
        let gone: Vec<_> = mesh.rules.ports_of(&service).collect();
        for port in gone.into_iter().filter(|port| !found.contains_key(port)) {
            mesh.rules.0.remove(&(service.clone(), port));
        }
        for (port, hosted) in found {
            replace(&mut mesh.rules.0, (service.clone(), port), hosted);
        }
    }
}

impl Rules {
    /// By service and port; equal pointers mean equal rules.
    pub(super) fn ports(&self) -> &SharedMap<ServicePort, Arc<Hosted>> {
        &self.0
    }

    /// Of one service.
    fn ports_of(&self, service: &ServiceName) -> impl Iterator<Item = u16> {
        let from = self
            .0
            .starting_at(move |(probe, port)| (probe, port).cmp(&(service, &0)));
        from.take_while(move |((probe, _), _)| probe == service)
            .map(|((_, port), _)| *port)
    }

    /// For callers in `namespace`; none when it does not exist or speaks no HTTP.
    pub(super) fn of(&self, service: &ServiceName, port: u16, namespace: &str) -> Option<Seen> {
        let found = self
            .0
            .find(|(probe, at)| (probe, at).cmp(&(service, &port)));
        found.map(|(_, hosted)| hosted.seen_by(namespace))
    }

    /// What callers of some namespace see instead of all others, with that namespace.
    pub fn of_consumers(&self) -> impl Iterator<Item = (&str, VirtualHost)> {
        self.0.iter().flat_map(|(key, hosted)| {
            let of = move |namespace: &String| host(key, hosted, Some(namespace));
            hosted.consumers().map(move |n| (n.as_str(), of(n)))
        })
    }

    /// What a caller in `namespace` can reach, and how it may name it.
    pub fn table(&self, namespace: &str, _: &Catalog) -> RouteTable {
        let hosts = self.0.iter();
        RouteTable {
            name: OUTBOUND.to_owned(),
            hosts: hosts
                .map(|(key, hosted)| host(key, hosted, Some(namespace)))
                .collect(),
        }
    }
}

/// One port of a service as callers in `namespace` see it; none: by its long names only.
pub(super) fn host(
    (service, port): &ServicePort,
    hosted: &Hosted,
    namespace: Option<&str>,
) -> VirtualHost {
    VirtualHost {
        name: format!("{}:{port}", service.host()),
        domains: domains(service, *port, namespace, hosted.is_default),
        rules: match namespace {
            Some(namespace) => hosted.seen_by(namespace).rules.to_vec(),
            None => hosted.rules.to_vec(),
        },
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

/// The rules of a service by port.
fn find(
    world: &World,
    mesh: &Mesh,
    service: &ServiceName,
    findings: &mut Vec<Finding>,
) -> BTreeMap<u16, Hosted> {
    let mut attached = attach(world, mesh, service, findings);
    let default_port = mesh.catalog.default_port(service);
    let ports = mesh.catalog.services.get(service);
    let mut found = BTreeMap::new();
    for (port, of_port) in ports.into_iter().flat_map(|ports| ports.iter()) {
        let mut scopes = attached.remove(port).unwrap_or_default();
        if !of_port.protocol.is_http() {
            let speaks = match of_port.protocol {
                Protocol::Udp => "takes datagrams",
                _ => "is plain TCP",
            };
            let ignored = |(entry, _): &(&DocumentEntry, &Route)| {
                finding(
                    entry,
                    format!(
                        "port {port} of Service {service} {speaks}, so no HTTP rule holds there"
                    ),
                )
            };
            findings.extend(scopes.values().flatten().map(ignored));
            continue;
        }
        let routes = scopes.remove(service.namespace.as_str());
        let consumers = scopes.into_iter().map(|(namespace, routes)| {
            let rules = with_twins(merged(world, mesh, routes, findings), &mesh.catalog);
            (namespace.to_owned(), Arc::new(rules))
        });
        let consumers = consumers.collect();
        let rules = if let Some(routes) = routes {
            merged(world, mesh, routes, findings)
        } else {
            vec![plain(service, *port, of_port)]
        };
        let hosted = Hosted {
            rules: Arc::new(with_twins(rules, &mesh.catalog)),
            consumers,
            is_default: default_port == Some(*port),
        };
        found.insert(*port, hosted);
    }
    found
}

/// By port, and by the namespace that the routes are of.
type Attached<'a> = BTreeMap<u16, BTreeMap<&'a str, Vec<(&'a DocumentEntry, &'a Route)>>>;

/// Routes by the port of the service they are attached to; where GRPCRoutes are, HTTPRoutes of the same namespace are
/// conflicted.
fn attach<'a>(
    world: &'a World,
    mesh: &Mesh,
    service: &ServiceName,
    findings: &mut Vec<Finding>,
) -> Attached<'a> {
    let mut attached = Attached::new();
    for id in mesh.index.routes.of(service) {
        let Some(entry) = world.documents.get(id) else {
            continue;
        };
        let Some(Document::Route(route)) = entry.document.as_deref() else {
            continue;
        };
        for port in parents(entry, &route.parents, service, &mesh.catalog, findings) {
            let scopes = attached.entry(port).or_default();
            let scope = scopes.entry(entry.id.namespace.as_str()).or_default();
            scope.push((&**entry, route));
        }
    }
    let scopes = attached.iter_mut().flat_map(|(port, scopes)| {
        let scopes = scopes.values_mut();
        scopes.map(move |routes| (port, routes))
    });
    for (port, routes) in scopes {
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

/// The ports of this service that a route is attached to, each once.
pub(super) fn parents(
    entry: &DocumentEntry,
    of_route: &[ParentRef],
    service: &ServiceName,
    catalog: &Catalog,
    findings: &mut Vec<Finding>,
) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    let here = of_route.iter().filter(|p| p.service == *service);
    for parent in here {
        let Some(all) = catalog.services.get(service) else {
            findings.push(finding(
                entry,
                format!(
                    "unattached: its parent Service {service} does not exist, so it has no effect there yet"
                ),
            ));
            continue;
        };
        let is_meant = |(port, of_port): &(&u16, &CatalogPort)| {
            parent.port.is_none_or(|number| number == **port)
                && (parent.section.as_ref()).is_none_or(|name| *name == of_port.name)
        };
        let mut found = all
            .iter()
            .filter(is_meant)
            .map(|(port, _)| *port)
            .peekable();
        let said = match (parent.port, &parent.section) {
            (None, None) => None,
            (Some(port), None) => Some(port.to_string()),
            (None, Some(name)) => Some(format!("`{name}`")),
            (Some(port), Some(name)) => Some(format!("{port} called `{name}`")),
        };
        if let Some(said) = said.filter(|_| found.peek().is_none()) {
            findings.push(finding(
                entry,
                format!("unattached: its parent Service {service} has no port {said}, so it has no effect there yet"),
            ));
        }
        ports.extend(found);
    }
    ports
}

/// Without a route: everything goes to the service itself.
pub(super) fn plain(service: &ServiceName, port: u16, of_port: &CatalogPort) -> Rule {
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
            hash_on: of_port.hash_on.clone(),
            hedging: of_port.hedging.clone(),
            transcoding: of_port.transcoding.clone(),
            ..Forward::default()
        }),
    }
}

/// One rule per match, ordered.
fn merged(
    world: &World,
    mesh: &Mesh,
    mut routes: Vec<(&DocumentEntry, &Route)>,
    findings: &mut Vec<Finding>,
) -> Vec<Rule> {
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
        let lead = Lead::of(world, &mesh.index, &entry.id);
        for (index, rule) in route.rules.iter().enumerate() {
            for rule in led(lead.as_ref(), rule, &mesh.catalog) {
                let split = split(entry, index, &rule, &mesh.catalog, findings);
                rules.extend(split.into_iter().map(|rule| compared(lead.as_ref(), rule)));
            }
        }
    }
    // Stable: what is equal by match keeps the order of age, name and place.
    rules.sort_by(|a, b| precedence(&a.matches, &b.matches));
    rules
}

pub(super) fn split(
    entry: &DocumentEntry,
    index: usize,
    rule: &RouteRule,
    catalog: &Catalog,
    findings: &mut Vec<Finding>,
) -> Vec<Rule> {
    let place = rule.name.clone().unwrap_or_else(|| index.to_string());
    let mut action = action(rule, catalog);
    if let Action::Forward(forward) = &mut action {
        forward.mirrors = mirrors(entry, rule, catalog, findings);
        if let (false, Some(Document::Route(route))) =
            (forward.mirrors.is_empty(), entry.document.as_deref())
        {
            forward.compare.clone_from(&route.compare);
        }
        forward.transcoding = transcode::of_rule(entry, rule, catalog, findings);
        forward.session = rule.session.as_ref().map(|of| session(entry, &place, of));
    }
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
        hash_on: hash_on(rule, catalog),
        cors: rule.cors.clone(),
        hedging: hedging(rule, catalog),
        priority: rule.priority,
        ..Forward::default()
    })
}

/// Copies go only to what exists.
fn mirrors(
    entry: &DocumentEntry,
    rule: &RouteRule,
    catalog: &Catalog,
    findings: &mut Vec<Finding>,
) -> Vec<Mirror> {
    let mut mirrors = Vec::new();
    for mirror in rule.mirrors.iter().filter(|mirror| mirror.per_million > 0) {
        let (service, port) = (&mirror.service, mirror.port);
        match catalog.port(service, port) {
            Some(of_port) if of_port.protocol.is_http() => mirrors.push(Mirror {
                cluster: ClusterName::outbound(service.clone(), port),
                per_million: mirror.per_million,
            }),
            _ => findings.push(finding(
                entry,
                format!("mirrors to nobody: Service {service} has no port {port} that speaks HTTP"),
            )),
        }
    }
    mirrors
}

/// Under its own name, or one that no other rule has.
fn session(entry: &DocumentEntry, place: &str, of: &Session) -> Session {
    let mut session = of.clone();
    if session.name.is_empty() {
        let id = &entry.id;
        let kind = match id.kind {
            Kind::GrpcRoute => "grpc",
            _ => "http",
        };
        session.name = format!("session.{kind}.{}.{}.{place}", id.namespace, id.name);
    }
    session
}

/// A request has one key, whoever gets it: that of the first backend with one.
fn hash_on(rule: &RouteRule, catalog: &Catalog) -> Option<HashOn> {
    let mut ports = rule
        .backends
        .iter()
        .filter_map(|backend| catalog.port(&backend.service, backend.port));
    ports.find_map(|port| port.hash_on.clone())
}

/// A request may be sent twice only where each of those who may get it says so; then as the first of them does.
fn hedging(rule: &RouteRule, catalog: &Catalog) -> Option<Hedging> {
    let backends = rule.backends.iter().filter(|backend| backend.weight > 0);
    let words = backends.map(|backend| {
        let port = catalog.port(&backend.service, backend.port)?;
        port.hedging.as_ref()
    });
    let words: Option<Vec<&Hedging>> = words.collect();
    let words = words?;
    let safe = |path: &&String| words.iter().all(|hedging| hedging.allows_grpc(path));
    let first = *words.first()?;
    Some(Hedging {
        grpc: first.grpc.iter().filter(safe).cloned().collect(),
        ..first.clone()
    })
}

/// A backend that does not exist keeps its share, to be answered with an error.
fn backend(reference: &BackendRef, catalog: &Catalog) -> Backend {
    let exists = catalog
        .port(&reference.service, reference.port)
        .is_some_and(|port| port.protocol.is_http());
    Backend {
        cluster: exists.then(|| ClusterName::outbound(reference.service.clone(), reference.port)),
        weight: reference.weight,
        request_headers: reference.request_headers.clone(),
        response_headers: reference.response_headers.clone(),
    }
}
