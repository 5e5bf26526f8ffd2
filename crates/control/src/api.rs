//! The admin API over HTTP: bodies are `client::api`'s, described in `api/openapi.json`.
//!
//! State changes only by POST with a JSON body; the Host has to be this machine's loopback and an Origin, if there is one,
//! the same, so that no web page elsewhere can reach in (DNS rebinding). Every error is JSON with a hint.

mod answer;
mod around;
mod backup;
mod canary;
mod health;
mod operate;
mod read;
mod status;
mod write;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use phalanx_store::Store;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use self::answer::Failure;
use crate::admit::Admission;
use crate::console;
use crate::discovery::{Canaries, Fleet, Loads};
use crate::dns;
use crate::health::Health;
use crate::import::{self, Imports};
use crate::observe::Observe;
use crate::registry::Registry;
use crate::snapshot::Published;
use crate::world::World;

/// What the handlers read and write; cheap to clone.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    admission: Arc<Admission>,
    canaries: Canaries,
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
        admission: Arc<Admission>,
        canaries: Canaries,
        store: Store,
        worlds: Receiver<Arc<World>>,
        published: Receiver<Arc<Published>>,
        registry: Registry,
        observe: Observe,
        fleet: Fleet,
        loads: Loads,
        health: Health,
        dns: Option<Arc<dns::Counts>>,
        address: SocketAddr,
        stop: CancellationToken,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                admission,
                canaries,
                missed: Mutex::default(),
                store,
                worlds,
                published,
                registry,
                observe,
                fleet,
                loads,
                health,
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

/// Every route once; the OpenAPI document is checked against this list.
fn routes() -> Vec<(Method, &'static str, MethodRouter<Api>)> {
    vec![
        (Method::GET, "/", get(console::page)),
        (Method::GET, "/healthz", get(read::healthz)),
        (Method::GET, "/readyz", get(read::readyz)),
        (Method::GET, "/metrics", get(read::metrics)),
        (Method::GET, "/openapi.json", get(read::openapi)),
        (Method::POST, "/api/v1/apply", post(write::apply)),
        (Method::POST, "/api/v1/delete", post(write::delete)),
        (Method::POST, "/api/v1/rollback", post(write::rollback)),
        (Method::POST, "/api/v1/release", post(operate::release)),
        (Method::POST, "/api/v1/drain", post(operate::drain)),
        (Method::POST, "/api/v1/refused", post(operate::refused)),
        (Method::POST, "/api/v1/backup", post(backup::take)),
        (Method::GET, "/api/v1/canary", get(canary::show)),
        (Method::POST, "/api/v1/canary", post(canary::decide)),
        (
            Method::GET,
            "/api/v1/canary/evidence",
            get(canary::evidence),
        ),
        (Method::GET, "/api/v1/documents", get(read::documents)),
        (
            Method::GET,
            "/api/v1/documents/{kind}/{namespace}/{name}",
            get(read::document),
        ),
        (Method::GET, "/api/v1/status", get(status::status)),
        (Method::GET, "/api/v1/history", get(read::history)),
        (Method::GET, "/api/v1/proxies", get(read::proxies)),
        (Method::GET, "/api/v1/instances", get(read::instances)),
        (Method::GET, "/api/v1/health", get(health::health)),
        (Method::GET, "/api/v1/edges", get(read::edges)),
        (Method::GET, "/api/v1/loads", get(read::loads)),
    ]
}

/// All routes, behind the checks.
pub fn router(api: Api) -> Router {
    let router = routes()
        .into_iter()
        .fold(Router::new(), |router, (_, path, handler)| {
            router.route(path, handler)
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

async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    let checked = check(request.method(), request.headers(), api.inner.address);
    let absolute = request.uri().authority().map(|host| host.as_str());
    let checked = checked.and_then(|()| match absolute {
        Some(host) if !is_ours(host, api.inner.address) => Err(not_ours(host)),
        _ => Ok(()),
    });
    if let Err(failure) = checked {
        return failure.into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn check(method: &Method, headers: &HeaderMap, bound: SocketAddr) -> Result<(), Failure> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let host = text(header::HOST).unwrap_or_default();
    if headers.get_all(header::HOST).iter().count() > 1 {
        let error = "more than one host header";
        return Err(Failure::new(StatusCode::BAD_REQUEST, error).hint("send one"));
    }
    if !is_ours(host, bound) {
        return Err(not_ours(host));
    }
    if let Some(origin) = text(header::ORIGIN).filter(|origin| *origin != format!("http://{host}"))
    {
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
