//! Real etcds, which a test starts, kills and starts again on the same address and data: one by itself, in plain text or
//! over TLS, or three that are a cluster.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::process::Process;
use crate::{address, eventually};

pub mod certificates;

pub use certificates::Certificates;

/// Until it listens, on a machine that is busy with other tests.
pub const START_MAX: Duration = Duration::from_secs(30);
const CLIENT: u16 = 2379;
const PEER: u16 = 2380;

pub struct Etcd {
    process: Option<Process>,
    address: IpAddr,
    name: String,
    /// As `--initial-cluster` has it.
    cluster: String,
    /// None: plain text.
    certificates: Option<Certificates>,
    options: Vec<String>,
    folder: TempDir,
}

/// Three members.
pub struct Cluster {
    pub members: Vec<Etcd>,
}

impl Etcd {
    /// Starts one that is empty, with options beside those that every one has.
    ///
    /// # Errors
    /// When it is not installed, or ends, or does not listen.
    pub async fn start(options: &[&str]) -> anyhow::Result<Etcd> {
        let mut etcd = Etcd::new(options)?;
        etcd.restart().await?;
        Ok(etcd)
    }

    /// The same over TLS; it takes only clients with a certificate of its own authority.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub async fn start_tls() -> anyhow::Result<Etcd> {
        let mut etcd = Etcd::new(&[])?;
        let folder = etcd.folder.path().join("certificates");
        etcd.certificates = Some(Certificates::make(&folder, etcd.address)?);
        etcd.restart().await?;
        Ok(etcd)
    }

    fn new(options: &[&str]) -> anyhow::Result<Etcd> {
        let address = address::fresh();
        Ok(Etcd {
            process: None,
            address,
            name: "one".into(),
            cluster: format!("one={}", peer_url(address)),
            certificates: None,
            options: options.iter().map(|&option| option.into()).collect(),
            folder: tempfile::tempdir()?,
        })
    }

    /// Of one that speaks TLS.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// `HOST:PORT` for clients.
    pub fn endpoint(&self) -> String {
        SocketAddr::from((self.address, CLIENT)).to_string()
    }

    /// As gRPC clients want it.
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.endpoint())
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
        self.launch()?;
        self.listening().await
    }

    /// Starts it anew with nothing, as somebody does who lost the disk.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub async fn lose_data(&mut self) -> anyhow::Result<()> {
        self.kill();
        std::fs::remove_dir_all(self.folder.path().join("data"))?;
        self.restart().await
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        self.kill();
        let command = self.command();
        let log = self.folder.path().join("log");
        let process = Process::spawn(command, &log)
            .context("etcd can't be started: `cargo xtask setup` installs it")?;
        self.process = Some(process);
        Ok(())
    }

    async fn listening(&self) -> anyhow::Result<()> {
        let endpoint = self.endpoint();
        eventually("etcd", START_MAX, async || {
            tokio::net::TcpStream::connect(&endpoint).await.ok()
        })
        .await
        .map(drop)
        .with_context(|| self.process.as_ref().map(Process::log).unwrap_or_default())
    }

    /// The running process, to pause and resume it.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    fn command(&self) -> Command {
        let client = self.url();
        let peer = peer_url(self.address);
        let mut command = Command::new("etcd");
        command
            .args(["--name", &self.name, "--log-level", "warn", "--data-dir"])
            .arg(self.folder.path().join("data"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster])
            .args(["--heartbeat-interval", "20"])
            .args(&self.options);
        // Alone it elects itself: this is how long that takes. It decides the least TTL of a lease, too. Several on one busy
        // machine need more, or they elect all the time.
        let is_alone = !self.cluster.contains(',');
        command.args(["--election-timeout", if is_alone { "200" } else { "600" }]);
        if let Some(certificates) = &self.certificates {
            command
                .arg("--client-cert-auth")
                .arg("--trusted-ca-file")
                .arg(&certificates.ca)
                .arg("--cert-file")
                .arg(&certificates.server.0)
                .arg("--key-file")
                .arg(&certificates.server.1);
        }
        command
    }
}

impl Cluster {
    /// # Errors
    /// As [`Etcd::start`].
    pub async fn start() -> anyhow::Result<Cluster> {
        const NAMES: [&str; 3] = ["one", "two", "three"];
        let addresses = NAMES.map(|_| address::fresh());
        let entries: Vec<String> = NAMES
            .iter()
            .zip(addresses)
            .map(|(name, address)| format!("{name}={}", peer_url(address)))
            .collect();
        let mut cluster = Cluster {
            members: Vec::new(),
        };
        for (name, address) in NAMES.iter().zip(addresses) {
            let mut member = Etcd {
                process: None,
                address,
                name: (*name).into(),
                cluster: entries.join(","),
                certificates: None,
                options: Vec::new(),
                folder: tempfile::tempdir()?,
            };
            member.launch()?;
            cluster.members.push(member);
        }
        for member in &cluster.members {
            member.listening().await?;
        }
        Ok(cluster)
    }

    /// `HOST:PORT,HOST:PORT,HOST:PORT`
    pub fn endpoints(&self) -> String {
        let endpoints: Vec<String> = self.members.iter().map(Etcd::endpoint).collect();
        endpoints.join(",")
    }
}

fn peer_url(address: IpAddr) -> String {
    format!("http://{}", SocketAddr::from((address, PEER)))
}
