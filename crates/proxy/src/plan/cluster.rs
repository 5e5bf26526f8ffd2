//! One cluster of the plan: how it is called, its endpoints, and the edges its traffic is counted on.

use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::identity::SpiffeId;
use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, Direction, ServiceName};
use phalanx_model::resource::udp;
use phalanx_model::resource::{
    Assignment, CircuitBreaker, Cluster, ConnectionPool, Endpoint, Health, LoadBalancer,
    OutlierDetection, RetryBudget,
};
use phalanx_relay::Field;

use super::directory::DirectoryPlan;
use super::{AppPort, PeerPlan};
use crate::account::{Account, Edge, EdgeKey, LaneCounts, Security, Traffic};
use crate::balance::{Group, Member, Policy, SlowStart};
use crate::upstream::Breaker;

pub struct ClusterPlan {
    pub name: ClusterName,
    pub protocol: Protocol,
    pub pool: ConnectionPool,
    pub limits: CircuitBreaker,
    pub retry_budget: RetryBudget,
    pub breaker: Arc<Breaker>,
    /// Same order as `endpoints`.
    pub group: Group,
    pub endpoints: Box<[EndpointPlan]>,
    /// Endpoints by the token in their datagrams, sorted; mostly none.
    tokens: Box<[(Box<[u8]>, usize)]>,
    /// For requests that got no endpoint.
    pub unassigned: Edges,
    /// Of a lane: far endpoints are the baseline's.
    pub lane: Option<Arc<LaneCounts>>,
    /// Where requests with a session go.
    pub directory: Option<DirectoryPlan>,
    tls: Option<Arc<PeerPlan>>,
    made_of: Option<(Arc<Cluster>, Option<Arc<Assignment>>)>,
}

pub struct EndpointPlan {
    pub address: SocketAddr,
    /// A sidecar of ours is in front of it, and is told with this field which of its application's ports is meant.
    pub port_field: Option<Field>,
    /// The port of its application, if a sidecar is in front of it; else 0.
    target: u16,
    /// It is called over mutual TLS, and never otherwise.
    pub tls: Option<Arc<PeerPlan>>,
    pub edges: Edges,
}

/// The edges of one version, by what is spoken.
#[derive(Clone)]
pub struct Edges {
    http: Arc<Edge>,
    grpc: Arc<Edge>,
    tcp: Arc<Edge>,
}

impl Edges {
    fn of(name: &ClusterName, version: &str, security: Security, account: &Account) -> Self {
        let edge = |traffic| {
            let key = EdgeKey {
                direction: name.direction,
                // A lane's requests are counted with its service's, by version.
                cluster: Some(name.baseline()),
                version: version.to_owned(),
                traffic,
                security: security.clone(),
                in_lane: name.lane.is_some(),
            };
            account.edge(key)
        };
        Self {
            http: edge(Traffic::Http),
            grpc: edge(Traffic::Grpc),
            tcp: edge(Traffic::Tcp),
        }
    }

    /// Of connections to nobody of the mesh, or from nobody: past all clusters.
    pub fn passing(direction: Direction, account: &Account) -> Self {
        let edge = |traffic| {
            account.edge(EdgeKey {
                direction,
                cluster: None,
                version: String::new(),
                traffic,
                security: Security::Plain,
                in_lane: false,
            })
        };
        Self {
            http: edge(Traffic::Http),
            grpc: edge(Traffic::Grpc),
            tcp: edge(Traffic::Tcp),
        }
    }

    /// Those of the same cluster and version over mutual TLS with `peer`.
    pub fn with_peer(&self, peer: &SpiffeId, account: &Account) -> Self {
        let edge = |plain: &Edge| {
            account.edge(EdgeKey {
                security: Security::Mutual(Some(Box::new(peer.clone()))),
                ..plain.key().clone()
            })
        };
        Self {
            http: edge(&self.http),
            grpc: edge(&self.grpc),
            tcp: edge(&self.tcp),
        }
    }

    #[inline]
    pub fn of_traffic(&self, traffic: Traffic) -> &Arc<Edge> {
        match traffic {
            Traffic::Http => &self.http,
            Traffic::Grpc => &self.grpc,
            Traffic::Tcp | Traffic::Udp => &self.tcp,
        }
    }
}

impl ClusterPlan {
    pub(super) fn outbound(
        cluster: &Arc<Cluster>,
        assignment: Option<&Arc<Assignment>>,
        previous: Option<&Arc<ClusterPlan>>,
        account: &Account,
    ) -> Self {
        let name = &cluster.name;
        let endpoints = assignment.map_or(&[][..], |assignment| &assignment.endpoints);
        let tls = cluster.tls.as_ref().map(|tls| {
            let before = previous.and_then(|cluster| cluster.tls.as_ref());
            let same = before.filter(|before| before.ids == tls.ids);
            same.cloned()
                .unwrap_or_else(|| Arc::new(PeerPlan::new(&tls.ids)))
        });
        let secured = || {
            let only = tls.as_ref().and_then(|tls| tls.only());
            Security::Mutual(only.cloned().map(Box::new))
        };
        let mut edges: Vec<(&str, bool, Edges)> = Vec::new(); // few versions, many endpoints
        let mut edges_of = |version, mutual| match edges
            .iter()
            .find(|known| (known.0, known.1) == (version, mutual))
        {
            Some((.., edges)) => edges.clone(),
            None => {
                let security = if mutual { secured() } else { Security::Plain };
                let made = Edges::of(name, version, security, account);
                edges.push((version, mutual, made.clone()));
                made
            }
        };
        let plans = endpoints.iter().map(|endpoint| {
            let tls = tls.clone().filter(|_| endpoint.mutual_tls);
            EndpointPlan {
                address: endpoint.address,
                port_field: port_field(endpoint, name.port),
                target: target(endpoint, name.port),
                edges: edges_of(endpoint.version.as_str(), tls.is_some()),
                tls,
            }
        });
        let plans: Box<[EndpointPlan]> = plans.collect();
        let now_ms = u64::try_from(account.started().elapsed().as_millis()).unwrap_or(u64::MAX);
        let member = |endpoint: &Endpoint| {
            let known = previous.and_then(|cluster| cluster.member(endpoint.address));
            let others = previous.is_some_and(|cluster| !cluster.endpoints.is_empty());
            // What works again begins again.
            let works = |health| health == Health::Healthy;
            let joined_ms = match known {
                Some(known) if works(known.health) || !works(endpoint.health) => known.joined_ms,
                _ => others.then_some(now_ms),
            };
            Member {
                address: endpoint.address,
                weight: endpoint.weight,
                health: endpoint.health,
                is_far: endpoint.is_far,
                joined_ms,
                outlier: known.map(|known| known.outlier.clone()).unwrap_or_default(),
            }
        };
        let slow_start = cluster.slow_start.map(|slow| SlowStart {
            window_ms: u64::try_from(slow.window.as_millis()).unwrap_or(u64::MAX),
            min_percent: slow.min_weight_percent,
        });
        let defaults = Policy::new(cluster.load_balancer, cluster.outlier_detection);
        let asked = assignment.and_then(|assignment| assignment.overprovision);
        let policy = Policy {
            panic_percent: cluster.panic_percent,
            overprovision: asked.unwrap_or(defaults.overprovision),
            slow_start,
            is_lane: name.lane.is_some(),
            ..defaults
        };
        Self {
            name: name.clone(),
            protocol: cluster.protocol,
            pool: cluster.connection_pool,
            limits: cluster.circuit_breaker,
            retry_budget: cluster.retry_budget,
            breaker: previous
                .map(|cluster| cluster.breaker.clone())
                .unwrap_or_default(),
            group: Group::new(policy, endpoints.iter().map(member).collect()),
            endpoints: plans,
            tokens: tokens(endpoints),
            lane: account.colours().lane(name),
            directory: cluster.directory.as_ref().and_then(DirectoryPlan::new),
            unassigned: Edges::of(name, "", Security::Plain, account),
            tls,
            made_of: Some((cluster.clone(), assignment.cloned())),
        }
    }

    /// Whether these very resources were compiled to it.
    pub(super) fn is_made_of(
        &self,
        cluster: &Arc<Cluster>,
        assignment: Option<&Arc<Assignment>>,
    ) -> bool {
        let Some((of, endpoints)) = &self.made_of else {
            return false;
        };
        let same = match (endpoints, assignment) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same && Arc::ptr_eq(of, cluster)
    }

    /// The application itself: one endpoint, no ejection, no limit that its caller's sidecar would not have set.
    pub(super) fn inbound(
        name: ClusterName,
        port: &AppPort,
        version: &str,
        previous: Option<&Arc<ClusterPlan>>,
        account: &Account,
    ) -> Self {
        let edges = Edges::of(&name, version, Security::Plain, account);
        Self::one(name, port, previous, edges)
    }

    fn one(
        name: ClusterName,
        port: &AppPort,
        previous: Option<&Arc<ClusterPlan>>,
        edges: Edges,
    ) -> Self {
        let unlimited = CircuitBreaker {
            max_connections: INBOUND_MAX,
            max_pending_requests: INBOUND_MAX,
            max_requests: INBOUND_MAX,
            max_retries: CircuitBreaker::default().max_retries,
        };
        let known = previous.and_then(|cluster| cluster.member(port.address));
        let member = Member {
            address: port.address,
            weight: 1,
            health: Health::Healthy,
            is_far: false,
            joined_ms: None,
            outlier: known.map(|known| known.outlier.clone()).unwrap_or_default(),
        };
        Self {
            protocol: port.protocol,
            pool: ConnectionPool::default(),
            limits: unlimited,
            retry_budget: RetryBudget::default(),
            breaker: previous
                .map(|cluster| cluster.breaker.clone())
                .unwrap_or_default(),
            group: Group::new(
                Policy::new(LoadBalancer::Random, OutlierDetection::default()),
                vec![member],
            ),
            endpoints: [EndpointPlan {
                address: port.address,
                port_field: None,
                target: 0,
                tls: None,
                edges: edges.clone(),
            }]
            .into(),
            tokens: Box::default(),
            lane: None,
            directory: None,
            unassigned: edges,
            tls: None,
            made_of: None,
            name,
        }
    }

    /// The place of the endpoint at this address; endpoints come sorted.
    pub fn find(&self, address: SocketAddr) -> Option<usize> {
        let at = |endpoint: &EndpointPlan| endpoint.address;
        self.endpoints.binary_search_by_key(&address, at).ok()
    }

    /// The place of the endpoint with this token.
    #[inline]
    pub fn by_token(&self, token: &[u8]) -> Option<usize> {
        if self.tokens.is_empty() {
            return None;
        }
        let found = self
            .tokens
            .binary_search_by(|(known, _)| (**known).cmp(token));
        found.ok().and_then(|at| Some(self.tokens.get(at)?.1))
    }

    /// The place of the endpoint that who calls this address means: the endpoint's own, or that of the application behind it.
    pub fn find_meant(&self, address: SocketAddr) -> Option<usize> {
        let is_there = |e: &&EndpointPlan| e.address.ip().to_canonical() == address.ip();
        let place = |is: &dyn Fn(&EndpointPlan) -> bool| {
            let mut all = self.endpoints.iter();
            all.position(|e| is_there(&e) && is(e))
        };
        let is_own = |e: &EndpointPlan| e.target == 0 && e.address.port() == address.port();
        place(&is_own)
            .or_else(|| place(&|e| e.target == address.port()))
            .or_else(|| place(&|_| self.endpoints.iter().filter(is_there).count() == 1))
    }

    /// The one endpoint of connections that pass the mesh by.
    pub fn passage(address: SocketAddr, edges: Edges) -> Self {
        let nobody = ClusterName::outbound(ServiceName::new("", ""), address.port());
        let port = AppPort {
            name: String::new(),
            number: address.port(),
            address,
            protocol: Protocol::Auto,
        };
        Self::one(nobody, &port, None, edges)
    }

    fn member(&self, address: SocketAddr) -> Option<&Member> {
        let place = self
            .endpoints
            .iter()
            .position(|endpoint| endpoint.address == address)?;
        self.group.member(place)
    }
}

/// Of two with the same token the healthier, then the first.
fn tokens(endpoints: &[Endpoint]) -> Box<[(Box<[u8]>, usize)]> {
    let token = |(place, endpoint): (usize, &Endpoint)| {
        let token = udp::token(&endpoint.token)?;
        Some((token.into_boxed_slice(), endpoint.health as u8, place))
    };
    let mut tokens: Vec<_> = endpoints.iter().enumerate().filter_map(token).collect();
    tokens.sort_unstable();
    tokens.dedup_by(|later, kept| later.0 == kept.0);
    let tokens = tokens.into_iter();
    tokens.map(|(token, _, place)| (token, place)).collect()
}

fn target(endpoint: &Endpoint, service_port: u16) -> u16 {
    match (endpoint.instance.is_empty(), endpoint.target) {
        (true, _) => 0,
        (false, 0) => service_port,
        (false, port) => port,
    }
}

/// The application's port; a control plane that doesn't tell it means the Service's.
fn port_field(endpoint: &Endpoint, service_port: u16) -> Option<Field> {
    if endpoint.instance.is_empty() {
        return None;
    }
    let port = match endpoint.target {
        0 => service_port,
        port => port,
    };
    Field::new("x-phalanx-port", &port.to_string()).ok()
}

/// Connections and requests to the application: more than the sidecar's own connection limit lets in.
const INBOUND_MAX: u32 = 20_000;
