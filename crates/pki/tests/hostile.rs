//! No bytes of a peer, file or user make this crate panic, and what was changed on the way is not taken for what it was.

use std::sync::OnceLock;
use std::time::Duration;

use phalanx_pki::clock::UnixMillis;
use phalanx_pki::csr::{self, Csr};
use phalanx_pki::issuer::{Attestation, Issued, Issuer, Order, RootCa};
use phalanx_pki::join::JoinToken;
use phalanx_pki::jwt;
use phalanx_pki::jwt::{Accept, Jwks};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{SpiffeId, TrustDomain, Workload};
use phalanx_pki::ocsp::{self, Responder, Status};
use phalanx_pki::revocation::{Revocations, build_crl};
use phalanx_pki::roots::Roots;
use phalanx_pki::verifier::{self, CrlPolicy, Expected, Policy, Role, SKEW, StaplePolicy};
use phalanx_pki::x509::{self, Cert, Serial};
use proptest::prelude::*;
use rustls::pki_types::CertificateDer;

const NOW: UnixMillis = UnixMillis(1_795_362_049_000);
const HOUR: Duration = Duration::from_secs(3600);

struct Good {
    issuer: Issuer,
    issued: Issued,
    csr: Vec<u8>,
    staple: Vec<u8>,
    crl: Vec<u8>,
    responder: Responder,
}

fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let domain = TrustDomain::parse("phalanx.local").unwrap();
        let root = RootCa::create(&domain, KeyKind::default(), NOW, 1000 * HOUR).unwrap();
        let issuer = root
            .intermediate(KeyKind::default(), NOW, 500 * HOUR)
            .unwrap();
        let workload = Workload::parse(&domain, "arena", "battle", None).unwrap();
        let key = Key::generate(KeyKind::default()).unwrap();
        let csr = csr::request(&key, &workload).unwrap();
        let order = Order::new(
            &workload,
            HOUR,
            Attestation::Operator {
                name: "test".into(),
            },
        );
        let issued = issuer.issue_to(key.spki(), &order, NOW).unwrap();
        let responder = Responder::try_new([issuer.ca().clone()], HOUR).unwrap();
        let staple = responder
            .staple(&issued.chain[0], Status::Good, NOW)
            .unwrap();
        let crl = build_crl(issuer.ca(), &[], 1, NOW, HOUR).unwrap();
        Good {
            issuer,
            issued,
            csr,
            staple,
            crl,
            responder,
        }
    })
}

/// Everything that takes foreign bytes.
fn feed(bytes: &[u8]) {
    let good = good();
    let _ = Cert::parse(bytes);
    let _ = Csr::from_der(bytes);
    let _ = Csr::from_pem(bytes);
    let _ = Key::from_pem(bytes);
    let _ = x509::certs_from_pem(bytes);
    let _ = Roots::from_pem(bytes);
    let _ = Revocations::try_new(&[bytes], &good.issuer.chain(), NOW, SKEW);
    let _ = Jwks::parse(bytes);
    let answer = good.responder.respond(bytes, NOW, |_, _| Status::Good);
    assert!(!answer.is_empty() && answer.len() < 8 * 1024);
    let text = String::from_utf8_lossy(bytes);
    let _ = ocsp::decode_get(&text);
    let _ = text.parse::<SpiffeId>();
    let _ = Serial::parse(&text);
    let _ = JoinToken::parse(&text);
    let keys = br#"{"keys":[{"kty":"EC","crv":"P-256","x":"axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY","y":"T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"}]}"#;
    let accept = Accept {
        issuer: "i",
        audience: "a",
    };
    assert!(jwt::verify(&Jwks::parse(keys).unwrap(), &text, &accept, NOW).is_err());
    for role in [Role::Client, Role::Server] {
        assert!(see(&[CertificateDer::from(bytes)], &[], role).is_err());
    }
}

fn see(chain: &[CertificateDer<'_>], staple: &[u8], role: Role) -> Result<(), verifier::Refusal> {
    let policy = Policy {
        role,
        expected: Expected::trust_domain(TrustDomain::parse("phalanx.local").unwrap()),
        crl: CrlPolicy::IfPresent,
        staple: StaplePolicy::IfPresent,
    };
    verifier::verify(
        chain,
        staple,
        good().issuer.roots(),
        &Revocations::default(),
        &policy,
        NOW,
    )
    .map(|_| ())
}

fn changed(bytes: &[u8], at: usize, with: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = at % bytes.len();
    bytes[at] ^= with;
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        feed(&bytes);
    }

    #[test]
    fn shaped_bytes_never_panic(inner in prop::collection::vec(any::<u8>(), 0..120), depth in 0usize..60) {
        let nested = (0..depth).fold(inner, |inner, _| {
            let length = u16::try_from(inner.len()).unwrap().to_be_bytes();
            [&[0x30, 0x82][..], &length, &inner].concat()
        });
        feed(&nested);
    }

    #[test]
    fn a_damaged_request_certificate_list_or_staple_never_panics_nor_passes(at in any::<usize>(), with in 1u8..) {
        let good = good();
        for bytes in [&good.csr[..], &good.staple, &good.crl, &good.issued.chain[0], &good.issued.chain[1]] {
            feed(&changed(bytes, at, with));
        }
        prop_assert!(Csr::from_der(&changed(&good.csr, at, with)).is_err());
        prop_assert!(Revocations::try_new(&[changed(&good.crl, at, with)], &good.issuer.chain(), NOW, SKEW).is_err());
        prop_assert!(see(&good.issued.chain, &changed(&good.staple, at, with), Role::Server).is_err());
        let mut chain = good.issued.chain.clone();
        chain[0] = CertificateDer::from(changed(&chain[0], at, with));
        prop_assert!(see(&chain, &[], Role::Client).is_err());
        let mut chain = good.issued.chain.clone();
        chain[1] = CertificateDer::from(changed(&chain[1], at, with));
        prop_assert!(see(&chain, &[], Role::Client).is_err());
    }

    #[test]
    fn cut_bytes_never_panic(at in any::<usize>()) {
        let good = good();
        for bytes in [&good.csr[..], &good.staple, &good.crl, &good.issued.chain[0]] {
            feed(&bytes[..at % bytes.len()]);
        }
    }

    #[test]
    fn what_is_issued_is_what_the_workload_owns(service in "[a-z][a-z0-9-]{0,20}[a-z0-9]", zone in prop::option::of("[a-z0-9]{1,8}")) {
        let domain = TrustDomain::parse("phalanx.local").unwrap();
        let workload = Workload::parse(&domain, "arena", &service, zone.as_deref()).unwrap();
        let key = Key::generate(KeyKind::default()).unwrap();
        let csr = Csr::from_der(&csr::request(&key, &workload).unwrap()).unwrap();
        let order = Order::new(&workload, HOUR, Attestation::Operator { name: "test".into() });
        let issued = good().issuer.issue(&csr, &order, NOW).unwrap();
        prop_assert_eq!(Cert::parse(&issued.chain[0]).unwrap().names, workload.names());
        prop_assert!(see(&issued.chain, &[], Role::Server).is_ok());
    }

    #[test]
    fn spiffe_ids_read_back_as_they_were_written(text in "spiffe://[a-z.]{1,9}/ns/[a-z-]{1,5}/sa/[a-z0-9-]{1,5}") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }
}

#[test]
fn a_huge_list_of_anything_is_refused() {
    feed(&vec![0x30; 9 * 1024 * 1024]);
    feed("-----BEGIN CERTIFICATE-----\n".repeat(10_000).as_bytes());
    let many = good().issuer.roots().to_pem().repeat(100);
    assert!(Roots::from_pem(many.as_bytes()).is_err());
}
