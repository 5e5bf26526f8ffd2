//! Boards and shards as gRPC services (`phalanx.game.v1`), for clients in other languages. Messages come in, are bounded, and
//! become calls of [`crate::board`] and [`crate::matchmaking`]; what those refuse goes out as a status with a code and a
//! sentence. Nothing is decided here, but who may call, by a [`Guard`].
//!
//! | code | when |
//! |---|---|
//! | `INVALID_ARGUMENT` | a value is out of bounds; the message names it |
//! | `NOT_FOUND` | no such board, shard, ticket or player |
//! | `ALREADY_EXISTS` | the player has another ticket, or the id is that of another ticket or backfill |
//! | `ABORTED` | a page's version is gone: begin again without a token; or the same result is being counted: ask again |
//! | `FAILED_PRECONDITION` | the ticket, the match or the board is in another state, or takes no results here |
//! | `RESOURCE_EXHAUSTED` | no room; `grpc-retry-pushback-ms` says when to come again, where it is known |
//! | `UNAVAILABLE` | the board has no version, or none as young as asked for; the shard has another owner: ask again, elsewhere |

mod caller;
mod leaderboard;
mod matchmaking;

pub use caller::{Act, Caller, Guard};
pub use leaderboard::{BOARDS_MAX, Boards, BoardsError, ID_BYTES_MAX, Scores, Served, SubmitError};
pub use matchmaking::{SHARDS_MAX, Shards, ShardsError};
pub use phalanx_proto::phalanx::game::v1 as wire;

use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

/// Bytes of a request.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Characters of a request that are told back.
const NAMED_MAX: usize = 64;
/// gRPC's own name for "not before".
const PUSHBACK: &str = "grpc-retry-pushback-ms";

fn pushed_back(message: String, wait: Option<Duration>) -> Status {
    let mut metadata = MetadataMap::new();
    if let Some(wait) = wait {
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        metadata.insert(PUSHBACK, ms.into());
    }
    Status::with_metadata(Code::ResourceExhausted, message, metadata)
}

/// What somebody asked for, short enough for a message: it may be as long as a request.
fn named(asked: &str) -> String {
    let name: String = asked.chars().take(NAMED_MAX).collect();
    format!("{name:?}")
}

/// A number that may be left out.
fn or_default(asked: u32, default: usize) -> usize {
    match asked {
        0 => default,
        asked => asked as usize,
    }
}
