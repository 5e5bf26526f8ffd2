//! Names of results that were counted, so that one that comes again counts once: the newest, in this process.

use std::collections::{HashMap, VecDeque};

use crate::board::PlayerId;

/// Names of one board.
const NAMES_MAX: usize = 65_536;

/// By hashes of 128 bits: by chance two are never one.
#[derive(Default)]
pub struct Names {
    /// Whether it was counted, or is under way.
    known: HashMap<u128, bool>,
    /// Those that were counted, oldest first.
    order: VecDeque<u128>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    New,
    UnderWay,
    Counted,
}

impl Names {
    pub fn of(player: &PlayerId, id: &str) -> u128 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(player.as_str().as_bytes());
        // In no player's name.
        hasher.update(&[0]);
        hasher.update(id.as_bytes());
        hasher.digest128()
    }

    /// What is known of a name; from now on a new one is under way until [`Names::end`].
    pub fn take(&mut self, name: u128) -> Known {
        match self.known.get(&name) {
            Some(true) => Known::Counted,
            Some(false) => Known::UnderWay,
            None => {
                self.known.insert(name, false);
                Known::New
            }
        }
    }

    pub fn end(&mut self, name: u128, counted: bool) {
        if !counted {
            self.known.remove(&name);
            return;
        }
        self.known.insert(name, true);
        self.order.push_back(name);
        while self.order.len() > NAMES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_new_under_way_and_counted_and_the_oldest_is_forgotten() {
        let mut names = Names::default();
        let ann = PlayerId::parse("ann").unwrap();
        let first = Names::of(&ann, "m1");
        assert_ne!(first, Names::of(&PlayerId::parse("bob").unwrap(), "m1"));
        assert_eq!(names.take(first), Known::New);
        assert_eq!(names.take(first), Known::UnderWay);
        names.end(first, false);
        assert_eq!(names.take(first), Known::New);
        names.end(first, true);
        assert_eq!(names.take(first), Known::Counted);
        for number in 0..NAMES_MAX {
            let name = Names::of(&ann, &format!("n{number}"));
            assert_eq!(names.take(name), Known::New);
            names.end(name, true);
        }
        assert_eq!(names.take(first), Known::New);
        assert!(names.known.len() <= NAMES_MAX + 1);
    }
}
