//! The edge: one Gateway, run by our data plane and by a stock Envoy at the same time, called from outside by curl over HTTP,
//! HTTPS, TLS that a backend ends itself, and raw TCP. Both answer alike.

mod gateway {
    pub mod hostile;
    pub mod peers;
    pub mod split;
    pub mod upgrade;
}

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, envoy, eventually};

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: phalanx
  listeners:
  - {name: web, port: 8080, protocol: HTTP}
  - {name: narrow, port: 8080, protocol: HTTP, hostname: only.example.com}
  - {name: secure, port: 8443, protocol: HTTPS, hostname: "*.example.com", tls: {certificateRefs: [{name: web}]}}
  - {name: through, port: 8443, protocol: TLS, hostname: pass.example.com, tls: {mode: Passthrough}}
  - {name: raw, port: 9000, protocol: TCP}
---
apiVersion: v1
kind: Service
metadata: {name: tls}
spec: {selector: {app: tls}, ports: [{port: 443, appProtocol: tcp}]}
---
apiVersion: v1
kind: Service
metadata: {name: raw}
spec: {selector: {app: raw}, ports: [{port: 9000, appProtocol: tcp}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: play}
spec:
  parentRefs: [{name: edge, sectionName: web}, {name: edge, sectionName: secure}]
  hostnames: [play.example.com, "*.wide.example.com"]
  rules:
  - matches: [{path: {value: /api}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-edge, value: "yes"}]}}
    backendRefs: [{name: web, port: 8080}]
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}, statusCode: 301}}]
  - matches: [{headers: [{name: x-env, value: canary}]}]
    backendRefs: [{name: nowhere, port: 1}]
  - matches: [{path: {value: /nowhere}}]
    backendRefs: [{name: nowhere, port: 1}]
  - backendRefs: [{name: web, port: 8080}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: {name: through}
spec:
  parentRefs: [{name: edge, sectionName: through}]
  rules: [{backendRefs: [{name: tls, port: 443}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: raw}
spec:
  parentRefs: [{name: edge, sectionName: raw}]
  rules: [{backendRefs: [{name: raw, port: 9000}]}]
---
apiVersion: phalanx.dev/v1alpha1
kind: ColourPolicy
metadata: {name: colours}
spec:
  targetRefs: [{kind: Gateway, name: edge}]
  env: {networks: [{cidr: 127.0.0.0/8, value: office}, {cidr: 10.0.0.0/8, value: staging}], default: prod}
"#;

/// Serves TLS by itself: certificate, key, address.
const TLS_SERVER: &str = r#"
import http.server, ssl, sys
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "10")
        self.end_headers()
        self.wfile.write(b"own handsh")
    def log_message(self, *_): pass
host, port = sys.argv[3].split(":")
server = http.server.ThreadingHTTPServer((host, int(port)), Answer)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"#;

/// A certificate of its own authority for a host, as an edge finds it.
fn certificate(folder: &Path, name: &str, host: &str) -> anyhow::Result<PathBuf> {
    let pair = rcgen::generate_simple_self_signed([host.to_owned()])?;
    let at = folder.join(name);
    fs::create_dir_all(&at)?;
    fs::write(at.join("tls.crt"), pair.cert.pem())?;
    fs::write(at.join("tls.key"), pair.signing_key.serialize_pem())?;
    Ok(at.join("tls.crt"))
}

/// Our data plane at the edge.
fn edge(
    folder: &Path,
    control: SocketAddr,
    ip: IpAddr,
    tls_dir: &Path,
    extra: &[&str],
) -> anyhow::Result<Process> {
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--gateway", "edge", "--bind", &ip.to_string()])
        .args(["--tls-dir", &tls_dir.display().to_string()])
        .args(["--admin", &SocketAddr::new(ip, 15000).to_string()])
        .args(["--control", &control.to_string(), "--workers", "2"])
        .args(["--drain", "1s"])
        .args(extra);
    Process::spawn(command, &folder.join(format!("edge-{ip}.log")))
}

/// Envoy, as `phalanx bootstrap` has it.
fn stock(mesh: &Mesh, ip: IpAddr, tls_dir: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["bootstrap", "--gateway", "edge", "--write-secrets"])
        .arg("--tls-dir")
        .arg(tls_dir)
        .args(["--instance", &format!("envoy-{ip}").replace('.', "-")])
        .args(["--bind", &ip.to_string()])
        .args(["--admin", &SocketAddr::new(ip, 15000).to_string()])
        .args(["--control", &mesh.xds.to_string()]);
    let printed = command.output()?;
    let why = String::from_utf8_lossy(&printed.stderr);
    anyhow::ensure!(printed.status.success(), "{why}");
    let config = mesh.folder().join(format!("envoy-{ip}.yaml"));
    fs::write(&config, printed.stdout)?;
    let mut command = Command::new(envoy::binary()?);
    command.arg("-c").arg(&config).args([
        "--concurrency",
        "1",
        "-l",
        "warning",
        "--use-dynamic-base-id",
    ]);
    Process::spawn(command, &mesh.folder().join(format!("envoy-{ip}.log")))
}

/// What curl sees of `host` at an edge, in one line: how it ended, the status, a few fields, the body.
fn curl(ip: IpAddr, url: &str, words: &[&str]) -> anyhow::Result<String> {
    let host = url.split('/').nth(2).context("no host")?;
    let (name, port) = host.split_once(':').context("no port")?;
    let output = Command::new("curl")
        .args(["-sS", "-m", "10", "-i", "--http1.1"])
        .args(["--resolve", &format!("{name}:{port}:{ip}")])
        .args(words)
        .arg(url)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let told = |line: &&str| {
        let line = line.to_ascii_lowercase();
        ["http/", "location:", "x-edge:", "x-phalanx-reason:"]
            .iter()
            .any(|begin| line.starts_with(begin))
    };
    let mut lines: Vec<String> = head
        .lines()
        .filter(told)
        .map(str::to_ascii_lowercase)
        .collect();
    if let Some(status) = lines.first_mut() {
        *status = status.split(' ').nth(1).unwrap_or_default().to_owned();
    }
    lines.sort_unstable();
    let seen: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let of = |name: &str| seen["headers"][name].to_string();
    let body = match seen.is_null() {
        true if body.contains("own handsh") => body.to_owned(),
        true => String::new(), // words of an error are each proxy's own
        false => {
            let names = ["x-forwarded-proto", "x-env", "x-plain"];
            let mut headers: Vec<String> = names.iter().map(|name| of(name)).collect();
            // Envoy tells another address than loopback; what came before it has to stay.
            let addresses = of("x-forwarded-for").replace(' ', "");
            let said = addresses.rsplit_once(',').map_or("", |(said, _)| said);
            headers.push(said.trim_matches('"').to_owned());
            let hidden = ["x-phalanx-test", "x-canary-id", "x_twin"];
            let hidden: String = hidden.iter().map(|name| of(name)).collect();
            format!(
                "{} {} {} {hidden}",
                seen["name"],
                seen["path"],
                headers.join(" ")
            )
        }
    };
    let code = output.status.code().unwrap_or(-1);
    Ok(format!("{code} {} {body}", lines.join(" ")))
}

/// Waits until `url` is answered so.
async fn answered(ip: IpAddr, url: &str, words: &[&str], wanted: &str) -> anyhow::Result<()> {
    let mut last = String::new();
    let met = eventually(url, READY_MAX, async || {
        last = curl(ip, url, words).unwrap_or_default();
        last.contains(wanted).then_some(())
    });
    let met = met.await;
    met.with_context(|| format!("last: {last}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_the_same_whoever_runs_it() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let tls_dir = mesh.folder().join("tls");
    let ca = certificate(&tls_dir, "web", "play.example.com")?;
    let own = certificate(&tls_dir, "own", "pass.example.com")?;
    let _web = mesh.instance("web", "v1", "web").await?;
    let (raw_ip, tls_ip) = (address::fresh(), address::fresh());
    let raw_app = SocketAddr::new(raw_ip, 9000);
    let tls_app = SocketAddr::new(tls_ip, 8443);
    let _raw = (
        mesh.echo(raw_app, "raw")?,
        mesh.sidecar("raw", "v1", raw_ip, &["--app", &format!("tcp={raw_app}")])?,
    );
    let script = mesh.folder().join("server.py");
    fs::write(&script, TLS_SERVER)?;
    let mut command = Command::new("python3");
    command.arg(&script).arg(&own);
    command
        .arg(own.with_file_name("tls.key"))
        .arg(tls_app.to_string());
    let _tls = (
        Process::spawn(command, &mesh.folder().join("server.log"))?,
        mesh.sidecar("tls", "v1", tls_ip, &["--app", &format!("tcp={tls_app}")])?,
    );
    mesh.registered("raw", SocketAddr::new(raw_ip, 15006))
        .await?;
    mesh.registered("tls", SocketAddr::new(tls_ip, 15006))
        .await?;
    mesh.apply(GATEWAY).await?;
    let (ours, envoys) = (address::fresh(), address::fresh());
    let edge = edge(mesh.folder(), mesh.xds, ours, &tls_dir, &[])?;
    let envoy = stock(&mesh, envoys, &tls_dir)?;
    let (ca, own) = (ca.display().to_string(), own.display().to_string());
    let secure = ["--cacert", &ca];
    for (ip, process) in [(ours, &edge), (envoys, &envoy)] {
        for (url, words, wanted) in [
            ("http://play.example.com:8080/", &[][..], "\"web\""),
            ("https://play.example.com:8443/", &secure, "\"web\""),
            (
                "https://pass.example.com:8443/",
                &["--cacert", &own],
                "own handsh",
            ),
            ("http://whatever:9000/", &[], "\"raw\""),
        ] {
            let met = answered(ip, url, words, wanted).await;
            met.with_context(|| process.log())?;
        }
    }

    let forged = [
        "-H",
        "x-env: canary",
        "-H",
        "x-canary-id: 1",
        "-H",
        "x-phalanx-test: 1",
        "-H",
        "x_twin: 1",
        "-H",
        "x-plain: 1",
        "-H",
        "x-forwarded-proto: gopher",
        "-H",
        "x-forwarded-for: 1.2.3.4",
    ];
    let cases: [(&str, &[&str], &str); 19] = [
        (
            "http://play.example.com:8080/api/x",
            &[],
            "0 200 x-edge: yes \"web\" \"/v1/x\" \"http\"",
        ),
        (
            "http://play.example.com:8080/old/x",
            &[],
            "0 301 location: http://play.example.com:8080/new",
        ),
        (
            "https://play.example.com:8443/old/x",
            &secure,
            "0 301 location: https://play.example.com:8443/new",
        ),
        (
            "http://play.example.com:8080/nowhere",
            &[],
            "0 500 x-phalanx-reason: invalid_backend",
        ),
        ("http://a.wide.example.com:8080/", &[], "0 200 \"web\""),
        (
            "http://wide.example.com:8080/",
            &[],
            "0 404 x-phalanx-reason: no_route",
        ),
        (
            "http://only.example.com:8080/",
            &[],
            "0 404 x-phalanx-reason: no_route",
        ),
        (
            "http://other.org:8080/",
            &[],
            "0 404 x-phalanx-reason: no_route",
        ),
        (
            "https://play.example.com:8443/api/x",
            &secure,
            "0 200 x-edge: yes \"web\" \"/v1/x\" \"https\"",
        ),
        (
            "https://play.example.com:8443/",
            &["--cacert", &ca, "--http2"],
            "0 200 \"web\"",
        ),
        (
            "http://play.example.com:8080/",
            &forged,
            "0 200 \"web\" \"/\" \"http\" \"office\" \"1\" 1.2.3.4 nullnullnull",
        ),
        ("https://play.example.com:8443/", &["--cacert", &own], "60 "),
        (
            "https://other.example.com:8443/",
            &["-k"],
            "0 404 x-phalanx-reason: no_route",
        ),
        ("https://play.example.org:8443/", &["-k"], "35 "),
        ("https://pass.example.com:8443/", &["--cacert", &ca], "60 "),
        (
            "https://pass.example.com:8443/",
            &["--cacert", &own],
            "own handsh",
        ),
        ("http://play.example.com:8443/", &[], ""),
        ("http://whatever:9000/x", &[], "0 200 \"raw\" \"/x\""),
        (
            "http://play.example.com:8080/",
            &["-H", "host: play.example.com"],
            "0 200 \"web\"",
        ),
    ];
    let mut differing = Vec::new();
    for (url, words, wanted) in cases {
        let (one, other) = (curl(ours, url, words)?, curl(envoys, url, words)?);
        let is_plain_at_tls = url.starts_with("http:") && url.contains(":8443");
        let same =
            one == other || (is_plain_at_tls && !one.contains("200") && !other.contains("200"));
        if !same || !one.contains(wanted) {
            differing.push(format!(
                "{url} {words:?}\n  wanted {wanted}\n  ours   {one}\n  envoy  {other}"
            ));
        }
    }
    anyhow::ensure!(differing.is_empty(), "{}", differing.join("\n"));

    // What this machine can't serve is refused with the reason, and in force as soon as it can.
    let more = GATEWAY.split("---").next().unwrap_or_default();
    let more = format!(
        "{more}  - {{name: later, port: 8444, protocol: HTTPS, tls: {{certificateRefs: [{{name: later}}]}}}}\n"
    );
    let files = vec![phalanx_client::api::File {
        name: "more.yaml".into(),
        text: more,
    }];
    let request = phalanx_client::api::ApplyRequest {
        files,
        author: "test".into(),
        ..Default::default()
    };
    let revision = mesh.client().apply(&request).await?.revision;
    let refused = async || {
        let mut command = Command::new(executable("phalanx").ok()?);
        command.args(["status", "--admin", &mesh.admin.to_string()]);
        Some(String::from_utf8_lossy(&command.output().ok()?.stdout).into_owned())
    };
    eventually("both to say why", READY_MAX, async || {
        let said = refused().await?;
        let both = said.contains("later/tls.crt") && said.contains("later.yaml");
        both.then_some(())
    })
    .await
    .with_context(|| edge.log())?;
    let later = certificate(&tls_dir, "later", "later.example.com")?
        .display()
        .to_string();
    let words = ["--cacert", &*later];
    answered(ours, "https://later.example.com:8444/", &words, "0 404").await?;
    eventually("our edge to say that it has it", READY_MAX, async || {
        (!refused().await?.contains("later/tls.crt")).then_some(())
    })
    .await?;
    // Another certificate in the same place.
    let renewed = certificate(&tls_dir, "web", "play.example.com")?
        .display()
        .to_string();
    let words = ["--cacert", &*renewed];
    answered(ours, "https://play.example.com:8443/", &words, "\"web\"").await?;
    // A Gateway that goes takes its sockets along.
    let gone = Call::get("play.example.com", "/");
    let mut command = Command::new(executable("phalanx")?);
    command.args([
        "delete",
        "gateway",
        "edge",
        "--admin",
        &mesh.admin.to_string(),
    ]);
    anyhow::ensure!(command.output()?.status.success());
    eventually("the sockets to close", READY_MAX, async || {
        let answer = call(SocketAddr::new(ours, 8080), &gone).await;
        answer.is_err().then_some(())
    })
    .await?;
    anyhow::ensure!(revision > 0);
    Ok(())
}

/// The edge is somebody in the mesh: backends that take nobody without a certificate know it by its name.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_calls_the_mesh_with_its_own_identity() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let ip = address::fresh();
    let app = SocketAddr::new(ip, 8080);
    let mut command = Command::new(executable("echo")?);
    command.args([&app.to_string(), "web"]);
    let _app = Process::spawn(command, &plane.folder().join("echo.log"))?;
    let token = |service: &str| -> anyhow::Result<String> {
        let path = plane.folder().join(format!("{service}.token"));
        let path = path.display().to_string();
        plane.does(&["cert", "token", "--service", service, "--out", &path])?;
        Ok(path)
    };
    let kept = |service: &str| plane.folder().join(service).display().to_string();
    let at = |port| SocketAddr::new(ip, port).to_string();
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--service", "web", "--workers", "1"])
        .args([
            "--app",
            &app.to_string(),
            "--control",
            &plane.xds.to_string(),
        ])
        .args(["--inbound", &at(15006), "--outbound", &at(15001)])
        .args(["--admin", &at(15000), "--drain", "1s"])
        .args([
            "--token-file",
            &token("web")?,
            "--identity-dir",
            &kept("web"),
        ]);
    let _sidecar = Process::spawn(command, &plane.folder().join("sidecar.log"))?;
    let documents = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: phalanx
  listeners: [{name: web, port: 8080, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: play}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: 8080}]}]
---
apiVersion: phalanx.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: web}
spec: {targetRefs: [{kind: Service, name: web}], mtls: {mode: Strict}}
---
apiVersion: phalanx.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: Allow
  rules: [{from: [{services: [edge]}], paths: [{type: Exact, value: /open}]}]
"#;
    let file = plane.folder().join("edge.yaml");
    fs::write(&file, documents)?;
    plane.does(&["apply", "-f", &file.display().to_string()])?;
    let bind = address::fresh();
    let (token, kept) = (token("edge")?, kept("edge"));
    let joins = ["--token-file", &*token, "--identity-dir", &*kept];
    let edge = edge(
        plane.folder(),
        plane.xds,
        bind,
        &plane.folder().join("tls"),
        &joins,
    )?;
    let met = answered(bind, "http://play.example.com:8080/open", &[], "0 200").await;
    met.with_context(|| edge.log())?;
    let answer = curl(bind, "http://play.example.com:8080/closed", &[])?;
    anyhow::ensure!(answer.contains("0 403"), "{answer}");
    Ok(())
}
