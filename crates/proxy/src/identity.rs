//! The sidecar's own certificate, and whom it trusts: fetched from the control plane with a proof or taken from files,
//! renewed before it ends, checked as a peer would check it, and only then published into one
//! [`phalanx_pki::identity::Identity`] that every listener and cluster reads. A bad new set never replaces a good one. The
//! key is made here and never leaves, but for the directory that it is kept in.

mod folder;
mod holding;
mod proof;
mod renew;
mod status;
#[cfg(test)]
mod tests;
mod trust;
mod watched;

use std::path::PathBuf;
use std::sync::Arc;

use phalanx_client::channel::{ChannelError, Control};
use phalanx_model::ServiceName;
use phalanx_pki::clock::Clock;
use phalanx_pki::credentials::CredentialsError;
use phalanx_pki::identity::Identity;
use phalanx_pki::name::{NameError, Workload};
use serde_json::Value;
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::folder::Folder;
use self::holding::Holding;
use self::proof::Bootstrap;
use self::renew::Renewing;
use self::status::Status;
use self::watched::Watching;
use crate::config::{IdentityConfig, Source};
use crate::lasting::Lasting;

pub use self::proof::ProofError;
pub use self::status::Topic;

/// What was found at the start. Nothing is asked of anybody yet.
pub struct Certificates {
    holding: Arc<Holding>,
    config: IdentityConfig,
}

impl Certificates {
    /// Takes what is kept in the directory, if that is still good. Reads files only.
    ///
    /// # Errors
    /// [`IdentityError`] when there is no certificate and no way to one.
    pub fn open(
        config: &IdentityConfig,
        service: &ServiceName,
        zone: Option<&str>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, IdentityError> {
        let own = own(config, service, zone)?;
        let identity = Arc::new(Identity::new(clock));
        let folder = match &config.source {
            Source::Issued { dir, .. } => Some(Folder::new(dir)),
            Source::Files { .. } => None,
        };
        let (dir, is_issued) = match &config.source {
            Source::Issued { dir, .. } => (dir.clone(), true),
            Source::Files { dir } => (dir.clone(), false),
        };
        let status = Status::new(dir, is_issued);
        let certificates = Self {
            holding: Arc::new(Holding::new(own, identity, folder, status)),
            config: config.clone(),
        };
        certificates.take_stored()?;
        Ok(certificates)
    }

    /// What handshakes read. Without credentials until there are some.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.holding.identity
    }

    fn take_stored(&self) -> Result<(), IdentityError> {
        let Source::Issued { dir, proof } = &self.config.source else {
            return Ok(());
        };
        let stored = Folder::new(dir).load(&self.holding.own, self.holding.identity.now());
        if let Some(revocations) = stored.revocations {
            self.holding.identity.publish_revocations(revocations);
        }
        let why = match stored.credentials {
            Ok(Some(credentials)) => {
                let peer = credentials.peer();
                info!(id = %peer.id, serial = %peer.serial, until = %peer.not_after, "certificate taken from the identity directory");
                self.holding.publish_read(credentials);
                return Ok(());
            }
            Ok(None) => None,
            Err(error) => Some(error),
        };
        let Some(proof) = proof else {
            let dir = dir.clone();
            return Err(match why {
                None => IdentityError::Nothing { dir },
                Some(source) => IdentityError::Stored { dir, source },
            });
        };
        if let Some(error) = why {
            warn!(dir = %dir.display(), error = chain(&error), "the stored certificate can't be used, joining anew");
        }
        proof::warn_if_open(proof);
        // Found out at once, what no waiting would mend.
        Bootstrap::read(proof, self.config.roots.as_deref(), stored.roots)?;
        Ok(())
    }

    /// Goes on until what is returned is dropped: joins, renews and follows whom to trust over `control`, which shows this
    /// identity; joins at `addresses`, where that leads.
    ///
    /// # Errors
    /// [`ChannelError`]
    pub fn spawn(
        self,
        control: Control,
        addresses: &str,
        lasting: &Lasting,
    ) -> Result<Running, ChannelError> {
        let Self { holding, config } = self;
        let mut tasks = JoinSet::new();
        let (ready_sender, ready) = channel(holding.identity.credentials().is_some());
        tasks.spawn(tell_ready(holding.identity.clone(), ready_sender));
        match &config.source {
            Source::Issued { proof, .. } => {
                let renewing = Renewing::new(
                    holding.clone(),
                    control.clone(),
                    addresses,
                    proof.clone(),
                    config.roots.clone(),
                    config.renewal,
                );
                tasks.spawn(lasting.guard("certificate renewal", renewing.run()));
            }
            Source::Files { dir } => {
                let watching = Watching::new(holding.clone(), dir, config.renewal, control.clone());
                tasks.spawn(lasting.guard("certificate files", watching.run()));
            }
        }
        let following = trust::follow(holding.clone(), control, config.renewal.check);
        tasks.spawn(lasting.guard("trust", following));
        Ok(Running {
            holding,
            ready,
            _tasks: tasks,
        })
    }
}

/// The identity at work. Dropped, it stops, and what was published stays as it is.
pub struct Running {
    holding: Arc<Holding>,
    ready: Receiver<bool>,
    _tasks: JoinSet<()>,
}

impl Running {
    pub fn identity(&self) -> &Arc<Identity> {
        &self.holding.identity
    }

    /// Whether there is a certificate; once true, it stays so.
    pub fn ready(&self) -> Receiver<bool> {
        self.ready.clone()
    }

    /// What the pages show.
    pub fn shown(&self) -> Shown {
        Shown(self.holding.clone())
    }
}

/// A view for the admin pages. Holds no key.
#[derive(Clone)]
pub struct Shown(Arc<Holding>);

impl Shown {
    /// Why the sidecar can't show a certificate that peers take, if so.
    pub fn not_ready(&self) -> Option<String> {
        self.0.status.not_ready(&self.0.identity)
    }

    pub fn metrics(&self, out: &mut phalanx_telemetry::metrics::Exposition) {
        self.0.status.write(&self.0.identity, out);
    }

    /// For `/certs`.
    pub fn page(&self) -> Value {
        self.0.status.page(&self.0.own, &self.0.identity)
    }

    /// A line for `/config_dump`.
    pub fn line(&self) -> Value {
        self.0.status.line(&self.0.identity)
    }
}

async fn tell_ready(identity: Arc<Identity>, ready: Sender<bool>) {
    let mut changes = identity.changes();
    while identity.credentials().is_none() {
        if changes.changed().await.is_err() {
            return;
        }
    }
    ready.send_replace(true);
    // Its receivers shall see it as long as there are any.
    ready.closed().await;
}

/// A zone that is no DNS label stands in no certificate.
fn own(
    config: &IdentityConfig,
    service: &ServiceName,
    zone: Option<&str>,
) -> Result<Workload, NameError> {
    let with = |zone| {
        Workload::parse(
            &config.trust_domain,
            &service.namespace,
            &service.name,
            zone,
        )
    };
    match zone.map(|zone| with(Some(zone))) {
        Some(Ok(own)) => Ok(own),
        _ => with(None),
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Why a sidecar with an identity did not start.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error(
        "there is no certificate in {} yet, and nothing to get one by (--token-file FILE takes what `phalanx cert token` wrote)",
        dir.display()
    )]
    Nothing { dir: PathBuf },
    #[error(
        "the certificate in {} can't be used any more, and there is nothing to get another by (--token-file FILE takes what `phalanx cert token` wrote)",
        dir.display()
    )]
    Stored {
        dir: PathBuf,
        #[source]
        source: CredentialsError,
    },
}
