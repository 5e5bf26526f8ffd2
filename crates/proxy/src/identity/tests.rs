//! Files in, sets out: what is taken, waited for, refused.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use phalanx_model::ServiceName;
use phalanx_pki::clock::{ManualClock, UnixMillis};
use phalanx_pki::credentials::{Credentials, CredentialsError, Parts};
use phalanx_pki::files::{self, Access};
use phalanx_pki::issuer::{Attestation, Issuer, Order, RootCa};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{TrustDomain, Workload};
use phalanx_pki::revocation::build_crl;

use super::folder::Folder;
use super::proof::{Bootstrap, ProofError};
use super::watched::{Look, Watched};
use super::{Certificates, IdentityError};
use crate::config::{IdentityConfig, Proof, Source};

const NOW: UnixMillis = UnixMillis(1_795_362_049_000);
const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    TrustDomain::parse("phalanx.local").unwrap()
}

fn workload(service: &str, zone: Option<&str>) -> Workload {
    Workload::parse(&domain(), "default", service, zone).unwrap()
}

fn issuer() -> Issuer {
    let root = RootCa::create(&domain(), KeyKind::default(), NOW, 1000 * HOUR).unwrap();
    root.intermediate(KeyKind::default(), NOW, 900 * HOUR)
        .unwrap()
}

fn parts(issuer: &Issuer, workload: &Workload, now: UnixMillis) -> Parts {
    let key = Key::generate(KeyKind::default()).unwrap();
    let by = Attestation::Operator {
        name: "test".into(),
    };
    let order = Order::new(workload, 72 * HOUR, by);
    let issued = issuer.issue_to(key.spki(), &order, now).unwrap();
    Parts {
        chain: issued.chain,
        key,
        staple: None,
        roots: issuer.roots().clone(),
    }
}

fn credentials(issuer: &Issuer) -> Credentials {
    let battle = workload("battle", None);
    Credentials::try_new(parts(issuer, &battle, NOW), &battle, NOW).unwrap()
}

fn config(source: Source) -> IdentityConfig {
    IdentityConfig::new(source)
}

fn open(dir: &Path, proof: Option<Proof>) -> Result<Certificates, IdentityError> {
    let source = Source::Issued {
        dir: dir.to_owned(),
        proof,
    };
    let clock = Arc::new(ManualClock::at(NOW));
    let battle = ServiceName::new("default", "battle");
    Certificates::open(&config(source), &battle, None, clock)
}

#[test]
fn what_was_kept_is_there_after_a_restart_with_its_revocations() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), issuer());
    let credentials = credentials(&issuer);
    let mut folder = Folder::new(dir.path());
    let crl = build_crl(issuer.ca(), &[], 7, NOW, HOUR).unwrap();
    folder.keep_crls(&[crl], &issuer.chain());
    folder.save(&credentials, issuer.roots()).unwrap();
    let key = fs::metadata(dir.path().join("key.pem")).unwrap();
    assert_eq!(key.mode() & 0o777, 0o600);

    let identity = open(dir.path(), None).unwrap().identity().clone();
    let stored = identity.credentials().unwrap();
    assert_eq!(stored.peer().serial, credentials.peer().serial);
    let lists: Vec<u64> = identity.revocations().lists().map(|l| l.number).collect();
    assert_eq!(lists, [7]);
}

#[test]
fn without_a_certificate_and_a_way_to_one_a_sidecar_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        open(dir.path(), None),
        Err(IdentityError::Nothing { .. })
    ));
    let missing = Proof::JoinToken(dir.path().join("token"));
    assert!(matches!(
        open(dir.path(), Some(missing)),
        Err(IdentityError::Proof(ProofError::File(_)))
    ));
}

#[test]
fn a_certificate_of_another_service_is_not_taken_from_the_directory() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), issuer());
    let other = workload("gate", None);
    let theirs = Credentials::try_new(parts(&issuer, &other, NOW), &other, NOW).unwrap();
    theirs.save(dir.path()).unwrap();
    assert!(matches!(
        open(dir.path(), None),
        Err(IdentityError::Stored {
            source: CredentialsError::ForeignName { .. },
            ..
        })
    ));
}

#[test]
fn a_zone_that_only_the_certificate_knows_is_no_reason_to_refuse_it() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), issuer());
    let zoned = workload("battle", Some("az1"));
    let set = Credentials::try_new(parts(&issuer, &zoned, NOW), &zoned, NOW).unwrap();
    set.save(dir.path()).unwrap();
    assert!(open(dir.path(), None).is_ok());
    let source = Source::Issued {
        dir: dir.path().to_owned(),
        proof: None,
    };
    let battle = ServiceName::new("default", "battle");
    let clock = Arc::new(ManualClock::at(NOW));
    let elsewhere = Certificates::open(&config(source), &battle, Some("az2"), clock);
    assert!(matches!(elsewhere, Err(IdentityError::Stored { .. })));
}

#[test]
fn a_token_file_is_a_line_and_the_roots_under_it() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), issuer());
    let path = dir.path().join("battle.token");
    let proof = Proof::JoinToken(path.clone());
    let write = |text: String| fs::write(&path, text).unwrap();
    write(format!("secret.told\n{}", issuer.roots().to_pem()));
    let read = Bootstrap::read(&proof, None, None).unwrap();
    assert!(read.roots.is_same(issuer.roots()));
    let same = phalanx_client::identity::Proof::JoinToken("secret.told".into());
    assert_eq!(read.proof, same);
    // No word that the hex of the roots could hold by chance.
    assert!(!format!("{read:?}").contains("secret"), "{read:?}");

    write("secret.told\n".into());
    let no_roots = Bootstrap::read(&proof, None, None).unwrap_err();
    assert!(matches!(no_roots, ProofError::NoRoots { .. }));
    assert!(Bootstrap::read(&proof, None, Some(issuer.roots().clone())).is_ok());
    let roots = dir.path().join("roots.pem");
    fs::write(&roots, issuer.roots().to_pem()).unwrap();
    assert!(Bootstrap::read(&proof, Some(&roots), None).is_ok());
    for bad in ["", "\n", "two words\n", "a\nb\n"] {
        write(format!("{bad}{}", issuer.roots().to_pem()));
        let error = Bootstrap::read(&proof, None, None).unwrap_err();
        assert!(matches!(error, ProofError::Token { .. }), "{bad:?}");
    }
}

/// Writes the three files one after another, as somebody without any care would.
fn put(dir: &Path, parts: &Parts) {
    let chain = phalanx_pki::x509::certs_to_pem(&parts.chain);
    let key = parts.key.to_pem().unwrap();
    files::write(&dir.join("cert.pem"), chain.as_bytes(), Access::Public).unwrap();
    files::write(&dir.join("key.pem"), key.as_bytes(), Access::Private).unwrap();
    let roots = parts.roots.to_pem();
    files::write(&dir.join("roots.pem"), roots.as_bytes(), Access::Public).unwrap();
}

fn fresh(look: Look) -> Box<Credentials> {
    match look {
        Look::Fresh(credentials) => credentials,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_set_is_taken_once_and_again_when_it_is_another() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), issuer());
    let battle = workload("battle", None);
    let mut watched = Watched::new(dir.path(), battle.clone());
    assert!(matches!(watched.look(NOW), Look::Waiting(_)));
    for _ in 0..3 {
        let parts = parts(&issuer, &battle, NOW);
        put(dir.path(), &parts);
        let taken = fresh(watched.look(NOW));
        assert_eq!(taken.parts().key.spki(), parts.key.spki());
        for _ in 0..25 {
            assert!(matches!(watched.look(NOW), Look::Same));
        }
    }
}

#[test]
fn a_half_written_set_is_waited_for_and_then_taken() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), issuer());
    let battle = workload("battle", None);
    let mut watched = Watched::new(dir.path(), battle.clone());
    put(dir.path(), &parts(&issuer, &battle, NOW));
    fresh(watched.look(NOW));
    // The certificate is there before its key.
    let next = parts(&issuer, &battle, NOW);
    let chain = phalanx_pki::x509::certs_to_pem(&next.chain);
    files::write(
        &dir.path().join("cert.pem"),
        chain.as_bytes(),
        Access::Public,
    )
    .unwrap();
    assert!(matches!(watched.look(NOW), Look::Waiting(_)));
    assert!(matches!(watched.look(NOW), Look::Waiting(_)));
    put(dir.path(), &next);
    fresh(watched.look(NOW));
    // And a file that is gone for a moment.
    fs::remove_file(dir.path().join("key.pem")).unwrap();
    assert!(matches!(watched.look(NOW), Look::Waiting(_)));
    put(dir.path(), &next);
    assert!(matches!(watched.look(NOW), Look::Same));
}

#[test]
fn a_bad_set_that_stays_is_said_once_and_a_good_one_is_taken_after_it() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), issuer());
    let battle = workload("battle", None);
    let mut watched = Watched::new(dir.path(), battle.clone());
    put(dir.path(), &parts(&issuer, &workload("gate", None), NOW));
    let looks: Vec<Look> = (0..30).map(|_| watched.look(NOW)).collect();
    let bad = looks.iter().filter(|l| matches!(l, Look::Bad(_))).count();
    assert_eq!(bad, 1, "{looks:?}");
    put(dir.path(), &parts(&issuer, &battle, NOW));
    fresh(watched.look(NOW));
    // Open to others: as bad as a wrong one.
    let key = dir.path().join("key.pem");
    let text = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    files::write(&key, &text, Access::Public).unwrap();
    let looks: Vec<Look> = (0..30).map(|_| watched.look(NOW)).collect();
    let why = looks.iter().find_map(|l| match l {
        Look::Bad(error) => Some(error.to_string()),
        _ => None,
    });
    assert!(why.unwrap().contains("mode 644"));
}

#[test]
fn the_swap_of_a_link_as_kubernetes_does_it_is_seen() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), issuer());
    let battle = workload("battle", None);
    let mut watched = Watched::new(dir.path(), battle.clone());
    let link = dir.path().join("..data");
    for name in ["cert.pem", "key.pem", "roots.pem"] {
        symlink(Path::new("..data").join(name), dir.path().join(name)).unwrap();
    }
    for turn in 0..3 {
        let folder = dir.path().join(format!("..2026_{turn}"));
        fs::create_dir(&folder).unwrap();
        put(&folder, &parts(&issuer, &battle, NOW));
        let temp = dir.path().join("..data_tmp");
        symlink(folder.file_name().unwrap(), &temp).unwrap();
        fs::rename(&temp, &link).unwrap();
        fresh(watched.look(NOW));
        assert!(matches!(watched.look(NOW), Look::Same));
    }
}

#[test]
fn a_change_that_keeps_size_and_dates_is_found_by_its_content() {
    let (dir, issuer) = (tempfile::tempdir().unwrap(), issuer());
    let battle = workload("battle", None);
    let mut watched = Watched::new(dir.path(), battle.clone());
    put(dir.path(), &parts(&issuer, &battle, NOW));
    fresh(watched.look(NOW));
    put(dir.path(), &parts(&issuer, &battle, NOW));
    // As if nothing but the content were another.
    watched.pretend_seen();
    let looks: Vec<Look> = (0..30).map(|_| watched.look(NOW)).collect();
    let taken = looks.iter().filter(|l| matches!(l, Look::Fresh(_))).count();
    assert_eq!(taken, 1, "{looks:?}");
}
