//! Connections are split by weight, of TCPRoutes and of TLSRoutes, by our edge and by a stock Envoy beside it: a backend of
//! weight 0 gets none, the share of one that is not there is closed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::{address, eventually};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::peers::hello;
use crate::{edge, stock};

const DOCUMENTS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: phalanx
  listeners:
  - {name: raw, port: 9000, protocol: TCP}
  - {name: through, port: 8443, protocol: TLS, tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: raw}
spec:
  parentRefs: [{name: edge, sectionName: raw}]
  rules: [{backendRefs: [{name: a, port: 9000}, {name: b, port: 9000, weight: 2}, {name: gone, port: 9000}, {name: z, port: 9000, weight: 0}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: through}
spec:
  parentRefs: [{name: edge, sectionName: through}]
  hostnames: [split.example.com]
  rules: [{backendRefs: [{name: b, port: 9000}, {name: a, port: 9000, weight: 3}, {name: z, port: 9000, weight: 0}]}]
"#;

const CONNECTIONS: u32 = 320;
const AT_ONCE: usize = 16;
/// Standard deviations; farther off is one of 10⁸ or fewer.
const OFF_MAX: f64 = 6.0;
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// An application that tells its name at once and reads until the other end closes.
async fn named(at: SocketAddr, name: u8) -> anyhow::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(at).await?;
    Ok(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(&[name]).await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            });
        }
    }))
}

/// Who answers; None for a connection that was closed.
async fn who(to: SocketAddr, begin: &[u8]) -> anyhow::Result<Option<char>> {
    let mut stream = TcpStream::connect(to).await.context("no connection")?;
    // One that is closed at once may not take it.
    let _ = stream.write_all(begin).await;
    let mut name = [0];
    let read = timeout(ANSWER_MAX, stream.read(&mut name));
    match read.await.context("neither an answer nor an end")? {
        Ok(1) => Ok(Some(name[0].into())),
        Ok(_) | Err(_) => Ok(None),
    }
}

async fn counts(
    to: SocketAddr,
    begin: &Arc<Vec<u8>>,
) -> anyhow::Result<BTreeMap<Option<char>, u32>> {
    let (mut counts, mut asking, mut left) = (BTreeMap::new(), JoinSet::new(), CONNECTIONS);
    while left > 0 || !asking.is_empty() {
        while left > 0 && asking.len() < AT_ONCE {
            let begin = Arc::clone(begin);
            asking.spawn(async move { who(to, &begin).await });
            left -= 1;
        }
        if let Some(answered) = asking.join_next().await {
            *counts.entry(answered??).or_default() += 1;
        }
    }
    Ok(counts)
}

/// Whether each got its share, as far as chance allows.
fn is_split(counts: &BTreeMap<Option<char>, u32>, shares: &[(Option<char>, f64)]) -> bool {
    let total = f64::from(CONNECTIONS);
    let is_near = |(who, share): &(Option<char>, f64)| {
        let count = counts.get(who).copied().unwrap_or_default();
        let off = (f64::from(count) - total * share).abs();
        off < OFF_MAX * (total * share * (1.0 - share)).sqrt()
    };
    shares.iter().all(is_near)
        && counts
            .keys()
            .all(|who| shares.iter().any(|(of, _)| of == who))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_split_by_weight_whoever_runs_the_edge() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let services = ["a", "b", "z"].map(|name| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{{port: 9000, appProtocol: tcp}}]}}\n"
        )
    });
    mesh.apply(&(DOCUMENTS.to_owned() + &services.concat()))
        .await?;
    let mut running = Vec::new();
    for name in ["a", "b", "z"] {
        let ip = address::fresh();
        let app = SocketAddr::new(ip, 9000);
        let told = name.bytes().next().context("a name")?;
        let serving = named(app, told).await?;
        let sidecar = mesh.sidecar(name, "v1", ip, &["--app", &format!("tcp={app}")])?;
        running.push((serving, sidecar));
        mesh.registered(name, SocketAddr::new(ip, 15006)).await?;
    }
    let tls_dir = mesh.folder().join("tls");
    std::fs::create_dir(&tls_dir)?;
    let (ours, envoys) = (address::fresh(), address::fresh());
    let edges = [
        (ours, edge(mesh.folder(), mesh.xds, ours, &tls_dir, &[])?),
        (envoys, stock(&mesh, envoys, &tls_dir)?),
    ];
    let plain = Arc::new(Vec::new());
    let asked = Arc::new(hello(ServerName::try_from("split.example.com")?)?);
    let by_tcp = [(Some('a'), 0.25), (Some('b'), 0.5), (None, 0.25)];
    let by_tls = [(Some('a'), 0.75), (Some('b'), 0.25)];
    for (ip, process) in &edges {
        let (raw, through) = (SocketAddr::new(*ip, 9000), SocketAddr::new(*ip, 8443));
        for (to, begin) in [(raw, &plain), (through, &asked)] {
            // Of both that have a weight it must be known where they are.
            let mut met = Vec::new();
            let both = eventually("the way to both", READY_MAX, async || {
                met.extend(who(to, begin).await.ok().flatten());
                (met.contains(&'a') && met.contains(&'b')).then_some(())
            });
            both.await.with_context(|| process.log())?;
        }
        for (to, begin, shares) in [(raw, &plain, &by_tcp[..]), (through, &asked, &by_tls)] {
            let counts = counts(to, begin).await?;
            ensure!(is_split(&counts, shares), "{to}: {counts:?}");
        }
    }
    // A name that no route is for has no backend.
    let other = Arc::new(hello(ServerName::try_from("other.example.com")?)?);
    for (ip, _) in &edges {
        let answered = who(SocketAddr::new(*ip, 8443), &other).await?;
        ensure!(answered.is_none(), "{answered:?}");
    }
    Ok(())
}
