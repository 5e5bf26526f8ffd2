//! The session directory and drains, for operators, and for games that speak no gRPC.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use phalanx_client::api::{
    DrainView, Drains, SessionAnswer, SessionPage, SessionRequest, SessionView,
};
use phalanx_proto::phalanx::sessions::v1 as wire;
use serde_json::json;

use super::Api;
use super::answer::{Failure, Params};
use super::write::read;
use crate::access::Who;
use crate::admit::unix_ms;
use crate::sessions::{BadKey, ChangeError, Done, Session, SessionError, SessionId};

pub async fn show(State(api): State<Api>, query: RawQuery) -> Result<Json<SessionPage>, Failure> {
    let known = ["namespace", "service", "key", "instance", "after"];
    let params = Params::parse(query, &known)?;
    let text = |name| params.text(name).unwrap_or_default().to_owned();
    let request = wire::ShowRequest {
        namespace: params.text("namespace").unwrap_or("default").to_owned(),
        service: text("service"),
        key: text("key"),
        instance: text("instance"),
        after: text("after"),
        limit: 0,
    };
    let is_lost = request.service.is_empty()
        && !(request.key.is_empty() && request.instance.is_empty() && request.after.is_empty());
    if is_lost {
        let error = "keys and instances are those of a service: `service` is missing";
        return Err(Failure::new(StatusCode::BAD_REQUEST, error));
    }
    let shown = api.inner.sessions.show(&request)?;
    Ok(Json(SessionPage {
        items: shown.sessions.into_iter().map(view).collect(),
        more: shown.more,
        count: shown.count,
    }))
}

pub async fn claim(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Response, Failure> {
    let (request, id) = asked(&who, body).await?;
    let instance = needed(&request)?;
    let ttl = (request.ttl_ms > 0).then(|| Duration::from_millis(request.ttl_ms));
    let sessions = &api.inner.sessions;
    let done = sessions.claim(id, instance, request.expect, ttl).await?;
    Ok(answer(&done, &request))
}

pub async fn relocate(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Response, Failure> {
    let (request, id) = asked(&who, body).await?;
    let to = needed(&request)?;
    let done = api.inner.sessions.move_to(id, to, request.expect).await?;
    if done.done {
        let (key, service) = (&request.key, &request.service);
        tracing::info!(
            key,
            service,
            to,
            author = who.author(""),
            "a session is moved"
        );
    }
    Ok(answer(&done, &request))
}

pub async fn release(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Response, Failure> {
    let (request, id) = asked(&who, body).await?;
    let done = api.inner.sessions.release(id, request.expect).await?;
    Ok(answer(&done, &request))
}

pub async fn drains(State(api): State<Api>) -> Json<Drains> {
    let world = api.world();
    let now_ms = unix_ms();
    let item = |(id, drain): (&phalanx_model::InstanceId, &std::sync::Arc<_>)| {
        let drain: &crate::world::record::DrainRecord = drain;
        let state = world.instances.get(id).map(|known| known.state.as_str());
        let end = drain
            .grace_ms
            .map(|grace| drain.since.saturating_add(grace));
        DrainView {
            namespace: id.service.namespace.clone(),
            service: id.service.name.clone(),
            id: id.id.clone(),
            traffic: state.unwrap_or_default().to_owned(),
            author: drain.author.clone(),
            since_ms: drain.since,
            left_ms: end.map(|end| end.saturating_sub(now_ms)),
            sessions: api.inner.sessions.count_of(id) as u64,
            handover: drain
                .hands_over()
                .map_or("none", |what| what.as_str())
                .to_owned(),
            reconnects_per_second: drain.reconnects_per_second,
        }
    };
    let items: BTreeMap<_, _> = world.drains.iter().collect();
    Json(Drains {
        items: items.into_iter().map(item).collect(),
    })
}

/// A workload speaks for its own service, a user for any.
async fn asked(who: &Who, body: Body) -> Result<(SessionRequest, SessionId), Failure> {
    let request: SessionRequest = read(body).await?;
    let id = SessionId::parse(&request.namespace, &request.service, &request.key)?;
    if !matches!(who, Who::User { .. }) {
        who.owns(&id.service)
            .map_err(|error| Failure::new(StatusCode::FORBIDDEN, error.to_string()))?;
    }
    Ok((request, id))
}

fn needed(request: &SessionRequest) -> Result<&str, Failure> {
    match request.instance.as_str() {
        "" => Err(Failure::new(
            StatusCode::BAD_REQUEST,
            "`instance` is missing: who is to have the session",
        )
        .hint("`phalanx instances` lists those that are registered")),
        instance => Ok(instance),
    }
}

fn answer(done: &Done, request: &SessionRequest) -> Response {
    let session = done
        .session
        .as_ref()
        .map(|session| view(Session::to_wire(session)));
    if done.done {
        return Json(SessionAnswer { session }).into_response();
    }
    let key = &request.key;
    let (error, hint) = match &session {
        Some(now) => (
            format!(
                "{} has session `{key}`, at epoch {}",
                now.instance, now.epoch
            ),
            format!("is that to be taken over, say `expect`: {}", now.epoch),
        ),
        None => (
            format!("nobody has session `{key}`"),
            "who is to have it can claim it".to_owned(),
        ),
    };
    let body = json!({"error": error, "hint": hint, "session": session});
    (StatusCode::CONFLICT, Json(body)).into_response()
}

fn view(session: wire::Session) -> SessionView {
    SessionView {
        namespace: session.namespace,
        service: session.service,
        key: session.key,
        instance: session.instance,
        epoch: session.epoch,
        ttl_ms: session.ttl_ms,
        away: session.away,
    }
}

impl From<BadKey> for Failure {
    fn from(error: BadKey) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        let text = error.to_string();
        match error {
            SessionError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, text)
                .hint("`phalanx instances` lists those that are registered"),
            SessionError::Closed { .. } => Self::new(StatusCode::CONFLICT, text)
                .hint("`phalanx drain --status` shows which are drained, and by whom"),
            SessionError::Ttl => Self::new(StatusCode::BAD_REQUEST, text),
            SessionError::Rate | SessionError::Change(ChangeError::TooMany) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, text).hint("try again a little later")
            }
            SessionError::Change(ChangeError::Full) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, text)
                    .hint("release what is over, or let it end by itself with `ttl_ms`")
            }
            SessionError::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
            SessionError::Change(ChangeError::Store(source)) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("{text}: {source}"))
                    .hint("it may have happened all the same: look before it is done again")
            }
        }
    }
}
