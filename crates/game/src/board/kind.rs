//! What a board is: its name, its kind, the range of its scores, how many places it keeps, how old it may be told.
//! A [`BoardSpec`] comes from the studio's configuration and is checked once, by [`Law::try_new`](super::Law::try_new)
//! and [`Board::try_new`](super::Board::try_new); a [`PlayerId`] comes from anywhere and is checked where it enters.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;

/// A snapshot never takes more than this, whatever the configuration says.
pub const SNAPSHOT_BYTES_MAX: usize = 1 << 20;
/// Below this a board would hold nothing.
pub const SNAPSHOT_BYTES_MIN: usize = 32 << 10;
/// Places that a snapshot can index (its index has 16 bits per slot).
pub const TOP_MAX: usize = 65_000;
/// Bytes of a board's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of a player's id.
pub const PLAYER_BYTES_MAX: usize = 64;
/// Versions that may stay readable.
pub const VERSIONS_MAX: usize = 64;
/// Rows of one page.
pub const PAGE_MAX: usize = 200;
/// Players on either side of the one asked for.
pub const RADIUS_MAX: usize = 50;
/// Friends in one question.
pub const FRIENDS_MAX: usize = 200;
/// A decayed board's half-life: below a minute its range (2^23 half-lives) would be shorter than 15 years.
pub const HALF_LIFE_MIN_MS: u64 = 60_000;

/// A player as the store knows her: 1–64 bytes of UTF-8 without control characters. Among equal scores and times, ids
/// decide, byte by byte, as they do in Redis.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PlayerId(Box<str>);

impl PlayerId {
    pub fn parse(text: &str) -> Result<Self, BadPlayer> {
        Self::check(text).map(|()| Self(text.into()))
    }

    /// What [`parse`](Self::parse) asks, without making one.
    pub fn check(text: &str) -> Result<(), BadPlayer> {
        if text.is_empty() || text.len() > PLAYER_BYTES_MAX {
            return Err(BadPlayer::Length(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(BadPlayer::Control);
        }
        Ok(())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PlayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for PlayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for PlayerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for PlayerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PlayerId {
    type Error = BadPlayer;

    fn try_from(text: String) -> Result<Self, BadPlayer> {
        Self::check(&text)?;
        Ok(Self(text.into_boxed_str()))
    }
}

impl From<PlayerId> for String {
    fn from(player: PlayerId) -> Self {
        player.0.into()
    }
}

/// Why a text is no player's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPlayer {
    /// Of so many bytes.
    #[error("player id of {0} bytes (1 to {PLAYER_BYTES_MAX} are allowed)")]
    Length(usize),
    /// Line ends, tabs and the like.
    #[error("player id with a control character")]
    Control,
}

/// How a board ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A player's best result counts (damage, lap time).
    Best(Better),
    /// Results add up (kills of a season). A loss is a negative result.
    Sum(Better),
    /// Results add up and fade: after each half-life a point is worth half. Higher is better.
    Decayed { half_life_ms: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Higher,
    Lower,
}

/// One board. `BoardSpec::new` gives every default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardSpec {
    /// 1–64 of `a-z A-Z 0-9 - _ .`; goes into keys, headers and metrics.
    pub name: String,
    pub kind: Kind,
    /// The least score that the board takes (best and sum). Default 0.
    #[serde(default)]
    pub score_min: i64,
    /// The greatest score that the board takes (best and sum). Default 99,999,999. What the range leaves of a double's
    /// 53 bits tells ties apart by time: see [`Law::tie_unit_ms`](super::Law::tie_unit_ms).
    #[serde(default = "default_score_max")]
    pub score_max: i64,
    /// Begin of the season, Unix ms; times before it count as it. Default: 2026-01-01.
    #[serde(default = "default_season_from_ms")]
    pub season_from_ms: u64,
    /// How long ties are told apart by time (best and sum), ms. Default 10 years; a season's real length tells them apart
    /// more finely. Later results still count; between equal ones of them the player's id decides.
    #[serde(default = "default_season_ms")]
    pub season_ms: u64,
    /// Places that the snapshot should keep; what fits into `bytes_max` may be less. Default 10,000; at most 65,000.
    #[serde(default = "default_top")]
    pub top: usize,
    /// Bytes of memory that one snapshot may take: 32 KiB to 1 MiB. Default 1 MiB.
    #[serde(default = "default_bytes_max")]
    pub bytes_max: usize,
    /// Versions that stay readable for players who are paging: 3 (default) to 64, each of up to `bytes_max`. A token lives
    /// as long as its version: with 3 on a board that changes every 100 ms, a fifth of a second; with 64, 6 s.
    #[serde(default = "default_versions")]
    pub versions: usize,
    /// Up to this age a snapshot is a `HIT`, later `STALE`, ms. Default 1,000.
    #[serde(default = "default_fresh_ms")]
    pub fresh_ms: u64,
    /// From this age on `board_alarm` is 1, ms. Default 5,000.
    #[serde(default = "default_alarm_ms")]
    pub alarm_ms: u64,
    /// Past this age every read is refused (503), ms. Default: never.
    #[serde(default)]
    pub refuse_after_ms: Option<u64>,
    /// How long a read of a player outside the top may wait for the store, ms. Default 3.
    #[serde(default = "default_store_wait_ms")]
    pub store_wait_ms: u64,
}

const fn default_score_max() -> i64 {
    99_999_999
}
const fn default_season_from_ms() -> u64 {
    1_767_225_600_000
}
const fn default_season_ms() -> u64 {
    3_652 * 24 * 3_600_000
}
const fn default_top() -> usize {
    10_000
}
const fn default_bytes_max() -> usize {
    SNAPSHOT_BYTES_MAX
}
const fn default_versions() -> usize {
    3
}
const fn default_fresh_ms() -> u64 {
    1_000
}
const fn default_alarm_ms() -> u64 {
    5_000
}
const fn default_store_wait_ms() -> u64 {
    3
}

impl BoardSpec {
    /// A board with every default.
    pub fn new(name: impl Into<String>, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            score_min: 0,
            score_max: default_score_max(),
            season_from_ms: default_season_from_ms(),
            season_ms: default_season_ms(),
            top: default_top(),
            bytes_max: default_bytes_max(),
            versions: default_versions(),
            fresh_ms: default_fresh_ms(),
            alarm_ms: default_alarm_ms(),
            refuse_after_ms: None,
            store_wait_ms: default_store_wait_ms(),
        }
    }

    /// Everything that is wrong with it, in words.
    pub fn check(&self) -> Result<(), SpecError> {
        let mut wrong = Vec::new();
        let name_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty()
            || self.name.len() > NAME_BYTES_MAX
            || !self.name.chars().all(name_ok)
        {
            wrong.push(format!(
                "name: 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.'"
            ));
        }
        self.check_scores(&mut wrong);
        if self.top == 0 || self.top > TOP_MAX {
            wrong.push(format!("top: 1 to {TOP_MAX}"));
        }
        if !(SNAPSHOT_BYTES_MIN..=SNAPSHOT_BYTES_MAX).contains(&self.bytes_max) {
            wrong.push(format!(
                "bytes_max: {SNAPSHOT_BYTES_MIN} to {SNAPSHOT_BYTES_MAX}"
            ));
        }
        if !(3..=VERSIONS_MAX).contains(&self.versions) {
            wrong.push(format!("versions: 3 to {VERSIONS_MAX}"));
        }
        if self.fresh_ms == 0 {
            wrong.push("fresh_ms: at least 1".into());
        }
        if self.refuse_after_ms.is_some_and(|ms| ms < self.fresh_ms) {
            wrong.push("refuse_after_ms: not less than fresh_ms".into());
        }
        if self.store_wait_ms > 1_000 {
            wrong.push("store_wait_ms: at most 1000".into());
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(SpecError(wrong))
    }

    fn check_scores(&self, wrong: &mut Vec<String>) {
        match self.kind {
            Kind::Decayed { half_life_ms } => {
                if half_life_ms < HALF_LIFE_MIN_MS {
                    wrong.push(format!("half_life_ms: at least {HALF_LIFE_MIN_MS}"));
                }
            }
            Kind::Best(_) | Kind::Sum(_) => {
                let range = i128::from(self.score_max) - i128::from(self.score_min);
                if !(0..1 << 53).contains(&range) {
                    wrong
                        .push("score_max: not below score_min, and less than 2^53 above it".into());
                }
                let whole = -(1_i64 << 53)..=(1 << 53);
                if !whole.contains(&self.score_min) || !whole.contains(&self.score_max) {
                    wrong.push("score_min, score_max: within 2^53 of 0".into());
                }
                if self.season_ms == 0 {
                    wrong.push("season_ms: at least 1".into());
                }
                let sums = matches!(self.kind, Kind::Sum(_));
                if sums && !(self.score_min..=self.score_max).contains(&0) {
                    wrong.push(
                        "score_min, score_max: a sum starts at 0, which must lie between".into(),
                    );
                }
            }
        }
    }
}

/// Every problem of a specification at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("board specification: {}", .0.join("; "))]
pub struct SpecError(pub Vec<String>);
