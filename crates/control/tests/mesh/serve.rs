use phalanx_client::admin::Admin;
use phalanx_client::api::ApplyRequest;
use phalanx_client::registry::to_wire;
use phalanx_proto::phalanx::registry::v1::RegisterRequest;
use phalanx_proto::phalanx::registry::v1::registry_client::RegistryClient;

use phalanx_control::{Config, run, start};
use tokio::net::TcpListener;

use crate::{battle_instance, config};

#[tokio::test]
async fn open_it_stays_on_loopback_and_closed_it_takes_any_address() {
    let data = tempfile::tempdir().unwrap();
    let closed = Config {
        open: false,
        admin: "0.0.0.0:0".parse().unwrap(),
        ..config(data.path())
    };
    start(closed).await.unwrap().shutdown().await;
    let wide = Config {
        admin: "0.0.0.0:0".parse().unwrap(),
        ..config(data.path())
    };
    let error = start(wide).await.err().unwrap();
    assert!(
        error
            .to_string()
            .contains("--admin 0.0.0.0:0 is no loopback address"),
        "{error}"
    );
}

#[tokio::test]
async fn a_taken_port_is_said_with_its_flag() {
    let data = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let xds = taken.local_addr().unwrap();
    let error = start(Config {
        xds,
        ..config(data.path())
    })
    .await
    .err()
    .unwrap()
    .to_string();
    assert!(
        error.contains(&format!("--xds {xds} is taken")) && error.contains("another port"),
        "{error}"
    );
}

#[tokio::test]
async fn a_restart_has_documents_and_instances_at_once() {
    let data = tempfile::tempdir().unwrap();
    let first = start(config(data.path())).await.unwrap();
    let admin = Admin::new(&first.admin_address().to_string());
    let file = phalanx_client::api::File { name: "a".into(), text: "apiVersion: v1\nkind: Service\nmetadata: {name: battle}\nspec:\n  selector: {app: battle}\n  ports: [{port: 80}]\n".into() };
    let revision = admin
        .apply(&ApplyRequest {
            files: vec![file],
            ..ApplyRequest::default()
        })
        .await
        .unwrap()
        .revision;
    let mut registry = RegistryClient::connect(format!("http://{}", first.xds_address()))
        .await
        .unwrap();
    let request = RegisterRequest {
        instance: Some(to_wire(&battle_instance("b1"))),
        epoch: 1,
        ttl_ms: 30_000,
    };
    registry.register(request).await.unwrap();
    first.shutdown().await;

    let second = start(config(data.path())).await.unwrap();
    let admin = Admin::new(&second.admin_address().to_string());
    assert_eq!(
        admin.documents(Some("service"), None).await.unwrap().items[0].revision,
        revision
    );
    let seen = async || {
        let found = admin.instances(Some("battle"), Some("default")).await;
        found.unwrap().items.remove(0)
    };
    let instance = seen().await;
    assert_eq!(
        (instance.id.as_str(), instance.state.as_str()),
        ("b1", "live")
    );
    // As soon as the control plane holds its own lease.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while seen().await.lease_ms <= 25_000 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "a whole TTL of grace"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    second.shutdown().await;
}

#[tokio::test]
async fn two_on_one_folder_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let first = start(config(data.path())).await.unwrap();
    let error = start(config(data.path())).await.err().unwrap();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("already in use"), "{why}");
    assert!(!error.to_string().contains(&why), "said once");
    first.shutdown().await;
}

#[tokio::test]
async fn run_ends_at_shutdown() {
    let data = tempfile::tempdir().unwrap();
    run(config(data.path()), std::future::ready(()))
        .await
        .unwrap();
}
