//! Rollout: how a new version takes over from the old one, in steps that are judged by what callers see.

use std::time::Duration;

use super::{DocumentId, Meta};
use crate::name::ServiceName;

/// `phalanx.dev/v1alpha1` Rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    pub meta: Meta,
    /// An HTTPRoute or a GRPCRoute of the same namespace.
    pub target: DocumentId,
    /// Both are backends of the target; never the same.
    pub stable: ServiceName,
    pub canary: ServiceName,
    /// At least one.
    pub steps: Vec<Step>,
    pub analysis: Analysis,
    pub boundary: Boundary,
    pub on_failure: OnFailure,
    /// How much longer than it has to last a step may take.
    pub progress_deadline: Duration,
}

/// What holds from now on, and for how long at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub action: StepAction,
    /// None: a pause that somebody has to end.
    pub hold: Option<Duration>,
    /// Instead of the analysis'.
    pub min_requests: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepAction {
    /// The new version gets copies, and nobody hears its answers.
    Mirror {
        per_million: u32,
        /// Its answers are compared with those that callers get.
        compare: bool,
    },
    /// Requests of this colour go to the new version, all others to the old one.
    Lane(String),
    /// So many of a hundred requests go to the new version. 0 to 100.
    Weight(u32),
    /// As it was, until somebody resumes it or its time has passed.
    Pause,
}

/// What the new version has to bear out, measured again and again.
#[derive(Clone, Debug, PartialEq)]
pub struct Analysis {
    /// Of one measurement, or longer until there were enough requests.
    pub interval: Duration,
    /// Of 100,000 requests, how many have to succeed.
    pub success_min: u32,
    pub latency: Option<LatencyGuard>,
    /// Of 100,000 compared answers, how many may differ. None: they are not judged.
    pub different_max: Option<u32>,
    pub custom: Vec<CustomGuard>,
    /// A measurement with fewer says nothing, and a step without a measurement does not end.
    pub min_requests: u32,
    /// So many bad measurements in one step are a failure. At least 1.
    pub failures: u32,
}

/// One or both are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyGuard {
    pub p99_max: Option<Duration>,
    /// In thousandths: the new version's 99th percentile against that of the old one.
    pub ratio_max: Option<u32>,
}

/// The answer of a Prometheus.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomGuard {
    pub name: String,
    /// `HOST:PORT`, spoken to over plain HTTP.
    pub address: String,
    pub query: String,
    /// One of both, or both.
    pub min: Option<f64>,
    pub max: Option<f64>,
}

/// What happens to sessions when weights change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Boundary {
    /// A version without weight has no sessions either.
    #[default]
    None,
    /// Each ends on the version where it began.
    Match,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    #[default]
    Rollback,
    Pause,
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            success_min: 99_000,
            latency: None,
            different_max: None,
            custom: Vec::new(),
            min_requests: 50,
            failures: 1,
        }
    }
}

/// Of [`Analysis::success_min`] and [`Analysis::different_max`].
pub const SHARE_WHOLE: u32 = 100_000;
