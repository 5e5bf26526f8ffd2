//! What policies refused, shed and injected, and how much is under way.

use phalanx_telemetry::metrics::{Exposition, Family};

use crate::plan::Plan;
use crate::quota::Refused;

const LIMITED: Family = Family::counter(
    "phalanx_rate_limited_total",
    "Requests refused by a rate limit, by policy and scope.",
);
const SHED: Family = Family::counter(
    "phalanx_shed_total",
    "Requests refused for too much load, by policy and priority.",
);
const FAULTS: Family = Family::counter(
    "phalanx_faults_injected_total",
    "Requests delayed or aborted on purpose, by policy.",
);
const IN_FLIGHT: Family = Family::gauge(
    "phalanx_overload_in_flight",
    "Requests under way that shedding counts, by policy.",
);
const LIMIT: Family = Family::gauge(
    "phalanx_overload_limit",
    "Requests that may be under way by now, by policy.",
);
const SILENT: Family = Family::gauge(
    "phalanx_limit_alone",
    "Whether the control plane says nothing about a global rate limit, by policy.",
);

pub(super) fn write(out: &mut Exposition, plan: &Plan) {
    let standings = plan.limits();
    for (index, family) in [&LIMITED, &SHED, &FAULTS].into_iter().enumerate() {
        let mut samples = out.family(family);
        for standing in &standings {
            for what in Refused::ALL {
                let (of, key, value) = match what {
                    Refused::Local => (0, "scope", "local"),
                    Refused::Global => (0, "scope", "global"),
                    Refused::Shed(priority) => (1, "priority", priority.as_str()),
                    Refused::Delayed => (2, "fault", "delay"),
                    Refused::Aborted => (2, "fault", "abort"),
                };
                if of == index {
                    let labels = [("policy", standing.policy.as_str()), (key, value)];
                    samples.sample(&labels, standing.counts.of(what));
                }
            }
        }
    }
    for (family, limit) in [(&IN_FLIGHT, false), (&LIMIT, true)] {
        let mut samples = out.family(family);
        for standing in &standings {
            if let Some(load) = &standing.load {
                let value = if limit {
                    load.limit()
                } else {
                    load.in_flight()
                };
                samples.sample(&[("policy", &standing.policy)], u64::from(value));
            }
        }
    }
    let mut samples = out.family(&SILENT);
    for leases in plan.leases() {
        samples.sample(&[("policy", &leases.policy)], u64::from(leases.is_silent()));
    }
}
