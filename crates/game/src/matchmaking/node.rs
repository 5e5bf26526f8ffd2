//! A running shard, and the process that holds several. Each shard is owned by one process at a time and followed by one
//! standby; [`Shard`] is the handle for clients of both. `owner` decides, and is pure; around it stand a thread for it,
//! one for its log and one for its search, and tasks for the lease, the standby and the rooms.
//!
//! Module order: shard, life, run, seek, replica, allocate, metrics, owner, talk.

mod allocate;
mod life;
mod metrics;
mod owner;
mod replica;
mod run;
mod seek;
mod shard;
mod talk;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};

pub use allocate::{ALLOCATIONS_MAX, AllocateError, Allocates, Allocator};
pub use metrics::{SearchMetrics, ShardMetrics, write};
pub use owner::{Allocation, Limits, OwnerMetrics, Refused};
pub use shard::{INTAKE_MAX, Role, Shard, Watching};
pub use talk::{Answer, Refusal, Request, Stage, TicketState};

use super::{
    lease::Lease,
    rules::MatchRules,
    standby::{frame::Seal, link},
};

/// Shards of one process at most.
pub const SHARDS_MAX: usize = 256;
/// Standbys that are greeted at once; more wait.
const GREETED_MAX: usize = 16;
/// How long one part of a shard's name may be.
const NAME_MAX: usize = 64;

/// Which tickets belong together: a mode, the regions that play together, and the version of game and rules. Written
/// `mode/group/version`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardKey {
    mode: String,
    group: String,
    version: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a shard is named mode/group/version, each of 1 to {NAME_MAX} letters, digits, dots, dashes or underscores"
)]
pub struct BadKey;

impl ShardKey {
    /// # Errors
    /// [`BadKey`].
    pub fn try_new(mode: &str, group: &str, version: &str) -> Result<ShardKey, BadKey> {
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let part =
            |name: &str| match (1..=NAME_MAX).contains(&name.len()) && name.chars().all(letter) {
                true => Ok(name.to_owned()),
                false => Err(BadKey),
            };
        Ok(ShardKey {
            mode: part(mode)?,
            group: part(group)?,
            version: part(version)?,
        })
    }

    pub fn mode(&self) -> &str {
        &self.mode
    }

    pub fn group(&self) -> &str {
        &self.group
    }

    pub fn version(&self) -> &str {
        &self.version
    }
}

impl fmt::Display for ShardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.mode, self.group, self.version)
    }
}

impl FromStr for ShardKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<ShardKey, BadKey> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(mode), Some(group), Some(version), None) => {
                ShardKey::try_new(mode, group, version)
            }
            _ => Err(BadKey),
        }
    }
}

/// What a process needs to hold shards.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where standbys connect.
    pub listen: SocketAddr,
    /// What they are told to dial, `HOST:PORT`. Default: what `listen` became.
    pub advertise: Option<String>,
    /// What owner and standby share; [`Seal::none`] where the mesh's mTLS protects the connection, or nothing has to.
    pub seal: Seal,
}

/// What one shard is.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub key: ShardKey,
    /// Where its log is; made if it isn't there. Not shared with anything.
    pub directory: PathBuf,
    pub lease: Arc<dyn Lease>,
    pub rules: Arc<MatchRules>,
    pub limits: Limits,
    /// An operator's word, for once: own the shard though this replica may lack what another acknowledged. Those tickets
    /// are lost. Default false.
    pub force: bool,
}

impl ShardConfig {
    /// With the default limits.
    pub fn new(
        key: ShardKey,
        directory: impl Into<PathBuf>,
        lease: impl Lease,
        rules: Arc<MatchRules>,
    ) -> ShardConfig {
        ShardConfig {
            key,
            directory: directory.into(),
            lease: Arc::new(lease),
            rules,
            limits: Limits::default(),
            force: false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("can't listen for standbys on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("limit {0}")]
    Limit(&'static str),
    #[error("shard {0} is open already")]
    Open(ShardKey),
    #[error("{SHARDS_MAX} shards are open: that is all that one process takes")]
    Full,
}

type Shards = Arc<Mutex<BTreeMap<String, Shard>>>;

/// A process's shards. Dropping it stops them all, as a crash would: what was acknowledged is safe.
#[derive(Debug)]
pub struct Node {
    seal: Seal,
    address: String,
    /// Never held across an await.
    shards: Shards,
    listening: JoinHandle<()>,
}

impl Node {
    /// Listens for standbys. Needs a tokio runtime, on which the shards' tasks live from now on.
    ///
    /// # Errors
    /// [`NodeError::Listen`].
    pub async fn start(config: NodeConfig) -> Result<Node, NodeError> {
        let listen = |source| NodeError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let bound = listener.local_addr().map_err(listen)?;
        let shards = Shards::default();
        let listening = accept(listener, config.seal.clone(), shards.clone());
        Ok(Node {
            seal: config.seal,
            address: config.advertise.unwrap_or_else(|| bound.to_string()),
            shards,
            listening: tokio::spawn(listening),
        })
    }

    /// Where standbys dial.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Opens a shard: as its owner when the lease is free and this replica may have it, else as its standby. It tries
    /// until it is one of the two; [`Shard::role`] says which.
    ///
    /// # Errors
    /// [`NodeError::Open`], [`NodeError::Full`], [`NodeError::Limit`]. What goes wrong later is a role, too.
    pub fn open(&self, config: ShardConfig, allocator: impl Allocator) -> Result<Shard, NodeError> {
        config.limits.check().map_err(NodeError::Limit)?;
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        let name = config.key.to_string();
        if shards.get(&name).is_some_and(|shard| !shard.is_over()) {
            return Err(NodeError::Open(config.key));
        }
        if shards.len() >= SHARDS_MAX {
            shards.retain(|_, shard| !shard.is_over());
        }
        if shards.len() >= SHARDS_MAX {
            return Err(NodeError::Full);
        }
        let allocator = Arc::new(allocator);
        let shard = Shard::start(config, allocator, self.address.clone(), self.seal.clone());
        shards.insert(name, shard.clone());
        Ok(shard)
    }

    /// The shard that a ticket belongs to.
    pub fn shard(&self, key: &ShardKey) -> Option<Shard> {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.get(&key.to_string()).cloned()
    }

    pub fn shards(&self) -> Vec<Shard> {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.values().cloned().collect()
    }

    /// Drains every shard, all at once: see [`Shard::drain`].
    pub async fn drain(&self, patience: Duration) {
        let draining = self.shards().into_iter().map(|shard| {
            tokio::spawn(async move {
                let key = shard.key().clone();
                if tokio::time::timeout(patience, shard.drain()).await.is_err() {
                    tracing::warn!(%key, "the shard is not drained in time; it stops as it is");
                }
            })
        });
        for drained in draining.collect::<Vec<_>>() {
            let _ = drained.await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.listening.abort();
        for shard in self.shards() {
            shard.stop();
        }
    }
}

async fn accept(listener: TcpListener, seal: Seal, shards: Shards) {
    let places = Arc::new(Semaphore::new(GREETED_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (seal, shards) = (seal.clone(), shards.clone());
                tokio::spawn(async move {
                    let greeted = greet(stream, &seal, &shards).await;
                    drop(place);
                    if let Some((shard, hello, link)) = greeted {
                        shard.serve_standby(hello, link).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn greet(
    stream: TcpStream,
    seal: &Seal,
    shards: &Shards,
) -> Option<(Shard, link::Hello, link::Link)> {
    match link::greet(stream, seal).await {
        Ok((hello, link)) => {
            let shards = shards.lock().unwrap_or_else(PoisonError::into_inner);
            let shard = shards.get(&hello.shard).cloned();
            if shard.is_none() {
                tracing::warn!(
                    shard = hello.shard,
                    "a standby asks for a shard that isn't here"
                );
            }
            Some((shard?, hello, link))
        }
        Err(error) => {
            tracing::warn!(%error, "a standby was not greeted");
            None
        }
    }
}
