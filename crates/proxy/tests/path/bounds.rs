//! Every bound of one HTTP/2 connection: what goes beyond it is counted by name, and a good client beside it hears nothing of it.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_proxy::account::Event;

use crate::support::*;

/// `GET / http` of `battle`, in HPACK without its tables.
const GET: &[u8] = b"\x82\x84\x86\x41\x06battle";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A field that is in no table: name of one byte, value of `length` below 127.
fn field(length: usize) -> Vec<u8> {
    let mut field = vec![0x10, 1, b'x', length as u8];
    field.resize(field.len() + length, b'v');
    field
}

fn many(count: u32, make: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(make).collect()
}

/// Each with the least that goes beyond its bound.
fn floods() -> Vec<(Event, Vec<u8>)> {
    let get = |number: u32| frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, GET);
    let fields = |count: u32| [GET.to_vec(), many(count, |_| field(1))].concat();
    let long = [GET.to_vec(), many(3000, |_| field(120))].concat();
    let first = |block: &[u8]| frame(HEADERS, END_STREAM, 1, block);
    let more = |block: &[u8]| frame(CONTINUATION, 0, 1, block);
    vec![
        (Event::Http2Streams, many(101, get)),
        (
            Event::Http2Head,
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(101)),
        ),
        (
            Event::Http2Block,
            [
                first(&long[..16_000]),
                long[16_000..].chunks(16_000).flat_map(more).collect(),
            ]
            .concat(),
        ),
        (
            Event::Http2Continuations,
            [first(GET), many(40, |_| more(&field(1)))].concat(),
        ),
        (
            Event::ResetLimit,
            many(400, |number| {
                let reset = frame(RST_STREAM, 0, 2 * number + 1, &8u32.to_be_bytes());
                [get(number), reset].concat()
            }),
        ),
        (
            Event::Http2Control,
            many(3000, |_| frame(PING, 0, 0, b"12345678")),
        ),
        (
            Event::Http2Settings,
            frame(
                SETTINGS,
                0,
                0,
                &many(1000, |_| b"\x12\x34\0\0\0\0".to_vec()),
            ),
        ),
    ]
}

#[test]
fn each_flood_is_counted_by_name_and_nobody_else_hears_of_it() {
    let upstream = Upstream::start(|request, _| match request.path() {
        "/good" => ok("good"),
        _ => Act::Wait(Duration::from_millis(500)),
    });
    for (event, flood) in floods() {
        let sidecar = Setup::battle(&[upstream.address])
            .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
            .start();
        let mut good = Client::connect(sidecar.outbound);
        assert_eq!(good.get("battle", "/good").text(), "good");
        let mut stream = TcpStream::connect(sidecar.outbound).unwrap();
        let mut ears = stream.try_clone().unwrap();
        let listening = thread::spawn(move || {
            let _ = std::io::copy(&mut ears, &mut std::io::sink());
        });
        let greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let _ = stream.write_all(&[greeting, &flood[..]].concat());
        eventually(event.as_str(), || {
            assert_eq!(good.get("battle", "/good").text(), "good", "{event:?}");
            sidecar.event(event) >= 1
        });
        let _ = stream.shutdown(std::net::Shutdown::Both);
        listening.join().unwrap();
        assert_eq!(good.get("battle", "/good").text(), "good", "{event:?}");
        assert_eq!(sidecar.event(Event::Panicked), 0, "{event:?}");
    }
}

/// One that opens all its windows, asks for much, pings on and takes nothing.
#[test]
fn peer_that_makes_us_speak_and_does_not_listen_is_left() {
    let upstream = Upstream::start(|request, _| match request.path() {
        "/good" => ok("good"),
        _ => ok(&"x".repeat(20_000_000)),
    });
    let mut setup = Setup::battle(&[upstream.address])
        .with_cluster(|cluster| cluster.protocol = Protocol::Http1);
    setup.deadlines.stalled_write = Duration::from_millis(500);
    let sidecar = setup.start();
    let mut stream = TcpStream::connect(sidecar.outbound).unwrap();
    let wide = 0x7fff_0000_u32.to_be_bytes();
    let greeting = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[&[0, 4][..], &wide].concat()),
        frame(WINDOW_UPDATE, 0, 0, &wide),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, GET),
    ];
    stream.write_all(&greeting.concat()).unwrap();
    let ping = frame(PING, 0, 0, b"12345678");
    eventually("it is left", || {
        thread::sleep(Duration::from_millis(50));
        stream.write_all(&ping).is_err()
    });
    let [late, unread] = [Event::WriteDeadline, Event::Http2Unread];
    eventually("it is counted", || {
        sidecar.event(late) + sidecar.event(unread) == 1
    });
    assert_eq!(sidecar.event(Event::Panicked), 0);
    assert_eq!(sidecar.get("/good").text(), "good");
}
