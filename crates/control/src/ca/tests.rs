//! What the authority promises, over stores in memory and on disk, by a clock that is set.

mod attest;
mod rotation;
mod serve;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use phalanx_model::ServiceName;
use phalanx_pki::clock::{Clock, ManualClock, SystemClock, UnixMillis};
use phalanx_pki::csr::{self, Csr};
use phalanx_pki::issuer::{Attestation, IssueError, Issued};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{Name, TrustDomain, Workload};
use phalanx_pki::revocation::{Reason, Revocations};
use phalanx_pki::roots::Roots;
use phalanx_pki::verifier::{self, Expected, Peer, Policy, Refusal, Role};
use phalanx_store::Store;
use tokio_util::sync::CancellationToken;

use super::place::INTERMEDIATE_TTL;
use super::{Ca, CaConfig, CaError, Fault, IssuedQuery, JoinRequest, PlaceError, Proof, Target};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A control plane's directory, with the store and the clock that it shares with others.
struct Plane {
    dir: tempfile::TempDir,
    config: CaConfig,
    store: Store,
    clock: Arc<ManualClock>,
}

impl Plane {
    async fn first() -> Self {
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        Self::of("a", Store::memory().await.unwrap(), clock)
    }

    fn of(name: &str, store: Store, clock: Arc<ManualClock>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = CaConfig {
            dir: dir.path().join("ca"),
            outside: None,
            trust_domain: domain(),
            leaf_ttl: 72 * HOUR,
            names: vec!["localhost".into(), "127.0.0.1".into()],
            ocsp_url: Some("http://127.0.0.1:15082/ocsp".into()),
            crl_url: None,
            jwks: None,
            plane: name.into(),
        };
        Self {
            dir,
            config,
            store,
            clock,
        }
    }

    /// Another one over the same store.
    fn beside(&self, name: &str) -> Self {
        Self::of(name, self.store.clone(), self.clock.clone())
    }

    async fn open(&self) -> Ca {
        self.try_open().await.unwrap()
    }

    async fn try_open(&self) -> Result<Ca, CaError> {
        Ca::open_at(self.config.clone(), self.store.clone(), self.clock.clone()).await
    }

    fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// As an operator does with what `phalanx cert intermediate` gave.
    async fn take_intermediate(&mut self, of: &Ca) {
        let files = of.intermediate("tester").await.unwrap();
        let dir = self.dir.path().join("outside");
        write_intermediate(&dir, &files);
        self.config.outside = Some(dir);
    }
}

fn write_intermediate(dir: &std::path::Path, files: &super::IntermediateFiles) {
    fs::create_dir_all(dir).unwrap();
    for (name, text) in [
        ("root-cert.pem", &files.root_cert),
        ("ca-cert.pem", &files.ca_cert),
        ("ca-key.pem", &*files.ca_key),
        ("cert-chain.pem", &files.cert_chain),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    private(&dir.join("ca-key.pem"));
}

fn private(path: &std::path::Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn domain() -> TrustDomain {
    TrustDomain::parse("phalanx.local").unwrap()
}

fn workload(service: &str) -> Workload {
    Workload::parse(&domain(), "arena", service, None).unwrap()
}

fn operator() -> Attestation {
    Attestation::Operator {
        name: "tester".into(),
    }
}

fn request(workload: &Workload) -> (Key, Csr) {
    let key = Key::generate(KeyKind::default()).unwrap();
    let der = csr::request(&key, workload).unwrap();
    (key, Csr::from_der(&der).unwrap())
}

/// A workload's join with a key of its own.
fn join(workload: &Workload, token: &str, key: &Key) -> JoinRequest {
    JoinRequest {
        proof: Proof::JoinToken(token.to_owned()),
        namespace: workload.id().service.namespace.clone(),
        service: workload.id().service.name.clone(),
        zone: String::new(),
        csr: csr::request(key, workload).unwrap(),
    }
}

fn new_key() -> Key {
    Key::generate(KeyKind::default()).unwrap()
}

fn see(issued: &Issued, roots: &Roots, now: UnixMillis) -> Result<Arc<Peer>, Refusal> {
    let policy = Policy::new(Role::Client, Expected::trust_domain(domain()));
    let none = Revocations::default();
    verifier::verify(&issued.chain, &[], roots, &none, &policy, now)
}

fn peer(ca: &Ca, issued: &Issued) -> Arc<Peer> {
    see(issued, &ca.roots(), ca.now()).unwrap()
}

async fn leaf(ca: &Ca, service: &str) -> Issued {
    let workload = workload(service);
    let (_, csr) = request(&workload);
    ca.issue(&workload, &csr, None, operator()).await.unwrap()
}

/// What others have written.
async fn catch_up(ca: &Ca) {
    let stop = tokio_util::sync::CancellationToken::new();
    let head = ca.0.store.revision();
    let running = tokio::spawn(ca.clone().run(stop.clone()));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while *ca.0.followed.lock().unwrap() < head && ca.0.store.revision() == head {
        assert!(tokio::time::Instant::now() < deadline, "it does not follow");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn what_is_issued_is_in_the_log_and_good_for_its_roots() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let issued = leaf(&ca, "battle").await;
    let peer = peer(&ca, &issued);
    assert_eq!(peer.id, *workload("battle").id());
    let found = ca.issued(&IssuedQuery {
        service: Some(ServiceName::new("arena", "battle")),
        living_only: true,
        ..IssuedQuery::default()
    });
    let [line] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(line.serial, peer.serial);
    assert_eq!(line.names, workload("battle").names());
    assert_eq!(line.attested, operator());
    assert_eq!(line.not_after, peer.not_after);
    // A clock that is a second behind sees it too, and it lives for 72 hours from now.
    assert!(see(&issued, &ca.roots(), UnixMillis(plane.now().0 - 900)).is_ok());
    let early = UnixMillis(plane.now().0 - 3000);
    assert_eq!(see(&issued, &ca.roots(), early), Err(Refusal::NotYetValid));
    let end = plane.now().plus(72 * HOUR);
    assert!(peer.not_after <= end && peer.not_after >= UnixMillis(end.0 - 1000));
}

#[tokio::test]
async fn the_log_survives_a_restart_and_only_grows() {
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    let data = tempfile::tempdir().unwrap();
    let at = || phalanx_store::Config::at(data.path().join("store"));
    let mut plane = Plane::of("a", Store::embedded(at()).await.unwrap(), clock);
    let ca = plane.open().await;
    let first = leaf(&ca, "battle").await;
    let roots = ca.roots();
    drop(ca);
    plane.store.close().await;
    plane.store = Store::embedded(at()).await.unwrap();
    let ca = plane.open().await;
    assert!(ca.roots().is_same(&roots), "the same root");
    leaf(&ca, "match").await;
    let serials: Vec<_> = ca
        .issued(&IssuedQuery::default())
        .into_iter()
        .map(|l| l.serial)
        .collect();
    // Two of workloads, and two of the control plane's own.
    assert_eq!(serials.len(), 4);
    assert!(serials.contains(&first.record.serial));
    // Renewed by what it had before the restart.
    let (_, csr) = request(&workload("battle"));
    let renewed = ca.renew(&peer(&ca, &first), &csr).await.unwrap();
    assert_ne!(renewed.record.serial, first.record.serial);
    let key = super::record::issued_key(&first.record.serial);
    let entry = plane.store.get(&key).await.unwrap().unwrap();
    assert_eq!(entry.version, 1, "no line is written twice");
}

#[tokio::test]
async fn lines_go_a_week_after_their_certificates() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    leaf(&ca, "battle").await;
    let count = |ca: &Ca| {
        let service = Some(ServiceName::new("arena", "battle"));
        ca.issued(&IssuedQuery {
            service,
            ..IssuedQuery::default()
        })
        .len()
    };
    plane.clock.advance(9 * DAY);
    catch_up(&ca).await;
    assert_eq!(count(&ca), 1);
    plane.clock.advance(2 * DAY);
    let page = || async {
        plane
            .store
            .list(super::record::ISSUED)
            .await
            .unwrap()
            .entries
            .len()
    };
    let before = page().await;
    ca.prune().await.unwrap();
    assert_eq!(count(&ca), 0);
    assert!(page().await < before);
}

#[tokio::test]
async fn a_thousand_renewals_at_once_cost_few_transactions() {
    let data = tempfile::tempdir().unwrap();
    let store = phalanx_store::Config::at(data.path());
    let store = Store::embedded(store).await.unwrap();
    let plane = Plane::of("a", store, Arc::new(ManualClock::at(SystemClock.now())));
    let ca = plane.open().await;
    let (_, csr) = request(&workload("battle"));
    let mut peers = Vec::new();
    for _ in 0..100 {
        peers.push(peer(&ca, &leaf(&ca, "battle").await));
    }
    let before = plane.store.revision();
    let groups = plane.store.status().groups;
    let renewals: Vec<_> = (0..1000)
        .map(|n| {
            let (ca, csr, peer) = (ca.clone(), csr.clone(), peers[n % 100].clone());
            tokio::spawn(async move { ca.renew(&peer, &csr).await.map(|i| i.record.serial) })
        })
        .collect();
    let mut serials = std::collections::BTreeSet::new();
    for renewal in renewals {
        serials.insert(renewal.await.unwrap().unwrap());
    }
    assert_eq!(serials.len(), 1000);
    let transactions = plane.store.revision() - before;
    assert!(transactions <= 50, "{transactions}");
    // Each group is one fsync.
    let groups = plane.store.status().groups - groups;
    assert!(groups <= 50, "{groups}");
    println!("1,000 renewals: {transactions} transactions, {groups} groups");
}

#[tokio::test]
async fn a_holder_that_renews_all_the_time_is_refused_and_others_are_not() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let (_, csr) = request(&workload("battle"));
    let mut held = peer(&ca, &leaf(&ca, "battle").await);
    let other = peer(&ca, &leaf(&ca, "battle").await);
    let mut given = 0;
    // By the newest each time: it is the same holder's.
    let refused = loop {
        match ca.renew(&held, &csr).await {
            Ok(issued) => (given, held) = (given + 1, peer(&ca, &issued)),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, CaError::TooOften { .. }), "{refused:?}");
    assert_eq!(
        (given, refused.reason()),
        (super::often::BURST, "too_often")
    );
    ca.renew(&other, &csr).await.unwrap();
    // The log remembers it, by whichever of its certificates it asks.
    drop(ca);
    let ca = plane.open().await;
    let refused = ca.renew(&held, &csr).await.unwrap_err();
    assert!(matches!(refused, CaError::TooOften { .. }), "{refused:?}");
    ca.renew(&other, &csr).await.unwrap();
    plane.clock.advance(HOUR);
    ca.renew(&held, &csr).await.unwrap();
}

#[tokio::test]
async fn what_a_holder_got_of_another_control_plane_counts() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let mut second = plane.beside("b");
    second.take_intermediate(&ca).await;
    let other = second.open().await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(other.clone().run(stop.clone()));
    let (_, csr) = request(&workload("battle"));
    let held = peer(&ca, &leaf(&ca, "battle").await);
    for _ in 0..super::often::BURST {
        ca.renew(&held, &csr).await.unwrap();
    }
    let lines = || other.log().holder(&held.serial).count();
    while lines() <= usize::try_from(super::often::BURST).unwrap() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = other.renew(&held, &csr).await.unwrap_err();
    assert!(matches!(refused, CaError::TooOften { .. }), "{refused:?}");
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn nobody_gets_a_name_that_is_not_its_own() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let battle = workload("battle");
    // Of another service.
    let (_, foreign) = request(&workload("match"));
    let refused = ca.issue(&battle, &foreign, None, operator()).await;
    assert!(matches!(refused, Err(CaError::Csr(_))), "{refused:?}");
    assert_eq!(refused.unwrap_err().fault(), Fault::Denied);
    let leaf = leaf(&ca, "battle").await;
    let refused = ca.renew(&peer(&ca, &leaf), &foreign).await;
    assert!(matches!(refused, Err(CaError::Csr(_))), "{refused:?}");
    // Of another trust domain.
    let elsewhere = TrustDomain::parse("elsewhere.local").unwrap();
    let other = Workload::parse(&elsewhere, "arena", "battle", None).unwrap();
    let (_, csr) = request(&other);
    let refused = ca.issue(&other, &csr, None, operator()).await;
    assert!(
        matches!(refused, Err(CaError::TrustDomain { .. })),
        "{refused:?}"
    );
    // The control plane's.
    let control = Workload::control(&domain()).unwrap();
    let (_, csr) = request(&control);
    let refused = ca.issue(&control, &csr, None, operator()).await;
    assert!(
        matches!(refused, Err(CaError::Reserved { .. })),
        "{refused:?}"
    );
    let refused = ca.issue_with_key(&control, None, operator()).await;
    assert!(matches!(refused, Err(CaError::Reserved { .. })));
    let refused = ca.token(&control, HOUR, "tester").await;
    assert!(matches!(refused, Err(CaError::Reserved { .. })));
    let own = ca.own().credentials().unwrap().peer().clone();
    let refused = ca.renew(&own, &csr).await;
    assert!(
        matches!(refused, Err(CaError::Reserved { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_renewal_keeps_the_zone_and_a_revoked_certificate_renews_nothing() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let zoned = Workload::parse(&domain(), "arena", "battle", Some("az1")).unwrap();
    let (_, csr) = request(&zoned);
    let first = ca.issue(&zoned, &csr, None, operator()).await.unwrap();
    let first = peer(&ca, &first);
    let second = ca.renew(&first, &csr).await.unwrap();
    assert_eq!(second.record.names, zoned.names());
    let line = ca.log().entry(&second.record.serial).unwrap();
    assert_eq!(line.record.replaces.as_ref(), Some(&first.serial));
    let target = Target::Serials(vec![first.serial.clone()]);
    ca.revoke(&target, Reason::KeyCompromise, "tester")
        .await
        .unwrap();
    let refused = ca.renew(&first, &csr).await;
    assert!(
        matches!(refused, Err(CaError::Revoked { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_connection_that_outlived_its_certificate_renews_nothing() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let battle = workload("battle");
    let (_, csr) = request(&battle);
    let issued = ca.issue(&battle, &csr, None, operator()).await.unwrap();
    let known = peer(&ca, &issued);
    plane.clock.set(known.not_after);
    ca.renew(&known, &csr).await.unwrap();
    plane.clock.advance(Duration::from_secs(1));
    let refused = ca.renew(&known, &csr).await;
    assert!(matches!(refused, Err(CaError::Ended { .. })), "{refused:?}");
}

#[tokio::test]
async fn the_own_certificate_has_host_names_and_is_renewed_in_time() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let own = ca.own().credentials().unwrap();
    assert_eq!(own.peer().id, ca.own_id());
    let cert = phalanx_pki::x509::Cert::parse(&own.parts().chain[0]).unwrap();
    for name in ["localhost", "127.0.0.1"] {
        assert!(cert.names.contains(&Name::host(name).unwrap()), "{name}");
    }
    plane.clock.advance(10 * HOUR);
    ca.tend_own().await.unwrap();
    let kept = ca.own().credentials().unwrap();
    assert_eq!(kept.peer().serial, own.peer().serial);
    plane.clock.advance(39 * HOUR);
    ca.tend_own().await.unwrap();
    let renewed = ca.own().credentials().unwrap();
    assert_ne!(renewed.peer().serial, own.peer().serial);
}

#[tokio::test]
async fn keys_are_0600_and_the_root_s_may_be_taken_away() {
    let plane = Plane::first().await;
    drop(plane.open().await);
    let mut keys = Vec::new();
    let mut dirs = vec![plane.config.dir.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => dirs.push(path),
                path if path.to_string_lossy().ends_with("key.pem") => keys.push(path),
                _ => {}
            }
        }
    }
    assert_eq!(keys.len(), 2, "{keys:?}");
    for key in &keys {
        assert_eq!(
            fs::metadata(key).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    let root = keys.iter().find(|k| k.ends_with("root-key.pem")).unwrap();
    let kept = plane.dir.path().join("safe");
    fs::rename(root, &kept).unwrap();
    let ca = plane.open().await;
    leaf(&ca, "battle").await;
    let refused = ca.intermediate("tester").await;
    assert!(
        matches!(
            &refused,
            Err(CaError::Place(PlaceError::RootOffline { .. }))
        ),
        "{refused:?}"
    );
    // The intermediate's end comes nearer: it is said, and goes on working, until the key is back.
    plane.clock.advance(INTERMEDIATE_TTL - 20 * DAY);
    assert!(ca.tend_intermediate().await.is_err());
    leaf(&ca, "battle").await;
    fs::rename(&kept, root).unwrap();
    ca.tend_intermediate().await.unwrap();
    assert!(ca.authority().active().not_after() > plane.now().plus(300 * DAY));
}

#[tokio::test]
async fn an_intermediate_is_replaced_while_whole_lives_still_fit() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let before = ca.authority().active().ca().cert().serial.clone();
    plane.clock.advance(INTERMEDIATE_TTL - 31 * DAY);
    ca.tend_intermediate().await.unwrap();
    assert_eq!(
        ca.authority().active().ca().cert().serial,
        before,
        "not yet"
    );
    let old = leaf(&ca, "battle").await;
    plane.clock.advance(2 * DAY);
    ca.tend_intermediate().await.unwrap();
    let after = ca.authority().active().ca().cert().serial.clone();
    assert_ne!(after, before);
    let new = leaf(&ca, "battle").await;
    for issued in [&old, &new] {
        assert!(see(issued, &ca.roots(), plane.now()).is_ok());
    }
    let whole = plane.now().plus(72 * HOUR);
    assert!(new.record.not_after >= UnixMillis(whole.0 - 1000));
    let known: Vec<_> = ca.issuers().into_iter().map(|i| i.serial).collect();
    assert!(known.contains(&before) && known.contains(&after));
    assert_eq!(
        ca.own().credentials().unwrap().parts().chain[1],
        new.chain[1]
    );
    // And it is still so after a restart.
    let again = plane.open().await;
    assert_eq!(again.authority().active().ca().cert().serial, after);
}

#[tokio::test]
async fn nothing_is_issued_by_an_authority_that_has_expired() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    plane.clock.advance(INTERMEDIATE_TTL + HOUR);
    let workload = workload("battle");
    let (_, csr) = request(&workload);
    let refused = ca.issue(&workload, &csr, None, operator()).await;
    assert!(
        matches!(refused, Err(CaError::Issue(IssueError::Expired { .. }))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn damaged_files_are_named_with_what_helps() {
    let plane = Plane::first().await;
    drop(plane.open().await);
    let index = plane.config.dir.join("authority.json");
    let good = fs::read(&index).unwrap();
    fs::write(&index, b"{]").unwrap();
    let error = plane.try_open().await.err().unwrap();
    let text = super::tend::chain(&error);
    assert!(
        matches!(error, CaError::Place(PlaceError::Damaged { .. })),
        "{text}"
    );
    assert!(
        text.contains(&*plane.config.dir.to_string_lossy()) && text.contains("backup"),
        "{text}"
    );
    fs::write(&index, good).unwrap();
    let key = fs::read_dir(&plane.config.dir).unwrap().flatten();
    let key = key
        .map(|e| e.path().join("ca-key.pem"))
        .find(|k| k.exists())
        .unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let text = super::tend::chain(&plane.try_open().await.err().unwrap());
    assert!(
        text.contains("mode 644") && text.contains("chmod 600"),
        "{text}"
    );
    private(&key);
    fs::write(&key, b"no key").unwrap();
    assert!(plane.try_open().await.is_err());
}

#[tokio::test]
async fn another_trust_domain_than_the_mesh_s_is_refused() {
    let mut plane = Plane::first().await;
    drop(plane.open().await);
    plane.config.trust_domain = TrustDomain::parse("other.local").unwrap();
    let error = plane.try_open().await.err().unwrap();
    assert!(
        matches!(error, CaError::Place(PlaceError::TrustDomain { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("--trust-domain phalanx.local"));
}

#[tokio::test]
async fn a_second_control_plane_needs_an_intermediate_of_the_mesh() {
    let first = Plane::first().await;
    let a = first.open().await;
    let mut second = first.beside("b");
    let error = second.try_open().await.err().unwrap();
    assert!(
        matches!(error, CaError::Place(PlaceError::NoIntermediate { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("cert intermediate"), "{error}");
    // One of another mesh does not do.
    let elsewhere = Plane::first().await;
    second.take_intermediate(&elsewhere.open().await).await;
    let error = second.try_open().await.err().unwrap();
    assert!(
        matches!(error, CaError::Place(PlaceError::ForeignRoot { .. })),
        "{error}"
    );
    second.take_intermediate(&a).await;
    let b = second.open().await;
    assert!(b.roots().is_same(&a.roots()));
    let (of_a, of_b) = (leaf(&a, "battle").await, leaf(&b, "battle").await);
    assert_ne!(of_a.record.issuer, of_b.record.issuer);
    for issued in [&of_a, &of_b] {
        assert!(see(issued, &a.roots(), first.now()).is_ok());
    }
    catch_up(&a).await;
    let all: Vec<_> = a
        .issued(&IssuedQuery::default())
        .into_iter()
        .map(|l| l.serial)
        .collect();
    assert!(
        all.contains(&of_b.record.serial),
        "each sees what the other issued"
    );
    assert_eq!(a.issuers().len(), 2);
    // A certificate of one is renewed by the other.
    let (_, csr) = request(&workload("battle"));
    catch_up(&b).await;
    b.renew(&peer(&a, &of_a), &csr).await.unwrap();
}

#[tokio::test]
async fn two_first_control_planes_at_once_end_with_one_root() {
    let one = Plane::first().await;
    let two = one.beside("b");
    let (a, b) = tokio::join!(one.try_open(), two.try_open());
    let opened = [&a, &b].into_iter().filter(|r| r.is_ok()).count();
    assert_eq!(opened, 1, "{:?} {:?}", a.err(), b.err());
    let roots = one.store.list(super::record::ROOTS).await.unwrap();
    assert_eq!(roots.entries.len(), 1);
}

#[tokio::test]
async fn a_lost_ca_is_replaced_only_when_nobody_has_a_certificate_of_it() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let root = ca.roots();
    leaf(&ca, "battle").await;
    drop(ca);
    fs::remove_dir_all(&plane.config.dir).unwrap();
    let error = plane.try_open().await.err().unwrap();
    assert!(
        matches!(error, CaError::Place(PlaceError::KeysLost { .. })),
        "{error}"
    );
    plane.clock.advance(73 * HOUR);
    let ca = plane.open().await;
    assert!(!ca.roots().is_same(&root));
    assert_eq!(ca.roots().iter().count(), 1);
    leaf(&ca, "battle").await;
}

#[tokio::test]
async fn an_intermediate_from_outside_is_used_and_its_successor_picked_up() {
    let company = Plane::first().await;
    let company_ca = company.open().await;
    let mut plane = Plane::first().await;
    plane.clock.set(company.now());
    plane.take_intermediate(&company_ca).await;
    let ca = plane.open().await;
    assert!(ca.roots().is_same(&company_ca.roots()));
    let before = ca.authority().active().ca().cert().serial.clone();
    let old = leaf(&ca, "battle").await;
    let mut stamp = super::place::outside_stamp(plane.config.outside.as_ref().unwrap());
    ca.tend_outside(&mut stamp).await.unwrap();
    plane.take_intermediate(&company_ca).await;
    ca.tend_outside(&mut None).await.unwrap();
    assert_ne!(ca.authority().active().ca().cert().serial, before);
    assert!(see(&old, &ca.roots(), plane.now()).is_ok());
    assert!(see(&leaf(&ca, "battle").await, &company_ca.roots(), plane.now()).is_ok());
    // One under a root that the mesh does not trust is named, and the one before stays.
    let stranger = Plane::first().await;
    plane.take_intermediate(&stranger.open().await).await;
    let refused = ca.tend_outside(&mut None).await;
    assert!(
        matches!(refused, Err(CaError::Place(PlaceError::ForeignRoot { .. }))),
        "{refused:?}"
    );
    leaf(&ca, "battle").await;
}
