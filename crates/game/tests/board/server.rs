//! Redis servers of their own, and a proxy that is slow.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use phalanx_game::board::redis::{LiveConfig, RedisConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Longer than anything takes on a machine that is ten times slower.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// What ten minutes of outage left behind takes longer.
const DEADLINE_OF_SOAKS: Duration = Duration::from_secs(600);

/// Polls until `found` is something.
pub async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let soaks = std::env::var_os("PHALANX_SOAK").is_some();
    let deadline = Instant::now() + if soaks { DEADLINE_OF_SOAKS } else { DEADLINE };
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub struct Redis {
    child: Option<Child>,
    pub port: u16,
    directory: TempDir,
    arguments: Vec<String>,
}

impl Redis {
    /// Keeps nothing over a restart.
    pub fn start() -> Self {
        Self::with(&["--save", "", "--appendonly", "no"])
    }

    /// Has everything that it acknowledged after a restart.
    pub fn durable() -> Self {
        Self::with(&[
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
        ])
    }

    pub fn with(arguments: &[&str]) -> Self {
        for _ in 0..20 {
            // Somebody else may take the port before Redis does.
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let mut redis = Self {
                child: None,
                port,
                directory: tempfile::tempdir().unwrap(),
                arguments: arguments
                    .iter()
                    .map(|argument| (*argument).to_owned())
                    .collect(),
            };
            if redis.try_run() {
                return redis;
            }
        }
        panic!("redis-server doesn't start");
    }

    fn try_run(&mut self) -> bool {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args([
                "--enable-debug-command",
                "yes",
                "--daemonize",
                "no",
                "--loglevel",
                "warning",
            ])
            .arg("--dir")
            .arg(self.directory.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed (cargo xtask setup)");
        self.child = Some(child);
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            let child = self.child.as_mut().unwrap();
            if child.try_wait().unwrap().is_some() {
                self.child = None;
                return false;
            }
            // Another test's server may have been faster on this port.
            let directory = self.directory.path().to_str().unwrap();
            let answer = self.try_ask(&["CONFIG", "GET", "dir"]);
            if answer.is_some_and(|answer| answer.contains(directory)) && self.is_loaded() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("redis-server doesn't answer");
    }

    fn is_loaded(&self) -> bool {
        let answer = self.try_ask(&["PING"]);
        answer.is_some_and(|answer| answer.starts_with("+PONG"))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// On the same port, with what is on its disk.
    pub fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + DEADLINE;
        while !self.try_run() {
            assert!(Instant::now() < deadline, "the port is taken");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A new, empty disk for the next start.
    pub fn lose_disk(&mut self) {
        self.directory = tempfile::tempdir().unwrap();
    }

    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }

    /// A command, and the first bytes of its answer.
    pub fn ask(&self, command: &[&str]) -> String {
        self.try_ask(command).expect("redis answers")
    }

    fn try_ask(&self, command: &[&str]) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .ok()?;
        let mut text = format!("*{}\r\n", command.len());
        for part in command {
            text += &format!("${}\r\n{part}\r\n", part.len());
        }
        stream.write_all(text.as_bytes()).ok()?;
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..read]).into_owned())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Passes bytes on after a while that can be changed.
pub struct SlowProxy {
    pub port: u16,
    pub delay_ms: Arc<AtomicU64>,
}

impl SlowProxy {
    pub async fn to(port: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            delay_ms: Arc::default(),
        };
        let delay_ms = proxy.delay_ms.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let delay_ms = delay_ms.clone();
                tokio::spawn(async move {
                    let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port))
                        .await
                        .ok()?;
                    let (mut from_client, mut to_client) = client.split();
                    let (mut from_server, mut to_server) = server.split();
                    let back = async {
                        let mut bytes = vec![0; 64 << 10];
                        loop {
                            let read = from_server
                                .read(&mut bytes)
                                .await
                                .ok()
                                .filter(|read| *read > 0)?;
                            let delay = delay_ms.load(Ordering::Relaxed);
                            if delay > 0 {
                                tokio::time::sleep(Duration::from_millis(delay)).await;
                            }
                            to_client.write_all(&bytes[..read]).await.ok()?;
                        }
                    };
                    let there = tokio::io::copy(&mut from_client, &mut to_server);
                    tokio::select! {
                        done = back => done,
                        _ = there => Some(()),
                    }
                });
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

/// With times that suit tests.
pub fn config(url: impl Into<String>, directory: Option<&Path>) -> LiveConfig {
    quick(RedisConfig::new(url), directory)
}

pub fn quick(redis: RedisConfig, directory: Option<&Path>) -> LiveConfig {
    let mut config = LiveConfig::new(redis, directory.map(Path::to_owned));
    config.redis.call_max = Duration::from_millis(300);
    config.redis.connect_max = Duration::from_millis(300);
    config.refresh.period_min = Duration::from_millis(20);
    config.refresh.period_max = Duration::from_millis(60);
    config.refresh.sketch_every = Duration::from_millis(50);
    config.refresh.persist_every = Duration::from_millis(50);
    config.breaker.open_max = Duration::from_millis(400);
    config
}
