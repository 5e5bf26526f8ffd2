//! The certificate authority: who gets which certificate, on which proof. Requests of workloads come in by the `Identity` service,
//! those of operators by the admin API; leaves, lists and the bundle of roots go out. What the mesh agrees on lies in the store
//! under `ca/` (several control planes share it), keys in files of this control plane. How a certificate is made is `pki`'s.
//!
//! A process holds one [`Ca`]; clones share it. It is usable from [`Ca::open`] on, but follows the store, renews its own
//! certificate and goes on with a rotation only while [`Ca::run`] runs.

mod append;
mod counts;
mod current;
mod follow;
mod follower;
mod issue;
mod jwks;
mod log;
mod mesh;
mod often;
mod open;
mod own;
mod peers;
mod place;
pub mod record;
mod revoke;
mod rotate;
mod service;
mod staple;
mod tend;
#[cfg(test)]
mod tests;
mod token;
mod tokens;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use phalanx_pki::authority::{Authority, AuthorityError};
use phalanx_pki::clock::{Clock, UnixMillis};
use phalanx_pki::csr::CsrError;
use phalanx_pki::identity::Identity;
use phalanx_pki::issuer::IssueError;
use phalanx_pki::join::JoinError;
use phalanx_pki::jwt::JwtError;
use phalanx_pki::name::{NameError, SpiffeId, TrustDomain};
use phalanx_pki::roots::Roots;
use phalanx_store::{Revision, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::current::{Census, InUse, Successors};
pub use self::follower::Follower;
pub use self::issue::{JoinRequest, Proof};
pub use self::jwks::{JwksConfig, JwksError, JwksSource};
pub use self::log::{IssuedEntry, IssuedQuery, Line};
pub use self::mesh::{Bundle, IssuerEntry};
pub use self::place::{IntermediateFiles, PlaceError};
pub use self::revoke::{List, RevokeError, Revoked, Target};
pub use self::rotate::{RotationPhase, RotationStatus, Waiting};
pub use self::tokens::Waits;

use self::append::Appender;
use self::counts::Counts;
use self::jwks::Jwks;
use self::log::Log;
use self::mesh::Mesh;
use self::often::Often;
use self::peers::Peers;
use self::revoke::Revocation;
use self::staple::Staples;

#[derive(Clone, Debug)]
pub struct CaConfig {
    /// `DATA/ca`: keys (0600) and certificates of this control plane; made when it isn't there.
    pub dir: PathBuf,
    /// An intermediate from outside, in place of an embedded root: `root-cert.pem`, `ca-cert.pem`, `ca-key.pem` (0600),
    /// `cert-chain.pem`. Looked at again every few seconds; in `next/` beneath it, the one that a rotation goes to.
    pub outside: Option<PathBuf>,
    pub trust_domain: TrustDomain,
    /// How long a workload's certificate lives.
    pub leaf_ttl: Duration,
    /// Host names and addresses of the control plane's own certificate, for people's tools.
    pub names: Vec<String>,
    /// Written into each leaf.
    pub ocsp_url: Option<String>,
    pub crl_url: Option<String>,
    /// Whose service-account tokens are taken; none: nobody's.
    pub jwks: Option<JwksConfig>,
    /// The control plane's name among those over one store.
    pub plane: String,
}

/// The authority of this control plane, within what the mesh has agreed on.
#[derive(Clone)]
pub struct Ca(Arc<Inner>);

struct Inner {
    config: CaConfig,
    store: Store,
    clock: Arc<dyn Clock>,
    /// What this control plane signs with.
    authority: RwLock<Arc<Authority>>,
    /// What the store says: roots, issuers, the rotation.
    mesh: RwLock<Arc<Mesh>>,
    /// The issuance log, as stored and as being stored. Held for a lookup or an insert, never across an await.
    log: Mutex<Log>,
    appender: Appender,
    jwks: Option<Jwks>,
    /// Who follows the bundle, and how far. Held likewise.
    peers: Mutex<Peers>,
    own: Arc<Identity>,
    /// What everybody is told, and as of which change. Held while it is put together, never across an await.
    bundle: Mutex<Option<(u64, Arc<Bundle>)>>,
    /// Up to where the store has been followed.
    followed: Mutex<Revision>,
    changes: watch::Sender<u64>,
    /// One step of a rotation, or one change of the authority, at a time.
    steps: tokio::sync::Mutex<()>,
    revocation: Revocation,
    staples: Staples,
    counts: Counts,
    often: Often,
    /// Since when it has been there: who is connected is known a little later.
    opened: UnixMillis,
    /// Streams end with it.
    stopped: CancellationToken,
}

impl Ca {
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.config.trust_domain
    }

    /// What this control plane signs with. Which roots the mesh trusts is [`Ca::roots`].
    pub fn authority(&self) -> Arc<Authority> {
        let authority = self.0.authority.read();
        authority.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The control plane's own identity, always current: for its TLS servers, and for calls to other control planes.
    pub fn own(&self) -> Arc<Identity> {
        self.0.own.clone()
    }

    /// `spiffe://<trust domain>/ns/phalanx-system/sa/control`, of every control plane of the mesh.
    pub fn own_id(&self) -> SpiffeId {
        own::id(self.trust_domain())
    }

    /// Ticks when roots, issuers, revocations or staples have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Every root that the mesh trusts now: during a rotation, and with several control planes, more than one.
    pub fn roots(&self) -> Roots {
        let mesh = self.mesh();
        let trusted = mesh.trusted().cloned();
        trusted.unwrap_or_else(|| self.authority().roots().clone())
    }

    fn now(&self) -> UnixMillis {
        self.0.clock.now()
    }

    fn mesh(&self) -> Arc<Mesh> {
        let mesh = self.0.mesh.read();
        mesh.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        self.0.changes.send_modify(|n| *n += 1);
    }
}

/// Whose fault it is, for whoever answers the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What was asked can't be done, by anybody.
    Request,
    /// Not by this caller, or not on this proof.
    Denied,
    /// Not as things stand.
    State,
    /// Later, perhaps.
    Busy,
    Ours,
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("the join token is unknown: it was never made here, or it has expired")]
    TokenUnknown,
    #[error(
        "the join token was used already (each is good for one workload; `phalanx cert token` makes another)"
    )]
    TokenUsed,
    #[error("the join token is for {of}, not for {asked}")]
    TokenOfAnother { of: String, asked: String },
    #[error("there is no join token {id}")]
    NoToken { id: String },
    #[error("at most {max} join tokens may be unused at a time")]
    TokensFull { max: usize },
    #[error(transparent)]
    Jwks(#[from] JwksError),
    #[error("the service-account token is refused")]
    Jwt(#[source] JwtError),
    #[error("the service-account token is for {of}, not for {asked}")]
    JwtOfAnother { of: String, asked: String },
    #[error(
        "a service-account token proves no zone: ask for none (a join token can be bound to one)"
    )]
    ZoneUnproven,
    #[error("{id} is the control plane's own name; nobody else gets it")]
    Reserved { id: SpiffeId },
    #[error("{id} is of another trust domain, this mesh is `{ours}`")]
    TrustDomain { id: SpiffeId, ours: TrustDomain },
    #[error("the certificate {serial} was revoked, so it renews nothing")]
    Revoked { serial: String },
    #[error("the certificate {serial} ended at {until}, so it renews nothing")]
    Ended { serial: String, until: UnixMillis },
    #[error(
        "{id} renews too often: ask again in {}s",
        again.as_secs() + 1
    )]
    TooOften { id: SpiffeId, again: Duration },
    #[error("{id} has {max} living certificates, which is the most")]
    LeavesFull { id: SpiffeId, max: usize },
    #[error("the issuance log is full: {max} certificates are alive")]
    LogFull { max: usize },
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Issue(IssueError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the rotation is led by the control plane `{plane}`: ask that one")]
    LedElsewhere { plane: String },
    #[error("no rotation is under way")]
    NoRotation,
    #[error("a rotation is under way already, begun by {author}")]
    RotationUnderWay { author: String },
    #[error(transparent)]
    Revoke(#[from] RevokeError),
    #[error("{peers} peers that are connected do not trust the new root yet, {first} among them")]
    Untrusting { peers: usize, first: String },
    #[error(
        "this control plane has just started, and who is connected is not known yet: ask again in {}s",
        again.as_secs() + 1
    )]
    Settling { again: Duration },
    #[error(
        "{leaves} certificates under the old root are neither expired nor revoked, the last until {until}"
    )]
    Outstanding { leaves: usize, until: UnixMillis },
    #[error("the control plane's own certificate cannot be made")]
    Own(#[source] phalanx_pki::credentials::CredentialsError),
    #[error(
        "the record {key} is damaged (a backup from before may help; deleting the key forgets it)"
    )]
    Damaged {
        key: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the store does not take or give what the CA keeps there")]
    Store(#[source] phalanx_store::Error),
    #[error(
        "the root ends at {until}, before another intermediate would pay: `phalanx cert rotate-root --begin`"
    )]
    RootEnds { until: UnixMillis },
    #[error("other control planes write at the same time, again and again; start once more")]
    Contended,
}

impl From<IssueError> for CaError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Csr(csr) => Self::Csr(csr),
            other => Self::Issue(other),
        }
    }
}

impl From<phalanx_store::Error> for CaError {
    fn from(error: phalanx_store::Error) -> Self {
        Self::Store(error)
    }
}

impl CaError {
    pub fn fault(&self) -> Fault {
        match self {
            Self::Csr(CsrError::Wildcard { .. } | CsrError::NotOwned { .. })
            | Self::TokenUnknown
            | Self::TokenUsed
            | Self::TokenOfAnother { .. }
            | Self::Jwt(_)
            | Self::JwtOfAnother { .. }
            | Self::Reserved { .. }
            | Self::TrustDomain { .. }
            | Self::Revoked { .. }
            | Self::Ended { .. }
            | Self::Join(JoinError::Expired { .. } | JoinError::Zone) => Fault::Denied,
            Self::Csr(_)
            | Self::Join(_)
            | Self::Name(_)
            | Self::ZoneUnproven
            | Self::Jwks(JwksError::None)
            | Self::NoToken { .. }
            | Self::Issue(IssueError::Ttl) => Fault::Request,
            Self::Authority(_)
            | Self::LedElsewhere { .. }
            | Self::NoRotation
            | Self::RootEnds { .. }
            | Self::RotationUnderWay { .. }
            | Self::Untrusting { .. }
            | Self::Settling { .. }
            | Self::Outstanding { .. }
            | Self::Place(_)
            | Self::Issue(IssueError::Expired { .. }) => Fault::State,
            Self::TokensFull { .. }
            | Self::TooOften { .. }
            | Self::LeavesFull { .. }
            | Self::LogFull { .. }
            | Self::Jwks(_)
            | Self::Store(_)
            | Self::Contended => Fault::Busy,
            Self::Revoke(error) => error.fault(),
            Self::Issue(_) | Self::Own(_) | Self::Damaged { .. } => Fault::Ours,
        }
    }
}
