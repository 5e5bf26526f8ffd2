//! A limit that all sidecars share: tokens are leased from the control plane ahead of need, key by key, and spent here
//! without asking anybody.
//!
//! A key that nothing is known of goes on credit for a moment: at most [`Leases::credit`] requests, which are told and
//! taken off with the next question. A key that the control plane has refused stays refused until a token can be there
//! again. Whoever asks ([`crate::lease`]) gathers questions and brings answers; requests only read and write atomics.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use phalanx_model::resource::limit::{GlobalLimit, LimitKey};

use super::bucket::{Bucket, Pace};
use super::clock::SECOND;

#[derive(Debug)]
pub struct Leases {
    /// By which the control plane knows the limit.
    pub policy: String,
    pub limit: GlobalLimit,
    pace: Pace,
    /// The first is for all keys that found no place; the only one where there are no keys.
    slots: Box<[Slot]>,
    /// One bit per slot that was asked since the last question.
    used: Box<[AtomicU64]>,
    /// The control plane does not answer.
    silent: AtomicBool,
}

/// One key.
#[derive(Debug, Default)]
struct Slot {
    /// 0: free.
    key: AtomicU64,
    /// Leased, not spent.
    tokens: AtomicI64,
    /// Until when the last answer holds.
    holds_until_ns: AtomicU64,
    /// The last answer was that there are no more.
    dry: AtomicBool,
    /// Spent on credit, not told yet.
    debt: AtomicU32,
    /// Requests since the last question.
    seen: AtomicU32,
    used_ns: AtomicU64,
    /// While nobody answers.
    alone: Bucket,
}

/// A question about one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    slot: usize,
    pub key: u64,
    /// Already let through on credit.
    pub spent: u32,
    pub wanted: u32,
    /// Leased before, and not needed.
    pub returned: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub tokens: u32,
    /// How long a refusal holds, in ns; 0: there are more tokens.
    pub dry_ns: u64,
}

impl Leases {
    pub fn new(policy: &str, limit: &GlobalLimit) -> Self {
        let slots = match limit.by {
            LimitKey::All => 1,
            LimitKey::Header(_) | LimitKey::Caller => SLOTS,
        };
        let slots: Box<[Slot]> = (0..slots).map(|_| Slot::default()).collect();
        if let (Some(first), false) = (slots.first(), limit.by == LimitKey::All) {
            first.key.store(KEY_OTHERS, Ordering::Relaxed);
        }
        Self {
            policy: policy.to_owned(),
            limit: limit.clone(),
            pace: Pace::new(&limit.rate),
            used: (0..slots.len().div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            slots,
            silent: AtomicBool::new(false),
        }
    }

    /// How many requests of a key may be let through before the control plane has been asked: a tenth of the burst.
    pub fn credit(&self) -> u32 {
        (self.limit.rate.burst / 10).max(1)
    }

    /// Whether a request of this key may pass. `key`: see [`key_of`]; any, where there are no keys.
    pub fn take(&self, key: u64, now_ns: u64) -> bool {
        let place = self.place(key, now_ns);
        let Some(slot) = self.slots.get(place) else {
            return !self.limit.closed;
        };
        slot.used_ns.store(now_ns, Ordering::Relaxed);
        slot.seen.fetch_add(1, Ordering::Relaxed);
        self.mark(place);
        let holds = now_ns < slot.holds_until_ns.load(Ordering::Acquire);
        if holds {
            if slot.tokens.load(Ordering::Relaxed) > 0
                && slot.tokens.fetch_sub(1, Ordering::Relaxed) > 0
            {
                return true;
            }
            if slot.dry.load(Ordering::Relaxed) {
                return false;
            }
        }
        if self.silent.load(Ordering::Relaxed) {
            return !self.limit.closed && slot.alone.take(self.pace, now_ns);
        }
        // Where there was nothing a moment ago, others will ask too.
        let credit = match slot.dry.load(Ordering::Relaxed) {
            true => 1,
            false => self.credit(),
        };
        if slot.debt.fetch_add(1, Ordering::Relaxed) < credit {
            return true;
        }
        slot.debt.fetch_sub(1, Ordering::Relaxed);
        false
    }

    #[inline]
    fn mark(&self, place: usize) {
        let bit = 1 << (place % 64);
        if let Some(word) = self.used.get(place / 64)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Of the key's slot; one that nobody needs any more is taken over, and the first is everybody's.
    fn place(&self, key: u64, now_ns: u64) -> usize {
        let rest = match self.slots.len() {
            0 | 1 => return 0,
            all => all - 1,
        };
        let at = |step: usize| 1 + (key as usize).wrapping_add(step) % rest;
        let mut spare = None;
        for place in (0..PROBES).map(at) {
            let Some(slot) = self.slots.get(place) else {
                continue;
            };
            let held = slot.key.load(Ordering::Relaxed);
            if held == key {
                return place;
            }
            if spare.is_none() && (held == 0 || slot.is_idle(now_ns)) {
                spare = Some((place, slot, held));
            }
            if held == 0 {
                break;
            }
        }
        let Some((place, slot, held)) = spare else {
            return 0;
        };
        let swapped = slot
            .key
            .compare_exchange(held, key, Ordering::Relaxed, Ordering::Relaxed);
        match swapped {
            Ok(0) => place,
            Ok(_) => {
                slot.clear();
                place
            }
            Err(other) if other == key => place,
            Err(_) => 0,
        }
    }

    /// Questions about what was used since the last ones, at most `max`; the rest stays for the next.
    /// `held`: slots with tokens, remembered by the asker.
    pub fn gather(&self, now_ns: u64, max: usize, held: &mut BTreeSet<usize>) -> Vec<Ask> {
        let mut asks = Vec::new();
        held.retain(|place| {
            let Some(slot) = self.slots.get(*place) else {
                return false;
            };
            let is_over = now_ns >= slot.holds_until_ns.load(Ordering::Relaxed);
            let left = match is_over {
                true => slot.tokens.swap(0, Ordering::Relaxed),
                false => slot.tokens.load(Ordering::Relaxed),
            };
            if is_over && left > 0 {
                asks.push(Ask {
                    slot: *place,
                    key: slot.key.load(Ordering::Relaxed),
                    spent: 0,
                    wanted: 0,
                    returned: u32::try_from(left).unwrap_or(u32::MAX),
                });
            }
            !is_over
        });
        for (index, word) in self.used.iter().enumerate() {
            if asks.len() + 64 > max.max(64) {
                break;
            }
            let mut bits = word.swap(0, Ordering::Relaxed);
            while bits != 0 {
                let place = index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                asks.extend(self.slots.get(place).map(|slot| slot.ask(place)));
            }
        }
        asks
    }

    /// The answer to a question; keys that have tokens now are added to `held`.
    pub fn grant(&self, ask: &Ask, grant: Grant, now_ns: u64, held: &mut BTreeSet<usize>) {
        self.silent.store(false, Ordering::Relaxed);
        let Some(slot) = self.slots.get(ask.slot) else {
            return;
        };
        if slot.key.load(Ordering::Relaxed) != ask.key || ask.returned > 0 {
            return;
        }
        if grant.tokens > 0 {
            slot.tokens.fetch_max(0, Ordering::Relaxed);
            slot.tokens
                .fetch_add(i64::from(grant.tokens), Ordering::Relaxed);
            held.insert(ask.slot);
        }
        let leased = slot.tokens.load(Ordering::Relaxed) > 0;
        let holds = match grant.dry_ns {
            dry if leased || dry == 0 => dry.max(LEASE),
            dry => dry,
        };
        slot.dry.store(grant.dry_ns > 0, Ordering::Relaxed);
        slot.holds_until_ns
            .store(now_ns.saturating_add(holds), Ordering::Release);
        slot.alone.refill();
        slot.debt.fetch_sub(ask.spent, Ordering::Release);
    }

    /// Nobody answered: what was told is still to be told, and until somebody does this sidecar is on its own.
    pub fn unanswered(&self, ask: &Ask) {
        self.silent.store(true, Ordering::Relaxed);
        if let Some(slot) = self.slots.get(ask.slot)
            && slot.key.load(Ordering::Relaxed) == ask.key
        {
            self.mark(ask.slot);
        }
    }

    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }
}

impl Slot {
    fn ask(&self, place: usize) -> Ask {
        let seen = self.seen.swap(0, Ordering::Relaxed);
        let tokens = self.tokens.load(Ordering::Relaxed).max(0);
        // Once in a while: not worth a lease. Else as much as for the next few questions.
        let expected = if seen > 1 {
            seen.saturating_mul(AHEAD)
        } else {
            0
        };
        Ask {
            slot: place,
            key: self.key.load(Ordering::Relaxed),
            // It stays owed until somebody has answered, or it could be made twice.
            spent: self.debt.load(Ordering::Relaxed),
            wanted: expected.saturating_sub(u32::try_from(tokens).unwrap_or(u32::MAX)),
            returned: 0,
        }
    }

    fn is_idle(&self, now_ns: u64) -> bool {
        let used = self.used_ns.load(Ordering::Relaxed);
        now_ns.saturating_sub(used) > IDLE
            && now_ns >= self.holds_until_ns.load(Ordering::Relaxed)
            && self.tokens.load(Ordering::Relaxed) <= 0
            && self.debt.load(Ordering::Relaxed) == 0
    }

    fn clear(&self) {
        self.holds_until_ns.store(0, Ordering::Relaxed);
        self.tokens.store(0, Ordering::Relaxed);
        self.dry.store(false, Ordering::Relaxed);
        self.seen.store(0, Ordering::Relaxed);
        self.alone.refill();
    }
}

/// The key of a value: a quarter of its SHA-256, so that nobody finds another with the same; never one with a meaning of
/// its own.
pub fn key_of(value: &[u8]) -> u64 {
    let digest = phalanx_pki::x509::sha256(value);
    let first = digest.first_chunk::<8>();
    let key = first.map_or(0, |bytes| u64::from_be_bytes(*bytes));
    key.max(KEY_OTHERS + 1)
}

/// Of all keys that found no place.
pub const KEY_OTHERS: u64 = 1;
/// Keys at a time; more share one.
const SLOTS: usize = 8 * 1024;
const PROBES: usize = 16;
/// How many questions a lease is to last for.
const AHEAD: u32 = 4;
/// How long leased tokens stay with a sidecar that does not spend them.
const LEASE: u64 = SECOND;
const IDLE: u64 = 2 * SECOND;

#[cfg(test)]
mod tests;
