//! What a policy sees and what it says: a [`Sample`] of the pool and the time go in, a wanted size and its reason come
//! out. Pure: a policy reads no clock, no metric store and no other replica, so that the simulator runs the very code
//! that runs live.

use std::time::Duration;

use thiserror::Error;

/// More workers than this are refused as a bound: each is a task, and a mistyped bound shouldn't be found out by memory.
pub const WORKERS_MAX: u32 = 100_000;

/// How often a policy is asked, live and in the simulator.
pub const TICK: Duration = Duration::from_millis(250);

/// Decides how many workers there should be.
pub trait Policy: Send {
    /// Asked every [`TICK`] or so, with a `now` (since any fixed start) that doesn't go back. The size that comes back is
    /// within [`bounds`](Policy::bounds) whatever the sample says. If it panics, the pool keeps its size.
    fn wanted(&mut self, sample: &Sample, now: Duration) -> Wanted;

    fn bounds(&self) -> Bounds;

    /// How often the policy acts. A pool starts to ask after a random part of it, so that replicas that were started
    /// together don't act together.
    fn every(&self) -> Duration {
        TICK
    }
}

impl<P: Policy + ?Sized> Policy for Box<P> {
    fn wanted(&mut self, sample: &Sample, now: Duration) -> Wanted {
        (**self).wanted(sample, now)
    }

    fn bounds(&self) -> Bounds {
        (**self).bounds()
    }

    fn every(&self) -> Duration {
        (**self).every()
    }
}

/// A pool as it is now, measured in its own process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Jobs that wait for a worker.
    pub queue: u64,
    /// P95 of waiting plus service of the jobs that ended in the last 10 s, in ms; 0 if none did.
    pub latency_p95_ms: f64,
    /// Jobs per second that arrived since the sample before, refused ones included.
    pub arrival_rate: f64,
    /// Jobs that ended since the sample before.
    pub ended: u64,
    /// Their mean service time in seconds, waiting not included; not looked at if none ended.
    pub service_s: f64,
    /// Workers that have a job.
    pub busy: u32,
    /// Workers as last ordered: those that only finish their last job don't count.
    pub size: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub size: u32,
    pub reason: Reason,
}

/// Why the size is what it is. Those that [change](Reason::changes) the size come with another size than the sample's,
/// the others with the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing calls for another size.
    Steady,
    /// The policy doesn't act at this moment.
    NotYet,
    /// Fewer would do now; the most that was wanted in the hold, or a panic, keeps the size.
    Held,
    /// Fewer would do; the difference is within the dead band.
    Band,
    /// More are wanted than the bounds allow, or than may be started in this second.
    Capped,
    /// The rule's `int()` gave the size that there was.
    Rounded,
    /// The rule of two thresholds: queue and latency above their thresholds.
    Overload,
    /// The rule of two thresholds: queue and latency below their thresholds.
    Idle,
    /// More work arrives than the size is staffed for.
    Load,
    /// The same, so suddenly that the short average overruled the long one.
    Surge,
    /// More jobs wait than chance explains.
    Backlog,
    /// The calendar says that load is coming.
    Expected,
    /// Fewer are enough, and were for the whole hold.
    Released,
    /// The size was outside the bounds.
    Bounds,
}

impl Reason {
    pub const ALL: [Self; 14] = [
        Self::Steady,
        Self::NotYet,
        Self::Held,
        Self::Band,
        Self::Capped,
        Self::Rounded,
        Self::Overload,
        Self::Idle,
        Self::Load,
        Self::Surge,
        Self::Backlog,
        Self::Expected,
        Self::Released,
        Self::Bounds,
    ];

    pub fn changes(self) -> bool {
        !matches!(
            self,
            Self::Steady | Self::NotYet | Self::Held | Self::Band | Self::Capped | Self::Rounded
        )
    }

    /// As metrics and drawings write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::NotYet => "not_yet",
            Self::Held => "held",
            Self::Band => "band",
            Self::Capped => "capped",
            Self::Rounded => "rounded",
            Self::Overload => "overload",
            Self::Idle => "idle",
            Self::Load => "load",
            Self::Surge => "surge",
            Self::Backlog => "backlog",
            Self::Expected => "expected",
            Self::Released => "released",
            Self::Bounds => "bounds",
        }
    }
}

/// Least and most workers, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    min: u32,
    max: u32,
}

impl Default for Bounds {
    /// 10 to 200.
    fn default() -> Self {
        Self { min: 10, max: 200 }
    }
}

impl Bounds {
    pub fn try_new(min: u32, max: u32) -> Result<Self, BadPolicy> {
        if min == 0 || min > max || max > WORKERS_MAX {
            return Err(BadPolicy::Bounds { min, max });
        }
        Ok(Self { min, max })
    }

    pub fn min(self) -> u32 {
        self.min
    }

    pub fn max(self) -> u32 {
        self.max
    }

    pub fn clamp(self, size: u32) -> u32 {
        size.clamp(self.min, self.max)
    }
}

#[derive(Debug, Error, PartialEq)]
pub enum BadPolicy {
    #[error(
        "{min} to {max} workers: at least 1, at most {WORKERS_MAX}, and no fewer at most than at least"
    )]
    Bounds { min: u32, max: u32 },
    #[error("staffing option `{option}` is {value}; it takes {takes}")]
    Option {
        option: &'static str,
        value: f64,
        takes: &'static str,
    },
    #[error("{count} expected events; at most {max} are kept")]
    Events { count: usize, max: usize },
}

/// A number that a policy can reckon with: what isn't one, or is negative, counts as 0, the infinite as a lot.
pub(super) fn sane(value: f64) -> f64 {
    const A_LOT: f64 = 1e12;
    if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, A_LOT)
    }
}
