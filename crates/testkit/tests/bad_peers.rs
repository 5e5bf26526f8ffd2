//! Peers that don't belong, by openssl, against a real listener of ours: each is refused, with a reason of its own in the metric and
//! in the log. The certificates are made with the mesh's own key by `openssl ca`, for none of them would be issued.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::http::{self, Answer, Call};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};

const WAIT: Duration = Duration::from_secs(30);
/// Debug builds on two busy cores.
const READY_MAX: Duration = Duration::from_secs(30);
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
    let mut command = Command::new("date");
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
    // Counted first, then said.
    let what = format!("a line of the log that says {reason}");
    let is_line = |line: &str| line.contains("refused") && line.contains(reason);
    let logged = eventually(&what, WAIT, async || {
        plane.process.log().lines().any(is_line).then_some(())
    });
    logged.await.with_context(|| plane.process.log())
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

/// A sidecar with an identity, and the application behind it.
struct Sidecar {
    process: Process,
    _app: Process,
    inbound: SocketAddr,
    outbound: SocketAddr,
    admin: SocketAddr,
}

impl Sidecar {
    async fn start(plane: &Guarded, service: &str) -> anyhow::Result<Self> {
        let ip = address::fresh();
        let at = |port| SocketAddr::new(ip, port);
        let file = |name: &str| plane.folder().join(name).display().to_string();
        let (token, kept) = (file(&format!("{service}.token")), file(service));
        plane.does(&["cert", "token", "--service", service, "--out", &token])?;
        let mut echo = Command::new(executable("echo")?);
        echo.args([&at(8080).to_string(), service]);
        let app = Process::spawn(echo, &plane.folder().join(format!("{service}-echo.log")))?;
        let mut command = Command::new(executable("phalanx")?);
        command
            .args(["proxy", "--service", service, "--workers", "1"])
            .args(["--app", &at(8080).to_string()])
            .args(["--control", &plane.xds.to_string()])
            .args(["--inbound", &at(15006).to_string()])
            .args(["--outbound", &at(15001).to_string()])
            .args(["--admin", &at(15000).to_string()])
            .args(["--token-file", &token, "--identity-dir", &kept]);
        let log = plane.folder().join(format!("{service}.log"));
        let sidecar = Self {
            process: Process::spawn(command, &log)?,
            _app: app,
            inbound: at(15006),
            outbound: at(15001),
            admin: at(15000),
        };
        let ready = eventually("the sidecar to be ready", READY_MAX, async || {
            sidecar.page("/readyz").await.filter(|a| a.status == 200)
        });
        ready.await.with_context(|| sidecar.process.log())?;
        Ok(sidecar)
    }

    async fn page(&self, path: &str) -> Option<Answer> {
        http::call(self.admin, &Call::get("localhost", path))
            .await
            .ok()
    }

    /// How often it has refused for a reason.
    async fn refused(&self, direction: &str, reason: &str) -> Option<u64> {
        let metrics = self.page("/metrics").await?;
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        let labels = format!("direction=\"{direction}\",reason=\"{reason}\"");
        let family = format!("phalanx_tls_refused_total{{{labels}}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&family));
        line.map_or(Some(0), |count| count.trim().parse().ok())
    }

    /// Waits for one more, and for the log to say so.
    async fn refuses(&self, direction: &str, reason: &str, before: u64) -> anyhow::Result<()> {
        let what = format!("{reason} to be counted; is it another reason?");
        let counted = eventually(&what, WAIT, async || {
            (self.refused(direction, reason).await? > before).then_some(())
        });
        counted.await.with_context(|| self.process.log())?;
        let what = format!("{reason} in the log");
        let logged = eventually(&what, WAIT, async || {
            self.process.log().contains(reason).then_some(())
        });
        logged.await.with_context(|| self.process.log())
    }

    /// Shows something to the inbound port, which has to refuse it.
    async fn shown(&self, plane: &Guarded, reason: &str, options: &str) -> anyhow::Result<()> {
        let before = self.refused("inbound", reason).await.context("metrics")?;
        plane.openssl(&format!(
            "s_client -connect {} -ign_eof {options}",
            self.inbound
        ))?;
        self.refuses("inbound", reason, before)
            .await
            .context(options.to_owned())
    }
}

const SHOW: &str = "-alpn phalanx-tcp -cert bad.pem -cert_chain bad.pem -key bad.key";

#[tokio::test]
async fn a_sidecar_refuses_them_too_and_closes_what_a_revoked_one_had_open() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let forge = Forge::open(&plane)?;
    let sidecar = Sidecar::start(&plane, "battle").await?;
    for bad in BAD {
        forge.make(bad)?;
        sidecar.shown(&plane, bad.reason, SHOW).await?;
    }
    let old = "-alpn phalanx-tcp -tls1_1 -cipher DEFAULT@SECLEVEL=0";
    sidecar.shown(&plane, "incompatible", old).await?;
    sidecar
        .shown(&plane, "no_certificate", "-alpn phalanx-tcp")
        .await?;

    // Ten refusals are said per second, the others only counted.
    tokio::time::sleep(Duration::from_secs(1)).await;
    plane.does(&["cert", "issue", "--service", "shop", "--out", "shop"])?;
    let shop = "-cert shop/cert.pem -cert_chain shop/cert.pem -key shop/key.pem";
    let mut open = Command::new("openssl");
    open.args([
        "s_client",
        "-connect",
        &sidecar.inbound.to_string(),
        "-alpn",
        "http/1.1",
    ])
    .args(shop.split_whitespace())
    .current_dir(plane.folder())
    .stdin(Stdio::piped())
    .stdout(Stdio::null())
    .stderr(Stdio::null());
    let mut open = open.spawn()?;
    let mut words = open.stdin.take().context("no input")?;
    words.write_all(b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n")?;
    let opened = eventually("a connection", WAIT, async || {
        let text = sidecar.page("/metrics").await?.body;
        let text = String::from_utf8_lossy(&text).into_owned();
        text.contains("phalanx_tls_connections_open 1")
            .then_some(())
    });
    opened.await?;
    plane.does(&[
        "cert",
        "revoke",
        "--service",
        "shop",
        "--reason",
        "keyCompromise",
        "--yes",
    ])?;
    let ended = eventually("its open connection to be closed", WAIT, async || {
        open.try_wait().ok()?
    });
    let ended = ended.await;
    let _ = open.kill();
    ended?;
    sidecar
        .shown(&plane, "revoked", &format!("{shop} -alpn http/1.1"))
        .await
}

/// The slice of a server that is nobody's instance, as someone would write it who runs one.
const OUTSIDE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: battle}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: battle-1, labels: {kubernetes.io/service-name: battle, phalanx.dev/tls: mutual}}
addressType: IPv4
ports: [{name: http, port: 8443}]
endpoints: [{addresses: [ADDRESS]}]
";

#[tokio::test]
async fn a_sidecar_refuses_servers_that_are_not_whom_its_route_expects() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let forge = Forge::open(&plane)?;
    let server = SocketAddr::new(address::fresh(), 8443);
    let manifest = OUTSIDE.replace("ADDRESS", &server.ip().to_string());
    fs::write(plane.folder().join("battle.yaml"), manifest)?;
    plane.does(&["apply", "-f", "battle.yaml"])?;
    let sidecar = Sidecar::start(&plane, "shop").await?;
    let call = Call::get("battle", "/");
    let with = async |count: usize| -> anyhow::Result<(Process, u16)> {
        let mut command = Command::new("openssl");
        command
            .args([
                "s_server",
                "-accept",
                &server.to_string(),
                "-www",
                "-alpn",
                "http/1.1",
            ])
            .args([
                "-cert",
                "bad.pem",
                "-cert_chain",
                "bad.pem",
                "-key",
                "bad.key",
            ])
            .current_dir(plane.folder());
        let process = Process::spawn(command, &plane.folder().join(format!("server-{count}.log")))?;
        let listens = eventually("the server", WAIT, async || {
            tokio::net::TcpStream::connect(server).await.ok().map(drop)
        });
        listens.await?;
        let answer = http::call(sidecar.outbound, &call).await?;
        Ok((process, answer.status))
    };
    forge.make(&GOOD_PEER)?;
    let good = eventually("a good server to be taken", WAIT, async || {
        let (_process, status) = with(0).await.ok()?;
        (status == 200).then_some(())
    });
    good.await.with_context(|| sidecar.process.log())?;
    let servers = [
        Bad {
            reason: "wrong_name",
            names: "URI:spiffe://phalanx.local/ns/default/sa/shop",
            ..GOOD_PEER
        },
        Bad {
            reason: "missing_server_eku",
            usage: "clientAuth",
            ..GOOD_PEER
        },
    ];
    let alike = BAD.iter().filter(|bad| bad.reason != "missing_client_eku");
    for (count, bad) in servers.iter().chain(alike).enumerate() {
        forge.make(bad)?;
        let before = sidecar
            .refused("outbound", bad.reason)
            .await
            .context("metrics")?;
        let (_process, _) = with(count + 1).await?;
        // Who was refused just before is not asked again at once.
        let refused = eventually(bad.reason, WAIT, async || {
            let answer = http::call(sidecar.outbound, &call).await.ok()?;
            let now = sidecar.refused("outbound", bad.reason).await?;
            (answer.status == 503 && now > before).then_some(())
        });
        refused.await.with_context(|| sidecar.process.log())?;
    }
    Ok(())
}
