//! How many fights may be in flight, found out from what they took (after Netflix' Gradient2): the limit shrinks by the
//! ratio of the usual time to the present time, and grows by a little while it is used. No probe windows. The usual time
//! is a long average, but never more than the fight itself and a part of the wait that is aimed at: a day of overload
//! can't teach it that waiting is normal. Nor less than a smaller part, so that fights of microseconds may queue a little.

use std::time::Duration;

/// How far the present may be above the usual before the limit shrinks.
const TOLERANCE: f64 = 1.5;
/// Weight of a new limit beside the old one.
const SMOOTHING: f64 = 0.2;
/// A window shrinks the limit by no more than this.
const GRADIENT_MIN: f64 = 0.5;
/// What a limit that is used may grow by, relative to itself; a larger one makes the wait settle higher.
const GROWTH: f64 = 0.1;
/// Windows that the long average spans.
const LONG_WINDOWS: f64 = 600.0;
/// Windows of which the long average begins as a plain mean.
const WARM_UP: u32 = 10;

/// Bounds of the number of fights in flight, queued ones included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradientOptions {
    pub initial: u32,
    pub min: u32,
    /// At most 16,384.
    pub max: u32,
}

/// What was measured over some fights.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Mean time from submission to end; of those that were refused in the queue, to their refusal.
    pub took: Duration,
    /// Mean time of the fight alone.
    pub fight: Duration,
    /// Mean wait that was aimed at.
    pub target: Duration,
    /// Most in flight.
    pub in_flight: u32,
}

/// The limit of the number in flight.
#[derive(Clone, Debug)]
pub struct Gradient {
    options: GradientOptions,
    limit: f64,
    /// Seconds.
    long: f64,
    windows: u32,
}

impl Gradient {
    pub fn new(options: GradientOptions) -> Self {
        let min = options.min.max(1);
        let options = GradientOptions {
            min,
            max: options.max.max(min),
            ..options
        };
        let limit = f64::from(options.initial.clamp(options.min, options.max));
        Self {
            options,
            limit,
            long: 0.0,
            windows: 0,
        }
    }

    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Takes in one window and returns the limit.
    pub fn update(&mut self, window: &Window) -> u32 {
        let took = window.took.as_secs_f64();
        if took <= 0.0 {
            return self.limit();
        }
        self.average(took);
        if f64::from(window.in_flight) < self.limit / 2.0 {
            return self.limit();
        }
        let (fight, target) = (window.fight.as_secs_f64(), window.target.as_secs_f64());
        let usual = self.long.clamp(fight + target / 4.0, fight + target / 2.0);
        let gradient = (TOLERANCE * usual / took).clamp(GRADIENT_MIN, 1.0);
        let wanted = self.limit * gradient + (self.limit * GROWTH).max(1.0);
        let next = self.limit * (1.0 - SMOOTHING) + wanted * SMOOTHING;
        self.limit = next.clamp(f64::from(self.options.min), f64::from(self.options.max));
        self.limit()
    }

    fn average(&mut self, took: f64) {
        self.windows = self.windows.saturating_add(1);
        let weight = if self.windows <= WARM_UP {
            1.0 / f64::from(self.windows)
        } else {
            2.0 / (LONG_WINDOWS + 1.0)
        };
        self.long += (took - self.long) * weight;
        // Back from an overload: what was learnt in it is forgotten faster.
        if self.long > 2.0 * took {
            self.long *= 0.95;
        }
    }
}

#[cfg(test)]
mod tests;
