//! The default policy. Little's law says how many workers are busy on average (λ·S); the square root of that is what
//! chance adds (Halfin and Whitt, 1981); a backlog is worked off in a stated time. Fast up, held down.
//! Arrival rate and service time are [`average`]s that a change resets; size goes to [`Policy`] as a pure function of them.

mod average;

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use self::average::{Average, Change, Noise, Seen};
use super::policy::{BadPolicy, Bounds, Policy, Reason, Sample, Wanted, sane};

/// Events that a calendar keeps.
pub const EVENTS_MAX: usize = 256;
/// The rise of size within one second is measured against what was there at its beginning.
const RAMP: Duration = Duration::from_secs(1);
/// The long average reaches back this many service times where that is longer than asked for, to this long.
const LONG_SERVICES: f64 = 20.0;
const LONG_MAX: Duration = Duration::from_secs(600);
/// A queue of so many square roots of the load is nothing but chance (one time in some ten thousand).
const CHANCE_QUEUE: f64 = 8.0;
/// A backlog is worked off in so many service times at the soonest. Not less, since then more load, whose chance queue
/// is longer, could call for fewer workers.
const DRAIN_SERVICES: f64 = 16.0;
/// What the assumed service time weighs, in jobs.
const ASSUMED_JOBS: f64 = 8.0;
/// Samples over which the variance of service times is learnt at least.
const VARIANCE_SAMPLES: f64 = 20.0;
/// The hold is kept as the highest of this many parts, so that its memory doesn't depend on how often it is asked.
const HOLD_PARTS: u32 = 60;

/// Everything has a default that is meant to be left alone, except the bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct StaffingOptions {
    /// 10 to 200.
    pub bounds: Bounds,
    /// Cushion in square roots of the load. 1: about one job in five waits, for a fraction of a service time; 2: one in
    /// forty.
    pub beta: f64,
    /// A backlog is worked off in this time (if the bounds allow), or in 16 service times if that is longer.
    pub drain: Duration,
    /// In one second at most so many times as many workers (2) …
    pub grow_factor: f64,
    /// … or so many more, whichever is more.
    pub grow_step: u32,
    /// What the short average looks back (its panic window).
    pub short: Duration,
    /// What the long average looks back.
    pub long: Duration,
    /// Size goes down to the most that was wanted in this time, and not at all this long after a panic, which is when
    /// twice the size was wanted.
    pub hold: Duration,
    /// Dead band downwards: as many workers, or this part of the size, whichever is more.
    pub band_workers: u32,
    pub band_part: f64,
    /// Variance of arrivals over their mean: 1 for independent arrivals; 5 if they come in parties of five.
    pub clumping: f64,
    /// Service time until jobs have ended.
    pub assumed_service: Duration,
    /// Load that is known to come.
    pub events: Vec<Expected>,
}

impl Default for StaffingOptions {
    fn default() -> Self {
        Self {
            bounds: Bounds::default(),
            beta: 1.0,
            drain: Duration::from_secs(3),
            grow_factor: 2.0,
            grow_step: 8,
            short: Duration::from_secs(6),
            long: Duration::from_secs(60),
            hold: Duration::from_secs(50),
            band_workers: 2,
            band_part: 0.05,
            clumping: 1.0,
            assumed_service: Duration::from_millis(50),
            events: Vec::new(),
        }
    }
}

/// An entry of the LiveOps calendar: at least `rate` jobs per second are expected from `from` to `until`, on the
/// policy's clock. The policy staffs for it from `lead` before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    pub from: Duration,
    pub until: Duration,
    pub rate: f64,
    pub lead: Duration,
}

impl Expected {
    pub const LEAD: Duration = Duration::from_secs(30);

    /// An event by the wall clock, for a policy that starts at `now`; `None` if it is over by then.
    pub fn at(starts: SystemTime, lasts: Duration, rate: f64, now: SystemTime) -> Option<Self> {
        let until = starts.checked_add(lasts)?.duration_since(now).ok()?;
        Some(Self {
            from: starts.duration_since(now).unwrap_or_default(),
            until,
            rate,
            lead: Self::LEAD,
        })
    }

    fn holds(&self, now: Duration) -> bool {
        (self.from.saturating_sub(self.lead)..self.until).contains(&now)
    }
}

/// `size = R + β√(zR) + backlog·S/T` with `R = λ·S`.
#[derive(Clone, Debug)]
pub struct Staffing {
    options: StaffingOptions,
    arrivals: Average,
    service: Average,
    /// Of service times, in s².
    variance: f64,
    variance_samples: f64,
    asked_at: Option<Duration>,
    hold: Hold,
    panic_until: Duration,
    ramp_from: Option<(Duration, u32)>,
}

impl Default for Staffing {
    fn default() -> Self {
        Self::from_checked(StaffingOptions::default())
    }
}

impl Staffing {
    pub fn try_new(options: StaffingOptions) -> Result<Self, BadPolicy> {
        check(&options)?;
        Ok(Self::from_checked(options))
    }

    /// The defaults within other bounds.
    pub fn within(bounds: Bounds) -> Self {
        Self::from_checked(StaffingOptions {
            bounds,
            ..StaffingOptions::default()
        })
    }

    fn from_checked(options: StaffingOptions) -> Self {
        let assumed = options.assumed_service.as_secs_f64();
        Self {
            arrivals: Average::new(options.short, Seen::default()),
            service: Average::new(
                options.short,
                Seen {
                    sum: ASSUMED_JOBS * assumed,
                    extent: ASSUMED_JOBS,
                },
            ),
            variance: assumed * assumed,
            variance_samples: 0.0,
            asked_at: None,
            hold: Hold::new(options.hold),
            panic_until: Duration::ZERO,
            ramp_from: None,
            options,
        }
    }

    /// Returns whether the short average overruled a long one, upwards.
    fn learn(&mut self, sample: &Sample, now: Duration) -> bool {
        let Some(asked_at) = self.asked_at.replace(now) else {
            return false;
        };
        let passed = now.saturating_sub(asked_at);
        if passed.is_zero() {
            return false;
        }
        let horizon = self.horizon();
        let clumping = self.options.clumping;
        let seconds = passed.as_secs_f64();
        let arrived = Seen {
            sum: sane(sample.arrival_rate) * seconds,
            extent: seconds,
        };
        let poisson = |rate: f64| Noise {
            variance: clumping * rate,
            grain: clumping,
            least: 0.05,
        };
        let arrivals = self.arrivals.see(arrived, now, passed, horizon, poisson);
        let service = self.learn_service(sample, now, passed, horizon);
        arrivals == Change::Up || service == Change::Up
    }

    fn learn_service(
        &mut self,
        sample: &Sample,
        now: Duration,
        passed: Duration,
        horizon: Duration,
    ) -> Change {
        let ended = sane(sample.ended as f64);
        let seconds = if sample.ended == 0 {
            0.0
        } else {
            sane(sample.service_s)
        };
        let variance = self.variance;
        let noise = |mean: f64| Noise {
            variance,
            grain: variance.sqrt().max(mean),
            least: 0.1,
        };
        let usual = self.service.level();
        let seen = Seen {
            sum: seconds * ended,
            extent: ended,
        };
        let change = self.service.see(seen, now, passed, horizon, noise);
        if sample.ended > 0 {
            // The mean of n jobs deviates with a variance of σ²/n.
            let squared = sane(ended * (seconds - usual) * (seconds - usual));
            self.variance_samples += 1.0;
            let weight = (passed.as_secs_f64() / horizon.as_secs_f64())
                .max(1.0 / (self.variance_samples + VARIANCE_SAMPLES))
                .min(1.0);
            self.variance += (squared - self.variance) * weight;
        }
        change
    }

    /// Long service times, and very different ones, need longer averages for the same certainty.
    fn horizon(&self) -> Duration {
        let mean = self.service.level();
        // S·(1 + cv²) is S + σ²/S.
        let spread = mean + self.variance / mean.max(1e-9);
        let seconds = (LONG_SERVICES * spread).clamp(0.0, LONG_MAX.as_secs_f64());
        self.options.long.max(Duration::from_secs_f64(seconds))
    }

    /// What the present calls for.
    fn need(&self, sample: &Sample, now: Duration, surge: bool) -> Need {
        let service = self.service.level();
        // An average over less than a second isn't one.
        let measured = if self.arrivals.age() < RAMP {
            0.0
        } else {
            self.arrivals.level()
        };
        let expected = self.expected(now);
        let rate = measured.max(expected);
        let load = sane(rate * service);
        let root = (self.options.clumping * load).sqrt();
        let cushion = self.options.beta * root;
        let beta = self.options.beta.clamp(0.25, 4.0);
        let backlog = (sample.queue as f64 - CHANCE_QUEUE * root / beta).max(0.0);
        let soonest = DRAIN_SERVICES * service / beta.min(1.0).powi(2);
        let drain = self.options.drain.as_secs_f64().max(soonest);
        let extra = sane(backlog * service / drain);
        let reason = if extra >= 1.0 {
            Reason::Backlog
        } else if surge {
            Reason::Surge
        } else if expected > measured {
            Reason::Expected
        } else {
            Reason::Load
        };
        Need {
            least: load + cushion / 2.0 + extra,
            good: round_up(load + cushion + extra),
            reason,
        }
    }

    fn expected(&self, now: Duration) -> f64 {
        let now = self.options.events.iter().filter(|event| event.holds(now));
        now.fold(0.0, |most, event| event.rate.max(most))
    }

    fn ramp(&mut self, size: u32, now: Duration) -> u32 {
        let from = match self.ramp_from {
            Some((at, from)) if now.saturating_sub(at) < RAMP => from.min(size),
            _ => {
                self.ramp_from = Some((now, size));
                size
            }
        };
        let times = (f64::from(from) * self.options.grow_factor) as u32;
        times.max(from.saturating_add(self.options.grow_step))
    }
}

impl Policy for Staffing {
    fn wanted(&mut self, sample: &Sample, now: Duration) -> Wanted {
        let surge = self.learn(sample, now);
        let bounds = self.options.bounds;
        let size = bounds.clamp(sample.size);
        let need = self.need(sample, now, surge);
        let good = bounds.clamp(need.good);
        self.hold.put(good, now);
        if good >= size.saturating_mul(2) {
            self.panic_until = now.saturating_add(self.options.hold);
        }
        let (to, reason) = if f64::from(size) < need.least && good > size {
            let ramp = self.ramp(size, now);
            (good.min(ramp).max(size), need.reason)
        } else {
            self.shrink(size, good, now)
        };
        let reason = match reason {
            reason if to == sample.size && reason.changes() => Reason::Capped,
            reason if to != sample.size && !reason.changes() => Reason::Bounds,
            Reason::Steady if need.good > bounds.max() => Reason::Capped,
            reason => reason,
        };
        Wanted { size: to, reason }
    }

    fn bounds(&self) -> Bounds {
        self.options.bounds
    }
}

impl Staffing {
    fn shrink(&self, size: u32, good: u32, now: Duration) -> (u32, Reason) {
        if good >= size {
            return (size, Reason::Steady);
        }
        let part = (f64::from(size) * self.options.band_part) as u32;
        let band = part.max(self.options.band_workers);
        let held = self.hold.highest(now);
        // At the lower bound the band would keep a worker or two for ever.
        let worth = |to: u32| size - to >= band || to == self.options.bounds.min();
        if held < size && now >= self.panic_until && worth(held) {
            (held, Reason::Released)
        } else if worth(good) {
            (size, Reason::Held)
        } else {
            (size, Reason::Band)
        }
    }
}

struct Need {
    /// With fewer the cushion is half used up.
    least: f64,
    good: u32,
    reason: Reason,
}

/// The most that was wanted within a time.
#[derive(Clone, Debug)]
struct Hold {
    part: Duration,
    parts: VecDeque<(Duration, u32)>,
}

impl Hold {
    fn new(length: Duration) -> Self {
        Self {
            part: length / HOLD_PARTS,
            parts: VecDeque::new(),
        }
    }

    fn put(&mut self, wanted: u32, now: Duration) {
        match self.parts.back_mut() {
            Some((at, most)) if now.saturating_sub(*at) < self.part => *most = wanted.max(*most),
            _ => self.parts.push_back((now, wanted)),
        }
        while self.parts.len() > HOLD_PARTS as usize + 1 {
            self.parts.pop_front();
        }
    }

    fn highest(&self, now: Duration) -> u32 {
        // A part counts until its last moment is as long ago as the hold is.
        let length = self.part * (HOLD_PARTS + 1);
        self.parts
            .iter()
            .filter(|(at, _)| now.saturating_sub(*at) <= length)
            .fold(0, |most, (_, wanted)| most.max(*wanted))
    }
}

fn round_up(workers: f64) -> u32 {
    // `as` saturates; sums of products that were meant to be whole are not rounded up for their last bit.
    (workers - 1e-9).ceil() as u32
}

fn check(options: &StaffingOptions) -> Result<(), BadPolicy> {
    let numbers = [
        ("beta", options.beta, 0.0, 100.0, "0 to 100"),
        ("grow_factor", options.grow_factor, 1.0, 1000.0, "1 to 1000"),
        ("band_part", options.band_part, 0.0, 1.0, "0 to 1"),
        (
            "clumping",
            options.clumping,
            0.01,
            10_000.0,
            "0.01 to 10000",
        ),
    ];
    for (option, value, least, most, takes) in numbers {
        if !(least..=most).contains(&value) {
            return Err(BadPolicy::Option {
                option,
                value,
                takes,
            });
        }
    }
    let times = [
        ("drain", options.drain, 0.01),
        ("short", options.short, 0.1),
        ("long", options.long, 1.0),
        ("hold", options.hold, 0.0),
        ("assumed_service", options.assumed_service, 0.0),
    ];
    for (option, time, least) in times {
        let value = time.as_secs_f64();
        if !(least..=86_400.0).contains(&value) {
            return Err(BadPolicy::Option {
                option,
                value,
                takes: "10 ms (short: 100 ms, long: 1 s, hold and assumed_service: 0) to a day",
            });
        }
    }
    if options.grow_factor == 1.0 && options.grow_step == 0 {
        return Err(BadPolicy::Option {
            option: "grow_step",
            value: 0.0,
            takes: "at least 1 where grow_factor is 1",
        });
    }
    if options.events.len() > EVENTS_MAX {
        return Err(BadPolicy::Events {
            count: options.events.len(),
            max: EVENTS_MAX,
        });
    }
    match options
        .events
        .iter()
        .find(|event| !(0.0..=1e9).contains(&event.rate))
    {
        Some(event) => Err(BadPolicy::Option {
            option: "events.rate",
            value: event.rate,
            takes: "0 to 1e9 jobs per second",
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
