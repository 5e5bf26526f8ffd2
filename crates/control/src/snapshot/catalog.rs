//! Which services there are, on which ports, and who serves them: Services, registered instances, EndpointSlices and
//! BackendPolicies become clusters and endpoint sets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::document::{
    BackendPolicy, Document, EndpointSlice, Service, ServicePort, SlicePort, TargetPort,
};
use phalanx_model::instance::{InstancePort, Protocol};
use phalanx_model::resource::{Assignment, Cluster, Endpoint, Health};
use phalanx_model::{ClusterName, Instance, ServiceName};

use super::Finding;
use crate::world::record::WEIGHT_MAX;
use crate::world::{DocumentEntry, NamespaceInstances, Registered, World};

/// Services and their ports, whoever told of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    pub services: BTreeMap<ServiceName, BTreeMap<u16, CatalogPort>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogPort {
    /// Of the Service's port, else of an instance's; may be empty.
    pub name: String,
    pub protocol: Protocol,
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

type Assignments = BTreeMap<ClusterName, Assignment>;

pub(super) fn compile(world: &World, findings: &mut Vec<Finding>) -> (Catalog, Assignments) {
    let mut catalog = Catalog::default();
    let mut assignments = Assignments::new();
    let mut add =
        |service: &ServiceName, port: u16, of_port: CatalogPort, endpoints: Vec<Endpoint>| {
            catalog
                .services
                .entry(service.clone())
                .or_default()
                .insert(port, of_port);
            let cluster = ClusterName::outbound(service.clone(), port);
            assignments.insert(
                cluster.clone(),
                Assignment {
                    cluster,
                    endpoints: tidy(endpoints),
                },
            );
        };
    let mut slices = slices(world);
    let mut declared = BTreeSet::new();
    let mut labels = LabelIndex::default();
    for (_, document) in world.in_force() {
        let Document::Service(service) = document else {
            continue;
        };
        let name = service.service_name();
        let instances = labels.select(world, service);
        let slices = slices.remove(&name).unwrap_or_default();
        for port in &service.ports {
            let chosen: Vec<_> = instances
                .iter()
                .filter_map(|i| Some((&i.instance, pick(&i.instance, &port.target)?)))
                .collect();
            let of_slices = slices
                .iter()
                .flat_map(|(_, slice)| slice_endpoints(slice, service, port));
            let endpoints = chosen
                .iter()
                .map(|(i, p)| endpoint(i, p))
                .chain(of_slices)
                .collect();
            let of_port = CatalogPort {
                name: port.name.clone(),
                protocol: protocol(port, chosen.iter().map(|(_, p)| *p)),
            };
            add(&name, port.port, of_port, endpoints);
        }
        declared.insert(name);
    }
    for (entry, _) in slices.into_values().flatten() {
        findings.push(finding(entry, "no Service has the name in its label kubernetes.io/service-name, so nothing is sent to its endpoints"));
    }
    for (namespace, services) in world.instances.namespaces() {
        for (service, instances) in services.iter() {
            let name = ServiceName::new(namespace, service);
            if !declared.contains(&name) {
                undeclared(&name, instances.values(), &mut add);
            }
        }
    }
    (catalog, assignments)
}

/// A service that is registered but has no manifest: reachable on its application's ports.
fn undeclared<'a>(
    name: &ServiceName,
    instances: impl Iterator<Item = &'a Arc<Registered>> + Clone,
    add: &mut impl FnMut(&ServiceName, u16, CatalogPort, Vec<Endpoint>),
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
            .filter_map(|i| Some((&i.instance, pick(&i.instance, &target)?)))
            .collect();
        let port = ServicePort {
            name: String::new(),
            port: number,
            target,
            protocol: Protocol::Auto,
        };
        let endpoints = chosen.iter().map(|(i, p)| endpoint(i, p)).collect();
        let told = chosen.iter().map(|(_, p)| p.name.as_str());
        let of_port = CatalogPort {
            name: told.max().unwrap_or_default().to_owned(),
            protocol: protocol(&port, chosen.iter().map(|(_, p)| *p)),
        };
        add(name, number, of_port, endpoints);
    }
}

/// The port of an instance that takes a Service port's traffic.
fn pick<'a>(instance: &'a Instance, target: &TargetPort) -> Option<&'a InstancePort> {
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

fn endpoint(instance: &Instance, port: &InstancePort) -> Endpoint {
    Endpoint {
        address: port.address,
        weight: instance.weight.clamp(1, WEIGHT_MAX),
        zone: instance.zone.clone(),
        health: Health::Healthy,
        version: instance.version().to_owned(),
        instance: instance.id.id.clone(),
        target: port.number,
    }
}

fn slice_endpoints(slice: &EndpointSlice, service: &Service, port: &ServicePort) -> Vec<Endpoint> {
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
                health,
                version: slice
                    .meta
                    .labels
                    .get("version")
                    .cloned()
                    .unwrap_or_default(),
                instance: String::new(),
                target: 0,
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

type Slices<'a> = BTreeMap<ServiceName, Vec<(&'a DocumentEntry, &'a EndpointSlice)>>;

fn slices(world: &World) -> Slices<'_> {
    let mut slices = Slices::new();
    for (entry, document) in world.in_force() {
        if let Document::EndpointSlice(slice) = document {
            slices
                .entry(slice.service.clone())
                .or_default()
                .push((entry, slice));
        }
    }
    slices
}

/// Finds instances by the label that nearly every selector has, so that a Service does not look at its whole namespace.
#[derive(Default)]
struct LabelIndex<'a> {
    by_app: HashMap<&'a str, HashMap<&'a str, Vec<&'a Registered>>>,
}

impl<'a> LabelIndex<'a> {
    fn select(&mut self, world: &'a World, service: &'a Service) -> Vec<&'a Registered> {
        let Some((namespace, services)) = world
            .instances
            .namespaces()
            .find(|(name, _)| **name == service.meta.namespace)
        else {
            return Vec::new();
        };
        if service.selector.is_empty() {
            return Vec::new();
        }
        let selected = |i: &&Registered| {
            service
                .selector
                .iter()
                .all(|(key, value)| i.instance.labels.get(key) == Some(value))
        };
        match service.selector.get("app") {
            Some(app) => {
                let index = self
                    .by_app
                    .entry(namespace)
                    .or_insert_with(|| by_app(services));
                index
                    .get(app.as_str())
                    .into_iter()
                    .flatten()
                    .copied()
                    .filter(selected)
                    .collect()
            }
            None => all(services).filter(selected).collect(),
        }
    }
}

fn all(services: &NamespaceInstances) -> impl Iterator<Item = &Registered> {
    services
        .values()
        .flat_map(|instances| instances.values())
        .map(|i| &**i)
}

fn by_app(services: &NamespaceInstances) -> HashMap<&str, Vec<&Registered>> {
    let mut index: HashMap<&str, Vec<&Registered>> = HashMap::new();
    for registered in all(services) {
        if let Some(app) = registered.instance.labels.get("app") {
            index.entry(app).or_default().push(registered);
        }
    }
    index
}

/// One cluster per service and port, with the oldest policy that names the service.
pub(super) fn clusters(
    world: &World,
    catalog: &Catalog,
    findings: &mut Vec<Finding>,
) -> BTreeMap<ClusterName, Cluster> {
    let policies = policies(world, findings);
    let mut clusters = BTreeMap::new();
    for (service, ports) in &catalog.services {
        for (port, of_port) in ports {
            let name = ClusterName::outbound(service.clone(), *port);
            let mut cluster = Cluster::new(name.clone(), of_port.protocol);
            if let Some((_, policy)) = policies.get(service) {
                merge(&mut cluster, policy);
            }
            clusters.insert(name, cluster);
        }
    }
    clusters
}

fn policies<'a>(
    world: &'a World,
    findings: &mut Vec<Finding>,
) -> BTreeMap<&'a ServiceName, (&'a DocumentEntry, &'a BackendPolicy)> {
    let policy = |(entry, document): (&'a DocumentEntry, &'a Document)| match document {
        Document::BackendPolicy(policy) => Some((entry, policy)),
        _ => None,
    };
    let mut all: Vec<_> = world.in_force().filter_map(policy).collect();
    all.sort_by_key(|(entry, _)| (entry.created_ms, &entry.id));
    let mut winners: BTreeMap<&ServiceName, (&DocumentEntry, &BackendPolicy)> = BTreeMap::new();
    for (entry, policy) in all {
        for target in &policy.targets {
            match winners.get(target) {
                Some((winner, _)) if winner.id != entry.id => {
                    findings.push(finding(entry, format!("conflicted: {} is older and already sets the policy of Service {target}", winner.id)));
                }
                Some(_) => {}
                None => {
                    winners.insert(target, (entry, policy));
                }
            }
        }
    }
    winners
}

fn merge(cluster: &mut Cluster, policy: &BackendPolicy) {
    cluster.load_balancer = policy.load_balancer.unwrap_or(cluster.load_balancer);
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
