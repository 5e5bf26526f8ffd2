//! Random and hostile bytes: the same events however they are cut, at linear cost, with bounded memory.

use super::*;
use crate::http1::steps;

/// Parts of messages, right and wrong, to be put together at random.
const PARTS: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /a?b HTTP/1.1\r\n",
    "HEAD http://a/ HTTP/1.0\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 200\r\n",
    "HTTP/1.1 100 x\r\n",
    "HTTP/1.1 204 x\r\n",
    "Host: a\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: keep-alive\r\n",
    "Connection: close, x\r\n",
    "Expect: 100-continue\r\n",
    "X-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
    "Cookie: a=b\r\n",
    "\r\n",
    "\n",
    "\r",
    "hello",
    "5\r\nhello\r\n",
    "5;x=y\r\nhello\r\n",
    "0\r\n",
    "Grpc-Status: 0\r\n",
    " ",
    ":",
    "\0",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n",
];

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let parts = proptest::collection::vec(0..PARTS.len(), 0..12);
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (parts, changes).prop_map(|(parts, changes)| {
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| PARTS[*part].bytes()).collect();
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        bytes
    })
}

/// Small ones, so that they are met.
fn tight() -> Limits {
    Limits {
        head_bytes: 160,
        head_fields: 4,
        trailer_bytes: 60,
        ..Limits::default()
    }
}

fn cuts() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(0..4u8, 0..200),
        proptest::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn requests_are_the_same_however_they_are_cut(bytes in stream(), cuts in cuts()) {
        for limits in [Limits::default(), tight()] {
            if let Err(difference) = fuzz::requests(&bytes, &cuts, &limits) {
                return Err(TestCaseError::fail(difference.to_string()));
            }
        }
    }

    #[test]
    fn answers_are_the_same_however_they_are_cut(bytes in stream(), cuts in cuts()) {
        for request in [Request::Get, Request::Head, Request::WebSocket] {
            for limits in [Limits::default(), tight()] {
                if let Err(difference) = fuzz::answer(&bytes, &cuts, request, &limits) {
                    return Err(TestCaseError::fail(difference.to_string()));
                }
            }
        }
    }

    #[test]
    fn raw_bytes_are_the_same_however_they_are_cut(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cuts in cuts(),
    ) {
        prop_assert!(fuzz::requests(&bytes, &cuts, &Limits::default()).is_ok());
        prop_assert!(fuzz::answer(&bytes, &cuts, Request::Get, &Limits::default()).is_ok());
    }

    #[test]
    fn what_is_accepted_is_written_as_what_is_read_again(bytes in stream()) {
        let Ok((_, requests)) = serve(&bytes) else { return Ok(()) };
        for (checked, body) in requests {
            let mut out = Vec::new();
            let mut exchange = Ready::fresh().send(&checked, None, &mut out);
            if !checked.framing().is_empty() {
                exchange.body(&body, &mut out).unwrap();
                if exchange.end(None, &mut out).is_err() {
                    continue; // cut in the middle of its body
                }
            }
            let (_, again) = serve(&out).unwrap();
            prop_assert_eq!(again.len(), 1);
            prop_assert_eq!(&again[0].1, &body);
            prop_assert_eq!(again[0].0.path(), checked.path());
            prop_assert_eq!(again[0].0.authority(), checked.authority());
            prop_assert_eq!(again[0].0.version(), Version::Http11);
        }
    }
}

fn cases() -> u32 {
    if std::env::var_os("PHALANX_SOAK").is_some() {
        50_000
    } else {
        400
    }
}

/// Feeds `bytes` in pieces of `piece` bytes; the steps it took, and the most memory that was held on the way.
fn feed(bytes: &[u8], piece: usize) -> (u64, usize) {
    let (mut server, mut pool) = (Server::default(), Pool::default());
    let limits = Limits::default();
    let mut held = 0;
    steps::take();
    for mut input in bytes.chunks(piece) {
        loop {
            match server.read(&mut input, &mut pool, &limits) {
                Ok(Some(Event::Request(request))) => {
                    held = held.max(request.held_bytes() + server.held_bytes());
                    pool.put_workspace(request.into_workspace());
                }
                Ok(Some(Event::End(_))) => {
                    server
                        .reply(&Reply::of(Reason::NoRoute), &mut Vec::new())
                        .unwrap();
                    if server.turn() != Turn::Next {
                        return (steps::take(), held);
                    }
                }
                Ok(Some(Event::Body(_))) => {}
                Ok(None) => break,
                Err(_) => return (steps::take(), held),
            }
            held = held.max(server.held_bytes());
        }
    }
    (steps::take(), held)
}

#[test]
fn line_ends_are_found_wherever_they_stand() {
    for len in 0..40 {
        for cut in 0..=len {
            let value = "v".repeat(cut);
            let bytes = format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx: {value}\r\ny: {}\r\n\r\n",
                "w".repeat(len)
            );
            let checked = request(&bytes).unwrap();
            assert_eq!(checked.headers().len(), 2);
        }
    }
}

const HOSTILE: usize = 10 << 10;

fn hostile() -> Vec<Vec<u8>> {
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let begin = "GET / HTTP/1.1\r\nhost: a\r\n";
    let fill = |begin: &str, part: &str| {
        let mut bytes = begin.as_bytes().to_vec();
        while bytes.len() < HOSTILE {
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes.truncate(HOSTILE);
        bytes
    };
    vec![
        fill(begin, "a:\r\n"),
        fill(begin, "cookie: a\r\n"),
        fill(begin, "x"),
        fill("", "\r\n"),
        fill("GET /", "a"),
        fill("GET /", "/.."),
        fill("GET /", "%41"),
        fill("GET / HTTP/1.1\r\nhost: a\r\nconnection: ", "a,"),
        fill(head, "1\r\na\r\n"),
        fill(head, "1;aaaaaaaaaaaaaaaaa\r\na\r\n"),
        fill(&format!("{head}0\r\n"), "a:\r\n"),
        fill(&format!("{head}0\r\n"), "a"),
        fill("", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        fill(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9999999\r\n\r\n",
            "a",
        ),
        [&fill("GET /", "/../a")[..], b" HTTP/1.1\r\nhost: a\r\n\r\n"].concat(),
        [&fill(begin, "a:\r\n")[..399], b"\r\n\r\n"].concat(),
    ]
}

#[test]
fn ten_kilobytes_are_read_in_linear_steps_and_hold_little() {
    for bytes in hostile() {
        for piece in [1, 7, 1000, HOSTILE * 2] {
            let (steps, held) = feed(&bytes, piece);
            // Each byte at most twice for the lines, and once for chunks.
            assert!(
                steps <= 3 * bytes.len() as u64,
                "{steps} steps for {} bytes",
                bytes.len()
            );
            assert!(held <= 1 << 20, "{held} bytes held");
        }
    }
}

#[test]
fn many_pipelined_requests_cost_as_much_as_one_after_the_other() {
    let one = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let bytes = one.repeat(2000);
    let (mut server, mut pool) = (Server::default(), Pool::default());
    let limits = Limits::default();
    let mut unread = Unread::default();
    unread.keep(bytes.as_bytes(), &mut pool);
    steps::take();
    let mut count = 0;
    while !unread.is_empty() {
        let mut input = unread.as_slice();
        while let Some(event) = server.read(&mut input, &mut pool, &limits).unwrap() {
            if let Event::Request(request) = event {
                count += 1;
                pool.put_workspace(request.into_workspace());
            }
        }
        let left = input.len();
        unread.advance_to(left, &mut pool);
        server
            .reply(&Reply::of(Reason::NoRoute), &mut Vec::new())
            .unwrap();
        assert_eq!(server.turn(), Turn::Next);
    }
    assert_eq!(count, 2000);
    assert!(steps::take() <= 2 * bytes.len() as u64);
    assert_eq!(unread.held_bytes(), 0);
}
