//! Where standings are kept: in this process, or in a Redis that may die at any time. Readers answer from one snapshot
//! either way. With Redis, a result is counted when it is in a log on disk, and shipped from there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use phalanx_game::board::memory::{Memory, MemoryOptions};
use phalanx_game::board::redis::{self, LiveConfig, RedisBoard, RedisConfig};
use phalanx_game::board::{self, Better, Board, BoardSpec, Kind, Own, PlayerId, Rank};
use phalanx_telemetry::metrics::Exposition;
use tokio::time::{Instant, sleep};

/// Players on the board; the lowest leaves when it is full.
pub const PLAYERS_MAX: usize = 10_000;
/// The greatest rating that the board takes.
pub const RATING_MAX: i64 = 1_000_000;
/// Begins every key in Redis.
const PREFIX: &str = "phalanx-demo:";
/// How long a Redis that was named may take to answer for the first time.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// In the board's folder from when it began empty.
const BEGUN: &str = "begun";

pub enum Store {
    Process(Arc<Memory>),
    Redis(Box<RedisBoard>),
}

impl Store {
    /// Lost with the process.
    pub fn in_process(options: MemoryOptions) -> anyhow::Result<Self> {
        let mut spec = spec();
        spec.season_from_ms = board::now_ms();
        let board = Arc::new(Board::try_new(spec)?);
        Ok(Self::Process(Memory::attach(board, options)))
    }

    /// In the Redis at `url`, by way of a log in `home`. The first time that it is opened with this folder the board
    /// begins empty: players have their first rating again.
    pub async fn in_redis(url: &str, home: &Path) -> anyhow::Result<Self> {
        let board = Arc::new(Board::try_new(spec())?);
        let config = RedisConfig {
            prefix: PREFIX.to_owned(),
            ..RedisConfig::new(url)
        };
        let config = LiveConfig::new(config, Some(home.to_owned()));
        let live = RedisBoard::start(board, config).await?;
        let begun = home.join(BEGUN);
        if !begun.exists() {
            begin_empty(&live).await?;
            std::fs::write(&begun, "").with_context(|| format!("writing {}", begun.display()))?;
        }
        Ok(Self::Redis(Box::new(live)))
    }

    pub fn board(&self) -> &Arc<Board> {
        match self {
            Self::Process(memory) => memory.board(),
            Self::Redis(live) => live.board(),
        }
    }

    /// Publishes what has changed, where no task of its own does.
    pub fn tick(&self) {
        if let Self::Process(memory) = self {
            memory.tick(board::now_ms());
        }
    }

    /// Whether the board knows a player, as far as can be said at once.
    pub fn knows(&self, player: &str) -> bool {
        match self {
            Self::Process(memory) => memory.order(player).is_some(),
            Self::Redis(live) => live
                .board()
                .snapshot()
                .is_some_and(|newest| newest.index(player).is_some()),
        }
    }

    /// A player's score by all results so far; none: not on the board.
    ///
    /// # Errors
    /// When nobody can say.
    pub async fn score(&self, player: &str) -> anyhow::Result<Option<i64>> {
        let now_ms = board::now_ms();
        let order = match self {
            Self::Process(memory) => memory.order(player),
            Self::Redis(live) => {
                let place = live.board().rank(&Own::new(player)?, now_ms).await?;
                if matches!(place.rank, Rank::Unknown) {
                    anyhow::bail!("nobody can say what {player} has while Redis is away");
                }
                place.rank.order()
            }
        };
        let law = self.board().law();
        Ok(order.map(|order| law.score(order, now_ms) as i64))
    }

    /// Adds to a player's score. It survives what this store survives when this returns.
    pub async fn add(&self, player: &str, change: i64) -> anyhow::Result<()> {
        match self {
            Self::Process(memory) => {
                memory.submit(player, change, board::now_ms())?;
            }
            Self::Redis(live) => {
                live.submit(&PlayerId::parse(player)?, change).await?;
            }
        }
        Ok(())
    }

    /// How many results are not on the board's store yet, how often that was away, and whether it is there.
    pub fn behind(&self) -> (u64, u64, bool) {
        match self {
            Self::Process(_) => (0, 0, true),
            Self::Redis(live) => {
                let metrics = live.metrics();
                let is_up = live.board().metrics().store_up;
                (metrics.writes.pending, metrics.openings_total, is_up)
            }
        }
    }

    pub fn write(&self, out: &mut Exposition) {
        board::write([&**self.board()], out);
        if let Self::Redis(live) = self {
            redis::write_metrics([&**live], out);
        }
    }
}

fn spec() -> BoardSpec {
    BoardSpec {
        score_max: RATING_MAX,
        top: PLAYERS_MAX,
        // A rating goes up and down: a sum of what each match changed.
        ..BoardSpec::new("ratings", Kind::Sum(Better::Higher))
    }
}

/// Waits for Redis, and leaves behind what another demo left there.
async fn begin_empty(live: &RedisBoard) -> anyhow::Result<()> {
    let deadline = Instant::now() + FIRST_ANSWER_MAX;
    let mut epoch = None;
    loop {
        let newest = live.board().snapshot();
        let newest = newest.filter(|_| live.board().metrics().store_up);
        match (newest, epoch) {
            (Some(newest), None) if newest.total() > 0 => {
                let old = newest.version().epoch();
                epoch = Some(live.reset(old).await.context("emptying the board")?.epoch());
            }
            (Some(_), None) => return Ok(()),
            (Some(newest), Some(epoch)) if newest.version().epoch() == epoch => return Ok(()),
            _ => {}
        }
        if Instant::now() > deadline {
            let failures = live.metrics().failures_total.into_iter();
            let failures = failures.filter(|(_, count)| *count > 0);
            let failures: Vec<_> = failures.map(|(failure, _)| failure.name()).collect();
            anyhow::bail!(
                "the leaderboard's Redis gave no answer in {FIRST_ANSWER_MAX:?} ({})",
                failures.join(", ")
            );
        }
        sleep(LOOK_EVERY).await;
    }
}
