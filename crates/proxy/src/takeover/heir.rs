//! The side of the process that starts: it finds out whether another one serves, takes its listeners, and follows the
//! protocol from there. Dropped before it has committed itself, it leaves everything to the other.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::time::Duration;

use phalanx_client::registry::Succession;
use phalanx_model::instance::State;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{info, warn};

use super::bequest::Legacy;
use super::holder::{UPGRADE, check_place};
use super::inherited::Inherited;
use super::parley::Parley;
use super::{FromHeir, FromHolder, Hello, Offer, PROTOCOL, TakeoverError, Yielded, own_uid};

/// About to take over from a process that serves.
pub struct Heir {
    holder: Parley,
    pub release: String,
    /// What the running one is registered as.
    pub instance: String,
    upgrade: Option<StdUnixListener>,
    /// The one before has more to leave.
    bequeaths: bool,
}

/// What comes with the last word: the socket that the next heir will ask at, and what is left to us.
pub type Taken = (Option<StdUnixListener>, Option<Legacy>);

/// How the process before fares while we get ready.
pub enum OfHolder<T> {
    Said(T),
    /// It ended; what it had is ours alone.
    Gone,
}

impl Heir {
    /// None: nobody listens at `path`, so there is nothing to take over.
    ///
    /// # Errors
    /// [`TakeoverError`]: somebody does, and does not hand over.
    pub async fn ask(
        path: &Path,
        release: &str,
        service: &str,
    ) -> Result<Option<(Self, Inherited)>, TakeoverError> {
        check_place(path)?;
        let stream = match timeout(ANSWER_MAX, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if is_nobody(&error) => return Ok(None),
            Ok(Err(error)) => return Err(TakeoverError::socket(path, error)),
            Err(_) => return Err(TakeoverError::socket(path, ErrorKind::TimedOut.into())),
        };
        let peer = stream.peer_cred().map_err(TakeoverError::Talk)?;
        if peer.uid() != own_uid() {
            return Err(TakeoverError::Stranger {
                path: path.to_owned(),
                uid: peer.uid(),
                own: own_uid(),
            });
        }
        let mut holder = Parley::new(stream);
        let hello = Hello {
            protocols: vec![PROTOCOL],
            release: release.to_owned(),
            service: service.to_owned(),
            inherits: true,
        };
        let offer = offered(&mut holder, hello).await?;
        let (inherited, upgrade) = taken(&holder, &offer).await.map_err(TakeoverError::Talk)?;
        info!(
            pid = peer.pid(),
            release = offer.release,
            "taking over from the sidecar that runs"
        );
        let heir = Self {
            holder,
            release: offer.release,
            instance: offer.instance,
            upgrade,
            bequeaths: offer.bequeaths,
        };
        Ok(Some((heir, inherited)))
    }

    /// Resolves when the process before is gone.
    ///
    /// # Errors
    /// When it says that it will not hand over.
    pub async fn parted(&mut self) -> Result<(), TakeoverError> {
        let heard = self.holder.hear().await;
        match word(heard)? {
            OfHolder::Gone => Ok(()),
            OfHolder::Said(said) => Err(TakeoverError::Protocol(format!("{said:?}"))),
        }
    }

    /// Asks for the registration; none where the one before has none. It is ours until this is dropped, or for good
    /// after [`Heir::commit`].
    ///
    /// # Errors
    /// When it says something else.
    pub async fn ready(&mut self) -> Result<OfHolder<Option<Succession>>, TakeoverError> {
        let succession = |yielded: Yielded| Succession {
            epoch: yielded.epoch,
            ready: yielded.registered,
            traffic: match yielded.accepting {
                true => State::Accepting,
                false => State::NotReady,
            },
        };
        match self.say(&FromHeir::Ready).await? {
            OfHolder::Said(FromHolder::Yielded(yielded)) => {
                Ok(OfHolder::Said(yielded.map(succession)))
            }
            OfHolder::Said(said) => Err(TakeoverError::Protocol(format!("{said:?}"))),
            OfHolder::Gone => Ok(OfHolder::Gone),
        }
    }

    /// The last word, and a decision: the one before may act on it whenever it comes to read it, so that from here on
    /// only what it says itself leaves it serving.
    ///
    /// # Errors
    /// [`TakeoverError::Refused`]: it is still there and goes on.
    pub async fn commit(mut self, drain: Duration) -> Result<Taken, TakeoverError> {
        let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
        match self.say(&FromHeir::Commit { drain_ms }).await {
            Ok(OfHolder::Said(FromHolder::Draining)) => {
                info!(release = self.release, "took over");
                let legacy = self.bequeaths.then(|| Legacy(self.holder));
                return Ok((self.upgrade, legacy));
            }
            Ok(OfHolder::Gone) => warn!("the sidecar before ended by itself, going on alone"),
            Err(error @ TakeoverError::Refused { .. }) => return Err(error),
            Ok(OfHolder::Said(said)) => {
                warn!(
                    ?said,
                    "took over from a sidecar that does not say that it drains"
                );
            }
            Err(error) => {
                let why: &dyn std::error::Error = &error;
                warn!(
                    why,
                    "took over from a sidecar that does not say that it drains"
                );
            }
        }
        Ok((self.upgrade, None))
    }

    async fn say(&mut self, said: &FromHeir) -> Result<OfHolder<FromHolder>, TakeoverError> {
        // One that is gone, or gave us up, may have left a last word that says which.
        let _ = self.holder.say(said).await;
        word(self.holder.hear_within(ANSWER_MAX).await)
    }

    /// The same where the process before is gone.
    pub fn alone(self) -> Option<StdUnixListener> {
        self.upgrade
    }
}

fn word(heard: io::Result<FromHolder>) -> Result<OfHolder<FromHolder>, TakeoverError> {
    match heard {
        Ok(FromHolder::Refused { reason }) => Err(TakeoverError::Refused { reason }),
        Ok(said) => Ok(OfHolder::Said(said)),
        Err(error) if is_end(&error) => Ok(OfHolder::Gone),
        Err(error) => Err(TakeoverError::Talk(error)),
    }
}

async fn offered(holder: &mut Parley, hello: Hello) -> Result<Offer, TakeoverError> {
    let talk = |error: io::Error| match error.kind() {
        ErrorKind::InvalidData => TakeoverError::Protocol(error.to_string()),
        ErrorKind::TimedOut => TakeoverError::Busy(BUSY_MAX),
        _ => TakeoverError::Talk(error),
    };
    // Whoever refuses us unheard has said why.
    let _ = holder.say(&FromHeir::Hello(hello)).await;
    match holder.hear_within(BUSY_MAX).await.map_err(talk)? {
        FromHolder::Offer(offer) if offer.protocol == PROTOCOL => Ok(offer),
        FromHolder::Offer(offer) => Err(TakeoverError::Protocol(format!(
            "{}, this one {PROTOCOL}",
            offer.protocol
        ))),
        FromHolder::Refused { reason } => Err(TakeoverError::Refused { reason }),
        said => Err(TakeoverError::Protocol(format!("{said:?}"))),
    }
}

async fn taken(holder: &Parley, offer: &Offer) -> io::Result<(Inherited, Option<StdUnixListener>)> {
    let sockets: usize = offer.listeners.iter().map(|told| told.sockets).sum();
    if sockets > SOCKETS_MAX {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("{sockets} sockets"),
        ));
    }
    let (mut inherited, mut upgrade) = (Inherited::default(), None);
    inherited.has_holder = true;
    for told in &offer.listeners {
        let mut files = timeout(ANSWER_MAX, holder.take(told.sockets)).await??;
        match told.role.as_str() {
            UPGRADE => upgrade = files.pop().map(StdUnixListener::from),
            _ => inherited.add(told, files)?,
        }
    }
    Ok((inherited, upgrade))
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused
    )
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

const ANSWER_MAX: Duration = Duration::from_secs(5);
/// For the first answer: another heir may be before us.
const BUSY_MAX: Duration = Duration::from_secs(30);
const SOCKETS_MAX: usize = 4096;
