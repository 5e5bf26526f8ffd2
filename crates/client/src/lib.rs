//! Typed clients: of the control plane, for the sidecar, the CLI and services that bring their own; and of endpoints, whose
//! health, figures and descriptors are asked.
//!
//! Model types go in and come out; what travels between stays in here. Configuration does not come this way: it comes
//! over xDS.
//!
//! Module order (a module imports only later ones): admin, session, limits, observe, api, registry, identity, health, reflection, prometheus,
//! channel, secure, inspect, mark, why, backoff.

pub mod admin;
pub mod api;
pub mod backoff;
pub mod channel;
pub mod health;
pub mod identity;
pub mod inspect;
pub mod limits;
pub mod mark;
pub mod observe;
pub mod prometheus;
pub mod reflection;
pub mod registry;
pub mod secure;
pub mod session;
pub mod why;
