//! Pairs: the caller's proxy and the server's, with mutual TLS between them, both on core 0.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::case::{BACKEND_H1, Case, LISTEN};
use super::manifest;
use super::peer::{haproxy_global, write};
use super::running::{Child, LOAD_CORE, Running, pinned, wait_for_port};
use crate::setup;

/// Where the server's proxy listens.
pub const BETWEEN: &str = "127.0.0.1:18120";
/// Of the control plane of our pair.
pub const XDS: &str = "127.0.0.1:18121";
pub const ADMIN: &str = "127.0.0.1:18122";
/// Its folder, within the benchmark's.
pub const DATA: &str = "phalanx-pair";

/// A control plane with its own authority, and two sidecars that joined by tokens; nothing is configured beyond what
/// users write.
pub fn phalanx(root: &Path, work: &Path, _: &Case) -> anyhow::Result<Running> {
    let binary = root.join("target/dist/phalanx");
    let data = work.join(DATA);
    let _ = fs::remove_dir_all(&data);
    fs::create_dir_all(&data)?;
    let mut control = Command::new("taskset");
    control.args(["-c", LOAD_CORE]).arg(&binary);
    control.args(["control", "--xds", XDS, "--admin", ADMIN]);
    control.args(["--dns", "127.0.0.1:0", "--ocsp", "127.0.0.1:0"]);
    let control = Child::spawn(control.arg("--data").arg(&data), "the control plane")?;
    wait_for_operator(&data)?;
    wait_for_port(ADMIN)?;
    let operator = |arguments: &[&str]| -> anyhow::Result<Vec<u8>> {
        let output = Command::new(&binary)
            .args(arguments)
            .env("PHALANX_ADMIN", ADMIN)
            .env("PHALANX_ROOTS", data.join("admin/roots.pem"))
            .env("PHALANX_TOKEN_FILE", data.join("admin/token"))
            .output()?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("phalanx {}: {told}", arguments.join(" "));
        }
        Ok(output.stdout)
    };
    let manifest = write(&data, "pair.yaml", &manifest::inside())?;
    operator(&["apply", "-f", &manifest.to_string_lossy()])?;
    let sidecar = |service: &str, app: &str, ports: [&str; 3]| -> anyhow::Result<Child> {
        let token = operator(&["cert", "token", "--service", service])?;
        let token = write(
            &data,
            &format!("{service}.token"),
            &String::from_utf8(token)?,
        )?;
        let [inbound, outbound, admin] = ports;
        let mut proxy = pinned(&binary);
        proxy.args([
            "proxy",
            "--service",
            service,
            "--app",
            app,
            "--control",
            XDS,
        ]);
        proxy.args([
            "--inbound",
            inbound,
            "--outbound",
            outbound,
            "--admin",
            admin,
        ]);
        proxy.args(["--workers", "1", "--token-file"]).arg(token);
        proxy.arg("--identity-dir").arg(data.join(service));
        Child::spawn(&mut proxy, "a sidecar")
    };
    let server = sidecar(
        "backend",
        BACKEND_H1,
        [BETWEEN, "127.0.0.1:18123", "127.0.0.1:18124"],
    )?;
    let client = sidecar(
        "bench",
        "127.0.0.1:18101",
        ["127.0.0.1:18125", LISTEN, "127.0.0.1:18126"],
    )?;
    let own = data.join("bench");
    let running = Running::of(vec![client, server], vec![control]);
    Ok(running.with_pem(own.join("cert.pem"), own.join("key.pem")))
}

/// What the operator of a control plane needs is written at its start, after the ports are open.
pub fn wait_for_operator(data: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !data.join("admin/token").exists() {
        if Instant::now() > deadline {
            bail!("{} has no token for an operator", data.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

pub fn envoy(root: &Path, work: &Path, _: &Case) -> anyhow::Result<Running> {
    let pem = Pem::make(work)?;
    let common = format!(
        "tls_certificates: [{{certificate_chain: {{filename: {0}}}, private_key: {{filename: {1}}}}}]\n\
         \x20           validation_context: {{trusted_ca: {{filename: {2}}}}}\n\
         \x20           alpn_protocols: [h2, http/1.1]",
        pem.cert.display(),
        pem.key.display(),
        pem.ca.display()
    );
    let tls = |kind: &str, more: &str| {
        format!(
            "transport_socket:\n        name: tls\n        typed_config:\n          \
             \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}\n{more}          \
             common_tls_context:\n            {common}\n"
        )
    };
    let hop = |listen: &str, to: &str, inbound: &str, outbound: &str, upstream: &str| {
        let ((host, port), (to_host, to_port)) = (split(listen), split(to));
        format!(
            r#"static_resources:
  listeners:
  - name: bench
    address: {{socket_address: {{address: {host}, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          codec_type: AUTO
          route_config:
            virtual_hosts:
            - {{name: backend, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: next}}}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
      {inbound}
  clusters:
  - name: next
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{{upstream}: {{}}}}
    load_assignment:
      cluster_name: next
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {to_host}, port_value: {to_port}}}}}}}}}]}}]
    {outbound}
"#
        )
    };
    let server_tls = tls(
        "DownstreamTlsContext",
        "          require_client_certificate: true\n",
    );
    let client_tls = tls("UpstreamTlsContext", "").replace("\n    ", "\n  ");
    let client_tls = client_tls.replace("[h2, http/1.1]", "[h2]");
    let server = hop(
        BETWEEN,
        BACKEND_H1,
        &server_tls,
        "",
        "http_protocol_options",
    );
    let client = hop(LISTEN, BETWEEN, "", &client_tls, "http2_protocol_options");
    let start = |name: &str, text: &str| -> anyhow::Result<Child> {
        let config = write(work, name, text)?;
        let mut envoy = pinned(setup::envoy(root));
        envoy.arg("-c").arg(config);
        envoy.args(["--concurrency", "1", "-l", "error", "--disable-hot-restart"]);
        Child::spawn(&mut envoy, "envoy")
    };
    let server = start("envoy-server.yaml", &server)?;
    wait_for_port(BETWEEN)?;
    let client = start("envoy-client.yaml", &client)?;
    Ok(Running::of(vec![client, server], Vec::new()).with_pem(pem.cert, pem.key))
}

pub fn haproxy(_: &Path, work: &Path, case: &Case) -> anyhow::Result<Running> {
    let pem = Pem::make(work)?;
    let start = |name: &str, bind: &str, server: &str| -> anyhow::Result<Child> {
        let text = format!(
            "{}defaults\n  mode http\n  timeout connect 5s\n  timeout client 600s\n  timeout server 60s\n\
             \x20 http-reuse always\nfrontend bench\n  bind {bind}\n  default_backend next\nbackend next\n  server one {server}\n",
            haproxy_global(case)
        );
        let config = write(work, name, &text)?;
        let mut haproxy = pinned("haproxy");
        Child::spawn(haproxy.arg("-db").arg("-f").arg(config), "haproxy")
    };
    let (both, ca) = (pem.both.display(), pem.ca.display());
    let server = start(
        "haproxy-server.cfg",
        &format!("{BETWEEN} ssl crt {both} ca-file {ca} verify required alpn h2,http/1.1"),
        BACKEND_H1,
    )?;
    wait_for_port(BETWEEN)?;
    let next =
        format!("{BETWEEN} ssl crt {both} ca-file {ca} verify required verifyhost backend alpn h2");
    let client = start("haproxy-client.cfg", LISTEN, &next)?;
    Ok(Running::of(vec![client, server], Vec::new()).with_pem(pem.cert, pem.key))
}

/// One certificate for both ends, made by openssl.
struct Pem {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    /// `cert` and `key` in one file, as haproxy wants it.
    both: PathBuf,
}

impl Pem {
    fn make(work: &Path) -> anyhow::Result<Self> {
        let file = |name: &str| work.join(name);
        let pem = Self {
            ca: file("pair-ca.pem"),
            cert: file("pair-cert.pem"),
            key: file("pair-key.pem"),
            both: file("pair-both.pem"),
        };
        let ca_key = file("pair-ca-key.pem");
        let request =
            |subject: &str, key: &Path, out: &Path, more: &[&str]| -> anyhow::Result<()> {
                let mut openssl = Command::new("openssl");
                openssl.args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                ]);
                openssl.args(["-days", "2", "-subj", subject]);
                openssl
                    .arg("-keyout")
                    .arg(key)
                    .arg("-out")
                    .arg(out)
                    .args(more);
                let output = openssl.output().context("cannot start openssl")?;
                if !output.status.success() {
                    bail!("openssl: {}", String::from_utf8_lossy(&output.stderr));
                }
                Ok(())
            };
        request("/CN=bench", &ca_key, &pem.ca, &[])?;
        let (ca, ca_key) = (pem.ca.to_string_lossy(), ca_key.to_string_lossy());
        let leaf = [
            "-addext",
            "subjectAltName=DNS:backend",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        request(
            "/CN=backend",
            &pem.key,
            &pem.cert,
            &[&leaf[..], &["-CA", &*ca, "-CAkey", &*ca_key]].concat(),
        )?;
        fs::write(
            &pem.both,
            [fs::read(&pem.cert)?, fs::read(&pem.key)?].concat(),
        )?;
        Ok(pem)
    }
}

fn split(address: &str) -> (&str, &str) {
    address.split_once(':').unwrap_or_default()
}
