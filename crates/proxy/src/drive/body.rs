//! Bodies in both directions, as enums that hyper polls: nothing is boxed, nothing is copied.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http::header::HeaderName;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use phalanx_relay::Framing;
use phalanx_relay::checked::is_internal;
use phalanx_relay::limits::FIELD_OVERHEAD;

use super::exchange::{Exchange, Expiry};
use super::headers::fields;
use super::hyper_out::Upstream;
use super::tally::Tally;
use crate::account::Flow;
use crate::upstream::Replay;

/// Why a body breaks off. hyper only needs to hear that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenBody {
    #[error("the caller's body broke off")]
    Caller,
    #[error("the upstream's body broke off")]
    Upstream,
    #[error("a deadline passed")]
    Deadline,
}

/// A request's body, as far as it has come; the attempts share it.
pub struct RequestBody {
    incoming: RefCell<Incoming>,
    replay: RefCell<Replay>,
    trailers: RefCell<Option<HeaderMap>>,
    framing: Framing,
    exchange: Rc<Exchange>,
    http2: bool,
    broken: Cell<bool>,
    /// The attempt that may read. HTTP/2 lets go of a body some time after its stream was given up.
    reader: Cell<u32>,
    flow: Option<Rc<Flow>>,
}

impl RequestBody {
    /// Keeps up to `replay_bytes` for further attempts. `http2`: what the caller speaks.
    pub fn new(
        incoming: Incoming,
        framing: Framing,
        exchange: Rc<Exchange>,
        http2: bool,
        replay_bytes: usize,
        flow: Option<Rc<Flow>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            incoming: RefCell::new(incoming),
            replay: RefCell::new(Replay::new(replay_bytes)),
            trailers: RefCell::new(None),
            framing,
            exchange,
            http2,
            broken: Cell::new(false),
            reader: Cell::new(0),
            flow,
        })
    }

    /// A body for the next attempt; those of earlier ones break off.
    pub fn again(self: &Rc<Self>) -> UpBody {
        let reader = self.reader.get() + 1;
        self.reader.set(reader);
        UpBody::Stream {
            body: self.clone(),
            place: 0,
            reader,
        }
    }

    /// Whether another attempt could send all of it.
    pub fn is_repeatable(&self) -> bool {
        !self.broken.get() && self.replay.borrow().is_complete()
    }

    /// Whether the caller's side broke off, so that no attempt can succeed.
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// No further attempt will be made.
    pub fn release(&self) {
        self.replay.borrow_mut().release();
    }

    fn poll_next(
        &self,
        place: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        if let Some(chunk) = self.replay.borrow().chunk(*place) {
            *place += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        self.replay.borrow_mut().forget();
        if self.broken.get() {
            return Poll::Ready(Some(Err(BrokenBody::Caller)));
        }
        if self.replay.borrow().is_ended() {
            let trailers = self
                .trailers
                .borrow()
                .clone()
                .filter(|_| *place != usize::MAX);
            *place = usize::MAX;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut *self.incoming.borrow_mut()).poll_frame(cx));
        Poll::Ready(match frame {
            None if !self.http2 || self.incoming.borrow().is_end_stream() => {
                self.end();
                None
            }
            // hyper takes a reset with NO_ERROR for an end.
            None | Some(Err(_)) => {
                self.broken.set(true);
                Some(Err(BrokenBody::Caller))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(chunk) => {
                    self.exchange.request_moved(chunk.len());
                    if let Some(flow) = &self.flow {
                        flow.request(&chunk);
                    }
                    self.replay.borrow_mut().keep(&chunk);
                    *place += 1;
                    if self.incoming.borrow().is_end_stream() {
                        self.end();
                    }
                    Some(Ok(Frame::data(chunk)))
                }
                Err(frame) => {
                    let Some(trailers) = clean_trailers(frame, &self.exchange) else {
                        self.broken.set(true);
                        return Poll::Ready(Some(Err(BrokenBody::Caller)));
                    };
                    *self.trailers.borrow_mut() = Some(trailers.clone());
                    self.end();
                    *place = usize::MAX;
                    Some(Ok(Frame::trailers(trailers)))
                }
            },
        })
    }

    fn end(&self) {
        self.replay.borrow_mut().end();
        self.exchange.request_complete();
    }
}

/// What one attempt sends.
pub enum UpBody {
    Empty,
    Stream {
        body: Rc<RequestBody>,
        place: usize,
        reader: u32,
    },
}

impl Body for UpBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream { body, reader, .. } if body.reader.get() != *reader => {
                Poll::Ready(Some(Err(BrokenBody::Caller)))
            }
            Self::Stream { body, place, .. } => body.poll_next(place, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream { body, place, .. } => {
                let replay = body.replay.borrow();
                let at_end = *place == usize::MAX || *place >= replay.len();
                replay.is_ended()
                    && at_end
                    && (*place == usize::MAX || body.trailers.borrow().is_none())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream { body, .. } => match body.framing {
                Framing::None => SizeHint::with_exact(0),
                Framing::Length(length) => SizeHint::with_exact(length),
                Framing::Chunked => SizeHint::default(),
            },
        }
    }
}

/// What goes downstream.
pub enum DownBody {
    Empty(Option<Tally>),
    Text(Bytes, Option<Tally>),
    Stream(Streamed),
}

/// An upstream's answer passing through.
pub struct Streamed {
    /// None once it is over.
    upstream: Option<Upstream>,
    exchange: Rc<Exchange>,
    tally: Tally,
}

impl DownBody {
    pub fn stream(upstream: Upstream, exchange: Rc<Exchange>, tally: Tally) -> Self {
        Self::Stream(Streamed {
            upstream: Some(upstream),
            exchange,
            tally,
        })
    }
}

impl Streamed {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        let Some(upstream) = &mut self.upstream else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = upstream.poll_frame(cx) else {
            self.exchange.asked_for();
            return match self.exchange.poll_expiry(cx) {
                Poll::Ready(expiry) => Poll::Ready(Some(Err(self.expire(expiry)))),
                Poll::Pending => Poll::Pending,
            };
        };
        Poll::Ready(match frame {
            None if !upstream.is_cut_off() => {
                self.finish();
                None
            }
            None | Some(Err(_)) => {
                self.upstream = None;
                self.tally.broke_off();
                Some(Err(BrokenBody::Upstream))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(chunk) => {
                    self.tally.sent(&chunk);
                    let ended = self.upstream.as_ref().is_some_and(Upstream::is_end_stream);
                    if ended {
                        self.finish();
                    } else {
                        self.exchange.hand_over();
                    }
                    Some(Ok(Frame::data(chunk)))
                }
                Err(frame) => {
                    let Some(trailers) = clean_trailers(frame, &self.exchange) else {
                        self.upstream = None;
                        self.tally.broke_off();
                        return Poll::Ready(Some(Err(BrokenBody::Upstream)));
                    };
                    self.tally.trailers(&trailers);
                    self.finish();
                    Some(Ok(Frame::trailers(trailers)))
                }
            },
        })
    }

    fn finish(&mut self) {
        let now_us = self.exchange.core.wheel.now_us();
        if let Some(upstream) = self.upstream.take() {
            upstream.finish(self.exchange.is_request_done(), now_us / 1000);
        }
        self.exchange.end();
        self.tally.finish(now_us);
    }

    fn expire(&mut self, expiry: Expiry) -> BrokenBody {
        self.upstream = None;
        if let Some(event) = expiry.event() {
            self.exchange.core.count(event);
        }
        self.tally.broke_off();
        BrokenBody::Deadline
    }
}

impl Body for DownBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        match self.get_mut() {
            Self::Empty(_) => Poll::Ready(None),
            Self::Text(text, tally) => {
                let text = std::mem::take(text);
                if let Some(tally) = tally {
                    tally.finish_now();
                }
                Poll::Ready(if text.is_empty() {
                    None
                } else {
                    Some(Ok(Frame::data(text)))
                })
            }
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty(_) => true,
            Self::Text(text, _) => text.is_empty(),
            Self::Stream(stream) => stream.upstream.as_ref().is_none_or(Upstream::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty(_) => SizeHint::with_exact(0),
            Self::Text(text, _) => SizeHint::with_exact(text.len() as u64),
            Self::Stream(stream) => stream
                .upstream
                .as_ref()
                .map_or(SizeHint::with_exact(0), Upstream::size_hint),
        }
    }
}

impl Drop for DownBody {
    /// hyper asks an answer without body for nothing: it is over when it lets go of it.
    fn drop(&mut self) {
        match self {
            Self::Empty(Some(tally)) => tally.finish_now(),
            Self::Stream(stream)
                if stream
                    .upstream
                    .as_ref()
                    .is_some_and(Upstream::is_end_stream) =>
            {
                stream.finish()
            }
            _ => {}
        }
    }
}

/// Trailers never frame, route or authenticate (RFC 9110 §6.5.1), nor speak for the mesh: such fields are dropped. None when they are larger than
/// allowed.
fn clean_trailers(frame: Frame<Bytes>, exchange: &Exchange) -> Option<HeaderMap> {
    let mut trailers = frame.into_trailers().unwrap_or_default();
    let bytes: usize = fields(&trailers)
        .map(|(name, value)| name.len() + value.len() + FIELD_OVERHEAD)
        .sum();
    if bytes > exchange.core.limits.trailer_bytes {
        return None;
    }
    for name in FORBIDDEN_TRAILERS {
        trailers.remove(*name);
    }
    let internal: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| is_internal(name.as_str().as_bytes()))
        .cloned()
        .collect();
    for name in internal {
        trailers.remove(name);
    }
    Some(trailers)
}

const FORBIDDEN_TRAILERS: &[&str] = &[
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
