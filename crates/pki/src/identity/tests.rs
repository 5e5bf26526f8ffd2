use super::*;
use crate::tests::*;

use crate::revocation::{CrlError, Link, Listed, Reason, Revoked, TOLD_MAX, build_crl};
use crate::verifier::Expected;
use crate::x509::Serial;

fn policy() -> Policy {
    Policy::new(Role::Client, Expected::trust_domain(domain()))
}

fn lists(issuer: &Issuer, serials: &[&Serial], number: u64) -> Revocations {
    let revoked: Vec<Revoked> = serials
        .iter()
        .map(|s| Revoked {
            serial: (*s).clone(),
            at: NOW,
            reason: Reason::KeyCompromise,
        })
        .collect();
    let crl = build_crl(issuer.ca(), &revoked, number, NOW, HOUR).unwrap();
    Revocations::try_new(&[crl], &issuer.chain(), NOW, SKEW).unwrap()
}

#[test]
fn without_roots_nobody_is_let_in() {
    let identity = Identity::new(Arc::new(crate::clock::ManualClock::at(NOW)));
    let (issued, _) = leaf(&issuer(), "battle", HOUR, NOW);
    assert_eq!(
        identity.verify(&issued.chain, &[], &policy()),
        Err(Refusal::NoRoots)
    );
}

#[test]
fn a_remembered_path_is_still_held_to_time_names_and_lists() {
    let issuer = issuer();
    let (identity, clock) = identity(&issuer, "gateway");
    let (issued, _) = leaf(&issuer, "battle", HOUR, NOW);
    for _ in 0..2 {
        identity.verify(&issued.chain, &[], &policy()).unwrap();
    }
    let other = Policy {
        expected: Expected::ids([id("other")]),
        ..policy()
    };
    assert_eq!(
        identity.verify(&issued.chain, &[], &other),
        Err(Refusal::WrongName)
    );
    clock.advance(2 * HOUR);
    assert_eq!(
        identity.verify(&issued.chain, &[], &policy()),
        Err(Refusal::Expired)
    );
    clock.set(NOW);
    assert!(identity.publish_revocations(lists(&issuer, &[&issued.record.serial], 1)));
    assert_eq!(
        identity.verify(&issued.chain, &[], &policy()),
        Err(Refusal::Revoked)
    );
}

#[test]
fn a_remembered_path_ends_with_its_root() {
    let (old, new) = (issuer(), issuer());
    let (identity, _) = identity(&new, "gateway");
    identity
        .publish_roots(new.roots().and(old.roots()).unwrap())
        .unwrap();
    let (issued, _) = leaf(&old, "battle", HOUR, NOW);
    identity.verify(&issued.chain, &[], &policy()).unwrap();
    identity.publish_roots(new.roots().clone()).unwrap();
    assert_eq!(
        identity.verify(&issued.chain, &[], &policy()),
        Err(Refusal::UnknownCa)
    );
}

#[test]
fn roots_that_would_cut_ourselves_off_are_refused_and_the_old_stay() {
    let issuer = issuer();
    let (identity, _) = identity(&issuer, "gateway");
    let refused = identity
        .publish_roots(super::tests::issuer_roots())
        .unwrap_err();
    assert!(matches!(
        refused,
        CredentialsError::Refused(Refusal::UnknownCa)
    ));
    assert!(identity.roots().unwrap().is_same(issuer.roots()));
}

fn issuer_roots() -> Roots {
    issuer().roots().clone()
}

#[test]
fn an_open_connection_of_a_revoked_peer_is_found() {
    let issuer = issuer();
    let (identity, clock) = identity(&issuer, "gateway");
    let (issued, _) = leaf(&issuer, "battle", HOUR, NOW);
    let peer = identity.verify(&issued.chain, &[], &policy()).unwrap();
    assert_eq!(identity.recheck(&peer), Ok(()));
    clock.advance(2 * HOUR);
    assert_eq!(
        identity.recheck(&peer),
        Ok(()),
        "expiry closes no open connection"
    );
    identity.publish_revocations(lists(&issuer, &[&issued.record.serial], 1));
    assert_eq!(identity.recheck(&peer), Err(Refusal::Revoked));
}

#[test]
fn a_replayed_list_is_not_taken_and_one_signed_again_ends_no_session() {
    let issuer = issuer();
    let (identity, _) = identity(&issuer, "gateway");
    let serial = Serial::random().unwrap();
    assert!(identity.publish_revocations(lists(&issuer, &[&serial], 5)));
    let epoch = identity.epoch();
    assert!(!identity.publish_revocations(lists(&issuer, &[], 4)));
    assert!(identity.publish_revocations(lists(&issuer, &[&serial], 6)));
    assert_eq!(identity.epoch(), epoch);
    assert!(identity.publish_revocations(lists(&issuer, &[], 7)));
    assert_eq!(identity.epoch(), epoch + 1);
}

#[test]
fn the_table_of_paths_is_bounded() {
    let (identity, _) = identity(&issuer(), "gateway");
    let (issued, _) = leaf(&issuer(), "battle", HOUR, NOW);
    let path = identity.credentials().unwrap();
    let chain = &path.parts().chain;
    identity.verify(chain, &[], &policy()).unwrap();
    let known = identity
        .paths
        .lock()
        .unwrap()
        .known
        .values()
        .next()
        .unwrap()
        .clone();
    for n in 0..PATHS_MAX + 10 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        identity.remember(identity.state.load().trust, key, known.clone());
    }
    assert!(identity.paths.lock().unwrap().known.len() <= PATHS_MAX);
    assert_eq!(
        identity.verify(&issued.chain, &[], &policy()),
        Err(Refusal::UnknownCa),
        "failures are not remembered"
    );
}

#[tokio::test]
async fn each_publication_is_told() {
    let issuer = issuer();
    let (identity, _) = identity(&issuer, "gateway");
    let mut changes = identity.changes();
    identity.publish(credentials(&issuer, "gateway", NOW));
    changes.changed().await.unwrap();
}

#[test]
fn who_is_revoked_by_word_is_refused_until_a_list_decides() {
    let issuer = issuer();
    let (identity, _) = identity(&issuer, "gateway");
    let (issued, _) = leaf(&issuer, "battle", HOUR, NOW);
    let peer = identity.verify(&issued.chain, &[], &policy()).unwrap();
    let link = peer.links[0].clone();
    let none = lists(&issuer, &[], 1);
    let told = none.with_told([link.clone()]).unwrap();
    assert_eq!((told.len(), told.told().count()), (1, 1));
    let epoch = identity.epoch();
    assert!(identity.publish_revocations(told.clone()));
    assert_eq!(identity.epoch(), epoch + 1, "no session is resumed");
    assert_eq!(identity.recheck(&peer), Err(Refusal::Revoked));
    assert_eq!(
        identity.verify(&issued.chain, &[], &policy()),
        Err(Refusal::Revoked)
    );
    // Also without any list of that issuer.
    let bare = Revocations::default().with_told([link.clone()]).unwrap();
    assert_eq!(bare.ask(&link, NOW, SKEW), Listed::Revoked);
    // A list has it: the word is let go.
    let listed = lists(&issuer, &[&link.serial], 2);
    assert_eq!(listed.with_told([link]).unwrap().told().count(), 0);
    // It was taken back.
    assert!(identity.publish_revocations(told.with_told([]).unwrap()));
    assert_eq!(identity.recheck(&peer), Ok(()));
}

#[test]
fn what_is_told_is_bounded() {
    let link = |n: usize| Link {
        issuer_key: [0; 32],
        serial: Serial::parse(&format!("{:x}", n + 1)).unwrap(),
    };
    let none = Revocations::default();
    assert!(none.with_told((0..TOLD_MAX).map(link)).is_ok());
    let refused = none.with_told((0..=TOLD_MAX).map(link));
    assert!(matches!(refused, Err(CrlError::TooManyTold)));
}
