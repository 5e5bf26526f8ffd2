//! How much of what is bounded one peer has: connections, calls, places in a line. Whoever has his share is refused, and the
//! others are served.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts by whoever it is. Cheap to clone.
pub struct Shares<K> {
    most: usize,
    /// Short critical sections, never across an await. As many as somebody has something of.
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self {
            most: self.most,
            taken: self.taken.clone(),
        }
    }
}

/// One of somebody's; dropping it gives it back.
pub struct Share<K: Eq + Hash> {
    of: K,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// At most so many for each.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    /// None: it has its share.
    pub fn take(&self, of: &K) -> Option<Share<K>> {
        let mut taken = lock(&self.taken);
        match taken.get_mut(of) {
            Some(count) if *count >= self.most => return None,
            Some(count) => *count += 1,
            None => drop(taken.insert(of.clone(), 1)),
        }
        drop(taken);
        Some(Share {
            of: of.clone(),
            taken: self.taken.clone(),
        })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

impl<K: Eq + Hash> fmt::Debug for Share<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Share")
    }
}

fn lock<K>(taken: &Mutex<HashMap<K, usize>>) -> MutexGuard<'_, HashMap<K, usize>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_his_share_leaves_the_rest_to_others() {
        let shares = Shares::new(2);
        let mine: Vec<_> = (0..3).map(|_| shares.take(&"a")).collect();
        assert_eq!(mine.iter().flatten().count(), 2);
        assert!(shares.take(&"b").is_some());
        drop(mine);
        assert!(shares.take(&"a").is_some());
        assert!(shares.taken.lock().unwrap().is_empty(), "nothing is kept");
    }
}
