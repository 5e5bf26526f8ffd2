//! Rollouts: how far they are, and orders by hand.

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use phalanx_client::api::{RolloutFigures, RolloutOrder, RolloutView, Rollouts};

use super::Api;
use super::answer::{Failure, Params};
use super::write::read;
use crate::access::Who;
use crate::discovery::others;
use crate::rollout::{Command, OrderError, Wanted};

pub async fn list(State(api): State<Api>, query: RawQuery) -> Result<Json<Rollouts>, Failure> {
    let params = Params::parse(query, &["namespace", "here"])?;
    let mut rollouts = api.inner.rollouts.views(params.text("namespace"));
    if params.text("here").is_none() {
        complete(&api, &mut rollouts).await;
    }
    Ok(Json(Rollouts { rollouts }))
}

pub async fn show(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<RolloutView>, Failure> {
    let view = api.inner.rollouts.view_of(&namespace, &name);
    let mut view = [view.ok_or_else(|| unknown(&namespace, &name))?];
    complete(&api, &mut view).await;
    let [view] = view;
    Ok(Json(view))
}

pub async fn order(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    Path((namespace, name)): Path<(String, String)>,
    body: Body,
) -> Result<Json<RolloutView>, Failure> {
    let order: RolloutOrder = read(body).await?;
    let Some(command) = Command::parse(&order.command) else {
        let error = format!("`{}` is nothing to do with a rollout", order.command);
        let known: Vec<_> = Command::ALL.iter().map(|(name, _)| *name).collect();
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error)
            .hint(format!("known are {}", known.join(", "))));
    };
    let message = order.message.unwrap_or_default();
    crate::admit::check_texts(&order.author, Some(&message))?;
    let author = who.author(&order.author);
    let wanted = Wanted {
        namespace: &namespace,
        name: &name,
        command,
        author: &author,
        message: &message,
        expect: order.expect,
    };
    api.inner.rollouts.order(wanted).await.map_err(failure)?;
    let view = api.inner.rollouts.view_of(&namespace, &name);
    view.map(Json).ok_or_else(|| unknown(&namespace, &name))
}

pub async fn figures(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<RolloutFigures>, Failure> {
    let params = Params::parse(query, &["services"])?;
    let services = params.text("services").unwrap_or_default().split(',');
    let services: Vec<String> = services.map(str::to_owned).collect();
    Ok(Json(api.inner.rollouts.figures(&services)))
}

/// Takes from the other control planes what only they know of those that they drive.
async fn complete(api: &Api, views: &mut [RolloutView]) {
    let (world, planes) = (api.world(), api.inner.registry.planes());
    for (name, _, client) in others(&world, planes) {
        let (Ok(client), true) = (client, views.iter().any(|view| view.plane == name)) else {
            continue;
        };
        let told = client.rollouts_here().await;
        for view in views.iter_mut().filter(|view| view.plane == name) {
            let same = |other: &&RolloutView| {
                (&other.namespace, &other.name) == (&view.namespace, &view.name)
            };
            match &told {
                Ok(told) => {
                    let Some(known) = told.rollouts.iter().find(same) else {
                        continue;
                    };
                    view.waiting.clone_from(&known.waiting);
                    view.seen.clone_from(&known.seen);
                    view.problems.extend(known.problems.iter().cloned());
                }
                Err(error) => {
                    let problem =
                        format!("control plane {name}, which drives it, can't be asked: {error}");
                    view.problems.push(problem);
                }
            }
        }
    }
}

fn unknown(namespace: &str, name: &str) -> Failure {
    let error = format!("Rollout {namespace}/{name} does not exist");
    Failure::new(StatusCode::NOT_FOUND, error).hint("`phalanx rollout list -A` lists all")
}

fn failure(error: OrderError) -> Failure {
    let text = error.to_string();
    match error {
        OrderError::Unknown { namespace, name } => unknown(&namespace, &name),
        OrderError::Senseless { .. } => Failure::new(StatusCode::CONFLICT, text)
            .hint("`phalanx rollout status NAME` shows how far it is"),
        OrderError::Moved { revision, .. } => {
            let mut failure = Failure::new(StatusCode::CONFLICT, text)
                .hint("look at how far it is (`phalanx rollout status NAME`), then try again");
            failure.body.revision = Some(revision);
            failure
        }
        OrderError::Store(source) => {
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, format!("{text}: {source}"))
                .hint("`phalanx status` says what is wrong with the store")
        }
    }
}
