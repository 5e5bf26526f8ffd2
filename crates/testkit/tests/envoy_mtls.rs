//! A stock Envoy as a member of a mesh that takes nobody without a certificate: it comes with PEM files, gets its own
//! certificate, its staple and whom to trust over secret discovery, and calls and is called with mutual TLS.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use phalanx_testkit::envoy;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::http::{Answer, Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};

/// Debug builds on two busy cores.
const LIMIT: Duration = Duration::from_secs(30);

struct Member {
    process: Process,
    ip: IpAddr,
    _others: Vec<Process>,
}

impl Member {
    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// Calls `host` as its application would.
    async fn calls(&self, host: &str, path: &str) -> anyhow::Result<Answer> {
        call(self.at(15001), &Call::get(host, path)).await
    }

    /// Waits until `host` answers it with this status.
    async fn meets(&self, host: &str, status: u16) -> anyhow::Result<Answer> {
        let mut last = String::new();
        let what = format!("{host} to answer with {status}");
        let met = eventually(&what, LIMIT, async || match self.calls(host, "/").await {
            Ok(answer) if answer.status == status => Some(answer),
            Ok(answer) => {
                last = format!("{} {}", answer.status, answer.header("x-phalanx-reason"));
                None
            }
            Err(error) => {
                last = error.to_string();
                None
            }
        });
        let met = met.await;
        met.with_context(|| format!("last: {last}\n{}", self.process.log()))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn app(plane: &Guarded, name: &str, ip: IpAddr) -> anyhow::Result<Process> {
    let mut command = Command::new(executable("echo")?);
    command.args([&SocketAddr::new(ip, 8080).to_string(), name]);
    Process::spawn(command, &plane.folder().join(format!("echo-{name}.log")))
}

/// A sidecar of ours, which joins by a token and renews every few seconds.
async fn sidecar(plane: &Guarded, service: &str) -> anyhow::Result<Member> {
    let ip = address::fresh();
    let app = app(plane, service, ip)?;
    let (token, kept) = (
        plane.folder().join(format!("{service}.token")),
        plane.folder().join(service),
    );
    plane.does(&["cert", "token", "--service", service, "--out", text(&token)])?;
    let at = |port| SocketAddr::new(ip, port).to_string();
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--service", service, "--workers", "1"])
        .args(["--app", &at(8080), "--control", &plane.xds.to_string()])
        .args(["--inbound", &at(15006), "--outbound", &at(15001)])
        .args(["--admin", &at(15000), "--drain", "1s"])
        .args(["--token-file", text(&token), "--identity-dir", text(&kept)])
        .args(["--renew-before", "8s", "--cert-check", "200ms"]);
    let log = plane.folder().join(format!("sidecar-{service}.log"));
    let member = Member {
        process: Process::spawn(command, &log)?,
        ip,
        _others: vec![app],
    };
    let ready = eventually("the sidecar to be ready", LIMIT, async || {
        let answer = call(member.at(15000), &Call::get("localhost", "/readyz")).await;
        answer.ok().filter(|answer| answer.status == 200)
    });
    ready.await.with_context(|| member.process.log())?;
    Ok(member)
}

/// A stock Envoy for service `battle`, as the page about it says: its way in are files that are renewed, and it takes them up.
async fn stock(plane: &Guarded) -> anyhow::Result<Member> {
    let ip = address::fresh();
    let app = app(plane, "battle", ip)?;
    let files = plane.folder().join("battle-files");
    let operator = plane.data().join("admin");
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["cert", "issue", "--service", "battle", "--watch"])
        .args(["--out", text(&files), "--control", &plane.xds.to_string()])
        .args(["--admin", &plane.admin.to_string()])
        .args(["--renew-before", "8s", "--cert-check", "200ms"])
        .env("PHALANX_ROOTS", operator.join("roots.pem"))
        .env("PHALANX_TOKEN_FILE", operator.join("token"));
    let watching = Process::spawn(command, &plane.folder().join("watch.log"))?;
    eventually("the first files", LIMIT, async || {
        files.join("cert.pem").exists().then_some(())
    })
    .await
    .with_context(|| watching.log())?;
    let config = plane.folder().join("battle.yaml");
    let texts = documented(ip, plane.xds, &files);
    let [own, trust, bootstrap] = &texts[..] else {
        anyhow::bail!("{} blocks in docs/envoy.md", texts.len())
    };
    fs::write(files.join("own.yaml"), own)?;
    fs::write(files.join("trust.yaml"), trust)?;
    fs::write(&config, bootstrap)?;
    let mut command = Command::new(envoy::binary()?);
    command.arg("-c").arg(&config);
    command.args([
        "--concurrency",
        "1",
        "-l",
        "warning",
        "--use-dynamic-base-id",
    ]);
    let log = plane.folder().join("envoy-battle.log");
    Ok(Member {
        process: Process::spawn(command, &log)?,
        ip,
        _others: vec![app, watching],
    })
}

/// What `docs/envoy.md` shows, with the addresses and the folder of this one: `own.yaml`, `trust.yaml` and the bootstrap.
fn documented(ip: IpAddr, xds: SocketAddr, files: &Path) -> Vec<String> {
    let page = include_str!("../../../docs/envoy.md");
    let blocks = page.split("```yaml\n").skip(1);
    let texts = blocks.filter_map(|block| Some(block.split_once("```")?.0));
    let fit = |text: &str| {
        let text = text
            .replace("/etc/envoy/phalanx", &files.display().to_string())
            .replace("arena", "default")
            .replace("127.0.0.1:15001", &format!("{ip}:15001"))
            .replace("10.0.0.7:15006", &format!("{ip}:15006"))
            .replace("127.0.0.1:8080", &format!("{ip}:8080"))
            .replace("address: 10.0.0.1", &format!("address: {}", xds.ip()));
        let admin = format!(
            "admin: {{address: {{socket_address: {{address: {ip}, port_value: 15000}}}}}}\nstatic_resources:"
        );
        text.replace("static_resources:", &admin)
    };
    texts.map(fit).collect()
}

fn apply(plane: &Guarded, name: &str, yaml: &str) -> anyhow::Result<()> {
    let path = plane.folder().join(name);
    fs::write(&path, yaml)?;
    plane.does(&["apply", "-f", text(&path)]).map(drop)
}

/// The caller that the application was told of.
fn told(answer: &Answer) -> String {
    let body = answer.json().to_string();
    let start = body.find("URI=").map_or(0, |at| at + 4);
    let end = body[start..].find('"').unwrap_or_default();
    body[start..start + end].to_owned()
}

fn serial(plane: &Guarded, at: SocketAddr, files: &Path) -> anyhow::Result<String> {
    let said = openssl_client(plane, at, files)?;
    let path = plane.folder().join("shown.pem");
    let (start, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let (from, to) = (said.find(start), said.find(end));
    let (from, to) = from.zip(to).with_context(|| said.clone())?;
    fs::write(&path, &said[from..to + end.len()])?;
    plane.agrees(&format!("x509 -in {} -noout -serial", text(&path)))
}

fn openssl_client(plane: &Guarded, at: SocketAddr, files: &Path) -> anyhow::Result<String> {
    let f = text(files);
    let said = plane.openssl(&format!(
        "s_client -connect {at} -status -cert {f}/cert.pem -key {f}/key.pem -cert_chain {f}/cert.pem -CAfile {f}/roots.pem"
    ))?;
    Ok(said.text)
}

#[tokio::test]
async fn an_envoy_calls_and_is_called_with_mutual_tls_and_its_certificate_rotates()
-> anyhow::Result<()> {
    let mut plane = Guarded::start_with(&["--leaf-ttl", "12s"]).await?;
    let gate = sidecar(&plane, "gate").await?;
    let stranger = sidecar(&plane, "stranger").await?;
    let battle = stock(&plane).await?;
    let files: PathBuf = plane.folder().join("battle-files");
    apply(
        &plane,
        "services.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: battle}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: gate}}\nspec: {{selector: {{app: gate}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: battle, labels: {{kubernetes.io/service-name: battle, phalanx.dev/tls: mutual}}}}\naddressType: IPv4\nports: [{{name: http, port: 15006}}]\nendpoints: [{{addresses: [{}]}}]\n---\napiVersion: phalanx.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: all}}\nspec: {{mtls: {{mode: Strict}}}}\n",
            battle.ip
        ),
    )?;

    // Our sidecar calls Envoy, and Envoy our sidecar; each application is told who called.
    let answer = gate.meets("battle", 200).await?;
    assert_eq!(told(&answer), "spiffe://phalanx.local/ns/default/sa/gate");
    let answer = battle.meets("gate", 200).await?;
    assert_eq!(told(&answer), "spiffe://phalanx.local/ns/default/sa/battle");

    // In plain text nobody comes in.
    let plain = call(battle.at(15006), &Call::get("battle", "/")).await;
    assert!(plain.is_err(), "{plain:?}");

    // Its certificate is its own, of the authority, and stapled.
    let said = openssl_client(&plane, battle.at(15006), &files)?;
    assert!(said.contains("OCSP Response Status: successful"), "{said}");
    assert!(said.contains("Cert Status: good"), "{said}");
    assert!(said.contains("Verify return code: 0"), "{said}");

    // Whom to trust comes with the revocation lists; its key it shows to nobody.
    let dump = Call::get("localhost", "/config_dump?resource=dynamic_active_secrets");
    let dump = call(battle.at(15000), &dump).await?.json().to_string();
    assert!(
        dump.contains("\"crl\"") && !dump.contains("PRIVATE KEY"),
        "{dump}"
    );

    // Only the gate may call, and only this way.
    stranger.meets("battle", 200).await?;
    apply(
        &plane,
        "policy.yaml",
        "apiVersion: phalanx.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: battle}\nspec:\n  targetRefs: [{kind: Service, name: battle}]\n  action: Allow\n  rules: [{from: [{services: [gate]}], methods: [GET]}]\n",
    )?;
    stranger.meets("battle", 403).await?;
    assert_eq!(gate.calls("battle", "/").await?.status, 200);

    // While calls go on, its certificate is replaced, and ours.
    let before = serial(&plane, battle.at(15006), &files)?;
    let load = Load::start(
        gate.at(15001),
        &Call::get("battle", "/"),
        4,
        Duration::from_millis(5),
    );
    eventually("another certificate of Envoy's", LIMIT, async || {
        let now = serial(&plane, battle.at(15006), &files).ok()?;
        (now != before).then_some(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert!(report.sent > 10, "{}", report.sent);

    // The root is replaced as well, and then the control plane starts again: Envoy shows what it has in files now, since what
    // it began with has ended, and trusts the root that is there now.
    plane.does(&["cert", "rotate-root", "--begin"])?;
    eventually("the new root alone", 4 * LIMIT, async || {
        let said = plane.does(&["cert", "rotate-root", "-o", "json"]).ok()?;
        let status: serde_json::Value = serde_json::from_str(&said).ok()?;
        (status["phase"] == "steady").then_some(())
    })
    .await
    .with_context(|| battle.process.log())?;
    plane.restart().await?;
    plane.does(&["delete", "authorizationpolicy", "battle"])?;
    stranger.meets("battle", 200).await?;
    gate.meets("battle", 200).await.map(drop)
}
