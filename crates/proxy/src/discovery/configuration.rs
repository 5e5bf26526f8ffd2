//! What the control plane sent, as far as this sidecar could take it: an update goes in, what was refused comes out, resource
//! by resource; a refused one leaves the last good in use. Sockets that a listener needs are `edge`'s and `udp`'s to open.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::ClusterName;
use phalanx_model::resource::gateway::{ChainTarget, GatewayPort};
use phalanx_model::resource::udp::UDP;
use phalanx_model::resource::{Listener, ListenerProtocol};
use phalanx_xds::Kind;
use phalanx_xds::decode::{self, Resource};

use crate::desk::Desk;
use crate::edge::Edge;
use crate::plan::{Entries, Resources, Table, compile_table};
use crate::udp::{self, Reserved};

/// Name, version and body of a resource as it came.
pub type Upsert = (String, String, Vec<u8>);

/// Name and reason of a resource that was not taken.
pub type Refusal = (String, String);

/// A resource in use.
#[derive(Clone, Debug)]
pub struct Held {
    pub version: String,
    pub resource: Resource,
}

#[derive(Default)]
pub struct Configuration {
    /// What the plan is assembled from.
    resources: Resources,
    /// The same with versions, for people.
    held: BTreeMap<(Kind, String), Held>,
    /// What is offered and was refused last.
    refused: BTreeMap<(Kind, String), Refused>,
    /// Listeners that can't be served here, for now.
    waiting: BTreeMap<String, Waiting>,
    /// Sockets for datagrams; none where nobody reads any.
    datagrams: Option<Arc<udp::Ports>>,
    /// Listeners for datagrams in force of which the process before may have the sockets still.
    unsure: BTreeMap<String, Waiting>,
    /// Of which kinds there was an answer, empty or not.
    answered: [bool; Kind::ALL.len()],
}

struct Waiting {
    version: String,
    body: Vec<u8>,
    address: SocketAddr,
}

/// What came of trying again what this machine could not serve.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// In force by now, with its version.
    pub taken: Vec<(String, String)>,
    /// In force no more, with the reason.
    pub lost: Vec<Refusal>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub version: String,
    pub message: String,
}

impl Configuration {
    /// Takes one response: every resource by itself. Removals count even when a sibling is refused.
    pub fn apply(&mut self, kind: Kind, upserts: Vec<Upsert>, removed: &[String]) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for (name, version, body) in upserts {
            match self.upsert(kind, &name, &version, &body) {
                Ok(()) => drop(self.refused.remove(&(kind, name))),
                Err(message) => {
                    self.stand_in(kind, &name);
                    self.refused.insert(
                        (kind, name.clone()),
                        Refused {
                            version,
                            message: message.clone(),
                        },
                    );
                    refusals.push((name, message));
                }
            }
        }
        for name in removed {
            self.remove(kind, name);
            // No longer subscribed to, so nobody will say that they are gone.
            if kind == Kind::Cluster {
                self.remove(Kind::Endpoints, name);
            }
        }
        if kind == Kind::Listener {
            self.drop_unnamed_tables();
        }
        if let Some(answered) = self.answered.get_mut(kind.index()) {
            *answered = true;
        }
        refusals
    }

    /// Whether requests can be routed: listeners and clusters were answered, and every route table that a listener names
    /// is there. Where an edge is to be replaced, that what it serves can be served.
    pub fn is_complete(&self) -> bool {
        let answered = |kind: Kind| self.answered.get(kind.index()).copied().unwrap_or_default();
        let routed = self
            .tables_named()
            .iter()
            .all(|table| self.resources.tables.contains_key(table));
        answered(Kind::Cluster) && answered(Kind::Listener) && routed && self.may_succeed()
    }

    /// Whether nobody would miss the edge that runs: nothing that it listens at waits here, and of every backend it is
    /// known where it is.
    fn may_succeed(&self) -> bool {
        let resources = &self.resources;
        let Some(left) = resources.edge.as_ref().and_then(|edge| edge.left()) else {
            return true;
        };
        // By the port: opened at another address of this machine it would be missed as well.
        let is_left = |waiting: &Waiting| left.iter().any(|at| at.port() == waiting.address.port());
        let known = |name: &ClusterName| resources.assignments.contains_key(name);
        !self.waiting.values().any(is_left) && resources.clusters.keys().all(known)
    }

    /// Requests may wait at `desk` for hosts that are not held, if the control plane says so.
    pub fn on_demand(&mut self, desk: Arc<Desk>) {
        self.resources.desk = Some(desk);
    }

    /// Whether the control plane has an answer for this table, and it is that there is no such host.
    pub fn is_nothing(&self, table: &str) -> bool {
        let table = self.resources.tables.get(table);
        table.is_some_and(|table| table.rules().hosts().is_empty())
    }

    /// Whether a request used this table since this was asked last.
    pub fn take_used(&self, table: &str) -> bool {
        let table = self.resources.tables.get(table);
        table.is_some_and(|table| table.take_used())
    }

    /// Lets go of tables that are no longer asked for.
    pub fn forget(&mut self, tables: &[String]) {
        for table in tables {
            self.remove(Kind::Routes, table);
        }
    }

    /// The route tables that listeners name: those to subscribe to.
    pub fn tables_named(&self) -> BTreeSet<String> {
        let table = |protocol: &ListenerProtocol| match protocol {
            ListenerProtocol::Http { route_table } => vec![route_table.clone()],
            ListenerProtocol::Tcp { .. }
            | ListenerProtocol::Inbound { .. }
            | ListenerProtocol::Udp(_) => Vec::new(),
            ListenerProtocol::Gateway(port) => {
                let tables = port.chains.iter().filter_map(|chain| match &chain.target {
                    ChainTarget::Http(table) => Some(table.clone()),
                    ChainTarget::Stream(_) => None,
                });
                tables.collect()
            }
        };
        self.resources
            .listeners
            .values()
            .flat_map(|listener| table(&listener.protocol))
            .filter(|name| !name.ends_with('/'))
            .collect()
    }

    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    pub fn held(&self) -> &BTreeMap<(Kind, String), Held> {
        &self.held
    }

    pub fn refused(&self) -> &BTreeMap<(Kind, String), Refused> {
        &self.refused
    }

    fn upsert(&mut self, kind: Kind, name: &str, version: &str, body: &[u8]) -> Result<(), String> {
        let resource = decode::decode(kind, body).map_err(|error| error.to_string())?;
        if resource.name() != name {
            return Err(format!("the resource calls itself `{}`", resource.name()));
        }
        let resources = &mut self.resources;
        match &resource {
            Resource::Listener(listener) => {
                if let ListenerProtocol::Inbound { rules, .. } = &listener.protocol {
                    resources.inbound = Some(Arc::new(Entries::compile(
                        rules,
                        resources.inbound.as_deref(),
                    )?));
                }
                let opened = match &listener.protocol {
                    ListenerProtocol::Gateway(port) => opened(resources, listener, port),
                    ListenerProtocol::Udp(_) => reserved(self.datagrams.as_deref(), listener),
                    _ => Ok(Reserved::Yes),
                };
                let waiting = || Waiting {
                    version: version.to_owned(),
                    body: body.to_vec(),
                    address: listener.address,
                };
                self.unsure.remove(name);
                self.waiting.remove(name);
                match opened {
                    Ok(Reserved::Yes) => {}
                    Ok(Reserved::Later) => drop(self.unsure.insert(name.to_owned(), waiting())),
                    Err(why) => {
                        // Of this machine, and no fault of the resource: it may become possible.
                        self.waiting.insert(name.to_owned(), waiting());
                        return Err(why);
                    }
                }
                let listeners = &mut resources.listeners;
                listeners.insert(name.to_owned(), listener.clone());
            }
            Resource::Routes(table) => {
                let table = Arc::new(compile_table(table)?);
                let before = resources.tables.insert(name.to_owned(), table.clone());
                if before.is_some_and(|before| before.take_used()) {
                    table.touch();
                }
            }
            Resource::Cluster(cluster) => drop(
                resources
                    .clusters
                    .insert(cluster.name.clone(), Arc::new(cluster.clone())),
            ),
            Resource::Endpoints(sent) => drop(
                resources
                    .assignments
                    .insert(sent.cluster.clone(), Arc::new(sent.clone())),
            ),
        }
        self.held.insert(
            (kind, name.to_owned()),
            Held {
                version: version.to_owned(),
                resource,
            },
        );
        Ok(())
    }

    /// Requests wait for a host's table. One that was refused, with no older in force, is an answer too.
    fn stand_in(&mut self, kind: Kind, name: &str) {
        let prefix = self.resources.demand_prefix();
        let waited_for = kind == Kind::Routes && prefix.is_some_and(|p| name.starts_with(p));
        if !waited_for || self.resources.tables.contains_key(name) {
            return;
        }
        if let Ok(table) = Table::unusable(name) {
            self.resources
                .tables
                .insert(name.to_owned(), Arc::new(table));
        }
    }

    fn drop_unnamed_tables(&mut self) {
        let named = self.tables_named();
        let prefix = self.resources.demand_prefix();
        let is_host = |name: &str| prefix.is_some_and(|prefix| name.starts_with(prefix));
        let unnamed: Vec<String> = self
            .resources
            .tables
            .keys()
            .filter(|name| !named.contains(*name) && !is_host(name))
            .cloned()
            .collect();
        for name in unnamed {
            self.remove(Kind::Routes, &name);
        }
    }

    /// Tries again what this machine could not serve when it came, or could not know whether it can.
    pub fn again(&mut self) -> Again {
        let mut again = Again::default();
        for (name, Waiting { version, body, .. }) in std::mem::take(&mut self.waiting) {
            match self.upsert(Kind::Listener, &name, &version, &body) {
                Ok(()) => {
                    self.refused.remove(&(Kind::Listener, name.clone()));
                    again.taken.push((name, version));
                }
                Err(message) => self.refuse(name, version, message),
            }
        }
        for (name, Waiting { version, body, .. }) in std::mem::take(&mut self.unsure) {
            if let Err(message) = self.upsert(Kind::Listener, &name, &version, &body) {
                self.held.remove(&(Kind::Listener, name.clone()));
                self.resources.listeners.remove(&name);
                again.lost.push((name.clone(), message.clone()));
                self.refuse(name, version, message);
            }
        }
        again
    }

    fn refuse(&mut self, listener: String, version: String, message: String) {
        let refused = Refused { version, message };
        self.refused.insert((Kind::Listener, listener), refused);
    }

    /// Something can't be served here, as far as is known.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// There is something to try again.
    pub fn has_to_look(&self) -> bool {
        self.is_waiting() || !self.unsure.is_empty()
    }

    /// It reads datagrams.
    pub fn with_datagrams(&mut self, ports: Arc<udp::Ports>) {
        self.datagrams = Some(ports);
    }

    /// It runs a Gateway.
    pub fn at_edge(&mut self, edge: Arc<Edge>) {
        self.resources.edge = Some(edge);
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        let key = (kind, name.to_owned());
        self.held.remove(&key);
        self.refused.remove(&key);
        let cluster = || name.parse::<ClusterName>().ok();
        match kind {
            Kind::Listener => {
                self.waiting.remove(name);
                self.unsure.remove(name);
                let Some(gone) = self.resources.listeners.remove(name) else {
                    return;
                };
                match (&gone.protocol, &self.resources.edge, &self.datagrams) {
                    (ListenerProtocol::Gateway(_), Some(edge), _) => edge.close(gone.address),
                    (ListenerProtocol::Udp(_), _, Some(ports)) => ports.release(gone.address),
                    // Not known any more, which lets nobody in where it matters.
                    (ListenerProtocol::Inbound { .. }, ..) => self.resources.inbound = None,
                    _ => {}
                }
            }
            Kind::Routes => drop(self.resources.tables.remove(name)),
            Kind::Cluster => drop(cluster().and_then(|name| self.resources.clusters.remove(&name))),
            Kind::Endpoints => {
                drop(cluster().and_then(|name| self.resources.assignments.remove(&name)))
            }
            // None is ever held: they are refused.
            Kind::Secret => {}
        }
    }
}

/// The socket that a listener for datagrams needs.
fn reserved(ports: Option<&udp::Ports>, listener: &Listener) -> Result<Reserved, String> {
    let Some(ports) = ports else {
        return Ok(Reserved::Yes);
    };
    let address = listener.address;
    ports.reserve(address).map_err(|error| {
        let other = match listener.name.starts_with(UDP) {
            true => "choose another address with --udp",
            false => "choose another port in the Gateway, or another address with --bind",
        };
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("another process takes datagrams there; end it, or {other}")
            }
            io::ErrorKind::AddrNotAvailable => {
                "no interface of this machine has that address".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned()
            }
            _ => other.to_owned(),
        };
        format!("the listener for datagrams can't bind {address}: {error} ({advice})")
    })
}

/// What the listener needs of this machine.
fn opened(
    resources: &Resources,
    listener: &Listener,
    port: &GatewayPort,
) -> Result<Reserved, String> {
    let Some(edge) = &resources.edge else {
        return Err("this sidecar runs no Gateway (--gateway NAME)".to_owned());
    };
    let address = listener.address;
    let others = resources.listeners.values();
    let mut others = others.filter(|other| {
        // Datagrams have ports of their own.
        other.name != listener.name && !matches!(other.protocol, ListenerProtocol::Udp(_))
    });
    if let Some(other) = others.find(|other| other.address == address) {
        return Err(format!("{address} is listener `{}` already", other.name));
    }
    edge.open(address, port)?;
    let before = resources.listeners.get(&listener.name);
    if let Some(before) = before.filter(|before| before.address != address) {
        edge.close(before.address);
    }
    Ok(Reserved::Yes)
}

#[cfg(test)]
mod tests;
