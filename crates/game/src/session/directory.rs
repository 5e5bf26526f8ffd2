//! Who plays where. Whoever serves a key holds its seat under an epoch; each change of hands has a later one, so that
//! whatever a former owner still writes can be told from what the owner writes. Every change names the epoch that it
//! expects: nothing is taken from somebody who was not looked at.

use std::error::Error;
use std::time::Duration;

use super::name::{Instance, Key};

/// Who has a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    pub key: Key,
    pub instance: Instance,
    /// Grows with each change of hands and never comes again. Goes with everything that the owner writes elsewhere.
    pub epoch: u64,
    /// How long it is held without being claimed again; none: until it is released.
    pub ttl: Option<Duration>,
    /// The instance is known not to be there.
    pub away: bool,
}

/// Why a change was not made. After [`DirectoryError::Unavailable`] alone it may have been made all the same.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Somebody else has it, at another epoch than expected, or nobody.
    #[error("{}", match .0 { Some(seat) => format!("{} has {} at epoch {}", seat.instance, seat.key, seat.epoch), None => "nobody has it".to_owned() })]
    Conflict(Option<Box<Seat>>),
    /// It is draining: it keeps what it has.
    #[error("instance {0} takes no new sessions")]
    Closed(Instance),
    #[error("no instance {0} is known")]
    Unknown(Instance),
    #[error("the directory takes no more seats, or no more changes for now")]
    Full,
    /// A seat's time to live is 5 s to 24 h; a name has 1 to 128 visible ASCII characters; no epoch is 0.
    #[error(
        "not taken: a time to live is 5 s to 24 h, a name 1 to 128 visible ASCII characters, an epoch not 0"
    )]
    Invalid,
    #[error("the directory can't be asked")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
}

/// What a watch tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// What was told before is void: all seats follow, up to `complete`.
    pub begins: bool,
    pub complete: bool,
    /// As they are now; what was between is skipped.
    pub changed: Vec<Seat>,
    /// Keys that nobody has any more.
    pub removed: Vec<Key>,
}

/// The directory of one service. [`Local`](super::Local) keeps it in this process; with feature `mesh`, `mesh::MeshDirectory`
/// is the mesh's.
pub trait Directory: Send + Sync + 'static {
    type Watch: Follow;

    /// `instance` takes a key: one that nobody has (`over` none), or from whoever has it at epoch `over`. Who has it already
    /// keeps its epoch, for another `ttl`.
    ///
    /// # Errors
    /// [`DirectoryError`]
    fn claim(
        &self,
        key: &Key,
        instance: &Instance,
        over: Option<u64>,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<Seat, DirectoryError>> + Send;

    /// Puts a key that somebody has at `epoch` at another instance.
    ///
    /// # Errors
    /// [`DirectoryError`]
    fn move_to(
        &self,
        key: &Key,
        to: &Instance,
        epoch: u64,
    ) -> impl Future<Output = Result<Seat, DirectoryError>> + Send;

    /// Nobody has it from now on, if it is at `epoch`. The seat as it was; none: nobody had it.
    ///
    /// # Errors
    /// [`DirectoryError`]
    fn release(
        &self,
        key: &Key,
        epoch: u64,
    ) -> impl Future<Output = Result<Option<Seat>, DirectoryError>> + Send;

    /// # Errors
    /// [`DirectoryError`]
    fn show(&self, key: &Key) -> impl Future<Output = Result<Option<Seat>, DirectoryError>> + Send;

    /// All seats, then what changes.
    ///
    /// # Errors
    /// [`DirectoryError`]
    fn watch(&self) -> impl Future<Output = Result<Self::Watch, DirectoryError>> + Send;
}

/// One who follows a directory. Dropping it ends that.
pub trait Follow: Send {
    /// Waits for the next update. May be dropped and called again without losing one.
    ///
    /// # Errors
    /// [`DirectoryError::Unavailable`]; it is over then, and a new watch begins with everything.
    fn next(&mut self) -> impl Future<Output = Result<Update, DirectoryError>> + Send;
}
