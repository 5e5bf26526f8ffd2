//! When to leave a store alone. [`Breaker`] is pure: `now` is handed in, since any fixed start. [`Circuit`] is the one that
//! tasks share; its permits give themselves back when they are dropped, whatever becomes of the call. Only who calls
//! [`Circuit::probe`] (the refresher) ever tries a store that failed; everybody else is told no, at once.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::dice::Dice;

/// Bounds and times of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Calls that ended longer ago than this no longer count.
    pub window: Duration,
    /// Fewer calls than this in the window open nothing, whatever their share of failures. So many failures in a row open
    /// it, however long each of them took.
    pub volume_min: u32,
    /// The share of failures in the window, in percent, at which it opens. At least 1 is meant.
    pub failures_percent: u32,
    /// How long it stays open for the first time; doubled each time that a probe fails. The real time is drawn evenly
    /// between half of it and all of it, so that processes don't probe in step.
    pub open_min: Duration,
    pub open_max: Duration,
    /// A probe that hasn't come back after this long has failed.
    pub probe_max: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(2),
            volume_min: 3,
            failures_percent: 50,
            open_min: Duration::from_millis(200),
            open_max: Duration::from_secs(3),
            probe_max: Duration::from_secs(2),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed,
    /// No calls but, after a while, one probe.
    Open,
    /// The probe is out.
    HalfOpen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Succeeded,
    Failed,
    /// The call was given up before it said anything about the store.
    Abandoned,
}

/// What was let through. It is worth nothing once the breaker has changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    generation: u64,
}

/// The state machine. Times may come in slightly out of order; they are never allowed to go back.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
    /// Counts changes of state: results of calls that began before the last one say nothing about it.
    generation: u64,
    now: Duration,
    slots: [Slot; SLOTS],
    /// Failures since the last success, while closed.
    in_a_row: u32,
    /// While open: from when on a probe is due. While half open: from when on the probe is lost.
    until: Duration,
    /// Failed probes in a row, and openings soon after a closing.
    failures: u32,
    closed_at: Duration,
    dice: Dice,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    at: u64,
    succeeded: u32,
    failed: u32,
}

impl Breaker {
    pub fn new(config: BreakerConfig, seed: u64) -> Self {
        Self {
            config,
            state: State::Closed,
            generation: 0,
            now: Duration::ZERO,
            slots: [Slot::default(); SLOTS],
            in_a_row: 0,
            until: Duration::ZERO,
            failures: 0,
            closed_at: Duration::ZERO,
            dice: Dice::new(seed),
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// When the next probe may go; `None` while closed.
    pub fn due(&self) -> Option<Duration> {
        (self.state != State::Closed).then_some(self.until)
    }

    /// Leave for an ordinary call: only while closed.
    pub fn allow(&mut self, now: Duration) -> Option<Ticket> {
        self.pass(now);
        (self.state == State::Closed).then_some(self.ticket())
    }

    /// Leave for the refresher: also while open, once it is time; one at a time.
    pub fn probe(&mut self, now: Duration) -> Option<Ticket> {
        self.pass(now);
        match self.state {
            State::Closed => Some(self.ticket()),
            State::Open | State::HalfOpen if self.now < self.until => None,
            State::HalfOpen => {
                self.open();
                None
            }
            State::Open => {
                self.turn(State::HalfOpen);
                self.until = self.now.saturating_add(self.config.probe_max);
                Some(self.ticket())
            }
        }
    }

    /// What became of a call.
    pub fn settle(&mut self, now: Duration, ticket: Ticket, outcome: Outcome) {
        self.pass(now);
        if ticket.generation != self.generation {
            return;
        }
        match (self.state, outcome) {
            (State::Closed, Outcome::Abandoned) | (State::Open, _) => {}
            (State::Closed, outcome) => {
                self.count(outcome);
                if self.fails() {
                    self.open();
                }
            }
            (State::HalfOpen, Outcome::Succeeded) => {
                self.turn(State::Closed);
                self.slots = [Slot::default(); SLOTS];
                self.closed_at = self.now;
            }
            (State::HalfOpen, Outcome::Failed) => self.open(),
            // Nothing was learnt: the next probe may go at once.
            (State::HalfOpen, Outcome::Abandoned) => {
                self.turn(State::Open);
                self.until = self.now;
            }
        }
    }

    fn pass(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    fn ticket(&self) -> Ticket {
        Ticket {
            generation: self.generation,
        }
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
        self.in_a_row = 0;
    }

    fn open(&mut self) {
        // A store that was well for long begins anew.
        if self.state == State::Closed
            && self.now > self.closed_at.saturating_add(self.config.open_max)
        {
            self.failures = 0;
        }
        let longest = self
            .config
            .open_min
            .saturating_mul(1 << self.failures.min(16));
        let longest = longest.min(self.config.open_max).as_micros() as u64;
        let wait = longest / 2 + self.dice.below(longest / 2 + 1);
        self.failures = self.failures.saturating_add(1);
        self.turn(State::Open);
        self.until = self.now + Duration::from_micros(wait);
    }

    fn count(&mut self, outcome: Outcome) {
        let at = self.slot_at();
        let slot = &mut self.slots[(at % SLOTS as u64) as usize];
        if slot.at != at {
            *slot = Slot {
                at,
                ..Slot::default()
            };
        }
        match outcome {
            Outcome::Succeeded => {
                slot.succeeded = slot.succeeded.saturating_add(1);
                self.in_a_row = 0;
            }
            Outcome::Failed => {
                slot.failed = slot.failed.saturating_add(1);
                self.in_a_row = self.in_a_row.saturating_add(1);
            }
            Outcome::Abandoned => {}
        }
    }

    fn fails(&self) -> bool {
        if self.in_a_row >= self.config.volume_min.max(1) {
            return true;
        }
        let oldest = (self.slot_at() + 1).saturating_sub(SLOTS as u64);
        let counted = self.slots.iter().filter(|slot| slot.at >= oldest);
        let (succeeded, failed) = counted.fold((0_u64, 0_u64), |(succeeded, failed), slot| {
            (
                succeeded + u64::from(slot.succeeded),
                failed + u64::from(slot.failed),
            )
        });
        let volume = succeeded + failed;
        failed > 0
            && volume >= u64::from(self.config.volume_min)
            && failed * 100 >= volume * u64::from(self.config.failures_percent)
    }

    fn slot_at(&self) -> u64 {
        let slot = (self.config.window.as_micros() / SLOTS as u128).max(1);
        (self.now.as_micros() / slot) as u64
    }
}

/// A breaker for tasks. Its state is read without a lock.
#[derive(Debug)]
pub struct Circuit {
    /// Held for a few instructions, never across an await: counting needs all of it.
    breaker: Mutex<Breaker>,
    state: AtomicU8,
    openings: AtomicU64,
    start: Instant,
}

impl Circuit {
    pub fn new(config: BreakerConfig) -> Arc<Self> {
        Arc::new(Self {
            breaker: Mutex::new(Breaker::new(config, fastrand::u64(..))),
            state: AtomicU8::new(State::Closed as u8),
            openings: AtomicU64::new(0),
            start: Instant::now(),
        })
    }

    pub fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            0 => State::Closed,
            1 => State::Open,
            _ => State::HalfOpen,
        }
    }

    /// How often it has opened.
    pub fn openings(&self) -> u64 {
        self.openings.load(Ordering::Relaxed)
    }

    pub fn allow(self: &Arc<Self>) -> Option<Permit> {
        if self.state() != State::Closed {
            return None;
        }
        let ticket = self.with(|breaker, now| breaker.allow(now))?;
        Some(self.permit(ticket))
    }

    /// For the refresher alone.
    pub fn probe(self: &Arc<Self>) -> Option<Permit> {
        let ticket = self.with(|breaker, now| breaker.probe(now))?;
        Some(self.permit(ticket))
    }

    /// How long until a probe may go; nothing while calls may.
    pub fn wait(&self) -> Option<Duration> {
        let due = self.lock().due()?;
        Some(due.saturating_sub(self.start.elapsed()))
    }

    fn permit(self: &Arc<Self>, ticket: Ticket) -> Permit {
        Permit {
            circuit: self.clone(),
            ticket,
            outcome: Outcome::Abandoned,
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Breaker, Duration) -> T) -> T {
        let mut breaker = self.lock();
        let before = breaker.state();
        let result = change(&mut breaker, self.start.elapsed());
        let after = breaker.state();
        if after == State::Open && before == State::Closed {
            self.openings.fetch_add(1, Ordering::Relaxed);
        }
        self.state.store(after as u8, Ordering::Relaxed);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        // A panic elsewhere leaves counts, nothing half-changed.
        self.breaker
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

/// Leave for one call. Dropped without a word, it counts as abandoned.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    circuit: Arc<Circuit>,
    ticket: Ticket,
    outcome: Outcome,
}

impl Permit {
    pub fn settle(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (ticket, outcome) = (self.ticket, self.outcome);
        self.circuit
            .with(|breaker, now| breaker.settle(now, ticket, outcome));
    }
}

/// Parts of the window: what ends leaves by an eighth of it.
const SLOTS: usize = 8;

#[cfg(test)]
mod tests;
