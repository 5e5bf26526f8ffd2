//! The proxies: how each is started with one worker on core 0, and what the kernel says of it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::case::{Case, LISTEN};
use super::pair;
use crate::setup;

pub const PROXY_CORE: &str = "0";
pub const LOAD_CORE: &str = "1";

pub struct Peer {
    pub name: &'static str,
    start: fn(&Path, &Path, Case) -> anyhow::Result<Running>,
    /// None: it can't carry HTTP/2 over TLS to the next hop.
    pair: Option<fn(&Path, &Path) -> anyhow::Result<Running>>,
}

pub const ALL: &[Peer] = &[
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
    pub fn takes(&self, case: Case) -> bool {
        case != Case::Pair || self.pair.is_some()
    }

    pub fn start(&self, root: &Path, work: &Path, case: Case) -> anyhow::Result<Running> {
        let running = match (case, self.pair) {
            (Case::Pair, Some(pair)) => pair(root, work)?,
            (Case::Pair, None) => bail!("it has no pair"),
            _ => (self.start)(root, work, case)?,
        };
        wait_for_port(LISTEN)?;
        running.wait_until_routed(case)?;
        Ok(running)
    }
}

/// A child process that ends with its owner.
pub struct Child(process::Child);

impl Child {
    pub fn spawn(command: &mut Command, what: &str) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Ok(Self(child.with_context(|| format!("cannot start {what}"))?))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // nginx's master must end its worker, so ask before forcing.
        let _ = Command::new("kill")
            .args(["-TERM", &self.0.id().to_string()])
            .status();
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The proxies under test, and whatever they need beside them (not counted).
pub struct Running {
    proxies: Vec<Child>,
    _beside: Vec<Child>,
}

impl Running {
    pub fn of(proxies: Vec<Child>, beside: Vec<Child>) -> Self {
        Self {
            proxies,
            _beside: beside,
        }
    }

    /// On-CPU time of all threads of the proxy and of its own children.
    pub fn cpu_ns(&self) -> anyhow::Result<u64> {
        let mut total = 0;
        for pid in self.processes() {
            for task in fs::read_dir(format!("/proc/{pid}/task")).context("the proxy is gone")? {
                let text = fs::read_to_string(task?.path().join("schedstat"))?;
                total += text
                    .split_whitespace()
                    .next()
                    .unwrap_or_default()
                    .parse::<u64>()?;
            }
        }
        Ok(total)
    }

    pub fn resident_mb(&self) -> anyhow::Result<f64> {
        let mut total = 0.0;
        for pid in self.processes() {
            let text =
                fs::read_to_string(format!("/proc/{pid}/status")).context("the proxy is gone")?;
            let line = text
                .lines()
                .find(|l| l.starts_with("VmRSS:"))
                .context("no VmRSS")?;
            total += line
                .split_whitespace()
                .nth(1)
                .unwrap_or_default()
                .parse::<f64>()?
                / 1024.0;
        }
        Ok(total)
    }

    fn processes(&self) -> Vec<u32> {
        let mut all = Vec::new();
        for pid in self.proxies.iter().map(|proxy| proxy.0.id()) {
            let children =
                fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            all.push(pid);
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|c| c.parse::<u32>().ok()),
            );
        }
        all
    }

    /// A listening proxy may not have its routes yet.
    fn wait_until_routed(&self, case: Case) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        if case.is_tcp() {
            while Instant::now() < deadline {
                if echoes().unwrap_or(false) {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            bail!("it listens on {LISTEN} but passes no bytes on")
        }
        let version = if case == Case::H2 {
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
                    if case == Case::H2 { "POST" } else { "GET" },
                    "--connect-to",
                    &format!("backend:80:{LISTEN}"),
                    "http://backend/",
                ])
                .output()?;
            if output.stdout == b"200" {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("it listens on {LISTEN} but never answered 200")
    }
}

/// Whether the backend is behind it.
fn echoes() -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(LISTEN)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"echo")?;
    let mut answer = [0; 3];
    stream.read_exact(&mut answer)?;
    Ok(answer == *b"cho")
}

pub fn wait_for_port(address: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("nothing listens on {address}")
}

pub fn pinned(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", PROXY_CORE]).arg(program);
    command
}

/// The product as users run it: a control plane (on the other core), manifests, and a sidecar that gets its routes by xDS.
fn phalanx(root: &Path, work: &Path, case: Case) -> anyhow::Result<Running> {
    const XDS: &str = "127.0.0.1:18110";
    const ADMIN: &str = "127.0.0.1:18111";
    let binary = root.join("target/release/phalanx");
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
    let manifest = write(work, "phalanx.yaml", &manifest(case))?;
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
    let listen: &[&str] = match case.is_tcp() {
        true => &["--tcp", &tcp, "--outbound", "127.0.0.1:18114"],
        false => &["--outbound", LISTEN],
    };
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

fn manifest(case: Case) -> String {
    let (address, port) = case.backend().split_once(':').unwrap_or_default();
    let protocol = match case {
        Case::H2 => "grpc",
        _ if case.is_tcp() => "tcp",
        _ => "http",
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: backend}}\nspec:\n  ports: [{{name: main, port: 80, targetPort: {port}, appProtocol: {protocol}}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: backend-1, labels: {{kubernetes.io/service-name: backend}}}}\n\
         addressType: IPv4\nports: [{{name: main, port: {port}}}]\nendpoints: [{{addresses: [\"{address}\"]}}]\n---\n\
         apiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: backend}}\nspec:\n  targetRefs: [{{kind: Service, name: backend}}]\n"
    )
}

fn envoy(root: &Path, work: &Path, case: Case) -> anyhow::Result<Running> {
    let (address, port) = case.backend().split_once(':').unwrap_or_default();
    let (listen, listen_port) = LISTEN.split_once(':').unwrap_or_default();
    let upstream = if case == Case::H2 {
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
    let proxy = Child::spawn(
        pinned(setup::envoy(root)).arg("-c").arg(&config).args([
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
const TCP_PROXY: &str = r#"      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: bench
          cluster: backend
"#;

fn haproxy(_: &Path, work: &Path, case: Case) -> anyhow::Result<Running> {
    let protocol = if case == Case::H2 { "proto h2" } else { "" };
    let mode = match case.is_tcp() {
        true => "mode tcp\n  option splice-auto\n  option splice-request\n  option splice-response",
        false => "mode http\n  http-reuse always",
    };
    let config = write(
        work,
        "haproxy.cfg",
        &format!(
            "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  {mode}\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend bench\n  bind {LISTEN} {protocol}\n  default_backend backend\nbackend backend\n  server one {} {protocol}\n",
            case.backend()
        ),
    )?;
    let proxy = Child::spawn(
        pinned("haproxy").arg("-db").arg("-f").arg(&config),
        "haproxy",
    )?;
    Ok(Running::of(vec![proxy], Vec::new()))
}

fn nginx(_: &Path, work: &Path, case: Case) -> anyhow::Result<Running> {
    if case.is_tcp() {
        return nginx_stream(work, case);
    }
    let (listen, pass) = match case {
        Case::H2 => (
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
            "worker_processes 1;\npid {0}/nginx.pid;\nerror_log /dev/null;\nevents {{ worker_connections 4096; }}\nhttp {{\n  access_log off;\n\
             \x20 client_body_temp_path {0}/nginx-body;\n  proxy_temp_path {0}/nginx-proxy;\n  fastcgi_temp_path {0}/nginx-fastcgi;\n\
             \x20 uwsgi_temp_path {0}/nginx-uwsgi;\n  scgi_temp_path {0}/nginx-scgi;\n  keepalive_requests 1000000000;\n\
             \x20 upstream backend {{ server {1}; keepalive 128; keepalive_requests 1000000000; }}\n\
             \x20 server {{ listen {listen}; location / {{ {pass} }} }}\n}}\n",
            work.display(),
            case.backend()
        ),
    )?;
    start_nginx(&config)
}

fn nginx_stream(work: &Path, case: Case) -> anyhow::Result<Running> {
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
