//! Where the plan and the directory want a session: looked at before it is used, and it goes there.

use std::net::SocketAddr;

use super::super::session::{Fate, Session};
use super::super::slots::NONE;
use super::super::target::SocketId;
use super::{Now, Seated, Table, World};
use crate::account::udp::{Dropped, Moved};

impl Table {
    /// Before it is used: whether its session is to go elsewhere.
    #[inline]
    pub(super) fn settle(&mut self, place: u32, now: Now, world: &mut impl World) {
        let Some(session) = self.sessions.get(place) else {
            return;
        };
        let is_gone = self.places.get(session.place).map(|p| p.fate) == Some(Fate::Gone);
        let has_no_seat = session.ticket.as_ref().is_some_and(|t| t.held.is_none());
        let is_due = (is_gone || has_no_seat) && !self.is_checked(place, now);
        if is_due || session.is_replaced() || session.is_lost() {
            self.look_again(place, is_gone, now, world);
        }
    }

    #[cold]
    pub(super) fn look_again(
        &mut self,
        place: u32,
        is_gone: bool,
        now: Now,
        world: &mut impl World,
    ) {
        let Some(session) = self.sessions.get_mut(place) else {
            return;
        };
        session.checked = now.tick();
        let (port, at) = (session.port, session.place);
        let Some(address) = self.port(port).map(|port| port.address) else {
            return;
        };
        let Some(session) = self.sessions.get(place) else {
            return;
        };
        let seated = match session.token() {
            [] => Seated::Nobody,
            token => world.seat(address, token),
        };
        let seat = match seated {
            Seated::At(seat) => Some(seat),
            Seated::Nobody => None,
            Seated::Elsewhere => {
                let session = self.sessions.get_mut(place);
                if let Some(ticket) = session.and_then(|session| session.ticket.as_mut()) {
                    ticket.is_lost = true;
                }
                return;
            }
        };
        let seated = seat.as_ref().map(|seat| seat.address);
        let labelled = || match session.token() {
            [] => None,
            token => world.labelled(address, token),
        };
        let client = session.client;
        let (to, why) = match (seated, is_gone) {
            (Some(seated), _) => (Some(seated), Moved::Seat),
            (None, true) => {
                let to = labelled().or_else(|| self.choose(address, client, world));
                (to, Moved::Endpoint)
            }
            (None, false) => (None, Moved::Seat),
        };
        if let Some(ticket) = self.sessions.get_mut(place).and_then(|s| s.ticket.as_mut()) {
            (ticket.held, ticket.is_lost) = (seat.map(|seat| seat.held), false);
        }
        let there = self.places.get(at).map(|place| place.address);
        if let Some(to) = to.filter(|to| Some(*to) != there) {
            self.shift(place, to, why, now, world);
        }
    }

    /// To another endpoint, by the same socket if that can be: whoever was told of the client's address there can go on
    /// answering it.
    fn shift(&mut self, place: u32, to: SocketAddr, why: Moved, now: Now, world: &impl World) {
        let Some(session) = self.sessions.get(place) else {
            return;
        };
        let (port, from, socket) = (session.port, session.place, session.socket);
        let next = self.place(port, to, world);
        let target = |table: &Self, at| table.places.get(at).map_or(NONE, |p| p.target);
        let (before, after) = (target(self, from), target(self, next));
        let tick = now.tick();
        let Some(taken) = self.targets.take(after, place, Some(socket), tick) else {
            self.count_dropped(port, Dropped::Sockets, 1);
            return;
        };
        self.targets.release(before, socket, tick);
        if let Some(session) = self.sessions.get_mut(place) {
            (session.place, session.socket) = (next, taken);
        }
        self.leave_place(from);
        self.enter_place(next);
        if let Some(cell) = self.cell(port) {
            cell.moved(why);
        }
    }

    /// An endpoint answers a session that the directory gave it a moment ago, before its client said anything; or one that
    /// is gone.
    #[cold]
    pub(super) fn whose(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        now: Now,
        world: &mut impl World,
    ) -> Option<u32> {
        self.targets.late(socket, from, now.tick());
        let change = world.changes().wrapping_add(self.renewed);
        if self.targets.is_looked_at(socket, change) {
            return None;
        }
        let is_odd = |session: &Session| session.is_replaced() || session.is_lost();
        let is_replaced = |at: &u32| self.sessions.get(*at).is_some_and(is_odd);
        let replaced: Vec<u32> = self.targets.on(socket).filter(is_replaced).collect();
        for session in replaced {
            self.look_again(session, false, now, world);
        }
        self.targets.session(socket, from)
    }

    #[inline]
    pub(super) fn is_checked(&self, session: u32, now: Now) -> bool {
        let session = self.sessions.get(session);
        session.is_some_and(|s| now.tick().saturating_sub(s.checked) < CHECKED_TICKS)
    }
}

/// Between two looks for a better endpoint; in ticks.
const CHECKED_TICKS: u32 = 10;
