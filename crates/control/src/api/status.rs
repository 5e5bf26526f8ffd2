//! How far a revision is, over every proxy of every control plane of the store: who has it, who waits, who refuses and why.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use phalanx_client::api::{self, PlaneView};
use tokio::time::{Instant, timeout, timeout_at};

use super::Api;
use super::answer::{Failure, Params};
use super::around::Peer;
use super::read::certificate;
use crate::admit::{told_finding, unix_ms};
use crate::discovery::{ProxyState, Refused};
use crate::import::View;
use crate::registry::leases::LeaseState;

/// When each registered sidecar without a stream was first missed.
pub type Missed = HashMap<String, Instant>;

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
    // Whoever was told that a change is taken sees what became of it: a world is compiled a moment after it is read.
    let read = api.world().revision;
    let mut published = api.inner.published.clone();
    let compiled = published.wait_for(|published| published.revision >= read);
    let _ = timeout(COMPILE_MAX, compiled).await;
    let wait = Duration::from_millis(params.number("wait_ms")?.unwrap_or(0)).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    let mut changes = api.inner.fleet.changes();
    loop {
        changes.mark_unchanged();
        let is_last = Instant::now() >= deadline || api.inner.stop.is_cancelled();
        let is_here =
            api.published().revision >= target && api.inner.fleet.reach(target).waiting.is_empty();
        let mut next = deadline;
        if is_here || is_last {
            let status = of(&api, target).await;
            if is_last || (status.waiting.is_empty() && status.planes.iter().all(is_asked)) {
                return Ok(Json(status));
            }
            // What is awaited now makes no change here.
            next = next.min(Instant::now() + ELSEWHERE);
        }
        tokio::select! {
            () = api.inner.stop.cancelled() => {}
            _ = timeout_at(next, changes.changed()) => {}
        }
        // Acknowledgements come in crowds; looking at each would be the square of them.
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_asked(plane: &PlaneView) -> bool {
    plane.error.is_none()
}

async fn of(api: &Api, target: u64) -> api::Status {
    let peers = api.ask_peers(|admin| async move { admin.proxies().await });
    let peers = peers.await;
    let (world, published) = (api.world(), api.published());
    let reach = api.inner.fleet.reach(target);
    let proxies = api.inner.fleet.proxies();
    let mut connected: BTreeSet<String> = proxies.iter().map(|p| p.node.id.clone()).collect();
    let store = api.inner.store.status();
    let now = unix_ms();
    let held = api.inner.registry.held().into_iter().map(|held| api::Held {
        namespace: held.id.service.namespace,
        service: held.id.service.name,
        id: held.id.id,
        since_ms: now.saturating_sub(held.age.as_millis() as u64),
        reason: HELD.to_owned(),
    });
    let found = api.imports();
    let held_keys = found
        .iter()
        .flat_map(|found| &found.held)
        .map(|(id, age)| api::Held {
            namespace: id.service.namespace.clone(),
            service: id.service.name.clone(),
            id: id.id.clone(),
            since_ms: now.saturating_sub(age.as_millis() as u64),
            reason: HELD_KEY.to_owned(),
        });
    let quarantined = world.quarantined.iter().map(|(id, q)| api::Quarantine {
        id: id.clone(),
        message: q.message.clone(),
        since_revision: q.since_revision,
    });
    let canary = api.inner.canaries.status();
    let mut status = api::Status {
        revision: published.revision,
        config_revision: world.config_revision,
        target_revision: target,
        proxies: reach.proxies,
        applied: reach.applied,
        elapsed_ms: reach.elapsed.map(|elapsed| elapsed.as_secs_f64() * 1000.0),
        waiting: reach.waiting,
        refused: proxies.iter().flat_map(refusals).collect(),
        quarantined: quarantined.collect(),
        findings: published.findings.iter().map(told_finding).collect(),
        held: held.chain(held_keys).collect(),
        services: found.as_ref().map(services),
        unhealthy: api.inner.health.unhealthy(&world),
        read_only: store.fatal.or(store.read_only),
        canary: canary.current,
        last_canary: canary.last,
        ..api::Status::default()
    };
    if !peers.is_empty() {
        status.planes.push(PlaneView {
            name: api.inner.registry.planes().name().to_owned(),
            admin: api.inner.address.to_string(),
            proxies: status.proxies,
            applied: status.applied,
            error: None,
        });
    }
    status.late_certificates = late(api);
    for peer in peers {
        add(&mut status, &mut connected, target, peer);
    }
    missing(api, &mut status, &connected);
    status
}

/// The proxies' that are connected here, and our own.
fn late(api: &Api) -> Vec<api::LateCertificate> {
    let Some(ca) = &api.inner.ca else {
        return Vec::new();
    };
    let (successors, now_ms) = (ca.successors(), unix_ms());
    let proxies = api.inner.fleet.proxies();
    let of_proxies = proxies.iter().filter_map(|proxy| {
        let in_use = ca.in_use(&successors, proxy.certificate.as_ref()?);
        told_late(&proxy.node.id, &certificate(&in_use), now_ms)
    });
    let plane = format!("control plane {}", api.inner.registry.planes().name());
    let own = ca.own().credentials();
    let own = own.map(|own| certificate(&ca.in_use(&successors, own.peer())));
    let own = own.and_then(|own| told_late(&plane, &own, now_ms));
    of_proxies.chain(own).collect()
}

fn late_of(proxy: &api::Proxy, now_ms: u64) -> Option<api::LateCertificate> {
    told_late(&proxy.node, proxy.certificate.as_ref()?, now_ms)
}

fn told_late(
    node: &str,
    certificate: &api::ProxyCertificate,
    now_ms: u64,
) -> Option<api::LateCertificate> {
    certificate.late.then(|| api::LateCertificate {
        node: node.to_owned(),
        serial: certificate.serial.clone(),
        not_after_ms: certificate.not_after_ms,
        expired: certificate.not_after_ms <= now_ms,
    })
}

fn services(found: &View) -> api::ServicesFound {
    let problem = |(key, message): &(String, String)| api::ServicesProblem {
        key: key.clone(),
        message: message.clone(),
    };
    api::ServicesFound {
        etcd: found.url.clone(),
        prefix: found.prefix.clone(),
        services: found.services,
        instances: found.instances,
        ignored: found.ignored,
        problems: found.problems.iter().map(problem).collect(),
        trouble: found.trouble.clone(),
    }
}

const HELD_KEY: &str = "its key in etcd expired, and with it most of the service would go at once; it is served until its key is back, it refuses connections, or others have taken over";

/// Another control plane's proxies; one that moved and is on both counts once.
fn add(
    status: &mut api::Status,
    connected: &mut BTreeSet<String>,
    target: u64,
    peer: Peer<api::Proxies>,
) {
    let mut plane = PlaneView {
        name: peer.name,
        admin: peer.admin,
        ..PlaneView::default()
    };
    let now_ms = unix_ms();
    match peer.answer {
        Err(error) => plane.error = Some(error),
        Ok(proxies) => {
            let new = proxies
                .items
                .into_iter()
                .filter(|p| connected.insert(p.node.clone()));
            for proxy in new {
                plane.proxies += 1;
                // What was refused of an older revision says nothing about this one.
                let is_refusing = !proxy.refusals.is_empty() && proxy.target_revision >= target;
                if proxy.acked_revision < target && !is_refusing {
                    status.waiting.push(proxy.node.clone());
                } else if !is_refusing {
                    plane.applied += 1;
                }
                status.late_certificates.extend(late_of(&proxy, now_ms));
                status.refused.extend(proxy.refusals);
            }
        }
    }
    status.proxies += plane.proxies;
    status.applied += plane.applied;
    status.elapsed_ms = status
        .elapsed_ms
        .filter(|_| status.applied == status.proxies);
    status.planes.push(plane);
}

/// Registered sidecars without a stream: waited for while that may be a reconnect, then told as what they are.
fn missing(api: &Api, status: &mut api::Status, connected: &BTreeSet<String>) {
    let world = api.world();
    let mut missed = api.inner.missed();
    let mut still = Missed::new();
    let now = Instant::now();
    for registered in world.instances.iter() {
        let id = &registered.instance.id;
        let node = id.to_string();
        let is_sidecar = !registered.instance.proxy_admin.is_empty();
        if !is_sidecar || connected.contains(&node) {
            continue;
        }
        let is_alive = match api.inner.registry.state(id) {
            Some(LeaseState::Held { .. }) => false,
            Some(_) => true,
            // Another control plane's, or leaving.
            None => !registered.plane.is_empty(),
        };
        if !is_alive {
            continue;
        }
        let since = missed.get(&node).copied().unwrap_or(now);
        still.insert(node.clone(), since);
        status.proxies += 1;
        match now - since < RECONNECT {
            true => status.waiting.push(node),
            false => status.not_connected.push(node),
        }
    }
    *missed = still;
}

pub fn refusals(proxy: &ProxyState) -> Vec<api::Refusal> {
    let refusal = |refused: &Refused| api::Refusal {
        node: proxy.node.id.clone(),
        resource: refused.resource.clone(),
        rule: refused.rule.clone(),
        message: refused.message.clone(),
        since_revision: refused.since_revision,
    };
    proxy.refused.iter().map(refusal).collect()
}

/// Until a world that was read is compiled; a status that is older says so by its revision.
const COMPILE_MAX: Duration = Duration::from_secs(5);
/// Of one long poll.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Between two looks of a long poll.
const PAUSE: Duration = Duration::from_millis(5);
/// The same at other control planes, and at who is not connected.
const ELSEWHERE: Duration = Duration::from_millis(200);
/// How long a sidecar's stream may be missing before it counts as not connected.
const RECONNECT: Duration = Duration::from_secs(5);
const HELD: &str = "its lease is over, but with it most of the service would go at once by expiry alone; it is served until it beats again, is deregistered, is found dead, others have taken over, or `phalanx release SERVICE` lets it go";
