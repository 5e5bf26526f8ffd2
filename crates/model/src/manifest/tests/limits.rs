//! Rate limits, faults and priorities.

use super::*;
use crate::resource::limit::{
    Fault, FaultEffect, GlobalLimit, LimitKey, Limits, Overload, Priority, PriorityRule, Rate,
};

#[test]
fn limits_faults_and_priorities_are_read() {
    let text = "rateLimit: {local: {requests: 100, per: 1s, burst: 200}, global: {requests: 9, per: 1h, by: {header: X-Player}, onFailure: Deny}}, \
        faults: [{delay: 200ms, percent: 0.5, when: {headers: [{name: x-a, value: b}]}}, {abort: {grpc: 14}, percent: 1}], \
        overload: {maxInFlight: 64, default: High, priorities: [{priority: Low, when: {headers: [{name: x-job, value: sweep}]}}]}, \
        healthCheck: {path: /healthz}";
    let limits = policy_of(text).unwrap().limits.unwrap();
    let rate = |requests, seconds, burst| Rate {
        requests,
        per: Duration::from_secs(seconds),
        burst,
    };
    let header = |name: &str, value: &str| HeaderMatch {
        name: name.into(),
        value: ValueMatch::Exact(value.into()),
    };
    let expected = Limits {
        policy: "BackendPolicy/default/a".into(),
        local: Some(rate(100, 1, 200)),
        global: Some(GlobalLimit {
            rate: rate(9, 3600, 9),
            by: LimitKey::Header("x-player".into()),
            closed: true,
        }),
        faults: vec![
            Fault {
                effect: FaultEffect::Delay(Duration::from_millis(200)),
                share: 500,
                headers: vec![header("x-a", "b")],
            },
            Fault {
                effect: FaultEffect::Grpc(14),
                share: 1_000,
                headers: vec![],
            },
        ],
        overload: Some(Overload {
            max_in_flight: 64,
            default: Priority::High,
            priorities: vec![PriorityRule {
                priority: Priority::Low,
                headers: vec![header("x-job", "sweep")],
            }],
            ..Overload::default()
        }),
        probe: Some("/healthz".into()),
    };
    assert_eq!(limits, expected);
    assert_eq!(policy_of("retryBudget: {percent: 1}").unwrap().limits, None);
}

#[test]
fn limits_that_mean_nothing_are_refused() {
    for (text, problem) in [
        ("rateLimit: {}", "nothing is limited"),
        ("rateLimit: {local: {requests: 0, per: 1s}}", "not within 1"),
        (
            "rateLimit: {local: {requests: 1, per: 1ms}}",
            "not within 50ms",
        ),
        (
            "rateLimit: {local: {requests: 1, per: 1s, by: {caller: true}}}",
            "unknown field",
        ),
        (
            "rateLimit: {global: {requests: 1, per: 1s, by: {}}}",
            "one of `header` and `caller`",
        ),
        (
            "rateLimit: {global: {requests: 1, per: 1s, by: {header: host}}}",
            "the host",
        ),
        ("faults: [{percent: 1}]", "one of `delay` and `abort`"),
        (
            "faults: [{delay: 1s, abort: {status: 503}, percent: 1}]",
            "exclude each other",
        ),
        ("faults: [{delay: 1s}]", "the field is missing"),
        ("faults: [{delay: 1s, percent: 101}]", "not within"),
        (
            "faults: [{delay: 1s, percent: 1, when: {}}]",
            "no header is named",
        ),
        (
            "faults: [{abort: {status: 200}, percent: 1}]",
            "not within 400",
        ),
        (
            "overload: {minInFlight: 9, maxInFlight: 8}",
            "above `maxInFlight`",
        ),
        ("overload: {default: Urgent}", "unknown value"),
        (
            "overload: {priorities: [{priority: Low}]}",
            "the field is missing",
        ),
    ] {
        let problems = policy_of(text).unwrap_err();
        assert!(
            problems.iter().any(|p| p.contains(problem)),
            "{text}: {problems:?}"
        );
    }
}
