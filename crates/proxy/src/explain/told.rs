//! What is told of a request that somebody asks about: the answer's shape, as JSON has it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One sidecar's part of the way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// `outbound` or `inbound`.
    pub direction: String,
    /// Whose sidecar decides, `<namespace>/<service>/<instance>`.
    pub node: String,
    pub request: Head,
    /// In words, when it was refused at the door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// In the order in which they were tried, up to the one that was met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleTold>,
    /// Rules behind the one that was met.
    #[serde(default)]
    pub rules_behind: usize,
    /// None: it has no colour, and nothing here depends on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colour: Option<Coloured>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
    /// What was changed on the way through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
    /// Who gets copies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<Copies>,
    /// The likeliest first; their shares sum up to 100.
    pub outcomes: Vec<Outcome>,
    /// What the likeliest one sends on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Head>,
    /// What the sidecar at the other end says, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Box<Explanation>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Explanation {
    /// Whether some share of such requests is answered with an error by a proxy.
    pub fn is_error(&self) -> bool {
        self.outcomes.iter().any(Outcome::is_error)
            || self.next.as_ref().is_some_and(|next| next.is_error())
    }

    /// Where most of it ends, the other end's word included.
    pub fn verdict(&self) -> Option<&Outcome> {
        let own = self.outcomes.first()?;
        let next = self.next.as_ref().and_then(|next| next.verdict());
        match own.ends {
            Ends::Forward => Some(next.unwrap_or(own)),
            Ends::Answer => Some(own),
        }
    }
}

/// A request's head, in its canonical form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub method: String,
    pub authority: String,
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    pub headers: Vec<(String, String)>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// `<service>.<namespace>.svc.mesh:<port>`
    pub name: String,
    /// The names it is known by.
    pub domains: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleTold {
    /// `<Kind>/<namespace>/<name>/<rule's name or place>`
    pub name: String,
    /// `file:line` of its match, where files are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    pub met: bool,
    pub compared: Vec<Compared>,
    /// The rule as the sidecar has it, in the words of `/config_dump`.
    #[serde(default)]
    pub rule: Value,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    pub what: String,
    pub expected: String,
    pub found: Option<String>,
    pub holds: bool,
}

/// The colour that it has where rules see it, and whose endpoints it gets for that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coloured {
    /// `x-env`; none: it has no colour.
    pub colour: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_id: Option<String>,
    /// Colours that have rules of their own at this host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lanes: Vec<String>,
    /// None: it goes nowhere by a rule, or comes in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_by: Option<TakenBy>,
    /// In words, where it is not its lane that takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TakenBy {
    /// Instances of its colour.
    Lane,
    Baseline,
    /// A rule that names the colour itself.
    Rule,
    Nobody,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Authorization {
    /// `Off`, `Permissive` or `Strict`.
    pub mode: String,
    /// The caller's id; none: in plain text.
    pub caller: Option<String>,
    /// `allowed`, `denied`, `not allowed` or `unauthenticated`.
    pub decision: String,
    /// Which policy decided, where one did.
    pub policy: Option<String>,
    /// `file:line` of it, where files are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// How long and how often it is tried.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Of the whole exchange; none: without limit.
    pub request_timeout_ms: Option<u64>,
    /// Nobody wrote it, and it ends with the head of the answer.
    pub is_default: bool,
    pub attempt_timeout_ms: Option<u64>,
    /// Further attempts after the first.
    pub retries: u32,
    pub backoff_ms: u64,
    /// Without an answer for so long it is sent once more; none: such a request is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge_delay_ms: Option<u64>,
    /// How often at most.
    #[serde(default)]
    pub hedges: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// None: it does not exist.
    pub cluster: Option<String>,
    pub weight: u32,
    /// Of requests.
    pub share_percent: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Requests under way, and how many may be.
    #[serde(default)]
    pub requests: (u32, u32),
}

/// A mirror of the rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Copies {
    pub cluster: String,
    /// Of requests.
    pub share_percent: f64,
    /// Its answers are compared with the originals'.
    pub compared: bool,
    pub endpoints: usize,
    /// Of them; 0: copies go to nobody.
    pub working: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: String,
    #[serde(default)]
    pub instance: String,
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub zone: String,
    pub weight: u32,
    /// `healthy`, `draining` or `unhealthy`.
    pub health: String,
    pub ejected: bool,
    /// Of the baseline, behind the instances of the lane that the cluster is for.
    #[serde(default)]
    pub stands_in: bool,
    /// Called over mutual TLS.
    pub mutual_tls: bool,
    /// Of the picks for such a request, were all endpoints equally loaded.
    pub picked_percent: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ends {
    /// It is sent on.
    Forward,
    /// The proxy answers it itself.
    #[default]
    Answer,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub share_percent: f64,
    pub ends: Ends,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
}

impl Outcome {
    /// A redirect is none.
    pub fn is_error(&self) -> bool {
        self.ends == Ends::Answer && self.reason.is_some()
    }
}
