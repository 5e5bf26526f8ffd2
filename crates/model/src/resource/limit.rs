//! What a sidecar lets through to its own application: rate limits, injected faults, and what goes first when there is too
//! much. Part of the rules of its inbound listener, so that all callers count.

use std::time::Duration;

use super::HeaderMatch;

/// One BackendPolicy's word. Where several policies lead to one port, each of them holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `BackendPolicy/<namespace>/<name>`: where it came from, and under what it is counted.
    pub policy: String,
    /// Of each sidecar, over all of its callers and cores.
    pub local: Option<Rate>,
    /// Of all sidecars together.
    pub global: Option<GlobalLimit>,
    /// In their order; each by its own chance.
    pub faults: Vec<Fault>,
    pub overload: Option<Overload>,
    /// Where the instances are asked for their health: neither limited nor shed, as gRPC's own health service never is.
    pub probe: Option<String>,
}

impl Limits {
    pub fn is_empty(&self) -> bool {
        let Self {
            policy: _,
            local,
            global,
            faults,
            overload,
            probe: _,
        } = self;
        local.is_none() && global.is_none() && faults.is_empty() && overload.is_none()
    }
}

/// `requests` per `per` in the long run, and at most `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// At least 1.
    pub requests: u32,
    /// 50 ms to 24 h.
    pub per: Duration,
    /// At least 1.
    pub burst: u32,
}

impl Rate {
    /// How long one request takes to come back, in ns; at least 1.
    pub fn interval_ns(&self) -> u64 {
        let per = u64::try_from(self.per.as_nanos()).unwrap_or(u64::MAX);
        (per / u64::from(self.requests.max(1))).max(1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalLimit {
    pub rate: Rate,
    pub by: LimitKey,
    /// What holds while the control plane has nothing to say: nothing is let through; else each sidecar keeps the whole
    /// limit by itself.
    pub closed: bool,
}

/// What has a limit of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LimitKey {
    /// All requests share one.
    #[default]
    All,
    /// Each value of this header (lower case); requests without it share one.
    Header(String),
    /// Each service that calls, by its certificate; callers without one share one.
    Caller,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub effect: FaultEffect,
    /// Of 100,000 requests.
    pub share: u32,
    /// All of these; none: every request.
    pub headers: Vec<HeaderMatch>,
}

/// All requests of a [`Fault::share`].
pub const SHARE_WHOLE: u32 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEffect {
    Delay(Duration),
    /// Answered with this status; gRPC requests with the code that belongs to it.
    Status(u16),
    /// Answered with this code; other requests than gRPC's are not meant.
    Grpc(u8),
}

/// How a sidecar judges its load, and what it refuses first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overload {
    /// Between these the limit of requests under way is found by their latency.
    pub min_in_flight: u32,
    pub max_in_flight: u32,
    /// How late the sidecar's own loops may be.
    pub queue_delay: Duration,
    /// The first that matches.
    pub priorities: Vec<PriorityRule>,
    /// Of a request that no rule matches.
    pub default: Priority,
}

impl Default for Overload {
    fn default() -> Self {
        Self {
            min_in_flight: 8,
            max_in_flight: 1024,
            queue_delay: Duration::from_millis(20),
            priorities: Vec::new(),
            default: Priority::Normal,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriorityRule {
    pub priority: Priority,
    /// All of these; at least one.
    pub headers: Vec<HeaderMatch>,
}

/// Carries a [`Priority`] from whoever calls to the callee's sidecar.
pub const PRIORITY_HEADER: &str = "x-phalanx-priority";

/// Lower ones are refused first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
    /// Refused only at twice the load that is right.
    Critical,
}

impl Priority {
    pub const ALL: [Priority; 4] = [Self::Low, Self::Normal, Self::High, Self::Critical];

    /// As manifests have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "Low",
            Self::Normal => "Normal",
            Self::High => "High",
            Self::Critical => "Critical",
        }
    }

    /// As our data planes write it into a header.
    pub fn word(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// Whatever the case, as headers have it.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let named = |one: &Self| one.as_str().as_bytes().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(named)
    }
}
