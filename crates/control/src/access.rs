//! Who may use which of the control plane's interfaces. A connection says who is at its other end ([`Arrival`]); a token
//! or a rule makes a user of them; each method and route names what it [`Needs`], and one that names nothing is refused.
//!
//! Decided once per request or stream, never per message. Sockets are `listen`'s, what is asked for is everybody else's.

mod calls;
mod crowd;
mod gate;
mod local;
mod refusals;
mod shares;
mod users;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::Extensions;
use phalanx_model::ServiceName;
use phalanx_model::identity::{CONTROL_SERVICE, SYSTEM_NAMESPACE, SpiffeId};
use phalanx_pki::verifier::Peer;
use tonic::Status;

use calls::{DISCOVERY_PER_SERVICE_MAX, PER_CERTIFICATE_MAX};

pub use crowd::{Crowd, Place, Standing};
pub use gate::{METHODS, gated};
pub use local::{Local, LocalError};
pub use refusals::Refusals;
pub use shares::{Share, Shares};
pub use users::{Token, UserError, UserRecord, Users};

/// Who is at the other end of a request. It stands in the extensions of each one; where it is missing, nobody is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// In plain text, which is taken with `--open` only.
    Open,
    /// Over TLS without a certificate. It may join, or show a token.
    Nobody,
    /// By its certificate.
    Workload(Arc<Peer>),
    /// By a token, or by a certificate that is somebody's.
    User { name: String, role: Role },
}

/// What a user may do; each may what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Changes the configuration and operates instances.
    Operator,
    /// Deals in certificates, users and backups.
    Admin,
}

/// What a method or route asks of whoever calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Anybody: it tells nothing, or is how one becomes somebody.
    Nothing,
    /// Anybody over TLS: a secret is on its way.
    Tls,
    /// A certificate.
    Certificate,
    /// A certificate, or plain text where that is taken. What it is about has to be its own: [`Who::owns`].
    DataPlane,
    /// A certificate, an operator, or plain text where that is taken. With a certificate it has to be its own:
    /// [`Who::owns`].
    Sessions,
    /// A user; or plain text where that is taken.
    Role(Role),
    /// An administrator over TLS, whatever else is taken: a secret is on its way.
    Secret,
    /// Another control plane; or plain text where that is taken.
    Plane,
}

/// How a connection came in; in the extensions of its requests.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub local: Option<SocketAddr>,
    pub remote: Option<SocketAddr>,
    pub who: Who,
    /// To be told when a token was as good as a certificate.
    pub standing: Standing,
}

/// The rules, with the users. Cheap to clone.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    open: bool,
    /// Roles of those who come with a certificate.
    ids: BTreeMap<SpiffeId, Role>,
    users: Users,
    refusals: Refusals,
    calls: calls::Calls,
}

impl Access {
    /// `ids` are users by their certificates.
    pub fn new(
        open: bool,
        ids: BTreeMap<SpiffeId, Role>,
        users: Users,
        refusals: Refusals,
    ) -> Self {
        Self(Arc::new(Inner {
            open,
            ids,
            users,
            refusals,
            calls: calls::Calls::default(),
        }))
    }

    pub fn users(&self) -> &Users {
        &self.0.users
    }

    pub fn refusals(&self) -> &Refusals {
        &self.0.refusals
    }

    /// Whether plain text is taken.
    pub fn is_open(&self) -> bool {
        self.0.open
    }

    /// Who somebody is to be taken for who came in as `who`, and may show a token; if that is enough for what is needed.
    ///
    /// # Errors
    /// [`Denied`], counted.
    pub fn judge(&self, who: &Who, token: Option<&str>, needs: Needs) -> Result<Who, Denied> {
        let judged = self.resolve(who, token, needs);
        let judged = judged.and_then(|who| self.allow(&who, needs).map(|()| who));
        judged.inspect_err(|denied| self.0.refusals.denied(denied.as_str()))
    }

    fn resolve(&self, who: &Who, token: Option<&str>, needs: Needs) -> Result<Who, Denied> {
        let is_token_asked = matches!(
            needs,
            Needs::Role(_) | Needs::Secret | Needs::Plane | Needs::Sessions
        );
        match (who, token) {
            // What went over the wire in plain text proves nothing any more.
            (Who::Open, _) if self.0.open => Ok(Who::Open),
            (Who::Open, _) => Err(Denied::Plain),
            (Who::User { .. }, _) => Ok(who.clone()),
            (_, Some(token)) if is_token_asked => {
                let (name, role) = self.0.users.check(token).ok_or(Denied::BadToken)?;
                Ok(Who::User { name, role })
            }
            (Who::Workload(peer), _) => Ok(match self.0.ids.get(&peer.id) {
                Some(role) if is_token_asked => Who::User {
                    name: peer.id.to_string(),
                    role: *role,
                },
                _ => who.clone(),
            }),
            // What is given in plain text is not refused to those who take more care.
            (Who::Nobody, _) if self.0.open && needs != Needs::Tls => Ok(Who::Open),
            (Who::Nobody, _) => Ok(Who::Nobody),
        }
    }

    fn allow(&self, who: &Who, needs: Needs) -> Result<(), Denied> {
        let allowed = match (needs, who) {
            (Needs::Nothing, _) => true,
            (Needs::Tls | Needs::Secret, Who::Open) => return Err(Denied::Secret),
            (Needs::Tls, _) => true,
            (Needs::Certificate | Needs::DataPlane, Who::Workload(_)) => true,
            (Needs::DataPlane | Needs::Sessions | Needs::Role(_) | Needs::Plane, Who::Open) => true,
            (Needs::Sessions, Who::Workload(_)) => true,
            (Needs::Sessions, Who::User { role, .. }) if *role >= Role::Operator => true,
            (Needs::Role(Role::Viewer) | Needs::Plane, Who::Workload(peer)) if is_plane(peer) => {
                true
            }
            (Needs::Role(needed), Who::User { role, .. }) if *role >= needed => true,
            (Needs::Secret | Needs::Plane, Who::User { role, .. }) if *role >= Role::Admin => true,
            (Needs::Role(needs), Who::User { role, .. }) => {
                return Err(Denied::Role { has: *role, needs });
            }
            (Needs::Sessions, Who::User { role, .. }) => {
                return Err(Denied::Role {
                    has: *role,
                    needs: Role::Operator,
                });
            }
            (Needs::Secret | Needs::Plane, Who::User { role, .. }) => {
                return Err(Denied::Role {
                    has: *role,
                    needs: Role::Admin,
                });
            }
            _ => false,
        };
        match (allowed, needs, who) {
            (true, ..) => Ok(()),
            (_, Needs::Certificate | Needs::DataPlane, _) => Err(Denied::NoCertificate),
            (_, _, Who::Workload(_)) => Err(Denied::NoUser),
            _ => Err(Denied::NoToken),
        }
    }
}

fn is_plane(peer: &Peer) -> bool {
    let service = &peer.id.service;
    service.namespace == SYSTEM_NAMESPACE && service.name == CONTROL_SERVICE
}

impl Who {
    /// As it stands with a request; nobody where nothing was said.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or(Self::Nobody)
    }

    /// A workload speaks for its own service and for no other.
    ///
    /// # Errors
    /// [`NotOwn`]
    pub fn owns(&self, service: &ServiceName) -> Result<(), NotOwn> {
        let id = match self {
            Self::Open => return Ok(()),
            Self::Workload(peer) if peer.id.service == *service => return Ok(()),
            Self::Workload(peer) => peer.id.to_string(),
            Self::Nobody | Self::User { .. } => "nobody".to_owned(),
        };
        Err(NotOwn {
            id,
            service: service.to_string(),
        })
    }

    /// As [`Who::owns`], of a node's or instance's name: one that reads `<namespace>/<service>/…` is that service's.
    ///
    /// # Errors
    /// [`NotOwn`]
    pub fn owns_node(&self, node: &str) -> Result<(), NotOwn> {
        let mut parts = node.splitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(name), Some(_)) => self.owns(&ServiceName::new(namespace, name)),
            _ => Ok(()),
        }
    }

    pub fn is_workload(&self) -> bool {
        matches!(self, Self::Workload(_))
    }

    /// Who the history names: whoever proved who it is, else who it says it is.
    pub fn author(&self, claimed: &str) -> String {
        match self {
            Self::User { name, .. } => name.clone(),
            Self::Workload(peer) => peer.id.to_string(),
            Self::Open | Self::Nobody => claimed.to_owned(),
        }
    }
}

/// Somebody spoke for another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{id} can't speak for {service}: the certificate of a connection has to be of the service that it is about"
)]
pub struct NotOwn {
    id: String,
    service: String,
}

impl From<NotOwn> for Status {
    fn from(error: NotOwn) -> Self {
        Self::permission_denied(error.to_string())
    }
}

/// Why somebody may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("plain text is not taken here")]
    Plain,
    #[error("secrets are told over TLS only, to administrators")]
    Secret,
    #[error("this needs a token")]
    NoToken,
    #[error("this token is not known, has expired or was taken back")]
    BadToken,
    #[error("this needs a client certificate of this mesh")]
    NoCertificate,
    #[error("the certificate shown is a workload's, which is no user")]
    NoUser,
    #[error("this needs the role {needs}, the token's is {has}")]
    Role { has: Role, needs: Role },
    #[error("there is no such method")]
    Unknown,
    #[error(
        "too many calls of this certificate, or streams of this service, are under way (most: {PER_CERTIFICATE_MAX}, {DISCOVERY_PER_SERVICE_MAX})"
    )]
    TooMany,
}

impl Denied {
    pub const ALL: [&'static str; 9] = [
        "plain",
        "secret",
        "no_token",
        "bad_token",
        "no_certificate",
        "no_user",
        "role",
        "unknown",
        "too_many",
    ];

    /// A metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Secret => "secret",
            Self::NoToken => "no_token",
            Self::BadToken => "bad_token",
            Self::NoCertificate => "no_certificate",
            Self::NoUser => "no_user",
            Self::Role { .. } => "role",
            Self::Unknown => "unknown",
            Self::TooMany => "too_many",
        }
    }

    /// What can be done about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Plain | Self::Secret | Self::NoToken => {
                "export PHALANX_ROOTS and PHALANX_TOKEN_FILE, as the control plane says at its start (DATA/admin/roots.pem and DATA/admin/token)"
            }
            Self::BadToken => {
                "an administrator can make another one (`phalanx user add`); on the control plane's machine there is DATA/admin/token"
            }
            Self::NoCertificate => {
                "join first: `phalanx cert token` makes a token, `phalanx proxy --token-file` uses it"
            }
            Self::NoUser => {
                "show a token, or let the control plane know the id: --admin-id spiffe://…=ROLE"
            }
            Self::Role { .. } => {
                "an administrator can make a token with that role (`phalanx user add`)"
            }
            Self::Unknown => "is the client of another version?",
            Self::TooMany => {
                "give each workload a certificate of its own; is one of them stolen, or does a client leave its streams open?"
            }
        }
    }

    /// Whether another proof of who it is could help, rather than nothing.
    pub fn is_unproven(self) -> bool {
        matches!(
            self,
            Self::Plain | Self::NoToken | Self::BadToken | Self::NoCertificate
        )
    }
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests;
