use rcgen::{ExtendedKeyUsagePurpose as Eku, KeyPair};

use super::*;
use crate::issuer::Issued;
use crate::key::KeyKind;
use crate::ocsp::{Responder, Status};
use crate::revocation::{Reason, Revoked, build_crl};
use crate::tests::*;

fn evidence<'a>(chain: &'a [CertificateDer<'static>], roots: &'a Roots) -> Evidence<'a> {
    Evidence {
        chain,
        possession: Possession::NotAsked,
        roots,
        expected: None,
        staple: Answer::NotAsked,
        ocsp: Answer::NotAsked,
        crls: Answer::NotAsked,
    }
}

/// `check: reason` of everything that failed or is warned of.
fn findings(evidence: &Evidence<'_>, now: UnixMillis) -> Vec<String> {
    let checks = examine(evidence, now).unwrap();
    let wrong = checks
        .iter()
        .filter(|c| matches!(c.result, Verdict::Failed | Verdict::Warning));
    let told = wrong.map(|c| {
        assert!(c.advice.is_some(), "{c:?}");
        format!("{}: {}", c.check, c.reason.unwrap())
    });
    told.collect()
}

fn issued() -> (crate::tests::Issuer, Issued, Key) {
    let issuer = issuer();
    let (issued, key) = leaf(&issuer, "battle", 72 * HOUR, NOW);
    (issuer, issued, key)
}

#[test]
fn a_good_leaf_has_no_findings_and_every_check_says_what_it_saw() {
    let (issuer, issued, key) = issued();
    let crl = build_crl(issuer.ca(), &[], 1, NOW, HOUR).unwrap();
    let responder = Responder::try_new([issuer.ca().clone()], HOUR).unwrap();
    let staple = responder
        .staple(&issued.chain[0], Status::Good, NOW)
        .unwrap();
    let request = ocsp_request(&issued.chain, issuer.roots()).unwrap();
    let answer = responder.respond(&request, NOW, |_, serial| {
        assert_eq!(*serial, issued.record.serial);
        Status::Good
    });
    let evidence = Evidence {
        possession: Possession::Key(&key),
        expected: Some(&id("battle")),
        staple: Answer::Got(staple),
        ocsp: Answer::Got(answer),
        crls: Answer::Got(vec![crl]),
        ..evidence(&issued.chain, issuer.roots())
    };
    let checks = examine(&evidence, NOW).unwrap();
    assert_eq!(checks.len(), 8);
    for check in &checks {
        assert_eq!(check.result, Verdict::Ok, "{check:?}");
        assert!(!check.detail.is_empty());
    }
}

#[test]
fn each_bad_leaf_is_found_under_its_own_name() {
    let forge = Forge::new();
    let of = |leaf: CertificateDer<'static>| findings(&evidence(&[leaf], &forge.roots()), NOW);
    let names = |names: Vec<rcgen::SanType>| of(forge.leaf(|p| p.subject_alt_names = names));
    let own = "spiffe://phalanx.local/ns/arena/sa/battle";

    assert!(of(forge.leaf(|_| ())).is_empty());
    assert_eq!(of(Forge::new().leaf(|_| ())), ["chain: unknown_ca"]);
    assert_eq!(
        of(forge.leaf(|p| p.not_after = date(NOW.minus(HOUR / 2)))),
        ["dates: expired"]
    );
    assert_eq!(
        of(forge.leaf(|p| p.not_before = date(NOW.plus(HOUR / 2)))),
        ["dates: not_yet_valid"]
    );
    assert_eq!(
        of(forge.leaf(|p| p.not_before = date(NOW.minus(10 * HOUR)))),
        ["dates: renewal_due"]
    );
    assert_eq!(
        of(forge.leaf(|p| p.extended_key_usages = vec![Eku::ServerAuth])),
        ["purpose: missing_client_eku"]
    );
    assert_eq!(
        of(forge.leaf(|p| p.extended_key_usages = vec![Eku::ClientAuth])),
        ["purpose: missing_server_eku"]
    );
    assert_eq!(
        of(forge.leaf(|p| p.extended_key_usages = vec![])),
        ["purpose: missing_server_eku"]
    );
    assert_eq!(names(vec![]), ["names: no_spiffe_id"]);
    assert_eq!(names(vec![dns_name("battle")]), ["names: no_spiffe_id"]);
    assert_eq!(
        names(vec![uri_name("https://a/b")]),
        ["names: no_spiffe_id"]
    );
    assert_eq!(
        names(vec![uri_name(own), uri_name("spiffe://x/ns/a/sa/b")]),
        ["names: several_spiffe_ids"]
    );
    assert_eq!(
        names(vec![uri_name(own), dns_name("*.arena.svc.mesh")]),
        ["names: wildcard_name"]
    );
    for foreign in [
        "shop.arena.svc.mesh",
        "battle.other.svc.mesh",
        "battle.internal",
        "battle-.internal",
        "example.com",
    ] {
        let found = names(vec![uri_name(own), dns_name(foreign)]);
        assert_eq!(found, ["names: foreign_name"], "{foreign}");
    }
    let mine = ["battle.arena.svc.mesh", "battle-az1.internal"].map(dns_name);
    assert!(names([vec![uri_name(own)], mine.to_vec()].concat()).is_empty());
}

#[test]
fn several_things_that_are_wrong_are_all_named() {
    let forge = Forge::new();
    let wrong = Forge::new().leaf(|p| {
        p.not_after = date(NOW.minus(HOUR / 2));
        p.subject_alt_names = vec![dns_name("battle")];
        p.extended_key_usages = vec![];
    });
    let chain = [wrong];
    let key = Key::generate(KeyKind::default()).unwrap();
    let roots = forge.roots();
    let evidence = Evidence {
        possession: Possession::Key(&key),
        ..evidence(&chain, &roots)
    };
    assert_eq!(
        findings(&evidence, NOW),
        [
            "chain: unknown_ca",
            "key: key_mismatch",
            "names: no_spiffe_id",
            "dates: expired",
            "purpose: missing_server_eku"
        ]
    );
}

#[test]
fn another_than_expected_is_found() {
    let (issuer, issued, _) = issued();
    let as_expected = |text: &str| {
        let expected: SpiffeId = text.parse().unwrap();
        let evidence = Evidence {
            expected: Some(&expected),
            ..evidence(&issued.chain, issuer.roots())
        };
        findings(&evidence, NOW)
    };
    assert!(as_expected("spiffe://phalanx.local/ns/arena/sa/battle").is_empty());
    assert_eq!(
        as_expected("spiffe://phalanx.local/ns/arena/sa/shop"),
        ["names: wrong_name"]
    );
    assert_eq!(
        as_expected("spiffe://elsewhere/ns/arena/sa/battle"),
        ["names: wrong_trust_domain"]
    );
}

#[test]
fn an_expired_authority_is_found() {
    let (issuer, issued, _) = issued();
    let late = NOW.plus(2 * YEAR);
    let found = findings(&evidence(&issued.chain, issuer.roots()), late);
    assert_eq!(found, ["dates: expired"]);
    let forge = Forge::new();
    let long = forge.leaf(|p| p.not_after = date(NOW.plus(3 * YEAR)));
    let found = findings(&evidence(&[long], &forge.roots()), late);
    assert!(
        found.contains(&"dates: issuer_expired".to_owned()),
        "{found:?}"
    );
}

#[test]
fn what_is_revoked_is_found_on_the_list_and_in_the_response() {
    let (issuer, issued, _) = issued();
    let serial = issued.record.serial.clone();
    let (at, reason) = (NOW, Reason::KeyCompromise);
    let revoked = [Revoked { serial, at, reason }];
    let crl = build_crl(issuer.ca(), &revoked, 1, NOW, HOUR).unwrap();
    let responder = Responder::try_new([issuer.ca().clone()], HOUR).unwrap();
    let status = Status::Revoked { at, reason };
    let staple = responder.staple(&issued.chain[0], status, NOW).unwrap();
    let with = |crls, staple, ocsp| Evidence {
        crls,
        staple,
        ocsp,
        ..evidence(&issued.chain, issuer.roots())
    };
    let all = with(
        Answer::Got(vec![crl.clone()]),
        Answer::Got(staple.clone()),
        Answer::Got(staple.clone()),
    );
    assert_eq!(
        findings(&all, NOW),
        ["staple: revoked", "ocsp: revoked", "crl: revoked"]
    );
    let damaged = with(
        Answer::Got(vec![b"x".to_vec()]),
        Answer::Got(b"x".to_vec()),
        Answer::Failed("nobody listens".into()),
    );
    assert_eq!(
        findings(&damaged, NOW),
        [
            "staple: bad_staple",
            "ocsp: ocsp_unreachable",
            "crl: bad_crl"
        ]
    );
    let good = responder
        .staple(&issued.chain[0], Status::Good, NOW)
        .unwrap();
    let empty = build_crl(issuer.ca(), &[], 2, NOW, HOUR).unwrap();
    let old = with(Answer::Got(vec![empty]), Answer::Got(good), Answer::Nothing);
    assert_eq!(
        findings(&old, NOW.plus(2 * HOUR)),
        ["staple: stale_staple", "crl: stale_crl"]
    );
}

#[test]
fn who_does_not_hold_the_key_is_found() {
    let (issuer, issued, _) = issued();
    let evidence = Evidence {
        possession: Possession::Handshake { proven: false },
        staple: Answer::Nothing,
        ..evidence(&issued.chain, issuer.roots())
    };
    assert_eq!(findings(&evidence, NOW), ["key: bad_proof"]);
}

#[test]
fn a_description_says_who_by_whom_until_when_and_where_to_ask() {
    let (issuer, issued, _) = issued();
    let about = Description::of(&issued.chain[0]).unwrap();
    assert_eq!(
        about.id.as_deref(),
        Some("spiffe://phalanx.local/ns/arena/sa/battle")
    );
    assert_eq!(about.serial, issued.record.serial.to_string());
    assert_eq!(about.key, "ECDSA P-256");
    assert_eq!(about.purposes, ["server", "client"]);
    assert_eq!(about.issuer, issuer.ca().cert().subject());
    assert_eq!(
        about.ocsp_url.as_deref(),
        Some("http://127.0.0.1:15082/ocsp")
    );
    assert_eq!(about.crl_url.as_deref(), Some("http://127.0.0.1:15082/crl"));
    let bare = Forge::new().leaf_of(&KeyPair::generate().unwrap(), |p| {
        p.subject_alt_names = vec![dns_name("x")]
    });
    let about = Description::of(&bare).unwrap();
    assert_eq!((about.id, about.ocsp_url), (None, None));
    assert!(Description::of(b"x").is_err());
}

#[test]
fn the_first_seconds_below_a_third_are_late() {
    assert!(!is_late(72 * HOUR, 24 * HOUR));
    assert!(is_late(72 * HOUR, 24 * HOUR - Duration::from_secs(1)));
    assert!(!is_late(90 * 24 * HOUR, 25 * HOUR));
    assert!(is_late(HOUR, HOUR / 4));
}
