//! openssl as the peer of the control plane's revocation: it asks by OCSP, reads the lists, and looks at what is stapled. It
//! has to agree with every word, and all has to be so still after a restart.

use std::fs;
use std::time::Duration;

use phalanx_testkit::eventually;
use phalanx_testkit::guarded::Guarded;

/// What the issue allows a revocation to take.
const REVOKED_MAX: Duration = Duration::from_secs(10);

/// A leaf of its own in `leaf/`: cert.pem (with its chain), key.pem, roots.pem; and apart: `leaf.pem`, `issuer.pem`.
fn issue(plane: &Guarded, service: &str) -> anyhow::Result<String> {
    let folder = plane.folder();
    plane.does(&["cert", "issue", "--service", service, "--out", "leaf"])?;
    let chain = fs::read_to_string(folder.join("leaf/cert.pem"))?;
    let mut certs = chain.split_inclusive("-----END CERTIFICATE-----\n");
    fs::write(folder.join("leaf.pem"), certs.next().unwrap_or_default())?;
    fs::write(folder.join("issuer.pem"), certs.next().unwrap_or_default())?;
    let serial = plane.agrees("x509 -in leaf.pem -noout -serial")?;
    let serial = serial.trim().rsplit('=').next().unwrap_or_default();
    Ok(serial.to_lowercase())
}

/// `openssl ocsp` by POST, or by GET with curl, which openssl does not.
fn asked(plane: &Guarded, words: &str) -> anyhow::Result<String> {
    plane.agrees(&format!(
        "ocsp -issuer issuer.pem {words} -CAfile leaf/roots.pem -verify_other issuer.pem -url http://{}",
        plane.ocsp
    ))
}

fn by_get(plane: &Guarded, words: &str) -> anyhow::Result<String> {
    plane.agrees(&format!("ocsp -issuer issuer.pem {words} -reqout req.der"))?;
    let base64 = plane.agrees("base64 -A -in req.der")?;
    let escaped = base64
        .trim()
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    let done = std::process::Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "10",
            "--output",
            "resp.der",
        ])
        .arg(format!("http://{}/{escaped}", plane.ocsp))
        .current_dir(plane.folder())
        .output()?;
    anyhow::ensure!(done.status.success(), "{done:?}");
    plane.agrees(&format!(
        "ocsp -no_nonce -issuer issuer.pem {words} -CAfile leaf/roots.pem -verify_other issuer.pem -reqin req.der -respin resp.der"
    ))
}

/// The list that the leaf names, as PEM in `crl.pem`; answers its number.
fn list(plane: &Guarded) -> anyhow::Result<u64> {
    let text = plane.agrees("x509 -in leaf.pem -noout -text")?;
    let url = text.lines().find_map(|line| {
        let (_, url) = line.split_once("URI:http://")?;
        url.contains("/crl/").then(|| format!("http://{url}"))
    });
    let url = url.ok_or_else(|| anyhow::anyhow!("no distribution point\n{text}"))?;
    let done = std::process::Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "10",
            "--output",
            "crl.der",
            &url,
        ])
        .current_dir(plane.folder())
        .output()?;
    anyhow::ensure!(done.status.success(), "{done:?}");
    let text =
        plane.agrees("crl -inform DER -in crl.der -out crl.pem -CAfile issuer.pem -crlnumber")?;
    anyhow::ensure!(text.contains("verify OK"), "{text}");
    let hex = text
        .lines()
        .find_map(|line| line.strip_prefix("crlNumber=0x"));
    let hex = hex.ok_or_else(|| anyhow::anyhow!("no number\n{text}"))?;
    Ok(u64::from_str_radix(hex, 16)?)
}

const CHECK: &str = "verify -x509_strict -crl_check -CRLfile crl.pem -CAfile leaf/roots.pem -untrusted issuer.pem leaf.pem";

#[tokio::test]
async fn openssl_agrees_with_every_answer_and_with_the_lists() -> anyhow::Result<()> {
    let mut plane = Guarded::start().await?;
    let serial = issue(&plane, "battle")?;
    let url = format!("OCSP - URI:http://{}", plane.ocsp);
    let text = plane.agrees("x509 -in leaf.pem -noout -text")?;
    anyhow::ensure!(text.contains(&url), "{text}");
    for hash in ["-sha1", "-sha256"] {
        for text in [
            asked(&plane, &format!("{hash} -cert leaf.pem -nonce"))?,
            by_get(&plane, &format!("{hash} -cert leaf.pem"))?,
        ] {
            anyhow::ensure!(
                text.contains("Response verify OK") && text.contains(": good"),
                "{text}"
            );
            anyhow::ensure!(!text.contains("no nonce in response"), "{text}");
        }
        let text = asked(&plane, &format!("{hash} -serial 0x1234567890abcdef"))?;
        anyhow::ensure!(text.contains(": unknown"), "{text}");
    }
    let first = list(&plane)?;
    plane.agrees(CHECK)?;

    // On hold, released, and revoked for good.
    let revoke = |reason| plane.does(&["cert", "revoke", "--serial", &serial, "--reason", reason]);
    revoke("certificateHold")?;
    let text = asked(&plane, "-sha256 -cert leaf.pem")?;
    anyhow::ensure!(text.contains("Reason: certificateHold"), "{text}");
    plane.does(&["cert", "release", "--serial", &serial])?;
    let text = asked(&plane, "-sha256 -cert leaf.pem")?;
    anyhow::ensure!(text.contains(": good"), "{text}");
    revoke("keyCompromise")?;
    let second = list(&plane)?;
    anyhow::ensure!(second > first, "{second} after {first}");
    let said = plane.phalanx(&["cert", "release", "--serial", &serial])?;
    anyhow::ensure!(
        !said.is_content && said.text.contains("certificateHold"),
        "{}",
        said.text
    );

    plane.restart().await?;
    for text in [
        asked(&plane, "-sha1 -cert leaf.pem")?,
        asked(&plane, "-sha256 -cert leaf.pem -nonce")?,
        by_get(&plane, "-sha256 -cert leaf.pem")?,
    ] {
        anyhow::ensure!(text.contains("Response verify OK"), "{text}");
        anyhow::ensure!(text.contains("Reason: keyCompromise"), "{text}");
    }
    let third = list(&plane)?;
    anyhow::ensure!(third >= second, "{third} after {second}");
    let said = plane.openssl(CHECK)?;
    anyhow::ensure!(
        !said.is_content && said.text.contains("certificate revoked"),
        "{}",
        said.text
    );
    issue(&plane, "battle")?;
    plane.agrees(CHECK)?;
    Ok(())
}

#[tokio::test]
async fn the_control_plane_staples_for_itself() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    issue(&plane, "battle")?;
    for (address, alpn) in [(plane.admin, "http/1.1"), (plane.xds, "h2")] {
        let stapled = eventually("a staple", REVOKED_MAX, async || {
            let words = format!(
                "s_client -connect {address} -alpn {alpn} -status -CAfile leaf/roots.pem -verify_return_error -verify_ip {}",
                address.ip()
            );
            let said = plane.openssl(&words).ok()?;
            let is_good = said.text.contains("OCSP Response Status: successful")
                && said.text.contains("Cert Status: good")
                && said.text.contains("Verify return code: 0 (ok)");
            is_good.then_some(())
        });
        stapled.await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_revoked_workload_is_refused_at_every_port() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    issue(&plane, "battle")?;
    let shake = |address, alpn: &str| {
        plane.openssl(&format!(
            "s_client -connect {address} -alpn {alpn} -ign_eof -CAfile leaf/roots.pem -cert leaf/cert.pem -cert_chain leaf/cert.pem -key leaf/key.pem"
        ))
    };
    plane.does(&[
        "cert",
        "revoke",
        "--service",
        "battle",
        "--reason",
        "keyCompromise",
        "--yes",
    ])?;
    for (address, alpn, port) in [(plane.admin, "http/1.1", "admin"), (plane.xds, "h2", "xds")] {
        let refused = eventually("a refusal", REVOKED_MAX, async || {
            let said = shake(address, alpn).ok()?;
            said.text.contains("certificate revoked").then_some(())
        });
        refused.await?;
        let counted = format!("phalanx_tls_refused_total{{port=\"{port}\",reason=\"revoked\"}}");
        eventually(&counted, REVOKED_MAX, async || {
            plane.metrics().ok()?.contains(&counted).then_some(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn leaves_name_the_address_that_others_reach() -> anyhow::Result<()> {
    let plane = Guarded::start_with(&["--ocsp-url", "http://pki.example:8080/"]).await?;
    issue(&plane, "battle")?;
    let text = plane.agrees("x509 -in leaf.pem -noout -text")?;
    for named in [
        "OCSP - URI:http://pki.example:8080\n",
        "URI:http://pki.example:8080/crl/",
    ] {
        anyhow::ensure!(text.contains(named), "{text}");
    }
    for wrong in [
        "https://pki.example",
        "pki.example",
        "http:///x",
        "http://a?b",
    ] {
        let said = plane.phalanx(&["control", "--ocsp-url", wrong])?;
        anyhow::ensure!(
            !said.is_content && said.text.contains("--ocsp-url"),
            "{}",
            said.text
        );
    }
    Ok(())
}
