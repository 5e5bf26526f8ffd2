//! Places that are kept, in slots of a tenth of a second: so many in each as the logins bear, fewer while a storm's plan
//! has most of them. Whoever is less urgent leaves a part of each slot to others, and every place is at a time of its own.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::name::Stage;

pub const SLOT: Duration = Duration::from_millis(100);
/// One hour.
pub const SLOTS_MAX: usize = 36_000;
/// Clients with a place.
pub const CLIENTS_MAX: usize = 200_000;

/// For somebody late a place is kept for so many slots.
const LATE_SLOTS: u64 = 20;
/// Of a budget: the rest makes good what was not foreseen.
const BOOKED: u64 = 95;
/// Of a slot, and of all clients with a place, what each stage may fill.
const SHARES: [u64; Stage::COUNT] = [100, 95, 90, 85, 75];

#[derive(Clone, Debug)]
pub struct Calendar {
    per_second: u64,
    /// Percent of the budget that is free in a slot that has a plan; less by what is never booked.
    unplanned: u64,
    slots: VecDeque<Vec<u64>>,
    /// The number of the first slot.
    first: u64,
    /// From which slot on each stage may find something.
    hints: [u64; Stage::COUNT],
    clients: HashMap<u64, Duration>,
    /// Slots that a plan has, from and to.
    planned: (u64, u64),
}

impl Calendar {
    pub fn new(per_second: u64, unplanned: u64) -> Self {
        Self {
            per_second,
            unplanned,
            slots: VecDeque::new(),
            first: 0,
            hints: [0; Stage::COUNT],
            clients: HashMap::new(),
            planned: (0, 0),
        }
    }

    /// Forgets places that nobody came for.
    pub fn roll(&mut self, now: Duration) {
        let keep = number(now).saturating_sub(LATE_SLOTS);
        while self.first < keep {
            let Some(slot) = self.slots.pop_front() else {
                self.first = keep;
                return;
            };
            for client in slot {
                let is_of_it = |at: &Duration| number(*at) == self.first;
                if self.clients.get(&client).is_some_and(is_of_it) {
                    self.clients.remove(&client);
                }
            }
            self.first += 1;
        }
    }

    /// When a client's place is.
    pub fn of(&self, client: u64) -> Option<Duration> {
        self.clients.get(&client).copied()
    }

    /// He came, or gets another. The place itself stays counted: its time is used.
    pub fn forget(&mut self, client: u64) {
        self.clients.remove(&client);
    }

    /// The first place that is free for a stage, for a client who has none or is given another.
    pub fn book(
        &mut self,
        now: Duration,
        stage: Stage,
        client: u64,
        jitter: Duration,
    ) -> Option<Duration> {
        let share = SHARES.get(stage.index()).copied().unwrap_or_default();
        let most = CLIENTS_MAX as u64 * share / 100;
        if self.clients.len() as u64 >= most && !self.clients.contains_key(&client) {
            return None;
        }
        let hint = self.hints.get(stage.index()).copied().unwrap_or_default();
        // Whoever asks with an earlier time than others did finds what is left.
        let mut at = hint.max(number(now) + 1).max(self.first);
        let end = self.first + SLOTS_MAX as u64;
        while at < end && self.is_full(at, stage) {
            at += 1;
        }
        if let Some(hint) = self.hints.get_mut(stage.index()) {
            *hint = at;
        }
        if at >= end {
            return None;
        }
        // At least `first`, and less than the longest calendar behind it.
        let index = (at - self.first) as usize;
        while self.slots.len() <= index {
            self.slots.push_back(Vec::new());
        }
        self.slots.get_mut(index)?.push(client);
        let start = start(at);
        let time = start + jitter.min(SLOT - Duration::from_millis(1));
        self.clients.insert(client, time);
        Some(time)
    }

    /// From when on a slot may have something free for a stage.
    pub fn ends(&self, stage: Stage) -> Duration {
        let hint = self.hints.get(stage.index()).copied().unwrap_or_default();
        start(hint.max(self.first)) + SLOT
    }

    /// Until when at least half of each slot is taken, from the next one on; none: it is not.
    pub fn busy_until(&self, now: Duration) -> Option<Duration> {
        let next = number(now) + 1;
        let mut at = next;
        let end = self.first + self.slots.len() as u64;
        while at < end && self.booked(at) > 0 && self.booked(at) * 2 >= self.room(at, 100) {
            at += 1;
        }
        (at > next).then(|| start(at))
    }

    /// A place is free again.
    pub fn cancel(&mut self, client: u64) {
        let Some(at) = self.clients.remove(&client) else {
            return;
        };
        let index = number(at).checked_sub(self.first);
        let slot = index.and_then(|index| self.slots.get_mut(index as usize));
        if let Some(slot) = slot
            && let Some(found) = slot.iter().position(|one| *one == client)
        {
            slot.swap_remove(found);
        }
    }

    /// Most of what is between belongs to a plan.
    pub fn plan(&mut self, begins: Duration, ends: Duration) {
        let (from, to) = (number(begins), number(ends) + 1);
        self.planned = match self.planned {
            (before, until) if until >= from => (before, until.max(to)),
            _ => (from, to),
        };
        self.hints = [0; Stage::COUNT];
    }

    /// Clients with a place.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    fn is_full(&self, slot: u64, stage: Stage) -> bool {
        let share = SHARES.get(stage.index()).copied().unwrap_or_default();
        self.booked(slot) >= self.room(slot, share)
    }

    fn booked(&self, slot: u64) -> u64 {
        let index = slot.checked_sub(self.first);
        let slot = index.and_then(|index| self.slots.get(index as usize));
        slot.map_or(0, |clients| clients.len() as u64)
    }

    /// How many places a slot has for whoever may have `share` percent of it: fractions add up from slot to slot.
    fn room(&self, slot: u64, share: u64) -> u64 {
        let is_planned = (self.planned.0..self.planned.1).contains(&slot);
        let free = match is_planned {
            true => self.unplanned.saturating_sub(100 - BOOKED),
            false => BOOKED,
        };
        // Per slot, in hundred-thousandths: a tenth of a second, two times percent.
        let per_slot = u128::from(self.per_second * free * share);
        let until = |slot: u64| u128::from(slot) * per_slot / 100_000;
        (until(slot + 1) - until(slot)) as u64
    }
}

/// Of the slot in which a time is.
fn number(time: Duration) -> u64 {
    (time.as_millis() / SLOT.as_millis()) as u64
}

fn start(slot: u64) -> Duration {
    Duration::from_millis(slot * SLOT.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    #[test]
    fn a_time_before_that_of_others_finds_a_place_all_the_same() {
        let mut calendar = Calendar::new(100, 15);
        calendar.roll(NOW);
        let before = NOW - Duration::from_secs(60);
        let at = calendar.book(before, Stage::Loading, 1, Duration::ZERO);
        assert!(at.is_some_and(|at| at + Duration::from_secs(3) > NOW));
    }
}
