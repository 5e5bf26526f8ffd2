//! The control plane: takes manifests and instances in, brings every data plane what concerns it, and says how far it is.
//!
//! Configuration enters by [`api`], is checked by [`admit`] and stored; [`world`] is the one reader of what is stored,
//! [`snapshot`] compiles it, [`discovery`] sends it. Instances enter by [`registry`], reports by [`observe`]. Everything that
//! is stored comes back through the world: no room tells another what it has just written.
//!
//! Module order (a module imports only later ones): serve, grpc, listen, api, console, metrics, rollout, discovery, sessions, limits, observe, import,
//! registry, planes, health, dns, ocsp, ca, access, admit, carry, snapshot, world.

pub mod access;
pub mod admit;
pub mod api;
pub mod ca;
pub mod carry;
mod console;
pub mod discovery;
pub mod dns;
mod grpc;
pub mod health;
pub mod import;
pub mod limits;
mod listen;
mod metrics;
pub mod observe;
pub mod ocsp;
pub mod planes;
pub mod registry;
pub mod rollout;
pub mod serve;
pub mod sessions;
pub mod snapshot;
pub mod world;

pub use serve::{Config, Running, ServeError, run, start};
