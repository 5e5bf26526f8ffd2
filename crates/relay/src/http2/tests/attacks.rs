//! Each bound, reached.

use super::*;
use crate::hpack::TABLE_BYTES;

/// The bound that repeating `bytes` meets, and after how many times.
fn bound_of(served: &mut Served, bytes: impl Fn(u32) -> Vec<u8>) -> (Bound, u32) {
    for time in 0..20_000 {
        match served.receive(&bytes(time)) {
            Ok(events) => {
                for event in events {
                    match event {
                        Event::Reset { stream, .. } | Event::Refused { stream, .. } => {
                            served.server.release(stream, &mut served.out);
                        }
                        _ => {}
                    }
                }
            }
            Err(Broken::Bound(bound)) => {
                let said = served.said();
                assert!(
                    said.last().unwrap().ends_with("ENHANCE_YOUR_CALM"),
                    "{said:?}"
                );
                assert_eq!(served.receive(&get(1)).unwrap_err(), Broken::Before);
                return (bound, time);
            }
            Err(other) => panic!("{other} after {time}"),
        }
        served.out.clear();
    }
    panic!("never");
}

fn id(time: u32) -> u32 {
    2 * time + 1
}

#[test]
fn rapid_reset_dispatches_nothing_and_ends_the_connection() {
    let mut served = Served::new();
    let burst: Vec<u8> = (0..50)
        .flat_map(|n| [get(id(n)), reset(id(n), Code::CANCEL)].concat())
        .collect();
    assert!(served.receive(&burst).unwrap().is_empty());
    assert_eq!(served.server.streams(), 0);
    let (bound, times) = bound_of(&mut served, |time| {
        [get(id(50 + time)), reset(id(50 + time), Code::CANCEL)].concat()
    });
    assert_eq!(bound, Bound::Resets);
    assert!(times < 100, "{times}");
}

#[test]
fn resets_in_a_later_batch_count_until_the_driver_lets_go() {
    let mut served = Served::new();
    let first: Vec<u8> = (0..100).flat_map(|n| get(id(n))).collect();
    let streams = served.streams(&first);
    assert_eq!(streams.len(), 100);
    let resets: Vec<u8> = (0..50).flat_map(|n| reset(id(n), Code::CANCEL)).collect();
    assert_eq!(served.receive(&resets).unwrap().len(), 50);
    // The wire has room for fifty more, the backends don't.
    let events = served.receive(&get(id(100))).unwrap();
    assert!(matches!(events[..], [Event::Over(Bound::Streams)]));
    assert_eq!(served.said().last().unwrap(), "reset 201 REFUSED_STREAM");
    served.server.release(streams[0], &mut served.out);
    assert_eq!(served.streams(&get(id(101))).len(), 1);
}

#[test]
fn a_fifth_of_requests_may_be_reset_for_ever() {
    let mut served = Served::new();
    for time in 0..2000 {
        let stream = served.streams(&get(id(time)))[0];
        if time % 5 == 0 {
            let events = served.receive(&reset(id(time), Code::CANCEL)).unwrap();
            assert!(matches!(events[..], [Event::Reset { .. }]));
        } else {
            served
                .server
                .respond(stream, &own(200, Framing::None), &mut served.out)
                .unwrap();
        }
        served.server.release(stream, &mut served.out);
        served.out.clear();
    }
}

/// CVE-2025-8671 in every way that a peer has of making us reset.
#[test]
fn resets_that_we_are_made_to_send_count_as_the_peers() {
    type Provocation = fn(u32) -> Vec<u8>;
    let provocations: [(&str, Provocation); 9] = [
        ("empty update", |n| [post(id(n)), window(id(n), 0)].concat()),
        ("window overflow", |n| {
            [post(id(n)), window(id(n), i32::MAX as u32)].concat()
        }),
        ("data behind the end", |n| {
            [get(id(n)), data(id(n), false, b"x")].concat()
        }),
        ("head behind the end", |n| {
            [get(id(n)), headers(id(n), true, &[("x", "y")])].concat()
        }),
        ("malformed", |n| {
            headers(id(n), true, &with(GET, &[("connection", "close")]))
        }),
        ("another length", |n| {
            [
                headers(id(n), false, &with(POST, &[("content-length", "1")])),
                data(id(n), true, b"xy"),
            ]
            .concat()
        }),
        ("trailers that end nothing", |n| {
            [post(id(n)), headers(id(n), false, &[("x", "y")])].concat()
        }),
        ("over the window", |n| {
            let many: Vec<u8> = (0..5)
                .flat_map(|_| data(id(n), false, &[0; 16_384]))
                .collect();
            [post(id(n)), many].concat()
        }),
        ("depends on itself", |n| {
            frame(
                kind::HEADERS,
                0x25,
                id(n),
                &[&id(n).to_be_bytes()[..], &[7], &block(GET)].concat(),
            )
        }),
    ];
    for (name, provocation) in provocations {
        let (bound, times) = bound_of(&mut Served::new(), provocation);
        assert_eq!(bound, Bound::Resets, "{name}");
        assert!((100..130).contains(&times), "{name} {times}");
    }
    // And streams beyond those offered.
    let mut served = Served::new();
    let full: Vec<u8> = (0..100).flat_map(|n| get(id(n))).collect();
    assert_eq!(served.streams(&full).len(), 100);
    let (bound, times) = bound_of(&mut served, |time| get(id(100 + time)));
    assert_eq!(bound, Bound::Resets);
    assert!((120..160).contains(&times), "{times}");
}

#[test]
fn requests_of_a_batch_that_breaks_the_connection_are_not_dispatched() {
    let mut served = Served::new();
    assert!(
        served
            .receive(&[get(1), get(3), data(0, false, b"")].concat())
            .is_err()
    );
    assert!(served.batch.is_empty());
}

#[test]
fn control_floods_end_and_slow_ones_never() {
    let ping = |_| frame(kind::PING, 0, 0, &[0; 8]);
    let floods: [(&str, Vec<u8>); 8] = [
        ("ping", ping(0)),
        ("ping answers", frame(kind::PING, flag::ACK, 0, &[0; 8])),
        ("settings", settings(&[(INITIAL_WINDOW, 70_000)])),
        ("settings acks", frame(kind::SETTINGS, flag::ACK, 0, &[])),
        ("priority", frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 0])),
        ("window updates", window(0, 1)),
        ("unknown", frame(0x42, 0, 0, b"")),
        ("goaway", frame(kind::GOAWAY, 0, 0, &[0; 8])),
    ];
    for (name, flood) in floods {
        let (bound, times) = bound_of(&mut Served::new(), |_| flood.clone());
        assert_eq!(bound, Bound::Control, "{name}");
        assert!(times <= bounds::POINTS_MAX, "{name} {times}");
    }
    let mut served = Served::new();
    served.streams(&post(1));
    for flood in [
        data(1, false, b""),
        frame(
            kind::DATA,
            flag::PADDED,
            1,
            &[&[200][..], &[0; 200]].concat(),
        ),
    ] {
        let mut served = Served::new();
        served.streams(&post(1));
        assert_eq!(bound_of(&mut served, |_| flood.clone()).0, Bound::Control);
    }
    for second in 0..20_000 {
        served.now_s = second;
        served.receive(&[ping(0), window(0, 1)].concat()).unwrap();
        served.out.clear();
    }
}

#[test]
fn peer_that_updates_windows_for_each_frame_it_gets_is_no_flood() {
    let mut served = Served::new();
    let stream = served.streams(&get(1))[0];
    served
        .server
        .respond(stream, &own(200, Framing::Chunked), &mut served.out)
        .unwrap();
    for _ in 0..20_000 {
        assert_eq!(
            served.server.body(stream, b"tiny", false, &mut served.out),
            Ok(4)
        );
        served
            .receive(&[window(0, 4), window(1, 4), frame(kind::PING, 0, 0, &[0; 8])].concat())
            .unwrap();
        served.out.clear();
    }
}

#[test]
fn tiny_windows_are_a_flood() {
    let mut served = Served::new();
    served.receive(&settings(&[(INITIAL_WINDOW, 0)])).unwrap();
    let stream = served.streams(&get(1))[0];
    served
        .server
        .respond(stream, &own(200, Framing::Chunked), &mut served.out)
        .unwrap();
    served
        .server
        .body(stream, &[0; 60_000], false, &mut served.out)
        .unwrap();
    for time in 0.. {
        if let Err(broken) = served.receive(&window(1, 1)) {
            assert_eq!(broken, Broken::Bound(Bound::Control));
            assert!(time <= bounds::POINTS_MAX);
            return;
        }
        assert_eq!(served.server.writable(&served.out), Some(stream));
        assert_eq!(
            served
                .server
                .body(stream, &[0; 50_000], false, &mut served.out),
            Ok(1)
        );
        served.out.clear();
    }
}

#[test]
fn continuation_floods_end() {
    let begun = frame(kind::HEADERS, 0, 1, b"");
    let mut served = Served::new();
    served.receive(&begun).unwrap();
    assert_eq!(
        bound_of(&mut served, |_| frame(kind::CONTINUATION, 0, 1, b"")).0,
        Bound::Continuations
    );
    let mut served = Served::new();
    served.receive(&begun).unwrap();
    let (bound, times) = bound_of(&mut served, |_| {
        frame(kind::CONTINUATION, 0, 1, &block(&[("a", "b")]))
    });
    assert_eq!(
        (bound, times),
        (Bound::Continuations, bounds::CONTINUATIONS_MAX)
    );
    let mut served = Served::new();
    served.receive(&begun).unwrap();
    let (bound, _) = bound_of(&mut served, |_| {
        frame(kind::CONTINUATION, 0, 1, &[0; 16_384])
    });
    assert_eq!(bound, Bound::Block);
    assert!(served.server.held_bytes() < 128 << 10);
}

#[test]
fn bomb_in_a_block_is_answered_and_held_by_nobody() {
    let mut served = Served::new();
    let mut bomb = block(GET);
    bomb.extend(b"\x40\x01a\x7f\x81\x1e"); // 4,000 bytes
    bomb.truncate(bomb.len() - 3);
    bomb.extend(b"\x7f\xa1\x1e"); // a value of 4,000 bytes
    bomb.extend([b'x'; 4000]);
    bomb.extend([0xbe; 10_000]); // forty megabytes
    let events = served.receive(&frame(kind::HEADERS, 5, 1, &bomb)).unwrap();
    assert!(
        matches!(
            events[..],
            [
                Event::Over(Bound::Head),
                Event::Refused {
                    refusal: Refusal::TooLarge,
                    ..
                }
            ]
        ),
        "{events:?}"
    );
    assert!(served.server.held_bytes() < 4 * TABLE_BYTES);
    // The table is in step.
    let mut next = block(GET);
    next.push(0xbe);
    let events = served.receive(&frame(kind::HEADERS, 5, 3, &next)).unwrap();
    let Event::Request { request, .. } = &events[0] else {
        panic!()
    };
    assert_eq!(
        request
            .headers()
            .get(Name::new(b"a").unwrap())
            .unwrap()
            .len(),
        4000
    );
}

#[test]
fn fields_and_crumbs_are_counted_before_they_are_joined() {
    let crumbs: Vec<(&str, &str)> = (0..101).map(|_| ("cookie", "a=b")).collect();
    assert_eq!(request(&crumbs, true).unwrap_err(), "refused 1 TooLarge");
    assert!(request(&crumbs[..100], true).is_ok());
    let mut served = Served::new();
    let few: Vec<u8> = (0..104).flat_map(|_| *b"\x82").collect(); // more than any list has
    assert!(
        served
            .receive(&frame(
                kind::HEADERS,
                5,
                1,
                &[&few[..], b"\x82\x82"].concat()
            ))
            .is_ok()
    );
}

#[test]
fn heads_of_all_streams_together_are_bounded() {
    let limits = Limits::default();
    assert!(limits.streams as usize * limits.http2_head_bytes() as usize <= 4 << 20);
    let wide = Limits {
        streams: 1000,
        ..limits
    };
    assert!(wide.streams as usize * wide.http2_head_bytes() as usize <= 4 << 20);
    let mut served = Served::limited(wide);
    let long = "v".repeat(120);
    let fields: Vec<(&str, &str)> = (0..40).map(|_| ("x", &long[..])).collect();
    let events = served
        .receive(&headers(1, true, &with(GET, &fields)))
        .unwrap();
    assert!(matches!(
        events[..],
        [Event::Over(Bound::Head), Event::Refused { .. }]
    ));
}

#[test]
fn trailers_are_bounded() {
    let mut served = Served::new();
    let long = "v".repeat(120);
    let fields: Vec<(&str, &str)> = (0..60).map(|_| ("x", &long[..])).collect();
    served.streams(&post(1));
    let events = served.receive(&headers(1, true, &fields)).unwrap();
    assert!(matches!(
        events[..],
        [
            Event::Over(Bound::Head),
            Event::Reset {
                why: Why::Broken(BadStream::TrailersTooLarge),
                ..
            }
        ]
    ));
}

#[test]
fn settings_of_thousands_of_entries_end() {
    let entries = vec![(INITIAL_WINDOW, 1); 2000];
    assert_eq!(
        Served::new().receive(&settings(&entries)).unwrap_err(),
        Broken::Bound(Bound::Settings)
    );
}

#[test]
fn replies_that_nobody_reads_are_bounded() {
    let mut served = Served::limited(Limits {
        send_buffer_bytes: 4000,
        ..Limits::default()
    });
    let ping = frame(kind::PING, 0, 0, &[0; 8]);
    let mut broken = None;
    for second in 0..2000 {
        served.now_s = second;
        broken = served.receive(&ping).err();
        if broken.is_some() {
            break;
        }
    }
    assert_eq!(broken, Some(Broken::Bound(Bound::Unread)));
    assert!(served.out.len() < 9000);
}

#[test]
fn interim_answers_are_bounded() {
    let mut asked = Asked::new();
    asked.open("GET", true);
    let interim = headers(1, false, &[(":status", "103")]);
    for _ in 0..INTERIM_ANSWERS {
        assert_eq!(asked.receive(&interim).unwrap(), ["interim 1 103"]);
    }
    assert_eq!(
        asked.receive(&interim).unwrap(),
        ["reset 1 Broken(Interim)"]
    );
}

/// A stream that breaks is nobody else's fault.
#[test]
fn bad_answer_leaves_the_other_streams_alone() {
    let mut asked = Asked::new();
    let streams: Vec<Stream> = (0..3).map(|_| asked.open("GET", true)).collect();
    let told = asked
        .receive(
            &[
                headers(1, false, &[(":status", "200"), ("connection", "x")]),
                headers(3, true, &[(":status", "200")]),
            ]
            .concat(),
        )
        .unwrap();
    assert_eq!(
        told,
        ["reset 1 Broken(Head(Field))", "head 3 200 None last"]
    );
    asked.out.clear();
    asked.client.release(streams[0], &mut asked.out);
    // What still comes for the broken one is not looked at.
    let told = asked
        .receive(
            &[
                data(1, false, b"x"),
                headers(1, true, &[("a", "b")]),
                headers(5, true, &[(":status", "204")]),
            ]
            .concat(),
        )
        .unwrap();
    assert_eq!(told, ["head 5 204 None last"]);
    assert!(asked.out.is_empty());
}

#[test]
fn answers_before_the_break_still_hold() {
    let mut asked = Asked::new();
    asked.open("GET", true);
    let (batch, pool, out) = (&mut asked.batch, &mut asked.pool, &mut asked.out);
    let bytes = [headers(1, true, &[(":status", "200")]), data(0, false, b"")].concat();
    assert!(asked.client.receive(&bytes, 0, batch, pool, out).is_err());
    assert_eq!(batch.drain().count(), 1);
    assert_eq!(asked.client.room(), 0);
    assert!(asked.client.is_done());
}

#[test]
fn bad_response_names_are_those_of_the_head() {
    assert_eq!(
        BadStream::Head(BadResponse::Length).code(),
        Code::PROTOCOL_ERROR
    );
    let labels: std::collections::BTreeSet<&str> =
        Bound::ALL.iter().map(|bound| bound.as_str()).collect();
    assert_eq!(labels.len(), Bound::ALL.len());
}

#[test]
fn idle_connection_holds_little() {
    let mut served = Served::new();
    let many: Vec<u8> = (0..100).flat_map(|n| get(id(n))).collect();
    for stream in served.streams(&many) {
        served
            .server
            .respond(stream, &own(200, Framing::None), &mut served.out)
            .unwrap();
        served.server.release(stream, &mut served.out);
    }
    served.server.rest();
    let held = served.server.held_bytes() + size_of::<Server>();
    assert!(held < 4 << 10, "{held}");
}

#[test]
fn whoever_gives_up_now_and_then_may_do_so_for_ever() {
    let mut served = Served::new();
    for time in 0..5_000 {
        served.now_s = time;
        let stream = served.streams(&get(id(time)));
        served.receive(&reset(id(time), Code::CANCEL)).unwrap();
        served.server.release(stream[0], &mut served.out);
        served.out.clear();
    }
}

/// The upstream stalled, we gave up on many of its streams, and then all that it had to say comes at once.
#[test]
fn answers_that_nobody_waits_for_any_more_end_no_connection() {
    let mut asked = Asked::new();
    for _ in 0..1_000 {
        let stream = asked.open("GET", true);
        asked.client.release(stream, &mut asked.out);
        asked.out.clear();
    }
    for time in 0..1_000 {
        let head = headers(id(time), false, &[(":status", "200")]);
        let body = data(id(time), true, b"too late");
        assert_eq!(
            asked.receive(&[head, body].concat()).unwrap(),
            Vec::<String>::new()
        );
    }
    let stream = asked.open("GET", true);
    let head = headers(stream.id(), true, &[(":status", "200")]);
    assert_eq!(asked.receive(&head).unwrap().len(), 1);
}
