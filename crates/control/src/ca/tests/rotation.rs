//! A root is replaced: who is waited for, and what a crash in the middle leaves.

use super::*;
use crate::ca::RotationPhase::{Overlap, Steady, Switched};
use crate::ca::record::{ROTATION, Step};
use crate::ca::rotate::SETTLE;

/// A sidecar on a stream of trust.
struct Follower {
    ca: Ca,
    stream: u64,
}

impl Follower {
    fn of(ca: &Ca, issued: &Issued) -> Self {
        let record = &issued.record;
        let known = (record.id.clone(), record.serial.clone());
        let stream = ca.peers().open(Some(known)).unwrap();
        Self {
            ca: ca.clone(),
            stream,
        }
    }

    fn confirms(&self) {
        let bundle = self.ca.mesh().bundle().to_owned();
        self.ca.peers().said(self.stream, None, Some(&bundle), "");
    }

    fn leaves(self) {
        self.ca.peers().close(self.stream);
    }
}

#[tokio::test]
async fn everybody_who_has_a_certificate_is_waited_for() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let (near, far) = (leaf(&ca, "battle").await, leaf(&ca, "match").await);
    let follower = Follower::of(&ca, &near);
    follower.confirms();
    let status = ca.rotate_begin("tester").await.unwrap();
    assert_eq!(status.phase, Overlap);
    assert_eq!(ca.roots().iter().count(), 2);
    assert!(ca.own().roots().unwrap().is_same(&ca.roots()));
    for _ in 0..3 {
        ca.progress().await.unwrap();
    }
    let status = ca.rotation();
    assert_eq!(
        (status.phase, status.untrusting, status.connected),
        (Overlap, 2, 1)
    );
    let first = &status.waiting[0];
    assert_eq!(
        (&first.serial, first.plane.as_deref()),
        (&near.record.serial, Some("a"))
    );
    // Connected and unwilling holds up an operator too.
    let refused = ca.rotate_switch("tester").await;
    assert!(
        matches!(refused, Err(CaError::Untrusting { peers: 1, .. })),
        "{refused:?}"
    );
    follower.confirms();
    ca.progress().await.unwrap();
    let status = ca.rotation();
    assert_eq!((status.untrusting, status.connected), (1, 0));
    assert_eq!(status.waiting[0].serial, far.record.serial);
    // The other one is away. By itself it waits, an operator need not.
    ca.progress().await.unwrap();
    assert_eq!(ca.rotation().phase, Overlap);
    // Nor need he, once who was connected before a restart has had the time to come back.
    assert!(ca.rotation().settling);
    let refused = ca.rotate_switch("tester").await;
    assert!(
        matches!(refused, Err(CaError::Settling { .. })),
        "{refused:?}"
    );
    plane.clock.advance(SETTLE);
    let status = ca.rotate_switch("tester").await.unwrap();
    assert_eq!(status.phase, Switched);
    // The two, and nobody else: our own is renewed under the new root.
    assert_eq!(status.outstanding, 2);
    let new = leaf(&ca, "battle").await;
    assert_ne!(new.record.issuer, near.record.issuer);
    for issued in [&near, &new] {
        assert!(see(issued, &ca.roots(), plane.now()).is_ok());
    }
    let refused = ca.rotate_finish("tester").await;
    assert!(
        matches!(refused, Err(CaError::Outstanding { leaves: 2, .. })),
        "{refused:?}"
    );
    let target = Target::Serials(vec![far.record.serial.clone()]);
    ca.revoke(&target, Reason::Superseded, "tester")
        .await
        .unwrap();
    assert_eq!(ca.rotation().outstanding, 1);
    plane.clock.advance(73 * HOUR);
    ca.tend_own().await.unwrap();
    ca.progress().await.unwrap();
    assert_eq!(ca.rotation().phase, Steady);
    assert_eq!(ca.roots().iter().count(), 1);
    let new = leaf(&ca, "battle").await;
    assert!(see(&new, &ca.roots(), plane.now()).is_ok());
    ca.progress().await.unwrap();
    let said = plane.store.list(crate::ca::record::TRUSTING).await.unwrap();
    assert!(said.entries.is_empty(), "what was said of it is forgotten");
    follower.leaves();
}

#[tokio::test]
async fn it_goes_on_by_itself_when_all_are_there() {
    let mut plane = Plane::first().await;
    plane.config.leaf_ttl = Duration::from_secs(6);
    let ca = plane.open().await;
    let first = leaf(&ca, "battle").await;
    let follower = Follower::of(&ca, &first);
    ca.rotate_begin("tester").await.unwrap();
    follower.confirms();
    ca.progress().await.unwrap();
    assert_eq!(ca.rotation().phase, Switched);
    let (_, csr) = request(&workload("battle"));
    let second = ca.renew(&peer(&ca, &first), &csr).await.unwrap();
    ca.progress().await.unwrap();
    assert_eq!(ca.rotation().phase, Switched, "the old one lives");
    plane.clock.advance(Duration::from_secs(5));
    ca.tend_own().await.unwrap();
    let (_, csr) = request(&workload("battle"));
    let third = ca.renew(&peer(&ca, &second), &csr).await.unwrap();
    plane.clock.advance(Duration::from_secs(2));
    ca.progress().await.unwrap();
    assert_eq!(ca.rotation().phase, Steady);
    assert!(see(&third, &ca.roots(), plane.now()).is_ok());
}

#[tokio::test]
async fn a_renewed_certificate_speaks_for_the_one_before() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let first = leaf(&ca, "battle").await;
    ca.rotate_begin("tester").await.unwrap();
    ca.progress().await.unwrap();
    assert_eq!(ca.rotation().untrusting, 1);
    let (_, csr) = request(&workload("battle"));
    // It came with the bundle.
    ca.renew(&peer(&ca, &first), &csr).await.unwrap();
    assert_eq!(ca.rotation().untrusting, 0);
}

#[tokio::test]
async fn a_holder_whose_connection_is_older_than_its_certificate_is_one_holder() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let first = leaf(&ca, "battle").await;
    let (_, csr) = request(&workload("battle"));
    let connected = peer(&ca, &first);
    ca.renew(&connected, &csr).await.unwrap();
    let shown = ca.renew(&connected, &csr).await.unwrap();
    leaf(&ca, "battle").await;
    ca.rotate_begin("tester").await.unwrap();
    ca.progress().await.unwrap();
    assert_eq!(ca.rotation().untrusting, 4);
    Follower::of(&ca, &shown).confirms();
    ca.progress().await.unwrap();
    assert_eq!(
        ca.rotation().untrusting,
        1,
        "another instance is another holder"
    );
}

#[tokio::test]
async fn it_can_be_taken_back_until_the_new_root_signs() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let before = ca.roots();
    leaf(&ca, "battle").await;
    assert!(matches!(
        ca.rotate_abort("tester").await,
        Err(CaError::NoRotation)
    ));
    ca.rotate_begin("tester").await.unwrap();
    let again = ca.rotate_begin("other").await;
    assert!(
        matches!(again, Err(CaError::RotationUnderWay { .. })),
        "{again:?}"
    );
    let status = ca.rotate_abort("tester").await.unwrap();
    assert_eq!(status.phase, Steady);
    assert!(ca.roots().is_same(&before));
    assert_eq!(ca.issuers().len(), 1);
    ca.rotate_begin("tester").await.unwrap();
    plane.clock.advance(SETTLE);
    ca.rotate_switch("tester").await.unwrap();
    assert!(matches!(
        ca.rotate_abort("tester").await,
        Err(CaError::Authority(_))
    ));
}

#[tokio::test]
async fn a_restart_in_any_phase_goes_on_there() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let old = leaf(&ca, "battle").await;
    ca.rotate_begin("tester").await.unwrap();
    let ca = plane.open().await;
    assert_eq!(ca.rotation().phase, Overlap);
    assert_eq!(ca.roots().iter().count(), 2);
    assert_eq!(leaf(&ca, "battle").await.record.issuer, old.record.issuer);
    plane.clock.advance(SETTLE);
    ca.rotate_switch("tester").await.unwrap();
    let ca = plane.open().await;
    assert_eq!(ca.rotation().phase, Switched);
    assert_ne!(leaf(&ca, "battle").await.record.issuer, old.record.issuer);
    assert!(see(&old, &ca.roots(), plane.now()).is_ok());
    plane.clock.advance(73 * HOUR);
    let ca = plane.open().await;
    ca.progress().await.unwrap();
    assert_eq!(ca.rotation().phase, Steady);
    let ca = plane.open().await;
    assert_eq!(ca.roots().iter().count(), 1);
    leaf(&ca, "battle").await;
}

/// The files are a step ahead of the store: that is where a crash may leave them.
#[tokio::test]
async fn a_crash_between_files_and_store_is_made_good() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    leaf(&ca, "battle").await;
    let begun = |ca: &Ca| ca.mesh().rotation.clone();
    // Begun in the files, never told.
    let next = crate::ca::place::create_next(&plane.config, plane.now()).unwrap();
    let ahead = ca.authority().begin(next, plane.now()).unwrap();
    crate::ca::place::save(&plane.config, &ahead).unwrap();
    let ca = plane.open().await;
    assert_eq!(ca.rotation().phase, Steady);
    assert_eq!(ca.roots().iter().count(), 1);
    // Switched in the files.
    ca.rotate_begin("tester").await.unwrap();
    let ahead = ca.authority().switch(0, plane.now()).unwrap();
    crate::ca::place::save(&plane.config, &ahead).unwrap();
    let ca = plane.open().await;
    assert_eq!(begun(&ca).unwrap().0.step, Step::Switched);
    // Finished in the files.
    plane.clock.advance(73 * HOUR);
    let ahead = ca.authority().finish(0, plane.now()).unwrap();
    crate::ca::place::save(&plane.config, &ahead).unwrap();
    let ca = plane.open().await;
    assert!(begun(&ca).is_none());
    assert_eq!(ca.roots().iter().count(), 1);
    leaf(&ca, "battle").await;
    // Taken back in the files.
    ca.rotate_begin("tester").await.unwrap();
    let ahead = ca.authority().abort().unwrap();
    crate::ca::place::save(&plane.config, &ahead).unwrap();
    let ca = plane.open().await;
    assert!(begun(&ca).is_none());
    assert_eq!(ca.roots().iter().count(), 1);
    leaf(&ca, "battle").await;
}

#[tokio::test]
async fn every_control_plane_comes_along() {
    let first = Plane::first().await;
    let a = first.open().await;
    let mut second = first.beside("b");
    second.take_intermediate(&a).await;
    let b = second.open().await;
    a.rotate_begin("tester").await.unwrap();
    catch_up(&b).await;
    assert_eq!(b.roots().iter().count(), 2);
    let refused = b.rotate_switch("tester").await;
    assert!(
        matches!(refused, Err(CaError::LedElsewhere { .. })),
        "{refused:?}"
    );
    catch_up(&b).await;
    catch_up(&a).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while a.rotation().phase == Overlap {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", a.rotation());
        catch_up(&b).await;
        catch_up(&a).await;
        a.progress().await.unwrap();
    }
    // B signs under the old root until it gets an intermediate under the new one.
    catch_up(&b).await;
    let old = leaf(&b, "battle").await;
    assert!(see(&old, &a.roots(), first.now()).is_ok());
    second.take_intermediate(&a).await;
    b.tend_outside(&mut None).await.unwrap();
    let new = leaf(&b, "battle").await;
    assert!(see(&new, a.authority().active().roots(), first.now()).is_ok());
    first.clock.advance(73 * HOUR);
    a.tend_own().await.unwrap();
    b.tend_own().await.unwrap();
    catch_up(&a).await;
    a.progress().await.unwrap();
    assert_eq!(a.rotation().phase, Steady, "{:?}", a.rotation());
    catch_up(&b).await;
    assert!(b.roots().is_same(&a.roots()));
    assert_eq!(b.roots().iter().count(), 1);
    leaf(&b, "battle").await;
    assert!(first.store.get(ROTATION).await.unwrap().is_none());
}

#[tokio::test]
async fn an_outside_root_is_replaced_by_what_lies_beside_it() {
    let company = Plane::first().await;
    let mut plane = company.beside("x");
    plane.store = Store::memory().await.unwrap();
    plane.take_intermediate(&company.open().await).await;
    let ca = plane.open().await;
    let refused = ca.rotate_begin("tester").await;
    assert!(
        matches!(refused, Err(CaError::Place(PlaceError::NoNext { .. }))),
        "{refused:?}"
    );
    let mut successor = company.beside("y");
    successor.store = Store::memory().await.unwrap();
    let successor = successor.open().await;
    let files = successor.intermediate("tester").await.unwrap();
    let dir = plane.config.outside.clone().unwrap();
    write_intermediate(&dir.join("next"), &files);
    ca.rotate_begin("tester").await.unwrap();
    plane.clock.advance(SETTLE);
    ca.rotate_switch("tester").await.unwrap();
    let new = leaf(&ca, "battle").await;
    assert!(see(&new, &successor.roots(), plane.now()).is_ok());
    // The files of before still lie there; they take nothing back.
    ca.tend_outside(&mut None).await.unwrap();
    assert_eq!(leaf(&ca, "battle").await.record.issuer, new.record.issuer);
}
