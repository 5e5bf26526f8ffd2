//! Which mode of mutual TLS holds at a port: the narrower word wins. One about the port outranks one about the Service, that
//! one about the namespace, that one about the mesh; where nobody says anything, it is permissive.
//!
//! An instance may stand behind several Services: of their words the strictest holds.

use std::collections::BTreeSet;

use crate::document::PeerAuthentication;
use crate::resource::MtlsMode;

/// What is said about one instance, the winners only: of two about the same thing the older one.
#[derive(Clone, Debug, Default)]
pub struct Peers<'a> {
    pub mesh: Option<&'a PeerAuthentication>,
    pub namespace: Option<&'a PeerAuthentication>,
    /// One per Service that it stands behind.
    pub services: Vec<&'a PeerAuthentication>,
}

impl Peers<'_> {
    /// At an application's port about which nothing special is said.
    pub fn default_mode(&self) -> MtlsMode {
        self.resolve(|policy| policy.mode)
    }

    /// At this port of the application.
    pub fn mode(&self, port: u16) -> MtlsMode {
        self.resolve(|policy| {
            let said = policy.ports.iter().find(|(number, _)| *number == port);
            said.map(|(_, mode)| *mode).or(policy.mode)
        })
    }

    /// The ports about which something special is said.
    pub fn ports(&self) -> BTreeSet<u16> {
        let ports = self.services.iter().flat_map(|policy| &policy.ports);
        ports.map(|(port, _)| *port).collect()
    }

    fn resolve(&self, of_service: impl Fn(&PeerAuthentication) -> Option<MtlsMode>) -> MtlsMode {
        let said = self.services.iter().filter_map(|policy| of_service(policy));
        said.max_by_key(|mode| strictness(*mode))
            .or_else(|| self.namespace?.mode)
            .or_else(|| self.mesh?.mode)
            .unwrap_or_default()
    }
}

fn strictness(mode: MtlsMode) -> u8 {
    match mode {
        MtlsMode::Off => 0,
        MtlsMode::Permissive => 1,
        MtlsMode::Strict => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::MtlsMode::{Off, Permissive, Strict};
    use super::*;

    fn policy(mode: Option<MtlsMode>, ports: &[(u16, MtlsMode)]) -> PeerAuthentication {
        PeerAuthentication {
            meta: Default::default(),
            targets: Vec::new(),
            mode,
            ports: ports.to_vec(),
        }
    }

    #[test]
    fn nothing_said_is_permissive() {
        let peers = Peers::default();
        assert_eq!(
            (peers.default_mode(), peers.mode(80)),
            (Permissive, Permissive)
        );
    }

    #[test]
    fn the_narrower_word_wins() {
        let (mesh, namespace) = (policy(Some(Strict), &[]), policy(Some(Off), &[]));
        let service = policy(Some(Permissive), &[(9000, Strict)]);
        let mut peers = Peers {
            mesh: Some(&mesh),
            ..Peers::default()
        };
        assert_eq!(peers.mode(80), Strict);
        peers.namespace = Some(&namespace);
        assert_eq!(peers.mode(80), Off);
        peers.services = vec![&service];
        assert_eq!((peers.mode(80), peers.mode(9000)), (Permissive, Strict));
        assert_eq!(
            (peers.default_mode(), peers.ports()),
            (Permissive, [9000].into())
        );
    }

    #[test]
    fn a_service_that_speaks_of_ports_only_leaves_the_rest_to_the_namespace() {
        let (namespace, service) = (policy(Some(Strict), &[]), policy(None, &[(9000, Off)]));
        let peers = Peers {
            namespace: Some(&namespace),
            services: vec![&service],
            ..Peers::default()
        };
        assert_eq!(
            (peers.mode(9000), peers.mode(80), peers.default_mode()),
            (Off, Strict, Strict)
        );
    }

    #[test]
    fn of_several_services_the_strictest_word_holds() {
        let words = [Off, Strict, Permissive].map(|mode| policy(Some(mode), &[]));
        let of = |services: &[usize]| {
            let services = services.iter().map(|i| &words[*i]).collect();
            Peers {
                services,
                ..Peers::default()
            }
            .mode(80)
        };
        assert_eq!(
            [of(&[0]), of(&[0, 2]), of(&[0, 1]), of(&[2, 1])],
            [Off, Permissive, Strict, Strict]
        );
    }
}
