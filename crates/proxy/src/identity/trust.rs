//! Following whom to trust: each word of the control plane is published or refused, and it hears which. A rotation of the
//! root goes on by these answers.

use std::sync::Arc;
use std::time::Duration;

use phalanx_client::backoff::Backoff;
use phalanx_client::channel::Control;
use phalanx_client::identity::{CallError, Client, Following, Told, Trust};
use phalanx_pki::x509::Serial;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::chain;
use super::holding::{Holding, TrustError};
use super::status::Topic;

const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(5);
/// A stream that lasted this long starts the waits over.
const STABLE: Duration = Duration::from_secs(1);

/// Goes on for ever. A certificate that the control plane wants replaced is asked for within `spread`, each sidecar at a time of
/// its own.
pub async fn follow(holding: Arc<Holding>, control: Control, spread: Duration) {
    let mut follower = Follower {
        client: Client::new(control.channel()),
        holding,
        pending: None,
        taken: 0,
        spread,
        renew_at: None,
        warned: false,
    };
    let mut backoff = Backoff::new(RECONNECT_MIN, RECONNECT_MAX);
    loop {
        let shown = follower.shown().await;
        let start = Instant::now();
        let ended = follower.session(shown).await;
        let error = ended.err().map(|e| chain(&e)).unwrap_or_default();
        debug!(error, "the stream of whom to trust ended");
        if start.elapsed() >= STABLE {
            backoff.reset();
        }
        sleep(backoff.wait()).await;
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

struct Follower {
    client: Client,
    holding: Arc<Holding>,
    /// What could not be taken with the certificate that there was; tried again with the next.
    pending: Option<(u64, Trust)>,
    /// The last version that was taken of this stream, 0 for none: another control plane counts for itself.
    taken: u64,
    spread: Duration,
    /// When to ask for another certificate, because the control plane said so.
    renew_at: Option<Instant>,
    warned: bool,
}

impl Follower {
    /// The serial of our certificate, as soon as there is one.
    async fn shown(&self) -> Serial {
        let mut changes = self.holding.identity.changes();
        loop {
            if let Some(credentials) = self.holding.identity.credentials() {
                return credentials.peer().serial.clone();
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn session(&mut self, mut shown: Serial) -> Result<(), CallError> {
        (self.taken, self.pending, self.renew_at) = (0, None, None);
        let mut stream = self.client.trust(0, &shown).await?;
        let mut changes = self.holding.identity.changes();
        loop {
            tokio::select! {
                told = stream.next() => match told? {
                    Some(told) => self.told(&stream, told).await?,
                    None => return Ok(()),
                },
                () = at(self.renew_at) => {
                    self.renew_at = None;
                    self.holding.hurry.notify_one();
                }
                _ = changes.changed() => {
                    let current = self.shown().await;
                    if current != shown {
                        shown = current;
                        self.renewed(&stream, &shown).await?;
                    }
                }
            }
        }
    }

    async fn told(&mut self, stream: &Following, told: Told) -> Result<(), CallError> {
        self.pending = None;
        let error = match told.trust {
            Ok(trust) => {
                self.heed(trust.renew);
                self.take(told.version, trust).await
            }
            Err(error) => Some(self.refuse(chain(&error))),
        };
        self.answer(stream, error).await
    }

    fn heed(&mut self, renew: bool) {
        self.renew_at = match (renew, self.renew_at) {
            (false, _) => None,
            (true, Some(at)) => Some(at),
            (true, None) => Some(Instant::now() + self.spread.mul_f64(fastrand::f64())),
        };
    }

    /// A new certificate: the control plane shall know which, and what did not go with the old one may go now.
    async fn renewed(&mut self, stream: &Following, shown: &Serial) -> Result<(), CallError> {
        let error = match self.pending.take() {
            Some((version, trust)) => self.take(version, trust).await,
            None => None,
        };
        let error = error.as_deref().unwrap_or_default();
        stream.say(self.taken, shown, error).await
    }

    async fn answer(&self, stream: &Following, error: Option<String>) -> Result<(), CallError> {
        let shown = self.shown().await;
        let error = error.as_deref().unwrap_or_default();
        stream.say(self.taken, &shown, error).await
    }

    /// Why not, if not.
    async fn take(&mut self, version: u64, trust: Trust) -> Option<String> {
        match self.holding.trust(trust.clone()).await {
            Ok(()) => {
                self.taken = version;
                self.holding
                    .status
                    .trusted(version, self.holding.identity.now());
                if std::mem::take(&mut self.warned) {
                    info!(
                        version,
                        "what the control plane tells of whom to trust is taken again"
                    );
                }
                debug!(version, "roots and revocations in force");
                if self.holding.is_revoked() {
                    self.holding.hurry.notify_one();
                }
                None
            }
            Err(error) => {
                if matches!(error, TrustError::Roots(_)) {
                    self.pending = Some((version, trust));
                    self.holding.hurry.notify_one();
                }
                Some(self.refuse(chain(&error)))
            }
        }
    }

    fn refuse(&mut self, why: String) -> String {
        if self.holding.status.distrusted(why.clone()) {
            warn!(
                error = why,
                about = Topic::Trust.as_str(),
                "what the control plane tells of whom to trust is not taken, what was in force stays"
            );
        }
        self.warned = true;
        why
    }
}
