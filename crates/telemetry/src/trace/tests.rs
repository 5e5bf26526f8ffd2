use fastrand::Rng;
use proptest::prelude::*;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn text(context: &TraceContext) -> String {
    String::from_utf8(context.encode().to_vec()).unwrap()
}

#[test]
fn valid_traceparents_are_read_and_written_alike() {
    for flags in ["00", "01", "02", "03"] {
        let value = format!("00-{TRACE}-{SPAN}-{flags}");
        assert_eq!(text(&TraceContext::parse(value.as_bytes()).unwrap()), value);
    }
}

#[test]
fn invalid_traceparents_are_refused_by_field() {
    let cases = [
        (String::new(), TraceError::Length),
        (format!("00-{TRACE}-{SPAN}-1"), TraceError::Length),
        (format!("00-{TRACE}-{SPAN}-001"), TraceError::Length),
        (format!("00-{TRACE}-{SPAN}-01-"), TraceError::Length),
        (format!("00-{TRACE}-{SPAN}-01-what"), TraceError::Length),
        (format!("01-{TRACE}-{SPAN}-01.what"), TraceError::Length),
        (format!("ff-{TRACE}-{SPAN}-01"), TraceError::Version),
        (format!("0G-{TRACE}-{SPAN}-01"), TraceError::Version),
        (format!("0-{TRACE}-{SPAN}-01"), TraceError::Length),
        (format!("000-{TRACE}-{SPAN}-01"), TraceError::Length),
        (format!("00_{TRACE}-{SPAN}-01"), TraceError::Separator),
        (format!("00-{TRACE}-{SPAN}_01"), TraceError::Separator),
        (
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            TraceError::TraceId,
        ),
        (
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            TraceError::TraceId,
        ),
        (
            format!("00-.{}-{SPAN}-01", &TRACE[1..]),
            TraceError::TraceId,
        ),
        (
            format!("00-{}-{SPAN}-010", &TRACE[1..]),
            TraceError::Separator,
        ),
        (
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            TraceError::SpanId,
        ),
        (
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            TraceError::SpanId,
        ),
        (format!("00-{TRACE}-{SPAN}-0."), TraceError::Flags),
        (format!("00-{TRACE}-{SPAN}-0A"), TraceError::Flags),
    ];
    for (value, error) in cases {
        assert_eq!(TraceContext::parse(value.as_bytes()), Err(error), "{value}");
    }
}

#[test]
fn unknown_versions_are_read_as_far_as_known() {
    for value in [
        format!("cc-{TRACE}-{SPAN}-01"),
        format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"),
    ] {
        assert_eq!(
            text(&TraceContext::parse(value.as_bytes()).unwrap()),
            format!("00-{TRACE}-{SPAN}-01")
        );
    }
}

#[test]
fn unknown_flags_are_cleared() {
    let value = format!("00-{TRACE}-{SPAN}-ff");
    assert_eq!(
        text(&TraceContext::parse(value.as_bytes()).unwrap()),
        format!("00-{TRACE}-{SPAN}-03")
    );
}

#[test]
fn white_space_around_is_no_part_of_the_value() {
    let value = format!("\t 00-{TRACE}-{SPAN}-01 \t");
    assert!(TraceContext::parse(value.as_bytes()).unwrap().sampled());
}

#[test]
fn several_traceparents_are_none() {
    let value = format!("00-{TRACE}-{SPAN}-01");
    assert!(TraceContext::of([]).is_none());
    assert!(TraceContext::of([value.as_bytes()]).is_some());
    assert!(TraceContext::of([value.as_bytes(), value.as_bytes()]).is_none());
}

#[test]
fn a_child_keeps_the_trace_and_changes_the_span() {
    let mut rng = Rng::with_seed(1);
    let parent = TraceContext::parse(format!("00-{TRACE}-{SPAN}-03").as_bytes()).unwrap();
    let child = parent.child(&mut rng);
    assert_eq!(
        (child.trace_id(), child.sampled(), child.random()),
        (parent.trace_id(), true, true)
    );
    assert_ne!(child.span_id(), parent.span_id());
}

#[test]
fn minted_traces_are_marked_random() {
    let mut rng = Rng::with_seed(2);
    let (quiet, loud) = (
        TraceContext::mint(&mut rng, false),
        TraceContext::mint(&mut rng, true),
    );
    assert!(quiet.random() && !quiet.sampled() && loud.random() && loud.sampled());
    assert_ne!(quiet.trace_id(), loud.trace_id());
}

#[test]
fn tracestates_are_taken_whole_or_not() {
    let long_key = "z".repeat(256);
    let long_value = "v".repeat(256);
    let members = |n: usize| {
        (0..n)
            .map(|i| format!("bar{i:02}=1"))
            .collect::<Vec<_>>()
            .join(",")
    };
    let valid: &[&[&str]] = &[
        &[],
        &[""],
        &["foo=1"],
        &["foo=1", ""],
        &["foo=1", "", "bar=2"],
        &["foo=1,bar=2", "baz=3"],
        &["foo=1,foo=2"],
        &["foo=1,,bar=2"],
        &["foo=1 \t , \t bar=2, \t baz=3"],
        &["foo=1\t \t", " \tbar=2"],
        &["0foo=1"],
        &["t@v=1"],
        &["t@v@w=1"],
        &["a_-*/@0=1"],
        &["foo= !\"#$%&'()*+-./0123456789:;<>?@ABC[\\]^_`abc{|}~"],
        &[&format!("{long_key}=1")],
        &[&format!("foo={long_value}")],
        &[&members(32)],
        &[&members(16), &members(16)],
    ];
    for case in valid {
        assert!(
            tracestate_valid(case.iter().map(|v| v.as_bytes())),
            "{case:?}"
        );
    }
    let invalid: &[&[&str]] = &[
        &["foo"],
        &["foo="],
        &["foo=\t"],
        &["=1"],
        &["foo =1"],
        &["FOO=1"],
        &["foo.bar=1"],
        &["@v=1"],
        &["_foo=1"],
        &["foo=bar=baz"],
        &["foo=\u{1}"],
        &["foo=ü"],
        &["foo=1", "bar"],
        &["foo=1;bar=2,baz"],
        &[&format!("z{long_key}=1")],
        &[&format!("foo=v{long_value}")],
        &[&members(33)],
        &[&members(17), &members(16)],
    ];
    for case in invalid {
        assert!(
            !tracestate_valid(case.iter().map(|v| v.as_bytes())),
            "{case:?}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read_in_canonical_form(value in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(context) = TraceContext::parse(&value) {
            prop_assert_eq!(TraceContext::parse(&context.encode()), Ok(context));
        }
        let _ = tracestate_valid([value.as_slice()]);
    }

    #[test]
    fn any_context_survives_its_header(trace in 1u128.., span in 1u64.., flags in 0u8..4) {
        let value = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
        prop_assert_eq!(text(&TraceContext::parse(value.as_bytes()).unwrap()), value);
    }

    #[test]
    fn one_changed_byte_never_yields_another_layout(at in 0usize..55, byte in any::<u8>()) {
        let mut value = format!("00-{TRACE}-{SPAN}-01").into_bytes();
        value[at] = byte;
        if let Ok(context) = TraceContext::parse(&value) {
            let hex = byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            prop_assert!(hex || byte == b'-', "{:?} gave {context:?}", String::from_utf8_lossy(&value));
        }
    }
}
