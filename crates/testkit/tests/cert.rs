//! `phalanx cert` and `phalanx user` against a control plane that lets in only who proves who it is; openssl has to agree with
//! everything that is issued.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use phalanx_testkit::address;
use phalanx_testkit::eventually;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::process::{Process, executable};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

fn json(plane: &Guarded, words: &[&str]) -> anyhow::Result<Value> {
    let text = plane.does(&[words, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| text)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// What the command says when it has to end with a code.
fn ends(plane: &Guarded, code: i32, words: &[&str]) -> anyhow::Result<String> {
    let said = plane.phalanx(words)?;
    anyhow::ensure!(said.code == code, "{words:?}: {}\n{}", said.code, said.text);
    Ok(said.text)
}

fn serial(plane: &Guarded, file: &str) -> anyhow::Result<String> {
    let said = plane.agrees(&format!("x509 -in {file} -noout -serial"))?;
    let serial = said.trim().rsplit('=').next().unwrap_or_default();
    Ok(serial.to_lowercase())
}

fn mode(path: &Path) -> anyhow::Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

#[tokio::test]
async fn what_is_issued_and_signed_is_as_openssl_wants_it() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let folder = plane.folder();
    fs::write(folder.join("roots.pem"), plane.does(&["cert", "roots"])?)?;
    plane.agrees("verify -CAfile roots.pem roots.pem")?;

    let issue = ["cert", "issue", "--service", "battle", "--zone", "az1"];
    plane.does(&[&issue[..], &["--out", "b", "--ttl", "2h"]].concat())?;
    plane.agrees("verify -x509_strict -CAfile b/roots.pem -untrusted b/cert.pem b/cert.pem")?;
    assert_eq!(mode(&folder.join("b/key.pem"))?, 0o600);
    let names = plane.agrees("x509 -in b/cert.pem -noout -ext subjectAltName")?;
    for name in [
        "URI:spiffe://phalanx.local/ns/default/sa/battle",
        "DNS:battle.default.svc.mesh",
        "DNS:battle-az1.internal",
    ] {
        assert!(names.contains(name), "{names}");
    }
    let of_key = plane.agrees("pkey -in b/key.pem -pubout")?;
    assert_eq!(plane.agrees("x509 -in b/cert.pem -noout -pubkey")?, of_key);

    // A request of somebody else's making.
    let request = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout s.key";
    plane.agrees(&format!("{request} -subj /CN=shop -out s.csr"))?;
    let sign = ["cert", "sign", "--service", "shop", "--csr"];
    let chain = plane.does(&[&sign[..], &["s.csr"]].concat())?;
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
    fs::write(folder.join("s.pem"), chain)?;
    plane.agrees("verify -CAfile roots.pem -untrusted s.pem s.pem")?;

    // What it has no right to is refused, not trimmed.
    for (names, why) in [
        ("DNS:*.default.svc.mesh", "wildcard"),
        ("DNS:battle.default.svc.mesh", "does not own"),
        (
            "URI:spiffe://phalanx.local/ns/default/sa/battle",
            "does not own",
        ),
        ("IP:127.0.0.1", "which is not given"),
    ] {
        plane.agrees(&format!(
            "{request} -subj / -addext subjectAltName={names} -out bad.csr"
        ))?;
        let said = plane.phalanx(&[&sign[..], &["bad.csr"]].concat())?;
        assert!(!said.is_content && said.text.contains(why), "{}", said.text);
    }
    ends(&plane, 3, &[&sign[..], &["s.pem"]].concat())?;
    ends(&plane, 3, &[&sign[..], &["nowhere.csr"]].concat())?;
    let control = ["cert", "issue", "-n", "phalanx-system", "--out", "c"];
    let said = ends(
        &plane,
        1,
        &[&control[..], &["--service", "control"]].concat(),
    )?;
    assert!(said.contains("control plane's own name"), "{said}");

    // The log has them all, newest first, and can be asked.
    let all = json(&plane, &["cert", "list"])?;
    let ids: Vec<&str> = all["items"]
        .as_array()
        .context("no items")?
        .iter()
        .map(|item| text(&item["id"]))
        .collect();
    let id = |service: &str| format!("spiffe://phalanx.local/ns/default/sa/{service}");
    assert_eq!(ids[..2], [id("shop"), id("battle")]);
    let own = json(&plane, &["cert", "list", "--service", "battle"])?;
    let battle = serial(&plane, "b/cert.pem")?;
    assert_eq!(text(&own["items"][0]["serial"]), battle);
    assert_eq!(text(&own["items"][0]["attested_by"]), "operator");
    let soon = json(&plane, &["cert", "list", "--expiring", "24h"])?;
    assert_eq!(soon["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(text(&soon["items"][0]["serial"]), battle);
    let one = plane.does(&["cert", "list", "--limit", "1"])?;
    assert!(one.contains("there are more"), "{one}");

    // By its serial, as openssl spells it too, from its file, and as it is presented.
    let spelt = battle.to_uppercase();
    let shown = plane.does(&["cert", "show", &spelt])?;
    assert!(shown.contains("state") && shown.contains("good"), "{shown}");
    let shown = plane.does(&["cert", "show", "b/cert.pem"])?;
    assert!(
        shown.contains(&battle) && shown.contains("authority"),
        "{shown}"
    );
    let shown = plane.does(&["cert", "show", &plane.admin.to_string()])?;
    assert!(shown.contains("phalanx-system/sa/control"), "{shown}");
    ends(&plane, 1, &["cert", "show", "abcdef"])?;

    let metrics = plane.metrics()?;
    for line in [
        "phalanx_ca_certificate_expiry_seconds{kind=\"root\"} 315",
        "phalanx_ca_certificate_expiry_seconds{kind=\"intermediate\"} 315",
        "phalanx_ca_certificate_expiry_seconds{kind=\"own\"} 259",
        "phalanx_certificates{state=\"good\"} 3",
        "phalanx_certificates{state=\"late\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_is_told_once_listed_and_can_be_taken_back() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let folder = plane.folder();
    let token = ["cert", "token", "--service", "battle"];
    let made = plane.does(&[&token[..], &["--zone", "az1"]].concat())?;
    let mut lines = made.lines();
    let line = lines.next().unwrap_or_default();
    assert!(line.starts_with("phxj1."), "{line}");
    fs::write(folder.join("t.pem"), lines.collect::<Vec<_>>().join("\n"))?;
    plane.agrees("verify -CAfile t.pem t.pem")?;
    let told = plane.does(&[&token[..], &["--out", "t", "--ttl", "5m"]].concat())?;
    assert!(!told.contains("phxj1"), "{told}");
    assert_eq!(mode(&folder.join("t"))?, 0o600);

    let waiting = json(&plane, &["cert", "tokens"])?;
    let items = waiting["items"].as_array().context("no items")?;
    assert_eq!(items.len(), 2);
    assert_eq!(text(&items[1]["zone"]), "az1");
    assert_eq!(text(&items[1]["author"]), "admin");
    let id = text(&items[1]["id"]);
    assert!(line.contains(id));
    plane.does(&["cert", "token", "--revoke", id])?;
    ends(&plane, 1, &["cert", "token", "--revoke", id])?;
    ends(&plane, 1, &["cert", "token", "--revoke", "../roots"])?;
    assert!(!plane.does(&["cert", "tokens"])?.contains(id));

    ends(&plane, 2, &["cert", "token"])?;
    ends(&plane, 1, &[&token[..], &["--ttl", "30d"]].concat())?;
    ends(&plane, 1, &["cert", "token", "--service", "Not A Name"])?;
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_named_and_ends_with_1() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let folder = plane.folder();
    plane.does(&["cert", "issue", "--service", "battle", "--out", "b"])?;
    plane.does(&["cert", "issue", "--service", "shop", "--out", "s"])?;
    let own = "spiffe://phalanx.local/ns/phalanx-system/sa/control";
    let id = |service: &str| format!("spiffe://phalanx.local/ns/default/sa/{service}");
    let checks = |words: &[&str], code: i32| -> anyhow::Result<Value> {
        let said = ends(
            &plane,
            code,
            &[&["cert", "verify"], words, &["-o", "json"]].concat(),
        )?;
        serde_json::from_str(&said).context(said)
    };
    let findings = |words: &[&str]| -> anyhow::Result<Vec<String>> {
        let report = checks(words, 1)?;
        let all = report["checks"].as_array().context("no checks")?.iter();
        let failed = all.filter(|c| c["result"] == "failed");
        Ok(failed
            .map(|c| format!("{}: {}", text(&c["check"]), text(&c["reason"])))
            .collect())
    };

    // What is good: with its key, its issuer's answer and list; and as it is shown, with a staple.
    let good = checks(&["b", "--expect", &id("battle")], 0)?;
    let (xds, admin) = (plane.xds.to_string(), plane.admin.to_string());
    for (check, result) in [("key", "ok"), ("ocsp", "ok"), ("crl", "ok")] {
        let all = good["checks"].as_array().context("no checks")?;
        let found = all.iter().find(|c| c["check"] == check);
        assert_eq!(
            text(&found.context("no check")?["result"]),
            result,
            "{good}"
        );
    }
    for address in [&xds, &admin] {
        let shown = checks(&[address, "--expect", own], 0)?;
        let all = shown["checks"].as_array().context("no checks")?;
        let staple = all.iter().find(|c| c["check"] == "staple");
        assert_eq!(
            text(&staple.context("no staple")?["result"]),
            "ok",
            "{shown}"
        );
        assert_eq!(shown["handshake"]["group"], "X25519MLKEM768");
    }
    checks(&[&xds, "--as", "b"], 0)?;

    // What is not.
    let other = ["--expect", &id("shop")];
    assert_eq!(findings(&["b", other[0], other[1]])?, ["names: wrong_name"]);
    let key = ["b/cert.pem", "--key", "s/key.pem"];
    assert_eq!(findings(&key)?, ["key: key_mismatch"]);
    plane.agrees("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout o.key -subj /CN=other -days 2 -out o.pem")?;
    assert_eq!(
        findings(&["b/cert.pem", "--roots", "o.pem", "--offline"])?,
        ["chain: unknown_ca"]
    );
    assert_eq!(
        findings(&[&admin, "--expect", &id("battle")])?,
        ["names: wrong_name"]
    );

    // Revoked: by its issuer's word, and by those who let it in before.
    let battle = serial(&plane, "b/cert.pem")?;
    let revoke = ["cert", "revoke", "--serial", &battle];
    let done = plane.does(&[&revoke[..], &["--reason", "certificateHold"]].concat())?;
    assert!(done.contains(&battle));
    assert_eq!(findings(&["b"])?, ["ocsp: revoked", "crl: revoked"]);
    assert_eq!(findings(&[&xds, "--as", "b"])?, ["client: peer_alert"]);
    let renew = ["cert", "renew", "--dir", "b", "--control", &xds];
    let said = ends(&plane, 1, &renew)?;
    assert!(said.contains("does not take the certificate"), "{said}");
    let shown = plane.does(&["cert", "list", "--revoked"])?;
    assert!(shown.contains("certificateHold"), "{shown}");

    // On hold only: it may come back. What is revoked for good does not, a whole service neither.
    plane.does(&["cert", "release", "--serial", &battle])?;
    checks(&["b"], 0)?;
    plane.does(&renew)?;
    assert_ne!(serial(&plane, "b/cert.pem")?, battle);
    plane.agrees("verify -CAfile b/roots.pem -untrusted b/cert.pem b/cert.pem")?;
    ends(&plane, 2, &["cert", "revoke", "--service", "battle"])?;
    let done = plane.does(&["cert", "revoke", "--service", "battle", "--yes"])?;
    assert_eq!(done.lines().count(), 2, "{done}");
    let whole = ["cert", "revoke", "--workload", &id("battle"), "--yes"];
    let again = plane.does(&whole)?;
    assert!(again.contains("nothing to do"), "{again}");
    ends(&plane, 1, &["cert", "release", "--serial", &battle])?;
    ends(&plane, 1, &["cert", "revoke", "--serial", "abcdef"])?;

    // Wrong usage, and what can't be read.
    ends(&plane, 2, &["cert", "verify", &battle])?;
    ends(&plane, 2, &["cert", "verify", "no such thing"])?;
    ends(&plane, 2, &["cert", "revoke"])?;
    let both = ["cert", "revoke", "--serial", &battle, "--holder", &battle];
    ends(&plane, 2, &both)?;
    let whole = ["cert", "revoke", "--workload", &id("battle")];
    let said = ends(&plane, 2, &whole)?;
    assert!(said.contains("default/battle"), "{said}");
    let elsewhere = "spiffe://elsewhere.local/ns/default/sa/battle";
    let said = ends(
        &plane,
        1,
        &["cert", "revoke", "--workload", elsewhere, "--yes"],
    )?;
    assert!(said.contains("trust domain"), "{said}");
    ends(
        &plane,
        2,
        &["cert", "revoke", "--serial", &battle, "--reason", "whim"],
    )?;
    ends(&plane, 3, &["cert", "verify", "./nowhere.pem"])?;
    fs::write(folder.join("junk.pem"), "junk")?;
    ends(&plane, 3, &["cert", "verify", "junk.pem"])?;
    let nobody = std::net::SocketAddr::new(address::fresh(), 1).to_string();
    ends(&plane, 4, &["cert", "verify", &nobody])?;
    Ok(())
}

#[tokio::test]
async fn a_root_is_rotated_step_by_step_and_each_step_may_be_asked_twice() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let folder = plane.folder();
    let rotate = |step: &str| json(&plane, &["cert", "rotate-root", step]);
    let steady = json(&plane, &["cert", "rotate-root"])?;
    assert_eq!(text(&steady["phase"]), "steady");
    plane.does(&["cert", "issue", "--service", "battle", "--out", "old"])?;

    // There and back.
    assert_eq!(text(&rotate("--begin")?["phase"]), "overlap");
    let back = rotate("--abort")?;
    assert_eq!(text(&back["phase"]), "steady");
    assert_eq!(back["roots"], steady["roots"]);
    assert_eq!(text(&rotate("--abort")?["phase"]), "steady");

    let overlap = rotate("--begin")?;
    assert_eq!(overlap["roots"].as_array().map(Vec::len), Some(2));
    assert_eq!(overlap["issuer"], steady["issuer"]);
    assert_eq!(text(&overlap["author"]), "admin");
    // Whoever has the old certificate is named, and it is not waited for, being nowhere connected.
    let told = plane.does(&["cert", "rotate-root", "--status"])?;
    assert!(
        told.contains("sa/battle") && told.contains("not connected"),
        "{told}"
    );
    assert_eq!(rotate("--begin")?["roots"], overlap["roots"]);
    fs::write(folder.join("both.pem"), plane.does(&["cert", "roots"])?)?;

    // For some seconds after its start a control plane does not know yet who is connected.
    let switched = eventually("the switch", SOON, async || rotate("--switch").ok()).await?;
    assert_eq!(text(&switched["phase"]), "switched");
    assert_ne!(switched["issuer"], steady["issuer"]);
    assert_eq!(text(&rotate("--switch")?["phase"]), "switched");
    plane.does(&["cert", "issue", "--service", "battle", "--out", "new"])?;
    for leaf in ["old", "new"] {
        plane.agrees(&format!(
            "verify -CAfile both.pem -untrusted {leaf}/cert.pem {leaf}/cert.pem"
        ))?;
    }

    // The old root is needed as long as a certificate of it lives.
    let said = ends(&plane, 1, &["cert", "rotate-root", "--finish"])?;
    assert!(said.contains("1 "), "{said}");
    let late = ["--finish", "--wait", "--timeout", "1s"];
    ends(&plane, 4, &[&["cert", "rotate-root"], &late[..]].concat())?;
    let old = serial(&plane, "old/cert.pem")?;
    plane.does(&["cert", "revoke", "--serial", &old, "--reason", "superseded"])?;
    let wait = [
        "cert",
        "rotate-root",
        "--finish",
        "--wait",
        "--timeout",
        "60s",
    ];
    let done = json(&plane, &wait)?;
    assert_eq!(text(&done["phase"]), "steady");
    assert_eq!(done["roots"].as_array().map(Vec::len), Some(1));
    assert_eq!(text(&rotate("--finish")?["phase"]), "steady");
    fs::write(folder.join("roots.pem"), plane.does(&["cert", "roots"])?)?;
    plane.agrees("verify -CAfile roots.pem -untrusted new/cert.pem new/cert.pem")?;
    let refused = plane.openssl("verify -CAfile roots.pem -untrusted old/cert.pem old/cert.pem")?;
    assert!(!refused.is_content);

    ends(&plane, 2, &["cert", "rotate-root", "--begin", "--finish"])?;
    ends(&plane, 2, &["cert", "rotate-root", "--begin", "--wait"])?;
    Ok(())
}

#[tokio::test]
async fn an_intermediate_for_another_control_plane_is_of_the_same_mesh() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let folder = plane.folder();
    plane.does(&["cert", "intermediate", "--out", "im"])?;
    plane.agrees("verify -x509_strict -CAfile im/root-cert.pem im/ca-cert.pem")?;
    assert_eq!(mode(&folder.join("im/ca-key.pem"))?, 0o600);
    ends(&plane, 2, &["cert", "intermediate", "--out", "im"])?;

    let ca = folder.join("im").display().to_string();
    let other = Guarded::start_with(&["--ca", &ca]).await?;
    other.does(&["cert", "issue", "--service", "battle", "--out", "b"])?;
    let leaf = other.folder().join("b/cert.pem").display().to_string();
    plane.agrees(&format!(
        "verify -CAfile im/root-cert.pem -untrusted {leaf} {leaf}"
    ))?;
    // It has no root's key, so it can't make another, and says what has to be done.
    let said = ends(&other, 1, &["cert", "intermediate", "--out", "im"])?;
    assert!(said.contains("root"), "{said}");
    Ok(())
}

#[tokio::test]
async fn files_that_are_watched_are_renewed_and_follow_the_roots() -> anyhow::Result<()> {
    let plane = Guarded::start_with(&["--leaf-ttl", "8s"]).await?;
    let folder = plane.folder();
    let xds = plane.xds.to_string();
    let mut command = Command::new(executable("phalanx")?);
    let admin = plane.data().join("admin");
    command
        .args([
            "cert",
            "issue",
            "--service",
            "battle",
            "--out",
            "w",
            "--watch",
        ])
        .args(["--renew-before", "5s", "--cert-check", "100ms"])
        .args(["--control", &xds, "--admin", &plane.admin.to_string()])
        .env("PHALANX_ROOTS", admin.join("roots.pem"))
        .env("PHALANX_TOKEN_FILE", admin.join("token"))
        .current_dir(folder);
    let mut watching = Process::spawn(command, &folder.join("watch.log"))?;
    let first = eventually("the first certificate", SOON, async || {
        serial(&plane, "w/cert.pem").ok()
    })
    .await?;
    eventually("another certificate", SOON, async || {
        let now = serial(&plane, "w/cert.pem").ok()?;
        (now != first).then_some(())
    })
    .await?;
    plane.does(&["cert", "rotate-root", "--begin"])?;
    eventually("both roots, then the new one alone", 2 * SOON, async || {
        let status = json(&plane, &["cert", "rotate-root"]).ok()?;
        (status["phase"] == "steady").then_some(())
    })
    .await?;
    fs::write(folder.join("roots.pem"), plane.does(&["cert", "roots"])?)?;
    eventually("the files of the new root", SOON, async || {
        let verified = "verify -CAfile roots.pem -untrusted w/cert.pem w/cert.pem";
        let has_one = fs::read_to_string(folder.join("w/roots.pem")).ok()?;
        let alone = has_one.matches("BEGIN CERTIFICATE").count() == 1;
        (alone && plane.agrees(verified).is_ok()).then_some(())
    })
    .await?;
    watching.terminate(SOON).await?;
    Ok(())
}

#[tokio::test]
async fn a_role_opens_what_it_is_for_and_nothing_more() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let folder = plane.folder();
    let user = |name: &str, role: &str| {
        let out = format!("{name}.token");
        plane.does(&[
            "user", "add", name, "--role", role, "--ttl", "1h", "--out", &out,
        ])
    };
    user("vera", "viewer")?;
    user("olaf", "operator")?;
    assert_eq!(mode(&folder.join("vera.token"))?, 0o600);
    ends(&plane, 1, &["user", "add", "vera", "--role", "admin"])?;
    ends(&plane, 2, &["user", "add", "x", "--role", "king"])?;
    let listed = plane.does(&["user", "list"])?;
    for word in ["vera", "viewer", "olaf", "operator", "admin"] {
        assert!(listed.contains(word), "{listed}");
    }

    // The file has the roots in it, so it is all that somebody needs.
    let as_user = |token: &str, words: &[&str]| -> anyhow::Result<(i32, String)> {
        let mut command = Command::new(executable("phalanx")?);
        let done = command
            .args(words)
            .args(["--admin", &plane.admin.to_string(), "--token-file", token])
            .env_remove("PHALANX_ROOTS")
            .current_dir(folder)
            .output()?;
        let text = [done.stdout, done.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok((done.status.code().unwrap_or(-1), text))
    };
    for look in [
        &["cert", "list"][..],
        &["cert", "roots"],
        &["cert", "rotate-root"],
        &["status"],
    ] {
        let (code, said) = as_user("vera.token", look)?;
        assert_eq!(code, 0, "{look:?} {said}");
    }
    for secret in [
        &["cert", "token", "--service", "battle"][..],
        &["cert", "issue", "--service", "battle", "--out", "b"],
        &["cert", "revoke", "--serial", "abcd"],
        &["cert", "rotate-root", "--begin"],
        &["cert", "intermediate", "--out", "im"],
        &["user", "add", "eve", "--role", "admin"],
    ] {
        for token in ["vera.token", "olaf.token"] {
            let (code, said) = as_user(token, secret)?;
            assert_eq!(code, 1, "{secret:?} {said}");
            assert!(said.contains("role admin"), "{said}");
        }
    }
    assert!(!folder.join("b").exists() && !folder.join("im").exists());
    plane.does(&["user", "remove", "vera"])?;
    let (code, said) = as_user("vera.token", &["cert", "list"])?;
    assert_eq!(code, 1, "{said}");
    ends(&plane, 1, &["user", "remove", "vera"])?;
    Ok(())
}

#[tokio::test]
async fn secrets_are_not_told_in_plain_text() -> anyhow::Result<()> {
    let plane = Guarded::start_with(&["--open"]).await?;
    let admin = plane.admin.to_string();
    let plain = |words: &[&str]| {
        let mut command = Command::new(executable("phalanx")?);
        let done = command.args(words).args(["--admin", &admin]).output()?;
        let text = [done.stdout, done.stderr].concat();
        anyhow::Ok((
            done.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        ))
    };
    let (code, said) = plain(&["cert", "list"])?;
    assert_eq!(code, Some(0), "{said}");
    for secret in [
        &["cert", "token", "--service", "battle"][..],
        &["cert", "intermediate", "--out", "im"],
        &["user", "add", "eve", "--role", "viewer"],
    ] {
        let (code, said) = plain(secret)?;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("over TLS only"), "{said}");
    }
    plane.does(&["cert", "token", "--service", "battle"])?;
    Ok(())
}
