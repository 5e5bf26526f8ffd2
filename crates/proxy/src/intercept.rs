//! Transparent interception: the kernel is told to bring us the connections of an application that knows nothing of us, and
//! those to it. One table of nftables in our network namespace, put there and replaced as a whole, and gone when we are.
//!
//! Who intercepts holds a lock of the namespace that the kernel lets go of with the process, so that the next one knows what
//! it finds for the leftovers of one that was killed. What becomes of a redirected connection is in `drive`.

mod lock;
mod nft;
mod rules;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_model::name::Direction;
use tracing::{error, info, warn};

use self::lock::Lock;
pub use self::nft::NftError;
use crate::config::{InterceptConfig, OutboundPolicy};

/// On every connection that this process opens, so that the rules leave it alone: `PHLX`.
pub const MARK: u32 = 0x5048_4c58;

/// What the drivers have to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirected {
    /// Calls of the application arrive here.
    pub outbound: Vec<SocketAddr>,
    /// Connections to it arrive here.
    pub inbound: Vec<SocketAddr>,
    pub policy: OutboundPolicy,
    /// How long a client may keep silent until the server is taken for who speaks first.
    pub wait: Duration,
}

impl Redirected {
    /// Where to listen.
    pub fn new(config: &InterceptConfig) -> Self {
        let at = |ip: &str, port| Some(SocketAddr::new(ip.parse().ok()?, port));
        let all = |ips: [&str; 2], port| ips.into_iter().filter_map(|ip| at(ip, port)).collect();
        Self {
            // The kernel redirects to loopback what is sent from here, and to the interface's own address what comes.
            outbound: all(["127.0.0.1", "::1"], config.outbound),
            inbound: all(["0.0.0.0", "::"], config.inbound),
            policy: config.policy,
            wait: config.wait,
        }
    }

    /// What keeps the namespace for an heir.
    pub const LOCK: &str = "intercept-lock";
    pub const ROLES: [&str; 2] = ["intercept-outbound", "intercept-inbound"];

    /// What is accepted where.
    pub fn listeners(&self) -> impl Iterator<Item = (Direction, &'static str, SocketAddr)> {
        let [calls, callers] = Self::ROLES;
        let outbound = self
            .outbound
            .iter()
            .map(move |at| (Direction::Outbound, calls, *at));
        let inbound = self
            .inbound
            .iter()
            .map(move |at| (Direction::Inbound, callers, *at));
        outbound.chain(inbound)
    }

    /// Whether who was going there would come back to us, again and again.
    pub fn is_own(&self, port: u16) -> bool {
        let mut all = self.outbound.iter().chain(&self.inbound);
        all.any(|address| address.port() == port)
    }
}

/// The rules, in force until this is dropped or left.
#[derive(Debug)]
pub struct Interception(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    config: InterceptConfig,
    own_ports: Vec<u16>,
    /// None: [`Interception::hold`] waits for it.
    lock: Option<Lock>,
    is_installed: bool,
    /// Removed, or another's: nothing is put in force any more.
    is_over: bool,
}

impl Interception {
    /// Puts the rules in force, in the place of those that a killed process left. `own_ports`: where this sidecar is called
    /// beside that.
    ///
    /// # Errors
    /// [`InterceptError`]; nothing is changed then.
    pub fn begin(config: &InterceptConfig, own_ports: &[u16]) -> Result<Self, InterceptError> {
        let mut state = State::new(config, own_ports, Some(Lock::take()?));
        state.install()?;
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// The same in the place of those of a process that is about to end; its listeners are ours, and its `lock`, if it had
    /// one. What can't be put in force now is tried again by [`Interception::hold`].
    pub fn succeed(config: &InterceptConfig, own_ports: &[u16], lock: Option<OwnedFd>) -> Self {
        let mut state = State::new(config, own_ports, lock.and_then(Lock::inherit));
        if let Err(error) = state.install() {
            let error: &dyn std::error::Error = &error;
            error!(
                error,
                "serving, but not by the rules of interception asked for; trying again"
            );
        }
        Self(Arc::new(Mutex::new(state)))
    }

    /// Puts in force what could not be yet, and takes the lock as soon as whoever has it lets go of it.
    pub fn hold(&self) -> impl Future<Output = ()> + Send + 'static {
        let state = self.0.clone();
        async move {
            loop {
                let state = state.clone();
                let look = move || locked(&state).look();
                match tokio::task::spawn_blocking(look).await {
                    Ok(false) => tokio::time::sleep(LOOK).await,
                    Ok(true) | Err(_) => return,
                }
            }
        }
    }

    /// The lock, for an heir to have beside us: nobody gets in between.
    pub fn share_lock(&self) -> Option<OwnedFd> {
        locked(&self.0).lock.as_ref()?.share().ok()
    }

    /// They stay: another process listens there.
    pub fn leave(self) {
        locked(&self.0).is_over = true;
    }
}

impl State {
    fn new(config: &InterceptConfig, own_ports: &[u16], lock: Option<Lock>) -> Self {
        Self {
            config: config.clone(),
            own_ports: own_ports.to_vec(),
            lock,
            is_installed: false,
            is_over: false,
        }
    }

    fn install(&mut self) -> Result<(), NftError> {
        nft::run(&rules::install(&self.config, &self.own_ports))?;
        self.is_installed = true;
        info!(
            outbound = self.config.outbound,
            inbound = self.config.inbound,
            table = rules::TABLE,
            "intercepting"
        );
        Ok(())
    }

    /// Whether there is nothing left to look after.
    fn look(&mut self) -> bool {
        if self.is_over {
            return true;
        }
        if self.lock.is_none() {
            self.lock = Lock::take().ok();
        }
        // What is wrong was said at first.
        self.is_installed = self.is_installed || self.install().is_ok();
        self.is_installed && self.lock.is_some()
    }
}

impl Drop for Interception {
    fn drop(&mut self) {
        let mut state = locked(&self.0);
        if std::mem::replace(&mut state.is_over, true) {
            state.lock = None;
            return;
        }
        // Also where ours could not be put in force: those of the one before lead to listeners that end with us.
        match nft::run(&rules::remove()) {
            Ok(()) => info!(table = rules::TABLE, "interception ended"),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                warn!(
                    error,
                    "the rules of interception could not be removed; phalanx proxy --intercept-clean does"
                );
            }
        }
        state.lock = None;
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what a killed process left, if there is such.
///
/// # Errors
/// [`InterceptError::Another`] while a process intercepts; it is left alone.
pub fn clean() -> Result<(), InterceptError> {
    let _lock = Lock::take()?;
    Ok(nft::run(&rules::remove())?)
}

/// The same for one whose predecessor intercepted, where it does not any more.
pub fn clean_up_behind() {
    if let Err(error) = nft::run(&rules::remove()) {
        let error: &dyn std::error::Error = &error;
        warn!(
            error,
            "the rules of the sidecar before could not be removed"
        );
    }
}

const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    #[error(
        "another sidecar intercepts in this network namespace: what its application sends and what ours sends can't be told apart (give each a namespace of its own, as a pod has)"
    )]
    Another,
    #[error("cannot tell whether another sidecar intercepts here")]
    Lock(#[source] std::io::Error),
    #[error(transparent)]
    Nft(#[from] NftError),
}
