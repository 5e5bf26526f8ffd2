//! Who is alive: leases of instances in a timer wheel, and the guard over mass expiry. A socketless machine: time comes in
//! as milliseconds since its start, what has to be stored comes out as an answer.
//!
//! Only instances that take traffic are guarded: one that said it is draining or not ready may go by itself.
//! One lease is one slot and one entry of the wheel; a heartbeat only moves its deadline, the wheel finds out when it gets
//! there. No task, timer or allocation per heartbeat.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use phalanx_model::{InstanceId, ServiceName};
use slab::Slab;

/// Bounds of a lease, all in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlBounds {
    pub default_ms: u32,
    pub min_ms: u32,
    pub max_ms: u32,
}

impl Default for TtlBounds {
    fn default() -> Self {
        Self {
            default_ms: 30_000,
            min_ms: 1_000,
            max_ms: 600_000,
        }
    }
}

impl TtlBounds {
    /// 0 asks for the default.
    pub fn grant(&self, asked_ms: u32) -> u32 {
        if asked_ms == 0 {
            self.default_ms
        } else {
            asked_ms.clamp(self.min_ms, self.max_ms)
        }
    }
}

/// What a registration means for the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It is stored like this already.
    Unchanged,
    Write,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    #[error("instance {id} is registered with epoch {current}, which is newer than {epoch}")]
    Older {
        id: InstanceId,
        epoch: u64,
        current: u64,
    },
    #[error("{count} instances are registered, no more are taken")]
    Full { count: usize },
}

/// How one instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// With the milliseconds left.
    Live { left_ms: u64 },
    /// Expired, but still served; since when, in milliseconds of this machine's time.
    Held { since_ms: u64 },
}

#[derive(Debug)]
struct Lease {
    id: Arc<InstanceId>,
    epoch: u64,
    ttl_ms: u32,
    deadline_ms: u64,
    held_since_ms: Option<u64>,
    /// It takes traffic, so its loss would be felt.
    guarded: bool,
    /// Hash of what is stored; none: not known, so it has to be written again.
    stored: Option<u64>,
    /// The wheel's entry with this number is the valid one.
    ticket: u32,
}

impl Lease {
    /// When it was last heard of.
    fn beaten_ms(&self) -> u64 {
        self.deadline_ms.saturating_sub(self.ttl_ms.into())
    }
}

#[derive(Debug, Default)]
struct OfService {
    /// Live and guarded.
    live: usize,
    /// Live and not guarded.
    idle: usize,
    held: BTreeSet<usize>,
    /// When the last of them came to be held.
    held_last_ms: u64,
    /// When leases of it were let go by expiry alone, the last [`GUARD_MS`].
    gone: VecDeque<u64>,
}

#[derive(Debug)]
pub struct Leases {
    bounds: TtlBounds,
    index: HashMap<Arc<InstanceId>, usize>,
    slots: Slab<Lease>,
    services: HashMap<ServiceName, OfService>,
    /// Services with held leases.
    alarmed: BTreeSet<ServiceName>,
    /// The held lease that was looked at last: of very many, each tick looks at some.
    looked_at: Option<(ServiceName, usize)>,
    wheel: Wheel,
    /// Epochs of the deregistered, so that a late message of theirs does not bring them back.
    /// With the time until when.
    graves: HashMap<InstanceId, (u64, u64)>,
    buried: VecDeque<(u64, InstanceId)>,
    ticket: u32,
}

impl Leases {
    pub fn new(bounds: TtlBounds) -> Self {
        Self {
            bounds,
            index: HashMap::new(),
            slots: Slab::new(),
            services: HashMap::new(),
            alarmed: BTreeSet::new(),
            looked_at: None,
            wheel: Wheel::new(),
            graves: HashMap::new(),
            buried: VecDeque::new(),
            ticket: 0,
        }
    }

    pub fn bounds(&self) -> TtlBounds {
        self.bounds
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// A stored instance after a restart: it has one TTL to be heard of.
    pub fn recall(&mut self, id: InstanceId, epoch: u64, ttl_ms: u32, content: u64, now_ms: u64) {
        if !self.index.contains_key(&id) {
            self.insert(id, epoch, self.bounds.grant(ttl_ms), Some(content), now_ms);
        }
    }

    /// Asserts a registration; `content` is a hash of what would be stored.
    ///
    /// # Errors
    /// [`LeaseError`]: nothing changed.
    pub fn register(
        &mut self,
        id: InstanceId,
        epoch: u64,
        asked_ms: u32,
        content: u64,
        now_ms: u64,
    ) -> Result<Registered, LeaseError> {
        let ttl_ms = self.bounds.grant(asked_ms);
        if let Some(&slot) = self.index.get(&id) {
            let lease = &self.slots[slot];
            let current = lease.epoch;
            // One that is only held has been silent for longer than any message is late: a clock went back, or a twin died.
            if current > epoch && lease.held_since_ms.is_none() {
                return Err(LeaseError::Older { id, epoch, current });
            }
            self.slots[slot].epoch = epoch;
            self.slots[slot].ttl_ms = ttl_ms;
            self.revive(slot, now_ms);
            let unchanged = self.slots[slot].stored.replace(content) == Some(content);
            return Ok(if unchanged {
                Registered::Unchanged
            } else {
                Registered::Write
            });
        }
        if let Some(&(current, _)) = self.graves.get(&id).filter(|(buried, _)| *buried > epoch) {
            return Err(LeaseError::Older { id, epoch, current });
        }
        if self.slots.len() >= INSTANCES_MAX {
            return Err(LeaseError::Full {
                count: self.slots.len(),
            });
        }
        self.insert(id, epoch, ttl_ms, Some(content), now_ms);
        Ok(Registered::Write)
    }

    /// Whether an instance is to be guarded, which it is from its registration on.
    pub fn guard(&mut self, id: &InstanceId, guarded: bool) {
        let Some(&slot) = self.index.get(id) else {
            return;
        };
        let lease = &mut self.slots[slot];
        if std::mem::replace(&mut lease.guarded, guarded) == guarded {
            return;
        }
        let of = self.services.entry(id.service.clone()).or_default();
        match (lease.held_since_ms, guarded) {
            (None, true) => (of.live, of.idle) = (of.live + 1, of.idle - 1),
            (None, false) => (of.live, of.idle) = (of.live - 1, of.idle + 1),
            // It is found out when it is released, or beats again.
            (Some(_), _) => {}
        }
    }

    pub fn contains(&self, id: &InstanceId) -> bool {
        self.index.contains_key(id)
    }

    /// Drops a lease that is no longer kept here; nothing has to be deleted.
    pub fn forget(&mut self, id: &InstanceId) -> bool {
        let slot = self.index.get(id).copied();
        slot.map(|slot| self.remove(slot)).is_some()
    }

    /// Drops all leases; what was deregistered stays so.
    pub fn reset(&mut self) {
        let graves = std::mem::take(&mut self.graves);
        let buried = std::mem::take(&mut self.buried);
        *self = Self {
            graves,
            buried,
            ticket: self.ticket,
            ..Self::new(self.bounds)
        };
    }

    /// The TTL if this very life of the instance is registered and stored; none: it has to register.
    pub fn heartbeat(&mut self, id: &InstanceId, epoch: u64, now_ms: u64) -> Option<u32> {
        let slot = *self.index.get(id)?;
        let lease = &self.slots[slot];
        if lease.epoch != epoch || lease.stored.is_none() {
            return None;
        }
        let ttl_ms = lease.ttl_ms;
        self.revive(slot, now_ms);
        Some(ttl_ms)
    }

    /// Whether an instance went that has to be deleted from the store. A newer life stays.
    pub fn deregister(&mut self, id: &InstanceId, epoch: u64, now_ms: u64) -> bool {
        let slot = self.index.get(id).copied();
        if slot.is_some_and(|slot| self.slots[slot].epoch > epoch) {
            return false;
        }
        self.bury(id.clone(), epoch, now_ms);
        match slot {
            Some(slot) => {
                self.remove(slot);
                true
            }
            None => false,
        }
    }

    /// The write of this registration failed: its owner has to assert it again.
    pub fn unstored(&mut self, id: &InstanceId) {
        if let Some(&slot) = self.index.get(id) {
            self.slots[slot].stored = None;
        }
    }

    /// Lets everything go that expired until now and that the guard does not hold. Of whom is `dead` by other evidence than
    /// silence, which is told since when that lasts, the guard has nothing to say.
    pub fn expire(
        &mut self,
        now_ms: u64,
        dead: impl Fn(&InstanceId, u64) -> bool,
    ) -> Vec<InstanceId> {
        self.forget_graves(now_ms);
        let mut gone = self.bury_held(&dead);
        let mut expired: HashMap<ServiceName, Vec<usize>> = HashMap::new();
        for (slot, ticket) in self.wheel.take_until(now_ms) {
            let Some(lease) = self.slots.get(slot).filter(|lease| lease.ticket == ticket) else {
                continue;
            };
            if lease.held_since_ms.is_some() {
                continue;
            }
            if lease.deadline_ms > now_ms {
                self.wheel.put(lease.deadline_ms, slot, ticket);
            } else if !lease.guarded || dead(&lease.id, lease.beaten_ms()) {
                gone.push(self.remove(slot));
            } else {
                expired
                    .entry(lease.id.service.clone())
                    .or_default()
                    .push(slot);
            }
        }
        for (service, slots) in expired {
            if self.guards(&service, slots.len(), now_ms) {
                self.hold(&service, slots, now_ms);
            } else {
                gone.extend(slots.into_iter().map(|slot| self.let_go(slot, now_ms)));
            }
        }
        self.release_held(now_ms, &mut gone);
        gone.sort_unstable();
        gone
    }

    /// Lets the held instances of a service go, by an operator's word.
    pub fn release(&mut self, service: &ServiceName, now_ms: u64) -> Vec<InstanceId> {
        let held = self.services.get(service).map(|of| of.held.clone());
        let slots = held.unwrap_or_default();
        slots
            .into_iter()
            .map(|slot| self.let_go(slot, now_ms))
            .collect()
    }

    pub fn state(&self, id: &InstanceId, now_ms: u64) -> Option<LeaseState> {
        let lease = &self.slots[*self.index.get(id)?];
        Some(match lease.held_since_ms {
            Some(since_ms) => LeaseState::Held { since_ms },
            None => LeaseState::Live {
                left_ms: lease.deadline_ms.saturating_sub(now_ms),
            },
        })
    }

    /// Held instances, sorted, with the time since when.
    pub fn held(&self) -> Vec<(InstanceId, u64)> {
        let slots = self
            .alarmed
            .iter()
            .filter_map(|service| self.services.get(service))
            .flat_map(|of| &of.held);
        let mut held: Vec<_> = slots
            .filter_map(|slot| self.slots.get(*slot))
            .map(|l| ((*l.id).clone(), l.held_since_ms.unwrap_or(0)))
            .collect();
        held.sort_unstable();
        held
    }

    /// Held instances, by service, with the time when each was heard of last.
    pub fn held_since_beat(&self) -> Vec<(InstanceId, u64)> {
        let services = self.alarmed.iter().filter_map(|s| self.services.get(s));
        let slots = services.flat_map(|of| &of.held);
        slots
            .filter_map(|slot| self.slots.get(*slot))
            .map(|lease| ((*lease.id).clone(), lease.beaten_ms()))
            .collect()
    }

    pub fn held_len(&self) -> usize {
        let alarmed = self.alarmed.iter();
        let held = alarmed.filter_map(|service| Some(self.services.get(service)?.held.len()));
        held.sum()
    }

    /// Lets the held go who are dead by other evidence.
    fn bury_held(&mut self, dead: impl Fn(&InstanceId, u64) -> bool) -> Vec<InstanceId> {
        let looked_at = self.looked_at.take();
        let is_at = |service: &ServiceName| looked_at.as_ref().filter(|(at, _)| at == service);
        let from = match &looked_at {
            Some((service, _)) => Bound::Included(service),
            None => Bound::Unbounded,
        };
        let services = self.alarmed.range((from, Bound::Unbounded));
        let of = services.filter_map(|service| Some((service, self.services.get(service)?)));
        let slots = of.flat_map(|(service, of)| {
            let after = is_at(service).map_or(0, |(_, slot)| slot + 1);
            of.held.range(after..).map(move |slot| (service, *slot))
        });
        let slots: Vec<(&ServiceName, usize)> = slots.take(LOOKS_MAX).collect();
        // Fewer: that was the end of them, the next time begins anew.
        let last = slots.last().filter(|_| slots.len() == LOOKS_MAX);
        let last = last.map(|(service, slot)| ((*service).clone(), *slot));
        let is_dead = |slot: &usize| {
            let lease = self.slots.get(*slot);
            lease.is_some_and(|lease| dead(&lease.id, lease.beaten_ms()))
        };
        let slots: Vec<usize> = slots
            .into_iter()
            .map(|(_, slot)| slot)
            .filter(is_dead)
            .collect();
        self.looked_at = last;
        slots.into_iter().map(|slot| self.remove(slot)).collect()
    }

    /// Whether expiry alone would take the last of a service, or with what it took just now more than half.
    fn guards(&self, service: &ServiceName, expiring: usize, now_ms: u64) -> bool {
        let Some(of) = self.services.get(service) else {
            return false;
        };
        let recent = of.gone.iter().filter(|at| **at + GUARD_MS > now_ms).count();
        let taken = recent + expiring + of.held.len();
        let all = of.live + of.held.len() + recent;
        expiring >= of.live || (all >= 2 && taken * 2 > all)
    }

    fn hold(&mut self, service: &ServiceName, slots: Vec<usize>, now_ms: u64) {
        let of = self.services.entry(service.clone()).or_default();
        of.live -= slots.len();
        of.held_last_ms = now_ms;
        for slot in slots {
            self.slots[slot].held_since_ms = Some(now_ms);
            of.held.insert(slot);
        }
        self.alarmed.insert(service.clone());
    }

    /// Held leases go when the service has come back without them: others live, at least as many.
    fn release_held(&mut self, now_ms: u64, gone: &mut Vec<InstanceId>) {
        if self.alarmed.is_empty() {
            return;
        }
        let is_back = |of: &&OfService| {
            of.live >= of.held.len().max(1) && of.held_last_ms + GUARD_MS <= now_ms
        };
        let alarmed = self.alarmed.iter();
        let back = alarmed.filter_map(|service| self.services.get(service).filter(is_back));
        let slots: Vec<usize> = back.flat_map(|of| of.held.iter().copied()).collect();
        gone.extend(slots.into_iter().map(|slot| self.let_go(slot, now_ms)));
    }

    fn let_go(&mut self, slot: usize, now_ms: u64) -> InstanceId {
        let id = self.remove(slot);
        let of = self.services.entry(id.service.clone()).or_default();
        of.gone.retain(|at| *at + GUARD_MS > now_ms);
        of.gone.push_back(now_ms);
        id
    }

    fn insert(
        &mut self,
        id: InstanceId,
        epoch: u64,
        ttl_ms: u32,
        stored: Option<u64>,
        now_ms: u64,
    ) {
        self.graves.remove(&id);
        self.services.entry(id.service.clone()).or_default().live += 1;
        let deadline_ms = now_ms + u64::from(ttl_ms);
        let ticket = self.ticket();
        let id = Arc::new(id);
        let slot = self.slots.insert(Lease {
            id: id.clone(),
            epoch,
            ttl_ms,
            deadline_ms,
            held_since_ms: None,
            guarded: true,
            stored,
            ticket,
        });
        self.index.insert(id, slot);
        self.wheel.put(deadline_ms, slot, ticket);
    }

    /// Moves the deadline to a whole TTL from now; a held lease lives again.
    fn revive(&mut self, slot: usize, now_ms: u64) {
        let ticket = self.ticket();
        let lease = &mut self.slots[slot];
        let deadline_ms = now_ms + u64::from(lease.ttl_ms);
        let held = lease.held_since_ms.take().is_some();
        // The wheel's entry is of no use when it lies later than the new deadline, or was used up.
        if held || deadline_ms < lease.deadline_ms {
            lease.ticket = ticket;
            self.wheel.put(deadline_ms, slot, ticket);
        }
        lease.deadline_ms = deadline_ms;
        if held {
            let service = lease.id.service.clone();
            let of = self.services.entry(service).or_default();
            of.held.remove(&slot);
            match lease.guarded {
                true => of.live += 1,
                false => of.idle += 1,
            }
            self.calm(slot);
        }
    }

    fn remove(&mut self, slot: usize) -> InstanceId {
        let lease = self.slots.remove(slot);
        self.index.remove(&lease.id);
        if let Some(of) = self.services.get_mut(&lease.id.service) {
            match lease.held_since_ms {
                Some(_) => drop(of.held.remove(&slot)),
                None if lease.guarded => of.live -= 1,
                None => of.idle -= 1,
            }
            if of.held.is_empty() {
                self.alarmed.remove(&lease.id.service);
            }
            if of.held.is_empty() && of.live == 0 && of.idle == 0 {
                self.services.remove(&lease.id.service);
            }
        }
        Arc::unwrap_or_clone(lease.id)
    }

    fn calm(&mut self, slot: usize) {
        let service = &self.slots[slot].id.service;
        if self
            .services
            .get(service)
            .is_some_and(|of| of.held.is_empty())
        {
            self.alarmed.remove(service);
        }
    }

    fn bury(&mut self, id: InstanceId, epoch: u64, now_ms: u64) {
        while self.buried.len() >= GRAVES_MAX {
            self.unbury();
        }
        let until = now_ms + GRAVE_MS;
        let newest = self
            .graves
            .get(&id)
            .map_or(epoch, |(buried, _)| epoch.max(*buried));
        self.buried.push_back((until, id.clone()));
        self.graves.insert(id, (newest, until));
    }

    fn forget_graves(&mut self, now_ms: u64) {
        while self
            .buried
            .front()
            .is_some_and(|(until, _)| *until <= now_ms)
        {
            self.unbury();
        }
    }

    /// Forgets the oldest burial, but not the grave of an instance that was buried again since.
    fn unbury(&mut self) {
        let Some((until, id)) = self.buried.pop_front() else {
            return;
        };
        if self
            .graves
            .get(&id)
            .is_some_and(|(_, of_grave)| *of_grave == until)
        {
            self.graves.remove(&id);
        }
    }

    fn ticket(&mut self) -> u32 {
        self.ticket = self.ticket.wrapping_add(1);
        self.ticket
    }
}

/// Buckets of [`TICK_MS`]; what lies beyond the ring waits in its last bucket and is put again.
#[derive(Debug)]
struct Wheel {
    buckets: Vec<Vec<(usize, u32)>>,
    /// The next tick to take.
    next: u64,
}

impl Wheel {
    fn new() -> Self {
        Self {
            buckets: vec![Vec::new(); WHEEL_BUCKETS as usize],
            next: 0,
        }
    }

    fn put(&mut self, deadline_ms: u64, slot: usize, ticket: u32) {
        // Rounded up, so that a bucket never comes before its deadline.
        let tick = deadline_ms
            .div_ceil(TICK_MS)
            .clamp(self.next, self.next + WHEEL_BUCKETS - 1);
        self.buckets[(tick % WHEEL_BUCKETS) as usize].push((slot, ticket));
    }

    fn take_until(&mut self, now_ms: u64) -> Vec<(usize, u32)> {
        let mut taken = Vec::new();
        let last = now_ms / TICK_MS;
        for _ in 0..WHEEL_BUCKETS {
            if self.next > last {
                break;
            }
            taken.append(&mut self.buckets[(self.next % WHEEL_BUCKETS) as usize]);
            self.next += 1;
        }
        self.next = self.next.max(last + 1);
        taken
    }
}

/// Resolution of expiry.
pub const TICK_MS: u64 = 100;
const WHEEL_BUCKETS: u64 = 1024;
/// Held leases that one tick looks at for evidence.
const LOOKS_MAX: usize = 4096;
/// What goes by expiry within this time counts together.
const GUARD_MS: u64 = 10_000;
pub const INSTANCES_MAX: usize = 1 << 20;
const GRAVES_MAX: usize = 65_536;
const GRAVE_MS: u64 = 60_000;

#[cfg(test)]
mod tests;
