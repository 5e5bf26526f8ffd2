use super::*;

#[test]
fn families_are_written_as_the_format_wants() {
    const REQUESTS: Family = Family::counter(
        "istio_requests_total",
        "Requests that were answered.\nOurs and \\theirs.",
    );
    const DURATION: Family = Family::histogram(
        "istio_request_duration_milliseconds",
        "Time to the last byte.",
    );
    const LEVEL: Family = Family::gauge("phalanx_level", "A level.");
    let mut out = Exposition::new();
    out.family(&REQUESTS)
        .sample(&[("reporter", "source"), ("path", "a\"b\\c\nd")], 3)
        .sample(&[("reporter", "destination"), ("path", "")], u64::MAX);
    out.family(&DURATION).histogram(
        &[("reporter", "source")],
        &[0.5, 1.0, 2500.0],
        &[1, 0, 2, 4],
        12_000.25,
    );
    out.family(&DURATION_PLAIN)
        .histogram(&[], &[1.0], &[0, 0], 0.0);
    out.family(&LEVEL)
        .sample(&[], 0.25)
        .sample(&[("a", "b")], f64::NAN);
    assert_eq!(
        out.finish(),
        "\
# HELP istio_requests_total Requests that were answered.\\nOurs and \\\\theirs.
# TYPE istio_requests_total counter
istio_requests_total{reporter=\"source\",path=\"a\\\"b\\\\c\\nd\"} 3
istio_requests_total{reporter=\"destination\",path=\"\"} 18446744073709551615
# HELP istio_request_duration_milliseconds Time to the last byte.
# TYPE istio_request_duration_milliseconds histogram
istio_request_duration_milliseconds_bucket{reporter=\"source\",le=\"0.5\"} 1
istio_request_duration_milliseconds_bucket{reporter=\"source\",le=\"1\"} 1
istio_request_duration_milliseconds_bucket{reporter=\"source\",le=\"2500\"} 3
istio_request_duration_milliseconds_bucket{reporter=\"source\",le=\"+Inf\"} 7
istio_request_duration_milliseconds_sum{reporter=\"source\"} 12000.25
istio_request_duration_milliseconds_count{reporter=\"source\"} 7
# HELP plain Without labels.
# TYPE plain histogram
plain_bucket{le=\"1\"} 0
plain_bucket{le=\"+Inf\"} 0
plain_sum 0
plain_count 0
# HELP phalanx_level A level.
# TYPE phalanx_level gauge
phalanx_level 0.25
phalanx_level{a=\"b\"} NaN
"
    );
}

const DURATION_PLAIN: Family = Family::histogram("plain", "Without labels.");

#[test]
fn counters_and_gauges_write_themselves() {
    let (counter, gauge) = (Counter::new("c_total", "Count."), Gauge::new("g", "Level."));
    counter.add(2);
    gauge.set(7);
    let mut out = Exposition::new();
    counter.write(&mut out);
    gauge.write(&mut out);
    assert_eq!(
        out.finish(),
        "# HELP c_total Count.\n# TYPE c_total counter\nc_total 2\n# HELP g Level.\n# TYPE g gauge\ng 7\n"
    );
}

#[test]
#[should_panic(expected = "written twice")]
#[cfg(debug_assertions)]
fn a_family_is_written_once() {
    let gauge = Gauge::new("g", "Level.");
    let mut out = Exposition::new();
    gauge.write(&mut out);
    gauge.write(&mut out);
}
