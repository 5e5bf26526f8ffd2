//! What a shard allows itself, and how much of that can be.

use std::time::Duration;

use crate::matchmaking::{log::SEGMENT_BYTES_MAX, search, standby::PATIENCE};

/// Of [`Limits::outside_max`].
const OUTSIDE_MAX: usize = 1_000_000;

/// What a shard allows itself. All have defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tickets in the search and in proposals at once; more wait outside. Default 100,000.
    pub inside_max: usize,
    /// Tickets in the waiting room; more are refused. Default 100,000.
    pub outside_max: usize,
    /// How long a ticket may wait, outside and inside, before it expires. Default 10 min.
    pub ticket_ttl: Duration,
    /// How long players have to confirm. Default 12 s.
    pub confirm_within: Duration,
    /// How long a room is looked for. Default 10 s.
    pub allocate_within: Duration,
    /// Whether players are asked to confirm. Default true.
    pub ask: bool,
    /// How long results are kept (and at most the newest
    /// [`RESULTS_MAX`](crate::matchmaking::ledger::RESULTS_MAX)). Default 5 min.
    pub keep_results: Duration,
    /// Matches with open seats at once. Default 4,096, which is all that a search takes.
    pub backfills_max: usize,
    /// Tickets that are watched at once. Default 200,000.
    pub watches_max: usize,
    /// Bytes of log after which the state is written as a checkpoint. Default 64 MiB.
    pub checkpoint_bytes: u64,
    /// How long a standby may say nothing before it is no longer waited for. Default 500 ms.
    pub standby_patience: Duration,
}

impl Limits {
    /// # Errors
    /// What is larger than the search takes, or than can be read back.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.inside_max > search::TICKETS_MAX {
            return Err("inside_max is at most 500,000");
        }
        if self.outside_max > OUTSIDE_MAX {
            return Err("outside_max is at most 1,000,000");
        }
        if self.backfills_max > search::BACKFILLS_MAX {
            return Err("backfills_max is at most 4,096");
        }
        if self.checkpoint_bytes > SEGMENT_BYTES_MAX / 4 {
            return Err("checkpoint_bytes is at most 256 MiB");
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            inside_max: 100_000,
            outside_max: 100_000,
            ticket_ttl: Duration::from_secs(600),
            confirm_within: Duration::from_secs(12),
            allocate_within: Duration::from_secs(10),
            ask: true,
            keep_results: Duration::from_secs(300),
            backfills_max: search::BACKFILLS_MAX,
            watches_max: 200_000,
            checkpoint_bytes: 64 << 20,
            standby_patience: PATIENCE,
        }
    }
}
