//! What proxyless gRPC receives, by name: for a client a listener for each target it dials, the route table that leads to,
//! and of clusters and endpoints what that table names; for a server the listener of its socket, with who may call.
//! Subscriptions go in, a snapshot comes out. Each resource is encoded once for all streams that hold it.
//!
//! What gRPC can't follow fails closed in `xds::encode::grpc`; here it is told ([`Unmet`]).

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use phalanx_model::document::{Document, DocumentId, Kind as DocumentKind};
use phalanx_model::identity::TrustDomain;
use phalanx_model::name::INVALID_BACKEND;
use phalanx_model::resource::{
    Access, AccessPolicy, ApiListener, Assignment, Cluster, MtlsMode, RouteTable, Rule,
    ServerListener, VirtualHost,
};
use phalanx_model::{ClusterName, ServiceName};
use phalanx_xds::encode::grpc;
use phalanx_xds::{Encoded, Kind, Snapshot};

use super::demand::{Names, renew, resolve};
use super::inbound::{anonymous, mode_of_service};
use super::routes::Seen;
use super::{Mesh, Node, Published, Resources};
use crate::world::{Documents, World};

/// What a server's bootstrap must make of its address, as `server_listener_resource_name_template` with `%s` behind it.
pub const SERVER_LISTENER: &str = "grpc/server?xds.resource.listening_address=";

/// One stream's part of the mesh.
#[derive(Debug, Default)]
pub struct Proxyless {
    /// The last snapshot's, to be shared by the next if nothing changed.
    listeners: Resources,
    tables: Resources,
    clusters: Resources,
    endpoints: Resources,
    /// What the server listeners among them check.
    guard: Guard,
    unmet: Vec<Unmet>,
}

/// A rule that the client can't follow: calls that match it end with UNAVAILABLE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    pub table: String,
    /// `<Kind>/<namespace>/<name>/<rule>`
    pub rule: String,
    pub message: String,
    /// Of the document's last change.
    pub since_revision: u64,
}

impl Proxyless {
    /// None for other peers.
    pub fn of(node: &Node) -> Option<Self> {
        node.is_proxyless().then(Self::default)
    }

    /// What the client asks for and can't follow.
    pub fn unmet(&self) -> &[Unmet] {
        &self.unmet
    }

    /// What follows from the names that the stream asks for now.
    pub fn snapshot(
        &mut self,
        published: &Published,
        node: &Node,
        session: &impl Names,
    ) -> Snapshot {
        let made = &published.dialect;
        let mesh = &published.mesh;
        let listeners = self.listeners(published, node, session);
        let mut unmet: Vec<_> = self.guard.unmet(&published.world).collect();
        let mut table = |name: &str| {
            let (service, port) = resolve(name, "", &mesh.catalog)?;
            let seen = mesh.rules.of(&service, port, &node.service.namespace)?;
            let table = made.table(name, &seen);
            unmet.extend(unmet_rules(name, &seen.rules, &published.world));
            Some((name.to_owned(), table))
        };
        let tables: Resources = session
            .names(Kind::Routes)
            .filter(|name| is_canonical(name))
            .filter_map(&mut table)
            .collect();
        let cluster = |name: &str| match name {
            INVALID_BACKEND => Some(made.nowhere(Kind::Cluster)),
            _ => {
                let name = name.parse::<ClusterName>().ok()?;
                let cluster = mesh.clusters.get(&name)?;
                Some(made.cluster(cluster, node.tls.has_providers && all_mutual(mesh, &name)))
            }
        };
        let endpoints = |name: &str| match name {
            INVALID_BACKEND => Some(made.nowhere(Kind::Endpoints)),
            _ => Some(made.endpoints(mesh.assignments.get(&name.parse::<ClusterName>().ok()?)?)),
        };
        let clusters = kept(&self.clusters, session.names(Kind::Cluster), cluster);
        let endpoints = kept(&self.endpoints, session.names(Kind::Endpoints), endpoints);
        self.unmet = unmet;
        renew(&mut self.listeners, listeners);
        renew(&mut self.tables, tables);
        renew(&mut self.clusters, clusters);
        renew(&mut self.endpoints, endpoints);
        let of = |kind| match kind {
            Kind::Cluster => self.clusters.clone(),
            Kind::Endpoints => self.endpoints.clone(),
            Kind::Listener => self.listeners.clone(),
            Kind::Routes => self.tables.clone(),
            Kind::Secret => Resources::default(),
        };
        Snapshot::from_kinds(published.revision, Kind::ALL.map(of))
    }

    fn listeners(&mut self, published: &Published, node: &Node, session: &impl Names) -> Resources {
        let names = || session.names(Kind::Listener);
        let is_server = names().any(|name| name.starts_with(SERVER_LISTENER));
        let guard = match is_server {
            true => Guard::of(published, node),
            false => Guard::default(),
        };
        let is_same = guard == self.guard;
        self.guard = guard;
        let listener = |name: &str| match name.strip_prefix(SERVER_LISTENER) {
            Some(address) => {
                let held = self.listeners.get(name).filter(|_| is_same).cloned();
                held.or_else(|| server_listener(name, address, &self.guard))
            }
            None => published.dialect.listener(name, published, node),
        };
        names()
            .filter_map(|name| Some((name.to_owned(), listener(name)?)))
            .collect()
    }
}

/// Each that is found, and of the others those that the client still asks for: it stops by itself once no rule of its own
/// needs them. Sooner taken away, they would fail the calls in between.
fn kept<'a>(
    old: &Resources,
    names: impl Iterator<Item = &'a str>,
    find: impl Fn(&str) -> Option<Arc<Encoded>>,
) -> Resources {
    let found = |name: &str| find(name).or_else(|| old.get(name).cloned());
    names
        .filter_map(|name| Some((name.to_owned(), found(name)?)))
        .collect()
}

/// Of a server: who may call it, and whether by certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Guard {
    tls: Option<MtlsMode>,
    trust_domain: TrustDomain,
    access: Arc<Access>,
    /// The policies that name callers whom it can't know.
    deaf: Vec<String>,
}

impl Guard {
    fn of(published: &Published, node: &Node) -> Self {
        let mesh = &published.mesh;
        let access = published.dialect.access(published, &node.service);
        let mode = mode_of_service(&published.world, &mesh.index, &node.service);
        let tls = Some(mode).filter(|mode| node.tls.has_providers && *mode != MtlsMode::Off);
        let names_callers = |policy: &&AccessPolicy| {
            let mut rules = policy.rules.iter();
            rules.any(|rule| !rule.callers.is_empty())
        };
        let deaf = access.policies.iter().filter(names_callers);
        let deaf: Vec<_> = deaf
            .filter(|_| tls.is_none())
            .map(|policy| policy.name.clone())
            .collect();
        Self {
            tls,
            trust_domain: mesh.trust_domain.clone(),
            access: match deaf.is_empty() {
                true => access,
                false => Arc::new(anonymous(&access)),
            },
            deaf,
        }
    }

    fn unmet<'a>(&'a self, world: &'a World) -> impl Iterator<Item = Unmet> + 'a {
        self.deaf.iter().map(|policy| Unmet {
            table: String::new(),
            rule: format!("{policy}/"),
            message: "names callers, and this proxyless gRPC server has no certificates to know them by (node metadata `certificate_providers: true`, or the mode is Off): whom it allows by name is denied there, and where it denies some it denies all".to_owned(),
            since_revision: document(&format!("{policy}/"))
                .and_then(|id| world.documents.get(&id))
                .map_or(0, |entry| entry.revision),
        })
    }
}

fn server_listener(name: &str, address: &str, guard: &Guard) -> Option<Arc<Encoded>> {
    let address: SocketAddr = address.parse().ok()?;
    let listener = ServerListener {
        name: name.to_owned(),
        address,
        tls: guard.tls,
        trust_domain: guard.trust_domain.clone(),
        access: (*guard.access).clone(),
    };
    Some(Arc::new(grpc::server_listener(&listener)))
}

/// `<service>.<namespace>.svc.mesh:<port>`
fn table_name(service: &ServiceName, port: u16) -> String {
    format!("{}:{port}", service.host())
}

/// Of the names of a service port only the one that says everything is a table's.
fn is_canonical(name: &str) -> bool {
    let parts = name
        .rsplit_once(':')
        .map(|(host, _)| host.split('.').count());
    parts == Some(4)
}

fn unmet_rules<'a>(
    table: &'a str,
    rules: &'a [Rule],
    world: &'a World,
) -> impl Iterator<Item = Unmet> + 'a {
    rules.iter().filter_map(move |rule| {
        let refusal = grpc::refusal(rule)?;
        Some(Unmet {
            table: table.to_owned(),
            rule: rule.name.clone(),
            message: format!(
                "a proxyless gRPC client can't {refusal}: its calls that match this rule end with UNAVAILABLE"
            ),
            since_revision: document(&rule.name)
                .and_then(|id| world.documents.get(&id))
                .map_or(0, |entry| entry.revision),
        })
    })
}

/// The document that a rule comes from.
fn document(rule: &str) -> Option<DocumentId> {
    let mut parts = rule.split('/');
    Some(DocumentId {
        kind: DocumentKind::parse(parts.next()?)?,
        namespace: parts.next()?.to_owned(),
        name: parts.next()?.to_owned(),
    })
}

/// Resources in gRPC's dialect, for as long as a stream holds them; cheap to clone, and shared by all that is published.
#[derive(Clone, Debug, Default)]
pub struct Dialect(Arc<Mutex<Made>>);

#[derive(Debug, Default)]
struct Made {
    resources: HashMap<(Kind, String), One>,
    /// How many there may be before those that nobody holds are swept out.
    sweep_at: usize,
    /// By service, and the documents it was made of.
    access: Option<(Arc<Documents>, Arc<AccessByService>)>,
}

type AccessByService = BTreeMap<ServiceName, Arc<Access>>;

#[derive(Debug)]
struct One {
    source: Source,
    encoded: Weak<Encoded>,
}

/// What a resource is made of.
#[derive(Clone, Debug)]
enum Source {
    Listener(String),
    Rules(Arc<Vec<Rule>>),
    Cluster(Arc<Cluster>),
    Endpoints(Arc<Assignment>),
    Nothing,
}

impl Source {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Listener(a), Self::Listener(b)) => a == b,
            (Self::Rules(a), Self::Rules(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Cluster(a), Self::Cluster(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Endpoints(a), Self::Endpoints(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Nothing, Self::Nothing) => true,
            _ => false,
        }
    }
}

impl Dialect {
    /// For the target that a client in its namespace means by `name`, with its Service's default port where it says none.
    fn listener(&self, name: &str, published: &Published, node: &Node) -> Option<Arc<Encoded>> {
        let mesh = &published.mesh;
        let (service, port) = resolve(name, &node.service.namespace, &mesh.catalog)?;
        mesh.rules.of(&service, port, &node.service.namespace)?;
        let route_table = table_name(&service, port);
        let encode = || {
            grpc::api_listener(&ApiListener {
                name: name.to_owned(),
                route_table: route_table.clone(),
            })
        };
        Some(self.made(
            Kind::Listener,
            name,
            Source::Listener(route_table.clone()),
            encode,
        ))
    }

    fn table(&self, name: &str, seen: &Seen) -> Arc<Encoded> {
        let encode = || {
            grpc::routes(&RouteTable {
                name: name.to_owned(),
                hosts: vec![VirtualHost {
                    name: name.to_owned(),
                    domains: vec!["*".to_owned()],
                    rules: seen.rules.to_vec(),
                }],
            })
        };
        let source = Source::Rules(seen.rules.clone());
        match &seen.consumer {
            Some(namespace) => {
                let key = format!("{namespace} {name}");
                self.made(Kind::Routes, &key, source, encode)
            }
            None => self.made(Kind::Routes, name, source, encode),
        }
    }

    fn cluster(&self, cluster: &Arc<Cluster>, is_secure: bool) -> Arc<Encoded> {
        let source = Source::Cluster(cluster.clone());
        if is_secure {
            let name = format!("{SECURE}{}", cluster.name);
            return self.made(Kind::Cluster, &name, source, || grpc::cluster(cluster));
        }
        let plain = || {
            grpc::cluster(&Cluster {
                tls: None,
                ..(**cluster).clone()
            })
        };
        self.made(Kind::Cluster, &cluster.name.to_string(), source, plain)
    }

    fn endpoints(&self, set: &Arc<Assignment>) -> Arc<Encoded> {
        let source = Source::Endpoints(set.clone());
        let encode = || grpc::endpoints(set);
        self.made(Kind::Endpoints, &set.cluster.to_string(), source, encode)
    }

    /// Where calls go that can go nowhere.
    fn nowhere(&self, kind: Kind) -> Arc<Encoded> {
        let [cluster, endpoints] = grpc::nowhere();
        let encoded = match kind {
            Kind::Cluster => cluster,
            _ => endpoints,
        };
        self.made(kind, INVALID_BACKEND, Source::Nothing, || encoded)
    }

    fn made(
        &self,
        kind: Kind,
        name: &str,
        source: Source,
        encode: impl FnOnce() -> Encoded,
    ) -> Arc<Encoded> {
        // Held for a look-up, or for encoding one resource.
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kind, name.to_owned());
        if let Some(one) = made.resources.get_mut(&key)
            && let Some(encoded) = one.encoded.upgrade()
            && one.source.same(&source)
        {
            one.source = source;
            return encoded;
        }
        let encoded = Arc::new(encode());
        let one = One {
            source,
            encoded: Arc::downgrade(&encoded),
        };
        made.resources.insert(key, one);
        if made.resources.len() > made.sweep_at {
            made.resources
                .retain(|_, one| one.encoded.strong_count() > 0);
            made.sweep_at = (made.resources.len() * 2).max(SWEEP_MIN);
        }
        encoded
    }

    /// Who may call a service.
    fn access(&self, published: &Published, service: &ServiceName) -> Arc<Access> {
        let world = &published.world;
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = made
            .access
            .as_ref()
            .filter(|(documents, _)| Arc::ptr_eq(documents, &world.documents));
        let all = match current {
            Some((_, all)) => all.clone(),
            None => {
                let all = Arc::new(access(world, &published.mesh.trust_domain));
                made.access = Some((world.documents.clone(), all.clone()));
                all
            }
        };
        all.get(service).cloned().unwrap_or_default()
    }
}

/// Of each service that an AuthorizationPolicy names.
fn access(world: &World, trust_domain: &TrustDomain) -> AccessByService {
    let mut all = BTreeMap::<ServiceName, Access>::new();
    for (_, document) in world.in_force() {
        let Document::AuthorizationPolicy(policy) = document else {
            continue;
        };
        for service in &policy.targets {
            let access = all.entry(service.clone()).or_default();
            access.policies.push(policy.access(trust_domain));
        }
    }
    let shared = |(service, access)| (service, Arc::new(access));
    all.into_iter().map(shared).collect()
}

/// gRPC speaks TLS to a whole cluster or not at all.
fn all_mutual(mesh: &Mesh, cluster: &ClusterName) -> bool {
    let set = mesh.assignments.get(cluster);
    set.is_some_and(|set| !set.endpoints.is_empty() && set.endpoints.iter().all(|e| e.mutual_tls))
}

/// Before the name of a cluster with TLS, among those that are made.
const SECURE: &str = "tls ";
const SWEEP_MIN: usize = 1024;

#[cfg(test)]
mod tests;
