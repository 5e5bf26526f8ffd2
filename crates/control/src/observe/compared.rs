//! What mirrors answered beside the originals, summed over all callers since start, with the last samples. Bounded.

use std::collections::{BTreeMap, VecDeque};

use phalanx_client::api::{ComparedDifference, ComparedSample, Comparison};
use phalanx_model::{ClusterName, ServiceName};
use phalanx_proto::phalanx::observe::v1 as wire;

/// By rule and mirror.
#[derive(Debug, Default)]
pub struct ComparedSums(BTreeMap<(String, String), Sum>);

#[derive(Debug, Default)]
struct Sum {
    totals: Comparison,
    original_us: u64,
    copy_us: u64,
    samples: VecDeque<ComparedSample>,
}

/// Of one mirror of one route, over its rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub compared: u64,
    pub different: u64,
    pub unanswered: u64,
    /// Sums over those compared.
    pub original_us: u64,
    pub copy_us: u64,
}

impl ComparedSums {
    /// False where there are too many already.
    pub fn add(&mut self, report: wire::Comparison) -> bool {
        let key = (report.rule, report.mirror);
        if self.0.len() >= SUMS_MAX && !self.0.contains_key(&key) {
            return false;
        }
        let (route, rule) = route_and_rule(&key.0);
        let (route, rule, mirror) = (route.to_owned(), rule.to_owned(), key.1.clone());
        let sum = self.0.entry(key).or_default();
        let totals = &mut sum.totals;
        (totals.route, totals.rule, totals.mirror) = (route, rule, mirror);
        for (to, by) in [
            (&mut totals.compared, report.compared),
            (&mut totals.different, report.different),
            (&mut totals.unanswered, report.unanswered),
            (&mut totals.status, report.status),
            (&mut totals.header, report.header),
            (&mut totals.body, report.body),
            (&mut sum.original_us, report.original_us),
            (&mut sum.copy_us, report.copy_us),
        ] {
            *to = to.saturating_add(by);
        }
        for sample in report.samples {
            if sum.samples.len() >= SAMPLES_MAX {
                sum.samples.pop_front();
            }
            sum.samples.push_back(read(sample));
        }
        true
    }

    /// Of a route by its id, `<kind>/<namespace>/<name>`; copies that go elsewhere say nothing about this one.
    pub fn of(&self, route: &str, mirror: &ServiceName) -> Compared {
        let mut all = Compared::default();
        let is_meant = |sum: &&Sum| {
            let name = sum.totals.mirror.parse::<ClusterName>();
            sum.totals.route == route && name.is_ok_and(|name| name.service == *mirror)
        };
        for sum in self.0.values().filter(is_meant) {
            all.compared = all.compared.saturating_add(sum.totals.compared);
            all.different = all.different.saturating_add(sum.totals.different);
            all.unanswered = all.unanswered.saturating_add(sum.totals.unanswered);
            all.original_us = all.original_us.saturating_add(sum.original_us);
            all.copy_us = all.copy_us.saturating_add(sum.copy_us);
        }
        all
    }

    /// Those of a route: `NAME`, `NAMESPACE/NAME`, or with its kind.
    pub fn show(&self, route: Option<&str>) -> Vec<Comparison> {
        let wanted = |sum: &&Sum| match route {
            None => true,
            Some(route) => {
                let rest = sum.totals.route.strip_suffix(route);
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
            }
        };
        let mean_ms = |sum_us: u64, count: u64| sum_us as f64 / count.max(1) as f64 / 1000.0;
        let shown = |sum: &Sum| Comparison {
            original_ms: mean_ms(sum.original_us, sum.totals.compared),
            copy_ms: mean_ms(sum.copy_us, sum.totals.compared),
            samples: sum.samples.iter().cloned().collect(),
            ..sum.totals.clone()
        };
        self.0.values().filter(wanted).map(shown).collect()
    }
}

fn route_and_rule(rule: &str) -> (&str, &str) {
    rule.rsplit_once('/').unwrap_or((rule, ""))
}

fn read(sample: wire::ComparedSample) -> ComparedSample {
    let difference = |found: wire::ComparedDifference| ComparedDifference {
        kind: found.kind,
        at: found.at,
        original: found.original,
        copy: found.copy,
    };
    ComparedSample {
        time_ms: sample.time_ms,
        path: sample.path,
        differences: sample.differences.into_iter().map(difference).collect(),
    }
}

/// Texts of a report that will be shown: as short as a sidecar makes them, and nothing that moves a cursor.
pub fn is_sound(report: &wire::Comparison) -> bool {
    let plain = |text: &String| text.len() <= TEXT_MAX && !text.chars().any(char::is_control);
    let sound = |found: &wire::ComparedDifference| {
        [&found.kind, &found.at, &found.original, &found.copy]
            .into_iter()
            .all(plain)
    };
    let sample = |sample: &wire::ComparedSample| {
        plain(&sample.path)
            && sample.differences.len() <= DIFFERENCES_MAX
            && sample.differences.iter().all(sound)
    };
    plain(&report.rule)
        && plain(&report.mirror)
        && report.samples.len() <= SAMPLES_MAX
        && report.samples.iter().all(sample)
}

/// Of one report.
pub const PER_REPORT_MAX: usize = 256;
const SUMS_MAX: usize = 4_096;
/// Per rule and mirror.
const SAMPLES_MAX: usize = 16;
const DIFFERENCES_MAX: usize = 24;
/// Bytes.
const TEXT_MAX: usize = 1_024;
