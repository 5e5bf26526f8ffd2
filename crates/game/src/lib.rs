//! The game kit: battles that replay, boards that never go dark, matchmaking that doesn't sway, sessions that come back.
//! Each component works alone and without the mesh; feature `mesh` adds registration, discovery and drain.
//!
//! Module order (a module imports only later ones): board, matchmaking, session, battle, workers, dice.

pub mod board;
pub mod dice;
// Until it compiles: cargo rustc -p phalanx-game --lib --profile check -- --cfg wip_matchmaking
#[cfg(wip_matchmaking)]
pub mod matchmaking;
