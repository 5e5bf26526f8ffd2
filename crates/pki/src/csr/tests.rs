use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, SanType};

use super::*;
use crate::tests::*;

/// A request of another make, with a key of its own.
fn made(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .to_vec()
}

fn asked(names: Vec<SanType>) -> Result<(), CsrError> {
    Csr::from_der(&made(|p| p.subject_alt_names = names))?.check_owned(&workload("battle"))
}

fn message(result: Result<(), CsrError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_request_of_ours_asks_for_all_that_is_owned() {
    let key = Key::generate(Default::default()).unwrap();
    let csr = Csr::from_der(&request(&key, &workload("battle")).unwrap()).unwrap();
    assert_eq!(csr.names(), workload("battle").names());
    assert_eq!(csr.spki(), key.spki());
    csr.check_owned(&workload("battle")).unwrap();
}

#[test]
fn names_of_one_s_own_and_none_are_fine() {
    asked(vec![]).unwrap();
    asked(vec![
        dns_name("battle.arena.svc.mesh"),
        uri_name("spiffe://phalanx.local/ns/arena/sa/battle"),
    ])
    .unwrap();
    for cn in ["battle", "battle.arena.svc.mesh"] {
        let csr =
            Csr::from_der(&made(|p| p.distinguished_name.push(DnType::CommonName, cn))).unwrap();
        csr.check_owned(&workload("battle")).unwrap();
    }
}

#[test]
fn another_s_name_and_wildcards_are_refused_not_trimmed() {
    let own = || dns_name("battle.arena.svc.mesh");
    assert!(
        message(asked(vec![own(), dns_name("gateway.arena.svc.mesh")]))
            .contains("DNS:gateway.arena.svc.mesh")
    );
    assert!(message(asked(vec![own(), dns_name("*.arena.svc.mesh")])).contains("wildcard"));
    assert!(message(asked(vec![dns_name("battle-az2.internal")])).contains("does not own"));
    assert!(message(asked(vec![dns_name("BATTLE.arena.svc.mesh")])).contains("does not own"));
    assert!(
        message(asked(vec![uri_name(
            "spiffe://phalanx.local/ns/arena/sa/gateway"
        )]))
        .contains("gateway")
    );
    assert!(message(asked(vec![uri_name("spiffe://other/ns/arena/sa/battle")])).contains("other"));
    assert!(message(asked(vec![SanType::IpAddress([10, 0, 0, 1].into())])).contains("iPAddress"));
    let named = |cn: &str| {
        Csr::from_der(&made(|p| p.distinguished_name.push(DnType::CommonName, cn)))
            .unwrap()
            .check_owned(&workload("battle"))
    };
    assert!(message(named("gateway")).contains("CN=gateway"));
    assert!(message(named("*")).contains("wildcard"));
}

#[test]
fn whatever_else_is_asked_for_is_refused_by_name() {
    let refused = |der: Vec<u8>| Csr::from_der(&der).unwrap_err().to_string();
    let extension = |oid: &[u64]| {
        made(|p| p.custom_extensions = vec![CustomExtension::from_oid_content(oid, vec![5, 0])])
    };
    assert!(refused(extension(&[2, 5, 29, 19])).contains("basicConstraints"));
    assert!(refused(extension(&[2, 5, 29, 15])).contains("keyUsage"));
    assert!(refused(extension(&[1, 3, 6, 1, 4, 1, 99999])).contains("1.3.6.1.4.1.99999"));
    assert!(
        refused(made(|p| p
            .distinguished_name
            .push(DnType::OrganizationName, "x")))
        .contains("organizationName")
    );
}

#[test]
fn a_request_without_its_key_s_signature_is_refused() {
    let (key, other) = (
        Key::generate(Default::default()).unwrap(),
        Key::generate(Default::default()).unwrap(),
    );
    let mut stolen = CertReq::from_der(&request(&key, &workload("battle")).unwrap()).unwrap();
    stolen.info.public_key = SubjectPublicKeyInfoOwned::from_der(other.spki()).unwrap();
    assert!(matches!(
        Csr::from_der(&stolen.to_der().unwrap()),
        Err(CsrError::Signature)
    ));
}

#[test]
fn keys_that_are_weak_or_unheard_of_are_refused() {
    let params = CertificateParams::default();
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P521_SHA512] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let der = params.serialize_request(&key).unwrap().der().to_vec();
        assert!(
            matches!(Csr::from_der(&der), Err(CsrError::Key { .. })),
            "{algorithm:?}"
        );
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    Csr::from_der(params.serialize_request(&key).unwrap().der()).unwrap();
    assert!(matches!(
        Csr::from_der(&vec![0x30; CSR_MAX + 1]),
        Err(CsrError::Malformed)
    ));
}
