use phalanx_relay::checked::Http2Pseudo;
use phalanx_relay::{Limits, Workspace};

use super::*;

fn called(timeout: &str) -> (Checked, Verdict, Option<u64>, Result<(), Reply>) {
    let pseudo = Http2Pseudo {
        method: "POST",
        authority: Some("battle:8080"),
        path: "/arena.Battle/Join",
        query: None,
        ended: false,
    };
    let headers = [
        ("content-type", "application/grpc"),
        ("grpc-timeout", timeout),
    ];
    let fields = headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
    let request = Checked::http2(Workspace::default(), pseudo, fields, &Limits::default());
    let mut request = request.unwrap();
    let rng = fastrand::Rng::new();
    let plan = Plan::empty();
    let mut context = StreamContext::new(Direction::Outbound, &Caller::Plain, false, rng);
    let verdict = admit(&plan, &mut request, &mut context);
    let left = left_ms(&context);
    std::thread::sleep(std::time::Duration::from_millis(5));
    let carried = carry(&mut request, &context);
    (request, verdict, left, carried)
}

#[test]
fn deadline_is_read_and_sent_on_without_the_time_spent() {
    let (request, verdict, left, carried) = called("2S");
    assert_eq!(verdict, Verdict::Continue);
    assert!(
        left.is_some_and(|left| left > 500 && left <= 2_000),
        "{left:?}"
    );
    assert!(carried.is_ok());
    let sent = deadline::parse(request.headers().get(names::GRPC_TIMEOUT).unwrap()).unwrap();
    assert!(sent <= 1_995_000_000, "{sent}");
}

#[test]
fn passed_deadline_is_not_sent() {
    let (_, verdict, ..) = called("0m");
    assert_eq!(verdict, Reason::Timeout.into());
    let (_, verdict, _, carried) = called("1m");
    assert_eq!(verdict, Verdict::Continue);
    assert_eq!(carried.unwrap_err().reason, Some(Reason::Timeout));
}

#[test]
fn what_is_no_timeout_passes_as_it_is() {
    let (request, verdict, left, carried) = called("soon");
    assert_eq!((verdict, left, carried), (Verdict::Continue, None, Ok(())));
    assert_eq!(
        request.headers().get(names::GRPC_TIMEOUT),
        Some(&b"soon"[..])
    );
}
