//! The names of a workload: its SPIFFE id, its host in the mesh and, where it has a zone, its zone's host. They are parsed
//! once and compared whole, never by prefix or pattern; a workload owns these names and no others, and none is a wildcard.

use std::fmt;
use std::str::FromStr;

use phalanx_model::name::{ServiceName, check_label};
use serde::{Deserialize, Serialize};

/// Longest trust domain (SPIFFE-ID, section 2.1).
const TRUST_DOMAIN_MAX: usize = 255;
/// Longest SPIFFE id (SPIFFE-ID, section 2.3).
const ID_MAX: usize = 2048;
/// The suffix of a zone's host names.
const ZONE_SUFFIX: &str = "internal";

/// A SPIFFE trust domain: 1–255 of `a-z`, `0-9`, `.`, `-`, `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// # Errors
    /// [`NameError::TrustDomain`] with the text.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
        let empty_part = text.split('.').any(str::is_empty);
        if text.len() > TRUST_DOMAIN_MAX || empty_part || !text.bytes().all(inner) {
            return Err(NameError::TrustDomain(clip(text)));
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
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service>`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    pub trust_domain: TrustDomain,
    pub service: ServiceName,
}

impl FromStr for SpiffeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::SpiffeId(clip(text));
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
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

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

/// A subject alternative name of the two kinds that a leaf may carry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    Uri(String),
    Dns(String),
}

impl Name {
    pub fn is_wildcard(&self) -> bool {
        let (Self::Uri(text) | Self::Dns(text)) = self;
        text.contains('*')
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(text) => write!(f, "URI:{}", text.escape_debug()),
            Self::Dns(text) => write!(f, "DNS:{}", text.escape_debug()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("`{0}` is no trust domain (a-z, 0-9, `.`, `-` and `_`, at most {TRUST_DOMAIN_MAX})")]
    TrustDomain(String),
    #[error(
        "`{0}` is no SPIFFE id of this mesh (spiffe://<trust domain>/ns/<namespace>/sa/<service>)"
    )]
    SpiffeId(String),
    #[error(
        "`{0}` is no DNS label (a-z, 0-9 and -, at most 63, starting and ending with a letter or digit)"
    )]
    Label(String),
}

/// What of a foreign text is fit to be shown.
fn clip(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
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

    #[test]
    fn a_zone_that_makes_too_long_a_label_is_refused() {
        let domain = TrustDomain::parse("td").unwrap();
        let long = "a".repeat(60);
        assert!(Workload::parse(&domain, "n", &long, Some("az12")).is_err());
        assert!(Workload::parse(&domain, "n", "s", Some("a.b")).is_err());
    }
}
