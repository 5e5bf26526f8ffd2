//! Registering the application beside us, for as long as it accepts connections. A connection is held open to each of
//! its ports: the kernel ends it in the instant the application dies, whatever way, and then one attempt to connect
//! tells a dead application from one that only closed an idle connection. Of a port for datagrams the kernel is asked whether
//! somebody has it. An application that lives may be asked, besides, whether it is ready; one that is not stays registered, out of everybody's endpoints.

mod bound;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phalanx_client::health::{Checker, State as Health, Target};
use phalanx_client::registry::{Registration, Succession};
use phalanx_model::instance::State;
use phalanx_model::resource::{HealthCheck, Probe};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use crate::lasting::Lasting;

/// How long the first configuration may keep an instance from registering: without one its application can't call.
pub const CONFIGURATION_WAIT: Duration = Duration::from_secs(5);
/// How often the kernel is asked about ports for datagrams.
const BOUND_INTERVAL: Duration = Duration::from_millis(500);
/// How often an application that is down is tried.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Least time between two connections to an application that closes them; it doubles from the one to the other. The
/// first is short, because a dying process may close its connections before it stops listening.
const SPACING_MIN: Duration = Duration::from_millis(5);
const SPACING_MAX: Duration = Duration::from_millis(250);
/// Attempts that fail in another way than by refusal, a full backlog for one, until the application counts as down.
const DOUBTS_MAX: u32 = 3;

/// From one question whether the application is ready to the next, and how many bad answers make a no.
const READY_INTERVAL: Duration = Duration::from_millis(500);
const READY_DOUBTS: u32 = 2;

/// Keeps a [`Registration`] true to the application.
#[derive(Debug)]
pub struct Register {
    registration: Arc<Registration>,
    tasks: JoinSet<()>,
    /// Asks whether the application is ready.
    _asking: Option<Checker<()>>,
}

impl Register {
    /// Watches `apps` and `udp`, its ports for datagrams, and, once `complete` or after [`CONFIGURATION_WAIT`], registers while all of them accept; asserts anew whenever
    /// `connected`, the state of the discovery stream, changes: its end may mean a control plane that forgot us.
    ///
    /// With `ready`, the first of `apps` is asked that, too; until it says yes it gets no traffic. What is known `before`,
    /// from a process that watched it until now, holds until it is found to be otherwise.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another's, and there is one caller"
    )]
    pub fn spawn(
        registration: Registration,
        before: Option<Succession>,
        apps: &[SocketAddr],
        udp: &[SocketAddr],
        ready: Option<Probe>,
        mut complete: Receiver<bool>,
        connected: Receiver<bool>,
        lasting: &Lasting,
    ) -> Self {
        let registration = Arc::new(registration);
        let was_up = before.is_some_and(|before| before.ready);
        let was_ready = before.is_some_and(|before| before.traffic == State::Accepting);
        let (report, up) = channel(Ports::all_same(apps.len() + udp.len(), was_up));
        let report = Arc::new(report);
        let mut tasks = JoinSet::new();
        for (port, app) in apps.iter().enumerate() {
            let watching = watch_port(*app, port, report.clone());
            tasks.spawn(lasting.guard("watch of the application", watching));
        }
        for (port, app) in (apps.len()..).zip(udp) {
            let watching = watch_bound(*app, port, report.clone());
            tasks.spawn(lasting.guard("watch of a port for datagrams", watching));
        }
        let (said, is_ready) = channel(ready.is_none() || was_ready);
        let asking = ready
            .zip(apps.first())
            .map(|(probe, app)| ask(*app, probe, was_ready, said));
        let following = follow(registration.clone(), up, is_ready, connected);
        let registering = async move {
            if timeout(CONFIGURATION_WAIT, complete.wait_for(|complete| *complete))
                .await
                .is_err()
            {
                warn!("no configuration yet, registering without");
            }
            following.await;
        };
        tasks.spawn(lasting.guard("registration", registering));
        Self {
            registration,
            tasks,
            _asking: asking,
        }
    }

    pub fn registration(&self) -> &Arc<Registration> {
        &self.registration
    }

    /// Says that new sessions shall go elsewhere, whatever the application does; false when the control plane did not
    /// acknowledge `within`.
    pub async fn drain(&mut self, within: Duration) -> bool {
        self.tasks.shutdown().await;
        self.registration.set_traffic(State::Draining);
        self.registration.settled(within).await
    }

    /// Withdraws for good, whatever the application does; false when the control plane did not acknowledge `within`.
    pub async fn deregister(&mut self, within: Duration) -> bool {
        self.tasks.shutdown().await;
        self.registration.deregister(within).await
    }
}

async fn follow(
    registration: Arc<Registration>,
    mut up: Receiver<Ports>,
    mut is_ready: Receiver<bool>,
    mut connected: Receiver<bool>,
) {
    loop {
        registration.set_traffic(match *is_ready.borrow_and_update() {
            true => State::Accepting,
            false => State::NotReady,
        });
        registration.set_ready(up.borrow_and_update().all());
        tokio::select! {
            change = up.changed() => if change.is_err() { return },
            Ok(()) = is_ready.changed() => {}
            change = connected.changed() => match change {
                Ok(()) => registration.assert_now(),
                Err(_) => return,
            },
        }
    }
}

/// Asks again and again; `said` is true while the answers are good.
fn ask(app: SocketAddr, probe: Probe, was_ready: bool, said: Sender<bool>) -> Checker<()> {
    let target = Target {
        address: app,
        check: HealthCheck {
            interval: READY_INTERVAL,
            unhealthy_threshold: READY_DOUBTS,
            ..HealthCheck::new(probe)
        },
        authority: app.to_string(),
        port: 0,
        http2: false,
        tls: None,
        before: match was_ready {
            true => Health::Healthy,
            false => Health::Unhealthy,
        },
    };
    let checker = Checker::spawn(1, None, move |(), finding| {
        let ready = finding.state == Health::Healthy;
        said.send_if_modified(|known| {
            let changed = *known != ready;
            *known = ready;
            match (changed, ready) {
                (false, _) => {}
                (true, true) => info!(%app, "application is ready"),
                (true, false) => {
                    warn!(%app, reason = finding.reason, "application is not ready, it gets no traffic");
                }
            }
            changed
        });
    });
    checker.set([((), target)].into());
    checker
}

/// Which ports of the application accept, in the order they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ports(Vec<bool>);

impl Ports {
    fn all_same(count: usize, up: bool) -> Self {
        Self(vec![up; count])
    }

    fn all(&self) -> bool {
        self.0.iter().all(|up| *up)
    }
}

async fn watch_port(app: SocketAddr, port: usize, report: Arc<Sender<Ports>>) {
    let mut doubts = 0;
    let mut spacing = SPACING_MIN;
    loop {
        let start = Instant::now();
        match connect(app).await {
            Ok(stream) => {
                doubts = 0;
                set(&report, port, true, app, "connections");
                held(stream).await;
                if start.elapsed() >= SPACING_MAX {
                    spacing = SPACING_MIN;
                }
                sleep_until(start + spacing).await;
                spacing = (spacing * 2).min(SPACING_MAX);
            }
            Err(error) => {
                doubts += 1;
                if error.kind() == ErrorKind::ConnectionRefused || doubts >= DOUBTS_MAX {
                    set(&report, port, false, app, "connections");
                }
                sleep(CHECK_INTERVAL).await;
            }
        }
    }
}

async fn watch_bound(app: SocketAddr, port: usize, report: Arc<Sender<Ports>>) {
    loop {
        // A few system calls; what they read is no file.
        set(&report, port, bound::is_bound(app), app, "datagrams");
        sleep(BOUND_INTERVAL).await;
    }
}

async fn connect(app: SocketAddr) -> io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, phalanx_client::mark::connect(app))
        .await
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// Returns when the application's side of the connection is gone. What it may send first is thrown away.
async fn held(mut stream: TcpStream) {
    let mut greeting = [0; 512];
    while matches!(stream.read(&mut greeting).await, Ok(read) if read > 0) {}
}

/// Whether somebody takes `what` there, for the log too.
fn set(report: &Sender<Ports>, port: usize, up: bool, app: SocketAddr, what: &str) {
    report.send_if_modified(|ports| {
        let Some(known) = ports.0.get_mut(port).filter(|known| **known != up) else {
            return false;
        };
        *known = up;
        match up {
            true => info!(%app, "application takes {what}"),
            false => warn!(%app, "application takes no {what}, withdrawing it"),
        }
        true
    });
}
