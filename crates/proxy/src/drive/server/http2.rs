//! A connection that brings many requests at once, each served by a task of its own.

use std::cell::{Cell, OnceCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use phalanx_relay::http2::{Event as Read, Phase, Server};
use phalanx_relay::{Checked, Refusal};

use super::super::core::Core;
use super::super::exchange::{Exchange, Lent};
use super::super::http2::{Codec, Connection, Ended, Handle, Inbox, Inner};
use super::super::request;
use super::super::stream::Stream;
use super::super::tally::Tally;
use super::super::wire::Wire;
use super::{Door, Incoming};
use crate::account::Event;
use crate::context::Caller;

/// Serves HTTP/2 until the connection ends.
pub async fn serve(door: &Rc<Door>, stream: Stream) {
    let (core, watch) = (&door.core, &door.watch);
    watch.speaks_http2();
    let config = match door.caller {
        Caller::Known(_) => &core.http2.peer,
        _ => &core.http2.server,
    };
    let mut wire = Wire::new(stream);
    wire.prepare(core);
    let codec = Server::new(config, &mut wire.out);
    let connection = Connection::new(core, wire, codec);
    let (mut ending, mut frames, mut written) = (false, 0, 0);
    let ended = poll_fn(|cx| {
        loop {
            let mut refused = Vec::new();
            let (polled, stalled) = connection.poll(cx, |inner, event, _| match event {
                Read::Request {
                    stream,
                    request,
                    last,
                } => begin(door, &connection, inner, stream, request, last),
                Read::Refused { stream, refusal } => {
                    let reply = refusal.reply();
                    let _ = inner.codec.reply(stream, &reply, &mut inner.wire.out); // to a caller who is gone
                    Codec::release(&mut inner.codec, stream, &mut inner.wire.out);
                    refused.push((refusal, true));
                }
                Read::Malformed(refusal) => refused.push((refusal, false)),
                _ => {}
            });
            for (refusal, answered) in refused {
                count_refused(door, refusal, answered);
            }
            if let Poll::Ready(ended) = polled {
                return Poll::Ready(ended);
            }
            {
                let inner = connection.inner.borrow();
                let open = matches!(inner.codec.phase(), Phase::Head | Phase::Greeting);
                let seen = std::mem::replace(&mut frames, inner.codec.frames());
                watch.in_head(open, seen != frames);
            }
            let seen = std::mem::replace(&mut written, connection.inner.borrow().wire.written());
            if seen != written {
                watch.wrote(false); // it takes something: the clock starts anew
            }
            watch.wrote(stalled);
            watch.settle(core);
            if watch.is_draining() && !std::mem::replace(&mut ending, true) {
                goodbye(core, &connection); // streams under way go on
                continue;
            }
            if watch.alarm.poll(cx).is_pending() {
                return Poll::Pending;
            }
            match watch.missed(core) {
                Some(Event::IdleDeadline) if !std::mem::replace(&mut ending, true) => {
                    core.count(Event::IdleDeadline);
                    goodbye(core, &connection);
                }
                Some(event) => {
                    core.count(event);
                    return Poll::Ready(Ended::Gone);
                }
                None => {}
            }
        }
    })
    .await;
    connection.abandon();
    if ended == Ended::Told {
        connection.part().await;
    }
}

fn goodbye(core: &Core, connection: &Connection<Server>) {
    let inner = &mut *connection.inner.borrow_mut();
    inner.wire.prepare(core);
    inner.codec.drain(&mut inner.wire.out);
}

fn begin(
    door: &Rc<Door>,
    connection: &Rc<Connection<Server>>,
    inner: &mut Inner<Server>,
    stream: phalanx_relay::http2::Stream,
    request: Checked,
    last: bool,
) {
    let inbox = Inbox::new(&door.core, last);
    inner.enter(stream, inbox.clone());
    let handle = Handle {
        connection: connection.clone(),
        stream,
        inbox,
        code: Cell::new(None),
    };
    let job = Job {
        door: door.clone(),
        handle,
        request,
    };
    let idle = door.core.runners.borrow_mut().pop();
    match idle {
        Some(runner) => runner.take_up(job),
        None => drop(tokio::task::spawn_local(run(door.core.clone(), job))),
    }
}

/// A task that serves streams, one after the other, whatever their connections. Making one per stream would cost more
/// than a stream does.
#[derive(Default)]
pub struct Runner {
    job: Cell<Option<Job>>,
    waker: OnceCell<Waker>,
}

/// A stream to be served.
struct Job {
    door: Rc<Door>,
    handle: Handle<Server>,
    request: Checked,
}

impl Runner {
    fn take_up(&self, job: Job) {
        self.job.set(Some(job));
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    fn poll_job(&self, cx: &Context<'_>) -> Poll<Job> {
        match self.job.take() {
            Some(job) => Poll::Ready(job),
            None => {
                self.waker.get_or_init(|| cx.waker().clone()); // it never moves to another task
                Poll::Pending
            }
        }
    }
}

async fn run(core: Rc<Core>, mut job: Job) {
    let runner = Rc::new(Runner::default());
    let exchange = Lent::new(&core);
    loop {
        serve_stream(job, &exchange).await;
        exchange.end();
        {
            let mut idle = core.runners.borrow_mut();
            if idle.len() >= RUNNERS_IDLE_MAX {
                return;
            }
            idle.push(runner.clone());
        }
        job = poll_fn(|cx| runner.poll_job(cx)).await;
    }
}

/// When the stream is reset, its request is dropped where it stands.
async fn serve_stream(job: Job, exchange: &Exchange) {
    let Job {
        door,
        handle,
        request,
    } = job;
    let inbox = handle.inbox.clone();
    {
        let incoming = Incoming::Http2(handle);
        let mut serving = pin!(request::serve(&door, incoming, request, exchange));
        poll_fn(|cx| {
            inbox.park(cx);
            if inbox.is_lost() {
                return Poll::Ready(());
            }
            serving.as_mut().poll(cx).map(|_| ())
        })
        .await;
    }
    inbox.put(&door.core);
}

fn count_refused(door: &Door, refusal: Refusal, answered: bool) {
    let core = &door.core;
    core.count(Event::Refused);
    let mut tally = Tally::new(
        core,
        core.plan(),
        &door.watch,
        door.direction,
        core.wheel.now_us(),
    );
    tally.refused("");
    let reply = refusal.reply();
    if answered {
        tally.answer(reply.status, None, reply.reason);
    }
    tally.finish_now();
}

/// As many wait for streams on a core.
const RUNNERS_IDLE_MAX: usize = 128;
