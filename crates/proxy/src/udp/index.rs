//! Places in a [`super::slots::Slots`] by hash: 8 bytes each, no keys. Open addressing with linear probing; what is removed
//! leaves no trace. Hashes are keyed by whoever makes them, so that nobody outside can choose them.

use super::slots::NONE;

#[derive(Default)]
pub struct Index {
    cells: Vec<Cell>,
    len: usize,
}

#[derive(Clone, Copy)]
struct Cell {
    hash: u32,
    place: u32,
}

const FREE: Cell = Cell {
    hash: 0,
    place: NONE,
};

impl Index {
    /// The place with this hash that `is_it`.
    #[inline]
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let hash = short(hash);
        let mask = self.cells.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let cell = self.cells.get(at)?;
            if cell.place == NONE {
                return None;
            }
            if cell.hash == hash && is_it(cell.place) {
                return Some(cell.place);
            }
            at = (at + 1) & mask;
        }
    }

    pub fn insert(&mut self, hash: u64, place: u32) {
        if (self.len + 1) * 4 > self.cells.len() * 3 {
            self.grow();
        }
        self.put(Cell {
            hash: short(hash),
            place,
        });
        self.len += 1;
    }

    pub fn remove(&mut self, hash: u64, place: u32) {
        let hash = short(hash);
        let Some(mask) = self.cells.len().checked_sub(1) else {
            return;
        };
        let mut at = hash as usize & mask;
        loop {
            match self.cells.get(at) {
                None => return,
                Some(cell) if cell.place == NONE => return,
                Some(cell) if cell.place == place && cell.hash == hash => break,
                Some(_) => at = (at + 1) & mask,
            }
        }
        self.len -= 1;
        // Whoever stands behind and would rather stand here moves up.
        let (mut hole, mut next) = (at, (at + 1) & mask);
        while let Some(cell) = self.cells.get(next).copied() {
            if cell.place == NONE {
                break;
            }
            let home = cell.hash as usize & mask;
            let (from_home, from_hole) = (
                next.wrapping_sub(home) & mask,
                next.wrapping_sub(hole) & mask,
            );
            if from_home >= from_hole {
                self.set(hole, cell);
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.set(hole, FREE);
    }

    fn set(&mut self, at: usize, cell: Cell) {
        if let Some(slot) = self.cells.get_mut(at) {
            *slot = cell;
        }
    }

    fn put(&mut self, cell: Cell) {
        let mask = self.cells.len().wrapping_sub(1);
        let mut at = cell.hash as usize & mask;
        while self.cells.get(at).is_some_and(|there| there.place != NONE) {
            at = (at + 1) & mask;
        }
        self.set(at, cell);
    }

    fn grow(&mut self) {
        let size = (self.cells.len() * 2).max(SIZE_MIN);
        let before = std::mem::replace(&mut self.cells, vec![FREE; size]);
        let there = before.into_iter().filter(|cell| cell.place != NONE);
        there.for_each(|cell| self.put(cell));
    }
}

#[inline]
fn short(hash: u64) -> u32 {
    (hash ^ hash >> 32) as u32
}

const SIZE_MIN: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn an_index_finds_what_is_in_it_and_nothing_else_whatever_came_and_went() {
        let mut rng = fastrand::Rng::with_seed(11);
        for hashes in [3, 40, 1 << 30] {
            let (mut index, mut model) = (Index::default(), BTreeMap::new());
            for place in 0..6_000_u32 {
                let hash = rng.u64(0..hashes) << (rng.u32(0..2) * 31);
                if rng.u8(..) < 150 {
                    index.insert(hash, place);
                    model.insert(place, hash);
                } else if let Some((&place, &hash)) = model.range(rng.u32(0..=place)..).next() {
                    index.remove(hash, place);
                    model.remove(&place);
                }
                if model.len() > 300 {
                    let (place, hash) = model.pop_first().unwrap();
                    index.remove(hash, place);
                    assert_eq!(index.find(hash, |at| at == place), None);
                }
            }
            assert_eq!(index.len, model.len());
            for (place, hash) in model {
                assert_eq!(index.find(hash, |at| at == place), Some(place));
            }
            assert_eq!(index.find(rng.u64(..), |_| false), None);
        }
    }
}
