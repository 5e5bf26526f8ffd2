//! How a session ends: silent for too long, or its port is closed. Bit by bit, so that traffic never waits for it.

use std::sync::atomic::Ordering;

use super::super::session::Session;
use super::super::slots::NONE;
use super::{Key, Now, TICK_NS, Table, Told, World};
use crate::account::udp::Ended;

impl Table {
    /// Ends what was idle for too long; true when there is more of it. To be asked about every tick.
    pub fn tick(&mut self, now: Now, world: &mut impl World) -> bool {
        let tick = now.tick();
        for _ in 0..ENDED_MAX {
            let Some(session) = self.wheel.next(&mut self.sessions, tick) else {
                self.sweep(now, world);
                return false;
            };
            let Some(there) = self.sessions.get(session) else {
                continue;
            };
            let until = there.seen.saturating_add(self.idle(there));
            let why = match there.is_half_open() {
                true => Ended::HalfOpen,
                false => Ended::Idle,
            };
            match until > tick {
                true => self.wheel.add(&mut self.sessions, session, until),
                false => self.end(session, why, now, world),
            }
        }
        true
    }

    fn sweep(&mut self, now: Now, world: &mut impl World) {
        self.sources.sweep(now.ns);
        if let Some(kin) = &mut self.kin {
            kin.sweep(now.tick());
        }
        for port in self.ports.iter_mut().flatten() {
            let is_over = |(_, began): &(u32, u32)| began + HALF_TICKS < now.tick();
            while port.half.front().is_some_and(is_over) {
                port.half.pop_front();
            }
        }
        if now.tick().saturating_sub(self.swept) >= TARGETS_TICKS {
            self.swept = now.tick();
            self.targets.sweep(now.tick());
        }
        if !self.ports.iter().flatten().any(|port| port.is_closed) {
            return;
        }
        for _ in 0..ENDED_MAX.min(self.sessions.end()) {
            self.hand = match self.hand + 1 < self.sessions.end() {
                true => self.hand + 1,
                false => 0,
            };
            let port = self.sessions.get(self.hand).map(|session| session.port);
            if port.is_some_and(|port| self.port(port).is_none_or(|port| port.is_closed)) {
                self.wheel.remove(&mut self.sessions, self.hand);
                self.end(self.hand, Ended::Closed, now, world);
            }
        }
        for slot in &mut self.ports {
            if slot
                .as_ref()
                .is_some_and(|port| port.is_closed && port.sessions == 0)
            {
                *slot = None;
            }
        }
    }

    /// Of a session that is off the wheel.
    pub(super) fn end(&mut self, place: u32, why: Ended, now: Now, world: &mut impl World) {
        let Some(session) = self.sessions.remove(place) else {
            return;
        };
        let key = Key::of(&session);
        let hash = self.hash(session.port, key);
        self.index.remove(hash, place);
        let there = self.places.get(session.place);
        let (target, endpoint) = (
            there.map_or(NONE, |there| there.target),
            there.map(|there| there.address),
        );
        let edge = there.and_then(|there| there.edge.clone());
        self.targets.release(target, session.socket, now.tick());
        self.leave_place(session.place);
        self.sources.exit(session.source);
        let Some(port) = self.port_mut(session.port) else {
            return;
        };
        port.sessions = port.sessions.saturating_sub(1);
        port.shared.fetch_sub(1, Ordering::Relaxed);
        let (address, counts) = (port.address, port.counts.clone());
        if let Some(cell) = counts.cell(self.core) {
            cell.ended(why);
        }
        if let Some(kin) = &mut self.kin {
            let key = key.of_kin(kin, address);
            kin.release(key);
        }
        world.ended(&Told {
            port: &counts.name,
            client: session.client,
            endpoint,
            edge: edge.as_ref(),
            up: session.up,
            down: session.down,
            lasted_ms: u64::from(session.seen.saturating_sub(session.began)) * 100,
        });
    }

    /// How long a session may be silent; in ticks.
    pub(super) fn idle(&self, session: &Session) -> u32 {
        let idle = self.port(session.port).map_or(0, |port| {
            let ticks = port
                .rules
                .idle_timeout
                .as_nanos()
                .div_ceil(u128::from(TICK_NS));
            u32::try_from(ticks).unwrap_or(u32::MAX / 2).max(1)
        });
        match session.is_half_open() {
            true => idle.min(HALF_TICKS),
            false => idle,
        }
    }
}

/// A client that has sent one datagram has so long for another; in ticks.
const HALF_TICKS: u32 = 50;
/// Sessions ended in one go.
const ENDED_MAX: u32 = 1024;
/// Between two looks over the endpoints.
const TARGETS_TICKS: u32 = 100;
