//! A real Envoy that knows only where the control plane is and who it stands for.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::http::{Call, call};
use crate::mesh::{Mesh, READY_MAX};
use crate::process::Process;
use crate::{address, eventually};

/// How Envoy talks to the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Delta,
    StateOfTheWorld,
}

/// Offers to check endpoints.
pub const HEALTH_DISCOVERY: &str = "\
hds_config:
  api_type: GRPC
  transport_api_version: V3
  grpc_services: [{envoy_grpc: {cluster_name: xds}}]
";

pub struct Envoy {
    pub process: Process,
    pub outbound: SocketAddr,
    pub admin: SocketAddr,
}

impl Envoy {
    /// Starts it as the sidecar of `service` and waits until its outbound listener is up.
    pub async fn start(mesh: &mut Mesh, service: &str, protocol: Protocol) -> anyhow::Result<Self> {
        Self::start_with(mesh, service, protocol, "").await
    }

    /// The same with further lines of the bootstrap, such as [`HEALTH_DISCOVERY`].
    pub async fn start_with(
        mesh: &mut Mesh,
        service: &str,
        protocol: Protocol,
        extra: &str,
    ) -> anyhow::Result<Self> {
        let xds = mesh.xds;
        let text = |ip| bootstrap(service, ip, xds, protocol) + extra;
        Self::start_from(mesh, text).await
    }

    /// The same with another bootstrap, whose outbound listener and admin stand on this address.
    pub async fn start_from(
        mesh: &mut Mesh,
        bootstrap: impl FnOnce(IpAddr) -> String,
    ) -> anyhow::Result<Self> {
        let ip = address::fresh();
        let (outbound, admin) = (SocketAddr::new(ip, 15001), SocketAddr::new(ip, 15000));
        let config = mesh.folder().join(format!("envoy-{ip}.yaml"));
        std::fs::write(&config, bootstrap(ip)).context("cannot write the bootstrap")?;
        let mut command = Command::new(binary()?);
        command.arg("-c").arg(&config).args([
            "--concurrency",
            "1",
            "-l",
            "warning",
            "--use-dynamic-base-id",
        ]);
        let log = mesh.log("envoy");
        let envoy = Self {
            process: Process::spawn(command, &log)?,
            outbound,
            admin,
        };
        let listening = Call::get("any", "/");
        eventually("envoy's outbound listener", READY_MAX, async || {
            call(outbound, &listening).await.ok().map(drop)
        })
        .await?;
        Ok(envoy)
    }

    /// A counter or gauge by its full name; 0 when there is none.
    pub async fn stat(&self, name: &str) -> anyhow::Result<u64> {
        let answer = call(
            self.admin,
            &Call::get("localhost", &format!("/stats?filter=^{name}$")),
        )
        .await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        Ok(text
            .trim()
            .rsplit(' ')
            .next()
            .and_then(|v| v.parse().ok())
            .unwrap_or(0))
    }
}

/// `PHALANX_ENVOY`, else where `cargo xtask setup` puts it.
pub fn binary() -> anyhow::Result<PathBuf> {
    let set_up = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../target/tools/venv/bin/envoy"
    ));
    let path = std::env::var_os("PHALANX_ENVOY").map_or(set_up, PathBuf::from);
    anyhow::ensure!(
        path.is_file(),
        "no Envoy at {}; run `cargo xtask setup`",
        path.display()
    );
    Ok(path)
}

/// `<service>` at `ip`, over one aggregated stream.
pub fn bootstrap(service: &str, ip: IpAddr, xds: SocketAddr, protocol: Protocol) -> String {
    let api_type = if protocol == Protocol::Delta {
        "DELTA_GRPC"
    } else {
        "GRPC"
    };
    format!(
        r#"node:
  id: default/{service}/envoy-{ip}
  cluster: {service}
  metadata: {{service: {service}, namespace: default, outbound: "{ip}:15001"}}
admin:
  address: {{socket_address: {{address: {ip}, port_value: 15000}}}}
dynamic_resources:
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]
"#,
        xds.ip(),
        xds.port()
    )
}
