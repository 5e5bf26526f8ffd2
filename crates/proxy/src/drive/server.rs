//! Towards downstream: what the requests of a connection share, and where one of them comes from and its answer goes.

mod http1;
mod http2;

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll};

use phalanx_model::name::Direction;
use phalanx_relay::http2::Code;
use phalanx_relay::{Framing, HeaderList, Reply, ResponseHead, Value, names};

pub use self::http1::{Http1, serve as serve_http1};
pub use self::http2::{Runner, serve as serve_http2};
use super::core::{Cluster, Core};
use super::deadline::Watch;
use super::http2::{Handle, Piece};
use super::tally::Tally;
use crate::account::TlsRefused;
use crate::context::{Caller, Original};
use crate::plan::cluster::Edges;

/// What the requests of one downstream connection share.
pub struct Door {
    pub core: Rc<Core>,
    pub watch: Rc<Watch>,
    pub direction: Direction,
    pub caller: Caller,
    /// The port of the application that was called, where no header need tell it.
    pub meant: Option<u16>,
    /// Of calls that were redirected: where they were going.
    pub original: Option<Box<Original>>,
    /// The way there, past the mesh.
    passage: OnceCell<Passage>,
    /// Where requests of a known caller are counted, for the cluster that it called last.
    edges: RefCell<Option<(Rc<Cluster>, Rc<Edges>)>>,
}

impl Door {
    pub fn new(
        core: &Rc<Core>,
        watch: &Rc<Watch>,
        direction: Direction,
        caller: Caller,
    ) -> Rc<Self> {
        Self::of(core, watch, direction, caller, None)
    }

    /// To this port of the application.
    pub fn of(
        core: &Rc<Core>,
        watch: &Rc<Watch>,
        direction: Direction,
        caller: Caller,
        meant: Option<u16>,
    ) -> Rc<Self> {
        Rc::new(Self {
            meant,
            original: None,
            passage: OnceCell::new(),
            core: core.clone(),
            watch: watch.clone(),
            direction,
            caller,
            edges: RefCell::default(),
        })
    }

    /// Of calls that were going there.
    pub fn redirected(core: &Rc<Core>, watch: &Rc<Watch>, original: Original) -> Rc<Self> {
        Rc::new(Self {
            core: core.clone(),
            watch: watch.clone(),
            direction: Direction::Outbound,
            caller: Caller::Plain,
            meant: None,
            original: Some(Box::new(original)),
            passage: OnceCell::new(),
            edges: RefCell::default(),
        })
    }

    /// Where a request goes that leads to nobody of the mesh.
    pub fn passage(&self) -> Option<&Rc<Cluster>> {
        let address = self.original.as_ref()?.address;
        let passage = || Passage(self.core.passage(address));
        Some(&self.passage.get_or_init(passage).0)
    }

    /// A request in plain text came where that is not taken.
    pub fn refused(&self) {
        if let (Caller::Plain, Some(address)) = (&self.caller, self.watch.address) {
            self.core
                .refuse_tls(self.direction, TlsRefused::PlainText, address);
        }
    }

    /// None where the cluster's own will do. Looked up once per connection and plan.
    pub fn edges(&self, cluster: &Rc<Cluster>) -> Option<Rc<Edges>> {
        let Caller::Known(known) = &self.caller else {
            return None;
        };
        let mut kept = self.edges.borrow_mut();
        if let Some((of, edges)) = &*kept
            && Rc::ptr_eq(of, cluster)
        {
            return Some(edges.clone());
        }
        let unassigned = &cluster.plan.unassigned;
        let edges = Rc::new(unassigned.with_peer(&known.peer.id, &self.core.account));
        *kept = Some((cluster.clone(), edges.clone()));
        Some(edges)
    }
}

/// Its connections end with the connection that they were opened for.
struct Passage(Rc<Cluster>);

impl Drop for Passage {
    fn drop(&mut self) {
        self.0.retire();
    }
}

/// A request as it comes in, and its answer on its way out.
pub enum Incoming<'c> {
    Http1(&'c mut Http1),
    Http2(Handle<phalanx_relay::http2::Server>),
    /// A copy of a request, whose answer nobody reads.
    Nobody,
}

/// The caller's side of an exchange can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The caller went away.
    Gone,
    /// It sent what is no body, or not all of it.
    Broken,
}

impl Incoming<'_> {
    /// The next of the request's body; `take` sees data.
    ///
    /// # Errors
    /// [`Cut`].
    pub fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        take: impl FnOnce(&[u8]),
    ) -> Poll<Result<Piece, Cut>> {
        match self {
            Self::Http1(connection) => connection.poll_piece(cx, core, take),
            Self::Http2(stream) => stream.poll_piece(cx, take).map_err(|_| Cut::Gone),
            Self::Nobody => Poll::Ready(Ok(Piece::End(None))),
        }
    }

    /// Ready when the caller went away after its request. (That of an HTTP/2 stream ends with the stream.)
    pub fn poll_gone(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<()> {
        match self {
            Self::Http1(connection) => connection.poll_gone(cx, core),
            Self::Http2(_) | Self::Nobody => Poll::Pending,
        }
    }

    /// Tells a caller who waits for it to send the body.
    pub fn proceed(&mut self, core: &Core) {
        match self {
            Self::Http1(connection) => connection.proceed(core),
            Self::Http2(stream) => stream.with(|codec, id, out| codec.proceed(id, out)),
            Self::Nobody => {}
        }
    }

    /// Begins the answer. `close`: an HTTP/1 connection is to end with it.
    pub fn respond(&mut self, core: &Core, head: &ResponseHead, close: bool) -> Result<(), Cut> {
        match self {
            Self::Http1(connection) => connection.respond(core, head, close),
            Self::Http2(stream) => stream
                .with(|codec, id, out| codec.respond(id, head, out))
                .map_err(|_| Cut::Gone),
            Self::Nobody => Ok(()),
        }
    }

    /// Bytes that the caller took, ever, where that shows that it takes some.
    pub fn written(&self) -> u64 {
        match self {
            Self::Http1(connection) => connection.written(),
            Self::Http2(_) | Self::Nobody => 0,
        }
    }

    /// Ready when the caller takes more of the answer.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<()> {
        match self {
            Self::Http1(connection) => connection.poll_ready(cx, core),
            Self::Http2(_) | Self::Nobody => Poll::Ready(()),
        }
    }

    /// A piece of the answer's body; tells how much of it was taken.
    ///
    /// # Errors
    /// The answer can't be completed.
    pub fn body(&mut self, core: &Core, data: &[u8]) -> Result<usize, Cut> {
        match self {
            Self::Http1(connection) => connection.body(core, data),
            Self::Http2(stream) => stream
                .with(|codec, id, out| codec.body(id, data, false, out))
                .map_err(|_| Cut::Broken),
            Self::Nobody => Ok(data.len()),
        }
    }

    /// Ends the answer.
    ///
    /// # Errors
    /// As [`Incoming::body`].
    pub fn end(&mut self, core: &Core, trailers: Option<&HeaderList>) -> Result<(), Cut> {
        match self {
            Self::Http1(connection) => connection.end(core, trailers),
            Self::Http2(stream) => stream
                .with(|codec, id, out| codec.end(id, trailers, out))
                .map_err(|_| Cut::Broken),
            Self::Nobody => Ok(()),
        }
    }

    /// Writes what can be written; streams of a shared connection leave that to it.
    pub fn flush(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<()> {
        match self {
            Self::Http1(connection) => connection.poll_flush(cx, core),
            Self::Http2(_) | Self::Nobody => Poll::Ready(()),
        }
    }

    /// Makes the caller see that the answer that has begun won't be completed.
    pub fn break_off(&mut self) {
        match self {
            Self::Http1(connection) => connection.break_off(),
            Self::Http2(stream) => stream.code.set(Some(Code::INTERNAL_ERROR)),
            Self::Nobody => {}
        }
    }

    /// An answer of our own. To a gRPC request: 200 and the word in `grpc-status`, as trailers without a body.
    pub fn reply(&mut self, core: &Core, reply: &Reply, grpc: bool, mut tally: Tally) {
        let close = reply.close || tally.is_draining();
        match reply.reason {
            Some(reason) if grpc => {
                let code = reply.grpc_status.unwrap_or(reason.grpc_status());
                tally.answer(200, Some(code), Some(reason));
                let mut head = core.memory.borrow_mut().pool.head();
                head.own(200, Framing::None);
                let mut status = [0; 3];
                let fields = [
                    (names::CONTENT_TYPE, &b"application/grpc"[..]),
                    (names::GRPC_STATUS, decimal(code, &mut status)),
                    (names::GRPC_MESSAGE, reason.as_str().as_bytes()),
                    (names::X_PHALANX_REASON, reason.as_str().as_bytes()),
                ];
                for (name, value) in fields {
                    if let Some(value) = Value::new(value) {
                        head.headers.push(name, value);
                    }
                }
                reply
                    .fields
                    .iter()
                    .for_each(|field| head.headers.push_field(field));
                let _ = self.respond(core, &head, close); // to a caller who is gone
                let _ = self.end(core, None);
                core.memory.borrow_mut().pool.put_head(head);
            }
            reason => {
                tally.answer(reply.status, None, reason);
                match self {
                    Self::Http1(connection) if close && !reply.close => {
                        connection.reply(core, &reply.clone().and_close());
                    }
                    Self::Http1(connection) => connection.reply(core, reply),
                    Self::Http2(stream) => {
                        let _ = stream.with(|codec, id, out| codec.reply(id, reply, out));
                    }
                    Self::Nobody => {}
                }
            }
        }
        tally.finish_now();
    }
}

fn decimal(value: u8, digits: &mut [u8; 3]) -> &[u8] {
    *digits = [
        b'0' + value / 100,
        b'0' + value / 10 % 10,
        b'0' + value % 10,
    ];
    let leading = digits
        .iter()
        .take(2)
        .take_while(|digit| **digit == b'0')
        .count();
    digits.get(leading..).unwrap_or_default()
}
