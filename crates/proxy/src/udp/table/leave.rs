//! How the sessions of one process become another's: sockets, endpoints and clients stay, everything else is made anew.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use super::super::index::Index;
use super::super::session::{Session, Ticket};
use super::super::slots::NONE;
use super::super::source;
use super::super::target::SocketId;
use super::super::wheel::Wheel;
use super::super::will::Left;
use super::{Key, Now, Table, World};
use crate::account::udp::Ended;

impl Table {
    /// All sessions of ports that `number` has a number for; none is left here.
    pub fn leave(&mut self, now: Now, number: impl Fn(SocketAddr) -> Option<u16>) -> Vec<Left> {
        let tick = now.tick();
        let sessions = std::mem::take(&mut self.sessions);
        (self.index, self.wheel) = (Index::default(), Wheel::default());
        let mut left = Vec::with_capacity(sessions.len());
        for (_, session) in sessions.iter() {
            self.leave_place(session.place);
            if let Some(cell) = self.cell(session.port) {
                cell.ended(Ended::HandedOver);
            }
            let port = self
                .port(session.port)
                .and_then(|port| number(port.address));
            let place = self.places.get(session.place);
            let (Some(port), Some(place)) = (port, place) else {
                continue;
            };
            let ticket = session.ticket.as_ref();
            left.push(Left {
                port,
                client: session.client,
                local: session.local,
                endpoint: place.address,
                socket: session.socket,
                idle: tick.saturating_sub(session.seen),
                age: tick.saturating_sub(session.began),
                proof: session.proof,
                is_heard: session.is_heard,
                credit: session.credit,
                up: session.up,
                down: session.down,
                token: ticket.map(|ticket| (ticket.token.clone(), ticket.roams)),
            });
        }
        left
    }

    /// A session of the process before at one of our ports, with a socket that is ours by now. False: there is no place for
    /// it.
    pub fn inherit(
        &mut self,
        port: u16,
        socket: SocketId,
        left: Left,
        now: Now,
        world: &impl World,
    ) -> bool {
        let tick = now.tick();
        let Some(there) = self.port(port) else {
            return false;
        };
        let (address, shared) = (there.address, there.shared.clone());
        let key = (address, source::prefix(left.client));
        let Some(source) = self.sources.meet(key, now.ns) else {
            return false;
        };
        let place = self.place(port, left.endpoint, world);
        let target = self.places.get(place).map_or(NONE, |place| place.target);
        let ticket = left.token.map(|(token, roams)| {
            Box::new(Ticket {
                token,
                roams,
                held: None,
                previous: None,
                moved: 0,
                // Looked for again before anything goes either way.
                is_lost: roams,
            })
        });
        let session = Session {
            client: left.client,
            local: left.local,
            ticket,
            port,
            place,
            socket,
            source,
            next: NONE,
            prev: NONE,
            due: 0,
            began: tick.saturating_sub(left.age),
            seen: tick.saturating_sub(left.idle),
            checked: 0,
            proof: left.proof,
            is_heard: left.is_heard,
            credit: left.credit,
            up: left.up,
            down: left.down,
        };
        let key = Key::of(&session);
        let hash = self.hash(port, key);
        let of_kin = self.kin.as_ref().map(|kin| key.of_kin(kin, address));
        if let (Some(kin), Some(key)) = (&mut self.kin, of_kin)
            && kin.claim(key, tick).is_err()
        {
            return false;
        }
        let session = self.sessions.insert(session);
        let taken = self.targets.take(target, session, Some(socket), tick);
        if taken != Some(socket) {
            // By another one its endpoint would take it for somebody else.
            if let Some(other) = taken {
                self.targets.release(target, other, tick);
            }
            self.sessions.remove(session);
            if let (Some(kin), Some(key)) = (&mut self.kin, of_kin) {
                kin.release(key);
            }
            return false;
        }
        self.sources.enter(source, u32::MAX);
        shared.fetch_add(1, Ordering::Relaxed);
        self.enlist(session, hash);
        true
    }

    /// When all have been inherited: what still comes for sessions that ended before is nobody's.
    pub fn inherited(&mut self, now: Now, sockets: [usize; 2]) {
        self.targets.cool(now.tick(), sockets);
    }
}
