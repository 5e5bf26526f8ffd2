//! Gateways: which routes are attached to which of their listeners, by the rules of the Gateway API, and what a data plane
//! that runs one receives: a listener for each of its ports, the route tables of those, and what they lead to.
//!
//! Of the listeners of a port the one with the narrowest hostname has a name to itself, whoever else could take it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use phalanx_model::document::{
    AllowedNamespaces, Document, DocumentId, Gateway, GatewayListener, GatewayProtocol, GatewayRef,
    Kind as DocumentKind, Route, StreamRoute,
};
use phalanx_model::instance::Protocol;
use phalanx_model::matching::hostname::{covers, intersection, rank};
use phalanx_model::matching::order::precedence;
use phalanx_model::name::Direction;
use phalanx_model::resource::colour::EdgeColours;
use phalanx_model::resource::gateway::{Chain, ChainTarget, ChainTls, GATEWAY, GatewayPort, Share};
use phalanx_model::resource::udp::{UDP, UdpPort};
use phalanx_model::resource::{Listener, ListenerProtocol, RouteTable, Rule, VirtualHost};
use phalanx_model::{ClusterName, ServiceName, SharedMap};
use phalanx_xds::{Encoded, Kind, Snapshot, encode};

use super::catalog::{finding, replace};
use super::demand::renew;
use super::lanes::with_twins;
use super::overlay::{Lead, compared, led};
use super::{Catalog, Finding, Mesh, Node, Published, Resources, routes, udp};
use crate::world::{DocumentEntry, World};

/// By name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gateways(SharedMap<ServiceName, Arc<Compiled>>);

impl Gateways {
    pub(super) fn names(&self) -> impl Iterator<Item = ServiceName> + '_ {
        self.0.keys().cloned()
    }
}

/// What all data planes of a Gateway share.
#[derive(Clone, Debug, Default, PartialEq)]
struct Compiled {
    addresses: Vec<IpAddr>,
    colours: EdgeColours,
    /// None of them without a chain.
    ports: BTreeMap<u16, Vec<Chain>>,
    /// Those for datagrams, beside them.
    udp: BTreeMap<u16, UdpPort>,
    tables: Vec<RouteTable>,
}

/// Compiles these Gateways again.
pub(super) fn compile(mesh: &mut Mesh, world: &World, gateways: BTreeSet<ServiceName>) {
    for name in gateways {
        let mut findings = Vec::new();
        let compiled = find(world, mesh, &name, &mut findings);
        mesh.notes.of_gateways.set(&name, findings);
        match compiled {
            Some(compiled) => replace(&mut mesh.gateways.0, name, compiled),
            None => drop(mesh.gateways.0.remove(&name)),
        }
    }
}

/// A route that wants to be attached.
#[derive(Clone, Copy)]
enum Wanting<'a> {
    Http(&'a Route),
    Stream(&'a StreamRoute),
}

impl<'a> Wanting<'a> {
    fn of(document: &'a Document) -> Option<Self> {
        match document {
            Document::Route(route) => Some(Self::Http(route)),
            Document::StreamRoute(route) => Some(Self::Stream(route)),
            _ => None,
        }
    }

    fn parents(self) -> &'a [GatewayRef] {
        match self {
            Self::Http(route) => &route.gateways,
            Self::Stream(route) => &route.gateways,
        }
    }

    fn hostnames(self) -> &'a [String] {
        match self {
            Self::Http(route) => &route.hostnames,
            Self::Stream(route) => &route.hostnames,
        }
    }
}

/// A route at one listener, with the names that it gets there.
struct Attached<'a> {
    entry: &'a DocumentEntry,
    route: Wanting<'a>,
    /// In [`Gateway::listeners`].
    listener: usize,
    /// None: any.
    names: Vec<Option<&'a str>>,
    /// Of a rollout.
    lead: Option<Lead<'a>>,
}

fn find(
    world: &World,
    mesh: &Mesh,
    name: &ServiceName,
    findings: &mut Vec<Finding>,
) -> Option<Compiled> {
    let id = DocumentId {
        kind: DocumentKind::Gateway,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    };
    let document = world
        .documents
        .get(&id)
        .map(|entry| entry.document.as_deref());
    let routes = mesh.index.at_gateways.of(name).filter_map(|id| {
        let entry = &**world.documents.get(id)?;
        Some((entry, Wanting::of(entry.document.as_deref()?)?))
    });
    let mut routes: Vec<_> = routes.collect();
    let Some(Some(Document::Gateway(gateway))) = document else {
        let missing = format!(
            "unattached: its parent Gateway {name} does not exist, so it has no effect there yet"
        );
        findings.extend(routes.iter().map(|(entry, _)| finding(entry, &*missing)));
        return None;
    };
    routes.sort_by_key(|(entry, _)| (entry.created_ms, &entry.id));
    let mut attached = Vec::new();
    for (entry, route) in routes {
        attach(gateway, entry, route, &mut attached, findings);
    }
    outrank(gateway, &mut attached, findings);
    for one in &mut attached {
        one.lead = Lead::of(world, &mesh.index, &one.entry.id);
    }
    let ports: BTreeSet<u16> = gateway.listeners.iter().map(|l| l.port).collect();
    let mut compiled = Compiled {
        addresses: gateway.addresses.clone(),
        colours: mesh.lanes.at_gateway(name).cloned().unwrap_or_default(),
        ..Compiled::default()
    };
    for port in ports {
        let maker = Maker {
            gateway,
            port,
            attached: &attached,
            catalog: &mesh.catalog,
        };
        let chains = maker.chains(&mut compiled.tables, findings);
        if !chains.is_empty() {
            compiled.ports.insert(port, chains);
        }
        if let Some(udp) = maker.udp(&compiled.colours, findings) {
            compiled.udp.insert(port, udp);
        }
    }
    Some(compiled)
}

/// At each listener that its parents mean and that takes it; else it says why.
fn attach<'a>(
    gateway: &'a Gateway,
    entry: &'a DocumentEntry,
    route: Wanting<'a>,
    attached: &mut Vec<Attached<'a>>,
    findings: &mut Vec<Finding>,
) {
    let name = gateway.name();
    let mut at = BTreeMap::new();
    for parent in route.parents().iter().filter(|p| p.gateway == name) {
        let is_meant = |listener: &GatewayListener| {
            (parent.section.as_ref()).is_none_or(|section| *section == listener.name)
                && parent.port.is_none_or(|port| port == listener.port)
        };
        let meant = gateway.listeners.iter().enumerate();
        let meant: Vec<_> = meant.filter(|(_, listener)| is_meant(listener)).collect();
        let taking = meant
            .iter()
            .filter(|(_, listener)| takes(listener, gateway, entry));
        let taking: Vec<_> = taking.collect();
        let named = taking.iter().filter_map(|(index, listener)| {
            let names = names(gateway, listener, route.hostnames());
            (!names.is_empty()).then_some((*index, names))
        });
        let named: Vec<_> = named.collect();
        let why = match (meant.is_empty(), taking.is_empty(), named.is_empty()) {
            (true, ..) => format!("has no {}", said(parent)),
            (_, true, _) => format!(
                "takes no {} of namespace {} at {} (protocol, allowedRoutes)",
                entry.id.kind.as_str(),
                entry.id.namespace,
                said(parent)
            ),
            (_, _, true) => "has no listener for its hostnames".to_owned(),
            _ => {
                at.extend(named);
                continue;
            }
        };
        let message = format!("unattached: Gateway {name} {why}, so it has no effect there yet");
        findings.push(finding(entry, message));
    }
    attached.extend(at.into_iter().map(|(listener, names)| Attached {
        entry,
        route,
        listener,
        names,
        lead: None,
    }));
}

/// The listener that a parent means, in words.
fn said(parent: &GatewayRef) -> String {
    match (&parent.section, parent.port) {
        (None, None) => "listener".to_owned(),
        (Some(section), None) => format!("listener `{section}`"),
        (None, Some(port)) => format!("listener on port {port}"),
        (Some(section), Some(port)) => format!("listener `{section}` on port {port}"),
    }
}

fn takes(listener: &GatewayListener, gateway: &Gateway, entry: &DocumentEntry) -> bool {
    let is_near = entry.id.namespace == gateway.meta.namespace;
    let from = match listener.namespaces {
        AllowedNamespaces::All => true,
        AllowedNamespaces::Same => is_near,
        AllowedNamespaces::None => false,
    };
    from && listener.kinds.contains(&entry.id.kind)
}

/// What both a listener and a route are for, without what a narrower listener of the same port has.
fn names<'a>(
    gateway: &'a Gateway,
    listener: &'a GatewayListener,
    hostnames: &'a [String],
) -> Vec<Option<&'a str>> {
    let own = listener.hostname.as_deref();
    let mut names: Vec<Option<&str>> = match (hostnames, own) {
        ([], own) => vec![own],
        (hostnames, None) => hostnames.iter().map(|name| Some(&**name)).collect(),
        (hostnames, Some(own)) => {
            let both = hostnames.iter().filter_map(|name| intersection(own, name));
            both.map(Some).collect()
        }
    };
    names.retain(|name| {
        let owner = owner(gateway, listener, *name);
        owner.is_some_and(|owner| std::ptr::eq(owner, listener))
    });
    names.sort_unstable();
    names.dedup();
    names
}

/// The listener of a port that has this name, or all names, to itself.
fn owner<'g>(
    gateway: &'g Gateway,
    at: &GatewayListener,
    name: Option<&str>,
) -> Option<&'g GatewayListener> {
    // Datagrams have ports of their own.
    let is_udp = |listener: &GatewayListener| listener.protocol == GatewayProtocol::Udp;
    let is_beside = |l: &&GatewayListener| l.port == at.port && is_udp(l) == is_udp(at);
    let covering = gateway
        .listeners
        .iter()
        .filter(is_beside)
        .filter(|listener| {
            let own = listener.hostname.as_deref();
            name.map_or(own.is_none(), |name| covers(own, name))
        });
    covering.min_by_key(|listener| rank(listener.hostname.as_deref()))
}

/// Where a GRPCRoute is, an HTTPRoute for the same names is conflicted.
fn outrank(gateway: &Gateway, attached: &mut [Attached<'_>], findings: &mut Vec<Finding>) {
    let grpc: Vec<_> = attached
        .iter()
        .filter(|one| one.entry.id.kind == DocumentKind::GrpcRoute)
        .map(|one| (one.listener, one.entry.id.clone(), one.names.clone()))
        .collect();
    let meets = |one: Option<&str>, other: Option<&str>| match (one, other) {
        (Some(one), Some(other)) => intersection(one, other).is_some(),
        _ => true,
    };
    let others = attached.iter_mut();
    for one in others.filter(|one| one.entry.id.kind == DocumentKind::HttpRoute) {
        for (listener, winner, names) in &grpc {
            let before = one.names.len();
            if one.listener == *listener {
                one.names
                    .retain(|name| !names.iter().any(|other| meets(*name, *other)));
            }
            if one.names.len() < before {
                let listener = gateway.listeners.get(*listener);
                let listener = listener.map_or("", |listener| &listener.name);
                let message = format!(
                    "conflicted: {winner} outranks it at listener `{listener}` of Gateway {}",
                    gateway.name()
                );
                findings.push(finding(one.entry, message));
            }
        }
    }
}

/// Makes one port of a Gateway.
struct Maker<'a> {
    gateway: &'a Gateway,
    port: u16,
    attached: &'a [Attached<'a>],
    catalog: &'a Catalog,
}

impl<'a> Maker<'a> {
    fn listeners(&self) -> impl Iterator<Item = (usize, &'a GatewayListener)> + use<'a> {
        let port = self.port;
        let all = self.gateway.listeners.iter().enumerate();
        all.filter(move |(_, listener)| listener.port == port)
    }

    fn at(&self, listener: usize) -> impl Iterator<Item = &'a Attached<'a>> + use<'a> {
        let attached = self.attached.iter();
        attached.filter(move |one| one.listener == listener && !one.names.is_empty())
    }

    /// `gateway/<namespace>/<name>/<port>`
    fn name(&self) -> String {
        format!("{GATEWAY}{}/{}", self.gateway.name(), self.port)
    }

    fn chains(&self, tables: &mut Vec<RouteTable>, findings: &mut Vec<Finding>) -> Vec<Chain> {
        let mut chains = Vec::new();
        let mut plain = Vec::new();
        for (index, listener) in self.listeners() {
            match &listener.protocol {
                GatewayProtocol::Http => plain.push((index, listener)),
                GatewayProtocol::Https { certificates } => {
                    let table = format!("{}/{}", self.name(), listener.name);
                    tables.push(self.table(&table, &[(index, listener)], findings));
                    chains.push(Chain {
                        names: listener.hostname.iter().cloned().collect(),
                        tls: ChainTls::Terminate(certificates.clone()),
                        target: ChainTarget::Http(table),
                    });
                }
                GatewayProtocol::Tls => self.passed(index, listener, &mut chains, findings),
                GatewayProtocol::Tcp => chains.extend(self.tcp(index, listener, findings)),
                GatewayProtocol::Udp => {}
            }
        }
        if !plain.is_empty() {
            let table = self.name();
            tables.push(self.table(&table, &plain, findings));
            chains.push(Chain {
                names: Vec::new(),
                tls: ChainTls::Off,
                target: ChainTarget::Http(table),
            });
        }
        chains
    }

    /// A host for each name: the rules of those routes that are for just this name come first.
    fn table(
        &self,
        name: &str,
        listeners: &[(usize, &GatewayListener)],
        findings: &mut Vec<Finding>,
    ) -> RouteTable {
        let mut hosts = Vec::new();
        for (index, listener) in listeners {
            let own = listener.hostname.as_deref().map(Some);
            let of_routes = self.at(*index).flat_map(|one| one.names.iter().copied());
            let domains: BTreeSet<Option<&str>> = own.into_iter().chain(of_routes).collect();
            for domain in domains {
                let rules = self.rules(*index, domain, findings);
                let domain = domain.unwrap_or("*");
                hosts.push(VirtualHost {
                    name: domain.to_owned(),
                    domains: vec![domain.to_owned()],
                    rules,
                });
            }
        }
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        RouteTable {
            name: name.to_owned(),
            hosts,
        }
    }

    fn rules(
        &self,
        listener: usize,
        domain: Option<&str>,
        findings: &mut Vec<Finding>,
    ) -> Vec<Rule> {
        let mut ranked = Vec::new();
        for one in self.at(listener) {
            let Wanting::Http(route) = one.route else {
                continue;
            };
            let for_domain = |name: &&Option<&str>| match domain {
                Some(domain) => covers(**name, domain),
                None => name.is_none(),
            };
            let Some(best) = one
                .names
                .iter()
                .filter(for_domain)
                .map(|name| rank(*name))
                .min()
            else {
                continue;
            };
            for (index, rule) in route.rules.iter().enumerate() {
                for rule in led(one.lead.as_ref(), rule, self.catalog) {
                    let rules = routes::split(one.entry, index, &rule, self.catalog, findings);
                    let rules = rules.into_iter();
                    let rules = rules.map(|rule| compared(one.lead.as_ref(), rule));
                    ranked.extend(rules.map(|rule| (best, rule)));
                }
            }
        }
        // Stable: what is equal by name and match keeps the order of age, name and place.
        ranked.sort_by(|(a, one), (b, other)| {
            a.cmp(b)
                .then_with(|| precedence(&one.matches, &other.matches))
        });
        let rules = ranked.into_iter().map(|(_, rule)| rule);
        with_twins(rules.collect(), self.catalog)
    }

    /// A chain for each route; what is the listener's and no route's is closed.
    fn passed(
        &self,
        index: usize,
        listener: &GatewayListener,
        chains: &mut Vec<Chain>,
        findings: &mut Vec<Finding>,
    ) {
        let mut taken: BTreeMap<Option<&str>, &DocumentId> = BTreeMap::new();
        let chain = |names, shares| Chain {
            names,
            tls: ChainTls::Passthrough,
            target: ChainTarget::Stream(shares),
        };
        for one in self.at(index) {
            let Wanting::Stream(route) = one.route else {
                continue;
            };
            let mut free = Vec::new();
            for name in &one.names {
                match taken.get(name) {
                    None => free.push(*name),
                    Some(winner) => findings.push(finding(
                        one.entry,
                        format!(
                            "conflicted: {winner} is older and has {} at listener `{}` of Gateway {}",
                            name.map_or_else(|| "every name".to_owned(), |name| format!("`{name}`")),
                            listener.name,
                            self.gateway.name()
                        ),
                    )),
                }
            }
            taken.extend(free.iter().map(|name| (*name, &one.entry.id)));
            let shares = self.shares(one.entry, route, findings);
            let named: Vec<String> = free
                .iter()
                .flatten()
                .map(|name| (*name).to_owned())
                .collect();
            if free.contains(&None) {
                chains.push(chain(Vec::new(), shares.clone()));
            }
            if !named.is_empty() {
                chains.push(chain(named, shares));
            }
        }
        let own = listener.hostname.as_deref();
        if let Some(name) = own.filter(|_| !taken.contains_key(&own)) {
            chains.push(chain(vec![name.to_owned()], Vec::new()));
        }
    }

    /// Of several routes the oldest; none: nothing listens.
    fn udp(&self, colours: &EdgeColours, findings: &mut Vec<Finding>) -> Option<UdpPort> {
        let mut listeners = self.listeners();
        let (index, listener) = listeners.find(|(_, l)| l.protocol == GatewayProtocol::Udp)?;
        let attached = self.at(index).filter_map(|one| match one.route {
            Wanting::Stream(route) => Some((one.entry, route)),
            Wanting::Http(_) => None,
        });
        let place = format!(
            "listener `{}` of Gateway {}",
            listener.name,
            self.gateway.name()
        );
        let (entry, route) = udp::oldest(attached.collect(), &place, findings)?;
        let port = udp::udp_port(entry, route, self.catalog, findings);
        Some(udp::coloured(port, route, colours, self.catalog))
    }

    /// Of several the oldest; none: nothing listens.
    fn tcp(
        &self,
        index: usize,
        listener: &GatewayListener,
        findings: &mut Vec<Finding>,
    ) -> Option<Chain> {
        let mut attached = self.at(index);
        let first = attached.next()?;
        let Wanting::Stream(route) = first.route else {
            return None;
        };
        findings.extend(attached.map(|one| {
            let message = format!(
                "conflicted: {} is older and has listener `{}` of Gateway {}",
                first.entry.id,
                listener.name,
                self.gateway.name()
            );
            finding(one.entry, message)
        }));
        Some(Chain {
            names: Vec::new(),
            tls: ChainTls::Off,
            target: ChainTarget::Stream(self.shares(first.entry, route, findings)),
        })
    }

    fn shares(
        &self,
        entry: &DocumentEntry,
        route: &StreamRoute,
        findings: &mut Vec<Finding>,
    ) -> Vec<Share> {
        let weighted = route.backends.iter().filter(|backend| backend.weight > 0);
        let share = |backend: &phalanx_model::document::StreamBackend| {
            let (service, port) = (&backend.service, backend.port);
            let found = self.catalog.port(service, port);
            if let Some(found) = found.filter(|found| found.protocol != Protocol::Tcp) {
                let speaks = match found.protocol {
                    Protocol::Udp => "takes datagrams",
                    _ => "speaks HTTP",
                };
                let message = format!(
                    "backend Service {service} {speaks} on port {port} as far as is known: its share is closed (say `appProtocol: tcp`)"
                );
                findings.push(finding(entry, message));
            }
            let exists = found.is_some_and(|found| found.protocol == Protocol::Tcp);
            Share {
                cluster: exists.then(|| ClusterName::outbound(service.clone(), port)),
                weight: backend.weight,
            }
        };
        weighted.map(share).collect()
    }
}

/// One stream's part of the mesh, where it runs a Gateway.
#[derive(Debug, Default)]
pub struct AtGateway {
    /// What the Gateway is taken from, where this node refuses what is published.
    mesh: Option<Mesh>,
    of: Option<Arc<Compiled>>,
    /// The last snapshot's, to be shared by the next if nothing changed.
    listeners: Resources,
    tables: Resources,
    clusters: Resources,
    endpoints: Resources,
}

impl AtGateway {
    /// From now on it is taken from here; none: from what is published.
    pub fn isolate(&mut self, mesh: Option<Mesh>) {
        self.mesh = mesh;
    }

    pub fn snapshot(&mut self, published: &Published, node: &Node) -> Snapshot {
        let mesh = self.mesh.as_ref().unwrap_or(&published.mesh);
        let of = mesh.gateways.0.get(&node.service);
        let is_same = match (&self.of, of) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        if !is_same {
            self.of = of.cloned();
            let compiled = of.map(|of| &**of);
            let listeners = compiled.map_or_else(Vec::new, |of| of.listeners(node));
            let tables = compiled.map_or(&[][..], |of| &of.tables);
            renew(
                &mut self.listeners,
                kept(listeners.iter().map(encode::listener)),
            );
            renew(&mut self.tables, kept(tables.iter().map(encode::routes)));
        }
        let named = self.tables.values().chain(self.listeners.values());
        let wanted: BTreeSet<String> = named.flat_map(|one| one.refs.iter().cloned()).collect();
        let shared = |kind| {
            let found = |name: &String| Some((name.clone(), published.shared(kind, name, node)?));
            wanted.iter().filter_map(found).collect()
        };
        renew(&mut self.clusters, shared(Kind::Cluster));
        renew(&mut self.endpoints, shared(Kind::Endpoints));
        let of = |kind| match kind {
            Kind::Cluster => self.clusters.clone(),
            Kind::Endpoints => self.endpoints.clone(),
            Kind::Listener => self.listeners.clone(),
            Kind::Routes => self.tables.clone(),
            Kind::Secret => Resources::default(),
        };
        Snapshot::from_kinds(published.revision, Kind::ALL.map(of))
    }
}

/// The document that a listener or a table of this name is made of.
pub(super) fn source(name: &str) -> Option<DocumentId> {
    let mut parts = name.strip_prefix(GATEWAY)?.split('/');
    Some(DocumentId {
        kind: DocumentKind::Gateway,
        namespace: parts.next()?.to_owned(),
        name: parts.next()?.to_owned(),
    })
}

fn kept(encoded: impl Iterator<Item = Encoded>) -> Resources {
    encoded
        .map(|one| (one.name.clone(), Arc::new(one)))
        .collect()
}

impl Compiled {
    /// One for each address and port.
    fn listeners(&self, node: &Node) -> Vec<Listener> {
        let edge = node.edge.clone().unwrap_or_default();
        let addresses = match (edge.bind, &*self.addresses) {
            (Some(bind), _) => vec![bind],
            (None, []) => vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
            (None, addresses) => addresses.to_vec(),
        };
        let listener = |ip: IpAddr, port: u16, chains: &[Chain]| {
            let address = SocketAddr::new(ip, port);
            Listener {
                name: format!("{GATEWAY}{}/{address}", node.service),
                address,
                direction: Direction::Outbound,
                protocol: ListenerProtocol::Gateway(GatewayPort {
                    gateway: node.service.clone(),
                    certificates_in: edge.certificates_in.clone(),
                    colours: self.colours.clone(),
                    chains: chains.to_vec(),
                }),
            }
        };
        let datagrams = |ip: IpAddr, port: u16, udp: &UdpPort| {
            let address = SocketAddr::new(ip, port);
            Listener {
                name: format!("{GATEWAY}{}/{UDP}{address}", node.service),
                address,
                direction: Direction::Outbound,
                protocol: ListenerProtocol::Udp(udp.clone()),
            }
        };
        let of_address = |ip: IpAddr| {
            let ports = self.ports.iter();
            let ports = ports.map(move |(port, chains)| listener(ip, *port, chains));
            let udp = self.udp.iter();
            ports.chain(udp.map(move |(port, udp)| datagrams(ip, *port, udp)))
        };
        addresses.into_iter().flat_map(of_address).collect()
    }
}

#[cfg(test)]
mod tests;
