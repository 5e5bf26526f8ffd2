//! What only looks.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use phalanx_client::api;
use phalanx_model::document::{DocumentId, Kind};
use phalanx_model::{InstanceId, InstancePort, ServiceName};
use phalanx_pki::clock::UnixMillis;

use super::Api;
use super::answer::{Failure, Params};
use super::status::refusals;
use crate::admit::unknown_kind;
use crate::ca::InUse;
use crate::discovery::{Load, Place, ProxyState};
use crate::metrics;
use crate::registry::leases::LeaseState;
use crate::snapshot::Asks;
use crate::world::record::{CanaryStage, HistoryChange};
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
    let text = metrics::write(&metrics::Sources {
        store: &inner.store,
        published: &api.published(),
        registry: &inner.registry,
        observe: &inner.observe,
        fleet: &inner.fleet,
        loads: &inner.loads,
        health: &inner.health,
        dns: inner.dns.as_deref(),
        refusals: inner.access.refusals(),
        ca: inner.ca.as_ref(),
        limits: &inner.limits,
        sessions: &inner.sessions,
        rollouts: &inner.rollouts,
    });
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
    path: Result<Path<(String, String, String)>, PathRejection>,
    query: RawQuery,
) -> Result<Json<api::StoredDocument>, Failure> {
    let Path((kind_text, namespace, name)) =
        path.map_err(|wrong| Failure::new(StatusCode::BAD_REQUEST, wrong.body_text()))?;
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

pub async fn history(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<api::History>, Failure> {
    let params = Params::parse(query, &["limit", "revision"])?;
    let limit = params
        .number("limit")?
        .unwrap_or(HISTORY_LIMIT)
        .clamp(1, crate::admit::HISTORY_MAX) as usize;
    let records = match params.number("revision")? {
        Some(revision) => {
            let found = api.inner.admission.history_at(revision).await?;
            let found = found.ok_or_else(|| {
                let error = format!("the history has no change of revision {revision}");
                Failure::new(StatusCode::NOT_FOUND, error).hint("`phalanx history` lists them")
            });
            vec![found?]
        }
        None => api.inner.admission.history(limit).await?,
    };
    let entry = |(revision, sequence, record): (u64, u64, crate::world::record::HistoryRecord)| {
        api::HistoryEntry {
            revision,
            sequence,
            time_ms: record.time,
            author: record.author,
            message: record.message,
            changes: record.changes.into_iter().map(change).collect(),
            canary: record
                .canary
                .as_ref()
                .map(|step| stage(step.stage).to_owned()),
            tried: record
                .canary
                .map(|step| step.tried.into_iter().map(change).collect())
                .unwrap_or_default(),
        }
    };
    Ok(Json(api::History {
        revision: api.world().config_revision,
        entries: records.into_iter().map(entry).collect(),
    }))
}

fn change(change: HistoryChange) -> api::HistoryChange {
    api::HistoryChange {
        id: change.id,
        before: change.before,
        after: change.after,
    }
}

fn stage(stage: CanaryStage) -> &'static str {
    match stage {
        CanaryStage::Started => "started",
        CanaryStage::Promoted => "promoted",
        CanaryStage::Back => "back",
    }
}

pub async fn proxies(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<api::Proxies>, Failure> {
    let params = Params::parse(query, &["asks"])?;
    let is_asked = params.number("asks")? == Some(1);
    let told = |asks: &Asks| {
        asks.iter()
            .map(|(kind, name)| format!("{kind} {name}"))
            .collect()
    };
    let ca = api.inner.ca.as_ref();
    let known = ca.map(|ca| (ca, ca.successors()));
    let certificate = |proxy: &ProxyState| {
        let (ca, successors) = known.as_ref()?;
        Some(certificate(
            &ca.in_use(successors, proxy.certificate.as_ref()?),
        ))
    };
    let item = |proxy: ProxyState| api::Proxy {
        certificate: certificate(&proxy),
        asks: proxy.asks.as_deref().filter(|_| is_asked).map(told),
        refusals: refusals(&proxy),
        memory_bytes: api.inner.observe.memory(&proxy.node.id),
        admin: (proxy.node.edge.as_ref().and_then(|edge| edge.admin))
            .map(|admin| admin.to_string()),
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

pub(super) fn certificate(in_use: &InUse) -> api::ProxyCertificate {
    let ms = |at: UnixMillis| u64::try_from(at.0).unwrap_or_default();
    api::ProxyCertificate {
        serial: in_use.serial.to_string(),
        not_before_ms: ms(in_use.not_before),
        not_after_ms: ms(in_use.not_after),
        late: in_use.late,
    }
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
    let held = api.imports().map(|found| found.held).unwrap_or_default();
    let held: BTreeSet<InstanceId> = held.into_iter().map(|(id, _)| id).collect();
    let wanted = |registered: &&std::sync::Arc<Registered>| {
        let service = &registered.instance.id.service;
        params.text("service").is_none_or(|s| s == service.name)
            && params
                .text("namespace")
                .is_none_or(|n| n == service.namespace)
    };
    let item = |registered: &std::sync::Arc<Registered>| {
        let instance = &registered.instance;
        let is_held_import = || held.contains(&instance.id);
        let (state, lease_ms) = match api.inner.registry.state(&instance.id) {
            None if registered.is_imported() && is_held_import() => ("held", 0),
            None if registered.is_imported() => ("live", 0),
            Some(LeaseState::Live { left_ms }) => ("live", left_ms),
            Some(LeaseState::Held { .. }) => ("held", 0),
            None if !api.inner.registry.watches(&world, registered) => ("live", 0),
            None => ("leaving", 0),
        };
        let (health, health_reason) = super::health::of_instance(&world, instance);
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
            traffic: registered.state.as_str().to_owned(),
            drained_by: world
                .drains
                .get(&instance.id)
                .map(|drain| drain.author.clone())
                .unwrap_or_default(),
            sessions: api.inner.sessions.count_of(&instance.id) as u64,
            plane: registered.plane.clone(),
            connected: connected.contains(&instance.id),
            source: if registered.is_imported() {
                "etcd"
            } else {
                "registry"
            }
            .to_owned(),
            health: health.to_owned(),
            health_reason,
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

pub async fn comparisons(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<api::Comparisons>, Failure> {
    let params = Params::parse(query, &["route"])?;
    Ok(Json(api.inner.observe.comparisons(params.text("route"))))
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

pub async fn loads(State(api): State<Api>, query: RawQuery) -> Result<Json<api::Loads>, Failure> {
    Params::parse(query, &[])?;
    let summary = api.inner.loads.summary();
    let item = |(place, load, age): (Place, Load, Duration)| api::Load {
        cluster: place.cluster,
        region: place.region,
        zone: place.zone,
        sub_zone: place.sub_zone,
        issued: load.issued,
        succeeded: load.succeeded,
        failed: load.failed,
        in_progress: load.in_progress,
        reporters: load.reporters,
        age_ms: age.as_millis() as u64,
    };
    let refused = |(cluster, requests)| api::LoadRefused { cluster, requests };
    Ok(Json(api::Loads {
        interval_ms: summary.interval.as_millis() as u64,
        streams: summary.streams as u64,
        reports: summary.reports,
        dropped: summary.dropped,
        items: summary.places.into_iter().map(item).collect(),
        refused: summary.refused.into_iter().map(refused).collect(),
    }))
}

const OPENAPI: &str = include_str!("openapi.json");
const HISTORY_LIMIT: u64 = 50;
const WINDOW_S: u64 = 10;
