//! The side that takes requests: one at a time, however many the peer sends ahead.

use std::cell::Cell;

use super::body::{BadBody, Decoder, Piece};
use super::encode::{self, ChunkFrame, Encoder, Meeting, WriteError};
use super::lines::{Fields, Lines, Unusable, Words, next_line};
use crate::checked::{Checked, Http1Line, Method, Refusal};
use crate::framing::Version;
use crate::header::HeaderList;
use crate::limits::{Limits, REQUEST_LINE_OVERHEAD};
use crate::pool::Pool;
use crate::response::ResponseHead;
use crate::verdict::Reply;

/// One connection from downstream. Without memory of its own while no request is under way.
#[derive(Debug, Default)]
pub struct Server {
    lines: Lines,
    body: Decoder,
    writer: Encoder,
    reading: Reading,
    answering: Answering,
    version: Version,
    head: bool,
    keep_alive: bool,
    upgrade: bool,
    continues: bool,
    blank_line: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Head,
    Body,
    Ended,
    Broken,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answering {
    #[default]
    Waiting,
    Body,
    Done,
    Switched,
}

/// What came.
#[derive(Debug)]
pub enum Event<'i> {
    Request(Checked),
    Body(&'i [u8]),
    /// The request is complete; with its trailers if it had some.
    End(Option<HeaderList>),
}

/// Why nothing more can be read. The answer, if one can still be given, ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("refused: {0}")]
    Refused(Refusal),
    #[error("broken body: {0}")]
    Body(BadBody),
    #[error("the peer closed in the middle of a request")]
    Truncated,
}

/// Where a connection is, for its deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Idle,
    /// A part of a head is there.
    Head,
    Busy,
}

/// What comes after a complete answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// The answer is not complete yet.
    Answer,
    /// The answer is complete and the request isn't: read on and throw away, or close.
    Unread,
    /// The next request may come, or has.
    Next,
    Close,
    /// Bytes both ways from here, those unread first.
    Tunnel,
}

impl Server {
    /// Takes from the front of `input`; none when more is needed, or when the request is complete: what is left then is
    /// the next one's, and stays until [`Server::turn`].
    ///
    /// # Errors
    /// [`Broken`], once; nothing is read after that.
    pub fn read<'i>(
        &mut self,
        input: &mut &'i [u8],
        pool: &mut Pool,
        limits: &Limits,
    ) -> Result<Option<Event<'i>>, Broken> {
        let read = match self.reading {
            Reading::Head => self
                .read_head(input, pool, limits)
                .map(|request| request.map(Event::Request))
                .map_err(Broken::Refused),
            Reading::Body => self.read_body(input, pool, limits).map_err(Broken::Body),
            Reading::Ended | Reading::Broken => Ok(None),
        };
        if read.is_err() {
            self.break_off(pool);
        }
        read
    }

    fn read_body<'i>(
        &mut self,
        input: &mut &'i [u8],
        pool: &mut Pool,
        limits: &Limits,
    ) -> Result<Option<Event<'i>>, BadBody> {
        let piece = self.body.read(input, &mut self.lines, pool, limits)?;
        Ok(piece.map(|piece| match piece {
            Piece::Data(data) => {
                self.continues = false;
                Event::Body(data)
            }
            Piece::End(trailers) => {
                self.continues = false;
                self.reading = Reading::Ended;
                Event::End(trailers)
            }
        }))
    }

    fn read_head(
        &mut self,
        input: &mut &[u8],
        pool: &mut Pool,
        limits: &Limits,
    ) -> Result<Option<Checked>, Refusal> {
        loop {
            if self.lines.is_empty() {
                match input.first() {
                    None => return Ok(None),
                    // What is no HTTP at all is not waited for.
                    Some(b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'\r') => {}
                    Some(_) => return Err(Refusal::Line),
                }
            }
            let max = limits.head_bytes.saturating_add(REQUEST_LINE_OVERHEAD);
            match self.lines.collect(input, max, pool) {
                Ok(true) if pool.scratch != b"\r\n" => break,
                // One empty line before a request is read over (RFC 9112 §2.2).
                Ok(true) if !self.blank_line => self.blank_line = true,
                Ok(false) => return Ok(None),
                Ok(true) | Err(Unusable::BareLineFeed) => return Err(Refusal::Line),
                Err(Unusable::TooLarge) => return Err(Refusal::TooLarge),
            }
        }
        self.blank_line = false;
        let mut scratch = std::mem::take(&mut pool.scratch);
        let workspace = pool.workspace();
        let words = Cell::new(Words::default());
        let checked = match request(workspace, &mut scratch, &words, limits) {
            Ok(checked) => Ok(checked),
            Err((refusal, workspace)) => {
                pool.put_workspace(workspace);
                Err(refusal)
            }
        };
        pool.scratch = scratch;
        let checked = checked?;
        self.begin(&checked, words.get());
        Ok(Some(checked))
    }

    fn begin(&mut self, checked: &Checked, words: Words) {
        self.version = checked.version();
        self.head = checked.method() == Method::Head;
        self.keep_alive = !words.close && (self.version == Version::Http11 || words.keep_alive);
        self.upgrade = checked.upgrade().is_some();
        self.continues = checked.expects_continue() && self.version == Version::Http11;
        self.body = Decoder::of_request(checked.framing());
        self.reading = Reading::Body;
    }

    /// The peer closed its side.
    ///
    /// # Errors
    /// [`Broken::Truncated`] in the middle of a request.
    pub fn eof(&mut self, pool: &mut Pool) -> Result<(), Broken> {
        self.keep_alive = false;
        let complete = match self.reading {
            Reading::Head => self.lines.is_empty(),
            Reading::Body => self.body.is_complete_at_close(),
            Reading::Ended | Reading::Broken => true,
        };
        if complete {
            return Ok(());
        }
        self.break_off(pool);
        Err(Broken::Truncated)
    }

    fn break_off(&mut self, pool: &mut Pool) {
        self.lines.forget(pool);
        self.reading = Reading::Broken;
        self.keep_alive = false;
        self.continues = false;
    }

    /// Tells a caller who waits for it to send the body: once, and not after the body or the answer has begun.
    pub fn proceed(&mut self, out: &mut Vec<u8>) {
        let waits = self.answering == Answering::Waiting && self.reading == Reading::Body;
        if std::mem::take(&mut self.continues) && waits {
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// Begins the answer. `close`: the connection is to end with it. Without a complete head before it, or after a broken
    /// request, it ends in any case.
    ///
    /// # Errors
    /// [`WriteError::OutOfTurn`]: an answer has begun already, or it is a 101 to a request that asked for none.
    pub fn respond(
        &mut self,
        head: &ResponseHead,
        close: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        let switches = head.status == 101;
        let fits = if switches {
            self.upgrade && self.reading == Reading::Ended
        } else {
            (200..1000).contains(&head.status)
        };
        if self.answering != Answering::Waiting || !fits {
            return Err(WriteError::OutOfTurn);
        }
        if switches {
            encode::response_head(head, self.meeting(), out);
            self.answering = Answering::Switched;
            return Ok(());
        }
        self.settle(close);
        self.writer = encode::response_head(head, self.meeting(), out);
        self.keep_alive &= self.writer != Encoder::UntilClose;
        self.answering = Answering::Body;
        Ok(())
    }

    /// An answer of our own, whole. To gRPC it looks different: then a driver makes the head itself.
    ///
    /// # Errors
    /// [`WriteError::OutOfTurn`]: an answer has begun already.
    pub fn reply(&mut self, reply: &Reply, out: &mut Vec<u8>) -> Result<(), WriteError> {
        if self.answering != Answering::Waiting {
            return Err(WriteError::OutOfTurn);
        }
        self.settle(reply.close);
        encode::reply(reply, self.meeting(), out);
        self.answering = Answering::Done;
        Ok(())
    }

    /// Whether the connection goes on after this answer. Not after an upgrade that is refused: the peer may already have
    /// sent what is no HTTP. Not after an expectation that was never met: the peer may send the body or not.
    fn settle(&mut self, close: bool) {
        let read = matches!(self.reading, Reading::Body | Reading::Ended);
        self.keep_alive &= read && !close && !self.upgrade && !self.continues;
        self.continues = false;
    }

    fn meeting(&self) -> Meeting {
        Meeting {
            version: self.version,
            head: self.head,
            keep_alive: self.keep_alive,
        }
    }

    /// A piece of the answer's body.
    ///
    /// # Errors
    /// [`WriteError`]: the answer can't be completed, and the connection must be cut so that the peer sees it.
    pub fn body(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), WriteError> {
        self.begun()?.body(data, out)
    }

    /// As [`Server::body`], for a driver that writes the piece itself, between head and tail of the frame.
    ///
    /// # Errors
    /// As [`Server::body`].
    pub fn body_frame(&mut self, len: usize) -> Result<ChunkFrame, WriteError> {
        self.begun()?.frame(len)
    }

    /// Ends the answer.
    ///
    /// # Errors
    /// As [`Server::body`].
    pub fn end(
        &mut self,
        trailers: Option<&HeaderList>,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        self.begun()?.end(trailers, out)?;
        self.answering = Answering::Done;
        Ok(())
    }

    fn begun(&mut self) -> Result<&mut Encoder, WriteError> {
        if self.answering == Answering::Body {
            Ok(&mut self.writer)
        } else {
            Err(WriteError::OutOfTurn)
        }
    }

    /// What comes after the answer; makes ready for the next request where there may be one.
    pub fn turn(&mut self) -> Turn {
        match (self.answering, self.reading) {
            (Answering::Switched, _) => Turn::Tunnel,
            (Answering::Waiting | Answering::Body, _) => Turn::Answer,
            (Answering::Done, Reading::Ended) if self.keep_alive => {
                *self = Self::default();
                Turn::Next
            }
            (Answering::Done, Reading::Body) if self.keep_alive => Turn::Unread,
            (Answering::Done, _) => Turn::Close,
        }
    }

    /// Memory held beside the struct itself: the part of a head or of trailers that has come so far, nothing while idle.
    pub fn held_bytes(&self) -> usize {
        self.lines.held_bytes()
    }

    pub fn phase(&self) -> Phase {
        match self.reading {
            Reading::Head if self.lines.is_empty() && !self.blank_line => Phase::Idle,
            Reading::Head => Phase::Head,
            _ => Phase::Busy,
        }
    }
}

/// The one checked request of a complete head.
fn request(
    workspace: crate::checked::Workspace,
    head: &mut [u8],
    words: &Cell<Words>,
    limits: &Limits,
) -> Result<Checked, (Refusal, crate::checked::Workspace)> {
    let mut rest = head;
    let line = next_line(&mut rest).map(|line| request_line(line));
    match line.unwrap_or(Err(Refusal::Line)) {
        Ok(line) => Checked::http1_named(workspace, line, Fields::new(rest, words), limits),
        Err(refusal) => Err((refusal, workspace)),
    }
}

/// `method SP target SP version`, one blank each.
fn request_line(line: &[u8]) -> Result<Http1Line<'_>, Refusal> {
    let line = std::str::from_utf8(line).map_err(|_| Refusal::Line)?;
    let (method, rest) = line.split_once(' ').ok_or(Refusal::Line)?;
    let (target, version) = rest.rsplit_once(' ').ok_or(Refusal::Line)?;
    let version = match version {
        "HTTP/1.1" => Version::Http11,
        "HTTP/1.0" => Version::Http10,
        _ if version.starts_with("HTTP/") => return Err(Refusal::Version),
        _ => return Err(Refusal::Line),
    };
    // RFC 3986 has no place for them; what is left of such is for the canonical form to judge.
    if target.contains(['"', '<', '>', '`']) {
        return Err(Refusal::Path);
    }
    let (authority, target) = split_absolute(target)?;
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let path = match path {
        "" if authority.is_none() => return Err(Refusal::Path),
        "" if method == "OPTIONS" && query.is_none() => "*", // RFC 9112 §3.2.4
        "" => "/",
        path => path,
    };
    Ok(Http1Line {
        method,
        authority,
        path,
        query,
        version,
    })
}

/// Authority, if the target is a whole URI, and the rest of it.
fn split_absolute(target: &str) -> Result<(Option<&str>, &str), Refusal> {
    if target.starts_with('/') || target == "*" {
        return Ok((None, target));
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Ok((None, target));
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Refusal::Authority);
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at_checked(end).unwrap_or((rest, ""));
    if authority.is_empty() {
        return Err(Refusal::Authority);
    }
    Ok((Some(authority), target))
}
