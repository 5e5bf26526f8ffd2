//! Processes under test, and what the kernel says of them.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::case::LISTEN;
use super::sample::Cpu;

pub const PROXY_CORE: &str = "0";
pub const LOAD_CORE: &str = "1";

/// A child process that ends with its owner.
pub struct Child {
    process: process::Child,
    what: &'static str,
    output: Option<BufReader<process::ChildStdout>>,
}

impl Child {
    pub fn spawn(command: &mut Command, what: &'static str) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Ok(Self {
            process: child.with_context(|| format!("cannot start {what}"))?,
            what,
            output: None,
        })
    }

    /// One whose output is read; [`Child::finish`] ends its input.
    pub fn listened(command: &mut Command, what: &'static str) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = child.with_context(|| format!("cannot start {what}"))?;
        let output = process.stdout.take().map(BufReader::new);
        Ok(Self {
            process,
            what,
            output,
        })
    }

    pub fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let output = self.output.as_mut().context("nobody listens to it")?;
        let read = output.read_line(&mut line)?;
        ensure!(read > 0, "{} ended early", self.what);
        Ok(line)
    }

    /// The rest of its output, when it has ended well.
    pub fn finish(mut self) -> anyhow::Result<String> {
        drop(self.process.stdin.take());
        let mut text = String::new();
        let output = self.output.as_mut().context("nobody listens to it")?;
        output.read_to_string(&mut text)?;
        let status = self.process.wait()?;
        ensure!(status.success(), "{}: {status}: {text}", self.what);
        Ok(text)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(Some(_))) {
            return;
        }
        // nginx's master must end its worker, so ask before forcing.
        let _ = Command::new("kill")
            .args(["-TERM", &self.process.id().to_string()])
            .status();
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The proxies under test, and whatever they need beside them (not counted).
pub struct Running {
    proxies: Vec<Child>,
    /// Where the load goes.
    pub entry: &'static str,
    /// Certificate and key of one whom the server's proxy of a pair lets in.
    pub pem: Option<(PathBuf, PathBuf)>,
    _beside: Vec<Child>,
}

impl Running {
    pub fn of(proxies: Vec<Child>, beside: Vec<Child>) -> Self {
        Self {
            proxies,
            entry: LISTEN,
            pem: None,
            _beside: beside,
        }
    }

    pub fn with_pem(mut self, cert: PathBuf, key: PathBuf) -> Self {
        self.pem = Some((cert, key));
        self
    }

    pub fn all(&self) -> Processes {
        Processes::of(&self.proxies)
    }

    /// Of a pair, the server's.
    pub fn last(&self) -> Processes {
        Processes::of(self.proxies.last())
    }

    pub fn cpu(&self) -> anyhow::Result<Cpu> {
        self.all().cpu()
    }

    pub fn resident_mb(&self) -> anyhow::Result<f64> {
        Ok(self.all().sum_kb("status", "VmRSS:")? / 1024.0)
    }
}

/// Some of them, with their own children.
pub struct Processes(Vec<u32>);

impl Processes {
    fn of<'c>(children: impl IntoIterator<Item = &'c Child>) -> Self {
        let mut all = Vec::new();
        for pid in children.into_iter().map(|child| child.process.id()) {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let children = fs::read_to_string(path).unwrap_or_default();
            all.push(pid);
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|c| c.parse::<u32>().ok()),
            );
        }
        Self(all)
    }

    /// Of all their threads: time from the scheduler, its kind from the timer's ticks.
    pub fn cpu(&self) -> anyhow::Result<Cpu> {
        let mut cpu = Cpu::default();
        for pid in &self.0 {
            for task in fs::read_dir(format!("/proc/{pid}/task")).context("the proxy is gone")? {
                let task = task?.path();
                let text = fs::read_to_string(task.join("schedstat"))?;
                cpu.ns += text
                    .split_whitespace()
                    .next()
                    .unwrap_or_default()
                    .parse::<u64>()?;
                let text = fs::read_to_string(task.join("stat"))?;
                let behind_name = text.rsplit(')').next().unwrap_or_default();
                let mut words = behind_name.split_whitespace().skip(11);
                let mut ticks = || words.next().unwrap_or_default().parse::<u64>();
                cpu.user_ticks += ticks()?;
                cpu.system_ticks += ticks()?;
            }
        }
        Ok(cpu)
    }

    /// What they share with others counts in part.
    pub fn proportional_kb(&self) -> anyhow::Result<f64> {
        self.sum_kb("smaps_rollup", "Pss:")
    }

    /// Open ones.
    pub fn descriptors(&self) -> anyhow::Result<usize> {
        let of = |pid| Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count());
        self.0.iter().map(of).sum()
    }

    fn sum_kb(&self, file: &str, mark: &str) -> anyhow::Result<f64> {
        let mut total = 0.0;
        for pid in &self.0 {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}"));
            let text = text.context("the proxy is gone")?;
            let line = text.lines().find_map(|line| line.strip_prefix(mark));
            let word = line.and_then(|line| line.split_whitespace().next());
            total += word.with_context(|| format!("no {mark}"))?.parse::<f64>()?;
        }
        Ok(total)
    }
}

pub fn wait_for_port(address: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("nothing listens on {address}")
}

/// Until a datagram comes back from there.
pub fn wait_for_echo(address: &str) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut buffer = [0; 16];
    while Instant::now() < deadline {
        socket.send_to(b"hello", address)?;
        if socket
            .recv(&mut buffer)
            .is_ok_and(|length| buffer[..length] == *b"hello")
        {
            return Ok(());
        }
    }
    bail!("nothing comes back from {address}")
}

pub fn pinned(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", PROXY_CORE]).arg(program);
    command
}
