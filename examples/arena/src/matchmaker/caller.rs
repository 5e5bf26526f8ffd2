//! A player's call: what one play is asked for with, and the way back to who asked.

use std::time::Duration;

use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use super::lobby::{self, RATING_MAX, RATING_MIN};
use crate::battle::{NAME_MAX, ROUNDS_MAX};
use crate::carry::Carried;
use crate::proto::arena::v1::{Fighter, PlayEvent, PlayRequest, play_event};

/// Said with an answer that asking again doesn't change.
pub const SETTLED: &str = "x-match-settled";
/// A proposal, the rounds of two legs and a result: sending to a player never waits.
const EVENTS_MAX: usize = 2 * ROUNDS_MAX + 2;
/// How long a player waits for another one: where nothing is said, and at most. A match takes a few writes to disk and a
/// tick of the search.
const WAIT: Duration = Duration::from_millis(40);
const WAIT_MAX: Duration = Duration::from_secs(20);

pub type Events = mpsc::Receiver<Result<PlayEvent, Status>>;

/// A player who waits or is in a match.
pub struct Caller {
    /// The same number, the same play.
    pub ticket: u64,
    pub fighter: Fighter,
    pub carried: Carried,
    /// Wants the rounds, not only the result.
    pub live: bool,
    /// For another player.
    pub wait: Duration,
    pub events: mpsc::Sender<Result<PlayEvent, Status>>,
}

impl Caller {
    /// With what it will hear.
    ///
    /// # Errors
    /// Who has no name.
    pub fn of(request: Request<PlayRequest>, live: bool) -> Result<(Self, Events), Status> {
        let carried = Carried::from_metadata(request.metadata());
        let PlayRequest {
            player,
            rating,
            ticket,
            wait_ms,
        } = request.into_inner();
        if !(1..=NAME_MAX).contains(&player.len()) {
            return Err(Status::invalid_argument("a player needs a name"));
        }
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        let rating = rating.clamp(RATING_MIN, RATING_MAX);
        let caller = Self {
            ticket: match ticket {
                0 => fastrand::u64(1..),
                ticket => ticket,
            },
            fighter: Fighter { player, rating },
            carried,
            live,
            wait: match wait_ms {
                0 => WAIT,
                ms => Duration::from_millis(ms.into()).min(WAIT_MAX),
            },
            events,
        };
        Ok((caller, heard))
    }

    pub fn tell(&self, event: play_event::Event) {
        // Fails when the caller is gone; there is room for every event of a match.
        let _ = self.events.try_send(Ok(PlayEvent { event: Some(event) }));
    }

    pub fn fail(&self, status: Status) {
        let _ = self.events.try_send(Err(status));
    }
}

impl lobby::Player for Caller {
    fn name(&self) -> &str {
        &self.fighter.player
    }

    fn rating(&self) -> u32 {
        self.fighter.rating
    }

    fn colour(&self) -> &[u8] {
        self.carried.colour()
    }

    fn left(&self) -> bool {
        self.events.is_closed()
    }
}

/// The same status, and that it is the last word on this play.
pub fn settled(mut status: Status) -> Status {
    let metadata = status.metadata_mut();
    metadata.insert(SETTLED, MetadataValue::from_static("1"));
    status
}
