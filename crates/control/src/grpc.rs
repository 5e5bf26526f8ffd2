//! gRPC's port on our own HTTP/2 codec: a connection in, its requests to tonic's services, their answers out.
//!
//! One task per connection reads and writes the socket; each stream has a task of its own, which calls the service and brings
//! its answer. An idle connection holds no buffer: reading is done into the thread's, and what is to be written is gone once
//! it is. What is said on a stream is the services' business, who may come in is `listen`'s.

mod connection;
mod memory;
mod message;
mod shared;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use phalanx_relay::Limits;
use phalanx_relay::http2::Config;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::access::Refusals;
use crate::listen::Connections;

/// What all connections of a port have in common.
struct Port {
    routes: Routes,
    config: Arc<Config>,
    refusals: Refusals,
    began: Instant,
    stop: CancellationToken,
    /// Connections and streams.
    tasks: TaskTracker,
}

/// Serves until `stop`; ends when every connection has, which is soon after.
pub async fn serve(
    connections: Connections,
    routes: Routes,
    refusals: Refusals,
    stop: CancellationToken,
) {
    let port = Arc::new(Port {
        routes: routes.prepare(),
        config: Arc::new(config()),
        refusals,
        began: Instant::now(),
        stop,
        tasks: TaskTracker::new(),
    });
    let mut connections = std::pin::pin!(connections.greeted());
    while let Some(connection) = connections.next().await {
        if let Ok(connection) = connection {
            port.tasks
                .spawn(connection::serve(port.clone(), connection));
        }
    }
    port.tasks.close();
    port.tasks.wait().await;
}

fn config() -> Config {
    let limits = Limits {
        head_bytes: HEAD_BYTES_MAX,
        streams: STREAMS_PER_CONNECTION,
        ..Limits::default()
    };
    Config {
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        ..Config::server(limits)
    }
}

/// One proxy needs a handful; a registry client that shares its connection some more.
const STREAMS_PER_CONNECTION: u32 = 256;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// What one stream may have under way to us, and all of a connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// A peer that says nothing for so long is asked whether it is there; one that vanished without a word is found out within
/// both.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// For streams under way when the server stops.
const GOODBYE_MAX: Duration = Duration::from_secs(4);
/// How long and for how many bytes a peer is listened to that was told the end.
const PARTING_MAX: Duration = Duration::from_millis(500);
const PARTING_BYTES_MAX: usize = 256 << 10;
