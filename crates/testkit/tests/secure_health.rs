//! Active health checks of instances that take mutual TLS only: by the control plane and by another sidecar, each under its
//! own identity, and only where policies let it.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use phalanx_client::api::EndpointHealth;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Debug builds on two busy cores.
const READY_MAX: Duration = Duration::from_secs(30);

const DOCUMENTS: &str = "apiVersion: phalanx.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: everybody, namespace: phalanx-system}
spec: {mtls: {mode: Strict}}
---
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: battle}
spec:
  targetRefs: [{kind: Service, name: battle}]
  healthCheck: {path: /healthz, interval: 200ms, timeout: 1s, unhealthyThreshold: 2}
";

/// Lets in whoever is a `stranger`, and to `/healthz` these.
fn allowing(callers: &str) -> String {
    format!(
        "apiVersion: phalanx.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: battle}}
spec:
  targetRefs: [{{kind: Service, name: battle}}]
  action: Allow
  rules:
  - from: [{{services: [stranger]}}]
{callers}"
    )
}

/// An application that works, or says that it does not.
async fn application(at: SocketAddr, works: Arc<AtomicBool>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(at).await?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let works = works.clone();
            tokio::spawn(async move {
                let mut heard = [0; 4096];
                while stream.read(&mut heard).await.is_ok_and(|count| count > 0) {
                    let line = match works.load(Ordering::Relaxed) {
                        true => "200 OK",
                        false => "500 Broken",
                    };
                    let answer = format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n");
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    Ok(())
}

/// A sidecar with an identity, before an application at port 8080 of its address.
async fn sidecar(
    plane: &Guarded,
    service: &str,
    ip: IpAddr,
    works: &Arc<AtomicBool>,
) -> anyhow::Result<Process> {
    application(SocketAddr::new(ip, 8080), works.clone()).await?;
    let at = |port| SocketAddr::new(ip, port).to_string();
    let file = |name: &str| plane.folder().join(name).display().to_string();
    let (token, kept) = (file(&format!("{service}.token")), file(service));
    plane.does(&["cert", "token", "--service", service, "--out", &token])?;
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--service", service, "--workers", "1"])
        .args(["--control", &plane.xds.to_string()])
        .args(["--inbound", &at(15006), "--outbound", &at(15001)])
        .args(["--admin", &at(15000)])
        .args(["--token-file", &token, "--identity-dir", &kept])
        .args(["--app", &at(8080)]);
    let process = Process::spawn(command, &plane.folder().join(format!("{service}.log")))?;
    let ready = eventually("the sidecar to be ready", READY_MAX, async || {
        let page = Call::get(&at(15000), "/readyz");
        let answer = call(SocketAddr::new(ip, 15000), &page).await.ok()?;
        (answer.status == 200).then_some(())
    });
    ready.await.with_context(|| process.log())?;
    Ok(process)
}

/// Waits until the verdict on battle is this, by who is named so.
async fn until(plane: &Guarded, state: &str, who: &str) -> anyhow::Result<EndpointHealth> {
    let what = format!("battle to be {state} by {who}");
    let client = plane.client()?;
    let seen = eventually(&what, READY_MAX, async || {
        let found = client.health(Some("battle"), None).await.ok()?;
        let item = found.items.into_iter().next()?;
        let asks = item
            .checkers
            .iter()
            .any(|c| c.checker.contains(who) && c.state == state);
        (item.state == state && asks).then_some(item)
    });
    let now = async || format!("{:?}", client.health(Some("battle"), None).await);
    match seen.await {
        Ok(item) => Ok(item),
        Err(error) => Err(error.context(now().await)),
    }
}

fn apply(plane: &Guarded, text: &str) -> anyhow::Result<()> {
    let file = plane.folder().join("documents.yaml");
    std::fs::write(&file, text)?;
    plane.does(&["apply", "-f", &file.display().to_string(), "--wait"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_mutual_tls_only_is_asked_so_and_only_where_policies_let_the_asker()
-> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    apply(&plane, DOCUMENTS)?;
    let works = Arc::new(AtomicBool::new(true));
    let _battle = sidecar(&plane, "battle", address::fresh(), &works).await?;
    // Nobody asks beside its own application: the control plane does.
    until(&plane, "healthy", "control plane").await?;
    works.store(false, Ordering::Relaxed);
    let item = until(&plane, "unhealthy", "control plane").await?;
    assert_eq!(item.reason, "answered 500");
    // Over health discovery, by another service.
    let _gateway = sidecar(&plane, "gateway", address::fresh(), &Arc::default()).await?;
    until(&plane, "unhealthy", "gateway").await?;
    works.store(true, Ordering::Relaxed);
    until(&plane, "healthy", "gateway").await?;
    // A policy that names others: no exemption for questions, and no word about the application.
    apply(&plane, &allowing(""))?;
    works.store(false, Ordering::Relaxed);
    // Time for several questions, of which two would be enough.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let found = plane.client()?.health(Some("battle"), None).await?;
    assert!(
        found.items.iter().all(|item| item.state != "unhealthy"),
        "{found:?}"
    );
    // As the manual says: whoever asks is allowed to.
    let callers = "  - from: [{anyone: true}]\n    methods: [GET]\n    paths: [{type: Exact, value: /healthz}]\n";
    apply(&plane, &allowing(callers))?;
    until(&plane, "unhealthy", "gateway").await?;
    Ok(())
}
