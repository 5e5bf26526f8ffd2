//! When everybody comes back at once. The logins of a region bear so many a second; who comes when is the server's choice:
//! each pass carries how long its holder is to wait after a connection that broke, spread evenly over what the region bears,
//! most urgent first. At the door, those who come in time go on, paced; those who do not are told when, once and for all.
//!
//! Pure: arrivals and the time go in, verdicts come out. Module order: storm, calendar.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use phalanx_telemetry::metrics::{Exposition, Family};

use super::calendar::{CLIENTS_MAX, Calendar, SLOT};
use super::name::Stage;
use super::pass::Pass;
use crate::dice::Dice;

/// Regions of a governor.
pub const REGIONS_MAX: usize = 256;
/// Storms of a region at once; those that come on top are not told from the last.
pub const STORMS_MAX: usize = 4;
/// What is planned of a budget; the rest is for whoever is out of plan.
const PLANNED: u64 = 85;
/// How long somebody is held back at most, so that the logins never see more than their budget; two turns of a budget for
/// which that is longer.
pub const HOLD_MAX: Duration = Duration::from_secs(1);
/// Who is in time is held for so long or so many turns, whichever is more.
const EXPECTED: (Duration, u32) = (Duration::from_millis(400), 20);
/// Whoever nobody expected less, by [`Stage`]: the door is shut for browsers first.
const HOLDS: [(Duration, u32); Stage::COUNT] = [
    (Duration::from_millis(320), 16),
    (Duration::from_millis(240), 14),
    (Duration::from_millis(160), 12),
    (Duration::from_millis(80), 10),
    (Duration::from_millis(40), 8),
];
/// Whoever was let in is not let in again before: one who keeps knocking uses up nobody's turn.
pub const AGAIN: Duration = Duration::from_secs(5);
/// Within so long it shows whether a gust is a storm, and so long somebody is expected after his time.
const GUST: Duration = Duration::from_secs(3);
/// A storm is when one in so many of those who are there was sent away.
const STORM_SHARE: u64 = 10;

/// What a region's logins bear. Of several login nodes each has its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// A label of metrics.
    pub region: String,
    /// At least 1.
    pub per_second: u32,
}

/// Somebody at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The player, as far as is known; of whoever has no pass, where he comes from.
    pub client: u64,
    /// The index of the region's budget.
    pub region: u16,
    pub claim: Claim,
}

/// What somebody has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing: comes after all others.
    Nothing,
    /// A pass whose seal was checked.
    Pass {
        stage: Stage,
        issued: Duration,
        earliest: Duration,
        spread: Duration,
    },
}

/// What becomes of him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on to the login when `hold` is over; at most [`HOLD_MAX`].
    Admit { hold: Duration },
    /// Comes again at `at`, of the same clock, and is let in then. Coming before changes nothing.
    Wait { at: Duration, why: Why },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It is not his time yet.
    Early,
    /// A place is kept for him.
    Booked,
    /// No place could be kept: he is to ask again.
    Full,
    /// He was let in less than [`AGAIN`] ago.
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GovernorError {
    #[error("a governor has 1 to {REGIONS_MAX} regions")]
    Regions,
    #[error("a region without a budget lets nobody in")]
    Budget,
    #[error("region {0} has no budget here")]
    Unknown(u16),
}

impl From<&Pass> for Arrival {
    fn from(pass: &Pass) -> Self {
        Self {
            client: pass.player,
            region: pass.region,
            claim: Claim::Pass {
                stage: pass.stage,
                issued: pass.issued,
                earliest: pass.earliest,
                spread: pass.spread,
            },
        }
    }
}

/// Chooses when whom to let in. Times are of one clock, that of the passes (since the Unix epoch).
#[derive(Clone, Debug)]
pub struct Governor {
    regions: Vec<Region>,
    dice: Dice,
}

impl Governor {
    /// # Errors
    /// [`GovernorError::Regions`], [`GovernorError::Budget`]
    pub fn try_new(budgets: &[Budget], seed: u64) -> Result<Self, GovernorError> {
        if budgets.is_empty() || budgets.len() > REGIONS_MAX {
            return Err(GovernorError::Regions);
        }
        if budgets.iter().any(|budget| budget.per_second == 0) {
            return Err(GovernorError::Budget);
        }
        let mut dice = Dice::new(seed);
        let regions = budgets.iter().map(|budget| Region::new(budget, &mut dice));
        Ok(Self {
            regions: regions.collect(),
            dice,
        })
    }

    /// How many sessions there are of each stage: counts as they are, of all that log in by this region's share here.
    ///
    /// # Errors
    /// [`GovernorError::Unknown`]
    pub fn population(
        &mut self,
        region: u16,
        counts: [u32; Stage::COUNT],
    ) -> Result<(), GovernorError> {
        self.region(region)?.counts = counts;
        Ok(())
    }

    /// For a pass: how long its holder is to wait after a connection that broke without a word.
    ///
    /// # Errors
    /// [`GovernorError::Unknown`]
    pub fn spread(&mut self, region: u16, stage: Stage) -> Result<Duration, GovernorError> {
        Ok(self.region(region)?.spread(stage))
    }

    /// Keeps a place for somebody who is about to be sent away (a drain), and says when. None: nothing is free for an hour.
    ///
    /// # Errors
    /// [`GovernorError::Unknown`]
    pub fn book(
        &mut self,
        now: Duration,
        region: u16,
        stage: Stage,
        client: u64,
    ) -> Result<Option<Duration>, GovernorError> {
        let jitter = self.jitter();
        let region = self.region(region)?;
        region.calendar.roll(now);
        Ok(region.calendar.book(now, stage, client, jitter))
    }

    /// Everybody, or a great part, was dropped just now. Who sees it says so: a gateway whose connections are gone, a health
    /// check of a room server. Several who say so within 3 s mean the same one. Without it a storm is noticed when a tenth of
    /// all knocked in vain. False: there are too many.
    ///
    /// # Errors
    /// [`GovernorError::Unknown`]
    pub fn storm(&mut self, now: Duration, region: u16) -> Result<bool, GovernorError> {
        let region = self.region(region)?;
        region.calendar.roll(now);
        Ok(region.storm(now))
    }

    /// Somebody knocks.
    ///
    /// # Errors
    /// [`GovernorError::Unknown`]
    pub fn arrive(&mut self, now: Duration, arrival: &Arrival) -> Result<Verdict, GovernorError> {
        let jitter = self.jitter();
        Ok(self.region(arrival.region)?.arrive(now, arrival, jitter))
    }

    /// By region, in the order of the budgets.
    pub fn metrics(&self) -> Vec<Metrics> {
        self.regions.iter().map(Region::metrics).collect()
    }

    pub fn write(&self, out: &mut Exposition) {
        let all = self.metrics();
        let mut admitted = out.family(&ADMITTED);
        for (region, metrics) in self.regions.iter().zip(&all) {
            for (stage, count) in Stage::ALL.into_iter().zip(metrics.admitted) {
                let labels = [("region", region.name.as_str()), ("stage", stage.as_str())];
                admitted.sample(&labels, count);
            }
        }
        let mut waits = out.family(&WAITS);
        for (region, metrics) in self.regions.iter().zip(&all) {
            let counts = [
                ("early", metrics.early),
                ("booked", metrics.booked),
                ("full", metrics.full),
                ("again", metrics.again),
            ];
            for (why, count) in counts {
                waits.sample(&[("region", region.name.as_str()), ("why", why)], count);
            }
        }
        let mut booked = out.family(&BOOKED);
        for (region, metrics) in self.regions.iter().zip(&all) {
            booked.sample(&[("region", region.name.as_str())], metrics.waiting);
        }
        let mut storms = out.family(&STORMS);
        for (region, metrics) in self.regions.iter().zip(&all) {
            storms.sample(&[("region", region.name.as_str())], metrics.storms);
        }
    }

    fn region(&mut self, region: u16) -> Result<&mut Region, GovernorError> {
        let found = self.regions.get_mut(usize::from(region));
        found.ok_or(GovernorError::Unknown(region))
    }

    fn jitter(&mut self) -> Duration {
        Duration::from_millis(self.dice.below(SLOT.as_millis() as u64))
    }
}

/// Since the start, but for what waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// By [`Stage`]; whoever had no pass counts as browsing.
    pub admitted: [u64; Stage::COUNT],
    pub early: u64,
    pub booked: u64,
    pub full: u64,
    pub again: u64,
    pub storms: u64,
    /// Places that are kept now.
    pub waiting: u64,
}

const ADMITTED: Family = Family::counter(
    "game_reconnects_admitted_total",
    "Clients that were let through to the logins.",
);
const WAITS: Family = Family::counter(
    "game_reconnects_waits_total",
    "Clients that were told to come again, by why.",
);
const BOOKED: Family = Family::gauge(
    "game_reconnects_booked",
    "Clients for whom a place is kept.",
);
const STORMS: Family = Family::counter(
    "game_reconnect_storms_total",
    "Storms that were seen or announced.",
);

#[derive(Clone, Debug)]
struct Region {
    name: String,
    per_second: u64,
    counts: [u32; Stage::COUNT],
    /// Where each stage's even spread is; moved by the golden ratio with every pass.
    turns: [u64; Stage::COUNT],
    storms: VecDeque<Storm>,
    /// When the logins are free for the next one.
    free: Duration,
    /// Who was let in lately, and when; no more than the budget of so long.
    let_in: HashMap<u64, Duration>,
    order: VecDeque<(Duration, u64)>,
    calendar: Calendar,
    gust: Gust,
    metrics: Metrics,
}

/// Holders of passes who came without a plan, and for whom the door was too narrow.
#[derive(Clone, Debug, Default)]
struct Gust {
    /// When the first of those came who are still held back.
    since: Duration,
    /// Who was given a place.
    clients: Vec<u64>,
}

/// Passes that were issued before it follow its plan.
#[derive(Clone, Copy, Debug)]
struct Storm {
    seen: Duration,
    begins: Duration,
    ends: Duration,
}

impl Region {
    fn new(budget: &Budget, dice: &mut Dice) -> Self {
        let per_second = u64::from(budget.per_second);
        Self {
            name: budget.region.clone(),
            per_second,
            counts: [0; Stage::COUNT],
            turns: std::array::from_fn(|_| dice.bits()),
            storms: VecDeque::new(),
            free: Duration::ZERO,
            let_in: HashMap::new(),
            order: VecDeque::new(),
            calendar: Calendar::new(per_second, 100 - PLANNED),
            gust: Gust::default(),
            metrics: Metrics::default(),
        }
    }

    /// How long it takes until so many are back, as planned.
    fn takes(&self, clients: u64) -> Duration {
        let ms = clients.saturating_mul(100_000) / (self.per_second * PLANNED);
        Duration::from_millis(ms)
    }

    fn spread(&mut self, stage: Stage) -> Duration {
        let at = stage.index();
        let count = |counts: &[u32]| counts.iter().map(|count| u64::from(*count)).sum::<u64>();
        let before = count(self.counts.get(..at).unwrap_or_default());
        let until = count(self.counts.get(..=at).unwrap_or_default());
        let turn = self.turns.get_mut(at).map_or(0, |turn| {
            *turn = turn.wrapping_add(GOLDEN);
            *turn
        });
        let (from, to) = (self.takes(before), self.takes(until));
        let width = (to - from).as_millis();
        let into = (width * u128::from(turn)) >> 64;
        // It is less than the width, which is one of milliseconds in 64 bits.
        from + Duration::from_millis(into as u64)
    }

    fn arrive(&mut self, now: Duration, arrival: &Arrival, jitter: Duration) -> Verdict {
        self.calendar.roll(now);
        while self.storms.front().is_some_and(|storm| storm.ends <= now) {
            self.storms.pop_front();
        }
        while let Some((at, client)) = self.order.front().copied()
            && at + AGAIN <= now
        {
            self.order.pop_front();
            self.let_in.remove(&client);
        }
        if let Some(at) = self.let_in.get(&arrival.client) {
            self.metrics.again += 1;
            return Verdict::Wait {
                at: *at + AGAIN,
                why: Why::Again,
            };
        }
        let stage = match arrival.claim {
            Claim::Nothing => Stage::Browsing,
            Claim::Pass { stage, .. } => stage,
        };
        let kept = self.calendar.of(arrival.client);
        if let Some(at) = kept.filter(|at| *at > now) {
            return self.early(at);
        }
        let due = self.due(&arrival.claim);
        if let Some(due) = due.filter(|due| kept.is_none() && *due > now + SLOT) {
            return self.early(due);
        }
        let is_expected = kept.is_some() || due.is_some();
        let hold = self.free.saturating_sub(now);
        if hold <= self.hold_max(stage, is_expected) {
            self.calendar.forget(arrival.client);
            self.free = self.free.max(now) + self.turn();
            self.let_in.insert(arrival.client, now);
            self.order.push_back((now, arrival.client));
            if let Some(count) = self.metrics.admitted.get_mut(stage.index()) {
                *count += 1;
            }
            return Verdict::Admit { hold };
        }
        let is_gust = !is_expected && arrival.claim != Claim::Nothing;
        if is_gust && self.is_storm(now, hold) {
            self.break_out(now);
            if let Some(due) = self.due(&arrival.claim).filter(|due| *due > now + SLOT) {
                return self.early(due);
            }
        }
        self.calendar.forget(arrival.client);
        match self.calendar.book(now, stage, arrival.client, jitter) {
            Some(at) => {
                if is_gust {
                    self.gust.clients.push(arrival.client);
                }
                self.metrics.booked += 1;
                Verdict::Wait {
                    at,
                    why: Why::Booked,
                }
            }
            None => {
                self.metrics.full += 1;
                // It may be clients that there are too many of, and not slots that are full.
                let at = self.calendar.ends(stage).max(now + AGAIN) + jitter;
                Verdict::Wait { at, why: Why::Full }
            }
        }
    }

    fn early(&mut self, at: Duration) -> Verdict {
        self.metrics.early += 1;
        Verdict::Wait {
            at,
            why: Why::Early,
        }
    }

    /// When a pass is to be used, where that is said: of its own, or by the plan of a storm.
    fn due(&self, claim: &Claim) -> Option<Duration> {
        let Claim::Pass {
            issued,
            earliest,
            spread,
            ..
        } = *claim
        else {
            return None;
        };
        if earliest > Duration::ZERO {
            return Some(earliest);
        }
        let storm = self.storms.iter().find(|storm| issued <= storm.seen)?;
        Some(storm.begins + spread)
    }

    /// One client's share of a second.
    fn turn(&self) -> Duration {
        Duration::from_nanos(1_000_000_000_u64.div_ceil(self.per_second))
    }

    fn hold_max(&self, stage: Stage, is_expected: bool) -> Duration {
        let (time, turns) = match HOLDS.get(stage.index()) {
            Some(hold) if !is_expected => *hold,
            _ => EXPECTED,
        };
        let turn = self.turn();
        time.max(turn * turns).min(HOLD_MAX).max(turn * 2)
    }

    /// Whether one more who has to be sent away makes it one.
    fn is_storm(&mut self, now: Duration, hold: Duration) -> bool {
        if now > self.gust.since + GUST {
            self.gust.since = now.saturating_sub(hold);
            self.gust.clients.clear();
        }
        let all = self.all();
        let most = (all.max(self.per_second) / STORM_SHARE).min(CLIENTS_MAX as u64);
        all > 0 && self.gust.clients.len() as u64 >= most && self.storms.len() < STORMS_MAX
    }

    /// A gust was a storm from its beginning: those who were given places before their time lose them to the plan, so that
    /// nobody who waits for his time does.
    fn break_out(&mut self, now: Duration) {
        let since = self.gust.since;
        for client in std::mem::take(&mut self.gust.clients) {
            self.calendar.cancel(client);
        }
        self.begin(now, since);
    }

    fn storm(&mut self, now: Duration) -> bool {
        if let Some(last) = self.storms.back_mut()
            && now <= last.seen + GUST
        {
            last.seen = last.seen.max(now);
            return true;
        }
        let fits = self.storms.len() < STORMS_MAX;
        if fits {
            self.begin(now, now);
        }
        fits
    }

    fn begin(&mut self, now: Duration, seen: Duration) {
        // Behind those who have a place already, and behind the storm before.
        let busy = self.calendar.busy_until(now);
        let before = self.storms.back().map(|storm| storm.ends);
        let begins = seen
            .max(busy.unwrap_or_default())
            .max(before.unwrap_or_default());
        let ends = begins + self.takes(self.all());
        self.calendar.plan(begins, ends);
        self.storms.push_back(Storm {
            seen,
            begins,
            // Whoever is a little late is expected still.
            ends: ends + GUST,
        });
        self.metrics.storms += 1;
    }

    /// Who is there, of all stages.
    fn all(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            waiting: self.calendar.len() as u64,
            ..self.metrics.clone()
        }
    }
}

/// 2^64 by the golden ratio: multiples of it lie evenly, however many there are.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
