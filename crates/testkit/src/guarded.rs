//! A control plane that proves who it is and lets in only who does, as a real process, with the command line and openssl at
//! hand: the peers of the tests about certificates.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use phalanx_client::admin::Admin;
use phalanx_client::secure::{Protocol, Secure, trusting};
use phalanx_pki::roots::Roots;

use crate::process::{Process, executable};
use crate::{address, eventually};

/// Debug builds on two busy cores.
const READY_MAX: Duration = Duration::from_secs(30);

pub struct Guarded {
    pub process: Process,
    pub xds: SocketAddr,
    pub admin: SocketAddr,
    pub ocsp: SocketAddr,
    folder: tempfile::TempDir,
    options: Vec<String>,
    started: usize,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub is_content: bool,
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    /// Both streams.
    pub text: String,
}

impl Guarded {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    /// With further options for the control plane.
    pub async fn start_with(options: &[&str]) -> anyhow::Result<Self> {
        let ip = address::fresh();
        let at = |port| SocketAddr::new(ip, port);
        let folder = tempfile::tempdir()?;
        let options: Vec<String> = options.iter().map(|&option| option.into()).collect();
        let process = spawn(folder.path(), ip, &options, 0)?;
        let mut plane = Self {
            process,
            xds: at(15010),
            admin: at(15080),
            ocsp: at(15082),
            folder,
            options,
            started: 0,
        };
        plane.wait().await?;
        Ok(plane)
    }

    /// Starts it again on the same data and addresses, after a kill.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill();
        self.started += 1;
        let ip = self.xds.ip();
        self.process = spawn(self.folder.path(), ip, &self.options, self.started)?;
        self.wait().await
    }

    /// Until it serves its operator, or has ended.
    async fn wait(&mut self) -> anyhow::Result<()> {
        let waited = eventually("the control plane", READY_MAX, async || {
            if self.process.has_ended() {
                return Some(false);
            }
            let serves = || self.phalanx(&["status"]).is_ok_and(|s| s.is_content);
            (self.admin_files().1.exists() && serves()).then_some(true)
        });
        let serves = waited.await.with_context(|| self.process.log())?;
        anyhow::ensure!(serves, "it ended: {}", self.process.log());
        Ok(())
    }

    /// A folder of the test's own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What its operator gets: the roots, and the token of an administrator.
    fn admin_files(&self) -> (PathBuf, PathBuf) {
        let folder = self.data().join("admin");
        (folder.join("roots.pem"), folder.join("token"))
    }

    /// Its admin API, as the operator.
    ///
    /// # Errors
    /// When there is nothing yet to prove that by.
    pub fn client(&self) -> anyhow::Result<Admin> {
        let (roots, token) = self.admin_files();
        let roots = Roots::from_pem(&std::fs::read(roots)?)?;
        let secure = Secure::try_new(trusting(roots), Protocol::Http1)?;
        let token = std::fs::read_to_string(token)?;
        let client = Admin::new(&self.admin.to_string()).with_secure(secure);
        Ok(client.with_token(token.trim()))
    }

    /// The roots that its operator trusts, PEM.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn roots(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.admin_files().0)?)
    }

    /// The command line, as the operator.
    ///
    /// # Errors
    /// When there is no such executable.
    pub fn phalanx(&self, words: &[&str]) -> anyhow::Result<Said> {
        let (roots, token) = self.admin_files();
        let mut command = Command::new(executable("phalanx")?);
        command
            .args(words)
            .env("PHALANX_ADMIN", self.admin.to_string())
            .env("PHALANX_ROOTS", roots)
            .env("PHALANX_TOKEN_FILE", token);
        say(command.current_dir(self.folder()))
    }

    /// The command line, which has to be content.
    ///
    /// # Errors
    /// Says what it said.
    pub fn does(&self, words: &[&str]) -> anyhow::Result<String> {
        let said = self.phalanx(words)?;
        anyhow::ensure!(said.is_content, "phalanx {words:?}\n{}", said.text);
        Ok(said.text)
    }

    /// openssl in the test's folder, with nothing to read.
    ///
    /// # Errors
    /// When it isn't installed.
    pub fn openssl(&self, words: &str) -> anyhow::Result<Said> {
        let mut command = Command::new("openssl");
        command.args(words.split_whitespace());
        say(command.current_dir(self.folder()))
    }

    /// openssl, which has to be content.
    ///
    /// # Errors
    /// Says what it said.
    pub fn agrees(&self, words: &str) -> anyhow::Result<String> {
        let said = self.openssl(words)?;
        anyhow::ensure!(said.is_content, "openssl {words}\n{}", said.text);
        Ok(said.text)
    }

    /// `/metrics` of the admin port.
    ///
    /// # Errors
    /// When curl isn't installed, or is refused.
    pub fn metrics(&self) -> anyhow::Result<String> {
        let (roots, token) = self.admin_files();
        let token = std::fs::read_to_string(token)?;
        let mut command = Command::new("curl");
        command
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "10",
                "--cacert",
            ])
            .arg(roots)
            .arg("--header")
            .arg(format!("authorization: Bearer {}", token.trim()))
            .arg(format!("https://{}/metrics", self.admin));
        let said = say(&mut command)?;
        anyhow::ensure!(said.is_content, "{}", said.text);
        Ok(said.text)
    }
}

fn say(command: &mut Command) -> anyhow::Result<Said> {
    let done = command.stdin(Stdio::null()).output();
    let done = done.with_context(|| format!("cannot run {command:?}"))?;
    let text = [done.stdout, done.stderr].concat();
    Ok(Said {
        is_content: done.status.success(),
        code: done.status.code().unwrap_or(-1),
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

fn spawn(
    folder: &Path,
    ip: std::net::IpAddr,
    options: &[String],
    count: usize,
) -> anyhow::Result<Process> {
    let at = |port| SocketAddr::new(ip, port).to_string();
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["control", "--xds", &at(15010), "--admin", &at(15080)])
        .args(["--dns", &at(15053), "--ocsp", &at(15082)])
        .args(options);
    if !options.iter().any(|option| option == "--data") {
        command.arg("--data").arg(folder.join("data"));
    }
    Process::spawn(command, &folder.join(format!("control-{count}.log")))
}
