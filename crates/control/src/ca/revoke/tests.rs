use std::path::Path;

use phalanx_pki::clock::{Clock, ManualClock, SystemClock};
use phalanx_pki::csr::{self, Csr};
use phalanx_pki::issuer::Issued;
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{TrustDomain, Workload};
use phalanx_pki::revocation::{Link, Listed, Revocations};
use phalanx_pki::verifier::{Expected, Policy, Role, SKEW};
use phalanx_store::{Store, Txn};
use rustls::pki_types::CertificateDer;

use super::*;
use crate::ca::CaConfig;

const HOUR: Duration = Duration::from_secs(3600);
const WAIT: Duration = Duration::from_secs(10);

struct Bench {
    folder: tempfile::TempDir,
    store: Store,
    clock: Arc<ManualClock>,
}

impl Bench {
    async fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            store: Store::memory().await.unwrap(),
            clock: Arc::new(ManualClock::at(SystemClock.now())),
        }
    }

    async fn plane(&self, name: &str, outside: Option<&Path>) -> Ca {
        let config = CaConfig {
            dir: self.folder.path().join(name),
            outside: outside.map(Path::to_owned),
            trust_domain: domain(),
            leaf_ttl: 72 * HOUR,
            names: Vec::new(),
            ocsp_url: None,
            crl_url: None,
            jwks: None,
            plane: name.to_owned(),
        };
        Ca::open_at(config, self.store.clone(), self.clock.clone())
            .await
            .unwrap()
    }

    /// Another plane, with an intermediate that the first one makes for it.
    async fn second(&self, first: &Ca) -> Ca {
        let files = first.intermediate("test").await.unwrap();
        let dir = self.folder.path().join("outside");
        std::fs::create_dir(&dir).unwrap();
        use phalanx_pki::files::{Access, write};
        let put = |name: &str, text: &str, access| {
            write(&dir.join(name), text.as_bytes(), access).unwrap();
        };
        put("root-cert.pem", &files.root_cert, Access::Public);
        put("ca-cert.pem", &files.ca_cert, Access::Public);
        put("cert-chain.pem", &files.cert_chain, Access::Public);
        put("ca-key.pem", &files.ca_key, Access::Private);
        self.plane("b", Some(&dir)).await
    }
}

fn domain() -> TrustDomain {
    TrustDomain::parse("phalanx.local").unwrap()
}

async fn issue(ca: &Ca, service: &str) -> Issued {
    let workload = Workload::parse(&domain(), "arena", service, None).unwrap();
    let name = "test".to_owned();
    let attested = Attestation::Operator { name };
    let issued = ca.issue_with_key(&workload, None, attested).await;
    issued.unwrap().0
}

fn workload(service: &str) -> Target {
    Target::Workload(ServiceName::new("arena", service))
}

fn serials(issued: &[&Issued]) -> Vec<Serial> {
    issued.iter().map(|i| i.record.serial.clone()).collect()
}

/// What peers would make of the lists that a plane hands out.
fn listed(ca: &Ca) -> Revocations {
    let lists = ca.lists();
    let issuers: Vec<_> = (lists.iter())
        .map(|l| CertificateDer::from(l.issuer.as_slice()))
        .collect();
    Revocations::try_new(&ca.crls(), &issuers, ca.now(), SKEW).unwrap()
}

fn numbers(ca: &Ca) -> Vec<u64> {
    ca.lists().iter().map(|list| list.number).collect()
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let waited = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(WAIT, waited).await.is_ok(), "{what}");
}

#[tokio::test]
async fn what_is_revoked_is_on_the_list_and_in_every_answer_at_once() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let (bad, good) = (issue(&ca, "battle").await, issue(&ca, "battle").await);
    let before = ca.staple(&bad.record.serial).await.unwrap();
    let changes = ca.changes();
    let target = Target::Serials(serials(&[&bad, &bad]));
    let revoked = ca.revoke(&target, Reason::KeyCompromise, "me").await;
    assert_eq!(revoked.unwrap(), serials(&[&bad]));
    assert!(changes.has_changed().unwrap());
    assert_eq!(listed(&ca).len(), 1);
    assert_eq!(ca.own().revocations().len(), 1);
    let record = ca.is_revoked(&bad.record.serial).unwrap();
    assert_eq!(
        (record.reason, record.author.as_str()),
        (Reason::KeyCompromise, "me")
    );
    assert!(ca.is_revoked(&good.record.serial).is_none());
    assert_ne!(ca.staple(&bad.record.serial).await.unwrap(), before);
    assert_eq!(ca.overdue(), None);
    // Once is enough.
    let again = ca.revoke(&target, Reason::Superseded, "me").await.unwrap();
    assert_eq!(again, []);
    assert_eq!(
        ca.is_revoked(&bad.record.serial).unwrap().reason,
        Reason::KeyCompromise
    );
}

/// The next one of the same holder.
async fn renew(ca: &Ca, of: &Issued) -> Issued {
    let policy = Policy::new(Role::Client, Expected::trust_domain(domain()));
    let peer = ca.own().verify(&of.chain, &[], &policy).unwrap();
    let key = Key::generate(KeyKind::default()).unwrap();
    let workload = ca.workload_of(&peer).unwrap();
    let csr = Csr::from_der(&csr::request(&key, &workload).unwrap()).unwrap();
    ca.renew(&peer, &csr).await.unwrap()
}

#[tokio::test]
async fn a_serial_is_one_certificate_and_a_holder_is_all_that_it_has() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let (first, other) = (issue(&ca, "battle").await, issue(&ca, "battle").await);
    let second = renew(&ca, &first).await;
    bench.clock.advance(Duration::from_secs(1));
    let third = renew(&ca, &second).await;
    let [one, two, three, apart] = [&first, &second, &third, &other].map(|i| &i.record.serial);

    // The oldest alone: what its holder shows by now is good.
    let target = Target::Serials(vec![one.clone()]);
    let revoked = ca.revoke(&target, Reason::Superseded, "me").await.unwrap();
    assert_eq!(revoked, std::slice::from_ref(one));
    assert!(!ca.is_revoked_in_use(one) && !ca.is_revoked_in_use(two));
    let mut good = vec![two.clone(), three.clone()];
    good.sort();
    assert_eq!(ca.left_of(std::slice::from_ref(one)), good);

    // All of the holder, by any of them; the newest too, though it was asked for by another.
    let target = Target::Holders(vec![two.clone()]);
    let revoked = ca.revoke(&target, Reason::KeyCompromise, "me").await;
    let mut revoked = revoked.unwrap();
    revoked.sort();
    assert_eq!(revoked, good);
    assert!(ca.is_revoked_in_use(one) && ca.is_revoked_in_use(three));
    assert_eq!(ca.left_of(std::slice::from_ref(one)), []);
    assert_eq!(
        ca.is_revoked(one).unwrap().reason,
        Reason::Superseded,
        "what was revoked before stays as it was"
    );
    // Another one of the same service is not concerned.
    assert!(ca.is_revoked(apart).is_none() && !ca.is_revoked_in_use(apart));
    assert!(!ca.is_revoked_workload(&ServiceName::new("arena", "battle")));
    ca.tend_revocation().await;
    assert!(ca.is_revoked(apart).is_none());
    assert_eq!(listed(&ca).len(), 3);
}

#[tokio::test]
async fn what_slips_past_the_end_of_a_holder_is_found() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let other = bench.second(&ca).await;
    let (first, apart) = (issue(&ca, "battle").await, issue(&ca, "battle").await);
    other.reload().await;
    // Of another plane, whose word is still on its way.
    let second = renew(&other, &first).await;
    let target = Target::Holders(serials(&[&first]));
    let revoked = ca.revoke(&target, Reason::KeyCompromise, "me").await;
    assert_eq!(revoked.unwrap(), serials(&[&first]));
    ca.reload().await;
    ca.tend_revocation().await;
    assert!(ca.is_revoked(&second.record.serial).is_some());
    assert!(ca.is_revoked(&apart.record.serial).is_none());
}

#[tokio::test]
async fn only_a_hold_is_taken_back_or_becomes_more() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let (a, b) = (issue(&ca, "a").await, issue(&ca, "b").await);
    let revoke = async |leaf: &Issued, reason| {
        let target = Target::Serials(serials(&[leaf]));
        ca.revoke(&target, reason, "me").await.unwrap().len()
    };
    assert_eq!(revoke(&a, Reason::CertificateHold).await, 1);
    assert_eq!(revoke(&a, Reason::CertificateHold).await, 0);
    assert_eq!(revoke(&b, Reason::Superseded).await, 1);
    let both = ca.release(&serials(&[&a, &b]), "me").await.unwrap_err();
    assert!(matches!(both, RevokeError::NotHeld { serial } if serial == b.record.serial));
    assert_eq!(listed(&ca).len(), 2);
    assert_eq!(ca.release(&serials(&[&a]), "me").await.unwrap().len(), 1);
    assert_eq!(listed(&ca).len(), 1);
    assert!(ca.is_revoked(&a.record.serial).is_none());
    assert_eq!(revoke(&a, Reason::CertificateHold).await, 1);
    assert_eq!(revoke(&a, Reason::KeyCompromise).await, 1);
    assert!(ca.release(&serials(&[&a]), "me").await.is_err());
}

#[tokio::test]
async fn a_workload_is_revoked_whole_and_may_join_again() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let battle = [issue(&ca, "battle").await, issue(&ca, "battle").await];
    let shop = issue(&ca, "shop").await;
    let mut revoked = ca
        .revoke(&workload("battle"), Reason::CessationOfOperation, "me")
        .await
        .unwrap();
    let mut all = serials(&[&battle[0], &battle[1]]);
    all.sort();
    revoked.sort();
    assert_eq!(revoked, all);
    assert!(ca.is_revoked(&shop.record.serial).is_none());
    bench.clock.advance(Duration::from_millis(5));
    let new = issue(&ca, "battle").await;
    ca.sweep().await;
    assert!(ca.is_revoked(&new.record.serial).is_none());
}

#[tokio::test]
async fn what_was_never_issued_has_expired_or_is_ours_is_not_revoked() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let revoke = async |serial: Serial| {
        let target = Target::Serials(vec![serial]);
        ca.revoke(&target, Reason::Unspecified, "me")
            .await
            .unwrap_err()
    };
    let unknown = revoke(Serial::random().unwrap()).await;
    assert!(matches!(unknown, RevokeError::NotIssued { .. }));
    let own = ca.own().credentials().unwrap().peer().serial.clone();
    assert!(matches!(revoke(own).await, RevokeError::Own));
    let leaf = issue(&ca, "battle").await;
    bench.clock.advance(73 * HOUR);
    assert!(matches!(
        revoke(leaf.record.serial).await,
        RevokeError::Expired { .. }
    ));
    let nobody = ca
        .revoke(&workload("nobody"), Reason::Unspecified, "me")
        .await;
    assert_eq!(nobody.unwrap(), []);
    assert_eq!(listed(&ca).len(), 0);
}

#[tokio::test]
async fn numbers_only_grow_over_restarts_refreshes_and_a_store_set_back() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let mut last = numbers(&ca)[0];
    let mut grows = |ca: &Ca| {
        let now = numbers(ca)[0];
        assert!(now > last, "{now} after {last}");
        last = now;
    };
    for service in ["a", "b", "c"] {
        let leaf = issue(&ca, service).await;
        let target = Target::Serials(serials(&[&leaf]));
        ca.revoke(&target, Reason::Superseded, "me").await.unwrap();
        grows(&ca);
    }
    // Nothing to say, nothing due: the same list.
    let before = ca.crls();
    let again = bench.plane("a", None).await;
    assert_eq!(again.crls(), before);
    assert_eq!(again.own().revocations().len(), 3);
    bench.clock.advance(12 * HOUR - Duration::from_secs(1));
    again.renew_lists().await;
    assert_eq!(again.crls(), before);
    bench.clock.advance(Duration::from_secs(1));
    again.renew_lists().await;
    grows(&again);
    assert_eq!(listed(&again).len(), 3);
    // The lists are lost, the clock goes on.
    for entry in bench.store.list("ca/crls/").await.unwrap().entries {
        bench
            .store
            .commit(Txn::new().delete(entry.key))
            .await
            .unwrap();
    }
    bench.clock.advance(Duration::from_secs(60));
    let later = bench.plane("a", None).await;
    grows(&later);
    assert_eq!(listed(&later).len(), 3);
}

#[tokio::test]
async fn planes_follow_each_other() {
    let bench = Bench::new().await;
    let a = bench.plane("a", None).await;
    let b = bench.second(&a).await;
    let stop = CancellationToken::new();
    let tasks = [a.clone(), b.clone()].map(|ca| tokio::spawn(ca.run(stop.clone())));
    eventually("both lists everywhere", || {
        a.lists().len() == 2 && b.lists().len() == 2
    })
    .await;
    let leaf = issue(&a, "battle").await;
    let serial = leaf.record.serial.clone();
    // Of the other plane: it has the record and not the key.
    eventually("the log", || b.log().entry(&serial).is_some()).await;
    assert!(b.staple(&serial).await.is_none());
    let revoked = b
        .revoke(&workload("battle"), Reason::KeyCompromise, "me")
        .await;
    assert_eq!(revoked.unwrap(), serials(&[&leaf]));
    eventually("the list of the plane that has the key", || {
        listed(&a).len() == 1 && listed(&b).len() == 1
    })
    .await;
    eventually("both planes' own ports", || {
        a.own().revocations().len() == 1 && b.own().revocations().len() == 1
    })
    .await;
    a.release(&[serial], "me").await.unwrap_err();
    stop.cancel();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn two_planes_revoke_the_same_at_once() {
    let bench = Bench::new().await;
    let a = bench.plane("a", None).await;
    // The same authority again, as two processes would have it that were started over one folder.
    let leaves = [issue(&a, "battle").await, issue(&a, "battle").await];
    let b = bench.plane("a", None).await;
    let target = Target::Serials(serials(&[&leaves[0], &leaves[1]]));
    let (one, other) = tokio::join!(
        a.revoke(&target, Reason::Superseded, "a"),
        b.revoke(&target, Reason::KeyCompromise, "b"),
    );
    assert_eq!(one.unwrap().len() + other.unwrap().len(), 2);
    a.revocation().reload_now().await;
    b.revocation().reload_now().await;
    for serial in serials(&[&leaves[0], &leaves[1]]) {
        assert_eq!(a.is_revoked(&serial), b.is_revoked(&serial));
    }
    assert_eq!(a.crls(), b.crls());
    assert_eq!(listed(&a).len(), 2);
}

#[tokio::test]
async fn what_was_renewed_with_a_revoked_certificate_is_revoked_too() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let old = issue(&ca, "battle").await;
    let serial = old.record.serial.clone();
    let workload = Workload::parse(&domain(), "arena", "battle", None).unwrap();
    let target = Target::Serials(vec![serial.clone()]);
    ca.revoke(&target, Reason::KeyCompromise, "me")
        .await
        .unwrap();
    // As another plane would have done that had not heard of it yet.
    bench.clock.advance(Duration::from_millis(50));
    let attested = Attestation::Certificate { serial };
    let slipped = ca
        .issue_with_key(&workload, None, attested)
        .await
        .unwrap()
        .0;
    ca.sweep().await;
    let record = ca.is_revoked(&slipped.record.serial).unwrap();
    assert_eq!(record.reason, Reason::KeyCompromise);
}

#[tokio::test]
async fn damaged_and_forged_lists_are_dropped() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let good = ca.lists();
    let mut forged = (*good[0]).clone();
    let last = forged.der.len() - 1;
    forged.der[last] ^= 1;
    let key = |name: &str| format!("ca/crls/{name}");
    let txn = Txn::new()
        .put(key("aa"), forged.encode())
        .put(key("bb"), "{}")
        .put("ca/revoked/1234", "nothing");
    bench.store.commit(txn).await.unwrap();
    let again = bench.plane("a", None).await;
    assert_eq!(again.lists(), good);
    listed(&again);
}

#[tokio::test]
async fn staples_are_kept_until_half_of_their_life() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let leaf = issue(&ca, "battle").await.record.serial;
    let first = ca.staple(&leaf).await.unwrap();
    ca.renew_staples();
    let own = ca.own().credentials().unwrap().staple().unwrap();
    bench.clock.advance(HOUR);
    assert_eq!(ca.staple(&leaf).await.unwrap(), first);
    assert!(ca.staple(&Serial::random().unwrap()).await.is_none());
    let changes = ca.changes();
    ca.renew_staples();
    assert!(!changes.has_changed().unwrap());
    bench.clock.advance(5 * HOUR);
    ca.renew_staples();
    assert!(changes.has_changed().unwrap());
    assert_ne!(ca.staple(&leaf).await.unwrap(), first);
    let now = ca.own().credentials().unwrap().staple().unwrap();
    assert!(now.next_update > own.next_update);
}

#[tokio::test]
async fn a_record_is_pruned_a_week_after_its_certificate_has_expired() {
    let bench = Bench::new().await;
    let ca = bench.plane("a", None).await;
    let leaf = issue(&ca, "battle").await;
    let target = Target::Serials(serials(&[&leaf]));
    ca.revoke(&target, Reason::Superseded, "me").await.unwrap();
    let prune = async || {
        ca.revocation().prune(ca.now().minus(KEEP), ca.now()).await;
        ca.revocation().reload_now().await;
        ca.is_revoked(&leaf.record.serial).is_some()
    };
    bench.clock.advance(73 * HOUR);
    assert!(prune().await);
    bench.clock.advance(KEEP);
    assert!(!prune().await);
}

#[tokio::test]
async fn whoever_is_revoked_while_the_plane_of_its_issuer_is_down_is_told_until_a_list_has_it() {
    let bench = Bench::new().await;
    let a = bench.plane("a", None).await;
    let leaf = issue(&a, "battle").await;
    let held = issue(&a, "battle").await;
    let issuer_key = listed(&a).lists().next().unwrap().issuer_key;
    let b = bench.second(&a).await;
    b.tend_revocation().await;
    // The first plane does nothing from here on.
    let target = Target::Serials(serials(&[&leaf]));
    let changes = b.changes();
    b.revoke(&target, Reason::KeyCompromise, "me")
        .await
        .unwrap();
    let hold = Target::Serials(serials(&[&held]));
    b.revoke(&hold, Reason::CertificateHold, "me")
        .await
        .unwrap();
    assert!(changes.has_changed().unwrap());
    assert_eq!(listed(&b).len(), 0, "nobody can make that list");
    let link = |issued: &Issued| Link {
        issuer_key,
        serial: issued.record.serial.clone(),
    };
    let mut both = vec![link(&leaf), link(&held)];
    both.sort();
    assert_eq!(b.bundle().told, both);
    let told = b.own().revocations();
    assert_eq!(told.ask(&link(&leaf), b.now(), SKEW), Listed::Revoked);
    b.release(&serials(&[&held]), "me").await.unwrap();
    assert_eq!(b.bundle().told, [link(&leaf)]);
    // It is back, makes its list, and the word is not needed any more.
    a.revocation().reload_now().await;
    a.tend_revocation().await;
    assert_eq!(a.bundle().told, []);
    b.revocation().reload_now().await;
    b.tend_revocation().await;
    assert_eq!(b.bundle().told, []);
    assert_eq!(listed(&b).len(), 1);
    let told = b.own().revocations();
    assert_eq!(told.ask(&link(&leaf), b.now(), SKEW), Listed::Revoked);
}

#[tokio::test]
async fn a_list_from_the_future_keeps_nobody_from_the_others_and_is_made_again() {
    let bench = Bench::new().await;
    let a = bench.plane("a", None).await;
    let leaf = issue(&a, "battle").await;
    let b = bench.second(&a).await;
    // The clock of the first one is an hour ahead while it makes its list.
    bench.clock.advance(HOUR);
    let target = Target::Serials(serials(&[&leaf]));
    a.revoke(&target, Reason::KeyCompromise, "me")
        .await
        .unwrap();
    bench.clock.set(UnixMillis(bench.clock.now().0 - 3_600_000));
    b.revocation().reload_now().await;
    b.tend_revocation().await;
    listed(&b);
    assert_eq!(b.lists().len(), 1);
    assert_eq!(b.bundle().told.len(), 1);
    assert_eq!(b.own().revocations().len(), 1);
    a.tend_revocation().await;
    b.revocation().reload_now().await;
    b.tend_revocation().await;
    assert_eq!((b.lists().len(), b.bundle().told.len()), (2, 0));
    assert_eq!(listed(&b).len(), 1);
}
