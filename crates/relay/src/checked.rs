//! The one request type between `listen` and the writers: made by one constructor per codec, which refuses and never
//! repairs. Upstream writers take only this, and write the framing from its enum.
//!
//! A [`Workspace`] is the memory of one request, used again and again; filling it turns it into a [`Checked`].

mod read;

use std::borrow::Cow;

use phalanx_model::Reason;
use phalanx_model::matching;
use phalanx_model::matching::canonical::{canonical_authority, canonical_path};

use crate::framing::Framing;
pub use crate::framing::Version;
use crate::header::{Field, HeaderList, Name, names};
use crate::limits::Limits;
use crate::verdict::Reply;

pub use self::read::is_internal;

/// A request that is safe to route and to send on.
pub struct Checked(Box<Inner>);

/// Memory for one request. Holds nothing that can be read.
#[derive(Default)]
pub struct Workspace(Box<Inner>);

#[derive(Clone, Default)]
struct Inner {
    method: Method,
    method_text: String,
    /// Canonical, with port if one was given.
    authority: String,
    host_len: usize,
    port: Option<u16>,
    path: String,
    query: Option<String>,
    spare_query: String,
    version: Version,
    framing: Framing,
    headers: HeaderList,
    grpc: bool,
    te_trailers: bool,
    upgrade: Option<Upgrade>,
    expects_continue: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Trace,
    Other,
}

impl Method {
    /// RFC 9110 §9.2.2: sending it twice does what sending it once does.
    pub fn is_idempotent(self) -> bool {
        !matches!(self, Self::Post | Self::Patch | Self::Other)
    }
}

/// The protocols a connection may be handed over to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    WebSocket,
}

/// The first line of an HTTP/1 request, its target taken apart. An origin-form target has neither scheme nor authority.
#[derive(Clone, Copy, Debug)]
pub struct Http1Line<'a> {
    pub method: &'a str,
    pub authority: Option<&'a str>,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub version: Version,
}

/// The pseudo-header fields of an HTTP/2 request, and whether HEADERS ended the stream.
#[derive(Clone, Copy, Debug)]
pub struct Http2Pseudo<'a> {
    pub method: &'a str,
    pub authority: Option<&'a str>,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub ended: bool,
}

/// Why a request is refused at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("a request line that is none, or a line that ends in a bare line feed")]
    Line,
    #[error("a version other than 1.0 and 1.1")]
    Version,
    #[error("the method is no token, or CONNECT")]
    Method,
    #[error("content-length and transfer-encoding, several lengths, or one that is no number")]
    Length,
    #[error("a transfer-encoding that is not `chunked`, or in a version without it")]
    TransferEncoding,
    #[error("no host, several, one that contradicts the target, or one that is none")]
    Authority,
    #[error("a field name that is none, or stands for an internal one")]
    FieldName,
    #[error("a field value with a control character")]
    FieldValue,
    #[error("a field that may not stand in this version")]
    ForbiddenField,
    #[error("an upgrade to something else than a WebSocket, or one with a body")]
    Upgrade,
    #[error("an expectation other than 100-continue")]
    Expectation,
    #[error("a path or query that two servers could read in two ways")]
    Path,
    #[error("a head over the limits")]
    TooLarge,
}

impl Refusal {
    pub fn reason(self) -> Reason {
        match self {
            Self::Path => Reason::BadPath,
            Self::TooLarge => Reason::TooLarge,
            _ => Reason::BadRequest,
        }
    }

    /// The answer. On HTTP/1 the connection ends with it: where the request ends is known of no refused one.
    pub fn reply(self) -> Reply {
        let reply = Reply::of(self.reason());
        match self {
            Self::Method => reply.with_status(405).and_close(),
            Self::Expectation => reply.with_status(417).and_close(),
            Self::Version => reply.with_status(505).and_close(),
            _ => reply.and_close(),
        }
    }
}

impl Checked {
    /// From an HTTP/1 head. Names in lower case, values as read.
    ///
    /// # Errors
    /// [`Refusal`], and the memory back.
    pub fn http1<'f>(
        workspace: Workspace,
        line: Http1Line<'_>,
        fields: impl Iterator<Item = (&'f [u8], &'f [u8])>,
        limits: &Limits,
    ) -> Result<Self, (Refusal, Workspace)> {
        let fields = fields.map(|(name, value)| (Name::new(name), value));
        Self::http1_named(workspace, line, fields, limits)
    }

    /// As [`Checked::http1`], by a codec that has read the names already; a field without name is one of a line that is
    /// none.
    pub(crate) fn http1_named<'f>(
        workspace: Workspace,
        line: Http1Line<'_>,
        fields: impl Iterator<Item = (Option<Name<'f>>, &'f [u8])>,
        limits: &Limits,
    ) -> Result<Self, (Refusal, Workspace)> {
        let mut inner = workspace.0;
        match inner.read_http1(line, fields, limits) {
            Ok(()) => Ok(Self(inner)),
            Err(refusal) => Err((refusal, Workspace(inner))),
        }
    }

    /// From an HTTP/2 head.
    ///
    /// # Errors
    /// [`Refusal`], and the memory back.
    pub fn http2<'f>(
        workspace: Workspace,
        pseudo: Http2Pseudo<'_>,
        fields: impl Iterator<Item = (&'f [u8], &'f [u8])>,
        limits: &Limits,
    ) -> Result<Self, (Refusal, Workspace)> {
        let fields = fields.map(|(name, value)| (Name::new(name), value));
        Self::http2_named(workspace, pseudo, fields, limits)
    }

    /// As [`Checked::http2`], by a codec that has read the names already; a field without name is one whose name is none.
    pub(crate) fn http2_named<'f>(
        workspace: Workspace,
        pseudo: Http2Pseudo<'_>,
        fields: impl Iterator<Item = (Option<Name<'f>>, &'f [u8])>,
        limits: &Limits,
    ) -> Result<Self, (Refusal, Workspace)> {
        let mut inner = workspace.0;
        match inner.read_http2(pseudo, fields, limits) {
            Ok(()) => Ok(Self(inner)),
            Err(refusal) => Err((refusal, Workspace(inner))),
        }
    }

    /// The same request once more, for somebody else.
    pub fn duplicate(&self) -> Self {
        Self(self.0.clone())
    }

    /// Gives the memory back.
    pub fn into_workspace(self) -> Workspace {
        Workspace(self.0)
    }

    pub fn method(&self) -> Method {
        self.0.method
    }

    pub fn method_str(&self) -> &str {
        &self.0.method_text
    }

    /// Canonical, with port if one was given.
    pub fn authority(&self) -> &str {
        &self.0.authority
    }

    pub fn host(&self) -> &str {
        self.0.authority.get(..self.0.host_len).unwrap_or_default()
    }

    pub fn port(&self) -> Option<u16> {
        self.0.port
    }

    /// Canonical; `*` for an OPTIONS of the server itself.
    pub fn path(&self) -> &str {
        &self.0.path
    }

    pub fn query(&self) -> Option<&str> {
        self.0.query.as_deref()
    }

    pub fn version(&self) -> Version {
        self.0.version
    }

    pub fn framing(&self) -> Framing {
        self.0.framing
    }

    /// Without `host`, `content-length` and every hop-by-hop field.
    pub fn headers(&self) -> &HeaderList {
        &self.0.headers
    }

    /// A list takes only checked names and values, so a stage can't undo the checks.
    pub fn headers_mut(&mut self) -> &mut HeaderList {
        &mut self.0.headers
    }

    /// Whether the content type is that of gRPC.
    pub fn is_grpc(&self) -> bool {
        self.0.grpc
    }

    /// Whether the caller said that it takes trailers; gRPC servers want to hear it.
    pub fn te_trailers(&self) -> bool {
        self.0.te_trailers
    }

    pub fn upgrade(&self) -> Option<Upgrade> {
        self.0.upgrade
    }

    /// Whether the caller waits for a word before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.0.expects_continue
    }

    /// Memory held on the heap, the fields' included.
    pub fn held_bytes(&self) -> usize {
        let inner = &self.0;
        size_of::<Inner>()
            + inner.method_text.capacity()
            + inner.authority.capacity()
            + inner.path.capacity()
            + inner.query.as_ref().map_or(0, String::capacity)
            + inner.spare_query.capacity()
            + inner.headers.held_bytes()
    }

    /// Replaces the path; the query stays.
    ///
    /// # Errors
    /// [`Refusal::Path`] when `raw` has no canonical form; the request is unchanged.
    pub fn set_path(&mut self, raw: &str) -> Result<(), Refusal> {
        let path = canonical_path(raw).map_err(|_| Refusal::Path)?;
        self.0.path.clear();
        self.0.path.push_str(&path);
        Ok(())
    }

    /// Makes it a call of gRPC: POST at this path, without a query, its body of a length that is not known.
    ///
    /// # Errors
    /// [`Refusal::Path`] when `path` has no canonical form; the request is unchanged.
    pub fn become_call(&mut self, path: &str) -> Result<(), Refusal> {
        self.set_path(path)?;
        let inner = &mut *self.0;
        inner.method = Method::Post;
        inner.method_text.clear();
        inner.method_text.push_str("POST");
        inner.query = None;
        inner.version = Version::Http2;
        inner.framing = Framing::Chunked;
        (inner.grpc, inner.te_trailers, inner.expects_continue) = (true, true, false);
        let grpc = Field::of(names::CONTENT_TYPE, "application/grpc");
        inner.headers.remove(names::CONTENT_ENCODING);
        inner.headers.set_field(&grpc);
        Ok(())
    }

    /// Replaces the authority.
    ///
    /// # Errors
    /// [`Refusal::Authority`] when `raw` has no canonical form; the request is unchanged.
    pub fn set_authority(&mut self, raw: &str) -> Result<(), Refusal> {
        self.0.read_authority(raw)
    }
}

impl Inner {
    fn read_authority(&mut self, raw: &str) -> Result<(), Refusal> {
        let authority = canonical_authority(raw).map_err(|_| Refusal::Authority)?;
        self.authority.clear();
        self.authority.push_str(authority.as_str());
        self.host_len = authority.host().len();
        self.port = authority.port();
        Ok(())
    }
}

impl matching::Request for Checked {
    fn method(&self) -> &str {
        self.method_str()
    }

    fn path(&self) -> &str {
        self.path()
    }

    fn query(&self) -> Option<&str> {
        self.query()
    }

    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let name = Name::new(name.as_bytes())?;
        if name == names::HOST {
            return Some(Cow::Borrowed(self.authority().as_bytes()));
        }
        let same = |(field, value)| (field == name).then_some(value);
        let mut values = self.headers().iter().filter_map(same);
        let first = values.next()?;
        let Some(second) = values.next() else {
            return Some(Cow::Borrowed(first));
        };
        let mut joined = first.to_vec();
        for value in std::iter::once(second).chain(values) {
            joined.push(b',');
            joined.extend_from_slice(value);
        }
        Some(Cow::Owned(joined))
    }

    fn is_grpc(&self) -> bool {
        self.is_grpc()
    }
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {}{} {:?}",
            self.method_str(),
            self.authority(),
            self.path(),
            self.headers()
        )
    }
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Workspace")
    }
}

#[cfg(test)]
mod tests;
