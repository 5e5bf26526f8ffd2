//! Who may use which of the control plane's interfaces.

use std::fmt;
use std::sync::Arc;

use phalanx_pki::verifier::Peer;

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
