//! h2spec, strict, against our server role: every case of the list beside this file, and none that fails. The list is
//! h2spec's own report, so that a new version that asks for more is seen.

#[path = "http2/drive.rs"]
#[allow(dead_code)]
mod drive;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use phalanx_relay::Limits;
use phalanx_relay::http2::Config;
use tokio::net::TcpListener;

#[test]
fn h2spec_finds_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("../../target/tools/h2spec");
    assert!(
        program.is_file(),
        "no {}; run `cargo xtask setup`",
        program.display()
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime.spawn(async move {
        let config = Arc::new(Config::server(Limits::default()));
        while let Ok((stream, _)) = listener.accept().await {
            let config = config.clone();
            tokio::spawn(async move {
                drive::echo(stream, &config).await;
            });
        }
    });
    let folder = std::env::temp_dir().join(format!("phalanx-h2spec-{port}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let report = folder.join("report.xml");
    let ran = Command::new(&program)
        .args([
            "--strict",
            "--timeout",
            "5",
            "--port",
            &port.to_string(),
            "--junit-report",
        ])
        .arg(&report)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let failures = said.split("Failures:").nth(1).unwrap_or_default();
    assert!(
        ran.status.success(),
        "{failures}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let cases = cases(&std::fs::read_to_string(&report).unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
    let list = root.join("tests/http2/h2spec.txt");
    let expected = std::fs::read_to_string(list).unwrap();
    assert_eq!(
        cases,
        expected.lines().collect::<Vec<_>>(),
        "the list of h2spec's cases"
    );
}

/// `chapter: title` of each.
fn cases(report: &str) -> Vec<String> {
    let attribute = |line: &str, name: &str| {
        let rest = line.split_once(&format!("{name}=\""))?.1;
        let text = rest.split_once('"')?.0;
        Some(
            text.replace("&#34;", "\"")
                .replace("&#39;", "'")
                .replace("&amp;", "&"),
        )
    };
    report
        .lines()
        .filter(|line| line.contains("<testcase "))
        .map(|line| {
            let chapter = attribute(line, "package").unwrap();
            format!("{chapter}: {}", attribute(line, "classname").unwrap())
        })
        .collect()
}
