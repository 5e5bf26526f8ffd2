//! What a service hands on from the request it answers to the requests it makes: the trace, the lane, the session.
//! A mesh can't do this part: only the service knows which of its calls belong to which request.

use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Request, Status};

const SESSION: HeaderName = HeaderName::from_static("x-game-session");
const COLOUR: HeaderName = HeaderName::from_static("x-env");

/// Why a proxy answered by itself; told to the caller's caller too.
pub const REASON: &str = "x-phalanx-reason";

static NAMES: [HeaderName; 7] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
    HeaderName::from_static("x-request-id"),
    COLOUR,
    HeaderName::from_static("x-canary-id"),
    SESSION,
];

/// The headers of one inbound request that its outbound requests get too.
#[derive(Clone, Debug, Default)]
pub struct Carried(HeaderMap);

impl Carried {
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let mut carried = HeaderMap::new();
        for name in &NAMES {
            for value in headers.get_all(name) {
                carried.append(name, value.clone());
            }
        }
        Self(carried)
    }

    pub fn from_metadata(metadata: &MetadataMap) -> Self {
        Self::from_headers(metadata.as_ref())
    }

    /// The gateway names the session; whatever a player sent in that header is forgotten.
    pub fn in_session(mut self, session: &str) -> Self {
        match HeaderValue::from_str(session) {
            Ok(value) => self.0.insert(SESSION, value),
            Err(_) => self.0.remove(SESSION),
        };
        self
    }

    /// The environment that the request plays in; empty where nobody says.
    pub fn colour(&self) -> &[u8] {
        self.0.get(&COLOUR).map_or(&[], HeaderValue::as_bytes)
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.0
    }

    /// A gRPC request that may take `deadline`, wherever it goes.
    pub fn request<T>(&self, message: T, deadline: Duration) -> Request<T> {
        let metadata = MetadataMap::from_headers(self.0.clone());
        let mut request = Request::from_parts(metadata, Extensions::default(), message);
        request.set_timeout(deadline);
        request
    }
}

/// The reason that a proxy on the way gave, if one did.
pub fn reason(status: &Status) -> Option<&str> {
    status.metadata().get(REASON)?.to_str().ok()
}

/// A failed call as the answer to this service's own caller: the same code and reason, with the name of who was called.
pub fn passed_on(called: &str, status: &Status) -> Status {
    failed(called, status.code(), status.message(), reason(status))
}

pub fn failed(called: &str, code: Code, message: &str, reason: Option<&str>) -> Status {
    let mut metadata = MetadataMap::new();
    if let Some(value) = reason.and_then(|reason| reason.parse().ok()) {
        metadata.insert(REASON, value);
    }
    Status::with_metadata(code, format!("{called}: {message}"), metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_known_headers_are_carried_and_repeated_ones_stay_repeated() {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static("00-1-2-01"));
        headers.append("tracestate", HeaderValue::from_static("a=1"));
        headers.append("tracestate", HeaderValue::from_static("b=2"));
        headers.insert("authorization", HeaderValue::from_static("Bearer secret"));

        let request = Carried::from_headers(&headers)
            .in_session("s-1")
            .request((), Duration::from_secs(1));
        let sent = request.metadata();

        assert_eq!(sent.get_all("tracestate").iter().count(), 2);
        assert_eq!(sent.get("x-game-session").unwrap(), "s-1");
        assert!(sent.get("authorization").is_none());
        assert!(sent.get("grpc-timeout").is_some());
    }

    #[test]
    fn a_reason_survives_being_passed_on() {
        let first = failed("physics", Code::Unavailable, "no route", Some("no_route"));
        let second = passed_on("battle", &first);
        assert_eq!(reason(&second), Some("no_route"));
        assert_eq!(
            (second.code(), second.message()),
            (Code::Unavailable, "battle: physics: no route")
        );
    }
}
