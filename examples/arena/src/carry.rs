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

    /// The session that the request belongs to, if it was named.
    pub fn session(&self) -> Option<&str> {
        self.0.get(&SESSION)?.to_str().ok()
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

/// What is left of the caller's time: `grpc-timeout`, up to eight digits and a unit.
pub fn budget(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let fits = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| fits)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Refused for want of room; the same call is welcome after the wait, as gRPC's clients understand it.
pub fn pushed_back(message: String, wait: Duration) -> Status {
    let mut metadata = MetadataMap::new();
    let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    metadata.insert("grpc-retry-pushback-ms", ms.into());
    Status::with_metadata(Code::ResourceExhausted, message, metadata)
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
    fn a_budget_is_what_the_caller_wrote_or_none() {
        let request = Carried::default().request((), Duration::from_millis(2500));
        assert_eq!(
            budget(request.metadata()),
            Some(Duration::from_millis(2500))
        );
        for (text, read) in [
            ("7S", Some(Duration::from_secs(7))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000S", None),
            ("S", None),
            ("+1S", None),
            ("1s", None),
        ] {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(budget(&metadata), read, "{text}");
        }
        assert_eq!(budget(&MetadataMap::new()), None);
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
