//! One table of limits and one of deadlines, with the defaults of the design. Each can be set, each has a test.

use std::time::Duration;

/// How much of what a peer may send or hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head: the request line and, for every field, name, value and [`FIELD_OVERHEAD`].
    pub head_bytes: usize,
    /// Fields of a head, every cookie crumb counted.
    pub head_fields: usize,
    /// Streams of one HTTP/2 connection.
    pub streams: u32,
    /// Bytes of trailers.
    pub trailer_bytes: usize,
    /// Bytes of a request body kept so that it can be sent again.
    pub replay_bytes: usize,
    /// Connections taken by all listeners together.
    pub connections: u32,
    /// Connections taken from one address; loopback is not counted.
    pub connections_per_source: u32,
    /// Streams that a peer may reset before they were answered, or make us reset, on one HTTP/2 connection.
    pub resets: u32,
    /// Bytes a connection may hold to be written.
    pub send_buffer_bytes: usize,
}

/// Counted beside name and value of each field (RFC 9113 §6.5.2).
pub const FIELD_OVERHEAD: usize = 32;

/// What the request line of HTTP/1 holds beside method, authority, path and query: blanks, scheme, version, line ends. A
/// head's bytes on the wire may be so many more than [`Limits::head_bytes`].
pub const REQUEST_LINE_OVERHEAD: usize = 32;

/// Bytes of chunk extensions in one HTTP/1 body, all chunks together. They are read over.
pub const CHUNK_EXTENSION_BYTES: usize = 4 << 10;

/// Interim answers (1xx) before the one that counts.
pub const INTERIM_ANSWERS: u8 = 16;

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 << 10,
            head_fields: 100,
            streams: 100,
            trailer_bytes: 8 << 10,
            replay_bytes: 64 << 10,
            connections: 10_000,
            connections_per_source: 2_000,
            resets: 100,
            send_buffer_bytes: 256 << 10,
        }
    }
}

impl Limits {
    /// Bytes of one head on HTTP/2, where all streams of a connection may send one at once.
    pub fn http2_head_bytes(&self) -> u32 {
        let share = HEADS_PER_CONNECTION / (self.streams.max(1) as usize);
        u32::try_from(self.head_bytes.min(share)).unwrap_or(u32::MAX)
    }
}

/// Bytes of heads that one connection may make us hold: streams × head.
pub const HEADS_PER_CONNECTION: usize = 4 << 20;

/// How long what may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From the first byte of a connection to knowing what it speaks.
    pub handshake: Duration,
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// A connection without a request.
    pub idle: Duration,
    /// A write that makes no progress.
    pub stalled_write: Duration,
    /// A plain request's body may take this long, and longer only at [`Deadlines::body_rate`].
    pub body: Duration,
    /// Bytes per second that excuse a slow body.
    pub body_rate: u64,
    /// From the end of a plain request to the head of its answer, retries included, where no route says otherwise.
    pub route: Duration,
    /// A stream of gRPC or a WebSocket in which nothing moves; also the body of an answer.
    pub stream_idle: Duration,
    /// A raw TCP tunnel in which nothing moves.
    pub tunnel_idle: Duration,
    /// Between pings on an HTTP/2 connection to another sidecar that has streams and says nothing.
    pub ping: Duration,
    /// From such a ping to its answer.
    pub ping_answer: Duration,
    /// Waiting for the rest when told to stop.
    pub drain: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            stalled_write: Duration::from_secs(30),
            body: Duration::from_secs(10),
            body_rate: 240,
            route: Duration::from_secs(15),
            stream_idle: Duration::from_secs(300),
            tunnel_idle: Duration::from_secs(3600),
            ping: Duration::from_secs(5),
            ping_answer: Duration::from_secs(5),
            drain: Duration::from_secs(5),
        }
    }
}
