//! Getting the next certificate in time: the first by a proof, each further one by the one before, each for a new key. A
//! failure changes nothing but the alarm; it is tried again, sooner when less time remains.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use phalanx_client::backoff::Backoff;
use phalanx_client::channel::{ChannelError, Control};
use phalanx_client::identity::{CallError, Client, Grant};
use phalanx_client::secure::Rejection;
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::credentials::{CredentialsError, Parts};
use phalanx_pki::csr::{self, CsrError};
use phalanx_pki::identity::Identity;
use phalanx_pki::key::{Key, KeyError, KeyKind};
use phalanx_pki::name::Workload;
use phalanx_pki::renewal::{Renewal, RenewalPolicy};
use phalanx_pki::verifier::Peer;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, warn};

use super::chain;
use super::holding::Holding;
use super::proof::{Bootstrap, ProofError};
use super::status::Topic;
use crate::config::Proof;

/// Waits for a control plane that can't be reached, before there is any certificate.
const JOIN_RETRY_MIN: Duration = Duration::from_millis(200);
const JOIN_RETRY_MAX: Duration = Duration::from_secs(5);
/// The connection to the control plane is made anew when less than this part of its certificate's life remains.
const RECONNECT_AT: u32 = 3;

pub struct Renewing {
    holding: Arc<Holding>,
    control: Control,
    client: Client,
    addresses: String,
    proof: Option<Proof>,
    roots: Option<PathBuf>,
    policy: RenewalPolicy,
    /// In a row.
    failures: u32,
    backoff: Backoff,
    /// The token that was tried last, and for which key: it is bound to that, so that an answer that got lost can be asked
    /// for again.
    joining: Option<([u8; 32], Key)>,
    /// For good or ill: a join token is then good for no more.
    is_answered: bool,
    connection: Connection,
    /// Which certificate the control plane did not take last.
    rejected: watch::Receiver<Option<Rejection>>,
}

impl Renewing {
    pub fn new(
        holding: Arc<Holding>,
        control: Control,
        addresses: &str,
        proof: Option<Proof>,
        roots: Option<PathBuf>,
        policy: RenewalPolicy,
    ) -> Self {
        let longest = JOIN_RETRY_MAX.min(policy.check);
        let rejected = control.rejected();
        Self {
            // In plain text nobody is refused by a certificate.
            rejected: rejected.unwrap_or_else(|| watch::channel(None).1),
            client: Client::new(control.channel()),
            connection: Connection::new(&holding.identity),
            holding,
            control,
            addresses: addresses.to_owned(),
            proof,
            roots,
            policy,
            failures: 0,
            backoff: Backoff::new(JOIN_RETRY_MIN.min(longest), longest),
            joining: None,
            is_answered: false,
        }
    }

    pub async fn run(mut self) {
        let mut wait = self.look().await;
        loop {
            if self.connection.is_due(&self.holding.identity) {
                self.control.reconnect();
            }
            wait = tokio::select! {
                () = sleep(wait) => self.look().await,
                () = self.holding.hurry.notified() => {
                    self.obtain(self.remaining()).await;
                    self.look().await
                }
                () = rejection(&mut self.rejected) => self.heed().await,
            };
        }
    }

    /// Does what is due; returns how long to wait until the next look.
    async fn look(&mut self) -> Duration {
        match self.due() {
            // Another token may come into the file at any time.
            Renewal::Keep { .. } if self.rejection().is_some() => {
                self.obtain(self.remaining()).await
            }
            Renewal::Keep { again } => again,
            Renewal::Renew { remaining } => self.obtain(remaining).await,
            Renewal::Expired => self.obtain(Duration::ZERO).await,
        }
    }

    /// Which of ours is not taken any more, by the control plane's word.
    fn rejection(&self) -> Option<Rejection> {
        let shown = self.holding.identity.credentials()?;
        let rejected = self.rejected.borrow().clone();
        rejected.filter(|rejected| rejected.serial == shown.peer().serial)
    }

    /// Our certificate was refused, or taken again: waiting mends the first as little as renewing does.
    async fn heed(&mut self) -> Duration {
        let rejection = self.rejection();
        self.holding.status.rejected(rejection.as_ref());
        let Some(rejection) = rejection else {
            self.holding.status.settle(Topic::Renewal);
            return self.look().await;
        };
        warn!(serial = %rejection.serial, reason = rejection.reason(), "the control plane does not take the certificate, joining anew");
        self.obtain(self.remaining()).await
    }

    fn remaining(&self) -> Duration {
        let identity = &self.holding.identity;
        let end = identity.credentials().map(|c| c.not_after());
        end.map_or(Duration::ZERO, |end| identity.now().until(end))
    }

    fn due(&self) -> Renewal {
        let Some(credentials) = self.holding.identity.credentials() else {
            return Renewal::Expired;
        };
        let (peer, now) = (credentials.peer(), self.holding.identity.now());
        self.policy
            .decide(peer.not_before, peer.not_after, &peer.serial, now)
    }

    /// Tries once; returns how long to wait until the next look.
    async fn obtain(&mut self, remaining: Duration) -> Duration {
        match self.attempt().await {
            Ok(()) => {
                self.failures = 0;
                self.backoff.reset();
                self.holding.status.renewed();
                // At once, for the case that what came has to be renewed already, but never in a tight loop.
                Duration::from_millis(20)
            }
            Err(error) => self.failed(&error, remaining),
        }
    }

    fn failed(&mut self, error: &ObtainError, remaining: Duration) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let why = chain(error);
        let is_news = self.holding.status.failed(Topic::Renewal, why.clone());
        let has_any = self.holding.identity.credentials().is_some();
        let wait = match has_any || error.is_refusal() {
            true if self.rejection().is_some() => self.policy.check,
            // Nothing is served by what expired, so there is nothing to hurry for either.
            true if remaining.is_zero() => self.policy.retry(self.failures, Duration::MAX),
            true => self.policy.retry(self.failures, remaining),
            false => self.backoff.wait(),
        };
        if !has_any {
            if is_news {
                warn!(error = why, again_in = ?wait, "no certificate yet, nothing is spoken to anybody");
            }
        } else if remaining < self.policy.before / 4 {
            error!(error = why, ?remaining, again_in = ?wait, "the certificate ends soon and is not renewed");
        } else {
            warn!(error = why, ?remaining, again_in = ?wait, "the certificate is not renewed, the old one stays");
        }
        wait
    }

    /// By the certificate that is there; where that is not taken any more, or is none, by a proof.
    async fn attempt(&mut self) -> Result<(), ObtainError> {
        let identity = &self.holding.identity;
        let now = identity.now();
        let is_valid = identity
            .credentials()
            .is_some_and(|credentials| now < credentials.not_after());
        if !is_valid {
            return self.join(false).await;
        }
        if self.holding.is_revoked() {
            // Its last connection may have been made with one that is not.
            self.control.reconnect();
        }
        let refused = match self.renew().await {
            Err(error) if error.is_refusal() || self.rejection().is_some() => error,
            done => return done,
        };
        // What is refused may be the connection, of a time when another certificate was shown.
        self.control.reconnect();
        match (self.join(true).await, self.rejection()) {
            (Ok(()), _) => Ok(()),
            (Err(error), Some(rejection)) => Err(ObtainError::Rejected {
                reason: rejection.reason(),
                source: Box::new(error),
            }),
            (Err(_), None) => Err(refused),
        }
    }

    async fn renew(&self) -> Result<(), ObtainError> {
        let key = Key::generate(KeyKind::default())?;
        let grant = self.client.renew(request(&key, &self.holding.own)?).await?;
        self.take(key, grant).await
    }

    /// `only_untried`: a join token is used up by its first use, so the same one again is no way out.
    async fn join(&mut self, only_untried: bool) -> Result<(), ObtainError> {
        let proof = self.proof.as_ref().ok_or(ObtainError::NoProof)?;
        let kept = self.holding.identity.roots();
        let bootstrap = Bootstrap::read(proof, self.roots.as_deref(), kept)?;
        let token = bootstrap.fingerprint;
        let key = match &self.joining {
            Some((tried, _)) if *tried == token && only_untried && self.is_answered => {
                return Err(ObtainError::NoProof);
            }
            Some((tried, key)) if *tried == token && !self.is_answered => key.clone(),
            _ => Key::generate(KeyKind::default())?,
        };
        (self.joining, self.is_answered) = (Some((token, key.clone())), false);
        let trusting = Identity::new(self.holding.identity.clock().clone());
        trusting.publish_roots(bootstrap.roots)?;
        let control = Control::secure(&self.addresses, Arc::new(trusting))?;
        let own = &self.holding.own;
        let csr = request(&key, own)?;
        // A zone is not claimed: it is the token's to say, and checked when the answer is.
        let joined = Client::new(control.channel())
            .join(bootstrap.proof, &own.id().service, None, csr)
            .await;
        self.is_answered = !matches!(joined, Err(CallError::Unavailable { .. }));
        self.take(key, joined?).await
    }

    async fn take(&self, key: Key, grant: Grant) -> Result<(), ObtainError> {
        let parts = Parts {
            chain: grant.chain,
            key,
            staple: grant.staple,
            roots: grant.roots,
        };
        Ok(self.holding.take(parts).await?)
    }
}

/// The zone's name is not asked for: whether it is given is the proof's to say.
fn request(key: &Key, own: &Workload) -> Result<Vec<u8>, CsrError> {
    csr::request(key, &own.without_zone())
}

/// When another certificate is refused, or none any more.
async fn rejection(rejected: &mut watch::Receiver<Option<Rejection>>) {
    if rejected.changed().await.is_err() {
        std::future::pending().await
    }
}

/// The certificate that the connection in use was made with.
pub struct Connection(Option<Arc<Peer>>);

impl Connection {
    pub fn new(identity: &Identity) -> Self {
        Self(identity.credentials().map(|c| c.peer().clone()))
    }

    /// Whether it should be made anew with the certificate that is there now; it then counts as that.
    pub fn is_due(&mut self, identity: &Identity) -> bool {
        let Some(current) = identity.credentials() else {
            return false;
        };
        let current = current.peer();
        let Some(shown) = &self.0 else {
            // The first connection waits for the first certificate.
            self.0 = Some(current.clone());
            return false;
        };
        let is_due = shown.serial != current.serial && is_ending(shown, identity.now());
        if is_due {
            self.0 = Some(current.clone());
        }
        is_due
    }
}

fn is_ending(shown: &Peer, now: UnixMillis) -> bool {
    let life = shown.not_before.until(shown.not_after);
    now.until(shown.not_after) < life / RECONNECT_AT
}

#[derive(Debug, thiserror::Error)]
enum ObtainError {
    #[error(
        "there is nothing to join by that was not used before (--token-file FILE takes what `phalanx cert token` wrote)"
    )]
    NoProof,
    #[error(
        "the certificate is {reason}: the control plane takes it no more, and there is no other"
    )]
    Rejected {
        reason: &'static str,
        #[source]
        source: Box<ObtainError>,
    },
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("what the control plane issued can't be used")]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Csr(#[from] CsrError),
}

impl ObtainError {
    /// Whether trying the same again is of little use.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Call(error) => error.is_refusal(),
            Self::Rejected { source, .. } => source.is_refusal(),
            _ => true,
        }
    }
}
