//! Another sign of death than silence: whose certificate is revoked can't beat any more, and nobody calls it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use phalanx_model::InstanceId;
use phalanx_pki::x509::Serial;

use super::leases::INSTANCES_MAX;
use crate::access::Who;
use crate::ca::Ca;
use crate::world::Registered;

#[derive(Default)]
pub struct Revoked {
    /// None where there are no certificates.
    ca: OnceLock<Ca>,
    /// Which certificate an instance showed when it registered. Held for an instant.
    shown: Mutex<HashMap<InstanceId, Serial>>,
}

impl Revoked {
    pub fn heed(&self, ca: &Ca) {
        // Set once, at the start.
        let _ = self.ca.set(ca.clone());
    }

    /// An instance registered over this connection.
    pub fn shows(&self, id: InstanceId, who: &Who) {
        let Who::Workload(peer) = who else {
            return;
        };
        let mut shown = self.shown();
        if shown.len() < INSTANCES_MAX || shown.contains_key(&id) {
            shown.insert(id, peer.serial.clone());
        }
    }

    pub fn forget(&self, id: &InstanceId) {
        self.shown().remove(id);
    }

    /// What it shows by now, or every certificate of its service. One that it had before may go: it lives by the next.
    pub fn is_dead(&self, known: &Registered) -> bool {
        let Some(ca) = self.ca.get().filter(|_| known.instance.mutual_tls) else {
            return false;
        };
        let id = &known.instance.id;
        let serial = self.shown().get(id).cloned();
        serial.is_some_and(|serial| ca.is_revoked_in_use(&serial))
            || ca.is_revoked_workload(&id.service)
    }

    fn shown(&self) -> MutexGuard<'_, HashMap<InstanceId, Serial>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
