//! The loads: generators as processes of their own on the other core, and what they print.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::case::{Case, Load};
use super::running::{Child, LOAD_CORE, Running};
use super::sample::{P50, P99, Sample};

/// Requests a second, where the rate is fixed, and the connections they have.
pub const RATE: u32 = 4000;
const RATE_CONNECTIONS: u32 = 32;
/// Datagrams a second, and the clients that send them.
const UDP_RATE: u32 = 20_000;
const UDP_CLIENTS: u32 = 64;
/// Of the good client in a flood.
pub const GOOD_RATE: u32 = 500;
const GOOD_CONNECTIONS: u32 = 8;

/// From being ready to being called idle.
pub const SETTLED: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flood {
    Tls,
    Reset,
    Bad,
    Udp,
}

impl Flood {
    fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Reset => "reset",
            Self::Bad => "bad",
            Self::Udp => "udp",
        }
    }
}

/// A second of warm-up, then `time` of measured traffic; CPU time is the difference over the measured part.
pub fn measure(
    case: &Case,
    root: &Path,
    proxy: &Running,
    time: Duration,
) -> anyhow::Result<Sample> {
    std::thread::sleep(SETTLED);
    let idle_mb = proxy.resident_mb()?;
    generate(case, root, proxy, Duration::from_secs(1))?;
    let (before, started) = (proxy.cpu()?, Instant::now());
    let output = generate(case, root, proxy, time)?;
    let (spent, elapsed) = (proxy.cpu()?.since(before), started.elapsed());
    let answered = completed(case, &output)?;
    // Each datagram has an echo.
    let count = answered * if case.is_udp() { 2.0 } else { 1.0 };
    let mut sample = Sample::default();
    if case.is_about_tails() {
        latency(&output, &mut sample);
        sample.add_cpu(spent, count);
        if case.is_udp() {
            sample.add(
                "lost %",
                100.0 - answered * 100.0 / printed(&output, "sent ")?,
                3,
            );
        }
        return Ok(sample);
    }
    sample.add_cpu(spent, count);
    sample.add("units/s", count / elapsed.as_secs_f64(), 0);
    latency(&output, &mut sample);
    sample.add("resident, idle MB", idle_mb, 1);
    Ok(sample)
}

/// The good client alone, then with the bad ones. Those have what the core leaves them: they must not hold up the good one
/// before it has come to the proxy.
pub fn beside(
    flood: Flood,
    case: &Case,
    root: &Path,
    proxy: &Running,
    time: Duration,
) -> anyhow::Result<Sample> {
    let backend = root.join("target/dist/bench-backend");
    std::thread::sleep(SETTLED);
    generate(case, root, proxy, Duration::from_secs(1))?;
    let mut calm = Sample::default();
    latency(&generate(case, root, proxy, time)?, &mut calm);
    let mut bad = Command::new("taskset");
    bad.args(["-c", LOAD_CORE, "chrt", "--idle", "0"]);
    bad.arg(backend).args(["flood", flood.name()]);
    // Longer than the good client's time on both sides.
    let seconds = (time + 2 * HEAD_START).as_secs().to_string();
    bad.args([case.attacked(), &seconds]);
    let started = Instant::now();
    let before = proxy.cpu()?;
    let flooding = Child::listened(&mut bad, "the flood")?;
    std::thread::sleep(HEAD_START);
    let during = generate(case, root, proxy, time).context("the good client, beside the bad")?;
    let told = flooding.finish()?;
    let (spent, elapsed) = (proxy.cpu()?.since(before), started.elapsed());
    let attacks = printed(&told, "attacks ")?;
    if attacks == 0.0 {
        bail!("there was no flood");
    }
    let mut sample = Sample::default();
    let flooded = {
        let mut flooded = Sample::default();
        latency(&during, &mut flooded);
        flooded
    };
    let of = |sample: &Sample, name| sample.get(name).context("no latency was printed");
    sample.add("p50 \u{b5}s before", of(&calm, P50)?, 0);
    sample.add("p50 \u{b5}s in the flood", of(&flooded, P50)?, 0);
    sample.add("p99 \u{b5}s before", of(&calm, P99)?, 0);
    sample.add("p99 \u{b5}s in the flood", of(&flooded, P99)?, 0);
    let (sent, answered) = (printed(&during, "sent ")?, printed(&during, "answered ")?);
    sample.add("unanswered %", (sent - answered) * 100.0 / sent, 1);
    sample.add("units/s", attacks / elapsed.as_secs_f64(), 0);
    sample.add_cpu(spent, attacks);
    Ok(sample)
}

const HEAD_START: Duration = Duration::from_secs(1);

fn generate(case: &Case, root: &Path, proxy: &Running, time: Duration) -> anyhow::Result<String> {
    let (to, seconds) = (proxy.entry, time.as_secs().to_string());
    let backend = root.join("target/dist/bench-backend");
    let mut command = Command::new("taskset");
    command.args(["-c", LOAD_CORE]);
    let kind = if case.is_udp() { "udp-paced" } else { "paced" };
    let mut paced = |rate: u32, connections: u32| {
        let (rate, connections) = (rate.to_string(), connections.to_string());
        command.arg(&backend).arg(kind);
        command.args([to, &rate, &connections, &seconds]);
    };
    match case.load {
        Load::Paced if case.is_udp() => paced(UDP_RATE, UDP_CLIENTS),
        Load::Paced => paced(RATE, RATE_CONNECTIONS),
        Load::Flood(_) => paced(GOOD_RATE, GOOD_CONNECTIONS),
        Load::Wrk => {
            command.args(["wrk", "-t1", "-c64", "--latency", "-d", &seconds]);
            command.args(["-H", "Host: backend"]);
            command.arg(format!("http://{to}/"));
        }
        Load::H2load(connections, streams) => {
            let body = std::env::temp_dir().join("phalanx-bench-message");
            std::fs::write(&body, message()).context("cannot write the request body")?;
            command.args(["h2load", "-t1", "-c", connections, "-m", streams]);
            command.args(["-D", &seconds]);
            command.args(["-H", "content-type: application/grpc"]);
            command.args(["-H", "te: trailers"]);
            command.arg("-d").arg(&body);
            command.arg(format!("--connect-to={to}"));
            command.arg("http://backend:80/bench.Bench/Call");
        }
        Load::Relay(kind, connections) => {
            command.arg(&backend);
            command.args(["load", kind, to, connections, &seconds]);
        }
        Load::Idle => bail!("idle connections are no load"),
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("cannot start the load generator")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        bail!("the load generator: {}: {text}{told}", output.status);
    }
    Ok(text)
}

/// What was answered well; any other answer is a reason to throw the measurement away.
fn completed(case: &Case, output: &str) -> anyhow::Result<f64> {
    let line = |test: &dyn Fn(&str) -> bool| output.lines().find(|line| test(line));
    match case.load {
        Load::Wrk => {
            let bad = |l: &str| l.contains("Non-2xx") || l.contains("Socket errors");
            if let Some(line) = line(&bad) {
                bail!("not all requests went well:{line}");
            }
            let line = line(&|l| l.contains("requests in")).context("wrk printed no count")?;
            Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
        }
        Load::H2load(..) => {
            // requests: 1 total, 1 started, 1 done, 1 succeeded, 0 failed, 0 errored, 0 timeout
            let line = line(&|l| l.starts_with("requests:")).context("h2load printed no count")?;
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
        Load::Relay("bulk", _) => Ok(printed(output, "moved ")? / 1e6),
        Load::Relay(..) => printed(output, "moved "),
        Load::Paced | Load::Flood(_) => {
            let (sent, answered) = (printed(output, "sent ")?, printed(output, "answered ")?);
            if answered < sent && !case.is_udp() {
                bail!("of {sent} requests {answered} were answered");
            }
            Ok(answered)
        }
        Load::Idle => bail!("idle connections are no load"),
    }
}

/// The number behind `mark`, at the beginning of a line.
pub fn printed(output: &str, mark: &str) -> anyhow::Result<f64> {
    let line = output.lines().find_map(|line| line.strip_prefix(mark));
    let line = line.with_context(|| format!("no `{mark}` in: {output}"))?;
    Ok(line.trim().parse()?)
}

/// A gRPC frame of 200 bytes.
fn message() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 0, 195];
    bytes.resize(200, b'x');
    bytes
}

/// Median and 99th percentile, where the generator tells.
fn latency(output: &str, sample: &mut Sample) {
    let told = match printed(output, "p50 ")
        .ok()
        .zip(printed(output, "p99 ").ok())
    {
        Some(ours) => Some(ours),
        None => wrk_latency(output, "50%").zip(wrk_latency(output, "99%")),
    };
    if let Some((p50, p99)) = told {
        sample.add(P50, p50, 0);
        sample.add(P99, p99, 0);
    }
}

/// In µs.
fn wrk_latency(output: &str, mark: &str) -> Option<f64> {
    let line = output.lines().find(|l| l.trim_start().starts_with(mark))?;
    let value = line.split_whitespace().nth(1)?;
    let unit = value.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = value.strip_suffix(unit)?.parse().ok()?;
    match unit {
        "us" => Some(number),
        "ms" => Some(number * 1e3),
        "s" => Some(number * 1e6),
        _ => None,
    }
}
