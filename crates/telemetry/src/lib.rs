//! Signals in their standard formats: W3C Trace Context on every hop, Prometheus text at every admin address.
//!
//! Headers and counts come in, headers and text go out. No socket, no task and no queue may live here; whoever counts
//! owns the counter and declares its family beside it.
//!
//! Module order (a module imports only later ones): process, metrics, trace.

pub mod metrics;
pub mod process;
pub mod trace;
