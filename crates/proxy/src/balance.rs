//! Which endpoint gets the next attempt. A [`Group`] is one cluster's endpoints as the plan has them; what a core has
//! measured of them ([`Load`]) is that core's own; who is ejected ([`outlier`]) is known to all cores.
//!
//! No socket and no clock: times come in. Module order: judge, level, tier, ring, maglev, levels, load, outlier.

pub mod judge;
mod level;
pub mod levels;
pub mod load;
pub mod maglev;
pub mod outlier;
pub mod ring;
mod tier;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use phalanx_model::resource::{Health, LoadBalancer, OutlierDetection};

use self::level::{Level, State};
pub use self::load::Load;
pub use self::outlier::{Evidence, Outlier};
use self::tier::Tier;

/// The endpoints of one cluster, in the plan's order.
pub struct Group {
    policy: Policy,
    members: Box<[Member]>,
    /// The own zone and the others, where zones count; else one.
    levels: Box<[Level]>,
    /// How requests are shared between levels, packed; see [`State`].
    state: AtomicU64,
    /// Until when some members are warming up, in ms since the account's start; 0: none is.
    warm_until_ms: u64,
    /// Guards the rare decision to eject, so that all cores together keep to the limit; never taken for a pick.
    ejecting: Mutex<()>,
}

/// How a group is used.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub balancer: LoadBalancer,
    pub outlier: OutlierDetection,
    /// Below this percentage of healthy members, requests go to all.
    pub panic_percent: u32,
    /// Percent; of how much more than its share a level's members can take.
    pub overprovision: u32,
    pub slow_start: Option<SlowStart>,
    /// Far members are a baseline that stands in: only while no near one is healthy, or one could not be reached.
    pub is_lane: bool,
}

impl Policy {
    /// Without zones, panic, slow start or lane.
    pub fn new(balancer: LoadBalancer, outlier: OutlierDetection) -> Self {
        Self {
            balancer,
            outlier,
            panic_percent: PANIC_NEVER,
            overprovision: 140,
            slow_start: None,
            is_lane: false,
        }
    }
}

pub struct Member {
    pub address: SocketAddr,
    /// 1 to 128.
    pub weight: u32,
    pub health: Health,
    /// Used only for what the nearer ones can't take.
    pub is_far: bool,
    /// When it came to the others, in ms since the account's start; none: it was there with the first.
    pub joined_ms: Option<u64>,
    pub outlier: Arc<Outlier>,
}

/// Members that an earlier attempt of the same request was sent to.
#[derive(Clone, Copy, Default)]
pub struct Tried {
    members: [u32; TRIED_MAX],
    count: usize,
    /// One of them could not be connected to.
    unreached: bool,
}

/// Earlier endpoints remembered by one request; of more attempts the oldest may be met again.
pub const TRIED_MAX: usize = 8;

impl Tried {
    pub fn add(&mut self, member: usize) {
        if let Some(place) = self.members.get_mut(self.count % TRIED_MAX) {
            *place = u32::try_from(member).unwrap_or(u32::MAX);
        }
        self.count += 1;
    }

    /// Connecting to one of them failed.
    pub fn unreached(&mut self) {
        self.unreached = true;
    }

    pub fn has(&self, member: usize) -> bool {
        u32::try_from(member).is_ok_and(|member| self.contains(member))
    }

    fn contains(&self, member: u32) -> bool {
        self.members
            .iter()
            .take(self.count)
            .any(|tried| *tried == member)
    }
}

/// What a core brings to a pick.
pub struct Pick<'a, L> {
    /// By member.
    pub load: L,
    pub tried: &'a Tried,
    pub rng: &'a mut Rng,
    /// Since the account's start.
    pub now_us: u64,
    /// Counts picks, for round robin; one per core and cluster.
    pub turn: &'a mut u32,
    /// Of the request's key; without one, keyed policies pick at random.
    pub hash: Option<u64>,
}

/// A member, and how it came to be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked {
    pub member: usize,
    /// Of another zone, though zones count.
    pub is_far: bool,
    /// So few work that health did not count.
    pub in_panic: bool,
}

impl Group {
    pub fn new(policy: Policy, members: Vec<Member>) -> Self {
        let of = |far: bool| Level::new(&members, &policy, |m| m.is_far == far);
        let levels = match members.iter().any(|m| m.is_far) {
            true => [of(false), of(true)].into(),
            false => [of(false)].into(),
        };
        let window = policy.slow_start.map_or(0, |slow| slow.window_ms.max(1));
        let joined = members.iter().filter_map(|m| m.joined_ms);
        let ends = joined.map(|joined| joined.saturating_add(window));
        let group = Self {
            warm_until_ms: ends.max().filter(|_| window > 0).unwrap_or(0),
            policy,
            levels,
            members: members.into(),
            state: AtomicU64::new(0),
            ejecting: Mutex::new(()),
        };
        group.count(0);
        group
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn member(&self, index: usize) -> Option<&Member> {
        self.members.get(index)
    }

    /// Whether a key decides.
    pub fn is_keyed(&self) -> bool {
        matches!(
            self.policy.balancer,
            LoadBalancer::RingHash | LoadBalancer::Maglev
        )
    }

    /// The member for the next attempt, none only when there are no members at all.
    ///
    /// Healthy ones first, without those tried or ejected. When nothing is left, ejection is ignored (if everything is
    /// bad, spreading the load over all is better than refusing it), then what was tried; after that draining ones and
    /// last unhealthy ones: a wrong health report shall not make a service unreachable. Where zones count, the level is
    /// chosen before, and the other stands in for it.
    pub fn pick<'l>(
        &self,
        mut pick: Pick<'_, impl Fn(usize) -> Option<&'l Load>>,
    ) -> Option<Picked> {
        let now_ms = pick.now_us / 1000;
        let state = self.state(now_ms);
        let [level] = &*self.levels else {
            return self.pick_level(&mut pick, state, now_ms);
        };
        if state.panics(0)
            && let Some(member) = self.pick_panic(level, &mut pick)
        {
            return Some(Picked {
                member: member as usize,
                is_far: false,
                in_panic: true,
            });
        }
        if let [only] = *level.healthy.members {
            return Some(Picked::plain(only)); // alone: nobody else to try, and never ejected
        }
        for tier in level.tiers() {
            if let Some(member) = self.pick_tiers([Some(tier), None], &mut pick, now_ms) {
                return Some(Picked::plain(member));
            }
        }
        None
    }

    /// Out of line: most groups have one level.
    #[inline(never)]
    fn pick_level<'l>(
        &self,
        pick: &mut Pick<'_, impl Fn(usize) -> Option<&'l Load>>,
        state: State,
        now_ms: u64,
    ) -> Option<Picked> {
        let [near, far] = &*self.levels else {
            return None;
        };
        if self.stays_near(pick.tried)
            && let Some(member) = self.pick_tiers([Some(&near.healthy), None], pick, now_ms)
        {
            return Some(Picked::plain(member));
        }
        // The same key goes to the same level, as long as the shares are the same.
        let ticket = match pick.hash.filter(|_| self.is_keyed()) {
            Some(hash) => (hash % 100) as u8,
            None => pick.rng.u8(..100),
        };
        let first = usize::from(ticket >= state.first());
        let order = match first {
            0 => [near, far],
            _ => [far, near],
        };
        let picked = |member: u32, in_panic| Picked {
            member: member as usize,
            is_far: self.member(member as usize).is_some_and(|m| m.is_far),
            in_panic,
        };
        if state.panics(first)
            && let [level, _] = order
            && let Some(member) = self.pick_panic(level, pick)
        {
            return Some(picked(member, true));
        }
        let [a, b] = order.map(Level::tiers);
        a.into_iter().zip(b).find_map(|(a, b)| {
            let member = self.pick_tiers([Some(a), Some(b)], pick, now_ms)?;
            Some(picked(member, false))
        })
    }

    /// Whether the lane answers, whatever a request has tried: the baseline's answer would be another's.
    fn stays_near(&self, tried: &Tried) -> bool {
        self.policy.is_lane && !tried.unreached && self.near_healthy() > 0
    }

    fn near_healthy(&self) -> usize {
        let near = self.levels.first();
        near.map_or(0, |near| near.healthy.members.len())
    }

    /// How many may answer a request that goes to several at once.
    pub fn choices(&self) -> usize {
        match self.stays_near(&Tried::default()) {
            true => self.near_healthy(),
            false => self.members.len(),
        }
    }

    /// Any that does not drain, whatever is said of it.
    fn pick_panic<'l>(
        &self,
        level: &Level,
        pick: &mut Pick<'_, impl Fn(usize) -> Option<&'l Load>>,
    ) -> Option<u32> {
        let tried = *pick.tried;
        self.choose(&level.all, pick, |m| !tried.contains(m))
            .or_else(|| self.choose(&level.all, pick, |_| true))
    }

    fn pick_tiers<'l>(
        &self,
        tiers: [Option<&Tier>; 2],
        pick: &mut Pick<'_, impl Fn(usize) -> Option<&'l Load>>,
        now_ms: u64,
    ) -> Option<u32> {
        let tiers = tiers.map(|tier| tier.filter(|tier| !tier.members.is_empty()));
        if matches!(tiers, [None, None]) {
            return None;
        }
        let tried = *pick.tried;
        let fresh = |m: u32| !tried.contains(m);
        let in_use = |m: u32| {
            self.member(m as usize)
                .is_some_and(|member| !member.outlier.is_ejected(now_ms))
        };
        let tiers = || tiers.iter().flatten();
        None.or_else(|| tiers().find_map(|t| self.warm(t, pick, |m| fresh(m) && in_use(m))))
            .or_else(|| tiers().find_map(|t| self.choose(t, pick, fresh)))
            .or_else(|| tiers().find_map(|t| self.choose(t, pick, in_use)))
            .or_else(|| tiers().find_map(|t| self.choose(t, pick, |_| true)))
    }

    /// Like [`Group::choose`], but of what a member that warms up would get it gets only the part that it can take yet.
    #[inline]
    fn warm<'l>(
        &self,
        tier: &Tier,
        pick: &mut Pick<'_, impl Fn(usize) -> Option<&'l Load>>,
        eligible: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let picked = self.choose(tier, pick, &eligible)?;
        let now_ms = pick.now_us / 1000;
        if now_ms >= self.warm_until_ms {
            return Some(picked);
        }
        let warmth = |m: u32| self.warmth(m, now_ms);
        let part = warmth(picked);
        if part >= 1.0 || pick.rng.f32() < part {
            return Some(picked);
        }
        let others = self.choose(tier, pick, |m| eligible(m) && warmth(m) >= 1.0);
        Some(others.unwrap_or(picked))
    }

    /// 1 for a member that can take its whole share.
    fn warmth(&self, member: u32, now_ms: u64) -> f32 {
        let joined = self.member(member as usize).and_then(|m| m.joined_ms);
        match (&self.policy.slow_start, joined) {
            (Some(slow), Some(joined)) => slow.part(now_ms.saturating_sub(joined)),
            _ => 1.0,
        }
    }

    fn choose<'l>(
        &self,
        tier: &Tier,
        pick: &mut Pick<'_, impl Fn(usize) -> Option<&'l Load>>,
        eligible: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        match self.policy.balancer {
            LoadBalancer::P2c => {
                let (a, b) = tier.draw_two(pick.rng, &eligible)?;
                let (cost_a, cost_b) = (self.cost(a, pick), self.cost(b, pick));
                Some(if cost_b < cost_a { b } else { a })
            }
            LoadBalancer::LeastRequest => {
                let (a, b) = tier.draw_two(pick.rng, &eligible)?;
                let outstanding = |m: u32| (pick.load)(m as usize).map_or(0, Load::outstanding);
                // a/weight(a) against b/weight(b) without dividing
                let (left, right) = (
                    outstanding(a) * self.weight(b),
                    outstanding(b) * self.weight(a),
                );
                Some(if right < left { b } else { a })
            }
            LoadBalancer::RoundRobin => tier.next(pick.turn, pick.rng, &eligible),
            LoadBalancer::Random => tier.draw(pick.rng, &eligible),
            LoadBalancer::RingHash | LoadBalancer::Maglev => {
                let hash = pick.hash.unwrap_or_else(|| pick.rng.u64(..));
                tier.keyed(hash, &eligible)
            }
        }
    }

    fn cost<'l>(&self, member: u32, pick: &Pick<'_, impl Fn(usize) -> Option<&'l Load>>) -> f64 {
        (pick.load)(member as usize).map_or(0.0, |load| load.cost(pick.now_us, self.weight(member)))
    }

    fn weight(&self, member: u32) -> u32 {
        self.member(member as usize).map_or(1, |m| m.weight.max(1))
    }

    /// Whether a session that is at this member may stay there.
    pub fn keeps(&self, member: usize, now_ms: u64) -> bool {
        self.member(member)
            .is_some_and(|m| m.health != Health::Unhealthy && !m.outlier.is_ejected(now_ms))
    }

    /// Whether endpoints are compared with each other.
    #[inline]
    pub fn compares(&self) -> bool {
        (self.policy.outlier.success_rate_stdev | self.policy.outlier.latency_factor) != 0
    }

    /// Learns from an attempt; true when that ejected the member just now.
    pub fn report(&self, member: usize, evidence: Evidence, now_ms: u64) -> bool {
        let outlier = self.member(member).map(|m| &m.outlier);
        outlier.is_some_and(|outlier| outlier.is_due(evidence, &self.policy.outlier))
            && self.eject(member, now_ms)
    }

    /// Ejects, if that keeps to the limit.
    fn eject(&self, member: usize, now_ms: u64) -> bool {
        let Some(outlier) = self.member(member).map(|m| &m.outlier) else {
            return false;
        };
        let policy = &self.policy.outlier;
        let _guard = self
            .ejecting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let healthy = || self.members.iter().filter(|m| m.health == Health::Healthy);
        let of = healthy().count();
        let ejected = healthy().filter(|m| m.outlier.is_ejected(now_ms)).count();
        let limit = (of * policy.max_ejection_percent as usize / 100).max(1);
        if of < 2 || ejected >= limit || outlier.is_ejected(now_ms) {
            return false;
        }
        if self.policy.is_lane && self.is_last_near(member, now_ms) {
            return false;
        }
        outlier.eject(now_ms, policy);
        self.count(now_ms);
        true
    }

    /// No other of the lane works: without it the baseline would get everything.
    fn is_last_near(&self, member: usize, now_ms: u64) -> bool {
        let others = self.members.iter().enumerate();
        let others = others.filter(|(at, other)| *at != member && !other.is_far);
        let mut working = others.filter(|(_, other)| {
            other.health == Health::Healthy && !other.outlier.is_ejected(now_ms)
        });
        self.member(member).is_some_and(|member| !member.is_far) && working.next().is_none()
    }

    #[inline]
    fn state(&self, now_ms: u64) -> State {
        let state = State(self.state.load(Ordering::Relaxed));
        match state.holds(now_ms) {
            true => state,
            false => self.count(now_ms),
        }
    }

    /// Counts who works: when an ejection begins, and when one ends.
    #[cold]
    fn count(&self, now_ms: u64) -> State {
        let state = State::new(&self.levels, &self.members, &self.policy, now_ms);
        self.state.store(state.0, Ordering::Relaxed);
        state
    }
}

impl Picked {
    /// By a session.
    pub fn wanted(member: usize) -> Self {
        Self {
            member,
            is_far: false,
            in_panic: false,
        }
    }

    fn plain(member: u32) -> Self {
        Self {
            member: member as usize,
            is_far: false,
            in_panic: false,
        }
    }
}

/// How an endpoint that comes later is let in: with a part of its share that grows over `window_ms`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    pub window_ms: u64,
    pub min_percent: u32,
}

impl SlowStart {
    /// After `age_ms`.
    fn part(&self, age_ms: u64) -> f32 {
        let grown = age_ms as f32 / self.window_ms.max(1) as f32;
        grown.max(self.min_percent as f32 / 100.0)
    }
}

/// Spread over all only when none is left.
pub const PANIC_NEVER: u32 = 1;

#[cfg(test)]
mod keyed_tests;
#[cfg(test)]
mod tests;
