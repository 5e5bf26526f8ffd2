//! What all comparisons of a sidecar may hold while answers are under way or wait to be compared: a share is taken before the
//! first byte, and what turns out not to be needed is given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes in use.
#[derive(Clone, Default)]
pub(super) struct Bounds(Arc<AtomicUsize>);

/// A share, given back when dropped.
pub(super) struct Room {
    of: Bounds,
    bytes: usize,
}

impl Bounds {
    /// None where so much is not left.
    pub(super) fn take(&self, bytes: usize) -> Option<Room> {
        let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= ROOM_MAX);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        self.0.fetch_update(set, get, add).ok()?;
        Some(Room {
            of: self.clone(),
            bytes,
        })
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Room {
    /// A part of it, for another; as much as there is.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            of: self.of.clone(),
            bytes,
        }
    }

    /// No more than this is needed.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let rest = self.bytes.saturating_sub(bytes);
        drop(self.split(rest));
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Of one sidecar.
pub(super) const ROOM_MAX: usize = 8 << 20;
