use std::time::Duration;

use crate::document::Document;
use crate::document::rollout::{Boundary, OnFailure, Rollout, StepAction};
use crate::manifest::parse;
use crate::name::ServiceName;

/// What a Rollout with these fields says, or is refused for.
fn rollout(fields: &str) -> Result<Rollout, String> {
    let text = format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: Rollout\nmetadata: {{name: battle, namespace: arena}}\nspec: {{{fields}}}\n"
    );
    match parse("f", &text, "default").into_result() {
        Ok(parsed) => match parsed.into_iter().next().map(|parsed| parsed.document) {
            Some(Document::Rollout(rollout)) => Ok(rollout),
            other => panic!("{other:?}"),
        },
        Err(problems) => Err(problems.iter().map(|p| format!("{p}\n")).collect()),
    }
}

const WHO: &str =
    "targetRef: {kind: HTTPRoute, name: battle}, stable: battle-v1, canary: battle-v2";

fn with(fields: &str) -> Result<Rollout, String> {
    rollout(&format!("{WHO}, {fields}"))
}

#[test]
fn steps_and_guards_are_read_and_what_is_left_out_has_a_default() {
    let steps = "steps: [{mirror: {percent: 10, compare: true, for: 1m}}, {lane: dev-li, for: 30s}, {weight: 5, for: 2m, minRequests: 7}, {pause: {}}, {pause: {for: 1h}}]";
    let plain = with(steps).unwrap();
    assert_eq!(plain.target.to_string(), "HTTPRoute/arena/battle");
    assert_eq!(plain.canary, ServiceName::new("arena", "battle-v2"));
    let told: Vec<_> = (plain.steps.iter())
        .map(|step| {
            (
                step.action.clone(),
                step.hold.map(|h| h.as_secs()),
                step.min_requests,
            )
        })
        .collect();
    let mirror = StepAction::Mirror {
        per_million: 100_000,
        compare: true,
    };
    assert_eq!(
        told,
        [
            (mirror, Some(60), None),
            (StepAction::Lane("dev-li".into()), Some(30), None),
            (StepAction::Weight(5), Some(120), Some(7)),
            (StepAction::Pause, None, None),
            (StepAction::Pause, Some(3600), None),
        ]
    );
    let analysis = &plain.analysis;
    assert_eq!(
        (
            analysis.interval,
            analysis.success_min,
            analysis.min_requests,
            analysis.failures
        ),
        (Duration::from_secs(5), 99_000, 50, 1)
    );
    assert_eq!(
        (plain.boundary, plain.on_failure, plain.progress_deadline),
        (
            Boundary::None,
            OnFailure::Rollback,
            Duration::from_secs(600)
        )
    );
    let guarded = with(&format!(
        "{steps}, boundary: match, onFailure: pause, progressDeadline: 5m, analysis: {{interval: 10s, successRate: {{min: 99.5}}, latency: {{p99: 50ms, maxRatioToStable: 1.5}}, different: {{max: 0.1}}, custom: [{{name: gold, prometheus: {{address: 'http://127.0.0.1:9090/', query: 'sum(x)'}}, max: -0.5}}], minRequests: 100, failures: 3}}"
    ))
    .unwrap();
    let analysis = &guarded.analysis;
    let latency = analysis.latency.unwrap();
    assert_eq!(
        (analysis.success_min, analysis.different_max),
        (99_500, Some(100))
    );
    assert_eq!(
        (latency.p99_max, latency.ratio_max),
        (Some(Duration::from_millis(50)), Some(1_500))
    );
    let custom = &analysis.custom[0];
    assert_eq!(
        (custom.address.as_str(), custom.max),
        ("127.0.0.1:9090", Some(-0.5))
    );
    let elsewhere = rollout(
        "targetRef: {group: gateway.networking.k8s.io, kind: GRPCRoute, name: b}, stable: {name: a, namespace: x}, canary: {kind: Service, name: b}, steps: [{weight: 100, for: 1s}]",
    );
    assert_eq!(elsewhere.unwrap().stable, ServiceName::new("x", "a"));
}

#[test]
fn what_could_not_mean_anything_is_refused_with_its_place() {
    let step = "steps: [{weight: 5, for: 1s}]";
    for (fields, expected) in [
        ("steps: []".to_owned(), "at least one step"),
        (
            "steps: [{weight: 5}]".into(),
            "spec.steps[0].for: the field is missing",
        ),
        (
            "steps: [{weight: 101, for: 1s}]".into(),
            "not within 0 to 100",
        ),
        (
            "steps: [{for: 1s}]".into(),
            "a step is one of `mirror`, `lane`, `weight` and `pause`",
        ),
        (
            "steps: [{weight: 5, lane: a, for: 1s}]".into(),
            "a step is one of",
        ),
        ("steps: [{setWeight: 5}]".into(), "a step is one of"),
        ("steps: [{lane: 'a b', for: 1s}]".into(), "is no lane"),
        ("steps: [{lane: Dev_Li, for: 1s}]".into(), "is no lane"),
        (
            "steps: [{mirror: {percent: 0, for: 1s}}]".into(),
            "not within 1 to 100",
        ),
        ("steps: [{pause: {duration: 1s}}]".into(), "unknown field"),
        (
            format!("{step}, boundary: session"),
            "unknown value `session`",
        ),
        (format!("{step}, onFailure: abort"), "unknown value"),
        (
            format!("{step}, analysis: {{latency: {{}}}}"),
            "one of `p99` and `maxRatioToStable`",
        ),
        (
            format!("{step}, analysis: {{latency: {{p50: 1ms}}}}"),
            "`p50` is not supported by this version",
        ),
        (format!("{step}, analysis: {{failures: 0}}"), "not within 1"),
        (
            format!(
                "{step}, analysis: {{custom: [{{name: a, prometheus: {{address: p, query: q}}, max: 1}}]}}"
            ),
            "is no address",
        ),
        (
            format!(
                "{step}, analysis: {{custom: [{{name: a, prometheus: {{address: 'https://p:1', query: q}}, max: 1}}]}}"
            ),
            "over plain HTTP only",
        ),
        (
            format!(
                "{step}, analysis: {{custom: [{{name: a, prometheus: {{address: 'p:1', query: q}}}}]}}"
            ),
            "one of `min` and `max`",
        ),
        (format!("{step}, strategy: {{}}"), "unknown field"),
    ] {
        let problems = with(&fields).unwrap_err();
        assert!(problems.contains(expected), "{fields}: {problems}");
    }
    let who = |fields: &str| rollout(&format!("{fields}, {step}")).unwrap_err();
    let same = who("targetRef: {kind: HTTPRoute, name: b}, stable: a, canary: a");
    assert!(same.contains("it is the stable Service"), "{same}");
    let tcp = who("targetRef: {kind: TCPRoute, name: b}, stable: a, canary: b");
    assert!(
        tcp.contains("`TCPRoute` is not supported by this version"),
        "{tcp}"
    );
    let far = who("targetRef: {kind: HTTPRoute, name: b, namespace: x}, stable: a, canary: b");
    assert!(far.contains("acts in its own namespace only"), "{far}");
    let none = who("stable: a, canary: b");
    assert!(
        none.contains("spec.targetRef: the field is missing"),
        "{none}"
    );
}

#[test]
fn what_is_wrong_in_one_field_makes_no_other_one_unknown() {
    let good = "steps: [{mirror: {percent: 10, compare: true, for: 1m, minRequests: 1}}, {lane: dev, for: 30s, minRequests: 7}, {weight: 5, for: 2m, minRequests: 7}, {pause: {for: 1h}}], \
        analysis: {interval: 5s, successRate: {min: 99.5}, latency: {p99: 50ms, maxRatioToStable: 1.5}, different: {max: 1}, \
        custom: [{name: gold, prometheus: {address: \"p:9090\", query: q}, max: 0}], minRequests: 5, failures: 1}, \
        boundary: match, onFailure: pause, progressDeadline: 10m";
    with(good).unwrap();
    for (part, wrong) in [
        ("percent: 10", "percent: 0"),
        ("compare: true", "compare: 7"),
        ("for: 1m", "for: 1"),
        ("lane: dev", "lane: DEV"),
        ("for: 30s", "for: 0s"),
        ("weight: 5", "weight: 105"),
        ("minRequests: 7", "minRequests: x"),
        ("for: 1h", "for: never"),
        ("interval: 5s", "interval: 5"),
        ("min: 99.5", "min: 100.5"),
        ("p99: 50ms", "p99: 0s"),
        ("maxRatioToStable: 1.5", "maxRatioToStable: 0.1"),
        ("different: {max: 1}", "different: {max: 101}"),
        ("address: \"p:9090\"", "address: \"https://p:9090\""),
        ("query: q", "query: []"),
        ("max: 0}], min", "max: x}], min"),
        ("minRequests: 5", "minRequests: -1"),
        ("failures: 1", "failures: 0"),
        ("boundary: match", "boundary: game"),
    ] {
        assert!(good.contains(part), "{part}");
        let told = with(&good.replacen(part, wrong, 1)).unwrap_err();
        assert_eq!(told.lines().count(), 1, "{wrong}: {told}");
        assert!(!told.contains("unknown field"), "{wrong}: {told}");
    }
    let two = good
        .replace("weight: 5", "weight: 105")
        .replace("percent: 10", "percent: 0");
    assert_eq!(with(&two).unwrap_err().lines().count(), 2, "all at once");
}
