//! How many requests may be under way: a limit found by their latency, as Netflix's Gradient2 does (short against long
//! average, no probing), with its steps taken from what really was under way. What is less urgent is refused first.
//!
//! A request is under way until the head of its answer is there; what streams after that counts no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use phalanx_model::resource::limit::{Overload, Priority};

use super::clock::{self, MILLISECOND, SECOND};
use super::lag::Wanted;

/// Of one policy.
#[derive(Debug)]
pub struct Load {
    min: u32,
    max: u32,
    queue_ns: u64,
    in_flight: AtomicU32,
    limit: AtomicU32,
    /// Of the window under way.
    count: AtomicU32,
    sum_us: AtomicU64,
    peak: AtomicU32,
    window_ends_ns: AtomicU64,
    /// Bits of an f64, in us; written by whoever closes a window.
    usual_us: AtomicU64,
    windows: AtomicU32,
    _wanted: Wanted,
}

/// A request under way. Dropped when its answer's head is there, or there will be none.
#[derive(Debug)]
pub struct Admitted {
    load: Arc<Load>,
    started_ns: u64,
    /// Of another policy for the same port.
    pub(super) other: Option<Box<Admitted>>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let now_ns = clock::now_ns();
        self.load
            .leave(now_ns.saturating_sub(self.started_ns), now_ns);
    }
}

impl Load {
    pub fn new(overload: &Overload) -> Self {
        Self {
            min: overload.min_in_flight.max(1),
            max: overload.max_in_flight.max(overload.min_in_flight).max(1),
            queue_ns: u64::try_from(overload.queue_delay.as_nanos()).unwrap_or(u64::MAX),
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(overload.max_in_flight.max(1)),
            count: AtomicU32::new(0),
            sum_us: AtomicU64::new(0),
            peak: AtomicU32::new(0),
            window_ends_ns: AtomicU64::new(0),
            usual_us: AtomicU64::new(0),
            windows: AtomicU32::new(0),
            _wanted: Wanted::default(),
        }
    }

    pub fn is_for(&self, overload: &Overload) -> bool {
        let queue_ns = u64::try_from(overload.queue_delay.as_nanos()).unwrap_or(u64::MAX);
        (self.min, self.max, self.queue_ns)
            == (overload.min_in_flight, overload.max_in_flight, queue_ns)
    }

    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// None: there is too much for a request of this priority.
    #[inline]
    pub fn enter(
        self: &Arc<Self>,
        priority: Priority,
        lag_ns: u64,
        now_ns: u64,
    ) -> Option<Admitted> {
        if lag_ns > self.queue_ns.saturating_mul(patience(priority)) {
            return None;
        }
        let allowed = u64::from(self.limit()) * share(priority) / 100;
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        if u64::from(before) >= allowed.max(1) {
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if before >= self.peak.load(Ordering::Relaxed) {
            self.peak.store(before + 1, Ordering::Relaxed); // a lost race costs one
        }
        Some(Admitted {
            load: self.clone(),
            started_ns: now_ns,
            other: None,
        })
    }

    fn leave(&self, took_ns: u64, now_ns: u64) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if took_ns <= SAMPLE_MAX {
            self.sum_us.fetch_add(took_ns / 1_000, Ordering::Relaxed);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        let ends = self.window_ends_ns.load(Ordering::Relaxed);
        if now_ns < ends || self.count.load(Ordering::Relaxed) < SAMPLES_MIN {
            return;
        }
        let next = now_ns + WINDOW;
        let closed =
            self.window_ends_ns
                .compare_exchange(ends, next, Ordering::AcqRel, Ordering::Relaxed);
        if closed.is_ok() {
            let count = self.count.swap(0, Ordering::Relaxed).max(1);
            let sum_us = self.sum_us.swap(0, Ordering::Relaxed);
            let peak = self.peak.swap(self.in_flight(), Ordering::Relaxed);
            self.learn(sum_us as f64 / f64::from(count), peak);
        }
    }

    /// A window is over: so long it took on average, with so many under way at once.
    fn learn(&self, short_us: f64, peak: u32) {
        let windows = self.windows.load(Ordering::Relaxed);
        self.windows
            .store(windows.saturating_add(1), Ordering::Relaxed);
        let before = f64::from_bits(self.usual_us.load(Ordering::Relaxed));
        let limit = self.limit();
        let is_pressed = peak >= limit / 2;
        let usual = usual(before, short_us, windows, is_pressed);
        self.usual_us.store(usual.to_bits(), Ordering::Relaxed);
        let gradient = (TOLERANCE * usual / short_us.max(1.0)).clamp(0.5, 1.0);
        let next = if gradient < 1.0 {
            // From what was under way: a limit that nobody reached says nothing.
            let from = f64::from(limit.min(peak));
            (from * (1.0 - SMOOTHING) + from * gradient * SMOOTHING) as u32
        } else if is_pressed {
            limit + (f64::from(limit).sqrt() as u32).max(GROWTH_MIN)
        } else {
            limit
        };
        self.limit
            .store(next.clamp(self.min, self.max), Ordering::Relaxed);
    }
}

/// The average of a minute. What is slow while much is under way hardly lifts it, or a long overload would become the usual.
fn usual(before: f64, short: f64, windows: u32, is_pressed: bool) -> f64 {
    if windows == 0 {
        return short;
    }
    let of = f64::from(windows.min(WINDOWS_MAX)) + 1.0;
    let weight = match is_pressed && short > before {
        true => 2.0 / (of + 1.0) / PRESSED_PART,
        false => 2.0 / (of + 1.0),
    };
    let next = before + (short - before) * weight;
    if next > short * 2.0 {
        next * 0.95
    } else {
        next
    }
}

/// Of the limit, in percent.
fn share(priority: Priority) -> u64 {
    match priority {
        Priority::Low => 70,
        Priority::Normal => 90,
        Priority::High => 100,
        Priority::Critical => 200,
    }
}

/// How often the delay that is right.
fn patience(priority: Priority) -> u64 {
    match priority {
        Priority::Low => 1,
        Priority::Normal => 2,
        Priority::High => 4,
        Priority::Critical => u64::MAX,
    }
}

/// How much slower than usual is still usual.
const TOLERANCE: f64 = 1.5;
const SMOOTHING: f64 = 0.5;
const GROWTH_MIN: u32 = 2;
const WINDOW: u64 = 100 * MILLISECOND;
const WINDOWS_MAX: u32 = 600;
/// How much less a window counts then.
const PRESSED_PART: f64 = 50.0;
/// In a window.
const SAMPLES_MIN: u32 = 10;
/// What took longer is a stream that had nothing to say.
const SAMPLE_MAX: u64 = 10 * SECOND;

#[cfg(test)]
mod tests {
    use super::*;

    fn load(min: u32, max: u32) -> Arc<Load> {
        Arc::new(Load::new(&Overload {
            min_in_flight: min,
            max_in_flight: max,
            ..Overload::default()
        }))
    }

    #[test]
    fn less_urgent_requests_are_refused_first() {
        let load = load(10, 10);
        let mut held = Vec::new();
        let mut let_in = |priority| {
            let mut count = 0;
            while let Some(admitted) = load.enter(priority, 0, 0) {
                held.push(admitted);
                count += 1;
            }
            count
        };
        let counts = Priority::ALL.map(&mut let_in);
        assert_eq!(counts, [7, 2, 1, 10]);
        drop(held);
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn late_worker_refuses_all_but_the_critical() {
        let load = load(10, 10);
        let late = |ms| Priority::ALL.map(|p| load.enter(p, ms * MILLISECOND, 0).is_some());
        assert_eq!(late(20), [true; 4]);
        assert_eq!(late(21), [false, true, true, true]);
        assert_eq!(late(41), [false, false, true, true]);
        assert_eq!(late(81), [false, false, false, true]);
    }

    /// An application that works at `capacity` requests at a time, asked by `callers`: windows of steady state.
    fn simulate(load: &Load, capacity: u32, callers: u32, windows: u32) {
        for _ in 0..windows {
            let under_way = callers.min(load.limit() * 9 / 10).max(1);
            let took_us = 1_000.0 * (f64::from(under_way) / f64::from(capacity)).max(1.0);
            load.learn(took_us, under_way);
        }
    }

    #[test]
    fn limit_follows_what_the_application_can_do() {
        let load = load(8, 1_000);
        simulate(&load, 50, 40, 100);
        assert_eq!(load.limit(), 1_000, "nothing is refused without need");
        simulate(&load, 50, 1_000, 100);
        let limit = load.limit();
        assert!((40..150).contains(&limit), "{limit}");
        // Ten minutes of it have not become the usual.
        simulate(&load, 50, 1_000, 6_000);
        assert!(load.limit() < 400, "{}", load.limit());
        // The application got more power.
        simulate(&load, 500, 400, 600);
        assert!(load.limit() > 400, "{}", load.limit());
    }
}
