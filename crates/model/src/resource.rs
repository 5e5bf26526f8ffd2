//! Resources: what the control plane compiles documents to and a data plane receives.
//!
//! Each type has one Envoy v3 counterpart; room `xds` converts both ways, so a stock Envoy, a proxyless client and our
//! sidecar get the same. Only what all of them can honour, plus what our sidecar adds, stands here.

pub mod colour;
pub mod gateway;
pub mod limit;
pub mod route;
pub mod sessions;
pub mod transcode;
pub mod udp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::{SpiffeId, TrustDomain};
use crate::instance::Protocol;
use crate::name::{ClusterName, Direction};
use crate::reason::Reason;

pub use self::route::{ANY, Carrier, Compare, Cors, HEDGES_MAX, Hedging, MILLION, Mirror, Session};
pub use self::sessions::SessionDirectory;
pub use self::transcode::Transcoding;

/// A socket the data plane listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub name: String,
    pub address: SocketAddr,
    pub direction: Direction,
    pub protocol: ListenerProtocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// HTTP/1.1 and HTTP/2, routed by the [`RouteTable`] of this name.
    Http {
        route_table: String,
    },
    Tcp {
        cluster: ClusterName,
    },
    /// What others send to the applications behind it, by the application's own port.
    Inbound {
        /// Whose identities are taken; the callers in `rules` are of it.
        trust_domain: TrustDomain,
        rules: Inbound,
    },
    /// What comes from outside the mesh.
    Gateway(self::gateway::GatewayPort),
    /// Datagrams.
    Udp(self::udp::UdpPort),
}

/// The routes of one listener. A host is chosen by authority, then the first rule that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTable {
    pub name: String,
    pub hosts: Vec<VirtualHost>,
}

/// `domains` are lower-case authorities, with or without port, each in one host only; `*` stands for any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHost {
    pub name: String,
    pub domains: Vec<String>,
    /// In order of precedence; none matching means [`Reason::NoRoute`].
    pub rules: Vec<Rule>,
}

/// One match and what follows. A document's rule with several matches becomes several of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `<Kind>/<namespace>/<name>/<rule index or name>`: where it came from.
    pub name: String,
    pub matches: RuleMatch,
    pub request_headers: HeaderEdit,
    pub response_headers: HeaderEdit,
    pub action: Action,
}

/// All conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleMatch {
    pub path: PathMatch,
    /// An upper-case token.
    pub method: Option<String>,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
    /// Only requests whose content type is `application/grpc` or `application/grpc+…`.
    pub grpc: bool,
}

impl Default for RuleMatch {
    fn default() -> Self {
        Self {
            path: PathMatch::Prefix("/".into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
            grpc: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(String),
    /// Whole segments: `/a` matches `/a` and `/a/b`, not `/ab`. Without trailing slash, except `/` itself.
    Prefix(String),
    /// Matches the whole path; in the common subset of RE2 and the crate `regex`.
    Regex(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: String,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    pub name: String,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    Exact(String),
    /// Matches the whole value.
    Regex(String),
}

/// Applied in the order remove, set, add. Names are lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    pub set: Vec<(String, String)>,
    pub add: Vec<(String, String)>,
    pub remove: Vec<String>,
}

impl HeaderEdit {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "nearly all of them forward")]
pub enum Action {
    Forward(Forward),
    Redirect(Redirect),
    /// The proxy answers by itself.
    Respond(Reason),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// Never empty and not all of weight zero: those are [`Action::Respond`].
    pub backends: Vec<Backend>,
    pub rewrite: Rewrite,
    /// Of the whole exchange, retries included; none means no limit was asked for, zero that none was wanted, not even
    /// the data plane's own. Streams of gRPC are not cut by it unless it is set.
    pub request_timeout: Option<Duration>,
    /// Of one attempt.
    pub attempt_timeout: Option<Duration>,
    pub retry: Retry,
    /// What of a request leads it to the same endpoint again, where the cluster's balancer goes by keys. Without one, or
    /// where the request has none, it picks at random.
    pub hash_on: Option<HashOn>,
    /// Each gets a copy of its share of requests.
    pub mirrors: Vec<Mirror>,
    /// Whether what mirrors answer is compared.
    pub compare: Option<Compare>,
    pub session: Option<Session>,
    pub cors: Option<Cors>,
    pub hedging: Option<Hedging>,
    /// How urgent a request is that does not say so itself.
    pub priority: Option<limit::Priority>,
    /// For callers who speak JSON to a gRPC service.
    pub transcoding: Option<Arc<Transcoding>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// Lower case.
    Header(String),
    /// One that is missing is made, for as long as the client's session lasts.
    Cookie(String),
    /// The address of the connection's other end.
    SourceIp,
}

/// Its header edits are applied before those of its [`Rule`], on requests and on answers: where both set a header, the
/// rule's word stands. (Envoy knows no other order.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// None: the backend does not exist, its share is answered with [`Reason::InvalidBackend`].
    pub cluster: Option<ClusterName>,
    pub weight: u32,
    pub request_headers: HeaderEdit,
    pub response_headers: HeaderEdit,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    pub authority: Option<String>,
    pub path: Option<PathRewrite>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// Replaces the whole path; the query stays.
    Full(String),
    /// Replaces the matched prefix by whole segments; `/` removes it.
    Prefix(String),
}

/// What may be tried again. Without a document's word: two more attempts, where it is safe.
///
/// An attempt that never reached the application (connect failure, refused stream) may always be repeated; a reset or
/// one of `codes` only when the method is idempotent (RFC 9110 §9.2.2), unless `codes` were written in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Further attempts after the first; 0 switches retries off.
    pub attempts: u32,
    /// HTTP statuses that a document asks to retry, whatever the method.
    pub codes: Vec<u16>,
    /// The least wait before a further attempt.
    pub backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 2,
            codes: Vec::new(),
            backoff: Duration::from_millis(25),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub port: Option<u16>,
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// One port of one service, and how it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub name: ClusterName,
    pub protocol: Protocol,
    pub load_balancer: LoadBalancer,
    /// With P2C, least request and round robin only.
    pub slow_start: Option<SlowStart>,
    /// While fewer of 100 endpoints work, requests go to all; 1: when none does.
    pub panic_percent: u32,
    pub connection_pool: ConnectionPool,
    pub circuit_breaker: CircuitBreaker,
    pub outlier_detection: OutlierDetection,
    pub retry_budget: RetryBudget,
    /// How endpoints that take mutual TLS are called; none: in plain text, all of them.
    pub tls: Option<PeerTls>,
    /// Where requests with a session go, by the directory.
    pub directory: Option<SessionDirectory>,
}

impl Cluster {
    /// With every policy at its default.
    pub fn new(name: ClusterName, protocol: Protocol) -> Self {
        Self {
            name,
            protocol,
            load_balancer: LoadBalancer::default(),
            slow_start: None,
            panic_percent: PANIC_PERCENT,
            connection_pool: ConnectionPool::default(),
            circuit_breaker: CircuitBreaker::default(),
            outlier_detection: OutlierDetection::default(),
            retry_budget: RetryBudget::default(),
            tls: None,
            directory: None,
        }
    }
}

/// Mutual TLS towards a cluster: the caller shows its own identity, and expects one of these at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTls {
    /// Sorted, each once; none of them lets nobody be called.
    pub ids: Vec<SpiffeId>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadBalancer {
    /// Two at random, the one with the lower peak EWMA of latency × outstanding requests.
    #[default]
    P2c,
    /// Two at random, the one with fewer outstanding requests.
    LeastRequest,
    RoundRobin,
    Random,
    /// By the request's key, on a ring: what leaves takes only its own keys along.
    RingHash,
    /// By the request's key, in a table that all callers fill alike.
    Maglev,
}

impl LoadBalancer {
    /// Whether requests need a key.
    pub fn is_keyed(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// Requests go to all when none works.
pub const PANIC_PERCENT: u32 = 1;

/// An endpoint that joins others gets a part of its share that grows to the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    pub window: Duration,
    /// What it has at once.
    pub min_weight_percent: u32,
}

/// The own zone first, and others for what that can't take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locality {
    /// While at least so much of the own zone works, it takes everything. 1 to 100.
    pub failover_percent: u32,
    /// 1 to 100.
    pub panic_percent: u32,
}

impl Locality {
    /// As Envoy says it: how much more than its share an endpoint can take, in percent.
    pub fn overprovision(self) -> u32 {
        let percent = self.failover_percent.clamp(1, 100);
        (10_000 + percent / 2) / percent
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionPool {
    /// 0: no limit.
    pub max_requests_per_connection: u32,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self {
            max_requests_per_connection: 0,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(90),
        }
    }
}

/// Limits per sidecar, not per core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// 0 switches this kind off.
    pub consecutive_5xx: u32,
    /// 502, 503, 504, connect failures and resets; 0 switches this kind off.
    pub consecutive_gateway: u32,
    pub interval: Duration,
    pub base_ejection: Duration,
    /// At least one endpoint may always be ejected when there are two or more.
    pub max_ejection_percent: u32,
    /// Thousandths of the standard deviation by which an endpoint's success rate may be below the mean of all; 0 switches
    /// this kind off.
    pub success_rate_stdev: u32,
    /// Thousandths of the median latency of all that an endpoint's mean may reach; 0 switches this kind off.
    pub latency_factor: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 5,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 10,
            success_rate_stdev: 0,
            latency_factor: 0,
        }
    }
}

/// Retries in flight may be at most `percent` of the requests in flight, or `min_concurrency` if that is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    pub percent: u32,
    pub min_concurrency: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            percent: 20,
            min_concurrency: 3,
        }
    }
}

/// How the endpoints of a service are asked whether they work. No part of a [`Cluster`]: not every data plane asks every
/// endpoint, a few are told to over health discovery.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    pub probe: Probe,
    /// From one question to the next.
    pub interval: Duration,
    /// Of one question, connecting included.
    pub timeout: Duration,
    /// Good answers in a row that make an unhealthy endpoint healthy; at least 1.
    pub healthy_threshold: u32,
    /// Bad answers in a row that make a healthy endpoint unhealthy; at least 1.
    pub unhealthy_threshold: u32,
}

impl HealthCheck {
    /// With the default times and thresholds.
    pub fn new(probe: Probe) -> Self {
        Self {
            probe,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            healthy_threshold: 1,
            unhealthy_threshold: 3,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// `GET path`, answered with 200 to 299.
    Http { path: String },
    /// `grpc.health.v1.Health/Check` of this service (empty: the whole server), answered with `SERVING`.
    Grpc { service: String },
    /// That a connection is taken.
    Tcp,
}

/// The endpoints of one cluster; sorted by address, each address once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub cluster: ClusterName,
    pub endpoints: Vec<Endpoint>,
    /// How much more than their share the endpoints of the caller's own zone can take, in percent, before others stand in
    /// for them; none: zones don't count.
    pub overprovision: Option<u32>,
}

impl Assignment {
    /// As a caller in this zone uses it. Where the caller's zone has none, all are equally near.
    #[must_use]
    pub fn seen_from(&self, zone: &str) -> Self {
        let mut seen = self.clone();
        let is_near = |endpoint: &Endpoint| endpoint.zone == zone;
        let zones_count = self.overprovision.is_some() && self.cluster.lane.is_none();
        if zones_count && self.endpoints.iter().any(is_near) {
            for endpoint in &mut seen.endpoints {
                endpoint.is_far = endpoint.zone != zone;
            }
        }
        seen
    }

    /// For clients that are told only whom to use: the healthy, else those that drain, else what there is. Where nothing is
    /// healthy, that may be the fault of who asked them, and no answer at all helps nobody. Of a lane its own before the
    /// baseline's.
    pub fn serving(&self) -> impl Iterator<Item = &Endpoint> {
        let rank = |endpoint: &Endpoint| {
            let health = match endpoint.health {
                Health::Healthy => 0,
                Health::Draining => 1,
                Health::Unhealthy => 2,
            };
            (health, endpoint.is_far)
        };
        let best = self.endpoints.iter().map(rank).min();
        let endpoints = self.endpoints.iter();
        endpoints.filter(move |endpoint| Some(rank(endpoint)) == best)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// 1 to 128.
    pub weight: u32,
    pub zone: String,
    /// Only for what the nearer ones can't take.
    pub is_far: bool,
    pub health: Health,
    /// The instance's `version` label, for metrics.
    pub version: String,
    /// Id of the instance, empty for endpoints that don't register.
    pub instance: String,
    /// The application's own port, for which the sidecar at `address` is asked; 0 where nobody needs to be asked.
    pub target: u16,
    /// Calls to it are to be made as the cluster's `tls` says.
    pub mutual_tls: bool,
    /// It takes datagrams.
    pub datagrams: bool,
    /// What of a datagram leads to it ([`udp::TOKEN`]), in lower-case hex; mostly empty.
    pub token: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Healthy,
    /// Keeps what it has, gets nothing new.
    Draining,
    Unhealthy,
}

/// What a proxyless gRPC client dials: a name, and the [`RouteTable`] that its calls follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiListener {
    pub name: String,
    pub route_table: String,
}

/// The socket of a proxyless gRPC server, under the name that its bootstrap makes of the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerListener {
    pub name: String,
    pub address: SocketAddr,
    /// With certificates of its own, and who has to show one; none: it has none.
    pub tls: Option<MtlsMode>,
    /// Of the callers in `access`.
    pub trust_domain: TrustDomain,
    pub access: Access,
}

/// What a sidecar asks of those who call its applications, by the number of the application's port; `ports` holds those
/// for which something else than `default` is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inbound {
    /// Of ports that are not among `ports`.
    pub default: InboundRule,
    pub ports: BTreeMap<u16, InboundRule>,
    /// What is given to requests of callers in plain text, where others have to show who they are.
    pub colours: colour::EdgeColours,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InboundRule {
    pub mode: MtlsMode,
    pub access: Access,
    /// By policy, each with something to say.
    pub limits: Vec<limit::Limits>,
}

/// Whether callers have to show who they are (PeerAuthentication).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MtlsMode {
    /// Mutual TLS is taken, and plain text from nobody in particular.
    #[default]
    Permissive,
    /// Mutual TLS only.
    Strict,
    /// Plain text only.
    Off,
}

/// Who may call a service; without policies everybody may. Nobody whom a policy denies; and where policies allow, only
/// those whom one of them allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub policies: Vec<AccessPolicy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessPolicy {
    /// `<Kind>/<namespace>/<name>`: where it came from.
    pub name: String,
    pub effect: Effect,
    /// Any of them; none matches nothing.
    pub rules: Vec<AccessRule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Allow,
    Deny,
}

/// All that is said must hold; an empty list says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRule {
    /// The caller is one of these; a caller in plain text is nobody.
    pub callers: Vec<Caller>,
    /// One of these, upper case.
    pub methods: Vec<String>,
    /// One of these.
    pub paths: Vec<PathMatch>,
    /// All of these.
    pub headers: Vec<HeaderMatch>,
}

/// Whom a rule means. Compared whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// Whoever has shown an identity of the mesh's trust domain.
    Anyone,
    Id(SpiffeId),
    /// Every service of a namespace of the mesh's trust domain.
    Namespace(String),
}
