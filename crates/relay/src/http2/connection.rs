//! One connection of either role: what it holds, and what a batch does to it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch::{Batch, Event};
use super::bounds::{Bound, Calm, Resets};
use super::frame::{self, Code, HEAD, PREFACE, WINDOW_DEFAULT};
use super::read::{Block, Place};
use super::settings::{self, Own, Settings};
use super::streams::{STREAMS_MAX, Stream, Streams};
use crate::hpack::{BadBlock, Decoder, Encoder};
use crate::limits::Limits;
use crate::pool::Pool;

/// Settled when a connection begins, since the peer is told of it then.
#[derive(Clone, Debug)]
pub struct Config {
    pub limits: Limits,
    /// Bytes that one stream may have under way to us.
    pub stream_window: u32,
    /// Bytes that all streams of a connection may have under way to us.
    pub connection_window: u32,
    pub credit: Credit,
    /// Whether strings are written in Huffman's code.
    pub huffman: bool,
    /// What a client says in `:scheme`.
    pub secure: bool,
}

/// When the connection's window is given back. A stream's always is when the driver has consumed what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credit {
    /// With the stream's: the connection's window bounds what is held, and a stalled stream takes its share of it.
    Consumed,
    /// On receipt: a stalled stream holds up no other, and the streams' windows are the bound. For a connection that
    /// carries what belongs to many.
    Received,
}

impl Config {
    /// For connections from a peer of its own.
    pub fn server(limits: Limits) -> Self {
        Self {
            limits,
            stream_window: STREAM_WINDOW,
            connection_window: STREAM_WINDOW * 16,
            credit: Credit::Consumed,
            huffman: false,
            secure: false,
        }
    }

    /// For connections that many share.
    pub fn client(limits: Limits) -> Self {
        Self {
            credit: Credit::Received,
            ..Self::server(limits)
        }
    }
}

const STREAM_WINDOW: u32 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// Where a connection is, for its deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The peer has not yet said who it is.
    Greeting,
    Idle,
    /// A part of a head, or of another frame that is taken whole, is there.
    Head,
    Busy,
}

/// Why nothing more can be read. The peer was told in a GOAWAY, which is the last that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("no HTTP/2 preface")]
    Preface,
    #[error("{0}")]
    Protocol(&'static str),
    #[error("{0}")]
    FrameSize(&'static str),
    #[error("more than the connection's window, or a window beyond its bound")]
    FlowControl,
    #[error("a head on a stream that has ended")]
    StreamClosed,
    #[error("a header block that can't be read: {0}")]
    Block(BadBlock),
    #[error("over a bound: {0}")]
    Bound(Bound),
    #[error("the connection was broken before")]
    Before,
}

impl Broken {
    pub fn code(self) -> Code {
        match self {
            Self::Preface | Self::Protocol(_) => Code::PROTOCOL_ERROR,
            Self::FrameSize(_) => Code::FRAME_SIZE_ERROR,
            Self::FlowControl => Code::FLOW_CONTROL_ERROR,
            Self::StreamClosed => Code::STREAM_CLOSED,
            Self::Block(_) => Code::COMPRESSION_ERROR,
            Self::Bound(_) => Code::ENHANCE_YOUR_CALM,
            Self::Before => Code::NO_ERROR,
        }
    }
}

impl From<Bound> for Broken {
    fn from(bound: Bound) -> Self {
        Self::Bound(bound)
    }
}

/// How far we are in saying goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    /// Told so, without a last stream: what the peer has sent meanwhile is still taken.
    Announced,
    /// Streams above this one are not looked at.
    From(u32),
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) role: Role,
    pub(super) config: Arc<Config>,
    pub(super) place: Place,
    pub(super) head: [u8; HEAD],
    pub(super) head_have: u8,
    /// The part of a frame that must be whole.
    pub(super) partial: Vec<u8>,
    pub(super) block: Option<Block>,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) streams: Streams,
    pub(super) peer: Settings,
    pub(super) greeted: bool,
    /// SETTINGS that the peer has not acknowledged.
    pub(super) unacknowledged: u8,
    /// A stream's window as the peer knows it.
    pub(super) stream_window: i32,
    pub(super) send_window: i32,
    pub(super) receive_window: i32,
    pub(super) unreturned: u32,
    /// The largest id that the peer has opened.
    pub(super) last_peer: u32,
    /// The next that we open.
    pub(super) next_own: u32,
    pub(super) leaving: Leaving,
    pub(super) peer_leaves: Option<u32>,
    pub(super) pings: VecDeque<Ping>,
    pub(super) calm: Calm,
    pub(super) resets: Resets,
    pub(super) batch: u32,
    /// Frames begun, modulo 2³².
    pub(super) frames: u32,
    /// Streams that the peer took back in the batch that brought them.
    pub(super) withdrawn: Vec<Stream>,
    pub(super) broken: bool,
}

/// A ping of ours that is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ping {
    Alive,
    Leaving,
}

/// More than a driver that pings now and then needs.
const PINGS_MAX: usize = 4;

impl Connection {
    pub(super) fn new(role: Role, config: &Arc<Config>, out: &mut Vec<u8>) -> Self {
        let server = role == Role::Server;
        if !server {
            out.extend_from_slice(PREFACE);
        }
        let limits = &config.limits;
        Own {
            max_streams: server.then_some(limits.streams.min(STREAMS_MAX)),
            stream_window: settings::window(config.stream_window),
            connection_window: settings::window(config.connection_window),
            head_bytes: Self::head_max(role, limits) as u32,
        }
        .write(out);
        Self {
            role,
            config: config.clone(),
            place: if server {
                Place::Preface(0)
            } else {
                Place::Head
            },
            head: [0; HEAD],
            head_have: 0,
            partial: Vec::new(),
            block: None,
            decoder: Decoder::default(),
            encoder: Encoder::new(config.huffman),
            streams: Streams::default(),
            peer: Settings::default(),
            greeted: false,
            unacknowledged: 1,
            stream_window: WINDOW_DEFAULT,
            send_window: WINDOW_DEFAULT,
            receive_window: settings::window(config.connection_window).max(WINDOW_DEFAULT),
            unreturned: 0,
            last_peer: 0,
            next_own: 1,
            leaving: Leaving::No,
            peer_leaves: None,
            pings: VecDeque::new(),
            calm: Calm::default(),
            resets: Resets::default(),
            batch: 0,
            frames: 0,
            withdrawn: Vec::new(),
            broken: false,
        }
    }

    /// Bytes of one list: from peers of our own all streams may send one at once.
    pub(super) fn head_max(role: Role, limits: &Limits) -> usize {
        match role {
            Role::Server => limits.http2_head_bytes() as usize,
            Role::Client => limits.head_bytes,
        }
    }

    pub(super) fn streams_max(&self) -> u32 {
        self.config.limits.streams.min(STREAMS_MAX)
    }

    /// Ids remembered after their end.
    pub(super) fn closed_kept(&self) -> usize {
        (self.streams_max() as usize).clamp(CLOSED_KEPT_MIN, CLOSED_KEPT_MAX)
    }

    pub(super) fn receive(
        &mut self,
        input: &[u8],
        now_s: u32,
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        batch.begin(pool);
        if self.broken {
            return Err(Broken::Before);
        }
        self.batch = self.batch.wrapping_add(1);
        let passed_s = self.calm.pass_time(now_s);
        if passed_s > 0 {
            self.resets.pass_time(passed_s);
        }
        let read = self.read(input, batch, pool, out);
        self.withdraw(batch, pool);
        batch.fields.trim();
        if let Err(broken) = read {
            self.break_off(broken, pool, out);
            if self.role == Role::Server {
                batch.withdraw(pool, |_| true);
            }
        }
        read
    }

    /// What was opened and reset within one batch was never there.
    fn withdraw(&mut self, batch: &mut Batch, pool: &mut Pool) {
        if self.withdrawn.is_empty() {
            return;
        }
        let withdrawn = std::mem::take(&mut self.withdrawn);
        let streams = &self.streams;
        let born = self.batch;
        batch.withdraw(pool, |stream| {
            let slot = streams.look(stream);
            slot.is_some_and(|slot| slot.reset && slot.born == born)
        });
        for stream in withdrawn {
            self.let_go(stream);
        }
    }

    fn break_off(&mut self, broken: Broken, pool: &mut Pool, out: &mut Vec<u8>) {
        self.broken = true;
        self.forget_partial(pool);
        if broken != Broken::Preface {
            frame::goaway(self.last_peer, broken.code(), out);
        }
    }

    pub(super) fn forget_partial(&mut self, pool: &mut Pool) {
        pool.put_buffer(std::mem::take(&mut self.partial));
        if let Some(block) = self.block.take() {
            pool.put_buffer(block.bytes);
        }
    }

    /// Frees a stream's slot, and returns what nobody will consume any more to the connection's window.
    pub(super) fn let_go(&mut self, stream: Stream) {
        let Some(slot) = self.streams.look(stream) else {
            return;
        };
        if self.config.credit == Credit::Consumed {
            self.unreturned += slot.unconsumed;
        }
        let ended = slot.by_peer || (slot.receiving == super::streams::Side::Ended && !slot.reset);
        let kept = self.closed_kept();
        self.streams.remove(stream, !ended, kept);
    }

    /// Gives the connection's window back in large pieces.
    pub(super) fn return_credit(&mut self, out: &mut Vec<u8>) {
        let whole = settings::window(self.config.connection_window).max(WINDOW_DEFAULT) as u32;
        if self.unreturned >= whole.div_ceil(2) {
            frame::window_update(0, self.unreturned, out);
            self.receive_window += self.unreturned as i32;
            self.unreturned = 0;
        }
    }

    /// The driver has consumed `len` bytes of what came on a stream.
    pub(super) fn consumed(&mut self, stream: Stream, len: usize, out: &mut Vec<u8>) {
        let Some(slot) = self.streams.get(stream) else {
            return;
        };
        let len = u32::try_from(len).unwrap_or(u32::MAX).min(slot.unconsumed);
        slot.unconsumed -= len;
        if self.config.credit == Credit::Consumed {
            self.unreturned += len;
        }
        self.return_stream(stream, len, out);
        self.return_credit(out);
    }

    pub(super) fn return_stream(&mut self, stream: Stream, len: u32, out: &mut Vec<u8>) {
        let whole = settings::window(self.config.stream_window) as u32;
        let Some(slot) = self.streams.get(stream) else {
            return;
        };
        slot.unreturned += len;
        let open = slot.receiving == super::streams::Side::Body && !slot.reset;
        if open && slot.unreturned >= whole.div_ceil(2) && !self.broken {
            slot.receive_window += slot.unreturned as i32;
            frame::window_update(stream.id(), slot.unreturned, out);
            slot.unreturned = 0;
        }
    }

    pub(super) fn ping(&mut self, ping: Ping, out: &mut Vec<u8>) {
        if !self.broken && self.pings.len() < PINGS_MAX {
            self.pings.push_back(ping);
            frame::ping(false, ping_payload(ping), out);
        }
    }

    /// Says that we will go: at first without naming a last stream, so that none on its way is lost; when the peer must
    /// have heard of it, [`Connection::leave_now`].
    pub(super) fn leave(&mut self, out: &mut Vec<u8>) {
        if self.leaving == Leaving::No && !self.broken {
            self.leaving = Leaving::Announced;
            frame::goaway(frame::STREAM_ID_MAX, Code::NO_ERROR, out);
            self.ping(Ping::Leaving, out);
        }
    }

    pub(super) fn leave_now(&mut self, out: &mut Vec<u8>) {
        if !matches!(self.leaving, Leaving::From(_)) && !self.broken {
            self.leaving = Leaving::From(self.last_peer);
            frame::goaway(self.last_peer, Code::NO_ERROR, out);
        }
    }

    pub(super) fn is_left(&self) -> bool {
        matches!(self.leaving, Leaving::From(_))
    }

    pub(super) fn receive_credit(&self) -> (i64, i64) {
        (i64::from(self.receive_window), i64::from(self.unreturned))
    }

    pub(super) fn phase(&self) -> Phase {
        if matches!(self.place, Place::Preface(_)) || !self.greeted {
            Phase::Greeting
        } else if self.block.is_some()
            || self.head_have > 0
            || matches!(self.place, Place::Payload(_))
        {
            Phase::Head
        } else if self.streams.live() > 0 {
            Phase::Busy
        } else {
            Phase::Idle
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.partial.capacity()
            + self
                .block
                .as_ref()
                .map_or(0, |block| block.bytes.capacity())
            + self.decoder.held_bytes()
            + self.encoder.held_bytes()
            + self.streams.held_bytes()
            + self.withdrawn.capacity() * size_of::<Stream>()
            + self.pings.capacity()
    }

    pub(super) fn over(batch: &mut Batch, bound: Bound) {
        batch.events.push(Event::Over(bound));
    }
}

pub(super) fn ping_payload(ping: Ping) -> [u8; 8] {
    match ping {
        Ping::Alive => *b"phalanx?",
        Ping::Leaving => *b"phalanx!",
    }
}

/// Frames that were under way when we reset a stream arrive within a few batches.
const CLOSED_KEPT_MIN: usize = 32;
const CLOSED_KEPT_MAX: usize = 256;
