//! The test command, the soak, and the generator.

use std::path::Path;

use anyhow::bail;

use crate::{setup, shell, tidy};

/// More suites than this that fail at once are no matter of chance.
const AGAIN_MAX: usize = 2;

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

/// The end-to-end suites start the real executable, so it is built first and beside them. They run real peers on a machine
/// that is shared with who knows whom: a suite that fails is run once more by itself, and named at the end. A soak has no
/// second try.
fn suites(root: &Path, filter: Option<&str>, soak: Option<u32>) -> anyhow::Result<()> {
    shell::run(&mut shell::cargo(root, &["build", "--package", "phalanx"]))?;
    let test = |arguments: &[&str]| {
        let mut tests = shell::cargo(root, &["test"]);
        tests.args(arguments);
        tests.env("PHALANX_ENVOY", setup::envoy(root));
        if let Some(rounds) = soak {
            tests.env("PHALANX_SOAK", rounds.to_string());
        }
        if let Some(filter) = filter {
            tests.arg(filter);
        }
        tests
    };
    if soak.is_some() {
        return shell::run(&mut test(&["--workspace"]));
    }
    let (failed, said) = shell::heard(&mut test(&["--workspace", "--no-fail-fast"]))?;
    let Some(failed) = failed else {
        return Ok(());
    };
    let suites = failed_suites(&said);
    if suites.is_empty() || suites.len() > AGAIN_MAX {
        bail!("{failed}");
    }
    for suite in &suites {
        println!("\u{203a} `{suite}` failed; once more, by itself");
        let arguments: Vec<&str> = suite.split(' ').collect();
        shell::run(&mut test(&arguments))?;
    }
    for suite in &suites {
        println!(
            "UNSTEADY: `{suite}` failed beside others and passed by itself: see above, and mend it"
        );
    }
    Ok(())
}

/// What `cargo test --no-fail-fast` says at its end: `    `-p PACKAGE --test SUITE``, a line each.
fn failed_suites(said: &str) -> Vec<String> {
    let suite = |line: &str| {
        let suite = line.trim().strip_prefix('`')?.strip_suffix('`')?;
        suite.starts_with("-p ").then(|| suite.to_owned())
    };
    said.lines().filter_map(suite).collect()
}

#[cfg(test)]
mod listed {
    use super::*;

    #[test]
    fn suites_that_failed_are_those_that_cargo_lists() {
        let said = "error: test failed, to rerun pass `-p a --lib`\nerror: 2 targets failed:\n    `-p a --lib`\n    `-p b --test c`\n";
        assert_eq!(failed_suites(said), ["-p a --lib", "-p b --test c"]);
    }
}
