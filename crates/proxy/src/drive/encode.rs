//! The head that goes upstream, written from the checked request and from nothing else.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Uri, header};
use phalanx_relay::{Checked, Field, Framing, Method as Verb, Upgrade};

use super::body::UpBody;
use super::headers;

/// `original` is what hyper made of the head: its memory, and its method and target where these still are what the
/// checked request says. `port` tells the peer's sidecar which port is meant.
pub fn request(
    checked: &Checked,
    original: Option<Parts>,
    port: Option<&Field>,
    http2: bool,
    body: UpBody,
) -> Request<UpBody> {
    let (method, uri, mut map) = match original {
        Some(parts) => {
            let uri = if is_same(&parts.uri, checked, http2) {
                Some(parts.uri)
            } else {
                None
            };
            (Some(parts.method), uri, parts.headers)
        }
        None => (
            None,
            None,
            HeaderMap::with_capacity(checked.headers().len() + EXTRA),
        ),
    };
    map.clear();
    if !http2 && let Ok(host) = HeaderValue::from_str(checked.authority()) {
        map.append(header::HOST, host);
    }
    headers::fill(&mut map, checked.headers());
    if let Some(port) = port
        && let Ok(value) = HeaderValue::from_bytes(port.value().as_bytes())
    {
        map.append(HeaderName::from_static("x-phalanx-port"), value);
    }
    let expects_body = matches!(checked.method(), Verb::Post | Verb::Put | Verb::Patch);
    if !http2
        && matches!(body, UpBody::Empty)
        && (expects_body || checked.framing() == Framing::Length(0))
    {
        map.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0")); // there are servers that insist
    }
    if http2 && (checked.te_trailers() || checked.is_grpc()) {
        map.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if checked.upgrade() == Some(Upgrade::WebSocket) {
        map.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        map.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    let mut request = Request::new(body);
    *request.method_mut() = method
        .or_else(|| Method::from_bytes(checked.method_str().as_bytes()).ok())
        .unwrap_or(Method::GET);
    *request.uri_mut() = uri.unwrap_or_else(|| target(checked, http2));
    *request.version_mut() = if http2 {
        http::Version::HTTP_2
    } else {
        http::Version::HTTP_11
    };
    *request.headers_mut() = map;
    request
}

/// Whether hyper's target can be sent as it is.
fn is_same(uri: &Uri, checked: &Checked, http2: bool) -> bool {
    let authority = uri.authority().map(|authority| authority.as_str());
    uri.path() == checked.path()
        && uri.query() == checked.query()
        && if http2 {
            authority == Some(checked.authority()) && uri.scheme() == Some(&Scheme::HTTP)
        } else {
            authority.is_none()
        }
}

/// Canonical path and authority consist of what a URI may hold; should the crate `http` see that otherwise, the request
/// goes to a path that no server serves, rather than to another one.
fn target(checked: &Checked, http2: bool) -> Uri {
    let text = match checked.query() {
        Some(query) => [checked.path(), "?", query].concat(),
        None => checked.path().to_owned(),
    };
    let path = PathAndQuery::from_maybe_shared(bytes::Bytes::from(text))
        .unwrap_or(PathAndQuery::from_static("/.invalid"));
    if !http2 {
        return Uri::from(path);
    }
    let builder = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(checked.authority())
        .path_and_query(path);
    builder
        .build()
        .unwrap_or(Uri::from_static("http://invalid/.invalid"))
}

/// Host, port and the like beside the request's own headers.
const EXTRA: usize = 4;
