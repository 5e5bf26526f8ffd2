//! Windows, both ways.

use super::*;

fn narrow(stream_window: u32, connection_window: u32, credit: Credit) -> Config {
    Config {
        stream_window,
        connection_window,
        credit,
        ..Config::server(Limits::default())
    }
}

#[test]
fn windows_are_given_back_as_the_other_side_drains() {
    let mut served = Served::with(narrow(1000, 65_535, Credit::Consumed));
    let stream = served.streams(&post(1))[0];
    served.receive(&data(1, false, &[0; 1000])).unwrap();
    assert!(served.said().is_empty());
    served.server.consumed(stream, 499, &mut served.out);
    assert!(served.said().is_empty());
    served.server.consumed(stream, 1, &mut served.out);
    assert_eq!(served.said(), ["window 1 500"]);
    let events = served.receive(&data(1, false, &[0; 501])).unwrap();
    assert!(matches!(
        events[..],
        [Event::Reset {
            why: Why::Broken(BadStream::FlowControl),
            ..
        }]
    ));
    assert_eq!(served.said(), ["reset 1 FLOW_CONTROL_ERROR"]);
    // What was never consumed goes back with the stream.
    served.server.release(stream, &mut served.out);
    let (window, unreturned) = served.server.receive_window();
    assert_eq!(window + unreturned, 65_535);
}

#[test]
fn more_than_was_delivered_is_never_given_back() {
    let mut served = Served::with(narrow(1000, 65_535, Credit::Consumed));
    let stream = served.streams(&[post(1), data(1, false, &[0; 900])].concat())[0];
    served.server.consumed(stream, 1_000_000, &mut served.out);
    assert_eq!(served.said(), ["window 1 900"]);
}

#[test]
fn stalled_stream_holds_its_own_window_only_when_credit_is_given_on_receipt() {
    for (credit, expected) in [
        (Credit::Consumed, &[][..]),
        (Credit::Received, &["window 0 48000"]),
    ] {
        let mut served = Served::with(narrow(65_535, 65_535, credit));
        served.streams(&post(1));
        for _ in 0..4 {
            served.receive(&data(1, false, &[0; 16_000])).unwrap();
        }
        assert_eq!(served.said(), expected);
    }
}

#[test]
fn connections_window_is_kept_by_all_together() {
    let mut served = Served::with(narrow(65_535, 65_535, Credit::Consumed));
    served.streams(&[post(1), post(3)].concat());
    for _ in 0..4 {
        served.receive(&data(1, false, &[0; 16_000])).unwrap();
    }
    let broken = served.receive(&data(3, false, &[0; 16_000])).unwrap_err();
    assert_eq!(broken, Broken::FlowControl);
}

#[test]
fn windows_told_before_the_acknowledgement_are_the_usual_ones() {
    let config = Arc::new(narrow(100, 65_535, Credit::Consumed));
    let (mut out, mut pool, mut batch) = (Vec::new(), Pool::default(), Batch::new());
    let mut server = Server::new(&config, &mut out);
    let mut receive = |bytes: &[u8]| {
        server
            .receive(bytes, 0, &mut batch, &mut pool, &mut out)
            .unwrap();
        batch.drain().map(|event| told(&event)).collect::<Vec<_>>()
    };
    receive(
        &[
            &PREFACE[..],
            &settings(&[]),
            &post(1),
            &data(1, false, &[0; 500]),
        ]
        .concat(),
    );
    receive(&frame(kind::SETTINGS, 1, 0, &[]));
    assert_eq!(
        receive(&data(1, false, &[0; 1])),
        ["reset 1 Broken(FlowControl)"]
    );
    receive(&post(3));
    assert_eq!(receive(&data(3, false, &[0; 100])), ["data 3 100"]);
    assert_eq!(
        receive(&data(3, false, &[0; 1])),
        ["reset 3 Broken(FlowControl)"]
    );
}

#[test]
fn body_is_sent_as_far_as_windows_and_buffer_go_and_goes_on_later() {
    let mut served = Served::new();
    served.receive(&settings(&[(INITIAL_WINDOW, 3)])).unwrap();
    let stream = served.streams(&get(1))[0];
    served.said();
    let (server, out) = (&mut served.server, &mut served.out);
    server
        .respond(stream, &own(200, Framing::Chunked), out)
        .unwrap();
    assert_eq!(server.body(stream, b"abcdef", true, out), Ok(3));
    assert_eq!((server.writable(out), server.stalled()), (None, 1));
    served.receive(&window(1, 1)).unwrap();
    assert_eq!(served.server.writable(&served.out), Some(stream));
    assert_eq!(
        served.server.body(stream, b"def", true, &mut served.out),
        Ok(1)
    );
    assert_eq!(served.server.writable(&served.out), None);
    served.receive(&settings(&[(INITIAL_WINDOW, 10)])).unwrap();
    assert_eq!(served.server.writable(&served.out), Some(stream));
    assert_eq!(
        served.server.body(stream, b"ef", true, &mut served.out),
        Ok(2)
    );
    assert_eq!(
        (served.server.writable(&served.out), served.server.stalled()),
        (None, 0)
    );
    assert_eq!(
        served.said(),
        [
            "headers 1",
            "data 1 3",
            "data 1 1",
            "settings ack",
            "data 1 2 last"
        ]
    );
}

#[test]
fn window_made_negative_by_settings_must_be_filled_first() {
    let mut served = Served::new();
    let stream = served.streams(&get(1))[0];
    served
        .server
        .respond(stream, &own(200, Framing::Chunked), &mut served.out)
        .unwrap();
    assert_eq!(
        served
            .server
            .body(stream, &[0; 1000], false, &mut served.out),
        Ok(1000)
    );
    served.receive(&settings(&[(INITIAL_WINDOW, 100)])).unwrap();
    assert_eq!(
        served.server.body(stream, b"x", false, &mut served.out),
        Ok(0)
    );
    served.receive(&window(1, 900)).unwrap();
    assert_eq!(served.server.writable(&served.out), None);
    served.receive(&window(1, 1)).unwrap();
    assert_eq!(served.server.writable(&served.out), Some(stream));
    assert_eq!(
        served.server.body(stream, b"xy", false, &mut served.out),
        Ok(1)
    );
}

#[test]
fn streams_take_turns_at_the_connections_window() {
    let mut served = Served::new();
    served
        .receive(&settings(&[(INITIAL_WINDOW, 1 << 20)]))
        .unwrap();
    let streams = served.streams(&[get(1), get(3), get(5)].concat());
    for stream in &streams {
        served
            .server
            .respond(*stream, &own(200, Framing::Chunked), &mut served.out)
            .unwrap();
        served
            .server
            .body(*stream, &[0; 70_000], false, &mut served.out)
            .unwrap();
    }
    let mut turns = Vec::new();
    for _ in 0..6 {
        served.receive(&window(0, 10_000)).unwrap();
        served.out.clear();
        while let Some(stream) = served.server.writable(&served.out) {
            turns.push(stream.id());
            served
                .server
                .body(stream, &[0; 60_000], false, &mut served.out)
                .unwrap();
        }
    }
    // The first was served at once as far as the window went.
    assert_eq!(turns, [1, 3, 5, 1, 3, 5]);
}

#[test]
fn full_buffer_is_no_lost_turn() {
    let mut served = Served::limited(Limits {
        send_buffer_bytes: 5000,
        ..Limits::default()
    });
    let stream = served.streams(&get(1))[0];
    served
        .server
        .respond(stream, &own(200, Framing::Chunked), &mut served.out)
        .unwrap();
    let sent = served
        .server
        .body(stream, &[0; 20_000], false, &mut served.out)
        .unwrap();
    assert!((4000..5000).contains(&sent));
    assert_eq!(served.server.writable(&served.out), None);
    served.out.clear(); // flushed
    assert_eq!(served.server.writable(&served.out), Some(stream));
    assert_eq!(
        served
            .server
            .body(stream, &vec![0; 20_000 - sent], false, &mut served.out),
        Ok(5000)
    );
    served.out.clear();
    assert_eq!(served.server.writable(&served.out), Some(stream));
    // Whose turn it was and who did nothing with it holds up nobody.
    assert_eq!(served.server.writable(&served.out), None);
}

#[test]
fn padding_is_given_back_at_once() {
    let mut served = Served::with(narrow(1000, 65_535, Credit::Consumed));
    let stream = served.streams(&post(1))[0];
    for _ in 0..100 {
        let payload = [&[99][..], &[0; 100]].concat(); // one byte of data
        served
            .receive(&frame(kind::DATA, flag::PADDED, 1, &payload))
            .unwrap();
        served.server.consumed(stream, 1, &mut served.out);
    }
    let (window, unreturned) = served.server.receive_window();
    assert_eq!(window + unreturned, 65_535);
    assert!(
        served
            .said()
            .iter()
            .all(|line| line.starts_with("window 1 "))
    );
}
