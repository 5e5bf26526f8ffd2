//! How a session begins, and how it roams: who may, where to, and on which core.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::session::{Flow, Port, Session, Ticket};
use super::super::slots::NONE;
use super::super::source;
use super::{Arrived, Key, Now, Table, World, idle_ticks};
use crate::account::udp::{Dropped, Moved};
use crate::directory::Entry;

pub(super) enum Entered<'d> {
    /// The session, and what its endpoint gets.
    Here(u32, &'d [u8]),
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
        if came_back || world.seat(address, token).is_none() {
            return Ok(None);
        }
        self.roam(place, arrived, now)?;
        Ok(Some(place))
    }

    /// From now on answers go there.
    fn roam(&mut self, place: u32, arrived: &Arrived<'_>, now: Now) -> Result<(), Dropped> {
        self.check_source(arrived)?;
        let key = (arrived.port, source::prefix(arrived.from));
        let to = self.sources.meet(key).ok_or(Dropped::Sources)?;
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
            if let Some(ticket) = &mut session.ticket {
                (ticket.previous, ticket.moved) = (Some(previous), now.tick());
            }
        }
        if source != to {
            self.sources.exit(source);
        }
        Ok(())
    }

    /// Nobody who can't be answered, and not ourselves.
    fn check_source(&self, arrived: &Arrived<'_>) -> Result<(), Dropped> {
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
        match is_odd || from.port() == 0 || self.ports.iter().flatten().any(is_ours) {
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
        let prefix = (arrived.port, source::prefix(arrived.from));
        let source = self.sources.meet(prefix).ok_or(Dropped::Sources)?;
        self.pay(source, arrived, now)?;
        let from = Key::Client(arrived.from);
        let keys = [split.map(|(token, _)| Key::Token(token)), Some(from)];
        for key in keys.into_iter().flatten() {
            if let Some(core) = self.elsewhere(address, key, tick) {
                return Ok(Entered::Elsewhere(core));
            }
        }
        let way = match split {
            Some((token, body)) => self
                .lead(arrived, address, token, world)
                .map(|way| (way, body)),
            None => None,
        };
        let (way, body) = match (way, client) {
            (Some(way), _) => way,
            (None, _) if rules.token.is_some_and(|rule| rule.required) => {
                return Err(Dropped::Token);
            }
            (None, Some(client)) => {
                if let Some(session) = self.sessions.get_mut(client) {
                    session.checked = tick;
                }
                return Ok(Entered::Here(client, arrived.datagram));
            }
            (None, None) => {
                let chosen = self.choose(address, arrived.from, world);
                let way = Way {
                    key: from,
                    address: chosen.ok_or(Dropped::NoEndpoint)?,
                    held: None,
                };
                (way, arrived.datagram)
            }
        };
        if self.is_draining {
            return Err(Dropped::Draining);
        }
        self.check_source(arrived)?;
        if let Some(kin) = &mut self.kin {
            let key = way.key.of_kin(kin, address);
            if let Err(core) = kin.claim(key, tick) {
                return Ok(Entered::Elsewhere(core));
            }
        }
        let key = way.key;
        let begun = self.begin(arrived, way, source, now, world);
        if begun.is_err()
            && let Some(kin) = &mut self.kin
        {
            let key = key.of_kin(kin, address);
            kin.release(key);
        }
        begun.map(|session| Entered::Here(session, body))
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
    ) -> Option<Way<'k>> {
        let both = Key::Both(arrived.from, token);
        if let Some(seat) = world.seat(port, token) {
            // Somebody else has it already, see `by_token`.
            let is_taken = self.find(arrived.port, Key::Token(token)).is_some();
            return Some(Way {
                key: if is_taken { both } else { Key::Token(token) },
                address: seat.address,
                held: Some(seat.held),
            });
        }
        // A label is the instance's: all its clients have the same token.
        Some(Way {
            key: both,
            address: world.labelled(port, token)?,
            held: None,
        })
    }

    fn begin(
        &mut self,
        arrived: &Arrived<'_>,
        way: Way<'_>,
        source: u32,
        now: Now,
        world: &impl World,
    ) -> Result<u32, Dropped> {
        let tick = now.tick();
        let port = self.port(arrived.port).ok_or(Dropped::NoEndpoint)?;
        let (limits, shared) = (port.rules.limits, port.shared.clone());
        let idle = idle_ticks(&port.rules);
        if shared.fetch_add(1, Ordering::Relaxed) >= limits.sessions {
            shared.fetch_sub(1, Ordering::Relaxed);
            return Err(Dropped::Sessions);
        }
        if !self.sources.enter(source, limits.sessions_per_source) {
            shared.fetch_sub(1, Ordering::Relaxed);
            return Err(Dropped::SourceSessions);
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
            up: Flow::default(),
            down: Flow::default(),
        });
        let Some(socket) = self.targets.take(target, session, None, tick) else {
            self.sessions.remove(session);
            self.sources.exit(source);
            shared.fetch_sub(1, Ordering::Relaxed);
            return Err(Dropped::Sockets);
        };
        if let Some(session) = self.sessions.get_mut(session) {
            session.socket = socket;
        }
        self.wheel.add(&mut self.sessions, session, tick + idle);
        let hash = self.hash(arrived.port, way.key);
        self.index.insert(hash, session);
        self.enter_place(place);
        if let Some(port) = self.port_mut(arrived.port) {
            port.sessions += 1;
        }
        if let Some(cell) = self.cell(arrived.port) {
            cell.opened();
        }
        Ok(session)
    }
}

/// Two addresses that take turns with a token within this time are two clients; in ticks.
const BACK_TICKS: u32 = 100;
