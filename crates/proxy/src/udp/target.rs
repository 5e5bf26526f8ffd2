//! Which upstream socket a session has. An endpoint tells sessions apart by the port that their datagrams come from, so two
//! sessions to one endpoint need two sockets; sessions to different endpoints share one. There are as many sockets as the
//! endpoint with the most sessions needs, not as many as sessions.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use super::slots::{NONE, Slots};

/// The number of a socket; those for IPv4 endpoints are even, those for IPv6 odd.
pub type SocketId = u32;

/// The sockets of one core, as far as it matters who uses them.
pub struct Targets {
    slots: Slots<Target>,
    by_address: HashMap<SocketAddr, u32>,
    /// Of each family, the sessions on each socket.
    used: [Vec<Used>; 2],
    /// Of each family.
    max: usize,
}

struct Target {
    address: SocketAddr,
    /// By socket.
    lines: Vec<Line>,
    /// Sockets without a session of this endpoint, the longest without first. One that was wanted may be in it still.
    free: VecDeque<u32>,
    /// Lines with a session.
    live: u32,
    /// When the last one lost its session.
    left: u32,
}

/// One socket to one endpoint.
#[derive(Clone, Copy)]
struct Line {
    /// [`NONE`]: there was none yet; [`COOLING`]: none any more.
    session: u32,
    /// When that ended, or something came for it afterwards; in ticks.
    ended: u32,
    /// It is among the free ones.
    queued: bool,
}

const NEW: Line = Line {
    session: NONE,
    ended: 0,
    queued: false,
};

#[derive(Clone, Copy, Default)]
struct Used {
    sessions: u32,
    since: u32,
    /// When all sessions on it were looked at: a number of the directory's.
    looked: u64,
}

/// A session ended a moment ago: what still comes is not for the next one.
const COOLING: u32 = NONE - 1;
/// How long nothing must come, in ticks of 100 ms.
pub const COOL_TICKS: u32 = 50;

impl Targets {
    /// With `max` sockets for each family.
    pub fn new(max: usize) -> Self {
        Self {
            slots: Slots::default(),
            by_address: HashMap::new(),
            used: Default::default(),
            max,
        }
    }

    /// The endpoint at `address`.
    pub fn of(&mut self, address: SocketAddr) -> u32 {
        if let Some(target) = self.by_address.get(&address) {
            return *target;
        }
        let target = self.slots.insert(Target {
            address,
            lines: Vec::new(),
            free: VecDeque::new(),
            live: 0,
            left: 0,
        });
        self.by_address.insert(address, target);
        target
    }

    /// Whose an answer is.
    #[inline]
    pub fn session(&self, socket: SocketId, from: SocketAddr) -> Option<u32> {
        let target = self.slots.get(*self.by_address.get(&from)?)?;
        if family(from) != socket & 1 {
            return None;
        }
        let line = target.lines.get((socket >> 1) as usize)?;
        (line.session < COOLING).then_some(line.session)
    }

    /// Something came from an endpoint where no session is: if one was there, the place is not given to another one for as
    /// long as that goes on.
    pub fn late(&mut self, socket: SocketId, from: SocketAddr, now: u32) {
        let place = self.by_address.get(&from).copied();
        let Some(target) = place.and_then(|place| self.slots.get_mut(place)) else {
            return;
        };
        if family(from) != socket & 1 {
            return;
        }
        let line = target.lines.get_mut((socket >> 1) as usize);
        if let Some(line) = line.filter(|line| line.session == COOLING) {
            line.ended = now;
            target.left = now;
            if let Some(used) = self.used_mut(socket) {
                used.since = now;
            }
        }
    }

    /// Whether sessions on a socket were looked at since `change`; from now on they were.
    pub fn is_looked_at(&mut self, socket: SocketId, change: u64) -> bool {
        let used = self.used_mut(socket);
        used.is_none_or(|used| std::mem::replace(&mut used.looked, change) == change)
    }

    fn used_mut(&mut self, socket: SocketId) -> Option<&mut Used> {
        let used = self.used.get_mut((socket & 1) as usize)?;
        used.get_mut((socket >> 1) as usize)
    }

    /// The place of a session that is gone may be had at once: nothing ever came to it.
    pub fn reuse(&mut self, target: u32, socket: SocketId) {
        let target = self.slots.get_mut(target);
        let line = target.and_then(|target| target.lines.get_mut((socket >> 1) as usize));
        if let Some(line) = line.filter(|line| line.session == COOLING) {
            line.session = NONE;
        }
    }

    /// All sessions on a socket.
    pub fn on(&self, socket: SocketId) -> impl Iterator<Item = u32> {
        let same = move |(_, target): &(u32, &Target)| family(target.address) == socket & 1;
        let targets = self.slots.iter().filter(same);
        targets
            .filter_map(move |(_, target)| target.lines.get((socket >> 1) as usize))
            .map(|line| line.session)
            .filter(|session| *session < COOLING)
    }

    /// A socket for `session`, the `wanted` one if it may be. None: the endpoint has as many sessions as there may be
    /// sockets.
    pub fn take(
        &mut self,
        target: u32,
        session: u32,
        wanted: Option<SocketId>,
        now: u32,
    ) -> Option<SocketId> {
        let target = self.slots.get_mut(target)?;
        let family = family(target.address);
        let wanted = wanted.filter(|socket| socket & 1 == family);
        let wanted = wanted.map(|socket| socket >> 1);
        let at = wanted
            .filter(|at| target.is_vacant(*at, self.max, now))
            .or_else(|| target.next(self.max, now))?;
        target.lines.get_mut(at as usize)?.session = session;
        target.live += 1;
        let used = self.used.get_mut(family as usize)?;
        if used.len() <= at as usize {
            used.resize(at as usize + 1, Used::default());
        }
        used.get_mut(at as usize)?.sessions += 1;
        Some(at << 1 | family)
    }

    /// Its session ended, or went elsewhere.
    pub fn release(&mut self, target: u32, socket: SocketId, now: u32) {
        let (at, place) = (socket >> 1, target);
        let Some(target) = self.slots.get_mut(place) else {
            return;
        };
        if let Some(line) = target.lines.get_mut(at as usize) {
            (line.session, line.ended) = (COOLING, now);
            if !std::mem::replace(&mut line.queued, true) {
                target.free.push_back(at);
            }
            target.live = target.live.saturating_sub(1);
            target.left = now;
        }
        let used = self.used.get_mut((socket & 1) as usize);
        if let Some(used) = used.and_then(|used| used.get_mut(at as usize)) {
            used.sessions = used.sessions.saturating_sub(1);
            used.since = now;
        }
    }

    /// Sessions of an endpoint.
    pub fn live(&self, address: SocketAddr) -> u32 {
        let target = self.by_address.get(&address);
        let target = target.and_then(|target| self.slots.get(*target));
        target.map_or(0, |target| target.live)
    }

    /// Whether nobody has used a socket for a while: it may be closed, and is opened again when it is needed.
    pub fn is_unused(&self, socket: SocketId, now: u32) -> bool {
        let used = self.used.get((socket & 1) as usize);
        let used = used.and_then(|used| used.get((socket >> 1) as usize));
        used.is_none_or(|used| used.sessions == 0 && now.saturating_sub(used.since) > UNUSED_TICKS)
    }

    /// Others used as many `sockets` of each family before: what still comes for them is not for the next session.
    pub fn cool(&mut self, now: u32, sockets: [usize; 2]) {
        for (_, target) in self.slots.iter_mut() {
            let count = sockets.get(family(target.address) as usize);
            let count = count.copied().unwrap_or(0).min(self.max);
            while target.lines.len() < count {
                target.free.push_back(target.lines.len() as u32);
                target.lines.push(Line {
                    queued: true,
                    ..NEW
                });
            }
            for line in target.lines.iter_mut().filter(|l| l.session == NONE) {
                (line.session, line.ended) = (COOLING, now);
            }
            target.left = now;
        }
        for (used, count) in self.used.iter_mut().zip(sockets) {
            used.resize(used.len().max(count), Used::default());
            used.iter_mut().for_each(|used| used.since = now);
        }
    }

    /// Forgets endpoints that have had no session for a while.
    pub fn sweep(&mut self, now: u32) {
        let is_past =
            |target: &Target| target.live == 0 && now.saturating_sub(target.left) > UNUSED_TICKS;
        let past = self.slots.iter().filter(|(_, target)| is_past(target));
        let past: Vec<u32> = past.map(|(place, _)| place).collect();
        for place in past {
            if let Some(target) = self.slots.remove(place) {
                self.by_address.remove(&target.address);
            }
        }
    }
}

impl Line {
    fn is_vacant(&self, now: u32) -> bool {
        match self.session {
            NONE => true,
            COOLING => now.saturating_sub(self.ended) >= COOL_TICKS,
            _ => false,
        }
    }
}

impl Target {
    /// Whether this very socket can be had.
    fn is_vacant(&mut self, at: u32, max: usize, now: u32) -> bool {
        if at as usize >= max {
            return false;
        }
        // Those in between are there to be taken.
        while self.lines.len() <= at as usize {
            self.free.push_front(self.lines.len() as u32);
            self.lines.push(Line {
                queued: true,
                ..NEW
            });
        }
        let line = self.lines.get(at as usize);
        line.is_some_and(|line| line.is_vacant(now))
    }

    fn next(&mut self, max: usize, now: u32) -> Option<u32> {
        for _ in 0..TRIES {
            let Some(at) = self.free.pop_front() else {
                break;
            };
            let Some(line) = self.lines.get_mut(at as usize) else {
                continue;
            };
            line.queued = false;
            if line.is_vacant(now) {
                return Some(at);
            }
            if line.session == COOLING {
                line.queued = true;
                self.free.push_back(at);
            }
        }
        let at = self.lines.len();
        if at >= max {
            return None;
        }
        self.lines.push(NEW);
        u32::try_from(at).ok()
    }
}

/// Looks at sockets that may have cooled, before another one is taken.
const TRIES: usize = 4;

#[inline]
pub fn family(address: SocketAddr) -> u32 {
    u32::from(address.is_ipv6())
}

/// An endpoint or socket without a session is forgotten after this, in ticks of 100 ms.
const UNUSED_TICKS: u32 = 300;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn endpoint(number: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], 7000 + number))
    }

    #[test]
    fn there_are_as_many_sockets_as_the_endpoint_with_the_most_sessions_needs() {
        let mut targets = Targets::new(1000);
        let mut most = 0;
        for session in 0..5_000_u32 {
            let target = targets.of(endpoint((session % 50) as u16));
            most = most.max(targets.take(target, session, None, 1).unwrap() >> 1);
        }
        assert_eq!(most + 1, 100);
    }

    #[test]
    fn an_endpoint_takes_no_more_sessions_than_there_may_be_sockets() {
        let mut targets = Targets::new(10);
        let (one, other) = (targets.of(endpoint(1)), targets.of(endpoint(2)));
        let taken = (0..20).filter(|n| targets.take(one, *n, None, 1).is_some());
        assert_eq!(taken.count(), 10);
        assert!(targets.take(other, 99, None, 1).is_some());
    }

    #[test]
    fn what_comes_late_for_a_session_is_not_the_next_ones() {
        let mut targets = Targets::new(10);
        let target = targets.of(endpoint(1));
        let socket = targets.take(target, 7, None, 100).unwrap();
        assert_eq!(targets.session(socket, endpoint(1)), Some(7));
        targets.release(target, socket, 100);
        assert_eq!(targets.session(socket, endpoint(1)), None);
        let next = targets.take(target, 8, None, 101).unwrap();
        assert_ne!(next, socket);
        let later = targets.take(target, 9, None, 100 + COOL_TICKS).unwrap();
        assert_eq!(later, socket);
    }

    #[test]
    fn an_answer_is_for_the_session_of_its_socket_and_endpoint_whatever_came_and_went() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut targets = Targets::new(64);
        let mut model: BTreeMap<(SocketId, SocketAddr), u32> = BTreeMap::new();
        let mut now = 1;
        for session in 0..20_000_u32 {
            now += u32::from(rng.u8(..) < 20);
            let address = match rng.bool() {
                true => endpoint(rng.u16(0..5)),
                false => SocketAddr::from(([0xfd, 0, 0, 0, 0, 0, 0, 1], rng.u16(0..3))),
            };
            if rng.u8(..) < 140 {
                let target = targets.of(address);
                let wanted = rng.bool().then(|| rng.u32(0..150));
                if let Some(socket) = targets.take(target, session, wanted, now) {
                    assert_eq!(family(address), socket & 1);
                    assert_eq!(model.insert((socket, address), session), None);
                }
            } else if !model.is_empty() {
                let nth = rng.usize(0..model.len());
                let (&(socket, address), _) = model.iter().nth(nth).unwrap();
                let target = targets.of(address);
                targets.release(target, socket, now);
                model.remove(&(socket, address));
            }
            if session % 500 == 0 {
                for (&(socket, address), &session) in &model {
                    assert_eq!(targets.session(socket, address), Some(session));
                    assert!(targets.on(socket).any(|on| on == session));
                    assert!(!targets.is_unused(socket, now));
                }
            }
        }
        for ((socket, address), _) in std::mem::take(&mut model) {
            let target = targets.of(address);
            targets.release(target, socket, now);
            assert_eq!(targets.session(socket, address), None);
        }
        targets.sweep(now + UNUSED_TICKS + 1);
        assert!(targets.slots.is_empty() && targets.by_address.is_empty());
    }
}
