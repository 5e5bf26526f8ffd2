//! The smallest drivers of both roles over any stream of tokio's: a server that sends back what it gets, and a client that
//! asks for many things at once. One flush per batch, bodies held only as far as the windows let them come.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use phalanx_relay::http2::{Batch, Broken, Client, Config, Event, Server, Stream, Why};
use phalanx_relay::{Checked, Framing, HeaderList, Method, Pool, ResponseHead};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// Bytes of one read.
const READ: usize = 16 << 10;

struct Io<S> {
    read: ReadHalf<S>,
    write: WriteHalf<S>,
    buffer: Vec<u8>,
    begun: Instant,
}

enum Moved {
    Read(usize),
    Wrote,
    Ended,
}

impl<S: AsyncRead + AsyncWrite> Io<S> {
    fn new(stream: S) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            read,
            write,
            buffer: vec![0; READ],
            begun: Instant::now(),
        }
    }

    fn now_s(&self) -> u32 {
        self.begun.elapsed().as_secs() as u32
    }

    /// Whatever goes first. Nothing is read while much is to be written.
    async fn turn(&mut self, out: &mut Vec<u8>, limit: usize) -> Moved {
        tokio::select! {
            read = self.read.read(&mut self.buffer), if out.len() < limit => match read {
                Ok(0) | Err(_) => Moved::Ended,
                Ok(len) => Moved::Read(len),
            },
            wrote = self.write.write(out), if !out.is_empty() => match wrote {
                Ok(0) | Err(_) => Moved::Ended,
                Ok(len) => {
                    out.drain(..len);
                    Moved::Wrote
                }
            },
        }
    }

    async fn finish(mut self, out: &[u8]) {
        let _ = self.write.write_all(out).await;
        let _ = self.write.shutdown().await;
    }
}

/// What is still to be said on one stream.
#[derive(Default)]
struct Saying {
    pending: Vec<u8>,
    /// Of the bytes pending, those that are the peer's own and are to be reported when sent.
    echoed: bool,
    ended: bool,
    trailers: Option<HeaderList>,
}

/// What a server's connection left behind.
pub struct Served {
    pub server: Server,
    pub requests: usize,
    pub broken: Option<Broken>,
}

/// Answers 200 to everything: a greeting to requests without a body, what it was sent to others.
pub async fn echo<S: AsyncRead + AsyncWrite>(stream: S, config: &Arc<Config>) -> Served {
    let mut io = Io::new(stream);
    let (mut out, mut pool, mut batch) = (Vec::new(), Pool::default(), Batch::new());
    let mut server = Server::new(config, &mut out);
    let mut sayings: HashMap<Stream, Saying> = HashMap::new();
    let mut requests = 0;
    let broken = loop {
        match io.turn(&mut out, config.limits.send_buffer_bytes).await {
            Moved::Ended => break None,
            Moved::Wrote => {}
            Moved::Read(len) => {
                let now_s = io.now_s();
                let input = &io.buffer[..len];
                if let Err(broken) = server.receive(input, now_s, &mut batch, &mut pool, &mut out) {
                    break Some(broken);
                }
                for event in batch.drain() {
                    requests += usize::from(matches!(event, Event::Request { .. }));
                    said(event, input, &mut server, &mut sayings, &mut pool, &mut out);
                }
            }
        }
        while let Some(stream) = server.writable(&out) {
            say(stream, &mut server, &mut sayings, &mut out);
        }
    };
    io.finish(&out).await;
    Served {
        server,
        requests,
        broken,
    }
}

fn said(
    event: Event,
    input: &[u8],
    server: &mut Server,
    sayings: &mut HashMap<Stream, Saying>,
    pool: &mut Pool,
    out: &mut Vec<u8>,
) {
    match event {
        Event::Request {
            stream,
            request,
            last,
        } => {
            let mut head = ResponseHead::blank();
            let framing = match request.method() {
                Method::Head => Framing::Length(5),
                _ if last => Framing::Length(5),
                _ => Framing::Chunked,
            };
            head.own(200, framing);
            for (name, value) in request.headers().iter() {
                if let Some(value) = phalanx_relay::Value::new(value) {
                    head.headers.push(name, value);
                }
            }
            server.respond(stream, &head, out).unwrap();
            let mut saying = Saying::default();
            if last {
                saying.ended = true;
                if request.method() != Method::Head {
                    saying.pending.extend(b"hello");
                }
            } else {
                saying.echoed = true;
            }
            sayings.insert(stream, saying);
            pool.put_workspace(request.into_workspace());
            say(stream, server, sayings, out);
        }
        Event::Refused { stream, refusal } => {
            server.reply(stream, &refusal.reply(), out).unwrap();
            server.release(stream, out);
        }
        Event::Data { stream, at, last } => {
            if let Some(saying) = sayings.get_mut(&stream) {
                saying.pending.extend_from_slice(&input[at]);
                saying.ended |= last;
            }
            say(stream, server, sayings, out);
        }
        Event::End { stream, trailers } => {
            if let Some(saying) = sayings.get_mut(&stream) {
                saying.ended = true;
                saying.trailers = trailers;
            }
            say(stream, server, sayings, out);
        }
        Event::Reset { stream, .. } => {
            sayings.remove(&stream);
            server.release(stream, out);
        }
        _ => {}
    }
}

/// Says as much as there is room for.
fn say(
    stream: Stream,
    server: &mut Server,
    sayings: &mut HashMap<Stream, Saying>,
    out: &mut Vec<u8>,
) {
    let Some(saying) = sayings.get_mut(&stream) else {
        return;
    };
    let last = saying.ended && saying.trailers.is_none();
    if !saying.pending.is_empty() || last {
        let sent = server.body(stream, &saying.pending, last, out).unwrap();
        let whole = sent == saying.pending.len();
        saying.pending.drain(..sent);
        if saying.echoed {
            server.consumed(stream, sent, out);
        }
        if !whole {
            return;
        }
    }
    if saying.ended {
        if let Some(trailers) = saying.trailers.take() {
            server.end(stream, Some(&trailers), out).unwrap();
        }
        sayings.remove(&stream);
        server.release(stream, out);
    }
}

/// What to ask.
pub struct Ask {
    pub request: Checked,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderList>,
}

/// What was answered.
#[derive(Debug, Default)]
pub struct Told {
    pub head: Option<ResponseHead>,
    pub interim: Vec<u16>,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderList>,
    pub complete: bool,
    pub reset: Option<Why>,
}

/// Asks everything at once, as far as the peer lets streams be opened, and returns what was answered to each.
pub async fn ask<S: AsyncRead + AsyncWrite>(
    stream: S,
    config: &Arc<Config>,
    asks: Vec<Ask>,
) -> (Vec<Told>, Client) {
    let mut io = Io::new(stream);
    let (mut out, mut pool, mut batch) = (Vec::new(), Pool::default(), Batch::new());
    let mut client = Client::new(config, &mut out);
    let mut told: Vec<Told> = asks.iter().map(|_| Told::default()).collect();
    let mut open: HashMap<Stream, (usize, Saying)> = HashMap::new();
    let mut waiting = asks.into_iter().enumerate();
    let mut left = told.len();
    while left > 0 {
        while client.room() > 0 {
            let Some((place, ask)) = waiting.next() else {
                break;
            };
            let stream = client.open(&ask.request, None, &mut out).unwrap();
            let saying = Saying {
                pending: ask.body,
                echoed: false,
                ended: true,
                trailers: ask.trailers,
            };
            open.insert(stream, (place, saying));
            push(stream, &mut client, &mut open, &mut out);
        }
        match io.turn(&mut out, config.limits.send_buffer_bytes).await {
            Moved::Ended => break,
            Moved::Wrote => {}
            Moved::Read(len) => {
                let now_s = io.now_s();
                let input = &io.buffer[..len];
                let read = client.receive(input, now_s, &mut batch, &mut pool, &mut out);
                for event in batch.drain() {
                    let heard = hear(event, input, &mut client, &mut open, &mut told, &mut out);
                    left -= usize::from(heard);
                }
                if read.is_err() {
                    break;
                }
            }
        }
        while let Some(stream) = client.writable(&out) {
            push(stream, &mut client, &mut open, &mut out);
        }
    }
    io.finish(&out).await;
    (told, client)
}

fn push(
    stream: Stream,
    client: &mut Client,
    open: &mut HashMap<Stream, (usize, Saying)>,
    out: &mut Vec<u8>,
) {
    let Some((_, saying)) = open.get_mut(&stream) else {
        return;
    };
    if !saying.ended {
        return;
    }
    let last = saying.trailers.is_none();
    if !saying.pending.is_empty() || last {
        let Ok(sent) = client.body(stream, &saying.pending, last, out) else {
            return;
        };
        let whole = sent == saying.pending.len();
        saying.pending.drain(..sent);
        if !whole {
            return;
        }
    }
    saying.ended = false;
    if let Some(trailers) = saying.trailers.take() {
        let _ = client.end(stream, Some(&trailers), out);
    }
}

/// Whether an exchange came to its end.
fn hear(
    event: Event,
    input: &[u8],
    client: &mut Client,
    open: &mut HashMap<Stream, (usize, Saying)>,
    told: &mut [Told],
    out: &mut Vec<u8>,
) -> bool {
    let (stream, last) = match &event {
        Event::Head { stream, last, .. } | Event::Data { stream, last, .. } => (*stream, *last),
        Event::Interim { stream, .. } => (*stream, false),
        Event::End { stream, .. } | Event::Reset { stream, .. } => (*stream, true),
        _ => return false,
    };
    let Some((place, _)) = open.get(&stream) else {
        return false;
    };
    let told = &mut told[*place];
    match event {
        Event::Interim { status, .. } => told.interim.push(status),
        Event::Head { head, .. } => told.head = Some(head),
        Event::Data { at, .. } => {
            let piece = &input[at];
            told.body.extend_from_slice(piece);
            client.consumed(stream, piece.len(), out);
        }
        Event::End { trailers, .. } => told.trailers = trailers,
        Event::Reset { why, .. } => told.reset = Some(why),
        _ => {}
    }
    if last {
        told.complete = told.reset.is_none();
        open.remove(&stream);
        client.release(stream, out);
    }
    last
}
