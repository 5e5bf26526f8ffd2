//! What control planes ask each other about instances that fell silent.

use serde::{Deserialize, Serialize};

/// `POST /api/v1/refused`: from one control plane to another, about what the guard holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedRequest {
    /// At most [`ENDPOINTS_MAX`].
    pub endpoints: Vec<SilentEndpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SilentEndpoint {
    /// `ip:port`
    pub address: String,
    /// How long ago it was heard of last.
    pub silent_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedResponse {
    /// Addresses where a caller was refused since then.
    pub refused: Vec<String>,
}

/// Of one question.
pub const ENDPOINTS_MAX: usize = 4096;
