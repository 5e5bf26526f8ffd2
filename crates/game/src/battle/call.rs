//! What a caller says about one fight besides its input.

use std::sync::Arc;
use std::time::Duration;

/// A session's name is at most so long, in bytes.
pub const SESSION_BYTES_MAX: usize = 256;
/// How many classes of priority there are.
pub const CLASSES: usize = 3;

/// Whose work comes first when there is more than can be done. Each class has a share; what it leaves is lent to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Class {
    /// A player waits for it.
    #[default]
    Live,
    /// Sweeps, auto-battles: somebody will look later.
    Sweep,
    /// Replays and checks: nobody waits.
    Check,
}

impl Class {
    pub const ALL: [Self; CLASSES] = [Self::Live, Self::Sweep, Self::Check];

    /// As in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Sweep => "sweep",
            Self::Check => "check",
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// Seed, class, deadline, session and fuel of one fight.
#[derive(Clone, Debug)]
pub struct Call {
    pub(crate) seed: u64,
    pub(crate) fuel: u64,
    pub(crate) within: Option<Duration>,
    pub(crate) session: Option<Arc<str>>,
    pub(crate) class: Class,
}

impl Call {
    /// A live fight with this seed, the executor's longest deadline, no session and unlimited fuel.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            fuel: u64::MAX,
            within: None,
            session: None,
            class: Class::Live,
        }
    }

    /// What remains of the caller's time budget, as it travels with a request (`grpc-timeout`).
    pub fn within(mut self, budget: Duration) -> Self {
        self.within = Some(budget);
        self
    }

    pub fn class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// The session that the fight belongs to; refused at submission past [`SESSION_BYTES_MAX`] bytes.
    pub fn session(mut self, session: impl Into<Arc<str>>) -> Self {
        self.session = Some(session.into());
        self
    }

    /// At most so many operations, as the battle counts them with [`super::Context::check`] and `spend`.
    pub fn fuel(mut self, operations: u64) -> Self {
        self.fuel = operations;
        self
    }
}
