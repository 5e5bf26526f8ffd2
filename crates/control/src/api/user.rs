//! Users, and who somebody is: by tokens of people and tools, or by the cookie that a browser got for one.

use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use phalanx_client::api::{LoginRequest, Me, UserRequest, UserToken, UserView, UserViews};

use super::Api;
use super::answer::{Failure, Params};
use super::write::{read, read_within};
use crate::access::{Needs, Role, UserError, UserRecord, Who};

pub async fn add(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<UserToken>, Failure> {
    let request: UserRequest = read(body).await?;
    let Some(role) = Role::parse(&request.role) else {
        let error = format!("`{}` is no role", request.role.escape_debug());
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error)
            .hint("roles are viewer, operator and admin"));
    };
    let ttl = request.ttl_ms.map(Duration::from_millis);
    let users = api.inner.access.users();
    let author = who.author("");
    let (token, record) = users.add(&request.name, role, ttl, &author).await?;
    tracing::info!(user = request.name, %role, author, "user added");
    Ok(Json(UserToken {
        user: view(&request.name, &record),
        token: token.to_string(),
        roots: api
            .inner
            .ca
            .as_ref()
            .map(|ca| ca.roots().to_pem())
            .unwrap_or_default(),
    }))
}

pub async fn list(State(api): State<Api>, query: RawQuery) -> Result<Json<UserViews>, Failure> {
    Params::parse(query, &[])?;
    let users = api.inner.access.users().all();
    let items = users.iter().map(|(name, record)| view(name, record));
    Ok(Json(UserViews {
        items: items.collect(),
    }))
}

pub async fn remove(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<UserView>, Failure> {
    let Path(name) =
        path.map_err(|wrong| Failure::new(StatusCode::BAD_REQUEST, wrong.body_text()))?;
    let users = api.inner.access.users();
    let known = users.all().into_iter().find(|(known, _)| *known == name);
    users.remove(&name).await?;
    tracing::info!(user = name, author = who.author(""), "user removed");
    let view = known.map(|(name, record)| view(&name, &record));
    Ok(Json(view.unwrap_or_default()))
}

/// Whoever may look is told who that is.
pub async fn me(Extension(who): Extension<Who>) -> Json<Me> {
    Json(match who {
        Who::User { name, role } => told(name, role.as_str()),
        Who::Workload(peer) => told(peer.id.to_string(), ""),
        Who::Open | Who::Nobody => told(String::new(), "open"),
    })
}

pub async fn login(State(api): State<Api>, body: Body) -> Result<Response, Failure> {
    // Anybody may send it.
    let request: LoginRequest = read_within(body, LOGIN_MAX).await?;
    let access = &api.inner.access;
    let who = access.judge(
        &Who::Nobody,
        Some(&request.token),
        Needs::Role(Role::Viewer),
    );
    let Who::User { name, role } = who.map_err(super::denied)? else {
        return Err(super::denied(crate::access::Denied::BadToken));
    };
    let cookie = cookie(request.token.trim(), SESSION);
    Ok((cookie, Json(told(name, role.as_str()))).into_response())
}

/// The cookie is taken back; the token stays what it is.
pub async fn logout() -> impl IntoResponse {
    (cookie("", Duration::ZERO), Json(Me::default()))
}

/// The token of a request: of a tool, or of a browser that logged in.
pub(super) fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION);
    let bearer = bearer.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    bearer.or_else(|| {
        let cookies = headers.get_all(header::COOKIE).iter();
        let mut pairs = cookies
            .filter_map(|value| value.to_str().ok())
            .flat_map(|v| v.split(';'));
        pairs.find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
    })
}

/// Out of reach of scripts and of other sites; of this host only.
fn cookie(token: &str, age: Duration) -> [(header::HeaderName, HeaderValue); 1] {
    let text = format!(
        "{COOKIE}={token}; Path=/; Max-Age={}; HttpOnly; Secure; SameSite=Strict",
        age.as_secs()
    );
    // A token that was checked is plain.
    let value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
    [(header::SET_COOKIE, value)]
}

fn told(name: String, role: &str) -> Me {
    Me {
        name,
        role: role.to_owned(),
    }
}

fn view(name: &str, record: &UserRecord) -> UserView {
    UserView {
        name: name.to_owned(),
        role: record.role.clone(),
        author: record.author.clone(),
        created_ms: record.created_ms,
        expires_ms: record.expires_ms,
    }
}

impl From<UserError> for Failure {
    fn from(error: UserError) -> Self {
        let status = match &error {
            UserError::Name(_) | UserError::Ttl => StatusCode::UNPROCESSABLE_ENTITY,
            UserError::Taken(_) | UserError::Full => StatusCode::CONFLICT,
            UserError::Unknown(_) => StatusCode::NOT_FOUND,
            UserError::Random | UserError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let hint = match &error {
            UserError::Taken(_) => "remove it first: `phalanx user remove`",
            UserError::Unknown(_) => "`phalanx user list` shows all",
            UserError::Full => "remove some: `phalanx user remove`",
            UserError::Store(_) => "nothing was changed; see `phalanx status`",
            _ => return Self::new(status, error.to_string()),
        };
        Self::new(status, error.to_string()).hint(hint)
    }
}

/// The prefix makes browsers insist on TLS and on this very host.
const COOKIE: &str = "__Host-phalanx";
const SESSION: Duration = Duration::from_secs(12 * 3600);
/// Of a body with a token.
const LOGIN_MAX: usize = 4096;
