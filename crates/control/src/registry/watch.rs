//! Following instances: the full state, then what differs between the world last sent and the newest.
//!
//! The backlog of a watcher is one world, however slow it reads: what it missed in between is skipped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use phalanx_client::registry::{state_to_wire, to_wire};
use phalanx_model::InstanceId;
use phalanx_model::name::check_label;
use phalanx_proto::phalanx::registry::v1 as wire;
use tokio_stream::Stream;
use tonic::Status;

use super::{Registry, key};
use crate::world::{Instances, Registered, ServiceInstances, World};

pub fn stream(
    registry: &Registry,
    request: wire::WatchRequest,
) -> Result<impl Stream<Item = Result<wire::WatchResponse, Status>> + use<>, Status> {
    let scope = Scope::parse(request)?;
    let seat = Seat::take(registry)?;
    let worlds = registry.inner.worlds.clone();
    let stop = registry.inner.stop.clone();
    let state = (seat, worlds, stop, scope, None::<Arc<World>>);
    Ok(futures_util_unfold(state))
}

type State = (
    Seat,
    tokio::sync::watch::Receiver<Arc<World>>,
    tokio_util::sync::CancellationToken,
    Scope,
    Option<Arc<World>>,
);

fn futures_util_unfold(state: State) -> impl Stream<Item = Result<wire::WatchResponse, Status>> {
    futures_util::stream::unfold(state, |(seat, mut worlds, stop, scope, last)| async move {
        let Some(last) = last else {
            let world = worlds.borrow_and_update().clone();
            let answer = scope.full(&world);
            return Some((Ok(answer), (seat, worlds, stop, scope, Some(world))));
        };
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                changed = worlds.changed() => changed.ok()?,
            }
            let world = worlds.borrow_and_update().clone();
            if let Some(answer) = scope.delta(&last, &world) {
                return Some((Ok(answer), (seat, worlds, stop, scope, Some(world))));
            }
        }
    })
}

/// One of a bounded number.
struct Seat(Registry);

impl Seat {
    fn take(registry: &Registry) -> Result<Self, Status> {
        let taken = registry.inner.watchers.fetch_add(1, Ordering::Relaxed);
        let seat = Self(registry.clone());
        if taken >= WATCHERS_MAX {
            return Err(Status::resource_exhausted(format!(
                "{WATCHERS_MAX} watches are open, no more are taken"
            )));
        }
        Ok(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.inner.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is followed.
enum Scope {
    One(InstanceId),
    /// None: all of them.
    All {
        namespace: Option<String>,
        service: Option<String>,
    },
}

impl Scope {
    fn parse(request: wire::WatchRequest) -> Result<Self, Status> {
        let part = |text: String| match text.is_empty() {
            true => Ok(None),
            false => check_label(&text)
                .map(|()| Some(text))
                .map_err(|e| Status::invalid_argument(e.to_string())),
        };
        if !request.id.is_empty() {
            let id = key(&request.namespace, &request.service, &request.id)?;
            return Ok(Self::One(id));
        }
        Ok(Self::All {
            namespace: part(request.namespace)?,
            service: part(request.service)?,
        })
    }

    fn full(&self, world: &World) -> wire::WatchResponse {
        let upserted = match self {
            Self::One(id) => world
                .instances
                .get(id)
                .map(|r| told(r))
                .into_iter()
                .collect(),
            Self::All { .. } => {
                let services = self.services(&world.instances);
                let all = services.values().flat_map(|s| s.values());
                all.map(|r| told(r)).collect()
            }
        };
        wire::WatchResponse {
            revision: world.revision,
            full: true,
            upserted,
            removed: Vec::new(),
        }
    }

    fn delta(&self, old: &World, new: &World) -> Option<wire::WatchResponse> {
        if old.instances.same(&new.instances) {
            return None;
        }
        let (mut upserted, mut removed) = (Vec::new(), Vec::new());
        match self {
            // Nobody else's changes cost those who follow one a look.
            Self::One(id) => match (old.instances.get(id), new.instances.get(id)) {
                (before, Some(now)) if before.is_none_or(|before| !is_same(before, now)) => {
                    upserted.push(told(now));
                }
                (Some(_), None) => removed.push(removed_key(id)),
                _ => {}
            },
            Self::All { .. } => {
                self.differences(&old.instances, &new.instances, &mut upserted, &mut removed);
            }
        }
        let empty = upserted.is_empty() && removed.is_empty();
        (!empty).then_some(wire::WatchResponse {
            revision: new.revision,
            full: false,
            upserted,
            removed,
        })
    }

    fn differences(
        &self,
        old: &Instances,
        new: &Instances,
        upserted: &mut Vec<wire::Instance>,
        removed: &mut Vec<wire::InstanceKey>,
    ) {
        let (old, fresh) = (self.services(old), self.services(new));
        for (name, instances) in &fresh {
            match old.get(name) {
                Some(before) if Arc::ptr_eq(before, instances) => {}
                before => {
                    upserted.extend(differing(instances, before.map(|b| &***b)).map(told));
                }
            }
        }
        for (name, instances) in &old {
            let after = fresh.get(name);
            let gone = instances
                .iter()
                .filter(|(id, _)| after.is_none_or(|after| !after.contains_key(*id)));
            removed.extend(gone.map(|(_, r)| removed_key(&r.instance.id)));
        }
    }

    fn services<'a>(
        &self,
        instances: &'a Instances,
    ) -> BTreeMap<(&'a str, &'a str), &'a Arc<ServiceInstances>> {
        let (namespace, service) = match self {
            Self::One(id) => (
                Some(id.service.namespace.as_str()),
                Some(id.service.name.as_str()),
            ),
            Self::All { namespace, service } => (namespace.as_deref(), service.as_deref()),
        };
        let within = |wanted: Option<&str>, name: &str| wanted.is_none_or(|w| w == name);
        let namespaces = instances
            .namespaces()
            .filter(move |(name, _)| within(namespace, name));
        let services = namespaces.flat_map(|(namespace, services)| {
            services
                .iter()
                .map(move |(name, s)| ((namespace.as_str(), name.as_str()), s))
        });
        services
            .filter(move |((_, name), _)| within(service, name))
            .collect()
    }
}

fn differing<'a>(
    instances: &'a ServiceInstances,
    before: Option<&'a ServiceInstances>,
) -> impl Iterator<Item = &'a Registered> {
    let same = move |id: &String, r: &Arc<Registered>| {
        before
            .and_then(|b| b.get(id))
            .is_some_and(|b| Arc::ptr_eq(b, r) || is_same(b, r))
    };
    instances
        .iter()
        .filter(move |(id, r)| !same(id, r))
        .map(|(_, r)| &**r)
}

/// For whoever follows it.
fn is_same(one: &Registered, other: &Registered) -> bool {
    one.state == other.state && one.instance == other.instance
}

fn told(registered: &Registered) -> wire::Instance {
    wire::Instance {
        state: state_to_wire(registered.state).into(),
        ..to_wire(&registered.instance)
    }
}

fn removed_key(id: &InstanceId) -> wire::InstanceKey {
    wire::InstanceKey {
        namespace: id.service.namespace.clone(),
        service: id.service.name.clone(),
        id: id.id.clone(),
    }
}

const WATCHERS_MAX: usize = 4096;
