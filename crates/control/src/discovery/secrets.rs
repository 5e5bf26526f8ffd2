//! Secrets of one stream: a certificate for whom its peer has proven to be, with a key that is made here and kept nowhere else,
//! its staple, and whom to trust. Issued when the peer asks, again before it ends and when another issuer signs.
//!
//! Nothing is made for a peer without a certificate of its own, and nothing in another's name.

use std::sync::Arc;
use std::time::Duration;

use phalanx_pki::clock::{Clock, UnixMillis};
use phalanx_pki::issuer::{Attestation, Issued};
use phalanx_pki::verifier::Peer;
use phalanx_pki::x509::{self, Serial};
use phalanx_xds::encode::{OWN, ROOTS, secret};
use phalanx_xds::server::{Delivery, Session};
use phalanx_xds::{Encoded, Kind};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use crate::ca::{Ca, Follower};
use crate::snapshot::Resources;

/// What one peer is offered. Dropping it forgets the key.
pub struct Secrets {
    offers: watch::Receiver<Offer>,
    follower: Follower,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Default)]
struct Offer {
    resources: Resources,
    serial: Option<Serial>,
    /// As the rotation names them.
    roots: String,
}

impl Secrets {
    /// None when its certificate has too many streams already: each gets a certificate of its own.
    pub fn spawn(ca: Ca, peer: Arc<Peer>) -> Option<Self> {
        let follower = ca.follower(&peer)?;
        let (sender, offers) = watch::channel(Offer::default());
        let task = Making {
            ca,
            peer,
            held: None,
            failures: 0,
        };
        Some(Self {
            offers,
            follower,
            _task: AbortOnDropHandle::new(tokio::spawn(task.run(sender))),
        })
    }

    /// Empty until the first certificate is there: whoever asks waits.
    pub fn resources(&self) -> Resources {
        self.offers.borrow().resources.clone()
    }

    /// Ends when there is something else to offer, and never when there never will be.
    pub async fn changed(&mut self) {
        if self.offers.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// The peer answered; what it took of it counts in a rotation.
    pub fn answered(&self, session: &Session, error: Option<&str>) {
        let offer = self.offers.borrow();
        let took = |name: &str| {
            let Some(offered) = offer.resources.get(name) else {
                return false;
            };
            session.inventory().any(|item| {
                item.kind == Kind::Secret
                    && item.name == name
                    && item.version == offered.version
                    && item.delivery == Delivery::Synced
            })
        };
        let serial = offer.serial.clone().filter(|_| took(OWN));
        let roots = took(ROOTS).then_some(offer.roots.as_str());
        self.follower.said(serial, roots, error.unwrap_or_default());
    }
}

struct Making {
    ca: Ca,
    peer: Arc<Peer>,
    held: Option<Held>,
    failures: u32,
}

struct Held {
    issued: Issued,
    key_pem: Zeroizing<String>,
    renew_at: UnixMillis,
}

impl Making {
    async fn run(mut self, sender: watch::Sender<Offer>) {
        let mut changes = self.ca.changes();
        loop {
            changes.mark_unchanged();
            let wait = match self.renew().await {
                Ok(()) => {
                    self.failures = 0;
                    LOOK
                }
                Err(error) => {
                    tracing::warn!(peer = %self.peer.id, error, "no certificate for a data plane");
                    self.failures = self.failures.saturating_add(1);
                    (RETRY * 2_u32.saturating_pow(self.failures.min(8))).min(LOOK)
                }
            };
            let offer = self.offer().await;
            let is_same = |before: &Offer| {
                let (a, b) = (&before.resources, &offer.resources);
                a.len() == b.len()
                    && a.values()
                        .zip(b.values())
                        .all(|(a, b)| a.version == b.version)
            };
            if !is_same(&sender.borrow()) {
                sender.send_replace(offer);
            }
            let until = Instant::now() + self.held.as_ref().map_or(wait, |held| until(held, wait));
            tokio::select! {
                () = sender.closed() => return,
                () = sleep_until(until) => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Another certificate, if one is due. What the peer proved itself with must still be good.
    async fn renew(&mut self) -> Result<(), String> {
        let now = phalanx_pki::clock::SystemClock.now();
        let issuer = self.ca.authority().active().key_hex();
        let is_due = self
            .held
            .as_ref()
            .is_none_or(|held| now >= held.renew_at || held.issued.record.issuer_key != issuer);
        if !is_due {
            return Ok(());
        }
        let serial = self.peer.serial.clone();
        if self.ca.is_revoked(&serial).is_some() {
            self.held = None;
            return Err("the certificate that it came with is revoked".to_owned());
        }
        if now >= self.peer.not_after {
            return Err("the certificate that it came with has expired".to_owned());
        }
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let workload = self.ca.workload_of(&self.peer).map_err(|e| told(&e))?;
        let attested = Attestation::Certificate { serial };
        let issued = self.ca.issue_with_key(&workload, None, attested).await;
        let (issued, key) = issued.map_err(|e| told(&e))?;
        let life = (issued.record.not_after.0).saturating_sub(now.0);
        self.held = Some(Held {
            key_pem: key.to_pem().map_err(|e| told(&e))?,
            // With a third of its life left.
            renew_at: UnixMillis(now.0 + life / 3 * 2),
            issued,
        });
        Ok(())
    }

    async fn offer(&self) -> Offer {
        let Some(held) = &self.held else {
            return Offer::default();
        };
        let serial = held.issued.record.serial.clone();
        let staple = self.ca.staple(&serial).await.unwrap_or_default();
        let own = secret::own(&held.issued.chain_pem(), &held.key_pem, &staple);
        let bundle = self.ca.bundle();
        // A peer whose issuer has no list would be refused for that.
        let mut issuers = self.ca.issuers().into_iter();
        let all_listed = issuers.all(|issuer| {
            let of_issuer = issuer.chain.first();
            of_issuer.is_some_and(|der| bundle.issuers.contains(der))
        });
        let lists = match all_listed {
            true => bundle
                .crls
                .iter()
                .map(|der| x509::pem("X509 CRL", der))
                .collect(),
            false => String::new(),
        };
        let roots = secret::roots(&bundle.roots.to_pem(), &lists);
        let named = |encoded: Encoded| (encoded.name.clone(), Arc::new(encoded));
        Offer {
            resources: [named(own), named(roots)].into(),
            serial: Some(serial),
            roots: bundle.roots_id.clone(),
        }
    }
}

fn until(held: &Held, wait: Duration) -> Duration {
    let now = phalanx_pki::clock::SystemClock.now();
    let left = u64::try_from(held.renew_at.0.saturating_sub(now.0)).unwrap_or(0);
    Duration::from_millis(left).clamp(RETRY, wait)
}

/// Between looks at the staple, which is renewed long before it ends.
const LOOK: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(250);
