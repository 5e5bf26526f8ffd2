//! A table with places that are used again. It grows by chunks, so that no packet pays for copying what is there.

/// Places are numbers below [`NONE`].
pub struct Slots<T> {
    chunks: Vec<Box<[Option<T>]>>,
    free: Vec<u32>,
    len: usize,
}

/// No place.
pub const NONE: u32 = u32::MAX;
const CHUNK: usize = 1024;

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Slots<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Places that ever were.
    pub fn end(&self) -> u32 {
        u32::try_from(self.chunks.len() * CHUNK).unwrap_or(NONE)
    }

    pub fn insert(&mut self, value: T) -> u32 {
        if self.free.is_empty() {
            let first = self.end();
            self.chunks.push((0..CHUNK).map(|_| None).collect());
            // The lowest first.
            self.free.extend((first..self.end()).rev());
        }
        let place = self.free.pop().unwrap_or(NONE);
        if let Some(slot) = self.slot(place) {
            *slot = Some(value);
            self.len += 1;
        }
        place
    }

    pub fn remove(&mut self, place: u32) -> Option<T> {
        let value = self.slot(place)?.take()?;
        self.free.push(place);
        self.len -= 1;
        Some(value)
    }

    #[inline]
    pub fn get(&self, place: u32) -> Option<&T> {
        let place = place as usize;
        self.chunks.get(place / CHUNK)?.get(place % CHUNK)?.as_ref()
    }

    #[inline]
    pub fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        self.slot(place)?.as_mut()
    }

    #[inline]
    fn slot(&mut self, place: u32) -> Option<&mut Option<T>> {
        let place = place as usize;
        self.chunks.get_mut(place / CHUNK)?.get_mut(place % CHUNK)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let all = self.chunks.iter().flatten().enumerate();
        all.filter_map(|(place, slot)| Some((place as u32, slot.as_ref()?)))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        let all = self.chunks.iter_mut().flatten().enumerate();
        all.filter_map(|(place, slot)| Some((place as u32, slot.as_mut()?)))
    }
}
