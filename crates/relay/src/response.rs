//! The head of an answer, from an upstream that may be hostile, after the checks that a request's head gets too.

use crate::framing::Version;
use crate::framing::{Framing, parse_length};
use crate::header::{HeaderList, Name, NameSet, Value, names};
use crate::limits::{FIELD_OVERHEAD, Limits};

/// What is passed on of an answer. Fields that belong to one connection are gone, and so is `content-length`: the framing
/// says it.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    pub status: u16,
    pub headers: HeaderList,
    framing: Option<Framing>,
}

/// Where the body of an HTTP/1 answer ends on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delimiter {
    #[default]
    None,
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
}

/// What was asked for, as far as the answer's framing depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub head: bool,
    pub upgrade: bool,
}

/// Why an answer can't be passed on; the connection it came by is not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadResponse {
    #[error("the answer has a status line that is none")]
    Line,
    #[error("the answer has a status that may not stand here")]
    Status,
    #[error("the answer has a header name or value that can't be sent on")]
    Field,
    #[error("the answer has two lengths or a length that is none")]
    Length,
    #[error("the answer has a transfer-encoding that is not `chunked`, or in a version without it")]
    TransferEncoding,
    #[error("the answer switches to a protocol that was not asked for")]
    Upgrade,
    #[error("the head of the answer is too large")]
    TooLarge,
}

/// What the fields said that is not kept as a field.
#[derive(Default)]
struct Told {
    length: Option<u64>,
    /// Whether every length said the same, and whether there was more than one.
    contradicts: bool,
    repeats: bool,
    encodings: usize,
    other_encoding: bool,
    websocket: bool,
}

impl ResponseHead {
    /// Fills `self` anew. `fields` in order, names in lower case. `bodyless`: no body can follow (HEAD, 204, 304), though
    /// a length may be told. For codecs that have settled the framing themselves.
    ///
    /// # Errors
    /// [`BadResponse`]: answered with 502 downstream.
    pub fn fill<'f>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (&'f [u8], &'f [u8])>,
        bodyless: bool,
        limits: &Limits,
    ) -> Result<(), BadResponse> {
        let fields = fields.map(|(name, value)| (Name::new(name), value));
        self.fill_named(status, fields, bodyless, limits)
    }

    /// As [`ResponseHead::fill`], by a codec that has read the names already.
    pub(crate) fn fill_named<'f>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (Option<Name<'f>>, &'f [u8])>,
        bodyless: bool,
        limits: &Limits,
    ) -> Result<(), BadResponse> {
        if !(status == 101 || (200..1000).contains(&status)) {
            return Err(BadResponse::Status);
        }
        let told = self.read_fields(status, fields, limits)?;
        if told.contradicts || (told.encodings > 0 && told.length.is_some()) {
            return Err(BadResponse::Length);
        }
        self.framing = Some(match told.length {
            Some(length) => Framing::Length(length),
            None if bodyless => Framing::None,
            None => Framing::Chunked,
        });
        Ok(())
    }

    /// Fills `self` anew from an HTTP/1 head, interim ones (1xx) included, as strictly as a request is read; a field
    /// without name is one of a line that is none. Tells where the body ends.
    ///
    /// # Errors
    /// [`BadResponse`]: answered with 502 downstream.
    pub fn fill_http1<'f>(
        &mut self,
        version: Version,
        status: u16,
        fields: impl Iterator<Item = (Option<Name<'f>>, &'f [u8])>,
        asked: Asked,
        limits: &Limits,
    ) -> Result<Delimiter, BadResponse> {
        if !(100..1000).contains(&status) {
            return Err(BadResponse::Status);
        }
        let told = self.read_fields(status, fields, limits)?;
        let chunked = told.encodings > 0;
        if told.contradicts || told.repeats || (chunked && told.length.is_some()) {
            return Err(BadResponse::Length);
        }
        if told.encodings > 1 || told.other_encoding || (chunked && version < Version::Http11) {
            return Err(BadResponse::TransferEncoding);
        }
        let interim = status < 200;
        if interim && (chunked || told.length.is_some()) {
            return Err(BadResponse::Length);
        }
        if status == 101 && !(asked.upgrade && told.websocket) {
            return Err(BadResponse::Upgrade);
        }
        let bodyless = interim || asked.head || status == 204 || status == 304;
        self.framing = Some(match told.length {
            Some(length) if status != 204 => Framing::Length(length),
            _ if bodyless => Framing::None,
            _ => Framing::Chunked,
        });
        Ok(match told.length {
            _ if bodyless => Delimiter::None,
            Some(length) => Delimiter::Length(length),
            None if chunked => Delimiter::Chunked,
            None => Delimiter::Close,
        })
    }

    fn read_fields<'f>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (Option<Name<'f>>, &'f [u8])>,
        limits: &Limits,
    ) -> Result<Told, BadResponse> {
        self.status = status;
        self.headers.clear();
        self.framing = None;
        let mut told = Told::default();
        let (mut nominated, mut connection) = (false, false);
        let (mut bytes, mut count) = (0, 0);
        for (name, value) in fields {
            let name = name.ok_or(BadResponse::Field)?;
            bytes += name.as_bytes().len() + value.len() + FIELD_OVERHEAD;
            count += 1;
            if bytes > limits.head_bytes || count > limits.head_fields {
                return Err(BadResponse::TooLarge);
            }
            let value = Value::new(value).ok_or(BadResponse::Field)?;
            let text = value.as_bytes();
            if name.well_known().is_none() {
                self.headers.push(name, value);
            } else if name == names::CONTENT_LENGTH {
                let length = parse_length(text).ok_or(BadResponse::Length)?;
                if let Some(before) = told.length.replace(length) {
                    told.repeats = true;
                    told.contradicts |= before != length;
                }
            } else if name == names::TRANSFER_ENCODING {
                told.encodings += 1;
                told.other_encoding |= !text.eq_ignore_ascii_case(b"chunked");
            } else if name == names::CONNECTION {
                connection = true;
                nominated |= names_fields(text);
                self.headers.push(name, value);
            } else if name == names::UPGRADE {
                told.websocket |= text.eq_ignore_ascii_case(b"websocket");
                if status == 101 {
                    self.headers.push(name, value);
                }
            } else if !is_hop_by_hop(name) {
                self.headers.push(name, value);
            }
        }
        if connection {
            drop_connection(&mut self.headers, nominated);
        }
        Ok(told)
    }

    /// An answer of our own; its headers are to be added.
    pub fn own(&mut self, status: u16, framing: Framing) {
        self.status = status;
        self.headers.clear();
        self.framing = Some(framing);
    }

    /// Another body than the one that came, under the same fields.
    pub fn replace_body(&mut self, status: u16, framing: Framing) {
        self.status = status;
        self.framing = Some(framing);
    }

    /// An empty head to be filled.
    pub fn blank() -> Self {
        Self::default()
    }

    pub fn framing(&self) -> Framing {
        self.framing.unwrap_or(Framing::None)
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Fields of RFC 9110 §7.6.1 that end at this hop whether nominated or not. `content-length` and `host` are not among
/// them: they are taken from the list before.
#[inline]
pub(crate) fn is_hop_by_hop(name: Name<'_>) -> bool {
    HOP_BY_HOP.contains(name)
}

const HOP_BY_HOP: NameSet = NameSet::of(&[
    names::CONNECTION,
    names::KEEP_ALIVE,
    names::PROXY_CONNECTION,
    names::PROXY_AUTHENTICATE,
    names::PROXY_AUTHORIZATION,
    names::TE,
    names::TRAILER,
    names::TRANSFER_ENCODING,
    names::UPGRADE,
    names::HTTP2_SETTINGS,
]);

/// Whether a `connection` value names fields, beyond the usual words.
#[inline]
pub(crate) fn names_fields(connection: &[u8]) -> bool {
    crate::header::elements(connection).any(|e| {
        !(e.eq_ignore_ascii_case(b"close")
            || e.eq_ignore_ascii_case(b"keep-alive")
            || e.eq_ignore_ascii_case(b"upgrade"))
    })
}

/// Takes away `connection` and, with `nominated`, what it names.
pub(crate) fn drop_connection(headers: &mut HeaderList, nominated: bool) {
    if nominated {
        let connection: Vec<Vec<u8>> = headers
            .get_all(names::CONNECTION)
            .flat_map(crate::header::elements)
            .map(<[u8]>::to_ascii_lowercase)
            .collect();
        headers.remove_where(|name, _| connection.iter().any(|nominee| nominee == name.as_bytes()));
    }
    headers.remove(names::CONNECTION);
}
