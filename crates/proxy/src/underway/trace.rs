//! What requests under way were given to be traced by, a few per core: a trace is passed on only where one request can be
//! the cause, so more need not be remembered.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use phalanx_relay::{HeaderList, Value, names};

use super::span::is_recent;

/// `traceparent`, `x-request-id` and `tracestate` of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    words: [u64; WORDS],
}

impl Ids {
    /// Gives a request those that it has not.
    pub fn give(&self, headers: &mut HeaderList) {
        let mut bytes = [0; 8 * (WORDS - 1)];
        for (word, place) in self.words.iter().skip(1).zip(bytes.as_chunks_mut().0) {
            *place = word.to_le_bytes();
        }
        let lengths = self.words.first().copied().unwrap_or_default();
        let has_trace = headers.contains(names::TRACEPARENT);
        for (index, part) in PARTS.into_iter().enumerate() {
            let length = usize::from((lengths >> (16 * index)) as u16);
            let is_there = match part.name == names::X_REQUEST_ID {
                true => headers.contains(part.name),
                // A trace is one thing: its state goes with it.
                false => has_trace,
            };
            let from = 8 * part.word;
            let value = bytes.get(from..from + length).filter(|_| length > 0);
            if let (false, Some(value)) = (is_there, value.and_then(Value::new)) {
                headers.set(part.name, value);
            }
        }
    }
}

pub(super) struct Traces {
    slots: [Slot; SLOTS],
    /// Where the next one is looked for: whoever ended last keeps its slot longest.
    next: AtomicU64,
}

struct Slot {
    stamp: Stamp,
    words: [AtomicU64; WORDS],
}

impl Default for Traces {
    fn default() -> Self {
        let slot = |_| Slot {
            stamp: Stamp::default(),
            words: [const { AtomicU64::new(0) }; WORDS],
        };
        Self {
            slots: std::array::from_fn(slot),
            next: AtomicU64::new(0),
        }
    }
}

impl Traces {
    /// None where as many are under way as there are slots.
    pub(super) fn begin(&self, headers: &HeaderList) -> Option<u8> {
        let next = self.next.load(Ordering::Relaxed);
        let free = (0..SLOTS as u64).find_map(|step| {
            let at = (next.wrapping_add(step) % SLOTS as u64) as u8;
            let slot = self.slots.get(usize::from(at))?;
            slot.stamp.is_free().then_some((at, slot))
        });
        let (at, slot) = free?;
        self.next.store(u64::from(at) + 1, Ordering::Relaxed);
        slot.stamp.write(0, || slot.fill(headers));
        Some(at)
    }

    pub(super) fn end(&self, slot: u8, ended_ms: u64) {
        if let Some(slot) = self.slots.get(usize::from(slot)) {
            slot.stamp.end(ended_ms);
        }
    }

    pub(super) fn recent(&self, now_ms: u64, linger_ms: u64) -> impl Iterator<Item = Box<Ids>> {
        self.slots.iter().filter_map(move |slot| {
            let (_, ids) = slot.stamp.read(now_ms, linger_ms, || slot.copy())?;
            Some(ids)
        })
    }
}

impl Slot {
    fn fill(&self, headers: &HeaderList) {
        let mut lengths = 0;
        for (index, part) in PARTS.into_iter().enumerate() {
            let mut values = headers.get_all(part.name);
            let (Some(value), None) = (values.next(), values.next()) else {
                continue;
            };
            if value.len() > part.max {
                continue;
            }
            lengths |= (value.len() as u64) << (16 * index);
            let places = self.words.iter().skip(1 + part.word);
            for (place, bytes) in places.zip(value.chunks(8)) {
                let mut word = [0; 8];
                for (to, from) in word.iter_mut().zip(bytes) {
                    *to = *from;
                }
                place.store(u64::from_le_bytes(word), Ordering::Relaxed);
            }
        }
        if let Some(place) = self.words.first() {
            place.store(lengths, Ordering::Relaxed);
        }
    }

    fn copy(&self) -> Box<Ids> {
        let mut words = [0; WORDS];
        for (to, from) in words.iter_mut().zip(&self.words) {
            *to = from.load(Ordering::Relaxed);
        }
        Box::new(Ids { words })
    }
}

/// Guards what one core writes and others read beside it: a version, a number of the writer's, and when it ended.
///
/// Bits 0–31: the millisecond of the end; 32–39: the number; 40–41: what it is; the rest: the version.
#[derive(Default)]
pub(super) struct Stamp(AtomicU64);

const EMPTY: u64 = 0;
const WRITING: u64 = 1;
const UNDER_WAY: u64 = 2;
const ENDED: u64 = 3;
const PHASE: u32 = 40;
const VERSION: u64 = 1 << 42;

impl Stamp {
    fn phase(word: u64) -> u64 {
        word >> PHASE & 3
    }

    pub(super) fn is_used(&self) -> bool {
        Self::phase(self.0.load(Ordering::Relaxed)) != EMPTY
    }

    /// To its writer.
    pub(super) fn is_free(&self) -> bool {
        matches!(Self::phase(self.0.load(Ordering::Relaxed)), EMPTY | ENDED)
    }

    /// None while it is under way, 0 where it never was. To its writer.
    pub(super) fn ended_ms(&self, now_ms: u64) -> Option<u64> {
        let word = self.0.load(Ordering::Relaxed);
        match Self::phase(word) {
            EMPTY => Some(0),
            ENDED => Some(ended_ms(word, now_ms)),
            _ => None,
        }
    }

    /// Under way from now on, with what `write` writes.
    pub(super) fn write(&self, number: u8, write: impl FnOnce()) {
        let version = self.0.load(Ordering::Relaxed) & !(VERSION - 1);
        let version = version.wrapping_add(VERSION);
        self.0.store(version | WRITING << PHASE, Ordering::Relaxed);
        fence(Ordering::Release);
        write();
        let word = version | UNDER_WAY << PHASE | u64::from(number) << 32;
        self.0.store(word, Ordering::Release);
    }

    /// Told ahead by [`super::ABANDONED_MS`] at most.
    pub(super) fn end(&self, ended_ms: u64) {
        let word = self.0.load(Ordering::Relaxed);
        let kept = word & !(VERSION - 1) | word & 0xff << 32;
        let ended = ended_ms & u64::from(u32::MAX);
        self.0
            .store(kept | ENDED << PHASE | ended, Ordering::Release);
    }

    /// The number and what `read` reads, if it is under way or was a short while ago, and of one writing.
    pub(super) fn read<T>(
        &self,
        now_ms: u64,
        linger_ms: u64,
        read: impl FnOnce() -> T,
    ) -> Option<(u8, T)> {
        let word = self.0.load(Ordering::Acquire);
        let is_there = match Self::phase(word) {
            UNDER_WAY => true,
            ENDED => is_recent(ended_ms(word, now_ms), now_ms, linger_ms),
            _ => false,
        };
        if !is_there {
            return None;
        }
        let value = read();
        fence(Ordering::Acquire);
        let still = self.0.load(Ordering::Relaxed) & !(VERSION - 1) == word & !(VERSION - 1);
        still.then_some(((word >> 32) as u8, value))
    }
}

/// The low half of the time stands in the word; it is the one that is nearest to now.
fn ended_ms(word: u64, now_ms: u64) -> u64 {
    let ago = i64::from((now_ms as u32).wrapping_sub(word as u32) as i32);
    // Further ahead than any end is told: it is more than 24 days ago.
    match ago < -AHEAD_MAX_MS {
        true => 0,
        false => now_ms.saturating_add_signed(-ago),
    }
}

struct Part {
    name: phalanx_relay::Name<'static>,
    /// After the lengths.
    word: usize,
    max: usize,
}

const PARTS: [Part; 3] = [
    Part {
        name: names::TRACEPARENT,
        word: 0,
        max: 56,
    },
    Part {
        name: names::X_REQUEST_ID,
        word: 7,
        max: 64,
    },
    Part {
        name: names::TRACESTATE,
        word: 15,
        max: 256,
    },
];
/// What was abandoned ends later than now, and clocks of cores differ a little.
const AHEAD_MAX_MS: i64 = super::ABANDONED_MS as i64 + super::span::SLACK_MS as i64;
const WORDS: usize = 1 + 15 + 32;
const SLOTS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_of_weeks_ago_is_not_to_come() {
        let stamp = Stamp::default();
        stamp.write(0, || ());
        stamp.end(5_000);
        let ended_ms = |now_ms| stamp.ended_ms(now_ms).unwrap();
        assert_eq!((ended_ms(4_995), ended_ms(9_000)), (5_000, 5_000));
        for days in 0..60 {
            let now_ms = days * 24 * 3_600_000 + 60_000;
            assert!(ended_ms(now_ms) <= 5_000 || now_ms > 1 << 32, "{days}");
            assert!(stamp.read(now_ms, 250, || ()).is_none(), "{days}");
        }
    }
}
