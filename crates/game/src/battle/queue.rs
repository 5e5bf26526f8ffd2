//! One core's queue: a bounded lane per class. Lanes share the core by start-time fair queueing over estimated cost, so
//! that what a class leaves is lent. Within a lane the oldest comes first, until the oldest has waited past its target for a
//! whole interval (CoDel); then the newest comes first, and what is past the target is refused (Maurer, "Fail at Scale",
//! 2015). A core never goes idle for that: what is served is served, however late. Pure: times are handed in.

use std::collections::VecDeque;

use super::call::CLASSES;

/// Entries refused at most per entry served, which bounds the work of one dequeue.
const REFUSED_MAX: usize = 16;
/// Virtual time per nanosecond of cost and unit of share.
const SCALE: u64 = 64;

#[derive(Debug)]
pub(crate) struct Queue<T> {
    lanes: [Lane<T>; CLASSES],
    /// Start tag of the last entry served.
    virtual_time: u64,
    /// Nanoseconds that the oldest must be late before the order turns.
    interval: u64,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneOptions {
    pub share: u32,
    /// Nanoseconds of waiting.
    pub target: u64,
    pub max: usize,
}

#[derive(Debug)]
struct Lane<T> {
    entries: VecDeque<Entry<T>>,
    options: LaneOptions,
    /// Start tag of the lane's next entry.
    start: u64,
    late_since: Option<u64>,
    newest_first: bool,
    turned: u64,
}

#[derive(Debug)]
pub(crate) struct Entry<T> {
    /// When it came, in nanoseconds.
    pub at: u64,
    /// Nanoseconds of work, estimated.
    pub cost: u64,
    pub item: T,
}

impl<T> Queue<T> {
    pub fn new(lanes: [LaneOptions; CLASSES], interval: u64) -> Self {
        Self {
            lanes: lanes.map(|options| Lane {
                entries: VecDeque::new(),
                options,
                start: 0,
                late_since: None,
                newest_first: false,
                turned: 0,
            }),
            virtual_time: 0,
            interval,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// When the oldest entry came.
    pub fn oldest(&self) -> Option<u64> {
        let fronts = self.lanes.iter().filter_map(|lane| lane.entries.front());
        fronts.map(|entry| entry.at).min()
    }

    /// Bit per class: whether its newest come first.
    pub fn newest_first(&self) -> u8 {
        (self.lanes.iter().enumerate())
            .filter(|(_, lane)| lane.newest_first)
            .fold(0, |bits, (class, _)| bits | 1 << class)
    }

    /// How often lanes turned to newest first.
    pub fn turned(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.turned).sum()
    }

    /// A full lane gives the entry back; while its newest come first, it gives up its oldest instead.
    pub fn push(&mut self, class: usize, entry: Entry<T>) -> Result<Option<T>, T> {
        let Some(lane) = self.lanes.get_mut(class) else {
            return Err(entry.item);
        };
        let mut displaced = None;
        if lane.entries.len() >= lane.options.max {
            if !lane.newest_first {
                return Err(entry.item);
            }
            displaced = lane.entries.pop_front().map(|oldest| oldest.item);
            self.len -= usize::from(displaced.is_some());
        }
        if lane.entries.is_empty() {
            lane.start = lane.start.max(self.virtual_time);
        }
        lane.entries.push_back(entry);
        self.len += 1;
        Ok(displaced)
    }

    /// The next entry; what is refused on the way goes to `refused`.
    pub fn pop(&mut self, now: u64, refused: &mut Vec<T>) -> Option<T> {
        if self.len == 0 {
            return None;
        }
        let lane = (self.lanes.iter_mut())
            .filter(|lane| !lane.entries.is_empty())
            .min_by_key(|lane| lane.start)?;
        lane.turn(now, self.interval);
        let entry = if lane.newest_first {
            lane.entries.pop_back()?
        } else {
            lane.entries.pop_front()?
        };
        self.len -= 1;
        self.virtual_time = self.virtual_time.max(lane.start);
        let share = u64::from(lane.options.share.max(1));
        lane.start += entry.cost.max(1).saturating_mul(SCALE) / share;
        if lane.newest_first {
            for _ in 0..REFUSED_MAX {
                let Some(oldest) = (lane.entries)
                    .pop_front_if(|oldest| now.saturating_sub(oldest.at) > lane.options.target)
                else {
                    break;
                };
                self.len -= 1;
                refused.push(oldest.item);
            }
        }
        Some(entry.item)
    }

    /// Everything, in no order that matters.
    pub fn take_all(&mut self) -> Vec<T> {
        self.len = 0;
        (self.lanes.iter_mut())
            .flat_map(|lane| lane.entries.drain(..))
            .map(|entry| entry.item)
            .collect()
    }
}

impl<T> Lane<T> {
    /// Late for a whole interval: newest first. The oldest has waited less than half of the target, or is the only one:
    /// oldest first again.
    fn turn(&mut self, now: u64, interval: u64) {
        let Some(oldest) = self.entries.front() else {
            return;
        };
        let waited = now.saturating_sub(oldest.at);
        if self.entries.len() == 1 {
            self.newest_first = false;
            self.late_since = None;
        } else if waited > self.options.target {
            let since = *self.late_since.get_or_insert(now);
            if !self.newest_first && now.saturating_sub(since) >= interval {
                self.newest_first = true;
                self.turned += 1;
            }
        } else if waited < self.options.target / 2 || !self.newest_first {
            self.late_since = None;
            self.newest_first = false;
        }
    }
}

#[cfg(test)]
mod tests;
