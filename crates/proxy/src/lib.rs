//! The data plane: a sidecar beside one application. Configuration comes over xDS and is compiled into one immutable
//! plan; requests walk through synchronous stages over it; what happened is counted per core.
//!
//! Nothing here knows manifests, the store or the control plane's code.
//!
//! Module order (a module imports only later ones): serve, admin, explain, tap, accesslog, report, lease, register, health, discovery,
//! identity, drive, udp, takeover, intercept, listen, route, colour, guard, limit, filter, correlate, context, transcode, plan, directory, quota, desk, upstream, balance, account, compare, underway, edge, config, lasting.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

pub mod accesslog;
pub mod account;
pub mod admin;
pub mod balance;
pub mod colour;
pub mod compare;
pub mod config;
pub mod context;
pub mod correlate;
pub mod desk;
pub mod directory;
pub mod discovery;
pub mod drive;
pub mod edge;
pub mod explain;
pub mod filter;
pub mod guard;
pub mod health;
pub mod identity;
pub mod intercept;
pub mod lasting;
pub mod lease;
pub mod limit;
pub mod listen;
pub mod plan;
pub mod quota;
pub mod register;
pub mod report;
pub mod route;
pub mod serve;
pub mod takeover;
pub mod tap;
pub mod transcode;
pub mod udp;
pub mod underway;
pub mod upstream;

pub use config::Config;
