//! Which names there are and what they hold: a compiled mesh, turned into maps once per change.
//!
//! [`Index::build`] is pure and shares the records of services that did not change; [`Index::resolve`] is a few look-ups
//! whatever the size of the mesh. No messages here, no sockets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;

use hickory_proto::rr::Name;
use phalanx_model::instance::Protocol;
use phalanx_model::name::check_label;
use phalanx_model::resource::Endpoint;
use phalanx_model::{ClusterName, ServiceName, SharedMap};

use crate::snapshot::{CatalogPort, Mesh};
use crate::world::{Instances, Registered};

/// Every name of the zone at one revision. Immutable.
#[derive(Debug)]
pub struct Index {
    revision: u64,
    mesh: Arc<Mesh>,
    instances: Instances,
    services: SharedMap<ServiceName, Arc<ServiceNames>>,
    /// Where the instances with this address are.
    zones: SharedMap<IpAddr, Claims>,
    name_server: Option<IpAddr>,
}

/// A zone as instances tell it, never empty.
pub type Zone = Arc<str>;

/// What a service's names hold: its healthy instances, or where none is, what a data plane would use then.
#[derive(Debug, Default, PartialEq)]
pub struct ServiceNames {
    pub addresses: Addresses,
    /// By transport and port name, in lower case.
    ports: BTreeMap<(Transport, String), Grouped<Target>>,
    /// By label.
    instances: BTreeMap<String, Addresses>,
}

/// `_tcp` or `_udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn parse(label: &str) -> Option<Self> {
        match label {
            "_tcp" => Some(Self::Tcp),
            "_udp" => Some(Self::Udp),
            _ => None,
        }
    }

    fn of(port: &CatalogPort) -> Self {
        match port.protocol {
            Protocol::Udp => Self::Udp,
            _ => Self::Tcp,
        }
    }
}

#[derive(Debug, Default, PartialEq)]
pub struct Addresses {
    pub v4: Grouped<Ipv4Addr>,
    pub v6: Grouped<Ipv6Addr>,
}

/// Where traffic of a named port is sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The first label of its name; the rest is the service's.
    pub instance: Arc<str>,
    pub port: u16,
    pub weight: u16,
}

/// A name of the zone, or none.
#[derive(Debug)]
pub enum Found<'a> {
    /// Not in the zone.
    Foreign,
    /// In the zone, but neither it nor anything below it exists.
    Missing,
    Apex,
    /// `ns.svc.mesh`
    NameServer(IpAddr),
    /// Exists, and holds nothing: a namespace, `_tcp` or `_udp` of a service with such ports that have names.
    Empty,
    Addresses(&'a Addresses),
    Port {
        service: &'a ServiceNames,
        targets: &'a Grouped<Target>,
    },
}

impl Index {
    /// `previous` is the index before, whose unchanged parts are shared; `name_server` is where this server is reached.
    pub fn build(
        mesh: Arc<Mesh>,
        instances: &Instances,
        revision: u64,
        name_server: Option<IpAddr>,
        previous: Option<&Self>,
    ) -> Self {
        let nothing = Mesh::default();
        let before = previous.map_or(&nothing, |index| &index.mesh);
        let mut services = previous.map_or_else(SharedMap::default, |i| i.services.clone());
        for service in changed(before, &mesh) {
            match mesh.catalog.services.get(&service) {
                Some(ports) => {
                    let names = ServiceNames::build(&mesh, &service, ports);
                    services.insert(service, Arc::new(names));
                }
                None => drop(services.remove(&service)),
            }
        }
        let mut zones = previous.map_or_else(SharedMap::default, |i| i.zones.clone());
        let nowhere = Instances::default();
        let known = previous.map_or(&nowhere, |index| &index.instances);
        locate(&mut zones, known, instances);
        Self {
            revision,
            mesh,
            instances: instances.clone(),
            services,
            zones,
            name_server,
        }
    }

    /// Of the store.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Of the zone.
    pub fn serial(&self) -> u32 {
        // Serial numbers wrap (RFC 1982), so the low half is what is wanted.
        self.revision as u32
    }

    /// Whether both hold the same under the same names.
    #[cfg(test)]
    pub fn holds_the_same(&self, other: &Self) -> bool {
        self.services == other.services && self.zones == other.zones
    }

    /// Services with names.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// The zone of whoever asks from this address, if it is an instance's.
    pub fn zone(&self, client: IpAddr) -> Option<&Zone> {
        match self.zones.get(&client.to_canonical())? {
            Claims::One(zone, _) => Some(zone),
            Claims::Several(_) => None,
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&Arc<ServiceNames>> {
        let key = (namespace, name);
        let found = self
            .services
            .find(|probe| (&*probe.namespace, &*probe.name).cmp(&key));
        found.map(|(_, names)| names)
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        let mut from = self
            .services
            .starting_at(|probe| (&*probe.namespace, "").cmp(&(namespace, "")));
        from.next()
            .is_some_and(|(service, _)| service.namespace == namespace)
    }

    /// Whatever the case of its letters.
    pub fn resolve(&self, name: &Name) -> Found<'_> {
        let name = name.to_lowercase();
        let mut labels = name.iter().rev();
        if (labels.next(), labels.next()) != (Some(b"mesh"), Some(b"svc")) {
            return Found::Foreign;
        }
        let mut next = || labels.next().map(std::str::from_utf8);
        let Some(namespace) = next() else {
            return Found::Apex;
        };
        let (Ok(namespace), service) = (namespace, next()) else {
            return Found::Missing;
        };
        let Some(service) = service else {
            return match self.name_server {
                Some(address) if namespace == NAME_SERVER => Found::NameServer(address),
                _ if self.has_namespace(namespace) => Found::Empty,
                _ => Found::Missing,
            };
        };
        let names = service
            .ok()
            .and_then(|service| self.service(namespace, service));
        let Some(names) = names else {
            return Found::Missing;
        };
        let transport = |label: &str| {
            let transport = Transport::parse(label)?;
            let has_some = names.ports.keys().any(|(of, _)| *of == transport);
            has_some.then_some(transport)
        };
        match (next(), next(), next()) {
            (None, ..) => Found::Addresses(&names.addresses),
            (Some(Ok(label)), None, _) if transport(label).is_some() => Found::Empty,
            (Some(Ok(label)), Some(Ok(port)), None) => {
                let key = |transport| Some((transport, port.strip_prefix('_')?.to_owned()));
                let targets = Transport::parse(label)
                    .and_then(key)
                    .and_then(|key| names.ports.get(&key));
                targets.map_or(Found::Missing, |targets| Found::Port {
                    service: names,
                    targets,
                })
            }
            (Some(Ok(instance)), None, _) => names
                .instances
                .get(instance)
                .map_or(Found::Missing, Found::Addresses),
            _ => Found::Missing,
        }
    }
}

impl ServiceNames {
    fn build(mesh: &Mesh, service: &ServiceName, ports: &BTreeMap<u16, CatalogPort>) -> Self {
        let endpoints = |port: u16| {
            let cluster = ClusterName::outbound(service.clone(), port);
            let assignment = mesh.assignments.get(&cluster);
            assignment
                .into_iter()
                .flat_map(|assignment| assignment.serving())
        };
        let all: Vec<&Endpoint> = ports.keys().flat_map(|port| endpoints(*port)).collect();
        let labels = Labels::of(&all);
        let mut instances: BTreeMap<String, Vec<&Endpoint>> = BTreeMap::new();
        for endpoint in &all {
            for label in labels.every(endpoint) {
                instances.entry(label).or_default().push(endpoint);
            }
        }
        let mut targets: BTreeMap<_, Vec<(&str, Target)>> = BTreeMap::new();
        for (number, port) in ports.iter().filter(|(_, port)| has_name(port)) {
            // A port without instances keeps its name.
            let name = (Transport::of(port), port.name.to_lowercase());
            let targets = targets.entry(name).or_default();
            targets.extend(endpoints(*number).map(|endpoint| {
                let target = Target {
                    instance: labels.unique(endpoint).into(),
                    port: endpoint.address.port(),
                    weight: endpoint.weight as u16,
                };
                (endpoint.zone.as_str(), target)
            }));
        }
        Self {
            addresses: Addresses::of(&all),
            ports: targets
                .into_iter()
                .map(|(name, targets)| (name, Grouped::new(targets)))
                .collect(),
            instances: instances
                .into_iter()
                .map(|(label, endpoints)| (label, Addresses::of(&endpoints)))
                .collect(),
        }
    }

    pub fn instance(&self, label: &str) -> Option<&Addresses> {
        self.instances.get(label)
    }
}

/// `_<name>` has to be a label.
fn has_name(port: &CatalogPort) -> bool {
    (1..=62).contains(&port.name.len())
}

/// Services with other ports or endpoints than before.
fn changed(before: &Mesh, mesh: &Mesh) -> BTreeSet<ServiceName> {
    let services = &mesh.catalog.services;
    let ports = services.differences(&before.catalog.services, |a, b| a == b);
    let sets = mesh
        .assignments
        .differences(&before.assignments, |a, b| a == b);
    ports
        .map(|change| change.key.clone())
        .chain(sets.map(|change| change.key.service.clone()))
        .collect()
}

/// Who says where an address is, with how many ports.
#[derive(Clone, Debug, PartialEq)]
enum Claims {
    One(Zone, u32),
    /// They don't agree.
    Several(Arc<BTreeMap<Zone, u32>>),
}

impl Claims {
    /// None when nobody is left.
    fn change(self, zone: &Zone, change: fn(u32) -> u32) -> Option<Self> {
        let mut all = match self {
            Self::One(known, count) if known == *zone => match change(count) {
                0 => return None,
                count => return Some(Self::One(known, count)),
            },
            Self::One(known, count) => BTreeMap::from([(known, count)]),
            Self::Several(all) => (*all).clone(),
        };
        match change(all.get(zone).copied().unwrap_or(0)) {
            0 => drop(all.remove(zone)),
            count => drop(all.insert(zone.clone(), count)),
        }
        match (all.len(), all.first_key_value()) {
            (1, Some((zone, count))) => Some(Self::One(zone.clone(), *count)),
            _ => Some(Self::Several(Arc::new(all))),
        }
    }
}

/// From the zones of the instances before to those of the instances now.
fn locate(zones: &mut SharedMap<IpAddr, Claims>, before: &Instances, after: &Instances) {
    let mut names: BTreeSet<Zone> = BTreeSet::new();
    let mut claim = |registered: &Registered, change: fn(u32) -> u32| {
        let zone = registered.instance.zone.as_str();
        if zone.is_empty() {
            return;
        }
        let zone = names.get(zone).cloned().unwrap_or_else(|| zone.into());
        for port in &registered.instance.ports {
            let address = port.address.ip().to_canonical();
            let known = zones.get(&address).cloned();
            let known = known.unwrap_or_else(|| Claims::One(zone.clone(), 0));
            match known.change(&zone, change) {
                Some(claims) => drop(zones.insert(address, claims)),
                None => drop(zones.remove(&address)),
            }
        }
        names.insert(zone);
    };
    after.each_difference(before, |old, new| {
        old.into_iter()
            .for_each(|old| claim(old, |count| count.saturating_sub(1)));
        new.into_iter()
            .for_each(|new| claim(new, |count| count + 1));
    });
}

/// The labels by which a service's endpoints are named.
struct Labels {
    /// Of a label: whether several addresses of a family have it.
    shared: HashMap<String, bool>,
}

impl Labels {
    fn of(endpoints: &[&Endpoint]) -> Self {
        let mut first: HashMap<(String, bool), IpAddr> = HashMap::new();
        let mut shared = HashMap::new();
        for endpoint in endpoints {
            let (label, ip) = (label(endpoint), endpoint.address.ip());
            let known = *first.entry((label.clone(), ip.is_ipv4())).or_insert(ip);
            *shared.entry(label).or_default() |= known != ip;
        }
        Self { shared }
    }

    /// The one label that leads to this endpoint's address and no other. Two services behind one selector may each have
    /// an instance of the same id.
    fn unique(&self, endpoint: &Endpoint) -> String {
        let label = label(endpoint);
        if self.shared.get(&label) != Some(&true) {
            return label;
        }
        fit(&format!("{label}-{}", dashed(endpoint.address.ip())))
    }

    fn every(&self, endpoint: &Endpoint) -> BTreeSet<String> {
        BTreeSet::from([label(endpoint), self.unique(endpoint)])
    }
}

/// The instance's id where it is a label, else something like it; the address of what doesn't register.
fn label(endpoint: &Endpoint) -> String {
    if endpoint.instance.is_empty() {
        return dashed(endpoint.address.ip());
    }
    fit(&endpoint.instance)
}

fn dashed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string().replace('.', "-"),
        // In full: a label may neither start nor end with a dash.
        IpAddr::V6(ip) => ip
            .segments()
            .map(|segment| format!("{segment:x}"))
            .join("-"),
    }
}

/// Any text as a label; a hash keeps apart what would look alike.
fn fit(text: &str) -> String {
    if check_label(text).is_ok() {
        return text.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let plain: String = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(LABEL_MAX - 17)
        .collect();
    let plain = plain.trim_matches('-');
    let dash = if plain.is_empty() { "" } else { "-" };
    format!("{plain}{dash}{:016x}", hasher.finish())
}

impl Addresses {
    fn of(endpoints: &[&Endpoint]) -> Self {
        let of = |endpoint: &&Endpoint| (endpoint.zone.clone(), endpoint.address.ip());
        let all: Vec<(String, IpAddr)> = endpoints.iter().map(of).collect();
        let v4 = all.iter().filter_map(|(zone, ip)| match ip {
            IpAddr::V4(ip) => Some((zone.as_str(), *ip)),
            IpAddr::V6(_) => None,
        });
        let v6 = all.iter().filter_map(|(zone, ip)| match ip {
            IpAddr::V6(ip) => Some((zone.as_str(), *ip)),
            IpAddr::V4(_) => None,
        });
        Self {
            v4: Grouped::new(v4.collect()),
            v6: Grouped::new(v6.collect()),
        }
    }
}

/// Things by zone, each once.
#[derive(Debug, PartialEq)]
pub struct Grouped<T> {
    items: Vec<T>,
    zones: Vec<(Zone, Range<usize>)>,
}

impl<T> Default for Grouped<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            zones: Vec::new(),
        }
    }
}

impl<T: Ord + Clone> Grouped<T> {
    fn new(mut all: Vec<(&str, T)>) -> Self {
        // The same in two zones: where it is known to be wins over nowhere.
        all.sort_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(a.0)));
        all.dedup_by(|later, kept| later.1 == kept.1);
        all.sort_by(|a, b| a.0.cmp(b.0).then_with(|| a.1.cmp(&b.1)));
        let mut zones: Vec<(Zone, Range<usize>)> = Vec::new();
        for (at, (zone, _)) in all.iter().enumerate() {
            match zones.last_mut() {
                Some((last, range)) if &**last == *zone => range.end = at + 1,
                _ => zones.push(((*zone).into(), at..at + 1)),
            }
        }
        Self {
            items: all.into_iter().map(|(_, item)| item).collect(),
            zones,
        }
    }
}

impl<T> Grouped<T> {
    pub fn count(&self) -> usize {
        self.items.len()
    }

    /// Those of the zone first, each part begun at a place that `turn` chooses. The flag says that an item is in the zone.
    pub fn ordered(
        &self,
        zone: Option<&Zone>,
        turn: u64,
    ) -> impl Iterator<Item = (&T, bool)> + Clone {
        let local = zone.and_then(|zone| {
            let at = self.zones.binary_search_by(|(name, _)| name.cmp(zone)).ok();
            self.zones.get(at?).map(|(_, range)| range.clone())
        });
        let local = local.unwrap_or(0..0);
        let (start, count) = (local.start, local.len());
        let rest = self.items.len() - count;
        let near = rotated(count, turn).map(move |at| (start + at, true));
        let far = rotated(rest, turn).map(move |at| {
            let at = if at < start { at } else { at + count };
            (at, false)
        });
        near.chain(far)
            .filter_map(|(at, local)| Some((self.items.get(at)?, local)))
    }
}

/// `0..count`, begun somewhere in the middle.
fn rotated(count: usize, turn: u64) -> impl Iterator<Item = usize> + Clone {
    let start = turn.checked_rem(count as u64).unwrap_or(0) as usize;
    (start..count).chain(0..start)
}

/// The label of the name server's own name.
pub const NAME_SERVER: &str = "ns";
const LABEL_MAX: usize = 63;
