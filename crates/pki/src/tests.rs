//! What the tests of this crate start from: a root, an issuer, workloads, and certificates that no issuer of ours would make.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName,
    ExtendedKeyUsagePurpose as Eku, IsCa, KeyPair, SanType,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::clock::{ManualClock, UnixMillis};
use crate::credentials::{Credentials, Parts};
use crate::identity::Identity;
pub use crate::issuer::Issuer;
use crate::issuer::{Attestation, Issued, Order, RootCa, Urls};
use crate::key::{Key, KeyKind};
use crate::name::{SpiffeId, TrustDomain, Workload};
use crate::roots::Roots;
pub use crate::verifier::SKEW;

pub const NOW: UnixMillis = UnixMillis(1_795_362_049_000);
pub const HOUR: Duration = Duration::from_secs(3600);
pub const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub fn domain() -> TrustDomain {
    TrustDomain::parse("phalanx.local").unwrap()
}

pub fn workload(service: &str) -> Workload {
    Workload::parse(&domain(), "arena", service, Some("az1")).unwrap()
}

pub fn id(service: &str) -> SpiffeId {
    workload(service).id().clone()
}

pub fn root() -> RootCa {
    RootCa::create(&domain(), KeyKind::default(), NOW, 10 * YEAR).unwrap()
}

pub fn issuer() -> Issuer {
    let urls = Urls {
        ocsp: Some("http://127.0.0.1:15082/ocsp".into()),
        crl: Some("http://127.0.0.1:15082/crl".into()),
    };
    root()
        .intermediate(KeyKind::default(), NOW, YEAR)
        .unwrap()
        .with_urls(urls)
}

pub fn operator() -> Attestation {
    Attestation::Operator {
        name: "test".into(),
    }
}

pub fn leaf(issuer: &Issuer, service: &str, ttl: Duration, now: UnixMillis) -> (Issued, Key) {
    let key = Key::generate(KeyKind::default()).unwrap();
    let workload = workload(service);
    (
        issuer
            .issue_to(key.spki(), &Order::new(&workload, ttl, operator()), now)
            .unwrap(),
        key,
    )
}

pub fn credentials(issuer: &Issuer, service: &str, now: UnixMillis) -> Credentials {
    let (issued, key) = leaf(issuer, service, 72 * HOUR, now);
    let parts = Parts {
        chain: issued.chain,
        key,
        staple: None,
        roots: issuer.roots().clone(),
    };
    Credentials::try_new(parts, &workload(service), now).unwrap()
}

pub fn identity(issuer: &Issuer, service: &str) -> (Arc<Identity>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(NOW));
    let identity = Identity::new(clock.clone());
    identity.publish(credentials(issuer, service, NOW));
    (Arc::new(identity), clock)
}

/// A CA of another make, and leaves of it that can have anything wrong with them.
pub struct Forge {
    pub key: KeyPair,
    pub params: CertificateParams,
    pub der: CertificateDer<'static>,
}

impl Forge {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    pub fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "forge");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (date(NOW.minus(HOUR)), date(NOW.plus(YEAR)));
        change(&mut params);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { key, params, der }
    }

    pub fn roots(&self) -> Roots {
        Roots::try_new([self.der.clone()]).unwrap()
    }

    /// A leaf for `battle` as it should be, but for what is changed.
    pub fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        self.leaf_of(&KeyPair::generate().unwrap(), change)
    }

    pub fn leaf_of(
        &self,
        key: &KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_name("spiffe://phalanx.local/ns/arena/sa/battle")];
        params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
        (params.not_before, params.not_after) = (date(NOW.minus(HOUR)), date(NOW.plus(HOUR)));
        change(&mut params);
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        params.signed_by(key, &issuer).unwrap().der().clone()
    }
}

pub fn uri_name(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub fn dns_name(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

pub fn date(at: UnixMillis) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_secs().try_into().unwrap()).unwrap()
}

pub fn critical(oid: &[u64]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, vec![5, 0]);
    extension.set_criticality(true);
    extension
}
