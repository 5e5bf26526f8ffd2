//! The elastic pool: workers whose number follows a policy. [`Workers`] runs jobs, a [`Policy`] says how many workers
//! there should be, from what the pool measures in its own process; [`simulate`] runs the same policies on recorded or
//! invented load. What a job does, and where its result goes, is the caller's.

mod meter;
pub mod metrics;
mod policy;
mod pool;
pub mod simulate;
mod staffing;
mod thresholds;

pub use self::metrics::{Counts, Metrics};
pub use self::policy::{BadPolicy, Bounds, Policy, Reason, Sample, TICK, WORKERS_MAX, Wanted};
pub use self::pool::{Drained, PoolOptions, QUEUE_MAX, Refused, Why, Workers};
pub use self::staffing::{EVENTS_MAX, Expected, Staffing, StaffingOptions};
pub use self::thresholds::Thresholds;
