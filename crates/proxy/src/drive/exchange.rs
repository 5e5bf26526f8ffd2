//! One request's clock and progress. Used again for another request when it is over.

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;
use std::task::{Context, Poll};

use phalanx_model::reason::Reason;

use super::core::{Core, DeadlinesMs};
use super::timer::{Alarm, NEVER, Wheel};
use crate::account::Event;

pub struct Exchange {
    wheel: Wheel,
    deadlines: Rc<DeadlinesMs>,
    alarm: Alarm,
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
    /// Since when nobody reads the request's body, NEVER while somebody waits for it; and how long that was before.
    unread_since_ms: Cell<u64>,
    unread_ms: Cell<u64>,
    moved_ms: Cell<u64>,
    /// Something of the answer is there, and the caller takes nothing.
    stalled: Cell<bool>,
    /// When it is taken for one that lasts; NEVER where that matters to nobody, or is so.
    lasting_ms: Cell<u64>,
    lasts: Cell<bool>,
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
    /// Not of time: by the rules in force it would not be let in any more.
    ShutOut,
    /// Nor this: the session that it belongs to is elsewhere by now.
    Moved,
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
            Self::ShutOut => Some(Event::AccessDenied),
            Self::Moved => Some(Event::SessionMoved),
        }
    }

    /// What the caller is told, where it can be told anything.
    pub fn reason(self) -> Reason {
        match self {
            Self::ShutOut => Reason::Denied,
            Self::Moved => Reason::Draining,
            _ => Reason::Timeout,
        }
    }

    /// The caller's doing, or that of the rules: no word about the endpoint.
    pub fn is_callers(self) -> bool {
        matches!(
            self,
            Self::Body | Self::Stalled | Self::ShutOut | Self::Moved
        )
    }
}

impl Exchange {
    pub fn new(wheel: &Wheel, deadlines: &Rc<DeadlinesMs>) -> Self {
        Self {
            wheel: wheel.clone(),
            deadlines: deadlines.clone(),
            alarm: wheel.alarm(),
            started_us: Cell::new(0),
            attempt_ms: Cell::new(NEVER),
            pause_ms: Cell::new(NEVER),
            route_ms: Cell::new(NEVER),
            route_allowed_ms: Cell::new(0),
            head_only: Cell::new(false),
            streaming: Cell::new(false),
            request_done: Cell::new(false),
            received: Cell::new(0),
            unread_since_ms: Cell::new(NEVER),
            unread_ms: Cell::new(0),
            moved_ms: Cell::new(0),
            stalled: Cell::new(false),
            lasting_ms: Cell::new(NEVER),
            lasts: Cell::new(false),
        }
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
        self.unread_since_ms.set(now_us / 1000);
        self.unread_ms.set(0);
        self.moved_ms.set(now_us / 1000);
        self.stalled.set(false);
        self.lasting_ms.set(NEVER);
        self.lasts.set(false);
    }

    /// Told before [`Exchange::allow`]: whether it lasts is of interest.
    pub fn watch(&self) {
        self.lasting_ms.set(self.started_ms() + LASTING_MS);
    }

    pub fn lasts(&self) -> bool {
        self.lasts.get()
    }

    pub fn started_ms(&self) -> u64 {
        self.started_us.get() / 1000
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
                self.start_route(self.wheel.now_ms());
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

    /// Whether the caller is waited for, or its body waits for something else: only then is it late.
    #[inline]
    pub fn reads_body(&self, reads: bool) {
        let since = self.unread_since_ms.get();
        if reads == (since == NEVER) || self.request_done.get() || self.streaming.get() {
            return;
        }
        let now_ms = self.wheel.recent_ms();
        if reads {
            let unread_ms = now_ms.saturating_sub(since);
            self.unread_ms
                .set(self.unread_ms.get().saturating_add(unread_ms));
            self.unread_since_ms.set(NEVER);
        } else {
            self.unread_since_ms.set(now_ms);
        }
        self.rearm();
    }

    pub fn moved(&self) {
        self.moved_ms.set(self.wheel.recent_ms());
    }

    /// Whether the caller takes what is there of the answer.
    #[inline]
    pub fn stalled(&self, stalled: bool) {
        if self.stalled.replace(stalled) != stalled && stalled {
            self.moved();
            self.rearm();
        }
    }

    /// Limits the attempt that begins; NEVER for no limit.
    pub fn begin_attempt(&self, deadline_ms: u64) {
        let paused = self.pause_ms.replace(NEVER) != NEVER; // its alarm has gone off
        if self.attempt_ms.replace(deadline_ms) != deadline_ms || paused {
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
            .min(self.route_ms.get())
            .min(self.lasting_ms.get());
        self.alarm
            .set(next.min(self.body_due_ms()).min(self.idle_due_ms()));
    }

    fn idle_due_ms(&self) -> u64 {
        let deadlines = &self.deadlines;
        let allowed = if self.stalled.get() {
            deadlines.stalled_write
        } else {
            deadlines.stream_idle
        };
        self.moved_ms.get().saturating_add(allowed)
    }

    /// When the next byte of a plain request's body is due: a flat allowance, and the time that the rate grants.
    fn body_due_ms(&self) -> u64 {
        let unread = self.unread_since_ms.get() != NEVER;
        if self.request_done.get() || self.streaming.get() || unread {
            return NEVER;
        }
        let deadlines = &self.deadlines;
        let earned = self.received.get().saturating_mul(1000) / deadlines.body_rate;
        self.started_ms()
            .saturating_add(deadlines.body)
            .saturating_add(self.unread_ms.get())
            .saturating_add(earned)
    }

    /// Ready when a deadline has really passed; sets the clock for the next otherwise.
    #[inline]
    pub fn poll_expiry(&self, cx: &mut Context<'_>) -> Poll<Expiry> {
        while self.alarm.poll(cx).is_ready() {
            let now_ms = self.wheel.now_ms();
            if let Some(expiry) = self.expired(now_ms) {
                return Poll::Ready(expiry);
            }
            if self.lasting_ms.get() <= now_ms {
                self.lasting_ms.set(NEVER);
                self.lasts.set(true);
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
                if self.stalled.get() {
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

/// An exchange for as long as one request lasts, or whoever serves them.
pub struct Lent {
    core: Rc<Core>,
    exchange: Rc<Exchange>,
}

impl Lent {
    pub fn new(core: &Rc<Core>) -> Self {
        let spare = core.exchanges.borrow_mut().pop();
        let exchange =
            spare.unwrap_or_else(|| Rc::new(Exchange::new(&core.wheel, &core.deadlines)));
        Self {
            core: core.clone(),
            exchange,
        }
    }
}

impl Deref for Lent {
    type Target = Exchange;

    fn deref(&self) -> &Exchange {
        &self.exchange
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.exchange.end();
        let mut spare = self.core.exchanges.borrow_mut();
        if spare.len() < SPARE_MAX {
            spare.push(self.exchange.clone());
        }
    }
}

/// What takes longer is asked about when the rules change; what doesn't is over by then.
const LASTING_MS: u64 = 1_000;
const SPARE_MAX: usize = 256;
