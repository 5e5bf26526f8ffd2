use super::*;
use crate::clock::UnixMillis;
use crate::tests::*;

use crate::ocsp::{Responder, Status};
use crate::revocation::Reason;

fn parts(issuer: &Issuer, service: &str) -> Parts {
    let (issued, key) = leaf(issuer, service, HOUR, NOW);
    Parts {
        chain: issued.chain,
        key,
        staple: None,
        roots: issuer.roots().clone(),
    }
}

fn made(parts: Parts, now: UnixMillis) -> Result<Credentials, CredentialsError> {
    Credentials::try_new(parts, &workload("battle"), now)
}

#[test]
fn only_a_set_that_peers_would_take_comes_to_be() {
    let (issuer, other) = (issuer(), issuer());
    assert!(made(parts(&issuer, "battle"), NOW).is_ok());
    let refused = |change: &dyn Fn(&mut Parts), now| {
        let mut parts = parts(&issuer, "battle");
        change(&mut parts);
        made(parts, now).unwrap_err()
    };
    let why = |error: CredentialsError| match error {
        CredentialsError::Refused(reason) => reason,
        other => panic!("{other}"),
    };
    let other_key = parts(&other, "battle").key;
    let mismatch = refused(&|p| p.key = other_key.clone(), NOW);
    assert!(matches!(mismatch, CredentialsError::KeyMismatch));
    assert_eq!(
        why(refused(&|p| p.roots = other.roots().clone(), NOW)),
        Refusal::UnknownCa
    );
    assert_eq!(
        why(refused(&|p| p.chain.truncate(1), NOW)),
        Refusal::UnknownCa
    );
    assert_eq!(
        why(refused(&|p| p.chain.clear(), NOW)),
        Refusal::NoCertificate
    );
    assert_eq!(why(refused(&|_| (), NOW.plus(2 * HOUR))), Refusal::Expired);
    assert_eq!(
        why(refused(&|_| (), NOW.minus(HOUR / 60))),
        Refusal::NotYetValid
    );
    let foreign = made(parts(&issuer, "gateway"), NOW).unwrap_err();
    assert!(
        matches!(foreign, CredentialsError::ForeignName { .. }),
        "{foreign}"
    );
}

#[test]
fn a_staple_is_checked_first_and_left_out_when_it_is_stale() {
    let issuer = issuer();
    let responder = Responder::try_new([issuer.ca().clone()], HOUR / 4).unwrap();
    let plain = made(parts(&issuer, "battle"), NOW).unwrap();
    let staple = |status| {
        responder
            .staple(&plain.parts().chain[0], status, NOW)
            .unwrap()
    };
    let stapled = plain.with_staple(staple(Status::Good), NOW).unwrap();
    assert!(stapled.certified(NOW).ocsp.is_some());
    assert!(stapled.certified(NOW.plus(HOUR / 4)).ocsp.is_none());
    let revoked = Status::Revoked {
        at: NOW,
        reason: Reason::Superseded,
    };
    let refused = plain.with_staple(staple(revoked), NOW).unwrap_err();
    assert!(matches!(
        refused,
        CredentialsError::Staple(StapleError::Revoked)
    ));
}

#[test]
fn files_keep_a_set_and_its_secret() {
    let dir = tempfile::tempdir().unwrap();
    let own = credentials(&issuer(), "battle", NOW);
    own.save(dir.path()).unwrap();
    let again = Credentials::load(dir.path(), &workload("battle"), NOW).unwrap();
    assert_eq!(again.peer(), own.peer());
    let mode = std::os::unix::fs::MetadataExt::mode(
        &std::fs::metadata(dir.path().join(KEY_FILE)).unwrap(),
    );
    assert_eq!(mode & 0o777, 0o600);
}
