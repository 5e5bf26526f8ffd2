//! Envoy's API: which part of it the mesh speaks, and where its descriptors are found on this machine.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use prost::Message;
use prost_types::FileDescriptorSet;

use crate::closure;

/// What the mesh speaks. `package.*` takes a whole package, other names are messages or services;
/// whatever their fields mention comes along.
const ROOTS: &[&str] = &[
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.core.v3.*",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.*",
    "envoy.extensions.filters.http.cors.v3.*",
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
    "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
    "envoy.extensions.filters.http.ratelimit.v3.*",
    "envoy.extensions.filters.http.rbac.v3.RBAC",
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.http.stateful_session.v3.*",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.network.rbac.v3.RBAC",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "envoy.extensions.filters.udp.udp_proxy.v3.Route",
    "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig",
    "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
    "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState",
    "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState",
    "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
    "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
    "envoy.extensions.load_balancing_policies.random.v3.Random",
    "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
    "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality",
    "envoy.extensions.matching.common_inputs.network.v3.SourceIPInput",
    "envoy.extensions.matching.common_inputs.network.v3.SourcePortInput",
    "envoy.extensions.matching.input_matchers.runtime_fraction.v3.RuntimeFraction",
    "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "envoy.extensions.transport_sockets.tls.v3.Secret",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "envoy.service.cluster.v3.*",
    "envoy.service.cluster.v3.ClusterDiscoveryService",
    "envoy.service.discovery.v3.AggregatedDiscoveryService",
    "envoy.service.discovery.v3.*",
    "envoy.service.endpoint.v3.EndpointDiscoveryService",
    "envoy.service.health.v3.*",
    "envoy.service.health.v3.HealthDiscoveryService",
    "envoy.service.listener.v3.*",
    "envoy.service.listener.v3.ListenerDiscoveryService",
    "envoy.service.load_stats.v3.*",
    "envoy.service.load_stats.v3.LoadReportingService",
    "envoy.service.ratelimit.v3.*",
    "envoy.service.ratelimit.v3.RateLimitService",
    "envoy.service.route.v3.RouteDiscoveryService",
    "envoy.service.secret.v3.*",
    "envoy.service.secret.v3.SecretDiscoveryService",
    "envoy.service.status.v3.*",
    "envoy.service.status.v3.ClientStatusDiscoveryService",
    "google.rpc.Status",
];

pub struct Workspace {
    pub root: PathBuf,
    /// Folder of the crate whose descriptor set holds Envoy's API.
    types: PathBuf,
}

impl Workspace {
    /// Asks cargo, so that registries, mirrors and vendored sources all work.
    pub fn locate() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .output()
            .context("running cargo metadata")?;
        anyhow::ensure!(
            output.status.success(),
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let root = metadata["workspace_root"]
            .as_str()
            .context("no workspace root")?;
        let manifest = metadata["packages"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|package| package["name"] == "envoy-types")
            .and_then(|package| package["manifest_path"].as_str())
            .context("crate envoy-types is not in the dependency graph")?;
        let types = PathBuf::from(manifest)
            .parent()
            .context("manifest without a folder")?
            .into();
        Ok(Self {
            root: root.into(),
            types,
        })
    }
}

/// The descriptors reachable from [`ROOTS`], without comments.
pub fn subset(workspace: &Workspace) -> Result<FileDescriptorSet> {
    let path = workspace.types.join("src/generated/types.bin");
    let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    closure::prune(FileDescriptorSet::decode(bytes.as_slice())?, ROOTS)
}
