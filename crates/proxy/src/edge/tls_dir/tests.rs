use std::fs;

use super::*;

fn put(folder: &Path, name: &str, host: &str) -> Vec<u8> {
    let pair = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let folder = folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(CHAIN), pair.cert.pem()).unwrap();
    fs::write(folder.join(KEY), pair.signing_key.serialize_pem()).unwrap();
    pair.cert.der().to_vec()
}

fn shown(dir: &TlsDir, name: &str) -> Vec<u8> {
    let made = dir.made();
    made.pairs[name].shown.load().cert[0].to_vec()
}

#[test]
fn what_is_missing_is_said_by_file_and_nothing_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let dir = TlsDir::new(Some(folder.path().into()));
    let error = dir.server(&["web".to_owned()]).unwrap_err();
    assert!(error.starts_with("certificate `web`: "), "{error}");
    assert!(error.contains("web/tls.crt: "), "{error}");
    let error = TlsDir::new(None).server(&["web".to_owned()]).unwrap_err();
    assert!(error.contains("--tls-dir"), "{error}");
}

#[test]
fn a_new_pair_is_taken_and_a_bad_one_leaves_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let first = put(folder.path(), "web", "a.example.com");
    let dir = TlsDir::new(Some(folder.path().into()));
    let server = dir.server(&["web".to_owned()]).unwrap();
    assert_eq!(shown(&dir, "web"), first);
    fs::write(folder.path().join("web").join(KEY), "no key").unwrap();
    dir.look();
    assert_eq!(shown(&dir, "web"), first);
    let second = put(folder.path(), "web", "a.example.com");
    dir.look();
    assert_eq!(shown(&dir, "web"), second);
    let again = dir.server(&["web".to_owned()]).unwrap();
    assert!(Arc::ptr_eq(&server, &again), "sessions live on");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "web", "a.example.com");
    put(folder.path(), "other", "b.example.com");
    fs::copy(
        folder.path().join("other").join(KEY),
        folder.path().join("web").join(KEY),
    )
    .unwrap();
    let dir = TlsDir::new(Some(folder.path().into()));
    assert!(dir.server(&["web".to_owned()]).is_err());
}
