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

/// Who it says it is, and where its configuration comes from.
fn bootstrap(mesh: &Mesh, service: &str) -> anyhow::Result<PathBuf> {
    let path = mesh.folder().join(format!("bootstrap-{service}.json"));
    let text = json!({
        "xds_servers": [{
            "server_uri": mesh.xds.to_string(),
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        // grpc-js refuses a node without a locality.
        "node": {"id": format!("default/{service}/1"), "cluster": service, "locality": {}},
        "server_listener_resource_name_template": "grpc/server?xds.resource.listening_address=%s",
    });
    std::fs::write(&path, text.to_string()).context("cannot write the bootstrap")?;
    Ok(path)
}

/// A running client.
pub struct Client {
    pub stack: Stack,
    orders: mpsc::Sender<(Value, oneshot::Sender<anyhow::Result<Value>>)>,
    child: Child,
    log: PathBuf,
}

impl Client {
    pub fn start(mesh: &Mesh, stack: Stack) -> anyhow::Result<Self> {
        let service = format!("caller-{}", stack.name());
        let log = mesh.folder().join(format!("{service}.log"));
        let mut command = stack.command()?;
        command
            .arg("client")
            .env("GRPC_XDS_BOOTSTRAP", bootstrap(mesh, &service)?)
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
        answer.await.context("the client is gone")?
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
    mesh: &Mesh,
    stack: Stack,
    service: &str,
    address: SocketAddr,
) -> anyhow::Result<Process> {
    let mut command = stack.command()?;
    command
        .args(["server", &address.to_string(), service])
        .env("GRPC_XDS_BOOTSTRAP", bootstrap(mesh, service)?);
    Process::spawn(command, &mesh.folder().join(format!("{service}.log")))
}
