//! The programs of `clients/` as child processes: what a gRPC stack does with xDS by itself.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use anyhow::Context;
use phalanx_testkit::mesh::Mesh;
use phalanx_testkit::process::Process;
use serde_json::{Value, json};
use tokio::sync::oneshot;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    Python,
    Node,
    Go,
}

impl Stack {
    pub const ALL: [Self; 3] = [Self::Python, Self::Node, Self::Go];

    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Go => "go",
        }
    }

    /// Up to its own arguments.
    fn command(self) -> anyhow::Result<Command> {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
        let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
        let installed = |path: &str| {
            let path = tools.join(path);
            anyhow::ensure!(
                path.is_file(),
                "no {}; run `cargo xtask setup`",
                path.display()
            );
            Ok(path)
        };
        let mut command = match self {
            Self::Python => {
                installed("venv/requirements.txt")?;
                let mut command = Command::new(installed("venv/bin/python")?);
                command.arg(clients.join("python/peer.py"));
                command
            }
            Self::Node => {
                installed("node/node_modules/installed-lock.json")?;
                let mut command = Command::new("node");
                command.arg(clients.join("node/peer.js"));
                command.env("PHALANX_NODE_MODULES", tools.join("node"));
                // Elsewhere it is on by default.
                command.env("GRPC_XDS_EXPERIMENTAL_RBAC", "true");
                command
            }
            Self::Go => Command::new(installed("grpc-go-peer")?),
        };
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(name);
        }
        Ok(command)
    }
}

/// Where a program's configuration comes from, and what it shows.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub folder: &'a Path,
    pub xds: SocketAddr,
    /// The folder of its certificate.
    pub files: Option<&'a Path>,
    /// Whether the control plane asks for that certificate.
    pub is_guarded: bool,
}

impl<'a> Place<'a> {
    pub fn open(mesh: &'a Mesh) -> Self {
        Self {
            folder: mesh.folder(),
            xds: mesh.xds,
            files: None,
            is_guarded: false,
        }
    }

    /// Writes the bootstrap, which says who it is.
    fn bootstrap(&self, service: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(format!("bootstrap-{service}.json"));
        let files = self.files.map(|folder| {
            json!({
                "certificate_file": folder.join("cert.pem"),
                "private_key_file": folder.join("key.pem"),
                "ca_certificate_file": folder.join("roots.pem"),
                "refresh_interval": "1s",
            })
        });
        let shown = match (&files, self.is_guarded) {
            (Some(files), true) => json!({"type": "tls", "config": files}),
            _ => json!({"type": "insecure"}),
        };
        let mut text = json!({
            "xds_servers": [{
                "server_uri": self.xds.to_string(),
                "channel_creds": [shown],
                "server_features": ["xds_v3"],
            }],
            // grpc-js refuses a node without a locality.
            "node": {"id": format!("default/{service}/1"), "cluster": service, "locality": {}},
            "server_listener_resource_name_template": "grpc/server?xds.resource.listening_address=%s",
        });
        if let Some(files) = files {
            text["node"]["metadata"] = json!({"certificate_providers": true});
            text["certificate_providers"] =
                json!({"default": {"plugin_name": "file_watcher", "config": files}});
        }
        std::fs::write(&path, text.to_string()).context("cannot write the bootstrap")?;
        Ok(path)
    }

    fn configure(&self, command: &mut Command, service: &str) -> anyhow::Result<()> {
        command.env("GRPC_XDS_BOOTSTRAP", self.bootstrap(service)?);
        if self.files.is_some() {
            command.env("XDS_CREDENTIALS", "1");
        }
        Ok(())
    }
}

/// A running client.
pub struct Client {
    pub stack: Stack,
    orders: mpsc::Sender<(Value, oneshot::Sender<anyhow::Result<Value>>)>,
    child: Child,
    log: PathBuf,
}

impl Client {
    pub fn start(place: &Place<'_>, stack: Stack) -> anyhow::Result<Self> {
        let service = format!("caller-{}", stack.name());
        let log = place.folder.join(format!("{service}.log"));
        let mut command = stack.command()?;
        place.configure(&mut command, &service)?;
        command
            .arg("client")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}; run `cargo xtask setup`"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (mut stdin, stdout) = stdin.zip(stdout).context("no pipes")?;
        let (orders, taken) = mpsc::channel::<(Value, oneshot::Sender<anyhow::Result<Value>>)>();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            for (order, done) in taken {
                let answer = writeln!(stdin, "{order}")
                    .and_then(|()| stdin.flush())
                    .map_err(anyhow::Error::from)
                    .and_then(|()| {
                        let line = lines.next().context("the client ended")??;
                        Ok(serde_json::from_str(&line)?)
                    });
                let _ = done.send(answer);
            }
        });
        Ok(Self {
            stack,
            orders,
            child,
            log,
        })
    }

    pub async fn order(&self, order: Value) -> anyhow::Result<Value> {
        let (done, answer) = oneshot::channel();
        self.orders.send((order, done)).ok().context("no client")?;
        let answer = answer.await.context("the client is gone")?;
        answer.with_context(|| std::fs::read_to_string(&self.log).unwrap_or_default())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- {}\n{log}", self.log.display());
        }
    }
}

/// A server that answers every method, or asks the control plane whether to.
pub fn server(
    place: &Place<'_>,
    stack: Stack,
    service: &str,
    address: SocketAddr,
) -> anyhow::Result<Process> {
    let mut command = stack.command()?;
    place.configure(&mut command, service)?;
    command.args(["server", &address.to_string(), service]);
    Process::spawn(command, &place.folder.join(format!("{service}.log")))
}
