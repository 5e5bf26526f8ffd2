//! A backup of everything stored, while everything goes on.
//!
//! It is asked for by POST with a JSON body like a change, because no web page elsewhere may even start it. One at a time,
//! sent entry by entry and never built as a whole.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Api;
use super::answer::Failure;

/// Holds the store's page, so there is one.
static TURN: Semaphore = Semaphore::const_new(1);
/// Of sending one; whoever reads slower gets a connection that breaks, and so no backup.
const SENDING_MAX: Duration = Duration::from_secs(600);
const BODY_BYTES_MAX: usize = 1024;

pub async fn take(State(api): State<Api>, body: Body) -> Result<Response, Failure> {
    let bad = |text: &str| Failure::new(StatusCode::BAD_REQUEST, text).hint("the body is {}");
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await;
    let body: Bytes = body.map_err(|_| bad("the body is too large, or broke off"))?;
    if body.trim_ascii() != b"{}" {
        return Err(bad("the body is not what is expected"));
    }
    let Ok(turn) = TURN.try_acquire() else {
        return Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "another backup is being taken",
        )
        .hint("try again when it is done"));
    };
    let backup = api.inner.store.backup().await.map_err(|error| {
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the store can't be read: {error}"),
        )
    })?;
    tracing::info!(
        revision = backup.revision,
        entries = backup.entries.len(),
        "backup is taken"
    );
    let deadline = Instant::now() + SENDING_MAX;
    let pieces = futures_util::stream::unfold(
        (backup.encode(), turn),
        move |(mut pieces, turn)| async move {
            // An end without an error would look like the end of the backup.
            let piece = match pieces.next()? {
                piece if Instant::now() < deadline => Ok(piece),
                _ => Err(io::ErrorKind::TimedOut),
            };
            Some((piece.map_err(io::Error::from), (pieces, turn)))
        },
    );
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(pieces)).into_response())
}
