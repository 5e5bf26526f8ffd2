//! The test command, the soak, and the generator.

use std::path::Path;

use crate::{setup, shell, tidy};

pub fn run(root: &Path, filter: Option<&str>) -> anyhow::Result<()> {
    setup::run(root, false)?;
    tidy::run(root)?;
    shell::run(&mut shell::cargo(root, &["fmt", "--all", "--check"]))?;
    shell::run(&mut shell::cargo(
        root,
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ],
    ))?;
    codegen(root, true)?;
    suites(root, filter, None)
}

pub fn soak(root: &Path, rounds: u32) -> anyhow::Result<()> {
    setup::run(root, false)?;
    suites(root, None, Some(rounds))
}

pub fn codegen(root: &Path, check: bool) -> anyhow::Result<()> {
    let mut arguments = vec!["run", "--quiet", "--package", "phalanx-codegen"];
    if check {
        arguments.extend(["--", "--check"]);
    }
    shell::run(&mut shell::cargo(root, &arguments))
}

/// The end-to-end suites start the real executable, so it is built first and beside them.
fn suites(root: &Path, filter: Option<&str>, soak: Option<u32>) -> anyhow::Result<()> {
    shell::run(&mut shell::cargo(root, &["build", "--package", "phalanx"]))?;
    let mut tests = shell::cargo(root, &["test", "--workspace"]);
    tests.env("PHALANX_ENVOY", setup::envoy(root));
    if let Some(rounds) = soak {
        tests.env("PHALANX_SOAK", rounds.to_string());
    }
    if let Some(filter) = filter {
        tests.arg(filter);
    }
    shell::run(&mut tests)
}
