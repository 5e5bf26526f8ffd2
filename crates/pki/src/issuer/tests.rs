use super::*;
use crate::tests::*;
use crate::x509::Cert;

#[test]
fn a_leaf_carries_what_its_workload_owns_and_no_more() {
    let issuer = issuer();
    let key = Key::generate(KeyKind::default()).unwrap();
    let csr = Csr::from_der(&csr::request(&key, &workload("battle")).unwrap()).unwrap();
    let workload = workload("battle");
    let issued = issuer
        .issue(&csr, &Order::new(&workload, 72 * HOUR, operator()), NOW)
        .unwrap();
    let cert = Cert::parse(&issued.chain[0]).unwrap();
    assert_eq!(cert.names, workload.names());
    assert_eq!(
        (cert.not_before, cert.not_after),
        (NOW.minus(LEAF_BACKDATE), NOW.plus(72 * HOUR))
    );
    assert_eq!(cert.spki, key.spki());
    assert_eq!(issued.chain.len(), 2);
    let record = issued.record;
    assert_eq!(
        (record.serial, record.not_after),
        (cert.serial, cert.not_after)
    );
    assert_eq!(record.issuer, issuer.ca().cert().serial);
}

#[test]
fn a_record_survives_json() {
    let (issued, _) = leaf(&issuer(), "battle", HOUR, NOW);
    let text = serde_json::to_string(&issued.record).unwrap();
    assert_eq!(
        serde_json::from_str::<Issuance>(&text).unwrap(),
        issued.record
    );
}

#[test]
fn a_refused_request_gets_no_leaf() {
    let key = Key::generate(KeyKind::default()).unwrap();
    let csr = Csr::from_der(&csr::request(&key, &workload("gateway")).unwrap()).unwrap();
    let battle = workload("battle");
    let refused = issuer().issue(&csr, &Order::new(&battle, HOUR, operator()), NOW);
    assert!(matches!(
        refused,
        Err(IssueError::Csr(CsrError::NotOwned { .. }))
    ));
}

#[test]
fn no_leaf_outlives_its_issuer() {
    let issuer = root().intermediate(KeyKind::default(), NOW, HOUR).unwrap();
    let (issued, _) = leaf(&issuer, "battle", 72 * HOUR, NOW);
    assert_eq!(issued.record.not_after, NOW.plus(HOUR));
    let battle = workload("battle");
    let order = |ttl| Order::new(&battle, ttl, operator());
    let ask = |ttl, now| issuer.issue_to(issuer.ca().cert().spki.as_slice(), &order(ttl), now);
    assert!(matches!(
        ask(HOUR, NOW.plus(HOUR)),
        Err(IssueError::Expired { .. })
    ));
    assert!(matches!(ask(Duration::ZERO, NOW), Err(IssueError::Ttl)));
    assert!(matches!(
        ask(LEAF_TTL_MAX + HOUR, NOW),
        Err(IssueError::Ttl)
    ));
}

#[test]
fn another_trust_domain_gets_nothing() {
    let other = Workload::parse(
        &TrustDomain::parse("other").unwrap(),
        "arena",
        "battle",
        None,
    )
    .unwrap();
    let key = Key::generate(KeyKind::default()).unwrap();
    let refused = issuer().issue_to(key.spki(), &Order::new(&other, HOUR, operator()), NOW);
    assert!(matches!(refused, Err(IssueError::TrustDomain { .. })));
}

#[test]
fn files_keep_an_issuer_and_a_root() {
    let dir = tempfile::tempdir().unwrap();
    let (root, issuer) = (root(), issuer());
    root.save(&dir.path().join("root")).unwrap();
    issuer.save(&dir.path().join("ca")).unwrap();
    let again = Issuer::load(&dir.path().join("ca"), &domain(), NOW).unwrap();
    assert_eq!(again.key_hex(), issuer.key_hex());
    let under = RootCa::load(&dir.path().join("root"), &domain()).unwrap();
    assert!(
        under
            .intermediate(KeyKind::default(), NOW, YEAR)
            .unwrap()
            .roots()
            .is_same(&root.roots().unwrap())
    );
}

#[test]
fn files_that_do_not_fit_together_are_refused() {
    let change = |name: &str, text: String| {
        let dir = tempfile::tempdir().unwrap();
        issuer().save(dir.path()).unwrap();
        let access = if name == CA_KEY {
            Access::Private
        } else {
            Access::Public
        };
        files::write(&dir.path().join(name), text.as_bytes(), access).unwrap();
        Issuer::load(dir.path(), &domain(), NOW).unwrap_err()
    };
    let other = issuer();
    let unknown = change(ROOT_CERT, other.roots().to_pem());
    assert!(
        matches!(
            unknown,
            IssueError::Probe {
                reason: Refusal::UnknownCa,
                ..
            }
        ),
        "{unknown}"
    );
    let mismatch = change(CA_KEY, other.ca().key().to_pem().unwrap().to_string());
    assert!(
        matches!(mismatch, IssueError::Ca(CaError::KeyMismatch)),
        "{mismatch}"
    );
    let (leaf, key) = leaf(&other, "battle", HOUR, NOW);
    let no_ca = Ca::try_new(leaf.chain[0].clone(), key);
    assert!(matches!(no_ca, Err(CaError::NotCa)));
    assert!(matches!(
        change(CERT_CHAIN, String::new()),
        IssueError::X509(X509Error::Pem)
    ));
}

#[test]
fn an_intermediate_of_another_make_issues_what_verifies() {
    // Two organisational units and no key identifier: a name that has to be copied, not understood.
    let forge = Forge::with(|p| {
        p.distinguished_name
            .push(rcgen::DnType::OrganizationName, "Foreign Authority")
    });
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = forge.params.clone();
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationalUnitName, "intermediate");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let der = params
        .signed_by(&key, &rcgen::Issuer::from_params(&forge.params, &forge.key))
        .unwrap()
        .der()
        .clone();
    let key = Key::from_pem(key.serialize_pem().as_bytes()).unwrap();
    let ca = Ca::try_new(der, key).unwrap();
    let issuer =
        Issuer::try_new(ca, vec![forge.der.clone()], forge.roots(), &domain(), NOW).unwrap();
    assert_eq!(issuer.chain().len(), 1, "the root is not sent");
    credentials(&issuer, "battle", NOW);
}

#[test]
fn an_intermediate_that_peers_would_refuse_is_refused() {
    let forge = Forge::with(|p| p.not_after = date(NOW.minus(HOUR / 2)));
    let key = Key::from_pem(forge.key.serialize_pem().as_bytes()).unwrap();
    let made = Issuer::try_new(
        Ca::try_new(forge.der.clone(), key).unwrap(),
        vec![],
        forge.roots(),
        &domain(),
        NOW,
    );
    assert!(matches!(made, Err(IssueError::Expired { .. })));
}

#[test]
fn host_names_stand_in_a_control_plane_s_leaf_and_in_no_other() {
    let issuer = issuer();
    let key = Key::generate(KeyKind::default()).unwrap();
    let control = Workload::control(&domain()).unwrap();
    let hosts = ["control.example.org", "10.1.2.3", "[::1]"].map(|h| Name::host(h).unwrap());
    fn order<'a>(workload: &'a Workload, hosts: &'a [Name]) -> Order<'a> {
        Order {
            hosts,
            ..Order::new(workload, HOUR, operator())
        }
    }
    let issued = issuer
        .issue_to(key.spki(), &order(&control, &hosts), NOW)
        .unwrap();
    let cert = x509::Cert::parse(&issued.chain[0]).unwrap();
    assert!(hosts.iter().all(|host| cert.names.contains(host)));
    assert!(cert.names.contains(&Name::Uri(control.id().to_string())));
    assert_eq!(issued.record.names, cert.names);
    let battle = workload("battle");
    let refused = issuer.issue_to(key.spki(), &order(&battle, &hosts), NOW);
    assert!(matches!(refused, Err(IssueError::Hosts { .. })));
    for bad in [
        Name::Dns("*.example.org".into()),
        Name::Uri("https://x".into()),
    ] {
        let refused = issuer.issue_to(key.spki(), &order(&control, &[bad]), NOW);
        assert!(matches!(refused, Err(IssueError::Host { .. })));
    }
    for bad in ["", "*.example.org", "a b", "-x", "http://x", "x/y"] {
        assert!(Name::host(bad).is_err(), "{bad:?}");
    }
}
