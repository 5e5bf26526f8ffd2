//! Where rooms come from: the studio's own allocator (Agones, a fleet, a list), behind one trait.

use std::{
    pin::Pin,
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{owner::Allocation, run::Message};
use crate::matchmaking::ledger::MatchId;

/// Calls for rooms under way at once, per shard; more wait in order.
pub const ALLOCATIONS_MAX: usize = 256;
/// Between two attempts, doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
const GIVE_BACK_MAX: Duration = Duration::from_secs(10);
/// What is left to the answer's way into the log.
const SPARE: Duration = Duration::from_millis(200);

/// What an allocator's answer takes to come.
pub type Allocates<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// No room now. It is tried again until the reservation lapses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room: {0}")]
pub struct AllocateError(pub String);

/// Finds rooms for matches.
pub trait Allocator: Send + Sync + 'static {
    /// A room for this match: an address, a token, whatever clients are to be told (at most
    /// [`ROOM_BYTES_MAX`](crate::matchmaking::ledger::ROOM_BYTES_MAX) bytes). Asked again for the same match (an attempt
    /// timed out, the owner was killed), it answers the same room. A room to which nobody comes should end by itself: an
    /// owner that is killed can't give it back.
    fn allocate<'a>(
        &'a self,
        wanted: &'a Allocation,
    ) -> Allocates<'a, Result<String, AllocateError>>;

    /// The match was dissolved: whatever was allocated for it, or will have been, is free. May be said twice, and for a
    /// match that never got a room. Given up after ten seconds.
    fn give_back(&self, id: MatchId) -> Allocates<'_, ()> {
        tracing::debug!(%id, "a room is given back to an allocator that doesn't care");
        Box::pin(std::future::ready(()))
    }
}

impl<A: Allocator> Allocator for Arc<A> {
    fn allocate<'a>(
        &'a self,
        wanted: &'a Allocation,
    ) -> Allocates<'a, Result<String, AllocateError>> {
        (**self).allocate(wanted)
    }

    fn give_back(&self, id: MatchId) -> Allocates<'_, ()> {
        (**self).give_back(id)
    }
}

/// Says it once, and doesn't wait for ever.
pub async fn give_back(allocator: Arc<dyn Allocator>, id: MatchId) {
    let given = tokio::time::timeout(GIVE_BACK_MAX, allocator.give_back(id)).await;
    if given.is_err() {
        tracing::warn!(%id, "the allocator doesn't say whether a room is free again");
    }
}

/// Asks until there is a room or `until` is near, and says so.
pub async fn allocate(
    allocator: Arc<dyn Allocator>,
    places: Arc<Semaphore>,
    wanted: Allocation,
    until: Instant,
    answer: Sender<Message>,
) {
    let Ok(_place) = places.acquire().await else {
        return;
    };
    let until = tokio::time::Instant::from_std(until - SPARE.min(until - Instant::now()));
    let mut pause = PAUSE;
    let mut reason = String::from("nobody answered in time");
    let room = loop {
        let attempt = tokio::time::timeout_at(until, allocator.allocate(&wanted)).await;
        match attempt {
            Ok(Ok(room)) => break Ok(room),
            Ok(Err(AllocateError(error))) => reason = error,
            Err(_) => break Err(reason),
        }
        if tokio::time::Instant::now() + pause >= until {
            break Err(reason);
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(PAUSE_MAX);
    };
    let _ = answer.send(Message::Allocated(wanted.id, room));
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Hangs;

    impl Allocator for Hangs {
        fn allocate<'a>(
            &'a self,
            _: &'a Allocation,
        ) -> Allocates<'a, Result<String, AllocateError>> {
            Box::pin(std::future::pending())
        }

        fn give_back(&self, _: MatchId) -> Allocates<'_, ()> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_allocator_that_hangs_is_not_waited_for() {
        give_back(Arc::new(Hangs), MatchId::default()).await;
    }
}
