//! The slab of a connection's streams, found by their ids.

use std::collections::VecDeque;

/// A stream of one connection. Ids are never used twice, so that one that outlives its stream reaches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    slot: u16,
    id: u32,
}

impl Stream {
    /// As on the wire.
    pub fn id(self) -> u32 {
        self.id
    }

    /// A small number that no other stream has which the driver has not let go of yet: for a table beside the codec's.
    pub fn slot(self) -> usize {
        usize::from(self.slot)
    }
}

#[derive(Debug)]
pub(super) struct Slot {
    /// 0 while the slot is free.
    pub(super) id: u32,
    pub(super) send_window: i32,
    /// What the peer may still send.
    pub(super) receive_window: i32,
    /// Handed to the driver and not yet reported as consumed.
    pub(super) unconsumed: u32,
    /// Consumed and not yet given back.
    pub(super) unreturned: u32,
    /// Bytes of body that must still come; [`UNKNOWN`] when no length was told.
    pub(super) left: u64,
    /// The same of the body that we send.
    pub(super) to_send: u64,
    pub(super) receiving: Side,
    pub(super) sending: Side,
    /// Of the batch that announced it.
    pub(super) born: u32,
    /// The next in the queue of those that may write, or in the list of free ones.
    next: u16,
    pub(super) queued: bool,
    /// The driver has more to send than it could.
    pub(super) wants: bool,
    /// Ended by a reset, of either side.
    pub(super) reset: bool,
    /// It was the peer's.
    pub(super) by_peer: bool,
    /// The answer to HEAD has no body.
    pub(super) head: bool,
    pub(super) continues: bool,
    pub(super) interim: u8,
}

/// How far one direction of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Head,
    Body,
    Ended,
}

pub(super) const UNKNOWN: u64 = u64::MAX;
const NONE: u16 = u16::MAX;

#[derive(Debug)]
pub(super) struct Streams {
    slots: Vec<Slot>,
    free: u16,
    live: u32,
    /// Open addressing over half of the ids' bits; [`NONE`] where nothing is. At most half of it is taken.
    index: Vec<u16>,
    queue: (u16, u16),
    /// Ids let go of last, the upper bit set when it was we who ended them.
    closed: VecDeque<u32>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: NONE,
            live: 0,
            index: Vec::new(),
            queue: (NONE, NONE),
            closed: VecDeque::new(),
        }
    }
}

/// What is known of an id that no slot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// We reset it or took no notice of it: what was on its way is ignored.
    Ours,
    Ended,
    Unknown,
}

impl Slot {
    pub(super) fn new(id: u32, send_window: i32, receive_window: i32) -> Self {
        Self {
            id,
            send_window,
            receive_window,
            unconsumed: 0,
            unreturned: 0,
            left: UNKNOWN,
            to_send: UNKNOWN,
            receiving: Side::Head,
            sending: Side::Head,
            born: 0,
            next: NONE,
            queued: false,
            wants: false,
            reset: false,
            by_peer: false,
            head: false,
            continues: false,
            interim: 0,
        }
    }
}

impl Streams {
    /// How many the driver has not let go of.
    pub(super) fn live(&self) -> u32 {
        self.live
    }

    pub(super) fn insert(&mut self, slot: Slot) -> Stream {
        let id = slot.id;
        self.live += 1;
        let place = match self.slots.get_mut(usize::from(self.free)) {
            Some(free) => {
                let place = self.free;
                self.free = free.next;
                *free = slot;
                place
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u16 // fewer than [`STREAMS_MAX`]
            }
        };
        if self.index.len() < self.slots.len() * 2 {
            self.rebuild();
        } else {
            self.enter(place, id);
        }
        Stream { slot: place, id }
    }

    fn rebuild(&mut self) {
        let size = (self.slots.len() * 2).next_power_of_two().max(INDEX_MIN);
        self.index.clear();
        self.index.resize(size, NONE);
        for place in 0..self.slots.len() {
            let id = self.slots.get(place).map_or(0, |slot| slot.id);
            if id != 0 {
                self.enter(place as u16, id);
            }
        }
    }

    fn enter(&mut self, place: u16, id: u32) {
        let mask = self.index.len().wrapping_sub(1);
        let mut at = (id >> 1) as usize & mask;
        while let Some(entry) = self.index.get_mut(at) {
            if *entry == NONE {
                *entry = place;
                return;
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    pub(super) fn find(&self, id: u32) -> Option<Stream> {
        let mask = self.index.len().wrapping_sub(1);
        let mut at = (id >> 1) as usize & mask;
        loop {
            let place = *self.index.get(at)?;
            let slot = self.slots.get(usize::from(place))?; // NONE is no place
            if slot.id == id {
                return Some(Stream { slot: place, id });
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    pub(super) fn get(&mut self, stream: Stream) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(usize::from(stream.slot))?;
        (slot.id == stream.id).then_some(slot)
    }

    #[inline]
    pub(super) fn look(&self, stream: Stream) -> Option<&Slot> {
        let slot = self.slots.get(usize::from(stream.slot))?;
        (slot.id == stream.id).then_some(slot)
    }

    /// Frees the slot. `ours`: frames that are on their way are to be ignored.
    pub(super) fn remove(&mut self, stream: Stream, ours: bool, kept: usize) {
        let Some(slot) = self.get(stream) else { return };
        let queued = slot.queued;
        if queued {
            self.unqueue(stream.slot);
        }
        self.leave(stream);
        if let Some(slot) = self.slots.get_mut(usize::from(stream.slot)) {
            slot.id = 0;
            slot.queued = false;
            slot.next = self.free;
            self.free = stream.slot;
            self.live -= 1;
        }
        self.close(stream.id, ours, kept);
    }

    /// Takes the id out of the index, and moves up what had to stand behind it.
    fn leave(&mut self, stream: Stream) {
        let mask = self.index.len().wrapping_sub(1);
        let mut at = (stream.id >> 1) as usize & mask;
        while let Some(place) = self.index.get(at) {
            if *place == stream.slot {
                break;
            }
            if *place == NONE {
                return;
            }
            at = (at + 1) & mask;
        }
        let mut hole = at;
        loop {
            at = (at + 1) & mask;
            let Some(place) = self.index.get(at).copied() else {
                return;
            };
            let id = self.slots.get(usize::from(place)).map(|slot| slot.id);
            let Some(id) = id else { break }; // nothing here
            let home = (id >> 1) as usize & mask;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                if let Some(entry) = self.index.get_mut(hole) {
                    *entry = place;
                }
                hole = at;
            }
        }
        if let Some(entry) = self.index.get_mut(hole) {
            *entry = NONE;
        }
    }

    /// Remembers an id that has no slot any more, among the last `kept`.
    pub(super) fn close(&mut self, id: u32, ours: bool, kept: usize) {
        if self.closed.len() >= kept {
            self.closed.pop_front();
        }
        self.closed.push_back(id | u32::from(ours) << 31);
    }

    pub(super) fn past(&self, id: u32) -> Past {
        let found = self.closed.iter().rev().find(|past| **past << 1 == id << 1);
        match found {
            Some(past) if past >> 31 == 1 => Past::Ours,
            Some(_) => Past::Ended,
            None => Past::Unknown,
        }
    }

    /// Behind the others that wait for their turn to write.
    pub(super) fn enqueue(&mut self, stream: Stream) {
        let Some(slot) = self.get(stream) else { return };
        if std::mem::replace(&mut slot.queued, true) {
            return;
        }
        slot.next = NONE;
        let (first, last) = self.queue;
        match self.slots.get_mut(usize::from(last)) {
            Some(last) => {
                last.next = stream.slot;
                self.queue = (first, stream.slot);
            }
            None => self.queue = (stream.slot, stream.slot),
        }
    }

    pub(super) fn dequeue(&mut self) -> Option<Stream> {
        let (first, last) = self.queue;
        let slot = self.slots.get_mut(usize::from(first))?;
        let stream = Stream {
            slot: first,
            id: slot.id,
        };
        slot.queued = false;
        let next = slot.next;
        self.queue = if next == NONE {
            (NONE, NONE)
        } else {
            (next, last)
        };
        Some(stream)
    }

    fn unqueue(&mut self, place: u16) {
        let (first, last) = self.queue;
        let next = |slots: &[Slot], at: u16| slots.get(usize::from(at)).map_or(NONE, |s| s.next);
        let after = next(&self.slots, place);
        if first == place {
            self.queue = if after == NONE {
                (NONE, NONE)
            } else {
                (after, last)
            };
            return;
        }
        let mut before = first;
        while before != NONE {
            if next(&self.slots, before) == place {
                if let Some(slot) = self.slots.get_mut(usize::from(before)) {
                    slot.next = after;
                }
                if last == place {
                    self.queue = (first, before);
                }
                return;
            }
            before = next(&self.slots, before);
        }
    }

    /// Every live stream.
    pub(super) fn all(&self) -> impl Iterator<Item = (Stream, &Slot)> {
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, slot)| slot.id != 0).map(|(place, slot)| {
            let stream = Stream {
                slot: place as u16,
                id: slot.id,
            };
            (stream, slot)
        })
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().filter(|slot| slot.id != 0)
    }

    /// Gives memory back that only streams need.
    pub(super) fn rest(&mut self) {
        if self.live == 0 {
            *self = Self {
                closed: std::mem::take(&mut self.closed),
                ..Self::default()
            };
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
            + self.index.capacity() * 2
            + self.closed.capacity() * 4
    }
}

/// Slots are numbered in 16 bits.
pub(super) const STREAMS_MAX: u32 = 10_000;
const INDEX_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_however_they_come_and_go() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut streams = Streams::default();
        let mut live: Vec<Stream> = Vec::new();
        let mut next = 1;
        for _ in 0..50_000 {
            if live.len() < 60 && rng.bool() {
                next += 2 * rng.u32(1..40);
                live.push(streams.insert(Slot::new(next, 0, 0)));
            } else if !live.is_empty() {
                let gone = live.swap_remove(rng.usize(..live.len()));
                if rng.bool() {
                    streams.enqueue(gone);
                }
                streams.remove(gone, rng.bool(), 10);
                assert_eq!(streams.find(gone.id), None);
                assert!(streams.get(gone).is_none());
                assert_ne!(streams.past(gone.id), Past::Unknown);
            }
            for stream in &live {
                assert_eq!(streams.find(stream.id), Some(*stream));
            }
            assert_eq!(streams.live() as usize, live.len());
        }
        assert!(streams.slots.len() <= 60 && streams.closed.len() <= 10);
    }

    #[test]
    fn queue_keeps_its_order_whoever_leaves_it() {
        let mut streams = Streams::default();
        let all: Vec<Stream> = (0..6)
            .map(|n| streams.insert(Slot::new(2 * n + 1, 0, 0)))
            .collect();
        for stream in &all {
            streams.enqueue(*stream);
            streams.enqueue(*stream);
        }
        for gone in [0, 3, 5] {
            streams.remove(all[gone], true, 10);
        }
        let order: Vec<Stream> = std::iter::from_fn(|| streams.dequeue()).collect();
        assert_eq!(order, [all[1], all[2], all[4]]);
        streams.enqueue(all[2]);
        assert_eq!(streams.dequeue(), Some(all[2]));
        assert_eq!(streams.dequeue(), None);
    }
}
