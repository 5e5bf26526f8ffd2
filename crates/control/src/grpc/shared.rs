//! What a connection's task and its streams share: the codec, what is to be written, and what has come for each stream.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use phalanx_relay::http2::{Server, Stream};
use phalanx_relay::{HeaderList, ResponseHead};

use super::memory::lend;

/// Of one connection.
pub struct Shared {
    /// Short critical sections, never across an await: its task's while it reads and writes what the socket takes, its
    /// streams' while they say something.
    inner: Mutex<Inner>,
}

pub struct Inner {
    pub codec: Server,
    /// To be written.
    pub out: Vec<u8>,
    /// By the codec's small numbers.
    slots: Vec<Option<Box<Slot>>>,
    /// Of the connection's task, once however often it is rung.
    task: Option<Waker>,
    is_rung: bool,
    /// Nothing is read or written any more.
    pub is_over: bool,
}

/// What has come for one stream and nobody has taken yet.
struct Slot {
    stream: Stream,
    /// Bounded by the stream's window.
    data: Vec<u8>,
    is_ended: bool,
    is_lost: bool,
    /// Nobody will take it.
    is_unread: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Nobody waits for the answer any more.
#[derive(Debug)]
pub struct Lost;

impl Shared {
    pub fn new(codec: Server, out: Vec<u8>) -> Arc<Self> {
        let inner = Inner {
            codec,
            out,
            slots: Vec::new(),
            task: None,
            is_rung: false,
            is_over: false,
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// From now on, who is to be woken.
    pub fn listen(&mut self, cx: &Context<'_>) {
        self.is_rung = false;
        park(&mut self.task, cx);
    }

    pub fn ring(&mut self) {
        if !std::mem::replace(&mut self.is_rung, true)
            && let Some(task) = &self.task
        {
            task.wake_by_ref();
        }
    }

    /// Memory for what is about to be written.
    pub fn prepare(&mut self) {
        if self.out.capacity() == 0 {
            self.out = lend(|memory| memory.buffer());
        }
    }

    /// Gives back the memory that nothing was written into.
    pub fn put_back(&mut self) {
        if self.out.is_empty() && self.out.capacity() > 0 {
            let out = std::mem::take(&mut self.out);
            lend(|memory| memory.put_buffer(out));
        }
    }

    pub fn enter(&mut self, stream: Stream, is_ended: bool) {
        let place = stream.slot();
        if self.slots.len() <= place {
            self.slots.reserve_exact(place + 1 - self.slots.len());
            self.slots.resize_with(place + 1, || None);
        }
        if let Some(slot) = self.slots.get_mut(place) {
            *slot = Some(Box::new(Slot {
                stream,
                data: Vec::new(),
                is_ended,
                is_lost: false,
                is_unread: is_ended,
                reader: None,
                writer: None,
            }));
        }
    }

    fn slot(&mut self, stream: Stream) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(stream.slot())?.as_deref_mut()?;
        (slot.stream == stream).then_some(slot)
    }

    pub fn came(&mut self, stream: Stream, data: &[u8], is_last: bool) {
        let Some(slot) = self.slot(stream) else {
            return;
        };
        if !slot.is_unread && !data.is_empty() {
            slot.data.reserve_exact(data.len());
            slot.data.extend_from_slice(data);
        }
        slot.is_ended |= is_last;
        wake(&slot.reader);
    }

    pub fn lose(&mut self, stream: Stream) {
        if let Some(slot) = self.slot(stream) {
            slot.lose();
        }
    }

    /// Tells every stream that its connection is no more.
    pub fn lose_all(&mut self) {
        self.is_over = true;
        self.slots.iter_mut().flatten().for_each(|slot| slot.lose());
    }

    pub fn wake_writable(&mut self) {
        while let Some(stream) = self.codec.writable(&self.out) {
            if let Some(slot) = self.slot(stream) {
                wake(&slot.writer);
            }
        }
    }
}

impl Slot {
    fn lose(&mut self) {
        self.is_lost = true;
        wake(&self.reader);
        wake(&self.writer);
    }
}

fn park(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(known) => known.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

fn wake(waker: &Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake_by_ref();
    }
}

/// The receiving side of a stream, for whoever reads the request.
pub struct Inbound {
    shared: Arc<Shared>,
    stream: Stream,
}

impl Inbound {
    pub fn new(shared: Arc<Shared>, stream: Stream) -> Self {
        Self { shared, stream }
    }

    /// All that is there; none at the end.
    pub fn poll_data(&self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Lost>>> {
        let inner = &mut *self.shared.lock();
        let Some(slot) = inner.slot(self.stream) else {
            return Poll::Ready(Some(Err(Lost)));
        };
        if !slot.data.is_empty() {
            let data = std::mem::take(&mut slot.data);
            inner.prepare();
            let before = inner.out.len();
            inner
                .codec
                .consumed(self.stream, data.len(), &mut inner.out);
            if inner.out.len() > before {
                inner.ring();
            }
            inner.put_back();
            return Poll::Ready(Some(Ok(data.into())));
        }
        if slot.is_ended {
            return Poll::Ready(None);
        }
        if slot.is_lost {
            return Poll::Ready(Some(Err(Lost)));
        }
        park(&mut slot.reader, cx);
        Poll::Pending
    }

    /// Whether nothing comes any more.
    pub fn is_ended(&self) -> bool {
        let slot_ended = |slot: &mut Slot| slot.is_ended && slot.data.is_empty();
        self.shared.lock().slot(self.stream).is_some_and(slot_ended)
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        if let Some(slot) = self.shared.lock().slot(self.stream) {
            slot.is_unread = true;
            slot.data = Vec::new();
            slot.reader = None;
        }
    }
}

/// The sending side. Dropped, the stream is let go of: what of it is not complete is cancelled.
pub struct Outbound {
    shared: Arc<Shared>,
    stream: Stream,
}

impl Outbound {
    pub fn new(shared: Arc<Shared>, stream: Stream) -> Self {
        Self { shared, stream }
    }

    /// Whether the peer has given it up; whoever asks is woken when it does.
    pub fn is_lost(&self, cx: &Context<'_>) -> bool {
        let inner = &mut *self.shared.lock();
        let Some(slot) = inner.slot(self.stream) else {
            return true;
        };
        park(&mut slot.writer, cx);
        slot.is_lost
    }

    /// Begins the answer.
    pub fn respond(&self, head: &ResponseHead) -> Result<(), Lost> {
        self.say(|codec, stream, out| codec.respond(stream, head, out).map_err(|_| Lost))
    }

    /// Takes from `data` what the windows have room for; ready when that was all of it.
    pub fn poll_body(&self, cx: &Context<'_>, data: &mut Bytes) -> Poll<Result<(), Lost>> {
        if self.is_lost(cx) {
            return Poll::Ready(Err(Lost));
        }
        let taken = self.say(|codec, stream, out| codec.body(stream, data, false, out));
        let Ok(taken) = taken else {
            return Poll::Ready(Err(Lost));
        };
        *data = data.split_off(taken.min(data.len()));
        match data.is_empty() {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }

    pub fn end(&self, trailers: Option<&HeaderList>) -> Result<(), Lost> {
        self.say(|codec, stream, out| codec.end(stream, trailers, out).map_err(|_| Lost))
    }

    /// What is said is written when its connection has its turn.
    fn say<R>(&self, speak: impl FnOnce(&mut Server, Stream, &mut Vec<u8>) -> R) -> R {
        let inner = &mut *self.shared.lock();
        inner.prepare();
        let said = speak(&mut inner.codec, self.stream, &mut inner.out);
        inner.ring();
        said
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        let inner = &mut *self.shared.lock();
        let gone = match inner.slots.get_mut(self.stream.slot()) {
            Some(place)
                if place
                    .as_ref()
                    .is_some_and(|slot| slot.stream == self.stream) =>
            {
                place.take()
            }
            _ => None,
        };
        // What reads the request hears of it too.
        wake(gone.as_ref().map_or(&None, |slot| &slot.reader));
        if inner.is_over {
            return;
        }
        inner.prepare();
        inner.codec.release(self.stream, &mut inner.out);
        if !inner.out.is_empty() || inner.codec.is_done() {
            inner.ring();
        }
        inner.put_back();
    }
}
