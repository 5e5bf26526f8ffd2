//! One ticket looks for its match: outward from its rating, region by region, on the tightest rung that works. Also the
//! open seats of running matches. All work is counted in operations, and stops when the tick's are spent.

use super::draft::{Draft, Open};
use super::plan::{Counts, Plan, PlanBook};
use super::pool::{Hot, Key, Pools, key, size_of_party, slot_of, value_of};
use super::{Cold, Quality, Search, TickReport};
use crate::matchmaking::rules::{ANY_TEAM, Brownout, MILLI, MatchRules, Seating};
use crate::matchmaking::ticket::{OpenSeats, PARTY_MAX, ROLES_MAX};

/// Of parties with roles, so many of each size are considered on both sides of a seed.
pub const PARTY_NEAREST: usize = 16;
/// Arrangements of parties with roles that are tried for one plan.
pub const SEATINGS_MAX: usize = 64;
/// Plans tried for one set of candidates.
const PLANS_TRIED: usize = 8;
/// Partners of a pair that are compared on each side of a seed.
const PARTNERS_MAX: usize = 16;
/// Operations to find a place in an ordered array.
const LANE_COST: u64 = 12;
/// Operations that the last seed of a tick may spend beyond the limit.
const OVERDRAFT: u64 = 100_000;

/// Of a tick: what it may spend, and memory that is used again.
#[derive(Debug)]
pub(super) struct Scratch {
    now_ms: u64,
    limit: u64,
    spent: u64,
    pub plans: PlanBook,
    pub slots: Vec<u32>,
    pub seeds: Vec<super::Age>,
    below: Vec<(i32, usize)>,
    around: Vec<Candidate>,
    candidates: Vec<Candidate>,
    chosen: Vec<Candidate>,
    anchors: Vec<i32>,
    seating: Seating,
    costs: Costs,
    /// Players of a match.
    players: usize,
    /// Is a match two tickets of one player?
    pairs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    cost: i64,
    enqueued_ms: u64,
    slot: u32,
    value: i32,
    size: u8,
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
            spent: 0,
            plans: PlanBook::new(rules),
            slots: Vec::new(),
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
        self.spent = 0;
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ms
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

    /// True if even who is seeking must stop: whoever began may finish, within reason.
    pub fn is_cut(&self) -> bool {
        self.spent >= self.limit.saturating_add(OVERDRAFT)
    }
}

/// What a search reads while its scratch memory is written.
struct View<'a> {
    rules: &'a MatchRules,
    pools: &'a Pools,
    hot: &'a [Hot],
    cold: &'a [Cold],
    region: usize,
}

impl View<'_> {
    fn hot(&self, slot: u32) -> &Hot {
        &self.hot[slot as usize]
    }

    fn cost(&self, costs: &Costs, slot: u32, distance: i32, now_ms: u64) -> i64 {
        let hot = self.hot(slot);
        costs.distance(distance) + costs.latency(self.region, hot.latency[self.region])
            - costs.waiting(now_ms.saturating_sub(hot.enqueued_ms))
    }

    fn roles(&self, slot: u32) -> impl Iterator<Item = u8> + '_ {
        let ticket = self.cold[slot as usize].ticket.as_deref();
        let players = ticket.map_or(&[][..], |ticket| ticket.players.as_slice());
        players.iter().map(|player| player.roles.0)
    }
}

/// A ticket's slot and its team.
type Seats = Vec<(u32, u8)>;

impl Search {
    /// The best match around a ticket that the rules allow now; none too if operations run out before that is known.
    pub(super) fn seek(&mut self, slot: u32) -> Option<Draft> {
        let hot = self.hot[slot as usize];
        let (mut best, mut partner) = (None, None);
        for region in 0..self.rules.spec().regions.len() {
            if hot.regions & (1 << region) == 0 {
                continue;
            }
            let rungs = self.pools.rungs(region, &hot, &mut self.scratch.plans);
            self.scratch.spend(4);
            if rungs == 0 {
                continue;
            }
            if self.scratch.pairs {
                self.seek_partner(slot, region, &mut partner);
                continue;
            }
            let seats = self.seek_group(slot, region, rungs);
            let Some(found) = seats.and_then(|seats| self.draft(region, &seats)) else {
                continue;
            };
            if best
                .as_ref()
                .is_none_or(|best: &Draft| found.penalty < best.penalty)
            {
                best = Some(found);
            }
        }
        match partner {
            Some((partner, region)) => self.draft(region, &[(slot, 0), (partner.slot, 1)]),
            None => best,
        }
    }

    /// Running matches first: their players are short of somebody already. They may spend half of the tick.
    pub(super) fn fill_open(&mut self, drafts: &mut Vec<Draft>, report: &mut TickReport) {
        let total = self.scratch.limit();
        self.scratch.set_limit(total / 2);
        let mut at = 0;
        while let Some(open) = self.backfills.get_mut(at) {
            let region = usize::from(open.backfill.region.0);
            open.pending |= self.pools.stirred_near(region, open.value, open.step);
            if !open.pending || self.scratch.is_spent() {
                report.pending += usize::from(open.pending);
                at += 1;
                continue;
            }
            report.examined += 1;
            let found = self.seek_open(at);
            if let Some(draft) = found {
                self.claim(&draft);
                drafts.push(draft);
                self.backfills.remove(at);
            } else {
                self.backfills[at].pending = self.scratch.is_cut();
                report.pending += usize::from(self.scratch.is_cut());
                at += 1;
            }
        }
        self.scratch.set_limit(total);
    }

    fn seek_partner(&mut self, slot: u32, region: usize, best: &mut Option<(Candidate, usize)>) {
        let (view, scratch) = split(
            &self.rules,
            &self.pools,
            &self.hot,
            &self.cold,
            region,
            &mut self.scratch,
        );
        let from = key(view.hot(slot).value, slot, view.hot(slot).size);
        for lane in view.pools.lanes(region) {
            let (above, below) = lane.keys.around(&from);
            scratch.spent += LANE_COST;
            scratch.partner(&view, slot, above, best);
            scratch.partner(&view, slot, below, best);
        }
    }

    /// The tightest rung alone, as it mostly works; the others from one look around, unless there is too much to see.
    fn seek_group(&mut self, slot: u32, region: usize, rungs: u16) -> Option<Seats> {
        let ladder = self.rules.ladder(self.brownout);
        let (view, scratch) = split(
            &self.rules,
            &self.pools,
            &self.hot,
            &self.cold,
            region,
            &mut self.scratch,
        );
        let (first, last) = (rungs.trailing_zeros() as usize, rungs.ilog2() as usize);
        let (mut is_first, mut is_whole) = (true, false);
        for (rung, step) in ladder.iter().enumerate().take(last + 1).skip(first) {
            if rungs & (1 << rung) == 0 {
                continue;
            }
            if !scratch.are_enough(&view, slot, step.window) {
                continue;
            }
            if !is_whole {
                scratch.gather(&view, slot, rung as u8, step.window);
                scratch.candidates.clone_from(&scratch.around);
            } else {
                scratch.narrow(&view, slot, rung as u8, step.window);
            }
            if scratch.is_cut() {
                return None;
            }
            let seats = scratch.assemble(&view, slot, step.window, step.gap);
            if seats.is_some() || scratch.is_cut() {
                return seats;
            }
            if is_first && rung != last {
                is_whole = scratch.gather(&view, slot, rung as u8 + 1, ladder[last].window);
            }
            is_first = false;
        }
        None
    }

    fn seek_open(&mut self, at: usize) -> Option<Draft> {
        let open = &self.backfills[at];
        let backfill = &open.backfill;
        let region = usize::from(backfill.region.0);
        let (view, scratch) = split(
            &self.rules,
            &self.pools,
            &self.hot,
            &self.cold,
            region,
            &mut self.scratch,
        );
        scratch.gather_open(
            &view,
            open.value,
            open.step,
            backfill.open.iter().map(OpenSeats::total).sum(),
        );
        let seated = scratch.take_seats(&view, &backfill.open);
        if seated.is_empty() {
            return None;
        }
        let places = scratch.seating.places();
        let id = backfill.id;
        let value = open.value;
        let mut teams = vec![Vec::new(); self.rules.teams()];
        let mut roles = vec![Vec::new(); self.rules.teams()];
        for (slot, first) in seated {
            let member = self.member(slot, region as u8)?;
            let team = usize::from(places[first].0);
            let own = places[first..first + member.size()].iter();
            roles[team].extend(own.map(|(_, role)| *role));
            teams[team].push(member);
        }
        let mut draft = Draft {
            region: region as u8,
            teams,
            quality: Quality::default(),
            penalty: 0,
            open: Some(Open { id, roles }),
        };
        let spread = draft
            .members()
            .map(|member| (member.value - value).abs())
            .max()
            .unwrap_or(0);
        draft.judge(&self.rules, self.scratch.now_ms, spread, 0);
        Some(draft)
    }

    fn draft(&mut self, region: usize, seats: &[(u32, u8)]) -> Option<Draft> {
        let mut teams = vec![Vec::new(); self.rules.teams()];
        for (slot, team) in seats {
            teams[usize::from(*team)].push(self.member(*slot, region as u8)?);
        }
        let mut draft = Draft {
            region: region as u8,
            teams,
            quality: Quality::default(),
            penalty: 0,
            open: None,
        };
        let tried = draft.even_out(&self.rules);
        self.scratch.spend(2 * tried + 20 * seats.len() as u64 + 40);
        draft.judge_match(&self.rules, self.scratch.now_ms);
        Some(draft)
    }
}

fn split<'a>(
    rules: &'a MatchRules,
    pools: &'a Pools,
    hot: &'a [Hot],
    cold: &'a [Cold],
    region: usize,
    scratch: &'a mut Scratch,
) -> (View<'a>, &'a mut Scratch) {
    let view = View {
        rules,
        pools,
        hot,
        cold,
        region,
    };
    (view, scratch)
}

impl Scratch {
    /// The best partner in one direction, if it beats `best`.
    fn partner(
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
    fn are_enough(&mut self, view: &View<'_>, slot: u32, window: i32) -> bool {
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
    fn gather(&mut self, view: &View<'_>, slot: u32, rung: u8, window: i32) -> bool {
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
            is_whole &= self.nearest(view, above, (slot, seed.value), window, most, fits);
            is_whole &= self.nearest(view, below, (slot, seed.value), window, most, fits);
        }
        is_whole
    }

    /// What a rung allows of those around.
    fn narrow(&mut self, view: &View<'_>, slot: u32, rung: u8, window: i32) {
        let value = view.hot(slot).value;
        self.candidates.clear();
        let fit = self
            .around
            .iter()
            .filter(|c| c.step >= rung && (c.value - value).abs() <= window);
        self.candidates.extend(fit);
        self.spent += self.around.len() as u64 / 4;
    }

    /// Those nearest to a running match, within its window and their own.
    fn gather_open(&mut self, view: &View<'_>, value: i32, step: u8, seats: usize) {
        self.around.clear();
        let from = key(value, 0, 1);
        let window = view.pools.window(step);
        for lane in view.pools.lanes(view.region) {
            let most = self.most(view, lane.size, seats);
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

    /// False if there may be more than `most`.
    fn nearest(
        &mut self,
        view: &View<'_>,
        keys: impl Iterator<Item = Key>,
        (own, value): (u32, i32),
        window: i32,
        most: usize,
        fits: impl Fn(&Hot, i32) -> bool,
    ) -> bool {
        let mut kept = 0;
        for key in keys {
            let distance = (value_of(key) - value).abs();
            if distance > window {
                return true;
            }
            if kept == most || self.is_cut() {
                return false;
            }
            self.spent += 2;
            let slot = slot_of(key);
            let hot = view.hot(slot);
            if slot == own || !fits(hot, distance) {
                continue;
            }
            kept += 1;
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

    /// A match around a seed from the candidates: first from those so near that any of them suit each other, then from
    /// each stretch of ratings that is as long as the window and holds the seed.
    fn assemble(&mut self, view: &View<'_>, slot: u32, window: i32, gap: u8) -> Option<Seats> {
        let seed = view.hot(slot).value;
        let needed = self.players - usize::from(view.hot(slot).size);
        let players: usize = self.candidates.iter().map(|c| usize::from(c.size)).sum();
        if players < needed {
            return None;
        }
        self.candidates.sort_unstable();
        let half = window / 2;
        let found = self.pack(view, slot, gap, seed - half..=seed - half + window);
        if found.is_some() || self.chosen.len() == self.candidates.len() {
            return found;
        }
        let mut anchors = std::mem::take(&mut self.anchors);
        anchors.clear();
        anchors.push(seed);
        anchors.extend(
            self.candidates
                .iter()
                .map(|c| c.value)
                .filter(|value| *value < seed),
        );
        anchors.sort_unstable_by_key(|low| ((low + half - seed).abs(), *low));
        anchors.dedup();
        let mut found = None;
        for low in &anchors {
            found = self.pack(view, slot, gap, *low..=low.saturating_add(window));
            if found.is_some() || self.is_cut() {
                break;
            }
        }
        self.anchors = anchors;
        found
    }

    /// A match from the candidates in a stretch of ratings, cheapest plan first.
    fn pack(
        &mut self,
        view: &View<'_>,
        slot: u32,
        gap: u8,
        stretch: std::ops::RangeInclusive<i32>,
    ) -> Option<Seats> {
        let seed = view.hot(slot).size;
        let needed = self.players - usize::from(seed);
        self.chosen.clear();
        let within = self
            .candidates
            .iter()
            .filter(|c| stretch.contains(&c.value));
        self.chosen.extend(within);
        self.spent += 4 + self.candidates.len() as u64 / 2;
        let mut counts: Counts = [0; PARTY_MAX];
        let mut players = 0;
        for candidate in &self.chosen {
            counts[usize::from(candidate.size) - 1] += 1;
            players += usize::from(candidate.size);
        }
        if players < needed {
            return None;
        }
        let plans = self.plans.plans(&counts, seed, gap);
        self.spent += 4;
        if let [plan] = &*plans {
            return self.seat(view, slot, plan);
        }
        let mut order: Vec<(i64, usize)> = plans
            .iter()
            .enumerate()
            .map(|(at, plan)| (self.price(plan), at))
            .collect();
        order.sort_unstable();
        // Whoever came alone must not depend on how parties could be arranged.
        let alone = |at: &usize| plans[*at].parties.is_empty();
        let tried = order.iter().map(|(_, at)| *at).take(PLANS_TRIED);
        let rest = order
            .iter()
            .map(|(_, at)| *at)
            .skip(PLANS_TRIED)
            .filter(alone);
        for at in tried.chain(rest) {
            let seats = self.seat(view, slot, &plans[at]);
            if seats.is_some() || self.is_cut() {
                return seats;
            }
        }
        None
    }

    /// What the plan's tickets cost together, the cheapest of each size.
    fn price(&mut self, plan: &Plan) -> i64 {
        let mut left = plan.needed;
        let mut price = 0;
        for candidate in &self.chosen {
            let left = &mut left[usize::from(candidate.size) - 1];
            if *left > 0 {
                *left -= 1;
                price += candidate.cost;
            }
        }
        self.spent += self.chosen.len() as u64 / 2;
        price
    }

    /// Who sits in which team by a plan.
    fn seat(&mut self, view: &View<'_>, slot: u32, plan: &Plan) -> Option<Seats> {
        self.spent += 40 + self.chosen.len() as u64;
        if view.rules.spec().roles.is_empty() {
            return Some(self.seat_all(view, slot, plan));
        }
        self.seating.reset(view.rules.teams(), view.rules.seats());
        let team = if view.hot(slot).size == 1 {
            ANY_TEAM
        } else {
            0
        };
        let mut arrange = Arrange {
            view,
            plan,
            chosen: &self.chosen,
            used: vec![false; self.chosen.len()],
            seated: vec![(slot, 0)],
            tries: 0,
            seating: &mut self.seating,
        };
        let found = arrange.seating.add_party(view.roles(slot), team) && arrange.parties(0);
        let seated = arrange.seated;
        self.spent += std::mem::take(&mut self.seating.looked) / 2;
        if !found {
            return None;
        }
        let places = self.seating.places();
        Some(
            seated
                .into_iter()
                .map(|(slot, first)| (slot, places[first].0))
                .collect(),
        )
    }

    /// Without roles everybody fits: parties as planned, the others from the strongest on into the weakest team.
    fn seat_all(&self, view: &View<'_>, slot: u32, plan: &Plan) -> Seats {
        let strength = |slot: u32| view.cold[slot as usize].strength;
        let mut seats = vec![(slot, 0)];
        for (size, group) in group_by_size(&plan.parties) {
            let cheapest = self.chosen.iter().filter(|c| c.size == size);
            seats.extend(cheapest.zip(group).map(|(c, (_, team))| (c.slot, *team)));
        }
        // Strength and players of each team.
        let mut teams = vec![(0_i64, 0_usize); view.rules.teams()];
        for (slot, team) in &seats {
            let team = &mut teams[usize::from(*team)];
            team.0 += strength(*slot);
            team.1 += usize::from(view.hot(*slot).size);
        }
        let mut alone: Vec<u32> = self
            .chosen
            .iter()
            .filter(|c| c.size == 1)
            .take(plan.needed[0] as usize)
            .map(|c| c.slot)
            .collect();
        alone.sort_by_key(|slot| std::cmp::Reverse(strength(*slot)));
        for slot in alone {
            let open = (0..teams.len())
                .filter(|team| teams[*team].1 < view.rules.team_size())
                .min_by_key(|team| (teams[*team].0, *team));
            let Some(team) = open else { break };
            teams[team].0 += strength(slot);
            teams[team].1 += 1;
            seats.push((slot, team as u8));
        }
        seats
    }

    /// Candidates into open seats, cheapest first, as many as fit: slots and where their players begin.
    fn take_seats(&mut self, view: &View<'_>, open: &[OpenSeats]) -> Vec<(u32, usize)> {
        self.seating.clear();
        for (team, seats) in open.iter().enumerate() {
            for (role, count) in seats.roles.iter().enumerate() {
                for _ in 0..*count {
                    self.seating.open(team as u8, role as u8);
                }
            }
            for _ in 0..seats.any {
                self.seating.open(team as u8, ROLES_MAX as u8);
            }
        }
        let mut seated = Vec::new();
        for candidate in &self.candidates {
            if self.seating.is_full() {
                break;
            }
            let first = self.seating.len();
            let fits = match candidate.size {
                1 => self.seating.add_party(view.roles(candidate.slot), ANY_TEAM),
                _ => (0..open.len()).any(|team| {
                    self.seating
                        .add_party(view.roles(candidate.slot), team as u8)
                }),
            };
            if fits {
                seated.push((candidate.slot, first));
            }
        }
        self.spent += std::mem::take(&mut self.seating.looked) / 2;
        seated
    }
}

/// Parties of one size after the other (they are ordered so).
fn group_by_size(parties: &[(u8, u8)]) -> impl Iterator<Item = (u8, &[(u8, u8)])> {
    parties
        .chunk_by(|one, two| one.0 == two.0)
        .map(|group| (group[0].0, group))
}

/// Tickets with roles into seats, by trying.
struct Arrange<'a> {
    view: &'a View<'a>,
    plan: &'a Plan,
    chosen: &'a [Candidate],
    used: Vec<bool>,
    /// Slots, and where their players begin.
    seated: Vec<(u32, usize)>,
    tries: usize,
    seating: &'a mut Seating,
}

impl Arrange<'_> {
    fn parties(&mut self, at: usize) -> bool {
        let Some((size, team)) = self.plan.parties.get(at).copied() else {
            return self.alone();
        };
        for (place, candidate) in self.chosen.iter().enumerate() {
            if self.used[place] || candidate.size != size {
                continue;
            }
            if self.tries >= SEATINGS_MAX {
                return false;
            }
            let first = self.seating.len();
            if !self
                .seating
                .add_party(self.view.roles(candidate.slot), team)
            {
                self.tries += 1;
                continue;
            }
            self.used[place] = true;
            self.seated.push((candidate.slot, first));
            if self.parties(at + 1) {
                return true;
            }
            self.seated.pop();
            self.used[place] = false;
            self.seating.shrink(first);
        }
        false
    }

    /// All who came alone, cheapest first: each is taken who can be seated with those before.
    fn alone(&mut self) -> bool {
        let (players, tickets) = (self.seating.len(), self.seated.len());
        for candidate in self.chosen.iter().filter(|c| c.size == 1) {
            if self.seating.is_full() {
                break;
            }
            let first = self.seating.len();
            if self
                .seating
                .add_party(self.view.roles(candidate.slot), ANY_TEAM)
            {
                self.seated.push((candidate.slot, first));
            }
        }
        if self.seating.is_full() {
            return true;
        }
        self.tries += 1;
        self.seating.shrink(players);
        self.seated.truncate(tickets);
        false
    }
}
