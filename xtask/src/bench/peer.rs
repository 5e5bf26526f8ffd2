//! The proxies: how each is started with one worker on core 0.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::case::{Case, LISTEN, Load, Wire};
use super::load::Flood;
use super::running::{Child, LOAD_CORE, Running, pinned, wait_for_port};
use super::sample::DIRECT;
use super::{manifest, pair};
use crate::setup;

pub struct Peer {
    pub name: &'static str,
    start: Start,
    /// None: it can't carry HTTP/2 over TLS to the next hop.
    pair: Option<Start>,
}

type Start = fn(&Path, &Path, &Case) -> anyhow::Result<Running>;

pub const ALL: &[Peer] = &[
    Peer {
        name: DIRECT,
        start: direct,
        pair: None,
    },
    Peer {
        name: "phalanx",
        start: phalanx,
        pair: Some(pair::phalanx),
    },
    Peer {
        name: "envoy",
        start: envoy,
        pair: Some(pair::envoy),
    },
    Peer {
        name: "haproxy",
        start: haproxy,
        pair: Some(pair::haproxy),
    },
    Peer {
        name: "nginx",
        start: nginx,
        pair: None,
    },
];

impl Peer {
    pub fn takes(&self, case: &Case) -> bool {
        match case.load {
            Load::Paced if self.name == DIRECT => true,
            _ if self.name == DIRECT => false,
            // Its ports speak one version of HTTP each, and the good client's is the other.
            Load::Flood(Flood::Reset) if self.name == "nginx" => false,
            // Envoy has a socket for each session, more than there are descriptors.
            Load::Idle if case.is_udp() => self.name == "phalanx",
            _ if case.is_udp() => matches!(self.name, "phalanx" | "envoy"),
            _ => !case.paired || self.pair.is_some(),
        }
    }

    pub fn start(&self, root: &Path, work: &Path, case: &Case) -> anyhow::Result<Running> {
        let running = match (case.paired, self.pair) {
            (true, Some(pair)) => pair(root, work, case)?,
            (true, None) if self.name != DIRECT => bail!("it has no pair"),
            _ => (self.start)(root, work, case)?,
        };
        case.wait_for(running.entry)?;
        if !case.is_udp() {
            wait_until_routed(case, running.entry)?;
        }
        Ok(running)
    }
}

/// No proxy.
fn direct(_: &Path, _: &Path, case: &Case) -> anyhow::Result<Running> {
    let mut running = Running::of(Vec::new(), Vec::new());
    running.entry = case.backend();
    Ok(running)
}

/// A listening proxy may not have its routes yet.
fn wait_until_routed(case: &Case, entry: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    if case.is_tcp() {
        while Instant::now() < deadline {
            if echoes(entry).unwrap_or(false) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("it listens on {entry} but passes no bytes on")
    }
    let http2 = case.wire == Wire::Http2 && !case.paired;
    let version = if http2 {
        "--http2-prior-knowledge"
    } else {
        "--http1.1"
    };
    while Instant::now() < deadline {
        let output = Command::new("curl")
            .args([
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                version,
                "-H",
                "Host: backend",
                "-H",
                "content-type: application/grpc",
            ])
            .args([
                "-X",
                if http2 { "POST" } else { "GET" },
                "--connect-to",
                &format!("backend:80:{entry}"),
                "http://backend/",
            ])
            .output()?;
        if output.stdout == b"200" {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("it listens on {entry} but never answered 200")
}

/// Whether the backend is behind it.
fn echoes(entry: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(entry)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"echo")?;
    let mut answer = [0; 3];
    stream.read_exact(&mut answer)?;
    Ok(answer == *b"cho")
}

/// The product as users run it: a control plane (on the other core), manifests, and a sidecar that gets its routes by xDS.
fn phalanx(root: &Path, work: &Path, case: &Case) -> anyhow::Result<Running> {
    const XDS: &str = "127.0.0.1:18110";
    const ADMIN: &str = "127.0.0.1:18111";
    let binary = root.join("target/dist/phalanx");
    let data = work.join("phalanx");
    let _ = fs::remove_dir_all(&data);
    let mut control = Command::new("taskset");
    control
        .args(["-c", LOAD_CORE])
        .arg(&binary)
        .args([
            "control",
            "--open",
            "--xds",
            XDS,
            "--admin",
            ADMIN,
            "--dns",
            "127.0.0.1:0",
            "--ocsp",
            "none",
            "--data",
        ])
        .arg(&data);
    let control = Child::spawn(&mut control, "the control plane")?;
    wait_for_port(ADMIN)?;
    let manifest = write(work, "phalanx.yaml", &manifest::outside(case))?;
    let applied = Command::new(&binary)
        .args(["apply", "--admin", ADMIN, "-f"])
        .arg(&manifest)
        .output()?;
    if !applied.status.success() {
        bail!(
            "phalanx apply: {}",
            String::from_utf8_lossy(&applied.stderr)
        );
    }
    let tcp = format!("{LISTEN}=backend:80");
    let listen: &[&str] = match case.wire {
        Wire::Tcp => &["--tcp", &tcp, "--outbound", "127.0.0.1:18114"],
        Wire::Http1 | Wire::Http2 | Wire::Udp => &["--outbound", LISTEN],
    };
    if case.is_udp() {
        // At an edge, where clients have limits.
        let mut edge = pinned(&binary);
        edge.args(["proxy", "--gateway", "bench", "--bind", "127.0.0.1"]);
        edge.args([
            "--control",
            XDS,
            "--workers",
            "1",
            "--admin",
            "127.0.0.1:18113",
        ]);
        edge.arg("--tls-dir").arg(&data);
        let edge = Child::spawn(&mut edge, "the edge")?;
        return Ok(Running::of(vec![edge], vec![control]));
    }
    let proxy = Child::spawn(
        pinned(&binary)
            .args([
                "proxy",
                "--service",
                "bench",
                "--app",
                case.backend(),
                "--control",
                XDS,
            ])
            .args(listen)
            .args([
                "--workers",
                "1",
                "--inbound",
                "127.0.0.1:18112",
                "--admin",
                "127.0.0.1:18113",
            ]),
        "the sidecar",
    )?;
    Ok(Running::of(vec![proxy], vec![control]))
}

fn envoy(root: &Path, work: &Path, case: &Case) -> anyhow::Result<Running> {
    let (address, port) = case.backend().split_once(':').unwrap_or_default();
    let (listen, listen_port) = LISTEN.split_once(':').unwrap_or_default();
    if case.is_udp() {
        let config = UDP_PROXY
            .replace(
                "LISTEN",
                &format!("{{address: {listen}, port_value: {listen_port}, protocol: UDP}}"),
            )
            .replace(
                "BACKEND",
                &format!("{{address: {address}, port_value: {port}, protocol: UDP}}"),
            );
        return start_envoy(root, &write(work, "envoy-udp.yaml", &config)?);
    }
    let upstream = if case.wire == Wire::Http2 {
        "http2_protocol_options: {}"
    } else {
        "http_protocol_options: {}"
    };
    let filter = match case.is_tcp() {
        true => TCP_PROXY,
        false => HTTP_PROXY,
    };
    let config = write(
        work,
        "envoy.yaml",
        &format!(
            r#"static_resources:
  listeners:
  - name: bench
    address: {{socket_address: {{address: {listen}, port_value: {listen_port}}}}}
    filter_chains:
    - filters:
{filter}  clusters:
  - name: backend
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{{upstream}}}
    load_assignment:
      cluster_name: backend
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {address}, port_value: {port}}}}}}}}}]}}]
"#
        ),
    )?;
    start_envoy(root, &config)
}

fn start_envoy(root: &Path, config: &Path) -> anyhow::Result<Running> {
    let proxy = Child::spawn(
        pinned(setup::envoy(root)).arg("-c").arg(config).args([
            "--concurrency",
            "1",
            "-l",
            "error",
            "--disable-hot-restart",
        ]),
        "envoy",
    )?;
    Ok(Running::of(vec![proxy], Vec::new()))
}

/// Envoy's filter chain.
const HTTP_PROXY: &str = r#"      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          codec_type: AUTO
          route_config:
            virtual_hosts:
            - {name: backend, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: backend}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"#;
/// With its defaults: a session for a minute, as ours.
const UDP_PROXY: &str = r#"static_resources:
  listeners:
  - name: bench
    address: {socket_address: LISTEN}
    udp_listener_config: {downstream_socket_config: {max_rx_datagram_size: 9000}}
    listener_filters:
    - name: envoy.filters.udp_listener.udp_proxy
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig
        stat_prefix: bench
        matcher:
          on_no_match:
            action:
              name: route
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route
                cluster: backend
  clusters:
  - name: backend
    type: STATIC
    load_assignment:
      cluster_name: backend
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: BACKEND}}}]}]
"#;
const TCP_PROXY: &str = r#"      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: bench
          cluster: backend
"#;

fn haproxy(_: &Path, work: &Path, case: &Case) -> anyhow::Result<Running> {
    let protocol = if case.wire == Wire::Http2 {
        "proto h2"
    } else {
        ""
    };
    let mode = match case.is_tcp() {
        true => "mode tcp\n  option splice-auto\n  option splice-request\n  option splice-response",
        false => "mode http\n  http-reuse always",
    };
    let config = write(
        work,
        "haproxy.cfg",
        &format!(
            "{}defaults\n  {mode}\n  timeout connect 5s\n  timeout client 600s\n  timeout server 60s\n\
             frontend bench\n  bind {LISTEN} {protocol}\n  default_backend backend\nbackend backend\n  server one {} {protocol}\n",
            haproxy_global(case),
            case.backend()
        ),
    )?;
    let proxy = Child::spawn(
        pinned("haproxy").arg("-db").arg("-f").arg(&config),
        "haproxy",
    )?;
    Ok(Running::of(vec![proxy], Vec::new()))
}

/// Of one thread. It would refuse to start where descriptors may not suffice for two of each connection.
pub fn haproxy_global(case: &Case) -> String {
    format!(
        "global\n  nbthread 1\n  no strict-limits\n  maxconn {}\n",
        case.connections()
    )
}

fn nginx(_: &Path, work: &Path, case: &Case) -> anyhow::Result<Running> {
    if case.is_tcp() {
        return nginx_stream(work, case);
    }
    let (listen, pass) = match case {
        _ if case.wire == Wire::Http2 => (
            format!("{LISTEN} http2"),
            "grpc_pass grpc://backend;".to_owned(),
        ),
        _ => (
            LISTEN.to_owned(),
            "proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\";"
                .to_owned(),
        ),
    };
    let config = write(
        work,
        "nginx.conf",
        &format!(
            "worker_processes 1;\npid {0}/nginx.pid;\nerror_log /dev/null;\nevents {{ worker_connections {2}; }}\nhttp {{\n  access_log off; keepalive_timeout 600s;\n\
             \x20 client_body_temp_path {0}/nginx-body;\n  proxy_temp_path {0}/nginx-proxy;\n  fastcgi_temp_path {0}/nginx-fastcgi;\n\
             \x20 uwsgi_temp_path {0}/nginx-uwsgi;\n  scgi_temp_path {0}/nginx-scgi;\n  keepalive_requests 1000000000;\n\
             \x20 upstream backend {{ server {1}; keepalive 128; keepalive_requests 1000000000; }}\n\
             \x20 server {{ listen {listen}; location / {{ {pass} }} }}\n}}\n",
            work.display(),
            case.backend(),
            // With fewer than a sixteenth left it closes idle ones.
            case.connections() * 9 / 8 + 256
        ),
    )?;
    start_nginx(&config)
}

fn nginx_stream(work: &Path, case: &Case) -> anyhow::Result<Running> {
    let config = write(
        work,
        "nginx-stream.conf",
        &format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nworker_processes 1;\npid {}/nginx.pid;\nerror_log /dev/null;\n\
             events {{ worker_connections 4096; }}\nstream {{ server {{ listen {LISTEN}; proxy_pass {}; }} }}\n",
            work.display(),
            case.backend()
        ),
    )?;
    start_nginx(&config)
}

fn start_nginx(config: &Path) -> anyhow::Result<Running> {
    let mut nginx = pinned("/usr/sbin/nginx");
    nginx.args(["-g", "daemon off;", "-c"]).arg(config);
    let proxy = Child::spawn(&mut nginx, "nginx")?;
    Ok(Running::of(vec![proxy], Vec::new()))
}

pub fn write(work: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = work.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
