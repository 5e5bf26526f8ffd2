//! Documents: what users write, after [`crate::manifest`] has checked it. Names resolved to a namespace, defaults filled in.

pub mod colour;
pub mod gateway;
pub mod rollout;
pub mod transcode;

use std::net::IpAddr;
use std::time::Duration;

use crate::identity::{SpiffeId, TrustDomain};
use crate::instance::{Labels, Protocol};
use crate::name::ServiceName;
use crate::resource::limit::{Limits, Priority};
use crate::resource::sessions::{Missing, SessionKey};
use crate::resource::udp::UdpRules;
use crate::resource::{
    AccessPolicy, AccessRule, Caller, CircuitBreaker, Compare, ConnectionPool, Cors, Effect,
    HashOn, HeaderEdit, HealthCheck, Hedging, LoadBalancer, Locality, MtlsMode, OutlierDetection,
    Redirect, Retry, RetryBudget, Rewrite, RuleMatch, Session, SlowStart,
};

pub use self::colour::{ColourPolicy, Fallback, Lane};
pub use self::gateway::{
    AllowedNamespaces, Gateway, GatewayListener, GatewayProtocol, GatewayRef, StreamBackend,
    StreamRoute,
};
pub use self::rollout::Rollout;
pub use self::transcode::TranscodingPolicy;

/// A checked document.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "each is held once, and shared by reference"
)]
pub enum Document {
    Service(Service),
    EndpointSlice(EndpointSlice),
    /// HTTPRoute or GRPCRoute.
    Route(Route),
    Gateway(Gateway),
    /// TCPRoute, TLSRoute or UDPRoute.
    StreamRoute(StreamRoute),
    BackendPolicy(BackendPolicy),
    AuthorizationPolicy(AuthorizationPolicy),
    PeerAuthentication(PeerAuthentication),
    ColourPolicy(ColourPolicy),
    Rollout(Rollout),
    TranscodingPolicy(TranscodingPolicy),
}

/// Order of kinds in listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Service,
    EndpointSlice,
    HttpRoute,
    GrpcRoute,
    Gateway,
    TlsRoute,
    TcpRoute,
    UdpRoute,
    BackendPolicy,
    AuthorizationPolicy,
    PeerAuthentication,
    ColourPolicy,
    Rollout,
    TranscodingPolicy,
}

impl Kind {
    pub const ALL: [Kind; 14] = [
        Self::Service,
        Self::EndpointSlice,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::Gateway,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::UdpRoute,
        Self::BackendPolicy,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::ColourPolicy,
        Self::Rollout,
        Self::TranscodingPolicy,
    ];

    /// As written in `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::Gateway => "Gateway",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::UdpRoute => "UDPRoute",
            Self::BackendPolicy => "BackendPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::ColourPolicy => "ColourPolicy",
            Self::Rollout => "Rollout",
            Self::TranscodingPolicy => "TranscodingPolicy",
        }
    }

    pub fn api_version(self) -> &'static str {
        match self {
            Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::HttpRoute | Self::GrpcRoute | Self::Gateway | Self::TlsRoute => {
                "gateway.networking.k8s.io/v1"
            }
            Self::TcpRoute | Self::UdpRoute => "gateway.networking.k8s.io/v1alpha2",
            Self::BackendPolicy
            | Self::AuthorizationPolicy
            | Self::PeerAuthentication
            | Self::ColourPolicy
            | Self::Rollout
            | Self::TranscodingPolicy => "phalanx.dev/v1alpha1",
        }
    }

    /// Older ones with the same fields.
    pub fn api_versions_before(self) -> &'static [&'static str] {
        match self {
            Self::TlsRoute => &[
                "gateway.networking.k8s.io/v1alpha3",
                "gateway.networking.k8s.io/v1alpha2",
            ],
            _ => &[],
        }
    }

    /// As written in `kind`, or as people type it: any case, plural, kubectl's short names (`svc`).
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        Some(match lower.as_str() {
            "service" | "services" | "svc" => Self::Service,
            "endpointslice" | "endpointslices" => Self::EndpointSlice,
            "httproute" | "httproutes" => Self::HttpRoute,
            "grpcroute" | "grpcroutes" => Self::GrpcRoute,
            "gateway" | "gateways" | "gtw" => Self::Gateway,
            "tlsroute" | "tlsroutes" => Self::TlsRoute,
            "tcproute" | "tcproutes" => Self::TcpRoute,
            "udproute" | "udproutes" => Self::UdpRoute,
            "backendpolicy" | "backendpolicies" => Self::BackendPolicy,
            "authorizationpolicy" | "authorizationpolicies" => Self::AuthorizationPolicy,
            "peerauthentication" | "peerauthentications" => Self::PeerAuthentication,
            "colourpolicy" | "colourpolicies" => Self::ColourPolicy,
            "rollout" | "rollouts" | "ro" => Self::Rollout,
            "transcodingpolicy" | "transcodingpolicies" => Self::TranscodingPolicy,
            _ => return None,
        })
    }
}

/// Names one document: at most one exists of each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentId {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for DocumentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

impl Document {
    pub fn id(&self) -> DocumentId {
        let (kind, meta) = match self {
            Self::Service(d) => (Kind::Service, &d.meta),
            Self::EndpointSlice(d) => (Kind::EndpointSlice, &d.meta),
            Self::Route(d) => (d.kind, &d.meta),
            Self::Gateway(d) => (Kind::Gateway, &d.meta),
            Self::StreamRoute(d) => (d.kind, &d.meta),
            Self::BackendPolicy(d) => (Kind::BackendPolicy, &d.meta),
            Self::AuthorizationPolicy(d) => (Kind::AuthorizationPolicy, &d.meta),
            Self::PeerAuthentication(d) => (Kind::PeerAuthentication, &d.meta),
            Self::ColourPolicy(d) => (Kind::ColourPolicy, &d.meta),
            Self::Rollout(d) => (Kind::Rollout, &d.meta),
            Self::TranscodingPolicy(d) => (Kind::TranscodingPolicy, &d.meta),
        };
        DocumentId {
            kind,
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
        }
    }

    pub fn meta(&self) -> &Meta {
        match self {
            Self::Service(d) => &d.meta,
            Self::EndpointSlice(d) => &d.meta,
            Self::Route(d) => &d.meta,
            Self::Gateway(d) => &d.meta,
            Self::StreamRoute(d) => &d.meta,
            Self::BackendPolicy(d) => &d.meta,
            Self::AuthorizationPolicy(d) => &d.meta,
            Self::PeerAuthentication(d) => &d.meta,
            Self::ColourPolicy(d) => &d.meta,
            Self::Rollout(d) => &d.meta,
            Self::TranscodingPolicy(d) => &d.meta,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub annotations: Labels,
}

/// `v1` Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub meta: Meta,
    /// Over instance labels, within the Service's namespace. Empty: endpoints come from EndpointSlices only.
    pub selector: Labels,
    pub ports: Vec<ServicePort>,
}

impl Service {
    pub fn service_name(&self) -> ServiceName {
        ServiceName::new(&self.meta.namespace, &self.meta.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    pub target: TargetPort,
    pub protocol: Protocol,
}

/// An instance with a single port takes traffic for any target (`surface.md`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}

/// `discovery.k8s.io/v1` EndpointSlice; belongs to the Service named by label `kubernetes.io/service-name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub meta: Meta,
    pub service: ServiceName,
    /// Label `phalanx.dev/tls: mutual`: its endpoints take mutual TLS, as the service itself.
    pub mutual_tls: bool,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: String,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`, true when left out.
    pub ready: bool,
    /// `conditions.serving && terminating`.
    pub terminating: bool,
    pub zone: String,
}

/// HTTPRoute or GRPCRoute; `kind` tells which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub meta: Meta,
    pub kind: Kind,
    /// Services whose traffic it routes.
    pub parents: Vec<ParentRef>,
    /// Gateways at which it takes requests from outside.
    pub gateways: Vec<GatewayRef>,
    /// Those of Gateways' hosts that it is for, exact or `*.suffix`; none: all. Services have their own.
    pub hostnames: Vec<String>,
    pub rules: Vec<RouteRule>,
    /// Answers of mirrors are compared with the original's.
    pub compare: Option<Compare>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    pub service: ServiceName,
    /// None: every port of the Service.
    pub port: Option<u16>,
    /// The name of a port (`sectionName`); beside `port` both have to mean the same one.
    pub section: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRule {
    pub name: Option<String>,
    /// Any of them; never empty (left out means `/`). For a GRPCRoute already with `grpc` set and the path made of
    /// service and method.
    pub matches: Vec<RuleMatch>,
    pub request_headers: HeaderEdit,
    pub response_headers: HeaderEdit,
    pub rewrite: Rewrite,
    pub redirect: Option<Redirect>,
    /// May be empty (then 500 `invalid_backend`, unless it redirects).
    pub backends: Vec<BackendRef>,
    pub mirrors: Vec<MirrorRef>,
    pub cors: Option<Cors>,
    /// Zero: without limit.
    pub request_timeout: Option<Duration>,
    pub attempt_timeout: Option<Duration>,
    /// None: the default retries.
    pub retry: Option<Retry>,
    pub session: Option<Session>,
    /// Of requests that don't say so themselves.
    pub priority: Option<Priority>,
}

/// Where copies of requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorRef {
    pub service: ServiceName,
    pub port: u16,
    /// Of a million requests, how many; may be 0.
    pub per_million: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRef {
    pub service: ServiceName,
    pub port: u16,
    pub weight: u32,
    pub request_headers: HeaderEdit,
    pub response_headers: HeaderEdit,
}

/// `phalanx.dev/v1alpha1` BackendPolicy. None: not said, so the default holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendPolicy {
    pub meta: Meta,
    pub targets: Vec<ServiceName>,
    pub load_balancer: Option<LoadBalancer>,
    /// Only with a balancer that goes by keys.
    pub hash_on: Option<HashOn>,
    pub slow_start: Option<SlowStart>,
    pub locality: Option<Locality>,
    pub connection_pool: Option<ConnectionPool>,
    pub circuit_breaker: Option<CircuitBreaker>,
    pub outlier_detection: Option<OutlierDetection>,
    pub retry_budget: Option<RetryBudget>,
    /// None: never.
    pub hedging: Option<Hedging>,
    /// None: nobody asks.
    pub health_check: Option<HealthCheck>,
    /// Rate limits, faults and priorities; enforced by the sidecars of the targets' instances.
    pub limits: Option<Limits>,
    /// Of its ports that take datagrams.
    pub udp: Option<UdpRules>,
    /// None: sessions are not looked for.
    pub session_directory: Option<SessionRules>,
}

/// How requests to a Service go by the session directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRules {
    /// Of the policy's namespace; none: each target has its own directory.
    pub service: Option<String>,
    pub key: SessionKey,
    pub missing: Missing,
}

/// `phalanx.dev/v1alpha1` AuthorizationPolicy: whose calls the instances of a Service take. Where a Service has policies
/// that allow, what none of them allows is denied; what one denies is denied in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    pub meta: Meta,
    pub targets: Vec<ServiceName>,
    pub effect: Effect,
    /// Any of them. None at all matches nothing.
    pub rules: Vec<CallRule>,
}

/// Which calls a policy means: those that meet all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallRule {
    /// The caller is one of these; none: whoever it is.
    pub from: Vec<Source>,
    /// What is called; without callers.
    pub call: AccessRule,
}

/// Who calls, as users write it: the trust domain is the mesh's, which a document does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Service(ServiceName),
    Namespace(String),
    Id(SpiffeId),
    /// Whoever has an identity.
    Anyone,
}

impl AuthorizationPolicy {
    /// As the instances enforce it in a mesh of this trust domain.
    pub fn access(&self, trust_domain: &TrustDomain) -> AccessPolicy {
        let caller = |source: &Source| match source {
            Source::Service(service) => Caller::Id(SpiffeId {
                trust_domain: trust_domain.clone(),
                service: service.clone(),
            }),
            Source::Namespace(namespace) => Caller::Namespace(namespace.clone()),
            Source::Id(id) => Caller::Id(id.clone()),
            Source::Anyone => Caller::Anyone,
        };
        let rule = |rule: &CallRule| {
            let mut callers: Vec<_> = rule.from.iter().map(caller).collect();
            callers.sort_unstable();
            callers.dedup();
            AccessRule {
                callers,
                ..rule.call.clone()
            }
        };
        let (kind, meta) = (Kind::AuthorizationPolicy, &self.meta);
        AccessPolicy {
            name: format!("{}/{}/{}", kind.as_str(), meta.namespace, meta.name),
            effect: self.effect,
            rules: self.rules.iter().map(rule).collect(),
        }
    }

    /// Whether it can be checked only by who knows its callers.
    pub fn names_callers(&self) -> bool {
        self.rules.iter().any(|rule| !rule.from.is_empty())
    }
}

/// `phalanx.dev/v1alpha1` PeerAuthentication: whether callers have to show who they are.
/// [`crate::matching::peers`] says which of several holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    pub meta: Meta,
    /// None: its whole namespace, or the whole mesh if that is [`crate::identity::SYSTEM_NAMESPACE`].
    pub targets: Vec<ServiceName>,
    /// None: as something wider says, but for `ports`.
    pub mode: Option<MtlsMode>,
    /// By the application's own port; only with targets.
    pub ports: Vec<(u16, MtlsMode)>,
}
