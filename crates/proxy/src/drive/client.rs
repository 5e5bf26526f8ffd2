//! Towards upstream: one request and its answer, on a connection that it has for itself or on one that many share.

mod http1;
mod http2;

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use phalanx_relay::{Checked, Field, HeaderList, ResponseHead};
use tokio::sync::Notify;

pub use self::http1::Http1;
pub use self::http2::{Http2Lease, Http2Pool, Http2Stream, Http2Use};
use super::core::Core;
use super::http2::Piece;
use super::stream::Link;
use crate::upstream::{Breaker, Completion, Fault, Lease, Permit};

/// A connection's share of the cluster's limit. Given back, it tells those who wait for one.
pub struct Slot {
    permit: Option<Permit<Arc<Breaker>>>,
    pub freed: Rc<Notify>,
}

impl Slot {
    pub fn new(permit: Permit<Arc<Breaker>>, freed: &Rc<Notify>) -> Self {
        Self {
            permit: Some(permit),
            freed: freed.clone(),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.permit = None;
        self.freed.notify_waiters();
    }
}

/// What looks like a broken connection may be the peer's word on our certificate, which in TLS 1.3 comes after our end of
/// the handshake: then nobody has read the request.
fn unless_rejected(link: &Option<Rc<Link>>, fault: Fault) -> Fault {
    match link {
        Some(link) if link.is_rejected() => Fault::Mistrust,
        _ => fault,
    }
}

/// A request on its way, and its answer on its way back.
pub enum Outgoing {
    Http1(Lease<Box<Http1>>),
    Http2(Http2Stream),
}

impl Outgoing {
    /// Sends the head on an HTTP/1 connection; `extra` stands behind its own fields.
    pub fn http1(
        mut lease: Lease<Box<Http1>>,
        core: &Core,
        request: &Checked,
        extra: Option<&Field>,
    ) -> Self {
        let reused = lease.is_reused();
        lease.connection.open(core, request, extra, reused);
        Self::Http1(lease)
    }

    /// Whether more of the body would be taken now; `cx` is woken when it is.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<()> {
        match self {
            Self::Http1(lease) => lease.connection.poll_ready(cx, core),
            Self::Http2(_) => Poll::Ready(()),
        }
    }

    /// A piece of the request's body; tells how much of it was taken. None when the request can't be completed.
    pub fn body(&mut self, core: &Core, data: &[u8]) -> Option<usize> {
        match self {
            Self::Http1(lease) => lease.connection.body(core, data),
            Self::Http2(stream) => stream.body(data),
        }
    }

    /// Ends the request.
    pub fn end(&mut self, core: &Core, trailers: Option<&HeaderList>) {
        match self {
            Self::Http1(lease) => lease.connection.end(core, trailers),
            Self::Http2(stream) => stream.end(trailers),
        }
    }

    /// Writes what can be written; streams of a shared connection leave that to it.
    pub fn flush(&mut self, cx: &mut Context<'_>, core: &Core) {
        if let Self::Http1(lease) = self {
            lease.connection.flush(cx, core);
        }
    }

    /// The head of the answer.
    ///
    /// # Errors
    /// What happened to the request instead.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
    ) -> Poll<Result<ResponseHead, Fault>> {
        match self {
            Self::Http1(lease) => lease.connection.poll_head(cx, core),
            Self::Http2(stream) => stream.poll_head(cx),
        }
    }

    /// The next of the answer's body; `take` sees data.
    ///
    /// # Errors
    /// It breaks off.
    pub fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        take: impl FnOnce(&[u8]),
    ) -> Poll<Result<Piece, Fault>> {
        match self {
            Self::Http1(lease) => lease.connection.poll_piece(cx, core, take),
            Self::Http2(stream) => stream.poll_piece(cx, take),
        }
    }

    /// The answer was read to its end.
    pub fn finish(self, core: &Core, now_ms: u64) {
        let Self::Http1(mut lease) = self else {
            return;
        };
        let connection = &mut lease.connection;
        let reusable = connection.settle(core);
        let (requests_max, freed) = (connection.requests_max, connection.slot.freed.clone());
        let end = Completion {
            request: reusable,
            response: reusable,
            reusable,
        };
        lease.finish(end, requests_max, now_ms);
        freed.notify_waiters();
    }
}
