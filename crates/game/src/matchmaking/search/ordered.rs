//! An ordered set in buckets of bounded size: insertion and removal move at most one bucket, and a walk from any key in
//! either direction reads memory in order. Keys are small and copied (8 to 24 bytes).

const BUCKET_MAX: usize = 128;

#[derive(Debug)]
pub(super) struct Ordered<K> {
    /// The least key of each bucket; no bucket is empty.
    firsts: Vec<K>,
    buckets: Vec<Vec<K>>,
}

impl<K> Default for Ordered<K> {
    fn default() -> Self {
        Self {
            firsts: Vec::new(),
            buckets: Vec::new(),
        }
    }
}

impl<K: Ord + Copy> Ordered<K> {
    /// False if it was there.
    pub fn insert(&mut self, key: K) -> bool {
        if self.buckets.is_empty() {
            self.firsts.push(key);
            self.buckets.push(vec![key]);
            return true;
        }
        let at = self.bucket(&key);
        let bucket = &mut self.buckets[at];
        let Err(place) = bucket.binary_search(&key) else {
            return false;
        };
        bucket.insert(place, key);
        if place == 0 {
            self.firsts[at] = key;
        }
        if bucket.len() > BUCKET_MAX {
            let upper = bucket.split_off(BUCKET_MAX / 2);
            self.firsts.insert(at + 1, upper[0]);
            self.buckets.insert(at + 1, upper);
        }
        true
    }

    /// False if it wasn't there.
    pub fn remove(&mut self, key: &K) -> bool {
        if self.buckets.is_empty() {
            return false;
        }
        let at = self.bucket(key);
        let Ok(place) = self.buckets[at].binary_search(key) else {
            return false;
        };
        self.buckets[at].remove(place);
        match self.buckets[at].first() {
            None => {
                self.firsts.remove(at);
                self.buckets.remove(at);
            }
            Some(first) => {
                self.firsts[at] = *first;
                self.merge(at);
            }
        }
        true
    }

    /// Keys from `key` on, ascending.
    pub fn up(&self, key: &K) -> Up<'_, K> {
        self.around(key).0
    }

    /// Keys from `key` on, ascending, and those below it, descending.
    pub fn around(&self, key: &K) -> (Up<'_, K>, Down<'_, K>) {
        let set = self;
        let (bucket, at) = self.seek(key);
        (Up { set, bucket, at }, Down { set, bucket, at })
    }

    pub fn iter(&self) -> impl Iterator<Item = K> + '_ {
        self.buckets.iter().flatten().copied()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let keys: usize = self.buckets.iter().map(Vec::capacity).sum();
        (keys + self.firsts.capacity()) * size_of::<K>()
            + self.buckets.capacity() * size_of::<Vec<K>>()
    }

    fn bucket(&self, key: &K) -> usize {
        self.firsts
            .partition_point(|first| first <= key)
            .saturating_sub(1)
    }

    /// Where the first key that isn't below `key` is: its bucket and its place there (which may be the bucket's end).
    fn seek(&self, key: &K) -> (usize, usize) {
        let at = self.bucket(key);
        let place = self
            .buckets
            .get(at)
            .map_or(0, |bucket| bucket.partition_point(|other| other < key));
        (at, place)
    }

    fn merge(&mut self, at: usize) {
        let Some(next) = self.buckets.get(at + 1) else {
            return;
        };
        if self.buckets[at].len() + next.len() <= BUCKET_MAX / 2 {
            let next = self.buckets.remove(at + 1);
            self.firsts.remove(at + 1);
            self.buckets[at].extend(next);
        }
    }
}

pub(super) struct Up<'a, K> {
    set: &'a Ordered<K>,
    bucket: usize,
    at: usize,
}

impl<K: Copy> Iterator for Up<'_, K> {
    type Item = K;

    #[inline]
    fn next(&mut self) -> Option<K> {
        loop {
            let bucket = self.set.buckets.get(self.bucket)?;
            if let Some(key) = bucket.get(self.at) {
                self.at += 1;
                return Some(*key);
            }
            self.bucket += 1;
            self.at = 0;
        }
    }
}

pub(super) struct Down<'a, K> {
    set: &'a Ordered<K>,
    bucket: usize,
    at: usize,
}

impl<K: Copy> Iterator for Down<'_, K> {
    type Item = K;

    #[inline]
    fn next(&mut self) -> Option<K> {
        loop {
            if self.at > 0 {
                self.at -= 1;
                return self.set.buckets.get(self.bucket)?.get(self.at).copied();
            }
            self.bucket = self.bucket.checked_sub(1)?;
            self.at = self.set.buckets.get(self.bucket)?.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::dice::Dice;

    #[test]
    fn behaves_as_a_set_under_any_mix_of_calls() {
        let mut dice = Dice::new(3);
        let (mut ours, mut theirs) = (Ordered::default(), BTreeSet::new());
        for round in 0..20_000 {
            let key = dice.below(1_500);
            let grows = (round / 4_000) % 2 == 0;
            if dice.chance(if grows { 3 } else { 1 }, 4) {
                assert_eq!(ours.insert(key), theirs.insert(key));
            } else {
                assert_eq!(ours.remove(&key), theirs.remove(&key));
            }
            assert_eq!(ours.iter().count(), theirs.len());
            if round % 50 == 0 {
                let from = dice.below(1_600);
                assert!(ours.up(&from).eq(theirs.range(from..).copied()));
                assert!(ours.around(&from).1.eq(theirs.range(..from).rev().copied()));
                assert!(ours.iter().eq(theirs.iter().copied()));
                assert!(ours.bytes() >= theirs.len() * 8);
            }
        }
    }
}
