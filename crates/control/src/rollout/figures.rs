//! What callers saw of both versions, gathered from all control planes: each tells what it was told since it started, and
//! what came between two looks is the difference.

use std::collections::BTreeMap;

use phalanx_client::api;
use phalanx_model::ServiceName;
use phalanx_model::document::rollout::Rollout;

use super::machine::Sight;
use crate::discovery::Fleet;
use crate::observe::{Counts, Observe};

/// The answers of all control planes, by name.
#[derive(Debug, Default)]
pub struct Told {
    planes: BTreeMap<String, api::RolloutFigures>,
    problems: Vec<String>,
}

/// What each control plane had told at the look before.
#[derive(Clone, Debug, Default)]
pub struct Bases {
    /// Of which Services.
    of: Option<[ServiceName; 2]>,
    planes: BTreeMap<String, (u64, Sight)>,
}

impl Told {
    pub fn take(&mut self, plane: &str, answer: Result<api::RolloutFigures, String>) {
        match answer {
            Ok(figures) => drop(self.planes.insert(plane.to_owned(), figures)),
            Err(error) => {
                let problem = format!("control plane {plane} can't be asked: {error}");
                self.problems.push(problem);
            }
        }
    }

    /// What can't be seen.
    pub fn blind(&self) -> Option<String> {
        (!self.problems.is_empty()).then(|| self.problems.join("; "))
    }

    /// The newest refusal of the route.
    pub fn refused(&self, rollout: &Rollout) -> Option<(u64, String)> {
        let target = rollout.target.to_string();
        let refusals = self.planes.values().flat_map(|figures| &figures.refused);
        let of_target = refusals.filter(|refusal| {
            let mut rules = refusal.rule.split(", ");
            rules.any(|rule| {
                let rest = rule.strip_prefix(target.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        });
        let newest = of_target.max_by_key(|refusal| refusal.since_revision)?;
        let text = format!("{} does not take {target}: {}", newest.node, newest.message);
        Some((newest.since_revision, text))
    }
}

impl Bases {
    /// What came since the look before.
    pub fn since(&mut self, rollout: &Rollout, told: &Told) -> Sight {
        let of = [rollout.stable.clone(), rollout.canary.clone()];
        if self.of.as_ref() != Some(&of) {
            self.planes.clear();
            self.of = Some(of);
        }
        let mut sight = Sight::default();
        for (plane, figures) in &told.planes {
            // It was not asked about them: no word is no zero.
            let Some(now) = seen(rollout, figures) else {
                continue;
            };
            match self
                .planes
                .insert(plane.clone(), (figures.life, now.clone()))
            {
                // What it counted before anybody asked is not of this rollout.
                None => {}
                Some((life, before)) if life == figures.life => sight.add(&since(&now, &before)),
                Some(_) => sight.add(&now),
            }
        }
        sight
    }
}

fn since(now: &Sight, before: &Sight) -> Sight {
    Sight {
        canary: now.canary.since(&before.canary),
        stable: now.stable.since(&before.stable),
        compared: now.compared.saturating_sub(before.compared),
        different: now.different.saturating_sub(before.different),
    }
}

/// None where nothing was told of one of both.
fn seen(rollout: &Rollout, figures: &api::RolloutFigures) -> Option<Sight> {
    let counts = |service: &ServiceName| {
        let told = figures.services.get(&service.to_string())?;
        Some(Counts {
            requests: told.requests,
            failures: told.failures,
            latency: told.latency.clone(),
        })
    };
    let copies = figures.services.get(&copies(rollout));
    Some(Sight {
        canary: counts(&rollout.canary)?,
        stable: counts(&rollout.stable)?,
        compared: copies.map_or(0, |told| told.compared),
        different: copies.map_or(0, |told| told.different),
    })
}

/// What to ask each control plane for.
pub fn questions(rollout: &Rollout) -> [String; 3] {
    let [stable, canary] = [&rollout.stable, &rollout.canary].map(ToString::to_string);
    [stable, canary, copies(rollout)]
}

/// `<Kind>/<namespace>/<route>@<namespace>/<mirror>`: the copies that go to the new version.
fn copies(rollout: &Rollout) -> String {
    format!("{}@{}", rollout.target, rollout.canary)
}

/// What this control plane was told.
pub fn here(observe: &Observe, fleet: &Fleet, services: &[String]) -> api::RolloutFigures {
    let counted = services.iter().filter_map(|text| {
        if let Some((route, mirror)) = text.split_once('@') {
            let (namespace, name) = mirror.split_once('/')?;
            let compared = observe.compared(route, &ServiceName::new(namespace, name));
            let told = api::ServiceCounts {
                compared: compared.compared,
                different: compared.different,
                ..api::ServiceCounts::default()
            };
            return Some((text.clone(), told));
        }
        let (namespace, name) = text.split_once('/')?;
        let counts = observe.service(&ServiceName::new(namespace, name));
        let told = api::ServiceCounts {
            requests: counts.requests,
            failures: counts.failures,
            latency: counts.latency,
            ..api::ServiceCounts::default()
        };
        Some((text.clone(), told))
    });
    let refusals = fleet.proxies().into_iter().flat_map(|proxy| {
        let node = proxy.node.id;
        let refused = proxy.refused.into_iter();
        refused.map(move |refused| api::RolloutRefusal {
            rule: refused.rule,
            node: node.clone(),
            message: refused.message,
            since_revision: refused.since_revision,
        })
    });
    api::RolloutFigures {
        life: observe.life(),
        services: counted.take(SERVICES_MAX).collect(),
        refused: refusals.take(REFUSALS_MAX).collect(),
    }
}

/// Of one question.
const SERVICES_MAX: usize = 1024;
/// Of one answer.
const REFUSALS_MAX: usize = 64;

#[cfg(test)]
mod tests;
