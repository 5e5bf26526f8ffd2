use super::*;
use crate::revocation::Revocations;
use crate::tests::*;
use crate::verifier::{self, Expected, Policy, Refusal, Role};

fn seen(authority: &Authority, leaf: &crate::issuer::Issued) -> Result<(), Refusal> {
    let policy = Policy::new(Role::Server, Expected::trust_domain(domain()));
    verifier::verify(
        &leaf.chain,
        &[],
        authority.roots(),
        &Revocations::default(),
        &policy,
        NOW,
    )
    .map(|_| ())
}

#[test]
fn a_root_is_replaced_without_a_refused_leaf() {
    let steady = Authority::new(issuer());
    let old = leaf(steady.active(), "battle", HOUR, NOW).0;
    let overlap = steady.begin(issuer(), NOW).unwrap();
    assert_eq!(
        leaf(overlap.active(), "battle", HOUR, NOW).0.record.issuer,
        old.record.issuer,
        "the old one signs"
    );
    assert!(matches!(
        overlap.switch(3, NOW),
        Err(AuthorityError::Untrusting { peers: 3 })
    ));
    let switched = overlap.switch(0, NOW).unwrap();
    let new = leaf(switched.active(), "battle", HOUR, NOW).0;
    assert_ne!(new.record.issuer, old.record.issuer);
    assert_eq!(
        seen(&overlap, &new),
        Ok(()),
        "peers that trust both take the new leaf"
    );
    assert_eq!(seen(&switched, &old), Ok(()), "and the old one goes on");
    assert_eq!(switched.issuers().count(), 2);
    assert!(matches!(
        switched.finish(1, NOW),
        Err(AuthorityError::Outstanding { leaves: 1 })
    ));
    let done = switched.finish(0, NOW).unwrap();
    assert_eq!(seen(&done, &new), Ok(()));
    assert_eq!(seen(&done, &old), Err(Refusal::UnknownCa));
}

#[test]
fn steps_out_of_turn_are_refused() {
    let steady = Authority::new(issuer());
    assert!(matches!(
        steady.switch(0, NOW),
        Err(AuthorityError::Phase {
            phase: Phase::Steady
        })
    ));
    assert!(matches!(
        steady.finish(0, NOW),
        Err(AuthorityError::Phase { .. })
    ));
    assert!(matches!(
        steady.begin((**steady.active()).clone(), NOW),
        Err(AuthorityError::SameRoot)
    ));
    let overlap = steady.begin(issuer(), NOW).unwrap();
    assert!(matches!(
        overlap.begin(issuer(), NOW),
        Err(AuthorityError::Phase { .. })
    ));
    assert!(overlap.abort().unwrap().roots().is_same(steady.roots()));
    assert!(matches!(
        overlap.switch(0, NOW).unwrap().abort(),
        Err(AuthorityError::Phase { .. })
    ));
}

#[test]
fn an_intermediate_is_replaced_under_the_same_root_only() {
    let root = root();
    let make = || root.intermediate(Default::default(), NOW, YEAR).unwrap();
    let first = Authority::new(make());
    let second = first.replace_intermediate(make(), NOW).unwrap();
    assert_eq!(second.issuers().count(), 2);
    assert!(matches!(
        second.replace_intermediate(issuer(), NOW),
        Err(AuthorityError::Issue(_))
    ));
}

#[test]
fn a_restart_in_the_middle_of_a_rotation_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let load = || Authority::load(dir.path(), &domain(), NOW).unwrap();
    assert!(load().is_none());
    let steady = Authority::new(issuer());
    let overlap = steady.begin(issuer(), NOW).unwrap();
    let switched = overlap.switch(0, NOW).unwrap();
    let done = switched.finish(0, NOW).unwrap();
    for authority in [steady, overlap, switched, done] {
        authority.save(dir.path()).unwrap();
        let again = load().unwrap();
        assert_eq!(again.phase(), authority.phase());
        assert_eq!(again.active().key_hex(), authority.active().key_hex());
        assert!(again.roots().is_same(authority.roots()));
        assert_eq!(again.issuers().count(), authority.issuers().count());
    }
}

#[test]
fn an_authority_signs_within_a_mesh_only_if_that_trusts_it() {
    let (ours, other) = (Authority::new(issuer()), issuer());
    let both = ours.roots().and(other.roots()).unwrap();
    let within = ours.within(both.clone(), NOW).unwrap();
    assert!(within.roots().is_same(&both));
    let refused = ours.within(other.roots().clone(), NOW);
    assert!(matches!(
        refused,
        Err(AuthorityError::Issue(IssueError::Probe { .. }))
    ));
    // One whose root is another control plane's becomes possible by that.
    assert!(ours.replace_intermediate(other.clone(), NOW).is_err());
    let replaced = within.replace_intermediate(other, NOW).unwrap();
    assert_eq!(
        seen(&replaced, &leaf(replaced.active(), "battle", HOUR, NOW).0),
        Ok(())
    );
}
