//! Who this process is in a mesh with identities: a certificate in a folder that somebody else keeps current (`phalanx cert
//! issue --watch`, a mounted secret). It is read again when it changes; what can't be used leaves the one before in force.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use phalanx_client::channel::{ChannelError, Control};
use phalanx_model::ServiceName;
use phalanx_model::identity::SpiffeId;
use phalanx_pki::clock::SystemClock;
use phalanx_pki::credentials::{CERT_FILE, Credentials};
use phalanx_pki::files::{self, Access};
use phalanx_pki::identity::Identity;
use phalanx_pki::name::{Name, Workload};
use phalanx_pki::x509::{self, Cert};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};

/// How often the folder is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{} holds no good certificate of {service}", folder.display())]
    Files {
        folder: PathBuf,
        service: ServiceName,
        #[source]
        why: Box<dyn Error + Send + Sync>,
    },
    #[error("the control plane can't be dialled")]
    Control(#[from] ChannelError),
}

/// A folder with `cert.pem`, `key.pem` (0600) and `roots.pem`, and what was read there.
#[derive(Clone)]
pub struct IdentityFiles {
    folder: PathBuf,
    service: ServiceName,
    identity: Arc<Identity>,
}

impl std::fmt::Debug for IdentityFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityFiles({})", self.folder.display())
    }
}

impl IdentityFiles {
    /// # Errors
    /// [`IdentityError::Files`]
    pub fn open(folder: &Path, service: &ServiceName) -> Result<Self, IdentityError> {
        let files = Self {
            folder: folder.to_owned(),
            service: service.clone(),
            identity: Arc::new(Identity::new(Arc::new(SystemClock))),
        };
        let credentials = files.read().map_err(|why| IdentityError::Files {
            folder: folder.to_owned(),
            service: service.clone(),
            why,
        })?;
        files.identity.publish(credentials);
        Ok(files)
    }

    /// The way to a control plane that proves to be one, to which this certificate is shown.
    ///
    /// # Errors
    /// [`IdentityError::Control`]
    pub fn control(&self, address: &str) -> Result<Control, IdentityError> {
        Ok(Control::secure_as_workload(address, self.identity.clone())?)
    }

    /// Until it is dropped.
    pub(super) async fn follow(self, control: Control) {
        let mut is_bad = false;
        loop {
            sleep(LOOK_EVERY).await;
            let files = self.clone();
            let Ok(read) = spawn_blocking(move || files.read()).await else {
                return;
            };
            match read {
                Ok(credentials) => {
                    is_bad = false;
                    if self.is_other(&credentials) {
                        info!(folder = %self.folder.display(), until = %credentials.not_after(), "another certificate");
                        self.identity.publish(credentials);
                        control.reconnect();
                    }
                }
                // Said once: somebody may be writing it just now.
                Err(error) if !is_bad => {
                    is_bad = true;
                    warn!(folder = %self.folder.display(), error, "the certificate can't be used, what was in force stays");
                }
                Err(_) => {}
            }
        }
    }

    fn is_other(&self, read: &Credentials) -> bool {
        self.identity.credentials().is_none_or(|held| {
            held.chain_pem() != read.chain_pem()
                || held.parts().roots.to_pem() != read.parts().roots.to_pem()
        })
    }

    fn read(&self) -> Result<Credentials, Box<dyn Error + Send + Sync>> {
        let chain = files::read(&self.folder.join(CERT_FILE), Access::Public)?;
        let chain = x509::certs_from_pem(&chain)?;
        let leaf = chain.first().ok_or("cert.pem holds no certificate")?;
        let leaf = Cert::parse(leaf)?;
        // The trust domain and the zone are whatever it says; who it is has to be us.
        let mut ids = leaf.names.iter().filter_map(|name| match name {
            Name::Uri(uri) => uri.parse::<SpiffeId>().ok(),
            _ => None,
        });
        let id = ids.next_back().ok_or("its certificate names no workload")?;
        let (namespace, name) = (&self.service.namespace, &self.service.name);
        let own = Workload::parse(&id.trust_domain, namespace, name, None)?;
        let own = own.with_zone_of(&leaf.names);
        Ok(Credentials::load(&self.folder, &own, self.identity.now())?)
    }
}
