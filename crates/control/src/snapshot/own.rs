//! What is a stream's own, beside what all streams share: the listener for the calls of others, the application behind it
//! where that is no sidecar's business, the sockets that it takes datagrams at, and the secrets of whoever may have some.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use phalanx_model::InstanceId;
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::{Inbound, Listener, ListenerProtocol};
use phalanx_xds::encode::{self, INBOUND};
use phalanx_xds::{Encoded, Kind, Snapshot};

use super::demand::renew;
use super::inbound::without_callers;
use super::{Node, Published, Resources};
use crate::world::{Documents, Registered};

/// What a sidecar's inbound listener is told to listen on: where it really does is its command line's word, and this way
/// all with the same rules share the same bytes.
const SIDECAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15006);

/// Of one stream; what does not change stays shared from one snapshot to the next.
#[derive(Debug, Default)]
pub struct Own {
    from: Option<(Arc<Documents>, Option<Arc<Registered>>)>,
    rules: Option<(Inbound, bool)>,
    listener: Option<Arc<Encoded>>,
    application: Option<Arc<Encoded>>,
    listeners: Pair,
    clusters: Pair,
    udp: UdpSockets,
}

/// What came, and what was made of it.
#[derive(Debug, Default)]
struct Pair {
    given: Resources,
    added: Option<Arc<Encoded>>,
    made: Resources,
}

impl Pair {
    fn with(&mut self, given: &Resources, added: Option<&Arc<Encoded>>) -> Resources {
        let is_same = match (&self.added, added) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        if !is_same || !self.given.same(given) {
            self.made = given.clone();
            if let Some(added) = added {
                self.made.insert(added.name.clone(), added.clone());
            }
            (self.given, self.added) = (given.clone(), added.cloned());
        }
        self.made.clone()
    }
}

impl Own {
    /// The node's part of what is published, with its own.
    pub fn add(
        &mut self,
        snapshot: &Snapshot,
        published: &Published,
        node: &Node,
        secrets: Option<&Resources>,
    ) -> Snapshot {
        self.follow(published, node);
        let udp = &mut self.udp;
        if !node.udp.is_empty() {
            udp.follow(published, node);
        }
        let of = |kind| {
            let given = &udp.with(kind, snapshot.resources(kind));
            match kind {
                Kind::Listener => self.listeners.with(given, self.listener.as_ref()),
                Kind::Cluster => self.clusters.with(given, self.application.as_ref()),
                Kind::Secret => secrets.unwrap_or(given).clone(),
                Kind::Endpoints | Kind::Routes => given.clone(),
            }
        };
        Snapshot::from_kinds(snapshot.revision, Kind::ALL.map(of))
    }

    /// The listener as it is by now.
    pub fn listener(&mut self, published: &Published, node: &Node) -> Option<&Arc<Encoded>> {
        self.follow(published, node);
        self.listener.as_ref()
    }

    fn follow(&mut self, published: &Published, node: &Node) {
        let is_sidecar = node.is_sidecar();
        let envoy = node.tls.inbound.zip(node.tls.app);
        let has_own = is_sidecar || envoy.is_some();
        if node.is_proxyless() || node.edge.is_some() || !has_own {
            return;
        }
        let world = &published.world;
        let id = InstanceId {
            service: node.service.clone(),
            id: node.instance.clone(),
        };
        let registered = world.instances.get(&id).cloned();
        let is_same = self.from.as_ref().is_some_and(|(documents, instance)| {
            let same_instance = match (instance, &registered) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (one, other) => one.is_none() && other.is_none(),
            };
            Arc::ptr_eq(documents, &world.documents) && same_instance
        });
        if is_same {
            return;
        }
        self.from = Some((world.documents.clone(), registered));
        let rules = match is_sidecar {
            true => Some(published.mesh.inbound(world, node)),
            false => published.mesh.inbound_of_envoy(world, node),
        };
        let rules = rules.map(|rules| without_callers(rules, node.tls.has_identity));
        let is_tcp = !is_sidecar && speaks_tcp(published, node);
        let rules = rules.map(|rules| (rules, is_tcp));
        if rules == self.rules && self.listener.is_some() == rules.is_some() {
            return;
        }
        let address = envoy.map_or(SIDECAR, |(address, _)| address);
        let address = if is_sidecar { SIDECAR } else { address };
        self.listener = rules.as_ref().map(|(rules, is_tcp)| {
            let listener = Listener {
                name: INBOUND.to_owned(),
                address,
                direction: Direction::Inbound,
                protocol: ListenerProtocol::Inbound {
                    trust_domain: published.mesh.trust_domain.clone(),
                    rules: rules.clone(),
                },
            };
            let encoded = match (is_sidecar, is_tcp) {
                (true, _) => encode::listener(&listener),
                (false, true) => encode::tcp_inbound(&listener),
                (false, false) => encode::envoy_inbound(&listener),
            };
            published.inbounds.shared(encoded)
        });
        self.rules = rules;
        let app = envoy.filter(|_| !is_sidecar && self.listener.is_some());
        self.application = app.map(|(_, app)| {
            let encoded = encode::application(app);
            published.inbounds.shared(encoded)
        });
    }
}

/// Listeners for datagrams, and what they lead to where the stream would not have it otherwise.
#[derive(Debug, Default)]
struct UdpSockets {
    listeners: Resources,
    clusters: Resources,
    endpoints: Resources,
}

impl UdpSockets {
    fn follow(&mut self, published: &Published, node: &Node) {
        let listeners = published.mesh.udp.listeners(node);
        let encoded = listeners.iter().map(encode::listener);
        let encoded = encoded.map(|one| (one.name.clone(), Arc::new(one)));
        renew(&mut self.listeners, encoded.collect());
        let named = self.listeners.values().flat_map(|one| one.refs.iter());
        let named: BTreeSet<&String> = named.collect();
        let shared = |kind| {
            let found = named.iter().map(|name| (*name).clone());
            let found =
                found.filter_map(|name| Some((name.clone(), published.shared(kind, &name, node)?)));
            found.collect()
        };
        let (clusters, endpoints) = (shared(Kind::Cluster), shared(Kind::Endpoints));
        renew(&mut self.clusters, clusters);
        renew(&mut self.endpoints, endpoints);
    }

    fn with(&self, kind: Kind, given: &Resources) -> Resources {
        let added = match kind {
            Kind::Listener => &self.listeners,
            Kind::Cluster => &self.clusters,
            Kind::Endpoints => &self.endpoints,
            Kind::Routes | Kind::Secret => return given.clone(),
        };
        let mut all = given.clone();
        for (name, one) in added.iter().filter(|(name, _)| !given.contains_key(*name)) {
            all.insert(name.clone(), one.clone());
        }
        all
    }
}

/// Whether raw TCP is all that the service speaks.
fn speaks_tcp(published: &Published, node: &Node) -> bool {
    let ports = published.mesh.catalog.services.get(&node.service);
    ports.is_some_and(|ports| ports.values().all(|port| port.protocol == Protocol::Tcp))
}

/// Encoded once for all who hold the same; cheap to clone, and shared by all that is published.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbounds(Arc<Mutex<Made>>);

#[derive(Debug, Default)]
struct Made {
    by_version: HashMap<String, Weak<Encoded>>,
    /// How many there may be before those that nobody holds are swept out.
    sweep_at: usize,
}

impl Inbounds {
    fn shared(&self, encoded: Encoded) -> Arc<Encoded> {
        // Held for a look-up.
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = made.by_version.get(&encoded.version);
        if let Some(known) = known.and_then(Weak::upgrade)
            && *known == encoded
        {
            return known;
        }
        let encoded = Arc::new(encoded);
        made.by_version
            .insert(encoded.version.clone(), Arc::downgrade(&encoded));
        if made.by_version.len() > made.sweep_at {
            made.by_version.retain(|_, one| one.strong_count() > 0);
            made.sweep_at = (made.by_version.len() * 2).max(SWEEP_MIN);
        }
        encoded
    }
}

const SWEEP_MIN: usize = 256;
