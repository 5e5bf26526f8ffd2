//! Heads, bodies and trailers as bytes. Framing is written from what the caller of a writer was given by a constructor,
//! and never from a header.

use super::trailers::is_forbidden_trailer;
use crate::checked::{Checked, Method, Upgrade};
use crate::framing::{Framing, Version};
use crate::header::{Field, HeaderList, Name, NameSet, names};
use crate::response::ResponseHead;
use crate::verdict::Reply;

/// A driver's mistake, or a peer's message that did not keep what its head said: the connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("more of a body than its head says")]
    TooMuch,
    #[error("less of a body than its head says")]
    TooLittle,
    #[error("not the turn of this part of a message")]
    OutOfTurn,
}

/// How a body is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Encoder {
    /// No byte may follow.
    #[default]
    Nothing,
    Length(u64),
    Chunked,
    UntilClose,
}

/// What stands before and behind one piece of a body that a driver writes itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChunkFrame {
    head: [u8; CHUNK_HEAD_MAX],
    head_len: u8,
    tail: &'static [u8],
}

/// Sixteen digits and a line end.
const CHUNK_HEAD_MAX: usize = 18;

impl ChunkFrame {
    pub fn head(&self) -> &[u8] {
        self.head
            .get(..usize::from(self.head_len))
            .unwrap_or_default()
    }

    pub fn tail(&self) -> &'static [u8] {
        self.tail
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.head.get_mut(usize::from(self.head_len)) {
            *place = byte;
            self.head_len += 1;
        }
    }

    fn of(len: usize) -> Self {
        let mut frame = Self {
            tail: b"\r\n",
            ..Self::default()
        };
        let digits = (usize::BITS - len.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            let value = (len >> (4 * digit) & 0xf) as u32;
            frame.push(char::from_digit(value, 16).map_or(b'0', |digit| digit as u8));
        }
        frame.push(b'\r');
        frame.push(b'\n');
        frame
    }
}

impl Encoder {
    pub(super) fn of_request(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Nothing,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked,
        }
    }

    /// Accounts for `len` more bytes of body, which the caller writes between the frame's head and tail.
    pub(super) fn frame(&mut self, len: usize) -> Result<ChunkFrame, WriteError> {
        if len == 0 {
            return Ok(ChunkFrame::default()); // an empty chunk would be the last
        }
        match self {
            Self::Nothing => Err(WriteError::TooMuch),
            Self::Length(left) => {
                *left = left.checked_sub(len as u64).ok_or(WriteError::TooMuch)?;
                Ok(ChunkFrame::default())
            }
            Self::Chunked => Ok(ChunkFrame::of(len)),
            Self::UntilClose => Ok(ChunkFrame::default()),
        }
    }

    pub(super) fn body(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), WriteError> {
        let frame = self.frame(data.len())?;
        out.extend_from_slice(frame.head());
        out.extend_from_slice(data);
        out.extend_from_slice(frame.tail());
        Ok(())
    }

    /// Trailers are for chunked bodies; no other can carry them, and they are dropped.
    pub(super) fn end(
        &mut self,
        trailers: Option<&HeaderList>,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        match self {
            Self::Length(1..) => return Err(WriteError::TooLittle),
            Self::Chunked => {
                out.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.iter().flat_map(|trailers| trailers.iter()) {
                    if !is_forbidden_trailer(name) {
                        field(name, value, out);
                    }
                }
                out.extend_from_slice(b"\r\n");
            }
            _ => {}
        }
        *self = Self::Nothing;
        Ok(())
    }
}

/// The head of a request. `extra` stands behind its own fields.
pub(super) fn request_head<'e>(
    checked: &Checked,
    extra: impl IntoIterator<Item = &'e Field>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(checked.method_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(checked.path().as_bytes());
    if let Some(query) = checked.query() {
        out.push(b'?');
        out.extend_from_slice(query.as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(names::HOST, checked.authority().as_bytes(), out);
    fields(checked.headers(), out);
    for extra in extra {
        field(extra.name(), extra.value().as_bytes(), out);
    }
    let expects_body = matches!(checked.method(), Method::Post | Method::Put | Method::Patch);
    match checked.framing() {
        Framing::None if expects_body => content_length(0, out), // there are servers that insist
        Framing::None => {}
        Framing::Length(length) => content_length(length, out),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    if checked.upgrade() == Some(Upgrade::WebSocket) {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// How an answer meets its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meeting {
    pub version: Version,
    /// HEAD: the answer tells a length and has no body.
    pub head: bool,
    pub keep_alive: bool,
}

/// The head of an answer; tells how its body is written. [`Encoder::UntilClose`] means that the connection ends with it.
pub(super) fn response_head(head: &ResponseHead, meeting: Meeting, out: &mut Vec<u8>) -> Encoder {
    status_line(head.status, out);
    fields(&head.headers, out);
    if head.status == 101 {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n");
        return Encoder::Nothing;
    }
    let bodyless = meeting.head || head.status == 204 || head.status == 304;
    let encoder = match head.framing() {
        _ if bodyless => Encoder::Nothing,
        Framing::None => Encoder::Length(0),
        Framing::Length(length) => Encoder::Length(length),
        Framing::Chunked if meeting.version < Version::Http11 => Encoder::UntilClose,
        Framing::Chunked => Encoder::Chunked,
    };
    match (head.framing(), encoder) {
        (_, Encoder::Length(length)) => content_length(length, out),
        (_, Encoder::Chunked) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        (Framing::Length(length), Encoder::Nothing) if head.status != 204 => {
            content_length(length, out); // of a body that doesn't follow
        }
        _ => {}
    }
    if !meeting.keep_alive || encoder == Encoder::UntilClose {
        out.extend_from_slice(b"connection: close\r\n");
    } else if meeting.version < Version::Http11 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
    encoder
}

/// An answer of our own, whole: the reason as a header and as text.
pub(super) fn reply(reply: &Reply, meeting: Meeting, out: &mut Vec<u8>) {
    status_line(reply.status, out);
    let reason = reply.reason.map_or("", |reason| reason.as_str());
    if !reason.is_empty() {
        field(names::X_PHALANX_REASON, reason.as_bytes(), out);
    }
    let location = reply.location.as_deref().map(str::as_bytes);
    if let Some(location) = location.and_then(crate::header::Value::new) {
        field(names::LOCATION, location.as_bytes(), out);
    }
    for extra in &reply.fields {
        field(extra.name(), extra.value().as_bytes(), out);
    }
    content_length(reason.len() as u64, out);
    if !meeting.keep_alive {
        out.extend_from_slice(b"connection: close\r\n");
    } else if meeting.version < Version::Http11 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if !meeting.head {
        out.extend_from_slice(reason.as_bytes());
    }
}

fn status_line(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    for power in [100, 10, 1] {
        out.push(b'0' + (status / power % 10) as u8);
    }
    out.push(b' ');
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn content_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"content-length: ");
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = length;
    for (place, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
        at = place;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}

fn fields(list: &HeaderList, out: &mut Vec<u8>) {
    for (name, value) in list.iter() {
        if !CODECS_OWN.contains(name) {
            field(name, value, out);
        }
    }
}

#[inline]
fn field(name: Name<'_>, value: &[u8], out: &mut Vec<u8>) {
    let name = name.as_bytes();
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What a writer says of framing and connection comes from nowhere else, whatever a stage may have put into the list.
const CODECS_OWN: NameSet = NameSet::of(&[
    names::CONNECTION,
    names::CONTENT_LENGTH,
    names::EXPECT,
    names::HOST,
    names::HTTP2_SETTINGS,
    names::KEEP_ALIVE,
    names::PROXY_CONNECTION,
    names::TE,
    names::TRAILER,
    names::TRANSFER_ENCODING,
    names::UPGRADE,
]);

/// Of RFC 9110 §15; others have none.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}
