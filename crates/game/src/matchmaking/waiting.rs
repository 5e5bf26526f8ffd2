//! The waiting room: whoever can't be searched for yet stands in a line and is told where, and for how long by what was
//! measured. Pure: tickets and times come in, places and estimates go out. That the line survives its owner is the
//! ledger's doing, which has the same tickets.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{ledger::CLASSES, ticket::TicketId};

/// Estimates end here; whoever would wait longer is told this.
pub const ESTIMATE_MAX: Duration = Duration::from_secs(24 * 3600);
/// What rates are measured over.
const WINDOW: Duration = Duration::from_secs(60);
const BUCKETS: usize = 30;
const BUCKET: Duration = Duration::from_secs(WINDOW.as_secs() / BUCKETS as u64);
/// An interval of this many standard deviations of a Poisson count: about 19 of 20.
const DEVIATIONS: f64 = 1.96;

/// What somebody in the line is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Tickets before hers.
    pub ahead: u64,
    /// At the rate at which places became free in the last minute; `None` while none did.
    pub likely: Option<Duration>,
    /// The ends of the interval in which the wait lies in 19 of 20 cases, were the rate to stay; it counts only the chance
    /// in what was measured, not that the rate changes.
    pub least: Duration,
    /// `None` while too few have left to say.
    pub most: Option<Duration>,
}

/// The line, by class (0 goes first) and within a class by arrival.
#[derive(Debug)]
pub struct Line {
    lanes: Vec<Lane>,
    places: HashMap<TicketId, (u8, u64)>,
    max: usize,
}

/// Numbers are given in order; who left is a hole until the head has passed it.
#[derive(Debug, Default)]
struct Lane {
    /// Number of the first slot.
    base: u64,
    slots: VecDeque<Option<TicketId>>,
    /// Fenwick tree over slots (by their number modulo its size): how many are taken.
    tree: Vec<u32>,
    taken: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the waiting room is full ({max} tickets)")]
pub struct Full {
    pub max: usize,
}

impl Line {
    /// Of at most `max` tickets.
    pub fn new(max: usize) -> Line {
        let size = (2 * max.max(8)).next_power_of_two();
        let lane = || Lane {
            tree: vec![0; size],
            ..Lane::default()
        };
        Line {
            lanes: (0..CLASSES).map(|_| lane()).collect(),
            places: HashMap::new(),
            max,
        }
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// At the end of its class; a class that doesn't exist is the last. Who stands in it already stays where she is.
    ///
    /// # Errors
    /// [`Full`].
    pub fn push(&mut self, class: u8, ticket: TicketId) -> Result<(), Full> {
        if self.places.contains_key(&ticket) {
            return Ok(());
        }
        if self.places.len() >= self.max {
            return Err(Full { max: self.max });
        }
        let class = class.min(CLASSES - 1);
        let lane = &mut self.lanes[usize::from(class)];
        if lane.slots.len() == lane.tree.len() {
            lane.close_ranks();
            for (number, slot) in (lane.base..).zip(&lane.slots) {
                if let Some(ticket) = slot {
                    self.places.insert(*ticket, (class, number));
                }
            }
        }
        let number = lane.push(ticket);
        self.places.insert(ticket, (class, number));
        Ok(())
    }

    /// Whoever is next.
    pub fn pop(&mut self) -> Option<TicketId> {
        let ticket = self.lanes.iter_mut().find_map(Lane::pop)?;
        self.places.remove(&ticket);
        Some(ticket)
    }

    /// Whether she was in it.
    pub fn remove(&mut self, ticket: TicketId) -> bool {
        let Some((class, number)) = self.places.remove(&ticket) else {
            return false;
        };
        self.lanes[usize::from(class)].remove(number);
        true
    }

    /// How many go before her.
    pub fn ahead(&self, ticket: TicketId) -> Option<u64> {
        let &(class, number) = self.places.get(&ticket)?;
        let before: usize = self.lanes[..usize::from(class)]
            .iter()
            .map(|lane| lane.taken)
            .sum();
        Some(before as u64 + self.lanes[usize::from(class)].before(number))
    }
}

impl Lane {
    fn push(&mut self, ticket: TicketId) -> u64 {
        let number = self.base + self.slots.len() as u64;
        self.slots.push_back(Some(ticket));
        self.taken += 1;
        self.add(number, true);
        number
    }

    fn pop(&mut self) -> Option<TicketId> {
        while let Some(slot) = self.slots.pop_front() {
            let number = self.base;
            self.base += 1;
            if let Some(ticket) = slot {
                self.taken -= 1;
                self.add(number, false);
                return Some(ticket);
            }
        }
        None
    }

    fn remove(&mut self, number: u64) {
        let at = (number - self.base) as usize;
        if self.slots.get_mut(at).and_then(Option::take).is_some() {
            self.taken -= 1;
            self.add(number, false);
        }
    }

    /// Takes out the holes. There are as many as tickets at least, so it is rare.
    fn close_ranks(&mut self) {
        self.slots.retain(Option::is_some);
        self.tree.fill(0);
        for number in self.base..self.base + self.slots.len() as u64 {
            self.add(number, true);
        }
    }

    fn add(&mut self, number: u64, taken: bool) {
        let size = self.tree.len();
        let mut at = number as usize % size + 1;
        while at <= size {
            let count = &mut self.tree[at - 1];
            *count = if taken { *count + 1 } else { *count - 1 };
            at += at & at.wrapping_neg();
        }
    }

    /// Taken slots at places below `end` of the ring.
    fn prefix(&self, end: usize) -> u64 {
        let (mut at, mut sum) = (end, 0);
        while at > 0 {
            sum += u64::from(self.tree[at - 1]);
            at &= at - 1;
        }
        sum
    }

    /// Taken slots from the head to `number`.
    fn before(&self, number: u64) -> u64 {
        let size = self.tree.len();
        let (head, at) = (self.base as usize % size, number as usize % size);
        if at >= head {
            self.prefix(at) - self.prefix(head)
        } else {
            self.prefix(size) - self.prefix(head) + self.prefix(at)
        }
    }
}

/// How many places become free behind the line, over the last minute.
#[derive(Debug, Default)]
pub struct Departures {
    buckets: VecDeque<u64>,
    /// Of the newest bucket.
    at: u64,
    since: Option<Duration>,
    now: Duration,
}

impl Departures {
    /// From now on nobody leaving means something.
    pub fn began(&mut self, now: Duration) {
        self.since.get_or_insert(now);
        self.turn(now);
    }

    pub fn departed(&mut self, count: u64, now: Duration) {
        self.began(now);
        if let Some(newest) = self.buckets.back_mut() {
            *newest += count;
        }
    }

    /// What the measured rate makes of a place. For one rate, further back is never sooner.
    pub fn estimate(&self, ahead: u64) -> Estimate {
        let left: u64 = self.buckets.iter().sum();
        let since = self.since.unwrap_or(self.now);
        let over = self.now.saturating_sub(since).min(WINDOW);
        // A first moment has no rate.
        let over = over.max(Duration::from_millis(100)).as_secs_f64();
        let left = left as f64;
        let spread = DEVIATIONS * left.max(1.0).sqrt();
        // She leaves, too: hers is the departure after those ahead.
        let departures = ahead.saturating_add(1) as f64;
        let wait = |left: f64| {
            let wait = (left > 0.0).then(|| departures * over / left)?;
            let bounded = wait.min(ESTIMATE_MAX.as_secs_f64());
            Duration::try_from_secs_f64(bounded).ok()
        };
        Estimate {
            ahead,
            likely: wait(left),
            least: wait(left + spread).unwrap_or(ESTIMATE_MAX),
            most: wait(left - spread),
        }
    }

    /// Brings the measuring up to `now`.
    pub fn turn(&mut self, now: Duration) {
        self.now = self.now.max(now);
        let at = (now.as_millis() / BUCKET.as_millis()) as u64;
        let turns = at.saturating_sub(self.at);
        if turns >= BUCKETS as u64 {
            self.buckets.clear();
        }
        for _ in 0..turns.min(BUCKETS as u64) {
            self.buckets.push_back(0);
        }
        if self.buckets.is_empty() {
            self.buckets.push_back(0);
        }
        while self.buckets.len() > BUCKETS {
            self.buckets.pop_front();
        }
        self.at = self.at.max(at);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The line as nobody would build it.
    #[derive(Default)]
    struct Plain(Vec<(u8, TicketId)>);

    impl Plain {
        fn ahead(&self, ticket: TicketId) -> Option<u64> {
            let mut sorted = self.0.clone();
            sorted.sort_by_key(|&(class, _)| class);
            let at = sorted.iter().position(|&(_, other)| other == ticket)?;
            Some(at as u64)
        }

        fn pop(&mut self) -> Option<TicketId> {
            let class = self.0.iter().map(|&(class, _)| class).min()?;
            let at = self.0.iter().position(|&(other, _)| other == class)?;
            Some(self.0.remove(at).1)
        }
    }

    proptest! {
        #[test]
        fn the_line_keeps_everybodys_place(steps in prop::collection::vec((0_u8..10, 0_u8..4, 0_u64..30), 1..300)) {
            let mut line = Line::new(10);
            let mut plain = Plain::default();
            for (what, class, ticket) in steps {
                let ticket = TicketId(ticket);
                match what {
                    0..=4 => {
                        let known = plain.ahead(ticket).is_some();
                        let fits = known || plain.0.len() < 10;
                        prop_assert_eq!(line.push(class, ticket).is_ok(), fits);
                        if fits && !known {
                            plain.0.push((class, ticket));
                        }
                    }
                    5..=6 => prop_assert_eq!(line.pop(), plain.pop()),
                    _ => {
                        let known = plain.ahead(ticket).is_some();
                        prop_assert_eq!(line.remove(ticket), known);
                        plain.0.retain(|&(_, other)| other != ticket);
                    }
                }
                prop_assert_eq!(line.len(), plain.0.len());
                for ticket in (0..30).map(TicketId) {
                    prop_assert_eq!(line.ahead(ticket), plain.ahead(ticket));
                }
            }
        }

        #[test]
        fn estimates_grow_with_the_line_and_contain_what_is_likely(
            departures in prop::collection::vec((0_u64..200_000, 0_u64..100), 0..50),
            asked in 0_u64..400_000,
            places in prop::collection::vec(0_u64..u64::MAX, 2..20),
        ) {
            let mut measured = Departures::default();
            let mut departures = departures;
            departures.sort_unstable();
            for (at, count) in departures {
                measured.departed(count, Duration::from_millis(at));
            }
            let mut places = places;
            places.sort_unstable();
            let mut before: Option<Estimate> = None;
            for ahead in places {
                let estimate = {
                    measured.turn(Duration::from_millis(asked));
                    measured.estimate(ahead)
                };
                prop_assert!(estimate.least <= estimate.likely.unwrap_or(ESTIMATE_MAX));
                prop_assert!(estimate.likely.unwrap_or(ESTIMATE_MAX) <= estimate.most.unwrap_or(ESTIMATE_MAX));
                if let Some(before) = before {
                    prop_assert!(estimate.least >= before.least);
                    prop_assert!(estimate.likely >= before.likely);
                    prop_assert!(estimate.most >= before.most);
                }
                before = Some(estimate);
            }
        }
    }

    #[test]
    fn a_steady_rate_is_told_as_it_is() {
        let mut measured = Departures::default();
        for second in 0..120 {
            measured.departed(50, Duration::from_secs(second));
        }
        measured.turn(Duration::from_secs(120));
        let estimate = measured.estimate(999);
        let likely = estimate.likely.unwrap().as_secs_f64();
        assert!((19.0..21.5).contains(&likely), "{estimate:?}");
        assert!(
            estimate.most.unwrap() < Duration::from_secs(23),
            "{estimate:?}"
        );
        assert!(estimate.least > Duration::from_secs(18), "{estimate:?}");
    }

    #[test]
    fn nobody_is_promised_anything_where_nobody_leaves() {
        let mut measured = Departures::default();
        measured.began(Duration::ZERO);
        measured.turn(Duration::from_secs(30));
        let estimate = measured.estimate(3);
        assert_eq!((estimate.likely, estimate.most), (None, None));
        assert!(estimate.least > Duration::ZERO);
    }
}
