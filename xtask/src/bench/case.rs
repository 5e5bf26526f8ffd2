//! The loads: what is sent, to which backend, and how a measurement is taken.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::peer::{Child, LOAD_CORE, Running, wait_for_port};

pub const BACKEND_H1: &str = "127.0.0.1:18101";
pub const BACKEND_H2: &str = "127.0.0.1:18102";
const BACKEND_TCP: &str = "127.0.0.1:18103";
/// Where every proxy listens, one at a time.
pub const LISTEN: &str = "127.0.0.1:18100";

/// From being ready to being called idle.
const SETTLED: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    /// HTTP/1.1 to HTTP/1.1, 64 connections kept alive, answers of 1 KB.
    H1,
    /// HTTP/2 to HTTP/2 in plain text, 16 connections of 8 streams, 200-byte gRPC messages with trailers.
    H2,
    /// As `H1`, through two proxies with mutual TLS between them, and HTTP/2 where the proxy can; both are counted.
    Pair,
    /// Raw TCP in both directions, 8 connections.
    Tcp,
    /// Raw TCP: messages of 1 KB and their echoes, 64 connections.
    TcpSmall,
    /// Raw TCP: connections of 16 KB there and back.
    TcpShort,
}

pub struct Sample {
    pub cpu_us: f64,
    pub per_second: f64,
    pub idle_mb: f64,
    /// Median and 99th percentile in µs, where the generator tells.
    pub latency_us: Option<(f64, f64)>,
}

impl Case {
    pub const ALL: [Self; 6] = [
        Self::H1,
        Self::H2,
        Self::Pair,
        Self::Tcp,
        Self::TcpSmall,
        Self::TcpShort,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
            Self::Pair => "pair",
            Self::Tcp => "tcp",
            Self::TcpSmall => "tcp-small",
            Self::TcpShort => "tcp-short",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::H1 => {
                "HTTP/1.1 \u{2192} HTTP/1.1, 64 keep-alive connections, 1 KB answers (`wrk -t1 -c64`)"
            }
            Self::H2 => {
                "h2c \u{2192} h2c, gRPC-like, 16 connections \u{d7} 8 streams, 200 B (`h2load -c16 -m8`)"
            }
            Self::Pair => {
                "HTTP/1.1 \u{2192} mutual TLS \u{2192} HTTP/1.1 through a pair of proxies, the sum of both (`wrk -t1 -c64`)"
            }
            Self::Tcp => "Raw TCP, 4 connections in each direction, as fast as they go",
            Self::TcpSmall => "Raw TCP, 64 connections, messages of 1 KB and their echoes",
            Self::TcpShort => "Raw TCP, connections of 16 KB there and back, 16 at a time",
        }
    }

    pub fn is_tcp(self) -> bool {
        self.tcp().is_some()
    }

    /// The load's name and its connections.
    fn tcp(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::H1 | Self::H2 | Self::Pair => None,
            Self::Tcp => Some(("bulk", "8")),
            Self::TcpSmall => Some(("small", "64")),
            Self::TcpShort => Some(("short", "16")),
        }
    }

    /// What the CPU time is divided by.
    pub fn unit(self) -> &'static str {
        match self {
            Self::H1 | Self::H2 | Self::Pair => "request",
            Self::Tcp => "MB",
            Self::TcpSmall => "message",
            Self::TcpShort => "connection",
        }
    }

    pub fn backend(self) -> &'static str {
        match self {
            Self::H1 | Self::Pair => BACKEND_H1,
            Self::H2 => BACKEND_H2,
            Self::Tcp | Self::TcpSmall | Self::TcpShort => BACKEND_TCP,
        }
    }

    fn protocol(self) -> &'static str {
        match self {
            Self::H1 | Self::Pair => "h1",
            Self::H2 => "h2",
            Self::Tcp | Self::TcpSmall | Self::TcpShort => "tcp",
        }
    }

    pub fn start_backend(self, root: &Path) -> anyhow::Result<Child> {
        let mut command = Command::new("taskset");
        command
            .args(["-c", LOAD_CORE])
            .arg(root.join("target/release/bench-backend"))
            .args([self.protocol(), self.backend()]);
        let child = Child::spawn(&mut command, "backend")?;
        wait_for_port(self.backend())?;
        Ok(child)
    }

    /// A second of warm-up, then `load` of measured traffic; CPU time is the difference over the measured part.
    pub fn measure(self, root: &Path, proxy: &Running, load: Duration) -> anyhow::Result<Sample> {
        std::thread::sleep(SETTLED);
        let idle_mb = proxy.resident_mb()?;
        self.generate(root, Duration::from_secs(1))?;
        let (before, started) = (proxy.cpu_ns()?, Instant::now());
        let output = self.generate(root, load)?;
        let (cpu, elapsed) = (proxy.cpu_ns()?.saturating_sub(before), started.elapsed());
        let requests = self.completed(&output)?;
        Ok(Sample {
            cpu_us: cpu as f64 / 1e3 / requests,
            per_second: requests / elapsed.as_secs_f64(),
            idle_mb,
            latency_us: percentiles(&output),
        })
    }

    fn generate(self, root: &Path, load: Duration) -> anyhow::Result<String> {
        let seconds = load.as_secs().to_string();
        let mut command = Command::new("taskset");
        command.args(["-c", LOAD_CORE]);
        match self {
            Self::H1 | Self::Pair => {
                command.args([
                    "wrk",
                    "-t1",
                    "-c64",
                    "--latency",
                    "-d",
                    &seconds,
                    "-H",
                    "Host: backend",
                ]);
                command.arg(format!("http://{LISTEN}/"));
            }
            Self::H2 => {
                let body = std::env::temp_dir().join("phalanx-bench-message");
                std::fs::write(&body, message()).context("cannot write the request body")?;
                command.args([
                    "h2load",
                    "-c16",
                    "-m8",
                    "-t1",
                    "-D",
                    &seconds,
                    "-H",
                    "content-type: application/grpc",
                    "-H",
                    "te: trailers",
                ]);
                command
                    .arg("-d")
                    .arg(&body)
                    .arg(format!("--connect-to={LISTEN}"));
                command.arg("http://backend:80/bench.Bench/Call");
            }
            Self::Tcp | Self::TcpSmall | Self::TcpShort => {
                let (kind, connections) = self.tcp().unwrap_or_default();
                command.arg(root.join("target/release/bench-backend"));
                command.args(["load", kind, LISTEN, connections, &seconds]);
            }
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("cannot start the load generator")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "the load generator ended with {}: {text}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(text)
    }

    /// Requests that were answered well; any other is a reason to throw the measurement away.
    fn completed(self, output: &str) -> anyhow::Result<f64> {
        match self {
            Self::H1 | Self::Pair => {
                if let Some(line) = output
                    .lines()
                    .find(|l| l.contains("Non-2xx") || l.contains("Socket errors"))
                {
                    bail!("not all requests went well:{line}");
                }
                let line = output
                    .lines()
                    .find(|l| l.contains("requests in"))
                    .context("wrk printed no count")?;
                Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
            }
            Self::H2 => {
                // requests: 1 total, 1 started, 1 done, 1 succeeded, 0 failed, 0 errored, 0 timeout
                let line = output
                    .lines()
                    .find(|l| l.starts_with("requests:"))
                    .context("h2load printed no count")?;
                let count = |what: &str| -> anyhow::Result<f64> {
                    let part = line
                        .split([':', ','])
                        .find(|p| p.trim().ends_with(what))
                        .with_context(|| format!("no `{what}` in: {line}"))?;
                    Ok(part.split_whitespace().next().unwrap_or_default().parse()?)
                };
                if count("failed")? > 0.0 || count("succeeded")? == 0.0 {
                    bail!("not all requests went well: {line}");
                }
                count("succeeded")
            }
            Self::Tcp | Self::TcpSmall | Self::TcpShort => {
                let line = output.lines().find_map(|line| line.strip_prefix("moved "));
                let moved: f64 = line.context("the generator printed no count")?.parse()?;
                Ok(if self == Self::Tcp {
                    moved / 1e6
                } else {
                    moved
                })
            }
        }
    }
}

/// A gRPC frame of 200 bytes.
fn message() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 0, 195];
    bytes.resize(200, b'x');
    bytes
}

/// wrk's `50%` and `99%` lines.
fn percentiles(output: &str) -> Option<(f64, f64)> {
    let of = |mark: &str| {
        let line = output.lines().find(|l| l.trim_start().starts_with(mark))?;
        let value = line.split_whitespace().nth(1)?;
        let unit = value.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number: f64 = value
            .trim_end_matches(|c: char| c.is_ascii_alphabetic())
            .parse()
            .ok()?;
        Some(
            number
                * match unit {
                    "us" => 1.0,
                    "ms" => 1e3,
                    "s" => 1e6,
                    _ => return None,
                },
        )
    };
    Some((of("50%")?, of("99%")?))
}
