//! What is known under each name, in order of the names. Thousands of sessions hold few each, so they lie side by side: a map
//! of the library's makes room for eleven at once.

/// A sorted list that grows by a quarter.
#[derive(Debug)]
pub(super) struct ByName<V>(Vec<(String, V)>);

impl<V> Default for ByName<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> ByName<V> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, name: &str) -> Option<&V> {
        let at = self.find(name).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut V> {
        let at = self.find(name).ok()?;
        self.0.get_mut(at).map(|(_, value)| value)
    }

    /// Names in ascending order cost nothing but themselves.
    pub(super) fn insert(&mut self, name: String, value: V) {
        match self.find(&name) {
            Ok(at) => {
                if let Some((_, known)) = self.0.get_mut(at) {
                    *known = value;
                }
            }
            Err(at) => {
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(self.0.len().div_ceil(4).max(1));
                }
                self.0.insert(at, (name, value));
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Ok(at) = self.find(name) {
            self.0.remove(at);
        }
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&String, &mut V) -> bool) {
        self.0.retain_mut(|(name, value)| keep(name, value));
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|(name, _)| name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&String, &mut V)> {
        self.0.iter_mut().map(|(name, value)| (&*name, value))
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        // What comes in order comes last.
        if self.0.last().is_some_and(|(last, _)| last.as_str() < name) {
            return Err(self.0.len());
        }
        self.0
            .binary_search_by(|(known, _)| known.as_str().cmp(name))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec(("[a-d]{1,2}", prop::option::of(0..9)), 0..60)) {
            let (mut ours, mut map) = (ByName::default(), BTreeMap::new());
            for (name, value) in steps {
                match value {
                    Some(value) => {
                        ours.insert(name.clone(), value);
                        map.insert(name.clone(), value);
                    }
                    None => {
                        ours.remove(&name);
                        map.remove(&name);
                    }
                }
                prop_assert_eq!(ours.get(&name), map.get(&name));
                prop_assert!(ours.iter().eq(map.iter()));
            }
        }
    }
}
