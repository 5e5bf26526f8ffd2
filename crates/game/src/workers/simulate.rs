//! Load curves against policies, in virtual time: every job is an event, the policies are those that run live, and
//! chance comes from a seed, so that a run is the same on every machine. Out come waits, queue, worker-seconds and turns,
//! and a [drawing](mod@draw).

pub mod arrivals;
pub mod draw;
pub mod scenario;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

pub use self::arrivals::{BadLoad, Curve, Job, Service, read_csv};
pub use self::draw::draw;
pub use self::scenario::{Comparison, Scenario};
use super::meter::Meter;
use super::policy::{Policy, Reason, TICK};

/// Points of a run's series.
pub const SERIES_MAX: usize = 450;
/// A run goes on after its last arrival until every job was served, but no longer than so many of its lengths.
const LENGTHS_MAX: u64 = 20;

/// What a policy made of a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub jobs: u64,
    /// Of waiting for a worker, service not included, over all jobs.
    pub wait_p50: Duration,
    pub wait_p99: Duration,
    pub wait_max: Duration,
    pub queue_max: u64,
    /// Workers that were there (those that finish their last job included), added up over the curve's length.
    pub worker_s: f64,
    pub changes: Vec<Change>,
    pub series: Vec<Point>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub at: Duration,
    pub from: u32,
    pub to: u32,
    pub reason: Reason,
}

/// A part of a run, for the drawing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    pub at_s: f64,
    /// Arrivals per second in the part.
    pub rate: f64,
    /// What the part's jobs keep busy on average: their service times over the part's length.
    pub load: f64,
    /// At its end.
    pub workers: u32,
    /// The longest in it.
    pub queue: u64,
    /// The longest of jobs that were begun in it.
    pub wait_s: f64,
}

impl Outcome {
    /// How often growing was followed by shrinking or the other way round, by whatever amount, from `from` until `until`.
    pub fn turns(&self, from: Duration, until: Duration) -> usize {
        let within = self
            .changes
            .iter()
            .filter(|change| (from..until).contains(&change.at));
        let up: Vec<bool> = within.map(|change| change.to > change.from).collect();
        up.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    /// The most turns in any ten minutes from `from` on.
    pub fn turns_in_ten_minutes(&self, from: Duration) -> usize {
        const TEN_MINUTES: Duration = Duration::from_secs(600);
        let starts = self.changes.iter().map(|change| change.at);
        starts
            .filter(|at| *at >= from)
            .map(|at| self.turns(at, at + TEN_MINUTES))
            .max()
            .unwrap_or(0)
    }
}

/// Runs `jobs` (ascending by arrival) under the policy, which starts with `start` workers; `length` is the curve's. Waits,
/// queue and worker-seconds count from `warm_up` on.
pub fn run(
    jobs: &[Job],
    length: Duration,
    warm_up: Duration,
    start: u32,
    policy: &mut dyn Policy,
) -> Outcome {
    let mut pool = Pool::new(jobs, length, warm_up, policy.bounds().clamp(start));
    let end = nanos(length).saturating_mul(LENGTHS_MAX);
    let mut tick = 0;
    let mut next = jobs.iter().copied().peekable();
    loop {
        let arrival = next.peek().map_or(u64::MAX, |job| job.at);
        let done = pool.running.peek().map_or(u64::MAX, |Reverse(run)| run.end);
        let at = arrival.min(done).min(tick);
        let all_served = arrival == u64::MAX && done == u64::MAX && at >= nanos(length);
        if at > end || all_served {
            break;
        }
        pool.pass(at);
        // At the same moment a worker is free before a job comes, and both before the policy looks.
        if done == at {
            pool.end();
        } else if arrival == at {
            if let Some(job) = next.next() {
                pool.arrive(job);
            }
        } else {
            pool.ask(policy);
            tick += nanos(TICK);
        }
    }
    pool.pass(pool.now.max(nanos(length)));
    pool.outcome()
}

/// The pool in virtual time, in nanoseconds.
struct Pool {
    now: u64,
    length: u64,
    warm_up: u64,
    size: u32,
    busy: u32,
    queue: VecDeque<Job>,
    running: BinaryHeap<Reverse<Running>>,
    meter: Meter,
    worker_ns: u128,
    waits_us: Vec<u32>,
    queue_max: usize,
    changes: Vec<Change>,
    series: Vec<Point>,
    part: Part,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Running {
    end: u64,
    wait: u64,
    service: u64,
}

struct Part {
    length: u64,
    end: u64,
    arrived: u64,
    service: u64,
    queue: usize,
    wait: u64,
}

impl Pool {
    fn new(jobs: &[Job], length: Duration, warm_up: Duration, size: u32) -> Self {
        let length = nanos(length);
        let part = (length / SERIES_MAX as u64).max(nanos(TICK));
        Self {
            now: 0,
            length,
            warm_up: nanos(warm_up),
            size,
            busy: 0,
            queue: VecDeque::new(),
            running: BinaryHeap::new(),
            meter: Meter::default(),
            worker_ns: 0,
            waits_us: Vec::with_capacity(jobs.len()),
            queue_max: 0,
            changes: Vec::new(),
            series: Vec::new(),
            part: Part {
                length: part,
                end: part,
                arrived: 0,
                service: 0,
                queue: 0,
                wait: 0,
            },
        }
    }

    /// Time goes on to `at`.
    fn pass(&mut self, at: u64) {
        while self.part.end <= at && self.part.end <= self.length {
            self.close_part();
        }
        let within = self.warm_up.min(self.length)..=self.length;
        let counted = at.clamp(*within.start(), *within.end())
            - self.now.clamp(*within.start(), *within.end());
        self.worker_ns += u128::from(counted) * u128::from(self.workers());
        self.now = at;
    }

    /// A worker that isn't wanted any more ends when it has no job.
    fn workers(&self) -> u32 {
        self.size.max(self.busy)
    }

    fn arrive(&mut self, job: Job) {
        self.meter.arrived();
        self.part.arrived += 1;
        self.part.service = self.part.service.saturating_add(job.service);
        if self.busy < self.size {
            self.begin(job);
        } else {
            self.queue.push_back(job);
            if self.now >= self.warm_up {
                self.queue_max = self.queue_max.max(self.queue.len());
            }
            self.part.queue = self.part.queue.max(self.queue.len());
        }
    }

    fn begin(&mut self, job: Job) {
        self.busy += 1;
        let wait = self.now - job.at;
        let us = u32::try_from(wait / 1000).unwrap_or(u32::MAX);
        if job.at >= self.warm_up {
            self.waits_us.push(us);
        }
        self.part.wait = self.part.wait.max(wait);
        self.running.push(Reverse(Running {
            end: self.now.saturating_add(job.service),
            wait,
            service: job.service,
        }));
    }

    fn end(&mut self) {
        let Some(Reverse(run)) = self.running.pop() else {
            return;
        };
        self.busy -= 1;
        let wait = Duration::from_nanos(run.wait);
        let service = Duration::from_nanos(run.service);
        self.meter
            .ended(wait, service, Duration::from_nanos(self.now));
        if self.busy < self.size
            && let Some(job) = self.queue.pop_front()
        {
            self.begin(job);
        }
    }

    fn ask(&mut self, policy: &mut dyn Policy) {
        let now = Duration::from_nanos(self.now);
        let queue = self.queue.len() as u64;
        let sample = self.meter.sample(queue, self.busy, self.size, now);
        let wanted = policy.wanted(&sample, now);
        let to = policy.bounds().clamp(wanted.size);
        if to != self.size {
            self.changes.push(Change {
                at: now,
                from: self.size,
                to,
                reason: wanted.reason,
            });
        }
        self.size = to;
        while self.busy < self.size {
            let Some(job) = self.queue.pop_front() else {
                break;
            };
            self.begin(job);
        }
    }

    fn close_part(&mut self) {
        let seconds = self.part.length as f64 / 1e9;
        self.series.push(Point {
            at_s: self.part.end as f64 / 1e9,
            rate: self.part.arrived as f64 / seconds,
            load: self.part.service as f64 / 1e9 / seconds,
            workers: self.workers(),
            queue: self.part.queue as u64,
            wait_s: self.part.wait as f64 / 1e9,
        });
        self.part = Part {
            length: self.part.length,
            end: self.part.end + self.part.length,
            arrived: 0,
            service: 0,
            queue: self.queue.len(),
            wait: 0,
        };
    }

    /// Jobs that were never begun count with what they have waited by now.
    fn outcome(mut self) -> Outcome {
        for job in self.queue.iter().filter(|job| job.at >= self.warm_up) {
            let us = self.now.saturating_sub(job.at) / 1000;
            self.waits_us.push(u32::try_from(us).unwrap_or(u32::MAX));
        }
        self.waits_us.sort_unstable();
        let quantile = |percent: usize| {
            let rank = (self.waits_us.len() * percent).div_ceil(100).max(1);
            let us = self.waits_us.get(rank - 1).copied().unwrap_or_default();
            Duration::from_micros(u64::from(us))
        };
        Outcome {
            jobs: self.waits_us.len() as u64,
            wait_p50: quantile(50),
            wait_p99: quantile(99),
            wait_max: quantile(100),
            queue_max: self.queue_max as u64,
            worker_s: self.worker_ns as f64 / 1e9,
            changes: self.changes,
            series: self.series,
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
