//! Loads with a name, as documents and tests show them, and what two policies make of one.

use std::fmt::Write as _;
use std::time::Duration;

use super::arrivals::{BadLoad, Curve, Job, Service};
use super::{Outcome, run};
use crate::workers::policy::Policy;
use crate::workers::staffing::Staffing;
use crate::workers::thresholds::Thresholds;

/// Workers that each policy starts with, the least of the default bounds.
pub const START: u32 = 10;
const SEED: u64 = 7;
const MS_50: Duration = Duration::from_millis(50);

/// A load to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    pub title: String,
    pub jobs: Vec<Job>,
    pub length: Duration,
    /// What isn't counted of it.
    pub warm_up: Duration,
    pub start: u32,
}

/// A named curve and the service time that belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    pub name: &'static str,
    pub title: &'static str,
    pub curve: Curve,
    pub service: Service,
    pub warm_up: Duration,
}

impl Named {
    pub const NAMES: [&'static str; 6] = ["step", "constant", "ramp", "daily", "spike", "ratchet"];

    pub fn find(name: &str) -> Option<Self> {
        let (name, title, points, service, warm_up_s) = match name {
            "step" => (
                "step",
                "150 jobs per second, 1,000 for eight minutes, 150 again; 50 ms each",
                step(150.0, 1000.0, [120.0, 600.0, 900.0]),
                Service::Even(MS_50),
                0,
            ),
            "constant" => (
                "constant",
                "1,000 jobs per second without end; 50 ms each; figures from minute 5 on",
                vec![(0.0, 1000.0), (1200.0, 1000.0)],
                Service::Even(MS_50),
                300,
            ),
            "ramp" => (
                "ramp",
                "From 100 jobs per second to 1,500 in ten minutes, and back; 50 ms each",
                vec![
                    (0.0, 100.0),
                    (60.0, 100.0),
                    (660.0, 1500.0),
                    (780.0, 1500.0),
                    (1380.0, 100.0),
                    (1500.0, 100.0),
                ],
                Service::Even(MS_50),
                0,
            ),
            "daily" => (
                "daily",
                "A day in an hour: 60 to 1,000 jobs per second; 50 ms each",
                daily(1000.0, 3600.0),
                Service::Even(MS_50),
                0,
            ),
            "spike" => (
                "spike",
                "150 jobs per second, 1,500 for twenty seconds now and then; 50 ms each",
                spikes(150.0, 1500.0, 20.0, &[120.0, 300.0, 660.0], 900.0),
                Service::Even(MS_50),
                0,
            ),
            "ratchet" => (
                "ratchet",
                "1,500 jobs per second for five minutes, then 60; 100 ms each",
                vec![
                    (0.0, 1500.0),
                    (300.0, 1500.0),
                    (300.0, 60.0),
                    (1800.0, 60.0),
                ],
                Service::Fixed(Duration::from_millis(100)),
                0,
            ),
            _ => return None,
        };
        Some(Self {
            name,
            title,
            curve: Curve::try_new(points).ok()?,
            service,
            warm_up: Duration::from_secs(warm_up_s),
        })
    }

    pub fn scenario(&self) -> Scenario {
        self.with(self.service, SEED)
    }

    pub fn with(&self, service: Service, seed: u64) -> Scenario {
        Scenario {
            title: self.title.to_owned(),
            jobs: self.curve.jobs(service, seed),
            length: self.curve.length(),
            warm_up: self.warm_up,
            start: START,
        }
    }
}

impl Scenario {
    /// A recording, from its first second to its last arrival.
    pub fn recorded(title: impl Into<String>, jobs: Vec<Job>) -> Result<Self, BadLoad> {
        let last = jobs.last().ok_or(BadLoad::Empty)?;
        Ok(Self {
            title: title.into(),
            length: Duration::from_nanos(last.at) + Duration::from_secs(1),
            jobs,
            warm_up: Duration::ZERO,
            start: START,
        })
    }

    pub fn run(&self, policy: &mut dyn Policy) -> Outcome {
        run(&self.jobs, self.length, self.warm_up, self.start, policy)
    }

    /// The rule of two thresholds and the default policy, each as it comes, on this load.
    pub fn compare(&self) -> Comparison {
        Comparison {
            title: self.title.clone(),
            length: self.length,
            warm_up: self.warm_up,
            thresholds: self.run(&mut Thresholds::default()),
            staffing: self.run(&mut Staffing::default()),
        }
    }
}

/// Both policies on the very same jobs.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub title: String,
    pub length: Duration,
    pub warm_up: Duration,
    pub thresholds: Outcome,
    pub staffing: Outcome,
}

impl Comparison {
    /// A Markdown table.
    pub fn table(&self) -> String {
        let mut table = String::from(
            "| policy | P50 wait | P99 wait | longest wait | longest queue | worker-seconds | turns |\n|---|---|---|---|---|---|---|\n",
        );
        for (name, outcome) in [
            ("two thresholds", &self.thresholds),
            ("staffing", &self.staffing),
        ] {
            // Writing to a String can't fail.
            let _ = writeln!(
                table,
                "| {name} | {} | {} | {} | {} | {} | {} |",
                shown(outcome.wait_p50),
                shown(outcome.wait_p99),
                shown(outcome.wait_max),
                thousands(outcome.queue_max),
                thousands(outcome.worker_s as u64),
                outcome.turns(self.warm_up, Duration::MAX),
            );
        }
        table
    }
}

/// In the unit that suits it.
pub(super) fn shown(time: Duration) -> String {
    match time.as_micros() {
        0..1_000 => format!("{} µs", time.as_micros()),
        1_000..1_000_000 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", time.as_secs_f64()),
    }
}

pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `low`, from `at[0]` to `at[1]` `high`, `low` again until `at[2]`.
fn step(low: f64, high: f64, at: [f64; 3]) -> Vec<(f64, f64)> {
    let [up, down, end] = at;
    vec![
        (0.0, low),
        (up, low),
        (up, high),
        (down, high),
        (down, low),
        (end, low),
    ]
}

/// `base`, and at each of `at` for `lasts` seconds `peak`.
fn spikes(base: f64, peak: f64, lasts: f64, at: &[f64], end: f64) -> Vec<(f64, f64)> {
    let mut points = vec![(0.0, base)];
    for from in at {
        let until = from + lasts;
        points.extend([(*from, base), (*from, peak), (until, peak), (until, base)]);
    }
    points.push((end, base));
    points
}

/// The shape of a day of players, low at five in the morning and highest at nine in the evening, from midnight to
/// midnight in `seconds`.
fn daily(peak: f64, seconds: f64) -> Vec<(f64, f64)> {
    const PERCENT: [u32; 25] = [
        55, 38, 22, 12, 8, 6, 8, 14, 22, 28, 34, 42, 56, 50, 42, 44, 52, 62, 74, 88, 97, 100, 92,
        75, 55,
    ];
    let hours = PERCENT.iter().enumerate();
    hours
        .map(|(hour, percent)| {
            (
                seconds * hour as f64 / 24.0,
                peak * f64::from(*percent) / 100.0,
            )
        })
        .collect()
}
