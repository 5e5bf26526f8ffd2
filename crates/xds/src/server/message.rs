//! What crosses the door of a session: requests, responses, and why a request ends the stream.

use phalanx_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use crate::kind::Kind;

/// Names that one client may ask for, or claim to hold, per kind.
pub const NAMES_MAX: usize = 10_000;
/// Bytes in a resource name or a version that a client sends.
pub const NAME_BYTES_MAX: usize = 1024;
/// Types that are not served and that one client may ask for all the same, on an aggregated stream.
pub const UNSERVED_MAX: usize = 16;
/// Body bytes in one response of the state of the world, which can't come in pages.
pub const SOTW_BYTES_MAX: usize = 32 * 1024 * 1024;

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
        "resource type {0:?} is not served; served are secrets, clusters, endpoints, listeners and routes"
    )]
    UnknownType(String),
    #[error(
        "more than {UNSERVED_MAX} resource types that are not served, the last {0:?}; served are secrets, clusters, endpoints, listeners and routes"
    )]
    TooManyTypes(String),
    #[error("{asked} on a stream of {served} alone (aggregated streams carry all kinds)")]
    OtherKind { served: Kind, asked: Kind },
    #[error(
        "{kind}: the state of the world has {bytes} bytes, at most {SOTW_BYTES_MAX} are sent in one message (use delta, which comes in pages, or ask for less)"
    )]
    TooLarge { kind: Kind, bytes: usize },
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

/// A type URL that is not ours, cut to what is worth keeping.
pub(super) fn short(type_url: &str) -> String {
    type_url.chars().take(NAME_BYTES_MAX / 4).collect()
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
