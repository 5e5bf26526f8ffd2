//! A canary's state, and the decision by hand.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use phalanx_client::api::{CanaryDecision, CanaryEvidence, CanaryStatus};

use super::Api;
use super::answer::{Failure, Params};
use super::write::read;
use crate::access::Who;
use crate::admit::AdmitError;
use crate::world::record::CanaryStage;

pub async fn show(State(api): State<Api>, query: RawQuery) -> Result<Json<CanaryStatus>, Failure> {
    Params::parse(query, &[])?;
    Ok(Json(api.inner.canaries.status()))
}

pub async fn evidence(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<CanaryEvidence>, Failure> {
    Params::parse(query, &[])?;
    Ok(Json(api.inner.canaries.evidence()))
}

pub async fn decide(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<CanaryStatus>, Failure> {
    let mut decision: CanaryDecision = read(body).await?;
    decision.author = who.author(&decision.author);
    let (stage, done) = match decision.decision.as_str() {
        "promote" => (CanaryStage::Promoted, "promoted by hand"),
        "abort" => (CanaryStage::Back, "aborted by hand"),
        other => {
            let error = format!("`{other}` is no decision about a canary");
            return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error)
                .hint("decide `promote` or `abort`"));
        }
    };
    let current = api.world().canary.clone();
    let sequence = current.map(|canary| canary.record.as_ref().map_or(0, |r| r.sequence));
    let Some(sequence) = sequence else {
        return Err(AdmitError::NoCanary.into());
    };
    let reason = match decision.message {
        Some(why) if !why.is_empty() => format!("{done}: {why}"),
        _ => done.to_owned(),
    };
    let admission = &api.inner.admission;
    admission
        .conclude(sequence, stage, &decision.author, &reason)
        .await
        .map_err(undecided)?;
    Ok(Json(api.inner.canaries.status()))
}

/// Going back is written too: while nothing can be, who has the change keeps it.
fn undecided(error: AdmitError) -> Failure {
    let AdmitError::Store(source) = error else {
        return error.into();
    };
    let error = format!(
        "the canary can't be decided while nothing can be stored, its proxies keep the change: {source}"
    );
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, error).hint(
        "`phalanx status` says what is wrong with the store; decide again when it takes writes",
    )
}
