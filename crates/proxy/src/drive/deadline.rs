//! The watch on a connection from downstream: what it is doing, and since when it should have moved on.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use super::core::Core;
use super::timer::{Alarm, NEVER};
use crate::account::Event;

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No request under way.
    Idle,
    /// A head has begun and not ended.
    Head,
    /// At least one request under way; it has deadlines of its own.
    Busy,
}

/// Shared by a connection and its requests.
pub struct Watch {
    pub alarm: Alarm,
    /// Of the peer.
    pub address: Option<SocketAddr>,
    phase: Cell<Phase>,
    /// Requests under way.
    active: Cell<u32>,
    head_timed: Cell<bool>,
    write_stalled: Cell<bool>,
    write_stalled_timed: Cell<bool>,
    idle_since_ms: Cell<u64>,
    draining: Cell<bool>,
    /// Speaks HTTP/2: bytes may come between requests, and heads during them.
    /// HTTP/2: a head has begun and not ended.
    head_open: Cell<bool>,
}

impl Watch {
    pub fn new(core: &Core, address: Option<SocketAddr>) -> Rc<Self> {
        let watch = Self {
            address,
            alarm: core.wheel.alarm(),
            phase: Cell::new(Phase::Idle),
            active: Cell::new(0),
            head_timed: Cell::new(false),
            write_stalled: Cell::new(false),
            write_stalled_timed: Cell::new(false),
            idle_since_ms: Cell::new(core.wheel.now_ms()),
            draining: Cell::new(false),
            head_open: Cell::new(false),
        };
        Rc::new(watch)
    }

    pub fn speaks_http2(&self) {
        self.phase.set(Phase::Idle);
    }

    /// A request came.
    #[inline]
    pub fn enter(&self) {
        self.active.set(self.active.get() + 1);
        self.phase.set(Phase::Busy);
        if self.head_open.get() {
            return;
        }
        self.head_timed.set(false);
        if !self.write_stalled.get() {
            self.alarm.clear();
        }
    }

    /// A request and its answer are over.
    #[inline]
    pub fn leave(&self, core: &Core, now_ms: u64) {
        let left = self.active.get().saturating_sub(1);
        self.active.set(left);
        if left == 0 {
            self.phase.set(Phase::Idle);
            self.idle_since_ms.set(now_ms);
            self.time_idle(core);
        }
    }

    pub fn time_idle(&self, core: &Core) {
        if self.write_stalled.get() || self.head_open.get() {
            return;
        }
        let allowed = if self.draining.get() {
            core.deadlines.drain_idle
        } else {
            core.deadlines.idle
        };
        self.alarm
            .set(self.idle_since_ms.get().saturating_add(allowed));
    }

    /// Told to end soon.
    pub fn drain(&self, core: &Core) {
        self.draining.set(true);
        if self.phase.get() == Phase::Idle {
            self.idle_since_ms.set(core.wheel.now_ms());
            self.time_idle(core);
        }
        self.alarm.wake();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// After each poll of the connection: starts the clocks for what it is now waiting for.
    #[inline]
    pub fn settle(&self, core: &Core) {
        let in_head = self.phase.get() == Phase::Head || self.head_open.get();
        if in_head && !self.head_timed.replace(true) {
            self.alarm
                .set(core.wheel.now_ms().saturating_add(core.deadlines.head));
        }
        if self.write_stalled.get() {
            if !self.write_stalled_timed.replace(true) {
                self.alarm.set(
                    core.wheel
                        .now_ms()
                        .saturating_add(core.deadlines.stalled_write),
                );
            }
        } else if self.phase.get() == Phase::Idle && self.alarm.is_unset() {
            self.time_idle(core);
        }
    }

    /// The alarm went off: what was missed, if it still is.
    pub fn missed(&self, core: &Core) -> Option<Event> {
        if self.write_stalled.get() {
            return Some(Event::WriteDeadline);
        }
        if self.head_open.get() {
            return Some(Event::HeadDeadline);
        }
        match self.phase.get() {
            Phase::Idle => {
                let idle_ms = core.wheel.now_ms().saturating_sub(self.idle_since_ms.get());
                let allowed = if self.draining.get() {
                    core.deadlines.drain_idle
                } else {
                    core.deadlines.idle
                };
                if idle_ms >= allowed {
                    return Some(Event::IdleDeadline);
                }
                self.time_idle(core);
                None
            }
            Phase::Head => Some(Event::HeadDeadline),
            Phase::Busy => None,
        }
    }

    /// HTTP/1: the first byte of a head came.
    #[inline]
    pub fn head_begun(&self) {
        if self.phase.get() == Phase::Idle {
            self.phase.set(Phase::Head);
            self.head_timed.set(false);
        }
    }

    /// HTTP/2: whether what was read last ends within a head or another frame that is taken whole, and whether a frame
    /// ended in it. The clock starts when the connection settles.
    #[inline]
    pub fn in_head(&self, open: bool, moved: bool) {
        let was_open = self.head_open.replace(open);
        if was_open && (moved || !open) {
            self.head_timed.set(false);
            if !self.write_stalled.get() {
                self.alarm.set(NEVER);
            }
        }
    }

    /// The clock that was stopped for the stall starts anew when the connection settles.
    #[inline]
    pub fn wrote(&self, pending: bool) {
        if pending {
            self.write_stalled.set(true);
        } else if self.write_stalled.replace(false) {
            self.write_stalled_timed.set(false);
            self.head_timed.set(false);
            self.alarm.set(NEVER);
        }
    }
}
