//! Who may call the applications behind a data plane, and how: PeerAuthentication and AuthorizationPolicy become the rules of
//! its inbound listener. Made for one node at a time, from the documents of the Services that it stands behind.
//!
//! What is in doubt is closed: an instance that nobody registered, a port that no Service leads to.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_model::document::{Document, DocumentId, PeerAuthentication, Service};
use phalanx_model::identity::TrustDomain;
use phalanx_model::instance::Labels;
use phalanx_model::matching::peers::Peers;
use phalanx_model::resource::colour::EdgeColours;
use phalanx_model::resource::limit::Limits;
use phalanx_model::resource::{
    Access, AccessPolicy, AccessRule, Effect, Inbound, InboundRule, MtlsMode,
};
use phalanx_model::{Instance, InstanceId, ServiceName};

use super::catalog::{self, finding, pick};
use super::index::{Index, takes};
use super::{Finding, Mesh, Node};
use crate::world::{DocumentEntry, Registered, World};

/// An instance, or what is known of one that is not registered.
pub(super) struct Stand<'a> {
    own: &'a ServiceName,
    labels: &'a Labels,
}

impl<'a> Stand<'a> {
    pub(super) fn of(registered: &'a Registered) -> Self {
        Self {
            own: &registered.instance.id.service,
            labels: &registered.instance.labels,
        }
    }

    /// The Services that it stands behind: its own name, and those that select it.
    fn services(&self, world: &World, index: &Index) -> BTreeSet<ServiceName> {
        let namespace = &self.own.namespace;
        let by = [self.labels.get("app").cloned(), None];
        let selecting = by
            .into_iter()
            .flat_map(|app| index.selecting(namespace, app))
            .filter(|name| {
                let service = world.service(name);
                service.is_some_and(|service| takes(service, self.labels))
            });
        selecting.cloned().chain([self.own.clone()]).collect()
    }

    /// What is said about its peers.
    pub(super) fn peers(&self, world: &'a World, index: &Index) -> Peers<'a> {
        if !index.has_peers() {
            return Peers::default();
        }
        let services = self.services(world, index);
        peers(world, index, &self.own.namespace, services.iter())
    }
}

fn peers<'a, 's>(
    world: &'a World,
    index: &Index,
    namespace: &str,
    services: impl Iterator<Item = &'s ServiceName>,
) -> Peers<'a> {
    let winner = |ids: Vec<&DocumentId>| oldest(world, ids).first().map(|(_, policy)| *policy);
    Peers {
        mesh: winner(index.peers_of_mesh().collect()),
        namespace: winner(index.peers_of_namespace(namespace).collect()),
        services: services
            .filter_map(|service| winner(index.peers.of(service).collect()))
            .collect(),
    }
}

/// What is said about the peers of a Service's endpoints that did not register.
pub(super) fn mode_of_service(world: &World, index: &Index, service: &ServiceName) -> MtlsMode {
    if !index.has_peers() {
        return MtlsMode::default();
    }
    let services = [service];
    peers(world, index, &service.namespace, services.into_iter()).default_mode()
}

/// The first is in force.
fn oldest<'a>(
    world: &'a World,
    ids: Vec<&DocumentId>,
) -> Vec<(&'a DocumentEntry, &'a PeerAuthentication)> {
    let found = ids.into_iter().filter_map(|id| {
        let entry = world.documents.get(id)?;
        match entry.document.as_deref()? {
            Document::PeerAuthentication(policy) => Some((&**entry, policy)),
            _ => None,
        }
    });
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(|(entry, _)| (entry.created_ms, &entry.id));
    found
}

/// Of several about the same, the younger ones.
pub(super) fn conflicts(world: &World, ids: Vec<&DocumentId>, about: &str) -> Vec<Finding> {
    let found = oldest(world, ids);
    let Some(((winner, _), others)) = found.split_first() else {
        return Vec::new();
    };
    let told = |(entry, _): &(&DocumentEntry, &PeerAuthentication)| {
        let message = format!(
            "conflicted: {} is older and already says who may call {about}",
            winner.id
        );
        finding(entry, message)
    };
    others.iter().map(told).collect()
}

impl Mesh {
    /// What a sidecar asks of those who call its applications.
    pub fn inbound(&self, world: &World, node: &Node) -> Inbound {
        let id = InstanceId {
            service: node.service.clone(),
            id: node.instance.clone(),
        };
        let index = &self.index;
        let registered = world.instances.get(&id).map(|registered| &**registered);
        let guessed = guessed(node);
        let stand = registered.map_or(
            Stand {
                own: &node.service,
                labels: &guessed,
            },
            Stand::of,
        );
        let services = stand.services(world, index);
        let peers = stand.peers(world, index);
        let said = |services: &BTreeSet<ServiceName>| self.access(world, services.iter());
        let limited = |services: &BTreeSet<ServiceName>| self.limits(world, services.iter());
        let of_all = said(&services);
        let undeclared = world.service(&node.service).is_none();
        let default = match registered {
            Some(_) if undeclared && services.len() == 1 => of_all.clone(),
            Some(_) => closed(&of_all),
            // Labels that it has not told may put it behind others.
            None => closed(&self.of_namespace(world, &node.service.namespace)),
        };
        let mut rules = Inbound {
            default: InboundRule {
                mode: peers.default_mode(),
                access: default,
                limits: limited(&services),
            },
            ports: BTreeMap::new(),
            colours: self.edge_colours(node),
        };
        let leading = |instance: &Instance, number: u16| -> BTreeSet<ServiceName> {
            let leads = |name: &&ServiceName| match world.service(name) {
                Some(service) => leads_to(service, instance, number),
                None => true,
            };
            services.iter().filter(leads).cloned().collect()
        };
        let instance = registered.map(|registered| &registered.instance);
        let known = instance.iter().flat_map(|instance| &instance.ports);
        let numbers: BTreeSet<u16> = known
            .map(|port| port.number)
            .filter(|number| *number > 0)
            .chain(peers.ports())
            .collect();
        for number in numbers {
            let leading = instance.map(|instance| leading(instance, number));
            let (access, limits) = match leading.filter(|leading| !leading.is_empty()) {
                Some(leading) => (said(&leading), limited(&leading)),
                None => (rules.default.access.clone(), rules.default.limits.clone()),
            };
            let rule = InboundRule {
                mode: peers.mode(number),
                access,
                limits,
            };
            if rule != rules.default {
                rules.ports.insert(number, rule);
            }
        }
        rules
    }

    /// The same for a stock Envoy, whose one listener leads to one port; none where nobody could call it.
    pub fn inbound_of_envoy(&self, world: &World, node: &Node) -> Option<Inbound> {
        let services = [&node.service];
        let peers = peers(
            world,
            &self.index,
            &node.service.namespace,
            services.into_iter(),
        );
        let mode = node
            .tls
            .app
            .map_or(peers.default_mode(), |app| peers.mode(app.port()));
        let default = InboundRule {
            mode,
            access: self.access(world, services.into_iter()),
            limits: self.limits(world, services.into_iter()),
        };
        let rules = Inbound {
            default,
            ports: BTreeMap::new(),
            colours: self.edge_colours(node),
        };
        match (node.tls.has_identity, mode) {
            (true, _) => Some(rules),
            (false, MtlsMode::Strict) => None,
            (false, _) => Some(Inbound {
                default: InboundRule {
                    mode: MtlsMode::Off,
                    ..rules.default
                },
                ..rules
            }),
        }
    }

    fn edge_colours(&self, node: &Node) -> EdgeColours {
        let colours = self.lanes.at_inbound(&node.service.namespace);
        colours.cloned().unwrap_or_default()
    }

    fn access<'s>(&self, world: &World, services: impl Iterator<Item = &'s ServiceName>) -> Access {
        let ids: BTreeSet<&DocumentId> = services
            .flat_map(|service| self.index.guards.of(service))
            .collect();
        said(world, ids.into_iter(), &self.trust_domain)
    }

    /// What the policies in force for these services say of their sidecars; each once.
    fn limits<'s>(
        &self,
        world: &World,
        services: impl Iterator<Item = &'s ServiceName>,
    ) -> Vec<Limits> {
        let policies =
            services.filter_map(|service| catalog::policy_of(world, &self.index, service));
        let limits = policies.filter_map(|policy| policy.limits.as_ref());
        let by_name: BTreeMap<_, _> = limits.map(|limits| (&limits.policy, limits)).collect();
        by_name.into_values().cloned().collect()
    }

    fn of_namespace(&self, world: &World, namespace: &str) -> Access {
        let ids = self.index.guards_of_namespace(namespace);
        said(world, ids.into_iter(), &self.trust_domain)
    }
}

/// What denies first, each by name.
fn said<'d>(
    world: &World,
    ids: impl Iterator<Item = &'d DocumentId>,
    trust_domain: &TrustDomain,
) -> Access {
    let policies = ids.filter_map(|id| match world.documents.get(id)?.document.as_deref()? {
        Document::AuthorizationPolicy(policy) => Some(policy.access(trust_domain)),
        _ => None,
    });
    let mut policies: Vec<_> = policies.collect();
    policies.sort_by(|a, b| {
        let rank = |policy: &AccessPolicy| policy.effect != Effect::Deny;
        rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name))
    });
    Access { policies }
}

/// Where who allows something does not mean this: what it allows elsewhere is not allowed here.
fn closed(access: &Access) -> Access {
    let policies = access.policies.iter().map(|policy| match policy.effect {
        Effect::Deny => policy.clone(),
        Effect::Allow => AccessPolicy {
            rules: Vec::new(),
            ..policy.clone()
        },
    });
    Access {
        policies: policies.collect(),
    }
}

/// For who can't know any caller: a denial of some is one of all, and nobody is who is allowed by name.
#[must_use]
pub(super) fn anonymous(access: &Access) -> Access {
    let policies = access.policies.iter().map(|policy| {
        let rules = policy.rules.iter();
        let rules = rules.filter(|rule| policy.effect == Effect::Deny || rule.callers.is_empty());
        let bare = |rule: &AccessRule| AccessRule {
            callers: Vec::new(),
            ..rule.clone()
        };
        AccessPolicy {
            rules: rules.map(bare).collect(),
            ..policy.clone()
        }
    });
    Access {
        policies: policies.collect(),
    }
}

/// Rules where nobody can be known are for nobody in particular.
pub(super) fn without_callers(rules: Inbound, has_identity: bool) -> Inbound {
    let closed = |rule: InboundRule| match has_identity && rule.mode != MtlsMode::Off {
        true => rule,
        false => InboundRule {
            access: anonymous(&rule.access),
            ..rule
        },
    };
    let ports = rules.ports.into_iter();
    Inbound {
        default: closed(rules.default),
        ports: ports.map(|(port, rule)| (port, closed(rule))).collect(),
        // Where nobody shows who they are, all of the mesh call in plain text.
        colours: match has_identity {
            true => rules.colours,
            false => EdgeColours::default(),
        },
    }
}

fn leads_to(service: &Service, instance: &Instance, number: u16) -> bool {
    let mut targets = service.ports.iter();
    targets.any(|port| {
        pick(instance, &port.target, port.protocol).is_some_and(|port| port.number == number)
    })
}

/// As the registry fills them in.
fn guessed(node: &Node) -> Labels {
    let labels = [
        ("service", &node.service.name),
        ("namespace", &node.service.namespace),
        ("app", &node.service.name),
        ("version", &node.version),
        ("zone", &node.zone),
    ];
    let said = labels.into_iter().filter(|(_, value)| !value.is_empty());
    said.map(|(key, value)| (key.to_owned(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
