//! The control plane's own certificate: made when it starts, again before it ends, and whenever another issuer signs. It is the
//! only one with host names, for tools that look at those.

use std::collections::BTreeSet;

use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{Name, SpiffeId, TrustDomain, Workload};
use phalanx_pki::renewal::{Renewal, RenewalPolicy};

use super::{Ca, CaError};

pub(super) fn id(trust_domain: &TrustDomain) -> SpiffeId {
    SpiffeId::control(trust_domain.clone())
}

impl Ca {
    /// Makes and publishes it, if that is due.
    pub(super) async fn tend_own(&self) -> Result<(), CaError> {
        if self.own_is_due() {
            self.renew_own().await?;
        }
        Ok(())
    }

    fn own_is_due(&self) -> bool {
        let Some(current) = self.0.own.credentials() else {
            return true;
        };
        let issuer = self.authority().active().ca().der().clone();
        if current.parts().chain.get(1) != Some(&issuer) {
            return true;
        }
        let peer = current.peer();
        let policy = RenewalPolicy::default();
        let decided = policy.decide(peer.not_before, peer.not_after, &peer.serial, self.now());
        !matches!(decided, Renewal::Keep { .. })
    }

    pub(super) async fn renew_own(&self) -> Result<(), CaError> {
        let workload = Workload::control(self.trust_domain())?;
        let hosts = self.hosts()?;
        let key = Key::generate(KeyKind::default()).map_err(|e| CaError::Issue(e.into()))?;
        let issued = self.issue_own(&workload, &key, &hosts).await?;
        let parts = Parts {
            chain: issued.chain,
            key,
            staple: None,
            roots: self.roots(),
        };
        let made = Credentials::with_hosts(parts, &workload, &hosts, self.now());
        let credentials = made.map_err(CaError::Own)?;
        tracing::info!(serial = %credentials.peer().serial, until = %credentials.not_after(), "own certificate made");
        self.0.own.publish(credentials);
        Ok(())
    }

    /// Whom it trusts, after the mesh's roots have changed.
    pub(super) fn publish_own_roots(&self) {
        if let Err(error) = self.0.own.publish_roots(self.roots()) {
            tracing::warn!(%error, "the mesh's roots do not fit the own certificate yet");
        }
    }

    fn hosts(&self) -> Result<Vec<Name>, CaError> {
        let names = self.0.config.names.iter().map(|name| Name::host(name));
        let unique: BTreeSet<Name> = names.collect::<Result<_, _>>()?;
        Ok(unique.into_iter().collect())
    }
}
