//! What is around a seed: who waits near enough on both sides, counted against the tick's operations, in memory that is
//! used again. Nothing is decided here but which partner of a pair is best.

use super::Cold;
use super::plan::PlanBook;
use super::pool::{Hot, Key, Pools, key, size_of_party, slot_of, value_of};
use crate::matchmaking::rules::{Brownout, MILLI, MatchRules, Seating};

/// Of parties with roles, so many of each size are considered on both sides of a seed.
pub const PARTY_NEAREST: usize = 16;
/// Partners of a pair that are compared on each side of a seed.
const PARTNERS_MAX: usize = 16;
/// Of each kind of ticket, so many are compared on each side of a running match: seats are few, and nearest alone would be
/// whoever came last to a place in the order.
const OPEN_NEAREST: usize = 16;
/// And so many more that are exactly as near as the last of these (newcomers all have one rating).
const OPEN_TIES: usize = 256;
/// Operations to find a place in an ordered array.
pub(super) const LANE_COST: u64 = 12;
/// Operations that the last seed of a tick may spend beyond the limit.
const OVERDRAFT: u64 = 100_000;
/// Part of a tick's operations that one seed may spend, unless it is known to need more; and the least that this is.
const SHARE: u64 = 100;
const SHARE_MIN: u64 = 1_000;

/// Of a tick: what it may spend, and memory that is used again.
#[derive(Debug)]
pub(super) struct Scratch {
    pub now_ms: u64,
    limit: u64,
    /// Where who is seeking now must stop.
    stop: u64,
    /// What one seed may spend.
    share: u64,
    pub spent: u64,
    pub plans: PlanBook,
    pub seeds: Vec<super::Age>,
    below: Vec<(i32, usize)>,
    pub around: Vec<Candidate>,
    pub candidates: Vec<Candidate>,
    pub chosen: Vec<Candidate>,
    pub anchors: Vec<i32>,
    pub seating: Seating,
    costs: Costs,
    /// Players of a match.
    pub players: usize,
    /// Is a match two tickets of one player?
    pub pairs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    pub cost: i64,
    enqueued_ms: u64,
    pub slot: u32,
    pub value: i32,
    pub size: u8,
    step: u8,
}

/// What distance, latency and waiting cost: weights over what they are measured against, in parts of 2^[`SHIFT`] so that
/// a look at a candidate needs no division.
#[derive(Debug)]
struct Costs {
    rating: i64,
    latency: Vec<i64>,
    waiting: i64,
    /// Waiting beyond this (milliseconds) counts no more.
    longest: u64,
}

const SHIFT: u32 = 24;
/// What the full weight of one part costs, per point.
const UNIT: i64 = 1_000 << SHIFT;

impl Costs {
    fn new(rules: &MatchRules) -> Self {
        let spec = rules.spec();
        let ladder = rules.ladder(Brownout::Off);
        let longest = ladder.last().map_or(0, |step| step.after_ms) + spec.step_ms;
        let over = |weight: u16, most: f64| i64::from(weight) * UNIT / (most.max(1.0) as i64);
        Self {
            rating: over(spec.quality.rating, spec.rating.window.cap * MILLI),
            latency: spec
                .regions
                .iter()
                .map(|region| f64::from(region.latency_ms_max) + spec.latency.cap)
                .map(|slowest| over(spec.quality.latency, slowest))
                .collect(),
            waiting: over(spec.quality.waiting, longest as f64),
            longest,
        }
    }

    fn distance(&self, distance: i32) -> i64 {
        ((i128::from(self.rating) * i128::from(distance)) >> SHIFT) as i64
    }

    fn latency(&self, region: usize, latency: u16) -> i64 {
        (self.latency[region] * i64::from(latency)) >> SHIFT
    }

    /// What waiting makes up for.
    fn waiting(&self, waited_ms: u64) -> i64 {
        (self.waiting * waited_ms.min(self.longest) as i64) >> SHIFT
    }
}

impl Scratch {
    pub fn new(rules: &MatchRules) -> Self {
        Self {
            now_ms: 0,
            limit: 0,
            stop: u64::MAX,
            share: 0,
            spent: 0,
            plans: PlanBook::new(rules),
            seeds: Vec::new(),
            below: Vec::new(),
            around: Vec::new(),
            candidates: Vec::new(),
            chosen: Vec::new(),
            anchors: Vec::new(),
            seating: Seating::default(),
            costs: Costs::new(rules),
            players: rules.players(),
            pairs: rules.players() == 2 && rules.team_size() == 1,
        }
    }

    pub fn begin(&mut self, now_ms: u64, operations: u64) {
        self.now_ms = now_ms;
        self.limit = operations;
        self.stop = u64::MAX;
        self.share = (operations / SHARE).max(SHARE_MIN);
        self.spent = 0;
        self.plans.begin();
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    pub fn spent(&self) -> u64 {
        self.spent
    }

    pub fn spend(&mut self, operations: u64) {
        self.spent += operations;
    }

    /// True if nobody else should seek in this tick.
    pub fn is_spent(&self) -> bool {
        self.spent >= self.limit
    }

    /// To be said before a seed seeks: those that are known to need more than a share come last, and get what is left.
    pub fn next_seed(&mut self, is_hard: bool) {
        self.stop = if is_hard {
            u64::MAX
        } else {
            self.spent.saturating_add(self.share)
        };
    }

    /// True if even who is seeking must stop: whoever began may finish, within reason.
    pub fn is_cut(&self) -> bool {
        self.spent >= self.limit.saturating_add(OVERDRAFT).min(self.stop)
    }
}

/// What a search reads while its scratch memory is written.
pub(super) struct View<'a> {
    pub rules: &'a MatchRules,
    pub pools: &'a Pools,
    pub hot: &'a [Hot],
    pub cold: &'a [Cold],
    pub region: usize,
}

impl View<'_> {
    pub fn hot(&self, slot: u32) -> &Hot {
        &self.hot[slot as usize]
    }

    fn cost(&self, costs: &Costs, slot: u32, distance: i32, now_ms: u64) -> i64 {
        let hot = self.hot(slot);
        costs.distance(distance) + costs.latency(self.region, hot.latency[self.region])
            - costs.waiting(now_ms.saturating_sub(hot.enqueued_ms))
    }

    pub fn roles(&self, slot: u32) -> impl Iterator<Item = u8> + '_ {
        let ticket = self.cold[slot as usize].ticket.as_deref();
        let players = ticket.map_or(&[][..], |ticket| ticket.players.as_slice());
        players.iter().map(|player| player.roles.0)
    }
}

impl Scratch {
    /// The best partner in one direction, if it beats `best`.
    pub fn partner(
        &mut self,
        view: &View<'_>,
        slot: u32,
        keys: impl Iterator<Item = Key>,
        best: &mut Option<(Candidate, usize)>,
    ) {
        let seed = view.hot(slot);
        let window = view.pools.window(seed.step);
        let own_latency = self.costs.latency(view.region, seed.latency[view.region]);
        // Whoever is farther can at most make up for it by having waited.
        let most = self.costs.waiting(u64::MAX) - own_latency;
        let mut seen = 0;
        for key in keys {
            let other = slot_of(key);
            if other == slot {
                continue;
            }
            self.spent += 2;
            let distance = (value_of(key) - seed.value).abs();
            let nearness = self.costs.distance(distance);
            if distance > window
                || best.is_some_and(|(best, _)| nearness - most > best.cost)
                || seen == PARTNERS_MAX
                || self.is_cut()
            {
                return;
            }
            let hot = view.hot(other);
            if distance > view.pools.window(hot.step) {
                continue;
            }
            seen += 1;
            self.spent += 4;
            let latency = self.costs.latency(view.region, hot.latency[view.region]);
            let waited = self.now_ms.saturating_sub(hot.enqueued_ms);
            let candidate = Candidate {
                cost: nearness + latency.max(own_latency) - self.costs.waiting(waited),
                enqueued_ms: hot.enqueued_ms,
                slot: other,
                value: hot.value,
                size: 1,
                step: hot.step,
            };
            if best.is_none_or(|(best, _)| candidate < best) {
                *best = Some((candidate, view.region));
            }
        }
    }

    /// True if somewhere around the seed a stretch as long as the window has enough players, whoever they are.
    pub fn are_enough(&mut self, view: &View<'_>, slot: u32, window: i32) -> bool {
        let seed = view.hot(slot);
        let needed = self.players - usize::from(seed.size);
        let (above, below) = view
            .pools
            .all(view.region)
            .around(&key(seed.value, slot, seed.size));
        // Those below, nearest first: distance, and players up to there.
        self.below.clear();
        let mut players = 0;
        for key in below {
            let distance = seed.value - value_of(key);
            if distance > window || players >= needed {
                break;
            }
            players += usize::from(size_of_party(key));
            self.below.push((distance, players));
        }
        self.spent += LANE_COST + self.below.len() as u64;
        if players >= needed {
            return true;
        }
        let mut upward = 0;
        for key in above {
            let distance = value_of(key) - seed.value;
            if distance > window {
                break;
            }
            self.spent += 1;
            if slot_of(key) == slot {
                continue;
            }
            upward += usize::from(size_of_party(key));
            while self
                .below
                .last()
                .is_some_and(|(below, _)| below + distance > window)
            {
                self.below.pop();
            }
            let downward = self.below.last().map_or(0, |(_, players)| *players);
            if upward + downward >= needed {
                return true;
            }
        }
        false
    }

    /// Those nearest to a ticket on both sides, of each kind as many as a match could use; true if those are all.
    pub fn gather(&mut self, view: &View<'_>, slot: u32, rung: u8, window: i32) -> bool {
        self.around.clear();
        let seed = *view.hot(slot);
        let from = key(seed.value, slot, seed.size);
        let mut is_whole = true;
        for lane in view.pools.lanes(view.region) {
            let most = self.most(view, lane.size, self.players - usize::from(seed.size));
            let fits = |hot: &Hot, distance: i32| {
                hot.step >= rung && distance <= view.pools.window(hot.step)
            };
            let (above, below) = lane.keys.around(&from);
            self.spent += LANE_COST;
            is_whole &= self.nearest(view, above, (slot, seed.value), window, (most, 0), fits);
            is_whole &= self.nearest(view, below, (slot, seed.value), window, (most, 0), fits);
        }
        is_whole
    }

    /// What a rung allows of those around.
    pub fn narrow(&mut self, view: &View<'_>, slot: u32, rung: u8, window: i32) {
        let value = view.hot(slot).value;
        self.candidates.clear();
        let fit = self
            .around
            .iter()
            .filter(|c| c.step >= rung && (c.value - value).abs() <= window);
        self.candidates.extend(fit);
        self.spent += self.around.len() as u64 / 4;
    }

    /// Those nearest to a running match, within its window and their own; what they cost (waiting makes up for distance)
    /// says who goes first.
    pub fn gather_open(&mut self, view: &View<'_>, value: i32, step: u8, seats: usize) {
        self.around.clear();
        let from = key(value, 0, 1);
        let window = view.pools.window(step);
        for lane in view.pools.lanes(view.region) {
            let most = match self.most(view, lane.size, seats) {
                0 => continue,
                most => (most.max(OPEN_NEAREST), OPEN_TIES),
            };
            let fits = |hot: &Hot, distance: i32| distance <= view.pools.window(hot.step);
            let (above, below) = lane.keys.around(&from);
            self.spent += LANE_COST;
            self.nearest(view, above, (u32::MAX, value), window, most, fits);
            self.nearest(view, below, (u32::MAX, value), window, most, fits);
        }
        self.candidates.clone_from(&self.around);
        self.candidates.sort_unstable();
    }

    /// Tickets of one kind are as good as each other, except for parties with roles.
    fn most(&self, view: &View<'_>, size: u8, seats: usize) -> usize {
        let most = seats / usize::from(size.max(1));
        if size > 1 && most > 0 && !view.rules.spec().roles.is_empty() {
            return most.max(PARTY_NEAREST);
        }
        most
    }

    /// False if there may be more than `most`, and than the `ties` that are as near as the last of them.
    fn nearest(
        &mut self,
        view: &View<'_>,
        keys: impl Iterator<Item = Key>,
        (own, value): (u32, i32),
        window: i32,
        (most, ties): (usize, usize),
        fits: impl Fn(&Hot, i32) -> bool,
    ) -> bool {
        let (mut kept, mut last) = (0, 0);
        for key in keys {
            let distance = (value_of(key) - value).abs();
            if distance > window {
                return true;
            }
            let is_enough = kept >= most && (distance > last || kept >= most + ties);
            if is_enough || self.is_cut() {
                return false;
            }
            self.spent += 2;
            let slot = slot_of(key);
            let hot = view.hot(slot);
            if slot == own || !fits(hot, distance) {
                continue;
            }
            (kept, last) = (kept + 1, distance);
            self.spent += 4;
            self.around.push(Candidate {
                cost: view.cost(&self.costs, slot, distance, self.now_ms),
                enqueued_ms: hot.enqueued_ms,
                slot,
                value: hot.value,
                size: hot.size,
                step: hot.step,
            });
        }
        true
    }
}
