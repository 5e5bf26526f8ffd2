//! The decision about a canary, from what was seen of it. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx_client::api::{self, NodeEvidence};

use crate::observe::{ByDestination, Traffic};
use crate::world::record::CanaryRecord;

type Told = BTreeMap<String, api::Traffic>;

/// What all control planes together know.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Since this process knows of the canary.
    pub since: Duration,
    /// Since all of its proxies had it; none: they never had.
    pub complete: Option<Duration>,
    /// Whether all of them have it now.
    pub all_here: bool,
    /// The connected ones of its proxies.
    pub nodes: BTreeMap<String, NodeEvidence>,
    /// Those that had it and went away.
    pub gone: Vec<String>,
    /// Control planes that could not be asked, whose proxies are none of `nodes`.
    pub unasked: Vec<String>,
    pub others: Told,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Wait,
    Promote(String),
    Back(String),
}

impl Seen {
    pub fn of<'a>(
        local: api::CanaryEvidence,
        peers: impl Iterator<Item = &'a api::CanaryEvidence>,
    ) -> Self {
        let mut seen = Self {
            others: local.others,
            ..Self::default()
        };
        let of_peers = peers.flat_map(|peer| {
            for (name, traffic) in &peer.others {
                add(seen.others.entry(name.clone()).or_default(), traffic);
            }
            peer.nodes.iter().cloned()
        });
        let nodes: Vec<_> = of_peers.chain(local.nodes).collect();
        for node in nodes {
            // One that moves from plane to plane may be on both for a moment.
            let known = seen.nodes.get(&node.node);
            if known.is_none_or(|known| node.applied || !known.applied) {
                seen.nodes.insert(node.node.clone(), node);
            }
        }
        seen
    }
}

/// Goes back at the first refusal, at too many failures, when a proxy vanishes or never takes it; goes on when all have
/// borne it for long enough.
pub fn judge(record: &CanaryRecord, seen: &Seen) -> Verdict {
    if let Some(node) = seen.nodes.values().find(|node| !node.refused.is_empty()) {
        return Verdict::Back(format!("{} refuses {}", node.node, node.refused.join("; ")));
    }
    if let Some(node) = seen.gone.first() {
        let lost = match seen.nodes.contains_key(node) {
            true => "came again and does not take the change any more",
            false => "went away while it had the change",
        };
        return Verdict::Back(told_of(format!("{node} {lost}"), seen));
    }
    let watch = Duration::from_millis(record.watch_ms);
    let is_over = seen.complete.is_some_and(|complete| complete >= watch);
    if let Some(reason) = failing(record, seen, is_over) {
        return Verdict::Back(reason);
    }
    match seen.complete {
        None if seen.since > APPLY_MAX => {
            let late = record.nodes.iter().filter(|id| {
                let node = seen.nodes.get(*id);
                node.is_none_or(|node| !node.applied)
            });
            let late: Vec<_> = late.map(String::as_str).collect();
            let late = late.join(", ");
            let late = format!("{late} did not take it within {APPLY_MAX:?}");
            Verdict::Back(told_of(late, seen))
        }
        Some(_) if is_over && seen.all_here => Verdict::Promote(borne(record, seen)),
        _ => Verdict::Wait,
    }
}

/// A proxy that is not seen may be one of a control plane that is not heard.
fn told_of(reason: String, seen: &Seen) -> String {
    match seen.unasked.first() {
        Some(problem) => format!("{reason} ({problem})"),
        None => reason,
    }
}

/// Where too many requests fail, and against what.
fn failing(record: &CanaryRecord, seen: &Seen, is_over: bool) -> Option<String> {
    let (mut now, mut before) = (Told::new(), Told::new());
    for node in seen.nodes.values() {
        merge(&mut now, &node.traffic);
        merge(&mut before, &node.before);
    }
    let all = sum(now.values());
    if let Some(most) = record.max_errors.filter(|most| all.failures > *most) {
        let failures = all.failures;
        return Some(format!(
            "{failures} requests failed at its proxies, at most {most} may"
        ));
    }
    let none = api::Traffic::default();
    let of = |told: &Told, name: &str| told.get(name).copied().unwrap_or(none);
    // Requests that led nowhere have no destination of their own: they count among all.
    let named = now.iter().filter(|(name, _)| !name.is_empty());
    let named = named.map(|(name, traffic)| {
        let text = format!("requests to {name}");
        (text, *traffic, of(&before, name), of(&seen.others, name))
    });
    let whole = (
        "all requests".to_owned(),
        all,
        sum(before.values()),
        sum(seen.others.values()),
    );
    named
        .chain([whole])
        .find_map(|(what, now, before, others)| {
            // A few failures of long ago excuse no many of now.
            let says = |usual: &api::Traffic| usual.requests >= now.requests.min(REQUESTS_MIN);
            let usual = [&before, &others].into_iter().filter(|usual| says(usual));
            let usual = usual.map(share).fold(0.0, f64::max);
            let is_enough = now.requests >= REQUESTS_MIN || is_over;
            let is_worse = share(&now) > usual + record.max_error_rate;
            (is_enough && is_worse).then(|| {
                format!(
                    "{} of {what} failed at its proxies ({} of {}), {} before and {} at the others",
                    percent(&now),
                    now.failures,
                    now.requests,
                    percent(&before),
                    percent(&others),
                )
            })
        })
}

fn borne(record: &CanaryRecord, seen: &Seen) -> String {
    let all = sum(seen.nodes.values().flat_map(|node| node.traffic.values()));
    let count = record.nodes.len();
    let proxies = if count == 1 { "proxy" } else { "proxies" };
    let watch = Duration::from_millis(record.watch_ms);
    if all.requests == 0 {
        return format!(
            "{count} {proxies} of {} had it for {watch:?}: no refusal, but no request either, so nothing was proven",
            record.concerned
        );
    }
    format!(
        "{count} {proxies} of {} had it for {watch:?}: no refusal, {} of {} requests failed ({} at the others)",
        record.concerned,
        percent(&all),
        all.requests,
        percent(&sum(seen.others.values())),
    )
}

fn merge(sums: &mut Told, more: &Told) {
    for (name, traffic) in more {
        add(sums.entry(name.clone()).or_default(), traffic);
    }
}

fn add(sum: &mut api::Traffic, more: &api::Traffic) {
    sum.requests = sum.requests.saturating_add(more.requests);
    sum.failures = sum.failures.saturating_add(more.failures);
}

pub fn sum<'a>(traffic: impl Iterator<Item = &'a api::Traffic>) -> api::Traffic {
    let mut all = api::Traffic::default();
    traffic.for_each(|one| add(&mut all, one));
    all
}

fn share(traffic: &api::Traffic) -> f64 {
    let Traffic { requests, failures } = Traffic {
        requests: traffic.requests,
        failures: traffic.failures,
    };
    Traffic { requests, failures }.share()
}

fn percent(traffic: &api::Traffic) -> String {
    if traffic.requests == 0 {
        return "none".to_owned();
    }
    format!("{:.1}%", share(traffic) * 100.0)
}

/// As it crosses the wire.
pub fn told(traffic: &ByDestination) -> Told {
    let told = |(name, traffic): (&String, &Traffic)| {
        let Traffic { requests, failures } = *traffic;
        (name.clone(), api::Traffic { requests, failures })
    };
    traffic.iter().map(told).collect()
}

pub fn since(now: &ByDestination, then: &ByDestination) -> ByDestination {
    let since = |(name, traffic): (&String, &Traffic)| {
        let then = then.get(name).copied().unwrap_or_default();
        (name.clone(), traffic.since(then))
    };
    now.iter()
        .map(since)
        .filter(|(_, traffic)| traffic.requests > 0)
        .collect()
}

/// Fewer say nothing before the end.
const REQUESTS_MIN: u64 = 20;
/// How long its proxies may take to acknowledge.
pub const APPLY_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> CanaryRecord {
        CanaryRecord {
            sequence: 1,
            started: 0,
            author: "ann".into(),
            message: String::new(),
            watch_ms: 30_000,
            max_error_rate: 0.05,
            max_errors: None,
            nodes: vec!["a".into(), "b".into()],
            concerned: 7,
            changes: Vec::new(),
        }
    }

    fn traffic(requests: u64, failures: u64) -> Told {
        Told::from([(
            "default/battle".to_owned(),
            api::Traffic { requests, failures },
        )])
    }

    fn node(name: &str, requests: u64, failures: u64) -> (String, NodeEvidence) {
        let node = NodeEvidence {
            node: name.to_owned(),
            applied: true,
            traffic: traffic(requests, failures),
            ..NodeEvidence::default()
        };
        (name.to_owned(), node)
    }

    fn seen(a: (u64, u64), b: (u64, u64), complete_s: u64) -> Seen {
        Seen {
            since: Duration::from_secs(complete_s + 1),
            complete: Some(Duration::from_secs(complete_s)),
            all_here: true,
            nodes: BTreeMap::from([node("a", a.0, a.1), node("b", b.0, b.1)]),
            others: traffic(1000, 10),
            ..Seen::default()
        }
    }

    fn is_back(verdict: &Verdict, part: &str) -> bool {
        matches!(verdict, Verdict::Back(reason) if reason.contains(part))
    }

    #[test]
    fn what_is_borne_for_long_enough_goes_on() {
        assert_eq!(
            judge(&record(), &seen((500, 5), (500, 5), 29)),
            Verdict::Wait
        );
        let verdict = judge(&record(), &seen((500, 5), (500, 5), 30));
        assert!(
            matches!(&verdict, Verdict::Promote(r) if r.contains("2 proxies of 7") && r.contains("1.0% of 1000")),
            "{verdict:?}"
        );
        let silent = judge(&record(), &seen((0, 0), (0, 0), 30));
        assert!(matches!(&silent, Verdict::Promote(r) if r.contains("nothing was proven")));
    }

    #[test]
    fn a_refusal_or_a_proxy_that_vanishes_goes_back_at_once() {
        let mut refused = seen((0, 0), (0, 0), 1);
        refused.nodes.get_mut("a").unwrap().refused = vec!["HTTPRoute/x: no".into()];
        assert!(is_back(
            &judge(&record(), &refused),
            "a refuses HTTPRoute/x: no"
        ));
        let mut gone = seen((0, 0), (0, 0), 1);
        gone.gone = vec!["b".into()];
        gone.nodes.remove("b");
        assert!(is_back(&judge(&record(), &gone), "b went away"));
    }

    #[test]
    fn failures_above_the_others_and_above_before_go_back() {
        let failing = seen((100, 20), (100, 0), 3);
        assert!(is_back(
            &judge(&record(), &failing),
            "10.0% of requests to default/battle"
        ));
        let mut usual = failing.clone();
        usual.nodes.get_mut("a").unwrap().before = traffic(100, 10);
        assert_eq!(
            judge(&record(), &usual),
            Verdict::Wait,
            "it was like that before"
        );
        let mut everywhere = failing.clone();
        everywhere.others = traffic(1000, 100);
        assert_eq!(
            judge(&record(), &everywhere),
            Verdict::Wait,
            "it is like that everywhere"
        );
    }

    #[test]
    fn who_comes_again_without_it_or_is_behind_a_silent_plane_is_told_as_that() {
        let mut again = seen((0, 0), (0, 0), 100);
        again.gone = vec!["b".into()];
        again.all_here = false;
        assert!(is_back(&judge(&record(), &again), "b came again"));
        again.nodes.remove("b");
        again.unasked = vec!["control plane two can't be asked".into()];
        assert!(is_back(
            &judge(&record(), &again),
            "b went away while it had the change (control plane two can't be asked)"
        ));
    }

    #[test]
    fn one_failure_of_before_excuses_no_many_of_now() {
        let mut failing = seen((100, 50), (0, 0), 3);
        failing.others = Told::new();
        failing.nodes.get_mut("a").unwrap().before = traffic(1, 1);
        assert!(is_back(&judge(&record(), &failing), "50.0% of requests"));
        let mut as_rare = seen((2, 1), (0, 0), 30);
        as_rare.others = Told::new();
        as_rare.nodes.get_mut("a").unwrap().before = traffic(2, 1);
        assert!(matches!(judge(&record(), &as_rare), Verdict::Promote(_)));
    }

    #[test]
    fn few_requests_say_something_at_the_end_only() {
        assert_eq!(judge(&record(), &seen((5, 5), (5, 5), 3)), Verdict::Wait);
        assert!(is_back(
            &judge(&record(), &seen((5, 5), (5, 5), 30)),
            "100.0%"
        ));
    }

    #[test]
    fn requests_that_lead_nowhere_count_among_all() {
        let mut lost = seen((100, 0), (100, 0), 3);
        let nowhere = api::Traffic {
            requests: 50,
            failures: 50,
        };
        lost.nodes
            .get_mut("a")
            .unwrap()
            .traffic
            .insert(String::new(), nowhere);
        assert!(is_back(&judge(&record(), &lost), "20.0% of all requests"));
    }

    #[test]
    fn a_count_of_errors_can_be_the_bound() {
        let mut record = record();
        record.max_errors = Some(3);
        assert_eq!(judge(&record, &seen((1000, 3), (0, 0), 3)), Verdict::Wait);
        assert!(is_back(
            &judge(&record, &seen((1000, 4), (0, 0), 3)),
            "4 requests failed"
        ));
    }

    #[test]
    fn who_never_takes_it_ends_it() {
        let mut late = seen((0, 0), (0, 0), 0);
        late.complete = None;
        late.nodes.remove("b");
        assert_eq!(judge(&record(), &late), Verdict::Wait);
        late.since = Duration::from_secs(31);
        assert!(is_back(&judge(&record(), &late), "b did not take it"));
    }
}
