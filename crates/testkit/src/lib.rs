//! For tests only: the real executables as child processes on loopback addresses of their own, loads that count every
//! failure with its reason, and an Envoy that gets its configuration from the control plane under test.
//!
//! Module order (a module imports only later ones): envoy, etcd, guarded, member, mesh, load, http, process, address.

pub mod address;
pub mod envoy;
pub mod etcd;
pub mod guarded;
pub mod http;
pub mod load;
pub mod member;
pub mod mesh;
pub mod process;

use std::time::{Duration, Instant};

/// Polls until `done` answers `Some`, at most `limit`.
///
/// # Errors
/// Says what was waited for.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut done: impl AsyncFnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = done().await {
            return Ok(value);
        }
        anyhow::ensure!(Instant::now() < deadline, "waited {limit:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
