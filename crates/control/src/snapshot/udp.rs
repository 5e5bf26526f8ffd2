//! Datagrams inside the mesh: where those go that an application's sidecar takes for a Service (`--udp`), and how. A UDPRoute
//! whose parent is the Service says so, else they go to the Service itself.
//!
//! As with HTTP, a route of another namespace than its parent's holds for callers of that namespace, and for those only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use phalanx_model::document::{
    BackendPolicy, Document, DocumentId, Kind, StreamBackend, StreamRoute,
};
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::colour::{EdgeColours, Network};
use phalanx_model::resource::gateway::Share;
use phalanx_model::resource::udp::{UDP, UdpLimits, UdpPort, UdpRules};
use phalanx_model::resource::{Cluster, Health, Listener, ListenerProtocol};
use phalanx_model::{ClusterName, ServiceName, SharedMap};

use super::catalog::{CatalogPort, Found, finding, replace};
use super::lanes::{self, Placed};
use super::routes::{self, ServicePort};
use super::{Catalog, Finding, Mesh, Node};
use crate::world::{DocumentEntry, World};

/// For each service port that takes datagrams.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UdpPorts(SharedMap<ServicePort, Arc<Hosted>>);

#[derive(Clone, Debug, PartialEq)]
struct Hosted {
    port: UdpPort,
    /// Instead of it, for callers of these namespaces.
    consumers: BTreeMap<String, UdpPort>,
}

/// Compiles those of a service again.
pub(super) fn compile(
    mesh: &mut Mesh,
    world: &World,
    service: &ServiceName,
    findings: &mut Vec<Finding>,
) {
    let found = find(world, mesh, service, findings);
    let gone: Vec<u16> = mesh.udp.of_service(service).collect();
    for port in gone.into_iter().filter(|port| !found.contains_key(port)) {
        mesh.udp.0.remove(&(service.clone(), port));
    }
    for (port, hosted) in found {
        replace(&mut mesh.udp.0, (service.clone(), port), hosted);
    }
}

impl UdpPorts {
    fn of_service(&self, service: &ServiceName) -> impl Iterator<Item = u16> {
        let from = self
            .0
            .starting_at(move |(probe, port)| (probe, port).cmp(&(service, &0)));
        from.take_while(move |((probe, _), _)| probe == service)
            .map(|((_, port), _)| *port)
    }

    /// As callers in `namespace` see it.
    fn of(&self, service: &ServiceName, port: u16, namespace: &str) -> Option<&UdpPort> {
        let (_, hosted) = self
            .0
            .find(|(probe, at)| (probe, at).cmp(&(service, &port)))?;
        Some(hosted.consumers.get(namespace).unwrap_or(&hosted.port))
    }

    /// A listener for each that the node asks for. Where the service has no such port there is one nevertheless, which
    /// drops what comes.
    pub fn listeners(&self, node: &Node) -> Vec<Listener> {
        let listener = |(address, service, port): &(_, ServiceName, u16)| {
            let nothing = || UdpPort {
                name: format!("{}/{service}", Kind::Service.as_str()),
                backends: Vec::new(),
                by_source: Vec::new(),
                rules: UdpRules::default(),
            };
            let found = self.of(service, *port, &node.service.namespace);
            let mut udp = found.cloned().unwrap_or_else(nothing);
            // The application is the only source, and no stranger.
            udp.rules.limits = UdpLimits {
                sessions_per_source: udp.rules.limits.sessions,
                packets_per_second_per_source: 0,
                bytes_per_second_per_source: 0,
                ..udp.rules.limits
            };
            Listener {
                name: format!("{UDP}{address}"),
                address: *address,
                direction: Direction::Outbound,
                protocol: ListenerProtocol::Udp(udp),
            }
        };
        node.udp.iter().map(listener).collect()
    }
}

fn find(
    world: &World,
    mesh: &Mesh,
    service: &ServiceName,
    findings: &mut Vec<Finding>,
) -> BTreeMap<u16, Hosted> {
    let mut attached = attach(world, mesh, service, findings);
    let ports = mesh.catalog.services.get(service);
    let ports = ports.into_iter().flat_map(|ports| ports.iter());
    let mut found = BTreeMap::new();
    for (port, of_port) in ports.filter(|(_, of_port)| of_port.protocol == Protocol::Udp) {
        let mut scopes = attached.remove(port).unwrap_or_default();
        let own = scopes.remove(service.namespace.as_str());
        let mut led = |routes: Vec<(&DocumentEntry, &StreamRoute)>| {
            let place = format!("port {port} of Service {service}");
            let (entry, route) = oldest(routes, &place, findings)?;
            Some(udp_port(entry, route, &mesh.catalog, findings))
        };
        let plain = || UdpPort {
            name: format!("{}/{service}", Kind::Service.as_str()),
            backends: vec![Share {
                cluster: Some(ClusterName::outbound(service.clone(), *port)),
                weight: 1,
            }],
            by_source: Vec::new(),
            rules: of_port.udp.unwrap_or_default(),
        };
        let own = own.and_then(&mut led).unwrap_or_else(plain);
        let consumers = scopes
            .into_iter()
            .filter_map(|(namespace, routes)| Some((namespace.to_owned(), led(routes)?)))
            .collect();
        let hosted = Hosted {
            port: own,
            consumers,
        };
        found.insert(*port, hosted);
    }
    for (port, scopes) in attached {
        for (entry, _) in scopes.into_values().flatten() {
            let message = format!(
                "port {port} of Service {service} takes no datagrams, so no UDPRoute holds there (say `protocol: UDP`)"
            );
            findings.push(finding(entry, message));
        }
    }
    found
}

/// By port, and by the namespace that the routes are of.
type Attached<'a> = BTreeMap<u16, BTreeMap<&'a str, Vec<(&'a DocumentEntry, &'a StreamRoute)>>>;

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
        let Some(Document::StreamRoute(route)) = entry.document.as_deref() else {
            continue;
        };
        let parents = &route.parents;
        for port in routes::parents(entry, parents, service, &mesh.catalog, findings) {
            // A parent without a port means all that take datagrams.
            let is_said = parents
                .iter()
                .any(|p| p.service == *service && (p.port == Some(port) || p.section.is_some()));
            let of_port = mesh.catalog.port(service, port);
            if !is_said && of_port.is_some_and(|of_port| of_port.protocol != Protocol::Udp) {
                continue;
            }
            let scopes = attached.entry(port).or_default();
            let scope: &mut Vec<_> = scopes.entry(entry.id.namespace.as_str()).or_default();
            scope.push((&**entry, route));
        }
    }
    attached
}

/// The others are told of it.
pub(super) fn oldest<'a>(
    mut routes: Vec<(&'a DocumentEntry, &'a StreamRoute)>,
    place: &str,
    findings: &mut Vec<Finding>,
) -> Option<(&'a DocumentEntry, &'a StreamRoute)> {
    routes.sort_by_key(|(entry, _)| (entry.created_ms, &entry.id));
    let (first, others) = routes.split_first()?;
    findings.extend(others.iter().map(|(entry, _)| {
        let winner = &first.0.id;
        finding(
            entry,
            format!("conflicted: {winner} is older and has {place} already"),
        )
    }));
    Some(*first)
}

/// Where a UDPRoute leads, by the rules of the first of its backends that has some.
pub(super) fn udp_port(
    entry: &DocumentEntry,
    route: &StreamRoute,
    catalog: &Catalog,
    findings: &mut Vec<Finding>,
) -> UdpPort {
    let weighted = route.backends.iter().filter(|backend| backend.weight > 0);
    let rules_of = |backend: &StreamBackend| catalog.port(&backend.service, backend.port)?.udp;
    let mut rules: Option<(UdpRules, &StreamBackend)> = None;
    let mut backends = Vec::new();
    for backend in weighted {
        let (service, port) = (&backend.service, backend.port);
        let found = catalog.port(service, port);
        let is_udp = found.is_some_and(|found| found.protocol == Protocol::Udp);
        if found.is_some() && !is_udp {
            let message = format!(
                "backend Service {service} takes no datagrams on port {port} as far as is known: its share is dropped (say `protocol: UDP`)"
            );
            findings.push(finding(entry, message));
        }
        match (rules_of(backend), rules) {
            (Some(of_backend), None) => rules = Some((of_backend, backend)),
            (Some(other), Some((chosen, first))) if other != chosen => {
                let message = format!(
                    "datagrams are taken as the BackendPolicy of Service {} says; that of Service {service} says otherwise",
                    first.service
                );
                findings.push(finding(entry, message));
            }
            _ => {}
        }
        backends.push(Share {
            cluster: is_udp.then(|| ClusterName::outbound(service.clone(), port)),
            weight: backend.weight,
        });
    }
    UdpPort {
        name: entry.id.to_string(),
        backends,
        by_source: Vec::new(),
        rules: rules.map(|(rules, _)| rules).unwrap_or_default(),
    }
}

/// The same at an edge that gives colours: who has one by where he comes from, or because everybody has, goes to its lane. A
/// datagram has no header that could say one. What the route says to all stays, for tokens and sessions that are there.
pub(super) fn coloured(
    port: UdpPort,
    route: &StreamRoute,
    colours: &EdgeColours,
    catalog: &Catalog,
) -> UdpPort {
    let of_colour = |colour: &str| lanes::in_lane(&route.backends, colour, catalog);
    let networks = colours.networks.iter();
    let mut by_source: Vec<_> = networks
        .map(|(network, colour)| (*network, of_colour(colour)))
        .collect();
    if let Some(colour) = &colours.default {
        for everywhere in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
            let network = Network {
                address: everywhere,
                prefix: 0,
            };
            if by_source.iter().all(|(known, _)| *known != network) {
                by_source.push((network, of_colour(colour)));
            }
        }
    }
    if by_source.iter().all(|(_, in_lane)| in_lane.is_none()) {
        return port;
    }
    let else_all = |(network, in_lane): (Network, Option<Vec<Share>>)| {
        (network, in_lane.unwrap_or_else(|| port.backends.clone()))
    };
    UdpPort {
        by_source: by_source.into_iter().map(else_all).collect(),
        ..port.clone()
    }
}

/// Of a port, as a policy says it.
pub(super) fn rules(protocol: Protocol, policy: Option<&BackendPolicy>) -> Option<UdpRules> {
    policy?.udp.filter(|_| protocol == Protocol::Udp)
}

/// A session is to a stock Envoy what a connection is; nobody ends TLS.
pub(super) fn fit(cluster: &mut Cluster, policy: Option<&BackendPolicy>) {
    cluster.tls = None;
    if policy.is_none_or(|policy| policy.circuit_breaker.is_none()) {
        let rules = policy.and_then(|policy| policy.udp).unwrap_or_default();
        cluster.circuit_breaker.max_connections = rules.limits.sessions;
    }
}

/// Nobody asks a port for datagrams whether it works: it does as far as the instance's other ports do.
pub(super) fn judge(world: &World, service: &ServiceName, found: &mut Found) {
    let Some(verdicts) = world.health.get(service) else {
        return;
    };
    let is_udp = |of_port: &CatalogPort| of_port.protocol == Protocol::Udp;
    let asked = found.values().filter(|(of_port, _)| !is_udp(of_port));
    let asked = asked.flat_map(|(_, placed)| placed);
    let sick = asked.filter(|placed| {
        let verdict = verdicts.get(&placed.endpoint.address);
        verdict.is_some_and(|verdict| verdict.is_unhealthy())
    });
    let sick: BTreeSet<String> = sick
        .map(|placed| placed.endpoint.instance.clone())
        .collect();
    let ports = found.values_mut().filter(|(of_port, _)| is_udp(of_port));
    for Placed { endpoint, .. } in ports.flat_map(|(_, placed)| placed) {
        if !endpoint.instance.is_empty() && sick.contains(&endpoint.instance) {
            endpoint.health = Health::Unhealthy;
        }
    }
}

/// A policy that speaks of datagrams to a Service that takes none.
pub(super) fn pointless(
    world: &World,
    service: &ServiceName,
    policy: Option<&BackendPolicy>,
    found: &Found,
    findings: &mut Vec<Finding>,
) {
    let takes_some = |(of_port, _): &(CatalogPort, _)| of_port.protocol == Protocol::Udp;
    let Some(policy) = policy.filter(|policy| policy.udp.is_some()) else {
        return;
    };
    if found.is_empty() || found.values().any(takes_some) {
        return;
    }
    let id = DocumentId {
        kind: Kind::BackendPolicy,
        namespace: policy.meta.namespace.clone(),
        name: policy.meta.name.clone(),
    };
    if let Some(entry) = world.documents.get(&id) {
        let message = format!(
            "`udp` says nothing: no port takes datagrams (say `protocol: UDP`) of Service {service}"
        );
        findings.push(finding(entry, message));
    }
}

#[cfg(test)]
mod tests;
