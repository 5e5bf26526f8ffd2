use std::time::Duration;

use phalanx_model::name::ServiceName;
use phalanx_model::resource::limit::{Fault, GlobalLimit, Overload, PriorityRule, Rate};
use phalanx_model::resource::{HeaderMatch, ValueMatch};
use phalanx_relay::checked::Http2Pseudo;
use phalanx_relay::{Limits as Bounds, Workspace};

use super::*;

fn request(headers: &[(&str, &str)]) -> Checked {
    let pseudo = Http2Pseudo {
        method: "POST",
        authority: Some("battle:8080"),
        path: "/x",
        query: None,
        ended: false,
    };
    let fields = headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
    Checked::http2(Workspace::default(), pseudo, fields, &Bounds::default()).unwrap()
}

fn guard(limits: &Limits, before: Option<&Standings>) -> (Guard, Standings) {
    let mut known = Standings::new();
    let guard = Guard::compile(std::slice::from_ref(limits), &mut known, before).unwrap();
    (guard, known)
}

fn limits() -> Limits {
    Limits {
        policy: "BackendPolicy/arena/p".into(),
        ..Limits::default()
    }
}

fn rate(requests: u32) -> Rate {
    Rate {
        requests,
        per: Duration::from_secs(3600),
        burst: requests,
    }
}

fn header(name: &str, value: &str) -> HeaderMatch {
    HeaderMatch {
        name: name.into(),
        value: ValueMatch::Exact(value.into()),
    }
}

/// What came of `count` requests with these headers.
fn ask(guard: &Guard, headers: &[(&str, &str)], count: usize) -> Vec<Result<Passed, Reply>> {
    let request = request(headers);
    let mut rng = fastrand::Rng::with_seed(3);
    let ask = |_| {
        let asker = Asker {
            caller: None,
            told: None,
            rng: &mut rng,
        };
        guard.admit(&request, asker)
    };
    (0..count).map(ask).collect()
}

fn passed(results: &[Result<Passed, Reply>]) -> usize {
    results.iter().filter(|one| one.is_ok()).count()
}

#[test]
fn local_limit_outlives_a_change_of_something_else() {
    let mut limits = Limits {
        local: Some(rate(3)),
        ..limits()
    };
    let (first, known) = guard(&limits, None);
    let answers = ask(&first, &[], 5);
    assert_eq!(passed(&answers), 3);
    let reply = answers[4].as_ref().unwrap_err();
    assert_eq!(
        (reply.status, reply.reason),
        (429, Some(Reason::RateLimited))
    );
    limits.overload = Some(Overload::default());
    let (second, known) = guard(&limits, Some(&known));
    assert_eq!(passed(&ask(&second, &[], 5)), 0);
    assert_eq!(known[&limits.policy].counts.of(Refused::Local), 7);
    limits.local = Some(rate(4));
    let (third, _) = guard(&limits, Some(&known));
    assert_eq!(passed(&ask(&third, &[], 5)), 4);
}

#[test]
fn health_is_asked_past_every_limit() {
    let limits = Limits {
        local: Some(rate(1)),
        probe: Some("/x".into()),
        ..limits()
    };
    let (guard, _) = guard(&limits, None);
    assert_eq!(passed(&ask(&guard, &[], 5)), 5);
}

#[test]
fn header_makes_limits_of_its_own() {
    let limits = Limits {
        global: Some(GlobalLimit {
            rate: rate(20),
            by: LimitKey::Header("x-player".into()),
            closed: false,
        }),
        ..limits()
    };
    let (guard, known) = guard(&limits, None);
    // On credit, a tenth of the burst each, until the control plane was asked.
    assert_eq!(passed(&ask(&guard, &[("x-player", "a")], 5)), 2);
    assert_eq!(passed(&ask(&guard, &[("x-player", "b")], 5)), 2);
    assert_eq!(passed(&ask(&guard, &[], 5)), 2);
    assert_eq!(known[&limits.policy].counts.of(Refused::Global), 9);
}

#[test]
fn callers_are_told_apart_by_their_whole_name() {
    let id = |namespace: &str, name: &str| SpiffeId {
        trust_domain: Default::default(),
        service: ServiceName::new(namespace, name),
    };
    let keys = [("a", "b"), ("b", "a"), ("ab", ""), ("a", "bc"), ("ab", "c")]
        .map(|(namespace, name)| key_of_caller(&id(namespace, name)));
    let distinct: std::collections::BTreeSet<_> = keys.into_iter().collect();
    assert_eq!(distinct.len(), keys.len());
}

#[test]
fn faults_hit_their_share_of_what_they_mean() {
    let fault = |effect, share, headers| Fault {
        effect,
        share,
        headers,
    };
    let limits = Limits {
        faults: vec![
            fault(
                FaultEffect::Delay(Duration::from_millis(200)),
                SHARE_WHOLE,
                vec![],
            ),
            fault(
                FaultEffect::Status(503),
                5_000,
                vec![header("x-chaos", "1")],
            ),
            fault(FaultEffect::Grpc(7), SHARE_WHOLE, vec![]),
        ],
        ..limits()
    };
    let (guard, known) = guard(&limits, None);
    let calm = ask(&guard, &[], 100);
    assert!(
        calm.iter()
            .all(|one| one.as_ref().is_ok_and(|p| p.delay_ms == 200))
    );
    let chaos = ask(&guard, &[("x-chaos", "1")], 10_000);
    let aborted = chaos.len() - passed(&chaos);
    assert!((400..600).contains(&aborted), "{aborted}");
    assert_eq!(
        known[&limits.policy].counts.of(Refused::Aborted),
        aborted as u64
    );
    let reply = ask(&guard, &[("content-type", "application/grpc")], 1);
    let reply = reply[0].as_ref().unwrap_err();
    assert_eq!(
        (reply.reason, reply.grpc_status),
        (Some(Reason::Fault), Some(7))
    );
}

#[test]
fn urgency_comes_from_the_mesh_else_from_the_first_rule() {
    let limits = Limits {
        overload: Some(Overload {
            min_in_flight: 10,
            max_in_flight: 10,
            priorities: vec![PriorityRule {
                priority: Priority::Low,
                headers: vec![header("x-job", "sweep")],
            }],
            ..Overload::default()
        }),
        ..limits()
    };
    let (guard, known) = guard(&limits, None);
    let sweeps = ask(&guard, &[("x-job", "sweep")], 10);
    assert_eq!(passed(&sweeps), 7);
    let reply = sweeps[9].as_ref().unwrap_err();
    assert_eq!((reply.status, reply.reason), (503, Some(Reason::Overload)));
    let usual = ask(&guard, &[], 10);
    assert_eq!(passed(&usual), 2);
    let request = request(&[("x-job", "sweep")]);
    let told = Asker {
        caller: None,
        told: Some(Priority::Critical),
        rng: &mut fastrand::Rng::new(),
    };
    assert!(guard.admit(&request, told).is_ok());
    let counts = &known[&limits.policy].counts;
    let shed = Priority::ALL.map(|priority| counts.of(Refused::Shed(priority)));
    assert_eq!(shed, [3, 8, 0, 0]);
    drop((sweeps, usual));
    assert_eq!(known[&limits.policy].load.as_ref().unwrap().in_flight(), 0);
}
