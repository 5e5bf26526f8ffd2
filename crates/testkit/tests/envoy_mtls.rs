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
    _app: Process,
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
        _app: app,
    };
    let ready = eventually("the sidecar to be ready", LIMIT, async || {
        let answer = call(member.at(15000), &Call::get("localhost", "/readyz")).await;
        answer.ok().filter(|answer| answer.status == 200)
    });
    ready.await.with_context(|| member.process.log())?;
    Ok(member)
}

/// A stock Envoy, whose way in are files that the operator had issued.
fn stock(plane: &Guarded, service: &str) -> anyhow::Result<Member> {
    let ip = address::fresh();
    let app = app(plane, service, ip)?;
    let files = plane.folder().join(format!("{service}-files"));
    plane.does(&[
        "cert",
        "issue",
        "--service",
        service,
        "--ttl",
        "1h",
        "--out",
        text(&files),
    ])?;
    let config = plane.folder().join(format!("{service}.yaml"));
    fs::write(&config, bootstrap(service, ip, plane.xds, &files))?;
    let mut command = Command::new(envoy::binary()?);
    command.arg("-c").arg(&config);
    command.args([
        "--concurrency",
        "1",
        "-l",
        "warning",
        "--use-dynamic-base-id",
    ]);
    let log = plane.folder().join(format!("envoy-{service}.log"));
    Ok(Member {
        process: Process::spawn(command, &log)?,
        ip,
        _app: app,
    })
}

fn bootstrap(service: &str, ip: IpAddr, xds: SocketAddr, files: &Path) -> String {
    let (files, xds_ip, xds_port) = (text(files), xds.ip(), xds.port());
    format!(
        r#"node:
  id: default/{service}/envoy-1
  cluster: {service}
  metadata: {{service: {service}, namespace: default, outbound: "{ip}:15001", inbound: "{ip}:15006", app: "{ip}:8080"}}
admin:
  address: {{socket_address: {{address: {ip}, port_value: 15000}}}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          tls_certificates: [{{certificate_chain: {{filename: "{files}/cert.pem"}}, private_key: {{filename: "{files}/key.pem"}}}}]
          validation_context:
            trusted_ca: {{filename: "{files}/roots.pem"}}
            match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "spiffe://phalanx.local/ns/phalanx-system/sa/control"}}}}]
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {xds_ip}, port_value: {xds_port}}}}}}}}}]}}]
"#
    )
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
    let plane = Guarded::start_with(&["--leaf-ttl", "12s"]).await?;
    let gate = sidecar(&plane, "gate").await?;
    let stranger = sidecar(&plane, "stranger").await?;
    let battle = stock(&plane, "battle")?;
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
    assert!(report.sent > 100, "{}", report.sent);
    Ok(())
}
