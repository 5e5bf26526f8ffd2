//! Who may do what. The services know no caller: who that is, is found out before them (by a sidecar, an interceptor, a
//! layer), which leaves its word in metadata or extensions. A [`Guard`] compares it with what is asked.

use std::sync::Arc;

use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Status};

/// What a call would do. Names and ids are the client's own words, not looked at yet; an empty `shard` is the only one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act<'a> {
    /// A result for a player.
    Submit { board: &'a str, player: &'a str },
    /// A page, a rank, neighbours, friends; `player` is who looks, empty where that is not said.
    Read { board: &'a str, player: &'a str },
    /// A party queues. `class` 0 goes first in the waiting room: not for everybody.
    Enqueue {
        shard: &'a str,
        players: Vec<u64>,
        class: u32,
    },
    /// A ticket is looked at, followed or cancelled by its id, which is known to whoever chose it (at random) and to nobody else.
    Ticket { shard: &'a str, ticket: u64 },
    /// A player is looked up, or says yes or no to a match.
    Player { shard: &'a str, player: u64 },
    /// The server of a running match offers its seats, or no longer.
    Backfill { shard: &'a str, backfill: u64 },
    /// How a shard is.
    Status { shard: &'a str },
}

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// As it came: of what the client wrote and of what was added on the way.
    pub metadata: &'a MetadataMap,
    /// What interceptors and layers left, and the connection's certificates.
    pub extensions: &'a Extensions,
}

/// Asked before each call. A function of both arguments is one.
pub trait Guard: Send + Sync + 'static {
    /// # Errors
    /// What the caller is answered: `PERMISSION_DENIED`, `UNAUTHENTICATED`.
    fn check(&self, caller: &Caller<'_>, act: &Act<'_>) -> Result<(), Status>;
}

impl<F> Guard for F
where
    F: Fn(&Caller<'_>, &Act<'_>) -> Result<(), Status> + Send + Sync + 'static,
{
    fn check(&self, caller: &Caller<'_>, act: &Act<'_>) -> Result<(), Status> {
        self(caller, act)
    }
}

/// Without a guard everybody may do everything.
#[derive(Clone, Default)]
pub(super) struct Door(Option<Arc<dyn Guard>>);

impl Door {
    pub fn guarded(guard: impl Guard) -> Self {
        Self(Some(Arc::new(guard)))
    }

    pub fn admit<T>(
        &self,
        request: Request<T>,
        act: impl for<'m> FnOnce(&'m T) -> Act<'m>,
    ) -> Result<T, Status> {
        if let Some(guard) = &self.0 {
            let caller = Caller {
                metadata: request.metadata(),
                extensions: request.extensions(),
            };
            guard.check(&caller, &act(request.get_ref()))?;
        }
        Ok(request.into_inner())
    }
}
