//! One connection: reads, tells streams what came for them, and writes what they said meanwhile in one go. Asks a silent
//! peer whether it is there, and says goodbye when the server stops.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use phalanx_relay::http2::{Bound, Broken, Event, Phase, Server};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::memory::{Memory, lend};
use super::shared::{Inner, Shared};
use super::stream::{self, Begun};
use super::{
    GOODBYE_MAX, KEEPALIVE, KEEPALIVE_TIMEOUT, PARTING_BYTES_MAX, PARTING_MAX, Port, message,
};
use crate::access::Arrival;
use crate::listen;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The peer has gone, or does not answer.
    Gone,
    /// We have said goodbye, and the peer should be able to read it.
    Told,
}

/// Serves until the connection ends.
pub fn serve(port: Arc<Port>, wire: listen::Connection) -> impl Future<Output = ()> + Send + use<> {
    let stop = port.stop.clone();
    run(Box::new(Task::new(port, wire)), stop)
}

async fn run(mut task: Box<Task>, stop: CancellationToken) {
    let mut stopped = pin!(stop.cancelled());
    let mut alarm = pin!(sleep(KEEPALIVE));
    let ended = poll_fn(|cx| {
        if !task.is_leaving && stopped.as_mut().poll(cx).is_ready() {
            task.leave(alarm.as_mut());
        }
        task.poll(cx, alarm.as_mut())
    })
    .await;
    task.shared.lock().lose_all();
    if ended == Ended::Told {
        Box::pin(part(&mut task.wire)).await;
    }
}

struct Task {
    port: Arc<Port>,
    wire: listen::Connection,
    arrival: Arrival,
    shared: Arc<Shared>,
    /// When the peer said something last.
    heard: Instant,
    /// And was asked since.
    is_asked: bool,
    is_leaving: bool,
    /// Under TLS, what was taken may not have left.
    is_unflushed: bool,
}

impl Task {
    fn new(port: Arc<Port>, wire: listen::Connection) -> Self {
        let mut out = lend(|memory| memory.buffer());
        let codec = Server::new(&port.config, &mut out);
        Self {
            arrival: wire.arrival(),
            shared: Shared::new(codec, out),
            port,
            wire,
            heard: Instant::now(),
            is_asked: false,
            is_leaving: false,
            is_unflushed: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> Poll<Ended> {
        loop {
            let mut begun = Vec::new();
            let polled = lend(|memory| self.turn(cx, memory, &mut begun));
            // Without the lock: who is begun may be let go of at once.
            for begun in begun {
                let served = stream::serve(begun, self.port.routes.clone());
                self.port.tasks.spawn(served);
            }
            if polled.is_ready() {
                return polled;
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if !self.ask(alarm.as_mut()) {
                return Poll::Ready(Ended::Gone);
            }
        }
    }

    /// The alarm went off. False: the peer had its time.
    fn ask(&mut self, alarm: Pin<&mut Sleep>) -> bool {
        let due = self.heard + KEEPALIVE;
        if self.is_leaving || self.is_asked {
            return false;
        }
        if due > Instant::now() {
            alarm.reset(due);
            return true;
        }
        let inner = &mut *self.shared.lock();
        inner.prepare();
        inner.codec.ping(&mut inner.out);
        self.is_asked = true;
        alarm.reset(Instant::now() + KEEPALIVE_TIMEOUT);
        true
    }

    /// Streams under way go on for a while.
    fn leave(&mut self, alarm: Pin<&mut Sleep>) {
        self.is_leaving = true;
        alarm.reset(Instant::now() + GOODBYE_MAX);
        let inner = &mut *self.shared.lock();
        inner.prepare();
        inner.codec.drain(&mut inner.out);
    }

    /// Reads what is there, and writes what is to be written.
    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        memory: &mut Memory,
        begun: &mut Vec<Begun>,
    ) -> Poll<Ended> {
        let shared = self.shared.clone();
        let inner = &mut *shared.lock();
        inner.listen(cx);
        let (mut is_broken, mut is_full) = (false, false);
        for round in 0.. {
            // Bodies fill half of it at most; what reading makes us say has the other half. Else two ends that have much to
            // send would wait for each other.
            if inner.out.len() >= self.out_max() {
                is_full = true;
                break;
            }
            if round == ROUNDS_MAX {
                cx.waker().wake_by_ref(); // others of this thread want their turn
                break;
            }
            let mut read = ReadBuf::new(&mut memory.read);
            let count = match Pin::new(&mut self.wire).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) => read.filled().len(),
                Poll::Ready(Err(_)) => 0,
                Poll::Pending => break,
            };
            if count == 0 {
                return Poll::Ready(Ended::Gone);
            }
            (self.heard, self.is_asked) = (Instant::now(), false);
            if self.receive(inner, memory, count, begun).is_err() {
                is_broken = true;
                break;
            }
        }
        inner.wake_writable();
        let is_stalled = match self.flush(cx, inner, memory) {
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(_)) => return Poll::Ready(Ended::Gone),
            Poll::Pending => true,
        };
        if is_broken {
            return Poll::Ready(Ended::Told);
        }
        if is_stalled {
            return Poll::Pending;
        }
        inner.wake_writable();
        if is_full {
            cx.waker().wake_by_ref();
        }
        if inner.codec.is_done() {
            return Poll::Ready(Ended::Told);
        }
        if inner.codec.phase() == Phase::Idle {
            inner.codec.rest();
        }
        Poll::Pending
    }

    fn receive(
        &self,
        inner: &mut Inner,
        memory: &mut Memory,
        count: usize,
        begun: &mut Vec<Begun>,
    ) -> Result<(), Broken> {
        if inner.out.capacity() == 0 {
            inner.out = memory.buffer();
        }
        let Memory {
            read, batch, pool, ..
        } = memory;
        let input = read.get(..count).unwrap_or_default();
        let now_s = self.port.began.elapsed().as_secs() as u32;
        let received = inner
            .codec
            .receive(input, now_s, batch, pool, &mut inner.out);
        for event in batch.drain() {
            match event {
                Event::Request {
                    stream,
                    request,
                    last,
                } => {
                    let head = message::request(&request);
                    pool.put_workspace(request.into_workspace());
                    let Some(mut head) = head else {
                        inner.codec.release(stream, &mut inner.out);
                        continue;
                    };
                    head.extensions_mut().insert(self.arrival.clone());
                    inner.enter(stream, last);
                    begun.push(Begun::new(&self.shared, stream, head));
                }
                Event::Refused { stream, refusal } => {
                    // To a caller who may be gone.
                    let _ = inner.codec.reply(stream, &refusal.reply(), &mut inner.out);
                    inner.codec.release(stream, &mut inner.out);
                    self.port.refusals.denied(MALFORMED);
                }
                Event::Malformed(_) => self.port.refusals.denied(MALFORMED),
                Event::Data { stream, at, last } => {
                    inner.came(stream, input.get(at).unwrap_or_default(), last);
                }
                Event::End { stream, trailers } => {
                    inner.came(stream, &[], true);
                    if let Some(trailers) = trailers {
                        pool.put_list(trailers);
                    }
                }
                Event::Reset { stream, .. } => inner.lose(stream),
                Event::Over(bound) => self.over(bound),
                Event::Interim { .. } | Event::Head { .. } | Event::Pong | Event::GoAway { .. } => {
                }
            }
        }
        if let Err(Broken::Bound(bound)) = received {
            self.over(bound);
        }
        received
    }

    /// Ready when nothing is left to be written.
    fn flush(
        &mut self,
        cx: &mut Context<'_>,
        inner: &mut Inner,
        memory: &mut Memory,
    ) -> Poll<io::Result<()>> {
        let mut at = 0;
        let written = loop {
            let rest = inner.out.get(at..).unwrap_or_default();
            if rest.is_empty() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.wire).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => at += count,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.is_unflushed |= at > 0;
        if at >= inner.out.len() {
            memory.put_buffer(std::mem::take(&mut inner.out));
        } else {
            inner.out.drain(..at);
        }
        if written.is_ready() && self.is_unflushed {
            let flushed = Pin::new(&mut self.wire).poll_flush(cx)?;
            self.is_unflushed = flushed.is_pending();
            return flushed.map(Ok);
        }
        written
    }

    fn out_max(&self) -> usize {
        self.port.config.limits.send_buffer_bytes.saturating_mul(2)
    }

    fn over(&self, bound: Bound) {
        self.port.refusals.denied(bound.as_str());
        if self.port.refusals.may_tell() {
            tracing::warn!(peer = ?self.arrival.remote, "a connection is over a bound: {bound}");
        }
    }
}

/// Lets the peer read our last words: closed with bytes of it unread, the connection would be reset, and the words lost.
async fn part(wire: &mut listen::Connection) {
    let parting = async {
        wire.shutdown().await?;
        let (mut read, mut left) = (vec![0; 4096], PARTING_BYTES_MAX);
        while left > 0 {
            match wire.read(&mut read).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(PARTING_MAX, parting).await;
}

/// A reason: no request that HTTP/2 allows.
const MALFORMED: &str = "malformed";
/// Reads before others of the thread get a turn.
const ROUNDS_MAX: u32 = 8;

/// What one takes beside its stream's own, while nothing is under way.
#[cfg(test)]
pub const SIZE: usize = size_of::<Task>() + size_of::<Shared>();
