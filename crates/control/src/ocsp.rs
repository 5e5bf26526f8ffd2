//! Revocation over plain HTTP, for whoever checks a certificate: OCSP (RFC 6960, appendix A) by POST and by GET, and the
//! revocation lists at `/crl/<issuer key>.crl`. Everything said here is signed, so it needs no TLS; nothing can be changed
//! here. Who is revoked is asked of the authority. Connections, bodies and time are bounded: this port may face strangers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use phalanx_pki::ocsp::{REQUEST_MAX, decode_get};
use tokio::time::timeout;

use crate::ca::Ca;

#[cfg(test)]
mod tests;

/// Connections at a time; more wait to be taken.
pub const CONNECTIONS_MAX: usize = 256;
/// For the body of a request.
const BODY_MAX: Duration = Duration::from_secs(5);
/// A cache may keep an answer this long: less than a revocation may take to be known everywhere.
const CACHED: &str = "public, max-age=5";

const REQUEST: &str = "application/ocsp-request";
const RESPONSE: &str = "application/ocsp-response";
const CRL: &str = "application/pkix-crl";

/// Whoever answers.
pub trait Source: Send + Sync + 'static {
    /// An OCSP response for the bytes of a request, whatever they are; DER.
    fn respond(&self, request: &[u8]) -> Vec<u8>;
    /// The newest list of an issuer, by the hex of SHA-256 over its SubjectPublicKeyInfo; DER.
    fn list(&self, issuer_key: &str) -> Option<Vec<u8>>;
    /// What is wrong: a list that was not made again in time.
    fn ailment(&self) -> Option<String>;
}

impl Source for Ca {
    fn respond(&self, request: &[u8]) -> Vec<u8> {
        self.answer(request)
    }

    fn list(&self, issuer_key: &str) -> Option<Vec<u8>> {
        self.crl(issuer_key)
    }

    fn ailment(&self) -> Option<String> {
        self.overdue()
    }
}

/// Serves [`Source`] at every path.
pub fn router(source: impl Source) -> Router {
    let source: Arc<dyn Source> = Arc::new(source);
    Router::new().fallback(answer).with_state(source)
}

async fn answer(State(source): State<Arc<dyn Source>>, request: Request) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let reads = matches!(method, Method::GET | Method::HEAD);
    match path.strip_prefix("/crl/") {
        _ if path == "/healthz" && reads => return healthz(&*source),
        Some(name) if reads => return list(&*source, name),
        _ => {}
    }
    let asked = match method {
        Method::POST => posted(request).await,
        // The base64 text may hold slashes; a query is no part of it.
        Method::GET if request.uri().query().is_some() => Ok(Vec::new().into()),
        Method::GET if path == "/" => return refused(StatusCode::NOT_FOUND, HELP),
        // What can't be decoded is a malformed request, which the protocol has words for.
        Method::GET => Ok(decode_get(&path).unwrap_or_default().into()),
        _ => Err(refused(
            StatusCode::METHOD_NOT_ALLOWED,
            "OCSP takes GET and POST",
        )),
    };
    match asked {
        Ok(asked) => said(source.respond(&asked), method == Method::GET),
        Err(refusal) => refusal,
    }
}

/// The body of a POST.
async fn posted(request: Request) -> Result<Bytes, Response> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| !is_request(kind)) {
        let why = "OCSP takes a body of application/ocsp-request";
        return Err(refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > REQUEST_MAX) {
        return Err(refused(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE));
    }
    let body = timeout(BODY_MAX, to_bytes(request.into_body(), REQUEST_MAX)).await;
    match body {
        Ok(Ok(body)) => Ok(body),
        // A body that broke off has nobody left to read this.
        Ok(Err(_)) => Err(refused(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE)),
        Err(_) => Err(refused(
            StatusCode::REQUEST_TIMEOUT,
            "the request did not come in time",
        )),
    }
}

fn is_request(kind: &HeaderValue) -> bool {
    let kind = kind.as_bytes().split(|b| *b == b';').next();
    kind.is_some_and(|kind| kind.trim_ascii().eq_ignore_ascii_case(REQUEST.as_bytes()))
}

fn said(response: Vec<u8>, cached: bool) -> Response {
    let cached = if cached { CACHED } else { "no-store" };
    let headers = [
        (header::CONTENT_TYPE, RESPONSE),
        (header::CACHE_CONTROL, cached),
    ];
    (headers, response).into_response()
}

fn list(source: &dyn Source, name: &str) -> Response {
    let found = name.strip_suffix(".crl").and_then(|key| source.list(key));
    let Some(der) = found else {
        return refused(StatusCode::NOT_FOUND, "no such issuer");
    };
    let headers = [(header::CONTENT_TYPE, CRL), (header::CACHE_CONTROL, CACHED)];
    (headers, der).into_response()
}

fn healthz(source: &dyn Source) -> Response {
    match source.ailment() {
        None => "ok\n".into_response(),
        Some(ailment) => refused(StatusCode::SERVICE_UNAVAILABLE, &ailment),
    }
}

/// Ends the connection too: what is left of a body is not read.
fn refused(status: StatusCode, why: &str) -> Response {
    let mut response = (status, Body::from(format!("{why}\n"))).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
    }
    response
}

const TOO_LARGE: &str = "an OCSP request takes at most 4 KiB";
const HELP: &str =
    "OCSP by POST, or by GET with the request's base64 as the path; lists at /crl/<issuer key>.crl";
