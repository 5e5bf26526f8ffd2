//! Deadlines of one core: a wheel of coarse ticks. Moving a deadline later costs one store, which is what every request
//! does; an entry is looked at again when its old tick comes. One tokio timer drives the whole wheel.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The deadlines of a core. Cheap to clone.
#[derive(Clone)]
pub struct Wheel(Rc<Inner>);

struct Inner {
    started: Instant,
    /// What the clock said when it was last read.
    seen_us: Cell<u64>,
    slots: RefCell<Vec<Slot>>,
    /// Ticks up to and including this one have been visited.
    hand: Cell<u64>,
    /// The earliest tick that holds an entry, as far as booked.
    next: Cell<u64>,
    driver: RefCell<Option<Waker>>,
}

/// The entries of one place on the wheel, each with the tick it was booked for.
type Slot = Vec<(u64, Rc<Entry>)>;

#[derive(Default)]
struct Entry {
    deadline_ms: Cell<u64>,
    booked: Cell<u64>,
    fired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// One deadline that can be moved. Belongs to one task at a time.
pub struct Alarm {
    entry: Rc<Entry>,
    wheel: Wheel,
}

/// No deadline.
pub const NEVER: u64 = u64::MAX;

impl Wheel {
    /// Times are in ms since `started`.
    pub fn new(started: Instant) -> Self {
        let wheel = Inner {
            started,
            seen_us: Cell::new(0),
            slots: RefCell::new((0..SLOTS).map(|_| Vec::new()).collect()),
            hand: Cell::new(0),
            next: Cell::new(NEVER),
            driver: RefCell::default(),
        };
        wheel.hand.set(ms(started.elapsed()) / TICK_MS);
        Self(Rc::new(wheel))
    }

    pub fn now_ms(&self) -> u64 {
        self.now_us() / 1000
    }

    #[inline]
    pub fn now_us(&self) -> u64 {
        let elapsed = self.0.started.elapsed();
        let now_us = elapsed.as_secs() * 1_000_000 + u64::from(elapsed.subsec_micros());
        self.0.seen_us.set(now_us);
        now_us
    }

    /// When something of this core last looked at the clock, as every read of a socket does: the present, for whoever
    /// runs because of that.
    #[inline]
    pub fn recent_us(&self) -> u64 {
        self.0.seen_us.get()
    }

    #[inline]
    pub fn recent_ms(&self) -> u64 {
        self.recent_us() / 1000
    }

    pub fn alarm(&self) -> Alarm {
        let entry = Entry {
            deadline_ms: Cell::new(NEVER),
            booked: Cell::new(NEVER),
            ..Entry::default()
        };
        Alarm {
            entry: Rc::new(entry),
            wheel: self.clone(),
        }
    }

    /// Fires what is due; runs as long as the core.
    pub async fn run(&self) {
        let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut slept_for = NEVER;
        poll_fn(|cx| {
            loop {
                *self.0.driver.borrow_mut() = Some(cx.waker().clone());
                self.visit(self.now_ms());
                let next = self.0.next.get();
                if next == NEVER {
                    return Poll::<()>::Pending;
                }
                if next != slept_for {
                    let at = self.0.started + Duration::from_millis(next.saturating_mul(TICK_MS));
                    sleep.as_mut().reset(at.into());
                    slept_for = next;
                }
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                slept_for = NEVER;
            }
        })
        .await;
    }

    fn book(&self, entry: &Rc<Entry>) {
        let wheel = &self.0;
        let first = wheel.hand.get() + 1;
        let tick = entry
            .deadline_ms
            .get()
            .div_ceil(TICK_MS)
            .clamp(first, first + SLOTS as u64 - 2);
        entry.booked.set(tick);
        if let Some(slot) = wheel
            .slots
            .borrow_mut()
            .get_mut((tick % SLOTS as u64) as usize)
        {
            slot.push((tick, entry.clone()));
        }
        if tick < wheel.next.get() {
            wheel.next.set(tick);
            if let Some(driver) = &*wheel.driver.borrow() {
                driver.wake_by_ref();
            }
        }
    }

    /// Looks at every entry booked up to `now_ms`.
    fn visit(&self, now_ms: u64) {
        let wheel = &self.0;
        let (from, to) = (wheel.hand.get() + 1, now_ms / TICK_MS);
        if to < from || wheel.next.get() > to {
            wheel.hand.set(wheel.hand.get().max(to));
            return;
        }
        wheel.hand.set(to);
        for tick in from..=to.min(from + SLOTS as u64 - 1) {
            let place = (tick % SLOTS as u64) as usize;
            let due = wheel
                .slots
                .borrow_mut()
                .get_mut(place)
                .map(std::mem::take)
                .unwrap_or_default();
            for (booked, entry) in due {
                // Booked anew for an earlier tick in the meantime, or nobody holds the alarm any more.
                if entry.booked.get() == booked && Rc::strong_count(&entry) > 1 {
                    self.look(&entry, now_ms);
                }
            }
        }
        wheel.next.set(self.earliest());
    }

    fn look(&self, entry: &Rc<Entry>, now_ms: u64) {
        entry.booked.set(NEVER);
        if entry.deadline_ms.get() <= now_ms {
            entry.deadline_ms.set(NEVER);
            entry.fired.set(true);
            if let Some(waker) = entry.waker.borrow_mut().take() {
                waker.wake();
            }
        } else if entry.deadline_ms.get() != NEVER {
            self.book(entry);
        }
    }

    fn earliest(&self) -> u64 {
        let (slots, hand) = (self.0.slots.borrow(), self.0.hand.get());
        let holds = |tick: &u64| {
            slots
                .get((tick % SLOTS as u64) as usize)
                .is_some_and(|slot| !slot.is_empty())
        };
        (hand + 1..hand + SLOTS as u64).find(holds).unwrap_or(NEVER)
    }
}

impl Alarm {
    /// Moves the deadline; one that was missed is forgotten.
    #[inline]
    pub fn set(&self, deadline_ms: u64) {
        self.entry.deadline_ms.set(deadline_ms);
        self.entry.fired.set(false);
        if deadline_ms != NEVER && deadline_ms.div_ceil(TICK_MS) < self.entry.booked.get() {
            self.wheel.book(&self.entry);
        }
    }

    #[inline]
    pub fn clear(&self) {
        self.set(NEVER);
    }

    /// Neither waits for a deadline nor has missed one.
    pub fn is_unset(&self) -> bool {
        self.entry.deadline_ms.get() == NEVER && !self.entry.fired.get()
    }

    /// Ready once after each deadline that passed; else `cx` is woken when it does.
    #[inline]
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.entry.fired.replace(false) {
            return Poll::Ready(());
        }
        let mut waker = self.entry.waker.borrow_mut();
        match &mut *waker {
            Some(known) if known.will_wake(cx.waker()) => {}
            Some(known) => known.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Wakes the task that polled it last.
    pub fn wake(&self) {
        if let Some(waker) = &*self.entry.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

pub fn ms(duration: Duration) -> u64 {
    let whole = duration.as_secs().saturating_mul(1000);
    whole.saturating_add(u64::from(duration.subsec_millis()))
}

/// Deadlines are kept to this; the shortest that is meant seriously is some tens of ms.
pub const TICK_MS: u64 = 5;
const SLOTS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    async fn passes(alarm: &Alarm) {
        poll_fn(|cx| alarm.poll(cx)).await;
    }

    /// Runs `test` beside the wheel, under paused time.
    fn with_wheel<F: Future<Output = ()>>(test: impl FnOnce(Wheel) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let wheel = Wheel::new(Instant::now());
            tokio::select! {
                () = wheel.run() => unreachable!("runs for ever"),
                () = test(wheel.clone()) => {}
            }
        });
    }

    #[test]
    fn alarm_fires_after_its_deadline_and_only_once() {
        with_wheel(|wheel| async move {
            let alarm = wheel.alarm();
            let deadline = wheel.now_ms() + 20;
            alarm.set(deadline);
            passes(&alarm).await;
            assert!(wheel.now_ms() >= deadline);
            assert!(poll_fn(|cx| Poll::Ready(alarm.poll(cx))).await.is_pending());
        });
    }

    #[test]
    fn deadline_can_be_moved_both_ways() {
        with_wheel(|wheel| async move {
            let (early, late) = (wheel.alarm(), wheel.alarm());
            let now = wheel.now_ms();
            early.set(now + 60_000);
            early.set(now + 20);
            late.set(now + 10);
            late.set(now + 60);
            passes(&early).await;
            assert!(poll_fn(|cx| Poll::Ready(late.poll(cx))).await.is_pending());
            passes(&late).await;
            assert!(wheel.now_ms() >= now + 60);
        });
    }

    #[test]
    fn cleared_alarm_stays_silent() {
        with_wheel(|wheel| async move {
            let (cleared, other) = (wheel.alarm(), wheel.alarm());
            let now = wheel.now_ms();
            cleared.set(now + 10);
            cleared.clear();
            other.set(now + 40);
            passes(&other).await;
            assert!(
                poll_fn(|cx| Poll::Ready(cleared.poll(cx)))
                    .await
                    .is_pending()
            );
        });
    }
}
