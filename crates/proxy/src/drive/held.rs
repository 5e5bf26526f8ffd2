//! What one core holds of bodies that must be there as a whole, in bytes: a bound for all of them together, beside the one
//! that each has.

use std::cell::Cell;
use std::rc::Rc;

/// Shared by the requests of one core.
#[derive(Clone, Debug, Default)]
pub struct Budget(Rc<Cell<usize>>);

/// One request's part of it, given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    pub fn hold(&self) -> Held {
        Held {
            budget: self.clone(),
            bytes: 0,
        }
    }
}

impl Held {
    /// So many bytes from now on. False, and as before: there is no room for that.
    #[must_use]
    pub fn set(&mut self, bytes: usize) -> bool {
        let others = self.budget.0.get().saturating_sub(self.bytes);
        let all = others.saturating_add(bytes);
        // Who needs less than before always gets it.
        if bytes > self.bytes && all > HELD_MAX {
            return false;
        }
        self.budget.0.set(all);
        self.bytes = bytes;
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let all = self.budget.0.get();
        self.budget.0.set(all.saturating_sub(self.bytes));
    }
}

/// Of a core: a dozen of the largest messages with what becomes of them.
pub const HELD_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_all_requests_together_have_one_bound_and_give_back_what_they_took() {
        let budget = Budget::default();
        let (mut one, mut other) = (budget.hold(), budget.hold());
        assert!(one.set(HELD_MAX - 10));
        assert!(other.set(10));
        assert!(!other.set(11), "full");
        assert!(one.set(100));
        assert!(other.set(HELD_MAX - 100));
        drop(one);
        assert!(other.set(HELD_MAX));
        drop(other);
        assert_eq!(budget.0.get(), 0);
    }
}
