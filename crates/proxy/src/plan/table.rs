//! A route table with each rule's action compiled: header edits checked and encoded, weights summed, clusters numbered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use phalanx_model::matching::CompiledTable;
use phalanx_model::matching::canonical::{canonical_authority, canonical_path};
use phalanx_model::matching::pattern::PatternError;
use phalanx_model::name::ClusterName;
use phalanx_model::reason::Reason;
use phalanx_model::resource::{
    Action, Backend, Compare, Forward, HeaderEdit, Hedging, MILLION, Mirror, PathRewrite, Redirect,
    Rewrite, RouteTable, Rule, RuleMatch, VirtualHost,
};
use phalanx_relay::header::FieldError;
use phalanx_relay::{Checked, Field, HeaderList, names};

use super::cors::CorsPlan;
use super::key::KeyPlan;
use super::session::SessionPlan;
use crate::upstream::RetryPlan;

/// A table, accepted.
pub struct Table {
    rules: CompiledTable<RulePlan>,
    clusters: Box<[ClusterName]>,
    /// Since somebody looked; set by requests.
    used: AtomicBool,
}

/// What follows a match.
pub struct RulePlan {
    /// As the table names it; empty for what leads to the own application.
    pub name: Box<str>,
    pub request: Edits,
    pub response: Edits,
    pub action: ActionPlan,
}

#[allow(clippy::large_enum_variant, reason = "nearly all of them forward")]
pub enum ActionPlan {
    Forward(ForwardPlan),
    Redirect(RedirectPlan),
    Respond(Reason),
}

pub struct ForwardPlan {
    pub backends: Box<[BackendPlan]>,
    /// Sums of the backends' weights.
    cumulative: Box<[u32]>,
    pub authority: Option<Box<str>>,
    pub path: Option<PathRewrite>,
    /// Of the whole exchange.
    pub request_timeout_ms: Option<u64>,
    /// Of the whole exchange up to the answer's head, where the route says nothing.
    pub default_timeout: bool,
    pub attempt_timeout_ms: Option<u64>,
    pub retry: RetryPlan,
    /// What a request is kept together by, for clusters that go by keys.
    pub key: Option<KeyPlan>,
    pub mirrors: Box<[MirrorPlan]>,
    /// Answers of those are compared with the original's.
    pub compare: Option<Arc<Compare>>,
    pub session: Option<SessionPlan>,
    pub cors: Option<Box<CorsPlan>>,
    pub hedging: Option<Box<Hedging>>,
    /// Told of requests that don't say so themselves.
    pub priority: Option<Field>,
    /// For callers who speak JSON.
    pub transcoding: Option<std::sync::Arc<phalanx_transcode::Table>>,
}

/// Where copies of some requests go.
pub struct MirrorPlan {
    /// In [`Table::clusters`].
    pub cluster: usize,
    per_million: u32,
}

impl MirrorPlan {
    /// Whether this request is one of them.
    #[inline]
    pub fn takes(&self, rng: &mut fastrand::Rng) -> bool {
        self.per_million >= MILLION || rng.u32(0..MILLION) < self.per_million
    }
}

pub struct BackendPlan {
    /// In [`Table::clusters`]; none when the backend does not exist.
    pub cluster: Option<usize>,
    pub request: Edits,
    pub response: Edits,
}

pub struct RedirectPlan {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub port: Option<u16>,
    pub path: Option<PathRewrite>,
    pub status: u16,
}

/// A header edit that can be applied without a check.
#[derive(Default)]
pub struct Edits {
    remove: Box<[Field]>,
    set: Box<[Field]>,
    add: Box<[Field]>,
}

/// Checks and compiles.
///
/// # Errors
/// A sentence that names the rule; discovery refuses the table with it.
pub fn compile_table(table: &RouteTable) -> Result<Table, String> {
    let mut clusters = Clusters::default();
    let rules = CompiledTable::compile(table, |rule| RulePlan::compile(rule, &mut clusters))
        .map_err(|e| e.to_string())?;
    Ok(Table {
        rules,
        clusters: clusters.names.into(),
        used: AtomicBool::new(false),
    })
}

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error(transparent)]
    Header(#[from] FieldError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("header `{0}` belongs to the proxy and can't be edited")]
    OwnHeader(String),
    #[error("the rewritten path `{0}` is not canonical")]
    Path(String),
    #[error("the rewritten authority `{0}` is none")]
    Authority(String),
    #[error("the weights of the backends sum up to 0 or to more than {}", u32::MAX)]
    Weights,
    #[error("{0} is no status of a redirect")]
    RedirectStatus(u16),
}

impl Table {
    /// Stands for one that was refused, while there is none better: every request is answered with 503.
    ///
    /// # Errors
    /// None: it has nothing that could be refused.
    pub fn unusable(name: &str) -> Result<Self, String> {
        let rule = Rule {
            name: String::new(),
            matches: RuleMatch::default(),
            request_headers: HeaderEdit::default(),
            response_headers: HeaderEdit::default(),
            action: Action::Respond(Reason::NoHealthyUpstream),
        };
        let host = VirtualHost {
            name: name.to_owned(),
            domains: vec!["*".to_owned()],
            rules: vec![rule],
        };
        compile_table(&RouteTable {
            name: name.to_owned(),
            hosts: vec![host],
        })
    }

    pub fn rules(&self) -> &CompiledTable<RulePlan> {
        &self.rules
    }

    /// A request uses it. Cores share the flag, but write it only when it was taken.
    #[inline]
    pub fn touch(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a request used it since this was asked last.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// The clusters that rules name, by the numbers that [`BackendPlan::cluster`] holds.
    pub fn clusters(&self) -> &[ClusterName] {
        &self.clusters
    }
}

#[derive(Default)]
struct Clusters {
    names: Vec<ClusterName>,
    places: BTreeMap<ClusterName, usize>,
}

impl Clusters {
    fn place(&mut self, name: &ClusterName) -> usize {
        *self.places.entry(name.clone()).or_insert_with(|| {
            self.names.push(name.clone());
            self.names.len() - 1
        })
    }
}

impl RulePlan {
    fn compile(rule: &Rule, clusters: &mut Clusters) -> Result<Self, TableError> {
        Ok(Self {
            name: rule.name.as_str().into(),
            request: Edits::compile(&rule.request_headers)?,
            response: Edits::compile(&rule.response_headers)?,
            action: match &rule.action {
                Action::Forward(forward) => {
                    ActionPlan::Forward(ForwardPlan::compile(forward, clusters)?)
                }
                Action::Redirect(redirect) => {
                    ActionPlan::Redirect(RedirectPlan::compile(redirect)?)
                }
                Action::Respond(reason) => ActionPlan::Respond(*reason),
            },
        })
    }

    /// Everything goes to the application as it is. The caller's sidecar has the deadlines and retries.
    pub(super) fn inbound() -> Self {
        Self {
            name: Box::default(),
            request: Edits::default(),
            response: Edits::default(),
            action: ActionPlan::Forward(ForwardPlan::plain()),
        }
    }
}

impl ForwardPlan {
    /// Once, as it is, without a limit.
    pub fn plain() -> Self {
        Self {
            backends: Box::default(),
            cumulative: Box::default(),
            authority: None,
            path: None,
            request_timeout_ms: None,
            default_timeout: false,
            attempt_timeout_ms: None,
            retry: RetryPlan::none(),
            key: None,
            mirrors: Box::default(),
            compare: None,
            session: None,
            cors: None,
            hedging: None,
            priority: None,
            transcoding: None,
        }
    }

    /// How this request may be hedged: if it may be sent twice.
    pub fn hedging_of(&self, request: &Checked) -> Option<&Hedging> {
        let hedging = self.hedging.as_deref()?;
        let is_safe = match request.is_grpc() {
            true => hedging.allows_grpc(request.path()),
            false => request.method().is_idempotent(),
        };
        (is_safe && request.upgrade().is_none()).then_some(hedging)
    }

    fn compile(forward: &Forward, clusters: &mut Clusters) -> Result<Self, TableError> {
        let mut total = 0u32;
        let mut cumulative = Vec::with_capacity(forward.backends.len());
        for backend in &forward.backends {
            total = total
                .checked_add(backend.weight)
                .ok_or(TableError::Weights)?;
            cumulative.push(total);
        }
        if total == 0 {
            return Err(TableError::Weights);
        }
        let Rewrite { authority, path } = &forward.rewrite;
        let ms =
            |timeout: std::time::Duration| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        // Zero means without limit (GEP-1742).
        let limit = |timeout: Option<std::time::Duration>| timeout.map(ms).filter(|ms| *ms > 0);
        Ok(Self {
            backends: forward
                .backends
                .iter()
                .map(|b| BackendPlan::compile(b, clusters))
                .collect::<Result<_, _>>()?,
            cumulative: cumulative.into(),
            authority: authority.as_deref().map(check_authority).transpose()?,
            path: path.as_ref().map(check_rewrite).transpose()?,
            request_timeout_ms: limit(forward.request_timeout),
            default_timeout: forward.request_timeout.is_none(),
            attempt_timeout_ms: limit(forward.attempt_timeout),
            retry: RetryPlan::new(&forward.retry),
            key: forward.hash_on.as_ref().map(KeyPlan::new).transpose()?,
            mirrors: forward
                .mirrors
                .iter()
                .map(|mirror| MirrorPlan::compile(mirror, clusters))
                .collect(),
            compare: forward.compare.clone().map(Arc::new),
            session: forward.session.as_ref().map(SessionPlan::new).transpose()?,
            cors: forward
                .cors
                .as_ref()
                .map(|cors| CorsPlan::new(cors).map(Box::new))
                .transpose()?,
            hedging: forward.hedging.clone().map(Box::new),
            priority: forward
                .priority
                .map(|priority| Field::of(names::X_PHALANX_PRIORITY, priority.word())),
            transcoding: forward.transcoding.as_ref().map(|of| of.table().clone()),
        })
    }

    /// The backend by weight share.
    #[inline]
    pub fn choose(&self, rng: &mut fastrand::Rng) -> Option<&BackendPlan> {
        if let [only] = &*self.backends {
            return Some(only);
        }
        let ticket = rng.u32(0..*self.cumulative.last()?);
        self.backends
            .get(self.cumulative.partition_point(|sum| *sum <= ticket))
    }
}

impl MirrorPlan {
    fn compile(mirror: &Mirror, clusters: &mut Clusters) -> Self {
        Self {
            cluster: clusters.place(&mirror.cluster),
            per_million: mirror.per_million,
        }
    }
}

impl BackendPlan {
    fn compile(backend: &Backend, clusters: &mut Clusters) -> Result<Self, TableError> {
        Ok(Self {
            cluster: backend.cluster.as_ref().map(|name| clusters.place(name)),
            request: Edits::compile(&backend.request_headers)?,
            response: Edits::compile(&backend.response_headers)?,
        })
    }
}

impl RedirectPlan {
    fn compile(redirect: &Redirect) -> Result<Self, TableError> {
        if !matches!(redirect.status, 301 | 302 | 303 | 307 | 308) {
            return Err(TableError::RedirectStatus(redirect.status));
        }
        Ok(Self {
            scheme: redirect.scheme.clone(),
            hostname: redirect
                .hostname
                .as_deref()
                .map(check_authority)
                .transpose()?
                .map(Into::into),
            port: redirect.port,
            path: redirect.path.as_ref().map(check_rewrite).transpose()?,
            status: redirect.status,
        })
    }
}

fn check_authority(text: &str) -> Result<Box<str>, TableError> {
    canonical_authority(text)
        .map(|authority| authority.as_str().into())
        .map_err(|_| TableError::Authority(text.to_owned()))
}

fn check_rewrite(rewrite: &PathRewrite) -> Result<PathRewrite, TableError> {
    let canonical = |text: &String| {
        let absolute = if text.is_empty() { "/" } else { text.as_str() };
        canonical_path(absolute)
            .map(|path| path.into_owned())
            .map_err(|_| TableError::Path(text.clone()))
    };
    Ok(match rewrite {
        PathRewrite::Full(path) => PathRewrite::Full(canonical(path)?),
        PathRewrite::Prefix(path) => PathRewrite::Prefix(canonical(path)?),
    })
}

impl Edits {
    fn compile(edit: &HeaderEdit) -> Result<Self, TableError> {
        let fields = |pairs: &[(String, String)]| {
            pairs
                .iter()
                .map(|(name, value)| field(name, value))
                .collect::<Result<_, _>>()
        };
        Ok(Self {
            remove: edit
                .remove
                .iter()
                .map(|name| field(name, ""))
                .collect::<Result<_, _>>()?,
            set: fields(&edit.set)?,
            add: fields(&edit.add)?,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// All that an answer of our own gets by it.
    pub fn given(&self) -> Vec<Field> {
        self.set.iter().chain(&self.add).cloned().collect()
    }

    /// In the order remove, set, add.
    #[inline]
    pub fn apply(&self, headers: &mut HeaderList) {
        for field in &self.remove {
            headers.remove(field.name());
        }
        for field in &self.set {
            headers.set_field(field);
        }
        for field in &self.add {
            headers.push_field(field);
        }
    }
}

/// The path after a rewrite; none when a prefix is to be replaced but none was matched.
pub fn rewritten(rewrite: &PathRewrite, path: &str, prefix_len: Option<usize>) -> Option<String> {
    match rewrite {
        PathRewrite::Full(full) => Some(full.clone()),
        PathRewrite::Prefix(prefix) => {
            // A matched `/` is no segment: its slash belongs to the rest. A slash at the end of the path stays.
            let matched = path.get(..prefix_len?)?.trim_end_matches('/').len();
            let rest = path.get(matched..)?;
            Some(match prefix.trim_end_matches('/') {
                "" => format!("/{}", rest.trim_start_matches('/')),
                prefix => [prefix, rest].concat(),
            })
        }
    }
}

/// A field that a document may edit: not one that frames the message or speaks to the next hop.
fn field(name: &str, value: &str) -> Result<Field, TableError> {
    let field = Field::new(name, value)?;
    let own = OWN_HEADERS.contains(&field.name().as_str())
        || field.name().as_str().starts_with("x-phalanx-");
    if own {
        Err(TableError::OwnHeader(name.to_owned()))
    } else {
        Ok(field)
    }
}

const OWN_HEADERS: &[&str] = &[
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
