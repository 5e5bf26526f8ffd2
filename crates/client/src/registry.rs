//! Registering with the control plane. A [`Registration`] holds what shall be true (this instance, there or not, and whether
//! it wants traffic) and one task asserts it until it is, and again after every loss on either side; so whatever a control
//! plane forgets, it knows again within one TTL. Of several control planes it finds one that can answer. [`Watch`] follows
//! what others registered.

mod watch;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use phalanx_model::instance::State as Traffic;
use phalanx_model::{Instance, InstanceId};
use phalanx_proto::phalanx::registry::v1::registry_client::RegistryClient;
use phalanx_proto::phalanx::registry::v1::{DeregisterRequest, HeartbeatRequest, RegisterRequest};
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::channel::Control;
use crate::why::{is_joining, why};

pub use watch::{Update, Watch, WatchError};
pub use wire::{InvalidInstance, from_wire, id_from_wire, state_from_wire, state_to_wire, to_wire};

/// Waits between failed attempts. The upper bound is how long a control plane that came back may have to wait for us.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The same where there is another control plane to ask.
const CALL_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(1);
/// Changes that a successor may have asserted before it failed.
const SUCCESSOR_CHANGES_MAX: u64 = 1000;
/// A grant below this would be a heartbeat storm.
const TTL_MIN: Duration = Duration::from_millis(300);

/// A desired registration and the task that asserts it. Dropping it ends the task and lets the lease run out;
/// [`Registration::deregister`] ends it properly.
#[derive(Debug)]
pub struct Registration {
    desired: Sender<Desired>,
    state: Receiver<State>,
    counts: Arc<Counts>,
    /// See [`Asserter::lead`].
    lead: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// A registration as its next holder has to go on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Succession {
    /// Later than all that was asserted.
    pub epoch: u64,
    pub ready: bool,
    pub traffic: Traffic,
}

/// What the control plane is known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not known: not yet asserted, or the control plane can't be reached.
    Unknown,
    /// Acknowledged, for the change of this epoch.
    Registered { epoch: u64 },
    /// Withdrawal acknowledged, for the change of this epoch.
    Withdrawn { epoch: u64 },
}

impl State {
    pub fn is_registered(self) -> bool {
        matches!(self, Self::Registered { .. })
    }
}

/// Since start.
#[derive(Debug, Default)]
pub struct Counts {
    registrations: AtomicU64,
    heartbeats: AtomicU64,
    failures: AtomicU64,
}

impl Counts {
    /// Acknowledged `Register` calls.
    pub fn registrations(&self) -> u64 {
        self.registrations.load(Ordering::Relaxed)
    }

    /// Acknowledged `Heartbeat` calls.
    pub fn heartbeats(&self) -> u64 {
        self.heartbeats.load(Ordering::Relaxed)
    }

    /// Calls that failed or were refused.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

impl Registration {
    /// Starts asserting that `instance` is *not* there, which also ends what an earlier life of it may have left, until
    /// [`Registration::set_ready`]. `ttl` is what is asked for; the control plane may grant another.
    pub fn spawn(control: impl Into<Control>, instance: Instance, ttl: Duration) -> Self {
        Self::spawn_at(control, instance, ttl, now_ms())
    }

    /// The same by another clock. `epoch` should be later than all of the instance's earlier lives; where it is not, because
    /// the clock went back, the control plane says so, and the next after those is taken.
    pub fn spawn_at(
        control: impl Into<Control>,
        instance: Instance,
        ttl: Duration,
        epoch: u64,
    ) -> Self {
        let before = Succession {
            epoch,
            ready: false,
            traffic: Traffic::Accepting,
        };
        Self::succeed(control, instance, ttl, before)
    }

    /// Goes on with what another process held, and gave up by [`Registration::suspend`]: the instance stays as it is there.
    pub fn succeed(
        control: impl Into<Control>,
        instance: Instance,
        ttl: Duration,
        before: Succession,
    ) -> Self {
        let control = control.into();
        let (desired, changes) = channel(Desired {
            instance: Arc::new(instance),
            ready: before.ready,
            traffic: before.traffic,
            epoch: before.epoch,
            suspended: false,
        });
        let (published, state) = channel(State::Unknown);
        let counts = Arc::new(Counts::default());
        let lead = Arc::<AtomicU64>::default();
        let client = RegistryClient::new(control.channel());
        let asserter = Asserter {
            client,
            control,
            ttl,
            published,
            counts: counts.clone(),
            known: State::Unknown,
            warned: false,
            lead: lead.clone(),
            acknowledged: false,
        };
        let task = tokio::spawn(asserter.run(changes));
        Self {
            desired,
            state,
            counts,
            lead,
            task,
        }
    }

    /// Ready: register; not ready: withdraw. At once, and without effect when nothing changes.
    pub fn set_ready(&self, ready: bool) {
        self.desired.send_if_modified(|desired| {
            let changed = desired.ready != ready;
            desired.ready = ready;
            desired.epoch += u64::from(changed);
            changed
        });
    }

    /// Whether it wants traffic while it is registered. At once, and without effect when nothing changes.
    pub fn set_traffic(&self, traffic: Traffic) {
        self.desired.send_if_modified(|desired| {
            let changed = desired.traffic != traffic;
            desired.traffic = traffic;
            desired.epoch += u64::from(changed);
            changed
        });
    }

    /// Waits at most `within` until what is wanted now is acknowledged; false when it was not.
    pub async fn settled(&self, within: Duration) -> bool {
        let wanted = {
            let desired = self.desired.borrow();
            let epoch = desired.epoch;
            match desired.ready {
                true => State::Registered { epoch },
                false => State::Withdrawn { epoch },
            }
        };
        let mut states = self.states();
        let settled = timeout(within, states.wait_for(|state| *state == wanted)).await;
        matches!(settled, Ok(Ok(_)))
    }

    /// Registers `instance` from now on (other labels, other ports); its id must stay.
    pub fn set_instance(&self, instance: Instance) {
        self.desired.send_if_modified(|desired| {
            let changed = *desired.instance != instance;
            if changed {
                desired.instance = Arc::new(instance);
                desired.epoch += 1;
            }
            changed
        });
    }

    /// Asserts nothing from now on, because another process will ([`Registration::succeed`]), or until
    /// [`Registration::resume`]. The lease runs on.
    pub fn suspend(&self) -> Succession {
        self.desired.send_modify(|desired| desired.suspended = true);
        let desired = self.desired.borrow();
        Succession {
            epoch: self.asserted(desired.epoch).max(now_ms()) + 1,
            ready: desired.ready,
            traffic: desired.traffic,
        }
    }

    /// Takes it back from a successor that did not come to hold it.
    pub fn resume(&self, given: Succession) {
        let lead = self.lead.load(Ordering::Relaxed);
        self.desired.send_modify(|desired| {
            let later = given.epoch.saturating_add(SUCCESSOR_CHANGES_MAX);
            desired.epoch = desired.epoch.max(later.saturating_sub(lead));
            desired.suspended = false;
        });
    }

    fn asserted(&self, epoch: u64) -> u64 {
        epoch.saturating_add(self.lead.load(Ordering::Relaxed))
    }

    /// Asserts now instead of at the next beat. For whoever saw the connection to the control plane go or come back.
    pub fn assert_now(&self) {
        self.desired.send_modify(|_| ());
    }

    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Follows [`Registration::state`].
    pub fn states(&self) -> Receiver<State> {
        self.state.clone()
    }

    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Withdraws and waits at most `within` for the acknowledgement; false when there was none.
    pub async fn deregister(&self, within: Duration) -> bool {
        self.set_ready(false);
        self.settled(within).await
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Debug)]
struct Desired {
    instance: Arc<Instance>,
    ready: bool,
    traffic: Traffic,
    /// Unix milliseconds of the start, plus one per change: a call that comes late can't undo a later one.
    epoch: u64,
    /// Another asserts it.
    suspended: bool,
}

struct Asserter {
    client: RegistryClient<Channel>,
    control: Control,
    ttl: Duration,
    published: Sender<State>,
    counts: Arc<Counts>,
    known: State,
    /// A failure was logged and no success since.
    warned: bool,
    /// Added to epochs, because the clock they come from went back since an earlier life.
    lead: Arc<AtomicU64>,
    /// This life was registered once: whoever is newer now is another one.
    acknowledged: bool,
}

impl Asserter {
    async fn run(mut self, mut changes: Receiver<Desired>) {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let desired = changes.borrow_and_update().clone();
            if desired.suspended {
                self.known = State::Unknown;
                match changes.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            // A change interrupts a call: what it would assert is no longer wanted, and epochs order what arrives.
            let outcome = tokio::select! {
                outcome = self.assert_somewhere(&desired) => outcome,
                gone = changes.changed() => match gone {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            let next = match outcome {
                Ok(state) => {
                    backoff.reset();
                    self.settle(state, &desired.instance.id);
                    // Withdrawn: nothing to beat for. A lost withdrawal needs no repetition, the lease is gone by now.
                    state.is_registered().then(|| self.beat())
                }
                Err(status) => {
                    self.fail(&status, &desired.instance.id);
                    Some(backoff.wait())
                }
            };
            tokio::select! {
                () = sleep(next.unwrap_or_default()), if next.is_some() => {}
                gone = changes.changed() => if gone.is_err() { return },
            }
        }
    }

    /// At the control plane in use, else at another, which is in use from then on.
    async fn assert_somewhere(&mut self, desired: &Desired) -> Result<State, Status> {
        let others = self.control.others();
        let limit = match others.is_empty() {
            true => CALL_TIMEOUT,
            false => CALL_TIMEOUT_OF_SEVERAL,
        };
        let no_answer = |_| Err(Status::deadline_exceeded("no answer"));
        let outcome = timeout(limit, self.assert(desired)).await;
        let failed = match outcome.unwrap_or_else(no_answer) {
            Err(status) if is_elsewhere(status.code()) => status,
            outcome => return outcome,
        };
        for (at, channel) in others {
            let shared = std::mem::replace(&mut self.client, RegistryClient::new(channel));
            let known = std::mem::replace(&mut self.known, State::Unknown);
            let outcome = timeout(limit, self.assert(desired)).await;
            self.client = shared;
            self.known = known;
            if let Ok(Ok(state)) = outcome {
                self.control.prefer(at);
                return Ok(state);
            }
        }
        Err(failed)
    }

    /// Makes the control plane agree with `desired`, as far as it is not known to.
    async fn assert(&mut self, desired: &Desired) -> Result<State, Status> {
        let epoch = desired.epoch;
        if !desired.ready {
            return match self.known {
                State::Withdrawn { epoch: last } if last == epoch => Ok(self.known),
                _ => self.withdraw(desired).await,
            };
        }
        if self.known == (State::Registered { epoch }) && self.heartbeat(desired).await? {
            return Ok(self.known);
        }
        match self.register(desired).await {
            Err(status) if self.overtakes(&status, epoch) => self.register(desired).await,
            outcome => outcome,
        }
    }

    /// Whether an earlier life of ours was said to have a later epoch, and the next ones are later than that.
    fn overtakes(&mut self, status: &Status, epoch: u64) -> bool {
        let Some(current) = newer_epoch(status).filter(|_| !self.acknowledged) else {
            return false;
        };
        let lead = current.saturating_add(1).saturating_sub(epoch);
        self.lead.store(lead, Ordering::Relaxed);
        warn!(
            epoch,
            current, "the clock went back since this instance was registered last"
        );
        true
    }

    fn sent(&self, epoch: u64) -> u64 {
        epoch.saturating_add(self.lead.load(Ordering::Relaxed))
    }

    async fn register(&mut self, desired: &Desired) -> Result<State, Status> {
        let ttl_ms = u32::try_from(self.ttl.as_millis()).unwrap_or(u32::MAX);
        let mut instance = to_wire(&desired.instance);
        instance.set_state(state_to_wire(desired.traffic));
        let request = RegisterRequest {
            instance: Some(instance),
            epoch: self.sent(desired.epoch),
            ttl_ms,
        };
        let granted = self.client.register(request).await?.into_inner();
        self.grant(granted.ttl_ms);
        self.counts.registrations.fetch_add(1, Ordering::Relaxed);
        self.acknowledged = true;
        Ok(State::Registered {
            epoch: desired.epoch,
        })
    }

    /// False: the control plane doesn't know us.
    async fn heartbeat(&mut self, desired: &Desired) -> Result<bool, Status> {
        let InstanceId { service, id } = desired.instance.id.clone();
        let request = HeartbeatRequest {
            namespace: service.namespace,
            service: service.name,
            id,
            epoch: self.sent(desired.epoch),
        };
        let answer = self.client.heartbeat(request).await?.into_inner();
        self.grant(answer.ttl_ms);
        self.counts.heartbeats.fetch_add(1, Ordering::Relaxed);
        Ok(!answer.unknown)
    }

    async fn withdraw(&mut self, desired: &Desired) -> Result<State, Status> {
        let InstanceId { service, id } = desired.instance.id.clone();
        let reason = "not ready".to_owned();
        let epoch = desired.epoch;
        let request = DeregisterRequest {
            namespace: service.namespace,
            service: service.name,
            id,
            epoch: self.sent(epoch),
            reason,
        };
        self.client.deregister(request).await?;
        Ok(State::Withdrawn { epoch })
    }

    fn grant(&mut self, ttl_ms: u32) {
        if ttl_ms > 0 {
            self.ttl = Duration::from_millis(ttl_ms.into()).max(TTL_MIN);
        }
    }

    /// A third of the TTL, so that two beats may be lost; a little less by chance, so that clients spread.
    fn beat(&self) -> Duration {
        (self.ttl / 3).mul_f64(0.8 + fastrand::f64() * 0.2)
    }

    fn settle(&mut self, state: State, id: &InstanceId) {
        self.warned = false;
        if self.known != state {
            match state {
                State::Registered { epoch } => info!(instance = %id, epoch, "registered"),
                // Nothing was: that is how it begins.
                State::Withdrawn { .. } if self.known == State::Unknown => {}
                State::Withdrawn { epoch } => info!(instance = %id, epoch, "withdrawn"),
                State::Unknown => {}
            }
        }
        self.known = state;
        self.published.send_replace(state);
    }

    fn fail(&mut self, status: &Status, id: &InstanceId) {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        // Whoever joins is not warned of it.
        if !self.warned && !is_joining(status) {
            warn!(instance = %id, code = ?status.code(), error = why(status), "the registry does not answer, trying again");
            self.warned = true;
        }
        self.known = State::Unknown;
        self.published.send_replace(State::Unknown);
    }
}

/// Of the Unix epoch; 1 where the clock is before that.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| since.as_millis() as u64)
}

/// Tells a client whose epoch is too old which one is registered.
const EPOCH_KEY: &str = "phalanx-epoch";

/// The refusal of a registration that is older than what is registered.
pub fn older(message: String, current: u64) -> Status {
    let mut status = Status::failed_precondition(message);
    status.metadata_mut().insert(EPOCH_KEY, current.into());
    status
}

fn newer_epoch(status: &Status) -> Option<u64> {
    let told = status.metadata().get(EPOCH_KEY)?.to_str().ok()?;
    told.parse()
        .ok()
        .filter(|_| status.code() == Code::FailedPrecondition)
}

/// Whether another control plane may do better. What one refuses for a reason, all refuse.
fn is_elsewhere(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
    )
}
