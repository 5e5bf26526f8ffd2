//! Who depends on what: for a document or an instance that changed, the services whose resources have to be made again.
//!
//! [`Index::follow`] compares two worlds by pointer, so that it costs what differs. Each part of a world that resources are
//! made of is compared there; what is forgotten would stay as it was until something else touches its service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phalanx_model::document::{Document, DocumentId, GatewayRef, Service};
use phalanx_model::identity::SYSTEM_NAMESPACE;
use phalanx_model::instance::Labels;
use phalanx_model::{ServiceName, SharedMap};

use crate::world::rollout::Progress;
use crate::world::{Registered, World};

/// Of one world; shares with the index before what did not change.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    /// EndpointSlices by the Service they belong to.
    pub(super) slices: Sets<ServiceName, DocumentId>,
    /// BackendPolicies by target.
    pub(super) policies: Sets<ServiceName, DocumentId>,
    /// TranscodingPolicies by target.
    pub(super) transcoders: Sets<ServiceName, DocumentId>,
    /// AuthorizationPolicies by target.
    pub(super) guards: Sets<ServiceName, DocumentId>,
    /// PeerAuthentications by target.
    pub(super) peers: Sets<ServiceName, DocumentId>,
    /// Those without a target, by namespace.
    broad_peers: Sets<String, DocumentId>,
    /// ColourPolicies.
    pub(super) colours: Arc<BTreeSet<DocumentId>>,
    /// AuthorizationPolicies by namespace.
    broad_guards: Sets<String, DocumentId>,
    /// Routes by parent.
    pub(super) routes: Sets<ServiceName, DocumentId>,
    /// Routes by backend and by where copies go.
    users: Sets<ServiceName, DocumentId>,
    /// Routes of whatever kind by the Gateway they want to be attached to.
    pub(super) at_gateways: Sets<ServiceName, DocumentId>,
    /// Rollouts by the route that they govern.
    pub(super) rollouts: Sets<DocumentId, DocumentId>,
    /// Rollouts by their two Services.
    rollouts_of: Sets<ServiceName, DocumentId>,
    /// Services by their namespace and the `app` they select; none: they select by other labels.
    selecting: Sets<(String, Option<String>), ServiceName>,
    /// Names under which instances are registered, with how many, by namespace and `app`.
    registered: SharedMap<(String, String), Arc<BTreeMap<String, usize>>>,
}

/// Services that have to be compiled again.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Their ports, endpoints or policy.
    pub(super) services: BTreeSet<ServiceName>,
    /// Their rules.
    pub(super) rules: BTreeSet<ServiceName>,
    /// Gateways, with what is attached to them.
    pub(super) gateways: BTreeSet<ServiceName>,
    /// Rollouts about which something else may have to be said.
    pub(super) rollouts: BTreeSet<DocumentId>,
    /// Routes that a rollout leads otherwise than before.
    pub(super) governed: BTreeSet<DocumentId>,
    /// All services of these: who may call them is said otherwise.
    pub(super) namespaces: BTreeSet<String>,
    /// All services of all.
    pub(super) everything: bool,
    /// Some ColourPolicy is another.
    pub(super) colours: bool,
}

/// Services of whose endpoints the health checks say something else than before.
fn verdicts<'a>(before: &'a World, world: &'a World) -> impl Iterator<Item = ServiceName> + 'a {
    let is_same = Arc::ptr_eq(&before.health, &world.health);
    let of_both = before.health.keys().chain(world.health.keys());
    let is_other =
        |service: &&ServiceName| match (before.health.get(*service), world.health.get(*service)) {
            (Some(before), Some(now)) => !Arc::ptr_eq(before, now),
            _ => true,
        };
    of_both.filter(move |_| !is_same).filter(is_other).cloned()
}

impl Index {
    /// From the world before to this one.
    pub(super) fn follow(&mut self, before: &World, world: &World) -> Touched {
        let mut touched = Touched::default();
        let documents = world.documents.differences(&before.documents, Arc::ptr_eq);
        for change in documents {
            for (entry, is_there) in [(change.before, false), (change.after, true)] {
                if let Some(document) = entry.and_then(|entry| entry.document.as_deref()) {
                    self.document(change.key, document, is_there, &mut touched);
                }
            }
        }
        self.led(before, world, &mut touched);
        world
            .instances
            .each_difference(&before.instances, |old, new| {
                self.instance(old, new, world, &mut touched);
            });
        touched.services.extend(verdicts(before, world));
        // Another Service may be called by the instances that this one let go of, or took.
        let spoken_of = |service: &&ServiceName| self.peers.of(service).next().is_some();
        let namespaces = touched.services.iter().filter(spoken_of);
        touched
            .namespaces
            .extend(namespaces.map(|service| service.namespace.clone()));
        touched
    }

    /// Whether anything is said about peers at all.
    pub(super) fn has_peers(&self) -> bool {
        !self.peers.is_empty() || !self.broad_peers.is_empty()
    }

    pub(super) fn peers_of_mesh(&self) -> impl Iterator<Item = &DocumentId> {
        self.broad_peers.of(&SYSTEM_NAMESPACE.to_owned())
    }

    pub(super) fn peers_of_namespace(&self, namespace: &str) -> impl Iterator<Item = &DocumentId> {
        let namespace = Some(namespace.to_owned()).filter(|name| name != SYSTEM_NAMESPACE);
        namespace
            .into_iter()
            .flat_map(|namespace| self.broad_peers.of(&namespace))
    }

    pub(super) fn guards_of_namespace(&self, namespace: &str) -> Vec<&DocumentId> {
        self.broad_guards.of(&namespace.to_owned()).collect()
    }

    /// Services of a namespace that select by this `app`, or not by `app`.
    pub(super) fn selecting(
        &self,
        namespace: &str,
        app: Option<String>,
    ) -> impl Iterator<Item = &ServiceName> {
        self.selecting.of(&(namespace.to_owned(), app))
    }

    /// Services whose rules name this one as a backend.
    pub(super) fn parents_of_users(
        &self,
        world: &World,
        backend: &ServiceName,
    ) -> Vec<ServiceName> {
        let routes = self.users.of(backend);
        let documents = routes.filter_map(|id| world.documents.get(id)?.document.as_deref());
        let parents = documents.flat_map(|document| match document {
            Document::Route(route) => route.parents.as_slice(),
            Document::StreamRoute(route) => route.parents.as_slice(),
            _ => &[],
        });
        parents.map(|parent| parent.service.clone()).collect()
    }

    /// Gateways at which a route leads to this service.
    pub(super) fn gateways_of_users(
        &self,
        world: &World,
        backend: &ServiceName,
    ) -> Vec<ServiceName> {
        let routes = self.users.of(backend);
        let documents = routes.filter_map(|id| world.documents.get(id)?.document.as_deref());
        let gateways = documents.flat_map(|document| match document {
            Document::Route(route) => route.gateways.as_slice(),
            Document::StreamRoute(route) => route.gateways.as_slice(),
            _ => &[],
        });
        gateways.map(|parent| parent.gateway.clone()).collect()
    }

    /// Names under which instances with this `app` are registered.
    pub(super) fn names<'a>(
        &'a self,
        namespace: &str,
        app: &str,
    ) -> impl Iterator<Item = &'a String> + use<'a> {
        let key = (namespace, app);
        let found = self
            .registered
            .find(|(namespace, app)| (namespace.as_str(), app.as_str()).cmp(&key));
        found.into_iter().flat_map(|(_, names)| names.keys())
    }

    fn document(
        &mut self,
        id: &DocumentId,
        document: &Document,
        is_there: bool,
        touched: &mut Touched,
    ) {
        match document {
            Document::Service(service) => {
                let name = service.service_name();
                let app = service.selector.get("app").cloned();
                let selects = (service.meta.namespace.clone(), app);
                self.selecting.set(selects, &name, is_there);
                touched.services.insert(name);
            }
            Document::EndpointSlice(slice) => {
                self.slices.set(slice.service.clone(), id, is_there);
                touched.services.insert(slice.service.clone());
            }
            Document::BackendPolicy(policy) => {
                for target in &policy.targets {
                    self.policies.set(target.clone(), id, is_there);
                    touched.services.insert(target.clone());
                }
            }
            Document::TranscodingPolicy(policy) => {
                for target in &policy.targets {
                    self.transcoders.set(target.clone(), id, is_there);
                    touched.services.insert(target.clone());
                }
            }
            Document::Gateway(gateway) => drop(touched.gateways.insert(gateway.name())),
            Document::Rollout(rollout) => {
                self.rollouts.set(rollout.target.clone(), id, is_there);
                for service in [&rollout.stable, &rollout.canary] {
                    self.rollouts_of.set(service.clone(), id, is_there);
                }
                touched.rollouts.insert(id.clone());
                touched.governed.insert(rollout.target.clone());
            }
            Document::StreamRoute(route) => {
                self.at_gateways(&route.gateways, id, is_there, touched);
                for parent in &route.parents {
                    self.routes.set(parent.service.clone(), id, is_there);
                    touched.rules.insert(parent.service.clone());
                }
                for backend in &route.backends {
                    self.users.set(backend.service.clone(), id, is_there);
                }
            }
            Document::Route(route) => {
                self.at_gateways(&route.gateways, id, is_there, touched);
                for parent in &route.parents {
                    self.routes.set(parent.service.clone(), id, is_there);
                    touched.rules.insert(parent.service.clone());
                }
                for rule in &route.rules {
                    let backends = rule.backends.iter().map(|backend| &backend.service);
                    let mirrors = rule.mirrors.iter().map(|mirror| &mirror.service);
                    for used in backends.chain(mirrors) {
                        self.users.set(used.clone(), id, is_there);
                    }
                }
            }
            Document::AuthorizationPolicy(policy) => {
                let namespace = policy.meta.namespace.clone();
                self.broad_guards.set(namespace, id, is_there);
                for target in &policy.targets {
                    self.guards.set(target.clone(), id, is_there);
                    touched.services.insert(target.clone());
                }
            }
            Document::PeerAuthentication(policy) => {
                let namespace = policy.meta.namespace.clone();
                touched.everything |= namespace == SYSTEM_NAMESPACE;
                if policy.targets.is_empty() {
                    self.broad_peers.set(namespace.clone(), id, is_there);
                }
                for target in &policy.targets {
                    self.peers.set(target.clone(), id, is_there);
                    touched.services.insert(target.clone());
                }
                touched.namespaces.insert(namespace);
            }
            Document::ColourPolicy(policy) => {
                let namespace = policy.meta.namespace.clone();
                touched.everything |= namespace == SYSTEM_NAMESPACE;
                touched.colours = true;
                touched.namespaces.insert(namespace);
                let known = Arc::make_mut(&mut self.colours);
                match is_there {
                    true => drop(known.insert(id.clone())),
                    false => drop(known.remove(id)),
                }
            }
        }
    }

    /// What rollouts touch: the rules of a route that one leads otherwise, and what is said about one whose route or
    /// Services changed. How far one is changes often, and mostly no rule.
    fn led(&self, before: &World, world: &World, touched: &mut Touched) {
        for change in world.rollouts.differences(&before.rollouts, Arc::ptr_eq) {
            let leads = |progress: Option<&Arc<Progress>>| {
                let is_damaged = |p: &Progress| p.damage.is_some();
                progress.map(|p| {
                    let record = &p.record;
                    (
                        record.subject.clone(),
                        record.overlay.clone(),
                        is_damaged(p),
                    )
                })
            };
            if leads(change.before) != leads(change.after)
                && let Some(Document::Rollout(rollout)) = world.document(change.key)
            {
                touched.governed.insert(rollout.target.clone());
            }
        }
        for route in std::mem::take(&mut touched.governed) {
            touched.rollouts.extend(self.rollouts.of(&route).cloned());
            if let Some(Document::Route(route)) = world.document(&route) {
                let parents = route.parents.iter().map(|parent| parent.service.clone());
                touched.rules.extend(parents);
                let gateways = route.gateways.iter().map(|parent| parent.gateway.clone());
                touched.gateways.extend(gateways);
            }
        }
        let documents = world.documents.differences(&before.documents, Arc::ptr_eq);
        for change in documents {
            touched
                .rollouts
                .extend(self.rollouts.of(change.key).cloned());
        }
        for service in &touched.services {
            touched
                .rollouts
                .extend(self.rollouts_of.of(service).cloned());
        }
    }

    fn at_gateways(
        &mut self,
        parents: &[GatewayRef],
        id: &DocumentId,
        is_there: bool,
        touched: &mut Touched,
    ) {
        for parent in parents {
            self.at_gateways.set(parent.gateway.clone(), id, is_there);
            touched.gateways.insert(parent.gateway.clone());
        }
    }

    fn instance(
        &mut self,
        old: Option<&Registered>,
        new: Option<&Registered>,
        world: &World,
        touched: &mut Touched,
    ) {
        let Some(either) = new.or(old) else { return };
        let ServiceName { namespace, name } = &either.instance.id.service;
        // Without a Service its name stands for itself.
        if world.service(&either.instance.id.service).is_none() {
            touched.services.insert(either.instance.id.service.clone());
        }
        let app = |of: Option<&Registered>| of.and_then(|i| i.instance.labels.get("app")).cloned();
        let (was, is) = (app(old), app(new));
        if was != is {
            self.count(namespace, was.as_deref(), name, |count| count - 1);
            self.count(namespace, is.as_deref(), name, |count| count + 1);
        }
        let by_app = [&was, &is].into_iter().filter(|app| app.is_some());
        for app in by_app.chain([&None]) {
            let selecting = self.selecting.of(&(namespace.clone(), app.clone()));
            for service in selecting {
                if touched.services.contains(service) {
                    continue;
                }
                let document = world.service(service);
                let selected = document.is_none_or(|document| {
                    [old, new]
                        .into_iter()
                        .flatten()
                        .any(|registered| selects(document, registered))
                });
                if selected {
                    touched.services.insert(service.clone());
                }
            }
        }
    }

    fn count(
        &mut self,
        namespace: &str,
        app: Option<&str>,
        name: &str,
        change: fn(usize) -> usize,
    ) {
        let Some(app) = app else { return };
        let key = (namespace.to_owned(), app.to_owned());
        let mut names = self.registered.get(&key).cloned().unwrap_or_default();
        let counts = Arc::make_mut(&mut names);
        let count = change(counts.get(name).copied().unwrap_or(0));
        match count {
            0 => drop(counts.remove(name)),
            _ => drop(counts.insert(name.to_owned(), count)),
        }
        match counts.is_empty() {
            true => drop(self.registered.remove(&key)),
            false => drop(self.registered.insert(key, names)),
        }
    }
}

/// Whether a Service's selector, which is not empty, takes this instance.
pub(super) fn selects(service: &Service, registered: &Registered) -> bool {
    takes(service, &registered.instance.labels)
}

/// The same of its labels.
pub(super) fn takes(service: &Service, labels: &Labels) -> bool {
    !service.selector.is_empty()
        && service
            .selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

/// Sets by key; none is empty.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sets<K, V>(SharedMap<K, Arc<BTreeSet<V>>>);

impl<K, V> Default for Sets<K, V> {
    fn default() -> Self {
        Self(SharedMap::default())
    }
}

impl<K: Ord + Clone, V: Ord + Clone> Sets<K, V> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn of<'a>(&'a self, key: &K) -> impl Iterator<Item = &'a V> + use<'a, K, V> {
        self.0.get(key).into_iter().flat_map(|set| set.iter())
    }

    fn set(&mut self, key: K, value: &V, is_there: bool) {
        if is_there {
            if self.0.get_mut(&key).is_none() {
                self.0.insert(key.clone(), Arc::default());
            }
            if let Some(set) = self.0.get_mut(&key) {
                Arc::make_mut(set).insert(value.clone());
            }
            return;
        }
        let Some(set) = self.0.get_mut(&key) else {
            return;
        };
        let set = Arc::make_mut(set);
        set.remove(value);
        if set.is_empty() {
            self.0.remove(&key);
        }
    }
}
