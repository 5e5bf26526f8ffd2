//! A mesh of real processes: one control plane, applications, sidecars.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use phalanx_client::admin::Admin;
use phalanx_client::api::{ApplyRequest, ApplyResponse, File, Status};

use crate::process::{Process, executable};
use crate::{address, eventually};

/// Debug builds on two busy cores.
pub const READY_MAX: Duration = Duration::from_secs(30);

pub struct Mesh {
    pub control: Process,
    pub xds: SocketAddr,
    pub admin: SocketAddr,
    pub dns: SocketAddr,
    /// Further control planes that sidecars are told of from now on.
    pub others: Vec<SocketAddr>,
    folder: tempfile::TempDir,
    /// Of the control plane, beside those that every one has.
    options: Vec<String>,
    started: usize,
}

/// An application and its sidecar.
pub struct Instance {
    pub app: Process,
    pub sidecar: Process,
    pub app_address: SocketAddr,
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    pub admin: SocketAddr,
}

impl Mesh {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    /// With further options for the control plane.
    pub async fn start_with(options: &[&str]) -> anyhow::Result<Self> {
        let options: Vec<String> = options.iter().map(|&option| option.into()).collect();
        let folder = tempfile::tempdir()?;
        let ip = address::fresh();
        let (xds, admin) = (SocketAddr::new(ip, 15010), SocketAddr::new(ip, 15080));
        let control = spawn_control(folder.path(), xds, admin, &options, 0)?;
        let mesh = Self {
            control,
            xds,
            admin,
            dns: dns_at(ip),
            others: Vec::new(),
            folder,
            options,
            started: 0,
        };
        mesh.wait_for_control().await?;
        Ok(mesh)
    }

    pub fn client(&self) -> Admin {
        Admin::new(&self.admin.to_string())
    }

    /// Starts the control plane again, on the same data and addresses.
    pub async fn restart_control(&mut self) -> anyhow::Result<()> {
        self.control.kill();
        self.started += 1;
        self.control = spawn_control(
            self.folder.path(),
            self.xds,
            self.admin,
            &self.options,
            self.started,
        )?;
        self.wait_for_control().await
    }

    /// The same with other options.
    pub async fn restart_control_with(&mut self, options: &[&str]) -> anyhow::Result<()> {
        self.options = options.iter().map(|&option| option.into()).collect();
        self.restart_control().await
    }

    /// Where an embedded store is, unless an option says otherwise.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    async fn wait_for_control(&self) -> anyhow::Result<()> {
        let client = self.client();
        eventually("the control plane", READY_MAX, async || {
            client.status(None).await.ok().map(drop)
        })
        .await
    }

    /// Applies YAML and waits until every connected proxy has it.
    pub async fn apply(&self, yaml: &str) -> anyhow::Result<ApplyResponse> {
        let files = vec![File {
            name: "test.yaml".into(),
            text: yaml.into(),
        }];
        let answer = self
            .client()
            .apply(&ApplyRequest {
                files,
                author: "test".into(),
                ..ApplyRequest::default()
            })
            .await?;
        self.applied(answer.revision).await?;
        Ok(answer)
    }

    /// Waits until every connected proxy has the revision.
    pub async fn applied(&self, revision: u64) -> anyhow::Result<Status> {
        let client = self.client();
        eventually("every proxy to apply", READY_MAX, async || {
            client
                .status(Some(revision))
                .await
                .ok()
                .filter(|s| s.revision >= revision && s.complete())
        })
        .await
    }

    /// Starts `echo` and a sidecar for it, and waits until it is registered. `name` is what the echo answers.
    pub async fn instance(
        &mut self,
        service: &str,
        version: &str,
        name: &str,
    ) -> anyhow::Result<Instance> {
        self.instance_with(service, version, name, &[]).await
    }

    /// The same with further arguments for the sidecar.
    pub async fn instance_with(
        &mut self,
        service: &str,
        version: &str,
        name: &str,
        extra: &[&str],
    ) -> anyhow::Result<Instance> {
        let ip = address::fresh();
        let at = |port| SocketAddr::new(ip, port);
        let (app_address, inbound, outbound, admin) = (at(8080), at(15006), at(15001), at(15000));
        let app = self.echo(app_address, name)?;
        let sidecar = self.sidecar(
            service,
            version,
            ip,
            &[&["--app", &app_address.to_string()], extra].concat(),
        )?;
        let instance = Instance {
            app,
            sidecar,
            app_address,
            inbound,
            outbound,
            admin,
        };
        self.registered(service, inbound).await?;
        self.ready(instance.admin).await?;
        Ok(instance)
    }

    /// Only the application.
    pub fn echo(&mut self, address: SocketAddr, name: &str) -> anyhow::Result<Process> {
        let mut command = Command::new(executable("echo")?);
        command.args([&address.to_string(), name]);
        Process::spawn(command, &self.log(&format!("echo-{name}")))
    }

    /// Only the sidecar, with the ports of `surface.md` on `ip`.
    pub fn sidecar(
        &mut self,
        service: &str,
        version: &str,
        ip: IpAddr,
        extra: &[&str],
    ) -> anyhow::Result<Process> {
        let at = |port| SocketAddr::new(ip, port).to_string();
        let controls = std::iter::once(&self.xds).chain(&self.others);
        let controls: Vec<String> = controls.map(SocketAddr::to_string).collect();
        let mut command = Command::new(executable("phalanx")?);
        command.args([
            "proxy",
            "--service",
            service,
            "--labels",
            &format!("version={version}"),
            "--control",
            &controls.join(","),
        ]);
        command
            .args([
                "--inbound",
                &at(15006),
                "--outbound",
                &at(15001),
                "--admin",
                &at(15000),
                "--workers",
                "2",
            ])
            .args(extra);
        Process::spawn(command, &self.log(&format!("sidecar-{service}")))
    }

    /// An edge for the Gateway `edge` at `ip`, with the admin port of `surface.md`; its configuration is of `control`.
    pub fn edge(&mut self, ip: IpAddr, control: SocketAddr) -> anyhow::Result<Process> {
        let mut command = Command::new(executable("phalanx")?);
        command
            .args(["proxy", "--gateway", "edge", "--bind", &ip.to_string()])
            .args(["--admin", &SocketAddr::new(ip, 15000).to_string()])
            .args(["--control", &control.to_string(), "--workers", "2"])
            .args(["--drain", "1s"]);
        Process::spawn(command, &self.log("edge"))
    }

    /// Waits until an instance of the service with this inbound address is registered.
    pub async fn registered(&self, service: &str, inbound: SocketAddr) -> anyhow::Result<()> {
        self.until_registered(service, inbound, true).await
    }

    /// Waits until there is none any more.
    pub async fn withdrawn(&self, service: &str, inbound: SocketAddr) -> anyhow::Result<()> {
        self.until_registered(service, inbound, false).await
    }

    async fn until_registered(
        &self,
        service: &str,
        inbound: SocketAddr,
        wanted: bool,
    ) -> anyhow::Result<()> {
        let (client, address) = (self.client(), inbound.to_string());
        let what = format!(
            "{service} at {address} to be {}",
            if wanted { "registered" } else { "withdrawn" }
        );
        eventually(&what, READY_MAX, async || {
            let found = client.instances(Some(service), None).await.ok()?;
            let there = found
                .items
                .iter()
                .any(|i| i.ports.iter().any(|p| p.address == address));
            (there == wanted).then_some(())
        })
        .await
    }

    /// Waits for a sidecar's `/readyz`.
    pub async fn ready(&self, admin: SocketAddr) -> anyhow::Result<()> {
        let call = crate::http::Call::get("localhost", "/readyz");
        eventually("the sidecar to be ready", READY_MAX, async || {
            crate::http::call(admin, &call)
                .await
                .ok()
                .filter(|a| a.status == 200)
                .map(drop)
        })
        .await
    }

    /// A folder that lives as long as the mesh.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub(crate) fn log(&mut self, name: &str) -> PathBuf {
        self.started += 1;
        self.folder
            .path()
            .join(format!("{}-{name}.log", self.started))
    }
}

/// Where the mesh's names are answered.
fn dns_at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 15053)
}

fn spawn_control(
    folder: &std::path::Path,
    xds: SocketAddr,
    admin: SocketAddr,
    options: &[String],
    count: usize,
) -> anyhow::Result<Process> {
    let mut command = Command::new(executable("phalanx")?);
    command
        .args([
            "control",
            "--open",
            "--xds",
            &xds.to_string(),
            "--admin",
            &admin.to_string(),
            "--dns",
            &dns_at(xds.ip()).to_string(),
        ])
        .args(options);
    if !options.iter().any(|option| option == "--ocsp") {
        command.args(["--ocsp", "none"]);
    }
    if !options.iter().any(|option| option == "--data") {
        command.arg("--data").arg(folder.join("data"));
    }
    Process::spawn(command, &folder.join(format!("control-{count}.log")))
}
