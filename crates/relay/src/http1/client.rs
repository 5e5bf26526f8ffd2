//! The side that sends requests: a connection is [`Ready`], then carries one [`Exchange`], and is ready again only when
//! that has left nothing behind. Pools hold `Ready` and nothing else.

use std::cell::Cell;

use super::body::{BadBody, Decoder, Piece};
use super::encode::{self, ChunkFrame, Encoder, WriteError};
use super::lines::{Fields, Lines, Unusable, Words, next_line};
use crate::checked::{Checked, Method};
use crate::framing::Version;
use crate::header::{Field, HeaderList, Value};
use crate::limits::{INTERIM_ANSWERS, Limits, REQUEST_LINE_OVERHEAD};
use crate::pool::Pool;
use crate::response::{Asked, BadResponse, ResponseHead};

/// A connection on which a request may be sent: it is fresh, or its last exchange proved that request and answer are
/// complete and no byte is left over. A byte that comes while it is ready spoils it: the driver drops it.
#[derive(Debug)]
pub struct Ready {
    _proof: (),
}

/// One request and its answer.
#[derive(Debug)]
pub struct Exchange {
    lines: Lines,
    body: Decoder,
    writer: Encoder,
    sent: bool,
    answer: Awaited,
    asked: Asked,
    keep_alive: bool,
    interim: u8,
    heard: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Head,
    Body,
    Nothing,
    /// Answered with 101.
    Switched,
    Broken,
}

/// What came.
#[derive(Debug)]
pub enum Answer<'i> {
    /// A 1xx that does not count, and is not passed on.
    Interim(u16),
    /// With 101 nothing follows but [`Exchange::into_tunnel`].
    Head(ResponseHead),
    Body(&'i [u8]),
    /// The answer is complete; with its trailers if it had some.
    End(Option<HeaderList>),
}

/// Why there is no answer, or no more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenAnswer {
    #[error("{0}")]
    Head(BadResponse),
    #[error("broken body: {0}")]
    Body(BadBody),
    #[error("too many interim answers")]
    Interim,
    #[error("more bytes than the answer has")]
    Surplus,
    #[error("the peer closed before the first byte of an answer")]
    Silent,
    #[error("the peer closed in the middle of the answer")]
    Truncated,
}

/// Why a connection can't be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Spent {
    #[error("the request was not sent to its end")]
    Request,
    #[error("the answer did not come to its end")]
    Answer,
    #[error("bytes came that belong to no answer")]
    Unread,
    #[error("the peer closes it")]
    Close,
    #[error("it was asked to switch to another protocol")]
    Upgrade,
}

/// A connection after a 101. Until it exists nothing of the caller's was forwarded.
#[derive(Debug)]
#[must_use]
pub struct Switched {
    _proof: (),
}

impl Ready {
    /// A connection that was just opened.
    pub fn fresh() -> Self {
        Self { _proof: () }
    }

    /// Writes the head of the request; `extra` stands behind its own fields.
    pub fn send<'e>(
        self,
        request: &Checked,
        extra: impl IntoIterator<Item = &'e Field>,
        out: &mut Vec<u8>,
    ) -> Exchange {
        encode::request_head(request, extra, out);
        Exchange {
            lines: Lines::default(),
            body: Decoder::default(),
            writer: Encoder::of_request(request.framing()),
            sent: request.framing().is_empty(),
            answer: Awaited::Head,
            asked: Asked {
                head: request.method() == Method::Head,
                upgrade: request.upgrade().is_some(),
            },
            keep_alive: true,
            interim: 0,
            heard: false,
        }
    }
}

impl Exchange {
    /// A piece of the request's body.
    ///
    /// # Errors
    /// [`WriteError`]: the request can't be completed; the connection must be dropped.
    pub fn body(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), WriteError> {
        self.unsent()?.body(data, out)
    }

    /// As [`Exchange::body`], for a driver that writes the piece itself, between head and tail of the frame.
    ///
    /// # Errors
    /// As [`Exchange::body`].
    pub fn body_frame(&mut self, len: usize) -> Result<ChunkFrame, WriteError> {
        self.unsent()?.frame(len)
    }

    /// Ends the request. One without body is complete with its head.
    ///
    /// # Errors
    /// As [`Exchange::body`].
    pub fn end(
        &mut self,
        trailers: Option<&HeaderList>,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        self.unsent()?.end(trailers, out)?;
        self.sent = true;
        Ok(())
    }

    fn unsent(&mut self) -> Result<&mut Encoder, WriteError> {
        if self.sent {
            Err(WriteError::OutOfTurn)
        } else {
            Ok(&mut self.writer)
        }
    }

    pub fn is_sent(&self) -> bool {
        self.sent
    }

    /// Takes from the front of `input`; none when more is needed or the answer is complete. After a 101 what is left
    /// belongs to the tunnel.
    ///
    /// # Errors
    /// [`BrokenAnswer`]: the connection must be dropped.
    pub fn read<'i>(
        &mut self,
        input: &mut &'i [u8],
        pool: &mut Pool,
        limits: &Limits,
    ) -> Result<Option<Answer<'i>>, BrokenAnswer> {
        self.heard |= !input.is_empty();
        let read = match self.answer {
            Awaited::Head => self.read_head(input, pool, limits),
            Awaited::Body => self
                .body
                .read(input, &mut self.lines, pool, limits)
                .map_err(BrokenAnswer::Body)
                .map(|piece| {
                    piece.map(|piece| match piece {
                        Piece::Data(data) => Answer::Body(data),
                        Piece::End(trailers) => self.complete(trailers),
                    })
                }),
            Awaited::Nothing if !input.is_empty() => Err(BrokenAnswer::Surplus),
            Awaited::Nothing | Awaited::Switched | Awaited::Broken => Ok(None),
        };
        if read.is_err() {
            self.break_off(pool);
        }
        read
    }

    fn complete<'i>(&mut self, trailers: Option<HeaderList>) -> Answer<'i> {
        self.answer = Awaited::Nothing;
        Answer::End(trailers)
    }

    fn read_head<'i>(
        &mut self,
        input: &mut &[u8],
        pool: &mut Pool,
        limits: &Limits,
    ) -> Result<Option<Answer<'i>>, BrokenAnswer> {
        match (input.first(), self.lines.is_empty()) {
            (None, _) => return Ok(None),
            // What is no HTTP at all is not waited for.
            (Some(first), true) if *first != b'H' => {
                return Err(BrokenAnswer::Head(BadResponse::Line));
            }
            _ => {}
        }
        let max = limits.head_bytes.saturating_add(REQUEST_LINE_OVERHEAD);
        match self.lines.collect(input, max, pool) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(Unusable::BareLineFeed) => return Err(BrokenAnswer::Head(BadResponse::Line)),
            Err(Unusable::TooLarge) => return Err(BrokenAnswer::Head(BadResponse::TooLarge)),
        }
        let mut scratch = std::mem::take(&mut pool.scratch);
        let mut head = pool.head();
        let read = self.parse(&mut scratch, &mut head, limits);
        pool.scratch = scratch;
        if read.is_err() || head.status < 200 && head.status != 101 {
            let status = head.status;
            pool.put_head(head);
            return read.map(|()| Some(Answer::Interim(status)));
        }
        Ok(Some(Answer::Head(head)))
    }

    fn parse(
        &mut self,
        bytes: &mut [u8],
        head: &mut ResponseHead,
        limits: &Limits,
    ) -> Result<(), BrokenAnswer> {
        let mut rest = bytes;
        let line = next_line(&mut rest).and_then(|line| status_line(line));
        let (version, status) = line.ok_or(BrokenAnswer::Head(BadResponse::Line))?;
        let words = Cell::new(Words::default());
        let fields = Fields::new(rest, &words);
        let delimiter = head
            .fill_http1(version, status, fields, self.asked, limits)
            .map_err(BrokenAnswer::Head)?;
        if status == 101 {
            self.answer = Awaited::Switched;
        } else if status < 200 {
            self.interim += 1;
            if self.interim > INTERIM_ANSWERS {
                return Err(BrokenAnswer::Interim);
            }
        } else {
            let words = words.get();
            self.keep_alive = !words.close && (version == Version::Http11 || words.keep_alive);
            self.body = Decoder::of_answer(delimiter);
            self.answer = Awaited::Body;
            self.keep_alive &= !matches!(self.body, Decoder::UntilClose);
        }
        Ok(())
    }

    /// The peer closed its side: the end of an answer that says no other, and an error everywhere else.
    ///
    /// # Errors
    /// [`BrokenAnswer::Silent`] when not a byte had come: on a connection used before, the request was perhaps never seen.
    pub fn eof(&mut self, pool: &mut Pool) -> Result<Option<Answer<'static>>, BrokenAnswer> {
        self.keep_alive = false;
        match self.answer {
            Awaited::Body if self.body.is_complete_at_close() => Ok(Some(self.complete(None))),
            Awaited::Head | Awaited::Body => {
                self.break_off(pool);
                Err(if self.heard {
                    BrokenAnswer::Truncated
                } else {
                    BrokenAnswer::Silent
                })
            }
            Awaited::Nothing | Awaited::Switched | Awaited::Broken => Ok(None),
        }
    }

    fn break_off(&mut self, pool: &mut Pool) {
        self.lines.forget(pool);
        self.answer = Awaited::Broken;
    }

    /// The one way back into a pool. `unread`: what of the connection's input nobody has taken.
    ///
    /// # Errors
    /// [`Spent`]: the connection must be dropped.
    pub fn finish(self, unread: &[u8]) -> Result<Ready, Spent> {
        if !self.sent {
            Err(Spent::Request)
        } else if self.answer != Awaited::Nothing {
            Err(Spent::Answer)
        } else if !unread.is_empty() || !self.lines.is_empty() {
            Err(Spent::Unread)
        } else if !self.keep_alive {
            Err(Spent::Close)
        } else if self.asked.upgrade {
            Err(Spent::Upgrade)
        } else {
            Ok(Ready { _proof: () })
        }
    }

    /// After a 101, and only then.
    ///
    /// # Errors
    /// The exchange, as it was.
    pub fn into_tunnel(self) -> Result<Switched, Box<Self>> {
        if self.answer == Awaited::Switched {
            Ok(Switched { _proof: () })
        } else {
            Err(Box::new(self))
        }
    }
}

/// `HTTP/1.x SP 3DIGIT [SP reason]`.
fn status_line(line: &[u8]) -> Option<(Version, u16)> {
    let (version, rest) = line.split_first_chunk::<9>()?;
    let version = match version {
        b"HTTP/1.1 " => Version::Http11,
        b"HTTP/1.0 " => Version::Http10,
        _ => return None,
    };
    let (digits, reason) = rest.split_first_chunk::<3>()?;
    let status = digits.iter().try_fold(0u16, |sum, byte| {
        byte.is_ascii_digit()
            .then(|| sum * 10 + u16::from(byte - b'0'))
    })?;
    let reason_fits = match reason {
        [] => true,
        [b' ', reason @ ..] => Value::new(reason).is_some(),
        _ => false,
    };
    reason_fits.then_some((version, status))
}
