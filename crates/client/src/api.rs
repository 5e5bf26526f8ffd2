//! The admin API's bodies, shared by the control plane that answers and the tools that ask.
//!
//! Every type here crosses the wire as JSON; times are Unix milliseconds, revisions are those of the store. Unknown
//! fields of a request are refused, unknown fields of an answer are skipped, so that a newer control plane can be asked.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod canary;
mod cert;
mod compare;
mod effect;
mod health;
mod lanes;
mod refused;
mod rollout;
mod session;
mod user;

pub use canary::{
    Canary, CanaryDecision, CanaryEnd, CanaryEvidence, CanaryNode, CanaryStatus, CanaryTerms,
    NodeEvidence, Share, Traffic,
};
pub use cert::{
    CaView, ISSUED_MAX, Intermediate, IntermediateRequest, IssuedCertificate, IssuedCertificates,
    IssuedQuery, JoinToken, JoinTokenRequest, JoinTokenView, JoinTokens, LateCertificate,
    ProxyCertificate, ReleaseCertificatesRequest, Released, RevokeRequest, RevokeTokenRequest,
    Revoked, RotateRequest, Rotation, SERIALS_MAX, SignRequest, Signed, Trust, Unconfirmed,
};
pub use compare::{ComparedDifference, ComparedSample, Comparison, Comparisons};
pub use effect::{Effect, ProxyEffect, ResourceEffect, RuleEffect};
pub use health::{EndpointHealth, HealthViews, Opinion};
pub use lanes::{LaneService, LaneView, LaneViews};
pub use refused::{ENDPOINTS_MAX, RefusedRequest, RefusedResponse, SilentEndpoint};
pub use rollout::{
    RolloutEvent, RolloutFigures, RolloutMeasurement, RolloutOrder, RolloutRefusal, RolloutStep,
    RolloutView, Rollouts, ServiceCounts, VersionFigures,
};
pub use session::{DrainView, Drains, SessionAnswer, SessionPage, SessionRequest, SessionView};
pub use user::{LoginRequest, Me, UserRequest, UserToken, UserView, UserViews};

/// Where the admin API listens unless told otherwise.
pub const DEFAULT_ADMIN: &str = "127.0.0.1:15080";

/// Of a request's body; a control plane takes no more.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The body of every answer that is no success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong, lower case, without full stop.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// 409: the revision that the configuration really has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// 422: everything that is wrong with the files, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// One finding in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// As named in the request; empty when the finding belongs to no file.
    pub file: String,
    /// From 1; 0 when unknown.
    pub line: u32,
    /// In characters, from 1; 0 when unknown.
    pub column: u32,
    /// Of the field, such as `spec.rules[2].backendRefs[0].port`.
    pub path: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// `<file>:<line>:<column>: <path>: <message>`, parts that are unknown left out, the hint in brackets.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// A manifest file, sent as text so that findings carry its lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Shown in findings; need not exist anywhere.
    pub name: String,
    /// YAML, several documents allowed.
    pub text: String,
}

/// `POST /api/v1/apply`: one transaction over all documents of all files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    pub files: Vec<File>,
    /// For documents that name none.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// The configuration's revision the caller has seen; another one refuses the whole with 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u64>,
    /// Answer what would change, store nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Who, for the history.
    #[serde(default)]
    pub author: String,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Few proxies first, all when those bear it, else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryTerms>,
}

impl Default for ApplyRequest {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            namespace: default_namespace(),
            expect: None,
            dry_run: false,
            author: String::new(),
            message: None,
            canary: None,
        }
    }
}

fn default_namespace() -> String {
    "default".to_owned()
}

/// Answer of apply, delete and rollback.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ApplyResponse {
    /// The configuration's revision afterwards; unmoved when nothing changed or the run was dry.
    pub revision: u64,
    #[serde(default)]
    pub dry_run: bool,
    pub changes: Vec<Change>,
    /// What is allowed but probably not meant, such as a backend that does not exist.
    #[serde(default)]
    pub warnings: Vec<Problem>,
    /// Of a dry run and of a canary: what proxies would receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// The change is staged: only these proxies have it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub action: ChangeAction,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeAction {
    Created,
    Configured,
    Unchanged,
    Deleted,
}

impl ChangeAction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}

/// `POST /api/v1/delete`: by the documents of files, or by name; one transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// Only kind, namespace and name of their documents count.
    #[serde(default)]
    pub files: Vec<File>,
    #[serde(default)]
    pub ids: Vec<DocumentRef>,
    /// For documents in `files` that name none.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u64>,
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub author: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Few proxies first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryTerms>,
}

impl Default for DeleteRequest {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            ids: Vec::new(),
            namespace: default_namespace(),
            expect: None,
            dry_run: false,
            author: String::new(),
            message: None,
            canary: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentRef {
    /// As written in manifests, or as people type it (`svc`, `httproutes`).
    pub kind: String,
    #[serde(default = "default_namespace")]
    pub namespace: String,
    pub name: String,
}

/// `GET /api/v1/documents?kind=&namespace=`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Documents {
    /// The configuration's revision; what `expect` compares with.
    pub revision: u64,
    pub items: Vec<StoredDocument>,
}

/// `GET /api/v1/documents/{kind}/{namespace}/{name}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredDocument {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    /// When it was first applied; kept over updates.
    pub created_ms: u64,
    /// When it last changed.
    pub updated_ms: u64,
    /// Of its last change.
    pub revision: u64,
    /// From 1, one more per change.
    pub generation: u64,
    pub document: Value,
}

/// `GET /api/v1/status?revision=&wait_ms=`: how far a revision is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The newest that the control plane has compiled.
    pub revision: u64,
    /// Of the configuration alone; what `expect` compares with.
    pub config_revision: u64,
    /// The one this answer is about.
    pub target_revision: u64,
    /// Proxies known: connected to any control plane over the store, or registered.
    pub proxies: usize,
    /// Of them, how many have acknowledged everything of the target.
    pub applied: usize,
    /// From the change being stored to the last acknowledgement, in milliseconds; none while some are missing, or when
    /// the change is too long ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<f64>,
    /// Nodes that have not acknowledged yet and have not refused.
    pub waiting: Vec<String>,
    /// Registered sidecars that have been without a stream for longer than a reconnect takes.
    #[serde(default)]
    pub not_connected: Vec<String>,
    pub refused: Vec<Refusal>,
    pub quarantined: Vec<Quarantine>,
    /// Documents that are sound but not, or not wholly, in force.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// The control planes over the store, when there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub planes: Vec<PlaneView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_canary: Option<CanaryEnd>,
    pub held: Vec<Held>,
    /// Endpoints that active checks found unhealthy.
    #[serde(default)]
    pub unhealthy: usize,
    /// Certificates that were not renewed in time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late_certificates: Vec<LateCertificate>,
    /// Why changes are not accepted, when they are not (a full disk).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<String>,
    /// Services that register themselves in an etcd, where those are looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<ServicesFound>,
}

impl Status {
    /// Whether every connected proxy has the target, and none was left out because it is not compiled yet or because a
    /// control plane could not be asked.
    pub fn complete(&self) -> bool {
        self.applied + self.not_connected.len() >= self.proxies
            && self.revision >= self.target_revision
            && self.planes.iter().all(|plane| plane.error.is_none())
    }

    /// Whether waiting longer is of no use: every proxy has answered, or one refuses what the target brought. What one
    /// refused before says nothing about the others.
    pub fn settled(&self) -> bool {
        let refuses = |refusal: &Refusal| {
            refusal.since_revision >= self.target_revision && !self.waiting.contains(&refusal.node)
        };
        let is_answered = self.waiting.is_empty()
            && self.revision >= self.target_revision
            && self.planes.iter().all(|plane| plane.error.is_none());
        is_answered || self.refused.iter().any(refuses)
    }
}

/// A proxy said no (NACK) and keeps what it had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub node: String,
    /// Kind and name of the resource, such as `RDS outbound`.
    pub resource: String,
    /// The documents it can come from, as `<Kind>/<namespace>/<name>`, separated by `, `.
    pub rule: String,
    /// In the proxy's words.
    pub message: String,
    pub since_revision: u64,
}

/// A document that is stored but not in force; the last good version of it is, if there was one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// `<Kind>/<namespace>/<name>`, or the store's key when that is no document's.
    pub id: String,
    pub message: String,
    pub since_revision: u64,
}

/// A document that is stored and sound, but has no effect, or not all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `<Kind>/<namespace>/<name>`
    pub id: String,
    /// `unattached`, `conflicted` or `not in force`
    pub state: String,
    pub message: String,
    pub since_revision: u64,
}

/// One control plane over the store, and its share of a [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneView {
    pub name: String,
    pub admin: String,
    pub proxies: usize,
    pub applied: usize,
    /// Why its proxies are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An instance whose lease is over but which is still served, because too much of its service would go at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub namespace: String,
    pub service: String,
    pub id: String,
    pub since_ms: u64,
    pub reason: String,
}

/// `POST /api/v1/release`: what is held of a service is let go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    #[serde(default = "default_namespace")]
    pub namespace: String,
    pub service: String,
    /// Who, for the history.
    #[serde(default)]
    pub author: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseResponse {
    pub revision: u64,
    /// Ids of those that the control plane that was asked held; others let theirs go, too.
    pub released: Vec<String>,
}

/// `POST /api/v1/drain`: new sessions go elsewhere, or may come again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// None: whichever service has an instance of this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    pub instance: String,
    #[serde(default)]
    pub undo: bool,
    /// After this long the sessions that stay go, too; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// What then becomes of sessions in the directory: `move`, `release` or `none`; none: `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<String>,
    /// How many of them in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnects_per_second: Option<u32>,
    /// Who, for the history.
    #[serde(default)]
    pub author: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainResponse {
    pub revision: u64,
    pub namespace: String,
    pub service: String,
    pub id: String,
    /// In force from this revision on: `accepting`, `draining`, `not ready` or `drained`.
    pub traffic: String,
}

/// What is found under a prefix of an etcd, where services put keys of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesFound {
    pub etcd: String,
    pub prefix: String,
    pub services: usize,
    pub instances: usize,
    /// Keys that are no instance.
    pub ignored: usize,
    /// The first of those.
    pub problems: Vec<ServicesProblem>,
    /// Why nothing new is heard from it; what is known stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesProblem {
    /// Below the prefix.
    pub key: String,
    pub message: String,
}

/// `GET /api/v1/history?limit=`, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The configuration's revision now.
    pub revision: u64,
    pub entries: Vec<HistoryEntry>,
}

/// One transaction on the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// What `rollback --to` takes.
    pub revision: u64,
    pub sequence: u64,
    pub time_ms: u64,
    pub author: String,
    #[serde(default)]
    pub message: String,
    pub changes: Vec<HistoryChange>,
    /// `started`, `promoted` or `back` when it is a step of a canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    /// What a canary's few proxies got; in force nowhere else, so not among `changes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<HistoryChange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryChange {
    /// `<Kind>/<namespace>/<name>`
    pub id: String,
    /// None: it did not exist.
    #[serde(default)]
    pub before: Option<Value>,
    /// None: it was deleted.
    #[serde(default)]
    pub after: Option<Value>,
}

/// `POST /api/v1/rollback`: the configuration as of a revision becomes a new one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Everything as it was just after this revision; 0 is the empty configuration.
    pub to: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u64>,
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub author: String,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Few proxies first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryTerms>,
}

/// `GET /api/v1/proxies`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxies {
    pub revision: u64,
    pub items: Vec<Proxy>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    pub node: String,
    pub namespace: String,
    pub service: String,
    pub version: String,
    pub zone: String,
    pub instance: String,
    /// `phalanx` or `envoy`, with its version where it told one.
    pub agent: String,
    /// Where it connects from.
    pub peer: String,
    /// `delta` or `sotw`
    pub protocol: String,
    pub connected_ms: u64,
    /// What was last sent to it.
    pub target_revision: u64,
    /// What it has wholly acknowledged.
    pub acked_revision: u64,
    pub refusals: Vec<Refusal>,
    /// From its last report, 0 when it makes none.
    pub memory_bytes: u64,
    /// `IP:PORT` of its pages, where it runs a Gateway; those of others are told with their instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<String>,
    /// With `asks=1`: the resources that it asks for by name, where it gets no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks: Option<Vec<String>>,
    /// None: it came in plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<ProxyCertificate>,
}

/// `GET /api/v1/instances?service=&namespace=`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instances {
    pub revision: u64,
    pub items: Vec<InstanceView>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    pub namespace: String,
    pub service: String,
    pub id: String,
    pub version: String,
    pub zone: String,
    pub weight: u32,
    pub labels: std::collections::BTreeMap<String, String>,
    pub ports: Vec<PortView>,
    pub proxy_admin: String,
    /// `live`, or `held` when its lease is over but it is still served.
    pub state: String,
    /// Milliseconds left of its lease; 0 when held, or when another control plane keeps it.
    pub lease_ms: u64,
    /// Whether it gets any: `accepting`, `draining` (only sessions it has), `not ready` or `drained`.
    #[serde(default)]
    pub traffic: String,
    /// The operator who drains it, if one does.
    #[serde(default)]
    pub drained_by: String,
    /// That the session directory has there.
    #[serde(default)]
    pub sessions: u64,
    /// The control plane that keeps its lease.
    #[serde(default)]
    pub plane: String,
    /// Whether a proxy with its node id is connected.
    pub connected: bool,
    /// `registry`, or `etcd` when it put a key there by itself and has no sidecar.
    #[serde(default)]
    pub source: String,
    /// `unhealthy` when active checks say so, else `healthy`.
    #[serde(default)]
    pub health: String,
    /// Which service finds it unhealthy, and why.
    #[serde(default)]
    pub health_reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortView {
    pub name: String,
    pub number: u16,
    pub address: String,
    pub protocol: String,
}

/// `GET /api/v1/loads`: what stock data planes report to have sent where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loads {
    /// How often they are asked to report.
    pub interval_ms: u64,
    /// Data planes that report.
    pub streams: u64,
    pub reports: u64,
    /// Rows of reports beyond the bounds.
    pub dropped: u64,
    pub items: Vec<Load>,
    pub refused: Vec<LoadRefused>,
}

/// Requests to one cluster and locality, since it was first reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    pub cluster: String,
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
    pub issued: u64,
    pub succeeded: u64,
    pub failed: u64,
    /// Now.
    pub in_progress: u64,
    pub reporters: u64,
    /// Since the last report.
    pub age_ms: u64,
}

/// Requests that data planes turned away by themselves: circuit breakers, drop policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadRefused {
    pub cluster: String,
    pub requests: u64,
}

/// `GET /api/v1/edges?window_s=`: who talked to whom, seen from the callers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Edges {
    /// What the rates and quantiles cover.
    pub window_s: u64,
    pub edges: Vec<Edge>,
    /// The same edges since the control plane started; no quantiles.
    pub totals: Vec<Edge>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Edge {
    pub source_namespace: String,
    pub source: String,
    pub destination_namespace: String,
    pub destination: String,
    /// The `app` that the destination's Service selects, else its own name: what versions of one application share.
    #[serde(default)]
    pub destination_app: String,
    pub destination_version: String,
    /// `http`, `grpc` or `tcp`
    pub protocol: String,
    pub requests: u64,
    /// Per second of the window.
    pub rps: f64,
    pub failures: u64,
    /// 0 to 1; 1 when there were no requests.
    pub success: f64,
    /// Interpolated within the reported buckets; none without requests.
    #[serde(default)]
    pub p50_ms: Option<f64>,
    #[serde(default)]
    pub p99_ms: Option<f64>,
    pub attempts: u64,
    pub retries: u64,
    pub connect_failures: u64,
    pub ejections: u64,
    #[serde(default)]
    pub tcp_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_complete_only_for_what_is_compiled() {
        let status = Status {
            revision: 4,
            target_revision: 5,
            ..Status::default()
        };
        assert!(
            !status.complete() && !status.settled(),
            "nobody could have it yet"
        );
    }

    #[test]
    fn a_refusal_ends_waiting_unless_its_node_is_offered_something_newer() {
        let refusal = Refusal {
            node: "a".into(),
            ..Refusal::default()
        };
        let status = |waiting: &[&str]| Status {
            proxies: 2,
            waiting: waiting.iter().map(|node| (*node).to_owned()).collect(),
            refused: vec![refusal.clone()],
            ..Status::default()
        };
        assert!(status(&["b"]).settled());
        assert!(!status(&["a", "b"]).settled());
        let newer = |waiting: &[&str]| Status {
            revision: 5,
            target_revision: 5,
            ..status(waiting)
        };
        assert!(
            !newer(&["b"]).settled(),
            "what was refused before is no answer"
        );
        assert!(newer(&[]).settled(), "all have answered");
    }
}
