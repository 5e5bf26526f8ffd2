//! The kit in a mesh: this instance is registered (by itself, or by its sidecar), finds others, keeps its seats in the mesh's
//! session directory, and hears that it is to drain. A [`Mesh`] is made once per process; all that it hands out ends with it.
//!
//! Names and calls stay with the sidecar: whoever has one calls services by name. Module order: seats, traffic,
//! endpoints, identity, sidecar.

mod endpoints;
mod identity;
mod seats;
mod sidecar;
mod traffic;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use phalanx_client::registry::Registration;
use tokio::task::JoinHandle;
use tracing::info;

pub use endpoints::{Endpoints, Known};
pub use identity::{IdentityError, IdentityFiles};
pub use phalanx_client::admin::Admin;
pub use phalanx_client::channel::Control;
pub use phalanx_model::instance::Protocol;
pub use phalanx_model::{Instance as Registered, InstanceId, InstancePort, ServiceName};
pub use seats::{MeshDirectory, MeshWatch};
pub use traffic::{DrainOrder, Handover, Traffic};

use crate::session::{BadName, Instance};

/// How long it may take to be registered, where nothing is said.
pub const JOIN_WITHIN: Duration = Duration::from_secs(30);
/// The lease that is asked for, where nothing is said.
pub const TTL: Duration = Duration::from_secs(3);

/// Who registers this instance.
#[derive(Clone, Debug)]
pub enum Presence {
    /// It does itself, and beats, for as long as the [`Mesh`] is there: a service without a sidecar. Where the mesh has
    /// identities, [`MeshOptions::control`] has to show one of the service.
    Itself {
        instance: Box<Registered>,
        ttl: Duration,
    },
    /// The sidecar beside this process does, which is asked at its admin address (`phalanx proxy --admin`,
    /// 127.0.0.1:15000).
    Sidecar { admin: SocketAddr },
    /// Somebody does, by this id.
    Known { id: String },
}

#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// The control plane's port for data planes (15010); [`Control::parse`], or over TLS by [`MeshOptions::secure`].
    pub control: Control,
    /// Who this process is, where the mesh has identities; read again for as long as the [`Mesh`] is there.
    pub identity: Option<IdentityFiles>,
    pub service: ServiceName,
    pub presence: Presence,
    /// The control plane's API (15080), as somebody who may look (role `viewer`): says until when a drain is, and how fast. Without,
    /// only that it is.
    pub admin: Option<Admin>,
    /// [`JOIN_WITHIN`]
    pub join_within: Duration,
}

impl MeshOptions {
    pub fn new(control: Control, service: ServiceName, presence: Presence) -> Self {
        Self {
            control,
            identity: None,
            service,
            presence,
            admin: None,
            join_within: JOIN_WITHIN,
        }
    }

    /// For a mesh with identities: `folder` holds a certificate of the service, as `phalanx cert issue --watch` keeps it.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn secure(
        control: &str,
        folder: &Path,
        service: ServiceName,
        presence: Presence,
    ) -> Result<Self, IdentityError> {
        let files = IdentityFiles::open(folder, &service)?;
        let control = files.control(control)?;
        Ok(Self {
            identity: Some(files),
            ..Self::new(control, service, presence)
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error("{service} is not registered within {within:?}: {why}")]
    NotRegistered {
        service: ServiceName,
        within: Duration,
        why: String,
    },
    #[error("the id of an instance is no name")]
    Id(#[from] BadName),
    #[error("an instance of {theirs} can't be one of {ours}")]
    Service {
        ours: ServiceName,
        theirs: ServiceName,
    },
}

/// This instance in its mesh.
#[derive(Debug)]
pub struct Mesh {
    control: Control,
    service: ServiceName,
    instance: Instance,
    registration: Option<Registration>,
    traffic: tokio::sync::watch::Receiver<Traffic>,
    following: JoinHandle<()>,
    keeping: Option<JoinHandle<()>>,
}

impl Mesh {
    /// Waits until this instance is registered.
    ///
    /// # Errors
    /// [`MeshError`]
    pub async fn join(options: MeshOptions) -> Result<Self, MeshError> {
        let MeshOptions {
            control,
            identity,
            service,
            presence,
            admin,
            join_within,
        } = options;
        let late = |why: String| MeshError::NotRegistered {
            service: service.clone(),
            within: join_within,
            why,
        };
        let (id, registration) = match presence {
            Presence::Known { id } => (id, None),
            Presence::Sidecar { admin } => {
                let found = sidecar::id(&service, admin, join_within).await;
                (found.map_err(late)?, None)
            }
            Presence::Itself { instance, ttl } => {
                if instance.id.service != service {
                    return Err(MeshError::Service {
                        ours: service,
                        theirs: instance.id.service,
                    });
                }
                let id = instance.id.id.clone();
                let registration = Registration::spawn(control.clone(), *instance, ttl);
                registration.set_ready(true);
                if !registration.settled(join_within).await {
                    return Err(late("the control plane did not acknowledge it".to_owned()));
                }
                (id, Some(registration))
            }
        };
        let instance = Instance::parse(&id)?;
        info!(%service, %instance, "in the mesh");
        let (said, traffic) = tokio::sync::watch::channel(Traffic::Unknown);
        let following = tokio::spawn(traffic::follow(
            control.clone(),
            service.clone(),
            instance.clone(),
            admin,
            said,
        ));
        let keeping = identity.map(|files| tokio::spawn(files.follow(control.clone())));
        Ok(Self {
            control,
            service,
            instance,
            registration,
            traffic,
            following,
            keeping,
        })
    }

    /// The id under which this instance is registered.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The session directory of this service.
    pub fn directory(&self) -> MeshDirectory {
        MeshDirectory::new(self.control.clone(), self.service.clone())
    }

    /// Follows the instances of a service.
    pub fn endpoints(&self, service: &ServiceName) -> Endpoints {
        Endpoints::follow(self.control.clone(), service.clone())
    }

    /// Whether this instance is to take new sessions. `phalanx drain` is told as it happens.
    pub fn traffic(&self) -> tokio::sync::watch::Receiver<Traffic> {
        self.traffic.clone()
    }

    /// Withdraws what this process registered, and waits at most `within` until that is acknowledged; false when it was not.
    pub async fn leave(mut self, within: Duration) -> bool {
        match self.registration.take() {
            Some(registration) => registration.deregister(within).await,
            None => true,
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.following.abort();
        if let Some(keeping) = &self.keeping {
            keeping.abort();
        }
    }
}
