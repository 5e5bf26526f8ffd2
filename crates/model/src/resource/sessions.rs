//! Sessions that a directory places: what of a request is its session's key, and whose directory has it.

use crate::name::ServiceName;

/// How requests to a cluster go by the session directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDirectory {
    /// Whose sessions these are: those that its instances claim.
    pub service: ServiceName,
    pub key: SessionKey,
    pub missing: Missing,
}

/// Where a request has its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionKey {
    /// A header, its name in lower case.
    Header(String),
    Cookie(String),
}

/// What becomes of a request whose session nobody has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// It goes where it would without a session.
    #[default]
    Balance,
    /// It is not let through.
    Refuse,
}

impl Missing {
    pub const ALL: [Self; 2] = [Self::Balance, Self::Refuse];

    /// As in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Balance => "Balance",
            Self::Refuse => "Refuse",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|missing| missing.as_str() == text)
    }
}
