//! What crosses the door of a session: requests, responses, and why a request ends the stream.

use phalanx_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use crate::kind::Kind;

/// Names that one client may ask for, or claim to hold, per kind.
pub const NAMES_MAX: usize = 10_000;
/// Bytes in a resource name or a version that a client sends.
pub const NAME_BYTES_MAX: usize = 1024;

#[derive(Clone, Debug)]
pub enum Request {
    Delta(DeltaDiscoveryRequest),
    Sotw(DiscoveryRequest),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    Delta(DeltaDiscoveryResponse),
    Sotw(DiscoveryResponse),
}

/// Why a stream must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error(
        "resource type {0:?} is not served; served are clusters, endpoints, listeners and routes"
    )]
    UnknownType(String),
    #[error("{kind}: more than {NAMES_MAX} names in one subscription")]
    TooManyNames { kind: Kind },
    #[error("{kind}: a name or version of {bytes} bytes, at most {NAME_BYTES_MAX} are allowed")]
    NameTooLong { kind: Kind, bytes: usize },
    #[error("a delta request on a state-of-the-world stream, or the reverse")]
    WrongProtocol,
}

impl Response {
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Delta(response) => Kind::parse(&response.type_url),
            Self::Sotw(response) => Kind::parse(&response.type_url),
        }
    }

    /// None on a state-of-the-world stream.
    pub fn into_delta(self) -> Option<DeltaDiscoveryResponse> {
        match self {
            Self::Delta(response) => Some(response),
            Self::Sotw(_) => None,
        }
    }

    /// None on a delta stream.
    pub fn into_sotw(self) -> Option<DiscoveryResponse> {
        match self {
            Self::Sotw(response) => Some(response),
            Self::Delta(_) => None,
        }
    }
}

impl From<DeltaDiscoveryRequest> for Request {
    fn from(request: DeltaDiscoveryRequest) -> Self {
        Self::Delta(request)
    }
}

impl From<DiscoveryRequest> for Request {
    fn from(request: DiscoveryRequest) -> Self {
        Self::Sotw(request)
    }
}

pub(super) fn parse(type_url: &str) -> Result<Kind, SessionError> {
    Kind::parse(type_url).ok_or_else(|| {
        SessionError::UnknownType(type_url.chars().take(NAME_BYTES_MAX / 4).collect())
    })
}

pub(super) fn check_count(kind: Kind, count: usize) -> Result<(), SessionError> {
    if count > NAMES_MAX {
        return Err(SessionError::TooManyNames { kind });
    }
    Ok(())
}

pub(super) fn check_names<'a>(
    kind: Kind,
    names: impl Iterator<Item = &'a String>,
) -> Result<(), SessionError> {
    match names.map(String::len).find(|bytes| *bytes > NAME_BYTES_MAX) {
        Some(bytes) => Err(SessionError::NameTooLong { kind, bytes }),
        None => Ok(()),
    }
}
