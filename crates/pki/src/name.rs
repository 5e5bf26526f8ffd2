//! The names of a workload: its SPIFFE id, its host in the mesh and, where it has a zone, its zone's host. They are parsed
//! once and compared whole, never by prefix or pattern; a workload owns these names and no others, and none is a wildcard.

use std::fmt;
use std::net::IpAddr;

use phalanx_model::identity::clip;
use phalanx_model::identity::{CONTROL_SERVICE, SYSTEM_NAMESPACE};
pub use phalanx_model::identity::{IdentityError, SpiffeId, TrustDomain};
pub use phalanx_model::name::ServiceName;
use phalanx_model::name::check_label;
use serde::{Deserialize, Serialize};

/// The suffix of a zone's host names.
const ZONE_SUFFIX: &str = "internal";
/// Longest host name (RFC 1035, 2.3.4).
const HOST_MAX: usize = 253;

/// Who somebody was found to be: a service of a trust domain, and the zone where it runs if that was attested too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    id: SpiffeId,
    zone: Option<String>,
}

impl Workload {
    /// # Errors
    /// [`NameError`] when namespace, service or zone is no DNS label, or `<service>-<zone>` is too long for one.
    pub fn parse(
        trust_domain: &TrustDomain,
        namespace: &str,
        service: &str,
        zone: Option<&str>,
    ) -> Result<Self, NameError> {
        let label = |text: &str| check_label(text).map_err(|_| NameError::Label(clip(text)));
        label(namespace)?;
        label(service)?;
        if let Some(zone) = zone {
            label(zone)?;
            label(&format!("{service}-{zone}"))?;
        }
        let id = SpiffeId {
            trust_domain: trust_domain.clone(),
            service: ServiceName::new(namespace, service),
        };
        Ok(Self {
            id,
            zone: zone.map(str::to_owned),
        })
    }

    /// The control plane of a trust domain.
    ///
    /// # Errors
    /// As [`Workload::parse`]; never, for the names are labels.
    pub fn control(trust_domain: &TrustDomain) -> Result<Self, NameError> {
        Self::parse(trust_domain, SYSTEM_NAMESPACE, CONTROL_SERVICE, None)
    }

    pub fn is_control(&self) -> bool {
        let service = &self.id.service;
        service.namespace == SYSTEM_NAMESPACE && service.name == CONTROL_SERVICE
    }

    /// The same service, wherever it runs.
    #[must_use]
    pub fn without_zone(&self) -> Self {
        Self {
            id: self.id.clone(),
            zone: None,
        }
    }

    /// Itself; or, where it names no zone, with the zone that a certificate's names say, for it may have been attested
    /// without our knowing. Whether these are its names at all is for others to say.
    #[must_use]
    pub fn with_zone_of(&self, names: &[Name]) -> Self {
        let prefix = format!("{}-", self.id.service.name);
        let suffix = format!(".{ZONE_SUFFIX}");
        let zone = names.iter().find_map(|name| match name {
            Name::Dns(host) => host.strip_prefix(&prefix)?.strip_suffix(&suffix),
            _ => None,
        });
        let zone = zone.filter(|zone| check_label(zone).is_ok());
        Self {
            id: self.id.clone(),
            zone: self.zone.clone().or_else(|| zone.map(str::to_owned)),
        }
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// Every name it owns, the SPIFFE id first. These and no others stand in its certificate.
    pub fn names(&self) -> Vec<Name> {
        let service = &self.id.service;
        let mut names = vec![Name::Uri(self.id.to_string()), Name::Dns(service.host())];
        if let Some(zone) = &self.zone {
            names.push(Name::Dns(format!("{}-{zone}.{ZONE_SUFFIX}", service.name)));
        }
        names
    }

    /// Whether it owns a name, compared whole.
    pub fn owns(&self, name: &Name) -> bool {
        self.names().contains(name)
    }
}

/// A subject alternative name of the kinds that a leaf may carry; an address only a control plane's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    Uri(String),
    Dns(String),
    Ip(IpAddr),
}

impl Name {
    /// A host's name or its address, as people write them into URLs.
    ///
    /// # Errors
    /// [`NameError::Host`]
    pub fn host(text: &str) -> Result<Self, NameError> {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return Ok(Self::Ip(address));
        }
        let lower = text.to_ascii_lowercase();
        if lower.len() > HOST_MAX || lower.split('.').any(|label| check_label(label).is_err()) {
            return Err(NameError::Host(clip(text)));
        }
        Ok(Self::Dns(lower))
    }

    pub fn is_wildcard(&self) -> bool {
        match self {
            Self::Uri(text) | Self::Dns(text) => text.contains('*'),
            Self::Ip(_) => false,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(text) => write!(f, "URI:{}", text.escape_debug()),
            Self::Dns(text) => write!(f, "DNS:{}", text.escape_debug()),
            Self::Ip(address) => write!(f, "IP:{address}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("`{0}` is neither a host name (DNS labels, no wildcard) nor an address")]
    Host(String),
    #[error(
        "`{0}` is no DNS label (a-z, 0-9 and -, at most 63, starting and ending with a letter or digit)"
    )]
    Label(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_owns_its_id_its_host_and_its_zone_s_host() {
        let domain = TrustDomain::parse("phalanx.local").unwrap();
        let battle = Workload::parse(&domain, "arena", "battle", Some("az1")).unwrap();
        let names: Vec<String> = battle.names().iter().map(Name::to_string).collect();
        assert_eq!(
            names,
            [
                "URI:spiffe://phalanx.local/ns/arena/sa/battle",
                "DNS:battle.arena.svc.mesh",
                "DNS:battle-az1.internal"
            ]
        );
        let nowhere = Workload::parse(&domain, "arena", "battle", None).unwrap();
        assert_eq!(nowhere.names().len(), 2);
    }

    #[test]
    fn a_zone_that_makes_too_long_a_label_is_refused() {
        let domain = TrustDomain::parse("td").unwrap();
        let long = "a".repeat(60);
        assert!(Workload::parse(&domain, "n", &long, Some("az12")).is_err());
        assert!(Workload::parse(&domain, "n", "s", Some("a.b")).is_err());
    }
}
