//! What survives a crash: a disk that may tear what it writes, and the lease service.

use super::*;

/// As the store has it.
#[derive(Default)]
pub struct Service {
    pub holder: Option<(usize, u64)>,
    pub roll: Option<Roll>,
    pub epoch: u64,
}

/// What survives a crash.
#[derive(Default)]
pub struct Disk {
    pub base: Option<Checkpoint>,
    pub records: Vec<Record>,
    /// Being written: (done at, what).
    pub writing: VecDeque<(u64, Record)>,
}

impl Disk {
    pub fn position(&self) -> Position {
        let base = self
            .base
            .as_ref()
            .map_or_else(Position::default, |base| base.position);
        self.records.last().map_or(base, Record::position)
    }

    pub fn ledger(&self) -> Ledger {
        let base = self
            .base
            .as_ref()
            .map(|base| Ledger::restore(&base.state).unwrap());
        let mut ledger = base.unwrap_or_default();
        for record in &self.records {
            apply(&mut ledger, record).unwrap();
        }
        ledger
    }

    /// What was being written is whole, or torn and cut off.
    pub fn crash(&mut self, dice: &mut Dice) {
        if let Some((_, record)) = self.writing.pop_front()
            && dice.chance(1, 2)
        {
            self.records.push(record);
        }
        self.writing.clear();
    }

    pub fn finish(&mut self) {
        for (_, record) in self.writing.drain(..) {
            self.records.push(record);
        }
    }
}
