//! The control plane under the load of a large fleet and a large registry, beside etcd's leases: processes as users start
//! them, driven by `bench-control` (crate testkit), which shares both cores with what it measures.
//!
//! Each round starts from an empty store. CPU time and memory are the kernel's account of the control plane alone.

mod identity;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value as Json;

use super::table::spread;
use crate::{setup, shell};

#[derive(clap::Args)]
pub struct Options {
    /// Rounds, each from an empty store
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Streams of the large fleet
    #[arg(long, default_value_t = 5000)]
    streams: usize,
    /// Services of the fleet's mesh, ten endpoints each
    #[arg(long, default_value_t = 100)]
    services: usize,
    /// Instances of the large registry
    #[arg(long, default_value_t = 1_000_000)]
    instances: usize,
    /// Leases that etcd is given
    #[arg(long, default_value_t = 50_000)]
    leases: usize,
    /// Only these parts: fleet, registry, etcd, identity
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Print the section, leave bench/README.md as it is
    #[arg(long)]
    dry_run: bool,
    /// Do not build: take what target/dist has
    #[arg(long)]
    no_build: bool,
}

pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    if !options.no_build {
        setup::run(root, false)?;
        let packages = ["--package", "phalanx", "--package", "phalanx-testkit"];
        let build = [&["build", "--profile", "dist"][..], &packages, &["--bins"]].concat();
        shell::run(&mut shell::cargo(root, &build))?;
    }
    let bench = Bench {
        root,
        work: root.join("target/bench"),
        options,
    };
    let mut figures = Figures::default();
    for round in 1..=options.rounds {
        println!("round {round}");
        for (name, part) in PARTS {
            if options.only.is_empty() || options.only.iter().any(|only| only == name) {
                part(&bench, &mut figures).with_context(|| format!("round {round}, {name}"))?;
            }
        }
    }
    let path = root.join("bench/README.md");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let kept = match options.only.is_empty() {
        true => Vec::new(),
        false => rows(&before),
    };
    let text = render(&figures, kept, options);
    println!("\n{text}");
    if !options.dry_run {
        std::fs::write(&path, with_section(&before, &text))
            .context("cannot write bench/README.md")?;
    }
    Ok(())
}

/// Everything before this line is of the sidecar's benchmark.
pub const HEADING: &str = "# Control plane";

/// The part of the file that is not of this benchmark, then `text`.
fn with_section(before: &str, text: &str) -> String {
    let own = before.find(HEADING).unwrap_or(before.len());
    format!("{}\n\n{text}", before[..own].trim_end())
}

/// Name and text of each row that stands there.
fn rows(before: &str) -> Vec<(String, String)> {
    let own = before.find(HEADING).and_then(|at| before.get(at..));
    let table = own.and_then(|own| own.split_once("|---|---|\n"));
    let lines = table.map_or("", |(_, rows)| rows).lines();
    let row = |line: &str| {
        let name = line.strip_prefix("| ")?.split(" | ").next()?;
        Some((name.to_owned(), line.to_owned()))
    };
    lines.filter_map(row).collect()
}

type Part = fn(&Bench<'_>, &mut Figures) -> anyhow::Result<()>;
const PARTS: [(&str, Part); 4] = [
    ("fleet", |bench, figures| bench.fleet(figures)),
    ("registry", |bench, figures| bench.registry(figures)),
    ("etcd", |bench, figures| bench.etcd(figures)),
    ("identity", |bench, figures| bench.identity(figures)),
];

struct Bench<'a> {
    root: &'a Path,
    work: PathBuf,
    options: &'a Options,
}

impl Bench<'_> {
    fn fleet(&self, figures: &mut Figures) -> anyhow::Result<()> {
        for (streams, services) in [
            (100, self.options.services),
            (self.options.streams, self.options.services),
            (self.options.streams, 2),
        ] {
            let control = self.start_control(true)?;
            let mut load = self.start_load()?;
            let of = |what: &str| format!("{what}, {streams} streams, {services} services");
            load.ask(&format!("mesh {ADMIN} {services}"))?;
            load.ask(&format!("streams {XDS} {services}"))?;
            std::thread::sleep(SETTLED);
            let empty = control.resident_kb()?;
            figures.add(
                of("first connection: all served, ms"),
                number(&load.ask(&format!("open {streams}"))?, "ms")?,
            );
            std::thread::sleep(SETTLED);
            let each = (control.resident_kb()? - empty) / streams as f64;
            figures.add(of("memory per idle stream, KB"), each);
            for _ in 0..CHANGES {
                let before = control.cpu_ms()?;
                let told = load.ask(&format!("change {ADMIN}"))?;
                std::thread::sleep(PAUSE);
                figures.add(
                    of("one rule changed: p99 of ACKs, ms"),
                    number(&told, "p99_ms")?,
                );
                figures.add(
                    of("one rule changed: last ACK, ms"),
                    number(&told, "max_ms")?,
                );
                figures.add(
                    of("one rule changed: CPU of the control plane, ms"),
                    control.cpu_ms()? - before,
                );
            }
            figures.add(
                of("all reconnect, knowing what they hold, ms"),
                number(&load.ask(&format!("reopen {streams}"))?, "ms")?,
            );
            let before = control.cpu_ms()?;
            figures.add(
                of("all reconnect, knowing nothing, ms"),
                number(&load.ask(&format!("open {streams}"))?, "ms")?,
            );
            figures.add(
                of("all reconnect, knowing nothing: CPU of the control plane, ms"),
                control.cpu_ms()? - before,
            );
        }
        Ok(())
    }

    fn registry(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let instances = self.options.instances;
        let of = |what: &str| format!("{what}, {instances} instances");
        let control = self.start_control(true)?;
        let mut load = self.start_load()?;
        let empty = control.resident_kb()?;
        load.ask(&format!("crowd {instances} {}", (instances / 1000).max(1)))?;
        figures.add(
            of("registered a second"),
            number(&load.ask(&format!("register {XDS}"))?, "per_second")?,
        );
        std::thread::sleep(SETTLED);
        figures.add(
            of("memory per instance, bytes"),
            (control.resident_kb()? - empty) * 1024.0 / instances as f64,
        );
        let before = control.cpu_ms()?;
        let beats = load.ask(&format!("beat {XDS} {BEATS} {SECONDS}"))?;
        figures.add(
            of("heartbeats a second (100,000 sent)"),
            number(&beats, "per_second")?,
        );
        figures.add(
            of("heartbeats: CPU of the control plane, \u{b5}s each"),
            (control.cpu_ms()? - before) * 1e3 / (BEATS * SECONDS) as f64,
        );
        let lookups = load.ask(&format!("lookup {DNS} {LOOKUPS} {SECONDS}"))?;
        figures.add(
            of("look-ups a second by DNS (50,000 sent)"),
            number(&lookups, "per_second")?,
        );
        figures.add(
            of("look-ups lost of 250,000 (the socket's buffer ran over)"),
            number(&lookups, "lost")?,
        );
        figures.add(of("look-ups: p99, ms"), number(&lookups, "p99_ms")?);
        let both = load.ask(&format!("both {XDS} {DNS} {BEATS} {LOOKUPS} {SECONDS}"))?;
        figures.add(
            of("both at once: heartbeats a second"),
            number(&both["beats"], "per_second")?,
        );
        figures.add(
            of("both at once: look-ups a second"),
            number(&both["lookups"], "per_second")?,
        );
        figures.add(
            of("both at once: p99 of look-ups, ms"),
            number(&both["lookups"], "p99_ms")?,
        );
        drop(control);
        let begun = Instant::now();
        let control = self.start_control(false)?;
        figures.add(
            of("restart until it serves, s"),
            begun.elapsed().as_secs_f64(),
        );
        drop(control);
        Ok(())
    }

    fn etcd(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let leases = self.options.leases;
        let of = |what: &str| format!("etcd: {what}, {leases} leases");
        let data = self.work.join("etcd");
        let _ = std::fs::remove_dir_all(&data);
        let mut command = Command::new("etcd");
        command
            .args([
                "--listen-client-urls",
                "http://127.0.0.1:18379",
                "--advertise-client-urls",
                "http://127.0.0.1:18379",
            ])
            .args([
                "--listen-peer-urls",
                "http://127.0.0.1:18380",
                "--quota-backend-bytes",
                "8000000000",
                "--data-dir",
            ])
            .arg(&data);
        let etcd = Process::start(&mut command, "etcd")?;
        wait_for(&["127.0.0.1:18379"])?;
        let mut load = self.start_load()?;
        let empty = etcd.resident_kb()?;
        figures.add(
            of("registered a second"),
            number(
                &load.ask(&format!("etcd-register 127.0.0.1:18379 {leases}"))?,
                "per_second",
            )?,
        );
        figures.add(
            of("memory per instance, bytes"),
            (etcd.resident_kb()? - empty) * 1024.0 / leases as f64,
        );
        let before = etcd.cpu_ms()?;
        let beats = number(
            &load.ask(&format!("etcd-beat 127.0.0.1:18379 {leases} {SECONDS}"))?,
            "per_second",
        )?;
        figures.add(of("renewals a second, as many as it takes"), beats);
        figures.add(
            of("renewals: CPU of etcd, \u{b5}s each"),
            (etcd.cpu_ms()? - before) * 1e3 / (beats * SECONDS as f64),
        );
        Ok(())
    }

    /// Returns when it serves.
    fn start_control(&self, is_fresh: bool) -> anyhow::Result<Process> {
        let data = self.work.join("control");
        if is_fresh {
            let _ = std::fs::remove_dir_all(&data);
        }
        let mut command = Command::new(self.root.join("target/dist/phalanx"));
        command
            .args([
                "control", "--open", "--xds", XDS, "--admin", ADMIN, "--dns", DNS, "--ocsp",
                "none", "--data",
            ])
            .arg(&data);
        let mut control = Process::start(&mut command, "the control plane")?;
        control.wait_until_ready()?;
        Ok(control)
    }

    fn start_load(&self) -> anyhow::Result<Load> {
        Load::start(&mut Command::new(
            self.root.join("target/dist/bench-control"),
        ))
    }
}

/// Ends with its owner.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, what: &str) -> anyhow::Result<Self> {
        let quiet = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(
            quiet
                .spawn()
                .with_context(|| format!("cannot start {what}"))?,
        ))
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                bail!("the control plane ended: {status}");
            }
            if is_ready().unwrap_or(false) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("the control plane does not come up");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn resident_kb(&self) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let words = line.and_then(|line| line.split_whitespace().next());
        Ok(words.context("no VmRSS")?.parse()?)
    }

    /// Of all its threads, also those that ended.
    fn cpu_ms(&self) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let after_name = text.rsplit(')').next().unwrap_or_default();
        let words: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = |index: usize| words.get(index).and_then(|w| w.parse::<f64>().ok());
        // A tick is 10 ms on every Linux there is.
        Ok((ticks(11).context("no utime")? + ticks(12).context("no stime")?) * 10.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Load {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Load {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start bench-control")?;
        let commands = child.stdin.take().context("no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self {
            child,
            commands,
            answers,
        })
    }

    fn ask(&mut self, command: &str) -> anyhow::Result<Json> {
        self.tell(command)?;
        self.answer(command)
    }

    /// The answer is for [`Load::answer`] to take.
    fn tell(&mut self, command: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.commands, "{command}")?)
    }

    fn answer(&mut self, command: &str) -> anyhow::Result<Json> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Json =
            serde_json::from_str(&line).with_context(|| format!("`{command}`: {line:?}"))?;
        if let Some(error) = answer.get("error") {
            bail!("`{command}`: {error}");
        }
        println!("  {command}: {answer}");
        Ok(answer)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready() -> anyhow::Result<bool> {
    use std::io::Read as _;
    let mut tcp = TcpStream::connect(ADMIN)?;
    write!(
        tcp,
        "GET /readyz HTTP/1.1\r\nhost: {ADMIN}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}

fn wait_for(addresses: &[&str]) -> anyhow::Result<()> {
    let begun = Instant::now();
    while addresses
        .iter()
        .any(|address| TcpStream::connect(address).is_err())
    {
        if begun.elapsed() > PATIENCE {
            bail!("nobody listens on {}", addresses.join(", "));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn number(answer: &Json, key: &str) -> anyhow::Result<f64> {
    let found = answer.get(key).and_then(Json::as_f64);
    found.with_context(|| format!("no {key} in {answer}"))
}

/// What was measured, in the order in which it first was.
#[derive(Default)]
struct Figures {
    order: Vec<String>,
    all: BTreeMap<String, Vec<f64>>,
}

impl Figures {
    fn add(&mut self, name: String, value: f64) {
        if !self.all.contains_key(&name) {
            self.order.push(name.clone());
        }
        self.all.entry(name).or_default().push(value);
    }
}

/// Rows that are `kept` stay where they are not measured anew.
fn render(figures: &Figures, kept: Vec<(String, String)>, options: &Options) -> String {
    let mut text = format!(
        "{HEADING}\n\nWritten by `cargo xtask bench control`; do not edit by hand. Two cores for everything, the load among it, on loopback; the\n\
         control plane as users start it, embedded store with fsync. A stream is a connection of its own over delta xDS that subscribes to\n\
         all clusters (ten endpoints each), their endpoint sets, its listener and its route table. Times of a change begin before the\n\
         request of the one who makes it, so they hold the store's fsync too. Certificates: what workloads do (keys, checking what they\n\
         get) is on the same cores, but no part of a CPU time; a pair under constant load has core 0 with its backend and the load,\n\
         the control plane and those that renew have core 1. Rounds: {}. Median (min\u{2013}max).\n\n| figure | |\n|---|---|\n",
        options.rounds
    );
    let mut rows = kept;
    for name in &figures.order {
        let values = figures.all.get(name).cloned().unwrap_or_default();
        let digits = if values.iter().all(|value| *value < 100.0) {
            1
        } else {
            0
        };
        let line = format!("| {name} | {} |", spread(values, digits));
        match rows.iter_mut().find(|(kept, _)| kept == name) {
            Some((_, kept)) => *kept = line,
            None => rows.push((name.clone(), line)),
        }
    }
    for (_, line) in rows {
        let _ = writeln!(text, "{line}");
    }
    text
}

const XDS: &str = "127.0.0.1:18010";
const ADMIN: &str = "127.0.0.1:18080";
const DNS: &str = "127.0.0.1:18053";
const CHANGES: usize = 5;
const BEATS: u64 = 100_000;
const LOOKUPS: u64 = 50_000;
const SECONDS: u64 = 5;
const SETTLED: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(120);
