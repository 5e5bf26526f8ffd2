//! Control planes over a real etcd: what one is told the other serves, and what etcd loses time over heals.

use std::time::Duration;

use phalanx_client::admin::Admin;
use phalanx_client::registry::to_wire;
use phalanx_control::serve::Place;
use phalanx_control::{Config, Running, start};
use phalanx_proto::phalanx::registry::v1::RegisterRequest;
use phalanx_proto::phalanx::registry::v1::registry_client::RegistryClient;
use phalanx_store::EtcdConfig;
use phalanx_testkit::etcd::{Etcd, START_MAX};
use phalanx_testkit::eventually;

use crate::{Control, battle_instance, config};

async fn over(etcd: &Etcd) -> Control {
    let data = tempfile::tempdir().unwrap();
    let mut place = EtcdConfig::new([etcd.endpoint()]);
    place.patience = START_MAX;
    let running = start(Config {
        store: Place::Etcd(Box::new(place)),
        ..config(data.path())
    });
    let running = running.await.unwrap();
    Control {
        admin: Admin::new(&running.admin_address().to_string()),
        running,
        _data: data,
    }
}

fn service(app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: battle}}\nspec:\n  selector: {{app: {app}}}\n  ports: [{{port: 80}}]\n"
    )
}

/// Waits until a control plane serves the service as of this revision.
async fn until_it_has(control: &Control, revision: u64) {
    eventually("the other's change", START_MAX, async || {
        let documents = control.admin.documents(Some("service"), None).await.ok()?;
        (documents.items.first()?.revision == revision).then_some(())
    })
    .await
    .unwrap();
}

async fn register(running: &Running, id: &str) {
    eventually("the registration", START_MAX, async || {
        let address = format!("http://{}", running.xds_address());
        let mut registry = RegistryClient::connect(address).await.ok()?;
        let request = RegisterRequest {
            instance: Some(to_wire(&battle_instance(id))),
            epoch: 1,
            ttl_ms: 30_000,
        };
        registry.register(request).await.ok()
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_control_plane_is_told_the_other_serves() {
    let etcd = Etcd::start(&[]).await.unwrap();
    let (first, second) = (over(&etcd).await, over(&etcd).await);
    let revision = first.apply(&service("battle")).await;
    until_it_has(&second, revision).await;
    let revision = second.apply(&service("arena")).await;
    until_it_has(&first, revision).await;

    register(&first.running, "b1").await;
    eventually("the other's instance", START_MAX, async || {
        let instances = second.admin.instances(Some("battle"), Some("default"));
        (instances.await.ok()?.items.len() == 1).then_some(())
    })
    .await
    .unwrap();
    first.running.shutdown().await;

    // What it stored outlives it.
    let third = over(&etcd).await;
    until_it_has(&third, revision).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_away_is_said_and_all_heals_when_it_is_back() {
    let mut etcd = Etcd::start(&[]).await.unwrap();
    let control = over(&etcd).await;
    let revision = control.apply(&service("battle")).await;
    etcd.kill();
    // What is known is served meanwhile, and says that nothing can be stored.
    eventually("the reason", START_MAX, async || {
        let status = control.admin.status(None).await.ok()?;
        status.read_only.filter(|reason| reason.contains("etcd"))
    })
    .await
    .unwrap();
    until_it_has(&control, revision).await;
    assert!(control.try_apply(&service("arena")).await.is_err());

    etcd.restart().await.unwrap();
    let revision = eventually("a change", START_MAX, async || {
        Some(control.try_apply(&service("lobby")).await.ok()?.revision)
    })
    .await
    .unwrap();
    until_it_has(&control, revision).await;
    register(&control.running, "b1").await;
    eventually("health", Duration::from_secs(20), async || {
        let status = control.admin.status(None).await.ok()?;
        status.read_only.is_none().then_some(())
    })
    .await
    .unwrap();
}
