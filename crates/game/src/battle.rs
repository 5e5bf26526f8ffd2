//! Stateless actors: a fight is a pure function of its input, its seed and a version of the rules. An [`Executor`] runs
//! fights on threads of its own, outside the async runtime, and refuses by name what it can't do in time. What may be
//! disputed is recorded and replayed; new rules run beside the old ones before they count. No state of a player lives here.

mod admission;
mod affinity;
mod arena;
mod call;
mod clock;
mod context;
mod executor;
mod gradient;
mod job;
mod judge;
mod kind;
mod metrics;
mod quarantine;
mod queue;
mod record;
mod replay;
mod rules;
mod shadow;

/// What [`Context::arena`] is of.
pub use bumpalo;
pub use call::{CLASSES, Call, Class, SESSION_BYTES_MAX};
pub use context::{Context, rerun};
pub use executor::{ClassOptions, Drained, Executor, KINDS_MAX, Options, StartError};
pub use gradient::GradientOptions;
pub use job::{Fight, Fought};
pub use judge::{Judge, OUTCOMES_MAX, Verdict, judge};
pub use kind::{Kind, RegisterError};
pub use metrics::{End, Histogram, KindMetrics, Metrics};
pub use record::{Reader, Record, RecordError, Recorder, RecorderOptions, RecorderState};
pub use replay::{Difference, Replayed, digest, prove, replay};
pub use rules::{Pinned, Rollback, RulesError, VERSIONS_MAX, VersionView};
pub use shadow::{ShadowDifference, ShadowOptions, ShadowReport};

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A kind of battle. What `fight` returns follows from `input`, the context's dice, rules and fuel alone: `&self` and the
/// rules are shared by all threads and must not change (no `Cell`, no lock, no clock, no iteration over a `HashMap`).
pub trait Battle: Send + Sync + 'static {
    type Input: Send + Sync + 'static;
    type Output: Send + 'static;
    /// One version of the rules, as designers publish it.
    type Rules: Send + Sync + 'static;

    /// How many classes [`Battle::outcome`] tells apart, at most [`OUTCOMES_MAX`]; 0: outcomes are not counted.
    const OUTCOMES: usize = 0;

    /// Calls [`Context::check`] in its loops, which is how a deadline or a caller that left reaches it.
    fn fight(
        &self,
        cx: &mut Context<'_, Self::Rules>,
        input: &Self::Input,
    ) -> Result<Self::Output, Reject>;

    /// Canonical bytes: equal inputs give equal bytes, on every machine. Read again by [`Battle::read_input`].
    fn write_input(input: &Self::Input, out: &mut Vec<u8>);

    /// `None` for bytes that [`Battle::write_input`] can't have written.
    fn read_input(bytes: &[u8]) -> Option<Self::Input>;

    /// Canonical bytes of a result, which are compared by their hash ([`digest`]).
    fn write_output(output: &Self::Output, out: &mut Vec<u8>);

    /// The class of a result, below [`Battle::OUTCOMES`] (say: attacker won, defender won, draw), for [`Judge`].
    fn outcome(_output: &Self::Output) -> usize {
        0
    }
}

/// Why there is no result. Everything that is submitted ends in a result or in one of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// More work than can be done in time; the same call is welcome after the wait.
    #[error("overloaded, try again in {retry_after:?}")]
    Overloaded { retry_after: Duration },
    #[error("the deadline passed {stage}")]
    DeadlinePassed { stage: Stage },
    /// The caller left.
    #[error("cancelled by the caller")]
    Cancelled,
    /// The call's fuel, in operations, was not enough. Follows from the input, so that a replay ends the same way.
    #[error("more than {fuel} operations")]
    Exhausted { fuel: u64 },
    /// The battle panicked; `hash` names the input under these rules.
    #[error("the battle panicked on input {hash:016x}")]
    Panicked { hash: u64 },
    /// This input panicked before, twice or more, and is not tried again for a while.
    #[error("input {hash:016x} is in quarantine: it panicked before")]
    Poison { hash: u64 },
    /// This process is about to end; another one will answer.
    #[error("the executor is draining")]
    Draining,
    #[error("rules version {version} is not there (any more)")]
    NoSuchRules { version: u64 },
    /// The battle's own: the input breaks the rules of the game.
    #[error("foul: {0}")]
    Foul(&'static str),
}

/// Where a deadline was found to be missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// At the door: waiting and fighting would take longer than what remains.
    Enqueue,
    /// When its turn came.
    Dequeue,
    /// While it fought, or when it had.
    Fight,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Enqueue => "before it could be reached",
            Self::Dequeue => "in the queue",
            Self::Fight => "in the fight",
        })
    }
}

/// Whoever panicked under one of these locks left nothing half-done.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
