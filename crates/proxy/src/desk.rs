//! Where requests wait for a host that the plan does not have yet, while discovery asks for it. Workers ask, discovery
//! answers with a new plan; both sides are bounded, in number and in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use phalanx_model::reason::Reason;
use phalanx_telemetry::metrics::{Exposition, Family};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Requests that wait at once, over all cores; beyond, they are answered with `overload`.
pub const PARKED_MAX: u32 = 1_024;
/// How long one waits for the control plane's word.
pub const ANSWER_MAX: Duration = Duration::from_secs(2);
/// After so long without a stream, nobody waits any more.
pub const LOST_MAX: Duration = Duration::from_secs(1);

/// Shared by workers and discovery.
pub struct Desk {
    asked: mpsc::Sender<Box<str>>,
    /// Ticks with every plan.
    plans: watch::Sender<()>,
    parked: AtomicU32,
    started: Instant,
    /// Since when there is no stream, in ms after `started`; [`CONNECTED`] while there is one.
    lost_ms: AtomicU64,
    misses: AtomicU64,
    refused: [AtomicU64; REFUSALS.len()],
}

/// Why a request was sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// Too many wait.
    Full,
    /// No word within [`ANSWER_MAX`].
    Late,
    /// There is nobody to ask.
    Lost,
}

const REFUSALS: [(Refusal, &str); 3] = [
    (Refusal::Full, "full"),
    (Refusal::Late, "late"),
    (Refusal::Lost, "lost"),
];

impl Refusal {
    fn reason(self) -> Reason {
        match self {
            Self::Full => Reason::Overload,
            // Not the caller's mistake, and it may come.
            Self::Late | Self::Lost => Reason::NoHealthyUpstream,
        }
    }
}

impl Desk {
    /// With what discovery takes the questions from.
    pub fn new() -> (Arc<Self>, mpsc::Receiver<Box<str>>) {
        let (asked, questions) = mpsc::channel(PARKED_MAX as usize);
        let desk = Self {
            asked,
            plans: watch::Sender::new(()),
            parked: AtomicU32::new(0),
            started: Instant::now(),
            lost_ms: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            refused: Default::default(),
        };
        (Arc::new(desk), questions)
    }

    /// Asks for `authority` and waits until `is_there`, which is looked at with every new plan.
    ///
    /// # Errors
    /// The reason to answer with.
    pub async fn wait(&self, authority: &str, is_there: impl Fn() -> bool) -> Result<(), Reason> {
        self.misses.fetch_add(1, Ordering::Relaxed);
        let waited = self.park(authority, is_there).await;
        waited.map_err(|refusal| {
            if let Some(count) = self.refused.get(refusal as usize) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            refusal.reason()
        })
    }

    async fn park(&self, authority: &str, is_there: impl Fn() -> bool) -> Result<(), Refusal> {
        if self.is_lost() {
            return Err(Refusal::Lost);
        }
        let _place = Place::take(self).ok_or(Refusal::Full)?;
        let mut plans = self.plans.subscribe();
        let asked = self.asked.try_send(authority.into());
        asked.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::Full,
            mpsc::error::TrySendError::Closed(_) => Refusal::Lost,
        })?;
        let there = async {
            while !is_there() {
                plans.changed().await.map_err(|_| Refusal::Lost)?;
            }
            Ok(())
        };
        timeout(ANSWER_MAX, there)
            .await
            .unwrap_or(Err(Refusal::Late))
    }

    fn is_lost(&self) -> bool {
        let lost = Duration::from_millis(self.lost_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(lost) > LOST_MAX
    }

    /// There is a stream from now on, or none.
    pub fn set_connected(&self, connected: bool) {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(CONNECTED);
        let since = if connected { CONNECTED } else { now_ms };
        let before = self.lost_ms.load(Ordering::Relaxed);
        if connected || before == CONNECTED {
            self.lost_ms.store(since, Ordering::Relaxed);
        }
    }

    /// There is a new plan.
    pub fn planned(&self) {
        self.plans.send_replace(());
    }

    pub fn parked(&self) -> u32 {
        self.parked.load(Ordering::Relaxed)
    }

    pub fn write(&self, out: &mut Exposition) {
        out.family(&MISSES)
            .sample(&[], self.misses.load(Ordering::Relaxed));
        out.family(&PARKED).sample(&[], u64::from(self.parked()));
        let mut samples = out.family(&REFUSED);
        for ((_, why), count) in REFUSALS.iter().zip(&self.refused) {
            samples.sample(&[("why", why)], count.load(Ordering::Relaxed));
        }
    }
}

/// One of [`PARKED_MAX`]; given back however the wait ends, a caller that goes away included.
struct Place<'d>(&'d Desk);

impl<'d> Place<'d> {
    fn take(desk: &'d Desk) -> Option<Self> {
        if desk.parked.fetch_add(1, Ordering::Relaxed) >= PARKED_MAX {
            desk.parked.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self(desk))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.parked.fetch_sub(1, Ordering::Relaxed);
    }
}

const CONNECTED: u64 = u64::MAX;

const MISSES: Family = Family::counter(
    "phalanx_demand_misses_total",
    "Requests to a host that was not held.",
);
const PARKED: Family = Family::gauge(
    "phalanx_demand_parked",
    "Requests that wait for the control plane's word on their host.",
);
const REFUSED: Family = Family::counter(
    "phalanx_demand_refused_total",
    "Requests sent away, because too many wait (full), no word came (late), or nobody can be asked (lost).",
);

#[cfg(test)]
mod tests;
