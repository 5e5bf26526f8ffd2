//! The composition root: a sidecar from its start to its end, in the order things happen. Workers carry traffic on
//! threads of their own; everything started here shares one runtime and one connection to the control plane.

mod start;
mod upgrade;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use phalanx_client::channel::ChannelError;
use phalanx_model::name::Direction;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

use self::start::begin;
pub use self::start::start;
use crate::accesslog::{AccessLog, AccessLogError};
use crate::account::{Account, EdgeTotals};
use crate::admin::View;
use crate::config::{Config, ConfigError};
use crate::discovery::Discovery;
use crate::drive::Workers;
use crate::health::HealthChecks;
use crate::identity::{self, IdentityError};
use crate::intercept::{InterceptError, Interception};
use crate::lasting::Lasting;
use crate::register::Register;
use crate::report::Reporting;
use crate::takeover::{Committed, Holder, TakeoverError};

/// From our last word to the process before until we serve: its answer is waited for, the rest is done at once.
const DECIDED_MAX: Duration = Duration::from_secs(10);
/// How long the control plane may take to acknowledge that we are leaving.
const DEREGISTER_MAX: Duration = Duration::from_secs(1);
/// From there until peers have heard of it and send no more.
const PEERS_LEARN: Duration = Duration::from_millis(500);
/// Between two looks at what is in flight.
const QUIET_PAUSE: Duration = Duration::from_millis(20);

/// Runs a sidecar until `shutdown`, or until another process took over, then drains it.
///
/// # Errors
/// [`ServeError`], before anything is served; [`ServeError::Fallen`] after that, and after it drained.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let is_decided = AtomicBool::new(false);
    match begun(begin(config, &is_decided), &is_decided, shutdown.as_mut()).await? {
        Begun::Serving(running) => serve(running, shutdown).await,
        Begun::Stopping(running) => {
            running.shutdown().await;
            Ok(())
        }
        Begun::Never => Ok(()),
    }
}

/// What a start came to.
#[derive(Debug, PartialEq, Eq)]
enum Begun<T> {
    Serving(T),
    /// It serves in the place of another, and was told to stop meanwhile.
    Stopping(T),
    /// Nothing is served yet, and a process that would be replaced goes on.
    Never,
}

/// Told to stop before `is_decided`, there is nothing to end; after that the process before drains, or is about to, so that
/// whoever connects is ours to serve until we have drained as well.
async fn begun<T>(
    starting: impl Future<Output = Result<T, ServeError>>,
    is_decided: &AtomicBool,
    shutdown: impl Future<Output = ()>,
) -> Result<Begun<T>, ServeError> {
    let mut starting = std::pin::pin!(starting);
    tokio::select! {
        started = &mut starting => return Ok(Begun::Serving(started?)),
        () = shutdown => {}
    }
    if !is_decided.load(Ordering::Relaxed) {
        return Ok(Begun::Never);
    }
    info!("told to stop while taking over, waiting for the sidecar before");
    match timeout(DECIDED_MAX, starting).await {
        Ok(started) => Ok(Begun::Stopping(started?)),
        Err(_) => Err(TakeoverError::Busy(DECIDED_MAX).into()),
    }
}

/// Until the one or the other: told to stop, replaced, or not whole any more.
async fn serve(
    mut running: Running,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), ServeError> {
    let lasting = running.lasting.clone();
    let drain = tokio::select! {
        Committed { drain } = running.succeeded() => drain,
        () = &mut shutdown => {
            running.shutdown().await;
            return Ok(());
        }
        fallen = lasting.fallen() => {
            error!(task = fallen, "draining, to end: whoever supervises starts another");
            running.shutdown().await;
            return Err(ServeError::Fallen(fallen));
        }
    };
    let own_drain = running.drain;
    tokio::select! {
        () = running.hand_over(drain) => {}
        () = async { shutdown.await; sleep(own_drain).await } => {}
    }
    Ok(())
}

/// A sidecar at work. Dropped, it stops at once.
pub struct Running {
    /// Ends as the first: whoever drops all of this leaves no rules that lead nowhere.
    interception: Option<Interception>,
    admin: SocketAddr,
    drain: Duration,
    lasting: Lasting,
    view: Arc<View>,
    pages: AbortHandle,
    /// None: it can't be replaced while it serves.
    holder: Option<Holder>,
    workers: Workers,
    discovery: Discovery,
    checks: HealthChecks,
    register: Option<Register>,
    reporting: Reporting,
    certificates: Option<identity::Running>,
    /// Written to its end when this is dropped.
    log: Option<Arc<AccessLog>>,
    tasks: JoinSet<()>,
}

impl Running {
    pub fn inbound(&self) -> SocketAddr {
        self.view.inbound
    }

    pub fn outbound(&self) -> SocketAddr {
        self.view.outbound
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Listeners for raw TCP, in the order of the configuration.
    pub fn tcp(&self) -> &[SocketAddr] {
        &self.workers.addresses().tcp
    }

    /// Resolves when another process has taken over; never where that is not possible.
    pub async fn succeeded(&mut self) -> Committed {
        match &mut self.holder {
            Some(holder) => holder.committed().await,
            None => std::future::pending().await,
        }
    }

    /// Leaves everything to the process that took over, and lets what is in flight end within `deadline`. The instance
    /// stays registered: it is the other's now.
    pub async fn hand_over(self, deadline: Duration) {
        let Self {
            interception,
            view,
            pages,
            holder,
            workers,
            discovery,
            checks,
            register,
            reporting,
            certificates,
            log,
            mut tasks,
            ..
        } = self;
        view.draining.store(true, Ordering::Relaxed);
        view.account.blind(deadline);
        pages.abort();
        drop((holder, register, checks));
        if let Some(interception) = interception {
            interception.leave();
        }
        info!(?deadline, "replaced, draining");
        workers.hand_over(deadline).await;
        reporting.finish().await;
        drop((discovery, certificates));
        tasks.shutdown().await;
        drop(log);
        info!("drained");
    }

    /// Leaves the mesh without losing a request: says that it drains, while what is in flight and sessions that stay go on
    /// for at most half of the time; then deregisters, lets peers hear of it, ends the rest, tells the last counts.
    pub async fn shutdown(self) {
        let Self {
            interception,
            drain,
            view,
            holder,
            workers,
            discovery,
            checks,
            register,
            reporting,
            certificates,
            log,
            mut tasks,
            ..
        } = self;
        view.draining.store(true, Ordering::Relaxed);
        drop(holder);
        info!("draining");
        let until = Instant::now() + drain;
        if let Some(mut register) = register {
            let is_heard = register.drain(DEREGISTER_MAX).await;
            if is_heard {
                sleep(PEERS_LEARN).await;
                quiet(&view.account, drain / 2).await;
            }
            match is_heard && register.deregister(DEREGISTER_MAX).await {
                true => sleep(PEERS_LEARN).await,
                false => warn!(
                    "the control plane did not take the deregistration, peers will notice by themselves"
                ),
            }
        }
        let rest = until.saturating_duration_since(Instant::now());
        workers.drain(rest.max(drain / 4)).await;
        drop(interception); // not before: what is redirected by now would go astray
        reporting.finish().await;
        drop((discovery, checks, certificates));
        tasks.shutdown().await;
        drop(log);
        info!("drained");
    }
}

/// Waits until no request for the application is in flight, at most `limit`.
async fn quiet(account: &Account, limit: Duration) {
    let until = Instant::now() + limit;
    let is_busy =
        |totals: &EdgeTotals| totals.key.direction == Direction::Inbound && totals.active > 0;
    while account.collect().iter().any(is_busy) && Instant::now() < until {
        sleep(QUIET_PAUSE).await;
    }
}

/// Why a sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("cannot listen on {address} for {what}: {hint} ({flag} takes another address)")]
    Listen {
        what: &'static str,
        flag: &'static str,
        address: SocketAddr,
        hint: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot take over from the sidecar that runs")]
    Takeover(#[from] TakeoverError),
    #[error(transparent)]
    Intercept(#[from] InterceptError),
    #[error("cannot start the workers")]
    Workers(#[source] io::Error),
    #[error("a task that must last as long as the sidecar has panicked: {0}")]
    Fallen(&'static str),
}

impl ServeError {
    fn admin(address: SocketAddr, source: io::Error) -> Self {
        Self::Listen {
            what: "the admin pages",
            flag: "--admin",
            address,
            hint: hint(&source),
            source,
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the port is taken, by another sidecar perhaps",
        io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege",
        _ => "the system refuses",
    }
}

#[cfg(test)]
mod tests;
