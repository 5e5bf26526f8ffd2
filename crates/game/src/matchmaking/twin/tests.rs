use super::*;
use crate::matchmaking::rules::{RulesSpec, Widening};

fn rules(window: f64) -> Arc<MatchRules> {
    let mut spec = RulesSpec::simple(2, 2, "eu", 120);
    spec.rating.window = Widening::fixed(window);
    spec.check().unwrap().shared()
}

fn arrivals() -> Vec<Arrival> {
    Synthetic {
        seconds: 60,
        per_s: 10.0,
        parties: vec![7, 3],
        patience_s: 60,
        ..Synthetic::default()
    }
    .arrivals(&rules(1.0))
}

#[test]
fn a_run_conserves_tickets_breaks_no_rule_and_repeats_itself() {
    let arrivals = arrivals();
    let report = run(&rules(2.0), &arrivals, &Course::default());
    assert_eq!(report.arrived, 600);
    assert_eq!(
        report.arrived,
        report.refused + report.matched + report.left + report.waiting
    );
    assert!(report.violations.is_empty(), "{:?}", report.violations);
    assert!(report.matched > 300 && report.left > 0, "{report}");
    assert_eq!(report, run(&rules(2.0), &arrivals, &Course::default()));
}

#[test]
fn a_wider_window_is_seen_to_wait_less_for_worse_matches() {
    let arrivals = arrivals();
    let course = Course::default();
    let (narrow, wide) = (
        run(&rules(1.0), &arrivals, &course),
        run(&rules(20.0), &arrivals, &course),
    );
    let of = |report: &Report| {
        let cohort = report.cohort(By::Region, "eu").unwrap();
        (cohort.wait_ms.p95, cohort.matched)
    };
    assert!(of(&wide).0 < of(&narrow).0 && of(&wide).1 > of(&narrow).1);
    let both = Comparison {
        current: &narrow,
        candidate: &wide,
    };
    let text = both.to_string();
    assert!(text.contains("region     eu"), "{text}");
    assert!(narrow.to_string().lines().count() > 8);
}

#[test]
fn a_recording_comes_back_and_one_that_is_broken_names_its_line() {
    let arrivals = arrivals();
    let mut text = Vec::new();
    write(&arrivals, &mut text).unwrap();
    let again = read(text.as_slice()).unwrap();
    assert!(
        again == arrivals,
        "a recording differs from what was recorded"
    );
    let mut broken = text.clone();
    broken.extend(b"\n{\"ticket\":1}\n");
    assert!(matches!(
        read(broken.as_slice()),
        Err(TwinError::Parse { line: 602, .. })
    ));
    let long = vec![b' '; LINE_MAX + 2];
    assert!(matches!(
        read(long.as_slice()),
        Err(TwinError::Long { line: 1 })
    ));
    let mut ages = text.clone();
    let mut late = arrivals[0].clone();
    late.ticket.enqueued_ms = u64::MAX;
    write([&late], &mut ages).unwrap();
    assert!(matches!(read(ages.as_slice()), Err(TwinError::Span(_))));
    assert!(read(&b""[..]).unwrap().is_empty());
    assert_eq!(run(&rules(1.0), &[], &Course::default()).arrived, 0);
}

#[test]
fn an_idle_week_is_passed_over_and_no_course_lasts_for_ever() {
    let at = |enqueued_ms: u64, id: u64| Arrival {
        ticket: Ticket {
            id: TicketId(id),
            enqueued_ms,
            ..arrivals()[0].ticket.clone()
        },
        leaves_ms: Some(enqueued_ms.saturating_add(1_000)),
    };
    let week = 7 * 86_400_000;
    let course = Course::default();
    let report = run(&rules(1.0), &[at(0, 1), at(week, 2)], &course);
    assert_eq!((report.arrived, report.left), (2, 2));
    assert!(report.ticks < 100, "{report}");
    let report = run(&rules(1.0), &[at(0, 1), at(u64::MAX, 2)], &course);
    assert_eq!((report.arrived, report.left), (1, 1));
    let extreme = Synthetic {
        start_ms: u64::MAX - 5_000,
        seconds: u64::MAX,
        per_s: 1e-18,
        patience_s: u64::MAX,
        ..Synthetic::default()
    };
    assert_eq!(extreme.arrivals(&rules(1.0)).len(), 18);
}
