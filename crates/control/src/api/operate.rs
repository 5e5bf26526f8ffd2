//! What operators do about instances: drain one, let a held service go.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use phalanx_client::api::{
    DrainRequest, DrainResponse, ENDPOINTS_MAX, RefusedRequest, RefusedResponse, ReleaseRequest,
    ReleaseResponse,
};
use phalanx_model::{InstanceId, ServiceName};

use super::Api;
use super::answer::Failure;
use super::write::read;
use crate::access::Who;
use crate::registry::{Drain, OperateError};
use crate::world::World;
use crate::world::record::Handover;

pub async fn release(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<ReleaseResponse>, Failure> {
    let mut request: ReleaseRequest = read(body).await?;
    request.author = who.author(&request.author);
    let service = ServiceName::parse(&request.namespace, &request.service)
        .map_err(|e| Failure::new(StatusCode::BAD_REQUEST, e.to_string()))?;
    let (revision, released) = api
        .inner
        .registry
        .release(&service, &request.author)
        .await?;
    Ok(Json(ReleaseResponse {
        revision,
        released: released.into_iter().map(|id| id.id).collect(),
    }))
}

pub async fn drain(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<DrainResponse>, Failure> {
    let mut request: DrainRequest = read(body).await?;
    request.author = who.author(&request.author);
    let id = find(&api.world(), &request)?;
    let drain = match request.undo {
        true => Drain::Undo,
        false => Drain::Begin {
            grace: request.grace_ms.map(Duration::from_millis),
            handover: handover(&request)?,
        },
    };
    let registry = &api.inner.registry;
    let revision = registry.drain(&id, drain, &request.author).await?;
    let world = api.world();
    let traffic = world.instances.get(&id).map(|known| known.state);
    Ok(Json(DrainResponse {
        revision,
        namespace: id.service.namespace,
        service: id.service.name,
        id: id.id,
        traffic: traffic.unwrap_or_default().as_str().to_owned(),
    }))
}

fn handover(request: &DrainRequest) -> Result<Option<(Handover, Option<u32>)>, Failure> {
    let refuse = |error: String| Err(Failure::new(StatusCode::BAD_REQUEST, error));
    let rate = request.reconnects_per_second;
    if rate == Some(0) {
        return refuse("`reconnects_per_second` is at least 1".to_owned());
    }
    match request.handover.as_deref() {
        None | Some("none") if rate.is_some() => {
            refuse("`reconnects_per_second` is of a handover, and there is none".to_owned())
        }
        None | Some("none") => Ok(None),
        Some(text) => match Handover::parse(text) {
            Some(what) => Ok(Some((what, rate))),
            None => refuse(format!(
                "`handover` is `move`, `release` or `none`, not `{text}`"
            )),
        },
    }
}

/// Another control plane asks what callers found out here about what it holds.
pub async fn refused(State(api): State<Api>, body: Body) -> Result<Json<RefusedResponse>, Failure> {
    let request: RefusedRequest = read(body).await?;
    if request.endpoints.len() > ENDPOINTS_MAX {
        let error = format!("more than {ENDPOINTS_MAX} endpoints at once");
        return Err(Failure::new(StatusCode::BAD_REQUEST, error));
    }
    let refused = api.inner.registry.witnessed(&request.endpoints);
    Ok(Json(RefusedResponse { refused }))
}

/// By the whole name, or by the id alone where only one instance has it. One that is drained need not be registered.
fn find(world: &World, request: &DrainRequest) -> Result<InstanceId, Failure> {
    if let Some(service) = &request.service {
        return Ok(InstanceId {
            service: ServiceName::new(&request.namespace, service),
            id: request.instance.clone(),
        });
    }
    let is_meant =
        |id: &InstanceId| id.service.namespace == request.namespace && id.id == request.instance;
    let known = world.instances.namespace(&request.namespace);
    let registered = known
        .into_iter()
        .flat_map(|services| services.values())
        .filter_map(|instances| instances.get(&request.instance))
        .map(|known| known.instance.id.clone());
    let drained = world.drains.keys().filter(|id| is_meant(id)).cloned();
    let mut found: Vec<InstanceId> = registered.chain(drained).collect();
    found.sort_unstable();
    found.dedup();
    match <[InstanceId; 1]>::try_from(found) {
        Ok([id]) => Ok(id),
        Err(found) if found.is_empty() => {
            let error = format!(
                "no instance `{}` is registered in namespace {}",
                request.instance, request.namespace
            );
            Err(Failure::new(StatusCode::NOT_FOUND, error)
                .hint("`phalanx instances` lists them; -n takes another namespace"))
        }
        Err(found) => {
            let names: Vec<String> = found
                .iter()
                .map(|id| format!("{}/{}", id.service.name, id.id))
                .collect();
            let error = format!("several services have an instance `{}`", request.instance);
            Err(Failure::new(StatusCode::CONFLICT, error)
                .hint(format!("say which: {}", names.join(", "))))
        }
    }
}

impl From<OperateError> for Failure {
    fn from(error: OperateError) -> Self {
        let text = error.to_string();
        match error {
            OperateError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, text)
                .hint("`phalanx instances` lists those that are registered"),
            OperateError::NotDrained(_) => Self::new(StatusCode::NOT_FOUND, text)
                .hint("`phalanx instances` shows which are, and by whom"),
            OperateError::NothingHeld(_) => {
                Self::new(StatusCode::NOT_FOUND, text).hint("`phalanx status` lists what is held")
            }
            OperateError::TooMany => Self::new(StatusCode::CONFLICT, text)
                .hint("undo some: `phalanx drain INSTANCE --undo`"),
            OperateError::Store(source) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("{text}: {source}"))
                    .hint("nothing was changed; see `phalanx status`")
            }
        }
    }
}
