//! `explain`, from files and at a sidecar that runs, against what that sidecar answers.

use std::collections::{BTreeMap, BTreeSet};

use hyper::Method;
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Answer, Call, call};
use phalanx_testkit::mesh::{Instance, Mesh};
use serde_json::Value;

use crate::{LIMIT, metric, page, phalanx};

/// Requests beside those of the table.
const DRAWN: usize = 120;
const MANIFESTS: &str = include_str!("../interop.yaml");

struct Running {
    mesh: Mesh,
    shop: Instance,
    cart: Instance,
    glass: Instance,
    gateway: Instance,
}

async fn start() -> anyhow::Result<Running> {
    let mut mesh = Mesh::start().await?;
    let shop = mesh.instance("shop", "v1", "shop").await?;
    let cart = mesh.instance("cart", "v1", "cart").await?;
    let glass = mesh.instance("glass", "v1", "glass").await?;
    let gateway = mesh.instance("gateway", "v1", "gateway").await?;
    mesh.apply(MANIFESTS).await?;
    let ready = Call::get("shop", "/cart");
    eventually("the routes", LIMIT, async || {
        let answer = call(gateway.outbound, &ready).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    Ok(Running {
        mesh,
        shop,
        cart,
        glass,
        gateway,
    })
}

/// What the manifests speak of, so that requests meet their rules, and just miss them.
struct Pool {
    hosts: Vec<String>,
    paths: Vec<String>,
}

impl Pool {
    fn of(manifests: &str) -> Self {
        let after = |line: &str, key: &str| -> Option<String> {
            let (_, rest) = line.split_once(key)?;
            let value = rest.trim_start_matches(['"', ' ']);
            let end = value.find(['"', '}', ',']).unwrap_or(value.len());
            Some(value[..end].trim().to_owned())
        };
        let mut hosts: BTreeSet<String> = BTreeSet::from(["nobody".into()]);
        let mut paths: BTreeSet<String> = BTreeSet::from(["/".into(), "/a%2fb".into()]);
        let mut is_service = false;
        for line in manifests.lines() {
            if let Some(kind) = line.strip_prefix("kind: ") {
                is_service = kind == "Service";
            }
            if line.starts_with("metadata:") && is_service {
                hosts.extend(after(line, "name: "));
            }
            let path = after(line, "value: ").filter(|value| value.starts_with('/'));
            let Some(path) = path else { continue };
            // A pattern's classes become something that they mean.
            let path = path.replace("[0-9]+", "42").replace("\\\\", "");
            if path
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"/-_.".contains(&b))
            {
                paths.insert(format!("{path}/more/../deep"));
                paths.insert(format!("{path}x"));
                paths.insert(format!("{path}//"));
                paths.insert(path);
            }
        }
        Self {
            hosts: hosts.into_iter().collect(),
            paths: paths.into_iter().collect(),
        }
    }

    fn draw(&self, rng: &mut fastrand::Rng) -> Call {
        let pick = |list: &[String], rng: &mut fastrand::Rng| list[rng.usize(..list.len())].clone();
        let host = pick(&self.hosts, rng);
        if rng.u8(..8) == 0 {
            let service = ["arena.v1.Battle", "arena.v1.Other", "arena.v1.None"];
            let method = ["Fight", "Watch"];
            let path = format!(
                "/{}/{}",
                rng.choice(service).unwrap(),
                rng.choice(method).unwrap()
            );
            return Call::grpc(&host, &path);
        }
        let host = match rng.u8(..6) {
            0 => format!("{host}:80"),
            1 => format!("{host}.default.svc.mesh"),
            2 => host.to_uppercase(),
            _ => host,
        };
        let query = ["", "", "?beta=yes", "?beta=no&x=1", "?q=a%20b&r=xx"];
        let path = pick(&self.paths, rng) + rng.choice(query).unwrap();
        let methods = [Method::GET, Method::GET, Method::POST, Method::PUT];
        let mut call = Call::get(&host, &path).method(rng.choice(methods).unwrap());
        let headers = [
            ("x-env", "staging"),
            ("x-env", "prod"),
            ("x-build", "build-17"),
            ("x-set", "old"),
            ("x-gone", "1"),
            ("x-one", "1"),
        ];
        for (name, value) in headers {
            if rng.u8(..5) == 0 {
                call = call.header(name, value);
            }
        }
        call
    }
}

/// What the explanation and the answer disagree in.
fn compare(running: &Running, told: &Value, answer: &Answer) -> Result<(), String> {
    let outcomes = told["outcomes"].as_array().cloned().unwrap_or_default();
    let by = answer.header("x-echo");
    let reason = answer.header("x-phalanx-reason");
    if by.is_empty() && !reason.is_empty() && outcomes.iter().all(|o| o["ends"] == "forward") {
        // What only time tells: a limit that the explanation names.
        let limited = told["limits"]["request_timeout_ms"].is_u64();
        return match (reason, limited) {
            ("timeout", true) => Ok(()),
            _ => Err(format!(
                "answered {} {reason}, not forwarded",
                answer.status
            )),
        };
    }
    if by.is_empty() {
        let is = |outcome: &&Value| {
            outcome["ends"] == "answer"
                && outcome["status"] == answer.status
                && outcome["reason"].as_str().unwrap_or_default() == reason
                && outcome["location"].as_str().unwrap_or_default() == answer.header("location")
        };
        let found = outcomes.iter().find(is).ok_or("no such outcome was told")?;
        let grpc = found["grpc_status"].as_u64().map(|s| s.to_string());
        return match grpc.as_deref() == answer.grpc_status() {
            true => Ok(()),
            false => Err(format!(
                "grpc-status {:?}, told {grpc:?}",
                answer.grpc_status()
            )),
        };
    }
    let addresses = [
        (running.shop.inbound.to_string(), "shop"),
        (running.cart.inbound.to_string(), "cart"),
        (running.glass.inbound.to_string(), "glass"),
    ];
    let forwarded: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| outcome["ends"] == "forward")
        .filter_map(|outcome| outcome["cluster"].as_str())
        .collect();
    let backends = told["backends"].as_array().cloned().unwrap_or_default();
    let endpoints = backends
        .iter()
        .filter(|backend| forwarded.iter().any(|name| backend["cluster"] == *name))
        .flat_map(|backend| backend["endpoints"].as_array().cloned().unwrap_or_default());
    let names: BTreeSet<&str> = endpoints
        .filter_map(|endpoint| {
            let address = endpoint["address"].as_str()?;
            let (_, name) = addresses.iter().find(|(known, _)| known == address)?;
            Some(*name)
        })
        .collect();
    if !names.contains(by) {
        return Err(format!("it was answered by {by}, told were {names:?}"));
    }
    let received = answer.json();
    if outcomes.len() > 1 || received.is_null() {
        return Ok(());
    }
    let sent = &told["upstream"];
    for key in ["method", "path", "query"] {
        if sent[key] != received[key] {
            return Err(format!(
                "{key} {} arrived, told was {}",
                received[key], sent[key]
            ));
        }
    }
    let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pair in sent["headers"].as_array().into_iter().flatten() {
        let (name, value) = (
            pair[0].as_str().unwrap_or(""),
            pair[1].as_str().unwrap_or(""),
        );
        headers.entry(name).or_default().push(value);
    }
    for name in ["x-added", "x-set", "x-gone", "x-env", "x-backend"] {
        let told = headers.get(name).map(|values| values.join(", "));
        if told.as_deref() != received["headers"][name].as_str() {
            let arrived = &received["headers"][name];
            return Err(format!("{name}: {arrived} arrived, told was {told:?}"));
        }
    }
    Ok(())
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| match b.is_ascii_alphanumeric() {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect()
}

async fn explained(running: &Running, call: &Call) -> anyhow::Result<Value> {
    let url = format!("http://{}{}", call.authority, call.path);
    let mut path = format!("/explain?method={}&url={}", call.method, encoded(&url));
    for (name, value) in &call.headers {
        path += &format!("&h={}", encoded(&format!("{name}: {value}")));
    }
    let answer = page(running.gateway.admin, &path).await?;
    anyhow::ensure!(answer.status == 200, "{path}: {:?}", answer.body);
    Ok(answer.json())
}

/// By the command line, from the files.
fn from_files(running: &Running, file: &str, asked: &Call) -> anyhow::Result<(Value, i32)> {
    let url = format!("http://{}{}", asked.authority, asked.path);
    let mut arguments = vec!["explain".to_owned(), "-f".into(), file.into()];
    arguments.extend(["--from", "gateway", "--plain", "-o", "json"].map(String::from));
    let given = [
        ("shop", &running.shop),
        ("cart", &running.cart),
        ("glass", &running.glass),
    ];
    for (name, instance) in given {
        // The sidecar is found at the same address.
        arguments.push("--instance".into());
        arguments.push(format!("{name}={},version=v1", instance.app_address));
    }
    for (name, value) in &asked.headers {
        arguments.push(format!("-H={name}: {value}"));
    }
    arguments.extend([asked.method.to_string(), url]);
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = phalanx(&words)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let told = serde_json::from_str(&text)
        .map_err(|_| anyhow::anyhow!("{words:?}: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((told, output.status.code().unwrap_or(-1)))
}

#[tokio::test]
async fn what_is_explained_is_what_a_running_sidecar_answers() -> anyhow::Result<()> {
    let running = start().await?;
    let file = running.mesh.folder().join("interop.yaml");
    std::fs::write(&file, MANIFESTS)?;
    let file = file.display().to_string();
    let pool = Pool::of(MANIFESTS);
    let mut rng = fastrand::Rng::with_seed(24);
    let mut differences = Vec::new();
    let mut reasons: BTreeMap<String, u32> = BTreeMap::new();
    let (mut forwarded, mut answered) = (0, 0);
    let table: Vec<Call> = crate::table::all().map(|(call, ..)| call).collect();
    let drawn = (0..DRAWN).map(|_| pool.draw(&mut rng));
    let asked: Vec<Call> = table.into_iter().chain(drawn).collect();
    for (round, asked) in asked.into_iter().enumerate() {
        let told = explained(&running, &asked).await?;
        let answer = call(running.gateway.outbound, &asked).await?;
        let name = format!(
            "{} {}{} {:?}",
            asked.method, asked.authority, asked.path, asked.headers
        );
        match answer.header("x-echo").is_empty() {
            true => answered += 1,
            false => forwarded += 1,
        }
        let reason = answer.header("x-phalanx-reason");
        if !reason.is_empty() {
            *reasons.entry(reason.to_owned()).or_default() += 1;
        }
        if let Err(why) = compare(&running, &told, &answer) {
            differences.push(format!("{name}: {why}\n{told:#}"));
        }
        if round % 10 == 0 {
            let (from_files, code) = from_files(&running, &file, &asked)?;
            let ends = |told: &Value| {
                let outcomes = told["outcomes"].as_array().cloned().unwrap_or_default();
                let keys = [
                    "ends",
                    "cluster",
                    "status",
                    "grpc_status",
                    "reason",
                    "location",
                ];
                let end = |o: &Value| keys.map(|key| o[key].to_string()).join(" ");
                outcomes.iter().map(end).collect::<BTreeSet<_>>()
            };
            if ends(&told) != ends(&from_files)
                || told["upstream"]["path"] != from_files["upstream"]["path"]
            {
                differences.push(format!(
                    "{name}: from files {from_files:#}\nat the sidecar {told:#}"
                ));
            }
            let is_error = |o: &Value| o["reason"].is_string();
            let fails = from_files["outcomes"]
                .as_array()
                .is_some_and(|all| all.iter().any(is_error));
            if code != i32::from(fails) {
                differences.push(format!("{name}: exit code {code}"));
            }
        }
    }
    assert!(
        differences.is_empty(),
        "{} differ\n{}",
        differences.len(),
        differences.join("\n")
    );
    assert!(
        forwarded > 50 && answered > 20,
        "{forwarded} forwarded, {answered} answered"
    );
    // Whatever was answered by the proxy was counted by its reason.
    for (reason, count) in &reasons {
        let label = format!("reason=\"{reason}\"");
        let name = "phalanx_own_answers_total";
        eventually("the answers to be counted", LIMIT, async || {
            let counted = metric(running.gateway.admin, name, &[&label]).await.ok()?;
            (counted >= f64::from(*count)).then_some(())
        })
        .await?;
    }
    assert!(reasons.len() >= 4, "{reasons:?}");
    Ok(())
}

#[tokio::test]
async fn an_explanation_names_rule_line_and_what_was_compared() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("shop.yaml");
    std::fs::write(&file, MANIFESTS)?;
    let file = file.display().to_string();
    let ask = |words: &[&str]| {
        let base = ["explain", "-f", &file, "--from", "gateway"];
        phalanx(&[&base[..], words].concat())
    };
    let output = ask(&[
        "GET",
        "http://shop/header",
        "-H",
        "x-env: prod",
        "-o",
        "json",
    ])?;
    assert_eq!(output.status.code(), Some(0));
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let rules = told["rules"].as_array().cloned().unwrap_or_default();
    let tried = rules.iter().find(|rule| {
        let compared = rule["compared"].as_array();
        compared.is_some_and(|all| all.iter().any(|c| c["what"] == "header x-env"))
    });
    let tried = tried.expect("the rule with the header was tried");
    assert_eq!(tried["met"], false);
    let env = &tried["compared"][1];
    assert_eq!(
        (&env["expected"], &env["found"]),
        (&"exactly staging".into(), &"prod".into())
    );
    // The line is that of the match.
    let source = tried["source"].as_str().unwrap_or_default();
    let line: usize = source.rsplit(':').next().unwrap_or_default().parse()?;
    let text = MANIFESTS.lines().nth(line - 1).unwrap_or_default();
    assert!(text.contains("staging"), "{source}: {text}");
    assert_eq!(told["next"]["direction"], "inbound");
    assert_eq!(told["next"]["authorization"]["decision"], "allowed");
    let caller = told["next"]["authorization"]["caller"]
        .as_str()
        .unwrap_or_default();
    assert_eq!(caller, "spiffe://phalanx.local/ns/default/sa/gateway");

    // What ends in an error says so by its exit code, and in words.
    let output = ask(&["GET", "http://shop/missing-backend"])?;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("invalid_backend") && text.contains("HTTPRoute/default/shop/"),
        "{text}"
    );
    let output = ask(&["GET", "http://shop/a%2fb"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("bad_path"));
    // Wrong usage is another code.
    assert_eq!(ask(&["GET", "ftp://shop/"])?.status.code(), Some(2));
    Ok(())
}
