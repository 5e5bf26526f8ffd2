//! A rate or a mean of samples that come in time: a long average that is hard to move, which a short one overrules as
//! soon as chance no longer explains their difference. Reset on a change, so that the past doesn't linger.

use std::collections::VecDeque;
use std::time::Duration;

/// Differences of fewer standard deviations are chance. Five, since every tick looks again: about one false alarm in
/// a hundred runs of ten minutes.
const SIGMAS: f64 = 5.0;
/// How many spans the short average looks at: a sixth, a third, and all of it.
const SPANS: [f64; 3] = [1.0 / 6.0, 1.0 / 3.0, 1.0];
/// Slots of the short average; samples that come faster share one.
const SLOTS_MAX: usize = 64;

/// What was seen since the sample before: `sum` of something over an `extent` of another (jobs over seconds; seconds of
/// service over jobs).
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub sum: f64,
    pub extent: f64,
}

/// What chance does to a sum over an extent of 1, and which differences aren't worth a reset whatever chance says.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    /// Variance of the sum over an extent of 1.
    pub variance: f64,
    /// The usual size of one contribution to the sum.
    pub grain: f64,
    /// Least difference, relative to the long average.
    pub least: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    Up,
    Down,
}

#[derive(Clone, Debug)]
pub struct Average {
    level: f64,
    long: Seen,
    age: Duration,
    short: VecDeque<(Duration, Seen)>,
    span: Duration,
}

impl Average {
    /// `span` is what the short average looks back; `prior` counts like something seen.
    pub fn new(span: Duration, prior: Seen) -> Self {
        Self {
            level: ratio(prior).unwrap_or_default(),
            long: prior,
            age: Duration::ZERO,
            short: VecDeque::new(),
            span,
        }
    }

    pub fn level(&self) -> f64 {
        self.level
    }

    /// How long ago the average began or was reset.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Takes in what was seen in the `passed` time up to `now`; `horizon` is how far back the long average reaches.
    pub fn see(
        &mut self,
        seen: Seen,
        now: Duration,
        passed: Duration,
        horizon: Duration,
        noise: impl Fn(f64) -> Noise,
    ) -> Change {
        let before = self.long;
        self.age = self.age.saturating_add(passed);
        if self.age > horizon {
            let keep = 1.0 - (passed.as_secs_f64() / horizon.as_secs_f64()).min(1.0);
            self.long.sum *= keep;
            self.long.extent *= keep;
        }
        self.long.sum += seen.sum;
        self.long.extent += seen.extent;
        self.remember(seen, now);
        if let Some(level) = ratio(self.long) {
            self.level = level;
        }
        let Some(base) = ratio(before) else {
            return Change::None;
        };
        self.overrule(now, base, before.extent, noise(base))
    }

    fn remember(&mut self, seen: Seen, now: Duration) {
        let slot = self.span / SLOTS_MAX as u32;
        match self.short.back_mut() {
            Some((at, last)) if now.saturating_sub(*at) < slot => {
                last.sum += seen.sum;
                last.extent += seen.extent;
            }
            _ => self.short.push_back((now, seen)),
        }
        let span = self.span;
        while self
            .short
            .front()
            .is_some_and(|(at, _)| now.saturating_sub(*at) >= span)
        {
            self.short.pop_front();
        }
        while self.short.len() > SLOTS_MAX {
            self.short.pop_front();
        }
    }

    /// Up over any span (the highest counts), down only over the whole one: being late downwards costs little.
    fn overrule(&mut self, now: Duration, base: f64, extent: f64, noise: Noise) -> Change {
        let mut highest: Option<(Duration, Seen, f64)> = None;
        let mut fallen = None;
        for part in SPANS {
            let span = self.span.mul_f64(part);
            if self.age <= span {
                break;
            }
            let recent = self.over(span, now);
            let Some(level) = ratio(recent) else {
                continue;
            };
            let expected = base * recent.extent;
            let deviation = (noise.variance
                * recent.extent
                * (1.0 + recent.extent / extent.max(f64::MIN_POSITIVE)))
            .sqrt();
            // The last term is Bernstein's: a few large contributions are not a normal distribution.
            let chance = (SIGMAS * deviation + SIGMAS * SIGMAS / 3.0 * noise.grain)
                .max(noise.least * expected);
            if recent.sum > expected + chance {
                if highest.is_none_or(|(_, _, most)| level > most) {
                    highest = Some((span, recent, level));
                }
            } else if part == 1.0 && recent.sum < expected - chance {
                fallen = Some((span, recent, level));
            }
        }
        let (change, (span, recent, level)) = match (highest, fallen) {
            (Some(up), _) => (Change::Up, up),
            (None, Some(down)) => (Change::Down, down),
            (None, None) => return Change::None,
        };
        self.long = recent;
        self.age = span;
        self.level = match change {
            Change::Up => level.max(self.level),
            _ => level,
        };
        self.short.retain(|(at, _)| now.saturating_sub(*at) < span);
        change
    }

    fn over(&self, span: Duration, now: Duration) -> Seen {
        self.short
            .iter()
            .rev()
            .take_while(|(at, _)| now.saturating_sub(*at) < span)
            .fold(Seen::default(), |all, (_, seen)| Seen {
                sum: all.sum + seen.sum,
                extent: all.extent + seen.extent,
            })
    }
}

fn ratio(seen: Seen) -> Option<f64> {
    const NOTHING: f64 = 1e-9;
    (seen.extent > NOTHING).then(|| seen.sum / seen.extent)
}
