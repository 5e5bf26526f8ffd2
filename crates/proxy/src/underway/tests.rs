use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use phalanx_relay::Value;

const LINGER_MS: u64 = 250;

fn underway(cores: usize) -> Underway {
    Underway::new(cores, Correlate::default())
}

fn put(headers: &mut HeaderList, name: phalanx_relay::Name<'_>, value: &str) {
    headers.push(name, Value::new(value.as_bytes()).unwrap());
}

/// A request as it reaches the application: its colour (empty: none), and the number of its trace.
fn inbound(colour: &str, trace: u64) -> HeaderList {
    let mut headers = HeaderList::new();
    if !colour.is_empty() {
        put(&mut headers, names::X_ENV, colour);
        put(&mut headers, names::X_CANARY_ID, &format!("of {colour}"));
    }
    put(&mut headers, names::TRACEPARENT, &traceparent(trace));
    put(
        &mut headers,
        names::X_REQUEST_ID,
        &format!("request {trace}"),
    );
    headers
}

fn traceparent(trace: u64) -> String {
    format!("00-{:032x}-00000000000000aa-01", trace + 1)
}

fn shown(colour: &Colour) -> String {
    let mut headers = HeaderList::new();
    colour.give(&mut headers);
    let text = |name| String::from_utf8(headers.get(name).unwrap_or_default().to_vec()).unwrap();
    let env = text(names::X_ENV);
    // Told for itself, so it may be missing, but is never another's.
    let canary = text(names::X_CANARY_ID);
    let own = !env.is_empty() && canary == format!("of {env}");
    assert!(own || canary.is_empty(), "{canary} and {env}");
    env
}

fn cause(underway: &Underway, core: usize, headers: &HeaderList, now_ms: u64) -> (How, String) {
    let here = underway.here(core, now_ms).unwrap();
    match here.cause(headers) {
        Cause::Traced(colour) => (How::Traced, shown(&colour)),
        Cause::Correlated(colour) => (How::Correlated, shown(&colour)),
        Cause::Ambiguous { .. } => (How::Ambiguous, String::new()),
        Cause::Unknown | Cause::Foreign => (How::None, String::new()),
    }
}

#[test]
fn a_colour_is_given_where_all_candidates_share_it_and_the_baseline_is_one() {
    let (underway, bare) = (underway(2), HeaderList::new());
    assert_eq!(cause(&underway, 1, &bare, 0).0, How::None);
    let blue = underway.begin(0, &inbound("blue", 1), 10).unwrap();
    let expected = (How::Correlated, "blue".to_owned());
    assert_eq!(cause(&underway, 1, &bare, 10), expected);
    let again = underway.begin(1, &inbound("blue", 2), 20).unwrap();
    assert_eq!(cause(&underway, 0, &bare, 20), expected);
    let plain = underway.begin(1, &inbound("", 3), 30).unwrap();
    assert_eq!(cause(&underway, 0, &bare, 30).0, How::Ambiguous);
    underway.end(1, plain, Ended::Answered, 40);
    // What it began may still go on.
    assert_eq!(
        cause(&underway, 0, &bare, 40 + LINGER_MS - 1).0,
        How::Ambiguous
    );
    assert_eq!(cause(&underway, 0, &bare, 60 + LINGER_MS), expected);
    underway.end(0, blue, Ended::Answered, 1_000);
    underway.end(1, again, Ended::Answered, 1_000);
    assert_eq!(cause(&underway, 0, &bare, 1_000 + LINGER_MS - 1), expected);
    assert_eq!(cause(&underway, 0, &bare, 1_100 + LINGER_MS).0, How::None);
}

#[test]
fn a_trace_or_an_id_of_one_under_way_tells_its_child_among_others() {
    let underway = underway(2);
    // Nothing was coloured when this one came: it is not known by its trace.
    let early = underway.begin(1, &inbound("", 1), 0).unwrap();
    let _blue = underway.begin(0, &inbound("blue", 2), 10).unwrap();
    let _green = underway.begin(1, &inbound("green", 3), 10).unwrap();
    let mut child = HeaderList::new();
    put(&mut child, names::TRACEPARENT, &traceparent(2));
    // It is of the baseline in any case, and hides nobody.
    let blue = (How::Traced, "blue".to_owned());
    assert_eq!(cause(&underway, 1, &child, 20), blue);
    let mut its = HeaderList::new();
    put(&mut its, names::TRACEPARENT, &traceparent(1));
    assert_eq!(cause(&underway, 1, &its, 20).0, How::Ambiguous);
    underway.end(1, early, Ended::Answered, 20);
    let then = 100 + LINGER_MS;
    assert_eq!(
        cause(&underway, 1, &child, then),
        (How::Traced, "blue".to_owned())
    );
    let mut other = HeaderList::new();
    put(&mut other, names::X_REQUEST_ID, "request 3");
    assert_eq!(
        cause(&underway, 0, &other, then),
        (How::Traced, "green".to_owned())
    );
    // Of two minds: nobody's for sure.
    put(&mut child, names::X_REQUEST_ID, "request 3");
    assert_eq!(cause(&underway, 0, &child, then).0, How::Ambiguous);
    // One trace with two colours.
    let _red = underway.begin(0, &inbound("red", 3), then).unwrap();
    assert_eq!(cause(&underway, 0, &other, then).0, How::Ambiguous);
}

#[test]
fn a_trace_is_given_to_the_child_of_the_only_request() {
    let underway = underway(2);
    let mut sent = inbound("", 7);
    put(&mut sent, names::TRACESTATE, "vendor=opaque");
    let one = underway.begin(0, &sent, 0).unwrap();
    let sole = |now_ms| underway.here(1, now_ms).unwrap().sole();
    let mut child = HeaderList::new();
    sole(10).unwrap().give(&mut child);
    for name in [names::TRACEPARENT, names::TRACESTATE, names::X_REQUEST_ID] {
        assert_eq!(child.get(name), sent.get(name));
    }
    let mut own = HeaderList::new();
    put(&mut own, names::TRACEPARENT, &traceparent(99));
    sole(10).unwrap().give(&mut own);
    assert_eq!(
        own.get(names::TRACEPARENT),
        Some(traceparent(99).as_bytes())
    );
    assert_eq!(own.get(names::TRACESTATE), None, "that of another trace");
    assert_eq!(own.get(names::X_REQUEST_ID), sent.get(names::X_REQUEST_ID));
    let two = underway.begin(1, &inbound("", 8), 20).unwrap();
    assert!(sole(20).is_none());
    underway.end(0, one, Ended::Answered, 30);
    assert!(sole(40).is_none(), "the first may still be at work");
    let mut child = HeaderList::new();
    sole(50 + LINGER_MS).unwrap().give(&mut child);
    assert_eq!(
        child.get(names::TRACEPARENT),
        Some(traceparent(8).as_bytes())
    );
    underway.end(1, two, Ended::Answered, 400);
    assert!(sole(401).is_some());
    assert!(sole(420 + LINGER_MS).is_none());
}

#[test]
fn more_colours_than_rows_are_nobodys_and_rows_are_taken_over() {
    let (underway, bare) = (underway(1), HeaderList::new());
    let begin = |colour: usize, now_ms| {
        let headers = inbound(&format!("c{colour}"), colour as u64);
        underway.begin(0, &headers, now_ms).unwrap()
    };
    let tickets: Vec<Ticket> = (0..64).map(|colour| begin(colour, 0)).collect();
    let unnamed = begin(64, 0);
    for ticket in tickets {
        underway.end(0, ticket, Ended::Answered, 10);
    }
    let then = 10_000;
    assert_eq!(
        cause(&underway, 0, &bare, then).0,
        How::Ambiguous,
        "it has no name"
    );
    underway.end(0, unnamed, Ended::Answered, then);
    let _later = begin(65, 20_000);
    assert_eq!(
        cause(&underway, 0, &bare, 20_000),
        (How::Correlated, "c65".to_owned())
    );
    let mut long = HeaderList::new();
    put(&mut long, names::X_ENV, &"x".repeat(500));
    let _long = underway.begin(0, &long, 20_000).unwrap();
    assert_eq!(cause(&underway, 0, &bare, 20_000).0, How::Ambiguous);
}

#[test]
fn beside_another_process_nothing_is_sure() {
    let (underway, bare) = (underway(1), HeaderList::new());
    underway.blind(1_000);
    let _one = underway.begin(0, &inbound("blue", 1), 0).unwrap();
    assert_eq!(cause(&underway, 0, &bare, 999).0, How::Ambiguous);
    assert!(underway.here(0, 999).unwrap().sole().is_none());
    assert_eq!(cause(&underway, 0, &bare, 1_000).0, How::Correlated);
}

#[test]
fn off_means_off() {
    let correlate = Correlate {
        mode: CorrelateMode::Off,
        ..Correlate::default()
    };
    let underway = Underway::new(1, correlate);
    assert!(underway.begin(0, &inbound("blue", 1), 0).is_none());
    assert!(underway.here(0, 0).is_none());
}

fn of_player(env: &str, id: &str, trace: u64) -> HeaderList {
    let mut headers = inbound("", trace);
    if !env.is_empty() {
        put(&mut headers, names::X_ENV, env);
    }
    put(&mut headers, names::X_CANARY_ID, id);
    headers
}

/// `x-env` and `x-canary-id` that a call gets.
fn given(underway: &Underway, call: &HeaderList, now_ms: u64) -> (How, String, String) {
    let (how, colour) = match underway.here(0, now_ms).unwrap().cause(call) {
        Cause::Traced(colour) => (How::Traced, colour),
        Cause::Correlated(colour) => (How::Correlated, colour),
        Cause::Ambiguous { .. } => (How::Ambiguous, Colour::default()),
        Cause::Unknown | Cause::Foreign => (How::None, Colour::default()),
    };
    let mut headers = HeaderList::new();
    colour.give(&mut headers);
    let text = |name| String::from_utf8(headers.get(name).unwrap_or_default().to_vec()).unwrap();
    (how, text(names::X_ENV), text(names::X_CANARY_ID))
}

#[test]
fn ids_of_players_do_not_hide_the_colour_that_they_share() {
    let (underway, bare) = (underway(2), HeaderList::new());
    let _one = underway.begin(0, &of_player("blue", "li", 1), 0).unwrap();
    let of = |how, env: &str, id: &str| (how, env.to_owned(), id.to_owned());
    let both = of(How::Correlated, "blue", "li");
    assert_eq!(given(&underway, &bare, 0), both);
    // Far more of them than there are rows.
    let players = (0..200).map(|number| {
        let headers = of_player("blue", &format!("p{number}"), 100 + number);
        underway.begin(number as usize % 2, &headers, 0).unwrap()
    });
    let players: Vec<Ticket> = players.collect();
    assert_eq!(given(&underway, &bare, 0), of(How::Correlated, "blue", ""));
    let mut child = HeaderList::new();
    put(&mut child, names::TRACEPARENT, &traceparent(150));
    assert_eq!(given(&underway, &child, 0), of(How::Traced, "blue", "p50"));
    for (number, player) in players.into_iter().enumerate() {
        underway.end(number % 2, player, Ended::Answered, 0);
    }
    assert_eq!(given(&underway, &bare, 10_000), both);
    let _plain = underway.begin(1, &of_player("", "li", 2), 10_000).unwrap();
    assert_eq!(given(&underway, &bare, 10_000), of(How::Ambiguous, "", ""));
}

#[test]
fn what_nobody_waits_for_any_more_is_a_candidate_for_long() {
    for linger in [Duration::from_millis(LINGER_MS), Duration::ZERO] {
        let correlate = Correlate {
            linger,
            ..Correlate::default()
        };
        let underway = Underway::new(1, correlate);
        let left = underway.begin(0, &inbound("blue", 1), 0).unwrap();
        underway.end(0, left, Ended::Abandoned, 100);
        let _plain = underway.begin(0, &inbound("", 2), 200).unwrap();
        let bare = HeaderList::new();
        assert_eq!(cause(&underway, 0, &bare, 14_000).0, How::Ambiguous);
        assert!(underway.here(0, 14_000).unwrap().sole().is_none());
        let mut child = HeaderList::new();
        put(&mut child, names::TRACEPARENT, &traceparent(1));
        let blue = (How::Traced, "blue".to_owned());
        assert_eq!(cause(&underway, 0, &child, 14_000), blue);
        assert_eq!(cause(&underway, 0, &bare, 16_000).0, How::Correlated);
    }
}

#[test]
fn a_call_that_says_that_it_is_anothers_gets_nothing_of_an_application_that_passes_on() {
    let underway = underway(2);
    let _one = underway.begin(0, &inbound("blue", 1), 0).unwrap();
    let mut foreign = HeaderList::new();
    put(&mut foreign, names::TRACEPARENT, &traceparent(99));
    // It may make a trace of its own for each call.
    assert_eq!(cause(&underway, 1, &foreign, 0).0, How::Correlated);
    let mut child = HeaderList::new();
    put(&mut child, names::TRACEPARENT, &traceparent(1));
    assert_eq!(cause(&underway, 1, &child, 0).0, How::Traced);
    assert_eq!(cause(&underway, 1, &foreign, 0).0, How::None);
    // Of ids that is not known.
    let mut id = HeaderList::new();
    put(&mut id, names::X_REQUEST_ID, "made here");
    assert_eq!(cause(&underway, 1, &id, 0).0, How::Correlated);
    assert_eq!(
        cause(&underway, 1, &HeaderList::new(), 0).0,
        How::Correlated
    );
}

#[test]
fn a_trace_is_known_while_another_process_has_requests_too() {
    let underway = underway(1);
    underway.blind(1_000);
    let _one = underway.begin(0, &inbound("blue", 1), 0).unwrap();
    let mut child = HeaderList::new();
    put(&mut child, names::TRACEPARENT, &traceparent(1));
    assert_eq!(cause(&underway, 0, &child, 1).0, How::Traced);
    let mut foreign = HeaderList::new();
    put(&mut foreign, names::TRACEPARENT, &traceparent(2));
    assert_eq!(cause(&underway, 0, &foreign, 1).0, How::Ambiguous);
}

/// Core, colour, headers, ticket, and when it ended.
type Request = (usize, &'static str, HeaderList, Option<Ticket>, u64);

/// Requests begin and end on three cores, and make calls on any of them until the linger time is over. Traces are few, so
/// that several requests share one.
#[test]
fn no_call_gets_the_colour_or_the_trace_of_another_request() {
    let colours = ["", "blue", "green", "red", "grey"];
    let mut sure = [0; 2];
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (underway, mut now_ms) = (underway(3), 0);
        let (mut all, mut is_coloured): (Vec<Request>, bool) = Default::default();
        // Few colours and long pauses at times, else everything is ambiguous.
        let (kinds, pause_ms) = (rng.usize(1..=colours.len()), rng.u64(1..600));
        for _ in 0..200 {
            match rng.u32(0..15) {
                0..4 => {
                    let (core, colour) = (rng.usize(..3), colours[rng.usize(..kinds)]);
                    is_coloured |= !colour.is_empty();
                    // One begun before anything was coloured has a trace of its own.
                    let trace = rng.u64(..40) + if is_coloured { 0 } else { 1_000 };
                    let headers = inbound(colour, trace);
                    let ticket = underway.begin(core, &headers, now_ms);
                    all.push((core, colour, headers, ticket, u64::MAX));
                }
                4..7 if !all.is_empty() => {
                    let at = rng.usize(..all.len());
                    let (core, _, _, ticket, ended_ms) = &mut all[at];
                    if let Some(ticket) = ticket.take() {
                        underway.end(*core, ticket, Ended::Answered, now_ms);
                        *ended_ms = now_ms;
                    }
                }
                7..13 if !all.is_empty() => {
                    let (_, colour, headers, _, ended_ms) = &all[rng.usize(..all.len())];
                    if now_ms < ended_ms.saturating_add(LINGER_MS) {
                        let (core, carries) = (rng.usize(..3), rng.bool());
                        let found = called(&underway, core, (colour, headers), carries, now_ms);
                        sure[0] += usize::from(found == How::Traced);
                        sure[1] += usize::from(found == How::Correlated);
                    }
                }
                _ => now_ms += rng.u64(..pause_ms),
            }
        }
    }
    assert!(
        sure[0] > 1_000 && sure[1] > 1_000,
        "{sure:?}: nothing was tried"
    );
}

/// A call of the request, which may carry its trace.
fn called(
    underway: &Underway,
    core: usize,
    (colour, headers): (&str, &HeaderList),
    carries: bool,
    now_ms: u64,
) -> How {
    let mut call = HeaderList::new();
    let trace = headers.get(names::TRACEPARENT).unwrap();
    if carries {
        call.push(names::TRACEPARENT, Value::new(trace).unwrap());
    }
    let (how, given) = cause(underway, core, &call, now_ms);
    match how {
        How::Traced | How::Correlated => assert_eq!(given, colour, "{how:?}"),
        _ => assert!(given.is_empty()),
    }
    assert_ne!(how, How::None, "it is under way");
    if let Some(ids) = underway.here(core, now_ms).unwrap().sole() {
        let mut child = HeaderList::new();
        ids.give(&mut child);
        assert_eq!(child.get(names::TRACEPARENT), Some(trace));
    }
    how
}

/// As it is in earnest: three threads take requests, three others make the calls, and ends come at any time.
#[test]
fn no_call_gets_the_colour_of_another_request_across_threads() {
    let correlate = Correlate {
        linger: Duration::ZERO,
        ..Correlate::default()
    };
    let underway = Arc::new(Underway::new(3, correlate));
    let colours = ["", "blue", "green"];
    std::thread::scope(|scope| {
        for core in 0..3 {
            let (calls, called) = mpsc::sync_channel::<(usize, u64)>(4);
            let (done, ended) = mpsc::sync_channel::<()>(4);
            let ours = underway.clone();
            scope.spawn(move || {
                for round in 0..3_000u64 {
                    // Now one colour for a while, now all mixed.
                    let colour = match round / 50 % 2 {
                        0 => (round / 100 % 3) as usize,
                        _ => fastrand::usize(..3),
                    };
                    let trace = round * 3 + core as u64;
                    let ticket = ours.begin(core, &inbound(colours[colour], trace), round);
                    calls.send((colour, trace)).unwrap();
                    ended.recv().unwrap();
                    ours.end(core, ticket.unwrap(), Ended::Answered, 0);
                }
            });
            let theirs = underway.clone();
            scope.spawn(move || {
                for (colour, trace) in called {
                    let here = theirs.here((core + 1) % 3, 0).unwrap();
                    let mut call = HeaderList::new();
                    if trace % 2 == 0 {
                        put(&mut call, names::TRACEPARENT, &traceparent(trace));
                    }
                    match here.cause(&call) {
                        Cause::Traced(given) | Cause::Correlated(given) => {
                            assert_eq!(shown(&given), colours[colour]);
                        }
                        Cause::Ambiguous { .. } => {}
                        Cause::Unknown | Cause::Foreign => panic!("its cause is under way"),
                    }
                    done.send(()).unwrap();
                }
            });
        }
    });
}

#[test]
fn linger_time_zero_forgets_at_once() {
    let correlate = Correlate {
        linger: Duration::ZERO,
        ..Correlate::default()
    };
    let underway = Underway::new(1, correlate);
    let one = underway.begin(0, &inbound("blue", 1), 5).unwrap();
    underway.end(0, one, Ended::Answered, 5);
    assert_eq!(cause(&underway, 0, &HeaderList::new(), 5).0, How::None);
}
