//! Who is at the other end: a chain is checked against roots, time, purpose, revocation and the SPIFFE ids that are expected.
//! Everything that is not proven is refused, each refusal with a reason of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_cert::name::RdnSequence;

use crate::clock::UnixMillis;
use crate::name::{Name, ServiceName, SpiffeId, TrustDomain};
use crate::ocsp::{self, Staple, StapleError};
use crate::revocation::{Link, Listed, Revocations};
use crate::roots::Roots;
use crate::x509::{self, CLIENT_AUTH, Cert, SERVER_AUTH, SIGNATURES, Serial};

mod refusal;
#[cfg(test)]
mod tests;

pub use refusal::{Refusal, is_word_on_certificate};

/// How far two clocks may differ.
pub const SKEW: Duration = Duration::from_millis(200);
/// Longest chain that a peer may send, certificates.
const CHAIN_MAX: usize = 8;

/// What the peer's certificate has to be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The peer connected to us.
    Client,
    /// We connected to the peer.
    Server,
}

/// Whom one expects. Ids are compared whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Any workload of these trust domains: a server, whose rules decide later.
    TrustDomains(BTreeSet<TrustDomain>),
    /// One of these ids: a client, whose route says who serves. None at all lets nobody in.
    Ids(BTreeSet<SpiffeId>),
    /// This service, of whatever trust domain the roots vouch for: a client that was given roots and nothing else.
    Service(ServiceName),
}

impl Expected {
    pub fn trust_domain(domain: TrustDomain) -> Self {
        Self::TrustDomains(BTreeSet::from([domain]))
    }

    pub fn ids(ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        Self::Ids(ids.into_iter().collect())
    }

    fn check(&self, id: &SpiffeId) -> Result<(), Refusal> {
        match self {
            Self::TrustDomains(domains) if domains.contains(&id.trust_domain) => Ok(()),
            Self::TrustDomains(_) => Err(Refusal::WrongTrustDomain),
            Self::Ids(ids) if ids.contains(id) => Ok(()),
            Self::Ids(ids) if ids.iter().all(|i| i.trust_domain != id.trust_domain) => {
                Err(Refusal::WrongTrustDomain)
            }
            Self::Service(service) if *service == id.service => Ok(()),
            Self::Ids(_) | Self::Service(_) => Err(Refusal::WrongName),
        }
    }
}

/// What is asked of CRLs. A serial that is on a list is refused under each but `Off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CrlPolicy {
    Off,
    /// An issuer without a list, or with one past its nextUpdate, is no reason to refuse: traffic outlives the control plane.
    #[default]
    IfPresent,
    /// Every link of the chain needs a current list.
    Require,
}

/// What is asked of a server's staple (clients send none: rustls, like most, has no way to ask).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StaplePolicy {
    Off,
    /// None is fine, unless the certificate demands one (RFC 7633); a bad one is not.
    #[default]
    IfPresent,
    Require,
}

/// Everything that is asked of a peer.
#[derive(Clone, Debug)]
pub struct Policy {
    pub role: Role,
    pub expected: Expected,
    pub crl: CrlPolicy,
    pub staple: StaplePolicy,
}

impl Policy {
    pub fn new(role: Role, expected: Expected) -> Self {
        Self {
            role,
            expected,
            crl: CrlPolicy::default(),
            staple: StaplePolicy::default(),
        }
    }
}

/// A peer whose chain was verified: what the connection may be called from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: SpiffeId,
    pub dns_names: Vec<String>,
    pub serial: Serial,
    pub not_before: UnixMillis,
    pub not_after: UnixMillis,
    /// SHA-256 of the leaf's DER: which certificate this connection uses.
    pub fingerprint: [u8; 32],
    /// The leaf first.
    pub links: Vec<Link>,
    must_staple: bool,
}

impl Peer {
    /// Somebody of this name whom nobody has seen: for asking what would be said to them. It has no chain, so nothing that
    /// checks one takes it.
    pub fn supposed(id: SpiffeId) -> Self {
        Self {
            id,
            dns_names: Vec::new(),
            serial: Serial::none(),
            not_before: UnixMillis(0),
            not_after: UnixMillis(0),
            fingerprint: [0; 32],
            links: Vec::new(),
            must_staple: false,
        }
    }
}

/// A verified path, before time, names and revocation are looked at again.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub peer: Arc<Peer>,
    pub issuer: RdnSequence,
    pub issuer_spki: Vec<u8>,
    /// The part of time in which every certificate of the path is valid, its root too.
    window: (UnixMillis, UnixMillis),
}

/// Checks a peer's chain and staple completely.
///
/// # Errors
/// [`Refusal`]
pub fn verify(
    chain: &[CertificateDer<'_>],
    staple: &[u8],
    roots: &Roots,
    revocations: &Revocations,
    policy: &Policy,
    now: UnixMillis,
) -> Result<Arc<Peer>, Refusal> {
    let path = verify_path(chain, policy.role, roots, now)?;
    check_peer(&path, revocations, policy, now)?;
    check_staple(&path, staple, policy, now)?;
    Ok(path.peer)
}

/// Signatures, purposes, constraints and the shape of the names: what stays true as long as the roots do.
pub(crate) fn verify_path(
    chain: &[CertificateDer<'_>],
    role: Role,
    roots: &Roots,
    now: UnixMillis,
) -> Result<Path, Refusal> {
    let (leaf_der, rest) = chain.split_first().ok_or(Refusal::NoCertificate)?;
    if chain.len() > CHAIN_MAX {
        return Err(Refusal::ChainTooLong);
    }
    let leaf = Cert::parse(leaf_der).map_err(|_| Refusal::MalformedCertificate)?;
    let certs: Vec<Cert> = rest
        .iter()
        .map(|c| Cert::parse(c))
        .collect::<Result<_, _>>()
        .map_err(|_| Refusal::MalformedCertificate)?;
    let anchors = roots.anchors(now, SKEW);
    let end_entity = EndEntityCert::try_from(leaf_der).map_err(|e| Refusal::of_webpki(&e, role))?;
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    // webpki counts whole seconds, so the leaf's own dates are compared in `in_time`, to the millisecond and with skew.
    let at = now.as_secs().clamp(
        leaf.not_before.as_secs(),
        leaf.not_after.as_secs().max(leaf.not_before.as_secs()),
    );
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
    let verified = end_entity
        .verify_for_usage(SIGNATURES, &anchors, rest, at, usage, None, None)
        .map_err(|e| Refusal::of_webpki(&e, role))?;
    check_purpose(&leaf, role)?;
    let root = roots.life_of(verified.anchor()).ok_or(Refusal::UnknownCa)?;
    Path::of(&leaf, x509::fingerprint(leaf_der), &certs, &verified, root)
}

/// webpki takes a certificate without extended key usages for any purpose; we don't.
fn check_purpose(leaf: &Cert, role: Role) -> Result<(), Refusal> {
    let (usage, refusal) = match role {
        Role::Client => (CLIENT_AUTH, Refusal::MissingClientEku),
        Role::Server => (SERVER_AUTH, Refusal::MissingServerEku),
    };
    if leaf.is_ca {
        return Err(Refusal::CaAsLeaf);
    }
    if leaf.usages.as_ref().is_some_and(|u| u.contains(&usage)) {
        Ok(())
    } else {
        Err(refusal)
    }
}

impl Path {
    fn of(
        leaf: &Cert,
        fingerprint: [u8; 32],
        sent: &[Cert],
        verified: &VerifiedPath<'_>,
        root: (UnixMillis, UnixMillis),
    ) -> Result<Self, Refusal> {
        let mut spkis: Vec<Vec<u8>> = Vec::new();
        let mut serials = vec![leaf.serial.clone()];
        let mut window = (leaf.not_before.max(root.0), leaf.not_after.min(root.1));
        for step in verified.intermediate_certificates() {
            let spki = step.subject_public_key_info().to_vec();
            let serial =
                Serial::of_bytes(step.serial()).map_err(|_| Refusal::MalformedCertificate)?;
            let same = |c: &&Cert| c.spki == spki && c.serial == serial;
            let cert = sent
                .iter()
                .find(same)
                .ok_or(Refusal::MalformedCertificate)?;
            window = (window.0.max(cert.not_before), window.1.min(cert.not_after));
            spkis.push(spki);
            serials.push(serial);
        }
        spkis.push(webpki::spki_for_anchor(verified.anchor()).to_vec());
        let issuer_spki = spkis.first().cloned().unwrap_or_default();
        let links = spkis.iter().zip(serials).map(|(spki, serial)| Link {
            issuer_key: x509::sha256(spki),
            serial,
        });
        let peer = Peer {
            id: spiffe_id(leaf)?,
            dns_names: leaf.names.iter().filter_map(dns).collect(),
            serial: leaf.serial.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            fingerprint,
            links: links.collect(),
            must_staple: leaf.must_staple,
        };
        Ok(Self {
            peer: Arc::new(peer),
            issuer: leaf.issuer.clone(),
            issuer_spki,
            window,
        })
    }
}

fn dns(name: &Name) -> Option<String> {
    match name {
        Name::Dns(text) => Some(text.clone()),
        Name::Uri(_) | Name::Ip(_) => None,
    }
}

/// Exactly one URI (SPIFFE X509-SVID, section 2), and no wildcard anywhere.
fn spiffe_id(leaf: &Cert) -> Result<SpiffeId, Refusal> {
    if leaf.names.iter().any(Name::is_wildcard) {
        return Err(Refusal::WildcardName);
    }
    let mut uris = leaf.names.iter().filter_map(|n| match n {
        Name::Uri(text) => Some(text),
        Name::Dns(_) | Name::Ip(_) => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|_| Refusal::NoSpiffeId),
        (None, _) => Err(Refusal::NoSpiffeId),
        (Some(_), Some(_)) => Err(Refusal::SeveralSpiffeIds),
    }
}

/// Time, names and CRLs: what may change while the path stays good. Cheap, so it is asked at each handshake and resumption.
pub(crate) fn check_peer(
    path: &Path,
    revocations: &Revocations,
    policy: &Policy,
    now: UnixMillis,
) -> Result<(), Refusal> {
    in_time(path, now)?;
    check_links(&path.peer.links, revocations, policy.crl, now)?;
    policy.expected.check(&path.peer.id)
}

fn in_time(path: &Path, now: UnixMillis) -> Result<(), Refusal> {
    let (peer, (not_before, not_after)) = (&path.peer, path.window);
    if now.minus(SKEW) > peer.not_after {
        return Err(Refusal::Expired);
    }
    if now.plus(SKEW) < peer.not_before {
        return Err(Refusal::NotYetValid);
    }
    if now.minus(SKEW) > not_after || now.plus(SKEW) < not_before {
        return Err(Refusal::IssuerExpired);
    }
    Ok(())
}

pub(crate) fn check_links(
    links: &[Link],
    revocations: &Revocations,
    policy: CrlPolicy,
    now: UnixMillis,
) -> Result<(), Refusal> {
    if policy == CrlPolicy::Off {
        return Ok(());
    }
    for link in links {
        match revocations.ask(link, now, SKEW) {
            Listed::Revoked => return Err(Refusal::Revoked),
            Listed::NoList if policy == CrlPolicy::Require => {
                return Err(Refusal::UnknownRevocation);
            }
            Listed::Stale if policy == CrlPolicy::Require => return Err(Refusal::StaleCrl),
            Listed::No | Listed::NoList | Listed::Stale => {}
        }
    }
    Ok(())
}

pub(crate) fn check_staple(
    path: &Path,
    staple: &[u8],
    policy: &Policy,
    now: UnixMillis,
) -> Result<(), Refusal> {
    if policy.role == Role::Client || policy.staple == StaplePolicy::Off {
        return Ok(());
    }
    if staple.is_empty() {
        let demanded = policy.staple == StaplePolicy::Require || path.peer.must_staple;
        return if demanded {
            Err(Refusal::MissingStaple)
        } else {
            Ok(())
        };
    }
    staple_of(path, staple, now)
        .map(|_| ())
        .map_err(Refusal::of_staple)
}

/// What a staple says about the leaf of a path.
pub(crate) fn staple_of(
    path: &Path,
    staple: &[u8],
    now: UnixMillis,
) -> Result<Staple, StapleError> {
    let subject = ocsp::Subject {
        serial: &path.peer.serial,
        issuer: &path.issuer,
        issuer_spki: &path.issuer_spki,
    };
    ocsp::check_staple(staple, &subject, now, SKEW)
}
