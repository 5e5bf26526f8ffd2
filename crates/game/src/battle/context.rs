//! What a battle sees besides its input, and one fight run in it. Everything that may decide a result is here on purpose
//! (dice, rules, fuel); what must not (the clock, the caller's patience) reaches the battle only as an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use bumpalo::Bump;

use super::clock::{Clock, NEVER};
use super::job::{STOPPED, Wakes};
use super::{Battle, Call, Reject, Stage};
use crate::dice::Dice;

/// Operations between two looks at the clock where no executor says otherwise.
const CHECK_EVERY: u32 = 1_024;

/// Dice, rules, memory and limits of one fight.
pub struct Context<'a, R> {
    /// Chance; follows from the call's seed.
    pub dice: Dice,
    rules: &'a R,
    version: u64,
    session: Option<&'a str>,
    arena: &'a Bump,
    fuel: u64,
    fuel_left: u64,
    /// Operations granted since the last look, and how many of them are left.
    slice: u32,
    left: u32,
    every: u32,
    stop: Option<Stop<'a>>,
    stopped: Option<Reject>,
}

impl<'a, R> Context<'a, R> {
    /// One operation. An error must be passed on: the fight is over (and the result, if any, thrown away).
    #[inline]
    pub fn check(&mut self) -> Result<(), Reject> {
        self.spend(1)
    }

    /// `operations` at once, for a step that is known to be dear.
    #[inline]
    pub fn spend(&mut self, operations: u32) -> Result<(), Reject> {
        if operations < self.left {
            self.left -= operations;
            return Ok(());
        }
        self.look(operations)
    }

    /// The version of the rules that this fight began with.
    pub fn rules(&self) -> &'a R {
        self.rules
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn session(&self) -> Option<&'a str> {
        self.session
    }

    /// Memory that is gone after the fight; no destructor of what is in it runs.
    pub fn arena(&self) -> &'a Bump {
        self.arena
    }

    /// Operations spent so far.
    pub fn spent(&self) -> u64 {
        self.fuel - self.fuel_left + u64::from(self.slice - self.left)
    }

    /// Operations that are left, `u64::MAX` without a limit.
    pub fn fuel_left(&self) -> u64 {
        if self.fuel == u64::MAX {
            return u64::MAX;
        }
        self.fuel.saturating_sub(self.spent())
    }

    /// Time that is left; `None` without a deadline, as in a replay. For progress and logs: a result that depends on it
    /// can't be replayed.
    pub fn remaining(&self) -> Option<Duration> {
        let stop = self.stop.as_ref().filter(|stop| stop.deadline != NEVER)?;
        Some(Duration::from_nanos(
            stop.deadline.saturating_sub(stop.clock.now()),
        ))
    }

    /// Fuel is counted to the operation, whatever the interval between looks: where it ends is part of the result.
    #[cold]
    fn look(&mut self, operations: u32) -> Result<(), Reject> {
        if let Some(reject) = &self.stopped {
            return Err(reject.clone());
        }
        let spent = u64::from(self.slice - self.left) + u64::from(operations);
        let reject = if spent > self.fuel_left {
            self.fuel_left = 0;
            Some(Reject::Exhausted { fuel: self.fuel })
        } else {
            self.fuel_left -= spent;
            self.stop.as_ref().and_then(Stop::reason)
        };
        if let Some(reject) = reject {
            (self.slice, self.left) = (0, 0);
            self.stopped = Some(reject.clone());
            return Err(reject);
        }
        self.grant();
        Ok(())
    }

    fn grant(&mut self) {
        let most = self.fuel_left.saturating_add(1);
        self.slice = u32::try_from(most).unwrap_or(u32::MAX).min(self.every);
        self.left = self.slice;
    }
}

/// What may end a fight early; asked every so many operations.
pub(crate) struct Stop<'a> {
    pub clock: &'a Clock,
    /// On `clock`.
    pub deadline: u64,
    /// The job's state: [`STOPPED`] when the caller left.
    pub state: &'a AtomicU8,
    /// The executor ends.
    pub abort: &'a AtomicBool,
    /// Live work in this number makes a fight beside it step back.
    pub yield_to: Option<&'a AtomicUsize>,
    /// Who was answered already, but not yet woken.
    pub wakes: &'a Wakes,
}

impl Stop<'_> {
    fn reason(&self) -> Option<Reject> {
        self.wakes.flush();
        if self.abort.load(Ordering::Relaxed) {
            return Some(Reject::Draining);
        }
        if self.state.load(Ordering::Relaxed) == STOPPED {
            return Some(Reject::Cancelled);
        }
        if (self.yield_to).is_some_and(|live| live.load(Ordering::Relaxed) > 0) {
            return Some(Reject::Cancelled);
        }
        if self.deadline != NEVER && self.clock.now() >= self.deadline {
            let stage = Stage::Fight;
            return Some(Reject::DeadlinePassed { stage });
        }
        None
    }
}

/// What decides a fight besides battle and input.
pub(crate) struct Setup<'a, R> {
    pub rules: &'a R,
    pub version: u64,
    pub call: &'a Call,
    pub every: u32,
}

/// The battle panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Panicked;

/// One fight, on the calling thread. Nothing unwinds out of it.
pub(crate) fn fight<B: Battle>(
    battle: &B,
    setup: &Setup<'_, B::Rules>,
    arena: &Bump,
    stop: Option<Stop<'_>>,
    input: &B::Input,
) -> Result<Result<B::Output, Reject>, Panicked> {
    let mut cx = Context {
        dice: Dice::new(setup.call.seed),
        rules: setup.rules,
        version: setup.version,
        session: setup.call.session.as_deref(),
        arena,
        fuel: setup.call.fuel,
        fuel_left: setup.call.fuel,
        slice: 0,
        left: 0,
        every: setup.every.max(1),
        stop,
        stopped: None,
    };
    cx.grant();
    let ended = catch_unwind(AssertUnwindSafe(|| battle.fight(&mut cx, input)));
    match (ended, cx.stopped.take()) {
        (Err(_), _) => Err(Panicked),
        // A battle that swallowed the error and went on doesn't get away with it.
        (Ok(_), Some(reject)) => Ok(Err(reject)),
        (Ok(result), None) => Ok(result),
    }
}

/// One fight on the calling thread, without executor, deadline and queue: for tools and tests. A panic becomes
/// [`Reject::Panicked`] with hash 0; class and deadline of the call are not looked at.
pub fn rerun<B: Battle>(
    battle: &B,
    version: u64,
    rules: &B::Rules,
    call: &Call,
    input: &B::Input,
) -> Result<B::Output, Reject> {
    let setup = Setup {
        rules,
        version,
        call,
        every: CHECK_EVERY,
    };
    fight(battle, &setup, &Bump::new(), None, input).unwrap_or(Err(Reject::Panicked { hash: 0 }))
}

#[cfg(test)]
mod tests;
