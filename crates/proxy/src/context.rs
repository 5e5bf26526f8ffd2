//! What the stages know of one request beside its head: where it came in, and what earlier stages decided.

use phalanx_model::name::Direction;

use crate::plan::table::{BackendPlan, ForwardPlan, RulePlan};

/// Made per request; borrows from the plan that the request started with.
pub struct StreamContext<'p> {
    pub direction: Direction,
    pub rng: fastrand::Rng,
    /// Chosen by `route`.
    pub rule: Option<&'p RulePlan>,
    pub forward: Option<&'p ForwardPlan>,
    pub backend: Option<&'p BackendPlan>,
    /// In [`crate::plan::Plan::clusters`].
    pub cluster: Option<usize>,
    /// Length of the path prefix that the rule matched.
    pub prefix_len: Option<usize>,
    /// The application port that the caller's sidecar asked for.
    pub asked_port: Option<u16>,
}

impl StreamContext<'_> {
    pub fn new(direction: Direction, rng: fastrand::Rng) -> Self {
        Self {
            direction,
            rng,
            rule: None,
            forward: None,
            backend: None,
            cluster: None,
            prefix_len: None,
            asked_port: None,
        }
    }
}
