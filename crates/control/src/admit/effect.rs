//! What a change would do: the world as it would be is compiled like the one that is, and both are compared resource by
//! resource, rule by rule, proxy by proxy. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phalanx_client::api::{self, Effect, ProxyEffect, ResourceEffect, RuleEffect};
use phalanx_model::ServiceName;
use phalanx_model::resource::{Action, Assignment, Forward, Rule, VirtualHost};
use phalanx_xds::{Kind, Snapshot};

use super::leaves::{bounded, differences};
use crate::snapshot::{Asks, AtGateway, Compiler, Finding, Mesh, Node, Own, Published, host};
use crate::world::World;

/// Who is there to receive something.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Each once.
    pub nodes: Vec<Node>,
    /// What those of them ask for that get no more than that, by node.
    pub asks: BTreeMap<String, Arc<Asks>>,
    /// Who has been seen to call whom.
    pub callers: BTreeSet<(ServiceName, ServiceName)>,
    /// Control planes that could not be asked who is there, and why.
    pub unknown: Vec<String>,
}

/// A change's effect, and the nodes of `around` that it concerns.
pub struct Outcome {
    pub effect: Effect,
    pub concerned: Vec<Node>,
    /// Services whose rules, policies or endpoints change.
    pub services: BTreeSet<ServiceName>,
}

/// `compiler` may know a world already: what is equal to it costs nothing.
pub fn of(
    mut compiler: Compiler,
    before: Arc<World>,
    after: Arc<World>,
    around: &Around,
) -> Outcome {
    let before = Arc::new(compiler.compile(before));
    let after = Arc::new(compiler.compile(after));
    let received = received(&before, &after, around);
    let count = |kind: Kind, name: &str| {
        let has = |(_, names): &&(&Node, Arc<Names>)| names.contains(&(kind, name.to_owned()));
        received.iter().filter(has).count()
    };
    let listeners = Listeners::of(&received, [&before, &after], around);
    let (rules, mut services) = rules(&before.mesh, &after.mesh, &listeners);
    let mut resources = clusters(&before.mesh, &after.mesh, &mut services);
    let others: BTreeSet<_> = received
        .iter()
        .flat_map(|(_, names)| names.iter())
        .filter(|(kind, _)| !matches!(kind, Kind::Cluster | Kind::Endpoints))
        .collect();
    resources.extend(others.into_iter().map(|(kind, name)| ResourceEffect {
        kind: kind.to_string(),
        name: name.clone(),
        action: "changed".to_owned(),
        ..ResourceEffect::default()
    }));
    if !rules.is_empty() && !resources.iter().any(|r| r.kind == Kind::Routes.to_string()) {
        resources.push(ResourceEffect {
            kind: Kind::Routes.to_string(),
            name: crate::snapshot::OUTBOUND.to_owned(),
            action: "changed".to_owned(),
            ..ResourceEffect::default()
        });
    }
    for resource in &mut resources {
        let kind = Kind::ALL
            .into_iter()
            .find(|k| k.to_string() == resource.kind);
        resource.proxies = kind.map_or(0, |kind| count(kind, &resource.name));
    }
    let nodes = received.iter().take(NODES_MAX).map(|(node, names)| {
        let mut resources: Vec<_> = names
            .iter()
            .map(|(kind, name)| format!("{kind} {name}"))
            .collect();
        resources = bounded(resources);
        ProxyEffect {
            node: node.id.clone(),
            resources,
        }
    });
    let effect = Effect {
        proxies: around.nodes.len(),
        concerned: received.len(),
        nodes: nodes.collect(),
        rules,
        resources,
        arising: new_findings(&before.findings, &after.findings),
        resolved: new_findings(&after.findings, &before.findings),
    };
    Outcome {
        effect,
        concerned: received.into_iter().map(|(node, _)| node.clone()).collect(),
        services,
    }
}

type Names = BTreeSet<(Kind, String)>;

/// Who would receive the rules of a host.
struct Listeners {
    /// Nodes that have the rules of all hosts.
    of_all: usize,
    /// Nodes that asked for single ones, by host.
    of_host: BTreeMap<String, usize>,
}

impl Listeners {
    fn of(received: &[(&Node, Arc<Names>)], worlds: [&Published; 2], around: &Around) -> Self {
        let mut listeners = Self {
            of_all: 0,
            of_host: BTreeMap::new(),
        };
        for (node, names) in received {
            let mut tables = names.iter().filter(|(kind, _)| *kind == Kind::Routes);
            if !around.asks.contains_key(&node.id) {
                listeners.of_all += usize::from(tables.next().is_some());
                continue;
            }
            let namespace = &node.service.namespace;
            let hosts: BTreeSet<String> = tables
                .flat_map(|(_, table)| worlds.map(|world| host(table, namespace, world)))
                .flatten()
                .collect();
            for host in hosts {
                *listeners.of_host.entry(host).or_default() += 1;
            }
        }
        listeners
    }

    fn count(&self, host: &str) -> usize {
        // Of those a host is told for, whose callers see it otherwise.
        let host = host.split(' ').next().unwrap_or(host);
        self.of_all + self.of_host.get(host).copied().unwrap_or(0)
    }
}

/// The nodes that would receive something, and what. Nodes with the same resources are compared once; those of a canary
/// that is under way have its world.
fn received<'n>(
    before: &Arc<Published>,
    after: &Arc<Published>,
    around: &'n Around,
) -> Vec<(&'n Node, Arc<Names>)> {
    type Asking<'a> = (bool, &'a ServiceName, bool, &'a Asks);
    let mut known: Vec<(Snapshot, Snapshot, Arc<Names>)> = Vec::new();
    let mut asking: BTreeMap<Asking<'_>, Arc<Names>> = BTreeMap::new();
    let mut received = Vec::new();
    for node in &around.nodes {
        let (is_first, before, after) = (
            before.is_first(&node.id),
            before.of(&node.id),
            after.of(&node.id),
        );
        if let Some(asks) = around.asks.get(&node.id) {
            let key = (is_first, &node.service, node.is_proxyless(), &**asks);
            let names = asking.entry(key).or_insert_with(|| {
                let (old, new) = (asks.snapshot(&before, node), asks.snapshot(&after, node));
                Arc::new(changed(&old, &new))
            });
            let names = with_own(names, &before, &after, node);
            if !names.is_empty() {
                received.push((node, names));
            }
            continue;
        }
        if node.edge.is_some() {
            let of = |published: &Arc<Published>| AtGateway::default().snapshot(published, node);
            let names = Arc::new(changed(&of(&before), &of(&after)));
            if !names.is_empty() {
                received.push((node, names));
            }
            continue;
        }
        let listeners = Published::listeners(node);
        let (old, new) = (
            before.snapshot(node, &listeners, None),
            after.snapshot(node, &listeners, None),
        );
        // Its own listener does not come from documents.
        let same = |a: &Snapshot, b: &Snapshot, is_listener_same: bool| {
            Kind::ALL.into_iter().all(|kind| {
                a.shares(kind, b)
                    || (kind == Kind::Listener && is_listener_same)
                    || (a.len(kind) == 0 && b.len(kind) == 0)
            })
        };
        let plain = old.shares(Kind::Listener, &new);
        let found = known.iter().find(|(a, b, _)| {
            let plain = plain && a.shares(Kind::Listener, b);
            same(a, &old, plain) && same(b, &new, plain)
        });
        let names = match found {
            Some((_, _, names)) => names.clone(),
            None => {
                let names = Arc::new(changed(&old, &new));
                known.push((old, new, names.clone()));
                names
            }
        };
        let names = with_own(&names, &before, &after, node);
        if !names.is_empty() {
            received.push((node, names));
        }
    }
    received
}

/// With the listener that is the node's own, if that changes too.
fn with_own(names: &Arc<Names>, before: &Published, after: &Published, node: &Node) -> Arc<Names> {
    let listener = |published| Own::default().listener(published, node).cloned();
    let (old, new) = (listener(before), listener(after));
    match new {
        Some(new) if old.is_none_or(|old| old.version != new.version) => {
            let mut names = (**names).clone();
            names.insert((Kind::Listener, new.name.clone()));
            Arc::new(names)
        }
        _ => names.clone(),
    }
}

fn changed(old: &Snapshot, new: &Snapshot) -> Names {
    let mut names = Names::new();
    for kind in Kind::ALL {
        if old.shares(kind, new) {
            continue;
        }
        for resource in new.iter(kind) {
            let before = old.get(kind, &resource.name);
            if before.is_none_or(|before| before.version != resource.version) {
                names.insert((kind, resource.name.clone()));
            }
        }
        for resource in old.iter(kind) {
            if new.get(kind, &resource.name).is_none() {
                names.insert((kind, resource.name.clone()));
            }
        }
    }
    names
}

/// Clusters and endpoint sets, field by field.
fn clusters(
    before: &Mesh,
    after: &Mesh,
    services: &mut BTreeSet<ServiceName>,
) -> Vec<ResourceEffect> {
    let mut effects = Vec::new();
    for change in after.clusters.differences(&before.clusters, Arc::ptr_eq) {
        let (old, new) = (change.before.map(|c| &**c), change.after.map(|c| &**c));
        if let Some((action, details)) = action(old, new) {
            services.insert(change.key.service.clone());
            let name = change.key.to_string();
            effects.push(resource(Kind::Cluster, name, action, details));
        }
    }
    for change in after
        .assignments
        .differences(&before.assignments, Arc::ptr_eq)
    {
        let (old, new) = (change.before.map(|a| &**a), change.after.map(|a| &**a));
        if let Some((action, _)) = action(old, new) {
            services.insert(change.key.service.clone());
            let name = change.key.to_string();
            effects.push(resource(Kind::Endpoints, name, action, endpoints(old, new)));
        }
    }
    effects
}

fn endpoints(old: Option<&Assignment>, new: Option<&Assignment>) -> Vec<String> {
    let addresses = |set: Option<&Assignment>| -> BTreeSet<String> {
        let endpoints = set.into_iter().flat_map(|set| &set.endpoints);
        endpoints.map(|e| e.address.to_string()).collect()
    };
    let (old_set, new_set) = (addresses(old), addresses(new));
    let mut details = vec![format!("endpoints: {} → {}", old_set.len(), new_set.len())];
    details.extend(old_set.difference(&new_set).map(|a| format!("- {a}")));
    details.extend(new_set.difference(&old_set).map(|a| format!("+ {a}")));
    if let (Some(old), Some(new), 1) = (old, new, details.len()) {
        details.extend(differences(old, new));
    }
    bounded(details)
}

fn resource(kind: Kind, name: String, action: &str, details: Vec<String>) -> ResourceEffect {
    ResourceEffect {
        kind: kind.to_string(),
        name,
        action: action.to_owned(),
        details,
        proxies: 0,
    }
}

/// None when nothing changes.
fn action<T: PartialEq + std::fmt::Debug>(
    old: Option<&T>,
    new: Option<&T>,
) -> Option<(&'static str, Vec<String>)> {
    match (old, new) {
        (Some(old), Some(new)) if old != new => Some(("changed", differences(old, new))),
        (None, Some(_)) => Some(("added", Vec::new())),
        (Some(_), None) => Some(("removed", Vec::new())),
        _ => None,
    }
}

fn pairs<'a, K: Ord, V>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let keys: BTreeSet<&K> = before.keys().chain(after.keys()).collect();
    keys.into_iter()
        .map(|key| (key, before.get(key), after.get(key)))
}

/// All hosts with their rules as every namespace sees them.
fn rules(
    before: &Mesh,
    after: &Mesh,
    listeners: &Listeners,
) -> (Vec<RuleEffect>, BTreeSet<ServiceName>) {
    let mut effects = Vec::new();
    let mut services = BTreeSet::new();
    if before.rules == after.rules {
        return (effects, services);
    }
    let hosts = |mesh: &Mesh| -> BTreeMap<String, VirtualHost> {
        let table = mesh.rules.table("", &mesh.catalog);
        let hosts = table.hosts.into_iter();
        let usual = hosts.map(|host| (host.name.clone(), host));
        // A space is in no host's name.
        let consumers = mesh.rules.of_consumers();
        let consumers = consumers
            .map(|(namespace, host)| (format!("{} for callers in {namespace}", host.name), host));
        usual.chain(consumers).collect()
    };
    let (before, after) = (hosts(before), hosts(after));
    for (name, old, new) in pairs(&before, &after) {
        let changed = of_host(name, old, new, listeners.count(name));
        if !changed.is_empty() {
            services.extend(service(name));
        }
        effects.extend(changed);
    }
    (effects, services)
}

/// Of `battle.default.svc.mesh:80`.
fn service(host: &str) -> Option<ServiceName> {
    let (name, rest) = host.split_once('.')?;
    let (namespace, _) = rest.split_once('.')?;
    Some(ServiceName::new(namespace, name))
}

fn of_host(
    host: &str,
    old: Option<&VirtualHost>,
    new: Option<&VirtualHost>,
    proxies: usize,
) -> Vec<RuleEffect> {
    let effect = |rule: &str, action: &str, details: Vec<String>| RuleEffect {
        service: host.to_owned(),
        rule: rule.to_owned(),
        action: action.to_owned(),
        details,
        proxies,
    };
    let (old, new) = (numbered(old), numbered(new));
    let mut effects = Vec::new();
    for (key, before, after) in pairs(&old, &new) {
        match (before, after) {
            (Some(before), Some(after)) if before != after => {
                effects.push(effect(&key.0, "changed", of_rule(before, after)));
            }
            (None, Some(after)) => effects.push(effect(&key.0, "added", vec![told(after)])),
            (Some(before), None) => effects.push(effect(&key.0, "removed", vec![told(before)])),
            _ => {}
        }
    }
    effects
}

/// A document's rule with several matches has several of one name.
fn numbered(host: Option<&VirtualHost>) -> BTreeMap<(String, usize), &Rule> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let rules = host.into_iter().flat_map(|host| &host.rules);
    let numbered = rules.map(|rule| {
        let count = seen.entry(&rule.name).or_default();
        *count += 1;
        ((rule.name.clone(), *count), rule)
    });
    numbered.collect()
}

fn of_rule(before: &Rule, after: &Rule) -> Vec<String> {
    let mut details = Vec::new();
    let (mut old, new) = (before.clone(), after);
    if let (Action::Forward(was), Action::Forward(is)) = (&mut old.action, &new.action) {
        if backends(was) == backends(is) && weights(was) != weights(is) {
            let names = backends(is).join(", ");
            details.push(format!(
                "weights {} → {} ({names})",
                weights(was),
                weights(is)
            ));
            for (was, is) in was.backends.iter_mut().zip(&is.backends) {
                was.weight = is.weight;
            }
        } else if backends(was) != backends(is) {
            details.push(format!("backends {} → {}", split(was), split(is)));
            was.backends.clone_from(&is.backends);
        }
    }
    details.extend(differences(&old, new));
    bounded(details)
}

fn backends(forward: &Forward) -> Vec<String> {
    let name = |backend: &phalanx_model::resource::Backend| match &backend.cluster {
        Some(cluster) => format!("{}:{}", cluster.service.name, cluster.port),
        None => "a backend that does not exist".to_owned(),
    };
    forward.backends.iter().map(name).collect()
}

fn weights(forward: &Forward) -> String {
    let weights = forward.backends.iter().map(|b| b.weight.to_string());
    weights.collect::<Vec<_>>().join("/")
}

fn split(forward: &Forward) -> String {
    let parts = backends(forward).into_iter().zip(&forward.backends);
    let parts = parts.map(|(name, backend)| format!("{name}={}", backend.weight));
    parts.collect::<Vec<_>>().join(" ")
}

fn told(rule: &Rule) -> String {
    match &rule.action {
        Action::Forward(forward) => format!("{:?} to {}", rule.matches.path, split(forward)),
        other => format!("{:?}: {other:?}", rule.matches.path),
    }
}

fn new_findings(before: &[Finding], after: &[Finding]) -> Vec<api::Finding> {
    let is_new = |finding: &&Finding| {
        !before
            .iter()
            .any(|b| b.document == finding.document && b.message == finding.message)
    };
    after.iter().filter(is_new).map(told_finding).collect()
}

pub fn told_finding(finding: &Finding) -> api::Finding {
    api::Finding {
        id: finding.document.to_string(),
        state: finding.state().to_owned(),
        message: finding.message.clone(),
        since_revision: finding.since_revision,
    }
}

/// Listed by name.
const NODES_MAX: usize = 100;
