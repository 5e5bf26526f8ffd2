//! Where the time of a request goes, stage by stage: measured by the crates themselves, hot, on one core.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

use super::running::PROXY_CORE;

pub const NAME: &str = "stages";

pub const TITLE: &str = "Where the time goes";

/// Runs `crates/proxy/benches/stages.rs`, which prints `NS<tab>what` for each.
pub fn measure(root: &Path) -> anyhow::Result<String> {
    let mut command = Command::new("taskset");
    command.args(["-c", PROXY_CORE, "cargo", "bench", "--quiet"]);
    command.args(["--package", "phalanx-proxy", "--bench", "stages"]);
    let output = command.current_dir(root).output();
    let output = output.context("cannot start cargo bench")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("stages: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut text = format!(
        "\n## {TITLE}\n\nNanoseconds of one core, everything hot, median of nine (min\u{2013}max). The rest of a request's time is the kernel's: two\n\
         receives and two sends are all that a proxied HTTP/1.1 request does there.\n\n| stage | ns |\n|---|---|\n",
    );
    let mut rows = 0;
    for line in printed.lines() {
        let (ns, what) = line.split_once('\t').context("not a stage")?;
        let _ = writeln!(text, "| {what} | {ns} |");
        println!("{line}");
        rows += 1;
    }
    ensure!(rows > 0, "no stage was measured");
    Ok(text)
}
