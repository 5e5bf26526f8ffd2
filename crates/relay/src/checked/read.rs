//! The checks themselves, in the order of the head: method, target, fields, and then what only the whole shows.

use phalanx_model::matching::canonical::{canonical_authority, canonical_path};

use super::{Http1Line, Http2Pseudo, Inner, Method, Refusal, Upgrade, Version};
use crate::framing::{Framing, parse_length};
use crate::header::{Name, NameSet, Value, elements, names};
use crate::limits::{FIELD_OVERHEAD, Limits};
use crate::response::{drop_connection, is_hop_by_hop, names_fields};

/// What the fields said that is not kept as a field.
#[derive(Default)]
struct Told {
    length: Option<u64>,
    chunked: bool,
    host: bool,
    cookies: u32,
    nominated: bool,
    wants_upgrade: bool,
    websocket: bool,
    other_upgrade: bool,
}

impl Inner {
    pub(super) fn read_http1<'f>(
        &mut self,
        line: Http1Line<'_>,
        fields: impl Iterator<Item = (Option<Name<'f>>, &'f [u8])>,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        self.begin(
            line.version,
            line.method,
            line.authority,
            line.path,
            line.query,
        )?;
        let line_len = line.method.len()
            + line.path.len()
            + line.query.map_or(0, str::len)
            + line.authority.map_or(0, str::len);
        let told = self.read_fields(fields, line_len, limits)?;
        self.framing = match (told.chunked, told.length) {
            (true, Some(_)) => return Err(Refusal::Length),
            (true, None) if line.version < Version::Http11 => {
                return Err(Refusal::TransferEncoding);
            }
            (true, None) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::None,
        };
        self.finish(&told)?;
        self.read_upgrade(&told)
    }

    pub(super) fn read_http2<'f>(
        &mut self,
        pseudo: Http2Pseudo<'_>,
        fields: impl Iterator<Item = (Option<Name<'f>>, &'f [u8])>,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        self.begin(
            Version::Http2,
            pseudo.method,
            pseudo.authority,
            pseudo.path,
            pseudo.query,
        )?;
        let line_len = pseudo.path.len()
            + pseudo.query.map_or(0, str::len)
            + pseudo.authority.map_or(0, str::len);
        let told = self.read_fields(fields, line_len, limits)?;
        self.framing = match (told.length, pseudo.ended) {
            (Some(0) | None, true) => told.length.map_or(Framing::None, Framing::Length),
            (Some(_), true) => return Err(Refusal::Length),
            (Some(length), false) => Framing::Length(length),
            (None, false) => Framing::Chunked,
        };
        self.finish(&told)
    }

    fn begin(
        &mut self,
        version: Version,
        method: &str,
        authority: Option<&str>,
        path: &str,
        query: Option<&str>,
    ) -> Result<(), Refusal> {
        self.headers.clear();
        self.version = version;
        self.grpc = false;
        self.te_trailers = false;
        self.upgrade = None;
        self.expects_continue = false;
        // What the request before had canonical is so still: callers of one connection mostly ask for one service.
        let same = authority.is_some_and(|raw| !raw.is_empty() && raw == self.authority);
        if !same {
            self.authority.clear();
        }
        self.read_method(method)?;
        self.read_target(path, query)?;
        match authority {
            Some(authority) if !same => self.read_authority(authority),
            _ => Ok(()),
        }
    }

    fn read_method(&mut self, method: &str) -> Result<(), Refusal> {
        self.method = match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            "PATCH" => Method::Patch,
            "TRACE" => Method::Trace,
            "CONNECT" | "PRI" => return Err(Refusal::Method),
            _ if is_method(method) => Method::Other,
            _ => return Err(Refusal::Method),
        };
        self.method_text.clear();
        self.method_text.push_str(method);
        Ok(())
    }

    fn read_target(&mut self, path: &str, query: Option<&str>) -> Result<(), Refusal> {
        if path == "*" && self.method != Method::Options {
            return Err(Refusal::Path);
        }
        let canonical = canonical_path(path).map_err(|_| Refusal::Path)?;
        self.path.clear();
        self.path.push_str(&canonical);
        let mut spare = self
            .query
            .take()
            .unwrap_or_else(|| std::mem::take(&mut self.spare_query));
        spare.clear();
        match query {
            None => self.spare_query = spare,
            Some(query) if query.bytes().all(|b| b.is_ascii_graphic() && b != b'#') => {
                spare.push_str(query);
                self.query = Some(spare);
            }
            Some(_) => return Err(Refusal::Path),
        }
        Ok(())
    }

    fn read_fields<'f>(
        &mut self,
        fields: impl Iterator<Item = (Option<Name<'f>>, &'f [u8])>,
        line_len: usize,
        limits: &Limits,
    ) -> Result<Told, Refusal> {
        let mut told = Told::default();
        let (mut bytes, mut count) = (line_len, 0);
        for (name, value) in fields {
            let name = name.ok_or(Refusal::FieldName)?;
            bytes += name.as_bytes().len() + value.len() + FIELD_OVERHEAD;
            count += 1;
            if bytes > limits.head_bytes || count > limits.head_fields {
                return Err(Refusal::TooLarge);
            }
            let bare = Value::new(value).ok_or(Refusal::FieldValue)?;
            // RFC 9113 §8.2.1; in HTTP/1 blanks around a value are none of it.
            if self.version == Version::Http2 && bare.as_bytes().len() != value.len() {
                return Err(Refusal::FieldValue);
            }
            self.read_field(name, bare, &mut told)?;
        }
        if bytes > limits.head_bytes {
            return Err(Refusal::TooLarge);
        }
        Ok(told)
    }

    fn read_field(
        &mut self,
        name: Name<'_>,
        value: Value<'_>,
        told: &mut Told,
    ) -> Result<(), Refusal> {
        if name.well_known().is_none() {
            if is_twin(name.as_bytes()) {
                return Err(Refusal::FieldName);
            }
            self.headers.push(name, value);
            return Ok(());
        }
        if !LOOKED_AT.contains(name) {
            self.headers.push(name, value);
            return Ok(());
        }
        let http2 = self.version == Version::Http2;
        let text = value.as_bytes();
        if name == names::HOST {
            self.read_host(text, told)?;
        } else if name == names::CONTENT_LENGTH {
            let length = parse_length(text).ok_or(Refusal::Length)?;
            if told.length.replace(length).is_some() {
                return Err(Refusal::Length);
            }
        } else if name == names::TRANSFER_ENCODING {
            if http2 || told.chunked || !text.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::TransferEncoding);
            }
            told.chunked = true;
        } else if name == names::TE {
            if http2 && !text.eq_ignore_ascii_case(b"trailers") {
                return Err(Refusal::ForbiddenField);
            }
            self.te_trailers |= elements(text).any(|e| e.eq_ignore_ascii_case(b"trailers"));
        } else if name == names::CONNECTION {
            if http2 {
                return Err(Refusal::ForbiddenField);
            }
            told.nominated |= names_fields(text);
            told.wants_upgrade |= elements(text).any(|e| e.eq_ignore_ascii_case(b"upgrade"));
            self.headers.push(name, value);
        } else if name == names::UPGRADE {
            if http2 {
                return Err(Refusal::ForbiddenField);
            }
            told.websocket |= text.eq_ignore_ascii_case(b"websocket");
            // An offer of h2c may be declined in silence, and always is.
            told.other_upgrade |=
                !text.eq_ignore_ascii_case(b"websocket") && !text.eq_ignore_ascii_case(b"h2c");
        } else if name == names::EXPECT {
            if !text.eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::Expectation);
            }
            self.expects_continue = true;
        } else if is_hop_by_hop(name) {
            if http2 && (name == names::KEEP_ALIVE || name == names::PROXY_CONNECTION) {
                return Err(Refusal::ForbiddenField);
            }
        } else {
            if name == names::CONTENT_TYPE {
                self.grpc = is_grpc(text);
            } else if name == names::COOKIE {
                told.cookies += 1;
            }
            self.headers.push(name, value);
        }
        Ok(())
    }

    /// One host, which must say what the target says if that has an authority.
    fn read_host(&mut self, value: &[u8], told: &mut Told) -> Result<(), Refusal> {
        if std::mem::replace(&mut told.host, true) {
            return Err(Refusal::Authority);
        }
        let raw = std::str::from_utf8(value).map_err(|_| Refusal::Authority)?;
        if self.authority.is_empty() {
            return self.read_authority(raw);
        }
        let host = canonical_authority(raw).map_err(|_| Refusal::Authority)?;
        if host.as_str() == self.authority {
            Ok(())
        } else {
            Err(Refusal::Authority)
        }
    }

    fn finish(&mut self, told: &Told) -> Result<(), Refusal> {
        if self.authority.is_empty() || (self.version == Version::Http11 && !told.host) {
            return Err(Refusal::Authority);
        }
        if told.nominated || self.headers.contains(names::CONNECTION) {
            drop_connection(&mut self.headers, told.nominated);
        }
        if told.cookies > 1 {
            self.join_cookies();
        }
        Ok(())
    }

    /// HTTP/2 sends crumbs, HTTP/1 wants one field (RFC 9113 §8.2.3).
    fn join_cookies(&mut self) {
        let crumbs: Vec<&[u8]> = self.headers.get_all(names::COOKIE).collect();
        let joined = crumbs.join(&b"; "[..]);
        if let Some(value) = Value::new(&joined) {
            self.headers.set(names::COOKIE, value);
        }
    }

    fn read_upgrade(&mut self, told: &Told) -> Result<(), Refusal> {
        if !told.wants_upgrade {
            return Ok(()); // `upgrade` without the word in `connection` is not for us, and already gone
        }
        if told.other_upgrade {
            return Err(Refusal::Upgrade);
        }
        if told.websocket {
            if self.method != Method::Get
                || self.version != Version::Http11
                || !self.framing.is_empty()
            {
                return Err(Refusal::Upgrade);
            }
            self.upgrade = Some(Upgrade::WebSocket);
        }
        Ok(())
    }
}

fn is_method(method: &str) -> bool {
    !method.is_empty()
        && method.len() <= METHOD_LEN_MAX
        && method
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_')
}

fn is_grpc(content_type: &[u8]) -> bool {
    let Some(rest) = content_type.strip_prefix(b"application/grpc") else {
        return false;
    };
    matches!(rest.first(), None | Some(b'+' | b';'))
}

/// Headers that only the mesh itself may set: taken away at an edge.
pub fn is_internal(name: &[u8]) -> bool {
    name.starts_with(b"x-phalanx-") || INTERNAL.contains(&name)
}

/// Names that many servers can't tell from one that means something, because they read `_` as `-` (CGI).
fn is_twin(name: &[u8]) -> bool {
    if !name.contains(&b'_') {
        return false;
    }
    let dashed: Vec<u8> = name
        .iter()
        .map(|b| if *b == b'_' { b'-' } else { *b })
        .collect();
    is_internal(&dashed) || TWINNED.contains(&dashed.as_slice())
}

/// The well-known names that mean something here; all others are only kept.
const LOOKED_AT: NameSet = NameSet::of(&[
    names::CONNECTION,
    names::CONTENT_LENGTH,
    names::CONTENT_TYPE,
    names::COOKIE,
    names::EXPECT,
    names::HOST,
    names::HTTP2_SETTINGS,
    names::KEEP_ALIVE,
    names::PROXY_AUTHENTICATE,
    names::PROXY_AUTHORIZATION,
    names::PROXY_CONNECTION,
    names::TE,
    names::TRAILER,
    names::TRANSFER_ENCODING,
    names::UPGRADE,
]);

const INTERNAL: &[&[u8]] = &[b"x-forwarded-client-cert"];

const TWINNED: &[&[u8]] = &[
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"x-canary-id",
    b"x-env",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-game-session",
    b"x-request-id",
    b"x-session-epoch",
];

const METHOD_LEN_MAX: usize = 32;
