//! Rules of the way to an endpoint: which failures may be repeated ([`retry`]), how much may be under way ([`breaker`]), and
//! when a connection may be used again ([`pool`]).
//!
//! The sockets and the loop over attempts are in `drive`; nothing here waits.

pub mod breaker;
pub mod pool;
pub mod retry;

pub use self::breaker::{Breaker, Permit, Share};
pub use self::pool::{Completion, Lease, Pool};
pub use self::retry::{Fault, Heard, RetryPlan};
