//! Sessions and drains.

use serde::{Deserialize, Serialize};

use super::default_namespace;

/// Of a claim, a move or a release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    #[serde(default = "default_namespace")]
    pub namespace: String,
    pub service: String,
    pub key: String,
    /// Who claims it, or to whom it is moved.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// The epoch that it must have; 0: of a claim, that nobody else has it; else whatever it is.
    #[serde(default)]
    pub expect: u64,
    /// Of a claim; 0: until it is released.
    #[serde(default)]
    pub ttl_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    pub namespace: String,
    pub service: String,
    pub key: String,
    pub instance: String,
    /// Grows with each change of hands.
    pub epoch: u64,
    /// 0: until it is released.
    pub ttl_ms: u64,
    /// The instance is not registered.
    pub away: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionPage {
    pub items: Vec<SessionView>,
    pub more: bool,
    /// Of all that was asked for.
    pub count: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionAnswer {
    /// As it is now; after a release, as it was; none: nobody had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionView>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drains {
    pub items: Vec<DrainView>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    pub namespace: String,
    pub service: String,
    pub id: String,
    /// Empty when it is not registered.
    pub traffic: String,
    pub author: String,
    /// Unix milliseconds.
    pub since_ms: u64,
    /// Until its deadline; none: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
    /// That the session directory has there still.
    pub sessions: u64,
    /// `none`, `move` or `release`.
    pub handover: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnects_per_second: Option<u32>,
}
