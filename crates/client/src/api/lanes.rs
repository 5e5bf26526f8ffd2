//! Lanes, as the admin API shows them.

use serde::{Deserialize, Serialize};

/// `GET /api/v1/lanes?colour=`: the lanes in force, and which services have instances in them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneViews {
    pub revision: u64,
    pub items: Vec<LaneView>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneView {
    pub colour: String,
    /// Whose services it is for; `phalanx-system`: everybody's.
    pub namespace: String,
    /// `ColourPolicy/<namespace>/<name>`
    pub policy: String,
    /// `Baseline` or `Refuse`.
    pub fallback: String,
    /// Those that have it.
    pub services: Vec<LaneService>,
}

/// One service's part of a lane. Requests are those of all callers that report here, since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneService {
    pub namespace: String,
    pub service: String,
    /// Of the lane, and how many of them are healthy.
    pub endpoints: usize,
    pub healthy: usize,
    /// Requests of the colour that the lane took.
    pub requests: u64,
    /// Those that the baseline took, because nobody of the lane worked.
    pub fallbacks: u64,
    /// Those that nobody took.
    pub refused: u64,
}
