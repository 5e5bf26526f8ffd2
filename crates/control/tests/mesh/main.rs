//! A whole control plane on loopback, met as its users meet it: over HTTP and gRPC.

mod access;
mod api;
mod discovery;
mod discovery_services;
mod dns;
mod etcd;
mod hostile;
mod ocsp;
mod serve;

use std::net::SocketAddr;
use std::path::Path;

use phalanx_client::admin::{Admin, AdminError};
use phalanx_client::api::{ApplyRequest, ApplyResponse, File};
use phalanx_control::{Config, Running};
use phalanx_model::instance::{Labels, Protocol};
use phalanx_model::{Instance, InstanceId, InstancePort, ServiceName};

struct Control {
    running: Running,
    admin: Admin,
    _data: tempfile::TempDir,
}

async fn control() -> Control {
    let data = tempfile::tempdir().unwrap();
    let running = phalanx_control::start(config(data.path())).await.unwrap();
    Control {
        admin: Admin::new(&running.admin_address().to_string()),
        running,
        _data: data,
    }
}

/// On free ports.
fn config(data: &Path) -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        data: data.to_owned(),
        xds: any,
        admin: any,
        dns: Some(any),
        open: true,
        ..Config::default()
    }
}

impl Control {
    async fn try_apply(&self, text: &str) -> Result<ApplyResponse, AdminError> {
        let files = vec![File {
            name: "a.yaml".into(),
            text: text.into(),
        }];
        self.admin
            .apply(&ApplyRequest {
                files,
                author: "ann".into(),
                ..ApplyRequest::default()
            })
            .await
    }

    async fn apply(&self, text: &str) -> u64 {
        self.try_apply(text).await.unwrap().revision
    }
}

/// An instance of battle with one port.
fn battle_instance(id: &str) -> Instance {
    let labels = [
        ("service", "battle"),
        ("namespace", "default"),
        ("app", "battle"),
    ];
    let port = InstancePort {
        name: String::new(),
        number: 9000,
        address: "127.0.0.5:15006".parse().unwrap(),
        protocol: Protocol::Auto,
    };
    Instance {
        id: InstanceId {
            service: ServiceName::new("default", "battle"),
            id: id.to_owned(),
        },
        labels: Labels::from(labels.map(|(k, v)| (k.to_owned(), v.to_owned()))),
        ports: vec![port],
        zone: String::new(),
        weight: 1,
        proxy_admin: String::new(),
        mutual_tls: false,
    }
}
