//! Changes that few proxies get first.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Under which conditions a change goes on to all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryTerms {
    /// A number of proxies (`3`), or a share of those that the change concerns (`10%`).
    pub first: String,
    /// How long all of them have to bear it.
    pub watch_ms: u64,
    /// Share of failed requests, 0 to 1, that may be added to what others have, and to what they had before.
    pub max_error_rate: f64,
    /// Failed requests over all of them that end it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_errors: Option<u64>,
}

impl Default for CanaryTerms {
    fn default() -> Self {
        Self {
            first: "1".to_owned(),
            watch_ms: 30_000,
            max_error_rate: 0.05,
            max_errors: None,
        }
    }
}

/// How many proxies come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Count(usize),
    Percent(u32),
}

impl Share {
    /// Of `all`; at least one, at most all.
    pub fn of(self, all: usize) -> usize {
        let count = match self {
            Self::Count(count) => count,
            Self::Percent(percent) => (all * percent as usize).div_ceil(100),
        };
        count.clamp(1, all.max(1))
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is neither a number of proxies (3) nor a share of them (1% to 100%)")
        };
        match text.strip_suffix('%') {
            Some(percent) => percent
                .parse()
                .ok()
                .filter(|percent| (1..=100).contains(percent))
                .map(Self::Percent),
            None => text
                .parse()
                .ok()
                .filter(|count| *count > 0)
                .map(Self::Count),
        }
        .ok_or_else(wrong)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Ended requests, and how many of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub requests: u64,
    pub failures: u64,
}

/// A staged change and how its proxies bear it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// Of the history entry that started it.
    pub sequence: u64,
    pub revision: u64,
    pub author: String,
    #[serde(default)]
    pub message: String,
    pub started_ms: u64,
    pub watch_ms: u64,
    pub max_error_rate: f64,
    #[serde(default)]
    pub max_errors: Option<u64>,
    /// The documents, with `+`, `~` or `-` before each.
    pub changes: Vec<String>,
    /// How many proxies the change concerns; `nodes` are the first of them.
    pub concerned: usize,
    /// `sending` until all of `nodes` have it, then `watching`.
    pub stage: String,
    pub applied: usize,
    /// When it goes on to all, if nothing comes up.
    #[serde(default)]
    pub until_ms: Option<u64>,
    pub nodes: Vec<CanaryNode>,
    /// What all other proxies saw meanwhile.
    pub others: Traffic,
    /// What this control plane could not find out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryNode {
    pub node: String,
    /// `applied`, `waiting`, `refused` or `not connected`
    pub state: String,
    #[serde(default)]
    pub message: String,
    /// Since it has the change; as it reports it, so nothing from a stock Envoy.
    pub traffic: Traffic,
    /// Of the last minute before.
    pub before: Traffic,
}

/// How a canary ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryEnd {
    pub sequence: u64,
    /// `promoted` or `back`
    pub stage: String,
    pub reason: String,
    /// `phalanx` when nobody decided by hand.
    pub author: String,
    pub time_ms: u64,
}

/// `GET /api/v1/canary`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CanaryStatus {
    #[serde(default)]
    pub current: Option<Canary>,
    #[serde(default)]
    pub last: Option<CanaryEnd>,
}

/// `POST /api/v1/canary`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryDecision {
    /// `promote` or `abort`
    pub decision: String,
    #[serde(default)]
    pub author: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// `GET /api/v1/canary/evidence`: what one control plane saw, for the others over its store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryEvidence {
    /// Of the canary; 0 when it knows of none.
    pub sequence: u64,
    /// Only those connected here.
    pub nodes: Vec<NodeEvidence>,
    pub others: BTreeMap<String, Traffic>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEvidence {
    pub node: String,
    pub applied: bool,
    /// Why not, in its own words.
    pub refused: Vec<String>,
    /// By destination, since it has the change.
    pub traffic: BTreeMap<String, Traffic>,
    /// By destination, in the last minute before.
    pub before: BTreeMap<String, Traffic>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_count_or_a_percentage() {
        assert_eq!("3".parse::<Share>().map(|s| s.of(2)), Ok(2));
        assert_eq!("10%".parse::<Share>().map(|s| s.of(25)), Ok(3));
        assert_eq!("1%".parse::<Share>().map(|s| s.of(0)), Ok(1));
        for wrong in ["", "0", "0%", "101%", "-1", "half", "5 %"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
