//! What comparisons came to: counts by rule and mirror, and the last samples of what differed.

use std::collections::{BTreeMap, VecDeque};

use phalanx_model::ClusterName;

use super::judge::{Difference, Kind};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub rule: String,
    pub mirror: ClusterName,
}

#[derive(Default)]
pub(super) struct Book(BTreeMap<Key, Entry>);

#[derive(Default)]
struct Entry {
    totals: Totals,
    samples: VecDeque<Sample>,
}

/// Counts since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Of answers that both were there.
    pub compared: u64,
    pub different: u64,
    /// One of the two never came, or not to its end.
    pub unanswered: u64,
    /// Answers that differ so, in the order of [`Kind::ALL`].
    pub kinds: [u64; Kind::ALL.len()],
    /// Sums, of those compared.
    pub original_us: u64,
    pub copy_us: u64,
}

/// One pair that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Counts up, per rule and mirror.
    pub number: u64,
    /// Unix.
    pub time_ms: u64,
    /// Without the query.
    pub path: String,
    pub differences: Vec<Difference>,
}

/// A rule and one of its mirrors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub rule: String,
    pub mirror: ClusterName,
    pub totals: Totals,
    /// The oldest first.
    pub samples: Vec<Sample>,
}

impl Totals {
    pub fn same(&self) -> u64 {
        self.compared.saturating_sub(self.different)
    }
}

impl Book {
    /// False where there is no room for the rule.
    pub(super) fn add(
        &mut self,
        key: Key,
        path: String,
        time_ms: u64,
        (original_us, copy_us): (u64, u64),
        found: Option<Vec<Difference>>,
    ) -> bool {
        if self.0.len() >= ENTRIES_MAX && !self.0.contains_key(&key) {
            return false;
        }
        let Entry { totals, samples } = self.0.entry(key).or_default();
        let Some(differences) = found else {
            totals.unanswered += 1;
            return true;
        };
        totals.compared += 1;
        totals.original_us = totals.original_us.saturating_add(original_us);
        totals.copy_us = totals.copy_us.saturating_add(copy_us);
        if differences.is_empty() {
            return true;
        }
        totals.different += 1;
        for (kind, count) in Kind::ALL.into_iter().zip(&mut totals.kinds) {
            *count += u64::from(differences.iter().any(|found| found.kind == kind));
        }
        if samples.len() >= SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(Sample {
            number: totals.different,
            time_ms,
            path,
            differences,
        });
        true
    }

    pub(super) fn all(&self) -> Vec<Comparison> {
        let comparison = |(key, entry): (&Key, &Entry)| Comparison {
            rule: key.rule.clone(),
            mirror: key.mirror.clone(),
            totals: entry.totals,
            samples: entry.samples.iter().cloned().collect(),
        };
        self.0.iter().map(comparison).collect()
    }
}

/// Rules with mirrors.
const ENTRIES_MAX: usize = 256;
/// Per rule and mirror.
pub(super) const SAMPLES_MAX: usize = 16;
