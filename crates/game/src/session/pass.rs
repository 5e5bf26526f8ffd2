//! What a reconnect token says, without how it is sealed. Made by whoever serves the session, checked against the seat
//! that its room has by then.

use std::time::Duration;

use super::directory::Seat;
use super::name::{Instance, Key, Stage};

/// How far clocks of two machines may be apart.
pub const SKEW: Duration = Duration::from_secs(1);

/// One leave to come back. Times are since the Unix epoch, in whole milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    pub session: Key,
    /// As the login knows him.
    pub player: u64,
    pub room: Key,
    /// Of the room's seat in the directory.
    pub epoch: u64,
    /// Of the passes of this session, from 1: a later one that was used ends those before it.
    pub serial: u64,
    /// The index of the region whose logins it goes through.
    pub region: u16,
    /// What the player was doing when it was issued.
    pub stage: Stage,
    pub issued: Duration,
    /// Not before this; zero: at once.
    pub earliest: Duration,
    /// How long to wait after a connection that broke without a word.
    pub spread: Duration,
    pub expires: Duration,
}

/// Why nobody is let in by a pass. Whatever it is, the session that it names is left as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// Before its earliest time, even by a clock that is [`SKEW`] ahead.
    #[error("it is too early by {left:?}")]
    Early { left: Duration },
    #[error("the pass has expired")]
    Expired,
    /// Not of whom the login knows.
    #[error("the pass is another player's")]
    OtherPlayer,
    /// It was issued before the room changed hands. Its holder may log in anew.
    #[error("the pass is of epoch {pass}, the room is at {now}")]
    OldEpoch { pass: u64, now: u64 },
    /// Whoever is asked has lost the room, and does not know it yet.
    #[error("the pass is of epoch {pass}, which is later than {known}")]
    LaterEpoch { pass: u64, known: u64 },
    /// The directory has no seat for its room, or another server has it.
    #[error("nobody serves room {0}, or not here")]
    NotHere(Key),
    /// A pass lets in once, and ends those that were issued before it.
    #[error("the pass, or a later one, was used")]
    Used,
    /// The player left, or was away for too long.
    #[error("the session is over")]
    Over,
    #[error("no more sessions are taken here")]
    Full,
}

impl Pass {
    /// Whether it may be used by now. Two machines may see the time [`SKEW`] apart.
    ///
    /// # Errors
    /// [`ResumeError::Early`], [`ResumeError::Expired`]
    pub fn in_time(&self, now: Duration) -> Result<(), ResumeError> {
        if now >= self.expires {
            return Err(ResumeError::Expired);
        }
        match self.earliest.saturating_sub(now + SKEW) {
            Duration::ZERO => Ok(()),
            left => Err(ResumeError::Early { left }),
        }
    }

    /// Who serves its room, where the directory has `seat` for it.
    ///
    /// # Errors
    /// [`ResumeError::OldEpoch`], [`ResumeError::LaterEpoch`] (the directory is behind: ask again), [`ResumeError::NotHere`]
    pub fn whereto<'a>(&self, seat: Option<&'a Seat>) -> Result<&'a Instance, ResumeError> {
        let seat = seat.filter(|seat| seat.key == self.room && !seat.away);
        let seat = seat.ok_or_else(|| ResumeError::NotHere(self.room.clone()))?;
        self.of_epoch(seat.epoch)?;
        Ok(&seat.instance)
    }

    pub(super) fn of_epoch(&self, now: u64) -> Result<(), ResumeError> {
        let pass = self.epoch;
        match pass.cmp(&now) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(ResumeError::OldEpoch { pass, now }),
            std::cmp::Ordering::Greater => Err(ResumeError::LaterEpoch { pass, known: now }),
        }
    }
}
