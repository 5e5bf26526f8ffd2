//! Mutual TLS towards one cluster: whom to expect, and a configuration for each protocol, made when first used and kept
//! together with its sessions for as long as the expected ids stay.

use std::sync::{Arc, OnceLock};

use phalanx_model::identity::SpiffeId;
use phalanx_pki::identity::Identity;
use phalanx_pki::tls::{ClientOptions, ClientTls};
use phalanx_pki::verifier::{CrlPolicy, Expected, StaplePolicy};

/// What two sidecars agree on before the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2 between two sidecars, whatever their applications speak: each tells the other.
    Mesh,
    Http2,
    Http1,
    /// Bytes that nobody reads.
    Tcp,
}

impl Alpn {
    /// In the order of preference.
    pub const ALL: [Self; 4] = [Self::Mesh, Self::Http2, Self::Http1, Self::Tcp];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "phalanx-h2",
            Self::Http2 => "h2",
            Self::Http1 => "http/1.1",
            Self::Tcp => "phalanx-tcp",
        }
    }

    /// What is offered where this is meant: who is no sidecar of ours takes what stands behind it.
    pub fn offers(self) -> &'static [Self] {
        match self {
            Self::Mesh => &[Self::Mesh, Self::Http1],
            Self::Http2 => &[Self::Mesh, Self::Http2],
            Self::Http1 => &[Self::Http1],
            Self::Tcp => &[Self::Tcp],
        }
    }

    pub fn parse(text: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|alpn| alpn.as_str().as_bytes() == text)
    }
}

/// Shared by all cores.
#[derive(Debug)]
pub struct PeerPlan {
    /// None of them: nobody can be called.
    pub ids: Vec<SpiffeId>,
    /// By [`Alpn`].
    clients: [OnceLock<ClientTls>; Alpn::ALL.len()],
}

impl PeerPlan {
    pub(super) fn new(ids: &[SpiffeId]) -> Self {
        Self {
            ids: ids.to_vec(),
            clients: Default::default(),
        }
    }

    /// The one that is meant; none when several may be.
    pub fn only(&self) -> Option<&SpiffeId> {
        match &*self.ids {
            [only] => Some(only),
            _ => None,
        }
    }

    /// # Errors
    /// As [`ClientTls::try_new`].
    pub fn client(&self, identity: &Arc<Identity>, alpn: Alpn) -> Result<ClientTls, rustls::Error> {
        let Some(slot) = self.clients.get(alpn as usize) else {
            return Err(rustls::Error::General("no such protocol".into()));
        };
        if let Some(client) = slot.get() {
            return Ok(client.clone());
        }
        let options = ClientOptions {
            expected: Expected::ids(self.ids.iter().cloned()),
            crl: CrlPolicy::IfPresent,
            staple: StaplePolicy::IfPresent,
            alpn: alpn.offers().iter().map(|a| a.as_str().into()).collect(),
        };
        let made = ClientTls::try_new(identity.clone(), options)?;
        Ok(slot.get_or_init(|| made).clone())
    }
}
