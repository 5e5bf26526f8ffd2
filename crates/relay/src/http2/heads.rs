//! Lists of fields to heads and back: requests and answers through the one constructor, trailers, and what is written.

use crate::checked::{Checked, Http2Pseudo, Method, Refusal, Workspace};
use crate::framing::Framing;
use crate::header::{Field, HeaderList, Name, NameSet, Value, names, trim};
use crate::hpack::{Encoder, FieldName, Fields, Pseudo};
use crate::http1::is_forbidden_trailer;
use crate::limits::Limits;
use crate::pool::Pool;
use crate::response::{BadResponse, ResponseHead};
use crate::verdict::Reply;

use super::batch::BadStream;

/// Why there is no request, and how the peer hears of it.
pub(super) enum Refused {
    /// RFC 9113 §8.1.1: reset.
    Malformed(Refusal),
    /// Well-formed, and answered.
    Answered(Refusal),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Path
            | Refusal::TooLarge
            | Refusal::Method
            | Refusal::Authority
            | Refusal::Expectation => Self::Answered(refusal),
            _ => Self::Malformed(refusal),
        }
    }
}

/// The pseudo-headers of a list, each at most once and before all others.
#[derive(Default)]
struct Pseudos<'f> {
    count: usize,
    method: Option<&'f [u8]>,
    scheme: Option<&'f [u8]>,
    authority: Option<&'f [u8]>,
    path: Option<&'f [u8]>,
    protocol: Option<&'f [u8]>,
    status: Option<&'f [u8]>,
}

impl<'f> Pseudos<'f> {
    /// None when one is there twice.
    #[inline]
    fn of(fields: &'f Fields) -> Option<Self> {
        let mut pseudos = Self::default();
        for (name, value, _) in fields.iter() {
            let FieldName::Pseudo(pseudo) = name else {
                break;
            };
            let place = match pseudo {
                Pseudo::Method => &mut pseudos.method,
                Pseudo::Scheme => &mut pseudos.scheme,
                Pseudo::Authority => &mut pseudos.authority,
                Pseudo::Path => &mut pseudos.path,
                Pseudo::Protocol => &mut pseudos.protocol,
                Pseudo::Status => &mut pseudos.status,
            };
            if place.replace(value).is_some() {
                return None;
            }
            pseudos.count += 1;
        }
        Some(pseudos)
    }
}

/// The fields behind the pseudo-headers; one that may not stand there has no name.
fn regular(fields: &Fields, pseudos: usize) -> impl Iterator<Item = (Option<Name<'_>>, &[u8])> {
    fields
        .iter_from(pseudos)
        .map(|(name, value, _)| match name {
            FieldName::Name(name) => (Some(name), value),
            FieldName::Pseudo(_) | FieldName::Bad => (None, value),
        })
}

/// The one checked request of a list.
pub(super) fn request(
    fields: &Fields,
    last: bool,
    pool: &mut Pool,
    limits: &Limits,
) -> Result<Checked, Refused> {
    if fields.is_too_large() {
        return Err(Refused::Answered(Refusal::TooLarge));
    }
    let line = Refused::Malformed(Refusal::Line);
    let Some(pseudos) = Pseudos::of(fields) else {
        return Err(line);
    };
    let (Some(method), None) = (pseudos.method, pseudos.status) else {
        return Err(line);
    };
    if method == b"CONNECT" || pseudos.protocol.is_some() {
        // Also the one that asks for a WebSocket (RFC 8441), which we offer nobody.
        return Err(Refused::Answered(Refusal::Method));
    }
    let (Some(b"http" | b"https"), Some(path @ [_, ..])) = (pseudos.scheme, pseudos.path) else {
        return Err(line);
    };
    let text = |bytes| std::str::from_utf8(bytes).ok();
    let (Some(method), Some(path)) = (text(method), text(path)) else {
        return Err(line);
    };
    let authority = match pseudos.authority.map(text) {
        Some(None | Some("")) => return Err(Refused::Answered(Refusal::Authority)),
        authority => authority.flatten(),
    };
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    // RFC 3986 has no place for them; what is left of such is for the canonical form to judge.
    let stray = |found, byte| found | matches!(byte, b'"' | b'<' | b'>' | b'`');
    if path.bytes().fold(false, stray) {
        return Err(Refused::Answered(Refusal::Path));
    }
    let pseudo = Http2Pseudo {
        method,
        authority,
        path,
        query,
        ended: last,
    };
    let workspace: Workspace = pool.workspace();
    let named = regular(fields, pseudos.count);
    match Checked::http2_named(workspace, pseudo, named, limits) {
        Ok(mut checked) => {
            keep_marks(fields, checked.headers_mut());
            Ok(checked)
        }
        Err((refusal, workspace)) => {
            pool.put_workspace(workspace);
            Err(refusal.into())
        }
    }
}

/// What a sender marked as never to be indexed stays so on the next hop.
fn keep_marks(fields: &Fields, list: &mut HeaderList) {
    if !fields.has_never_indexed() {
        return;
    }
    for (name, _, never) in fields.iter() {
        if let (FieldName::Name(name), true) = (name, never) {
            list.mark_never_indexed(name);
        }
    }
}

/// What a list of fields says to a client.
pub(super) enum Answered {
    Interim(u16),
    Head(ResponseHead),
}

/// `bodyless`: no body can follow, though a length may be told. `last`: none does.
pub(super) fn answer(
    fields: &Fields,
    last: bool,
    head_asked: bool,
    pool: &mut Pool,
    limits: &Limits,
) -> Result<Answered, BadResponse> {
    if fields.is_too_large() {
        return Err(BadResponse::TooLarge);
    }
    let pseudos = Pseudos::of(fields).ok_or(BadResponse::Line)?;
    let (Some([a, b, c]), 1) = (pseudos.status, pseudos.count) else {
        return Err(BadResponse::Line);
    };
    let status = [a, b, c].iter().try_fold(0u16, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        Some(sum * 10 + u16::from(digit))
    });
    let status = status.ok_or(BadResponse::Line)?;
    if status == 101 {
        return Err(BadResponse::Upgrade);
    }
    if (100..200).contains(&status) {
        return if last {
            Err(BadResponse::Status)
        } else {
            Ok(Answered::Interim(status))
        };
    }
    let named = regular(fields, 1).map(|(name, value)| {
        (
            name.filter(|name| !CONNECTION_FIELDS.contains(*name)),
            value,
        )
    });
    let bodyless = last || head_asked || status == 204 || status == 304;
    let mut head = pool.head();
    let told = head.fill_named(status, named, bodyless, limits);
    let no_body = head_asked || status == 304;
    let told = told.and_then(|()| match head.framing() {
        Framing::Length(1..) if last && !no_body => Err(BadResponse::Length),
        _ => Ok(()),
    });
    if let Err(bad) = told {
        pool.put_head(head);
        return Err(bad);
    }
    keep_marks(fields, &mut head.headers);
    Ok(Answered::Head(head))
}

/// Whether a value has blanks at an end (RFC 9113 §8.2.1). Asked of requests only: there are answers in use whose
/// `grpc-message` ends in one; they are cut off.
pub(super) fn is_padded(fields: &Fields) -> bool {
    let is_padded = |value: &[u8]| trim(value).len() != value.len();
    fields.iter().any(|(_, value, _)| is_padded(value))
}

/// None when nothing is left of them.
pub(super) fn trailers(fields: &Fields, pool: &mut Pool) -> Result<Option<HeaderList>, BadStream> {
    if fields.is_too_large() {
        return Err(BadStream::TrailersTooLarge);
    }
    let mut list = pool.list();
    for (name, value) in regular(fields, 0) {
        let (Some(name), Some(value)) = (name, Value::new(value)) else {
            pool.put_list(list);
            return Err(BadStream::Trailer);
        };
        if !is_forbidden_trailer(name) {
            list.push(name, value);
        }
    }
    keep_marks(fields, &mut list);
    if list.is_empty() {
        pool.put_list(list);
        return Ok(None);
    }
    Ok(Some(list))
}

/// The block of a request. `extra` stands behind its own fields.
pub(super) fn write_request<'e>(
    checked: &Checked,
    extra: impl IntoIterator<Item = &'e Field>,
    secure: bool,
    encoder: &mut Encoder,
    out: &mut Vec<u8>,
) {
    encoder.method(checked.method_str(), out);
    encoder.scheme(secure, out);
    encoder.authority(checked.authority(), out);
    encoder.path(checked.path(), checked.query(), out);
    write_fields(checked.headers(), encoder, out);
    for field in extra {
        encoder.field(field.name(), field.value().as_bytes(), false, out);
    }
    if checked.te_trailers() || checked.is_grpc() {
        encoder.field(names::TE, b"trailers", false, out);
    }
    let expects_body = matches!(checked.method(), Method::Post | Method::Put | Method::Patch);
    match checked.framing() {
        Framing::Length(length) => write_length(length, encoder, out),
        Framing::None if expects_body && !checked.is_grpc() => write_length(0, encoder, out),
        Framing::None | Framing::Chunked => {}
    }
}

pub(super) fn write_answer(head: &ResponseHead, encoder: &mut Encoder, out: &mut Vec<u8>) {
    encoder.status(head.status, out);
    write_fields(&head.headers, encoder, out);
    if let (Framing::Length(length), true) = (head.framing(), head.status != 204) {
        write_length(length, encoder, out);
    }
}

/// The head of an answer of our own, of whose reason `body` is the text.
pub(super) fn write_reply(reply: &Reply, body: &str, encoder: &mut Encoder, out: &mut Vec<u8>) {
    encoder.status(reply.status, out);
    if let Some(reason) = reply.reason {
        let reason = reason.as_str().as_bytes();
        encoder.field(names::X_PHALANX_REASON, reason, false, out);
    }
    let location = reply.location.as_deref().map(str::as_bytes);
    if let Some(location) = location.and_then(Value::new) {
        encoder.field(names::LOCATION, location.as_bytes(), false, out);
    }
    for extra in &reply.fields {
        encoder.field(extra.name(), extra.value().as_bytes(), false, out);
    }
    write_length(body.len() as u64, encoder, out);
}

/// Whether anything of them is passed on.
pub(super) fn has_trailers(list: &HeaderList) -> bool {
    list.iter().any(|(name, _)| !is_forbidden_trailer(name))
}

pub(super) fn write_trailers(list: &HeaderList, encoder: &mut Encoder, out: &mut Vec<u8>) {
    for (name, value, never) in list.iter_marked() {
        if !is_forbidden_trailer(name) {
            encoder.field(name, value, never, out);
        }
    }
}

#[inline]
fn write_fields(list: &HeaderList, encoder: &mut Encoder, out: &mut Vec<u8>) {
    for (name, value, never) in list.iter_marked() {
        if !CODECS_OWN.contains(name) {
            encoder.field(name, value, never, out);
        }
    }
}

fn write_length(length: u64, encoder: &mut Encoder, out: &mut Vec<u8>) {
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
    let text = digits.get(at..).unwrap_or_default();
    encoder.field(names::CONTENT_LENGTH, text, false, out);
}

/// RFC 9113 §8.2.2: fields of one connection make a message malformed.
const CONNECTION_FIELDS: NameSet = NameSet::of(&[
    names::CONNECTION,
    names::KEEP_ALIVE,
    names::PROXY_CONNECTION,
    names::TRANSFER_ENCODING,
    names::UPGRADE,
]);

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
