//! Rollouts as they are told to people and programs.

use phalanx_client::api;
use phalanx_model::document::rollout::{Boundary, Rollout};

use super::machine::{Machine, told};
use crate::observe::Counts;
use crate::world::rollout::{Measurement, Phase, Progress, RolloutRecord, Seen};

/// Without what only its driver knows.
pub fn of(rollout: &Rollout, progress: Option<&Progress>) -> api::RolloutView {
    let nothing = RolloutRecord::default();
    let record = progress.map_or(&nothing, |progress| &progress.record);
    let step = match record.phase {
        _ if !record.began => 0,
        Phase::Promoted => rollout.steps.len() + 1,
        _ => record.step + 1,
    };
    let state = |index: usize| match (index + 1).cmp(&step) {
        std::cmp::Ordering::Less => "done",
        std::cmp::Ordering::Equal => "current",
        std::cmp::Ordering::Greater => "ahead",
    };
    let steps = rollout.steps.iter().enumerate();
    let mirror = record.overlay.mirror.map_or(0, |mirror| mirror.per_million);
    api::RolloutView {
        namespace: rollout.meta.namespace.clone(),
        name: rollout.meta.name.clone(),
        target: rollout.target.to_string(),
        stable: rollout.stable.to_string(),
        canary: rollout.canary.to_string(),
        boundary: match rollout.boundary {
            Boundary::Match => "match",
            Boundary::None => "none",
        }
        .to_owned(),
        phase: record.phase.as_str().to_owned(),
        attempt: record.attempt,
        step,
        steps: steps
            .map(|(index, step)| api::RolloutStep {
                step: told(step),
                state: state(index).to_owned(),
            })
            .collect(),
        weight: record.overlay.weight,
        mirror: f64::from(mirror) / 10_000.0,
        lane: record.overlay.lane.clone().unwrap_or_default(),
        reason: record.reason.clone(),
        author: record.author.clone(),
        since_ms: record.since,
        started_ms: record.started,
        step_since_ms: record.step_since,
        versions: record.versions.iter().cloned().collect(),
        last: record.last.as_ref().map(measurement),
        revision: progress.map_or(0, |progress| progress.revision),
        ..api::RolloutView::default()
    }
}

pub fn events(record: &RolloutRecord) -> Vec<api::RolloutEvent> {
    let event = |event: &crate::world::rollout::Event| api::RolloutEvent {
        time_ms: event.at,
        attempt: event.attempt,
        event: event.what.clone(),
        step: event.step,
        weight: event.overlay.weight,
        reason: event.reason.clone(),
        author: event.author.clone(),
        figures: event.figures.as_ref().map(measurement),
    };
    record.events.iter().map(event).collect()
}

/// What was seen since the last measurement; none: nothing.
pub fn seen(machine: &Machine) -> Option<api::RolloutMeasurement> {
    let sight = machine.sight();
    if sight.canary.requests == 0 && sight.stable.requests == 0 {
        return None;
    }
    let figures = |counts: &Counts| api::VersionFigures {
        requests: counts.requests,
        failures: counts.failures,
        p99_ms: counts.p99_us().map(ms),
    };
    Some(api::RolloutMeasurement {
        canary: figures(&sight.canary),
        stable: figures(&sight.stable),
        compared: sight.compared,
        different: sight.different,
        ..api::RolloutMeasurement::default()
    })
}

fn measurement(of: &Measurement) -> api::RolloutMeasurement {
    let figures = |seen: &Seen| api::VersionFigures {
        requests: seen.requests,
        failures: seen.failures,
        p99_ms: seen.p99_us.map(ms),
    };
    api::RolloutMeasurement {
        time_ms: of.at,
        took_ms: of.took_ms,
        canary: figures(&of.canary),
        stable: figures(&of.stable),
        compared: of.compared,
        different: of.different,
        custom: of.custom.iter().cloned().collect(),
        good: Some(of.good),
        why: of.why.clone(),
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}
