//! xDS: the only room that speaks the mesh's protobuf.
//!
//! [`encode`] turns the model's resources into Envoy v3 bytes with a content-hash version, [`decode`] is its inverse and
//! refuses by field path what our sidecar cannot honour. Socketless ADS peers stand on [`snapshot`]. No I/O, no clock.
//!
//! Module order (a module imports only later ones): encode, decode, snapshot, kind.

pub mod kind;
pub mod snapshot;

pub use kind::Kind;
pub use snapshot::{Encoded, Snapshot, SnapshotBuilder};
