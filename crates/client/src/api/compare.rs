//! Mirrors compared with originals, as the admin API shows them.

use serde::{Deserialize, Serialize};

/// `GET /api/v1/comparisons?route=`: what mirrors answered, beside what the originals did; since the control plane started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparisons {
    pub items: Vec<Comparison>,
}

/// One rule and one of its mirrors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// `<kind>/<namespace>/<name>`
    pub route: String,
    /// Its name, or its place from 0.
    pub rule: String,
    /// The cluster that got the copies.
    pub mirror: String,
    /// Pairs of whole answers.
    pub compared: u64,
    pub different: u64,
    /// Pairs of which one never came, or not to its end.
    pub unanswered: u64,
    /// Of the different: how many in what. One may differ in several ways.
    pub status: u64,
    pub header: u64,
    pub body: u64,
    /// Means, of those compared.
    pub original_ms: f64,
    pub copy_ms: f64,
    /// The last that differed, the oldest first.
    pub samples: Vec<ComparedSample>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedSample {
    /// Unix.
    pub time_ms: u64,
    /// Without the query.
    pub path: String,
    pub differences: Vec<ComparedDifference>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedDifference {
    /// `status`, `header` or `body`.
    pub kind: String,
    /// A header's name, or a path in JSON.
    pub at: String,
    pub original: String,
    pub copy: String,
}
