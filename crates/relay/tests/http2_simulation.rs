//! Callers, a relay with one shared upstream connection, and an upstream on one thread, from one seed: random pieces,
//! writes that block, windows of a few bytes, resets from every side. What comes out is what went in, or visibly broken;
//! at the end every window is whole and every slab empty.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use phalanx_relay::http2::{
    Batch, Client, Code, Config, Credit, Event, Phase, Server, Stream, Why,
};
use phalanx_relay::{
    Checked, Framing, HeaderList, Http2Pseudo, Limits, Pool, ResponseHead, Value, Workspace, names,
};

/// One direction of a connection.
#[derive(Default)]
struct Wire {
    bytes: VecDeque<u8>,
}

const WIRE_BYTES: usize = 3000;

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
        let max = rng.choice([1, 40, 2000]).unwrap();
        let len = rng.usize(..=max).min(self.bytes.len());
        self.bytes.drain(..len).collect()
    }
}

#[derive(Default)]
struct Link {
    up: Wire,
    down: Wire,
}

/// What is to be sent on one stream, one way.
#[derive(Default)]
struct Flow {
    pending: Vec<u8>,
    ended: bool,
    trailers: Option<HeaderList>,
    done: bool,
}

impl Flow {
    fn of(body: Vec<u8>, trailers: Option<HeaderList>) -> Self {
        Self {
            pending: body,
            ended: true,
            trailers,
            done: false,
        }
    }

    fn ends(&mut self, trailers: Option<HeaderList>) {
        self.ended = true;
        self.trailers = trailers;
    }
}

/// Sends as much as goes; tells how much. `send` is `body` of either role, `end` its `end`.
macro_rules! push {
    ($codec:expr, $stream:expr, $flow:expr, $out:expr) => {{
        let (stream, flow) = ($stream, &mut *$flow);
        let mut sent = 0;
        if !flow.done {
            let last = flow.ended && flow.trailers.is_none();
            if !flow.pending.is_empty() || last {
                match $codec.body(stream, &flow.pending, last, $out) {
                    Ok(len) => {
                        sent = len;
                        let whole = len == flow.pending.len();
                        flow.pending.drain(..len);
                        flow.done = whole && last;
                    }
                    Err(_) => flow.done = true, // reset: an event says so
                }
            }
            if flow.ended && flow.pending.is_empty() && !flow.done {
                let _ = $codec.end(stream, flow.trailers.as_ref(), $out);
                flow.done = true;
            }
        }
        sent
    }};
}

fn body_of(id: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(id as u64);
    let len = rng.choice([0, 1, 10, 300, 4000]).unwrap();
    (0..len).map(|_| rng.u8(..)).collect()
}

fn answer_of(path: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = path.as_bytes().to_vec();
    answer.extend(body.iter().rev());
    answer
}

fn trailers(rng: &mut fastrand::Rng) -> Option<HeaderList> {
    let mut list = HeaderList::new();
    list.push(names::GRPC_STATUS, Value::new(b"0").unwrap());
    rng.bool().then_some(list)
}

fn request(path: &str, length: Option<usize>, ended: bool) -> Checked {
    let pseudo = Http2Pseudo {
        method: "POST",
        authority: Some("a"),
        path,
        query: None,
        ended,
    };
    let text = length.unwrap_or_default().to_string();
    let fields = [(&b"content-length"[..], text.as_bytes())];
    let fields = fields.into_iter().take(usize::from(length.is_some()));
    Checked::http2(Workspace::default(), pseudo, fields, &Limits::default()).unwrap()
}

fn config(rng: &mut fastrand::Rng, credit: Credit) -> Config {
    Config {
        limits: Limits {
            streams: rng.choice([2, 5, 100]).unwrap(),
            resets: 1000,
            send_buffer_bytes: rng.choice([200, 4000]).unwrap(),
            ..Limits::default()
        },
        stream_window: rng.choice([20, 300, 3000, 70_000]).unwrap(),
        connection_window: rng.choice([65_535, 200_000]).unwrap(),
        credit,
        huffman: rng.bool(),
        secure: false,
    }
}

/// Asks, and compares what is answered.
struct Caller {
    client: Client,
    now_s: u32,
    config: Config,
    out: Vec<u8>,
    pool: Pool,
    batch: Batch,
    /// Ids of requests not sent yet.
    to_ask: Vec<usize>,
    open: BTreeMap<u32, Asked>,
    answered: usize,
    reset: usize,
    cancels: bool,
}

struct Asked {
    stream: Stream,
    flow: Flow,
    expected: Vec<u8>,
    body: Vec<u8>,
    status: u16,
}

impl Caller {
    fn new(place: usize, requests: usize, cancels: bool, rng: &mut fastrand::Rng) -> Self {
        let config = config(rng, Credit::Received);
        let mut out = Vec::new();
        Self {
            client: Client::new(&Arc::new(config.clone()), &mut out),
            config,
            now_s: 0,
            out,
            pool: Pool::default(),
            batch: Batch::new(),
            to_ask: (0..requests).map(|n| place * 1000 + n).collect(),
            open: BTreeMap::new(),
            answered: 0,
            reset: 0,
            cancels,
        }
    }

    fn is_done(&self) -> bool {
        self.to_ask.is_empty() && self.open.is_empty() && self.out.is_empty()
    }

    fn step(&mut self, link: &mut Link, rng: &mut fastrand::Rng) -> bool {
        self.now_s += 1; // so that windows of a byte are no flood
        let mut moved = link.up.write(&mut self.out, rng);
        if self.out.len() < self.config.limits.send_buffer_bytes {
            let read = link.down.read(rng);
            moved |= !read.is_empty();
            self.receive(&read);
        }
        // A stream opened before the peer's settings are known may be one too many.
        if self.client.room() > 0 && self.client.phase() != Phase::Greeting && rng.bool() {
            moved |= self.ask(rng);
        }
        if self.cancels && rng.u8(..60) == 0 {
            let picked = rng.usize(..=self.open.len());
            if let Some(id) = self.open.keys().nth(picked).copied() {
                let asked = self.open.remove(&id).unwrap();
                self.client.release(asked.stream, &mut self.out);
                self.reset += 1;
                moved = true;
            }
        }
        while let Some(stream) = self.client.writable(&self.out) {
            if let Some(asked) = self.open.get_mut(&stream.id()) {
                moved |= push!(self.client, stream, &mut asked.flow, &mut self.out) > 0;
            }
        }
        moved
    }

    fn ask(&mut self, rng: &mut fastrand::Rng) -> bool {
        let Some(id) = self.to_ask.pop() else {
            return false;
        };
        let (path, body) = (format!("/{id}"), body_of(id));
        let length = rng.bool().then_some(body.len());
        let mut flow = Flow::of(body.clone(), trailers(rng));
        let bodyless = body.is_empty() && flow.trailers.is_none() && rng.bool();
        let request = request(&path, length, bodyless);
        let stream = self.client.open(&request, None, &mut self.out).unwrap();
        flow.done = request.framing().is_empty();
        push!(self.client, stream, &mut flow, &mut self.out);
        let asked = Asked {
            stream,
            flow,
            expected: answer_of(&path, &body),
            body: Vec::new(),
            status: 0,
        };
        self.open.insert(stream.id(), asked);
        true
    }

    fn receive(&mut self, input: &[u8]) {
        let (batch, pool, out) = (&mut self.batch, &mut self.pool, &mut self.out);
        let read = self.client.receive(input, self.now_s, batch, pool, out);
        read.expect("the relay wrote what can't be read");
        for event in batch.drain() {
            let (stream, last) = match &event {
                Event::Head { stream, last, .. } | Event::Data { stream, last, .. } => {
                    (*stream, *last)
                }
                Event::End { stream, .. } | Event::Reset { stream, .. } => (*stream, true),
                _ => continue,
            };
            let Some(asked) = self.open.get_mut(&stream.id()) else {
                continue;
            };
            match event {
                Event::Head { head, .. } => asked.status = head.status,
                Event::Data { at, .. } => {
                    asked.body.extend_from_slice(&input[at.clone()]);
                    self.client.consumed(stream, at.len(), out);
                }
                Event::Reset { why, .. } => {
                    let of_peer = matches!(why, Why::Peer(_) | Why::Unprocessed);
                    assert!(of_peer, "the relay broke a stream: {why:?}");
                    self.reset += 1;
                    asked.status = 0;
                }
                _ => {}
            }
            if last {
                if asked.status == 200 {
                    assert_eq!(
                        asked.body, asked.expected,
                        "another's answer, or half of one"
                    );
                    self.answered += 1;
                }
                self.client.release(stream, out);
                self.open.remove(&stream.id());
            }
        }
    }
}

/// Answers what it reads, sometimes slowly, badly or not at all.
struct Upstream {
    server: Server,
    now_s: u32,
    config: Config,
    out: Vec<u8>,
    pool: Pool,
    batch: Batch,
    open: BTreeMap<u32, Answering>,
    hostile: bool,
}

struct Answering {
    stream: Stream,
    path: String,
    body: Vec<u8>,
    unconsumed: usize,
    complete: bool,
    flow: Option<Flow>,
}

impl Upstream {
    fn new(hostile: bool, rng: &mut fastrand::Rng) -> Self {
        let config = config(rng, Credit::Consumed);
        let mut out = Vec::new();
        Self {
            server: Server::new(&Arc::new(config.clone()), &mut out),
            config,
            now_s: 0,
            out,
            pool: Pool::default(),
            batch: Batch::new(),
            open: BTreeMap::new(),
            hostile,
        }
    }

    fn step(&mut self, link: &mut Link, rng: &mut fastrand::Rng) -> bool {
        self.now_s += 1; // so that windows of a byte are no flood
        let mut moved = link.down.write(&mut self.out, rng);
        if self.out.len() < self.config.limits.send_buffer_bytes {
            let read = link.up.read(rng);
            moved |= !read.is_empty();
            self.receive(&read);
        }
        for id in self.open.keys().copied().collect::<Vec<_>>() {
            if rng.u8(..3) == 0 {
                moved |= self.answer(id, rng);
            }
        }
        while let Some(stream) = self.server.writable(&self.out) {
            moved = true;
            if let Some(answering) = self.open.get_mut(&stream.id())
                && let Some(flow) = &mut answering.flow
            {
                push!(self.server, stream, flow, &mut self.out);
            }
            self.settle(stream.id());
        }
        moved
    }

    fn receive(&mut self, input: &[u8]) {
        let (batch, pool, out) = (&mut self.batch, &mut self.pool, &mut self.out);
        let read = self.server.receive(input, self.now_s, batch, pool, out);
        read.expect("the relay sent what can't be read");
        for event in batch.drain() {
            match event {
                Event::Request {
                    stream,
                    request,
                    last,
                } => {
                    let answering = Answering {
                        stream,
                        path: request.path().to_owned(),
                        body: Vec::new(),
                        unconsumed: 0,
                        complete: last,
                        flow: None,
                    };
                    self.open.insert(stream.id(), answering);
                    pool.put_workspace(request.into_workspace());
                }
                Event::Data { stream, at, last } => {
                    let answering = self.open.get_mut(&stream.id()).unwrap();
                    answering.body.extend_from_slice(&input[at.clone()]);
                    answering.unconsumed += at.len();
                    answering.complete = last;
                }
                Event::End { stream, .. } => {
                    self.open.get_mut(&stream.id()).unwrap().complete = true;
                }
                Event::Reset { stream, why } => {
                    assert!(
                        matches!(why, Why::Peer(_)),
                        "the relay sent what can't be taken: {why:?}"
                    );
                    self.open.remove(&stream.id());
                    self.server.release(stream, out);
                }
                Event::Over(_) => {} // streams beyond the limit, before the relay has heard of it
                other => panic!("{other:?}"),
            }
        }
    }

    fn answer(&mut self, id: u32, rng: &mut fastrand::Rng) -> bool {
        let answering = self.open.get_mut(&id).unwrap();
        let stream = answering.stream;
        let mut moved = answering.unconsumed > 0;
        self.server.consumed(
            stream,
            std::mem::take(&mut answering.unconsumed),
            &mut self.out,
        );
        if self.hostile && rng.u8(..20) == 0 {
            let code = rng.choice([Code::INTERNAL_ERROR, Code::REFUSED_STREAM, Code::CANCEL]);
            self.open.remove(&id);
            self.server.reset(stream, code.unwrap(), &mut self.out);
            return true;
        }
        let early = self.hostile && rng.u8(..20) == 0;
        if answering.flow.is_none() && (answering.complete || early) {
            let body = answer_of(&answering.path, &answering.body);
            let mut head = ResponseHead::blank();
            // Early: the request is not complete, and the caller sees that it is no 200.
            let status = if answering.complete { 200 } else { 413 };
            let framing = match rng.bool() {
                true => Framing::Chunked,
                false => Framing::Length(body.len() as u64),
            };
            head.own(status, framing);
            self.server.respond(stream, &head, &mut self.out).unwrap();
            let mut flow = Flow::of(body, trailers(rng));
            push!(self.server, stream, &mut flow, &mut self.out);
            answering.flow = Some(flow);
            moved = true;
        }
        self.settle(id);
        moved
    }

    fn settle(&mut self, id: u32) {
        let Some(answering) = self.open.get(&id) else {
            return;
        };
        if answering.flow.as_ref().is_some_and(|flow| flow.done) {
            self.server.release(answering.stream, &mut self.out);
            self.open.remove(&id);
        }
    }
}

/// Many downstream connections, one upstream.
struct Relay {
    downs: Vec<Down>,
    now_s: u32,
    client: Client,
    config: Config,
    out: Vec<u8>,
    batch: Batch,
    pool: Pool,
    pairs: BTreeMap<usize, Pair>,
    by_up: BTreeMap<u32, usize>,
    waiting: VecDeque<(usize, Checked)>,
    next: usize,
    held_max: usize,
}

struct Down {
    server: Server,
    config: Config,
    out: Vec<u8>,
    pairs: BTreeMap<u32, usize>,
}

struct Pair {
    down: (usize, Stream),
    up: Option<Stream>,
    request: Flow,
    answer: Flow,
    begun: bool,
}

impl Relay {
    fn new(callers: usize, rng: &mut fastrand::Rng) -> Self {
        let down = |rng: &mut fastrand::Rng| {
            let config = config(rng, Credit::Consumed);
            let mut out = Vec::new();
            Down {
                server: Server::new(&Arc::new(config.clone()), &mut out),
                config,
                out,
                pairs: BTreeMap::new(),
            }
        };
        let config = config(rng, Credit::Received);
        let mut out = Vec::new();
        Self {
            downs: (0..callers).map(|_| down(rng)).collect(),
            client: Client::new(&Arc::new(config.clone()), &mut out),
            config,
            now_s: 0,
            out,
            batch: Batch::new(),
            pool: Pool::default(),
            pairs: BTreeMap::new(),
            by_up: BTreeMap::new(),
            waiting: VecDeque::new(),
            next: 0,
            held_max: 0,
        }
    }

    fn step(&mut self, links: &mut [Link], up: &mut Link, rng: &mut fastrand::Rng) -> bool {
        self.now_s += 1; // so that windows of a byte are no flood
        let mut moved = up.up.write(&mut self.out, rng);
        for (down, link) in self.downs.iter_mut().zip(links.iter_mut()) {
            moved |= link.down.write(&mut down.out, rng);
        }
        if self.out.len() < self.config.limits.send_buffer_bytes {
            let read = up.down.read(rng);
            moved |= !read.is_empty();
            self.receive_up(&read);
        }
        let place = rng.usize(..links.len());
        let down = &self.downs[place];
        if down.out.len() < down.config.limits.send_buffer_bytes {
            let read = links[place].up.read(rng);
            moved |= !read.is_empty();
            self.receive_down(place, &read);
        }
        while self.client.room() > 0
            && self.client.phase() != Phase::Greeting
            && let Some((pair, request)) = self.waiting.pop_front()
        {
            moved = true;
            self.open(pair, request);
        }
        while let Some(stream) = self.client.writable(&self.out) {
            moved = true;
            if let Some(pair) = self.by_up.get(&stream.id()).copied() {
                self.push_up(pair);
            }
        }
        for place in 0..self.downs.len() {
            while let Some(stream) = {
                let down = &mut self.downs[place];
                down.server.writable(&down.out)
            } {
                moved = true;
                if let Some(pair) = self.downs[place].pairs.get(&stream.id()).copied() {
                    self.push_down(pair);
                }
            }
        }
        let held: usize = self
            .pairs
            .values()
            .map(|pair| pair.request.pending.len() + pair.answer.pending.len())
            .sum();
        self.held_max = self.held_max.max(held);
        moved
    }

    fn receive_down(&mut self, place: usize, input: &[u8]) {
        let now_s = self.now_s;
        let down = &mut self.downs[place];
        let (batch, pool, out) = (&mut self.batch, &mut self.pool, &mut down.out);
        let read = down.server.receive(input, now_s, batch, pool, out);
        read.expect("a caller wrote what can't be read");
        for event in self.batch.drain().collect::<Vec<_>>() {
            match event {
                Event::Request {
                    stream,
                    request,
                    last,
                } => {
                    let pair = self.next;
                    self.next += 1;
                    let request_flow = Flow {
                        ended: last,
                        done: request.framing().is_empty(),
                        ..Flow::default()
                    };
                    self.pairs.insert(
                        pair,
                        Pair {
                            down: (place, stream),
                            up: None,
                            request: request_flow,
                            answer: Flow::default(),
                            begun: false,
                        },
                    );
                    self.downs[place].pairs.insert(stream.id(), pair);
                    self.waiting.push_back((pair, request));
                }
                Event::Data { stream, at, last } => {
                    let pair = self.downs[place].pairs[&stream.id()];
                    let flow = &mut self.pairs.get_mut(&pair).unwrap().request;
                    flow.pending.extend_from_slice(&input[at]);
                    flow.ended |= last;
                    self.push_up(pair);
                }
                Event::End { stream, trailers } => {
                    let pair = self.downs[place].pairs[&stream.id()];
                    self.pairs.get_mut(&pair).unwrap().request.ends(trailers);
                    self.push_up(pair);
                }
                Event::Reset { stream, why } => {
                    assert!(matches!(why, Why::Peer(_)), "{why:?}");
                    let pair = self.downs[place].pairs[&stream.id()];
                    self.let_go(pair, None);
                }
                Event::Over(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn open(&mut self, pair: usize, request: Checked) {
        if let Some(entry) = self.pairs.get_mut(&pair) {
            let stream = self.client.open(&request, None, &mut self.out).unwrap();
            entry.up = Some(stream);
            self.by_up.insert(stream.id(), pair);
            self.push_up(pair);
        }
        self.pool.put_workspace(request.into_workspace());
    }

    /// Moves the request on, and gives the caller's window back for what has left.
    fn push_up(&mut self, pair: usize) {
        let entry = self.pairs.get_mut(&pair).unwrap();
        let Some(up) = entry.up else { return };
        let sent = push!(self.client, up, &mut entry.request, &mut self.out);
        let (place, stream) = entry.down;
        let down = &mut self.downs[place];
        down.server.consumed(stream, sent, &mut down.out);
        self.settle(pair);
    }

    fn receive_up(&mut self, input: &[u8]) {
        let (batch, pool, out) = (&mut self.batch, &mut self.pool, &mut self.out);
        let read = self.client.receive(input, self.now_s, batch, pool, out);
        read.expect("the upstream wrote what can't be read");
        for event in self.batch.drain().collect::<Vec<_>>() {
            let stream = match &event {
                Event::Head { stream, .. }
                | Event::Data { stream, .. }
                | Event::End { stream, .. }
                | Event::Reset { stream, .. } => *stream,
                _ => continue,
            };
            let Some(pair) = self.by_up.get(&stream.id()).copied() else {
                continue;
            };
            let entry = self.pairs.get_mut(&pair).unwrap();
            match event {
                Event::Head { head, last, .. } => {
                    let (place, stream) = entry.down;
                    let down = &mut self.downs[place];
                    down.server.respond(stream, &head, &mut down.out).unwrap();
                    entry.begun = true;
                    entry.answer.ended = last;
                    entry.answer.done = head.framing().is_empty();
                    self.pool.put_head(head);
                }
                Event::Data { at, last, .. } => {
                    entry.answer.pending.extend_from_slice(&input[at]);
                    entry.answer.ended |= last;
                }
                Event::End { trailers, .. } => entry.answer.ends(trailers),
                // Whole, and it wants no more of the request: the answer is still passed on.
                Event::Reset {
                    why: Why::Peer(Code::NO_ERROR),
                    ..
                } if entry.answer.ended => entry.request.done = true,
                Event::Reset { .. } => {
                    self.let_go(pair, Some(Code::INTERNAL_ERROR));
                    continue;
                }
                _ => {}
            }
            self.push_down(pair);
        }
    }

    fn push_down(&mut self, pair: usize) {
        let entry = self.pairs.get_mut(&pair).unwrap();
        if !entry.begun {
            return;
        }
        let (place, stream) = entry.down;
        let down = &mut self.downs[place];
        let sent = push!(down.server, stream, &mut entry.answer, &mut down.out);
        if let Some(up) = entry.up {
            self.client.consumed(up, sent, &mut self.out);
        }
        self.settle(pair);
    }

    fn settle(&mut self, pair: usize) {
        if self.pairs.get(&pair).is_some_and(|pair| pair.answer.done) {
            self.let_go(pair, None);
        }
    }

    fn let_go(&mut self, pair: usize, code: Option<Code>) {
        let entry = self.pairs.remove(&pair).unwrap();
        let (place, stream) = entry.down;
        let down = &mut self.downs[place];
        down.pairs.remove(&stream.id());
        match code {
            Some(code) => down.server.reset(stream, code, &mut down.out),
            None => down.server.release(stream, &mut down.out),
        }
        if let Some(up) = entry.up {
            self.by_up.remove(&up.id());
            self.client.release(up, &mut self.out);
        }
    }
}

fn whole(config: &Config) -> i64 {
    i64::from(config.connection_window)
}

struct Outcome {
    answered: usize,
    reset: usize,
}

fn run(seed: u64, requests: usize, hostile: bool) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(seed);
    let rng = &mut rng;
    let count = rng.usize(1..4);
    let mut callers: Vec<Caller> = (0..count)
        .map(|place| Caller::new(place, requests, hostile, rng))
        .collect();
    let mut relay = Relay::new(count, rng);
    let mut upstream = Upstream::new(hostile, rng);
    let mut links: Vec<Link> = (0..count).map(|_| Link::default()).collect();
    let mut up = Link::default();
    let mut quiet = 0;
    let is_quiet = |relay: &Relay, upstream: &Upstream, links: &[Link], up: &Link| {
        let empty = |link: &Link| link.up.bytes.is_empty() && link.down.bytes.is_empty();
        relay.pairs.is_empty()
            && relay.out.is_empty()
            && relay.downs.iter().all(|down| down.out.is_empty())
            && upstream.open.is_empty()
            && upstream.out.is_empty()
            && links.iter().all(empty)
            && empty(up)
    };
    while !(callers.iter().all(Caller::is_done) && is_quiet(&relay, &upstream, &links, &up)) {
        let moved = match rng.u8(..3) {
            0 => {
                let place = rng.usize(..count);
                callers[place].step(&mut links[place], rng)
            }
            1 => relay.step(&mut links, &mut up, rng),
            _ => upstream.step(&mut up, rng),
        };
        quiet = if moved { 0 } else { quiet + 1 };
        assert!(quiet < 20_000, "seed {seed}: nothing moves");
    }
    let bound: usize = relay
        .downs
        .iter()
        .map(|down| down.config.connection_window as usize)
        .sum();
    let shared = relay.config.stream_window as usize * relay.config.limits.streams as usize;
    assert!(
        relay.held_max <= bound + shared,
        "seed {seed}: {}",
        relay.held_max
    );
    assert_eq!(
        relay.client.streams() + upstream.server.streams(),
        0,
        "seed {seed}"
    );
    let mut windows = vec![
        (relay.client.receive_window(), whole(&relay.config)),
        (upstream.server.receive_window(), whole(&upstream.config)),
    ];
    for down in &relay.downs {
        assert_eq!(down.server.streams(), 0, "seed {seed}");
        windows.push((down.server.receive_window(), whole(&down.config)));
    }
    for caller in &callers {
        assert_eq!(caller.client.streams(), 0, "seed {seed}");
        windows.push((caller.client.receive_window(), whole(&caller.config)));
    }
    for ((window, unreturned), whole) in windows {
        assert_eq!(
            window + unreturned,
            whole,
            "seed {seed}: a window is not whole"
        );
    }
    Outcome {
        answered: callers.iter().map(|caller| caller.answered).sum(),
        reset: callers.iter().map(|caller| caller.reset).sum(),
    }
}

fn seeds() -> u64 {
    if std::env::var_os("PHALANX_SOAK").is_some() {
        2_000
    } else {
        40
    }
}

#[test]
fn every_request_is_answered_whole_and_every_window_comes_back() {
    for seed in 0..seeds() {
        let outcome = run(seed, 8, false);
        assert_eq!(outcome.reset, 0, "seed {seed}");
        assert!(outcome.answered >= 8, "seed {seed}");
    }
}

#[test]
fn resets_from_every_side_leave_nothing_behind_and_mix_nothing_up() {
    let (mut answered, mut reset) = (0, 0);
    for seed in 0..seeds() {
        let outcome = run(seed, 12, true);
        answered += outcome.answered;
        reset += outcome.reset;
    }
    assert!(answered > 100 && reset > 100, "{answered} {reset}");
}
