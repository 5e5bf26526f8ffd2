//! One entry for whoever feeds it foreign bytes: a small zone is asked, and what must hold of every answer is checked.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use phalanx_model::manifest;

use super::answer::{AMPLIFICATION_MAX, Asker, PAYLOAD_MAX, Transport, answer, slip};
use super::index::Index;
use crate::snapshot::Mesh;
use crate::world::record::{DocumentRecord, document_key};
use crate::world::{Fold, Stored};

const ZONE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: battle}
spec:
  ports: [{name: game, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: battle-1, labels: {kubernetes.io/service-name: battle}}
addressType: IPv4
ports: [{name: game, port: 8080}]
endpoints: [{addresses: [10.9.0.1]}, {addresses: [10.9.0.2]}]
";

/// Asks as a TCP client, a known UDP client and one whose address may be forged.
///
/// # Errors
/// Which answer breaks which rule: a defect.
pub fn ask(packet: &[u8]) -> Result<(), String> {
    static INDEX: OnceLock<Index> = OnceLock::new();
    let index = INDEX.get_or_init(index);
    let id = packet.get(..2);
    for transport in [
        Transport::Tcp,
        Transport::Udp { is_proven: true },
        Transport::Udp { is_proven: false },
    ] {
        let asker = Asker {
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            transport,
            turn: 0,
        };
        let Some(said) = answer(index, packet, asker) else {
            continue;
        };
        let most = match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp { is_proven: true } => PAYLOAD_MAX,
            Transport::Udp { is_proven: false } => {
                PAYLOAD_MAX.min(AMPLIFICATION_MAX * packet.len())
            }
        };
        if said.bytes.len() > most {
            return Err(format!("{} bytes over {transport:?}", said.bytes.len()));
        }
        if said.bytes.get(..2) != id || said.bytes.get(2).is_none_or(|flags| flags & 0x80 == 0) {
            return Err("it is no answer to this question".into());
        }
        if answer(index, &said.bytes, asker).is_some() {
            return Err("an answer is answered".into());
        }
    }
    match slip(packet) {
        Some(said) if said.bytes.len() > packet.len() => Err("a slip is longer".into()),
        _ => Ok(()),
    }
}

fn index() -> Index {
    let parsed = manifest::parse("zone.yaml", ZONE, "default").documents;
    let stored = parsed
        .into_iter()
        .enumerate()
        .filter_map(|(number, parsed)| {
            let record = DocumentRecord {
                created: 1,
                updated: 1,
                generation: 1,
                document: serde_json::from_str(&parsed.json).ok()?,
            };
            Some(Stored {
                key: document_key(&parsed.document.id()),
                value: serde_json::to_vec(&record).ok(),
                revision: number as u64 + 1,
            })
        });
    let stored: Vec<_> = stored.collect();
    let revision = stored.len() as u64;
    let world = Fold::boot(stored, revision).world().clone();
    let mesh = Arc::new(Mesh::compile(&world));
    Index::build(mesh, &world.instances, world.revision, None, None)
}
