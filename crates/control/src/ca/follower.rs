//! A peer that takes what it trusts over secret discovery instead of a stream of trust: it is counted on in a rotation alike.

use phalanx_pki::verifier::Peer;
use phalanx_pki::x509::Serial;

use super::Ca;

/// Forgets its stream when it goes.
pub struct Follower {
    ca: Ca,
    stream: u64,
}

impl Ca {
    /// None when there are too many.
    pub fn follower(&self, peer: &Peer) -> Option<Follower> {
        let known = (peer.id.clone(), peer.serial.clone());
        let stream = self.peers().open(Some(known))?;
        Some(Follower {
            ca: self.clone(),
            stream,
        })
    }
}

impl Follower {
    /// Which certificate it shows by now, and which roots it took ([`super::mesh::Bundle::roots_id`]).
    pub fn said(&self, serial: Option<Serial>, roots: Option<&str>, error: &str) {
        self.ca.peers().said(self.stream, serial, roots, error);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.ca.peers().close(self.stream);
    }
}
