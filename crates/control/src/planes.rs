//! Control planes over one store: each keeps a key under a lease of its own, which others see in the world, and may act for
//! instances only while it holds it. What it then writes carries that key's revision as a condition, the fence: a plane that
//! was paused or cut off finds its writes refused, however late it wakes up.
//!
//! Who of the living looks after an instance is decided in [`Duty`] from the world alone, so all who see the same agree.

mod duty;

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use phalanx_client::admin::Admin;
use phalanx_client::secure::Secure;
use phalanx_store::{Error, LeaseId, Revision, Store, Txn};
use tokio::sync::watch::{self, Receiver, Sender};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::world::World;
use crate::world::record::{PlaneRecord, plane_key};

pub use duty::Duty;

/// Who this control plane is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// One word, another for every control plane over one store; the same after a restart.
    pub name: String,
    /// `HOST:PORT` of its admin API, for the others.
    pub admin: String,
    /// `HOST:PORT` for data planes.
    pub xds: String,
}

impl Identity {
    /// For a control plane that nobody has to find.
    pub fn alone() -> Self {
        Self {
            name: "alone".to_owned(),
            ..Self::default()
        }
    }
}

/// The right to act: the plane's key as it was put, for as long as its lease certainly lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Of the plane's key; every write for instances expects it unchanged.
    pub fence: Revision,
    /// Grows each time that it is held anew: what was known of heartbeats before is worth nothing then.
    pub term: u64,
    /// The lease may be over from here on, unless it was prolonged by then.
    until: Instant,
}

/// This control plane among the others; cheap to clone.
#[derive(Clone)]
pub struct Planes {
    identity: Arc<Identity>,
    held: Receiver<Option<Held>>,
    /// How the others are asked; none: in plain text.
    secure: Arc<OnceLock<Secure>>,
}

/// Claims and keeps the lease.
pub struct Keeper {
    store: Store,
    worlds: Receiver<Arc<World>>,
    identity: Arc<Identity>,
    token: u64,
    started_ms: u64,
    held: Sender<Option<Held>>,
    term: u64,
    stop: CancellationToken,
}

/// A lease and the key under it.
struct Claim {
    lease: LeaseId,
    fence: Revision,
    until: Instant,
}

impl Planes {
    /// The caller runs the [`Keeper`].
    pub fn new(
        store: Store,
        worlds: Receiver<Arc<World>>,
        identity: Identity,
        stop: CancellationToken,
    ) -> (Self, Keeper) {
        let identity = Arc::new(identity);
        let (sender, held) = watch::channel(None);
        let started = SystemTime::now().duration_since(UNIX_EPOCH);
        let keeper = Keeper {
            store,
            worlds,
            identity: identity.clone(),
            token: RandomState::new().hash_one(&identity.name),
            started_ms: started.map_or(0, |since| since.as_millis() as u64),
            held: sender,
            term: 0,
            stop,
        };
        let planes = Self {
            identity,
            held,
            secure: Arc::default(),
        };
        (planes, keeper)
    }

    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// From now on the others are asked over TLS, as whoever this is. Once, before anything is asked.
    pub fn prove(&self, secure: Secure) {
        // A second one would be the composition root's mistake, and changes nothing.
        let _ = self.secure.set(secure);
    }

    /// A way to ask another one, by its admin address.
    pub fn ask(&self, admin: &str, patience: Duration) -> Admin {
        let client = Admin::new(admin).with_timeout(patience);
        match self.secure.get() {
            Some(secure) => client.with_secure(secure.clone()),
            None => client,
        }
    }

    /// The admin address that the others know.
    pub fn admin(&self) -> &str {
        &self.identity.admin
    }

    pub fn key(&self) -> String {
        plane_key(&self.identity.name)
    }

    /// None while this plane must not act for instances.
    pub fn held(&self) -> Option<Held> {
        self.held.borrow().filter(|held| held.is_valid())
    }

    /// Waits until it is held, at most `patience`.
    pub async fn acquired(&self, patience: Duration) -> Option<Held> {
        let mut states = self.held.clone();
        let held = states.wait_for(|held| held.is_some_and(|held| held.is_valid()));
        match tokio::time::timeout(patience, held).await {
            Ok(Ok(held)) => *held,
            _ => None,
        }
    }

    /// Changes whenever the lease is had anew, prolonged or lost.
    pub fn terms(&self) -> Receiver<Option<Held>> {
        self.held.clone()
    }

    pub fn duty<'a>(&'a self, world: &'a World) -> Duty<'a> {
        Duty::new(world, self.name())
    }
}

/// Waits until no other process keeps a lease under this name, as long as one lasts. An earlier life at the same addresses,
/// which are ours now, is none.
///
/// # Errors
/// [`Claimed`] by a process that lives; the store's error.
pub async fn unclaimed(store: &Store, identity: &Identity) -> Result<Result<(), Claimed>, Error> {
    let started = Instant::now();
    loop {
        let Some(entry) = store.get(&plane_key(&identity.name)).await? else {
            return Ok(Ok(()));
        };
        // What can't be read is replaced.
        let Ok(record) = serde_json::from_slice::<PlaneRecord>(&entry.value) else {
            return Ok(Ok(()));
        };
        if record.admin == identity.admin && record.xds == identity.xds {
            return Ok(Ok(()));
        }
        if started.elapsed() >= UNCLAIMED_MAX {
            return Ok(Err(Claimed {
                name: identity.name.clone(),
                admin: record.admin,
            }));
        }
        sleep(CLAIM_PAUSE).await;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the control plane at {admin} is called `{name}`, too, and it is alive (choose another --plane)"
)]
pub struct Claimed {
    pub name: String,
    pub admin: String,
}

impl Held {
    fn is_valid(&self) -> bool {
        Instant::now() < self.until
    }
}

impl Keeper {
    /// Holds the lease, and claims it again whenever it is lost, until the token is cancelled and `written` resolves: what
    /// was accepted is still written under it. Then it is given back.
    pub async fn run(mut self, written: impl Future) {
        let stop = self.stop.clone();
        let mut lease = None;
        let last = async {
            stop.cancelled().await;
            let _ = tokio::time::timeout(WRITTEN_MAX, written).await;
        };
        tokio::select! {
            () = last => {}
            () = self.hold(&mut lease) => {}
        }
        self.held.send_replace(None);
        if let Some(lease) = lease {
            // Others take over at once instead of after the lease.
            let _ = tokio::time::timeout(REVOKE_MAX, self.store.revoke(lease)).await;
        }
    }

    async fn hold(&mut self, lease: &mut Option<LeaseId>) {
        let mut warned = false;
        loop {
            match self.claim().await {
                Ok(claim) => {
                    *lease = Some(claim.lease);
                    warned = false;
                    self.keep(claim).await;
                    self.held.send_replace(None);
                    *lease = None;
                }
                Err(error) => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!(%error, plane = self.identity.name, "the lease of this control plane can't be had, trying again; instances can't register here meanwhile");
                    }
                }
            }
            sleep(CLAIM_PAUSE).await;
            self.displaced().await;
        }
    }

    /// Puts the key. An earlier life's is replaced at once: it is fenced off by that.
    async fn claim(&mut self) -> Result<Claim, Error> {
        let record = PlaneRecord {
            admin: self.identity.admin.clone(),
            xds: self.identity.xds.clone(),
            started: self.started_ms,
            token: self.token,
        };
        let value = serde_json::to_vec(&record).map_err(|e| Error::Invalid {
            problem: e.to_string(),
        })?;
        let sent = Instant::now();
        let lease = self.store.grant(TTL).await?;
        let txn = Txn::new().put_leased(plane_key(&self.identity.name), value, lease);
        let fence = self.store.commit(txn).await?;
        Ok(Claim {
            lease,
            fence,
            until: sent + TTL,
        })
    }

    /// Prolongs until the lease is over, or the key is another's. Held only from when the world has come to the claim.
    async fn keep(&mut self, claim: Claim) {
        let Claim {
            lease,
            fence,
            mut until,
        } = claim;
        let mut worlds = self.worlds.clone();
        worlds.mark_changed();
        let mut is_ours = false;
        let mut next = Instant::now() + KEEP;
        self.term += 1;
        loop {
            let now = Instant::now();
            if is_ours && now >= until && self.held.borrow().is_some() {
                tracing::warn!(
                    plane = self.identity.name,
                    "the lease of this control plane is over: it lets no instance go until it holds it again"
                );
                self.held.send_replace(None);
                self.term += 1;
            }
            if is_ours && now < until {
                self.publish(fence, until);
            }
            let lapse = if is_ours && now < until { until } else { next };
            tokio::select! {
                changed = worlds.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let world = worlds.borrow_and_update().clone();
                    if world.revision >= fence {
                        let plane = world.planes.get(&self.identity.name);
                        is_ours = plane.is_some_and(|plane| plane.revision == fence);
                        if !is_ours {
                            return;
                        }
                    }
                }
                () = sleep_until(lapse.min(next)) => {
                    if Instant::now() < next {
                        continue;
                    }
                    let sent = Instant::now();
                    match timeout_at(sent + CALL_MAX, self.store.keep_alive(lease)).await {
                        Ok(Ok(left)) => until = until.max(sent + left.min(TTL)),
                        Ok(Err(Error::LeaseNotFound { .. })) => return,
                        // Maybe it is only late: the lease lasts until it is over.
                        Ok(Err(_)) | Err(_) => {}
                    }
                    next = Instant::now() + KEEP;
                }
            }
        }
    }

    fn publish(&self, fence: Revision, until: Instant) {
        let term = self.term;
        let held = Held { fence, term, until };
        self.held.send_if_modified(|known| {
            let changed = *known != Some(held);
            *known = Some(held);
            changed
        });
    }

    /// Waits while another process has our name: whoever came last keeps it.
    async fn displaced(&mut self) {
        let name = &self.identity.name;
        let other = |world: &World| {
            let plane = world.planes.get(name);
            plane.is_some_and(|plane| {
                plane.token != self.token && plane.started_ms > self.started_ms
            })
        };
        let mut worlds = self.worlds.clone();
        if other(&worlds.borrow_and_update()) {
            tracing::error!(
                plane = name,
                "another control plane started with this name: instances can't register here until it ends (choose another --plane)"
            );
            let _ = worlds.wait_for(|world| !other(world)).await;
        }
    }
}

/// A control plane that died is found out within this.
pub const TTL: Duration = Duration::from_secs(5);
/// After which a lease that is there is kept by somebody.
const UNCLAIMED_MAX: Duration = Duration::from_secs(7);
const KEEP: Duration = Duration::from_millis(1_000);
/// Of one attempt to prolong.
const CALL_MAX: Duration = Duration::from_millis(1_500);
const CLAIM_PAUSE: Duration = Duration::from_millis(200);
/// At shutdown, for what was accepted.
const WRITTEN_MAX: Duration = Duration::from_secs(3);
const REVOKE_MAX: Duration = Duration::from_secs(1);
