//! Programs that know nothing of the mesh: curl, gRPC in Go, redis and mariadb. The kernel brings their connections to the
//! sidecars of both sides, in network namespaces of their own.

mod compare;
mod nets;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nets::Net;
use phalanx_testkit::eventually;
use phalanx_testkit::process::{Process, executable};

/// Debug builds on two busy cores.
const READY: Duration = Duration::from_secs(120);
/// Of each program; with `PHALANX_SOAK` as many as the bar says.
const REQUESTS: usize = 20;
const REQUESTS_SOAK: usize = 1_000;

fn requests() -> usize {
    match std::env::var_os("PHALANX_SOAK") {
        Some(_) => REQUESTS_SOAK,
        None => REQUESTS,
    }
}

/// Namespaces can't be made by anybody else.
fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let is_root = uid.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0");
    if !is_root {
        eprintln!(
            "\n!!! SKIPPED: interception can only be tested by root (network namespaces, nftables)\n"
        );
    }
    is_root
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {selector: {app: redis}, ports: [{port: 6379, appProtocol: redis}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {selector: {app: db}, ports: [{port: 3306, appProtocol: mysql}]}
---
apiVersion: v1
kind: Service
metadata: {name: calls}
spec: {selector: {app: calls}, ports: [{port: 10000, appProtocol: grpc}]}
";

const STRICT: &str = "
apiVersion: phalanx.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: phalanx-system}
spec: {mtls: {mode: Strict}}
";

/// A mesh over namespaces; the control plane is in the one in the middle.
struct Mesh {
    folder: tempfile::TempDir,
    hub: Net,
    _control: Process,
}

impl Mesh {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let hub = Net::hub(folder.path())?;
        let mut control = hub.command(executable("phalanx")?);
        control
            .args([
                "control",
                "--xds",
                "10.77.0.1:15010",
                "--admin",
                "10.77.0.1:15080",
            ])
            .args(["--dns", "10.77.0.1:15053", "--ocsp", "none", "--data"])
            .arg(folder.path().join("data"));
        let mesh = Self {
            _control: hub.spawn(control, "control")?,
            folder,
            hub,
        };
        eventually("the control plane", READY, async || {
            mesh.phalanx(&["status"]).ok()
        })
        .await?;
        mesh.apply("services", SERVICES)?;
        Ok(mesh)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn phalanx(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = self.hub.command(executable("phalanx")?);
        command
            .args(words)
            .env("PHALANX_ADMIN", "10.77.0.1:15080")
            .env("PHALANX_ROOTS", self.file("data/admin/roots.pem"))
            .env("PHALANX_TOKEN_FILE", self.file("data/admin/token"));
        let done = command.output()?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(done.status.success(), "{words:?}: {}", said(&done.stderr));
        Ok(said(&done.stdout))
    }

    fn apply(&self, name: &str, yaml: &str) -> anyhow::Result<()> {
        let file = self.file(&format!("{name}.yaml"));
        std::fs::write(&file, yaml)?;
        self.phalanx(&["apply", "-f", &file.display().to_string()])?;
        self.phalanx(&["status", "--wait", "--timeout", "60s"])
            .map(drop)
    }

    /// A namespace for a sidecar that intercepts, beside an application.
    fn join(&self, number: u8, service: &str, app: &str, more: &str) -> anyhow::Result<Host> {
        let token = self.file(&format!("{number}.token"));
        let at = token.display().to_string();
        self.phalanx(&["cert", "token", "--service", service, "--out", &at])?;
        Ok(Host {
            net: Net::beside(&self.hub, number)?,
            words: format!(
                "proxy --service {service} --app {app} --control 10.77.0.1:15010 --workers 1 --drain 1s --intercept {more}"
            ),
            token,
            kept: self.file(&format!("{number}.identity")),
            sidecar: None,
        })
    }
}

struct Host {
    net: Net,
    /// Of every start.
    words: String,
    token: PathBuf,
    kept: PathBuf,
    sidecar: Option<Process>,
}

impl Host {
    fn command(&self, more: &str) -> anyhow::Result<Command> {
        let mut command = self.net.command(executable("phalanx")?);
        command.args(self.words.split_whitespace());
        command.arg("--token-file").arg(&self.token);
        command.arg("--identity-dir").arg(&self.kept);
        command.args(more.split_whitespace());
        Ok(command)
    }

    fn start(&mut self, more: &str) -> anyhow::Result<()> {
        let name = format!("sidecar-{}", self.net.number);
        self.sidecar = Some(self.net.spawn(self.command(more)?, &name)?);
        Ok(())
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let page = "curl --silent --fail --max-time 5 http://127.0.0.1:15000/readyz";
        let sidecar = self.sidecar.as_mut().context("it was not started")?;
        let net = &self.net;
        let ready = eventually("a sidecar to be ready", READY, async || {
            if sidecar.has_ended() {
                return Some(false);
            }
            net.says(page).ok().map(|_| true)
        });
        let is_ready = ready.await.with_context(|| sidecar.log())?;
        ensure!(is_ready, "it ended:\n{}", sidecar.log());
        Ok(())
    }

    /// What a sidecar counts on lines that hold all of these.
    fn counted(&self, family: &str, parts: &[&str]) -> anyhow::Result<f64> {
        let metrics = self
            .net
            .says("curl --silent --fail http://127.0.0.1:15000/metrics")?;
        let lines = metrics.lines().filter(|line| {
            line.starts_with(family) && parts.iter().all(|part| line.contains(part))
        });
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// Asks the redis there.
    fn redis(&self, address: &str, words: &str) -> anyhow::Result<String> {
        let said = self.net.says(&format!("redis-cli -h {address} {words}"))?;
        Ok(said.trim().to_owned())
    }

    /// Status, and who answered.
    fn curl(&self, words: &str) -> anyhow::Result<Vec<String>> {
        let said = self.net.says(&format!(
            "curl --silent --show-error --max-time 20 --output /dev/null --write-out %{{http_code}}:%header{{x-echo}}%header{{x-phalanx-reason}}\\n {words}"
        ))?;
        Ok(said.lines().map(str::to_owned).collect())
    }
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools")
}

/// The applications behind their sidecars.
struct Applications {
    _all: Vec<Process>,
}

impl Applications {
    fn start(mesh: &Mesh, hosts: &Hosts) -> anyhow::Result<Self> {
        install_mariadb(mesh)?;
        let echo = |net: &Net, at: &str, name: &str| {
            let mut echo = net.command(executable("echo")?);
            echo.args([at, name]);
            net.spawn(echo, &format!("echo-{name}-{}", net.number))
        };
        let redis = |net: &Net| {
            let mut redis = net.command("redis-server");
            redis.args("--port 6379 --save --appendonly no --protected-mode no".split(' '));
            redis.arg("--dir").arg(mesh.folder.path());
            net.spawn(redis, &format!("redis-{}", net.number))
        };
        let db = &hosts.db.net;
        let data = mesh.file("mariadb");
        let mut mariadb = db.command("mariadbd");
        mariadb
            .args([
                "--no-defaults",
                "--user=root",
                "--skip-grant-tables",
                "--skip-name-resolve",
            ])
            .args([
                "--bind-address=0.0.0.0",
                "--port=3306",
                "--innodb-buffer-pool-size=8M",
            ])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", data.join("s").display()));
        let calls = &hosts.calls.net;
        let mut server = calls.command(tools().join("grpc-interop-server"));
        server.arg("--port=10000");
        Ok(Self {
            _all: vec![
                echo(&hosts.web.net, "[::]:8080", "web-a")?,
                echo(&hosts.web6.net, "[::]:8080", "web-b")?,
                echo(&hosts.player.net, "127.0.0.1:8080", "player")?,
                echo(&hosts.redis_a.net, "[::]:7777", "undeclared")?,
                echo(&mesh.hub, "[::]:7001", "outside")?,
                echo(&mesh.hub, "[::]:7002", "outside")?,
                redis(&hosts.redis_a.net)?,
                redis(&hosts.redis_b.net)?,
                db.spawn(mariadb, "mariadb")?,
                calls.spawn(server, "calls")?,
            ],
        })
    }
}

struct Hosts {
    web: Host,
    web6: Host,
    redis_a: Host,
    redis_b: Host,
    db: Host,
    calls: Host,
    player: Host,
}

impl Hosts {
    fn join(mesh: &Mesh) -> anyhow::Result<Self> {
        Ok(Self {
            web: mesh.join(11, "web", "http=127.0.0.1:8080", "")?,
            web6: mesh.join(
                12,
                "web",
                "http=[::1]:8080",
                "--inbound [::]:15006 --advertise [fd77::12]:15006",
            )?,
            redis_a: mesh.join(13, "redis", "redis=127.0.0.1:6379", "")?,
            redis_b: mesh.join(14, "redis", "redis=127.0.0.1:6379", "")?,
            db: mesh.join(15, "db", "mysql=127.0.0.1:3306", "")?,
            calls: mesh.join(16, "calls", "grpc=127.0.0.1:10000", "")?,
            player: mesh.join(20, "player", "http=127.0.0.1:8080", "")?,
        })
    }

    fn all(&mut self) -> [&mut Host; 7] {
        let Self {
            web,
            web6,
            redis_a,
            redis_b,
            db,
            calls,
            player,
        } = self;
        [web, web6, redis_a, redis_b, db, calls, player]
    }

    /// Until all of them are ready.
    async fn start(&mut self) -> anyhow::Result<()> {
        for host in self.all() {
            host.start("")?;
        }
        for host in self.all() {
            host.ready().await?;
        }
        Ok(())
    }

    /// Until everybody knows of everybody: from then on nothing fails any more.
    async fn are_whole(&self) -> anyhow::Result<()> {
        let player = &self.player;
        eventually("the mesh to be whole", READY, async || {
            let web = player.curl("http://10.77.0.11:8080/").ok()?;
            let redis = player.redis("10.77.0.13", "PING").ok()?;
            let mutual = |host: &Host, family: &str| {
                let parts = [
                    "reporter=\"destination\"",
                    "connection_security_policy=\"mutual_tls\"",
                ];
                host.counted(family, &parts).is_ok_and(|count| count > 0.0)
            };
            let is_web = |host| mutual(host, "istio_requests_total");
            let all = (web[0].starts_with("200:web-") && redis == "PONG")
                && is_web(&self.web)
                && is_web(&self.web6)
                && mutual(&self.redis_a, "istio_tcp_connections_opened_total");
            all.then_some(())
        })
        .await
    }
}

fn install_mariadb(mesh: &Mesh) -> anyhow::Result<()> {
    let data = mesh.file("mariadb");
    let done = Command::new("mariadb-install-db")
        .args(["--no-defaults", "--user=root", "--skip-test-db"])
        .arg(format!("--datadir={}", data.display()))
        .output()
        .context("cannot run mariadb-install-db (`cargo xtask setup` installs it)")?;
    ensure!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// What each of the four programs did has to be right, and to have gone over mutual TLS.
async fn programs(hosts: &Hosts) -> anyhow::Result<()> {
    let (player, count) = (&hosts.player, requests());
    for host in ["10.77.0.11", "[fd77::12]"] {
        let each = player.curl(&format!(
            "--header connection:close http://{host}:8080/[1-{count}]"
        ))?;
        ensure!(each.len() == count, "{} of {count}", each.len());
        ensure!(
            each.iter().all(|line| line.starts_with("200:web-")),
            "{each:?}"
        );
    }
    // By name, whatever address that was taken for.
    let named = player.curl("--resolve web.default:8080:10.77.0.99 http://web.default:8080/")?;
    ensure!(named[0].starts_with("200:web-"), "{named:?}");

    for (host, address, name) in [
        (&hosts.redis_a, "10.77.0.13", "a"),
        (&hosts.redis_b, "10.77.0.14", "b"),
    ] {
        host.redis("127.0.0.1", &format!("SET who {name}"))?;
        // The very instance, though both are of one service.
        for _ in 0..5 {
            ensure!(player.redis(address, "GET who")? == name);
        }
        player.redis(address, &format!("-r {count} INCR count"))?;
        ensure!(player.redis(address, "GET count")? == count.to_string());
    }

    for _ in 0..count {
        let one = "mariadb --no-defaults --skip-ssl --host=10.77.0.15 --user=root --skip-column-names --execute=SELECT(6*7)";
        ensure!(player.net.says(one)?.trim() == "42");
    }

    let mut caller = player.net.command(tools().join("grpc-interop-caller"));
    caller.args([
        "10.77.0.16:10000",
        "10.77.0.16:10000",
        "large_unary",
        "ping_pong",
    ]);
    caller.args(["server_streaming", "status_code_and_message"]);
    let done = caller.args(vec!["empty_unary"; count]).output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(
        done.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    ensure!(said.matches("empty_unary ok").count() == count, "{said}");

    let secured = [
        "reporter=\"destination\"",
        "connection_security_policy=\"mutual_tls\"",
        "/sa/player",
    ];
    for (host, family) in [
        (&hosts.db, "istio_tcp_connections_opened_total"),
        (&hosts.calls, "istio_requests_total"),
    ] {
        let seen = eventually("the callee to have counted", READY, async || {
            let seen = host.counted(family, &secured).ok()?;
            (seen >= count as f64).then_some(seen)
        });
        seen.await?;
    }
    Ok(())
}

/// Whoever has no sidecar is taken as the rules say, at ports that were declared and at others.
fn strangers(mesh: &Mesh, hosts: &Hosts) -> anyhow::Result<()> {
    let hub = &mesh.hub;
    let asks = "redis-cli -h 10.77.0.13 PING";
    let undeclared = "curl --silent --show-error --fail --max-time 20 http://10.77.0.13:7777/";
    ensure!(hub.says(asks)?.trim() == "PONG");
    ensure!(hub.says(undeclared)?.contains("undeclared"));
    hub.does("curl --silent --show-error --fail --max-time 20 http://[fd77::12]:8080/")?;
    mesh.apply("strict", STRICT)?;
    let refused = hub.output(asks)?;
    ensure!(!String::from_utf8_lossy(&refused.stdout).contains("PONG"));
    ensure!(!hub.output(undeclared)?.status.success());
    ensure!(hosts.player.redis("10.77.0.13", "PING")? == "PONG");
    let web = hosts.player.curl("http://10.77.0.11:8080/")?;
    ensure!(web[0].starts_with("200:web-"), "{web:?}");
    Ok(())
}

/// The sidecar of the player ends in every way there is.
async fn endings(mesh: &Mesh, player: &mut Host) -> anyhow::Result<()> {
    const TABLE: &str = "table inet phalanx-intercept";
    let outside = player.curl("http://10.77.0.1:7001/")?;
    ensure!(
        outside == ["200:outside"],
        "nobody of the mesh: {outside:?}"
    );

    // Another one here could not tell whose calls are whose, and leaves the rules alone.
    let clean = |net: &Net| -> anyhow::Result<(bool, String)> {
        let mut clean = net.command(executable("phalanx")?);
        let done = clean.args(["proxy", "--intercept-clean"]).output()?;
        Ok((
            done.status.success(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        ))
    };
    let (is_done, said) = clean(&player.net)?;
    ensure!(
        !is_done && said.contains("another sidecar intercepts"),
        "{said}"
    );
    ensure!(player.net.tables()? == [TABLE]);

    // Killed: what it took leads nowhere, until the next one is there.
    let mut killed = player.sidecar.take().context("it runs")?;
    killed.kill();
    ensure!(player.net.tables()? == [TABLE]);
    ensure!(player.curl("http://10.77.0.1:7001/").is_err());
    player.start("--outbound-policy registry-only --exempt-port 7002 --exempt-address 10.77.0.2/32 --exempt-uid 4242")?;
    player.ready().await?;
    ensure!(player.net.tables()? == [TABLE]);
    let rules = player.net.says("nft list ruleset")?;
    ensure!(rules.matches("redirect to").count() == 2, "{rules}");

    let refused = player.curl("http://10.77.0.1:7001/")?;
    ensure!(refused == ["404:no_route"], "{refused:?}");
    let raw = player.net.output("redis-cli -h 10.77.0.1 -p 7001 PING")?;
    ensure!(
        String::from_utf8_lossy(&raw.stderr).contains("reset"),
        "{raw:?}"
    );
    for exempt in ["http://10.77.0.1:7002/", "http://10.77.0.2:7001/"] {
        ensure!(player.curl(exempt)? == ["200:outside"], "{exempt}");
    }
    player.net.does("setpriv --reuid 4242 --clear-groups curl --silent --fail --max-time 20 --output /dev/null http://10.77.0.1:7001/")?;
    eventually("the mesh to be known again", READY, async || {
        let web = player.curl("http://10.77.0.11:8080/").ok()?;
        web[0].starts_with("200:web-").then_some(())
    })
    .await?;

    // Told to end: nothing is left, and calls go by themselves.
    let mut told = player.sidecar.take().context("it runs")?;
    told.terminate(READY).await?;
    ensure!(player.net.tables()?.is_empty(), "{:?}", told.log());
    ensure!(player.curl("http://10.77.0.1:7001/")? == ["200:outside"]);

    // Replaced: the rules stay, and go with the one that came.
    let upgrade = mesh.file("upgrade");
    let more = format!("--upgrade-socket {}", upgrade.display());
    player.start(&more)?;
    player.ready().await?;
    let mut replaced = player.sidecar.take().context("it runs")?;
    player.start(&more)?;
    eventually("the one before to end", READY, async || {
        replaced.has_ended().then_some(())
    })
    .await?;
    player.ready().await?;
    ensure!(player.net.tables()? == [TABLE]);
    ensure!(player.curl("http://10.77.0.1:7001/")? == ["200:outside"]);
    let web = player.curl("http://10.77.0.11:8080/")?;
    ensure!(web[0].starts_with("200:web-"), "{web:?}");
    let mut told = player.sidecar.take().context("it runs")?;
    told.terminate(READY).await?;
    ensure!(player.net.tables()?.is_empty(), "{:?}", told.log());

    // By hand, after another kill.
    player.start("")?;
    player.ready().await?;
    player.sidecar.take().context("it runs")?.kill();
    let (is_done, said) = clean(&player.net)?;
    ensure!(is_done, "{said}");
    ensure!(player.net.tables()?.is_empty());

    // Who can't do it is told why.
    let mut without = player.command("")?;
    let said = |command: &mut Command| -> anyhow::Result<String> {
        let done = command.output()?;
        ensure!(!done.status.success());
        Ok(String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let nsenter = std::env::var("PATH").unwrap_or_default();
    let found = nsenter.split(':').map(|dir| Path::new(dir).join("nsenter"));
    let found: Vec<_> = found.filter(|path| path.is_file()).collect();
    let only = mesh.file("only");
    std::fs::create_dir_all(&only)?;
    std::os::unix::fs::symlink(found.first().context("no nsenter")?, only.join("nsenter"))?;
    let text = said(without.env("PATH", &only))?;
    ensure!(text.contains("install the package nftables"), "{text}");
    ensure!(player.net.tables()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn programs_that_know_nothing_are_carried_both_ways_and_nothing_is_left() -> anyhow::Result<()>
{
    if !is_root() {
        return Ok(());
    }
    let mesh = Mesh::start().await?;
    let mut hosts = Hosts::join(&mesh)?;
    let _applications = Applications::start(&mesh, &hosts)?;
    hosts.start().await?;
    hosts.are_whole().await?;
    programs(&hosts).await?;
    strangers(&mesh, &hosts)?;
    endings(&mesh, &mut hosts.player).await
}

/// Sends a line to whoever connects, then what it is sent; or connects and tells the first line.
const GREETER: &str = "
import socket, sys, threading
where = (sys.argv[2], int(sys.argv[3]))
def serve(one):
    one.sendall(b'220 at your service\\r\\n')
    while (heard := one.recv(1024)):
        one.sendall(heard)
if sys.argv[1] == 'hear':
    with socket.create_connection(where, timeout=60) as one:
        lines = one.makefile('rwb')
        print(lines.readline().decode().strip())
        lines.write(b'EHLO here\\r\\n')
        lines.flush()
        print(lines.readline().decode().strip())
else:
    with socket.create_server(where) as listener:
        while True:
            one, _ = listener.accept()
            threading.Thread(target=serve, args=(one,), daemon=True).start()
";

/// Nobody said what is spoken there, and in plain text nothing else tells it: from the same machine, where the call goes through
/// the mesh's eyes, and from another.
#[tokio::test]
async fn server_that_speaks_first_is_heard_though_nobody_said_that_it_does() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let hub = Net::hub(folder.path())?;
    let net = Net::beside(&hub, 30)?;
    let script = folder.path().join("greeter.py");
    std::fs::write(&script, GREETER)?;
    let script = script.display();
    let mut control = net.command(executable("phalanx")?);
    control
        .args("control --open --xds 127.0.0.1:15010 --admin 127.0.0.1:15080".split(' '))
        .args("--dns 127.0.0.1:15053 --ocsp none --data".split(' '))
        .arg(folder.path().join("data"));
    let _control = net.spawn(control, "control")?;
    let mut greeter = net.command("python3");
    greeter.args(format!("{script} serve 10.77.0.30 2525").split(' '));
    let _greeter = net.spawn(greeter, "greeter")?;
    let mut sidecar = net.command(executable("phalanx")?);
    sidecar
        .args("proxy --service mail --app 10.77.0.30:2525 --advertise 10.77.0.30:15006".split(' '));
    sidecar.args("--workers 1 --drain 1s --intercept".split(' '));
    let mut sidecar = net.spawn(sidecar, "sidecar")?;
    let counted = |event: &str| -> Option<f64> {
        let metrics = net
            .says("curl --silent --fail --max-time 5 http://127.0.0.1:15000/metrics")
            .ok()?;
        let line = format!("phalanx_events_total{{event=\"{event}\"}} ");
        metrics
            .lines()
            .find_map(|l| l.strip_prefix(&line)?.parse().ok())
    };
    eventually("the sidecar to be ready", READY, async || {
        net.says("curl --silent --fail --max-time 5 http://127.0.0.1:15000/readyz")
            .ok()
    })
    .await
    .with_context(|| sidecar.log())?;
    for from in [&net, &hub] {
        let heard = from.says(&format!("python3 {script} hear 10.77.0.30 2525"))?;
        ensure!(
            heard.trim() == "220 at your service\nEHLO here",
            "{heard}\n{}",
            sidecar.log()
        );
    }
    ensure!(counted("connection_accepted") >= Some(2.0));
    // Nobody is redirected to there who calls it.
    let asked = net.output("curl --silent --max-time 20 http://127.0.0.1:15002/")?;
    ensure!(!asked.status.success() && counted("not_redirected") >= Some(1.0));
    let asked = hub.output("curl --silent --max-time 20 http://10.77.0.30:15003/")?;
    ensure!(!asked.status.success() && counted("not_redirected") >= Some(2.0));
    sidecar.terminate(READY).await?;
    ensure!(net.tables()?.is_empty());
    Ok(())
}
