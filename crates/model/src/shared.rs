//! A sorted map whose versions share what does not change: a clone is one pointer, a change copies one chunk of entries
//! and the list of chunks, and two versions are compared chunk by chunk, by pointer first.
//!
//! Made for values that are published again and again (worlds, meshes, snapshots), where a change must cost what changed.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::iter::Peekable;
use std::ops::Index;
use std::sync::Arc;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// Entries in the order of their keys, each key once. No chunk is empty.
pub struct SharedMap<K, V> {
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

/// A key whose value differs between two versions; at least one side is there.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference<'a, K, V> {
    pub key: &'a K,
    pub before: Option<&'a V>,
    pub after: Option<&'a V>,
}

impl<K, V> SharedMap<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether both are the very same version; false says nothing.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }

    pub fn iter(&self) -> Iter<'_, K, V> {
        self.chunks.iter().flat_map(entries)
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// The entry whose key `order` calls equal; `order` compares a key with what is looked for.
    pub fn find(&self, order: impl Fn(&K) -> Ordering) -> Option<(&K, &V)> {
        let (chunk, place) = self.place(&order);
        let (key, value) = self.chunks.get(chunk)?.get(place.ok()?)?;
        Some((key, value))
    }

    /// Entries from the first whose key is not less than what is looked for; `order` may call several keys equal.
    pub fn starting_at(&self, order: impl Fn(&K) -> Ordering) -> impl Iterator<Item = (&K, &V)> {
        let is_less = |(key, _): &(K, V)| order(key) == Ordering::Less;
        let begins_before = |chunk: &Chunk<K, V>| chunk.first().is_some_and(is_less);
        let chunk = self.chunks.partition_point(begins_before).saturating_sub(1);
        let chunks = self.chunks.get(chunk..).unwrap_or_default();
        let skipped = chunks.first().map_or(0, |c| c.partition_point(is_less));
        chunks.iter().flat_map(entries).skip(skipped)
    }

    /// Chunk, and the place in it or where it would be; the chunk may be one past the last only if there is none.
    fn place(&self, order: &impl Fn(&K) -> Ordering) -> (usize, Result<usize, usize>) {
        let begins_after = |chunk: &Chunk<K, V>| {
            chunk
                .first()
                .is_some_and(|(key, _)| order(key) != Ordering::Greater)
        };
        let chunk = self.chunks.partition_point(begins_after).saturating_sub(1);
        let within = self.chunks.get(chunk);
        let place = within.map_or(Err(0), |c| c.binary_search_by(|(key, _)| order(key)));
        (chunk, place)
    }
}

fn entries<K, V>(chunk: &Chunk<K, V>) -> Entries<'_, K, V> {
    chunk.iter().map(|(key, value)| (key, value))
}

type Entries<'a, K, V> =
    std::iter::Map<std::slice::Iter<'a, (K, V)>, fn(&'a (K, V)) -> (&'a K, &'a V)>;
pub type Iter<'a, K, V> = std::iter::FlatMap<
    std::slice::Iter<'a, Chunk<K, V>>,
    Entries<'a, K, V>,
    fn(&'a Chunk<K, V>) -> Entries<'a, K, V>,
>;

impl<K: Ord, V> SharedMap<K, V> {
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.find(|probe| probe.borrow().cmp(key))
            .map(|(_, value)| value)
    }

    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Keys that one of both has alone, or whose values are not `same`; in order. Costs what differs, and the number of
    /// chunks.
    pub fn differences<'a>(
        &'a self,
        before: &'a Self,
        same: impl Fn(&V, &V) -> bool + 'a,
    ) -> impl Iterator<Item = Difference<'a, K, V>> {
        let mut old = Cursor::new(if self.same(before) {
            &[]
        } else {
            &before.chunks
        });
        let mut new = Cursor::new(if self.same(before) { &[] } else { &self.chunks });
        std::iter::from_fn(move || {
            loop {
                while old.skip_shared(&mut new) {}
                let order = match (old.entry(), new.entry()) {
                    (None, None) => return None,
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some((a, _)), Some((b, _))) => a.cmp(b),
                };
                let before = (order != Ordering::Greater).then(|| old.next()).flatten();
                let after = (order != Ordering::Less).then(|| new.next()).flatten();
                let is_same = matches!((before, after), (Some((_, a)), Some((_, b))) if same(a, b));
                let key = after.or(before).map(|(key, _)| key);
                if let Some(key) = key.filter(|_| !is_same) {
                    let (before, after) = (before.map(|(_, v)| v), after.map(|(_, v)| v));
                    return Some(Difference { key, before, after });
                }
            }
        })
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Returns what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (at, place) = self.place(&|probe: &K| probe.cmp(&key));
        let chunks = Arc::make_mut(&mut self.chunks);
        let is_last = at + 1 >= chunks.len();
        let Some(chunk) = chunks.get_mut(at) else {
            self.len += 1;
            chunks.push(Arc::new(vec![(key, value)]));
            return None;
        };
        let place = match place {
            Ok(place) => {
                let entry = Arc::make_mut(chunk).get_mut(place)?;
                return Some(std::mem::replace(&mut entry.1, value));
            }
            Err(place) => place,
        };
        self.len += 1;
        if chunk.len() < CHUNK_MAX {
            Arc::make_mut(chunk).insert(place, (key, value));
        } else if is_last && place == chunk.len() {
            // In order: full chunks stay full.
            chunks.push(Arc::new(vec![(key, value)]));
        } else {
            let lower = Arc::make_mut(chunk);
            let mut upper = lower.split_off(CHUNK_MAX / 2);
            if place <= lower.len() {
                lower.insert(place, (key, value));
            } else {
                upper.insert(place - lower.len(), (key, value));
            }
            chunks.insert(at + 1, Arc::new(upper));
        }
        None
    }

    /// Returns what was there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (at, place) = self.place(&|probe: &K| probe.borrow().cmp(key));
        let place = place.ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(chunks.get_mut(at)?);
        let (_, value) = chunk.remove(place);
        self.len -= 1;
        let left = chunk.len();
        // Removals must not leave a trail of tiny chunks.
        let next = chunks.get(at + 1).map_or(CHUNK_MAX, |next| next.len());
        if left == 0 {
            chunks.remove(at);
        } else if left + next <= CHUNK_MAX / 2 {
            let next = chunks.remove(at + 1);
            if let Some(chunk) = chunks.get_mut(at) {
                Arc::make_mut(chunk).extend(next.iter().cloned());
            }
        }
        Some(value)
    }

    /// For a change in place; the chunk of the entry is copied if it is shared.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (at, place) = self.place(&|probe: &K| probe.borrow().cmp(key));
        let place = place.ok()?;
        let chunk = Arc::make_mut(&mut self.chunks).get_mut(at)?;
        Arc::make_mut(chunk).get_mut(place).map(|(_, value)| value)
    }
}

/// Walks a list of chunks.
struct Cursor<'a, K, V> {
    chunks: Peekable<std::slice::Iter<'a, Chunk<K, V>>>,
    within: &'a [(K, V)],
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(chunks: &'a [Chunk<K, V>]) -> Self {
        Self {
            chunks: chunks.iter().peekable(),
            within: &[],
        }
    }

    /// Passes over the chunk that both are about to enter, if it is the same one. Keys are sorted, so both come to a
    /// shared chunk at the same time.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        if !self.within.is_empty() || !other.within.is_empty() {
            return false;
        }
        let shared = match (self.chunks.peek(), other.chunks.peek()) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if shared {
            self.chunks.next();
            other.chunks.next();
        }
        shared
    }

    fn entry(&mut self) -> Option<&'a (K, V)> {
        if self.within.is_empty() {
            self.within = self.chunks.next()?;
        }
        self.within.first()
    }

    fn next(&mut self) -> Option<(&'a K, &'a V)> {
        let (key, value) = self.entry()?;
        self.within = &self.within[1..];
        Some((key, value))
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            chunks: Arc::clone(&self.chunks),
            len: self.len,
        }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self {
            chunks: Arc::default(),
            len: 0,
        }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.same(other) || (self.len == other.len && self.iter().eq(other.iter()))
    }
}

impl<K: Eq, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Clone, V: Clone, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    /// As of a `BTreeMap`: for keys that are known to be there.
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the key is in the map")
    }
}

/// Entries of a chunk: a change copies so many, and one pointer per so many others.
const CHUNK_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn changes() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        prop::collection::vec((0..700_u16, prop::option::weighted(0.7, 0..4_u8)), 0..1500)
    }

    fn apply(
        map: &mut SharedMap<u16, u8>,
        model: &mut BTreeMap<u16, u8>,
        changes: &[(u16, Option<u8>)],
    ) {
        for (key, value) in changes {
            match value {
                Some(value) => assert_eq!(map.insert(*key, *value), model.insert(*key, *value)),
                None => assert_eq!(map.remove(key), model.remove(key)),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn it_is_a_sorted_map_and_its_versions_are_told_apart(first in changes(), second in changes()) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            apply(&mut map, &mut model, &first);
            let (before, old) = (map.clone(), model.clone());
            apply(&mut map, &mut model, &second);
            prop_assert!(before.iter().eq(&old) && map.iter().eq(&model));
            prop_assert_eq!((map.len(), before.len()), (model.len(), old.len()));
            prop_assert!(map.chunks.iter().all(|chunk| (1..=CHUNK_MAX).contains(&chunk.len())));
            for key in 0..700 {
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert!(map.starting_at(|probe| probe.cmp(&key)).eq(model.range(key..)));
                let tens = map.starting_at(|probe| (probe / 10).cmp(&(key / 10)));
                prop_assert!(tens.eq(model.range(key / 10 * 10..)));
            }
            let told: Vec<_> = map.differences(&before, |a, b| a == b).collect();
            let expected: Vec<_> = (0..700_u16)
                .filter(|key| old.get(key) != model.get(key))
                .map(|key| (key, old.get(&key), model.get(&key)))
                .collect();
            prop_assert!(told.iter().map(|d| (*d.key, d.before, d.after)).eq(expected));
        }
    }

    #[test]
    fn a_change_copies_one_chunk_and_telling_it_costs_one_chunk() {
        let before: SharedMap<u32, u32> = (0..64_000).map(|n| (n, n)).collect();
        assert_eq!(before.chunks.len(), 1000);
        let mut after = before.clone();
        after.insert(777, 0);
        let shared = after.chunks.iter().zip(before.chunks.iter());
        assert_eq!(shared.filter(|(a, b)| !Arc::ptr_eq(a, b)).count(), 1);
        let compared = std::cell::Cell::new(0);
        let differs = after.differences(&before, |a, b| {
            compared.set(compared.get() + 1);
            a == b
        });
        assert_eq!((differs.count(), compared.get()), (1, 64));
    }
}
