use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose as Eku, IsCa, KeyPair};

use super::*;
use crate::revocation::{Reason, Revoked, build_crl};
use crate::tests::*;

/// Verifies against a forge's root, as a server sees a client unless said otherwise.
fn check(
    forge: &Forge,
    chain: &[CertificateDer<'_>],
    now: UnixMillis,
) -> Result<Arc<Peer>, Refusal> {
    as_role(forge, chain, Role::Client, now)
}

fn as_role(
    forge: &Forge,
    chain: &[CertificateDer<'_>],
    role: Role,
    now: UnixMillis,
) -> Result<Arc<Peer>, Refusal> {
    let policy = Policy::new(role, Expected::ids([id("battle")]));
    verify(
        chain,
        &[],
        &forge.roots(),
        &Revocations::default(),
        &policy,
        now,
    )
}

#[test]
fn a_peer_that_belongs_is_let_in_and_named() {
    let (issuer, policy) = (
        issuer(),
        Policy::new(Role::Client, Expected::trust_domain(domain())),
    );
    let (issued, _) = leaf(&issuer, "battle", HOUR, NOW);
    let peer = verify(
        &issued.chain,
        &[],
        issuer.roots(),
        &Revocations::default(),
        &policy,
        NOW,
    )
    .unwrap();
    assert_eq!(peer.id, id("battle"));
    assert_eq!(
        peer.dns_names,
        ["battle.arena.svc.mesh", "battle-az1.internal"]
    );
    assert_eq!(peer.serial, issued.record.serial);
    assert_eq!(peer.links.len(), 2);
}

#[test]
fn each_bad_peer_is_refused_for_its_own_reason() {
    let forge = Forge::new();
    let id = "spiffe://phalanx.local/ns/arena/sa/battle";
    let refused = |leaf: CertificateDer<'static>| check(&forge, &[leaf], NOW).unwrap_err();
    let names = |names: Vec<rcgen::SanType>| refused(forge.leaf(|p| p.subject_alt_names = names));

    assert!(check(&forge, &[forge.leaf(|_| ())], NOW).is_ok());
    assert_eq!(check(&forge, &[], NOW), Err(Refusal::NoCertificate));
    assert_eq!(refused(Forge::new().leaf(|_| ())), Refusal::UnknownCa);
    assert_eq!(
        refused(forge.leaf(|p| p.not_after = date(NOW.minus(2 * SKEW)))),
        Refusal::Expired
    );
    assert_eq!(
        refused(forge.leaf(|p| p.not_before = date(NOW.plus(HOUR / 2)))),
        Refusal::NotYetValid
    );
    assert_eq!(
        refused(forge.leaf(|p| p.extended_key_usages = vec![Eku::ServerAuth])),
        Refusal::MissingClientEku
    );
    assert_eq!(
        refused(forge.leaf(|p| p.extended_key_usages = vec![])),
        Refusal::MissingClientEku
    );
    assert_eq!(
        refused(forge.leaf(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        Refusal::CaAsLeaf
    );
    assert_eq!(
        refused(forge.leaf(|p| p.custom_extensions = vec![critical(&[1, 3, 9, 9])])),
        Refusal::Unsupported
    );
    assert_eq!(names(vec![]), Refusal::NoSpiffeId);
    assert_eq!(
        names(vec![dns_name("battle.arena.svc.mesh")]),
        Refusal::NoSpiffeId
    );
    assert_eq!(
        names(vec![uri_name("https://phalanx.local/ns/arena/sa/battle")]),
        Refusal::NoSpiffeId
    );
    assert_eq!(
        names(vec![uri_name(
            "spiffe://phalanx.local/ns/arena/sa/battle\0.evil"
        )]),
        Refusal::NoSpiffeId
    );
    assert_eq!(
        names(vec![
            uri_name(id),
            uri_name("spiffe://phalanx.local/ns/arena/sa/other")
        ]),
        Refusal::SeveralSpiffeIds
    );
    assert_eq!(
        names(vec![uri_name(id), dns_name("*.arena.svc.mesh")]),
        Refusal::WildcardName
    );
    assert_eq!(
        names(vec![uri_name("spiffe://phalanx.local/ns/arena/sa/battle2")]),
        Refusal::WrongName
    );
    assert_eq!(
        names(vec![uri_name(
            "spiffe://phalanx.local.evil/ns/arena/sa/battle"
        )]),
        Refusal::WrongTrustDomain
    );
    assert_eq!(
        refused(CertificateDer::from(vec![0x30, 0x80, 0, 0])),
        Refusal::MalformedCertificate
    );
    assert_eq!(
        refused(CertificateDer::from(vec![0x30; 17 * 1024])),
        Refusal::MalformedCertificate
    );
    let many = vec![forge.leaf(|_| ()); CHAIN_MAX + 1];
    assert_eq!(check(&forge, &many, NOW), Err(Refusal::ChainTooLong));
    let for_clients = forge.leaf(|p| p.extended_key_usages = vec![Eku::ClientAuth]);
    assert_eq!(
        as_role(&forge, &[for_clients], Role::Server, NOW),
        Err(Refusal::MissingServerEku)
    );
}

#[test]
fn an_issuer_that_may_not_issue_is_refused() {
    let forge = Forge::new();
    let under = |change: fn(&mut rcgen::CertificateParams)| {
        let key = KeyPair::generate().unwrap();
        let mut params = forge.params.clone();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "between");
        change(&mut params);
        let issuer = rcgen::Issuer::from_params(&forge.params, &forge.key);
        let der = params.signed_by(&key, &issuer).unwrap().der().clone();
        Forge { key, params, der }
    };
    let chain = |between: &Forge| [between.leaf(|_| ()), between.der.clone()];
    assert!(check(&forge, &chain(&under(|_| ())), NOW).is_ok());
    assert_eq!(
        check(
            &forge,
            &chain(&under(|p| p.is_ca = IsCa::ExplicitNoCa)),
            NOW
        ),
        Err(Refusal::BadIssuer)
    );
    let over = under(|p| p.not_after = date(NOW.minus(HOUR / 2)));
    assert_eq!(
        check(&forge, &chain(&over), NOW),
        Err(Refusal::IssuerExpired)
    );
    let short = Forge::with(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let inner = {
        let key = KeyPair::generate().unwrap();
        let mut params = forge.params.clone();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "deep");
        let der = params
            .signed_by(&key, &rcgen::Issuer::from_params(&short.params, &short.key))
            .unwrap();
        let second = KeyPair::generate().unwrap();
        let mut below = params.clone();
        below
            .distinguished_name
            .push(rcgen::DnType::CommonName, "deeper");
        let under = below
            .signed_by(&second, &rcgen::Issuer::from_params(&params, &key))
            .unwrap();
        let last = Forge {
            key: second,
            params: below,
            der: under.der().clone(),
        };
        [last.leaf(|_| ()), last.der.clone(), der.der().clone()]
    };
    // webpki does not hold a trust anchor to its own path length, so the constraint has to stand in an intermediate.
    assert!(check(&short, &inner, NOW).is_ok());
    let tight = under(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below = {
        let key = KeyPair::generate().unwrap();
        let mut params = forge.params.clone();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "below");
        let der = params
            .signed_by(&key, &rcgen::Issuer::from_params(&tight.params, &tight.key))
            .unwrap()
            .der()
            .clone();
        Forge { key, params, der }
    };
    let chain = [below.leaf(|_| ()), below.der.clone(), tight.der.clone()];
    assert_eq!(check(&forge, &chain, NOW), Err(Refusal::Constraint));
}

#[test]
fn clocks_may_differ_by_200_ms_and_not_by_more() {
    let forge = Forge::new();
    let (start, end) = (NOW.minus(HOUR), NOW.plus(HOUR));
    let leaf = [forge.leaf(|_| ())];
    let ms = Duration::from_millis;
    assert!(check(&forge, &leaf, end.plus(ms(200))).is_ok());
    assert_eq!(
        check(&forge, &leaf, end.plus(ms(201))),
        Err(Refusal::Expired)
    );
    assert_eq!(
        check(&forge, &leaf, end.plus(ms(999))),
        Err(Refusal::Expired)
    );
    let early = Forge::with(|p| p.not_before = date(NOW.minus(2 * HOUR)));
    let leaf = [early.leaf(|_| ())];
    assert!(check(&early, &leaf, start.minus(ms(200))).is_ok());
    assert_eq!(
        check(&early, &leaf, start.minus(ms(201))),
        Err(Refusal::NotYetValid)
    );
}

#[test]
fn an_expired_root_is_trusted_no_more() {
    let forge = Forge::with(|p| p.not_after = date(NOW.minus(HOUR / 2)));
    assert_eq!(
        check(&forge, &[forge.leaf(|_| ())], NOW),
        Err(Refusal::UnknownCa)
    );
}

#[test]
fn who_is_on_a_list_is_refused_and_lists_can_be_demanded() {
    let issuer = issuer();
    let (good, bad) = (
        leaf(&issuer, "battle", HOUR, NOW).0,
        leaf(&issuer, "battle", HOUR, NOW).0,
    );
    let revoked = [Revoked {
        serial: bad.record.serial.clone(),
        at: NOW,
        reason: Reason::KeyCompromise,
    }];
    let crl = build_crl(issuer.ca(), &revoked, 1, NOW, HOUR / 2).unwrap();
    let lists = Revocations::try_new(&[crl], &issuer.chain(), NOW, SKEW).unwrap();
    let ask = |chain: &[CertificateDer<'_>], crl, now| {
        let policy = Policy {
            crl,
            ..Policy::new(Role::Client, Expected::trust_domain(domain()))
        };
        verify(chain, &[], issuer.roots(), &lists, &policy, now).map(|_| ())
    };
    assert_eq!(ask(&good.chain, CrlPolicy::IfPresent, NOW), Ok(()));
    assert_eq!(
        ask(&bad.chain, CrlPolicy::IfPresent, NOW),
        Err(Refusal::Revoked)
    );
    assert_eq!(ask(&bad.chain, CrlPolicy::Off, NOW), Ok(()));
    // The root's list is missing, and that of the issuer goes out of date: only `Require` minds, but the revoked stay out.
    assert_eq!(
        ask(&good.chain, CrlPolicy::Require, NOW),
        Err(Refusal::UnknownRevocation)
    );
    let late = NOW.plus(HOUR / 2 + Duration::from_secs(1));
    assert_eq!(
        ask(&good.chain, CrlPolicy::Require, late),
        Err(Refusal::StaleCrl)
    );
    assert_eq!(ask(&good.chain, CrlPolicy::IfPresent, late), Ok(()));
    assert_eq!(
        ask(&bad.chain, CrlPolicy::IfPresent, late),
        Err(Refusal::Revoked)
    );
}

#[test]
fn nobody_is_expected_by_an_empty_set() {
    let forge = Forge::new();
    let policy = Policy::new(Role::Client, Expected::ids([]));
    let done = verify(
        &[forge.leaf(|_| ())],
        &[],
        &forge.roots(),
        &Revocations::default(),
        &policy,
        NOW,
    );
    assert_eq!(done, Err(Refusal::WrongTrustDomain));
}
