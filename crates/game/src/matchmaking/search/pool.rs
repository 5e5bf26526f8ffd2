//! What waits where: per region an ordered array for each kind of ticket, counts per rating cell and step, and what
//! stirred since the last tick. From the counts follows, once per cell and tick, on which rungs of the ladder a ticket
//! there could be matched at all; what that refuses can't be matched, what it lets through may still fail.

use super::TICKETS_MAX;
use super::ordered::Ordered;
use super::plan::PlanBook;
use crate::matchmaking::rules::{Brownout, MILLI, MatchRules, STEPS_MAX, Step};
use crate::matchmaking::ticket::{PARTY_MAX, REGIONS_MAX, ROLES_MAX, Ticket};

/// Cells of the rating range: fine ones for what stirred, and coarse ones for counts.
const FINE: usize = 65_536;
const CELLS: usize = 1_024;
const FINE_PER_CELL: usize = FINE / CELLS;
/// Kinds of those who came alone: a set of roles each.
const ROLE_SETS: usize = 1 << ROLES_MAX;
const NO_LANE: u16 = u16::MAX;

const DUE: u8 = 1;
const PLACED: u8 = 2;
const PENDING: u8 = 4;
const HARD: u8 = 8;

/// What the search reads most of a ticket: one line of the processor's cache.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Hot {
    pub value: i32,
    /// Near enough at its step, one bit each.
    pub regions: u16,
    kind: u16,
    /// Place among the fine cells, once placed.
    fine: u16,
    pub step: u8,
    pub size: u8,
    flags: u8,
    /// Players who can play each role.
    able: [u8; ROLES_MAX],
    pub enqueued_ms: u64,
    /// Longest of the party's, by region; 65,535 where one didn't measure.
    pub latency: [u16; REGIONS_MAX],
}

const _: () = assert!(size_of::<Hot>() == 64);

impl Hot {
    pub fn new(rules: &MatchRules, ticket: &Ticket) -> Self {
        let size = ticket.players.len() as u8;
        let mut able = [0; ROLES_MAX];
        for (role, able) in able.iter_mut().enumerate() {
            let can = |roles: u8| roles == 0 || roles & (1 << role) != 0;
            *able = ticket
                .players
                .iter()
                .filter(|player| can(player.roles.0))
                .count() as u8;
        }
        let kind = match ticket.players.as_slice() {
            [alone] => u16::from(alone.roles.0),
            _ => ROLE_SETS as u16 + u16::from(size),
        };
        Self {
            value: rules.value(ticket),
            regions: 0,
            kind,
            fine: 0,
            step: 0,
            size,
            flags: 0,
            able,
            enqueued_ms: ticket.enqueued_ms,
            latency: rules.latency(ticket),
        }
    }

    /// What its slot is once it left; a slot that is due stays so.
    pub fn gone(&self) -> Self {
        Self {
            value: 0,
            regions: 0,
            kind: 0,
            fine: 0,
            step: 0,
            size: 0,
            flags: self.flags & DUE,
            able: [0; ROLES_MAX],
            enqueued_ms: 0,
            latency: [0; REGIONS_MAX],
        }
    }

    /// True once the pools have it.
    pub fn is_placed(&self) -> bool {
        self.flags & PLACED != 0
    }

    /// True if its slot is in the queue of those to be brought to their step.
    pub fn is_due(&self) -> bool {
        self.flags & DUE != 0
    }

    pub fn set_due(&mut self, due: bool) {
        if due {
            self.flags |= DUE;
        } else {
            self.flags &= !DUE;
        }
    }

    /// True if it was to be looked at when operations ran out.
    pub fn is_pending(&self) -> bool {
        self.flags & PENDING != 0
    }

    /// True if its last search cost more than its share.
    pub fn is_hard(&self) -> bool {
        self.flags & HARD != 0
    }

    pub fn set_hard(&mut self, hard: bool) {
        if hard {
            self.flags |= HARD;
        } else {
            self.flags &= !HARD;
        }
    }

    pub fn set_pending(&mut self, pending: bool) {
        if pending {
            self.flags |= PENDING;
        } else {
            self.flags &= !PENDING;
        }
    }
}

/// A place in the order by rating: value, slot, and the party's size less one (in the last 4 bits).
pub(super) type Key = u64;

const SIZE_BITS: u32 = 4;

pub(super) fn key(value: i32, slot: u32, size: u8) -> Key {
    let size = u64::from(size.saturating_sub(1));
    u64::from(value as u32 ^ 0x8000_0000) << 32 | u64::from(slot) << SIZE_BITS | size
}

pub(super) fn value_of(key: Key) -> i32 {
    ((key >> 32) as u32 ^ 0x8000_0000) as i32
}

pub(super) fn slot_of(key: Key) -> u32 {
    key as u32 >> SIZE_BITS
}

pub(super) fn size_of_party(key: Key) -> u8 {
    (key & ((1 << SIZE_BITS) - 1)) as u8 + 1
}

const _: () = assert!(TICKETS_MAX < 1 << (32 - SIZE_BITS) && PARTY_MAX <= 1 << SIZE_BITS);

/// Tickets of one kind in one region.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub keys: Ordered<Key>,
    /// Players of each ticket.
    pub size: u8,
}

#[derive(Debug)]
pub(super) struct Pools {
    regions: Vec<Pool>,
    shape: Shape,
}

#[derive(Debug)]
struct Shape {
    floor: i32,
    /// Of a fine cell, in thousandths.
    width: i32,
    /// Kinds of counts: tickets by size, then players by role.
    sizes: usize,
    roles: usize,
    steps: usize,
    windows: [i32; STEPS_MAX],
    players: u32,
    /// Players of each role that a match asks for.
    asked: Vec<u32>,
}

impl Shape {
    fn kinds(&self) -> usize {
        self.sizes + self.roles
    }

    fn fine(&self, value: i32) -> u16 {
        let offset = i64::from(value) - i64::from(self.floor);
        offset
            .div_euclid(i64::from(self.width))
            .clamp(0, FINE as i64 - 1) as u16
    }

    /// How many fine cells apart two can be whose values are within the window of a rung. Values beyond the ends are in
    /// the outermost cells, which is nearer than they are.
    fn reach(&self, rung: usize) -> usize {
        (self.windows[rung] / self.width) as usize + 1
    }
}

#[derive(Debug)]
struct Pool {
    all: Ordered<Key>,
    lanes: Vec<Lane>,
    lane_of: Vec<u16>,
    /// Counts by step, kind and cell.
    supply: Vec<u32>,
    /// The same of this step and later ones, summed up to (and without) each cell.
    sums: Vec<u32>,
    is_summed: bool,
    /// What stirred, by rung, one bit per fine cell.
    stirred: Vec<u64>,
    is_stirred: bool,
    /// Rungs on which something stirred within reach, by fine cell.
    near: Vec<u16>,
    /// Rungs on which a cell's tickets could be matched at all, once that is known.
    feasible: Vec<Option<u16>>,
}

const WORDS: usize = FINE / 64;

impl Pools {
    pub fn new(rules: &MatchRules) -> Self {
        let spec = rules.spec();
        let range = ((spec.rating.ceiling - spec.rating.floor) * MILLI).ceil() as i64;
        let steps = rules.ladder(Brownout::Off).len();
        let shape = Shape {
            floor: (spec.rating.floor * MILLI).round() as i32,
            width: (range.div_euclid(FINE as i64) + 1) as i32,
            sizes: rules.party_max(),
            roles: spec.roles.len(),
            steps,
            windows: [0; STEPS_MAX],
            players: rules.players() as u32,
            asked: spec
                .roles
                .iter()
                .map(|role| u32::from(role.seats) * u32::from(spec.teams))
                .collect(),
        };
        let counts = steps * shape.kinds();
        let regions = spec
            .regions
            .iter()
            .map(|_| Pool {
                all: Ordered::default(),
                lanes: Vec::new(),
                lane_of: vec![NO_LANE; ROLE_SETS + PARTY_MAX + 1],
                supply: vec![0; counts * CELLS],
                sums: vec![0; counts * (CELLS + 1)],
                is_summed: false,
                stirred: vec![0; steps * WORDS],
                is_stirred: false,
                near: vec![0; FINE],
                feasible: vec![None; CELLS],
            })
            .collect();
        Self { regions, shape }
    }

    pub fn set_ladder(&mut self, ladder: &[Step]) {
        for (window, step) in self.shape.windows.iter_mut().zip(ladder) {
            *window = step.window;
        }
    }

    pub fn window(&self, step: u8) -> i32 {
        self.shape.windows[usize::from(step)]
    }

    pub fn lanes(&self, region: usize) -> &[Lane] {
        &self.regions[region].lanes
    }

    /// All tickets of a region.
    pub fn all(&self, region: usize) -> &Ordered<Key> {
        &self.regions[region].all
    }

    /// Puts a ticket onto a step, into these regions (and those where it is already).
    pub fn place(&mut self, hot: &mut Hot, slot: u32, step: u8, regions: u16) {
        if !hot.is_placed() {
            hot.fine = self.shape.fine(hot.value);
        }
        let (old, old_step) = (if hot.is_placed() { hot.regions } else { 0 }, hot.step);
        let regions = regions | old;
        for (at, pool) in self.regions.iter_mut().enumerate() {
            let bit = 1 << at;
            if regions & bit == 0 {
                continue;
            }
            let is_new = old & bit == 0;
            if is_new {
                let key = key(hot.value, slot, hot.size);
                pool.all.insert(key);
                pool.lane(hot).keys.insert(key);
            } else {
                pool.count(&self.shape, hot, old_step, u32::wrapping_sub);
            }
            pool.count(&self.shape, hot, step, u32::wrapping_add);
            // On the rungs where it was before, nothing became possible.
            let first = if is_new { 0 } else { old_step + 1 };
            for rung in first..=step {
                pool.stir(hot.fine, rung);
            }
        }
        hot.flags |= PLACED;
        hot.step = step;
        hot.regions = regions;
    }

    pub fn remove(&mut self, hot: &Hot, slot: u32) {
        if !hot.is_placed() {
            return;
        }
        for (at, pool) in self.regions.iter_mut().enumerate() {
            if hot.regions & (1 << at) != 0 {
                let key = key(hot.value, slot, hot.size);
                pool.all.remove(&key);
                pool.lane(hot).keys.remove(&key);
                pool.count(&self.shape, hot, hot.step, u32::wrapping_sub);
            }
        }
    }

    /// Everything may be possible that wasn't.
    pub fn stir_all(&mut self) {
        for pool in &mut self.regions {
            pool.stirred.fill(u64::MAX);
            pool.is_stirred = true;
        }
    }

    /// From here to [`Pools::end`], counts are those of now (what leaves meanwhile only makes less possible).
    pub fn begin(&mut self) {
        for pool in &mut self.regions {
            pool.is_summed = false;
            pool.feasible.fill(None);
            pool.spread(&self.shape);
        }
    }

    pub fn end(&mut self) {
        for pool in &mut self.regions {
            if pool.is_stirred {
                pool.stirred.fill(0);
                pool.near.fill(0);
                pool.is_stirred = false;
            }
        }
    }

    pub fn may_match(&mut self, hot: &Hot, plans: &mut PlanBook) -> bool {
        hot.is_placed()
            && (0..self.regions.len())
                .any(|at| hot.regions & (1 << at) != 0 && self.rungs(at, hot, plans) != 0)
    }

    /// The rungs (one bit each) on which a ticket could be matched in a region and couldn't before.
    #[inline]
    pub fn rungs(&mut self, region: usize, hot: &Hot, plans: &mut PlanBook) -> u16 {
        let pool = &mut self.regions[region];
        let mut wanted = ((2_u32 << hot.step) - 1) as u16;
        if !hot.is_pending() {
            wanted &= pool.near[usize::from(hot.fine)];
        }
        if wanted != 0 {
            wanted &=
                pool.feasible_rungs(&self.shape, usize::from(hot.fine) / FINE_PER_CELL, plans);
        }
        wanted
    }

    /// True if something stirred that a running match of this value and step could use.
    pub fn stirred_near(&self, region: usize, value: i32, step: u8) -> bool {
        let own = ((2_u32 << step) - 1) as u16;
        self.regions[region].near[usize::from(self.shape.fine(value))] & own != 0
    }

    pub fn bytes(&self) -> usize {
        let of = |pool: &Pool| {
            let lanes: usize = pool.lanes.iter().map(|lane| lane.keys.bytes()).sum();
            lanes
                + pool.all.bytes()
                + (pool.supply.len() + pool.sums.len()) * 4
                + pool.stirred.len() * 8
                + (pool.near.len() + 2 * pool.feasible.len() + pool.lane_of.len()) * 2
        };
        self.regions.iter().map(of).sum()
    }
}

impl Pool {
    fn lane(&mut self, hot: &Hot) -> &mut Lane {
        let at = &mut self.lane_of[usize::from(hot.kind)];
        if *at == NO_LANE {
            *at = self.lanes.len() as u16;
            self.lanes.push(Lane {
                keys: Ordered::default(),
                size: hot.size,
            });
        }
        &mut self.lanes[usize::from(*at)]
    }

    fn count(&mut self, shape: &Shape, hot: &Hot, step: u8, change: fn(u32, u32) -> u32) {
        let cell = usize::from(hot.fine) / FINE_PER_CELL;
        let base = usize::from(step) * shape.kinds() * CELLS + cell;
        let at = base + (usize::from(hot.size) - 1) * CELLS;
        self.supply[at] = change(self.supply[at], 1);
        for role in 0..shape.roles {
            let at = base + (shape.sizes + role) * CELLS;
            self.supply[at] = change(self.supply[at], u32::from(hot.able[role]));
        }
    }

    fn stir(&mut self, fine: u16, rung: u8) {
        let (fine, rung) = (usize::from(fine), usize::from(rung));
        self.stirred[rung * WORDS + fine / 64] |= 1 << (fine % 64);
        self.is_stirred = true;
    }

    /// From what stirred to where that matters: each cell's neighbourhood by its rung's window, every stretch once.
    fn spread(&mut self, shape: &Shape) {
        if !self.is_stirred {
            return;
        }
        for rung in 0..shape.steps {
            let reach = shape.reach(rung);
            let mut filled = 0;
            for (word, bits) in self.stirred[rung * WORDS..][..WORDS].iter().enumerate() {
                let mut bits = *bits;
                while bits != 0 {
                    let cell = word * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    let from = cell.saturating_sub(reach).max(filled);
                    filled = (cell + reach + 1).min(FINE);
                    for near in &mut self.near[from.min(filled)..filled] {
                        *near |= 1 << rung;
                    }
                }
            }
        }
    }

    fn feasible_rungs(&mut self, shape: &Shape, cell: usize, plans: &mut PlanBook) -> u16 {
        if let Some(known) = self.feasible[cell] {
            return known;
        }
        self.sum_up(shape);
        let mut found = 0;
        for rung in 0..shape.steps {
            if self.is_feasible(shape, rung, cell, plans) {
                found |= 1 << rung;
            }
        }
        self.feasible[cell] = Some(found);
        found
    }

    /// What is necessary, not what is sufficient: enough players, enough for each role, parties that fill teams.
    fn is_feasible(&self, shape: &Shape, rung: usize, cell: usize, plans: &mut PlanBook) -> bool {
        let reach = shape.reach(rung).div_ceil(FINE_PER_CELL);
        let (from, to) = (cell.saturating_sub(reach), (cell + reach + 1).min(CELLS));
        let base = rung * shape.kinds() * (CELLS + 1);
        let count = |kind: usize| {
            let at = base + kind * (CELLS + 1);
            self.sums[at + to] - self.sums[at + from]
        };
        for (role, asked) in shape.asked.iter().enumerate() {
            if count(shape.sizes + role) < *asked {
                return false;
            }
        }
        let alone = count(0);
        if alone >= shape.players {
            return true;
        }
        let mut counts = [0_u32; PARTY_MAX];
        counts[0] = alone;
        let mut players = alone;
        for (size, parties) in counts.iter_mut().enumerate().take(shape.sizes).skip(1) {
            *parties = count(size);
            players = players.saturating_add(parties.saturating_mul(size as u32 + 1));
        }
        players >= shape.players && plans.is_possible(&counts)
    }

    fn sum_up(&mut self, shape: &Shape) {
        if self.is_summed {
            return;
        }
        self.is_summed = true;
        // One rung's counts of all kinds lie together, so that the next rung's are that far behind.
        let size = shape.kinds() * (CELLS + 1);
        for rung in (0..shape.steps).rev() {
            let (own, later) = self.sums.split_at_mut((rung + 1) * size);
            let own = &mut own[rung * size..];
            for kind in 0..shape.kinds() {
                let supply = &self.supply[(rung * shape.kinds() + kind) * CELLS..][..CELLS];
                sum(supply, &mut own[kind * (CELLS + 1)..][..CELLS + 1]);
            }
            for (own, later) in own.iter_mut().zip(later) {
                *own += *later;
            }
        }
    }
}

fn sum(counts: &[u32], sums: &mut [u32]) {
    let mut total = 0_u32;
    sums[0] = 0;
    for (count, sum) in counts.iter().zip(&mut sums[1..]) {
        total += count;
        *sum = total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use crate::matchmaking::rules::RulesSpec;

    #[test]
    fn keys_keep_the_order_of_ratings_and_give_back_both_parts() {
        let values = [i32::MIN, -5_000, -1, 0, 1, 7_000, i32::MAX];
        for pair in values.windows(2) {
            assert!(key(pair[0], 400_000, 16) < key(pair[1], 0, 1));
        }
        for value in values {
            let key = key(value, 9, 16);
            assert_eq!(
                (value_of(key), slot_of(key), size_of_party(key)),
                (value, 9, 16)
            );
        }
    }

    #[test]
    fn what_stirs_is_seen_by_all_within_its_window_and_by_few_others() {
        let rules = RulesSpec::simple(2, 1, "eu", 100).check().unwrap();
        let mut dice = Dice::new(5);
        for _ in 0..200 {
            let mut pools = Pools::new(&rules);
            pools.set_ladder(rules.ladder(Brownout::Off));
            let stirred: Vec<(i32, u8)> = (0..1 + dice.below(3))
                .map(|_| (dice.below(200_000) as i32 - 50_000, dice.below(12) as u8))
                .collect();
            for (value, rung) in &stirred {
                let fine = pools.shape.fine(*value);
                pools.regions[0].stir(fine, *rung);
            }
            pools.begin();
            for _ in 0..200 {
                let value = dice.below(200_000) as i32 - 50_000;
                let step = dice.below(12) as u8;
                let ends =
                    |value: i32| value.clamp(-25_000, FINE as i32 * pools.shape.width - 25_001);
                let within = |slack: i32| {
                    stirred.iter().any(|(other, rung)| {
                        let apart = (ends(value) - ends(*other)).abs();
                        *rung <= step && apart <= pools.window(*rung) + slack
                    })
                };
                let seen = pools.stirred_near(0, value, step);
                assert!(seen || !within(0));
                assert!(!seen || within(2 * pools.shape.width));
            }
        }
    }
}
