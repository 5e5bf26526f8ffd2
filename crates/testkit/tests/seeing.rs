//! What is said of requests is what happens to them: explanations against a running sidecar, access log, taps, messages of
//! streams that are still open, reasons.

#[path = "interop/table.rs"]
mod table;

mod seeing {
    pub mod logs;
    pub mod streams;
    pub mod tell;
    pub mod who;
}

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Duration;

use phalanx_testkit::http::{Answer, Call, call};
use phalanx_testkit::process::executable;

/// Debug builds on two busy cores.
const LIMIT: Duration = Duration::from_secs(30);

/// A page of a sidecar.
async fn page(admin: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    call(admin, &Call::get("localhost", path)).await
}

/// The sum of a metric's samples whose labels contain all of `labels`.
async fn metric(admin: SocketAddr, name: &str, labels: &[&str]) -> anyhow::Result<f64> {
    let page = page(admin, "/metrics").await?;
    let text = String::from_utf8_lossy(&page.body).into_owned();
    let samples = text
        .lines()
        .filter(|line| line.starts_with(name) && !line.starts_with('#'))
        .filter(|line| line[name.len()..].starts_with(['{', ' ']))
        .filter(|line| labels.iter().all(|label| line.contains(label)));
    let values = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum())
}

fn phalanx(arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(executable("phalanx")?);
    Ok(command.args(arguments).output()?)
}
