//! Two control planes over one etcd that take nobody without a certificate, each with an intermediate of its own: one is killed,
//! tokens are used at the other, twice at once; what one revokes the other's sidecars refuse; the root is replaced under both;
//! whoever comes with another root is turned away; and DATA comes back from a backup.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use phalanx_client::api::{IssuedQuery, RevokeRequest};
use phalanx_client::identity::{CallError, Proof};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_testkit::etcd::Etcd;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::http::{self, Call};
use phalanx_testkit::load::Load;
use phalanx_testkit::member::Member;
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};
use serde_json::Value;

/// Debug builds on two busy cores.
const LIMIT: Duration = Duration::from_secs(60);
/// A leaf lives 8 s and is renewed when 5 s are left.
const BRIEF: [&str; 2] = ["--leaf-ttl", "8s"];
const RENEWAL: [&str; 4] = ["--renew-before", "5s", "--cert-check", "100ms"];
const PAUSE: Duration = Duration::from_millis(5);

/// Control planes `a`, that made the root, and `b`.
struct Pair {
    etcd: Etcd,
    a: Guarded,
    b: Guarded,
}

impl Pair {
    async fn start(options: &[&str]) -> anyhow::Result<Self> {
        let etcd = Etcd::start(&[]).await?;
        let store = format!("etcd://{}", etcd.endpoint());
        let of = |name, more: &[&str]| -> Vec<String> {
            let own = ["--store", &store, "--plane", name];
            let all = own.iter().chain(options).chain(more);
            all.map(|&option| option.to_owned()).collect()
        };
        let start = async |options: Vec<String>| {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            Guarded::start_with(&options).await
        };
        let a = start(of("a", &[])).await?;
        a.does(&["cert", "intermediate", "--out", "second"])?;
        let ca = a.folder().join("second").display().to_string();
        let b = start(of("b", &["--ca", &ca])).await?;
        Ok(Self { etcd, a, b })
    }

    /// As `--control` takes them.
    fn both(&self) -> String {
        format!("{},{}", self.a.xds, self.b.xds)
    }
}

/// The text of a join token, and the roots beside it.
fn token(plane: &Guarded, service: &str) -> anyhow::Result<(String, String)> {
    let text = plane.does(&["cert", "token", "--service", service])?;
    let at = text.find("-----BEGIN").context("no roots")?;
    let (token, roots) = text.split_at(at);
    let line = token.lines().find(|line| line.starts_with("phxj1."));
    let line = line.with_context(|| text.clone())?;
    Ok((line.trim().to_owned(), roots.to_owned()))
}

/// Joins by a token of `by` at `at`.
async fn member(by: &Guarded, at: &str, service: &str) -> anyhow::Result<Member> {
    let (token, roots) = token(by, service)?;
    let member = Member::new(at, &roots, service)?;
    member.join(Proof::JoinToken(token)).await?;
    Ok(member)
}

struct Sidecar {
    process: Process,
    /// Named by the service.
    _app: Process,
    outbound: SocketAddr,
    admin: SocketAddr,
}

impl Sidecar {
    /// Joins by a token of `by`, with these addresses of control planes, and is ready.
    async fn start(by: &Guarded, control: &str, service: &str) -> anyhow::Result<Self> {
        let ip = address::fresh();
        let at = |port| SocketAddr::new(ip, port);
        let app = SocketAddr::new(address::fresh(), 8080);
        let mut echo = Command::new(executable("echo")?);
        echo.args([&app.to_string(), service]);
        let log = |what: &str| by.folder().join(format!("{service}-{ip}-{what}.log"));
        let echo = Process::spawn(echo, &log("app"))?;
        let (token, dir) = (format!("{service}-{ip}.token"), format!("{service}-{ip}"));
        by.does(&["cert", "token", "--service", service, "--out", &token])?;
        let mut command = Command::new(executable("phalanx")?);
        command
            .args(["proxy", "--service", service, "--workers", "1"])
            .args(["--app", &app.to_string(), "--control", control])
            .args(["--inbound", &at(15006).to_string()])
            .args(["--outbound", &at(15001).to_string()])
            .args(["--admin", &at(15000).to_string()])
            .args(["--token-file", &token, "--identity-dir", &dir])
            .args(RENEWAL)
            .current_dir(by.folder());
        let sidecar = Self {
            process: Process::spawn(command, &log("sidecar"))?,
            _app: echo,
            outbound: at(15001),
            admin: at(15000),
        };
        let ready = eventually("the sidecar to be ready", LIMIT, async || {
            let answer = http::call(sidecar.admin, &Call::get("localhost", "/readyz")).await;
            answer.ok().filter(|a| a.status == 200)
        });
        ready.await.with_context(|| sidecar.process.log())?;
        Ok(sidecar)
    }

    async fn certs(&self) -> Option<Value> {
        let answer = http::call(self.admin, &Call::get("localhost", "/certs")).await;
        Some(answer.ok()?.json())
    }

    /// Waits for so many further certificates.
    async fn renews(&self, count: usize) -> anyhow::Result<()> {
        let mut serials = Vec::new();
        let renewed = eventually("renewals", LIMIT, async || {
            let serial = self.certs().await?["certificate"]["serial"].clone();
            if serials.last() != Some(&serial) {
                serials.push(serial);
            }
            (serials.len() > count).then_some(())
        });
        renewed.await.with_context(|| self.process.log())
    }

    /// Until it gets an answer of the service.
    async fn reaches(&self, service: &str) -> anyhow::Result<()> {
        let call = Call::get(service, "/");
        let answered = eventually("an answer", LIMIT, async || {
            let answer = http::call(self.outbound, &call).await.ok()?;
            (answer.status == 200).then_some(())
        });
        answered.await.with_context(|| self.process.log())
    }
}

async fn json(plane: &Guarded, words: &[&str]) -> Option<Value> {
    let said = plane.phalanx(&[words, &["-o", "json"]].concat()).ok()?;
    serde_json::from_str(&said.text).ok()
}

/// Waits until a control plane has asked so many, itself among them, and each has answered.
async fn complete(plane: &Guarded, planes: usize, proxies: u64) -> anyhow::Result<()> {
    eventually("the whole mesh to be seen", LIMIT, async || {
        let status = json(plane, &["status"]).await?;
        let listed = status["planes"].as_array();
        let listed = listed.map_or(&[][..], Vec::as_slice);
        let is_well = listed.iter().all(|p| p["error"].is_null());
        // One that is alone lists nobody.
        let count = listed.len().max(1);
        (is_well && count == planes && status["proxies"] == proxies).then_some(())
    })
    .await
    .with_context(|| {
        plane
            .phalanx(&["status"])
            .map_or_else(|e| e.to_string(), |s| s.text)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_one_is_killed_sidecars_are_renewed_by_the_other() -> anyhow::Result<()> {
    let pair = Pair::start(&BRIEF).await?;
    let back = Sidecar::start(&pair.a, &pair.both(), "back").await?;
    let front = Sidecar::start(&pair.b, &pair.both(), "front").await?;
    front.reaches("back").await?;
    for plane in [&pair.a, &pair.b] {
        complete(plane, 2, 2).await?;
    }
    // Tokens outlive the one who made them.
    let (unused, roots) = token(&pair.a, "late")?;
    let load = Load::start(front.outbound, &Call::get("back", "/"), 3, PAUSE);
    let Pair { etcd: _etcd, a, b } = pair;
    // Whoever has both addresses is connected to either.
    let status = a.client()?.status(None).await?;
    let of_a = status.planes.iter().find(|p| p.name == "a");
    let (mut dies, left) = match of_a.is_some_and(|p| p.proxies > 0) {
        true => (a, b),
        false => (b, a),
    };
    dies.process.kill();
    after_a_death(&left, &back, &front, &unused, &roots).await?;
    // It comes back, and knows what was revoked without it.
    dies.restart().await?;
    complete(&left, 2, 2).await?;
    let query = IssuedQuery {
        service: Some("late".into()),
        revoked: true,
        ..IssuedQuery::default()
    };
    assert_eq!(dies.client()?.issued(&query).await?.items.len(), 1);
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{report:?}\n{}", front.process.log());
    Ok(())
}

async fn after_a_death(
    left: &Guarded,
    back: &Sidecar,
    front: &Sidecar,
    unused: &str,
    roots: &str,
) -> anyhow::Result<()> {
    for sidecar in [back, front] {
        sidecar.renews(2).await?;
    }
    let late = Member::new(&left.xds.to_string(), roots, "late")?;
    late.join(Proof::JoinToken(unused.to_owned())).await?;
    late.renew().await?;
    let seen = complete(left, 1, 2).await;
    seen.with_context(|| [back, front].map(|s| s.process.log()).concat())?;
    let serial = late.serial().context("no serial")?.to_string();
    let request = RevokeRequest {
        serials: vec![serial],
        reason: "keyCompromise".into(),
        ..RevokeRequest::default()
    };
    assert_eq!(left.client()?.revoke(&request).await?.serials.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_good_at_every_control_plane_and_once_in_all() -> anyhow::Result<()> {
    let pair = Pair::start(&[]).await?;
    let (at_a, at_b) = (pair.a.xds.to_string(), pair.b.xds.to_string());
    let (used, roots) = token(&pair.a, "battle")?;
    let member = Member::new(&at_b, &roots, "battle")?;
    let proof = |text: &str| Proof::JoinToken(text.to_owned());
    member.join(proof(&used)).await?;
    let thief = Member::new(&at_a, &roots, "battle")?;
    let key = Key::generate(KeyKind::default())?;
    let refused = thief.ask(proof(&used), &key).await.unwrap_err();
    assert!(refused.to_string().contains("used already"), "{refused}");
    // Twice at once.
    let mut wins = [0, 0];
    for round in 0..10 {
        let maker = [&pair.a, &pair.b][round % 2];
        let (text, _) = token(maker, "battle")?;
        let keys = [
            Key::generate(KeyKind::default())?,
            Key::generate(KeyKind::default())?,
        ];
        let other = Member::new(&at_b, &roots, "battle")?;
        // Whoever asks first has an advantage: in turn.
        let mut askers = [(0, &thief, &keys[0]), (1, &other, &keys[1])];
        askers.rotate_left(round % 2);
        let [(first, one, mine), (second, two, theirs)] = askers;
        let (one, two) = tokio::join!(one.ask(proof(&text), mine), two.ask(proof(&text), theirs));
        wins[first] += usize::from(one.is_ok());
        wins[second] += usize::from(two.is_ok());
        assert_eq!(wins.iter().sum::<usize>(), round + 1, "{one:?} {two:?}");
        let lost: CallError = one.err().or(two.err()).context("nobody lost")?;
        assert!(lost.to_string().contains("used already"), "{lost}");
    }
    println!("a won {} times, b {} times", wins[0], wins[1]);
    // All of them are in both logs, and each by its own token.
    let mut logs = Vec::new();
    for plane in [&pair.a, &pair.b] {
        let log = eventually("all to be in the log", LIMIT, async || {
            let query = IssuedQuery {
                service: Some("battle".into()),
                ..IssuedQuery::default()
            };
            let items = plane.client().ok()?.issued(&query).await.ok()?.items;
            (items.len() >= 11).then_some(items)
        })
        .await?;
        let by: Vec<&str> = log.iter().map(|line| &*line.attested).collect();
        let unique: std::collections::BTreeSet<_> = by.iter().collect();
        assert_eq!((by.len(), unique.len()), (11, 11), "{by:?}");
        logs.push(log);
    }
    // One control plane renews what the other issued.
    let wandering = Member::new(&pair.both(), &roots, "battle")?;
    wandering.join(proof(&token(&pair.a, "battle")?.0)).await?;
    for _ in 0..3 {
        wandering.renew().await?;
        wandering.go_over();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_revokes_is_refused_by_sidecars_of_the_other() -> anyhow::Result<()> {
    let pair = Pair::start(&[]).await?;
    let (at_a, at_b) = (pair.a.xds.to_string(), pair.b.xds.to_string());
    let _back = Sidecar::start(&pair.b, &at_b, "back").await?;
    let front = Sidecar::start(&pair.a, &at_a, "front").await?;
    fs::write(
        pair.a.folder().join("strict.yaml"),
        "apiVersion: phalanx.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: everybody, namespace: phalanx-system}\nspec: {mtls: {mode: Strict}}\n",
    )?;
    pair.a.does(&["apply", "-f", "strict.yaml", "--wait"])?;
    front.reaches("back").await?;
    for plane in [&pair.a, &pair.b] {
        complete(plane, 2, 2).await?;
    }
    // Who calls whom is told by the control plane of the caller.
    eventually("the call to be known", LIMIT, async || {
        front.reaches("back").await.ok()?;
        let edges = pair.a.client().ok()?.edges(None).await.ok()?;
        let is_known = |e: &phalanx_client::api::Edge| e.source == "front";
        edges.totals.iter().any(is_known).then_some(())
    })
    .await?;
    // A member follows at a; another of the same service is let be.
    let gone = member(&pair.b, &at_a, "gone").await?;
    let (_, roots) = token(&pair.a, "front")?;
    let mut following = gone.follow().await?;
    following.next().await?.context("nothing was told")?;

    let begun = Instant::now();
    pair.a
        .does(&["cert", "revoke", "--service", "front", "--yes"])?;
    let call = Call::get("back", "/");
    eventually("the caller to be refused", LIMIT, async || {
        let answer = http::call(front.outbound, &call).await.ok()?;
        (answer.status != 200).then_some(())
    })
    .await?;
    println!(
        "refused by the other's sidecar {:?} after asking",
        begun.elapsed()
    );
    // And by the other control plane itself.
    pair.b
        .does(&["cert", "revoke", "--service", "gone", "--yes"])?;
    eventually("a renewal to be refused", LIMIT, async || {
        gone.reconnect();
        gone.renew().await.err()
    })
    .await?;
    // With a new token it comes back, at either.
    let again = Member::new(&at_b, &roots, "gone")?;
    again
        .join(Proof::JoinToken(token(&pair.a, "gone")?.0))
        .await?;
    again.renew().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_is_carried_over_both_and_decided_once() -> anyhow::Result<()> {
    let pair = Pair::start(&[]).await?;
    let (at_a, at_b) = (pair.a.xds.to_string(), pair.b.xds.to_string());
    let _shop = Sidecar::start(&pair.a, &at_a, "shop").await?;
    let _next = Sidecar::start(&pair.b, &at_b, "next").await?;
    let gate = Sidecar::start(&pair.b, &at_b, "gate").await?;
    let route = |backend: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop}}\nspec:\n  parentRefs: [{{kind: Service, name: shop}}]\n  rules:\n  - backendRefs: [{{name: {backend}, port: 80}}]\n"
        )
    };
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports: [{{port: 80, appProtocol: http}}]\n---\n"
        )
    };
    let file = |name: &str, text: String| fs::write(pair.a.folder().join(name), text);
    file(
        "first.yaml",
        [service("shop"), service("next"), route("shop")].concat(),
    )?;
    file("then.yaml", route("next"))?;
    pair.a.does(&["apply", "-f", "first.yaml", "--wait"])?;
    gate.reaches("shop").await?;
    complete(&pair.a, 2, 3).await?;
    let arguments = [
        "apply",
        "-f",
        "then.yaml",
        "--canary",
        "100%",
        "--watch",
        "2s",
        "--wait",
    ];
    let said = pair.a.does(&arguments)?;
    assert!(said.contains("1 proxy of 1 had it"), "{said}");
    let answer = http::call(gate.outbound, &Call::get("shop", "/")).await?;
    assert_eq!((answer.status, answer.header("x-echo")), (200, "next"));
    let history = pair.b.client()?.history(None).await?;
    let ends = history
        .entries
        .iter()
        .filter(|e| e.canary.as_deref() == Some("promoted"));
    assert_eq!(ends.count(), 1, "{history:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_is_replaced_while_both_run() -> anyhow::Result<()> {
    let pair = Pair::start(&BRIEF).await?;
    let (at_a, at_b) = (pair.a.xds.to_string(), pair.b.xds.to_string());
    let back = Sidecar::start(&pair.b, &at_b, "back").await?;
    let front = Sidecar::start(&pair.a, &at_a, "front").await?;
    front.reaches("back").await?;
    let before = back.certs().await.context("no page")?;
    let load = Load::start(front.outbound, &Call::get("back", "/"), 3, PAUSE);
    pair.a.does(&["cert", "rotate-root", "--begin"])?;
    // Whoever doesn't lead says who does.
    let said = pair.b.phalanx(&["cert", "rotate-root", "--switch"])?;
    assert!(!said.is_content && said.text.contains('a'), "{}", said.text);
    let phase = async |wanted: &str| {
        let reached = eventually(wanted, LIMIT, async || {
            let rotation = json(&pair.b, &["cert", "rotate-root"]).await?;
            (rotation["phase"] == wanted).then_some(())
        });
        reached.await.with_context(|| {
            let said = pair.a.phalanx(&["cert", "rotate-root"]);
            said.map_or_else(|e| e.to_string(), |s| s.text)
        })
    };
    phase("switched").await?;
    // It does not go on without an intermediate for b under the new root.
    let second = pair.a.folder().join("second");
    fs::remove_dir_all(&second)?;
    pair.a.does(&["cert", "intermediate", "--out", "second"])?;
    phase("steady").await?;
    eventually("only the new root", LIMIT, async || {
        let now = back.certs().await?;
        let roots = now["roots"].as_array()?;
        (roots.len() == 1 && now["roots"][0]["sha256"] != before["roots"][0]["sha256"])
            .then_some(())
    })
    .await?;
    for sidecar in [&back, &front] {
        sidecar.renews(1).await?;
    }
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{report:?}\n{}", front.process.log());
    for plane in [&pair.a, &pair.b] {
        complete(plane, 2, 2).await?;
    }
    // A restart of either begins under the new one.
    let Pair {
        etcd: _etcd,
        mut a,
        mut b,
    } = pair;
    for plane in [&mut a, &mut b] {
        plane.restart().await?;
    }
    for sidecar in [&back, &front] {
        sidecar.renews(1).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_with_another_root_is_turned_away() -> anyhow::Result<()> {
    let pair = Pair::start(&[]).await?;
    let stranger = Guarded::start().await?;
    stranger.does(&["cert", "intermediate", "--out", "theirs"])?;
    let store = format!("etcd://{}", pair.etcd.endpoint());
    let theirs = stranger.folder().join("theirs").display().to_string();
    let come = |data: &std::path::Path, more: &[&str]| -> anyhow::Result<(bool, String)> {
        let ip = address::fresh();
        let at = |port| SocketAddr::new(ip, port).to_string();
        let mut command = Command::new(executable("phalanx")?);
        command
            .args(["control", "--store", &store, "--plane", "c"])
            .args(["--xds", &at(15010), "--admin", &at(15080)])
            .args(["--dns", &at(15053), "--ocsp", "none", "--data"])
            .arg(data)
            .args(more)
            .stdin(Stdio::null());
        let done = command.output()?;
        let text = [done.stdout, done.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok((done.status.success(), text))
    };
    let fresh = pair.a.folder().join("c");
    for (data, more, why) in [
        (fresh.clone(), &[][..], "no intermediate under its root"),
        (
            fresh.clone(),
            &["--ca", &*theirs],
            "none that the mesh trusts",
        ),
        (
            fresh,
            &["--trust-domain", "other.example"],
            "--trust-domain phalanx.local",
        ),
    ] {
        let (is_content, text) = come(&data, more)?;
        assert!(!is_content && text.contains(why), "{text}");
    }
    // One that has been a mesh of its own comes with its data.
    let (data, mut stranger) = (stranger.data(), stranger);
    stranger.process.kill();
    let (is_content, text) = come(&data, &[])?;
    assert!(
        !is_content && text.contains("cert intermediate --out DIR"),
        "{text}"
    );
    // Nobody was told to trust anything else.
    let roots = pair.a.does(&["cert", "roots"])?;
    assert_eq!(roots.matches("BEGIN CERTIFICATE").count(), 1, "{roots}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_from_a_backup_goes_on_with_the_same_authority() -> anyhow::Result<()> {
    let mut plane = Guarded::start().await?;
    let at = plane.xds.to_string();
    let kept = member(&plane, &at, "kept").await?;
    let (used, roots) = token(&plane, "battle")?;
    let battle = Member::new(&at, &roots, "battle")?;
    battle.join(Proof::JoinToken(used.clone())).await?;
    let (unused, _) = token(&plane, "battle")?;
    plane.does(&["backup", "mesh.backup"])?;
    let after = member(&plane, &at, "after").await?;
    plane.process.kill();
    // The disk is gone; keys were kept elsewhere, as files.
    let (data, lost) = (plane.data(), plane.folder().join("lost"));
    fs::rename(&data, &lost)?;
    plane
        .does(&[
            "restore",
            "mesh.backup",
            "--data",
            &data.display().to_string(),
        ])
        .or_else(|_| restore(&plane))?;
    // Without its keys it says what to put back, and is nobody else.
    assert!(plane.restart().await.is_err());
    let said = plane.process.log();
    assert!(said.contains("put that directory back"), "{said}");
    copy(&lost.join("ca"), &data.join("ca"))?;
    copy(&lost.join("admin"), &data.join("admin"))?;
    plane.restart().await?;
    for member in [&kept, &battle, &after] {
        eventually("a renewal", LIMIT, async || member.renew().await.ok())
            .await
            .with_context(|| plane.process.log())?;
    }
    let again = Member::new(&at, &roots, "battle")?;
    let refused = again.join(Proof::JoinToken(used)).await.unwrap_err();
    assert!(
        format!("{refused:#}").contains("used already"),
        "{refused:#}"
    );
    again.join(Proof::JoinToken(unused)).await.map(drop)
}

/// Where the command line wants no credentials that are not there.
fn restore(plane: &Guarded) -> anyhow::Result<String> {
    let mut command = Command::new(executable("phalanx")?);
    let words = ["restore", "--force", "mesh.backup", "--data", "data"];
    let done = command.args(words).current_dir(plane.folder()).output()?;
    let text = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    anyhow::ensure!(done.status.success(), "{text}");
    Ok(text)
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> anyhow::Result<()> {
    let done = Command::new("cp").arg("-aT").args([from, to]).status()?;
    anyhow::ensure!(done.success(), "cp {}", from.display());
    Ok(())
}
