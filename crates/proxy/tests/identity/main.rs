//! A sidecar's identity against a real service over a real TLS socket: joined, renewed, kept, followed, refused. The clock
//! is the test's, so that 72 hours take a moment.

mod service;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use phalanx_client::channel::Control;
use phalanx_model::ServiceName;
use phalanx_pki::clock::Clock;
use phalanx_pki::credentials::{Credentials, CredentialsError, Parts};
use phalanx_pki::ocsp::{Responder, Status};
use phalanx_pki::revocation::{Reason, Revoked, build_crl};
use phalanx_proxy::config::{IdentityConfig, Proof, Source};
use phalanx_proxy::identity::{Certificates, IdentityError, Running};
use phalanx_proxy::lasting::Lasting;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use service::{Authority, Book, HOUR, NOW, issuer_of, parts, root, workload};

const PATIENCE: Duration = Duration::from_secs(20);

struct Sidecar {
    dir: tempfile::TempDir,
    address: String,
    clock: Arc<dyn Clock>,
}

impl Sidecar {
    fn of(authority: &Authority) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            address: authority.address.to_string(),
            clock: authority.book.clock.clone(),
        }
    }

    fn kept(&self) -> PathBuf {
        self.dir.path().join("identity")
    }

    /// A join token in a file.
    fn token(&self, text: &str) -> Proof {
        let path = self.dir.path().join("token");
        fs::write(&path, text).unwrap();
        Proof::JoinToken(path)
    }

    fn start(&self, proof: Option<Proof>) -> Running {
        self.open("battle", proof).unwrap()
    }

    fn open(&self, service: &str, proof: Option<Proof>) -> Result<Running, IdentityError> {
        let dir = self.kept();
        self.run(service, Source::Issued { dir, proof })
    }

    fn run(&self, service: &str, source: Source) -> Result<Running, IdentityError> {
        let mut config = IdentityConfig::new(source);
        config.renewal.check = Duration::from_millis(50);
        let service = ServiceName::new("default", service);
        let certificates = Certificates::open(&config, &service, None, self.clock.clone())?;
        let identity = certificates.identity().clone();
        let control = Control::secure_as_workload(&self.address, identity).unwrap();
        Ok(certificates
            .spawn(control, &self.address, &Lasting::default())
            .unwrap())
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}, in vain");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn ready(running: &Running) {
    let mut ready = running.ready();
    let waited = tokio::time::timeout(PATIENCE, ready.wait_for(|ready| *ready)).await;
    assert!(waited.is_ok(), "{:?}", running.shown().not_ready());
}

fn serial(running: &Running) -> String {
    let credentials = running.identity().credentials().unwrap();
    credentials.peer().serial.to_string()
}

fn kept_serial(dir: &Path, now: phalanx_pki::clock::UnixMillis) -> String {
    // Certificate and key are two files: between their swaps they are of two leaves.
    let load = || Credentials::load(dir, &workload("battle"), now);
    let kept = (0..100).find_map(|_| {
        let kept = load();
        if kept.is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        kept.ok()
    });
    kept.unwrap_or_else(|| load().unwrap())
        .peer()
        .serial
        .to_string()
}

fn page(running: &Running) -> Value {
    running.shown().page()
}

fn metrics(running: &Running) -> String {
    let mut out = phalanx_telemetry::metrics::Exposition::new();
    running.shown().metrics(&mut out);
    out.finish()
}

fn confirmed(book: &Book) -> u64 {
    book.said.borrow().version
}

#[tokio::test]
async fn a_sidecar_joins_once_keeps_what_it_got_and_starts_again_from_that() {
    let authority = Authority::start().await;
    let sidecar = Sidecar::of(&authority);
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    assert!(running.shown().not_ready().is_some());
    ready(&running).await;
    assert_eq!(running.shown().not_ready(), None);
    let joined = serial(&running);
    eventually("the set to be kept", || {
        sidecar.kept().join("cert.pem").exists()
    })
    .await;
    drop(running);
    // Neither the control plane nor the token is needed.
    drop(authority);
    let running = sidecar.start(None);
    assert_eq!(serial(&running), joined);
    assert_eq!(running.shown().not_ready(), None);
}

#[tokio::test]
async fn a_token_is_good_for_one_use_and_one_service() {
    let authority = Authority::start().await;
    let text = authority.token("battle");
    let first = Sidecar::of(&authority);
    let running = first.start(Some(first.token(&text)));
    ready(&running).await;
    // Stolen and used again.
    let thief = Sidecar::of(&authority);
    let second = thief.start(Some(thief.token(&text)));
    let says = |running: &Running, what: &str| {
        let why = running.shown().not_ready().unwrap_or_default();
        why.contains(what)
    };
    eventually("the second use to be refused", || {
        says(&second, "used already")
    })
    .await;
    assert!(second.identity().credentials().is_none());
    assert!(metrics(&second).contains("phalanx_certificate_alarm{about=\"renewal\"} 1"));
    // Taken by another service.
    let foreign = Sidecar::of(&authority);
    let proof = foreign.token(&authority.token("battle"));
    let third = foreign.open("gate", Some(proof)).unwrap();
    eventually("another service to be refused", || {
        says(&third, "another service")
    })
    .await;
    assert_eq!(authority.book.joins.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_asked_for_again_with_the_same_key() {
    let authority = Authority::start().await;
    authority.book.answers_lost.store(2, Ordering::SeqCst);
    let sidecar = Sidecar::of(&authority);
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    ready(&running).await;
}

#[tokio::test]
async fn a_control_plane_under_another_root_gets_no_token() {
    let authority = Authority::start().await;
    let impostor = Authority::start().await;
    let sidecar = Sidecar {
        address: impostor.address.to_string(),
        ..Sidecar::of(&authority)
    };
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    eventually("the attempt to fail", || {
        metrics(&running).contains("result=\"failed\"} 2")
    })
    .await;
    assert!(running.identity().credentials().is_none());
    assert_eq!(impostor.book.connections.load(Ordering::SeqCst), 0);
    let why = running.shown().not_ready().unwrap();
    assert!(why.contains("trusted root"), "{why}");
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_ends_for_a_new_key_each_time() {
    let authority = Authority::start().await;
    let (book, sidecar) = (authority.book.clone(), Sidecar::of(&authority));
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    ready(&running).await;
    let mut keys = vec![];
    for _ in 0..4 {
        let before = serial(&running);
        let credentials = running.identity().credentials().unwrap();
        keys.push(credentials.parts().key.spki().to_vec());
        // Of 72 hours, 24 remain.
        book.clock.advance(48 * HOUR + HOUR / 2);
        eventually("a renewal", || serial(&running) != before).await;
        let now = book.clock.now();
        // Kept before it is in force: whoever is killed now can start again.
        assert_eq!(kept_serial(&sidecar.kept(), now), serial(&running));
    }
    keys.dedup();
    assert_eq!(keys.len(), 4);
    assert_eq!(book.joins.load(Ordering::SeqCst), 1);
    // Each was asked for with the one before: the connection never showed one that had ended.
    let asked_with = book.renewed_with.lock().unwrap().clone();
    assert_eq!(asked_with.len(), 4);
    let five = "phalanx_certificate_renewals_total{result=\"ok\"} 5";
    eventually("the count", || metrics(&running).contains(five)).await;
}

#[tokio::test]
async fn a_failed_renewal_keeps_the_old_one_and_alarms_until_one_succeeds() {
    let authority = Authority::start().await;
    let (book, sidecar) = (authority.book.clone(), Sidecar::of(&authority));
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    ready(&running).await;
    let before = serial(&running);
    book.is_down.store(true, Ordering::SeqCst);
    book.clock.advance(49 * HOUR);
    let alarm = "phalanx_certificate_alarm{about=\"renewal\"} 1";
    eventually("the alarm", || metrics(&running).contains(alarm)).await;
    assert_eq!(serial(&running), before);
    assert_eq!(running.shown().not_ready(), None);
    book.is_down.store(false, Ordering::SeqCst);
    eventually("a renewal", || serial(&running) != before).await;
    eventually("the alarm to end", || !metrics(&running).contains(alarm)).await;
    assert!(
        page(&running)["last_error"]
            .as_str()
            .unwrap()
            .contains("test says so")
    );
}

#[tokio::test]
async fn what_expired_while_nobody_was_there_takes_a_new_token() {
    let authority = Authority::start().await;
    let (book, sidecar) = (authority.book.clone(), Sidecar::of(&authority));
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    ready(&running).await;
    eventually("the set to be kept", || {
        sidecar.kept().join("cert.pem").exists()
    })
    .await;
    drop(running);
    book.clock.advance(80 * HOUR);
    assert!(matches!(
        sidecar.open("battle", None),
        Err(IdentityError::Stored { .. })
    ));
    let proof = sidecar.token(&authority.token("battle"));
    let running = sidecar.start(Some(proof));
    ready(&running).await;
    assert_eq!(book.joins.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_service_accounts_token_is_read_again_at_each_use() {
    let authority = Authority::start().await;
    let sidecar = Sidecar::of(&authority);
    let (jwt, roots) = (
        sidecar.dir.path().join("jwt"),
        sidecar.dir.path().join("roots"),
    );
    fs::write(&jwt, "expired").unwrap();
    fs::write(&roots, authority.book.roots.lock().unwrap().to_pem()).unwrap();
    let mut config = IdentityConfig::new(Source::Issued {
        dir: sidecar.kept(),
        proof: Some(Proof::ServiceAccount(jwt.clone())),
    });
    config.roots = Some(roots);
    config.renewal.check = Duration::from_millis(50);
    let battle = ServiceName::new("default", "battle");
    let opened = Certificates::open(&config, &battle, None, sidecar.clock.clone()).unwrap();
    let identity = opened.identity().clone();
    let control = Control::secure_as_workload(&sidecar.address, identity).unwrap();
    let running = opened
        .spawn(control, &sidecar.address, &Lasting::default())
        .unwrap();
    eventually("a refusal", || {
        running
            .shown()
            .not_ready()
            .unwrap_or_default()
            .contains("no such JWT")
    })
    .await;
    fs::write(&jwt, "jwt-of-battle\n").unwrap();
    ready(&running).await;
}

#[tokio::test]
async fn whom_to_trust_is_published_confirmed_and_kept() {
    let authority = Authority::start().await;
    let (book, sidecar) = (authority.book.clone(), Sidecar::of(&authority));
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    ready(&running).await;
    let old = book.issuer.lock().unwrap().clone();
    let incoming = issuer_of(&root(NOW), NOW);
    let both = old.roots().and(incoming.roots()).unwrap();
    let gate = parts(&old, &workload("gate"), NOW);
    let gone = Credentials::try_new(gate, &workload("gate"), NOW).unwrap();
    let revoked = Revoked {
        serial: gone.peer().serial.clone(),
        at: NOW,
        reason: Reason::KeyCompromise,
    };
    let crls = [
        build_crl(old.ca(), &[revoked], 2, NOW, 24 * HOUR).unwrap(),
        build_crl(incoming.ca(), &[], 1, NOW, 24 * HOUR).unwrap(),
    ];
    let version = authority.tell(&both, &crls, &[&old, &incoming]);
    eventually("the confirmation", || confirmed(&book) == version).await;
    assert_eq!(book.said.borrow().error, "");
    assert_eq!(book.said.borrow().serial, serial(&running));
    assert!(running.identity().roots().unwrap().is_same(&both));
    assert!(running.identity().recheck(gone.peer()).is_err());

    // Revoked while nobody can make a list, and taken back.
    let held = Credentials::try_new(parts(&old, &workload("shop"), NOW), &workload("shop"), NOW);
    let held = held.unwrap().peer().clone();
    assert!(running.identity().recheck(&held).is_ok());
    let version = authority.tell_without_list(&[&held.links[0]]);
    eventually("the word", || confirmed(&book) == version).await;
    assert!(running.identity().recheck(&held).is_err());
    assert!(running.identity().recheck(gone.peer()).is_err());
    let version = authority.tell_without_list(&[]);
    eventually("the end of the word", || confirmed(&book) == version).await;
    assert!(running.identity().recheck(&held).is_ok());

    // An older list of the same issuer is no news but a replay.
    let replay = [build_crl(old.ca(), &[], 1, NOW, 24 * HOUR).unwrap()];
    authority.tell(&both, &replay, &[&old]);
    eventually("the refusal", || !book.said.borrow().error.is_empty()).await;
    assert_eq!(confirmed(&book), version);
    assert!(running.identity().recheck(gone.peer()).is_err());
    assert!(metrics(&running).contains("phalanx_certificate_alarm{about=\"trust\"} 1"));

    // A restart knows it without anybody.
    drop(running);
    drop(authority);
    let running = sidecar.start(None);
    assert!(running.identity().roots().unwrap().is_same(&both));
    assert!(running.identity().recheck(gone.peer()).is_err());
    assert_eq!(page(&running)["crls"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn roots_that_leave_out_our_own_are_refused_until_another_certificate_is_there() {
    let authority = Authority::start().await;
    let (book, sidecar) = (authority.book.clone(), Sidecar::of(&authority));
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    ready(&running).await;
    let before = serial(&running);
    let old = book.issuer.lock().unwrap().clone();
    let incoming = issuer_of(&root(NOW), NOW);
    let both = old.roots().and(incoming.roots()).unwrap();
    *book.roots.lock().unwrap() = both.clone();
    let version = authority.tell(&both, &[], &[]);
    eventually("both roots to be trusted", || confirmed(&book) == version).await;
    // The next certificates are of the new root, but ours is not asked to be renewed yet; the old root goes.
    *book.issuer.lock().unwrap() = incoming.clone();
    let version = authority.tell(incoming.roots(), &[], &[]);
    eventually("the new roots to be in force", || {
        confirmed(&book) == version && book.said.borrow().error.is_empty()
    })
    .await;
    assert_ne!(serial(&running), before);
    assert_eq!(book.renewals.load(Ordering::SeqCst), 1);
    assert!(
        running
            .identity()
            .roots()
            .unwrap()
            .is_same(incoming.roots())
    );
}

#[tokio::test]
async fn a_certificate_whose_root_goes_is_renewed_when_the_control_plane_says_so() {
    let authority = Authority::start().await;
    let (book, sidecar) = (authority.book.clone(), Sidecar::of(&authority));
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    ready(&running).await;
    let before = serial(&running);
    let issuer = book.issuer.lock().unwrap().clone();
    authority.tell(issuer.roots(), &[], &[]);
    book.told.send_modify(|told| {
        told.version += 1;
        told.renew = true;
    });
    eventually("another certificate", || serial(&running) != before).await;
    let now = serial(&running);
    eventually("the control plane to hear of it", || {
        book.said.borrow().serial == now
    })
    .await;
    assert_eq!(book.renewals.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_staple_comes_with_the_stream_and_is_shown() {
    let authority = Authority::start().await;
    let (book, sidecar) = (authority.book.clone(), Sidecar::of(&authority));
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    ready(&running).await;
    let issuer = book.issuer.lock().unwrap().clone();
    let now = book.clock.now();
    let responder = Responder::try_new([issuer.ca().clone()], HOUR).unwrap();
    let credentials = running.identity().credentials().unwrap();
    let staple = responder
        .staple(&credentials.parts().chain[0], Status::Good, now)
        .unwrap();
    let version = authority.tell(issuer.roots(), &[], &[]);
    book.told.send_modify(|told| {
        told.version = version + 1;
        told.staple = staple;
    });
    eventually("the staple", || {
        let credentials = running.identity().credentials().unwrap();
        credentials.staple().is_some()
    })
    .await;
    let next_update = &page(&running)["certificate"]["staple"]["next_update"];
    assert!(next_update.is_string(), "{next_update}");
}

#[tokio::test]
async fn the_connection_is_made_anew_before_its_certificate_ends() {
    let authority = Authority::start().await;
    let (book, sidecar) = (authority.book.clone(), Sidecar::of(&authority));
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    ready(&running).await;
    let joined = serial(&running);
    book.clock.advance(49 * HOUR);
    eventually("a renewal", || serial(&running) != joined).await;
    let renewed = serial(&running);
    book.clock.advance(49 * HOUR);
    eventually("another", || serial(&running) != renewed).await;
    let asked_with = book.renewed_with.lock().unwrap().clone();
    assert_eq!(asked_with, [joined, renewed]);
}

#[tokio::test]
async fn files_of_somebody_else_are_followed_and_never_overruled() {
    let authority = Authority::start().await;
    let (book, sidecar) = (authority.book.clone(), Sidecar::of(&authority));
    let dir = sidecar.dir.path().join("given");
    let source = Source::Files { dir: dir.clone() };
    let running = sidecar.run("battle", source).unwrap();
    let why = running.shown().not_ready().unwrap();
    assert!(why.contains("given"), "{why}");
    let issuer = book.issuer.lock().unwrap().clone();
    let set = |parts: Parts| Credentials::try_new(parts, &workload("battle"), NOW).unwrap();
    let first = set(parts(&issuer, &workload("battle"), NOW));
    first.save(&dir).unwrap();
    ready(&running).await;
    let second = set(parts(&issuer, &workload("battle"), NOW));
    second.save(&dir).unwrap();
    let expected = second.peer().serial.to_string();
    eventually("the next set", || serial(&running) == expected).await;
    // A root that these files lack: said, not taken.
    let incoming = issuer_of(&root(NOW), NOW);
    let both = issuer.roots().and(incoming.roots()).unwrap();
    authority.tell(&both, &[], &[]);
    eventually("the refusal", || {
        book.said.borrow().error.contains("lack the root")
    })
    .await;
    assert!(running.identity().roots().unwrap().is_same(issuer.roots()));
    // Nobody renews them.
    book.clock.advance(50 * HOUR);
    let alarm = "phalanx_certificate_alarm{about=\"expiring\"} 1";
    eventually("the alarm", || metrics(&running).contains(alarm)).await;
    assert_eq!(book.joins.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn readers_of_the_directory_never_see_a_key_without_its_certificate() {
    let authority = Authority::start().await;
    let (book, sidecar) = (authority.book.clone(), Sidecar::of(&authority));
    let running = sidecar.start(Some(sidecar.token(&authority.token("battle"))));
    ready(&running).await;
    let dir = sidecar.kept();
    eventually("the set to be kept", || dir.join("cert.pem").exists()).await;
    for _ in 0..10 {
        let before = serial(&running);
        book.clock.advance(49 * HOUR);
        let now = book.clock.now();
        // Whoever opens the link once reads one set. It may be one that has ended meanwhile, never one that doesn't fit.
        eventually("a renewal", || {
            let shown = || fs::canonicalize(dir.join("..data"));
            let Ok(set) = shown() else {
                return false;
            };
            match Credentials::load(&set, &workload("battle"), now) {
                Ok(_) | Err(CredentialsError::Refused(_)) => {}
                // Being removed, file by file, since there is another.
                Err(error) => assert!(shown().is_ok_and(|now| now != set), "{error}"),
            }
            serial(&running) != before
        })
        .await;
    }
}
