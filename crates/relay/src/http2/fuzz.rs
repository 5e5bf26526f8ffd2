//! One entry for each side that reads foreign bytes, for fuzz targets and properties: whatever the bytes and however they
//! are cut, the same comes out, nothing panics, and what was taken can be sent on and read again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::{Batch, Client, Config, Event, Server};
use crate::checked::{Checked, Http2Pseudo, Workspace};
use crate::header::HeaderList;
use crate::limits::Limits;
use crate::pool::Pool;

/// Two readings of the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("whole: {whole}\nin pieces: {pieces}")]
pub struct Difference {
    pub whole: String,
    pub pieces: String,
}

/// Reads `bytes` as what a client sends behind its preface, whole and cut by `cuts`. Streams that end in a reset are told
/// of by that alone, because only a reader of pieces sees what went before.
///
/// # Errors
/// [`Difference`], which is a defect.
pub fn requests(bytes: &[u8], cuts: &[u8], limits: &Limits) -> Result<String, Difference> {
    compare(
        read_requests(&[bytes], limits)?,
        read_requests(&cut(bytes, cuts), limits)?,
    )
}

/// Reads `bytes` as what a server sends to a client that has asked for four things.
///
/// # Errors
/// [`Difference`], which is a defect.
pub fn answers(bytes: &[u8], cuts: &[u8], limits: &Limits) -> Result<String, Difference> {
    compare(
        read_answers(&[bytes], limits),
        read_answers(&cut(bytes, cuts), limits),
    )
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

/// Streams enough that it makes no difference when they are let go of.
fn roomy(limits: &Limits) -> Limits {
    Limits {
        streams: 5_000,
        ..limits.clone()
    }
}

fn read_requests(pieces: &[&[u8]], limits: &Limits) -> Result<String, Difference> {
    let config = Arc::new(Config::server(roomy(limits)));
    let (mut out, mut pool, mut batch) = (Vec::new(), Pool::default(), Batch::new());
    let mut server = Server::new(&config, &mut out);
    let mut told = Transcript::default();
    let preface: &[u8] = super::frame::PREFACE;
    for piece in std::iter::once(&preface).chain(pieces) {
        out.clear();
        if let Err(broken) = server.receive(piece, 0, &mut batch, &mut pool, &mut out) {
            return Ok(format!("broken: {broken}"));
        }
        for event in batch.drain() {
            if let Event::Reset { stream, .. } = event {
                server.release(stream, &mut out);
            }
            told.event(event, piece, limits)?;
        }
    }
    Ok(told.text())
}

fn read_answers(pieces: &[&[u8]], limits: &Limits) -> String {
    let config = Arc::new(Config::client(roomy(limits)));
    let (mut out, mut pool, mut batch) = (Vec::new(), Pool::default(), Batch::new());
    let mut client = Client::new(&config, &mut out);
    for (method, ended) in [
        ("GET", true),
        ("HEAD", true),
        ("POST", false),
        ("GET", true),
    ] {
        if let Some(request) = asked(method, ended) {
            let _ = client.open(&request, None, &mut out); // four are always taken
        }
    }
    let mut told = Transcript::default();
    for piece in pieces {
        out.clear();
        let read = client.receive(piece, 0, &mut batch, &mut pool, &mut out);
        for event in batch.drain() {
            let _ = told.event(event, piece, limits); // only requests are sent on
        }
        if let Err(broken) = read {
            told.line(format_args!("broken: {broken}"));
            break;
        }
    }
    told.text()
}

/// A request without fields.
pub fn asked(method: &str, ended: bool) -> Option<Checked> {
    let pseudo = Http2Pseudo {
        method,
        authority: Some("a"),
        path: "/",
        query: None,
        ended,
    };
    let fields = std::iter::empty();
    Checked::http2(Workspace::default(), pseudo, fields, &Limits::default()).ok()
}

/// What `request` looks like behind one more hop.
fn sent_on(request: &Checked, limits: &Limits) -> Option<String> {
    let room = Limits {
        head_bytes: limits.head_bytes.saturating_mul(2),
        head_fields: limits.head_fields.saturating_add(4),
        streams: 1,
        ..Limits::default()
    };
    let config = Arc::new(Config::client(room));
    let (mut wire, mut pool, mut batch) = (Vec::new(), Pool::default(), Batch::new());
    let mut server = Server::new(&config, &mut Vec::new());
    let mut client = Client::new(&config, &mut wire);
    client.open(request, None, &mut wire).ok()?;
    let mut replies = Vec::new();
    let read = server.receive(&wire, 0, &mut batch, &mut pool, &mut replies);
    let mut events = batch.drain();
    match (read, events.next()) {
        (Ok(()), Some(Event::Request { request, .. })) => Some(shown(&request)),
        (read, event) => Some(format!("{read:?} {event:?}")),
    }
}

fn shown(request: &Checked) -> String {
    format!(
        "{request:?} ?{:?} {:?} te {} grpc {}",
        request.query(),
        request.framing(),
        request.te_trailers() || request.is_grpc(),
        request.is_grpc(),
    )
}

/// What was read, stream by stream.
#[derive(Default)]
struct Transcript {
    streams: BTreeMap<u32, String>,
    connection: String,
}

impl Transcript {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.connection, "{line}"); // a String takes everything
    }

    /// An error is that of a request that comes out otherwise behind one more hop.
    fn event(&mut self, event: Event, input: &[u8], limits: &Limits) -> Result<(), Difference> {
        match event {
            Event::Request {
                stream,
                request,
                last,
            } => {
                let shown = shown(&request);
                let again = sent_on(&request, limits).unwrap_or_default();
                let text = self.streams.entry(stream.id()).or_default();
                let _ = write!(text, "{shown} last {last} ");
                // A body that doesn't come says nothing, or that it has no bytes.
                let same = |text: &str| text.replace("Length(0)", "None");
                if same(&again) != same(&shown) {
                    return Err(Difference {
                        whole: shown,
                        pieces: again,
                    });
                }
            }
            Event::Refused { stream, refusal } => self.push(stream.id(), format_args!("{refusal}")),
            Event::Interim { stream, status } => self.push(stream.id(), format_args!("{status} ")),
            Event::Head { stream, head, last } => {
                let (status, framing) = (head.status, head.framing());
                let fields = &head.headers;
                self.push(
                    stream.id(),
                    format_args!("{status} {framing:?} {fields:?} last {last} "),
                );
            }
            Event::Data { stream, at, last } => {
                let data = input.get(at).unwrap_or_default().escape_ascii();
                self.push(stream.id(), format_args!("{data}"));
                if last {
                    self.end(stream.id(), None);
                }
            }
            Event::End { stream, trailers } => self.end(stream.id(), trailers.as_ref()),
            Event::Reset { stream, why } => {
                self.streams.remove(&stream.id());
                if matches!(why, super::Why::Unprocessed) {
                    self.line(format_args!("{} unprocessed", stream.id()));
                }
            }
            Event::GoAway { code } => self.line(format_args!("goes {code}")),
            Event::Pong => self.line(format_args!("pong")),
            Event::Malformed(_) | Event::Over(_) => {} // not told of one that is withdrawn
        }
        Ok(())
    }

    fn push(&mut self, id: u32, text: std::fmt::Arguments<'_>) {
        let _ = self.streams.entry(id).or_default().write_fmt(text);
    }

    fn end(&mut self, id: u32, trailers: Option<&HeaderList>) {
        self.push(id, format_args!(" end {trailers:?}"));
    }

    fn text(&self) -> String {
        let mut text = self.connection.clone();
        for (id, stream) in &self.streams {
            let _ = writeln!(text, "{id}: {stream}");
        }
        text
    }
}
