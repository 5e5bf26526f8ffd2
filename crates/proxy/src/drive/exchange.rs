//! One request's clock and progress, shared by the future that serves it, the body on its way up and the body on its way
//! down. Kept by an HTTP/1 connection for its next request.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::core::Core;
use super::timer::{Alarm, NEVER};
use crate::account::Event;

pub struct Exchange {
    pub core: Rc<Core>,
    pub alarm: Alarm,
    pub started_us: Cell<u64>,
    /// When an attempt, the wait before one, and the whole must be over.
    attempt_ms: Cell<u64>,
    pause_ms: Cell<u64>,
    route_ms: Cell<u64>,
    /// Granted to the route once the request is complete; 0 for none.
    route_allowed_ms: Cell<u64>,
    /// The route's limit ends with the answer's head.
    head_only: Cell<bool>,
    /// A stream in both directions (gRPC, an upgrade): its body has no deadline of its own.
    streaming: Cell<bool>,
    request_done: Cell<bool>,
    received: Cell<u64>,
    moved_ms: Cell<u64>,
    /// A piece of the answer was handed over, and nobody has asked for the next: the caller takes nothing.
    handed_over: Cell<bool>,
}

/// Which deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    Pause,
    Attempt,
    Route,
    /// The caller sends its body too slowly.
    Body,
    /// Nothing moved.
    Idle,
    /// The caller takes nothing of the answer.
    Stalled,
}

impl Expiry {
    pub fn event(self) -> Option<Event> {
        match self {
            Self::Pause => None,
            Self::Attempt => Some(Event::AttemptDeadline),
            Self::Route => Some(Event::RouteDeadline),
            Self::Body => Some(Event::BodyDeadline),
            Self::Idle => Some(Event::StreamIdleDeadline),
            Self::Stalled => Some(Event::WriteDeadline),
        }
    }
}

impl Exchange {
    pub fn new(core: &Rc<Core>) -> Rc<Self> {
        Rc::new(Self {
            core: core.clone(),
            alarm: core.wheel.alarm(),
            started_us: Cell::new(0),
            attempt_ms: Cell::new(NEVER),
            pause_ms: Cell::new(NEVER),
            route_ms: Cell::new(NEVER),
            route_allowed_ms: Cell::new(0),
            head_only: Cell::new(false),
            streaming: Cell::new(false),
            request_done: Cell::new(false),
            received: Cell::new(0),
            moved_ms: Cell::new(0),
            handed_over: Cell::new(false),
        })
    }

    /// Begins anew. `body`: one follows.
    pub fn begin(&self, now_us: u64, body: bool) {
        self.started_us.set(now_us);
        self.attempt_ms.set(NEVER);
        self.pause_ms.set(NEVER);
        self.route_ms.set(NEVER);
        self.route_allowed_ms.set(0);
        self.head_only.set(false);
        self.streaming.set(false);
        self.request_done.set(!body);
        self.received.set(0);
        self.moved_ms.set(now_us / 1000);
        self.handed_over.set(false);
    }

    pub fn started_ms(&self) -> u64 {
        self.started_us.get() / 1000
    }

    pub fn is_request_done(&self) -> bool {
        self.request_done.get()
    }

    /// What the route allows (0: no limit), told before the first attempt.
    pub fn allow(&self, streaming: bool, route_allowed_ms: u64, head_only: bool) {
        self.streaming.set(streaming);
        self.route_allowed_ms.set(route_allowed_ms);
        self.head_only.set(head_only);
        // A written limit is one of the whole exchange; the default one begins when the request is complete.
        if self.request_done.get() || !head_only {
            self.start_route(self.started_ms());
        }
        self.rearm();
    }

    fn start_route(&self, now_ms: u64) {
        if self.route_allowed_ms.get() > 0 {
            self.route_ms
                .set(now_ms.saturating_add(self.route_allowed_ms.get()));
        }
    }

    /// The caller has sent everything.
    pub fn request_complete(&self) {
        if !self.request_done.replace(true) {
            if self.head_only.get() {
                self.start_route(self.core.wheel.now_ms());
            }
            self.rearm();
        }
    }

    /// Bytes of the request's body came.
    pub fn request_moved(&self, bytes: usize) {
        self.received
            .set(self.received.get().saturating_add(bytes as u64));
        self.moved();
    }

    pub fn moved(&self) {
        self.moved_ms.set(self.core.wheel.now_ms());
    }

    /// A piece of the answer goes downstream; its stall clock runs until the next is asked for.
    pub fn hand_over(&self) {
        self.moved();
        self.handed_over.set(true);
        self.rearm();
    }

    /// The next piece of the answer is asked for, and not there yet.
    #[inline]
    pub fn asked_for(&self) {
        self.handed_over.set(false);
    }

    /// Limits the attempt that begins; NEVER for no limit.
    pub fn begin_attempt(&self, deadline_ms: u64) {
        self.pause_ms.set(NEVER);
        if self.attempt_ms.replace(deadline_ms) != deadline_ms {
            self.rearm();
        }
    }

    /// Waits before the next attempt.
    pub fn begin_pause(&self, until_ms: u64) {
        self.attempt_ms.set(NEVER);
        self.pause_ms.set(until_ms);
        self.rearm();
    }

    /// The answer's head is there.
    pub fn answered(&self, now_ms: u64) {
        self.attempt_ms.set(NEVER);
        self.pause_ms.set(NEVER);
        if self.head_only.get() {
            self.route_ms.set(NEVER);
            self.route_allowed_ms.set(0);
        }
        self.moved_ms.set(now_ms);
        self.rearm();
    }

    /// Over: no deadline any more.
    pub fn end(&self) {
        self.alarm.clear();
    }

    fn rearm(&self) {
        let next = self
            .attempt_ms
            .get()
            .min(self.pause_ms.get())
            .min(self.route_ms.get());
        self.alarm
            .set(next.min(self.body_due_ms()).min(self.idle_due_ms()));
    }

    fn idle_due_ms(&self) -> u64 {
        let deadlines = &self.core.deadlines;
        let allowed = if self.handed_over.get() {
            deadlines.stalled_write
        } else {
            deadlines.stream_idle
        };
        self.moved_ms.get().saturating_add(allowed)
    }

    /// When the next byte of a plain request's body is due: a flat allowance, and the time that the rate grants.
    fn body_due_ms(&self) -> u64 {
        if self.request_done.get() || self.streaming.get() {
            return NEVER;
        }
        let deadlines = &self.core.deadlines;
        let earned = self.received.get().saturating_mul(1000) / deadlines.body_rate;
        self.started_ms()
            .saturating_add(deadlines.body)
            .saturating_add(earned)
    }

    /// Ready when a deadline has really passed; sets the clock for the next otherwise.
    #[inline]
    pub fn poll_expiry(&self, cx: &mut Context<'_>) -> Poll<Expiry> {
        while self.alarm.poll(cx).is_ready() {
            let now_ms = self.core.wheel.now_ms();
            if let Some(expiry) = self.expired(now_ms) {
                return Poll::Ready(expiry);
            }
            self.rearm();
        }
        Poll::Pending
    }

    fn expired(&self, now_ms: u64) -> Option<Expiry> {
        let deadlines = [
            (self.route_ms.get(), Expiry::Route),
            (self.attempt_ms.get(), Expiry::Attempt),
            (self.body_due_ms(), Expiry::Body),
            (
                self.idle_due_ms(),
                if self.handed_over.get() {
                    Expiry::Stalled
                } else {
                    Expiry::Idle
                },
            ),
            (self.pause_ms.get(), Expiry::Pause),
        ];
        deadlines
            .into_iter()
            .find(|(deadline, _)| *deadline <= now_ms)
            .map(|(_, expiry)| expiry)
    }
}
