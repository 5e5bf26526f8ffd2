//! What a small gRPC-like call costs each role, in ns, beside the crate h2 over the same bytes.
//! `cargo run --release -p phalanx-relay --example http2_cost`; with a number it relays so many calls and measures nothing,
//! for a profiler that counts.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use phalanx_relay::hpack::{Decoder, Encoder, Fields, Most};
use phalanx_relay::http2::{Batch, Client, Config, Event, Server};
use phalanx_relay::{
    Checked, Framing, HeaderList, Http2Pseudo, Limits, Name, Pool, ResponseHead, Value, Workspace,
    names,
};

const STREAMS: usize = 8;
const BODY: [u8; 200] = [7; 200];
/// What a gRPC client sends; the last two are another each time.
const FIELDS: [(&[u8], &[u8]); 7] = [
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    (b"user-agent", b"grpc-go/1.80.0"),
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
    (b"x-env", b"canary"),
    (
        b"traceparent",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    (b"x-request-id", b"7f1c2f6e-2f3b-4f0e-9a53-0d1c3b7a9e11"),
];

fn main() {
    if let Some(calls) = std::env::args()
        .nth(1)
        .and_then(|calls| calls.parse::<usize>().ok())
    {
        let mut relay = Relayed::new(false);
        (0..calls / STREAMS).for_each(|_| {
            relay.round();
        });
        return;
    }
    println!(
        "a call: 7 fields, {} bytes each way, trailers; {STREAMS} at once",
        BODY.len()
    );
    for huffman in [false, true] {
        relayed(huffman);
    }
    blocks();
    plain_roles();
    h2_pair();
    println!(
        "structs: Server {} bytes, Client {} bytes",
        size_of::<Server>(),
        size_of::<Client>()
    );
}

fn request() -> Checked {
    let pseudo = Http2Pseudo {
        method: "POST",
        authority: Some("battle.default.svc.mesh"),
        path: "/game.Battle/Move",
        query: None,
        ended: false,
    };
    let checked = Checked::http2(
        Workspace::default(),
        pseudo,
        FIELDS.into_iter(),
        &Limits::default(),
    );
    checked.unwrap_or_else(|(refusal, _)| panic!("{refusal}"))
}

fn answer() -> (ResponseHead, HeaderList) {
    let mut head = ResponseHead::blank();
    head.own(200, Framing::Chunked);
    let mut trailers = HeaderList::new();
    if let (Some(grpc), Some(zero)) = (Value::new(b"application/grpc"), Value::new(b"0")) {
        head.headers.push(names::CONTENT_TYPE, grpc);
        trailers.push(names::GRPC_STATUS, zero);
        if let Some(message) = Name::new(b"grpc-message").and(Value::new(b"")) {
            trailers.push(names::GRPC_MESSAGE, message);
        }
    }
    (head, trailers)
}

/// One side of one connection.
struct End<C> {
    codec: C,
    out: Vec<u8>,
}

fn config(huffman: bool) -> Arc<Config> {
    Arc::new(Config {
        huffman,
        ..Config::server(Limits::default())
    })
}

/// Caller -> our server | our client -> upstream: the two in the middle are what a relay pays.
struct Relayed {
    caller: End<Client>,
    down: End<Server>,
    up: End<Client>,
    upstream: End<Server>,
    request: Checked,
    answer: (ResponseHead, HeaderList),
    pool: Pool,
    batch: Batch,
}

impl Relayed {
    fn new(huffman: bool) -> Self {
        let config = config(huffman);
        Self {
            caller: client(&config),
            down: server(&config),
            up: client(&config),
            upstream: server(&config),
            request: request(),
            answer: answer(),
            pool: Pool::default(),
            batch: Batch::new(),
        }
    }

    /// [`STREAMS`] calls; tells the nanoseconds that the two in the middle took.
    fn round(&mut self) -> u64 {
        let Self {
            caller,
            down,
            up,
            upstream,
            request,
            answer: (head, trailers),
            pool,
            batch,
        } = self;
        for _ in 0..STREAMS {
            let stream = caller.codec.open(request, None, &mut caller.out).unwrap();
            caller
                .codec
                .body(stream, &BODY, true, &mut caller.out)
                .unwrap();
        }
        let begun = Instant::now();
        let mut pairs = [None; STREAMS];
        let mut upward = [None; STREAMS];
        receive_server(
            down,
            &mut caller.out,
            batch,
            pool,
            |server, event, input, pool| match event {
                Event::Request {
                    stream, request, ..
                } => {
                    let up_stream = up.codec.open(&request, None, &mut up.out).unwrap();
                    pool.put_workspace(request.into_workspace());
                    pairs[up_stream.slot() % STREAMS] = Some(stream);
                    upward[stream.slot() % STREAMS] = Some(up_stream);
                }
                Event::Data { stream, at, last } => {
                    let up_stream = upward[stream.slot() % STREAMS].unwrap();
                    up.codec
                        .body(up_stream, &input[at.clone()], last, &mut up.out)
                        .unwrap();
                    server.codec.consumed(stream, at.len(), &mut server.out);
                }
                _ => {}
            },
        );
        let mut taken = begun.elapsed();
        receive_server(
            upstream,
            &mut up.out,
            batch,
            pool,
            |server, event, _, pool| match event {
                Event::Request { request, .. } => pool.put_workspace(request.into_workspace()),
                Event::Data { stream, at, .. } => {
                    server.codec.consumed(stream, at.len(), &mut server.out);
                    respond(server, stream, head, trailers);
                }
                _ => {}
            },
        );
        let begun = Instant::now();
        receive_client(
            up,
            &mut upstream.out,
            batch,
            pool,
            |client, event, input, pool| match event {
                Event::Head { stream, head, .. } => {
                    let stream = pairs[stream.slot() % STREAMS].unwrap();
                    down.codec.respond(stream, &head, &mut down.out).unwrap();
                    pool.put_head(head);
                }
                Event::Data { stream, at, last } => {
                    let down_stream = pairs[stream.slot() % STREAMS].unwrap();
                    down.codec
                        .body(down_stream, &input[at.clone()], last, &mut down.out)
                        .unwrap();
                    client.codec.consumed(stream, at.len(), &mut client.out);
                }
                Event::End { stream, trailers } => {
                    let down_stream = pairs[stream.slot() % STREAMS].unwrap();
                    down.codec
                        .end(down_stream, trailers.as_ref(), &mut down.out)
                        .unwrap();
                    down.codec.release(down_stream, &mut down.out);
                    client.codec.release(stream, &mut client.out);
                    if let Some(list) = trailers {
                        pool.put_list(list);
                    }
                }
                _ => {}
            },
        );
        taken += begun.elapsed();
        receive_client(
            caller,
            &mut down.out,
            batch,
            pool,
            |client, event, _, pool| finish(client, event, pool),
        );
        taken.as_nanos() as u64
    }
}

fn relayed(huffman: bool) {
    let mut relay = Relayed::new(huffman);
    measure(
        &format!("relay (server and client role), huffman {huffman}"),
        |times| (0..times).map(|_| relay.round()).sum(),
    );
}

/// The request's eleven fields alone: written, read, checked.
fn blocks() {
    const MOST: Most = Most {
        bytes: 64 << 10,
        fields: 100,
    };
    for huffman in [false, true] {
        let mut encoder = Encoder::new(huffman);
        let mut decoder = Decoder::default();
        let (mut block, mut fields) = (Vec::new(), Fields::default());
        let request = request();
        let mut write = |block: &mut Vec<u8>| {
            block.clear();
            encoder.begin(block);
            encoder.method("POST", block);
            encoder.scheme(false, block);
            encoder.authority(request.authority(), block);
            encoder.path(request.path(), None, block);
            for (name, value) in request.headers().iter() {
                encoder.field(name, value, false, block);
            }
        };
        for _ in 0..3 {
            write(&mut block);
            decoder.decode(&block, &mut fields, MOST).unwrap();
        }
        let len = block.len();
        let what = format!("a block of {len} bytes, two fields of them new, huffman {huffman}");
        measure(&format!("write {what}"), |times| {
            let begun = Instant::now();
            (0..times * STREAMS as u64).for_each(|_| write(&mut block));
            begun.elapsed().as_nanos() as u64
        });
        measure(&format!("read {what}"), |times| {
            let begun = Instant::now();
            for _ in 0..times * STREAMS as u64 {
                decoder
                    .decode(black_box(&block), &mut fields, MOST)
                    .unwrap();
            }
            begun.elapsed().as_nanos() as u64
        });
    }
    let limits = Limits::default();
    let mut workspace = Workspace::default();
    measure("check a request (names looked up again)", |times| {
        let begun = Instant::now();
        for _ in 0..times * STREAMS as u64 {
            let pseudo = Http2Pseudo {
                method: "POST",
                authority: Some("battle.default.svc.mesh"),
                path: "/game.Battle/Move",
                query: None,
                ended: false,
            };
            let space = std::mem::take(&mut workspace);
            let checked = Checked::http2(space, pseudo, FIELDS.into_iter(), &limits);
            workspace = checked.map_or_else(|(_, space)| space, Checked::into_workspace);
        }
        begun.elapsed().as_nanos() as u64
    });
}

/// Both roles of one hop: what the crate h2 does below for the same call.
fn plain_roles() {
    let config = config(false);
    let (mut pool, mut batch) = (Pool::default(), Batch::new());
    let mut caller = client(&config);
    let mut served = server(&config);
    let (request, (head, trailers)) = (request(), answer());
    measure("our client and our server, a call", |times| {
        let begun = Instant::now();
        for _ in 0..times {
            for _ in 0..STREAMS {
                let stream = caller.codec.open(&request, None, &mut caller.out).unwrap();
                caller
                    .codec
                    .body(stream, &BODY, true, &mut caller.out)
                    .unwrap();
            }
            receive_server(
                &mut served,
                &mut caller.out,
                &mut batch,
                &mut pool,
                |server, event, input, pool| match event {
                    Event::Request { request, .. } => pool.put_workspace(request.into_workspace()),
                    Event::Data { stream, at, .. } => {
                        black_box(&input[at.clone()]);
                        server.codec.consumed(stream, at.len(), &mut server.out);
                        respond(server, stream, &head, &trailers);
                    }
                    _ => {}
                },
            );
            receive_client(
                &mut caller,
                &mut served.out,
                &mut batch,
                &mut pool,
                |client, event, _, pool| finish(client, event, pool),
            );
        }
        begun.elapsed().as_nanos() as u64
    });
}

fn client(config: &Arc<Config>) -> End<Client> {
    let mut out = Vec::new();
    let codec = Client::new(config, &mut out);
    End { codec, out }
}

fn server(config: &Arc<Config>) -> End<Server> {
    let mut out = Vec::new();
    let codec = Server::new(config, &mut out);
    End { codec, out }
}

fn respond(
    server: &mut End<Server>,
    stream: phalanx_relay::http2::Stream,
    head: &ResponseHead,
    trailers: &HeaderList,
) {
    server.codec.respond(stream, head, &mut server.out).unwrap();
    server
        .codec
        .body(stream, &BODY, false, &mut server.out)
        .unwrap();
    server
        .codec
        .end(stream, Some(trailers), &mut server.out)
        .unwrap();
    server.codec.release(stream, &mut server.out);
}

fn finish(client: &mut End<Client>, event: Event, pool: &mut Pool) {
    match event {
        Event::Head { head, .. } => pool.put_head(head),
        Event::Data { stream, at, .. } => client.codec.consumed(stream, at.len(), &mut client.out),
        Event::End { stream, trailers } => {
            client.codec.release(stream, &mut client.out);
            if let Some(list) = trailers {
                pool.put_list(list);
            }
        }
        _ => {}
    }
}

fn receive_server(
    server: &mut End<Server>,
    wire: &mut Vec<u8>,
    batch: &mut Batch,
    pool: &mut Pool,
    mut each: impl FnMut(&mut End<Server>, Event, &[u8], &mut Pool),
) {
    server
        .codec
        .receive(wire, 0, batch, pool, &mut server.out)
        .unwrap();
    for event in batch.drain() {
        each(server, event, wire, pool);
    }
    wire.clear();
}

fn receive_client(
    client: &mut End<Client>,
    wire: &mut Vec<u8>,
    batch: &mut Batch,
    pool: &mut Pool,
    mut each: impl FnMut(&mut End<Client>, Event, &[u8], &mut Pool),
) {
    client
        .codec
        .receive(wire, 0, batch, pool, &mut client.out)
        .unwrap();
    for event in batch.drain() {
        each(client, event, wire, pool);
    }
    wire.clear();
}

/// The crate h2 in both roles over a pipe in memory: tasks, wake-ups and copies of the pipe included.
fn h2_pair() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(far).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(piece)) = body.data().await {
                        let _ = body.flow_control().release_capacity(piece.len());
                    }
                    let mut response = http::Response::new(());
                    let grpc = http::HeaderValue::from_static("application/grpc");
                    response.headers_mut().insert("content-type", grpc);
                    let mut send = respond.send_response(response, false).unwrap();
                    send.send_data(Bytes::from_static(&BODY), false).unwrap();
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    trailers.insert("grpc-message", http::HeaderValue::from_static(""));
                    send.send_trailers(trailers).unwrap();
                });
            }
        });
        let (send, connection) = h2::client::handshake(near).await.unwrap();
        tokio::spawn(connection);
        let mut send = send.ready().await.unwrap();
        let mut rounds = Vec::new();
        for _ in 0..9 {
            let begun = Instant::now();
            for _ in 0..2_000 {
                let mut answers = Vec::with_capacity(STREAMS);
                for _ in 0..STREAMS {
                    let mut request = http::Request::builder()
                        .method("POST")
                        .uri("http://battle.default.svc.mesh/game.Battle/Move");
                    for (name, value) in FIELDS {
                        request = request.header(name, value);
                    }
                    let request = request.body(()).unwrap();
                    let (response, mut stream) = send.send_request(request, false).unwrap();
                    stream.send_data(Bytes::from_static(&BODY), true).unwrap();
                    answers.push(response);
                }
                for answer in answers {
                    let mut body = answer.await.unwrap().into_body();
                    while let Some(Ok(piece)) = body.data().await {
                        let _ = body.flow_control().release_capacity(piece.len());
                    }
                    body.trailers().await.unwrap();
                }
            }
            rounds.push(begun.elapsed().as_nanos() as f64 / (2_000 * STREAMS) as f64);
        }
        print("the crate h2, client and server, a call", rounds);
    });
}

/// Median and range of nine rounds; `run` gives the nanoseconds of so many times [`STREAMS`] calls.
fn measure(what: &str, mut run: impl FnMut(u64) -> u64) {
    const TIMES: u64 = 10_000;
    run(TIMES / 10);
    let rounds = (0..9)
        .map(|_| run(TIMES) as f64 / (TIMES * STREAMS as u64) as f64)
        .collect();
    print(what, rounds);
}

fn print(what: &str, mut rounds: Vec<f64>) {
    rounds.sort_by(f64::total_cmp);
    println!(
        "{what}: {:.0} ns ({:.0}-{:.0})",
        rounds[4], rounds[0], rounds[8]
    );
}
