//! A play that is asked for until it is played: the same ticket, whoever owns the queue meanwhile.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::session::Session;
use crate::matchmaker::SETTLED;
use crate::proto::arena::v1::PlayRequest;

/// For a match, and a takeover before it; waiting for another player comes on top.
const PLAY_DEADLINE: Duration = Duration::from_secs(9);
/// Between two attempts, doubled from the one to the other.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// An attempt without an end by then is given up, and the same ticket asked for again: whatever it hangs at may be gone.
const ATTEMPT_MAX: Duration = Duration::from_millis(2500);
/// More is as good as for ever.
const WAIT_MS_MAX: u32 = 20_000;

pub fn play_deadline(wait_ms: u32) -> Duration {
    PLAY_DEADLINE + Duration::from_millis(wait_ms.min(WAIT_MS_MAX).into())
}

pub struct Asking {
    pub request: PlayRequest,
    until: Instant,
    pause: Duration,
}

impl Asking {
    pub fn of(session: Session, wait_ms: u32, deadline: Duration) -> Self {
        Self {
            request: PlayRequest {
                player: session.player,
                rating: session.rating,
                ticket: fastrand::u64(1..),
                wait_ms: wait_ms.min(WAIT_MS_MAX),
            },
            until: Instant::now() + deadline,
            pause: PAUSE,
        }
    }

    /// How long the next attempt may take.
    pub fn attempt(&self) -> Duration {
        let wait = Duration::from_millis(self.request.wait_ms.into());
        self.left().min(wait + ATTEMPT_MAX)
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Waits until it is time for the next attempt.
    ///
    /// # Errors
    /// The status, when there is no use in one, or no time.
    pub async fn again(&mut self, status: Status) -> Result<(), Status> {
        // A matchmaker that died, is late, or doesn't own the queue (any more).
        let passing = matches!(
            status.code(),
            Code::Unavailable
                | Code::Cancelled
                | Code::Unknown
                | Code::Internal
                | Code::Aborted
                | Code::DeadlineExceeded
        );
        if !passing || status.metadata().contains_key(SETTLED) || self.left() <= self.pause {
            return Err(status);
        }
        tracing::debug!(%status, "asking match again");
        sleep(self.pause.mul_f64(fastrand::f64() / 2.0 + 0.5)).await;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        Ok(())
    }
}
