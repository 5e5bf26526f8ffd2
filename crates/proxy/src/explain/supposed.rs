//! A sidecar that does not run: what it would hold, had it been sent just this.

use std::sync::Arc;

use phalanx_xds::{Kind, Snapshot};

use crate::account::Account;
use crate::desk::Desk;
use crate::discovery::Configuration;
use crate::plan::{Bootstrap, Plan};

/// Its configuration, its plan, and what it refused of the snapshot: resource and reason.
pub struct Supposed {
    pub configuration: Configuration,
    pub plan: Plan,
    pub refused: Vec<(String, String)>,
}

impl Supposed {
    /// By the same steps as a stream's responses: decoded, compiled, assembled.
    pub fn of(snapshot: &Snapshot, bootstrap: &Bootstrap) -> Self {
        let mut configuration = Configuration::default();
        let (desk, _) = Desk::new();
        configuration.on_demand(desk);
        let mut refused = Vec::new();
        for kind in [Kind::Listener, Kind::Cluster, Kind::Endpoints, Kind::Routes] {
            let upserts = snapshot.resources(kind).values().map(|encoded| {
                let (name, version) = (encoded.name.clone(), encoded.version.clone());
                (name, version, encoded.body.to_vec())
            });
            refused.extend(configuration.apply(kind, upserts.collect(), &[]));
        }
        let account = Arc::new(Account::new(1));
        let (resources, nothing) = (configuration.resources(), Plan::empty());
        let plan = Plan::assemble(resources, bootstrap, &nothing, &account);
        Self {
            configuration,
            plan,
            refused,
        }
    }
}
