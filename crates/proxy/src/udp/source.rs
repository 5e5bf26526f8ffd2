//! Where datagrams come from: an IPv4 address, or the /64 of an IPv6 one. Each has so many sessions, and so many datagrams and
//! bytes a second with a burst of one second (GCRA: one number says when the next one conforms). All cores share these.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use phalanx_model::resource::udp::UdpLimits;

use super::index::Index;
use super::slots::Slots;

/// Of a listener: sources are counted per port.
pub type Key = (SocketAddr, u128);

/// What one address can't leave by making up others.
pub fn prefix(from: SocketAddr) -> u128 {
    match from.ip().to_canonical() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip) & !u128::from(u64::MAX) | 1 << 63,
    }
}

/// Of one source, of all cores.
#[derive(Default)]
pub struct Shared {
    pub sessions: AtomicU32,
    /// When the next one would conform, in ns since the start.
    packets_ns: AtomicU64,
    bytes_ns: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Packets,
    Bytes,
}

impl Shared {
    /// Takes a datagram of `bytes` from what the source may send.
    #[inline]
    pub fn take(&self, limits: &UdpLimits, bytes: usize, now_ns: u64) -> Result<(), Over> {
        let packets = u64::from(limits.packets_per_second_per_source);
        if packets > 0 && !spend(&self.packets_ns, SECOND_NS / packets, now_ns) {
            return Err(Over::Packets);
        }
        let rate = limits.bytes_per_second_per_source;
        let cost = || (bytes as u64).saturating_mul(SECOND_NS) / rate.max(1);
        if rate > 0 && !spend(&self.bytes_ns, cost(), now_ns) {
            return Err(Over::Bytes);
        }
        Ok(())
    }

    /// Nothing conforms before `until_ns`, and then no burst.
    pub fn bar(&self, until_ns: u64) {
        let empty = until_ns.saturating_add(SECOND_NS);
        self.packets_ns.fetch_max(empty, Ordering::Relaxed);
    }

    fn is_quiet(&self, now_ns: u64) -> bool {
        let of = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        of(&self.packets_ns).max(of(&self.bytes_ns)) <= now_ns
    }
}

#[inline]
fn spend(cell: &AtomicU64, cost_ns: u64, now_ns: u64) -> bool {
    let next = |at: u64| {
        let from = at.max(now_ns);
        (from - now_ns < SECOND_NS).then(|| from.saturating_add(cost_ns))
    };
    let (one, other) = (Ordering::Relaxed, Ordering::Relaxed);
    cell.fetch_update(one, other, next).is_ok()
}

const SECOND_NS: u64 = 1_000_000_000;

/// Of all cores; asked when a core meets a source for the first time.
#[derive(Default)]
pub struct Everybody(Mutex<HashMap<Key, Weak<Shared>>>);

impl Everybody {
    fn join(&self, key: Key) -> Arc<Shared> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = all.get(&key).and_then(Weak::upgrade) {
            return shared;
        }
        let shared = Arc::<Shared>::default();
        all.insert(key, Arc::downgrade(&shared));
        shared
    }

    fn leave(&self, key: Key) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all
            .get(&key)
            .is_some_and(|shared| shared.strong_count() == 0)
        {
            all.remove(&key);
        }
    }
}

/// Those that a core has met.
pub struct Sources {
    seed: u64,
    index: Index,
    slots: Slots<Source>,
    /// None where there is one core.
    everybody: Option<Arc<Everybody>>,
    hand: u32,
    max: usize,
}

pub struct Source {
    pub key: Key,
    pub shared: Arc<Shared>,
    /// Of this core; while there are some, it stays.
    pub sessions: u32,
    /// Datagrams over its limits, in the second that `over_since_ns` began.
    over: u32,
    over_since_ns: u64,
}

impl Source {
    /// One more over its limits; true when that are so many that they had better not come here at all.
    pub fn exceed(&mut self, now_ns: u64) -> bool {
        if now_ns.saturating_sub(self.over_since_ns) > SECOND_NS {
            (self.over, self.over_since_ns) = (0, now_ns);
        }
        self.over += 1;
        if self.over < FLOOD {
            return false;
        }
        self.over = 0;
        true
    }
}

impl Sources {
    pub fn new(seed: u64, everybody: Option<Arc<Everybody>>, max: usize) -> Self {
        Self {
            seed,
            index: Index::default(),
            slots: Slots::default(),
            everybody,
            hand: 0,
            max,
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    fn hash(&self, key: Key) -> u64 {
        super::hash(self.seed, &[key.0], None, &key.1.to_ne_bytes())
    }

    /// One that was met before.
    pub fn find(&self, key: Key) -> Option<u32> {
        let is_it = |place| self.slots.get(place).is_some_and(|s: &Source| s.key == key);
        self.index.find(self.hash(key), is_it)
    }

    /// None: there are as many as there may be, and those that were looked at have sessions or have just sent something.
    pub fn meet(&mut self, key: Key, now_ns: u64) -> Option<u32> {
        if let Some(place) = self.find(key) {
            return Some(place);
        }
        let hash = self.hash(key);
        if self.slots.len() >= self.max && !(0..EVICT_TRIES).any(|_| self.forget_next(now_ns)) {
            return None;
        }
        let shared = match &self.everybody {
            Some(everybody) => everybody.join(key),
            None => Arc::default(),
        };
        let place = self.slots.insert(Source {
            key,
            shared,
            sessions: 0,
            over: 0,
            over_since_ns: 0,
        });
        self.index.insert(hash, place);
        Some(place)
    }

    #[inline]
    pub fn get(&self, place: u32) -> Option<&Source> {
        self.slots.get(place)
    }

    #[inline]
    pub fn get_mut(&mut self, place: u32) -> Option<&mut Source> {
        self.slots.get_mut(place)
    }

    /// Counts a session unless there are `max`.
    pub fn enter(&mut self, place: u32, max: u32) -> bool {
        let Some(source) = self.slots.get_mut(place) else {
            return false;
        };
        let sessions = &source.shared.sessions;
        if sessions.fetch_add(1, Ordering::Relaxed) >= max {
            sessions.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        source.sessions += 1;
        true
    }

    pub fn exit(&mut self, place: u32) {
        if let Some(source) = self.slots.get_mut(place) {
            source.sessions = source.sessions.saturating_sub(1);
            source.shared.sessions.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets some of those that have no session and are quiet.
    pub fn sweep(&mut self, now_ns: u64) {
        for _ in 0..SWEPT.min(self.slots.end()) {
            self.forget_next(now_ns);
        }
    }

    /// Looks at the next one; true: it is forgotten.
    fn forget_next(&mut self, now_ns: u64) -> bool {
        self.hand = match self.hand + 1 < self.slots.end() {
            true => self.hand + 1,
            false => 0,
        };
        let place = self.hand;
        let source = self.slots.get(place);
        let Some(source) = source.filter(|s| s.sessions == 0 && s.shared.is_quiet(now_ns)) else {
            return false;
        };
        let key = source.key;
        self.index.remove(self.hash(key), place);
        drop(self.slots.remove(place));
        if let Some(everybody) = &self.everybody {
            everybody.leave(key);
        }
        true
    }
}

/// Looked at in one go.
const SWEPT: u32 = 1024;
/// Looked at for one that can be forgotten, when there are as many as there may be.
const EVICT_TRIES: u32 = 64;
/// So many over the limits within a second are a flood.
pub const FLOOD: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(packets: u32, bytes: u64) -> UdpLimits {
        UdpLimits {
            packets_per_second_per_source: packets,
            bytes_per_second_per_source: bytes,
            ..UdpLimits::default()
        }
    }

    #[test]
    fn a_source_has_a_burst_of_a_second_and_then_its_rate() {
        let source = Shared::default();
        let limits = limits(100, 0);
        let passed = |now_ns: u64| source.take(&limits, 10, now_ns).is_ok();
        assert_eq!((0..500).filter(|_| passed(7)).count(), 100);
        assert_eq!((0..500).filter(|_| passed(SECOND_NS / 2)).count(), 50);
        let later = 1..=1000;
        let trickle = later
            .filter(|ms| passed(SECOND_NS + ms * 1_000_000))
            .count();
        assert!((140..=160).contains(&trickle), "{trickle}");
    }

    #[test]
    fn bytes_are_limited_too_and_a_barred_source_begins_without_a_burst() {
        let source = Shared::default();
        let limits = limits(0, 1000);
        assert_eq!(
            (0..9)
                .filter(|_| source.take(&limits, 500, 0).is_ok())
                .count(),
            2
        );
        let barred = Shared::default();
        barred.bar(SECOND_NS);
        let limits = self::limits(10, 0);
        assert_eq!(barred.take(&limits, 1, SECOND_NS), Err(Over::Packets));
        let after = SECOND_NS + SECOND_NS / 10;
        assert!(barred.take(&limits, 1, after).is_ok());
        assert!(barred.take(&limits, 1, after).is_err());
    }

    #[test]
    fn an_ipv6_source_is_its_64_and_an_ipv4_one_its_address_however_it_is_written() {
        let of = |text: &str| prefix(text.parse().unwrap());
        assert_eq!(of("[2001:db8::1]:5"), of("[2001:db8::ffff:1]:6"));
        assert_ne!(of("[2001:db8::1]:5"), of("[2001:db8:0:1::1]:5"));
        assert_eq!(of("10.0.0.1:5"), of("[::ffff:10.0.0.1]:9"));
        assert_ne!(of("10.0.0.1:5"), of("10.0.0.2:5"));
    }

    #[test]
    fn cores_share_a_source_and_the_quiet_ones_are_forgotten() {
        let everybody = Arc::<Everybody>::default();
        let core = || Sources::new(1, Some(everybody.clone()), 10);
        let (mut one, mut other) = (core(), core());
        let port = "192.0.2.1:7000".parse().unwrap();
        let a = one.meet((port, 5), 0).unwrap();
        let b = other.meet((port, 5), 0).unwrap();
        assert!(one.enter(a, 2) && other.enter(b, 2) && !one.enter(a, 2));
        one.sweep(u64::MAX);
        assert_eq!(one.len(), 1, "it has a session");
        one.exit(a);
        other.exit(b);
        for sources in [&mut one, &mut other] {
            sources.sweep(u64::MAX);
            assert_eq!(sources.len(), 0);
        }
        assert!(everybody.0.lock().unwrap().is_empty());
    }

    #[test]
    fn of_as_many_sources_as_there_may_be_a_quiet_one_makes_room_and_one_with_a_session_stays() {
        let mut sources = Sources::new(1, None, 1024);
        let port = "192.0.2.1:7000".parse().unwrap();
        for key in 0..5 {
            let place = sources.meet((port, key), 0).unwrap();
            assert!(sources.enter(place, 1));
        }
        assert!((5..5000).all(|key| sources.meet((port, key), 0).is_some()));
        assert_eq!(sources.len(), 1024);
        assert!((0..5).all(|key| sources.find((port, key)).is_some()));
        // All of them have just sent something, but for those with sessions.
        let limits = limits(1, 0);
        for place in 0..1024 {
            let _ = sources.get(place).unwrap().shared.take(&limits, 1, 0);
        }
        assert!(sources.meet((port, 9999), 0).is_none());
        assert!(sources.meet((port, 9999), 2 * SECOND_NS).is_some());
    }
}
