//! What one read brought, in order, for a driver to dispatch once all of it was looked at.

use std::ops::Range;

use super::bounds::Bound;
use super::frame::Code;
use super::streams::Stream;
use crate::checked::{Checked, Refusal};
use crate::header::HeaderList;
use crate::hpack::Fields;
use crate::pool::Pool;
use crate::response::{BadResponse, ResponseHead};

/// One per core: filled by each `receive`, emptied by [`Batch::drain`].
#[derive(Default)]
pub struct Batch {
    pub(super) events: Vec<Event>,
    pub(super) fields: Fields,
}

/// What came. A stream in [`Event::Request`], [`Event::Head`], [`Event::Refused`] or [`Event::Reset`] is the driver's until
/// it lets go of it. `last`: the peer says no more on this stream.
#[derive(Debug)]
pub enum Event {
    /// To a server.
    Request {
        stream: Stream,
        request: Checked,
        last: bool,
    },
    /// To a server: a request that is answered and goes nowhere.
    Refused { stream: Stream, refusal: Refusal },
    /// To a server: a request that broke the protocol, already reset.
    Malformed(Refusal),
    /// To a client: a 1xx, which is not passed on.
    Interim { stream: Stream, status: u16 },
    /// To a client.
    Head {
        stream: Stream,
        head: ResponseHead,
        last: bool,
    },
    /// A piece of a body: where it lies in the input that was shown.
    Data {
        stream: Stream,
        at: Range<usize>,
        last: bool,
    },
    /// The end of a body that its last piece didn't tell; with its trailers if it had some.
    End {
        stream: Stream,
        trailers: Option<HeaderList>,
    },
    /// Nothing more comes or can be sent.
    Reset { stream: Stream, why: Why },
    /// A bound was reached that the connection survives.
    Over(Bound),
    /// The answer to our ping.
    Pong,
    /// The peer wants no more streams; those it will not look at were reset.
    GoAway { code: Code },
}

/// Who ended a stream, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Peer(Code),
    /// The peer went away without looking at it.
    Unprocessed,
    /// We did, because of what the peer sent.
    Broken(BadStream),
}

/// What a peer sent on a stream that can't be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStream {
    #[error("{0}")]
    Head(BadResponse),
    #[error("too many interim answers")]
    Interim,
    #[error("a body of another length than its head says")]
    Length,
    #[error("a trailer that is no field, or trailers that end nothing")]
    Trailer,
    #[error("trailers over the limits")]
    TrailersTooLarge,
    #[error("a frame behind the end of its stream")]
    Ended,
    #[error("a body before its head")]
    Order,
    #[error("more than the window, or a window beyond its bound")]
    FlowControl,
    #[error("a window update of nothing")]
    EmptyUpdate,
    #[error("a stream that depends on itself")]
    Dependency,
}

impl BadStream {
    pub fn code(self) -> Code {
        match self {
            Self::Ended => Code::STREAM_CLOSED,
            Self::FlowControl => Code::FLOW_CONTROL_ERROR,
            _ => Code::PROTOCOL_ERROR,
        }
    }
}

impl Why {
    /// Whether the peer did nothing with the request, so that it may be sent again whatever it was.
    pub fn is_unprocessed(self) -> bool {
        matches!(self, Self::Unprocessed | Self::Peer(Code::REFUSED_STREAM))
    }
}

impl Event {
    pub(super) fn stream(&self) -> Option<Stream> {
        match self {
            Self::Request { stream, .. }
            | Self::Refused { stream, .. }
            | Self::Interim { stream, .. }
            | Self::Head { stream, .. }
            | Self::Data { stream, .. }
            | Self::End { stream, .. }
            | Self::Reset { stream, .. } => Some(*stream),
            Self::Malformed(_) | Self::Over(_) | Self::Pong | Self::GoAway { .. } => None,
        }
    }

    fn recycle(self, pool: &mut Pool) {
        match self {
            Self::Request { request, .. } => pool.put_workspace(request.into_workspace()),
            Self::Head { head, .. } => pool.put_head(head),
            Self::End {
                trailers: Some(list),
                ..
            } => pool.put_list(list),
            _ => {}
        }
    }
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The events, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.events.drain(..)
    }

    pub(super) fn begin(&mut self, pool: &mut Pool) {
        for event in self.events.drain(..) {
            event.recycle(pool);
        }
        if self.events.capacity() > KEPT_EVENTS_MAX {
            self.events = Vec::new();
        }
    }

    /// Takes away what `test` picks.
    pub(super) fn withdraw(&mut self, pool: &mut Pool, test: impl Fn(Stream) -> bool) {
        if !self
            .events
            .iter()
            .any(|event| event.stream().is_some_and(&test))
        {
            return;
        }
        for event in std::mem::take(&mut self.events) {
            if event.stream().is_some_and(&test) {
                event.recycle(pool);
            } else {
                self.events.push(event);
            }
        }
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.events).finish()
    }
}

/// An event is smaller than a frame's head and payload can be, so that one read bounds them.
const KEPT_EVENTS_MAX: usize = 1024;
