//! A pool's metrics: read in process by whoever asks, exported to Prometheus for people.

use phalanx_telemetry::metrics::{Exposition, Family, Value};

use super::policy::Reason;
use super::pool::Why;

const QUEUE: Family = Family::gauge("match_request_queue_length", "Jobs that wait for a worker.");
/// The name that autoscaling rules ask for; not an average but a P95.
const LATENCY: Family = Family::gauge(
    "avg_match_latency_ms",
    "P95 (whatever the name says) of waiting plus service over the last 10 s.",
);
const LATENCY_P95: Family = Family::gauge(
    "match_latency_p95_ms",
    "P95 of waiting plus service of the jobs that ended in the last 10 s.",
);
const LATENCY_MEAN: Family = Family::gauge(
    "match_latency_mean_ms",
    "Average of waiting plus service of the jobs that ended in the last 10 s.",
);
const WAIT_P95: Family = Family::gauge(
    "match_wait_p95_ms",
    "P95 of waiting of the jobs that ended in the last 10 s.",
);
const WORKERS: Family = Family::gauge(
    "match_workers",
    "Workers that are there, those that finish their last job included.",
);
const BUSY: Family = Family::gauge("match_workers_busy", "Workers that have a job.");
const WANTED: Family = Family::gauge("match_workers_wanted", "Workers that the policy wants.");
const REASON: Family = Family::gauge(
    "match_workers_reason",
    "1 for the reason that the policy last gave, 0 for the others.",
);
const CHANGES: Family = Family::counter(
    "match_workers_changes_total",
    "Times that the policy changed the size.",
);
const ACCEPTED: Family = Family::counter("match_jobs_accepted_total", "Jobs taken into the queue.");
const ENDED: Family = Family::counter(
    "match_jobs_ended_total",
    "Jobs that were run, by how they ended.",
);
const REFUSED: Family = Family::counter("match_jobs_refused_total", "Jobs that were refused.");

/// A pool at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// The pool's.
    pub name: String,
    /// Jobs that wait.
    pub queue: u64,
    /// Waiting plus service, of jobs that ended in the last 10 s, as the next two; 0 if none did.
    pub latency_p95_ms: f64,
    pub latency_mean_ms: f64,
    /// Waiting alone.
    pub wait_p95_ms: f64,
    /// That are there, those that finish their last job included.
    pub workers: u32,
    pub busy: u32,
    pub wanted: u32,
    pub reason: Reason,
    pub counts: Counts,
}

/// Since the pool started. Every accepted job is done, panicked, running, in the queue, or was handed back by a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: u64,
    pub done: u64,
    pub panicked: u64,
    pub refused_full: u64,
    pub refused_too_long: u64,
    pub refused_draining: u64,
    pub grown: u64,
    pub shrunk: u64,
}

impl Counts {
    pub(super) fn refuse(&mut self, why: Why) {
        match why {
            Why::Full { .. } => self.refused_full += 1,
            Why::TooLong { .. } => self.refused_too_long += 1,
            Why::Draining => self.refused_draining += 1,
        }
    }
}

/// Several pools in one exposition, told apart by the label `pool`.
pub fn write(pools: &[Metrics], out: &mut Exposition) {
    each(pools, out, &QUEUE, |pool| pool.queue);
    each(pools, out, &LATENCY, |pool| pool.latency_p95_ms);
    each(pools, out, &LATENCY_P95, |pool| pool.latency_p95_ms);
    each(pools, out, &LATENCY_MEAN, |pool| pool.latency_mean_ms);
    each(pools, out, &WAIT_P95, |pool| pool.wait_p95_ms);
    each(pools, out, &WORKERS, |pool| u64::from(pool.workers));
    each(pools, out, &BUSY, |pool| u64::from(pool.busy));
    each(pools, out, &WANTED, |pool| u64::from(pool.wanted));
    each(pools, out, &ACCEPTED, |pool| pool.counts.accepted);
    let mut samples = out.family(&REASON);
    for pool in pools {
        for reason in Reason::ALL {
            let labels = [("pool", pool.name.as_str()), ("reason", reason.as_str())];
            samples.sample(&labels, u64::from(reason == pool.reason));
        }
    }
    counter(pools, out, &CHANGES, "direction", |counts| {
        vec![("up", counts.grown), ("down", counts.shrunk)]
    });
    counter(pools, out, &ENDED, "outcome", |counts| {
        vec![("done", counts.done), ("panicked", counts.panicked)]
    });
    counter(pools, out, &REFUSED, "reason", |counts| {
        vec![
            ("full", counts.refused_full),
            ("too_long", counts.refused_too_long),
            ("draining", counts.refused_draining),
        ]
    });
}

fn each<V: Value>(
    pools: &[Metrics],
    out: &mut Exposition,
    family: &Family,
    value: impl Fn(&Metrics) -> V,
) {
    let mut samples = out.family(family);
    for pool in pools {
        samples.sample(&[("pool", pool.name.as_str())], value(pool));
    }
}

fn counter(
    pools: &[Metrics],
    out: &mut Exposition,
    family: &Family,
    label: &'static str,
    values: impl Fn(&Counts) -> Vec<(&'static str, u64)>,
) {
    let mut samples = out.family(family);
    for pool in pools {
        for (which, value) in values(&pool.counts) {
            samples.sample(&[("pool", pool.name.as_str()), (label, which)], value);
        }
    }
}
