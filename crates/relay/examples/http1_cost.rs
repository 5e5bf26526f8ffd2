//! What reading a request and writing it on costs, in ns, beside httparse reading the same head.
//! `cargo run --release -p phalanx-relay --example http1_cost`

use std::hint::black_box;
use std::time::Instant;

use phalanx_relay::http1::{Answer, Event, Ready, Server, Turn};
use phalanx_relay::{Framing, Limits, Pool, ResponseHead, Value, names};

const REQUEST: &[u8] = b"GET /api/v1/players/42?full=1 HTTP/1.1\r\nHost: battle.default.svc.mesh\r\n\
User-Agent: game/1.0 (linux)\r\nAccept: */*\r\nAccept-Encoding: gzip, br\r\n\
X-Request-Id: 7f1c2f6e-2f3b-4f0e-9a53-0d1c3b7a9e11\r\n\
Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nCookie: session=abcdef0123456789\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\
Date: Sun, 22 Nov 2026 10:00:00 GMT\r\nServer: game\r\nCache-Control: no-store\r\n\r\n{\"player\": \"42\"}";

fn main() {
    let limits = Limits::default();
    let mut pool = Pool::default();
    let mut out = Vec::with_capacity(4096);
    println!(
        "request head {} bytes, 7 fields; answer {} bytes, 5 fields",
        REQUEST.len(),
        ANSWER.len()
    );
    measure("httparse, request head only", || {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut fields);
        black_box(request.parse(black_box(REQUEST))).is_ok()
    });
    let mut server = Server::default();
    let head = own(&pool_head(&mut pool));
    measure("read a request, answer it (204)", || {
        let mut input = black_box(REQUEST);
        out.clear();
        read(&mut server, &mut input, &mut pool, &limits, |_| {})
            && server.respond(&head, false, &mut out).is_ok()
            && server.end(None, &mut out).is_ok()
            && server.turn() == Turn::Next
    });
    measure("read a request in two pieces, answer it", || {
        let (mut first, mut second) = black_box(REQUEST).split_at(200);
        out.clear();
        !read(&mut server, &mut first, &mut pool, &limits, |_| {})
            && read(&mut server, &mut second, &mut pool, &limits, |_| {})
            && server.respond(&head, false, &mut out).is_ok()
            && server.end(None, &mut out).is_ok()
            && server.turn() == Turn::Next
    });
    let mut up = Vec::with_capacity(4096);
    measure(
        "relay whole: request read and written, answer read and written",
        || {
            let mut input = black_box(REQUEST);
            up.clear();
            out.clear();
            let mut exchange = None;
            read(&mut server, &mut input, &mut pool, &limits, |request| {
                exchange = Some(Ready::fresh().send(request, None, &mut up));
            });
            let Some(mut exchange) = exchange else {
                return false;
            };
            let mut input = black_box(ANSWER);
            while let Ok(Some(answer)) = exchange.read(&mut input, &mut pool, &limits) {
                match answer {
                    Answer::Head(head) => {
                        let _ = server.respond(&head, false, &mut out);
                        pool.put_head(head);
                    }
                    Answer::Body(data) => {
                        let _ = server.body(data, &mut out);
                    }
                    Answer::End(_) => {
                        let _ = server.end(None, &mut out);
                    }
                    Answer::Interim(_) => {}
                }
            }
            black_box(&up);
            black_box(&out);
            exchange.finish(input).is_ok() && server.turn() == Turn::Next
        },
    );
    println!(
        "structs: Server {} bytes, Exchange {} bytes",
        size_of::<Server>(),
        size_of::<phalanx_relay::http1::Exchange>()
    );
}

fn pool_head(pool: &mut Pool) -> ResponseHead {
    pool.head()
}

fn own(blank: &ResponseHead) -> ResponseHead {
    let mut head = blank.clone();
    head.own(204, Framing::None);
    if let Some(value) = Value::new(b"game") {
        head.headers.push(names::SERVER, value);
    }
    head
}

/// True when the request is complete.
fn read(
    server: &mut Server,
    input: &mut &[u8],
    pool: &mut Pool,
    limits: &Limits,
    mut seen: impl FnMut(&phalanx_relay::Checked),
) -> bool {
    while let Ok(Some(event)) = server.read(input, pool, limits) {
        match event {
            Event::Request(request) => {
                seen(&request);
                pool.put_workspace(request.into_workspace());
            }
            Event::Body(_) => {}
            Event::End(_) => return true,
        }
    }
    false
}

/// Median and range of nine rounds.
fn measure(what: &str, mut once: impl FnMut() -> bool) {
    const TIMES: u32 = 100_000;
    let mut rounds: Vec<f64> = (0..9)
        .map(|_| {
            let begun = Instant::now();
            for _ in 0..TIMES {
                assert!(once(), "{what}");
            }
            begun.elapsed().as_nanos() as f64 / f64::from(TIMES)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!(
        "{what}: {:.0} ns ({:.0}-{:.0})",
        rounds[4], rounds[0], rounds[8]
    );
}
