//! Ejection by comparison: once in an interval a core looks at what it has seen of all endpoints of a cluster, and finds
//! those that fail or dawdle far more than the others. Only what this core saw counts, and only of endpoints that it saw
//! often enough.

use phalanx_model::resource::{Health, OutlierDetection};

use super::{Group, Load};

/// Answers of an endpoint in one interval, as Envoy's default, for a judgement of it.
const ANSWERS_MIN: u32 = 100;
/// Endpoints with as many answers, for a deviation to mean something; Envoy's default.
const RATES_MIN: usize = 5;
/// The same for a median.
const LATENCIES_MIN: usize = 3;
/// Faster than this above the median nobody is slow.
const SLOW_US: u64 = 5_000;

impl Group {
    /// Whether the interval that began at `since_ms` is over, and anybody compares.
    #[inline]
    pub fn is_court_day(&self, since_ms: u64, now_ms: u64) -> bool {
        let policy = &self.policy.outlier;
        self.compares()
            && u128::from(now_ms.saturating_sub(since_ms)) >= policy.interval.as_millis()
    }

    /// Ejects who is far off, tells whom, and begins the next interval.
    pub fn judge<'l>(
        &self,
        load: impl Fn(usize) -> Option<&'l Load>,
        now_ms: u64,
        mut ejected: impl FnMut(usize),
    ) {
        let policy = &self.policy.outlier;
        let seen = (0..self.members.len()).filter_map(|index| {
            let sample = load(index)?.take_sample();
            let member = self.members.get(index)?;
            let counts = member.health == Health::Healthy
                && !member.outlier.is_ejected(now_ms)
                && sample.answers >= ANSWERS_MIN;
            counts.then_some((index, sample))
        });
        let seen: Vec<(usize, Sample)> = seen.collect();
        let rates = seen.iter().map(|(index, sample)| (*index, sample.rate()));
        let failing = failing(&rates.collect::<Vec<_>>(), policy);
        let means = seen.iter().filter(|(_, s)| s.good >= ANSWERS_MIN);
        let means: Vec<_> = means.map(|(index, s)| (*index, s.mean_us())).collect();
        let slow = slow(&means, policy);
        for member in failing.into_iter().chain(slow) {
            if self.eject(member, now_ms) {
                ejected(member);
            }
        }
    }
}

/// What came of one endpoint in one interval.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub answers: u32,
    pub good: u32,
    /// Of the good ones, together.
    pub latency_us: u64,
}

impl Sample {
    /// Percent.
    fn rate(&self) -> f64 {
        100.0 * f64::from(self.good) / f64::from(self.answers.max(1))
    }

    fn mean_us(&self) -> u64 {
        self.latency_us / u64::from(self.good.max(1))
    }
}

/// Below the mean by more than the deviation allows.
fn failing(rates: &[(usize, f64)], policy: &OutlierDetection) -> Vec<usize> {
    if policy.success_rate_stdev == 0 || rates.len() < RATES_MIN {
        return Vec::new();
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates
        .iter()
        .map(|(_, rate)| (rate - mean).powi(2))
        .sum::<f64>()
        / count;
    let least = mean - variance.sqrt() * f64::from(policy.success_rate_stdev) / 1000.0;
    let below = rates.iter().filter(|(_, rate)| *rate < least);
    below.map(|(index, _)| *index).collect()
}

/// Above the median of all by more than the factor.
fn slow(means: &[(usize, u64)], policy: &OutlierDetection) -> Vec<usize> {
    if policy.latency_factor == 0 || means.len() < LATENCIES_MIN {
        return Vec::new();
    }
    let mut sorted: Vec<u64> = means.iter().map(|(_, mean)| *mean).collect();
    sorted.sort_unstable();
    let Some(median) = sorted.get((sorted.len() - 1) / 2).copied() else {
        return Vec::new();
    };
    let by_factor = median.saturating_mul(u64::from(policy.latency_factor)) / 1000;
    let most = by_factor.max(median.saturating_add(SLOW_US));
    let above = means.iter().filter(|(_, mean)| *mean > most);
    above.map(|(index, _)| *index).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::member;
    use super::super::{Member, Policy};
    use super::*;
    use phalanx_model::resource::LoadBalancer;

    /// Of each endpoint: good answers, bad ones, latency; who is ejected.
    fn judged(seen: &[(u32, u32, u64)], policy: OutlierDetection) -> Vec<usize> {
        let members: Vec<Member> = (1..).take(seen.len()).map(member).collect();
        let group = Group::new(Policy::new(LoadBalancer::P2c, policy), members);
        let loads: Vec<Load> = seen.iter().map(|_| Load::default()).collect();
        for (load, (good, bad, latency_us)) in loads.iter().zip(seen) {
            (0..*good).for_each(|_| load.sample(true, *latency_us));
            (0..*bad).for_each(|_| load.sample(false, 1));
        }
        let mut ejected = Vec::new();
        assert!(group.is_court_day(0, 10_000) && !group.is_court_day(1, 10_000));
        group.judge(
            |index| loads.get(index),
            10_000,
            |member| ejected.push(member),
        );
        let again = loads.iter().all(|load| load.take_sample().answers == 0);
        assert!(again, "the next interval begins with nothing");
        ejected
    }

    fn rates() -> OutlierDetection {
        OutlierDetection {
            success_rate_stdev: 1_900,
            max_ejection_percent: 50,
            ..OutlierDetection::default()
        }
    }

    fn latencies() -> OutlierDetection {
        OutlierDetection {
            latency_factor: 3_000,
            max_ejection_percent: 50,
            ..OutlierDetection::default()
        }
    }

    #[test]
    fn one_that_fails_more_than_the_others_is_ejected() {
        let mut seen = [(990, 10, 1_000); 8];
        seen[3] = (500, 500, 1_000);
        assert_eq!(judged(&seen, rates()), [3]);
        assert_eq!(judged(&[(990, 10, 1_000); 8], rates()), [0; 0]);
        assert_eq!(judged(&[(500, 500, 1_000); 8], rates()), [0; 0]);
    }

    #[test]
    fn too_few_answers_or_endpoints_say_nothing() {
        let mut seen = [(990, 10, 1_000); 8];
        seen[3] = (9, 90, 1_000);
        assert_eq!(judged(&seen, rates()), [0; 0]);
        let few = [(990, 10, 1_000), (990, 10, 1_000), (0, 1_000, 1_000)];
        assert_eq!(judged(&few, rates()), [0; 0]);
    }

    #[test]
    fn one_that_is_far_slower_than_the_median_is_ejected() {
        let mut seen = [(200, 0, 20_000); 4];
        seen[1].2 = 61_000;
        assert_eq!(judged(&seen, latencies()), [1]);
        seen[1].2 = 59_000;
        assert_eq!(judged(&seen, latencies()), [0; 0]);
        let mut quick = [(200, 0, 100); 4];
        quick[1].2 = 900;
        assert_eq!(judged(&quick, latencies()), [0; 0], "0.9 ms is not slow");
    }

    #[test]
    fn no_more_are_ejected_than_the_limit_allows() {
        let mut seen = [(200, 0, 20_000); 10];
        for slow in &mut seen[..4] {
            slow.2 = 100_000;
        }
        let policy = OutlierDetection {
            max_ejection_percent: 20,
            ..latencies()
        };
        assert_eq!(judged(&seen, policy), [0, 1]);
    }
}
