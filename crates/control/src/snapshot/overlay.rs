//! Rollouts over routes: what a rule does while one leads it, and why a Rollout leads nothing. The documents stay as they are;
//! a rule is led where it names each of the two Services once.

use std::borrow::Cow;
use std::collections::BTreeSet;

use phalanx_model::ServiceName;
use phalanx_model::document::rollout::{Boundary, Rollout};
use phalanx_model::document::{BackendRef, Document, DocumentId, MirrorRef, Route, RouteRule};
use phalanx_model::resource::colour::COLOUR_HEADER;
use phalanx_model::resource::{Action, HeaderMatch, Rule, RuleMatch, ValueMatch};

use super::catalog::{finding, policy_of, select};
use super::index::Index;
use super::{Catalog, Mesh};
use crate::world::rollout::{Overlay, subject};
use crate::world::{DocumentEntry, Registered, World};

/// What leads a route.
#[derive(Clone, Copy)]
pub(super) struct Lead<'a> {
    rollout: &'a Rollout,
    overlay: Option<&'a Overlay>,
}

impl<'a> Lead<'a> {
    /// The oldest Rollout that names this route.
    pub(super) fn of(world: &'a World, index: &Index, route: &DocumentId) -> Option<Self> {
        let (entry, rollout) = leader(world, index, route)?;
        let progress = world.rollouts.get(&entry.id);
        // Nobody knows how far it was: the documents say what holds.
        if progress.is_some_and(|progress| progress.damage.is_some()) {
            return None;
        }
        // Of other Services than these it says nothing.
        let progress = progress.filter(|p| p.record.subject == subject(rollout));
        Some(Self {
            rollout,
            overlay: progress.map(|p| &p.record.overlay),
        })
    }

    /// What takes the place of a rule; the narrower first.
    fn rules<'r>(&self, rule: &'r RouteRule, catalog: &Catalog) -> Vec<Cow<'r, RouteRule>> {
        let Some([stable, canary]) = versions(self.rollout, rule) else {
            return vec![Cow::Borrowed(rule)];
        };
        let nothing = Overlay::default();
        let overlay = self.overlay.unwrap_or(&nothing);
        let mut led = rule.clone();
        self.weigh(&mut led, stable, canary, overlay.weight, catalog);
        if let Some(mirror) = overlay.mirror {
            let BackendRef { service, port, .. } = &rule.backends[canary];
            let (service, port) = (service.clone(), *port);
            led.mirrors
                .retain(|m| (&m.service, m.port) != (&service, port));
            led.mirrors.push(MirrorRef {
                service,
                port,
                per_million: mirror.per_million,
            });
        }
        let Some(lane) = &overlay.lane else {
            return vec![Cow::Owned(led)];
        };
        let mut of_lane = rule.clone();
        self.weigh(&mut of_lane, stable, canary, 100, catalog);
        of_lane.matches.retain_mut(|matches| narrow(matches, lane));
        if of_lane.matches.is_empty() {
            return vec![Cow::Owned(led)];
        }
        vec![Cow::Owned(of_lane), Cow::Owned(led)]
    }

    /// The share that both have together stays what it is.
    fn weigh(
        &self,
        rule: &mut RouteRule,
        stable: usize,
        canary: usize,
        weight: u32,
        catalog: &Catalog,
    ) {
        let share: u32 = [stable, canary]
            .map(|of| rule.backends[of].weight)
            .iter()
            .sum();
        let has_others = rule.backends.len() > 2;
        let weight = weight.min(100);
        let unit = match has_others {
            // Of a share of 0 nothing is left to divide.
            true => share,
            false => share.min(1),
        };
        for (index, backend) in rule.backends.iter_mut().enumerate() {
            backend.weight = match index {
                _ if index == stable => unit * (100 - weight),
                _ if index == canary => unit * weight,
                _ => backend.weight * 100,
            };
        }
        if self.rollout.boundary == Boundary::None && share > 0 {
            let idle = [(stable, 100), (canary, 0)]
                .into_iter()
                .find(|(_, whole)| *whole == weight);
            if let Some((idle, _)) = idle
                && !outlasts(&rule.backends[idle], catalog)
            {
                rule.backends.remove(idle);
            }
        }
    }
}

/// To requests of this colour. False: it is for others, or may be.
fn narrow(matches: &mut RuleMatch, lane: &str) -> bool {
    let speaks_of_it = |header: &&HeaderMatch| header.name == COLOUR_HEADER;
    let exactly = ValueMatch::Exact(lane.to_owned());
    if matches.headers.iter().any(|header| speaks_of_it(&header)) {
        let mut colours = matches.headers.iter().filter(speaks_of_it);
        return colours.all(|header| header.value == exactly);
    }
    matches.headers.push(HeaderMatch {
        name: COLOUR_HEADER.to_owned(),
        value: exactly,
    });
    true
}

/// What is found by a directory or by its colour has to be found without weight too.
fn outlasts(backend: &BackendRef, catalog: &Catalog) -> bool {
    let port = catalog.port(&backend.service, backend.port);
    port.is_some_and(|port| port.has_directory || !port.lanes.is_empty())
}

/// Answers of its copies are compared, where a rollout says so and the route does not.
pub(super) fn compared(lead: Option<&Lead<'_>>, mut rule: Rule) -> Rule {
    let overlay = lead.and_then(|lead| lead.overlay);
    let compares = overlay
        .and_then(|overlay| overlay.mirror)
        .is_some_and(|mirror| mirror.compare);
    if let Action::Forward(forward) = &mut rule.action
        && compares
        && !forward.mirrors.is_empty()
    {
        forward.compare.get_or_insert_default();
    }
    rule
}

/// What takes the place of a rule, led or not.
pub(super) fn led<'r>(
    lead: Option<&Lead<'_>>,
    rule: &'r RouteRule,
    catalog: &Catalog,
) -> Vec<Cow<'r, RouteRule>> {
    lead.map_or_else(
        || vec![Cow::Borrowed(rule)],
        |lead| lead.rules(rule, catalog),
    )
}

/// Where each of both stands among the backends, if it stands there once.
fn versions(rollout: &Rollout, rule: &RouteRule) -> Option<[usize; 2]> {
    if rule.backends.iter().any(|b| b.weight > WEIGHT_MAX) {
        return None;
    }
    let place = |service: &ServiceName| {
        let mut places = (rule.backends.iter().enumerate())
            .filter(|(_, backend)| backend.service == *service)
            .map(|(index, _)| index);
        places.next().filter(|_| places.next().is_none())
    };
    Some([place(&rollout.stable)?, place(&rollout.canary)?])
}

fn leader<'a>(
    world: &'a World,
    index: &Index,
    route: &DocumentId,
) -> Option<(&'a DocumentEntry, &'a Rollout)> {
    let of_route = index.rollouts.of(route).filter_map(|id| {
        let entry = &**world.documents.get(id)?;
        match entry.document.as_deref()? {
            Document::Rollout(rollout) => Some((entry, rollout)),
            _ => None,
        }
    });
    of_route.min_by_key(|(entry, _)| (entry.created_ms, &entry.id))
}

/// Says again what these Rollouts can't do.
pub(super) fn note(mesh: &mut Mesh, world: &World, rollouts: BTreeSet<DocumentId>) {
    for id in rollouts {
        let mut findings = Vec::new();
        if let Some(entry) = world.documents.get(&id)
            && let Some(Document::Rollout(rollout)) = entry.document.as_deref()
        {
            let why = mesh.obstacle(world, &id, rollout);
            findings.extend(why.map(|why| finding(entry, why)));
        }
        let key = ServiceName::new(&id.namespace, &id.name);
        mesh.notes.of_rollouts.set(&key, findings);
    }
}

impl Mesh {
    /// Label `version` of the instances behind a Service.
    pub fn versions(&self, world: &World, service: &ServiceName) -> BTreeSet<String> {
        let instances: Vec<&Registered> = match world.service(service) {
            Some(document) => select(world, &self.index, document),
            None => {
                let of_name = world.instances.service(service).into_iter();
                of_name
                    .flat_map(|all| all.values().map(|one| &**one))
                    .collect()
            }
        };
        let labels = instances.iter().map(|one| &one.instance.labels);
        labels
            .filter_map(|labels| labels.get("version"))
            .cloned()
            .collect()
    }

    /// Why a Rollout leads nothing, or must not go on.
    pub fn obstacle(&self, world: &World, id: &DocumentId, rollout: &Rollout) -> Option<String> {
        let target = &rollout.target;
        let leader = leader(world, &self.index, target);
        if let Some((leader, _)) = leader.filter(|(leader, _)| leader.id != *id) {
            return Some(format!(
                "conflicted: {} is older and governs {target} already",
                leader.id
            ));
        }
        if let Some(quarantine) = world.quarantined.get(&target.to_string()) {
            return Some(format!("{target} is in quarantine: {}", quarantine.message));
        }
        let Some(Document::Route(route)) = world.document(target) else {
            return Some(format!("unattached: {target} does not exist (yet)"));
        };
        let led = |rule: &&RouteRule| versions(rollout, rule).is_some();
        if !route.rules.iter().any(|rule| led(&rule)) {
            return Some(format!(
                "no rule of {target} has both {} and {} among its backends, each once",
                rollout.stable, rollout.canary
            ));
        }
        self.boundless(world, rollout, route)
    }

    /// Why matches could not stay where they are.
    pub fn boundless(&self, world: &World, rollout: &Rollout, route: &Route) -> Option<String> {
        if rollout.boundary != Boundary::Match {
            return None;
        }
        let keeps = |service: &ServiceName| {
            policy_of(world, &self.index, service)
                .is_some_and(|policy| policy.session_directory.is_some())
        };
        let by_directory = keeps(&rollout.stable) && keeps(&rollout.canary);
        let mut led = (route.rules.iter()).filter(|rule| versions(rollout, rule).is_some());
        let lacks = led.any(|rule| rule.session.is_none());
        (lacks && !by_directory).then(|| {
            format!(
                "boundary `match` needs sessions: a rule of {} that it governs has no `sessionPersistence`, and not both Services have a session directory",
                rollout.target
            )
        })
    }
}

/// The Gateway API's; multiplied by a hundred, 16 of them still fit in what Envoy takes.
const WEIGHT_MAX: u32 = 1_000_000;

#[cfg(test)]
mod tests;
