//! What a sidecar on demand receives: a route table for each authority that its application called, and of clusters and
//! endpoints only what those tables name. Subscriptions go in, a snapshot comes out; a table is encoded once for all
//! streams that ask for it, and forgotten with the last of them.
//!
//! A host that does not exist has a table too, without hosts: the answer is "no", and changes when the host comes to be. A
//! name may be an address, `10.0.0.5:6379`: the service that has it is meant.

mod addresses;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use phalanx_model::ServiceName;
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::{Listener, ListenerProtocol, RouteTable, Rule, VirtualHost};
use phalanx_proto::envoy::config::core::v3 as core;
use phalanx_xds::server::Session;
use phalanx_xds::{Encoded, Kind, Snapshot, encode};
use prost_types::value::Kind as ValueKind;

use self::addresses::Addresses;
use super::routes::plain;
use super::{Catalog, Mesh, Node, OUTBOUND, Published, Resources, hosts};

/// Before the authority in the name of a route table; alone, where a listener names its table: there is one for each.
pub const DEMAND: &str = "outbound/";
/// After that, before a name that is asked for to send bytes there that nobody reads; addresses need no such word.
const UNREAD: &str = "tcp/";
/// In node metadata: the sidecar asks on demand.
const METADATA: &str = "demand";

/// Where the names of a subscription come from.
pub trait Names {
    fn names(&self, kind: Kind) -> impl Iterator<Item = &str>;
}

impl Names for Session {
    fn names(&self, kind: Kind) -> impl Iterator<Item = &str> {
        Session::names(self, kind)
    }
}

/// One stream's part of the mesh.
#[derive(Debug)]
pub struct Demand {
    listeners: Resources,
    /// What the rules are taken from, where this node refuses what is published.
    mesh: Option<Mesh>,
    /// What the last tables were taken from, if that was what is published.
    from: Option<Arc<Mesh>>,
    /// The last snapshot's, to be shared by the next if nothing changed.
    clusters: Resources,
    endpoints: Resources,
    tables: Resources,
}

impl Demand {
    /// None when the peer wants everything, as other proxies do.
    pub fn asked(wire: Option<&core::Node>, node: &Node) -> Option<Self> {
        let fields = &wire?.metadata.as_ref()?.fields;
        let asked = matches!(fields.get(METADATA)?.kind, Some(ValueKind::BoolValue(true)));
        asked.then(|| Self::of(node))
    }

    /// Of a peer that is known to ask.
    pub fn of(node: &Node) -> Self {
        Self {
            listeners: listeners(node),
            mesh: None,
            from: None,
            clusters: Resources::default(),
            endpoints: Resources::default(),
            tables: Resources::default(),
        }
    }

    /// From now on rules come from here; none: from what is published.
    pub fn isolate(&mut self, mesh: Option<Mesh>) {
        self.mesh = mesh;
        self.from = None;
    }

    /// What follows from the names that the stream asks for now.
    pub fn snapshot(
        &mut self,
        published: &Published,
        node: &Node,
        session: &impl Names,
    ) -> Snapshot {
        let mesh = self.mesh.as_ref().unwrap_or(&published.mesh);
        let namespace = &node.service.namespace;
        let from = self.from.as_ref();
        let is_same = from.is_some_and(|from| Arc::ptr_eq(from, &published.mesh));
        let table = |name: &str| published.hosts.table(name, namespace, mesh);
        let tables = match is_same {
            true => moved(&self.tables, session.names(Kind::Routes), table),
            false => {
                let names = session.names(Kind::Routes);
                names
                    .filter_map(|name| Some((name.to_owned(), table(name)?)))
                    .collect()
            }
        };
        let named = tables.values().flat_map(|table| &table.refs);
        let wanted: BTreeSet<&str> = named
            .map(String::as_str)
            .chain(session.names(Kind::Cluster))
            .collect();
        let shared = |kind| {
            let found =
                |name: &&str| Some(((*name).to_owned(), published.shared(kind, name, node)?));
            wanted.iter().filter_map(found).collect()
        };
        self.from = Some(published.mesh.clone()).filter(|_| self.mesh.is_none());
        renew(&mut self.clusters, shared(Kind::Cluster));
        renew(&mut self.endpoints, shared(Kind::Endpoints));
        renew(&mut self.tables, tables);
        let of = |kind| match kind {
            Kind::Cluster => &self.clusters,
            Kind::Endpoints => &self.endpoints,
            Kind::Listener => &self.listeners,
            Kind::Routes => &self.tables,
            Kind::Secret => &NOTHING,
        };
        Snapshot::from_kinds(published.revision, Kind::ALL.map(|kind| of(kind).clone()))
    }
}

static NOTHING: std::sync::LazyLock<Resources> = std::sync::LazyLock::new(Resources::default);

/// From the tables of earlier names to those of `names`, sorted as both are: the others are not looked at again.
fn moved<'a>(
    tables: &Resources,
    names: impl Iterator<Item = &'a str>,
    table: impl Fn(&str) -> Option<Arc<Encoded>>,
) -> Resources {
    let mut moved = tables.clone();
    let mut held = tables.keys().map(String::as_str).peekable();
    for name in names {
        while let Some(gone) = held.next_if(|held| *held < name) {
            moved.remove(gone);
        }
        if held.next_if(|held| *held == name).is_none()
            && let Some(table) = table(name)
        {
            moved.insert(name.to_owned(), table);
        }
    }
    held.for_each(|gone| drop(moved.remove(gone)));
    moved
}

/// Keeps the old map when the new one says the same: then nobody need compare them.
pub(super) fn renew(old: &mut Resources, new: Resources) {
    let same = old.len() == new.len()
        && old
            .iter()
            .zip(&new)
            .all(|((a, x), (b, y))| a == b && (Arc::ptr_eq(x, y) || x.version == y.version));
    if !same {
        *old = new;
    }
}

/// The outbound listener, which names no table but where tables are.
fn listeners(node: &Node) -> Resources {
    let listener = node.outbound.map(|address| Listener {
        name: OUTBOUND.to_owned(),
        address,
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Http {
            route_table: DEMAND.to_owned(),
        },
    });
    let encoded = listener.iter().map(encode::listener);
    encoded
        .map(|encoded| (encoded.name.clone(), Arc::new(encoded)))
        .collect()
}

/// Encoded tables of single hosts, for as long as a stream holds them; cheap to clone, and shared by all that is published.
#[derive(Clone, Debug, Default)]
pub struct Hosts(Arc<Mutex<Made>>);

#[derive(Debug, Default)]
struct Made {
    tables: HashMap<Key, One>,
    /// For names that are addresses.
    addresses: Addresses,
    /// How many there may be before those that nobody holds are swept out.
    sweep_at: usize,
}

/// A table's name, the port it leads to, and the namespace that alone sees it so.
type Key = (String, Option<(ServiceName, u16)>, Option<String>);

#[derive(Debug)]
struct One {
    rules: Option<Arc<Vec<Rule>>>,
    table: Weak<Encoded>,
}

impl Hosts {
    /// The table of this name for a caller in `namespace`; none for a name that is no host's.
    fn table(&self, name: &str, namespace: &str, mesh: &Mesh) -> Option<Arc<Encoded>> {
        let authority = name.strip_prefix(DEMAND)?;
        // Held for a look-up, or for encoding one host.
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unread = authority.strip_prefix(UNREAD);
        let (target, is_unread) = match authority.parse::<SocketAddr>() {
            Ok(address) => (made.addresses.owner(address, &mesh.assignments), true),
            Err(_) => {
                let name = unread.unwrap_or(authority);
                let target = resolve(name, namespace, &mesh.catalog);
                (target, unread.is_some())
            }
        };
        let rules = target
            .as_ref()
            .and_then(|(service, port)| mesh.rules.of(service, *port, namespace));
        let (rules, consumer) =
            rules.map_or((None, None), |seen| (Some(seen.rules), seen.consumer));
        let rules = rules.or_else(|| {
            let (service, port) = target.as_ref().filter(|_| is_unread)?;
            let of_port = mesh.catalog.port(service, *port)?;
            let is_tcp = of_port.protocol == Protocol::Tcp;
            is_tcp.then(|| Arc::new(vec![plain(service, *port, of_port)]))
        });
        let target = target.filter(|_| rules.is_some());
        let key = (name.to_owned(), target, consumer);
        if let Some(one) = made.tables.get_mut(&key)
            && let Some(table) = one.table.upgrade()
            && same(one.rules.as_ref(), rules.as_ref())
        {
            one.rules = rules;
            return Some(table);
        }
        let target = key.1.as_ref().zip(rules.as_ref());
        let table = Arc::new(encode::routes(&table(authority, target)));
        let one = One {
            rules,
            table: Arc::downgrade(&table),
        };
        made.tables.insert(key, one);
        if made.tables.len() > made.sweep_at {
            made.tables.retain(|_, one| one.table.strong_count() > 0);
            made.sweep_at = (made.tables.len() * 2).max(SWEEP_MIN);
        }
        Some(table)
    }
}

fn same(one: Option<&Arc<Vec<Rule>>>, other: Option<&Arc<Vec<Rule>>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// A service's port, and the rules of it.
type Target<'a> = (&'a (ServiceName, u16), &'a Arc<Vec<Rule>>);

fn table(authority: &str, target: Option<Target<'_>>) -> RouteTable {
    let host = target.map(|((service, port), rules)| VirtualHost {
        name: format!("{}:{port}", service.host()),
        domains: vec![authority.to_owned()],
        rules: rules.to_vec(),
    });
    RouteTable {
        name: format!("{DEMAND}{authority}"),
        hosts: host.into_iter().collect(),
    }
}

/// The service and port that a caller in `namespace` means, by the same names as in the table of all hosts.
pub(super) fn resolve(
    authority: &str,
    namespace: &str,
    catalog: &Catalog,
) -> Option<(ServiceName, u16)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(canonical_port(port)?)),
        None => (authority, None),
    };
    let mut labels = host.split('.');
    let name = labels.next()?;
    let service = ServiceName::new(labels.next().unwrap_or(namespace), name);
    let is_called_so = hosts(&service, Some(namespace)).iter().any(|h| h == host);
    let port = port.or_else(|| catalog.default_port(&service));
    Some((service, port?)).filter(|_| is_called_so)
}

/// `080` is none: a host has one name for each port.
fn canonical_port(text: &str) -> Option<u16> {
    text.parse()
        .ok()
        .filter(|port: &u16| port.to_string() == text)
}

const SWEEP_MIN: usize = 1024;

#[cfg(test)]
mod tests;
