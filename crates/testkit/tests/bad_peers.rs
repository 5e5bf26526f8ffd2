//! Peers that don't belong, by openssl, against a real listener of ours: each is refused, with a reason of its own in the metric and
//! in the log. The certificates are made with the mesh's own key by `openssl ca`, for none of them would be issued.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use phalanx_testkit::eventually;
use phalanx_testkit::guarded::Guarded;

const WAIT: Duration = Duration::from_secs(10);
const GOOD: &str = "URI:spiffe://phalanx.local/ns/default/sa/battle";
const CLIENT: &str = "clientAuth,serverAuth";

/// A certificate as a bad peer would show it, and the reason for which it is refused.
struct Bad {
    reason: &'static str,
    names: &'static str,
    usage: &'static str,
    /// In words of `date`.
    from: &'static str,
    until: &'static str,
    is_own_root: bool,
}

const GOOD_PEER: Bad = Bad {
    reason: "",
    names: GOOD,
    usage: CLIENT,
    from: "-60 seconds",
    until: "+1 hour",
    is_own_root: false,
};

const BAD: &[Bad] = &[
    Bad {
        reason: "expired",
        from: "-200 seconds",
        until: "-60 seconds",
        ..GOOD_PEER
    },
    Bad {
        reason: "not_yet_valid",
        from: "+30 minutes",
        ..GOOD_PEER
    },
    Bad {
        reason: "unknown_ca",
        is_own_root: true,
        ..GOOD_PEER
    },
    Bad {
        reason: "wrong_trust_domain",
        names: "URI:spiffe://elsewhere.local/ns/default/sa/battle",
        ..GOOD_PEER
    },
    Bad {
        reason: "no_spiffe_id",
        names: "DNS:battle.default.svc.mesh",
        ..GOOD_PEER
    },
    Bad {
        reason: "several_spiffe_ids",
        names: "URI:spiffe://phalanx.local/ns/default/sa/battle,URI:spiffe://phalanx.local/ns/default/sa/shop",
        ..GOOD_PEER
    },
    Bad {
        reason: "wildcard_name",
        names: "URI:spiffe://phalanx.local/ns/default/sa/battle,DNS:*.default.svc.mesh",
        ..GOOD_PEER
    },
    Bad {
        reason: "missing_client_eku",
        usage: "serverAuth",
        ..GOOD_PEER
    },
];

/// `openssl ca` in the test's folder, over the key that signs leaves.
struct Forge<'a> {
    plane: &'a Guarded,
    issuer: PathBuf,
}

impl<'a> Forge<'a> {
    fn open(plane: &'a Guarded) -> anyhow::Result<Self> {
        let issuer = find(&plane.data().join("ca"), "ca-key.pem").context("no issuer's key")?;
        let folder = plane.folder();
        let config = "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nrand_serial=yes\nnew_certs_dir=.\npolicy=p\n\
                      default_md=sha256\nunique_subject=no\n[p]\ncommonName=optional\n";
        fs::write(folder.join("ca.cnf"), config)?;
        plane.agrees(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout other.key -out other.pem -subj /CN=other -days 30",
        )?;
        plane.agrees(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout bad.key -out bad.csr -subj /CN=bad",
        )?;
        Ok(Self { plane, issuer })
    }

    /// Puts the chain into `bad.pem`.
    fn make(&self, bad: &Bad) -> anyhow::Result<()> {
        let folder = self.plane.folder();
        let (cert, key) = if bad.is_own_root {
            (folder.join("other.pem"), folder.join("other.key"))
        } else {
            (
                self.issuer.join("ca-cert.pem"),
                self.issuer.join("ca-key.pem"),
            )
        };
        fs::write(folder.join("index.txt"), "")?;
        fs::write(
            folder.join("ext.cnf"),
            format!(
                "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage={}\n\
                 subjectAltName={}\nauthorityKeyIdentifier=keyid\n",
                bad.usage, bad.names
            ),
        )?;
        self.plane.agrees(&format!(
            "ca -batch -config ca.cnf -cert {} -keyfile {} -in bad.csr -out bad.pem -startdate {} -enddate {} -extfile ext.cnf -notext",
            cert.display(), key.display(), date(bad.from)?, date(bad.until)?
        ))?;
        let chain = [fs::read(folder.join("bad.pem"))?, fs::read(cert)?].concat();
        Ok(fs::write(folder.join("bad.pem"), chain)?)
    }
}

/// As `openssl ca` wants it.
fn date(words: &str) -> anyhow::Result<String> {
    let mut command = std::process::Command::new("date");
    let done = command
        .args(["-u", "-d", words, "+%Y%m%d%H%M%SZ"])
        .output()?;
    anyhow::ensure!(done.status.success(), "{done:?}");
    Ok(String::from_utf8(done.stdout)?.trim().to_owned())
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut below = fs::read_dir(folder).ok()?.flatten().map(|e| e.path());
    if folder.join(name).is_file() {
        return Some(folder.to_owned());
    }
    below.find_map(|path| path.is_dir().then(|| find(&path, name)).flatten())
}

/// How often a port has refused for a reason.
fn refused(plane: &Guarded, port: &str, reason: &str) -> anyhow::Result<u64> {
    let family = format!("phalanx_tls_refused_total{{port=\"{port}\",reason=\"{reason}\"}} ");
    let metrics = plane.metrics()?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(&family));
    line.map_or(Ok(0), |count| count.trim().parse().context("a count"))
}

async fn is_refused(plane: &Guarded, reason: &str, options: &str) -> anyhow::Result<()> {
    let before = refused(plane, "xds", reason)?;
    let words = format!(
        "s_client -connect {} -alpn h2 -ign_eof {options}",
        plane.xds
    );
    let said = plane.openssl(&words)?;
    let what = format!("{reason} to be counted; is it another reason?");
    let counted = eventually(&what, WAIT, async || {
        (refused(plane, "xds", reason).ok()? > before).then_some(())
    });
    counted.await.with_context(|| said.text.clone())?;
    anyhow::ensure!(
        said.text.to_lowercase().contains("alert"),
        "{reason}\n{}",
        said.text
    );
    let log = plane.process.log();
    let is_logged = log
        .lines()
        .any(|line| line.contains("refused") && line.contains(reason));
    anyhow::ensure!(is_logged, "no line of the log says {reason}\n{log}");
    Ok(())
}

#[tokio::test]
async fn each_bad_peer_is_refused_for_a_reason_of_its_own() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let forge = Forge::open(&plane)?;
    // What is refused below is refused for what is said, not for how it is made.
    forge.make(&GOOD_PEER)?;
    let show = "-cert bad.pem -cert_chain bad.pem -key bad.key";
    // By TLS 1.2, whose handshake ends only when the server has looked at the certificate.
    let good = format!("s_client -connect {} -tls1_2 -alpn h2 {show}", plane.xds);
    let said = plane.openssl(&good)?;
    anyhow::ensure!(said.text.contains("ALPN protocol: h2"), "{}", said.text);
    anyhow::ensure!(!said.text.to_lowercase().contains("alert"), "{}", said.text);
    for bad in BAD {
        forge.make(bad)?;
        is_refused(&plane, bad.reason, show).await?;
    }
    is_refused(&plane, "incompatible", "-tls1_1 -cipher DEFAULT@SECLEVEL=0").await?;
    is_refused(&plane, "no_protocol", "-alpn smtp").await?;

    // What was issued and is revoked, and the same by TLS 1.2.
    plane.does(&["cert", "issue", "--service", "battle", "--out", "leaf"])?;
    plane.does(&[
        "cert",
        "revoke",
        "--service",
        "battle",
        "--reason",
        "superseded",
        "--yes",
    ])?;
    let show = "-cert leaf/cert.pem -cert_chain leaf/cert.pem -key leaf/key.pem";
    is_refused(&plane, "revoked", show).await?;
    is_refused(&plane, "revoked", &format!("{show} -tls1_2")).await?;
    Ok(())
}
