//! What an operator may choose, and what is refused at the start.

use std::io;
use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use crate::battle::GradientOptions;
use crate::battle::admission::LIMIT_MAX;
use crate::battle::call::{CLASSES, Class};

/// Threads of one executor.
const CORES_MAX: usize = 256;
/// Fights that one core's lane may hold.
const QUEUE_MAX: usize = 65_536;

/// How an executor works. The default fits a server that has the machine to itself.
#[derive(Clone, Debug)]
pub struct Options {
    /// First part of the threads' names.
    pub name: &'static str,
    /// Threads that fight, 256 at most; 0: as many as the process may use processors.
    pub cores: usize,
    /// Whether each thread stays on one processor. Off: another process' bursts would hit one core's queue only.
    pub pin: bool,
    /// Levels of niceness of these threads, 0 to 19. Above 0 the async runtime's threads go first when both want a processor:
    /// what arrives is taken in, and what is done is answered, while fights compute.
    pub nice: u8,
    /// By [`Class`]: live, sweep, check.
    pub classes: [ClassOptions; CLASSES],
    /// How long the oldest of a queue must have waited past its target before the newest come first. 100 ms
    pub interval: Duration,
    /// The deadline of calls that name none, and the longest that others get. 10 s
    pub longest: Duration,
    /// Operations between two looks at clock and caller ([`crate::battle::Context::check`]). 1,024
    pub check_every: u32,
    /// Bounds of the fights in flight; `None`: 64 per core to begin with, 2 per core at least, 2,048 per core at most.
    pub limit: Option<GradientOptions>,
    /// Bytes that one fight may add to what its core's arena holds; one that wants more panics. Half of it is there whatever
    /// came before; an arena is never larger than twice as much. 64 MiB
    pub arena_max: usize,
    /// Fights after which an arena shrinks to what they needed. 1,024
    pub arena_trim_calls: u32,
    /// Inputs that panicked which are remembered at most. 1,024
    pub quarantine_max: usize,
    /// How long they are. 10 min
    pub quarantine_forget: Duration,
}

/// One class of priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassOptions {
    /// Its part of each core when all classes have work, relative to the others'.
    pub share: u32,
    /// How long a fight may wait before that counts as overload.
    pub target: Duration,
    /// Fights that may wait, per core.
    pub queue_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        let class = |share, target_ms| ClassOptions {
            share,
            target: Duration::from_millis(target_ms),
            queue_max: 1_024,
        };
        Self {
            name: "battle",
            cores: 0,
            pin: false,
            nice: 0,
            classes: [class(70, 5), class(20, 50), class(10, 200)],
            interval: Duration::from_millis(100),
            longest: Duration::from_secs(10),
            check_every: 1_024,
            limit: None,
            arena_max: 64 << 20,
            arena_trim_calls: 1_024,
            quarantine_max: 1_024,
            quarantine_forget: Duration::from_secs(600),
        }
    }
}

/// Why an executor didn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// More than 256.
    #[error("{cores} cores, at most {CORES_MAX}")]
    Cores { cores: usize },
    /// A class without a share would never be fought.
    #[error("class {class} has a share of 0")]
    Share { class: &'static str },
    /// `queue_max` out of bounds.
    #[error("class {class} may queue {max} fights, it is 1 to {QUEUE_MAX}")]
    Queue { class: &'static str, max: usize },
    /// Bounds of [`GradientOptions`] that don't ascend, or are too large.
    #[error(
        "the limit of fights in flight is {min} to {max}, it must ascend within 1 to {LIMIT_MAX}"
    )]
    Limit { min: u32, max: u32 },
    /// Every call would be late.
    #[error("the longest deadline is 0")]
    Longest,
    /// The system refused.
    #[error("a thread can't be started")]
    Thread(#[source] io::Error),
    /// [`Options::pin`] on a system that doesn't do that.
    #[error("a thread can't be tied to a processor")]
    Pin(#[source] io::Error),
}

impl Options {
    /// With everything that was left open decided.
    pub(super) fn checked(mut self) -> Result<Self, StartError> {
        if self.cores == 0 {
            let all = thread::available_parallelism().map_or(1, NonZeroUsize::get);
            self.cores = all.min(CORES_MAX);
        }
        if self.cores > CORES_MAX {
            return Err(StartError::Cores { cores: self.cores });
        }
        for (class, options) in Class::ALL.into_iter().zip(&self.classes) {
            let (class, max) = (class.name(), options.queue_max);
            if options.share == 0 {
                return Err(StartError::Share { class });
            }
            if max == 0 || max > QUEUE_MAX {
                return Err(StartError::Queue { class, max });
            }
        }
        if self.longest.is_zero() {
            return Err(StartError::Longest);
        }
        let cores = self.cores as u32;
        let limit = *self.limit.get_or_insert(GradientOptions {
            initial: (64 * cores).min(LIMIT_MAX),
            min: 2 * cores,
            max: (2_048 * cores).min(LIMIT_MAX),
        });
        if limit.min == 0 || limit.min > limit.max || limit.max > LIMIT_MAX {
            let GradientOptions { min, max, .. } = limit;
            return Err(StartError::Limit { min, max });
        }
        Ok(self)
    }
}
