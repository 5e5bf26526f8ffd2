//! What the streams receive: services with ten instances each, told to the control plane as a user would, and one rule that
//! is changed.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Services `s0` to `s<n>` with endpoints outside of the mesh, which need no heartbeats.
pub async fn make(admin: &str, services: usize) -> anyhow::Result<Json> {
    let mut text = String::new();
    for service in 0..services {
        let endpoints: String = (1..=ENDPOINTS)
            .map(|n| {
                format!(
                    "{{addresses: [10.1.{}.{}]}}, ",
                    service % 250,
                    service / 250 * 20 + n
                )
            })
            .collect();
        write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{service}}}\nspec:\n  ports: [{{name: http, port: 80}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{service}, labels: {{kubernetes.io/service-name: s{service}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{endpoints}]\n---\n",
        )?;
    }
    apply(admin, &text).await?;
    Ok(json!({ "services": services }))
}

/// Another weight in the one route there is.
pub async fn change(admin: &str, number: u32) -> anyhow::Result<()> {
    let weight = 1 + number % 99;
    apply(admin, &format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: changed}}\nspec:\n  parentRefs: [{{group: \"\", kind: Service, name: s0}}]\n  rules:\n\
         \x20 - backendRefs: [{{name: s0, port: 80, weight: {weight}}}, {{name: s1, port: 80, weight: {}}}]\n",
        100 - weight
    ))
    .await
}

async fn apply(admin: &str, text: &str) -> anyhow::Result<()> {
    let body = json!({
        "files": [{ "name": "bench.yaml", "text": text }],
        "namespace": "default",
        "dry_run": false,
        "author": "bench",
    });
    let body = body.to_string();
    let mut tcp = TcpStream::connect(admin)
        .await
        .with_context(|| format!("cannot connect to {admin}"))?;
    tcp.set_nodelay(true)?;
    let head = format!(
        "POST /api/v1/apply HTTP/1.1\r\nhost: {admin}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    tcp.write_all((head + &body).as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, tcp.read_to_string(&mut answer)).await??;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

const ENDPOINTS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);
