//! What active health checks found out. The verdicts are the world's, so every control plane shows the same; who says what
//! is known only to the one that sees to the endpoint.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{RawQuery, State};
use phalanx_client::api;
use phalanx_model::{Instance, ServiceName};

use super::Api;
use super::answer::{Failure, Params};
use crate::health::View;
use crate::world::{Verdict, World};

pub async fn health(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<api::HealthViews>, Failure> {
    let params = Params::parse(query, &["service", "namespace"])?;
    let world = api.world();
    let wanted = |service: &ServiceName| {
        params.text("service").is_none_or(|s| s == service.name)
            && params
                .text("namespace")
                .is_none_or(|n| n == service.namespace)
    };
    let own = api.inner.health.views();
    let is_own = |service: &ServiceName, address: &SocketAddr| {
        own.binary_search_by(|view| (&view.service, &view.address).cmp(&(service, address)))
            .is_ok()
    };
    let others = world.health.iter().flat_map(|(service, of)| {
        of.iter()
            .map(move |(address, verdict)| (service, address, verdict))
    });
    let others = others
        .filter(|(service, address, _)| !is_own(service, address))
        .map(|(service, address, verdict)| of_other(service, address, verdict));
    let mut items: Vec<_> = own.iter().map(of_own).chain(others).collect();
    items.retain(|item| wanted(&ServiceName::new(&item.namespace, &item.service)));
    items.sort_by(|a, b| {
        (&a.namespace, &a.service, &a.address).cmp(&(&b.namespace, &b.service, &b.address))
    });
    Ok(Json(api::HealthViews {
        revision: world.revision,
        checkers: api.inner.health.gauges().checkers,
        items,
    }))
}

fn of_own(view: &View) -> api::EndpointHealth {
    let opinions = view.checkers.iter().map(|opinion| api::Opinion {
        checker: opinion.checker.clone(),
        state: opinion.state.as_str().to_owned(),
        reason: opinion.reason.clone(),
    });
    api::EndpointHealth {
        namespace: view.service.namespace.clone(),
        service: view.service.name.clone(),
        address: view.address.to_string(),
        zone: view.zone.clone(),
        instance: view.instance.clone(),
        state: view.state.as_str().to_owned(),
        reason: view.reason.clone(),
        by: view.by.clone(),
        since_ms: view.since_ms,
        checkers: opinions.collect(),
    }
}

fn of_other(service: &ServiceName, address: &SocketAddr, verdict: &Verdict) -> api::EndpointHealth {
    api::EndpointHealth {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        address: address.to_string(),
        state: verdict.word().to_owned(),
        reason: verdict.reason.clone(),
        by: verdict.by.clone(),
        since_ms: verdict.since_ms,
        ..api::EndpointHealth::default()
    }
}

/// `unhealthy` and why, when a service that the instance serves finds it so at one of its addresses; else nothing is wrong.
pub fn of_instance(world: &World, instance: &Instance) -> (&'static str, String) {
    let of_namespace = world
        .health
        .iter()
        .filter(|(service, _)| service.namespace == instance.id.service.namespace);
    // Several services may select an instance; verdicts are few.
    let found = of_namespace.flat_map(|(service, verdicts)| {
        let addresses = instance.ports.iter().map(|port| &port.address);
        addresses
            .filter_map(|address| verdicts.get(address))
            .map(move |verdict| (service, verdict))
    });
    let mut unhealthy = found.filter(|(_, verdict)| verdict.is_unhealthy());
    match unhealthy.next() {
        Some((service, verdict)) => (
            verdict.word(),
            format!("{service}: {} (says {})", verdict.reason, verdict.by),
        ),
        None => ("healthy", String::new()),
    }
}
