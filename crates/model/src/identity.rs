//! Who somebody is: SPIFFE ids, parsed once and compared whole, never by prefix or pattern.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::ServiceName;

/// Of the mesh's own parts, and of what holds for the whole mesh.
pub const SYSTEM_NAMESPACE: &str = "phalanx-system";
/// The control plane, as a service of [`SYSTEM_NAMESPACE`].
pub const CONTROL_SERVICE: &str = "control";
/// Longest trust domain (SPIFFE-ID, section 2.1).
const TRUST_DOMAIN_MAX: usize = 255;
/// Longest SPIFFE id (SPIFFE-ID, section 2.3).
const ID_MAX: usize = 2048;

/// A SPIFFE trust domain: 1–255 of `a-z`, `0-9`, `.`, `-`, `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// # Errors
    /// [`IdentityError::TrustDomain`] with the text.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
        let empty_part = text.split('.').any(str::is_empty);
        if text.len() > TRUST_DOMAIN_MAX || empty_part || !text.bytes().all(inner) {
            return Err(IdentityError::TrustDomain(clip(text)));
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdentityError;
    fn try_from(text: String) -> Result<Self, IdentityError> {
        Self::parse(&text)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0
    }
}

/// `phalanx.local`
impl Default for TrustDomain {
    fn default() -> Self {
        Self("phalanx.local".to_owned())
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service>`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    pub trust_domain: TrustDomain,
    pub service: ServiceName,
}

impl SpiffeId {
    /// Every control plane of a mesh.
    pub fn control(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            service: ServiceName::new(SYSTEM_NAMESPACE, CONTROL_SERVICE),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let wrong = || IdentityError::SpiffeId(clip(text));
        if text.len() > ID_MAX {
            return Err(wrong());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(wrong)?;
        let mut parts = rest.split('/');
        let mut part = || parts.next().ok_or_else(wrong);
        let trust_domain = TrustDomain::parse(part()?).map_err(|_| wrong())?;
        let (ns, namespace, sa, service) = (part()?, part()?, part()?, part()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(wrong());
        }
        let service = ServiceName::parse(namespace, service).map_err(|_| wrong())?;
        Ok(Self {
            trust_domain,
            service,
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trust_domain,
            service,
        } = self;
        write!(
            f,
            "spiffe://{trust_domain}/ns/{}/sa/{}",
            service.namespace, service.name
        )
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = IdentityError;
    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("`{0}` is no trust domain (a-z, 0-9, `.`, `-` and `_`, at most {TRUST_DOMAIN_MAX})")]
    TrustDomain(String),
    #[error(
        "`{0}` is no SPIFFE id of this mesh (spiffe://<trust domain>/ns/<namespace>/sa/<service>)"
    )]
    SpiffeId(String),
}

/// What of a foreign text is fit to be shown.
pub fn clip(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_ids_parse() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://phalanx.local",
            "spiffe://phalanx.local/ns/a/sa/",
            "spiffe://phalanx.local/ns/a/sa/b/",
            "spiffe://phalanx.local/ns/a/sa/b/c",
            "spiffe://phalanx.local/ns/a/sa/b?x",
            "spiffe://phalanx.local/ns/a/sa/b#x",
            "spiffe://phalanx.local/ns/../sa/b",
            "spiffe://phalanx.local/ns/a/sa/b\0",
            "spiffe://phalanx.local\0.evil/ns/a/sa/b",
            "spiffe://phalanx.local:80/ns/a/sa/b",
            "spiffe://u@phalanx.local/ns/a/sa/b",
            "spiffe://Phalanx.local/ns/a/sa/b",
            "spiffe://phalanx.local/ns/a/sa/*",
            "spiffe://phalanx.local/ns/a/sa/%62",
            "spiffe://phalanx..local/ns/a/sa/b",
            "SPIFFE://phalanx.local/ns/a/sa/b",
            "https://phalanx.local/ns/a/sa/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?}");
        }
        let good = "spiffe://phalanx.local/ns/arena/sa/battle";
        assert_eq!(good.parse::<SpiffeId>().unwrap().to_string(), good);
    }
}
