//! How a sidecar comes by its certificate.

use std::path::PathBuf;
use std::time::Duration;

use phalanx_pki::name::TrustDomain;
use phalanx_pki::renewal::RenewalPolicy;

use super::ConfigError;

pub const TRUST_DOMAIN: &str = "phalanx.local";
/// Shortest intervals: below, checking would be all that a sidecar does.
const CHECK_MIN: Duration = Duration::from_millis(50);
const BEFORE_MIN: Duration = Duration::from_secs(1);

/// Who the sidecar is, and how it proves that. Without one it speaks plain text only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityConfig {
    pub trust_domain: TrustDomain,
    pub source: Source,
    /// PEM of the roots under which the control plane is trusted before it was joined; none: as the token's file has them,
    /// or as they were kept.
    pub roots: Option<PathBuf>,
    pub renewal: RenewalPolicy,
}

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the control plane: fetched with `proof` when `dir` holds none that is good, renewed, and kept in `dir`.
    Issued { dir: PathBuf, proof: Option<Proof> },
    /// From somebody else, who puts them into this directory; it is watched.
    Files { dir: PathBuf },
}

/// By what the first certificate is asked for. Both files are read again at each use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A line with a join token, and under it the PEM of the roots.
    JoinToken(PathBuf),
    /// A service account's JWT, as Kubernetes puts it there; it rotates.
    ServiceAccount(PathBuf),
}

impl IdentityConfig {
    /// With every default.
    ///
    /// # Panics
    /// Never: the default trust domain is one.
    #[expect(clippy::expect_used, reason = "a constant")]
    pub fn new(source: Source) -> Self {
        Self {
            trust_domain: TrustDomain::parse(TRUST_DOMAIN).expect("a constant"),
            source,
            roots: None,
            renewal: RenewalPolicy::default(),
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.renewal.check < CHECK_MIN {
            return Err(ConfigError::CertCheck);
        }
        if self.renewal.before < BEFORE_MIN {
            return Err(ConfigError::RenewBefore);
        }
        Ok(())
    }
}
