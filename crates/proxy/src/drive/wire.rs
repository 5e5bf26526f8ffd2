//! A socket, and what is still to be written to it. Connections read into one buffer of their core; an idle one holds
//! none.

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::core::Core;
use super::stream::Stream;

pub struct Wire {
    stream: Stream,
    /// To be written.
    pub out: Vec<u8>,
    /// Bytes that the socket took, ever.
    written: u64,
    /// Under TLS, what was taken may not have left.
    unflushed: bool,
}

impl Wire {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            out: Vec::new(),
            written: 0,
            unflushed: false,
        }
    }

    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// Ends the connection so that the peer can't take what it has for the whole.
    pub fn abort(self) {
        self.stream.abort();
    }

    /// Where the next byte stands in all that is ever written here.
    pub fn queued(&self) -> u64 {
        self.written + self.out.len() as u64
    }

    /// Bytes that the socket took, ever.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Memory for what is about to be written.
    #[inline]
    pub fn prepare(&mut self, core: &Core) {
        if self.out.capacity() == 0 {
            self.out = core.memory.borrow_mut().pool.buffer();
        }
    }

    /// Reads what is there into `scratch`, and the clock; 0 at the end.
    #[inline]
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        scratch: &mut Scratch,
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(&mut scratch.bytes);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
        scratch.len = buf.filled().len();
        core.wheel.now_us();
        Poll::Ready(Ok(scratch.len))
    }

    /// Whether the peer has said something that a read would not give yet.
    pub fn has_unheard(&self) -> bool {
        self.stream.has_unheard()
    }

    /// Writes what can be written; ready when nothing is left.
    #[inline]
    pub fn poll_flush(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<io::Result<()>> {
        if !self.out.is_empty() {
            ready!(self.poll_write(cx, core))?;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<io::Result<()>> {
        let mut at = 0;
        let ended = loop {
            let rest = self.out.get(at..).unwrap_or_default();
            if rest.is_empty() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => at += written,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.written += at as u64;
        self.unflushed |= at > 0 && matches!(self.stream, Stream::Tls(_));
        if at >= self.out.len() {
            core.memory
                .borrow_mut()
                .pool
                .put_buffer(std::mem::take(&mut self.out));
        } else {
            self.out.drain(..at);
        }
        ended
    }

    /// Lets the peer read our last words: closed with bytes of it unread, the connection would be reset, and the words
    /// lost. `left`: bytes that are read for that at most.
    pub fn poll_part(&mut self, cx: &mut Context<'_>, core: &Core, left: &mut usize) -> Poll<()> {
        if *left == PARTING_BYTES {
            let said = match self.poll_flush(cx, core) {
                Poll::Ready(Ok(())) => ready!(Pin::new(&mut self.stream).poll_shutdown(cx)),
                Poll::Ready(Err(error)) => Err(error),
                Poll::Pending => return Poll::Pending,
            };
            if said.is_err() {
                return Poll::Ready(());
            }
        }
        loop {
            match ready!(self.poll_read(cx, core, &mut Scratch::take())) {
                Ok(count) if (1..*left).contains(&count) => *left -= count,
                _ => return Poll::Ready(()),
            }
        }
    }

    /// As [`Wire::poll_part`], and not for ever.
    pub async fn part(mut self, core: &Core) {
        let mut left = PARTING_BYTES;
        let parting = std::future::poll_fn(|cx| self.poll_part(cx, core, &mut left));
        let _ = tokio::time::timeout(PARTING, parting).await;
    }
}

/// The core's buffer, while something reads into it.
pub struct Scratch {
    bytes: Vec<u8>,
    len: usize,
}

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Scratch {
    /// Whoever takes it while somebody else has it gets one of its own.
    #[inline]
    pub fn take() -> Self {
        let mut bytes = SCRATCH.take();
        if bytes.is_empty() {
            bytes.resize(READ_BYTES, 0);
        }
        Self { bytes, len: 0 }
    }
}

impl Deref for Scratch {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.bytes));
    }
}

/// One read.
pub const READ_BYTES: usize = 64 << 10;
/// How long and for how many bytes a peer is listened to that was told the end.
pub const PARTING: std::time::Duration = std::time::Duration::from_millis(500);
pub const PARTING_BYTES: usize = 256 << 10;
