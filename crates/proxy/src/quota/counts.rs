//! What was refused or injected, by policy. Counted only when it happens, so cores share the cells.

use std::sync::atomic::{AtomicU64, Ordering};

use phalanx_model::resource::limit::Priority;

/// Why a policy did not let a request through as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Local,
    Global,
    Shed(Priority),
    Delayed,
    Aborted,
}

impl Refused {
    pub const ALL: [Self; 8] = [
        Self::Local,
        Self::Global,
        Self::Shed(Priority::Low),
        Self::Shed(Priority::Normal),
        Self::Shed(Priority::High),
        Self::Shed(Priority::Critical),
        Self::Delayed,
        Self::Aborted,
    ];

    fn place(self) -> usize {
        match self {
            Self::Local => 0,
            Self::Global => 1,
            Self::Shed(priority) => 2 + priority as usize,
            Self::Delayed => 6,
            Self::Aborted => 7,
        }
    }
}

#[derive(Debug, Default)]
pub struct Counts([AtomicU64; Refused::ALL.len()]);

impl Counts {
    #[inline]
    pub fn count(&self, what: Refused) {
        if let Some(cell) = self.0.get(what.place()) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn of(&self, what: Refused) -> u64 {
        let cell = self.0.get(what.place());
        cell.map_or(0, |cell| cell.load(Ordering::Relaxed))
    }
}
