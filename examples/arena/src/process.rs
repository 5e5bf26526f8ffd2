//! The processes of the demo: which services run, how often, in which version, and on which loopback address.
//! Every process has an address of its own with the same ports on it, so nothing collides.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

use crate::bots::mover;
use crate::serve::ServiceConfig;
use crate::{battle, gateway, leaderboard, matchmaker, physics, room};

/// Where a service listens on its address.
pub const APP_PORT: u16 = 8080;
/// Where its sidecar listens on the same address.
pub const INBOUND_PORT: u16 = 15006;
pub const OUTBOUND_PORT: u16 = 15001;
pub const ADMIN_PORT: u16 = 15000;

/// The edge's address, and where players come in there: over HTTP, and to the rooms.
pub const EDGE: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 20);
pub const EDGE_HTTP_PORT: u16 = 8080;
pub const EDGE_ROOM_PORT: u16 = 7777;
/// The Gateway that is run there.
pub const EDGE_NAME: &str = "edge";
/// The colour of one developer's lane, and the version that its battle says it is.
pub const LANE: &str = "dev-li";
pub const LANE_VERSION: &str = "dev";
/// Where physics in Go listens, and its sidecar; the one in Rust computes for it as `engine` then.
pub const GO_PHYSICS: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 12);
pub const ENGINE: &str = "engine";

/// One service process and its sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    pub service: ServiceKind,
    pub version: &'static str,
    /// From 1 within service and version.
    pub replica: u32,
    /// Of the instance, beside its version.
    pub labels: Vec<(&'static str, String)>,
    /// Where the service listens: 127.0.1.N:8080.
    pub app: SocketAddr,
    /// The sidecar's listeners.
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    pub admin: SocketAddr,
}

/// gateway, match, battle v1 twice, battle v2, physics, leaderboard, two rooms, a developer's battle, and the other match,
/// on 127.0.1.1 and following.
pub fn processes() -> Vec<ProcessSpec> {
    let table = [
        (ServiceKind::Gateway, "v1", 1),
        (ServiceKind::Match, "v1", 1),
        (ServiceKind::Battle, "v1", 1),
        (ServiceKind::Battle, "v1", 2),
        (ServiceKind::Battle, "v2", 1),
        (ServiceKind::Physics, "v1", 1),
        (ServiceKind::Leaderboard, "v1", 1),
        (ServiceKind::Room, "v1", 1),
        (ServiceKind::Room, "v2", 1),
        (ServiceKind::Battle, LANE_VERSION, 1),
        (ServiceKind::Match, "v1", 2),
    ];
    let spec = |(host, (service, version, replica))| {
        let at = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 1, host)), port);
        let [app, inbound, outbound, admin] =
            [APP_PORT, INBOUND_PORT, OUTBOUND_PORT, ADMIN_PORT].map(at);
        ProcessSpec {
            service,
            version,
            replica,
            labels: labels(service, version),
            app,
            inbound,
            outbound,
            admin,
        }
    };
    (1..).zip(table).map(spec).collect()
}

/// What an instance says of itself. A room's token leads to it; a developer's battle stands in for the version that it was
/// made from, in the lane only.
fn labels(service: ServiceKind, version: &'static str) -> Vec<(&'static str, String)> {
    match (service, version) {
        (ServiceKind::Room, _) => {
            let token = mover::token(room::number(version));
            let hex = token.iter().map(|byte| format!("{byte:02x}")).collect();
            vec![("version", version.into()), ("phalanx.dev/token", hex)]
        }
        (_, LANE_VERSION) => vec![("version", "v1".into()), ("lane", LANE.into())],
        _ => vec![("version", version.into())],
    }
}

impl ProcessSpec {
    /// For logs and tables: `battle-v1-2`.
    pub fn name(&self) -> String {
        format!("{}-{}-{}", self.service, self.version, self.replica)
    }

    /// Where its application is, as its sidecar is told.
    pub fn app_flag(&self) -> String {
        match self.service {
            ServiceKind::Room => format!("play=udp://{}", self.app),
            _ => self.app.to_string(),
        }
    }

    /// `version=v1,lane=dev-li`
    pub fn labels_flag(&self) -> String {
        let labels = self.labels.iter();
        let labels: Vec<String> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        labels.join(",")
    }

    /// Whether its sidecar asks it if it is ready, and how (`--ready`): of two that hold one shard one owns it, and only
    /// that one gets calls.
    pub fn ready_flag(&self) -> Option<&'static str> {
        (self.service == ServiceKind::Match).then_some("grpc")
    }

    /// Arguments behind the executable's hidden verb: `battle --listen A --outbound A --version v1 …`. `folder` is the
    /// demo's; `redis` is where the leaderboard is kept.
    pub fn arguments(&self, folder: &Path, redis: Option<&str>) -> Vec<String> {
        let mut flags = vec![
            ("--listen", self.app.to_string()),
            ("--outbound", self.outbound.to_string()),
            ("--version", self.version.to_string()),
            ("--replica", self.replica.to_string()),
            ("--folder", folder.display().to_string()),
        ];
        if let Some(redis) = redis.filter(|_| self.service == ServiceKind::Leaderboard) {
            flags.push(("--redis", redis.to_owned()));
        }
        let flags = flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_string(), value]);
        std::iter::once(self.service.to_string())
            .chain(flags)
            .collect()
    }
}

/// The services of the game; the text is the name in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKind {
    Gateway,
    Match,
    Battle,
    Physics,
    Leaderboard,
    Room,
}

impl ServiceKind {
    pub const ALL: [ServiceKind; 6] = [
        Self::Gateway,
        Self::Match,
        Self::Battle,
        Self::Physics,
        Self::Leaderboard,
        Self::Room,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => gateway::NAME,
            Self::Match => matchmaker::NAME,
            Self::Battle => battle::NAME,
            Self::Physics => physics::NAME,
            Self::Leaderboard => leaderboard::NAME,
            Self::Room => room::NAME,
        }
    }
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the arena has no service {0:?}, only gateway, match, battle, physics, leaderboard and room"
)]
pub struct UnknownService(String);

impl FromStr for ServiceKind {
    type Err = UnknownService;

    fn from_str(text: &str) -> Result<Self, UnknownService> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| UnknownService(text.into()))
    }
}

/// Runs one service until `shutdown` is ready and what was under way is finished.
pub async fn run_service(
    kind: ServiceKind,
    config: ServiceConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    match kind {
        ServiceKind::Gateway => gateway::run(config, shutdown).await,
        ServiceKind::Match => matchmaker::run(config, shutdown).await,
        ServiceKind::Battle => battle::run(config, shutdown).await,
        ServiceKind::Physics => physics::run(config, shutdown).await,
        ServiceKind::Leaderboard => leaderboard::run(config, shutdown).await,
        ServiceKind::Room => room::run(config, shutdown).await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_listeners_share_an_address() {
        let all = processes();
        let listeners = all
            .iter()
            .flat_map(|spec| [spec.app, spec.inbound, spec.outbound, spec.admin]);
        assert_eq!(listeners.collect::<BTreeSet<_>>().len(), all.len() * 4);
        assert_eq!(
            all.iter()
                .map(ProcessSpec::name)
                .collect::<BTreeSet<_>>()
                .len(),
            all.len()
        );
    }

    #[test]
    fn arguments_start_with_a_name_that_parses() {
        for spec in processes() {
            assert_eq!(
                spec.arguments(Path::new("data"), None)[0]
                    .parse::<ServiceKind>()
                    .unwrap(),
                spec.service
            );
        }
        assert!("lobby".parse::<ServiceKind>().is_err());
    }
}
