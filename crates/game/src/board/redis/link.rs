//! One connection to Redis, alone or a cluster: made when it is needed, dropped when it failed, every use of it with a
//! deadline. What goes wrong has a kind, which decides whether the store is out of order or only refused this call.

use std::time::Duration;

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, Script, ServerErrorKind, Value,
};
use tokio::time::timeout;

use super::{RedisConfig, StartError};

/// What went wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection could be made.
    Connect,
    /// No answer in time.
    Timeout,
    /// The connection broke.
    Broken,
    /// Redis is reading its data after a start.
    Loading,
    /// The cluster lacks slots or its master.
    ClusterDown,
    /// The key is elsewhere: a cluster was given as a single address.
    Redirected,
    /// A script has been running for too long.
    Busy,
    /// A replica, or a master that can't persist or lacks its replicas.
    ReadOnly,
    OutOfMemory,
    Denied,
    /// An answer that no script of ours gives.
    Protocol,
    /// The board in this Redis follows another rule: one configuration of two is wrong.
    Foreign,
    /// Too many logs write to this board.
    Crowded,
    Other,
}

impl Failure {
    pub const ALL: [Self; 14] = [
        Self::Connect,
        Self::Timeout,
        Self::Broken,
        Self::Loading,
        Self::ClusterDown,
        Self::Redirected,
        Self::Busy,
        Self::ReadOnly,
        Self::OutOfMemory,
        Self::Denied,
        Self::Protocol,
        Self::Foreign,
        Self::Crowded,
        Self::Other,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Loading => "loading",
            Self::ClusterDown => "cluster_down",
            Self::Redirected => "redirected",
            Self::Busy => "busy",
            Self::ReadOnly => "read_only",
            Self::OutOfMemory => "out_of_memory",
            Self::Denied => "denied",
            Self::Protocol => "protocol",
            Self::Foreign => "foreign",
            Self::Crowded => "crowded",
            Self::Other => "other",
        }
    }

    /// Whether the store is out of order, for whoever asks whatever; otherwise it is well, and refused this call.
    pub fn is_outage(self) -> bool {
        matches!(
            self,
            Self::Connect
                | Self::Timeout
                | Self::Broken
                | Self::Loading
                | Self::ClusterDown
                | Self::Busy
                | Self::Protocol
        )
    }

    /// Whether a new connection is worth more than this one.
    fn ends_connection(self) -> bool {
        self.is_outage() || matches!(self, Self::Redirected | Self::ReadOnly | Self::Denied)
    }
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("redis: {}", .failure.name())]
pub struct StoreError {
    pub failure: Failure,
    #[source]
    pub(super) source: Option<RedisError>,
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            source: None,
        }
    }
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        Self {
            failure: kind(&error),
            source: Some(error),
        }
    }
}

fn kind(error: &RedisError) -> Failure {
    use ServerErrorKind as Server;
    if error.is_timeout() {
        return Failure::Timeout;
    }
    if error.is_connection_refusal() {
        return Failure::Connect;
    }
    match error.kind() {
        ErrorKind::Io => Failure::Broken,
        ErrorKind::ClusterConnectionNotFound => Failure::Connect,
        ErrorKind::AuthenticationFailed | ErrorKind::Server(Server::NoPerm) => Failure::Denied,
        ErrorKind::Server(Server::BusyLoading) => Failure::Loading,
        ErrorKind::Server(Server::ReadOnly) => Failure::ReadOnly,
        ErrorKind::Server(Server::ClusterDown | Server::MasterDown | Server::TryAgain) => {
            Failure::ClusterDown
        }
        ErrorKind::Server(Server::Moved | Server::Ask | Server::CrossSlot) => Failure::Redirected,
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Failure::Protocol,
        _ => match error.code() {
            Some("OOM") => Failure::OutOfMemory,
            Some("NOAUTH" | "WRONGPASS") => Failure::Denied,
            Some("MISCONF" | "NOREPLICAS") => Failure::ReadOnly,
            Some("BUSY") => Failure::Busy,
            _ => Failure::Other,
        },
    }
}

/// Where a Redis is, checked.
#[derive(Clone)]
enum Place {
    One(Client),
    Cluster(Box<ClusterClient>),
}

/// See the module. One task at a time uses it.
pub(in crate::board) struct Link {
    place: Place,
    connect_max: Duration,
    call_max: Duration,
    connection: Option<Connection>,
    /// How many connections it has had.
    connections: u64,
}

impl Link {
    pub(in crate::board) fn try_new(config: &RedisConfig) -> Result<Self, StartError> {
        if config.addresses.is_empty() || config.addresses.len() > ADDRESSES_MAX {
            return Err(StartError::Addresses);
        }
        for address in &config.addresses {
            if address.starts_with("rediss://") || address.starts_with("valkeys://") {
                return Err(StartError::Tls);
            }
            if address.contains("protocol=") {
                return Err(StartError::Protocol);
            }
        }
        let bad = |_| StartError::Address;
        let place = if config.cluster {
            let nodes = config.addresses.iter().map(String::as_str);
            let builder = ClusterClientBuilder::new(nodes)
                .connection_timeout(config.connect_max)
                .response_timeout(config.call_max)
                .retries(REDIRECTIONS_MAX)
                .min_retry_wait(5)
                .max_retry_wait(50);
            Place::Cluster(Box::new(builder.build().map_err(bad)?))
        } else {
            let [address] = config.addresses.as_slice() else {
                return Err(StartError::Addresses);
            };
            Place::One(Client::open(address.as_str()).map_err(bad)?)
        };
        Ok(Self {
            place,
            connect_max: config.connect_max,
            call_max: config.call_max,
            connection: None,
            connections: 0,
        })
    }

    /// To the same Redis, not connected yet.
    pub(in crate::board) fn another(&self) -> Self {
        Self {
            place: self.place.clone(),
            connection: None,
            connections: 0,
            ..*self
        }
    }

    /// Goes up with each new connection: what is on the other end may have lost data since.
    pub(in crate::board) fn connections(&self) -> u64 {
        self.connections
    }

    pub(in crate::board) fn call_max(&self) -> Duration {
        self.call_max
    }

    /// The connection, made if there is none.
    pub(in crate::board) async fn connection(&mut self) -> Result<Connection, StoreError> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        let made = timeout(self.connect_max, self.connect()).await;
        let connection = made.map_err(|_| StoreError::from(Failure::Connect))??;
        self.connections += 1;
        Ok(self.connection.insert(connection).clone())
    }

    pub(in crate::board) fn drop_connection(&mut self) {
        self.connection = None;
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        match &self.place {
            Place::One(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(self.connect_max))
                    .set_response_timeout(Some(self.call_max));
                let made = client.get_multiplexed_async_connection_with_config(&config);
                Ok(Connection::One(made.await?))
            }
            Place::Cluster(client) => {
                let made = client.get_async_connection().await?;
                Ok(Connection::Cluster(made))
            }
        }
    }

    /// One command, with the deadline of every call.
    pub(in crate::board) async fn query(&mut self, command: &Cmd) -> Result<Value, StoreError> {
        let mut connection = self.connection().await?;
        let answer = timeout(self.call_max, connection.answer(command)).await;
        let answer = answer
            .map_err(|_| StoreError::from(Failure::Timeout))
            .and_then(|answer| answer.map_err(Into::into));
        self.judge(answer)
    }

    /// One call of a script, with the deadline of every call.
    pub(in crate::board) async fn call(
        &mut self,
        call: &super::script::Call<'_>,
    ) -> Result<Value, StoreError> {
        let mut connection = self.connection().await?;
        let answer = timeout(self.call_max, connection.call(call)).await;
        let answer = answer.unwrap_or_else(|_| Err(Failure::Timeout.into()));
        self.judge(answer)
    }

    fn judge(&mut self, answer: Result<Value, StoreError>) -> Result<Value, StoreError> {
        if let Err(error) = &answer
            && error.failure.ends_connection()
        {
            self.drop_connection();
        }
        answer
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("connected", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

/// To one Redis or to a cluster; clones share it.
#[derive(Clone)]
pub(in crate::board) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    /// A script by its digest, or by its text where this Redis doesn't know it yet. No deadline of its own.
    pub(in crate::board) async fn call(
        &mut self,
        call: &super::script::Call<'_>,
    ) -> Result<Value, StoreError> {
        let by_digest = call.command("EVALSHA", call.script.get_hash());
        match self.answer(&by_digest).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let by_text = call.command("EVAL", call.text);
                Ok(self.answer(&by_text).await?)
            }
            answer => Ok(answer?),
        }
    }

    /// One command. No deadline of its own.
    pub(in crate::board) async fn answer(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        let answer = match self {
            Self::One(one) => one.req_packed_command(command).await,
            Self::Cluster(cluster) => cluster.req_packed_command(command).await,
        };
        answer?.extract_error()
    }
}

/// A script with its text, which the crate keeps to itself.
pub(in crate::board) struct Text {
    pub(in crate::board) script: Script,
    pub(in crate::board) text: &'static str,
}

const ADDRESSES_MAX: usize = 64;
const REDIRECTIONS_MAX: u32 = 3;
