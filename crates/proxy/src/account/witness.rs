//! Endpoints that refuse connections: told to the control plane, which takes it for death when the instance is silent, too.
//! A lock is taken only while some endpoint refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What callers found out since it was last asked.
#[derive(Debug, Default)]
pub struct Witness {
    /// Of `State::refusing`.
    count: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Until they are reached.
    refusing: BTreeSet<SocketAddr>,
    /// Not told yet; true: refused.
    news: BTreeMap<SocketAddr, bool>,
}

impl Witness {
    pub fn refused(&self, address: SocketAddr) {
        let mut state = self.state();
        if state.refusing.len() < ADDRESSES_MAX {
            state.refusing.insert(address);
            state.news.insert(address, true);
            self.count.store(state.refusing.len(), Ordering::Relaxed);
        }
    }

    #[inline]
    pub fn reached(&self, address: SocketAddr) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.clear(address);
        }
    }

    /// Who refused, and who of them takes connections again.
    pub fn take(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let news = std::mem::take(&mut self.state().news);
        let of = |wanted: bool| {
            let told = news.iter().filter(move |(_, refused)| **refused == wanted);
            told.map(|(address, _)| *address).collect()
        };
        (of(true), of(false))
    }

    /// What was taken could not be told: it is news again, but for addresses of which there is something newer.
    pub fn put_back(&self, refused: &[SocketAddr], reached: &[SocketAddr]) {
        let told = |wanted: bool| move |address: &SocketAddr| (*address, wanted);
        let all = refused
            .iter()
            .map(told(true))
            .chain(reached.iter().map(told(false)));
        let mut state = self.state();
        for (address, refused) in all {
            state.news.entry(address).or_insert(refused);
        }
        while state.news.len() > NEWS_MAX {
            state.news.pop_last();
        }
    }

    #[cold]
    fn clear(&self, address: SocketAddr) {
        let mut state = self.state();
        if state.refusing.remove(&address) {
            state.news.insert(address, false);
            self.count.store(state.refusing.len(), Ordering::Relaxed);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const ADDRESSES_MAX: usize = 256;
/// Not told yet, while nobody can be told.
const NEWS_MAX: usize = 2 * ADDRESSES_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_the_last_of_each() {
        let witness = Witness::default();
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        witness.reached(at(1));
        witness.refused(at(1));
        witness.refused(at(2));
        witness.reached(at(2));
        assert_eq!(witness.take(), (vec![at(1)], vec![at(2)]));
        assert_eq!(witness.take(), (vec![], vec![]));
        witness.reached(at(1));
        assert_eq!(witness.take(), (vec![], vec![at(1)]));
    }

    #[test]
    fn what_could_not_be_told_is_told_again_unless_it_is_out_of_date() {
        let witness = Witness::default();
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        witness.refused(at(1));
        witness.refused(at(2));
        let (refused, reached) = witness.take();
        witness.reached(at(2));
        witness.put_back(&refused, &reached);
        assert_eq!(witness.take(), (vec![at(1)], vec![at(2)]));
    }

    #[test]
    fn there_is_a_bound() {
        let witness = Witness::default();
        for port in 1..1_000 {
            witness.refused(SocketAddr::from(([127, 0, 0, 1], port)));
        }
        assert_eq!(witness.take().0.len(), ADDRESSES_MAX);
    }
}
