use phalanx_relay::checked::{Http1Line, Workspace};
use phalanx_relay::{Limits, Value, Version};

use super::*;
use crate::config::{Correlate, CorrelateMode};
use crate::context::Outside;
use crate::underway::Underway;

fn request(fields: &[(&str, &str)]) -> Checked {
    let line = Http1Line {
        method: "GET",
        authority: None,
        path: "/",
        query: None,
        version: Version::Http11,
    };
    let host = [("host", "room")];
    let fields = host.iter().chain(fields);
    let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let made = Checked::http1(Workspace::default(), line, fields, &Limits::default());
    made.map_err(|(refusal, _)| refusal).unwrap()
}

fn underway(mode: CorrelateMode) -> Underway {
    let correlate = Correlate {
        mode,
        ..Correlate::default()
    };
    Underway::new(1, correlate)
}

/// What becomes of a call, and its `x-env`.
fn called(
    underway: &Underway,
    caller: &Caller,
    fields: &[(&str, &str)],
) -> (Verdict, Option<How>, String) {
    let (plan, rng) = (Plan::empty(), fastrand::Rng::with_seed(1));
    let mut context = StreamContext::new(Direction::Outbound, caller, false, rng);
    context.underway = underway.here(0, 0);
    let mut request = request(fields);
    let verdict = fill(&plan, &mut request, &mut context);
    let env = request.headers().get(names::X_ENV).unwrap_or_default();
    let env = String::from_utf8(env.to_vec()).unwrap();
    (verdict, context.correlated, env)
}

fn go(how: How, env: &str) -> (Verdict, Option<How>, String) {
    (Verdict::Continue, Some(how), env.to_owned())
}

#[test]
fn what_the_application_says_wins_and_what_it_leaves_out_is_given() {
    let underway = underway(CorrelateMode::On);
    assert_eq!(called(&underway, &Caller::Plain, &[]), go(How::None, ""));
    let blue = request(&[("x-env", "blue")]);
    let _one = underway.begin(0, blue.headers(), 0).unwrap();
    assert_eq!(
        called(&underway, &Caller::Plain, &[]),
        go(How::Correlated, "blue")
    );
    let own = [("x-env", "green")];
    assert_eq!(
        called(&underway, &Caller::Plain, &own),
        go(How::Carried, "green")
    );
    let _two = underway.begin(0, request(&[]).headers(), 0).unwrap();
    assert_eq!(
        called(&underway, &Caller::Plain, &[]),
        go(How::Ambiguous, "")
    );
}

#[test]
fn half_a_colour_is_filled_up_and_not_counted_as_carried() {
    let underway = underway(CorrelateMode::On);
    let blue = request(&[("x-env", "blue"), ("x-canary-id", "li")]);
    let _one = underway.begin(0, blue.headers(), 0).unwrap();
    let (plan, rng) = (Plan::empty(), fastrand::Rng::with_seed(1));
    let of = |fields: &[(&str, &str)]| {
        let mut context =
            StreamContext::new(Direction::Outbound, &Caller::Plain, false, rng.clone());
        context.underway = underway.here(0, 0);
        let mut call = request(fields);
        assert_eq!(fill(&plan, &mut call, &mut context), Verdict::Continue);
        let text = |name| {
            let value = call.headers().get(name).unwrap_or_default();
            String::from_utf8(value.to_vec()).unwrap()
        };
        let both = (text(names::X_ENV), text(names::X_CANARY_ID));
        (context.correlated.unwrap(), both)
    };
    let pair = |env: &str, id: &str| (env.to_owned(), id.to_owned());
    assert_eq!(of(&[]), (How::Correlated, pair("blue", "li")));
    let own = [("x-canary-id", "wu")];
    assert_eq!(of(&own), (How::Correlated, pair("blue", "wu")));
    let own = [("x-env", "green")];
    assert_eq!(of(&own), (How::Carried, pair("green", "")));
}

#[test]
fn what_comes_from_outside_is_nobodys_call() {
    let underway = underway(CorrelateMode::Strict);
    let _one = underway.begin(0, request(&[("x-env", "blue")]).headers(), 0);
    let outside = Caller::Outside(Outside {
        table: "edge".into(),
        is_secured: false,
    });
    let expected = (Verdict::Continue, None, String::new());
    assert_eq!(called(&underway, &outside, &[]), expected);
}

#[test]
fn strict_refuses_a_call_whose_colour_was_lost() {
    let underway = underway(CorrelateMode::Strict);
    let _one = underway.begin(0, request(&[("x-env", "blue")]).headers(), 0);
    assert_eq!(
        called(&underway, &Caller::Plain, &[]),
        go(How::Correlated, "blue")
    );
    let _two = underway.begin(0, request(&[]).headers(), 0);
    let (verdict, how, _) = called(&underway, &Caller::Plain, &[]);
    assert_eq!(
        (verdict, how),
        (Reason::ColourLost.into(), Some(How::Ambiguous))
    );
    let own = [("x-env", "blue")];
    assert_eq!(
        called(&underway, &Caller::Plain, &own),
        go(How::Carried, "blue")
    );
}

#[test]
fn trace_and_id_of_the_only_request_are_given() {
    let underway = underway(CorrelateMode::On);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let came = request(&[("traceparent", trace), ("x-request-id", "one")]);
    let _one = underway.begin(0, came.headers(), 0).unwrap();
    let (plan, rng) = (Plan::empty(), fastrand::Rng::with_seed(1));
    let mut context = StreamContext::new(Direction::Outbound, &Caller::Plain, false, rng);
    context.underway = underway.here(0, 0);
    let mut call = request(&[]);
    assert_eq!(fill(&plan, &mut call, &mut context), Verdict::Continue);
    assert_eq!(
        call.headers().get(names::TRACEPARENT),
        Some(trace.as_bytes())
    );
    assert_eq!(call.headers().get(names::X_REQUEST_ID), Some(&b"one"[..]));
    // Walked again, for want of a plan the first time: nothing is asked twice.
    call.headers_mut()
        .set(names::X_ENV, Value::new(b"given").unwrap());
    assert_eq!(fill(&plan, &mut call, &mut context), Verdict::Continue);
    assert_eq!(context.correlated, Some(How::None));
}
