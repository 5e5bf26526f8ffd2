//! A process in the place of another: what it asks of that one, and what it gives to the next.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use phalanx_client::registry::Succession;
use tokio::net::TcpListener;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::ServeError;
use crate::config::{Config, UpgradeConfig};
use crate::discovery::Known;
use crate::intercept::{self, Interception, Redirected};
use crate::lasting::Lasting;
use crate::takeover::{
    self, Bundle, Estate, Heir, Holder, Inherited, Legacy, OfHolder, TakeoverError,
};
use crate::udp;

/// Told to the other side, for people.
pub(super) const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// What is taken over, if another process serves; `None` if nobody does.
pub(super) async fn ask(config: &Config) -> Result<Option<(Heir, Inherited)>, ServeError> {
    let Some(upgrade) = &config.upgrade else {
        return Ok(None);
    };
    let asked = Heir::ask(&upgrade.socket, RELEASE, &called(config)).await?;
    if let Some((_, inherited)) = &asked {
        if config.gateway.is_none() {
            inherited.expect("inbound", config.inbound)?;
            inherited.expect("outbound", config.outbound)?;
        }
        inherited.expect("admin", config.admin)?;
    }
    Ok(asked)
}

/// What an heir has to be as well. An edge may have the name of a service.
pub(super) fn called(config: &Config) -> String {
    match &config.gateway {
        None => config.service.to_string(),
        Some(_) => format!("gateway {}", config.service),
    }
}

/// Waits until there is all that it takes to serve, then asks for the registration.
pub(super) async fn succeed(
    heir: &mut Heir,
    mut complete: Receiver<bool>,
    certificate: Option<Receiver<bool>>,
    known: &Known,
    upgrade: &UpgradeConfig,
) -> Result<OfHolder<Option<Succession>>, TakeoverError> {
    let until = Instant::now() + upgrade.wait;
    let mut missing = "there is no certificate";
    let ready = async {
        if let Some(mut certificate) = certificate {
            let _ = certificate.wait_for(|ready| *ready).await;
        }
        missing = "there is no configuration from the control plane";
        let _ = complete.wait_for(|complete| *complete).await;
    };
    let is_ready = tokio::select! {
        () = ready => true,
        parted = heir.parted() => return parted.map(|()| OfHolder::Gone),
        () = sleep_until(until) => false,
    };
    if !is_ready {
        if known.configuration().is_waiting() {
            missing = "of what the running one serves, something can't be served here (the log says what)";
        }
        return Err(TakeoverError::NotReady(upgrade.wait, missing));
    }
    heir.ready().await
}

/// The rules of the process before go on or go away. Nothing fails here any more: it drains by now.
pub(super) fn succeed_rules(
    config: &Config,
    own_ports: &[u16],
    was_redirected: bool,
    lock: Option<OwnedFd>,
    tasks: &mut JoinSet<()>,
) -> Option<Interception> {
    let Some(intercept) = &config.intercept else {
        if was_redirected {
            intercept::clean_up_behind();
        }
        return None;
    };
    let begun = Interception::succeed(intercept, own_ports, lock);
    tasks.spawn(begun.hold());
    Some(begun)
}

/// The hold on the network namespace, as an heir takes it with the listeners.
pub(super) fn lock_bundle(interception: &Interception) -> Option<Bundle> {
    Some(Bundle {
        role: Redirected::LOCK,
        address: (Ipv4Addr::UNSPECIFIED, 0).into(),
        sockets: [interception.share_lock()?].into(),
    })
}

/// Sockets and sessions of the process before; if they don't come, it serves them until they end.
pub(super) async fn inherit(legacy: Legacy, datagrams: Arc<udp::Ports>) {
    let left = legacy.take().await.unwrap_or_else(|error| {
        warn!(%error, "the sidecar before left no sessions of datagrams");
        Vec::new()
    });
    datagrams.inherit(left);
}

/// The listener of the pages.
pub(super) fn admin_bundle(
    listener: &TcpListener,
    address: SocketAddr,
) -> Result<Bundle, ServeError> {
    let socket = listener.as_fd().try_clone_to_owned();
    socket
        .and_then(|socket| Bundle::of("admin", address, &[socket.into()]))
        .map_err(|source| ServeError::admin(address, source))
}

/// Waits for the next: at `socket` if the process before gave its own.
pub(super) fn hold(
    upgrade: &UpgradeConfig,
    socket: Option<UnixListener>,
    estate: Estate,
    lasting: &Lasting,
) -> Result<Holder, ServeError> {
    let socket = match socket {
        Some(inherited) => inherited,
        None => takeover::listen(&upgrade.socket)?,
    };
    Holder::spawn(&upgrade.socket, socket, estate, lasting).map_err(ServeError::Workers)
}
