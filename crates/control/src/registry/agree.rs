//! Keeping the leases in step with the world: this plane's instances have one, its heritage gets one, what is another's or
//! gone has none. What is stored decides, whoever stored it.

use std::sync::Arc;

use phalanx_model::instance::State;

use super::leases::Leases;
use super::{Registry, bump, content};
use crate::planes::{Duty, Held};
use crate::world::record::InstanceRecord;
use crate::world::{Registered, World};

/// What the leases were last brought in step with.
pub struct Agreed {
    pub world: Arc<World>,
    term: u64,
}

impl Registry {
    /// In a new term all leases begin anew: nobody knows what was missed.
    pub fn agree(&self, agreed: Option<Agreed>, held: Held, world: Arc<World>) -> Agreed {
        let term = held.term;
        match agreed {
            Some(agreed) if agreed.term == term => {
                if !Arc::ptr_eq(&agreed.world, &world) {
                    self.follow(&agreed.world, &world);
                }
            }
            _ => {
                self.leases().reset();
                self.survey(&world);
                tracing::info!(
                    plane = self.inner.planes.name(),
                    instances = self.len(),
                    "holds its lease, its instances have one TTL to be heard of"
                );
            }
        }
        self.inner.agreed.send_if_modified(|known| {
            let changed = *known != term;
            *known = term;
            changed
        });
        Agreed { world, term }
    }

    /// Looks at every instance.
    fn survey(&self, world: &World) {
        let duty = self.inner.planes.duty(world);
        let services = world.instances.namespaces().flat_map(|(_, of)| of.values());
        for instances in services {
            // Locked per service: with many instances this takes a while, and others beat meanwhile.
            let now = self.now_ms();
            let mut leases = self.leases();
            for registered in instances.values() {
                self.settle(&mut leases, duty, registered, now);
            }
        }
    }

    fn follow(&self, old: &World, new: &World) {
        if !old.instances.same(&new.instances) {
            self.follow_instances(old, new);
        }
        if !old.planes.keys().eq(new.planes.keys()) {
            let names: Vec<_> = new.planes.keys().collect();
            tracing::info!(?names, "control planes that are alive");
            self.survey(new);
        }
        for (service, revision) in new.releases.iter() {
            if old.releases.get(service) != Some(revision) {
                self.let_held_go(service, new);
            }
        }
    }

    fn follow_instances(&self, old: &World, new: &World) {
        let duty = self.inner.planes.duty(new);
        let now = self.now_ms();
        for (namespace, services) in new.instances.namespaces() {
            let before = old.instances.namespace(namespace);
            if before.is_some_and(|before| Arc::ptr_eq(before, services)) {
                continue;
            }
            for (name, instances) in services.iter() {
                let before = before.and_then(|before| before.get(name));
                if before.is_some_and(|before| Arc::ptr_eq(before, instances)) {
                    continue;
                }
                let mut leases = self.leases();
                for (id, registered) in instances.iter() {
                    let known = before.and_then(|before| before.get(id));
                    if !known.is_some_and(|known| Arc::ptr_eq(known, registered)) {
                        self.settle(&mut leases, duty, registered, now);
                    }
                }
            }
        }
        self.forget_deleted(old, new);
    }

    /// Deleted by another plane, by an older copy of the store, or by ourselves: whoever is alive registers again.
    fn forget_deleted(&self, old: &World, new: &World) {
        for (namespace, services) in old.instances.namespaces() {
            let after = new.instances.namespace(namespace);
            if after.is_some_and(|after| Arc::ptr_eq(after, services)) {
                continue;
            }
            for (name, instances) in services.iter() {
                let after = after.and_then(|after| after.get(name));
                if after.is_some_and(|after| Arc::ptr_eq(after, instances)) {
                    continue;
                }
                let gone = instances
                    .iter()
                    .filter(|(id, _)| after.is_none_or(|after| !after.contains_key(*id)));
                let mut leases = self.leases();
                for (_, registered) in gone {
                    leases.forget(&registered.instance.id);
                }
            }
        }
    }

    fn settle(&self, leases: &mut Leases, duty: Duty<'_>, registered: &Registered, now_ms: u64) {
        let id = &registered.instance.id;
        if !duty.has(registered) {
            if leases.forget(id) {
                bump(&self.inner.counts.handed_over, 1);
            }
            return;
        }
        // One that was let go is not taken back because its deletion is late: whoever is alive registers again.
        if !leases.contains(id) && !self.inner.writer.is_going(id) {
            let Registered { epoch, ttl_ms, .. } = *registered;
            let record = InstanceRecord::new(&registered.instance, epoch, ttl_ms)
                .of(&registered.plane, registered.asserted);
            let stored = content(&serde_json::to_vec(&record).unwrap_or_default());
            leases.recall(id.clone(), epoch, ttl_ms, stored, now_ms);
            if registered.plane != self.inner.planes.name() {
                bump(&self.inner.counts.adopted, 1);
            }
        }
        leases.guard(id, registered.state == State::Accepting);
    }
}
