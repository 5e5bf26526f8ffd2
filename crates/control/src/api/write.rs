//! What changes the configuration.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use phalanx_client::api::{
    ApplyRequest, ApplyResponse, BODY_BYTES_MAX, Change, ChangeAction, DeleteRequest,
    RollbackRequest,
};
use serde::de::DeserializeOwned;

use super::Api;
use super::answer::Failure;
use crate::admit::Around;

pub async fn apply(State(api): State<Api>, body: Body) -> Result<Json<ApplyResponse>, Failure> {
    let request: ApplyRequest = read(body).await?;
    let is_canary = request.canary.is_some();
    let around = around(&api, request.dry_run || is_canary).await;
    let mut answer = api.inner.admission.apply(request, around).await?;
    // Where nothing changes there may be another one.
    let changes = |change: &Change| change.action != ChangeAction::Unchanged;
    if is_canary && !answer.dry_run && answer.changes.iter().any(changes) {
        answer.canary = api.inner.canaries.status().current;
    }
    Ok(Json(answer))
}

pub async fn delete(State(api): State<Api>, body: Body) -> Result<Json<ApplyResponse>, Failure> {
    let request: DeleteRequest = read(body).await?;
    let around = around(&api, request.dry_run).await;
    Ok(Json(api.inner.admission.delete(request, around).await?))
}

pub async fn rollback(State(api): State<Api>, body: Body) -> Result<Json<ApplyResponse>, Failure> {
    let request: RollbackRequest = read(body).await?;
    let around = around(&api, request.dry_run).await;
    Ok(Json(api.inner.admission.rollback(request, around).await?))
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
    let bytes =
        match tokio::time::timeout(BODY_TIME_MAX, axum::body::to_bytes(body, BODY_BYTES_MAX)).await
        {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(_)) => {
                let error = format!(
                    "the body is over {} MiB, or broke off",
                    BODY_BYTES_MAX / (1024 * 1024)
                );
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

const BODY_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(30);
