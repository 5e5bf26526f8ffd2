//! The control plane's ports as strangers and tools meet them: the command line, curl, openssl, gRPC of another language, and
//! whoever says something else than is expected.

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::Context;
use phalanx_testkit::etcd::Etcd;
use phalanx_testkit::eventually;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::process::executable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(30);

/// The command line with nothing in its environment but what is given.
fn bare(
    plane: &Guarded,
    environment: &[(&str, &str)],
    words: &[&str],
) -> anyhow::Result<(i32, String)> {
    let mut command = Command::new(executable("phalanx")?);
    command
        .env_remove("PHALANX_ROOTS")
        .env_remove("PHALANX_TOKEN_FILE")
        .env_remove("PHALANX_TOKEN")
        .env("PHALANX_ADMIN", plane.admin.to_string())
        .envs(environment.iter().copied())
        .args(words);
    let done = command.current_dir(plane.folder()).output()?;
    Ok((done.status.code().unwrap_or(-1), said(&done)))
}

fn said(done: &Output) -> String {
    let text = [&done.stdout[..], &done.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// With the roots, and the words given.
fn curl(plane: &Guarded, words: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("curl");
    let command = command
        .args(["--silent", "--show-error", "--include", "--max-time", "10"])
        .arg("--cacert")
        .arg(plane.data().join("admin/roots.pem"))
        .args(words);
    Ok(said(&command.output().context("curl has to be installed")?))
}

fn admin_token(plane: &Guarded) -> anyhow::Result<String> {
    let token = std::fs::read_to_string(plane.data().join("admin/token"))?;
    Ok(token.trim().to_owned())
}

/// Everything that comes back for some bytes.
async fn answer(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // It may have been told to go already.
    let _ = stream.write_all(bytes).await;
    let mut heard = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut heard)).await?;
    Ok(heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_says_what_is_missing_and_what_to_do() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let roots = plane.data().join("admin/roots.pem").display().to_string();
    let token = plane.data().join("admin/token").display().to_string();
    let (code, text) = bare(&plane, &[], &["status"])?;
    assert!(
        code == 1 && text.contains("speaks TLS") && text.contains("PHALANX_ROOTS"),
        "{text}"
    );
    let (code, text) = bare(&plane, &[("PHALANX_ROOTS", &roots)], &["status"])?;
    assert!(
        code == 1 && text.contains("needs a token") && text.contains("PHALANX_TOKEN_FILE"),
        "{text}"
    );
    let with = |token| [("PHALANX_ROOTS", roots.as_str()), ("PHALANX_TOKEN", token)];
    let (code, text) = bare(&plane, &with("phalanx-user.admin.00"), &["status"])?;
    assert!(code == 1 && text.contains("not known"), "{text}");
    let own = admin_token(&plane)?;
    let (code, text) = bare(&plane, &with(&own), &["status"])?;
    assert_eq!(code, 0, "{text}");
    let (code, text) = bare(
        &plane,
        &[],
        &["status", "--roots", &roots, "--token-file", &token],
    )?;
    assert_eq!(code, 0, "{text}");
    let (code, text) = bare(
        &plane,
        &[],
        &["--roots", &roots, "--token-file", &token, "ps"],
    )?;
    assert_eq!(code, 0, "{text}");
    let (code, text) = bare(&plane, &[("PHALANX_ROOTS", "no-such-file")], &["status"])?;
    assert!(code == 2 && text.contains("no-such-file"), "{text}");

    let stranger = Guarded::start().await?;
    let (code, text) = bare(&stranger, &with(&own), &["status"])?;
    assert!(
        code == 1 && text.contains("no trusted root") && text.contains("roots.pem"),
        "{text}"
    );

    // TLS to somebody who doesn't speak it.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let words = ["status", "--admin", &address];
    let (code, text) = bare(&plane, &with(&own), &words)?;
    assert!(
        code != 0 && text.contains("plain text") && text.contains("no TLS"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn a_token_survives_a_restart_and_dies_with_its_time() -> anyhow::Result<()> {
    let mut plane = Guarded::start().await?;
    let before = admin_token(&plane)?;
    plane.does(&[
        "user", "add", "brief", "--role", "viewer", "--ttl", "5s", "--out", "brief",
    ])?;
    let brief = || bare(&plane, &[("PHALANX_TOKEN_FILE", "brief")], &["status"]);
    assert_eq!(brief()?.0, 0);
    eventually("the token to expire", SOON, async || {
        brief()
            .ok()
            .filter(|(code, text)| *code == 1 && text.contains("expired"))
    })
    .await?;
    plane.restart().await?;
    assert_eq!(admin_token(&plane)?, before);
    plane.does(&["status"])?;
    Ok(())
}

#[tokio::test]
async fn curl_and_browsers_get_in_by_token_and_by_cookie() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    let (token, base) = (admin_token(&plane)?, format!("https://{}", plane.admin));
    let me = format!("{base}/api/v1/me");
    let bearer = format!("authorization: Bearer {token}");
    let text = curl(&plane, &["--header", &bearer, &me])?;
    assert!(
        text.contains(" 200 ") && text.contains("\"role\":\"admin\""),
        "{text}"
    );
    let text = curl(&plane, &[&me])?;
    assert!(
        text.contains(" 401 ") && text.to_lowercase().contains("www-authenticate: bearer"),
        "{text}"
    );
    // By a name of the machine, which the certificate has.
    let local = format!("https://localhost:{}/healthz", plane.admin.port());
    let there = format!("localhost:{}:{}", plane.admin.port(), plane.admin.ip());
    let text = curl(&plane, &["--resolve", &there, &local])?;
    assert!(text.contains(" 200 "), "{text}");
    // The page is anybody's, what it shows is not.
    assert!(curl(&plane, &[&format!("{base}/")])?.contains("id=\"login\""));

    let (json, login) = (
        "content-type: application/json",
        format!("{base}/api/v1/login"),
    );
    let body = format!("{{\"token\":\"{token}\"}}");
    let text = curl(&plane, &["--header", json, "--data", &body, &login])?;
    let cookie = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("set-cookie")
            .then(|| value.trim().to_owned())
    });
    let cookie = cookie.with_context(|| text.clone())?;
    for word in ["HttpOnly", "Secure", "SameSite=Strict", "__Host-", "Path=/"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    let pair = format!("cookie: {}", cookie.split(';').next().unwrap_or_default());
    assert!(curl(&plane, &["--header", &pair, &me])?.contains("\"name\":\"admin\""));
    // A page of another site has the browser's cookie, perhaps, but not our origin.
    let from = |origin: &str| {
        let origin = format!("origin: {origin}");
        let out = format!("{base}/api/v1/logout");
        curl(
            &plane,
            &[
                "--header", &pair, "--header", &origin, "--header", json, "--data", "{}", &out,
            ],
        )
    };
    assert!(from("https://evil.example")?.contains(" 403 "));
    assert!(from(&base)?.contains("Max-Age=0"));
    let text = curl(
        &plane,
        &["--header", json, "--data", "{\"token\":\"x\"}", &login],
    )?;
    assert!(
        text.contains(" 401 ") && !text.to_lowercase().contains("set-cookie"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn whoever_speaks_plainly_is_told_and_garbage_is_not_heard() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    for port in [plane.admin, plane.xds] {
        let http = answer(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let http = String::from_utf8_lossy(&http);
        assert!(
            http.starts_with("HTTP/1.1 400 ") && http.contains("this port speaks TLS"),
            "{http}"
        );
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
        let h2 = answer(port, preface).await?;
        let words = h2.windows(20).any(|w| w == b"this port speaks TLS");
        assert!(words && h2.get(9 + 3) == Some(&7), "no GOAWAY: {h2:?}");
        for garbage in [
            &b"\x00"[..],
            b"\x16",
            b"\x16\x03\x01\x00\x02\x00\x00",
            b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",
            b"hello?\n",
            &[0xff; 70_000],
        ] {
            let mut stream = TcpStream::connect(port).await?;
            let _ = stream.write_all(garbage).await;
            let _ = stream.shutdown().await;
            let mut heard = Vec::new();
            let _ = timeout(SOON, stream.read_to_end(&mut heard)).await?;
            assert!(heard.len() < 100, "{garbage:?}: {heard:?}");
        }
    }
    // A half of a handshake holds nobody up.
    let mut halves = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(plane.xds).await?;
        stream.write_all(b"\x16\x03\x01\x02\x00\x01").await?;
        halves.push(stream);
    }
    let hello = plane.agrees(&format!(
        "s_client -connect {} -CAfile data/admin/roots.pem -alpn h2 -verify_return_error",
        plane.xds
    ))?;
    assert!(
        hello.contains("ALPN protocol: h2") && hello.contains("Verify return code: 0"),
        "{hello}"
    );
    let old = plane.openssl(&format!(
        "s_client -connect {} -tls1_1 -cipher ALL@SECLEVEL=0",
        plane.admin
    ))?;
    assert!(!old.is_content, "{}", old.text);
    // Whoever was refused may have gone before that is counted, and counted before it is said.
    for (port, reason) in [
        ("xds", "plain"),
        ("admin", "plain"),
        ("admin", "incompatible"),
        ("xds", "protocol"),
        ("xds", "broken"),
    ] {
        let line = format!("phalanx_tls_refused_total{{port=\"{port}\",reason=\"{reason}\"}}");
        eventually(&line, SOON, async || {
            plane.metrics().ok()?.contains(&line).then_some(())
        })
        .await
        .with_context(|| plane.metrics().unwrap_or_default())?;
    }
    eventually("the log to say it", SOON, async || {
        let log = plane.process.log();
        log.contains("plain text is not taken here").then_some(())
    })
    .await
}

/// Beats for `default/<service>` and prints the status.
const BEAT: &str = r#"
import sys, grpc
address, roots, service, *own = sys.argv[1:]
read = lambda path: open(path, "rb").read()
show = dict(private_key=read(own[0] + "/key.pem"), certificate_chain=read(own[0] + "/cert.pem")) if own else {}
channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(read(roots), **show))
field = lambda number, text: bytes([number << 3 | 2, len(text)]) + text.encode()
beat = channel.unary_unary("/phalanx.registry.v1.Registry/Heartbeat", lambda m: m, lambda m: m)
try:
    beat(field(1, "default") + field(2, service) + field(3, "b1"), timeout=20, wait_for_ready=True)
    print("OK")
except grpc.RpcError as error:
    print(error.code().name, error.details())
"#;

#[tokio::test]
async fn grpc_of_another_language_comes_in_with_its_certificate() -> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    plane.does(&["cert", "issue", "--service", "battle", "--out", "battle"])?;
    let python = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../target/tools/venv/bin/python"
    );
    let beat = |service: &str, own: &[&str]| -> anyhow::Result<String> {
        let mut command = Command::new(python);
        let command = command
            .args([
                "-c",
                BEAT,
                &plane.xds.to_string(),
                "data/admin/roots.pem",
                service,
            ])
            .args(own)
            .current_dir(plane.folder())
            .stdin(Stdio::null());
        Ok(said(&command.output().context("run `cargo xtask setup`")?))
    };
    let text = beat("battle", &["battle"])?;
    assert!(text.starts_with("OK"), "{text}");
    let text = beat("shop", &["battle"])?;
    assert!(
        text.starts_with("PERMISSION_DENIED") && text.contains("can't speak for"),
        "{text}"
    );
    let text = beat("battle", &[])?;
    assert!(
        text.starts_with("UNAUTHENTICATED") && text.contains("join first"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn a_certificate_can_be_a_user() -> anyhow::Result<()> {
    let id = "spiffe://phalanx.local/ns/default/sa/ops=operator";
    let plane = Guarded::start_with(&["--admin-id", id]).await?;
    for service in ["ops", "battle"] {
        plane.does(&["cert", "issue", "--service", service, "--out", service])?;
    }
    let at = |service: &str| {
        let file = |name: &str| {
            plane
                .folder()
                .join(service)
                .join(name)
                .display()
                .to_string()
        };
        let me = format!("https://{}/api/v1/me", plane.admin);
        curl(
            &plane,
            &["--cert", &file("cert.pem"), "--key", &file("key.pem"), &me],
        )
    };
    let text = at("ops")?;
    assert!(
        text.contains(" 200 ") && text.contains("\"role\":\"operator\""),
        "{text}"
    );
    let text = at("battle")?;
    assert!(
        text.contains(" 403 ") && text.contains("--admin-id"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn control_planes_of_one_mesh_ask_each_other_by_their_own_certificates() -> anyhow::Result<()>
{
    let etcd = Etcd::start(&[]).await?;
    let store = format!("etcd://{}", etcd.endpoint());
    let first = Guarded::start_with(&["--store", &store, "--plane", "first"]).await?;
    first.does(&["cert", "intermediate", "--out", "second"])?;
    let ca = first.folder().join("second").display().to_string();
    let options = ["--store", &store, "--plane", "second", "--ca", &ca];
    let second = Guarded::start_with(&options).await?;
    for plane in [&first, &second] {
        eventually("both to be seen", SOON, async || {
            let status: serde_json::Value =
                serde_json::from_str(&plane.does(&["status", "-o", "json"]).ok()?).ok()?;
            let planes = status["planes"].as_array()?;
            let is_well = |p: &serde_json::Value| p["error"].is_null();
            (planes.len() == 2 && planes.iter().all(is_well)).then_some(())
        })
        .await
        .with_context(|| plane.does(&["status", "-o", "json"]).unwrap_or_default())?;
    }
    // A user that one makes is known to the other.
    first.does(&["user", "add", "vera", "--role", "viewer", "--out", "vera"])?;
    let roots = second.data().join("admin/roots.pem").display().to_string();
    let vera = first.folder().join("vera").display().to_string();
    let environment = [
        ("PHALANX_ROOTS", roots.as_str()),
        ("PHALANX_TOKEN_FILE", vera.as_str()),
    ];
    eventually("the user to be known", SOON, async || {
        let (code, _) = bare(&second, &environment, &["status"]).ok()?;
        (code == 0).then_some(())
    })
    .await
}
