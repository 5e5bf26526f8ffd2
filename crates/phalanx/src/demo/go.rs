//! `--go`: physics as a service in Go that copies no header, in front of the one in Rust. What it loses, its sidecar
//! remembers.

use std::path::{Path, PathBuf};
use std::process::Command;

use ::arena::process::{ADMIN_PORT, APP_PORT, GO_PHYSICS, INBOUND_PORT, OUTBOUND_PORT};
use phalanx_client::admin::Admin;

use super::process::Process;
use super::{Options, flags};
use crate::exit::Failure;

/// The sources, so that the demo needs no folder.
const SOURCES: [(&str, &str); 3] = [
    (
        "main.go",
        include_str!("../../../../examples/arena/go/physics/main.go"),
    ),
    (
        "go.mod",
        include_str!("../../../../examples/arena/go/physics/go.mod"),
    ),
    (
        "go.sum",
        include_str!("../../../../examples/arena/go/physics/go.sum"),
    ),
];

/// Compiles it; the first time Go fetches what it needs.
pub fn build(folder: &Path) -> Result<PathBuf, Failure> {
    let sources = folder.join("go-physics");
    let written = std::fs::create_dir_all(&sources).and_then(|()| {
        SOURCES
            .iter()
            .try_for_each(|(name, text)| std::fs::write(sources.join(name), text))
    });
    written.map_err(|e| Failure::file(format!("cannot write {}: {e}", sources.display())))?;
    let built = Command::new("go")
        .args(["build", "-o", "physics", "."])
        .current_dir(&sources)
        .output();
    let built = built.map_err(|e| {
        Failure::refused(format!("cannot run `go`: {e}"))
            .hint("install Go 1.26 or later, or leave --go out")
    })?;
    if !built.status.success() {
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        return Err(Failure::refused(format!("`go build` failed:\n{said}"))
            .hint("it needs Go 1.26 or later and Go's module proxy"));
    }
    Ok(sources.join("physics"))
}

/// Sidecar and service.
pub fn start(
    program: &Path,
    options: &Options,
    folder: &Path,
) -> Result<(Process, Process), Failure> {
    let at = |port: u16| format!("{GO_PHYSICS}:{port}");
    let service = [
        "-listen".to_owned(),
        at(APP_PORT),
        "-outbound".to_owned(),
        at(OUTBOUND_PORT),
    ];
    let service = Process::start_program(
        Some(program.to_owned()),
        "physics-go",
        service.into_iter(),
        folder,
    )?;
    let sidecar = flags([
        ("--service", ::arena::physics::NAME.to_owned()),
        ("--app", at(APP_PORT)),
        ("--labels", "version=go".to_owned()),
        ("--inbound", at(INBOUND_PORT)),
        ("--outbound", at(OUTBOUND_PORT)),
        ("--admin", at(ADMIN_PORT)),
        ("--control", options.xds.to_string()),
        ("--workers", "1".to_owned()),
        // Both start here.
        ("--correlate-settle", "0s".to_owned()),
    ]);
    let sidecar = Process::start("physics-go-sidecar", sidecar, folder)?;
    Ok((sidecar, service))
}

/// How surely its sidecar knew the colour of what it called: by `how` of `phalanx_correlation_total`.
pub async fn correlated() -> Option<Vec<(String, u64)>> {
    let admin = Admin::new(&format!("{GO_PHYSICS}:{ADMIN_PORT}"));
    let text = admin.text("/metrics").await.ok()?.body;
    let count = |line: &str| {
        let (labels, count) = line
            .strip_prefix("phalanx_correlation_total{")?
            .split_once("} ")?;
        let how = labels.split('"').nth(1)?.to_owned();
        Some((how, count.parse().ok()?))
    };
    Some(text.lines().filter_map(count).collect())
}
