//! Which rules of a host a path can meet at all: where there are many, they are looked up instead of being asked one after
//! the other. What comes out is what asking them in order gives.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::{CompiledRule, PathTest, TextHasher};

type Places = HashMap<Box<str>, Vec<u32>, BuildHasherDefault<TextHasher>>;

/// Places of rules, ascending in each list.
#[derive(Debug, Default)]
pub(super) struct PathIndex {
    exact: Places,
    /// By what must stand before a slash or the end; nothing for all paths.
    prefixes: Places,
    /// Lengths below 64 that prefixes have, as bits; those above are looked for always.
    lengths: u64,
    /// By regular expressions: any path may meet them.
    others: Vec<u32>,
}

impl PathIndex {
    /// None where asking one after the other is as fast.
    pub(super) fn of<A>(rules: &[CompiledRule<A>]) -> Option<Self> {
        if rules.len() < RULES_MIN {
            return None;
        }
        let mut index = Self::default();
        for (place, rule) in (0..).zip(rules) {
            match &rule.path {
                PathTest::All => index.add_prefix("", place),
                PathTest::Prefix(prefix) => index.add_prefix(prefix, place),
                PathTest::Exact(path) => index.exact.entry(path.clone()).or_default().push(place),
                PathTest::Regex(_) => index.others.push(place),
            }
        }
        Some(index)
    }

    fn add_prefix(&mut self, prefix: &str, place: u32) {
        self.lengths |= bit(prefix.len());
        self.prefixes.entry(prefix.into()).or_default().push(place);
    }

    /// The places, in order, of rules whose path may be this one; none for a path of too many parts.
    pub(super) fn candidates(&self, path: &str) -> Option<Candidates<'_>> {
        let mut found = Candidates::default();
        found.add(&self.others)?;
        if let Some(places) = self.exact.get(path) {
            found.add(places)?;
        }
        let slashes = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/');
        for end in slashes.map(|(at, _)| at).chain([path.len()]) {
            if self.lengths & bit(end) != 0
                && let Some(prefix) = path.get(..end)
                && let Some(places) = self.prefixes.get(prefix)
                && (end > 0 || path.starts_with('/'))
            {
                found.add(places)?;
            }
        }
        Some(found)
    }
}

fn bit(length: usize) -> u64 {
    1 << length.min(63)
}

/// Several ascending lists, read as one.
#[derive(Default)]
pub(super) struct Candidates<'i> {
    lists: [&'i [u32]; LISTS_MAX],
    count: usize,
}

impl<'i> Candidates<'i> {
    fn add(&mut self, places: &'i [u32]) -> Option<()> {
        if !places.is_empty() {
            *self.lists.get_mut(self.count)? = places;
            self.count += 1;
        }
        Some(())
    }
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let lists = self.lists.get_mut(..self.count)?;
        let next = lists.iter_mut().filter(|list| !list.is_empty());
        let next = next.min_by_key(|list| list.first().copied())?;
        let (place, rest) = next.split_first()?;
        *next = rest;
        Some(*place as usize)
    }
}

/// From so many rules on a look-up is faster.
const RULES_MIN: usize = 8;
/// Prefixes of one path that rules have, among others.
const LISTS_MAX: usize = 12;
