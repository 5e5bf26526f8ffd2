//! Worlds for tests: manifests and instances as they would stand in the store.

use phalanx_model::instance::{Labels, Protocol};
use phalanx_model::{Instance, InstanceId, InstancePort, ServiceName, manifest};

use super::record::{DocumentRecord, InstanceRecord, document_key, instance_key};
use super::{Fold, Stored, World};

#[derive(Clone, Default)]
pub struct Fixture {
    stored: Vec<Stored>,
    /// Of the next text's documents.
    created: u64,
}

impl Fixture {
    pub fn yaml(text: &str) -> Self {
        Self::default().and_yaml(text)
    }

    /// Documents that were created later than the ones before.
    pub fn and_yaml(mut self, text: &str) -> Self {
        self.created += 1;
        for parsed in manifest::parse("test.yaml", text, "default")
            .into_result()
            .unwrap_or_else(|p| panic!("{p:#?}"))
        {
            let document = serde_json::from_str(&parsed.json).unwrap();
            let record = DocumentRecord {
                created: self.created,
                updated: self.created,
                generation: 1,
                document,
            };
            self.put(
                document_key(&parsed.document.id()),
                serde_json::to_vec(&record).unwrap(),
            );
        }
        self
    }

    pub fn with(mut self, instance: Instance) -> Self {
        let record = InstanceRecord::new(&instance, 1, 30_000);
        self.put(
            instance_key(&instance.id),
            serde_json::to_vec(&record).unwrap(),
        );
        self
    }

    pub fn put(&mut self, key: String, value: Vec<u8>) {
        let revision = self.stored.len() as u64 + 1;
        self.stored.push(Stored {
            key,
            value: Some(value),
            revision,
        });
    }

    pub fn stored(&self) -> Vec<Stored> {
        self.stored.clone()
    }

    pub fn world(&self) -> World {
        let revision = self.stored.len() as u64;
        (*Fold::boot(self.stored.clone(), revision).world()).clone()
    }
}

/// An instance in `default` with all ports at one address.
pub fn instance(service: &str, id: &str, address: &str, ports: &[(&str, u16)]) -> Instance {
    let port = |(name, number): &(&str, u16)| InstancePort {
        name: (*name).to_owned(),
        number: *number,
        address: address.parse().unwrap(),
        protocol: Protocol::Auto,
    };
    Instance {
        id: InstanceId {
            service: ServiceName::new("default", service),
            id: id.to_owned(),
        },
        labels: Labels::from(
            [
                ("service", service),
                ("namespace", "default"),
                ("app", service),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
        ),
        ports: ports.iter().map(port).collect(),
        zone: String::new(),
        weight: 1,
        proxy_admin: String::new(),
        mutual_tls: false,
    }
}
