//! Writes responses: changes alone for delta, the whole content for the state of the world.

use std::sync::Arc;

use phalanx_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource,
};
use prost_types::Any;

use super::held::Change;
use crate::kind::Kind;
use crate::snapshot::{self, Encoded};

/// `revision` is the snapshot's and goes out as `system_version_info`.
pub(super) fn delta(
    kind: Kind,
    changes: &[Change],
    revision: u64,
    nonce: u64,
) -> DeltaDiscoveryResponse {
    let mut response = DeltaDiscoveryResponse {
        system_version_info: revision.to_string(),
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_string(),
        ..Default::default()
    };
    for change in changes {
        match &change.put {
            Some(resource) => response.resources.push(Resource {
                name: change.name.clone(),
                version: resource.version.clone(),
                resource: Some(any(resource)),
                ..Default::default()
            }),
            None => response.removed_resources.push(change.name.clone()),
        }
    }
    response
}

/// `version_info` is a hash over names and versions, equal on every replica.
pub(super) fn sotw<'a>(
    kind: Kind,
    content: impl Iterator<Item = &'a Arc<Encoded>>,
    nonce: u64,
) -> DiscoveryResponse {
    let mut identity = Vec::new();
    let resources = content
        .map(|resource| {
            identity.extend_from_slice(resource.name.as_bytes());
            identity.push(0);
            identity.extend_from_slice(resource.version.as_bytes());
            identity.push(0);
            any(resource)
        })
        .collect();
    DiscoveryResponse {
        version_info: snapshot::version(&identity),
        resources,
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_string(),
        ..Default::default()
    }
}

fn any(resource: &Encoded) -> Any {
    Any {
        type_url: resource.kind.type_url().to_owned(),
        value: resource.body.to_vec(),
    }
}
