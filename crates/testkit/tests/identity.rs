//! Sidecars with an identity, as real processes beside a control plane that takes nobody without one: they join by a token,
//! renew by themselves, live through an outage and a restart, and are refused for what they are not.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::http::{self, Call};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};
use serde_json::Value;

/// Debug builds on two busy cores.
const LIMIT: Duration = Duration::from_secs(30);

struct Sidecar {
    process: Process,
    admin: SocketAddr,
}

/// What a sidecar is started with.
struct Given<'a> {
    plane: &'a Guarded,
    service: &'a str,
    ip: IpAddr,
    app: SocketAddr,
}

impl<'a> Given<'a> {
    fn new(plane: &'a Guarded, service: &'a str, app: &App) -> Self {
        let (ip, app) = (address::fresh(), app.address);
        Self {
            plane,
            service,
            ip,
            app,
        }
    }

    fn start(&self, options: &[&str]) -> anyhow::Result<Sidecar> {
        let at = |port| SocketAddr::new(self.ip, port);
        let mut command = Command::new(executable("phalanx")?);
        command
            .args(["proxy", "--service", self.service, "--workers", "1"])
            .args(["--app", &self.app.to_string()])
            .args(["--control", &self.plane.xds.to_string()])
            .args(["--inbound", &at(15006).to_string()])
            .args(["--outbound", &at(15001).to_string()])
            .args(["--admin", &at(15000).to_string()])
            .args(["--drain", "1s"])
            .args(options);
        let count = fs::read_dir(self.plane.folder())?.count();
        let log = self.plane.folder().join(format!("sidecar-{count}.log"));
        Ok(Sidecar {
            process: Process::spawn(command, &log)?,
            admin: at(15000),
        })
    }
}

struct App {
    address: SocketAddr,
    _process: Process,
}

impl App {
    fn start(plane: &Guarded) -> anyhow::Result<Self> {
        let address = SocketAddr::new(address::fresh(), 8080);
        let mut command = Command::new(executable("echo")?);
        command.args([&address.to_string(), "app"]);
        let process = Process::spawn(command, &plane.folder().join("echo.log"))?;
        Ok(Self {
            address,
            _process: process,
        })
    }
}

impl Sidecar {
    async fn page(&self, path: &str) -> Option<http::Answer> {
        http::call(self.admin, &Call::get("localhost", path))
            .await
            .ok()
    }

    async fn certs(&self) -> Option<Value> {
        Some(self.page("/certs").await?.json())
    }

    async fn serial(&self) -> Option<String> {
        let certs = self.certs().await?;
        Some(certs["certificate"]["serial"].as_str()?.to_owned())
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let waited = eventually("the sidecar to be ready", LIMIT, async || {
            self.page("/readyz").await.filter(|a| a.status == 200)
        });
        match waited.await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.context(self.process.log())),
        }
    }

    /// Waits until it says that it isn't ready, because of this.
    async fn says(&self, why: &str) -> anyhow::Result<()> {
        let waited = eventually(why, LIMIT, async || {
            let answer = self.page("/readyz").await?;
            let text = answer.json().to_string();
            (answer.status == 503 && text.contains(why)).then_some(())
        });
        match waited.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.process.log())),
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A join token for a service, in a file.
fn token(plane: &Guarded, service: &str, name: &str) -> anyhow::Result<PathBuf> {
    let path = plane.folder().join(name);
    let _ = fs::remove_file(&path);
    plane.does(&["cert", "token", "--service", service, "--out", text(&path)])?;
    Ok(path)
}

#[tokio::test]
async fn a_token_lets_one_sidecar_of_one_service_in_and_nobody_else() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let app = App::start(&plane)?;
    let (battle, dir) = (token(&plane, "battle", "battle.token")?, plane.folder());
    let given = Given::new(&plane, "battle", &app);
    let kept = dir.join("battle");
    let first = given.start(&["--token-file", text(&battle), "--identity-dir", text(&kept)])?;
    first.ready().await?;
    let certs = first.certs().await.unwrap();
    assert_eq!(certs["id"], "spiffe://phalanx.local/ns/default/sa/battle");
    eventually("the instance to be registered", LIMIT, async || {
        let said = plane.phalanx(&["instances"]).ok()?;
        said.text.contains(&given.ip.to_string()).then_some(())
    })
    .await?;
    // What is kept, openssl verifies.
    let set = |name: &str| text(&kept.join(name)).to_owned();
    plane.agrees(&format!(
        "verify -CAfile {} -untrusted {} {}",
        set("roots.pem"),
        set("cert.pem"),
        set("cert.pem")
    ))?;

    // Stolen: the same token, another key.
    let (thief, loot) = (Given::new(&plane, "battle", &app), dir.join("thief"));
    let second = thief.start(&["--token-file", text(&battle), "--identity-dir", text(&loot)])?;
    second.says("refuses").await?;
    assert!(!loot.join("cert.pem").exists());

    // Another service with a token that nobody has used.
    let unused = token(&plane, "battle", "unused.token")?;
    let (gate, other) = (Given::new(&plane, "gate", &app), dir.join("gate"));
    let third = gate.start(&[
        "--token-file",
        text(&unused),
        "--identity-dir",
        text(&other),
    ])?;
    third.says("refuses").await?;

    // A control plane that another root vouches for isn't told the token.
    let impostor = Guarded::start().await?;
    let unused = token(&plane, "battle", "again.token")?;
    let misled = Given::new(&impostor, "battle", &app);
    let lost = dir.join("misled");
    let fourth = misled.start(&["--token-file", text(&unused), "--identity-dir", text(&lost)])?;
    fourth.says("trusted root").await?;

    // Whoever says nothing of who it is gets nothing.
    let nobody = Given::new(&plane, "battle", &app).start(&[])?;
    nobody.says("asks for an identity").await?;
    eventually("what to do about it", LIMIT, async || {
        let log = nobody.process.log();
        log.contains("start with --token-file").then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn certificates_of_seconds_are_renewed_and_an_outage_ends_by_a_new_token()
-> anyhow::Result<()> {
    let mut plane = Guarded::start_with(&["--leaf-ttl", "10s"]).await?;
    let app = App::start(&plane)?;
    let (battle, kept) = (
        token(&plane, "battle", "battle.token")?,
        plane.folder().join("battle"),
    );
    let options = [
        "--token-file",
        text(&battle),
        "--identity-dir",
        text(&kept),
        "--renew-before",
        "8s",
        "--cert-check",
        "100ms",
    ];
    let given = Given::new(&plane, "battle", &app);
    let (at, mut sidecar) = (given.ip, given.start(&options)?);
    sidecar.ready().await?;
    let mut serials = vec![];
    eventually("five certificates", LIMIT, async || {
        let serial = sidecar.serial().await?;
        if serials.last() != Some(&serial) {
            serials.push(serial);
        }
        (serials.len() >= 5).then_some(())
    })
    .await?;
    // All the while it was ready, and each was known to the control plane.
    assert_eq!(sidecar.page("/readyz").await.unwrap().status, 200);
    let list = plane.does(&["cert", "list", "--service", "battle", "-o", "json"])?;
    for serial in &serials {
        assert!(list.contains(serial), "{serial} is not in\n{list}");
    }
    // Nobody renews it any more: it ends, and says so.
    plane.process.kill();
    sidecar.says("expired").await?;
    let metrics = sidecar.page("/metrics").await.unwrap();
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("phalanx_certificate_alarm{about=\"renewal\"} 1"));
    sidecar.process.kill();
    plane.restart().await?;
    // The old token is used up; a new one in the same file is found.
    let again = Given {
        plane: &plane,
        service: "battle",
        ip: at,
        app: app.address,
    }
    .start(&options)?;
    again.says("refuses").await?;
    token(&plane, "battle", "battle.token")?;
    again.ready().await
}

#[tokio::test]
async fn a_sidecar_starts_from_its_directory_without_a_control_plane() -> anyhow::Result<()> {
    let mut plane = Guarded::start().await?;
    let app = App::start(&plane)?;
    let (battle, kept) = (
        token(&plane, "battle", "battle.token")?,
        plane.folder().join("battle"),
    );
    let given = Given::new(&plane, "battle", &app);
    let mut sidecar =
        given.start(&["--token-file", text(&battle), "--identity-dir", text(&kept)])?;
    sidecar.ready().await?;
    let serial = sidecar.serial().await.unwrap();
    let version = async || {
        let certs = sidecar.certs().await?;
        (certs["trust"]["version"].as_u64()? > 0).then_some(())
    };
    eventually("the roots to be told", LIMIT, version).await?;
    let at = given.ip;
    sidecar.process.kill();
    plane.process.kill();
    fs::remove_file(&battle)?;
    let again = Given {
        plane: &plane,
        service: "battle",
        ip: at,
        app: app.address,
    }
    .start(&["--identity-dir", text(&kept)])?;
    eventually("the kept certificate", LIMIT, async || {
        (again.serial().await? == serial).then_some(())
    })
    .await?;
    let certs = again.certs().await.unwrap();
    assert_eq!(certs["roots"].as_array().map(Vec::len), Some(1), "{certs}");
    again.says("no configuration").await?;
    plane.restart().await?;
    again.ready().await?;
    assert_eq!(again.serial().await.unwrap(), serial);
    Ok(())
}

#[tokio::test]
async fn files_that_somebody_else_replaces_are_followed() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let app = App::start(&plane)?;
    let given_dir = plane.folder().join("given");
    let sidecar = Given::new(&plane, "battle", &app).start(&[
        "--cert-dir",
        text(&given_dir),
        "--cert-check",
        "200ms",
    ])?;
    sidecar.says("no certificate in").await?;
    let issue = || {
        let out = text(&given_dir);
        plane.does(&["cert", "issue", "--service", "battle", "--out", out])
    };
    issue()?;
    sidecar.ready().await?;
    let first = sidecar.serial().await.unwrap();
    // A key of another set beside it is waited for, and never taken.
    let key = given_dir.join("key.pem");
    let target = fs::canonicalize(&key)?;
    let good = fs::read(&target)?;
    let other = plane.folder().join("other.pem");
    plane.agrees(&format!(
        "ecparam -name prime256v1 -genkey -noout -out {}",
        text(&other)
    ))?;
    fs::write(&target, fs::read(&other)?)?;
    eventually("the alarm", LIMIT, async || {
        let certs = sidecar.certs().await?;
        certs["alarms"]["files"].is_string().then_some(())
    })
    .await?;
    assert_eq!(sidecar.serial().await.unwrap(), first);
    fs::write(&target, good)?;
    issue()?;
    eventually("the next certificate", LIMIT, async || {
        (sidecar.serial().await? != first).then_some(())
    })
    .await?;
    let certs = sidecar.certs().await.unwrap();
    assert!(certs["alarms"]["files"].is_null(), "{certs}");
    Ok(())
}

/// Calls on a connection that stays and on one of its own, again and again, until told to end; how many, and what failed.
async fn load(at: SocketAddr, end: Arc<AtomicBool>) -> (u32, Vec<String>) {
    let call = Call::get("battle", "/");
    let (mut count, mut failures, mut kept) = (0, vec![], None);
    while !end.load(Ordering::Relaxed) {
        let mut note = |answer: anyhow::Result<http::Answer>| {
            count += 1;
            match answer {
                Ok(a) if a.status == 200 && a.json().to_string().contains("sa/gate") => {}
                Ok(a) => failures.push(format!("{} {}", a.status, a.json())),
                Err(error) => failures.push(format!("{error:#}")),
            }
        };
        note(http::call(at, &call).await);
        if kept.is_none() {
            kept = http::Connection::open(at, false).await.ok();
        }
        if let Some(connection) = &mut kept {
            let answer = connection.send(&call).await;
            // The connection was closed before: the next round opens another.
            if answer.as_ref().is_err_and(http::is_unsent) {
                kept = None;
                continue;
            }
            if answer.is_err() {
                kept = None;
            }
            note(answer);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (count, failures)
}

/// With calls from one sidecar to the other all the while.
async fn replace_the_root(
    leaf_ttl: &str,
    done: impl Fn(&Value, &Value) -> bool,
) -> anyhow::Result<()> {
    let plane = Guarded::start_with(&["--leaf-ttl", leaf_ttl]).await?;
    let app = App::start(&plane)?;
    let mut sidecars = vec![];
    for service in ["battle", "gate"] {
        let token = token(&plane, service, service)?;
        let kept = plane.folder().join(format!("{service}-identity"));
        let options = ["--token-file", text(&token), "--identity-dir", text(&kept)];
        let intervals = ["--renew-before", "8s", "--cert-check", "100ms"];
        let given = Given::new(&plane, service, &app);
        sidecars.push(given.start(&[&options[..], &intervals].concat())?);
    }
    for sidecar in &sidecars {
        sidecar.ready().await?;
    }
    let outbound = SocketAddr::new(sidecars[1].admin.ip(), 15001);
    let call = Call::get("battle", "/");
    eventually("a first answer", LIMIT, async || {
        let answer = http::call(outbound, &call).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    let mut before = vec![];
    for sidecar in &sidecars {
        before.push(sidecar.certs().await.unwrap());
    }

    let end = Arc::new(AtomicBool::new(false));
    let calling = tokio::spawn(load(outbound, end.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    plane.does(&["cert", "rotate-root", "--begin"])?;
    for (sidecar, before) in sidecars.iter().zip(&before) {
        let replaced = eventually("what is to be replaced", LIMIT, async || {
            done(before, &sidecar.certs().await?).then_some(())
        });
        replaced.await.map_err(|error| {
            let said = plane.phalanx(&["cert", "rotate-root", "--status"]);
            error.context(said.map_or_else(|e| e.to_string(), |s| s.text))
        })?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    end.store(true, Ordering::Relaxed);
    let (count, failures) = calling.await?;
    assert!(
        failures.is_empty(),
        "{} of {count}: {:?}",
        failures.len(),
        failures.first()
    );
    assert!(count > 100, "{count}");
    Ok(())
}

#[tokio::test]
async fn no_call_fails_while_the_root_is_replaced_under_certificates_of_seconds()
-> anyhow::Result<()> {
    let only_the_new = |before: &Value, now: &Value| {
        now["roots"]
            .as_array()
            .is_some_and(|roots| roots.len() == 1)
            && before["roots"][0]["sha256"] != now["roots"][0]["sha256"]
    };
    replace_the_root("10s", only_the_new).await
}

#[tokio::test]
async fn a_certificate_of_days_is_renewed_at_once_when_its_root_goes() -> anyhow::Result<()> {
    let renewed = |before: &Value, now: &Value| {
        let serial = |page: &Value| page["certificate"]["serial"].clone();
        now["roots"]
            .as_array()
            .is_some_and(|roots| roots.len() == 2)
            && serial(before) != serial(now)
    };
    replace_the_root("72h", renewed).await
}

#[tokio::test]
async fn a_serial_ends_what_was_opened_with_it_and_a_holder_loses_all() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let app = App::start(&plane)?;
    let (battle, kept) = (
        token(&plane, "battle", "battle.token")?,
        plane.folder().join("battle"),
    );
    let given = Given::new(&plane, "battle", &app);
    let sidecar = given.start(&[
        "--token-file",
        text(&battle),
        "--identity-dir",
        text(&kept),
        "--cert-check",
        "500ms",
    ])?;
    sidecar.ready().await?;
    let old = sidecar.serial().await.unwrap();
    // Another one, over the connection that the first has opened.
    plane.does(&["cert", "rotate-root", "--begin"])?;
    let new = eventually("the next certificate", LIMIT, async || {
        sidecar.serial().await.filter(|serial| *serial != old)
    })
    .await?;
    eventually("the instance to be registered", LIMIT, async || {
        let said = plane.phalanx(&["instances"]).ok()?;
        said.text.contains(&given.ip.to_string()).then_some(())
    })
    .await?;
    let said = plane.does(&["cert", "revoke", "--serial", &old, "--reason", "superseded"])?;
    assert!(said.contains("stay good") && said.contains(&new), "{said}");
    let cut = eventually("its old connection to end", LIMIT, async || {
        let log = plane.process.log();
        let is_it = |line: &str| line.contains("is cut off") && line.contains(&old);
        log.lines().any(is_it).then_some(())
    });
    cut.await?;
    // It comes back with what it has, and was never taken for dead.
    eventually("a call over the next connection", LIMIT, async || {
        let said = plane.phalanx(&["ps", "-o", "json"]).ok()?;
        (said.is_content && said.text.contains(&new)).then_some(())
    })
    .await?;
    let log = plane.process.log();
    let is_lost = |line: &str| line.contains("battle") && line.contains("expired");
    assert!(!log.lines().any(is_lost), "{log}");
    assert_eq!(sidecar.serial().await.as_deref(), Some(&*new));
    assert_eq!(sidecar.page("/readyz").await.unwrap().status, 200);

    // By any of its serials; another token lets it in again.
    let said = plane.does(&["cert", "revoke", "--holder", &old])?;
    assert!(said.contains(&new), "{said}");
    sidecar.says("revoked").await?;
    token(&plane, "battle", "battle.token")?;
    sidecar.ready().await
}

#[tokio::test]
async fn a_revoked_sidecar_joins_anew_by_another_token_and_another_key() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let app = App::start(&plane)?;
    let (battle, kept) = (
        token(&plane, "battle", "battle.token")?,
        plane.folder().join("battle"),
    );
    let options = [
        "--token-file",
        text(&battle),
        "--identity-dir",
        text(&kept),
        "--cert-check",
        "500ms",
    ];
    let given = Given::new(&plane, "battle", &app);
    let mut sidecar = given.start(&options)?;
    sidecar.ready().await?;
    let key = fs::read(kept.join("key.pem"))?;
    plane.does(&["cert", "revoke", "--service", "battle", "--yes"])?;
    // It says so by itself, and the token that it had is of no use.
    sidecar.says("revoked").await?;
    sidecar.process.kill();

    // Started again with another token, in the directory that it had.
    token(&plane, "battle", "battle.token")?;
    let mut again = given.start(&options)?;
    again.ready().await?;
    eventually("another key", LIMIT, async || {
        (fs::read(kept.join("key.pem")).ok()? != key).then_some(())
    })
    .await?;
    assert!(
        again.process.log().contains("revoked"),
        "{}",
        again.process.log()
    );
    eventually("the instance to be registered", LIMIT, async || {
        let said = plane.phalanx(&["instances", "-o", "json"]).ok()?;
        let is_there = said.text.contains(&given.ip.to_string()) && said.text.contains("\"live\"");
        is_there.then_some(())
    })
    .await?;

    // And without a restart, as soon as there is another in the file.
    plane.does(&["cert", "revoke", "--service", "battle", "--yes"])?;
    again.says("revoked").await?;
    token(&plane, "battle", "battle.token")?;
    again.ready().await?;
    again.process.kill();
    Ok(())
}
