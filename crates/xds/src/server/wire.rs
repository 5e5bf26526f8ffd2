//! Writes responses: changes alone for delta, the whole content for the state of the world. A resource with a time to live
//! carries it; over delta a heartbeat repeats name, version and time to live without the resource.

use std::sync::Arc;

use phalanx_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource,
};
use prost::{Message, Name};
use prost_types::{Any, Duration};

use super::held::Change;
use crate::kind::Kind;
use crate::snapshot::{self, Encoded};

/// `revision` is the snapshot's and goes out as `system_version_info`.
pub(super) fn delta(
    kind: Kind,
    changes: &[Change],
    ttl_ms: u64,
    revision: u64,
    nonce: u64,
) -> DeltaDiscoveryResponse {
    let mut response = empty_delta(kind, revision, nonce);
    for change in changes {
        match &change.put {
            Some(resource) => response.resources.push(Resource {
                name: change.name.clone(),
                version: resource.version.clone(),
                resource: Some(any(resource)),
                ttl: ttl(ttl_ms),
                ..Default::default()
            }),
            None => response.removed_resources.push(change.name.clone()),
        }
    }
    response
}

/// `sure`: name and version of what the client holds.
pub(super) fn delta_heartbeat<'a>(
    kind: Kind,
    sure: impl Iterator<Item = (&'a str, &'a str)>,
    ttl_ms: u64,
    revision: u64,
    nonce: u64,
) -> DeltaDiscoveryResponse {
    let beat = |(name, version): (&str, &str)| Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        ttl: ttl(ttl_ms),
        ..Default::default()
    };
    DeltaDiscoveryResponse {
        resources: sure.map(beat).collect(),
        ..empty_delta(kind, revision, nonce)
    }
}

fn empty_delta(kind: Kind, revision: u64, nonce: u64) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        system_version_info: revision.to_string(),
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_string(),
        ..Default::default()
    }
}

/// `version_info` is a hash over names and versions, equal on every replica.
pub(super) fn sotw<'a>(
    kind: Kind,
    content: impl Iterator<Item = &'a Arc<Encoded>>,
    ttl_ms: u64,
    nonce: u64,
) -> DiscoveryResponse {
    let mut identity = Vec::new();
    let resources = content
        .map(|resource| {
            identify(&mut identity, resource);
            match ttl_ms {
                0 => any(resource),
                _ => wrapped(resource, ttl_ms),
            }
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

/// The `version_info` of a response with exactly this content, sorted by name.
pub fn sotw_version<'a>(content: impl Iterator<Item = &'a Arc<Encoded>>) -> String {
    let mut identity = Vec::new();
    content.for_each(|resource| identify(&mut identity, resource));
    snapshot::version(&identity)
}

fn identify(identity: &mut Vec<u8>, resource: &Encoded) {
    for part in [&resource.name, &resource.version] {
        identity.extend_from_slice(part.as_bytes());
        identity.push(0);
    }
}

/// The state of the world says a time to live in an envelope around the resource.
fn wrapped(resource: &Encoded, ttl_ms: u64) -> Any {
    let wrapper = Resource {
        name: resource.name.clone(),
        version: resource.version.clone(),
        resource: Some(any(resource)),
        ttl: ttl(ttl_ms),
        ..Default::default()
    };
    Any {
        type_url: Resource::type_url(),
        value: wrapper.encode_to_vec(),
    }
}

/// None for 0.
fn ttl(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration {
        seconds: (ms / 1000) as i64,
        nanos: (ms % 1000) as i32 * 1_000_000,
    })
}

fn any(resource: &Encoded) -> Any {
    Any {
        type_url: resource.kind.type_url().to_owned(),
        value: resource.body.to_vec(),
    }
}
