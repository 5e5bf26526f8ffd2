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
use phalanx_model::resource::udp::{TOKEN, UdpRules};
use phalanx_model::resource::{
    Assignment, Cluster, Effect, Endpoint, HashOn, Health, Hedging, Locality, MtlsMode, PeerTls,
    SessionDirectory, Transcoding,
};
use phalanx_model::{ClusterName, Instance, ServiceName, SharedMap};

use super::inbound::{self, Stand};
use super::index::{Index, selects};
use super::lanes::{self, KnownLane, Placed, colour_of};
use super::{Finding, Mesh, transcode, udp};
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
    /// How its policy says that datagrams are taken; only where it takes some.
    pub udp: Option<UdpRules>,
    /// How its callers may speak JSON to it, where it speaks gRPC.
    pub transcoding: Option<Arc<Transcoding>>,
    /// Its sessions are placed by a directory.
    pub has_directory: bool,
    /// Colours that have a cluster of their own there, in order; none where no HTTP is spoken.
    pub lanes: Vec<String>,
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
        let lanes = mesh.lanes.clone();
        let lanes: Vec<&KnownLane> = lanes.of(&service.namespace).collect();
        let mut found = find(world, &mesh.index, &service, &lanes, &mut findings);
        guarded(world, &mesh.index, &service, &mut findings);
        let policy = policy(world, &mesh.index, &service, &mut findings);
        udp::pointless(world, &service, policy, &found, &mut findings);
        let protocols = found.values().map(|(port, _)| port.protocol);
        let transcoding =
            transcode::of_service(world, &mesh.index, &service, protocols, &mut findings);
        mesh.notes.of_service.set(&service, findings);
        let before = mesh.catalog.services.get(&service).cloned();
        let gone = before.iter().flat_map(|ports| ports.keys());
        for port in gone.filter(|port| !found.contains_key(port)) {
            mesh.forget(&ClusterName::outbound(service.clone(), *port));
        }
        let mut ports = Ports::new();
        let tls = peer_tls(mesh, world, &service);
        let locality = policy.and_then(|policy| policy.locality);
        let hash_on = policy.and_then(|policy| policy.hash_on.clone());
        let hedging = policy.and_then(|policy| policy.hedging.clone());
        udp::judge(world, &service, &mut found);
        let registered = registered(world, &mesh.index, &service, &lanes);
        for (port, (mut of_port, placed)) in found {
            of_port.hash_on = hash_on.clone();
            of_port.hedging = hedging.clone();
            let carries = transcode::carries_calls(of_port.protocol);
            of_port.transcoding = transcoding.clone().filter(|_| carries);
            of_port.has_directory = policy.is_some_and(|p| p.session_directory.is_some());
            of_port.udp = udp::rules(of_port.protocol, policy);
            let name = ClusterName::outbound(service.clone(), port);
            let mut cluster = Cluster::new(name.clone(), of_port.protocol);
            cluster.tls = Some(tls.clone());
            if let Some(policy) = policy {
                merge(&mut cluster, policy);
            }
            if of_port.protocol == Protocol::Udp {
                udp::fit(&mut cluster, policy);
            }
            let placed = judged(world, &service, tidy(placed));
            let split = lanes::split(&lanes, &service, &registered, placed);
            let assignment = Assignment {
                cluster: name.clone(),
                endpoints: split.baseline,
                overprovision: locality.map(Locality::overprovision),
            };
            for (colour, endpoints) in split.lanes {
                // A connection that nobody looks into has no colour.
                if !of_port.protocol.is_http() && of_port.protocol != Protocol::Udp {
                    continue;
                }
                let of_lane = name.lane(&colour);
                let cluster = Cluster {
                    name: of_lane.clone(),
                    ..cluster.clone()
                };
                replace(&mut mesh.clusters, of_lane.clone(), cluster);
                let assignment = lanes::assignment(of_lane.clone(), endpoints);
                replace(&mut mesh.assignments, of_lane, assignment);
                of_port.lanes.push(colour);
            }
            let earlier = before.as_ref().and_then(|ports| ports.get(&port));
            let gone = earlier.iter().flat_map(|earlier| &earlier.lanes);
            for colour in gone.filter(|colour| !of_port.lanes.contains(colour)) {
                let of_lane = name.lane(colour);
                mesh.clusters.remove(&of_lane);
                mesh.assignments.remove(&of_lane);
            }
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

impl Mesh {
    /// That port is gone, with its lanes.
    fn forget(&mut self, name: &ClusterName) {
        let port = self.catalog.port(&name.service, name.port);
        let lanes = port.map_or_else(Vec::new, |port| port.lanes.clone());
        let lanes = lanes.iter().map(|colour| name.lane(colour));
        for name in lanes.chain([name.clone()]) {
            self.clusters.remove(&name);
            self.assignments.remove(&name);
        }
    }
}

/// An endpoint that does not work stays where it is, so that a data plane can still send to all when none works.
fn judged(world: &World, service: &ServiceName, mut placed: Vec<Placed>) -> Vec<Placed> {
    let Some(verdicts) = world.health.get(service) else {
        return placed;
    };
    for Placed { endpoint, .. } in &mut placed {
        let verdict = verdicts.get(&endpoint.address);
        if verdict.is_some_and(|verdict| verdict.is_unhealthy()) {
            endpoint.health = Health::Unhealthy;
        }
    }
    placed
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

pub(super) type Found = BTreeMap<u16, (CatalogPort, Vec<Placed>)>;

/// The ports of a service and who serves them, as its manifest says, else its instances.
fn find(
    world: &World,
    index: &Index,
    name: &ServiceName,
    lanes: &[&KnownLane],
    findings: &mut Vec<Finding>,
) -> Found {
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
            undeclared(world, index, instances.values(), lanes, &mut found);
        }
        return found;
    };
    let instances = select(world, index, service);
    let is_off = inbound::mode_of_service(world, index, name) == MtlsMode::Off;
    let slices: Vec<_> = slices.map(|(_, slice)| slice).collect();
    for port in &service.ports {
        let chosen: Vec<_> = instances
            .iter()
            .filter_map(|i| Some((*i, pick(&i.instance, &port.target, port.protocol)?)))
            .collect();
        let of_slices = slices.iter().flat_map(|slice| {
            let lane = colour_of(lanes, &slice.meta.labels);
            let endpoints = slice_endpoints(slice, service, port, is_off).into_iter();
            endpoints.map(move |endpoint| Placed {
                lane: lane.clone(),
                endpoint,
            })
        });
        let endpoints = chosen
            .iter()
            .filter_map(|(i, p)| placed(world, index, i, p, lanes))
            .chain(of_slices)
            .collect();
        let of_port = CatalogPort {
            name: port.name.clone(),
            protocol: protocol(port, chosen.iter().map(|(_, p)| *p)),
            hash_on: None,
            hedging: None,
            udp: None,
            transcoding: None,
            has_directory: false,
            lanes: Vec::new(),
        };
        found.insert(port.port, (of_port, endpoints));
    }
    found
}

/// Colours of lanes that refuse and have an instance of the service, whether or not that wants requests.
fn registered(
    world: &World,
    index: &Index,
    name: &ServiceName,
    lanes: &[&KnownLane],
) -> BTreeSet<String> {
    let refusing = lanes.iter().filter(|known| known.refuses());
    if refusing.count() == 0 {
        return BTreeSet::new();
    }
    let slices = index.slices.of(name).filter_map(|id| {
        match world.documents.get(id)?.document.as_deref()? {
            Document::EndpointSlice(slice) => Some(&slice.meta.labels),
            _ => None,
        }
    });
    let selected = world
        .service(name)
        .map(|service| select(world, index, service));
    let undeclared = world.instances.service(name).filter(|_| selected.is_none());
    let slices = slices.filter(|_| selected.is_some());
    let undeclared = undeclared.into_iter().flat_map(|all| all.values());
    let instances = selected.iter().flatten().copied();
    let instances = instances.chain(undeclared.map(|registered| &**registered));
    let labels = instances.map(|registered| &registered.instance.labels);
    let colours = labels
        .chain(slices)
        .filter_map(|labels| colour_of(lanes, labels));
    let refuses = |colour: &String| {
        let mut all = lanes.iter();
        all.any(|known| known.lane.colour == *colour && known.refuses())
    };
    colours.filter(refuses).collect()
}

/// A service that is registered but has no manifest: reachable on its application's ports.
fn undeclared<'a>(
    world: &World,
    index: &Index,
    instances: impl Iterator<Item = &'a Arc<Registered>> + Clone,
    lanes: &[&KnownLane],
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
        // Where one number stands for both, that is what connections go to: a Service tells them apart.
        let ports = instances.clone().flat_map(|i| &i.instance.ports);
        let mut here = ports.filter(|port| port.number == number);
        let told = match here.all(|port| port.protocol == Protocol::Udp) {
            true => Protocol::Udp,
            false => Protocol::Auto,
        };
        let chosen: Vec<_> = instances
            .clone()
            .filter_map(|i| Some((&**i, pick(&i.instance, &target, told)?)))
            .collect();
        let port = ServicePort {
            name: String::new(),
            port: number,
            target,
            protocol: told,
        };
        let endpoints = chosen
            .iter()
            .filter_map(|(i, p)| placed(world, index, i, p, lanes))
            .collect();
        let names = chosen.iter().map(|(_, p)| p.name.as_str());
        let of_port = CatalogPort {
            name: names.max().unwrap_or_default().to_owned(),
            protocol: protocol(&port, chosen.iter().map(|(_, p)| *p)),
            hash_on: None,
            hedging: None,
            udp: None,
            transcoding: None,
            has_directory: false,
            lanes: Vec::new(),
        };
        found.insert(number, (of_port, endpoints));
    }
}

/// The port of an instance that takes a Service port's traffic.
pub(super) fn pick<'a>(
    instance: &'a Instance,
    target: &TargetPort,
    protocol: Protocol,
) -> Option<&'a InstancePort> {
    let is_udp = |protocol| protocol == Protocol::Udp;
    let fits = |port: &&InstancePort| is_udp(port.protocol) == is_udp(protocol);
    // Datagrams and connections never stand in for each other.
    let mut ports = instance.ports.iter().filter(&fits);
    if let (Some(only), None) = (ports.next(), ports.next()) {
        return Some(only);
    }
    instance
        .ports
        .iter()
        .filter(&fits)
        .find(|port| match target {
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

/// The same, and the lane that it belongs to.
fn placed(
    world: &World,
    index: &Index,
    registered: &Registered,
    port: &InstancePort,
    lanes: &[&KnownLane],
) -> Option<Placed> {
    Some(Placed {
        lane: colour_of(lanes, &registered.instance.labels),
        endpoint: endpoint(world, index, registered, port)?,
    })
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
    let is_udp = port.protocol == Protocol::Udp;
    let token = instance.labels.get(TOKEN);
    let token = token.map(|token| token.to_ascii_lowercase());
    Some(Endpoint {
        address: port.address,
        weight: instance.weight.clamp(1, WEIGHT_MAX),
        zone: instance.zone.clone(),
        is_far: false,
        health,
        version: instance.version().to_owned(),
        instance: instance.id.id.clone(),
        target: port.number,
        mutual_tls: !is_udp && takes_mutual(world, index, registered, port),
        datagrams: is_udp,
        token: token.filter(|_| is_udp).unwrap_or_default(),
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
    let is_udp = port.protocol == Protocol::Udp;
    let fits = |p: &&SlicePort| {
        let is_meant = p.name == port.name || (slice.ports.len() == 1 && service.ports.len() == 1);
        is_meant && (p.protocol == Protocol::Udp) == is_udp
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
                mutual_tls: mutual_tls && !is_udp,
                datagrams: is_udp,
                token: String::new(),
            }
        }));
    }
    endpoints
}

/// Sorted by address, each address once; of two, the one that registered.
fn tidy(mut endpoints: Vec<Placed>) -> Vec<Placed> {
    endpoints.sort_by(|Placed { endpoint: a, .. }, Placed { endpoint: b, .. }| {
        a.address
            .cmp(&b.address)
            .then_with(|| a.instance.is_empty().cmp(&b.instance.is_empty()))
            .then_with(|| a.instance.cmp(&b.instance))
    });
    endpoints.dedup_by(|later, kept| later.endpoint.address == kept.endpoint.address);
    endpoints
}

/// The instances that a Service takes: by the `app` that nearly every selector has, so that not the whole namespace is
/// looked at.
pub(super) fn select<'a>(
    world: &'a World,
    index: &Index,
    service: &Service,
) -> Vec<&'a Registered> {
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
    cluster.directory = policy.session_directory.as_ref().map(|rules| {
        let own = &cluster.name.service;
        SessionDirectory {
            service: match &rules.service {
                Some(name) => ServiceName::new(own.namespace.clone(), name.clone()),
                None => own.clone(),
            },
            key: rules.key.clone(),
            missing: rules.missing,
        }
    });
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
