//! One entry for each parser of foreign bytes, for fuzz targets and properties: whatever the bytes and however they are
//! cut, the same comes out, and no parser panics.

use std::fmt::Write as _;

use super::{Answer, Event, Ready, Server, Turn, Unread};
use crate::checked::{Checked, Http1Line, Workspace};
use crate::framing::{Framing, Version};
use crate::header::HeaderList;
use crate::limits::Limits;
use crate::pool::Pool;
use crate::response::ResponseHead;

/// Two readings of the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("whole: {whole}\nin pieces: {pieces}")]
pub struct Difference {
    pub whole: String,
    pub pieces: String,
}

/// Reads `bytes` as a stream of requests, whole and cut by `cuts`, answering each.
///
/// # Errors
/// [`Difference`], which is a defect.
pub fn requests(bytes: &[u8], cuts: &[u8], limits: &Limits) -> Result<String, Difference> {
    compare(
        read_requests(&[bytes], limits),
        read_requests(&cut(bytes, cuts), limits),
    )
}

/// Reads `bytes` as the answer to `request`, whole and cut by `cuts`, and then the peer's close.
///
/// # Errors
/// [`Difference`], which is a defect.
pub fn answer(
    bytes: &[u8],
    cuts: &[u8],
    request: Request,
    limits: &Limits,
) -> Result<String, Difference> {
    compare(
        read_answer(&[bytes], request, limits),
        read_answer(&cut(bytes, cuts), request, limits),
    )
}

/// What an answer may be one to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Get,
    Head,
    WebSocket,
}

fn compare(whole: String, pieces: String) -> Result<String, Difference> {
    if whole == pieces {
        Ok(whole)
    } else {
        Err(Difference { whole, pieces })
    }
}

/// Pieces of 1 to 256 bytes, as the cuts say; the rest in one.
fn cut<'b>(bytes: &'b [u8], cuts: &[u8]) -> Vec<&'b [u8]> {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    for cut in cuts {
        let Some((piece, after)) = rest.split_at_checked(usize::from(*cut) + 1) else {
            break;
        };
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

fn read_requests(pieces: &[&[u8]], limits: &Limits) -> String {
    let (mut server, mut pool) = (Server::default(), Pool::default());
    let mut unread = Unread::default();
    let mut told = Transcript::default();
    for piece in pieces {
        unread.keep(piece, &mut pool);
        let mut input = unread.as_slice();
        loop {
            match server.read(&mut input, &mut pool, limits) {
                Ok(Some(Event::Request(request))) => {
                    told.request(&request);
                    pool.put_workspace(request.into_workspace());
                }
                Ok(Some(Event::Body(data))) => told.data(data),
                Ok(Some(Event::End(trailers))) => {
                    told.end(trailers.as_ref());
                    if !told.answer(&mut server) {
                        return told.text;
                    }
                }
                Ok(None) => break,
                Err(broken) => {
                    told.line(format_args!("broken: {broken}"));
                    return told.text;
                }
            }
        }
        let left = input.len();
        unread.advance_to(left, &mut pool);
    }
    match server.eof(&mut pool) {
        Ok(()) => told.line(format_args!("closed")),
        Err(broken) => told.line(format_args!("broken: {broken}")),
    }
    told.text
}

fn read_answer(pieces: &[&[u8]], request: Request, limits: &Limits) -> String {
    let mut told = Transcript::default();
    let Some(request) = asked(request, limits) else {
        return told.text;
    };
    let (mut pool, mut out) = (Pool::default(), Vec::new());
    let mut exchange = Ready::fresh().send(&request, None, &mut out);
    let mut surplus = 0;
    for piece in pieces {
        let mut input = *piece;
        loop {
            match exchange.read(&mut input, &mut pool, limits) {
                Ok(Some(answer)) => told.answered(answer, &mut pool),
                Ok(None) => break,
                Err(broken) => {
                    told.line(format_args!("broken: {broken}"));
                    return told.text;
                }
            }
        }
        surplus += input.len();
    }
    match exchange.eof(&mut pool) {
        Ok(Some(answer)) => told.answered(answer, &mut pool),
        Ok(None) => told.line(format_args!("closed, {surplus} left")),
        Err(broken) => told.line(format_args!("broken: {broken}")),
    }
    told.text
}

/// The request that is answered.
pub fn asked(request: Request, limits: &Limits) -> Option<Checked> {
    let method = match request {
        Request::Head => "HEAD",
        Request::Get | Request::WebSocket => "GET",
    };
    let line = Http1Line {
        method,
        authority: None,
        path: "/",
        query: None,
        version: Version::Http11,
    };
    let fields: [(&[u8], &[u8]); 3] = [
        (b"host", b"a"),
        (b"connection", b"upgrade"),
        (b"upgrade", b"websocket"),
    ];
    let count = if request == Request::WebSocket { 3 } else { 1 };
    let fields = fields.into_iter().take(count);
    Checked::http1(Workspace::default(), line, fields, limits).ok()
}

/// What was read, as text: pieces of a body that touch are one.
#[derive(Default)]
struct Transcript {
    text: String,
    in_data: bool,
}

impl Transcript {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        if std::mem::take(&mut self.in_data) {
            self.text.push('\n');
        }
        let _ = writeln!(self.text, "{line}"); // a String takes everything
    }

    fn request(&mut self, request: &Checked) {
        self.line(format_args!(
            "{:?} {request:?} ?{:?} {:?} upgrade {:?} continue {}",
            request.version(),
            request.query(),
            request.framing(),
            request.upgrade(),
            request.expects_continue(),
        ));
    }

    fn data(&mut self, data: &[u8]) {
        if !std::mem::replace(&mut self.in_data, true) {
            self.text.push_str("data ");
        }
        let _ = write!(self.text, "{}", data.escape_ascii());
    }

    fn end(&mut self, trailers: Option<&HeaderList>) {
        self.line(format_args!("end {trailers:?}"));
    }

    fn answered(&mut self, answer: Answer<'_>, pool: &mut Pool) {
        match answer {
            Answer::Interim(status) => self.line(format_args!("interim {status}")),
            Answer::Head(head) => {
                let (status, framing) = (head.status, head.framing());
                self.line(format_args!("{status} {framing:?} {:?}", head.headers));
                pool.put_head(head);
            }
            Answer::Body(data) => self.data(data),
            Answer::End(trailers) => self.end(trailers.as_ref()),
        }
    }

    /// Answers a complete request, and tells whether another may come.
    fn answer(&mut self, server: &mut Server) -> bool {
        let (mut head, mut out) = (ResponseHead::blank(), Vec::new());
        head.own(200, Framing::Length(0));
        let answered = server
            .respond(&head, false, &mut out)
            .and_then(|()| server.end(None, &mut out));
        let turn = server.turn();
        self.line(format_args!("answered {answered:?} {turn:?}"));
        turn == Turn::Next
    }
}
