//! A real etcd of one member, which a test starts, kills and starts again on the same address and data.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::process::Process;
use crate::{address, eventually};

/// Until it listens, on a machine that is busy with other tests.
pub const START_MAX: Duration = Duration::from_secs(30);
const CLIENT: u16 = 2379;
const PEER: u16 = 2380;

pub struct Etcd {
    process: Option<Process>,
    address: std::net::IpAddr,
    options: Vec<String>,
    folder: TempDir,
}

impl Etcd {
    /// Starts one that is empty, with options beside those that every one has.
    ///
    /// # Errors
    /// When it is not installed, or ends, or does not listen.
    pub async fn start(options: &[&str]) -> anyhow::Result<Etcd> {
        let mut etcd = Etcd {
            process: None,
            address: address::fresh(),
            options: options.iter().map(|&option| option.into()).collect(),
            folder: tempfile::tempdir()?,
        };
        etcd.restart().await?;
        Ok(etcd)
    }

    /// `HOST:PORT` for clients.
    pub fn endpoint(&self) -> String {
        SocketAddr::from((self.address, CLIENT)).to_string()
    }

    /// As gRPC clients want it.
    pub fn url(&self) -> String {
        format!("http://{}", self.endpoint())
    }

    /// As `kill -9` does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills it if it runs, starts it, and waits until it listens.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        let command = self.command();
        let log = self.folder.path().join("log");
        let process = Process::spawn(command, &log)
            .context("etcd can't be started: `cargo xtask setup` installs it")?;
        let endpoint = self.endpoint();
        eventually("etcd", START_MAX, async || {
            tokio::net::TcpStream::connect(&endpoint).await.ok()
        })
        .await
        .with_context(|| process.log())?;
        self.process = Some(process);
        Ok(())
    }

    /// The running process, to pause and resume it.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    fn command(&self) -> Command {
        let client = self.url();
        let peer = format!("http://{}", SocketAddr::from((self.address, PEER)));
        let mut command = Command::new("etcd");
        command
            .args(["--name", "one", "--log-level", "warn", "--data-dir"])
            .arg(self.folder.path().join("data"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            // Alone it elects itself: this is how long that takes. It decides the least TTL of a lease, too.
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .args(&self.options);
        command
    }
}
