//! What only looks.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use phalanx_client::api;
use phalanx_model::document::{DocumentId, Kind};
use phalanx_model::{InstanceId, InstancePort, ServiceName};
use tokio::time::{Instant, timeout_at};

use super::Api;
use super::answer::{Failure, Params};
use crate::admit::{unix_ms, unknown_kind};
use crate::discovery::{ProxyState, Refused};
use crate::metrics;
use crate::registry::leases::LeaseState;
use crate::world::{DocumentEntry, Registered};

pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Serving reads and streams, even while the store is read-only; a store that failed for good is not.
pub async fn readyz(State(api): State<Api>) -> Result<&'static str, Failure> {
    match api.inner.store.status().fatal {
        None => Ok("ok\n"),
        Some(reason) => Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the store has failed: {reason}"),
        )
        .hint("restart the control plane")),
    }
}

pub async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let inner = &api.inner;
    let text = metrics::write(
        &inner.store,
        &api.published(),
        &inner.registry,
        &inner.observe,
        &inner.fleet,
        inner.dns.as_deref(),
    );
    (
        [(
            header::CONTENT_TYPE,
            phalanx_telemetry::metrics::CONTENT_TYPE,
        )],
        text,
    )
}

pub async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

pub async fn documents(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<api::Documents>, Failure> {
    let params = Params::parse(query, &["kind", "namespace"])?;
    let kind = params.text("kind").map(kind).transpose()?;
    let world = api.world();
    let wanted = |id: &DocumentId| {
        kind.is_none_or(|kind| id.kind == kind)
            && params.text("namespace").is_none_or(|n| n == id.namespace)
    };
    let items = world
        .documents
        .values()
        .filter(|entry| wanted(&entry.id))
        .map(|entry| stored(entry))
        .collect();
    Ok(Json(api::Documents {
        revision: world.config_revision,
        items,
    }))
}

pub async fn document(
    State(api): State<Api>,
    Path((kind_text, namespace, name)): Path<(String, String, String)>,
    query: RawQuery,
) -> Result<Json<api::StoredDocument>, Failure> {
    Params::parse(query, &[])?;
    let id = DocumentId {
        kind: kind(&kind_text)?,
        namespace,
        name,
    };
    let world = api.world();
    let entry = world.documents.get(&id);
    entry
        .map(|entry| Json(stored(entry)))
        .ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, format!("{id} does not exist")))
}

fn kind(text: &str) -> Result<Kind, Failure> {
    let problem = |text| {
        let problem = unknown_kind(text);
        Failure::new(StatusCode::NOT_FOUND, problem.message).hint(problem.hint.unwrap_or_default())
    };
    Kind::parse(text).ok_or_else(|| problem(text))
}

fn stored(entry: &DocumentEntry) -> api::StoredDocument {
    api::StoredDocument {
        kind: entry.id.kind.as_str().to_owned(),
        namespace: entry.id.namespace.clone(),
        name: entry.id.name.clone(),
        created_ms: entry.created_ms,
        updated_ms: entry.updated_ms,
        revision: entry.revision,
        generation: entry.generation,
        document: entry.json.clone(),
    }
}

pub async fn status(State(api): State<Api>, query: RawQuery) -> Result<Json<api::Status>, Failure> {
    let params = Params::parse(query, &["revision", "wait_ms"])?;
    let stored = api.inner.store.revision();
    let target = params
        .number("revision")?
        .unwrap_or_else(|| api.world().revision);
    if target > stored {
        return Err(Failure::new(
            StatusCode::NOT_FOUND,
            format!("revision {target} does not exist yet, the store is at {stored}"),
        ));
    }
    let wait = Duration::from_millis(params.number("wait_ms")?.unwrap_or(0)).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    let mut changes = api.inner.fleet.changes();
    loop {
        changes.mark_unchanged();
        let is_settled =
            api.published().revision >= target && api.inner.fleet.reach(target).waiting.is_empty();
        if is_settled || Instant::now() >= deadline || api.inner.stop.is_cancelled() {
            return Ok(Json(status_of(&api, target)));
        }
        tokio::select! {
            () = api.inner.stop.cancelled() => {}
            _ = timeout_at(deadline, changes.changed()) => {}
        }
        // Acknowledgements come in crowds; looking at each would be the square of them.
        tokio::time::sleep(PAUSE).await;
    }
}

fn status_of(api: &Api, target: u64) -> api::Status {
    let (world, published) = (api.world(), api.published());
    let reach = api.inner.fleet.reach(target);
    let refused = api
        .inner
        .fleet
        .proxies()
        .iter()
        .flat_map(refusals)
        .collect();
    let of_world = world.quarantined.iter().map(|(id, q)| api::Quarantine {
        id: id.clone(),
        message: q.message.clone(),
        since_revision: q.since_revision,
    });
    let of_compile = published.findings.iter().map(|f| api::Quarantine {
        id: f.document.to_string(),
        message: f.message.clone(),
        since_revision: f.since_revision,
    });
    let now = unix_ms();
    let held = api.inner.registry.held().into_iter().map(|held| api::Held {
        namespace: held.id.service.namespace,
        service: held.id.service.name,
        id: held.id.id,
        since_ms: now.saturating_sub(held.age.as_millis() as u64),
        reason: HELD.to_owned(),
    });
    let store = api.inner.store.status();
    api::Status {
        revision: published.revision,
        config_revision: world.config_revision,
        target_revision: target,
        proxies: reach.proxies,
        applied: reach.applied,
        elapsed_ms: reach.elapsed.map(|elapsed| elapsed.as_secs_f64() * 1000.0),
        waiting: reach.waiting,
        refused,
        quarantined: of_world.chain(of_compile).collect(),
        held: held.collect(),
        read_only: store.fatal.or(store.read_only),
    }
}

fn refusals(proxy: &ProxyState) -> Vec<api::Refusal> {
    let refusal = |refused: &Refused| api::Refusal {
        node: proxy.node.id.clone(),
        resource: refused.resource.clone(),
        rule: refused.rule.clone(),
        message: refused.message.clone(),
        since_revision: refused.since_revision,
    };
    proxy.refused.iter().map(refusal).collect()
}

pub async fn history(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<api::History>, Failure> {
    let params = Params::parse(query, &["limit"])?;
    let limit = params
        .number("limit")?
        .unwrap_or(HISTORY_LIMIT)
        .clamp(1, crate::admit::HISTORY_MAX) as usize;
    let records = api.inner.admission.history(limit).await?;
    let entry = |(revision, sequence, record): (u64, u64, crate::world::record::HistoryRecord)| {
        api::HistoryEntry {
            revision,
            sequence,
            time_ms: record.time,
            author: record.author,
            message: record.message,
            changes: record
                .changes
                .into_iter()
                .map(|c| api::HistoryChange {
                    id: c.id,
                    before: c.before,
                    after: c.after,
                })
                .collect(),
        }
    };
    Ok(Json(api::History {
        revision: api.world().config_revision,
        entries: records.into_iter().map(entry).collect(),
    }))
}

pub async fn proxies(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<api::Proxies>, Failure> {
    Params::parse(query, &[])?;
    let item = |proxy: ProxyState| api::Proxy {
        refusals: refusals(&proxy),
        memory_bytes: api.inner.observe.memory(&proxy.node.id),
        node: proxy.node.id,
        namespace: proxy.node.service.namespace,
        service: proxy.node.service.name,
        version: proxy.node.version,
        zone: proxy.node.zone,
        instance: proxy.node.instance,
        agent: proxy.node.agent,
        peer: proxy.peer,
        protocol: proxy.protocol.to_owned(),
        connected_ms: proxy.connected_ms,
        target_revision: proxy.target,
        acked_revision: proxy.acked,
    };
    let items = api.inner.fleet.proxies().into_iter().map(item).collect();
    Ok(Json(api::Proxies {
        revision: api.published().revision,
        items,
    }))
}

pub async fn instances(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<api::Instances>, Failure> {
    let params = Params::parse(query, &["service", "namespace"])?;
    let world = api.world();
    let connected: BTreeSet<InstanceId> = api
        .inner
        .fleet
        .proxies()
        .into_iter()
        .map(|p| InstanceId {
            service: p.node.service,
            id: p.node.instance,
        })
        .collect();
    let wanted = |registered: &&std::sync::Arc<Registered>| {
        let service = &registered.instance.id.service;
        params.text("service").is_none_or(|s| s == service.name)
            && params
                .text("namespace")
                .is_none_or(|n| n == service.namespace)
    };
    let item = |registered: &std::sync::Arc<Registered>| {
        let instance = &registered.instance;
        let (state, lease_ms) = match api.inner.registry.state(&instance.id) {
            Some(LeaseState::Live { left_ms }) => ("live", left_ms),
            Some(LeaseState::Held { .. }) => ("held", 0),
            None => ("leaving", 0),
        };
        api::InstanceView {
            namespace: instance.id.service.namespace.clone(),
            service: instance.id.service.name.clone(),
            id: instance.id.id.clone(),
            version: instance.version().to_owned(),
            zone: instance.zone.clone(),
            weight: instance.weight,
            labels: instance.labels.clone(),
            ports: instance.ports.iter().map(port).collect(),
            proxy_admin: instance.proxy_admin.clone(),
            state: state.to_owned(),
            lease_ms,
            connected: connected.contains(&instance.id),
        }
    };
    let items = world.instances.iter().filter(wanted).map(item).collect();
    Ok(Json(api::Instances {
        revision: world.revision,
        items,
    }))
}

fn port(port: &InstancePort) -> api::PortView {
    api::PortView {
        name: port.name.clone(),
        number: port.number,
        address: port.address.to_string(),
        protocol: port.protocol.as_str().to_owned(),
    }
}

pub async fn edges(State(api): State<Api>, query: RawQuery) -> Result<Json<api::Edges>, Failure> {
    let params = Params::parse(query, &["window_s"])?;
    let window = Duration::from_secs(params.number("window_s")?.unwrap_or(WINDOW_S));
    let mut edges = api.inner.observe.edges(window);
    let world = api.world();
    for edge in edges.edges.iter_mut().chain(&mut edges.totals) {
        let service = ServiceName::new(&edge.destination_namespace, &edge.destination);
        edge.destination_app = world.app(&service).to_owned();
    }
    Ok(Json(edges))
}

const OPENAPI: &str = include_str!("openapi.json");
/// Of one long poll.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Between two looks of a long poll.
const PAUSE: Duration = Duration::from_millis(5);
const HISTORY_LIMIT: u64 = 50;
const WINDOW_S: u64 = 10;
const HELD: &str = "its lease is over, but with it most of the service would go at once by expiry alone; it is served until it beats again, is deregistered, or others have taken over";
