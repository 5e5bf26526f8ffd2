//! gRPC without a sidecar, with certificates: calls and is called by mutual TLS, as sidecars do; its certificates are files
//! that change every few seconds, and nobody notices.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::http::{self, Call};
use phalanx_testkit::mesh::Mesh;
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};
use tokio::time::{Instant, sleep};

use crate::caller::{Caller, Ended, Order};
use crate::peer::{self, Client, Place, Stack};
use crate::{BATTLE, DENIED, FIGHT, answered, delete, policy, served};

const LIMIT: Duration = Duration::from_secs(60);
/// A leaf lives 12 s and is renewed when 8 s are left, so every 4 s.
const LIFE: [&str; 2] = ["--leaf-ttl", "12s"];
const RENEWAL: [&str; 4] = ["--renew-before", "8s", "--cert-check", "200ms"];
/// Longer than a leaf lives.
const LOAD: Duration = Duration::from_secs(16);
const STRICT: &str = "
apiVersion: phalanx.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: everybody, namespace: phalanx-system}
spec: {mtls: {mode: Strict}}
---
apiVersion: v1
kind: Service
metadata: {name: battle}
spec:
  selector: {app: battle}
  ports: [{port: 9000, appProtocol: grpc}]
";

/// grpc-js knows plain text only towards a control plane (docs/proxyless.md).
const GUARDED: [Stack; 2] = [Stack::Python, Stack::Go];

struct Sidecar {
    process: Process,
    inbound: SocketAddr,
    outbound: SocketAddr,
    _app: Process,
}

impl Sidecar {
    /// Joins with a token, before an application that answers with its service's name.
    async fn start(plane: &Guarded, service: &str) -> anyhow::Result<Self> {
        let ip: IpAddr = address::fresh();
        let at = |port| SocketAddr::new(ip, port);
        let mut echo = Command::new(executable("echo")?);
        echo.args([&at(8080).to_string(), service]);
        let app = Process::spawn(echo, &plane.folder().join(format!("echo-{service}.log")))?;
        let token = format!("{service}.token");
        plane.does(&["cert", "token", "--service", service, "--out", &token])?;
        let mut command = Command::new(executable("phalanx")?);
        command
            .args(["proxy", "--service", service, "--workers", "1"])
            .args(["--app", &at(8080).to_string()])
            .args(["--control", &plane.xds.to_string()])
            .args(["--inbound", &at(15006).to_string()])
            .args(["--outbound", &at(15001).to_string()])
            .args(["--admin", &at(15000).to_string()])
            .args(["--token-file", &token])
            .args(["--identity-dir", &format!("{service}.d")])
            .args(RENEWAL)
            .current_dir(plane.folder());
        let sidecar = Self {
            process: Process::spawn(command, &plane.folder().join(format!("{service}.log")))?,
            inbound: at(15006),
            outbound: at(15001),
            _app: app,
        };
        eventually("the sidecar to be ready", LIMIT, async || {
            let answer = http::call(at(15000), &Call::get("localhost", "/readyz")).await;
            answer.ok().filter(|a| a.status == 200)
        })
        .await
        .with_context(|| sidecar.process.log())?;
        Ok(sidecar)
    }
}

/// `phalanx cert issue --watch`, and the folder that it keeps.
struct Files {
    folder: PathBuf,
    _watching: Process,
}

impl Files {
    /// As the operator of a control plane who has `roots` and `token`.
    async fn start(
        folder: &Path,
        (xds, admin): (SocketAddr, SocketAddr),
        data: &Path,
        service: &str,
    ) -> anyhow::Result<Self> {
        let out = folder.join(format!("{service}.files"));
        let operator = data.join("admin");
        let mut command = Command::new(executable("phalanx")?);
        command
            .args(["cert", "issue", "--watch", "--service", service])
            .arg("--out")
            .arg(&out)
            .args(["--control", &xds.to_string()])
            .args(["--admin", &admin.to_string()])
            .args(RENEWAL)
            .env("PHALANX_ROOTS", operator.join("roots.pem"))
            .env("PHALANX_TOKEN_FILE", operator.join("token"));
        let watching = Process::spawn(command, &folder.join(format!("{service}.watch.log")))?;
        eventually("a certificate in files", LIMIT, async || {
            out.join("cert.pem").exists().then_some(())
        })
        .await
        .with_context(|| watching.log())?;
        Ok(Self {
            folder: out,
            _watching: watching,
        })
    }

    fn certificate(&self) -> anyhow::Result<Vec<u8>> {
        Ok(std::fs::read(self.folder.join("cert.pem"))?)
    }
}

/// A server without a sidecar.
struct Server {
    stack: Stack,
    service: String,
    at: SocketAddr,
    files: Files,
    process: Process,
}

impl Server {
    async fn start(plane: &Guarded, stack: Stack) -> anyhow::Result<Self> {
        let service = format!("duel-{}", stack.name());
        let ports = (plane.xds, plane.admin);
        let files = Files::start(plane.folder(), ports, &plane.data(), &service).await?;
        let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
        let at = SocketAddr::new(address::fresh(), port);
        let process = peer::server(&guarded(plane, &files), stack, &service, at)?;
        Ok(Self {
            stack,
            service,
            at,
            files,
            process,
        })
    }

    fn restart(&mut self, plane: &Guarded) -> anyhow::Result<()> {
        self.process.kill();
        self.process = peer::server(
            &guarded(plane, &self.files),
            self.stack,
            &self.service,
            self.at,
        )?;
        Ok(())
    }

    fn target(&self) -> String {
        format!("{}.default.svc.mesh:9000", self.service)
    }
}

fn guarded<'a>(plane: &'a Guarded, files: &'a Files) -> Place<'a> {
    Place {
        folder: plane.folder(),
        xds: plane.xds,
        files: Some(&files.folder),
        is_guarded: true,
    }
}

fn opened<'a>(mesh: &'a Mesh, files: &'a Files) -> Place<'a> {
    Place {
        files: Some(&files.folder),
        ..Place::open(mesh)
    }
}

/// With the word that whoever is behind the addresses takes mutual TLS.
fn mutual(service: &str, at: SocketAddr) -> String {
    let label = format!("kubernetes.io/service-name: {service}");
    served(service, at).replace(&label, &format!("{label}, phalanx.dev/tls: mutual"))
}

fn off(service: &str) -> String {
    format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: {service}}}\nspec:\n  targetRefs: [{{kind: Service, name: {service}}}]\n  mtls: {{mode: Off}}\n"
    )
}

fn apply(plane: &Guarded, name: &str, yaml: &str) -> anyhow::Result<()> {
    let file = format!("{name}.yaml");
    std::fs::write(plane.folder().join(&file), yaml)?;
    plane.does(&["apply", "-f", &file, "--wait"]).map(drop)
}

async fn ends(caller: &Caller, order: &Order, wanted: fn(&Ended) -> bool) -> anyhow::Result<()> {
    let mut last = None;
    let what = format!("{} to {} to end as wanted", caller.name(), order.target);
    let done = eventually(&what, LIMIT, async || {
        last = Some(caller.one(order).await);
        last.as_ref()?
            .as_ref()
            .ok()
            .filter(|ended| wanted(ended))
            .map(drop)
    });
    let done = done.await;
    done.map_err(|error| anyhow::anyhow!("{error}: {last:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_without_a_sidecar_takes_part_in_mutual_tls() -> anyhow::Result<()> {
    let plane = Guarded::start_with(&LIFE).await?;
    apply(&plane, "strict", STRICT)?;
    let battle = Sidecar::start(&plane, "battle").await?;
    let gateway = Sidecar::start(&plane, "gateway").await?;
    let (mut servers, mut callers, mut held) = (Vec::new(), Vec::new(), Vec::new());
    callers.push(Caller::proxied("gateway", gateway.outbound));
    for stack in GUARDED {
        let server = Server::start(&plane, stack).await?;
        apply(&plane, &server.service, &mutual(&server.service, server.at))?;
        servers.push(server);
        let name = format!("caller-{}", stack.name());
        let ports = (plane.xds, plane.admin);
        let files = Files::start(plane.folder(), ports, &plane.data(), &name).await?;
        callers.push(Caller::Proxyless(Client::start(
            &guarded(&plane, &files),
            stack,
        )?));
        held.push(files);
    }
    let before: Vec<_> = held
        .iter()
        .map(Files::certificate)
        .collect::<Result<_, _>>()?;

    // Everybody calls everybody, and plain text is taken by nobody.
    let mut targets = vec![BATTLE.to_owned()];
    targets.extend(servers.iter().map(Server::target));
    for caller in &callers {
        for target in &targets {
            ends(caller, &Order::new(target, FIGHT), answered).await?;
        }
    }
    for at in servers.iter().map(|s| s.at).chain([battle.inbound]) {
        let plain = http::call(at, &Call::grpc("battle", FIGHT)).await;
        let is_taken = plain.is_ok_and(|answer| answer.grpc_status() == Some("0"));
        assert!(!is_taken, "{at} takes plain text");
    }

    // Who is not who the route expects is not called.
    for server in &servers {
        let posing = format!("posing-{}", server.stack.name());
        apply(&plane, &posing, &mutual(&posing, server.at))?;
        for caller in &callers {
            let order = Order::new(&format!("{posing}:9000"), FIGHT);
            ends(caller, &order, |ended| ended.code == 14).await?;
        }
    }

    // Callers are allowed and denied by name, at run time.
    let is_denied = |ended: &Ended| ended.code == DENIED;
    for service in ["battle", &servers[0].service, &servers[1].service] {
        let order = Order::new(&format!("{service}:9000"), FIGHT);
        let from = "from: [{services: [caller-go]}]";
        apply(&plane, "policy", &policy(service, "Allow", from))?;
        for caller in &callers {
            match caller.name() == Stack::Go.name() {
                true => ends(caller, &order, answered).await?,
                false => ends(caller, &order, is_denied).await?,
            }
        }
        apply(&plane, "policy", &policy(service, "Deny", from))?;
        for caller in &callers {
            match caller.name() == Stack::Go.name() {
                true => ends(caller, &order, is_denied).await?,
                false => ends(caller, &order, answered).await?,
            }
        }
        plane.does(&["delete", "authorizationpolicy", service])?;
        for caller in &callers {
            ends(caller, &order, answered).await?;
        }
    }

    // In plain text where that is said, and back.
    for server in &servers {
        let order = Order::new(&server.target(), FIGHT);
        let is_plain = async |wanted: bool| {
            eventually("the server's way of being called", LIMIT, async || {
                let plain = http::call(server.at, &Call::grpc("duel", FIGHT)).await;
                let is_taken = plain.is_ok_and(|answer| answer.grpc_status() == Some("0"));
                (is_taken == wanted).then_some(())
            })
            .await
        };
        apply(&plane, "off", &off(&server.service))?;
        is_plain(true).await?;
        for caller in &callers {
            ends(caller, &order, answered).await?;
        }
        plane.does(&["delete", "peerauthentication", &server.service])?;
        is_plain(false).await?;
        for caller in &callers {
            ends(caller, &order, answered).await?;
        }
    }

    // Every certificate ends under load, and the root is replaced.
    plane.does(&["cert", "rotate-root", "--begin"])?;
    for target in &targets {
        let until = Instant::now() + LOAD / u32::try_from(targets.len())?;
        for caller in &mut callers {
            caller.begin(&Order::new(target, FIGHT)).await?;
        }
        sleep(until.saturating_duration_since(Instant::now())).await;
        for caller in &mut callers {
            let (sent, failures) = caller.end().await?;
            let name = caller.name();
            println!("{name} to {target}: {sent} calls");
            assert!(
                sent > 0 && failures.is_empty(),
                "{name} to {target}: {failures:?} of {sent}"
            );
        }
    }
    eventually("the new root alone", 2 * LIMIT, async || {
        let said = plane.does(&["cert", "rotate-root", "-o", "json"]).ok()?;
        let status: serde_json::Value = serde_json::from_str(&said).ok()?;
        (status["phase"] == "steady").then_some(())
    })
    .await?;
    for (files, before) in held.iter().zip(before) {
        assert_ne!(files.certificate()?, before);
    }

    // Those of the beginning have ended: a server that starts again is reached by what clients show now.
    for server in &mut servers {
        server.restart(&plane)?;
        for caller in &callers {
            ends(caller, &Order::new(&server.target(), FIGHT), answered).await?;
        }
    }
    // Streams are older than what their holders show by now; that is nobody's fault.
    eventually("nothing to be wrong or waited for", LIMIT, async || {
        let said = plane.phalanx(&["status", "-o", "json"]).ok()?;
        let status: serde_json::Value = serde_json::from_str(&said.text).ok()?;
        let waiting = status["waiting"].as_array()?.len();
        assert_eq!(status["refused"], serde_json::json!([]), "{status:#}");
        assert_eq!(status["late_certificates"], serde_json::Value::Null);
        (waiting == 0 && said.code == 0).then_some(())
    })
    .await?;
    Ok(())
}

/// grpc-js, towards a control plane that takes plain text too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_js_takes_part_where_the_control_plane_is_open() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&LIFE).await?;
    let ports = (mesh.xds, mesh.admin);
    let data = mesh.data();
    let files = async |service: &str| Files::start(mesh.folder(), ports, &data, service).await;
    let (mut servers, mut callers) = (Vec::new(), Vec::new());
    for stack in [Stack::Node, Stack::Go] {
        let service = format!("duel-{}", stack.name());
        let own = files(&service).await?;
        // grpc-js listens on every address, whatever it is told; so the port is its own too.
        let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
        let at = SocketAddr::new(address::fresh(), port);
        let server = peer::server(&opened(&mesh, &own), stack, &service, at)?;
        mesh.apply(&mutual(&service, at)).await?;
        mesh.apply(&mutual(&format!("posing-{}", stack.name()), at))
            .await?;
        servers.push((service, own, server));
        let shown = files(&format!("caller-{}", stack.name())).await?;
        let client = Client::start(&opened(&mesh, &shown), stack)?;
        callers.push((Caller::Proxyless(client), shown));
    }
    mesh.apply(STRICT).await?;
    for stack in [Stack::Node, Stack::Go] {
        let service = format!("duel-{}", stack.name());
        let order = Order::new(&format!("{service}:9000"), FIGHT);
        let posing = Order::new(&format!("posing-{}:9000", stack.name()), FIGHT);
        for (caller, _) in &callers {
            ends(caller, &order, answered).await?;
            ends(caller, &posing, |ended| ended.code == 14).await?;
        }
        let from = "from: [{services: [caller-node]}]";
        for (action, wanted) in [("Allow", Stack::Node), ("Deny", Stack::Go)] {
            mesh.apply(&policy(&service, action, from)).await?;
            for (caller, _) in &callers {
                match caller.name() == wanted.name() {
                    true => ends(caller, &order, answered).await?,
                    false => ends(caller, &order, |ended| ended.code == DENIED).await?,
                }
            }
        }
        delete(&mesh, "AuthorizationPolicy", &service).await?;
        for (caller, _) in &mut callers {
            ends(caller, &order, answered).await?;
            caller.begin(&order).await?;
        }
        sleep(LOAD / 2).await;
        for (caller, _) in &mut callers {
            let (sent, failures) = caller.end().await?;
            let name = caller.name();
            println!("{name} to {service}: {sent} calls");
            assert!(
                sent > 0 && failures.is_empty(),
                "{name} to {service}: {failures:?} of {sent}"
            );
        }
    }
    Ok(())
}
