//! The side of the process that serves: it waits at the upgrade socket for an heir, gives it the listeners and, when that is
//! ready, the registration; and takes it back if the heir goes before it has committed itself.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use phalanx_client::registry::{Registration, Succession};
use phalanx_model::instance::State;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::lasting::Lasting;

use super::bequest::{self, Testator};
use super::inherited::Bundle;
use super::parley::Parley;
use super::{
    FromHeir, FromHolder, Hello, Listeners, Offer, PROTOCOL, TakeoverError, Yielded, own_uid,
};

/// What is handed over.
pub struct Estate {
    pub release: &'static str,
    /// `namespace/name`.
    pub service: String,
    pub instance: String,
    pub bundles: Vec<Bundle>,
    /// Who knows of those that come and go.
    pub lender: Option<Arc<dyn Lender>>,
    pub registration: Option<Arc<Registration>>,
    /// Who has more to leave, to an heir that knows what to do with it.
    pub testator: Option<Arc<dyn Testator>>,
}

/// Listeners that open and close while the process serves.
pub trait Lender: Send + Sync {
    /// All that are open. No other is opened until they are taken back.
    fn lend(&self) -> Vec<Bundle>;

    /// Nobody took over.
    fn take_back(&self);
}

/// An heir has everything; what is left to do is to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub drain: Duration,
}

/// Waits for an heir until dropped.
pub struct Holder {
    socket: Option<PathBuf>,
    committed: oneshot::Receiver<Committed>,
    task: JoinHandle<()>,
}

impl Holder {
    /// `listener` is at `socket` already.
    ///
    /// # Errors
    /// When it can't be listened to.
    pub fn spawn(
        socket: &Path,
        listener: StdUnixListener,
        estate: Estate,
        lasting: &Lasting,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (commit, committed) = oneshot::channel();
        let task = tokio::spawn(lasting.guard(
            "upgrade socket",
            serve(listener, socket.to_owned(), estate, commit),
        ));
        Ok(Self {
            socket: Some(socket.to_owned()),
            committed,
            task,
        })
    }

    /// Resolves when an heir serves; from then on the socket is its own.
    pub async fn committed(&mut self) -> Committed {
        match (&mut self.committed).await {
            Ok(committed) => {
                self.socket = None;
                committed
            }
            // Nobody is listened to any more.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(socket) = &self.socket {
            let _ = fs::remove_file(socket); // a file that stays does no harm
        }
    }
}

/// Listens at `path`, for this user only, in the place of a socket that nobody listens at any more.
///
/// # Errors
/// [`TakeoverError`]; what is there and is no socket stays.
pub fn listen(path: &Path) -> Result<StdUnixListener, TakeoverError> {
    let failed = |source| TakeoverError::socket(path, source);
    check_place(path)?;
    // Under another name until its mode is right; renamed, it takes the place of what is there in one step.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let made = PathBuf::from(name);
    let _ = fs::remove_file(&made); // of an earlier process with this id
    let listener = StdUnixListener::bind(&made).map_err(failed)?;
    let placed = fs::set_permissions(&made, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&made, path));
    if let Err(error) = placed {
        let _ = fs::remove_file(&made);
        return Err(failed(error));
    }
    Ok(listener)
}

/// # Errors
/// When something else than a socket is at `path`.
pub fn check_place(path: &Path) -> Result<(), TakeoverError> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => Err(TakeoverError::NoSocket {
            path: path.to_owned(),
        }),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(TakeoverError::socket(path, error)),
    }
}

/// One heir at a time; others wait in the backlog, which the heir inherits.
async fn serve(
    listener: UnixListener,
    path: PathBuf,
    estate: Estate,
    commit: oneshot::Sender<Committed>,
) {
    let committed = loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "the upgrade socket can't be listened at");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let uid = stream.peer_cred().map(|peer| (peer.uid(), peer.pid()));
        let mut heir = Parley::new(stream);
        let attended = match uid {
            Ok((uid, pid)) if uid == own_uid() => {
                attend(&mut heir, pid, &listener, &path, &estate).await
            }
            Ok((uid, _)) => Err(io::Error::other(format!(
                "user {uid} asks, this is user {}'s: run it as that",
                own_uid()
            ))),
            Err(error) => Err(error),
        };
        let reason = match attended {
            Ok(committed) => break committed,
            Err(error) => error.to_string(),
        };
        warn!(reason, "nobody took over, going on");
        // An heir that is still there must not think that we are gone.
        let _ = timeout(HELLO_MAX, heir.say(&FromHolder::Refused { reason })).await;
    };
    let _ = commit.send(committed);
}

async fn attend(
    heir: &mut Parley,
    pid: Option<i32>,
    listener: &UnixListener,
    path: &Path,
    estate: &Estate,
) -> io::Result<Committed> {
    let Ok(FromHeir::Hello(hello)) = heir.hear_within(HELLO_MAX).await else {
        return Err(io::Error::other("there was no hello that could be read"));
    };
    if let Some(reason) = objection(&hello, estate) {
        return Err(io::Error::other(reason));
    }
    info!(pid, release = hello.release, "asked to hand over");
    let mut borrowed = Borrowed::of(estate);
    let bundles = || estate.bundles.iter().chain(&borrowed.bundles);
    let mut listeners: Vec<Listeners> = bundles().map(Bundle::listeners).collect();
    listeners.push(Listeners {
        role: UPGRADE.into(),
        address: path.display().to_string(),
        sockets: 1,
    });
    let testator = estate.testator.as_ref().filter(|_| hello.inherits);
    let offer = Offer {
        protocol: PROTOCOL,
        release: estate.release.to_owned(),
        instance: estate.instance.clone(),
        bequeaths: testator.is_some(),
        listeners,
    };
    heir.say(&FromHolder::Offer(offer)).await?;
    for bundle in bundles() {
        let files: Vec<BorrowedFd<'_>> = bundle.files().collect();
        heir.give(&files).await?;
    }
    heir.give(&[listener.as_fd()]).await?;
    match heir.hear_within(READY_MAX).await? {
        FromHeir::Ready => {}
        said => return Err(out_of_turn(&said)),
    }
    let lent = estate.registration.as_ref().map(Lent::of);
    let committed = conclude(heir, lent.as_ref()).await?;
    if let Some(lent) = lent {
        lent.give_away();
    }
    borrowed.from = None;
    // The heir serves, whether or not it hears of it.
    let _ = timeout(HELLO_MAX, heir.say(&FromHolder::Draining)).await;
    if let Some(testator) = testator {
        // To one who says so now: whoever is gone leaves us to serve them to their end.
        let given = match heir.hear_within(HELLO_MAX).await {
            Ok(FromHeir::Inherit) => bequest::give(heir, testator.bequeath().await).await,
            Ok(said) => Err(out_of_turn(&said)),
            Err(error) => Err(error),
        };
        if let Err(error) = given {
            warn!(%error, "the heir did not take the sessions of datagrams");
        }
    }
    Ok(committed)
}

async fn conclude(heir: &mut Parley, lent: Option<&Lent<'_>>) -> io::Result<Committed> {
    let yielded = lent.map(|lent| Yielded {
        epoch: lent.given.epoch,
        registered: lent.given.ready,
        accepting: lent.given.traffic == State::Accepting,
    });
    heir.say(&FromHolder::Yielded(yielded)).await?;
    match heir.hear_within(COMMIT_MAX).await? {
        FromHeir::Commit { drain_ms } => Ok(Committed {
            drain: Duration::from_millis(drain_ms),
        }),
        said => Err(out_of_turn(&said)),
    }
}

/// Why this one is no heir of ours.
fn objection(hello: &Hello, estate: &Estate) -> Option<String> {
    if !hello.protocols.contains(&PROTOCOL) {
        return Some(format!(
            "release {} speaks takeover protocol {PROTOCOL}, release {} speaks {:?}; stop the running one, then start the other",
            estate.release, hello.release, hello.protocols
        ));
    }
    (hello.service != estate.service).then(|| {
        format!(
            "it is the sidecar of {}, not of {}",
            estate.service, hello.service
        )
    })
}

fn out_of_turn(said: &FromHeir) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{said:?} out of turn"))
}

/// Listeners while it is not known whose they are; given back when dropped.
struct Borrowed<'e> {
    bundles: Vec<Bundle>,
    from: Option<&'e dyn Lender>,
}

impl<'e> Borrowed<'e> {
    fn of(estate: &'e Estate) -> Self {
        let from = estate.lender.as_deref();
        Self {
            bundles: from.map(Lender::lend).unwrap_or_default(),
            from,
        }
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(lender) = self.from {
            lender.take_back();
        }
    }
}

/// The registration while it is not known whose it is; taken back when dropped.
struct Lent<'r> {
    registration: &'r Registration,
    given: Succession,
    gone: bool,
}

impl<'r> Lent<'r> {
    fn of(registration: &'r Arc<Registration>) -> Self {
        Self {
            given: registration.suspend(),
            registration,
            gone: false,
        }
    }

    fn give_away(mut self) {
        self.gone = true;
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if !self.gone {
            self.registration.resume(self.given);
        }
    }
}

/// The role of the upgrade socket itself.
pub const UPGRADE: &str = "upgrade";
/// For a word that needs no thought.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// For an heir to get ready; it has a limit of its own.
const READY_MAX: Duration = Duration::from_secs(3600);
/// For it to register. Well within a lease.
const COMMIT_MAX: Duration = Duration::from_secs(20);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
