//! Which services there are, on which ports, and who serves them: Services, registered instances, EndpointSlices and
//! BackendPolicies become clusters and endpoint sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::document::{
    BackendPolicy, Document, DocumentId, EndpointSlice, Service, ServicePort, SlicePort, TargetPort,
};
use phalanx_model::identity::SpiffeId;
use phalanx_model::instance::{InstancePort, Protocol, State};
use phalanx_model::resource::{
    Assignment, Cluster, Effect, Endpoint, HashOn, Health, Hedging, Locality, MtlsMode, PeerTls,
};
use phalanx_model::{ClusterName, Instance, ServiceName, SharedMap};

use super::inbound::{self, Stand};
use super::index::{Index, selects};
use super::{Finding, Mesh};
use crate::world::record::WEIGHT_MAX;
use crate::world::{DocumentEntry, Registered, World};

/// Services and their ports, whoever told of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    pub services: SharedMap<ServiceName, Arc<Ports>>,
}

pub type Ports = BTreeMap<u16, CatalogPort>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogPort {
    /// Of the Service's port, else of an instance's; may be empty.
    pub name: String,
    pub protocol: Protocol,
    /// What its policy says is the key of a request.
    pub hash_on: Option<HashOn>,
    /// Whether and when it lets a request be sent once more.
    pub hedging: Option<Hedging>,
}

impl Catalog {
    pub fn port(&self, service: &ServiceName, port: u16) -> Option<&CatalogPort> {
        self.services.get(service)?.get(&port)
    }

    /// The port meant by an authority without one: 80, else the only one.
    pub fn default_port(&self, service: &ServiceName) -> Option<u16> {
        let ports = self.services.get(service)?;
        let only = || ports.keys().next().copied().filter(|_| ports.len() == 1);
        ports.contains_key(&80).then_some(80).or_else(only)
    }
}

/// Compiles these services again, apart from their rules; returns those whose ports are others than before.
pub(super) fn compile(
    mesh: &mut Mesh,
    world: &World,
    services: BTreeSet<ServiceName>,
) -> Vec<ServiceName> {
    let mut changed = Vec::new();
    for service in services {
        let mut findings = Vec::new();
        let found = find(world, &mesh.index, &service, &mut findings);
        guarded(world, &mesh.index, &service, &mut findings);
        let policy = policy(world, &mesh.index, &service, &mut findings);
        mesh.notes.of_service.set(&service, findings);
        let before = mesh.catalog.services.get(&service).cloned();
        let gone = before.iter().flat_map(|ports| ports.keys());
        for port in gone.filter(|port| !found.contains_key(port)) {
            let name = ClusterName::outbound(service.clone(), *port);
            mesh.clusters.remove(&name);
            mesh.assignments.remove(&name);
        }
        let mut ports = Ports::new();
        let tls = peer_tls(mesh, world, &service);
        let locality = policy.and_then(|policy| policy.locality);
        let hash_on = policy.and_then(|policy| policy.hash_on.clone());
        let hedging = policy.and_then(|policy| policy.hedging.clone());
        for (port, (mut of_port, endpoints)) in found {
            of_port.hash_on = hash_on.clone();
            of_port.hedging = hedging.clone();
            let name = ClusterName::outbound(service.clone(), port);
            let mut cluster = Cluster::new(name.clone(), of_port.protocol);
            cluster.tls = Some(tls.clone());
            if let Some(policy) = policy {
                merge(&mut cluster, policy);
            }
            let assignment = Assignment {
                cluster: name.clone(),
                endpoints: judged(world, &service, tidy(endpoints)),
                overprovision: locality.map(Locality::overprovision),
            };
            replace(&mut mesh.clusters, name.clone(), cluster);
            replace(&mut mesh.assignments, name, assignment);
            ports.insert(port, of_port);
        }
        if before.as_deref().unwrap_or(&Ports::new()) == &ports {
            continue;
        }
        match ports.is_empty() {
            true => drop(mesh.catalog.services.remove(&service)),
            false => drop(mesh.catalog.services.insert(service.clone(), ports.into())),
        }
        changed.push(service);
    }
    changed
}

/// An endpoint that does not work stays where it is, so that a data plane can still send to all when none works.
fn judged(world: &World, service: &ServiceName, mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    let Some(verdicts) = world.health.get(service) else {
        return endpoints;
    };
    for endpoint in &mut endpoints {
        let verdict = verdicts.get(&endpoint.address);
        if verdict.is_some_and(|verdict| verdict.is_unhealthy()) {
            endpoint.health = Health::Unhealthy;
        }
    }
    endpoints
}

/// What is equal stays shared.
pub(super) fn replace<K: Ord + Clone, V: PartialEq>(
    map: &mut SharedMap<K, Arc<V>>,
    key: K,
    value: V,
) {
    if map.get(&key).is_none_or(|before| **before != value) {
        map.insert(key, Arc::new(value));
    }
}

/// Who is expected behind a service: itself, and what its selector takes, whether it wants calls or not.
fn peer_tls(mesh: &Mesh, world: &World, service: &ServiceName) -> PeerTls {
    let document = world.service(service);
    let selected = document.map_or_else(Vec::new, |document| select(world, &mesh.index, document));
    let names = selected
        .iter()
        .map(|registered| &registered.instance.id.service);
    let names: BTreeSet<&ServiceName> = names.chain([service]).collect();
    let id = |service: &ServiceName| SpiffeId {
        trust_domain: mesh.trust_domain.clone(),
        service: service.clone(),
    };
    PeerTls {
        ids: names.into_iter().map(id).collect(),
    }
}

/// What is said about a service that is not there, twice, or to instances that can't know who calls.
fn guarded(world: &World, index: &Index, service: &ServiceName, findings: &mut Vec<Finding>) {
    let about = format!("Service {service}");
    findings.extend(inbound::conflicts(
        world,
        index.peers.of(service).collect(),
        &about,
    ));
    let entries = |ids: Vec<&DocumentId>| -> Vec<&DocumentEntry> {
        let found = ids.into_iter().filter_map(|id| world.documents.get(id));
        found.map(|entry| &**entry).collect()
    };
    let guards = entries(index.guards.of(service).collect());
    let instances = match world.service(service) {
        Some(document) => select(world, index, document),
        None => {
            let instances = world.instances.service(service);
            let Some(instances) = instances else {
                let peers = entries(index.peers.of(service).collect());
                let all = guards.into_iter().chain(peers);
                findings.extend(all.map(|entry| {
                    finding(
                        entry,
                        format!("unattached: there is no Service {service} (yet)"),
                    )
                }));
                return;
            };
            instances.values().map(|registered| &**registered).collect()
        }
    };
    let nameless = instances.iter().filter(|r| !r.instance.mutual_tls).count();
    if nameless == 0 {
        return;
    }
    findings.extend(guards.into_iter().filter_map(|entry| {
        let Some(Document::AuthorizationPolicy(policy)) = entry.document.as_deref() else {
            return None;
        };
        let why = match policy.effect {
            Effect::Allow => "it allows nothing by name there",
            Effect::Deny => "it denies everybody there",
        };
        let message = format!("{nameless} instances of Service {service} have no identity and can't know who calls: {why}");
        policy.names_callers().then(|| finding(entry, message))
    }));
}

/// Whether it is called with mutual TLS: in plain text, if that is said of its callers.
fn takes_mutual(
    world: &World,
    index: &Index,
    registered: &Registered,
    port: &InstancePort,
) -> bool {
    let is_off = || Stand::of(registered).peers(world, index).mode(port.number) == MtlsMode::Off;
    registered.instance.mutual_tls && !(index.has_peers() && is_off())
}

type Found = BTreeMap<u16, (CatalogPort, Vec<Endpoint>)>;

/// The ports of a service and who serves them, as its manifest says, else its instances.
fn find(world: &World, index: &Index, name: &ServiceName, findings: &mut Vec<Finding>) -> Found {
    let mut found = Found::new();
    let slices = index.slices.of(name).filter_map(|id| {
        let entry = world.documents.get(id)?;
        match entry.document.as_deref()? {
            Document::EndpointSlice(slice) => Some((&**entry, slice)),
            _ => None,
        }
    });
    let Some(service) = world.service(name) else {
        findings.extend(slices.map(|(entry, _)| finding(entry, "unattached: no Service has the name in its label kubernetes.io/service-name, so nothing is sent to its endpoints")));
        if let Some(instances) = world.instances.service(name) {
            undeclared(world, index, instances.values(), &mut found);
        }
        return found;
    };
    let instances = select(world, index, service);
    let is_off = inbound::mode_of_service(world, index, name) == MtlsMode::Off;
    let slices: Vec<_> = slices.map(|(_, slice)| slice).collect();
    for port in &service.ports {
        let chosen: Vec<_> = instances
            .iter()
            .filter_map(|i| Some((*i, pick(&i.instance, &port.target)?)))
            .collect();
        let of_slices = slices
            .iter()
            .flat_map(|slice| slice_endpoints(slice, service, port, is_off));
        let endpoints = chosen
            .iter()
            .filter_map(|(i, p)| endpoint(world, index, i, p))
            .chain(of_slices)
            .collect();
        let of_port = CatalogPort {
            name: port.name.clone(),
            protocol: protocol(port, chosen.iter().map(|(_, p)| *p)),
            hash_on: None,
            hedging: None,
        };
        found.insert(port.port, (of_port, endpoints));
    }
    found
}

/// A service that is registered but has no manifest: reachable on its application's ports.
fn undeclared<'a>(
    world: &World,
    index: &Index,
    instances: impl Iterator<Item = &'a Arc<Registered>> + Clone,
    found: &mut Found,
) {
    let numbers: BTreeSet<u16> = instances
        .clone()
        .flat_map(|i| &i.instance.ports)
        .map(|p| p.number)
        .filter(|n| *n > 0)
        .collect();
    for number in numbers {
        let target = TargetPort::Number(number);
        let chosen: Vec<_> = instances
            .clone()
            .filter_map(|i| Some((&**i, pick(&i.instance, &target)?)))
            .collect();
        let port = ServicePort {
            name: String::new(),
            port: number,
            target,
            protocol: Protocol::Auto,
        };
        let endpoints = chosen
            .iter()
            .filter_map(|(i, p)| endpoint(world, index, i, p))
            .collect();
        let told = chosen.iter().map(|(_, p)| p.name.as_str());
        let of_port = CatalogPort {
            name: told.max().unwrap_or_default().to_owned(),
            protocol: protocol(&port, chosen.iter().map(|(_, p)| *p)),
            hash_on: None,
            hedging: None,
        };
        found.insert(number, (of_port, endpoints));
    }
}

/// The port of an instance that takes a Service port's traffic.
pub(super) fn pick<'a>(instance: &'a Instance, target: &TargetPort) -> Option<&'a InstancePort> {
    if let [only] = instance.ports.as_slice() {
        return Some(only);
    }
    instance.ports.iter().find(|port| match target {
        TargetPort::Number(number) => port.number == *number,
        TargetPort::Name(name) => port.name == *name,
    })
}

/// The Service's word, else that of an instance, else a guess by the port's name.
fn protocol<'a>(
    port: &ServicePort,
    instances: impl Iterator<Item = &'a InstancePort> + Clone,
) -> Protocol {
    let told = std::iter::once(port.protocol).chain(instances.clone().map(|i| i.protocol));
    let guessed = std::iter::once(port.name.as_str())
        .chain(instances.map(|i| i.name.as_str()))
        .map(Protocol::guess);
    told.chain(guessed)
        .find(|protocol| *protocol != Protocol::Auto)
        .unwrap_or_default()
}

/// None for an instance that wants no traffic.
fn endpoint(
    world: &World,
    index: &Index,
    registered: &Registered,
    port: &InstancePort,
) -> Option<Endpoint> {
    let instance = &registered.instance;
    let health = match registered.state {
        State::Accepting => Health::Healthy,
        State::Draining => Health::Draining,
        State::NotReady | State::Drained => return None,
    };
    Some(Endpoint {
        address: port.address,
        weight: instance.weight.clamp(1, WEIGHT_MAX),
        zone: instance.zone.clone(),
        is_far: false,
        health,
        version: instance.version().to_owned(),
        instance: instance.id.id.clone(),
        target: port.number,
        mutual_tls: takes_mutual(world, index, registered, port),
        datagrams: false,
        token: String::new(),
    })
}

/// Nobody tells what these take but the slice itself.
fn slice_endpoints(
    slice: &EndpointSlice,
    service: &Service,
    port: &ServicePort,
    is_off: bool,
) -> Vec<Endpoint> {
    let mutual_tls = !is_off && slice.mutual_tls;
    let fits = |p: &&SlicePort| {
        p.name == port.name || (slice.ports.len() == 1 && service.ports.len() == 1)
    };
    let Some(target) = slice.ports.iter().find(fits) else {
        return Vec::new();
    };
    let mut endpoints = Vec::new();
    for endpoint in &slice.endpoints {
        let health = match (endpoint.ready, endpoint.terminating) {
            (true, _) => Health::Healthy,
            (false, true) => Health::Draining,
            (false, false) => continue,
        };
        endpoints.extend(endpoint.addresses.iter().map(|address| {
            Endpoint {
                address: SocketAddr::new(*address, target.port),
                weight: 1,
                zone: endpoint.zone.clone(),
                is_far: false,
                health,
                version: slice
                    .meta
                    .labels
                    .get("version")
                    .cloned()
                    .unwrap_or_default(),
                instance: String::new(),
                target: 0,
                mutual_tls,
            }
        }));
    }
    endpoints
}

/// Sorted by address, each address once; of two, the one that registered.
fn tidy(mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    endpoints.sort_by(|a, b| {
        a.address
            .cmp(&b.address)
            .then_with(|| a.instance.is_empty().cmp(&b.instance.is_empty()))
            .then_with(|| a.instance.cmp(&b.instance))
    });
    endpoints.dedup_by(|later, kept| later.address == kept.address);
    endpoints
}

/// The instances that a Service takes: by the `app` that nearly every selector has, so that not the whole namespace is
/// looked at.
fn select<'a>(world: &'a World, index: &Index, service: &Service) -> Vec<&'a Registered> {
    let Some(services) = world.instances.namespace(&service.meta.namespace) else {
        return Vec::new();
    };
    let of_names: Vec<_> = match service.selector.get("app") {
        Some(app) => index
            .names(&service.meta.namespace, app)
            .filter_map(|name| services.get(name))
            .collect(),
        None => services.values().collect(),
    };
    of_names
        .into_iter()
        .flat_map(|instances| instances.values())
        .map(|registered| &**registered)
        .filter(|registered| selects(service, registered))
        .collect()
}

/// The oldest policy that names the service; the others are told of it.
fn policy<'a>(
    world: &'a World,
    index: &Index,
    service: &ServiceName,
    findings: &mut Vec<Finding>,
) -> Option<&'a BackendPolicy> {
    let policies = index.policies.of(service).filter_map(|id| {
        let entry = world.documents.get(id)?;
        match entry.document.as_deref()? {
            Document::BackendPolicy(policy) => Some((&**entry, policy)),
            _ => None,
        }
    });
    let mut policies: Vec<_> = policies.collect();
    policies.sort_by_key(|(entry, _)| (entry.created_ms, &entry.id));
    let ((winner, policy), others) = policies.split_first()?;
    findings.extend(others.iter().map(|(entry, _)| {
        finding(
            entry,
            format!(
                "conflicted: {} is older and already sets the policy of Service {service}",
                winner.id
            ),
        )
    }));
    Some(policy)
}

/// The policy in force for a service.
pub(super) fn policy_of<'a>(
    world: &'a World,
    index: &Index,
    service: &ServiceName,
) -> Option<&'a BackendPolicy> {
    policy(world, index, service, &mut Vec::new())
}

fn merge(cluster: &mut Cluster, policy: &BackendPolicy) {
    cluster.load_balancer = policy.load_balancer.unwrap_or(cluster.load_balancer);
    cluster.slow_start = policy.slow_start;
    if let Some(locality) = policy.locality {
        cluster.panic_percent = locality.panic_percent;
    }
    cluster.connection_pool = policy.connection_pool.unwrap_or(cluster.connection_pool);
    cluster.circuit_breaker = policy.circuit_breaker.unwrap_or(cluster.circuit_breaker);
    cluster.outlier_detection = policy
        .outlier_detection
        .unwrap_or(cluster.outlier_detection);
    cluster.retry_budget = policy.retry_budget.unwrap_or(cluster.retry_budget);
}

pub(super) fn finding(entry: &DocumentEntry, message: impl Into<String>) -> Finding {
    Finding {
        document: entry.id.clone(),
        message: message.into(),
        since_revision: entry.revision,
    }
}
