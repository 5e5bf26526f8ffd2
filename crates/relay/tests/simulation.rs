//! A caller, a relay of both codec halves and hostile or honest upstreams on one thread, from one seed: random pieces,
//! writes that block, resets at any byte. What comes out is what went in, or visibly broken; nothing is held at the end.

use std::collections::VecDeque;

use phalanx_relay::http1::{Answer, Event, Exchange, Phase, Ready, Server, Turn, Unread};
use phalanx_relay::{Framing, HeaderList, Limits, Pool, Reply, ResponseHead, Value, names};

/// One direction of a connection.
#[derive(Default)]
struct Wire {
    bytes: VecDeque<u8>,
    closed: bool,
    reset: bool,
}

impl Wire {
    /// Takes what fits, and sometimes nothing.
    fn write(&mut self, out: &mut Vec<u8>, rng: &mut fastrand::Rng) -> bool {
        let room = WIRE_BYTES.saturating_sub(self.bytes.len());
        let burst = rng.choice([1, 50, 5000]).unwrap();
        let len = rng.usize(..=room.min(burst)).min(out.len());
        self.bytes.extend(out.drain(..len));
        len > 0
    }

    fn read(&mut self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let max = rng.choice([1, 40, READ_BYTES]).unwrap();
        let len = rng.usize(..=max).min(self.bytes.len());
        self.bytes.drain(..len).collect()
    }

    fn is_ended(&self) -> bool {
        self.reset || (self.closed && self.bytes.is_empty())
    }
}

#[derive(Default)]
struct Link {
    up: Wire,
    down: Wire,
}

impl Link {
    fn reset(&mut self) {
        for wire in [&mut self.up, &mut self.down] {
            wire.bytes.clear();
            wire.reset = true;
        }
    }
}

const WIRE_BYTES: usize = 3000;
const READ_BYTES: usize = 2000;
/// Beyond this the relay takes no more from the other side.
const OUT_BYTES: usize = 4000;

fn body_of(id: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(id as u64);
    let len = rng.choice([0, 1, 10, 300, 9000]).unwrap();
    (0..len).map(|_| rng.u8(..)).collect()
}

/// What an honest upstream makes of a request.
fn answer_of(path: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = path.as_bytes().to_vec();
    answer.extend(body.iter().rev());
    answer
}

/// Sends all its requests ahead, written by hand.
struct Caller {
    out: Vec<u8>,
    unread: Vec<u8>,
    expected: VecDeque<Vec<u8>>,
    body: Vec<u8>,
    status: u16,
    exchange: Exchange,
    pool: Pool,
    answered: usize,
    refused: usize,
    broken: bool,
}

fn ask() -> Exchange {
    let request = phalanx_relay::http1::fuzz::asked(
        phalanx_relay::http1::fuzz::Request::Get,
        &Limits::default(),
    );
    Ready::fresh().send(&request.unwrap(), None, &mut Vec::new())
}

impl Caller {
    fn new(requests: usize, rng: &mut fastrand::Rng) -> Self {
        let (mut out, mut expected) = (Vec::new(), VecDeque::new());
        for number in 0..requests {
            let (id, path) = (rng.usize(..1000), format!("/{number}"));
            let mut body = body_of(id);
            match rng.u8(..3) {
                0 => {
                    body.clear();
                    out.extend(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").bytes());
                }
                1 => {
                    let length = body.len();
                    out.extend(
                        format!(
                            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
                        )
                        .bytes(),
                    );
                    out.extend(&body);
                }
                _ => {
                    out.extend(
                        format!(
                            "POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                        )
                        .bytes(),
                    );
                    let mut rest = &body[..];
                    while !rest.is_empty() {
                        let (chunk, after) = rest.split_at(rng.usize(1..=rest.len()));
                        out.extend(format!("{:X};x\r\n", chunk.len()).bytes());
                        out.extend(chunk);
                        out.extend(b"\r\n");
                        rest = after;
                    }
                    out.extend(b"0\r\nX-Sum: 1\r\n\r\n");
                }
            }
            expected.push_back(answer_of(&path, &body));
        }
        Self {
            out,
            unread: Vec::new(),
            expected,
            body: Vec::new(),
            status: 0,
            exchange: ask(),
            pool: Pool::default(),
            answered: 0,
            refused: 0,
            broken: false,
        }
    }

    fn step(&mut self, link: &mut Link, rng: &mut fastrand::Rng) -> bool {
        let mut moved = link.up.write(&mut self.out, rng);
        let read = link.down.read(rng);
        moved |= !read.is_empty();
        self.unread.extend(read);
        let unread = std::mem::take(&mut self.unread);
        let mut input = &unread[..];
        let limits = Limits::default();
        while !input.is_empty() || self.status > 0 {
            match self.exchange.read(&mut input, &mut self.pool, &limits) {
                Ok(Some(Answer::Head(head))) => self.status = head.status,
                Ok(Some(Answer::Body(data))) => self.body.extend_from_slice(data),
                Ok(Some(Answer::End(_))) => self.complete(),
                Ok(Some(Answer::Interim(_))) => {}
                Ok(None) => break,
                Err(error) => panic!("the relay wrote what can't be read: {error}"),
            }
        }
        self.unread = input.to_vec();
        if link.down.is_ended() && !self.broken {
            self.broken = true;
            if let Ok(Some(Answer::End(_))) = self.exchange.eof(&mut self.pool) {
                self.complete();
            }
            return true;
        }
        moved
    }

    fn complete(&mut self) {
        let expected = self
            .expected
            .pop_front()
            .expect("an answer nobody asked for");
        let body = std::mem::take(&mut self.body);
        if std::mem::take(&mut self.status) == 200 {
            assert_eq!(body, expected, "another's answer, or half of one");
            self.answered += 1;
        } else {
            self.refused += 1;
        }
        self.exchange = ask();
    }
}

/// Answers what it reads, sometimes badly.
struct Upstream {
    server: Server,
    unread: Unread,
    out: Vec<u8>,
    path: String,
    body: Vec<u8>,
    pool: Pool,
    closing: bool,
    hostile: bool,
}

impl Upstream {
    fn new(hostile: bool) -> Self {
        Self {
            server: Server::default(),
            unread: Unread::default(),
            out: Vec::new(),
            path: String::new(),
            body: Vec::new(),
            pool: Pool::default(),
            closing: false,
            hostile,
        }
    }

    fn step(&mut self, link: &mut Link, rng: &mut fastrand::Rng) -> bool {
        if self.hostile && rng.u16(..400) == 0 {
            link.reset();
        }
        if link.up.is_ended() || link.down.reset {
            link.down.closed = true;
            return false;
        }
        let mut moved = link.down.write(&mut self.out, rng);
        if self.closing {
            link.down.closed = self.out.is_empty();
            return moved;
        }
        let read = link.up.read(rng);
        moved |= !read.is_empty();
        self.unread.keep(&read, &mut self.pool);
        let mut input = self.unread.as_slice();
        let limits = Limits::default();
        let mut complete = false;
        while let Some(event) = self
            .server
            .read(&mut input, &mut self.pool, &limits)
            .expect("the relay sent what can't be read")
        {
            match event {
                Event::Request(request) => {
                    self.path = request.path().to_owned();
                    self.body.clear();
                }
                Event::Body(data) => self.body.extend_from_slice(data),
                Event::End(_) => complete = true,
            }
        }
        let left = input.len();
        self.unread.advance_to(left, &mut self.pool);
        if complete {
            assert_eq!(left, 0, "the relay sent ahead of the answer");
            self.answer(link, rng);
        } else if self.hostile && self.server.phase() == Phase::Busy && rng.u8(..100) == 0 {
            self.out
                .extend(b"HTTP/1.1 413 x\r\nContent-Length: 0\r\n\r\n"); // before it has read the body
            self.closing = true;
        }
        moved
    }

    fn answer(&mut self, link: &mut Link, rng: &mut fastrand::Rng) {
        let body = answer_of(&self.path, &self.body);
        if rng.bool() {
            self.out.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        if self.hostile {
            match rng.u8(..10) {
                0 => {
                    self.out.extend(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
                    );
                    self.closing = true;
                    return;
                }
                1 => {
                    self.out
                        .extend(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\nshort");
                    self.closing = true;
                    return;
                }
                2 => {
                    let sent = [
                        &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"[..],
                        b"short",
                    ];
                    self.out.extend(sent.concat());
                    self.closing = true;
                    return;
                }
                _ => {}
            }
        }
        if rng.u8(..5) == 0 {
            self.out.extend(b"HTTP/1.0 200 OK\r\n\r\n");
            self.out.extend(body);
            self.closing = true;
            return;
        }
        let chunked = rng.bool();
        let mut head = ResponseHead::blank();
        head.own(
            200,
            if chunked {
                Framing::Chunked
            } else {
                Framing::Length(body.len() as u64)
            },
        );
        let (server, out) = (&mut self.server, &mut self.out);
        server.respond(&head, rng.u8(..5) == 0, out).unwrap();
        for piece in body.chunks(700) {
            server.body(piece, out).unwrap();
        }
        let mut trailers = HeaderList::new();
        trailers.push(names::GRPC_STATUS, Value::new(b"0").unwrap());
        server.end(Some(&trailers), out).unwrap();
        self.closing = server.turn() == Turn::Close;
        // The answer to what nobody asked, at once: nobody can tell one that comes after the next request was sent.
        let surplus = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        let room = WIRE_BYTES.saturating_sub(link.down.bytes.len());
        if self.hostile && rng.u8(..5) == 0 && out.len() + surplus.len() <= room {
            link.down.bytes.extend(out.drain(..));
            link.down.bytes.extend(surplus);
        }
    }
}

/// One downstream connection and one upstream connection at a time.
struct Relay {
    server: Server,
    unread: Unread,
    out: Vec<u8>,
    upstream: Option<Outgoing>,
    ready: Option<Ready>,
    pool: Pool,
    limits: Limits,
    closing: bool,
    opened: usize,
    reused: usize,
    held_max: usize,
}

struct Outgoing {
    exchange: Exchange,
    unread: Unread,
    out: Vec<u8>,
    begun: bool,
}

impl Relay {
    fn new() -> Self {
        Self {
            server: Server::default(),
            unread: Unread::default(),
            out: Vec::new(),
            upstream: None,
            ready: None,
            pool: Pool::default(),
            limits: Limits::default(),
            closing: false,
            opened: 0,
            reused: 0,
            held_max: 0,
        }
    }

    fn step(
        &mut self,
        down: &mut Link,
        up: &mut Link,
        peer: &mut Upstream,
        rng: &mut fastrand::Rng,
    ) -> bool {
        let mut moved = down.down.write(&mut self.out, rng);
        if self.closing {
            down.down.closed = self.out.is_empty();
            return moved;
        }
        if self.unread.is_empty() {
            let read = down.up.read(rng);
            moved |= !read.is_empty();
            self.unread.keep(&read, &mut self.pool);
        }
        if let Some(outgoing) = &mut self.upstream {
            moved |= up.up.write(&mut outgoing.out, rng);
            if outgoing.unread.is_empty() {
                let read = up.down.read(rng);
                moved |= !read.is_empty();
                outgoing.unread.keep(&read, &mut self.pool);
            }
        } else if self.ready.is_some() && (!up.down.bytes.is_empty() || up.down.is_ended()) {
            self.ready = None; // a byte or an end on an idle connection spoils it
            moved = true;
        }
        moved |= self.request(up, peer, rng);
        moved |= self.answer(up);
        let held = self.unread.held_bytes()
            + self.server.held_bytes()
            + self.out.len()
            + self
                .upstream
                .as_ref()
                .map_or(0, |o| o.out.len() + o.unread.held_bytes());
        self.held_max = self.held_max.max(held);
        moved
    }

    /// Moves the request on.
    fn request(&mut self, up: &mut Link, peer: &mut Upstream, rng: &mut fastrand::Rng) -> bool {
        let before = self.unread.as_slice().len();
        let mut input = self.unread.as_slice();
        let mut moved = false;
        while self
            .upstream
            .as_ref()
            .is_none_or(|outgoing| outgoing.out.len() < OUT_BYTES)
        {
            match self.server.read(&mut input, &mut self.pool, &self.limits) {
                Ok(Some(Event::Request(request))) => {
                    let ready = self.ready.take();
                    self.reused += usize::from(ready.is_some());
                    let ready = ready.unwrap_or_else(|| {
                        *up = Link::default();
                        *peer = Upstream::new(peer.hostile);
                        self.opened += 1;
                        Ready::fresh()
                    });
                    let mut out = self.pool.buffer();
                    let exchange = ready.send(&request, None, &mut out);
                    self.pool.put_workspace(request.into_workspace());
                    self.upstream = Some(Outgoing {
                        exchange,
                        unread: Unread::default(),
                        out,
                        begun: false,
                    });
                }
                Ok(Some(Event::Body(data))) => {
                    // Of an upstream that is gone already nothing is left to do but read on.
                    if let Some(outgoing) = &mut self.upstream {
                        if rng.bool() {
                            outgoing.exchange.body(data, &mut outgoing.out).unwrap();
                        } else {
                            let frame = outgoing.exchange.body_frame(data.len()).unwrap();
                            let parts = [frame.head(), data, frame.tail()];
                            outgoing.out.extend(parts.concat());
                        }
                    }
                }
                Ok(Some(Event::End(trailers))) => {
                    if let Some(outgoing) = &mut self.upstream
                        && !outgoing.exchange.is_sent()
                    {
                        outgoing
                            .exchange
                            .end(trailers.as_ref(), &mut outgoing.out)
                            .unwrap();
                    }
                    moved = true;
                }
                Ok(None) => break,
                Err(error) => panic!("an honest caller was refused: {error}"),
            }
        }
        let left = input.len();
        self.unread.advance_to(left, &mut self.pool);
        moved || left < before
    }

    /// Moves the answer on.
    fn answer(&mut self, up: &mut Link) -> bool {
        let Some(outgoing) = &mut self.upstream else {
            return self.turn();
        };
        let mut input = outgoing.unread.as_slice();
        let before = input.len();
        let mut ended = false;
        let mut failed = false;
        while self.out.len() < OUT_BYTES && !ended && !failed {
            let heard = match outgoing
                .exchange
                .read(&mut input, &mut self.pool, &self.limits)
            {
                Ok(None) if input.is_empty() && up.down.is_ended() && !up.down.reset => {
                    outgoing.exchange.eof(&mut self.pool)
                }
                Ok(None) if up.down.reset => Err(phalanx_relay::http1::BrokenAnswer::Truncated),
                heard => heard,
            };
            match heard {
                Ok(Some(Answer::Interim(_))) => {}
                Ok(Some(Answer::Head(head))) => {
                    self.server.respond(&head, false, &mut self.out).unwrap();
                    outgoing.begun = true;
                    self.pool.put_head(head);
                }
                Ok(Some(Answer::Body(data))) => self.server.body(data, &mut self.out).unwrap(),
                Ok(Some(Answer::End(trailers))) => {
                    self.server.end(trailers.as_ref(), &mut self.out).unwrap();
                    ended = true;
                }
                Ok(None) => break,
                Err(_) => failed = true,
            }
        }
        let left = input.len();
        let moved = left < before || ended || failed;
        outgoing.unread.advance_to(left, &mut self.pool);
        if !ended && !failed {
            return moved;
        }
        let outgoing = self.upstream.take().unwrap();
        if failed && outgoing.begun {
            // The caller must see that it is not all: the connection is cut.
            self.closing = true;
        } else if failed {
            self.server
                .reply(&Reply::of(phalanx_model::Reason::NoRoute), &mut self.out)
                .unwrap();
        } else if outgoing.out.is_empty() {
            self.ready = outgoing.exchange.finish(outgoing.unread.as_slice()).ok();
        }
        if self.ready.is_none() {
            up.reset();
        }
        self.pool.put_buffer(outgoing.out);
        true
    }

    fn turn(&mut self) -> bool {
        match self.server.turn() {
            Turn::Close => {
                self.closing = true;
                true
            }
            Turn::Next => true,
            Turn::Answer | Turn::Unread | Turn::Tunnel => false,
        }
    }
}

struct Outcome {
    answered: usize,
    refused: usize,
    reused: usize,
    left: usize,
}

fn run(seed: u64, requests: usize, hostile: bool) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut caller = Caller::new(requests, &mut rng);
    let mut relay = Relay::new();
    let mut upstream = Upstream::new(hostile);
    let (mut down, mut up) = (Link::default(), Link::default());
    let mut quiet = 0;
    while (!caller.expected.is_empty() || relay.server.phase() != Phase::Idle) && !caller.broken {
        let moved = match rng.u8(..3) {
            0 => caller.step(&mut down, &mut rng),
            1 => relay.step(&mut down, &mut up, &mut upstream, &mut rng),
            _ => upstream.step(&mut up, &mut rng),
        };
        quiet = if moved { 0 } else { quiet + 1 };
        assert!(
            quiet < 5_000,
            "seed {seed}: nothing moves, {} to go",
            caller.expected.len()
        );
    }
    // Two reads, two outputs with one read's piece above the mark, and what doubling vectors add.
    assert!(
        relay.held_max < 64 << 10,
        "seed {seed}: {} bytes held",
        relay.held_max
    );
    if !caller.broken {
        while relay.turn() {}
        assert_eq!(relay.server.phase(), Phase::Idle, "seed {seed}");
        assert_eq!(
            relay.server.held_bytes() + relay.unread.held_bytes(),
            0,
            "seed {seed}"
        );
        assert!(relay.upstream.is_none());
    }
    assert!(relay.opened + relay.reused <= requests);
    Outcome {
        answered: caller.answered,
        refused: caller.refused,
        reused: relay.reused,
        left: caller.expected.len(),
    }
}

fn seeds() -> u64 {
    if std::env::var_os("PHALANX_SOAK").is_some() {
        3_000
    } else {
        150
    }
}

#[test]
fn honest_upstreams_answer_every_request_and_are_used_again() {
    let mut reused = 0;
    for seed in 0..seeds() {
        let outcome = run(seed, 12, false);
        assert_eq!(
            (outcome.answered, outcome.refused, outcome.left),
            (12, 0, 0),
            "seed {seed}"
        );
        reused += outcome.reused;
    }
    assert!(reused > 3 * seeds() as usize, "{reused}");
}

#[test]
fn hostile_upstreams_never_answer_for_another_and_breaks_are_seen() {
    let (mut answered, mut refused, mut cut) = (0, 0, 0);
    for seed in 0..seeds() {
        let outcome = run(seed, 12, true);
        answered += outcome.answered;
        refused += outcome.refused;
        cut += usize::from(outcome.left > 0);
    }
    assert!(
        answered > 0 && refused > 0 && cut > 0,
        "{answered} {refused} {cut}"
    );
}
