//! openssl agrees with everything that is issued: chains, requests, OCSP in both directions, CRLs, key files.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use phalanx_pki::clock::{Clock, SystemClock, UnixMillis};
use phalanx_pki::csr::{self, Csr};
use phalanx_pki::issuer::{Attestation, Issued, Issuer, Order, RootCa, Urls};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{Name, TrustDomain, Workload};
use phalanx_pki::ocsp::{Responder, Status};
use phalanx_pki::revocation::{Reason, Revocations, Revoked, build_crl};
use phalanx_pki::verifier::SKEW;
use phalanx_pki::x509;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const HOUR: Duration = Duration::from_secs(3600);

struct Bench {
    dir: tempfile::TempDir,
    issuer: Issuer,
    workload: Workload,
    now: UnixMillis,
}

/// A directory with root.pem, chain.pem, leaf.pem, issuer.pem, and the key of the leaf.
fn bench(kind: KeyKind) -> (Bench, Issued) {
    let now = SystemClock.now();
    let domain = TrustDomain::parse("phalanx.local").unwrap();
    let root = RootCa::create(&domain, kind, now, 1000 * HOUR).unwrap();
    let urls = Urls {
        ocsp: Some("http://127.0.0.1:1/".into()),
        crl: Some("http://127.0.0.1:1/crl".into()),
    };
    let issuer = root
        .intermediate(kind, now, 500 * HOUR)
        .unwrap()
        .with_urls(urls);
    let workload = Workload::parse(&domain, "arena", "battle", Some("az1")).unwrap();
    let bench = Bench {
        dir: tempfile::tempdir().unwrap(),
        issuer,
        workload,
        now,
    };
    let key = Key::generate(kind).unwrap();
    let issued = bench.issue(key.spki());
    bench.put("root.pem", bench.issuer.roots().to_pem());
    bench.put("leaf.pem", x509::certs_to_pem(&issued.chain[..1]));
    bench.put("chain.pem", x509::certs_to_pem(&issued.chain[1..]));
    bench.put("issuer.pem", x509::certs_to_pem([bench.issuer.ca().der()]));
    bench.put("key.pem", key.to_pem().unwrap().as_bytes());
    (bench, issued)
}

impl Bench {
    fn issue(&self, spki: &[u8]) -> Issued {
        let order = Order::new(
            &self.workload,
            HOUR,
            Attestation::Operator {
                name: "test".into(),
            },
        );
        self.issuer.issue_to(spki, &order, self.now).unwrap()
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    fn get(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap()
    }

    /// Output of `openssl <words>` in the directory, and whether it was content.
    fn openssl(&self, words: &str) -> (bool, String) {
        openssl(self.dir.path(), words)
    }

    fn agrees(&self, words: &str) -> String {
        let (content, text) = self.openssl(words);
        assert!(content, "openssl {words}\n{text}");
        text
    }
}

fn openssl(dir: &Path, words: &str) -> (bool, String) {
    let mut command = Command::new("openssl");
    command.args(words.split_whitespace()).current_dir(dir);
    let done = command.output().expect("openssl is installed");
    let text = [done.stdout, done.stderr].concat();
    (
        done.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn openssl_verifies_a_leaf_for_both_purposes_and_reads_its_names() {
    for kind in [KeyKind::EcdsaP256, KeyKind::EcdsaP384] {
        let (bench, issued) = bench(kind);
        for purpose in ["sslserver", "sslclient"] {
            bench.agrees(&format!("verify -x509_strict -purpose {purpose} -CAfile root.pem -untrusted chain.pem leaf.pem"));
        }
        let text = bench.agrees("x509 -in leaf.pem -noout -text");
        for part in [
            "URI:spiffe://phalanx.local/ns/arena/sa/battle, DNS:battle.arena.svc.mesh, DNS:battle-az1.internal",
            "CA:FALSE",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "OCSP - URI:http://127.0.0.1:1/",
            "URI:http://127.0.0.1:1/crl",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let serial = bench.agrees("x509 -in leaf.pem -noout -serial");
        assert!(
            serial
                .to_lowercase()
                .contains(&issued.record.serial.to_string()),
            "{serial}"
        );
        let mine = bench.agrees("pkey -in key.pem -pubout");
        assert_eq!(mine, bench.agrees("x509 -in leaf.pem -noout -pubkey"));
    }
}

#[test]
fn openssl_refuses_a_leaf_of_another_root() {
    let (bench, _) = bench(KeyKind::EcdsaP256);
    let (other, _) = self::bench(KeyKind::EcdsaP256);
    bench.put("root.pem", other.get("root.pem"));
    assert!(
        !bench
            .openssl("verify -CAfile root.pem -untrusted chain.pem leaf.pem")
            .0
    );
}

#[test]
fn requests_go_both_ways() {
    let (bench, _) = bench(KeyKind::EcdsaP256);
    let key = Key::generate(KeyKind::EcdsaP256).unwrap();
    bench.put("ours.der", csr::request(&key, &bench.workload).unwrap());
    let text = bench.agrees("req -inform DER -in ours.der -verify -noout -text");
    assert!(text.contains("DNS:battle-az1.internal"), "{text}");
    for make in [
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k.pem -out theirs.pem -subj /CN=battle",
        "req -new -newkey rsa:2048 -nodes -keyout k.pem -out theirs.pem -subj /CN=battle -addext subjectAltName=DNS:battle.arena.svc.mesh",
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout k.pem -out theirs.pem -subj /",
    ] {
        bench.agrees(make);
        let csr = Csr::from_pem(&bench.get("theirs.pem")).unwrap();
        csr.check_owned(&bench.workload).unwrap();
        bench.put(
            "leaf.pem",
            x509::certs_to_pem(&bench.issue(csr.spki()).chain[..1]),
        );
        bench.agrees("verify -x509_strict -CAfile root.pem -untrusted chain.pem leaf.pem");
        Key::from_pem(&bench.get("k.pem")).unwrap();
    }
    for (make, why) in [
        ("rsa:1024 -subj /CN=battle", "RSA of 1024 bits"),
        (
            "rsa:2048 -subj /CN=battle -addext basicConstraints=critical,CA:TRUE",
            "basicConstraints",
        ),
        ("rsa:2048 -subj /O=Evil/CN=battle", "organizationName"),
        ("ed25519 -subj /CN=battle", "1.3.101.112"),
    ] {
        bench.agrees(&format!(
            "req -new -nodes -keyout k.pem -out bad.pem -newkey {make}"
        ));
        let refused = Csr::from_pem(&bench.get("bad.pem"))
            .unwrap_err()
            .to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn openssl_ocsp_takes_every_answer_of_ours() {
    let (bench, issued) = bench(KeyKind::EcdsaP256);
    let key = Key::generate(KeyKind::EcdsaP256).unwrap();
    let direct = Responder::try_new([bench.issuer.ca().clone()], HOUR).unwrap();
    let delegated = Responder::try_new([bench.issuer.ca().clone()], HOUR)
        .unwrap()
        .with_delegate(bench.issuer.ca(), key, bench.now, HOUR)
        .unwrap();
    let revoked = Status::Revoked {
        at: bench.now,
        reason: Reason::KeyCompromise,
    };
    let held = Status::Revoked {
        at: bench.now,
        reason: Reason::CertificateHold,
    };
    for responder in [&direct, &delegated] {
        for hash in ["-sha1", "-sha256"] {
            for (status, says) in [
                (Status::Good, ": good"),
                (revoked, "Reason: keyCompromise"),
                (held, "Reason: certificateHold"),
                (Status::Unknown, ": unknown"),
            ] {
                bench.agrees(&format!(
                    "ocsp {hash} -issuer issuer.pem -cert leaf.pem -reqout req.der"
                ));
                let answer =
                    responder.respond(&bench.get("req.der"), bench.now, |issuer, serial| {
                        assert_eq!(*serial, issued.record.serial);
                        assert_eq!(
                            issuer
                                .iter()
                                .map(|b| format!("{b:02x}"))
                                .collect::<String>(),
                            issued.record.issuer_key
                        );
                        status
                    });
                bench.put("resp.der", answer);
                // -reqin brings the nonce of the first run, so that its echo is compared; -no_nonce makes no other.
                let text = bench.agrees(&format!(
                    "ocsp {hash} -no_nonce -issuer issuer.pem -cert leaf.pem -reqin req.der -respin resp.der -CAfile root.pem -verify_other issuer.pem"
                ));
                assert!(
                    text.contains("Response verify OK") && text.contains(says),
                    "{text}"
                );
                assert!(!text.contains("no nonce"), "{text}");
            }
        }
    }
}

#[test]
fn an_answer_of_openssl_is_taken_as_staple() {
    let (bench, issued) = bench(KeyKind::EcdsaP256);
    bench.put(
        "ca.key",
        bench.issuer.ca().key().to_pem().unwrap().as_bytes(),
    );
    let serial = issued.record.serial.to_string().to_uppercase();
    // openssl's index of a CA: V(alid), expiry, -, serial, file, subject.
    bench.put(
        "index.txt",
        format!("V\t300101000000Z\t\t{serial}\tunknown\t/CN=x\n"),
    );
    bench.agrees("ocsp -sha1 -no_nonce -issuer issuer.pem -cert leaf.pem -reqout req.der");
    bench.agrees(
        "ocsp -index index.txt -rsigner issuer.pem -rkey ca.key -CA issuer.pem -reqin req.der -respout resp.der -nmin 60",
    );
    let parts = phalanx_pki::credentials::Parts {
        chain: issued.chain.clone(),
        key: Key::from_pem(&bench.get("key.pem")).unwrap(),
        staple: Some(bench.get("resp.der")),
        roots: bench.issuer.roots().clone(),
    };
    let made =
        phalanx_pki::credentials::Credentials::try_new(parts, &bench.workload, SystemClock.now())
            .unwrap();
    assert!(made.staple().is_some());
}

#[test]
fn openssl_reads_our_crl_and_we_read_it_too() {
    let (bench, issued) = bench(KeyKind::EcdsaP256);
    let revoked = [Revoked {
        serial: issued.record.serial.clone(),
        at: bench.now,
        reason: Reason::KeyCompromise,
    }];
    for (list, refuses) in [(&revoked[..0], false), (&revoked[..], true)] {
        let crl = build_crl(bench.issuer.ca(), list, 7, bench.now, HOUR).unwrap();
        bench.put("crl.pem", x509::pem("X509 CRL", &crl));
        let text = bench.agrees("crl -in crl.pem -CAfile issuer.pem -noout -text");
        assert!(text.contains("verify OK"), "{text}");
        let (content, text) = bench.openssl(
            "verify -crl_check -CRLfile crl.pem -CAfile root.pem -untrusted chain.pem leaf.pem",
        );
        assert_eq!(!content && text.contains("revoked"), refuses, "{text}");
        let read = Revocations::try_new(&[crl], &bench.issuer.chain(), bench.now, SKEW).unwrap();
        assert_eq!(read.len(), list.len());
    }
}

#[test]
fn openssl_reads_every_reason_of_our_crls() {
    let (bench, _) = bench(KeyKind::EcdsaP256);
    let named = |reason| Revoked {
        serial: phalanx_pki::x509::Serial::random().unwrap(),
        at: bench.now,
        reason,
    };
    let crl = build_crl(
        bench.issuer.ca(),
        &Reason::ALL.map(named),
        8,
        bench.now,
        HOUR,
    )
    .unwrap();
    bench.put("crl.pem", x509::pem("X509 CRL", &crl));
    let text = bench.agrees("crl -in crl.pem -CAfile issuer.pem -noout -text");
    for words in [
        "Key Compromise",
        "CA Compromise",
        "Affiliation Changed",
        "Superseded",
        "Cessation Of Operation",
        "Certificate Hold",
        "Privilege Withdrawn",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    for reason in Reason::ALL {
        assert_eq!(Reason::parse(reason.as_str()), Some(reason));
    }
    for none in ["removeFromCRL", "aACompromise", "", "keycompromise"] {
        assert_eq!(Reason::parse(none), None);
    }
}

proptest::proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever the names, the key, the life and what is written into it: openssl's strictest reading takes it, for both
    /// purposes and by each of its names, and refuses it by any other name and after its time.
    #[test]
    fn openssl_verifies_everything_that_is_issued(
        names in ("[a-z]([a-z0-9-]{0,14}[a-z0-9])?", "[a-z]([a-z0-9-]{0,14}[a-z0-9])?"),
        zone in option::of("[a-z]([a-z0-9-]{0,8}[a-z0-9])?"),
        domain in "[a-z]([a-z0-9-]{0,10}[a-z0-9])?\\.[a-z]{2,8}",
        kind in select(vec![KeyKind::EcdsaP256, KeyKind::EcdsaP384]),
        leaf_kind in select(vec![KeyKind::EcdsaP256, KeyKind::EcdsaP384]),
        secs in 10u64..90 * 86_400,
        urls in (any::<bool>(), any::<bool>()),
        must_staple in any::<bool>(),
    ) {
        let now = SystemClock.now();
        let domain = TrustDomain::parse(&domain).unwrap();
        let root = RootCa::create(&domain, kind, now, 5000 * HOUR).unwrap();
        let urls = Urls {
            ocsp: urls.0.then(|| "http://[::1]:15082".to_owned()),
            crl: urls.1.then(|| "http://ca.example:15082/crl/ab.crl".to_owned()),
        };
        let issuer = root.intermediate(kind, now, 4000 * HOUR).unwrap().with_urls(urls.clone());
        let workload = Workload::parse(&domain, &names.0, &names.1, zone.as_deref()).unwrap();
        let key = Key::generate(leaf_kind).unwrap();
        let mut order = Order::new(&workload, Duration::from_secs(secs), Attestation::Operator { name: "test".into() });
        order.must_staple = must_staple;
        let csr = Csr::from_der(&csr::request(&key, &workload).unwrap()).unwrap();
        let issued = issuer.issue(&csr, &order, now).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
        put("root.pem", issuer.roots().to_pem());
        put("leaf.pem", x509::certs_to_pem(&issued.chain[..1]));
        put("chain.pem", x509::certs_to_pem(&issued.chain[1..]));
        let verify = "verify -x509_strict -policy_check -CAfile root.pem -untrusted chain.pem";
        let hosts = workload.names().into_iter().filter_map(|name| match name {
            Name::Dns(host) => Some(host),
            _ => None,
        });
        for host in hosts {
            for purpose in ["sslserver", "sslclient"] {
                let (content, text) = openssl(dir.path(), &format!("{verify} -purpose {purpose} -verify_hostname {host} leaf.pem"));
                prop_assert!(content, "{}", text);
            }
            let (content, text) = openssl(dir.path(), &format!("{verify} -verify_hostname x{host} leaf.pem"));
            prop_assert!(!content && text.contains("ostname mismatch"), "{}", text);
        }
        let after = now.as_secs() + secs + 1;
        let (content, text) = openssl(dir.path(), &format!("{verify} -attime {after} leaf.pem"));
        prop_assert!(!content && text.contains("expired"), "{}", text);
        let (_, text) = openssl(dir.path(), "x509 -in leaf.pem -noout -text");
        prop_assert!(text.contains(&workload.id().to_string()), "{}", text);
        for (url, named) in [(urls.ocsp, "OCSP - URI:"), (urls.crl, "Full Name:")] {
            prop_assert_eq!(text.contains(named), url.is_some(), "{}", text);
            prop_assert!(url.is_none_or(|url| text.contains(&format!("URI:{url}"))), "{}", text);
        }
        prop_assert_eq!(text.contains("TLS Feature"), must_staple, "{}", text);
    }
}
