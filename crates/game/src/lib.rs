//! The game kit: battles that replay, boards that never go dark, matchmaking that doesn't sway, sessions that come back.
//! Each component works alone and without the mesh; feature `mesh` adds registration, discovery and drain.
//!
//! Module order (a module imports only later ones): grpc, board, matchmaking, mesh, session, battle, workers, dice.

/// Prometheus' text format, which every component's `write` fills: `Exposition::new()`, write, `finish()`.
pub use phalanx_telemetry::metrics::Exposition;

pub mod battle;
pub mod board;
pub mod dice;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod matchmaking;
#[cfg(feature = "mesh")]
pub mod mesh;
pub mod session;
pub mod workers;
