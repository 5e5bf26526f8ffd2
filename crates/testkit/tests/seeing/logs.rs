//! The access log and taps of sidecars that run.

use std::process::{Command, Stdio};

use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::mesh::Mesh;
use phalanx_testkit::process::executable;
use serde_json::Value;

use crate::{LIMIT, metric, page};

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[tokio::test]
async fn requests_are_logged_without_secrets_and_into_the_new_file_after_a_hangup()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let log = mesh.folder().join("access.log");
    let path = log.display().to_string();
    let options = ["--access-log", &path, "--access-log-sample", "100%"];
    let shop = mesh.instance_with("shop", "v1", "shop", &options).await?;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let asked = Call::get("shop", "/cart//7?token=hunter2")
        .header("traceparent", trace)
        .header("x-request-id", "r-1")
        .header("authorization", "Bearer hunter2");
    assert_eq!(call(shop.inbound, &asked).await?.status, 200);
    assert_eq!(
        call(shop.inbound, &Call::get("shop", "/status/503"))
            .await?
            .status,
        503
    );
    assert_eq!(
        call(shop.outbound, &Call::get("nobody", "/")).await?.status,
        404
    );
    let of = |path: &'static str| {
        let log = log.clone();
        async move || lines(&log).into_iter().find(|line| line["path"] == path)
    };
    let line = eventually("the line", LIMIT, of("/cart/7")).await?;
    assert_eq!(line["direction"], "inbound");
    assert_eq!(
        (&line["method"], &line["status"]),
        (&"GET".into(), &200.into())
    );
    assert_eq!(line["service"], "shop.default:8080");
    assert_eq!(line["request_id"], "r-1");
    assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(line["upstream"], shop.app_address.to_string());
    assert_eq!(line["attempts"], 1);
    assert!(line["bytes_out"].as_u64() > Some(0), "{line}");
    for key in [
        "duration_ms",
        "before_upstream_ms",
        "upstream_ms",
        "answer_ms",
    ] {
        assert!(line[key].is_f64(), "{key}: {line}");
    }
    let failed = eventually("the failure", LIMIT, of("/status/503")).await?;
    assert_eq!(failed["status"], 503);
    let own = eventually("the own answer", LIMIT, async || {
        lines(&log)
            .into_iter()
            .find(|line| line["reason"] == "no_route")
    });
    assert_eq!(own.await?["direction"], "outbound");
    assert!(!std::fs::read_to_string(&log)?.contains("hunter2"));

    // Rotation, as its programs do it.
    let old = mesh.folder().join("access.log.1");
    std::fs::rename(&log, &old)?;
    let hangup = Command::new("kill")
        .args(["-HUP", &shop.sidecar.id().to_string()])
        .status()?;
    assert!(hangup.success());
    eventually("the new file", LIMIT, async || log.exists().then_some(())).await?;
    assert_eq!(
        call(shop.inbound, &Call::get("shop", "/later"))
            .await?
            .status,
        200
    );
    eventually("the later line", LIMIT, of("/later")).await?;
    assert!(lines(&old).iter().all(|line| line["path"] != "/later"));
    let written = "phalanx_access_log_lines_total";
    assert!(metric(shop.admin, written, &[]).await? >= 4.0);
    assert_eq!(
        metric(shop.admin, "phalanx_access_log_dropped_total", &[]).await?,
        0.0
    );
    Ok(())
}

#[tokio::test]
async fn a_tap_shows_what_it_asks_for_and_is_gone_with_its_listener() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let shop = mesh.instance("shop", "v1", "shop").await?;
    let admin = mesh.admin.to_string();
    assert_eq!(metric(shop.admin, "phalanx_taps", &[]).await?, 0.0);
    let tap = Command::new(executable("phalanx")?)
        .args(["tap", "shop", "--admin", &admin, "--direction", "inbound"])
        .args(["--status", "5xx", "--path", "/status", "--max", "2"])
        .args(["--headers", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    eventually("the tap", LIMIT, async || {
        let taps = metric(shop.admin, "phalanx_taps", &[]).await.ok()?;
        (taps == 1.0).then_some(())
    })
    .await?;
    for path in ["/status/503", "/fine", "/status/404", "/status/500"] {
        let asked = Call::get("shop", path)
            .header("authorization", "Bearer hunter2")
            .header("x-env", "staging");
        call(shop.inbound, &asked).await?;
    }
    let output = tokio::task::spawn_blocking(|| tap.wait_with_output()).await??;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    let seen: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let statuses: Vec<_> = seen.iter().map(|line| line["status"].clone()).collect();
    assert_eq!(statuses, [503, 500]);
    assert_eq!(seen[0]["colour"], "staging");
    assert!(!text.contains("hunter2"), "{text}");
    assert!(
        text.contains("[redacted]") && text.contains("staging"),
        "{text}"
    );
    let node = seen[0]["node"].as_str().unwrap_or_default();
    assert!(node.starts_with("default/shop/"), "{node}");
    eventually("the tap's end", LIMIT, async || {
        let taps = metric(shop.admin, "phalanx_taps", &[]).await.ok()?;
        (taps == 0.0).then_some(())
    })
    .await?;
    // What can't be meant is refused.
    assert_eq!(page(shop.admin, "/tap?status=9xx").await?.status, 400);
    assert_eq!(page(shop.admin, "/tap?shape=round").await?.status, 400);
    Ok(())
}
