//! xDS: the only room that speaks the mesh's protobuf.
//!
//! [`encode`] turns the model's resources into Envoy v3 bytes with a content-hash version, [`decode`] is its inverse and
//! refuses by field path what our sidecar cannot honour. [`server`] and [`client`] are socketless ADS peers
//! over [`snapshot`]s. No I/O, no clock.
//!
//! Module order (a module imports only later ones): client, server, hds, decode, separate, encode, snapshot,
//! kind.

pub mod client;
pub mod decode;
pub mod encode;
pub mod hds;
pub mod kind;
pub mod separate;
pub mod server;
pub mod snapshot;

pub use kind::Kind;
pub use snapshot::{Encoded, Resources, Snapshot, SnapshotBuilder};
