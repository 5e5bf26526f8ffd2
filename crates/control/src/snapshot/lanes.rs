//! Lanes: which instances take the requests of one colour, and the rules that lead there.
//!
//! Where a service has instances of a lane they are taken out of its cluster; a cluster of the lane has them before the
//! others. Each rule that leads to such a service gets a twin in front of it, for that colour only. So every data plane
//! that knows routes and priorities knows lanes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phalanx_model::document::{ColourPolicy, Document, DocumentId, Fallback, Lane, StreamBackend};
use phalanx_model::identity::SYSTEM_NAMESPACE;
use phalanx_model::instance::Labels;
use phalanx_model::matching::pattern::Pattern;
use phalanx_model::resource::colour::{COLOUR_HEADER, EdgeColours, LANES_MAX};
use phalanx_model::resource::gateway::Share;
use phalanx_model::resource::{
    Action, Assignment, Backend, Endpoint, Forward, HeaderMatch, Rule, RuleMatch, ValueMatch,
};
use phalanx_model::{ClusterName, ServiceName};

use super::catalog::finding;
use super::{Catalog, Finding};
use crate::world::{DocumentEntry, World};

/// What all ColourPolicies say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lanes(Arc<Said>);

#[derive(Debug, Default, PartialEq)]
struct Said {
    /// By namespace; those of [`SYSTEM_NAMESPACE`] are the mesh's. The older first.
    lanes: BTreeMap<String, Vec<KnownLane>>,
    /// By Gateway.
    gateways: BTreeMap<ServiceName, EdgeColours>,
    /// Of every edge of a namespace, or of the mesh, as above.
    edges: BTreeMap<String, EdgeColours>,
}

/// A lane in force, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownLane {
    pub lane: Lane,
    pub policy: DocumentId,
}

impl KnownLane {
    /// Nobody stands in for its instances.
    pub(super) fn refuses(&self) -> bool {
        self.lane.fallback == Fallback::Refuse
    }
}

/// An endpoint, and the colour of the lane it belongs to.
pub(super) struct Placed {
    pub(super) lane: Option<String>,
    pub(super) endpoint: Endpoint,
}

impl Lanes {
    /// The older policy wins.
    pub(super) fn compile<'d>(
        world: &World,
        policies: impl Iterator<Item = &'d DocumentId>,
        findings: &mut Vec<Finding>,
    ) -> Self {
        let policies = policies.filter_map(|id| {
            let entry = &**world.documents.get(id)?;
            match entry.document.as_deref()? {
                Document::ColourPolicy(policy) => Some((entry, policy)),
                _ => None,
            }
        });
        let mut policies: Vec<_> = policies.collect();
        policies.sort_by_key(|(entry, _)| (entry.created_ms, &entry.id));
        let mut said = Said::default();
        let mut by: BTreeMap<Option<&ServiceName>, BTreeMap<&str, &DocumentId>> = BTreeMap::new();
        let mut colours = BTreeSet::new();
        for (entry, policy) in policies {
            said.edge(entry, policy, &mut by, findings);
            for lane in &policy.lanes {
                said.lane(entry, lane, &mut colours, findings);
            }
        }
        Self(Arc::new(said))
    }

    /// For services of a namespace: its own before those of the mesh.
    pub fn of<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a KnownLane> + use<'a> {
        let own = self.0.lanes.get(namespace).map_or(&[][..], |own| own);
        let mesh = self.0.lanes.get(SYSTEM_NAMESPACE);
        let mesh = mesh.filter(|_| namespace != SYSTEM_NAMESPACE);
        let is_own = |lane: &&KnownLane| own.iter().any(|own| own.lane.colour == lane.lane.colour);
        let mesh = mesh.into_iter().flatten();
        own.iter().chain(mesh.filter(move |lane| !is_own(lane)))
    }

    /// All of them, with the namespace that they hold for.
    pub fn all(&self) -> impl Iterator<Item = (&str, &KnownLane)> {
        let all = self.0.lanes.iter();
        all.flat_map(|(namespace, lanes)| lanes.iter().map(move |lane| (namespace.as_str(), lane)))
    }

    /// What a Gateway gives to requests from outside.
    pub fn at_gateway(&self, gateway: &ServiceName) -> Option<&EdgeColours> {
        let own = self.0.gateways.get(gateway);
        own.or_else(|| self.at_inbound(&gateway.namespace))
    }

    /// The same of sidecars whose callers are not known.
    pub fn at_inbound(&self, namespace: &str) -> Option<&EdgeColours> {
        let edges = &self.0.edges;
        edges.get(namespace).or_else(|| edges.get(SYSTEM_NAMESPACE))
    }
}

/// The colour of the lane that takes an instance with these labels.
pub(super) fn colour_of(lanes: &[&KnownLane], labels: &Labels) -> Option<String> {
    let takes = |lane: &&&KnownLane| {
        let mut wanted = lane.lane.selector.iter();
        wanted.all(|(key, value)| labels.get(key) == Some(value))
    };
    let lane = lanes.iter().find(takes)?;
    Some(lane.lane.colour.clone())
}

impl Said {
    fn edge<'a>(
        &mut self,
        entry: &'a DocumentEntry,
        policy: &'a ColourPolicy,
        by: &mut BTreeMap<Option<&'a ServiceName>, BTreeMap<&'a str, &'a DocumentId>>,
        findings: &mut Vec<Finding>,
    ) {
        let Some(edge) = &policy.edge else { return };
        let namespace = policy.meta.namespace.as_str();
        let mut claim = |gateway: Option<&'a ServiceName>, what: String| {
            let known = by.entry(gateway).or_default();
            if let Some(winner) = known.get(namespace) {
                let message =
                    format!("conflicted: {winner} is older and already says what {what} give");
                findings.push(finding(entry, message));
                return false;
            }
            known.insert(namespace, &entry.id);
            true
        };
        if policy.gateways.is_empty() && claim(None, format!("the edges of namespace {namespace}"))
        {
            self.edges.insert(namespace.to_owned(), edge.clone());
        }
        for gateway in &policy.gateways {
            if claim(Some(gateway), format!("edges of Gateway {gateway}")) {
                self.gateways.insert(gateway.clone(), edge.clone());
            }
        }
    }

    fn lane<'a>(
        &mut self,
        entry: &DocumentEntry,
        lane: &'a Lane,
        colours: &mut BTreeSet<&'a str>,
        findings: &mut Vec<Finding>,
    ) {
        let namespace = &entry.id.namespace;
        let colour = lane.colour.as_str();
        if !colours.contains(colour) && colours.len() >= LANES_MAX {
            let message =
                format!("lane {colour}: a mesh has lanes for {LANES_MAX} colours at most");
            findings.push(finding(entry, message));
            return;
        }
        let known = self.lanes.entry(namespace.clone()).or_default();
        if let Some(winner) = known.iter().find(|known| known.lane.colour == colour) {
            let message = format!(
                "conflicted: {} is older and already has a lane {colour}",
                winner.policy
            );
            findings.push(finding(entry, message));
            return;
        }
        colours.insert(colour);
        known.push(KnownLane {
            lane: lane.clone(),
            policy: entry.id.clone(),
        });
    }
}

/// The endpoint sets of one port.
pub(super) struct Split {
    pub(super) baseline: Vec<Endpoint>,
    /// By colour.
    pub(super) lanes: BTreeMap<String, Vec<Endpoint>>,
}

/// Lanes without an endpoint there are left out, but for those that this service is said to have, and those `registered`
/// that refuse: their requests are nobody else's while an instance starts or leaves.
pub(super) fn split(
    lanes: &[&KnownLane],
    service: &ServiceName,
    registered: &BTreeSet<String>,
    placed: Vec<Placed>,
) -> Split {
    let mut of_lanes: BTreeMap<String, Vec<Endpoint>> = BTreeMap::new();
    let said = lanes
        .iter()
        .filter(|lane| lane.lane.services.contains(service));
    let said = said.map(|lane| &lane.lane.colour).chain(registered);
    of_lanes.extend(said.map(|colour| (colour.clone(), Vec::new())));
    let mut baseline = Vec::new();
    for one in placed {
        match one.lane {
            Some(colour) => of_lanes.entry(colour).or_default().push(one.endpoint),
            None => baseline.push(one.endpoint),
        }
    }
    for (colour, endpoints) in &mut of_lanes {
        let mut known = lanes.iter();
        let falls_back = known.any(|known| known.lane.colour == *colour && !known.refuses());
        if falls_back {
            let far = |endpoint: &Endpoint| Endpoint {
                is_far: true,
                ..endpoint.clone()
            };
            endpoints.extend(baseline.iter().map(far));
            endpoints.sort_by_key(|endpoint| endpoint.address);
        }
    }
    Split {
        baseline,
        lanes: of_lanes,
    }
}

/// As long as one in a hundred of a lane's endpoints works, it takes everything.
pub(super) fn assignment(cluster: ClusterName, endpoints: Vec<Endpoint>) -> Assignment {
    Assignment {
        cluster,
        endpoints,
        overprovision: Some(OVERPROVISION),
    }
}

const OVERPROVISION: u32 = 10_000;

/// In front of each rule its twins: one for each colour that has a lane behind it.
pub(super) fn with_twins(rules: Vec<Rule>, catalog: &Catalog) -> Vec<Rule> {
    let mut all = Vec::with_capacity(rules.len());
    for rule in rules {
        let colours: BTreeSet<&String> = match &rule.action {
            Action::Forward(forward) => forward
                .backends
                .iter()
                .filter(|backend| backend.weight > 0 || !is_of_a_colour(&rule))
                .flat_map(|backend| lanes_of(backend, catalog))
                .collect(),
            Action::Redirect(_) | Action::Respond(_) => BTreeSet::new(),
        };
        let twins = colours
            .iter()
            .filter_map(|colour| twin(&rule, colour, catalog));
        let twins: Vec<Rule> = twins.collect();
        all.extend(twins);
        all.push(rule);
    }
    all
}

fn lanes_of<'a>(backend: &Backend, catalog: &'a Catalog) -> &'a [String] {
    let port = backend.cluster.as_ref();
    let port = port.and_then(|cluster| catalog.port(&cluster.service, cluster.port));
    port.map_or(&[], |port| &port.lanes)
}

/// Where datagrams of a colour go: all of them to those backends that have its lane, weighed as by [`twin`]. None: nobody has.
pub(super) fn in_lane(
    backends: &[StreamBackend],
    colour: &str,
    catalog: &Catalog,
) -> Option<Vec<Share>> {
    let has_lane = |backend: &&StreamBackend| {
        let port = catalog.port(&backend.service, backend.port);
        port.is_some_and(|port| port.lanes.iter().any(|lane| lane == colour))
    };
    let those = || backends.iter().filter(has_lane);
    let is_weighed = those().any(|backend| backend.weight > 0);
    let share = |backend: &StreamBackend| Share {
        cluster: Some(ClusterName::outbound(backend.service.clone(), backend.port).lane(colour)),
        weight: backend.weight.max(1),
    };
    let shares: Vec<Share> = those()
        .filter(|backend| !is_weighed || backend.weight > 0)
        .map(share)
        .collect();
    (!shares.is_empty()).then_some(shares)
}

/// A rule that speaks of one colour itself means its weights for that colour.
fn is_of_a_colour(rule: &Rule) -> bool {
    let mut headers = rule.matches.headers.iter();
    headers
        .any(|header| header.name == COLOUR_HEADER && matches!(header.value, ValueMatch::Exact(_)))
}

/// Among several backends those that have the lane get all of its requests, also where the others' have none of the rule's: a
/// developer's build does not vanish when a rollout takes the weight off the version that it was made from. None where the
/// rule is for another colour.
fn twin(rule: &Rule, colour: &str, catalog: &Catalog) -> Option<Rule> {
    let Action::Forward(forward) = &rule.action else {
        return None;
    };
    let has_lane = |backend: &&Backend| {
        let lanes = lanes_of(backend, catalog);
        lanes.iter().any(|lane| lane == colour)
    };
    let those = || forward.backends.iter().filter(has_lane);
    let weighs = |backend: &&Backend| backend.weight > 0;
    let is_weighed = those().any(|backend| weighs(&backend));
    let in_lane = |backend: &Backend| Backend {
        cluster: backend.cluster.as_ref().map(|cluster| cluster.lane(colour)),
        weight: backend.weight.max(1),
        ..backend.clone()
    };
    let backends = those()
        .filter(|backend| !is_weighed || weighs(backend))
        .map(in_lane);
    Some(Rule {
        matches: narrowed(&rule.matches, colour)?,
        action: Action::Forward(Forward {
            backends: backends.collect(),
            ..forward.clone()
        }),
        ..rule.clone()
    })
}

/// The same for requests of this colour only.
fn narrowed(matches: &RuleMatch, colour: &str) -> Option<RuleMatch> {
    let mut narrowed = matches.clone();
    let of_colour = |header: &HeaderMatch| match &header.value {
        _ if header.name != COLOUR_HEADER => true,
        ValueMatch::Exact(value) => value == colour,
        ValueMatch::Regex(text) => {
            Pattern::parse(text).is_ok_and(|pattern| pattern.matches(colour.as_bytes()))
        }
    };
    if !matches.headers.iter().all(of_colour) {
        return None;
    }
    narrowed
        .headers
        .retain(|header| header.name != COLOUR_HEADER);
    narrowed.headers.push(HeaderMatch {
        name: COLOUR_HEADER.to_owned(),
        value: ValueMatch::Exact(colour.to_owned()),
    });
    Some(narrowed)
}
