//! Network namespaces around a bridge: each is held by a process that sleeps, so that nothing is left when the test is gone.
//! The machine's own namespace is neither looked at nor changed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use phalanx_testkit::process::Process;

/// Longer than any test.
const HELD_SECONDS: &str = "1800";
const WAIT: Duration = Duration::from_secs(30);

/// One namespace, known to the others by `10.77.0.<number>` and `fd77::<number>`.
pub struct Net {
    holder: Child,
    pub number: u8,
    folder: PathBuf,
}

impl Net {
    /// The one in the middle, with the bridge.
    pub fn hub(folder: &Path) -> anyhow::Result<Self> {
        let hub = Self::hold(1, folder)?;
        hub.does("ip link add br0 type bridge forward_delay 0 mcast_snooping 0")?;
        hub.up("br0")?;
        hub.does("ip address add 10.77.0.2/24 dev br0")?;
        Ok(hub)
    }

    /// One beside it.
    pub fn beside(hub: &Net, number: u8) -> anyhow::Result<Self> {
        let net = Self::hold(number, &hub.folder)?;
        let holder = net.holder.id();
        hub.does(&format!(
            "ip link add v{number} type veth peer name eth0 netns {holder}"
        ))?;
        hub.does(&format!("ip link set v{number} master br0 up"))?;
        net.up("eth0")?;
        Ok(net)
    }

    fn hold(number: u8, folder: &Path) -> anyhow::Result<Self> {
        let holder = Command::new("unshare")
            .args(["--net", "--", "sleep", HELD_SECONDS])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run unshare")?;
        let net = Self {
            holder,
            number,
            folder: folder.to_owned(),
        };
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let until = Instant::now() + WAIT;
        // Before that, a command would hit the machine's own namespace.
        while std::fs::read_link(net.path())
            .ok()
            .is_none_or(|its| its == own)
        {
            ensure!(Instant::now() < until, "no network namespace came to be");
            std::thread::sleep(Duration::from_millis(2));
        }
        net.does("ip link set lo up")?;
        Ok(net)
    }

    fn up(&self, device: &str) -> anyhow::Result<()> {
        let number = self.number;
        self.does(&format!("ip address add 10.77.0.{number}/24 dev {device}"))?;
        self.does(&format!(
            "ip -6 address add fd77::{number}/64 dev {device} nodad"
        ))?;
        self.does(&format!("ip link set {device} up"))
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// A program in there.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        command.arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// A program that goes on.
    pub fn spawn(&self, command: Command, name: &str) -> anyhow::Result<Process> {
        Process::spawn(command, &self.folder.join(format!("{name}.log")))
    }

    /// Words without blanks in them.
    pub fn output(&self, words: &str) -> anyhow::Result<Output> {
        let mut words = words.split_whitespace();
        let program = words.next().context("no program")?;
        let mut command = self.command(program);
        command.args(words);
        command
            .output()
            .with_context(|| format!("cannot run {program}"))
    }

    /// The same, which has to be content; what it wrote.
    pub fn says(&self, words: &str) -> anyhow::Result<String> {
        let done = self.output(words)?;
        ensure!(
            done.status.success(),
            "{words} in namespace {}: {}\n{}{}",
            self.number,
            done.status,
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    pub fn does(&self, words: &str) -> anyhow::Result<()> {
        self.says(words).map(drop)
    }

    /// Tables of nftables in there.
    pub fn tables(&self) -> anyhow::Result<Vec<String>> {
        let said = self.says("nft list tables")?;
        Ok(said.lines().map(str::to_owned).collect())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
