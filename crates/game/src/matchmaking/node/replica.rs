//! A shard's log with the ledger that it comes to: what a standby keeps, and what an owner starts from.

use std::path::Path;

use crate::matchmaking::{
    ledger::{Entry, Impossible, Ledger, wire},
    log::{Checkpoint, Log, LogError, Position, Record},
    standby::link::Shipped,
};

#[derive(Debug)]
pub struct Replica {
    pub log: Log,
    pub ledger: Ledger,
}

#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Impossible(#[from] Impossible),
    #[error("record {first} holds an entry that isn't ours")]
    Foreign { first: u64 },
    #[error("the state at {seq} can't be read")]
    State { seq: u64 },
}

impl ReplicaError {
    /// Of a connection, not of this replica: it may go on with another.
    pub fn is_passing(&self) -> bool {
        let refused =
            |error: &LogError| matches!(error, LogError::Fenced { .. } | LogError::Gap { .. });
        match self {
            ReplicaError::Log(error) => refused(error),
            ReplicaError::State { .. } => true,
            ReplicaError::Impossible(_) | ReplicaError::Foreign { .. } => false,
        }
    }
}

impl Replica {
    /// Reads a directory. Blocks for as long as its log is.
    ///
    /// # Errors
    /// When it is damaged, in use, or not this shard's.
    pub fn open(directory: &Path) -> Result<Replica, ReplicaError> {
        let (log, recovered) = Log::open(directory)?;
        if recovered.cut_bytes > 0 {
            let bytes = recovered.cut_bytes;
            tracing::info!(directory = %directory.display(), bytes, "a torn record was cut off");
        }
        let mut ledger = match &recovered.checkpoint {
            Some(checkpoint) => restored(checkpoint)?,
            None => Ledger::new(),
        };
        for record in &recovered.records {
            apply(&mut ledger, record)?;
        }
        Ok(Replica { log, ledger })
    }

    pub fn position(&self) -> Position {
        self.log.position()
    }

    /// Puts on disk what an owner sent, and says how far the disk is then.
    ///
    /// # Errors
    /// See [`ReplicaError::is_passing`].
    pub fn take(&mut self, shipped: Shipped, checkpoint_bytes: u64) -> Result<u64, ReplicaError> {
        match shipped {
            Shipped::Beat => {}
            Shipped::Record(record) => {
                self.log.append(&record)?;
                apply(&mut self.ledger, &record)?;
                if self.log.segment_bytes() > checkpoint_bytes {
                    self.log.checkpoint(self.ledger.snapshot())?;
                }
            }
            Shipped::State(checkpoint) => {
                let ledger = restored(&checkpoint)?;
                self.log.install(&checkpoint)?;
                self.ledger = ledger;
            }
        }
        Ok(self.log.position().seq)
    }
}

fn restored(checkpoint: &Checkpoint) -> Result<Ledger, ReplicaError> {
    let seq = checkpoint.position.seq;
    let ledger = Ledger::restore(&checkpoint.state).filter(|ledger| ledger.seq() == seq);
    ledger.ok_or(ReplicaError::State { seq })
}

/// Applies a record's entries.
///
/// # Errors
/// When they aren't ours, or can't follow.
pub fn apply(ledger: &mut Ledger, record: &Record) -> Result<(), ReplicaError> {
    let first = record.first;
    let mut reader = wire::Reader(record.body());
    let mut moved = Vec::new();
    for _ in 0..record.count {
        let entry = Entry::decode(&mut reader).ok_or(ReplicaError::Foreign { first })?;
        ledger.apply(&entry, &mut moved)?;
        moved.clear();
    }
    match reader.0.is_empty() {
        true => Ok(()),
        false => Err(ReplicaError::Foreign { first }),
    }
}
