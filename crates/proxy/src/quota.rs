//! What this sidecar lets through to its application: per policy the buckets, leased tokens, faults and the limit of
//! requests under way. State outlives a policy's change where what it counts for stays the same.
//!
//! Asked by synchronous code of all workers at once: atomics only, nothing is allocated or locked. Times are ns of
//! [`clock`].
//!
//! Module order (a module imports only later ones): guard, counts, leases, load, lag, bucket, clock.

pub mod bucket;
pub mod clock;
pub mod counts;
pub mod guard;
pub mod lag;
pub mod leases;
pub mod load;

pub use self::counts::Refused;
pub use self::guard::{Guard, Standing};
pub use self::load::Admitted;
