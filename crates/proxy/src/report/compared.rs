//! What was compared since the last report.

use std::collections::BTreeMap;

use phalanx_client::api::{ComparedDifference, ComparedSample};
use phalanx_client::observe::Compared;

use crate::compare::{Comparison, Difference, Sample, Totals};

/// The totals that the control plane has, by rule and mirror.
pub(super) type Delivered = BTreeMap<(String, String), Totals>;

pub(super) fn totals(all: &[Comparison]) -> Delivered {
    let keyed = |of: &Comparison| ((of.rule.clone(), of.mirror.to_string()), of.totals);
    all.iter().map(keyed).collect()
}

/// None when nothing came since.
pub(super) fn since(now: &Comparison, delivered: &Delivered) -> Option<Compared> {
    let key = (now.rule.clone(), now.mirror.to_string());
    let before = delivered.get(&key).copied().unwrap_or_default();
    let totals = &now.totals;
    if *totals == before {
        return None;
    }
    let (rule, mirror) = key;
    let kinds = totals.kinds.iter().zip(before.kinds);
    let mut kinds = kinds.map(|(now, before)| now.saturating_sub(before));
    let mut kind = || kinds.next().unwrap_or_default();
    // They are numbered by what was different.
    let new = now.samples.iter().filter(|s| s.number > before.different);
    Some(Compared {
        rule,
        mirror,
        compared: totals.compared.saturating_sub(before.compared),
        different: totals.different.saturating_sub(before.different),
        unanswered: totals.unanswered.saturating_sub(before.unanswered),
        status: kind(),
        header: kind(),
        body: kind(),
        original_us: totals.original_us.saturating_sub(before.original_us),
        copy_us: totals.copy_us.saturating_sub(before.copy_us),
        samples: new.map(sample).collect(),
    })
}

fn sample(sample: &Sample) -> ComparedSample {
    let difference = |found: &Difference| ComparedDifference {
        kind: found.kind.as_str().to_owned(),
        at: found.at.clone(),
        original: found.original.clone(),
        copy: found.copy.clone(),
    };
    ComparedSample {
        time_ms: sample.time_ms,
        path: sample.path.clone(),
        differences: sample.differences.iter().map(difference).collect(),
    }
}
