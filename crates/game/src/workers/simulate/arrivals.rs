//! Loads: when jobs arrive and how long each takes. From a curve by chance, or recorded. The logarithm is our own, since
//! that of a C library may differ in its last bit between machines, and a drawing shall not.

use std::time::Duration;

use thiserror::Error;

use crate::dice::Dice;

/// Jobs of one run: 16 bytes each, and 4 for its wait.
pub const JOBS_MAX: usize = 20_000_000;
/// Points of a curve.
pub const POINTS_MAX: usize = 10_000;
/// Jobs per second of a curve.
pub const RATE_MAX: f64 = 1e6;
/// Length of a curve or recording.
pub const LENGTH_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Service time of a recorded job.
pub const SERVICE_MAX: Duration = Duration::from_secs(3600);

/// In nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    pub at: u64,
    pub service: u64,
}

#[derive(Debug, Error, PartialEq)]
pub enum BadLoad {
    #[error(
        "point {point} of the curve: times ascend from 0 to a week, rates are 0 to {RATE_MAX} jobs per second"
    )]
    Point { point: usize },
    #[error("the curve has {points} points; it takes 2 to {POINTS_MAX}")]
    Points { points: usize },
    #[error("{jobs} jobs; at most {JOBS_MAX}")]
    TooMany { jobs: usize },
    #[error("line {line} of the recording: {problem}")]
    Line { line: usize, problem: &'static str },
    #[error("no arrivals")]
    Empty,
}

/// Jobs per second over time, linear between points (two points at the same time are a step).
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Seconds, jobs per second.
    points: Vec<(f64, f64)>,
}

impl Curve {
    pub fn try_new(points: Vec<(f64, f64)>) -> Result<Self, BadLoad> {
        if !(2..=POINTS_MAX).contains(&points.len()) {
            return Err(BadLoad::Points {
                points: points.len(),
            });
        }
        let mut last = 0.0;
        for (point, (at, rate)) in points.iter().enumerate() {
            let in_time = (last..=LENGTH_MAX.as_secs_f64()).contains(at);
            if !in_time || !(0.0..=RATE_MAX).contains(rate) || (point == 0 && *at > 0.0) {
                return Err(BadLoad::Point { point });
            }
            last = *at;
        }
        let curve = Self { points };
        let jobs = curve.area() as usize;
        if jobs > JOBS_MAX {
            return Err(BadLoad::TooMany { jobs });
        }
        Ok(curve)
    }

    pub fn length(&self) -> Duration {
        Duration::from_secs_f64(self.points.last().map_or(0.0, |(at, _)| *at))
    }

    /// Independent arrivals (a Poisson process) with this rate, and their service times.
    pub fn jobs(&self, service: Service, seed: u64) -> Vec<Job> {
        let mut dice = Dice::new(seed);
        let highest = self
            .points
            .iter()
            .fold(0.0_f64, |most, (_, rate)| most.max(*rate));
        let mut jobs = Vec::with_capacity(self.area() as usize);
        if highest <= 0.0 {
            return jobs;
        }
        // Thinning (Lewis and Shedler, 1979): arrivals at the highest rate, each kept with the part that its moment has.
        let mut at = exponential(&mut dice) / highest;
        for pair in self.points.windows(2) {
            let ((from, low), (until, high)) = (pair[0], pair[1]);
            while at < until {
                if at >= from {
                    let rate = low + (high - low) * (at - from) / (until - from);
                    if uniform(&mut dice) * highest <= rate && jobs.len() < JOBS_MAX {
                        jobs.push(Job {
                            at: (at * 1e9) as u64,
                            service: service.draw(&mut dice),
                        });
                    }
                }
                at += exponential(&mut dice) / highest;
            }
        }
        jobs
    }

    fn area(&self) -> f64 {
        let parts = self.points.windows(2);
        parts
            .map(|pair| (pair[1].0 - pair[0].0) * (pair[0].1 + pair[1].1) / 2.0)
            .sum()
    }
}

/// How service times are distributed. `cv` is the standard deviation over the mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Service {
    /// All alike (cv 0).
    Fixed(Duration),
    /// Erlang's of 16 stages: a bell with cv 0.25.
    Even(Duration),
    /// cv 1.
    Exponential(Duration),
    /// One job in ten takes five times the mean, on average (cv 2.1).
    Spread(Duration),
}

impl Service {
    pub fn mean(self) -> Duration {
        match self {
            Self::Fixed(mean) | Self::Even(mean) | Self::Exponential(mean) | Self::Spread(mean) => {
                mean
            }
        }
    }

    /// In nanoseconds.
    pub fn draw(self, dice: &mut Dice) -> u64 {
        const STAGES: u32 = 16;
        let times = match self {
            Self::Fixed(_) => 1.0,
            Self::Even(_) => {
                (0..STAGES).map(|_| exponential(dice)).sum::<f64>() / f64::from(STAGES)
            }
            Self::Exponential(_) => exponential(dice),
            Self::Spread(_) => {
                let mean = if dice.chance(1, 10) { 5.0 } else { 0.5 / 0.9 };
                mean * exponential(dice)
            }
        };
        (self.mean().as_nanos() as f64 * times) as u64
    }
}

/// A recording: one arrival per line, in seconds, ascending, and optionally, after a comma, its service time in ms
/// (else one is drawn). A first line `at_s` or `at_s,service_ms` is a header. The recording begins with time 0.
pub fn read_csv(text: &str, service: Service, seed: u64) -> Result<Vec<Job>, BadLoad> {
    let mut dice = Dice::new(seed);
    let mut jobs: Vec<Job> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let header = number == 0 && matches!(line, "at_s" | "at_s,service_ms");
        if line.is_empty() || header {
            continue;
        }
        let bad = |problem| BadLoad::Line {
            line: number + 1,
            problem,
        };
        let (at, took) = line
            .split_once(',')
            .map_or((line, None), |(at, took)| (at, Some(took)));
        let at = number_of(at, LENGTH_MAX.as_secs_f64())
            .ok_or_else(|| bad("the time isn't 0 to 604800 seconds"))?;
        let service = match took {
            Some(took) => number_of(took, SERVICE_MAX.as_secs_f64() * 1e3)
                .map(|ms| (ms * 1e6) as u64)
                .ok_or_else(|| bad("the service time isn't 0 to 3600000 ms"))?,
            None => service.draw(&mut dice),
        };
        let at = (at * 1e9) as u64;
        if jobs.last().is_some_and(|last| last.at > at) {
            return Err(bad("it is earlier than the line before"));
        }
        if jobs.len() == JOBS_MAX {
            return Err(BadLoad::TooMany { jobs: JOBS_MAX + 1 });
        }
        jobs.push(Job { at, service });
    }
    if jobs.is_empty() {
        return Err(BadLoad::Empty);
    }
    Ok(jobs)
}

fn number_of(text: &str, most: f64) -> Option<f64> {
    let number: f64 = text.trim().parse().ok()?;
    (0.0..=most).contains(&number).then_some(number)
}

/// In (0, 1].
fn uniform(dice: &mut Dice) -> f64 {
    ((dice.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// With mean 1.
fn exponential(dice: &mut Dice) -> f64 {
    -ln(uniform(dice))
}

/// The natural logarithm of a normal positive number, to 1e-14, by the four basic operations alone: they are exact to
/// the bit everywhere.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7FF) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // 2·artanh((m − 1)/(m + 1)), whose argument is at most 0.172.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let series = (0..11)
        .rev()
        .fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_is_the_librarys() {
        for x in [1e-16, 1.1e-10, 0.001, 0.3, 0.5, 0.70, 0.71, 0.9999, 1.0] {
            assert!((ln(x) - f64::ln(x)).abs() < 1e-13, "{x}");
        }
    }

    #[test]
    fn service_times_have_their_mean_and_spread() {
        let mean = Duration::from_millis(50);
        for (service, cv) in [
            (Service::Fixed(mean), 0.0),
            (Service::Even(mean), 0.25),
            (Service::Exponential(mean), 1.0),
            (Service::Spread(mean), 2.13),
        ] {
            let mut dice = Dice::new(1);
            let times: Vec<f64> = (0..20_000)
                .map(|_| service.draw(&mut dice) as f64 / 5e7)
                .collect();
            let average = times.iter().sum::<f64>() / 2e4;
            let variance = times
                .iter()
                .map(|t| (t - average) * (t - average))
                .sum::<f64>()
                / 2e4;
            assert!((average - 1.0).abs() < 0.05, "{service:?}: {average}");
            assert!(
                (variance.sqrt() - cv).abs() < 0.2,
                "{service:?}: {variance}"
            );
        }
    }

    #[test]
    fn arrivals_follow_the_curve_and_their_seed() {
        let curve = Curve::try_new(vec![
            (0.0, 100.0),
            (50.0, 100.0),
            (50.0, 400.0),
            (100.0, 0.0),
        ])
        .unwrap();
        let service = Service::Fixed(Duration::from_millis(1));
        let jobs = curve.jobs(service, 3);
        let within = |from: u64, to: u64| {
            let seconds = from * 1_000_000_000..to * 1_000_000_000;
            jobs.iter().filter(|job| seconds.contains(&job.at)).count() as f64
        };
        assert!((within(0, 50) / 5_000.0 - 1.0).abs() < 0.06);
        assert!((within(50, 75) / 7_500.0 - 1.0).abs() < 0.06);
        assert!((within(75, 100) / 2_500.0 - 1.0).abs() < 0.08);
        assert!(jobs.is_sorted_by_key(|job| job.at));
        assert_eq!(jobs, curve.jobs(service, 3));
        assert_ne!(jobs, curve.jobs(service, 4));
        assert_eq!(curve.length(), Duration::from_secs(100));
    }

    #[test]
    fn curves_that_are_none_are_refused() {
        let bad = |points: &[(f64, f64)]| Curve::try_new(points.to_vec()).unwrap_err();
        assert_eq!(bad(&[(0.0, 1.0)]), BadLoad::Points { points: 1 });
        assert_eq!(bad(&[(1.0, 1.0), (2.0, 1.0)]), BadLoad::Point { point: 0 });
        assert_eq!(
            bad(&[(0.0, 1.0), (9.0, 1.0), (8.0, 1.0)]),
            BadLoad::Point { point: 2 }
        );
        assert_eq!(
            bad(&[(0.0, f64::NAN), (9.0, 1.0)]),
            BadLoad::Point { point: 0 }
        );
        assert_eq!(
            bad(&[(0.0, 1.0), (f64::INFINITY, 1.0)]),
            BadLoad::Point { point: 1 }
        );
        assert!(matches!(
            bad(&[(0.0, 1e6), (100.0, 1e6)]),
            BadLoad::TooMany { .. }
        ));
    }

    #[test]
    fn recordings_are_read_and_bad_lines_named() {
        let service = Service::Fixed(Duration::from_millis(7));
        let jobs = read_csv("at_s,service_ms\n0,50\n0.5, 20\n\n1.25\n", service, 1).unwrap();
        let read: Vec<(u64, u64)> = jobs
            .iter()
            .map(|job| (job.at / 1_000_000, job.service / 1_000_000))
            .collect();
        assert_eq!(read, [(0, 50), (500, 20), (1250, 7)]);
        for (text, line) in [
            ("0\nx\n", 2),
            ("1\n0.5\n", 2),
            ("-1\n", 1),
            ("NaN\n", 1),
            ("0,\n", 1),
            ("0\n1,inf", 2),
        ] {
            let error = read_csv(text, service, 1).unwrap_err();
            assert!(
                matches!(error, BadLoad::Line { line: at, .. } if at == line),
                "{text:?}: {error}"
            );
        }
        assert_eq!(read_csv("at_s\n", service, 1), Err(BadLoad::Empty));
    }
}
