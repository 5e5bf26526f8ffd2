//! Idle connections to one endpoint on one core, last in first out, and the lease that is the only way back in.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A pool of connections that carry one exchange at a time.
pub struct Pool<C> {
    idle: RefCell<Vec<Idle<C>>>,
    /// The endpoint left the plan: nothing comes back in.
    retired: Cell<bool>,
}

struct Idle<C> {
    connection: C,
    served: u32,
    since_ms: u64,
}

/// Idle connections kept per endpoint and core.
pub const IDLE_MAX: usize = 256;

impl<C> Default for Pool<C> {
    fn default() -> Self {
        Self {
            idle: RefCell::new(Vec::new()),
            retired: Cell::new(false),
        }
    }
}

impl<C> Pool<C> {
    /// The connection that was used last, if it passes `usable`; those that don't are dropped.
    pub fn lease(self: &Rc<Self>, mut usable: impl FnMut(&mut C) -> bool) -> Option<Lease<C>> {
        loop {
            let mut idle = self.idle.borrow_mut().pop()?;
            if usable(&mut idle.connection) {
                return Some(Lease {
                    connection: idle.connection,
                    served: idle.served,
                    home: self.clone(),
                });
            }
        }
    }

    /// A lease of a connection just opened.
    pub fn adopt(self: &Rc<Self>, connection: C) -> Lease<C> {
        Lease {
            connection,
            served: 0,
            home: self.clone(),
        }
    }

    /// Drops what idled for `timeout_ms` or fails `usable`; returns how many.
    pub fn sweep(
        &self,
        now_ms: u64,
        timeout_ms: u64,
        mut usable: impl FnMut(&mut C) -> bool,
    ) -> usize {
        let mut idle = std::mem::take(&mut *self.idle.borrow_mut());
        let before = idle.len();
        idle.retain_mut(|entry| {
            now_ms.saturating_sub(entry.since_ms) < timeout_ms && usable(&mut entry.connection)
        });
        let gone = before - idle.len();
        let mut current = self.idle.borrow_mut();
        idle.append(&mut current);
        *current = idle;
        gone
    }

    /// Drops the connection that has idled longest; false when there is none.
    pub fn evict(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        let oldest = if idle.is_empty() {
            None
        } else {
            Some(idle.remove(0))
        };
        drop(idle);
        oldest.is_some()
    }

    /// Drops every idle connection; leased ones will not come back.
    pub fn retire(&self) {
        self.retired.set(true);
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        drop(idle);
    }

    pub fn idle(&self) -> usize {
        self.idle.borrow().len()
    }
}

/// A connection in use. Dropped, it closes the connection; only [`Lease::finish`] can give it back.
pub struct Lease<C> {
    pub connection: C,
    served: u32,
    home: Rc<Pool<C>>,
}

/// How an exchange on a connection ended. All three must be true for the connection to be used again.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The whole request was written.
    pub request: bool,
    /// The whole answer was read.
    pub response: bool,
    /// Neither side said that it closes, nothing was upgraded, and no byte is left over.
    pub reusable: bool,
}

impl Completion {
    pub const REUSABLE: Self = Self {
        request: true,
        response: true,
        reusable: true,
    };
}

impl<C> Lease<C> {
    /// Whether it carried a request before: the peer may have closed it in the meantime.
    pub fn is_reused(&self) -> bool {
        self.served > 0
    }

    /// The one way back into the pool. `requests_max`: requests per connection, 0 for no limit.
    pub fn finish(self, end: Completion, requests_max: u32, now_ms: u64) {
        let served = self.served.saturating_add(1);
        let worn_out = requests_max > 0 && served >= requests_max;
        if !(end.request && end.response && end.reusable) || worn_out || self.home.retired.get() {
            return;
        }
        let mut idle = self.home.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(Idle {
                connection: self.connection,
                served,
                since_ms: now_ms,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: Completion = Completion {
        request: true,
        response: true,
        reusable: true,
    };

    #[test]
    fn connection_returns_only_when_request_and_response_are_complete() {
        for (end, returns) in [
            (DONE, 1),
            (
                Completion {
                    request: false,
                    ..DONE
                },
                0,
            ),
            (
                Completion {
                    response: false,
                    ..DONE
                },
                0,
            ),
            (
                Completion {
                    reusable: false,
                    ..DONE
                },
                0,
            ),
        ] {
            let pool = Rc::new(Pool::default());
            pool.adopt("connection").finish(end, 0, 0);
            assert_eq!(pool.idle(), returns, "{end:?}");
        }
        let pool = Rc::new(Pool::default());
        drop(pool.adopt("connection"));
        assert_eq!(pool.idle(), 0);
    }

    #[test]
    fn last_used_is_leased_first_and_dead_ones_are_dropped() {
        let pool = Rc::new(Pool::default());
        for connection in [1, 2, 3] {
            pool.adopt(connection).finish(DONE, 0, 0);
        }
        let lease = pool.lease(|connection| *connection != 3).unwrap();
        assert_eq!(
            (lease.connection, lease.is_reused(), pool.idle()),
            (2, true, 1)
        );
    }

    #[test]
    fn worn_out_and_retired_connections_stay_out() {
        let pool = Rc::new(Pool::default());
        pool.adopt(1).finish(DONE, 2, 0);
        let lease = pool.lease(|_| true).unwrap();
        lease.finish(DONE, 2, 0);
        assert_eq!(pool.idle(), 0);
        let lease = pool.adopt(2);
        pool.retire();
        lease.finish(DONE, 0, 0);
        assert_eq!(pool.idle(), 0);
    }

    #[test]
    fn sweep_drops_what_idled_too_long() {
        let pool = Rc::new(Pool::default());
        pool.adopt(1).finish(DONE, 0, 0);
        pool.adopt(2).finish(DONE, 0, 900);
        assert_eq!(pool.sweep(1000, 1000, |_| true), 1);
        assert_eq!(pool.lease(|_| true).unwrap().connection, 2);
    }
}
