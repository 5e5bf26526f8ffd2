//! How a session begins, and how it roams: who may, where to, and on which core.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::session::{Flow, Port, Proof, Session, Ticket};
use super::super::slots::NONE;
use super::super::source;
use super::super::target::SocketId;
use super::{Arrived, Key, Now, Seated, Table, World};
use crate::account::udp::{Dropped, Ended, Moved};
use crate::directory::Entry;

pub(super) enum Entered<'d> {
    /// The session, and what its endpoint gets.
    Here(u32, &'d [u8]),
    /// One that was there, whose endpoint gets all of it.
    Found(u32),
    Elsewhere(u16),
}

/// Where a new session goes, and what it is found by from then on.
struct Way<'k> {
    key: Key<'k>,
    address: SocketAddr,
    held: Option<Arc<Entry>>,
}

impl Table {
    /// The session of a token: wherever it comes from, if the token alone is the session.
    pub(super) fn by_token(
        &mut self,
        arrived: &Arrived<'_>,
        token: &[u8],
        now: Now,
        world: &mut impl World,
    ) -> Result<Option<u32>, Dropped> {
        let (port, from) = (arrived.port, arrived.from);
        let Some(place) = self.find(port, Key::Token(token)) else {
            return Ok(self.find(port, Key::Both(from, token)));
        };
        let Some(session) = self.sessions.get(place).filter(|s| s.client != from) else {
            return Ok(Some(place));
        };
        let moved = session.ticket.as_ref().map(|t| (t.previous, t.moved));
        if let Some(both) = self.find(port, Key::Both(from, token)) {
            return Ok(Some(both));
        }
        // Who comes back to where it just left is not one who roams, but one of two: each gets a session.
        let came_back = moved.is_some_and(|(previous, moved)| {
            previous == Some(from) && now.tick().saturating_sub(moved) < BACK_TICKS
        });
        let address = self.port(port).ok_or(Dropped::NoEndpoint)?.address;
        if came_back {
            return Ok(None);
        }
        match world.seat(address, token) {
            Seated::Nobody => Ok(None),
            Seated::Elsewhere => Err(Dropped::Elsewhere),
            Seated::At(_) => {
                self.roam(place, arrived, now, world)?;
                Ok(Some(place))
            }
        }
    }

    /// From now on answers go there.
    fn roam(
        &mut self,
        place: u32,
        arrived: &Arrived<'_>,
        now: Now,
        world: &impl World,
    ) -> Result<(), Dropped> {
        self.check_source(arrived, world)?;
        let to = self.meet(arrived, now)?;
        let port = self.port(arrived.port).ok_or(Dropped::NoEndpoint)?;
        let max = port.rules.limits.sessions_per_source;
        let source = self.sessions.get(place).map_or(NONE, |s| s.source);
        if source != to && !self.sources.enter(to, max) {
            return Err(Dropped::SourceSessions);
        }
        if let Some(cell) = self.cell(arrived.port) {
            cell.moved(Moved::Roamed);
        }
        if let Some(session) = self.sessions.get_mut(place) {
            let previous = std::mem::replace(&mut session.client, arrived.from);
            (session.local, session.source) = (arrived.local, to);
            (session.proof, session.credit) = (Proof::of(arrived.from), 0);
            if let Some(ticket) = &mut session.ticket {
                (ticket.previous, ticket.moved) = (Some(previous), now.tick());
            }
        }
        if source != to {
            self.sources.exit(source);
        }
        Ok(())
    }

    fn meet(&mut self, arrived: &Arrived<'_>, now: Now) -> Result<u32, Dropped> {
        let port = self.port(arrived.port).ok_or(Dropped::NoEndpoint)?;
        let key = (port.address, source::prefix(arrived.from));
        self.sources.meet(key, now.ns).ok_or(Dropped::Sources)
    }

    /// Nobody who can't be answered, not ourselves, and no endpoint: two that answer each other would never end.
    fn check_source(&self, arrived: &Arrived<'_>, world: &impl World) -> Result<(), Dropped> {
        let (from, ip) = (arrived.from, arrived.from.ip());
        let is_odd = match ip.to_canonical() {
            IpAddr::V4(ip) => ip.is_broadcast() || ip.is_multicast() || ip.is_unspecified(),
            IpAddr::V6(ip) => ip.is_multicast() || ip.is_unspecified(),
        };
        let is_ours = |port: &Port| {
            let at = port.address.ip();
            let is_local = ip.is_loopback() || Some(ip) == arrived.local;
            port.address.port() == from.port() && (at == ip || at.is_unspecified() && is_local)
        };
        let port = self.port(arrived.port).map(|port| port.address);
        let is_endpoint = || port.is_some_and(|port| world.is_endpoint(port, from));
        let is_ours = || self.ports.iter().flatten().any(is_ours);
        match is_odd || from.port() == 0 || is_ours() || is_endpoint() {
            true => Err(Dropped::BadSource),
            false => Ok(()),
        }
    }

    /// Somebody new, or a client whose token may lead somewhere by now.
    pub(super) fn enter<'d>(
        &mut self,
        arrived: &Arrived<'d>,
        split: Option<(&'d [u8], &'d [u8])>,
        client: Option<u32>,
        now: Now,
        world: &mut impl World,
    ) -> Result<Entered<'d>, Dropped> {
        let tick = now.tick();
        let port = self.port(arrived.port).ok_or(Dropped::NoEndpoint)?;
        if port.is_closed {
            return Err(Dropped::NoEndpoint);
        }
        let (address, rules) = (port.address, port.rules);
        let from = Key::Client(arrived.from);
        let keys = [split.map(|(token, _)| Key::Token(token)), Some(from)];
        for key in keys.into_iter().flatten() {
            if let Some(core) = self.elsewhere(address, key, tick) {
                self.charge(arrived, now)?;
                return Ok(Entered::Elsewhere(core));
            }
        }
        let way = match split {
            Some((token, body)) => self
                .lead(arrived, address, token, world)
                .map_err(|why| self.refused(arrived, why, now))?
                .map(|way| (way, body)),
            None => None,
        };
        let (way, body) = match (way, client) {
            (Some(way), _) => way,
            (None, _) if rules.token.is_some_and(|rule| rule.required) => {
                return Err(self.refused(arrived, Dropped::Token, now));
            }
            (None, Some(client)) => {
                if let Some(session) = self.sessions.get_mut(client) {
                    session.checked = tick;
                }
                return Ok(Entered::Found(client));
            }
            (None, None) => {
                let Some(chosen) = self.choose(address, arrived.from, world) else {
                    return Err(self.refused(arrived, Dropped::NoEndpoint, now));
                };
                let way = Way {
                    key: from,
                    address: chosen,
                    held: None,
                };
                (way, arrived.datagram)
            }
        };
        if self.is_draining {
            return Err(Dropped::Draining);
        }
        self.check_source(arrived, world)?;
        if let Some(kin) = &mut self.kin {
            let key = way.key.of_kin(kin, address);
            if let Err(core) = kin.claim(key, tick) {
                self.charge(arrived, now)?;
                return Ok(Entered::Elsewhere(core));
            }
        }
        let key = way.key;
        let begun = match self.charge(arrived, now) {
            Ok(source) => self.begin(arrived, way, source, now, world),
            Err(why) => Err(why),
        };
        if begun.is_err()
            && let Some(kin) = &mut self.kin
        {
            let key = key.of_kin(kin, address);
            kin.release(key);
        }
        begun.map(|session| Entered::Here(session, body))
    }

    /// Takes the datagram from what its source may send, whom we need to know from now on.
    fn charge(&mut self, arrived: &Arrived<'_>, now: Now) -> Result<u32, Dropped> {
        let source = self.meet(arrived, now)?;
        self.pay(source, arrived, now)?;
        Ok(source)
    }

    /// What leads nowhere makes no source known, but whoever is known pays for it.
    fn refused(&mut self, arrived: &Arrived<'_>, why: Dropped, now: Now) -> Dropped {
        let address = self.port(arrived.port).map(|port| port.address);
        let key = address.map(|address| (address, source::prefix(arrived.from)));
        let source = key.and_then(|key| self.sources.find(key));
        match source.map(|source| self.pay(source, arrived, now)) {
            Some(Err(over)) => over,
            _ => why,
        }
    }

    fn elsewhere(&self, port: SocketAddr, key: Key<'_>, tick: u32) -> Option<u16> {
        let kin = self.kin.as_ref()?;
        kin.known(key.of_kin(kin, port), tick)
    }

    /// Where a token leads.
    fn lead<'k>(
        &self,
        arrived: &Arrived<'_>,
        port: SocketAddr,
        token: &'k [u8],
        world: &impl World,
    ) -> Result<Option<Way<'k>>, Dropped> {
        let both = Key::Both(arrived.from, token);
        match world.seat(port, token) {
            Seated::At(seat) => {
                // Somebody else has it already, see `by_token`.
                let is_taken = self.find(arrived.port, Key::Token(token)).is_some();
                Ok(Some(Way {
                    key: if is_taken { both } else { Key::Token(token) },
                    address: seat.address,
                    held: Some(seat.held),
                }))
            }
            Seated::Elsewhere => Err(Dropped::Elsewhere),
            // A label is the instance's: all its clients have the same token.
            Seated::Nobody => Ok(world.labelled(port, token).map(|address| Way {
                key: both,
                address,
                held: None,
            })),
        }
    }

    fn begin(
        &mut self,
        arrived: &Arrived<'_>,
        way: Way<'_>,
        source: u32,
        now: Now,
        world: &mut impl World,
    ) -> Result<u32, Dropped> {
        let tick = now.tick();
        let port = self.port(arrived.port).ok_or(Dropped::NoEndpoint)?;
        let (limits, shared) = (port.rules.limits, port.shared.clone());
        if !self.sources.enter(source, limits.sessions_per_source) {
            return Err(Dropped::SourceSessions);
        }
        let is_full = shared.fetch_add(1, Ordering::Relaxed) >= limits.sessions;
        if is_full && !self.make_room(arrived.port, now, world) {
            self.sources.exit(source);
            shared.fetch_sub(1, Ordering::Relaxed);
            return Err(Dropped::Sessions);
        }
        let place = self.place(arrived.port, way.address, world);
        let target = self.places.get(place).map_or(NONE, |place| place.target);
        let ticket = way.key.token().map(|token| {
            Box::new(Ticket {
                token: token.into(),
                roams: matches!(way.key, Key::Token(_)),
                held: way.held,
                previous: None,
                moved: 0,
                is_lost: false,
            })
        });
        let session = self.sessions.insert(Session {
            client: arrived.from,
            local: arrived.local,
            ticket,
            port: arrived.port,
            place,
            socket: NONE,
            source,
            next: NONE,
            prev: NONE,
            due: 0,
            began: tick,
            seen: tick,
            checked: tick,
            proof: Proof::of(arrived.from),
            is_heard: false,
            credit: 0,
            up: Flow::default(),
            down: Flow::default(),
        });
        let taken = self.targets.take(target, session, None, tick);
        let taken = taken.or_else(|| {
            let vacated = self.vacate(arrived.port, target, now, world)?;
            self.targets.take(target, session, Some(vacated), tick)
        });
        let Some(socket) = taken else {
            self.sessions.remove(session);
            self.sources.exit(source);
            shared.fetch_sub(1, Ordering::Relaxed);
            return Err(Dropped::Sockets);
        };
        if let Some(session) = self.sessions.get_mut(session) {
            session.socket = socket;
        }
        let hash = self.hash(arrived.port, way.key);
        self.enlist(session, hash);
        Ok(session)
    }

    /// Ends the oldest session of a port of which one datagram came and no other.
    fn make_room(&mut self, port: u16, now: Now, world: &mut impl World) -> bool {
        while let Some(oldest) = self.port_mut(port).and_then(|port| port.half.pop_front()) {
            if self.half_open(port, oldest).is_some() {
                self.wheel.remove(&mut self.sessions, oldest.0);
                self.end(oldest.0, Ended::HalfOpen, now, world);
                return true;
            }
        }
        false
    }

    /// A socket to an endpoint that has a session on each: of the oldest half-open one that it has not answered for a second
    /// and so won't answer any more.
    fn vacate(
        &mut self,
        port: u16,
        target: u32,
        now: Now,
        world: &mut impl World,
    ) -> Option<SocketId> {
        let half = &self.port(port)?.half;
        let is_silent = |entry: &(u32, u32)| {
            let session = self.half_open(port, *entry).filter(|s| !s.is_heard);
            let place = session.and_then(|session| self.places.get(session.place));
            place.is_some_and(|place| place.target == target)
        };
        let old = half
            .iter()
            .take_while(|(_, began)| began + SILENT_TICKS <= now.tick());
        let at = old.take(VACATE_TRIES).position(is_silent)?;
        let (oldest, _) = self.port_mut(port)?.half.remove(at)?;
        let socket = self.sessions.get(oldest)?.socket;
        self.wheel.remove(&mut self.sessions, oldest);
        self.end(oldest, Ended::HalfOpen, now, world);
        self.targets.reuse(target, socket);
        Some(socket)
    }

    /// The session, unless another one has its place by now, or it is more than half-open.
    fn half_open(&self, port: u16, (place, began): (u32, u32)) -> Option<&Session> {
        let session = self.sessions.get(place)?;
        let is_it = session.port == port && session.began == began && session.is_half_open();
        is_it.then_some(session)
    }
}

/// Looked at for one whose socket can be had.
const VACATE_TRIES: usize = 256;
/// An endpoint that is going to answer one datagram has done so; in ticks.
const SILENT_TICKS: u32 = 10;

/// Two addresses that take turns with a token within this time are two clients; in ticks.
const BACK_TICKS: u32 = 100;
