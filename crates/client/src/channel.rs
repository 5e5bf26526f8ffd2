//! The one HTTP/2 connection to the control plane that everything shares: discovery, registry and reports. It connects
//! when first used and again after every loss; its buffers are small, because most of its life it is idle.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// Until a connection attempt counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that vanished without a word is noticed after these two.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls that wait for the connection; beyond, callers wait themselves.
const CALLS_QUEUED_MAX: usize = 16;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A channel to `HOST:PORT` in plain text. Nothing is connected yet; must be called within a runtime.
///
/// # Errors
/// [`ChannelError`] when `control` is no `HOST:PORT`.
pub fn channel(control: &str) -> Result<Channel, ChannelError> {
    let wrong = || ChannelError {
        control: control.to_owned(),
    };
    let (host, port) = control.rsplit_once(':').ok_or_else(wrong)?;
    if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    let endpoint = Endpoint::from_shared(format!("http://{control}")).map_err(|_| wrong())?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .buffer_size(CALLS_QUEUED_MAX)
        .tcp_nodelay(true)
        .connect_lazy())
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{control}` is no address of a control plane (HOST:PORT)")]
pub struct ChannelError {
    control: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_host_and_port_make_a_channel() {
        for good in ["127.0.0.1:15010", "control.local:1", "[::1]:15010"] {
            assert!(channel(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1",
            ":15010",
            "a:b",
            "http://a:1",
            "a b:1",
            "127.0.0.1:70000",
        ] {
            assert!(channel(bad).is_err(), "{bad}");
        }
    }
}
