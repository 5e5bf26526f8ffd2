//! What changes the configuration.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use phalanx_client::api::{
    ApplyRequest, ApplyResponse, BODY_BYTES_MAX, Change, ChangeAction, DeleteRequest,
    RollbackRequest,
};
use serde::de::DeserializeOwned;

use super::Api;
use super::answer::Failure;
use crate::access::Who;
use crate::admit::Around;

pub async fn apply(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<ApplyResponse>, Failure> {
    let mut request: ApplyRequest = read(body).await?;
    request.author = who.author(&request.author);
    let is_canary = request.canary.is_some();
    let around = around(&api, request.dry_run || is_canary).await;
    let answer = api.inner.admission.apply(request, around).await?;
    Ok(Json(staged(&api, is_canary, answer)))
}

pub async fn delete(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<ApplyResponse>, Failure> {
    let mut request: DeleteRequest = read(body).await?;
    request.author = who.author(&request.author);
    let is_canary = request.canary.is_some();
    let around = around(&api, request.dry_run || is_canary).await;
    let answer = api.inner.admission.delete(request, around).await?;
    Ok(Json(staged(&api, is_canary, answer)))
}

pub async fn rollback(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<ApplyResponse>, Failure> {
    let mut request: RollbackRequest = read(body).await?;
    request.author = who.author(&request.author);
    let is_canary = request.canary.is_some();
    let around = around(&api, request.dry_run || is_canary).await;
    let answer = api.inner.admission.rollback(request, around).await?;
    Ok(Json(staged(&api, is_canary, answer)))
}

/// With the canary that the change has started. Where nothing changes there may be another one.
fn staged(api: &Api, is_canary: bool, answer: ApplyResponse) -> ApplyResponse {
    let changes = |change: &Change| change.action != ChangeAction::Unchanged;
    let canary = match is_canary && !answer.dry_run && answer.changes.iter().any(changes) {
        true => api.inner.canaries.status().current,
        false => None,
    };
    ApplyResponse { canary, ..answer }
}

/// Only whoever looks at the effect has to know who is there.
async fn around(api: &Api, looks: bool) -> Around {
    if looks {
        api.around().await
    } else {
        Around::default()
    }
}

pub(super) async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    read_within(body, BODY_BYTES_MAX).await
}

/// As [`read`], of at most so many bytes.
pub(super) async fn read_within<T: DeserializeOwned>(
    body: Body,
    most: usize,
) -> Result<T, Failure> {
    let bytes = match tokio::time::timeout(BODY_TIME_MAX, axum::body::to_bytes(body, most)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let error = format!("the body is over {}, or broke off", size(most));
            return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, error)
                .hint("apply fewer files at once"));
        }
        Err(_) => {
            return Err(Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not come in time",
            ));
        }
    };
    serde_json::from_slice(&bytes).map_err(|e| {
        Failure::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not what is expected: {e}"),
        )
        .hint("see GET /openapi.json")
    })
}

fn size(bytes: usize) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        mib => format!("{mib} MiB"),
    }
}

const BODY_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(30);
