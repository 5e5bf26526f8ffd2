//! An etcd of one member that a test starts, kills and starts again.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{EtcdConfig, Store};

const START_MAX: Duration = Duration::from_secs(30);

pub struct Server {
    directory: TempDir,
    options: Vec<String>,
    client: u16,
    peer: u16,
    child: Option<Child>,
}

/// A store over a server of its own, which ends with it.
pub struct Fixture {
    pub store: Store,
    pub server: Server,
}

impl Fixture {
    pub async fn start() -> Fixture {
        Fixture::with(&[]).await
    }

    pub async fn with(options: &[&str]) -> Fixture {
        let server = Server::start(options).await;
        let store = Store::etcd(server.config()).await.unwrap();
        Fixture { store, server }
    }
}

impl Server {
    pub async fn start(options: &[&str]) -> Server {
        let mut server = Server {
            directory: tempfile::tempdir().unwrap(),
            options: options.iter().map(|&option| option.into()).collect(),
            client: free_port(),
            peer: free_port(),
            child: None,
        };
        server.restart().await;
        server
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.endpoint())
    }

    pub fn config(&self) -> EtcdConfig {
        let mut config = EtcdConfig::new([self.endpoint()]);
        config.patience = START_MAX;
        config
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it on the same ports and data, and waits until it listens.
    pub async fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + START_MAX;
        self.child = Some(self.spawn());
        while std::net::TcpStream::connect(("127.0.0.1", self.client)).is_err() {
            let child = self.child.as_mut().unwrap();
            if let Some(ended) = child.try_wait().unwrap() {
                panic!("etcd ended ({ended}): {}", log(self.directory.path()));
            }
            assert!(Instant::now() < deadline, "etcd does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn spawn(&self) -> Child {
        let client = self.url();
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let log = std::fs::File::create(self.directory.path().join("log")).unwrap();
        Command::new("etcd")
            .args(["--name", "one", "--log-level", "warn"])
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("one={peer}")])
            // Alone it elects itself; this is how long it takes, and the least TTL of a lease.
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("can't start etcd ({error}): `cargo xtask setup` installs it")
            })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("log")).unwrap_or_default()
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}
