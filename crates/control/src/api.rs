//! The admin API over HTTP: bodies are `client::api`'s, described in `api/openapi.json`.
//!
//! Each route names what it needs of whoever asks. State changes only by requests that say to be JSON; an Origin, if there is
//! one, has to be the Host, and in plain text the Host this machine's loopback, so that no web page elsewhere can reach in
//! (DNS rebinding; over TLS the certificate is in its way). Every error is JSON with a hint.

mod answer;
mod around;
mod backup;
mod canary;
mod cert;
mod health;
mod lanes;
mod operate;
mod read;
mod rollout;
mod session;
mod status;
mod user;
mod write;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use phalanx_store::Store;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use self::answer::Failure;
use crate::access::{Access, Arrival, Denied, Needs, Role, Who};
use crate::admit::Admission;
use crate::ca::Ca;
use crate::console;
use crate::discovery::{Canaries, Fleet, Loads};
use crate::dns;
use crate::health::Health;
use crate::import::{self, Imports};
use crate::limits::Limits;
use crate::observe::Observe;
use crate::registry::Registry;
use crate::rollout::Rollouts;
use crate::sessions::Sessions;
use crate::snapshot::Published;
use crate::world::World;

/// What the handlers read and write; cheap to clone.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    access: Access,
    /// None: nobody has an identity here.
    ca: Option<Ca>,
    admission: Arc<Admission>,
    canaries: Canaries,
    rollouts: Rollouts,
    /// A short critical section.
    missed: Mutex<status::Missed>,
    store: Store,
    /// What is stored; never behind an answered change.
    worlds: Receiver<Arc<World>>,
    /// What is compiled of it.
    published: Receiver<Arc<Published>>,
    registry: Registry,
    observe: Observe,
    fleet: Fleet,
    loads: Loads,
    health: Health,
    limits: Limits,
    sessions: Sessions,
    dns: Option<Arc<dns::Counts>>,
    address: SocketAddr,
    /// Of services that register in an etcd by themselves, where those are looked for.
    imports: OnceLock<Imports>,
    /// Ends long polls.
    stop: CancellationToken,
}

impl Api {
    #[allow(clippy::too_many_arguments)] // the composition root hands in each room once
    pub fn new(
        access: Access,
        ca: Option<Ca>,
        admission: Arc<Admission>,
        canaries: Canaries,
        rollouts: Rollouts,
        store: Store,
        worlds: Receiver<Arc<World>>,
        published: Receiver<Arc<Published>>,
        registry: Registry,
        observe: Observe,
        fleet: Fleet,
        loads: Loads,
        health: Health,
        limits: Limits,
        sessions: Sessions,
        dns: Option<Arc<dns::Counts>>,
        address: SocketAddr,
        stop: CancellationToken,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                access,
                ca,
                admission,
                canaries,
                rollouts,
                missed: Mutex::default(),
                store,
                worlds,
                published,
                registry,
                observe,
                fleet,
                loads,
                health,
                limits,
                sessions,
                dns,
                address,
                imports: OnceLock::new(),
                stop,
            }),
        }
    }

    /// Once, before anything is answered.
    pub fn tell_imports(&self, imports: Imports) {
        // A second one would be the composition root's mistake, and changes nothing.
        let _ = self.inner.imports.set(imports);
    }

    /// What was found in etcd, if anything is looked for.
    fn imports(&self) -> Option<import::View> {
        self.inner.imports.get().map(Imports::view)
    }

    fn world(&self) -> Arc<World> {
        self.inner.worlds.borrow().clone()
    }

    fn published(&self) -> Arc<Published> {
        self.inner.published.borrow().clone()
    }
}

impl Inner {
    fn missed(&self) -> MutexGuard<'_, status::Missed> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A method, a path, what that needs, and who answers.
type Route = (Method, &'static str, Needs, MethodRouter<Api>);

/// Every route once; the OpenAPI document is checked against this list.
fn routes() -> Vec<Route> {
    let [viewer, operator, admin] = Role::ALL.map(Needs::Role);
    vec![
        (Method::GET, "/", Needs::Nothing, get(console::page)),
        (Method::GET, "/healthz", Needs::Nothing, get(read::healthz)),
        (Method::GET, "/readyz", Needs::Nothing, get(read::readyz)),
        (Method::GET, "/metrics", viewer, get(read::metrics)),
        (
            Method::GET,
            "/openapi.json",
            Needs::Nothing,
            get(read::openapi),
        ),
        (Method::POST, "/api/v1/apply", operator, post(write::apply)),
        (
            Method::POST,
            "/api/v1/delete",
            operator,
            post(write::delete),
        ),
        (
            Method::POST,
            "/api/v1/rollback",
            operator,
            post(write::rollback),
        ),
        (
            Method::POST,
            "/api/v1/release",
            operator,
            post(operate::release),
        ),
        (
            Method::POST,
            "/api/v1/drain",
            operator,
            post(operate::drain),
        ),
        (Method::GET, "/api/v1/drains", viewer, get(session::drains)),
        (Method::GET, "/api/v1/sessions", viewer, get(session::show)),
        (
            Method::POST,
            "/api/v1/sessions/claim",
            Needs::Sessions,
            post(session::claim),
        ),
        (
            Method::POST,
            "/api/v1/sessions/move",
            Needs::Sessions,
            post(session::relocate),
        ),
        (
            Method::POST,
            "/api/v1/sessions/release",
            Needs::Sessions,
            post(session::release),
        ),
        (
            Method::POST,
            "/api/v1/refused",
            Needs::Plane,
            post(operate::refused),
        ),
        (
            Method::POST,
            "/api/v1/backup",
            Needs::Role(Role::Admin),
            post(backup::take),
        ),
        (Method::GET, "/api/v1/canary", viewer, get(canary::show)),
        (
            Method::POST,
            "/api/v1/canary",
            operator,
            post(canary::decide),
        ),
        (
            Method::GET,
            "/api/v1/canary/evidence",
            viewer,
            get(canary::evidence),
        ),
        (Method::GET, "/api/v1/rollouts", viewer, get(rollout::list)),
        (
            Method::GET,
            "/api/v1/rollouts/figures",
            viewer,
            get(rollout::figures),
        ),
        (
            Method::GET,
            "/api/v1/rollouts/{namespace}/{name}",
            viewer,
            get(rollout::show),
        ),
        (
            Method::POST,
            "/api/v1/rollouts/{namespace}/{name}",
            operator,
            post(rollout::order),
        ),
        (
            Method::GET,
            "/api/v1/documents",
            viewer,
            get(read::documents),
        ),
        (
            Method::GET,
            "/api/v1/documents/{kind}/{namespace}/{name}",
            viewer,
            get(read::document),
        ),
        (Method::GET, "/api/v1/status", viewer, get(status::status)),
        (Method::GET, "/api/v1/history", viewer, get(read::history)),
        (Method::GET, "/api/v1/proxies", viewer, get(read::proxies)),
        (
            Method::GET,
            "/api/v1/instances",
            viewer,
            get(read::instances),
        ),
        (Method::GET, "/api/v1/health", viewer, get(health::health)),
        (Method::GET, "/api/v1/lanes", viewer, get(lanes::lanes)),
        (Method::GET, "/api/v1/edges", viewer, get(read::edges)),
        (
            Method::GET,
            "/api/v1/comparisons",
            viewer,
            get(read::comparisons),
        ),
        (Method::GET, "/api/v1/loads", viewer, get(read::loads)),
        (Method::GET, "/api/v1/cert/roots", viewer, get(cert::roots)),
        (
            Method::GET,
            "/api/v1/cert/issued",
            viewer,
            get(cert::issued),
        ),
        (
            Method::GET,
            "/api/v1/cert/rotation",
            viewer,
            get(cert::rotation),
        ),
        (
            Method::POST,
            "/api/v1/cert/rotate",
            admin,
            post(cert::rotate),
        ),
        (
            Method::POST,
            "/api/v1/cert/revoke",
            admin,
            post(cert::revoke),
        ),
        (
            Method::POST,
            "/api/v1/cert/release",
            admin,
            post(cert::release),
        ),
        (Method::GET, "/api/v1/cert/tokens", admin, get(cert::tokens)),
        (
            Method::POST,
            "/api/v1/cert/token/revoke",
            admin,
            post(cert::revoke_token),
        ),
        (
            Method::POST,
            "/api/v1/cert/token",
            Needs::Secret,
            post(cert::token),
        ),
        (
            Method::POST,
            "/api/v1/cert/sign",
            Needs::Secret,
            post(cert::sign),
        ),
        (
            Method::POST,
            "/api/v1/cert/intermediate",
            Needs::Secret,
            post(cert::intermediate),
        ),
        (Method::GET, "/api/v1/me", viewer, get(user::me)),
        (Method::POST, "/api/v1/login", Needs::Tls, post(user::login)),
        (
            Method::POST,
            "/api/v1/logout",
            Needs::Nothing,
            post(user::logout),
        ),
        (
            Method::GET,
            "/api/v1/users",
            Needs::Role(Role::Admin),
            get(user::list),
        ),
        (
            Method::POST,
            "/api/v1/users",
            Needs::Secret,
            post(user::add),
        ),
        (
            Method::DELETE,
            "/api/v1/users/{name}",
            Needs::Secret,
            delete(user::remove),
        ),
    ]
}

/// All routes, behind the checks.
pub fn router(api: Api) -> Router {
    let router = routes()
        .into_iter()
        .fold(Router::new(), |router, (_, path, needs, handler)| {
            // What a route needs is asked once its path is known.
            let asked = middleware::from_fn_with_state((api.clone(), needs), ask);
            router.route(path, handler.route_layer(asked))
        });
    router
        .fallback(|| async {
            Failure::new(StatusCode::NOT_FOUND, "there is no such path")
                .hint("GET /openapi.json lists all")
        })
        .method_not_allowed_fallback(|| async {
            Failure::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not take that method",
            )
            .hint("GET /openapi.json lists all")
        })
        .layer(DefaultBodyLimit::disable()) // bodies are read, and limited, in one place: `write`
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

/// What a route needs, of whoever came in by this connection with this token.
async fn ask(
    State((api, needs)): State<(Api, Needs)>,
    mut request: Request,
    next: Next,
) -> Response {
    let who = arrived(&request);
    let token = user::token(request.headers());
    match api.inner.access.judge(&who, token, needs) {
        Ok(who) => {
            let arrival = request.extensions().get::<Arrival>();
            if let (Who::User { .. }, Some(arrival)) = (&who, arrival) {
                arrival.standing.proven();
            }
            request.extensions_mut().insert(who);
            next.run(request).await
        }
        Err(refused) => {
            let peer = request.extensions().get::<Arrival>().and_then(|a| a.remote);
            let path = request.uri().path();
            if api.inner.access.refusals().may_tell() {
                tracing::info!(
                    ?peer,
                    path,
                    reason = refused.as_str(),
                    "a request is refused"
                );
            }
            denied(refused).into_response()
        }
    }
}

/// Nobody where nothing is known of the connection.
fn arrived(request: &Request) -> Who {
    let arrival = request.extensions().get::<Arrival>();
    arrival.map_or(Who::Nobody, |arrival| arrival.who.clone())
}

fn denied(denied: Denied) -> Failure {
    let status = match denied.is_unproven() {
        true => StatusCode::UNAUTHORIZED,
        false => StatusCode::FORBIDDEN,
    };
    Failure::new(status, denied.to_string()).hint(denied.hint())
}

async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    let via = match arrived(&request) {
        Who::Open => Via::Plain(api.inner.address),
        _ => Via::Tls,
    };
    let checked = check(request.method(), request.headers(), via);
    let absolute = request.uri().authority().map(|host| host.as_str());
    let checked = checked.and_then(|()| match absolute {
        Some(host) if !via.is_ours(host) => Err(not_ours(host)),
        _ => Ok(()),
    });
    if let Err(failure) = checked {
        return failure.into_response();
    }
    let mut response = next.run(request).await;
    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer realm=\"phalanx\"");
        headers.insert(header::WWW_AUTHENTICATE, bearer);
    }
    response
}

/// How a request came in, as far as its Host and Origin are concerned.
#[derive(Clone, Copy, Debug)]
enum Via {
    /// To this bound address.
    Plain(SocketAddr),
    /// By whatever name: a page of another site would have been refused its certificate.
    Tls,
}

impl Via {
    fn is_ours(self, host: &str) -> bool {
        match self {
            Self::Plain(bound) => is_ours(host, bound),
            Self::Tls => !host.is_empty(),
        }
    }

    fn scheme(self) -> &'static str {
        match self {
            Self::Plain(_) => "http",
            Self::Tls => "https",
        }
    }
}

fn check(method: &Method, headers: &HeaderMap, via: Via) -> Result<(), Failure> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let host = text(header::HOST).unwrap_or_default();
    for name in [header::HOST, header::ORIGIN, header::CONTENT_TYPE] {
        if headers.get_all(&name).iter().count() > 1 {
            let error = format!("more than one {name} header");
            return Err(Failure::new(StatusCode::BAD_REQUEST, error).hint("send one"));
        }
    }
    if !via.is_ours(host) {
        return Err(not_ours(host));
    }
    let ours = format!("{}://{host}", via.scheme());
    if let Some(origin) = text(header::ORIGIN).filter(|origin| *origin != ours) {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            format!("origin `{origin}` is another site"),
        )
        .hint("only pages of this control plane may ask"));
    }
    if *method != Method::GET && *method != Method::HEAD {
        let kind = text(header::CONTENT_TYPE).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("content type `{kind}` is not taken"),
            )
            .hint("send application/json"));
        }
    }
    Ok(())
}

fn not_ours(host: &str) -> Failure {
    let error = format!("host `{host}` is not this control plane");
    Failure::new(StatusCode::FORBIDDEN, error).hint("ask by a loopback address or localhost")
}

/// A loopback name or address, or the bound address; whatever the port.
fn is_ours(host: &str, bound: SocketAddr) -> bool {
    let (name, rest) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, rest)) => (name, rest),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = |rest: &str| {
        rest.strip_prefix(':')
            .is_some_and(|p| p.parse::<u16>().is_ok())
    };
    let address = name.parse::<std::net::IpAddr>();
    let is_known = name.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|ip| ip.is_loopback() || ip == bound.ip());
    is_known && (rest.is_empty() || is_port(rest))
}

#[cfg(test)]
mod tests;
