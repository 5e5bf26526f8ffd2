use phalanx_model::ServiceName;
use phalanx_relay::{Field, ResponseHead};

use super::*;

fn seen(status: u16, fields: &[(&str, &str)], body: &str) -> Seen {
    let mut head = ResponseHead::blank();
    head.status = status;
    for (name, value) in fields {
        head.headers.push_field(&Field::new(name, value).unwrap());
    }
    let mut seen = Seen::default();
    seen.head(&head);
    // In pieces, as bodies come.
    body.as_bytes().chunks(7).for_each(|piece| seen.body(piece));
    seen.end(whole(10));
    seen
}

fn whole(duration_us: u64) -> End {
    End {
        grpc_status: None,
        is_whole: true,
        duration_us,
    }
}

const JSON: [(&str, &str); 1] = [("content-type", "application/json; charset=utf-8")];

fn differing(original: &Seen, copy: &Seen, ignore: &Compare) -> Vec<String> {
    let found = judge(original, copy, ignore).unwrap();
    let shown =
        |d: &Difference| format!("{} {}: {} | {}", d.kind.as_str(), d.at, d.original, d.copy);
    found.iter().map(shown).collect()
}

fn bodies(one: &str, other: &str, ignore: &[&str]) -> Vec<String> {
    let ignore = Compare {
        headers: Vec::new(),
        paths: ignore.iter().map(|path| (*path).to_owned()).collect(),
    };
    differing(&seen(200, &JSON, one), &seen(200, &JSON, other), &ignore)
}

#[test]
fn json_is_compared_by_keys_and_types_not_by_values() {
    let one = r#"{"id": 1, "tags": ["a"], "of": {"name": "x"}}"#;
    assert!(bodies(one, r#"{"of": {"name": ""}, "tags": [], "id": 2.5}"#, &[]).is_empty());
    assert_eq!(
        bodies(
            one,
            r#"{"id": "1", "tags": [{}], "of": {"title": "x"}}"#,
            &[]
        ),
        [
            "body $.id: number | string",
            "body $.of.name: string | missing",
            "body $.of.title: missing | string",
            "body $.tags[]: string | object",
        ]
    );
    let rows = |key: &str| format!(r#"[{{"a": 1}}, {{"{key}": null}}]"#);
    assert_eq!(
        bodies(&rows("b"), &rows("c"), &["$[].b"]),
        ["body $[].c: missing | null"]
    );
    assert!(bodies(&rows("b"), &rows("c"), &["$[]"]).is_empty());
}

#[test]
fn anything_else_is_compared_byte_by_byte() {
    let text = [("content-type", "text/plain")];
    let none = Compare::default();
    let (one, same) = (
        seen(200, &text, "abcdefghijk"),
        seen(200, &text, "abcdefghijk"),
    );
    assert!(differing(&one, &same, &none).is_empty());
    let other = seen(200, &text, "abcdefghijX");
    let found = differing(&one, &other, &none);
    assert!(found[0].starts_with("body $: 11 bytes, hash "), "{found:?}");
    let long = "x".repeat(100_000);
    let (one, other) = (
        seen(200, &JSON, &long),
        seen(200, &JSON, &(long.clone() + "y")),
    );
    assert!(one.body.is_empty(), "too long to be kept");
    assert!(seen(200, &text, "abc").body.is_empty(), "no JSON");
    assert_eq!(differing(&one, &other, &none).len(), 1);
}

#[test]
fn headers_are_compared_by_name_and_few_by_value() {
    let one = seen(
        200,
        &[
            ("x-a", "1"),
            ("location", "/a"),
            ("date", "now"),
            ("set-cookie", "secret"),
        ],
        "",
    );
    let other = seen(
        404,
        &[("x-a", "2"), ("location", "/b"), ("x-new", "s3cret")],
        "",
    );
    let mut ignore = Compare::default();
    assert_eq!(
        differing(&one, &other, &ignore),
        [
            "status status: 200 | 404",
            "header location: /a | /b",
            "header set-cookie: there | missing",
            "header x-new: missing | there",
        ]
    );
    ignore.headers = vec!["location".into(), "set-cookie".into(), "x-new".into()];
    assert_eq!(
        differing(&one, &other, &ignore),
        ["status status: 200 | 404"]
    );
}

#[tokio::test]
async fn pairs_meet_in_any_order_and_are_counted_by_rule_and_mirror() {
    let comparisons = Arc::new(Comparisons::default());
    let cluster = ClusterName::outbound(ServiceName::new("default", "shadow"), 80);
    let ignore = Arc::new(Compare::default());
    for (copy_first, status) in [(true, 200), (false, 500)] {
        let pairing = comparisons
            .pairing("HTTPRoute/default/room/0", &ignore, "/a", 1)
            .unwrap();
        let (mut original, mut copy) = (pairing.original(), pairing.copy(&cluster));
        *original.seen() = seen(200, &[], "");
        *copy.seen() = seen(status, &[], "");
        let mut sides = [(original, 100), (copy, 300)];
        if copy_first {
            sides.reverse();
        }
        for (side, duration_us) in sides {
            side.end(whole(duration_us), &comparisons);
        }
    }
    let cut_off = comparisons
        .pairing("HTTPRoute/default/room/0", &ignore, "/b", 1)
        .unwrap();
    let (original, copy) = (cut_off.original(), cut_off.copy(&cluster));
    copy.end(whole(1), &comparisons);
    original.end(whole(1), &comparisons);
    let running = tokio::spawn(comparisons.clone().run());
    let totals = loop {
        match comparisons.all().first() {
            Some(all) if all.totals.compared + all.totals.unanswered == 3 => break all.clone(),
            _ => tokio::task::yield_now().await,
        }
    };
    running.abort();
    let expected = Totals {
        compared: 2,
        different: 1,
        unanswered: 1,
        kinds: [1, 0, 0],
        original_us: 200,
        copy_us: 600,
    };
    assert_eq!(totals.totals, expected);
    assert_eq!(
        (totals.samples.len(), totals.samples[0].path.as_str()),
        (1, "/a")
    );
}

#[test]
fn what_is_under_way_is_bounded_in_bytes() {
    let comparisons = Comparisons::default();
    let cluster = ClusterName::outbound(ServiceName::new("default", "shadow"), 80);
    let ignore = Arc::new(Compare::default());
    let begin = || comparisons.pairing("rule", &ignore, "/", 1);
    let pairings: Vec<_> = std::iter::from_fn(begin).collect();
    assert_eq!(pairings.len(), room::ROOM_MAX / (2 * SHARE));
    assert_eq!(comparisons.dropped.load(Ordering::Relaxed), 1);
    let sides = pairings
        .iter()
        .flat_map(|p| [p.original(), p.copy(&cluster)]);
    let mut sides: Vec<_> = sides.collect();
    assert!(begin().is_none());
    // Of these heads no body is kept, and of those bodies too much came.
    let mut head = ResponseHead::blank();
    for side in &mut sides {
        side.seen().head(&head);
    }
    let after_heads = comparisons.bounds.used();
    assert!(after_heads < room::ROOM_MAX / 4, "{after_heads}");
    drop((sides, pairings));
    assert_eq!(comparisons.bounds.used(), 0);
    let pairing = begin().unwrap();
    let mut side = pairing.original();
    for (name, value) in JSON {
        head.headers.push_field(&Field::new(name, value).unwrap());
    }
    side.seen().head(&head);
    assert_eq!(comparisons.bounds.used(), 2 * SHARE);
    for piece in [10_000; 9] {
        side.seen().body(&vec![b' '; piece]);
        assert!(side.seen().body.capacity() <= 64 << 10);
    }
    assert!(comparisons.bounds.used() < 2 * SHARE && side.seen().body.capacity() == 0);
    // Once it is over, it holds what it is.
    let mut short = pairing.copy(&cluster);
    short.seen().head(&head);
    short.seen().body(b"{}");
    short.end(whole(1), &comparisons);
    assert!(comparisons.bounds.used() < SHARE);
    side.end(whole(1), &comparisons);
    drop((pairing, comparisons));
}
