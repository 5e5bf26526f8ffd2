//! What must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use phalanx_control::world::World;
use phalanx_model::document::{DocumentId, Kind};
use phalanx_store::Watch;
use tokio::time::Instant;

/// Of the simulated instances.
pub const TTL: Duration = Duration::from_secs(3);
/// Between a beat that the control plane took and the moment its sender knows: delays both ways, and the sampling.
const SLACK: Duration = Duration::from_millis(500);

/// Shared by everything in a run.
#[derive(Clone, Default)]
pub struct Oracle {
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
pub struct Known {
    /// Route → the last number that was acknowledged, and the last that was tried.
    rules: BTreeMap<String, (u64, u64)>,
    /// That anybody was shown.
    revision: u64,
    /// Instances that shall be there, and when the control plane last answered them.
    alive: BTreeMap<String, Instant>,
    /// Registered in this world.
    present: BTreeSet<String>,
    /// Instances that went.
    gone: u64,
    /// Rules that were not stored, or not surely.
    refused: u64,
}

impl Oracle {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// Instances that went, and rules that were refused.
    pub fn counts(&self) -> (u64, u64) {
        let known = self.known();
        (known.gone, known.refused)
    }

    pub fn refused(&self) {
        self.known().refused += 1;
    }

    pub fn tried(&self, rule: &str, number: u64) {
        self.known().rules.entry(rule.to_owned()).or_default().1 = number;
    }

    pub fn acknowledged(&self, rule: &str, number: u64, revision: u64) {
        self.known().rules.entry(rule.to_owned()).or_default().0 = number;
        self.shown(revision);
    }

    /// Somebody outside was told of this revision.
    pub fn shown(&self, revision: u64) {
        let mut known = self.known();
        known.revision = known.revision.max(revision);
    }

    pub fn born(&self, instance: &str) {
        self.known()
            .alive
            .insert(instance.to_owned(), Instant::now());
    }

    /// The control plane answered it.
    pub fn beat(&self, instance: &str) {
        if let Some(beat) = self.known().alive.get_mut(instance) {
            *beat = Instant::now();
        }
    }

    /// It shall not be there any more.
    pub fn leaves(&self, instance: &str) {
        self.known().alive.remove(instance);
    }

    /// The machine slept: nobody could beat, and no lease may have run on.
    pub fn jumped(&self, by: Duration) {
        for beat in self.known().alive.values_mut() {
            *beat += by;
        }
    }

    /// A control plane started from what the disk kept.
    pub fn booted(&self, world: &World) {
        let known = self.known();
        assert!(
            world.revision >= known.revision,
            "revision {} after {} had been shown",
            world.revision,
            known.revision
        );
        drop(known);
        self.rules_hold(world);
        self.known().present = present(world);
    }

    /// The world moved on within one life.
    pub fn moved(&self, before: &World, world: &World) {
        assert!(world.revision >= before.revision);
        self.shown(world.revision);
        let now = Instant::now();
        let mut known = self.known();
        let present = present(world);
        let gone: Vec<_> = known.present.difference(&present).cloned().collect();
        for instance in gone {
            known.gone += 1;
            let Some(beat) = known.alive.get(&instance) else {
                continue;
            };
            assert!(
                now + SLACK >= *beat + TTL,
                "{instance} is gone, {:?} after it was last told that it is there",
                now - *beat
            );
        }
        known.present = present;
    }

    /// Every rule is at least as new as the last acknowledged, and nothing that nobody wrote.
    pub fn rules_hold(&self, world: &World) {
        for (rule, (acknowledged, tried)) in &self.known().rules {
            let id = DocumentId {
                kind: Kind::HttpRoute,
                namespace: "default".into(),
                name: rule.clone(),
            };
            let stored = world.documents.get(&id).map_or(0, |entry| {
                let text = &entry.json["spec"]["rules"][0]["name"];
                text.as_str()
                    .and_then(|name| name.strip_prefix('n'))
                    .and_then(|number| number.parse().ok())
                    .unwrap_or_else(|| panic!("{rule} has no number: {}", entry.json))
            });
            assert!(
                (*acknowledged..=*tried).contains(&stored),
                "{rule} is {stored}, {acknowledged} was acknowledged and {tried} tried"
            );
        }
    }
}

pub fn present(world: &World) -> BTreeSet<String> {
    world
        .instances
        .iter()
        .map(|registered| registered.instance.id.id.clone())
        .collect()
}

/// Every revision of one life, each once and in order.
pub async fn no_gap(mut watch: Watch, mut revision: u64) {
    while let Some(Ok(batch)) = watch.next().await {
        assert_eq!(batch.revision, revision + 1, "a gap in the watch");
        revision = batch.revision;
    }
}
