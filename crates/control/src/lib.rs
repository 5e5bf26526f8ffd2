//! The control plane: takes manifests and instances in, brings every data plane what concerns it, and says how far it is.
//!
//! Configuration enters by [`api`], is checked by [`admit`] and stored; [`world`] is the one reader of what is stored,
//! [`snapshot`] compiles it, [`discovery`] sends it. Instances enter by [`registry`], reports by [`observe`]. Everything that
//! is stored comes back through the world: no room tells another what it has just written.
//!
//! Module order (a module imports only later ones): serve, listen, api, console, metrics, discovery, observe, registry, dns,
//! admit, snapshot, world.

pub mod admit;
pub mod api;
mod console;
pub mod discovery;
pub mod dns;
mod listen;
mod metrics;
pub mod observe;
pub mod registry;
pub mod serve;
pub mod snapshot;
pub mod world;

pub use serve::{Config, Running, ServeError, run, start};
