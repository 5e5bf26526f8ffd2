//! The answer of a call on its way back: frames of gRPC become one JSON text, or a stream of them.

use std::sync::Arc;

use crate::json;
use crate::options::Print;
use crate::schema::Shape;
use crate::status::{INTERNAL, RESOURCE_EXHAUSTED, Status};
use crate::table::{Binding, Table};
use crate::wire::{Records, Value};

/// How messages become a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One message, told once it is known how the call ended.
    Whole,
    /// One JSON text per line.
    Lines,
    Array,
    /// Server-sent events.
    Events,
    /// The data of `google.api.HttpBody`, as it is.
    Raw,
}

/// An answer that is told at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
}

#[derive(Debug)]
pub struct Answer {
    table: Arc<Table>,
    binding: usize,
    style: Style,
    /// Bytes of a frame that is not complete.
    held: Vec<u8>,
    messages: u64,
    /// Of the first message of [`Style::Raw`].
    content_type: Option<String>,
    /// The one message of [`Style::Whole`].
    message: Option<Vec<u8>>,
}

impl Answer {
    /// `events`: the caller asked for server-sent events, which a stream then is.
    pub fn new(table: &Arc<Table>, binding: usize, events: bool) -> Self {
        let print = table.options.print;
        let of = table.binding(binding);
        let raw = of.is_some_and(|of| is_http_body(table, of));
        let style = match of.is_some_and(|of| of.server_streaming) {
            false => Style::Whole,
            true if raw => Style::Raw,
            true if events || print.stream_sse_style_delimited => Style::Events,
            true if print.stream_newline_delimited => Style::Lines,
            true => Style::Array,
        };
        Self {
            table: table.clone(),
            binding,
            style,
            held: Vec::new(),
            messages: 0,
            content_type: None,
            message: None,
        }
    }

    pub fn style(&self) -> Style {
        self.style
    }

    /// Of a stream. None while it is not known yet.
    pub fn content_type(&self) -> Option<&str> {
        match self.style {
            Style::Whole => None,
            Style::Lines => Some("application/x-ndjson"),
            Style::Array => Some(JSON),
            Style::Events => Some("text/event-stream"),
            Style::Raw => self.content_type.as_deref(),
        }
    }

    /// More of the call's answer; of a stream, what it is goes to `out`.
    ///
    /// # Errors
    /// How the answer ends instead: it is no gRPC, or a message has no JSON.
    pub fn push(&mut self, mut data: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
        while !data.is_empty() {
            // The frame's head, then the rest of it.
            let wanted = match self.held.first_chunk::<HEAD>() {
                None => HEAD - self.held.len(),
                Some(head) => frame_len(head)?.saturating_add(HEAD) - self.held.len(),
            };
            let (piece, rest) = data.split_at(wanted.min(data.len()));
            self.held.extend_from_slice(piece);
            data = rest;
            if let Some((head, message)) = self.held.split_first_chunk::<HEAD>()
                && message.len() == frame_len(head)?
            {
                let message = message.to_vec();
                self.held.clear();
                self.message(message, out)?;
            }
        }
        Ok(())
    }

    fn message(&mut self, message: Vec<u8>, out: &mut Vec<u8>) -> Result<(), Status> {
        self.messages += 1;
        let first = self.messages == 1;
        match self.style {
            Style::Whole if first => self.message = Some(message),
            Style::Whole => return Err(Status::new(INTERNAL, "more than one message")),
            Style::Raw => {
                let (content_type, data) = http_body(&message);
                if first {
                    self.content_type = Some(content_type);
                }
                out.extend_from_slice(data);
            }
            Style::Lines => {
                self.write(&message, out)?;
                out.push(b'\n');
            }
            Style::Array => {
                out.push(if first { b'[' } else { b',' });
                self.write(&message, out)?;
            }
            Style::Events => {
                out.extend_from_slice(b"data: ");
                self.write(&message, out)?;
                out.extend_from_slice(b"\n\n");
            }
        }
        Ok(())
    }

    /// A whole answer, by how the call ended.
    pub fn whole(&mut self, status: &Status) -> Whole {
        if !status.is_ok() {
            return failed(&self.table, status, status.http());
        }
        let message = self.message.take().filter(|_| self.held.is_empty());
        let Some(message) = message else {
            return failed(&self.table, &no_message(), 500);
        };
        if let Some(of) = self.table.binding(self.binding)
            && is_http_body(&self.table, of)
        {
            let inner = match &of.response_body {
                Some(name) => inner(&self.table, of, name, &message),
                None => &message,
            };
            let (content_type, data) = http_body(inner);
            return Whole {
                status: 200,
                content_type,
                body: data.to_vec(),
            };
        }
        let mut body = Vec::with_capacity(message.len().saturating_mul(2));
        match self.write(&message, &mut body) {
            Ok(()) => Whole {
                status: 200,
                content_type: JSON.into(),
                body,
            },
            Err(status) => failed(&self.table, &status, status.http()),
        }
    }

    /// The end of a stream whose head is down. False: it can't be told, so the stream has to break off.
    pub fn end(&mut self, status: &Status, out: &mut Vec<u8>) -> bool {
        let broken = !self.held.is_empty() && status.is_ok();
        let status = match broken {
            true => &no_message(),
            false => status,
        };
        if !status.is_ok() {
            let told = failed(&self.table, status, 200).body;
            match self.style {
                Style::Lines => {
                    out.extend_from_slice(b"{\"error\":");
                    out.extend_from_slice(&told);
                    out.extend_from_slice(b"}\n");
                }
                Style::Events => {
                    out.extend_from_slice(b"event: error\ndata: ");
                    out.extend_from_slice(&told);
                    out.extend_from_slice(b"\n\n");
                }
                Style::Whole | Style::Array | Style::Raw => return false,
            }
        } else if self.style == Style::Array {
            out.extend_from_slice(if self.messages == 0 { b"[]" } else { b"]" });
        }
        true
    }

    fn write(&self, message: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
        let table = &*self.table;
        let Some(of) = table.binding(self.binding) else {
            return Ok(());
        };
        let print = print(table, self.style);
        let (max, schema) = (out.len().saturating_add(JSON_MAX), &table.schema);
        let written = json::write_message(schema, print, of.output, message, max, out);
        written.map_err(|problem| match problem {
            json::Unwritable::TooLarge(_) => Status::new(RESOURCE_EXHAUSTED, problem.to_string()),
            problem => Status::new(INTERNAL, format!("the answer: {problem}")),
        })
    }
}

/// An answer that says how a call failed.
pub fn failed(table: &Table, status: &Status, http: u16) -> Whole {
    let mut body = Vec::new();
    let print = print(table, Style::Events);
    let schema = &table.schema;
    if json::write_status(schema, print, status, JSON_MAX, &mut body).is_err() {
        // Its details are none of their types.
        body.clear();
        let plain = Status {
            details: Vec::new(),
            ..status.clone()
        };
        let _ = json::write_status(schema, print, &plain, JSON_MAX, &mut body);
    }
    Whole {
        status: http,
        content_type: JSON.into(),
        body,
    }
}

/// Lines stay lines.
fn print(table: &Table, style: Style) -> Print {
    let print = table.options.print;
    Print {
        add_whitespace: print.add_whitespace && matches!(style, Style::Whole | Style::Array),
        ..print
    }
}

fn no_message() -> Status {
    Status::new(INTERNAL, "the answer ends without a whole message")
}

/// Whether what is told of a message is the data in it.
fn is_http_body(table: &Table, of: &Binding) -> bool {
    let schema = &table.schema;
    let id = match &of.response_body {
        None => Some(of.output),
        Some(name) => {
            let path = schema.resolve(of.output, [name]);
            path.and_then(|path| match path.last()?.kind {
                crate::schema::Kind::Message(id) => Some(id),
                _ => None,
            })
        }
    };
    let message = id.and_then(|id| schema.message(id));
    message.is_some_and(|message| message.shape == Shape::HttpBody)
}

fn inner<'m>(table: &Table, of: &Binding, name: &str, message: &'m [u8]) -> &'m [u8] {
    let path = table.schema.resolve(of.output, [name]);
    let number = path.and_then(|path| Some(path.last()?.number));
    let (mut records, mut found) = (Records::new(message), b"".as_slice());
    while let Ok(Some((other, value))) = records.read() {
        if let (true, Value::Bytes(bytes)) = (Some(other) == number, value) {
            found = bytes;
        }
    }
    found
}

/// Content type and data of a `google.api.HttpBody`.
fn http_body(message: &[u8]) -> (String, &[u8]) {
    let (mut content_type, mut data) = (String::new(), b"".as_slice());
    let mut records = Records::new(message);
    while let Ok(Some((number, value))) = records.read() {
        match (number, value) {
            (1, Value::Bytes(bytes)) => content_type = String::from_utf8_lossy(bytes).into_owned(),
            (2, Value::Bytes(bytes)) => data = bytes,
            _ => {}
        }
    }
    (content_type, data)
}

fn frame_len(head: &[u8; HEAD]) -> Result<usize, Status> {
    let [flag, len @ ..] = head;
    if *flag != 0 {
        return Err(Status::new(INTERNAL, "the answer is compressed"));
    }
    let len = u32::from_be_bytes(*len) as usize;
    match len > crate::request::MESSAGE_MAX {
        true => Err(Status::new(RESOURCE_EXHAUSTED, "the answer is too large")),
        false => Ok(len),
    }
}

pub const JSON: &str = "application/json";
/// Bytes of the flag and the length before a message.
const HEAD: usize = 5;
/// Of one message's text; names may make it much longer than the message.
const JSON_MAX: usize = 16 << 20;
