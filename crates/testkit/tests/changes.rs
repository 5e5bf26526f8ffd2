//! Fifty random changes of routes, weights and endpoints under constant load through our sidecar and through Envoy, on both
//! protocols, lose no request. Neither do twenty kills of the control plane on the way, but over the state of the world:
//! there a new stream says what exists, so a cluster in use that went while another came can't be kept for a moment longer.
//!
//! `PHALANX_SEED` repeats a run.

use std::net::SocketAddr;
use std::time::Duration;

use fastrand::Rng;
use phalanx_client::api::{ApplyRequest, DeleteRequest, DocumentRef, File};
use phalanx_testkit::envoy::{Envoy, Protocol};
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};

const CHANGES: usize = 50;
const KILLS: usize = 20;
const APPS: [&str; 3] = ["red", "green", "blue"];
/// Services that come and go, in front of the same applications.
const EXTRAS: usize = 4;

struct Changes {
    mesh: Mesh,
    rng: Rng,
    apps: Vec<Instance>,
    sidecar: Instance,
    envoys: Vec<Envoy>,
    extras: [bool; EXTRAS],
}

fn service(name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {app}}}\n  ports: [{{name: http, port: 80, appProtocol: http}}]\n---\n"
    )
}

/// Everything to `shop` goes by these backends, with one rule more for a header.
fn route(backends: &[(String, u32)], header: &str, to: &str) -> String {
    let backends: Vec<String> = backends
        .iter()
        .map(|(name, weight)| format!("{{name: {name}, port: 80, weight: {weight}}}"))
        .collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop}}\nspec:\n  parentRefs: [{{kind: Service, name: shop}}]\n  rules:\n  - matches: [{{headers: [{{name: x-env, value: {header}}}]}}]\n    backendRefs: [{{name: {to}, port: 80}}]\n  - backendRefs: [{}]\n---\n",
        backends.join(", ")
    )
}

impl Changes {
    async fn start(seed: u64, protocols: &[Protocol]) -> anyhow::Result<Self> {
        let mut mesh = Mesh::start().await?;
        let mut apps = Vec::new();
        let mut documents = service("shop", "red");
        for app in APPS {
            apps.push(mesh.instance(app, "v1", app).await?);
            documents += &service(app, app);
        }
        let sidecar = mesh.instance("gateway", "v1", "gateway").await?;
        documents += &route(&[("red".into(), 1)], "none", "red");
        mesh.apply(&documents).await?;
        let mut envoys = Vec::new();
        for protocol in protocols {
            envoys.push(Envoy::start(&mut mesh, "gateway", *protocol).await?);
        }
        let changes = Self {
            mesh,
            rng: Rng::with_seed(seed),
            apps,
            sidecar,
            envoys,
            extras: [false; EXTRAS],
        };
        for outbound in changes.callers() {
            answers(outbound).await?;
        }
        Ok(changes)
    }

    fn callers(&self) -> Vec<SocketAddr> {
        let envoys = self.envoys.iter().map(|envoy| envoy.outbound);
        envoys.chain([self.sidecar.outbound]).collect()
    }

    /// Every caller, with and without the header that a rule matches.
    fn load(&self) -> Vec<(SocketAddr, Load)> {
        let plain = Call::get("shop", "/");
        let marked = plain.clone().header("x-env", "e1");
        let mut loads = Vec::new();
        for outbound in self.callers() {
            for request in [&plain, &marked] {
                loads.push((
                    outbound,
                    Load::start(outbound, request, 2, Duration::from_millis(4)),
                ));
            }
        }
        loads
    }

    async fn change(&mut self) -> anyhow::Result<()> {
        let extra = self.rng.usize(..EXTRAS);
        match self.rng.u8(..10) {
            // A service that comes takes traffic in the same change.
            0..=2 if !self.extras[extra] => {
                self.extras[extra] = true;
                let app = APPS[self.rng.usize(..APPS.len())];
                let text = service(&format!("extra-{extra}"), app) + &self.routes();
                self.apply(&text).await
            }
            // One that goes has lost its traffic in the change before.
            0..=2 => {
                self.extras[extra] = false;
                let text = self.routes();
                self.apply(&text).await?;
                self.delete("Service", &format!("extra-{extra}")).await
            }
            3..=4 => {
                let text = self.policy();
                self.apply(&text).await
            }
            5 => self.replace().await,
            _ => {
                let text = self.routes();
                self.apply(&text).await
            }
        }
    }

    fn targets(&self) -> Vec<String> {
        let extras = (0..EXTRAS).filter(|extra| self.extras[*extra]);
        let extras = extras.map(|extra| format!("extra-{extra}"));
        APPS.into_iter().map(str::to_owned).chain(extras).collect()
    }

    /// Random weights over whatever exists, not all zero.
    fn routes(&mut self) -> String {
        let targets = self.targets();
        let to = targets[self.rng.usize(..targets.len())].clone();
        let mut backends: Vec<_> = targets
            .into_iter()
            .map(|target| (target, self.rng.u32(..4) * 25))
            .collect();
        self.rng.shuffle(&mut backends);
        backends[0].1 += 1;
        route(&backends, &format!("e{}", self.rng.u8(..2)), &to)
    }

    /// Another balancer, other limits: the cluster changes, and warms anew.
    fn policy(&mut self) -> String {
        let app = APPS[self.rng.usize(..APPS.len())];
        let kind = ["P2C", "LeastRequest", "RoundRobin", "Random"][self.rng.usize(..4)];
        let requests = 1024 + self.rng.u32(..64);
        format!(
            "apiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: {app}}}\nspec:\n  targetRefs: [{{kind: Service, name: {app}}}]\n  loadBalancer: {{type: {kind}}}\n  circuitBreaker: {{maxRequests: {requests}}}\n---\n"
        )
    }

    /// A new instance comes; once everybody knows it, the old one is told to go.
    async fn replace(&mut self) -> anyhow::Result<()> {
        let which = self.rng.usize(..APPS.len());
        let app = APPS[which];
        let fresh = self.mesh.instance(app, "v1", app).await?;
        self.settled(1).await?;
        let mut old = std::mem::replace(&mut self.apps[which], fresh);
        let status = old.sidecar.terminate(Duration::from_secs(20)).await?;
        anyhow::ensure!(status.success(), "a sidecar that was told to go: {status}");
        Ok(())
    }

    /// Until it is acknowledged: the control plane may be dead at the moment.
    async fn apply(&self, text: &str) -> anyhow::Result<()> {
        let request = ApplyRequest {
            files: vec![File {
                name: "change.yaml".into(),
                text: text.into(),
            }],
            author: "test".into(),
            ..ApplyRequest::default()
        };
        let client = self.mesh.client();
        eventually("the change to be taken", READY_MAX, async || {
            client.apply(&request).await.ok().map(drop)
        })
        .await
    }

    async fn delete(&self, kind: &str, name: &str) -> anyhow::Result<()> {
        let request = DeleteRequest {
            ids: vec![DocumentRef {
                kind: kind.into(),
                namespace: "default".into(),
                name: name.into(),
            }],
            ..DeleteRequest::default()
        };
        let client = self.mesh.client();
        eventually("the document to be gone", READY_MAX, async || {
            // One that was deleted although nobody was told is refused as missing.
            let gone = client.documents(Some(kind), None).await.ok()?;
            if gone.items.iter().all(|document| document.name != name) {
                return Some(());
            }
            client.delete(&request).await.ok().map(drop)
        })
        .await
    }

    /// `more` than the usual instances.
    async fn settled(&self, more: usize) -> anyhow::Result<()> {
        let client = self.mesh.client();
        let everybody = APPS.len() + 1 + self.envoys.len() + more;
        eventually("everybody to have everything", READY_MAX, async || {
            let status = client.status(None).await.ok()?;
            let complete = status.complete() && status.refused.is_empty();
            (complete && status.proxies == everybody).then_some(())
        })
        .await
    }
}

async fn answers(outbound: SocketAddr) -> anyhow::Result<()> {
    let request = Call::get("shop", "/");
    eventually("an answer of the shop", READY_MAX, async || {
        call(outbound, &request)
            .await
            .ok()
            .filter(|answer| answer.status == 200)
            .map(drop)
    })
    .await
}

fn seed() -> u64 {
    std::env::var("PHALANX_SEED").map_or_else(|_| fastrand::u64(..1000), |s| s.parse().unwrap())
}

async fn all_succeed(changes: &Changes, loads: Vec<(SocketAddr, Load)>, seed: u64) {
    for (outbound, load) in loads {
        let report = load.stop().await;
        let envoy = changes.envoys.iter().position(|e| e.outbound == outbound);
        let who = match envoy {
            None => "our sidecar",
            Some(0) => "Envoy over delta",
            Some(_) => "Envoy over state of the world",
        };
        assert_eq!(
            report.failed(),
            0,
            "PHALANX_SEED={seed}: {:?} of {} through {who}",
            report.failures,
            report.sent
        );
        assert!(report.sent > 200, "{} through {who}", report.sent);
    }
}

#[tokio::test]
async fn fifty_changes_lose_no_request() -> anyhow::Result<()> {
    let seed = seed();
    let mut changes = Changes::start(seed, &[Protocol::Delta, Protocol::StateOfTheWorld]).await?;
    let loads = changes.load();
    for _ in 0..CHANGES {
        changes.change().await?;
        let pause = changes.rng.u64(..60);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    changes.settled(0).await?;
    all_succeed(&changes, loads, seed).await;
    Ok(())
}

#[tokio::test]
async fn fifty_changes_with_twenty_kills_of_the_control_plane_lose_no_request() -> anyhow::Result<()>
{
    let seed = seed();
    let mut changes = Changes::start(seed, &[Protocol::Delta]).await?;
    let loads = changes.load();
    let mut kills = 0;
    for change in 0..CHANGES {
        if kills * CHANGES < change * KILLS {
            kills += 1;
            // Mostly while the last change is still on its way.
            changes.mesh.restart_control().await?;
        }
        changes.change().await?;
        let pause = changes.rng.u64(..60);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    assert_eq!(kills, KILLS);
    changes.settled(0).await?;
    all_succeed(&changes, loads, seed).await;
    Ok(())
}
